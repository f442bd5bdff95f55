"""Gates of a sparse decoder, one at a time: what each adds to the likelihood of its feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gains(
    log_density: Callable[[Tensor, Tensor], Tensor], draws: Sequence[Tensor], mask: Tensor, latents: Sequence[int]
) -> Tensor:
    """(feature, latent) log-likelihood with each gate open less that with it shut, summed over draws of the latents;
    0 for others than `latents`.

    log_density(z, mask): (feature,) of all rows. draws: each (rows, latent). mask: (feature, latent) in {0, 1}, the
    state of the other gates of a feature, which depends on its own row of the mask alone: one pass with all gates of a
    latent turned over gives them all. A latent on which fewer than two features load may count as switched off, so
    where only one would be left each state has a pass of its own.
    """
    out = torch.zeros_like(mask)
    for z in draws:
        now = log_density(z, mask)
        for k in latents:
            own = mask[:, k]
            if int(own.sum()) == len(own) - 1:
                out[:, k] += _with(log_density, z, mask, k, 1.0) - _with(log_density, z, mask, k, 0.0)
            else:
                out[:, k] += (1.0 - 2.0 * own) * (_with(log_density, z, mask, k, 1.0 - own) - now)
    return out


def _with(
    log_density: Callable[[Tensor, Tensor], Tensor], z: Tensor, mask: Tensor, k: int, column: Tensor | float
) -> Tensor:
    """The log-likelihood with this column of the mask for latent k."""
    other = mask.clone()
    other[:, k] = column
    return log_density(z, other)
