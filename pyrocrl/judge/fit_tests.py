"""Tests of a fit against its data (`TESTS`), which put a model's assumptions to the test.

A test returns what it `Found`: a p-value of known law if the model is right. Programs name the tests that apply to
them, and the assumptions that each puts to the test (`Program.checks`); `tests` runs them and corrects for their
number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import dependence, equivariances, goodness
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.actions import MOVED, carried, nearly_free
from pyrocrl.judge.checks.codes import MIN_FIRING
from pyrocrl.judge.checks.shared import (
    EVIDENT,
    FIRING_ROWS,
    LEVEL,
    MIN_PAIRS,
    MOST_ROWS,
    TELLING,
    latents_of,
    situation,
    unfitted,
)
from pyrocrl.turns import drawing

MOST_FEATURES = 200  # whose covariance a test of the number of factors looks at
PAIRED_ROWS = 10_000  # rows of pairs that a test of their differences looks at
PROBABLY = 0.45  # probability below which a latent probably did not change in a pair
EXACT = 0.12  # as far from 1/2 all distribution functions are at most where there is no noise at all
SHARED = 0.03  # share of features' variances up to which a decoder may be off
SHARED_BY_CHART = 0.05  # ... one of latents that are read by contrasts alone, without the decoder
SHARED_BY_COUNTS = 0.05  # ... log rates that are linear in the latents
COUNTED = 30  # rows in which a feature was counted at all, below which its moments are not told
SHARED_BY_CURVES = 0.01  # ... one of curves that are drawn, not trained
CLEAR = 1e-4  # probability below which another latent than this is taken to have changed in a pair
HEARD = 0.1  # part of a latent's variance that may be noise of features: it correlates .95 with what is true
BEYOND, UNEXPLAINED = 0.001, 0.03  # share of rows that noise leaves far off, and up to which others may be
STEPPED = 0.1  # rank correlation of innovations with latents before, or of two, that is let be
CORRELATED = 0.1  # correlation of the firing of two latents that is let be
EXTRA = 0.1  # part of noise by which its variance in a direction may be larger
OFF = 0.05  # difference of two distributions of what is left up to which a fit may be off
DEPENDENT = 0.05  # rank correlation of two latents' sizes that their estimates may have
NEARLY = goodness.Tolerance(correlation=0.07, distance=0.02)  # of latents that a network reads, to be normal
APART = 1.5e-4  # nats a row and degree of freedom by which moments of a network's latents may be off equations
APART_BY_ROWS = 1e-3  # ... of one that environments' log-odds alone tell
IMPROBABLE = 0.01  # probability from which a set of parents is asked whether it is invariant
TOGETHER = 0.01  # squared correlation of two latents, over smooth functions of theirs, that is let be
BENT_OFF = 0.01  # part of a feature's variance by which a sum of curves may be off
ADDED_OFF = {"linear": 0.001, "nonlinear": 0.02}  # part of a latent's variance by which sums of curves may be off
MOVED_OFF = {"linear": 0.05, "nonlinear": 0.1}  # of a feature's deviation, by which rows after may be off


@dataclass(frozen=True)
class Found:
    """p: the test's p-value, corrected for the number of tests; detail: what was seen; remedy: what to try."""

    name: str
    p: float
    detail: str
    remedy: str
    tested: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The test, its p-value and what was seen."""
        p = f"p = {self.p:.2g}" if self.p >= 1e-300 else "p < 1e-300"
        return f"{self.name}: {p}, {self.detail}"

    @property
    def fails(self) -> bool:
        return self.p < LEVEL


Test = Callable[[Fit, Data], Found | None]


def tests(fit: Fit, data: Data) -> tuple[Found, ...]:
    """What the program's own tests find, p-values corrected for their number (Holm)."""
    found = []
    for name, tested in fit.program.checks.items():
        one = TESTS[name](fit, data)
        if one is not None:
            found.append((one, tested))
    corrected = goodness.holm([one.p for one, _ in found])
    return tuple(Found(o.name, p, o.detail, o.remedy, said) for (o, said), p in zip(found, corrected, strict=True))


