"""Tables of the first impression, `pyrocrl demo`: a recovered graph and effects beside those that were simulated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from pyrocrl.claims.indeterminacy import Group
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.show import plots

TOP = 3  # features of an effect


def true_weights(fit: Fit, data: Data) -> np.ndarray:
    """(parent, child) simulated weights in the signs and units of the fit's latents, whose order is the truth's."""
    alignment = Group.of(("scale", "shift")).align(data.truth["z"], fit.latents(data))
    return alignment.act(data.truth["weight"][None], {1: -1, 2: 1})[0]


def edge_rows(fit: Fit, data: Data, tree: xr.DataTree) -> list[list[str]]:
    """[edge, probability, weight with its 90 % interval, true weight] of edges that are probable or true."""
    found, truth, graph = plots.edges(tree), true_weights(fit, data), fit.graph()
    assert found is not None and graph is not None
    names = fit.names["latent"]
    weight = {
        (str(i), str(j)): w for i, j, w in zip(found["parent"].values, found["child"].values, found["weight"].values)
    }
    missed = [(names[i], names[j]) for i, j in np.argwhere(truth != 0) if (names[i], names[j]) not in weight]
    out = []
    for i, j in [*weight, *missed]:
        at = names.index(i), names.index(j)
        told = f"{truth[at]:+.2f}" if truth[at] else "no edge"
        out.append([f"{i} -> {j}", f"{graph[at]:.2f}", _interval(weight.get((i, j))), told])
    return out


def effect_rows(fit: Fit, data: Data, found: xr.Dataset, most: int = 2) -> list[list[str]]:
    """[latent set, what follows, change with its 90 % interval, true change] for the `most` latents that move others
    furthest: every latent that follows, then the features that change most; found: of `show.effects.effects`."""
    names, truth = fit.names["latent"], true_weights(fit, data)
    moved = found["of_latents"].to_numpy()
    spread = (found["raised"] - found["base"]).to_numpy()
    total = np.linalg.inv(np.eye(len(names)) - truth) * spread[:, None] / spread  # (set, latent), in sd
    others = np.abs(moved[..., 1]).sum(1)
    out = []
    for k in np.argsort(-others, kind="stable")[:most]:
        name = names[k]
        for j, other in enumerate(names):
            if j != k and (moved[k, j, 0] * moved[k, j, 2] > 0 or total[k, j]):
                out.append([name, other, f"{_interval(moved[k, j])} sd", f"{total[k, j]:+.2f} sd"])
        for j in plots.strongest(found, int(k), TOP):
            change = 2 ** found["of_features"].to_numpy()[k, j]
            out.append([name, str(found["feature"].values[j]), f"x {_interval(change, '.2f')}", ""])
    return out


def _interval(levels: Sequence[float] | np.ndarray | None, form: str = "+.2f") -> str:
    if levels is None or not np.isfinite(levels[1]):
        return "-"
    low, middle, high = (format(v, form) for v in levels)
    return f"{middle} [{low}, {high}]"
