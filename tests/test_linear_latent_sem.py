"""`linear_latent_sem`: its sampler and its laws are exact, clusters are found, and verdicts say what they rest on."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

import pyrocrl
from pyrocrl import simulate
from pyrocrl.constructions.pure_clusters import LAST, _Search, pure_clusters
from pyrocrl.exact import goodness
from pyrocrl.exact.gate_rows import Partitions
from pyrocrl.exact.measured_sem import NONE, SIZE, Measured, MeasuredDraws, Sampler, family_scores, one_hot
from pyrocrl.exact.mixed_sem import Directions, _Scores, _turn, components
from pyrocrl.exact.orders import is_order_of, parent_sets
from pyrocrl.judge.checks import CHECKS
from pyrocrl.lab.suite.factors import measured

TWO = [np.array(c) for c in itertools.product((NONE, 0, 1), repeat=6) if min(c.count(0), c.count(1)) > 1]


def moments(data: pyrocrl.Data) -> np.ndarray:
    x = (data.x - data.x.mean(0)) / data.x.std(0)
    return np.asarray(x.T @ x / len(x))


def from_prior(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Six features, two latents that both have some."""
    cluster, edge, order = TWO[rng.integers(len(TWO))], rng.normal(-1), rng.permutation(2)
    graph = np.zeros((2, 2))
    graph[order[0], order[1]] = rng.random() < special.expit(edge)
    precision = rng.gamma((3 + graph.sum(0)) / 2, 2 / SIZE)
    weight = graph * rng.standard_normal((2, 2)) / np.sqrt(SIZE * precision)
    known = {"cluster": cluster, "slope": 0.7 * rng.standard_normal(6) * (cluster != NONE)}
    known |= {"variance": 0.5 / rng.gamma(1.5, size=6), "order": order, "graph": graph, "weight": weight}
    return known | {"precision": precision, "edge": np.asarray(edge)}


def correlation(known: dict[str, np.ndarray]) -> np.ndarray:
    root = np.linalg.inv(np.eye(2) - known["weight"].T) / np.sqrt(known["precision"])
    root = root / np.linalg.norm(root, axis=1, keepdims=True)
    return np.asarray(root @ root.T)


def told(known: dict[str, np.ndarray]) -> list[float]:
    c, latents = known["cluster"], correlation(known)
    out = [(c == NONE).sum(), (c == 0).sum(), c[0], known["order"][0], known["graph"].sum(), float(known["edge"])]
    out += [np.log(known["variance"]).mean(), np.square(known["slope"]).sum(), known["slope"][0]]
    return [*out, latents[0, 1], np.log(known["precision"]).mean()]


