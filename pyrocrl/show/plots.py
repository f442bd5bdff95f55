"""Pictures of a posterior: masks, graphs, agreement of chains, latents by environment, fit and calibration.

Every function takes the `xarray.DataTree` that `fit.posterior()` returns (or plain arrays) and returns a
`matplotlib.figure.Figure`; nothing touches pyplot's state, so save it with `figure.savefig(path)` or let a notebook
show it. Averages over chains use the tree's `chain_weight`. The numbers behind a picture are functions as well:
`latent_means`, `inclusion`, `loadings` and `shifts`. A tree without what a picture needs raises InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import networkx as nx
import numpy as np
import xarray as xr
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.patches import FancyArrowPatch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, rankdata

from pyrocrl.errors import one_of, reject
from pyrocrl.judge.metrics import mcc, weighted_quantiles
from pyrocrl.turns import turn

Floats = NDArray[np.float64]
P = ParamSpec("P")

SHOWN = 0.1  # probabilities below are not drawn
PRESENT = 0.5  # probability from which an entry or edge counts as present
MOST_ROWS = 40  # features up to which all are shown and named
LABELLED = 45  # rows of a heat map up to which each is named
POINTS = 2_000  # points of a scatter plot
INTERVAL = (0.05, 0.5, 0.95)  # quantiles of a median with its 90 % interval
PREDICTED = 200  # draws that a predictive check looks at

# blue and vermilion differ for every kind of colour vision, and in grey
BLUE, RED, INK, GREY, FAINT = "#2b6ca3", "#c4502b", "#2a2f36", "#8b939c", "#e3e6ea"
DIVERGING = LinearSegmentedColormap.from_list("pyrocrl", [RED, "#e9b49f", "#ffffff", "#a3c2de", BLUE])
SEQUENTIAL = LinearSegmentedColormap.from_list("pyrocrl_one", ["#ffffff", "#a3c2de", BLUE, "#17395a"])
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names are users': "$" is a dollar
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.unicode_minus": True,
}


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with turn(), mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


# -- the numbers behind the pictures ---------------------------------------------------------------------------


def chain_weights(tree: xr.DataTree) -> Floats:
    """(chain,) the tree's stacking weights, summing to 1; equal where it has none."""
    stats = _group(tree, "sample_stats", required=False)
    if stats is not None and "chain_weight" in stats:
        weights = np.asarray(stats["chain_weight"].to_numpy(), dtype=np.float64)
        return np.asarray(weights / weights.sum())
    chains = _group(tree, "posterior").sizes["chain"]
    return np.full(chains, 1.0 / chains)


def posterior_mean(tree: xr.DataTree, name: str) -> xr.DataArray | None:
    """The posterior mean of a variable over draws and weighted chains; None where the tree has no such variable."""
    posterior = _group(tree, "posterior")
    if name not in posterior:
        return None
    value = posterior[name].transpose("chain", "draw", ...)
    by_chain = value.to_numpy().mean(1, dtype=np.float64)
    mean = np.tensordot(chain_weights(tree), by_chain, 1)
    return xr.DataArray(mean, dims=value.dims[2:], coords={d: value[d] for d in value.dims[2:] if d in value.coords})


def latent_means(tree: xr.DataTree) -> xr.DataArray:
    """(data, latent) posterior means of the latents."""
    mean = posterior_mean(tree, "z")
    if mean is None:
        reject("tree", "no z in its posterior", "the tree of a model with latents z")
    return _named(mean.transpose("data", "latent"))


def inclusion(tree: xr.DataTree) -> xr.DataArray | None:
    """(feature, latent) posterior inclusion probabilities of the mask, or None."""
    mean = posterior_mean(tree, "mask")
    return None if mean is None else _named(mean.transpose("feature", "latent"))


def loadings(tree: xr.DataTree) -> xr.DataArray:
    """(feature, latent) signed loadings; the attribute `kind` says of which kind.

    "loading": the posterior mean of the model's `loadings`, times its mask where it has one. "correlation", for
    models without: of the feature (log(1 + x / size factor) for counts) with the latent's posterior mean.
    """
    posterior = _group(tree, "posterior")
    if "loadings" in posterior and {"feature", "latent"} <= set(posterior["loadings"].dims):
        value = posterior["loadings"] * posterior["mask"] if "mask" in posterior else posterior["loadings"]
        only = xr.DataTree.from_dict({"posterior": xr.Dataset({"loadings": value}), "sample_stats": _weight_set(tree)})
        mean = posterior_mean(only, "loadings")
        assert mean is not None
        return _named(mean.transpose("feature", "latent")).assign_attrs(kind="loading")
    z = latent_means(tree)
    x, names = _seen(tree)
    r = _correlation(x, z.to_numpy())
    return xr.DataArray(
        r, dims=("feature", "latent"), coords={"feature": names, "latent": z["latent"]}, attrs={"kind": "correlation"}
    )


def explained(tree: xr.DataTree) -> NDArray[np.float64]:
    """(latent,) mean squared correlation of the features with each latent: the share of their variance it goes with.

    Latents that are correlated share what they have in common.
    """
    x, _ = _seen(tree)
    return (_correlation(x, latent_means(tree).to_numpy()) ** 2).mean(0)


