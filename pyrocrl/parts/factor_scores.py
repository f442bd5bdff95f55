"""What rows say of the latents of a linear factor model, z ~ N(0, R) and x ~ N(loadings z, diag(variance))."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.parts.guides import DrawnBlock


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


class FactorReadouts:
    """Read-outs that factor models with drawn masks and correlated latents share.

    The program has `drawn`, with mask, loadings, variance and correlation_tril, and `scores` (latent, feature), the map
    of latents' posterior means, averaged over draws.
    """

    drawn: DrawnBlock
    scores: Tensor

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log N(x_i; 0, loadings R loadings^T + diag(variance))."""
        return factors_log_prob(batch.x, *(sites[name] for name in ("loadings", "variance", "correlation_tril")))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x @ self.scores.mT

    def mask(self) -> Tensor:
        return self.drawn.mask.mean(0)

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent) over the draws."""
        return self.drawn.loadings.mean(0), self.drawn.loadings.std(0)
