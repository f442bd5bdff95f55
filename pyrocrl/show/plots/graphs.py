"""Masks, graphs, weights and effects."""

from __future__ import annotations

import networkx as nx
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from pyrocrl.errors import reject
from pyrocrl.show.plots.numbers import (
    edges,
    inclusion,
    labels_of,
    loadings,
    mean_edge_weights,
    posterior_mean,
    ranking,
    strongest,
)
from pyrocrl.show.plots.style import (
    BLUE,
    DIVERGING,
    GREY,
    INK,
    LABELLED,
    PRESENT,
    RED,
    SHOWN,
    STYLE,
    Floats,
    draw_grid,
    draw_whiskers,
    probability_text,
    shortened,
    styled,
    write_words,
)

MOST_ROWS = 40  # features up to which all are shown and named


@styled
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
    p, features, latents = pip.to_numpy(), labels_of(pip, "feature"), labels_of(pip, "latent")
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
    draw_grid(left, len(shown), len(latents))
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
        write_words(right, (0.06, place), words)
    return figure


@styled
def graph(tree: xr.DataTree) -> Figure:
    """The graph over latents: each edge's posterior probability as width and label, dashed from .1 to .5.

    Where the model has edge weights, their mean given the edge colours it: blue raises, red lowers the child.
    """
    edges = posterior_mean(tree, "graph")
    if edges is None:
        reject("tree", "no graph in its posterior", "the tree of a model with a graph")
    edges = edges.transpose("parent", "child")
    p, names = edges.to_numpy(), labels_of(edges, "parent")
    weight = mean_edge_weights(tree)
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
            probability_text(p[i, j]),
            size=7,
            color=colour,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none"},
            zorder=3,
        )
    axes.scatter(place[:, 0], place[:, 1], s=40**2, color="#eef2f6", edgecolor=GREY, linewidth=0.8, zorder=2)
    for (x, y), name in zip(place, names, strict=True):
        axes.text(x, y, shortened(name, 9), ha="center", va="center", size=7, zorder=4)
    handles = [
        Line2D([], [], color=INK, lw=2, label=f"≥ {PRESENT}"),
        Line2D([], [], color=INK, lw=1, ls=(0, (3, 2)), alpha=0.6, label=f"{SHOWN} to {PRESENT}"),
    ]
    if weight is not None:
        handles += [Line2D([], [], color=BLUE, lw=2, label="raises"), Line2D([], [], color=RED, lw=2, label="lowers")]
    if drawn:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.8, columnspacing=1.2)
    return figure


@styled
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
        f"{shortened(i, 12)} → {shortened(j, 12)}   {probability_text(p)}"
        for i, j, p in zip(found["parent"].values, found["child"].values, found["probability"].values, strict=True)
    ]
    draw_whiskers(axes, found["weight"].to_numpy(), labels)
    axes.set_xlabel("change of the child for one unit of the parent")
    return figure


@styled
def effects(found: xr.Dataset, top: int = 6) -> Figure:
    """What setting each latent changes (see `show.effects.effects`): all latents on the left, on the right the `top`
    features that change most. Dots are medians, bars 90 % intervals; grey where the interval holds 0.
    """
    names = [shortened(str(v), 14) for v in found["latent"].to_numpy()]
    features = [str(v) for v in found["feature"].to_numpy()]
    count = found.sizes["do"]
    lines = max(len(names), top)
    figure = Figure(figsize=(8.6, count * (0.165 * lines + 0.42) + 0.35), layout="constrained")
    grid = figure.subplots(count, 2, squeeze=False, sharex="col", width_ratios=(1, 1.25))
    for k in range(count):
        left, right = grid[k]
        draw_whiskers(left, found["of_latents"].to_numpy()[k], names, hollow=k)
        left.set_title(f"do({shortened(str(found['do'].values[k]), 14)} = mean + 1 sd)")
        best = strongest(found, k, top)
        draw_whiskers(right, found["of_features"].to_numpy()[k][best], [shortened(features[j], 16) for j in best])
        right.set_ylim(max(len(best), 3) - 0.4, -0.6)
        if not len(best):
            right.text(0.5, 0.5, "no feature changes for sure", transform=right.transAxes, ha="center", color=GREY)
    grid[-1, 0].set_xlabel("change of the latents, in their sd")
    grid[-1, 1].set_xlabel(f"change of features, {found.attrs['unit']}")
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
