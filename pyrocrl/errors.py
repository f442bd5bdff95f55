"""The one error that bad input raises, and the two helpers that word it."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

LONGEST = 160  # characters of one part of a message: a value that was found may be a whole array


class InputError(ValueError):
    """Bad input, told in one line; the command line prints it and exits with code 2."""


def reject(argument: str, found: object, allowed: object) -> NoReturn:
    """Raise `InputError("argument: found ...; allowed: ...")`, always on one line."""
    raise InputError(f"{argument}: found {_line(found)}; allowed: {_line(allowed)}") from None


def one_of(argument: str, value: object, allowed: Iterable[str]) -> str:
    """`value` if it is one of the allowed words; otherwise an `InputError` that names the nearest one."""
    words = sorted(allowed)
    if isinstance(value, str) and value in words:
        return value
    near = get_close_matches(value, words, n=1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    reject(argument, f"{value!r}{hint}", ", ".join(words) or "nothing")


def check_path(argument: str, path: str | os.PathLike[str]) -> None:
    """Raise InputError for a path to write to that no system or no reader takes: with a NUL, or not in UTF-8."""
    try:
        name = os.fsencode(path).decode()
    except UnicodeError:
        name = "\0"
    if "\0" in name:
        reject(argument, repr(os.fspath(path)), "a path in UTF-8, without NUL characters")


def _line(part: object) -> str:
    line = " ".join(str(part).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
