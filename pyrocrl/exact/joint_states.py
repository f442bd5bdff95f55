"""Discrete latents behind blocks of Gaussian features: evidence of parents and graphs, given counts of joint states.

A joint state of latents with `sizes` (latent,) states is a row of digits (joint, latent). The features of a variable
have a level in each slot, a combination of the states of its parents, and noise of one size,

    level ~ N(0, 1 / (LEVEL precision)),   precision ~ Gamma(SHAPE, RATE),   parents ~ Bernoulli(odds) each,

and the joint law of the latents is that of tables given parents, cells of which have Dirichlet laws that together say
`weight` rows of each joint state: equivalent graphs have the same evidence (Heckerman, Geiger & Chickering 1995).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEVEL = 0.01  # prior precision of a level, in that of one row
SHAPE, RATE = 1.0, 0.01  # of the precision of a standardised feature


def digits(sizes: Sequence[int]) -> Ints:
    """(joint, latent) states of all latents, the last one's fastest."""
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), 1) if len(sizes) else np.zeros((1, 0), int)


def subsets(latents: int) -> NDArray[np.bool_]:
    """(set, latent): set s has latent k where bit k of s is set."""
    return (np.arange(2**latents)[:, None] >> np.arange(latents) & 1).astype(bool)


def slots(sizes: Sequence[int], parents: NDArray[np.bool_]) -> Ints:
    """(joint,) which combination of the parents' states each joint state has; parents: (latent,)."""
    states, code = digits(sizes), np.zeros(math.prod(sizes), dtype=np.int64)
    for k in np.flatnonzero(parents):
        code = code * sizes[k] + states[:, k]
    return code


def pooled(values: Floats, slot: Ints) -> Floats:
    """Sums of values (joint, ...) over the joint states of each slot."""
    out = np.zeros((slot.max() + 1, *values.shape[1:]))
    np.add.at(out, slot, values)
    return out


def parent_scores(
    count: Floats, first: Floats, second: Floats, variable: Ints, sizes: Sequence[int], odds: float
) -> Floats:
    """(variable, set) log evidence of each set of parents, levels and noise integrated out; but for a constant.

    count (joint,) rows, first (joint, feature) sums, second (feature,) sums of squares; variable (feature,) of each
    feature; odds: log odds of a parent.
    """
    members, out = subsets(len(sizes)), []
    for own in members:
        slot = slots(sizes, own)
        rows, sums = pooled(count, slot), pooled(first, slot)
        left = second - (sums**2 / (LEVEL + rows)[:, None]).sum(0)
        volume = 0.5 * np.log(LEVEL / (LEVEL + rows)).sum()
        each = volume - (SHAPE + 0.5 * count.sum()) * np.log(RATE + 0.5 * np.maximum(left, 0.0))
        out.append(np.bincount(variable, each) + odds * own.sum())
    return np.stack(out, 1)


def family_scores(count: Floats, sizes: Sequence[int], weight: float) -> Floats:
    """(latent, set) log evidence of each latent's table given each set of parents; sets that hold the latent itself are
    never read."""
    whole = []
    for own in subsets(len(sizes)):
        rows = pooled(count, slots(sizes, own))
        prior = weight * len(count) / len(rows)
        whole.append(float((gammaln(rows + prior) - gammaln(prior)).sum()))
    score, sets = np.array(whole), np.arange(2 ** len(sizes))
    return np.stack([score[sets | 1 << k] - score for k in range(len(sizes))])


def log_counts(count: Floats, weight: float) -> float:
    """Log evidence of counts (joint,) of rows under a free joint law, Dirichlet(weight)."""
    total = weight * len(count)
    same = gammaln(total) - gammaln(total + count.sum())
    return float(same + (gammaln(count + weight) - gammaln(weight)).sum())
