"""A Metropolis sampler of the axes of a box that some rows fill, the law of the other rows being known.

In coordinates y of the space that features span, z = W y + offset; rows that fill have the density |det W| times that
of `boxes.log_filled` on z. One latent at a time, its row of W and its offset move together by a normal step, in the
latents' own units; the share of rows that fill is drawn given which do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Floats = NDArray[np.float64]

DRAWS = 50
BURNT = 1 / 3  # of the sweeps, in which steps find their sizes
TAKEN = 0.25  # share of steps that are
TINY = 1e-300


class BoxDraws(NamedTuple):
    """unmixing (draw, latent, latent), offset (draw, latent), fill (draw,), log_density (draw,)."""

    unmixing: Floats
    offset: Floats
    fill: Floats
    log_density: Floats


class BoxSampler:
    """y: (rows, latent); noise: (latent, latent), its covariance; bulk: (rows,) log density of rows that do not fill.

    loadings: (feature, latent) and center: (feature,) of x given y; both are standard normal a priori as z has them.
    """

    def __init__(
        self, y: Floats, noise: Floats, bulk: Floats, loadings: Floats, center: Floats, rng: np.random.Generator
    ) -> None:
        self.y, self.noise, self.bulk, self.rng = y, noise, bulk, rng
        self.loadings, self.center = loadings, center

    def begin(self, unmixing: Floats, offset: Floats, fill: float) -> None:
        self.unmixing, self.offset, self.fill = unmixing.copy(), offset.copy(), fill
        latents = len(unmixing)
        self.each = np.column_stack([self._filled(k, unmixing[k], offset[k]) for k in range(latents)])
        edge = np.maximum(self._soft(unmixing), 1e-3)
        self.size = edge / np.sqrt(1 + len(self.y) * fill * edge)
        self.at = self._log_density(self.each, self.unmixing, self.offset)

    def _soft(self, rows: Floats) -> Floats:
        return np.sqrt(np.einsum("...k,kl,...l->...", rows, self.noise, rows))

    def _filled(self, k: int, row: Floats, offset: float) -> Floats:
        """(rows,) log density of a latent of rows that fill."""
        size, soft = np.abs(self.y @ row + offset), self._soft(row)
        return np.log(np.maximum(ndtr((1 - size) / soft) - ndtr((-1 - size) / soft), TINY)) - np.log(2)

    def _log_density(self, each: Floats, unmixing: Floats, offset: Floats) -> float:
        volume, latents = np.linalg.slogdet(unmixing)[1], len(unmixing)
        self.odds = each.sum(1) + volume + np.log(self.fill) - self.bulk - np.log1p(-self.fill)
        mixing = self.loadings @ np.linalg.inv(unmixing)
        center = self.center - mixing @ offset
        prior = -0.5 * (mixing**2).sum() - 0.5 * (center**2).sum() - (2 * latents + 1) * volume
        return float(np.logaddexp(0, self.odds).sum() + len(self.y) * np.log1p(-self.fill) + prior)

    def sweep(self, finding: bool, decay: float) -> None:
        """A step of each latent and a draw of the share; finding: whether steps' sizes change, by as little as decay
        says."""
        latents = len(self.unmixing)
        for k in range(latents):
            step = self.size[k] * self.rng.standard_normal(latents + 1)
            row = self.unmixing[k] + step[:latents] @ self.unmixing
            offset = self.offset[k] + step[:latents] @ self.offset + step[latents]
            unmixing, offsets, each = self.unmixing.copy(), self.offset.copy(), self.each.copy()
            unmixing[k], offsets[k], each[:, k] = row, offset, self._filled(k, row, offset)
            odds, new = self.odds, self._log_density(each, unmixing, offsets)
            stretch = 1 + step[k]  # of the volume, and by which the way back is shorter
            back = 0.5 * (step @ step) / self.size[k] ** 2 * (1 - stretch**-2) - np.log(abs(stretch))
            taken = np.log(self.rng.random()) < new - self.at + back
            if taken:
                self.unmixing, self.offset, self.each, self.at = unmixing, offsets, each, new
            else:
                self.odds = odds
            if finding:
                self.size[k] *= np.exp(decay * (taken - TAKEN))
        fills = float((self.rng.random(len(self.y)) < expit(self.odds)).sum())
        self.fill = float(np.clip(self.rng.beta(1 + fills, 1 + len(self.y) - fills), 1e-6, 1 - 1e-6))
        self.at = self._log_density(self.each, self.unmixing, self.offset)

    def run(self, sweeps: int) -> BoxDraws:
        """`DRAWS` draws, as far apart as `sweeps` have it."""
        burnt, kept = round(BURNT * sweeps), []
        for one in range(sweeps):
            self.sweep(one < burnt, 3 / (1 + one) ** 0.6)
            if one >= burnt:
                kept.append((self.unmixing, self.offset, self.fill, self.at))
        at = np.linspace(0, len(kept) - 1, DRAWS).round().astype(int)
        return BoxDraws(*(np.array([kept[i][part] for i in at]) for part in range(4)))
