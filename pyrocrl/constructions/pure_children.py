"""Where chains of `neuro_causal_fa` start: covers of the graph of dependences, and masks that explain rows better.

Of latents with a pure child each, children of the latent are what its pure child depends on, and pure children of
different latents are independent: a maximum independent set of the graph of dependences has one of each latent, and
the neighbourhoods of its members are the minimum edge clique cover (Markham et al. 2023). Among features of a latent a
pure child has the fewest neighbours, so that the set is found greedily.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

from pyrocrl.exact.one_pure import most_latents
from pyrocrl.exact.pure_masks import NEAR, Bools, Floats, MaskPosterior, Pure

LEVELS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03)  # of tests of dependence, of which starts are made
ANCHORED = (1e-4, 0.01)  # ... and of which a latent's children are told, from one that is to be pure
BLUR = 1.0  # neighbours by which a start's choice of pure children may be off
STARTS, BEST = 30, 4  # that are made, and of which the search goes on
ROUNDS = 20  # of moves of whole latents, at most
TRIED = 6  # flips, the most promising ones, of which one has to gain
HOPE, APART = 2.0, 10.0  # times what flips promise, and nats beyond that, from which a climb is given up
KEPT = 30  # other masks that are kept
TURNED, LEAST = 0.3, 0.1  # cosine of what is turned to be pure, and loading of a deviation from which it is one


def fisher_z(second: Floats, rows: int) -> Floats:
    """(feature, feature) deviations from 0 of correlations, by Fisher's transform; 0 on the diagonal."""
    unit = np.sqrt(np.maximum(np.diag(second), 1e-12))
    r = np.clip(second / unit / unit[:, None], -1 + 1e-12, 1 - 1e-12)
    out = np.arctanh(r) * np.sqrt(max(rows - 3, 1))
    np.fill_diagonal(out, 0.0)
    return out


def cover(dependent: Bools, latents: int, rng: np.random.Generator | None = None) -> Bools:
    """(feature, latent) mask: neighbourhoods of an independent set of features that depend on others, the largest
    `latents` of them.

    dependent: (feature, feature), of any two features. rng: where given, the choice is blurred (`BLUR`).
    """
    dependent = dependent | np.eye(len(dependent), dtype=bool)
    degree = dependent.sum(1).astype(float)
    if rng is not None:
        degree += BLUR * rng.exponential(size=len(degree))
    left, found = dependent.sum(1) > 1, []
    while left.any():
        p = int(np.where(left, degree, np.inf).argmin())
        found.append(dependent[p])
        left &= ~dependent[p]
    found = sorted(found, key=lambda column: -int(column.sum()))[: most_latents(len(dependent), latents)]
    out = np.zeros((len(dependent), latents), dtype=bool)
    for k, column in enumerate(found):
        out[:, k] = column
    return out


def linked(deviation: Floats, level: float) -> Bools:
    """(feature, feature) whether two are dependent, by tests at this level."""
    return np.abs(deviation) > stats.norm.isf(level / 2)


class Found(NamedTuple):
    """A mask (feature, latent) from which no single flip gains, and its log posterior."""

    value: float
    mask: Bools


def climb(posterior: MaskPosterior, mask: Bools, least: float = -math.inf) -> Found:
    """Where flips of one entry at a time lead to, while they gain; given up where the next flips would not bring it
    near `least`."""
    mask, answer = mask.copy(), posterior(mask)
    for _ in range(mask.size):
        order = np.argsort(-answer.flips, axis=None)[:TRIED]
        hoped = np.maximum(answer.flips.ravel()[order], 0.0).sum()
        if answer.value + HOPE * hoped < least - APART:
            break
        for place in order:
            j, k = np.unravel_index(int(place), mask.shape)
            if answer.flips[j, k] < -0.5:
                return Found(answer.value, mask)
            mask[j, k] ^= True
            if (new := posterior(mask)).value > answer.value + 1e-6:
                answer = new
                break
            mask[j, k] ^= True
        else:
            break
    return Found(answer.value, mask)


