"""Tables in memory to and from `Data`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from pyrocrl.arrays import are_counts, floats
from pyrocrl.data import Data
from pyrocrl.errors import listed, reject
from pyrocrl.io.targets import Targets, read_targets
from pyrocrl.io.texts import text_of

Views = Mapping[str, Sequence[str]] | str | Sequence[str] | None
# columns that are taken for size factors of counts unless another is named, the first that is there
LIBRARY_SIZES = ("n_umis_total", "n_counts", "total_counts", "nCount_RNA")


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
    columns, adjust = [str(c) for c in df.columns], several(adjust)
    named = {"env": env, "size_factor": None if size_factor == "none" else size_factor, "batch": batch}
    named |= {"pair": pair, "series": series, "step": step}
    for argument, column in [*named.items(), *(("adjust", column) for column in adjust)]:
        if column is not None and column not in columns:
            reject(argument, f"no column {column!r}", f"one of {listed(columns)}")
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
        reject("x", f"columns that are not numbers: {listed(odd)}", f"numeric features{hint}")
    totals = [c for c in LIBRARY_SIZES if c in features.columns]
    genes = features.drop(columns=totals)
    x = genes.to_numpy(dtype=_common_dtype(genes))
    counted = (x.dtype.kind == "i" and are_counts(x)) if counts is None else counts
    if not counted:  # then a column is a feature, whatever its name
        genes, totals = features, []
        x = genes.to_numpy(dtype=_common_dtype(genes))
    sizes, assumed = size_factors(table, size_factor, totals)
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
        view=views_told(view, list(genes.columns)),
        missing=missing,
        covariates=table[adjust] if adjust else None,
        feature_names=list(genes.columns),
        row_names=list(table.index),
        name=name,
    )
    data.assumed |= assumed
    return data


def views_told(view: Views, features: Sequence[str]) -> Any:
    """Views as `Data` takes them: a mapping as it is, beginnings of names as the views' names of all features."""
    if view is None or isinstance(view, Mapping):
        return view
    starts = sorted(several(view), key=len, reverse=True)  # the longest first: "rna_nuclear_" before "rna_"
    out = []
    for feature in features:
        start = next((s for s in starts if s and feature.startswith(s)), None)
        if start is None:
            reject("view", f"feature {feature!r}", f"names that begin with one of {listed(starts)}")
        out.append(start.rstrip("_:.-/| ") or start)
    if unused := [s for s in starts if not any(feature.startswith(s) for feature in features)]:
        reject(
            "view", f"{unused[0]!r}, with which no feature begins", f"beginnings of names such as {listed(features, 3)}"
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


def several(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def size_factors(table: pd.DataFrame, told: str | None, totals: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Size factors as `Data` takes them, of the column that is told or else of the first of `totals`, and what is then
    to be added to `Data.assumed`."""
    if told == "none" or (told is None and not totals):
        return told, {}
    column = totals[0] if told is None else told
    return _numbers(table[column], "size_factor"), {"size_factor": f"column {column!r}"} if told is None else {}


def read_columns(
    path: str | Path, columns: Sequence[str], argument: str, optional: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """Lines of a .csv or .tsv file with just these columns, in any order, as texts; those of `optional` come after
    the others, where it has them all. Raises InputError, about `argument`."""
    path = Path(path)
    if path.suffix not in (".csv", ".tsv"):
        reject(argument, repr(str(path)), f"a .csv or .tsv file with the columns {', '.join(columns)}")
    lines = text_of(path, argument).splitlines()
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
    return table.assign(env=data.env_labels(), **order_columns(data))


def order_columns(data: Data) -> dict[str, np.ndarray]:
    """Columns `pair` or `series`, and `step`, as they are read; none without either."""
    if data.series is not None:
        return {"series": data.series_labels(), "step": data.step}
    if data.pair is None:
        return {}
    return {"pair": data.pair_labels(), "step": np.where(data.after, "after", "before")}


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
