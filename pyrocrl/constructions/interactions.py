"""Unmixing and mechanisms of latents on which actions act, unseen, in some steps.

Were it known of each step on which latents its action acts, all would be as in `constructions.target_steps`. Here
`climbed` takes turns: probabilities that it acts on a latent in a step, given the two mechanisms (variational
expectation-maximisation, which has a lower bound of the evidence), and a better unmixing and widths, parents and
weights summed out, given these; at first all rows of a region of actions are of one mechanism. It starts from
unmixings at random and two closed forms (`constructions.interaction_starts`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.interaction_starts import Acted, starts, two_kinds
from pyrocrl.constructions.target_steps import SPREAD, WIDTH, StepsEvidence, StepsFound
from pyrocrl.exact import target_steps
from pyrocrl.exact.basis_regression import SINGLE
from pyrocrl.exact.interactions import log_counts, rates
from pyrocrl.exact.regression import quadratic
from pyrocrl.exact.target_steps import SLABS, Basis, Moments

COARSE, FIRST = 12, 3  # rounds in which regions are of one mechanism, and of rows, from each start
REBASE = 2  # rounds after which functions of latents before are anew, in the former
SWEEPS = 5  # of rows of the unmixing in a round
TURNS, STAYS = 40, 1e-4  # rounds from the best one, until a round gains less nats a row
NEWTON = 8  # steps to a logarithm of a scale
SURE = 0.95  # probability of a region's mechanism, where it is of one


class Rows:
    """Rows that follow others, with functions of the latents before."""

    def __init__(self, acted: Acted, basis: Basis) -> None:
        follow = (acted.since > 0).nonzero()[:, 0]
        self.acted, self.basis = acted, basis
        self.y, self.phi, self.region = acted.y[follow], basis(acted.y[follow - 1]), acted.region[follow]
        self.first = acted.y[acted.since == 0]
        self.first_square = self.first.mT @ self.first
        self.all = self._moments(torch.ones_like(self.y[:, :1]))

    def _moments(self, share: Tensor) -> Moments:
        """Of each latent (latent, ...), rows weighted by share (rows, latent)."""
        parts = []
        for one in share.mT:
            at = (one > 1e-6).nonzero()[:, 0]
            phi, y = self.phi[at], self.y[at]
            weighted = phi * one[at, None]
            parts.append((weighted.mT @ phi, weighted.mT @ y, (y * one[at, None]).mT @ y, one.sum()))
        return Moments(*(torch.stack(part) for part in zip(*parts, strict=True)))

    def given(self, share: Tensor) -> StepsEvidence:
        """The log-posterior given probabilities (rows, latent) that latents are acted on."""
        targeted = self._moments(share)
        natural = Moments(*(a - b for a, b in zip(self.all, targeted, strict=True)))
        both = natural, targeted
        return StepsEvidence(
            both, self.first, len(self.acted.y), self.basis, soft=self.acted.soft, edge=self.acted.edge
        )

    def by_region(self, values: Tensor) -> Tensor:
        """(region, ...) sums of values of rows (rows, ...)."""
        out = values.new_zeros(self.acted.regions, *values.shape[1:])
        return out.index_add(0, self.region, values)

    def counts(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """(region, latent) rows that are acted on, and that are not, by probabilities of rows (rows, latent)."""
        return self.by_region(share), self.by_region(1 - share)

    def log_odds(self, share: Tensor) -> Tensor:
        """(region, latent) expected log odds of being acted on, given probabilities of rows (rows, latent)."""
        yes, no = self.counts(share)
        rate = most_probable_rates(yes, no)
        return torch.digamma(yes + rate) - torch.digamma(no + 1 - rate)

    def densities(self, evidence: StepsEvidence, found: StepsFound) -> Tensor:
        """(rows, latent, mechanism) expected log-densities over weights, of the likeliest parents and slabs."""
        z = self.y @ found.unmixing.mT
        choice = evidence.choices(found.unmixing, found.log_width).argmax(-1)
        out = []
        for k, one in enumerate(choice.tolist()):
            for mechanism in range(2):
                size = deviations(evidence, one, mechanism)
                log_scale = found.log_width[k] if mechanism else 0 * found.log_width[k]
                use = size > 0
                own = Moments(*(value[k] for value in evidence.own[mechanism]))
                scaled = own.gram[use][:, use] * size[use, None] * size[use]
                tril = torch.linalg.cholesky(scaled + torch.eye(len(scaled), dtype=scaled.dtype))
                root = torch.linalg.solve_triangular(tril, torch.diag(size[use]), upper=False)  # (own basis, basis)
                row = found.unmixing[k] / log_scale.exp()
                mean = root.mT @ (root @ (own.cross[use] @ row))
                phi = self.phi[:, use]
                left = z[:, k] / log_scale.exp() - phi @ mean
                out.append(-0.5 * (left.square() + (phi @ root.mT).square().sum(1)) - log_scale)
        return torch.stack(out, -1).unflatten(-1, (-1, 2))


def most_probable_rates(yes: Tensor, no: Tensor) -> Tensor:
    """(latent,)"""
    grid, log = rates(yes, no)
    return grid[log.argmax(0)]


def deviations(evidence: StepsEvidence, choice: int, mechanism: int) -> Tensor:
    """(basis,) of weights, by the number of a set of parents and a slab."""
    parents = target_steps.members(evidence.latents)[choice // len(SLABS)]
    slab = torch.tensor(SLABS[choice % len(SLABS)], dtype=torch.double)
    out = target_steps.sizes(target_steps.inside(parents), slab)
    if mechanism and evidence.targeted.square.shape[1] == 1:
        out[1:] = 0.0
    return out


def best(acted: Acted, generator: torch.Generator) -> Fitted:
    """The most probable of those from all starts."""
    tried = [climbed(acted, start, FIRST) for start in starts(acted, generator)]
    most = max(tried, key=lambda one: float(one.bound))
    return _named(climbed(acted, most.found.unmixing, TURNS, most.share))


class Fitted(NamedTuple):
    """share (rows that follow, latent): probabilities that latents are acted on; bound (): of the log evidence."""

    found: StepsFound
    rows: Rows
    evidence: StepsEvidence
    share: Tensor
    bound: Tensor


def climbed(acted: Acted, start: Tensor, turns: int, share: Tensor | None = None) -> Fitted:
    """From an unmixing (latent, y), its rows in units of innovations, and from probabilities of rows that follow
    (rows, latent), where there are some."""
    zero = start.new_zeros(len(start))
    found = StepsFound(start, zero, zero + SPREAD[0], zero.sum())
    rows = Rows(acted, Basis.of(start, acted.y))
    coarse = COARSE if share is None else 0
    share = begun(rows, start) if share is None else share
    evidence, before = rows.given(share), -math.inf
    found = improved(evidence, found)
    for turn in range(coarse + turns):
        if turn <= coarse and turn % REBASE == 0:
            rows = Rows(acted, Basis.of(found.unmixing, acted.y))
            evidence = rows.given(share)
        log = rows.densities(evidence, found)
        ratio = log[..., 1] - log[..., 0]
        share = _of_region(rows, ratio) if turn < coarse else (ratio + rows.log_odds(share)[rows.region]).sigmoid()
        evidence = rows.given(share)
        found = improved(evidence, found)
        bound = found.log + _of_shares(rows, share)
        if turn > coarse and bound - before < STAYS * len(share):
            break
        before = bound
    return Fitted(found, rows, evidence, share, bound)


def _named(fit: Fitted) -> Fitted:
    """With functions of its own latents; of two mechanisms that are alike a priori the second has fewer rows."""
    found, acted = fit.found, fit.rows.acted
    swap = (fit.share.mean(0) > 0.5) & torch.tensor(acted.soft)
    unit = torch.where(swap, found.log_width, 0.0)
    width = torch.where(swap, -found.log_width, found.log_width)
    unmixing = found.unmixing * (-unit).exp()[:, None]
    share, rows = torch.where(swap, 1 - fit.share, fit.share), Rows(acted, Basis.of(unmixing, acted.y))
    return Fitted(
        StepsFound(unmixing, width, found.log_spread - unit, found.log), rows, rows.given(share), share, fit.bound
    )


def improved(evidence: StepsEvidence, found: StepsFound) -> StepsFound:
    """A more probable unmixing, widths and spreads: given probabilities of parents and slabs each row of the unmixing
    in closed form, the others as they are (iterative projection: Ono 2011)."""
    unmixing, log_width, log_spread = (part.clone() for part in found[:3])
    count, begins, rows = evidence.own[1].count, evidence.first.new_tensor(float(evidence.begins)), evidence.rows
    eye = torch.eye(len(unmixing), dtype=unmixing.dtype)
    for _ in range(SWEEPS):
        share = evidence.choices(unmixing, log_width).softmax(-1)
        natural, targeted = (
            torch.einsum("kc,kcab->kab", share, part.square) for part in (evidence.natural, evidence.targeted)
        )
        log_width = log_scales(quadratic(unmixing, targeted), count, WIDTH, log_width)
        log_spread = log_scales(quadratic(unmixing, evidence.first), begins, SPREAD, log_spread)
        square = natural + targeted * (-2 * log_width).exp()[:, None, None]
        square = square + evidence.first * (-2 * log_spread).exp()[:, None, None]
        for k in range(len(unmixing)):
            row = torch.linalg.solve(unmixing @ square[k], eye[k])
            unmixing[k] = row * (rows / (row @ square[k] @ row)).sqrt()
    return StepsFound(unmixing, log_width, log_spread, evidence(unmixing, log_width, log_spread))


def log_scales(square: Tensor, count: Tensor, prior: tuple[float, float], start: Tensor) -> Tensor:
    """The most probable logarithms of scales, of `count` values of these sums of squares, by Newton's method."""
    x = start
    for _ in range(NEWTON):
        curve = 2 * square * (-2 * x).exp() + prior[1] ** -2
        x = x + ((square * (-2 * x).exp() - count - (x - prior[0]) / prior[1] ** 2) / curve).clamp(-1, 1)
    return x


