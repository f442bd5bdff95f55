"""Unmixing and mechanisms of latents that are known targets in some steps, and draws of their posterior.

With parents, slabs and weights summed out (`exact.target_steps`) the log-posterior is a function of the unmixing V, of
widths and spreads alone, in sums of products that are taken over the rows once:

    rows log |det V| + sum_k log sum_choice exp(log - v_k' square v_k / 2 ..) - targets_k log width_k - ..

It is climbed by Newton's method (`climb`), from a closed form (`by_targets`) and random unmixings; the functions of
latents before are those of the latents found last, and all is climbed again until these stay (`best`).

The closed form: in E[y_t | y_t-1, targets] = A m(y_t-1) + sum_k target_k A_k d_k(y_t-1), coefficients of target_k times
(1, y_t-1) are all along A_k, column k of the mixing.

Longer than other files because what tells latents apart at the maximum (`acting`, `turning`) is of the same evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.directions import whitening
from pyrocrl.exact import target_steps
from pyrocrl.exact.target_steps import Basis, Moments, Terms

STARTS = 2  # unmixings: the closed form, where there is one, and random ones
ROUNDS = 3  # of functions of latents before
PASSES, GAIN = 100, 1e-6  # of Newton's method, until one gains less than this in nats
HALVINGS = 12
WIDTH, SPREAD = (0.0, 1.5), (1.0, 2.0)  # mean and deviation a priori of logarithms
ANGLES = tuple(math.pi * step / 8 for step in (-3, -2, -1, 1, 2, 3, 4))
FAR = 0.5  # by which latents are turned along other directions
SINGULAR = 1e-3  # least singular value of columns of norm 1 that are a start


@dataclass(frozen=True)
class Steps:
    """Rows in the order of time: y (rows, y) white, env (rows,), since (rows,) how many are right before each, hit
    (env, latent) in {0, 1}; soft: whether targets keep parents, with weights of their own; edge: a parent's probability
    a priori."""

    y: Tensor
    env: Tensor
    since: Tensor
    hit: Tensor
    soft: bool
    edge: float


class StepsFound(NamedTuple):
    """unmixing (latent, y), in units of innovations; log_width, log_spread (latent,); log (), the log-posterior."""

    unmixing: Tensor
    log_width: Tensor
    log_spread: Tensor
    log: Tensor


class StepsEvidence:
    """The log-posterior of unmixing, widths and spreads, given functions of latents before."""

    def __init__(
        self, own: tuple[Moments, Moments], first: Tensor, rows: int, basis: Basis, *, soft: bool, edge: float
    ) -> None:
        """own: moments of each latent where it is no target, and where it is one; first (row, y): rows at a series'
        start; rows: of all."""
        self.own, self.latents, self.basis, self.rows = own, len(own[0].count), basis, rows
        self.natural = target_steps.terms(own[0])
        made = target_steps.terms if soft else target_steps.terms_of_constant
        self.targeted: Terms = made(own[1])
        self.prior = target_steps.log_prior(self.latents, edge)
        self.first, self.begins = first.mT @ first, len(first)

    @classmethod
    def of(cls, steps: Steps, basis: Basis) -> StepsEvidence:
        follow = (steps.since > 0).nonzero()[:, 0]
        phi, env, hit = basis(steps.y[follow - 1]), steps.env[follow], steps.hit.to(steps.y)
        each = target_steps.moments(phi, steps.y[follow], env, len(hit))
        own = each.of((1 - hit).mT), each.of(hit.mT)
        return cls(own, steps.y[steps.since == 0], len(steps.y), basis, soft=steps.soft, edge=steps.edge)

    def choices(self, unmixing: Tensor, log_width: Tensor) -> Tensor:
        """(latent, choice) log-density of z in all rows that follow others, together with each choice."""
        square = torch.einsum("ka,kcab,kb->kc", unmixing, self.natural.square, unmixing)
        other = torch.einsum("ka,kcab,kb->kc", unmixing, self.targeted.square, unmixing)
        other = other * (-2 * log_width).exp()[:, None]
        return self.prior + self.natural.log + self.targeted.log - 0.5 * (square + other)

    def each(self, unmixing: Tensor, log_width: Tensor, log_spread: Tensor) -> Tensor:
        """(latent,) log-posterior but for the volume and constants."""
        start = torch.einsum("ka,ab,kb->k", unmixing, self.first, unmixing)
        log = self.choices(unmixing, log_width).logsumexp(-1) - self.own[1].count * log_width
        log = log - 0.5 * start * (-2 * log_spread).exp() - self.begins * log_spread
        for value, (mean, deviation) in ((log_width, WIDTH), (log_spread, SPREAD)):
            log = log - 0.5 * ((value - mean) / deviation).square()
        return log

    def __call__(self, unmixing: Tensor, log_width: Tensor, log_spread: Tensor) -> Tensor:
        volume = self.rows * torch.linalg.slogdet(unmixing).logabsdet
        return self.each(unmixing, log_width, log_spread).sum() + volume

    def moved(self, found: StepsFound, theta: Tensor) -> StepsFound:
        """From `found` by theta (latent * (latent + 2),): (1 + E) V, and additions to logarithms; its log is that of
        before."""
        d = self.latents
        turn, width, spread = theta.split([d * d, d, d])
        out = found.unmixing + turn.reshape(d, d) @ found.unmixing
        return StepsFound(out, found.log_width + width, found.log_spread + spread, found.log)

    def _at(self, found: StepsFound) -> tuple[Tensor, Tensor]:
        """Gradient and minus the Hessian, in theta."""

        def log(theta: Tensor) -> Tensor:
            return self(*self.moved(found, theta)[:3])

        zero = torch.zeros(self.latents * (self.latents + 2), dtype=found.unmixing.dtype)
        slope = torch.func.grad(log)(zero)
        return slope, -torch.func.jacrev(torch.func.grad(log))(zero)

    def climb(self, found: StepsFound) -> StepsFound:
        """The maximum near `found`: Newton's steps, along the curve's absolute value, halved until they gain."""
        now = self(*found[:3])
        for _ in range(PASSES):
            slope, curve = self._at(found)
            value, axes = torch.linalg.eigh((curve + curve.mT) / 2)
            step = axes @ ((axes.mT @ slope) / value.abs().clamp_min(1e-6 * self.rows))
            step = step / (step.norm() / 2).clamp_min(1.0)
            for _ in range(HALVINGS):
                there = self.moved(found, step)
                then = self(*there[:3])
                if then > now:
                    break
                step = step / 2
            if not then > now:
                break
            gain, found, now = float(then - now), there, then
            if gain < GAIN:
                break
        return found._replace(log=now)

    def curvature(self, found: StepsFound) -> Tensor:
        """Minus the Hessian in theta (see `moved`)."""
        return self._at(found)[1]


def by_targets(steps: Steps) -> tuple[Tensor, Tensor]:
    """Unmixing (latent, y) by the closed form, and unmixing of what linear regression leaves, white; rows of the first
    are nan where targets' coefficients do not span the latents."""
    follow = (steps.since > 0).nonzero()[:, 0]
    y, before = steps.y[follow], steps.y[follow - 1]
    one = torch.cat([torch.ones_like(y[:, :1]), before], 1)
    hit = steps.hit.to(y)[steps.env[follow]]
    d = hit.shape[1]
    table = torch.cat([one, (hit[:, :, None] * one[:, None]).flatten(1)], 1)
    ridge = 1e-6 * len(y) * torch.eye(table.shape[1], dtype=y.dtype)
    slope = torch.linalg.solve(table.mT @ table + ridge, table.mT @ y)
    left = y - table @ slope
    white = whitening(left.mT @ left / len(y))
    root = torch.linalg.cholesky(one.mT @ one / len(y))
    columns = torch.stack([torch.linalg.svd(white @ own.mT @ root)[0][:, 0] for own in slope[d + 1 :].split(d + 1)], 1)
    good = torch.linalg.svdvals(columns)[-1] > SINGULAR
    found = torch.linalg.inv(columns) @ white if good else torch.full_like(white, math.nan)
    return found / (left @ found.mT).std(0)[:, None], white


