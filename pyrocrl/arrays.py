"""Arrays as users hold them, made plain: numpy or scipy CSR of native numbers that torch takes, gaps as NaN.

What lies on disk or comes in blocks is read block by block and kept in the smaller of both forms. Nothing is read
through a mask, and nothing is dropped on the way: what has no such form is refused.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from pyrocrl.errors import reject

LAZY = ("to_memory", "compute")  # of backed AnnData matrices; of dask's and xarray's
MOST_RATED = 100  # whole numbers from 1 to this one, without a 0, are ratings, ages or percentages and not counts
BLOCK = 4_000_000  # entries that are read at once of what lies on disk


def plain(values: Any, argument: str) -> Any:
    """`values` as a numpy array, or as a scipy CSR matrix where they are sparse, of native numbers.

    Takes numpy arrays (masked, memory-mapped, big-endian, half and long floats), torch tensors (sparse, bfloat16, with
    gradient, on any device), scipy.sparse, tables of pandas with their nullable types, h5py, zarr and dask arrays,
    backed AnnData matrices, nested lists, and iterators of blocks of rows of any of these. What is masked or NA becomes
    NaN. Arrays that are read from disk and have more than `BLOCK` entries, and blocks, come out sparse where that takes
    less memory, and are never in memory as a whole in any other form. Raises InputError for complex numbers,
    dates, texts, ragged lists, and for sparse matrices whose indices lie outside of them.
    """
    if hasattr(values, "obs") and hasattr(values, "var_names"):
        reject(argument, f"an {type(values).__name__}", "an array; io.from_anndata(adata, env=...) reads an AnnData")
    if isinstance(values, str | bytes | os.PathLike):
        reject(argument, f"the text {values!r}", "an array; io.read(path, env=...) reads a file")
    if hasattr(values, "detach"):
        values = _of_torch(values, argument)
    if isinstance(values, Iterator):
        return stacked(values, argument)
    if _on_disk(values):
        step = max(1, BLOCK // max(1, values.shape[1]))
        return stacked((values[at : at + step] for at in range(0, values.shape[0], step)), argument)
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


def _on_disk(values: Any) -> bool:
    """Whether these are the rows of a large array of h5py, zarr or dask, of which parts can be read."""
    if isinstance(values, np.ndarray | np.generic) or scipy.sparse.issparse(values) or hasattr(values, "to_numpy"):
        return False
    shape: Any = getattr(values, "shape", ())
    return len(shape) == 2 and hasattr(values, "chunks") and shape[0] * shape[1] > BLOCK


def stacked(blocks: Iterable[Any], argument: str) -> Any:
    """Blocks of rows, one below the other, as `plain` gives each, read one by one; sparse where that is smaller."""
    parts: list[Any] = []
    width, whole = None, 0
    for block in blocks:
        part = plain(block, argument)
        if part.ndim != 2 or width not in (None, part.shape[1]):
            allowed = "blocks of rows, (rows, feature)" + (
                "" if width is None else f" with {width} columns as the first"
            )
            reject(argument, f"a block of shape {part.shape}", allowed)
        width = part.shape[1]
        whole += part.shape[0] * width * part.dtype.itemsize
        if not scipy.sparse.issparse(part) and _sparse_bytes(part) < part.nbytes:
            part = scipy.sparse.csr_matrix(part)
        parts.append(part)
    if width is None:
        reject(argument, "no blocks", "one or more")
    if sum(_sparse_bytes(part) for part in parts) >= whole:
        return np.concatenate([p.toarray() if scipy.sparse.issparse(p) else p for p in parts])
    return _joined([p if scipy.sparse.issparse(p) else scipy.sparse.csr_matrix(p) for p in parts], width)


def _sparse_bytes(part: Any) -> int:
    """Of a plain matrix as CSR."""
    filled = part.nnz if scipy.sparse.issparse(part) else int(np.count_nonzero(part))
    return int(filled * (part.dtype.itemsize + 4) + 4 * part.shape[0])


def _joined(parts: list[Any], width: int) -> Any:
    """CSR matrices one below the other; `parts` is emptied, so that few of their numbers are there twice."""
    rows = np.concatenate([np.diff(p.indptr) for p in parts])
    pieces = {"data": [p.data for p in parts], "indices": [p.indices for p in parts]}
    parts.clear()
    total = np.concatenate([[0], np.cumsum(rows)])
    data = np.concatenate(pieces.pop("data"))
    indices = np.concatenate(pieces.pop("indices"))
    return scipy.sparse.csr_matrix((data, indices, total.astype(indices.dtype)), shape=(len(rows), width))


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


def are_counts(x: Any) -> bool:
    """Whether all of x (data, feature), dense or sparse, are whole numbers from 0 on, and one is 0 or above 100."""
    if 0 in x.shape:
        return False
    if x.dtype.kind not in "iub":
        values = x.data.reshape(-1, 1) if scipy.sparse.issparse(x) else x
        for _, block in blocks(values):
            with np.errstate(invalid="ignore"):
                if not ((block == np.round(block)) | np.isnan(block)).all():
                    return False
    low, high = x.min(), x.max()
    if np.isnan(low):  # what is missing says nothing
        stored = x.data if scipy.sparse.issparse(x) else x
        if np.isnan(stored).all():
            return False
        low, high = np.nanmin(stored), np.nanmax(stored)
        low = min(low, 0) if scipy.sparse.issparse(x) and x.nnz < x.shape[0] * x.shape[1] else low
    return bool(low == 0 or (low > 0 and high > MOST_RATED))


def blocks(x: Any, cells: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """Dense blocks of rows of about `cells` entries each, with the position of their first row."""
    step = max(1, cells // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        block = x[start : start + step]
        yield start, block.toarray() if scipy.sparse.issparse(block) else np.asarray(block)
