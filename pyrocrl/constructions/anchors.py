"""Where chains of sparse models may start: which features depend on which factor, read off the data.

The anchor argument of Moran et al. (2022) as an estimator, and varimax for linear decoders.

Two anchors of one factor are functions of each other up to noise, so anchors show as groups of features with high
maximal correlation. A feature loads on a further factor if that factor's group explains much of what its own group
leaves over. Nothing here fits a model; it only says where chains may start.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, squareform
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)


def maximal_correlation(x: Floats, degree: int = 5) -> Floats:
    """(feature, feature) largest correlation of any two functions of a pair of features; x: (data, feature).

    Functions are polynomials of the ranks, so monotone maps of a feature change nothing. Needs more than `degree`
    rows.
    """
    position = 2.0 * (rankdata(x, axis=0) - 0.5) / len(x) - 1.0
    basis = chebvander(position, degree)[..., 1:].transpose(1, 0, 2)  # (feature, data, degree)
    basis = np.linalg.qr(basis - basis.mean(1, keepdims=True))[0]
    flat = basis.transpose(1, 0, 2).reshape(len(x), -1)
    cross = (flat.T @ flat).reshape(x.shape[1], degree, x.shape[1], degree).transpose(0, 2, 1, 3)
    return np.clip(np.linalg.svd(cross, compute_uv=False)[..., 0], 0.0, 1.0)


def feature_groups(dependence: Floats, most: int) -> NDArray[np.int64]:
    """(feature,) the group of every feature, numbered from 0: at most `most` groups.

    Average linkage, cut where the most groups of two or more features show (the coarsest such cut); features alone
    at that cut join the group they depend on most.
    """
    features = len(dependence)
    tree = linkage(squareform(1.0 - dependence, checks=False), "average")
    groups: list[NDArray] = [np.arange(features)]
    for cut in range(2, features):
        labels = fcluster(tree, cut, "maxclust")
        found = [g for g in (np.flatnonzero(labels == c) for c in np.unique(labels)) if len(g) > 1]
        if len(groups) < len(found) <= most:
            groups = found
    closest = np.stack([dependence[:, g].mean(1) for g in groups], 1).argmax(1)
    for k, group in enumerate(groups):
        closest[group] = k
    return closest


def loadings_pattern(x: Floats, most: int, share: float = 0.5) -> NDArray[np.bool_]:
    """(feature, most) which factors each feature seems to depend on; columns without a group are empty.

    A feature loads on its own group, and on each further one, taken greedily, that leaves at most `share` of the
    leave-one-out error of predicting the feature from the groups it has, itself left out.
    """
    scores = norm.ppf((rankdata(x, axis=0) - 0.5) / len(x))
    group = feature_groups(maximal_correlation(x), most)
    out = np.zeros((x.shape[1], most), dtype=bool)
    for j in range(x.shape[1]):
        chosen = [int(group[j])]
        error = _error(scores, group, chosen, j)
        rest = set(range(int(group.max()) + 1)) - set(chosen)
        while rest:
            errors = {k: _error(scores, group, [*chosen, k], j) for k in rest}
            best = min(errors, key=errors.__getitem__)
            if errors[best] > share * error:
                break
            chosen.append(best)
            rest.remove(best)
            error = errors[best]
        out[j, chosen] = True
    return out


def _error(scores: Floats, group: NDArray[np.int64], chosen: list[int], j: int) -> float:
    """Leave-one-out mean squared error of kernel ridge regression of feature j on the other features of `chosen`."""
    others = np.isin(group, chosen)
    others[j] = False
    target = scores[:, j]
    if not others.any():
        return float(np.mean(target**2))
    distance = cdist(scores[:, others], scores[:, others], "sqeuclidean")
    values, vectors = np.linalg.eigh(np.exp(-distance / np.median(distance)))
    projected = vectors.T @ target
    errors = []
    for ridge in RIDGES:
        shrink = values / (values + ridge)
        leverage = (vectors**2) @ shrink
        errors.append(np.mean(((target - vectors @ (shrink * projected)) / (1.0 - leverage)) ** 2))
    return float(min(errors))


def varimax(x: Floats, latents: int) -> tuple[Floats, Floats, Floats]:
    """Factor analysis of standardised x (data, feature), rotated by varimax: (loadings, scores, precision).

    loadings (feature, latent), each column signed so that its large entries are positive; scores (latent, feature),
    the regression of z on x; precision (latent, latent) of z given x.
    """
    from sklearn.decomposition import FactorAnalysis

    found = FactorAnalysis(latents, rotation="varimax", max_iter=200, tol=1e-3, random_state=0).fit(x)
    loadings = found.components_.T * np.where((found.components_**3).sum(1) < 0, -1.0, 1.0)
    noise = np.maximum(found.noise_variance_, 1e-3)
    weighted = loadings / noise[:, None]
    precision = np.eye(latents) + loadings.T @ weighted
    return loadings, np.linalg.solve(precision, weighted.T), precision
