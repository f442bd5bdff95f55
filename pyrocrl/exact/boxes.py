"""Latents of which some rows fill a box and others follow a mixture of normal laws, linearly mixed, with noise.

    z ~ U[-1, 1]^K of rows that fill, of others N(middle_c, S_c) for a component c
    x ~ N(center + B z, V)

V is D, the diagonal noise, but for what B can unmix: with G = B^T D^-1 B, noise of the unmixed u = G^-1 B^T D^-1 (x -
center) has the covariance G^-1 under D, of which V keeps the diagonal alone, soft^2. Then latents see noise one by one,
and z integrates out: the density of x is that of u, times what is orthogonal to B in units of noise. Of rows that fill,
u_k has the density [Phi((1 - u_k) / soft_k) - Phi((-1 - u_k) / soft_k)] / 2, a box with soft edges.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions.constraints as constraints
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.special import erfcx, ndtr, ndtri

from pyrocrl.dists import MultivariateNormal

LOG_TWO_PI = math.log(2 * math.pi)
FAR = 7.0  # deviations beyond the box from which a truncated tail is as good as exponential


class Unmixed(NamedTuple):
    """u (rows, latent); soft (latent,), its noise; rest (rows,), the log density of x given z less that of u given
    z."""

    u: Tensor
    soft: Tensor
    rest: Tensor


def unmixed(x: Tensor, loadings: Tensor, center: Tensor, variance: Tensor) -> Unmixed:
    """x: (rows, feature); loadings: (feature, latent); center, variance: (feature,)."""
    away = x - center
    scaled = loadings / variance[:, None]
    gram = loadings.mT @ scaled
    inverse = torch.linalg.inv(gram)
    seen = away @ scaled
    u = seen @ inverse
    off = (away.square() / variance).sum(-1) - (seen * u).sum(-1)
    volume = variance.log().sum() + torch.linalg.slogdet(gram)[1] + (len(center) - gram.shape[-1]) * LOG_TWO_PI
    return Unmixed(u, inverse.diagonal(dim1=-2, dim2=-1).sqrt(), -0.5 * (off + volume))


def noise_tril(loadings: Tensor, variance: Tensor) -> Tensor:
    """(feature, feature) Cholesky factor of V."""
    inverse = torch.linalg.inv(loadings.mT @ (loadings / variance[:, None]))
    kept = torch.diag_embed(inverse.diagonal(dim1=-2, dim2=-1))
    return torch.linalg.cholesky(torch.diag_embed(variance) + loadings @ (kept - inverse) @ loadings.mT)


def places_below(latents: int) -> Tensor:
    """(pair, latent, latent) a one for each place below the diagonal."""
    row, column = torch.tril_indices(latents, latents, -1)
    out = torch.zeros(len(row), latents, latents)
    out[torch.arange(len(row)), row, column] = 1.0
    return out


def tril_of(width: Tensor, lean: Tensor, below: Tensor) -> Tensor:
    """(component, latent, latent) Cholesky factors of S: `lean` (component, pair) below a diagonal of ones, rows by
    `width` (component, latent); below: `places_below`."""
    leaning = torch.einsum("cp,pkl->ckl", lean, below)
    return torch.diag_embed(width) + width[..., None] * leaning


def log_below(z: Tensor) -> Tensor:
    """log Phi(z), exact and with gradients far out; `torch.special.log_ndtr` cannot be vmapped."""
    size = z.abs() / math.sqrt(2)
    tail = erfcx(size)  # of erfc, in units of exp(-size^2)
    return torch.where(z < 0, (0.5 * tail).log() - size.square(), torch.log1p(-0.5 * tail * (-size.square()).exp()))


def log_filled(u: Tensor, soft: Tensor) -> Tensor:
    """(rows, latent) log density of u of rows that fill the box; soft: (latent,)."""
    size = u.abs()
    inner, outer = log_below((1 - size) / soft), log_below((-1 - size) / soft)
    return inner + torch.log1p(-(outer - inner).clamp_max(-1e-12).exp()) - math.log(2)


def log_joint(seen: Unmixed, fill: Tensor, weights: Tensor, middle: Tensor, tril: Tensor) -> Tensor:
    """(rows, 1 + component) log p(x, component), rows that fill first.

    fill: (); weights: (component,); middle: (component, latent); tril: (component, latent, latent).
    """
    cov = tril @ tril.mT + torch.diag_embed(seen.soft.square())
    of_bulk = MultivariateNormal(middle, scale_tril=torch.linalg.cholesky(cov)).log_prob(seen.u[:, None])
    filled = log_filled(seen.u, seen.soft).sum(-1, keepdim=True) + fill.log()
    return seen.rest[:, None] + torch.cat([filled, of_bulk + weights.log() + torch.log1p(-fill)], -1)


def component_law(fill: Tensor, weights: Tensor) -> Tensor:
    """(1 + component,) probabilities, of rows that fill first."""
    return torch.cat([fill[None], (1 - fill) * weights])


class BoxWhere(constraints.Constraint):
    """Vectors in [-1, 1]^K in rows that fill, any others elsewhere; fills: (rows,) booleans."""

    event_dim = 1

    def __init__(self, fills: Tensor) -> None:
        self.fills = fills
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return ~self.fills | (value.abs() <= 1).all(-1)


class BoxOrBulk(TorchDistribution):
    """z (rows, latent) given the rows' components, 0 for rows that fill: uniform on the box, or normal."""

    arg_constraints: dict = {}

    def __init__(self, component: Tensor, middle: Tensor, tril: Tensor) -> None:
        self.fills, which = component == 0, (component.long() - 1).clamp_min(0)
        self.bulk = MultivariateNormal(middle[which], scale_tril=tril[which])
        super().__init__(component.shape, middle.shape[-1:], validate_args=False)

    @property
    def support(self) -> BoxWhere:
        return BoxWhere(self.fills)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        bulk = self.bulk.sample(sample_shape)
        return torch.where(self.fills[:, None], 2 * torch.rand_like(bulk) - 1, bulk)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value.abs() <= 1).all(-1)
        box = torch.zeros_like(value[..., 0]).masked_fill(~inside, -math.inf) - value.shape[-1] * math.log(2)
        return torch.where(self.fills, box, self.bulk.log_prob(value))


