"""Unmixing and mechanisms of latents on which actions act, unseen, in some steps, and draws of their posterior.

Were it known of each step on which latents its action acts, all would be as in `constructions.target_steps`. Here
`climbed` takes turns: probabilities that it acts on a latent in a step, given the two mechanisms (variational
expectation-maximisation, which has a lower bound of the evidence), and Newton's method on unmixing and widths, parents
and weights summed out, given these; at first all rows of a region of actions are of one mechanism. It starts from an
unmixing at random and two closed forms (`starts`). In region g of actions, with r_gk its probability to act on k,

    E[y_t | y_t-1, g] = A diag(1 - r_g) m(y_t-1) + ..,    cov(y_t | y_t-1, g) = A D_g A',  D_g diagonal,

so coefficients of y_t-1, less their mean over regions, are a sum of products of three: of columns of the mixing A, of
how r_g varies and of how mechanisms differ, which alternating least squares finds (`_by_means`); and one matrix
diagonalises all covariances.

Draws are by Gibbs sampling, exact but that functions of latents before stay those of the maximum: a row v of the
unmixing V has, given all others, the density |det V|^rows exp(-v' S v / 2), which along one direction is that of a chi
and normal along others (Waggoner & Zha 2003, A Gibbs sampler for structural vector autoregressions).

Longer than other files because the bound of the evidence and the sampler go over the same sums of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.directions import whitening
from pyrocrl.constructions.sources import jointly_diagonal
from pyrocrl.constructions.target_steps import SPREAD, WIDTH, Evidence, Found
from pyrocrl.exact import target_steps
from pyrocrl.exact.basis_regression import SINGLE
from pyrocrl.exact.interactions import LEAST, RATES, log_counts, rates
from pyrocrl.exact.regression import quadratic
from pyrocrl.exact.target_steps import SLABS, Basis, Moments

COARSE, FIRST, REBASE = 12, 3, 2  # rounds in which regions are of one mechanism, and of rows, from each start; from
# which to which functions of latents before are anew
SWEEPS = 5  # of rows of the unmixing in a round
TURNS, STAYS = 40, 1e-4  # rounds from the best one, until a round gains less nats a row
SURE = 0.95  # probability of a region's mechanism, where it is of one
ALTERNATIONS, TRIES = 60, 4  # of least squares, and starts of these
SIZE = 3.0  # deviation a priori of the unmixing's entries
BURN, SKIP = 30, 5  # sweeps before those that are kept; sweeps from one draw of parents to the next
TINY = 1e-9  # least probability of being acted on, or not
GRID = 200  # points of a logarithm


@dataclass(frozen=True)
class Acted:
    """Rows in the order of time: y (rows, y) white, since (rows,) how many are right before each, region (rows,) of the
    `regions` of actions; soft: whether latents that are acted on keep parents, with weights of their own; edge: a
    parent's probability a priori."""

    y: Tensor
    since: Tensor
    region: Tensor
    regions: int
    soft: bool
    edge: float


class Rows:
    """The same of rows that follow others, with functions of the latents before."""

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

    def given(self, share: Tensor) -> Evidence:
        """The log-posterior given probabilities (rows, latent) that latents are acted on."""
        targeted = self._moments(share)
        natural = Moments(*(a - b for a, b in zip(self.all, targeted, strict=True)))
        both = natural, targeted
        return Evidence(both, self.first, len(self.acted.y), self.basis, soft=self.acted.soft, edge=self.acted.edge)

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

    def densities(self, evidence: Evidence, found: Found) -> Tensor:
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


def deviations(evidence: Evidence, choice: int, mechanism: int) -> Tensor:
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

    found: Found
    rows: Rows
    evidence: Evidence
    share: Tensor
    bound: Tensor


def climbed(acted: Acted, start: Tensor, turns: int, share: Tensor | None = None) -> Fitted:
    """From an unmixing (latent, y), its rows in units of innovations, and from probabilities of rows that follow
    (rows, latent), where there are some."""
    zero = start.new_zeros(len(start))
    found = Found(start, zero, zero + SPREAD[0], zero.sum())
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
    return Fitted(Found(unmixing, width, found.log_spread - unit, found.log), rows, rows.given(share), share, fit.bound)


