"""Matrix factorisation whose factors learn their priors: draws of loadings, scores and priors (Wang & Stephens 2021).

    share_k ~ Beta(1 / latents, 1),  log slab_k ~ N(log SLAB, 1),  weights_k ~ Dirichlet(ALPHA),  R ~ LKJ(ETA)
    L_jk ~ N(0, slab_k^2) with the probability share_k, else 0
    c_ik ~ weights_k,  y_i ~ N(0, R),  z_ik = y_ik g_c / s_k of variance one: s_k^2 = sum_m weights_km g_m^2
    log rate ~ N(log RATE, 1),  v_j ~ InverseGamma(SHAPE, rate),  x_ij ~ N(L_j z_i, v_j), where it was measured

with g the `SCALES` of `exact.score_mixtures`. A Gibbs sampler in u = z s, of which a component's law is free of the
weights, and in L / s and slab / s, which leave x as likely: then weights are conjugate but for the prior of slab. R
moves by parameter expansion (Liu & Daniels 2006). What was not measured is drawn as well, given the rest, and so is
left out of the law of all else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pyrocrl.exact.score_mixtures import GRID, LEAST, scale_mixture
from pyrocrl.exact.spike_slab import wishart_root

Floats = NDArray[np.float64]
ALPHA = 0.5  # of the weights' prior
SLAB, RATE, SHAPE = 0.5, 0.1, 1.5  # medians of a column's slab and of the noise's rate; shape of the variances' prior
DRAWS = 150  # that are kept
ETA = 2.0  # of LKJ's law
MOVES = 4  # of slabs and of the rate in a sweep
MOST_ROWS = 2_000  # that a start's weights are fitted to


class Draws(NamedTuple):
    """Draws of one run: share, slab (draw, latent), weights (draw, latent, component), loadings (draw, feature,
    latent), 0 where the mask is shut, variance (draw, feature), correlation_tril (draw, latent, latent) and rate
    (draw,). inner (latent, latent): the mean of z z^T over rows and draws."""

    share: Floats
    slab: Floats
    weights: Floats
    loadings: Floats
    variance: Floats
    correlation_tril: Floats
    rate: Floats
    inner: Floats


def weights_of(u: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Of scores u (rows, latent) told with these variances (latent,): weights (latent, component), and the units
    (latent,) in which they are mixtures with `SCALES`."""
    rows, used = u.shape
    weights, unit = np.empty((used, len(GRID))), np.ones(used)
    for k in range(used):
        some = u[:: -(-rows // MOST_ROWS), k]
        weights[k], unit[k], _ = scale_mixture(some, np.full(len(some), math.sqrt(max(spread[k], 0.0))))
    return (weights * rows + ALPHA) / (rows + ALPHA * len(GRID)), unit


class Priors:
    """Share, slab (latent,), weights (latent, component) and correlation R of the latents in use, which are `offered`
    more: their part of a sweep. counts (latent, component): of rows.

    scale (rows, latent): of each score's component."""

    def __init__(
        self, u: Floats, weights: Floats, loadings: Floats, correlation: Floats, offered: int, rng: np.random.Generator
    ) -> None:
        self.offered, self.rng, self.weights = offered, rng, weights
        self.features = len(loadings)
        self.counts = weights * len(u)
        log_p = np.log(weights) - np.log(GRID) - 0.5 * (u**2)[:, :, None] / GRID**2
        self.scale = GRID[log_p.argmax(2)]
        self.correlation = correlation.copy()
        there = loadings != 0
        self.slab = np.sqrt((loadings**2).sum(0) / np.maximum(there.sum(0), 1)).clip(1e-3)
        self.share = (there.sum(0) + 1.0 / offered) / (self.features + 1.0 + 1.0 / offered)

    @property
    def size(self) -> Floats:
        """(latent,) deviation of u by its prior."""
        return np.sqrt(self.weights @ GRID**2)

    def in_story_units(self, loadings: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Share, slab, weights, loadings (feature, latent) and the Cholesky factor of R in the story's units; factors
        that are off have their prior's draws, given that no feature loads on them."""
        used, size, rng = len(self.share), self.size, self.rng
        off = self.offered - used
        share = np.concatenate([self.share, rng.beta(1.0 / self.offered, 1 + self.features, off)])
        slab = np.concatenate([self.slab * size, SLAB * np.exp(rng.standard_normal(off))])
        weights = np.concatenate([self.weights, rng.dirichlet(np.full(len(GRID), ALPHA), off)])
        every = np.zeros((self.features, self.offered))
        every[:, :used] = loadings * size
        tril = np.eye(self.offered)
        tril[:used, :used] = np.linalg.cholesky(self.correlation)
        for i in range(max(used, 1), self.offered):  # the rest of LKJ's law
            along = rng.standard_normal(i)
            square = rng.beta(i / 2, ETA + (self.offered - 1 - i) / 2)
            tril[i, :i] = along / np.linalg.norm(along) * math.sqrt(square)
            tril[i, i] = math.sqrt(1 - square)
        return share, slab, weights, every, tril

    def leave_out(self, k: int) -> None:
        """Without latent k of those in use."""
        for name in ("share", "slab", "weights", "counts"):
            setattr(self, name, np.delete(getattr(self, name), k, 0))
        self.scale = np.delete(self.scale, k, 1)
        self.correlation = np.delete(np.delete(self.correlation, k, 0), k, 1)

    def move_units(self, u: Floats) -> Floats:
        """R and the scales d of latents, which are returned: u / d and loadings d fit as well, and slab d, which is
        moved. d R d is proposed from the inverse Wishart law that it has given y under the prior |R|^-(count + 1) / 2
        and the invariant measure of d."""
        y = u / self.scale
        rows, used = y.shape
        if not used or rows <= used:
            return np.ones(used)
        white = np.linalg.cholesky(np.linalg.inv(y.T @ y)) @ wishart_root(used, rows, self.rng)
        new = np.linalg.inv(white @ white.T)
        unit = np.sqrt(np.diag(new))
        new = new / unit / unit[:, None]
        eta = ETA + (self.offered - used) / 2  # of LKJ's law for some of the latents
        sizes = np.linalg.slogdet(new)[1] - np.linalg.slogdet(self.correlation)[1]
        log_slab = np.log(self.slab)
        gain = (eta - 1 + (used + 1) / 2) * sizes
        gain += (self._slab_prior(log_slab + np.log(unit)) - self._slab_prior(log_slab)).sum()
        if math.log(self.rng.random()) < gain:
            self.correlation, self.slab = new, self.slab * unit
            return np.asarray(unit)
        return np.ones(used)

    def _slab_prior(self, log_slab: Floats, weights: Floats | None = None) -> Floats:
        weights = self.weights if weights is None else weights
        away: Floats = log_slab + 0.5 * np.log(weights @ GRID**2) - math.log(SLAB)
        return -0.5 * away**2

    def move_shares(self, loadings: Floats) -> None:
        """Shares, slabs and weights, given loadings and components."""
        rng, used = self.rng, len(self.share)
        count = (loadings != 0).sum(0)
        self.share = rng.beta(1.0 / self.offered + count, 1.0 + self.features - count)
        total = (loadings**2).sum(0)
        log_slab = np.log(self.slab)
        for _ in range(MOVES):
            new = log_slab + 1.5 / np.sqrt(1.0 + 2 * count) * rng.standard_normal(used)
            gain = self._slab_prior(new) - self._slab_prior(log_slab) - count * (new - log_slab)
            gain -= 0.5 * total * (np.exp(-2 * new) - np.exp(-2 * log_slab))
            log_slab = np.where(np.log(rng.random(used)) < gain, new, log_slab)
        self.slab = np.exp(log_slab)
        drawn = rng.standard_gamma(ALPHA + self.counts)
        drawn = drawn / np.maximum(drawn.sum(1, keepdims=True), LEAST)
        gain = self._slab_prior(log_slab, drawn) - self._slab_prior(log_slab)
        taken = np.log(rng.random(used)) < gain
        self.weights = np.where(taken[:, None], drawn, self.weights)


class Sampler(Priors):
    """State and sweeps of a chain over x (rows, feature), of which what is not `known` (rows, feature; None = all) is
    of no account. loadings (feature, latent), correlation (latent, latent): where it starts, of the latents in use;
    latents: how many are offered."""

    def __init__(
        self,
        x: Floats,
        known: NDArray[np.bool_] | None,
        loadings: Floats,
        variance: Floats,
        correlation: Floats,
        latents: int,
        rng: np.random.Generator,
    ) -> None:
        self.x = x.copy()
        self.gaps = None if known is None or known.all() else np.nonzero(~known)
        self.variance, self.rate = variance.copy(), RATE
        scaled = loadings / variance[:, None]
        spread = np.linalg.inv(loadings.T @ scaled + np.linalg.inv(correlation))
        u = self.x @ scaled @ spread
        weights, unit = weights_of(u, np.diag(spread))
        self.u, self.loadings = u / unit, loadings * unit
        super().__init__(self.u, weights, self.loadings, correlation, latents, rng)

    def run(self, sweeps: int) -> Draws:
        """`DRAWS` draws of so many sweeps, of which the first quarter is left out."""
        kept, inner, used = [], np.eye(self.offered), self.u.shape[1]
        inner[:used, :used] = 0.0
        pick = np.linspace(sweeps // 4, sweeps - 1, DRAWS).round().astype(int)
        for t in range(sweeps):
            self.sweep()
            for _ in range(int((pick == t).sum())):
                kept.append(self.told())
                z = self.u / self.size
                inner[:used, :used] += z.T @ z / (len(z) * DRAWS)
        parts = dict(zip(Draws._fields, (np.array(part) for part in zip(*kept, strict=True)), strict=False))
        return Draws(**parts, inner=inner)

    def told(self) -> tuple[Floats, ...]:
        """What there is now in the story's units."""
        *first, tril = self.in_story_units(self.loadings)
        return *first, self.variance.copy(), tril, np.asarray(self.rate)

    def sweep(self) -> None:
        """Move all that is unknown once."""
        self.fill()
        self.move_scores()
        unit = self.move_units(self.u)
        self.u, self.loadings = self.u / unit, self.loadings * unit
        self.move_loadings()
        self.move_shares(self.loadings)
        self.move_rate()

    def fill(self) -> None:
        """What was not measured, given the rest."""
        if self.gaps is None:
            return
        rows, columns = self.gaps
        mean = (self.u @ self.loadings.T)[rows, columns]
        self.x[rows, columns] = mean + np.sqrt(self.variance[columns]) * self.rng.standard_normal(len(rows))

    def move_scores(self) -> None:
        """One latent's components, its scores summed out, and then these, after the other."""
        scaled = self.loadings / self.variance[:, None]
        seen, inner = self.x @ scaled, self.loadings.T @ scaled
        between, y = np.linalg.inv(self.correlation), self.u / self.scale
        for k in self.rng.permutation(self.u.shape[1]):
            slope = seen[:, k] - self.u @ inner[:, k] + self.u[:, k] * inner[k, k]
            pull = y[:, k] * between[k, k] - y @ between[:, k]  # mean of y given the others, times its precision
            prior = between[k, k] / GRID**2
            precision = inner[k, k] + prior
            level = np.log(np.maximum(self.weights[k], 1e-300)) + 0.5 * np.log(prior / precision)
            total = slope[:, None] + pull[:, None] / GRID
            log_p = level + 0.5 * total**2 / precision
            p = np.exp(log_p - log_p.max(1, keepdims=True)).cumsum(1)
            own = (p < (self.rng.random(len(p)) * p[:, -1])[:, None]).sum(1)
            spread = 1 / precision[own]
            mean = np.take_along_axis(total, own[:, None], 1)[:, 0] * spread
            self.u[:, k] = mean + np.sqrt(spread) * self.rng.standard_normal(len(p))
            self.scale[:, k] = GRID[own]
            y[:, k] = self.u[:, k] / self.scale[:, k]
            self.counts[k] = np.bincount(own, minlength=len(GRID))

    def move_loadings(self) -> None:
        """Mask and loadings of one latent after the other, then variances, given scores."""
        cross, inner, rows = self.x.T @ self.u, self.u.T @ self.u, len(self.u)
        for k in self.rng.permutation(self.u.shape[1]):
            self.loadings[:, k] = 0.0
            slope = (cross[:, k] - self.loadings @ inner[:, k]) / self.variance
            precision = inner[k, k] / self.variance + self.slab[k] ** -2
            odds = special.logit(np.clip(self.share[k], 1e-300, 1 - 1e-15))
            opened = special.expit(odds - 0.5 * np.log(precision * self.slab[k] ** 2) + 0.5 * slope**2 / precision)
            value = slope / precision + self.rng.standard_normal(self.features) / np.sqrt(precision)
            self.loadings[:, k] = np.where(self.rng.random(self.features) < opened, value, 0.0)
        rest = (self.x**2).sum(0) + ((self.loadings @ inner - 2.0 * cross) * self.loadings).sum(1)
        drawn = self.rng.standard_gamma(SHAPE + rows / 2, self.features)
        self.variance = (self.rate + 0.5 * np.maximum(rest, 1e-9 * rows)) / drawn

    def move_rate(self) -> None:
        """The noise's rate, given variances."""
        log_rate, inverse = math.log(self.rate), float((1 / self.variance).sum())

        def rate_prior(log_rate: float) -> float:
            own = self.features * SHAPE * log_rate - math.exp(log_rate) * inverse
            return own - 0.5 * (log_rate - math.log(RATE)) ** 2

        for _ in range(MOVES):
            one = log_rate + 1.5 / math.sqrt(self.features) * self.rng.standard_normal()
            if math.log(self.rng.random()) < rate_prior(one) - rate_prior(log_rate):
                log_rate = one
        self.rate = math.exp(log_rate)
