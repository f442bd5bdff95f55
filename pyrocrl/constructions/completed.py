"""Rows made whole for a chain's start, which reads moments, ranks or principal components: of the fit itself, which
leaves out what is missing, nothing rests on what is filled in here."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.constructions.matrix_starts import filled
from pyrocrl.parts.observation import column_deviations, column_means


@torch.no_grad()
def completed(batch: Batch, factors: int, generator: torch.Generator, size: Tensor | None = None) -> Batch:
    """The same rows with a draw for each value that is missing, given the row's others and normal factors: so many, but
    fewer than half of the features, which expectation-maximisation finds. size: (rows,) of counts, the factors being
    of log(1 + x / size). A batch that lacks nothing is returned as it is, and draws nothing."""
    if batch.known is None:
        return batch
    known, seen = batch.known, batch.x if size is None else torch.log1p(batch.x / size[:, None])
    centre, spread = column_means(seen, known), column_deviations(seen, known).clamp_min(1e-8)
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    factors = max(1, min(factors, (seen.shape[1] - 1) // 2, len(seen) - 1))
    standard = ((seen - centre) / spread).double().cpu().numpy()
    drawn = torch.as_tensor(filled(standard, known.cpu().numpy(), factors, rng)).to(seen) * spread + centre
    if size is not None:
        drawn = (drawn.clamp_min(0).expm1() * size[:, None]).round()
    return dataclasses.replace(batch, x=torch.where(known, batch.x, drawn), known=None)
