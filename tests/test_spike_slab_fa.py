"""Factor analysis with spike-and-slab loadings: its sampler, its prior, what it finds and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.rotations import likely_factors, promax, through_zeros
from pyrocrl.exact.spike_slab import SHAPE, Sampler, buffet_log_prob
from pyrocrl.judge import metrics
from pyrocrl.simulate import draw


def test_the_buffet_sums_to_one_and_has_no_lone_entries() -> None:
    law = BuffetColumns(torch.tensor(0.3, dtype=torch.float64), 3, 2)
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64).reshape(-1, 3, 2)
    fits = (masks.sum(1) != 1).all(1)
    log_prob = torch.stack([law.log_prob(mask) for mask in masks[fits]])
    assert float(log_prob.exp().sum()) == pytest.approx(1.0)
    counts = masks[fits].sum(1).long().numpy()
    ours = [float(buffet_log_prob(np.array(0.3), count, 3)) for count in counts]
    np.testing.assert_allclose(ours, log_prob.numpy())
    torch.manual_seed(0)
    drawn = law.sample((4000,))
    assert set(drawn.sum(1).flatten().tolist()) == {0.0, 2.0, 3.0}
    full = float(log_prob[fits.nonzero().flatten() == len(masks) - 1].exp())
    assert float(drawn.all(-1).all(-1).double().mean()) == pytest.approx(full, abs=0.03)


def test_sums_over_latents_are_those_of_rows() -> None:
    """`complete` draws, from moments alone, what rows with latents drawn one by one would sum to."""
    rng = np.random.default_rng(0)
    rows, features, latents = 40, 5, 2
    x = rng.standard_normal((rows, features))
    sampler = Sampler(x.T @ x / rows, rows, latents, 0.7, 0.1, 2.0, rng)
    sampler.loadings = rng.standard_normal((features, latents))
    sampler.variance = rng.uniform(0.3, 1.0, features)
    sampler.correlation = np.array([[1.0, 0.4], [0.4, 1.0]])
    scaled = sampler.loadings / sampler.variance[:, None]
    covariance = np.linalg.inv(np.linalg.inv(sampler.correlation) + sampler.loadings.T @ scaled)
    tril, mean = np.linalg.cholesky(covariance), x @ scaled @ covariance
    told, summed = [], []
    for _ in range(3000):
        z = mean + rng.standard_normal(mean.shape) @ tril.T
        told.append(np.concatenate([(x.T @ z).ravel(), (z.T @ z).ravel()]))
        summed.append(np.concatenate([part.ravel() for part in sampler.complete(rows)]))
    told, summed = np.array(told), np.array(summed)
    error = np.sqrt((told.var(0) + summed.var(0)) / len(told))
    assert (np.abs(told.mean(0) - summed.mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(np.cov(summed.T), np.cov(told.T), atol=0.15 * np.cov(told.T).max())


def test_sweeps_keep_the_prior_of_data_from_the_prior() -> None:
    """Geweke (2004): parameters moved given data that were drawn given them keep the law that they have a priori."""
    rng = np.random.default_rng(1)
    rows, features, latents, slab, rate = 20, 5, 2, 0.7, 0.3
    law = BuffetColumns(torch.zeros(()), features, latents)
    sampler = Sampler(np.eye(features), rows, latents, slab, rate, 2.0, rng)
    sampler.heated, sampler.frozen, sampler.settled = False, False, True

    def prior() -> None:
        log_concentration = torch.as_tensor(rng.standard_normal())
        law.log_concentration = log_concentration
        mask = law.sample().numpy()
        sampler.loadings = mask * slab * rng.standard_normal(mask.shape)
        sampler.variance = rate / rng.standard_gamma(SHAPE, features)
        r = 2 * rng.beta(2.0, 2.0) - 1  # LKJ(2) of two
        sampler.correlation = np.array([[1.0, r], [r, 1.0]])
        sampler.concentration = float(log_concentration.exp())

    def told() -> list[float]:
        there = sampler.loadings != 0
        return [
            np.log(sampler.concentration),
            there.mean(),
            there.any(0).sum(),
            np.log1p((sampler.loadings**2).sum()),
            np.log(sampler.variance).mean(),
            sampler.correlation[0, 1] ** 2,
        ]

    torch.manual_seed(0)
    before, after = [], []
    for _ in range(500):
        prior()
        before.append(told())
        for _ in range(6):
            z = rng.standard_normal((rows, latents)) @ np.linalg.cholesky(sampler.correlation).T
            x = z @ sampler.loadings.T + np.sqrt(sampler.variance) * rng.standard_normal((rows, features))
            value, vector = np.linalg.eigh(x.T @ x / rows)
            sampler.second, sampler.root = x.T @ x / rows, vector * np.sqrt(np.maximum(value, 0.0))
            sampler.sweep(rows)
        after.append(told())
    one, two = np.array(before), np.array(after)
    apart = (two.mean(0) - one.mean(0)) / np.sqrt((one.var(0) + two.var(0)) / len(one))
    assert (np.abs(apart) < 4).all(), apart


def test_turns_to_the_zeros_that_a_rotation_hides() -> None:
    rng = np.random.default_rng(2)
    loadings = rng.uniform(0.5, 1.0, (24, 3)) * rng.choice([-1, 1], (24, 3))
    loadings[np.arange(24), np.arange(24) % 3] = 0.0  # every feature on two of three: no anchors
    correlation = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.0]])
    turn = np.array([[1.0, 0.5, -0.3], [0.2, 1.0, 0.4], [-0.4, 0.1, 1.0]])
    turned = np.linalg.inv(turn) @ correlation @ np.linalg.inv(turn).T
    unit = np.sqrt(np.diag(turned))
    hidden = loadings @ turn * unit
    found, after = through_zeros(hidden, turned / unit / unit[:, None], np.full(24, 1e-4), rng)
    np.testing.assert_allclose(found @ after @ found.T, loadings @ correlation @ loadings.T, atol=1e-3)
    np.testing.assert_allclose(np.diag(after), 1.0)
    order = metrics.mcc(loadings, found, return_assignment=True)[1]
    np.testing.assert_array_equal(found[:, order] != 0, loadings != 0)
    np.testing.assert_allclose(np.abs(found[:, order]), np.abs(loadings), atol=1e-2)
    again, _ = through_zeros(found, after, np.full(24, 1e-4), rng)
    np.testing.assert_array_equal(again, found)


def test_promax_of_likely_factors_finds_correlated_factors() -> None:
    data = draw("sparse_fa", seed=100, correlation=0.3, rows=3000)
    second = np.corrcoef(data.x.T)
    loadings, noise = likely_factors(second, 10)
    pattern, correlation = promax(loadings)
    np.testing.assert_allclose(pattern @ correlation @ pattern.T + np.diag(noise), second, atol=0.06)
    assert metrics.mask_scores(data.truth["mask"], (np.abs(pattern) > 0.15).astype(float))["f1"] > 0.97


def test_finds_factors_and_their_number() -> None:
    data = draw("sparse_fa", seed=100, rows=1000, latents=5, features=40, correlation=0.3)
    fit = pyrocrl.fit(pyrocrl.build("spike_slab_fa", data, latents=9), data, chains=2, seed=0, progress=False)
    score, nodes = metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    assert score > 0.97
    assert metrics.mask_scores(data.truth["mask"], fit.mask(), permutation=nodes)["f1"] > 0.97
    assert (fit.mask() > 0.5).any(0).sum() == 5
    drawn = fit.posterior(50, data, predictive=False, thin=500)["posterior"]["correlation"].mean(("chain", "draw"))
    used = (fit.mask() > 0.5).any(0)
    off = np.abs(drawn.to_numpy()[np.ix_(used, used)][np.triu_indices(5, 1)])
    assert np.abs(off - 0.3).max() < 0.15
    verdict = pyrocrl.diagnose(fit)
    assert verdict["latents"].verdict == "identified if", str(verdict)


@pytest.mark.parametrize("latents, offered, share", [(3, 5, 1.0), (6, 5, 0.3)], ids=["dense", "too few"])
def test_refuses_dense_loadings_and_too_few_latents(latents: int, offered: int, share: float) -> None:
    rng = np.random.default_rng(3)
    loadings = rng.standard_normal((30, latents)) * (rng.random((30, latents)) < share)
    data = pyrocrl.Data(rng.standard_normal((800, latents)) @ loadings.T + 0.5 * rng.standard_normal((800, 30)))
    fit = pyrocrl.fit(pyrocrl.build("spike_slab_fa", data, latents=offered), data, chains=2, seed=0, progress=False)
    verdict = pyrocrl.diagnose(fit)
    assert all(claim.verdict in ("not identified", "contradicted") for claim in verdict.claims), str(verdict)
