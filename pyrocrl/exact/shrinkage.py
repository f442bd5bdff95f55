"""Factor analysis whose columns of loadings shrink towards 0: draws of all but the latents, at a cost free of the rows.

    x_i ~ N(L z_i, diag v),  z_i ~ N(0, I),  v_j ~ InverseGamma(SHAPE, rate),  log rate ~ N(log RATE, 1)

"cusp", the cumulative shrinkage process (Legramanti, Durante & Dunson 2020):

    stick_l ~ Beta(1, CONCENTRATION),  w_l = stick_l prod_{m < l} (1 - stick_m), the last one the rest
    active_h with the probability sum_{l > h} w_l,  slab_h ~ InverseGamma(2, SLAB)
    L_jh ~ N(0, slab_h / local_jh) where active_h, else N(0, spike)

"gamma", the multiplicative gamma process (Bhattacharya & Dunson 2011):

    growth_1 ~ Gamma(A1, 1),  growth_l ~ Gamma(A2, 1)
    L_jh ~ N(0, 1 / (local_jh prod_{l <= h} growth_l))

local_jh ~ Gamma(NU / 2, NU / 2) of both, so that few loadings of a column may be large.

A Gibbs sampler as in `spike_slab`: what the other conditionals need of the latents is drawn from the second moments of
x. Which columns are active is drawn with their slabs integrated out, and columns change places.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

from pyrocrl.exact.spike_slab import latent_moments, second_root

Floats = NDArray[np.float64]
Process = Literal["cusp", "gamma"]
SHAPE = 0.5  # of the variances' prior
RATE = 0.1  # median of the variances' rate
CONCENTRATION, SLAB_SHAPE, SLAB = 5.0, 2.0, 0.06
A1, A2, NU = 2.1, 3.1, 3.0
DRAWS = 200  # that are kept
FEW = 20  # rows that the first sweep counts
WIDE = 0.3  # deviation of the logarithm of a slab that is proposed
LEAST = 1e-10


class State(NamedTuple):
    """loadings, local (feature, latent); variance (feature,); stick (latent - 1,), active, slab, growth (latent,);
    rate. What a process has not keeps its value."""

    loadings: Floats
    variance: Floats
    stick: Floats
    active: Floats
    slab: Floats
    growth: Floats
    local: Floats
    rate: float

    @classmethod
    def of(cls, loadings: Floats, variance: Floats) -> State:
        """A start, all columns but the last active."""
        latents = loadings.shape[1]
        one = np.ones(latents)
        active = (np.arange(latents) < latents - 1).astype(float)
        stick = np.full(latents - 1, 1 / latents)
        return cls(loadings, variance, stick, active, SLAB * one, one, np.ones_like(loadings), RATE)


def chances(stick: Floats) -> Floats:
    """(latent,) log probabilities that columns are active, the sums of later weights; -inf for the last one."""
    return np.append(np.log1p(-np.minimum(stick, 1 - 1e-15)).cumsum(), -np.inf)


class Shrinkage:
    """The posterior given second moments. second: (feature, feature) mean of x x^T over `rows` rows."""

    def __init__(self, second: Floats, rows: int, process: Process, spike: float) -> None:
        self.rows, self.process, self.spike = rows, process, spike
        self.root, self.square = second_root(second, rows), np.diag(second)

    def sweep(self, state: State, rng: np.random.Generator, rows: int | None = None) -> State:
        """Move all that is unknown once, as if there were so many rows of these moments."""
        rows = self.rows if rows is None else rows
        latents = state.loadings.shape[1]
        cross, inner = latent_moments(self.root[:, -rows:], rows, state.loadings, state.variance, np.eye(latents), rng)
        prior = self._precision(state)  # (feature, latent)
        precision = inner / state.variance[:, None, None] + np.eye(latents) * prior[:, None]
        tril = np.linalg.cholesky(precision)
        seen = np.linalg.solve(tril, (cross / state.variance[:, None])[..., None])
        white = seen + rng.standard_normal(seen.shape)
        loadings = np.linalg.solve(tril.swapaxes(1, 2), white)[..., 0]
        rest = rows * self.square + ((loadings @ inner - 2 * cross) * loadings).sum(1)
        total = state.rate + 0.5 * np.maximum(rest, LEAST * rows)
        variance = total / rng.standard_gamma(SHAPE + rows / 2, len(total))
        loadings = self._mixed(loadings, inner, prior, rows, rng)
        state = state._replace(loadings=loadings, variance=variance, rate=_rate(state.rate, variance, rng))
        return self._columns(state, rng) if self.process == "cusp" else self._products(state, rng)

    def _mixed(self, loadings: Floats, inner: Floats, prior: Floats, rows: int, rng: np.random.Generator) -> Floats:
        """Loadings after exact draws along what leaves L z as it is, inner (latent, latent) being sum z z^T.

        For each column h: z_h + sum_k a_k z_k and L_k - a_k L_h, of which a is normal; then c z_h and L_h / c.
        """
        loadings, inner, (features, latents) = loadings.copy(), inner.copy(), loadings.shape
        for h in rng.permutation(latents):
            rest, own = np.delete(np.arange(latents), h), loadings[:, h].copy()
            among, across = inner[np.ix_(rest, rest)], inner[rest, h]
            weighted = prior[:, rest] * own[:, None]  # (feature, rest)
            tril = np.linalg.cholesky(among + np.diag(own @ weighted))
            seen = linalg.solve_triangular(tril, (weighted * loadings[:, rest]).sum(0) - across, lower=True)
            a = linalg.solve_triangular(tril.T, seen + rng.standard_normal(len(rest)))
            loadings[:, rest] -= np.outer(own, a)
            size = inner[h, h] + a @ (2 * across + among @ a)
            factor = scale_step((rows - features) / 2, size, float(prior[:, h] @ own**2), rng)
            loadings[:, h] /= factor
            inner[rest, h] = inner[h, rest] = factor * (across + among @ a)
            inner[h, h] = factor**2 * size
        return loadings

    def _precision(self, state: State) -> Floats:
        if self.process == "cusp":
            return np.where(state.active > 0, state.local / state.slab, 1 / self.spike)
        return state.local * state.growth.cumprod()

    def _columns(self, state: State, rng: np.random.Generator) -> State:
        """Which columns are active, their slabs, the sticks, and places of two columns."""
        loadings, active, slab, latents = state.loadings, state.active, state.slab, len(state.active)
        square, chance = loadings**2, chances(state.stick)
        odds = chance - np.log(-np.expm1(np.minimum(chance, -1e-15)))
        odds = odds + 0.5 * (len(square) * math.log(self.spike) + square.sum(0) / self.spike)
        guess = _slab_of(square)
        log_slab = np.where(active > 0, np.log(slab), np.log(guess) + WIDE * rng.standard_normal(latents))
        odds = odds + _log_active(square, log_slab)
        odds = odds + 0.5 * ((log_slab - np.log(guess)) / WIDE) ** 2 + math.log(WIDE)
        flipped = np.log(rng.random(latents)) < np.where(active > 0, -odds, odds)
        slab = np.where(active > 0, slab, np.exp(log_slab))
        active = np.where(flipped, 1 - active, active)
        half, wide = len(square) / 2 * active, active[None] * square
        local = _local(wide / slab, rng)
        slab = (SLAB + 0.5 * (local * wide).sum(0)) / rng.standard_gamma(SLAB_SHAPE + half)
        for _ in range(latents):  # a column's place matters by the chance of being active there alone
            a, b = rng.integers(latents, size=2)
            if active[a] != active[b]:
                on, off = (a, b) if active[a] else (b, a)
                gain = chance[off] + _log1mexp(chance[on]) - chance[on] - _log1mexp(chance[off])
                if np.log(rng.random()) < gain:
                    order = np.arange(latents)
                    order[[a, b]] = b, a
                    loadings, local, active, slab = loadings[:, order], local[:, order], active[order], slab[order]
        log_weight = chances(state.stick)
        log_weight = np.append(0.0, log_weight[:-1]) + np.log(np.append(np.maximum(state.stick, 1e-300), 1.0))
        place = np.arange(latents)
        allowed = (place[None] > place[:, None]) == (active > 0)[:, None]  # (column, level)
        level = (np.where(allowed, log_weight, -np.inf) + rng.gumbel(size=allowed.shape)).argmax(1)
        there = (level[:, None] == place[:-1]).sum(0)
        beyond = (level[:, None] > place[:-1]).sum(0)
        stick = rng.beta(1 + there, CONCENTRATION + beyond)
        return state._replace(loadings=loadings, local=local, active=active, slab=slab, stick=stick)

    def _products(self, state: State, rng: np.random.Generator) -> State:
        """Cumulative precisions of columns."""
        growth, total = state.growth.copy(), (state.local * state.loadings**2).sum(0)
        for h in range(len(growth)):
            others = growth.cumprod() / growth[h]
            shape = (A2 if h else A1) + len(state.loadings) * (len(growth) - h) / 2
            growth[h] = rng.standard_gamma(shape) / (1 + 0.5 * (others[h:] * total[h:]).sum())
        return state._replace(growth=growth, local=_local(state.loadings**2 * growth.cumprod(), rng))

    def run(self, state: State, sweeps: int, rng: np.random.Generator) -> list[State]:
        """`DRAWS` draws of so many sweeps, of which the first half is left out.

        The first quarter counts fewer rows: else a column that starts as one feature's noise may stay that for long.
        """
        kept = []
        for t in range(sweeps):
            state = self.sweep(state, rng, min(self.rows, FEW + round(self.rows * (4 * t / sweeps) ** 2)))
            if 2 * t >= sweeps:
                kept.append(state)
        return [kept[t] for t in np.linspace(0, len(kept) - 1, DRAWS).round().astype(int)]


def _local(square: Floats, rng: np.random.Generator) -> Floats:
    """Local precisions given squares in units of their column's variance; of 0, where these say nothing, a priori."""
    told = square > 0
    return rng.standard_gamma((NU + told) / 2) / ((NU + square) / 2)


