"""Size factors and baselines of counts of linear factor models."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocrl.batch import Batch


def size_of(batch: Batch, unit: Tensor) -> Tensor:
    """(rows, 1) size factors, over `unit`, their mean in the rows of the fit."""
    return (batch.size_factor / unit)[:, None]


def baselines(base: Tensor, batch: Batch) -> Tensor:
    """(rows, feature) log baselines, of a table (batch, feature), by the rows' technical batch."""
    if len(base) == 1:
        return base
    return (batch.group[:, None] == torch.arange(len(base), device=base.device)).to(base.dtype) @ base
