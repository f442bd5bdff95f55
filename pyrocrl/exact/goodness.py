"""How well Gaussian laws and factor models fit: test statistics of known law, and their p-values.

Likelihood ratios against a law left free, Mardia's skewness and kurtosis (Mardia 1970, "Measures of multivariate
skewness and kurtosis with applications"), the number of factors (Lawley & Maxwell 1971, chapter 4), and samples told
apart one coordinate and one pair of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from scipy.linalg import eigh

Floats = NDArray[np.float64]
FEWEST = 10  # rows of a group whose law is estimated
SMALLEST = 1e-12  # probability of a quantile, on both sides
EXACT = 1e-8  # share of the variance below which a direction is rounding


class Gaussians(NamedTuple):
    """Moments of environments, and those of the equations fitted to them.

    rows (env,); mean, fitted_mean (env, d); cov, fitted_cov (env, d, d), of maximum likelihood; parameters: how many
    numbers the fitted moments were chosen by.
    """

    rows: Floats
    mean: Floats
    cov: Floats
    fitted_mean: Floats
    fitted_cov: Floats
    parameters: float


def implied(
    count: Floats,
    mean: Floats,
    cov: Floats,
    target: NDArray[np.bool_],
    order: list[int],
    kind: str,
    graph: NDArray[np.bool_] | None = None,
) -> Gaussians:
    """Moments of linear Gaussian equations of maximum likelihood, given the unmixing that z has, beside z's own.

    count (env,), mean (env, d), cov (env, d, d) of z; target (env, d). Every latent depends on all that come earlier in
    `order`, or on its parents in a graph (parent, child) that has this order. kind: what an intervention does to its
    target's equation, a key of `card.INTERVENTIONS`; under "variance" and "shift" z are innovations, without parents.
    The unmixing's d (d - 1) directions count as chosen, but for those by which soft interventions may mix a latent with
    earlier ones.
    """
    envs, d = mean.shape
    weight, level, variance = np.zeros((envs, d, d)), np.zeros((envs, d)), np.ones((envs, d))
    keeps = kind in ("variance", "shift")
    parameters = float(d * (d - 1) - (d * (d - 1) / 2 if kind == "soft" else 0))
    for place, k in enumerate(order):
        before = [] if keeps else [j for j in order[:place] if graph is None or graph[j, k]]
        natural = ~target[:, k]
        slope, constant, rest = _regression(count[natural], mean[natural], cov[natural], before, k)
        weight[:, before, k], level[:, k], variance[:, k] = slope, constant, rest
        parameters += len(before) + 2 * bool(natural.any())
        for e in np.flatnonzero(target[:, k]):
            used = before if kind == "soft" else []
            slope, constant, rest = _regression(count[[e]], mean[[e]], cov[[e]], used, k)
            weight[e, :, k] = 0.0
            weight[e, used, k], level[e, k], variance[e, k] = slope, constant, rest
            parameters += len(used) + (1 if kind == "shift" else 2)
        if kind == "shift":  # one variance for all
            share = np.where(target[:, k], count, 0.0)
            pool = count[natural].sum()
            within = float((share * variance[:, k]).sum() + pool * variance[natural, k][:1].sum())
            variance[:, k] = within / (share.sum() + pool)
    inverse = np.linalg.inv(np.eye(d) - weight.transpose(0, 2, 1))
    fitted = np.einsum("eij,ej->ei", inverse, level)
    return Gaussians(count, mean, cov, fitted, inverse * variance[:, None] @ inverse.transpose(0, 2, 1), parameters)


def implied_at_best(
    count: Floats, mean: Floats, cov: Floats, target: NDArray[np.bool_], order: list[int], kind: str
) -> Gaussians:
    """`implied` by the unmixing of least deviance near the one that z has, which may be the best of another objective
    than that of these equations."""
    d = mean.shape[1]
    off = ~np.eye(d, dtype=bool)
    scale = np.sqrt(np.einsum("ekk->ek", cov).mean(0))

    def at(free: Floats) -> Gaussians:
        matrix = np.eye(d)
        matrix[off] = free
        matrix = matrix * scale[:, None] / scale
        moved = np.einsum("ij,ejk,lk->eil", matrix, cov, matrix)
        return implied(count, mean @ matrix.T, moved, target, order, kind)

    def deviance(free: Floats) -> float:
        with np.errstate(all="ignore"):
            total = float(likelihood_ratio(at(free)).deviance.sum())
        return total if np.isfinite(total) else 1e300

    best = optimize.minimize(deviance, np.zeros(int(off.sum())), method="L-BFGS-B", options={"maxiter": 30})
    return at(best.x)


def _regression(count: Floats, mean: Floats, cov: Floats, on: list[int], k: int) -> tuple[Floats, float, float]:
    """Slopes, constant and residual variance of coordinate k on others, over environments pooled."""
    if not len(count):
        return np.zeros(len(on)), 0.0, 1.0
    share = count / count.sum()
    centre = share @ mean
    apart = mean - centre
    pooled = np.einsum("e,eij->ij", share, cov + apart[:, :, None] * apart[:, None, :])
    slope = np.linalg.solve(pooled[np.ix_(on, on)], pooled[on, k]) if on else np.zeros(0)
    return slope, float(centre[k] - slope @ centre[on]), float(pooled[k, k] - slope @ pooled[on, k])


class Ratio(NamedTuple):
    """deviance (env,): twice the log-likelihood lost to a law left free, whose sum has `freedom` degrees; p: of it."""

    deviance: Floats
    freedom: float
    p: float


def likelihood_ratio(found: Gaussians) -> Ratio:
    """The likelihood-ratio test of the fitted moments against moments left free in every environment.

    Each deviance is corrected by Bartlett's factor for covariances of few rows. p is 1 where nothing is left to test.
    """
    count, d = found.rows, found.mean.shape[1]
    use = count > d + 1
    apart = found.mean - found.fitted_mean
    deviance = np.zeros(len(count))
    for e in np.flatnonzero(use):
        inverse = np.linalg.inv(found.fitted_cov[e])
        ratio = inverse @ found.cov[e]
        lost = np.trace(ratio) - np.linalg.slogdet(ratio)[1] - d + apart[e] @ inverse @ apart[e]
        deviance[e] = count[e] * lost * (1 - (2 * d + 1 + 2 / (d + 1)) / (6 * count[e]))
    freedom = float(use.sum() * d * (d + 3) / 2 - found.parameters)
    p = float(stats.chi2.sf(deviance.sum(), freedom)) if freedom > 0 else 1.0
    return Ratio(deviance, freedom, p)


def residual_correlation(cov: Floats, fitted: Floats, rows: float) -> tuple[float, tuple[int, int]]:
    """p of the covariance of two features (feature, feature) that is furthest from the fitted one, corrected for the
    number of pairs, and which. Each has the variance (s_ii s_jj + s_ij^2) / rows of a normal sample, less what
    the fit took up, so that p is at least as large as it should be."""
    scale = np.sqrt(np.outer(np.diag(fitted), np.diag(fitted)) + fitted**2)
    apart = np.triu(np.abs(cov - fitted) / scale, 1) * np.sqrt(rows)
    i, j = (int(place) for place in np.unravel_index(apart.argmax(), apart.shape))
    pairs = len(cov) * (len(cov) - 1) / 2
    return min(1.0, float(2 * stats.norm.sf(apart[i, j])) * pairs), (i, j)


def count_residuals(x: Floats, mean: Floats, dispersion: Floats, rng: np.random.Generator) -> Floats:
    """Standard normal where counts x are negative binomial, of these means and dispersions, all of shapes that
    broadcast: the quantile of each, at random within its own step (Dunn & Smyth 1996)."""
    p = dispersion / (dispersion + mean)
    below = stats.nbinom.cdf(x - 1, dispersion, p)
    within = rng.random(np.shape(below)) * stats.nbinom.pmf(x, dispersion, p)
    out: Floats = special.ndtri(np.clip(below + within, SMALLEST, 1 - SMALLEST))
    return out


def largest_eigenvalue(value: float, rows: int, features: int) -> float:
    """p of the largest eigenvalue of the covariance of standard normal rows, by the law of Tracy & Widom (Johnstone
    2001) as a shifted gamma law (Chiani 2014)."""
    if rows < 3:
        return 1.0
    a, b = np.sqrt(rows - 1), np.sqrt(features)
    centre, scale = (a + b) ** 2 / rows, (a + b) / rows * (1 / a + 1 / b) ** (1 / 3)
    return float(stats.gamma.sf((value - centre) / scale + 9.84801, 46.446, scale=0.186054))


class Misfit(NamedTuple):
    """Twice the log-likelihood that the fitted moments lose to free ones, and its degrees of freedom."""

    deviance: float
    freedom: float


class Normality(NamedTuple):
    """p: that samples of a normal law are as far from it; skewness, kurtosis: p of each; excess: kurtosis over that of
    a normal law, less 1, in the mean over samples."""

    p: float
    skewness: float
    kurtosis: float
    excess: float


def mardia(z: Floats, group: NDArray[np.int64]) -> Normality:
    """Mardia's tests of z (row, d), normal within each group (row,): over all groups of more than 2 d + 5 rows.

    Both statistics have longer tails than their limits. Of the skewness, variance and third moment are those of the
    limit times factors that were fitted to simulations of 30 to 240 rows and 1 to 8 columns. Of the kurtosis, the third
    moment is that of Mardia & Kanazawa (1983), at few rows smaller by what it is in one column, and the tails follow as
    Anscombe & Glynn's (1983) do.
    """
    d = z.shape[1]
    skew, freedom, second, third = 0.0, 0.0, 0.0, 0.0
    kurt, bent, excess = 0.0, 0.0, []
    for g in np.unique(group):
        own = z[group == g]
        n = len(own)
        if n <= 2 * d + 5:
            continue
        own = own - own.mean(0)
        unit = np.maximum(own.std(0), 1e-300)
        if np.linalg.eigvalsh((own / unit).T @ (own / unit) / n)[0] < EXACT:  # a column is held, or a copy
            continue
        white = own @ np.linalg.inv(np.linalg.cholesky(own.T @ own / n)).T
        cubes = np.einsum("na,nb,nc->abc", white, white, white, optimize=True) / n
        few = (d + 1) * (n + 1) * (n + 3) / (n * ((n + 1) * (d + 1) - 6))
        skew += n / 6 * few * float((cubes**2).sum())
        columns = d * (d + 1) * (d + 2) / 6
        freedom += columns
        second += 2 * columns * (1 + 16 / (n + 10))
        third += 8 * columns * (1 + 16 / (n + 10)) ** 1.5 * (1 + 28 / n)
        fourth, usual = float(((white**2).sum(1) ** 2).mean()), d * (d + 2) * (n - 1) / (n + 1)
        variance = 8 * d * (d + 2) * (n - 3) * (n - d - 1) * (n - d + 1) / ((n + 1) ** 2 * (n + 3) * (n + 5))
        kurt += (fourth - usual) / variance**0.5
        single = (n**2 - 5 * n + 2) / ((n + 7) * (n + 9)) * ((n + 3) * (n + 5) / ((n - 2) * (n - 3))) ** 0.5
        bent += single * (8 * (d + 8) ** 2 / (d * (d + 2) * n)) ** 0.5
        excess.append(fourth / usual - 1)
    if not excess:
        return Normality(1.0, 1.0, 1.0, 0.0)
    groups = len(excess)
    skewness = float(stats.pearson3.sf(skew, third / second**1.5, freedom, second**0.5))
    kurtosis = float(2 * stats.norm.sf(abs(_straightened(kurt / groups**0.5, bent / groups**1.5))))
    return Normality(min(1.0, 2 * min(skewness, kurtosis)), skewness, kurtosis, float(np.mean(excess)))


def _straightened(value: float, skewness: float) -> float:
    """A standardised kurtosis of this skewness as a standard normal number (Anscombe & Glynn 1983)."""
    a = 6 + 8 / skewness * (2 / skewness + (1 + 4 / skewness**2) ** 0.5)
    root = np.cbrt((1 - 2 / a) / (1 + value * (2 / (a - 4)) ** 0.5))
    return float((1 - 2 / (9 * a) - root) / (2 / (9 * a)) ** 0.5)


def enough_factors(x: Floats, factors: int) -> float | None:
    """p of the likelihood-ratio test that so many factors, and noise of each feature's own, explain x (row, feature).

    0 where x has more exact dimensions than factors, though fewer than features; None where nothing is left to test.
    """
    rows = len(x)
    x = x - x.mean(0)
    spread = x.std(0)
    moving = spread > 1e-12 * max(float(spread.max()), 1e-300)
    x = x[:, moving] / spread[moving]
    features = x.shape[1]
    second = x.T @ x / rows
    rank = int((np.linalg.eigvalsh(second) > EXACT * features).sum())
    if rank < min(features, rows):
        return 1.0 if rank <= factors else 0.0
    freedom = ((features - factors) ** 2 - features - factors) / 2
    if freedom <= 0 or rows < 3 * features:
        return None
    lost = factor_discrepancy(second, factors)
    scale = rows - 1 - (2 * features + 5) / 6 - 2 * factors / 3
    return float(stats.chi2.sf(scale * lost, freedom))


def factor_discrepancy(second: Floats, factors: int) -> float:
    """log |S| less that of the best factor model, per half row, loadings maximised out (Joreskog 1967)."""
    left = len(second) - factors

    def discrepancy(log_noise: Floats) -> tuple[float, Floats]:
        root = np.exp(-0.5 * log_noise)
        value, vector = np.linalg.eigh(second * root[:, None] * root)
        small, along = value[:left], vector[:, :left]
        slope = (along**2) @ (1 - small)  # of the sum of (value - log value) in log noise
        return float((small - np.log(small)).sum() - left), slope

    bounds = [(float(np.log(1e-6)), 0.0)] * len(second)
    start = -np.log(np.diag(np.linalg.inv(second)))
    best = optimize.minimize(discrepancy, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(best.fun)


def mixture_log_likelihood(
    z: Floats, weights: Floats, mean: Floats, scale: Floats, alike: tuple[int, int] | None = None, steps: int = 200
) -> float:
    """Log-likelihood of z (row, d) under a mixture of independent normals, by expectation-maximisation from a start.

    weights (component,); mean, scale (component, d). alike: two latents whose deviations have the same ratios in all
    components.
    """
    weights, mean, variance = weights.copy(), mean.copy(), scale**2
    floor = 1e-4 * z.var(0)
    total = -np.inf
    for _ in range(steps):
        if alike is not None:
            variance[:, alike] = _proportional(variance[:, alike], weights)
        variance = np.maximum(variance, floor)
        apart = z[:, None] - mean
        each = np.log(weights) - 0.5 * (apart**2 / variance + np.log(2 * np.pi * variance)).sum(-1)
        top = each.max(1, keepdims=True)
        rows = top[:, 0] + np.log(np.exp(each - top).sum(1))
        last, total = total, float(rows.sum())
        if total - last < 1e-3:
            break
        share = np.exp(each - rows[:, None])
        count = np.maximum(share.sum(0), 1e-6)
        weights = count / count.sum()
        mean = share.T @ z / count[:, None]
        variance = np.stack([share[:, c] @ (z - mean[c]) ** 2 / count[c] for c in range(len(count))])
    return total


def _proportional(variance: Floats, weights: Floats) -> Floats:
    """The nearest variances (component, 2), in likelihood, of the form one number a component times one a column."""
    unit = np.sqrt((weights[:, None] * variance).sum(0))
    for _ in range(20):
        own = (variance / unit**2).mean(1)
        unit = np.sqrt((weights[:, None] * variance / own[:, None]).sum(0))
    return own[:, None] * unit**2


def _scaled_normal(z: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
    def natural(moment: Floats) -> tuple[Floats, Floats]:
        return -0.5 / moment, np.diag(0.5 / moment**2)

    return z**2, natural


def _laplace(z: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
    def natural(moment: Floats) -> tuple[Floats, Floats]:
        return -1 / moment, np.diag(1 / moment**2)

    return np.abs(z), natural


def _normal(z: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
    d = z.shape[1]

    def natural(moment: Floats) -> tuple[Floats, Floats]:
        mean, variance = moment[:d], moment[d:] - moment[:d] ** 2
        slopes = np.block(
            [
                [np.diag(1 / variance + 2 * mean**2 / variance**2), np.diag(-mean / variance**2)],
                [np.diag(-mean / variance**2), np.diag(0.5 / variance**2)],
            ]
        )
        return np.concatenate([mean / variance, -0.5 / variance]), slopes

    return np.hstack([z, z**2]), natural


# law of independent latents given their environment -> z (row, d) to (statistics (row, s d), (their means to natural
# parameters (s d,), the slopes of these (s d, s d)))
MODULATED = {"scaled normal": _scaled_normal, "normal": _normal, "laplace": _laplace}


class Modulation(NamedTuple):
    """p: of natural parameters that are linearly dependent over environments; discrepancy: the statistic, chi-square
    of `freedom` if they are; share: (d,) each latent's part in the combination that moves least, the largest 1."""

    p: float
    discrepancy: float
    freedom: int
    share: Floats


