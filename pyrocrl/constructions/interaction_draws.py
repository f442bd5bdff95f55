"""Draws of the posterior of latents on which actions act, unseen, by Gibbs sampling from the maximum on.

Exact but that functions of latents before stay those of the maximum. A row v of the unmixing V has, given all others,
the density |det V|^rows exp(-v' S v / 2), which along one direction is that of a chi and normal along others (Waggoner
& Zha 2003, A Gibbs sampler for structural vector autoregressions).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.interactions import Fitted, deviations, log_scales
from pyrocrl.constructions.target_steps import SPREAD, WIDTH
from pyrocrl.exact import target_steps
from pyrocrl.exact.interactions import LEAST, RATES, rates
from pyrocrl.exact.target_steps import SLABS

SIZE = 3.0  # deviation a priori of the unmixing's entries
TINY = 1e-9  # least probability of being acted on, or not
BURN, SKIP = 30, 5  # sweeps before those that are kept; sweeps from one draw of parents to the next
APART = 4  # sweeps from one draw that is kept to the next: rows of the unmixing and what is acted on move slowly
GRID = 200  # points of a logarithm


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
    for sweep in range(BURN + APART * count):
        walk.sweep(sweep % SKIP == 0)
        if sweep >= BURN and (sweep - BURN) % APART == 0:
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
        x = log_scales(square, square.new_tensor(float(count)), prior, now)
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
