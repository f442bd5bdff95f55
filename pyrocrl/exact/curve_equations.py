"""Equations of latents that add up curves of their parents, from pairs of rows between which a latent was set anew.

    z_k = f_k(z) + eps_k,   f_k(z) = sum_jb curve_jbk phi_b(z_j),  phi: `bends`       curve (parent, basis, child)
    after latent k was changed   z'_k ~ N(own_level_k, own_scale_k^2),  whatever its parents:
    eps'_k = own_level_k - f_k(z') + own_scale_k N(0, 1)

So the equation of k is a regression of eps'_k on curves of its parents, over the pairs in which k was changed:
conjugate, with closed evidence of every set of parents. Parents come first: the order is that in which noise depends
least on that of latents that are left, and the latents before k are those of their own mean equations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.dists import Gamma, categorical
from pyrocrl.exact import all_subsets, orders
from pyrocrl.exact.all_subsets import RATE, SHAPE
from pyrocrl.exact.regression import regress

BENDS = 4
LEVEL = 3.0  # prior deviation of own_level, in units of own_scale


def bends(z: Tensor) -> Tensor:
    """(..., latent) -> (..., latent, basis): phi of each latent, about 0 in the mean of a standard normal one."""
    square = z.square()
    return torch.stack([z, (2 * z).tanh(), (0.1 + square).sqrt() - 0.85, (-square).exp() - 0.58], -1)


def told(z: Tensor, curve: Tensor) -> Tensor:
    """(..., child) f(z) of latents z (..., latent)."""
    return bends(z).flatten(-2) @ curve.flatten(0, 1)


class CurveEquations(NamedTuple):
    """order (latent,); draws of graph (draw, parent, child), curve (draw, parent, basis, child), precision and
    own_level (draw, latent); mean (parent, basis, child) of the curves."""

    order: Tensor
    graph: Tensor
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
    """edge_probability: given an order; slab: prior deviation of a curve's coefficient, in units of own_scale;
    correlation_error: of noise of two latents, that errors in reading it leave however many pairs there are."""

    edge_probability: float
    slab: float
    correlation_error: float

    def worth(self, chance: Tensor) -> Tensor:
        """(pair, latent) chances, as what pairs are worth: all together no more than correlation_error^-2."""
        return chance / (1 + self.correlation_error**2 * chance.sum(0))


def draw(eps: Tensor, chance: Tensor, prior_of: Prior, count: int, generator: torch.Generator) -> CurveEquations:
    """The posterior given noise of the rows after eps (pair, latent), and chances (pair, latent) that each was
    changed."""
    d, slab, chance = eps.shape[1], prior_of.slab, prior_of.worth(chance)
    order, z = _order(eps, chance, slab), eps.clone()
    zero = eps.new_zeros(d, BENDS, d)
    graph, curve, mean = eps.new_zeros(count, d, d), zero.expand(count, -1, -1, -1).clone(), zero
    precision, own_level = torch.ones_like(graph[:, 0]), torch.zeros_like(graph[:, 0])
    for place, k in enumerate(order):
        before = order[:place]
        moments, rows = _moments(z[:, before], eps[:, k], chance[:, k], slab)
        inside = orders.members(place).to(eps) if place else eps.new_zeros(1, 0)  # (set, candidate)
        prior = inside @ eps.new_full((place,), prior_of.edge_probability).logit() if place else eps.new_zeros(1)
        use = torch.cat(
            [eps.new_ones(len(inside), 1), inside.repeat_interleave(BENDS, 1), eps.new_ones(len(inside), 1)], 1
        )
        parts = moments * use[:, :, None] * use[:, None]
        scores = all_subsets.log_evidence_of_all(parts, rows.expand(len(inside)))[:, 0] + prior
        root, w, left = regress(parts[:, :-1, :-1], parts[:, :-1, -1:], parts[:, -1:, -1], torch.ones_like(prior))
        which = categorical(scores.expand(count, -1), generator)
        law = Gamma(SHAPE + 0.5 * rows, RATE + 0.5 * left[which, 0])
        precision[:, k] = law.rate.reciprocal() * torch._standard_gamma(law.concentration.expand(count), generator)
        noise = torch.randn(count, w.shape[1], 1, generator=generator, dtype=eps.dtype)
        noise = torch.linalg.solve_triangular(root[which].mT, noise, upper=True) * precision[:, k, None, None].rsqrt()
        drawn = (w[which] + noise)[..., 0] * use[which, :-1]
        own_level[:, k] = LEVEL * drawn[:, 0]
        graph[:, before, k] = inside[which]
        curve[:, before, :, k] = -slab * drawn[:, 1:].unflatten(1, (place, BENDS)) if place else curve[:, before, :, k]
        mean = mean.clone()
        mean[before, :, k] = curve[:, before, :, k].mean(0)
        z[:, k] = eps[:, k] + told(z, mean)[:, k]
    return CurveEquations(torch.tensor(order), graph, curve, precision, own_level, mean)


def _moments(z: Tensor, eps: Tensor, chance: Tensor, slab: float) -> tuple[Tensor, Tensor]:
    """Sums of products of (1, curves of z (pair, latent), eps (pair,)), in units of their priors; how many pairs."""
    one = torch.ones_like(eps)[:, None]
    design = torch.cat([LEVEL * one, slab * bends(z).flatten(1), eps[:, None]], 1)
    return (design * chance[:, None]).mT @ design, chance.sum()


def _order(eps: Tensor, chance: Tensor, slab: float) -> list[int]:
    """Latents, those first whose changed noise depends least, by evidence, on noise of those that are left."""
    d = eps.shape[1]
    depends = eps.new_zeros(d, d)  # (latent, of the noise of which)
    for k in range(d):
        rest = [j for j in range(d) if j != k]
        moments, rows = _moments(eps[:, rest], eps[:, k], chance[:, k], slab)
        use = torch.cat([eps.new_zeros(1, d - 1), torch.eye(d - 1).to(eps)])  # of what is left out
        keep = torch.cat([eps.new_ones(d, 1), 1 - use.repeat_interleave(BENDS, 1), eps.new_ones(d, 1)], 1)
        scores = all_subsets.log_evidence_of_all(moments * keep[:, :, None] * keep[:, None], rows.expand(d))[:, 0]
        depends[k, rest] = scores[0] - scores[1:]
    order: list[int] = []
    while len(order) < d:
        left = [k for k in range(d) if k not in order]
        order.append(min(left, key=lambda k: float(depends[k, left].sum())))
    return order
