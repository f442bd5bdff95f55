"""Factor analysis of views that each see some of the latents: what moments of rows say, at a cost free of the rows.

    log_odds ~ N(0, 1.5^2),  sees_vk ~ Bernoulli(logits=log_odds)                 (view, latent)
    L_jk ~ N(0, slab^2) where sees_vk, v the view of feature j, else 0            (feature, latent)
    v_j ~ InverseGamma(SHAPE, rate),  R ~ LKJ(eta),  z_i ~ N(0, R),  x_i ~ N(L z_i, diag v)

Rows may lack views: they enter through the second moments about 0 of rows with the same views. `climbed` finds the mode
for given `sees` by expectation-maximisation. `Sampler` is a Gibbs sampler: given (L, v, R), what the other conditionals
need of the latents, sums of x z^T and z z^T over the rows that have a view, is drawn exactly (`spike_slab`); then
sees_vk and the loadings of all features of view v on latent k are one block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

from pyrocrl.exact.goodness import Misfit
from pyrocrl.exact.spike_slab import SHAPE, latent_moments, second_root
from pyrocrl.exact.spike_slab import Sampler as ColumnSampler

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
STEPS, CLOSE = 1000, 1e-4  # of expectation-maximisation, and the gain in nats at which it ends
FAR = 40.0  # steps of the last gain, or fewer, that would reach what is hoped for
LEAST_EIGEN = 1e-4  # of correlations of latents
BURN, KEPT = 100, 200  # sweeps, every one of which is kept after the first ones
SPREAD, GRID = 1.5, np.linspace(-6.0, 6.0, 121)  # of the log odds of seeing


class Group(NamedTuple):
    """Rows with the same views: how many, the columns (own,) that they have, second moments (own, own) about 0, a root
    of these, and which views (view,) they are."""

    rows: int
    columns: NDArray[np.int64]
    second: Floats
    root: Floats
    present: Bools


class Moments(NamedTuple):
    """Groups of rows, the view (feature,) of each feature, and how many rows have a view (view,), and there are."""

    groups: tuple[Group, ...]
    view: NDArray[np.int64]
    having: Floats
    rows: int

    @classmethod
    def of(cls, x: Floats, present: Bools, view: NDArray[np.int64]) -> Moments:
        """x (data, feature), anything where a view is not `present` (data, view)."""
        found = []
        for pattern in np.unique(present, axis=0):
            mine = (present == pattern).all(1)
            columns = np.flatnonzero(pattern[view])
            own = x[np.ix_(mine, columns)]
            if len(columns):
                second = own.T @ own / len(own)
                found.append(Group(len(own), columns, second, second_root(second, len(own)), pattern))
        return cls(tuple(found), view, present.sum(0).astype(float), len(x))

    @property
    def views(self) -> int:
        return len(self.having)

    def whole(self) -> Floats:
        """(feature, feature) second moments over the rows that have both features, 0 where none do."""
        size = len(self.view)
        total, count = np.zeros((size, size)), np.zeros((size, size))
        for g in self.groups:
            place = np.ix_(g.columns, g.columns)
            total[place] += g.rows * g.second
            count[place] += g.rows
        return total / np.maximum(count, 1.0)

    def together(self) -> Floats:
        """(view, view) how many rows have both."""
        present = np.array([g.present for g in self.groups], dtype=float)
        return (present * [[g.rows] for g in self.groups]).T @ present


class ViewLoadings(NamedTuple):
    """loadings (feature, latent), 0 where not seen; variance (feature,); correlation (latent, latent); sees (view,
    latent)."""

    loadings: Floats
    variance: Floats
    correlation: Floats
    sees: Bools

    def ordered(self) -> ViewLoadings:
        """Latents of more views first, those of earlier views before others."""
        views = len(self.sees)
        order = np.lexsort([*(~self.sees[v] for v in reversed(range(views))), -self.sees.sum(0)])
        return ViewLoadings(
            self.loadings[:, order], self.variance, self.correlation[np.ix_(order, order)], self.sees[:, order]
        )


def above(sees: Bools) -> Bools:
    """(latent, latent) whether all views of the first latent see the second as well: then the first may take of it."""
    out: Bools = np.all(sees[:, :, None] <= sees[:, None, :], axis=0)
    return out


def free(sees: Bools, view: NDArray[np.int64]) -> int:
    """How many numbers the covariance of features has, noise apart: loadings and correlations, less the maps of the
    latents under which no view sees more."""
    latents = sees.shape[1]
    size = int(sees[view].sum()) + latents * (latents + 1) // 2
    return size - int(above(sees).sum())


class ViewFactors:
    """The likelihood of moments, and the mode for given `sees`."""

    def __init__(self, moments: Moments, slab: float, rate: float) -> None:
        self.moments, self.slab, self.rate = moments, slab, rate
        self.square = np.diag(moments.whole())

    def expected(self, p: ViewLoadings) -> tuple[float, Floats, Floats, Floats]:
        """Log-likelihood, and expected sums over rows: of x z^T (feature, latent), of z z^T over the rows that have
        each view (view, latent, latent), and over all."""
        m, latents = self.moments, p.loadings.shape[1]
        inverse, log_det = np.linalg.inv(p.correlation), np.linalg.slogdet(p.correlation)[1]
        total, cross = 0.0, np.zeros_like(p.loadings)
        inner, whole = np.zeros((m.views, latents, latents)), (m.rows - sum(g.rows for g in m.groups)) * p.correlation
        for g in m.groups:
            own, noise = p.loadings[g.columns], p.variance[g.columns]
            scaled = own / noise[:, None]
            precision = inverse + own.T @ scaled
            covariance = np.linalg.inv(precision)
            xz = g.second @ scaled @ covariance
            zz = covariance + covariance @ scaled.T @ xz
            cross[g.columns] += g.rows * xz
            inner[g.present] += g.rows * zz
            whole += g.rows * zz
            gap = (np.diag(g.second) / noise).sum() - (scaled * xz).sum()
            dets = np.log(noise).sum() + np.linalg.slogdet(precision)[1] + log_det
            total -= 0.5 * g.rows * (gap + dets + len(g.columns) * math.log(2 * math.pi))
        return total, cross, inner, whole

    def climbed(
        self, p: ViewLoadings, steps: int = STEPS, close: float = CLOSE, least: float = -math.inf
    ) -> tuple[ViewLoadings, float]:
        """The mode from there, `sees` as it is, and the log-likelihood there. It ends where a step gains less than
        `close` nats, or hopelessly far below a log posterior of `least`."""
        m, last, square = self.moments, -math.inf, self.square
        places = [(m.view == v, np.flatnonzero(p.sees[v])) for v in range(m.views)]
        grids = [(np.ix_(mine, seen), np.ix_(seen, seen)) for mine, seen in places]
        for _ in range(steps):
            log_likelihood, cross, inner, whole = self.expected(p)
            now = log_likelihood + self.log_prior(p)
            if abs(now - last) < close or (least - now > FAR * (now - last)):
                break
            last, loadings, variance = now, np.zeros_like(p.loadings), p.variance.copy()
            for v, (mine, seen) in enumerate(places):
                own, square_seen = grids[v]
                ridge = np.median(p.variance[mine]) / self.slab**2 * np.eye(len(seen))
                loadings[own] = np.linalg.solve(inner[v][square_seen] + ridge, cross[own].T).T
                fitted = ((loadings[mine] @ inner[v] - 2 * cross[mine]) * loadings[mine]).sum(1)
                left = np.maximum(m.having[v] * square[mine] + fitted, 1e-9 * m.having[v])
                variance[mine] = (self.rate + 0.5 * left) / (SHAPE + 1 + 0.5 * m.having[v])
            unit = np.sqrt(np.diag(whole) / m.rows)
            p = ViewLoadings(loadings * unit, variance, proper(whole / m.rows / unit / unit[:, None]), p.sees)
        return p, self.expected(p)[0]

    def log_prior(self, p: ViewLoadings) -> float:
        """Log prior of loadings and variances, up to a constant."""
        return float(-0.5 * (p.loadings**2).sum() / self.slab**2 - ((SHAPE + 1) * np.log(p.variance)).sum()) - float(
            (self.rate / p.variance).sum()
        )

    def score(self, p: ViewLoadings, log_likelihood: float) -> float:
        """Log evidence by BIC, `sees` with its prior."""
        numbers = free(p.sees, self.moments.view)
        prior = float(special.logsumexp(odds_log_prob(p.sees)) - special.logsumexp(-0.5 * (GRID / SPREAD) ** 2))
        return log_likelihood - 0.5 * numbers * math.log(self.moments.rows) + prior


def odds_log_prob(sees: Bools) -> Floats:
    """Log density of sees and log_odds, up to a constant, on the grid of log odds."""
    seen = int(sees.sum())
    out: Floats = seen * GRID - sees.size * np.logaddexp(0.0, GRID) - 0.5 * (GRID / SPREAD) ** 2
    return out


def proper(correlation: Floats) -> Floats:
    """These correlations, no direction of which has next to no variance."""
    return (1 - LEAST_EIGEN) * correlation + LEAST_EIGEN * np.eye(len(correlation))


class Sights(NamedTuple):
    """What views show. weakest (view,): the least a view alone tells of any direction of the latents that it sees, in
    deviations of what noise would have; blurred (view, view): standard error of the correlation, 1 by the fit, of what
    two views show of a direction that both see, 0 where there is none; together (view, view) rows that have both."""

    weakest: Floats
    blurred: Floats
    together: Floats


def sights(p: ViewLoadings, moments: Moments) -> Sights:
    """At the fitted factors."""
    together, views = moments.together(), moments.views
    weakest, blurred = np.full(views, np.inf), np.zeros((views, views))
    for v in range(views):
        mine, seen = moments.view == v, np.flatnonzero(p.sees[v])
        if len(seen):
            root = np.linalg.cholesky(p.correlation[np.ix_(seen, seen)])
            white = p.loadings[np.ix_(mine, seen)] / np.sqrt(p.variance[mine, None]) @ root
            noise = (np.sqrt(mine.sum()) + np.sqrt(len(seen))) / np.sqrt(max(moments.having[v], 1.0))
            weakest[v] = np.linalg.svd(white, compute_uv=False)[-1] / noise if mine.sum() >= len(seen) else 0.0
    for v, w in np.ndindex(views, views):
        both = np.flatnonzero(p.sees[v] & p.sees[w])
        if v != w and len(both) and together[v, w]:
            shown = np.sqrt(_shown(p, moments, v, both) * _shown(p, moments, w, both))
            blurred[v, w] = (1 - shown**2) / max(shown, 1e-6) / np.sqrt(together[v, w])
    return Sights(weakest, blurred, together)


def _shown(p: ViewLoadings, moments: Moments, v: int, latents: NDArray[np.int64]) -> float:
    """The least share of the variance of a direction of these latents that a view shows by itself."""
    mine = moments.view == v
    own = p.loadings[mine] @ p.correlation
    covariance = own @ p.loadings[mine].T + np.diag(p.variance[mine])
    told = own[:, latents].T @ linalg.solve(covariance, own[:, latents], assume_a="pos")
    value = linalg.eigh(told, p.correlation[np.ix_(latents, latents)], eigvals_only=True)
    return float(np.clip(value[0], 0.0, 1.0))


def misfit(p: ViewLoadings, x: Floats, present: Bools, view: NDArray[np.int64], parameters: int) -> Misfit | None:
    """Likelihood ratio of means of 0 and the fitted covariance against any, of rows x (data, feature) with the same
    views, with Bartlett's factor (Lawley & Maxwell 1971, chapter 4); of groups of twice as many rows as features.
    parameters: that were fitted, the features' own means and variances apart. None where nothing is left to test."""
    whole = p.loadings @ p.correlation @ p.loadings.T + np.diag(p.variance)
    deviance, freedom, tested = 0.0, 0.0, np.zeros(len(view), dtype=bool)
    for pattern in np.unique(present, axis=0):
        mine, columns = (present == pattern).all(1), np.flatnonzero(pattern[view])
        count, size = int(mine.sum()), len(columns)
        if not size or count < 2 * size:
            continue
        own = x[np.ix_(mine, columns)]
        mean, fitted = own.mean(0), whole[np.ix_(columns, columns)]
        ratio = np.linalg.solve(fitted, np.cov(own.T, bias=True))
        gap = np.trace(ratio) - np.linalg.slogdet(ratio)[1] - size
        factor = count - 1 - (2 * size + 5) / 6 - 2 * p.loadings.shape[1] / 3
        deviance += factor * gap + count * mean @ np.linalg.solve(fitted, mean)
        freedom += size * (size + 3) / 2
        tested[columns] = True
    freedom -= parameters + 2 * tested.sum()
    return Misfit(float(deviance), float(freedom)) if tested.all() and freedom > 0 else None