def improved(evidence: Evidence, found: Found) -> Found:
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
        log_width = _log_scales(quadratic(unmixing, targeted), count, WIDTH, log_width)
        log_spread = _log_scales(quadratic(unmixing, evidence.first), begins, SPREAD, log_spread)
        square = natural + targeted * (-2 * log_width).exp()[:, None, None]
        square = square + evidence.first * (-2 * log_spread).exp()[:, None, None]
        for k in range(len(unmixing)):
            row = torch.linalg.solve(unmixing @ square[k], eye[k])
            unmixing[k] = row * (rows / (row @ square[k] @ row)).sqrt()
    return Found(unmixing, log_width, log_spread, evidence(unmixing, log_width, log_spread))


def _log_scales(square: Tensor, count: Tensor, prior: tuple[float, float], start: Tensor) -> Tensor:
    """The most probable logarithms of scales, of `count` values of these sums of squares, by Newton's method."""
    x = start
    for _ in range(20):
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
        share.append(_two_kinds(gram, cross, square, count, rows.acted.soft))
    each = torch.stack(share, 1)[rows.region]
    return (1 - SURE) + (2 * SURE - 1) * each


def _two_kinds(gram: Tensor, cross: Tensor, square: Tensor, count: Tensor, soft: bool) -> Tensor:
    """(region,) probabilities of the second of two regressions, of a column for all of a region's rows."""
    size = gram.shape[-1]
    eye = torch.eye(size, dtype=gram.dtype)

    def fit(share: Tensor, constant: bool) -> Tensor:
        """(region,) log-densities of a regression on all that has `share` of each region."""
        g, c, n = (torch.tensordot(share, part, 1) for part in (gram, cross, count))
        use = 1 if constant else size
        slope = torch.zeros_like(c)
        slope[:use] = torch.linalg.solve(g[:use, :use] + eye[:use, :use], c[:use])
        left = square - 2 * cross @ slope + torch.einsum("gab,a,b->g", gram, slope, slope)
        variance = ((share * left).sum() / n.clamp_min(1e-9)).clamp_min(1e-9)
        return -0.5 * (left / variance + count * variance.log())

    pooled = torch.linalg.solve(gram.sum(0) + eye, cross.sum(0))
    each = torch.linalg.solve(gram + len(gram) * eye, (cross - (gram @ pooled))[..., None])[..., 0]  # (region, column)
    weight = count.sqrt()[:, None] * each * gram.sum(0).diagonal().sqrt()
    score = torch.linalg.svd(weight - weight.mean(0))[0][:, 0]
    best, most = score, -math.inf
    for sign in (1, -1):
        share = (sign * score > (sign * score).median()).to(gram)
        for _ in range(15):
            natural, acted_on = fit(1 - share, False), fit(share, not soft)
            share = (acted_on - natural).sigmoid()
        value = float(torch.logaddexp(natural, acted_on).sum())
        if value > most:
            best, most = share, value
    return 1 - best if soft and (best * count).sum() > count.sum() / 2 else best


def starts(acted: Acted, generator: torch.Generator) -> list[Tensor]:
    """Unmixings (latent, y) by both closed forms, and a random one; rows in units of innovations."""
    follow = (acted.since > 0).nonzero()[:, 0]
    y, before, region = acted.y[follow], acted.y[follow - 1], acted.region[follow]
    d = y.shape[1]
    one = torch.cat([torch.ones_like(y[:, :1]), before], 1)
    pooled = torch.linalg.lstsq(one, y).solution
    left = y - one @ pooled
    white = whitening(left.mT @ left / len(left))
    e = left @ white.mT
    slopes, covariances, counts = [], [], []
    root = torch.linalg.cholesky(one.mT @ one / len(one))
    for g in range(acted.regions):
        at = region == g
        if (n := int(at.sum())) > 2:
            scaled = one[at] @ torch.linalg.inv(root).mT
            slope = torch.linalg.solve(scaled.mT @ scaled + torch.eye(d + 1, dtype=y.dtype), scaled.mT @ e[at])
            own = e[at] - scaled @ slope
            slopes.append(slope.mT)
            covariances.append(own.mT @ own / max(n - d - 1, 1) if n > 2 * d else torch.eye(d, dtype=y.dtype))
            counts.append(float(n))
    weight = y.new_tensor(counts)
    out = [jointly_diagonal(torch.stack(covariances) * weight.sqrt()[:, None, None]).mT]
    mean = _by_means(torch.stack(slopes), weight, generator)
    out += [mean] if mean is not None else []
    out.append(torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=y.dtype))[0])
    return [v / (e @ v.mT).std(0)[:, None] @ white for v in out]


