"""What models of pairs that share content are made of: the law of repeated latents, and the network that reads content.

Names of content and style are those of von Kuegelgen et al. (2021): content is the same in both rows of a pair, style
is what changes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import StudentT, constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrocrl.dists import Normal
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.piecewise_affine import steepened
from pyrocrl.parts.readings import WithErrors

CORNER = 0.02  # width over which bends of features are rounded, in their deviations


class Repeated(TorchDistribution):
    """Rows (rows, latent): N(r z_j, 1 - r^2) of a row i that follows row j = place_i, and N(0, 1) of all others.

    change: (latent,) or (rows, latent) 1 - r, from 0, the same, to 1, drawn anew; place, follows: (rows,), as
    `Batch.before` has them. A row that is followed does not follow.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, change: Tensor, place: Tensor, follows: Tensor, validate_args: bool | None = None) -> None:
        self.kept, self.spread = 1 - change, (change * (2 - change)).sqrt()
        self.place, self.follows = place, follows[:, None]
        super().__init__(place.shape, change.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.kept.new_zeros(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Repeated:
        return self

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(self.batch_shape + self.event_shape, dtype=self.kept.dtype, device=self.kept.device)
            return torch.where(self.follows, self.kept * noise[self.place] + self.spread * noise, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        near = (value - self.kept * value[self.place]) / self.spread
        white = torch.where(self.follows, near, value)
        volume = torch.where(self.follows, self.spread.log(), torch.zeros_like(self.spread)).sum(-1)
        return -0.5 * (white.square() + math.log(2 * math.pi)).sum(-1) - volume


class ContentReader(nn.Module):
    """h(x): features bent one by one, made white, a linear map plus a network, and its outputs made white.

    (rows, feature) standardised -> (rows, latent). Buffers: signal (feature, feature), middle (feature,) and unmixing
    (latent, latent), centre (latent,), which make bent features and outputs white.
    """

    signal: Tensor
    middle: Tensor
    unmixing: Tensor
    centre: Tensor

    def __init__(self, features: int, latents: int, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features))  # where features bend, and how
        self.bend = nn.Parameter(torch.zeros(features))
        self.net = Residual(features, latents, width)
        self.register_buffer("signal", torch.eye(features))
        self.register_buffer("middle", torch.zeros(features))
        self.register_buffer("unmixing", torch.eye(latents))
        self.register_buffer("centre", torch.zeros(latents))

    def bent(self, x: Tensor) -> Tensor:
        """(rows, feature) features bent one by one, made white."""
        return (steepened(x + self.shift, self.bend, CORNER)[0] - self.middle) @ self.signal

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(self.bent(x)) - self.centre) @ self.unmixing

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Let outputs of these rows be white."""
        out = self.net(self.bent(x))
        self.centre.copy_(out.mean(0))
        tril = torch.linalg.cholesky(torch.cov(out.mT.double()) + 1e-8 * torch.eye(out.shape[1]).to(x.device).double())
        self.unmixing.copy_(torch.linalg.inv(tril).mT)


@torch.no_grad()
def reading_error(one: Tensor, other: Tensor, kept: Tensor, differ: Tensor) -> tuple[Tensor, Tensor]:
    """(latent,) variance of what is read of latents less what partners share, at most 1, and how many pairs tell it.

    one, other: (pair, latent) latents of partners that were not trained on, of variance 1; kept: (pair, latent) which
    of these are the same in both. What of the rest is read as latents partners share as far as they share the rest: of
    it a part `differ` (pair,) does not.
    """
    each = (one - other).square() / 2 / differ[:, None].clamp_min(1e-3)
    count = kept.sum(0)
    return ((each * kept).sum(0) / count.clamp_min(1)).clamp(1e-8, 1.0), count.clamp_min(1)


class ContentRead(WithErrors):
    """Of programs whose `reader` is made by pairs: draws of latents with its error, by pairs that it has not seen.

    Trained on few pairs it tells their content by heart, and the decoder, which is made for what it reads, does not
    know. Of so many pairs (`told_by`) the error of another row has Student's law with the deviation that these have.
    """

    reading_variance: Tensor  # (latent,)
    told_by: Tensor  # (latent,) pairs

    @staticmethod
    def error_buffers(latents: int) -> dict[str, Tensor]:
        return {"reading_variance": torch.full((latents,), 1e-8), "told_by": torch.ones(latents)}

    def law_of(self, z: Tensor, width: Tensor) -> Any:
        """q of latents read as z (rows, latent), of the width (latent,) that goes with the decoder."""
        if self.with_errors:
            wide = (self.reading_variance + width.square()).sqrt()
            return StudentT(self.told_by.expand_as(z), z, wide.expand_as(z)).to_event(1)
        return Normal(z, width.expand_as(z)).to_event(1)
