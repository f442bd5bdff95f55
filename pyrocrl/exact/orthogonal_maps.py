"""Smooth maps of features to as many latents whose inverses are to have orthogonal columns of slopes.

    u = (x/units - pole |x/units|^2) / (1 - 2 pole.(x/units) + |pole|^2 |x/units|^2)      special conformal
    z = coefficients kappa(u),  kappa all monomials up to a degree                         (latent,)

Conformal maps turn and stretch, alike in all directions: so those of the features, in their units, keep orthogonal what
is orthogonal, and the angles of the columns of dx/dz are those of du/dz = (dz/du)^-1. With similarities, which are
polynomials of degree 1, they are all conformal maps there are of three features and more (Liouville). The local
contrast of independent mechanism analysis (Gresele et al. 2021) of a row is the log of the columns' lengths less that
of the volume, sum_k log |du/dz_k| - log |det du/dz|: no less than 0, and 0 where columns are orthogonal (Hadamard).

A latent's law is a mixture of normal ones on a grid, smooth and of any form between the ends of that.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from pyro import distributions as dist
from torch import Tensor

from pyrocrl.dists import Normal
from pyrocrl.exact.monomials import powers

BUMPS, REACH, OVERLAP = (
    30,
    2.6,
    0.8,
)  # normal laws of a mixture, ends of their centres, deviations in distances of these
LEVEL, BENT = 2.0, 2**-0.5  # deviations a priori of log weights about a normal law's, and of their second differences
NEWTON = 12  # steps towards the u of a z
FURTHEST = 1e-4  # share of rows beyond which scores are not told apart
FLAT = 1e-12  # least |1 - 2 pole.x + ...|, which is 0 at the pole alone


class Unfolded(NamedTuple):
    """z (rows, latent) of rows x, log_volume (rows,) = log |det dz/dx|, forward (rows, latent, feature) = dz/du and its
    inverses, columns (rows, feature, latent) = du/dz."""

    z: Tensor
    log_volume: Tensor
    forward: Tensor
    columns: Tensor


def inverted(x: Tensor, pole: Tensor) -> tuple[Tensor, Tensor]:
    """(u (rows, feature), log |du/dx| (rows,) of a direction) of the special conformal map; its inverse has -pole."""
    size = x.square().sum(-1, keepdim=True)
    below = (1 - 2 * (x * pole).sum(-1, keepdim=True) + pole.square().sum() * size).clamp_min(FLAT)
    return (x - pole * size) / below, -below[..., 0].log()


def unfold(x: Tensor, units: Tensor, pole: Tensor, coefficients: Tensor, slots: Tensor) -> Unfolded:
    """Rows x (rows, feature) as latents; slots: of the monomials (`exact.monomials`)."""
    u, log_stretch = inverted(x / units, pole)
    value, slope = powers(u, slots)  # (rows, monomial), (rows, feature, monomial)
    forward = coefficients @ slope.mT  # dz/du (rows, latent, feature)
    volume = torch.linalg.slogdet(forward).logabsdet + x.shape[-1] * log_stretch - units.log().sum()
    return Unfolded(value @ coefficients.mT, volume, forward, torch.linalg.inv_ex(forward).inverse)


def upright(forward: Tensor) -> Tensor:
    """(rows,) log determinants of the symmetric parts of slopes dz/du (rows, latent, feature) over their mean; -inf
    where one is not positive definite. Where all are, on a convex set, the map is one to one: of two points no two have
    one image (Noshiro 1934; Warschawski 1935)."""
    turned = torch.linalg.solve(forward.mean(0), forward)
    tril, info = torch.linalg.cholesky_ex((turned + turned.mT) / 2)
    log = 2 * tril.diagonal(dim1=-2, dim2=-1).clamp_min(FLAT).log().sum(-1)
    return torch.where(info == 0, log, -math.inf)


def contrast(columns: Tensor) -> Tensor:
    """(...) the local contrast of columns (..., feature, latent)."""
    lengths = columns.square().sum(-2).clamp_min(1e-300).log() / 2
    return lengths.sum(-1) - torch.linalg.slogdet(columns).logabsdet


def columns_of_features(u: Tensor, pole: Tensor, columns: Tensor) -> Tensor:
    """(rows, feature, latent) columns of features in their units, d(x/units)/dz, up to a factor of each row."""
    size, eye = u.square().sum(-1)[:, None, None], torch.eye(u.shape[1]).to(u)
    back = inverted(u, -pole)[0]  # x/units
    below = 1 + 2 * (u * pole).sum(-1)[:, None, None] + pole.square().sum() * size
    slope = (
        eye + 2 * pole[:, None] * u[:, None, :] - back[:, :, None] * 2 * (pole + pole.square().sum() * u)[:, None, :]
    )
    return (slope / below) @ columns


class Turn(NamedTuple):
    """A turn of latents' normal scores, that changes nothing of their laws and independence: rise, of the mean
    contrast, and axes (latent, latent), the matrix."""

    rise: float
    axes: Tensor


@torch.enable_grad()
def least_turn(columns: Tensor, angle: float, generator: torch.Generator, steps: int = 15) -> Turn:
    """The turn by `angle` that raises the mean contrast least, features' units being found anew for each; columns
    (rows, feature, latent) of features in units, by normal scores of latents.

    Turns are exp(A), A antisymmetric, of the size of a turn of two latents by the angle; from each of these, of two
    latents both ways, and from random ones, steps go downhill.
    """
    d = columns.shape[-1]
    upper = torch.triu_indices(d, d, 1)
    pairs = torch.eye(upper.shape[1]).to(columns)
    others = torch.randn(d, len(pairs), generator=generator).to(columns) if d > 2 else -pairs
    base, best = float(_with_units(columns, torch.zeros(d).to(columns))[0]), Turn(math.inf, torch.eye(d).to(columns))
    for start in torch.cat([pairs, others]):
        way, size, last, log = angle * start / start.norm(), 0.5, math.inf, torch.zeros(d).to(columns)
        for _ in range(steps if d > 2 else 1):
            here = way.clone().requires_grad_(True)
            skew = torch.zeros(d, d).to(columns).index_put((upper[0], upper[1]), here)
            turn = torch.linalg.matrix_exp(skew - skew.mT)
            value, log = _with_units(columns @ turn, log)
            now = float(value.detach())
            if now - base < best.rise:
                best = Turn(now - base, turn.detach())
            size, last = size if now < last else size / 2, now
            (slope,) = torch.autograd.grad(value, here)
            slope = slope - way * (slope @ way) / angle**2
            way = way - size * angle * slope / slope.norm().clamp_min(1e-12)
            way = angle * way / way.norm()
    return best


def _with_units(columns: Tensor, log: Tensor, passes: int = 12) -> tuple[Tensor, Tensor]:
    """() least mean contrast of columns times units of features, and the units' logarithms, from `log` on: a convex
    problem, by scaling each feature so that columns' lengths come from all of them alike."""
    square = columns.square()
    with torch.no_grad():
        for _ in range(passes):
            parts = square * (2 * log).exp()[:, None]
            log = log - (parts / parts.sum(1, keepdim=True)).sum(-1).mean(0).log() / 2
    return contrast(columns * log.exp()[:, None]).mean(), log


