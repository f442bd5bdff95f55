"""Directions of sparse codes, more of them than features, by EM over parts of the rows.

Codes are drawn from their posterior (`exact.sparse_codes`), so that their moments with x give directions, noise and the
law of magnitudes in closed form, averaged over the parts with decaying weight (stochastic approximation EM: Delyon,
Lavielle & Moulines 1999). Four things keep EM from where it would stay for good:

* It starts with `OVER` times the directions, rows at random. Sums of directions, and copies, are then beside the
  directions, and are left out: those without which the rows that use them lose least.
* A direction less a multiple of another one, which then fires along with it, is put right: where that betters rows.
* What is left of the rows that are explained worst joins as directions, and stays where it is worth more than others.
* A direction that rows do not pay for (BIC) is left out. Then fewer stay than were offered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrocrl.exact.sparse_codes import Codes

OVER, NEW = 1.5, 0.15  # directions at first, and of those that join, in those offered
PART = 2_000  # rows of a step, a sixth of them where there are fewer
FEW = 12_000  # rows until the number of directions is settled
LOOKED = 25  # rows of a direction that are asked what they lose without it
FIRST, ROUNDS, AGAIN = 3, 3, 4  # passes before any is left out, times that some are, and that others may join
LAST = 12_000  # rows of the last pass
FORGET, SETTLE = 0.3, 0.1  # weight of a part, at first and in the last pass
ASKED = 3_000  # rows that tell what directions are worth, and which fire together
COMPARED = 1_500  # rows by which two dictionaries are compared
COPY = 0.9  # cosine from which of two directions one is a copy
TRACE = 0.05  # magnitude from which a direction counts as firing
LIFT = 0.3  # probability, beyond its rate, that a direction fires along with another, from which that is looked at
LEAST, MOST = 0.02, 3.0  # deviation of magnitudes, in their mode
NOISE = 1e-4  # least variance of a standardised feature's noise
RARE = 1e-6  # least rate


@dataclass
class Dictionary:
    """w (feature, latent), center, noise (feature,), its variance, spread, rate (latent,); moments: of x and z a row,
    averaged: z z^T, x z^T, of z > 0, z, x, x^2."""

    w: Tensor
    center: Tensor
    noise: Tensor
    spread: Tensor
    rate: Tensor
    moments: tuple[Tensor, ...] = ()

    @property
    def codes(self) -> Codes:
        return Codes(self.w, self.noise, self.spread, self.rate)

    @property
    def count(self) -> int:
        return self.w.shape[1]

    def part(self, x: Tensor) -> Tensor:
        """What `codes` read of rows."""
        return x - self.center

    def of(self, latents: Tensor) -> Dictionary:
        """With these directions alone."""
        zz, xz, fires, z, x, square = self.moments
        kept = (zz[latents][:, latents], xz[:, latents], fires[latents], z[latents], x, square)
        return Dictionary(self.w[:, latents], self.center, self.noise, self.spread[latents], self.rate[latents], kept)

    def maximised(self, moments: tuple[Tensor, ...]) -> Dictionary:
        """At the maximum given these moments; magnitudes are brought to mode 1, and moments with them."""
        zz, xz, fires, z, x, square = moments
        count = len(fires)
        design = torch.zeros(count + 1, count + 1, dtype=x.dtype, device=x.device)
        design[:count, :count], design[:count, count], design[count, :count], design[count, count] = zz, z, z, 1.0
        with_x = torch.cat([xz, x[:, None]], 1)
        ridge = RARE * torch.eye(count + 1, dtype=x.dtype, device=x.device)
        found = torch.linalg.solve(design + ridge, with_x.mT).mT  # (feature, latent + 1)
        variance = square - 2 * (found * with_x).sum(1) + ((found @ design) * found).sum(1)
        each = fires.clamp_min(RARE)
        mean = z / each
        scale = torch.where(fires > RARE, mean, 1.0).clamp(0.2, 5.0)
        spread = (zz.diagonal() / each - mean.square()).clamp_min(0.0).sqrt() / scale
        spread = torch.where(fires > RARE, spread, self.spread).clamp(LEAST, MOST)
        moments = (zz / scale / scale[:, None], xz / scale, fires, z / scale, x, square)
        w, center = found[:, :count] * scale, found[:, count]
        return Dictionary(w, center, self.bounded(variance), spread, fires.clamp(RARE, 0.9), moments)

    def observed(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """`moments` of these rows and their codes (row, latent)."""
        size, fires = len(x), (z > 0).to(z.dtype).mean(0)
        return z.mT @ z / size, x.mT @ z / size, fires, z.mean(0), x.mean(0), x.square().mean(0)

    def left(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(row, feature) what codes leave of rows, and its size (row,) against noise."""
        left = self.part(x) - z @ self.w.mT
        return left, (left.square() / self.noise).sum(1)

    def rest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `codes.evidence` leaves out of log p(x), rates apart: of each row (row,), and of all."""
        return -0.5 * (self.part(x).square() / self.noise).sum(1), -0.5 * (2 * math.pi * self.noise).log().sum()

    def slopes(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(row, feature) slopes of log p(x | z) in the means of x, and in log variances."""
        left = self.part(x) - z @ self.w.mT
        own = left / self.noise
        return own, (own * left - 1) / 2

    def of_center(self, x: Tensor, own: Tensor) -> Tensor:
        """Slopes (row, entry of center) in the center, given those in the means of x (row, feature)."""
        return own

    def bounded(self, noise: Tensor) -> Tensor:
        return noise.clamp_min(NOISE)


