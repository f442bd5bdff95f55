"""Free-form flows: an encoder of full rank whose log-density is that of a normalising flow.

    g_j = s_j(x_j)                      a monotone rational-quadratic spline, about normal       (data, feature)
    h_i = net(g_i, tanh(sharp (g_i - centre)))                                                 (data, latent)
    log |det dh / dx| = sum_j log s_j'(x_j) + log |det dh / dg|                                (data,)

The splines (Durkan et al. 2019; `zuko`) carry the curvature that features have one by one, of a saturating last
activation, say; the hinges tanh(.) let the network be curved differently along each of them. The Jacobian of the
network is computed, not built in: any network is a flow while a decoder inverts it (Draxler et al. 2024, "Free-form
flows: make any architecture a normalizing flow").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from zuko.transforms import MonotonicRQSTransform

from pyrocrl.parts.nets import Residual

BINS = 32
BOUND = 6.0  # of the splines, in deviations of features: the identity beyond
REACH = 3.0  # deviations of the normal law between which knots lie at quantiles
SLOPE = 1e-5  # least slope of the splines
HINGES, SHARP = 12, 4.0
LAYERS = 5  # of the encoder: an inverse is rougher than the mixing


class Gaussianise(nn.Module):
    """Monotone splines that make each feature about normal: (rows, feature) -> the same shape.

    Buffers: centre, spread (feature,); widths, heights (feature, bin) and derivatives (feature, bin - 1) of
    `zuko.transforms.MonotonicRQSTransform`.
    """

    centre: Tensor
    spread: Tensor
    widths: Tensor
    heights: Tensor
    derivatives: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        for name, size in (("widths", BINS), ("heights", BINS), ("derivatives", BINS - 1)):
            self.register_buffer(name, torch.zeros(features, size))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Knots at normal quantiles of the rows x (rows, feature)."""
        self.centre.copy_(x.mean(0))
        self.spread.copy_(x.std(0))
        level = torch.linspace(-REACH, REACH, BINS - 1, dtype=torch.float64)
        order = ((x - x.mean(0)) / x.std(0)).double().cpu().sort(0).values
        at = (torch.special.ndtr(level) * (len(x) - 1)).round().long()
        inner = order[at].mT.clamp(-BOUND + 0.1, BOUND - 0.1)  # (feature, bin - 1)
        end = torch.full_like(inner[:, :1], BOUND)
        widths = torch.cat([-end, inner, end], 1).diff(dim=1).clamp_min(2e-4)
        heights = torch.cat([-end, level.expand_as(inner), end], 1).diff(dim=1)
        slope = (heights / widths).log()
        self.widths.copy_(_free(widths.log() - widths.log().mean(1, keepdim=True), 2.0))
        self.heights.copy_(_free(heights.log() - heights.log().mean(1, keepdim=True), 2.0))
        self.derivatives.copy_(_free((slope[:, 1:] + slope[:, :-1]) / 2, 1.0))

    def _transform(self) -> MonotonicRQSTransform:
        return MonotonicRQSTransform(self.widths, self.heights, self.derivatives, bound=BOUND, slope=SLOPE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(g, log |det dg / dx| (rows,))."""
        g, log_slope = self._transform().call_and_ladj((x - self.centre) / self.spread)
        return g, (log_slope - self.spread.log()).sum(-1)

    def inverse(self, g: Tensor) -> Tensor:
        return self._transform().inv(g) * self.spread + self.centre


def _free(value: Tensor, share: float) -> Tensor:
    """The unconstrained parameter that zuko squashes to `value`: v / (1 + |share v / log slope|)."""
    c = share / abs(math.log(SLOPE))
    value = value.clamp(-0.95 / c, 0.95 / c)
    return value / (1 - c * value.abs())


class FreeFormFlow(nn.Module):
    """x (rows, feature) -> (h, log |det dh / dx|), features and latents the same number; `decode` goes back."""

    centres: Tensor
    middle: Tensor
    unit: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.gaussianise = Gaussianise(features)
        self.encoder = Residual(features * (1 + HINGES), features, width, LAYERS)
        self.decoder = Residual(features, features, width)
        self.register_buffer("centres", torch.linspace(-2.0, 2.0, HINGES))
        self.register_buffer("middle", torch.zeros(features * HINGES))  # of the hinges, and their deviation
        self.register_buffer("unit", torch.ones(features * HINGES))

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Splines and the hinges' units from the rows x; what the encoder sees of them."""
        self.gaussianise.start(x)
        g, _ = self.gaussianise(x)
        hinges = self._hinges(g)
        self.middle.copy_(hinges.mean(0))
        self.unit.copy_(hinges.std(0).clamp_min(1e-3))
        return self.inputs(g)

    def _hinges(self, g: Tensor) -> Tensor:
        return (SHARP * (g[..., None] - self.centres)).tanh().flatten(-2)

    def inputs(self, g: Tensor) -> Tensor:
        """(rows, feature (1 + HINGES)) what the encoder sees of g."""
        return torch.cat([g, (self._hinges(g) - self.middle) / self.unit], -1)

    def encode(self, x: Tensor) -> Tensor:
        h: Tensor = self.encoder(self.inputs(self.gaussianise(x)[0]))
        return h

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g, log_det = self.gaussianise(x)
        h, pull = torch.func.vjp(lambda value: self.encoder(self.inputs(value)), g)
        eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
        jacobian = torch.stack([pull(row.expand_as(h))[0] for row in eye], -2)  # (rows, latent, feature)
        return h, log_det + torch.linalg.slogdet(jacobian).logabsdet

    def decode(self, h: Tensor) -> Tensor:
        """(rows, feature) x of h, by the decoder."""
        return self.gaussianise.inverse(self.decoder(h))
