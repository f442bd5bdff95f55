"""AnnData and MuData to and from `Data`, in memory and from files."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from pyrocrl.arrays import are_counts, plain, stacked
from pyrocrl.data import Data
from pyrocrl.errors import listed, reject
from pyrocrl.io.tables import LIBRARY_SIZES, Views, from_views, order_columns, several, size_factors, views_told
from pyrocrl.io.targets import Targets, read_targets
from pyrocrl.io.texts import damaged


def from_anndata(
    adata: Any,
    env: str | None = "target",
    control: str | None = None,
    size_factor: str | None = None,
    layer: str | None = None,
    *,
    batch: str | None = None,
    pair: str | None = None,
    series: str | None = None,
    step: str | None = None,
    view: str | Views = None,
    missing: bool = False,
    adjust: str | Sequence[str] = (),
    targets: Targets = None,
    counts: bool | None = None,
    name: str = "data",
) -> Data:
    """A `Data` from an AnnData, in memory or backed: x is `adata.X` or a layer, feature names are `adata.var_names`.

    layer: a key of `adata.layers`, or "raw" for `adata.raw` with its own features; None = X. env, size_factor, batch,
    pair, series, step: columns of `adata.obs`, or None; view: a column of `adata.var`, or as in `from_frame`; adjust:
    columns of covariates. control, missing: as in `Data`; size_factor: as in `from_frame`. counts: None = whether x
    holds whole numbers from 0 on, of whatever dtype, and a 0 or a number above 100. Features that do not vary are an
    error, as everywhere.
    Raises InputError for unknown columns, labels and layers.
    """
    for attribute in ("X", "obs", "var_names", "layers"):
        if not hasattr(adata, attribute):
            reject("adata", f"a {type(adata).__name__}", "an anndata.AnnData")
    columns, adjust = [str(c) for c in adata.obs.columns], several(adjust)
    named = [("env", env), ("size_factor", None if size_factor == "none" else size_factor), ("batch", batch)]
    named += [("pair", pair), ("series", series), ("step", step)]
    for argument, column in [*named, *(("adjust", column) for column in adjust)]:
        if column is not None and column not in columns:
            reject(argument, f"no column {column!r} in obs", f"None or one of {listed(columns)}")
    x, names = _layer(adata, layer)
    whole = counts is None and are_counts(x)
    totals = [c for c in LIBRARY_SIZES if (whole or counts) and c in columns]
    sizes, assumed = size_factors(adata.obs, size_factor, totals)
    data = Data(
        x,
        None if env is None else adata.obs[env].to_numpy(dtype=object),
        read_targets(targets),
        control=control,
        counts=whole or counts,
        size_factor=sizes,
        batch=None if batch is None else adata.obs[batch].to_numpy(dtype=object),
        pair=None if pair is None else adata.obs[pair].to_numpy(dtype=object),
        series=None if series is None else adata.obs[series].to_numpy(dtype=object),
        step=None if step is None else adata.obs[step].to_numpy(dtype=object),
        view=_views_of(adata, view, layer, names),
        missing=missing,
        covariates=adata.obs[adjust] if adjust else None,
        feature_names=names,
        row_names=list(adata.obs_names),
        name=name,
    )
    data.assumed |= assumed | ({"counts": "True (whole numbers)"} if whole else {})
    return data


def from_blocks(blocks: Iterable[Any], env: str | None = "target", **told: Any) -> Data:
    """A `Data` from blocks of rows, in any iterable: AnnData, also backed, or mappings with "X" and, if wanted, "obs",
    as annbatch's loaders give them, or tables of features, or arrays.

    Blocks are read one by one, and x is kept sparse where that takes less memory. env, told: as in `from_anndata`,
    whose columns are those of `obs`. Raises InputError for blocks whose features differ, and as `from_anndata` does.
    """
    layer = told.pop("layer", None)
    tables: list[pd.DataFrame] = []
    names: list[str] = []

    def rows() -> Iterator[Any]:
        for block in blocks:
            obs, own = None, []
            if isinstance(block, Mapping):
                if "X" not in block:
                    reject("blocks", f"a mapping of {listed(sorted(map(str, block)))}", 'mappings with "X"')
                x, obs = block["X"], block.get("obs")
                own = [str(name) for name in block.get("var_names", ())]
            elif hasattr(block, "var_names"):
                x, own = _layer(block, layer)
                obs = block.obs
            else:
                x = block
                own = [str(name) for name in getattr(block, "columns", ())]
            if tables and own != names:
                odd = sorted(set(own) ^ set(names))
                reject(
                    "blocks", f"features that differ from the first block's ({listed(odd, 3) or 'their order'})", "one"
                )
            names[:] = own
            x = plain(x, "x")
            obs = pd.DataFrame(index=pd.RangeIndex(x.shape[0])) if obs is None else pd.DataFrame(obs)
            if len(obs) != x.shape[0]:
                reject("blocks", f"{len(obs)} rows of obs beside {x.shape[0]} of X", "as many")
            tables.append(obs)
            yield x

    x = stacked(rows(), "x")
    obs = pd.concat(tables)
    if all(isinstance(table.index, pd.RangeIndex) for table in tables):
        obs = obs.reset_index(drop=True)
    found = _Block(x, obs, names or [f"feature_{j}" for j in range(x.shape[1])])
    return from_anndata(found, env, **told)


@dataclass
class _Block:
    """What `from_anndata` reads of an AnnData."""

    X: Any
    obs: pd.DataFrame
    var_names: Sequence[str]
    layers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def obs_names(self) -> Any:
        return self.obs.index


def _views_of(adata: Any, view: Views, layer: str | None, names: list[str]) -> Any:
    """Views by a column of `var`, or else by the names of features."""
    [column] = [None] if view is None or isinstance(view, Mapping) or len(several(view)) != 1 else several(view)
    var = getattr(adata, "var", None)
    if column is None or var is None:
        return views_told(view, names)
    if column not in var.columns:
        columns = listed([str(c) for c in var.columns]) or "none"
        reject("view", f"no column {column!r} in var", f"one of its columns ({columns}), or two beginnings of names")
    return var.loc[names, column].to_numpy(dtype=object)


def _layer(adata: Any, layer: str | None) -> tuple[Any, list[str]]:
    """x of a layer, in memory, and its features' names."""
    raw: Any = getattr(adata, "raw", None)
    known = sorted({*map(str, adata.layers), *(["raw"] if raw is not None else [])})
    if layer is not None and layer not in known:
        reject("layer", repr(layer), f"None or one of {listed(known)}" if known else "None: there are no layers")
    own = layer == "raw" and layer not in adata.layers
    x = raw.X if own else adata.X if layer is None else adata.layers[layer]
    if x is None:
        reject("layer", "None, and X is empty", f"one of {listed(known)}")
    return plain(x, "x"), [str(v) for v in (raw if own else adata).var_names]


