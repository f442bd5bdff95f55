"""unknown_targets: evidence in closed form, states, masks and skeletons found, isolated edges left undirected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from chirho.interventional.handlers import do
from scipy.special import gammaln
from scipy.stats import multivariate_t

import pyrocrl
from pyrocrl import Batch, Data, Fit, InputError, simulate
from pyrocrl.constructions import binary_states
from pyrocrl.exact import binary, orders
from pyrocrl.infer import stories
from pyrocrl.infer.elbo import elbo, guide_trace, is_local, latent_values, sample_sites
from pyrocrl.judge import metrics
from pyrocrl.models.unknown_targets import UnknownTargets

SEED = 101  # two isolated edges and a latent alone


@cache
def fitted() -> tuple[Fit, Data, np.ndarray]:
    """(fit, data, the estimate's latent for each true one)."""
    data = simulate.draw("jiang2023", SEED, samples=2000)
    fit = pyrocrl.fit(UnknownTargets.from_data(data), data, chains=2, epochs=2, seed=0, progress=False)
    return fit, data, metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)[1]


def test_setting_tells_latents_apart_and_cuts_targets() -> None:
    data = simulate.draw("jiang2023", 4, samples=20_000, density=0.8)
    mask, z, graph = data.truth["mask"], data.truth["z"], data.truth["graph"]
    assert set(mask.sum(1)) <= {1, 2}
    for i in range(5):
        assert mask[:, i].sum() >= 2
        assert all((mask[:, i] > mask[:, j]).any() for j in range(5) if j != i)
    assert sorted(k for (k,) in data.truth["targets"].values()) == list(range(5))
    assert graph.sum() >= 4
    for env, (k,) in data.truth["targets"].items():
        rows = z[data.env == data.env_names.index(env)]
        for j in np.flatnonzero(graph[:, k]):
            both = [np.corrcoef(part[:, j], part[:, k])[0, 1] for part in (z[data.env == 0], rows)]
            assert abs(both[1]) < 0.04 < abs(both[0])
    assert data.targets is None


def test_set_scores_are_those_of_a_student_t() -> None:
    rng = np.random.default_rng(0)
    z, x = rng.integers(0, 2, (12, 2)), rng.standard_normal((12, 2))
    code = z @ [1, 2]
    hot = torch.from_numpy(np.eye(4)[code])
    rows = torch.from_numpy(x)
    scores, *_ = binary.set_scores(hot.sum(0), hot.mT @ rows, rows.square().sum(0))
    a, b = binary.PRIOR.shape, binary.PRIOR.rate
    for j in range(2):
        exact = []
        for members in range(4):
            same = np.eye(4)[code & members]
            law = multivariate_t(np.zeros(12), b / a * (np.eye(12) + same @ same.T / binary.PRIOR.precision), df=2 * a)
            odds = np.log(binary.PRIOR.mask / (1 - binary.PRIOR.mask))
            exact.append(law.logpdf(x[:, j]) + odds * members.bit_count())
        np.testing.assert_allclose(scores[j] - scores[j, 0], np.array(exact) - exact[0], atol=1e-9)


def test_tables_are_bdeu() -> None:
    rng = np.random.default_rng(1)
    count = rng.integers(0, 40, 8).astype(float)
    found = binary.table_scores(torch.from_numpy(count)[None], 3)[0]  # (child, set)
    bits = (np.arange(8)[:, None] >> np.arange(3)) & 1

    def direct(child: int, parents: list[int]) -> float:
        total, cells = 0.0, 2 ** len(parents)
        for cell in np.ndindex(*[2] * len(parents)):
            here = (bits[:, parents] == cell).all(1)
            n = np.array([count[here & (bits[:, child] == v)].sum() for v in (0, 1)])
            prior = binary.PRIOR.equivalent / cells / 2
            total += gammaln(2 * prior) - gammaln(2 * prior + n.sum()) + (gammaln(prior + n) - gammaln(prior)).sum()
        return total

    for child, parents in ((0, []), (0, [1]), (1, [0, 2]), (2, [0])):
        assert float(found[child, sum(1 << j for j in parents)]) == pytest.approx(direct(child, parents))
    one, other = found[0, 0] + found[1, 1], found[1, 0] + found[0, 2]  # 0 -> 1 and 1 -> 0
    assert float(one) == pytest.approx(float(other))


def test_elbo_is_the_likelihood_whatever_is_drawn() -> None:
    program, data = UnknownTargets.example()
    program = program.double()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
        batch = data.tensors(dtype=torch.float64)
        values = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            values.append(float(elbo(program, batch)))
        exact = float(program.row_log_likelihood(batch, {}).sum())
    assert values == pytest.approx([exact, exact], rel=1e-9)


