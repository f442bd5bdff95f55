"""Latents regressed on functions of those one row before, over all sets of parents, under an unmixing still free.

    z_k = v_k' y = sum_f weight_f size_f phi_f + e,   e ~ N(0, 1),   weight_f ~ N(0, 1),
    size_f = slab of the functions of parents alone, CONSTANT of the 1, and 0 of all others

in rows in which k is no target; in those in which it is, the same with weights of their own in units of width_k, or,
of perfect interventions, with that of the 1 alone. phi are `basis_regression.basis_functions` of the latents before,
which stay as they are while v_k moves: then weights are summed out for all v_k at once, as

    log p(v_k' y | parents, slab) = log - v_k' square v_k / 2 + const,

with a matrix `square` and a number `log` of each set of parents and slab (`Terms`).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.exact.basis_regression import basis_functions, places

SLABS = (3.0, 1.0, 0.3, 0.1)  # deviations a priori of weights of standardised functions, in those of innovations
CONSTANT = 10.0  # of that of the 1
MOST = 8  # latents, whose sets of parents are all summed over


class Moments(NamedTuple):
    """Sums of products over rows: gram (..., basis, basis) of functions, cross (..., basis, y) of both, square
    (..., y, y), count (...) rows."""

    gram: Tensor
    cross: Tensor
    square: Tensor
    count: Tensor

    def of(self, member: Tensor) -> Moments:
        """Of groups of environments: member (group, env) in {0, 1}."""
        return Moments(*(torch.tensordot(member, part, 1) for part in self))


class Terms(NamedTuple):
    """square (latent, choice, y, y) and log (latent, choice), of parents' sets and slabs together, sets first."""

    square: Tensor
    log: Tensor


def moments(phi: Tensor, y: Tensor, env: Tensor, environments: int) -> Moments:
    """Of each environment (env, ...), of rows phi (rows, basis), y (rows, y)."""
    both, size = torch.cat([phi, y], 1), phi.shape[1]
    each = both.new_zeros(environments, both.shape[1], both.shape[1])
    for e in range(environments):
        own = both[env == e]
        each[e] = own.mT @ own
    count = torch.bincount(env, minlength=environments).to(y)
    return Moments(each[:, :size, :size], each[:, :size, size:], each[:, size:, size:], count)


@functools.cache
def subsets(latents: int) -> tuple[tuple[int, ...], ...]:
    """All sets of latents, by their size."""
    return tuple(s for size in range(latents + 1) for s in itertools.combinations(range(latents), size))


@functools.cache
def members(latents: int) -> Tensor:
    """(set, latent) in {0, 1}: `subsets` as they stand."""
    out = torch.zeros(len(subsets(latents)), latents, dtype=torch.double)
    for place, one in enumerate(subsets(latents)):
        out[place, list(one)] = 1.0
    return out


def inside(parents: Tensor) -> Tensor:
    """(..., basis) in {0, 1}: functions, the 1 among them, of parents (..., latent) in {0, 1} alone."""
    member = places(parents.shape[-1], parents.device).to(parents)
    return ((1 - parents) @ member.mT < 0.5).to(parents)


def sizes(use: Tensor, slab: Tensor) -> Tensor:
    """(..., basis) deviations of weights: use (..., basis) in {0, 1}, slab (...) their deviation, but of the 1."""
    out = use * slab[..., None]
    return torch.cat([torch.full_like(out[..., :1], CONSTANT), out[..., 1:]], -1)


def both_sizes(parents: Tensor, slab: Tensor, *, soft: bool) -> Tensor:
    """(mechanism, latent, basis) deviations of weights where a latent is no target and where it is one, which then
    keeps parents if `soft`: parents (parent, child) in {0, 1}, slab (latent,) the number of one of `SLABS`."""
    deviation = sum(value * (slab == place) for place, value in enumerate(SLABS))
    natural = sizes(inside(parents.double().mT), torch.as_tensor(deviation).double())
    return torch.stack([natural, natural if soft else torch.cat([natural[:, :1], 0 * natural[:, 1:]], 1)])


