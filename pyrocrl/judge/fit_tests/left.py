"""Tests of what a draw of the latents leaves of features, and of whether latents are independent."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.exact import dependence, goodness
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.codes import MIN_FIRING
from pyrocrl.judge.checks.shared import FIRING_ROWS, MOST_ROWS, latents_of
from pyrocrl.judge.fit_tests.shared import MOST_FEATURES, Found, Test, draw_and_left, goes_with_latents
from pyrocrl.turns import drawing

SHARED = 0.03  # share of features' variances up to which a decoder may be off
SHARED_BY_CHART = 0.05  # ... one of latents that are read by contrasts alone, without the decoder
SHARED_BY_COUNTS = 0.05  # ... log rates that are linear in the latents
COUNTED = 30  # rows in which a feature was counted at all, below which its moments are not told
SHARED_BY_CURVES = 0.01  # ... one of curves that are drawn, not trained
BEYOND, UNEXPLAINED = 0.001, 0.03  # share of rows that noise leaves far off, and up to which others may be
CORRELATED = 0.1  # correlation of the firing of two latents that is let be
EXTRA = 0.1  # part of noise by which its variance in a direction may be larger
OFF = 0.05  # difference of two distributions of what is left up to which a fit may be off
DEPENDENT = 0.05  # rank correlation of two latents' sizes that their estimates may have
TOGETHER_READ = 0.0001  # ... where a fit makes latents as independent as it can, and x tells them
TOGETHER = 0.01  # squared correlation of two latents, over smooth functions of theirs, that is let be


def what_is_left(fit: Fit, data: Data, tolerance: float = SHARED) -> Found | None:
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
    if batch.known is None:
        spread = x.std(0)
    else:  # what was not measured leaves nothing
        known = batch.known.cpu().numpy()
        left, spread = np.where(known, left, np.nan), np.nanstd(np.where(known, x, np.nan), 0)
    return _shared_left(left / np.maximum(spread, 1e-12), rows, tolerance)


def _left_beyond_error(fit: Fit, data: Data) -> Found | None:
    """The same of what latents at their means leave, within `SHARED` and what their own errors make features share: a
    draw of latents that are read by a network, without the decoder, is off by these errors once more, and whatever is
    off by them is shared."""
    rows = data.rows_at(data.spread(MOST_ROWS))
    program = fit.chains.chain(fit.reference)
    batch = fit.batch_of(rows).annealed()
    with drawing(43), torch.no_grad():
        values = stories.drawn(program, batch)
        middle = stories.expected(program, batch, values | {"z": program.latents(batch)})
        left, error = batch.x - middle, stories.expected(program, batch, values) - middle
    x, left, error = (value.double().cpu().numpy() for value in (batch.x, left, error))
    spread = np.maximum(x.std(0), 1e-12)
    return _shared_left(left / spread, rows, SHARED + np.abs(np.cov((error / spread).T)))


def _shared_left(left: np.ndarray, rows: Data, tolerance: float | np.ndarray) -> Found:
    """left: (row, feature) of some rows, in deviations of features."""
    found = goodness.shared(left, rows.env, tolerance)
    name = rows.feature_names[found.column]
    if found.group is None:
        assert found.other is not None
        detail = f"{name} and {rows.feature_names[found.other]} share {abs(found.size):.0%} of their variances"
    else:
        detail = f"that of {name} changes by {abs(found.size):.0%} of its variance in {rows.env_names[found.group]}"
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
    leave what they differ in. Of counts it is what makes each normal (`goodness.count_residuals`)."""
    batch = fit.batch_of(data.rows_at(data.spread(FIRING_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(47), torch.no_grad():
        values = stories.drawn(program, batch)
        if data.counts:
            law = stories.told(program, batch, values).nodes["x"]["fn"].base_dist
            x, mean, dispersion = (part.double().cpu().numpy() for part in (batch.x, law.mean, law.dispersion))
            left = goodness.count_residuals(x, mean, dispersion, np.random.default_rng(47))
        else:
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


def _independent_pairs(fit: Fit, data: Data, ranks: bool = False) -> Found | None:
    """Whether latents, in a draw of them, are independent, but for `TOGETHER`. ranks: of latents of any law."""
    z, _, names = draw_and_left(fit, data)
    if z.shape[1] < 2:
        return None
    z = (stats.rankdata(z, axis=0) - 0.5) / len(z) if ranks else z
    p, (k, m), size = dependence.independence(z, TOGETHER)
    detail = f"{names[k]} and {names[m]} correlate by {math.sqrt(size):.2f}, over smooth functions of theirs"
    return Found("independence of two latents", p, detail, "more latents; a model whose latents may correlate")


def _independent_read(fit: Fit, data: Data) -> Found | None:
    """The same of latents of any law, as they are read, but for `TOGETHER_READ`: of models in which x tells them."""
    z, _ = latents_of(fit, data, aligned=False)
    p, pair, size = dependence.independence((stats.rankdata(z, axis=0) - 0.5) / len(z), TOGETHER_READ)
    places = fit.alignments[fit.reference].places
    a, b = (fit.names["latent"][int(places[k])] for k in pair)
    detail = f"{a} and {b} correlate by {math.sqrt(size):.2f}, over smooth functions of theirs"
    return Found("independence of two latents", p, detail, "a model whose latents may correlate; a map that bends more")


def _additive(fit: Fit, data: Data, ranks: bool = False) -> Found | None:
    """Whether what smooth functions leave of a feature, in a draw of latents, goes with a latent or with two together,
    but for `BENT_OFF` of its variance. ranks: of latents of any law."""
    if not fit.in_use(fit.reference).any():
        return None
    p, j, which = goes_with_latents(fit, data, ranks=ranks)
    detail = f"least for {data.feature_names[j]} and {' with '.join(which)}"
    what = "smooth functions" if ranks else "sums of curves"
    return Found(f"what {what} leave of features", p, detail, "latents that act together: sparse_vae")


def _noise_law(fit: Fit, data: Data) -> Found | None:
    """Distance of what a draw of latents leaves of features from a normal law, but for `OFF`, corrected for their
    number."""
    _, left, _ = draw_and_left(fit, data)
    far = [float(stats.kstest(one / max(one.std(), 1e-12), "norm").statistic) for one in (left - left.mean(0)).T]
    worst = int(np.argmax(far))
    p = min(1.0, float(stats.kstwo.sf(max(far[worst] - OFF, 0.0), len(left))) * len(far))
    detail = f"{far[worst]:.2f} for {data.feature_names[worst]}"
    return Found("noise of features against a normal law", p, detail, "a look at outlying rows; more latents")


TESTS: dict[str, Test] = {
    "left": what_is_left,
    "counts_left": _counts_left,
    "nearly_left": partial(what_is_left, tolerance=SHARED_BY_CHART),
    "left_beyond_error": _left_beyond_error,
    "closely_left": partial(what_is_left, tolerance=SHARED_BY_CURVES),
    "explained": _explained,
    "independent_firing": _independent_firing,
    "independent": _independent,
    "noise": _noise,
    "independent_pairs": _independent_pairs,
    "independent_read": _independent_read,
    "independent_ranks": partial(_independent_pairs, ranks=True),
    "additive": _additive,
    "smooth": partial(_additive, ranks=True),
    "noise_law": _noise_law,
}
