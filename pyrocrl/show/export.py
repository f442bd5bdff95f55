"""What a fit found, for other tools: latents as a table or CSV, and everything by cell and gene in an AnnData.

An AnnData gets, with NaN for rows and features of its own that the fit's data do not have:

    obsm["X_pyrocrl"], obsm["X_pyrocrl_sd"]          (obs, latent) posterior mean and standard deviation
    obs["pyrocrl_changed"]                           the latent that changed since the row before, of rows after
    varm["pyrocrl_mask"], varm["pyrocrl_loadings"]   (var, latent) inclusion probabilities, signed loadings
    uns["pyrocrl"]   names of latents, graph (parent, child) and targets (env, latent) as probabilities, verdict, run

where the model has them.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyrocrl import io
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.files import replacing_path, write_bytes
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.diagnose import Verdict
from pyrocrl.show import plots

KEY = "pyrocrl"


def to_frame(fit: Fit, data: Data | None = None, *, draws: int = 20) -> pd.DataFrame:
    """A table of latents: posterior mean and, as `<latent>_sd`, standard deviation; its index has the rows' names.

    Of rows after, where the model says what changed since the row before: `changed`, the most probable latent or
    "none", and `changed_p`, its probability.

    data: any rows with the fit's features; None = the rows of the fit. draws: of each chain, for standard deviations.
    """
    data = fit._data(data)
    names = fit.names["latent"]
    table = pd.DataFrame(fit.latents(data), data.row_labels(), names)
    sd = fit.latents_sd(data, draws=draws)
    if sd is not None:
        table = table.join(pd.DataFrame(sd, table.index, [f"{name}_sd" for name in names]))
    if (chance := fit.row_targets(data)) is not None:
        called = np.asarray([*names, "none"])[chance.argmax(1)]
        found = {"changed": np.where(data.after, called, ""), "changed_p": np.where(data.after, chance.max(1), np.nan)}
        table = table.assign(**found)
    return table


def to_anndata(
    fit: Fit,
    data: Data | None = None,
    adata: Any = None,
    *,
    verdict: Verdict | None = None,
    tree: xr.DataTree | None = None,
    draws: int = 20,
) -> Any:
    """`adata` with what the fit found, see above; changed in place and returned.

    data: any rows with the fit's features; None = the rows of the fit. adata: an AnnData that holds them, found by name
    (rows without names: by position); None = one made of `data`. verdict: of `diagnose`. tree: of `fit.posterior`, for
    loadings. Raises InputError where rows or features are not in `adata`.
    """
    data = fit._data(data)
    adata = io.to_anndata(data) if adata is None else adata
    rows = _places("obs_names", adata.obs_names, data.row_names, data.rows)
    features = _places("var_names", adata.var_names, np.asarray(data.feature_names), data.features)
    table, latents = to_frame(fit, data, draws=draws), fit.names["latent"]
    adata.obsm[f"X_{KEY}"] = _spread(table[latents].to_numpy(), rows, adata.n_obs)
    if set(sds := [f"{name}_sd" for name in latents]) <= set(table):
        adata.obsm[f"X_{KEY}_sd"] = _spread(table[sds].to_numpy(), rows, adata.n_obs)
    if "changed" in table:
        changed = pd.Series(table["changed"].to_numpy(), adata.obs_names[rows]).reindex(adata.obs_names, fill_value="")
        adata.obs[f"{KEY}_changed"] = changed.to_numpy(dtype=str)
    uns: dict[str, Any] = {"latents": np.asarray(latents), "run": json.dumps(_run(fit))}
    if (mask := fit.mask()) is not None:
        adata.varm[f"{KEY}_mask"] = _spread(mask, features, adata.n_vars)
    if tree is not None:
        loadings = plots.loadings(tree)
        adata.varm[f"{KEY}_loadings"] = _spread(loadings.to_numpy(), features, adata.n_vars)
        uns["loadings"] = loadings.attrs["kind"]
    if (graph := fit.graph()) is not None:
        uns["graph"] = graph
    if (targets := fit.targets()) is not None:
        uns |= {"targets": targets, "environments": np.asarray(fit.names["env"])}
    if verdict is not None:
        uns |= {"verdict": str(verdict), "verdicts": {claim.what: claim.verdict for claim in verdict.claims}}
    adata.uns[KEY] = uns
    return adata


def write_csv(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table of `to_frame`, whole or not at all; its first column has the rows' names and no header."""
    return write_bytes(table.to_csv().encode(), path)


def write_h5ad(adata: Any, path: str | Path) -> Path:
    """Write an AnnData, whole or not at all: `path` may be the file that it was read from."""
    with replacing_path(path) as part:
        adata.write_h5ad(part)
    return Path(path)


def _run(fit: Fit) -> dict[str, Any]:
    """What tells this fit from others; `fingerprint` is of its data."""
    known = {key: fit.meta.get(key) for key in ("seed", "epochs", "rows", "fingerprint")}
    return {
        "model": fit.program.card.name,
        "up_to": list(fit.program.latents_up_to),
        "chains": fit.chains.count,
        **known,
        "pyrocrl": metadata.version("pyrocrl"),
    }


def _places(what: str, found: Any, names: np.ndarray | None, count: int) -> np.ndarray:
    """Positions in an AnnData's index of these names; of rows without names, all there are."""
    if names is None:
        if len(found) != count:
            reject("adata", f"{len(found)} {what} for {count} rows without names", f"the {count} rows")
        return np.arange(count)
    if not found.is_unique:
        reject("adata", f"{what} that are not unique", f"unique {what}: adata.{what}_make_unique()")
    places = found.get_indexer(names)
    if (places < 0).any():
        reject("adata", f"no {str(names[places < 0][0])!r} in {what}", "an AnnData with the rows and features of data")
    return places


def _spread(values: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """(count, latent) values at these places, NaN elsewhere."""
    out = np.full((count, values.shape[1]), np.nan)
    out[places] = values
    return out
