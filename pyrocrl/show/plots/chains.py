"""Targets, agreement of chains, and the objective while they were trained."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from pyrocrl.errors import reject
from pyrocrl.judge.metrics import weighted_quantiles
from pyrocrl.show.plots.numbers import (
    chain_weights,
    group_of,
    labels_of,
    latent_means,
    posterior_mean,
    reference_of,
    with_names,
)
from pyrocrl.show.plots.style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    LABELLED,
    PRESENT,
    RED,
    SEQUENTIAL,
    draw_grid,
    shortened,
    styled,
)


@styled
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
    p, envs, latents = prob.to_numpy(), labels_of(prob, "env"), labels_of(prob, "latent")
    none = np.clip(1.0 - p.sum(1), 0.0, 1.0)
    best = p.argmax(1)
    unsure = none > PRESENT
    control = reference_of(tree, names := [str(e) for e in with_names(prob)["env"].to_numpy()])
    places = [e for e, name in enumerate(names) if name != control or p[e].any()]
    shown = sorted(places, key=lambda e: (unsure[e], best[e] * (not unsure[e]), -p[e].max()))
    posterior, by = group_of(tree, "posterior"), {"env", "latent"}
    moved = next((n for n in ("shift", "offset") if n in posterior and by <= set(posterior[n].dims)), None)
    wide, high = 0.42 * len(latents), max(0.22 * len(shown) + 1.6, 2.6)
    figure = Figure(figsize=(wide + (2.6 if moved is None else 6.0), high), layout="constrained")
    ratios = [wide + 1.02] if moved is None else [wide + 1.02, 3.4]
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
    left = panels[0]
    table = np.column_stack([p, none])[shown]
    image = left.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    draw_grid(left, len(shown), len(latents) + 1)
    left.set_xticks(range(len(latents) + 1), [*latents, "none"], rotation=90 if len(latents) > 3 else 0)
    left.set_yticks(
        range(len(shown)), [shortened(envs[e]) for e in shown] if len(shown) <= LABELLED else [""] * len(shown)
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


@styled
def agreement(tree: xr.DataTree) -> Figure:
    """Do the aligned chains tell one story? How well they agree (`Fit.agreement`), by pair and by latent.

    The matrix averages over latents that either chain uses; chains stand in order of their held-out objective, best
    first. On the right every dot is one pair of chains.
    """
    latent_means(tree)  # refuses a tree without z
    value = group_of(tree, "posterior")["z"]
    stats = group_of(tree, "sample_stats")
    if "agreement" not in stats:
        reject("tree", "no agreement in sample_stats", "the tree of a fit's posterior()")
    r = stats["agreement"].transpose("chain", "other_chain", "latent").to_numpy()
    chains, names = r.shape[0], labels_of(value, "latent")
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
    draw_grid(left, chains, chains)
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


@styled
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