def _by_means(slope: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor | None:
    """Unmixing (latent, e) of which slopes (region, e, number), of weights (region,), are sums of products of three, or
    None where columns that are found do not span the latents."""
    share = weight / weight.sum()
    t = (slope - torch.einsum("g,gip->ip", share, slope)) * share.sqrt()[:, None, None]
    d = t.shape[1]
    eye = 1e-6 * torch.eye(d, dtype=t.dtype)
    best, least = None, math.inf
    for _ in range(TRIES):
        parts = [torch.randn(size, d, generator=generator, dtype=t.dtype) for size in t.shape]
        for _ in range(ALTERNATIONS):
            for mode, sums in enumerate(("gip,ik,pk->gk", "gip,gk,pk->ik", "gip,gk,ik->pk")):
                a, b = (parts[i] for i in range(3) if i != mode)
                gram = (a.mT @ a) * (b.mT @ b)
                parts[mode] = torch.linalg.solve(gram + eye * gram.trace(), torch.einsum(sums, t, a, b).mT).mT
                parts[mode] = parts[mode] if mode == 2 else parts[mode] / parts[mode].norm(dim=0).clamp_min(1e-12)
        error = float((t - torch.einsum("gk,ik,pk->gip", *parts)).square().sum())
        if error < least:
            best, least = parts[1], error
    if best is None or torch.linalg.svdvals(best / best.norm(dim=0))[-1] < 1e-2:
        return None
    return torch.linalg.inv(best)


class Draws(NamedTuple):
    """Draws of the posterior, (draw, ...) each: unmixing (latent, y), width, spread (latent,), graph (parent, child),
    slab (latent,), weight (mechanism, latent, basis), rate (latent,), chance (region, latent)."""

    unmixing: Tensor
    width: Tensor
    spread: Tensor
    graph: Tensor
    slab: Tensor
    weight: Tensor
    rate: Tensor
    chance: Tensor


def draws(fit: Fitted, count: int, generator: torch.Generator) -> Draws:
    """By Gibbs sampling from the maximum on."""
    walk = _Walk(fit, generator)
    kept = []
    for sweep in range(BURN + count):
        walk.sweep(sweep % SKIP == 0)
        if sweep >= BURN:
            kept.append(walk.now())
    return Draws(*(torch.stack(parts) for parts in zip(*kept, strict=True)))


def row_drawn(square: Tensor, unmixing: Tensor, k: int, rows: int, generator: torch.Generator) -> Tensor:
    """Row k of an unmixing V (latent, y), given all others, from |det V|^rows exp(-v' square v / 2), on the side of the
    other rows' span on which it is."""
    tril = torch.linalg.cholesky(square)
    along = torch.linalg.inv(unmixing)[:, k]  # det V is in proportion to along' v
    e = torch.linalg.solve_triangular(tril, along[:, None], upper=False)[:, 0]
    e = e / e.norm()
    side = torch.sign(e @ (tril.mT @ unmixing[k]))
    freedom = torch.full((1,), (rows + 1) / 2, dtype=square.dtype)
    chi = (2 * torch._standard_gamma(freedom, generator=generator)).sqrt()
    u = torch.randn(len(e), generator=generator, dtype=square.dtype)
    u = u + (side * chi - e @ u) * e
    return torch.linalg.solve_triangular(tril.mT, u[:, None], upper=True)[:, 0]


class _Walk:
    """A chain of Gibbs sampling: choices of parents and slabs, rows of the unmixing, widths and spreads with weights
    summed out, then weights, whether latents are acted on, and rates and probabilities of it."""

    def __init__(self, fit: Fitted, generator: torch.Generator) -> None:
        self.rows, self.generator = fit.rows, generator
        self.unmixing, self.log_width, self.log_spread = (part.clone() for part in fit.found[:3])
        self.choice = fit.evidence.choices(self.unmixing, self.log_width).argmax(-1)
        self.evidence = fit.evidence
        self.acts = (self._uniform(*fit.share.shape) < fit.share).to(fit.share)
        self.rate, self.chance = self._chances()
        self.weight = torch.zeros(2, *fit.evidence.own[0].gram.shape[:2], dtype=fit.share.dtype)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.double)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.double)

    def _chances(self) -> tuple[Tensor, Tensor]:
        """(latent,) rates and (region, latent) probabilities of being acted on."""
        yes, no = self.rows.counts(self.acts)
        grid, log = rates(yes, no)
        at = (self._uniform(1, yes.shape[1]) > log.softmax(0).cumsum(0)).sum(0).clamp_max(RATES - 1)
        rate = grid[at] + (1 - 2 * LEAST) / RATES * (self._uniform(yes.shape[1]) - 0.5)
        gamma = [torch._standard_gamma(part, generator=self.generator) for part in (yes + rate, no + 1 - rate)]
        chance = gamma[0] / (gamma[0] + gamma[1]).clamp_min(1e-300)
        return rate, chance.clamp(TINY, 1 - TINY)

    def sweep(self, choose: bool) -> None:
        if choose:
            self.evidence = self.rows.given(self.acts)
            logits = self.evidence.choices(self.unmixing, self.log_width)
            gumbel = -(-self._uniform(*logits.shape).clamp_min(1e-300).log()).log()
            self.choice = (logits + gumbel).argmax(-1)
        ratio = torch.stack([self._latent(k, int(choice)) for k, choice in enumerate(self.choice)], 1)
        odds = ratio + self.chance.logit()[self.rows.region]
        self.acts = (self._uniform(*odds.shape) < odds.sigmoid()).to(odds)
        self.rate, self.chance = self._chances()

    def _latent(self, k: int, choice: int) -> Tensor:
        """Its row, width, spread and weights anew; (rows,) log-densities acted on less those not."""
        rows, acts = self.rows, self.acts[:, k] > 0.5
        own, eye = [], torch.eye(len(self.unmixing), dtype=torch.double)
        for mechanism, at in enumerate((~acts, acts)):
            size = deviations(self.evidence, choice, mechanism)
            use = size > 0
            phi, y = rows.phi[at][:, use] * size[use], rows.y[at]
            tril = torch.linalg.cholesky(phi.mT @ phi + torch.eye(int(use.sum()), dtype=torch.double))
            part = torch.linalg.solve_triangular(tril, phi.mT @ y, upper=False)
            own.append((size, use, tril, part, y.mT @ y - part.mT @ part))
        width, spread = self.log_width[k], self.log_spread[k]
        square = own[0][-1] + own[1][-1] * (-2 * width).exp() + rows.first_square * (-2 * spread).exp() + eye / SIZE**2
        v = row_drawn(square, self.unmixing, k, len(rows.acted.y), self.generator)
        self.unmixing[k] = v
        self.log_width[k] = self._log_scale(v @ own[1][-1] @ v, int(acts.sum()), WIDTH, width)
        self.log_spread[k] = self._log_scale(v @ rows.first_square @ v, len(rows.first), SPREAD, spread)
        z, logs = rows.y @ v, []
        for mechanism, (size, use, tril, part, _) in enumerate(own):
            log_scale = self.log_width[k] if mechanism else 0 * width
            weight, noise = self._normal(len(size)), self._normal(len(tril))
            mean = part @ (v / log_scale.exp()) + noise
            weight[use] = torch.linalg.solve_triangular(tril.mT, mean[:, None], upper=True)[:, 0]
            self.weight[mechanism, k] = weight
            left = z / log_scale.exp() - rows.phi[:, use] @ (size * weight)[use]
            logs.append(-0.5 * left.square() - log_scale)
        return logs[1] - logs[0]

    def _log_scale(self, square: Tensor, count: int, prior: tuple[float, float], now: Tensor) -> Tensor:
        """A logarithm of a scale, of `count` values of this sum of squares, on a grid about the maximum."""
        x = _log_scales(square, square.new_tensor(float(count)), prior, now)
        sd = (2 * square * (-2 * x).exp() + prior[1] ** -2).rsqrt()
        grid = x + sd * torch.linspace(-6, 6, GRID, dtype=x.dtype)
        log = -count * grid - 0.5 * square * (-2 * grid).exp() - 0.5 * ((grid - prior[0]) / prior[1]).square()
        step = sd * 12 / (GRID - 1)
        at = int((self._uniform(1) > log.softmax(0).cumsum(0)).sum().clamp_max(GRID - 1))
        return grid[at] + step * (self._uniform(1)[0] - 0.5)

    def now(self) -> tuple[Tensor, ...]:
        slabs = len(SLABS)
        graph = target_steps.members(len(self.unmixing))[self.choice // slabs].mT
        parts = (self.unmixing, self.log_width.exp(), self.log_spread.exp(), graph, self.choice % slabs)
        return tuple(part.clone() for part in (*parts, self.weight, self.rate, self.chance))
