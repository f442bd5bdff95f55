"""Mixings whose latents are functions of x, linear and any: their laws as the last line of a story."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.exact.linear_sem import log_abs_det


class LinearMixing(TorchDistribution):
    """x = lift M^-1 z + offset + r, r ~ N(0, tau^2) off the columns of the mixing: event (feature,).

    z (rows, latent) of M y with y = project (x - offset) is known where x is. So log_prob is that of r, plus the log
    volume log |det M| + log_jacobian: with the law of z it adds up to log p(x). unmixing: M (latent, latent); project
    (latent, feature), a left inverse of lift (feature, latent); offset (feature,); tau ().
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(
        self,
        z: Tensor,
        unmixing: Tensor,
        project: Tensor,
        lift: Tensor,
        offset: Tensor,
        tau: Tensor,
        log_jacobian: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.z, self.unmixing, self.project, self.lift = z, unmixing, project, lift
        self.offset, self.tau, self.log_jacobian = offset, tau, log_jacobian
        super().__init__(z.shape[:-1], offset.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearMixing:
        z = self.z.expand(*batch_shape, self.z.shape[-1])
        return LinearMixing(z, self.unmixing, self.project, self.lift, self.offset, self.tau, self.log_jacobian)

    @property
    def mean(self) -> Tensor:
        return torch.linalg.solve(self.unmixing, self.z.mT).mT @ self.lift.mT + self.offset

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = (*sample_shape, *self.shape())
            noise = self.tau * torch.randn(shape, dtype=self.z.dtype, device=self.z.device)
            return self.mean + noise - noise @ self.project.mT @ self.lift.mT

    def log_prob(self, value: Tensor) -> Tensor:
        y = (value - self.offset) @ self.project.mT
        apart = (value - self.offset - y @ self.lift.mT) / self.tau
        free = value.shape[-1] - self.z.shape[-1]
        volume = log_abs_det(self.unmixing) + self.log_jacobian + 0 * self.z.sum(-1)  # x depends on z: for diagrams
        return volume - 0.5 * apart.square().sum(-1) - free * (self.tau.log() + 0.5 * math.log(2 * math.pi))


class InvertibleMixing(TorchDistribution):
    """x = f(z), z (rows, latent) of M y(x): event (feature,), as many as latents.

    log_prob is the volume log |det M| + log |det dy / dx|: with the law of z it adds up to log p(x). Draws and the mean
    are `mix(z, M)`; `white(x)` is (y (rows, latent), log |det dy / dx| (rows,)).
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, z: Tensor, unmixing: Tensor, mix: Callable, white: Callable) -> None:
        self.z, self.unmixing, self.mix, self.white = z, unmixing, mix, white
        super().__init__(z.shape[:-1], z.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        out: Tensor = self.mix(self.z, self.unmixing)
        return out

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.mean.expand(*sample_shape, *self.shape())

    def log_prob(self, value: Tensor) -> Tensor:
        volume: Tensor = log_abs_det(self.unmixing) + self.white(value)[1]
        return volume + 0 * self.z.sum(-1)  # x depends on z: for diagrams
