"""Conditions on what is done between before and after: offsets, and mechanisms that are told."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.exact import equivariances
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.checks.shared import MIN_PAIRS, MOST_ROWS, SURE, FitCheck, fitted_and_unfitted, unfitted
from pyrocrl.readouts import Carries
from pyrocrl.turns import drawing

LEAST_PAIRS = 5  # that were not fitted, of which it is asked whether actions do the same in all
SPANNED, HARDLY = 0.5, 0.2  # share of a direction that offsets span, and below which more rows would not show it
STEADY = 0.08  # share of a latent's variance by which it may be moved otherwise from pair to pair
BY_HEART = 0.7  # share of what is left of other pairs, below which pairs that were fitted are known by heart
LITTLE = 0.1  # share of a feature's variance that latents may leave, as noise or as latents that are not counted
OVERFITTED = 4.0  # times what is left of rows that were fitted is left of others, of which a decoder then says nothing
REACH = 0.5  # of a latent's range, within which an offset shows how it bends
RANGE = (0.005, 0.995)  # quantiles that are its ends
HARDLY_MOVED = 1e-3  # part of a latent's range below which an action does not move it
MOST_MAPS = 4  # that commute with mechanisms, that are named
MOVED = 0.3  # deviations by which a map that nearly commutes may have moved latents: a third of one added to another


def _offsets_span(fit: Fit, data: Data) -> Lack | None:
    """Whether perturbations move latents in as many directions as there are, and in no more, and every latent at
    all."""
    found, names = fit.chains.chain(fit.reference).offsets(), fit.names["latent"]
    share, latents = found.spanned.double().cpu().numpy(), len(names)
    if (spanned := int((share > SPANNED).sum())) != latents:
        worst, more = float(share[latents - 1]), spanned > latents
        rows = data.rows * (1 - worst) / worst if HARDLY < worst < SPANNED else 0.0
        said = f"offsets of the perturbations span {spanned} directions, of {latents} latents"
        return Lack(said, "more latents" if more else "perturbations that move the others", rows=rows)
    targets = fit.targets()
    assert targets is not None
    still = tuple(name for name, p in zip(names, targets.max(0), strict=True) if p < SURE)
    if not still:
        return None
    return Lack(f"no perturbation surely moves {', '.join(still)}", "perturbations that move them", which=still)


def _axes_apart(fit: Fit, data: Data) -> Lack | None:
    mixed = fit.chains.chain(fit.reference).offsets().mixed.cpu().numpy()
    names = tuple(fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places[np.flatnonzero(mixed)])
    if not names:
        return None
    said = f"{', '.join(sorted(names))} mix: other axes of theirs are moved by as few perturbations"
    return Lack(said, "perturbations that move each of them alone", which=tuple(sorted(names)))


def _offsets_steady(fit: Fit, data: Data) -> Lack | None:
    """How much latents are moved otherwise than on average, in pairs that were not fitted. Undecided where that is much
    less in those that were: they were learned by heart."""
    apart, fitted = _unsteady(fit, unfitted(fit, data)), _unsteady(fit, data)
    if apart is None or fitted is None:
        return None
    worst = int(apart.argmax())
    if apart[worst] < STEADY:
        return None
    said = (
        f"what {fit.names['latent'][worst]} is moved by differs from pair to pair by {apart[worst]:.0%} of its variance"
    )
    rows = data.rows * float(apart[worst] / STEADY) if fitted[worst] < BY_HEART * apart[worst] else 0.0
    return Lack(said, "more pairs, more steps; perturbations that do the same in all pairs", rows=rows)


def _unsteady(fit: Fit, data: Data) -> np.ndarray | None:
    """(latent,) variance of differences of pairs about their perturbation's mean, over that of latents of rows
    before; None of fewer than `MIN_PAIRS`."""
    after = np.flatnonzero(data.after & (data.partner >= 0))
    if len(after) < MIN_PAIRS:
        return None
    z, env = fit.latents(data), data.env[after]
    moved, before = z[after] - z[data.partner[after]], z[data.partner[after]]
    present = np.flatnonzero(np.bincount(env) > 1)
    left = np.concatenate([moved[env == e] - _offset_means(fit)[e] for e in present])
    out: np.ndarray = np.square(left).mean(0) / np.maximum(before.var(0), 1e-12)
    return out


def _offsets_overlap(fit: Fit, data: Data) -> Lack | None:
    """Whether rows after reach where rows before are: a step of more than half of a latent's range leaves how the
    latent bends inside of it open."""
    z, targets = fit.latents(data.rows_at(np.flatnonzero(~data.after))), fit.targets()
    assert targets is not None
    low, high = np.quantile(z, RANGE, axis=0)
    size = np.where(targets > INCLUDED, np.abs(_offset_means(fit)), np.inf).min(0) / np.maximum(high - low, 1e-12)
    far = [(fit.names["latent"][k], size[k]) for k in np.flatnonzero(size > REACH)]
    if not far:
        return None
    said = ", ".join(f"{name} by {by:.0%} of its range" for name, by in far)
    return Lack(f"perturbations move {said} at least", "smaller steps", which=tuple(name for name, _ in far))


def _little_left(fit: Fit, data: Data) -> Lack | None:
    """How much of a feature the decoder leaves open, given the latents: a latent that is not counted, and that no
    perturbation moves, may be a part of all others. More rows would say where those that were fitted leave little, or
    `OVERFITTED` times less."""
    share = _left_open(fit, unfitted(fit, data))
    worst = int(share.argmax())
    if share[worst] < LITTLE:
        return None
    said = f"latents leave {share[worst]:.0%} of the variance of {fit.names['feature'][worst]}"
    rows, both = 0.0, fitted_and_unfitted(fit, data)
    enough = min(max(LITTLE, share[worst] / OVERFITTED), BY_HEART * share[worst])
    if both is not None and _left_open(fit, both[0]).max() < enough:
        rows = data.rows * float(share[worst] / LITTLE) ** 2
    return Lack(said, "more latents, features with less noise, more steps or rows", rows=rows)


def _left_open(fit: Fit, data: Data) -> np.ndarray:
    """(feature,) share of the variance of each feature that the decoder leaves, given latents."""
    batch, program = fit.batch_of(data).annealed(), fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        sites = stories.centre(program, batch) | program.beside(batch) | {"z": program.latents(batch)}
        left = (batch.x - stories.expected(program, batch, sites)).double().cpu().numpy()
    out: np.ndarray = np.square(left).mean(0) / np.maximum(batch.x.double().cpu().numpy().var(0), 1e-12)
    return out


def _offset_means(fit: Fit) -> np.ndarray:
    """(env, latent) offsets of the aligned chains, by their weights."""
    each = [
        alignment.act(program.offsets().mean.double().cpu().numpy(), {-1: 1})
        for program, alignment in zip(fit.programs(), fit.alignments, strict=True)
    ]
    out: np.ndarray = np.einsum("c,cuk->uk", fit.weights, np.stack(each))
    return out


def _mechanisms_tell(fit: Fit, data: Data) -> Lack | None:
    """Which maps commute with the mechanisms told, as computed from these alone."""
    found = fit.chains.chain(fit.reference).carries()
    remedy = "actions that move latents by steps of known sizes in all directions"
    if found.mixing:
        shown = "; ".join(found.mixing[:MOST_MAPS])
        more = f"; and {len(found.mixing) - MOST_MAPS} more" if len(found.mixing) > MOST_MAPS else ""
        linear = found.free[:, :, :-1].double().cpu().numpy() * (1 - np.eye(len(fit.names["latent"])))
        mixed = (linear != 0).any((0, 1)) | (linear != 0).any((0, 2))
        which = tuple(name for name, one in zip(fit.names["latent"], mixed, strict=True) if one)
        return Lack(f"other maps commute with the mechanisms: {shown}{more}", remedy, which=which)
    if found.bent:
        said = f"nothing fixes the scale of {', '.join(found.bent)}, so that bent maps commute as well, as z + |z| does"
        return Lack(f"{said} with a scaling", remedy, which=found.bent)
    return None


class CarriedPairs(NamedTuple):
    """Latents of the reference chain: before, after (pair, latent); which: (pair,) actions from 0 on."""

    before: np.ndarray
    after: np.ndarray
    which: np.ndarray


def carried(fit: Fit, data: Data) -> tuple[CarriedPairs, equivariances.Mechanisms]:
    """Pairs to which something was done, and how it maps latents."""
    program, found = fit.chains.chain(fit.reference), fit.chains.chain(fit.reference).carries()
    rows = data.rows_at(data.spread(MOST_ROWS))
    with drawing(), torch.no_grad():
        z = program.latents(fit.batch_of(rows)).double().cpu().numpy()
    after = np.flatnonzero(rows.after & (rows.partner >= 0) & (rows.env > 0))
    known = equivariances.Mechanisms(*(v[1:].double().cpu().numpy() for v in (found.turn, found.shift)))
    return CarriedPairs(z[rows.partner[after]], z[after], rows.env[after] - 1), known


def nearly_free(found: Carries, pairs: CarriedPairs, known: equivariances.Mechanisms) -> tuple[float, np.ndarray]:
    """`equivariances.slack` of maps outside of what is free."""
    return equivariances.slack(pairs.before, pairs.which, known, found.free.double().cpu().numpy())


def _mechanisms_apart(fit: Fit, data: Data) -> Lack | None:
    """The map outside of what is free that most nearly commutes with the mechanisms, against what pairs leave open by
    chance and a network by its errors: how far it may have moved latents."""
    found = fit.chains.chain(fit.reference).carries()
    pairs, known = carried(fit, data)
    rate, turned = nearly_free(found, pairs, known)
    left = equivariances.left(*pairs, known)
    if (few := left.pairs == 0).any():
        name = data.env_names[1 + int(few.argmax())]
        rows = data.rows * (known.latents + 3) / max(int((pairs.which == few.argmax()).sum()), 1)
        return Lack(f"{name} has too few pairs to tell what it does", f"more pairs of {name}", rows=rows)
    share = left.pairs / max(left.pairs.sum(), 1.0)
    chance, lasting = (value / max(rate, 1e-12) for value in (math.sqrt(share @ left.chance.sum(1)), found.error))
    if (may := math.hypot(chance, lasting)) < MOVED:
        return None
    names, linear = fit.names["latent"], np.abs(turned[:, :-1])
    i, j = np.unravel_index(int(linear.argmax()), linear.shape)
    said = f"{names[j]} added to {names[i]}" if i != j else f"a scaling or shift of {names[i]}"
    said = f"{said} nearly commutes with the mechanisms: it may be off by {may:.2f} of its deviation"
    rows = data.rows * (chance / MOVED) ** 2 * 2 if lasting < 0.5 * MOVED else 0.0
    return Lack(said, "actions of larger or more different effects", rows=rows, which=(names[i],))


def _mechanisms_steady(fit: Fit, data: Data) -> Lack | None:
    """How much of latents actions leave to chance, in pairs that were not fitted, against their variance before or
    after, whichever is less. Undecided where that is much less in those that were: they were learned by heart."""
    pairs, known = carried(fit, data)
    few, _ = carried(fit, unfitted(fit, data))
    if len(few.which) < LEAST_PAIRS:
        rows = data.rows * LEAST_PAIRS / max(len(few.which), 1)
        said = f"{len(few.which)} pairs that were not fitted do not tell whether actions do the same in all"
        return Lack(said, "more pairs", rows=rows)
    apart, fitted = (_chance(some, pairs, known) for some in (few, pairs))
    worst = int(apart.argmax())
    if apart[worst] < STEADY:
        return None
    said = f"what actions do to {fit.names['latent'][worst]} differs from pair to pair by {apart[worst]:.0%} of its"
    rows = data.rows * float(apart[worst] / STEADY) if fitted[worst] < BY_HEART * apart[worst] else 0.0
    return Lack(f"{said} variance", "more pairs, more steps; actions that do the same in all pairs", rows=rows)


def _chance(some: CarriedPairs, fitted: CarriedPairs, known: equivariances.Mechanisms) -> np.ndarray:
    """(latent,) share of the variance that no affine map explains: of all actions together, or of one of `MIN_PAIRS`
    pairs of which it is larger."""
    rest = equivariances.left(*some, known, (fitted.before, fitted.after, fitted.which)).rest
    count, unit = np.bincount(some.which, minlength=len(rest)), np.maximum(fitted.before.var(0), 1e-12)
    shares = np.zeros_like(rest)
    for u in np.unique(fitted.which):
        here = fitted.which == u
        least = np.minimum(fitted.before[here].var(0), fitted.after[here].var(0)) / unit
        shares[u] = rest[u] / np.maximum(least, 1e-12)
    out: np.ndarray = np.concatenate([[count @ shares / max(count.sum(), 1)], shares[count >= MIN_PAIRS]]).max(0)
    return out


def _steps_overlap(fit: Fit, data: Data) -> Lack | None:
    """Whether rows after reach where rows before are, by some action that moves the latent: a step of more than half of
    its range leaves how the latent bends inside of it open."""
    pairs, known = carried(fit, data)
    low, high = np.quantile(pairs.before, RANGE, axis=0)
    steps = []
    for matrix, offset in zip(known.matrix, known.offset, strict=True):
        step = np.median(np.abs(pairs.before @ (matrix.T - np.eye(len(low))) + offset), 0) / np.maximum(
            high - low, 1e-12
        )
        steps.append(np.where(step > HARDLY_MOVED, step, np.inf))
    size = np.min(steps, 0)
    far = [(fit.names["latent"][k], size[k]) for k in np.flatnonzero((size > REACH) & np.isfinite(size))]
    if not far:
        return None
    said = ", ".join(f"{name} by {by:.0%} of its range" for name, by in far)
    return Lack(f"actions move {said} at least", "smaller steps", which=tuple(name for name, _ in far))


CHECKS: dict[str, FitCheck] = {
    "offsets_span": _offsets_span,
    "axes_apart": _axes_apart,
    "offsets_steady": _offsets_steady,
    "offsets_overlap": _offsets_overlap,
    "mechanisms_tell": _mechanisms_tell,
    "mechanisms_apart": _mechanisms_apart,
    "mechanisms_steady": _mechanisms_steady,
    "steps_overlap": _steps_overlap,
    "little_left": _little_left,
}