def search(posterior: MaskPosterior, latents: int, rng: np.random.Generator) -> list[Found]:
    """The best mask of so many latents at most that was found, first, and others near it that no flip improves.

    Covers of dependences at several levels are starts; then latents are left out, merged, put in another's place or
    added, at other features' neighbourhoods, and turned, two at a time, while that gains.
    """
    deviation = fisher_z(posterior.second, posterior.rows)
    blurred = [rng.choice(LEVELS) for _ in range(STARTS - len(LEVELS))]
    starts = [cover(linked(deviation, level), latents) for level in LEVELS]
    starts += [cover(linked(deviation, level), latents, rng) for level in blurred]
    starts += [np.zeros((len(deviation), latents), dtype=bool)]
    valued = sorted((Found(posterior(mask).value, mask) for mask in map(settled, starts)), key=lambda one: -one.value)
    found = {posterior.key(mask): climb(posterior, mask) for _, mask in valued[:BEST]}
    best = max(found.values(), key=lambda one: one.value)
    for _ in range(ROUNDS):
        before = best
        for mask in moves(posterior, best.mask, deviation):
            one = climb(posterior, mask, best.value)
            if one.value > best.value - NEAR:
                found[posterior.key(one.mask)] = one
            best = max(best, one, key=lambda each: each.value)
        if best.value <= before.value + 1e-6:
            break
    near = {posterior.key(one.mask): one for one in found.values() if one.value > best.value - NEAR}
    return sorted(near.values(), key=lambda one: -one.value)[:KEPT]


def settled(mask: Bools) -> Bools:
    """The mask without latents that lack a pure child or another child, one after another."""
    mask = mask.copy()
    while not (of := Pure.of(mask)).allowed:
        short = of.used & ~(of.pure.any(0) & (of.children > 1))
        mask[:, int(np.where(short, of.children, len(mask) + 1).argmin())] = False
    return mask


def moves(posterior: MaskPosterior, mask: Bools, deviation: Floats) -> Iterator[Bools]:
    """Masks in which latents are other ones: see `search`."""
    used = np.flatnonzero(mask.any(0))
    for k in used:
        new = mask.copy()
        new[:, k] = False
        yield settled(new)
    for k, m in itertools.combinations(used, 2):
        new = mask.copy()
        new[:, k] |= new[:, m]
        new[:, m] = False
        yield settled(new)
    free = np.flatnonzero(~mask.any(0)) if len(used) < most_latents(*mask.shape) else used[:0]
    for p, level in itertools.product(range(len(mask)), ANCHORED):
        column = linked(deviation, level)[p]
        column[p] = True
        if column.sum() < 2:
            continue
        for k in (*free[:1], *np.flatnonzero(mask[p])):  # beside others, or in the place of one
            new = mask.copy()
            new[p] = False
            new[:, k] = column
            yield settled(new)
    for turn in turned(posterior, mask):
        yield turn.mask


class Turn(NamedTuple):
    """A mask in which two latents are turned so that the features `pure` are pure children, which they are not in
    another; cosine: of their loadings there, 0 where they cancel; error: its deviation."""

    mask: Bools
    pure: tuple[int, int]
    cosine: float
    error: float


def turned(posterior: MaskPosterior, mask: Bools) -> Iterator[Turn]:
    """Allowed masks in which two latents are turned so that two of their features, that depend on no other latent, are
    pure children in place of others; where loadings of these are near enough to orthogonal."""
    unit = np.sqrt(np.diag(posterior.second))
    loadings, spread = posterior(mask).loadings / unit[:, None], np.zeros(mask.shape)
    opened = int(mask.sum())
    spread[mask] = np.diag(posterior.covariance(mask))[:opened]
    spread /= unit[:, None] ** 2
    for pair in itertools.combinations(np.flatnonzero(mask.any(0)), 2):
        two, others = list(pair), np.delete(mask, pair, 1).any(1)
        both = np.flatnonzero(mask[:, two].all(1) & ~others)
        length = np.linalg.norm(loadings[:, two], axis=1)
        for a, b in itertools.combinations(both, 2):
            along, across = loadings[a, two] / length[a], loadings[b, two] / length[b]
            cosine = float(along @ across)
            if abs(cosine) > TURNED:
                continue
            error = np.sqrt(spread[a, two].max() / length[a] ** 2 + spread[b, two].max() / length[b] ** 2)
            new = loadings[:, two] @ np.array([along, [-along[1], along[0]]]).T
            out = mask.copy()
            out[:, two] = np.abs(new) > LEAST
            out[a, two], out[b, two] = (True, False), (False, True)
            if Pure.of(out).allowed:
                yield Turn(out, (int(a), int(b)), cosine, float(error))


def turns_margin(posterior: MaskPosterior, mask: Bools) -> tuple[float, float, float, float]:
    """By how many nats a mask is more probable than any in which two latents are turned, see `turned`, the cosine of
    that one, its deviation, and how many entries it has more; infinite where there is none."""
    best, out = posterior(mask).value, (math.inf, math.inf, math.inf, math.inf)
    for turn in turned(posterior, mask):
        found = climb(posterior, turn.mask)
        if (found.mask[list(turn.pure)].sum(1) == 1).all():
            more = float(found.mask.sum()) - float(mask.sum())
            out = min(out, (best - found.value, turn.cosine, turn.error, more))
    return out