def terms(own: Moments) -> Terms:
    """Of every set of parents and slab, without priors of these: own (latent, ...)."""
    latents, slabs = len(own.count), torch.tensor(SLABS, dtype=own.gram.dtype)
    use = inside(members(latents).to(own.gram))
    square = own.square.new_zeros(latents, len(use), len(SLABS), *own.square.shape[1:])
    log = own.square.new_zeros(latents, len(use), len(SLABS))
    start = 0
    for size in range(latents + 1):
        count = math.comb(latents, size)
        at = use[start : start + count].nonzero()[:, 1].reshape(count, -1)  # (set, own basis)
        root = torch.full((len(SLABS), at.shape[1]), CONSTANT, dtype=own.gram.dtype)
        root[:, 1:] = slabs[:, None]
        for k in range(latents):
            gram, cross = own.gram[k][at[:, :, None], at[:, None]], own.cross[k][at]  # (set, basis, basis or y)
            scaled = gram[:, None] * root[:, :, None] * root[:, None]
            tril = torch.linalg.cholesky(scaled + torch.eye(at.shape[1], dtype=scaled.dtype))
            part = torch.linalg.solve_triangular(tril, cross[:, None] * root[..., None], upper=False)
            square[k, start : start + count] = own.square[k] - part.mT @ part
            log[k, start : start + count] = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        start += count
    return Terms(square.flatten(1, 2), log.flatten(1, 2))


def terms_of_constant(own: Moments) -> Terms:
    """The same where there is but the 1: one choice."""
    mean, precision = own.cross[..., 0, :], 1 / CONSTANT**2 + own.gram[..., 0, 0]
    square = own.square - mean[..., :, None] * mean[..., None, :] / precision[..., None, None]
    return Terms(square[:, None], -0.5 * (precision * CONSTANT**2).log()[:, None])


def log_prior(latents: int, edge: float) -> Tensor:
    """(choice,) of a set of parents, each one with this probability, and a slab."""
    size = members(latents).sum(1)
    log = size * math.log(edge) + (latents - size) * math.log1p(-edge) if 0 < edge < 1 else 0 * size
    return (log - math.log(len(SLABS))).repeat_interleave(len(SLABS))


def weights(own: Moments, row: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """(draw, basis) weights drawn given v'y: own of one latent, row (draw, y) of v, size (basis,) of them."""
    scaled = own.gram * size[:, None] * size + torch.eye(len(size), dtype=size.dtype)
    tril = torch.linalg.cholesky(scaled)
    mean = torch.cholesky_solve(size[:, None] * (own.cross @ row.mT), tril)
    noise = torch.randn(len(row), len(size), generator=generator, dtype=size.dtype)
    return mean.mT + torch.linalg.solve_triangular(tril.mT, noise.mT, upper=True).mT


class Basis(NamedTuple):
    """Standardised functions of latents before: unmixing (latent, y) and unit (latent,) of these; middle, spread
    (basis,), 0 and 1 of the constant."""

    unmixing: Tensor
    unit: Tensor
    middle: Tensor
    spread: Tensor

    @classmethod
    def of(cls, unmixing: Tensor, y: Tensor) -> Basis:
        """Standardised by rows y (rows, y)."""
        z = y @ unmixing.mT
        unit = z.std(0)
        f = basis_functions(z / unit)
        middle, spread = f.mean(0), f.std(0).clamp_min(1e-3)
        middle[0], spread[0] = 0.0, 1.0
        return cls(unmixing, unit, middle, spread)

    def __call__(self, y: Tensor) -> Tensor:
        """(rows, basis) of rows y (rows, y)."""
        return (basis_functions(y @ self.unmixing.mT / self.unit) - self.middle) / self.spread
