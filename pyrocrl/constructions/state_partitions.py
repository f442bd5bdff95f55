"""Discrete latents from the components of variables' mixtures: how many, of how many states, and whose parents.

The components of a variable alone are the combinations of its parents' states. Which components of all variables occur
together is a list of tuples, and each variable a partition of it. Where all joint states occur, the finest partition
that those of two variables refine (components linked by tuples) is that of the parents that they have in common; so
under the subset condition the coarsest ones of more than one block, among all that come about in this way, are the
latents: their blocks are states, and a variable has the latents as parents whose partitions its own refines. Numbers of
components of sets of variables, whose logarithms Kivva, Rajendran, Ravikumar & Aragam (2021) decompose, are
those of joint refinements of these partitions.

Counts err, so partitions are candidates, with links of few rows left out or not: sets of them are ranked by evidence,
given the rows' tuples, and the best ones compared by BIC after expectation-maximisation with levels tied.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pyrocrl.constructions import joint_components
from pyrocrl.constructions.joint_components import LEAST, Mixture, expect
from pyrocrl.exact.joint_states import digits, log_counts, parent_scores, pooled, slots, subsets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
FAINT = (0.0, 0.03, 0.1)  # share of the smaller of two components from which they are linked
MOST_TUPLES, MOST_PARTITIONS, MOST_CANDIDATES = 400, 60, 11
SAME = 0.97  # share of the rows in which two partitions are alike, from which they are one
TRIED = 6  # sets of latents that are compared after all


class Found(NamedTuple):
    """sizes of the latents, parents (variable, latent); share (rows, joint) of each row, weight (joint,), mean (joint,
    feature), variance (feature,); bic. latents may be none."""

    sizes: tuple[int, ...]
    parents: Bools
    share: Floats
    weight: Floats
    mean: Floats
    variance: Floats
    bic: float


class Tuples(NamedTuple):
    """Which components of the variables occur together: label (tuple, variable), share (rows, tuple)."""

    label: Ints
    share: Floats


# -- tuples of components --------------------------------------------------------------------------------------


def tuples(x: Floats, variable: Ints, most: int) -> Tuples:
    """Components of each variable by itself, and how they go together: weights of the tuples in which rows fall, at
    their most probable, by expectation-maximisation (a concave problem)."""
    each = [joint_components.components(x[:, variable == v], most) for v in range(variable.max() + 1)]
    label = np.stack([mixture.share.argmax(1) for mixture in each], 1)
    kinds, count = np.unique(label, axis=0, return_counts=True)
    kinds = kinds[np.argsort(-count, kind="stable")[:MOST_TUPLES]]
    mean, variance = np.empty((len(kinds), x.shape[1])), np.empty(x.shape[1])
    for v, mixture in enumerate(each):
        mean[:, variable == v], variance[variable == v] = mixture.mean[kinds[:, v]], mixture.variance
    weight = np.full(len(kinds), 1 / len(kinds))
    for step in range(60):
        share = expect(x, weight, mean, variance)[0]
        weight = share.mean(0)
        if step % 10 == 9 and (kept := weight * len(x) > min(step // 10, 4)).any():
            kinds, mean, weight = kinds[kept], mean[kept], weight[kept] / weight[kept].sum()
    return Tuples(kinds, expect(x, weight, mean, variance)[0])


def tuples_of_mixture(x: Floats, variable: Ints, most: int) -> Tuples:
    """Components of all variables at once, those of each variable merged where its evidence says that they are one."""
    found = joint_components.components(x, most)
    label = [_distinct(found, variable == v) for v in range(variable.max() + 1)]
    return Tuples(np.stack(label, 1), found.share)


def _distinct(found: Mixture, own: Bools) -> Ints:
    """(component,) numbers of components that differ in these features: the closest ones are merged for as long as that
    costs less than a mean does."""
    rows, mean = found.share.sum(0), found.mean[:, own] / np.sqrt(found.variance[own])
    label, price = np.arange(len(rows)), 0.5 * own.sum() * np.log(len(found.share))
    while (names := np.unique(label)).size > 1:
        size = np.array([rows[label == c].sum() for c in names])
        centre = np.stack([rows[label == c] @ mean[label == c] for c in names]) / size[:, None]
        both = size[:, None] * size / (size[:, None] + size)
        cost = 0.5 * both * np.square(centre[:, None] - centre).sum(-1) + np.where(np.eye(len(names)), np.inf, 0.0)
        a, b = np.unravel_index(int(cost.argmin()), cost.shape)
        if cost[a, b] > price:
            break
        label[label == names[b]] = names[a]
    return np.unique(label, return_inverse=True)[1].reshape(-1)


# -- partitions ------------------------------------------------------------------------------------------------


def common(a: Ints, b: Ints, rows: Floats, faint: float) -> Ints:
    """(tuple,) the finest partition that two refine, without links of few rows."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), rows)
    least = faint * np.minimum(table.sum(1)[:, None], table.sum(0))
    i, j = np.nonzero((table > 0) & (table >= least))
    shape = (sum(table.shape),) * 2
    graph = coo_array((np.ones(len(i)), (i, j + table.shape[0])), shape=shape)
    return np.unique(connected_components(graph, directed=False)[1][a], return_inverse=True)[1].reshape(-1)


