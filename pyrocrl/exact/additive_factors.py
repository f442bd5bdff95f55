"""Additive factor analysis: draws of curves, mask and noise, and of latents on a grid.

    mask ~ an Indian buffet of `latents` dishes, none eaten by one feature alone (`beta_bernoulli.BuffetColumns`)
    g_jk = sum_b c_jkb phi_b,  c_jkb ~ N(0, slab^2 SHARE_b) where mask_jk, else 0  (`curves`);  v_j ~ InverseGamma
    u_ik ~ U(0, 1),  x_ij ~ N(sum_k g_jk(u_ik), v_j)

A Gibbs sampler. Given u the model is linear in c: mask_jk is drawn with all curves of feature j summed out, features at
once, then c_j and v_j. Given the curves, u_ik is one-dimensional: it is drawn from its law on the grid, rows at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pyrocrl.exact.curves import BASIS, CELLS, ON_GRID, SHARE, on_grid

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]
SHAPE = 1.5  # of the variances' prior
LEAST_VARIANCE = 1e-4
TRIES = 100  # of a column whose mask has not one entry
STRENGTHS = np.linspace(-4.0, 4.0, 81)  # of the log concentration


class Draws(NamedTuple):
    """mask (draw, feature, latent); coefficients (draw, feature, latent, basis); variance (draw, feature);
    log_concentration (draw,)."""

    mask: Floats
    coefficients: Floats
    variance: Floats
    log_concentration: Floats


class Sampler:
    """The state of a chain: `cell` (latent, row) of u, `mask`, `coefficients`, `variance`, `log_concentration`.

    x: (row, feature), standardised. Columns of the mask that are shut when it begins stay shut,
    and those that are open stay open, unless `closing`.
    """

    def __init__(self, x: Floats, latents: int, slab: float, rate: float, rng: np.random.Generator) -> None:
        self.x, self.rate, self.rng = x, rate, rng
        self.precision = 1 / (slab**2 * SHARE)
        features = x.shape[1]
        self.cell = np.zeros((latents, len(x)), dtype=np.int64)
        self.mask = np.zeros((features, latents), dtype=bool)
        self.coefficients = np.zeros((features, latents, BASIS))
        self.variance, self.log_concentration = np.ones(features), 0.0

    @property
    def used(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.mask.any(0))

    def begin(self, cell: Cells, mask: NDArray[np.bool_], variance: Floats) -> None:
        """cell (latent, row), mask (feature, latent), of as many latents as are to be used."""
        self.cell[: len(cell)], self.variance = cell, variance.copy()
        self.mask[:] = False
        self.mask[:, : len(cell)] = mask
        self._curves(masks=False)

    def sweep(self, closing: bool = False) -> None:
        self._curves(masks=True, closing=closing)
        self._latents()
        self._strength()

    def run(self, burn: int, keep: int, closing: bool = False) -> Draws:
        kept: list[tuple[Floats, Floats, Floats, float]] = []
        for t in range(burn + keep):
            self.sweep(closing)
            if t >= burn:
                kept.append((self.mask * 1.0, self.coefficients.copy(), self.variance.copy(), self.log_concentration))
        return Draws(*(np.stack(part) for part in zip(*kept, strict=True)))

    def _curves(self, masks: bool, closing: bool = False) -> None:
        """Masks with curves summed out, curves and variances."""
        used, features = self.used, self.x.shape[1]
        if not len(used):
            self.variance = self._noise(np.square(self.x).sum(0))
            self.coefficients[:] = 0.0
            return
        design = ON_GRID[self.cell[used]].transpose(1, 0, 2).reshape(len(self.x), -1)  # (row, used * basis)
        gram, cross = design.T @ design, self.x.T @ design
        prior, unit = np.tile(self.precision, len(used)), np.eye(len(used)).repeat(BASIS, 1)
        open_ = self.mask[:, used]

        def evidence(open_: NDArray[np.bool_]) -> Floats:
            """(feature,) log p(x_j | u, mask_j), up to what all masks have."""
            root, solved, _ = self._solve(open_ @ unit, gram, cross, prior)
            volume = np.log(root.diagonal(axis1=1, axis2=2)).sum(1) - 0.5 * np.log(prior).sum()
            out: Floats = 0.5 * np.square(solved).sum(1) - volume
            return out

        if masks:
            now = evidence(open_)
            weight = math.exp(self.log_concentration) / self.mask.shape[1]
            for k in self.rng.permutation(len(used)):
                count = open_[:, k].sum()
                share = min(max(self.rng.beta(weight + count, 1 + features - count), 1e-12), 1 - 1e-12)
                other = open_.copy()
                other[:, k] = ~open_[:, k]
                then = evidence(other)
                gain = np.where(open_[:, k], now - then, then - now)
                chance = special.expit(gain + math.log(share) - math.log1p(-share))
                drawn = self.rng.random((TRIES, features)) < chance
                count = drawn.sum(1)
                fine = np.flatnonzero((count > 1) | ((count == 0) & closing))
                if len(fine):
                    now = np.where(drawn[fine[0]] == open_[:, k], now, then)
                    open_[:, k] = drawn[fine[0]]
            self.mask[:, used] = open_
        root, solved, there = self._solve(open_ @ unit, gram, cross, prior)
        noise = self.rng.standard_normal(solved.shape)
        drawn = np.linalg.solve(root.transpose(0, 2, 1), (solved + noise)[:, :, None])[:, :, 0] * there
        self.coefficients[:] = 0.0
        self.coefficients[:, used] = drawn.reshape(features, len(used), BASIS)
        left = self.x - design @ drawn.T
        self.variance = self._noise(np.square(left).sum(0))

    def _solve(self, there: Floats, gram: Floats, cross: Floats, prior: Floats) -> tuple[Floats, Floats, Floats]:
        """Cholesky factor L of the precision of c_j, L^-1 times its linear term, and which of c_j there are."""
        scale = 1 / self.variance[:, None]
        precision = (there * scale)[:, :, None] * gram * there[:, None]
        precision[:, np.arange(len(prior)), np.arange(len(prior))] += prior
        root: Floats = np.asarray(np.linalg.cholesky(precision), dtype=float)
        solved: Floats = np.asarray(np.linalg.solve(root, (there * cross * scale)[:, :, None])[:, :, 0], dtype=float)
        return root, solved, there

    def _noise(self, square: Floats) -> Floats:
        draw = self.rng.gamma(SHAPE + len(self.x) / 2, size=len(square))
        return np.maximum((self.rate + square / 2) / draw, LEAST_VARIANCE)

    def _latents(self) -> None:
        """u of each latent in turn, given the others'."""
        curve = on_grid(self.coefficients)  # (feature, latent, cell)
        fitted = sum(curve[:, k].T[self.cell[k]] for k in self.used)
        left = self.x - fitted
        for k in self.rng.permutation(self.used):
            own = np.flatnonzero(self.mask[:, k])
            g = curve[own, k]
            left[:, own] += g.T[self.cell[k]]
            scaled = g / self.variance[own, None]
            logits = left[:, own] @ scaled - 0.5 * (g * scaled).sum(0)
            weight = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
            uniform = self.rng.random((len(weight), 1)) * weight[:, -1:]
            self.cell[k] = (weight < uniform).sum(1).clip(0, CELLS - 1)
            left[:, own] -= g.T[self.cell[k]]

    def _strength(self) -> None:
        self.log_concentration = log_concentration(self.mask, self.rng)


def log_concentration(mask: NDArray[np.bool_], rng: np.random.Generator) -> float:
    """A draw of the log concentration given a mask (feature, latent), on a grid."""
    features, latents = mask.shape
    a, count = np.exp(STRENGTHS)[:, None] / latents, mask.sum(0)
    column = special.betaln(a + count, 1.0 + features - count)
    one = np.log(features) + special.betaln(a + 1, float(features))
    log_a = np.log(a)
    told = (column + log_a - np.log(-np.expm1(np.minimum(one + log_a, -1e-12)))).sum(1)
    logits = told - 0.5 * STRENGTHS**2
    weight = np.exp(logits - logits.max())
    return float(rng.choice(STRENGTHS, p=weight / weight.sum()))
