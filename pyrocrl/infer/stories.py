"""A program's story under conditioning: posterior draws, predictions and simulations are all read off its trace.

`guide` draws what a fit kept, `recover` what its `model` summed out; the story conditioned on both has every site and
every deterministic read-out. Latents that a story draws one by one, ``z_<k>``, stand together as ``z`` (rows, latent).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.infer.elbo import guide_trace, is_local, is_subsample, latent_values, sample_sites
from pyrocrl.program import Program

Sites = dict[str, Tensor]
ONE = re.compile(r"z_(\d+)")


def drawn(program: Program, batch: Batch, *, local: bool = True) -> Sites:
    """One posterior draw of the story's sites, but those that the rows determine: by the guide, then by `recover`.

    local: whether sites of single rows are among them.
    """
    return {name: site["value"] for name, site in _drawn(program, batch) if local or not is_local(site)}


def drawn_and_told(program: Program, batch: Batch, density: bool = True) -> tuple[Sites, Any, Tensor | float]:
    """A posterior draw, the story's trace with it, and log p - log q of it: the story's density against that of the
    guide and of `recover` together, which is the objective where `recover` is exact. NaN without `density`, and the
    trace then without log-densities."""
    sites = _drawn(program, batch)
    values = {name: site["value"] for name, site in sites}
    trace = told(program, batch, values)
    if not density:
        return values, trace, math.nan
    trace.compute_log_prob()
    p = sum(site["log_prob_sum"] for _, site in sample_sites(trace))
    q = sum((site["fn"].log_prob(site["value"]) * site["scale"]).sum() for _, site in sites)
    return values, trace, p - q


def _drawn(program: Program, batch: Batch) -> list[tuple[str, dict]]:
    kept = guide_trace(program, batch)
    return [*sample_sites(kept), *_recovered(program, batch, latent_values(kept))]


def centre(program: Program, batch: Batch) -> Sites:
    """The guide's sites outside the data plate at their means, 0/1 sites at the more probable value; and what `model`
    summed out, drawn given them. Where `latents` are innovations, weights are 0: then z are they."""
    guide = guide_trace(program, batch)
    means, kept = {}, latent_values(guide)
    for name, site in sample_sites(guide):
        if not is_local(site):
            mean = site["fn"].mean
            means[name] = (mean > 0.5).to(mean.dtype) if _is_binary(site["fn"]) else mean
    lost = _recovered(program, batch, kept | means)
    out = means | {name: site["value"] for name, site in lost if not is_local(site)}
    if program.reads_innovations:
        d = program.latents_count
        out["weight"] = torch.zeros(d, d, dtype=batch.dtype, device=batch.device)
    return out


def _recovered(program: Program, batch: Batch, kept: Mapping[str, Tensor]) -> list[tuple[str, dict]]:
    """Sites of what `model` summed out, drawn given those it kept; none where the story itself is fitted."""
    if program.fits_story:
        return []
    return sample_sites(pyro.poutine.trace(program.recover).get_trace(batch, **kept))


def _is_binary(law: Any) -> bool:
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is torch.distributions.constraints.boolean


def told(program: Program, batch: Batch, sites: Mapping[str, Tensor]) -> Any:
    """The story's trace with these sites set; with a `blank` batch x and what is not set are simulated."""
    story = pyro.poutine.condition(program.story, data=spread(sites))
    return pyro.poutine.trace(story).get_trace(batch)


def spread(sites: Mapping[str, Tensor]) -> Sites:
    """The sites, z (rows, latent) also as its columns z_<k>."""
    z = sites.get("z")
    columns = {} if z is None else {f"z_{k}": z[..., k] for k in range(z.shape[-1])}
    return {**sites, **columns}


def values(trace: Any) -> Sites:
    """Values of a story's sites and deterministic read-outs by name, without x; latents z_<k> stacked as z.

    Tables whose lines are drawn as well (`parts.latent_sem.table_of`) are left out: draws of them are not comparable.
    """
    out: Sites = {}
    columns: dict[int, Tensor] = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or is_subsample(node) or name == "x":
            continue
        if node["infer"].get("is_auxiliary") or node["infer"].get("drawn_lines"):
            continue
        if type(node["fn"]).__name__ == "Unit":  # a factor has no value
            continue
        if one := ONE.fullmatch(name):
            columns[int(one[1])] = node["value"]
        else:
            out[name] = node["value"]
    if columns:
        out["z"] = torch.stack(torch.broadcast_tensors(*(columns[k] for k in sorted(columns))), -1)
    return out


def log_likelihood(trace: Any, given: Mapping[str, Tensor]) -> Tensor:
    """(rows,) log-density of what is observed of each row: x, and latents that x determines."""
    trace.compute_log_prob()
    known = spread(given)
    parts = [
        s["unscaled_log_prob"] for n, s in sample_sites(trace) if s["is_observed"] and is_local(s) and n not in known
    ]
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0)


def outside_rows(sites: Mapping[str, Tensor], trace: Any) -> Sites:
    """Those of these sites that are not of single rows."""
    return {name: value for name, value in sites.items() if name in trace.nodes and not is_local(trace.nodes[name])}


def at_rows(sites: Mapping[str, Tensor], trace: Any, rows: Tensor) -> Sites:
    """These sites, those of single rows at the positions `rows` alone; z may stand for columns of the trace."""

    def local(name: str) -> bool:
        return is_local(trace.nodes[name]) if name in trace.nodes else name == "z"

    return {name: value[rows] if local(name) else value for name, value in sites.items()}


def acting(latents: Mapping[int, float]) -> dict[str, Any]:
    """ChiRho's actions that set latents: the site z_<k> to a number; of a story that draws z at once, its column."""

    def columns(z: Tensor) -> Tensor:
        out = z.clone()
        for k, value in latents.items():
            out[..., k] = value
        return out

    each: dict[str, Any] = {f"z_{k}": _constant(value) for k, value in latents.items()}
    return {**each, "z": columns} if latents else {}


def _constant(value: float) -> Any:
    return lambda z: torch.full_like(z, value)


def expected(program: Program, batch: Batch, sites: Mapping[str, Tensor]) -> Tensor:
    """(rows, feature) mean of x given these sites; rows' latents that are not among them are drawn from the story."""
    return told(program, batch.blank(), sites).nodes["x"]["fn"].mean