class Draws(NamedTuple):
    """sees (draw, view, latent), loadings (draw, feature, latent), variance (draw, feature), correlation_tril (draw,
    latent, latent), log_odds (draw,)."""

    sees: Floats
    loadings: Floats
    variance: Floats
    correlation_tril: Floats
    log_odds: Floats


class Sampler(ColumnSampler):
    """A chain of draws, which begins at `start`."""

    def __init__(
        self, moments: Moments, start: ViewLoadings, slab: float, rate: float, eta: float, rng: np.random.Generator
    ) -> None:
        self.moments, self.slab, self.rate, self.eta, self.rng = moments, slab, rate, eta, rng
        self.rows, (self.features, self.latents) = moments.rows, start.loadings.shape
        self.loadings, self.variance = start.loadings.copy(), start.variance.copy()
        self.correlation, self.sees = start.correlation.copy(), start.sees.copy()
        self.log_odds, self.settled, self.square = 0.0, True, np.diag(moments.whole())

    def draws(self, burn: int = BURN, kept: int = KEPT) -> Draws:
        """`kept` draws after as many sweeps as `burn`."""
        out = []
        for t in range(burn + kept):
            self.sweep(self.rows)
            if t >= burn:
                tril = np.linalg.cholesky(self.correlation)
                out.append((self.sees.astype(float), self.loadings.copy(), self.variance, tril, self.log_odds))
        return Draws(*(np.array(part) for part in zip(*out, strict=True)))

    def sweep(self, rows: int) -> None:
        """Move all that is unknown once."""
        m, precision = self.moments, linalg.inv(self.correlation)
        cross = np.zeros_like(self.loadings)
        inner, whole = np.zeros((m.views, self.latents, self.latents)), np.zeros_like(self.correlation)
        for g in m.groups:
            own = self.loadings[g.columns], self.variance[g.columns]
            xz, zz = latent_moments(g.root, g.rows, *own, precision, self.rng)
            cross[g.columns] += xz
            inner[g.present] += zz
            whole += zz
        for v in range(m.views):
            self._move_view(v, cross, inner[v])
        self.log_odds = float(self.rng.choice(GRID, p=special.softmax(odds_log_prob(self.sees))))
        self.move_correlation(whole, rows)

    def _move_view(self, v: int, cross: Floats, inner: Floats) -> None:
        """Which latents a view sees, each with the loadings of all of them integrated out, then these and the noise,
        given the latents."""
        mine, odds = np.flatnonzero(self.moments.view == v), self.log_odds
        noise, seen = self.variance[mine], self.sees[v]
        now = evidence(cross[mine], inner, noise, self.slab, seen)
        for k in self.rng.permutation(self.latents):
            seen[k] = ~seen[k]
            then = evidence(cross[mine], inner, noise, self.slab, seen)
            gain = then - now if seen[k] else now - then
            opened = self.rng.random() < special.expit(odds + gain)
            now = then if opened == seen[k] else now
            seen[k] = opened
        self.loadings[mine] = 0.0
        own = np.flatnonzero(seen)
        precision = inner[np.ix_(own, own)] / noise[:, None, None] + np.eye(len(own)) / self.slab**2
        white = self.rng.standard_normal((len(mine), len(own), 1))
        tril = np.linalg.cholesky(precision)
        drawn = np.linalg.solve(tril.transpose(0, 2, 1), white)
        drawn += np.linalg.solve(precision, (cross[np.ix_(mine, own)] / noise[:, None])[..., None])
        self.loadings[np.ix_(mine, own)] = drawn[..., 0]
        fitted = ((self.loadings[mine] @ inner - 2.0 * cross[mine]) * self.loadings[mine]).sum(1)
        count = self.moments.having[v]
        rest = np.maximum(count * self.square[mine] + fitted, 1e-9 * count)
        self.variance = self.variance.copy()
        self.variance[mine] = (self.rate + 0.5 * rest) / self.rng.standard_gamma(SHAPE + count / 2, len(mine))


def evidence(cross: Floats, inner: Floats, noise: Floats, slab: float, seen: Bools) -> float:
    """Log density of features that load on these latents, loadings integrated out, less that of features without any:
    cross (feature, latent) sums of x z^T, inner (latent, latent) of z z^T, noise (feature,) variances."""
    own = np.flatnonzero(seen)
    if not len(own):
        return 0.0
    told = inner[np.ix_(own, own)] / noise[:, None, None] + np.eye(len(own)) / slab**2
    white = cross[:, own] / noise[:, None]
    fitted = (white * np.linalg.solve(told, white[..., None])[..., 0]).sum()
    return float(0.5 * (fitted - np.linalg.slogdet(told)[1].sum()) - len(cross) * len(own) * math.log(slab))
