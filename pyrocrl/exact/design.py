"""Which intervention next: what rows of one would tell of linear equations, and how near to a goal it would lead.

    x_k = beta_k' (1, x) + a_k + s_k eps_k,   beta_k = (c_k, w_k), w_k = 0 but for parents                 (node,)

An action shifts equations by a, or sets nodes: what is set has the equation x_k = a_k. m(a) is the mean of x under it.
A goal is a mean mu of some of the nodes; had x this mean, equation k would need the shift mu_k - beta_k' (1, mu).

Beliefs are draws of the equations. What n rows under an action would tell of beta_k, whose variance is V_k, is taken in
two steps: their covariance C leaves U_k = (V_k^-1 + n C / s_k^2)^-1, and their mean m of the variance of u' beta_k

    u' U_k u - (u' U_k m)^2 / (s_k^2 / n + m' U_k m),

whose mean over draws of m is taken; u, m and C are told with the constant 1. Where the graph is given that is what rows
leave on average, up to how they fall; else it is the least that an estimate linear in the rows can have left.

Zhang, Cammarata, Squires, Sapsis & Uhler (2023), Active learning for optimal intervention design in causal models;
their rule has no rows' covariance and the posterior mean in place of draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.exact import regression


class Action(NamedTuple):
    """value (node,) is added to the equations, or is what nodes are set to where `held` (node,)."""

    value: Tensor
    held: Tensor


@dataclass(frozen=True)
class Equations:
    """Draws of weight (draw, parent, child), constant (draw, node) and noise (draw, node); mean (node, 1 + node) of
    beta, and root (node, 1 + node, 1 + node) of its variance, root root'."""

    weight: Tensor
    constant: Tensor
    noise: Tensor
    mean: Tensor
    root: Tensor

    @classmethod
    def of_draws(cls, weight: Tensor, constant: Tensor, noise: Tensor) -> Equations:
        beta = torch.cat([constant[:, None], weight], 1).mT
        apart = (beta - beta.mean(0)).transpose(0, 1)  # (node, draw, 1 + node)
        size, turn = torch.linalg.eigh(apart.mT @ apart / (len(beta) - 1))
        return cls(weight, constant, noise, beta.mean(0), turn * size.clamp_min(0.0).sqrt()[:, None, :])

    @property
    def beta(self) -> Tensor:
        """(draw, node, 1 + node) constant and weights of each equation."""
        return torch.cat([self.constant[:, None], self.weight], 1).mT

    @cached_property
    def total(self) -> Tensor:
        """(draw, node, node) what a shift of the second adds to the first."""
        return _total(self.weight)

    @cached_property
    def variance(self) -> Tensor:
        """(node,) of noise."""
        return self.noise.square().mean(0)

    @cached_property
    def spread(self) -> Tensor:
        """(node, node) covariance of rows, the mean of the draws'."""
        return _spread(self.total, self.noise)

    def shifted(self, shift: Tensor) -> Tensor:
        """(..., draw, node) mean of x under shifts (..., node)."""
        return torch.einsum("dkj,...dj->...dk", self.total, self.constant + shift[..., None, :])

    def under(self, action: Action) -> tuple[Tensor, Tensor]:
        """Mean (draw, node) and covariance (node, node) of x under an action."""
        if not action.held.any():
            return self.shifted(action.value), self.spread
        free = (~action.held).to(self.weight)
        total = _total(self.weight * free)  # no parents of what is held
        constant = torch.where(action.held, action.value, self.constant + action.value)
        return torch.einsum("dkj,dj->dk", total, constant), _spread(total, self.noise * free)

    def rescaled(self, centre: Tensor, scale: Tensor) -> Equations:
        """The equations of centre + scale x, both (node,)."""
        turn = torch.diag(torch.cat([torch.ones(1).to(scale), 1.0 / scale]))
        turn[0, 1:] = -centre / scale
        zero = torch.nn.functional.pad(centre[:, None], (0, len(centre)))  # (node, 1 + node)
        beta, mean = (scale[:, None] * (v @ turn.mT) + zero for v in (self.beta, self.mean))
        root = scale[:, None, None] * (turn @ self.root)
        return Equations(beta[..., 1:].mT, beta[..., 0], scale * self.noise, mean, root)

    def told(self, action: Action, rows: float) -> Equations:
        """The same beliefs, with the variance that rows under an action leave."""
        mean, covariance = self.under(action)
        one = _with_one(mean)
        root, _ = self.less(one.mT @ one / len(one) + torch.nn.functional.pad(covariance, (1, 0, 1, 0)), rows)
        return replace(self, root=torch.where(action.held[:, None, None], self.root, root))

    def less(self, second: Tensor, rows: float) -> tuple[Tensor, Tensor]:
        """A root (node, 1 + node, 1 + node) of the variance of beta that rows of second moments (1 + node, 1 + node)
        leave, and what they tell of beta (node,), nats."""
        inner = self.root.mT @ second @ self.root * (rows / self.variance)[:, None, None]
        inner = torch.linalg.cholesky(inner + torch.eye(inner.shape[-1]).to(inner))
        root = torch.linalg.solve_triangular(inner, self.root.mT, upper=False).mT
        return root, inner.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Outcome(NamedTuple):
    """Of an action or of several: mean (..., draw, node) of x; variance (..., node) that its rows leave of u' beta; and
    what they tell of beta, information (..., node) in nats."""

    mean: Tensor
    variance: Tensor
    information: Tensor


