"""What changed between the rows of pairs, given noise of latents that is read with errors: targets, then equations.

Errors of a network grow with how far the target moved, and so does the noise that is taken as not shared: the law of
`parts.paired_rows`, fitted by its likelihood, first of noise alone, then of latents by the equations told.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions import optimise
from pyrocrl.exact import curve_equations
from pyrocrl.exact.curve_equations import CurveEquations, Prior
from pyrocrl.parts.paired_rows import Changes

PAIRS, STEPS = 6_000, 60  # pairs of which the likelihood is, and steps of its search
LEAST = 0.01  # deviation of noise that is not shared
ROUNDS = 2  # of targets, and equations given these


class Found(NamedTuple):
    """changes: its fitted law; equations; chance (pair, latent + 1) of what changed, the last none."""

    changes: Changes
    equations: CurveEquations
    chance: Tensor


def found(before: Tensor, after: Tensor, prior: Prior, count: int, generator: torch.Generator) -> Found:
    """before, after: (pair, latent) noise of the latents, normal over rows before, in double precision."""
    pairs, d = before.shape
    zero = before.new_zeros(d, curve_equations.BENDS, d)
    start = before.new_tensor([0.0, 0.3, -3.0, -2.0])[:, None].expand(4, d).flatten()
    numbers = torch.cat([start, before.new_zeros(d + 1)])
    some = torch.randperm(pairs, generator=generator)[:PAIRS]
    few, noise = torch.cat([some, pairs + some]), torch.cat([before, after])
    numbers, chance = _targets(numbers, zero, noise, few)
    for _ in range(ROUNDS):
        equations = curve_equations.draw(after, chance[:, :d], prior, count, generator)
        numbers, chance = _targets(numbers, equations.mean, equations.latents(noise), few)
    return Found(_changes(numbers, equations.mean), equations, chance)


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
