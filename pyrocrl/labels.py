"""Labels of environments, batches, pairs, series and views as users hold them, made plain: texts, none missing, no
spaces around them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pyrocrl.errors import reject

# what a control is called, in lower-case letters and digits and without a last "control"
CONTROLS = {
    *("observational", "unperturbed", "untreated", "unstimulated", "mock", "wt", "wildtype"),
    *("nt", "ntc", "nontarget", "nontargeting", "neg", "negative", "scramble", "scrambled"),
    *("dmso", "vehicle", "pbs", "placebo", "sham"),
}
MISSING = ("", "nan", "NaN", "NaT", "<NA>")  # what pandas and numpy make of a missing label in an array of texts
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # netCDF and UTF-8 have no place for these
SPACING = 1e-3  # how far distances of steps may differ, for those that are written with few digits
STEPS = {"before": 0.0, "pre": 0.0, "after": 1.0, "post": 1.0}  # words for the two rows of a pair


def row_labels(values: Any, argument: str, rows: int) -> np.ndarray:
    """(data,) the texts of one label a row.

    Spaces around a label are left out, with a warning, so that "A" and "A " are one environment. Raises InputError for
    another shape, for labels that are missing (masked, None, NaN, NaT, pd.NA or their texts), for 1 beside "1", and
    for texts that UTF-8 or netCDF cannot hold.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    hidden = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    try:
        array = np.asarray(values, dtype=object if isinstance(values, list | tuple) else None)
    except ValueError:
        reject(argument, f"a {type(values).__name__} that is no array", f"one label per row of x, shape ({rows},)")
    if array.shape != (rows,):
        reject(argument, f"shape {array.shape}", f"one label per row of x, shape ({rows},)")
    try:
        codes, found = pd.factorize(array)
    except TypeError as error:
        reject(argument, f"labels that are no labels ({error})", "texts or numbers")
    texts = [_text(label, argument) for label in found]
    if twice := [text for text in texts if texts.count(text) > 1] if len(set(texts)) < len(texts) else []:
        reject(argument, f"two environments with the label {twice[0]!r}", "labels that differ as texts")
    missing = np.isin(codes, [-1, *(k for k, text in enumerate(texts) if text.strip() in MISSING)])
    if hidden is not None:
        missing |= hidden
    if missing.any():
        count = int(missing.sum())
        found_labels = f"{count} missing label{'s' * (count > 1)} of {rows} (the first at row {np.argmax(missing)})"
        reject(argument, found_labels, "a label for every row")
    check_texts(texts, argument)
    return np.asarray(stripped(texts, argument))[codes]


class Pairs(NamedTuple):
    """names (pair,) in the order in which they appear; of each row code (data,) of its pair, and whether it is the one
    after, (data,)."""

    names: list[str]
    code: np.ndarray
    after: np.ndarray


def row_pairs(pair: Any, step: Any, rows: int) -> Pairs:
    """Pairs of rows by their labels `pair` (data,), the row before and the one after.

    step: (data,) numbers, or "before" and "after": the lower one of a pair is before; None = the one that comes first.
    Raises InputError as `row_labels` does, for a pair of one row or of more than two, and for one whose rows have the
    same step.
    """
    codes, names = pd.factorize(row_labels(pair, "pair", rows))
    count = np.bincount(codes)
    if (wrong := np.flatnonzero(count != 2)).size:
        k, more = wrong[0], f" (and {wrong.size - 1} more pairs)" * (wrong.size > 1)
        where = (
            f"at row {np.argmax(codes == k)}" if count[k] == 1 else f"the third at row {np.flatnonzero(codes == k)[2]}"
        )
        what = "one row, without a partner" if count[k] == 1 else f"{count[k]} rows"
        reject("pair", f"pair {str(names[k])!r} of {what}, {where}{more}", "two rows of each pair: before and after")
    order = np.argsort(codes, kind="stable").reshape(-1, 2)  # of each pair, the row that comes first
    if step is not None:
        level = _steps(step, rows, STEPS, "finite numbers, or before and after")
        if (same := np.flatnonzero(level[order[:, 0]] == level[order[:, 1]])).size:
            first, second = order[same[0]]
            found = f"the same step for both rows of pair {str(names[same[0]])!r}, {first} and {second}"
            reject("step", found, "a lower one for the row before than for the row after")
        order = np.where((level[order[:, 0]] < level[order[:, 1]])[:, None], order, order[:, ::-1])
    after = np.zeros(rows, dtype=bool)
    after[order[:, 1]] = True
    return Pairs([str(name) for name in names], codes.astype(np.int64), after)


