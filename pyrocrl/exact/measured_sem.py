"""Linear equations among latents that features of their own measure: Gibbs sampling at a cost free of the rows.

    x_j ~ N(slope_j z_c(j), v_j),  or N(0, v_j) where j depends on no latent
    slope_j ~ N(0, slab^2),  v_j ~ InverseGamma(SHAPE, rate);  partitions of features are alike, of two or more a latent
    y_k ~ N(sum_b w_bk y_b, 1 / p_k) over the parents b of k,  z_k = y_k in units of its deviation
    p_k ~ Gamma((3 + parents of k) / 2, SIZE / 2),  w_bk ~ N(0, 1 / (SIZE p_k))
    graph: a uniform order of the latents, and an edge from an earlier one that has features to a later one with the
    log odds `edge` ~ N(sparse, 1)

Given a graph without missing edges the precision of y has a Wishart law of latents + 2 degrees of freedom, and of
other graphs that law's conditionals: then graphs of one Markov equivalence class have the same evidence (Geiger &
Heckerman 2002; Kuipers, Moffa & Heckerman 2014).

Each feature's latent, slope and variance move together with z summed out; then sum z z^T is drawn from the moments of
x; given that of y, order and graph come from the exact sum over all and slopes w and precisions p from their conjugate
law, accepted by what the new deviations of y make of loadings; and units of y, which x says nothing of, move with w and
p. Which latents have features stays as it begins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyrocrl.exact.linear_sem import log_minors
from pyrocrl.exact.orders import members, sample_dags
from pyrocrl.exact.spike_slab import wishart_root

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHAPE = 1.5  # of the variances' prior
NONE = -1  # cluster of features that depend on no latent
SIZE = 0.25  # of the Wishart law: weights have twice the deviation of the noise, a priori
GRID = np.linspace(-5.0, 4.0, 91)  # of log odds of an edge
STEP = 0.3  # of the logarithm of a latent's unit
BURN, KEPT = 30, 100  # sweeps


class Measured(NamedTuple):
    """cluster (feature,) the latent of each feature, or `NONE`; slope, variance (feature,); correlation (latent,
    latent). bic: log-likelihood, less half the logarithm of the rows a parameter; margin: by how much it exceeds that
    of the best clusters with two of these merged or one split."""

    cluster: Ints
    slope: Floats
    variance: Floats
    correlation: Floats
    bic: float
    margin: float = np.inf

    @property
    def parameters(self) -> int:
        """How many numbers the covariance was chosen by."""
        latents = len(self.correlation)
        return len(self.cluster) + int((self.cluster != NONE).sum()) + latents * (latents - 1) // 2

    def covariance(self) -> Floats:
        """(feature, feature) of x, by the model."""
        loadings = self.slope[:, None] * one_hot(self.cluster, len(self.correlation))
        return loadings @ self.correlation @ loadings.T + np.diag(self.variance)


def one_hot(cluster: Ints, latents: int) -> Floats:
    """(feature, latent) in {0, 1}."""
    return (cluster[:, None] == np.arange(latents)).astype(float)


class MeasuredDraws(NamedTuple):
    """mask, loadings (draw, feature, latent); variance (draw, feature); order (draw, latent); graph, slope (draw,
    parent, child); precision (draw, latent); edge (draw,)."""

    mask: Floats
    loadings: Floats
    variance: Floats
    order: Floats
    graph: Floats
    slope: Floats
    precision: Floats
    edge: Floats


def family_scores(total: torch.Tensor, rows: int) -> torch.Tensor:
    """(latent, 2**latent) log evidence of each latent given each set of parents, but for a constant: total (latent,
    latent) is sum z z^T over the rows."""
    u = len(total)
    table = members(u)
    minors = log_minors(total + SIZE * torch.eye(u, dtype=total.dtype))  # (2**u,)
    bit = 2 ** torch.arange(u)
    sets = torch.arange(2**u)
    both = minors[sets | bit[:, None]]
    size = table.sum(1).to(total)
    shape = 0.5 * (3 + size)
    left = (both - minors).exp()
    prior = 0.5 * size * math.log(SIZE) + shape * math.log(SIZE / 2) - torch.lgamma(shape)
    score = prior + torch.lgamma(shape + rows / 2) - 0.5 * minors - (shape + rows / 2) * (0.5 * left).log()
    return score


class Sampler:
    """State of a chain on latents that have features; second: (feature, feature) mean of x x^T over `rows` rows."""

    def __init__(
        self,
        second: Floats,
        rows: int,
        start: Measured,
        slab: float,
        rate: float,
        sparse: float,
        generator: torch.Generator,
    ) -> None:
        self.second, self.rows, self.slab, self.rate, self.sparse = second, rows, slab, rate, sparse
        self.generator = generator
        self.rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        value, vector = np.linalg.eigh(second)
        there = value > 1e-10 * value[-1]
        self.root = (vector[:, there] * np.sqrt(value[there]))[:, -rows:]  # second = root root^T
        self.cluster, self.slope, self.variance = start.cluster.copy(), start.slope.copy(), start.variance.copy()
        u = self.count = len(start.correlation)
        self.order, self.graph, self.edge = np.arange(u), np.zeros((u, u)), 0.0
        self.weight, self.precision = np.zeros((u, u)), np.ones(u)  # w, p
        self.inverse, self.unit = np.linalg.inv(start.correlation), np.ones(u)  # correlations of z; deviations of y

    def run(self, latents: int) -> MeasuredDraws:
        """Draws with as many latents as are offered: those without features have the law of the prior."""
        kept = []
        for sweep in range(BURN + KEPT):
            self.sweep()
            if sweep >= BURN:
                kept.append(self.drawn(latents))
        return MeasuredDraws(*(np.array(part) for part in zip(*kept, strict=True)))

    def drawn(self, latents: int) -> tuple[Floats, ...]:
        u, rng = self.count, self.rng
        mask = one_hot(self.cluster, latents)
        order = self.order
        for k in range(u, latents):  # those without features stand anywhere
            order = np.insert(order, rng.integers(len(order) + 1), k)
        wide = np.zeros((2, latents, latents))
        wide[0, :u, :u], wide[1, :u, :u] = self.graph, self.weight
        precision = np.append(self.precision, rng.gamma(1.5, 2 / SIZE, latents - u))
        loadings = mask * self.slope[:, None]
        return mask, loadings, self.variance.copy(), order.astype(float), *wide, precision, np.asarray(self.edge)

    def sweep(self) -> None:
        """Move all that is unknown once."""
        self.move_features()
        if self.count:
            self.move_equations(self.latents())
            self.move_units()
            self.inverse, self.unit = self.told(self.weight, self.precision)
        self.move_edge()

    def told(self, weight: Floats, precision: Floats) -> tuple[Floats, Floats]:
        """The inverse of z's correlations (latent, latent), and deviations of y (latent,), of these w and p."""
        apart = np.eye(self.count) - weight
        inverse = apart * precision @ apart.T
        unit = np.sqrt(np.linalg.inv(inverse).diagonal())
        return inverse * unit[:, None] * unit, unit

    # -- features --------------------------------------------------------------------------------------------------

    def move_features(self) -> None:
        """Each feature's latent, slope and variance together, z summed out: by an independent proposal that is about
        their conditional, accepted as Metropolis and Hastings have it."""
        u, rng, square = self.count, self.rng, np.diag(self.second)
        scaled = one_hot(self.cluster, u) * (self.slope / self.variance)[:, None]
        cross = scaled.T @ self.second  # (latent, feature)
        inner = cross @ scaled
        information = np.bincount(self.cluster + 1, self.slope**2 / self.variance, u + 1)[1:]
        for j in rng.permutation(len(self.cluster)):
            k, own = self.cluster[j], self.second[j]
            if k != NONE:  # without j
                by = -self.slope[j] / self.variance[j]
                inner[k] += by * cross[:, j]
                inner[:, k] += by * cross[:, j]
                inner[k, k] += by**2 * square[j]
                cross[k] += by * own
                information[k] += by * self.slope[j]
            given = np.linalg.inv(self.inverse + np.diag(information))
            with_j, spread = given @ cross[:, j], ((given @ inner) * given).sum(1)
            # as moments of x_j given a latent's mean, and its variance; the last: given none
            law = _Feature(square[j], np.append(with_j, 0.0), np.append(spread, 0.0), np.append(given.diagonal(), 0.0))
            free = k == NONE or (self.cluster == k).sum() > 2
            new, slope, variance = law.moved(u if k == NONE else k, self.slope[j], self.variance[j], self, free)
            k = self.cluster[j] = NONE if new == u else new
            self.slope[j], self.variance[j] = slope, variance
            if k != NONE:
                by = slope / variance
                cross[k] += by * own
                inner[k] += by * cross[:, j]
                inner[:, k] += by * cross[:, j]
                inner[k, k] -= by**2 * square[j]
                information[k] += by * slope

    # -- latents ---------------------------------------------------------------------------------------------------

    def latents(self) -> Floats:
        """sum z z^T, drawn given all else."""
        scaled = one_hot(self.cluster, self.count) * (self.slope / self.variance)[:, None]
        information = np.bincount(self.cluster + 1, self.slope**2 / self.variance, self.count + 1)[1:]
        given = np.linalg.inv(self.inverse + np.diag(information))
        tril = np.linalg.cholesky(0.5 * (given + given.T))
        rank = self.root.shape[1]
        inside = math.sqrt(self.rows) * given @ scaled.T @ self.root
        inside = inside + tril @ self.rng.standard_normal(inside.shape)
        outside = tril @ wishart_root(self.count, max(0, self.rows - rank), self.rng)
        return inside @ inside.T + outside @ outside.T

    def move_equations(self, total: Floats) -> None:
        """Order, graph, precisions and slopes given sum z z^T."""
        total = total * self.unit[:, None] * self.unit  # of y
        scores = family_scores(torch.as_tensor(total), self.rows)
        scores = scores + self.edge * members(self.count).sum(1).to(scores)
        order, graph = (drawn.numpy() for drawn in sample_dags(scores, self.generator))
        weight, precision = np.zeros_like(total), np.ones(self.count)
        for k in range(self.count):
            parents = np.flatnonzero(graph[:, k])
            inner = total[np.ix_(parents, parents)] + SIZE * np.eye(len(parents))
            mean = np.linalg.solve(inner, total[parents, k])
            shape, size = 0.5 * (3 + len(parents) + self.rows), SIZE + total[k, k] - mean @ total[parents, k]
            precision[k] = self.rng.gamma(shape, 2 / size)
            white = self.rng.standard_normal(len(parents)) / math.sqrt(precision[k])
            weight[parents, k] = mean + np.linalg.solve(np.linalg.cholesky(inner).T, white)
        # loadings of y stay, so that those of z, of which the prior is, change with y's deviations
        ratio, inside = self.told(weight, precision)[1] / self.unit, self.cluster != NONE
        grown = np.where(inside, ratio[np.where(inside, self.cluster, 0)], 1.0)
        gain = np.log(grown).sum() - 0.5 * (self.slope**2 * (grown**2 - 1)).sum() / self.slab**2
        if math.log(self.rng.random()) < gain:
            self.order, self.graph, self.weight, self.precision = order, graph.astype(float), weight, precision
            self.slope = self.slope * grown

    def move_units(self) -> None:
        """Each latent's y in a new unit, with slopes and precision that leave the law of z as it is."""
        for k, log_unit in enumerate(STEP * self.rng.standard_normal(self.count)):
            unit, out = math.exp(log_unit), self.weight[k] ** 2 @ self.precision
            parents, children = self.graph[:, k].sum(), self.graph[k].sum()
            # of slopes to children; of the precision and, with it, of slopes from parents
            gain = -0.5 * SIZE * (unit**-2 - 1) * (out + self.precision[k]) - (3 + parents + children) * log_unit
            if math.log(self.rng.random()) < gain:
                self.weight[:, k] *= unit
                self.weight[k] /= unit
                self.precision[k] /= unit**2

    def move_edge(self) -> None:
        """Log odds of an edge, given the graph and its order."""
        there, pairs = self.graph.sum(), self.count * (self.count - 1) / 2
        log_prob = there * GRID - pairs * np.log1p(np.exp(GRID)) - 0.5 * (GRID - self.sparse) ** 2
        self.edge = float(GRID[_any_of(np.exp(log_prob - log_prob.max()), self.rng)])


