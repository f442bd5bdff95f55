"""Binary latents behind Gaussian features: sums over their states.

A state of d latents is an integer whose bit k is latent k; a set of latents is one too (see `graphs`). Features, in
units of their deviation, have a level for each state of the latents in their set,

    level ~ N(0, s^2 / precision),   1 / s^2 ~ Gamma(shape, rate),   latents in the set ~ Bernoulli(mask) each,

and latents have tables of probabilities given their parents with BDeu's prior (`Prior`). All are integrated out, given
counts of the states.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrocrl.dists import categorical
from pyrocrl.exact import orders


class Prior(NamedTuple):
    """mask: probability that a feature has a latent in its set. precision: of a level, in those of one row.

    shape, rate: of the Gamma law of 1 / s^2. equivalent: BDeu's equivalent sample size.
    """

    mask: float = 0.3
    precision: float = 0.02
    shape: float = 1.0
    rate: float = 0.01
    equivalent: float = 1.0


PRIOR = Prior()


class States(TorchDistribution):
    """A categorical law over the states of all latents as rows of bits: log_prob (..., state), normalised."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, log_prob: Tensor, validate_args: bool | None = None) -> None:
        self.by_state = log_prob
        d = log_prob.shape[-1].bit_length() - 1
        self.member = orders.members(d, log_prob.device).to(log_prob.dtype)
        super().__init__(log_prob.shape[:-1], torch.Size([d]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> States:
        return States(self.by_state.expand(*batch_shape, -1))

    @property
    def mean(self) -> Tensor:
        return self.by_state.exp() @ self.member

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.by_state.shape
        return self.member[categorical(self.by_state.detach().expand(shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        return self.by_state.gather(-1, code(value)[..., None])[..., 0]


def code(z: Tensor) -> Tensor:
    """The state (...) of rows of bits (..., latent): latent k is bit k, set where z is above one half."""
    return ((z > 0.5) * 2 ** torch.arange(z.shape[-1], device=z.device)).sum(-1)


@lru_cache(maxsize=8)
def slots(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(set, state) the state with the bits outside the set cleared, and the same as (set, state, slot) in {0, 1}."""
    codes = torch.arange(2**d, device=device)
    slot = codes[:, None] & codes[None, :]
    return slot, torch.nn.functional.one_hot(slot, 2**d).double()


def set_scores(
    count: Tensor, first: Tensor, second: Tensor, prior: Prior = PRIOR
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evidence of every set of latents for every feature, levels and noise integrated out.

    count: (state,); first: (state, feature) sums; second: (feature,) sums of squares. Returns scores (feature, set),
    sums of squares left (feature, set), slots (set, state) and mean levels (set, slot, feature).
    """
    d = len(count).bit_length() - 1
    slot, hot = slots(d, count.device)
    rows = count @ hot  # (set, slot)
    sums = hot.mT @ first  # (set, slot, feature)
    level = sums / (prior.precision + rows)[..., None]
    left = (second[:, None] - (sums * level).sum(1).mT).clamp_min(0.0)  # (feature, set)
    volume = 0.5 * (prior.precision / (prior.precision + rows)).log().sum(-1)  # (set,)
    size = orders.members(d, count.device).sum(-1)
    odds = math.log(prior.mask / (1 - prior.mask))
    scores = volume + odds * size - (prior.shape + 0.5 * count.sum()) * (prior.rate + 0.5 * left).log()
    return scores, left, slot, level


def tied(count: Tensor, first: Tensor, second: Tensor, prior: Prior = PRIOR) -> tuple[Tensor, Tensor]:
    """Levels (state, feature) and noise (feature,), averaged over the posterior of the sets of latents."""
    scores, left, slot, mean = set_scores(count, first, second, prior)
    weight = scores.softmax(-1)  # (feature, set)
    by_state = mean[torch.arange(len(slot), device=slot.device)[:, None], slot]  # (set, state, feature)
    variance = (weight * (prior.rate + 0.5 * left)).sum(-1) / (prior.shape + 0.5 * count.sum())
    return torch.einsum("js,stj->tj", weight, by_state), variance.sqrt()


def log_density(x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """(rows, state) log p(x | state) of standardised x."""
    precision = noise.pow(-2)
    square = (x.square() @ precision)[:, None] - 2 * x @ (level * precision).mT + level.square() @ precision
    return -0.5 * square - noise.log().sum() - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def state_logits(x: Tensor, env: Tensor, level: Tensor, log_noise: Tensor, logits: Tensor) -> Tensor:
    """(rows, state) log p(x, state | env) of standardised x; level (state, feature), logits (env, state) of states."""
    density = log_density(x, level.to(x.dtype), log_noise.exp().to(x.dtype))
    return logits.log_softmax(-1).to(x.dtype)[env] + density


def evidence(count: Tensor, first: Tensor, second: Tensor, prior: Prior = PRIOR) -> Tensor:
    """() log evidence of all features given the states, masks summed out."""
    return set_scores(count, first, second, prior)[0].logsumexp(-1).sum()


def table_scores(count: Tensor, d: int, equivalent: float = PRIOR.equivalent) -> Tensor:
    """(group, child, set) BDeu log evidence of each latent given each set of parents, by counts (group, state).

    Score equivalent (Heckerman et al. 1995): it is the evidence of the family less that of its parents, each a sum
    over cells of log Gamma(n + a / cells) / Gamma(a / cells).
    """
    _, hot = slots(d, count.device)
    cells = torch.einsum("gt,stu->gsu", count, hot)  # (group, set, slot); slots outside a set stay empty
    prior = equivalent / 2.0 ** orders.members(d, count.device).sum(-1).double()[:, None]
    whole = (torch.lgamma(cells + prior) - torch.lgamma(prior)).sum(-1)  # (group, set)
    codes = torch.arange(2**d, device=count.device)
    return torch.stack([whole[:, codes | 1 << k] - whole for k in range(d)], 1)


def table_prior(sets: Tensor, equivalent: float = PRIOR.equivalent) -> Tensor:
    """BDeu's Beta prior of a latent's probability in each cell of its table: both parameters (..., latent), by its set
    of parents (..., latent)."""
    size = orders.members(sets.shape[-1], sets.device).sum(-1)[sets]
    return equivalent / 2.0 ** (size + 1.0).double()


def families(count: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (group, latent, slot) in which each latent is 1, and 0, by the bits of its parents.

    count: (group, latent, state) rows that tell of each latent; sets: (group, latent) its parents.
    """
    d = sets.shape[-1]
    hot = slots(d, count.device)[1][sets]  # (group, latent, state, slot)
    member = orders.members(d, count.device).to(count.dtype).mT
    one, zero = count * member, count * (1 - member)
    return torch.einsum("gkt,gkts->gks", one, hot), torch.einsum("gkt,gkts->gks", zero, hot)


def state_law(log_odds: Tensor, sets: Tensor) -> Tensor:
    """(group, state) log-probabilities of states, by the log odds (group, latent, slot) that each latent is 1 given the
    bits of its parents, sets (group, latent)."""
    codes = torch.arange(log_odds.shape[-1], device=log_odds.device)
    sign = 2.0 * orders.members(sets.shape[-1], log_odds.device).to(log_odds.dtype).mT - 1.0  # (latent, state)
    return logsigmoid(sign * log_odds.gather(-1, codes & sets[..., None])).sum(-2)


def log_odds_given(law: Tensor, k: int, known: int) -> Tensor:
    """(..., state) log odds that latent k is 1 given the bits of the set `known` in the state, under a law
    (..., state) in logarithms."""
    codes = torch.arange(law.shape[-1], device=law.device)
    family = known | 1 << k
    same = (codes[:, None] & family) == codes  # (state, family's bits)
    sums = torch.where(same, law[..., None], -torch.inf).logsumexp(-2)  # (..., family's bits)
    return sums[..., (codes & known) | 1 << k] - sums[..., codes & known]


class LogitBeta(TorchDistribution):
    """The log odds of a Beta(one, zero): finite where draws of probabilities round to 0 or 1."""

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, one: Tensor, zero: Tensor, validate_args: bool | None = None) -> None:
        self.one, self.zero = torch.broadcast_tensors(one, zero)
        super().__init__(self.one.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogitBeta:
        return LogitBeta(self.one.expand(batch_shape), self.zero.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return torch.digamma(self.one) - torch.digamma(self.zero)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape

        def log_gamma(shape_: Tensor) -> Tensor:  # a Gamma(a) is a Gamma(a + 1) times u^(1/a)
            uniform = torch.rand(shape, dtype=shape_.dtype, device=shape_.device)
            uniform = uniform.clamp_min(torch.finfo(shape_.dtype).tiny)
            return torch._standard_gamma(shape_.expand(shape) + 1.0).log() + uniform.log() / shape_

        with torch.no_grad():
            return log_gamma(self.one) - log_gamma(self.zero)

    def log_prob(self, value: Tensor) -> Tensor:
        norm = torch.lgamma(self.one) + torch.lgamma(self.zero) - torch.lgamma(self.one + self.zero)
        return self.one * logsigmoid(value) + self.zero * logsigmoid(-value) - norm