def _log_active(square: Floats, log_slab: Floats) -> Floats:
    """(latent,) log density of loadings (feature, latent), given squared, of an active column and of its slab in log
    slab, less the constant of a normal law for each."""
    constant = special.gammaln((NU + 1) / 2) - special.gammaln(NU / 2) - 0.5 * math.log(NU / 2)
    loadings = constant - 0.5 * log_slab - (NU + 1) / 2 * np.log1p(square / (NU * np.exp(log_slab)))
    prior = SLAB_SHAPE * (math.log(SLAB) - log_slab) - SLAB * np.exp(-log_slab) - special.gammaln(SLAB_SHAPE)
    return np.asarray(loadings.sum(0) + prior + 0.5 * math.log(2 * math.pi))


def _slab_of(square: Floats) -> Floats:
    """(latent,) the slab about which an inactive column's is proposed: near its mode given the loadings."""
    slab = square.mean(0) + 1e-6
    for _ in range(5):
        weight = (NU + 1) / (NU + square / slab)
        slab = (2 * SLAB + (weight * square).sum(0)) / (len(square) + 2 * SLAB_SHAPE)
    return slab


def _log1mexp(log_chance: float) -> float:
    return float(np.log(-np.expm1(min(log_chance, -1e-15))))


def scale_step(power: float, size: float, cost: float, rng: np.random.Generator) -> float:
    """A step of Metropolis from c = 1 with density c^(2 power) exp(-(size c^2 + cost / c^2) / 2) in log c, from the
    normal law about its mode."""
    steep = math.hypot(power, math.sqrt(size * cost))
    mode, spread = math.log((power + steep) / size), 1.1 / math.sqrt(steep)
    new = mode + spread * rng.standard_normal()

    def log_ratio(log_square: float) -> float:
        density = power * log_square - 0.5 * (size * math.exp(log_square) + cost * math.exp(-log_square))
        return density + 0.5 * ((log_square - mode) / spread) ** 2

    return math.exp(new / 2) if math.log(rng.random()) < log_ratio(new) - log_ratio(0.0) else 1.0


def _rate(rate: float, variance: Floats, rng: np.random.Generator) -> float:
    """A step of Metropolis in the logarithm of the variances' rate."""
    inverse = (1 / variance).sum()

    def log_prob(log_rate: float) -> float:
        away = log_rate - math.log(RATE)
        return float(SHAPE * len(variance) * log_rate - math.exp(log_rate) * inverse - 0.5 * away**2)

    old = math.log(rate)
    new = old + 2.0 / math.sqrt(SHAPE * len(variance)) * rng.standard_normal()
    return math.exp(new) if math.log(rng.random()) < log_prob(new) - log_prob(old) else rate