def learn(x: Tensor, latents: int, most: int, generator: torch.Generator) -> Dictionary:
    """x: (row, feature), standardised. At most `latents` directions, of which at most `most` fire in a row."""
    few = x[torch.randperm(len(x), generator=generator)[:FEW]]
    one = passed(few, begun(few, math.ceil(OVER * latents), generator), most, FIRST, generator)
    for left in torch.linspace(one.count, latents, ROUNDS + 1).round().int().tolist()[1:]:
        one = one.of(best(few, one, most, left))
        one = passed(few, untied(few, one, most), most, 1, generator)
    return paid(x, few, grown(few, one, latents, most, generator), most, generator)


def grown(few: Any, one: Dictionary, latents: int, most: int, generator: torch.Generator) -> Dictionary:
    """After others may have joined, up to `latents`."""
    for _ in range(AGAIN):
        known = one.count
        one = passed(few, joined(few, one, most, math.ceil(NEW * latents)), most, 1, generator)
        kept = best(few, one, most, latents)
        one = passed(few, untied(few, one.of(kept), most), most, 1, generator)
        if int(kept.max()) < known:  # none that joined is worth its place
            break
    return one


def paid(x: Any, few: Any, one: Dictionary, most: int, generator: torch.Generator) -> Dictionary:
    """With the directions that rows pay for, the `few` that are asked, after a last pass."""
    price = 0.5 * (len(one.w) + 2) * math.log(len(x)) / len(x)
    one = one.of((worth(few, one, most) > price).nonzero()[:, 0])
    return passed(x[torch.randperm(len(x), generator=generator)[:LAST]], one, most, 1, generator)


def begun(x: Tensor, count: int, generator: torch.Generator) -> Dictionary:
    """Rows at random, about the mean and of one length."""
    rows = x[torch.randint(len(x), (count,), generator=generator)]
    w = torch.nn.functional.normalize(rows - x.mean(0), dim=1).mT * x.var(0).sum().sqrt() / 2
    like = torch.ones(count, dtype=x.dtype)
    return Dictionary(w, 0 * x[0], 0.3 * x.var(0).clamp_min(NOISE), 0.5 * like, min(0.5, 3 / count) * like)


