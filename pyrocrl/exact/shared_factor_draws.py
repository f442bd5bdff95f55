"""Draws of all parameters of factor analysis of several views (`shared_factors`), at a cost free of their rows.

A Gibbs sampler. Rows with the same views are turned, which changes no law: into a root of their scatter about the
means of environments, these means times the root of their numbers, and rows of zeros. So few rows need latents of their
own, and of the rows of zeros these enter through a Wishart matrix alone. Given latents, a feature's loadings and offset
are a regression, its variance is conjugate, and so are levels.

Loadings given latents and latents given loadings get on the slower the less noise there is. What leaves the features as
they are is therefore drawn as well (generalised Gibbs: Liu & Sabatti 2000): of a private latent p + a z + b, with the
view's loadings W - a B and offsets less b B; of a shared latent the same among shared ones; and the units of each.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

from pyrocrl.exact.shared_factors import SHAPE, Parameters, SharedFactors
from pyrocrl.exact.shrinkage import scale_step
from pyrocrl.exact.spike_slab import wishart_root

Floats = NDArray[np.float64]
BURNT = 0.25  # of the sweeps, from the mode


class _Rows:
    """Turned rows with the same views: y (row, own features), one (row, env) roots of the numbers of rows of means,
    shared (row, latent), as they are about their level, and private (row, private) by view; `left` rows of zeros."""

    def __init__(
        self, views: list[int], columns: NDArray[np.int64], within: Floats, mean: Floats, rows: Floats
    ) -> None:
        there = np.flatnonzero(rows > 0)
        self.views, self.columns, self.total = views, columns, int(rows.sum())
        most = self.total - len(there)
        if len(within) > most:  # the scatter has no more directions
            _, value, right = np.linalg.svd(within, full_matrices=False)
            within = value[:most, None] * right[:most]
        root = np.sqrt(rows[there])
        self.y = np.concatenate([within, root[:, None] * mean[there]])
        self.one = np.zeros((len(self.y), len(rows)))
        self.one[np.arange(len(there)) + len(within), there] = root
        self.left = self.total - len(self.y)
        self.shared = np.zeros((0, 0))
        self.private: dict[int, Floats] = {}


class FactorDraws:
    """A chain from the mode `p` on, whose rotation draws are brought to."""

    def __init__(self, law: SharedFactors, p: Parameters, rng: np.random.Generator) -> None:
        self.law, self.rng, self.view = law, rng, law.view.cpu().numpy()
        self.shared, self.own, self.offset, self.variance, self.level = (v.double().cpu().numpy().copy() for v in p)
        self.mode = p
        self.groups = [
            _Rows(
                g.present.nonzero()[:, 0].tolist(),
                g.columns.cpu().numpy(),
                *(v.double().cpu().numpy() for v in (g.within, g.mean, g.rows)),
            )
            for g in law.groups
        ]

    def run(self, sweeps: int, draws: int) -> Parameters:
        """(draw, ...) of every parameter, as far apart as `sweeps` have it."""
        kept, burnt = [], round(BURNT * sweeps)
        for one in range(sweeps):
            self.sweep()
            if one >= burnt:
                kept.append(self._turned())
        at = np.linspace(0, len(kept) - 1, draws).round().astype(int)
        return Parameters(*(torch.as_tensor(np.stack([kept[i][part] for i in at])) for part in range(5)))

    def sweep(self) -> None:
        for g in self.groups:
            self._latents(g)
        for v in range(self.law.views):
            self._features(v)
        if self.law.anchors:
            self._levels()
        for v in range(self.law.views):
            self._private_mixed(v)
        self._shared_mixed()

    def _latents(self, g: _Rows) -> None:
        """Latents of the rows given all else; those of the rows of zeros come last."""
        mine = (self.view[g.columns][:, None] == g.views)[:, :, None] * self.own[g.columns][:, None]
        loadings = np.concatenate([self.shared[g.columns], mine.reshape(len(g.columns), -1)], 1)
        white = loadings / self.variance[g.columns, None]
        covariance = linalg.inv(np.eye(loadings.shape[1]) + loadings.T @ white)
        tril = np.linalg.cholesky(covariance)
        moved = g.one @ (self.offset[g.columns] + self.level @ self.shared[g.columns].T)
        f = (g.y - moved) @ white @ covariance
        f = f + self.rng.standard_normal(f.shape) @ tril.T
        f = np.concatenate([f, (tril @ wishart_root(len(tril), g.left, self.rng)).T])
        latents, private = self.shared.shape[1], self.own.shape[1]
        g.shared = f[:, :latents]
        g.private = {v: f[:, latents + k * private : latents + (k + 1) * private] for k, v in enumerate(g.views)}

    def _one(self, g: _Rows) -> Floats:
        """(row, env) roots of the numbers of rows, 0 in rows of zeros."""
        return np.concatenate([g.one, np.zeros((len(g.shared) - len(g.one), g.one.shape[1]))])

    def _design(self, g: _Rows, v: int) -> Floats:
        """(row, 1 + latent + private) what a feature of the view is regressed on."""
        one = self._one(g)
        return np.column_stack([one.sum(1), g.shared + one @ self.level, g.private[v]])

    def _features(self, v: int) -> None:
        """Loadings, offsets and variances of a view given latents: all features share one eigendecomposition."""
        columns = np.flatnonzero(self.view == v)
        prior = self._prior()
        gram, cross = np.zeros((len(prior), len(prior))), np.zeros((len(columns), len(prior)))
        square, rows = np.zeros(len(columns)), 0
        for g in self.groups:
            if v in g.views:
                design, y = self._design(g, v), g.y[:, self.view[g.columns] == v]
                gram += design.T @ design
                cross += y.T @ design[: len(y)]
                square, rows = square + (y**2).sum(0), rows + g.total
        unit = prior**-0.5
        value, vector = np.linalg.eigh(unit[:, None] * gram * unit)
        to = unit[:, None] * vector
        precision = np.maximum(value, 0.0) / self.variance[columns, None] + 1
        mean = cross @ to / self.variance[columns, None] / precision
        told = (mean + self.rng.standard_normal(mean.shape) / np.sqrt(precision)) @ to.T
        rest = np.maximum(square + ((told @ gram - 2 * cross) * told).sum(1), 0.0)
        total = self.law.rate + 0.5 * rest
        self.variance[columns] = total / self.rng.standard_gamma(SHAPE + rows / 2, len(columns))
        self._put(columns, told)

    def _prior(self) -> Floats:
        """Precisions of an offset and a feature's loadings."""
        many = self.shared.shape[1] + self.own.shape[1]
        return np.append(1.0, np.full(many, self.law.slab**-2))

    def _put(self, columns: NDArray[np.int64], told: Floats) -> None:
        latents = self.shared.shape[1]
        self.offset[columns], self.shared[columns] = told[:, 0], told[:, 1 : 1 + latents]
        self.own[columns] = told[:, 1 + latents :]

    def _levels(self) -> None:
        """Levels of all environments but the first, given latents as they are."""
        total, count = np.zeros_like(self.level), np.zeros(len(self.level))
        for g in self.groups:
            z = g.shared[: len(g.one)] + g.one @ self.level
            total, count = total + g.one.T @ z, count + (g.one**2).sum(0)
        new = total / (count + 1)[:, None] + self.rng.standard_normal(total.shape) / np.sqrt(count + 1)[:, None]
        new[0] = 0.0
        for g in self.groups:
            g.shared[: len(g.one)] += g.one @ (self.level - new)
        self.level = new

    def _private_mixed(self, v: int) -> None:
        columns, having = np.flatnonzero(self.view == v), [g for g in self.groups if v in g.views]
        designs = [self._design(g, v) for g in having]
        private = self.own.shape[1]
        loadings = np.column_stack([self.offset[columns], self.shared[columns], self.own[columns]])
        last = range(loadings.shape[1] - private, loadings.shape[1])
        gram, rows = sum(d.T @ d for d in designs), sum(g.total for g in having)
        to, loadings = self._mixed(np.asarray(gram), rows, loadings, self._prior(), last)
        self._put(columns, loadings)
        for g, design in zip(having, designs, strict=True):
            g.private[v] = design @ to[:, -private:]

    def _shared_mixed(self) -> None:
        latents = self.shared.shape[1]
        designs = [np.column_stack([self._one(g).sum(1), g.shared]) for g in self.groups]
        levels = np.column_stack([np.zeros(len(self.level)), self.level])
        gram, rows = levels.T @ levels + sum(d.T @ d for d in designs), self.law.rows + len(self.level) - 1
        loadings = np.column_stack([self.offset, self.shared])
        to, loadings = self._mixed(gram, rows, loadings, self._prior()[: 1 + latents], range(1, 1 + latents))
        self.offset, self.shared = loadings[:, 0].copy(), loadings[:, 1:].copy()
        self.level = (levels @ to)[:, 1:]
        for g, design in zip(self.groups, designs, strict=True):
            g.shared = (design @ to)[:, 1:]

    def _mixed(self, gram: Floats, rows: int, loadings: Floats, prior: Floats, which: range) -> tuple[Floats, Floats]:
        """T and loadings T^-T for a T by which columns `which` of a design with this Gram matrix take in others.

        Columns of `which` are standard normal a priori in so many rows, columns of loadings of precision `prior`.
        """
        to, loadings, size = np.eye(len(prior)), loadings.copy(), len(prior)
        for h in self.rng.permutation(which):
            rest, own = np.delete(np.arange(size), h), loadings[:, h].copy()
            cost = float(own @ own)
            tril = np.linalg.cholesky(gram[np.ix_(rest, rest)] + np.diag(prior[rest] * cost + 1e-9))
            seen = linalg.solve_triangular(tril, prior[rest] * (own @ loadings[:, rest]) - gram[rest, h], lower=True)
            a = linalg.solve_triangular(tril.T, seen + self.rng.standard_normal(size - 1))
            loadings[:, rest] -= np.outer(own, a)
            step = np.eye(size)
            step[rest, h] = a
            square = float(step[:, h] @ gram @ step[:, h])
            factor = scale_step((rows - len(loadings)) / 2, square, float(prior[h]) * cost, self.rng)
            step[:, h] *= factor
            loadings[:, h] /= factor
            gram, to = step.T @ gram @ step, to @ step
        return to, loadings

    def _turned(self) -> tuple[Floats, ...]:
        """Parameters as they are, latents turned to be most like those of the mode."""
        weight = 1 / self.variance[:, None]
        out = [self.shared, self.own.copy(), self.offset.copy(), self.variance.copy(), self.level]
        turn = _rotation(self.shared, self.mode.shared.double().cpu().numpy() * weight)
        out[0], out[4] = self.shared @ turn, self.level @ turn
        goal = self.mode.own.double().cpu().numpy() * weight
        for v in range(self.law.views):
            mine = self.view == v
            out[1][mine] = self.own[mine] @ _rotation(self.own[mine], goal[mine])
        return tuple(out)


def _rotation(loadings: Floats, goal: Floats) -> Floats:
    left, _, right = np.linalg.svd(loadings.T @ goal)
    return np.asarray(left @ right)
