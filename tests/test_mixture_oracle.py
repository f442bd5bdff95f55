"""`mixture_oracle`: its evidence, laws and sampler are exact, latents are found, and verdicts say what they rest on."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import simulate
from pyrocrl.constructions import state_partitions
from pyrocrl.constructions.state_partitions import Tuples, margin, partitions, search
from pyrocrl.exact import orders, tables
from pyrocrl.exact.joint_states import (
    LEVEL,
    RATE,
    SHAPE,
    Sampler,
    digits,
    family_scores,
    log_counts,
    parent_scores,
    pooled,
    slots,
    subsets,
)
from pyrocrl.judge.checks import CHECKS
from pyrocrl.lab.suite.states import mixed

ODDS = np.log(0.3 / 0.7)
VARIABLE = np.array([0, 1, 1, 2])


def standard(data: pyrocrl.Data) -> tuple[np.ndarray, np.ndarray]:
    view = np.arange(data.features) if data.view is None else data.view
    return (data.x - data.x.mean(0)) / data.x.std(0), view


def test_evidence_of_parents_is_that_of_a_multivariate_t() -> None:
    rng = np.random.default_rng(0)
    sizes, state = (2, 3), rng.integers(0, 6, 12)
    x, hot = rng.standard_normal((12, 4)), np.eye(6)
    found = parent_scores(hot[state].sum(0), hot[state].T @ x, (x**2).sum(0), VARIABLE, sizes, 0.4)
    expected = []
    for own in subsets(2):
        design = hot[state] @ np.eye(6)[slots(sizes, own)]
        cov = np.eye(12) + design @ design.T / LEVEL
        law = stats.multivariate_t(np.zeros(12), RATE / SHAPE * cov, df=2 * SHAPE)
        each = np.array([law.logpdf(column) for column in x.T])
        expected.append(np.bincount(VARIABLE, each) + 0.4 * own.sum())
    assert found - found[:, :1] == pytest.approx((np.array(expected) - expected[0]).T)


def test_equivalent_graphs_have_the_same_evidence_and_a_full_one_that_of_free_counts() -> None:
    rng = np.random.default_rng(1)
    sizes, count = (2, 3, 2), rng.poisson(20.0, 12).astype(float)
    score = family_scores(count, sizes, 0.7)
    assert score[0, 0] + score[1, 1] == pytest.approx(score[1, 0] + score[0, 2])
    for a, b, c in itertools.permutations(range(3)):  # of free counts
        total = score[a, 0] + score[b, 1 << a] + score[c, 1 << a | 1 << b]
        assert total == pytest.approx(log_counts(count, 0.7))


def test_v_structures_are_directed_and_chains_are_not() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2, (2, 4000))
    hit = np.where(rng.random(4000) < 0.8, a | b, 1 - (a | b))
    next_ = np.where(rng.random(4000) < 0.8, a, 1 - a)
    for columns, directed in (((a, b, hit), True), ((a, next_, np.where(rng.random(4000) < 0.8, next_, b)), False)):
        count = np.bincount(np.ravel_multi_index(columns, (2, 2, 2)), minlength=8).astype(float)
        scores = family_scores(count, (2, 2, 2), 1.0) - 2 * subsets(3).sum(1)
        found = orders.edge_probabilities(torch.as_tensor(scores))
        middle = 2 if directed else 1
        for end in set(range(3)) - {middle}:
            assert found[end, middle] + found[middle, end] > 0.95
            assert (found[end, middle] > 0.95) == directed


def test_laws_of_tables_and_states() -> None:
    """Tables' density is that of Dirichlet laws of their lines, and joint states' law sums to one."""
    torch.manual_seed(0)
    graph = torch.tensor([[0.0, 1.0, 1.0], [0, 0, 1], [0, 0, 0]], dtype=torch.float64)
    size = torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)
    prior = tables.table_prior(graph, size, 3, 0.5)
    law = tables.Tables(prior)
    table = law.sample()
    assert ((table > 0) <= (prior > 0)).all() and prior.sum((-1, -2)).tolist() == [3.0, 3.0, 3.0]
    lines = [(p[p > 0], t[p > 0]) for p, t in zip(prior.flatten(0, 1), table.flatten(0, 1), strict=True) if p.sum() > 0]
    expected = sum(torch.distributions.Dirichlet(p).log_prob(t / t.sum()) for p, t in lines if len(p) > 1)
    assert float(law.log_prob(table)) == pytest.approx(float(expected))
    joint = tables.joint_law(table, graph)
    assert float(joint.exp().sum()) == pytest.approx(1.0)
    every = tables.all_digits(3, 3, joint.device)
    states = tables.JointState(joint.expand(27, -1), every)
    assert torch.equal(states.log_prob(every.double()), joint)
    drawn = tables.JointState(joint.expand(4000, -1), every).sample()
    assert float(drawn.mean(0)[1]) == pytest.approx(float(joint.exp() @ every[:, 1].double()), abs=0.05)


def from_prior(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Two latents of 2 and 3 states, which both act on one of three variables or more."""
    sizes, parents = (2, 3), np.zeros((3, 2), dtype=bool)
    while not parents.any(0).all():
        parents = rng.random((3, 2)) < 0.3
    edge, first = rng.normal(-0.5), rng.integers(2)
    graph = np.zeros((2, 2), dtype=bool)
    graph[first, 1 - first] = rng.random() < 1 / (1 + np.exp(-edge))
    law = np.ones(6)
    for k in range(2):
        slot = slots(sizes, graph[:, k])
        table = rng.dirichlet(np.full(sizes[k], 6 / (slot.max() + 1) / sizes[k]), slot.max() + 1)
        law = law * table[slot, digits(sizes)[:, k]]
    precision = rng.gamma(SHAPE, 1 / RATE, 4)
    level = np.zeros((6, 4))
    for v, own in enumerate(parents):
        slot, mine = slots(sizes, own), v == VARIABLE
        free = rng.standard_normal((slot.max() + 1, mine.sum())) / np.sqrt(LEVEL * precision[mine])
        level[:, mine] = free[slot]
    state = rng.choice(6, rows, p=law / law.sum())
    x = level[state] + rng.standard_normal((rows, 4)) / np.sqrt(precision)
    known = {"parents": parents, "graph": graph, "edge": edge, "precision": precision, "mean": level, "law": law}
    return known | {"state": state, "x": x}


