"""The law of masks in which every latent has a pure child: a feature that depends on it alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


def most_latents(features: int, latents: int) -> int:
    """How many latents may be in use, of those that are offered: each has a pure child and another one."""
    return min(latents, features // 2)


class OnePure(TorchDistribution):
    """(feature, latent) masks in which each latent in use has a pure child and another child.

    How many are in use is uniform from 0 to `most_latents`, which of the columns and which features are their pure
    children is as well; of the other features one, each alike, is a child of the latent, and all others are with the
    probability `density`, (). Further pure children come about by chance: the density of a mask sums over which of them
    was the first (`exact.pure_masks.log_prior` is this with the density summed out).
    """

    arg_constraints = {"density": constraints.unit_interval}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, density: Tensor, features: int, latents: int, validate_args: bool | None = None) -> None:
        self.density = density.clamp(1e-12, 1 - 1e-12)
        super().__init__(torch.Size(), torch.Size((features, latents)), validate_args=validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        like, (features, latents) = self.density, self.event_shape
        shape = torch.Size(sample_shape)

        def uniform(*size: int) -> Tensor:
            return torch.rand(*shape, *size, dtype=like.dtype, device=like.device)

        count = (uniform(1) * (most_latents(features, latents) + 1)).floor()  # (..., 1)
        place = uniform(latents).argsort(-1)  # of each column, in a random order
        used = place < count  # (..., latent)
        rank = uniform(features).argsort(-1)[..., None]  # (..., feature, 1): the first ones are pure children
        others = rank >= count[..., None]
        pure = (rank == place[..., None, :]) & used[..., None, :]
        score = uniform(features, latents).masked_fill(~others.expand(*shape, features, latents), -1.0)
        first = score == score.amax(-2, keepdim=True)  # another child of each latent
        more = uniform(features, latents) < self.density
        return (pure | (others & used[..., None, :] & (first | more))).to(like.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        features, latents = self.event_shape
        most = most_latents(features, latents)
        children = value.sum(-2)
        pure = (value * (value.sum(-1, keepdim=True) == 1)).sum(-2)
        used = children > 0
        count = used.sum(-1).to(value.dtype)
        others = (features - count)[..., None]
        allowed = ((~used | ((pure > 0) & (children > 1))).all(-1)) & (count <= most)
        log_on, log_off = self.density.log(), (-self.density).log1p()
        more = (children - 2).clamp_min(0)
        column = pure.clamp_min(1).log() + (more + 1).log() - others.log()
        column = column + more * log_on + (others - more - 1) * log_off
        which = math.lgamma(latents + 1) - torch.lgamma(count + 1) - torch.lgamma(latents - count + 1)
        start = torch.lgamma(features - count + 1) - math.lgamma(features + 1) - which - math.log(most + 1)
        total = start + torch.where(used, column, torch.zeros_like(column)).sum(-1)
        return torch.where(allowed, total, torch.full_like(total, -math.inf))