def passed(x: Any, one: Dictionary, most: int, passes: int, generator: torch.Generator) -> Dictionary:
    """After EM over the rows, part by part."""
    seen, part_size = 0, min(PART, max(PART // 20, len(x) // 6))
    for number in range(passes):
        for rows in torch.randperm(len(x), generator=generator).split(part_size):
            part, dtype = one.part(x[rows]), one.w.dtype
            near = one.codes.search(part, most)
            gumbel = -torch.rand(near.flat.shape, generator=generator, dtype=dtype).clamp_min(1e-30).log()
            uniform = torch.rand(near.places.shape, generator=generator, dtype=dtype)
            z = one.codes.draw(part, near, -gumbel.log(), uniform)
            new, size = one.observed(x[rows], z), len(rows)
            seen = seen + size if one.moments else size
            weight = max((SETTLE if number == passes - 1 else FORGET) * size / part_size, size / seen)
            old = one.moments or new
            one = one.maximised(tuple((1 - weight) * a + weight * b for a, b in zip(old, new, strict=True)))
    return one


def worth(x: Any, one: Dictionary, most: int) -> Tensor:
    """(latent,) what rows lose without it, on average over all of them, in nats."""
    x = x[:ASKED]
    part = one.part(x)
    places = one.codes.search(part, most).places
    row, place = (places < one.count).nonzero(as_tuple=True)
    latent = places[row, place]
    order = latent.argsort(stable=True)
    row, latent = row[order], latent[order]
    used = torch.bincount(latent, minlength=one.count)
    number = torch.arange(len(latent)) - (used.cumsum(0) - used)[latent]
    some = number < LOOKED
    row, latent = row[some], latent[some]
    start = places[row]
    start = torch.where(start == latent[:, None], one.count, start)
    without = one.codes.search(part[row], most, start, latent)
    lost = one.codes.evidence(part[row], places[row]) - one.codes.evidence(part[row], without.places)
    mean = torch.zeros_like(one.rate).index_add(0, latent, lost) / used.clamp(1, LOOKED)
    return mean * used / len(x)


def best(x: Any, one: Dictionary, most: int, count: int) -> Tensor:
    """The `count` latents without which rows lose most. Of copies, which stand in for each other, the one that fires
    most is in the place of all."""
    value = worth(x, one, most)
    w = torch.nn.functional.normalize(one.w, dim=0)
    copy = (w.mT @ w > COPY) & (one.rate[:, None] > one.rate)  # (latent, rarer copy)
    value = torch.where(copy.any(1), value.max() + 1, value)
    return torch.where(copy.any(0), -1.0, value).argsort(descending=True)[:count].sort().values


def joined(x: Any, one: Dictionary, most: int, count: int) -> Dictionary:
    """With `count` more directions: what is left of the rows that are explained worst."""
    x = x[:ASKED]
    part = one.part(x)
    left, size = one.left(x, one.codes.mean(part, one.codes.search(part, most)))
    rows = size.topk(min(count, len(x))).indices
    w = torch.cat([one.w, left[rows].mT], 1)
    spread, rate = torch.cat([one.spread, one.spread.mean().expand(len(rows))]), one.rate.mean().expand(len(rows))
    return replace(one, w=w, spread=spread, rate=torch.cat([one.rate, rate]), moments=())


def objective(x: Any, one: Dictionary, most: int) -> Tensor:
    """() mean over rows of log p(x), over the supports that the search looks at."""
    part = one.part(x)
    near = one.codes.search(part, most)
    here = one.codes.evidence(part, near.places) + near.flat.logsumexp(1) - near.flat[:, -1]
    each, rest = one.rest(x)
    return (here + each).mean() + ((-one.rate).log1p().sum() + rest)


def untied(x: Any, one: Dictionary, most: int) -> Dictionary:
    """Directions to which what fires along with them is added, where that betters rows."""
    x = x[:ASKED]
    near = one.codes.search(one.part(x), most)
    z = one.codes.mean(one.part(x), near)
    fires = z > TRACE
    both, each = (fires.to(z.dtype).mT @ fires.to(z.dtype)), fires.sum(0).clamp_min(1)[:, None]
    tied = (both / each - fires.to(z.dtype).mean(0) > LIFT).fill_diagonal_(False)
    along = torch.zeros_like(both)  # multiple of the other (latent, other)
    for k, other in tied.nonzero().tolist():
        rows = fires[:, k]
        along[k, other] = (z[rows, other] / z[rows, k]).median()
    x = x[:COMPARED]
    best, found = objective(x, one, most), one
    some = tied.any(1).nonzero()
    for latents in [some[:, 0], *some] if len(some) else ():  # all together, then one by one
        w = found.w.clone()
        w[:, latents] += one.w @ along[latents].mT
        changed = replace(found, w=w, moments=())
        if (reached := objective(x, changed, most)) > best:
            found, best = changed, reached
            if len(latents) > 1:
                break
    return found
