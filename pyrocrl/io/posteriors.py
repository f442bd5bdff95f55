"""Posteriors to and from netCDF; tables and JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyrocrl.errors import reject
from pyrocrl.files import write_bytes


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
    return write_bytes((json.dumps(finite(value), indent=1) + "\n").encode(), path)


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, np.generic):
        return finite(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value
