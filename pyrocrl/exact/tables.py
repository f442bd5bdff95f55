"""Laws of discrete latents of different numbers of states: tables of probabilities, and joint states of rows (torch).

Sizes differ between draws, so all are kept in tables for `states` states: a joint state is a row of digits (joint,
latent), the last latent's fastest, and what a table has for states that there are not is 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import categorical
from pyrocrl.exact import joint_states


@lru_cache(maxsize=16)
def all_digits(latents: int, states: int, device: torch.device) -> Tensor:
    """(joint, latent) all joint states of so many latents of so many states."""
    return torch.as_tensor(joint_states.digits((states,) * latents), device=device)


def radix(latents: int, states: int, device: torch.device) -> Tensor:
    """(latent,) by how much a joint state's number grows with each latent's state."""
    return states ** torch.arange(latents - 1, -1, -1, device=device)


def slots(inside: Tensor, states: int) -> Tensor:
    """(..., joint) each joint state with the digits of latents that are not inside (..., latent) set to 0."""
    latents = inside.shape[-1]
    digits = all_digits(latents, states, inside.device).to(inside.dtype)
    return ((inside * radix(latents, states, inside.device)) @ digits.mT).long()


def used_slots(inside: Tensor, size: Tensor, states: int) -> Tensor:
    """(..., joint) in {0, 1}: whether a joint state is a slot of these latents (..., latent), of sizes (latent,)."""
    digits = all_digits(inside.shape[-1], states, inside.device)
    there = (digits < size).to(inside.dtype)  # (joint, latent)
    zero = (digits == 0).to(inside.dtype)
    return (inside[..., None, :] * there + (1 - inside[..., None, :]) * zero).amin(-1)


def table_prior(graph: Tensor, size: Tensor, states: int, weight: float) -> Tensor:
    """(latent, joint, state) Dirichlet parameters of tables given a graph (parent, child): `weight` rows of each joint
    state in all; 0 where there is no cell."""
    parents = graph.mT
    cells = (1 - parents + parents * size).prod(-1) * size  # (latent,)
    there = (torch.arange(states, device=graph.device) < size[:, None]).to(graph.dtype)  # (latent, state)
    each = weight * size.prod() / cells
    return used_slots(parents, size, states)[..., None] * there[:, None] * each[:, None, None]


def joint_law(table: Tensor, graph: Tensor) -> Tensor:
    """(joint,) log-probabilities of joint states by tables (latent, joint, state) given parents."""
    latents, _, states = table.shape
    place = slots(graph.mT, states)  # (latent, joint)
    digits = all_digits(latents, states, table.device).mT  # (latent, joint)
    rows = table.gather(1, place[..., None].expand(-1, -1, states))
    chance = rows.gather(2, digits[..., None])[..., 0]  # (latent, joint)
    return chance.clamp_min(1e-300).log().masked_fill(chance <= 0, -torch.inf).sum(0)


class Tables(TorchDistribution):
    """Dirichlet laws of the last dimension of an event, by parameters (..., state), 0 of states that there are not;
    where there is none at all, a line of the event is 0."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.nonnegative, 3)

    def __init__(self, prior: Tensor, validate_args: bool | None = None) -> None:
        self.prior = prior
        super().__init__(torch.Size(), prior.shape, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.event_shape
        prior = self.prior.detach().expand(shape)
        drawn = torch._standard_gamma(prior.clamp_min(1e-6)) * (prior > 0)
        return drawn / drawn.sum(-1, keepdim=True).clamp_min(1e-300)

    def log_prob(self, value: Tensor) -> Tensor:
        cell = self.prior > 0
        prior, total = torch.where(cell, self.prior, 1.0), self.prior.sum(-1)
        line = torch.where(total > 0, torch.lgamma(torch.where(total > 0, total, 1.0)), 0.0).sum((-1, -2))
        each = (prior - 1) * value.clamp_min(1e-300).log() - torch.lgamma(prior)
        return line + torch.where(cell, each, 0.0).sum((-1, -2, -3))


class State(TorchDistribution):
    """The state of one latent, as a number: by probabilities (..., state)."""

    arg_constraints: dict = {}
    support = constraints.nonnegative_integer

    def __init__(self, chance: Tensor, validate_args: bool | None = None) -> None:
        self.chance = chance
        super().__init__(chance.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> State:
        return State(self.chance.expand(*batch_shape, -1))

    @property
    def mean(self) -> Tensor:
        return self.chance @ torch.arange(self.chance.shape[-1], dtype=self.chance.dtype, device=self.chance.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        logits = self.chance.detach().clamp_min(1e-300).log()
        return categorical(logits.expand(torch.Size(sample_shape) + self.chance.shape)).to(self.chance)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.chance.gather(-1, value.long()[..., None])[..., 0].clamp_min(1e-300).log()


class JointState(TorchDistribution):
    """The joint state of each row as a row of digits, by log-probabilities (..., joint), normalised."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, log_share: Tensor, digits: Tensor, validate_args: bool | None = None) -> None:
        self.log_share, self.digits = log_share, digits.to(log_share.dtype)
        super().__init__(log_share.shape[:-1], digits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> JointState:
        return JointState(self.log_share.expand(*batch_shape, -1), self.digits)

    @property
    def mean(self) -> Tensor:
        return self.log_share.exp() @ self.digits

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.log_share.shape
        return self.digits[categorical(self.log_share.detach().expand(shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        latents = self.digits.shape[-1]
        states = round(len(self.digits) ** (1 / latents))
        code = (value.long() * radix(latents, states, value.device)).sum(-1)
        return self.log_share.gather(-1, code[..., None])[..., 0]
