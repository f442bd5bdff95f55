"""Matrix factorisation of counts whose factors learn their priors: draws of loadings, scores, priors and all else.

    share, slab, weights, R, L and z as in `exact.matrix_factors`
    base_gj ~ N(centre_j, BASE^2),  log usual ~ N(log DISPERSION, 1),  log r_j ~ N(log usual, 1)
    x_ij ~ NegativeBinomial(mean size_i exp(base_gj + L_j z_i), dispersion r_j), g the batch of row i

Metropolis within Gibbs, exact given how many factors are on: loadings, baselines, dispersions and a row's scores given
their components move as in `exact.count_factors`, priors as in `exact.matrix_factors`. A score and its component also
move together, for a row hardly comes to be without a latent, or with it, otherwise: one latent after the other, where
the log-likelihood is replaced by its second-order expansion around two Newton steps from a score of 0. That knows
nothing of the score there is, and given it the mixture's posterior is closed, so that what it is wrong by is the ratio
of the likelihood to the expansion.

Before draws are kept, factors are turned to the most zeros of loadings and to scores that are most spread in size, and
left out on trial, each where that is better by BIC after as many sweeps. Longer than other files because each of these
has its own trial.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from threadpoolctl import threadpool_limits

from pyrocrl.exact.count_factors import CLIMBS, DISPERSION, FROZEN, LENGTH, STEEPEST, CountSampler, CountStart, cells
from pyrocrl.exact.count_scores import RowsOfCounts, components_given_counts
from pyrocrl.exact.matrix_factors import DRAWS, ETA, SLAB, Priors, weights_of
from pyrocrl.exact.rotations import through_zeros, varimax
from pyrocrl.exact.score_mixtures import GRID, evidence_given
from pyrocrl.exact.spike_slab import MANY, proper

Floats = NDArray[np.float64]
LEAST = 1e-300  # of a weight
WARM, TRIAL, LOOKS = 60, 12, 2  # sweeps before the first trial and in one; times that it is looked at, two sweeps apart
TRIALS = 2  # factors that are tried, of which the least is missed
TURNED = 0.98  # cosine from which scores are where a turn would have them
KEPT = ("z", "loadings", "used", "base", "dispersion", "walk")
OWN = ("share", "slab", "weights", "counts", "scale", "correlation")


class MatrixCountDraws(NamedTuple):
    """Draws of one run: share, slab (draw, latent), weights (draw, latent, component), loadings (draw, feature,
    latent), 0 where the mask is shut, correlation_tril (draw, latent, latent), base (draw, batch, feature), dispersion
    (draw, feature) and usual (draw,), what dispersions are about."""

    share: Floats
    slab: Floats
    weights: Floats
    loadings: Floats
    correlation_tril: Floats
    base: Floats
    dispersion: Floats
    usual: Floats


class MatrixCountStart(NamedTuple):
    """Of the latents in use: scores (row, latent), in units in which they are mixtures with the weights (latent,
    component); correlation; there (feature, latent): probable loadings, of which the shares are."""

    scores: Floats
    weights: Floats
    correlation: Floats
    there: NDArray[np.bool_]


class MatrixCountSampler(CountSampler):
    """State and sweeps of a chain over x (row, feature); all but `latents`, how many are offered, as there. Scores z
    (latent, row) are in the units of `Priors`."""

    lone, spread = True, 1.0

    def __init__(
        self,
        x: Floats,
        size: Floats,
        group: NDArray[np.int64],
        batches: int,
        centre: Floats,
        start: MatrixCountStart,
        latents: int,
        rng: np.random.Generator,
    ) -> None:
        used = len(start.correlation)
        begin = CountStart(start.scores, start.correlation, np.ones(used, dtype=bool))
        super().__init__(x, size, group, batches, centre, begin, SLAB, ETA, rng)
        self.heated = False  # a latent may come back
        self.priors = Priors(
            start.scores, start.weights, np.where(start.there, SLAB, 0.0), start.correlation, latents, rng
        )

    def run_matrix(self, sweeps: int) -> MatrixCountDraws:
        """`DRAWS` draws of so many sweeps, but for a quarter of them: in its place are those that settle factors."""
        kept, sweeps = [], sweeps - sweeps // 4
        pick = np.linspace(0, sweeps - 1, DRAWS).round().astype(int)
        quiet = np.errstate(over="ignore", invalid="ignore")  # far proposals, which are refused
        with threadpool_limits(1 if self.features < MANY else None), quiet:
            for _ in range(CLIMBS):
                for _ in range(2):
                    self.move_loadings()
                    self.move_base()
                    self.move_dispersion(learn=True)
                self.move_scores(climb=True)
            self.settle(WARM)
            self.turn_factors()
            self.leave_out_factors()
            self.turn_factors()
            self.settle(FROZEN)
            for t in range(sweeps):
                self.count_sweep()
                for _ in range(int((pick == t).sum())):
                    told = self.priors.in_story_units(self.loadings)
                    kept.append((*told, self.base.T.copy(), self.dispersion.copy(), np.exp(self.usual)))
        return MatrixCountDraws(*(np.array(part) for part in zip(*kept, strict=True)))

    # -- how many factors are on -------------------------------------------------------------------------------

    def leave_out_factors(self) -> None:
        """Leave out factors, those first of which the least would be missed, where the posterior is better without, by
        BIC: what a logarithm has bent of one factor its start takes for another."""
        now = self.score_factors()
        while len(self.z):
            alone = 1 / np.diag(np.linalg.inv(self.priors.correlation))
            least = np.argsort((self.loadings**2).sum(0) * self.priors.size**2 * alone)
            for k in least[:TRIALS]:
                kept = self._state()
                self.leave_factor_out(int(k))
                self.settle(TRIAL)
                if (new := self.score_factors()) > now:
                    now = new
                    break
                self._restore(kept)
            else:
                return

    def leave_factor_out(self, k: int) -> None:
        """Without latent k: what it and the one that it correlates with most give to log rates is the other's, as far
        as one can (the best approximation of rank one)."""
        size = np.maximum((self.z**2).mean(1), 1e-12)
        alike = np.abs(self.z[k] @ self.z.T) / np.sqrt(size * size[k])
        alike[k] = -1.0
        m = int(alike.argmax())
        if m != k and self.loadings[:, [k, m]].any(0).all():
            pair, scores = self.loadings[:, [k, m]], self.z[[k, m]]
            left, value, right = np.linalg.svd(pair, full_matrices=False)
            top, both, along = np.linalg.svd((value[:, None] * right) @ scores, full_matrices=False)
            new = both[0] * along[0]
            unit = math.sqrt((new**2).mean() / size[m])
            self.z[m], self.loadings[:, m] = new / unit, unit * (left @ top[:, 0])
        self.z, self.loadings = np.delete(self.z, k, 0), np.delete(self.loadings, k, 1)
        self.used, self.latents = np.delete(self.used, k), self.latents - 1
        self.priors.leave_out(k)
        self.observe()

    def turn_factors(self) -> None:
        """Go to loadings that fit as well, most of them 0, and to scores that fit as well, most spread in size; let all
        else follow, and stay there if that is better."""
        for spread in (False, True):
            size = self.z.std(1)
            if len(size) < 2 or not (self.loadings != 0).any(0).all() or not size.all():
                return
            loadings, between = self.loadings * size, np.asarray(np.corrcoef(self.z), dtype=np.float64)
            if spread:
                left, value, right = np.linalg.svd(self.z.T / size, full_matrices=False)
                white = (right.T / value * math.sqrt(self.rows)) @ right
                turn = np.linalg.inv(white @ varimax(math.sqrt(self.rows) * left @ right, normalise=False)).T
                found, correlation = loadings @ turn, np.eye(len(size))
                if (np.sort(np.abs(turn / np.linalg.norm(turn, axis=0)), 0)[-1] > TURNED).all():
                    continue
            else:
                noise = 1.0 / np.sqrt(((self.now.bend @ self.z.T**2) / size**2).min(1) + SLAB**-2)
                found, correlation = through_zeros(loadings, between, noise, self.rng)
                if found is loadings:
                    continue
                turn = np.linalg.lstsq(loadings, found, rcond=None)[0]
            if np.linalg.cond(turn) < STEEPEST:
                self._try(np.linalg.solve(turn, self.z / size[:, None]), found, correlation)

    def _try(self, z: Floats, loadings: Floats, correlation: Floats) -> None:
        """Go to these scores (latent, row) and loadings, if that is better."""
        kept = self._state()
        self.settle(FROZEN)  # what is turned gets as many sweeps
        before, other = self.score_factors(), self._state()
        self._restore(kept)
        weights, unit = weights_of(z.T, np.zeros(len(z)))
        self.z, self.loadings = np.ascontiguousarray(z / unit[:, None]), loadings * unit
        own = weights, self.loadings, proper(correlation), self.priors.offered, self.rng
        self.priors = Priors(self.z.T, *own)
        self.observe()
        self.frozen = True
        self.settle(FROZEN)
        self.frozen = False
        if not self.score_factors() > before:
            self._restore(other)

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Copies of all that moves, and of priors."""
        own = {name: np.copy(vars(self)[name]) for name in KEPT} | {"latents": self.latents, "usual": self.usual}
        return own, {name: np.copy(vars(self.priors)[name]) for name in OWN}

    def _restore(self, kept: tuple[dict[str, Any], dict[str, Any]]) -> None:
        vars(self).update(kept[0])
        vars(self.priors).update(kept[1])
        self.observe()

    def settle(self, sweeps: int) -> None:
        """So many sweeps in which dispersions find their steps."""
        for _ in range(sweeps):
            self.count_sweep(learn=True)

    def score_factors(self) -> float:
        """Log posterior of which factors are on by BIC, scores summed out to second order, as a few sweeps find it."""
        total = []
        for _ in range(LOOKS):
            self.settle(2)
            count = (self.loadings != 0).sum(0)
            free = count.sum() + len(count) * (len(count) + 1) / 2
            a = 1 / self.priors.offered
            masks = special.betaln(a + count, 1 + self.features - count) - special.betaln(a, 1)
            total.append(self.log_evidence() + float(masks.sum()) - 0.5 * float(free) * math.log(self.rows))
        return float(np.mean(total))

    def log_evidence(self) -> float:
        """Log-probability of counts given all but scores and components, to second order about their mode."""
        if not len(self.z):
            return float(self.now.fit.sum() + self.of_r.sum())
        level = self.level - self.loadings @ self.z
        tril, loadings = np.linalg.cholesky(self.priors.correlation), self.loadings * self.priors.size
        parts = self.x.T, level.T, loadings, self.dispersion, tril
        rows, weights = RowsOfCounts(*(torch.as_tensor(part) for part in parts)), torch.as_tensor(self.priors.weights)
        _, mean, inner, seen = components_given_counts(rows, weights)
        there = cells(self.x, level + loadings @ mean.numpy().T, self.dispersion)
        told = torch.as_tensor(there.fit.sum(0)) - (mean * seen).sum(1)
        told += 0.5 * (mean * (inner @ mean[..., None])[..., 0]).sum(1)
        return float((told + evidence_given(inner, seen, rows.tril, weights)).sum() + self.of_r.sum())

    # -- moves -------------------------------------------------------------------------------------------------

    def column_prior(self, k: int, count: int) -> tuple[float, float]:
        share = np.clip(self.priors.share[k], LEAST, 1 - 1e-15)
        return float(special.logit(share)), float(self.priors.slab[k] ** -2)

    def scores_precision(self, use: NDArray[np.int64]) -> Floats:
        scale = self.priors.scale[:, use]
        between = np.linalg.inv(self.priors.correlation[np.ix_(use, use)])
        return np.asarray(between / (scale[:, :, None] * scale[:, None, :]))

    def move_scores(self, climb: bool = False) -> None:
        """All of a row given their components; then each with its component."""
        super().move_scores(climb)
        if climb:
            return
        between, y = np.linalg.inv(self.priors.correlation), self.z / self.priors.scale.T
        for k in self.rng.permutation(len(self.z)):
            pull = y[k] * between[k, k] - between[k] @ y  # mean of y given the others, times its precision
            self.move_component(int(k), pull, between[k, k])
            self.redraw_component(int(k), pull, between[k, k])
            y[k] = self.z[k] / self.priors.scale[:, k]

    def move_component(self, k: int, pull: Floats, precision: float) -> None:
        """Latent k's scores and their components, given all else: `precision` of y a priori, and `pull` (row,), this
        times its mean."""
        rng, weights = self.rng, self.priors.weights[k]
        own = np.flatnonzero(self.loadings[:, k])
        x, r, loadings = self.x[own], self.dispersion[own], self.loadings[own, k]
        without = self.level[own] - loadings[:, None] * self.z[k]
        unit = float(np.sqrt(weights @ GRID**2))
        slope, bend, at = np.zeros(self.rows), np.zeros(self.rows), np.zeros(self.rows)
        fit = np.zeros(self.rows)
        for last in (False, True):
            now = cells(x, without + loadings[:, None] * at, r)
            fit, slope, bend = now.fit.sum(0), loadings @ now.slope, loadings**2 @ now.bend
            if not last:
                step = (slope + bend * at + pull / unit) / (bend + precision / unit**2)
                at = np.clip(step, -LENGTH * unit, LENGTH * unit)
        seen = slope + bend * at
        prior = precision / GRID**2
        total, whole = seen[:, None] + pull[:, None] / GRID, bend[:, None] + prior
        log_p = np.log(np.maximum(weights, LEAST)) + 0.5 * np.log(prior / whole) + 0.5 * total**2 / whole
        p = np.exp(log_p - log_p.max(1, keepdims=True)).cumsum(1)
        drawn = (p < (rng.random(len(p)) * p[:, -1])[:, None]).sum(1)
        picked = drawn[:, None]
        spread = 1 / np.take_along_axis(whole, picked, 1)[:, 0]
        value = np.take_along_axis(total, picked, 1)[:, 0] * spread + np.sqrt(spread) * rng.standard_normal(len(p))

        def expanded(u: Floats) -> Floats:
            return np.asarray(fit + slope * (u - at) - 0.5 * bend * (u - at) ** 2)

        level = without + loadings[:, None] * value
        new, before = cells(x, level, r), self.z[k]
        gain = new.fit.sum(0) - expanded(value) - self.now.fit[own].sum(0) + expanded(before)
        taken = np.flatnonzero(np.log(rng.random(len(p))) < gain)
        self.z[k, taken] = value[taken]
        self.priors.scale[taken, k] = GRID[drawn[taken]]
        place = np.ix_(own, taken)
        self.level[place] = level[:, taken]
        for mine, other in zip(self.now, new, strict=True):
            mine[place] = other[:, taken]

    def redraw_component(self, k: int, pull: Floats, precision: float) -> None:
        """Components of latent k given its scores; and how many rows each has."""
        away = (self.z[k][:, None] / GRID - pull[:, None] / precision) ** 2
        log_p = np.log(np.maximum(self.priors.weights[k], LEAST)) - np.log(GRID) - 0.5 * precision * away
        p = np.exp(log_p - log_p.max(1, keepdims=True)).cumsum(1)
        drawn = (p < (self.rng.random(len(p)) * p[:, -1])[:, None]).sum(1)
        self.priors.scale[:, k] = GRID[drawn]
        self.priors.counts[k] = np.bincount(drawn, minlength=len(GRID))

    def move_scales(self) -> None:
        """R and the latents' scales."""
        unit = self.priors.move_units(self.z.T)
        self.z /= unit[:, None]
        self.loadings *= unit

    def move_shares(self) -> None:
        """Shares, slabs and weights, and what dispersions are about."""
        self.priors.move_shares(self.loadings)
        weight = 1 + self.features / self.spread**2
        mean = (math.log(DISPERSION) + np.log(self.dispersion).sum() / self.spread**2) / weight
        self.usual = float(mean + self.rng.standard_normal() / math.sqrt(weight))
