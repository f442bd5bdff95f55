"""How far off a guide reads latents: by rows that the program's own story tells, whose latents are known.

The mean h(x) of a guide N(h(x), t^2) may be made before its widths are trained and stay as it is. The evidence lower
bound then takes for t^2 what the posterior has at h(x) of each latent given the others: as if h(x) were the posterior's
mean, and no latent's error along another's. Over rows that the story tells, the mean square of z - h(x) is the variance
for which N(h(x), t^2) is nearest to their posteriors, on average (the sleep phase of wake-sleep).

Hinton, Dayan, Frey & Neal (1995), The wake-sleep algorithm for unsupervised neural networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.program import Program

LEAST = 1e-6  # deviation


class WithErrors:
    """Of programs whose guide has an error of what reads latents, `with_errors` (`Program.reading_errors`)."""

    with_errors = False

    @contextmanager
    def reading_errors(self) -> Iterator[bool]:
        self.with_errors = True
        try:
            yield True
        finally:
            self.with_errors = False


@torch.no_grad()
def told(program: Program, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """As many rows, with the same covariates, as the story tells them under a draw of the guide's parameters, and the
    values of all sites."""
    batch = batch.whole().annealed()
    kept = _sites(pyro.poutine.trace(program.guide).get_trace(batch))
    drawn = {
        name: site["value"]
        for name, site in kept.items()
        if not any(frame.name == "data" for frame in site["cond_indep_stack"])
    }
    story = pyro.poutine.trace(pyro.poutine.condition(program.story, data=drawn)).get_trace(batch.blank())
    values = {name: site["value"] for name, site in _sites(story).items()}
    return dataclasses.replace(batch, x=values["x"]), values


def _sites(trace: Any) -> dict[str, Any]:
    """Sample sites by name, without the plates' own."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }


@torch.no_grad()
def error(read: Tensor, true: Tensor) -> Tensor:
    """(latent,) root mean square of what is read (rows, latent) less what is true; no more than the latter varies, for
    so far off is who reads nothing."""
    apart = (read - true).square().mean(0).sqrt()
    return torch.minimum(apart, true.std(0)).clamp_min(LEAST)
