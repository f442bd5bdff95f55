"""Cubic splines on equal pieces of [0, 1], from the smoothest function to the roughest."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

Floats = NDArray[np.float64]


def splines(u: Tensor, pieces: int) -> Tensor:
    """(..., pieces + 3) the cubic B-splines at u, by truncated powers."""
    start = torch.arange(-3.0, pieces, dtype=u.dtype, device=u.device)
    away = u[..., None] * pieces - start
    parts = [(-1) ** i * math.comb(4, i) * (away - i).clamp_min(0) ** 3 / 6 for i in range(5)]
    out: Tensor = sum(parts[1:], parts[0])
    return out


def by_roughness(pieces: int) -> tuple[Floats, Floats, Floats]:
    """offset (pieces + 3,) means of the splines; turn (pieces + 3, pieces + 2) from splines less these to functions
    that are orthonormal under the uniform law, and so are their second derivatives but for their sizes; roughness
    (pieces + 2,), the means of these' squares, ascending."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    at = ((np.arange(pieces)[:, None] + 0.5 + nodes / 2) / pieces).ravel()
    weight = np.tile(weights / 2 / pieces, pieces)
    value = splines(torch.as_tensor(at), pieces).numpy()
    start = at[:, None] * pieces - np.arange(-3.0, pieces)
    second = sum((-1) ** i * math.comb(4, i) * np.maximum(start - i, 0) for i in range(5)) * pieces**2
    offset = weight @ value
    centred = value - offset
    gram, rough = (part.T @ (weight[:, None] * part) for part in (centred, second))
    size, axes = linalg.eigh(gram)
    axes = axes[:, 1:] / np.sqrt(size[1:])  # the sum of all splines is the constant
    roughness, turned = linalg.eigh(axes.T @ rough @ axes)
    return offset, axes @ turned, np.maximum(roughness, 0)