def ranking(strength: ArrayLike, loading: ArrayLike) -> NDArray[np.int64]:
    """Positions of features by decreasing probability; those within a hundredth by the size of their loading."""
    p, size = np.asarray(strength, dtype=np.float64), np.abs(np.asarray(loading, dtype=np.float64))
    return np.lexsort((-size, -np.round(p, 2)))


def shifts(tree: xr.DataTree, reference: str | None = None) -> xr.Dataset:
    """How each environment moves the latents' posterior means away from the `reference` environment.

    shift (env, latent): difference of means in standard deviations of the reference; spread (env, latent): ratio
    of standard deviations; auroc (env, latent): the probability that a row of the environment lies above one of
    the reference; rows (env,). `reference`: a name; None = the control, the tree's attribute `control`;
    without one an environment is compared with all other rows. The attribute `reference` says which; NaN where there
    is nothing to compare with.
    """
    z, labels, names = _by_environment(tree)
    reference = _reference(tree, names, reference)
    names = [reference, *(n for n in names if n != reference)] if reference else names
    values = z.to_numpy()
    shift, ratio, auroc = np.full((3, len(names), values.shape[1]), np.nan)
    rows = np.zeros(len(names), dtype=np.int64)
    for e, name in enumerate(names):
        here = labels == name
        there = ~here if reference is None else labels == reference
        rows[e] = here.sum()
        if not there.any():
            continue
        base = values[there]
        spread = base.std(0)
        spread = np.where(spread > 0, spread, np.where(values.std(0) > 0, values.std(0), 1.0))
        shift[e] = (values[here].mean(0) - base.mean(0)) / spread
        ratio[e] = values[here].std(0) / spread
        auroc[e] = 0.5 if name == reference else _auroc(values[here], base)
    return xr.Dataset(
        {
            "shift": (("env", "latent"), shift),
            "spread": (("env", "latent"), ratio),
            "auroc": (("env", "latent"), auroc),
            "rows": ("env", rows),
        },
        coords={"env": names, "latent": z["latent"].to_numpy()},
        attrs={"reference": reference or "all other rows"},
    )


def edges(tree: xr.DataTree) -> xr.Dataset | None:
    """Edges of probability from .1 on, the surest first: parent, child and probability (edge,), and where the model has
    weights also weight (edge, level), its quantiles .05, .5 and .95 over draws with the edge; None without a graph."""
    mean = posterior_mean(tree, "graph")
    if mean is None:
        return None
    mean = mean.transpose("parent", "child")
    p, names = mean.to_numpy(), [str(n) for n in _named(mean)["parent"].to_numpy()]
    pairs = [(i, j) for i, j in np.argwhere(p >= SHOWN) if i != j]
    pairs.sort(key=lambda pair: -p[pair])
    out: dict[str, Any] = {
        "parent": ("edge", [names[i] for i, _ in pairs]),
        "child": ("edge", [names[j] for _, j in pairs]),
        "probability": ("edge", np.array([p[pair] for pair in pairs])),
    }
    posterior = _group(tree, "posterior")
    if "weight" in posterior and {"parent", "child"} <= set(posterior["weight"].dims):
        order = ("chain", "draw", "parent", "child")
        weight, present = (posterior[v].transpose(*order).to_numpy() for v in ("weight", "graph"))
        share = np.broadcast_to(chain_weights(tree)[:, None], weight.shape[:2])
        levels = np.full((len(pairs), 3), np.nan)
        for at, (i, j) in enumerate(pairs):
            use = (present[:, :, i, j] > 0) & (share > 0)
            if use.any():
                levels[at] = np.ravel(weighted_quantiles(weight[:, :, i, j][use], share[use], INTERVAL))
        out["weight"] = (("edge", "level"), levels)
    return xr.Dataset(out, coords={"level": list(INTERVAL)})


def strongest(found: xr.Dataset, k: int, top: int) -> NDArray[np.int64]:
    """Positions of the `top` features that setting latent k changes most, of those whose interval leaves out 0;
    found: of `show.effects.effects`."""
    low, middle, high = found["of_features"].to_numpy()[k].T
    order = np.argsort(-np.abs(middle), kind="stable")
    return order[(low * high > 0)[order]][:top]


# -- masks and graphs ------------------------------------------------------------------------------------------


