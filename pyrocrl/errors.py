"""The one error that bad input raises, and the two helpers that word it."""

import os
from collections.abc import Iterable, Sequence
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
    reject(argument, shown(value) + did_you_mean(value, words), ", ".join(words) or "nothing")


def did_you_mean(value: object, words: Iterable[str]) -> str:
    """ " (did you mean 'word'?)" for the nearest word; nothing where none is near."""
    near = get_close_matches(value, list(words), n=1) if isinstance(value, str) else []
    opposite = near and str(value).endswith(near[0])  # "unknown" is not meant by "known", nor "nonlinear" by "linear"
    return f" (did you mean {near[0]!r}?)" if near and not opposite else ""


def shown(value: object) -> str:
    """A value as python writes it, and its type where python cannot."""
    try:
        return repr(value)
    except Exception:  # numbers of thousands of digits, objects in a state that they cannot show
        return f"a {type(value).__name__}"


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


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first names as texts, and how many there are where more are."""
    shown = ", ".join(repr(str(name)) for name in names[:most])  # numpy's texts would show their type
    return shown + (f", ... ({len(names)})" if len(names) > most else "")
