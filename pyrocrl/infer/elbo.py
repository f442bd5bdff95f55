"""The evidence lower bound, written so that `torch.func.vmap` can batch it over chains.

Pyro's own ELBO classes call `.item()`; these functions trace the guide, replay the model and add up log-densities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.program import Program
from pyrocrl.turns import drawing

Trace = Any  # a pyro.poutine.Trace


def traces(program: Program, batch: Batch, fixed: Trace | None = None) -> tuple[Trace, Trace]:
    """(guide trace, model trace replayed on it), with log-densities scaled by the plates.

    fixed: a guide's trace whose sites keep their values.
    """
    guide = guide_trace(program, batch, fixed)
    model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(batch)
    guide.compute_log_prob()
    model.compute_log_prob()
    return guide, model


def guide_trace(program: Program, batch: Batch, fixed: Trace | None = None) -> Trace:
    """The guide's trace; of a program with a `completion`, with the sites of the model that its guide lacks."""
    completion = program.completion
    guide: Callable[[Batch], Any] = program.guide if completion is None else completion.after(program)
    return poutine.trace(guide if fixed is None else poutine.replay(guide, trace=fixed)).get_trace(batch)


def elbo(program: Program, batch: Batch) -> Tensor:
    """One-sample estimate of the ELBO of all `batch.total` rows; latent sites weighted by `batch.kl_weight`."""
    guide, model = traces(program, batch)
    fit: Tensor | float = 0.0
    prior: Tensor | float = 0.0
    for _, site in sample_sites(model):
        if site["is_observed"] and not site["infer"].get("is_auxiliary"):
            fit = fit + site["log_prob_sum"]
        else:
            prior = prior + site["log_prob_sum"]
    for _, site in sample_sites(guide):
        prior = prior - site["log_prob_sum"]
    return fit + batch.kl_weight * prior


def latent_values(guide: Trace) -> dict[str, Tensor]:
    """Drawn values of a guide's latent sites by name, auxiliary ones included."""
    return {name: site["value"] for name, site in sample_sites(guide)}


def is_local(site: dict) -> bool:
    """Whether a site sits inside the data plate."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def sample_sites(trace: Trace) -> list[tuple[str, dict]]:
    """A trace's sample sites by name, without the plates' subsampling."""
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample" and not is_subsample(site)]


def is_subsample(site: dict) -> bool:
    """Whether a site is a plate's choice of rows."""
    return type(site["fn"]).__name__ == "_Subsample"


def validate(program: Program, batch: Batch) -> None:
    """One step with Pyro's checks on: the guide covers the latents, supports and shapes agree.

    Raises ValueError naming the sites where guide and model disagree.
    """
    with drawing(), pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide, model = traces(program, batch)
    latent = {n for n, s in sample_sites(model) if not s["is_observed"] and not s["infer"].get("is_auxiliary")}
    guided = {n for n, s in sample_sites(guide) if not s["infer"].get("is_auxiliary")}
    if any(name.startswith("z_") for name in latent & guided):  # drawn together, as z, then one by one
        guided -= {"z"}
    if latent != guided:
        missing, surplus = sorted(latent - guided), sorted(guided - latent)
        raise ValueError(
            f"{type(program).__name__}: guide and model differ: not in the guide {missing}, not in the model {surplus}"
        )
