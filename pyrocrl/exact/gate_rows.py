"""Laws of rows of gates, those of one feature on all latents: pure features, alone or among sparse ones, and finite
lists."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from scipy import special
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


class Partitions(TorchDistribution):
    """(feature, latent) gates, at most one of a feature open, none or two or more of a latent: each partition of
    features into those of no latent and sets of two or more, `latents` of these at most, is as probable, and so is each
    way of giving latents to its sets. like: a tensor of the type and device that gates have."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, features: int, latents: int, like: Tensor) -> None:
        self.like = like
        super().__init__(torch.Size(), torch.Size((features, latents)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        features, latents = self.event_shape
        used = (value.sum(-2) > 0).to(value).sum(-1)
        ways = math.lgamma(latents + 1) - torch.lgamma(latents - used + 1)
        wrong = (value.sum(-2) == 1).any(-1) | (value.sum(-1) > 1).any(-1)
        return (-ways - _log_sets(features, latents)[1]).masked_fill(wrong, -torch.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        count = torch.Size(sample_shape).numel()
        return torch.stack([self._one() for _ in range(count)]).reshape(*sample_shape, *self.event_shape)

    def _one(self) -> Tensor:
        features, latents = self.event_shape
        table, _ = _log_sets(features, latents)
        choices = torch.as_tensor(_log_choices(features)[:, None] + table, device=self.like.device)
        size, sets = divmod(int(categorical(choices.flatten())), latents + 1)
        members = torch.randperm(features)[:size].tolist()
        out = torch.zeros(features, latents)
        later = []  # (feature, the one it is with), by the recursion of `_log_sets`, last first
        while members:
            m, one = len(members), members.pop()
            joins = math.log(sets) + table[m - 1, sets] - table[m, sets] if sets else -math.inf
            if float(torch.rand(())) < math.exp(joins):
                later.append((one, -1))
            else:
                later.append((one, members.pop(int(torch.randint(m - 1, ())))))
                sets -= 1
        names, opened = torch.randperm(latents).tolist(), 0
        for one, other in reversed(later):
            if other >= 0:
                out[[one, other], names[opened]] = 1.0
                opened += 1
            else:
                out[one, names[int(torch.randint(opened, ()))]] = 1.0
        return out.to(self.like)


@cache
def _log_sets(features: int, latents: int) -> tuple[np.ndarray, float]:
    """(size, sets) logarithm of the number of partitions of so many into so many sets of two or more (associated
    Stirling numbers of the second kind), and that of all partitions of some of the features."""
    table = np.full((features + 1, latents + 1), -np.inf)
    table[0, 0] = 0.0
    with np.errstate(divide="ignore"):
        sets = np.log(np.arange(latents + 1))
        for m in range(2, features + 1):
            joined, paired = sets + table[m - 1], np.append(-np.inf, math.log(m - 1) + table[m - 2, :-1])
            table[m] = np.logaddexp(joined, paired)
    return table, float(np.logaddexp.reduce(_log_choices(features)[:, None] + table, axis=None))


def _log_choices(features: int) -> np.ndarray:
    """(size,) logarithm of the number of ways to take so many of the features."""
    size = np.arange(features + 1)
    return np.asarray(special.gammaln(features + 1) - special.gammaln(size + 1) - special.gammaln(features - size + 1))
