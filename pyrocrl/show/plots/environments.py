"""Latents by environment, and predictive checks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pyrocrl.judge.metrics import weighted_quantiles
from pyrocrl.show.plots.numbers import (
    chain_weights,
    group_of,
    labels_of,
    latents_in_use,
    means_by_environment,
    observed_rows,
    shifts,
)
from pyrocrl.show.plots.style import BLUE, DIVERGING, GREY, INK, RED, Floats, draw_grid, draw_violins, shortened, styled

PREDICTED = 200  # draws that a predictive check looks at


@styled
def latents_by_env(tree: xr.DataTree, reference: str | None = None, most: int = 6) -> Figure:
    """How environments move the latents: standardised mean shifts from the `reference` environment, all of them,
    and the distributions of posterior means for the `most` latents that move furthest (see `shifts`).

    Latents that no feature loads on are left out: what they show is noise in whatever units.
    """
    used = np.flatnonzero(latents_in_use(tree))
    z, labels, names = means_by_environment(tree)
    z = z.isel(latent=used)
    moved = shifts(tree, reference).isel(latent=used)
    base = moved.attrs["reference"] if moved.attrs["reference"] in names else None
    values, latents = z.to_numpy(), labels_of(z, "latent")
    if len(names) == 1:
        return _one_environment(values, latents, names[0])
    table = moved["shift"].to_numpy()
    # similar environments together: by the latent they move most, then by how far
    rest = [e for e in range(len(names)) if moved["env"].values[e] != base]
    size = np.nan_to_num(np.abs(table))
    rest.sort(key=lambda e: (int(size[e].argmax()), -float(size[e].max())))
    order = [e for e in range(len(names)) if e not in rest] + rest
    envs = [str(e) for e in moved["env"].to_numpy()]
    most_moved = np.argsort(-size.max(0), kind="stable")[: max(1, most)]

    height = max(0.185 * len(names), 0.19 * len(latents), 2.4) + 1.2
    figure = Figure(figsize=(4.2 + 0.27 * len(latents) + 4.6, height), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3.2 + 0.27 * len(latents), 5.6))[0]
    axes = left.subplots()
    limit = max(1.0, float(size.max()))  # shifts below one standard deviation are to look weak
    image = axes.imshow(
        table[order], cmap=DIVERGING, norm=Normalize(-limit, limit), aspect="auto", interpolation="nearest"
    )
    draw_grid(axes, len(names), len(latents))
    axes.set_xticks(range(len(latents)), latents, rotation=90 if len(latents) > 4 else 0)
    axes.set_yticks(range(len(names)), [shortened(envs[e]) for e in order], size=8 if len(names) < 40 else 5)
    axes.set_title(f"Shift from {shortened(moved.attrs['reference'])}, in sd")
    if len(names) * len(latents) <= 60:
        for row, e in enumerate(order):
            for k in range(len(latents)):
                shade = "white" if size[e, k] > 0.75 * limit else INK
                text = "0" if envs[e] == base else f"{table[e, k]:+.1f}".replace("-", "−")
                axes.text(k, row, text, ha="center", va="center", size=7, color=shade)
    else:
        bar = left.colorbar(image, ax=axes, shrink=min(1.0, 2.0 / height), aspect=14, pad=0.02)
        bar.outline.set_visible(False)

    columns = min(2, len(most_moved)) if len(most_moved) < 5 else 3
    right.supxlabel("posterior mean of the latent", size=8.5)
    grid = right.subplots(-(-len(most_moved) // columns), columns, squeeze=False)
    each = max(2, min(6, int(height / grid.shape[0] / 0.2) - 3))
    for place, k in zip(grid.flat, most_moved, strict=False):
        far = sorted(rest, key=lambda e: -size[e, k])[:each]
        far.sort(key=lambda e: table[e, k])
        drawn = ([] if base is None else [envs.index(base)]) + far
        groups = [values[labels == envs[e], k] for e in drawn]
        colours = [GREY if envs[e] == base else (RED if table[e, k] < 0 else BLUE) for e in drawn]
        draw_violins(place, groups, [shortened(envs[e], 14) for e in drawn], colours)
        place.set_title(latents[k])
        place.locator_params(axis="x", nbins=3)
        if base is not None:
            place.axvline(float(np.median(groups[0])), color=GREY, lw=0.7, zorder=0)
    for place in list(grid.flat)[len(most_moved) :]:
        place.set_axis_off()
    return figure


@styled
def predictive(tree: xr.DataTree) -> Figure:
    """Posterior predictive check: each feature's mean, standard deviation and share of zeros, observed against
    replicated (median and central 90 % interval over weighted draws). Red where the interval misses.
    """
    observed, _ = observed_rows(tree)
    replicated = group_of(tree, "posterior_predictive")["x"].transpose("chain", "draw", "data", "feature")
    if "data" in replicated.coords:  # of large data only some rows are replicated: compare like with like
        rows = group_of(tree, "observed_data").indexes["data"].get_indexer(replicated["data"].to_numpy())
        observed = observed[rows]
    chains, draws = replicated.shape[:2]
    looked = np.unique(np.linspace(0, draws - 1, max(1, min(draws, PREDICTED // chains))).astype(int))
    statistics: list[tuple[str, Callable[[Floats], Floats]]] = [
        ("mean", lambda x: np.nanmean(x, 0)),
        ("standard deviation", lambda x: np.nanstd(x, 0)),
    ]
    missing = np.isnan(observed)
    if (observed == 0).any():
        statistics.append(("share of zeros", lambda x: (x == 0).sum(0) / (~missing).sum(0)))
    drawn: list[list[Floats]] = [[] for _ in statistics]
    for c in range(chains):
        for d in looked:
            x = np.where(missing, np.nan, replicated[c, d].to_numpy())
            for out, (_, statistic) in zip(drawn, statistics, strict=True):
                out.append(statistic(x))
    weight = np.repeat(chain_weights(tree) / len(looked), len(looked))
    figure = Figure(figsize=(2.95 * len(statistics) + 0.2, 3.3), layout="constrained")
    panels = figure.subplots(1, len(statistics), squeeze=False)[0]
    for axes, (name, statistic), out in zip(panels, statistics, drawn, strict=True):
        seen = statistic(observed)
        low, middle, high = weighted_quantiles(np.stack(out), weight, (0.05, 0.5, 0.95))
        inside = (seen >= low) & (seen <= high)
        for where, colour in ((inside, BLUE), (~inside, RED)):
            axes.vlines(seen[where], low[where], high[where], color=colour, alpha=0.55, lw=1)
            axes.scatter(seen[where], middle[where], s=12, color=colour, alpha=0.8, linewidth=0, zorder=3)
        ends = [min(seen.min(), low.min()), max(seen.max(), high.max())]
        axes.plot(ends, ends, color=GREY, lw=0.8, zorder=0)
        if min(seen.min(), low.min()) > 0 and seen.max() > 50 * seen.min():
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel("observed")
        axes.set_title(f"{name[0].upper()}{name[1:]}: {inside.sum()} of {len(seen)} inside")
    panels[0].set_ylabel("replicated, 90 % interval")
    return figure


def _one_environment(values: Floats, latents: list[str], name: str) -> Figure:
    figure = Figure(figsize=(4.6, 0.3 * len(latents) + 1.1), layout="constrained")
    axes = figure.subplots()
    draw_violins(axes, list(values.T), latents, [BLUE] * len(latents))
    axes.set_title(f"Posterior means of the latents, {shortened(name)}")
    return figure
