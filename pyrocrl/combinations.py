"""Combinations of interventions never seen in a fit: predicted means of x, and their errors beside simple baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from .data import Batch, Data
from .errors import one_of, reject
from .infer.chains import mix
from .posterior import Fit, global_sites

ROWS = 1_000  # of simulated latents for each draw of the equations


def combination_mean(
    fit: Fit, data: Data, environments: Sequence[str], *, draws: int = 20, seed: int = 0
) -> np.ndarray:
    """(feature,) mean of x where the interventions of `environments` (names) are applied together.

    Averaged over `draws` posterior draws of the equations of each chain, chains by their weights; covariates of rows
    are those of `data`. Raises InputError for unknown environments, and where the model knows no interventions.
    """
    for name in environments:
        one_of("environments", name, fit.names["env"])
    places = [fit.names["env"].index(name) for name in environments]
    rows = np.random.default_rng(seed).integers(0, data.rows, ROWS)

    def latents(program: Any, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        return program.prior_latents(batch, sites, envs=places)

    return _expected(fit, data.rows_at(rows), latents, draws, seed).mean(0)


def expected_rows(fit: Fit, data: Data, *, draws: int = 20, seed: int = 0) -> np.ndarray:
    """(data, feature) mean of x given new latents of each row's own environment, for programs with a `LatentSEM`.

    Averaged as in `combination_mean`.
    """

    def latents(program: Any, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        return program.sem.simulate(sites, batch.env)

    return _expected(fit, data, latents, draws, seed)


def _expected(
    fit: Fit, data: Data, latents: Callable[[Any, Batch, dict[str, Tensor]], Tensor], draws: int, seed: int
) -> np.ndarray:
    """(data, feature) E[x | z] of latents drawn anew with each posterior draw of the equations."""
    batch = fit.batch_of(data).annealed().whole()
    total = np.zeros((data.rows, data.features))
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        for chain, (weight, program) in enumerate(zip(fit.weights, fit.programs(), strict=True)):
            torch.manual_seed(mix(seed, chain, 37))
            for _ in range(draws):
                sites = global_sites(program, batch.take(torch.arange(1)).whole())
                decode = pyro.poutine.condition(program.decode, data=sites)
                total += weight / draws * decode(latents(program, batch, sites), batch).double().cpu().numpy()
    return total


def pair_errors(
    fit: Fit, train: Data, pairs: Data, parts: Mapping[str, Sequence[str]], *, draws: int = 20, seed: int = 0
) -> dict[str, float]:
    """Errors of the predicted mean of x in each environment of `pairs`, averaged over its environments.

    parts: environment of `pairs` -> the environments of `train`, the rows of the fit, that it combines. An error is the
    root mean square over features of the difference of means, in standard deviations of the control rows of `train`
    (environment 0); counts are divided by size factors. `model`; `additive`: control mean plus each part's mean
    difference; `control` and `training`: the mean of control rows, of all perturbed rows of `train`; `floor`: two
    samples of the pair's size, expected. Raises InputError for unknown environments or pairs without rows.
    """
    x = per_size(train)
    control = x[train.env == 0]
    spread = control.std(0)
    spread[spread == 0] = 1.0
    base = control.mean(0)
    means = {name: x[train.env == e].mean(0) for e, name in enumerate(train.env_names) if (train.env == e).any()}
    perturbed = x[train.env != 0].mean(0)
    seen = per_size(pairs)
    errors: dict[str, list[float]] = {}
    for name, singles in parts.items():
        one_of("parts", name, pairs.env_names)
        for single in singles:
            one_of(f"parts[{name!r}]", single, means)
        own = seen[pairs.env_labels() == name]
        if len(own) < 2:
            reject("pairs", f"{len(own)} row(s) of {name!r}", "2 or more")
        guesses = {
            "model": combination_mean(fit, train, singles, draws=draws, seed=seed) / mean_size(train),
            "additive": base + sum(means[single] - base for single in singles),
            "control": base,
            "training": perturbed,
            "floor": own.mean(0) + own.std(0) * np.sqrt(2.0 / len(own)),
        }
        for key, guess in guesses.items():
            errors.setdefault(key, []).append(float(np.sqrt((((guess - own.mean(0)) / spread) ** 2).mean())))
    if not errors:
        reject("parts", "none", "one combination or more")
    return {key: float(np.mean(values)) for key, values in errors.items()}


def mean_size(data: Data) -> float:
    """Mean size factor of counts, else 1."""
    return 1.0 if data.size_factor is None or not data.counts else float(data.size_factor.mean())


def per_size(data: Data) -> np.ndarray:
    """(data, feature) dense x, counts divided by the rows' size factors."""
    x = data.x.toarray() if hasattr(data.x, "toarray") else np.asarray(data.x)
    x = x.astype(np.float64)
    return x / data.size_factor[:, None] if data.counts and data.size_factor is not None else x
