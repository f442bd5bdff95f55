"""Mixtures of Gaussians with independent noise of one size for all components: how many there are, by BIC.

    x_i ~ sum_c weight_c N(mean_c, diag(variance))                                             (rows, feature)

Components are split in two along the direction in which their rows vary most, as long as that is worth the numbers it
costs; expectation-maximisation moves all of them together; then those that are no loss are merged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST = 1e-6  # variance of noise, in that of a feature
FEW = 4.0  # rows of a component, below which it is none
CLOSE = 6.0  # deviations of noise between two components, below which they may be one
MOST_TRIED = 30  # pairs that are tried to be merged


class Mixture(NamedTuple):
    """weight (component,), mean (component, feature), variance (feature,); share (rows, component) of each row;
    fit: log-likelihood."""

    weight: Floats
    mean: Floats
    variance: Floats
    share: Floats
    fit: float

    @property
    def bic(self) -> float:
        """Log-likelihood, less half the logarithm of the rows a parameter."""
        rows, (count, features) = len(self.share), self.mean.shape
        return self.fit - 0.5 * np.log(rows) * (count * (features + 1) - 1 + features)


def expect(x: Floats, weight: Floats, mean: Floats, variance: Floats) -> tuple[Floats, float]:
    """Shares (rows, component) and the log-likelihood."""
    scaled = mean / variance
    joint = x @ scaled.T - 0.5 * (scaled * mean).sum(1) + np.log(np.maximum(weight, 1e-300))
    most = joint.max(1)
    joint -= most[:, None]
    share = np.exp(joint, out=joint)
    total = share.sum(1)
    share /= total[:, None]
    constant = -0.5 * (np.einsum("ij,ij->j", x, x) / variance).sum() - 0.5 * len(x) * np.log(2 * np.pi * variance).sum()
    return share, float(most.sum() + np.log(total).sum() + constant)


def maximise(x: Floats, share: Floats) -> tuple[Floats, Floats, Floats]:
    """Weights, means and the noise that are the most probable, given shares of the rows."""
    count = np.maximum(share.sum(0), 1e-12)
    mean = (share.T @ x) / count[:, None]
    left = np.einsum("ij,ij->j", x, x) / len(x) - (count[:, None] * mean**2).sum(0) / len(x)
    return count / len(x), mean, np.maximum(left, LEAST)


def improve(x: Floats, share: Floats, steps: int, tolerance: float = 1e-3) -> Mixture:
    """Expectation-maximisation from shares of the rows; components of hardly any rows are left out."""
    before = -np.inf
    for _ in range(steps):
        share = share[:, share.sum(0) > FEW] if share.shape[1] > 1 else share
        law = maximise(x, share / share.sum(1, keepdims=True))
        share, fit = expect(x, *law)
        if fit - before < tolerance:
            break
        before = fit
    return Mixture(*law, share, fit)


def halves(x: Floats, variance: Floats, known: bool) -> tuple[float, Floats]:
    """What it gains to take these rows for two components, and shares (rows, 2): by BIC, with noise of this variance
    where it is known, else with one of their own."""
    rows, features = x.shape
    centred = (x - x.mean(0)) / np.sqrt(variance)
    direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    side = centred @ direction
    share = np.stack([side <= 0, side > 0], 1).astype(float)
    own = np.maximum(x.var(0), LEAST)
    one = expect(x, np.ones(1), x.mean(0)[None], variance if known else own)[1]
    two = one
    for step in range(25):
        weight, mean, noise = maximise(x, share)
        share, fit = expect(x, weight, mean, variance if known else noise)
        if fit - two < 1e-3 and step > 3:
            break
        two = fit
    if share.sum(0).min() < FEW:
        return -np.inf, share
    return two - one - 0.5 * np.log(rows) * (features + 1), share


def split(x: Floats, now: Mixture, known: bool) -> Floats | None:
    """Shares with all components split that gain by it, or None."""
    label, parts, any_split = now.share.argmax(1), [], False
    for c in range(now.share.shape[1]):
        own = label == c
        parts.append(now.share[:, c : c + 1])
        if own.sum() > 2 * FEW:
            gain, half = halves(x[own], now.variance, known)
            if gain > 0:
                any_split = True
                both = np.full((len(x), 2), 0.5)
                both[own] = half
                parts[-1] = parts[-1] * both
    return np.concatenate(parts, 1) if any_split else None


def merged(x: Floats, now: Mixture) -> Mixture:
    """The mixture without components that BIC would rather do without."""
    better = True
    while better and len(now.weight) > 1:
        better = False
        scaled = now.mean / np.sqrt(now.variance)
        apart = np.linalg.norm(scaled[:, None] - scaled, axis=-1)
        a, b = np.triu_indices(len(scaled), 1)
        near = np.argsort(apart[a, b])[:MOST_TRIED]
        for i in near[apart[a, b][near] < CLOSE]:
            share = now.share.copy()
            share[:, a[i]] += share[:, b[i]]
            tried = improve(x, np.delete(share, b[i], 1), 6)
            if tried.bic > now.bic:
                now, better = improve(x, tried.share, 50), True
                break
    return now


def components(x: Floats, most: int) -> Mixture:
    """A mixture of so many components as BIC asks for, `most` at most; x: (rows, feature), standardised."""
    now = improve(x, np.ones((len(x), 1)), 2)
    for known in (False, True):
        while len(now.weight) < most:
            share = split(x, now, known)
            if share is None:
                break
            more = improve(x, share, 30)
            if more.bic <= now.bic:
                break
            now = more
    return merged(x, improve(x, now.share, 100))
