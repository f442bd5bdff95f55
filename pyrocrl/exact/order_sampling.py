"""Graphs of more nodes than orders can be summed over: sets of parents summed exactly, orders sampled.

Every node has a list of candidate parents, ``candidates[k]`` (candidate,) of its own; a *score table* has the shape
(node, 2**candidates), entry ``[k, s]`` the log score of node k with the parents ``candidates[k][c]`` for the bits c of
s. Given an order, parents are those candidates that come earlier; the sum over their sets is a look-up in the table of
sums over subsets, by the set of earlier candidates (Friedman & Koller 2003).

Orders are sampled by annealed sequential Monte Carlo (Del Moral, Doucet & Jasra 2006): particles start at uniform
orders, what the rows say enters by steps, after each of which particles are resampled and every node in turn is moved
to a place drawn from its exact conditional. That estimates the sum over all orders as well, so that one run is told
from another that missed a mode.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import categorical
from pyrocrl.exact import all_subsets, orders

KEEP = 0.6  # share of the particles that a step of the annealing leaves effective
CELLS = 2**24  # entries of the nodes' rows of moments that are held at once


# ---- candidates and their sets -------------------------------------------------------------------------------


def likely_parents(moments: Tensor, use: Tensor, count: Tensor, most: int) -> Tensor:
    """(node, candidate) the columns that enter first when a node is regressed on all others, by evidence; sorted.

    moments: (part, 1 + node, 1 + node) sums of products of (1, nodes) over parts of the rows; use: (part, node) in
    {0, 1}, which parts tell of a node's equation; count: (node,) their rows. Forward selection, by the evidence of
    `all_subsets`; all others where there are no more than `most`.
    """
    d = use.shape[1]
    if d - 1 <= most:
        places = torch.arange(d - 1, device=use.device)
        return places + (places >= torch.arange(d, device=use.device)[:, None])
    step = max(1, CELLS // ((d + 1) * (most + len(use))))
    every = torch.arange(d, device=use.device).split(step)
    found = torch.cat([_forward(moments, use[:, nodes], nodes + 1, count[nodes], most) for nodes in every])
    return found.sort(-1).values


def _forward(moments: Tensor, use: Tensor, own: Tensor, count: Tensor, most: int) -> Tensor:
    """(node, most) which other columns enter first, less 1: of some nodes, in the columns `own` of the moments.

    Columns are swept out of each node's moments, of which only the rows that are asked for are made (a Cholesky
    decomposition whose pivots are chosen): a node costs most^2 columns, not columns^2.
    """
    at = torch.arange(len(own), device=own.device)

    def row(column: Tensor) -> Tensor:
        """(node, column) of each node's moments, with a ridge of 1 but for the node itself, one row."""
        found = torch.einsum("pk,pka->ka", use, moments[:, column])
        found[at, column] += (column != own).to(found)
        return found

    pivot = use.mT @ moments.diagonal(dim1=1, dim2=2) + 1.0
    pivot[at, own] -= 1.0
    cross = row(own)
    shape = all_subsets.SHAPE + 0.5 * count
    free = torch.ones_like(pivot, dtype=torch.bool)
    free[at, own], free[:, 0] = False, False
    roots: list[Tensor] = []
    chosen, out = torch.zeros_like(own), []  # the intercept first
    for _ in range(most):
        root = row(chosen)
        for earlier in roots:
            root -= earlier[at, chosen, None] * earlier
        root /= root[at, chosen, None].clamp_min(1e-12).sqrt()
        roots.append(root)
        pivot = pivot - root.square()
        cross = cross - root[at, own, None] * root
        left = pivot.clamp_min(1e-12)
        square = left[at, own, None]
        rest = square - (cross.square() / left).minimum(square)
        gain = -0.5 * left.log() - shape[:, None] * (all_subsets.RATE + 0.5 * rest).log()
        chosen = torch.where(free, gain, -torch.inf).argmax(1)
        free[at, chosen] = False
        out.append(chosen - 1)
    return torch.stack(out, 1)


def members(candidates: int, device: torch.device | str = "cpu") -> Tensor:
    """(2**candidates, candidate) in {0, 1}: which candidates a set holds."""
    sets = torch.arange(2**candidates, device=device)
    return ((sets[:, None] >> torch.arange(candidates, device=device)) & 1).double()


