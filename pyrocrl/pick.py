"""Which rows and columns of a file are read, and how labels of combinations are: options of `io.read` for every file.

A condition is `column == value`, `column != value` or `column in [value, ...]`, with values in quotes where they hold a
comma or a space that matters. It is compared, never run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pyrocrl.arrays import constant, floats, plain
from pyrocrl.errors import listed, reject
from pyrocrl.labels import combined, parts, row_labels

NAME = r"""`([^`]+)`|"([^"]+)"|'([^']+)'|(.+?)"""
CONDITION = re.compile(rf"\s*(?:{NAME})\s*(==|!=|\bnot\s+in\b|(?<=\s)in\b)\s*(.*?)\s*")
VALUE = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|([^\s'",]+(?:\s+[^\s'",]+)*))\s*""")
CONSTANT = "constant"  # stands for all features that do not vary
# arrays of a .npz with an entry for each row of x, or for each of its columns
BY_ROW = (
    "x",
    "aux",
    "row_names",
    "truth_z",
    "truth_innovations",
    "truth_component",
    "truth_row_target",
    "truth_private",
    "truth_state",
)
BY_FEATURE = ("feature_names", "view", "truth_mask", "truth_loadings")
Targets = dict[str, tuple[int, ...]] | None


@dataclass(frozen=True)
class Pick:
    """where: conditions on rows, which all hold. drop: columns, or "constant". combine: what stands between the parts
    of labels in the column `env`, in which `control` is no part; None = labels are as they stand."""

    where: Sequence[str]
    drop: Sequence[str]
    env: str | None
    control: str | None
    combine: str | None

    def rows(self, table: pd.DataFrame, targets: Targets) -> tuple[np.ndarray, pd.DataFrame, Targets]:
        """(which rows are kept, the table of these with combined labels, the targets of environments that they have).

        Raises InputError for conditions that no row meets, and for columns that are not there.
        """
        keep = np.ones(len(table), dtype=bool)
        for condition in self.where:
            keep &= meets(condition, table)
        if self.where and not keep.any():
            reject("where", " and ".join(map(repr, self.where)), "conditions that a row meets")
        if self.combine is not None and self.env is None:
            reject("env", f"None with combine={self.combine!r}", "the column of environments")
        left = table[keep].copy()
        if self.env not in table.columns:
            return keep, left, targets
        known = _names(table[self.env])
        if self.combine is None:
            self._warn_of_parts(known)
        else:
            left[self.env], known, targets = self._combined(left[self.env], known, targets)
        gone = known - _names(left[self.env])
        kept = None if targets is None else {label: k for label, k in targets.items() if label.strip() not in gone}
        return keep, left, kept

    def _warn_of_parts(self, labels: set[str]) -> None:
        """Labels such as "A+ctrl" name the control, and each is an environment of its own."""
        named = [x for x in sorted(labels) if x != self.control and self.control in [p.strip() for p in x.split("+")]]
        if named:
            line = f"env: labels such as {named[0]!r} name the control; combine='+' (--combine +) reads combinations"
            warnings.warn(line, UserWarning, stacklevel=4)

    def columns(self, names: Sequence[Any], same: Callable[[], Iterable[bool]]) -> list[int]:
        """Positions of the columns that are not dropped. same: which columns have one value in all rows, the ones that
        the word "constant" stands for where no column has that name.

        Raises InputError for a column to drop that is not there.
        """
        columns, drop = [str(name) for name in names], set(self.drop)
        if CONSTANT in drop and CONSTANT not in columns:
            drop = drop - {CONSTANT} | {column for column, one in zip(columns, same(), strict=True) if one}
        if unknown := sorted(drop - set(columns)):
            reject("drop", f"no column {unknown[0]!r}", f"{CONSTANT!r} or one of {listed(columns)}")
        return [place for place, column in enumerate(columns) if column not in drop]

    def of_arrays(
        self, found: dict[str, Any], named: Mapping[str, str], targets: Targets
    ) -> tuple[dict[str, Any], Targets]:
        """The arrays of a .npz, and its targets, of the rows and columns that are kept; `named`: its columns of labels
        and size factors."""
        if not (self.where or self.drop or self.combine):
            return found, targets
        x = plain(found["x"], "x")
        by_row = [key for key in (*BY_ROW, *named.values()) if key in found]
        table = pd.DataFrame({key: found[key] for key in by_row if key != "x" and np.ndim(found[key]) == 1})
        keep, left, targets = replace(self, env=named["env"]).rows(table.reindex(range(x.shape[0])), targets)
        x = x[keep]
        names = found.get("feature_names", [f"feature_{j}" for j in range(x.shape[1])])
        columns = self.columns(names, lambda: constant(x))
        out = found | {key: found[key][keep] for key in by_row if key != "x"} | {"x": x[:, columns]}
        out |= {key: found[key][columns] for key in BY_FEATURE if key in found}
        if named["env"] in left:
            out[named["env"]] = left[named["env"]].to_numpy()
            if str(found.get("control")) not in _names(left[named["env"]]):
                out.pop("control", None)  # none of its rows are kept
        return out, targets

    def _combined(self, column: pd.Series, known: set[str], targets: Targets) -> tuple[np.ndarray, set[str], Targets]:
        """(labels in one form, all that the file's labels name, targets by these labels, of combinations too)."""
        assert self.combine is not None and self.control is not None
        how = (self.combine, self.control.strip())
        labels = combined(row_labels(column.to_numpy(), "env", len(column)), *how)
        known = {part for label in known for part in parts(label, *how)} | set(combined(known, *how).tolist())
        if targets is None:
            return labels, known, None
        told = {str(combined([label], *how)[0]): latents for label, latents in targets.items()}
        if len(told) < len(targets):
            reject("targets", "two forms of one combination", "each combination once")
        for label in set(labels.tolist()) - told.keys():
            own = {k for part in parts(label, *how) for k in told.get(part, ())}
            told |= {label: tuple(sorted(own))} if own else {}
        return labels, known, told


def meets(condition: str, table: pd.DataFrame) -> np.ndarray:
    """(row,) whether a row meets a condition; a missing value is ''.

    Raises InputError for what is no condition, for columns that are not there, for texts that no row has, and for texts
    where the column holds numbers.
    """
    match = CONDITION.fullmatch(condition)
    if match is None:
        reject("where", repr(condition), "such as \"day == 3\", \"cell != 'B cell'\" or \"guide in ['A', 'B']\"")
    *names, sign, text = match.groups()
    column = table[column_of(table, next(name for name in names if name is not None), "where")]
    wanted = _values(text, condition, many=sign.endswith("in"))
    missing = column.isna().to_numpy(dtype=bool)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        precision = np.float32 if str(column.dtype).lower() == "float32" else np.float64
        try:
            numbers = [precision(value) for value in wanted if value]
        except ValueError:
            reject("where", f"{text!r} in {condition!r}", f"numbers, as in column {str(column.name)!r}")
        same = np.isin(floats(column, "where"), numbers)
    else:
        values = np.array(["" if gap else str(v).strip() for v, gap in zip(column, missing, strict=True)])
        if unknown := sorted(set(wanted) - {"", *values.tolist()}):
            found = f"{unknown[0]!r}, which no row has, in {condition!r}"
            reject("where", found, f"one of {listed(np.unique(values).tolist())}")
        same = np.isin(values, wanted)
    same |= missing & ("" in wanted)
    return np.asarray(~same if sign[0] in "!n" else same)


def column_of(table: pd.DataFrame, name: str, argument: str) -> str:
    """`name`, if the table has such a column; else an InputError."""
    if name not in table.columns:
        reject(argument, f"no column {name!r}", f"one of {listed([str(c) for c in table.columns])}")
    return name


def _values(text: str, condition: str, many: bool) -> list[str]:
    """The value or values of a condition, without their quotes."""
    rest = text[1:-1] if many and text[:1] + text[-1:] in ("[]", "()") else text
    out: list[str] = []
    while value := VALUE.match(rest):
        out.append(next(v for v in value.groups() if v is not None))
        rest = rest[value.end() :]
        if not (many and rest.startswith(",")):
            break
        rest = rest[1:]
    if rest.strip() or not out:
        reject("where", f"{text!r} in {condition!r}", "a number or a text in quotes" + ", or several with in" * many)
    return out


def _names(column: pd.Series) -> set[str]:
    return {str(label).strip() for label in column.dropna().unique()}
