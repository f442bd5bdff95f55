"""Draws of an unmixing from a density that has several maxima, by annealed sequential Monte Carlo (torch).

Rows are lines through the origin, and all densities here are relative to their uniform law: the density of a posterior
is then the likelihood. A start is a mixture of normals, in gnomonic charts about maxima, and of wider t's about the
same; draws of it are weighed, and where the weights are too uneven, they are moved by Hamiltonian steps along
start^(1 - t) posterior^t, t from 0 to 1. From the uniform law itself, moved by rotations of single rows, the same walk
needs no maxima: that is the reference.

Neal (2001), Annealed importance sampling; Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B 68.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
WIDE, WIDE_SHARE, FREEDOM = 2.0, 0.25, 5.0  # the t's scale against the normal's, their share, degrees of freedom


class Effort(NamedTuple):
    """draws: how many. weighed: draws of the start, from which they are taken. enough: the share of effective draws
    below which an intermediate density is put in. steps, rounds: Hamiltonian steps a move, moves an intermediate
    density. last: moves at the end. most: intermediate densities, at most."""

    draws: int = 256
    weighed: int = 1024
    enough: float = 0.3
    steps: int = 6
    rounds: int = 1
    last: int = 3
    most: int = 30


EFFORT = Effort()


class Draws(NamedTuple):
    """rows (draw, d, d), equally weighted; log_evidence (); effective: share of effective draws among those of the
    start, before any was moved."""

    rows: Tensor
    log_evidence: Tensor
    effective: float


class Maxima(NamedTuple):
    """A mixture about maxima: chart (maximum, d, d, d), bases that begin with the rows there; root (maximum, size,
    size), Cholesky factors of covariances of the gnomonic coordinates; log_weight (maximum,)."""

    chart: Tensor
    root: Tensor
    log_weight: Tensor

    def rows(self, place: Tensor, white: Tensor) -> Tensor:
        """Rows (d, d) at coordinates (size,) in units of a maximum's root."""
        root, chart = (own.index_select(0, place[None])[0] for own in (self.root, self.chart))
        u = root @ white
        d = self.chart.shape[-1]
        rows = (torch.cat([torch.ones_like(u[:d, None]), u.view(d, d - 1)], -1)[:, None, :] @ chart)[:, 0]
        return rows / rows.norm(dim=-1, keepdim=True)

    def white(self, rows: Tensor) -> Tensor:
        """(maximum, size) coordinates of rows (d, d) in the chart and units of each maximum."""
        u = torch.func.vmap(lambda chart: tangents(rows, chart))(self.chart)
        return torch.linalg.solve_triangular(self.root, u[..., None], upper=False).squeeze(-1)

    def parts(self, rows: Tensor, wide: bool = True) -> Tensor:
        """(maximum, 2) log densities of normal and t, weights included, at rows (d, d); wide=False: (maximum, 1), of
        the normals alone."""
        white = self.white(rows)
        size, square = white.shape[-1], white.square().sum(-1)
        volume = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + self.log_uniform(rows)
        normal = -0.5 * square - 0.5 * size * math.log(2 * math.pi)
        if not wide:
            return (normal + self.log_weight - volume)[:, None]
        far = torch.log1p(square / (FREEDOM * WIDE**2)) * (-0.5 * (FREEDOM + size))
        far = far + math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2)
        far = far - 0.5 * size * math.log(FREEDOM * math.pi) - size * math.log(WIDE)
        both = torch.stack([normal + math.log1p(-WIDE_SHARE), far + math.log(WIDE_SHARE)], -1)
        return both + (self.log_weight - volume)[:, None]

    def log_uniform(self, rows: Tensor) -> Tensor:
        """(maximum,) log density of uniform lines in each chart's coordinates, at rows (d, d)."""
        d = rows.shape[-1]
        cosine = torch.einsum("mri,ri->mr", self.chart[:, :, 0], rows).square().clamp_min(1e-24)
        return (math.lgamma(d / 2) - d / 2 * math.log(math.pi) + d / 2 * cosine.log()).sum(-1)

    def log_density(self, rows: Tensor, wide: bool = True) -> Tensor:
        """Against uniform lines, at rows (d, d)."""
        return self.parts(rows, wide).flatten().logsumexp(0)

    def sample(self, count: int, generator: torch.Generator, wide_share: float = WIDE_SHARE) -> Tensor:
        """(count, d, d) rows, at quantiles of the weights so that no maximum is missed."""
        like, size = self.root, self.root.shape[-1]
        quantile = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        place = _inverse(self.log_weight, quantile.to(like))
        white = torch.randn(count, size, generator=generator, dtype=like.dtype).to(like.device)
        wide = torch.rand(count, generator=generator).to(like) < wide_share
        square = torch.randn(count, int(FREEDOM), generator=generator, dtype=like.dtype).to(like.device).square()
        scale = torch.where(wide, WIDE / (square.sum(1) / FREEDOM).sqrt(), 1.0)
        return torch.func.vmap(self.rows)(place, scale[:, None] * white)


