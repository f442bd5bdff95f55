"""Latents whose mean an exogenous action moves linearly: the regressions that start chains of `extrapolation`.

    z = M a + v,  v ~ N(0, I);  x = f(z)

An auto-encoder gives coordinates c of the features' manifold (`fit_chart`); the map h of those to latents maximises the
likelihood log N(h(c); M a, I) + log det h'(c) (`fit_unmixing`); f and the widths of q(z | x) follow by regression.
Networks are trained where they stand. x: (rows, feature) and a: (rows, action), standardised; weight: (rows,).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocrl.constructions.optimise import minimise
from pyrocrl.exact.regression import least_squares
from pyrocrl.parts.nets import Residual

LEAST_DETERMINANT = 0.02  # of the map to latents: below it the likelihood is steep, so that maps do not fold


class Plan(NamedTuple):
    """rows: a step. short: steps of the first coordinates and of q's widths, in those of the other parts. keep: weight
    of the regression of actions on coordinates, beside the auto-encoder's. injective: of the squared error of
    coordinates mapped back from latents, for two may not share one."""

    rows: int = 512
    short: float = 0.25
    keep: float = 1.0
    injective: float = 1.0

    def fewer(self, steps: int) -> int:
        return max(1, int(self.short * steps))


PLAN = Plan()


def fit_chart(
    chart: Residual,
    decoder: Residual,
    x: Tensor,
    a: Tensor,
    weight: Tensor,
    steps: int,
    generator: torch.Generator,
    plan: Plan = PLAN,
) -> None:
    """Coordinates of x, with mean 0 and variance 1, from which x can be decoded, and a by a linear map.

    E[a | x] is nearly affine in the latents, M being of full rank: coordinates that keep it are easy to unmix. An
    auto-encoder's alone may be bent beyond what the likelihood's local steps undo.
    """
    rows = torch.arange(len(x))
    readout = nn.Linear(chart.linear.out_features, a.shape[1]).to(x)
    every = nn.ModuleList([chart, decoder, readout]).requires_grad_(True)

    def action_loss(pick: Tensor, _: float) -> Tensor:
        return (weight[pick, None] * (readout(chart(x[pick])) - a[pick]).square()).mean()

    def loss(pick: Tensor, progress: float) -> Tensor:
        error = (weight[pick, None] * (decoder(chart(x[pick])) - x[pick]).square()).mean()
        return error + plan.keep * action_loss(pick, progress)

    minimise(nn.ModuleList([chart, readout]), action_loss, rows, plan.fewer(steps), plan.rows, generator)
    _standardise(chart, chart(x))
    decoder.near(least_squares(chart(x), x).mT)
    minimise(every, loss, rows, steps, plan.rows, generator)
    chart.requires_grad_(False)
    _standardise(chart, chart(x))


def _standardise(chart: Residual, c: Tensor) -> None:
    """Let the coordinates, which are now c (rows, latent), have mean 0 and variance 1."""
    chart.followed_by(c.std(0).reciprocal().diag(), -c.mean(0) / c.std(0))


def fit_unmixing(
    unmix: Residual,
    effect: nn.Parameter,
    c: Tensor,
    a: Tensor,
    weight: Tensor,
    steps: int,
    generator: torch.Generator,
    plan: Plan = PLAN,
) -> None:
    """The map of coordinates c (rows, latent) to latents, and M, by maximum likelihood; then noise made white."""
    latents = c.shape[1]
    unmix.near(torch.eye(latents).to(c))
    effect.copy_(least_squares(a, c))
    hidden = unmix.net[0]
    assert isinstance(hidden, nn.Linear)
    back = Residual(latents, latents, hidden.out_features, layers=2).to(c)
    back.near(torch.eye(latents).to(c))
    jacobian = torch.func.vmap(torch.func.jacrev(unmix))

    def loss(pick: Tensor, _: float) -> Tensor:
        z = unmix(c[pick])
        density = log_positive(torch.linalg.det(jacobian(c[pick])))
        density = density - 0.5 * (z - a[pick] @ effect).square().sum(1)
        return (weight[pick] * (plan.injective * (back(z) - c[pick]).square().mean(1) - density)).mean()

    together = nn.ModuleList([unmix.requires_grad_(True), back])
    together.register_parameter("effect", effect)
    minimise(together, loss, torch.arange(len(c)), steps, plan.rows, generator)
    z = unmix.requires_grad_(False)(c)
    design = torch.cat([torch.ones_like(a[:, :1]), a], 1).double()
    found = least_squares(design, z.double())
    rest = z.double() - design @ found
    white = torch.linalg.inv(torch.linalg.cholesky(rest.mT @ rest / len(rest))).to(z)
    unmix.followed_by(white, -white @ found[0].to(z))
    effect.copy_(found[1:].to(z) @ white.mT)


def log_positive(determinant: Tensor) -> Tensor:
    """The logarithm, extended along its tangent below LEAST_DETERMINANT."""
    low = LEAST_DETERMINANT
    return torch.where(determinant > low, determinant.clamp_min(low).log(), math.log(low) + (determinant - low) / low)


def fit_decoder(
    decoder: Residual,
    z: Tensor,
    x: Tensor,
    weight: Tensor,
    steps: int,
    generator: torch.Generator,
    plan: Plan = PLAN,
) -> None:
    """f by weighted regression of x on latents z (rows, latent)."""

    def loss(pick: Tensor, _: float) -> Tensor:
        return (weight[pick, None] * (decoder(z[pick]) - x[pick]).square()).mean()

    decoder.near(least_squares(z, x).mT)
    minimise(decoder, loss, torch.arange(len(x)), steps, plan.rows, generator)


def slopes(decoder: nn.Module, z: Tensor) -> Tensor:
    """(rows, feature, latent) derivatives of f at latents z (rows, latent)."""
    jacobian = torch.func.vmap(torch.func.jacrev(decoder))
    return torch.cat([jacobian(part) for part in z.split(4096)])


def fit_deviation(
    network: Residual,
    floor: float,
    x: Tensor,
    spread: Tensor,
    steps: int,
    generator: torch.Generator,
    plan: Plan = PLAN,
) -> None:
    """A network whose softplus, plus `floor`, is about the deviation `spread` (rows, latent) at x."""

    def loss(pick: Tensor, _: float) -> Tensor:
        return ((softplus(network(x[pick])) + floor).log() - spread[pick].log()).square().mean()

    network.constant(float(spread.mean().expm1().log()))
    minimise(network, loss, torch.arange(len(x)), plan.fewer(steps), plan.rows, generator)
