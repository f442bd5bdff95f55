"""Tests of the laws of latents, of features and of a response, in every environment."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import goodness
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import EVIDENT, LEVEL, MOST_ROWS, TELLING, latents_of, unfitted
from pyrocrl.judge.fit_tests.shared import Found, Test
from pyrocrl.turns import drawing

OTHER_NOISE = "a look at outlying rows; another mechanism"
NEARLY = goodness.Tolerance(correlation=0.07, distance=0.02)  # of latents that a network reads, to be normal
TAILS = 0.1  # and by which their kurtosis may be off, in all, of that of a normal law
APART = 1.5e-4  # nats a row and degree of freedom by which moments of a network's latents may be off equations
APART_BY_ROWS = 1e-3  # ... of one that environments' log-odds alone tell
READ = 0.1  # correlations of latents that a flow's own errors make, and moments may be off by
MOST_NOISE = 6_000  # rows by which equations are told once more
MOST_COLUMNS = 40  # whose skewness a test of rows looks at: it takes their cube
IMPROBABLE = 0.01  # probability from which a set of parents is asked whether it is invariant


def _moments(fit: Fit, data: Data, error: float = 0.0) -> Found | None:
    """Likelihood-ratio test of every environment's moments against the fitted equations; error: of correlations, by
    which the moments may be off for each degree of freedom."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        found = program.implied()
    if found is None:
        return None
    ratio = goodness.likelihood_ratio(found)
    if ratio.freedom <= 0:
        return None
    worst = int(np.argmax(ratio.deviance / np.maximum(found.rows, 1)))
    detail = f"deviance {ratio.deviance.sum():.1f} on {ratio.freedom:.0f} degrees of freedom"
    p = ratio.p
    if error:
        p = float(stats.ncx2.sf(ratio.deviance.sum(), ratio.freedom, error**2 * ratio.freedom * found.rows.mean()))
    remedy = ""
    if p < LEVEL:
        detail += f", most in {data.env_names[worst]}"
        others = program.rivals(("perfect", "shift", "variance"))
        better = max(others, key=lambda kind: others[kind], default=None)
        remedy = "targets that were listed otherwise, batches that go with environments, a nonlinear model"
        if better is not None and others[better] > EVIDENT:
            remedy = f"intervention={better!r}, which has {others[better]:.0f} nats more evidence; {remedy}"
    return Found("likelihood ratio of environments' moments", p, detail, remedy)


def _gaussian(fit: Fit, data: Data) -> Found | None:
    """Mardia's skewness and kurtosis of the latents of every environment."""
    if data.counts or fit.program.config.get("escapees"):
        return None
    z, env = latents_of(fit, data, aligned=False)
    used = fit.in_use(fit.reference)
    if not used.any():
        return None
    if data.gaps:  # means shrink by what a row lacks
        rows = np.unique(np.linspace(0, data.rows - 1, len(env)).astype(int))
        env = env + (1 + env.max()) * np.unique(data.present[rows], axis=0, return_inverse=True)[1].reshape(-1)
    found = goodness.mardia(z[:, used], env)
    detail = f"skewness p = {found.skewness:.2g}, kurtosis p = {found.kurtosis:.2g} ({found.excess:+.0%})"
    remedy = "a look at outlying rows; score_crl, or another model of nonlinear equations; a nonlinear mixing"
    return Found("Mardia's skewness and kurtosis of latents", found.p, detail, remedy)


def to_normal(away: np.ndarray, square: np.ndarray, freedom: float) -> np.ndarray:
    """(rows, d) rows of Student's law, `away` (rows, d) from their centre and square (rows,) from it in units of the
    scatter, at that distance in their direction which has the same probability of being exceeded in a normal law."""
    d = away.shape[1]
    normal = stats.chi2.isf(stats.f.sf(square / d, d, freedom), d)
    found: np.ndarray = away * np.sqrt(normal / np.maximum(square, 1e-300))[:, None]
    return found


def _rows(fit: Fit, data: Data) -> Found | None:
    """Mardia's skewness and kurtosis of observed latents in every environment, of `MOST_COLUMNS` at most: rows of
    Student's law are first brought to where the same row would be of a normal law."""
    few = data.rows_at(data.spread(MOST_ROWS))
    batch = fit.batch_of(few)
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        z, law = program.latents(batch).double().cpu().numpy(), program.heavy_rows(batch)
    if law is not None:
        away, square, freedom = (value.double().cpu().numpy() for value in law)
        z = to_normal(away, square, float(freedom))
    columns = np.unique(np.linspace(0, z.shape[1] - 1, MOST_COLUMNS).astype(int))
    found = goodness.mardia(z[:, columns], few.env)
    detail = f"skewness p = {found.skewness:.2g}, kurtosis p = {found.kurtosis:.2g} ({found.excess:+.0%})"
    remedy = "a look at outlying rows; a transformation of columns; mechanism_shift, for equations that are not linear"
    if law is None and found.excess > 0 and found.kurtosis < LEVEL:
        remedy = f'noise="student", for rows of heavy tails; {remedy}'
    name = "rows" if law is None else "rows, brought from Student's law to a normal one"
    return Found(f"Mardia's skewness and kurtosis of {name}", found.p, detail, remedy)


