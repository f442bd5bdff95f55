"""One file holds a fit, finished or interrupted: safetensors with a JSON header, never pickle.

It is written to a temporary file beside its place and renamed, so that a kill leaves the last good one. A digest over
header and tensors names the fit: what is made from a fit carries it, and a file whose content has another is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyrocrl.data import Data
from pyrocrl.errors import InputError, reject
from pyrocrl.files import write_bytes

FORMAT = "pyrocrl-fit-2"
UNSAFE = "pyrocrl-fit-1"  # before the digest was of the header as well


def write(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Write tensors and a JSON header to `path`, all or nothing."""
    meta = {"format": FORMAT, "header": json.dumps(header), "digest": digest(tensors, header)}
    return write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, meta), path)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a file that `write` made.

    Raises InputError for a missing, truncated, edited or foreign file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.safetensors"
    if not path.is_file():
        raise InputError(f"path: no checkpoint at {path}; allowed: a file that fit.save() or `pyrocrl fit` wrote")
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                found = meta.get("format", "no format")
                if found == UNSAFE:
                    old = f"{path}, written by an older pyrocrl, with a header that nothing protects"
                    reject("path", old, "a checkpoint of this version: fit anew")
                raise InputError(f"path: {path} is no checkpoint of pyrocrl (found {found!r}); allowed: {FORMAT!r}")
            header = json.loads(meta["header"])
            names = sorted(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        found = f"{path}, damaged or foreign ({_reason(error)})"
        raise InputError(f"path: found {found}; allowed: a whole checkpoint") from None
    if meta.get("digest") != digest(tensors, header):
        raise InputError(f"path: {path} was edited (its digest does not match); allowed: an unchanged checkpoint")
    return tensors, header


def digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """A digest of the header as JSON gives it back, and of the tensors' names, shapes and values."""
    out = hashlib.sha256(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        out.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        out.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return out.hexdigest()


def fingerprint(data: Data) -> str:
    """A digest of the data's shape, names and up to 1000 of its rows, to tell one data set from another."""
    out = hashlib.sha256(f"{data.rows}x{data.features}{data.counts}{data.env_names}{data.targets}".encode())
    out.update("\n".join(data.feature_names).encode())
    rows = np.unique(np.linspace(0, data.rows - 1, 1000).astype(int))
    x = data.x[rows]
    x = x.toarray() if scipy.sparse.issparse(x) else np.asarray(x)
    out.update(np.ascontiguousarray(x, dtype=np.float64).tobytes())
    out.update(np.ascontiguousarray(data.env[rows]).tobytes())
    if data.pair is not None:
        out.update(np.ascontiguousarray(2 * data.pair[rows] + data.after[rows]).tobytes())
    if data.clock is not None:
        out.update(np.ascontiguousarray(data.clock[rows]).tobytes())
    if data.view is not None:
        out.update("\n".join(data.view_labels()).encode())
    return out.hexdigest()


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