def best(steps: Steps, generator: torch.Generator) -> tuple[StepsFound, StepsEvidence]:
    """Most probable unmixing, widths and spreads, and the evidence with functions of its latents before."""
    told, white = by_targets(steps)
    closed = [told] if torch.isfinite(told).all() else []
    turns = [torch.randn(len(white), len(white), generator=generator, dtype=white.dtype) for _ in range(STARTS)]
    starts = [*closed, *(torch.linalg.qr(turn)[0] @ white for turn in turns)][:STARTS]
    evidence = StepsEvidence.of(steps, Basis.of(white, steps.y))
    zero = white.new_zeros(len(white))
    climbed = [evidence.climb(StepsFound(start, zero, zero + SPREAD[0], zero.sum())) for start in starts]
    found = max(climbed, key=lambda one: float(one.log))
    for _ in range(ROUNDS):
        evidence = StepsEvidence.of(steps, Basis.of(found.unmixing, steps.y))
        found = evidence.climb(found)
    return found, evidence


class Draws(NamedTuple):
    """Draws of the posterior, (draw, ...) each: unmixing (latent, y), width, spread (latent,), graph (parent, child),
    slab (latent,), weight (mechanism, latent, basis)."""

    unmixing: Tensor
    width: Tensor
    spread: Tensor
    graph: Tensor
    slab: Tensor
    weight: Tensor