def outcome(known: Equations, action: Action, rows: float, u: Tensor) -> Outcome:
    """What rows under an action show and leave."""
    mean, covariance = known.under(action)
    out = of_mean(known, known.less(torch.nn.functional.pad(covariance, (1, 0, 1, 0)), rows), mean, rows, u)
    before = (known.root.mT @ u).square().sum(-1)
    return Outcome(mean, torch.where(action.held, before, out.variance), out.information * ~action.held)


def of_mean(known: Equations, spread: tuple[Tensor, Tensor], mean: Tensor, rows: float, u: Tensor) -> Outcome:
    """The same of means (..., draw, node), once the rows' covariance is told: `spread`, see `Equations.less`."""
    root, information = spread
    one, along = _with_one(mean), (root @ (root.mT @ u)[..., None])[..., 0]  # along: (node, 1 + node)
    reach = torch.einsum("...da,kab->...dkb", one, root).square().sum(-1) * (rows / known.variance)
    gain = (one @ along.mT).square() * (rows / known.variance) / (1.0 + reach)  # (..., draw, node)
    return Outcome(mean, along @ u - gain.mean(-2), information + 0.5 * torch.log1p(reach).mean(-2))


def best_shift(known: Equations, goal: Tensor, there: Tensor, acting: Tensor, norm: float) -> Tensor:
    """(node,) the shift of norm at most `norm`, of nodes `acting` (node,) alone, under which the squared distance of
    the mean of x from `goal` in the nodes `there` (node,) is least on average over draws: a quadratic in a ball."""
    effect = known.total[:, there][:, :, acting]  # (draw, goal, acting)
    apart = goal[there] - (known.total[:, there] @ known.constant[..., None])[..., 0]
    size, turn = torch.linalg.eigh((effect.mT @ effect).mean(0))
    pull = turn.mT @ (effect.mT @ apart[..., None]).mean(0)[:, 0]
    floor = size.amax() * 1e-10 + torch.finfo(size.dtype).tiny
    low, high = torch.zeros_like(floor), pull.norm() / norm
    if (pull / (size.clamp_min(0.0) + floor)).norm() > norm:
        for _ in range(100):
            middle = (low + high) / 2
            outside = (pull / (size.clamp_min(0.0) + floor + middle)).norm() > norm
            low, high = (middle, high) if outside else (low, middle)
    else:
        high = low
    out = torch.zeros_like(goal)
    out[acting] = turn @ (pull / (size.clamp_min(0.0) + floor + high))
    return out


def given_graph(
    graph: Tensor,
    x: Tensor,
    shift: Tensor,
    use: Tensor,
    unit: Tensor,
    draws: int,
    noise: Tensor | None = None,
    prior: tuple[float, float] = (regression.SHAPE, regression.RATE),
) -> Equations:
    """The posterior of a known graph's equations, each a conjugate regression on its parents, and `draws` of it.

    graph: (parent, child); x, shift: (row, node), of known shifts; use: (row, node), whether a row follows the node's
    equation. unit: (1 + node,) prior deviations of constant and weights in that of the noise, 0 = it is 0. noise:
    (node,) its deviation where known, else the precision has a Gamma prior of this shape and rate (`prior`).
    """
    d = graph.shape[-1]
    inside = torch.cat([torch.ones_like(graph[:1]), graph]).mT * unit  # (node, 1 + node)
    one = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    y, used = x - shift, use.to(x)
    gram = torch.einsum("rk,ra,rb->kab", used, one, one) * inside[:, :, None] * inside[:, None]
    cross = torch.einsum("rk,ra,rk->ka", used, one, y)[..., None] * inside[..., None]
    square = (used * y.square()).sum(0)[:, None]
    root, mean, rest = regression.regress(gram, cross, square, torch.ones(d).to(x))
    law = regression.Conjugate(prior[0] + 0.5 * used.sum(0), prior[1] + 0.5 * rest[:, 0], mean[..., 0], root)
    precision = law.precision().sample((draws,)) if noise is None else noise.square().reciprocal().expand(draws, d)
    beta = torch.stack([law.weights(one).sample() for one in precision]) * inside  # (draw, node, 1 + node)
    variance = noise.square() if noise is not None else precision.reciprocal().mean(0)
    root = (
        torch.linalg.solve_triangular(root, torch.diag_embed(inside), upper=False).mT * variance.sqrt()[:, None, None]
    )
    return Equations(beta[..., 1:].mT, beta[..., 0], precision.rsqrt(), law.mean * inside, root)


def _total(weight: Tensor) -> Tensor:
    return torch.linalg.inv(torch.eye(weight.shape[-1]).to(weight) - weight.mT)


def _spread(total: Tensor, noise: Tensor) -> Tensor:
    scaled = total * noise[:, None]
    return (scaled @ scaled.mT).mean(0)


def _with_one(mean: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(mean[..., :1]), mean], -1)
