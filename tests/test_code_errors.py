"""Errors of a dictionary by the scores of rows: these are slopes, and know what unseen codes lose."""

from __future__ import annotations

import math

import torch

from pyrocrl.constructions import code_errors
from pyrocrl.constructions.code_errors import Prior
from pyrocrl.constructions.dictionaries import Dictionary
from pyrocrl.dists import PositiveSpikeSlab

ROWS, FEATURES, LATENTS = 1_500, 4, 5
PRIOR = Prior(0.7, 1.5, 0.1, math.log(0.3), 0.5, LATENTS)


def drawn(noise: float) -> tuple[Dictionary, torch.Tensor, torch.Tensor]:
    """A dictionary, rows that follow it, and their codes."""
    torch.manual_seed(0)
    w = torch.nn.functional.normalize(torch.randn(FEATURES, LATENTS), dim=0)
    rate, spread = torch.full((LATENTS,), 0.2), torch.full((LATENTS,), 0.4)
    one = Dictionary(w, 0.1 * torch.randn(FEATURES), torch.full((FEATURES,), noise**2), spread, rate)
    z = PositiveSpikeSlab(rate, torch.ones(()), spread).expand([ROWS, LATENTS]).sample()
    return one, one.center + z @ w.mT + noise * torch.randn(ROWS, FEATURES), z


def test_scores_of_rows_are_0_on_average_at_the_truth() -> None:
    one, x, _ = drawn(0.1)
    scores = code_errors._scores(x, one, LATENTS, torch.Generator().manual_seed(0))
    size = LATENTS * FEATURES + 2 * FEATURES + 2 * LATENTS
    assert scores.shape == (ROWS, size)
    assert (scores.mean(0) / (scores.std(0) / math.sqrt(ROWS))).abs().max() < 4.5


def test_errors_are_larger_where_codes_are_told_less() -> None:
    """Above those of a regression on the codes, for where magnitudes have their mode is not known either; with much
    noise farther above."""
    ratio = []
    for noise in (0.02, 0.3):
        one, x, z = drawn(noise)
        found = code_errors.errors(x, one, LATENTS, PRIOR, torch.Generator().manual_seed(0))
        design = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        known = noise * torch.linalg.inv(design.mT @ design).diagonal().sqrt()[:LATENTS]
        assert all(torch.isfinite(part).all() and (part > 0).all() for part in found)
        ratio.append(float((found.w / known).median()))
    assert 1.0 < 1.2 * ratio[0] < ratio[1]
