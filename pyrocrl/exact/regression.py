"""Least squares; conjugate Bayesian regression from sums of products (evidence, posterior of w and s); a basis.

    y = w' phi + s eps,   w ~ N(0, ratio s^2),   1 / s^2 ~ Gamma(SHAPE, RATE)

`moments` (..., basis + node, basis + node) are sums of products of (phi, y_1, ..., y_nodes) over the rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import Gamma

SHAPE, RATE = 1.0, 0.1
JITTER = 1e-6  # of the kernel between inducing points, whose variance is 1


def quadratic(rows: Tensor, matrix: Tensor) -> Tensor:
    """(...) row @ matrix @ row, of rows (..., d) and matrices (..., d, d).

    Not by `torch.einsum`, which looks for the best order of three operands anew in each call.
    """
    return ((rows[..., None, :] @ matrix)[..., 0, :] * rows).sum(-1)


def least_squares(design: Tensor, value: Tensor) -> Tensor:
    """(basis, target) coefficients of value (rows, target) on design (rows, basis) of full column rank.

    Not by torch's default on CPU, LAPACK's gelsy, whose last bits differ from call to call on the same numbers.
    """
    solution: Tensor = torch.linalg.lstsq(design, value, driver="gels").solution
    return solution


def regress(gram: Tensor, cross: Tensor, square: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Cholesky factor of the posterior precision of w / s, posterior mean of w (..., basis, target), sums of squares
    left (..., target)).

    gram: (..., basis, basis); cross: (..., basis, target); square: (..., target); ratio: broadcasts to (...).
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root = torch.linalg.cholesky_ex(gram + eye / ratio[..., None, None]).L
    mean = torch.cholesky_solve(cross, root)
    return root, mean, (square - (cross * mean).sum(-2)).clamp_min(0.0)


def log_evidence(moments: Tensor, count: Tensor, ratio: float, nodes: int) -> Tensor:
    """(group, node) log p(y_k | phi) of every node; moments: (group, ...) over count (group,) rows."""
    size = moments.shape[-1] - nodes
    square = moments[:, size:, size:].diagonal(dim1=-2, dim2=-1)
    at = torch.full_like(count, ratio)
    root, _, left = regress(moments[:, :size, :size], moments[:, :size, size:], square, at)
    shape = SHAPE + 0.5 * count
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * size * math.log(ratio)
    constant = torch.lgamma(shape) - math.lgamma(SHAPE) + SHAPE * math.log(RATE) - 0.5 * math.log(2 * math.pi) * count
    return (constant - volume)[:, None] - shape[:, None] * (RATE + 0.5 * left).log()


class Weights(TorchDistribution):
    """N(mean, scale^2 (root root')^-1): mean (..., basis), root (..., basis, basis) lower, scale (...)."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, loc: Tensor, root: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.root, self.scale = loc, root, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Weights:
        root, scale = self.root.expand(*batch_shape, *self.root.shape[-2:]), self.scale.expand(batch_shape)
        return Weights(self.loc.expand(*batch_shape, -1), root, scale)

    @property
    def mean(self) -> Tensor:
        return self.loc

    def sample(self, sample_shape: Any = ()) -> Tensor:
        noise = torch.randn((*sample_shape, *self.loc.shape, 1), dtype=self.loc.dtype, device=self.loc.device)
        apart = torch.linalg.solve_triangular(self.root.mT, noise, upper=True)[..., 0]
        return (self.loc + self.scale[..., None] * apart).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        apart = (self.root.mT @ (value - self.loc)[..., None])[..., 0] / self.scale[..., None]
        volume = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - apart.shape[-1] * self.scale.log()
        return volume - 0.5 * apart.square().sum(-1) - 0.5 * apart.shape[-1] * math.log(2 * math.pi)


class Conjugate(NamedTuple):
    """Posterior of a regression: 1 / s^2 ~ Gamma(shape, rate), w ~ N(mean, s^2 (root root')^-1)."""

    shape: Tensor  # (...)
    rate: Tensor  # (...)
    mean: Tensor  # (..., basis)
    root: Tensor  # (..., basis, basis)

    def precision(self) -> Gamma:
        return Gamma(self.shape, self.rate)

    def weights(self, precision: Tensor) -> Weights:
        return Weights(self.mean, self.root, precision.rsqrt())


def conjugate(moments: Tensor, count: Tensor, ratio: Tensor) -> Conjugate:
    """Posterior (group, node) of each node's regression on its own phi; of a group without rows, the prior.

    moments: (group, node, ...); count: (group, node); ratio: (node,).
    """
    nodes = moments.shape[1]
    size = moments.shape[-1] - nodes
    at = torch.arange(size, size + nodes, device=moments.device)[:, None, None]
    cross = moments.gather(-1, at.expand(*moments.shape[:3], 1))  # (group, node, basis + node, 1)
    square = cross.gather(-2, at.expand(*cross.shape[:2], 1, 1))[..., 0]
    root, mean, left = regress(moments[..., :size, :size], cross[..., :size, :], square, ratio)
    return Conjugate(SHAPE + 0.5 * count, RATE + 0.5 * left[..., 0], mean[..., 0], root)


def inducing_basis(z: Tensor, points: Tensor, precision: Tensor) -> Tensor:
    """phi (rows, ..., point) whose weights' prior is a Gaussian process at the inducing points (subset of regressors).

    Its kernel is exp(-|precision (a - b)|^2 / 2). z: (rows, ..., d); points: (point, d); precision: (..., d).
    """
    scale = precision.to(points)[..., None, :]  # (..., 1, d)
    eye = torch.eye(len(points), dtype=points.dtype, device=points.device)
    between = (-0.5 * ((points[:, None] - points) * scale[..., None, :]).square().sum(-1)).exp()  # (..., point, point)
    root = torch.linalg.cholesky_ex(between + JITTER * eye).L
    near = (-0.5 * ((z[..., None, :].to(points) - points) * scale).square().sum(-1)).exp()  # (rows, ..., point)
    whiten = torch.linalg.solve_triangular(root, eye, upper=False)
    return torch.einsum("...qp,r...p->r...q", whiten, near).to(z.dtype)


def spread_out(rows: Tensor, count: int) -> Tensor:
    """(count, d) of the rows (n, d), in random order: the first half as they come, then each the farthest from all
    before, so that the tails that one environment alone reaches have theirs."""
    chosen = list(range(min(count // 2, len(rows))))
    apart = torch.cdist(rows, rows[chosen]).amin(1) if chosen else torch.zeros(len(rows), dtype=rows.dtype)
    while len(chosen) < count:
        chosen.append(int(apart.argmax()))
        apart = torch.minimum(apart, (rows - rows[chosen[-1]]).norm(dim=-1))
    return rows[chosen]
