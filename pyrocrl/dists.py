"""Distributions that draw under `torch.func.vmap`, and the count likelihood.

The samplers of `torch.distributions` fill unbatched tensors in place, which vmap cannot batch; these draw with
`torch.randn` and `torch.rand`. Densities are the library's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid
from torch.special import ndtr, ndtri

LARGEST = 15.0  # of a log rate
TAIL = 1e-6  # probability of the normal law beyond which no draws are, and least positive draw
IN_CACHE = 1 << 16  # numbers that several passes find in the processor's cache


def _noise(distribution: Any, sample_shape: Any, like: Tensor) -> Tensor:
    return torch.randn(distribution._extended_shape(torch.Size(sample_shape)), dtype=like.dtype, device=like.device)


def log_below(z: Tensor) -> Tensor:
    """log of the normal distribution function, to 1e-4; unlike `torch.special.log_ndtr` it can be vmapped."""
    far = z.clamp_max(-8.0)
    beyond = -0.5 * far.square() - (-far).log() - 0.5 * math.log(2 * math.pi) - far.square().reciprocal()
    return torch.where(z > -8.0, (0.5 * torch.erfc(-math.sqrt(0.5) * z.clamp_min(-8.0))).log(), beyond)


def categorical(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """An index (...) along the last dimension, drawn with the probabilities softmax(logits), by Gumbel's trick."""
    drawn = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    uniform = drawn.clamp_min(torch.finfo(logits.dtype).tiny)
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