def darmois_contrast(x: Tensor, rows: int = 1_000, centres: int = 2_000) -> float:
    """Mean local contrast of the Darmois construction of x (rows, 2), the uniform latents F(x_1) and F(x_2 | x_1): half
    of log(1 + q^2), q the slope of the quantile of x_2 at which a row is by x_1. F by normal kernels."""
    x = (x - x.mean(0)) / x.std(0)
    width = 1.06 * min(len(x), centres) ** (-1 / 6)
    far = (x[:rows, None] - x[None, :centres]) / width  # (row, centre, 2)
    near, below = (-far.square() / 2).exp(), torch.special.ndtr(far[..., 1])
    weight = near[..., 0] / near[..., 0].sum(1, keepdim=True)
    along = -far[..., 0]  # of log kernels by x_1, times width
    by_first = (weight * along * below).sum(1) - (weight * along).sum(1) * (weight * below).sum(1)
    by_second = (weight * near[..., 1]).sum(1) / math.sqrt(2 * math.pi)
    return float((by_first / by_second).square().log1p().mean() / 2)


def fold(z: Tensor, units: Tensor, pole: Tensor, coefficients: Tensor, slots: Tensor) -> Tensor:
    """(rows, feature) x of latents z, by Newton's method from the lines of the map; where that folds, the nearest that
    is found."""
    order = (slots > 0).sum(1)
    lines = coefficients[:, order == 1]  # (latent, feature), monomials of one variable being in its order
    u = torch.linalg.solve(lines, (z - coefficients[:, order == 0].sum(1)).mT).mT
    left, slope = _left(u, z, coefficients, slots)
    size = torch.ones_like(left[:, :1])
    for _ in range(NEWTON):
        step = torch.linalg.solve_ex(coefficients @ slope.mT, left[..., None]).result[..., 0]
        new = u - size * torch.where(step.isfinite(), step, 0.0)
        there, slopes = _left(new, z, coefficients, slots)
        gains = there.norm(dim=-1, keepdim=True) < left.norm(dim=-1, keepdim=True)
        u, left = torch.where(gains, new, u), torch.where(gains, there, left)
        slope = torch.where(gains[..., None], slopes, slope)
        size = torch.where(gains, (2 * size).clamp_max(1.0), size / 4)
    return inverted(u, -pole)[0] * units


