"""Directions of sparse codes of counts, by the EM of `constructions.dictionaries`.

Directions start from those of log(1 + x / size), standardised, as if these were normal, and log rates are regressed on
their codes. Then the same EM goes on with the negative-binomial law. Its maximum has no closed form: a step of Fisher
scoring, whose weighted moments are averaged over parts of the rows as those of floats are, stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyrocrl.constructions import dictionaries
from pyrocrl.constructions.dictionaries import FEW, LEAST, MOST, RARE, Dictionary
from pyrocrl.dists import LARGEST
from pyrocrl.exact.count_codes import CountCodes, CountRows
from pyrocrl.exact.count_factors import BASE, DISPERSION, SPREAD

STEPS = 10  # of the regression at the start
LONGEST = 0.5  # change of a loading, or of a log dispersion, in a step
RANGE = 0.02, 1e3  # of dispersions
PASSES = 2  # after the start, before directions may join


@dataclass(frozen=True)
class Counts:
    """x (row, feature) counts, log_size (row, 1), and (row, batch) in {0, 1} the technical batch."""

    x: Tensor
    log_size: Tensor
    batch: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Counts:
        return Counts(self.x[rows], self.log_size[rows], self.batch[rows])


@dataclass
class CountDictionary(Dictionary):
    """w (feature, latent) in log rates; center (batch, feature), log rates where nothing fires; noise (feature,),
    dispersions; spread, rate (latent,). usual (feature,): mean of the prior of center; slab: deviation of that of w;
    rows: that there are.

    moments: averaged over rows, of codes and batches c = (z, batch) and the slopes s and curvatures b of log p(x) in
    log means: b c c^T (feature, latent + batch, latent + batch), (b (w, center) c + s) c (feature, latent + batch), of
    z > 0, z, z^2, and of the slopes t in log dispersions t^2, t^2 log noise + t.
    """

    usual: Tensor = field(kw_only=True)
    slab: float = field(kw_only=True)
    rows: int = field(kw_only=True)

    @property
    def codes(self) -> CountCodes:
        return CountCodes(self.w, self.noise, self.spread, self.rate)

    def part(self, x: Counts) -> CountRows:
        return CountRows(x.x, x.log_size + x.batch @ self.center)

    def of(self, latents: Tensor) -> CountDictionary:
        own = {"w": self.w[:, latents], "spread": self.spread[latents], "rate": self.rate[latents]}
        if not self.moments:
            return replace(self, **own)
        bend, right, fires, z, square, *noise = self.moments
        both = torch.cat([latents, torch.arange(self.count, right.shape[1])])
        kept = (bend[:, both][:, :, both], right[:, both], fires[latents], z[latents], square[latents], *noise)
        return replace(self, **own, moments=kept)

    def observed(self, x: Counts, z: Tensor) -> tuple[Tensor, ...]:
        size, both = len(x), torch.cat([z, x.batch], 1)
        eta = both @ torch.cat([self.w.mT, self.center])
        slope, bend = self.codes.slopes(CountRows(x.x, x.log_size), eta)
        pairs = (both[:, :, None] * both[:, None, :]).flatten(1)
        square = (bend.mT @ pairs / size).unflatten(1, (both.shape[1], -1))
        right = (bend * eta + slope).mT @ both / size
        t = self._dispersed(x, eta)
        curve = t.square().mean(0)
        fires = (z > 0).to(z.dtype).mean(0)
        moments = (square, right, fires, z.mean(0), z.square().mean(0), curve, curve * self.noise.log() + t.mean(0))
        return moments

    def maximised(self, moments: tuple[Tensor, ...]) -> CountDictionary:
        bend, right, fires, z, square, curve, tilt = moments
        count, batches = len(fires), right.shape[1] - len(fires)
        ridge = torch.cat([z.new_full((count,), self.slab**-2), z.new_full((batches,), BASE**-2)]) / self.rows
        pull = torch.zeros_like(right)
        pull[:, count:] = (self.usual * BASE**-2 / self.rows)[:, None]
        found = torch.linalg.solve(bend.double() + torch.diag(ridge.double()), (right + pull).double()).to(right)
        now = torch.cat([self.w, self.center.mT], 1)
        found = now + (found - now).clamp(-LONGEST, LONGEST)
        usual, own = torch.tensor(DISPERSION).log(), SPREAD**-2 / self.rows
        log = self.noise.log()
        log = log + ((tilt + own * usual) / (curve + own) - log).clamp(-LONGEST, LONGEST)
        each = fires.clamp_min(RARE)
        mean = z / each
        scale = torch.where(fires > RARE, mean, 1.0).clamp(0.2, 5.0)
        spread = (square / each - mean.square()).clamp_min(0.0).sqrt() / scale
        spread = torch.where(fires > RARE, spread, self.spread).clamp(LEAST, MOST)
        unit = torch.cat([scale, torch.ones_like(scale[:1]).expand(batches)])
        moments = (
            bend / unit / unit[:, None],
            right / unit,
            fires,
            z / scale,
            square / scale.square(),
            curve,
            tilt,
        )
        return replace(
            self,
            w=found[:, :count] * scale,
            center=found[:, count:].mT,
            noise=self.bounded(log.exp()),
            spread=spread,
            rate=fires.clamp(RARE, 0.9),
            moments=moments,
        )

    def left(self, x: Counts, z: Tensor) -> tuple[Tensor, Tensor]:
        """In log rates, as far as a row tells these beside a slab."""
        slope, bend = self.codes.slopes(self.part(x), z @ self.w.mT)
        return slope / (bend + self.slab**-2), (slope.square() / bend.clamp_min(RARE)).sum(1)

    def rest(self, x: Counts) -> tuple[Tensor, Tensor]:
        r = self.noise
        return (torch.lgamma(x.x + r) - torch.lgamma(x.x + 1)).sum(1), (r * r.log() - torch.lgamma(r)).sum()

    def slopes(self, x: Counts, z: Tensor) -> tuple[Tensor, Tensor]:
        eta = z @ self.w.mT
        return self.codes.slopes(self.part(x), eta)[0], self._dispersed(x, eta + x.batch @ self.center)

    def of_center(self, x: Counts, own: Tensor) -> Tensor:
        return (x.batch[:, :, None] * own[:, None]).flatten(1)

    def bounded(self, noise: Tensor) -> Tensor:
        return noise.clamp(*RANGE)

    def _dispersed(self, x: Counts, log_rate: Tensor) -> Tensor:
        """(row, feature) slopes of log p(x) in log dispersions."""
        r, mean = self.noise, (x.log_size + log_rate).clamp_max(LARGEST).exp()
        total = r + mean
        return r * (torch.digamma(x.x + r) - torch.digamma(r) + (r / total).log() + 1 - (x.x + r) / total)


def learn(x: Counts, latents: int, most: int, slab: float, generator: torch.Generator) -> Dictionary:
    """At most `latents` directions, of which at most `most` fire in a row."""
    few = x[torch.randperm(len(x), generator=generator)[:FEW]]
    one: Dictionary = begun(few, len(x), latents, most, slab, generator)
    one = dictionaries.passed(few, one, most, PASSES, generator)
    return dictionaries.paid(x, few, dictionaries.grown(few, one, latents, most, generator), most, generator)


def begun(x: Counts, rows: int, latents: int, most: int, slab: float, generator: torch.Generator) -> CountDictionary:
    """From the dictionary of standardised log(1 + x / size), log rates regressed on its codes."""
    y = (x.x / x.log_size.exp()).log1p()
    y = y - x.batch @ torch.linalg.lstsq(x.batch, y).solution
    spread = y.std(0)
    y = y / torch.where(spread > RARE, spread, torch.ones_like(spread))
    start = dictionaries.learn(y, latents, most, generator)
    part = start.part(y)
    near = start.codes.search(part, most)
    noise = torch.rand(near.flat.shape, generator=generator, dtype=y.dtype).clamp_min(1e-30).log()
    z = start.codes.draw(part, near, -(-noise).log(), torch.rand(near.places.shape, generator=generator, dtype=y.dtype))
    z = z / (z.sum(0) / (z > 0).sum(0).clamp_min(1)).clamp_min(RARE)
    usual = ((x.x.sum(0) + 0.5) / x.log_size.exp().sum()).log()
    one = CountDictionary(
        torch.zeros_like(start.w),
        usual.expand(x.batch.shape[1], -1),
        torch.full_like(usual, DISPERSION),
        start.spread,
        start.rate,
        usual=usual,
        slab=slab,
        rows=rows,
    )
    for _ in range(STEPS):
        one = one.maximised(one.observed(x, z))
    return replace(one, moments=())
