"""Binary latents behind Gaussian features: sums over their states, and where the search for states starts.

A state of d latents is an integer whose bit k is latent k; a set of latents is one too (see `graphs`). Features, in
units of their deviation, have a level for each state of the latents in their set,

    level ~ N(0, s^2 / TIGHT),   1 / s^2 ~ Gamma(SHAPE, RATE),   latents in the set ~ Bernoulli(.3) each,

and latents have tables of probabilities given their parents with BDeu's prior. All are integrated out, given counts of
the states.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import categorical
from pyrocrl.exact import orders

EQUIVALENT = 1.0  # BDeu's equivalent sample size
TIGHT = 0.02  # precision of a level a priori, in those of one row
SHAPE, RATE = 1.0, 0.01  # of the Gamma prior of 1 / s^2
MASK = math.log(0.3 / 0.7)
STARTS = 3  # of the search for first states: one by addition, the others at random
ROUNDS = 8  # of exchanges in each
CLEAR_STEPS = 6  # of expectation-maximisation after each exchange
LINE_STEPS = 40  # of expectation-maximisation on single features


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


def set_scores(count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evidence of every set of latents for every feature, levels and noise integrated out.

    count: (state,); first: (state, feature) sums; second: (feature,) sums of squares. Returns scores (feature, set),
    sums of squares left (feature, set), slots (set, state) and mean levels (set, slot, feature).
    """
    d = len(count).bit_length() - 1
    slot, hot = slots(d, count.device)
    rows = count @ hot  # (set, slot)
    sums = hot.mT @ first  # (set, slot, feature)
    level = sums / (TIGHT + rows)[..., None]
    left = (second[:, None] - (sums * level).sum(1).mT).clamp_min(0.0)  # (feature, set)
    volume = 0.5 * (TIGHT / (TIGHT + rows)).log().sum(-1)  # (set,)
    size = orders.members(d, count.device).sum(-1)
    scores = volume + MASK * size - (SHAPE + 0.5 * count.sum()) * (RATE + 0.5 * left).log()
    return scores, left, slot, level