def _features(fit: Fit, data: Data) -> Found | None:
    """Kolmogorov and Smirnov's test of every feature against its fitted law, corrected for their number."""
    rows = np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int))
    with drawing(), torch.no_grad():
        below = fit.chains.chain(fit.reference).cdf(fit.batch_of(data.rows_at(rows)))
    if below is None:
        return None
    p = [float(stats.kstest(column, "uniform").pvalue) for column in below.double().cpu().numpy().T]
    worst = int(np.argmin(p))
    detail = f"least for {data.feature_names[worst]}"
    remedy = "a transformation of the features; a look at outlying rows; more latents"
    return Found("Kolmogorov-Smirnov test of features' fitted laws", min(1.0, min(p) * len(p)), detail, remedy)


def _given_environment(fit: Fit, data: Data) -> Found | None:
    """Whether latents given the environment are independent and of their law, on rows that were not fitted: within
    `goodness.TOLERANCE` of it, for networks are not exact."""
    program = fit.chains.chain(fit.reference)
    law = program.modulated_law()
    assert law is not None
    z, env = latents_of(fit, unfitted(fit, data), aligned=False)
    found = goodness.departure(z, env, law)
    detail = f"levels p = {found.levels:.2g}, correlations p = {found.correlations:.2g}, law p = {found.law:.2g}"
    other = 'law="normal", where environments have levels' if law == "scaled normal" else "another law"
    return Found("departures of latents from their law given the environment", found.p, detail, other)


def _nearly_gaussian(fit: Fit, data: Data) -> Found | None:
    """Whether latents of every environment are normal, on all rows: within `NEARLY` of it, for networks are not exact.
    Latents of equations that are not linear, of noise that is not normal, of environments that differ from what is told
    of them, or that a network did not find, are further from it."""
    used = fit.in_use(fit.reference)
    if data.counts or not used.any():
        return None
    z, env = latents_of(fit, data, aligned=False)
    white = goodness.whitened(z[:, used], env)
    found = goodness.departure(white, np.zeros(len(white), int), "normal", NEARLY)
    detail = f"correlations p = {found.correlations:.2g}, law p = {found.law:.2g}"
    remedy = "targets that were listed otherwise; score_crl, for equations that are not linear; more steps"
    return Found("departures of latents from normal laws", found.p, detail, remedy)


def _nearly_law(fit: Fit, data: Data, law: str, apart: float, remedy: str) -> Found | None:
    """Likelihood-ratio test of every environment's moments of latents against the model's law of them: within `apart`
    of it for each degree of freedom, for networks are not exact."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    with drawing():
        found = fit.chains.chain(fit.reference).misfit(batch)
    if found is None or found.freedom <= 0:
        return None
    p = float(stats.ncx2.sf(found.deviance, found.freedom, 2 * len(batch) * apart * found.freedom))
    detail = f"deviance {found.deviance:.1f} on {found.freedom:.0f} degrees of freedom, {len(batch)} rows"
    return Found(f"departures of environments' moments from {law}", p, detail, remedy)


_nearly_equations = partial(
    _nearly_law,
    law="equations",
    apart=APART,
    remedy="targets that were listed otherwise, batches that go with environments; more steps",
)
_nearly_conditioned = partial(
    _nearly_law,
    law="conditioning",
    apart=APART_BY_ROWS,
    remedy="concepts that environments condition on and that were not told; more latents beside; more rows",
)


def _noise_left(fit: Fit, data: Data) -> tuple[np.ndarray, np.ndarray, int, bool] | None:
    """(row, latent) noise that equations leave of latents, (row,) environments, numbers chosen for its moments, and
    whether a network reads latents."""
    few = data.rows_at(data.spread(MOST_NOISE))
    with drawing():
        found = fit.chains.chain(fit.reference).noise_of_equations(fit.batch_of(few))
    return None if found is None else (found.value.double().cpu().numpy(), few.env, found.parameters, found.bent)


def _equations(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of every environment's noise of equations against independent standard normal noise, within
    `APART` of it for each degree of freedom, as latents are read with errors."""
    found = _noise_left(fit, data)
    if found is None:
        return None
    noise, env, parameters, _ = found
    groups = [noise[env == e] for e in np.unique(env)]
    d, count = noise.shape[1], np.array([float(len(own)) for own in groups])
    mean = np.array([own.mean(0) for own in groups])
    cov = np.array([np.cov(own.T, bias=True).reshape(d, d) for own in groups])
    eye = np.broadcast_to(np.eye(d), cov.shape)
    ratio = goodness.likelihood_ratio(goodness.Gaussians(count, mean, cov, np.zeros_like(mean), eye, parameters))
    if ratio.freedom <= 0:
        return None
    lost = float(np.nan_to_num(ratio.deviance.sum(), nan=np.inf))  # of noise that is none in some direction
    p = float(stats.ncx2.sf(lost, ratio.freedom, 2 * count.sum() * APART * ratio.freedom)) if lost < np.inf else 0.0
    detail = f"deviance {lost:.1f} on {ratio.freedom:.0f} degrees of freedom"
    if p < LEVEL:
        detail += f", most in {data.env_names[np.unique(env)[int(np.argmax(ratio.deviance / count))]]}"
    remedy = "targets that were listed otherwise, batches that go with environments, another kind of interventions"
    return Found("likelihood ratio of the noise of equations", p, detail, remedy)


