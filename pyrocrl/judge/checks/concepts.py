"""Conditions on environments that condition softly on concepts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pyrocrl.claims import conditions
from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.exact import goodness
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import FAR, MOST_ROWS, SEEN, TELLING, FitCheck, situation
from pyrocrl.turns import drawing

MIRROR = 0.15  # deviations of a concept by which levels should differ, beyond what they are uncertain by
SURELY = 3.0  # deviations of that uncertainty
UNTOLD, TOLD_ROWS = 0.1, 1_000  # share of a concept's variance that may be open, and rows of which it is asked


def _conditioned_apart(fit: Fit, data: Data) -> Lack | None:
    """What the theorem asks of the matrix of environments and concepts, of environments that differ from the base."""
    known = situation(fit, data)
    lack = conditions.CHECKS["conditioned_apart"](known)
    if lack is not None or known.hit is None:
        return lack
    few = data.rows_at(data.spread(MOST_ROWS))
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():  # what the law of an environment does to its latents is not in its readings
        z, env = program.beside(fit.batch_of(few))["reading"].double().cpu().numpy(), few.env
    free = known.present & (known.hit.sum(1) == 0)
    same = [
        e for e in np.flatnonzero(known.present & ~free) if goodness.samples_differ(z[env == e], z[free[env]]) >= SEEN
    ]
    if not same:
        return None
    hit = known.hit.copy()
    hit[same] = 0
    short = conditions.CHECKS["conditioned_apart"](replace(known, hit=hit))
    if short is None:
        return None
    names = ", ".join(data.env_names[e] for e in same)
    least = np.bincount(data.env, minlength=len(hit))[same].min()
    rows = float(data.rows * TELLING / max(least, 1)) if least < TELLING else 0.0  # fewer may hide what is done
    return Lack(f"{names} cannot be told from the base; without it {short.reason}", short.remedy, rows=rows)


def _levels_apart(fit: Fit, data: Data) -> Lack | None:
    """Whether combinations of environments in which squares of concepts cancel leave each concept's linear term."""
    known = situation(fit, data)
    assert known.hit is not None
    acting = np.flatnonzero(known.present & (known.hit.sum(1) > 0))
    hit = known.hit[acting]
    size, error = [], []
    for program in fit.programs():
        with torch.no_grad():
            level, doubt = (value.double().cpu().numpy()[acting] for value in program.held_near())
        left, value, _ = np.linalg.svd(hit)
        null = left[:, int((value > 1e-9).sum()) :]  # (env, combination)
        size.append(np.linalg.norm(null.T @ (hit * level), axis=0))
        error.append(np.linalg.norm(hit * doubt, axis=0))
    mean = fit.weights @ np.array(size)
    doubt = np.sqrt(fit.weights @ (np.array(error) ** 2 + (np.array(size) - mean) ** 2))
    short = np.flatnonzero(mean < MIRROR + SURELY * doubt)
    if not short.size:
        return None
    names = tuple(fit.names["latent"][k] for k in short)
    said = ", ".join(
        f"{name} ({mean[k]:.2g} +- {doubt[k]:.2g} deviations)" for k, name in zip(short, names, strict=True)
    )
    few = float(np.max(SURELY * doubt[short] / np.maximum(mean[short] - MIRROR, 1e-9))) ** 2
    rows = data.rows * few if few < FAR else 0.0
    return Lack(f"levels may not tell from its mirror image {said}", "other levels of these", rows=rows, which=names)


def _concepts_told(fit: Fit, data: Data) -> Lack | None:
    """How much of a concept's variance in the base the posterior leaves open."""
    rows = data.rows_at(np.flatnonzero(data.control_rows)[:TOLD_ROWS])
    sd = fit.latents_sd(rows)
    assert sd is not None
    left = np.square(sd).mean(0)
    share = left / np.maximum(left + fit.latents(rows).var(0), 1e-12)
    short = np.flatnonzero(share > UNTOLD)
    if not short.size:
        return None
    names = tuple(fit.names["latent"][k] for k in short)
    said = ", ".join(f"{share[k]:.0%} of the variance of {name}" for k, name in zip(short, names, strict=True))
    more = float(data.rows * min(share.max() / UNTOLD, FAR))
    return Lack(f"networks of these rows leave {said} open", "more rows", rows=more, which=names)


CHECKS: dict[str, FitCheck] = {
    "conditioned_apart": _conditioned_apart,
    "levels_apart": _levels_apart,
    "concepts_told": _concepts_told,
}