def tied(count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (state, feature) and noise (feature,), averaged over the posterior of the sets of latents."""
    scores, left, slot, mean = set_scores(count, first, second)
    weight = scores.softmax(-1)  # (feature, set)
    by_state = mean[torch.arange(len(slot), device=slot.device)[:, None], slot]  # (set, state, feature)
    variance = (weight * (RATE + 0.5 * left)).sum(-1) / (SHAPE + 0.5 * count.sum())
    return torch.einsum("js,stj->tj", weight, by_state), variance.sqrt()


def log_density(x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """(rows, state) log p(x | state) of standardised x."""
    precision = noise.pow(-2)
    square = (x.square() @ precision)[:, None] - 2 * x @ (level * precision).mT + level.square() @ precision
    return -0.5 * square - noise.log().sum() - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def evidence(count: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """() log evidence of all features given the states, masks summed out."""
    return set_scores(count, first, second)[0].logsumexp(-1).sum()


def table_scores(count: Tensor, d: int) -> Tensor:
    """(group, child, set) BDeu log evidence of each latent given each set of parents, by counts (group, state).

    Score equivalent (Heckerman et al. 1995): it is the evidence of the family less that of its parents, each a sum
    over cells of log Gamma(n + a / cells) / Gamma(a / cells).
    """
    _, hot = slots(d, count.device)
    cells = torch.einsum("gt,stu->gsu", count, hot)  # (group, set, slot); slots outside a set stay empty
    prior = EQUIVALENT / 2.0 ** orders.members(d, count.device).sum(-1).double()[:, None]
    whole = (torch.lgamma(cells + prior) - torch.lgamma(prior)).sum(-1)  # (group, set)
    codes = torch.arange(2**d, device=count.device)
    return torch.stack([whole[:, codes | 1 << k] - whole for k in range(d)], 1)


def conditional(count: Tensor, k: int, parents: int) -> Tensor:
    """(state,) probability that latent k is 1 given the bits of its parents in the state, by counts (state,)."""
    _, hot = slots(len(count).bit_length() - 1, count.device)
    codes = torch.arange(len(count), device=count.device)
    family = parents | 1 << k
    cells = count @ hot[family] + EQUIVALENT / 2.0 ** family.bit_count()
    one, zero = cells[(codes & parents) | 1 << k], cells[codes & parents]
    return one / (one + zero)


def first_states(x: Tensor, latents: int, generator: torch.Generator) -> Tensor:
    """(rows, latent) in {0, 1}: of all cuts of single features into two, those that explain all features best.

    Latents are added one at a time, or drawn at random, and then exchanged until nothing is gained, by the evidence of
    all features with masks summed out; the best of `STARTS`. After each change the states are cleared of the noise
    that a single feature's cut has, for a second noisy copy of a latent would look like one more.
    """
    cuts = _cuts(x)
    second = x.square().sum(0)

    def best_next(bits: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [(bits[:, a] != bits[:, b]).to(x.dtype)[:, None] for a, b in combinations(range(bits.shape[1]), 2)]
        options = torch.cat([cuts, *pairs], -1)  # (rows, option)
        hot = torch.nn.functional.one_hot(code(bits), 2 ** bits.shape[1]).to(x.dtype)
        count, first = hot.sum(0), hot.mT @ x
        with_one = hot.mT @ options  # (state, option)
        sums = torch.einsum("rs,ro,rj->osj", hot, options, x)
        counts = torch.cat([count - with_one.mT, with_one.mT], -1)  # (option, state)
        firsts = torch.cat([first - sums, sums], 1)  # (option, state, feature)
        found = torch.func.vmap(evidence, in_dims=(0, 0, None))(counts, firsts, second)
        return _refined(x, torch.cat([bits, options[:, int(found.argmax())][:, None]], -1))

    best, highest = cuts[:, :latents], torch.tensor(-torch.inf, dtype=x.dtype)
    for start in range(STARTS):
        pick = torch.randperm(cuts.shape[1], generator=generator)[: latents if start else 0]
        bits = cuts[:, pick]
        while bits.shape[1] < latents:
            bits, value = best_next(bits)
        before, stale = torch.tensor(-torch.inf, dtype=x.dtype), 0
        for _ in range(ROUNDS * latents):  # take out the oldest, put in the best
            bits, value = best_next(bits[:, 1:])
            stale = 0 if value > before + 1e-6 * value.abs() else stale + 1
            if value > highest:
                best, highest = bits, value
            before = torch.maximum(before, value)
            if stale == latents:
                break
    return best


def _refined(x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable states after a few steps of expectation-maximisation from `bits`, and the evidence of x."""
    member, second = orders.members(bits.shape[1]).to(x.dtype), x.square().sum(0)
    share = torch.nn.functional.one_hot(code(bits), len(member)).to(x.dtype)
    for _ in range(CLEAR_STEPS):
        count = share.sum(0)
        share = (log_density(x, *tied(count, share.mT @ x, second)) + (count + EQUIVALENT).log()).softmax(-1)
    return member[share.argmax(-1)], evidence(share.sum(0), share.mT @ x, second)


def _cuts(x: Tensor) -> Tensor:
    """(rows, cut) in {0, 1}: each feature clustered into two levels, and into four, two of which are taken for 1 in the
    three ways there are: those of a feature of one latent and of two."""
    two, four = _levels(x, 2), _levels(x, 4)  # (rows, feature)
    pairs = [(four == a) | (four == 3) for a in range(3)]
    return torch.cat([two == 1, *pairs], -1).to(x.dtype)


def _levels(x: Tensor, levels: int) -> Tensor:
    """(rows, feature) the most probable component of a mixture of normals of equal spread on each feature, from two
    starts: centres at quantiles, and evenly between them."""
    at = (torch.arange(levels, dtype=x.dtype) + 0.5) / levels
    low, high = torch.quantile(x, torch.tensor([0.005, 0.995], dtype=x.dtype), dim=0)
    centre = torch.stack([torch.quantile(x, at, dim=0), low + at[:, None] * (high - low)])  # (start, level, feature)
    spread = (high - low).expand(2, -1) / (2 * levels)
    weight = torch.full_like(centre, 1.0 / levels)
    for _ in range(LINE_STEPS):
        apart = (x[:, None, None] - centre) / spread[:, None]  # (rows, start, level, feature)
        log = weight.log() - 0.5 * apart.square() - spread[:, None].log()
        share = log.softmax(2)
        rows = share.sum(0) + 1e-3
        centre = (share * x[:, None, None]).sum(0) / rows
        weight = rows / rows.sum(1, keepdim=True)
        spread = ((share * (x[:, None, None] - centre).square()).sum((0, 2)) / len(x)).sqrt().clamp_min(1e-3)
    best = log.logsumexp(2).sum(0).argmax(0)  # (feature,)
    place = centre.argsort(1).argsort(1)  # components in order of their centres
    label = place[torch.arange(2)[:, None], log.argmax(2), torch.arange(x.shape[1])]  # (rows, start, feature)
    return label[:, best, torch.arange(x.shape[1])]
