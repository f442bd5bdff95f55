"""Equivalence classes of graphs under interventions: what a fit's draws say of them, and what would split them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from pyrocrl.claims.indeterminacy import interventional_cpdag
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fitted import Fit
from pyrocrl.options import Seed, Size, checked
from pyrocrl.turns import drawing

DRAWS = 25  # of each chain


@checked
def equivalence_class(fit: Fit, data: Data | None = None, *, draws: Size = DRAWS, seed: Seed = 0) -> xr.Dataset:
    """The interventional Markov equivalence class of the graph, over draws of graphs and, where unknown, targets.

    `arc` (parent, child): probability that the class has an arc that way; an edge that it leaves undirected has one
    both ways. `directed` (parent, child): that it has one this way only. `splits` (latent): how many edges that are
    undirected now an intervention on that variable would direct, on average: the largest tells most of the graph.
    Raises InputError for a model without a graph, or whose latents are not named by the data.
    """
    drawn = class_draws(fit, data, draws, seed)
    each = np.stack([classes for classes, _, _ in drawn])  # (chain, draw, parent, child)
    gains = np.array([splits(fit, drawn, [v]) for v in range(each.shape[-1])])
    both = each & np.swapaxes(each, -1, -2)
    names = fit.names["latent"]
    return xr.Dataset(
        {
            "arc": (("parent", "child"), np.einsum("c,cdpk->pk", fit.weights, each) / draws),
            "directed": (("parent", "child"), np.einsum("c,cdpk->pk", fit.weights, each & ~both) / draws),
            "splits": (("latent",), gains),
        },
        coords={"parent": names, "child": names, "latent": names},
    )


def class_draws(
    fit: Fit, data: Data | None = None, draws: int = DRAWS, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each chain draws of (class, graph, targets): (draw, parent, child), the same, (draw, env, latent)."""
    if fit.graph() is None or fit.program.group.free:
        reject("fit", f"one of {fit.program.card.name}", "a model of a graph over variables that the data name")
    batch, out = fit.batch_of(fit._data(data)).annealed(), []
    for c, program in enumerate(fit.programs()):
        given = program.targets_matrix()
        told = np.zeros((1, fit.program.latents_count)) if given is None else given.cpu().numpy()
        graphs, targets = [], []
        with drawing(mix(seed, c, 53)), torch.no_grad():
            for _ in range(draws):
                sites = stories.drawn(program, batch, local=False)
                graphs.append(sites["graph"].cpu().numpy() > 0.5)
                targets.append((sites["targets"].cpu().numpy() if "targets" in sites else told) > 0.5)
        out.append((np.stack([*map(interventional_cpdag, graphs, targets)]), np.stack(graphs), np.stack(targets)))
    return out


def splits(
    fit: Fit,
    drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    nodes: list[int],
    beside: Sequence[list[int]] = (),
) -> float:
    """How many undirected edges of the class an intervention on these nodes would direct, on average over draws (see
    `class_draws`), where interventions `beside` are made as well."""
    total = 0.0
    for weight, chain in zip(fit.weights, drawn, strict=True):
        for old, graph, hit in zip(*chain, strict=True):
            rows = np.zeros((len(beside), len(graph)), dtype=bool)
            for row, those in zip(rows, beside, strict=True):
                row[those] = True
            made = np.concatenate([hit, rows])
            known = interventional_cpdag(graph, made) if len(beside) else old
            total += weight / len(chain[0]) * _split(known, graph, made, nodes)
    return total


def _split(old: np.ndarray, graph: np.ndarray, hit: np.ndarray, nodes: list[int]) -> float:
    """How many undirected edges of a graph's class an intervention on these nodes directs."""
    if not (old[nodes] & old[:, nodes].T).any():
        return 0.0  # it directs edges of its own first
    new = interventional_cpdag(graph, np.concatenate([hit, np.isin(np.arange(len(graph)), nodes)[None]]))
    return float((old & old.T).sum() - (new & new.T).sum()) / 2.0
