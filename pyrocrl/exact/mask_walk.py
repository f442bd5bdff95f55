"""Draws of masks of latents with a pure child each, of loadings and of noise: see `exact.pure_masks`.

A Metropolis walk over masks by the log posterior of each. Flips of one entry are proposed by the square root of what
they are expected to do to the posterior, and accepted with what they do (Zanella 2020, Informed proposals for local
inference in discrete spaces); now and then a jump is proposed to any of the masks that a search has found, so that
numbers of latents and covers that no single flips join are weighed as well. Given a mask, loadings and noise are drawn
from the normal law about their mode, and moved from there by sweeps of a Gibbs sampler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg, special
from scipy.optimize import linear_sum_assignment

from pyrocrl.exact.pure_masks import DENSITY, SHAPE, Bools, Floats, MaskPosterior, Pure
from pyrocrl.exact.spike_slab import latent_moments, second_root

DRAWS = 200
BURN = 0.1  # share of the steps that is left out
JUMPS = 0.2  # share of steps that propose a jump
SCOUTED, SCOUTING = 5, 10  # masks of which neighbours are looked at first, and by what share of the steps each
SWEEPS = 5  # of loadings and noise, for each draw


class Draws(NamedTuple):
    """mask (draw, feature, latent), loadings as many, variance (draw, feature), density (draw,)."""

    mask: Bools
    loadings: Floats
    variance: Floats
    density: Floats


class Proposals(NamedTuple):
    """Flips from a mask: log_p (entry,), -inf where not allowed, entries by rows of the mask."""

    log_p: Floats

    @classmethod
    def of(cls, flips: Floats) -> Proposals:
        half = 0.5 * flips.ravel()
        top = half.max(initial=-math.inf)
        return cls(half - (top + math.log(np.exp(half - top).sum())) if np.isfinite(top) else half)


def walk(
    posterior: MaskPosterior, mask: Bools, others: Sequence[Bools], steps: int, rng: np.random.Generator
) -> list[Bools]:
    """The masks that so many steps from a mask lead to, one for each; others: to which jumps are proposed, each as it
    is probable among them, so that a jump from one of them is always right."""
    modes = {posterior.key(one): one for one in others}
    listed = list(modes.values())
    chance = special.softmax([posterior(one).value for one in listed]) if listed else np.zeros(0)
    out, answer = [], posterior(mask)
    for _ in range(steps):
        if listed and rng.random() < JUMPS:
            if posterior.key(mask) in modes:
                mask = matched(listed[rng.choice(len(listed), p=chance)], mask)
                answer = posterior(mask)
        elif np.isfinite((forth := Proposals.of(answer.flips).log_p).max(initial=-math.inf)):
            place = int(rng.choice(len(forth), p=np.exp(forth)))
            new = mask.copy()
            new.ravel()[place] ^= True
            there = posterior(new)
            back = Proposals.of(there.flips).log_p[place]
            if math.log(rng.random()) < there.value - answer.value + back - forth[place]:
                mask, answer = new, there
        out.append(mask)
    return out


def matched(mask: Bools, to: Bools) -> Bools:
    """The mask with its columns in the order in which they are most like another's."""
    alike = mask.T.astype(float) @ to.astype(float) - 0.5 * mask.sum(0)[:, None]
    rows, places = linear_sum_assignment(-alike)
    out = np.zeros_like(mask)
    out[:, places] = mask[:, rows]
    return out


def draws(
    posterior: MaskPosterior, found: Sequence[Bools], steps: int, rng: np.random.Generator, count: int = DRAWS
) -> Draws:
    """Draws of the posterior, of so many steps from the first of the masks found on; columns are in the order of those
    of the first."""
    first, root = found[0], second_root(posterior.second, posterior.rows)
    for mask in found[:SCOUTED]:
        walk(posterior, mask, (), steps // SCOUTING, rng)
    walked = walk(posterior, first, posterior.near(first.shape), steps, rng)
    masks = [walked[int(t)] for t in np.linspace(BURN * steps, steps - 1, count)]
    kept = []
    for mask in masks:
        mask = matched(mask, first)
        loadings, variance = given(posterior, mask, root, rng)
        of = Pure.of(mask)
        children, others = of.children[of.used] - 1, len(mask) - int(of.used.sum())
        more = float((children - 1).sum()), float((others - children).sum())
        kept.append((mask, loadings, variance, rng.beta(DENSITY[0] + more[0], DENSITY[1] + more[1])))
    return Draws(*(np.array(part) for part in zip(*kept, strict=True)))


def given(posterior: MaskPosterior, mask: Bools, root: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A draw of loadings (feature, latent) and variances (feature,) given a mask, the sign of each latent such that the
    loading of the pure child that is largest at the mode is positive there."""
    answer, latents = posterior(mask), mask.shape[1]
    j, k = mask.nonzero()
    tril = linalg.cholesky(posterior.covariance(mask), lower=True, check_finite=False)
    moved = tril @ rng.standard_normal(len(tril))
    loadings = answer.loadings.copy()
    loadings[j, k] += moved[: len(j)]
    variance = np.exp(answer.log_variance + moved[len(j) :])
    for _ in range(SWEEPS):
        cross, inner = latent_moments(root, posterior.rows, loadings, variance, np.eye(latents), rng)
        loadings, variance = sweep(posterior, loadings, cross, inner, variance, rng)
    return loadings * np.where((loadings * answer.loadings).sum(0) < 0, -1.0, 1.0), variance


def sweep(
    posterior: MaskPosterior, loadings: Floats, cross: Floats, inner: Floats, variance: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Loadings, those that are not 0, and variances, moved given sums of x z^T (feature, latent) and z z^T (latent,
    latent): loadings of a row as under their normal law, accepted by what their squares are worth."""
    mask = loadings != 0
    both = mask[:, :, None] & mask[:, None]  # rows at a time; of what is shut, draws are thrown away
    precision = both * inner / variance[:, None, None] + np.eye(len(inner)) / posterior.slab**2
    tril = np.linalg.cholesky(precision)
    white = np.linalg.solve(tril, (mask * cross / variance[:, None])[:, :, None])
    white += rng.standard_normal(white.shape)
    new = np.linalg.solve(tril.swapaxes(1, 2), white)[:, :, 0]
    worth = np.where(mask, np.square(new / np.where(mask, loadings, 1.0)), 1.0).prod(1)
    loadings = np.where(mask & (rng.random(len(mask)) < worth)[:, None], new, loadings)
    rest = posterior.rows * np.diag(posterior.second) + ((loadings @ inner - 2 * cross) * loadings).sum(1)
    rest = np.maximum(rest, 1e-9 * posterior.rows)
    return loadings, (posterior.rate + 0.5 * rest) / rng.standard_gamma(SHAPE + posterior.rows / 2, len(loadings))
