"""Graphs: laws against networkx and enumeration, sums over orders against brute force."""

from itertools import permutations

import numpy as np
import pytest
import torch

from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.errors import InputError
from pyrocrl.exact import orders


def random_graph(rng: np.random.Generator, d: int, density: float = 0.5) -> np.ndarray:
    return (rng.random((d, d)) < density) & ~np.eye(d, dtype=bool)


def random_dag(rng: np.random.Generator, d: int) -> np.ndarray:
    rank = rng.permutation(d)
    return random_graph(rng, d) & (rank[:, None] < rank[None, :])


def random_scores(d: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(d, 2**d, dtype=torch.float64, generator=generator)


def graph_score(graph: np.ndarray, scores: torch.Tensor) -> float:
    sets = graph.T.astype(int) @ (1 << np.arange(len(graph)))
    return float(sum(scores[k, sets[k]] for k in range(len(graph))))


def orders_of(graph: np.ndarray) -> int:
    return sum(orders.is_order_of(order, graph) for order in permutations(range(len(graph))))


@pytest.mark.parametrize(("d", "count"), [(1, 1), (2, 3), (3, 25), (4, 543)])
def test_all_dags_are_all_and_acyclic(d: int, count: int) -> None:
    found = list(orders.all_dags(d))
    assert len(found) == count == len({g.tobytes() for g in found})
    assert all(is_acyclic(g) for g in found)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_sums_over_orders_against_enumeration(d: int) -> None:
    scores = random_scores(d)
    dags = list(orders.all_dags(d))
    log_weight = np.array([graph_score(g, scores) + np.log(orders_of(g)) for g in dags])
    total = np.logaddexp.reduce(log_weight)
    np.testing.assert_allclose(float(orders.log_partition(scores)), total, rtol=1e-12)
    edges = np.einsum("g,gij->ij", np.exp(log_weight - total), np.array(dags, dtype=float))
    np.testing.assert_allclose(orders.edge_probabilities(scores).numpy(), edges, atol=1e-12)

    def of_order(order: tuple[int, ...]) -> float:
        return np.logaddexp.reduce([graph_score(g, scores) for g in dags if orders.is_order_of(order, g)])

    best = max(permutations(range(d)), key=of_order)
    assert tuple(orders.best_order(scores).tolist()) == best


@pytest.mark.parametrize(("d", "prob"), [(3, 0.5), (5, 0.2), (6, 0.75)])
def test_prior_is_normalised(d: int, prob: float) -> None:
    prior = orders.log_edge_prior(d, prob)
    total = float(orders.log_partition(prior)) + orders.log_order_prior(d, prob)
    np.testing.assert_allclose(total, 0.0, atol=1e-10)
    expected = orders.edge_probabilities(prior)
    np.testing.assert_allclose(expected.sum().item(), prob * d * (d - 1) / 2, rtol=1e-10)


def test_draws_have_the_exact_marginals_and_are_acyclic() -> None:
    torch.manual_seed(0)
    scores = random_scores(4, seed=1, spread=1.0)
    order, graph = orders.sample_dags(scores.expand(20_000, 4, 16))
    found = graph.double().mean(0)
    np.testing.assert_allclose(found, orders.edge_probabilities(scores), atol=0.015)
    for one, nodes in zip(graph[:500].numpy(), order[:500].numpy(), strict=True):
        assert is_acyclic(one)
        assert orders.is_order_of(nodes, one)


def test_batched_vmapped_and_twice_differentiable() -> None:
    scores = torch.stack([random_scores(5, seed) for seed in range(3)])
    one_by_one = torch.stack([orders.log_partition(s) for s in scores])
    torch.testing.assert_close(orders.log_partition(scores), one_by_one)
    torch.testing.assert_close(torch.func.vmap(orders.log_partition)(scores), one_by_one)
    torch.manual_seed(0)
    _, drawn = torch.func.vmap(orders.sample_dags, randomness="different")(scores)
    assert drawn.shape == (3, 5, 5)
    far = 1e4 * random_scores(3)  # log-likelihoods of large data are far apart
    assert torch.isfinite(torch.func.jacrev(torch.func.jacrev(orders.log_partition))(far)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: next(orders.all_dags(6)), "d: found 6; allowed: 1 to 5"),
        (lambda: orders.log_edge_prior(3, 1.0), "prob: found 1.0; allowed: an edge"),
        (lambda: orders.log_partition(torch.zeros(13, 2**13)), "d: found 13; allowed: 1 to 12"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
