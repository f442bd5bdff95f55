"""Networks that several models share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "silu": nn.SiLU, "tanh": nn.Tanh}


class MLP(nn.Sequential):
    """Linear layers of the given sizes with an activation between them: (..., sizes[0]) -> (..., sizes[-1])."""

    def __init__(self, sizes: Sequence[int], activation: str = "relu") -> None:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(a, b)] if i == 0 else [ACTIVATIONS[activation](), nn.Linear(a, b)]
        super().__init__(*layers)


class GaussianEncoder(nn.Module):
    """q(z | x) = N(loc, diag(scale^2)) from an MLP: (rows, inputs) -> two (rows, latent).

    Inputs are standardised with `centre` and `spread` buffers that `standardise` sets.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, inputs: int, latents: int, hidden: Sequence[int] = (64, 64), activation: str = "relu") -> None:
        super().__init__()
        self.net = MLP([inputs, *hidden, 2 * latents], activation)
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))

    def standardise(self, mean: Tensor, sd: Tensor) -> None:
        """Set the buffers; a feature that does not vary keeps spread 1."""
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(sd > 1e-8, sd, torch.ones_like(sd)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.net((x - self.centre) / self.spread).chunk(2, -1)
        return loc, softplus(raw + math.log(math.expm1(0.5))) + 1e-4


class MaskedDecoder(nn.Module):
    """f_j(m_j * z): each feature sees its own masked latents through a shared trunk and has its own head.

    (rows, latent), (feature, latent) -> (rows, feature); one trunk pass per feature (Moran 2022, eq. 2).
    """

    def __init__(self, features: int, latents: int, hidden: Sequence[int] = (50, 50), activation: str = "relu") -> None:
        super().__init__()
        self.trunk = MLP([latents, *hidden], activation)
        self.act = ACTIVATIONS[activation]()
        self.head = nn.Parameter(torch.randn(features, hidden[-1]) / math.sqrt(hidden[-1]))
        self.intercept = nn.Parameter(torch.zeros(features))

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        shared = self.act(self.trunk(z.unsqueeze(-2) * mask))  # (rows, feature, hidden)
        return (shared * self.head).sum(-1) + self.intercept