@_styled
def mask(tree: xr.DataTree, top: int = 5) -> Figure:
    """Which features load on which latents: inclusion probability as depth, sign of the loading as colour.

    Features are ordered by the latent they load on; beyond 40, those without any probability above .1 are left
    out. Beside each latent stand its `top` features of probability above .5.
    """
    pip = inclusion(tree)
    if pip is None:
        reject("tree", "no mask in its posterior", "the tree of a model with a mask")
    loading = loadings(tree).to_numpy()
    sign = np.where(loading < 0, -1.0, 1.0)
    p, features, latents = pip.to_numpy(), _labels(pip, "feature"), _labels(pip, "latent")
    owner = p.argmax(1)
    order = np.lexsort((-(p * sign)[np.arange(len(p)), owner], owner))
    shown = order[p[order].max(1) > SHOWN] if len(order) > MOST_ROWS else order
    if not len(shown):
        shown = order
    height = float(np.clip(0.19 * len(shown), 0.25 * len(latents), 7.0)) + 1.7
    wide = min(0.34 * len(latents), 8.0)
    figure = Figure(figsize=(wide + 6.6, max(height, 3.0)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(wide + 1.2, 5.2))
    image = left.imshow(
        (p * sign)[shown], cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="nearest", rasterized=True
    )
    _grid(left, len(shown), len(latents))
    left.set_xticks(range(len(latents)), latents, rotation=90 if len(latents) > 4 else 0)
    if len(shown) <= LABELLED:
        left.set_yticks(range(len(shown)), [features[j] for j in shown])
    else:
        left.set_yticks([])
    if len(shown) < len(features):  # not in the title, which would run into the other one
        left.set_ylabel(f"{len(shown)} of {len(features)} features, PIP > {SHOWN}")
    elif len(shown) > LABELLED:
        left.set_ylabel(f"{len(shown)} features")
    left.set_title("Inclusion probabilities (PIP)")
    bar = figure.colorbar(image, ax=right, location="bottom", anchor=(0.1, 0.5), shrink=0.45, aspect=18, pad=0.02)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1], labels=["1", ".5", "0", ".5", "1"])
    bar.set_label("PIP, loads −  |  loads +")
    bar.outline.set_visible(False)

    right.set_axis_off()
    right.set_xlim(0, 1)
    right.set_title(f"Top features by PIP (above {PRESENT})")
    places = np.linspace(0, len(shown) - 1, 2 * len(latents) + 1)[1::2]
    for k, (name, place) in enumerate(zip(latents, places, strict=True)):
        best = [j for j in ranking(p[:, k], loading[:, k]) if p[j, k] > PRESENT]
        words = [(f"{name}:", INK)]
        words += [
            (f"{'−' if sign[j, k] < 0 else '+'}{features[j]}", RED if sign[j, k] < 0 else BLUE) for j in best[:top]
        ]
        if not best:
            words.append((f"none (highest {p[:, k].max():.2f})", GREY))
        if len(best) > top:
            words.append((f"and {len(best) - top} more", GREY))
        own = np.flatnonzero((owner[shown] == k) & (p[shown].max(1) > SHOWN))
        if own.size:
            right.plot([0, 0.05], [own.mean(), place], color="#c3c9d0", lw=0.8, clip_on=False)
        _write_words(right, (0.06, place), words)
    return figure


@_styled
def graph(tree: xr.DataTree) -> Figure:
    """The graph over latents: each edge's posterior probability as width and label, dashed from .1 to .5.

    Where the model has edge weights, their mean given the edge colours it: blue raises, red lowers the child.
    """
    edges = posterior_mean(tree, "graph")
    if edges is None:
        reject("tree", "no graph in its posterior", "the tree of a model with a graph")
    edges = edges.transpose("parent", "child")
    p, names = edges.to_numpy(), _labels(edges, "parent")
    weight = _edge_weights(tree)
    drawn = [(int(i), int(j)) for i, j in np.argwhere(p >= SHOWN) if i != j]
    place = _layout(p, drawn)
    low, high = place.min(0), place.max(0)
    margin = 0.55
    width, height = np.maximum(high - low, 0.1) + 2 * margin
    figure = Figure(figsize=(max(width, 4.2), height + 0.75), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    title = "Graph over latents, with edge probabilities" if drawn else f"No edge has probability ≥ {SHOWN}"
    figure.suptitle(title, x=0.01, ha="left", size=STYLE["axes.titlesize"])
    written: list[Floats] = []
    for i, j in drawn:
        bend = 0.18 if (j, i) in drawn else 0.0
        colour = INK if weight is None else (RED if weight[i, j] < 0 else BLUE)
        solid = p[i, j] >= PRESENT
        axes.add_patch(
            FancyArrowPatch(
                place[i],
                place[j],
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>,head_width=0.22,head_length=0.45",
                mutation_scale=11,
                shrinkA=21,
                shrinkB=21,
                lw=0.5 + 2.0 * p[i, j],
                alpha=0.35 + 0.65 * p[i, j],
                color=colour,
                linestyle="-" if solid else (0, (3, 2)),
                joinstyle="miter",
                zorder=1,
            )
        )
        middle = _label_place(place, i, j, bend, written)
        written.append(middle)
        axes.text(
            middle[0],
            middle[1],
            _probability(p[i, j]),
            size=7,
            color=colour,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none"},
            zorder=3,
        )
    axes.scatter(place[:, 0], place[:, 1], s=40**2, color="#eef2f6", edgecolor=GREY, linewidth=0.8, zorder=2)
    for (x, y), name in zip(place, names, strict=True):
        axes.text(x, y, _short(name, 9), ha="center", va="center", size=7, zorder=4)
    handles = [
        Line2D([], [], color=INK, lw=2, label=f"≥ {PRESENT}"),
        Line2D([], [], color=INK, lw=1, ls=(0, (3, 2)), alpha=0.6, label=f"{SHOWN} to {PRESENT}"),
    ]
    if weight is not None:
        handles += [Line2D([], [], color=BLUE, lw=2, label="raises"), Line2D([], [], color=RED, lw=2, label="lowers")]
    if drawn:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.8, columnspacing=1.2)
    return figure


