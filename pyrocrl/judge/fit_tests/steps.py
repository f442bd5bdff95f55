"""Tests of how latents go on from step to step."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import dependence
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import MIN_PAIRS, MOST_ROWS
from pyrocrl.judge.fit_tests.shared import Found, Test
from pyrocrl.turns import drawing

STEPPED = 0.1  # rank correlation of innovations with latents before, or of two, that is let be
ADDED_OFF = {"linear": 0.001, "nonlinear": 0.02}  # part of a latent's variance by which sums of curves may be off


def _dynamics(fit: Fit, data: Data, tolerance: float = 0.0) -> Found | None:
    """Whether latents go on from the rows before by their fitted laws, and each by itself: of each Kolmogorov and
    Smirnov's test, and rank correlations with the row before, of values and of sizes; of any two rank correlations, in
    the same row and with the row before, and a test of independence by cells; corrected for their number. tolerance: of
    rank correlations of values, where fitted functions are not exact."""
    with drawing(), torch.no_grad():
        program = fit.chains.chain(fit.reference)
        u = program.innovations_below(fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))).double().cpu().numpy()
    if len(u) < MIN_PAIRS:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    size, p = np.abs(u - 0.5), {}
    bins = int(np.clip(np.sqrt(len(u) / 20), 2, 8))  # 20 rows a cell, or more
    for k, name in enumerate(names):
        p[f"the law of {name}"] = stats.kstest(u[:, k], "uniform").pvalue
        p[f"{name} and the row before"] = _correlated(u[1:, k], u[:-1, k], tolerance)
        p[f"sizes of {name} and of the row before"] = stats.spearmanr(size[1:, k], size[:-1, k]).pvalue
        for m, other in enumerate(names):
            if m < k:
                p[f"{other} and {name}"] = _correlated(u[:, k], u[:, m], tolerance)
                cells = np.histogram2d(u[:, k], u[:, m], bins=bins, range=[[0, 1], [0, 1]])[0]
                p[f"what {other} says of {name}"] = stats.chi2.sf(_independence(cells), (bins - 1) ** 2)
            if m != k:
                p[f"{name} and {other} in the row before"] = _correlated(u[1:, k], u[:-1, m], tolerance)
    worst = min(p, key=lambda one: p[one])
    remedy = "more lags or states; features without noise; latents that do not drive each other"
    least = min(1.0, float(p[worst]) * len(p))
    return Found("dynamics of latents", least, f"least for {worst}", remedy)


def _correlated(a: np.ndarray, b: np.ndarray, tolerance: float) -> float:
    """p-value of Spearman's correlation, but for `tolerance` (Fieller, Hartley & Pearson 1957)."""
    found = stats.spearmanr(a, b)
    if not tolerance:
        return float(found.pvalue)
    away = math.atanh(min(abs(float(found.statistic)), 1 - 1e-12)) - math.atanh(tolerance)
    return min(1.0, 2 * float(stats.norm.sf(away * math.sqrt((len(a) - 3) / 1.06))))


OTHERS = {"a target": "targets", "acted on": "acted on"}
TARGETED = 'targets that were listed otherwise; intervention="soft", where they keep parents; more latents'
ACTED_ON = 'intervention="soft", where latents that are acted on keep parents; more regions of actions; more latents'


def _own_targets(
    fit: Fit, data: Data, called: str = "a target", remedy: str = TARGETED, together: bool = False
) -> Found | None:
    """Whether each latent's innovations are the same whichever other latents are targets: of each two, means and sizes
    in steps of which the other is a target and in those of which it is not, and its rank correlation with the other's
    value before where that is one; and of each with latents before where it is a target itself, `together` with the
    others in the same step; corrected for their number. Correlations within `STEPPED`, for the functions that are
    fitted are not exact."""
    with drawing(), torch.no_grad():
        found = fit.chains.chain(fit.reference).stepped(fit.batch_of(data.rows_at(data.spread(MOST_ROWS))))
    below, hit, before, now = (v.double().cpu().numpy() for v in (found.below, found.hit, found.before, found.now))
    if len(below) < MIN_PAIRS:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    p: dict[str, float] = {}
    for k, name in enumerate(names):
        for m, other in enumerate(names):
            at = hit[:, m] > 0
            if min(at.sum(), (~at).sum()) < MIN_PAIRS:
                continue
            if m != k:
                p[f"{name} where {other} is {called}"] = stats.mannwhitneyu(below[at, k], below[~at, k]).pvalue
                size = np.abs(below[:, k] - 0.5)
                p[f"sizes of {name} where {other} is {called}"] = stats.mannwhitneyu(size[at], size[~at]).pvalue
                p[f"{name} and {other} before, {called}"] = _correlated(below[at, k], before[at, m], STEPPED)
            own = hit[:, k] > 0
            if own.sum() >= MIN_PAIRS:
                p[f"{name}, {called}, and {other} before"] = _correlated(below[own, k], before[own, m], STEPPED)
                if together and m != k:
                    p[f"{name}, {called}, and {other}"] = _correlated(below[own, k], now[own, m], STEPPED)
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    least = min(1.0, float(p[worst]) * len(p))
    return Found(f"latents where others are {OTHERS[called]}", least, f"least for {worst}", remedy)


def _independence(cells: np.ndarray) -> float:
    """Pearson's statistic of a table of counts against the product of its margins."""
    expected = np.maximum(np.outer(cells.sum(1), cells.sum(0)) / cells.sum(), 1e-12)
    return float((np.square(cells - expected) / expected).sum())


def _mechanisms_add(fit: Fit, data: Data) -> Found | None:
    """Whether what curves of single parents leave of latents goes with a parent or with two together, but for
    `ADDED_OFF` of a latent's variance, more where ridge functions of features tell latents."""
    program, places = fit.chains.chain(fit.reference), fit.alignments[fit.reference].places
    with drawing(67), torch.no_grad():
        batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
        z, loc, parents = (part.double().cpu().numpy() for part in program.given_parents(batch))
    if len(z) < MIN_PAIRS:
        return None
    left = (z - loc) - (z - loc).mean(0)
    noise = np.maximum(left.var(0), 1e-12)
    tolerance = ADDED_OFF[program.config["mixing"]] * z.var(0) / noise
    p, k, which = dependence.interactions(left / np.sqrt(noise), parents, tolerance)
    actions = program.config["aux"]
    names = [f"action {data.aux_names[j]}" for j in range(actions)]
    names += [f"{fit.names['latent'][int(m)]} before" for m in places]
    detail = f"least for {fit.names['latent'][int(places[k])]} and {' with '.join(names[j] for j in which)}"
    return Found("what sums of curves leave of latents", p, detail, "more of what moves latents, told as numbers")


TESTS: dict[str, Test] = {
    "dynamics": _dynamics,
    "nearly_dynamics": partial(_dynamics, tolerance=STEPPED),
    "own_targets": _own_targets,
    "own_actions": partial(_own_targets, called="acted on", remedy=ACTED_ON, together=True),
    "mechanisms_add": _mechanisms_add,
}
