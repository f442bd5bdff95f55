"""Smooth functions of few normal numbers: sums of curves of each and of surfaces of two.

    f(z) = sum_k sum_b c_kb phi_b(z_k) + sum_(k<l) sum_(b,c) c_klbc phi_b(z_k) phi_c(z_l)

The phi_b are cubic splines between -`END` and `END`, straight beyond, of mean 0, orthonormal where z is standard
normal, that make the integral of squared second derivatives diagonal (Demmler & Reinsch 1975): phi_1 is a line, later
ones bend ever faster. Surfaces have the products with b + c at most `TOGETHER`. All terms are orthonormal where z_1 ..
z_K are independent; `shares` are their parts of the prior variance of f, that fall with their roughness.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

Floats = NDArray[np.float64]
END, PIECES = 2.8, 8
BASIS = PIECES  # functions of one number
CELLS = 4096  # of the table that they are read from
TOGETHER = 7  # of two, those with b + c at most that, b and c from 1
PAIRS = [(b, c) for b in range(BASIS) for c in range(BASIS) if b + c + 2 <= TOGETHER]
USUAL = 60.0  # roughness at which a coefficient's prior variance is halved, about
SURFACE = 0.5  # prior variance of a surface of two numbers, in that of a curve


def _splines(z: Tensor, order: int) -> Tensor:
    """(..., PIECES + 3) the cubic B-splines, or their derivatives of this order, inside."""
    width = 2 * END / PIECES
    start = torch.arange(-3.0, PIECES, dtype=z.dtype, device=z.device)
    away = (z[..., None] + END) / width - start
    power = 3 - order
    parts = [(-1) ** i * math.comb(4, i) * (away - i).clamp_min(0) ** power / math.factorial(power) for i in range(5)]
    out: Tensor = sum(parts[1:], parts[0]) / width**order
    return out


def _straight(z: Tensor) -> Tensor:
    """The same, straight beyond the ends."""
    inside = z.clamp(-END, END)
    return _splines(inside, 0) + (z - inside)[..., None] * _splines(inside, 1)


def _prepared() -> tuple[Floats, Floats, Floats]:
    """offset (PIECES + 3,) means of the splines, turn (PIECES + 3, BASIS) from splines less these to phi, and how rough
    these are."""
    at = torch.linspace(-8.0, 8.0, 16_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * at**2)
    weight /= weight.sum()
    inner = torch.linspace(-END, END, 4_001, dtype=torch.float64)
    value, second = _straight(at).numpy(), _splines(inner, 2).numpy()
    offset = weight.numpy() @ value
    centred = value - offset
    gram = centred.T @ (weight.numpy()[:, None] * centred)
    ends = _splines(torch.tensor([-END, END], dtype=torch.float64), 2).numpy()
    natural = linalg.null_space(ends)  # no bend at the ends: no kink there
    rough = second.T @ second * (2 * END / 4_000)
    size, axes = linalg.eigh(natural.T @ gram @ natural)
    axes = natural @ axes[:, 1:] / np.sqrt(size[1:])  # the sum of all splines is the constant
    penalty, turned = linalg.eigh(axes.T @ rough @ axes)
    turn = axes @ turned
    turn = turn * np.sign((linalg.pinv(turn) * np.arange(PIECES + 3)).sum(1))  # the line ascends
    return offset, turn, np.maximum(penalty, 0)


_OFFSET, _TURN, ROUGH = _prepared()
SHARE = 1 / np.sqrt(1 + ROUGH / USUAL)
SHARE = SHARE / SHARE.sum()
_BOTH = np.array([SHARE[b] * SHARE[c] for b, c in PAIRS])
_BOTH = SURFACE * _BOTH / _BOTH.sum()


class _Table(NamedTuple):
    """value, slope (CELLS + 1, BASIS) of the phi_b at even steps from -END to END."""

    value: Tensor
    slope: Tensor


@cache
def _table(dtype: torch.dtype, device: torch.device) -> _Table:
    at = torch.linspace(-END, END, CELLS + 1, dtype=torch.float64)
    turn = torch.as_tensor(_TURN)
    both = (_splines(at, 0) - torch.as_tensor(_OFFSET)) @ turn, _splines(at, 1) @ turn
    return _Table(*(part.to(dtype=dtype, device=device) for part in both))


def _at(z: Tensor, table: Tensor) -> Tensor:
    place = (z.clamp(-END, END) + END) * (CELLS / (2 * END))
    cell = place.detach().long().clamp(0, CELLS - 1)
    low, high = table[cell], table[cell + 1]
    return low + (place - cell)[..., None] * (high - low)


def basis(z: Tensor) -> Tensor:
    """(..., BASIS) the phi_b at z, to five digits."""
    value, slope = _table(z.dtype, z.device)
    end = torch.where((z < 0)[..., None], slope[0], slope[-1])
    return _at(z, value) + (z - z.clamp(-END, END))[..., None] * end


def slopes(z: Tensor) -> Tensor:
    """(..., BASIS) their derivatives."""
    return _at(z, _table(z.dtype, z.device).slope)


@cache
def _couples(latents: int) -> tuple[list[int], list[int]]:
    """The first and the second of each two latents."""
    pairs = [(k, m) for k in range(latents) for m in range(k + 1, latents)]
    return [k for k, _ in pairs], [m for _, m in pairs]


def terms(latents: int) -> int:
    return latents * BASIS + len(_couples(latents)[0]) * len(PAIRS)


def shares(latents: int) -> Floats:
    """(term,) prior variance of each coefficient, in that of a curve."""
    return np.concatenate([np.tile(SHARE, latents), np.tile(_BOTH, len(_couples(latents)[0]))])


@cache
def share(latents: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`shares` as a tensor, sent to this device once."""
    return torch.as_tensor(shares(latents), dtype=dtype, device=device)