class BoxOrBulkGiven(TorchDistribution):
    """z (rows, latent) given x and the rows' components: each latent normal about u and cut off at the box, or normal
    as the component and u have it."""

    arg_constraints: dict = {}

    def __init__(self, seen: Unmixed, component: Tensor, middle: Tensor, tril: Tensor) -> None:
        self.u, self.soft, self.fills = seen.u, seen.soft, component == 0
        which = (component.long() - 1).clamp_min(0)
        mean, root = bulk_given(seen, middle, tril)
        rows = torch.arange(len(which), device=which.device)
        self.bulk = MultivariateNormal(mean[rows, which], scale_tril=root[which])
        super().__init__(component.shape, seen.u.shape[-1:], validate_args=False)

    @property
    def support(self) -> BoxWhere:
        return BoxWhere(self.fills)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        bulk = self.bulk.sample(sample_shape)
        # as if u were positive: the nearer edge is at 1
        share, size = torch.rand_like(bulk), self.u.abs()
        high, low = (1 - size) / self.soft, (-1 - size) / self.soft
        below = ndtr(low) + share * (ndtr(high) - ndtr(low))
        near = size + self.soft * ndtri(below.clamp_min(1e-300))
        far = 1 + self.soft * share.log() / high.abs().clamp_min(1.0)
        z = torch.where(high < -FAR, far, near).clamp(-1, 1) * torch.where(self.u < 0, -1.0, 1.0)
        return torch.where(self.fills[:, None], z, bulk)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value.abs() <= 1).all(-1)
        part = -0.5 * ((value - self.u) / self.soft).square() - self.soft.log() - 0.5 * LOG_TWO_PI
        box = (part - log_filled(self.u, self.soft) - math.log(2)).sum(-1).masked_fill(~inside, -math.inf)
        return torch.where(self.fills, box, self.bulk.log_prob(value))


def bulk_given(seen: Unmixed, middle: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """Of z given x and a component: means (rows, component, latent), and roots (component, latent, latent) of its
    covariances."""
    noise = seen.soft.square()
    prior = torch.cholesky_inverse(tril)
    covariance = torch.linalg.inv(prior + torch.diag_embed(1 / noise))
    told = torch.einsum("ckl,cl->ck", prior, middle) + (seen.u / noise)[:, None]
    return torch.einsum("ckl,rcl->rck", covariance, told), torch.linalg.cholesky(covariance)


def mean_given(seen: Unmixed, log_share: Tensor, middle: Tensor, tril: Tensor) -> Tensor:
    """(rows, latent) mean of z given x; log_share: (rows, 1 + component) log probabilities of components given x."""
    high, low = (1 - seen.u) / seen.soft, (-1 - seen.u) / seen.soft
    log_mass = log_filled(seen.u, seen.soft) + math.log(2) + 0.5 * LOG_TWO_PI
    lean = (-0.5 * low.square() - log_mass).exp() - (-0.5 * high.square() - log_mass).exp()
    inside = (seen.u + seen.soft * lean).clamp(-1, 1)
    bulk, _ = bulk_given(seen, middle, tril)
    share = log_share.exp()
    return share[:, :1] * inside + torch.einsum("rc,rck->rk", share[:, 1:], bulk)
