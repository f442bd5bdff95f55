"""Evidence of conjugate regressions on every subset of their candidates at once.

    y = w' phi + s eps,   w ~ N(0, s^2),   1 / s^2 ~ Gamma(SHAPE, RATE)     as in `regression`

One candidate after another is left out or swept out of the matrix of sums of products, so that 2^C regressions cost
about as much as 2^C numbers, not 2^C factorisations (Furnival & Wilson 1974).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrocrl.exact.regression import regress

SHAPE, RATE = 0.5, 0.01  # of the precision: noise from all of a standardised node's variance to a hundredth of it


def log_evidence(moments: Tensor, count: Tensor) -> Tensor:
    """(..., 2**candidates) log p(y | the subset's columns); bit c of a subset says whether candidate c is in it.

    moments: (..., 1 + candidates + 1, the same), sums of products of (a column that is always in, candidates, y) over
    count (...) rows.
    """
    size = moments.shape[-1]
    ridge = torch.ones(size, dtype=moments.dtype, device=moments.device)
    ridge[-1] = 0.0  # y has none
    left = (moments + ridge.diag()).unsqueeze(-3)  # (..., subset, remaining columns, the same)
    left, volume = _sweep(left)
    for _ in range(size - 2):
        swept, log_pivot = _sweep(left)
        left = torch.cat([left[..., 1:, 1:], swept], -3)
        volume = torch.cat([volume, volume + log_pivot], -1)
    return _student(left[..., 0, 0], volume, count[..., None])


def log_evidence_of_all(moments: Tensor, count: Tensor) -> Tensor:
    """(..., 1) the same of all candidates together; a column of zeros is a candidate that is left out."""
    one = torch.ones_like(count)
    root, _, left = regress(moments[..., :-1, :-1], moments[..., :-1, -1:], moments[..., -1:, -1], one)
    return _student(left, 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True), count[..., None])


def _student(square: Tensor, volume: Tensor, count: Tensor) -> Tensor:
    """Log-density of count rows whose regression leaves this sum of squares."""
    shape = SHAPE + 0.5 * count
    constant = torch.lgamma(shape) - math.lgamma(SHAPE) + SHAPE * math.log(RATE) - 0.5 * math.log(2 * math.pi) * count
    return constant - 0.5 * volume - shape * (RATE + 0.5 * square.clamp_min(0.0)).log()


def _sweep(left: Tensor) -> tuple[Tensor, Tensor]:
    """(what the first column leaves of the others, logarithm of its pivot)."""
    pivot = left[..., 0, 0]
    swept = left[..., 1:, 1:] - left[..., 1:, :1] * (left[..., :1, 1:] / pivot[..., None, None])
    return swept, pivot.log()
