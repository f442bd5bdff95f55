"""Equations of latents that pairs of rows tell, given the noise behind every row: draws of their posterior.

    z = (I - w^T)^-1 eps;  after latent k was changed  z'_k ~ N(own_level_k, own_scale_k^2),  whatever its parents:
    eps'_k = z'_k - sum_j w_jk z'_j

So w_.k is minus the slopes of the regression of eps'_k on its parents, over the pairs in which k was changed. Where
parents have parents, z'_j is a sum of eps' that rests on weights too, so that the weights into all latents depend on
each other. Given all others, those into one are a linear Gaussian regression in which every changed descendant has a
part: edges and weights are drawn by Gibbs sampling, in many runs at once. Two latents that are neighbours in the order,
and not joined, change places.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import Gamma
from pyrocrl.exact.all_subsets import RATE, SHAPE
from pyrocrl.exact.regression import quadratic, regress

LEVEL = 3.0  # prior deviation of own_level, in units of own_scale
RUNS = 50  # of the sampler at once
BURN, APART = 20, 5  # sweeps before the first draws, and between one draw of a run and the next
CLEAR, NEWTON = 2.0, 30  # deviations from 0 of weights with which runs start; steps to them


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
    latents that were changed."""

    order: Tensor
    graph: Tensor
    weight: Tensor
    precision: Tensor
    own_level: Tensor

    @property
    def total(self) -> Tensor:
        """(draw, latent, latent) T of z = T eps."""
        eye = torch.eye(self.weight.shape[-1], dtype=self.weight.dtype)
        return torch.linalg.inv(eye - self.weight.mT)


def draw(moments: Tensor, edge_probability: float, slab: float) -> Equations:
    """Draws of order, graph and equations. moments: (draw, latent, 1 + latent, 1 + latent), for each draw of the noise
    and each latent, sums of products of (1, eps') over the pairs in which it was changed.

    edge_probability: given an order; slab: prior deviation of a weight, in units of own_scale. Uses torch's own
    generator.
    """
    odds = math.log(edge_probability / (1 - edge_probability))
    parts = moments.split(RUNS)
    state, out = _started(moments.mean(0), len(parts[0]), slab), []
    for place, part in enumerate(parts):
        state = Equations(*(value[: len(part)].clone() for value in state))
        for _ in range(APART if place else BURN):
            state = _swept(state, part, odds, slab)
        out.append(state)
    return Equations(*(torch.cat(values) for values in zip(*out, strict=True)))


def _started(mean: Tensor, runs: int, slab: float) -> Equations:
    """Edges whose weights differ from 0 by `CLEAR` deviations where every latent has all before it as parents, in the
    order in which latents depend least on those that are left; weights at their most probable values."""
    d = len(mean)
    eye = torch.eye(d, dtype=mean.dtype)
    total = eye.clone()  # by the regression of each eps'_k on all others
    for k in range(d):
        rest = [0, *(1 + j for j in range(d) if j != k)]
        square = mean[k, 1 + k, 1 + k]
        slope = regress(mean[k][rest][:, rest], mean[k][rest, 1 + k, None], square[None], torch.ones_like(square))[1]
        total[k, [j for j in range(d) if j != k]] = -slope[1:, 0]
    order: list[int] = []
    while len(order) < d:
        left = [k for k in range(d) if k not in order]
        order.append(min(left, key=lambda k: float(total[k, left].square().sum())))
    rank = torch.tensor(order).argsort()
    graph = (rank[:, None] < rank).to(mean)  # (parent, child)
    weight = graph * (eye - torch.linalg.inv(torch.where(graph.mT > 0, total, eye))).mT
    weight, deviation = _most_probable(mean, graph, weight, slab)
    graph = (weight.abs() > CLEAR * deviation).to(mean)
    weight, _ = _most_probable(mean, graph, weight * graph, slab)
    moved = torch.linalg.inv(eye - weight.mT)
    first, second = _changed(moved[None], mean[None])
    count = mean[:, 0, 0].clamp_min(1.0)
    own_level = first[0] / count
    precision = (SHAPE + 0.5 * count) / (RATE + 0.5 * (second[0] - count * own_level.square()).clamp_min(0.0))
    return Equations(*(v.expand(runs, *v.shape) for v in (torch.tensor(order), graph, weight, precision, own_level)))


