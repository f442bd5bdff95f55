"""What rows of a grid of contexts and perturbations say: pairs' means, and which contexts and perturbations are alike.

Likenesses are matrices of inner products of unit vectors, a vector of which nothing is known being like none other.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

SHARED = 3.0  # contexts that the cosine of two mean signatures counts for, beside those that have both
LEAST = 1e-6  # eigenvalue of a likeness; of a column's deviation, that of its signatures


def gather(x: Tensor, place: Tensor, contexts: int, perturbations: int, control: bool, size: int) -> dict[str, Tensor]:
    """Means of rows x (row, feature) at places (row,) of the grid, context * perturbations + perturbation.

    control: whether perturbation 0 is the control. Returns at, count and mean (size,), of measured pairs and then empty
    ones, mean less `base`; square, base and unit (feature,): squared deviations from pairs' means, the control's mean
    (0 without a control), the deviation of signatures; likenesses `near` (context, context) and `like` (perturbation,
    perturbation).
    """
    at, pair, count = place.unique(return_inverse=True, return_counts=True)
    mean = x.new_zeros(len(at), x.shape[1]).index_add_(0, pair, x) / count[:, None]
    square = (x - mean[pair]).square().sum(0)
    c, d = at // perturbations, at % perturbations
    is_control = (d == 0) & control
    base = mean[is_control].mean(0) if control else torch.zeros_like(square)
    mean = mean - base
    level = x.new_zeros(contexts, x.shape[1]).index_copy_(0, c[is_control], mean[is_control])
    told = ~is_control & (torch.isin(c, c[is_control]) | (not control))  # perturbed, in a context with a control
    signature, c, d = (mean - level[c])[told], c[told], d[told]
    unit = signature.std(0, correction=0).clamp_min(LEAST * x.std(0, correction=0))
    spread = level.std(0, correction=0).clamp_min(LEAST * x.std(0, correction=0))
    empty = size - len(at)
    return {
        "at": pad(at, (0, empty)),
        "count": pad(count.double(), (0, empty)),
        "mean": pad(mean, (0, 0, 0, empty)),
        "square": square,
        "base": base,
        "unit": unit,
        "near": cosines(level / spread),
        "like": response_likeness(signature / unit, c, d, perturbations),
    }


def response_likeness(signature: Tensor, c: Tensor, d: Tensor, perturbations: int) -> Tensor:
    """(perturbation, perturbation) mean cosine of two perturbations' signatures over contexts that have both, to which
    the cosine of their mean signatures counts as SHARED contexts more, made positive definite; signature: (pair,
    feature), c and d: (pair,) codes."""
    same = (c[:, None] == c).to(signature.dtype)
    one = torch.nn.functional.one_hot(d, perturbations).to(signature.dtype)  # (pair, perturbation)
    total, shared = (one.mT @ (cases * same) @ one for cases in (cosines(signature), torch.ones_like(same)))
    found = ((total + SHARED * cosines(one.mT @ signature)) / (shared + SHARED)).fill_diagonal_(1.0)
    value, vector = torch.linalg.eigh(found)
    found = vector * value.clamp_min(LEAST) @ vector.mT
    size = found.diagonal().sqrt()
    return (found / (size[:, None] * size)).fill_diagonal_(1.0)


def cosines(directions: Tensor) -> Tensor:
    """(row, row) inner products of unit rows; a row of zeros is like none but itself."""
    length = directions.norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, directions / length.clamp_min(1e-300), 0.0)
    return (unit @ unit.mT).fill_diagonal_(1.0)
