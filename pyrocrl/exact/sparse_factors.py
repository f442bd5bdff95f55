"""Sparse factor analysis with correlated factors: Gibbs sampling through moments, at a cost free of the rows.

    x_i ~ N(L z_i, diag(v)),   z_i ~ N(0, R),   R ~ LKJ(2),   v_j ~ InverseGamma(1.5, rate)
    L_jk ~ N(0, slab^2) where gate_jk = 1, 0 elsewhere
    gate_j: with probability `purity` exactly one of the K entries, each alike; else gate_jk ~ Bernoulli(rate_k)
    purity ~ Beta(1, 1),   rate_k ~ Beta(1 / (4 K), 1)

Given parameters, Z^T X and Z^T Z have a closed law that depends on X^T X alone: with X = U S W^T and
Z = X B^T + E, rows of E being N(0, V), it is Z^T U = B W S + E^T U and Z^T Z = (Z^T U)(Z^T U)^T + a Wishart matrix of
rows - rank(X) degrees of freedom. Given these two, rows of L are regressions of features on latents, independent of
each other. R moves by Metropolis steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrocrl.exact.spike_slab import wishart_root

Floats = NDArray[np.float64]
SHAPE, LKJ, RATE = 1.5, 2.0, 0.25
RANK = 1e-9  # of the largest eigenvalue, below which a direction of X is rounding
STEP = 1.7  # of a row of R's Cholesky factor, in units of its deviation given Z
FEW = 1e-300
PRUNED, FEW_FEATURES = 50, 5  # sweeps between prunings; features of a latent up to which it may be pruned
IMPURE, SURELY = 0.05, 0.9  # share of its squared loadings that a pure feature may owe others, unless one is there
FAR = 2.5  # deviations from which numbers differ
AS_SHORT = 0.05  # growth of absolute loadings up to which other axes are about as good
OBLIQUE = 0.5  # least share of a latent in one that replaces it
UNSEEN = -30.0  # log share of a pattern that was not drawn
RARE = 1e-6  # least share whose log odds are told
START, LEAST = 0.05, 1e-3  # deviation of what was drawn once; of anything


class State(NamedTuple):
    """loadings (feature, latent), 0 where shut; variance (feature,); correlation (latent, latent); purity; rate
    (latent,)."""

    loadings: Floats
    variance: Floats
    correlation: Floats
    purity: float
    rate: Floats


class Summary(NamedTuple):
    """Margins of draws.

    pattern (feature, pattern, latent), log_share (feature, pattern): rows of gates and how often they were drawn.
    slope, slope_sd (feature, latent), where open; log_variance, log_variance_sd (feature,). correlation (latent,
    latent), the mean, 0 with latents that are mostly out of use; covariance (feature, feature), the mean of
    L R L^T + diag(v). pure (feature, latent): how often all but `IMPURE` of a feature's squared loadings are the
    latent's; where another loading is all but always there, how often no other is. purity (2,), rate (2, latent):
    means and deviations of log odds.
    """

    pattern: Floats
    log_share: Floats
    slope: Floats
    slope_sd: Floats
    log_variance: Floats
    log_variance_sd: Floats
    correlation: Floats
    covariance: Floats
    pure: Floats
    purity: Floats
    rate: Floats

    @classmethod
    def of(cls, draws: Iterable[State], patterns: int) -> Summary:
        """Of states, with the most frequent patterns of each feature, up to so many."""
        kept = [_folded(state) for state in draws]
        loadings = np.stack([state.loadings for state in kept])  # (draw, feature, latent)
        gate, count = loadings != 0, len(kept)
        features, latents = gate.shape[1:]
        pattern, log_share = np.zeros((features, patterns, latents)), np.full((features, patterns), UNSEEN)
        for j in range(features):
            found, often = np.unique(gate[:, j], axis=0, return_counts=True)
            first = np.argsort(-often, kind="stable")[:patterns]
            pattern[j, : len(first)], log_share[j, : len(first)] = found[first], np.log(often[first] / count)
            pattern[j, len(first) :] = found[first[0]]
        opened = np.maximum(gate.sum(0), 1)
        slope = loadings.sum(0) / opened
        spread = np.sqrt(((loadings - slope) ** 2 * gate).sum(0) / opened)
        slope_sd = np.where(gate.sum(0) > 1, np.maximum(spread, LEAST), START)
        log_variance = np.log(np.stack([state.variance for state in kept]))
        variance_sd = log_variance.std(0) if count > 1 else np.full(features, START)
        used = (gate.mean(0) > 0.5).any(0)
        correlation = np.where(np.outer(used, used), np.mean([state.correlation for state in kept], 0), np.eye(latents))
        shares = np.stack([np.append(state.rate, state.purity) for state in kept]).clip(RARE, 1 - RARE)
        log_odds = np.log(shares) - np.log1p(-shares)
        odds = np.stack([log_odds.mean(0), np.maximum(log_odds.std(0), START)])
        return cls(
            pattern,
            log_share,
            slope,
            slope_sd,
            log_variance.mean(0),
            np.maximum(variance_sd, LEAST),
            correlation,
            np.mean([_implied(state) for state in kept], 0),
            _pure(loadings),
            odds[:, -1],
            odds[:, :-1],
        )


def _folded(state: State) -> State:
    """With latents on which one feature alone loads counted as that feature's noise."""
    alone = (state.loadings != 0).sum(0) == 1
    more = (state.loadings[:, alone] ** 2).sum(1)
    return state._replace(loadings=np.where(alone, 0.0, state.loadings), variance=state.variance + more)


