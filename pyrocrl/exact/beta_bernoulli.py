"""Columns of gates whose rates are integrated out: gate_jk ~ Bernoulli(theta_k), theta_k ~ Beta(1, b)."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class BetaBernoulliColumns(TorchDistribution):
    """(feature, latent) gates m_jk ~ Bernoulli(theta_k) with theta_k ~ Beta(1, b) integrated out."""

    arg_constraints = {"b": constraints.positive}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, b: Tensor, features: int, latents: int, validate_args: bool | None = None) -> None:
        self.b = b
        super().__init__(torch.Size(), torch.Size((features, latents)), validate_args=validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.event_shape
        uniform = torch.rand(*shape[:-2], 1, shape[-1], dtype=self.b.dtype, device=self.b.device)
        theta = 1.0 - uniform ** (1.0 / self.b)
        return (torch.rand(shape, dtype=self.b.dtype, device=self.b.device) < theta).to(self.b.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        count, features = value.sum(-2), self.event_shape[0]
        column = torch.lgamma(1 + count) + torch.lgamma(self.b + features - count) + self.b.log()
        return (column - torch.lgamma(1 + self.b + features)).sum(-1)


def log_odds_given_others(gate: Tensor, b: float) -> Tensor:
    """(feature, latent) log odds of each gate given the others of its column, as in `gate`."""
    others = gate.sum(0) - gate
    return (1.0 + others).log() - (b + gate.shape[0] - 1 - others).log()