def modulation(z: Floats, group: NDArray[np.int64], law: str) -> Modulation | None:
    """Test that some combination a of natural parameters is the same in all groups, of z (row, d) of `law` in each.

    The least over a of sum_u (a'n_u - b)^2 / a'V_u a, n_u the estimates in group u, V_u their covariance by the
    statistics' own, b the weighted mean: chi-square of (groups - parameters) degrees of freedom where one such
    combination exists (Anderson 1951; Cragg & Donald 1997). None where there are no more groups than parameters. Groups
    of fewer than `FEWEST` rows are left out.
    """
    statistics, natural = MODULATED[law](z)
    groups = [own for g in np.unique(group) if len(own := statistics[group == g]) >= FEWEST]
    freedom = len(groups) - statistics.shape[1]
    if freedom <= 0:
        return None
    values, covariances = [], []
    for own in groups:
        value, slopes = natural(own.mean(0))
        values.append(value)
        covariances.append(slopes @ np.atleast_2d(np.cov(own.T)) @ slopes.T / len(own))
    unit = 1 / np.sqrt(np.mean([c.diagonal() for c in covariances], 0))
    n, v = np.array(values) * unit, np.array(covariances) * unit[:, None] * unit

    def discrepancy(a: Floats) -> tuple[float, Floats]:
        spread = v @ a  # (group, parameter)
        weight = 1 / (spread @ a)
        along = n @ a
        residual = along - weight @ along / weight.sum()
        pull = residual * weight
        return float(residual @ pull), 2 * (n.T @ pull - spread.T @ pull**2)

    centred = n - n.mean(0)
    starts = eigh(centred.T @ centred, v.mean(0))[1].T
    found = [optimize.minimize(discrepancy, a, jac=True, method="L-BFGS-B") for a in starts]
    best = min(found, key=lambda one: one.fun)
    part = np.abs(best.x * n.std(0)).reshape(-1, z.shape[1]).max(0)
    return Modulation(float(stats.chi2.sf(best.fun, freedom)), float(best.fun), freedom, part / part.max())