def to_anndata(data: Data) -> Any:
    """An AnnData with environments, batches, pairs, series and sizes in `obs`, views in `var`; what is known of z in
    `obsm["truth_z"]`."""
    anndata = bio("anndata", "an AnnData")
    names = data.row_labels().astype(str)
    obs = pd.DataFrame({"env": data.env_labels(), "batch": np.asarray(data.batch_names)[data.batch]}, index=names)
    obs = obs.assign(**order_columns(data), **data.covariates)
    if data.size_factor is not None:
        obs[LIBRARY_SIZES[0]] = data.size_factor
    var = pd.DataFrame({} if data.view is None else {"view": data.view_labels()}, index=pd.Index(data.feature_names))
    obsm = {"truth_z": data.truth["z"]} if "z" in data.truth else None
    return anndata.AnnData(data.x, obs=obs, var=var, obsm=obsm)


def read_cells(path: Path, kind: str, layer: str | None, views: Sequence[str]) -> Any:
    """An AnnData whose X is the layer, in memory; of a MuData those of several `views` side by side, the modality in
    the column `view` of var."""
    anndata = bio("anndata", path.name)
    if kind == ".zarr":
        bio("zarr", path.name)
    with damaged(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == ".h5mu" and views:
            return _side_by_side(anndata, path, views, layer)
        if kind == ".h5mu":
            adata, layer = _read_modality(path, layer)
        else:
            if (found := _read_parts(path, kind, layer)) is not None:
                return found
            adata = anndata.read_h5ad(path) if kind == ".h5ad" else anndata.read_zarr(path)
        x, names = _layer(adata, layer)
        var = adata.var if len(adata.var) == len(names) else pd.DataFrame(index=pd.Index(names, dtype=object))
        return anndata.AnnData(x, obs=adata.obs, var=var)


def _read_parts(path: Path, kind: str, layer: str | None) -> Any:
    """An AnnData of X, or the layer, obs and var alone, in blocks where X is dense; None where they are not there, or
    written before files said of what kind their parts are."""
    anndata, read_elem = bio("anndata", path.name), bio("anndata.io", path.name).read_elem
    if kind == ".h5ad":
        import h5py

        opened = h5py.File(path)
    else:
        opened = bio("zarr", path.name).open_group(str(path), mode="r")
    try:
        if opened.attrs.get("encoding-type") != "anndata":
            return None
        own = layer == "raw" and layer not in opened.get("layers", {})
        top = opened["raw"] if own and "raw" in opened else opened
        place = "X" if layer is None or own else f"layers/{layer}"
        if place not in top or (own and top is opened):
            return None
        obs, var = read_elem(opened["obs"]), read_elem(top["var"])
        x = top[place]
        return anndata.AnnData(plain(x if hasattr(x, "shape") else read_elem(x), "x"), obs=obs, var=var)
    finally:
        if kind == ".h5ad":
            opened.close()


def _side_by_side(anndata: Any, path: Path, views: Sequence[str], layer: str | None) -> Any:
    """An AnnData of several modalities of a MuData: NaN where one lacks a row."""
    if layer is not None:
        reject("layer", f"{layer!r} with view", "None: view='MODALITY/LAYER' names a layer")
    tables, obs = {}, None
    for one in views:
        adata, rest = _read_modality(path, one)
        x, names = _layer(adata, rest)
        view = one.partition("/")[0]
        tables[view] = pd.DataFrame(x.toarray() if scipy.sparse.issparse(x) else x, adata.obs_names, names)
        obs = adata.obs if obs is None else obs.combine_first(adata.obs)
    data = from_views(tables)
    assert obs is not None and data.row_names is not None
    var = pd.DataFrame({"view": data.view_labels()}, index=pd.Index(data.feature_names, dtype=object))
    return anndata.AnnData(np.asarray(data.x), obs=obs.loc[data.row_names], var=var)


def _read_modality(path: Path, layer: str | None) -> tuple[Any, str | None]:
    """(one modality of a MuData, with the columns of obs that all share, and what is left of `layer` for it)."""
    import h5py

    read_elem = bio("anndata.io", path.name).read_elem
    with h5py.File(path) as file:
        known = list(file["mod"])
        name, _, rest = (layer or (known[0] if len(known) == 1 else "")).partition("/")
        if name not in known:
            reject("layer", repr(layer), f"MODALITY or MODALITY/LAYER, with MODALITY one of {listed(known)}")
        adata, shared = read_elem(file[f"mod/{name}"]), read_elem(file["obs"])
    adata.obs = adata.obs.join(shared[[c for c in shared.columns if c not in adata.obs.columns]])
    return adata, rest or None


def read_h5ad(path: Path) -> Any:
    """The AnnData of a file, whatever else it may hold. Raises InputError for one that is damaged."""
    anndata = bio("anndata", path.name)
    with damaged(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_h5ad(path)


def bio(module: str, what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError:
        reject("path", f"{what}, which needs {module}", "that after `pip install pyrocrl[bio]`")