def _alike(a: Ints, b: Ints, rows: Floats) -> bool:
    if a.max() != b.max():
        return False
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), rows)
    return bool(min(table.max(0).sum(), table.max(1).sum()) >= SAME * rows.sum())


def partitions(found: Tuples) -> list[Ints]:
    """Partitions of the tuples: those of variables, all that they have in common, and what is left of one given
    another, where that has as many blocks everywhere."""
    rows = found.share.sum(0)
    known: list[Ints] = []

    def add(new: Ints) -> None:
        if new.max() > 0 and len(known) < MOST_PARTITIONS and not any(_alike(new, old, rows) for old in known):
            known.append(new)

    for own in found.label.T:
        add(np.unique(own, return_inverse=True)[1].reshape(-1))
    for faint in FAINT:
        done = 0
        while done < len(known):
            for other in range(done):
                add(common(known[done], known[other], rows, faint))
            done += 1
    for fine, coarse in itertools.permutations(list(known), 2):
        left = _given(fine, coarse)
        if left is not None:
            add(left)
    return known


def _given(fine: Ints, coarse: Ints) -> Ints | None:
    """(tuple,) the number of the block of `fine` within that of `coarse`, which it refines, if all have as many."""
    out, counts = np.zeros_like(fine), set()
    if len(np.unique(np.stack([fine, coarse], 1), axis=0)) != fine.max() + 1:
        return None
    for block in range(coarse.max() + 1):
        inside, place = np.unique(fine[coarse == block], return_inverse=True)
        out[coarse == block] = place.reshape(-1)
        counts.add(len(inside))
    return out if len(counts) == 1 and counts != {1} else None


# -- sets of latents -------------------------------------------------------------------------------------------


def improve(x: Floats, variable: Ints, sizes: Sequence[int], parents: Bools, share: Floats, steps: int = 60) -> Found:
    """Expectation-maximisation with the levels of each variable tied over joint states that its parents do not tell
    apart; share: (rows, joint)."""
    before, rows = -np.inf, len(x)
    ties = [slots(sizes, own) for own in parents]
    mean = np.zeros((share.shape[1], x.shape[1]))
    for _ in range(steps):
        count, first = share.sum(0), share.T @ x
        left = (x**2).sum(0)
        for v, slot in enumerate(ties):
            own = variable == v
            size, sums = np.maximum(pooled(count, slot), 1e-9), pooled(first[:, own], slot)
            left[own] -= (sums**2 / size[:, None]).sum(0)
            mean[:, own] = (sums / size[:, None])[slot]
        weight, variance = count / rows, np.maximum(left / rows, LEAST)
        share, fit = expect(x, weight, mean, variance)
        if fit - before < 1e-3:
            break
        before = fit
    numbers = sum((slot.max() + 1) * (variable == v).sum() for v, slot in enumerate(ties))
    numbers += x.shape[1] + share.shape[1] - 1
    return Found(tuple(sizes), parents, share, weight, mean, variance, fit - 0.5 * np.log(rows) * numbers)


def best_parents(x: Floats, variable: Ints, sizes: Sequence[int], share: Floats, odds: float) -> tuple[float, Bools]:
    """Evidence of the rows' features given shares of joint states, and each variable's likeliest parents."""
    scores = parent_scores(share.sum(0), share.T @ x, (x**2).sum(0), variable, sizes, odds)
    return float(scores.max(1).sum()), subsets(len(sizes))[scores.argmax(1)]


def settle(x: Floats, variable: Ints, sizes: Sequence[int], share: Floats, odds: float) -> Found:
    """Parents and levels by turns, from shares of the rows, until parents stay. Latents without variables go."""
    for _ in range(6):
        parents = best_parents(x, variable, sizes, share, odds)[1]
        used: Bools = np.asarray(parents.any(0))
        if not used.all():
            state = slots(sizes, used)
            share = pooled(share.T, state).T
            sizes, parents = tuple(np.asarray(sizes)[used].tolist()), parents[:, used]
        found = improve(x, variable, sizes, parents, share)
        share = found.share
        if (best_parents(x, variable, sizes, share, odds)[1] == parents).all():
            break
    return found


