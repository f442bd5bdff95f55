"""What the command line says of data and options, read and checked."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrocrl.cli.arguments import COLUMNS, READING
from pyrocrl.errors import did_you_mean, one_of, reject

if TYPE_CHECKING:
    from pyrocrl.data import Data

TARGET_MODES = ("known", "relabelled", "unknown")


def read_data(source: dict[str, Any]) -> Data:
    """The data that `--data` and its companions name: a data set, a setting or a file."""
    from pyrocrl import datasets, io
    from pyrocrl import simulate as settings

    name = str(source["data"])
    told = {k: source[k] for k in (*COLUMNS, *READING) if source.get(k) is not None}
    without = told.pop("without", ())
    if Path(name).suffix.lower() in io.SUFFIXES:
        return io.read(name, **told).without(*without)
    known = [*datasets.names(), *settings.names()]
    if name not in known:
        if Path(name).exists():
            reject("--data", repr(name), f"a file ending in {', '.join(io.SUFFIXES)}")
        one_of("--data", name, known)
    for given, value in told.items():
        option = "--" + given.replace("_", "-")
        reject(option, repr(value), f"nothing: {name} brings its own; {option} is for files")
    rows = datasets.load(name) if name in datasets.names() else settings.draw(name, seed=source["seed"])
    return rows.without(*without)


def adjusted(rows: Data) -> Data:
    """Without what --adjust names, for a fit; a fit does the same to other rows."""
    from pyrocrl.adjust import Adjustment

    return Adjustment.of(rows)(rows) if rows.covariates else rows


def read_rows(source: dict[str, Any]) -> Data:
    """Those of `read_data` that were fitted: all but what `compare` had put aside."""
    rows = read_data(source)
    return rows.split(source["held_out"], source["seed"])[0] if "held_out" in source else rows


def told_targets(told: list[str] | None) -> tuple[Path | None, str | None]:
    """The file and the word of --targets."""
    files = [text for text in told or () if Path(text).suffix]
    words = [text for text in told or () if not Path(text).suffix]
    for word in words:
        if word not in TARGET_MODES:
            hint = did_you_mean(word, TARGET_MODES)
            reject("--targets", f"{word!r}{hint}", f"{', '.join(TARGET_MODES)}, or a file ending in .json, .csv")
    if len(files) > 1 or len(words) > 1:
        reject("--targets", " and ".join(told or ()), "one word, one file, or one of each")
    return (Path(files[0]) if files else None), (words[0] if words else None)


def number_of(option: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        reject(option, f"{text!r} for {name!r}", "a number")


def assumed(
    latents: int | str | None, targets: str | None, intervention: str | None, mechanism: str | None
) -> dict[str, Any]:
    """What options of their own tell a model, by the names of the model's options."""
    if isinstance(latents, str):
        with contextlib.suppress(ValueError):
            latents = int(latents)
    told = {"latents": latents, "targets": targets, "intervention": intervention, "mechanism": mechanism}
    return {name: value for name, value in told.items() if value is not None}


def command_line(model: str, options: Mapping[str, Any], source: dict[str, Any]) -> str:
    """The command that fits a model to these data under these options."""
    words = ["pyrocrl", "fit", model, "--data", str(source["data"]), "--out", f"runs/{Path(model).stem}"]
    for name in (*COLUMNS, *READING):
        value = source.get(name)
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{name.replace('_', '-')}", str(one)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    if source["seed"]:
        words += ["--seed", str(source["seed"])]
    return shlex.join(words)


def described(*values: Any) -> dict[str, Any]:
    """What a user says of a file, by the names in COLUMNS, as JSON can hold it."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in zip(COLUMNS, values, strict=True)}


def source_of_run(record: dict[str, Any], data: str | None, reading: dict[str, Any], *told: Any) -> dict[str, Any]:
    source = record["source"] if data is None else {"data": data, "seed": record["seed"]}
    return source | {k: v for k, v in described(*told).items() if v is not None} | reading


def data_of_run(record: dict[str, Any], data: str | None, reading: dict[str, Any], *told: Any) -> Data:
    return read_rows(source_of_run(record, data, reading, *told))


def parsed_options(pairs: Sequence[str] | None, dotted: bool = False) -> dict[str, Any]:
    """Options given as k=v, `dotted` ones also as model.k=v; v is JSON where it reads as such, else a text."""
    out: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        names = key.split(".") if dotted else [key]
        if not equals or len(names) > 2 or not all(name.isidentifier() for name in names):
            reject("--option", repr(pair), "K=V, such as rho=0.8")
        if key in out:
            reject("--option", f"{key!r} twice", "each option once")
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
    return out
