"""Latents of an additive factor model given its curves: their law on a grid, by mean field, and what rows come to.

Each u_ik alone is one-dimensional given the others, so its law is exact on the grid; together they are taken to be
independent, each under the others' laws, until these settle.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from scipy import special
from torch import Tensor

from pyrocrl.dists import categorical
from pyrocrl.exact.curves import CELLS, constants, on_grid

Floats = NDArray[np.float64]


class OnGrid(TorchDistribution):
    """Numbers between 0 and 1, uniform within each cell. share: (..., number, cell) probabilities of the cells."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, share: Tensor, validate_args: bool | None = None) -> None:
        self.share = share
        super().__init__(share.shape[:-2], share.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OnGrid:
        return OnGrid(self.share.expand(*batch_shape, *self.share.shape[-2:]))

    @property
    def mean(self) -> Tensor:
        cells = self.share.shape[-1]
        at = (torch.arange(cells, dtype=self.share.dtype, device=self.share.device) + 0.5) / cells
        return self.share @ at

    def sample(self, sample_shape: Any = ()) -> Tensor:
        share = self.share.detach().expand(*sample_shape, *self.share.shape)
        cell = categorical(share.clamp_min(torch.finfo(share.dtype).tiny).log())
        inside = torch.rand(cell.shape, dtype=share.dtype, device=share.device)
        return (cell + inside) / share.shape[-1]

    def log_prob(self, value: Tensor) -> Tensor:
        cells = self.share.shape[-1]
        cell = (value * cells).long().clamp(0, cells - 1)
        share = self.share.expand(*value.shape, cells).gather(-1, cell[..., None])[..., 0]
        return (share.clamp_min(torch.finfo(share.dtype).tiny) * cells).log().sum(-1)


def latent_shares(x: Tensor, coefficients: Tensor, variance: Tensor, sweeps: int) -> Tensor:
    """(row, latent, cell) probabilities of u on the grid given curves, by mean field.

    x (row, feature), coefficients (feature, latent, basis), variance (feature,). At first the others' curves are
    taken for noise of their variance, so that a latent begins where features of its own put it.
    """
    curve = coefficients @ constants(x.dtype, x.device).on_grid.mT  # (feature, latent, cell)
    latents = curve.shape[1]
    size = curve.square().mean(-1)  # (feature, latent)
    first = []
    for k in range(latents):
        g = curve[:, k]
        scaled = g / (variance + size.sum(1) - size[:, k])[:, None]
        first.append((x @ scaled - 0.5 * (g * scaled).sum(0)).softmax(-1))
    if not latents:
        return x.new_zeros(len(x), 0, CELLS)
    share = first
    scaled = curve / variance[:, None, None]
    half = 0.5 * (curve * scaled).sum(0)  # (latent, cell)
    means = [one @ curve[:, k].mT for k, one in enumerate(share)]  # (row, feature)
    total = sum(means[1:], means[0])
    for _ in range(sweeps):
        for k in range(latents):
            rest = x - total + means[k]
            share[k] = (rest @ scaled[:, k] - half[k]).softmax(-1)
            mean = share[k] @ curve[:, k].mT
            total, means[k] = total - means[k] + mean, mean
    return torch.stack(share, 1)


def shares_of(x: Floats, coefficients: Floats, variance: Floats, sweeps: int = 6) -> Floats:
    """The same of arrays."""
    parts = [torch.as_tensor(part) for part in (x, coefficients, variance)]
    out: Floats = latent_shares(parts[0], parts[1], parts[2], sweeps).numpy()
    return out


def rows_told(
    x: Floats, coefficients: Floats, variance: Floats, rng: np.random.Generator, draws: int = 16, sweeps: int = 6
) -> float:
    """A lower bound of rows' log-likelihood given curves, by importance of draws from a mean field (Burda et al.
    2016)."""
    share = shares_of(x, coefficients, variance, sweeps)
    curve, log_share = on_grid(coefficients), np.log(np.maximum(share * CELLS, 1e-300))
    below, place = share.cumsum(2), np.arange(len(x))
    told = np.empty((draws, len(x)))
    for one in told:
        one[:] = -0.5 * np.log(2 * np.pi * variance).sum()
        left = x.copy()
        for k in range(share.shape[1]):
            cell = (below[:, k] < rng.random((len(x), 1))).sum(1).clip(0, CELLS - 1)
            left -= curve[:, k].T[cell]
            one -= log_share[place, k, cell]
        one -= 0.5 * np.square(left) @ (1 / variance)
    return float((special.logsumexp(told, 0) - math.log(draws)).sum())
