"""Baselines of missing values: means of columns, a truncated SVD, softImpute (Mazumder, Hastie & Tibshirani 2010)."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
SHARES = np.geomspace(1.0, 0.01, 12)  # of the largest singular value, by which others are lowered
TRIED_OUT = 0.1  # share of the values that lambda is chosen by


def column_means(x: Array) -> Array:
    """x (data, feature) with the mean of its column in place of each NaN."""
    return np.where(np.isnan(x), np.nanmean(x, 0), x)


def truncated_svd(x: Array, rank: int) -> Array:
    """(data, feature) the best fit of this rank to x about its columns' means, where NaN stands for these."""
    whole = column_means(x)
    centre = np.nanmean(x, 0)
    left, size, right = np.linalg.svd(whole - centre, full_matrices=False)
    return (left[:, :rank] * size[:rank]) @ right[:rank] + centre


def soft_impute(x: Array, seed: int = 0) -> Array:
    """(data, feature) softImpute's fit to x, NaN where a value is missing: lambda by values put aside, the same for
    all singular values, each fit from that of the next larger lambda. Columns are put about their means first."""
    rng = np.random.default_rng([6, seed])
    known = ~np.isnan(x)
    centre = np.nanmean(x, 0)
    y = np.where(known, x - centre, 0.0)
    aside = known & (rng.random(x.shape) < TRIED_OUT)
    path = _path(y, known & ~aside)
    errors = [np.square(fit - y)[aside].mean() for fit in path]
    return _path(y, known, int(np.argmin(errors)) + 1)[-1] + centre


def _path(y: Array, known: Array, most: int = len(SHARES), steps: int = 100) -> list[Array]:
    """Fits (data, feature) at the first `most` of `SHARES`: missing values are filled with the fit, then singular
    values of the whole are lowered by lambda, until nothing moves."""
    fit, out = np.zeros_like(y), []
    largest = np.linalg.norm(np.where(known, y, 0.0), 2)
    for share in SHARES[:most]:
        for _ in range(steps):
            whole = np.where(known, y, fit)
            square, right = np.linalg.eigh(whole.T @ whole)  # cheaper than an SVD, of few columns
            size = np.sqrt(np.maximum(square, 1e-12 * square[-1]))
            new = whole @ (right * np.maximum(1 - share * largest / size, 0.0)) @ right.T
            moved, fit = float(np.square(new - fit).sum()), new
            if moved <= 1e-6 * max(float(np.square(fit).sum()), 1e-12):
                break
        out.append(fit)
    return out


def relative_error(found: Array, true: Array, where: Array) -> float:
    """Root of the squared error over the squares of the truth, on these entries; its columns about their means."""
    centre = true.mean(0)
    return float(np.sqrt(np.square(found - true)[where].sum() / np.square(true - centre)[where].sum()))