def told(known: dict[str, Any]) -> list[float]:
    out = [known["parents"].sum(), known["parents"][0, 1], known["graph"].sum(), known["edge"]]
    return [float(v) for v in [*out, np.log(known["precision"]).mean(), np.abs(known["mean"]).mean(), known["law"][0]]]


def test_sweeps_leave_the_posterior_as_it_is() -> None:
    """Truths from the prior, rows from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(3)
    before, after = [], []
    for seed in range(120):
        known = from_prior(rng, 12)
        before.append(told(from_prior(rng, 12)))
        generator = torch.Generator().manual_seed(seed)
        chain = Sampler(known["x"], VARIABLE, (2, 3), np.eye(6)[known["state"]], ODDS, -0.5, 1.0, generator)
        chain.parents, chain.first_parents, chain.edge = known["parents"].copy(), False, known["edge"]
        for _ in range(6):
            chain.sweep()
        names = ("parents", "graph", "edge", "precision", "mean", "law")
        after.append(told({name: getattr(chain, name) for name in names}))
    for a, b in zip(np.array(before).T, np.array(after).T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 0.002


def test_latents_are_what_partitions_have_in_common() -> None:
    """All joint states once: the partitions of single latents are among those found, without their number told."""
    sizes = (2, 3, 2)
    parents = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=bool)
    label = np.stack([slots(sizes, own) for own in parents], 1)
    found = partitions(Tuples(label, 10 * np.eye(12)))
    for k in range(3):
        assert any(state_partitions._alike(digits(sizes)[:, k], one, np.ones(12)) for one in found)


@pytest.mark.parametrize(("width", "separation"), [(5, 3.0), (1, 5.0)])
def test_number_states_and_parents_are_found(width: int, separation: float) -> None:
    for seed in (100, 101):
        options = {"rows": 1000, "latents": 2, "variables": 5, "width": width, "separation": separation}
        data = simulate.draw("kivva2021", seed, **options)
        x, variable = standard(data)
        found = search(x, variable, 4, 4, ODDS)
        true, sizes = data.truth["mask"][::width] > 0, data.truth["z"].max(0) + 1
        assert any(
            np.array_equal(np.array(found.sizes)[list(one)], sizes) and (found.parents[:, list(one)] == true).all()
            for one in itertools.permutations(range(len(found.sizes)))
        )
        assert margin(x, variable, found) > 3
        share = pooled(found.share.T, slots(found.sizes, np.arange(2) > 0)).T  # without the first latent
        fewer = state_partitions.settle(x, variable, found.sizes[1:], share, ODDS)
        assert fewer.bic < found.bic


def test_components_that_are_not_normal_ask_for_more_of_them() -> None:
    x, variable = standard(mixed(100, [[1]] * 3, sizes=(2,), noise="skewed"))
    share = np.eye(2)[(x[:, 0] > 0).astype(int)]
    assert margin(x, variable, state_partitions.settle(x, variable, (2,), share, ODDS)) < 0


def checked(name: str, rows: int = 1000, **read: Any) -> Any:
    program = SimpleNamespace(card=SimpleNamespace(name="one"), **{k: lambda *_, v=v: v for k, v in read.items()})
    chains = SimpleNamespace(chain=lambda _: program)
    data = SimpleNamespace(rows=rows, spread=lambda _: 0, rows_at=lambda _: 0)
    places = [SimpleNamespace(places=np.arange(2))]
    names = {"latent": ["a", "b"]}
    fit = SimpleNamespace(
        chains=chains, reference=0, program=program, batch_of=lambda _: 0, alignments=places, names=names
    )
    return CHECKS[name](fit, data)


def test_conditions() -> None:
    one = torch.ones(())
    assert checked("states_apart", states_margin=50 * one) is None
    assert checked("states_apart", states_margin=2 * one).rows == 2000
    assert checked("states_apart", 60, states_margin=50 * one).rows == pytest.approx(200)
    with pytest.raises(TypeError, match="states_margin"):
        checked("states_apart", states_margin=None)
    counts = torch.tensor([500.0, 497.0, 0.2, 2.8])
    assert checked("all_states", state_counts=counts + 5) is None
    assert checked("all_states", state_counts=counts).rows == 0  # never occurs
    assert checked("all_states", 60, state_counts=0.05 * counts).rows > 60  # of so few rows that is not sure
    assert checked("all_states", state_counts=counts + 1).rows > 1000
    sure = torch.eye(3)[torch.tensor([[0, 1], [2, 2], [1, 0], [2, 1]])]  # (row, latent, state)
    assert checked("states_told", state_shares=sure) is None
    sure[:, 1] = torch.tensor([0.5, 0.5, 0.0])
    lack = checked("states_told", state_shares=sure)
    assert "b" in lack.reason and not lack.rows


def test_bad_input() -> None:
    data = simulate.draw("kivva2021", 0, rows=50, latents=2, variables=4, width=2)
    with pytest.raises(pyrocrl.InputError, match="states: found 8 of 4 latents, 4096 joint states; allowed: 1024"):
        pyrocrl.build("mixture_oracle", data, latents=4, states=8)
    with pytest.raises(pyrocrl.InputError, match="views: found 2 names; allowed: 8"):
        pyrocrl.build("mixture_oracle", data, latents=2, views=["a", "b"])
    program = pyrocrl.build("mixture_oracle", data, latents=2)
    with pytest.raises(pyrocrl.InputError, match="view"):
        pyrocrl.fit(program, pyrocrl.Data(data.x), progress=False)
    with pytest.raises(pyrocrl.InputError, match="states: found 8 of 5 latents"):
        simulate.draw("kivva2021", latents=5, states=8)
    with pytest.raises(pyrocrl.InputError, match="variables: found 2 at density"):
        simulate.draw("kivva2021", latents=4, variables=2)
