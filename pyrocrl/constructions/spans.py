"""The space that a few factors of many features span, and what rows leave open of it and of noise.

x = center + loadings y + noise of diag(variance), y whatever it is: its law is looked at by others, and here taken for
normal, as by which rows that are off the space tell it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrocrl.exact.factor_analysis import FactorAnalysis
from pyrocrl.exact.rotations import likely_factors

Floats = NDArray[np.float64]

LEAST_NOISE = 1e-5  # of a standardised feature
STRAY = 1e-6  # probability beyond which a row is off the span by more than noise
MOST = 600  # loadings and variances of which there is a joint law
ROUNDS = 3  # of the rate of noise and the mode given it


class Span(NamedTuple):
    """x = center + loadings y + noise of `variance`, y of unit covariance.

    center, variance: (feature,); loadings: (feature, latent); read: (latent, feature), the best y of a row;
    noise: (latent, latent), the covariance of that; kept: (row,) whether a row is off the span by no more than noise.
    """

    center: Floats
    loadings: Floats
    variance: Floats
    read: Floats
    noise: Floats
    kept: NDArray[np.bool_]

    def rows(self, x: Floats) -> Floats:
        """(rows, latent) y."""
        return (x - self.center) @ self.read.T

    def of_noise(self, loadings: Floats, variance: Floats) -> Span:
        """The same, y read by these loadings and this noise, and again of unit covariance."""
        scaled = loadings / variance[:, None]
        noise: Floats = np.linalg.inv(loadings.T @ scaled).astype(np.float64)
        return self._replace(loadings=loadings, variance=variance, read=noise @ scaled.T, noise=noise)


class SpanLaw(NamedTuple):
    """What rows leave open: at numbers e ~ N(0, I), loadings and log variances are those of `space` and root e more,
    but for what moves y itself. root (parameter, parameter): loadings by rows, then log variances; None: too many.
    x (rows, feature), centred; shape, log_rate of the noise's law, and the deviation of the latter."""

    space: Span
    root: Floats | None
    x: Floats
    shape: float
    log_rate: float
    log_rate_sd: float

    def at(self, e: Floats) -> tuple[Floats, Floats]:
        """Loadings (walk, feature, latent) and variance (walk, feature) at e (walk, parameter)."""
        features, latents = self.space.loadings.shape
        if self.root is None:  # each feature's by itself, as a regression on y has them
            y, freedom = self.x @ self.space.read.T, 0.5 * len(self.x) * (1 - latents / features)
            root = np.linalg.cholesky(np.linalg.inv(y.T @ y))
            variance = self.space.variance * np.exp(e[:, -features:] / math.sqrt(max(freedom, 1.0)))
            off = e[:, :-features].reshape(-1, features, latents) @ root.T * np.sqrt(self.space.variance)[:, None]
        else:
            moved = e @ self.root.T
            variance = self.space.variance * np.exp(moved[:, -features:])
            off = moved[:, :-features].reshape(-1, features, latents)
        return self.space.loadings + off - self.space.loadings @ (self.space.read @ off), variance

    def read(self, loadings: Floats, variance: Floats) -> tuple[Floats, Floats, Floats]:
        """y (walk, rows, latent), its noise (walk, latent, latent), and (walk,) by how much what is beside y is
        likelier, with the variances' prior, than it has to be (a constant is left out)."""
        scaled = loadings / variance[..., None]
        noise: Floats = np.linalg.inv(loadings.swapaxes(-1, -2) @ scaled).astype(np.float64)
        y = self.x @ (scaled @ noise)
        off = (self.x**2 @ (1 / variance)[..., None])[..., 0] - ((self.x @ scaled) * y).sum(-1)  # (walk, rows)
        log = np.log(variance)
        volume = log.sum(-1) - np.linalg.slogdet(noise)[1]
        prior = -(self.shape * log + math.exp(self.log_rate) / variance).sum(-1)
        return y, noise, -0.5 * (off.sum(-1) + len(self.x) * volume) + prior


def span(x: Floats, latents: int, rounds: int = 4) -> Span:
    """Factors of maximum likelihood of the rows (row, feature) that are off the span by no more than noise.

    How large that is, is told by the median row; each round leaves out those that the last one finds to be off.
    """
    kept, freedom = np.ones(len(x), dtype=bool), x.shape[1] - latents
    for _ in range(rounds):
        center, unit = x[kept].mean(0), np.maximum(x[kept].std(0), 1e-9)
        white = (x - center) / unit
        second = white[kept].T @ white[kept] / kept.sum()
        loadings, variance = likely_factors(second, latents, least=LEAST_NOISE)
        scaled = loadings / variance[:, None]
        inverse = np.linalg.inv(loadings.T @ scaled)
        y = white @ scaled @ inverse
        off = ((white - y @ loadings.T) ** 2 / variance).sum(1)
        size = np.median(off) / stats.chi2.median(freedom)
        last, kept = kept, off <= size * stats.chi2.isf(STRAY, freedom)
        if (last == kept).all():
            break
    value, vector = np.linalg.eigh(np.cov(y[kept].T).reshape(latents, latents))
    to, back = vector / np.sqrt(value) @ vector.T, vector * np.sqrt(value) @ vector.T
    read = to @ (scaled @ inverse).T / unit
    return Span(center, unit[:, None] * loadings @ back, variance * unit**2, read, to @ inverse @ to, kept)


def settled(space: Span, x: Floats, shape: float, rate: float) -> SpanLaw:
    """The space at the posterior's mode, variances being InverseGamma(shape, r) and log r ~ N(log rate, 1) a priori,
    and what is open about it."""
    x = x[space.kept] - space.center
    rows, (features, latents) = len(x), space.loadings.shape
    root, log_rate = None, _rate(np.log(space.variance), shape, rate)
    if features * (latents + 1) <= MOST:
        second, gate = torch.as_tensor(x.T @ x / rows), torch.ones(features, latents, dtype=torch.bool)
        inner = torch.as_tensor(np.eye(latents) - space.noise)
        theta = torch.as_tensor(np.append(space.loadings.ravel(), np.log(space.variance)))
        like, slab = torch.ones(features, dtype=torch.float64), torch.ones(features, latents, dtype=torch.float64)
        for _ in range(ROUNDS):
            log_rate = _rate(theta[-features:].numpy(), shape, rate)
            law = FactorAnalysis(
                second, rows, gate, inner, slab=slab, shape=shape * like, rate=math.exp(log_rate) * like
            )
            theta, covariance = law.moments(theta, mode=True)
        found = theta[:-features].numpy().reshape(features, latents)
        back = np.linalg.inv(space.read @ found)  # to the y that was read
        space = space.of_noise(found @ back, theta[-features:].exp().numpy())
        root = np.linalg.cholesky(covariance.numpy() + 1e-12 * np.eye(len(theta)))
        own = root[:-features].reshape(features, latents, -1)
        root[:-features] = np.einsum("fkp,kl->flp", own, back).reshape(features * latents, -1)
    return SpanLaw(space, root, x, shape, log_rate, (1 + shape * features) ** -0.5)


def _rate(log_variance: Floats, shape: float, rate: float, steps: int = 30) -> float:
    """The most probable log rate given the variances, by Newton's method."""
    each, total = shape * len(log_variance), float(np.exp(-log_variance).sum())
    log_rate = math.log(each / total)
    for _ in range(steps):
        slope = each - math.exp(log_rate) * total - (log_rate - math.log(rate))
        log_rate += slope / (math.exp(log_rate) * total + 1)
    return log_rate
