"""What a chain weighs, and draws taken from chains as often as they weigh."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import softmax

TIE = 2.0  # standard errors by which a chain may lie below the best one and still be as good


def chain_weights(held_out: np.ndarray, log_evidence: np.ndarray | None, error: np.ndarray) -> np.ndarray:
    """(chain,) shares of the evidence where it is exact, `error` (chain,) being 0. Else stacking weights by held-out
    rows (chain, row), 0 for chains that have less evidence than `TIE` of its errors explain."""
    if log_evidence is None:
        return stacking_weights(held_out)
    if not error.any():
        return np.asarray(softmax(log_evidence))
    alike = log_evidence.max() - log_evidence <= TIE * error
    weights = np.zeros(len(log_evidence))
    weights[alike] = stacking_weights(held_out[alike])
    return weights


def error_of_sum(parts: np.ndarray) -> np.ndarray:
    """(...) standard error of the sum over parts (..., part) of rows that are drawn anew; 0 where there is one."""
    count = parts.shape[-1]
    return np.sqrt(count * parts.var(-1, ddof=1)) if count > 1 else np.zeros(parts.shape[:-1])


def stacking_weights(log_density: np.ndarray, steps: int = 1000) -> np.ndarray:
    """(chain,) weights w that maximise sum_i log sum_c w_c exp(log_density[c, i]), by expectation-maximisation."""
    chains = log_density.shape[0]
    density = np.exp(log_density - log_density.max(0))
    weights = np.full(chains, 1.0 / chains)
    for _ in range(steps):
        share = weights[:, None] * density
        new = (share / share.sum(0)).mean(1)
        done = np.abs(new - weights).max() < 1e-6
        weights = new
        if done:
            break
    return weights


def weighed_once(tree: xr.DataTree) -> xr.DataTree:
    """The tree with draws taken from its chains as often as the chains weigh, so that whoever gives every draw the same
    weight says what `Fit.graph`, plots and reports say; a tree without `chain_weight`, or of equal ones, as it is.

    A fitted chain's draws stand together, those taken twice side by side: r-hat then compares fitted chains where
    several have weight, and effective sizes count no draw twice. What is of chains alone is left out.
    """
    stats = tree.get("sample_stats")
    if stats is None or "chain_weight" not in stats:
        return tree
    weights = stats["chain_weight"].to_numpy()
    chains, draws = stats.sizes["chain"], stats.sizes["draw"]
    if np.allclose(weights, 1 / chains, atol=0.5 / (chains * draws)):
        return tree
    quantile = (np.arange(chains * draws) + 0.5) / (chains * draws)
    chain = np.minimum(np.searchsorted(np.cumsum(weights), quantile), chains - 1)
    count = np.bincount(chain, minlength=chains)
    place = np.concatenate([np.arange(n) * draws // n for n in count if n])
    pick = {
        n: xr.DataArray(v.reshape(chains, draws), dims=("chain", "draw"))
        for n, v in (("chain", chain), ("draw", place))
    }
    groups = {}
    for name, group in tree.children.items():
        own = group.to_dataset()
        if {"chain", "draw"} <= set(own.dims):
            own = own.drop_vars([n for n, v in own.data_vars.items() if not {"chain", "draw"} <= set(v.dims)])
            if not own.data_vars:
                continue
            coords = {n: own.coords[n] for n in ("chain", "draw") if n in own.coords}
            own = own.drop_vars(coords).isel(pick).assign_coords(coords)
            own = own.map(lambda v: v.transpose("chain", "draw", ...))
        groups[str(name)] = own
    out = xr.DataTree.from_dict(groups)
    out.attrs |= tree.attrs
    return out


def to_arviz(tree: xr.DataTree) -> Any:
    """The tree, its draws `weighed_once`, as the installed ArviZ wants it: 1.x takes the DataTree, 0.2x an
    `InferenceData`."""
    tree = weighed_once(tree)
    with warnings.catch_warnings():  # 0.23 tells of its rewrite when it is imported
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    if int(arviz.__version__.split(".")[0]) >= 1:
        return tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return arviz.from_datatree(tree)
