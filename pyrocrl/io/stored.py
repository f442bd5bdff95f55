"""Files of data to and from `Data`."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from pyrocrl.arrays import constant
from pyrocrl.data import TRUTH_KEYS, Data
from pyrocrl.errors import listed, reject
from pyrocrl.files import replacing
from pyrocrl.io.cells import bio, from_anndata, read_cells
from pyrocrl.io.tables import Views, from_frame, order_columns, several, views_told
from pyrocrl.io.targets import Targets, read_targets, targets_as_json, targets_of_json
from pyrocrl.io.texts import check_text, damaged, separator
from pyrocrl.pick import Pick, column_of

SUFFIXES = (".csv", ".tsv", ".npz", ".parquet", ".h5ad", ".zarr", ".h5mu")
ANNDATA = (".h5ad", ".zarr", ".h5mu")
# the files that a way of reading is for; where, drop and combine are for all
READING = {"layer": ANNDATA, "sep": (".csv", ".tsv"), "index": tuple(s for s in SUFFIXES if s != ".npz")}
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*")
COVARIATE = "covariate_"  # what names of covariates' arrays begin with in .npz


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
    pick = Pick(several(where), several(drop), env, control, combine)
    found = read_targets(targets)
    name = os.fsencode(path.stem).decode(errors="replace")  # paths may hold bytes that are no texts
    more: dict[str, Any] = {"size_factor": size_factor, "batch": batch, "pair": pair, "series": series}
    more |= {"step": step, "adjust": adjust, "view": view or None, "missing": missing, "name": name}
    if kind == ".npz":
        return _read_npz(path, env, control, found, counts, pick=pick, **more)
    if kind in ANNDATA:
        adata = read_cells(path, kind, layer, several(view) if view and not isinstance(view, Mapping) else [])
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
        bio("pyarrow", path.name)
        with damaged(path):
            table = pd.read_parquet(path)
    else:
        table = _read_table(path, sep)
    _, table, found = pick.rows(table, found)
    if index is not None:
        table = table.set_index(column_of(table, index, "index"))
    told = (env, size_factor, batch, pair, series, step, *several(adjust))
    columns = pick.columns(list(table), lambda: [c not in told and table[c].nunique(dropna=False) < 2 for c in table])
    return from_frame(table.iloc[:, columns], env, control, found, counts, **more)


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
        arrays["targets"] = np.asarray(targets_as_json(data.targets))
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
    arrays |= order_columns(data)
    arrays |= {} if data.view is None else {"view": data.view_labels()}
    arrays |= {"missing": np.asarray(True)} if data.incomplete else {}
    arrays |= {COVARIATE + name: values for name, values in data.covariates.items()}
    for key, value in data.truth.items():
        arrays[f"truth_{key}"] = np.asarray(targets_as_json(value) if isinstance(value, Mapping) else value)
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
    with damaged(path), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if {"format", "shape", "data"} <= arrays.keys():
        with damaged(path):
            arrays = {"x": scipy.sparse.load_npz(path)}
    if size_factor == "none":
        arrays["size_factor"], size_factor = np.asarray("none"), None
    told = {"env": env, "size_factor": size_factor, "batch": batch, "pair": pair, "series": series, "step": step}
    columns = {argument: given or argument for argument, given in told.items()}
    for argument, given in told.items():
        if given is not None and given not in arrays:
            reject(argument, f"no array {given!r} in {path.name}", f"one of {listed(sorted(arrays))}")
    covariates = {key.removeprefix(COVARIATE): key for key in arrays if key.startswith(COVARIATE)}
    for one in several(adjust):
        if one not in arrays and one not in covariates:
            reject("adjust", f"no array {one!r} in {path.name}", f"one of {listed(sorted(arrays))}")
        covariates.setdefault(one, one)
    if columns["batch"] in covariates.values():
        columns.pop("batch")  # read as a covariate
    if targets is None and "targets" in arrays:
        targets = targets_of_json(arrays["targets"], "targets", path)
    if "x" in arrays:
        arrays, targets = pick.of_arrays(arrays, columns | {key: key for key in covariates.values()}, targets)
    truth: dict[str, Any] = {
        key.removeprefix("truth_"): arrays.pop(key) for key in list(arrays) if key.startswith("truth_")
    }
    names = ("feature_names", "aux_names", "row_names")
    features = [str(f) for f in arrays["feature_names"]] if "feature_names" in arrays else []
    views = views_told(view, features) if view is not None else arrays.get("view")
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
        truth["targets"] = targets_of_json(truth["targets"], "truth_targets", path)
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


def _read_table(path: Path, sep: str | None) -> pd.DataFrame:
    check_text(path, "path")
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    sep = separator(path, first) if sep is None else {"tab": "\t", "\\t": "\t"}.get(sep, sep)
    if len(sep) != 1:
        reject("sep", repr(sep), "one character, or tab")
    header = next(csv.reader([first], delimiter=sep), [])
    # pandas would rename a second column of the same name
    twice = [h for h in header if header.count(h) > 1]
    if twice:
        reject("feature_names", f"{twice[0]!r} more than once in {path.name}", "unique names")
    index = 0 if header and header[0].strip() == "" else False
    with damaged(path):
        table = pd.read_csv(path, sep=sep, index_col=index, encoding="utf-8")
    for name in table.columns:
        values = [str(value) for value in table[name].dropna()] if table[name].dtype == object else []
        if values and all(DECIMAL_COMMA.fullmatch(value) for value in values):
            found = f"decimal commas, such as {values[0]!r} in column {name!r} of {path.name}"
            reject("path", found, f"decimal points: io.from_frame(pandas.read_csv(path, sep={sep!r}, decimal=','))")
    return table
