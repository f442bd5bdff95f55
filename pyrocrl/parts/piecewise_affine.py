"""Injective piecewise affine maps with rounded corners, h: R^latent -> R^latent, both ways in closed form.

h^-1 = A_L . k_L . ... . A_1 . k_1 . A_0     A_l affine and square, k_l a leaky ReLU of learned slope
"""

from __future__ import annotations

import torch
from torch import Tensor

CORNER = 0.05  # width over which corners are rounded, in units of a standardised layer
SLOPE = 0.7  # of leaky ReLUs at the start

Maps = tuple[Tensor, Tensor, Tensor]  # (.., layers + 1, latent, latent), (.., layers + 1, latent), (.., layers, latent)


def unmix(y: Tensor, maps: Maps, corner: float) -> tuple[Tensor, Tensor]:
    """h^-1 of (.., rows, latent) and its log |det Jacobian| (.., rows); leading dimensions are those of `maps`."""
    matrix, shift, bend = maps
    layers = bend.shape[-2]
    log_det = torch.linalg.slogdet(matrix)[1].sum(-1)[..., None]
    z = y
    for i in range(layers + 1):
        z = z @ matrix[..., i, :, :] + shift[..., i, None, :]
        if i < layers:
            z, log_slope = steepened(z, bend[..., i, None, :], corner)
            log_det = log_det + log_slope.sum(-1)
    return z, log_det


def steepened(z: Tensor, bend: Tensor, corner: float) -> tuple[Tensor, Tensor]:
    """A rounded leaky ReLU, of slope exp(bend) on the left and 1 on the right, and the log of its slope at z."""
    steep = bend.exp()
    half, root = (1 - steep) / 2, (z.square() + corner**2).sqrt()
    return (1 + steep) / 2 * z + half * root, ((1 + steep) / 2 + half * z / root).log()


def remix(z: Tensor, maps: Maps, corner: float) -> Tensor:
    """h of (rows, latent): the inverse of `unmix` in closed form."""
    matrix, shift, bend = maps
    inverse = torch.linalg.inv_ex(matrix).inverse  # without the check, which would wait for the device
    layers = bend.shape[-2]
    y = z
    for i in reversed(range(layers + 1)):
        if i < layers:
            steep = bend[i].exp()
            root = (y.square() + steep * corner**2).sqrt()
            y = ((1 + steep) / 2 * y - (1 - steep) / 2 * root) / steep
        y = (y - shift[i]) @ inverse[i]
    return y
