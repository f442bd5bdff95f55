"""Factor analysis with loadings of a spike-and-slab lasso: draws of all but the latents, at a cost free of the rows.

    log concentration ~ N(0, 1),  stick_k ~ Beta(concentration, 1),  share_k = prod_{l <= k} stick_l
    mask_jk ~ Bernoulli(share_k), no latent of one feature alone (`beta_bernoulli.SharedColumns`)
    L_jk ~ Laplace(slab) where mask_jk, else Laplace(spike), and 0 on latents of no feature
    v_j ~ InverseGamma(SHAPE, rate);  R ~ LKJ(eta);  z_i ~ N(0, R),  x_i ~ N(L z_i, diag v)

The Gibbs sampler of `spike_slab` with another law of loadings (Rockova & George 2016) from their mode
(`constructions.lasso_ladder`): given z, a loading's likelihood is normal, and times a Laplace law on either side of 0 a
normal law that is cut off there, so that mask and loadings of a latent are drawn together, exactly. Latents keep their
places in the order of shares.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special
from threadpoolctl import threadpool_limits

from pyrocrl.exact.spike_slab import EFFORT, GRID, MANY, Effort, Floats, Sampler

Mask = NDArray[np.bool_]
ROOT = 0.5 * math.log(2 * math.pi)
LEAST = 1e-12  # a share, and what it lacks of one
TURNS = 1  # of two latents in a sweep, for each latent in use
WIDTHS = (-3.0, 0.0)  # logarithms to the base 10 of the deviation of a turn's c
STEP = 2.4  # of a stick's proposal, in deviations that counts leave it


class LassoDraws(NamedTuple):
    """stick (draw, latent); mask, loadings (draw, feature, latent); variance (draw, feature); correlation_tril (draw,
    latent, latent), the Cholesky factor of R; log_concentration (draw,)."""

    stick: Floats
    mask: Mask
    loadings: Floats
    variance: Floats
    correlation_tril: Floats
    log_concentration: Floats


def log_sides(slope: Floats, precision: Floats, rate: Floats | float) -> tuple[Floats, Floats]:
    """Logarithms of the integrals of Laplace(1 / rate)'s density times exp(slope b - precision b^2 / 2) over b above
    and below 0."""
    root, constant = np.sqrt(precision), ROOT + np.log(rate / 2) - 0.5 * np.log(precision)
    sides = []
    for sign in (1.0, -1.0):
        t = (sign * slope - rate) / root
        sides.append(constant + 0.5 * t**2 + special.log_ndtr(t))
    return sides[0], sides[1]


def laplace_draw(slope: Floats, precision: Floats, rate: Floats, rng: np.random.Generator) -> Floats:
    """b (...) with density proportional to exp(slope b - precision b^2 / 2 - rate |b|)."""
    above, below = log_sides(slope, precision, rate)
    sign = np.where(rng.random(slope.shape) < special.expit(above - below), 1.0, -1.0)
    root = np.sqrt(precision)
    t = (sign * slope - rate) / root
    tail = special.ndtri_exp(np.log1p(-rng.random(slope.shape)) + special.log_ndtr(t))  # at most t
    return sign * np.maximum(t - tail, 0.0) / root


def log_shares(stick: Floats, count: NDArray[np.int64], features: int) -> Floats:
    """(latent,) log probability of each column of the mask, of so many features (latent,)."""
    share = np.clip(stick.cumprod(), LEAST, 1 - LEAST)
    log_on, log_off = np.log(share), np.log1p(-share)
    one = np.minimum(math.log(features) + log_on + (features - 1) * log_off, -LEAST)
    return np.asarray(count * log_on + (features - count) * log_off - np.log(-np.expm1(one)))


class LassoSampler(Sampler):
    """State and sweeps of a chain, see `spike_slab.Sampler`; slab, spike: scales of loadings' laws."""

    state = ("loadings", "variance", "correlation", "opened", "stick")

    def __init__(
        self,
        second: Floats,
        rows: int,
        latents: int,
        slab: float,
        rate: float,
        eta: float,
        rng: np.random.Generator,
        spike: float,
    ) -> None:
        super().__init__(second, rows, latents, slab, rate, eta, rng)
        self.spike, self.concentration = spike, 1.0
        self.opened = np.zeros((self.features, latents), bool)
        self.stick = np.full(latents, 0.5)

    @property
    def mask(self) -> Mask:
        return self.opened & (self.loadings != 0)

    def begin(self, loadings: Floats, mask: Mask, variance: Floats, correlation: Floats) -> None:
        """Start where these are, latents with the most features first."""
        order = np.argsort(-mask.sum(0), kind="stable")
        self.loadings, self.opened = loadings[:, order].copy(), mask[:, order].copy()
        self.variance, self.correlation = variance.copy(), correlation[np.ix_(order, order)].copy()
        share = (self.opened.sum(0) + 0.5) / (self.features + 1.0)
        self.stick = np.clip(np.append(share[0], share[1:] / share[:-1]), 1e-3, 1 - 1e-3)
        self.heated = self.settled = True
        self.frozen = False

    def draws(self, effort: Effort = EFFORT) -> LassoDraws:
        """Draws of the posterior, of the latents that are worth having by BIC."""
        with threadpool_limits(1 if self.features < MANY else None):
            for _ in range(effort.settling // 2):
                self.sweep(self.rows)
            self.leave_out(effort)
            for _ in range(effort.settling):
                self.sweep(self.rows)
            kept, every = [], max(1, effort.sweeps // effort.draws)
            for t in range(effort.sweeps):
                self.sweep(self.rows)
                if t % every == every - 1:
                    tril = np.linalg.cholesky(self.correlation)
                    level = math.log(self.concentration)
                    kept.append((self.stick, self.mask, self.loadings.copy(), self.variance, tril, level))
        return LassoDraws(*(np.array(part) for part in zip(*kept, strict=True)))

    # -- a sweep -----------------------------------------------------------------------------------------------

    def sweep(self, rows: int) -> None:
        super().sweep(rows)
        for _ in range(TURNS * int(self.opened.any(0).sum())):
            self.turn_two()

    def turn_two(self) -> None:
        """A step of Metropolis along what leaves the likelihood as it is: L_l + c L_k and (z_k - c z_l) / unit, with
        the mask of both, which is drawn given the loadings."""
        used = np.flatnonzero(self.opened.any(0))
        if len(used) < 2:
            return
        k, other = self.rng.choice(used, 2, replace=False)
        wide = 10 ** self.rng.uniform(*WIDTHS)
        c = wide * self.rng.standard_normal()
        square = 1 - 2 * c * self.correlation[k, other] + c**2
        if square < LEAST:
            return
        unit, pair = math.sqrt(square), [k, other]
        old = self.loadings[:, pair]
        new = np.column_stack([old[:, 0] * unit, old[:, 1] + c * old[:, 0]])
        share = np.clip(self.stick.cumprod()[pair], LEAST, 1 - LEAST)
        before, _ = self._mixed(old, share)
        after, opened = self._mixed(new, share)
        mask = self.rng.random(new.shape) < opened
        if (mask.sum(0) < 2).any():
            return
        # of loadings, of R and c, and of LKJ's law, whose determinant falls by unit^2; backwards c is -c / unit
        gain = after - before + (self.features - self.latents - 2 - 2 * (self.eta - 1)) * math.log(unit)
        gain += 0.5 * (c / wide) ** 2 * (1 - 1 / square)
        if math.log(self.rng.random()) < gain:
            move = np.eye(self.latents)
            move[k, other] = -c
            move[k] /= unit
            self.loadings[:, pair], self.opened[:, pair] = new, mask
            self.correlation = move @ self.correlation @ move.T

    def _mixed(self, loadings: Floats, share: Floats) -> tuple[float, Floats]:
        """Log density of loadings (feature, latent), the mask summed out, and their probabilities to be the slab's."""
        size = np.abs(loadings)
        slab = np.log(share / self.slab) - size / self.slab
        spike = np.log((1 - share) / self.spike) - size / self.spike
        return float(np.logaddexp(slab, spike).sum()), special.expit(slab - spike)

    def move_column(self, k: int, cross: Floats, inner: Floats) -> None:
        """Mask and loadings of latent k, given z; whether it has any, too."""
        before = self.opened[:, k].copy()
        self.loadings[:, k] = 0.0
        slope = (cross[:, k] - self.loadings @ inner[:, k]) / self.variance
        precision = np.maximum(inner[k, k], 1e-12) / self.variance
        share = float(np.clip(self.stick[: k + 1].prod(), LEAST, 1 - LEAST))
        in_slab, in_spike = (
            chance + np.logaddexp(*log_sides(slope, precision, 1 / scale))
            for chance, scale in ((math.log(share), self.slab), (math.log1p(-share), self.spike))
        )
        opened = special.expit(in_slab - in_spike)
        none = float(np.log1p(-np.minimum(opened, 1 - LEAST)).sum())
        fewer = math.exp(none) * (1 + (opened / np.maximum(1 - opened, LEAST)).sum())  # that one or none is open
        some = np.logaddexp(in_slab, in_spike).sum() + math.log(max(1 - fewer, 1e-300))
        off = self.features * math.log1p(-share)
        if self.rng.random() < special.expit(off - some):
            self.opened[:, k] = False
            return
        self.opened[:, k] = self.fitting(opened, before, empty=False)
        if self.opened[:, k].any():
            rate = np.where(self.opened[:, k], 1 / self.slab, 1 / self.spike)
            self.loadings[:, k] = laplace_draw(slope, precision, rate, self.rng)

    def move_shares(self) -> None:
        """Sticks given the mask, each by a step of Metropolis in its log odds, then their concentration."""
        count = self.mask.sum(0)
        wide = STEP / np.sqrt(1.0 + np.minimum(count, self.features - count))
        log_odds = special.logit(self.stick)
        for k in range(self.latents):
            new, old = log_odds[k] + wide[k] * self.rng.standard_normal(), log_odds[k]
            if abs(new) > -math.log(LEAST):
                continue
            gain = self._log_sticks(count, np.append(log_odds[:k], [new, *log_odds[k + 1 :]]), k)
            if math.log(self.rng.random()) < gain - self._log_sticks(count, log_odds, k):
                log_odds[k] = new
            else:
                log_odds[k] = old
        self.stick = special.expit(log_odds)
        log_prob = self.latents * GRID + np.exp(GRID) * np.log(self.stick).sum() - 0.5 * GRID**2
        self.concentration = math.exp(self.rng.choice(GRID, p=special.softmax(log_prob)))

    def _log_sticks(self, count: NDArray[np.int64], log_odds: Floats, k: int) -> float:
        """Log density, in its log odds, of stick k given the mask."""
        stick = special.expit(log_odds)
        own = self.concentration * math.log(stick[k]) + math.log1p(-stick[k])
        return own + float(log_shares(stick, count, self.features)[k:].sum())

    def _gain_of_scales(self, used: NDArray[np.int64], unit: Floats) -> float:
        rate = np.where(self.opened[:, used], 1 / self.slab, 1 / self.spike)
        cost = (rate * np.abs(self.loadings[:, used])).sum(0)
        return float((self.features * np.log(unit) - (unit - 1) * cost).sum())
