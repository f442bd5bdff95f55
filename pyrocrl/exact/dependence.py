"""Tests of numbers that should be uniform on 0 to 1 and independent of each other and of noise, by smooth functions.

Each adds up squared means of products of functions that are orthonormal under the uniform law (`curves.basis`): rows
times these is chi-squared, and non-central where a part of a variance is let be.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrocrl.exact.curves import basis

Floats = NDArray[np.float64]
SMOOTH = 3  # functions of a number


def _functions(u: Floats, count: int = SMOOTH) -> Floats:
    """(row, number, function)."""
    out: Floats = basis(torch.as_tensor(u))[..., :count].numpy()
    return out


def independence(u: Floats, let_be: float) -> tuple[float, tuple[int, int], float]:
    """p that any two columns of u (row, number) are dependent by more than `let_be` of squared correlations, corrected
    for the number of pairs; which, and their sum of squared correlations."""
    phi, rows = _functions(u), len(u)
    out = (1.0, (0, 1), 0.0)
    pairs = list(itertools.combinations(range(u.shape[1]), 2))
    for k, m in pairs:
        product = phi[:, k].T @ phi[:, m] / rows
        size = float(np.square(product).sum())
        p = min(1.0, float(stats.ncx2.sf(rows * size, SMOOTH**2, rows * let_be)) * len(pairs))
        out = min(out, (p, (k, m), size))
    return out


def interactions(left: Floats, u: Floats, let_be: Floats) -> tuple[float, int, tuple[int, ...]]:
    """p that noise left (row, feature), of variance 1, goes with a column of u (row, number), or with two together, by
    more than `let_be` (feature,) of its variance, corrected for the number of tests; which feature and columns."""
    phi, rows = _functions(u), len(u)
    terms: dict[tuple[int, ...], Floats] = {(k,): phi[:, k] for k in range(u.shape[1])}
    for k, m in itertools.combinations(range(u.shape[1]), 2):
        terms[k, m] = (phi[:, k, :2, None] * phi[:, m, None, :2]).reshape(rows, -1)
    out: tuple[float, int, tuple[int, ...]] = (1.0, 0, (0,))
    for which, design in terms.items():
        size = np.square(left.T @ design / rows).sum(1)
        p = stats.ncx2.sf(rows * size, design.shape[1], rows * let_be) * left.shape[1] * len(terms)
        j = int(p.argmin())
        out = min(out, (min(1.0, float(p[j])), j, which))
    return out
