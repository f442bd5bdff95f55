"""Factor analysis with spike-and-slab loadings: draws of all but the latents, at a cost that is free of the rows.

    mask ~ an Indian buffet of `latents` dishes, none eaten by one feature alone (`beta_bernoulli.BuffetColumns`)
    L_jk ~ N(0, slab^2) where mask_jk, else 0;  v_j ~ InverseGamma(SHAPE, rate);  R ~ LKJ(eta)
    z_i ~ N(0, R),  x_i ~ N(L z_i, diag v)

A Gibbs sampler. Given (L, v, R), what the other conditionals need of the latents, sum z z^T and sum x z^T, is drawn
exactly from the second moments of x: z_i = B x_i + e_i with e_i ~ N(0, C), where the part of e in the span of x's
columns is a normal matrix and the rest enters as a Wishart matrix. Then a column of mask and L is one block, features
being independent given z (Knowles & Ghahramani 2011), v is conjugate, R moves by parameter expansion (Liu & Daniels
2006), together with the latents' scales, which hardly move otherwise.

To find the mode with the fewest latents the first sweeps count fewer rows, and then latents are turned to the most
zeros (`rotations.through_zeros`) and left out on trial: where BIC prefers it, they stay without features. Draws are
kept after that, of the others: a chain decides how many latents there are, it does not draw their number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special
from threadpoolctl import threadpool_limits

from pyrocrl.exact.rotations import likely_factors, promax, through_zeros

Floats = NDArray[np.float64]
SHAPE = 1.5  # of the variances' prior
MANY = 500  # features from which threads pay
LEAST_VARIANCE = 1e-5
START = 0.1  # loading at the start below which it is none
GRID = np.linspace(-4.0, 4.0, 81)  # of the log concentration


class Effort(NamedTuple):
    """heating, settling, sweeps: numbers of sweeps that count fewer rows, that are left out after them, and that are
    kept. least_rows: that the first sweep counts. frozen: sweeps after a turn that leave the mask as it is. trial,
    trials: sweeps after a latent is left out on trial, and how many latents are tried, the smallest first. draws: kept
    of the last sweeps. tries: of a column whose mask has not one entry."""

    heating: int = 200
    settling: int = 100
    sweeps: int = 400
    frozen: int = 30
    least_rows: int = 200
    trial: int = 16
    trials: int = 6
    draws: int = 200
    tries: int = 500


EFFORT = Effort()


class Draws(NamedTuple):
    """loadings (draw, feature, latent), 0 where the mask is shut; variance (draw, feature); correlation_tril (draw,
    latent, latent), the Cholesky factor of R; log_concentration (draw,)."""

    loadings: Floats
    variance: Floats
    correlation_tril: Floats
    log_concentration: Floats


def buffet_log_prob(log_concentration: Floats, count: NDArray[np.int64], features: int) -> Floats:
    """Log prior of masks with these numbers of features (latent,), at each of the log concentrations, an array."""
    a = np.exp(log_concentration)[..., None] / len(count)
    own = special.betaln(a + count, 1 + features - count) + np.log(a)
    one = math.log(features) + special.betaln(a + 1, features) + np.log(a)
    return (own - np.log(-np.expm1(one))).sum(-1)


def wishart_root(size: int, freedom: int, rng: np.random.Generator) -> Floats:
    """W of `size` rows, W W^T a draw of the identity's Wishart law (Bartlett 1933), singular where freedom < size."""
    if freedom < size:
        return rng.standard_normal((size, freedom))
    white = np.tril(rng.standard_normal((size, size)), -1)
    white[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    return white


def latent_moments(
    root: Floats, rows: int, loadings: Floats, variance: Floats, precision: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """sum x z^T (feature, latent) and sum z z^T (latent, latent) over `rows` rows whose mean of x x^T is root root^T,
    drawn given the rest; precision (latent, latent) of z a priori."""
    scaled = loadings / variance[:, None]
    tril = np.linalg.cholesky(linalg.inv(precision + loadings.T @ scaled))
    root = math.sqrt(rows) * root
    inside = root.T @ scaled @ (tril @ tril.T)
    inside = inside + rng.standard_normal(inside.shape) @ tril.T  # z, in the span of x's columns
    white = tril @ wishart_root(len(tril), max(0, rows - root.shape[1]), rng)
    return root @ inside, inside.T @ inside + white @ white.T


def second_root(second: Floats, rows: int) -> Floats:
    """(feature, direction) root of second moments, root root^T = second, of as many directions as rows may have."""
    value, vector = np.linalg.eigh(second)
    there = value > 1e-10 * value[-1]
    return (vector[:, there] * np.sqrt(value[there]))[:, -rows:]


def proper(correlation: Floats) -> Floats:
    """These correlations, no direction of which has a variance of rounding alone."""
    return (1 - LEAST_VARIANCE) * correlation + LEAST_VARIANCE * np.eye(len(correlation))


class Sampler:
    """State and sweeps of a chain. second: (feature, feature) mean of x x^T over `rows` rows."""

    state: tuple[str, ...] = ("loadings", "variance", "correlation")  # that sweeps move

    def __init__(
        self, second: Floats, rows: int, latents: int, slab: float, rate: float, eta: float, rng: np.random.Generator
    ) -> None:
        self.second, self.rows, self.latents, self.features = second, rows, latents, len(second)
        self.slab, self.rate, self.eta, self.rng = slab, rate, eta, rng
        self.root = second_root(second, rows)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(feature, latent), which loadings are from the slab."""
        return self.loadings != 0

    def start(self, second: Floats) -> None:
        """Begin with promax factors of these second moments, as many as can be told from noise."""
        factors = max(1, min(self.latents, (self.features - 1) // 2, self.rows - 1))
        unit = np.sqrt(np.maximum(np.diag(second), 1e-12))
        correlations = second / unit / unit[:, None]
        np.fill_diagonal(correlations, 1.0)
        loadings, noise = likely_factors(correlations, factors)
        pattern, correlation = promax(loadings)
        unit = np.sqrt(np.diag(self.second))
        self.variance = np.maximum(noise * unit**2, 1e-12)
        self.loadings = np.zeros((self.features, self.latents))
        self.loadings[:, :factors] = np.where(np.abs(pattern) > START, pattern * unit[:, None], 0.0)
        self.loadings[:, (self.loadings != 0).sum(0) == 1] = 0.0
        self.correlation = np.eye(self.latents)
        self.correlation[:factors, :factors] = proper(correlation)
        self.concentration = 1.0
        self.heated = self.settled = self.frozen = False

    def run(self, second: Floats, effort: Effort = EFFORT) -> Draws:
        """Draws of the posterior, from the start at `second`, which may be of other rows."""
        with threadpool_limits(1 if self.features < MANY else None):  # threads only wait where matrices are small
            return self._run(second, effort)

    def _run(self, second: Floats, effort: Effort) -> Draws:
        self.start(second)
        for t in range(1, effort.heating + 1):
            self.sweep(max(min(self.rows, effort.least_rows), round(self.rows * (t / effort.heating) ** 2)))
        self.heated = True
        self.turn(effort)
        self.leave_out(effort)
        for _ in range(effort.settling):
            self.sweep(self.rows)
        self.turn(effort)
        self.leave_out(effort)
        self.settled, kept = True, []
        every = max(1, effort.sweeps // effort.draws)
        for t in range(effort.sweeps):
            self.sweep(self.rows)
            if t % every == every - 1:
                tril = np.linalg.cholesky(self.correlation)
                kept.append((self.loadings.copy(), self.variance, tril, math.log(self.concentration)))
        return Draws(*(np.array(part) for part in zip(*kept, strict=True)))

    # -- a sweep -----------------------------------------------------------------------------------------------

    def sweep(self, rows: int) -> None:
        """Move all that is unknown once, as if there were so many rows of these moments."""
        cross, inner = self.complete(rows)
        for k in self.rng.permutation(np.flatnonzero((self.loadings != 0).any(0) | (not self.heated))):
            self.move_column(k, cross, inner)
        fitted = ((self.loadings @ inner - 2.0 * cross) * self.loadings).sum(1)
        rest = np.maximum(rows * np.diag(self.second) + fitted, 1e-9 * rows)
        self.variance = (self.rate + 0.5 * rest) / self.rng.standard_gamma(SHAPE + rows / 2, self.features)
        self.move_correlation(inner, rows)
        self.move_shares()

    def move_shares(self) -> None:
        """What the law of the mask depends on, given the mask."""
        log_prob = buffet_log_prob(GRID, self.mask.sum(0), self.features) - 0.5 * GRID**2
        self.concentration = math.exp(self.rng.choice(GRID, p=special.softmax(log_prob)))

    def complete(self, rows: int) -> tuple[Floats, Floats]:
        """sum x z^T (feature, latent) and sum z z^T (latent, latent), drawn given all else."""
        return latent_moments(self.root, rows, self.loadings, self.variance, linalg.inv(self.correlation), self.rng)

    def _wishart(self, tril: Floats, freedom: int) -> Floats:
        """A draw of Wishart(tril tril^T) of so many degrees of freedom."""
        white = tril @ wishart_root(len(tril), freedom, self.rng)
        return white @ white.T

    def move_column(self, k: int, cross: Floats, inner: Floats) -> None:
        """Mask and loadings of latent k, given z."""
        count = int((self.loadings[:, k] != 0).sum())
        share = self.rng.beta(self.concentration / self.latents + count, 1 + self.features - count)
        odds = special.logit(np.clip(share, 1e-300, 1 - 1e-15))
        before = self.loadings[:, k] != 0
        self.loadings[:, k] = 0.0
        slope = (cross[:, k] - self.loadings @ inner[:, k]) / self.variance
        precision = inner[k, k] / self.variance + self.slab**-2
        opened = special.expit(odds - 0.5 * np.log(precision * self.slab**2) + 0.5 * slope**2 / precision)
        mask = before if self.frozen else self.fitting(opened, before)
        value = slope / precision + self.rng.standard_normal(self.features) / np.sqrt(precision)
        self.loadings[:, k] = np.where(mask, value, 0.0)

    def fitting(self, opened: Floats, before: NDArray[np.bool_], *, empty: bool = True) -> NDArray[np.bool_]:
        """A draw of a column of the mask, opened with these probabilities (feature,), given that not one feature alone
        is open, nor none unless `empty`; `before` where no draw has that."""
        for tries in (1, EFFORT.tries):
            drawn = self.rng.random((tries, self.features)) < opened
            count = drawn.sum(1)
            fits = np.flatnonzero((count > 1) | (empty & (count == 0)))
            if len(fits):
                return np.asarray(drawn[fits[0]])
        return before

    def move_correlation(self, inner: Floats, rows: int) -> Floats:
        """R and the scales d of latents in use, z / d and loadings d fitting as well; R of the others by its prior.
        Returns d (latent,), 1 of those that did not move.

        d R d is proposed from the inverse Wishart law that it has given z under the prior |R|^-(count + 1) / 2 and the
        invariant measure of d.
        """
        off = (self.loadings == 0).all(0)
        order, count = np.argsort(off, kind="stable"), int((~off).sum())
        used, tril = order[:count], np.eye(self.latents)
        place = np.ix_(used, used)
        now = old = self.correlation[place]
        moved = np.ones(self.latents)
        if 0 < count < rows:
            new = linalg.inv(self._wishart(np.linalg.cholesky(linalg.inv(inner[place])), rows))
            unit = np.sqrt(np.diag(new))
            new = new / unit / unit[:, None]
            eta = self.eta + (self.latents - count) / 2  # of LKJ's law for some of the latents
            gain = (eta - 1 + (count + 1) / 2) * (np.linalg.slogdet(new)[1] - np.linalg.slogdet(old)[1])
            gain += self._gain_of_scales(used, unit)
            if not self.settled or math.log(self.rng.random()) < gain:
                now = proper(new)
                self.loadings[:, used] *= unit
                moved[used] = unit
        tril[:count, :count] = np.linalg.cholesky(now)
        for i in range(max(count, 1), self.latents):
            along = self.rng.standard_normal(i)
            square = self.rng.beta(i / 2, self.eta + (self.latents - 1 - i) / 2)
            tril[i, :i] = along / np.linalg.norm(along) * math.sqrt(square)
            tril[i, i] = math.sqrt(1 - square)
        back = np.argsort(order)
        self.correlation = (tril @ tril.T)[np.ix_(back, back)]
        return moved

    def _gain_of_scales(self, used: NDArray[np.int64], unit: Floats) -> float:
        """Log of by how much loadings of these latents are more probable in this unit (latent,), its measure with
        it."""
        slabs = (self.loadings[:, used] ** 2).sum(0) / self.slab**2
        return float((self.mask[:, used].sum(0) * np.log(unit) - 0.5 * (unit**2 - 1) * slabs).sum())

    # -- before draws are kept ---------------------------------------------------------------------------------

    def turn(self, effort: Effort) -> None:
        """Go to loadings of the same covariance, most of them 0."""
        noise = np.sqrt(self.variance / self.rows)
        used = np.flatnonzero((self.loadings != 0).any(0))
        place = np.ix_(used, used)
        loadings, correlation = through_zeros(self.loadings[:, used], self.correlation[place], noise, self.rng)
        self.loadings, self.correlation = np.zeros_like(self.loadings), np.eye(self.latents)
        self.loadings[:, used], self.correlation[place] = loadings, proper(correlation)
        self.loadings[:, (self.loadings != 0).sum(0) == 1] = 0.0
        self.frozen = True  # until all else has followed
        for _ in range(effort.frozen):
            self.sweep(self.rows)
        self.frozen = False

    def leave_out(self, effort: Effort) -> None:
        """Leave out each of the smallest latents where the posterior is better without it, to second order."""
        now = self.score(effort)
        for _ in range(self.latents):
            count = self.mask.sum(0)
            tried = [k for k in np.argsort(count, kind="stable") if count[k]][: effort.trials]
            for k in tried:
                kept = {name: vars(self)[name].copy() for name in self.state}
                self.loadings[:, k] = 0.0
                new = self.score(effort)
                if new > now:
                    now = new
                    break
                vars(self).update(kept)
            else:
                return

    def score(self, effort: Effort) -> float:
        """Log posterior of the mask by BIC, as a few sweeps find it."""
        total = []
        for t in range(effort.trial):
            self.sweep(self.rows)
            if t >= effort.trial // 2:
                total.append(self._log_posterior())
        return float(np.mean(total))

    def _log_posterior(self) -> float:
        count, loadings = self.mask.sum(0), np.where(self.mask, self.loadings, 0.0)
        used = int((count > 0).sum())
        covariance = loadings @ self.correlation @ loadings.T + np.diag(self.variance)
        tril = np.linalg.cholesky(covariance)
        white = linalg.solve_triangular(tril, self.root, lower=True)
        fit = -self.rows * (np.log(np.diag(tril)).sum() + 0.5 * (white**2).sum())
        free = count.sum() + used * (used - 1) / 2
        prior = buffet_log_prob(np.array(math.log(self.concentration)), count, self.features)
        return float(fit - 0.5 * free * math.log(self.rows) + prior)