class Departure(NamedTuple):
    """p: that samples as far from the law are seen where it is within the tolerance; of each part."""

    p: float
    levels: float
    correlations: float
    law: float


class Tolerance(NamedTuple):
    """levels: mean square of groups' means, in their deviations; correlation: of two coordinates, or of their squares,
    within groups; distance: Kolmogorov's, of one coordinate in units of its group's deviation."""

    levels: float = 0.03
    correlation: float = 0.15
    distance: float = 0.03


TOLERANCE = Tolerance()


def departure(z: Floats, group: NDArray[np.int64], law: str, tolerance: Tolerance = TOLERANCE) -> Departure:
    """How far z (row, d) is from independent coordinates of `law` (a key of `MODULATED`) in each group (row,).

    Means, where the law has none: their noncentral chi-square; correlations: Fisher's transform; the law of one
    coordinate: the inequality of Dvoretzky, Kiefer, Wolfowitz & Massart, which no parameter is estimated for.
    """
    d, groups = z.shape[1], [own for g in np.unique(group) if len(own := z[group == g]) >= FEWEST]
    if not groups:
        return Departure(1.0, 1.0, 1.0, 1.0)
    rows = sum(map(len, groups))
    levels = 1.0
    if law != "normal":
        far = sum(len(own) * (own.mean(0) / own.std(0)) ** 2 for own in groups)  # (d,)
        levels = min(1.0, d * float(stats.ncx2.sf(np.max(far), len(groups), tolerance.levels * rows)))
    mean = law == "normal"
    unit = np.concatenate(
        [(own - mean * own.mean(0)) / np.sqrt(((own - mean * own.mean(0)) ** 2).mean(0)) for own in groups]
    )
    correlations = 1.0
    if d > 1:
        r = max(np.abs(np.corrcoef(v.T) - np.eye(d)).max() for v in (unit, unit**2))
        beyond = np.arctanh(min(r, 1 - 1e-12)) - np.arctanh(tolerance.correlation)
        correlations = min(1.0, 2 * d * (d - 1) * float(stats.norm.sf(beyond * np.sqrt(rows))))
    known = stats.laplace(scale=0.5**0.5) if law == "laplace" else stats.norm
    gap = max(float(stats.kstest(column, known.cdf).statistic) for column in unit.T) - tolerance.distance
    shape = min(1.0, 2 * d * float(np.exp(-2 * rows * max(gap, 0.0) ** 2)))
    return Departure(min(1.0, 3 * min(levels, correlations, shape)), levels, correlations, shape)