def _noise_of_equations(fit: Fit, data: Data) -> Found | None:
    """Mardia's skewness and kurtosis of the noise of equations in every environment; of latents that a network reads
    whether it is normal within `NEARLY`, and of a kurtosis within `TAILS`, for networks are not exact."""
    found = _noise_left(fit, data)
    if found is None:
        return None
    noise, env, _, bent = found
    normal = goodness.mardia(noise, env)
    if bent:
        apart = goodness.departure(noise, env, "normal", NEARLY)
        d = noise.shape[1]
        beyond = max(abs(normal.excess) - TAILS, 0.0) / (8 / (d * (d + 2) * len(noise))) ** 0.5
        tails = 2 * float(stats.norm.sf(beyond))
        detail = f"correlations p = {apart.correlations:.2g}, law p = {apart.law:.2g}, "
        detail += f"kurtosis p = {tails:.2g} ({normal.excess:+.0%})"
        p = min(1.0, 2 * min(apart.p, tails))
        return Found("departures of the noise of equations from normal laws", p, detail, OTHER_NOISE)
    detail = f"skewness p = {normal.skewness:.2g}, kurtosis p = {normal.kurtosis:.2g} ({normal.excess:+.0%})"
    remedy = f"{OTHER_NOISE}; decoder='mlp', where the mixing is not linear"
    return Found("Mardia's skewness and kurtosis of the noise of equations", normal.p, detail, remedy)


def _invariance(fit: Fit, data: Data) -> Found | None:
    """Whether the response's regression on some set of parents that is not improbable is the same in all environments:
    the largest of exact p-values, so that it is valid where the true set is one of them."""
    found = fit.chains.chain(fit.reference).invariance()
    assert found is not None
    p, chance = (v.double().cpu().numpy() for v in found)
    likely = (chance > IMPROBABLE) & np.isfinite(p)
    if not likely.any():
        return None
    best = int(np.where(likely, p, -1.0).argmax())
    others = [name for j, name in enumerate(fit.names["feature"]) if j != fit.program.config["response"]]
    names = [name for c, name in enumerate(others) if best >> c & 1]
    detail = f"of {int(likely.sum())} probable sets of parents the most invariant is {', '.join(names) or 'none'}"
    remedy = "environments that do not act on the response; columns that act on it and were not measured"
    return Found("F tests of the response's regression", float(p[best]), detail, remedy)


def _of_flow(test: Test) -> Test:
    """Of environments of `TELLING` rows or more: fewer train no flow, whose errors then say nothing of assumptions."""

    def tested(fit: Fit, data: Data) -> Found | None:
        rows = np.bincount(data.env)
        return test(fit, data) if rows[rows > 0].min() >= TELLING else None

    return tested


TESTS: dict[str, Test] = {
    "moments": _moments,
    "gaussian": _gaussian,
    "rows": _rows,
    "features": _features,
    "given_environment": _given_environment,
    "nearly_gaussian": _nearly_gaussian,
    "nearly_equations": _nearly_equations,
    "nearly_conditioned": _nearly_conditioned,
    "invariance": _invariance,
    "flow_moments": _of_flow(partial(_moments, error=READ)),
    "flow_gaussian": _of_flow(_nearly_gaussian),
    "equations": _equations,
    "noise_of_equations": _noise_of_equations,
}
