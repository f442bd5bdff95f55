"""States of binary latents behind Gaussian features: where chains of `unknown_targets` start.

Candidates are cuts of single features (`first_states`); expectation-maximisation with the levels tied by the mask goes
on from the best (`maximised`), in the coding of states that needs the fewest dependences (`recoded`).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.exact import orders
from pyrocrl.exact.binary import PRIOR, Prior, code, evidence, log_density, state_logits, tied


class Effort(NamedTuple):
    """rows: of the search for first states. starts: of it, one by addition, the others at random. rounds: of exchanges
    in each. clear_steps: of expectation-maximisation after each exchange. line_steps: of the same on single features.
    steps: of it at last, on all rows."""

    rows: int = 3000
    starts: int = 3
    rounds: int = 8
    clear_steps: int = 6
    line_steps: int = 40
    steps: int = 60


EFFORT = Effort()


class Counts(NamedTuple):
    """Expected over the rows' states: rows (env, state), sums of x (state, feature), sums of its squares (feature,)."""

    count: Tensor
    first: Tensor
    second: Tensor

    def summed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same with all environments together: count (state,)."""
        return self.count.sum(0), self.first, self.second

    def laws(self, prior: Prior = PRIOR) -> Laws:
        """Levels, averaged over the posterior of masks, noise and laws of states."""
        level, noise = tied(*self.summed(), prior)
        return Laws(level, noise.log(), (self.count + prior.equivalent / self.count.shape[1]).log())


class Laws(NamedTuple):
    """level (state, feature) and log_noise (feature,) of standardised x; logits (env, state) of states."""

    level: Tensor
    log_noise: Tensor
    logits: Tensor


def counts(x: Tensor, env: Tensor, share: Tensor, environments: int) -> Counts:
    """By the probabilities `share` (rows, state) of each row's states; x: (rows, feature), standardised."""
    hot = torch.nn.functional.one_hot(env, environments).double()
    return Counts(hot.mT @ share, share.mT @ x, x.square().sum(0))


def first_counts(
    x: Tensor,
    env: Tensor,
    latents: int,
    environments: int,
    generator: torch.Generator,
    prior: Prior = PRIOR,
    effort: Effort = EFFORT,
) -> Counts:
    """Those of the first states of as many as `rows` rows."""
    few = torch.randperm(len(x), generator=generator)[: effort.rows]
    bits = first_states(x[few], latents, generator, prior, effort)
    share = torch.zeros(len(few), 2**latents, dtype=torch.float64)
    share.scatter_(1, code(bits)[:, None], 1.0)
    return counts(x[few], env[few], share, environments)


def climbed(x: Tensor, env: Tensor, found: Counts, prior: Prior = PRIOR, effort: Effort = EFFORT) -> Counts:
    """Expectation-maximisation, then, if another coding of states is better, from there once more."""
    found = maximised(x, env, found, prior, effort)
    better = recoded(found, prior)
    return found if better is None else maximised(x, env, better, prior, effort)


def maximised(x: Tensor, env: Tensor, found: Counts, prior: Prior = PRIOR, effort: Effort = EFFORT) -> Counts:
    """Expectation-maximisation from the laws that counts imply."""
    last = -math.inf
    for _ in range(effort.steps):
        logits = state_logits(x, env, *found.laws(prior))
        value = float(logits.logsumexp(-1).mean())
        found = counts(x, env, logits.softmax(-1), len(found.count))
        if value - last < 1e-7:
            break
        last = value
    return found


def recoded(found: Counts, prior: Prior = PRIOR) -> Counts | None:
    """Replace a latent by whether it equals another while that makes the masks sparser; None if no such change does."""
    size = found.count.shape[1]
    codes = torch.arange(size)
    options = [codes ^ (((codes >> b) & 1) << a) for a, b in permutations(range(size.bit_length() - 1), 2)]
    moved = None
    while True:
        count, first, second = found.summed()
        now = evidence(count, first, second, prior)
        gains = [evidence(count[o], first[o], second, prior) - now for o in options]
        best = int(torch.stack(gains).argmax())
        if gains[best] < 1e-6 * now.abs():
            return moved
        found = moved = found._replace(count=found.count[:, options[best]], first=found.first[options[best]])


