"""`credible_graphs`: the posterior over whole graphs, as the smallest set that holds a share of it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer.fitted import Fit
from pyrocrl.options import Seed, Share, Size, checked

LEVEL, DRAWS = 0.9, 500  # share of the posterior; draws of each chain


@checked
def credible_graphs(
    fit: Fit,
    data: Data | None = None,
    *,
    level: Share = LEVEL,
    draws: Size = DRAWS,
    seed: Seed = 0,
) -> xr.Dataset:
    """The smallest set of graphs whose probability is `level` or more, the most probable first, by draws of each chain.

    `graph` (rank, parent, child) in {0, 1}, parent to child; `probability` (rank,), the share of the draws, chains
    by their weights. Marginals of edges (`fit.graph()`) do not say which edges go together: this does. Where nearly
    every draw is another graph the set is larger than the draws show. `data`: rows of the fit, or those it keeps.
    Raises InputError for a model without a graph.
    """
    if fit.graph() is None:
        reject("fit", f"one of {fit.program.card.name}", "a model of a graph")
    data = fit._data(data)
    tree = fit.posterior(draws, data, thin=data.rows, predictive=False, density=False, seed=seed)
    drawn = tree["posterior"]["graph"].transpose("chain", "draw", "parent", "child")
    graphs, probability = smallest_set(drawn.to_numpy() > 0.5, fit.weights, level)
    return xr.Dataset(
        {"graph": (("rank", "parent", "child"), graphs.astype(int)), "probability": (("rank",), probability)},
        coords={"parent": fit.names["parent"], "child": fit.names["child"]},
    )


def smallest_set(drawn: np.ndarray, weights: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Of graphs (chain, draw, parent, child) the fewest that hold `level` of the draws, and their shares, descending;
    of equal shares first those that come first in the order of their entries."""
    chains, draws = drawn.shape[:2]
    found, which = np.unique(drawn.reshape(chains * draws, -1), axis=0, return_inverse=True)
    share = np.bincount(which.ravel(), np.repeat(weights / draws, draws))
    order = np.argsort(-share, kind="stable")
    order = order[share[order] > 0]
    number = int(np.searchsorted(np.cumsum(share[order]), level * share.sum() - 1e-9)) + 1
    kept = order[:number]
    return found[kept].reshape(-1, *drawn.shape[2:]), share[kept]
