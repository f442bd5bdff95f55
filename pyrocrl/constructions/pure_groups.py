"""Where chains of linear models with pure features may start: groups of features whose loadings are proportional.

Bing, Bunea, Ning & Wegkamp (2020), Adaptive estimation in structured factor models with applications to overlapping
clustering, as an estimator from moments: two features that load on one latent alone have proportional rows of loadings,
whatever the rotation and however latents correlate. Rows are compared after the noise is taken out of the correlations
by factor analysis. Of the groups of proportional rows near varimax axes those are taken as pure that leave all features
the smallest loadings (their sum of absolute values), and the latents are put there. Nothing here fits a model; it only
says where chains may start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrocrl.exact.rotations import varimax

Floats = NDArray[np.float64]
LEAST = 0.05  # variance of a feature's own, of 1
NEAR, SHOWN = 6, 0.25  # features nearest to an axis; loadings that count, of the largest of their column
STEEP = 20.0  # condition number beyond which pure groups say nothing of the latents
ROUNDS, PASSES = 30, 2


class Start(NamedTuple):
    """loadings (feature, latent), 0 where shut; variance (feature,); correlation (latent, latent)."""

    loadings: Floats
    variance: Floats
    correlation: Floats


def factors_shown(correlation: Floats, rows: int) -> int:
    """How many eigenvalues of a correlation matrix are beyond those of noise (Marchenko & Pastur 1967)."""
    edge = (1 + np.sqrt(len(correlation) / rows)) ** 2
    return max(1, int((np.linalg.eigvalsh(correlation) > edge).sum()))


def pure_groups(correlation: Floats, latents: int) -> Start:
    """Latents at groups of features with proportional loadings, from a correlation matrix (feature, feature)."""
    loadings, variance = principal_factors(correlation, latents)
    loadings = loadings @ varimax(loadings, normalise=False)
    direction = loadings / np.maximum(np.linalg.norm(loadings, axis=1, keepdims=True), 1e-9)
    axes = np.eye(latents)
    for k in [*range(latents)] * PASSES:
        near = np.argsort(-np.abs(loadings[:, k] * direction[:, k]))[:NEAR]
        alike = np.triu(np.abs(direction[near] @ direction[near].T), 1)
        pairs = near[np.stack(np.unravel_index(np.argsort(-alike, axis=None)[:NEAR], alike.shape), 1)]
        tried = [axes]
        for pair in direction[pairs]:  # (2, latent)
            axis = (pair * np.sign(pair[:, [k]])).sum(0)
            tried.append(np.vstack([axes[:k], axis / max(np.linalg.norm(axis), 1e-9), axes[k + 1 :]]))
        axes = min(tried, key=lambda rows: _length(loadings, rows))
    loadings = loadings @ np.linalg.inv(axes)
    shown = np.abs(loadings) > SHOWN * np.abs(loadings).max(0)
    return Start(loadings * shown, variance, axes @ axes.T)


def _length(loadings: Floats, axes: Floats) -> float:
    """Sum of absolute loadings of the latents at these axes: small where many are 0; infinite for axes too alike."""
    return float(np.abs(loadings @ np.linalg.inv(axes)).sum()) if np.linalg.cond(axes) < STEEP else np.inf


def principal_factors(correlation: Floats, latents: int) -> tuple[Floats, Floats]:
    """Loadings and variances of features' own, by principal factors of the weighted correlations, iterated."""
    variance = 0.5 * np.ones(len(correlation))
    for _ in range(ROUNDS):
        root = np.sqrt(variance)
        values, vectors = np.linalg.eigh(correlation / root[:, None] / root)
        loadings = root[:, None] * vectors[:, -latents:] * np.sqrt(np.maximum(values[-latents:] - 1, 1e-6))
        new = np.clip(1 - (loadings**2).sum(1), LEAST, 1.0)
        done, variance = np.abs(new - variance).max() < 1e-3, new
        if done:
            break
    return loadings, variance
