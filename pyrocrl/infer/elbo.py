"""The evidence lower bound, written so that `torch.func.vmap` can batch it over chains.

Pyro's own ELBO classes call `.item()`; these functions trace the guide, replay the model and add up log-densities.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..data import Batch
from ..program import Program

if TYPE_CHECKING:
    from .chains import Chains

EVAL_CELLS = 4_000_000  # entries of x a held-out step may hold at once
HELD_OUT_DRAWS = 4
Trace = Any  # a pyro.poutine.Trace


def traces(program: Program, batch: Batch) -> tuple[Trace, Trace]:
    """(guide trace, model trace replayed on it), with log-densities scaled by the plates."""
    guide = poutine.trace(program.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(batch)
    guide.compute_log_prob()
    model.compute_log_prob()
    return guide, model


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


def row_elbo(program: Program, batch: Batch) -> Tensor:
    """(rows,) each row's own part of the ELBO, unscaled: the sites inside the data plate."""
    guide, model = traces(program, batch)
    out = torch.zeros(len(batch), dtype=batch.dtype, device=batch.device)
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        for _, site in sample_sites(trace):
            if is_local(site):
                out = out + sign * site["unscaled_log_prob"].expand(len(batch))
    return out


def row_objective(program: Program, batch: Batch) -> Tensor:
    """(rows,) held-out objective: the log-likelihood in closed form where there is one, else `row_elbo`."""
    guide = poutine.trace(program.guide).get_trace(batch)
    exact = program.row_log_likelihood(batch, latent_values(guide))
    return row_elbo(program, batch) if exact is None else exact


def row_objectives(chains: Chains, batch: Batch, seed: int) -> Tensor:
    """(chain, row) `row_objective` of an annealed batch, averaged over a few draws with noise that `seed` fixes."""
    step = max(1, EVAL_CELLS // (batch.x.shape[1] * chains.count))
    out = []
    with torch.no_grad(), torch.random.fork_rng(devices=[batch.device] if batch.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(batch), step):
            part = batch.take(torch.arange(start, min(start + step, len(batch)), device=batch.device))
            out.append(torch.stack([chains.map(row_objective, part).double() for _ in range(HELD_OUT_DRAWS)]).mean(0))
    return torch.cat(out, 1)


def latent_values(guide: Trace) -> dict[str, Tensor]:
    """Drawn values of a guide's latent sites by name, auxiliary ones included."""
    return {name: site["value"] for name, site in sample_sites(guide)}


def is_local(site: dict) -> bool:
    """Whether a site sits inside the data plate."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def sample_sites(trace: Trace) -> list[tuple[str, dict]]:
    """A trace's sample sites by name, without the plates' subsampling."""
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample" and not _is_subsample(site)]


def _is_subsample(site: dict) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"


def validate(program: Program, batch: Batch) -> None:
    """One step with Pyro's checks on: the guide covers the latents, supports and shapes agree.

    Raises ValueError naming the sites where guide and model disagree.
    """
    with pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide, model = traces(program, batch)
    latent = {n for n, s in sample_sites(model) if not s["is_observed"] and not s["infer"].get("is_auxiliary")}
    guided = {n for n, s in sample_sites(guide) if not s["infer"].get("is_auxiliary")}
    if latent != guided:
        missing, surplus = sorted(latent - guided), sorted(guided - latent)
        raise ValueError(
            f"{type(program).__name__}: guide and model differ: not in the guide {missing}, not in the model {surplus}"
        )
