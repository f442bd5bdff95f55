"""Conditions on states of discrete latents, and on components of mixtures."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.exact import goodness
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import EVIDENT, MOST_ROWS, UNTOLD_STATES, FitCheck, latents_of
from pyrocrl.turns import drawing

MIN_STATE = 5.0  # rows in which a combination of states occurs, for it to be taken to occur
MANY = 20  # rows for each combination of states, of which one that never occurs is taken not to
RARE = 0.05  # share of the rows that a state has, which should not be overlooked
UNTOLD_NUMBERS = 0.1  # share of the variance of states' numbers that may be left: estimates correlate .95 with them


def _all_states(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        counts = fit.chains.chain(fit.reference).state_counts()
    if counts is None:
        return None
    few = float(counts.min())
    if few >= MIN_STATE:
        return None
    rows = MIN_STATE * data.rows / max(few, 1.0)
    if few < 1.0 and data.rows >= MANY * len(counts):  # not that rows are few
        rows = 0.0
    said = f"a combination of the latents' states occurs in {few:.1f} rows"
    return Lack(said, "rows of all combinations of states", rows=rows)


def _states_apart(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        margin = fit.chains.chain(fit.reference).states_margin()
    if margin is None:
        raise TypeError(f"{fit.program.card.name} needs states that are apart but has no `states_margin()`")
    if float(margin) > EVIDENT:
        if (seen := RARE * data.rows) >= 2 * MIN_STATE:
            return None
        said = f"a state of {RARE:.0%} of the rows, in {seen:.0f} of them, might be overlooked"
        return Lack(said, "more rows", rows=2 * MIN_STATE / RARE)
    said = f"two states merged, or one more component of a variable, fit as well ({-float(margin):+.1f} nats by BIC)"
    remedy = "more rows; a transformation of the features, where components are not normal or differ in noise"
    return Lack(said, remedy, rows=2.0 * data.rows)


def _states_told(fit: Fit, data: Data) -> Lack | None:
    """Whether rows show which state each latent is in. A state that no feature tells is invented by halving the noise
    of some feature, which by masks looks like a feature of its own."""
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        states = program.state_shares(fit.batch_of(data.rows_at(data.spread(MOST_ROWS))))
    if states is not None:
        return _numbers_told(fit, states.double().cpu().numpy())
    chance = fit.chain_latents(data)[fit.reference]  # (row, latent) probabilities
    wrong, guessed = np.minimum(chance, 1 - chance).mean(0), np.minimum(chance.mean(0), 1 - chance.mean(0))
    share = wrong / np.maximum(guessed, 1e-12)
    if share.max() < UNTOLD_STATES:
        return None
    worst = int(share.argmax())
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    said = f"rows show the state of {name} little better than a guess ({share[worst]:.2f} of its errors are left)"
    return Lack(said, f"fewer latents, or features that depend on {name} more strongly")


def _numbers_told(fit: Fit, chance: np.ndarray) -> Lack | None:
    """The same of latents of any number of states, by the variance of their numbers; chance: (row, latent, state)."""
    number = np.arange(chance.shape[2])
    mean = chance @ number
    inside = np.maximum((chance @ number**2 - mean**2).mean(0), 0.0)
    share = inside / np.maximum(inside + mean.var(0), 1e-12)
    if share.max() < UNTOLD_NUMBERS:
        return None
    worst = int(share.argmax())
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    said = f"rows leave {share[worst]:.0%} of the variance of the state of {name} open"
    return Lack(said, f"features that depend on {name} more strongly")


def _components(fit: Fit, data: Data) -> Lack | None:
    weights, _, _ = _mixture(fit)
    used = int((weights > 0.01).sum())
    return None if used >= 2 else Lack(f"{used} mixture component in use", "latents that fall into clusters")


def _variance_ratios(fit: Fit, data: Data) -> Lack | None:
    """For any two latents, the mixture against one in which components scale both alike (Kivva 2022), by BIC."""
    weights, mean, scale = _mixture(fit)
    z = latents_of(fit, data, aligned=False)[0]
    used = weights > 0.01
    start = weights[used] / weights[used].sum(), mean[used], scale[used]
    free = goodness.mixture_log_likelihood(z, *start)
    names = fit.alignments[fit.reference].places
    least, pair = np.inf, (0, 0)
    for a in range(z.shape[1]):
        for b in range(a):
            alike = goodness.mixture_log_likelihood(z, *start, alike=(a, b))
            gain = free - alike - 0.5 * (int(used.sum()) - 1) * np.log(len(z))
            if gain < least:
                least, pair = float(gain), (b, a)
    if least > EVIDENT:
        return None
    one, other = (fit.names["latent"][int(names[k])] for k in pair)
    said = f"the components' variances may have the same ratios for {one} and {other} ({least:+.1f} nats of evidence)"
    return Lack(said, "clusters whose widths differ from latent to latent")


def _mixture(fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(component,) weights, (component, latent) means and deviations of the reference chain's mixture."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).mixture()
    if found is None:
        raise TypeError(f"{fit.program.card.name} claims a mixture but has no `mixture()`: weights, means, scales")
    weights, mean, scale = (v.detach().double().cpu().numpy() for v in found)
    return weights, mean, scale


CHECKS: dict[str, FitCheck] = {
    "all_states": _all_states,
    "states_told": _states_told,
    "states_apart": _states_apart,
    "two_components": _components,
    "distinct_variance_ratios": _variance_ratios,
}
