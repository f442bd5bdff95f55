"""Least squares; conjugate Bayesian regression from sums of products (evidence, draws of weights and noise); a basis.

    y = w' phi + s eps,   w ~ N(0, ratio s^2),   1 / s^2 ~ Gamma(SHAPE, RATE)

`moments` (..., basis + node, basis + node) are sums of products of (phi, y_1, ..., y_nodes) over the rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPE, RATE = 1.0, 0.1
JITTER = 1e-6  # of the kernel between inducing points, whose variance is 1


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


def draw(moments: Tensor, count: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior draws of weights (node, group, basis) and noise s (node, group), of each node on its own phi.

    moments: (node, group, ...); count: (node, group); ratio: (node,).
    """
    nodes = len(moments)
    size = moments.shape[-1] - nodes
    at = torch.arange(size, size + nodes, device=moments.device)[:, None, None, None]
    cross = moments.gather(-1, at.expand(*moments.shape[:3], 1))  # (node, group, basis + node, 1)
    square = cross.gather(-2, at.expand(*cross.shape[:2], 1, 1))[..., 0]
    root, mean, left = regress(moments[..., :size, :size], cross[..., :size, :], square, ratio[:, None])
    noise = ((RATE + 0.5 * left[..., 0]) / torch._standard_gamma(SHAPE + 0.5 * count)).sqrt()
    apart = torch.linalg.solve_triangular(root.mT, torch.randn_like(mean), upper=True)
    return (mean + noise[..., None, None] * apart)[..., 0], noise


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
