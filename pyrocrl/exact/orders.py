"""Exact sums over directed acyclic graphs and their orders (torch); the laws of graphs stand in `indeterminacy`.

A graph over d nodes is a (parent, child) array: ``graph[i, j]`` is true when i -> j. A set of nodes is
an integer whose bit i says whether node i is in it; a *score table* has the shape (..., d, 2**d), entry
``[k, s]`` the log score of node k with the parents s. Entries whose set holds k itself are never read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import permutations, product
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import categorical
from pyrocrl.errors import reject

MAX_NODES = 12  # 2**12 sets for each of 12 nodes: the tables still take less than a megabyte a chain


def is_order_of(order: np.ndarray | list[int], graph: np.ndarray) -> bool:
    """Whether every edge of the graph points forwards in the order (a permutation of its nodes)."""
    rank = np.argsort(np.asarray(order))
    parents, children = np.nonzero(graph)
    return bool(np.all(rank[parents] < rank[children]))


def all_dags(d: int) -> Iterator[np.ndarray]:
    """Every labelled DAG over d <= 5 nodes, once each (1, 3, 25, 543, 29281 of them)."""
    if not 1 <= d <= 5:
        reject("d", str(d), "1 to 5 nodes, whose graphs are enumerated")
    rows, columns = np.triu_indices(d, 1)
    seen: set[bytes] = set()
    for order in permutations(range(d)):
        nodes = np.array(order)
        for edges in product((False, True), repeat=len(rows)):
            graph = np.zeros((d, d), dtype=bool)
            graph[nodes[rows], nodes[columns]] = edges
            if (key := graph.tobytes()) not in seen:
                seen.add(key)
                yield graph


# ---- sums over orders ---------------------------------------------------------------------------------


class _Subsets(NamedTuple):
    """Index tables of the lattice of subsets of d nodes."""

    member: Tensor  # (2**d, d) bool: bit i of the set
    size: Tensor  # (2**d,)
    levels: list[tuple[Tensor, Tensor, Tensor]]  # size s = 1..d: place of S - k in level s - 1, k, S - k
    place: Tensor  # (2**d,) where a set lies in the levels laid end to end


@lru_cache(maxsize=64)
def _subsets(d: int, device: torch.device) -> _Subsets:
    if not 1 <= d <= MAX_NODES:
        reject("d", str(d), f"1 to {MAX_NODES} nodes, over whose orders sums are exact")
    sets = np.arange(2**d)
    member = (sets[:, None] >> np.arange(d)) & 1
    size = member.sum(1)
    by_size = [sets[size == s] for s in range(d + 1)]
    within = np.zeros(2**d, dtype=int)
    for level in by_size:
        within[level] = np.arange(len(level))
    levels = []
    for s in range(1, d + 1):
        node = np.array([np.flatnonzero(member[x]) for x in by_size[s]])  # (sets, s)
        without = by_size[s][:, None] ^ (1 << node)
        place, child, rest = (torch.as_tensor(t, device=device) for t in (within[without], node, without))
        levels.append((place, child, rest))
    return _Subsets(
        torch.as_tensor(member.astype(bool), device=device),
        torch.as_tensor(size, device=device),
        levels,
        torch.as_tensor(np.argsort(np.concatenate(by_size)), device=device),
    )


def members(d: int, device: torch.device | str = "cpu") -> Tensor:
    """(2**d, d) bool: row s lists the nodes of the set s."""
    return _subsets(d, torch.device(device)).member


def parent_sets(graph: Tensor) -> Tensor:
    """(..., child) the set of parents of every node of a graph (..., parent, child)."""
    return ((graph > 0.5) * 2 ** torch.arange(graph.shape[-2], device=graph.device)[:, None]).sum(-2)


def log_edge_prior(d: int, prob: float, device: torch.device | str = "cpu") -> Tensor:
    """(d, 2**d) log prior of parent sets when each possible parent is in with probability prob.

    Given an order, a node with t predecessors has t independent edges; written so that the factor of
    absent edges is the same for every set of an order, the table depends on the set's size alone:
    log odds per edge. The sum over all orders is normalised by `log_order_prior`.
    """
    if not 0 < prob < 1:
        reject("prob", str(prob), "an edge probability strictly between 0 and 1")
    size = _subsets(d, torch.device(device)).size
    return (size.double() * math.log(prob / (1 - prob))).expand(d, -1)


def edge_log_odds(d: int, log_odds: Tensor) -> Tensor:
    """(d, 2**d) log odds of parent sets against none when each possible edge is in with log odds `log_odds` ()."""
    return (members(d, log_odds.device).sum(-1) * log_odds.double()).expand(d, -1)


def log_order_prior(d: int, prob: float) -> float:
    """Log constant that makes order (uniform) x edges (Bernoulli) given the order a normalised prior."""
    return d * (d - 1) / 2 * math.log(1 - prob) - math.lgamma(d + 1)


def sum_over_subsets(scores: Tensor) -> Tensor:
    """Zeta transform: entry [..., S] becomes the log of the sum over all sets within S."""
    for axis in range(scores.shape[-1].bit_length() - 1):
        split = scores.reshape(*scores.shape[:-1], -1, 2, 2**axis)
        both = split.logsumexp(-2)  # not logaddexp: its second derivative is NaN far from balance
        scores = torch.stack([split[..., 0, :], both], -2).flatten(-3)
    return scores


class OrderTables(NamedTuple):
    """What the dynamic program keeps: enough to draw orders and parent sets."""

    scores: Tensor  # (..., d, 2**d) the table given
    node: Tensor  # (..., d, 2**d) log sum over parent sets within S
    prefix: Tensor  # (..., 2**d) log sum over orders of S, and parent sets that fit them


def order_tables(scores: Tensor, best: bool = False) -> OrderTables:
    """Dynamic program over subsets (Friedman & Koller 2003; Koivisto & Sood 2004).

    ``prefix[S] = logsumexp_{k in S} prefix[S - k] + log sum_{s within S - k} exp scores[k, s]``: every
    order and every parent set that fits it, in O(d 2**d) steps. A graph counts once for each order it
    fits (Friedman & Koller's prior). All terms are positive, so it is stable, and it is differentiable
    and free of data-dependent control flow (safe under vmap). With `best`, the outer sum over orders
    is a maximum.
    """
    d = scores.shape[-2]
    table = _subsets(d, scores.device)
    node = sum_over_subsets(scores)
    flat = node.flatten(-2)
    level = torch.zeros_like(flat[..., :1])
    levels = [level]
    for place, child, without in table.levels:
        terms = level[..., place] + flat[..., child * 2**d + without]
        level = terms.amax(-1) if best else terms.logsumexp(-1)
        levels.append(level)
    return OrderTables(scores, node, torch.cat(levels, -1)[..., table.place])


def log_partition(scores: Tensor) -> Tensor:
    """Log of the sum over orders and graphs of exp(sum of scores): (..., d, 2**d) -> (...)."""
    return order_tables(scores).prefix[..., -1]


def only(graph: Tensor) -> Tensor:
    """(node, 2**node) scores that allow one graph (parent, child) alone: 0 of its own parents, -inf of others."""
    shape = (len(graph), 2 ** len(graph))
    closed = torch.full(shape, -torch.inf, dtype=torch.float64, device=graph.device)
    return closed.scatter(1, parent_sets(graph)[:, None], 0.0)


def log_orders(graph: Tensor) -> Tensor:
    """() logarithm of the number of orders that a graph (parent, child) fits."""
    return log_partition(only(graph))


def parent_set_probabilities(scores: Tensor) -> Tensor:
    """Posterior (..., d, 2**d) of every node's parent set: the gradient of `log_partition`."""
    grad: Tensor = torch.func.grad(lambda s: log_partition(s).sum())(scores)
    return grad


def edge_probabilities(scores: Tensor) -> Tensor:
    """Exact edge posterior (..., parent, child) under the order prior."""
    member = members(scores.shape[-2], scores.device).to(scores.dtype)
    return (parent_set_probabilities(scores) @ member).mT.clamp(0.0, 1.0)  # rounding may exceed 1


def best_order(scores: Tensor) -> Tensor:
    """The most probable order, (..., d), parents first; parent sets summed out."""
    tables = order_tables(scores, best=True)
    order, _ = _walk_back(tables, lambda logits: logits.argmax(-1))
    return order


def sample_dags(scores: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """One exact draw of (order, graph) for each batch entry of the table.

    (..., d, 2**d) -> order (..., d), parents first, and graph (..., parent, child) bool, acyclic by
    construction. Randomness is the generator's, or torch's global one: through `torch.rand`, safe under vmap.
    """
    tables = order_tables(scores)
    order, parents = _walk_back(tables, lambda logits: categorical(logits, generator))
    return order, _place(parents, order)


def _place(parents: Tensor, order: Tensor) -> Tensor:
    """Put the parent sets of an order's nodes, (..., d) as integers, into (..., parent, child)."""
    d = order.shape[-1]
    nodes = torch.arange(d, device=order.device)
    bits = (parents[..., :, None] >> nodes) & 1  # (..., place, parent)
    at = order[..., :, None] == nodes  # (..., place, child)
    return (bits[..., :, :, None].bool() & at[..., :, None, :]).any(-3)


def _walk_back(tables: OrderTables, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """From the full set back to the empty one: choose the last node, then its parents."""
    d = tables.scores.shape[-2]
    member = members(d, tables.scores.device)
    bit = 2 ** torch.arange(d, device=member.device)
    sets = torch.arange(2**d, device=member.device)
    flat_node, flat_scores = tables.node.flatten(-2), tables.scores
    rest = torch.full(tables.prefix.shape[:-1], 2**d - 1, device=member.device)
    order, parents = [], []
    for _ in range(d):
        inside = (rest[..., None] & bit) > 0
        without = torch.where(inside, rest[..., None] - bit, 0)  # (..., d)
        logits = tables.prefix.gather(-1, without) + flat_node.gather(
            -1, without + torch.arange(d, device=member.device) * 2**d
        )
        child = choose(torch.where(inside, logits, -torch.inf))
        rest = rest - 2**child
        index = child[..., None, None].expand(*child.shape, 1, 2**d)
        local = flat_scores.gather(-2, index).squeeze(-2)
        allowed = (sets & ~rest[..., None]) == 0
        parents.append(choose(torch.where(allowed, local, -torch.inf)))
        order.append(child)
    return torch.stack(order[::-1], -1), torch.stack(parents[::-1], -1)


# ---- laws of orders and graphs ------------------------------------------------------------------------


def earlier(order: Tensor) -> Tensor:
    """(..., parent, child) bool: whether a node comes before another in an order (..., d)."""
    place = order.argsort(-1)
    return place[..., :, None] < place[..., None, :]


class Order(TorchDistribution):
    """Orders of d nodes, parents first: p(order) proportional to the sum over graphs that fit it of exp(scores).

    scores: (d, 2**d), see `order_tables`. With `log_edge_prior` every order is equally probable; with scores that hold
    the data it is the posterior. Event (d,), a permutation.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, scores: Tensor, validate_args: bool | None = None) -> None:
        self.scores = scores
        super().__init__(torch.Size(), scores.shape[-2:-1], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return sample_dags(self.scores.detach())[0].expand(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        tables = order_tables(self.scores)
        before = (earlier(value) * 2 ** torch.arange(len(value), device=value.device)[:, None]).sum(0)
        return tables.node.gather(-1, before[:, None]).sum() - tables.prefix[-1]


class Graph(TorchDistribution):
    """Graphs that fit an order: p(graph | order) proportional to exp(scores); parent sets are independent.

    scores: (d, 2**d); order: (d,). With `log_edge_prior` each edge that the order allows is Bernoulli. Event (parent,
    child) in {0, 1}; a value that carries a gradient (a straight-through gate) gets what each edge adds as its slope.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, scores: Tensor, order: Tensor, validate_args: bool | None = None) -> None:
        self.scores, self.order = scores, order
        d = scores.shape[-2]
        super().__init__(torch.Size(), torch.Size((d, d)), validate_args=False)

    def _allowed(self) -> Tensor:
        """(child, 2**d) scores of the sets of earlier nodes, -inf elsewhere."""
        d = self.scores.shape[-2]
        member = members(d, self.scores.device)
        later = ~earlier(self.order).mT  # (child, node)
        outside = (member[None] & later[:, None]).any(-1)
        return torch.where(outside, -torch.inf, self.scores)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        chosen = categorical(self._allowed().detach())  # (child,)
        graph = members(self.scores.shape[-2], self.scores.device)[chosen].mT.to(self.scores.dtype)
        return graph.expand(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        allowed = self._allowed()
        own = allowed.gather(-1, parent_sets(value)[:, None]).squeeze(-1)
        flips = self._flips(value, allowed) if value.requires_grad else 0.0
        return (own - allowed.logsumexp(-1)).sum() + flips

    def _flips(self, value: Tensor, allowed: Tensor) -> Tensor:
        """0, whose gradient by each edge is the score with it less the score without it."""
        d = len(value)
        bit = 2 ** torch.arange(d, device=value.device)
        sets = parent_sets(value)[None, :].expand(d, d)  # (parent, child)
        with_, without = sets | bit[:, None], sets & ~bit[:, None]
        gain = (allowed.mT.gather(0, with_) - allowed.mT.gather(0, without)).nan_to_num(posinf=0.0, neginf=0.0)
        return ((value - value.detach()) * gain.detach()).sum()