class Series(NamedTuple):
    """names (series,) in the order in which they appear; of each row code (data,) of its series, and its step (data,),
    0, 1, ... from the series' first row on."""

    names: list[str]
    code: np.ndarray
    step: np.ndarray


def row_series(series: Any, step: Any, rows: int) -> Series:
    """Sequences of rows by their labels `series` (data,), in the order of their steps.

    step: (data,) numbers, evenly spaced and by the same distance in all series; None = rows are in order. Raises
    InputError as `row_labels` does, for a series of one row, for two rows of a series at one step, and for a gap.
    """
    codes, names = pd.factorize(row_labels(series, "series", rows))
    count = np.bincount(codes)
    if (lone := np.flatnonzero(count == 1)).size:
        more = f" (and {lone.size - 1} more series)" * (lone.size > 1)
        found = f"series {str(names[lone[0]])!r} of one row, at row {np.argmax(codes == lone[0])}{more}"
        reject("series", found, "two rows or more of each series")
    level = np.arange(rows, dtype=np.float64) if step is None else _steps(step, rows, {}, "finite numbers")
    order = np.lexsort((level, codes))
    going = np.diff(codes[order]) == 0  # whether a row in this order goes on with the series of the one before
    apart = np.where(going, np.diff(level[order]), np.inf)
    if step is not None:
        each = [str(names[code]) for code in codes[order[1:]]]
        if (same := np.flatnonzero(apart == 0)).size:
            first, second = sorted(order[same[0] : same[0] + 2])
            found = f"the same step twice in series {each[same[0]]!r}, at rows {first} and {second}"
            reject("step", found, "one row of a series at each step")
        least = apart.min()
        if (wide := np.flatnonzero(going & ~np.isclose(apart, least, rtol=SPACING, atol=0))).size:
            before, after = level[order[wide[0] : wide[0] + 2]]
            found = (
                f"a gap in series {each[wide[0]]!r}, from step {before:g} to {after:g} where others are {least:g} apart"
            )
            more = f" (and {wide.size - 1} more)" * (wide.size > 1)
            reject("step", found + more, "evenly spaced steps: what comes after a gap may be a series of its own")
    place = np.empty(rows, dtype=np.int64)
    first = np.r_[0, np.cumsum(count)[:-1]]
    place[order] = np.arange(rows) - first[codes[order]]
    return Series([str(name) for name in names], codes.astype(np.int64), place)


