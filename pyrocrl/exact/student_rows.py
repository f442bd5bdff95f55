"""Rows of Student's law: one scale a row, which all of its columns share.

    z_i ~ N(centre_e, scatter_e / scale_i),   scale_i ~ Gamma(freedom / 2, freedom / 2),   log freedom ~ N(FREEDOM)

Given their scales rows are normal, and sums of products that are weighted by the scales are all that equations between
columns ask of them. Here the scales are those of the law that is left free, without equations: their mean given the
row at the maximum, found by expectation-maximisation (Liu & Rubin 1995, "ML estimation of the t distribution using EM
and its extensions, ECM and ECME", with the steps of Kent, Tyler & Vardi 1994).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

FREEDOM = (3.0, 1.5)  # mean and deviation of the logarithm of the degrees of freedom
RANGE = (0.5, 1000.0)  # degrees that are looked at
STEPS, ENOUGH = 100, 1e-6  # of expectation-maximisation, and the largest change of a scale that is none


class StudentRows(NamedTuple):
    """freedom (); centre (env, d); root (env, d, d), lower, whose product with its transpose is the scatter: of one
    environment alone where all have the same."""

    freedom: Tensor
    centre: Tensor
    root: Tensor

    def apart(self, z: Tensor, env: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (rows, d) less their environment's centre, and their squared distances (rows,) from it."""
        away = z - self.centre[env]
        groups = torch.zeros_like(env) if len(self.root) == 1 else env
        order = groups.argsort(stable=True)
        square = torch.cat(
            [
                torch.linalg.solve_triangular(root, away[groups == g].mT, upper=False).square().sum(0)
                for g, root in enumerate(self.root)
            ]
        )
        return away, square[order.argsort()]

    def scales(self, z: Tensor, env: Tensor) -> Tensor:
        """(rows,) mean of each row's scale, given the row."""
        return (self.freedom + z.shape[1]) / (self.freedom + self.apart(z, env)[1])

    def moved(self, shift: Tensor, factor: Tensor) -> StudentRows:
        """The law of (z - shift) / factor, both (d,)."""
        return StudentRows(self.freedom, (self.centre - shift) / factor, self.root / factor[:, None])


def fitted(z: Tensor, env: Tensor, environments: int, alike: bool) -> StudentRows:
    """Of rows z (rows, d), environments env (rows,); alike: whether environments have one scatter. Of few rows it is
    drawn to that of all, which is drawn to a diagonal one."""
    (rows, d), scale, freedom = z.shape, torch.ones_like(z[:, 0]), RANGE[1]
    hot = torch.nn.functional.one_hot(env, environments).to(z)  # (rows, env)
    for _ in range(STEPS):
        weight = hot * scale[:, None]
        centre = weight.mT @ z / weight.sum(0)[:, None].clamp_min(1e-12)
        away = z - centre[env]
        whole = (away * scale[:, None]).mT @ away / scale.sum()
        whole = whole.lerp(whole.diagonal().diag(), d / (rows + d))
        if alike:
            scatter = whole[None]
        else:
            own = torch.stack([(away * w[:, None]).mT @ away for w in weight.mT])
            scatter = (own + (d + 1) * whole) / (weight.sum(0) + d + 1)[:, None, None]
        found = StudentRows(torch.tensor(freedom).to(z), centre, torch.linalg.cholesky(scatter))
        square = found.apart(z, env)[1]
        freedom = _freedom(square, d)
        before, scale = scale, (freedom + d) / (freedom + square)
        if float((scale - before).abs().max()) < ENOUGH:
            break
    return found._replace(freedom=torch.tensor(freedom).to(z))


def worth(freedom: Tensor, d: int) -> Tensor:
    """() part of what rows of d columns would tell of equations if their scales were known, that they tell: the Fisher
    information of Student's law over that of a normal one of its scatter (Lange, Little & Taylor 1989)."""
    return (freedom + d) / (freedom + d + 2.0)


def log_density(square: Tensor, d: int, freedom: Tensor) -> Tensor:
    """Log density of a row of d columns at this squared distance, its scatter the identity."""
    half = 0.5 * (freedom + d)
    constant = torch.lgamma(half) - torch.lgamma(0.5 * freedom) - 0.5 * d * (freedom * math.pi).log()
    return constant - half * (square / freedom).log1p()


def log_scales(scale: Tensor, d: int, freedom: Tensor) -> Tensor:
    """() log density of scales (rows,) and of the degrees of freedom, and what scales add to the density of normal rows
    of d columns, which count for `worth`, beside weighting them."""
    half, own = 0.5 * freedom, 0.5 * d * worth(freedom, d)
    law = half * half.log() - torch.lgamma(half) + (half - 1.0 + own) * scale.log() - half * scale
    return law.sum() + log_prior(freedom)


def log_prior(freedom: Tensor) -> Tensor:
    """Of the degrees of freedom."""
    mean, sd = FREEDOM
    return -0.5 * ((freedom.log() - mean) / sd).square() - freedom.log() - math.log(sd) - 0.5 * math.log(2 * math.pi)


def _freedom(square: Tensor, d: int) -> float:
    """The degrees of freedom of the most probable logarithm, given squared distances (rows,) of rows of d columns."""
    told, (mean, sd) = square.numpy(), FREEDOM

    def loss(log: float) -> float:
        nu = math.exp(log)
        constant = special.gammaln((nu + d) / 2) - special.gammaln(nu / 2) - d / 2 * log
        rows = len(told) * constant - (nu + d) / 2 * np.log1p(told / nu).sum()
        return float(0.5 * ((log - mean) / sd) ** 2 - rows)

    found = optimize.minimize_scalar(
        loss, bounds=tuple(map(math.log, RANGE)), method="bounded", options={"xatol": 1e-7}
    )
    return float(math.exp(found.x))
