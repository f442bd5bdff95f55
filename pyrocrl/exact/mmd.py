"""The maximum mean discrepancy between two samples (Gretton et al. 2012, A kernel two-sample test)."""

from __future__ import annotations

import torch
from torch import Tensor


def mmd2(a: Tensor, weight_a: Tensor, b: Tensor, weight_b: Tensor, width: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between rows a (n, d) and b (m, d) with weights (n,), (m,) of 0 or 1.

    The biased V-statistic by Gram matrices, kernel sum_s exp(-|x - y|^2 / (s width)) over s = 4, 2, 1, 1/2, 1/4.
    """
    both = torch.cat([a, b])
    share = torch.cat([weight_a / weight_a.sum().clamp_min(1.0), -weight_b / weight_b.sum().clamp_min(1.0)])
    norm = both.square().sum(-1)
    square = (norm[:, None] + norm - 2.0 * both @ both.mT).clamp_min(0.0)
    kernel = (-square / (4.0 * width)).exp()
    gram = kernel
    for _ in range(4):  # widths 4, 2, 1, 1/2, 1/4
        kernel = kernel.square()
        gram = gram + kernel
    some = (weight_a.sum() > 0) & (weight_b.sum() > 0)
    return (share @ gram @ share) * some