def test_sweeps_leave_the_posterior_as_it_is() -> None:
    """Truths from the prior, rows from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for seed in range(200):
        before.append(told(from_prior(rng)))
        true = from_prior(rng)
        z = rng.multivariate_normal(np.zeros(2), correlation(true), 8)
        x = z @ (one_hot(true["cluster"], 2) * true["slope"][:, None]).T
        x = x + rng.standard_normal(x.shape) * np.sqrt(true["variance"])
        start = Measured(true["cluster"], true["slope"], true["variance"], correlation(true), 0.0)
        chain = Sampler(x.T @ x / 8, 8, start, 0.7, 0.5, -1.0, torch.Generator().manual_seed(seed))
        for name in ("order", "graph", "weight", "precision", "edge"):
            setattr(chain, name, float(true[name]) if name == "edge" else true[name].copy())
        chain.unit = chain.told(chain.weight, chain.precision)[1]
        for _ in range(3):
            chain.sweep()
        after.append(told({name: np.asarray(getattr(chain, name)) for name in true}))
    for old, new in zip(np.transpose(before), np.transpose(after), strict=True):
        assert stats.ks_2samp(old, new).pvalue > 1e-3


def test_equivalent_graphs_have_the_same_evidence_and_the_full_one_that_of_a_wishart_law() -> None:
    z = np.random.default_rng(0).standard_normal((40, 3)) @ [[1, 1.2, 0], [0, 1, 1.2], [0, 0, 1]]
    total = torch.as_tensor(z.T @ z)
    scores = family_scores(total, 40)

    def evidence(*edges: tuple[int, int]) -> float:
        graph = torch.zeros(3, 3)
        for edge in edges:
            graph[edge] = 1
        return float(scores.gather(1, parent_sets(graph)[:, None]).sum())

    chain, fork, back = evidence((0, 1), (1, 2)), evidence((1, 0), (1, 2)), evidence((2, 1), (1, 0))
    assert chain == pytest.approx(fork, abs=1e-9) and chain == pytest.approx(back, abs=1e-9)
    assert abs(chain - evidence((0, 1), (2, 1))) > 1
    prior, after = 2.5, 22.5  # half the degrees of freedom
    known = special.multigammaln(after, 3) - special.multigammaln(prior, 3) + 3 * prior * np.log(SIZE)
    known += 60 * np.log(2) - after * float(torch.logdet(total + SIZE * torch.eye(3)))
    assert evidence((0, 1), (0, 2), (1, 2)) == pytest.approx(known)


def test_partitions_are_alike_and_drawn_so() -> None:
    law = Partitions(5, 2, torch.ones((), dtype=torch.float64))
    rows = [*torch.eye(3, dtype=torch.float64)[:, :2]]
    every = [torch.stack(chosen) for chosen in itertools.product(rows, repeat=5)]
    density = torch.stack([law.log_prob(one) for one in every]).exp()
    assert float(density.sum()) == pytest.approx(1.0)
    torch.manual_seed(0)
    drawn = law.sample((3000,))
    keys = [tuple(one.flatten().int().tolist()) for one in drawn]
    labelled = {tuple(one.flatten().int().tolist()): float(p) for one, p in zip(every, density, strict=True) if p > 0}
    assert set(keys) == labelled.keys()  # 1 + 2 (10 + 10 + 5 + 1) + 2 (15 + 10) of them
    expected = np.array([3000 * p for p in labelled.values()])
    seen = np.array([keys.count(key) for key in labelled])
    assert stats.chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_clusters_and_how_many_are_found(noise: float) -> None:
    for seed in range(100, 106):
        for law in ("gaussian", "uniform"):
            data = simulate.draw("silva2006", seed=seed, rows=500, law=law, noise=noise)
            second = moments(data)
            found, own = pure_clusters(second, 500, 6, 0.1, second), data.truth["mask"].argmax(1)
            assert ((found.cluster[:, None] == found.cluster) == (own[:, None] == own)).all()
            again = _Search(second, 500, 0.1).fit(own, None, *LAST)
            assert found.bic == pytest.approx(again.bic, abs=1e-3) and found.margin > 0


def test_noise_alone_has_no_clusters() -> None:
    x = np.random.default_rng(0).standard_normal((500, 8))
    second = x.T @ x / 500
    found = pure_clusters(second, 500, 4, 0.1, second)
    assert (found.cluster == NONE).sum() >= 6 and found.parameters <= 11


def test_the_test_of_clusters_holds_for_heavy_tails() -> None:
    """The likelihood ratio is that of Gaussian rows where latents' innovations and noise are independent."""
    p = []
    for seed in range(60):
        data = simulate.draw("silva2006", seed=seed, rows=1000, law="laplace", noise=0.5)
        second = moments(data)
        found = _Search(second, 1000, 0.1).fit(data.truth["mask"].argmax(1), None, *LAST)
        zero = np.zeros((1, 9))
        law = goodness.Gaussians(
            np.array([1000.0]), zero, second[None], zero, found.covariance()[None], 9 + found.parameters
        )
        p.append(goodness.likelihood_ratio(law).p)
    assert stats.kstest(p, "uniform").pvalue > 0.001 and np.mean(np.array(p) < 0.01) < 0.1


@pytest.mark.parametrize(
    ("world", "verdict", "words"),
    [
        ({"own": (2, 2, 2), "apart": True}, "not identified", "depends on no other latent"),
        ({"mixed": True}, "contradicted", "likelihood ratio of clusters"),
    ],
)
def test_verdicts_of_worlds_that_break_it(world: dict, verdict: str, words: str) -> None:
    data = measured(31, rows=2000, **world)
    program = pyrocrl.build("linear_latent_sem", data, latents=4, innovations="gaussian")
    fit = pyrocrl.fit(program, data, chains=2, seed=0, progress=False)
    found = pyrocrl.diagnose(fit, data)
    assert all(claim.verdict == verdict for claim in found.claims)
    assert words in found["latents"].reason


def test_latents_that_may_be_one_are_undecided() -> None:
    data = simulate.draw("silva2006", seed=121, rows=500, law="laplace", noise=1.0)  # two latents correlate .92
    program = pyrocrl.build("linear_latent_sem", data, latents=4, innovations="gaussian")
    program.initialise(data, torch.Generator().manual_seed(0))
    fit: Any = SimpleNamespace(chains=SimpleNamespace(chain=lambda c: program), reference=0)
    lack = CHECKS["clusters_apart"](fit, data)
    assert lack is not None and lack.rows > 500 and "merged or one split" in lack.reason


