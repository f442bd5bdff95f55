"""The mode of a spike-and-slab lasso's factor model, by expectation-maximisation along a ladder of spikes.

Rockova & George (2016): the spike's rate rises from nearly the slab's to its own, each rung starts where the last one
ended, and a step of parameter-expanded EM at one rung is

    E   z given x: mean of z z^T, with the posterior covariance of z in it, and of x z^T, from second moments of x;
        probability that a loading is from the slab
    M   loadings by the lasso whose rate mixes the rates of slab and spike by that probability (soft thresholds, one
        latent after the other); variances; shares, in their order; the mean of z z^T is the expanded covariance,
        of which R keeps the correlations and loadings take the scales

In place of the paper's rotation, which needs R = I, loadings are turned along what leaves the likelihood as it is: for
latents k and l, L_l + c L_k and z_k - c z_l, in units of variance 1, for the c that lowers the penalty most among those
that make one loading 0. At the first rungs all loadings are from one law, and which of them are 0 means nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pyrocrl.exact.rotations import likely_factors, through_zeros
from pyrocrl.exact.spike_slab import SHAPE

Floats = NDArray[np.float64]
RUNGS = 6
FIRST = 2.5  # rate of the first rung's spike, in the slab's
STEPS, ROUNDS = 20, 3  # of EM between turns, and of these at a rung
ENDED = 1e-4  # by which loadings move
CANDIDATES = 40  # features of a latent that a turn may free of it
SMALL = 0.05  # loading, of the largest of its latent, below which it gives no turn
STEEP, NARROW = 5.0, 0.2  # largest c of a turn, and least deviation of what it leaves of z_k
LEAST_SHARE = 1e-4


class Mode(NamedTuple):
    """loadings, mask (feature, latent), of latents of two features or more, the others 0; variance (feature,);
    correlation (latent, latent); objective: log posterior of all but z, without constants."""

    loadings: Floats
    mask: NDArray[np.bool_]
    variance: Floats
    correlation: Floats
    objective: float


class Ladder:
    """second: (feature, feature) mean of x x^T over `rows` rows. latents: how many are offered; slab, spike: scales of
    the Laplace laws; rate: of the variances' prior."""

    def __init__(
        self, second: Floats, rows: int, latents: int, slab: float, spike: float, rate: float, rng: np.random.Generator
    ) -> None:
        self.second, self.rows, self.latents = second, rows, latents
        self.least, self.most, self.rate, self.rng = 1 / slab, 1 / spike, rate, rng
        self.loadings, self.variance = np.zeros((len(second), latents)), np.ones(len(second))
        self.correlation, self.share = np.eye(latents), np.full(latents, 0.5)

    def climb(self, start: Floats) -> Mode:
        """From factors of these second moments, in a rotation at random."""
        self.start(start)
        for spike in np.geomspace(FIRST * self.least, self.most, RUNGS):
            for _ in range(ROUNDS):
                self.settle(spike)
                if not self.turn(spike):
                    break
        found = self.mode()
        self.through_zeros()
        return max(found, self.mode(), key=lambda mode: mode.objective)

    def mode(self) -> Mode:
        """What the last rung ends in."""
        self.leave_out()
        for _ in range(ROUNDS):
            self.settle(self.most)
            if not self.turn(self.most):
                break
        mask = self.leave_out()
        return Mode(self.loadings, mask, self.variance, self.correlation, self.objective())

    def through_zeros(self) -> None:
        """Turn all latents at once, to hyperplanes that hold many features, see `rotations.through_zeros`."""
        mask = self.from_slab(self.most) > 0.5
        used = np.flatnonzero(mask.any(0))
        place, noise = np.ix_(used, used), np.sqrt(self.variance / self.rows)
        own = np.where(mask, self.loadings, 0.0)[:, used]
        loadings, correlation = through_zeros(own, self.correlation[place], noise, self.rng)
        self.loadings, self.correlation = np.zeros_like(self.loadings), np.eye(self.latents)
        self.loadings[:, used], self.correlation[place] = loadings, correlation

    def start(self, second: Floats) -> None:
        features = len(second)
        factors = max(1, min(self.latents, (features - 1) // 2, self.rows - 1))
        unit = np.sqrt(np.maximum(np.diag(second), 1e-12))
        correlations = second / unit / unit[:, None]
        np.fill_diagonal(correlations, 1.0)
        found, noise = likely_factors(correlations, factors)
        turn = np.linalg.qr(self.rng.standard_normal((factors, factors)))[0]
        own = np.diag(self.second)
        self.loadings = np.zeros((features, self.latents))
        self.loadings[:, :factors] = np.sqrt(own)[:, None] * (found @ turn)
        self.variance, self.correlation = np.maximum(noise * own, 1e-12), np.eye(self.latents)
        self.share = np.full(self.latents, 0.5)

    def settle(self, spike: float) -> None:
        for _ in range(STEPS):
            if self.step(spike) < ENDED:
                return

    def step(self, spike: float) -> float:
        """One step of EM at this rate of the spike; by how much loadings moved."""
        before, latents = self.loadings, self.latents
        scaled = before / self.variance[:, None]
        spread = np.linalg.inv(before.T @ scaled + np.linalg.inv(self.correlation))
        scores = scaled @ spread
        cross = self.second @ scores  # (feature, latent), mean of x z^T
        inner = scores.T @ cross + spread  # (latent, latent), mean of z z^T
        slab = self.from_slab(spike)
        threshold = self.variance[:, None] * (slab * self.least + (1 - slab) * spike) / self.rows
        new = before.copy()
        for k in range(latents):
            seen = cross[:, k] - new @ inner[:, k] + new[:, k] * inner[k, k]
            new[:, k] = np.sign(seen) * np.maximum(np.abs(seen) - threshold[:, k], 0.0) / inner[k, k]
        rest = np.diag(self.second) - 2 * (new * cross).sum(1) + ((new @ inner) * new).sum(1)
        total = self.rows * np.maximum(rest, 1e-9) + 2 * self.rate
        self.variance = total / (self.rows + 2 * SHAPE + 2)
        unit = np.sqrt(np.diag(inner))
        count = slab.sum(0)
        order = np.argsort(-count, kind="stable")
        self.share = np.clip(count[order] / len(new), LEAST_SHARE, 1 - LEAST_SHARE)
        self.correlation = (inner / unit / unit[:, None])[np.ix_(order, order)]
        self.loadings = (new * unit)[:, order]
        return float(np.abs(self.loadings - before).max())

    def from_slab(self, spike: float) -> Floats:
        """(feature, latent) probability that a loading is from the slab."""
        odds = special.logit(self.share) + math.log(self.least / spike)
        return np.asarray(special.expit(odds + (spike - self.least) * np.abs(self.loadings)))

    def penalty(self, loadings: Floats, share: float | Floats, spike: float) -> Floats:
        """-log of the density of loadings (feature, ...), summed over features."""
        size = np.abs(loadings)
        slab = np.log(share * self.least) - self.least * size
        return np.asarray(-np.logaddexp(slab, np.log((1 - share) * spike) - spike * size).sum(0))

    def turn(self, spike: float) -> int:
        """One turn of each pair of latents where one lowers the penalty; how many did."""
        turned, used = 0, np.flatnonzero((self.loadings != 0).any(0))
        now = {k: float(self.penalty(self.loadings[:, k], self.share[k], spike)) for k in used}
        for k in self.rng.permutation(used):
            for other in self.rng.permutation(used[used != k]):
                c = self.candidates(k, other)
                unit = np.sqrt(np.maximum(1 - 2 * c * self.correlation[k, other] + c**2, 0.0))
                c, unit = c[unit > NARROW], unit[unit > NARROW]
                if not len(c):
                    continue
                one, two = self.loadings[:, k, None] * unit, self.loadings[:, other, None] + c * self.loadings[:, [k]]
                first, second = self.penalty(one, self.share[k], spike), self.penalty(two, self.share[other], spike)
                best = int((first + second).argmin())
                if first[best] + second[best] > now[k] + now[other] - 1e-6:
                    continue
                now[k], now[other], turned = float(first[best]), float(second[best]), turned + 1
                self.loadings[:, k], self.loadings[:, other] = one[:, best], two[:, best]
                move = np.eye(self.latents)
                move[k, other] = -c[best]
                move[k] /= unit[best]
                self.correlation = move @ self.correlation @ move.T
        return turned

    def candidates(self, k: int, other: int) -> Floats:
        """(candidate,) what frees some feature of latent `other`."""
        own = np.abs(self.loadings[:, k])
        at = np.flatnonzero(own > SMALL * own.max())
        if len(at) > CANDIDATES:
            at = self.rng.choice(at, CANDIDATES, replace=False)
        c = -self.loadings[at, other] / self.loadings[at, k]
        return np.asarray(c[(np.abs(c) < STEEP) & (c != 0)])

    def leave_out(self) -> NDArray[np.bool_]:
        """Latents of no or one feature, which is noise of its own, get no loadings; the mask of the others."""
        mask = self.from_slab(self.most) > 0.5
        mask[:, mask.sum(0) < 2] = False
        self.loadings = self.loadings * mask.any(0)
        return mask

    def objective(self) -> float:
        covariance = self.loadings @ self.correlation @ self.loadings.T + np.diag(self.variance)
        tril = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(covariance)
        fit = -self.rows * (np.log(np.diag(tril)).sum() + 0.5 * (inverse * self.second).sum())
        noise = (SHAPE + 1) * np.log(self.variance).sum() + (self.rate / self.variance).sum()
        return float(fit - noise - self.penalty(self.loadings, self.share, self.most).sum())
