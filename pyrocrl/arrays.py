"""Arrays as users hold them, made plain: numpy or scipy CSR of native numbers that torch takes, gaps as NaN.

Nothing is read through a mask, and nothing is dropped on the way: what has no such form is refused.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from pyrocrl.errors import reject

LAZY = ("to_memory", "compute")  # of backed AnnData matrices; of dask's and xarray's


def plain(values: Any, argument: str) -> Any:
    """`values` as a numpy array, or as a scipy CSR matrix where they are sparse, of native numbers.

    Takes numpy arrays (masked, memory-mapped, big-endian, half and long floats), torch tensors (sparse, bfloat16, with
    gradient, on any device), scipy.sparse, tables of pandas with their nullable types, h5py, zarr and dask arrays,
    backed AnnData matrices and nested lists. What is masked or NA becomes NaN. Raises InputError for complex numbers,
    dates, texts, ragged lists, and for sparse matrices whose indices lie outside of them.
    """
    if hasattr(values, "obs") and hasattr(values, "var_names"):
        reject(argument, f"an {type(values).__name__}", "an array; io.from_anndata(adata, env=...) reads an AnnData")
    if isinstance(values, str | bytes | os.PathLike):
        reject(argument, f"the text {values!r}", "an array; io.read(path, env=...) reads a file")
    if hasattr(values, "detach"):
        values = _of_torch(values, argument)
    for load in LAZY:
        if hasattr(values, load):
            values = getattr(values, load)()
    if scipy.sparse.issparse(values):
        return _sparse(values, argument)
    if isinstance(values, list | tuple) and any(isinstance(v, np.ma.MaskedArray) for v in values):
        values = np.ma.array(values)  # numpy itself would drop the rows' masks
    if isinstance(values, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(values)
        values = _numbers(values.data, argument)
        return np.where(hidden, np.nan, values) if hidden.any() else values
    try:
        array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        ragged = "inhomogeneous" in str(error)
        found = "rows of different lengths" if ragged else f"a {type(values).__name__} ({error})"
        reject(argument, found, "a rectangular array of numbers")
    if array.dtype.kind == "O" and array.ndim == 0:
        reject(argument, f"a {type(values).__name__}", "an array of numbers")
    return _numbers(array, argument)


def dense(values: Any, argument: str) -> np.ndarray:
    """As `plain`, sparse matrices filled with their zeros."""
    array = plain(values, argument)
    return array.toarray() if scipy.sparse.issparse(array) else array


def floats(values: Any, argument: str) -> np.ndarray:
    """As `dense`, in float64."""
    return np.asarray(dense(values, argument), dtype=np.float64)


def constant(x: Any) -> np.ndarray:
    """(feature,) whether a plain matrix has one value in all rows of a feature."""
    if isinstance(x, np.ndarray):  # what is missing is passed over
        return np.asarray(np.fmin.reduce(x, 0) == np.fmax.reduce(x, 0))
    return np.asarray(x.min(0).toarray() == x.max(0).toarray()).ravel()


def _of_torch(tensor: Any, argument: str) -> Any:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # bfloat16 and smaller ones, which numpy does not have
    try:
        if tensor.layout is torch.strided:
            return tensor.numpy()
        tensor = tensor.to_sparse_coo().coalesce()
        places = tuple(tensor.indices().numpy())
        return scipy.sparse.coo_matrix((tensor.values().numpy(), places), shape=tuple(tensor.shape))
    except (TypeError, RuntimeError, ValueError) as error:
        found = f"a {type(tensor).__name__} of {tensor.dtype} and shape {tuple(tensor.shape)} ({error})"
        reject(argument, found, "a plain tensor of numbers")


def _sparse(x: Any, argument: str) -> Any:
    if hasattr(x, "check_format"):
        try:
            x.check_format(full_check=True)  # else scipy reads whatever is at these places of memory
        except ValueError as error:
            reject(argument, f"a broken sparse matrix ({error})", "indices inside the matrix")
    if isinstance(getattr(x, "data", None), np.ndarray) and x.data.dtype.kind != "O":
        values = _numbers(x.data, argument)
        if values is not x.data:
            x = copy.copy(x)
            x.data = values
    return x.tocsr()


def _numbers(array: np.ndarray, argument: str) -> np.ndarray:
    """The same numbers in a native type that torch takes; the array itself where it has one."""
    if array.dtype.name == "bfloat16":  # of ml_dtypes, as jax gives it
        return array.astype(np.float32)
    if array.dtype.kind == "O":
        array = _of_objects(array)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "c":
        reject(argument, f"complex numbers ({array.dtype})", "real numbers: x.real, np.abs(x), ... whichever is meant")
    if kind not in "fiub":
        reject(argument, f"dtype {array.dtype}", "floats or integer counts")
    if kind == "u" and size == 8 and array.size and array.max() > np.iinfo(np.int64).max:
        reject(argument, f"{array.max()}", "integers below 2**63")
    if kind == "f" and size not in (4, 8):
        return array.astype(np.float32 if size == 2 else np.float64)
    if kind == "u" and size > 1:
        return array.astype(np.int64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Numbers that came as Python's objects, None and pd.NA as NaN; the array itself if it holds anything else."""
    missing = pd.isna(array)
    kind = pd.api.types.infer_dtype(array[~missing].ravel(), skipna=False)
    if kind not in ("integer", "floating", "mixed-integer-float", "boolean", "decimal"):
        return array
    if kind == "integer" and not missing.any() and all(abs(int(v)) < 2**63 for v in array.ravel()):
        return array.astype(np.int64)
    return np.where(missing, np.nan, array).astype(np.float64)