@_styled
def weights(tree: xr.DataTree) -> Figure:
    """Edge weights, in units of the latents: median and 90 % interval of the draws that have the edge.

    One row an edge of probability from .1 on, the surest first, with its probability.
    """
    found = edges(tree)
    if found is None or "weight" not in found:
        reject("tree", "no weight in its posterior", "the tree of a model with edge weights")
    figure = Figure(figsize=(5.6, 0.27 * max(found.sizes["edge"], 1) + 0.95), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Weight of each edge, given that it exists" if found.sizes["edge"] else f"No edge above {SHOWN}")
    labels = [
        f"{_short(i, 12)} → {_short(j, 12)}   {_probability(p)}"
        for i, j, p in zip(found["parent"].values, found["child"].values, found["probability"].values, strict=True)
    ]
    _whiskers(axes, found["weight"].to_numpy(), labels)
    axes.set_xlabel("change of the child for one unit of the parent")
    return figure


@_styled
def effects(found: xr.Dataset, top: int = 6) -> Figure:
    """What setting each latent changes (see `show.effects.effects`): all latents on the left, on the right the `top`
    features that change most. Dots are medians, bars 90 % intervals; grey where the interval holds 0.
    """
    names = [_short(str(v), 14) for v in found["latent"].to_numpy()]
    features = [str(v) for v in found["feature"].to_numpy()]
    count = found.sizes["do"]
    lines = max(len(names), top)
    figure = Figure(figsize=(8.6, count * (0.165 * lines + 0.42) + 0.35), layout="constrained")
    grid = figure.subplots(count, 2, squeeze=False, sharex="col", width_ratios=(1, 1.25))
    for k in range(count):
        left, right = grid[k]
        _whiskers(left, found["of_latents"].to_numpy()[k], names, hollow=k)
        left.set_title(f"do({_short(str(found['do'].values[k]), 14)} = mean + 1 sd)")
        best = strongest(found, k, top)
        _whiskers(right, found["of_features"].to_numpy()[k][best], [_short(features[j], 16) for j in best])
        right.set_ylim(max(len(best), 3) - 0.4, -0.6)
        if not len(best):
            right.text(0.5, 0.5, "no feature changes for sure", transform=right.transAxes, ha="center", color=GREY)
    grid[-1, 0].set_xlabel("change of the latents, in their sd")
    grid[-1, 1].set_xlabel(f"change of features, {found.attrs['unit']}")
    return figure


# -- chains ----------------------------------------------------------------------------------------------------


@_styled
def targets(tree: xr.DataTree) -> Figure:
    """Which latent each environment intervenes on: probabilities, "none" last, and the shift of the most probable one.

    Shifts or offsets, of models that have them, are medians with 90 % intervals over the draws that have the target, in
    deviations of the latent's noise in the first environment where the model has noise. Environments are ordered by
    their targets, those without a probable one last; the control, which has none, is left out.
    """
    prob = posterior_mean(tree, "targets")
    if prob is None:
        reject("tree", "no targets in its posterior", "the tree of a model of interventions")
    prob = prob.transpose("env", "latent")
    p, envs, latents = prob.to_numpy(), _labels(prob, "env"), _labels(prob, "latent")
    none = np.clip(1.0 - p.sum(1), 0.0, 1.0)
    best = p.argmax(1)
    unsure = none > PRESENT
    control = _reference(tree, names := [str(e) for e in _named(prob)["env"].to_numpy()])
    places = [e for e, name in enumerate(names) if name != control or p[e].any()]
    shown = sorted(places, key=lambda e: (unsure[e], best[e] * (not unsure[e]), -p[e].max()))
    posterior, by = _group(tree, "posterior"), {"env", "latent"}
    moved = next((n for n in ("shift", "offset") if n in posterior and by <= set(posterior[n].dims)), None)
    wide, high = 0.42 * len(latents), max(0.22 * len(shown) + 1.6, 2.6)
    figure = Figure(figsize=(wide + (2.6 if moved is None else 6.0), high), layout="constrained")
    ratios = [wide + 1.02] if moved is None else [wide + 1.02, 3.4]
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
    left = panels[0]
    table = np.column_stack([p, none])[shown]
    image = left.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _grid(left, len(shown), len(latents) + 1)
    left.set_xticks(range(len(latents) + 1), [*latents, "none"], rotation=90 if len(latents) > 3 else 0)
    left.set_yticks(
        range(len(shown)), [_short(envs[e]) for e in shown] if len(shown) <= LABELLED else [""] * len(shown)
    )
    left.set_title("Probability of the target", loc="left")
    bar = figure.colorbar(image, ax=left, location="bottom", shrink=0.8, aspect=18, pad=0.02)
    bar.outline.set_visible(False)

    if moved is None:
        return figure
    right = panels[1]
    right.axvline(0.0, color=FAINT, lw=1)
    order = ("chain", "draw", "env", "latent")
    hit, shift = (posterior[name].transpose(*order).to_numpy() for name in ("targets", moved))
    if "noise" in posterior:
        shift = shift / posterior["noise"].transpose(*order).to_numpy()[:, :, :1]
    weight = np.broadcast_to(chain_weights(tree)[:, None], hit.shape[:2])
    for place, e in enumerate(shown):
        use = hit[:, :, e, best[e]] > 0
        if unsure[e] or not use.any():
            continue
        values = shift[:, :, e, best[e]][use][:, None]
        low, middle, upper = (float(v[0]) for v in weighted_quantiles(values, weight[use], (0.05, 0.5, 0.95)))
        colour = RED if middle < 0 else BLUE
        right.plot([low, upper], [place, place], color=colour, lw=1.6)
        right.plot([middle], [place], "o", color=colour, ms=4)
    right.set_title("Shift, in deviations of noise" if "noise" in posterior else "Shift, in units of z", loc="left")
    right.tick_params(axis="y", length=0)
    right.spines[["top", "right", "left"]].set_visible(False)
    return figure


@_styled
def agreement(tree: xr.DataTree) -> Figure:
    """Do the aligned chains tell one story? How well they agree (`Fit.agreement`), by pair and by latent.

    The matrix averages over latents that either chain uses; chains stand in order of their held-out objective, best
    first. On the right every dot is one pair of chains.
    """
    latent_means(tree)  # refuses a tree without z
    value = _group(tree, "posterior")["z"]
    stats = _group(tree, "sample_stats")
    if "agreement" not in stats:
        reject("tree", "no agreement in sample_stats", "the tree of a fit's posterior()")
    r = stats["agreement"].transpose("chain", "other_chain", "latent").to_numpy()
    chains, names = r.shape[0], _labels(value, "latent")
    used = ~np.isnan(r).all((0, 1))
    order = np.argsort(-stats["held_out"].to_numpy())
    weights = chain_weights(tree)
    ids = [str(c) for c in value["chain"].to_numpy()] if "chain" in value.coords else [str(c) for c in range(chains)]
    labels = [f"{ids[c]}  ({weights[c]:.2f})" for c in order]
    mean = np.nansum(r, -1) / np.maximum((~np.isnan(r)).sum(-1), 1)
    matrix = mean[np.ix_(order, order)]

    side = float(np.clip(0.36 * chains, 2.0, 5.2))
    figure = Figure(figsize=(side + 1.4 + 3.6, max(side, 0.24 * len(names)) + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(side + 1.4, 3.6))
    image = left.imshow(matrix, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
    _grid(left, chains, chains)
    left.set_xticks(range(chains), [ids[c] for c in order])
    left.set_yticks(range(chains), labels)
    left.set_xlabel("chain, best first")
    left.set_ylabel("chain (weight)")
    left.set_title("Agreement of chains, mean")
    if chains <= 10:
        for a, b in np.ndindex(chains, chains):
            dark = matrix[a, b] > 0.55
            left.text(b, a, f"{matrix[a, b]:.2f}", ha="center", va="center", size=7, color="white" if dark else INK)
    else:
        bar = figure.colorbar(image, ax=left, shrink=0.6, aspect=14)
        bar.outline.set_visible(False)

    right.set_title("By latent, one dot a pair of chains")
    right.set_xlim(-0.02, 1.02)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_yticks(range(len(names)), names)
    right.set_xlabel("agreement")
    right.grid(axis="x", color=FAINT, lw=0.7)
    right.set_axisbelow(True)
    first, second = np.triu_indices(chains, 1)
    if not len(first):
        right.text(0.5, 0.5, "one chain: nothing to compare", transform=right.transAxes, ha="center", color=GREY)
    jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(first))
    for k in range(len(names)):
        colour = BLUE if used[k] else GREY
        pairs = r[first, second, k]
        right.scatter(pairs, k + jitter, s=9, color=colour, alpha=0.45, linewidth=0)
        if used[k] and np.isfinite(pairs).any():
            middle = np.nanmean(pairs)
            right.plot([middle, middle], [k - 0.3, k + 0.3], color=colour, lw=1.8)
    if not used.all():
        for tick, live in zip(right.get_yticklabels(), used, strict=True):
            tick.set_color(INK if live else GREY)
        right.set_xlabel("agreement (grey: latent not in use)")
    return figure


@_styled
def objective(history: ArrayLike, best: int | None = None, stopped: Collection[int] = ()) -> Figure:
    """Held-out objective of every chain (nats a row) against epochs, from `fit.history`: (check, 1 + chain).

    best: the chain to stand out, such as the fit's reference; None = the one best at the last check. stopped: chains
    that were stopped as they fell behind. Their values and those of retired chains are NaN from then on; a bar or a
    cross marks where one ended.
    """
    h = np.asarray(history, dtype=np.float64)
    if h.ndim != 2 or h.shape[1] < 2 or not h.shape[0]:
        reject("history", f"shape {h.shape}", "(check, 1 + chain): epochs and each chain's held-out objective")
    epochs, scores = h[:, 0], h[:, 1:]
    finite = np.isfinite(scores)
    ended = finite.any(0) & ~finite[-1]
    behind = ended & np.isin(np.arange(scores.shape[1]), list(stopped))
    retired = ended & ~behind
    if best is None:
        best = int(np.argmax(np.where(finite[-1], scores[-1], -np.inf)))
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for c in range(scores.shape[1]):
        colour, width = (BLUE, 2.0) if c == best else (GREY, 1.0)
        colour = RED if retired[c] else colour
        mark = "." if finite[:, c].sum() == 1 else ""
        axes.plot(epochs, scores[:, c], color=colour, lw=width, marker=mark, zorder=3 if c == best else 2)
        if ended[c]:
            end = np.flatnonzero(finite[:, c])[-1]
            axes.plot(epochs[end], scores[end, c], "|" if behind[c] else "x", color=colour, ms=6, mew=1.6, zorder=4)
    # early epochs, while the objective is annealed, may lie far below: they leave the picture
    late = scores[len(scores) // 4 :]
    late = late[np.isfinite(late)]
    if late.size > 1 and late.max() > late.min():
        pad = 0.08 * (late.max() - late.min())
        axes.set_ylim(late.min() - pad, late.max() + pad)
    handles = [Line2D([], [], color=BLUE, lw=2, label=f"best (chain {best})")]
    if (~ended).sum() > 1:
        handles.append(Line2D([], [], color=GREY, lw=1, label="other chains"))
    if retired.any():
        handles.append(Line2D([], [], color=RED, lw=1, marker="x", label="retired"))
    if behind.any():
        handles.append(Line2D([], [], color=GREY, lw=1, marker="|", label="stopped, far behind"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel("held-out objective (nats a row)")
    axes.set_title(f"Held-out objective, {scores.shape[1]} chain{'s' * (scores.shape[1] != 1)}")
    return figure


# -- environments and fit --------------------------------------------------------------------------------------


@_styled
def latents_by_env(tree: xr.DataTree, reference: str | None = None, most: int = 6) -> Figure:
    """How environments move the latents: standardised mean shifts from the `reference` environment, all of them,
    and the distributions of posterior means for the `most` latents that move furthest (see `shifts`).

    Latents that no feature loads on are left out: what they show is noise in whatever units.
    """
    used = np.flatnonzero(_in_use(tree))
    z, labels, names = _by_environment(tree)
    z = z.isel(latent=used)
    moved = shifts(tree, reference).isel(latent=used)
    base = moved.attrs["reference"] if moved.attrs["reference"] in names else None
    values, latents = z.to_numpy(), _labels(z, "latent")
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
    _grid(axes, len(names), len(latents))
    axes.set_xticks(range(len(latents)), latents, rotation=90 if len(latents) > 4 else 0)
    axes.set_yticks(range(len(names)), [_short(envs[e]) for e in order], size=8 if len(names) < 40 else 5)
    axes.set_title(f"Shift from {_short(moved.attrs['reference'])}, in sd")
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
        _violins(place, groups, [_short(envs[e], 14) for e in drawn], colours)
        place.set_title(latents[k])
        place.locator_params(axis="x", nbins=3)
        if base is not None:
            place.axvline(float(np.median(groups[0])), color=GREY, lw=0.7, zorder=0)
    for place in list(grid.flat)[len(most_moved) :]:
        place.set_axis_off()
    return figure


@_styled
def predictive(tree: xr.DataTree) -> Figure:
    """Posterior predictive check: each feature's mean, standard deviation and share of zeros, observed against
    replicated (median and central 90 % interval over weighted draws). Red where the interval misses.
    """
    observed, _ = _observed(tree)
    replicated = _group(tree, "posterior_predictive")["x"].transpose("chain", "draw", "data", "feature")
    if "data" in replicated.coords:  # of large data only some rows are replicated: compare like with like
        rows = _group(tree, "observed_data").indexes["data"].get_indexer(replicated["data"].to_numpy())
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


# -- against a known truth -------------------------------------------------------------------------------------


@_styled
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
        r = float((_standard(true[:, [k]]) * _standard(own[:, None])).mean())
        axes.scatter(true[some, k], own[some], s=4, color=BLUE, alpha=0.35, linewidth=0, rasterized=True)
        axes.set_ylabel(_short(names[partner[k]]) if names is not None else f"latent {partner[k]}")
        axes.set_title(f"r = {r:+.3f}".replace("-", "−"), size=8.5, pad=4)
    return figure


@_styled
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


# -- reading the tree ------------------------------------------------------------------------------------------


def _group(tree: xr.DataTree, name: str, required: bool = True) -> Any:
    if not isinstance(tree, xr.DataTree):
        reject("tree", f"a {type(tree).__name__}", "the DataTree that fit.posterior() returns")
    if name in tree.children:
        return tree[name]
    if required:
        reject("tree", f"no group {name!r}", f"a tree with it; this one has {', '.join(tree.children) or 'none'}")
    return None


def _weight_set(tree: xr.DataTree) -> xr.Dataset:
    return xr.Dataset({"chain_weight": ("chain", chain_weights(tree))})


def _named(value: xr.DataArray) -> xr.DataArray:
    """With coordinates on every dimension: positions where the tree has no names."""
    return value.assign_coords({d: [str(i) for i in range(n)] for d, n in value.sizes.items() if d not in value.coords})


def _labels(value: xr.DataArray, dim: str) -> list[str]:
    return [_short(str(v)) for v in (value[dim].to_numpy() if dim in value.coords else range(value.sizes[dim]))]


def _by_environment(tree: xr.DataTree) -> tuple[xr.DataArray, NDArray[np.str_], list[str]]:
    """Posterior means (row, latent) of all rows, also where draws are of some; each row's environment; their names."""
    constant = _group(tree, "constant_data", required=False)
    if constant is None or "latent_mean" not in constant:
        return latent_means(tree), *_environments(tree)
    labels = np.asarray(constant["row_env"].to_numpy()).astype(str)
    z = _named(constant["latent_mean"].transpose("row", "latent"))
    return z, labels, [str(e) for e in np.unique(labels)]


def _environments(tree: xr.DataTree) -> tuple[NDArray[np.str_], list[str]]:
    """(data,) names of the rows' environments, and the sorted names that occur."""
    rows = _group(tree, "posterior")["z"].sizes["data"]
    constant = _group(tree, "constant_data", required=False)
    if constant is None or "env" not in constant:
        return np.full(rows, "observational"), ["observational"]
    labels = np.asarray(constant["env"].to_numpy()).astype(str)
    return labels, [str(e) for e in np.unique(labels)]


def _reference(tree: xr.DataTree, names: Sequence[str], reference: str | None = None) -> str | None:
    """The environment that others are compared with, see `shifts`."""
    if reference is not None:
        return one_of("reference", reference, names)
    control = tree.attrs.get("control")
    return control if control in names else None


def _observed(tree: xr.DataTree) -> tuple[Floats, list[str]]:
    x = _group(tree, "observed_data")["x"].transpose("data", "feature")
    names = x["feature"].to_numpy() if "feature" in x.coords else range(x.sizes["feature"])
    return np.asarray(x.to_numpy(), dtype=np.float64), [str(n) for n in names]


def _seen(tree: xr.DataTree) -> tuple[Floats, list[str]]:
    """(data, feature) x on the scale where it is roughly linear in latents: log(1 + x / s) for counts."""
    x, names = _observed(tree)
    told = _group(tree, "observed_data")["x"].attrs.get("counts")
    if (x >= 0).all() and (x == np.round(x)).all() if told is None else told:
        constant = _group(tree, "constant_data", required=False)
        size = constant["size_factor"].to_numpy() if constant is not None and "size_factor" in constant else None
        x = np.log1p(x if size is None else x * (size.mean() / size)[:, None])
    return x, names


def _in_use(tree: xr.DataTree) -> NDArray[np.bool_]:
    """(latent,) whether a latent is in use: with a mask, some feature includes it; all of them otherwise."""
    pip = inclusion(tree)
    latents = _group(tree, "posterior")["z"].sizes["latent"]
    every = np.ones(latents, dtype=np.bool_)
    used = every if pip is None else np.asarray((pip.to_numpy() > PRESENT).any(0), dtype=np.bool_)
    return used if used.any() else every


def _edge_weights(tree: xr.DataTree) -> Floats | None:
    """(parent, child) mean weight over the draws that have the edge, or None."""
    posterior = _group(tree, "posterior")
    if "weight" not in posterior or not {"parent", "child"} <= set(posterior["weight"].dims):
        return None
    order = ("chain", "draw", "parent", "child")
    weight, present = (posterior[v].transpose(*order).to_numpy() for v in ("weight", "graph"))
    chain = chain_weights(tree)
    total = np.einsum("c,cdij->ij", chain, weight * present)
    count = np.einsum("c,cdij->ij", chain, present.astype(np.float64))
    return np.asarray(total / np.maximum(count, 1e-12))


# -- arithmetic ------------------------------------------------------------------------------------------------


def _standard(z: Floats) -> Floats:
    """Columns with mean 0 and standard deviation 1; a constant column becomes 0."""
    spread = z.std(0)
    alive = spread > 1e-12 * np.maximum(np.abs(z).max(0), 1e-300)
    return np.asarray(np.where(alive, z - z.mean(0), 0.0) / np.where(alive, spread, 1.0))


def _correlation(x: Floats, z: Floats) -> Floats:
    """(feature, latent) correlation over the rows in which the feature was measured; 0 where either is constant."""
    there = np.isfinite(x)
    count = np.maximum(there.sum(0), 1)[:, None]
    x = np.where(there, x, 0.0)
    x = np.where(there, x - x.sum(0) / count[:, 0], 0.0)
    z = z - z.mean(0)
    spread = np.sqrt(np.maximum(there.T @ z**2 / count - (there.T @ z / count) ** 2, 0.0))
    scale = np.sqrt((x**2).sum(0)[:, None] / count) * spread
    return np.asarray(np.where(scale > 1e-12 * scale.max(), x.T @ z / count / np.maximum(scale, 1e-300), 0.0))


def _auroc(above: Floats, below: Floats) -> Floats:
    """(latent,) probability that a row of `above` exceeds one of `below`, ties counting half (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([above, below]), axis=0)[: len(above)]
    n = len(above)
    return np.asarray((ranks.sum(0) - n * (n + 1) / 2) / (n * len(below)))


# -- drawing ---------------------------------------------------------------------------------------------------


def _short(name: object, most: int = 22) -> str:
    text = "".join(c if c.isprintable() else "�" for c in " ".join(str(name).split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def _probability(p: float) -> str:
    return "1" if p >= 0.995 else f"{p:.2f}".lstrip("0")


def _grid(axes: Any, rows: int, columns: int) -> None:
    """Thin white lines between the cells of a heat map, while there is room for them."""
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(rows + 1) - 0.5 if rows <= LABELLED else [], minor=True)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, lw=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _write_words(axes: Any, place: tuple[float, float], words: list[tuple[str, str]]) -> None:
    """Words of several colours on one line, starting at `place`."""
    parts: list[Any] = [TextArea(text, textprops={"color": colour, "size": 8}) for text, colour in words]
    box = HPacker(children=parts, align="baseline", pad=0, sep=5)
    axes.add_artist(AnnotationBbox(box, place, frameon=False, box_alignment=(0, 0.5), pad=0, annotation_clip=False))


def _whiskers(axes: Any, levels: Floats, names: Sequence[str], hollow: int | None = None) -> None:
    """A median with its 90 % interval per row (row, 3), blue above 0, red below, grey around it; `hollow`: the row
    that was set and did not respond."""
    axes.axvline(0.0, color=FAINT, lw=1, zorder=1)
    for y, (low, middle, high) in enumerate(levels):
        colour = GREY if low * high <= 0 else RED if middle < 0 else BLUE
        colour = INK if y == hollow else colour
        axes.plot([low, high], [y, y], color=colour, lw=1.6, solid_capstyle="butt", zorder=2)
        axes.plot([middle], [y], "o", color=colour, mfc="white" if y == hollow else colour, ms=4, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _violins(axes: Any, groups: list[Floats], names: list[str], colours: list[str]) -> None:
    """Horizontal violins with median and quartiles; groups of fewer than five distinct values as points."""
    for y, (values, colour) in enumerate(zip(groups, colours, strict=True)):
        if len(np.unique(values)) < 5:
            axes.scatter(values, np.full(len(values), y), s=12, color=colour, alpha=0.7, linewidth=0)
            continue
        body = axes.violinplot([values], [y], orientation="horizontal", widths=0.85, showextrema=False)["bodies"][0]
        body.set(facecolor=colour, alpha=0.45, edgecolor="none")
        quarter, median, three = np.quantile(values, (0.25, 0.5, 0.75))
        axes.plot([quarter, three], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot(median, y, "o", color="white", mec=colour, ms=3.6, mew=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _one_environment(values: Floats, latents: list[str], name: str) -> Figure:
    figure = Figure(figsize=(4.6, 0.3 * len(latents) + 1.1), layout="constrained")
    axes = figure.subplots()
    _violins(axes, list(values.T), latents, [BLUE] * len(latents))
    axes.set_title(f"Posterior means of the latents, {_short(name)}")
    return figure


def _layout(p: Floats, drawn: list[tuple[int, int]], x_gap: float = 1.3, y_gap: float = 1.15) -> Floats:
    """(latent, 2) places in inches: in layers along the causal order, or on a circle where that hides edges."""
    count = len(p)
    likely = nx.DiGraph()
    likely.add_nodes_from(range(count))
    likely.add_edges_from((i, j) for i, j in drawn if p[i, j] >= PRESENT)
    radius = max(1.05, 0.98 * count / (2 * np.pi) * 1.05)
    if nx.is_directed_acyclic_graph(likely):
        layers = list(nx.topological_generations(likely))
        circle_order = [k for layer in layers for k in sorted(layer)]
        free = sorted(k for k in range(count) if not any(k in edge for edge in drawn))
        place = np.zeros((count, 2))
        depth = 0
        for layer in layers:
            bound = sorted(set(layer) - set(free))
            for at, k in enumerate(bound):
                # neighbouring layers are staggered, so that edges over a layer pass between its nodes
                place[k] = ((at - (len(bound) - 1) / 2) * x_gap + 0.3 * (-1) ** depth, -depth * y_gap)
            depth += bool(bound)
        for at, k in enumerate(free):  # latents without edges stand below, ten to a row
            in_row = min(10, len(free) - at // 10 * 10)
            place[k] = ((at % 10 - (in_row - 1) / 2) * x_gap, -(depth + at // 10) * y_gap)
        if not _hides(place, drawn):
            return place
    else:
        circle_order = list(range(count))
    on_circle = nx.circular_layout(nx.path_graph(count), scale=radius)
    place = np.zeros((count, 2))
    for at, k in enumerate(circle_order):
        x, y = on_circle[at]
        place[k] = (y, x) if count > 1 else (0.0, 0.0)  # from the top, clockwise
    return place


def _label_place(place: Floats, parent: int, child: int, bend: float, taken: list[Floats]) -> Floats:
    """Where along the edge its label is farthest from labels already written, near the middle by preference."""
    along = place[child] - place[parent]
    control = (place[parent] + place[child]) / 2 + bend * np.array([along[1], -along[0]])
    others = np.delete(place, (parent, child), 0)
    best, most = place[parent], -np.inf
    for t in (0.5, 0.44, 0.56, 0.38, 0.62, 0.32, 0.68):
        point = (1 - t) ** 2 * place[parent] + 2 * t * (1 - t) * control + t**2 * place[child]
        clear = min((float(np.hypot(*(point - other))) for other in taken), default=np.inf)
        clear = min(clear, *(float(np.hypot(*(point - other))) - 0.2 for other in others), np.inf)
        if clear > 0.25:
            return np.asarray(point)
        if clear > most:
            best, most = point, clear
    return np.asarray(best)


def _hides(place: Floats, drawn: list[tuple[int, int]], clear: float = 0.36) -> bool:
    """Whether a straight edge passes within `clear` inches of a node that is not its end."""
    for i, j in drawn:
        along = place[j] - place[i]
        for k in range(len(place)):
            if k not in (i, j):
                at = np.clip((place[k] - place[i]) @ along / (along @ along), 0, 1)
                if np.hypot(*(place[i] + at * along - place[k])) < clear:
                    return True
    return False
