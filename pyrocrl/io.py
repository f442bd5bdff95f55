"""Files and tables to and from `Data`, and posteriors to and from netCDF.

`read` takes .csv, .tsv, .npz, .parquet, .h5ad, .zarr and .h5mu; `write` makes a .npz that `read` gives back whole,
truth included. Whatever is written goes to a temporary file beside its place first and is then renamed.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import xarray as xr

from pyrocrl.arrays import constant, floats, plain, stacked
from pyrocrl.data import TRUTH_KEYS, Data, _some, are_counts
from pyrocrl.errors import InputError, reject
from pyrocrl.files import replacing, write_bytes
from pyrocrl.pick import Pick, column_of

Views = Mapping[str, Sequence[str]] | str | Sequence[str] | None
Targets = Mapping[Any, int | Sequence[int]] | str | Path | None
SUFFIXES = (".csv", ".tsv", ".npz", ".parquet", ".h5ad", ".zarr", ".h5mu")
ANNDATA = (".h5ad", ".zarr", ".h5mu")
# the files that a way of reading is for; where, drop and combine are for all
READING = {"layer": ANNDATA, "sep": (".csv", ".tsv"), "index": tuple(s for s in SUFFIXES if s != ".npz")}
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*")
SEPARATORS = (",", ";", "\t", "|")  # tried in this order where a header does not have the one of its suffix
COVARIATE = "covariate_"  # what names of covariates' arrays begin with in .npz
# columns that are taken for size factors of counts unless another is named, the first that is there
LIBRARY_SIZES = ("n_umis_total", "n_counts", "total_counts", "nCount_RNA")


# -- tables in memory ----------------------------------------------------------------------------------------


def from_frame(
    df: pd.DataFrame,
    env: str | None = None,
    control: str | None = None,
    targets: Targets = None,
    counts: bool | None = None,
    *,
    size_factor: str | None = None,
    batch: str | None = None,
    pair: str | None = None,
    series: str | None = None,
    step: str | None = None,
    view: Views = None,
    missing: bool = False,
    adjust: str | Sequence[str] = (),
    name: str = "data",
) -> Data:
    """A `Data` from a table of one row per sample; every column not named here is a feature.

    view: a mapping of views to their columns, or what the names of columns of each view begin with, such as ["rna_",
    "atac_"], after which views are called. env, size_factor, batch, pair, series, step: names of columns;
    adjust: those of covariates. control, counts, missing: as in `Data`. size_factor of counts: None = the first column
    of `LIBRARY_SIZES` (these are no features), or else the sums of rows; "none" = all rows alike. targets: a mapping
    environment -> latents or the path of a targets file. Raises InputError for unknown columns and names the columns
    that are not numbers.
    """
    columns, adjust = [str(c) for c in df.columns], _several(adjust)
    named = {"env": env, "size_factor": None if size_factor == "none" else size_factor, "batch": batch}
    named |= {"pair": pair, "series": series, "step": step}
    for argument, column in [*named.items(), *(("adjust", column) for column in adjust)]:
        if column is not None and column not in columns:
            reject(argument, f"no column {column!r}", f"one of {_some(columns)}")
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        reject("feature_names", f"{twice!r} more than once", "unique names")
    if df.empty:
        reject("x", f"{len(df)} rows of {len(columns)} columns", "at least 2 rows and 2 features")
    table = df.set_axis(columns, axis=1)
    features = table.drop(columns=[*(c for c in named.values() if c is not None), *adjust])
    odd = [c for c in features.columns if not _is_numeric(features[c])]
    if odd:
        hint = "" if env is not None else " (name the column of environments with env)"
        reject("x", f"columns that are not numbers: {_some(odd)}", f"numeric features{hint}")
    totals = [c for c in LIBRARY_SIZES if c in features.columns]
    genes = features.drop(columns=totals)
    x = genes.to_numpy(dtype=_common_dtype(genes))
    counted = (x.dtype.kind == "i" and are_counts(x)) if counts is None else counts
    if not counted:  # then a column is a feature, whatever its name
        genes, totals = features, []
        x = genes.to_numpy(dtype=_common_dtype(genes))
    sizes, assumed = _size_factors(table, size_factor, totals)
    data = Data(
        x,
        None if env is None else table[env].to_numpy(),
        read_targets(targets),
        control=control,
        counts=counts,
        size_factor=sizes,
        batch=None if batch is None else table[batch].to_numpy(),
        pair=None if pair is None else table[pair].to_numpy(),
        series=None if series is None else table[series].to_numpy(),
        step=None if step is None else table[step].to_numpy(),
        view=_views(view, list(genes.columns)),
        missing=missing,
        covariates=table[adjust] if adjust else None,
        feature_names=list(genes.columns),
        row_names=list(table.index),
        name=name,
    )
    data.assumed |= assumed
    return data


def _views(view: Views, features: Sequence[str]) -> Any:
    """Views as `Data` takes them: a mapping as it is, beginnings of names as the views' names of all features."""
    if view is None or isinstance(view, Mapping):
        return view
    starts = sorted(_several(view), key=len, reverse=True)  # the longest first: "rna_nuclear_" before "rna_"
    out = []
    for feature in features:
        start = next((s for s in starts if s and feature.startswith(s)), None)
        if start is None:
            reject("view", f"feature {feature!r}", f"names that begin with one of {_some(starts)}")
        out.append(start.rstrip("_:.-/| ") or start)
    if unused := [s for s in starts if not any(feature.startswith(s) for feature in features)]:
        reject(
            "view", f"{unused[0]!r}, with which no feature begins", f"beginnings of names such as {_some(features, 3)}"
        )
    return out