def _left(u: Tensor, z: Tensor, coefficients: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = powers(u, slots)
    return value @ coefficients.mT - z, slope


def spread(slots: Tensor, roughness: Tensor) -> Tensor:
    """(monomial,) deviation a priori of coefficients: 1 of lines, `roughness` of squares, half of it for each degree
    more."""
    order = (slots > 0).sum(1).to(roughness)
    return torch.where(order < 2, 1.0, roughness * 0.5 ** (order - 2).clamp_min(0.0))


def marginals(heights: Tensor) -> dist.MixtureSameFamily:
    """Laws of latents, heights (latent, bump) their log weights up to a constant: batch (latent,)."""
    centres = _grid(heights.dtype, heights.device).centres
    bump = Normal(centres, (centres[1] - centres[0]) * OVERLAP)
    return dist.MixtureSameFamily(dist.Categorical(logits=heights), bump.expand(heights.shape))


class Grid(NamedTuple):
    """centres (bump,); level (bump,) and tril (bump, bump): mean and Cholesky factor of heights a priori."""

    centres: Tensor
    level: Tensor
    tril: Tensor


@cache
def _grid(dtype: torch.dtype, device: torch.device) -> Grid:
    centres = torch.linspace(-REACH, REACH, BUMPS, dtype=torch.float64)
    level = -centres.square() / 3
    eye = torch.eye(BUMPS, dtype=torch.float64)
    bend = eye[2:] - 2 * eye[1:-1] + eye[:-2]
    precision = eye / LEVEL**2 + bend.mT @ bend / BENT**2
    tril = torch.linalg.cholesky(precision.inverse())
    return Grid(*(part.to(dtype=dtype, device=device) for part in (centres, level - level.mean(), tril)))


def normal_scores(z: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (rows, latent), normal by the latents' laws, and their slopes by z."""
    law = marginals(heights)
    scores = torch.special.ndtri(law.cdf(z).clamp(FURTHEST, 1 - FURTHEST))
    return scores, (law.log_prob(z) + scores.square() / 2 + math.log(2 * math.pi) / 2).exp()


def prior_heights(like: Tensor) -> Grid:
    return _grid(like.dtype, like.device)


def log_bumps(z: Tensor, heights: Tensor) -> Tensor:
    """(rows,) log density of latents z (rows, latent) that are independent, of `marginals`, for gradients alone."""
    centres = _grid(z.dtype, z.device).centres
    sd = (centres[1] - centres[0]) * OVERLAP
    parts = heights.log_softmax(-1) - ((z[..., None] - centres) / sd).square() / 2
    return parts.logsumexp(-1).sum(-1) - z.shape[-1] * (sd.log() + math.log(2 * math.pi) / 2)
