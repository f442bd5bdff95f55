"""Masks of independent Gaussian latents that have a pure child each, and what data say of a mask, all else summed out.

    L_jk of density l^2 / slab^2 N(l; 0, slab^2) where mask_jk, else 0;  v_j ~ InverseGamma(SHAPE, rate)
    z_i ~ N(0, I),  x_i ~ N(L z_i, diag v)

Rows enter by their second moments. Under normal laws of loadings these and log variances are summed out to second order
about their mode, with the expected information of `exact.factor_analysis`; then the evidence is times the mean of what
the products of l^2 / slab^2 are there (Johnson & Rossell 2012, Bayesian model selection in high-dimensional settings).
A column's sign is free, so that every latent doubles the evidence.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

from pyrocrl.exact.one_pure import most_latents

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SHAPE = 1.5  # of the variances' prior
DENSITY = (1.0, 3.0)  # of the Beta law of the density
STEPS = 60  # of scoring, most of which are not needed
CLOSE = 1e-4  # nats of gain at which the mode is reached
LEAST = 1e-9  # of a feature's variance
NEAR, MOST = 12.0, 1000  # nats within which masks are weighed against each other, and how many
FLAT = 10.0  # slab of a law that says little of loadings
FULL = 0.9  # share of a feature's variance that latents have at a start, at most


class Pure(NamedTuple):
    """Of a mask: pure (feature, latent), which features are children of that latent alone; children (latent,), how many
    there are; used (latent,)."""

    pure: Bools
    children: NDArray[np.int64]
    used: Bools

    @classmethod
    def of(cls, mask: Bools) -> Pure:
        count = mask.sum(0)
        return cls(mask & (mask.sum(1) == 1)[:, None], count, count > 0)

    @property
    def allowed(self) -> bool:
        """Whether every latent in use has a pure child and another child."""
        return bool((self.pure.any(0) & (self.children > 1))[self.used].all())


def columns_in_order(mask: Bools) -> NDArray[np.intp]:
    """An order of columns that is the same for masks that differ in labels of latents alone; unused ones last."""
    return np.lexsort(mask[::-1])[::-1]


def log_prior(mask: Bools, density: float | None = None) -> float:
    """Log probability of a mask (feature, latent), see `one_pure.OnePure`; None = its density summed out."""
    features, latents = mask.shape
    of = Pure.of(mask)
    most, used = most_latents(features, latents), int(of.used.sum())
    if used > most or not of.allowed:
        return -math.inf
    count = of.children[of.used] - 1
    others = features - used
    there, absent = float((count - 1).sum()), float((others - count).sum())
    total = -math.log(most + 1) - math.log(special.comb(latents, used))
    total += math.lgamma(others + 1) - math.lgamma(features + 1)
    total += float(np.log(of.pure.sum(0)[of.used]).sum() + np.log(count / max(others, 1)).sum())
    if density is None:
        a, b = DENSITY
        return total + float(special.betaln(a + there, b + absent) - special.betaln(a, b))
    return total + there * math.log(density) + absent * math.log1p(-density)


def prior_flips(mask: Bools) -> Floats:
    """(feature, latent) by how much `log_prior` gains where one entry is flipped, -inf where that is not allowed."""
    of, features = Pure.of(mask), len(mask)
    parents, pure, used = mask.sum(1), of.pure.sum(0), int(of.used.sum())
    count, others = np.maximum(of.children - 1, 0), features - used
    there = float((count[of.used] - 1).sum())
    a, b = DENSITY
    a, b = a + there, b + others * used - used - there  # of the density's law, given the mask

    def log(number: Floats) -> Floats:
        return np.log(np.maximum(number, 0.0))

    with np.errstate(divide="ignore", invalid="ignore"):
        lost = log(pure - 1.0) - log(pure)  # of one pure child less, for each latent
        won = log(pure + 1.0) - log(pure)
        add = np.where(parents[:, None] == 0, won, 0.0) + np.where(of.pure, lost, 0.0).sum(1, keepdims=True)
        alone = mask & (parents == 2)[:, None]  # of two latents: either may be left as the only one
        kept = np.where(alone, won, 0.0).sum(1, keepdims=True) - won  # the one that is not flipped gains a pure child
        drop = np.where(of.pure, lost, 0.0) + np.where(alone, kept, 0.0)
        # ratios of Beta functions, of one entry more and one less
        add = add + log(count + 1.0) - log(count) + math.log(a) - log(np.array(b - 1))
        drop = drop + log(count - 1.0) - log(count) + math.log(b) - log(np.array(a - 1))
    out = np.where(mask, drop, add)
    return np.where(of.used & np.isfinite(out), out, -math.inf)


class Answer(NamedTuple):
    """Of a mask: log posterior, up to a constant; loadings (feature, latent) and log_variance (feature,) at the mode;
    flips: (feature, latent) about how much the log posterior gains where an entry is flipped, -inf where that is not
    allowed."""

    value: float
    loadings: Floats
    log_variance: Floats
    flips: Floats


class MaskPosterior:
    """second: (feature, feature) mean of x x^T over `rows` rows, of features of about unit size."""

    def __init__(self, second: Floats, rows: int, slab: float, rate: float) -> None:
        self.second, self.rows, self.slab, self.rate = second + LEAST * np.eye(len(second)), rows, slab, rate
        self.known: dict[bytes, Answer] = {}

    def __call__(self, mask: Bools) -> Answer:
        """The answer of a mask (feature, latent), looked up where it has been asked for; the order of columns and those
        out of use do not matter, but for the labels of the answer."""
        order = columns_in_order(mask)
        key = mask[:, order].tobytes()
        if key not in self.known:
            self.known[key] = self._answer(mask[:, order])
        found, back = self.known[key], np.argsort(order)
        return found._replace(loadings=found.loadings[:, back], flips=found.flips[:, back])

    @staticmethod
    def key(mask: Bools) -> bytes:
        """The same for masks that differ in labels of latents alone."""
        return mask[:, columns_in_order(mask)].tobytes()

    def start(self, mask: Bools) -> tuple[Floats, Floats]:
        """Loadings and log variances to begin with, by covariances with pure children: s_pj = l_p l_j."""
        pure, variance = Pure.of(mask).pure, np.diag(self.second)
        loadings = np.zeros(mask.shape)
        for k in np.flatnonzero(mask.any(0)):
            strength = np.where(pure[:, k], (np.abs(self.second) / variance**0.5)[:, mask[:, k]].sum(1), -1.0)
            p = int(strength.argmax())
            own = math.sqrt(0.5 * variance[p])
            column = self.second[p] / own
            column[p] = own
            loadings[:, k] = np.where(mask[:, k], column, 0.0)
        share = (loadings**2).sum(1) / variance
        loadings *= np.minimum(1.0, np.sqrt(FULL / np.maximum(share, 1e-12)))[:, None]
        return loadings, np.log(variance * np.maximum(1 - (loadings**2).sum(1) / variance, 1 - FULL))

    def log_density(self, loadings: Floats, log_variance: Floats) -> float:
        """Log joint density of rows, open loadings and log variances, up to constants that no mask changes."""
        tril, info = linalg.lapack.dpotrf(loadings @ loadings.T + np.diag(np.exp(log_variance)), lower=1)
        if info:
            return -math.inf
        inverse = linalg.lapack.dpotri(tril, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        fit = -0.5 * (inverse * self.second).sum() - np.log(np.diag(tril)).sum()
        prior = -0.5 * (loadings**2).sum() / self.slab**2 - SHAPE * log_variance.sum()
        return float(self.rows * fit + prior - self.rate * np.exp(-log_variance).sum())

    def scoring(
        self, loadings: Floats, log_variance: Floats, j: NDArray[np.int64], k: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """Gradient (entry + feature,) of `log_density` in these entries and log variances, and expected information."""
        v = np.exp(log_variance)
        p = linalg.inv(loadings @ loadings.T + np.diag(v), check_finite=False)
        pl = p @ loadings
        down = 0.5 * self.rows * (p @ self.second @ p - p)
        value = loadings[j, k]
        grad = np.concatenate(
            [2 * (down @ loadings)[j, k] - value / self.slab**2, np.diag(down) * v - SHAPE + self.rate / v]
        )
        inner, cross = loadings.T @ pl, pl[j][:, k]
        slopes = p[j][:, j] * inner[k][:, k] + cross * cross.T
        across = p[j] * pl[:, k].T * v
        info = self.rows * np.block([[slopes, across], [across.T, 0.5 * p**2 * v * v[:, None]]])
        info[np.diag_indices(len(info))] += np.concatenate([np.full(len(j), self.slab**-2), self.rate / v])
        return grad, info

    def mode(self, mask: Bools) -> tuple[float, Floats, Floats]:
        """(log density, loadings, log variances) at the mode, by damped scoring."""
        j, k = mask.nonzero()
        loadings, log_variance = self.start(mask)
        value, damping = self.log_density(loadings, log_variance), 1e-3
        grad, info = self.scoring(loadings, log_variance, j, k)
        for _ in range(STEPS):
            step = linalg.solve(info + damping * np.diag(info.diagonal()), grad, assume_a="pos", check_finite=False)
            to, to_variance = loadings.copy(), log_variance + step[len(j) :]
            to[j, k] += step[: len(j)]
            new = self.log_density(to, to_variance)
            if not new > value:
                damping *= 10
                if damping > 1e4:
                    break
                continue
            gain, loadings, log_variance, value, damping = new - value, to, to_variance, new, damping / 10
            if gain < CLOSE:
                break
            grad, info = self.scoring(loadings, log_variance, j, k)
        return value, loadings, log_variance

    def covariance(self, mask: Bools) -> Floats:
        """Covariance of open loadings, by rows, and log variances about the mode."""
        answer = self(mask)
        out: Floats = linalg.inv(self.scoring(answer.loadings, answer.log_variance, *mask.nonzero())[1])
        return out

    def best(self) -> tuple[Floats, int]:
        """(feature, feature) covariance by the most probable mask of those asked for, and how many numbers it has been
        chosen by, the features' means among them. Of a latent with two children their product is one number."""
        key = max(self.known, key=lambda one: self.known[one].value)
        mask = np.frombuffer(key, dtype=bool).reshape(len(self.second), -1)
        flat = MaskPosterior(self.second, self.rows, FLAT, self.rate / FLAT)
        _, loadings, log_variance = flat.mode(mask)
        children = mask.sum(0)
        fitted = loadings @ loadings.T + np.diag(np.exp(log_variance))
        return fitted, int(children.sum() - (children == 2).sum() + 2 * len(fitted))

    def near(self, shape: tuple[int, int]) -> list[Bools]:
        """Masks of this shape that have been asked for, within `NEAR` nats of the best one, `MOST` of them at most."""
        best = max(one.value for one in self.known.values())
        keys = sorted(self.known, key=lambda one: -self.known[one].value)[:MOST]
        return [np.frombuffer(k, bool).reshape(shape) for k in keys if self.known[k].value > best - NEAR]

    def _answer(self, mask: Bools) -> Answer:
        used = np.flatnonzero(mask.any(0))
        value, loadings, log_variance = self.mode(mask)
        (j, k), (shut_j, own) = mask.nonzero(), (~mask[:, used]).nonzero()
        shut_k, opened = used[own], len(j)
        info = self.scoring(loadings, log_variance, j, k)[1]
        tril = linalg.cholesky(info, lower=True, check_finite=False)
        half = math.log(2 * math.pi * self.slab**2) / 2
        total = value - opened * half + 0.5 * len(info) * math.log(2 * math.pi) - np.log(np.diag(tril)).sum()
        flips = np.full(mask.shape, -math.inf)
        # an entry that is shut: its evidence at what the others leave of it
        v = np.exp(log_variance)
        p = linalg.inv(loadings @ loadings.T + np.diag(v), check_finite=False)
        pl, down = p @ loadings, 0.5 * self.rows * (p @ self.second @ p - p)
        inner = loadings.T @ pl
        slopes = p[j][:, shut_j] * inner[k][:, shut_k] + pl[j][:, shut_k] * pl[shut_j][:, k].T
        across = self.rows * np.concatenate([slopes, p[:, shut_j] * pl[:, shut_k] * v[:, None]])
        whole = self.rows * (np.diag(p)[shut_j] * np.diag(inner)[shut_k] + pl[shut_j, shut_k] ** 2) + self.slab**-2
        across = linalg.solve_triangular(tril, across, lower=True, check_finite=False)
        rest = np.maximum(whole - (across**2).sum(0), self.slab**-2)
        grad = 2 * (down @ loadings)[shut_j, shut_k]
        worth = np.log((grad**2 / rest + 1) / (rest * self.slab**2))  # of the square of a loading
        flips[shut_j, shut_k] = 0.5 * grad**2 / rest - 0.5 * np.log(rest * self.slab**2) + worth
        # one that is open: Savage & Dickey's ratio
        spread = (linalg.solve_triangular(tril, np.eye(len(info))[:, :opened], lower=True) ** 2).sum(0)
        worth = np.log((loadings[j, k] ** 2 + spread) / self.slab**2)
        flips[j, k] = half - 0.5 * np.log(2 * math.pi * spread) - 0.5 * loadings[j, k] ** 2 / spread - worth
        total += worth.sum()
        total += log_prior(mask) + len(used) * math.log(2)
        return Answer(float(total), loadings, log_variance, flips + prior_flips(mask))
