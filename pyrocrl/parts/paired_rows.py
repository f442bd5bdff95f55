"""The law of latents of rows some of which follow another, between which one latent or none was set anew.

    z_k = f_k(z) + eps_k,  eps_k ~ N(0, 1)                                   of rows before, and of rows alone
    after, where k is the target:  z'_k ~ N(own_level_k, own_scale_k^2)
    all others:  eps'_l ~ N(eps_l, still_l^2 + moving_l^2 m^2 / (1 + m^2)),  m = z'_k - z_k,  0 without a target

Noise is shared but for a part that grows with how far the target moved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.exact import curve_equations
from pyrocrl.exact.paired_sem import log_normal


class Changes(NamedTuple):
    """Curves of the equations (parent, basis, child); own_level, own_scale of the targets, still, moving (latent,)."""

    curve: Tensor
    own_level: Tensor
    own_scale: Tensor
    still: Tensor
    moving: Tensor

    @property
    def error(self) -> Tensor:
        """(latent,) deviation of noise as it is read in one row, where it is read with errors: of differences, half."""
        return ((self.still.square() + self.moving.square()) / 2).sqrt()

    def noise(self, z: Tensor) -> Tensor:
        """(..., latent) eps of z (..., latent)."""
        return z - curve_equations.told(z, self.curve)

    def unshared(self, moved: Tensor) -> Tensor:
        """(..., latent) deviations of the noise of others than a target that moved so far (...)."""
        square = moved.square()
        grown = (square / (1 + square))[..., None]
        return (self.still.square() + self.moving.square() * grown).sqrt()

    def log_joint(self, z: Tensor, place: Tensor, follows: Tensor, after: Tensor) -> Tensor:
        """(rows, latent + 1) log-density of z (rows, latent) where each latent was the target, the last being none;
        rows that are not `after` (rows,) have none."""
        eps = self.noise(z)
        own = log_normal(z - self.own_level, self.own_scale)
        apart = torch.where(follows[:, None], eps - eps[place], eps)[:, None]  # (rows, 1, latent)
        moved = z - z[place]
        moved = torch.cat([moved, torch.zeros_like(moved[:, :1])], 1)  # (rows, target)
        scale = torch.where(follows[:, None, None], self.unshared(moved), 1.0)
        keep = log_normal(apart, scale)  # (rows, target, latent)
        total = keep.sum(-1)
        changed = total[:, :-1] - keep[:, :-1].diagonal(dim1=-2, dim2=-1) + own
        return torch.cat([torch.where(after[:, None], changed, -torch.inf), total[:, -1:]], 1)


class PairedRows(TorchDistribution):
    """Rows (rows, latent) of this law, with their targets (rows,), the number of latents for none, or, with log_share
    (latent + 1,) of them, these summed out.

    place, follows: (rows,), as `Batch.before` has them; after: (rows,) whether a row is one after, its partner here or
    not. Draws are made along `order` (latent,), given targets.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(
        self,
        changes: Changes,
        place: Tensor,
        follows: Tensor,
        after: Tensor,
        target: Tensor | None = None,
        order: Tensor | None = None,
        log_share: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.changes, self.place, self.follows, self.after = changes, place, follows, after
        self.target, self.order, self.log_share = target, order, log_share
        super().__init__(follows.shape, changes.own_level.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Of rows before, roughly."""
        return torch.zeros(self.shape(), dtype=self.changes.own_level.dtype, device=self.place.device)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PairedRows:
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        joint = self.changes.log_joint(value, self.place, self.follows, self.after)
        if self.target is not None:
            return joint.gather(-1, self.target.long()[:, None])[:, 0]
        assert self.log_share is not None
        return torch.where(self.after, (joint + self.log_share).logsumexp(-1), joint[:, -1])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        assert self.target is not None and self.order is not None
        with torch.no_grad():
            like = self.mean
            eps, fresh = torch.randn_like(like), torch.randn_like(like)
            own = self.changes.own_level + self.changes.own_scale * fresh
            hit = self.target[:, None] == torch.arange(like.shape[1], device=like.device)
            first = self._along(eps, own, hit)
            moved = torch.where(hit, own - first[self.place], 0.0).sum(1)
            shared = eps[self.place] + self.changes.unshared(moved) * torch.randn_like(eps)
            return self._along(torch.where(self.follows[:, None], shared, eps), own, hit)

    def _along(self, eps: Tensor, own: Tensor, hit: Tensor) -> Tensor:
        z = torch.where(hit, own, eps)
        assert self.order is not None
        for k in self.order.long().tolist():
            z[:, k] = torch.where(hit[:, k], own[:, k], eps[:, k] + curve_equations.told(z, self.changes.curve)[:, k])
        return z
