"""Posterior of a row's sparse codes given counts, by Laplace's approximation of each support.

    x_j ~ NegativeBinomial(exp(level_j + sum_k z_k w_jk), dispersion_j),  z as in `exact.sparse_codes`

Given the support, log p(x, z) is concave in the magnitudes: Newton's method finds its mode, about which the likelihood
is as that of normal values with a precision of each row and feature (McCullagh & Nelder 1989, 2.5). From these follow,
by rank one as there, the supports near, to second order about this mode; `REFINED` of them, the most probable, are then
weighed at their own modes, by the exact likelihood there and Laplace's approximation (Tierney & Kadane 1986). A search
moves by these weights, and every move is about a mode of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyrocrl.dists import LARGEST, log_below
from pyrocrl.exact.sparse_codes import NEVER, Codes, Near, Told

STEPS, FEW = 2, 1  # of Newton's method, and of supports near one of a known mode
LENGTH = 1.0  # longest step of a magnitude
REFINED, ADDED = 8, 3  # supports of a row that are weighed at their own modes, and of those that only add a latent
CELLS = 10_000_000  # numbers at once


@dataclass(frozen=True)
class CountRows:
    """x, level (row, feature): counts, and their log means where no latent fires."""

    x: Tensor
    level: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> CountRows:
        return CountRows(self.x[rows], self.level[rows])

    def repeated(self, times: int) -> CountRows:
        """Every row so many times, one after the other."""
        return CountRows(self.x.repeat_interleave(times, 0), self.level.repeat_interleave(times, 0))

    @property
    def device(self) -> torch.device:
        return self.x.device


class Mode(NamedTuple):
    """z (row, place), magnitudes, signs left out; tril (row, place, place), the Cholesky factor of less the second
    derivatives of log p(x, z) there; log (row,), log p(x, z) there, up to a constant of the row and what `offset` has;
    eta, slope, bend (row, feature): directions in all, and derivatives of log p(x) in log means, a step before z."""

    z: Tensor
    tril: Tensor
    log: Tensor
    eta: Tensor
    slope: Tensor
    bend: Tensor


class CountCodes(Codes):
    """w: (feature, latent) directions in log rates at magnitude 1; dispersion: (feature,); spread, rate: (latent,).

    Rows, `x` of its methods, are `CountRows`.
    """

    def __init__(self, w: Tensor, dispersion: Tensor, spread: Tensor, rate: Tensor) -> None:
        super().__init__(w, torch.ones_like(dispersion), spread, rate)
        self.w, self.dispersion = pad(w, (0, 1)), dispersion

    def slopes(self, x: CountRows, eta: Tensor) -> tuple[Tensor, Tensor]:
        """(row, feature) first and, less, second derivatives of log p(x) in log means, at these, less `level`, eta."""
        mean = (x.level + eta).clamp_max(LARGEST).exp()
        share = mean / (mean + self.dispersion)
        fitted = (x.x + self.dispersion) * share
        return x.x - fitted, fitted * (1 - share)

    def mode(self, x: CountRows, places: Tensor, start: Tensor | None = None, steps: int = STEPS) -> Mode:
        """Of the magnitudes of these supports (row, place), after so many steps and as the last one is to be expected
        to end. start: magnitudes to begin with, 1 where not given."""
        own = self.w.mT[places]  # (row, place, feature)
        prior, pull = self.prior[places], self.pull[places]
        z = (pull > 0).to(own.dtype) if start is None else start
        for step in range(steps + 1):
            eta = (z[:, None] @ own)[:, 0]
            slope, bend = self.slopes(x, eta)
            precision = (own * bend[:, None]) @ own.mT + torch.diag_embed(prior)
            tril = torch.linalg.cholesky(precision)
            right = (own @ slope[:, :, None])[:, :, 0] + pull - prior * z
            move = torch.cholesky_solve(right[:, :, None], tril)[:, :, 0]
            move = move * (LENGTH / move.abs().amax(1, keepdim=True).clamp_min(LENGTH))
            if step < steps:
                z = z + move
        log_mean = x.level + eta
        total = (log_mean.clamp_max(LARGEST).exp() + self.dispersion).log()
        log = (x.x * log_mean - (x.x + self.dispersion) * total).sum(1)
        log = log + (pull * z - 0.5 * prior * z.square()).sum(1) + 0.5 * (right * move).sum(1)
        return Mode(z + move, tril, log, eta, slope, bend)

    def given(self, x: CountRows, places: Tensor) -> tuple[Tensor, Tensor]:
        mode = self.mode(x, places)
        return mode.z, torch.cholesky_inverse(mode.tril)

    def evidence(self, x: CountRows, places: Tensor) -> Tensor:
        return self._evidence(self.mode(x, places), places)

    def _evidence(self, mode: Mode, places: Tensor) -> Tensor:
        deviation = torch.cholesky_inverse(mode.tril).diagonal(dim1=1, dim2=2).sqrt()
        each = self.offset[places] + log_below(mode.z / deviation)
        return each.sum(1) + mode.log - mode.tril.diagonal(dim1=1, dim2=2).log().sum(1)

    def told(self, x: CountRows, places: Tensor) -> Told:
        """To second order about the mode of these supports."""
        return self._told(self.mode(x, places), places)

    def _told(self, mode: Mode, places: Tensor) -> Told:
        across = (self.w.mT[places] * mode.bend[:, None]) @ self.w
        return Told((mode.bend * mode.eta + mode.slope) @ self.w, across, mode.bend @ self.w.square())

    def near(self, x: CountRows, places: Tensor, more: bool = False) -> Near:
        """As there, `REFINED` supports and that of `places` by their own modes, the others to second order about its
        mode."""
        mode = self.mode(x, places)
        near = self._near(self._told(mode, places), places, more)
        here, flat = self._evidence(mode, places), near.flat.clone()
        flat[:, -1] = NEVER
        magnitudes = (self.pull > 0).to(flat.dtype).expand(len(flat), -1).scatter(1, places, mode.z)
        first = flat.topk(min(ADDED if more else REFINED, flat.shape[1]), 1).indices
        told = flat.gather(1, first)
        for which in first.split(max(1, CELLS // (x.x.numel() * places.shape[1])), 1):  # (row, one)
            moved, again = near.moved(which).flatten(0, 1), which.shape[1]
            start = magnitudes.repeat_interleave(again, 0).gather(1, moved)
            there = self._evidence(self.mode(x.repeated(again), moved, start, FEW), moved).view_as(which)
            flat = flat.scatter(1, which, there - here[:, None])
        flat = flat.scatter(1, first, torch.where(told > NEVER / 2, flat.gather(1, first), NEVER))
        last = torch.arange(flat.shape[1], device=flat.device) == flat.shape[1] - 1
        return Near(places, torch.where(last, 0.0, flat).view_as(near.log_weight))