def whitened(z: Floats, group: NDArray[np.int64]) -> Floats:
    """Rows z (row, d) of mean 0 and covariance I in each group (row,), each coordinate what the ones before leave;
    groups of d or fewer rows are left out."""
    parts = []
    for g in np.unique(group):
        own = z[group == g] - z[group == g].mean(0)
        if len(own) > z.shape[1]:
            parts.append(np.linalg.solve(np.linalg.cholesky(own.T @ own / len(own)), own.T).T)
    return np.concatenate(parts)


class Shared(NamedTuple):
    """p: that no covariance and no change of a variance is beyond the tolerance (Bonferroni); the surest one: of which
    column, with which other column or in which group (None where it is not that), and how large."""

    p: float
    column: int
    other: int | None
    group: int | None
    size: float


def shared(left: Floats, group: NDArray[np.int64], tolerance: float | Floats) -> Shared:
    """Whether columns of `left` (row, feature) covary, or vary more in one group of rows (row,) than in all, by more
    than `tolerance`, of all or of each pair (feature, feature): noise of each feature's own does neither. NaN where a
    value is missing, which counts for nothing: two columns are compared in the rows that have both."""
    features, gaps = left.shape[1], np.isnan(left)
    rows: Any = len(left)
    tolerance = np.broadcast_to(tolerance, (features, features))
    if gaps.any():
        known = (~gaps).astype(float)
        left = np.where(gaps, 0.0, left - np.nanmean(left, 0))
        rows = np.maximum(known.T @ known, 1.0)  # (feature, feature) that have both
    else:
        left = left - left.mean(0)
    square = left**2
    cov = left.T @ left / rows
    error = np.sqrt(np.maximum(square.T @ square / rows - cov**2, 1e-300) / rows)
    beyond = np.where(rows > 2, (np.abs(cov) - tolerance) / error, -np.inf)
    np.fill_diagonal(beyond, -np.inf)
    names = [g for g in np.unique(group) if ((group == g) & ~gaps.T).sum(1).min() > 2]
    square = np.where(gaps, np.nan, square)
    count = np.array([(~gaps[group == g]).sum(0) for g in names])  # (group, feature)
    own = np.array([np.nanmean(square[group == g], 0) for g in names])
    sd = np.array([np.nanstd(square[group == g], 0) for g in names]) / np.sqrt(count)
    moved = (np.abs(own - cov.diagonal()) - tolerance.diagonal()) / np.maximum(sd, 1e-300)
    tried = features * (features - 1) / 2 + (2 * moved.size if len(names) > 1 else 0)
    place, other = (int(v) for v in np.unravel_index(int(beyond.argmax()), beyond.shape))
    g, j = (int(v) for v in np.unravel_index(int(moved.argmax()), moved.shape))
    if len(names) > 1 and moved[g, j] > beyond[place, other]:
        p = tried * float(stats.norm.sf(moved[g, j]))
        return Shared(min(1.0, p), j, None, int(names[g]), float(own[g, j] - cov[j, j]))
    p = tried * float(stats.norm.sf(beyond[place, other]))
    return Shared(min(1.0, p), place, other, None, float(cov[place, other]))


