"""Spike-and-slab factor analysis of counts: its sampler, what it finds, what it refuses."""

from __future__ import annotations

import math

import numpy as np
import torch

import pyrocrl
from pyrocrl.dists import NegativeBinomial
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.count_factors import BASE, DISPERSION, SPREAD, CountSampler, CountStart, cells
from pyrocrl.exact.count_scores import scores_given_counts
from pyrocrl.judge import fit_tests, metrics
from pyrocrl.simulate import draw


def sampler_of(x: np.ndarray, latents: int, rng: np.random.Generator, batches: int = 1) -> CountSampler:
    rows, features = x.shape
    start = CountStart(rng.standard_normal((rows, latents)), np.eye(latents), np.ones(latents, dtype=bool))
    group = np.arange(rows) % batches
    return CountSampler(x, np.ones(rows), group, batches, np.zeros(features), start, 0.5, 2.0, rng)


def test_likelihoods_are_those_of_the_story_and_slopes_their_derivatives() -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(2.0, (30, 4)).astype(float)
    sampler = sampler_of(x, 2, rng)
    level, r = rng.standard_normal((4, 30)), rng.uniform(0.5, 5.0, 4)
    found, step = cells(sampler.x, level, r), 1e-5
    law = NegativeBinomial(None, torch.as_tensor(r), log_rate=torch.as_tensor(level.T))
    whole = law.log_prob(torch.as_tensor(x)).numpy() + torch.lgamma(torch.as_tensor(x + 1)).numpy()
    np.testing.assert_allclose(found.fit.sum(1) + sampler._of_r(r), whole.sum(0))
    up, down = (cells(sampler.x, level + s, r) for s in (step, -step))
    np.testing.assert_allclose(found.slope, (up.fit - down.fit) / (2 * step), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bend, (down.slope - up.slope) / (2 * step), rtol=1e-5, atol=1e-6)


def test_sweeps_keep_the_prior_of_counts_from_the_prior() -> None:
    """Geweke (2004): parameters moved given counts that were drawn given them keep the law that they have a priori."""
    rng = np.random.default_rng(1)
    rows, features, latents, batches = 12, 4, 2, 2
    law = BuffetColumns(torch.zeros(()), features, latents)
    sampler = sampler_of(np.ones((rows, features)), latents, rng, batches)
    sampler.heated = False  # latents may come and go
    sampler.walk[:] = 1.0

    def prior() -> None:
        log_concentration = torch.as_tensor(rng.standard_normal())
        law.log_concentration = log_concentration
        mask = law.sample().numpy()
        sampler.loadings = mask * sampler.slab * rng.standard_normal(mask.shape)
        sampler.concentration = float(log_concentration.exp())
        sampler.base = BASE * rng.standard_normal((features, batches))
        sampler.dispersion = DISPERSION * np.exp(SPREAD * rng.standard_normal(features))
        r = 2 * rng.beta(2.0, 2.0) - 1  # LKJ(2) of two
        sampler.correlation = np.array([[1.0, r], [r, 1.0]])
        sampler.z = np.linalg.cholesky(sampler.correlation) @ rng.standard_normal((latents, rows))

    def told() -> list[float]:
        z, loadings = sampler.z, sampler.loadings
        return [
            math.log(sampler.concentration),
            (loadings != 0).mean(),
            (loadings != 0).any(0).sum(),
            np.log1p((loadings**2).sum()),
            np.log(sampler.dispersion).mean(),
            (np.log(sampler.dispersion) ** 2).mean(),
            sampler.base.mean(),
            (sampler.base**2).mean(),
            (z**2).mean(),
            (z[0] * z[1]).mean() ** 2,
            sampler.correlation[0, 1] ** 2,
            np.abs(loadings @ z).mean(),
        ]

    torch.manual_seed(0)
    before, after = [], []
    for _ in range(400):
        prior()
        before.append(told())
        for _ in range(4):
            mean = np.exp(sampler._level(sampler.loadings, sampler.z, sampler.base))
            r = sampler.dispersion[:, None]
            sampler.x = rng.poisson(np.minimum(rng.gamma(r, mean / r, mean.shape), 1e6)).astype(float)
            sampler.observe()
            sampler.count_sweep()
        after.append(told())
    one, two = np.array(before), np.array(after)
    apart = (two.mean(0) - one.mean(0)) / np.sqrt((one.var(0) + two.var(0)) / len(one))
    assert (np.abs(apart) < 4).all(), apart