def from_views(
    views: Mapping[str, pd.DataFrame],
    env: Any = None,
    *,
    counts: bool | None = None,
    size_factor: Any = None,
    name: str = "data",
    **known: Any,
) -> Data:
    """A `Data` from a table for each view, whose rows are those that any table has, known by their indices: a row that
    is in some tables only lacks the other views.

    env, size_factor: one label or number for each row, as a pandas series with the rows' names. known: other
    arguments of `Data` that do not run along rows. A feature that several tables have is called VIEW:FEATURE. Raises
    InputError for fewer than two tables, for a table without rows, for rows that are twice in one, and for labels that
    lack a row.
    """
    if len(views) < 2:
        reject("views", f"{len(views)} table{'s' * (len(views) != 1)}", "a table for each of two views or more")
    tables, order = {}, []
    for view, table in views.items():
        if not isinstance(table, pd.DataFrame):
            reject("views", f"a {type(table).__name__} for view {str(view)!r}", "pandas tables, with names of rows")
        if table.empty:
            reject("views", f"view {str(view)!r} without rows", "tables that hold rows and columns")
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            reject("views", f"row {str(twice)!r} more than once in view {str(view)!r}", "each row once in a table")
        tables[str(view)] = table.set_axis([str(c) for c in table.columns], axis=1)
        order += list(table.index)
    shared = pd.Series([c for table in tables.values() for c in table.columns]).value_counts()
    for view, table in tables.items():
        tables[view] = table.rename(columns={c: f"{view}:{c}" for c in table.columns if shared[c] > 1})
    rows = pd.Index(pd.unique(pd.Series(order, dtype=object)))
    whole = pd.concat([table.reindex(rows) for table in tables.values()], axis=1)
    along = {}
    for argument, values in (("env", env), ("size_factor", size_factor)):
        if isinstance(values, pd.Series):
            if lacks := [row for row in rows if row not in values.index]:
                reject(argument, f"nothing for row {str(lacks[0])!r}", "one for each row of any table")
            values = values.loc[rows].to_numpy()
        elif values is not None and np.ndim(values) > 0:
            reject(argument, f"a {type(values).__name__}", "a pandas series with the names of rows, or None")
        along[argument] = values
    members = {view: list(table.columns) for view, table in tables.items()}
    return Data(whole.astype(_common_dtype(whole)), view=members, counts=counts, name=name, **along, **known)


