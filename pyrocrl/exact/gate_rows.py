"""Laws of rows of gates, those of one feature on all latents: pure features among sparse ones, and finite lists."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import categorical


class PureOrSparse(TorchDistribution):
    """(feature, latent) gates. With probability `purity` () exactly one gate of a row is open, each alike; else each
    gate_jk ~ Bernoulli(rate_k), rate (latent,). Which of the two made a row is summed out."""

    arg_constraints = {"purity": constraints.unit_interval, "rate": constraints.unit_interval}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, purity: Tensor, rate: Tensor, features: int) -> None:
        self.purity, self.rate = purity, rate
        super().__init__(torch.Size(), torch.Size((features, len(rate))), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.event_shape
        mixed = torch.rand(shape, dtype=self.rate.dtype, device=self.rate.device) < self.rate
        place = categorical(torch.zeros_like(mixed, dtype=self.rate.dtype))
        one = torch.nn.functional.one_hot(place, shape[-1]) > 0
        pure = torch.rand((*shape[:-1], 1), dtype=self.rate.dtype, device=self.rate.device) < self.purity
        return torch.where(pure, one, mixed).to(self.rate.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        tiny = torch.finfo(value.dtype).tiny
        apart = (value * self.rate.clamp_min(tiny).log() + (1 - value) * torch.log1p(-self.rate)).sum(-1)
        one = (1 - (value.sum(-1) - 1).abs()).clamp_min(tiny)  # 1 where one gate is open
        pure = self.purity.log() - torch.log(apart.new_tensor(float(value.shape[-1]))) + one.log()
        return torch.logaddexp(pure, torch.log1p(-self.purity) + apart).sum(-1)


class RowPatterns(TorchDistribution):
    """(feature, latent) gates whose rows are independent, each from a list of its own.

    pattern: (feature, pattern, latent) in {0, 1}; log_share: (feature, pattern). The density at other values is that of
    the nearest pattern.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, pattern: Tensor, log_share: Tensor) -> None:
        self.pattern, self.log_share = pattern, log_share
        super().__init__(torch.Size(), torch.Size((pattern.shape[0], pattern.shape[2])), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.log_share.softmax(-1)[..., None] * self.pattern).sum(-2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        place = categorical(self.log_share.expand((*sample_shape, *self.log_share.shape)))
        chosen = torch.nn.functional.one_hot(place, self.log_share.shape[-1]).to(self.pattern.dtype)
        return (chosen[..., None] * self.pattern).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        apart = (self.pattern - value.unsqueeze(-2)).abs().sum(-1)  # (feature, pattern)
        nearest = torch.nn.functional.one_hot(apart.argmin(-1), apart.shape[-1])
        return torch.where(nearest > 0, self.log_share.log_softmax(-1), 0.0).sum((-2, -1))