def _pure(loadings: Floats) -> Floats:
    """(feature, latent) of draws (draw, feature, latent)."""
    gate, square = loadings != 0, loadings**2
    nearly = (gate & (square >= (1 - IMPURE) * square.sum(-1, keepdims=True))).mean(0)
    alone = (gate & (gate.sum(-1, keepdims=True) == 1)).mean(0)
    sure = gate.mean(0) > SURELY
    return np.where((sure.sum(1, keepdims=True) - sure) > 0, alone, nearly)


def _implied(state: State) -> Floats:
    """(feature, feature) covariance of x."""
    return state.loadings @ state.correlation @ state.loadings.T + np.diag(state.variance)


def log_row_law(gate: Floats, purity: float, rate: Floats) -> Floats:
    """(feature,) log probability of every row of gates (feature, latent)."""
    apart = np.log1p(-purity) + gate @ np.log(rate + FEW) + (1 - gate) @ np.log1p(-rate)
    one = np.where(gate.sum(1) == 1, np.log(purity) - np.log(gate.shape[1]), -np.inf)
    return np.logaddexp(apart, one)


class SparseFactors:
    """The sampler. moments: (feature, feature) mean of x x^T over `rows` rows."""

    def __init__(self, moments: Floats, rows: int, *, slab: float, rate: float) -> None:
        self.square, self.rows, self.slab, self.rate = np.diag(moments) * rows, rows, slab, rate
        values, vectors = np.linalg.eigh(moments * rows)
        kept = values > RANK * values[-1]
        self.root = vectors[:, kept] * np.sqrt(values[kept])  # (feature, rank) W S

    def walk(self, state: State, burn: int, kept: int, rng: np.random.Generator) -> list[State]:
        """So many states, after so many sweeps before, between which latents of few features are tried without."""
        out = []
        for sweep in range(burn + kept):
            if sweep < burn and sweep % PRUNED == PRUNED - 1:
                state = self.pruned(state)
            state = self.sweep(state, rng)
            if sweep >= burn:
                out.append(state)
        return out

    def pruned(self, state: State) -> State:
        """Without latents of at most `FEW_FEATURES` features that earn less than half log rows and log features for
        each: once there, sweeps take one away a feature at a time, which is rare."""
        penalty = 0.5 * np.log(self.rows) + np.log(len(self.square))
        for k in range(len(state.rate)):
            own = state.loadings[:, k] ** 2
            if 0 < (own > 0).sum() <= FEW_FEATURES:
                without = state._replace(loadings=state.loadings.copy(), variance=state.variance + own)
                without.loadings[:, k] = 0.0
                if self.log_likelihood(state) - self.log_likelihood(without) < penalty * (own > 0).sum():
                    state = without
        return state

    def log_likelihood(self, state: State) -> float:
        """Of x, up to a constant."""
        scaled = state.loadings / state.variance[:, None]
        precision = np.linalg.inv(state.correlation) + scaled.T @ state.loadings
        seen = scaled.T @ self.root
        determinant = np.log(state.variance).sum() + sum(
            np.linalg.slogdet(m)[1] for m in (state.correlation, precision)
        )
        square = (self.square / state.variance).sum() - (seen * np.linalg.solve(precision, seen)).sum()
        return float(-0.5 * (self.rows * determinant + square))

    def sweep(self, state: State, rng: np.random.Generator) -> State:
        """One pass over all parameters."""
        zx, zz = self._latents(state, rng)
        correlation = self._correlation(zz, state.correlation, rng)
        loadings, gate = self._loadings(state, zx, zz, rng)
        rest = self.square - 2 * (loadings * zx.T).sum(1) + ((loadings @ zz) * loadings).sum(1)
        variance = (self.rate + 0.5 * rest) / rng.gamma(SHAPE + 0.5 * self.rows, size=len(rest))
        purity, rate = self._shares(gate, state, rng)
        return State(loadings, variance, correlation, purity, rate)

    def _latents(self, state: State, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Z^T X (latent, feature) and Z^T Z (latent, latent)."""
        scaled = state.loadings / state.variance[:, None]
        covariance = np.linalg.inv(np.linalg.inv(state.correlation) + scaled.T @ state.loadings)
        covariance = 0.5 * (covariance + covariance.T)
        tril, rank = np.linalg.cholesky(covariance), self.root.shape[1]
        zu = covariance @ (scaled.T @ self.root) + tril @ rng.standard_normal((len(tril), rank))
        rest = wishart_root(len(tril), max(self.rows - rank, 0), rng)
        return zu @ self.root.T, zu @ zu.T + tril @ (rest @ rest.T) @ tril.T

    def _correlation(self, zz: Floats, now: Floats, rng: np.random.Generator) -> Floats:
        """R given Z^T Z: steps of one row at a time of its Cholesky factor, in gnomonic coordinates of the row."""
        size = len(zz)
        tril = np.linalg.cholesky(now)
        value = self._log_correlation(tril, zz)
        for k in range(1, size):
            own = tril[k] / tril[k, k]
            own[:k] += STEP / np.sqrt(k * self.rows) / tril[k, k] * rng.standard_normal(k)
            tried = tril.copy()
            tried[k] = own / np.linalg.norm(own)
            new = self._log_correlation(tried, zz)
            if np.log(rng.random()) < new - value:
                tril, value = tried, new
        return tril @ tril.T

    def _log_correlation(self, tril: NDArray, zz: Floats) -> float:
        """Log density of gnomonic coordinates: LKJ's, their volume and the likelihood."""
        inverse = np.linalg.inv(tril)
        power = len(tril) + 2 * LKJ - 2 - self.rows
        return float(power * np.log(np.diag(tril)).sum() - 0.5 * ((inverse @ zz) * inverse).sum())

    def _loadings(self, state: State, zx: Floats, zz: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Loadings and gates, latent by latent, of all features at once; a gate with its own loading summed out."""
        loadings, latents = state.loadings.copy(), len(zz)
        gate = (loadings != 0).astype(float)
        rest = zx.T - loadings @ zz  # (feature, latent)
        opened, shut = np.log(state.rate + FEW), np.log1p(-state.rate)
        one, mixed = np.log(state.purity) - np.log(latents), np.log1p(-state.purity)
        size, apart = gate.sum(1), mixed + gate @ opened + (1 - gate) @ shut
        for k in rng.permutation(latents):
            own = rest[:, k] + loadings[:, k] * zz[k, k]
            precision = zz[k, k] / state.variance + 1 / self.slab**2
            mean = own / state.variance / precision
            others, without = size - gate[:, k], apart - np.where(gate[:, k] > 0, opened[k], shut[k])
            if_open = np.where(others == 0, np.logaddexp(one, without + opened[k]), without + opened[k])
            if_shut = np.where(others == 1, np.logaddexp(one, without + shut[k]), without + shut[k])
            odds = 0.5 * precision * mean**2 - 0.5 * np.log(precision * self.slab**2) + if_open - if_shut
            new_gate = (rng.random(len(own)) < 1 / (1 + np.exp(-np.clip(odds, -500, 500)))).astype(float)
            new = new_gate * (mean + rng.standard_normal(len(own)) / np.sqrt(precision))
            rest -= np.outer(new - loadings[:, k], zz[k])
            loadings[:, k], gate[:, k] = new, new_gate
            size, apart = others + new_gate, without + np.where(new_gate > 0, opened[k], shut[k])
        return loadings, gate

    @staticmethod
    def _shares(gate: Floats, state: State, rng: np.random.Generator) -> tuple[float, Floats]:
        """Purity and rates given gates; which rows are pure by law is drawn on the way."""
        features, latents = gate.shape
        share = np.log(state.purity) - np.log(latents) - log_row_law(gate, state.purity, state.rate)
        pure = (gate.sum(1) == 1) & (np.log(rng.random(features)) < share)
        on, off = gate[~pure].sum(0), (1 - gate[~pure]).sum(0)
        purity = float(rng.beta(1.0 + pure.sum(), 1.0 + (~pure).sum()))
        return float(np.clip(purity, 1e-9, 1 - 1e-9)), np.clip(rng.beta(RATE / latents + on, 1.0 + off), 0, 1 - 1e-9)


def rival_axes(loadings: Floats, error: Floats, correlation: Floats) -> tuple[int, int, int] | None:
    """Two other features that might as well be called pure, and the latent whose own they would replace, or None.

    loadings, error: (feature, latent) and their deviations; correlation (latent, latent). Any features whose loadings
    are proportional, up to error, may name a latent, which leaves them no others. They might as well where no more
    loadings are beyond error then, and the sum of absolute loadings grows by no more than `AS_SHORT` of it.
    """
    size = np.linalg.norm(loadings, axis=1, keepdims=True)
    kept = np.flatnonzero((size[:, 0] > FAR * error.max(1)) & ((np.abs(loadings) > FAR * error).sum(1) > 1))
    direction, spread = loadings[kept] / size[kept], error[kept] / size[kept]
    same = np.eye(loadings.shape[1])
    few, short = _beyond(loadings, error, same), (1 + AS_SHORT) * np.abs(loadings).sum()
    for a, b in combinations(range(len(kept)), 2):
        alike = direction[b] * np.sign(direction[a] @ direction[b])
        if (np.abs(direction[a] - alike) > FAR * np.hypot(spread[a], spread[b])).any():
            continue
        axis = direction[a] + alike
        axis = axis / np.sqrt(axis @ correlation @ axis)  # a latent of unit variance
        for k in np.flatnonzero(np.abs(axis) > OBLIQUE):
            turn = np.linalg.inv(np.vstack([same[:k], axis, same[k + 1 :]]))
            if np.abs(loadings @ turn).sum() <= short and _beyond(loadings, error, turn) <= few:
                return int(kept[a]), int(kept[b]), int(k)
    return None


def _beyond(loadings: Floats, error: Floats, turn: Floats) -> int:
    """How many loadings are beyond their error where latents are turned by this matrix."""
    return int((np.abs(loadings @ turn) > FAR * np.sqrt(error**2 @ turn**2)).sum())
