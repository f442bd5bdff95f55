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


def turned_weights(weight: Tensor, turn: Tensor) -> Tensor:
    """Weights (outputs, latent) that give of z @ turn what `weight` gives of z."""
    return torch.linalg.solve(turn, weight.mT).mT


class MLP(nn.Sequential):
    """Linear layers of the given sizes with an activation between them: (..., sizes[0]) -> (..., sizes[-1])."""

    def __init__(self, sizes: Sequence[int], activation: str = "relu") -> None:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(a, b)] if i == 0 else [ACTIVATIONS[activation](), nn.Linear(a, b)]
        super().__init__(*layers)

    @torch.no_grad()
    def scale_up(self) -> None:
        """Weights of variance 1 / inputs (LeCun 1998), three times torch's: curved enough for squares and products."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(math.sqrt(3.0))
                layer.bias.zero_()

    @torch.no_grad()
    def quieten(self, keep: float = 0.1) -> None:
        """Let the network start from this share of its output: from (nearly) nothing beside a linear map."""
        last = self[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(keep)
        last.bias.zero_()


def beside(x: Tensor, known: Tensor | None, flags: bool) -> Tensor:
    """(rows, inputs) x, 0 where a value is not known, and with `flags` (rows, 2 inputs), 1 for each that is not."""
    if known is not None:
        x = torch.where(known, x, torch.zeros_like(x))
    if not flags:
        return x
    return torch.cat([x, torch.zeros_like(x) if known is None else (~known).to(x.dtype)], -1)


def net_beside(sizes: Sequence[int], activation: str, flags: bool) -> MLP:
    """An MLP of `beside`: what flags do is 0 at first, and learned."""
    net = MLP([sizes[0] * (1 + flags), *sizes[1:]], activation)
    if flags:
        first = net[0]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            first.weight[:, sizes[0] :] = 0.0
    return net


class GaussianEncoder(nn.Module):
    """q(z | x) = N(loc, diag(scale^2)) from an MLP: (rows, inputs) -> two (rows, latent).

    Inputs are standardised with `centre` and `spread` buffers that `standardise` sets. One that is missing is at its
    mean; with `flags` the MLP is told which are.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        inputs: int,
        latents: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        *,
        flags: bool = False,
    ) -> None:
        super().__init__()
        self.flags = flags
        self.net = net_beside([inputs, *hidden, 2 * latents], activation, flags)
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))

    def standardise(self, mean: Tensor, sd: Tensor) -> None:
        """Set the buffers; a feature that does not vary keeps spread 1."""
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(sd > 1e-8, sd, torch.ones_like(sd)))

    def forward(self, x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """known: (rows, inputs) which inputs were measured; None = all."""
        loc, raw = self.net(beside((x - self.centre) / self.spread, known, self.flags)).chunk(2, -1)
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
        shared = (mask.unsqueeze(-2) * z).flatten(0, 1)  # (feature * rows, latent): long products, biases added in them
        for layer in self.trunk:
            linear = isinstance(layer, nn.Linear)
            shared = torch.addmm(layer.bias, shared, layer.weight.mT) if linear else layer(shared)
        shared = self.act(shared).unflatten(0, (len(mask), len(z)))
        return (shared @ self.head.unsqueeze(-1)).squeeze(-1).mT + self.intercept


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

    @torch.no_grad()
    def of_turned(self, turn: Tensor) -> None:
        """The map becomes map(x @ turn^-1), turn (inputs, inputs): what it was of x it is of x @ turn."""
        for layer in (self.linear, self.net[0]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(turned_weights(layer.weight, turn))

    @torch.no_grad()
    def preceded_by(self, scale: Tensor, offset: Tensor) -> None:
        """The map becomes map(scale * x + offset), both (inputs,)."""
        for layer in (self.linear, self.net[0]):
            assert isinstance(layer, nn.Linear)
            layer.bias.add_(layer.weight @ offset)
            layer.weight.mul_(scale)


class TrilEncoder(nn.Module):
    """q(z | x) = N(loc, L L^T): (rows, inputs) -> loc (rows, latent) and L (rows, latent, latent).

    loc is the network's plus `mean`'s, a map with weights of its own, where there is one; `held`: `mean`'s alone, which
    is not trained. L is lower triangular, diagonal unless `full`, and about `scale` times the identity at first. With
    `flags` the network is told which inputs are missing.
    """

    def __init__(
        self,
        inputs: int,
        latents: int,
        hidden: int,
        activation: str,
        mean: nn.Linear | Residual | None = None,
        *,
        held: bool = False,
        full: bool = True,
        scale: float = math.log(2),
        flags: bool = False,
    ) -> None:
        super().__init__()
        self.latents, self.full, self.held, self.flags = latents, full, held, flags
        self.shift = math.log(math.expm1(scale))
        self.mean = mean
        if held and mean is not None:
            mean.requires_grad_(False)
        self.net = net_beside([inputs, hidden, hidden, latents * (1 + (latents if full else 1))], activation, flags)

    def forward(self, x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: (rows, inputs), 0 where a value is missing; known: (rows, inputs) whether each was measured; None = all
        were."""
        out = self.net(beside(x, known, self.flags))
        loc, raw = out[..., : self.latents], out[..., self.latents :]
        if self.mean is not None:
            loc = self.mean(x) if self.held else self.mean(x) + loc
        return loc, self._tril(raw)

    def _tril(self, raw: Tensor) -> Tensor:
        """(..., latent, latent) L of the network's outputs (..., latent^2), or (..., latent) unless `full`."""
        if not self.full:
            return torch.diag_embed(self._positive(raw))
        raw = raw.unflatten(-1, (self.latents, self.latents))
        return raw.tril(-1) + torch.diag_embed(self._positive(raw.diagonal(dim1=-2, dim2=-1)))

    def _raw(self, tril: Tensor) -> Tensor:
        """Outputs of the network of which L is about `tril` (latent, latent)."""
        sd = tril.diagonal().clamp_min(1e-3)
        if self.full:
            return (tril.tril(-1) + torch.diag(sd + torch.log(-torch.expm1(-sd)) - self.shift)).flatten()
        return sd.expm1().log() - self.shift

    def _positive(self, raw: Tensor) -> Tensor:
        return softplus(raw + self.shift if self.shift else raw) + 1e-4

    @torch.no_grad()
    def turn(self, turn: Tensor) -> None:
        """The mean becomes mean @ turn (latent, latent), and L as it then is where the network's input is 0."""
        if isinstance(self.mean, Residual):
            self.mean.followed_by(turn.mT, torch.zeros_like(turn[0]))
        elif self.mean is not None:
            self.mean.weight.copy_(turn.mT @ self.mean.weight)
            self.mean.bias.copy_(self.mean.bias @ turn)
        last = self.net[-1]
        last.weight[: self.latents] = turn.mT @ last.weight[: self.latents]
        last.bias[: self.latents] = last.bias[: self.latents] @ turn
        root = turn.mT @ self._tril(last.bias[self.latents :])
        tril = torch.linalg.cholesky(root @ root.mT)
        last.bias[self.latents :] = self._raw(tril if self.full else root.norm(dim=1).diag())

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor, tril: Tensor | None = None, keep: float = 0.1) -> None:
        """q(z | x) = N(weight x + bias, tril tril'), tril as it is where None; keep: as `MLP.quieten` takes it."""
        linear = self.mean
        if isinstance(linear, Residual):
            linear.net.quieten(keep)
            linear = linear.linear
        assert linear is not None
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        self.quieten(tril, keep)

    @torch.no_grad()
    def quieten(self, tril: Tensor | None = None, keep: float = 0.1) -> None:
        """q(z | x) is about N(mean(x), tril tril'), tril as it is where None."""
        self.net.quieten(keep)
        if tril is not None:
            self.net[-1].bias[self.latents :] = self._raw(tril)