def _moments(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of every environment's moments against the fitted equations."""
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


def _factors(fit: Fit, data: Data) -> Found | None:
    """Whether the observational rows, about their means in each technical batch, need more factors than the fit has
    latents."""
    if data.counts or data.features > MOST_FEATURES:
        return None
    if data.incomplete:  # by rows that lack nothing, if there are any
        data = data.rows_at(np.flatnonzero(data.known.all(1)))
        if data.rows <= 2:
            return None
    known = situation(fit, data)
    free = known.present if known.hit is None else known.present & (known.hit.sum(1) == 0)
    rows = np.flatnonzero(free[data.env] & ~data.after)[:MOST_ROWS]
    if len(rows) <= 2:
        return None
    x, batch = fit.batch_of(data.rows_at(rows)).x.double().cpu().numpy(), data.batch[rows]
    for one in np.unique(batch):
        x[batch == one] -= x[batch == one].mean(0)
    p = goodness.enough_factors(x, len(fit.names["latent"]))
    if p is None:
        return None
    detail = f"{len(fit.names['latent'])} factors for {data.features} features"
    return Found("likelihood ratio of the number of factors", p, detail, "more latents; features without outliers")


def _residuals(fit: Fit, data: Data) -> Found | None:
    """The largest correlation of two features that the fitted moments leave, corrected for the number of pairs."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).implied()
    if found is None:
        return None
    p, worst = 1.0, (0, 0)
    for rows, cov, fitted in zip(found.rows, found.cov, found.fitted_cov, strict=True):
        one = goodness.residual_correlation(cov, fitted, rows)
        p, worst = min((p, worst), one)
    pair = " and ".join(data.feature_names[j] for j in worst)
    remedy = "more latents; loadings that were shut; features that are copies of each other"
    return Found("correlations that the latents leave", min(1.0, p * len(found.rows)), f"least for {pair}", remedy)


def _clusters(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of the covariance that clusters imply, correlations of latents free. Where noise and
    latents' innovations are independent it holds of any law of these (Browne & Shapiro 1988)."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).implied()
    if found is None or (ratio := goodness.likelihood_ratio(found)).freedom <= 0:
        return None
    detail = f"deviance {ratio.deviance.sum():.1f} on {ratio.freedom:.0f} degrees of freedom"
    remedy = "more latents; without the features that depend on two latents or on each other"
    return Found("likelihood ratio of clusters of features", ratio.p, detail, remedy)


def _covariance(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of the covariance that masked loadings and noise imply against any."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).implied()
    if found is None or (ratio := goodness.likelihood_ratio(found)).freedom <= 0:
        return None
    detail = f"deviance {ratio.deviance.sum():.1f} on {ratio.freedom:.0f} degrees of freedom"
    remedy = "more latents; a model of latents that depend on each other, such as linear_latent_sem or spike_slab_fa"
    return Found("likelihood ratio of the features' covariance", ratio.p, detail, remedy)


def _views(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of the moments of rows with the same views against those of shared and private latents."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    with drawing():
        found = fit.chains.chain(fit.reference).misfit(batch)
    if found is None:
        return None
    p = float(stats.chi2.sf(found.deviance, found.freedom))
    detail = f"deviance {found.deviance:.1f} on {found.freedom:.0f} degrees of freedom"
    remedy = "more shared or private latents; a transformation of the features"
    remedy += "; anchors=False, or labels of one kind" if "anchors" in fit.program.config else ""
    return Found("likelihood ratio of the views' moments", p, detail, remedy)


def _straight(fit: Fit, data: Data) -> Found | None:
    """Whether what lines leave of a feature, in a draw of latents, goes with a latent's curves or with two latents
    together, but for `BENT_OFF` of its variance; of rows that lack no view."""
    if data.gaps:
        data = data.rows_at(np.flatnonzero(data.present.all(1)))
    if data.rows < TELLING:
        return None
    p, j, which = _interactions(fit, data, ranks=True, white=True)
    detail = f"least for {data.feature_names[j]} and {' with '.join(which)}"
    return Found("what lines leave of features", p, detail, "a transformation of the features; nonlinear mixings")


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


def _left(fit: Fit, data: Data, tolerance: float = SHARED) -> Found | None:
    """Whether what a draw of their latents leaves of features is noise of each one's own, of one variance in all
    environments, as it is where the model is right. Within `tolerance` of their variances, for networks are not
    exact."""
    if data.counts:
        return None
    rows = data.rows_at(np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int)))
    program = fit.chains.chain(fit.reference)
    batch = fit.batch_of(rows).annealed()
    with drawing(43), torch.no_grad():
        left = batch.x - stories.expected(program, batch, stories.drawn(program, batch))
    x, left = batch.x.double().cpu().numpy(), left.double().cpu().numpy()
    found = goodness.shared(left / np.maximum(x.std(0), 1e-12), rows.env, tolerance)
    name = data.feature_names[found.column]
    if found.group is None:
        assert found.other is not None
        detail = f"{name} and {data.feature_names[found.other]} share {abs(found.size):.0%} of their variances"
    else:
        detail = f"that of {name} changes by {abs(found.size):.0%} of its variance in {data.env_names[found.group]}"
    return Found("what the latents leave of features", found.p, detail, "more latents; more steps; another decoder")


def _counts_left(fit: Fit, data: Data) -> Found | None:
    """The same of counts: whether what a draw of latents leaves of them, in deviations of their law, is of each one's
    own, but for features that few rows have. Environments may differ in what is not looked at: rows are one group."""
    rows = data.rows_at(data.spread(MOST_ROWS))
    program = fit.chains.chain(fit.reference)
    batch = fit.batch_of(rows).annealed()
    with drawing(43), torch.no_grad():
        law = stories.told(program, batch, stories.drawn(program, batch)).nodes["x"]["fn"].base_dist
        left = ((batch.x - law.mean) / law.variance.sqrt()).double().cpu().numpy()
    seen = np.flatnonzero((batch.x > 0).sum(0).cpu().numpy() >= COUNTED)
    seen = seen[np.argsort(-batch.x.double().cpu().numpy().mean(0)[seen], kind="stable")[:MOST_FEATURES]]
    if len(seen) < 2:
        return None
    found = goodness.shared(left[:, seen], np.zeros(len(left), int), SHARED_BY_COUNTS)
    assert found.other is not None
    pair = f"{data.feature_names[seen[found.column]]} and {data.feature_names[seen[found.other]]}"
    detail = f"{pair} share {abs(found.size):.0%} of their variances"
    return Found("what the latents leave of counts", found.p, detail, "more latents; a decoder that is not linear")


def _explained(fit: Fit, data: Data) -> Found | None:
    """Whether what a draw of the latents leaves of a row is noise. Its size: by the share of rows beyond the quantile
    that `BEYOND` of them should exceed, of which `UNEXPLAINED` may be, and by how far its distribution is from that of
    noise, which may be `OFF` (Dvoretzky, Kiefer & Wolfowitz 1956). And the largest variance in any direction, in rows
    that are not beyond and in which one latent fires, of which `EXTRA` may be too much: two directions taken for one
    leave what they differ in."""
    batch = fit.batch_of(data.rows_at(data.spread(FIRING_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(47), torch.no_grad():
        values = stories.drawn(program, batch)
        left = (batch.x - stories.expected(program, batch, values)) / values["variance"].sqrt()
    left = left.double().cpu().numpy()
    size = np.square(left).sum(1)
    beyond = size > stats.chi2.isf(BEYOND, data.features)
    away = float(stats.kstest(size, stats.chi2(data.features).cdf).statistic)
    tail = float(stats.binom.sf(int(beyond.sum()) - 1, len(size), UNEXPLAINED))
    inner = left[~beyond] / np.maximum(left[~beyond].std(0), 1e-12)
    fires, wide, one = (values["z"] > 0).cpu().numpy()[~beyond], 1.0, 0.0
    for own in fires.T:
        if own.sum() >= 2 * data.features:
            value = float(np.linalg.eigvalsh(np.atleast_2d(np.cov(inner[own].T)))[-1])
            p = goodness.largest_eigenvalue(value / (1 + EXTRA), int(own.sum()), data.features)
            wide, one = min((wide, one), (p, value))
    wide = min(1.0, wide * fires.shape[1])
    p = min(1.0, 3 * tail, 6 * float(np.exp(-2 * len(size) * max(0.0, away - OFF) ** 2)), 3 * wide)
    detail = f"{beyond.mean():.1%} of the rows are beyond what {BEYOND:.1%} should be, sizes differ by {away:.1%}, "
    detail += f"variance in one direction is {one:.2f} times that of noise"
    return Found("what latents leave of a row", p, detail, "more latents; a look at outlying rows")


def _independent_firing(fit: Fit, data: Data) -> Found | None:
    """Whether latents fire independently, in a draw of them: the largest correlation, of which `CORRELATED` is let be,
    corrected for the number of pairs."""
    batch = fit.batch_of(data.rows_at(data.spread(FIRING_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(53), torch.no_grad():
        fires = (stories.drawn(program, batch)["z"] > 0).double().cpu().numpy()
    often = np.flatnonzero((fires.sum(0) >= MIN_FIRING) & (fires.sum(0) <= len(fires) - MIN_FIRING))
    if len(often) < 2 or len(fires) < 4:
        return None
    r = np.abs(np.triu(np.corrcoef(fires[:, often].T), 1))
    a, b = np.unravel_index(int(r.argmax()), r.shape)
    away = math.atanh(min(r[a, b], 1 - 1e-12)) - math.atanh(CORRELATED)
    p = min(1.0, float(stats.norm.sf(away * math.sqrt(len(fires) - 3))) * len(often) * (len(often) - 1))
    places = fit.alignments[fit.reference].places
    names = " and ".join(fit.names["latent"][int(places[often[k]])] for k in (a, b))
    detail = f"correlation {r[a, b]:.2f} of {names}"
    return Found("correlations of firing", p, detail, "more latents, or fewer; rows of other kinds apart")


def _independent(fit: Fit, data: Data) -> Found | None:
    """Spearman's test of sizes |z| of any two latents, corrected for their number, and of all pairs in the mean, both
    against `DEPENDENT`: rows that share a scale give every latent heavy tails, and leave rotations open."""
    z, used = np.abs(latents_of(fit, data, aligned=False)[0]), np.flatnonzero(fit.in_use(fit.reference))
    if len(used) < 2 or len(z) < goodness.FEWEST:
        return None
    ranks = stats.rankdata(z[:, used], axis=0)
    signed = np.corrcoef(ranks.T) - np.eye(len(used))
    r, pairs = np.abs(signed), len(used) * (len(used) - 1) / 2
    largest, mean = float(r.max()), float(signed.sum() / (2 * pairs))
    unit = np.sqrt(len(z) / 1.06)  # of Fisher's transform (Fieller, Hartley & Pearson 1957)
    one = 2 * pairs * float(stats.norm.sf((np.arctanh(min(largest, 1 - 1e-12)) - np.arctanh(DEPENDENT)) * unit))
    every = float(stats.norm.sf((np.arctanh(min(mean, 1 - 1e-12)) - np.arctanh(DEPENDENT)) * unit * np.sqrt(pairs)))
    places = fit.alignments[fit.reference].places[used]
    a, b = (fit.names["latent"][int(places[k])] for k in divmod(int(r.argmax()), len(used)))
    p = min(1.0, 2 * min(one, every))
    detail = f"{largest:.2f} for {a} and {b}, {mean:.2f} in the mean"
    return Found("rank correlation of latents' sizes", p, detail, "sparse_vae or spike_slab_fa, for sparse loadings")


def _noise(fit: Fit, data: Data) -> Found | None:
    """Kurtosis of what the latents leave of each feature, against the normal law's (Anscombe & Glynn 1983), corrected
    for their number: noise of heavy tails would give normal latents tails of its own."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        found = program.loading_matrix()
        assert found is not None
        z = program.latents(batch)
    x, z = (v.double().cpu().numpy() for v in (batch.x, z))
    if len(x) < 20:
        return None
    left = x - z @ np.linalg.lstsq(z, x, rcond=None)[0]
    p = stats.kurtosistest(left).pvalue
    worst = int(np.argmin(p))
    detail = f"least for {data.feature_names[worst]}"
    remedy = "a transformation of the features; a look at outlying rows; more latents"
    return Found("kurtosis of what the latents leave", min(1.0, float(p[worst]) * len(p)), detail, remedy)


def _differences(fit: Fit, data: Data) -> Found | None:
    """Whether latents that are not the one that changed differ between a pair's rows as the fit says, by noise of their
    own alone: of each, Kolmogorov and Smirnov's test, and rank correlations with its noise before and with the size of
    other latents' changes; of any two their rank correlation; corrected for their number. Where they do not differ at
    all, that is so."""
    batch = fit.batch_of(data.rows_at(data.spread(PAIRED_ROWS)))
    with drawing(), torch.no_grad():
        found = fit.chains.chain(fit.reference).partners(batch)
    below, changed, moved, before = (
        v.double().cpu().numpy() for v in (found.below, found.changed, found.moved, found.before)
    )
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    p: dict[str, float] = {}
    clearly = [np.abs(below[changed[:, k] < CLEAR, k] - 0.5) for k in range(len(names))]
    exact = np.array([len(own) >= MIN_PAIRS and (own < EXACT).all() for own in clearly])
    for k, name in enumerate(names):
        kept = changed[:, k] < PROBABLY
        if exact[k] or len(kept) < 2 * MIN_PAIRS:
            continue
        if kept.sum() < MIN_PAIRS:  # though there are many pairs
            p[f"{name}, which may have changed in all pairs"] = 0.0
            continue
        own, others = below[kept, k], np.delete(moved[kept], k, 1).max(1)
        p[f"the law of {name}"] = stats.kstest(own, "uniform").pvalue
        p[f"{name} and its noise before"] = stats.spearmanr(own, before[kept, k]).pvalue
        p[f"{name} and the size of other changes"] = stats.spearmanr(np.abs(own - 0.5), others).pvalue
        for m in range(k):
            clear = (changed[:, [k, m]] < CLEAR).all(1)
            if not exact[m] and clear.sum() >= MIN_PAIRS:
                p[f"{names[m]} and {name}"] = stats.spearmanr(below[clear, k], below[clear, m]).pvalue
    if not p:
        return Found("differences of latents that did not change", 1.0, "there are none", "") if exact.all() else None
    worst = min(p, key=lambda one: p[one])
    remedy = "more latents; a nonlinear mixing; pairs in which one latent changes at a time, without noise of features"
    least = min(1.0, float(p[worst]) * len(p))
    return Found("differences of latents that did not change", least, f"least for {worst}", remedy)


def _displaced(fit: Fit, data: Data) -> Found | None:
    """Whether rows after are where the decoder moves rows before: of each perturbation and feature the mean of what is
    left, its slopes on the means of both rows and on their squares, and its variance against that under others,
    corrected for their number. Within `MOVED_OFF`, for networks are not exact."""
    allow = MOVED_OFF[fit.program.config["decoder"]]
    few = unfitted(fit, data)
    least = np.bincount(few.env[few.after & (few.partner >= 0)], minlength=len(data.env_names))[1:].min()
    few = data if least < MIN_PAIRS else few
    few = few.rows_at(few.spread(PAIRED_ROWS))
    batch = fit.batch_of(few)
    with drawing(), torch.no_grad():
        moved = fit.chains.chain(fit.reference).displaced(batch).double().cpu().numpy()
    x, after = batch.x.double().cpu().numpy(), np.flatnonzero(few.after & (few.partner >= 0))
    x, moved = x / np.maximum(x.std(0), 1e-12), moved / np.maximum(x.std(0), 1e-12)
    left, middle, env = (x - moved)[after], (x[after] + x[few.partner[after]]) / 2, few.env[after]
    middle = (middle - middle.mean(0)) / np.maximum(middle.std(0), 1e-12)
    terms = np.column_stack([np.ones(len(left)), middle, (middle**2 - 1) / np.sqrt(2)])
    p: dict[str, float] = {}
    number = 0
    for e in np.unique(env):
        here = env == e
        if here.sum() < MIN_PAIRS:
            continue
        products = left[here][:, :, None] * terms[here][:, None]  # (pair, feature, term)
        apart = np.square(left[here] - left[here].mean(0))
        others = apart.mean(0) if here.all() else left[~here].var(0)
        size = np.concatenate([np.abs(products.mean(0)), np.abs(apart.mean(0) - others)[:, None]], 1)
        error = np.concatenate([products.std(0), apart.std(0)[:, None]], 1) / np.sqrt(here.sum())
        allowed = np.full_like(size, allow)
        allowed[:, -1] = (2 * allow) ** 2
        z = ((size - allowed) / np.maximum(error, 1e-9)).max(1)
        number += size.size
        for name, value in zip(fit.names["feature"], z, strict=True):
            p[f"{name} under {data.env_names[e]}"] = 2 * float(stats.norm.sf(value))
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    first = "decoder='nonlinear'" if fit.program.config["decoder"] == "linear" else "more steps"
    remedy = f"{first}; more latents; actions that do the same in all pairs"
    return Found("where offsets move rows", min(1.0, p[worst] * number), f"least for {worst}", remedy)


def _carried(fit: Fit, data: Data) -> Found | None:
    """Whether latents after an action are where the mechanism told takes those of the row before: chi-squared of what
    an affine map explains of the rest, for each action, corrected for their number. Within half of what a map may do
    that nearly commutes, and a network's errors."""
    found = fit.chains.chain(fit.reference).carries()
    pairs, known = carried(fit, data)
    left, (rate, _) = equivariances.left(*pairs, known), nearly_free(found, pairs, known)
    allow = max(MOVED * rate / 2, 2 * found.error) if math.isfinite(rate) else 2 * found.error
    freedom, p = left.explained.shape[1] + 1, {}
    for u in np.flatnonzero(left.pairs > 0):
        noise = np.maximum(left.chance[u] * left.pairs[u] / freedom, 1e-12)  # of a latent
        size, beyond = ((left.pairs[u] * value / noise).max() for value in (left.explained[u], allow**2))
        p[data.env_names[u + 1]] = min(1.0, float(stats.ncx2.sf(size, freedom, beyond)) * left.explained.shape[1])
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    steps = "" if fit.program.config["decoder"] == "linear" else "more steps; "
    remedy = f"other mechanisms; more latents; {steps}actions that do the same in all pairs"
    return Found("where mechanisms take latents", min(1.0, p[worst] * len(p)), f"least for {worst}", remedy)


def _noiseless(fit: Fit, data: Data) -> Found | None:
    """Whether noise of features, as large among latents as in the directions without them, is more than `HEARD` of any
    latent: chi-squared, by how well those directions tell its size. Nothing is seen where there are none."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        share = program.noise_share(fit.batch_of(data))
    if share is None:
        return None
    freedom, worst = data.rows * (data.features - len(share)), int(share.argmax())
    p = float(stats.chi2.sf(freedom * float(share[worst]) / HEARD, freedom))
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    detail = f"{float(share[worst]):.1%} of the variance of {name}"
    return Found("noise of features in latents", p, detail, "fewer latents; features with less noise")


def _dynamics(fit: Fit, data: Data, tolerance: float = 0.0) -> Found | None:
    """Whether latents go on from the rows before by their fitted laws, and each by itself: of each Kolmogorov and
    Smirnov's test, and rank correlations with the row before, of values and of sizes; of any two rank correlations, in
    the same row and with the row before, and a test of independence by cells; corrected for their number. tolerance: of
    rank correlations of values, where fitted functions are not exact."""
    with drawing(), torch.no_grad():
        program = fit.chains.chain(fit.reference)
        u = program.innovations_below(fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))).double().cpu().numpy()
    if len(u) < MIN_PAIRS:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    size, p = np.abs(u - 0.5), {}
    bins = int(np.clip(np.sqrt(len(u) / 20), 2, 8))  # 20 rows a cell, or more
    for k, name in enumerate(names):
        p[f"the law of {name}"] = stats.kstest(u[:, k], "uniform").pvalue
        p[f"{name} and the row before"] = _correlated(u[1:, k], u[:-1, k], tolerance)
        p[f"sizes of {name} and of the row before"] = stats.spearmanr(size[1:, k], size[:-1, k]).pvalue
        for m, other in enumerate(names):
            if m < k:
                p[f"{other} and {name}"] = _correlated(u[:, k], u[:, m], tolerance)
                cells = np.histogram2d(u[:, k], u[:, m], bins=bins, range=[[0, 1], [0, 1]])[0]
                p[f"what {other} says of {name}"] = stats.chi2.sf(_independence(cells), (bins - 1) ** 2)
            if m != k:
                p[f"{name} and {other} in the row before"] = _correlated(u[1:, k], u[:-1, m], tolerance)
    worst = min(p, key=lambda one: p[one])
    remedy = "more lags or states; features without noise; latents that do not drive each other"
    least = min(1.0, float(p[worst]) * len(p))
    return Found("dynamics of latents", least, f"least for {worst}", remedy)


def _correlated(a: np.ndarray, b: np.ndarray, tolerance: float) -> float:
    """p-value of Spearman's correlation, but for `tolerance` (Fieller, Hartley & Pearson 1957)."""
    found = stats.spearmanr(a, b)
    if not tolerance:
        return float(found.pvalue)
    away = math.atanh(min(abs(float(found.statistic)), 1 - 1e-12)) - math.atanh(tolerance)
    return min(1.0, 2 * float(stats.norm.sf(away * math.sqrt((len(a) - 3) / 1.06))))


def _own_targets(fit: Fit, data: Data) -> Found | None:
    """Whether each latent's innovations are the same whichever other latents are targets: of each two, means and sizes
    in steps of which the other is a target and in those of which it is not, and its rank correlation with the other's
    value before where that is one; and of each with latents before where it is a target itself; corrected for their
    number. Correlations within `STEPPED`, for the functions that are fitted are not exact."""
    with drawing(), torch.no_grad():
        found = fit.chains.chain(fit.reference).stepped(fit.batch_of(data.rows_at(data.spread(MOST_ROWS))))
    below, hit, before = (v.double().cpu().numpy() for v in (found.below, found.hit, found.before))
    if len(below) < MIN_PAIRS:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    p: dict[str, float] = {}
    for k, name in enumerate(names):
        for m, other in enumerate(names):
            at = hit[:, m] > 0
            if min(at.sum(), (~at).sum()) < MIN_PAIRS:
                continue
            if m != k:
                p[f"{name} where {other} is a target"] = stats.mannwhitneyu(below[at, k], below[~at, k]).pvalue
                size = np.abs(below[:, k] - 0.5)
                p[f"sizes of {name} where {other} is a target"] = stats.mannwhitneyu(size[at], size[~at]).pvalue
                p[f"{name} and {other} before, a target"] = _correlated(below[at, k], before[at, m], STEPPED)
            own = hit[:, k] > 0
            if own.sum() >= MIN_PAIRS:
                p[f"{name}, a target, and {other} before"] = _correlated(below[own, k], before[own, m], STEPPED)
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    remedy = 'targets that were listed otherwise; intervention="soft", where they keep parents; more latents'
    least = min(1.0, float(p[worst]) * len(p))
    return Found("latents where others are targets", least, f"least for {worst}", remedy)


def _independence(cells: np.ndarray) -> float:
    """Pearson's statistic of a table of counts against the product of its margins."""
    expected = np.maximum(np.outer(cells.sum(1), cells.sum(0)) / cells.sum(), 1e-12)
    return float((np.square(cells - expected) / expected).sum())


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


def _independent_pairs(fit: Fit, data: Data, ranks: bool = False) -> Found | None:
    """Whether latents, in a draw of them, are independent, but for `TOGETHER`. ranks: of latents of any law."""
    z, _, names = _curves(fit, data)
    if z.shape[1] < 2:
        return None
    z = (stats.rankdata(z, axis=0) - 0.5) / len(z) if ranks else z
    p, (k, m), size = dependence.independence(z, TOGETHER)
    detail = f"{names[k]} and {names[m]} correlate by {math.sqrt(size):.2f}, over smooth functions of theirs"
    return Found("independence of two latents", p, detail, "more latents; a model whose latents may correlate")


def _additive(fit: Fit, data: Data, ranks: bool = False) -> Found | None:
    """Whether what smooth functions leave of a feature, in a draw of latents, goes with a latent or with two together,
    but for `BENT_OFF` of its variance. ranks: of latents of any law."""
    if not fit.in_use(fit.reference).any():
        return None
    p, j, which = _interactions(fit, data, ranks=ranks)
    detail = f"least for {data.feature_names[j]} and {' with '.join(which)}"
    what = "smooth functions" if ranks else "sums of curves"
    return Found(f"what {what} leave of features", p, detail, "latents that act together: sparse_vae")


def _interactions(fit: Fit, data: Data, *, ranks: bool = False, white: bool = False) -> tuple[float, int, list[str]]:
    """p that what is left of a feature goes with latents, the feature, and the latents' names. ranks: of latents that
    are not uniform, their ranks stand for them; white: those of latents made uncorrelated."""
    z, left, names = _curves(fit, data)
    if white:
        z = goodness.whitened(z, np.zeros(len(z), int))
    if ranks:
        z = (stats.rankdata(z, axis=0) - 0.5) / len(z)
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    spread, noise = batch.x.double().cpu().numpy().var(0), np.maximum(left.var(0), 1e-12)
    p, j, which = dependence.interactions(left / np.sqrt(noise), z, BENT_OFF * spread / noise)
    return p, j, [names[k] for k in which]


def _noise_law(fit: Fit, data: Data) -> Found | None:
    """Distance of what a draw of latents leaves of features from a normal law, but for `OFF`, corrected for their
    number."""
    _, left, _ = _curves(fit, data)
    far = [float(stats.kstest(one / max(one.std(), 1e-12), "norm").statistic) for one in (left - left.mean(0)).T]
    worst = int(np.argmax(far))
    p = min(1.0, float(stats.kstwo.sf(max(far[worst] - OFF, 0.0), len(left))) * len(far))
    detail = f"{far[worst]:.2f} for {data.feature_names[worst]}"
    return Found("noise of features against a normal law", p, detail, "a look at outlying rows; more latents")


def _mechanisms_add(fit: Fit, data: Data) -> Found | None:
    """Whether what curves of single parents leave of latents goes with a parent or with two together, but for
    `ADDED_OFF` of a latent's variance, more where ridge functions of features tell latents."""
    program, places = fit.chains.chain(fit.reference), fit.alignments[fit.reference].places
    with drawing(67), torch.no_grad():
        batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
        z, loc, parents = (part.double().cpu().numpy() for part in program.given_parents(batch))
    if len(z) < MIN_PAIRS:
        return None
    left = (z - loc) - (z - loc).mean(0)
    noise = np.maximum(left.var(0), 1e-12)
    tolerance = ADDED_OFF[program.config["mixing"]] * z.var(0) / noise
    p, k, which = dependence.interactions(left / np.sqrt(noise), parents, tolerance)
    actions = program.config["aux"]
    names = [f"action {data.aux_names[j]}" for j in range(actions)]
    names += [f"{fit.names['latent'][int(m)]} before" for m in places]
    detail = f"least for {fit.names['latent'][int(places[k])]} and {' with '.join(names[j] for j in which)}"
    return Found("what sums of curves leave of latents", p, detail, "more of what moves latents, told as numbers")


def _curves(fit: Fit, data: Data) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A draw of the latents in use (row, latent), what it leaves of features, and the latents' names."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(59), torch.no_grad():
        values = stories.drawn(program, batch)
        left = batch.x - stories.expected(program, batch, values)
    used, places = np.flatnonzero(fit.in_use(fit.reference)), fit.alignments[fit.reference].places
    names = [fit.names["latent"][int(places[k])] for k in used]
    return values["z"].double().cpu().numpy()[:, used], left.double().cpu().numpy(), names


TESTS: dict[str, Test] = {
    "moments": _moments,
    "gaussian": _gaussian,
    "factors": _factors,
    "residuals": _residuals,
    "clusters": _clusters,
    "covariance": _covariance,
    "features": _features,
    "given_environment": _given_environment,
    "nearly_gaussian": _nearly_gaussian,
    "nearly_equations": _nearly_equations,
    "nearly_conditioned": _nearly_conditioned,
    "left": _left,
    "counts_left": _counts_left,
    "nearly_left": partial(_left, tolerance=SHARED_BY_CHART),
    "closely_left": partial(_left, tolerance=SHARED_BY_CURVES),
    "differences": _differences,
    "displaced": _displaced,
    "carried": _carried,
    "views": _views,
    "noiseless": _noiseless,
    "dynamics": _dynamics,
    "nearly_dynamics": partial(_dynamics, tolerance=STEPPED),
    "own_targets": _own_targets,
    "explained": _explained,
    "independent_firing": _independent_firing,
    "independent": _independent,
    "noise": _noise,
    "independent_pairs": _independent_pairs,
    "independent_ranks": partial(_independent_pairs, ranks=True),
    "additive": _additive,
    "smooth": partial(_additive, ranks=True),
    "noise_law": _noise_law,
    "mechanisms_add": _mechanisms_add,
    "straight": _straight,
    "invariance": _invariance,
}
