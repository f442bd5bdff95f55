"""The law of latents that follow the row before of their series."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.exact.sparse_mechanism import basis
from pyrocrl.exact.switching import Timeline, log_normal

SPAN = 3.5  # a latent's curves bend between -SPAN and SPAN


def curves_of(z: Tensor, coefficients: Tensor) -> Tensor:
    """(rows, latent) sums of curves of latents z; coefficients (parent, latent, basis)."""
    return torch.einsum("rpb,pkb->rk", basis(0.5 + z / (2 * SPAN)), coefficients)


class Following(TorchDistribution):
    """z (rows, latent): loc_i + curves of z in the row before + scale N(0, 1), and N(0, 1) where a series begins."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(self, loc: Tensor, coefficients: Tensor, scale: Tensor, line: Timeline) -> None:
        """loc: (rows, latent) in the order of rows; coefficients (parent, latent, basis); scale (latent,)."""
        self.loc, self.coefficients, self.scale, self.line = loc, coefficients, scale, line
        super().__init__(torch.Size((len(line.order),)), loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return self

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            loc, since = self.line.lay(self.loc), self.line.since
            noise = torch.randn_like(loc)
            z = noise
            for step in range(1, 1 + int(since.max()) if len(since) else 1):
                at = (since == step).nonzero()[:, 0]
                own = loc[at] + curves_of(z[at - 1], self.coefficients) + self.scale * noise[at]
                z = z.index_copy(0, at, own)
            return self.line.back(z)

    def log_prob(self, value: Tensor) -> Tensor:
        z, first = self.line.lay(value), (self.line.since == 0)[:, None]
        before = torch.cat([z[:1], z[:-1]])
        loc = self.line.lay(self.loc) + curves_of(before, self.coefficients)
        loc, scale = torch.where(first, 0.0, loc), torch.where(first, 1.0, self.scale)
        return self.line.back(log_normal(z - loc, scale).sum(-1))