def samples_differ(a: Floats, b: Floats) -> float:
    """p that two samples (row, d) of one law differ as much: in one coordinate, or in the correlation of two.

    Kolmogorov and Smirnov's test of each coordinate, Brown and Forsythe's of its spread, Fisher's of each correlation,
    corrected for their number.
    """
    d = a.shape[1]
    p = [float(stats.ks_2samp(a[:, k], b[:, k]).pvalue) for k in range(d)]
    p += [float(v) for k in range(d) if np.isfinite(v := stats.levene(a[:, k], b[:, k], center="median").pvalue)]
    if d > 1 and min(len(a), len(b)) > 3:
        with np.errstate(all="ignore"):
            apart = np.arctanh(np.clip(np.corrcoef(a.T), -1 + 1e-12, 1 - 1e-12))
            apart = apart - np.arctanh(np.clip(np.corrcoef(b.T), -1 + 1e-12, 1 - 1e-12))
        z = np.abs(apart[np.triu_indices(d, 1)]) / np.sqrt(1 / (len(a) - 3) + 1 / (len(b) - 3))
        p += [float(v) for v in 2 * stats.norm.sf(z) if np.isfinite(v)]
    return min(1.0, len(p) * min(p))


def holm(p: list[float]) -> list[float]:
    """p-values corrected for their number by Holm's method: of all of them, that one true null is rejected."""
    order = np.argsort(p)
    out, so_far = np.zeros(len(p)), 0.0
    for place, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p) - place) * p[i]))
        out[i] = so_far
    return [float(v) for v in out]
