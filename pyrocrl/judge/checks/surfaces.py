"""Conditions on which latents features have in common, where features are smooth functions of several."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.checks.shared import SURE, FitCheck, rows_to_decide

BENT, BENT_ROWS = 0.02, 50.0  # how far slopes have to be from being along one line, and that times rows: lines of
# latents look bent by chance, as their latents' ranks are made normal
UNTOLD = 0.2  # part of a latent's variance that features may leave open, on average


def in_common(masks: np.ndarray) -> np.ndarray:
    """(..., latent, latent) 1 where all features of the first latent depend on the second; masks (..., feature,
    latent)."""
    apart = np.einsum("...jk,...jl->...kl", masks, 1 - masks)
    return (apart < 0.5) * 1.0


def _found(fit: Fit) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(draw, feature, latent) masks of the reference chain, which latents are in use, and names of these."""
    program, used = fit.chains.chain(fit.reference), np.flatnonzero(fit.in_use(fit.reference))
    places = fit.alignments[fit.reference].places
    with torch.no_grad():
        masks = program.mask_draws().double().cpu().numpy()
    return masks, used, [fit.names["latent"][int(places[k])] for k in used]


def _together(masks: np.ndarray, used: np.ndarray, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """How probably a latent's features share another latent, where that is at all likely, and what they share."""
    shared = in_common(masks)[:, used][:, :, used]
    other = shared * (1 - np.eye(len(used)))
    some = other.max(2).mean(0)  # that there is one
    which = {names[k]: float(p) for k, p in enumerate(some) if p > 1 - SURE}
    said = []
    for k, name in enumerate(names):
        mixed = [names[m] for m in range(len(names)) if other[:, k, m].mean() > 1 - SURE]
        if name in which and mixed:
            said.append(f"all features of {name} depend on {' and '.join(mixed)} too")
    return which, said


def _alone_in_common(fit: Fit, data: Data) -> Lack | None:
    """Structural sparsity, in nearly all draws of the mask."""
    masks, used, names = _found(fit)
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    which, said = _together(masks, used, names)
    if not which:
        return None
    rows = rows_to_decide(data.rows, max(which.values())) if max(which.values()) < SURE else 0.0
    return Lack("; ".join(said[:3]), "features of each latent without the other", rows=rows, which=tuple(which))


def _slopes_span(fit: Fit, data: Data) -> Lack | None:
    """The same of features whose slopes span, over rows, all that they depend on."""
    masks, used, names = _found(fit)
    with torch.no_grad():
        spread, rows = fit.chains.chain(fit.reference).slopes_spread()
    bends = spread.double().cpu().numpy() >= max(BENT, BENT_ROWS / rows)
    straight = [fit.names["feature"][j] for j in np.flatnonzero(~bends & (masks.mean(0) > INCLUDED).any(1))]
    bent = masks[:, bends]
    if not straight or not used.size:
        return None
    none = [name for name, k in zip(names, used, strict=True) if not (bent[:, :, k].mean(0) > INCLUDED).any()]
    which = _together(bent, used, names)[0]
    if not none and not which:
        return None
    more = f" and {len(straight) - 3} more" if len(straight) > 3 else ""
    open_ = tuple(dict.fromkeys([*none, *which]))
    said_all = f"{', '.join(straight[:3])}{more} may be lines of latents, and without them {', '.join(open_)} may mix"
    return Lack(said_all, "features that bend in all their latents, or less noise", which=open_)


def _latents_told(fit: Fit, data: Data) -> Lack | None:
    """What features leave open of each latent."""
    _, used, names = _found(fit)
    with torch.no_grad():
        untold = fit.chains.chain(fit.reference).latents_untold().double().cpu().numpy()
    which = [name for name, k in zip(names, used, strict=True) if untold[k] > UNTOLD]
    if not which:
        return None
    most = float(untold[used].max())
    return Lack(
        f"features leave open {', '.join(which)}, up to {most:.2f} of its variance",
        "features with less noise, more of them",
        which=tuple(which),
    )


CHECKS: dict[str, FitCheck] = {
    "alone_in_common": _alone_in_common,
    "slopes_span": _slopes_span,
    "latents_told": _latents_told,
}