def test_scores_are_at_the_mode_with_its_curvature() -> None:
    torch.manual_seed(0)
    loadings, r, tril = torch.randn(6, 2).double(), torch.full((6,), 2.0).double(), torch.eye(2).double()
    level, x = torch.randn(5, 6).double(), torch.poisson(torch.full((5, 6), 3.0)).double()
    z, scale = scores_given_counts(x, level, loadings, r, tril)

    def log_density(z: torch.Tensor) -> torch.Tensor:
        law = NegativeBinomial(None, r, log_rate=level + z @ loadings.mT)
        return law.log_prob(x).sum() - 0.5 * z.square().sum()

    at = z.clone().requires_grad_()
    np.testing.assert_allclose(torch.autograd.grad(log_density(at), at)[0].numpy(), 0.0, atol=1e-8)
    step, base = 1e-4, torch.eye(2).double()
    for i in range(5):
        near = [torch.zeros_like(z).index_put((torch.tensor(i),), s * step * b) for b in base for s in (1, -1)]
        slopes = []
        for shift in near:
            moved = (z + shift).requires_grad_()
            slopes.append(torch.autograd.grad(log_density(moved), moved)[0][i])
        bend = -torch.stack([(slopes[0] - slopes[1]), (slopes[2] - slopes[3])]) / (2 * step)
        np.testing.assert_allclose(bend.numpy(), torch.linalg.inv(scale[i] @ scale[i].mT).numpy(), rtol=1e-4)


def test_finds_factors_of_counts_and_their_number() -> None:
    given = {"rows": 500, "features": 24, "latents": 3, "median": 8.0, "least": 0.5, "dispersion": 20.0, "batches": 2}
    data = draw("sparse_counts", seed=100, **given)
    fit = pyrocrl.fit(pyrocrl.build("spike_slab_fa", data, latents=5), data, chains=2, seed=0, progress=False)
    assert fit.program.config["likelihood"] == "negative_binomial" and fit.program.config["batches"] == 2
    score, nodes = metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    assert score > 0.95
    assert metrics.mask_scores(data.truth["mask"], fit.mask(), permutation=nodes)["f1"] > 0.97
    assert (fit.mask() > 0.5).any(0).sum() == 3
    drawn = fit.posterior(50, data, thin=20)
    loadings = drawn["posterior"]["loadings"].mean(("chain", "draw")).to_numpy()[:, nodes]
    sign = np.sign((fit.latents(data)[:, nodes] * data.truth["z"]).sum(0))
    assert np.abs(loadings * sign - data.truth["loadings"]).mean() < 0.05
    new = drawn["posterior_predictive"]["x"].to_numpy()
    assert (new == np.round(new)).all() and abs(np.log(new.mean() / data.x[::20].mean())) < 0.2
    assert pyrocrl.diagnose(fit)["latents"].verdict in ("identified if", "identified, undecided at this n")


def test_one_latent_too_few_shows_in_what_is_left() -> None:
    given = {"rows": 500, "features": 24, "latents": 3, "median": 8.0, "least": 0.5, "dispersion": 20.0}
    data = draw("sparse_counts", seed=100, correlation=0.0, second=0.0, free=0.0, **given)
    fit = pyrocrl.fit(pyrocrl.build("spike_slab_fa", data, latents=2), data, chains=1, seed=0, progress=False)
    assert [found.fails for found in fit_tests.tests(fit, data)] == [True]


def test_a_turn_finds_the_zeros_that_a_rotation_hides() -> None:
    rng = np.random.default_rng(2)
    true = np.repeat(np.eye(2), 12, axis=0) * rng.uniform(0.5, 1.0, (24, 1))
    z = rng.standard_normal((2, 500))
    x = rng.poisson(8.0 * np.exp(true @ z)).T.astype(float)
    sampler = sampler_of(x, 2, rng)
    turn = np.array([[1.0, 0.6], [-0.2, 0.8]])
    sampler.z, sampler.loadings = np.linalg.solve(turn, z), true @ turn
    sampler.base, sampler.dispersion = np.full((24, 1), math.log(8.0)), np.full(24, 50.0)
    sampler.correlation = np.corrcoef(sampler.z)
    unit = sampler.z.std(1)
    sampler.z, sampler.loadings = sampler.z / unit[:, None], sampler.loadings * unit
    sampler.observe()
    assert sampler.mask.all()
    sampler.turn_scores()
    order = metrics.mcc(true, sampler.loadings, return_assignment=True)[1]
    assert ((sampler.loadings[:, order] != 0) != (true != 0)).sum() <= 4
