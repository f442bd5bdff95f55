"""`ebmf` of counts: its sampler, what it settles at the start, what it finds and how probable it says rows are."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from pyrocrl.exact.count_factors import BASE, DISPERSION
from pyrocrl.exact.matrix_counts import MatrixCountSampler, MatrixCountStart
from pyrocrl.exact.matrix_factors import ALPHA, ETA, SLAB
from pyrocrl.exact.score_mixtures import GRID


def sampler_of(x: np.ndarray, z: np.ndarray, rng: np.random.Generator, batches: int = 1) -> MatrixCountSampler:
    """A chain over x (rows, feature) at scores z (rows, latent)."""
    rows, features = x.shape
    latents = z.shape[1]
    start = MatrixCountStart(z, np.full((latents, 5), 0.2), np.eye(latents), np.ones((features, latents), dtype=bool))
    centre, group = np.zeros(features), np.arange(rows) % batches
    return MatrixCountSampler(x, np.ones(rows), group, batches, centre, start, latents, rng)


def at_prior(rng: np.random.Generator, rows: int = 12, features: int = 4, batches: int = 2) -> MatrixCountSampler:
    """A chain that stands at a draw of the prior, of two latents, with counts drawn from it."""
    state = sampler_of(np.ones((rows, features)), rng.standard_normal((rows, 2)), rng, batches)
    own = state.priors
    own.share = rng.beta(1 / 2, 1, 2)
    own.weights = rng.dirichlet(np.full(len(GRID), ALPHA), 2)
    own.slab = SLAB * np.exp(rng.standard_normal(2)) / own.size
    r = 2 * rng.beta(ETA, ETA) - 1
    own.correlation = np.array([[1.0, r], [r, 1.0]])
    own.scale = GRID[np.array([rng.choice(len(GRID), rows, p=w) for w in own.weights]).T]
    own.counts = np.array([(own.scale == g).sum(0) for g in GRID]).T
    state.z = (rng.multivariate_normal(np.zeros(2), own.correlation, rows) * own.scale).T.copy()
    there = rng.random((features, 2)) < own.share
    state.loadings = there * own.slab * rng.standard_normal((features, 2))
    state.base = BASE * rng.standard_normal((features, batches))
    state.usual = math.log(DISPERSION) + rng.standard_normal()
    state.dispersion = np.exp(state.usual + rng.standard_normal(features))
    state.walk[:] = 1.0
    mean, r = np.exp(state._level(state.loadings, state.z, state.base)), state.dispersion[:, None]
    state.x = rng.poisson(np.minimum(rng.gamma(r, mean / r, mean.shape), 1e6)).astype(float)
    state.observe()
    return state


def summary(state: MatrixCountSampler) -> list[float]:
    size = state.priors.size
    z = state.z / size[:, None]
    return [
        float(np.log(state.priors.slab * size).sum()),
        float(state.priors.weights[:, 0].sum()),
        float((state.loadings != 0).sum()) + 1e-3 * float(state.priors.share.sum()),
        float(np.square(state.loadings * size).sum()),
        float(state.priors.correlation[0, 1]),
        float(np.square(z).mean()),
        float(np.abs(z[0] * z[1]).mean()),
        float((state.priors.scale == GRID[0]).mean()) + 1e-3 * float(z.sum()),
        state.usual,
        float(np.log(state.dispersion).mean()),
        float(state.base.mean()),
        float(np.square(state.base).mean()),
    ]


def test_sweeps_leave_the_posterior_of_counts_as_it_is() -> None:
    """Truths from the prior, counts from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(0)
    before, after = [], []
    with np.errstate(all="ignore"):
        for _ in range(400):
            before.append(summary(at_prior(rng)))
            state = at_prior(rng)
            for _ in range(5):
                state.count_sweep()
            after.append(summary(state))
    p = [stats.ks_2samp(old, new).pvalue for old, new in zip(np.transpose(before), np.transpose(after), strict=True)]
    assert min(p) > 1e-3, p
