"""Errors of a dictionary of sparse codes, by the scores of rows.

A row's score, the slope of log p(x) in the parameters, is the mean over its codes' posterior of the slope of
log p(x, z) (Fisher's identity), here over draws of codes. Sums of their squares estimate the information of the rows,
with what is lost because codes are unseen (Louis 1982), as the moments of codes alone do not; its inverse, prior
included, is the posterior's covariance for large numbers of rows. EM over random parts of rows stops about the maximum:
how far from it, a few steps by the same matrix (Fisher scoring) tell, and errors have that as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.dictionaries import NOISE, RARE, Dictionary, objective
from pyrocrl.exact.sparse_codes import Near

CODES, ROWS = 32, 6_000  # draws of a row's codes, and rows, of which the scores are taken
FEW_CODES, MANY = 8, 1_000  # draws, where rows are more than that
TOGETHER = 2_500  # parameters, above which those of different latents are taken as if their errors were apart
STEPS, HALVES = 4, 4
HIGHEST = 0.95  # rate


class Prior(NamedTuple):
    """slab: deviation of loadings; shape, noise: of variances; usual, width: mean and deviation of log spreads;
    offered: latents, of which rates are Beta(1, offered - 1)."""

    slab: float
    shape: float
    noise: float
    usual: float
    width: float
    offered: int


class Errors(NamedTuple):
    """Deviations: w (feature, latent), center, log variance (feature,), log spread, log odds of rates (latent,)."""

    w: Tensor
    center: Tensor
    log_variance: Tensor
    log_spread: Tensor
    log_odds: Tensor


def errors(x: Tensor, one: Dictionary, most: int, prior: Prior, generator: torch.Generator) -> Errors:
    """Of the dictionary that EM found, for rows (row, feature), standardised."""
    rows = x[torch.randperm(len(x), generator=generator)[:ROWS]]
    weight, now, at = len(x) / len(rows), -math.inf, one
    for _ in range(STEPS):
        scores = _scores(rows, at, most, generator)
        slope, curve = _prior_slopes(at, prior)
        slope = slope + weight * scores.sum(0)
        inverse = _Inverse(scores, curve, weight, at.w.shape)
        now = _log_posterior(rows, at, most, prior, weight) if now == -math.inf else now
        step, better = inverse.times(slope), None
        for half in range(HALVES):
            tried = _moved(at, step / 2**half)
            log = _log_posterior(rows, tried, most, prior, weight)
            if log > now:
                better, now = tried, log
                break
        if better is None:
            break
        at = better
    own = _split(inverse.deviations(), one.w.shape)
    both = zip(own, _parameters(at), _parameters(one), strict=True)
    return Errors(*((sd.square() + (a - b).square()).sqrt() for sd, a, b in both))


def _parameters(one: Dictionary) -> tuple[Tensor, ...]:
    return one.w, one.center, one.variance.log(), one.spread.log(), one.rate.logit()


def _split(flat: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """w (feature, latent), center, log variance (feature,), log spread, log odds (latent,) of a vector of all."""
    features, latents = shape
    parts = flat.split([features * latents, features, features, latents, latents])
    return (parts[0].view(latents, features).mT, *parts[1:])


def _scores(x: Tensor, one: Dictionary, most: int, generator: torch.Generator) -> Tensor:
    """(row, parameter) as `_split` reads them."""
    part = x - one.center
    near: Near = one.codes.search(part, most)
    mills = (-0.5 * one.spread.pow(-2)).exp() / math.sqrt(2 * math.pi) / torch.special.ndtr(1 / one.spread)
    count = CODES if len(x) <= MANY else FEW_CODES
    total = torch.zeros((), dtype=x.dtype)
    for _ in range(count):
        uniform = torch.rand(near.flat.shape, generator=generator, dtype=x.dtype).clamp_min(1e-30)
        places = torch.rand(near.places.shape, generator=generator, dtype=x.dtype)
        z = one.codes.draw(part, near, -(-uniform.log()).log(), places)
        fires, left = (z > 0).to(z.dtype), part - z @ one.w.mT
        own = left / one.variance
        w = (z[:, :, None] * own[:, None]).flatten(1)  # latent by latent
        spread = fires * (((z - 1) / one.spread).square() - 1 + mills / one.spread)
        total = total + torch.cat([w, own, (own * left - 1) / 2, spread, fires - one.rate], 1)
    return total / count


def _prior_slopes(one: Dictionary, prior: Prior) -> tuple[Tensor, Tensor]:
    """Slopes of the log prior in all parameters, and minus its curvatures."""
    like, log_spread = torch.ones_like, one.spread.log()
    slopes = (
        -(one.w / prior.slab**2).mT.flatten(),
        -one.center,
        prior.noise / one.variance - prior.shape,
        (prior.usual - log_spread) / prior.width**2,
        1 - prior.offered * one.rate,
    )
    curves = (
        like(one.w).flatten() / prior.slab**2,
        like(one.center),
        prior.noise / one.variance,
        like(log_spread) / prior.width**2,
        prior.offered * one.rate * (1 - one.rate),
    )
    return torch.cat(slopes), torch.cat(curves)


def _log_posterior(x: Tensor, one: Dictionary, most: int, prior: Prior, weight: float) -> float:
    log = -0.5 * (one.w / prior.slab).square().sum() - 0.5 * one.center.square().sum()
    log = log - (prior.shape * one.variance.log() + prior.noise / one.variance).sum()
    log = log - 0.5 * ((one.spread.log() - prior.usual) / prior.width).square().sum()
    log = log + (one.rate.log() + (prior.offered - 1) * (-one.rate).log1p()).sum()
    return float(log + weight * len(x) * objective(x, one, most))


def _moved(one: Dictionary, step: Tensor) -> Dictionary:
    w, center, variance, spread, odds = _split(step, one.w.shape)
    return replace(
        one,
        w=one.w + w,
        center=one.center + center,
        variance=(one.variance * variance.clamp(-1, 1).exp()).clamp_min(NOISE),
        spread=one.spread * spread.clamp(-0.5, 0.5).exp(),
        rate=(one.rate.logit() + odds.clamp(-1, 1)).sigmoid().clamp(RARE, HIGHEST),
    )


class _Inverse:
    """Of the information: of all parameters together, or where they are many of each latent's, and of each other."""

    def __init__(self, scores: Tensor, curve: Tensor, weight: float, shape: torch.Size) -> None:
        size, (features, latents) = scores.shape[1], shape
        if size <= TOGETHER:
            self.blocks = [torch.arange(size)]
        else:
            edge = features * latents
            first, own = torch.arange(edge).view(latents, features), edge + 2 * features + torch.arange(latents)
            self.blocks = [
                *torch.cat([first, own[:, None], latents + own[:, None]], 1),
                torch.arange(edge, edge + 2 * features),
            ]
        self.size, self.inverse = size, []
        for block in self.blocks:
            own = scores[:, block].double()
            self.inverse.append(torch.linalg.inv(weight * own.mT @ own + torch.diag(curve[block].double())))

    def times(self, slope: Tensor) -> Tensor:
        out = torch.zeros_like(slope)
        for block, inverse in zip(self.blocks, self.inverse, strict=True):
            out[block] = (inverse @ slope[block].double()).to(out)
        return out

    def deviations(self) -> Tensor:
        out = torch.zeros(self.size, dtype=torch.double)
        for block, inverse in zip(self.blocks, self.inverse, strict=True):
            out[block] = inverse.diagonal().clamp_min(0).sqrt()
        return out