def _of_region(rows: Rows, ratio: Tensor) -> Tensor:
    """(rows, latent) probabilities, one mechanism having all rows of a region."""
    each = rows.by_region(ratio).sigmoid()[rows.region]
    return (1 - SURE) + (2 * SURE - 1) * each


def _of_shares(rows: Rows, share: Tensor) -> Tensor:
    """() what the bound has beside the log-posterior given `share`: its prior and its entropy."""
    yes, no = rows.counts(share)
    prior = log_counts(yes, no, most_probable_rates(yes, no))
    return prior.sum() - torch.special.xlogy(share, share).sum() - torch.special.xlogy(1 - share, 1 - share).sum()


def begun(rows: Rows, unmixing: Tensor) -> Tensor:
    """(rows, latent) probabilities to start from: of each latent regions fall into two kinds, by regressions."""
    z = rows.y @ unmixing.mT
    own = rows.basis.unmixing
    one = torch.cat([torch.ones_like(z[:, :1]), rows.phi[:, 1::SINGLE][:, : len(own)]], 1)
    count = rows.by_region(torch.ones_like(z[:, 0]))
    gram = rows.by_region(one[:, :, None] * one[:, None])
    share = []
    for k in range(len(own)):
        cross, square = rows.by_region(one * z[:, k, None]), rows.by_region(z[:, k].square())
        share.append(two_kinds(gram, cross, square, count, rows.acted.soft))
    each = torch.stack(share, 1)[rows.region]
    return (1 - SURE) + (2 * SURE - 1) * each
