"""An auto-encoder of one hidden layer that stores rows: the start and the end of chains of `overparameterized_ae`.

    z ~ N(0, spread^2 I),  x ~ N(V s(z) + c, noise^2 I),  q(z | x) = N(W x + b, diag width^2)

To second order in the widths, but for the product of residuals and s'', and at the widths that are best, the evidence
lower bound of rows x_i is, up to a constant,

    - sum_i (|x_i - V s(m_i) - c|^2 / noise^2 + |m_i|^2 / spread^2) / 2 - rows / 2 sum_k log(1 + spread^2 h_k)
    m_i = W x_i + b,  h_k = |V_k|^2 mean_i s'(m_ik)^2 / noise^2,  width_k^2 = 1 / (1 / spread^2 + h_k)

Its last term is what draws neighbours of a row together: it makes the decoder flat in q's widths (`store`). Widths that
reach beyond where s is straight are too large by this: they follow from draws of q instead (`widths`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from pyrocrl.constructions.optimise import descend

LEAK = 0.01  # slope of a leaky ReLU below 0
DRAWS, WIDTH_STEPS = 200, 20  # for widths: draws in all, or one a row; steps
FLAT = 1e-6  # least ridge, of latents that are saturated at all rows
Function = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, tuple[Function, Function]] = {  # s and s'
    "tanh": (torch.tanh, lambda z: 1.0 - torch.tanh(z).square()),
    "leaky_relu": (lambda z: leaky_relu(z, LEAK), lambda z: torch.where(z > 0, 1.0, LEAK).to(z)),
}


class Stored(NamedTuple):
    """W (latent, feature), b (latent,), V (feature, latent), c (feature,) and q's widths (latent,)."""

    weight: Tensor
    offset: Tensor
    readout: Tensor
    constant: Tensor
    width: Tensor


def store(
    x: Tensor, weight: Tensor, offset: Tensor | None, activation: str, spread: float, noise: float, steps: int
) -> Stored:
    """Where the bound of rows x (row, feature) is largest near `weight` and `offset` (None = b and c are 0): L-BFGS of
    at most `steps` steps over all of the network, from the V that is best at the first widths, half of `spread`."""
    s, slope = ACTIVATIONS[activation]
    rows, (latents, features) = len(x), weight.shape
    bias = offset is not None
    start = x.new_zeros(latents) if offset is None else offset
    mean = x @ weight.mT + start
    ridge = (slope(mean).square().sum(0) * (0.5 * spread) ** 2).clamp_min(FLAT)
    scaled = s(mean) / ridge
    readout = torch.linalg.solve(scaled @ s(mean).mT + torch.eye(rows).to(x), x).mT @ scaled
    shapes = [(latents, features), (features, latents), (latents,), (features,)][: 4 if bias else 2]

    def parts(at: Tensor) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in shapes]
        found = [part.view(shape) for part, shape in zip(at.split(sizes), shapes, strict=True)]
        return found if bias else [*found, x.new_zeros(latents), x.new_zeros(features)]

    def sharpness(readout: Tensor, mean: Tensor) -> Tensor:
        return readout.square().sum(0) * slope(mean).square().mean(0) / noise**2

    def loss(at: Tensor) -> Tensor:
        weight, readout, offset, constant = parts(at)
        mean = x @ weight.mT + offset
        error = (s(mean) @ readout.mT + constant - x).square().sum() / noise**2
        spent = mean.square().sum() / spread**2 + rows * torch.log1p(spread**2 * sharpness(readout, mean)).sum()
        return (error + spent) / (2 * rows)

    first = [weight, readout, start, x.new_zeros(features)][: len(shapes)]
    weight, readout, offset, constant = parts(descend(loss, torch.cat([v.flatten() for v in first]), steps))
    width = (spread**-2 + sharpness(readout, x @ weight.mT + offset)).rsqrt()
    return Stored(weight, offset, readout, constant, width)


def widths(
    x: Tensor, found: Stored, activation: str, spread: float, noise: float, generator: torch.Generator
) -> Tensor:
    """(latent,) widths of q at which the bound of rows x (row, feature) is largest, the net being as it is, over a few
    fixed draws of each row."""
    s, copies = ACTIVATIONS[activation][0], max(1, DRAWS // len(x))
    mean, rows = x @ found.weight.mT + found.offset, copies * len(x)
    drawn = torch.randn(copies, *mean.shape, generator=generator, dtype=x.dtype)

    def loss(log_width: Tensor) -> Tensor:
        error = s(mean + log_width.exp() * drawn) @ found.readout.mT + found.constant - x
        spent = (2 * log_width).exp().sum() / spread**2 - 2 * log_width.sum()
        return error.square().sum() / (2 * rows * noise**2) + spent / 2

    return descend(loss, found.width.log() - 1.0, WIDTH_STEPS).exp()


def interpolate(hidden: Tensor, residual: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """The least changes of V (feature, latent) and c (feature,), none without `bias`, after which the rows' residuals
    (row, feature) of V s + c are 0, given s (row, latent); least squares where there are no such changes."""
    gram = hidden @ hidden.mT + float(bias)
    share = torch.linalg.pinv(gram, hermitian=True) @ residual
    return share.mT @ hidden, share.sum(0) * float(bias)
