"""What values an option may have: told by its annotation and checked once, the same in Python, shell and checkpoint.

    def __init__(self, features: int, latents: Annotated[int, Bounds(2, 6)], share: Annotated[float, Bounds(0, 1)])

A whole number lies from one bound to the other, a float strictly between them unless the bounds' `ends` say otherwise.
True is no number, numbers are finite, and numpy's count as python's. A text in `Annotated` says what the option means
where the docstring does not.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import os
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np

from pyrocrl.errors import InputError, did_you_mean, one_of, reject, shown

REQUIRED = inspect.Parameter.empty
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Bounds:
    """From `low` to `high`. ends: of floats, "[" or "]" where the bound itself is allowed."""

    low: float = -math.inf
    high: float = math.inf
    ends: Literal["()", "[)", "(]", "[]"] = "()"

    def hold(self, value: float, whole: bool) -> bool:
        above = self.low <= value if whole or self.ends[0] == "[" else self.low < value
        return above and (value <= self.high if whole or self.ends[1] == "]" else value < self.high)

    def words(self, whole: bool) -> str:
        number, low, high = "a whole number" if whole else "a number", f"{self.low:g}", f"{self.high:g}"
        if self == Bounds():
            return number if whole else "a finite number"
        if self.high == math.inf:
            return f"{number} from {low} on" if whole or self.ends[0] == "[" else f"{number} above {low}"
        if whole or self.ends == "[]":
            return f"{number} from {low} to {high}"
        if self.ends == "()":
            return f"{number} strictly between {low} and {high}"
        return f"{number} from {low} to below {high}" if self.ends == "[)" else f"{number} above {low}, at most {high}"


ANY = Bounds()
Size = Annotated[int, Bounds(1)]
Natural = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Fraction = Annotated[float, Bounds(0, 1, "[]")]
Deviation = Annotated[float, Bounds(0, ends="[)")]
Seed = Annotated[int, Bounds(0), "everything random follows it"]


@dataclass(frozen=True)
class Option:
    """An argument: its annotation, its default (`REQUIRED` = none) and what it means."""

    name: str
    hint: Any
    default: Any
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        """Plain texts and values, ready for JSON."""
        default = {} if self.default is REQUIRED else {"default": self.default}
        return {"name": self.name, "meaning": self.meaning, **default, "allowed": words(self.hint)}


def reach(hint: Any) -> tuple[float, float]:
    """The least and the largest value that all bounds of an annotated number leave."""
    bounds = [one for one in get_args(hint) if isinstance(one, Bounds)]
    return max((one.low for one in bounds), default=-math.inf), min((one.high for one in bounds), default=math.inf)


@functools.cache
def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The arguments of a function by name, without `self` and without those that only stars take."""
    function = inspect.unwrap(function)
    found = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only type checkers import
        hints = {}
    told = meanings(inspect.getdoc(function) or "", [p.name for p in found])
    return {
        p.name: Option(p.name, hint := hints.get(p.name, Any), p.default, told.get(p.name, _note(hint))) for p in found
    }


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class's attributes."""
    return typing.get_type_hints(kind, include_extras=True)


def open_ended(function: Callable[..., Any]) -> bool:
    """Whether a function takes `**options` of any name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def bound(what: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, checked and with defaults; `self` is not among them.

    Raises InputError for unknown and missing names and for values that are not allowed; what: whose options they are.
    """
    known = options_of(function)
    given = {**dict(zip(known, args, strict=False)), **kwargs}
    if len(args) > len(known) or len(given) < len(args) + len(kwargs):
        inspect.signature(function).bind(None, *args, **kwargs)  # python's own error for a call of no sense
    if not open_ended(function):
        known_names(what, given, known)
    for name, option in known.items():
        if name not in given and option.default is REQUIRED:
            meaning = f" ({textwrap.shorten(option.meaning, 100, placeholder=' ...')})" if option.meaning else ""
            raise InputError(f"{name}: missing; {what} needs a value for it; allowed: {words(option.hint)}{meaning}")
    return {
        name: conform(name, given[name], known[name].hint if name in known else Any)
        if name in given
        else known[name].default
        for name in {**known, **given}
    }


