"""Smooth functions of numbers between 0 and 1: cubic splines, in the order of their roughness.

A curve is sum_b c_b phi_b(u). The phi_b are cubic splines on `PIECES` equal pieces, of mean 0, orthonormal under the
uniform law, that make the integral of squared second derivatives diagonal (Demmler & Reinsch 1975): phi_1 is a line,
later ones bend ever faster. `SHARE` is the share of a curve's prior variance that each coefficient has, with c_b ~
N(0, SHARE_b): the root of what a penalty of second derivatives would give, for curves may have kinks.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, special
from torch import Tensor

from pyrocrl.exact.splines import by_roughness, splines

Floats = NDArray[np.float64]
PIECES = 7
BASIS = PIECES + 2  # functions: splines but for the constant
CELLS = 100  # of the grid on which posteriors of latents are held
USUAL = 500.0  # roughness at which a coefficient's prior variance is halved, about: that of one bend


def _prepared() -> tuple[Floats, Floats, Floats]:
    """offset (PIECES + 3,) means of the splines, turn (PIECES + 3, BASIS) from splines less these to phi, SHARE."""
    offset, turn, roughness = by_roughness(PIECES)
    turn = turn * np.sign((linalg.pinv(turn) * np.arange(PIECES + 3)).sum(1))  # the line ascends
    share = 1 / np.sqrt(1 + roughness / USUAL)
    return offset, turn, share / share.sum()


_OFFSET, _TURN, SHARE = _prepared()
GRID: Floats = (np.arange(CELLS) + 0.5) / CELLS


@cache
def _turns(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(_OFFSET, dtype=dtype, device=device), torch.as_tensor(_TURN, dtype=dtype, device=device)


def basis(u: Tensor) -> Tensor:
    """(..., BASIS) the phi_b at u."""
    offset, turn = _turns(u.dtype, u.device)
    return (splines(u, PIECES) - offset) @ turn


ON_GRID: Floats = basis(torch.as_tensor(GRID)).numpy()  # (CELLS, BASIS)
_QUANTILE = np.sqrt(2) * special.erfinv(2 * GRID - 1)
NORMAL_LINE: Floats = _QUANTILE @ ON_GRID / np.linalg.norm(_QUANTILE @ ON_GRID)  # (BASIS,) of a line of a normal latent


class Constants(NamedTuple):
    """`SHARE`, `ON_GRID` and `NORMAL_LINE` as tensors."""

    share: Tensor
    on_grid: Tensor
    line: Tensor


@cache
def constants(dtype: torch.dtype, device: torch.device) -> Constants:
    """Of this type, sent to this device once."""
    return Constants(*(torch.as_tensor(part, dtype=dtype, device=device) for part in (SHARE, ON_GRID, NORMAL_LINE)))


def on_grid(coefficients: Floats) -> Floats:
    """(..., CELLS) curves of these coefficients (..., basis)."""
    out: Floats = coefficients @ ON_GRID.T
    return out
