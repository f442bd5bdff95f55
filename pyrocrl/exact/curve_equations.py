"""Equations of latents that add up curves of their parents, from pairs of rows between which a latent was set anew.

    z_k = f_k(z) + eps_k,   f_k(z) = sum_jb curve_jbk phi_b(z_j),  phi: `bends`       curve (parent, basis, child)
    after latent k was changed   z'_k ~ N(own_level_k, own_scale_k^2),  whatever its parents:
    eps'_k = own_level_k - f_k(z') + own_scale_k N(0, 1)

So the equation of k is a regression of eps'_k on curves of its parents, over the pairs in which k was changed:
conjugate, with closed evidence of every set of parents and of every size of their curves. A curve's size is one number,
any power of a half as likely: were its coefficients of one deviation, all would have to be small for a weak edge, which
such a prior rules out, and an edge that few pairs do not show would surely not be there.

Orders are summed over as well (`orders.order_tables`). Latents among which k looks for parents are those of noise by
the mean curves of the most probable order, without what k gives them: in an order in which k has them as parents, it
gives them nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.dists import Gamma, categorical
from pyrocrl.exact import all_subsets, orders
from pyrocrl.exact.all_subsets import RATE, SHAPE
from pyrocrl.exact.regression import regress

BENDS = 4
LEVEL = 3.0  # prior deviation of own_level, in units of own_scale
LEVELS, MOST = 4, 8_000  # sizes that a curve may have, and choices of them that are summed over for a latent
ROUNDS = 2  # of an order, and latents by the mean curves in it
NEGLIGIBLE = 1e-6  # share of a mean that is left out


def bends(z: Tensor) -> Tensor:
    """(..., latent) -> (..., latent, basis): phi of each latent, about 0 in the mean of a standard normal one."""
    square = z.square()
    return torch.stack([z, (2 * z).tanh(), (0.1 + square).sqrt() - 0.85, (-square).exp() - 0.58], -1)


def told(z: Tensor, curve: Tensor) -> Tensor:
    """(..., child) f(z) of latents z (..., latent)."""
    return bends(z).flatten(-2) @ curve.flatten(0, 1)


class CurveEquations(NamedTuple):
    """Draws of order (draw, latent), parents first; graph, level of sizes (draw, parent, child); curve (draw, parent,
    basis, child); precision and own_level (draw, latent). mean: (parent, basis, child) of the curves, in the most
    probable order."""

    order: Tensor
    graph: Tensor
    level: Tensor
    curve: Tensor
    precision: Tensor
    own_level: Tensor
    mean: Tensor

    def latents(self, eps: Tensor) -> Tensor:
        """(..., latent) z of noise, by the mean curves."""
        return latents(eps, self.mean)


def latents(eps: Tensor, curve: Tensor) -> Tensor:
    """(..., latent) z of noise (..., latent) by curves (parent, basis, child) of a graph without cycles.

    As many rounds as latents: after round r, those are right to which no path is longer than r.
    """
    z = eps
    for _ in range(eps.shape[-1] - 1):
        z = eps + told(z, curve)
    return z


class Prior(NamedTuple):
    """edge_probability: given an order; slab: prior deviation of a coefficient of the largest curves, in units of
    own_scale; error: (latent,) deviation of what noise, as it is read, has of another latent. That is the same
    in all pairs, and looks like an equation: however many they are, they are worth no more than its square's
    reciprocal."""

    edge_probability: float
    slab: float
    error: Tensor

    def worth(self, chance: Tensor) -> Tensor:
        """(pair, latent) chances, as what pairs are worth."""
        return chance / (1 + self.error.square() * chance.sum(0))


def sizes(latents: int) -> tuple[Tensor, Tensor]:
    """Sizes that a curve may have, in those of the largest, and their logarithmic prior, both (level,): any of 1,
    1/2, ... 1/8 as likely, as many of these as leave `MOST` choices for all of a latent's parents to sum over. Of 10
    latents or more there is one size."""
    levels = LEVELS
    while levels > 1 and (levels + 1) ** (latents - 1) > MOST:
        levels -= 1
    size = 0.5 ** torch.arange(levels, dtype=torch.float64)
    return size, torch.full_like(size, -math.log(levels))


class _Regressions(NamedTuple):
    """Of every latent k (k, ...): sums of products of (1, curves of all others, eps_k) in units of their priors; how
    many pairs; log-evidence (k, state)."""

    moments: Tensor
    rows: Tensor
    score: Tensor


class _States(NamedTuple):
    """Every choice of sizes of a latent's parents: size (state, candidate), 0 of those that are none; log prior
    (state,); level (state, candidate), which size, -1 of none; set (state,), a bit a candidate."""

    size: Tensor
    log_prior: Tensor
    level: Tensor
    set: Tensor

    @property
    def use(self) -> Tensor:
        """(state, column) by what columns of moments are multiplied."""
        one = self.size.new_ones(len(self.size), 1)
        return torch.cat([one, self.size.repeat_interleave(BENDS, 1), one], 1)


def _states(d: int, edge_probability: float, like: Tensor) -> _States:
    size, log_share = sizes(d)
    each = torch.arange(-1, len(size))
    level = torch.cartesian_prod(*[each] * (d - 1)).reshape(-1, d - 1)
    inside = level >= 0
    value = torch.where(inside, size[level.clamp_min(0)], 0.0).to(like)
    odds = math.log(edge_probability / (1 - edge_probability))
    prior = torch.where(inside, odds + log_share[level.clamp_min(0)], 0.0).sum(1).to(like)
    return _States(value, prior, level.to(like.device), (inside * 2 ** torch.arange(d - 1)).sum(1).to(like.device))


def draw(eps: Tensor, chance: Tensor, prior: Prior, count: int, generator: torch.Generator) -> CurveEquations:
    """The posterior given noise of the rows after eps (pair, latent), and chances (pair, latent) that each was
    changed."""
    d, chance = eps.shape[1], prior.worth(chance)
    states = _states(d, prior.edge_probability, eps)
    mean = eps.new_zeros(d, BENDS, d)
    for _ in range(ROUNDS):
        found = _regressions(eps, chance, mean, prior.slab, states)
        best = orders.best_order(_table(found.score, states))
        mean = _mean(found, best, prior.slab, states)
    found = _regressions(eps, chance, mean, prior.slab, states)
    table = _table(found.score, states)
    order, graph = orders.sample_dags(table.expand(count, -1, -1), generator)
    mean = _mean(found, orders.best_order(table), prior.slab, states)
    level = categorical(sizes(d)[1].to(eps).expand(count, d, d, -1), generator).to(eps)  # of no edge, as before
    curve = eps.new_zeros(count, d, BENDS, d)
    precision, own_level = eps.new_ones(count, d), eps.new_zeros(count, d)
    for k in range(d):
        others = _others(d, k)
        own = (graph[:, others, k] * 2 ** torch.arange(d - 1, device=eps.device)).sum(1)  # (draw,) the set
        score = torch.where(states.set == own[:, None], found.score[k], -torch.inf)
        which, root_at = categorical(score, generator).unique(return_inverse=True)
        root, w, left = _solved(found.moments[k], states.use[which])
        law = Gamma(SHAPE + 0.5 * found.rows[k], RATE + 0.5 * left[root_at, 0])
        shape = law.concentration.expand(count)
        precision[:, k] = law.rate.reciprocal() * torch._standard_gamma(shape, generator)
        noise = torch.randn(count, w.shape[1], 1, generator=generator, dtype=eps.dtype)
        noise = torch.linalg.solve_triangular(root[root_at].mT, noise, upper=True)
        drawn = (w[root_at] + noise * precision[:, k, None, None].rsqrt())[..., 0] * states.use[which, :-1][root_at]
        own_level[:, k] = LEVEL * drawn[:, 0]
        curve[:, others, :, k] = -prior.slab * drawn[:, 1:].unflatten(1, (d - 1, BENDS))
        chosen = states.level[which][root_at]
        level[:, others, k] = torch.where(chosen >= 0, chosen.to(level), level[:, others, k])
    return CurveEquations(order, graph.to(eps), level, curve, precision, own_level, mean)


def _others(d: int, k: int) -> list[int]:
    return [j for j in range(d) if j != k]


def _regressions(eps: Tensor, chance: Tensor, mean: Tensor, slab: float, states: _States) -> _Regressions:
    d, moments, score = eps.shape[1], [], []
    for k in range(d):
        without = mean.clone()
        without[k] = 0.0
        design = bends(latents(eps, without)[:, _others(d, k)]).flatten(1)
        design = torch.cat([LEVEL * torch.ones_like(eps[:, :1]), slab * design, eps[:, k : k + 1]], 1)
        moments.append((design * chance[:, k : k + 1]).mT @ design)
        parts = moments[k] * states.use[:, :, None] * states.use[:, None]
        rows = chance[:, k].sum().expand(len(parts))
        score.append(all_subsets.log_evidence_of_all(parts, rows)[:, 0] + states.log_prior)
    return _Regressions(torch.stack(moments), chance.sum(0), torch.stack(score))


def _table(score: Tensor, states: _States) -> Tensor:
    """(latent, 2**latent) as `orders.order_tables` takes them: log-evidence of sets of parents, sizes summed out."""
    d = len(score)
    sums = torch.stack([score[:, states.set == one].logsumexp(1) for one in range(2 ** (d - 1))], 1)
    member = orders.members(d, score.device).long()
    out = torch.full((d, 2**d), -torch.inf, dtype=score.dtype, device=score.device)
    for k in range(d):
        fits = member[:, k] == 0
        own = (member[:, _others(d, k)] * 2 ** torch.arange(d - 1, device=score.device)).sum(1)
        out[k] = torch.where(fits, sums[k, own], -torch.inf)
    return out


def _solved(moments: Tensor, use: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`regress` on the columns used (state, column)."""
    parts = moments * use[:, :, None] * use[:, None]
    return regress(parts[:, :-1, :-1], parts[:, :-1, -1:], parts[:, -1:, -1], torch.ones_like(use[:, 0]))


def _mean(found: _Regressions, order: Tensor, slab: float, states: _States) -> Tensor:
    """(parent, basis, child) mean curves in an order."""
    d = len(order)
    earlier, out = orders.earlier(order), found.moments.new_zeros(d, BENDS, d)
    for k in range(d):
        others = _others(d, k)
        fits = (states.level < 0)[:, ~earlier[others, k]].all(1)
        share = found.score[k, fits].softmax(0)
        some = share > NEGLIGIBLE
        use = states.use[fits][some]
        w = _solved(found.moments[k], use)[1][..., 0] * use[:, :-1]
        out[others, :, k] = -slab * (share[some] @ w)[1:].unflatten(0, (d - 1, BENDS))
    return out
