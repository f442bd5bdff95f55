"""Studies of views that each see some of the latents: what intersections of views hold, beside canonical correlations.

Models list them, so this file loads what scores them only when it does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.studies import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

READ = 1_000  # rows, at most, by which a nonlinear read-out is fitted, and as many by which it is scored


@dataclass(frozen=True)
class Intersections(Study):
    """R^2 of what every two views see in common, and all of them, from what the fit says they have in common.

    intersection_r2: mean over sets of views, intersection_least: of the least; beyond_r2: of the latents that some of
    these views see and others of them do not, from the same, the most over sets; pairwise_: of canonical variates of
    the first two views of a set, as many as they truly share; regression_: of the intersection from x. Read-outs are
    linear where the mixing is, else kernel regressions. sees_exact: whether which views see how many latents is right,
    by probabilities above one half; sees_wrong: share of its entries that is not, latents matched as well as may be.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        z, sees = data.truth["z"], by_view(data.truth["mask"], data)
        linear = not self.options.get("layers")
        estimate, found = result.latents(data), by_view(result.mask(), data) > 0.5
        x = np.where(np.isnan(data.x), 0.0, (data.x - np.nanmean(data.x, 0)) / np.nanstd(data.x, 0))
        fitted = result.data
        assert fitted is not None
        views = range(len(sees))
        rows: list[dict[str, float]] = []
        for own in {*itertools.combinations(views, 2), tuple(views)}:
            shared = sees[list(own)].all(0)
            beyond = sees[list(own)].any(0) & ~shared
            if not shared.any():
                continue
            block = estimate[:, found[list(own)].all(0)]
            cca = canonical(fitted, data, own[0], own[1], int(shared.sum()))
            row = {"intersection_r2": read(block, z[:, shared], linear)}
            row["regression_intersection_r2"] = read(x, z[:, shared], linear)
            row["pairwise_intersection_r2"] = read(cca, z[:, shared], linear)
            if beyond.any():
                row["beyond_r2"] = read(block, z[:, beyond], linear)
                row["pairwise_beyond_r2"] = read(cca, z[:, beyond], linear)
            rows.append(row)
        out: dict[str, float] = {}
        for name in ("intersection_r2", "regression_intersection_r2", "pairwise_intersection_r2"):
            out[name] = float(np.mean([row[name] for row in rows]))
        out["intersection_least"] = min(row["intersection_r2"] for row in rows)
        for name in ("beyond_r2", "pairwise_beyond_r2"):
            out[name] = max((row[name] for row in rows if name in row), default=0.0)
        same = sorted(map(tuple, sees.T)) == sorted(map(tuple, found.T))
        return out | {"sees_exact": float(same), "sees_wrong": apart(sees, found)}

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}


def by_view(mask: Any, data: Data) -> np.ndarray:
    """(view, latent) of (feature, latent), the same for all features of a view."""
    assert data.view is not None
    return np.asarray(mask)[[int(np.argmax(np.asarray(data.view) == v)) for v in range(len(data.view_names))]] > 0.5


def apart(sees: np.ndarray, found: np.ndarray) -> float:
    """Share of the entries (view, latent) that differ, latents matched as well as may be."""
    from scipy.optimize import linear_sum_assignment

    cost = (sees[:, :, None] != found[:, None, :]).sum(0)
    return float(cost[linear_sum_assignment(cost)].sum() / sees.size)


def block_scores(result: Fit, data: Data) -> dict[str, float]:
    """r2: mean R^2 of true latents, each from those that, by the fit, all of its views see; wrong_entries: `apart`."""
    from pyrocrl.judge import metrics

    z, sees = data.truth["z"], by_view(data.truth["mask"], data)
    estimate, found = result.latents(data), by_view(result.mask(), data)
    blocks = [estimate[:, found[own].all(0)] for own in sees.T]
    each = [metrics.r2(z[:, [k]], one) if one.shape[1] else 0.0 for k, one in enumerate(blocks)]
    return {"r2": float(np.mean(each)), "wrong_entries": apart(sees, found)}


def read(inputs: np.ndarray, outputs: np.ndarray, linear: bool) -> float:
    """Held-out R^2, mean over columns, of a linear or a kernel regression; 0 from nothing."""
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV

    from pyrocrl.judge import metrics

    if not inputs.shape[1]:
        return 0.0
    if linear:
        return metrics.r2(outputs, inputs)
    half = min(READ, len(inputs) // 2)
    units = (inputs - inputs[:half].mean(0)) / np.maximum(inputs[:half].std(0), 1e-12)
    grid = {"gamma": [0.3 / units.shape[1], 0.05 / units.shape[1]], "alpha": [0.1, 0.01]}
    found = GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=3).fit(units[:half], outputs[:half])
    test = slice(half, 2 * half)
    left = np.square(outputs[test] - found.predict(units[test])).mean(0)
    return float((1 - left / outputs[test].var(0)).mean())


def canonical(fitted: Data, data: Data, first: int, second: int, count: int) -> np.ndarray:
    """(data, count) canonical variates of two views, means of both sides, by the rows that have both."""
    assert fitted.view is not None
    sides, places = [], [np.flatnonzero(np.asarray(fitted.view) == v) for v in (first, second)]
    both = ~np.isnan(fitted.x[:, [places[0][0], places[1][0]]]).any(1)
    whites = []
    for own in places:
        x = fitted.x[both][:, own]
        centre = x.mean(0)
        root = np.linalg.cholesky(np.cov(x.T) + 1e-9 * np.eye(len(own)) * x.var())
        whites.append(np.linalg.solve(root, (x - centre).T).T)
        new = np.where(np.isnan(data.x[:, own]), centre, data.x[:, own]) - centre
        sides.append(np.linalg.solve(root, new.T).T)
    u, _, w = np.linalg.svd(whites[0].T @ whites[1])
    return 0.5 * (sides[0] @ u[:, :count] + sides[1] @ w[:count].T)
