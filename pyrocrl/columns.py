"""Names of columns and rows of tables, and where those of a fit stand in another table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyrocrl.errors import listed, reject
from pyrocrl.labels import check_texts


def checked_names(argument: str, names: Any, count: int, kind: str, of: str) -> list[str]:
    """Unique names of `count` columns; numbered ones for None."""
    out = numbered(kind, count) if names is None else [str(name) for name in names]
    if len(out) != count:
        reject(argument, f"{len(out)} names", f"one per {of}, {count}")
    if len(set(out)) != count:
        reject(argument, f"{next(n for n in out if out.count(n) > 1)!r} more than once", "unique names")
    check_texts(out, argument)
    return out


def check_order(argument: str, values: Any, x: Any) -> None:
    """Labels are taken by position: their own index must not say that they stand in another order than x."""
    own, order = index_of(values), index_of(x)
    if own is None or order is None or own.equals(order) or sorted(map(str, own)) != sorted(map(str, order)):
        return
    place = next(i for i, (a, b) in enumerate(zip(own, order, strict=True)) if str(a) != str(b))
    reject(argument, f"row {str(own[place])!r} where x has {str(order[place])!r}", "rows in the order of x")


def index_of(table: Any) -> Any:
    """The index of a pandas table or series; None for all else."""
    index = getattr(table, "index", None)
    return index if hasattr(index, "equals") else None


def columns_of(table: Any) -> list[str] | None:
    """Names of a table's columns or of a series; None where there are none, or only positions."""
    columns = [str(c) for c in getattr(table, "columns", ())]
    if not columns and index_of(table) is not None and getattr(table, "name", None) is not None:
        columns = [str(table.name)]
    return None if columns == [str(j) for j in range(len(columns))] else columns


def numbered(kind: str, count: int) -> list[str]:
    """Names of columns that have none."""
    return [f"{kind}_{j}" for j in range(count)]


def places(argument: str, found: Sequence[str], wanted: Sequence[str], kind: str = "feature") -> list[int]:
    """Positions in `found` of the columns `wanted`, those of a fit: by name, or where neither has names as they stand.

    Raises InputError unless both have the same names, in any order. kind: as in the names of columns without any.
    """
    found, wanted = list(found), list(wanted)
    at = {name: place for place, name in enumerate(found)}
    lacks, odd = [n for n in wanted if n not in at], sorted(at.keys() - set(wanted), key=lambda n: at[n])
    if not lacks and not odd:
        return [at[name] for name in wanted]
    nameless = [names == numbered(kind, len(names)) for names in (found, wanted)]
    count, need = len(found), len(wanted)
    if not found or not wanted or all(nameless):
        reject(argument, f"{count or 'no'} column{'s' * (count != 1)}", f"{need or 'none'}, as in the fit")
    if nameless[0]:
        reject(argument, f"{count} columns without names", f"the {need} of the fit by name, {listed(wanted)}")
    if nameless[1]:
        reject(argument, listed(found, 3), f"{need} columns without names, as in the fit")
    parts = [f"{word} {listed(names, 3)}" for word, names in (("no", lacks), ("unknown", odd)) if names]
    reject(argument, " and ".join(parts), f"the {need} of the fit in any order, {listed(wanted)}")
