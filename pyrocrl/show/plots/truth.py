"""Estimates and probabilities against a known truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import beta

from pyrocrl.errors import reject
from pyrocrl.judge.metrics import mcc
from pyrocrl.show.plots.numbers import standardised
from pyrocrl.show.plots.style import BLUE, GREY, shortened, styled

POINTS = 2_000  # points of a scatter plot


@styled
def recovery(z_true: ArrayLike, z_est: ArrayLike, names: Sequence[str] | None = None) -> Figure:
    """Estimated against true latents (data, latent), each true one beside its partner under the best matching."""
    true, est = np.asarray(z_true, dtype=np.float64), np.asarray(z_est, dtype=np.float64)
    score, partner = mcc(true, est, return_assignment=True)
    columns = min(5, true.shape[1])
    rows = -(-true.shape[1] // columns)
    figure = Figure(figsize=(max(1.9 * columns, 3.4), 1.95 * rows + 0.5), layout="constrained")
    figure.suptitle(f"Recovery of the true latents, mean |r| = {score:.3f}", x=0.01, ha="left", size=9.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    some = np.unique(np.linspace(0, len(true) - 1, min(len(true), POINTS)).astype(int))
    for k, axes in enumerate(grid.flat):
        if k >= true.shape[1]:
            axes.set_axis_off()
            continue
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"true {k}")
        if partner[k] < 0:
            axes.text(0.5, 0.5, "no partner", transform=axes.transAxes, ha="center", va="center", color=GREY)
            continue
        own = est[:, partner[k]]
        r = float((standardised(true[:, [k]]) * standardised(own[:, None])).mean())
        axes.scatter(true[some, k], own[some], s=4, color=BLUE, alpha=0.35, linewidth=0, rasterized=True)
        axes.set_ylabel(shortened(names[partner[k]]) if names is not None else f"latent {partner[k]}")
        axes.set_title(f"r = {r:+.3f}".replace("-", "−"), size=8.5, pad=4)
    return figure


@styled
def calibration(probabilities: ArrayLike, truth: ArrayLike, bins: int = 10) -> Figure:
    """Reliability of probabilities: share of true entries in each of `bins` equal bins, with its 90 % interval.

    probabilities and truth (0 or 1) have one shape. Intervals are those of a Beta posterior under a flat prior.
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    if p.shape != t.shape or not p.size:
        reject("truth", f"shape {t.shape}", f"the shape of probabilities, {p.shape}, not empty")
    if not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1):
        reject("probabilities", f"{np.ravel(p)[~((p >= 0) & (p <= 1)).ravel()][0]}", "numbers from 0 to 1")
    if not np.isin(t, (0, 1)).all():
        reject("truth", f"{t[~np.isin(t, (0, 1))][0]}", "0 or 1")
    p, t = p.ravel(), t.ravel().astype(bool)
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    hits = np.bincount(bin_of, weights=t, minlength=bins)
    full = count > 0
    mean = np.bincount(bin_of, weights=p, minlength=bins)[full] / count[full]
    share = hits[full] / count[full]
    low, high = beta.ppf([[0.05], [0.95]], hits[full] + 1, count[full] - hits[full] + 1)
    figure = Figure(figsize=(3.8, 4.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    top.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    top.vlines(mean, low, high, color=BLUE, alpha=0.6, lw=1.4)
    top.plot(mean, share, "o-", color=BLUE, ms=4, lw=1)
    top.set_ylim(-0.02, 1.02)
    top.set_xlim(-0.02, 1.02)
    top.set_ylabel("share that is true")
    top.set_title("Calibration of probabilities")
    edges = np.linspace(0, 1, bins + 1)
    bars = bottom.bar(edges[:-1], count, width=1 / bins, align="edge", color="#a3c2de", edgecolor="white", lw=0.8)
    bottom.bar_label(bars, [str(c) if c else "" for c in count], size=6.5, padding=1)
    bottom.set_yticks([])
    bottom.spines["left"].set_visible(False)
    bottom.set_ylabel("entries")
    bottom.set_xlabel("probability")
    return figure
