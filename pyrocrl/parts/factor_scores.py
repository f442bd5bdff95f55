"""What rows say of the latents of a linear factor model, z ~ N(0, R) and x ~ N(loadings z, diag(variance))."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


def factors_given(loadings: Tensor, variance: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """Of z given x: the map of its mean (latent, feature), and its covariance (latent, latent).

    loadings: (feature, latent); variance: (feature,), of noise; tril: (latent, latent), the Cholesky factor of R.
    """
    scaled = loadings / variance[:, None]
    precision = loadings.mT @ scaled + torch.cholesky_inverse(tril)
    covariance = torch.linalg.inv(precision)
    return covariance @ scaled.mT, covariance


def factors_log_prob(x: Tensor, loadings: Tensor, variance: Tensor, tril: Tensor) -> Tensor:
    """(rows,) log N(x_i; 0, loadings R loadings^T + diag(variance)), see `factors_given`."""
    law = dist.LowRankMultivariateNormal(0 * variance, loadings @ tril, variance, validate_args=False)
    return law.log_prob(x)
