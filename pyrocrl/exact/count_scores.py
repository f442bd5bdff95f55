"""What rows of counts say of the latents of a linear factor model of their log rates, to second order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.dists import LARGEST
from pyrocrl.exact.score_mixtures import components_given, deviations

STEPS = 8  # of Newton's method
LENGTH = 3.0  # longest step, in deviations of z


class RowsOfCounts(NamedTuple):
    """Counts x (rows, feature), level (rows, feature): log sizes and baselines, and what there is of features and
    latents: x ~ NegativeBinomial(exp(level + z loadings^T), dispersion), z ~ N(0, R) with R's Cholesky factor."""

    x: Tensor
    level: Tensor
    loadings: Tensor
    dispersion: Tensor
    tril: Tensor


def scores_given_counts(
    x: Tensor, level: Tensor, loadings: Tensor, dispersion: Tensor, tril: Tensor, sd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mode (rows, latent) of z given x (rows, feature), and the Cholesky factor (rows, latent, latent) of its
    covariance by Laplace's approximation there.

    x ~ NegativeBinomial(exp(level + z loadings^T), dispersion), z ~ N(0, D tril tril^T D), D of sd (rows, latent), or
    of ones; level (rows, feature): log sizes and baselines. The log density is concave: Newton's method, with steps of
    limited length.
    """
    z, bend, between = _mode(x, level, loadings, dispersion, tril, sd)[:3]
    covariance = torch.linalg.inv(bend + between)
    return z, torch.linalg.cholesky(0.5 * (covariance + covariance.mT))


def told_by_counts(
    x: Tensor, level: Tensor, loadings: Tensor, dispersion: Tensor, tril: Tensor, sd: Tensor
) -> tuple[Tensor, Tensor]:
    """What counts tell of z, to second order about its mode, `scores_given_counts`, as `score_mixtures.told` has
    it: a precision (rows, latent, latent), and this times the mean (rows, latent)."""
    z, bend, _, slope = _mode(x, level, loadings, dispersion, tril, sd)
    return bend, slope + (bend @ z[..., None])[..., 0]


def components_given_counts(rows: RowsOfCounts, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`score_mixtures.components_given`, and what counts tell of z: about its mode where scores are normal, and again
    with the variances to which that leads."""
    inner, seen = told_by_counts(*rows, torch.ones_like(rows.x[:, :1]).expand(-1, len(rows.tril)))
    log_p, _ = components_given(inner, seen, rows.tril, weights)
    spread = (log_p.exp() * deviations(weights).square()).sum(-1).sqrt()
    inner, seen = told_by_counts(*rows, spread)
    return *components_given(inner, seen, rows.tril, weights), inner, seen


def _mode(
    x: Tensor, level: Tensor, loadings: Tensor, dispersion: Tensor, tril: Tensor, sd: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mode z (rows, latent); less the second derivatives there of the log-likelihood (rows, latent, latent), and of
    the log prior (latent, latent) or (rows, latent, latent); the log-likelihood's slope there (rows, latent)."""
    latents = loadings.shape[1]
    between, whole = torch.cholesky_inverse(tril), x + dispersion
    if sd is not None:
        between = between / (sd[:, :, None] * sd[:, None, :])
    pairs = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)
    z = torch.zeros_like(level[:, :1]) * loadings[0]  # (rows, latent)

    def second(z: Tensor) -> tuple[Tensor, Tensor]:
        """The log-likelihood's slope, and less the matrix of its second derivatives."""
        mean = (level + z @ loadings.mT).clamp_max(2 * LARGEST).exp()
        share = mean / (mean + dispersion)
        fitted = whole * share
        bend = (fitted * (1 - share)) @ pairs
        return (x - fitted) @ loadings, bend.unflatten(1, (latents, latents))

    for _ in range(STEPS):
        slope, bend = second(z)
        pull = z @ between if sd is None else (between @ z[..., None])[..., 0]
        step = torch.linalg.solve(bend + between, (slope - pull)[..., None])[..., 0]
        z = z + step * (LENGTH / step.norm(dim=1, keepdim=True).clamp_min(LENGTH))
    slope, bend = second(z)
    return z, bend, between, slope
