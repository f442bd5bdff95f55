"""Which views see which latents, from subspaces: the proof of Yao et al. (2024, theorem 3.2) where mixings are linear.

Factor analysis of all features finds w = A z and loadings of each view on w. Those combinations of w that a view tells,
the row space of its loadings, are the span of the latents that it sees; what several views see are the intersections of
these spaces, whatever the latents' correlations. From the intersections of most views on, each has as many latents of
its own as those of more views leave of it. No view's own noise is needed for that, only that of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrocrl.exact.rotations import likely_factors
from pyrocrl.exact.view_factors import Moments, ViewFactors, ViewLoadings, evidence, proper

Floats = NDArray[np.float64]
MOST_VIEWS = 10  # of which all sets are looked at
RANK = 2.0  # times what noise has: least singular value of a direction that a view tells
LEAST_ANGLE = 0.02  # squared sine of the angle up to which directions of two views are one, however many the rows
NOISE = 3.0  # times what noise has: ... by the rows
LOOSE = (1.0, 0.25, 0.06, 0.015, 4.0, 16.0)  # times these
APART = 0.03  # sine of the angle from which directions are two
PASSES, SEARCH, ROUGH = 6, 300, 3e-3  # of the search, steps of each fit, and the gain in nats at which it ends
NEAR = 15.0  # nats below the best, up to which an answer is fitted to the end
REFUTED = 40.0  # nats


def factors(law: ViewFactors, second: Floats, latents: int, steps: int = 200) -> ViewLoadings:
    """Loadings of uncorrelated factors of these second moments, seen by all views, then fitted to the law's rows."""
    unit = np.sqrt(np.maximum(np.diag(second), 1e-12))
    value, vector = np.linalg.eigh(second / unit / unit[:, None])
    near = (vector * np.maximum(value, 1e-4)) @ vector.T  # of pairs of views that few rows have
    loadings, noise = likely_factors(near, latents)
    sees = np.ones((law.moments.views, latents), dtype=bool)
    start = ViewLoadings(loadings * unit[:, None], noise * unit**2, np.eye(latents), sees)
    return law.climbed(start, steps)[0] if len(law.moments.groups) > 1 else start


class Spaces(NamedTuple):
    """Of each view the directions (factor, direction) of uncorrelated factors, those that it tells best first, how far
    it tells them in units of noise (direction,), what noise alone has, and how many are more than that."""

    directions: list[Floats]
    size: list[Floats]
    noise: list[float]
    rank: list[int]


def row_spaces(p: ViewLoadings, moments: Moments) -> Spaces:
    """From factors that all views see."""
    root, out = np.linalg.cholesky(p.correlation), Spaces([], [], [], [])
    for v in range(moments.views):
        mine = moments.view == v
        white = (p.loadings[mine] / np.sqrt(p.variance[mine, None])) @ root
        _, size, right = np.linalg.svd(white, full_matrices=False)
        noise = float((np.sqrt(mine.sum()) + np.sqrt(white.shape[1])) / np.sqrt(moments.having[v]))
        out.directions.append(right.T)
        out.size.append(size)
        out.noise.append(noise)
        out.rank.append(max(1, int((size > RANK * noise).sum())))
    return out


def shared(spaces: Spaces, rank: Sequence[int], views: tuple[int, ...], loose: float) -> Floats:
    """(factor, direction) an orthonormal basis of what all these views tell, of so many directions each; loose: times
    the angles that count as none."""
    bases = [spaces.directions[v][:, : rank[v]] for v in views]
    if len(views) == 1:
        return bases[0]
    value, vector = np.linalg.eigh(sum(one @ one.T for one in bases))
    turned = sum((spaces.noise[v] / spaces.size[v][rank[v] - 1]) ** 2 for v in views)
    off = loose * max(LEAST_ANGLE, NOISE * turned)
    found: Floats = vector[:, value > len(views) - min(off, 0.5)]
    return found


def placed(p: ViewLoadings, moments: Moments, told: Spaces, rank: Sequence[int], loose: float = 1.0) -> ViewLoadings:
    """Latents by the views that see them, from factors that all views see."""
    size, views = p.loadings.shape[1], range(moments.views)
    axes, sees, spaces = np.zeros((size, 0)), [], {}
    for count in range(moments.views, 0, -1):
        for own in itertools.combinations(views, count):
            space = shared(told, rank, own, loose)
            spaces[own] = space
            if not space.shape[1]:
                continue
            above = [spaces[more] for more in spaces if set(own) < set(more)]
            rest = space
            if above:  # what sets of more views leave of it
                wide, length, _ = np.linalg.svd(np.hstack(above), full_matrices=False)
                wide = wide[:, length > APART]
                turn, _, _ = np.linalg.svd(space.T - (space.T @ wide) @ wide.T, full_matrices=False)
                rest = space @ turn[:, : max(0, space.shape[1] - wide.shape[1])]
            for k in range(rest.shape[1]):
                one = rest[:, k]
                q = np.linalg.qr(axes)[0] if axes.shape[1] else axes
                if axes.shape[1] < size and np.linalg.norm(one - q @ (q.T @ one)) > APART:
                    axes = np.column_stack([axes, one])
                    sees.append(np.isin(views, own))
    if axes.shape[1] < size:  # what is left is seen by all, until loadings tell
        q = np.linalg.qr(np.column_stack([axes, np.eye(size)]))[0][:, axes.shape[1] : size]
        sees += [np.ones(moments.views, dtype=bool)] * (size - axes.shape[1])
        axes = np.column_stack([axes, q])
    gates = np.array(sees).T
    root = np.linalg.cholesky(p.correlation)
    loadings = p.loadings @ root @ np.linalg.inv(axes).T  # z = axes^T w
    correlation = axes.T @ axes
    unit = np.sqrt(np.diag(correlation))
    loadings = np.where(gates[moments.view], loadings * unit, 0.0)
    return ViewLoadings(loadings, p.variance, proper(correlation / unit / unit[:, None]), gates)


