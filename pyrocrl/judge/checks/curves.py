"""Conditions on curves of latents."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import FitCheck

FAR_VALUES = 0.25  # part of a latent's rows between two values that features should tell
TOLD = 2.0  # deviations of noise from which they do


def _values_told(fit: Fit, data: Data) -> Lack | None:
    """The two values of each latent, `FAR_VALUES` of its rows apart, that features tell least, the others as they are:
    of a closed curve the two ends, of curves that end flat any two there."""
    program, used = fit.chains.chain(fit.reference), np.flatnonzero(fit.in_use(fit.reference))
    with torch.no_grad():
        apart = program.values_apart().double().cpu().numpy()
    places = fit.alignments[fit.reference].places
    at = (np.arange(apart.shape[1]) + 0.5) / apart.shape[1]
    far = np.abs(at[:, None] - at) >= FAR_VALUES
    said, which = [], []
    for k in used:
        least = np.where(far, apart[k], np.inf)
        a, b = np.unravel_index(int(least.argmin()), least.shape)
        if least[a, b] < TOLD:
            name = fit.names["latent"][int(places[k])]
            said.append(f"ranks {at[min(a, b)]:.2f} and {at[max(a, b)]:.2f} of {name} ({least[a, b]:.1f} of noise)")
            which.append(name)
    if not said:
        return None
    return Lack(f"features do not tell {', '.join(said)}", "features that do, of that latent", which=tuple(which))


CHECKS: dict[str, FitCheck] = {"values_told": _values_told}