def test_states_mask_and_skeleton_are_found() -> None:
    fit, data, nodes = fitted()
    mask, graph = fit.mask(), fit.graph()
    assert mask is not None
    assert graph is not None
    for true, found in zip(data.truth["z"].T, fit.latents(data)[:, nodes].T, strict=True):
        assert abs(np.corrcoef(true, found)[0, 1]) > 0.98
    np.testing.assert_array_equal(mask[:, nodes] > 0.5, data.truth["mask"] > 0)
    graph, true = graph[np.ix_(nodes, nodes)], data.truth["graph"] > 0
    np.testing.assert_array_equal(graph + graph.T > 0.5, true | true.T)
    assert true.sum() == 2


def test_isolated_edges_stay_undirected_unless_mechanisms_are_invariant() -> None:
    fit, data, nodes = fitted()
    true = data.truth["graph"] > 0
    graph = fit.graph()
    assert graph is not None
    assert (true.sum(0) + true.sum(1) <= 1).all()  # every edge is isolated
    np.testing.assert_allclose(graph[np.ix_(nodes, nodes)][true], 0.5, atol=0.01)
    np.testing.assert_allclose(graph[np.ix_(nodes, nodes)].T[true], 0.5, atol=0.01)
    verdict = pyrocrl.diagnose(fit, data)
    assert verdict["graph"].verdict == "identified if"
    assert "markov equivalence" in verdict["graph"].reason
    assert verdict["latents"].verdict == "identified"

    own = fit.chains.chain(fit.reference)
    told = UnknownTargets(**{**own.config, "invariant": True}).double()
    told.load_state_dict(own.state_dict())
    place = fit.alignments[fit.reference].permutation[nodes]
    with torch.no_grad():
        graph, targets = told.graph().numpy(), told.targets_matrix().numpy()[:, place]
    assert graph[np.ix_(place, place)][true].min() > 0.9
    for env, hit in data.truth["targets"].items():
        assert targets[data.env_names.index(env)].argmax() == hit[0]
    assert told.claims()[2].up_to == ("permutation",)


def test_a_tree_without_v_structures_may_have_any_root() -> None:
    """Of 0 -> 1 -> 2, from its exact law: the graphs rooted at 0, 1 and 2 fit 1, 2 and 1 orders."""
    program = UnknownTargets(8, 3, 4).double()
    bits = orders.members(3).double()
    with torch.no_grad():
        for e, cut in enumerate((None, 0, 1, 2)):  # the latent that environment e targets
            p = torch.full((8,), 0.5, dtype=torch.float64)
            for k in (1, 2):
                one = torch.full_like(p, 0.4) if k == cut else 0.2 + 0.6 * bits[:, k - 1]
                p = p * torch.where(bits[:, k] > 0.5, one, 1 - one)
            program.count[e] = 5000 * p
        graph = program.graph()
    exact = [[0.0, 0.25, 0.0], [0.75, 0.0, 0.75], [0.0, 0.25, 0.0]]
    np.testing.assert_allclose(graph, exact, atol=0.01)


def test_recoding_finds_the_sparse_masks() -> None:
    """States coded with a latent replaced by an exclusive or fit as well, and need denser masks."""
    data = simulate.draw("jiang2023", SEED, samples=500)
    program = UnknownTargets.from_data(data).double()
    with torch.no_grad():
        program.construct(data, torch.Generator().manual_seed(0))
        x, env = program._rows_of(data)
        z = torch.from_numpy(data.truth["z"].copy())
        z[:, 0] = (z[:, 0] != z[:, 1]).double()
        share = torch.nn.functional.one_hot(binary.code(z), 32).double()
        found = binary_states.counts(x, env, share, len(program.count))
        program.put(**found._asdict())
        dense = float((program.mask() > 0.5).sum())
        better = binary_states.recoded(found)
        assert better is not None
        program.put(**better._asdict())
        assert float((program.mask() > 0.5).sum()) == data.truth["mask"].sum() < dense


def test_do_draws_along_the_graph() -> None:
    """Without an action, states have the law of the environments that change nothing; told together, their targets have
    the law of their own environment, and what is set stays set."""
    fit, data, _ = fitted()
    own = fit.chains.chain(fit.reference)
    program = UnknownTargets(**{**own.config, "invariant": True}).double()
    program.load_state_dict(own.state_dict())
    batch = dataclasses.replace(data.tensors(dtype=torch.float64).blank(), together=())
    with torch.no_grad():
        sites = program.recovered(batch, {})
        z = stories.values(stories.told(program, batch, sites))["z"]
        assert set(z.unique().tolist()) == {0.0, 1.0}
        count = ((1.0 - sites["targets"]).prod(-1) @ program.count) + 1e-9
        natural = (count / count.sum()) @ orders.members(5).double()
        assert (z.mean(0) - natural).abs().max() < 0.1
        e, k = (int(v) for v in sites["targets"].nonzero()[0])
        there = (program.count[e] / program.count[e].sum()) @ orders.members(5).double()
        moved = stories.told(program, dataclasses.replace(batch, together=(e,)), sites)
        assert (stories.values(moved)["z"].mean(0)[k] - there[k]).abs() < 0.05
        with do(actions=stories.acting({k: 1.0})):
            assert (stories.values(stories.told(program, batch, sites))["z"][:, k] == 1).all()


