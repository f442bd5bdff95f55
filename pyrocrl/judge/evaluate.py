"""`evaluate`: a fit against the known truth of simulated data, with what trivial methods reach beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyrocrl.claims.indeterminacy import Group
from pyrocrl.claims.labels import called_alike, together
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge import metrics
from pyrocrl.options import Seed, checked
from pyrocrl.turns import drawing

DCI_ROWS = 2_000  # boosting on more rows only costs time
WEIGHT_DRAWS = 400


@checked
def evaluate(fit: Fit, data: Data, *, seed: Seed = 0) -> dict[str, float]:
    """Flat metric -> value for `data` (rows of the fit or new ones), whose `truth` must hold z, mask or graph.

    Latents: mcc, mcc_spearman, r2, dci_*, and pca_*, ica_*, raw_* beside them; linear_r2 says whether linear
    regression already undoes the mixing; innovations_mcc, where the program's latents are innovations, by which targets
    and graph are matched then. Masks: mask_f1, mask_hamming, surplus_pip, ... Graphs: shd, order_right, ... each with
    its _empty and _full value. weight_coverage: share of true edge weights inside the central 90 % interval,
    weight_covered of weight_total. targets_right: share of environments whose target, where it is not given, is the
    true one; changes_right: of pairs of rows; states_right: of latents' dynamics. mse: mean squared error of the mean
    of x given the posterior-mean latents. Raises InputError where nothing is known or shapes disagree.
    """
    if not data.truth:
        reject("data", "no truth", "simulated data with truth (z, mask, graph, ...)")
    data = fit.coded(data)
    truth = data.truth
    out: dict[str, float] = {"held_out": float(fit.weights @ fit.scores)}
    z_est = fit.latents(data)
    assignment: np.ndarray | None = None
    x = seen(data)
    if not data.counts:
        out["mse"] = reconstruction_error(fit, data)
    if "z" in truth:
        z = truth["z"]
        out["mcc"], assignment = _matched(fit, z, z_est)
        out["mcc_spearman"] = metrics.mcc(z, z_est, "spearman")
        out["r2"] = metrics.r2(z, z_est)
        few = np.unique(np.linspace(0, data.rows - 1, min(data.rows, DCI_ROWS)).astype(int))
        out |= {f"dci_{k}": v for k, v in metrics.dci(z[few], z_est[few], seed=seed).items()}
        for row, scores in metrics.baselines(x, z, min(z_est.shape[1], x.shape[1]), seed).items():
            out |= {f"{row}_{k}": v for k, v in scores.items()}
        out["linear_r2"] = metrics.linear_r2(x, z)
    if _told(fit, truth) == "innovations":
        out["innovations_mcc"], assignment = _matched(fit, truth["innovations"], z_est)
    mask = fit.mask()
    if "mask" in truth and mask is not None:
        scores = metrics.mask_scores(truth["mask"], mask, permutation=assignment)
        out |= {k if k.startswith("surplus") else f"mask_{k}": v for k, v in scores.items()}
    graph = fit.graph()
    if "graph" in truth and graph is not None:
        nodes = assignment if assignment is not None else np.arange(len(truth["graph"]))
        out |= metrics.graph_scores(truth["graph"], metrics.reorder_graph(graph, nodes))
        if "weight" in truth and "z" in truth and "weight" in fit.program.sites:
            total = int(truth["graph"].astype(bool).sum())
            covered = _weights_covered(fit, data, nodes, seed)
            out |= {"weight_covered": float(covered), "weight_total": float(total)}
            out["weight_coverage"] = covered / total if total else math.nan
    changed = fit.row_targets(data) if "row_target" in truth and data.pair is not None else None
    if changed is not None:
        nodes = assignment if assignment is not None else np.arange(changed.shape[1] - 1)
        out |= _changes_right(truth["row_target"][data.after].astype(int), changed[data.after], nodes)
    if "state" in truth and (shares := fit.state_shares(data)) is not None:
        nodes = assignment if assignment is not None else np.arange(shares.shape[1])
        out |= _states_right(truth["state"].astype(int), shares, nodes)
    targets = fit.targets()
    if "targets" in truth and targets is not None and fit.program.target_mode != "known":
        nodes = assignment if assignment is not None else np.arange(targets.shape[1])
        out |= targets_right(truth["targets"], targets, fit.names["env"], nodes)
    return out


def edge_table(fit: Fit, data: Data) -> list[list[float]]:
    """[probability, 0 or 1] of every ordered pair of true latents (see `metrics.edge_table`), the fit's latents matched
    with the true ones as in `evaluate`; no rows where the fit or the truth has no graph."""
    graph = fit.graph()
    if "graph" not in data.truth or graph is None:
        return []
    nodes = np.arange(len(data.truth["graph"]))
    told = _told(fit, data.truth)
    if told in data.truth:
        _, nodes = _matched(fit, data.truth[told], fit.latents(data))
    return metrics.edge_table(data.truth["graph"], metrics.reorder_graph(graph, nodes))


def _told(fit: Fit, truth: Mapping[str, Any]) -> str:
    """What of the truth the fit's latents are to be matched with."""
    return "innovations" if fit.program.reads_innovations and "innovations" in truth else "z"


