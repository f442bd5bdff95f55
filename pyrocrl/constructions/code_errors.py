"""Errors of a dictionary of sparse codes, by the scores of rows.

A row's score, the slope of log p(x) in the parameters, is the mean over its codes' posterior of the slope of
log p(x, z) (Fisher's identity), here over draws of codes. Sums of their squares estimate the information of the rows,
with what is lost because codes are unseen (Louis 1982), as the moments of codes alone do not; its inverse, prior
included, is the posterior's covariance for large numbers of rows. EM over random parts of rows stops about the maximum:
how far from it, a few steps by the same matrix (Fisher scoring) tell, and errors have that as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.dictionaries import RARE, Dictionary, objective
from pyrocrl.exact.count_factors import BASE, DISPERSION, SPREAD
from pyrocrl.exact.sparse_codes import Near

CODES, ROWS = 32, 6_000  # draws of a row's codes, and rows, of which the scores are taken
FEW_CODES, MANY = 8, 1_000  # draws, where rows are more than that
TOGETHER = 2_500  # parameters, above which, or above half of the rows, those of different latents are taken apart
STEPS, HALVES = 4, 4
HIGHEST = 0.95  # rate


class Term(NamedTuple):
    """Of a log prior: its value (), slopes, and less its curvatures, of the shape of the parameter; of noise, in its
    logarithm."""

    log: Tensor
    slope: Tensor
    curve: Tensor

    @classmethod
    def normal(cls, value: Tensor, mean: Tensor | float, sd: float) -> Term:
        log = -0.5 * ((value - mean) / sd).square().sum()
        return cls(log, (mean - value) / sd**2, torch.ones_like(value) / sd**2)


@dataclass(frozen=True)
class Prior:
    """slab: deviation of loadings; shape, noise: of variances; usual, width: mean and deviation of log spreads;
    offered: latents, of which rates are Beta(1, offered - 1)."""

    slab: float
    shape: float
    noise: float
    usual: float
    width: float
    offered: int

    def of_center(self, center: Tensor) -> Term:
        return Term.normal(center, 0.0, 1.0)

    def of_noise(self, noise: Tensor) -> Term:
        rate = self.noise / noise
        return Term(-(self.shape * noise.log() + rate).sum(), rate - self.shape, rate)


@dataclass(frozen=True)
class CountPrior:
    """The same of counts; level (feature,): mean of baselines, of deviation `BASE`. Dispersions are about
    `DISPERSION`, their logarithm of deviation `SPREAD`."""

    slab: float
    level: Tensor
    usual: float
    width: float
    offered: int

    def of_center(self, center: Tensor) -> Term:
        return Term.normal(center, self.level, BASE)

    def of_noise(self, noise: Tensor) -> Term:
        return Term.normal(noise.log(), math.log(DISPERSION), SPREAD)


class Errors(NamedTuple):
    """Deviations: w (feature, latent), center as it is, log noise (feature,), log spread, log odds (latent,)."""

    w: Tensor
    center: Tensor
    log_noise: Tensor
    log_spread: Tensor
    log_odds: Tensor


def errors(x: Any, one: Dictionary, most: int, prior: Prior | CountPrior, generator: torch.Generator) -> Errors:
    """Of the dictionary that EM found, for the rows that it reads."""
    rows = x[torch.randperm(len(x), generator=generator)[:ROWS]]
    weight, now, at = len(x) / len(rows), -math.inf, one
    for _ in range(STEPS):
        scores = _scores(rows, at, most, generator)
        slope, curve = _prior_slopes(at, prior)
        slope = slope + weight * scores.sum(0)
        inverse = _Inverse(scores, curve, weight, at)
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
    own = _split(inverse.deviations(), one)
    both = zip(own, _parameters(at), _parameters(one), strict=True)
    return Errors(*((sd.square() + (a - b).square()).sqrt() for sd, a, b in both))


def _parameters(one: Dictionary) -> tuple[Tensor, ...]:
    return one.w, one.center, one.noise.log(), one.spread.log(), one.rate.logit()


def _split(flat: Tensor, one: Dictionary) -> tuple[Tensor, ...]:
    """w (feature, latent), center, log noise (feature,), log spread, log odds (latent,) of a vector of all."""
    features, latents = one.w.shape
    parts = flat.split([features * latents, one.center.numel(), features, latents, latents])
    return (parts[0].view(latents, features).mT, parts[1].view_as(one.center), *parts[2:])


def _scores(x: Any, one: Dictionary, most: int, generator: torch.Generator) -> Tensor:
    """(row, parameter) as `_split` reads them."""
    part, dtype = one.part(x), one.w.dtype
    near: Near = one.codes.search(part, most)
    mills = (-0.5 * one.spread.pow(-2)).exp() / math.sqrt(2 * math.pi) / torch.special.ndtr(1 / one.spread)
    count = CODES if len(x) <= MANY else FEW_CODES
    total = torch.zeros((), dtype=dtype)
    for _ in range(count):
        uniform = torch.rand(near.flat.shape, generator=generator, dtype=dtype).clamp_min(1e-30)
        places = torch.rand(near.places.shape, generator=generator, dtype=dtype)
        z = one.codes.draw(part, near, -(-uniform.log()).log(), places)
        fires, (own, noise) = (z > 0).to(z.dtype), one.slopes(x, z)
        w = (z[:, :, None] * own[:, None]).flatten(1)  # latent by latent
        spread = fires * (((z - 1) / one.spread).square() - 1 + mills / one.spread)
        total = total + torch.cat([w, one.of_center(x, own), noise, spread, fires - one.rate], 1)
    return total / count


def _prior_terms(one: Dictionary, prior: Prior | CountPrior) -> list[Term]:
    """In all parameters, in the order of `_split`."""
    more = prior.offered - 1
    rate = Term(
        (one.rate.log() + more * (-one.rate).log1p()).sum(),
        1 - prior.offered * one.rate,
        prior.offered * one.rate * (1 - one.rate),
    )
    return [
        Term.normal(one.w.mT, 0.0, prior.slab),
        prior.of_center(one.center),
        prior.of_noise(one.noise),
        Term.normal(one.spread.log(), prior.usual, prior.width),
        rate,
    ]


def _prior_slopes(one: Dictionary, prior: Prior | CountPrior) -> tuple[Tensor, Tensor]:
    """Slopes of the log prior in all parameters, and minus its curvatures."""
    terms = _prior_terms(one, prior)
    return torch.cat([term.slope.flatten() for term in terms]), torch.cat([term.curve.flatten() for term in terms])


def _log_posterior(x: Any, one: Dictionary, most: int, prior: Prior | CountPrior, weight: float) -> float:
    log = sum(term.log for term in _prior_terms(one, prior))
    return float(log + weight * len(x) * objective(x, one, most))


def _moved(one: Dictionary, step: Tensor) -> Dictionary:
    w, center, noise, spread, odds = _split(step, one)
    return replace(
        one,
        w=one.w + w,
        center=one.center + center,
        noise=one.bounded(one.noise * noise.clamp(-1, 1).exp()),
        spread=one.spread * spread.clamp(-0.5, 0.5).exp(),
        rate=(one.rate.logit() + odds.clamp(-1, 1)).sigmoid().clamp(RARE, HIGHEST),
    )


class _Inverse:
    """Of the information: of all parameters together, or where they are many, of each latent's, and of each other."""

    def __init__(self, scores: Tensor, curve: Tensor, weight: float, one: Dictionary) -> None:
        size, (features, latents) = scores.shape[1], one.w.shape
        if size <= min(TOGETHER, len(scores) / 2):
            self.blocks = [torch.arange(size)]
        else:
            edge, apart = features * latents, features + one.center.numel()
            first, own = torch.arange(edge).view(latents, features), edge + apart + torch.arange(latents)
            self.blocks = [
                *torch.cat([first, own[:, None], latents + own[:, None]], 1),
                torch.arange(edge, edge + apart),
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