def tangents(rows: Tensor, chart: Tensor) -> Tensor:
    """(..., d (d - 1)) gnomonic coordinates of rows (..., d, d) in a chart (d, d, d)."""
    along = torch.einsum("rbi,...ri->...rb", chart, rows)
    first = along[..., :1]
    return (along[..., 1:] / torch.where(first.abs() < 1e-12, 1e-12, first)).flatten(-2)


def _inverse(log_weight: Tensor, quantile: Tensor) -> Tensor:
    """Places at these quantiles of a distribution over places."""
    below = (log_weight - log_weight.logsumexp(0)).exp().cumsum(0)
    return torch.searchsorted(below, quantile).clamp_max(len(log_weight) - 1)


def _next(log_ratio: Tensor, at: float, enough: float) -> float:
    """The largest t whose weights leave this share of effective draws."""

    def left(t: float) -> float:
        weight = ((t - at) * log_ratio).softmax(0)
        return float(1.0 / (weight.square().sum() * len(weight)))

    if left(1.0) >= enough:
        return 1.0
    low, high = at, 1.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if left(middle) >= enough else (low, middle)
    return max(low, at + 1e-6)


def _uniform(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(count, generator=generator, dtype=like.dtype).to(like.device)


def _walk(
    log_target: Objective,
    log_start: Objective,
    rows: Tensor,
    move: Callable[[Tensor, float, float], tuple[Tensor, float]],
    effort: Effort,
    generator: torch.Generator,
) -> Draws:
    """From draws of the start (draw, d, d) to draws of the target. move: rows, t and a step's length -> rows that were
    moved with start^(1 - t) target^t left as it is, and the share of moves that were taken."""

    def ratio(rows: Tensor) -> Tensor:
        target = torch.func.vmap(log_target, chunk_size=512)(rows)
        return (target - torch.func.vmap(log_start)(rows)).nan_to_num(nan=-1e300, neginf=-1e300)

    at, evidence, effective, length = 0.0, rows.new_zeros(()), 1.0, 1.0
    for stage in range(effort.most):
        log_ratio = ratio(rows)
        new = 1.0 if stage == effort.most - 1 else _next(log_ratio, at, effort.enough)
        weight = (new - at) * log_ratio
        evidence = evidence + weight.logsumexp(0) - math.log(len(weight))
        if stage == 0:
            share = log_ratio.softmax(0)
            effective = float(1.0 / (share.square().sum() * len(share)))
        quantile = (torch.arange(effort.draws).to(rows) + _uniform(1, generator, rows)) / effort.draws
        rows, at = rows[_inverse(weight, quantile)], new
        if stage == 0 and at == 1.0:
            break  # they are all but exact as they are
        for _ in range(effort.last if at == 1.0 else effort.rounds):
            rows, taken = move(rows, at, length)
            length = min(4.0, max(0.02, length * math.exp(taken - 0.7)))
        if at == 1.0:
            break
    shuffled = torch.randperm(len(rows), generator=generator).to(rows.device)
    return Draws(rows[shuffled], evidence, effective)


def of_maxima(start: Maxima, log_evidence: Tensor, generator: torch.Generator, effort: Effort = EFFORT) -> Draws:
    """Draws of the normals alone, for rows too many for more: `log_evidence` is then Laplace's."""
    rows = start.sample(effort.draws, generator, 0.0)
    rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    return Draws(rows, log_evidence, 1.0)


def about_maxima(log_target: Objective, start: Maxima, generator: torch.Generator, effort: Effort = EFFORT) -> Draws:
    """Draws of the density exp(log_target(rows)) against uniform lines, from a mixture about its maxima."""

    def density(white: Tensor, place: Tensor, at: Tensor) -> Tensor:
        rows = start.rows(place, white)
        parts = start.parts(rows).logsumexp(-1)  # the place is a part of what is drawn, with its share
        log_start = parts.logsumexp(0)
        own = (parts + start.log_uniform(rows)).gather(0, place[None])[0]
        return at * (log_target(rows) - log_start) + own

    def move(rows: Tensor, at: float, length: float) -> tuple[Tensor, float]:
        count, size = len(rows), start.root.shape[-1]
        parts = torch.func.vmap(lambda r: start.parts(r).logsumexp(-1))(rows)  # (draw, maximum)
        below = parts.softmax(-1).cumsum(-1)
        place = (below < _uniform(count, generator, rows)[:, None]).sum(-1).clamp_max(len(start.log_weight) - 1)
        white = torch.func.vmap(start.white)(rows)[torch.arange(count, device=rows.device), place]
        t = torch.full((count,), at).to(rows)
        slope = torch.func.vmap(torch.func.grad_and_value(density))
        step = length * size**-0.25 * (0.7 + 0.6 * _uniform(count, generator, rows))[:, None]
        speed = torch.randn(count, size, generator=generator, dtype=rows.dtype).to(rows.device)
        gradient, value = slope(white, place, t)
        energy, position = value - 0.5 * speed.square().sum(-1), white
        for _ in range(effort.steps):
            speed = speed + 0.5 * step * gradient
            position = position + step * speed
            gradient, value = slope(position, place, t)
            speed = speed + 0.5 * step * gradient
        gain = (value - 0.5 * speed.square().sum(-1) - energy).nan_to_num(nan=-torch.inf)
        taken = _uniform(count, generator, rows).log() < gain
        moved = torch.func.vmap(start.rows)(place, torch.where(taken[:, None], position, white))
        return moved, float(taken.double().mean())

    rows = start.sample(effort.weighed, generator)
    return _walk(log_target, start.log_density, rows, move, effort, generator)


PATIENT = Effort(enough=0.7, rounds=16, last=40, most=400)
LEAST = 1024  # draws, fewer of which would miss maxima


def from_the_prior(
    log_target: Objective, d: int, count: int, generator: torch.Generator, effort: Effort = PATIENT
) -> Draws:
    """Draws (count, d, d) of the same density from uniform lines: nothing is known of its maxima. Rows are turned one
    at a time, by angles of all sizes."""
    effort = effort._replace(draws=max(count, LEAST))

    def move(rows: Tensor, at: float, length: float) -> tuple[Tensor, float]:
        value = at * torch.func.vmap(log_target, chunk_size=512)(rows)
        row = torch.randint(d, (len(rows),), generator=generator).to(rows.device)
        size = 10.0 ** (-2.5 * _uniform(len(rows), generator, rows)[:, None])
        turn = size * torch.randn(len(rows), d, generator=generator, dtype=rows.dtype).to(rows.device)
        every = torch.arange(len(rows), device=rows.device)
        tried = rows.clone()
        turned = rows[every, row] + turn
        tried[every, row] = turned / turned.norm(dim=-1, keepdim=True)
        new = (at * torch.func.vmap(log_target, chunk_size=512)(tried)).nan_to_num(nan=-torch.inf)
        taken = _uniform(len(rows), generator, rows).log() < new - value
        return torch.where(taken[:, None, None], tried, rows), float(taken.double().mean())

    rows = torch.randn(effort.draws, d, d, generator=generator, dtype=torch.float64)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    found = _walk(log_target, lambda one: 0.0 * one.sum(), rows, move, effort, generator)
    return found._replace(rows=found.rows[:count])


def on_a_grid(log_target: Objective, generator: torch.Generator, count: int, points: int = 400) -> Draws:
    """Draws of the same density of two rows, by quadrature over both angles."""
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
    both = torch.cartesian_prod(angle, angle)

    def rows_at(angles: Tensor) -> Tensor:
        return torch.stack([angles.cos(), angles.sin()], -1)

    value = torch.func.vmap(log_target, chunk_size=4096)(rows_at(both)).nan_to_num(nan=-torch.inf)
    quantile = (torch.arange(count).to(both) + torch.rand(1, generator=generator).to(both)) / count
    chosen = both[_inverse(value, quantile)][torch.randperm(count, generator=generator)]
    jitter = (torch.rand(count, 2, generator=generator).to(both) - 0.5) * (math.pi / points)
    return Draws(rows_at(chosen + jitter), value.logsumexp(0) - 2 * math.log(points), 1.0)
