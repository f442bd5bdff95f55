"""What rows of counts say of the latents of a linear factor model of their log rates, to second order."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocrl.data import Batch
from pyrocrl.dists import LARGEST

STEPS = 8  # of Newton's method
LENGTH = 3.0  # longest step, in deviations of z


def size_of(batch: Batch, unit: Tensor) -> Tensor:
    """(rows, 1) size factors, over `unit`, their mean in the rows of the fit."""
    return (batch.size_factor / unit)[:, None]


def baselines(base: Tensor, batch: Batch) -> Tensor:
    """(rows, feature) log baselines, of a table (batch, feature), by the rows' technical batch."""
    if len(base) == 1:
        return base
    return (batch.group[:, None] == torch.arange(len(base), device=base.device)).to(base.dtype) @ base


def scores_given_counts(
    x: Tensor, level: Tensor, loadings: Tensor, dispersion: Tensor, tril: Tensor
) -> tuple[Tensor, Tensor]:
    """The mode (rows, latent) of z given x (rows, feature), and the Cholesky factor (rows, latent, latent) of its
    covariance by Laplace's approximation there.

    x ~ NegativeBinomial(exp(level + z loadings^T), dispersion), z ~ N(0, tril tril^T); level (rows, feature): log sizes
    and baselines. The log density is concave: Newton's method, with steps of limited length.
    """
    latents = loadings.shape[1]
    between, whole = torch.cholesky_inverse(tril), x + dispersion
    pairs = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)
    z = torch.zeros_like(level[:, :1]) * loadings[0]  # (rows, latent)

    def second(z: Tensor) -> tuple[Tensor, Tensor]:
        """Slope (rows, latent), and less the matrix of second derivatives."""
        mean = (level + z @ loadings.mT).clamp_max(2 * LARGEST).exp()
        share = mean / (mean + dispersion)
        fitted = whole * share
        bend = (fitted * (1 - share)) @ pairs
        return (x - fitted) @ loadings - z @ between, bend.unflatten(1, (latents, latents)) + between

    for _ in range(STEPS):
        slope, bend = second(z)
        step = torch.linalg.solve(bend, slope[..., None])[..., 0]
        z = z + step * (LENGTH / step.norm(dim=1, keepdim=True).clamp_min(LENGTH))
    covariance = torch.linalg.inv(second(z)[1])
    return z, torch.linalg.cholesky(0.5 * (covariance + covariance.mT))
