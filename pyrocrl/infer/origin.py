"""Where a model came from: every checkpoint keeps it, so that reading one runs nothing that its reader did not name.

An origin is a dict of texts. `kind` is "built-in" (a model of this package), "entry point" (`name`, `value` and
`package` of an installed one), "file", or "class" (made where there is no file, such as in a notebook). All but the
first hold the `class`; a file and an entry point hold `file` and the `sha256` of its text when python made the class.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from pyrocrl.errors import InputError, reject
from pyrocrl.program import Program

GROUP = "pyrocrl.models"  # the entry points by which installed packages register models, name = module:Class
KEYS = {"built-in": set(), "entry point": {"name", "value", "package"}, "file": {"file", "sha256"}, "class": {"class"}}


def registered() -> list[EntryPoint]:
    """The entry points of installed packages, sorted by name; nothing is imported."""
    return list(_registered(tuple(_changed(place) for place in sys.path)))


@lru_cache(maxsize=1)
def _registered(_: tuple[tuple[str, ...], ...]) -> tuple[EntryPoint, ...]:
    """Of packages as they were when those files changed last: every look-up of a name asks for them."""
    return tuple(sorted(entry_points(group=GROUP), key=attrgetter("name", "value")))


def _changed(place: str) -> tuple[str, ...]:
    """A place of packages, and when the list of them, or what each registers, changed last."""
    found = [place]
    with suppress(OSError):
        found.append(str(os.stat(place or ".").st_mtime_ns))
        for name in os.listdir(place or "."):
            if name.endswith((".dist-info", ".egg-info")):
                with suppress(OSError):
                    found.append(str(os.stat(os.path.join(place, name, "entry_points.txt")).st_mtime_ns))
    return tuple(found)


def place(point: EntryPoint) -> tuple[str, str]:
    """(module, class) that an entry point names."""
    module, _, name = point.value.partition("[")[0].partition(":")
    return module.strip(), name.strip()


def package(point: EntryPoint) -> str:
    """Name and version of the package that an entry point is of."""
    return "an unnamed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def origin(kind: type[Program]) -> dict[str, str]:
    """The origin of a model's class."""
    if kind.__module__.startswith("pyrocrl.models."):
        return {"kind": "built-in"}
    found = {"class": kind.__qualname__, **(kind.written_in or {})}
    for point in registered():
        module, name = place(point)
        if getattr(sys.modules.get(module), name, None) is kind:
            return {"kind": "entry point", "name": point.name, "value": point.value, "package": package(point), **found}
    return {"kind": "file" if kind.written_in else "class", **found}


def origin_of(header: dict[str, Any]) -> dict[str, str]:
    """The origin in a checkpoint's header; of files older than origins, that of a built-in model."""
    found = header.get("meta", header).get("origin")
    if found is None:
        return {"kind": "built-in"}
    whole = isinstance(found, dict) and found.get("kind") in KEYS and KEYS[found["kind"]] <= found.keys()
    if not whole or not all(isinstance(value, str) for value in found.values()):
        reject("path", f"a checkpoint whose model came from {found!r}", "a whole checkpoint")
    return found


def same_text(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two classes were made from one text, wherever it stood; True for two without a file."""
    return first.get("sha256") == second.get("sha256")


def describe(found: dict[str, str]) -> str:
    """An origin in words."""
    if found["kind"] == "file":
        return f"the model in {found['file']!r}"
    if found["kind"] == "class":
        return f"the class {found['class']!r}"
    return f"{found['name']!r} of {found['package']}" if found["kind"] == "entry point" else "a model of pyrocrl"


def refuse_other_text(argument: str, header: dict[str, Any], mine: dict[str, str]) -> None:
    """Raise InputError where a fit that is to go on was begun with another text of the model."""
    before = origin_of(header)
    if not same_text(before, mine):
        raise InputError(
            f"{argument}: found a fit of {describe(before)}, begun with another text of it; "
            "allowed: the model as it was then, or a new fit"
        )


def refuse_unnamed(found: dict[str, str]) -> NoReturn:
    """Raise InputError that says how to name the model, of a file or a class; the file is read, but never run."""
    if found["kind"] == "class":
        raise InputError(
            f"program: found None for a fit of {describe(found)}, which was in no file; "
            "allowed: program=the class, or a file of it (in the shell --model FILE)"
        )
    file = found["file"]
    try:
        text = hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else None
    except (OSError, ValueError):
        text = None
    if text is None:
        raise InputError(
            f"program: found no file {file!r}, where the fit's model was; "
            "allowed: program=where it is now, or its class (in the shell --model FILE)"
        )
    if text != found["sha256"]:
        raise InputError(
            f"program: found {file!r} changed since the fit; "
            f"allowed: program={file!r} to take it as it is now, or its class (in the shell --model {file!r})"
        )
    raise InputError(
        f"program: found None for a fit of the model in {file!r}, which is only run where it is named; "
        f"allowed: program={file!r}, or its class (in the shell --model {file!r})"
    )
