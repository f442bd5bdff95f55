"""Units of columns: a fit sees every feature about its mean, in its deviation, so that neither moves a result.

They are measured in float64 over all rows of a fit, before anything becomes float32. A column whose origin is s of its
deviations away keeps 16 - log10(s) of its digits, so up to 1e8 of them cost no more than float32 does.
"""

from __future__ import annotations

import warnings

import numpy as np

from pyrocrl.batch import Array, Units
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.program import Program

COARSE = 100  # steps of rounding that a deviation is told in, at least
ALIKE = 1e-6  # of a deviation: columns that are no further apart are copies
DOMINATED = 0.5  # share of a column's variance that is one row's
NAMED = 4  # columns that a message names


def units_of(program: Program, data: Data) -> Units | None:
    """Mean and deviation of every column of the rows to fit, or units that they come in (`Data.in_units`); None for a
    program that takes x as it is.

    Warns of columns that one row dominates, that copy another in other units, or that vary by little more than they are
    rounded. Raises InputError for data that nothing can be fitted to (`Data.check_fit`), or a spread beyond floats.
    """
    low, high = data.check_fit()
    if program.own_units:
        return None
    if data.units is not None:
        return data.units
    with np.errstate(over="ignore", under="ignore"):
        reach = (high - low) / 2
        within = Units(low + reach, reach)  # from -1 to 1, whose squares neither over- nor underflow
    if (bad := ~(np.isfinite(reach) & (reach > np.finfo(np.float64).tiny))).any():
        reject("x", f"a spread beyond floats in {_named(data, bad)}", "deviations from 1e-300 to 1e300")
    # what rows lack says nothing of its columns
    known = np.nan_to_num if data.gaps or data.incomplete else np.asarray
    mean = sum(known(within.standard(block)).sum(0) for _, block in data.blocks()) / data.measured
    total, probes = np.zeros(data.features), np.zeros((2, data.features))
    rng = np.random.default_rng(0)
    for _, block in data.blocks():
        apart = known(within.standard(block) - mean)
        total += np.square(apart).sum(0)
        probes += rng.standard_normal((2, len(block))) @ apart
    units = Units(within.restore(mean), reach * np.sqrt(total / data.measured))
    most = np.square(1.0 + np.abs(mean))  # the row that is furthest out
    _warn(data, "one row with over half of the variance", most > DOMINATED * total)
    _warn(data, "a copy of another column in other units", _copies(probes / np.sqrt(total)))
    if data.x.dtype.kind == "f":
        step = np.finfo(data.x.dtype).eps * np.maximum(np.abs(low), np.abs(high))
        _warn(data, "a variation of few digits, lost in the origin", units.scale < COARSE * step)
    return units


def _copies(probes: Array) -> Array:
    """(feature,) whether a column is another or its opposite, by two random sums (2, feature) over standard rows."""
    probes = probes * np.where(probes[0] < 0, -1.0, 1.0)
    order = np.argsort(probes[0])
    same = (np.abs(np.diff(probes[:, order], axis=1)) < ALIKE).all(0)
    out = np.zeros(probes.shape[1], dtype=bool)
    out[order[1:][same]] = out[order[:-1][same]] = True
    return out


def _warn(data: Data, what: str, which: Array) -> None:
    if which.any():
        warnings.warn(f"x: {what} in {_named(data, which)}", UserWarning, stacklevel=5)


def _named(data: Data, which: Array) -> str:
    names = [data.feature_names[j] for j in np.flatnonzero(which)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"column{'s' * (len(names) > 1)} {', '.join(map(repr, names[:NAMED]))}{more}"
