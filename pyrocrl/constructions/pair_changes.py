"""What changed between the rows of pairs, given noise of latents that is read with errors: targets, then equations.

Errors of a network grow with how far the target moved, and so does the noise that is taken as not shared: the law of
`parts.paired_rows`, fitted by its likelihood, first of noise alone, then of latents by the equations told. A part of
these errors is a function of another latent, and would be taken for an equation: pairs in which that one was set anew
show how much it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions import optimise
from pyrocrl.exact import curve_equations
from pyrocrl.exact.curve_equations import BENDS, CurveEquations, Prior, bends
from pyrocrl.parts.paired_rows import Changes

PAIRS, STEPS = 6_000, 60  # pairs of which the likelihood is, and steps of its search
LEAST = (
    0.001  # deviation of noise that is not shared: of none, a latent that hardly moved is told from one that did not
)
ROUNDS = 2  # of targets, and equations given these
BEYOND = 2.0  # times what noise goes with where it is usual, it does where a latent was set: its noise is larger there
RIDGE = 1e-3


class Found(NamedTuple):
    """changes: its fitted law; equations; chance (pair, latent + 1) of what changed, the last none."""

    changes: Changes
    equations: CurveEquations
    chance: Tensor


def found(
    before: Tensor, after: Tensor, edge_probability: float, slab: float, count: int, generator: torch.Generator
) -> Found:
    """before, after: (pair, latent) noise of the latents, normal over rows before, in double precision;
    edge_probability, slab: of `curve_equations.Prior`, whose error is that of this noise."""
    pairs, d = before.shape
    zero = before.new_zeros(d, curve_equations.BENDS, d)
    start = before.new_tensor([0.0, 0.3, -3.0, -2.0])[:, None].expand(4, d).flatten()
    numbers = torch.cat([start, before.new_zeros(d + 1)])
    some = torch.randperm(pairs, generator=generator)[:PAIRS]
    few, noise = torch.cat([some, pairs + some]), torch.cat([before, after])
    (numbers, chance), z = _targets(numbers, zero, noise, few), noise
    for _ in range(ROUNDS):
        first, second = z.chunk(2)
        other = goes_with(after - before, first, second, chance[:, :d])
        prior = Prior(edge_probability, slab, BEYOND * other)
        equations = curve_equations.draw(after, chance[:, :d], prior, count, generator)
        z = equations.latents(noise)
        numbers, chance = _targets(numbers, equations.mean, z, few)
    return Found(_changes(numbers, equations.mean), equations, chance)


def goes_with(moved: Tensor, before: Tensor, after: Tensor, chance: Tensor) -> Tensor:
    """(latent,) deviation of what noise of each latent, as it is read, has of another latent, the one of which it has
    most: where it is read well, how far it moved (pair, latent) does not go with curves of the latent that was set.
    before, after: latents; chance: (pair, latent)."""
    d = moved.shape[1]
    out = moved.new_zeros(d, d)
    for j in range(d):
        there = bends(after[:, j])
        design, weight = there - bends(before[:, j]), chance[:, j : j + 1]
        ridge = RIDGE * torch.eye(BENDS).to(design)
        told = torch.linalg.solve((weight * design).mT @ design + ridge, (weight * design).mT @ moved)
        curve = there @ told  # (pair, latent)
        share = weight / weight.sum().clamp_min(RIDGE)
        square = (share * (curve - (share * curve).sum(0)).square()).sum(0)
        out[j] = torch.where(torch.arange(d, device=moved.device) == j, 0.0, square)
    return out.amax(0).sqrt()


def _targets(numbers: Tensor, curve: Tensor, z: Tensor, few: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of most likelihood in some rows z (2 pair, latent), and chances (pair, latent + 1) in all."""
    own, at = z[few], _places(len(few) // 2)
    numbers = optimise.descend(lambda v: -_log_joint(v, curve, own, *at).logsumexp(-1).mean(), numbers, STEPS)
    return numbers, _log_joint(numbers, curve, z, *_places(len(z) // 2)).softmax(-1)


def _places(pairs: int) -> tuple[Tensor, Tensor]:
    """Of rows before, then their partners: position of the row before, and whether a row follows one."""
    own = torch.arange(pairs)
    return torch.cat([own, own]), torch.arange(2 * pairs) >= pairs


def _changes(numbers: Tensor, curve: Tensor) -> Changes:
    level, scale, still, moving = numbers[: 4 * curve.shape[-1]].unflatten(0, (4, -1))
    return Changes(curve, level, scale.exp(), LEAST + still.exp(), moving.exp())


def _log_joint(numbers: Tensor, curve: Tensor, z: Tensor, place: Tensor, follows: Tensor) -> Tensor:
    """(pair, latent + 1)"""
    share = numbers[4 * curve.shape[-1] :].log_softmax(0)
    return (_changes(numbers, curve).log_joint(z, place, follows, follows) + share)[follows]
