"""Conditions on views that each see some of the latents."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import EVIDENT, FAR, SURE, FitCheck, rows_to_decide
from pyrocrl.readouts import Sights

PAIRED = 20.0  # rows with both of two views that are asked for, for each latent
BY_NOISE = 1.5  # times what noise shows of a direction, that a view has to show
SETTLED = 0.04  # standard error up to which a correlation of 1 is told from one of .9


def _sights(fit: Fit) -> Sights:
    with torch.no_grad():
        return fit.chains.chain(fit.reference).sights()


def _latents_shared(fit: Fit, data: Data) -> Lack | None:
    sees = _sights(fit).sees.double().cpu().numpy()
    if (np.sort(sees, 0)[-2] > 1 - SURE).any():
        return None
    return Lack("no two views see a latent together", "views of the same latents, or more latents")


def _sees_told(fit: Fit, data: Data) -> Lack | None:
    """By the evidence of other answers that a search has found, and by the posterior of each view and latent."""
    found, names = _sights(fit), fit.names["latent"]
    sees, margin = found.sees.double().cpu().numpy(), float(found.margin)
    lost = [names[k] for k in np.flatnonzero(sees.max(0) < SURE)]
    if lost:
        return Lack(f"no view surely sees {', '.join(lost)}", "fewer latents, or more rows", rows=2.0 * data.rows)
    unsure = np.argwhere(np.minimum(sees, 1 - sees) > 1 - SURE)
    if len(unsure):
        each = [f"{names[k]} by {data.view_names[v]!r} ({sees[v, k]:.2f})" for v, k in unsure]
        rows = max(rows_to_decide(data.rows, float(min(sees[v, k], 1 - sees[v, k]))) for v, k in unsure)
        return Lack(f"whether these are seen is open: {', '.join(each[:3])}", "more rows", rows=rows)
    if margin > EVIDENT:
        return None
    said = f"other sets of latents that views see fit nearly as well ({margin:.1f} nats less)"
    return Lack(said, "more rows, or more features of each view", rows=2.0 * data.rows)


def _views_counted(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        margin = float(fit.chains.chain(fit.reference).number_margin())
    if margin > EVIDENT:
        return None
    said = f"another number of latents fits {'better' if margin < 0 else 'nearly as well'} ({margin:+.1f} nats)"
    return Lack(said, "another number of latents, or more rows", rows=2.0 * data.rows)


def _views_paired(fit: Fit, data: Data) -> Lack | None:
    together, needed = _sights(fit).together.double().cpu().numpy(), PAIRED * len(fit.names["latent"])
    least = together + np.diag(np.full(len(together), np.inf))
    if least.min() >= needed:
        return None
    v, w = divmod(int(least.argmin()), len(least))
    said = f"{data.view_names[v]!r} and {data.view_names[w]!r} are together in {least.min():.0f} rows, of {needed:.0f}"
    rows = data.rows * needed / least.min() if least.min() > needed / FAR else 0.0
    return Lack(f"{said} that are asked", "rows with both", rows=rows)


def _views_tell(fit: Fit, data: Data) -> Lack | None:
    """Whether a view's loadings on the latents that it sees have full rank, beyond what noise gives."""
    weakest = _sights(fit).weakest.double().cpu().numpy()
    if weakest.min() >= BY_NOISE:
        return None
    v = int(weakest.argmin())
    said = f"{data.view_names[v]!r} shows a combination of the latents that it sees {weakest[v]:.1f} times as far as "
    rows = data.rows * (BY_NOISE / weakest[v]) ** 2 if weakest[v] > 1 else 0.0
    return Lack(f"{said}noise would ({BY_NOISE} is asked)", "more features of it, that differ", rows=rows)


def _shared_as_one(fit: Fit, data: Data) -> Lack | None:
    blurred = _sights(fit).blurred.double().cpu().numpy()
    if blurred.max() <= SETTLED:
        return None
    v, w = divmod(int(blurred.argmax()), len(blurred))
    said = f"what {data.view_names[v]!r} and {data.view_names[w]!r} both see may correlate less than 1"
    rows = data.rows * min(float(blurred.max()) / SETTLED, FAR) ** 2
    return Lack(
        f"{said}: its standard error is {blurred.max():.2f}", "more rows, or features with less noise", rows=rows
    )


CHECKS: dict[str, FitCheck] = {
    "latents_shared": _latents_shared,
    "sees_told": _sees_told,
    "views_counted": _views_counted,
    "views_paired": _views_paired,
    "views_tell": _views_tell,
    "shared_as_one": _shared_as_one,
}
