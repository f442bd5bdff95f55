"""Tests of what linear factors leave of the features' moments, and of their number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import goodness
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import MOST_ROWS, TELLING, situation
from pyrocrl.judge.fit_tests.left import what_is_left
from pyrocrl.judge.fit_tests.shared import MOST_FEATURES, Found, Test, goes_with_latents
from pyrocrl.turns import drawing

HEARD = 0.1  # part of a latent's variance that may be noise of features: it correlates .95 with what is true


def _factors(fit: Fit, data: Data) -> Found | None:
    """Whether the observational rows, about their means in each technical batch, need more factors than the fit has
    latents. Where values are missing by rows that lack none, and by what a draw leaves of all that was measured."""
    if data.counts or data.features > MOST_FEATURES:
        return None
    if data.incomplete:
        whole = np.flatnonzero(data.known.all(1))
        both = [what_is_left(fit, data), _number(fit, data.rows_at(whole)) if len(whole) > 2 else None]
        found = [one for one in both if one is not None]
        worst = min(found, key=lambda one: one.p, default=None)
        return None if worst is None else replace(worst, p=min(1.0, worst.p * len(found)))
    return _number(fit, data)


def _number(fit: Fit, data: Data) -> Found | None:
    """Whether they do, of rows that lack nothing."""
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
    p, j, which = goes_with_latents(fit, data, ranks=True, white=True)
    detail = f"least for {data.feature_names[j]} and {' with '.join(which)}"
    return Found("what lines leave of features", p, detail, "a transformation of the features; nonlinear mixings")


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


TESTS: dict[str, Test] = {
    "factors": _factors,
    "residuals": _residuals,
    "clusters": _clusters,
    "covariance": _covariance,
    "views": _views,
    "noiseless": _noiseless,
    "straight": _straight,
}