def _any_of(share: Floats, rng: np.random.Generator) -> int:
    """An index, drawn with probabilities proportional to these shares."""
    total = share.cumsum()
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


class _Feature(NamedTuple):
    """What the others tell of one feature: its mean square, and for each latent, the last entry none, the mean of it
    times the latent's mean, the mean square of that mean, and the latent's variance given the others."""

    square: float
    with_mean: Floats
    mean_square: Floats
    variance: Floats

    def moved(
        self, latent: int, slope: float, variance: float, sampler: Sampler, free: bool
    ) -> tuple[int, float, float]:
        """The next (latent, slope, variance); free: whether it may change its latent."""
        rng, rows = sampler.rng, sampler.rows
        none = len(self.variance) - 1
        safe = np.where(self.mean_square > 0, self.mean_square, 1.0)
        best = self.with_mean / safe
        least = np.maximum(self.square - best * self.with_mean, 1e-9 * self.square)
        wide = np.sqrt(least / (rows * safe))  # of the slope
        log_share = -0.5 * rows * np.log(least) - 0.5 * (best / sampler.slab) ** 2 + np.log(wide / sampler.slab)
        log_share[none] = -0.5 * rows * math.log(self.square)
        if not free:
            log_share = np.where(np.arange(none + 1) == latent, log_share, -np.inf)
        share = np.exp(log_share - log_share.max())
        log_share = log_share - log_share.max() - math.log(share.sum())

        def log_ratio(at: int, slope: float, variance: float) -> float:
            """Of the conditional to the proposal."""
            total = variance + slope**2 * self.variance[at]
            rest = self.square - 2 * slope * self.with_mean[at] + slope**2 * self.mean_square[at]
            out = -0.5 * rows * (math.log(total) + rest / total)
            out -= (SHAPE + 1) * math.log(variance) + sampler.rate / variance
            # proposal of the total: rows * rest over a chi-square of as many degrees of freedom
            out -= log_share[at] - (0.5 * rows + 1) * math.log(total) + 0.5 * rows * (math.log(rest) - rest / total)
            if at != none:
                out -= 0.5 * (slope / sampler.slab) ** 2 + math.log(sampler.slab)
                out += 0.5 * ((slope - best[at]) / wide[at]) ** 2 + math.log(wide[at])
            return out

        new = _any_of(share, rng)
        slope_new = 0.0 if new == none else best[new] + wide[new] * rng.standard_normal()
        rest = self.square - 2 * slope_new * self.with_mean[new] + slope_new**2 * self.mean_square[new]
        variance_new = rows * rest / rng.chisquare(rows) - slope_new**2 * self.variance[new]
        if variance_new <= 0:
            return latent, slope, variance
        gain = log_ratio(new, slope_new, variance_new) - log_ratio(latent, slope, variance)
        if math.log(rng.random()) < gain:
            return new, float(slope_new), float(variance_new)
        return latent, slope, variance
