"""Linear subspaces in which latents lie, by principal components: first coordinates of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.directions import whitening
from pyrocrl.errors import reject
from pyrocrl.parts import escapees

ROUNDING = 1e-14  # eigenvalues of a covariance below this share of the largest are 0
FLOOR = 1e-12  # least residual variance, as a share of the variance: data may have exactly rank `latents`


class Principal(NamedTuple):
    """project (latent, feature) and lift (feature, latent) of white coordinates y = project x of the principal
    subspace; log_jacobian (), log |dy / dx| within it; axes (feature, latent), orthonormal; value (feature,), all
    eigenvalues, ascending."""

    project: Tensor
    lift: Tensor
    log_jacobian: Tensor
    axes: Tensor
    value: Tensor


def principal(cov: Tensor, natural: Callable[[Tensor], Tensor], latents: int) -> Principal:
    """The principal subspace of x by its covariance (feature, feature), white over the observational rows.

    natural: a matrix (latent, feature) -> the covariance of matrix x over the observational rows. Raises InputError for
    more latents than the rank of x over them.
    """
    value, vector = torch.linalg.eigh(cov)
    axes = vector[:, -latents:]  # (feature, latent)
    observational = natural(axes.mT)
    spread = torch.linalg.eigvalsh(observational)
    if spread[0] <= 1e-10 * spread[-1]:
        rank = int((spread > 1e-10 * spread[-1]).sum())
        reject("latents", latents, f"at most {rank}, the rank of x over the observational rows")
    white = whitening(observational)
    log_jacobian = torch.linalg.slogdet(white).logabsdet
    return Principal(white @ axes.mT, axes @ torch.linalg.inv(white), log_jacobian, axes, value)


class Frame(NamedTuple):
    """x = lift y + offset + noise of deviation tau () off the principal subspace; see `Principal`."""

    project: Tensor
    lift: Tensor
    log_jacobian: Tensor
    offset: Tensor
    tau: Tensor


def frame(x: Tensor, observational: Tensor, latents: int, floor: float) -> Frame:
    """The principal subspace of rows x (rows, feature); observational: (rows,) bool, the rows about whose mean y is
    white; floor: the least variance off the subspace, as a share of the largest. Where there is nothing off it, tau is
    1, which then means nothing."""
    natural = x[observational]
    found = principal(torch.cov(x.mT), lambda matrix: torch.cov((natural @ matrix.mT).mT), latents)
    free = found.value[: x.shape[1] - latents].clamp_min(0).mean() if latents < x.shape[1] else found.value.new_ones(())
    tau = torch.maximum(free, floor * found.value[-1]).sqrt()
    return Frame(found.project, found.lift, found.log_jacobian, natural.mean(0), tau)


class Outside(NamedTuple):
    """Rows off the principal subspace: offset (feature,), their mean; tau (), their deviation; residual (), their
    log-likelihood."""

    offset: Tensor
    tau: Tensor
    residual: Tensor


def outside(found: Principal, total: Tensor, mean: Tensor) -> Outside:
    """What the `total` rows of x, with this mean (feature,), are off their principal subspace: white noise."""
    value, latents = found.value, found.axes.shape[1]
    free = len(value) - latents
    tau2 = (value[:-latents].sum() / free).clamp_min(FLOOR * value[-1])
    apart = torch.where(value > ROUNDING * value[-1], value, 0.0)[:-latents]  # 0 where x has exactly that rank
    misfit = total * apart.sum() / tau2
    residual = -0.5 * (misfit + total * free * torch.log(2 * torch.pi * tau2))
    return Outside(mean - found.axes @ (found.axes.mT @ mean), tau2.sqrt(), residual)


def signal_components(x: Tensor, least: int) -> Tensor:
    """(feature, feature) projection of x (rows, feature), of unit variances, on principal components that stand out of
    noise, at least `least` of them, each scaled to variance 1.

    Those above the edge (1 + sqrt(features / rows))^2 of white noise (Marchenko & Pastur 1967): a network would learn
    the rest by heart.
    """
    value, vector = torch.linalg.eigh(torch.cov(x.mT.double()))
    keep = value > (1.0 + (x.shape[1] / len(x)) ** 0.5) ** 2
    keep[-least:] = True
    scale = torch.where(keep, value.clamp_min(1e-6).rsqrt(), torch.zeros_like(value))
    return (vector * scale @ vector.mT).to(x)


def escaped(
    x: Tensor, env: Tensor, observational: Tensor, latents: int, prior: escapees.Prior, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """((rows,) environments, the observational one for a draw of the rows that escaped; (env,) their share), as the
    leading principal components of x (rows, feature) tell. observational: (env,) bool."""
    vector = torch.linalg.eigh(torch.cov(x.mT.double()))[1][:, -latents:]
    found = escapees.changed_moments(x.double() @ vector, env, observational, prior)
    uniform = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
    return torch.where(uniform < found.escaped, observational.nonzero()[0], env), found.share
