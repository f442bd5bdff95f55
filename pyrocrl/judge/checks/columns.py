"""Conditions on the columns of the slopes of features by latents."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import FitCheck
from pyrocrl.readouts import Columns

ROWS = 1_000  # that are looked at
OBLIQUE = 0.003  # mean contrast up to which columns are orthogonal, beside `BY_CHANCE` of what errors of a map come to
BY_CHANCE = 0.2
RISES = 0.015  # of the mean contrast, that a turn has to come to
SURELY, MAYBE = 3.0, 2.0  # times what errors of a map come to, from which the turn is told, and may be with more rows


def _seen(fit: Fit, data: Data) -> Columns:
    batch = fit.batch_of(data.rows_at(data.spread(ROWS))).annealed()
    return fit.chains.chain(fit.reference).columns(batch)


def _columns_orthogonal(fit: Fit, data: Data) -> Lack | None:
    """The mean local contrast of the map, of the rows that are looked at."""
    with torch.no_grad():
        seen = _seen(fit, data)
    mean, limit = float(seen.contrast.mean()), OBLIQUE + BY_CHANCE * float(seen.chance)
    if mean <= limit:
        return None
    said = (
        f"no independent latents with orthogonal columns were found: a mean contrast of {mean:.3f}, above {limit:.3f}"
    )
    return Lack(said, "features of another kind; structural_sparsity_ica; heavy_tailed_fa, if they are linear")


def _turns_told(fit: Fit, data: Data) -> Lack | None:
    """The rise of the mean contrast by the turn of latents' normal scores that raises it least."""
    seen = _seen(fit, data)
    rise, chance = float(seen.rise), float(seen.chance)
    need = max(RISES, SURELY * chance)
    if rise >= need:
        return None
    places, axes = fit.alignments[fit.reference].places, seen.axes.cpu().numpy()
    apart = np.abs(axes - np.diag(np.diag(axes))).max(0)
    which = tuple(fit.names["latent"][int(places[k])] for k in np.flatnonzero(apart > 0.5 * apart.max()))
    said = f"a turn of {' and '.join(which)} leaves columns as orthogonal, but for {rise:.3f} of the contrast"
    remedy = "latents that are less normal, a map that bends more"
    if rise < max(RISES, MAYBE * chance):
        return Lack(said, remedy, which=which)
    return Lack(said, remedy, rows=data.rows * need / rise, which=which)


CHECKS: dict[str, FitCheck] = {
    "columns_orthogonal": _columns_orthogonal,
    "turns_told": _turns_told,
}
