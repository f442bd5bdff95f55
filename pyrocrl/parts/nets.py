"""Networks that several models share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "silu": nn.SiLU, "tanh": nn.Tanh}


FIRST = 0.1  # of the last layers' first weights: networks start near the linear maps


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


class Residual(nn.Module):
    """A linear map plus a network: (rows, inputs) -> (rows, outputs)."""

    def __init__(self, inputs: int, outputs: int, width: int, layers: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.net = MLP([inputs, *(width,) * layers, outputs], "silu")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.net(x)
        return out

    @torch.no_grad()
    def constant(self, value: float) -> None:
        """Let the map be about `value` everywhere, until it is trained."""
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        for parameter in (self.linear.weight, last.weight):
            parameter.mul_(0.01)
        last.bias.zero_()
        self.linear.bias.fill_(value)

    @torch.no_grad()
    def near(self, matrix: Tensor) -> None:
        """Let the map be about the linear one of `matrix` (outputs, inputs), until it is trained."""
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        self.linear.weight.copy_(matrix)
        last.weight.mul_(FIRST)
        for bias in (self.linear.bias, last.bias):
            bias.zero_()

    @torch.no_grad()
    def followed_by(self, matrix: Tensor, offset: Tensor) -> None:
        """The map becomes matrix @ map + offset, matrix (new outputs, outputs)."""
        for layer in (self.linear, self.net[-1]):
            assert isinstance(layer, nn.Linear)
            layer.weight.data, layer.bias.data = matrix @ layer.weight, matrix @ layer.bias
            layer.out_features = len(matrix)
        self.linear.bias.add_(offset)
