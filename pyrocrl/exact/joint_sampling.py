"""Unmixing and graph of many linear Gaussian latents, sampled together: each step is exact, each sweep polynomial.

    y has z = M y; z_k = a_k + sum_j w[j, k] z_j + eps_k in its natural slice, z_k = a + eps in its own ones

as in `linear_sem`, interventions being perfect, with the same prior: rows of M are uniform lines, the order of the
latents is uniform, edges given the order are Bernoulli, slopes have Zellner's g-prior, levels and variances are flat
and scale-free. The state is (M, graph, order), all else integrated out.

A row of M, its latent's parents and their slopes move together. Take z_k to z_k + delta' z, which leaves det M as it
is. Given the variances and the slopes of k's children on k, delta, the slopes from k's parents and the other slopes of
k's children are jointly normal for any set of parents, so delta and slopes are integrated out of the sum over sets of
parents; members of the set are drawn one at a time by the sweep operator, then slopes, then delta. What is left out,
the prior of lines and the dependence of the children's g-prior on delta, enters as a Metropolis ratio near 1.
Were M fixed while an edge comes or goes, chains would stand still, for the row that an absent edge has made exact
leaves no room for it.

`run` begins with all edges that a first order allows, of which nearly all go in a few sweeps; edges that the first
order had the wrong way around are then reversed, by `reverse`, where that is more probable. Before draws are kept the
chain has to settle; whether runs from other starts agree is for them to show.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs, dtrtrs
from scipy.special import gammaln

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SURE = 100.0  # nats by which the reversal of an edge has failed for good, or for some rounds
STEP, RARE = 0.5, 0.05  # nats of an edge's odds that a step to no edges takes; edges on average that end it


class JointState(NamedTuple):
    """unmixing (latent, latent), rows of any length; graph (parent, child); order (latent,), parents first."""

    unmixing: Floats
    graph: Bools
    order: NDArray[np.int64]


class JointDraws(NamedTuple):
    """unmixing (draw, latent, latent), graph (draw, parent, child), order (draw, latent); log_density (draw,). peak: a
    state at a maximum of the density, or near it."""

    unmixing: Floats
    graph: Bools
    order: NDArray[np.int64]
    log_density: Floats
    peak: JointState


class Sweeps(NamedTuple):
    """How many: dense, with all edges; sparse, after them; between rounds of reversals; settle, before draws are kept;
    thin, for each of the draws; climb, to a maximum after them. rounds: at most; idle: rounds without a reversal that
    end them."""

    dense: int = 4
    sparse: int = 16
    rounds: int = 12
    idle: int = 4
    between: int = 3
    settle: int = 12
    draws: int = 64
    thin: int = 1
    climb: int = 20


EFFORT = Sweeps()


class JointSampler:
    """node (slice,), count (slice,), cov (slice, latent, latent): moments of y by mechanism, the natural ones of all
    latents first (see `linear_sem.Slices`). log_odds: of an edge."""

    def __init__(
        self, node: NDArray[np.int64], count: Floats, cov: Floats, log_odds: float, state: JointState, seed: int = 0
    ) -> None:
        self.d, self.rng = cov.shape[-1], np.random.default_rng(seed)
        self.node, self.count, self.base, self.log_odds = node, count, cov, log_odds
        self.own = [np.flatnonzero(node[self.d :] == k) + self.d for k in range(self.d)]
        self.put(state)
        self.warm = 1.0  # 0: every draw is the mean or the mode in its place

    def put(self, state: JointState) -> None:
        self.unmixing, self.graph = state.unmixing.copy(), state.graph.copy()
        self.place = np.argsort(state.order)
        self.refresh()

    @property
    def state(self) -> JointState:
        return JointState(self.unmixing.copy(), self.graph.copy(), np.argsort(self.place))

    def refresh(self) -> None:
        """Covariances of z in all slices, rows of M having unit variance in their natural slice."""
        rows = self.unmixing
        scale = np.sqrt(np.einsum("ki,kij,kj->k", rows, self.base[: self.d], rows))
        self.unmixing = rows / scale[:, None]
        self.cov = self.unmixing @ self.base @ self.unmixing.T

    # -- equations, drawn given the rest ---------------------------------------------------------------------------

    def _equation(self, k: int) -> tuple[Floats, float]:
        """Slopes (parent,) of the parents of k, in their order, and the variance of its noise."""
        pa, n, cov = np.flatnonzero(self.graph[:, k]), self.count[k], self.cov[k]
        rest, mean = cov[k, k], np.zeros(0)
        if pa.size:
            root = _root(cov[np.ix_(pa, pa)])
            least = _solve(root, cov[pa, k])
            rest = max(rest - n / (1 + n) * float(cov[pa, k] @ least), 1e-15 * rest)
            mean = n / (1 + n) * least
        variance = rest * (0.5 * n / self.rng.gamma(0.5 * n)) ** self.warm
        if pa.size:
            white = self.warm * self.rng.standard_normal(pa.size)
            mean = mean + math.sqrt(variance / (1 + n)) * _back(root, white)
        return mean, variance

    # -- a row and its parents -------------------------------------------------------------------------------------

    def move(self, k: int, dense: bool = False) -> None:
        """Row k of the unmixing, the parents of k and its place in the order."""
        d, cov = self.d, self.cov
        others = np.delete(np.arange(d), k)
        if not dense:
            self._shift(k)
        _, variance = self._equation(k)
        precise, linear = np.zeros((d, d)), np.zeros(d)  # of delta, from k's own rows and its children's
        for s in self.own[k]:
            n = self.count[s]
            own = n / (cov[s, k, k] * (0.5 * n / self.rng.gamma(0.5 * n)) ** self.warm)  # n / variance
            precise += own * cov[s]
            linear -= own * cov[s, k]
        children = []
        for j in np.flatnonzero(self.graph[k]):
            pa = np.flatnonzero(self.graph[:, j])
            slopes, noise = self._equation(int(j))
            on = float(slopes[pa == k][0])
            rest, gain = pa[pa != k], self.count[j] / noise
            left = cov[j]
            if rest.size:
                root = _root(left[np.ix_(rest, rest)])
                left = left - left[:, rest] @ _solve(root, left[rest])
            precise += gain * on**2 * left
            linear += gain * on * (left[:, j] - on * left[:, k])
            children.append((int(j), pa, slopes, noise, on, rest))
        at = np.ix_(others, others)
        precise, linear = precise[at], linear[others]
        natural = self.count[k] / variance
        same, cross = natural * cov[k][at], natural * cov[k][others, k]
        root = _root(precise + same)
        back = _solve(root, np.column_stack([same, linear - cross]))
        told = same - same @ back[:, :-1]
        told = 0.5 * (told + told.T)
        toward = cross + same @ back[:, -1]
        prior = same / self.count[k]
        allowed = self.place[others] < self.place[k]
        inside = allowed if dense else self._parents(told + prior, prior, toward, self.graph[others, k], allowed)
        slopes = np.zeros(d - 1)
        if inside.any():
            own = _root((told + prior)[np.ix_(inside, inside)])
            white = self.warm * self.rng.standard_normal(int(inside.sum()))
            slopes[inside] = _solve(own, toward[inside]) + _back(own, white)
        delta = _solve(root, linear - cross + same @ slopes)
        delta = delta + _back(root, self.warm * self.rng.standard_normal(d - 1))
        step = np.zeros(d)
        step[others] = delta
        if not self.warm or math.log(self.rng.random()) < self._ratio(k, step, children):
            self.graph[others, k] = inside
            self.unmixing[k] += step @ self.unmixing
            cov[:, k] += step @ cov
            cov[:, :, k] += cov @ step
            # the diagonal: (1, delta) on both sides, which both lines above have done in turn

    def _ratio(self, k: int, step: Floats, children: list) -> float:
        """Log Metropolis ratio of z_k + step' z: prior of lines and of the children's slopes."""
        row = self.unmixing[k]
        new = row + step @ self.unmixing
        out = -0.5 * self.d * (math.log(new @ new) - math.log(row @ row))
        for j, pa, slopes, noise, on, rest in children:
            own = self.cov[j]
            turn = np.zeros((pa.size, self.d))
            turn[np.arange(pa.size), pa] = 1.0
            turn[pa == k] += step
            gram, both = own[np.ix_(pa, pa)], turn @ own @ turn.T
            moved = slopes.copy()
            if rest.size:
                root = _root(own[np.ix_(rest, rest)])
                white = math.sqrt(noise / self.count[j]) * self.warm * self.rng.standard_normal(rest.size)
                cross = own[rest, j] - on * (own[rest, k] + own[rest] @ step)
                moved[pa != k] = _solve(root, cross) + _back(root, white)
            out += 0.5 * (np.linalg.slogdet(both)[1] - np.linalg.slogdet(gram)[1])
            out -= 0.5 / noise * (moved @ both @ moved - slopes @ gram @ slopes)
        return float(out)

    def _parents(self, precision: Floats, prior: Floats, toward: Floats, inside: Bools, allowed: Bools) -> Bools:
        """(candidate,) a set of parents after each allowed one was drawn given the others, in a random turn.

        Their slopes have the log density toward' w - w' precision w / 2, with the determinant of `prior`.
        """
        inside = inside.copy()
        both = np.zeros((len(toward) + 1, len(toward) + 1))
        both[:-1, :-1], both[:-1, -1], both[-1, :-1] = precision, toward, toward
        alone = prior.copy()
        for j in np.flatnonzero(inside).tolist():
            _sweep(both, j)
            _sweep(alone, j)
        uniform = self.rng.random(len(toward))
        odds = self.warm * (np.log(uniform) - np.log1p(-uniform))
        for j in self.rng.permutation(np.flatnonzero(allowed)).tolist():
            p, q, h = both[j, j], alone[j, j], both[j, -1]
            if inside[j]:  # the swept diagonal is minus the inverse of the pivot
                gain = 0.5 * (-h * h / p + math.log(p / q)) + self.log_odds
            else:
                gain = 0.5 * (h * h / p - math.log(p / q)) + self.log_odds
            if (odds[j] < gain) != inside[j]:
                inside[j] = not inside[j]
                _sweep(both, j)
                _sweep(alone, j)
        return inside

    def _shift(self, k: int) -> None:
        """k to any place in the order that the graph allows."""
        order = np.argsort(self.place)
        rest = order[order != k]
        low, high = 0, self.d - 1
        after, before = np.flatnonzero(self.graph[rest, k]), np.flatnonzero(self.graph[k, rest])
        if after.size:
            low = int(after[-1]) + 1
        if before.size:
            high = int(before[0])
        self.place[np.insert(rest, self.rng.integers(low, high + 1), k)] = np.arange(self.d)

    def sweep(self, dense: bool = False) -> None:
        """Every row once, in a random turn; dense: with all parents that the order allows."""
        self.refresh()
        for k in self.rng.permutation(self.d):
            self.move(int(k), dense)

    def reverse(self, start: Floats, losses: dict[tuple[int, int], float], behind: bool) -> int:
        """Turn edges around, one after another, where that raises the density; how many were.

        behind: whether its first node goes behind its second one, with all other edges that this turns around, or the
        second before the first. The rows of all their ends go back to `start` (latent, latent), with all parents that
        the new order allows, and climb together. losses: by how much earlier turns have failed; those that failed by
        more than SURE nats are not tried.
        """
        made, self.warm = 0, 0.0
        for k, j in self.rng.permutation(np.argwhere(self.graph)).tolist():
            if not self.graph[k, j] or losses.get((k, j), 0.0) > SURE:
                continue
            order = np.argsort(self.place)
            between = order[self.place[k] : self.place[j] + 1]
            moved, others = (k, between[self.graph[k, between]]) if behind else (j, between[self.graph[between, j]])
            ends = [*others.tolist(), moved]
            both = [*ends, *ends[::-1]]
            for node in both:
                self.move(node)
            if not self.graph[k, j]:
                continue
            before, state = self.log_density(), self.state
            rest = np.argsort(self.place)
            rest = rest[rest != moved]
            at = int(np.flatnonzero(rest == (j if behind else k))[0]) + int(behind)
            if behind:
                self.graph[k, rest[:at]] = False
            else:
                self.graph[rest[at:], j] = False
            self.place[np.insert(rest, at, moved)] = np.arange(self.d)
            self.unmixing[ends] = start[ends]
            self.refresh()
            for node in ends:
                self.graph[:, node] = self.place < self.place[node]
            for node in both:
                self.move(node, dense=True)
            for node in both:
                self.move(node)
            gain = self.log_density() - before
            if gain > 0:
                made += 1
            else:
                self.put(state)
                losses[k, j] = -gain
        self.warm = 1.0
        return made

    # -- density ---------------------------------------------------------------------------------------------------

    def log_density(self) -> float:
        """log p(y, M, graph, order) at the state, rows of M against uniform lines."""
        n, d, out = self.count, self.d, 0.0
        for k in range(d):
            pa = np.flatnonzero(self.graph[:, k])
            out += _score(self.cov[k], n[k], k, pa)
        for s in range(d, len(n)):
            out += _score(self.cov[s], n[s], int(self.node[s]), np.zeros(0, dtype=int))
        total = n[0] + sum(n[s] for s in self.own[0])
        out += total * np.linalg.slogdet(self.unmixing)[1]
        edges, pairs = self.graph.sum(), d * (d - 1) / 2
        return float(out + edges * self.log_odds - pairs * np.logaddexp(0.0, self.log_odds) - gammaln(d + 1))


def run(
    node: NDArray[np.int64],
    count: Floats,
    cov: Floats,
    log_odds: float,
    start: Floats,
    order: NDArray[np.int64],
    seed: int,
    effort: Sweeps = EFFORT,
) -> JointDraws:
    """Draws from rows `start` (latent, latent) and an order (latent,) that are about right; see `JointSampler`."""
    place = np.argsort(order)
    sampler = JointSampler(node, count, cov, log_odds, JointState(start, place[:, None] < place, order), seed)
    for _ in range(effort.dense):
        sampler.sweep(dense=True)
    for _ in range(effort.sparse):
        sampler.sweep()
    losses: tuple[dict[tuple[int, int], float], ...] = ({}, {})
    idle = 0
    for turn in range(effort.rounds):
        mine = losses[turn % 2]
        idle = 0 if sampler.reverse(start, mine, behind=turn % 2 == 0) else idle + 1
        for edge in mine:  # what else has moved may have freed it
            mine[edge] *= 0.5
        for _ in range(effort.between):
            sampler.sweep()
        if idle == effort.idle:
            break
    for _ in range(effort.settle):
        sampler.sweep()
    kept, height = [], []
    for _ in range(effort.draws):
        for _ in range(effort.thin):
            sampler.sweep()
        height.append(sampler.log_density())
        kept.append(sampler.state)
    sampler.warm = 0.0
    for _ in range(effort.climb):
        sampler.sweep()
    unmixing, graph, last = (np.stack(part) for part in zip(*kept, strict=True))
    return JointDraws(unmixing, graph, last, np.array(height), sampler.state)


def without_edges(
    node: NDArray[np.int64],
    count: Floats,
    cov: Floats,
    log_odds: float,
    state: JointState,
    enough: float,
    seed: int,
    settle: int = 6,
    kept: int = 24,
) -> tuple[float, Floats]:
    """The log posterior probability of the graph without edges, and rows (draw, latent, latent) given that graph.

    The sum over graphs has the derivative E[edges] by the log odds of an edge, whose integral from no edges on is
    minus what is sought; it is sampled at log odds that fall, from a state of the posterior. Below -`enough` it is
    left at what was reached, an upper bound, and no rows are given.
    """
    sampler = JointSampler(node, count, cov, log_odds, state, seed)
    lost, before, rows = 0.0, math.nan, np.zeros((0, sampler.d, sampler.d))
    while lost <= enough:
        for _ in range(settle):
            sampler.sweep()
        edges, draws = 0, []
        for _ in range(kept):
            sampler.sweep()
            edges += int(sampler.graph.sum())
            if not sampler.graph.any():
                draws.append(sampler.unmixing.copy())
        mean = edges / kept
        if not math.isnan(before):
            lost += 0.5 * STEP * (before + mean)
        if mean <= RARE:  # from here on it falls as fast as the odds
            return -(lost + mean), np.stack(draws)
        before = mean
        sampler.log_odds -= STEP
    return -lost, rows


def _score(cov: Floats, n: float, k: int, pa: NDArray[np.int64]) -> float:
    """`linear_sem.regression_scores` of one set of parents."""
    var = rest = cov[k, k]
    if pa.size:
        rest = var - cov[k, pa] @ np.linalg.solve(cov[np.ix_(pa, pa)], cov[pa, k])
    log_rest = math.log1p(n * rest / var) - math.log1p(n)
    constant = gammaln(n / 2) - 0.5 * (n - 1) * math.log(2 * math.pi) - 0.5 * math.log(n) - 0.5 * n * math.log(n / 2)
    return float(constant - 0.5 * n * (math.log(var) + log_rest) - 0.5 * pa.size * math.log1p(n))


def _root(matrix: Floats) -> Floats:
    """Lower Cholesky factor."""
    root, failed = dpotrf(matrix, lower=1, clean=1)
    if failed:
        raise np.linalg.LinAlgError("a covariance is not positive definite")
    return np.asarray(root)


def _solve(root: Floats, right: Floats) -> Floats:
    return np.asarray(dpotrs(root, right, lower=1)[0])


def _back(root: Floats, white: Floats) -> Floats:
    """Noise (n,) with the precision root root'."""
    return np.asarray(dtrtrs(root, white, lower=1, trans=1)[0])


def _sweep(matrix: Floats, j: int) -> None:
    """The sweep operator at j, or its inverse where it has been: afterwards the diagonal there is -1 / pivot."""
    pivot = matrix[j, j]
    row = matrix[j].copy()
    matrix -= np.outer(row, row / pivot)
    sign = 1.0 if pivot > 0 else -1.0
    matrix[j] = matrix[:, j] = sign * row / pivot
    matrix[j, j] = -1.0 / pivot
