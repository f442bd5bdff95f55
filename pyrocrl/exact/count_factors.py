"""Factor analysis of counts with spike-and-slab loadings of log rates: draws of loadings, scores and all else.

    mask ~ an Indian buffet of `latents` dishes, none eaten by one feature alone (`beta_bernoulli.BuffetColumns`)
    L_jk ~ N(0, slab^2) where mask_jk, else 0;  R ~ LKJ(eta),  z_i ~ N(0, R)
    base_gj ~ N(centre_j, BASE^2),  log r_j ~ N(log DISPERSION, SPREAD^2)
    x_ij ~ NegativeBinomial(mean size_i exp(base_gj + L_j z_i), dispersion r_j), g the batch of row i

Metropolis within Gibbs, exact but for the number of latents, which the start settles (`Sampler` of `exact.spike_slab`):
nothing is conjugate, yet log-likelihoods are concave in each block. Mask and loading of one latent move for all
features at once: their proposal is the Laplace approximation around one or two Newton steps from a loading of 0, which
knows nothing of the loading there is, so that what it is wrong by is the ratio of one density to another. Scores of a
row move together, and so do baselines, by a Newton step from where they are (Gamerman 1997), dispersions by random
walks. R and the latents' scales move by parameter expansion, as with floats.

Before draws are kept latents are turned to the most zeros (`rotations.through_zeros`), as with floats: the sampler
hardly leaves a rotation in which a latent has taken up a part of another. Longer than other files because every block
has a proposal of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special
from threadpoolctl import threadpool_limits

from pyrocrl.exact.rotations import through_zeros
from pyrocrl.exact.spike_slab import MANY, Sampler, proper

Floats = NDArray[np.float64]
BASE, DISPERSION, SPREAD = 2.0, 3.0, 1.5  # deviation of log baselines; median of dispersions, deviation of their log
LARGEST = 15.0  # of a log rate, as in `dists.NegativeBinomial`
CERTAIN = 500.0  # log odds of a mask that stays
ODDS = -7.0  # log odds of a loading below which one Newton step tells enough
STEP = 1.5  # longest Newton step of a loading
LENGTH = 3.0  # longest Newton step of a row's scores
WARM, TURNS = 25, 2  # sweeps before latents are turned, and how often
SWEEPS, DRAWS = 120, 100  # sweeps after that, and draws that are kept of these
STEEPEST = 30.0  # condition number of a turn
KEPT = ("loadings", "correlation", "z", "base", "dispersion", "used")
FROZEN = 8  # sweeps after a turn that leave the mask as it is
MOST = 1e6  # entries of x that a chain looks at
CLIMBS = 4  # rounds of Newton steps for scores before the first sweep


class CountDraws(NamedTuple):
    """loadings (draw, feature, latent), 0 where the mask is shut; base (draw, batch, feature); dispersion (draw,
    feature); correlation_tril (draw, latent, latent), the Cholesky factor of R; log_concentration (draw,)."""

    loadings: Floats
    base: Floats
    dispersion: Floats
    correlation_tril: Floats
    log_concentration: Floats


class Cells(NamedTuple):
    """Of counts at some log means, each (feature, row): log-likelihood up to what depends on dispersions alone, its
    slope in the log mean, and less its second derivative, which is positive."""

    fit: Floats
    slope: Floats
    bend: Floats

    def put(self, where: NDArray[np.int64], other: Cells, some: NDArray[np.int64]) -> None:
        """Let the features `where` be those at the places `some` of the other."""
        for mine, new in zip(self, other, strict=True):
            mine[where] = new[some]


def cells(x: Floats, level: Floats, dispersion: Floats) -> Cells:
    """x, level (feature, row): counts and log means; dispersion (feature,)."""
    r = dispersion[:, None]
    mean = np.exp(level)
    total, whole = mean + r, x + r
    share = mean / total
    fitted = whole * share
    return Cells(x * level - whole * np.log(total), x - fitted, fitted * (1.0 - share))


class CountStart(NamedTuple):
    """scores (row, latent) of unit variance; correlation (latent, latent); used (latent,): which may have features."""

    scores: Floats
    correlation: Floats
    used: NDArray[np.bool_]


class CountSampler(Sampler):
    """State and sweeps of a chain over x (row, feature). size (row,): of rows, 1 on average; group (row,): their place
    among the `batches`; centre (feature,): of the prior of log baselines; start: where it begins."""

    lone = False  # whether a latent may have one feature alone
    usual, spread = math.log(DISPERSION), SPREAD  # mean and deviation of log dispersions a priori

    def __init__(
        self,
        x: Floats,
        size: Floats,
        group: NDArray[np.int64],
        batches: int,
        centre: Floats,
        start: CountStart,
        slab: float,
        eta: float,
        rng: np.random.Generator,
    ) -> None:
        self.x = np.ascontiguousarray(x.T, dtype=np.float64)
        self.features, self.rows = self.x.shape
        self.latents, self.slab, self.eta, self.rng = len(start.correlation), slab, eta, rng
        self.centre, self.group = centre, group
        self.batch = (group[:, None] == np.arange(batches)).astype(np.float64)  # (row, batch)
        self.log_size = np.log(size)
        self.base = np.repeat(centre[:, None], self.batch.shape[1], 1)  # (feature, batch)
        self.dispersion = np.full(self.features, DISPERSION)
        self.walk = np.full(self.features, 0.5)
        self.z, self.correlation = np.ascontiguousarray(start.scores.T), start.correlation.copy()  # (latent, row)
        self.loadings = np.zeros((self.features, self.latents))
        self.used, self.concentration = start.used.copy(), 1.0
        self.heated = self.settled = True
        self.frozen = False
        self.observe()

    def observe(self) -> None:
        """Everything that follows from counts and state."""
        self.there = np.nonzero(self.x)
        self.counted = self.x[self.there]
        self.level = self._level(self.loadings, self.z, self.base)
        self.now = cells(self.x, self.level, self.dispersion)
        self.of_r = self._of_r(self.dispersion)

    def _level(self, loadings: Floats, z: Floats, base: Floats) -> Floats:
        level = loadings @ z + (base @ self.batch.T if base.shape[1] > 1 else base)
        return np.minimum(level, LARGEST) + self.log_size

    def _of_r(self, r: Floats) -> Floats:
        """(feature,) the part of the log-likelihood that depends on dispersions alone."""
        of_counts = np.bincount(self.there[0], special.gammaln(self.counted + r[self.there[0]]), self.features)
        zero = np.bincount(self.there[0], minlength=self.features)
        return of_counts - zero * special.gammaln(r) + self.rows * r * np.log(r)

    def run(self, warm: int = WARM, sweeps: int = SWEEPS, draws: int = DRAWS) -> CountDraws:  # type: ignore[override]
        """Draws of the posterior, from the scores at the start."""
        with threadpool_limits(1 if self.features < MANY else None):
            for _ in range(CLIMBS):
                for _ in range(2):
                    self.move_loadings()
                    self.move_base()
                    self.move_dispersion(learn=True)
                self.move_scores(climb=True)
            for _ in range(TURNS):
                for _ in range(warm):
                    self.count_sweep(learn=True)
                self.turn_scores()
            kept, pick = [], set(np.linspace(0, sweeps - 1, draws).round().astype(int).tolist())
            for t in range(sweeps):
                self.count_sweep()
                if t in pick:
                    tril = np.linalg.cholesky(self.correlation)
                    kept.append(
                        (self.loadings.copy(), self.base.T.copy(), self.dispersion, tril, math.log(self.concentration))
                    )
        return CountDraws(*(np.array(part) for part in zip(*kept, strict=True)))

    def turn_scores(self) -> None:
        """Go to loadings that fit as well, most of them 0, let all else follow, and stay there if that is better."""
        use, before = np.flatnonzero(self.mask.any(0)), self._score()
        kept = {name: np.copy(vars(self)[name]) for name in KEPT}
        if len(use) > 1:
            place, loadings = np.ix_(use, use), self.loadings[:, use]
            noise = 1.0 / np.sqrt((self.now.bend @ self.z[use].T ** 2).min(1) + self.slab**-2)
            found, correlation = through_zeros(loadings, self.correlation[place], noise, self.rng)
            if found is not loadings:
                found[:, (found != 0).sum(0) == 1] = 0.0
                turn = np.linalg.lstsq(loadings, found, rcond=None)[0]
                if np.linalg.cond(turn) < STEEPEST:
                    self.z[use] = np.linalg.solve(turn, self.z[use])
                    self.loadings[:, use], self.correlation[place] = found, proper(correlation)
                    self.observe()
        self.frozen = True
        for _ in range(FROZEN):
            self.count_sweep(learn=True)
        self.frozen = False
        if not self._score() > before:
            vars(self).update(kept)
            self.observe()
        for _ in range(FROZEN):
            self.count_sweep(learn=True)

    def _score(self) -> float:
        """Log density of counts, scores and loadings now, the mask's by BIC."""
        fit = float(self.now.fit.sum() + self.of_r.sum())
        prior = np.linalg.solve(self.correlation, self.z @ self.z.T).trace()
        prior += self.rows * np.linalg.slogdet(self.correlation)[1]
        prior += float((self.loadings**2).sum()) / self.slab**2 + self.mask.sum() * math.log(self.rows)
        return fit - 0.5 * float(prior)

    def count_sweep(self, learn: bool = False) -> None:
        """Move all that is unknown once. learn: the walks of dispersions find their lengths."""
        self.move_scores()
        self.move_loadings()
        self.move_base()
        self.move_dispersion(learn=learn)
        self.move_scales()
        self.move_shares()

    def move_scales(self) -> None:
        """R and the latents' scales; scores of latents without features, given those of the others."""
        before = self.mask.any(0)
        unit = self.move_correlation(self.z @ self.z.T, self.rows)
        self.z /= unit[:, None]
        off, on = np.flatnonzero(~before), np.flatnonzero(before)
        if len(off):
            across = np.linalg.solve(self.correlation[np.ix_(on, on)], self.correlation[np.ix_(on, off)])
            left = self.correlation[np.ix_(off, off)] - self.correlation[np.ix_(off, on)] @ across
            noise = np.linalg.cholesky(left) @ self.rng.standard_normal((len(off), self.rows))
            self.z[off] = across.T @ self.z[on] + noise

    def move_loadings(self) -> None:
        """Mask and loadings, one latent after the other; a latent that has lost its features stays without."""
        for k in self.rng.permutation(np.flatnonzero(self.used)):
            self.move_count_column(int(k))
        if self.heated:
            self.used &= self.mask.any(0)

    def column_prior(self, k: int, count: int) -> tuple[float, float]:
        """Log odds of the mask of latent k, of which `count` features are there, and precision of its loadings."""
        a = self.concentration / self.latents
        share = np.clip(self.rng.beta(a + count, 1 + self.features - count), 1e-300, 1 - 1e-15)
        return float(special.logit(share)), self.slab**-2

    def move_count_column(self, k: int) -> None:
        """Mask and loadings of latent k, given all else."""
        z, square, before, rng = self.z[k], self.z[k] ** 2, self.loadings[:, k].copy(), self.rng
        open_ = before != 0
        prior, flat = self.column_prior(k, int(open_.sum()))
        # at a loading of 0
        fit, slope, bend = self.now.fit.sum(1), self.now.slope @ z, self.now.bend @ square
        current, own = fit.copy(), np.flatnonzero(open_)
        if len(own):
            without = cells(self.x[own], self.level[own] - before[own, None] * z, self.dispersion[own])
            fit[own], slope[own], bend[own] = without.fit.sum(1), without.slope @ z, without.bend @ square
        precision = bend + flat
        mode = slope / precision
        odds = prior - 0.5 * np.log(precision / flat) + 0.5 * slope * mode
        # and again, from where that leads
        near = np.flatnonzero(odds > ODDS)
        if len(near):
            at = np.clip(mode[near], -STEP, STEP)
            there = cells(self.x[near], self.level[near] + (at - before[near])[:, None] * z, self.dispersion[near])
            slope = there.slope @ z - at * flat
            precision[near] = there.bend @ square + flat
            step = np.clip(slope / precision[near], -STEP, STEP)
            mode[near] = at + step
            gain = there.fit.sum(1) - fit[near] - 0.5 * at**2 * flat + slope * step - 0.5 * precision[near] * step**2
            odds[near] = prior + gain - 0.5 * np.log(precision[near] / flat)
        if self.frozen:
            odds = np.where(open_, CERTAIN, -CERTAIN)
        opened = rng.random(self.features) < special.expit(odds)
        value = np.where(opened, mode + rng.standard_normal(self.features) / np.sqrt(precision), 0.0)
        moved = np.flatnonzero(opened | open_)
        if not len(moved):
            return
        new = cells(self.x[moved], self.level[moved] + (value - before)[moved, None] * z, self.dispersion[moved])

        def surplus(loading: Floats, fitted: Floats) -> Floats:
            """Log density of this column less that of its proposal."""
            away = (loading - mode[moved]) ** 2 * precision[moved]
            slab = prior + 0.5 * np.log(flat / precision[moved]) - 0.5 * flat * loading**2 + 0.5 * away
            there = loading != 0
            return fitted + np.where(there, slab, 0.0) + np.logaddexp(0.0, np.where(there, -1, 1) * odds[moved])

        gain = surplus(value[moved], new.fit.sum(1)) - surplus(before[moved], current[moved])
        taken = np.flatnonzero(np.log(rng.random(len(moved))) < gain)
        after = before.copy()
        after[moved[taken]] = value[moved[taken]]
        if not self.lone and (after != 0).sum() == 1:
            return
        self.loadings[:, k] = after
        self.level[moved[taken]] += (after - before)[moved[taken], None] * z
        self.now.put(moved[taken], new, taken)

    def scores_precision(self, use: NDArray[np.int64]) -> Floats:
        """(latent, latent) of scores of these latents, or (row, latent, latent) where rows differ."""
        return np.asarray(np.linalg.inv(self.correlation[np.ix_(use, use)]), dtype=np.float64)

    def move_scores(self, climb: bool = False) -> None:
        """All scores of a row together, of the latents in use. climb: just the Newton step."""
        use = np.flatnonzero(self.used)
        if not len(use):
            return
        loadings, z = self.loadings[:, use], self.z[use].T
        between = self.scores_precision(use)
        first, second = np.triu_indices(len(use))
        pairs = loadings[:, first] * loadings[:, second]

        def pull(z: Floats) -> Floats:
            """(row, latent) by how much the log density of scores falls with them."""
            return np.asarray(z @ between if between.ndim == 2 else (between @ z[:, :, None])[:, :, 0])

        def proposal(now: Cells, z: Floats) -> tuple[Floats, Floats]:
            """Means (row, latent) and Cholesky factors of precisions (row, latent, latent)."""
            precision = np.empty((len(z), len(use), len(use)))
            precision[:, first, second] = precision[:, second, first] = now.bend.T @ pairs
            precision += between
            slope = now.slope.T @ loadings - pull(z)
            step = np.linalg.solve(precision, slope[:, :, None])[:, :, 0]
            length = np.linalg.norm(step, axis=1, keepdims=True)
            mean: Floats = z + step * np.minimum(1.0, LENGTH / np.maximum(length, 1e-12))
            return mean, np.asarray(np.linalg.cholesky(precision), dtype=np.float64)

        def log_density(at: Floats, mean: Floats, tril: Floats) -> Floats:
            white = np.einsum("rkl,rk->rl", tril, at - mean)
            return np.log(np.einsum("rkk->rk", tril)).sum(1) - 0.5 * (white**2).sum(1)

        mean, tril = proposal(self.now, z)
        noise = self.rng.standard_normal(z.shape)
        back = np.linalg.solve(tril.swapaxes(1, 2), noise[:, :, None])[:, :, 0]
        new_z = mean if climb else mean + back
        level = self.level + loadings @ (new_z - z).T
        new = cells(self.x, level, self.dispersion)
        if climb:
            taken = new.fit.sum(0) > self.now.fit.sum(0) - LENGTH
        else:
            prior = -0.5 * ((new_z * pull(new_z)).sum(1) - (z * pull(z)).sum(1))
            gain = new.fit.sum(0) - self.now.fit.sum(0) + prior
            gain += log_density(z, *proposal(new, new_z)) - log_density(new_z, mean, tril)
            taken = np.log(self.rng.random(self.rows)) < gain
        self.z[np.ix_(use, taken)] = new_z[taken].T
        self._accept(taken[None], level, new)

    def _accept(self, taken: NDArray[np.bool_], level: Floats, new: Cells) -> None:
        """Let cells be the new ones where `taken` (feature or 1, row or 1)."""
        np.copyto(self.level, level, where=taken)
        for mine, other in zip(self.now, new, strict=True):
            np.copyto(mine, other, where=taken)

    def move_base(self) -> None:
        """Log baselines of each feature in each batch."""

        def proposal(now: Cells, base: Floats) -> tuple[Floats, Floats]:
            precision = now.bend @ self.batch + BASE**-2
            slope = now.slope @ self.batch - (base - self.centre[:, None]) * BASE**-2
            return base + np.clip(slope / precision, -STEP, STEP), precision

        mean, precision = proposal(self.now, self.base)
        new_base = mean + self.rng.standard_normal(mean.shape) / np.sqrt(precision)
        apart = new_base - self.base
        level = self.level + (apart @ self.batch.T if apart.shape[1] > 1 else apart)
        new = cells(self.x, level, self.dispersion)
        back, other = proposal(new, new_base)
        gain = (new.fit - self.now.fit) @ self.batch
        away = (self.base - self.centre[:, None]) ** 2 - (new_base - self.centre[:, None]) ** 2
        gain += 0.5 * away * BASE**-2 + 0.5 * np.log(other / precision)
        gain += 0.5 * precision * (new_base - mean) ** 2 - 0.5 * other * (self.base - back) ** 2
        taken = np.log(self.rng.random(gain.shape)) < gain
        self.base = np.where(taken, new_base, self.base)
        self._accept(taken[:, self.group] if taken.shape[1] > 1 else taken, level, new)

    def move_dispersion(self, learn: bool = False) -> None:
        """Dispersions, by a random walk of their logarithms."""
        log_r = np.log(self.dispersion)
        new_log = log_r + self.walk * self.rng.standard_normal(self.features)
        new_r = np.exp(new_log)
        new, of_r = cells(self.x, self.level, new_r), self._of_r(new_r)
        gain = new.fit.sum(1) - self.now.fit.sum(1) + of_r - self.of_r
        gain += 0.5 * ((log_r - self.usual) ** 2 - (new_log - self.usual) ** 2) / self.spread**2
        taken = np.log(self.rng.random(self.features)) < gain
        self.dispersion, self.of_r = np.where(taken, new_r, self.dispersion), np.where(taken, of_r, self.of_r)
        self._accept(taken[:, None], self.level, new)
        if learn:
            self.walk = np.clip(self.walk * np.exp(0.3 * (np.minimum(1.0, np.exp(gain.clip(-50, 0))) - 0.44)), 0.02, 2)
