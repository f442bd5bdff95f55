"""Which sets of columns predict a response alike in all environments: exact tests of every set, from moments alone.

    y = b + w' x_S + s eps,   eps ~ N(0, 1),   the same b, w and s in every environment

Of each set S two F tests: Chow's of equal coefficients, and of each environment's variance against the others', whose
residuals are those of an environment's own regression and so independent of each other. Halves of the level go to the
two, the second over the environments (Bonferroni). For the parents the p-value is at least uniform, and so the
intersection of all sets that are accepted at a level is inside the parents with a probability of 1 - level or more
(Peters, Buehlmann & Meinshausen 2016, theorem 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pyrocrl.exact.goodness import Gaussians

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
FLAT = 1e-10  # share of a column's variance below which others determine it


def sets_of(candidates: int) -> Flags:
    """(2**candidates, candidates) which are in each set: bit c of its number says whether c is."""
    found: Flags = ((np.arange(2**candidates)[:, None] >> np.arange(candidates)) & 1).astype(bool)
    return found


def p_values(moments: Floats, count: Floats, response: int) -> Floats:
    """(2**(d - 1),) p-value of each set of the other columns, in their order; nan where rows are too few to test it, or
    some of its columns are determined by others in an environment.

    moments: (env, 1 + d, 1 + d) sums of products of (1, x) over the count (env,) rows of each environment.
    """
    there = count > 0
    moments, count = moments[there], count[there]
    envs, d = len(count), moments.shape[1] - 1
    inside = sets_of(d - 1)
    used = inside.sum(1) + 1.0  # coefficients
    if envs < 2:
        return np.full(len(inside), np.nan)
    own = np.stack([_left(one, response, inside) for one in moments])  # (env, set) sums of squares, nan
    free = count[:, None] - used  # (env, set) degrees of freedom
    pooled, apart, rest = _left(moments.sum(0), response, inside), own.sum(0), free.sum(0)
    with np.errstate(all="ignore"):
        chow = (pooled - apart).clip(0) / ((envs - 1) * used) / (apart / rest)
        equal = stats.f.sf(chow, (envs - 1) * used, rest)
        ratio = (own / free) / ((apart - own) / (rest - free))
        ends = np.minimum(stats.f.sf(ratio, free, rest - free), stats.f.cdf(ratio, free, rest - free))
        tests = 1 if envs == 2 else envs  # of two variances there is one ratio
        spread = np.minimum(1.0, 2 * tests * ends.min(0))
        p = np.minimum(1.0, 2 * np.minimum(equal, spread))
    return np.where((free > 0).all(0) & np.isfinite(apart), p, np.nan)


def guaranteed(p: Floats, level: float) -> Flags:
    """(d - 1,) the columns that are in every set accepted at this level: none where no set is. What cannot be tested is
    accepted."""
    inside = sets_of(len(p).bit_length() - 1)
    accepted = inside[~(p <= level)]
    return np.asarray(accepted.all(0) if len(accepted) else np.zeros(inside.shape[1], dtype=bool))


def _left(moments: Floats, response: int, inside: Flags) -> Floats:
    """(set,) sum of squares that the regression of the response on a constant and each set leaves; nan where columns of
    the set determine each other."""
    columns = np.array([j for j in range(len(moments)) if j != 1 + response])
    keep = np.concatenate([np.ones((len(inside), 1), dtype=bool), inside], 1)
    both = keep[:, :, None] & keep[:, None]
    gram = np.where(both, moments[np.ix_(columns, columns)], np.eye(len(columns)))
    cross = np.where(keep, moments[columns, 1 + response], 0.0)
    unit = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), FLAT))  # (set, column)
    gram = gram / (unit[:, :, None] * unit[:, None])
    regular = np.linalg.eigvalsh(gram)[:, 0] > FLAT
    gram[~regular] = np.eye(len(columns))
    slope = np.linalg.solve(gram, (cross / unit)[..., None])[..., 0]
    left = (moments[1 + response, 1 + response] - (cross / unit * slope).sum(1)).clip(0)
    return np.where(regular, left, np.nan)


def implied(moments: Floats, count: Floats, graph: Flags, hit: Flags) -> Gaussians:
    """Moments of each environment beside those of its equations of maximum likelihood, where no column is determined by
    others.

    moments, count: see `p_values`; graph: (parent, child); hit: (env, node) where a node has an equation of its own.
    """
    rows = np.maximum(count, 1.0)[:, None]
    mean = moments[:, 0, 1:] / rows
    cov = moments[:, 1:, 1:] / rows[:, None] - mean[:, :, None] * mean[:, None]
    unit = np.sqrt(np.maximum(np.diagonal(cov, axis1=1, axis2=2), FLAT))
    regular = np.linalg.eigvalsh(cov / (unit[:, :, None] * unit[:, None]))[:, 0] > FLAT
    moments, count, mean, cov = (value[regular] for value in (moments, count, mean, cov))
    hit = hit[regular]
    d, envs = len(graph), len(count)
    weight, level, variance = np.zeros((envs, d, d)), np.zeros((envs, d)), np.ones((envs, d))
    chosen = 0.0
    for k in range(d):
        parents = np.flatnonzero(graph[:, k])
        columns = np.append(0, 1 + parents)
        groups: list[NDArray[np.int64]] = [np.flatnonzero(~hit[:, k]), *np.flatnonzero(hit[:, k])[:, None]]
        for group in groups:
            if not count[group].sum():
                continue
            own = moments[group].sum(0)
            gram = own[np.ix_(columns, columns)]
            slope = np.linalg.lstsq(gram, own[columns, 1 + k], rcond=None)[0]
            level[group, k], weight[group[:, None], parents, k] = slope[0], slope[1:]
            variance[group, k] = max((own[1 + k, 1 + k] - own[columns, 1 + k] @ slope) / count[group].sum(), FLAT)
            chosen += len(columns) + 1
    total = np.linalg.inv(np.eye(d) - weight)  # (env, node, node): x = (level + noise) total
    fitted_mean = np.einsum("ek,ekj->ej", level, total)
    fitted_cov = np.einsum("eki,ek,ekj->eij", total, variance, total)
    return Gaussians(count, mean, cov, fitted_mean, fitted_cov, chosen)