def log_prob_of(method: Callable, batch: Batch, values: dict, local: bool | None = None, **kept: torch.Tensor) -> float:
    """Log density of a program at these values of its sites; local: of those of rows, or of the others."""
    trace = pyro.poutine.trace(pyro.poutine.condition(method, data=stories.spread(values))).get_trace(batch, **kept)
    trace.compute_log_prob()
    return float(sum(s["log_prob_sum"] for _, s in sample_sites(trace) if local in (None, is_local(s))))


def small(invariant: bool) -> tuple[UnknownTargets, Data, Batch]:
    data = simulate.draw("jiang2023", 0, samples=60, latents=3, features=8)
    program = UnknownTargets.from_data(data, invariant=invariant).double()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
    return program, data, data.tensors(dtype=torch.float64)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_rows_given_what_is_plugged_in_are_the_models(order: list[int]) -> None:
    with torch.no_grad():
        program, _, batch = small(False)
        kept = latent_values(guide_trace(program, batch))
        for z in (kept["z"], 1 - kept["z"]):
            values = {"z": z, "order": torch.tensor(order)}
            story = log_prob_of(program.story, batch, {**values, **program.plugged(batch)}, True)
            assert story == pytest.approx(log_prob_of(program.model, batch, values, True), abs=1e-8)


@pytest.mark.parametrize("invariant", [False, True])
def test_story_less_recover_is_the_evidence_of_complete_data(invariant: bool) -> None:
    """Given all states: whatever the graph, targets, masks, tables, levels and noise, what is left is the evidence."""
    program, data, batch = small(invariant)
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which `set_scores` has the prior odds of masks
    try:
        with torch.no_grad():
            check_complete_data(program, data, batch)
    finally:
        torch.set_default_dtype(kind)


def check_complete_data(program: UnknownTargets, data: Data, batch: Batch) -> None:
    z = torch.from_numpy(data.truth["z"]).double()
    share = torch.nn.functional.one_hot(binary.code(z), 8).double()
    x, env = program._rows_of(data)
    program.put(**binary_states.counts(x, env, share, len(program.count))._asdict())
    n, (a, b) = float(program.count.sum()), program.prior[2:4]
    each = math.lgamma(a + 0.5 * n) - math.lgamma(a) + a * math.log(b) - 0.5 * n * math.log(2 * math.pi)
    evidence = float(binary.evidence(*(program.count.sum(0), program.first, program.second), program.prior))
    evidence += data.features * (each + 3 * math.log(1 - program.prior.mask)) - n * float(program.spread.log().sum())
    evidence += float(orders.log_partition(program._joint().logsumexp(-1))) + orders.log_order_prior(3, 0.5)
    lost = program.recovered(batch, {})
    moved = {
        "order": torch.tensor([2, 0, 1]),
        "graph": torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0]]).double(),
        "targets": torch.cat([lost["targets"][:1], 1 - lost["targets"][1:]]),
        "log_odds": lost["log_odds"] + 0.1,
        "mask": 1 - lost["mask"],
        "precision": 1.2 * lost["precision"],
        "level": lost["level"] - 0.1,
    }
    for values in (lost, *({**lost, name: moved[name]} for name in ("log_odds", "precision", "level")), moved):
        story, recover = (log_prob_of(f, batch, {"z": z, **values}) for f in (program.story, program.recover))
        assert math.isfinite(story)
        assert story - recover == pytest.approx(evidence, abs=1e-8)


def test_log_odds_of_a_beta_are_finite_and_right() -> None:
    torch.manual_seed(0)
    one, zero = torch.tensor(0.01).double(), torch.tensor(0.02).double()
    law = binary.LogitBeta(one, zero)
    drawn = law.sample((40_000,))
    assert torch.isfinite(drawn).all()
    assert torch.isfinite(law.log_prob(drawn)).all()
    assert float(drawn.sigmoid().mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(drawn.mean() - law.mean) == pytest.approx(0.0, abs=5 * float(drawn.std()) / 200)
    value = torch.tensor([-1.0, 0.3]).double()
    beta = torch.distributions.Beta(one, zero).log_prob(value.sigmoid())
    jacobian = value.sigmoid().log() + (-value).sigmoid().log()
    torch.testing.assert_close(law.log_prob(value), beta + jacobian)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"features": 20, "latents": 7, "environments": 3}, "latents"),
        ({"features": 4, "latents": 4, "environments": 3}, "latents"),
        ({"features": 8, "latents": 3, "environments": 11}, "environments"),
        ({"features": 8, "latents": 3, "environments": "two"}, "environments"),
        ({"features": 8, "latents": 3, "environments": 3, "edge_probability": 1.0}, "edge_probability"),
    ],
)
def test_bad_options_are_refused(options: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        UnknownTargets(**options)


def test_too_few_features_are_refused() -> None:
    with pytest.raises(InputError, match="features"):
        simulate.draw("jiang2023", 0, latents=12, features=13)
