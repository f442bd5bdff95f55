"""What tests of a fit return, and a draw of the latents beside what it leaves of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import dependence, goodness
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import LEVEL, MOST_ROWS
from pyrocrl.turns import drawing

MOST_FEATURES = 200  # whose covariance a test looks at
BENT_OFF = 0.01  # part of a feature's variance by which a sum of curves may be off


@dataclass(frozen=True)
class Found:
    """p: the test's p-value, corrected for the number of tests; detail: what was seen; remedy: what to try."""

    name: str
    p: float
    detail: str
    remedy: str
    tested: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The test, its p-value and what was seen."""
        p = f"p = {self.p:.2g}" if self.p >= 1e-300 else "p < 1e-300"
        return f"{self.name}: {p}, {self.detail}"

    @property
    def fails(self) -> bool:
        return self.p < LEVEL


Test = Callable[[Fit, Data], Found | None]


def goes_with_latents(
    fit: Fit, data: Data, *, ranks: bool = False, white: bool = False
) -> tuple[float, int, list[str]]:
    """p that what is left of a feature goes with latents, the feature, and the latents' names. ranks: of latents that
    are not uniform, their ranks stand for them; white: those of latents made uncorrelated."""
    z, left, names = draw_and_left(fit, data)
    if white:
        z = goodness.whitened(z, np.zeros(len(z), int))
    if ranks:
        z = (stats.rankdata(z, axis=0) - 0.5) / len(z)
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    spread, noise = batch.x.double().cpu().numpy().var(0), np.maximum(left.var(0), 1e-12)
    p, j, which = dependence.interactions(left / np.sqrt(noise), z, BENT_OFF * spread / noise)
    return p, j, [names[k] for k in which]


def draw_and_left(fit: Fit, data: Data) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A draw of the latents in use (row, latent), what it leaves of features, and the latents' names."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(59), torch.no_grad():
        values = stories.drawn(program, batch)
        left = batch.x - stories.expected(program, batch, values)
    used, places = np.flatnonzero(fit.in_use(fit.reference)), fit.alignments[fit.reference].places
    names = [fit.names["latent"][int(places[k])] for k in used]
    return values["z"].double().cpu().numpy()[:, used], left.double().cpu().numpy(), names
