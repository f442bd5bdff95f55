"""How near an estimate is to the truth: latents, masks, graphs, calibration, and what trivial methods reach.

One implementation of each metric, for every model, test and table. Latents are (data, latent), masks
(feature, latent), graphs [parent, child]; whatever is estimated may have more latents than the truth. A score
stands beside what costs nothing: `*_empty` is the value of a graph or mask without entries, `*_full` of a
graph with every edge, `baselines` those of PCA, ICA and the raw columns. Bad shapes raise `InputError`.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA, FastICA
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, LinearRegression
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import KFold, train_test_split

from pyrocrl.arrays import dense, floats
from pyrocrl.claims.indeterminacy import (
    Bools,
    Floats,
    as_graph,
    as_latents,
    correlation,
    differing_pairs,
    transitive_closure,
)
from pyrocrl.errors import one_of, reject

Method = Literal["pearson", "spearman"]


# Latents


@overload
def mcc(z_true: ArrayLike, z_est: ArrayLike, method: str = ..., return_assignment: Literal[False] = ...) -> float: ...


@overload
def mcc(
    z_true: ArrayLike, z_est: ArrayLike, method: str = ..., *, return_assignment: Literal[True]
) -> tuple[float, NDArray[np.int64]]: ...


def mcc(
    z_true: ArrayLike, z_est: ArrayLike, method: str = "pearson", return_assignment: bool = False
) -> float | tuple[float, NDArray[np.int64]]:
    """Mean absolute correlation of true latents with their partners under the best one-to-one assignment.

    A true latent without a partner counts 0, as does a constant column; surplus estimates are free. With
    `return_assignment`, also (true latent,): the column of z_est it is matched with, or -1.
    """
    z_true, z_est = _rows_alike(z_true, z_est)
    r = np.abs(correlation(z_true, z_est, method))
    rows, columns = linear_sum_assignment(r, maximize=True)
    assignment = np.full(len(r), -1)
    assignment[rows] = columns
    score = float(r[rows, columns].sum() / len(r))
    return (score, assignment) if return_assignment else score


def r2(z_true: ArrayLike, z_est: ArrayLike, held_out: float = 0.3, seed: int = 0) -> float:
    """Mean R^2 over true latents of linear regression z_est -> z_true, on a held-out share of the rows.

    `held_out=0` fits and scores on all rows. At most 1; below 0 where the mean would have done better. A true
    latent that is constant counts 0.
    """
    z_true, z_est = _rows_alike(z_true, z_est)
    if not 0.0 <= held_out < 1.0:
        reject("held_out", held_out, "0 up to, but not including, 1")
    fit = test = np.arange(len(z_true))
    if held_out:
        fit, test = _split(len(z_true), held_out, seed)
    prediction = LinearRegression().fit(z_est[fit], z_true[fit]).predict(z_est[test])
    return float(_r2_columns(z_true[test], prediction.reshape(len(test), -1)).mean())


def linear_r2(x: ArrayLike, z: ArrayLike, held_out: float = 0.3, seed: int = 0) -> float:
    """Held-out R^2 of linear regression x -> z: near 1, a setting proves nothing about nonlinear unmixing."""
    return r2(as_latents("z", z), as_latents("x", x), held_out, seed)


def dci(
    z_true: ArrayLike, z_est: ArrayLike, importance: str = "boosting", folds: int = 2, seed: int = 0
) -> dict[str, float]:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018), each 1 at best.

    Each true latent is regressed on the estimates by gradient-boosted trees ("boosting") or "lasso", in
    `folds` parts: importances are averaged over the parts, informativeness is R^2 of the predictions, each
    made by a model that had not seen its row. So every point is used for both. In disentanglement, estimates
    weigh by their importance.
    """
    z_true, z_est = _rows_alike(z_true, z_est)
    one_of("importance", importance, ("boosting", "lasso"))
    if not 2 <= folds <= len(z_true) // 5:
        reject("folds", f"{folds} for {len(z_true)} rows", "2 or more, with five rows each or more")
    spread = z_est.std(0)
    inputs = (z_est - z_est.mean(0)) / np.where(spread > 0, spread, 1.0)
    weights, prediction = np.zeros((z_est.shape[1], z_true.shape[1])), np.zeros_like(z_true)
    for fit, test in KFold(folds, shuffle=True, random_state=seed).split(inputs):
        for k, goal in enumerate(z_true.T):
            if goal[fit].std() == 0:  # nothing to learn, and nothing to be told
                prediction[test, k] = goal[fit].mean()
                continue
            if importance == "boosting":
                trees = GradientBoostingRegressor(random_state=seed).fit(inputs[fit], goal[fit])
                weights[:, k] += trees.feature_importances_
                prediction[test, k] = trees.predict(inputs[test])
            else:
                line = LassoCV(cv=3, random_state=seed).fit(inputs[fit], goal[fit])
                weights[:, k] += np.abs(line.coef_)
                prediction[test, k] = line.predict(inputs[test])
    by_estimate, total = weights.sum(1), weights.sum()
    return {
        "disentanglement": float(_purity(weights) @ by_estimate / total) if total > 0 else 0.0,
        "completeness": float(_purity(weights.T).mean()),
        "informativeness": float(_r2_columns(z_true, prediction).mean()),
    }


