"""Equations of latents that pairs of rows tell, given the noise behind every row: draws of their posterior.

    z = (I - w^T)^-1 eps;  after latent k was changed  z'_k ~ N(own_level_k, own_scale_k^2),  whatever its parents:
    eps'_k = z'_k - sum_j w_jk z'_j

So w_.k is minus the slopes of the regression of eps'_k on its parents, over the pairs in which k was changed. Where
parents have parents, z'_j is a sum of eps' that rests on weights too: sets of parents are scored with the others'
weights at their posterior means; given orders and graphs that are drawn by these scores, weights are drawn by Gibbs
sampling, each column given all others, exactly.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import Gamma
from pyrocrl.exact import all_subsets, order_sampling, orders
from pyrocrl.exact.all_subsets import RATE, SHAPE
from pyrocrl.exact.regression import regress

LEVEL = 3.0  # prior deviation of own_level, in units of own_scale
SUMMED = 8  # latents up to which orders are drawn from their exact sums
CANDIDATES = 11  # parents that a latent may have where there are more latents than that
PARTICLES = 256
TURNS = 3  # of scoring sets of parents
SWEEPS = 10  # of Gibbs sampling, in each


class Following(TorchDistribution):
    """Numbers (rows,) of rows, some of which follow another row j = place_i, whose noise they keep: value_i is
    N(loc_i + value_j - loc_j, scale_i^2) where `follows`, and N(loc_i, scale_i^2) elsewhere."""

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(
        self, loc: Tensor, scale: Tensor, place: Tensor, follows: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, self.place, self.follows = loc, scale, place, follows
        super().__init__(loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    def expand(self, batch_shape: Any, _instance: Any = None) -> Following:
        return self

    def _shift(self, value: Tensor) -> Tensor:
        return torch.where(self.follows, (value - self.loc)[self.place], 0.0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            noise = self.scale * torch.randn(self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
            first = self.loc + noise
            return torch.where(self.follows, first + self._shift(first), first)

    def log_prob(self, value: Tensor) -> Tensor:
        return log_normal(value - self.loc - self._shift(value), self.scale)


def log_normal(value: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * (value / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


class Equations(NamedTuple):
    """Draws: order (draw, latent), graph and weight (draw, parent, child), precision and own_level (draw, latent) of
    latents that were changed; total (draw, latent, latent) T of z = T eps."""

    order: Tensor
    graph: Tensor
    weight: Tensor
    precision: Tensor
    own_level: Tensor
    total: Tensor


def draw(moments: Tensor, edge_probability: float, slab: float, rng: np.random.Generator) -> Equations:
    """Draws of order, graph and equations. moments: (draw, latent, 1 + latent, 1 + latent), for each draw of the noise
    and each latent, sums of products of (1, eps') over the pairs in which it was changed.

    edge_probability: given an order; slab: prior deviation of a weight, in units of own_scale. Uses torch's own
    generator beside `rng`.
    """
    mean = moments.mean(0)
    d, draws = mean.shape[0], moments.shape[0]
    odds = math.log(edge_probability / (1 - edge_probability))
    total = _regressed(mean)
    for _ in range(TURNS):
        own = _designs(mean, total)
        count = own[:, 0, 0]
        node = torch.arange(d)
        candidates = order_sampling.likely_parents(own, torch.eye(d, dtype=own.dtype), count, CANDIDATES)
        column = torch.cat([torch.zeros(d, 1, dtype=torch.long), 1 + candidates, 1 + node[:, None]], 1)
        some = own[node[:, None, None], column[:, :, None], column[:, None, :]]
        unit = torch.full((some.shape[1],), slab, dtype=own.dtype)
        unit[0], unit[-1] = LEVEL, 1.0
        evidence = all_subsets.log_evidence(some * unit * unit[:, None], count)  # (latent, set)
        order, graph = _graphs(evidence, candidates, odds, draws, rng)
        found = _swept(_started(order, graph, moments, slab), moments, slab)
        total = found.total.mean(0)
    return found


def _regressed(mean: Tensor) -> Tensor:
    """(latent, latent) T of z = T eps by regression of each eps'_k on all others, no graph taken for granted."""
    d = len(mean)
    out = torch.eye(d, dtype=mean.dtype)
    for k in range(d):
        others = [0, *(1 + j for j in range(d) if j != k)]
        slope = regress(mean[k][others][:, others], mean[k][others, 1 + k][:, None], mean[k, 1 + k, 1 + k], out[0, 0])[
            1
        ]
        out[k, [j for j in range(d) if j != k]] = -slope[1:, 0]
    return out


def _designs(mean: Tensor, total: Tensor) -> Tensor:
    """(latent, 1 + latent, 1 + latent) the same of (1, z'), of the latent itself eps'."""
    d = len(mean)
    rows = torch.block_diag(torch.ones(1, 1, dtype=mean.dtype), total).repeat(d, 1, 1)
    node = torch.arange(d)
    rows[node, :, 1 + node] = 0.0  # the noise of a latent is in none of its parents
    rows[node, 1 + node] = 0.0
    rows[node, 1 + node, 1 + node] = 1.0
    return rows @ mean @ rows.mT


def _graphs(
    evidence: Tensor, candidates: Tensor, odds: float, draws: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Orders (draw, latent) and graphs (draw, parent, child) by these scores."""
    scores = evidence + odds * order_sampling.members(candidates.shape[1]).sum(1)
    if len(evidence) <= SUMMED:
        table = order_sampling.over_nodes(scores, candidates)
        order, graph = orders.sample_dags(table.expand(draws, *table.shape))
        return order, graph.to(scores)
    run = order_sampling.OrderSampler(scores, candidates).run(PARTICLES, rng)
    order = torch.as_tensor(run.order[rng.integers(len(run.order), size=draws)])
    return order, torch.stack([order_sampling.Graph(scores, one, candidates).sample() for one in order])


def _started(order: Tensor, graph: Tensor, moments: Tensor, slab: float) -> Equations:
    """Given graphs, weights at their posterior means given those of earlier latents."""
    draws, d = order.shape
    at, one = torch.arange(draws), moments.new_ones(draws)
    total = torch.eye(d, dtype=moments.dtype).repeat(draws, 1, 1)
    weight, precision = torch.zeros_like(total), moments.new_ones(draws, d)
    own_level = torch.zeros_like(precision)
    for k in order.T:
        rows = torch.zeros(draws, d + 1, d + 1, dtype=moments.dtype)  # (1, parents) from (1, eps')
        rows[:, 0, 0] = LEVEL
        rows[:, 1:, 1:] = slab * graph[at, :, k, None] * total
        own = moments[at, k]
        cross = rows @ own[at, :, 1 + k, None]
        _, mean, left = regress(rows @ own @ rows.mT, cross, own[at, 1 + k, 1 + k, None], one)
        precision[at, k] = (SHAPE + 0.5 * own[:, 0, 0]) / (RATE + 0.5 * left[:, 0])
        own_level[at, k] = LEVEL * mean[:, 0, 0]
        weight[at, :, k] = -slab * mean[:, 1:, 0] * graph[at, :, k]
        total[at, k] = total[at, k] + torch.einsum("sj,sjl->sl", weight[at, :, k], total)
    return Equations(order, graph, weight, precision, own_level, total)


def _swept(start: Equations, moments: Tensor, slab: float) -> Equations:
    """Gibbs sampling given graphs: the weights into each latent, which all changed descendants tell of, then levels and
    precisions."""
    graph, weight, precision, own_level = start.graph, start.weight.clone(), start.precision, start.own_level
    draws, d = precision.shape
    eye = torch.eye(d, dtype=moments.dtype)
    size = graph.sum(1)
    for _ in range(SWEEPS):
        for k in range(d):
            total = torch.linalg.inv(eye - weight.mT)
            through = total[:, :, k]  # (draw, latent): what a unit of latent k adds to each
            without = total - through[:, :, None] * (total[:, k, None] - eye[k])  # T_t with w_.k = 0
            rest = torch.cat([-own_level[..., None], without], -1)  # (draw, latent, 1 + latent)
            told = torch.einsum("st,stab->sab", through.square() * precision, moments)
            lean = torch.einsum("st,stab,stb->sa", through * precision, moments, rest)
            rows = graph[:, :, k, None] * total  # z' of parents, from eps'
            own = rows @ told[:, 1:, 1:] @ rows.mT + precision[:, k, None, None] / slab**2 * eye
            root = torch.linalg.cholesky(own)
            mean = -torch.cholesky_solve((rows @ lean[:, 1:, None]), root)
            noise = torch.linalg.solve_triangular(root.mT, torch.randn(draws, d, 1, dtype=own.dtype), upper=True)
            weight[:, :, k] = graph[:, :, k] * (mean + noise)[..., 0]
        total = torch.linalg.inv(eye - weight.mT)
        count = moments[:, :, 0, 0]
        first = torch.einsum("sta,sta->st", total, moments[:, :, 1:, 0])
        second = torch.einsum("sta,stab,stb->st", total, moments[:, :, 1:, 1:], total)
        shrunk = count + LEVEL**-2
        own_level = first / shrunk + (precision * shrunk).rsqrt() * torch.randn(draws, d, dtype=first.dtype)
        square = second - 2 * own_level * first + shrunk * own_level.square() + weight.square().sum(1) / slab**2
        precision = Gamma(SHAPE + 0.5 * (count + 1 + size), RATE + 0.5 * square.clamp_min(0.0)).sample()
    return Equations(start.order, graph, weight, precision, own_level, total)
