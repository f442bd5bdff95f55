"""Mechanisms of actions, z' = A z + b, as users tell them: by names, in files, in the order of environments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocrl.errors import reject
from pyrocrl.exact.equivariances import Mechanisms

UNKNOWN = "unknown"


def in_order(mechanisms: Any, actions: Sequence[str]) -> Any:
    """Mechanisms told by names of actions, or in a .json file, as a list in the order of `actions`; others as they are.
    Raises InputError for a file that cannot be read, and for names that are none or are missing."""
    if isinstance(mechanisms, str):
        try:
            mechanisms = json.loads(Path(mechanisms).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = type(error).__name__ if isinstance(error, ValueError) else error.strerror
            reject("mechanisms", f"{mechanisms!r}, which cannot be read ({why})", "a .json file of them")
    if not isinstance(mechanisms, Mapping):
        return mechanisms
    for name in mechanisms:
        if name not in actions:
            reject("mechanisms", f"{name!r}", f"environments other than the control: {', '.join(actions[:20])}")
    for name in actions:
        if name not in mechanisms:
            reject("mechanisms", f"none of {name!r}", "one for each environment but the control")
    return [mechanisms[name] for name in actions]


def told(mechanisms: Any, latents: int, environments: int) -> Mechanisms:
    """Mechanisms as `EquivariantMechanism` is told them, in the order of environments after the control. Raises
    InputError."""
    if not isinstance(mechanisms, list):
        reject("mechanisms", f"a {type(mechanisms).__name__}", "a list; names are read off data")
    if len(mechanisms) != environments - 1:
        reject(
            "mechanisms", f"{len(mechanisms)} of them", f"{environments - 1}, one for each environment but the control"
        )
    matrix, offset = [], []
    for place, one in enumerate(mechanisms):
        name = f"mechanisms[{place}]"
        if not isinstance(one, Mapping) or not one or set(one) - {"matrix", "offset"}:
            reject(name, repr(one)[:60], "{'matrix': ..., 'offset': ...}, one of them or both")
        matrix.append(_numbers(f"{name}['matrix']", one.get("matrix"), (latents, latents)))
        if one.get("offset") == UNKNOWN and isinstance(one["offset"], str):
            offset.append(np.full(latents, np.nan))
        else:
            offset.append(_numbers(f"{name}['offset']", one.get("offset"), (latents,)))
        value = np.linalg.svd(matrix[-1], compute_uv=False)
        if value[-1] <= 1e-9 * value[0]:
            reject(
                f"{name}['matrix']",
                f"rank {int((value > 1e-9 * value[0]).sum())}",
                f"an invertible matrix, rank {latents}",
            )
    known = Mechanisms(np.stack(matrix), np.stack(offset))
    if not known.told.all() and (known.told.any() or not np.allclose(known.matrix, np.eye(latents))):
        reject("mechanisms", "offsets of which some are unknown", "all unknown, and no matrices, or all told")
    return known


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of finite numbers of this shape; the identity, or zeros, where there is none."""
    if value is None:
        return np.eye(*shape) if len(shape) == 2 else np.zeros(shape)
    allowed = f"finite numbers of shape {shape}" + (f", or {UNKNOWN!r}" if len(shape) == 1 else "")
    try:
        out = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        reject(name, repr(value)[:60], allowed)
    if out.shape != shape or not np.isfinite(out).all():
        reject(name, f"shape {out.shape}" if out.shape != shape else "NaN or infinity", allowed)
    return out
