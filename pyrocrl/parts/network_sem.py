"""Nonlinear structural equations with hard interventions: densities of rows, and the posterior of the graph.

    z_k = m_k(z_pa(k)) + s_k(z_pa(k)) e_k,   m_k and log s_k: a network's output, e_k: a mixture of normals

An environment that intervenes on k cuts the parents and gives z_k a mixture of normals of its own.

Graphs are scored by `exact.basis_regression`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl.dists import Normal
from pyrocrl.exact import orders, sharing
from pyrocrl.exact.basis_regression import RIDGE, Posterior

HIDDEN = 24  # units of an equation's network
COMPONENTS = 3  # of mixtures


class Mixture(nn.Module):
    """Mixtures of normals, one for each entry of a shape (...)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(*shape, COMPONENTS))
        self.loc = nn.Parameter(torch.linspace(-0.7, 0.7, COMPONENTS).repeat(*shape, 1))
        self.log_scale = nn.Parameter(torch.full((*shape, COMPONENTS), -0.3))

    @torch.no_grad()
    def start(self, mean: Tensor, sd: Tensor) -> None:
        """About the normal law of these means and deviations (...)."""
        grid = torch.linspace(-0.7, 0.7, COMPONENTS).to(mean)
        self.loc.copy_(mean[..., None] + sd[..., None] * grid)
        self.log_scale.copy_((0.85 * sd).log()[..., None].expand_as(self.log_scale))
        self.logits.zero_()

    def log_prob(self, value: Tensor, index: Tensor | None = None) -> Tensor:
        """index: (rows,) leading positions of the mixtures of each row; None: the same for all rows."""
        logits, loc, log_scale = (v if index is None else v[index] for v in (self.logits, self.loc, self.log_scale))
        standard = (value[..., None] - loc) / log_scale.exp()
        each = logits.log_softmax(-1) - 0.5 * standard.square() - log_scale
        return each.logsumexp(-1) - 0.5 * math.log(2 * math.pi)

    def entry(self, k: int, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, location and log scale (..., component) of mixture k; index: as in `log_prob`."""
        logits, loc, log_scale = (
            v[..., k, :] if index is None else v[index, k] for v in (self.logits, self.loc, self.log_scale)
        )
        return logits, loc, log_scale


class NetworkSEM(nn.Module):
    """p(z | env) of rows (rows, latent). target_matrix: (env, latent) in {0, 1}.

    `before` (parent, child) holds the chain's order: every earlier latent is a parent while the chain is trained.
    """

    before: Tensor
    target: Tensor
    table: Tensor

    def __init__(self, latents: int, target_matrix: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(latents, latents))  # (parent, child)
        self.inner = nn.Parameter(torch.randn(latents, latents, HIDDEN))  # (parent, child, unit)
        self.bias = nn.Parameter(torch.randn(latents, HIDDEN))
        self.outer = nn.Parameter(0.01 * torch.randn(latents, HIDDEN, 2))  # to location and log scale
        self.intercept = nn.Parameter(torch.zeros(latents))
        self.log_scale = nn.Parameter(torch.zeros(latents))
        self.noise = Mixture(latents)
        self.own = Mixture(len(target_matrix), latents)
        self.register_buffer("target", torch.as_tensor(target_matrix, dtype=torch.get_default_dtype()))
        self.register_buffer("before", torch.ones(latents, latents).triu(1))
        # log scores of parent sets given the rows; see `Posterior`
        self.register_buffer("table", torch.zeros(latents, 2**latents, dtype=torch.float64))

    def equations(self, z: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale (rows, latent) of every latent given its parents in `graph` (parent, child)."""
        unit = torch.nn.functional.silu(
            (z @ (self.inner * graph[..., None]).flatten(1)).unflatten(-1, self.bias.shape) + self.bias
        )
        out = torch.einsum("rkh,kho->rko", unit, self.outer)
        loc = self.intercept + z @ (self.linear * graph) + out[..., 0]
        return loc, (self.log_scale + 2.0 * (0.5 * out[..., 1]).tanh()).exp()

    def log_prob(self, z: Tensor, env: Tensor) -> Tensor:
        """(rows,)"""
        loc, scale = self.equations(z, self.before)
        natural = self.noise.log_prob((z - loc) / scale) - scale.log()
        hit = self.target[env]
        return (natural + hit * (self.own.log_prob(z, env) - natural)).sum(-1)

    def acting(self, env: Tensor, together: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """(rows, latent) whether latents are intervened on, and the environment that says how.

        env: (rows,) the rows' own; together: environments whose interventions act together in its place, each target
        with its law from the last of them that targets it.
        """
        if together is None:
            return self.target[env] > 0.5, env[:, None].expand(-1, self.target.shape[1])
        hit, last = sharing.acting_together(self.target, together)
        return hit.expand(len(env), -1), last.expand(len(env), -1)

    def law(self, k: int, z: Tensor, graph: Tensor, hit: Tensor, env: Tensor) -> Any:
        """Of latent k (rows,) given z (rows, latent) under a graph (parent, child), or where `hit` (rows,) its mixture
        in the environments `env` (rows,)."""
        loc, scale = (v[:, k, None] for v in self.equations(z, graph.to(z.dtype)))
        logits, at, log_scale = self.noise.entry(k)
        natural = (logits.expand(len(z), -1), loc + scale * at, scale * log_scale.exp())
        own_logits, own_at, own_log_scale = self.own.entry(k, env)
        own = (own_logits, own_at, own_log_scale.exp())
        logits, at, spread = (torch.where(hit[:, None], a, b) for a, b in zip(own, natural, strict=True))
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), Normal(at, spread))

    def prior(self) -> Tensor:
        """Weak log prior of the parameters."""
        total = 0.5 * self.outer.square().sum() + 0.05 * (self.inner.square().sum() + self.bias.square().sum())
        for mixture in (self.noise, self.own):
            total = total + 0.5 * (mixture.log_scale.square().sum() + mixture.logits.square().sum())
        return -total

    @torch.no_grad()
    def start(self, z: Tensor, env: Tensor, before: Tensor) -> None:
        """Linear equations by least squares under an order (parent, child), laws by moments."""
        self.before.copy_(before)
        ones = torch.ones_like(z[:, :1])
        for k in range(z.shape[1]):
            rows = self.target[env, k] == 0
            design = torch.cat([ones, z * before[:, k].to(z)], 1)[rows]
            gram = design.mT @ design + RIDGE * len(design) * torch.eye(design.shape[1]).to(z)
            solution = torch.linalg.solve(gram, design.mT @ z[rows, k])
            self.intercept[k], self.linear[:, k] = solution[0], solution[1:]
            self.log_scale[k] = (z[rows, k] - design @ solution).std().log()
        self.noise.start(torch.zeros_like(self.log_scale), torch.ones_like(self.log_scale))
        own = [z[env == e] for e in range(len(self.target))]
        self.own.start(torch.stack([v.mean(0) for v in own]), torch.stack([v.std(0) for v in own]))

    @torch.no_grad()
    def gather(self, posterior: Posterior, edge_probability: float) -> None:
        """Keep the scores of parent sets, with their prior."""
        prior = orders.log_edge_prior(len(self.linear), edge_probability)
        self.table.copy_(posterior.scores(self.before) + prior.to(self.table))

    def graph(self) -> Tensor:
        """(parent, child) edge probabilities."""
        return orders.edge_probabilities(self.table).to(self.linear)
