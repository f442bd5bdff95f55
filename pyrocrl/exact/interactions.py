"""Probabilities of binary interactions in regions of actions, and the evidence of how they vary.

    rate_k ~ Uniform(LEAST, 1 - LEAST);  chance_gk ~ Beta(rate_k, 1 - rate_k),   region g, latent k

An action acts on a latent with the probability `chance` of its region; the ratio of the row's two densities, with and
without, is all that the row says of it. Integrals over chance = sin^2(t) are sums over t, evenly spaced.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

POINTS = 64  # of chance
LEAST, RATES = 0.01, 98  # of rates, and how many are tried
FEWEST = 20  # rows of a region, at least, of actions that are not the same number again and again
MOVES = 10  # of regions' centres
FAR = 1e9  # where regions are that no action is near


class Regions(NamedTuple):
    """Parts of the space of actions: what is nearest to each centre (region, action), in units reach (action,)."""

    centre: Tensor
    reach: Tensor

    def of(self, actions: Tensor) -> Tensor:
        """(rows,) region of each of these actions (rows, action)."""
        return torch.cdist(actions / self.reach, self.centre / self.reach).argmin(1)


def regions(actions: Tensor, most: int) -> Regions:
    """One region for each value of actions (rows, action), if there are `most` at most; else halves of halves, at
    medians of one number after another, whose centres then move to their middles (Lloyd 1982). Halves of one stand side
    by side."""
    reach = actions.std(0).clamp_min(1e-12)
    values = actions.unique(dim=0)
    if len(values) > most:
        parts, axis = [actions], 0
        while 2 * len(parts) <= most and len(actions) >= 2 * FEWEST * len(parts):
            halves = []
            for part in parts:
                order = part[:, axis % part.shape[1]].argsort(stable=True)
                halves += [part[order[: len(part) // 2]], part[order[len(part) // 2 :]]]
            parts, axis = halves, axis + 1
        values = torch.stack([part.mean(0) for part in parts])
        for _ in range(MOVES):
            own = Regions(values, reach).of(actions)
            count = torch.bincount(own, minlength=len(values))
            total = torch.zeros_like(values).index_add(0, own, actions)
            values = torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], values)
    centre = torch.full((most, actions.shape[1]), FAR, dtype=actions.dtype) * reach
    centre[: len(values)] = values
    return Regions(centre, reach)


def log_counts(yes: Tensor, no: Tensor, rate: Tensor) -> Tensor:
    """(..., latent) log-probability of so many rows of each region that were acted on, `yes`, and were not, `no`
    (region, latent) both, chance summed out; rate (..., latent)."""
    own = rate[..., None, :]
    log = (yes + own).lgamma() + (no + 1 - own).lgamma() - (yes + no + 1).lgamma()
    return log.sum(-2) - len(yes) * (rate.lgamma() + (1 - rate).lgamma())


def rates(yes: Tensor, no: Tensor) -> tuple[Tensor, Tensor]:
    """Rates (grid,) and their log-probabilities (grid, latent), given such counts; each is the middle of a piece."""
    step = (1 - 2 * LEAST) / RATES
    grid = LEAST + step * (torch.arange(RATES, dtype=yes.dtype) + 0.5)
    return grid, log_counts(yes, no, grid[:, None].expand(-1, yes.shape[1]))


def log_weights(rate: Tensor) -> Tensor:
    """(latent, point) log-probabilities of pieces of Beta(rate, 1 - rate) about points of chance; rate (latent,)."""
    edges = np.sin(np.linspace(0, np.pi / 2, POINTS + 1)) ** 2
    own = rate.cpu().numpy()[:, None]
    below = special.betainc(own, 1 - own, edges)
    return torch.as_tensor(np.log(np.maximum(np.diff(below, axis=1), 1e-300))).to(rate)


class Patterns(NamedTuple):
    """Log evidence of a probability of its own in each region: varies (latent,) less that of one for all of them; apart
    (latent, latent) of each two latents less that of one for both, or of one of them when the other does not; infinite
    on the diagonal."""

    varies: Tensor
    apart: Tensor


def patterns(log_ratio: Tensor, region: Tensor, count: int, rate: Tensor) -> Patterns:
    """log_ratio (rows, latent): of a row's density where the action acts on a latent to that where not; region (rows,)
    of `count`; rate (latent,). Which regions have probabilities of their own is open: all, each two that were halves of
    one, or four, and so on."""
    t = math.pi * (torch.arange(POINTS, dtype=log_ratio.dtype) + 0.5) / (2 * POINTS)
    log_yes, log_no = 2 * t.sin().log(), 2 * t.cos().log()
    latents, levels = log_ratio.shape[1], (count - 1).bit_length() + 1
    log, weight = log_ratio.new_zeros(2 ** (levels - 1), latents, POINTS), log_weights(rate)
    for k in range(latents):
        each = torch.logaddexp(log_no, log_yes + log_ratio[:, k, None])
        log[:, k] = log[:, k].index_add(0, region, each)

    def total(parts: Tensor, weights: Tensor) -> Tensor:
        """(...) of parts (region, ..., point), weights (..., point)."""
        each = []
        for _ in range(levels):
            each.append((parts + weights).logsumexp(-1).sum(0))
            parts = parts.unflatten(0, (-1, 2)).sum(1) if len(parts) > 1 else parts
        return torch.stack(each).logsumexp(0) - math.log(levels)

    own, apart = total(log, weight), log_ratio.new_full((latents, latents), math.inf)
    for k in range(latents):
        for j in range(k):
            same, turned = log[:, j] + log[:, k], log[:, j] + log[:, k].flip(-1)
            both = [total(same, weight[j]), total(same, weight[k])]
            both += [total(turned, weight[j]), total(turned, weight[k].flip(-1))]
            apart[j, k] = apart[k, j] = own[j] + own[k] - torch.stack(both).max()
    return Patterns(own - (log.sum(0).logsumexp(-1) - math.log(POINTS)), apart)
