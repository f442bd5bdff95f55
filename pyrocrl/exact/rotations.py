"""Loadings of factor models from second moments: of maximum likelihood, then rotated until most of them are near 0.

Kaiser's varimax (1958) and Hendrickson & White's promax (1964), of loadings at unit length (Kaiser's
normalisation); then `through_zeros`, by the features that do not load on a latent (Reiersol 1950).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_NOISE = 5e-3  # of a standardised feature
POWER = 4  # of promax's target
PLANES = 4_000  # through random features
INSIDE = 4.0  # deviations
INDEPENDENT = 0.25  # what is left of a direction of unit length, given those before it
LEAST = 1e-4  # singular value of a turn, against its largest


def likely_factors(second: Floats, factors: int, steps: int = 300, least: float = LEAST_NOISE) -> tuple[Floats, Floats]:
    """Loadings (feature, factor) of maximum likelihood, up to rotation, and noise variances (feature,) from `least` on.

    second: (feature, feature) correlations. Each step has the loadings that are best given the noise (Lawley 1940).
    """
    noise = np.clip(1.0 / np.diag(np.linalg.inv(second + 1e-6 * np.eye(len(second)))), 0.05, 1.0)
    for _ in range(steps):
        root = np.sqrt(noise)
        value, vector = np.linalg.eigh(second / root[:, None] / root)
        loadings = root[:, None] * vector[:, -factors:] * np.sqrt(np.maximum(value[-factors:] - 1.0, 1e-6))
        new = np.clip(np.diag(second) - (loadings**2).sum(1), least, 1.0)
        moved, noise = np.abs(new - noise).max(), new
        if moved < 2e-3 * least:
            break
    return loadings, noise


def varimax(loadings: Floats, steps: int = 500, *, normalise: bool = True) -> Floats:
    """(factor, factor) rotation by which these loadings (feature, factor) are multiplied; normalise: as Kaiser does."""
    length = np.linalg.norm(loadings, axis=1, keepdims=True) if normalise else np.ones((1, 1))
    unit = loadings / np.maximum(length, 1e-9)
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


def through_zeros(
    loadings: Floats, correlation: Floats, noise: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Loadings and correlations of the same covariance, a latent being what features without it leave free.

    Where a latent is not loaded on by features that fix all others, these lie in a hyperplane (Reiersol 1950): of
    `PLANES` hyperplanes, each through as many features at random as fix one, those with the most features in them are
    taken that are independent, while they leave fewer loadings than there are; else nothing changes. noise: (feature,)
    deviations of a loading on a latent of unit variance, given the others; below `INSIDE` of them it is set to 0.
    """
    latents = loadings.shape[1]
    inverse = np.linalg.inv(correlation)
    norm = np.linalg.norm(loadings, axis=1)
    able = np.flatnonzero(norm > INSIDE * noise)
    if latents < 2 or len(able) < latents:
        return loadings, correlation
    picks = able[np.argsort(rng.random((PLANES, len(able))), axis=1)[:, : latents - 1]]
    normals = np.concatenate([np.linalg.svd(loadings[picks])[2][:, -1], np.eye(latents)])  # (plane, latent)
    tril = np.linalg.cholesky(inverse)  # of a loading's variance, by latents
    white = normals @ tril
    length = np.linalg.norm(white, axis=1, keepdims=True)
    inside = np.abs(normals @ loadings.T) < INSIDE * length * noise
    inside[PLANES:] = loadings.T == 0
    rest, chosen, zeros = white / length, [], []
    for _ in range(latents):
        count = np.where(np.linalg.norm(rest, axis=1) > INDEPENDENT, inside.sum(1), -1)
        best = int(count.argmax())
        normal, own = normals[best], inside[best]
        if count[best] < latents - 1:
            return loadings, correlation
        for _ in range(2 if best < PLANES else 0):  # through all features in it
            normal = np.linalg.eigh((loadings[own] / noise[own, None] ** 2).T @ loadings[own])[1][:, 0]
            own = np.abs(loadings @ normal) < INSIDE * np.linalg.norm(normal @ tril) * noise
        chosen.append(normal)
        zeros.append(own)
        along = np.linalg.qr((np.array(chosen) @ tril).T)[0][:, -1]
        rest = rest - np.outer(rest @ along, along)
    turn, shut = np.array(chosen).T, np.array(zeros).T  # (old latent, new latent), (feature, new latent)
    if shut.sum() < (loadings == 0).sum() + 2 or np.linalg.cond(turn) > 1 / LEAST:
        return loadings, correlation
    back = np.linalg.inv(turn)
    after = back @ correlation @ back.T
    unit = np.sqrt(np.diag(after))
    turned = loadings @ turn
    turned[shut] = 0.0
    return turned * unit, after / unit / unit[:, None]