def baselines(x: ArrayLike, z_true: ArrayLike, latents: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """What trivial methods reach on features x (data, feature): rows "pca", "ica" and "raw" of every table.

    PCA and FastICA extract `latents` components (no more than the rank of x), "raw" matches the columns as
    they are. Each has "mcc", "mcc_spearman" and "r2" (held out). FastICA may not converge on Gaussian data;
    its last iterate is scored all the same.
    """
    x, z_true = _rows_alike(x, z_true, ("x", "z_true"))
    if not 1 <= latents <= x.shape[1]:
        reject("latents", latents, f"1 to {x.shape[1]}, the number of features")
    centred = x - x.mean(0)
    estimates = {"pca": centred, "ica": centred, "raw": x}
    if rank := int(np.linalg.matrix_rank(centred)):
        estimates["pca"] = PCA(min(latents, rank), random_state=seed).fit_transform(centred)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            ica = FastICA(whiten="unit-variance", max_iter=500, random_state=seed)
            estimates["ica"] = ica.fit_transform(estimates["pca"])
    return {
        name: {"mcc": mcc(z_true, z), "mcc_spearman": mcc(z_true, z, "spearman"), "r2": r2(z_true, z)}
        for name, z in estimates.items()
    }


# Masks


def mask_scores(
    mask_true: ArrayLike,
    mask_est_pip: ArrayLike,
    threshold: float = 0.5,
    permutation: ArrayLike | None = None,
) -> dict[str, float]:
    """Precision, recall, F1 and Hamming distance of a mask (feature, latent) given by probabilities.

    An entry is in where its probability exceeds the threshold. Columns are matched by `permutation` (per true
    latent the column of the estimate, -1 for none; as from `mcc`) or by the assignment with the most entries
    in common, which is best for F1 and Hamming distance alike. Columns without a partner are compared with
    zeros; "surplus_pip" is the largest probability in them. Precision is 1 if nothing is in.
    """
    true, pip = _binary("mask_true", mask_true), _probabilities("mask_est_pip", mask_est_pip)
    if true.ndim != 2 or pip.ndim != 2 or len(true) != len(pip):
        reject("mask_est_pip", f"shape {pip.shape}", f"(feature, latent), with {true.shape[:1]} features")
    est = pip > threshold
    if permutation is None:
        rows, columns = linear_sum_assignment(true.T.astype(int) @ est.astype(int), maximize=True)
    else:
        match = np.asarray(permutation)
        rows = np.flatnonzero(match >= 0)
        columns = match[rows]
        if match.shape != (true.shape[1],) or not np.isin(columns, np.arange(pip.shape[1])).all():
            reject("permutation", match, f"{true.shape[1]} columns of the estimate, each once, or -1")
        if len(set(columns.tolist())) < len(columns):
            reject("permutation", match, "no column twice")
    hits = int((true[:, rows] & est[:, columns]).sum())
    found, wanted = int(est.sum()), int(true.sum())
    alone = np.setdiff1d(np.arange(pip.shape[1]), columns)
    return {
        "precision": hits / found if found else 1.0,
        "recall": hits / wanted if wanted else 1.0,
        "f1": 2.0 * hits / (found + wanted) if found + wanted else 1.0,
        "hamming": float(found + wanted - 2 * hits),
        "f1_empty": 0.0 if wanted else 1.0,
        "hamming_empty": float(wanted),
        "surplus_pip": float(pip[:, alone].max()) if alone.size else 0.0,
    }


# Graphs


def shd(true: ArrayLike, est: ArrayLike) -> int:
    """Structural Hamming distance: node pairs joined differently; a reversal counts once."""
    return differing_pairs(*_graphs(true, est))


def skeleton_errors(true: ArrayLike, est: ArrayLike) -> int:
    """Node pairs joined in one graph only, whatever the direction."""
    a, b = _graphs(true, est)
    return differing_pairs(a | a.T, b | b.T)


def closure_errors(true: ArrayLike, est: ArrayLike) -> int:
    """Ordered pairs (ancestor, descendant) that hold in one graph only."""
    different = np.logical_xor(*(transitive_closure(graph) for graph in _graphs(true, est)))
    return int(different.sum() - different.trace())


def closure_shd(true: ArrayLike, est: ArrayLike) -> int:
    """Structural Hamming distance of the transitive closures."""
    return differing_pairs(*(transitive_closure(graph) for graph in _graphs(true, est)))


def order_errors(true: ArrayLike, order: Sequence[int] | NDArray) -> int:
    """Edges that point backwards in an order of the nodes, first causes first."""
    graph = as_graph("true", true)
    nodes = np.asarray(order)
    if nodes.shape != graph.shape[:1] or sorted(nodes.tolist()) != list(range(len(graph))):
        reject("order", nodes, f"every node from 0 to {len(graph) - 1} once")
    return int(np.tril(graph[np.ix_(nodes, nodes)]).sum())


def order_right(true: ArrayLike, order: Sequence[int] | NDArray) -> bool:
    """True if no edge points backwards in the order."""
    return order_errors(true, order) == 0


def likely_order(probs: ArrayLike) -> list[int]:
    """An order from edge probabilities: next comes the node with the least expected parents among the rest.

    A topological order wherever the probabilities are those of one acyclic graph; ties go to the smaller
    label.
    """
    p = _edge_probabilities(probs)
    left, order = list(range(len(p))), list[int]()
    while left:
        expected = p[np.ix_(left, left)].sum(0)
        order.append(left.pop(int(np.argmax(expected <= expected.min() + 1e-12))))
    return order


def random_order_right(true: ArrayLike) -> float:
    """Probability that a uniformly random order fits the graph: its linear extensions / nodes!.

    Counted over sets of nodes closed under parents; `nan` beyond 16 nodes, 0 for a graph with a cycle.
    """
    graph = as_graph("true", true)
    if len(graph) > 16:
        return math.nan
    parents = [sum(1 << int(i) for i in np.flatnonzero(column)) for column in graph.T]
    ways = {0: 1}
    for _ in parents:
        step: dict[int, int] = {}
        for done, count in ways.items():
            for node, need in enumerate(parents):
                if not done >> node & 1 and need & done == need:
                    step[done | 1 << node] = step.get(done | 1 << node, 0) + count
        ways = step
    return sum(ways.values()) / math.factorial(len(graph))


def edge_auroc(true: ArrayLike, probs: ArrayLike) -> float:
    """Area under the ROC curve of edge probabilities over ordered pairs; `nan` if all are alike."""
    graph, p = as_graph("true", true), _edge_probabilities(probs)
    if graph.shape != p.shape:
        reject("probs", f"shape {p.shape}", f"shape {graph.shape}, as the true graph")
    off = ~np.eye(len(graph), dtype=bool)
    if graph[off].all() or not graph[off].any():
        return math.nan
    return float(roc_auc_score(graph[off], p[off]))


def graph_scores(
    true: ArrayLike,
    probs: ArrayLike,
    threshold: float = 0.5,
    order: Sequence[int] | NDArray | None = None,
) -> dict[str, float]:
    """All graph metrics of edge probabilities [parent, child], each beside its `_empty` and `_full` value.

    An edge is in where its probability exceeds the threshold. The order is the one given, or `likely_order`;
    empty and full graphs know none, so theirs are the expectations of a random order. "ece" is over edges.
    """
    graph, p = as_graph("true", true), _edge_probabilities(probs)
    if graph.ndim != 2 or graph.shape != p.shape:
        reject("probs", f"shape {p.shape}", f"shape {graph.shape}, as the true graph (parent, child)")
    off = ~np.eye(len(graph), dtype=bool)
    trivial = {"": p > threshold, "_empty": np.zeros_like(graph), "_full": off}
    nodes = likely_order(p) if order is None else order
    scores: dict[str, float] = {}
    for name, metric in {
        "shd": shd,
        "skeleton_errors": skeleton_errors,
        "closure_errors": closure_errors,
        "closure_shd": closure_shd,
    }.items():
        scores |= {name + which: float(metric(graph, est)) for which, est in trivial.items()}
    scores["order_errors"] = float(order_errors(graph, nodes))
    scores["order_right"] = float(order_right(graph, nodes))
    scores["auroc"] = edge_auroc(graph, p)
    scores["ece"] = expected_calibration_error(graph[off], p[off]) if off.any() else 0.0
    for which, ece in {"_empty": graph[off], "_full": ~graph[off]}.items():
        scores["order_errors" + which] = float(graph.sum() / 2)
        scores["order_right" + which] = random_order_right(graph)
        scores["auroc" + which] = 0.5 if not math.isnan(scores["auroc"]) else math.nan
        scores["ece" + which] = float(ece.mean()) if off.any() else 0.0
    return scores


# Calibration


def edge_table(true: ArrayLike, probs: ArrayLike) -> list[list[float]]:
    """[probability, 0 or 1] of every ordered pair of nodes: tables of many graphs, joined, give one calibration."""
    graph, p = as_graph("true", true), _edge_probabilities(probs)
    if graph.shape != p.shape:
        reject("probs", f"shape {p.shape}", f"shape {graph.shape}, as the true graph")
    off = ~np.eye(len(graph), dtype=bool)
    return [[float(a), float(b)] for a, b in zip(p[off], graph[off], strict=True)]


def reorder_graph(probs: ArrayLike, nodes: ArrayLike) -> Floats:
    """Edge probabilities among `nodes` (latent,), the estimates matched with each latent; -1, none, has no edges."""
    graph, nodes = _edge_probabilities(probs), np.asarray(nodes)
    out = graph[np.ix_(nodes, nodes)]
    out[nodes < 0, :] = out[:, nodes < 0] = 0.0
    return out


def expected_calibration_error(outcomes: ArrayLike, probs: ArrayLike, bins: int = 10) -> float:
    """Mean |frequency - mean probability| over bins of equal width, weighted by the entries in each.

    Outcomes 0/1 and probabilities of any one shape. A probability on an edge belongs to the upper bin.
    """
    hit, p = _binary("outcomes", outcomes).ravel(), _probabilities("probs", probs).ravel()
    if len(hit) != len(p) or not len(p):
        reject("probs", f"{len(p)} probabilities", f"one for each of the {len(hit)} outcomes, one or more")
    if bins < 1:
        reject("bins", bins, "1 or more")
    place = np.minimum((p * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, hit - p, minlength=bins)).sum() / len(p))


