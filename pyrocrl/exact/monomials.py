"""Monomials of several variables, kappa(z), and their derivatives."""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor


def slots(variables: int, degree: int) -> Tensor:
    """(monomial, degree) the factors of every monomial up to a degree: 0 is the number 1, k + 1 is variable k."""
    return torch.tensor(list(combinations_with_replacement(range(variables + 1), degree)))


def powers(z: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """kappa(z) (rows, monomial), and its derivatives (rows, variable, monomial)."""
    factors = torch.cat([torch.ones_like(z[:, :1]), z], 1)[:, slots]  # (rows, monomial, degree)
    value, slope = factors.prod(-1), torch.zeros_like(z)[:, :, None]
    for s in range(factors.shape[-1]):
        rest = torch.ones_like(value)
        for other in range(factors.shape[-1]):
            rest = rest if other == s else rest * factors[..., other]
        own = slots[:, s] == torch.arange(1, z.shape[1] + 1, device=z.device)[:, None]
        slope = slope + rest[:, None] * own
    return value, slope
