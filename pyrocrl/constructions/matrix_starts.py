"""Starts of a matrix factorisation: of sparse loadings, or of sparse scores, whichever priors explain better.

Sparse loadings: a run of the sampler of `exact.spike_slab` over second moments, with normal scores; it also says how
many factors there are (by BIC, of a few runs the best). Sparse scores: as many factors of maximum likelihood, turned
until scores are most spread in size (varimax). Values that were not measured are drawn first, from factors that
expectation-maximisation finds in what was (Rubin & Thayer 1982).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrocrl.exact.matrix_factors import ETA, RATE, SLAB
from pyrocrl.exact.rotations import likely_factors, varimax
from pyrocrl.exact.score_mixtures import sparser
from pyrocrl.exact.spike_slab import EFFORT, Sampler

Floats = NDArray[np.float64]
Known = NDArray[np.bool_]
EFFORT_HERE = EFFORT._replace(heating=100, settling=40, frozen=20, sweeps=10, draws=1)
TRIES = 3  # runs, of which the best by BIC counts
ROWS = 1_500  # that expectation-maximisation and the comparison of starts look at
STEPS = 30
LEAST_NOISE = 1e-3


class Start(NamedTuple):
    """loadings (feature, latent) of the latents in use, noise variances (feature,), correlations of scores."""

    loadings: Floats
    variance: Floats
    correlation: Floats


def start(x: Floats, latents: int, rng: np.random.Generator) -> Start:
    """The better of two starts, for rows without gaps; `latents` are offered."""
    rows, features = x.shape
    second, found = x.T @ x / rows, []
    few = x[rng.permutation(rows)[:ROWS]]
    for own in rng.spawn(TRIES):  # what a run that is left out draws is of no account
        again = x[own.integers(0, rows, rows)]
        sampler = Sampler(second, rows, latents, SLAB, RATE, ETA, own)
        drawn = sampler.run(np.cov(again.T), EFFORT_HERE)
        found.append((sampler.score(EFFORT_HERE), drawn))
    drawn = max(found, key=lambda one: one[0])[1]
    used = np.flatnonzero((drawn.loadings[-1] != 0).any(0))
    if not len(used):
        return Start(np.zeros((features, 0)), drawn.variance[-1], np.eye(0))
    tril = drawn.correlation_tril[-1]
    sparse = Start(drawn.loadings[-1][:, used], drawn.variance[-1], (tril @ tril.T)[np.ix_(used, used)])
    turned = of_scores(x, x[rng.integers(0, rows, rows)], len(used))
    return max((sparse, turned), key=lambda one: sparser(few, one.loadings, one.variance))


def of_scores(x: Floats, again: Floats, latents: int) -> Start:
    """Factors of the rows `again`, turned by varimax of their scores."""
    unit = np.maximum(again.std(0), 1e-6)
    second = again.T @ again / len(again) / unit / unit[:, None]
    np.fill_diagonal(second, 1.0)
    loadings, noise = likely_factors(second, latents)
    scaled = loadings / noise[:, None]
    scores = again / unit @ scaled @ np.linalg.pinv(loadings.T @ scaled)
    left, _, right = np.linalg.svd(scores, full_matrices=False)
    turn = varimax(math.sqrt(len(again)) * left @ right, normalise=False)
    return Start(loadings @ turn * unit[:, None], noise * unit**2, np.eye(latents))


def filled(x: Floats, known: Known, factors: int, rng: np.random.Generator) -> Floats:
    """x (rows, feature), about 0, with a draw for what is not `known`, given the rest and as many normal factors."""
    some = rng.permutation(len(x))[:ROWS]
    there, seen = known[some].astype(float), np.where(known[some], x[some], 0.0)
    count = np.maximum(there.sum(0), 1.0)
    _, size, right = np.linalg.svd(seen, full_matrices=False)
    loadings = right[:factors].T * size[:factors] / math.sqrt(len(seen))
    loadings += 0.05 * rng.standard_normal(loadings.shape)
    variance = np.full(x.shape[1], 0.5)
    eye = np.eye(factors)
    for _ in range(STEPS):
        mean, spread = _scores(seen, there, loadings, variance)
        second = (mean[:, :, None] * mean[:, None] + spread).reshape(len(seen), -1)
        inner = (there.T @ second).reshape(-1, factors, factors) + 1e-3 * eye
        cross = seen.T @ mean  # (feature, factor)
        loadings = np.linalg.solve(inner, cross[:, :, None])[:, :, 0]
        variance = ((seen**2).sum(0) - (loadings * cross).sum(1)) / count
        variance = np.maximum(variance, LEAST_NOISE)
    mean, spread = _scores(np.where(known, x, 0.0), known.astype(float), loadings, variance)
    white = rng.standard_normal(mean.shape)[:, :, None]
    z = mean + (np.linalg.cholesky(spread) @ white)[:, :, 0]
    drawn = z @ loadings.T + np.sqrt(variance) * rng.standard_normal(x.shape)
    return np.where(known, x, drawn)


def _scores(seen: Floats, there: Floats, loadings: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Means (rows, factor) and covariances (rows, factor, factor) of scores given what is there."""
    scaled, factors = loadings / variance[:, None], loadings.shape[1]
    pairs = (loadings[:, :, None] * scaled[:, None]).reshape(len(loadings), -1)
    spread = np.linalg.inv((there @ pairs).reshape(-1, factors, factors) + np.eye(factors))
    mean: Floats = np.einsum("ikl,il->ik", spread, seen @ scaled)
    return mean, spread.astype(np.float64)