def known_names(what: str, given: Iterable[str], known: Iterable[str], noun: str = "an option") -> None:
    """Raise InputError for the first name that is none of the known."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"{name}: not {noun} of {what}{hint}; allowed: {', '.join(known) or 'none'}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are checked by their annotations before it is called."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = inspect.signature(function).bind(*args, **kwargs)
        known = options_of(function)
        for name, value in given.arguments.items():
            if name in known:
                given.arguments[name] = conform(name, value, known[name].hint)
        return function(*given.args, **given.kwargs)

    return call


def conform(name: str, value: Any, hint: Any) -> Any:
    """`value` as python's own number, text, list or mapping. Raises InputError, about `name`, unless the hint allows
    it."""
    kind, bounds = _plain(hint)
    origin = get_origin(kind) or kind
    if kind is Any or isinstance(kind, str | TypeVar):
        return value.item() if isinstance(value, np.generic) else value
    if origin in (Union, types.UnionType):
        return _one_of_kinds(name, value, hint)
    if kind is type(None):
        return None if value is None else reject(name, shown(value), "None")
    if origin is Literal:
        return _literal(name, value, get_args(kind))
    if kind is bool:
        return bool(value) if isinstance(value, bool | np.bool_) else reject(name, shown(value), words(kind))
    if kind in (int, float):
        return _number(name, value, kind, bounds)
    if kind is str:
        return str(value) if isinstance(value, str) else reject(name, shown(value), words(kind))
    if origin in (list, tuple, collections.abc.Sequence):
        return _listed(name, value, kind, origin)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            reject(name, shown(value), "a mapping")
        inner = (get_args(kind) or (Any, Any))[1]
        return {key: conform(f"{name}[{key!r}]", item, inner) for key, item in value.items()}
    if origin is collections.abc.Callable:
        return value if callable(value) else reject(name, shown(value), "a function")
    if kind is Path:
        if not isinstance(value, str | os.PathLike) or "\0" in os.fspath(value):
            reject(name, shown(value), "a path")
        return value
    if isinstance(origin, type) and not isinstance(value, origin):
        found = "None" if value is None else repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        reject(name, f"the class {value.__name__}" if isinstance(value, type) else found, words(kind))
    return value


def words(hint: Any) -> str:
    """What a hint allows."""
    kind, bounds = _plain(hint)
    origin = get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(words, get_args(kind))))
    if origin is Literal:
        return ", ".join(str(word) for word in get_args(kind))
    if kind in (int, float):
        return bounds.words(kind is int)
    known: dict[Any, str] = {bool: "True or False", str: "a text", type(None): "None", Path: "a path", Any: "anything"}
    known |= {list: "a list", tuple: "a list", collections.abc.Sequence: "a list"}
    known |= {dict: "a mapping", collections.abc.Mapping: "a mapping", collections.abc.Callable: "a function"}
    if origin in known:
        return known[origin]
    if not isinstance(origin, type):
        return "anything"
    made = getattr(origin, "made_by", None)  # how a user comes by one
    return f"a {origin.__module__.split('.')[0]}.{origin.__name__}" + (f", made by {made}" if made else "")


def choices(hint: Any) -> tuple[Any, ...]:
    """The words that a hint of choices allows; none for other hints."""
    kind, _ = _plain(hint)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(word for part in get_args(kind) for word in choices(part))
    return get_args(kind) if get_origin(kind) is Literal else ()


def meanings(text: str, names: Sequence[str]) -> dict[str, str]:
    """What a docstring says of each of these names: "name: meaning." or "one, two: meaning." """
    if not names:
        return {}
    import re

    name = "|".join(map(re.escape, names))
    text = " ".join(text.split()).split(" Raises InputError")[0]
    heads = list(re.finditer(rf"(?:^|(?<=[.;] ))((?:{name})(?:, (?:{name}))*): ", text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return {
        one: text[head.end() : end].strip(" .;")
        for head, end in zip(heads, ends, strict=False)
        for one in head[1].split(", ")
    }


# -- sizes -------------------------------------------------------------------------------------------------------


def memory() -> float:
    """Bytes of memory of this machine; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def check_memory(argument: str, found: Any, need: float, room: float | None = None) -> None:
    """Raise InputError where `need` bytes, the least that this value of an argument takes, are more than there are."""
    room = memory() if room is None else room
    if need > room:
        reject(
            argument, f"{shown(found)}, which takes {_bytes(need)} or more", f"what fits into {_bytes(room)} of memory"
        )


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB" if count >= 1e10 else f"{count / 1e9:.2g} GB"


# -- one kind of hint each ------------------------------------------------------------------------------------


def _plain(hint: Any) -> tuple[Any, Bounds]:
    """A hint without its notes, and its bounds."""
    notes: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
    told = [note for note in notes if isinstance(note, Bounds)]  # the outermost last
    return (type(None) if hint is None else hint), (told[-1] if told else ANY)


def _note(hint: Any) -> str:
    """The text among a hint's notes."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(filter(None, map(_note, get_args(hint))), "")
    return next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, str)), "")


def _number(name: str, value: Any, kind: type, bounds: Bounds) -> Any:
    whole = kind is int
    allowed = int | np.integer if whole else int | float | np.integer | np.floating
    if isinstance(value, allowed) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) >= 2**63:
            reject(name, shown(value), f"{bounds.words(whole)}, of 64 bits")
        number = kind(value)
        if math.isfinite(number) and bounds.hold(number, whole):
            return number
    reject(name, shown(value), bounds.words(whole))


def _literal(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if all(isinstance(word, str) for word in allowed):
        return str(one_of(name, value, allowed))
    for word in allowed:
        if type(word) is type(value) and word == value:
            return word
    reject(name, shown(value), ", ".join(map(str, allowed)))


def _one_of_kinds(name: str, value: Any, hint: Any) -> Any:
    """Of the kinds that are allowed the first that takes the value; the error is of the one kind beside None."""
    parts = get_args(_plain(hint)[0])
    parts = tuple(part for part in parts if part is not str or Path not in parts)
    for part in parts:
        try:
            return conform(name, value, part)
        except InputError:
            continue
    others = [part for part in parts if _plain(part)[0] is not type(None)]
    if len(others) == 1 and value is not None:
        try:
            conform(name, value, others[0])
        except InputError as error:
            raise InputError(f"{error} or None" if len(others) < len(parts) else str(error)) from None
    reject(name, shown(value), words(hint))


def _listed(name: str, value: Any, kind: Any, origin: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence):
        reject(name, shown(value), words(kind))
    inner = get_args(kind)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            reject(name, shown(value), f"{len(inner)} values: {', '.join(map(words, inner))}")
        return tuple(
            conform(f"{name}[{i}]", item, part) for i, (item, part) in enumerate(zip(value, inner, strict=True))
        )
    items = [conform(f"{name}[{i}]", item, inner[0] if inner else Any) for i, item in enumerate(value)]
    return tuple(items) if origin is tuple else items