def _matched(fit: Fit, z: np.ndarray, z_est: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean correlation coefficient, and for each true latent its partner: its own where the claim leaves no permutation
    free, else the one of the best assignment, -1 for none."""
    if "permutation" in fit.program.group.free or z.shape[1] != z_est.shape[1]:
        return metrics.mcc(z, z_est, return_assignment=True)
    r = [abs(np.corrcoef(a, b)[0, 1]) if b.std() > 0 else 0.0 for a, b in zip(z.T, z_est.T, strict=True)]
    return float(np.mean(r)), np.arange(z.shape[1])


def targets_right(truth: Any, probs: np.ndarray, envs: Sequence[str], nodes: np.ndarray) -> dict[str, float]:
    """Share of the interventional environments whose most probable targets, as many as there are, are the true ones
    (`truth`: environment -> latents); `_empty`: the share that naming one latent for all environments would reach."""
    matched = np.where(nodes >= 0, probs[:, nodes], -1.0)  # (env, true latent)
    wanted = {env: {int(k) for k in latents} for env, latents in truth.items() if len(latents) and env in envs}
    if not wanted:
        return {}
    right = [set(np.argsort(-matched[envs.index(e)])[: len(k)].tolist()) == k for e, k in wanted.items()]
    one_for_all = [[{k} == latents for latents in wanted.values()] for k in range(len(nodes))]
    return {
        "targets_right": float(np.mean(right)),
        "targets_right_empty": float(np.mean(one_for_all, axis=1).max()),
    }


def _changes_right(truth: np.ndarray, chance: np.ndarray, nodes: np.ndarray) -> dict[str, float]:
    """Share of pairs whose most probable change, of a latent or of none, is the true one (pair,), -1 for none; and of
    calling all by the most frequent one."""
    called, place = chance.argmax(1), np.append(nodes, chance.shape[1] - 1)  # of true latents, and none
    frequent = np.bincount(truth + 1).max() / len(truth)
    return {"changes_right": float((called == place[truth]).mean()), "changes_right_empty": float(frequent)}


def _states_right(truth: np.ndarray, shares: np.ndarray, nodes: np.ndarray) -> dict[str, float]:
    """Share of rows and latents whose most probable state is the true one, states of each latent being matched with the
    true ones; `_empty`: that of each latent's most frequent state."""
    called, right = shares.argmax(2), []
    for k, node in enumerate(nodes):
        table = together(truth[:, k], called[:, node], truth.max() + 1, shares.shape[2])
        right.append(called_alike(table) / len(truth) if node >= 0 else 0.0)
    frequent = [np.bincount(column).max() / len(truth) for column in truth.T]
    return {"states_right": float(np.mean(right)), "states_right_empty": float(np.mean(frequent))}


def seen(data: Data) -> np.ndarray:
    """(data, feature) dense x as baselines see it: counts as log(1 + x / s), s the size factor over its mean; means of
    columns where a row lacks it."""
    x = data.x.toarray() if hasattr(data.x, "toarray") else np.asarray(data.x)
    if data.gaps or data.incomplete:
        x = np.where(np.isnan(x), np.nanmean(x, 0), x)
    if not data.counts:
        return x.astype(np.float64)
    size = np.ones(data.rows) if data.size_factor is None else data.size_factor / data.size_factor.mean()
    return np.log1p(x / size[:, None])


def reconstruction_error(fit: Fit, data: Data) -> float:
    """Mean squared error of the mean of x given the posterior-mean latents, averaged over chains by their weights."""
    batch = fit.batch_of(data).annealed()
    errors = []
    with drawing(0), torch.no_grad():
        for program in fit.programs():
            sites = stories.centre(program, batch) | {"z": program.latents(batch)} | program.beside(batch)
            square = (stories.expected(program, batch, sites) - batch.x).square().double().cpu().numpy()
            whole = data.view is None and not data.incomplete
            gap = square.mean(0) if whole else _over_present(square, data)
            errors.append((gap * (1.0 if fit.units is None else fit.units.scale**2)).mean())
    return float(fit.weights @ errors)


def _over_present(values: np.ndarray, data: Data) -> np.ndarray:
    """(feature,) means over the rows that have the feature."""
    there = data.known if data.view is None else data.present[:, data.view]
    mean: np.ndarray = (values * there).sum(0) / np.maximum(there.sum(0), 1)
    return mean


def _weights_covered(fit: Fit, data: Data, nodes: np.ndarray, seed: int) -> int:
    """How many true edges' weights are inside the 90 % interval of their draws, in the truth's units."""
    true = data.truth["graph"].astype(bool)
    if not true.any():
        return 0
    draws = fit.posterior(
        max(2, WEIGHT_DRAWS // fit.chains.count), data, predictive=False, density=False, thin=data.rows, seed=seed
    )
    weight = draws["posterior"]["weight"].to_numpy()
    chains, count = weight.shape[:2]
    pick = np.random.default_rng(seed).choice(chains * count, WEIGHT_DRAWS, p=np.repeat(fit.weights / count, count))
    weight = weight.reshape(-1, *weight.shape[2:])[pick]
    # permutation is settled: only sign and scale (and shift) are taken from the truth
    z_est = fit.latents(data)[:, nodes]
    alignment = Group.of(("scale", "shift")).align(z_est, data.truth["z"])
    weight = alignment.act(weight[:, nodes][:, :, nodes], {1: -1, 2: 1})
    return round(metrics.interval_coverage(data.truth["weight"][true], weight[:, true]) * true.sum())