class Laplace(dist.Laplace):
    """`pyro.distributions.Laplace` whose draws can be vmapped."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device) - 0.5
        away = -2 * uniform.abs()
        return self.loc - self.scale * uniform.sign() * away.clamp_min(-1 + torch.finfo(away.dtype).eps).log1p()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class Moment(TorchDistribution):
    """Numbers away from 0: of random sign and the size of `scale` chi(3), density x^2 / scale^2 N(x; 0, scale^2).

    Johnson & Rossell (2010), On the use of non-local prior densities in Bayesian hypothesis tests.
    """

    arg_constraints = {"scale": dist.constraints.positive}
    support = dist.constraints.real

    def __init__(self, scale: Tensor, validate_args: bool | None = None) -> None:
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Moment:
        return Moment(self.scale.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.scale)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        like, shape = self.scale, self._extended_shape(torch.Size(sample_shape))
        three = torch.randn(3, *shape, dtype=like.dtype, device=like.device)
        return (three.square().sum(0).sqrt() * three[0].sign() * like).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        square = (value / self.scale).square().clamp_min(torch.finfo(value.dtype).tiny)  # a density of 0 is not finite
        return square.log() - 0.5 * square - self.scale.log() - 0.5 * math.log(2 * math.pi)


class Gamma(dist.Gamma):
    """`pyro.distributions.Gamma` whose draws can be vmapped; they carry no gradient."""

    has_rsample = False

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        draw = torch._standard_gamma(self.concentration.detach().expand(shape)) / self.rate.detach()
        return draw.clamp_min(torch.finfo(draw.dtype).tiny)


class Beta(dist.Beta):
    """`pyro.distributions.Beta` whose draws can be vmapped; they carry no gradient."""

    has_rsample = False

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        one, zero = (
            torch._standard_gamma(c.detach().expand(shape)) for c in (self.concentration1, self.concentration0)
        )
        return one / (one + zero)


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


class LogitNormal(dist.TransformedDistribution):
    """The logistic function of a `Normal`: numbers between 0 and 1."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale), [dist.transforms.SigmoidTransform()], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogitNormal:
        return LogitNormal(self.base_dist.loc.expand(batch_shape), self.base_dist.scale.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        """To three digits (MacKay 1992)."""
        return torch.sigmoid(self.base_dist.loc / (1 + math.pi / 8 * self.base_dist.scale.square()).sqrt())


class Categorical(dist.Categorical):
    """`pyro.distributions.Categorical` whose draws can be vmapped."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return categorical(self.logits.detach().expand((*sample_shape, *self.logits.shape)))


class AnyOf(TorchDistribution):
    """An index below `count`, each as likely, drawn under vmap: 0 where one has to stand for all. like: a tensor of the
    type and device that densities have."""

    arg_constraints: dict = {}

    def __init__(self, count: int, like: Tensor, validate_args: bool | None = None) -> None:
        self.count, self.like = count, like
        super().__init__(validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.count - 1)

    @property
    def mean(self) -> Tensor:
        return torch.zeros((), dtype=torch.long, device=self.like.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        uniform = torch.rand(sample_shape, device=self.like.device)
        return (uniform * self.count).long().clamp_max(self.count - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.like.new_full(value.shape, -math.log(self.count))


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


class SpikeSlab(TorchDistribution):
    """A slab where a gate is open, and 0 elsewhere; its density is the slab's where the gate is open.

    gate, slab: of one shape.
    """

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, gate: Tensor, slab: Any, validate_args: bool | None = None) -> None:
        self.gate, self.slab = gate, slab
        super().__init__(gate.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SpikeSlab:
        return SpikeSlab(self.gate.expand(batch_shape), self.slab.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return self.gate * self.slab.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.gate * self.slab.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        wrong = (self.gate < 0.5) & (value != 0)
        return (self.gate * self.slab.log_prob(value)).masked_fill(wrong, -torch.inf)


class PositiveSpikeSlab(TorchDistribution):
    """0, or with probability `rate` a normal law where it is positive; its density is with respect to a point mass at 0
    and length elsewhere.

    rate, loc, scale: of shapes that broadcast.
    """

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, rate: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.rate, self.loc, self.scale = torch.broadcast_tensors(rate, loc, scale)
        super().__init__(self.rate.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PositiveSpikeSlab:
        parts = (part.expand(batch_shape) for part in (self.rate, self.loc, self.scale))
        return PositiveSpikeSlab(*parts)

    @property
    def mean(self) -> Tensor:
        z = self.loc / self.scale
        density = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        return self.rate * (self.loc + self.scale * (density - log_below(z)).exp())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        fires, uniform = (torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device) for _ in range(2))
        below = ndtr(-self.loc / self.scale).detach()
        noise = ndtri((below + (1 - below) * uniform).clamp(TAIL, 1 - TAIL))
        return torch.where(fires < self.rate, (self.loc + self.scale * noise).clamp_min(TAIL), 0.0).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        away = (value - self.loc) / self.scale
        slab = self.rate.log() - self.scale.log() - 0.5 * away.square() - 0.5 * math.log(2 * math.pi)
        slab = (slab - log_below(self.loc / self.scale)).masked_fill(value < 0, -torch.inf)
        return torch.where(value == 0, (-self.rate).log1p(), slab)


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
    """Counts with a mean and a dispersion r: variance mean + mean^2 / r.

    The mean itself, or size * exp(log_rate), where log rates beyond `LARGEST` count as that: exp would only overflow.
    r, and size, have the shape of the mean or one that broadcasts to it, such as (feature,) and (rows, 1).
    """

    arg_constraints: dict = {}
    support = constraints.nonnegative_integer

    def __init__(
        self,
        mean: Tensor | None,
        dispersion: Tensor,
        *,
        log_rate: Tensor | None = None,
        size: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._most = LARGEST if mean is None else math.inf
        if mean is not None:
            log_rate = mean.log()
        assert log_rate is not None
        self._size = log_rate.new_ones(()) if size is None else size
        shape = torch.broadcast_shapes(log_rate.shape, dispersion.shape, self._size.shape)
        self._log_rate, self.dispersion, self._mean = log_rate.expand(shape), dispersion, mean
        super().__init__(shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        mean = None if self._mean is None else self._mean.expand(batch_shape)
        log_rate = self._log_rate.expand(batch_shape)
        return NegativeBinomial(mean, self.dispersion, log_rate=log_rate, size=self._size)

    @property
    def mean(self) -> Tensor:
        if self._mean is not None:
            return self._mean.expand(self.batch_shape)
        return self._size * self._log_rate.clamp(max=self._most).exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self.dispersion

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        rate = torch._standard_gamma(self.dispersion.expand(shape)) * (self.mean / self.dispersion)
        return torch.poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.to(self._log_rate.dtype)
        parts = (value, torch.lgamma(value + 1), self._log_rate, self._size, self.dispersion)
        out: Tensor = _NegativeBinomialLog.apply(*parts, self._most)
        return out


class _NegativeBinomialLog(torch.autograd.Function):
    """Log-density of counts, in as few passes over memory as there are: block by block, in the processor's cache.

    With m = size exp(min(log_rate, most)), y = value + r:
        log p            = log Gamma(y) - log Gamma(r) - log Gamma(value + 1)
                           + r log r + value log m - y log(r + m)
        d / d log_rate   = value - y m / (r + m)
        d / d r          = psi(y) - psi(r) + log r + 1 - log(r + m) - y / (r + m)
    Sizes are given: they get no gradient.
    """

    @staticmethod
    def forward(value: Tensor, of_value: Tensor, log_rate: Tensor, size: Tensor, r: Tensor, most: float) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, log_rate.shape)
        of_r, log_size = r * r.log() - torch.lgamma(r), size.log()
        out = torch.empty(shape, dtype=log_rate.dtype, device=log_rate.device)
        for take in _blocks(shape, log_rate.is_cuda):
            x, rate, r_ = take(value), take(log_rate).clamp(max=most), take(r)
            mean = rate.exp().mul_(take(size))
            y = x + r_
            block = torch.lgamma(y).sub_(mean.add_(r_).log_().mul_(y)).addcmul_(x, rate.add_(take(log_size)))
            torch.sub(block.add_(take(of_r)), take(of_value), out=take(out))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, _, log_rate, size, r, ctx.most = inputs
        ctx.save_for_backward(value, log_rate, size, r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, log_rate, size, r = ctx.saved_tensors
        of_rate = torch.empty(gradient.shape, dtype=log_rate.dtype, device=log_rate.device)
        of_r, at_one = torch.zeros_like(r), r.log() + 1 - torch.digamma(r)
        for take in _blocks(gradient.shape, log_rate.is_cuda):
            x, g, r_, rate = take(value), take(gradient), take(r), take(log_rate)
            mean = rate.clamp(max=ctx.most).exp_().mul_(take(size))
            y, total = x + r_, mean + r_
            share = y / total
            torch.addcmul(x, share, mean, value=-1.0, out=mean)
            torch.mul(mean.mul_(rate <= ctx.most), g, out=take(of_rate))
            slope = _digamma(y).sub_(total.log_()).sub_(share).add_(take(at_one)).mul_(g)
            part = take(of_r)
            part += slope.sum_to_size(part.shape)
        return None, None, of_rate.sum_to_size(log_rate.shape), None, of_r, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        rank = max(t.dim() - (d is not None) for t, d in zip(inputs[:-1], in_dims, strict=False))
        moved = []
        for tensor, dim in zip(inputs[:-1], in_dims, strict=False):
            if dim is not None:
                tensor = tensor.movedim(dim, 0)
                tensor = tensor[(slice(None), *[None] * (rank + 1 - tensor.dim()))]
            moved.append(tensor)
        return _NegativeBinomialLog.apply(*moved, inputs[-1]), 0


def _blocks(shape: torch.Size, whole: bool) -> Iterator[Callable[[Tensor], Tensor]]:
    """For each of the blocks of about `IN_CACHE` numbers of an array of this shape, what takes it from a tensor that
    broadcasts to the array; one block where `whole`."""
    step, room = list(shape), math.inf if whole else IN_CACHE
    for dim in reversed(range(len(shape))):
        step[dim] = int(max(1, min(shape[dim], room)))
        room /= max(1, shape[dim])

    def taking(corner: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        def take(tensor: Tensor) -> Tensor:
            lead = len(shape) - tensor.dim()
            for dim, size in enumerate(tensor.shape):
                if size > step[lead + dim]:
                    tensor = tensor.narrow(dim, corner[lead + dim], min(step[lead + dim], size - corner[lead + dim]))
            return tensor

        return take

    for corner in itertools.product(*(range(0, n, s) for n, s in zip(shape, step, strict=True))):
        yield taking(corner)


def _digamma(y: Tensor) -> Tensor:
    """The derivative of log Gamma, of positive numbers; in single precision three times as fast as `torch.digamma`.

    Stirling's series at y + 4, with psi(y) = psi(y + 4) - (2y + 3) (2t + 2) / (t (t + 2)), t = y (y + 3).
    """
    if y.dtype == torch.float64:
        return torch.digamma(y)
    t = (y + 3.0).mul_(y)
    below = (y * 2.0).add_(3.0).mul_((t + 1.0).mul_(2.0)).div_((t + 2.0).mul_(t))
    shifted = y + 4.0
    inverse = shifted.reciprocal()
    out = shifted.log_().sub_(inverse, alpha=0.5).sub_(below)
    square = inverse.square_()
    return out.sub_((square * (1 / 252)).sub_(1 / 120).mul_(square).add_(1 / 12).mul_(square))
