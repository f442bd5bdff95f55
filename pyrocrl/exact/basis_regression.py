"""Regression of latents on fixed functions of others: the evidence of sets of parents, with the latents' error.

Graphs are scored by regression on fixed functions f of single latents and of pairs of them (`basis_functions`). With
latents z = (1 + E) z^, E the error of the unmixing, and b_k(E) the least-squares coefficients of z_k on f(z),

    b_k | rows ~ N(b_k(0), V_k + J_k S J_k'),     V: their sandwich covariance,   J = db / dE,   S = cov(E),

so that the error of the latents is carried into the edges. S is what hard interventions leave open: in the environments
of k, z_k is independent of earlier latents, and in those of a later l, z_l is of z_k. A set of parents leaves the other
functions' coefficients at zero; included ones have N(0, t^2) slabs, averaged over a grid of t (`Posterior`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.exact import orders

SINGLE, PAIRED = 5, 6  # functions of one latent, and of two
ANGLES = tuple((math.cos(t), math.sin(t)) for t in (0.4, 0.8, 1.2, -0.4, -0.8, -1.2))  # of ridges in pairs
RIDGE = 1e-6  # of regressions, a row
SLABS = (1.0, 0.1, 0.01, 0.001)  # prior variances of standardised coefficients
BANNED = -1e6  # log score of parents that the order forbids


def basis_functions(z: Tensor) -> Tensor:
    """(rows, latent) -> (rows, feature): 1, `SINGLE` functions of each latent, `PAIRED` of each pair; see `places`."""
    square = z.square()
    single = [z, (0.05 + square).sqrt(), (1.0 + square).sqrt(), (2.0 * z).tanh(), (-square).exp()]
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    i, j = torch.triu_indices(z.shape[-1], z.shape[-1], 1, device=z.device)
    a, b = z @ eye[:, i], z @ eye[:, j]  # products are faster to differentiate than indexing
    paired = [(0.1 + (u * a + v * b).square()).sqrt() for u, v in ANGLES]
    parts = [torch.ones_like(z[..., :1]), torch.stack(single, -1).flatten(-2), torch.stack(paired, -1).flatten(-2)]
    return torch.cat(parts, -1)


def places(latents: int, device: torch.device | str = "cpu") -> Tensor:
    """(feature, latent) bool: which latents a feature is a function of."""
    eye = torch.eye(latents, dtype=torch.bool, device=device)
    i, j = torch.triu_indices(latents, latents, 1, device=device)
    single, paired = eye.repeat_interleave(SINGLE, 0), (eye[i] | eye[j]).repeat_interleave(PAIRED, 0)
    return torch.cat([torch.zeros_like(eye[:1]), single, paired])


def allowed(parents: Tensor) -> Tensor:
    """(parent, child) in {0, 1} -> (child, feature) in {0, 1}: the features that are functions of parents alone."""
    member = places(parents.shape[-1], parents.device).to(parents.dtype)
    return (member @ (1 - parents) < 0.5).mT.to(parents.dtype)


def column(latent: Tensor) -> Tensor:
    """Which feature is the latent itself."""
    return 1 + SINGLE * latent


class Regression:
    """Least squares of every latent on features of others, from Gram matrices of each environment's rows.

    z: (rows, latent). count: (latent,) rows that leave a latent alone; mean, var: (env, latent). Differentiable.
    """

    def __init__(self, z: Tensor, env: Tensor, target: Tensor) -> None:
        latents = z.shape[1]
        f = basis_functions(z)
        rows = [f[env == e] for e in range(len(target))]
        self.own_count = torch.stack([torch.full_like(z[0, 0], len(part)) for part in rows]).clamp_min(1.0)
        gram = torch.stack([part.mT @ part for part in rows])  # (env, feature, feature)
        self.target, self.latents = target, latents
        self.gram = torch.einsum("ek,eij->kij", 1 - target, gram)  # (child, feature, feature)
        self.count = (1 - target).mT @ self.own_count
        self.node = column(torch.arange(latents, device=z.device))
        self.mean = gram[:, 0, self.node] / self.own_count[:, None]
        second = gram[:, self.node, self.node] / self.own_count[:, None]
        self.var = (second - self.mean.square()).clamp_min(1e-8)

    def solve(self, child: Tensor, use: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (..., feature), residual sums of squares (...) and regularised Gram matrices of children
        (...) on the features in `use` (..., feature); the Gram matrix is the identity elsewhere."""
        gram = self.gram[child]
        ridge = RIDGE * self.count[child][..., None] * use + (1 - use)
        inner = gram * use[..., :, None] * use[..., None, :] + torch.diag_embed(ridge)
        own = self.node[child]
        cross = gram.gather(-1, own[..., None, None].expand(*gram.shape[:-1], 1)).squeeze(-1)
        theta = torch.linalg.solve(inner, (cross * use)[..., None]).squeeze(-1)
        total = cross.gather(-1, own[..., None]).squeeze(-1)
        return theta, (total - (theta * cross * use).sum(-1)).clamp_min(1e-8), inner

    def fit(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """(coefficients (child, feature), residual sums of squares (child,)) given (parent, child)."""
        theta, rss, _ = self.solve(torch.arange(self.latents, device=parents.device), allowed(parents))
        return theta, rss

    def objective(self, parents: Tensor) -> Tensor:
        """Gaussian log-likelihood, at its maximum over coefficients and laws, up to a constant and log |det M|."""
        _, rss = self.fit(parents)
        natural = -0.5 * (self.count * (rss / self.count).log()).sum()
        return natural - 0.5 * (self.target * self.own_count[:, None] * self.var.log()).sum()


class Posterior(NamedTuple):
    """Coefficients (child, feature) and their covariances (child, feature, feature), in units of `scale` (child,) and
    of the features' deviations `sd` (child, feature)."""

    theta: Tensor
    cov: Tensor
    scale: Tensor
    sd: Tensor

    def scores(self, before: Tensor) -> Tensor:
        """(latent, 2**latent) log evidence of parent sets among the earlier latents, the others `BANNED`."""
        latents = len(self.theta)
        member = orders.members(latents, self.theta.device).to(self.theta)
        inside = places(latents, self.theta.device).to(self.theta)
        use = (inside @ (1 - member).mT < 0.5).mT.to(self.theta)
        use[:, 0] = 0.0
        full = allowed(before.to(self.theta))
        out = torch.full((latents, len(member)), BANNED, dtype=torch.float64, device=self.theta.device)
        slabs = torch.tensor(SLABS, dtype=self.theta.dtype, device=self.theta.device)
        for k in range(latents):
            at = torch.nonzero(full[k] > 0).flatten()[1:]  # without the constant
            sets = torch.nonzero(member @ (1 - before[:, k].to(member)) < 0.5).flatten()
            if not len(at):
                out[k, sets] = 0.0
                continue
            unit = self.sd[k, at] / self.scale[k]
            theta, cov = self.theta[k, at] * unit, self.cov[k][at][:, at] * unit[:, None] * unit
            prior = torch.diag_embed(use[sets][:, None, at] * slabs[:, None])  # (set, slab, feature, feature)
            law = torch.distributions.MultivariateNormal(torch.zeros_like(theta), cov + prior, validate_args=False)
            out[k, sets] = (law.log_prob(theta).logsumexp(-1) - math.log(len(SLABS))).double()
        return out
