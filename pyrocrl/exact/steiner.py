"""Prize-collecting Steiner trees by the primal-dual method.

A tree T of a network costs the sum of its edges' costs and of the prizes of the nodes that it leaves out. Moats grow
around the clusters of nodes that still have prizes to pay with, all at one rate, until an edge is paid for from its two
ends, and its clusters become one, or a cluster has paid all of its prizes, and rests (Goemans & Williamson 1995, "A
general approximation technique for constrained forest problems", section 4). Of each tree that has then grown the best
part is kept, by a sum from its leaves: the strong pruning of Johnson, Minkoff & Phillips (2000, "The prize collecting
Steiner tree problem: theory and practice").

With a root, and n nodes, the tree costs at most 2 - 1/(n - 1) times the least; without one at most twice the least
(Feofiloff, Fernandes, Ferreira & de Pina 2010). On a network that is a tree it is the best.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
TIGHT = 1e-12  # of an edge's cost that is left to pay, in units of the largest


def steiner_tree(ends: Array, cost: Array, prize: Array, root: int | None = None) -> tuple[Array, Array]:
    """(node,) whether each node is in the tree, and the places of its edges.

    ends: (edge, 2) nodes of each edge; cost: (edge,) and prize: (node,), neither below 0; root: a node that has to be
    in the tree, None = none. Without a root the tree holds one node at least.
    """
    grown = _grown(ends.tolist(), cost.tolist(), prize.tolist(), root)
    return _pruned(ends.tolist(), cost.tolist(), prize.tolist(), grown, root)


def objective(cost: Array, prize: Array, nodes: Array, edges: Array) -> float:
    """What a tree costs: its edges, and the prizes of nodes outside."""
    return float(cost[edges].sum() + prize[~nodes].sum())


def _grown(ends: list[list[int]], cost: list[float], prize: list[float], root: int | None) -> list[int]:
    """Places of the edges that are paid for: a forest."""
    count, now = len(prize), 0.0
    touching: list[list[int]] = [[] for _ in range(count)]
    for e, pair in enumerate(ends):
        for node in pair:
            touching[node].append(e)
    cluster, members = list(range(count)), [[node] for node in range(count)]
    dies = [p if node != root else 0.0 for node, p in enumerate(prize)]  # when its prizes are paid, if it is awake
    awake = [d > 0 for d in dies]
    paid = [0.0] * count  # of each node's moat; less the time while its cluster is awake
    tight = TIGHT * max(cost, default=0.0)
    queue: list[tuple[float, int, int]] = [(d, -1, node) for node, d in enumerate(dies) if awake[node]]

    def at(node: int) -> float:
        return paid[node] + now if awake[cluster[node]] else paid[node]

    def due(e: int) -> None:
        """Put an edge where it will be paid for if all goes on as now."""
        u, v = ends[e]
        if cluster[u] != cluster[v] and (rate := awake[cluster[u]] + awake[cluster[v]]):
            heapq.heappush(queue, (now + max(cost[e] - at(u) - at(v), 0.0) / rate, e, e))

    for e in range(len(ends)):
        due(e)
    heapq.heapify(queue)
    out = []
    while queue:
        now, kind, which = heapq.heappop(queue)
        if kind < 0:
            if awake[which] and dies[which] <= now and cluster[members[which][0]] == which:
                _rest(which, now, members, awake, paid)
            continue
        one, two = (cluster[node] for node in ends[which])
        if one == two or not (awake[one] or awake[two]):
            continue
        if cost[which] - at(ends[which][0]) - at(ends[which][1]) > tight:
            due(which)  # one of its clusters has gone to rest since
            continue
        out.append(which)
        left = sum(dies[c] - now for c in (one, two) if awake[c])
        stirred = []
        for c in (one, two):
            if not awake[c]:  # it pays again, with the other's prizes
                for node in members[c]:
                    paid[node] -= now
                stirred += members[c]
        big, small = (one, two) if len(members[one]) >= len(members[two]) else (two, one)
        for node in members[small]:
            cluster[node] = big
        members[big] += members[small]
        members[small], awake[small], awake[big] = [], False, True
        dies[big] = now + left
        if left <= 0 or (root is not None and cluster[root] == big):
            _rest(big, now, members, awake, paid)
            continue
        heapq.heappush(queue, (dies[big], -1, big))
        for e in {e for node in stirred for e in touching[node]}:
            due(e)
    return out


def _rest(c: int, now: float, members: list[list[int]], awake: list[bool], paid: list[float]) -> None:
    awake[c] = False
    for node in members[c]:
        paid[node] += now


def _pruned(
    ends: list[list[int]], cost: list[float], prize: list[float], grown: Sequence[int], root: int | None
) -> tuple[Array, Array]:
    """The best part of one of the trees of a forest, or of the root's."""
    beside: list[list[tuple[int, int]]] = [[] for _ in prize]
    for e in grown:
        u, v = ends[e]
        beside[u].append((v, e))
        beside[v].append((u, e))
    above: list[tuple[int, int] | None] = [None] * len(prize)
    order, seen = [], [False] * len(prize)
    for start in [*([] if root is None else [root]), *range(len(prize))]:
        stack = [] if seen[start] else [start]
        while stack:
            node = stack.pop()
            seen[node] = True
            order.append(node)
            for other, e in beside[node]:
                if not seen[other]:
                    above[other] = node, e
                    stack.append(other)
    worth = list(prize)  # of the best tree below a node that holds it
    for node in reversed(order):
        link = above[node]
        if link is not None:
            worth[link[0]] += max(worth[node] - cost[link[1]], 0.0)
    top = max(range(len(prize)), key=worth.__getitem__) if root is None else root
    nodes, edges, stack = np.zeros(len(prize), dtype=bool), [], [top]
    while stack:
        node = stack.pop()
        nodes[node] = True
        for other, e in beside[node]:
            if above[other] == (node, e) and worth[other] > cost[e]:
                edges.append(e)
                stack.append(other)
    return nodes, np.array(sorted(edges), dtype=int)