def draws(found: StepsFound, evidence: StepsEvidence, count: int, generator: torch.Generator) -> Draws:
    """From a normal approximation about the maximum, and all else exactly given these."""
    value, axes = torch.linalg.eigh(evidence.curvature(found))
    noise = torch.randn(count, len(value), generator=generator, dtype=value.dtype)
    moves = noise * value.clamp_min(1.0).rsqrt() @ axes.mT
    each = [evidence.moved(found, move) for move in moves]
    unmixing, log_width, log_spread = (torch.stack([one[part] for one in each]) for part in range(3))
    logits = torch.stack([evidence.choices(v, w) for v, w in zip(unmixing, log_width, strict=True)])
    drawn = torch.distributions.Categorical(logits=logits).probs.cumsum(-1)
    uniform = torch.rand(*drawn.shape[:2], 1, generator=generator, dtype=drawn.dtype)
    choice = (uniform > drawn).sum(-1).clamp_max(drawn.shape[-1] - 1)  # (draw, latent)
    slabs = len(target_steps.SLABS)
    graph = target_steps.members(evidence.latents).to(value)[choice // slabs].mT  # (draw, parent, child)
    slab = choice % slabs
    use = target_steps.inside(graph.mT)  # (draw, child, basis)
    deviation = target_steps.sizes(use, value.new_tensor(target_steps.SLABS)[slab])
    of_constant = evidence.targeted.square.shape[1] == 1
    weight = value.new_zeros(count, 2, *use.shape[1:])
    width = log_width.exp()
    for k in range(evidence.latents):
        for one in choice[:, k].unique():
            at = (choice[:, k] == one).nonzero()[:, 0]
            for mechanism, own in enumerate(evidence.own):
                size = deviation[at[0], k].clone()
                if mechanism and of_constant:
                    size[1:] = 0.0
                row = unmixing[at, k] / (width[at, k, None] if mechanism else 1.0)
                part = Moments(*(value[k] for value in own))
                weight[at, mechanism, k] = target_steps.weights(part, row, size, generator)
    return Draws(unmixing, width, log_spread.exp(), graph, slab, weight)


def acting(evidence: StepsEvidence, found: StepsFound) -> Tensor:
    """(latent,) log evidence of latents whose law is another where they are targets, less that of one law throughout,
    of a scale of its own."""
    natural, targeted = evidence.own
    count = natural.count + targeted.count
    both = target_steps.terms(Moments(*(a + b for a, b in zip(natural, targeted, strict=True))))
    square = torch.einsum("ka,kcab,kb->kc", found.unmixing, both.square, found.unmixing)
    log_scale = torch.zeros_like(count)
    for _ in range(5):
        log = evidence.prior + both.log - 0.5 * square * (-2 * log_scale).exp()[:, None]
        log_scale = 0.5 * ((log.softmax(-1) * square).sum(-1) / count).log()
    one = log.logsumexp(-1) - count * log_scale
    return evidence.choices(found.unmixing, found.log_width).logsumexp(-1) - targeted.count * found.log_width - one


def turning(evidence: StepsEvidence, found: StepsFound) -> Tensor:
    """(latent, latent) by how many nats turned latents are less probable at least: each two of them by ANGLES, and all
    along the directions that the curve at the maximum leaves widest."""
    d, best_ = evidence.latents, evidence(*found[:3])
    out = found.unmixing.new_full((d, d), math.inf)

    def turned(generator: Tensor) -> float:
        unmixing, width = torch.linalg.matrix_exp(generator) @ found.unmixing, found.log_width
        for _ in range(3):  # in units of innovations, as they then are
            share = evidence.choices(unmixing, width).softmax(-1)
            square, other = (
                (share * torch.einsum("ka,kcab,kb->kc", unmixing, part.square, unmixing)).sum(-1)
                for part in (evidence.natural, evidence.targeted)
            )
            size = (square / evidence.own[0].count.clamp_min(1.0)).sqrt()
            width = torch.where(
                evidence.own[1].count > 0, 0.5 * (other / evidence.own[1].count).log() - size.log(), width
            )
            unmixing = unmixing / size[:, None]
        return float(best_ - evidence(unmixing, width, found.log_spread))

    for j in range(d):
        for k in range(j):
            for angle in ANGLES:
                generator = torch.zeros_like(out)
                generator[j, k], generator[k, j] = angle, -angle
                out[j, k] = out[k, j] = min(float(out[j, k]), turned(generator))
    value, axes = torch.linalg.eigh(evidence.curvature(found))
    off = 1 - torch.eye(d, dtype=value.dtype)
    for axis in axes.mT:
        move = axis[: d * d].reshape(d, d) * off
        size = move.square().sum(1).max().sqrt()
        if size > 0.3:  # the axes that turn latents
            for sign in (1, -1):
                less = turned(sign * FAR * move / size)
                mixed = move.square() > 0.25 * move.square().max()
                out = torch.where((mixed | mixed.mT) & (out > less), less, out)
    return out
