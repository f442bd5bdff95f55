"""Where chains of measurement models may start: clusters of features that depend on one latent each.

Rows of loadings of features of one latent are proportional, whatever the rotation (Bing et al. 2020, theorem 1; for
four features this says that tetrads vanish: Silva et al. 2006). For every number of latents, features are clustered by
the angle between such rows, and moved to where they fit best; then clusters are merged and split as long as BIC
improves, with all correlations of latents free.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from pyrocrl.constructions.pure_groups import principal_factors
from pyrocrl.exact.measured_sem import NONE, SHAPE, Measured, one_hot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS, ENOUGH = 60, 1e-3  # of expectation-maximisation; nats by which a step should gain
LAST = 2000, 1e-5  # of the best clusters
FIRST = 10  # rounds of first slopes
LEAST = 0.05  # first share of a feature's variance that is its own
ROUNDS = 3  # of moving features
CLOSE = 0.995  # correlation of latents up to which they count as two


def pure_clusters(second: Floats, rows: int, latents: int, rate: float, start: Floats) -> Measured:
    """The best clusters by BIC that a search finds, of up to so many latents with two features each at least.

    second: (feature, feature) moments of x, of about unit variances, over `rows` rows; start: those that the first
    clusters are read off. rate: of the inverse gamma prior of variances.
    """
    unit = np.sqrt(np.maximum(np.diag(start), 1e-12))
    correlation = start / unit / unit[:, None]
    law = _Search(second, rows, rate)
    found = [law.improved(law.fit(np.full(len(second), NONE)))]
    for count in range(1, min(latents, len(second) // 2) + 1):
        loadings = principal_factors(correlation, count)[0]
        direction = loadings / np.maximum(np.linalg.norm(loadings, axis=1, keepdims=True), 1e-9)
        apart = 1 - np.abs(direction @ direction.T)[np.triu_indices(len(second), 1)]
        label = fcluster(linkage(np.maximum(apart, 0.0), "average"), count, "maxclust") - 1
        found.append(law.improved(law.fit(_relabelled(label))))
    best = max(found, key=lambda one: one.bic)
    while True:
        tried = [law.improved(law.fit(labels)) for labels in law.others(best, latents)]
        new = max(tried, key=lambda one: one.bic, default=best)
        if new.bic <= best.bic + ENOUGH:
            best = law.fit(best.cluster, None, *LAST)
            others = [best.bic - one.bic for one in tried if not _alike(one.cluster, best.cluster)]
            return best._replace(margin=min(others, default=np.inf))
        best = new


def _alike(one: Ints, other: Ints) -> bool:
    """Whether these are the same clusters, whatever their labels."""
    together = (one[:, None] == one) & (one != NONE)
    return bool((together == ((other[:, None] == other) & (other != NONE))).all())


def _relabelled(cluster: Ints) -> Ints:
    """Clusters of two features or more as 0, 1, ..., by their first; features of others depend on no latent."""
    out, count = np.full(len(cluster), NONE), 0
    for k in dict.fromkeys(cluster[cluster != NONE].tolist()):
        own = cluster == k
        if own.sum() > 1:
            out[own] = count
            count += 1
    return out


class _Search:
    def __init__(self, second: Floats, rows: int, rate: float) -> None:
        self.second, self.rows, self.rate = second, rows, rate

    def first_slopes(self, cluster: Ints) -> Floats:
        """(feature,) slopes whose products are about the moments of two features of one cluster."""
        alike = self.second * (cluster[:, None] == cluster) * (cluster != NONE)
        np.fill_diagonal(alike, 0.0)
        others = (alike != 0).astype(float)
        first = np.array([np.argmax(cluster == k) for k in cluster])
        sign = np.where(np.arange(len(cluster)) == first, 1.0, np.sign(self.second[first, np.arange(len(cluster))]))
        slope = sign * np.sqrt(np.abs(alike).sum(1) / np.maximum(others.sum(1), 1.0))
        for _ in range(FIRST):
            new = alike @ slope / np.maximum(others @ slope**2, 1e-9)
            slope = 0.5 * (slope + new)
        return slope

    def fit(self, cluster: Ints, near: Measured | None = None, steps: int = STEPS, enough: float = ENOUGH) -> Measured:
        """Maximum of the posterior given the clusters, by expectation-maximisation with the latents' scales expanded;
        near: of the same clusters, where it begins."""
        second, rows = self.second, self.rows
        square, latents = np.diag(second), int(cluster.max(initial=NONE)) + 1
        gate = one_hot(cluster, latents)
        inside = cluster != NONE
        own = np.where(inside, cluster, 0)
        if near is None:
            slope = self.first_slopes(cluster)
            variance = np.maximum(square - slope**2, LEAST * square)
            loadings = gate * slope[:, None]
            weights = loadings / np.maximum((loadings**2).sum(0), 1e-9)
            phi = weights.T @ (second - np.diag(variance)) @ weights
            phi = _proper(phi) if latents else phi
        else:
            slope, variance, phi = near.slope, near.variance, near.correlation
        value = -np.inf
        j = np.arange(len(cluster))
        for _ in range(steps):
            loadings = gate * slope[:, None]
            scaled = loadings / variance[:, None]
            information = scaled.T @ loadings
            inverse = np.linalg.inv(phi)
            given = np.linalg.inv(inverse + information)
            scores = given @ scaled.T  # (latent, feature)
            cross = second @ scores.T  # (feature, latent)
            determinant = np.log(variance).sum() + np.linalg.slogdet(phi)[1] - np.linalg.slogdet(given)[1]
            square_left = (square / variance).sum() - (scaled * cross).sum()
            new = -0.5 * rows * (determinant + square_left)
            new += -(SHAPE + 1) * np.log(variance).sum() - (self.rate / variance).sum()
            if new - value < enough:
                break
            value = new
            phi = given + scores @ cross
            if latents:
                slope = np.where(inside, cross[j, own] / phi[own, own], 0.0)
                rest = square - slope * cross[j, own]
            else:
                rest = square
            variance = (rows * np.maximum(rest, 0) + 2 * self.rate) / (rows + 2 * SHAPE + 2)
        unit = np.sqrt(np.diag(phi))
        slope = np.where(inside, slope * unit[own], 0.0) if latents else slope
        correlation = phi / unit / unit[:, None]
        likelihood = -0.5 * rows * (determinant + square_left + len(second) * np.log(2 * np.pi))
        out = Measured(cluster, slope, variance, correlation, 0.0)
        return out._replace(bic=float(likelihood - 0.5 * out.parameters * np.log(rows)))

    def improved(self, now: Measured) -> Measured:
        """With features moved to where they fit best."""
        for _ in range(ROUNDS):
            moved = self.moved(now)
            if (moved == now.cluster).all():
                break
            new = self.fit(moved)
            if new.bic <= now.bic:
                break
            now = new
        return now

    def moved(self, now: Measured) -> Ints:
        """(feature,) the latent on which each feature's regression leaves least, all else being as it is."""
        latents = len(now.correlation)
        if not latents:
            return now.cluster
        scaled = one_hot(now.cluster, latents) * (now.slope / now.variance)[:, None]
        inverse = np.linalg.inv(now.correlation)
        cluster = now.cluster.copy()
        for j in range(len(cluster)):
            others = scaled.copy()
            others[j] = 0.0
            information = (others * np.where(np.arange(len(cluster)) == j, 0.0, now.slope)[:, None]).sum(0)
            given = np.linalg.inv(inverse + np.diag(information))
            scores = given @ others.T
            with_j, own = scores @ self.second[j], ((scores @ self.second) * scores).sum(1)
            gain = -0.5 * self.rows * np.log1p(-np.minimum(with_j**2 / own / self.second[j, j], 1 - 1e-9))
            best = int(gain.argmax())
            cluster[j] = best if gain[best] > 0.5 * np.log(self.rows) else NONE
        return _relabelled(cluster)

    def others(self, now: Measured, latents: int) -> list[Ints]:
        """Clusters with two merged or one split."""
        cluster, count = now.cluster, len(now.correlation)
        out = [_relabelled(np.where(cluster == b, a, cluster)) for a, b in combinations(range(count), 2)]
        apart = self.second - now.covariance()
        for k in range(count if count < latents else 0):
            members = np.flatnonzero(cluster == k)
            if len(members) > 3:
                vector = np.linalg.eigh(apart[np.ix_(members, members)] * np.outer(*2 * [np.sign(now.slope[members])]))
                part = vector[1][:, -1] > 0
                if 1 < part.sum() < len(members) - 1:
                    split = cluster.copy()
                    split[members[part]] = count
                    out.append(_relabelled(split))
        return out


def _proper(phi: Floats) -> Floats:
    """The nearest covariance whose correlations are within `CLOSE`."""
    unit = np.sqrt(np.maximum(np.diag(phi), 0.05))
    correlation = np.clip(phi / unit / unit[:, None], -CLOSE, CLOSE)
    np.fill_diagonal(correlation, 1.0)
    value, vector = np.linalg.eigh(correlation)
    correlation = (vector * np.maximum(value, 1e-3)) @ vector.T
    return correlation * unit * unit[:, None]
