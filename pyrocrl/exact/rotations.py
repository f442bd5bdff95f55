"""Loadings of factor models from second moments: of maximum likelihood, then rotated until most of them are near 0.

Kaiser's varimax (1958) and Hendrickson & White's promax (1964), of loadings at unit length (Kaiser's
normalisation); then `sheared`, for what these leave: one latent's column with a multiple of another's in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_NOISE = 5e-3  # of a standardised feature
POWER = 4  # of promax's target
FURTHEST = 3.0  # multiple of another column


def likely_factors(second: Floats, factors: int, steps: int = 300) -> tuple[Floats, Floats]:
    """Loadings (feature, factor) of maximum likelihood, up to rotation, and noise variances (feature,).

    second: (feature, feature) correlations. Each step has the loadings that are best given the noise (Lawley 1940).
    """
    noise = np.clip(1.0 / np.diag(np.linalg.inv(second + 1e-6 * np.eye(len(second)))), 0.05, 1.0)
    for _ in range(steps):
        root = np.sqrt(noise)
        value, vector = np.linalg.eigh(second / root[:, None] / root)
        loadings = root[:, None] * vector[:, -factors:] * np.sqrt(np.maximum(value[-factors:] - 1.0, 1e-6))
        new = np.clip(np.diag(second) - (loadings**2).sum(1), LEAST_NOISE, 1.0)
        moved, noise = np.abs(new - noise).max(), new
        if moved < 1e-5:
            break
    return loadings, noise


def varimax(loadings: Floats, steps: int = 500) -> Floats:
    """(factor, factor) rotation by which these loadings (feature, factor) are multiplied."""
    unit = loadings / np.maximum(np.linalg.norm(loadings, axis=1, keepdims=True), 1e-9)
    turn, last = np.eye(loadings.shape[1]), 0.0
    for _ in range(steps):
        turned = unit @ turn
        left, size, right = np.linalg.svd(unit.T @ (turned**3 - turned * (turned**2).mean(0)))
        turn, total = left @ right, float(size.sum())
        if total < last * (1 + 1e-7):
            break
        last = total
    return turn


def promax(loadings: Floats) -> tuple[Floats, Floats]:
    """Varimax, then promax: loadings (feature, factor) and the correlations (factor, factor) of the factors."""
    turned = loadings @ varimax(loadings)
    target = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9)
    to = np.linalg.lstsq(target, target * np.abs(target) ** (POWER - 1), rcond=None)[0]
    to = to * np.sqrt(np.diag(np.linalg.inv(to.T @ to)))
    back = np.linalg.inv(to)
    return turned @ to, back @ back.T


def sheared(loadings: Floats, correlation: Floats, small: Floats) -> tuple[Floats, Floats]:
    """Loadings and correlations of the same covariance with fewer loadings that are not 0.

    A multiple t of column b joins column a while at least two more loadings vanish than come: then z_b loses t z_a, and
    both have unit variance again. small: (feature,) below which, times 1 + |t|, a loading counts as 0, and is set to 0.
    """
    loadings, correlation = loadings.copy(), correlation.copy()
    while (best := _best_shear(loadings, small)) is not None:
        a, b, t = best
        column = loadings[:, a] + t * loadings[:, b]
        column[np.abs(column) < small * (1 + abs(t))] = 0.0
        loadings[:, a] = column
        shear = np.eye(len(correlation))
        shear[b, a] = -t
        correlation = shear @ correlation @ shear.T
        unit = np.sqrt(correlation[b, b])
        loadings[:, b] *= unit
        correlation[b] /= unit
        correlation[:, b] /= unit
    return loadings, correlation


def _best_shear(loadings: Floats, small: Floats) -> tuple[int, int, float] | None:
    """(a, b, t) that leaves the fewest loadings, or None where none leaves two fewer."""
    there = loadings != 0
    used, most, best = np.flatnonzero(there.any(0)), 1, None
    for a in used:
        for b in used[used != a]:
            rows = np.flatnonzero(there[:, a] | there[:, b])
            both = rows[there[rows, a] & there[rows, b]]
            t = -loadings[both, a] / loadings[both, b]
            t = t[np.abs(t) < FURTHEST]
            if len(t) < 2:
                continue
            after = np.abs(loadings[rows, a] + t[:, None] * loadings[rows, b])
            gain = there[:, a].sum() - (after >= small[rows] * (1 + np.abs(t[:, None]))).sum(1)
            i = int(gain.argmax())
            if gain[i] > most:
                most, best = int(gain[i]), (int(a), int(b), float(t[i]))
    return best