def _several(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _size_factors(table: pd.DataFrame, told: str | None, totals: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Size factors as `Data` takes them, of the column that is told or else of the first of `totals`, and what is then
    to be added to `Data.assumed`."""
    if told == "none" or (told is None and not totals):
        return told, {}
    column = totals[0] if told is None else told
    return _numbers(table[column], "size_factor"), {"size_factor": f"column {column!r}"} if told is None else {}


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
    columns, adjust = [str(c) for c in adata.obs.columns], _several(adjust)
    named = [("env", env), ("size_factor", None if size_factor == "none" else size_factor), ("batch", batch)]
    named += [("pair", pair), ("series", series), ("step", step)]
    for argument, column in [*named, *(("adjust", column) for column in adjust)]:
        if column is not None and column not in columns:
            reject(argument, f"no column {column!r} in obs", f"None or one of {_some(columns)}")
    x, names = _layer(adata, layer)
    whole = counts is None and are_counts(x)
    totals = [c for c in LIBRARY_SIZES if (whole or counts) and c in columns]
    sizes, assumed = _size_factors(adata.obs, size_factor, totals)
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
                    reject("blocks", f"a mapping of {_some(sorted(map(str, block)))}", 'mappings with "X"')
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
                    "blocks", f"features that differ from the first block's ({_some(odd, 3) or 'their order'})", "one"
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
    [column] = [None] if view is None or isinstance(view, Mapping) or len(_several(view)) != 1 else _several(view)
    var = getattr(adata, "var", None)
    if column is None or var is None:
        return _views(view, names)
    if column not in var.columns:
        columns = _some([str(c) for c in var.columns]) or "none"
        reject("view", f"no column {column!r} in var", f"one of its columns ({columns}), or two beginnings of names")
    return var.loc[names, column].to_numpy(dtype=object)


def _layer(adata: Any, layer: str | None) -> tuple[Any, list[str]]:
    """x of a layer, in memory, and its features' names."""
    raw: Any = getattr(adata, "raw", None)
    known = sorted({*map(str, adata.layers), *(["raw"] if raw is not None else [])})
    if layer is not None and layer not in known:
        reject("layer", repr(layer), f"None or one of {_some(known)}" if known else "None: there are no layers")
    own = layer == "raw" and layer not in adata.layers
    x = raw.X if own else adata.X if layer is None else adata.layers[layer]
    if x is None:
        reject("layer", "None, and X is empty", f"one of {_some(known)}")
    return plain(x, "x"), [str(v) for v in (raw if own else adata).var_names]


def read_targets(targets: Targets) -> dict[str, tuple[int, ...]] | None:
    """Environment -> latents, from a mapping, a JSON file of one, or a .csv/.tsv of two columns (env, latent).

    In a table an environment with several targets has several rows; a first row without a number is a header.
    Raises InputError for anything else.
    """
    if targets is None:
        return None
    if isinstance(targets, str | Path):
        targets = _read_targets_file(Path(targets))
    if not isinstance(targets, Mapping):
        reject("targets", f"a {type(targets).__name__}", "a mapping environment -> latents, or the path of a file")
    out: dict[str, tuple[int, ...]] = {}
    for env, latents in targets.items():
        if str(env) in out:
            reject("targets", f"two environments with the label {str(env)!r}", "labels that differ as texts")
        several: list[Any] = [latents] if np.isscalar(latents) else list(latents)  # type: ignore[arg-type]
        for k in several:
            if isinstance(k, bool) or not isinstance(k, int | np.integer):
                reject("targets", f"{k!r} for environment {str(env)!r}", "positions of latents, 0, 1, ...")
        out[str(env)] = tuple(int(k) for k in several)
    return out


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's entries; InputError for a name given twice."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        reject("targets", f"two environments with the label {twice[0]!r}", "each environment once")
    return dict(pairs)


def _read_targets_file(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".csv", ".tsv"):
        reject("targets", f"{str(path)!r}", "a .json, .csv or .tsv file")
    text = _text(path, "targets")
    if path.suffix == ".json":
        try:
            found = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            reject("targets", f"{path}: {error}", 'JSON such as {"environment": [0]}')
        if not isinstance(found, dict):
            reject("targets", f"{path}: a JSON {type(found).__name__}", 'JSON such as {"environment": [0]}')
        return found
    lines = text.splitlines()
    rows = [row for row in csv.reader(lines, delimiter=_separator(path, "".join(lines[:1]))) if row]
    out: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        cells = [cell.strip() for cell in row]
        if len(cells) != 2:
            reject("targets", f"{path}: row {number + 1} has {len(cells)} columns", "two columns: env, latent")
        if cells[1].lstrip("-").isdigit():
            out.setdefault(cells[0], []).append(int(cells[1]))
        elif number > 0:
            reject("targets", f"{path}: latent {cells[1]!r} in row {number + 1}", "a position, 0, 1, ...")
    return out


def read_columns(
    path: str | Path, columns: Sequence[str], argument: str, optional: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """Lines of a .csv or .tsv file with just these columns, in any order, as texts; those of `optional` come after
    the others, where it has them all. Raises InputError, about `argument`."""
    path = Path(path)
    if path.suffix not in (".csv", ".tsv"):
        reject(argument, repr(str(path)), f"a .csv or .tsv file with the columns {', '.join(columns)}")
    lines = _text(path, argument).splitlines()
    rows = [
        [cell.strip() for cell in row] for row in csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    ]
    rows = [row for row in rows if any(row)]
    if rows and optional and sorted(rows[0]) == sorted([*columns, *optional]):
        columns = [*columns, *optional]
    if not rows or sorted(rows[0]) != sorted(columns):
        reject(argument, f"{path}: {', '.join(rows[0]) if rows else 'nothing'}", f"the columns {', '.join(columns)}")
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            reject(argument, f"{path}: row {number + 1} has {len(row)} columns", ", ".join(columns))
    places = [rows[0].index(name) for name in columns]
    return [tuple(row[place] for place in places) for row in rows[1:]]


def to_frame(data: Data) -> pd.DataFrame:
    """A table of the features with the environments' names in a last column `env`, and those of pairs or
    series and their steps in `pair`, `series` and `step`; its index has the rows' names."""
    x = data.x.toarray() if scipy.sparse.issparse(data.x) else np.asarray(data.x)
    table = pd.DataFrame(x, data.row_labels(), data.feature_names)
    return table.assign(env=data.env_labels(), **_order_columns(data))


def _order_columns(data: Data) -> dict[str, np.ndarray]:
    """Columns `pair` or `series`, and `step`, as they are read; none without either."""
    if data.series is not None:
        return {"series": data.series_labels(), "step": data.step}
    if data.pair is None:
        return {}
    return {"pair": data.pair_labels(), "step": np.where(data.after, "after", "before")}


def to_anndata(data: Data) -> Any:
    """An AnnData with environments, batches, pairs, series and sizes in `obs`, views in `var`; what is known of z in
    `obsm["truth_z"]`."""
    anndata = _bio("anndata", "an AnnData")
    names = data.row_labels().astype(str)
    obs = pd.DataFrame({"env": data.env_labels(), "batch": np.asarray(data.batch_names)[data.batch]}, index=names)
    obs = obs.assign(**_order_columns(data), **data.covariates)
    if data.size_factor is not None:
        obs[LIBRARY_SIZES[0]] = data.size_factor
    var = pd.DataFrame({} if data.view is None else {"view": data.view_labels()}, index=pd.Index(data.feature_names))
    obsm = {"truth_z": data.truth["z"]} if "z" in data.truth else None
    return anndata.AnnData(data.x, obs=obs, var=var, obsm=obsm)


# -- files of data -------------------------------------------------------------------------------------------


def read(
    path: str | Path,
    env: str | None = None,
    control: str | None = None,
    targets: Targets = None,
    counts: bool | None = None,
    *,
    size_factor: str | None = None,
    batch: str | None = None,
    pair: str | None = None,
    series: str | None = None,
    step: str | None = None,
    view: Views = None,
    missing: bool = False,
    adjust: str | Sequence[str] = (),
    layer: str | None = None,
    where: str | Sequence[str] = (),
    drop: str | Sequence[str] = (),
    index: str | None = None,
    sep: str | None = None,
    combine: str | None = None,
) -> Data:
    """Read a .csv, .tsv, .npz, .parquet, .h5ad, .zarr or .h5mu file; arguments as in `from_frame` and `from_anndata`.

    .npz: arrays x and, if wanted, env, size_factor, batch, pair, series, step, view, aux, feature_names, aux_names,
    row_names, targets (a JSON text), as `write` makes it, or one scipy sparse matrix. In .csv and .tsv a first column
    without a header holds the names of the rows, as the index of a parquet file and `obs_names` do.

    missing: whether single values may be missing, as in `Data`; of a .npz also where `write` said so.
    view: as in `from_frame` and `from_anndata`; of a .h5mu two modalities or more, each MODALITY or MODALITY/LAYER,
    whose rows are those of any of them. layer: of an AnnData, also "raw"; of a .h5mu "MODALITY" or "MODALITY/LAYER".
    where: which rows to keep, one condition or several that all hold, such as "day == 3", "cell_type != 'B cell'" or
    "guide in ['A', 'B']" on the columns of a table, of `obs` or the arrays of a .npz; a missing value is ''. Targets of
    environments that lose all rows are left out too. drop: columns, of an AnnData features, to leave out; "constant"
    for all that do not vary in the rows that are kept. index: the column that holds the rows' names. sep: what
    separates the columns of a table, one character or "tab"; None = what its header has. combine: what stands between
    the parts of labels of combinations: with "+", "B+A" is "A+B", "A+ctrl" is "A" where control is "ctrl", and a
    combination without targets of its own has those of its parts.

    Raises InputError for files that are missing, damaged or of another kind, for conditions that no row meets, and for
    columns that are not there.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        reject("path", f"{str(path)!r}", f"a file ending in {', '.join(SUFFIXES)}")
    if not (path.is_dir() if kind == ".zarr" else path.is_file()):
        reject("path", f"no file {str(path)!r}", f"an existing file ending in {', '.join(SUFFIXES)}")
    for argument, value in (("layer", layer), ("sep", sep), ("index", index)):
        if value is not None and kind not in READING[argument]:
            reject(argument, f"{value!r} for {path.name}", f"nothing, except for {', '.join(READING[argument])}")
    if combine is not None and control is None:
        reject("control", f"None with combine={combine!r}", "the label of the control: it is no part of a combination")
    pick = Pick(_several(where), _several(drop), env, control, combine)
    found = read_targets(targets)
    name = os.fsencode(path.stem).decode(errors="replace")  # paths may hold bytes that are no texts
    more: dict[str, Any] = {"size_factor": size_factor, "batch": batch, "pair": pair, "series": series}
    more |= {"step": step, "adjust": adjust, "view": view or None, "missing": missing, "name": name}
    if kind == ".npz":
        return _read_npz(path, env, control, found, counts, pick=pick, **more)
    if kind in ANNDATA:
        adata = _read_anndata(path, kind, layer, _several(view) if view and not isinstance(view, Mapping) else [])
        more["view"] = "view" if kind == ".h5mu" and view else more["view"]
        keep, obs, found = pick.rows(adata.obs, found)
        if index is not None:
            obs = obs.set_index(column_of(obs, index, "index"))
        adata = adata if keep.all() else adata[keep].copy()
        columns = pick.columns(adata.var_names, lambda: constant(adata.X))
        adata = adata if len(columns) == adata.n_vars else adata[:, columns].copy()
        adata.obs = obs.set_axis(obs.index.astype(str))
        return from_anndata(adata, env, control, targets=found, counts=counts, **more)
    if kind == ".parquet":
        _bio("pyarrow", path.name)
        with _damaged(path):
            table = pd.read_parquet(path)
    else:
        table = _read_table(path, sep)
    _, table, found = pick.rows(table, found)
    if index is not None:
        table = table.set_index(column_of(table, index, "index"))
    told = (env, size_factor, batch, pair, series, step, *_several(adjust))
    columns = pick.columns(list(table), lambda: [c not in told and table[c].nunique(dropna=False) < 2 for c in table])
    return from_frame(table.iloc[:, columns], env, control, found, counts, **more)


def _read_anndata(path: Path, kind: str, layer: str | None, views: Sequence[str]) -> Any:
    """An AnnData whose X is the layer, in memory; of a MuData those of several `views` side by side, the modality in
    the column `view` of var."""
    anndata = _bio("anndata", path.name)
    if kind == ".zarr":
        _bio("zarr", path.name)
    with _damaged(path), warnings.catch_warnings():
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
    anndata, read_elem = _bio("anndata", path.name), _bio("anndata.io", path.name).read_elem
    if kind == ".h5ad":
        import h5py

        opened = h5py.File(path)
    else:
        opened = _bio("zarr", path.name).open_group(str(path), mode="r")
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

    read_elem = _bio("anndata.io", path.name).read_elem
    with h5py.File(path) as file:
        known = list(file["mod"])
        name, _, rest = (layer or (known[0] if len(known) == 1 else "")).partition("/")
        if name not in known:
            reject("layer", repr(layer), f"MODALITY or MODALITY/LAYER, with MODALITY one of {_some(known)}")
        adata, shared = read_elem(file[f"mod/{name}"]), read_elem(file["obs"])
    adata.obs = adata.obs.join(shared[[c for c in shared.columns if c not in adata.obs.columns]])
    return adata, rest or None


def write(data: Data, path: str | Path) -> Path:
    """Write data with names, targets and truth to a .npz file that `read` gives back.

    Raises InputError where the path does not end in .npz or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        reject("path", f"{str(path)!r}", "a file ending in .npz")
    x = data.x.toarray() if scipy.sparse.issparse(data.x) else np.asarray(data.x)
    arrays: dict[str, Any] = {
        "x": x,
        "env": data.env_labels(),
        "feature_names": np.asarray(data.feature_names),
        "counts": np.asarray(data.counts),
    }
    if data.targets is not None:
        arrays["targets"] = np.asarray(_json_text(data.targets))
    if data.control is not None:
        arrays["control"] = np.asarray(data.control)
    if data.size_factor is not None and data.size_rule != "sums":
        arrays["size_factor"] = np.asarray("none") if data.size_rule == "none" else data.size_factor
    if data.aux is not None:
        arrays |= {"aux": data.aux, "aux_names": np.asarray(data.aux_names)}
    if data.row_names is not None:
        arrays["row_names"] = data.row_names
    if len(data.batch_names) > 1:
        arrays["batch"] = np.asarray(data.batch_names)[data.batch]
    arrays |= _order_columns(data)
    arrays |= {} if data.view is None else {"view": data.view_labels()}
    arrays |= {"missing": np.asarray(True)} if data.incomplete else {}
    arrays |= {COVARIATE + name: values for name, values in data.covariates.items()}
    for key, value in data.truth.items():
        arrays[f"truth_{key}"] = np.asarray(_json_text(value) if isinstance(value, Mapping) else value)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)
    return path


def _read_npz(
    path: Path,
    env: str | None,
    control: str | None,
    targets: dict[str, tuple[int, ...]] | None,
    counts: bool | None,
    *,
    size_factor: str | None,
    batch: str | None,
    pair: str | None,
    series: str | None,
    step: str | None,
    view: Views,
    missing: bool,
    adjust: str | Sequence[str],
    name: str,
    pick: Pick,
) -> Data:
    with _damaged(path), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if {"format", "shape", "data"} <= arrays.keys():
        with _damaged(path):
            arrays = {"x": scipy.sparse.load_npz(path)}
    if size_factor == "none":
        arrays["size_factor"], size_factor = np.asarray("none"), None
    told = {"env": env, "size_factor": size_factor, "batch": batch, "pair": pair, "series": series, "step": step}
    columns = {argument: given or argument for argument, given in told.items()}
    for argument, given in told.items():
        if given is not None and given not in arrays:
            reject(argument, f"no array {given!r} in {path.name}", f"one of {_some(sorted(arrays))}")
    covariates = {key.removeprefix(COVARIATE): key for key in arrays if key.startswith(COVARIATE)}
    for one in _several(adjust):
        if one not in arrays and one not in covariates:
            reject("adjust", f"no array {one!r} in {path.name}", f"one of {_some(sorted(arrays))}")
        covariates.setdefault(one, one)
    if columns["batch"] in covariates.values():
        columns.pop("batch")  # read as a covariate
    if targets is None and "targets" in arrays:
        targets = _json_targets(arrays["targets"], "targets", path)
    if "x" in arrays:
        arrays, targets = pick.of_arrays(arrays, columns | {key: key for key in covariates.values()}, targets)
    truth: dict[str, Any] = {
        key.removeprefix("truth_"): arrays.pop(key) for key in list(arrays) if key.startswith("truth_")
    }
    names = ("feature_names", "aux_names", "row_names")
    features = [str(f) for f in arrays["feature_names"]] if "feature_names" in arrays else []
    views = _views(view, features) if view is not None else arrays.get("view")
    known = {
        "x",
        "aux",
        "view",
        "missing",
        *names,
        "targets",
        "control",
        "counts",
        *columns.values(),
        *covariates.values(),
    }
    odd = sorted(arrays.keys() - known)
    if "x" not in arrays or odd:
        found = f"array {odd[0]!r} in {path.name}" if odd else f"no array 'x' in {path.name}"
        reject("path", found, f"arrays {', '.join(sorted(known))} and truth_ with {', '.join(TRUTH_KEYS)}")
    if "targets" in truth:
        truth["targets"] = _json_targets(truth["targets"], "truth_targets", path)
    if control is None and "control" in arrays:
        control = str(arrays["control"])
    if counts is None and "counts" in arrays:
        counts = bool(arrays["counts"])
    return Data(
        arrays["x"],
        arrays.get(columns["env"]),
        targets,
        control=control,
        counts=counts,
        aux=arrays.get("aux"),
        size_factor=arrays.get(columns["size_factor"]),
        batch=arrays.get(columns.get("batch", "")),
        pair=arrays.get(columns["pair"]),
        series=arrays.get(columns["series"]),
        step=arrays.get(columns["step"]),
        view=views,
        missing=missing or bool(arrays.get("missing", False)),
        covariates={name: arrays[key] for name, key in covariates.items()} or None,
        truth=truth,
        name=name,
        **{argument: arrays.get(argument) for argument in names},
    )


def _json_text(targets: Mapping[Any, Sequence[int]]) -> str:
    return json.dumps({str(env): list(latents) for env, latents in targets.items()})


def _json_targets(value: np.ndarray, argument: str, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        found = json.loads(str(value))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        reject(argument, f"{str(value)[:40]!r} in {path.name}", 'a JSON text such as {"environment": [0]}')
    out = read_targets(found)
    assert out is not None
    return out


def _read_table(path: Path, sep: str | None) -> pd.DataFrame:
    _check_text(path, "path")
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    sep = _separator(path, first) if sep is None else {"tab": "\t", "\\t": "\t"}.get(sep, sep)
    if len(sep) != 1:
        reject("sep", repr(sep), "one character, or tab")
    header = next(csv.reader([first], delimiter=sep), [])
    # pandas would rename a second column of the same name
    twice = [h for h in header if header.count(h) > 1]
    if twice:
        reject("feature_names", f"{twice[0]!r} more than once in {path.name}", "unique names")
    index = 0 if header and header[0].strip() == "" else False
    with _damaged(path):
        table = pd.read_csv(path, sep=sep, index_col=index, encoding="utf-8")
    for name in table.columns:
        values = [str(value) for value in table[name].dropna()] if table[name].dtype == object else []
        if values and all(DECIMAL_COMMA.fullmatch(value) for value in values):
            found = f"decimal commas, such as {values[0]!r} in column {name!r} of {path.name}"
            reject("path", found, f"decimal points: io.from_frame(pandas.read_csv(path, sep={sep!r}, decimal=','))")
    return table


def _separator(path: Path, header: str) -> str:
    """What separates the columns of a table: as its suffix says, or else what its header has."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return next((sep for sep in (usual, *SEPARATORS) if sep in header), usual)


def read_h5ad(path: Path) -> Any:
    """The AnnData of a file, whatever else it may hold. Raises InputError for one that is damaged."""
    anndata = _bio("anndata", path.name)
    with _damaged(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_h5ad(path)


def _text(path: Path, argument: str) -> str:
    _check_text(path, argument)
    return path.read_text(encoding="utf-8-sig")


def _check_text(path: Path, argument: str) -> None:
    """Raise InputError unless the file holds UTF-8 and no NUL, at which pandas would end a cell without a word."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            start = 0
            while block := file.read(2**20):
                if b"\0" in block:
                    found = f"{str(path)!r} with a NUL at byte {start + block.index(0)} (no text, or UTF-16)"
                    reject(argument, found, "a text in UTF-8")
                decoder.decode(block)
                start += len(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        found = f"{str(path)!r} with the byte {error.object[error.start]:#x}, which is not UTF-8"
        reject(argument, found, "a text in UTF-8 (iconv makes it one)")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reject(argument, f"{str(path)!r} ({getattr(error, 'strerror', error)})", "a readable text file")


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Every reader has its own exceptions for a damaged file: one line for all."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reject("path", f"{str(path)!r}, which cannot be read ({reason})", f"a whole {path.suffix} file")


def _bio(module: str, what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError:
        reject("path", f"{what}, which needs {module}", "that after `pip install pyrocrl[bio]`")


def _numbers(column: pd.Series, argument: str) -> np.ndarray:
    if not _is_numeric(column):
        reject(argument, f"column {str(column.name)!r} of {column.dtype}", "a column of numbers above 0")
    return floats(column, argument)


def _is_numeric(column: pd.Series) -> bool:
    kinds = pd.api.types
    return bool(kinds.is_numeric_dtype(column) and not kinds.is_complex_dtype(column))


def _common_dtype(table: pd.DataFrame) -> Any:
    """Integers stay integers, so that a table of counts is known as one; all else is float64."""
    kinds = {getattr(dtype, "kind", "f") for dtype in table.dtypes}
    return np.int64 if kinds and kinds <= set("iub") and not table.isna().to_numpy().any() else np.float64


# -- posteriors ----------------------------------------------------------------------------------------------


def write_tree(tree: xr.DataTree, path: str | Path) -> Path:
    """Write a DataTree to netCDF 4, compressed; ArviZ and xarray read it as well as `read_tree` does.

    Raises InputError where the path cannot be written.
    """
    path = Path(path)
    encoding = {
        node.path: {
            str(name): {"zlib": True, "complevel": 1, "shuffle": True}
            for name, value in node.to_dataset(inherit=False).data_vars.items()
            if value.dtype.kind in "iuf" and value.ndim > 0
        }
        for node in tree.subtree
    }
    # in memory first: on a full disk the HDF5 library would end the process
    memory = BytesIO()
    tree.to_netcdf(memory, engine="h5netcdf", encoding={k: v for k, v in encoding.items() if v})
    return write_bytes(memory.getvalue(), path)


def write_dataset(table: xr.Dataset, path: str | Path) -> Path:
    """Write a Dataset to netCDF 4, compressed, all or nothing; raises InputError where the path cannot be written."""
    return write_tree(xr.DataTree(table), path)


def write_frame(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table to .csv without its index, all or nothing; raises InputError where the path cannot be written."""
    return write_bytes(table.to_csv(index=False, float_format="%.6g").encode(), path)


def read_tree(path: str | Path) -> xr.DataTree:
    """Read what `write_tree` wrote, into memory, with the same coordinates and dtypes.

    Raises InputError for a file that is missing, damaged or no netCDF.
    """
    path = Path(path)
    if not path.is_file():
        reject("path", f"no file {str(path)!r}", "a posterior.nc that `pyrocrl fit` or write_tree wrote")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            return opened.load().map_over_datasets(_plain_text)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reject("path", f"{str(path)!r}, which cannot be read ({reason})", "a whole netCDF file")


def _plain_text(dataset: xr.Dataset) -> xr.Dataset:
    """netCDF gives texts back as objects; numpy's own text dtype is what was written."""
    texts = {n: v.astype(str) for n, v in dataset.variables.items() if v.dtype.kind in "OT"}
    return dataset.assign({n: v for n, v in texts.items() if n not in dataset.coords}).assign_coords(
        {n: v for n, v in texts.items() if n in dataset.coords}
    )


def write_json(value: Any, path: str | Path) -> Path:
    """Write JSON, all or nothing; numbers that are not finite become null."""
    return write_bytes((json.dumps(_finite(value), indent=1) + "\n").encode(), path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value
