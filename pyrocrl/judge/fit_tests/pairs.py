"""Tests of how rows of a pair differ."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import equivariances
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.actions import MOVED, carried, nearly_free
from pyrocrl.judge.checks.shared import MIN_PAIRS, unfitted
from pyrocrl.judge.fit_tests.shared import Found, Test
from pyrocrl.turns import drawing

PAIRED_ROWS = 10_000  # rows of pairs that a test of their differences looks at
PROBABLY = 0.45  # probability below which a latent probably did not change in a pair
EXACT = 0.12  # as far from 1/2 all distribution functions are at most where there is no noise at all
CLEAR = 1e-4  # probability below which another latent than this is taken to have changed in a pair
MOVED_OFF = {"linear": 0.05, "nonlinear": 0.1}  # of a feature's deviation, by which rows after may be off


def _differences(fit: Fit, data: Data) -> Found | None:
    """Whether latents that are not the one that changed differ between a pair's rows as the fit says, by noise of their
    own alone: of each, Kolmogorov and Smirnov's test, and rank correlations with its noise before and with the size of
    other latents' changes; of any two their rank correlation; corrected for their number. Where they do not differ at
    all, that is so."""
    batch = fit.batch_of(data.rows_at(data.spread(PAIRED_ROWS)))
    with drawing(), torch.no_grad():
        found = fit.chains.chain(fit.reference).partners(batch)
    below, changed, moved, before = (
        v.double().cpu().numpy() for v in (found.below, found.changed, found.moved, found.before)
    )
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    p: dict[str, float] = {}
    clearly = [np.abs(below[changed[:, k] < CLEAR, k] - 0.5) for k in range(len(names))]
    exact = np.array([len(own) >= MIN_PAIRS and (own < EXACT).all() for own in clearly])
    for k, name in enumerate(names):
        kept = changed[:, k] < PROBABLY
        if exact[k] or len(kept) < 2 * MIN_PAIRS:
            continue
        if kept.sum() < MIN_PAIRS:  # though there are many pairs
            p[f"{name}, which may have changed in all pairs"] = 0.0
            continue
        own, others = below[kept, k], np.delete(moved[kept], k, 1).max(1)
        p[f"the law of {name}"] = stats.kstest(own, "uniform").pvalue
        p[f"{name} and its noise before"] = stats.spearmanr(own, before[kept, k]).pvalue
        p[f"{name} and the size of other changes"] = stats.spearmanr(np.abs(own - 0.5), others).pvalue
        for m in range(k):
            clear = (changed[:, [k, m]] < CLEAR).all(1)
            if not exact[m] and clear.sum() >= MIN_PAIRS:
                p[f"{names[m]} and {name}"] = stats.spearmanr(below[clear, k], below[clear, m]).pvalue
    if not p:
        return Found("differences of latents that did not change", 1.0, "there are none", "") if exact.all() else None
    worst = min(p, key=lambda one: p[one])
    remedy = "more latents; a nonlinear mixing; pairs in which one latent changes at a time, without noise of features"
    least = min(1.0, float(p[worst]) * len(p))
    return Found("differences of latents that did not change", least, f"least for {worst}", remedy)


def _displaced(fit: Fit, data: Data) -> Found | None:
    """Whether rows after are where the decoder moves rows before: of each perturbation and feature the mean of what is
    left, its slopes on the means of both rows and on their squares, and its variance against that under others,
    corrected for their number. Within `MOVED_OFF`, for networks are not exact."""
    allow = MOVED_OFF[fit.program.config["decoder"]]
    few = unfitted(fit, data)
    least = np.bincount(few.env[few.after & (few.partner >= 0)], minlength=len(data.env_names))[1:].min()
    few = data if least < MIN_PAIRS else few
    few = few.rows_at(few.spread(PAIRED_ROWS))
    batch = fit.batch_of(few)
    with drawing(), torch.no_grad():
        moved = fit.chains.chain(fit.reference).displaced(batch).double().cpu().numpy()
    x, after = batch.x.double().cpu().numpy(), np.flatnonzero(few.after & (few.partner >= 0))
    x, moved = x / np.maximum(x.std(0), 1e-12), moved / np.maximum(x.std(0), 1e-12)
    left, middle, env = (x - moved)[after], (x[after] + x[few.partner[after]]) / 2, few.env[after]
    middle = (middle - middle.mean(0)) / np.maximum(middle.std(0), 1e-12)
    terms = np.column_stack([np.ones(len(left)), middle, (middle**2 - 1) / np.sqrt(2)])
    p: dict[str, float] = {}
    number = 0
    for e in np.unique(env):
        here = env == e
        if here.sum() < MIN_PAIRS:
            continue
        products = left[here][:, :, None] * terms[here][:, None]  # (pair, feature, term)
        apart = np.square(left[here] - left[here].mean(0))
        others = apart.mean(0) if here.all() else left[~here].var(0)
        size = np.concatenate([np.abs(products.mean(0)), np.abs(apart.mean(0) - others)[:, None]], 1)
        error = np.concatenate([products.std(0), apart.std(0)[:, None]], 1) / np.sqrt(here.sum())
        allowed = np.full_like(size, allow)
        allowed[:, -1] = (2 * allow) ** 2
        z = ((size - allowed) / np.maximum(error, 1e-9)).max(1)
        number += size.size
        for name, value in zip(fit.names["feature"], z, strict=True):
            p[f"{name} under {data.env_names[e]}"] = 2 * float(stats.norm.sf(value))
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    first = "decoder='nonlinear'" if fit.program.config["decoder"] == "linear" else "more steps"
    remedy = f"{first}; more latents; actions that do the same in all pairs"
    return Found("where offsets move rows", min(1.0, p[worst] * number), f"least for {worst}", remedy)


def _carried(fit: Fit, data: Data) -> Found | None:
    """Whether latents after an action are where the mechanism told takes those of the row before: chi-squared of what
    an affine map explains of the rest, for each action, corrected for their number. Within half of what a map may do
    that nearly commutes, and a network's errors."""
    found = fit.chains.chain(fit.reference).carries()
    pairs, known = carried(fit, data)
    left, (rate, _) = equivariances.left(*pairs, known), nearly_free(found, pairs, known)
    allow = max(MOVED * rate / 2, 2 * found.error) if math.isfinite(rate) else 2 * found.error
    freedom, p = left.explained.shape[1] + 1, {}
    for u in np.flatnonzero(left.pairs > 0):
        noise = np.maximum(left.chance[u] * left.pairs[u] / freedom, 1e-12)  # of a latent
        size, beyond = ((left.pairs[u] * value / noise).max() for value in (left.explained[u], allow**2))
        p[data.env_names[u + 1]] = min(1.0, float(stats.ncx2.sf(size, freedom, beyond)) * left.explained.shape[1])
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    steps = "" if fit.program.config["decoder"] == "linear" else "more steps; "
    remedy = f"other mechanisms; more latents; {steps}actions that do the same in all pairs"
    return Found("where mechanisms take latents", min(1.0, p[worst] * len(p)), f"least for {worst}", remedy)


TESTS: dict[str, Test] = {
    "differences": _differences,
    "displaced": _displaced,
    "carried": _carried,
}