def over_nodes(scores: Tensor, candidates: Tensor) -> Tensor:
    """(node, 2**nodes) the table that `orders` takes, where all other nodes are candidates."""
    bits = orders.members(len(scores), scores.device)[:, candidates].long()  # (set, node, candidate)
    own = (bits * 2 ** torch.arange(candidates.shape[1], device=scores.device)).sum(-1).mT
    return scores.gather(1, own)


def earlier_candidates(order: Tensor, candidates: Tensor) -> Tensor:
    """(..., node) the set of each node's candidates that come before it in an order (..., node)."""
    place = order.argsort(-1)
    before = place[..., candidates] < place[..., None]  # (..., node, candidate)
    return (before * 2 ** torch.arange(candidates.shape[1], device=order.device)).sum(-1)


def log_sum(scores: Tensor, order: Tensor, candidates: Tensor) -> Tensor:
    """() log of the sum over graphs that fit an order (node,) of exp(sum of scores)."""
    return _allowed(scores, order, candidates).logsumexp(-1).sum()


def mean_log_sum(scores: Tensor, order: Tensor, candidates: Tensor) -> Tensor:
    """() mean of `log_sum` over orders (draw, node); its gradient is the probability of every set of parents."""
    table = orders.sum_over_subsets(scores)
    return table.gather(1, earlier_candidates(order, candidates).mT).sum(0).mean()


def edges_of(sets: Tensor, candidates: Tensor) -> Tensor:
    """(parent, child) edge probabilities from those of sets of parents (node, 2**candidates)."""
    d, count = candidates.shape
    inside = (sets @ members(count, sets.device).to(sets)).clamp(0.0, 1.0)  # (node, candidate)
    return torch.zeros(d, d, dtype=sets.dtype, device=sets.device).scatter(1, candidates, inside).mT


def _allowed(scores: Tensor, order: Tensor, candidates: Tensor) -> Tensor:
    """(node, 2**candidates) scores of the sets of earlier candidates, -inf elsewhere."""
    place = order.argsort(-1)
    later = (place[candidates] > place[:, None]).double()  # (node, candidate)
    outside = later @ members(candidates.shape[1], scores.device).mT > 0.5
    return torch.where(outside, -torch.inf, scores)


# ---- laws ----------------------------------------------------------------------------------------------------