def shut(p: ViewLoadings, moments: Moments, v: int, k: int) -> tuple[ViewLoadings, float]:
    """The placing in which view v does not see latent k, and about how many nats that costs.

    A latent c that v sees, and all of whose views see k, may take of k, z_c + t_c z_k: so much that what v has of k is
    what it has of these, as far as it goes.
    """
    mine, size = moments.view == v, p.loadings.shape[1]
    takes = [c for c in np.flatnonzero(p.sees[v]) if c != k and (p.sees[:, c] <= p.sees[:, k]).all()]
    white = p.loadings[mine] / np.sqrt(p.variance[mine, None])
    turn = np.eye(size)
    turn[takes, k] = np.linalg.lstsq(white[:, takes], white[:, k], rcond=None)[0] if takes else ()
    left = white[:, k] - white[:, takes] @ turn[takes, k]
    off = np.eye(size)[k] - np.where(np.arange(size) == k, 0.0, turn[:, k])
    told = 1 / (off @ np.linalg.solve(p.correlation, off))  # n times it, the inverse variance of what is left by noise
    seen = int(mine.sum())
    lost = 0.5 * moments.having[v] * told * float(left @ left) - 0.5 * seen * np.log(moments.having[v])
    loadings, correlation = p.loadings @ np.linalg.inv(turn), turn @ p.correlation @ turn.T
    unit, sees = np.sqrt(np.diag(correlation)), p.sees.copy()
    sees[v, k] = False
    loadings = np.where(sees[moments.view], loadings * unit, 0.0)
    return ViewLoadings(loadings, p.variance, proper(correlation / unit / unit[:, None]), sees), lost


class Found(NamedTuple):
    """The best placing of so many latents, its log evidence by BIC, and by how much the next best that differs in which
    views see how many latents is below it."""

    factors: ViewLoadings
    score: float
    margin: float


class Search:
    """Placings of so many latents, with the log evidence of each. bar: log evidence of an answer that they have to come
    near; of those that do not, it is told roughly."""

    def __init__(self, law: ViewFactors, bar: float = -np.inf) -> None:
        self.law, self.bar = law, bar
        self.tried: dict[bytes, tuple[float, ViewLoadings]] = {}

    def add(self, start: ViewLoadings) -> None:
        """Fit this placing, if it was not, unless it has a latent that no view sees: an answer of fewer latents."""
        start = start.ordered()
        name, whole = start.sees.tobytes(), bool(start.sees.any(0).all())
        if name not in self.tried and (whole or not self.tried):
            best = max(self.bar, self.best[0] if self.tried else -np.inf)
            least = best - NEAR - self.law.score(start, 0.0) + self.law.log_prior(start)
            p, log_likelihood = self.law.climbed(start, SEARCH, ROUGH, least)
            self.tried[name] = self.law.score(p, log_likelihood), p

    @property
    def best(self) -> tuple[float, ViewLoadings]:
        return max(self.tried.values(), key=lambda one: one[0])

    def place(self, second: Floats, latents: int, *, few: bool = False) -> None:
        """The construction, with a view's directions one more or one less and with intersections drawn more or less
        tightly; few: the latter alone."""
        moments = self.law.moments
        whole = factors(self.law, second, latents)
        told = row_spaces(whole, moments)
        plain = tuple(told.rank)
        for loose in LOOSE:
            self.add(placed(whole, moments, told, plain, loose))
        for v in range(0 if few else moments.views):
            for more in (-1, 1):
                if 1 <= plain[v] + more <= len(told.size[v]):
                    rank = (*plain[:v], plain[v] + more, *plain[v + 1 :])
                    self.add(placed(whole, moments, told, rank))

    def polish(self, passes: int = PASSES) -> None:
        """From the best one on, let views see a latent more or less, while that is better: of those that moments do not
        refute."""
        moments, slab = self.law.moments, self.law.slab
        for _ in range(passes):
            score, p = self.best
            _, cross, inner, _ = self.law.expected(p)
            for v, k in np.ndindex(*p.sees.shape):
                if p.sees[v, k]:
                    start, lost = shut(p, moments, v, k)
                else:
                    mine, sees = moments.view == v, p.sees.copy()
                    sees[v, k] = True
                    parts = cross[mine], inner[v], p.variance[mine], slab
                    lost = evidence(*parts, p.sees[v]) - evidence(*parts, sees[v])
                    start = p._replace(sees=sees)
                if lost < REFUTED:
                    self.add(start)
            if self.best[0] <= score:
                return

    def found(self) -> Found:
        score, p = self.best
        if score > self.bar - NEAR:
            p, log_likelihood = self.law.climbed(p)
            score = self.law.score(p, log_likelihood)
        self.tried[p.sees.tobytes()] = score, p
        scores = sorted((score for score, _ in self.tried.values()), reverse=True)
        return Found(self.best[1], scores[0], scores[0] - scores[1] if len(scores) > 1 else np.inf)


def started(law: ViewFactors, second: Floats, latents: int, bar: float = -np.inf) -> Found:
    """The best placing of so many latents, from second moments (feature, feature) that may be of other rows. bar: of
    what these are to be compared with, then the search is short."""
    search, few = Search(law, bar), bar > -np.inf
    search.place(second, latents, few=few)
    search.polish(2 if few else PASSES)
    return search.found()
