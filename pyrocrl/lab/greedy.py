"""A point search to stand beside posteriors over observed graphs: greedy steps from the empty graph by BIC."""

from __future__ import annotations

import numpy as np

from pyrocrl.claims.indeterminacy import joined, transitive_closure
from pyrocrl.data import Data

MOST_STEPS = 10_000


def search(data: Data, intervention: str = "perfect") -> np.ndarray:
    """(parent, child) the DAG that adding, removing and turning single edges leads to, each time the best by BIC.

    A node's rows are those of environments that do not intervene on it, as greedy interventional search takes them;
    under shifts all rows, each environment's about its own means. Of targets that are not told, the latter too.
    """
    d, envs = data.features, len(data.env_names)
    x = np.asarray(data.x, dtype=np.float64)
    hit = data.target_matrix(d) if data.targets is not None else np.zeros((envs, d))
    shifts = intervention == "shift" or data.targets is None
    if shifts:
        x = x - np.stack([x[data.env == e].mean(0) for e in range(envs)])[data.env]
    products = []
    for e in range(envs):
        own = np.column_stack([np.ones((data.env == e).sum()), x[data.env == e]])
        products.append(own.T @ own)
    used = np.ones((d, envs)) if shifts else 1.0 - hit.T
    kinds, kind = np.unique(used, axis=0, return_inverse=True)  # nodes of the same rows share moments
    moments = np.einsum("ue,eab->uab", kinds, np.stack(products))

    graph, node = np.zeros((d, d), dtype=bool), np.arange(d)
    flip = np.full((d, d), -np.inf)  # gain of adding or removing an edge

    def bic(k: int, left: np.ndarray, parents: int) -> np.ndarray:
        rows = max(moments[kind[k], 0, 0], 1.0)
        return -0.5 * rows * np.log(np.maximum(left, 1e-12) / rows) - 0.5 * (1 + parents) * np.log(rows)

    def refresh(k: int) -> None:
        m, inside = moments[kind[k]], np.flatnonzero(graph[:, k])
        columns, size = np.array([0, *(1 + inside)]), len(inside)
        regression = np.linalg.lstsq(m[np.ix_(columns, columns)], m[columns], rcond=None)[0]  # of every column
        left = (m[1 + k] - m[1 + k, columns] @ regression)[1:]
        spread = (m.diagonal() - (m[columns] * regression).sum(0))[1:]
        now = bic(k, left[k], size)
        free = spread > 1e-10 * m.diagonal()[1:]  # not a combination of the parents
        less = np.where(free, left**2 / np.where(free, spread, 1.0), 0.0)
        flip[:, k] = bic(k, left[k] - less, size + 1) - now
        flip[k, k] = -np.inf
        for j in inside:
            rest = columns[columns != 1 + j]
            cross = m[rest, 1 + k]
            without = m[1 + k, 1 + k] - cross @ np.linalg.lstsq(m[np.ix_(rest, rest)], cross, rcond=None)[0]
            flip[j, k] = bic(k, without, size - 1) - now

    for k in range(d):
        refresh(k)
    reach = transitive_closure(graph)
    for _ in range(MOST_STEPS):
        around = joined(graph, reach)  # another way from j to k
        add = np.where(~graph & ~reach.T, flip, -np.inf)
        np.fill_diagonal(add, -np.inf)
        remove = np.where(graph, flip, -np.inf)
        turn = np.where(graph & ~around, flip + flip.T, -np.inf)
        best = max((table.max(), which) for which, table in enumerate((add, remove, turn)))
        if best[0] <= 1e-9:
            break
        j, k = divmod(int((add, remove, turn)[best[1]].argmax()), d)
        graph[j, k] = not graph[j, k]
        refresh(k)
        if best[1] == 2:
            graph[k, j] = True
            refresh(j)
        if best[1] == 0:  # what leads to j now leads to all that k leads to
            reach |= np.outer(reach[:, j] | (node == j), reach[k] | (node == k))
        else:
            reach = transitive_closure(graph)
    return graph