class AnyOrder(TorchDistribution):
    """All orders of `count` nodes, equally probable. Event (node,), parents first."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, like: Tensor, count: int, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(torch.Size(), torch.Size((count,)), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.rand(*sample_shape, *self.event_shape, device=self.like.device).argsort(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.like.new_full(value.shape[:-1], -math.lgamma(self.event_shape[0] + 1))


class SampledOrder(TorchDistribution):
    """Draws from a run's orders, whose log-density is known: orders (draw, node), log_density (draw,).

    A law with more orders than were drawn: its density does not sum to 1 over those that are here.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, orders: Tensor, log_density: Tensor, validate_args: bool | None = None) -> None:
        self.orders, self.log_density = orders, log_density
        super().__init__(torch.Size(), orders.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The most probable order: where one has to stand for all."""
        return self.orders[self.log_density.argmax()]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        uniform = torch.rand(sample_shape, device=self.orders.device)
        return self.orders[(uniform * len(self.orders)).long().clamp_max(len(self.orders) - 1)]

    def log_prob(self, value: Tensor) -> Tensor:
        same = (value == self.orders).all(-1)
        return torch.where(same, self.log_density, -torch.inf).amax(-1)


class Graph(TorchDistribution):
    """Graphs that fit an order, each node's parents among its candidates: p proportional to exp(scores).

    scores: (node, 2**candidates); order: (node,). Event (parent, child) in {0, 1}.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, scores: Tensor, order: Tensor, candidates: Tensor, validate_args: bool | None = None) -> None:
        self.scores, self.order, self.candidates = scores, order, candidates
        d = len(scores)
        super().__init__(torch.Size(), torch.Size((d, d)), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        chosen = categorical(_allowed(self.scores, self.order, self.candidates).detach())  # (node,)
        count = self.candidates.shape[1]
        bits = (chosen[:, None] >> torch.arange(count, device=chosen.device)) & 1
        graph = torch.zeros(self.event_shape, dtype=self.scores.dtype, device=chosen.device)
        return graph.scatter(1, self.candidates, bits.to(graph)).mT.expand(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        allowed = _allowed(self.scores, self.order, self.candidates)
        own = allowed.gather(1, parents_among(value, self.candidates)[:, None])[:, 0]
        others = value.sum() > value.mT.gather(1, self.candidates).sum()  # a parent that is no candidate
        return torch.where(others, -torch.inf, (own - allowed.logsumexp(-1)).sum())


def parents_among(graph: Tensor, candidates: Tensor) -> Tensor:
    """(node,) the set of each node's parents, as a set of its candidates."""
    inside = (graph.mT.gather(1, candidates) > 0.5).long()
    return (inside * 2 ** torch.arange(candidates.shape[1], device=graph.device)).sum(-1)


# ---- sampling orders -----------------------------------------------------------------------------------------


TUNING = 32  # particles of the short run that sets the log odds of an edge
TURNS = 5  # of setting them


class Run(NamedTuple):
    """Particles of a run: keys (particle, node), whose orders they stand for, these' `log_sum` (particle,), and the log
    of its sum over orders.

    edge: the log odds of an edge that the scores had.
    """

    key: np.ndarray
    value: np.ndarray
    log_total: float
    edge: float = 0.0


def run(
    evidence: Tensor, candidates: Tensor, prior: tuple[float, float], particles: int, rng: np.random.Generator
) -> Run:
    """Orders given the log odds of an edge at their posterior mode, which EM finds along a short run.

    evidence: (node, 2**candidates) log evidence of every set of parents; prior: mean and deviation of the log odds.
    """
    size, d = members(candidates.shape[1]).sum(1), len(candidates)
    edge, key = prior[0], None
    for _ in range(TURNS):
        sampler = OrderSampler(evidence + edge * size, candidates)
        if key is None:
            key = sampler.run(TUNING, rng).key
        else:
            sampler.sweep(key, 1.0, rng, 2)
        edge = _log_odds(sampler.expected_edges(key), d * (d - 1) / 2, *prior)
    sampler = OrderSampler(evidence + edge * size, candidates)
    found = sampler.run(particles, rng)
    sampler.sweep(found.key, 1.0, rng, TURNS)
    return Run(found.key, sampler.values(found.key), found.log_total, edge)


def _log_odds(count: float, most: float, mean: float, sd: float) -> float:
    """Their posterior mode where `count` of `most` edges are there."""
    x = mean
    for _ in range(50):  # Newton, on a concave function
        p = 1.0 / (1.0 + math.exp(-x))
        x -= max(-1.0, min(1.0, (most * p - count + (x - mean) / sd**2) / (most * p * (1.0 - p) + 1.0 / sd**2)))
    return x


class OrderSampler:
    """Orders with probability proportional to the product over nodes of the sums over sets of earlier candidates.

    An order is that of keys (particle, node), a priori independent and uniform in (0, 1): then a node's place matters
    among those nodes alone that have to do with it, its candidates and its suitors, whose candidate it is, and moving
    it costs nothing for all others.
    """

    def __init__(self, scores: Tensor, candidates: Tensor) -> None:
        """scores: (node, 2**candidates); candidates: (node, candidate)."""
        self.table = orders.sum_over_subsets(scores).numpy()
        self.candidates = candidates.numpy()
        d, count = self.candidates.shape
        self.bits = 2 ** np.arange(count)
        self.suitors: list[np.ndarray] = []
        self.near: list[np.ndarray] = []
        self.own: list[np.ndarray] = []  # (near,) each near node's bit among the node's candidates, 0 of mere suitors
        self.held: list[np.ndarray] = []  # (suitor,) the node's bit among each suitor's candidates
        by_parent = np.argsort(self.candidates.ravel(), kind="stable")
        ends = np.searchsorted(self.candidates.ravel()[by_parent], np.arange(d + 1))
        for v in range(d):
            suitors, places = np.divmod(by_parent[ends[v] : ends[v + 1]], count)
            near = np.union1d(self.candidates[v], suitors)
            own = np.zeros(len(near), dtype=np.int64)
            own[np.searchsorted(near, self.candidates[v])] = self.bits
            for kept, value in zip(
                (self.suitors, self.held, self.near, self.own), (suitors, self.bits[places], near, own), strict=True
            ):
                kept.append(value)

    def values(self, key: np.ndarray) -> np.ndarray:
        """(particle,) log of the sum over graphs that fit each row of keys (particle, node)."""
        before = key[:, self.candidates] < key[:, :, None]
        return self.table[np.arange(len(self.table)), before @ self.bits].sum(1)

    def move(self, key: np.ndarray, node: int, power: float, rng: np.random.Generator) -> None:
        """Draw this node's key anew in each row of keys, from its conditional, orders' probabilities to this power."""
        near, suitors, held = self.near[node], self.suitors[node], self.held[node]
        row = np.arange(len(key))[:, None]
        order = np.argsort(key[:, near], 1)
        edges = np.pad(key[row, near[order]], ((0, 0), (1, 1)), constant_values=((0, 0), (0.0, 1.0)))
        earlier = np.pad(self.own[node][order].cumsum(1), ((0, 0), (1, 0)))
        value = self.table[node, earlier]  # (particle, gap)
        if suitors.size:
            key[:, node] = np.inf  # in no set of earlier candidates
            without = (key[:, self.candidates[suitors]] < key[:, suitors, None]) @ self.bits
            gain = np.zeros((len(key), len(near)))
            at = np.searchsorted(near, suitors)
            gain[:, at] = self.table[suitors, without + held] - self.table[suitors, without]
            value[:, :-1] += gain[row, order][:, ::-1].cumsum(1)[:, ::-1]  # of those that come after the gap
        size = np.diff(edges)
        with np.errstate(divide="ignore"):  # of two keys that are the same to a computer's precision
            noisy = power * value + np.log(size) - np.log(-np.log(rng.random(size.shape)))
        gap = noisy.argmax(1)[:, None]
        key[:, node] = (edges[row, gap] + size[row, gap] * rng.random(gap.shape))[:, 0]

    def sweep(self, key: np.ndarray, power: float, rng: np.random.Generator, times: int = 1) -> None:
        """Draw every node's keys anew, in random turns."""
        for _ in range(times):
            for node in rng.permutation(key.shape[1]):
                self.move(key, int(node), power, rng)

    def run(self, particles: int, rng: np.random.Generator) -> Run:
        """Annealed from uniform orders to those that the table says."""
        d = len(self.table)
        key = rng.random((particles, d))
        value, power, log_total = self.values(key), 0.0, math.lgamma(d + 1)
        while power < 1.0:
            step = _next_step(value, 1.0 - power)
            log_weight = step * value
            largest = log_weight.max()
            weight = np.exp(log_weight - largest)
            log_total += largest + math.log(weight.mean())
            power = 1.0 if step >= 1.0 - power else power + step
            start = (rng.random() + np.arange(particles)) / particles  # systematic resampling
            kept = np.searchsorted(np.cumsum(weight) / weight.sum(), start).clip(max=particles - 1)
            key = key[kept]
            self.sweep(key, power, rng)
            value = self.values(key)
        return Run(key, value, log_total)

    def expected_edges(self, key: np.ndarray) -> float:
        """Mean over orders of the number of edges, given that each is followed."""
        mask = (key[:, self.candidates] < key[:, :, None]) @ self.bits  # (particle, node)
        node = np.arange(len(self.table))
        without = self.table[node[:, None], mask[:, :, None] & ~self.bits]  # (particle, node, candidate)
        return float((1.0 - np.exp(without - self.table[node, mask][:, :, None])).sum() / len(key))


def _next_step(value: np.ndarray, rest: float) -> float:
    """The largest step of the power, `rest` at most, that leaves `KEEP` of the particles effective."""

    def effective(step: float) -> float:
        weight = np.exp(step * (value - value.max()))
        return float(weight.sum() ** 2 / (weight**2).sum() / len(value))

    if effective(rest) >= KEEP:
        return rest
    low, high = 0.0, rest
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= KEEP else (low, middle)
    return max(low, 1e-9 * rest)
