"""Factor analysis with surfaces: latents given features, and draws of masks, surfaces, noise and latents.

    mask ~ an Indian buffet of `latents` dishes, none eaten by one feature alone (`beta_bernoulli.BuffetColumns`)
    f_j is smooth in the latents of its mask (`surfaces`), its coefficients N(0, slab^2 shares);  v_j ~ InverseGamma
    z_ik ~ N(0, 1),  x_ij ~ N(f_j(z_i), v_j)

Given z the model is linear in coefficients: masks are drawn with these summed out, an entry at a time, then these and
variances. Surfaces are not exact, and with little noise an entry of any size would open to make up for that: masks are
drawn as if noise were larger by `SLACK` (as Miller & Dunson 2019 coarsen a posterior). Given coefficients, a row's
latents are normal about their mode, whose curvature is that of squared errors (Gauss & Newton; steps are damped as by
Levenberg & Marquardt): with little noise features fix them.

After each draw latents are mapped to normal quantiles, each by itself (`Sampler.settle`): the likelihood does not tell
such maps from others (parameter expansion: Liu & Wu 1999), and coefficients are drawn anew right after. Without it,
rows pull latents towards the normal law as slowly as noise is small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, special, stats
from torch import Tensor

from pyrocrl.exact.additive_factors import SHAPE, log_concentration
from pyrocrl.exact.surfaces import design, gates, jacobian, shares, terms

Floats = NDArray[np.float64]
LEAST_VARIANCE = 1e-4
CALM, WILD = 1e-4, 1e6  # of the damping
TRIES = 2  # steps towards the mode in a sweep
SLACK = 0.02  # of features' variance, by which surfaces may be off: masks are drawn as if noise were larger by that


class Told(NamedTuple):
    """mode (row, latent), precision (row, latent, latent), misfit (row,): -2 log p(x, z) at the mode but for constants,
    damping (row,)."""

    mode: Tensor
    precision: Tensor
    misfit: Tensor
    damping: Tensor


def latents_given(
    x: Tensor, coefficients: Tensor, variance: Tensor, start: Tensor, steps: int, damping: Tensor | None = None
) -> Told:
    """Latents' law given features (row, feature), coefficients (feature, term) and variance (feature,)."""
    weight, unit = 1 / variance, torch.eye(start.shape[1], dtype=x.dtype, device=x.device)
    damping = torch.ones_like(x[:, 0]) if damping is None else damping

    def missed(z: Tensor) -> tuple[Tensor, Tensor]:
        left = x - design(z) @ coefficients.mT
        return left, (left.square() * weight).sum(1) + z.square().sum(1)

    def curved(z: Tensor) -> tuple[Tensor, Tensor]:
        slope = jacobian(z, coefficients)
        scaled = slope * weight[:, None]
        return scaled, scaled.mT @ slope + unit

    z = start
    left, misfit = missed(z)
    for _ in range(steps):
        scaled, precision = curved(z)
        damped = precision + damping[:, None, None] * torch.diag_embed(precision.diagonal(dim1=1, dim2=2))
        uphill = (scaled.mT @ left[:, :, None])[:, :, 0] - z
        to = z + torch.linalg.solve(damped, uphill[:, :, None])[:, :, 0]
        then, misfit_then = missed(to)
        better = misfit_then < misfit
        z, left = torch.where(better[:, None], to, z), torch.where(better[:, None], then, left)
        misfit = torch.where(better, misfit_then, misfit)
        damping = torch.where(better, damping / 5, damping * 5).clamp(CALM, WILD)
    return Told(z, curved(z)[1], misfit, damping)


class Draws(NamedTuple):
    """mask (draw, feature, latent); coefficients (draw, feature, term); variance (draw, feature);
    log_concentration (draw,)."""

    mask: Floats
    coefficients: Floats
    variance: Floats
    log_concentration: Floats


