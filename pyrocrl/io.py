"""Files and tables to and from `Data`, and posteriors to and from netCDF.

`read` takes .csv, .tsv, .npz, .parquet and .h5ad; `write` makes a .npz that `read` gives back whole, truth
included. Whatever is written goes to a temporary file beside its place first and is then renamed.
"""

from __future__ import annotations

import csv
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import xarray as xr

from pyrocrl.data import TRUTH_KEYS, Data, _some
from pyrocrl.errors import InputError, reject
from pyrocrl.files import replacing, write_bytes

Targets = Mapping[Any, int | Sequence[int]] | str | Path | None
SUFFIXES = (".csv", ".tsv", ".npz", ".parquet", ".h5ad")
LIBRARY_SIZE = "n_umis_total"  # the column of an .h5ad file that is taken as size factor unless another is named


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
    name: str = "data",
) -> Data:
    """A `Data` from a table of one row per sample; every column not named here is a feature.

    env, size_factor, batch: names of columns. control: the label of the observational environment. targets: a
    mapping environment -> latents or the path of a targets file. Raises InputError for unknown columns and names
    the columns that are not numbers.
    """
    columns = [str(c) for c in df.columns]
    named = {"env": env, "size_factor": size_factor, "batch": batch}
    for argument, column in named.items():
        if column is not None and column not in columns:
            reject(argument, f"no column {column!r}", f"one of {_some(columns)}")
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        reject("feature_names", f"{twice!r} more than once", "unique names")
    if df.empty:
        reject("x", f"{len(df)} rows of {len(columns)} columns", "at least 2 rows and 2 features")
    table = df.set_axis(columns, axis=1)
    features = table.drop(columns=[c for c in named.values() if c is not None])
    odd = [c for c in features.columns if not pd.api.types.is_numeric_dtype(features[c])]
    if odd:
        hint = "" if env is not None else " (name the column of environments with env)"
        reject("x", f"columns that are not numbers: {_some(odd)}", f"numeric features{hint}")
    return Data(
        features.to_numpy(dtype=_common_dtype(features)),
        None if env is None else table[env].to_numpy(),
        read_targets(targets),
        control=control,
        counts=counts,
        size_factor=None if size_factor is None else _numbers(table[size_factor], "size_factor"),
        batch=None if batch is None else table[batch].to_numpy(),
        feature_names=list(features.columns),
        name=name,
    )


def from_anndata(
    adata: Any,
    env: str | None = "target",
    control: str | None = "non-targeting",
    size_factor: str | None = LIBRARY_SIZE,
    layer: str | None = None,
    *,
    batch: str | None = None,
    targets: Targets = None,
    counts: bool | None = None,
    name: str = "data",
) -> Data:
    """A `Data` from an AnnData: x is `adata.X` or a layer, feature names are `adata.var_names`.

    env, size_factor, batch: columns of `adata.obs`, or None. control: the label of the cells that are the
    observational environment. counts: None = whether x holds whole numbers from 0 on. Features that do not vary are
    an error, as everywhere. Raises InputError for unknown columns, labels and layers.
    """
    for attribute in ("X", "obs", "var_names", "layers"):
        if not hasattr(adata, attribute):
            reject("adata", f"a {type(adata).__name__}", "an anndata.AnnData")
    columns = [str(c) for c in adata.obs.columns]
    for argument, column in (("env", env), ("size_factor", size_factor), ("batch", batch)):
        if column is not None and column not in columns:
            reject(argument, f"no column {column!r} in obs", f"None or one of {_some(columns)}")
    if layer is not None and layer not in adata.layers:
        reject("layer", repr(layer), f"None or one of {_some(sorted(adata.layers))}")
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        reject("layer", "None, and X is empty", f"one of {_some(sorted(adata.layers))}")
    if env is None:
        control = None
    return Data(
        x,
        None if env is None else adata.obs[env].to_numpy(dtype=object),
        read_targets(targets),
        control=control,
        counts=_whole(x) if counts is None else counts,
        size_factor=None if size_factor is None else _numbers(adata.obs[size_factor], "size_factor"),
        batch=None if batch is None else adata.obs[batch].to_numpy(dtype=object),
        feature_names=[str(v) for v in adata.var_names],
        name=name,
    )


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
    rows = [row for row in csv.reader(text.splitlines(), delimiter=_delimiter(path)) if row]
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


def to_frame(data: Data) -> pd.DataFrame:
    """A table of the features with the environments' names in a last column `env`."""
    x = data.x.toarray() if scipy.sparse.issparse(data.x) else np.asarray(data.x)
    return pd.DataFrame(x, columns=data.feature_names).assign(env=data.env_labels())


