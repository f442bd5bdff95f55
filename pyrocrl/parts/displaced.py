"""Latents of rows some of which follow another, displaced: the row after of a pair, and the row before."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class Displaced(TorchDistribution):
    """Rows (rows, latent): N(z_j + shift_i, diag spread^2) of a row i that follows row j = place_i, and
    N(shift_i, tril tril') of all others.

    shift: (rows, latent); spread: (latent,); tril: (latent, latent); place, follows: (rows,), as `Batch.before` has
    them. A row that is followed does not follow.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(
        self,
        shift: Tensor,
        spread: Tensor,
        tril: Tensor,
        place: Tensor,
        follows: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.shift, self.spread, self.tril = shift, spread, tril
        self.place, self.follows = place, follows[:, None]
        super().__init__(shift.shape[:1], shift.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.shift

    def expand(self, batch_shape: Any, _instance: Any = None) -> Displaced:
        return self

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(self.shift.shape, dtype=self.shift.dtype, device=self.shift.device)
            first = self.shift + torch.where(self.follows, self.spread * noise, noise @ self.tril.mT)
            return torch.where(self.follows, first + first[self.place], first)

    def log_prob(self, value: Tensor) -> Tensor:
        apart = value - self.shift
        near = (apart - value[self.place]) / self.spread
        alone = torch.linalg.solve_triangular(self.tril, apart.mT, upper=False).mT
        volume = torch.where(self.follows[:, 0], self.spread.log().sum(), self.tril.diagonal().log().sum())
        white = torch.where(self.follows, near, alone)
        return -0.5 * (white.square() + math.log(2 * math.pi)).sum(-1) - volume


class Carried(TorchDistribution):
    """Rows (rows, latent): N(turn_i z_j + shift_i, diag spread^2) of a row i that follows row j = place_i, and
    N(centre_i, tril_i tril_i') of all others.

    turn: (rows, latent, latent); shift, centre: (rows, latent); spread: (latent,); tril: (rows, latent, latent); place,
    follows: (rows,), as `Batch.before` has them. A row that is followed does not follow.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(
        self,
        turn: Tensor,
        shift: Tensor,
        spread: Tensor,
        centre: Tensor,
        tril: Tensor,
        place: Tensor,
        follows: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.turn, self.shift, self.spread, self.centre, self.tril = turn, shift, spread, centre, tril
        self.place, self.follows = place, follows[:, None]
        super().__init__(shift.shape[:1], shift.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.centre

    def expand(self, batch_shape: Any, _instance: Any = None) -> Carried:
        return self

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(self.shift.shape, dtype=self.shift.dtype, device=self.shift.device)
            alone = self.centre + (self.tril @ noise[..., None])[..., 0]
            return torch.where(self.follows, self._carried(alone) + self.spread * noise, alone)

    def log_prob(self, value: Tensor) -> Tensor:
        near = (value - self._carried(value)) / self.spread
        apart = (value - self.centre)[..., None]
        alone = torch.linalg.solve_triangular(self.tril, apart, upper=False)[..., 0]
        own = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        volume = torch.where(self.follows[:, 0], self.spread.log().sum(), own)
        white = torch.where(self.follows, near, alone)
        return -0.5 * (white.square() + math.log(2 * math.pi)).sum(-1) - volume

    def _carried(self, z: Tensor) -> Tensor:
        """(rows, latent) where the row before is taken."""
        return (self.turn @ z[self.place][..., None])[..., 0] + self.shift
