"""A point search to stand beside posteriors over observed graphs: greedy steps from the empty graph by BIC."""

from __future__ import annotations

import numpy as np

from pyrocrl.claims.indeterminacy import transitive_closure
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
    moments = []
    for k in range(d):
        use = np.ones(envs) if shifts else 1.0 - hit[:, k]
        moments.append(np.einsum("e,eab->ab", use, np.stack(products)))

    def score(k: int, parents: np.ndarray) -> float:
        m, columns = moments[k], [0, *(1 + np.flatnonzero(parents))]
        rows = max(m[0, 0], 1.0)
        cross = m[columns, 1 + k]
        left = m[1 + k, 1 + k] - cross @ np.linalg.lstsq(m[np.ix_(columns, columns)], cross, rcond=None)[0]
        return -0.5 * rows * np.log(max(left, 1e-12) / rows) - 0.5 * len(columns) * np.log(rows)

    graph = np.zeros((d, d), dtype=bool)
    own = np.array([score(k, graph[:, k]) for k in range(d)])
    flip = np.full((d, d), -np.inf)  # gain of adding or removing an edge

    def refresh(k: int) -> None:
        own[k] = score(k, graph[:, k])
        for j in range(d):
            if j != k:
                parents = graph[:, k].copy()
                parents[j] = not parents[j]
                flip[j, k] = score(k, parents) - own[k]

    for k in range(d):
        refresh(k)
    for _ in range(MOST_STEPS):
        reach = transitive_closure(graph)
        direct = graph.astype(int)
        around = (direct @ (reach | np.eye(d, dtype=bool)).astype(int) - direct) > 0  # another way from j to k
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
    return graph
