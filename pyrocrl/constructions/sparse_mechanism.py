"""Latents whose mechanisms have few parents: the readout of rows that few actions, or few latents before, explain.

Latents are linear in given functions of the rows (`parts.ridges`), z = W f(x).

*Of actions* (`by_actions`): for every set of actions the combinations of f that curves of these leave least of. Where
f are coordinates of the latents' subspace, what they leave of w is w' R_S w, R_S the residual covariance of f, and all
actions leave w' R w at least: their ratio is 1 where every parent of w is in the set, whatever the noise. Small
eigenvalues of (R_S, R) are latents with all parents in S, by a likelihood ratio (Anderson & Rubin 1949 of this form).
With more functions than latents it is the share of w's variance that curves leave, in place of the ratio. Latents are
then taken, the cheapest first, where they are no combination, or no function, of those before: a matroid's greedy
algorithm, of which the total cost of linear latents is least.

*Of steps* (`by_steps`): curves are of latents, so W is sought by likelihood, of additive curves of all latents before
and normal noise, log |det| of the derivative of W f along the rows' manifold included, from random first readouts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg, spatial
from torch import Tensor

from pyrocrl.constructions.optimise import descend
from pyrocrl.exact.sparse_mechanism import BASIS, Floats, basis

MOST_SETS = 8  # actions of which all sets are tried; of more, those of up to `FEW` and all
FEW = 3
COLLINEAR = 0.02  # share of a latent's variance that must be left by those before, of linear ones
FUNCTION = 0.15  # ... of ridge functions of those before
ASIDE = 150  # ridge functions of latents before
FLOOR = 0.03  # share of a latent's variance that readouts of ridge functions are off anyway
PRICE = 0.4  # of a parent, in units of the logarithm of what is left, for readouts of ridge functions
KEPT = 1e-5  # variance of combinations of functions, of the largest, below which they are noise
PLACES, NEAR = 600, 60  # rows whose tangents are taken, and rows near each
WAVE = 0.45  # frequency step of curves, in deviations of latents
SPAN = 3.5  # deviations of a latent over which its curves bend
FIRST_ROWS, ROWS = 3_000, 6_000  # of the searches for linear readouts, and for all
WAVES = (2, 4, 8)


class Readout(NamedTuple):
    """weight (latent, function) of functions less their means; value: of the search, less is likelier."""

    weight: Floats
    value: float


def white(f: Floats, most: int | None = None) -> Floats:
    """(function, combination) of uncorrelated combinations of f (rows, function), of variance 1; most: how many."""
    value, vector = linalg.eigh(np.cov(f.T))
    value, vector = value[::-1], vector[:, ::-1]
    keep = value > KEPT * value[0]
    if most is not None:
        keep = np.arange(len(value)) < most
    out: Floats = vector[:, keep] / np.sqrt(np.maximum(value[keep], 1e-300))
    return out


def _sets(actions: int) -> list[tuple[int, ...]]:
    most = actions if actions <= MOST_SETS else FEW
    out = [s for size in range(min(most, actions) + 1) for s in itertools.combinations(range(actions), size)]
    return out if most == actions else [*out, tuple(range(actions))]


def by_actions(f: Floats, phi: Floats, latents: int, linear: bool, rng: np.random.Generator) -> Floats:
    """(latent, function) readouts; f (rows, function), of which the first are linear if `linear`; phi (rows, action,
    basis) of actions."""
    rows, actions = phi.shape[:2]
    turn = white(f, latents if linear else None)
    y = (f - f.mean(0)) @ turn
    flat = phi.reshape(rows, -1) - phi.reshape(rows, -1).mean(0)
    gram, cross, total = flat.T @ flat, flat.T @ y, y.T @ y
    gram[np.diag_indices_from(gram)] += 1e-9 * rows

    def left(chosen: tuple[int, ...]) -> Floats:
        at = (np.asarray(chosen, dtype=int)[:, None] * BASIS + np.arange(BASIS)).ravel()
        if not len(at):
            return total
        out: Floats = total - cross[at].T @ np.linalg.solve(gram[np.ix_(at, at)], cross[at])
        return out

    whole = left(tuple(range(actions))) if linear else total
    found = []
    for chosen in _sets(actions):
        count = min(latents, y.shape[1])
        ratio, vector = linalg.eigh(left(chosen), whole, subset_by_index=[0, count - 1])
        ratio = np.maximum(ratio, 1e-12)
        cost = rows * np.log(ratio) + BASIS * len(chosen) * math.log(rows)
        if not linear:
            cost = np.log(ratio + FLOOR) + PRICE * len(chosen)
        found += [(float(c), w) for c, w in zip(cost, vector.T, strict=True)]
    found.sort(key=lambda one: one[0])
    own: list[Floats] = []
    taken: list[Floats] = []
    for _, w in found:
        z = y @ w
        z = z / z.std()
        if own and _left_of(z, np.stack(own, 1), linear, rng) < (COLLINEAR if linear else FUNCTION):
            continue
        own.append(z)
        taken.append(turn @ w)
        if len(own) == latents:
            break
    for w in np.eye(len(turn.T)):  # where functions are fewer than latents that are none of others
        if len(taken) < latents:
            taken.append(turn @ w)
    return np.stack(taken)


def _left_of(z: Floats, others: Floats, linear: bool, rng: np.random.Generator) -> float:
    """Share of the variance of z that combinations of others, or functions of theirs, leave."""
    if not linear:
        z, others = z[: 4 * FIRST_ROWS], others[: 4 * FIRST_ROWS]
        turned = others @ rng.standard_normal((others.shape[1], ASIDE)) / math.sqrt(others.shape[1])
        others = np.concatenate([others, np.maximum(1.5 * turned + rng.standard_normal(ASIDE), 0)], 1)
    design = np.concatenate([others, np.ones((len(z), 1))], 1)
    return float(np.var(z - design @ np.linalg.lstsq(design, z, rcond=None)[0]) / np.var(z))


def tangents(x: Floats, places: np.ndarray, latents: int) -> Floats:
    """(place, feature, latent) of the manifold of rows x at these rows: principal components of rows near them."""
    near = spatial.cKDTree(x).query(x[places], k=min(NEAR, len(x)))[1]
    around = x[near] - x[near].mean(1, keepdims=True)
    axes = np.linalg.svd(around, full_matrices=False)[2]
    out: Floats = axes[:, :latents].transpose(0, 2, 1)
    return out


class Steps(NamedTuple):
    """Functions of rows before and after (rows, function), less their means; phi (rows, action, basis) of what was done
    between; slopes (place, function, latent) of functions along the manifold."""

    before: Floats
    after: Floats
    phi: Floats
    slopes: Floats


def _loss(steps: Steps, latents: int, waves: int, rows: int) -> Callable[[Tensor], Tensor]:
    """-log-likelihood a row of a readout W, flat, by the first rows, curves having twice as many waves."""
    before, after, phi, slopes = (torch.as_tensor(part) for part in steps)
    before, after, phi = before[:rows], after[:rows], phi[:rows].flatten(1)
    count = torch.arange(1, waves + 1, dtype=before.dtype) * WAVE
    ones = torch.ones_like(before[:, :1])

    def loss(flat: Tensor) -> Tensor:
        w = flat.view(latents, -1)
        one, two = before @ w.mT, after @ w.mT
        both = torch.cat([one, two])
        centre, unit = both.mean(0), both.std(0).clamp_min(1e-9)
        one, two = (one - centre) / unit, (two - centre) / unit
        w = w / unit[:, None]
        turned = one[..., None] * count
        curves = torch.cat([one[..., None], turned.sin(), turned.cos()], -1).flatten(1)
        design = torch.cat([ones, phi, curves], 1)
        gram = design.mT @ design
        gram = gram + 1e-6 * len(design) * torch.eye(len(gram), dtype=gram.dtype)
        cross = design.mT @ two
        left = (two.square().sum(0) - (cross * torch.linalg.solve(gram, cross)).sum(0)) / len(design)
        volume = torch.linalg.slogdet(torch.einsum("kf,pfl->pkl", w, slopes)).logabsdet.clamp_min(-30.0).mean()
        return 0.5 * (left.clamp_min(0) + 1e-9).log().sum() - volume + 1e-5 * w.square().sum()

    return loss


def by_steps(linear: Steps, ridges: Steps | None, latents: int, starts: int, rng: np.random.Generator) -> Readout:
    """The best of `starts` searches; linear: steps of white linear coordinates, as many as latents; ridges: of white
    combinations of more functions, the first of which are those, None for a linear readout."""
    best = Readout(np.eye(latents), math.inf)
    for _ in range(starts):
        turn = np.linalg.qr(rng.standard_normal((latents, latents)))[0]
        flat = torch.as_tensor(turn).reshape(-1).clone()
        for waves in WAVES:
            flat = descend(_loss(linear, latents, waves, FIRST_ROWS), flat, 60)
        if ridges is None:
            flat = descend(_loss(linear, latents, WAVES[-1], ROWS), flat, 60)
            last = _loss(linear, latents, WAVES[-1], len(linear.before))
        else:
            width = ridges.before.shape[1]
            z = linear.after @ flat.view(latents, latents).numpy().T
            start = np.linalg.lstsq(ridges.after, z, rcond=None)[0].T
            flat = torch.as_tensor(np.ascontiguousarray(start)).reshape(-1).clone()
            for waves in WAVES[1:]:
                flat = descend(_loss(ridges, latents, waves, ROWS), flat, 80)
            assert flat.numel() == latents * width
            last = _loss(ridges, latents, WAVES[-1], len(ridges.before))
        with torch.no_grad():
            value = float(last(flat))
        if value < best.value:
            best = Readout(flat.view(latents, -1).numpy(), value)
    return best


def parents_of(z: Tensor, actions: Tensor) -> Tensor:
    """(rows, parent, basis) functions of actions, told as shares of their ranges, and of latents z of deviation 1."""
    return torch.cat([basis(actions), basis(0.5 + z / (2 * SPAN))], -2)
