"""Where factor models of counts start: the same models of their log-normalised values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrocrl.constructions import matrix_starts
from pyrocrl.exact.count_factors import CountStart
from pyrocrl.exact.matrix_counts import MatrixCountStart
from pyrocrl.exact.matrix_factors import weights_of
from pyrocrl.exact.spike_slab import Sampler

Floats = NDArray[np.float64]
MOST = 200  # features that the start looks at: those that vary most beyond Poisson's law
SLAB, RATE = 0.7, 0.1  # of standardised features


def start(x: Floats, size: Floats, latents: int, eta: float, rng: np.random.Generator) -> CountStart:
    """A run of the sampler of floats over log(1 + x / size) of x (row, feature), standardised, from resampled rows: it
    settles how many of the `latents` are in use. size (row,): of rows, 1 on average."""
    rows, y = len(x), logged(x, size)[0]
    again = y[rng.integers(0, rows, rows)]
    found = Sampler(y.T @ y / rows, rows, latents, SLAB, RATE, eta, rng).run(np.cov(again.T))
    loadings, variance, tril = found.loadings[-1], found.variance[-1], found.correlation_tril[-1]
    used, correlation, scores = (loadings != 0).any(0), tril @ tril.T, np.zeros((rows, latents))
    if used.any():
        scaled = loadings[:, used] / variance[:, None]
        precision = np.linalg.inv(correlation[np.ix_(used, used)]) + loadings[:, used].T @ scaled
        own = y @ np.linalg.solve(precision, scaled.T).T
        scores[:, used] = (own - own.mean(0)) / np.maximum(own.std(0), 1e-8)
    return CountStart(scores, correlation, used)


def matrix_start(x: Floats, size: Floats, latents: int, rng: np.random.Generator) -> MatrixCountStart:
    """The better of two starts (`matrix_starts`) for log(1 + x / size), and the weights of its scores."""
    y, looked = logged(x, size)
    found = matrix_starts.start(y, latents, rng)
    scaled = found.loadings / found.variance[:, None]
    spread = np.linalg.inv(found.loadings.T @ scaled + np.linalg.inv(found.correlation))
    scores = y @ scaled @ spread
    weights, unit = weights_of(scores, np.diag(spread))
    there = np.zeros((x.shape[1], len(unit)), dtype=bool)
    there[looked] = found.loadings != 0
    return MatrixCountStart(scores / unit, weights, found.correlation, there)


def logged(x: Floats, size: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(row, feature) standardised log(1 + x / size) of the features that vary most, and which they are."""
    rows, features = x.shape
    looked = np.arange(features)
    if features > MOST:
        mean = size[:, None] * (x.sum(0) / size.sum())
        beyond = ((x - mean) ** 2 - x).mean(0) / np.maximum((mean**2).mean(0), 1e-12)
        error = np.sqrt(((x - mean) ** 2).mean(0) / rows) + 1e-12  # rare features vary by chance
        beyond = beyond * np.minimum(1.0, x.mean(0) / (10.0 * error))
        looked = np.sort(np.argsort(-beyond)[:MOST])
    y = np.log1p(x[:, looked] / size[:, None])
    spread = y.std(0)
    return (y - y.mean(0)) / np.where(spread > 1e-8, spread, 1.0), looked