def _ranked(x: Floats, variable: Ints, found: Tuples, latents: int, states: int, odds: float) -> list[tuple]:
    """(evidence, partitions) of sets of at most so many partitions of at most so many blocks, the best ones first."""
    rows, first, second = found.share.sum(0), found.share.T @ x, (x**2).sum(0)

    def value(chosen: Sequence[Ints]) -> float:
        sizes = [int(own.max()) + 1 for own in chosen]
        code = np.ravel_multi_index(tuple(chosen), sizes) if sizes else np.zeros(len(rows), dtype=np.int64)
        joint = int(np.prod(sizes))
        count, sums = np.zeros(joint), np.zeros((joint, x.shape[1]))
        np.add.at(count, code, rows)
        np.add.at(sums, code, first)
        scores = parent_scores(count, sums, second, variable, sizes, odds)
        return float(scores.max(1).sum()) + log_counts(count, 1.0)

    pool = [own for own in partitions(found) if own.max() < states]
    pool = sorted(pool, key=lambda own: -value([own]))[:MOST_CANDIDATES]
    sets: list[list[Ints]] = [[]]
    for count in range(1, min(latents, len(pool)) + 1):
        sets += [list(chosen) for chosen in itertools.combinations(pool, count)]
    return sorted(((value(chosen), chosen) for chosen in sets), key=lambda one: -one[0])[:TRIED]


def search(x: Floats, variable: Ints, latents: int, states: int, odds: float) -> Found:
    """The latents that BIC asks for, at most so many with at most so many states; x (rows, feature) standardised,
    variable (feature,) of each feature, odds: log odds of a parent."""
    most, tried = states**latents, []
    for make in (tuples, tuples_of_mixture):
        found = make(x, variable, most)
        for _, chosen in _ranked(x, variable, found, latents, states, odds):
            sizes = tuple(int(own.max()) + 1 for own in chosen)
            code = np.ravel_multi_index(tuple(chosen), sizes) if sizes else np.zeros(len(found.label), dtype=np.int64)
            share = np.zeros((len(x), int(np.prod(sizes))))
            np.add.at(share.T, code, found.share.T)
            tried.append(settle(x, variable, sizes, share, odds))
    return max(tried, key=lambda one: one.bic)


def numbered(x: Floats, variable: Ints, found: Found) -> Found:
    """The same with each latent's states in the order of the mean of all features in them."""
    states, count = digits(found.sizes), found.share.sum(0)
    total, new = found.share.T @ x.sum(1), states.copy()
    for k, size in enumerate(found.sizes):
        rows = np.bincount(states[:, k], count, size)
        mean = np.where(rows > 0, np.bincount(states[:, k], total, size) / np.maximum(rows, 1e-12), np.inf)
        new[:, k] = np.argsort(np.argsort(mean, kind="stable"))[states[:, k]]
    code = np.ravel_multi_index(tuple(new.T), found.sizes) if found.sizes else np.zeros(1, dtype=np.int64)
    share = np.empty_like(found.share)
    share[:, code] = found.share
    return improve(x, variable, found.sizes, found.parents, share, 20)


def margin(x: Floats, variable: Ints, found: Found) -> float:
    """By how much BIC prefers this to what has two states of a latent merged, or none of it where it has but two; and
    prefers each variable's components to more of them."""
    other, states = -np.inf, digits(found.sizes)
    for k, size in enumerate(found.sizes):
        for a, b in itertools.combinations(range(size), 2):
            new = states.copy()
            new[:, k] = np.where(states[:, k] == b, a, states[:, k] - (states[:, k] > b))
            sizes = [s - (h == k) for h, s in enumerate(found.sizes)]
            share = np.zeros((len(x), int(np.prod(sizes))))
            np.add.at(share.T, np.ravel_multi_index(tuple(new.T), sizes), found.share.T)
            parents = found.parents & np.array([s > 1 for s in sizes])
            other = max(other, improve(x, variable, sizes, parents, share, 20).bic)
    gain = -np.inf
    for v, parents in enumerate(found.parents):
        own = x[:, variable == v]
        now = joint_components.improve(own, pooled(found.share.T, slots(found.sizes, parents)).T, 50)
        for known in (False, True):
            more = joint_components.split(own, now, known)
            if more is not None:
                gain = max(gain, joint_components.improve(own, more, 50).bic - now.bic)
    return float(min(found.bic - other, -gain))


def places(sizes: Sequence[int], latents: int, states: int) -> Ints:
    """(joint,) the number of each joint state among those of `latents` latents of `states` states (`exact.tables`)."""
    place = states ** np.arange(latents - 1, -1, -1)[: len(sizes)]
    return digits(sizes) @ place