def feature_views(view: Any, features: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of views in the order of their first features, and the code (feature,) of each feature's.

    view: (feature,) names, or a mapping of views to names of their features. Raises InputError for a view without a
    name or without features, for features that are unknown, in two views or in none, and for fewer than two views.
    """
    labels: list[Any] = [None] * len(features)
    if isinstance(view, Mapping):
        place = {name: j for j, name in enumerate(features)}
        for label, members in view.items():
            own = [members] if isinstance(members, str) else list(members)
            if not own:
                reject("view", f"view {str(label)!r} without features", "one feature or more in every view")
            for name in map(str, own):
                if name not in place:
                    reject("view", f"unknown feature {name!r} in view {str(label)!r}", "names of columns of x")
                if labels[place[name]] not in (None, label):
                    said = f"feature {name!r} in two views, {str(labels[place[name]])!r} and {str(label)!r}"
                    reject("view", said, "one view for every feature")
                labels[place[name]] = label
    else:
        if np.ndim(view) != 1 or len(view) != len(features):
            found = f"shape {np.shape(view)}"
            reject("view", found, f"one name per column of x, shape ({len(features)},), or a mapping of views")
        labels = list(view)
    texts = [None if label is None else _text(label, "view") for label in labels]
    for name, text in zip(features, texts, strict=True):
        if text is None or text.strip() in MISSING:
            reject("view", f"no view, or one without a name, for feature {name!r}", "the name of every feature's view")
    named = stripped([text for text in texts if text is not None], "view")
    check_texts(named, "view")
    codes, names = pd.factorize(np.asarray(named, dtype=object))
    if len(names) < 2:
        reject("view", f"one view, {str(names[0])!r}", "two views or more, or None")
    return [str(name) for name in names], codes.astype(np.int64)


def _steps(step: Any, rows: int, words: Mapping[str, float], allowed: str) -> np.ndarray:
    """(data,) numbers that tell which row comes first, or words for such numbers."""
    texts = row_labels(step, "step", rows)
    found, codes = np.unique(texts, return_inverse=True)
    levels = [_level(str(text), words) for text in found]
    odd = [str(text) for text, level in zip(found, levels, strict=True) if level is None]
    if odd:
        reject("step", repr(odd[0]), allowed)
    return np.asarray(levels, dtype=np.float64)[codes]


def _level(text: str, words: Mapping[str, float]) -> float | None:
    if text.casefold() in words:
        return words[text.casefold()]
    try:
        value = float({"True": "1", "False": "0"}.get(text, text))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def stripped(texts: Iterable[str], argument: str) -> list[str]:
    """The texts without spaces around them; a warning says where there were any."""
    before = list(texts)
    after = [text.strip() for text in before]
    changed = [text for text, bare in zip(before, after, strict=True) if text != bare]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        line = f"{argument}: spaces around the label {changed[0]!r}{more} are left out"
        warnings.warn(line, UserWarning, stacklevel=2)
    return after


def check_texts(texts: Iterable[str], argument: str) -> None:
    """Raise InputError for a text that the files of a fit could not hold."""
    for text in texts:
        if odd := UNWRITABLE.search(text):
            what = "a NUL character" if odd.group() == "\0" else "half a character (a lone surrogate)"
            reject(argument, f"{text!r}, which holds {what}", "texts that UTF-8 can hold")


def parts(label: str, separator: str = "+", control: str | None = None) -> tuple[str, ...]:
    """What a label combines, each part once and in the order of the alphabet: "B+A" is ("A", "B").

    The control is no part: "A+ctrl" is ("A",), and "ctrl" is (). Raises InputError for an empty part.
    """
    found = [part.strip() for part in label.split(separator)]
    if "" in found:
        reject("combine", f"the label {label!r} with an empty part", f"labels such as 'A{separator}B'")
    return tuple(sorted({part for part in found if part != control}))


def combined(labels: Iterable[str], separator: str = "+", control: str | None = None) -> np.ndarray:
    """(data,) labels of combinations in one form: "B+A" is "A+B", and "A+ctrl" is "A"."""
    names, codes = np.unique(np.asarray(list(labels), dtype=str), return_inverse=True)
    forms = [separator.join(parts(str(name), separator, control)) or control for name in names]
    return np.asarray(forms, dtype=str)[codes]


def combinations(names: Iterable[str], separator: str = "+", control: str | None = None) -> dict[str, tuple[str, ...]]:
    """Of each name that combines two or more, what it combines: the `parts` of `predict.pair_errors`."""
    found = {str(name): parts(str(name), separator, control) for name in names}
    return {name: several for name, several in found.items() if len(several) > 1}


def _text(label: Any, argument: str) -> str:
    if not isinstance(label, bytes):
        return str(label)
    try:
        return label.decode()
    except UnicodeDecodeError:
        reject(argument, f"the label {label!r}", "texts, or bytes in UTF-8")


def customary_controls(names: Sequence[str]) -> list[str]:
    """Those of `names` that are called as controls are, in any case and spelling: "ctrl", "Non-targeting control"."""
    found = []
    for name in names:
        word = re.sub(r"[\W_]", "", name).casefold()
        stem = re.sub(r"(controls?|ctrl|ctl)$", "", word)
        if stem in CONTROLS or (word and not stem):
            found.append(name)
    return found
