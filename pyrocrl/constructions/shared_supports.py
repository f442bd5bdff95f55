"""Which features share latents, and where draws of surfaces of latents begin.

Features that share no latent are independent where latents are. So of a mask it is told which pairs of features depend
on each other, by smooth functions of their ranks, and which do not (`dependences`): a mask is wanted of few entries in
which the features of a latent are a clique of that graph and all its edges are in cliques (`cover`, by annealing:
Markham & Grosse-Wentrup 2020 with errors). Other masks are of large loadings after varimax, and of all entries. Of
each mask lines are fitted, as a factor analysis with these entries alone (`scores`), and draws of surfaces go on from
there (`exact.surface_factors`), in which entries open and close. The best by its likelihood, less what coefficients
cost, is the start (`search`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrocrl.exact.rotations import varimax
from pyrocrl.exact.surface_factors import Sampler, latents_given
from pyrocrl.exact.surfaces import basis

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SMOOTH = 3  # functions of each feature
RARE = 0.02  # chance that some pair of features seems dependent and is not
MISSED, FOUND, ENTRY = 4.0, 30.0, 0.6  # cost at most of a pair that should depend, of one that should not; of an entry
TURNS, HOT, COLD = 150, 6.0, 0.15  # of annealing, and its temperatures
LARGE = 0.25  # loadings of a mask, in those that are largest of their feature
TRIES, ITERATIONS = 6, 300  # of a linear fit
COVERS, BEST = 6, 3  # masks that are looked for, and of different ones tried
CLOSED, OPENED = 5, 8  # sweeps of each with its mask as it is, and then
RELAID, BETTER = 3, 20.0  # times a latent may be laid out anew, and nats from which that is better
FEW = 1000  # rows of these
RIDGE, PLACING = 1.0, 15  # of latents from features, and steps from there


def dependences(x: Floats) -> Floats:
    """(feature, feature) by how much, in nats, pairs seem to depend on each other: below 0 where they do not."""
    rows, features = x.shape
    normal = stats.norm.ppf((stats.rankdata(x, axis=0) - 0.5) / rows)
    phi = basis(torch.as_tensor(normal)).numpy()[:, :, :SMOOTH].reshape(rows, -1)
    square = np.square(phi.T @ phi / rows).reshape(features, SMOOTH, features, SMOOTH).sum((1, 3)) * rows
    usual = stats.chi2.isf(RARE / max(features * (features - 1) / 2, 1), SMOOTH**2)
    out: Floats = 0.5 * (square - usual)
    return out


def cover(told: Floats, latents: int, rng: np.random.Generator) -> tuple[Mask, float]:
    """(feature, latent) a mask of few entries that says which pairs depend, by annealing, and its cost."""
    features = len(told)
    should, should_not = np.clip(told, 0, FOUND), np.clip(-told, 0, MISSED)  # where they share none, and where they do
    mask = np.zeros((features, latents), dtype=bool)
    mask[np.arange(features), rng.integers(latents, size=features)] = True
    shared = (mask * 1) @ mask.T
    above = np.triu_indices(features, 1)
    cost = float(np.where(shared > 0, should_not, should)[above].sum()) + ENTRY * features
    best, least = mask.copy(), np.inf
    for heat in np.geomspace(HOT, COLD, TURNS):
        for place in rng.permutation(features * latents):
            j, k = divmod(int(place), latents)
            if mask[j, k] and mask[j].sum() == 1:
                continue
            step = -1 if mask[j, k] else 1
            others = mask[:, k].copy()
            others[j] = False
            now, then = shared[j, others], shared[j, others] + step
            change = ((then == 0) * 1.0 - (now == 0)) @ (should - should_not)[j, others] + step * ENTRY
            if change <= 0 or rng.random() < math.exp(-change / heat):
                mask[j, k] = not mask[j, k]
                shared[j, others] += step
                shared[others, j] += step
                cost += change
        if cost < least:
            best, least = mask.copy(), cost
    return best, least


def rotated(x: Floats, latents: int) -> Floats:
    """(feature, latent) loadings of principal components after varimax."""
    size, axes = np.linalg.eigh(x.T @ x / len(x))
    loadings = axes[:, -latents:] * np.sqrt(np.maximum(size[-latents:], 0))
    out: Floats = loadings @ varimax(loadings)
    return out


def scores(x: Floats, mask: Mask, rng: np.random.Generator, start: Floats | None = None) -> Floats:
    """(row, latent) of lines of independent latents with these entries (feature, latent): of `TRIES` starts by
    expectation and maximisation the best, or of one."""
    cov, unit = x.T @ x / len(x), np.eye(mask.shape[1])
    best, most = np.zeros((len(x.T), mask.shape[1])), -np.inf
    for _ in range(1 if start is not None else TRIES):
        size = rng.choice([-1, 1], mask.shape) * rng.uniform(0.35, 0.85, mask.shape)
        lines = mask * (size if start is None else start)
        noise = np.full(len(cov), 0.3)
        for _ in range(ITERATIONS):
            within = np.linalg.inv(unit + (lines.T / noise) @ lines)
            reads = within @ (lines.T / noise)
            cross = reads @ cov
            second = within + cross @ reads.T
            for j, own in enumerate(mask):
                lines[j, own] = np.linalg.solve(second[np.ix_(own, own)], cross[own, j])
            noise = np.maximum(cov.diagonal() - (lines * cross.T).sum(1), 0.02)
        implied = lines @ lines.T + np.diag(noise)
        told = -float(np.linalg.slogdet(implied)[1] + np.trace(np.linalg.solve(implied, cov)))
        if told > most:
            best, most = reads.T, told
    return x @ best


def search(x: Floats, latents: int, slab: float, rate: float, rng: np.random.Generator) -> Sampler:
    """The best chain, of at most so many latents; x (row, feature), standardised. It has a part of the rows."""
    told = dependences(x)
    few = x[rng.permutation(len(x))[:FEW]]
    turned = rotated(few, latents)
    wide = np.abs(turned) > LARGE * np.abs(turned).max(1, keepdims=True)
    covers = sorted((cover(told, latents, rng) for _ in range(COVERS)), key=lambda one: one[1])
    different = {tuple(sorted(map(bytes, mask.T))): mask for mask, _ in reversed(covers)}  # up to the order of latents
    starts: list[tuple[Mask, Floats | None]] = [(mask, None) for mask in list(different.values())[-BEST:]]
    chains = []
    for mask, start in [*starts, (wide, turned)]:
        fine = mask & (mask.sum(0) > 1)
        sampler = Sampler(few, scores(few, fine, rng, start), fine, slab, rate, rng)
        chains.append(sampler.go(CLOSED, OPENED))
    return relaid(max(chains, key=Sampler.score))


def relaid(best: Sampler) -> Sampler:
    """The chain with latents laid out anew, one by one: that of the noisiest features, along what their other latents
    leave of one of them, as long as that is better."""
    most = best.score()
    for _ in range(RELAID):
        noisy = np.where(best.mask, np.log(best.variance)[:, None], 0).sum(0) / np.maximum(best.mask.sum(0), 1)
        k = int(np.where(best.mask.any(0), noisy, -np.inf).argmax())
        for j in np.flatnonzero(best.mask[:, k]):
            other = best.without(k, int(j)).go(CLOSED, 0)
            if other.score() > most + BETTER:
                best = other.go(CLOSED, OPENED)
                most = best.score()
                break
        else:
            break
    return best


def features_of(x: Floats) -> Floats:
    """(row, column) curves of each feature, from which latents are read at first."""
    out: Floats = basis(torch.as_tensor(x)).flatten(1).numpy()
    return out


def reader(x: Floats, z: Floats) -> Floats:
    """(column, latent) of `features_of` by ridge regression."""
    curves = features_of(x)
    inner = curves.T @ curves + RIDGE * np.eye(curves.shape[1])
    return np.asarray(np.linalg.solve(inner, curves.T @ z), dtype=float)


def placed(x: Floats, start: Sampler, slab: float, rate: float, rng: np.random.Generator) -> Sampler:
    """A chain of these rows, from where one of others is."""
    first = torch.as_tensor(features_of(x) @ reader(start.x.numpy(), start.mode.numpy()))
    coefficients, variance = torch.as_tensor(start.coefficients), torch.as_tensor(start.variance)
    told = latents_given(torch.as_tensor(x), coefficients, variance, first, PLACING)
    return Sampler(x, told.mode.numpy(), start.mask, slab, rate, rng)
