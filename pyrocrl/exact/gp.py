"""Gaussian processes over a grid of pairs that all features share, with each feature's own scale integrated out.

    variance_j ~ InverseGamma(SHAPE, rate_j)                                     (feature,)
    f_j ~ N(0, variance_j K) over the grid                                       (feature, pair)
    x_ij ~ N(f_j at the pair of row i, noise variance_j)                         (row, feature)

Rows enter by the mean of each pair and the spread about it; K is the only matrix to factor, once for all features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import InverseGamma

SHAPE = 2.0  # of the prior of each feature's variance
EDGE = 1e-9  # from 1: there the arc cosine has no slope


def ntk(t: Tensor, depth: int) -> Tensor:
    """The neural tangent kernel of a network of `depth` hidden ReLU layers between unit rows of inner products t, over
    its value at t = 1 (Jacot, Gabriel & Hongler 2018, with the arc-cosine kernels of Cho & Saul 2009):

        S_0 = T_0 = t,  S_l = k1(S_l-1),  T_l = S_l + T_l-1 k0(S_l-1)
        k0(t) = (pi - arccos t) / pi,  k1(t) = (t (pi - arccos t) + sqrt(1 - t^2)) / pi
    """
    s = total = t
    for _ in range(depth):
        s = s.clamp(EDGE - 1.0, 1.0 - EDGE)
        angle = math.pi - s.arccos()
        total = total * angle / math.pi
        s = (s * angle + (1.0 - s.square()).sqrt()) / math.pi
        total = total + s
    return total / (depth + 1)


class Field(TorchDistribution):
    """(feature,) independent N(mean_j, variance_j root root') over pairs: mean (feature, pair), variance (feature,),
    root (pair, pair) lower triangular."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, mean: Tensor, variance: Tensor, root: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale, self.root = mean, variance.sqrt()[..., None], root
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    def expand(self, batch_shape: Any, _instance: Any = None) -> Field:
        loc = self.loc.expand(*batch_shape, self.loc.shape[-1])
        return Field(loc, self.scale[..., 0].square().expand(batch_shape), self.root)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * (noise @ self.root.mT)

    def log_prob(self, value: Tensor) -> Tensor:
        apart = (value - self.loc) / self.scale
        white = torch.linalg.solve_triangular(self.root, apart.mT, upper=False)
        volume = self.root.diagonal().log().sum() + value.shape[-1] * (self.scale[..., 0].log() + LOG_ROOT)
        return -0.5 * white.square().sum(-2) - volume


LOG_ROOT = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Rows:
    """What rows say of the pairs that they are of. at: (pair,) places in the grid; count: (pair,) rows, 0 for a place
    that stands empty; mean: (pair, feature) of these rows; square: (feature,) their squared deviations from it."""

    at: Tensor
    count: Tensor
    mean: Tensor
    square: Tensor


class Known:
    """All that `rows` tell under a covariance (pair, pair) between them, in units of a feature's variance.

    noise: () of a row, in the same units; rate: (feature,) of the prior of variances.
    """

    def __init__(self, covariance: Tensor, noise: Tensor, rows: Rows, rate: Tensor) -> None:
        there = rows.count > 0
        own = torch.where(there, noise / rows.count.clamp_min(1.0), 1.0)
        both = there[:, None] & there
        self.rows, self.noise, self.prior_rate, self.there = rows, noise, rate, there
        self.root = torch.linalg.cholesky(torch.where(both, covariance, 0.0) + own.diag_embed())
        self.white = torch.linalg.solve_triangular(self.root, rows.mean, upper=False)  # (pair, feature)
        self.shape = SHAPE + rows.count.sum() / 2
        self.rate = rate + self.white.square().sum(0) / 2 + rows.square / (2 * noise)  # (feature,)

    def log_evidence(self) -> Tensor:
        """() log-density of all rows, fields and variances integrated out."""
        rows, features = self.rows, self.rate.shape[0]
        count, pairs = rows.count.sum(), self.there.sum()
        volume = 2 * count * LOG_ROOT + 2 * self.root.diagonal().log().sum()
        volume = volume + rows.count.clamp_min(1.0).log().sum() + (count - pairs) * self.noise.log()
        scale = SHAPE * self.prior_rate.log() - self.shape * self.rate.log()
        return scale.sum() + features * (torch.lgamma(self.shape) - math.lgamma(SHAPE) - volume / 2)

    def variance(self) -> InverseGamma:
        """(feature,) each feature's variance."""
        return InverseGamma(self.shape.expand(self.rate.shape), self.rate)

    def field(self, prior: Tensor, cross: Tensor, variance: Tensor, base: Tensor) -> Field:
        """The field at places of covariance `prior` (place, place), and `cross` (place, pair) with the rows' pairs,
        given variances (feature,); base: (feature,) added to its mean."""
        white = self._white(cross)
        return Field(base[:, None] + self.white.mT @ white, variance, torch.linalg.cholesky(prior - white.mT @ white))

    def row(self, prior: Tensor, cross: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The law of a new row at each of some places, of prior variance `prior` (place,) and `cross` (place, pair):
        Student's with its mean and scale (place, feature) and degrees of freedom (), variances integrated out."""
        white = self._white(cross)
        left = prior - white.square().sum(0) + self.noise
        return white.mT @ self.white, (left[:, None] * self.rate / self.shape).sqrt(), 2 * self.shape

    def _white(self, cross: Tensor) -> Tensor:
        """(pair, place) covariances with the rows' pairs, whitened."""
        return torch.linalg.solve_triangular(self.root, (cross * self.there).mT, upper=False)