def to_anndata(data: Data) -> Any:
    """An AnnData with environments, batches and size factors in `obs`; what is known of z in `obsm["truth_z"]`."""
    anndata = _bio("anndata", "an AnnData")
    names = [str(i) for i in range(data.rows)]
    obs = pd.DataFrame({"env": data.env_labels(), "batch": np.asarray(data.batch_names)[data.batch]}, index=names)
    if data.size_factor is not None:
        obs[LIBRARY_SIZE] = data.size_factor
    var = pd.DataFrame(index=pd.Index(data.feature_names))
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
) -> Data:
    """Read a .csv, .tsv, .npz, .parquet or .h5ad file; arguments as in `from_frame` and `from_anndata`.

    .npz: arrays x and, if wanted, env, size_factor, batch, aux, feature_names, targets (a JSON text), as `write`
    makes it, or one scipy sparse matrix. .h5ad: size factors come from the column "n_umis_total" where x holds
    counts and there is such a column, unless `size_factor` names another. In .csv and .tsv a first column without a
    header holds the names of the rows. Raises InputError for files that are missing, damaged or of another kind.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        reject("path", f"{str(path)!r}", f"a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        reject("path", f"no file {str(path)!r}", f"an existing file ending in {', '.join(SUFFIXES)}")
    targets = read_targets(targets)
    more: dict[str, Any] = {"size_factor": size_factor, "batch": batch, "name": path.stem}
    if path.suffix == ".npz":
        return _read_npz(path, env, control, targets, counts, **more)
    if path.suffix == ".h5ad":
        anndata = _bio("anndata", path.name)
        with _damaged(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = anndata.read_h5ad(path)
        if size_factor is None and counts is not False and LIBRARY_SIZE in adata.obs and _whole(adata.X):
            more["size_factor"] = LIBRARY_SIZE
        return from_anndata(adata, env, control, targets=targets, counts=counts, **more)
    if path.suffix == ".parquet":
        _bio("pyarrow", path.name)
        with _damaged(path):
            table = pd.read_parquet(path)
    else:
        table = _read_table(path)
    return from_frame(table, env, control, targets, counts, **more)


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
    if data.size_factor is not None:
        arrays["size_factor"] = data.size_factor
    if data.aux is not None:
        arrays["aux"] = data.aux
    if len(data.batch_names) > 1:
        arrays["batch"] = np.asarray(data.batch_names)[data.batch]
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
    name: str,
) -> Data:
    with _damaged(path), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if {"format", "shape", "data"} <= arrays.keys():
        with _damaged(path):
            arrays = {"x": scipy.sparse.load_npz(path)}
    columns = {"env": env or "env", "size_factor": size_factor or "size_factor", "batch": batch or "batch"}
    for argument, (given, column) in zip(columns, zip((env, size_factor, batch), columns.values()), strict=True):
        if given is not None and column not in arrays:
            reject(argument, f"no array {column!r} in {path.name}", f"one of {_some(sorted(arrays))}")
    truth: dict[str, Any] = {
        key.removeprefix("truth_"): arrays.pop(key) for key in list(arrays) if key.startswith("truth_")
    }
    known = {"x", "aux", "feature_names", "targets", "control", "counts", *columns.values()}
    odd = sorted(arrays.keys() - known)
    if "x" not in arrays or odd:
        found = f"array {odd[0]!r} in {path.name}" if odd else f"no array 'x' in {path.name}"
        reject("path", found, f"arrays {', '.join(sorted(known))} and truth_ with {', '.join(TRUTH_KEYS)}")
    if targets is None and "targets" in arrays:
        targets = _json_targets(arrays["targets"], "targets", path)
    if "targets" in truth:
        truth["targets"] = _json_targets(truth["targets"], "truth_targets", path)
    if control is None and "control" in arrays:
        control = str(arrays["control"])
    if counts is None and "counts" in arrays:
        counts = bool(arrays["counts"])
    names = arrays.get("feature_names")
    return Data(
        arrays["x"],
        arrays.get(columns["env"]),
        targets,
        control=control,
        counts=counts,
        aux=arrays.get("aux"),
        size_factor=arrays.get(columns["size_factor"]),
        batch=arrays.get(columns["batch"]),
        feature_names=None if names is None else [str(v) for v in names],
        truth=truth,
        name=name,
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


def _read_table(path: Path) -> pd.DataFrame:
    header = next(csv.reader(_text(path, "path").splitlines()[:1], delimiter=_delimiter(path)), [])
    # pandas would rename a second column of the same name
    twice = [h for h in header if header.count(h) > 1]
    if twice:
        reject("feature_names", f"{twice[0]!r} more than once in {path.name}", "unique names")
    index = 0 if header and header[0].strip() == "" else False
    with _damaged(path):
        return pd.read_csv(path, sep=_delimiter(path), index_col=index)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def _text(path: Path, argument: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        reject(argument, f"{str(path)!r} ({reason})", "a readable text file")


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


def _whole(x: Any) -> bool:
    """Whether x holds whole numbers from 0 on and nothing else."""
    values = x.data if scipy.sparse.issparse(x) else np.asarray(x)
    return bool(
        values.dtype.kind in "iub" or (np.isfinite(values).all() and (values == np.round(values)).all())
    ) and bool((values >= 0).all())


def _numbers(column: pd.Series, argument: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column):
        reject(argument, f"column {str(column.name)!r} of {column.dtype}", "a column of numbers above 0")
    return column.to_numpy(dtype=np.float64)


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