@torch.no_grad()  # as chains start
def turned(law: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior edges, shares of mixtures and true edges of two latents, in the order of the clusters."""
    data = simulate.draw("silva2006", seed=seed, rows=600, latents=2, law=law, noise=0.3)
    x, second, generator = data.x / data.x.std(0), moments(data), torch.Generator().manual_seed(seed)
    start = pure_clusters(second, 600, 5, 0.1, second)
    drawn = Sampler(second, 600, start, 0.7, 0.1, -1.1, generator).run(3)
    made = Directions(x - x.mean(0), start).turn(drawn, np.random.default_rng(0), generator)
    own = (data.truth["mask"].T @ one_hot(start.cluster, 2)).argmax(0)
    for order, graph in zip(made.draws.order, made.draws.graph, strict=True):
        assert is_order_of(order.astype(int), graph > 0)
    return made.draws.graph.mean(0), made.mixed.mean(0), data.truth["graph"][np.ix_(own, own)]


@pytest.mark.parametrize("law", ["laplace", "uniform"])
def test_innovations_that_are_not_normal_tell_directions(law: str) -> None:
    graph, mixed, true = turned(law, 100)
    assert graph[:2, :2][true > 0].min() > 0.9 and graph[:2, :2].T[true > 0].max() < 0.1
    assert mixed[:2].min() > 0.9 and mixed[2] == graph[2].max() == 0


def test_normal_innovations_leave_directions_open() -> None:
    graph, mixed, true = turned("gaussian", 101)
    assert 0.3 < graph[:2, :2][true > 0].min() < 0.7 and mixed.max() < 0.5


def test_turned_draws_imply_the_same_correlations() -> None:
    rng = np.random.default_rng(0)
    chain = np.eye(3, k=1)
    slope, precision = chain * rng.standard_normal((3, 3)), rng.gamma(2, size=3)
    parts = (np.zeros((1, 4, 3)), np.zeros((1, 4, 3)), np.ones((1, 4)), np.arange(3.0)[None])
    draws = MeasuredDraws(*parts, chain[None].copy(), slope[None].copy(), precision[None].copy(), np.zeros(1))
    _turn(draws, 0, chain.T > 0, torch.Generator().manual_seed(0))
    old, new = (
        np.linalg.inv((np.eye(3) - w) * p @ (np.eye(3) - w).T)
        for w, p in ((slope, precision), (draws.slope[0], draws.precision[0]))
    )
    np.testing.assert_allclose(new, old, rtol=1e-9)
    assert ((draws.slope[0] != 0) == (chain.T > 0)).all() and is_order_of(draws.order[0].astype(int), chain.T)


def test_mixtures_have_mean_zero_and_unit_variance_and_their_likelihood_is_that_of_rows() -> None:
    rng = np.random.default_rng(0)
    form = torch.as_tensor(rng.standard_normal((2, 3)))
    shares, mean, deviation = components(torch.tensor([1.0, 0.0]), form)
    shares = shares.exp()
    assert (shares * mean).sum(-1).abs().max() < 1e-9
    np.testing.assert_allclose((shares * (mean.square() + deviation.square())).sum(-1), 1.0)
    assert mean[1].abs().max() == 0 and (deviation[1] - 1).abs().max() < 1e-9
    weight, noise = np.array([[0.0, 0.7], [0.0, 0.0]]), np.array([0.8, 0.5])
    law = _Scores(rng.standard_normal((5, 2)), np.array([0.3, 0.2]))
    found = law.log_likelihood(*map(torch.as_tensor, (weight, noise)), torch.ones(2), form)
    shares, mean, deviation = (part.numpy() for part in components(torch.ones(2), form))
    total, rows = np.linalg.inv(np.eye(2) - weight.T), np.zeros(5)
    for a, b in np.ndindex(2, 2):
        centre = total @ (noise * [mean[0, a], mean[1, b]])
        spread = total @ np.diag((noise * [deviation[0, a], deviation[1, b]]) ** 2) @ total.T + np.diag([0.3, 0.2])
        rows += np.exp(shares[0, a] + shares[1, b]) * stats.multivariate_normal(centre, spread).pdf(law.scores.numpy())
    assert float(found) == pytest.approx(np.log(rows).sum())
