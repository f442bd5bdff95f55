"""Conditions on which features depend on which latents."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from pyrocrl.claims.card import CONDITIONS
from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.exact.sparse_factors import rival_axes
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.checks.shared import ALIKE, EVIDENT, SURE, FitCheck, latents_of, rows_to_decide


def _two_anchors(fit: Fit, data: Data) -> Lack | None:
    """Two features that load on a latent alone, with the probability `SURE` together."""
    mask, remedy = fit.mask(), "two features of its own for each latent"
    if mask is None:
        return Lack(f"no mask, so it cannot hold that {CONDITIONS['two_anchors']}", "a model with a mask")
    present = mask > INCLUDED
    used = present.any(0)
    if not used.any():
        return Lack("no latent is in use", "features that depend on latents")
    alone = present & (present.sum(1) == 1)[:, None]
    short = [fit.names["latent"][k] for k in np.flatnonzero(used) if alone[:, k].sum() < 2]
    if not short:
        return None
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    them, lack = ("it", "lacks") if len(short) == 1 else ("them", "lack")
    return Lack(f"{', '.join(short[:3])}{more} {lack} two features that load on {them} alone", remedy)


def _pure_features(fit: Fit, data: Data) -> Lack | None:
    """Two pure features of each latent in use, with the probability `SURE`."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).pure()
    if found is None:
        raise TypeError(f"{fit.program.card.name} needs pure features but has no `pure()`: (feature, latent)")
    used, places = np.flatnonzero(fit.in_use(fit.reference)), fit.alignments[fit.reference].places
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    few = {}
    for k in used:
        none, one = 1.0, 0.0  # probabilities of so many
        for p in found[:, k].double().tolist():
            none, one = none * (1 - p), one * (1 - p) + none * p
        few[fit.names["latent"][int(places[k])]] = none + one
    worst = max(few, key=few.__getitem__)
    if few[worst] <= 1 - SURE:
        return _others_as_pure(fit, used)
    short = [name for name, p in few.items() if p > 1 - SURE]
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    rows = rows_to_decide(data.rows, few[worst]) if few[worst] < SURE else 0.0  # surely not: no rows will help
    them = "it" if len(short) == 1 else "each of them"
    said = f"{', '.join(short[:3])}{more}: two features load on {them} alone with the probability {1 - few[worst]:.2g}"
    return Lack(said, "two features of its own for each latent", rows=rows)


def _others_as_pure(fit: Fit, used: np.ndarray) -> Lack | None:
    """Whether other features with proportional loadings might as well be called pure."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        found, correlation = program.loading_matrix(), program.latent_correlation()
    if found is None or correlation is None:
        return None
    loadings, error = (v.double().cpu().numpy()[:, used] for v in found)
    error = np.maximum(error, np.median(error[loadings != 0]))  # that of what is 0 is not known
    rival = rival_axes(loadings, error, correlation.double().cpu().numpy()[np.ix_(used, used)])
    if rival is None:
        return None
    a, b, k = rival
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[used[k]])]
    pair = f"{fit.names['feature'][a]} and {fit.names['feature'][b]}"
    said = (
        f"{pair}, of proportional loadings, might as well be those that load on one latent alone, in place of {name}'s"
    )
    return Lack(said, "sparser loadings, or more rows")


def _pure_children(fit: Fit, data: Data) -> Lack | None:
    """Three features of each latent in use, or two and another latent that it depends on, with the probability `SURE`:
    of two alone any loadings of one product fit as well."""
    mask, graph = fit.mask(), fit.graph()
    if mask is None or graph is None:
        raise TypeError(f"{fit.program.card.name} needs features of latents that depend on others: mask and graph")
    names, used = fit.names["latent"], np.flatnonzero((mask > INCLUDED).any(0))
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    alone = 1 - (graph + graph.T).max(0)  # of depending on no other
    for k in used:
        most = np.sort(mask[:, k])[::-1]
        two, three = float(most[:2].prod()), float(most[:3].prod()) if len(most) > 2 else 0.0
        wrong = 1 - max(three, two * (1 - float(alone[k])))
        if wrong > 1 - SURE:
            said = f"{names[k]} has two features of its own and depends on no other latent"
            said = said if two > SURE else f"{names[k]} has fewer than two features of its own"
            rows = rows_to_decide(data.rows, wrong) if wrong < SURE else 0.0
            return Lack(f"{said} (probability {wrong:.2g})", "three features of its own for each latent", rows=rows)
    return None


def _clusters_apart(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        margin = fit.chains.chain(fit.reference).clusters_margin()
    if margin is None:
        raise TypeError(f"{fit.program.card.name} needs clusters that are apart but has no `clusters_margin()`")
    if float(margin) > EVIDENT:
        return None
    said = f"clusters with two merged or one split fit as well ({-float(margin):+.1f} nats of evidence)"
    return Lack(said, "more features of each latent, or more rows", rows=2.0 * data.rows)


def _not_collinear(fit: Fit, data: Data) -> Lack | None:
    used = np.flatnonzero(fit.in_use(fit.reference))
    if len(used) < 2:
        return None
    z = latents_of(fit, data, aligned=False)[0][:, used]
    r = np.abs(np.corrcoef(z.T)) - np.eye(len(used))
    if r.max() < ALIKE:
        return None
    places = fit.alignments[fit.reference].places[used]
    a, b = (fit.names["latent"][int(places[k])] for k in divmod(int(r.argmax()), len(used)))
    return Lack(f"{a} and {b} correlate {r.max():.3f}", "rows in which they differ")


def _own_features(fit: Fit, data: Data) -> Lack | None:
    """For any two latents a feature of the one that is not the other's: probable, by the mask."""
    mask = fit.mask()
    if mask is None:
        return Lack(f"no mask, so it cannot hold that {CONDITIONS['own_features']}", "a model with a mask")
    remedy = "features that depend on one of the two latents only"
    used = np.flatnonzero((mask > INCLUDED).any(0))
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    for a, b in itertools.permutations(used, 2):
        inside = float(np.prod(1 - mask[:, a] * (1 - mask[:, b])))  # that all features of a are features of b
        if inside > 1 - SURE:
            one, other = fit.names["latent"][a], fit.names["latent"][b]
            said = f"all features of {one} are features of {other} (probability {inside:.2g})"
            return Lack(said, remedy, rows=0.0 if inside > 0.5 else rows_to_decide(data.rows, inside))
    return None


def _number_told(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        drawn = fit.chains.chain(fit.reference).number_told()
    if drawn is None:
        raise TypeError(f"{fit.program.card.name} needs the number of latents but has no `number_told()`")
    numbers, often = np.unique(drawn.cpu().numpy().astype(int), return_counts=True)
    most = fit.program.latents_count - 1
    if numbers[often.argmax()] >= most:
        return Lack(f"as many latents are in use as are offered ({most})", "more latents")
    share = often / often.sum()
    if share.max() > SURE:
        return None
    each = ", ".join(f"{number} ({p:.2f})" for number, p in zip(numbers, share, strict=True) if p > 1 - SURE)
    return Lack(
        f"how many latents there are is open: {each}", "more rows", rows=rows_to_decide(data.rows, 1 - share.max())
    )


CHECKS: dict[str, FitCheck] = {
    "two_anchors": _two_anchors,
    "pure_features": _pure_features,
    "pure_children": _pure_children,
    "clusters_apart": _clusters_apart,
    "not_collinear": _not_collinear,
    "own_features": _own_features,
    "number_told": _number_told,
}
