"""Columns of gates whose rates are integrated out: gate_jk ~ Bernoulli(theta_k), theta_k ~ Beta(1, b) or Beta(a, 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

TRIES = 64  # a column that has one entry has a probability below .37


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


class BuffetColumns(TorchDistribution):
    """(feature, latent) gates of an Indian buffet with a finite number of dishes, none of them eaten by one alone.

    m_jk ~ Bernoulli(theta_k), theta_k ~ Beta(exp(log_concentration) / latents, 1), integrated out (Griffiths &
    Ghahramani 2011), given that no column has exactly one entry: as latents grow, a feature has about
    exp(log_concentration) of them. log_concentration: ().
    """

    arg_constraints = {"log_concentration": constraints.real}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(
        self, log_concentration: Tensor, features: int, latents: int, validate_args: bool | None = None
    ) -> None:
        self.log_concentration = log_concentration
        super().__init__(torch.Size(), torch.Size((features, latents)), validate_args=validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        like, (features, latents) = self.log_concentration, self.event_shape
        uniform = torch.rand(TRIES, *sample_shape, 1, latents, dtype=like.dtype, device=like.device)
        return _columns(uniform ** (latents / like.exp()), features)

    def log_prob(self, value: Tensor) -> Tensor:
        features, latents = self.event_shape
        a, count = self.log_concentration.exp() / latents, value.sum(-2)
        column = torch.lgamma(a + count) + torch.lgamma(1.0 + features - count) - torch.lgamma(a + 1 + features)
        one = math.log(features) + torch.lgamma(a + 1) + math.lgamma(features) - torch.lgamma(a + 1 + features)
        log_a = a.log()
        return (column + log_a - (-torch.expm1(one + log_a)).log()).sum(-1)


class SharedColumns(TorchDistribution):
    """(feature, latent) gates m_jk ~ Bernoulli(share_k), given that no column has just one. share: (latent,)."""

    arg_constraints = {"share": constraints.independent(constraints.unit_interval, 1)}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, share: Tensor, features: int, validate_args: bool | None = None) -> None:
        self.share = share.clamp(1e-30, 1 - 1e-12)
        super().__init__(torch.Size(), torch.Size((features, len(share))), validate_args=validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return _columns(self.share.expand(TRIES, *sample_shape, 1, -1), self.event_shape[0])

    def log_prob(self, value: Tensor) -> Tensor:
        features, count = self.event_shape[0], value.sum(-2)
        log_on, log_off = self.share.log(), (-self.share).log1p()
        log_one = (math.log(features) + log_on + (features - 1) * log_off).clamp_max(-1e-7)
        return (count * log_on + (features - count) * log_off - (-torch.expm1(log_one)).log()).sum(-1)


def _columns(theta: Tensor, features: int) -> Tensor:
    """(..., feature, latent) gates with the probabilities theta (try, ..., 1, latent), of each column the first try
    that has not exactly one entry."""
    drawn = torch.rand(*theta.shape[:-2], features, theta.shape[-1], dtype=theta.dtype, device=theta.device) < theta
    first = (drawn.sum(-2) != 1).to(torch.uint8).argmax(0)  # (..., latent)
    return drawn.to(theta.dtype).gather(0, first[None, ..., None, :].expand(1, *drawn.shape[1:]))[0]


def log_odds_given_others(gate: Tensor, b: float) -> Tensor:
    """(feature, latent) log odds of each gate given the others of its column, as in `gate`."""
    others = gate.sum(0) - gate
    return (1.0 + others).log() - (b + gate.shape[0] - 1 - others).log()