def foscttm(a: ArrayLike, b: ArrayLike) -> float:
    """Fraction of samples closer than the true match, of the same rows in two views (data, latent), by Euclidean
    distance, in both directions: 0 best, .5 chance (Liu et al. 2019)."""
    nearer = _nearer(a, b)
    return float(np.mean([each.mean() for each in nearer]) / max(1, len(nearer[0]) - 1))


def match_at(a: ArrayLike, b: ArrayLike, k: int = 10) -> float:
    """Share of the rows of two views (data, latent) whose true match is among the k nearest, in both directions."""
    return float(np.mean([(each < k).mean() for each in _nearer(a, b)]))


def _nearer(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """(data,) twice: of each row, how many rows of the other view are nearer than its match."""
    a, b = _rows_alike(a, b, ("a", "b"))
    apart = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    own = apart.diagonal()
    return (apart < own[:, None]).sum(1), (apart < own).sum(0)


def interval_coverage(truth: ArrayLike, draws: ArrayLike, level: float = 0.9) -> float:
    """Share of true values (...) inside the central interval of their draws (draw, ...), ends included."""
    value, sample = floats(truth, "truth"), floats(draws, "draws")
    if sample.shape[1:] != value.shape or sample.ndim < 1 or len(sample) < 2 or not value.size:
        reject("draws", f"shape {sample.shape}", f"(draw, ...) with two draws or more of shape {value.shape}")
    if not np.isfinite(value).all() or not np.isfinite(sample).all():
        reject("truth or draws", "NaN or infinity", "finite numbers")
    if not 0.0 < level < 1.0:
        reject("level", level, "more than 0, less than 1")
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return float(((low <= value) & (value <= high)).mean())


def weighted_quantiles(values: Floats, weights: Floats, levels: Iterable[float]) -> list[Floats]:
    """Quantiles over axis 0 of values (draw, ...) that carry weights (draw,); NaN of no draws."""
    if not len(values):
        return [np.full(values.shape[1:], np.nan) for _ in levels]
    order = np.argsort(values, 0)
    ordered = np.take_along_axis(values, order, 0)
    reached = np.cumsum(weights[order], 0) / weights.sum()
    out = []
    for level in levels:
        at = np.minimum((reached < level - 1e-12).sum(0), len(values) - 1)
        out.append(np.take_along_axis(ordered, at[None], 0)[0])
    return out


def _rows_alike(a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("z_true", "z_est")) -> tuple[Floats, Floats]:
    first, second = as_latents(names[0], a), as_latents(names[1], b)
    if len(first) != len(second):
        reject(names[1], f"{len(second)} rows", f"{len(first)} rows, as {names[0]}")
    return first, second


def _split(rows: int, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    count = round(rows * held_out)
    if min(count, rows - count) < 2:
        reject("held_out", f"{held_out} of {rows} rows", "two rows or more on either side; 0 for no split")
    fit, test = train_test_split(np.arange(rows), test_size=count, random_state=seed)
    return fit, test


def _r2_columns(true: Floats, prediction: Floats) -> Floats:
    """R^2 per column; 0 for a column that is constant."""
    scores = np.asarray(r2_score(true, prediction, multioutput="raw_values"))
    return np.where(np.ptp(true, axis=0) > 0, scores, 0.0)


def _purity(weights: Floats) -> Floats:
    """(row,): 1 - entropy of each row's shares, in units of its largest possible; 0 for a row of zeros."""
    total = weights.sum(1, keepdims=True)
    share = weights / np.where(total > 0, total, 1.0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    largest = math.log(weights.shape[1]) if weights.shape[1] > 1 else 1.0
    return np.where(total[:, 0] > 0, 1.0 - entropy / largest, 0.0)


def _graphs(true: ArrayLike, est: ArrayLike) -> tuple[Bools, Bools]:
    a, b = as_graph("true", true), as_graph("est", est)
    if a.ndim != 2 or a.shape != b.shape:
        reject("est", f"shape {b.shape}", f"shape {a.shape}, as the true graph (parent, child)")
    return a, b


def _binary(argument: str, value: ArrayLike) -> Bools:
    array = dense(value, argument)
    if not np.isin(array, (0, 1)).all():
        reject(argument, "values other than 0 and 1", "0 and 1")
    return array.astype(bool)


def _probabilities(argument: str, value: ArrayLike) -> Floats:
    array = floats(value, argument)
    if not ((array >= 0) & (array <= 1)).all():
        reject(argument, "values outside [0, 1], or NaN", "probabilities")
    return array


def _edge_probabilities(probs: ArrayLike) -> Floats:
    p = _probabilities("probs", probs)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or p.diagonal().any():
        reject("probs", f"shape {p.shape}", "a square array (parent, child) with a diagonal of 0")
    return p