@cache
def _indices(latents: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_couples` as tensors, sent to this device once."""
    first, second = (torch.tensor(part, dtype=torch.long, device=device) for part in _couples(latents))
    return first, second


def gates(mask: Tensor) -> Tensor:
    """(feature, term) which terms a feature of these latents has; mask (feature, latent)."""
    first, second = _indices(mask.shape[1], mask.device)
    both = mask.index_select(1, first) * mask.index_select(1, second)
    return torch.cat([mask.repeat_interleave(BASIS, 1), both.repeat_interleave(len(PAIRS), 1)], 1)


def effects(coefficients: Tensor, latents: int) -> Tensor:
    """(feature, latent) deviation of what a latent has a part in, the total effect of Sobol."""
    square = coefficients.square()
    own = square[:, : latents * BASIS].unflatten(1, (latents, BASIS)).sum(2)
    both = square[:, latents * BASIS :].unflatten(1, (-1, len(PAIRS))).sum(2)
    for part in _indices(latents, own.device):
        own = own.index_add(1, part, both)
    return own.sqrt()


def lattice(points: int, latents: int, like: Tensor) -> Tensor:
    """(point, latent) normal numbers that are spread evenly (Kronecker's sequence)."""
    steps = torch.arange(1, points + 1, dtype=like.dtype, device=like.device)[:, None]
    roots = [math.sqrt(2 + 3 * k) + k / math.pi for k in range(latents)]
    even = (steps * torch.tensor(roots, dtype=like.dtype, device=like.device)) % 1.0
    return torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))


def bends(coefficients: Tensor, mask: Tensor, points: int = 2000) -> Tensor:
    """(feature,) how far slopes of a feature, over normal latents, are from all being along one line: the least
    eigenvalue of their second moments, at unit diagonal; from 0, of a feature that is a line of some latents or one
    alone bent, to 1. It is 1 of features of one latent or none. mask: (feature, latent), of truth values."""
    slope = jacobian(lattice(points, mask.shape[1], coefficients), coefficients)
    out = coefficients.new_ones(len(mask))
    for j, row in enumerate(mask):
        if row.sum() > 1:
            own = slope[:, j, row]
            second = own.mT @ own
            size = second.diagonal().clamp_min(1e-12).sqrt()
            out[j] = torch.linalg.eigvalsh(second / size / size[:, None])[0]
    return out


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(row, couple, pair) of functions of two latents: left (row, latent, basis) of the first, right of the second."""
    latents = left.shape[1]
    first, second = _indices(latents, left.device)
    one, two = left.index_select(1, first), right.index_select(1, second)
    return torch.cat([one[:, :, b : b + 1] * two[:, :, : TOGETHER - 1 - b] for b in range(TOGETHER - 1)], 2)


def design(z: Tensor) -> Tensor:
    """(row, term) of z (row, latent)."""
    phi = basis(z)
    if z.shape[1] < 2:
        return phi.flatten(1)
    return torch.cat([phi.flatten(1), _products(phi, phi).flatten(1)], 1)


def jacobian(z: Tensor, coefficients: Tensor) -> Tensor:
    """(row, feature, latent) derivatives of features of these coefficients (feature, term)."""
    latents = z.shape[1]
    phi, slope = basis(z), slopes(z)
    own = coefficients[:, : latents * BASIS].unflatten(1, (latents, BASIS))
    out = torch.einsum("rkb,jkb->rjk", slope, own)
    if latents < 2:
        return out
    both = coefficients[:, latents * BASIS :].unflatten(1, (-1, len(PAIRS))).permute(1, 2, 0)  # (couple, pair, feature)
    first, second = _indices(latents, z.device)
    along = torch.matmul(_products(slope, phi).transpose(0, 1), both)  # (couple, row, feature)
    across = torch.matmul(_products(phi, slope).transpose(0, 1), both)
    out = out.index_add(2, first, along.permute(1, 2, 0))
    return out.index_add(2, second, across.permute(1, 2, 0))
