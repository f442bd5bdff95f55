"""Whether latents that are turned among each other fit as well: chains begun there, set beside the one they came from.

`infer.perturbed_chains` fits them. A chain that comes back, or stays where it fits worse, is evidence that the
objective knows the latents; one that stays elsewhere and fits as well is evidence that it does not, and one that fits
better that the fit has not found the best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.infer.held_out import row_objectives, shared_terms
from pyrocrl.infer.perturbed_chains import perturbed_chains
from pyrocrl.infer.weights import TIE, error_of_sum
from pyrocrl.judge.checks.shared import AGREE, AGREE_EACH, EVIDENT, FAR, MOST_ROWS, SURE

ASSUMPTION = "latents that are turned among each other fit worse"
LEVEL = 0.01  # of the likelihood-ratio test by which a turn fits worse


@dataclass(frozen=True)
class Perturbed:
    """Perturbed chains beside the reference chain of their fit.

    agreement (chain, latent): with its latents. worse (chain,): nats by which each fits worse. enough: nats that tell.
    told (chain,): nats^2 a row in which the two answers differ; nan where evidence is compared. rows: of the fit.
    gained (chain,): nats by which each got better in the second half of its fit. stayed (chain,): whether its latents
    are where they were turned to, as those that are not trained.
    """

    agreement: np.ndarray
    worse: np.ndarray
    enough: float
    told: np.ndarray
    rows: int
    gained: np.ndarray
    stayed: np.ndarray

    @property
    def back(self) -> np.ndarray:
        """(chain,) whether it came back."""
        return (self.agreement.mean(1) >= AGREE) & (self.agreement.min(1) >= AGREE_EACH)

    @property
    def better(self) -> np.ndarray:
        """(chain,) whether it fits better elsewhere."""
        return ~self.back & (self.worse < -self.enough)

    @property
    def climbing(self) -> np.ndarray:
        """(chain,) whether it fits worse elsewhere, and might not if it were fitted for as long again."""
        return ~self.back & (self.worse > self.enough) & (self.worse <= 2 * self.gained)

    @property
    def as_good(self) -> np.ndarray:
        """(chain,) whether it fits as well elsewhere."""
        return ~self.back & (np.abs(self.worse) <= self.enough)

    def __str__(self) -> str:
        parts = []
        if self.back.any():
            parts.append(f"{int(self.back.sum())} came back to the same latents")
        for c in np.flatnonzero(~self.back):
            compared = f"{abs(self.worse[c]):,.0f} nats {'better' if self.worse[c] < 0 else 'worse'}"
            still = ", and stayed there" * bool(self.stayed[c]) + ", and it still gains" * bool(self.climbing[c])
            parts.append(f"1 fits {compared} (a latent agrees {self.agreement[c].min():.2f}{still})")
        told = "" if self.back.all() else f"; differences of {self.enough:.0f} nats or more tell"
        return ", ".join(parts) + told

    def lack(self, names: list[str]) -> Lack | None:
        """Where turned latents fit as well: with which rows that would probably be told, if with any."""
        if not self.as_good.any():
            return None
        worst = int(np.flatnonzero(self.as_good)[self.worse[self.as_good].argmin()])
        weak = tuple(name for name, a in zip(names, self.agreement[worst], strict=True) if a < AGREE_EACH)
        reason = f"turned among each other, {', '.join(weak) or 'latents'} fit as well ({self})"
        told = self.told[worst]
        needed = 2 * self.rows if math.isnan(told) else 2 * math.log(SURE / (1 - SURE)) / max(told, 1e-12)
        rows = 0.0 if needed > FAR * self.rows else max(needed, 2.0 * self.rows)
        return Lack(reason, "", rows=rows, which=weak)


def compare(fit: Fit, data: Data, chains: int, seed: int) -> Perturbed | None:
    """`chains` perturbed chains beside the fit's reference; None where there are none. data: those of the fit.

    Evidence is compared where the model knows it. Otherwise the objective of the fitted rows, by the likelihood-ratio
    test of Wilks (1938): with K latents a turn has K (K - 1) parameters, and the noise of the objective is added.
    """
    found = perturbed_chains(fit, data, chains=chains, seed=seed)
    if found is None:
        return None
    turned = range(1, found.chains.count)
    used = fit.in_use(fit.reference)
    agreement = np.zeros((len(turned), len(used)))
    for chain in turned:
        aligned = fit.group.align(found.anchor[chain], fit.anchor[fit.reference])
        there = aligned.places >= 0
        agreement[chain - 1, aligned.places[there]] = aligned.agreement[there]
    agreement, stayed = agreement[:, used], np.array(found.meta["stayed"][1:])
    rows = fit.fitted_rows(data)
    if fit.evidence_parts is not None and found.evidence_parts is not None:
        own, parts = fit.evidence_parts[fit.reference], found.evidence_parts
        best = max(own, parts[0], key=lambda one: one.sum())
        worse = (best - parts[1:]).sum(1)
        error = np.hypot(error_of_sum(best - parts[1:]), fit.program.evidence_spread())
        enough = max(EVIDENT, TIE * float(error.max()))
        return Perturbed(agreement, worse, enough, np.full(len(worse), np.nan), len(rows), 0 * worse, stayed)
    fitted = data.rows_at(rows)
    some = fitted.spread(MOST_ROWS)
    batch = fit.batch_of(fitted.rows_at(some)).annealed()
    each: list[torch.Tensor] = []
    each_shared: list[torch.Tensor] = []
    for one in (seed, seed + 1):
        for out, of in ((each, row_objectives), (each_shared, shared_terms)):
            out.append(torch.cat([of(found.chains, batch, one), of(fit.chains, batch, one)[[fit.reference]]]))
    shared = torch.stack(each_shared).cpu().numpy()
    objective = (
        torch.stack(each).cpu().numpy()
    )  # (noise, chain, rows), the reference chain twice: fitted on, and as it was
    times = len(rows) / len(some)
    total = times * objective.sum(2) + shared  # (noise, chain)
    best = 0 if total[:, 0].sum() > total[:, -1].sum() else -1
    gap, apart = objective[:, [best]] - objective[:, 1:-1], shared[:, [best]] - shared[:, 1:-1]
    noise = 0.25 * (gap[0] - gap[1]) ** 2  # variance of the mean of both
    told = np.maximum(gap.mean(0).var(1) - noise.mean(1), 0.0)
    error = np.sqrt(times**2 * noise.sum(1) + 0.25 * (apart[0] - apart[1]) ** 2)  # (chain,)
    turns = int(used.sum() * (used.sum() - 1))
    enough = float(chi2.isf(LEVEL, turns) / 2 + 2 * error.max())
    worse = (times * gap.sum(2) + apart).mean(0)
    history = found.history[:, [1 + chain for chain in found.kept[1:]]]  # (look, chain)
    gained = len(rows) * (history[-1] - history[(len(history) - 1) // 2])
    return Perturbed(agreement, worse, enough, told, len(rows), gained, stayed)
