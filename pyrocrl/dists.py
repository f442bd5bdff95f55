"""Distributions that draw under `torch.func.vmap`, and the count likelihood.

The samplers of `torch.distributions` fill unbatched tensors in place, which vmap cannot batch; these draw with
`torch.randn` and `torch.rand`. Densities are the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid


def _noise(distribution: Any, sample_shape: Any, like: Tensor) -> Tensor:
    return torch.randn(distribution._extended_shape(torch.Size(sample_shape)), dtype=like.dtype, device=like.device)


def categorical(logits: Tensor) -> Tensor:
    """An index (...) along the last dimension, drawn with the probabilities softmax(logits), by Gumbel's trick."""
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits - (-uniform.log()).log()).argmax(-1)


class Normal(dist.Normal):
    """`pyro.distributions.Normal` whose draws can be vmapped."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * _noise(self, sample_shape, self.loc)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class LogNormal(dist.LogNormal):
    """`pyro.distributions.LogNormal` whose draws can be vmapped."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return (self.loc + self.scale * _noise(self, sample_shape, self.loc)).exp()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class Gamma(dist.Gamma):
    """`pyro.distributions.Gamma` whose draws can be vmapped; they carry no gradient."""

    has_rsample = False

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        draw = torch._standard_gamma(self.concentration.detach().expand(shape)) / self.rate.detach()
        return draw.clamp_min(torch.finfo(draw.dtype).tiny)


class InverseGamma(dist.InverseGamma):
    """`pyro.distributions.InverseGamma` whose draws can be vmapped."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.rate.expand(shape) / torch._standard_gamma(self.concentration.expand(shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class MultivariateNormal(dist.MultivariateNormal):
    """`pyro.distributions.MultivariateNormal` whose draws can be vmapped; give it `scale_tril`."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = _noise(self, sample_shape, self.loc)
        return self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class LogMultivariateNormal(dist.TransformedDistribution):
    """exp of a `MultivariateNormal`."""

    def __init__(self, base: MultivariateNormal) -> None:
        super().__init__(base, [dist.transforms.ExpTransform()], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.base_dist.loc + 0.5 * self.base_dist.variance).exp()


class Categorical(dist.Categorical):
    """`pyro.distributions.Categorical` whose draws can be vmapped."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return categorical(self.logits.detach().expand((*sample_shape, *self.logits.shape)))


class Gate(TorchDistribution):
    """A Bernoulli in {0, 1} whose draws carry the gradient of a relaxed one (straight through).

    logits: any shape. temperature: of the logistic relaxation (Maddison 2017, Jang 2017); values stay exactly 0 or
    1, only the gradient is relaxed. The density is the Bernoulli's, linear in the value, so gradients of
    log-densities flow through the draw as well.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.boolean
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: Tensor | float = 0.1, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Gate:
        return Gate(self.logits.expand(batch_shape), self.temperature, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device).clamp(1e-6, 1 - 1e-6)
        noisy = self.logits + uniform.log() - (-uniform).log1p()
        soft = torch.sigmoid(noisy / self.temperature)
        hard = (noisy > 0).to(soft.dtype)
        return hard + (soft - soft.detach())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        return value * logsigmoid(self.logits) + (1 - value) * logsigmoid(-self.logits)


class PseudoPrior(TorchDistribution):
    """A slab where a gate is open and a pseudo-prior where it is shut (Carlin & Chib 1995).

    A shut gate makes the value irrelevant, so its prior there may be anything; with the guide's own density as the
    pseudo-prior, shut entries cost nothing and the cost of opening one is linear in the gate.
    """

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, gate: Tensor, slab: Any, pseudo: Any, validate_args: bool | None = None) -> None:
        self.gate, self.slab, self.pseudo = gate, slab, pseudo
        super().__init__(gate.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PseudoPrior:
        parts = (self.slab.expand(batch_shape), self.pseudo.expand(batch_shape))
        return PseudoPrior(self.gate.expand(batch_shape), *parts)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.where(self.gate > 0.5, self.slab.sample(sample_shape), self.pseudo.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.gate * self.slab.log_prob(value) + (1 - self.gate) * self.pseudo.log_prob(value)


class Law(TorchDistribution):
    """A density given by a function: a value -> its log (batch_shape). It has no draws: those are the story's."""

    arg_constraints: dict = {}

    def __init__(
        self, batch_shape: Sequence[int], event_shape: Sequence[int], log_prob: Callable[[Tensor], Tensor]
    ) -> None:
        self._log_prob = log_prob
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob(value)


class NegativeBinomial(TorchDistribution):
    """Counts with a mean and a dispersion r: variance mean + mean^2 / r."""

    arg_constraints = {"mean": constraints.positive, "dispersion": constraints.positive}
    support = constraints.nonnegative_integer

    def __init__(self, mean: Tensor, dispersion: Tensor, validate_args: bool | None = None) -> None:
        self._mean, self.dispersion = torch.broadcast_tensors(mean, dispersion)
        super().__init__(self._mean.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        return NegativeBinomial(self._mean.expand(batch_shape), self.dispersion.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self._mean + self._mean.square() / self.dispersion

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        rate = torch._standard_gamma(self.dispersion.expand(shape)) * (self._mean / self.dispersion)
        return torch.poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        r, mean = self.dispersion, self._mean
        total = torch.log(r + mean)
        return (
            torch.lgamma(value + r)
            - torch.lgamma(r)
            - torch.lgamma(value + 1)
            + r * (torch.log(r) - total)
            + value * (torch.log(mean) - total)
        )
