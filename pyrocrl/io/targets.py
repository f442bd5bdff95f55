"""Targets of environments: from mappings, JSON and CSV files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocrl.errors import reject
from pyrocrl.io.texts import separator, text_of

Targets = Mapping[Any, int | Sequence[int]] | str | Path | None


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
    text = text_of(path, "targets")
    if path.suffix == ".json":
        try:
            found = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            reject("targets", f"{path}: {error}", 'JSON such as {"environment": [0]}')
        if not isinstance(found, dict):
            reject("targets", f"{path}: a JSON {type(found).__name__}", 'JSON such as {"environment": [0]}')
        return found
    lines = text.splitlines()
    rows = [row for row in csv.reader(lines, delimiter=separator(path, "".join(lines[:1]))) if row]
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


def targets_as_json(targets: Mapping[Any, Sequence[int]]) -> str:
    return json.dumps({str(env): list(latents) for env, latents in targets.items()})


def targets_of_json(value: np.ndarray, argument: str, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        found = json.loads(str(value))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        reject(argument, f"{str(value)[:40]!r} in {path.name}", 'a JSON text such as {"environment": [0]}')
    out = read_targets(found)
    assert out is not None
    return out
