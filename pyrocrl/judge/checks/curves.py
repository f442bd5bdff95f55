"""Conditions on curves of latents."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import FAR, FitCheck

FAR_VALUES, NEAR_VALUES = 0.25, 0.05  # parts of a latent's rows between values: far from each other, and near
TOLD = 2.0  # deviations of noise from which they do
NEARLY_LINES = 0.965  # part of curves that is lines of a normal latent, from which it may be one: .955 of a uniform one
NUMBER_APART = 30.0  # nats from which one number of latents is better than another, for evidence is approximate


def _values_told(fit: Fit, data: Data) -> Lack | None:
    """The two values of each latent, `FAR_VALUES` of its rows apart, that features tell least, the others as they are:
    of a closed curve the two ends, of curves that end flat any two there. They should be told by `TOLD`, and better
    than most values that are near."""
    program, used = fit.chains.chain(fit.reference), np.flatnonzero(fit.in_use(fit.reference))
    with torch.no_grad():
        apart = program.values_apart().double().cpu().numpy()
    places = fit.alignments[fit.reference].places
    at = (np.arange(apart.shape[1]) + 0.5) / apart.shape[1]
    far = np.abs(at[:, None] - at) >= FAR_VALUES
    step = round(NEAR_VALUES * apart.shape[1])
    said, which = [], []
    for k in used:
        least = np.where(far, apart[k], np.inf)
        a, b = np.unravel_index(int(least.argmin()), least.shape)
        near = float(np.median(np.diagonal(apart[k], step)))
        if least[a, b] < max(TOLD, near):
            name = fit.names["latent"][int(places[k])]
            said.append(
                f"ranks {at[min(a, b)]:.2f} and {at[max(a, b)]:.2f} of {name} ({least[a, b]:.1f} deviations of noise)"
            )
            which.append(name)
    if not said:
        return None
    return Lack(f"features do not tell {', '.join(said)}", "features that do, of that latent", which=tuple(which))


def _curves_bent(fit: Fit, data: Data) -> Lack | None:
    """Latents whose curves may be lines of a normal latent: of two or more of these any rotation fits as well."""
    program, used = fit.chains.chain(fit.reference), np.flatnonzero(fit.in_use(fit.reference))
    with torch.no_grad():
        lines = program.normal_lines().double().cpu().numpy()
    places = fit.alignments[fit.reference].places
    which = tuple(fit.names["latent"][int(places[k])] for k in used if lines[k] > NEARLY_LINES)
    if len(which) < 2:
        return None
    said = f"{', '.join(which)} may be normal, with lines alone, so any rotation of them fits as well"
    return Lack(said, "features that bend with them; a model of sparse lines: ssl_fa", which=which)


def _number_apart(fit: Fit, data: Data) -> Lack | None:
    """The evidence of this number of latents over that of others, which grows with the rows."""
    with torch.no_grad():
        margin = float(fit.chains.chain(fit.reference).number_margin())
    if margin >= NUMBER_APART:
        return None
    said = f"another number of latents fits nearly as well ({margin:.0f} nats less)"
    rows = data.rows * min(2 * NUMBER_APART / max(margin, 1.0), FAR)
    return Lack(said, "more rows, features with less noise", rows=rows)


CHECKS: dict[str, FitCheck] = {
    "values_told": _values_told,
    "curves_bent": _curves_bent,
    "number_apart": _number_apart,
}