class Sampler:
    """The state of a chain: `z` (row, latent), `mask` (feature, latent), `coefficients`, `variance`.

    x: (row, feature), standardised; z, mask: where it begins. Columns of the mask that are shut stay shut.
    """

    def __init__(
        self, x: Floats, z: Floats, mask: NDArray[np.bool_], slab: float, rate: float, rng: np.random.Generator
    ) -> None:
        self.x, self.rate, self.rng = torch.as_tensor(x), rate, rng
        self.features, self.latents = mask.shape
        self.prior = 1 / (slab**2 * shares(self.latents))
        self.mask, self.log_concentration = mask.copy(), 0.0
        self.coefficients: Floats = np.zeros((self.features, terms(self.latents)))
        self.variance: Floats = np.full(self.features, 0.3)
        self.z = self.mode = torch.as_tensor(z)
        self.damping = torch.ones(len(x), dtype=torch.float64)
        self.told: Told | None = None
        self.settle()
        self._surfaces(masks=False)

    def sweep(self, masks: bool = True) -> None:
        self._latents()
        self.settle()
        self._surfaces(masks)

    def run(self, burn: int, keep: int) -> Draws:
        kept: list[tuple[Floats, Floats, Floats, float]] = []
        for t in range(burn + keep):
            self.sweep()
            self.log_concentration = log_concentration(self.mask, self.rng)
            if t >= burn:
                kept.append(
                    (
                        np.asarray(self.mask, dtype=float),
                        self.coefficients.copy(),
                        self.variance.copy(),
                        self.log_concentration,
                    )
                )
        return Draws(*(np.stack(part) for part in zip(*kept, strict=True)))

    def go(self, closed: int, open_: int) -> Sampler:
        """Itself after so many sweeps with the mask as it is, and so many more."""
        for t in range(closed + open_):
            self.sweep(masks=t >= closed)
        return self

    def without(self, latent: int, feature: int) -> Sampler:
        """Another one, whose latent of this number is what this feature's other latents leave of it."""
        row = self.mask[feature].copy()
        row[latent] = False
        own = np.flatnonzero(_gates(row[None])[0])
        columns = design(self.mode)[:, own].numpy()
        x = self.x[:, feature].numpy()
        inner = columns.T @ columns + np.diag(self.prior[own])
        z = self.mode.numpy().copy()
        z[:, latent] = x - columns @ np.linalg.solve(inner, columns.T @ x)
        slab = float(1 / np.sqrt(self.prior[0] * shares(self.latents)[0]))
        return Sampler(self.x.numpy(), z, self.mask, slab, self.rate, self.rng)

    def settle(self) -> None:
        """Map each latent to normal quantiles of its ranks, and its mode along."""
        z, mode = self.z.numpy().copy(), self.mode.numpy().copy()
        quantile = stats.norm.ppf((np.arange(len(z)) + 0.5) / len(z))
        for k in np.flatnonzero(self.mask.any(0)):
            order = z[:, k].argsort()
            ends = z[order[[0, -1]], k]
            beyond = mode[:, k] - mode[:, k].clip(*ends)
            mode[:, k] = np.interp(mode[:, k], z[order, k], quantile) + beyond
            z[order, k] = quantile
        self.z, self.mode = torch.as_tensor(z), torch.as_tensor(mode)

    def _latents(self) -> None:
        coefficients, variance = torch.as_tensor(self.coefficients), torch.as_tensor(self.variance)
        told = latents_given(self.x, coefficients, variance, self.mode, TRIES, self.damping)
        noise = torch.as_tensor(self.rng.standard_normal(self.z.shape))
        root = torch.linalg.cholesky(told.precision)
        apart = torch.linalg.solve_triangular(root.mT, noise[:, :, None], upper=True)[:, :, 0]
        self.mode, self.damping, self.z, self.told = told.mode, told.damping, told.mode + apart, told

    def _surfaces(self, masks: bool) -> None:
        """Masks with coefficients summed out, coefficients and variances."""
        terms_ = design(self.z)
        gram, cross = (terms_.mT @ terms_).numpy(), (self.x.mT @ terms_).numpy()
        if masks:
            self._masks(gram, cross)
        gate = _gates(self.mask)
        self.coefficients[:] = 0.0
        for j in range(self.features):
            own = np.flatnonzero(gate[j])
            root, solved = self._solved(own, j, gram, cross, float(self.variance[j]))
            noise = self.rng.standard_normal(len(own))
            self.coefficients[j, own] = linalg.solve_triangular(root, solved + noise, lower=True, trans=1)
        left = self.x.numpy() - terms_.numpy() @ self.coefficients.T
        draw = self.rng.gamma(SHAPE + len(left) / 2, size=self.features)
        self.variance = np.maximum((self.rate + np.square(left).sum(0) / 2) / draw, LEAST_VARIANCE)

    def _solved(
        self, own: NDArray[np.int64], j: int, gram: Floats, cross: Floats, variance: float
    ) -> tuple[Floats, Floats]:
        """Cholesky factor L of the precision of these coefficients of feature j, and L^-1 times its linear term."""
        precision = gram[np.ix_(own, own)] / variance
        precision[np.arange(len(own)), np.arange(len(own))] += self.prior[own]
        root: Floats = np.asarray(np.linalg.cholesky(precision), dtype=float)
        solved: Floats = linalg.solve_triangular(root, cross[j, own] / variance, lower=True)
        return root, solved

    def _masks(self, gram: Floats, cross: Floats) -> None:
        weight = math.exp(self.log_concentration) / self.latents

        def evidence(j: int, row: NDArray[np.bool_]) -> float:
            """log p(x_j | z, mask_j), up to what all masks have."""
            own = np.flatnonzero(_gates(row[None])[0])
            root, solved = self._solved(own, j, gram, cross, float(self.variance[j]) + SLACK)
            return float(0.5 * solved @ solved - np.log(root.diagonal()).sum() + 0.5 * np.log(self.prior[own]).sum())

        used = np.flatnonzero(self.mask.any(0))
        now = [evidence(j, row) for j, row in enumerate(self.mask)]
        for k in self.rng.permutation(used):
            count = self.mask[:, k].sum()
            share = min(max(self.rng.beta(weight + count, 1 + self.features - count), 1e-12), 1 - 1e-12)
            for j in self.rng.permutation(self.features):
                row = self.mask[j].copy()
                row[k] = ~row[k]
                if not row[k] and self.mask[:, k].sum() <= 2:
                    continue  # no latent of one feature
                then = evidence(j, row)
                gain = (then - now[j]) + (1 if row[k] else -1) * (math.log(share) - math.log1p(-share))
                if self.rng.random() < special.expit(gain):
                    self.mask[j], now[j] = row, then

    def score(self) -> float:
        """The log-likelihood of rows, latents summed out to second order about their modes, less what coefficients
        cost."""
        assert self.told is not None
        used, coefficients = self.mask.any(0), torch.as_tensor(self.coefficients)
        told = latents_given(self.x, coefficients, torch.as_tensor(self.variance), self.mode, 3, self.damping)
        volume = told.precision[:, used][:, :, used].logdet()
        rows = -0.5 * (told.misfit + volume + math.log(2 * math.pi) * self.features + np.log(self.variance).sum())
        gate = _gates(self.mask)
        cost = np.log1p(len(self.x) / self.prior / self.variance[:, None]) + np.square(self.coefficients) * self.prior
        return float(rows.sum()) - 0.5 * float((cost * gate).sum())


def _gates(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    out: NDArray[np.bool_] = gates(torch.as_tensor(mask * 1.0)).numpy() > 0
    return out