def _most_probable(mean: Tensor, graph: Tensor, weight: Tensor, slab: float) -> tuple[Tensor, Tensor]:
    """Weights (parent, child) of most probability given edges, levels and precisions maximised out; their deviations
    by the curvature there; Newton's method."""
    parent, child = torch.nonzero(graph, as_tuple=True)
    if not len(parent):
        return weight, torch.ones_like(weight)
    eye, count = torch.eye(len(graph), dtype=mean.dtype), mean[:, 0, 0]

    def log_density(value: Tensor) -> Tensor:
        total = torch.linalg.inv(eye - torch.zeros_like(eye).index_put((child, parent), value))
        first, second = _changed(total[None], mean[None])
        square = second[0] - first[0].square() / count.clamp_min(1.0)
        return -((SHAPE + 0.5 * count) * (RATE + 0.5 * square).log()).sum() - 0.5 * value.square().sum() / slab**2

    value = weight[parent, child]
    for _ in range(NEWTON):
        curvature, axes = torch.linalg.eigh(-torch.func.jacrev(torch.func.grad(log_density))(value))
        along = axes.mT @ torch.func.grad(log_density)(value)
        step, now = axes @ (along / curvature.clamp_min(1.0)), log_density(value)
        size = next((t for t in (1.0, 0.5, 0.25, 0.1, 0.01) if log_density(value + t * step) >= now), 0.0)
        value = value + size * step
        if float(along @ (along / curvature.clamp_min(1.0))) < 1e-6:
            break
    sd = (axes.square() / curvature.clamp_min(1.0)).sum(1).sqrt()
    put = torch.zeros_like(weight)
    return put.index_put((parent, child), value), torch.ones_like(weight).index_put((parent, child), sd)


def _changed(total: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """(draw, latent) sums of z'_k, and of their squares, over the pairs in which k was changed."""
    first = torch.einsum("sta,sta->st", total, moments[:, :, 1:, 0])
    return first, quadratic(total, moments[:, :, 1:, 1:])


def _swept(state: Equations, moments: Tensor, odds: float, slab: float) -> Equations:
    """A sweep: orders, then edges and weights into each latent, then levels and precisions."""
    order, graph, weight, precision, own_level = state
    runs, d = precision.shape
    at, eye = torch.arange(runs), torch.eye(d, dtype=moments.dtype)
    for place in torch.randperm(d - 1).tolist():
        first, second = order[:, place].clone(), order[:, place + 1].clone()
        swap = (graph[at, first, second] < 0.5) & (torch.rand(runs) < 0.5)
        order[:, place], order[:, place + 1] = torch.where(swap, second, first), torch.where(swap, first, second)
    rank = order.argsort(1)
    for k in torch.randperm(d).tolist():
        total = torch.linalg.inv(eye - weight.mT)
        through = total[:, :, k]  # (run, latent): what a unit of latent k adds to each
        without = total - through[:, :, None] * (total[:, k, None] - eye[k])  # T_t with w_.k = 0
        rest = torch.cat([-own_level[..., None], without], -1)  # (run, latent, 1 + latent)
        told = torch.einsum("st,stab->sab", through.square() * precision, moments)[:, 1:, 1:]
        lean = torch.einsum("st,sta->sa", through * precision, (moments @ rest[..., None])[..., 0])[:, 1:]
        earlier = rank < rank[:, k, None]  # (run, parent)
        rows = earlier[:, :, None] * total  # z' of those that may be parents, from eps'
        curvature, slope = rows @ told @ rows.mT, -(rows @ lean[..., None])[..., 0]
        prior = precision[:, k] / slab**2
        column = weight[:, :, k].clone()
        for j in torch.randperm(d).tolist():
            known = curvature[:, j, j] + prior
            mean = (slope[:, j] - (curvature[:, j] * column).sum(1) + curvature[:, j, j] * column[:, j]) / known
            gain = odds + 0.5 * (prior / known).log() + 0.5 * mean.square() * known
            there = earlier[:, j] & (torch.rand(runs, dtype=gain.dtype) < gain.sigmoid())
            column[:, j] = there * (mean + known.rsqrt() * torch.randn(runs, dtype=gain.dtype))
            graph[:, j, k] = there.to(graph)
        use = graph[:, :, k]
        root = torch.linalg.cholesky(use[:, :, None] * use[:, None] * curvature + prior[:, None, None] * eye)
        mean = torch.cholesky_solve((use * slope)[..., None], root)
        noise = torch.linalg.solve_triangular(root.mT, torch.randn(runs, d, 1, dtype=mean.dtype), upper=True)
        weight[:, :, k] = use * (mean + noise)[..., 0]  # all at once, given the edges
    total = torch.linalg.inv(eye - weight.mT)
    count = moments[:, :, 0, 0]
    first, second = _changed(total, moments)
    shrunk = count + LEVEL**-2
    own_level = first / shrunk + (precision * shrunk).rsqrt() * torch.randn(runs, d, dtype=first.dtype)
    square = second - 2 * own_level * first + shrunk * own_level.square() + weight.square().sum(1) / slab**2
    law = Gamma(SHAPE + 0.5 * (count + 1 + graph.sum(1)), RATE + 0.5 * square.clamp_min(0.0))
    return Equations(order, graph, weight, law.sample(), own_level)
