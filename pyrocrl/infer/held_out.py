"""The held-out objective of rows: the log-likelihood where it is closed, else the rows' part of the ELBO."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.infer.chains import Chains
from pyrocrl.infer.elbo import guide_trace, is_local, latent_values, sample_sites, traces
from pyrocrl.program import Program
from pyrocrl.turns import drawing

EVAL_CELLS = 4_000_000  # entries of x a held-out step may hold at once
HELD_OUT_DRAWS = 4
HELD_OUT_ROWS = 20_000  # more rows would not sharpen the choice between chains


def held_out_rows(program: Program, data: Data, fraction: float, seed: int) -> np.ndarray:
    """(row,) whether a fit keeps a row out: `fraction` of them, of each environment where the program knows those.

    A model that does not look at environments must not have its rows chosen by them either. Pairs stay together. None
    where the fraction is 0.
    """
    if not fraction:
        return np.zeros(data.rows, dtype=bool)
    return data.held_out(min(fraction, HELD_OUT_ROWS / data.rows), seed, by_env=program.card.needs_env)


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
    exact = program.row_log_likelihood(batch, latent_values(guide_trace(program, batch)))
    return row_elbo(program, batch) if exact is None else exact


def shared_terms(chains: Chains, batch: Batch, seed: int) -> Tensor:
    """(chain,) what the ELBO has beside the rows' own parts, priors and guides of global sites, averaged over a few
    draws with noise that `seed` fixes."""

    def terms(program: Program, batch: Batch) -> Tensor:
        guide, model = traces(program, batch)
        out = torch.zeros((), dtype=batch.dtype, device=batch.device)
        for trace, sign in ((model, 1.0), (guide, -1.0)):
            for _, site in sample_sites(trace):
                told = site["is_observed"] and not site["infer"].get("is_auxiliary")
                if not is_local(site) and not told:
                    out = out + sign * site["log_prob_sum"]
        return out

    some = batch.take(torch.arange(min(len(batch), HELD_OUT_DRAWS), device=batch.device))
    with drawing(seed), torch.no_grad():
        return torch.stack([chains.map(terms, some).double() for _ in range(HELD_OUT_DRAWS)]).mean(0)


def row_objectives(chains: Chains, batch: Batch, seed: int) -> Tensor:
    """(chain, row) `row_objective` of an annealed batch, averaged over a few draws with noise that `seed` fixes."""
    step = max(1, EVAL_CELLS // (batch.x.shape[1] * chains.count))
    out = []
    with drawing(seed), torch.no_grad():
        places = []
        for rows in batch.parts(step):
            part = batch.take(rows)
            out.append(torch.stack([chains.map(row_objective, part).double() for _ in range(HELD_OUT_DRAWS)]).mean(0))
            places.append(rows)
    return torch.cat(out, 1)[:, torch.cat(places).argsort()]
