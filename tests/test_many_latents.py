"""Unmixing and graph of more latents than graphs can be summed over: the sampler, its start, and a fit that uses it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.constructions import directions, many_latents
from pyrocrl.exact import annealed, joint_sampling, linear_sem, orders
from pyrocrl.infer import stories
from pyrocrl.lab.suite.equations import each, linear_world
from pyrocrl.simulate import draw
from pyrocrl.turns import drawing


def environments(data: pyrocrl.Data) -> linear_sem.Environments:
    """Moments of the true latents behind a random mixing, white in the first environment."""
    z, d = data.truth["z"], data.truth["z"].shape[1]
    y = z @ np.random.default_rng(0).standard_normal((d, d))
    names = ["observational", *(f"target_{k}" for k in range(d))]
    parts = [y[data.env_labels() == name] for name in names]
    found = linear_sem.Environments(
        torch.tensor([float(len(part)) for part in parts]).double(),
        torch.as_tensor(np.stack([part.mean(0) for part in parts])),
        torch.as_tensor(np.stack([np.cov(part.T, bias=True) for part in parts])),
        torch.cat([torch.zeros(1, d), torch.eye(d)]).double(),
    )
    return found.transform(directions.whitening(found.cov[0]))


def table_of(found: linear_sem.Environments) -> linear_sem.Slices:
    return linear_sem.slices(found, linear_sem.target_pairs(found.target))


def test_graphs_one_by_one_add_up_to_the_sum_over_all() -> None:
    found = environments(draw("squires2023_hard", 100, samples=50, latents=3, features=4))
    table, total, prob = table_of(found), found.count.sum(), 0.3
    rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    parts = []
    for graph in orders.all_dags(3):
        edges = torch.as_tensor(graph).double()
        prior = edges.sum() * math.log(prob / (1 - prob)) + orders.log_order_prior(3, prob) + orders.log_orders(edges)
        parts.append(prior + linear_sem.log_marginal_given_graph(rows, edges, table, total))
    whole = linear_sem.log_marginal(rows, table, total, prob)
    torch.testing.assert_close(torch.stack(parts).logsumexp(0), whole, rtol=1e-12, atol=0)


def test_the_sampler_has_the_posterior_that_quadrature_has() -> None:
    found = environments(draw("squires2023_hard", 103, samples=40, latents=2, features=3))
    table, total, prob = table_of(found), found.count.sum(), 0.5

    def log_target(rows: torch.Tensor) -> torch.Tensor:
        return linear_sem.log_marginal(rows, table, total, prob)

    exact = annealed.on_a_grid(log_target, torch.Generator().manual_seed(0), 500, points=100).rows

    def edges_at(rows: torch.Tensor) -> torch.Tensor:
        return orders.edge_probabilities(linear_sem.mechanism_scores(rows, table, prob))

    edges = torch.func.vmap(edges_at)(exact)
    start = joint_sampling.JointState(np.eye(2), np.zeros((2, 2), bool), np.arange(2))
    moments = table.node.numpy(), table.count.numpy(), table.cov.numpy()
    sampler = joint_sampling.JointSampler(*moments, 0.0, start, 3)
    graphs, rows = [], []
    for _ in range(1500):
        sampler.sweep()
        graphs.append(sampler.graph.copy())
        rows.append(sampler.unmixing / np.linalg.norm(sampler.unmixing, axis=1)[:, None])
    np.testing.assert_allclose(np.mean(graphs[100:], 0), edges.mean(0).numpy(), atol=0.08)
    square = np.einsum("nki,nkj->kij", rows[100:], rows[100:]) / len(rows[100:])
    np.testing.assert_allclose(square, torch.einsum("nki,nkj->kij", exact, exact).numpy() / len(exact), atol=0.03)


@pytest.mark.parametrize("seed, rows", [(103, 40), (101, 80), (100, 40)])
def test_graphs_without_edges_weigh_what_changes_of_variance_do(seed: int, rows: int) -> None:
    """Evidence of kinds that keep equations beside perfect ones: the sampler's, and quadrature's."""
    found = environments(draw("squires2023_hard", seed, samples=rows, latents=2, features=3))
    table, total, kinds = table_of(found), found.count.sum(), ("perfect", "variance", "shift")

    def evidence(kind: linear_sem.Intervention) -> float:
        def log_target(rows: torch.Tensor) -> torch.Tensor:
            return linear_sem.log_marginal(rows, table, total, 0.5, kind)

        return float(annealed.on_a_grid(log_target, torch.Generator().manual_seed(0), 10, points=200).log_evidence)

    perfect, variance, shift = (evidence(kind) for kind in kinds)
    start = joint_sampling.JointState(np.eye(2), np.zeros((2, 2), bool), np.arange(2))
    moments = table.node.numpy(), table.count.numpy(), table.cov.numpy()
    probability, drawn = joint_sampling.without_edges(*moments, 0.0, start, math.inf, 1, settle=50, kept=200)
    assert probability + math.log(2) == pytest.approx(variance - perfect, abs=0.6)
    scores = [
        torch.stack([linear_sem.innovation_scores(torch.as_tensor(row), table, kind).sum() for row in drawn])
        for kind in kinds[1:]
    ]
    more = float((scores[1] - scores[0]).logsumexp(0)) - math.log(len(drawn))
    assert more == pytest.approx(shift - variance, abs=4.0)  # a mean of 200 exponentials over twice the range


def test_the_start_has_the_rows_and_an_order_of_the_graph() -> None:
    data = draw("squires2023_sparse", 100, samples=5000, latents=20)
    found = environments(data)
    rows = many_latents.invariant_rows(found, torch.Generator().manual_seed(0))
    mixing = np.random.default_rng(0).standard_normal((20, 20))
    z = data.truth["z"][data.env_labels() == "observational"]
    root = directions.whitening(torch.as_tensor(np.cov((z @ mixing).T, bias=True))).numpy()
    ours = z @ mixing @ root @ rows.numpy().T
    assert min(abs(np.corrcoef(z[:, k], ours[:, k])[0, 1]) for k in range(20)) > 0.95
    order = many_latents.first_order(rows, found)
    place = np.argsort(order)
    parents, children = np.nonzero(data.truth["graph"])
    assert (place[parents] > place[children]).sum() <= 1


@pytest.fixture(scope="module")
def fitted() -> tuple[pyrocrl.Fit, pyrocrl.Data]:
    data = draw("squires2023_sparse", 101, samples=300, latents=13)
    program = pyrocrl.build("linear_sem_lin", data, edge_probability=0.15)
    return pyrocrl.fit(program, data, chains=1, progress=False), data


def test_more_latents_than_can_be_summed_over_are_recovered(fitted: tuple[pyrocrl.Fit, pyrocrl.Data]) -> None:
    fit, data = fitted
    graph = fit.graph()
    assert graph is not None
    assert ((graph > 0.5) != (data.truth["graph"] > 0)).sum() <= 2 < data.truth["graph"].sum()
    z, ours = data.truth["z"], fit.latents(data)
    assert min(abs(np.corrcoef(z[:, k], ours[:, k])[0, 1]) for k in range(13)) > 0.98
    tree = fit.posterior(draws=10, thin=1000)["posterior"]
    assert all(is_acyclic(one) for one in tree["graph"].to_numpy().reshape(-1, 13, 13))
    assert "weight" in tree
    set_to = fit.do(data, {"latent_1": 1.5}, draws=5)["z"].to_numpy()
    assert set_to.shape[-1] == 13
    np.testing.assert_allclose(set_to[..., 1], 1.5)


def test_shifts_told_as_perfect_are_noticed(fitted: tuple[pyrocrl.Fit, pyrocrl.Data]) -> None:
    """Equations that stay leave innovations and no edge: perfect interventions on independent latents fit as well."""
    perfect = fitted[0].chains.chain(0).rivals(("shift", "variance"))
    assert max(perfect.values()) < -5.0
    data = linear_world(0, each("shift", 13), 13, rows=500, features=18, noise=0.002)
    fit = pyrocrl.fit(pyrocrl.build("linear_sem_lin", data, edge_probability=0.15), data, chains=1, progress=False)
    shown = [one.detail for one in pyrocrl.diagnose(fit, data).claims[0].evidence if one.result == "on your word"]
    assert sum(detail.count("(fits as well)") for detail in shown) == 2


def test_many_latents_are_saved_and_come_back(fitted: tuple[pyrocrl.Fit, pyrocrl.Data], tmp_path: Path) -> None:
    fit, data = fitted
    again = pyrocrl.load(fit.save(tmp_path), data)
    np.testing.assert_array_equal(again.graph(), fit.graph())
    np.testing.assert_array_equal(again.latents(data), fit.latents(data))


def test_the_story_of_many_latents_less_what_is_recovered_is_the_model() -> None:
    """Besag's candidate identity; the guide's density is the model's less `log_density`, here 0."""
    data = draw("squires2023_sparse", 102, samples=60, latents=13)
    program = pyrocrl.build("linear_sem_lin", data).double()
    program.construct(data, torch.Generator().manual_seed(0))
    batch = data.tensors(dtype=torch.float64).whole()
    with torch.no_grad(), drawing(0):
        for _ in range(2):
            _, trace, gap = stories.drawn_and_told(program, batch)
            assert abs(float(gap)) < 1e-9 * abs(float(trace.nodes["x"]["log_prob_sum"]))
