"""Pairs of rows between which one latent's noise was set anew: their differences lie on lines, one for each latent.

    y_i = A eps_i,  y'_i = A eps'_i;  eps'_ik = eps_ik + unshared_k N(0, 1) for k other than the latent t_i that changed

Differences y' - y are along column t_i of A (Brehmer et al. 2022, linear mixing). `lines` finds the directions among
the differences themselves; `fitted` goes on from there by expectation-maximisation: rows n_k of N = A^-1 in turn, each
the maximum of its own quadratic form and log |det N| (iterative projection, Ono 2011).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.exact.regression import quadratic

FLOOR = 1e-4  # least deviation of noise that is not shared: smaller ones are told from none by rounding alone
ANGLES = (1e-3, 0.03, 0.1, 0.2)  # sines within which two differences are taken to be along one line
CENTRES = 1_000  # differences among which directions are looked for
ROWS = 20_000  # pairs that expectation-maximisation looks at
TURNS, CLOSE = 60, 1e-8  # of it, and the gain in nats a pair at which it ends


class Noise(NamedTuple):
    """unmixing (latent, latent) N of eps = N y, whose rows have variance 1 over the rows before; unshared (latent,);
    total (latent, latent) T, level, scale (latent,): (T eps')_k ~ N(level_k, scale_k^2) where k changed, T_kk = 1;
    share (latent + 1,) of pairs by what changed, the last none; value (): log-density, nats a pair."""

    unmixing: Tensor
    unshared: Tensor
    total: Tensor
    level: Tensor
    scale: Tensor
    share: Tensor
    value: Tensor

    def log_joint(self, before: Tensor, after: Tensor) -> Tensor:
        """(pair, latent + 1) log p(y' | y, what changed) p(what changed), up to log |det N|."""
        eps, moved = before @ self.unmixing.mT, after @ self.unmixing.mT
        keep = _log_normal(moved - eps, self.unshared)
        own = _log_normal(moved @ self.total.mT - self.level, self.scale)
        total = keep.sum(1, keepdim=True)
        return torch.cat([total - keep + own, total], 1) + self.share.log()


def _log_normal(value: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * (value / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def fitted(before: Tensor, after: Tensor, latents: int, generator: torch.Generator) -> Noise:
    """The best of the fits that begin with lines within each of `ANGLES`, at first with T = 1; before, after: (pair,
    latent), white over the rows before."""
    pick = torch.randperm(len(before), generator=generator)[:ROWS]
    y, moved = before[pick], after[pick]
    found = []
    for angle in ANGLES:
        axes, covered = lines(moved - y, latents, angle, generator)
        found.append(_maximised(y, moved, _start(y, axes, angle)))
        if covered > 0.9 and found[-1].value > max(one.value for one in found) - 1e-6 and len(found) > 1:
            break
    return _maximised(y, moved, max(found, key=lambda one: float(one.value)), with_effects=True)


def lines(difference: Tensor, latents: int, angle: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """((latent, latent) columns along the lines that most differences (pair, latent) are within a sine `angle` of, one
    after another, then any columns across those; the share of the longer differences that have a line)."""
    length = difference.norm(dim=1)
    longer = torch.nonzero(length > 0.5 * length.median())[:, 0]  # directions of short ones are noise
    pick = longer[torch.randperm(len(longer), generator=generator)[:CENTRES]]
    unit = difference[pick] / length[pick, None].clamp_min(1e-300)
    near = (unit @ unit.mT).square() > 1 - angle**2
    free, columns = torch.ones(len(unit), dtype=torch.bool), []
    for _ in range(latents):
        count = (near & free).sum(1) * free
        if not len(count) or count.max() < 2:
            break
        members = near[count.argmax()] & free
        own = unit[members]
        columns.append(torch.linalg.eigh(own.mT @ own)[1][:, -1])
        free &= (unit @ columns[-1]).square() <= 1 - (1.5 * angle) ** 2
    covered = 1.0 - float(free.double().mean()) if len(unit) else 0.0
    found = torch.stack(columns, 1) if columns else difference.new_zeros(difference.shape[1], 0)
    noise = torch.randn(len(found), latents - found.shape[1], generator=generator, dtype=found.dtype)
    across = noise - found @ torch.linalg.pinv(found) @ noise if found.shape[1] else noise
    return torch.cat([found, across], 1), covered


def _start(before: Tensor, axes: Tensor, angle: float) -> Noise:
    """Columns of A along `axes` (latent, latent)."""
    one = torch.ones(len(axes), dtype=before.dtype)
    unmixing = torch.linalg.pinv(axes)
    unmixing = unmixing / (before @ unmixing.mT).std(0, correction=0)[:, None]
    share = torch.full((len(axes) + 1,), 1.0 / (len(axes) + 1), dtype=before.dtype)
    unshared, low = (angle * one).clamp_min(FLOOR), one.new_tensor(-torch.inf)
    return Noise(unmixing, unshared, torch.diag_embed(one), 0 * one, 2 * one, share, low)


def _maximised(before: Tensor, after: Tensor, noise: Noise, with_effects: bool = False) -> Noise:
    """Expectation-maximisation from there; with_effects: of T as well."""
    pairs, latents = before.shape
    difference = after - before
    one = torch.ones(latents, dtype=before.dtype)
    noise = noise._replace(value=noise.value - torch.inf)
    natural = before - before.mean(0)
    spread = natural.mT @ natural
    for _ in range(TURNS):
        joint = noise.log_joint(before, after)
        log_p = joint.logsumexp(1)
        chance = (joint - log_p[:, None]).exp()  # (pair, latent + 1)
        eps = natural @ noise.unmixing.mT
        inside = _log_normal(eps, one).sum(1) + 2 * torch.linalg.slogdet(noise.unmixing)[1]
        value = (log_p + inside).mean()
        if not value - noise.value > CLOSE:
            break
        noise = noise._replace(value=value)
        count = chance.sum(0)
        products = torch.stack(
            [(difference * c[:, None]).mT @ difference for c in chance.T]
        )  # (target, latent, latent)
        kept = products.sum(0) - products[:latents]  # of the pairs in which a latent did not change
        rows, unshared = noise.unmixing.clone(), noise.unshared
        for k in range(latents):
            curvature = spread + kept[k] / unshared[k].square()
            row = torch.linalg.solve(curvature, torch.linalg.inv(rows)[:, k])
            rows[k] = row * ((2 * pairs - count[k]) / (row @ curvature @ row)).sqrt()
        squares = quadratic(rows, kept)
        moved = after @ rows.mT
        weight = chance[:, :latents] / count[:latents].clamp_min(1e-12)
        total = _effects(moved, chance) if with_effects else noise.total
        own = moved @ total.mT
        level = (weight * own).sum(0)
        scale = (weight * (own - level).square()).sum(0).sqrt().clamp_min(1e-3)
        noise = Noise(
            rows,
            (squares.clamp_min(0) / (pairs - count[:latents]).clamp_min(1.0)).sqrt().clamp_min(FLOOR),
            total,
            torch.where(count[:latents] > 1, level, 0.0),
            torch.where(count[:latents] > 1, scale, 2.0),
            (count + 1.0) / (pairs + latents + 1.0),
            noise.value,
        )
    return noise


def _effects(moved: Tensor, chance: Tensor) -> Tensor:
    """(latent, latent) T, by the regression of each eps'_k (pair, latent) on all others where k changed."""
    latents = moved.shape[1]
    eye = torch.eye(latents, dtype=moved.dtype)
    total = eye.clone()
    for k in range(latents):
        weight = chance[:, k, None]
        apart = moved - (weight * moved).sum(0) / weight.sum().clamp_min(1e-12)
        gram = (weight * apart).mT @ apart + eye  # a ridge of one pair
        others = [j for j in range(latents) if j != k]
        total[k, others] = -torch.linalg.solve(gram[others][:, others], gram[others, k])
    return total


def draws(
    noise: Noise, before: Tensor, after: Tensor, chance: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """(draw, latent, latent) draws of N about its maximum: (I + E) N, with E normal by the curvature there.

    chance: (pair, latent + 1), of what changed. E_kl and E_lk depend on each other, by log |det N|, and on no other
    entries, as differences and noise of different latents are all but uncorrelated.
    """
    pairs, latents = before.shape
    eps = before @ noise.unmixing.mT
    square = (after @ noise.unmixing.mT - eps).square()
    changed = chance[:, :latents]
    kept = square.sum(0) - changed.mT @ square  # (k, l): of differences along l, over the pairs in which k was kept
    curvature = pairs * eps.var(0, correction=0) + kept / noise.unshared[:, None].square()
    own = 2 * pairs - changed.sum(0)
    volume = 0.5 * (own[:, None] + own)
    alike = (volume / (curvature * curvature.mT).sqrt()).clamp_max(0.999)  # 1 where a rotation of two latents is free
    first, second = torch.randn(2, count, latents, latents, generator=generator, dtype=eps.dtype)
    upper = first.triu(1)
    lower = -alike * upper.mT + (1 - alike.square()).sqrt() * second.tril(-1)
    deviation = (curvature * (1 - alike.square())).rsqrt()
    diagonal = torch.diag_embed((curvature.diagonal() + own).rsqrt() * first.diagonal(dim1=1, dim2=2))
    eye = torch.eye(latents, dtype=eps.dtype)
    return (eye + deviation * (upper + lower) + diagonal) @ noise.unmixing
