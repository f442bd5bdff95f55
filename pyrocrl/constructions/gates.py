"""Gates of a sparse decoder, one at a time: what each adds to the likelihood of its feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gains(log_density: Callable[[Tensor, Tensor], Tensor], draws: Sequence[Tensor], mask: Tensor) -> Tensor:
    """(feature, latent) log-likelihood with each gate open less that with it shut, summed over draws of the latents.

    log_density(z, mask): (feature,) of all rows. draws: each (rows, latent). mask: (feature, latent) in {0, 1}, the
    state of the other gates of a feature, which depends on its own row of the mask alone: one pass per latent and state
    gives all gates.
    """
    out = torch.zeros_like(mask)
    for z in draws:
        for k in range(mask.shape[1]):
            shut, opened = mask.clone(), mask.clone()
            shut[:, k], opened[:, k] = 0.0, 1.0
            out[:, k] += log_density(z, opened) - log_density(z, shut)
    return out
