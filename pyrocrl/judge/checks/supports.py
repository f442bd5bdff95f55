"""Conditions on the joint support of latents."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy import stats

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import FAR, FitCheck, latents_of

CORNER = 0.5  # of a latent's half-range from its end on: what counts as a corner, the latents' units being that
FILLED = 0.4  # share of the rows expected in a corner that have to be there
DOUBT = 0.01  # probability, over all corners, of taking those that are less filled for filled, and the reverse
EDGE = 0.1  # of a half-range, by which rows may be beyond the box
GAPS = 3.0  # mean distances between rows that fill, by which edges may be beyond the last of them
BEYOND = 0.02  # share of rows that may be farther beyond
MOVED = 0.03  # share of an axis that other laws of the bulk may leave to others
TURNED = 0.02  # share of an axis that the posterior may leave to others


def _corners_filled(fit: Fit, data: Data) -> Lack | None:
    """Rows in the corners of each two latents, against those that rows which fill the box would leave there, by Poisson
    counts: more than `FILLED` of them, surely."""
    z, _ = latents_of(fit, data, aligned=False)
    expected = _filling(fit) * len(z) * (CORNER / 2) ** 2
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    pairs = list(itertools.combinations(range(z.shape[1]), 2))
    level, empty, few = DOUBT / (4 * len(pairs)), [], []
    for (k, m), a, b in itertools.product(pairs, (-1, 1), (-1, 1)):
        there = int((_end(a * z[:, k]) & _end(b * z[:, m])).sum())
        if stats.poisson.cdf(there, FILLED * expected) < level:
            empty.append((there, k, m))
        elif stats.poisson.sf(there - 1, FILLED * expected) > level:
            few.append((there, k, m))
    if not (empty or few):
        return None
    there, k, m = min(empty or few)
    which = tuple(dict.fromkeys(names[i] for _, *pair in (empty or few) for i in pair))
    said = f"a corner of {names[k]} and {names[m]} has {there} rows, where the box that is filled has {expected:.3g}"
    remedy = "rows with other combinations of the latents' extremes"
    enough = _enough(level)
    if empty or expected * FAR < enough:
        return Lack(said, remedy, which=which)
    return Lack(said, remedy, rows=data.rows * max(2.0, enough / expected), which=which)


def _enough(level: float) -> float:
    """Expected rows from which as many say that more than their share `FILLED` are to be expected."""
    return next(e for e in np.geomspace(5, 1000, 200) if stats.poisson.sf(e - 1, FILLED * e) < level)


def _end(z: np.ndarray) -> np.ndarray:
    return (z > 1 - CORNER) & (z < 1 + EDGE)


def _filling(fit: Fit) -> float:
    found = fit.chains.chain(fit.reference).filling()
    if found is None:
        raise TypeError(f"{fit.program.card.name} needs a box that rows fill but has no `filling()`: (draw,)")
    return float(found.double().mean())


def _within_the_box(fit: Fit, data: Data) -> Lack | None:
    """Share of the rows that are beyond the box by more than `EDGE`, noise and what rows leave open of edges apart."""
    z, _ = latents_of(fit, data, aligned=False)
    with torch.no_grad():
        noise = fit.chains.chain(fit.reference).noise_share(fit.batch_of(data))
    assert noise is not None
    soft = np.sqrt(noise.double().cpu().numpy()) * z.std(0)
    gaps = GAPS * 2 / max(_filling(fit) * data.rows, 1.0)
    over = np.abs(z) > 1 + EDGE + gaps + 3 * soft
    share = float(over.any(1).mean())
    if stats.binom.sf(round(share * len(z)) - 1, len(z), BEYOND) > DOUBT:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    worst = int(over.mean(0).argmax())
    said = f"{share:.1%} of the rows are beyond the box that is filled, most of them in {names[worst]}"
    return Lack(said, "latents that have ends; a look at outlying rows", which=(names[worst],))


def _any_bulk(fit: Fit, data: Data) -> Lack | None:
    """How far axes are off those of a box beside twice as many laws of the bulk, in one of the best chains, as a search
    may fail: where rows in the corners are few, or no box is there, the box is what these laws leave."""
    with torch.no_grad():
        moved = fit.chain_values("box_moved")
    assert moved is not None
    open_ = moved[np.argsort(moved.max(1))[(len(moved) - 1) // 3]]  # the better one of two, the second of four
    if (worst := float(open_.max())) <= MOVED:
        return None
    which = tuple(fit.names["latent"][k] for k in np.flatnonzero(open_ > MOVED))
    said = f"beside twice as many normal laws, {worst:.0%} of the axis of {', '.join(which)} goes to other latents"
    return Lack(said, "rows with other combinations of the latents' extremes", which=which)


def _box_told(fit: Fit, data: Data) -> Lack | None:
    """Share of each axis that the posterior leaves to others; short of `TURNED` it falls with the rows."""
    with torch.no_grad():
        open_ = fit.chains.chain(fit.reference).rotated().double().cpu().numpy()
    if (worst := float(open_.max())) <= TURNED:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    which = tuple(names[k] for k in np.flatnonzero(open_ > TURNED))
    said = f"edges of the box leave {worst:.0%} of the axis of {', '.join(which)} to other latents"
    return Lack(said, "more rows at the edges", rows=data.rows * worst / TURNED, which=which)


CHECKS: dict[str, FitCheck] = {
    "corners_filled": _corners_filled,
    "within_the_box": _within_the_box,
    "any_bulk": _any_bulk,
    "box_told": _box_told,
}