def first_states(
    x: Tensor, latents: int, generator: torch.Generator, prior: Prior = PRIOR, effort: Effort = EFFORT
) -> Tensor:
    """(rows, latent) in {0, 1}: of all cuts of single features into two, those that explain all features best.

    Latents are added one at a time, or drawn at random, and then exchanged until nothing is gained, by the evidence of
    all features with masks summed out; the best of `starts`. After each change the states are cleared of the noise
    that a single feature's cut has, for a second noisy copy of a latent would look like one more.
    """
    cuts = _cuts(x, effort.line_steps)
    second = x.square().sum(0)
    told = partial(evidence, prior=prior)

    def best_next(bits: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [(bits[:, a] != bits[:, b]).to(x.dtype)[:, None] for a, b in combinations(range(bits.shape[1]), 2)]
        options = torch.cat([cuts, *pairs], -1)  # (rows, option)
        hot = torch.nn.functional.one_hot(code(bits), 2 ** bits.shape[1]).to(x.dtype)
        count, first = hot.sum(0), hot.mT @ x
        with_one = hot.mT @ options  # (state, option)
        sums = torch.einsum("rs,ro,rj->osj", hot, options, x)
        counts = torch.cat([count - with_one.mT, with_one.mT], -1)  # (option, state)
        firsts = torch.cat([first - sums, sums], 1)  # (option, state, feature)
        found = torch.func.vmap(told, in_dims=(0, 0, None))(counts, firsts, second)
        bits = torch.cat([bits, options[:, int(found.argmax())][:, None]], -1)
        return _refined(x, bits, prior, effort.clear_steps)

    best, highest = cuts[:, :latents], torch.tensor(-torch.inf, dtype=x.dtype)
    for start in range(effort.starts):
        pick = torch.randperm(cuts.shape[1], generator=generator)[: latents if start else 0]
        bits = cuts[:, pick]
        while bits.shape[1] < latents:
            bits, value = best_next(bits)
        before, stale = torch.tensor(-torch.inf, dtype=x.dtype), 0
        for _ in range(effort.rounds * latents):  # take out the oldest, put in the best
            bits, value = best_next(bits[:, 1:])
            stale = 0 if value > before + 1e-6 * value.abs() else stale + 1
            if value > highest:
                best, highest = bits, value
            before = torch.maximum(before, value)
            if stale == latents:
                break
    return best


def _refined(x: Tensor, bits: Tensor, prior: Prior, steps: int) -> tuple[Tensor, Tensor]:
    """The most probable states after a few steps of expectation-maximisation from `bits`, and the evidence of x."""
    member, second = orders.members(bits.shape[1]).to(x.dtype), x.square().sum(0)
    share = torch.nn.functional.one_hot(code(bits), len(member)).to(x.dtype)
    for _ in range(steps):
        count = share.sum(0)
        density = log_density(x, *tied(count, share.mT @ x, second, prior))
        share = (density + (count + prior.equivalent).log()).softmax(-1)
    return member[share.argmax(-1)], evidence(share.sum(0), share.mT @ x, second, prior)


def _cuts(x: Tensor, steps: int) -> Tensor:
    """(rows, cut) in {0, 1}: each feature clustered into two levels, and into four, two of which are taken for 1 in the
    three ways there are: those of a feature of one latent and of two."""
    two, four = _levels(x, 2, steps), _levels(x, 4, steps)  # (rows, feature)
    pairs = [(four == a) | (four == 3) for a in range(3)]
    return torch.cat([two == 1, *pairs], -1).to(x.dtype)


def _levels(x: Tensor, levels: int, steps: int) -> Tensor:
    """(rows, feature) the most probable component of a mixture of normals of equal spread on each feature, from two
    starts: centres at quantiles, and evenly between them."""
    at = (torch.arange(levels, dtype=x.dtype) + 0.5) / levels
    low, high = torch.quantile(x, torch.tensor([0.005, 0.995], dtype=x.dtype), dim=0)
    centre = torch.stack([torch.quantile(x, at, dim=0), low + at[:, None] * (high - low)])  # (start, level, feature)
    spread = (high - low).expand(2, -1) / (2 * levels)
    weight = torch.full_like(centre, 1.0 / levels)
    for _ in range(steps):
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
