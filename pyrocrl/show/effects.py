"""What setting one latent changes: the numbers behind the report's page on effects and the demo's table."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.metrics import weighted_quantiles

DRAWS = 40  # of the posterior, over all chains
LEVELS = (0.05, 0.5, 0.95)


def observational_rows(data: Data) -> np.ndarray:
    """(row,) positions of the control's rows; without a control, of rows in environments without targets; of all rows
    where no targets are known or there are no such rows."""
    keep = data.control_rows
    if not keep.any():
        keep = np.asarray([not (data.targets or {}).get(name) for name in data.env_names])[data.env]
    return np.flatnonzero(keep) if keep.any() else np.arange(data.rows)


def effects(fit: Fit, data: Data, *, draws: int = DRAWS, seed: int = 0) -> xr.Dataset:
    """What do(z_k = its observational mean + 1 sd) changes against do(z_k = its observational mean), for each latent k.

    of_latents (do, latent, level): change of every latent, in its observational standard deviations; of_features (do,
    feature, level): log2 of the ratio of means for counts, else the difference of means; levels .05, .5 and .95 of
    the posterior. base and raised (do,): the two values that z_k is set to, in units of `fit.latents`. draws: of the
    posterior, over all chains. Both settings see the same draws and noise, so what is not downstream changes by 0.
    Where equations are not linear the interval also holds how rows differ: each draw is of one row.
    Raises InputError for a model without a graph, or one whose latents cannot be set one by one or are 0/1 states.
    """
    if fit.graph() is None:
        reject("fit", f"{fit.program.card.name}, without a graph", "a model with a graph over latents")
    if fit.program.reads_innovations:
        reject("fit", "latents known by their innovations alone", "a model that identifies structural equations")
    z = fit.latents(data.rows_at(observational_rows(data)))
    mean, spread = z.mean(0), z.std(0)
    each = max(2, -(-draws // fit.chains.count))
    weight = np.repeat(fit.weights / each, each)
    names = fit.names["latent"]
    latent, feature = [], []
    for k, name in enumerate(names):
        low, high = (
            fit.do(data, {name: float(value)}, draws=each, seed=seed) for value in (mean[k], mean[k] + spread[k])
        )
        if np.isin(np.delete(low["z"].to_numpy(), k, -1), (0.0, 1.0)).all() and len(names) > 1:
            reject("fit", "latents that are states, 0 or 1", "latents on a scale, which can be raised by one sd")
        moved = (high["z"].to_numpy() - low["z"].to_numpy()) / spread
        before, after = low["x"].to_numpy(), high["x"].to_numpy()
        change = np.log2(after / before) if data.counts else after - before
        latent.append(weighted_quantiles(moved.reshape(-1, moved.shape[-1]), weight, LEVELS))
        feature.append(weighted_quantiles(change.reshape(-1, change.shape[-1]), weight, LEVELS))
    return xr.Dataset(
        {
            "of_latents": (("do", "latent", "level"), np.moveaxis(np.array(latent), 1, -1)),
            "of_features": (("do", "feature", "level"), np.moveaxis(np.array(feature), 1, -1)),
            "base": ("do", mean),
            "raised": ("do", mean + spread),
        },
        coords={"do": names, "latent": names, "feature": fit.names["feature"], "level": list(LEVELS)},
        attrs={"unit": "log2 ratio of means" if data.counts else "difference of means"},
    )
