"""Maps that are iterated: how they stretch at points, and where they lead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
CELLS = 20_000_000  # entries of Jacobians that are held at once
STILL = 1e-10  # a step below which nothing moves any more


def spectral_radius(f: Map, x: Tensor) -> Tensor:
    """(rows,) the largest modulus of the eigenvalues of f's Jacobian at each row of x (rows, feature).

    A fixed point where it is below 1 draws what is near to itself; f maps (feature,) to (feature,).
    """
    slope = torch.func.vmap(torch.func.jacrev(f))
    parts = x.split(max(1, CELLS // x.shape[1] ** 2))
    return torch.cat([torch.linalg.eigvals(slope(part)).abs().amax(1) for part in parts])


def iterate(f: Map, x: Tensor, steps: int) -> Tensor:
    """f applied to each row of x (rows, feature) `steps` times, or until nothing moves."""
    for _ in range(steps):
        last, x = x, f(x)
        if bool(((x - last).abs() < STILL).all()):
            break
    return x
