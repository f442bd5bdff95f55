"""Whether what is missing goes with what was measured: then it is not missing by chance alone, as verdicts say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.judge.checks.shared import LEVEL, MOST_ROWS

FEWEST = 5  # rows with and without a value, below which nothing is compared


@dataclass(frozen=True)
class Gaps:
    """p: that values missing by chance go as far with what was measured, corrected for the number of pairs; lacks: the
    feature that is missing, goes_with: the feature whose values differ most between rows with and without it."""

    p: float
    lacks: str
    goes_with: str

    @property
    def words(self) -> str:
        """Of what goes with measured values, else empty."""
        if self.p >= LEVEL:
            return ""
        p = f"p = {self.p:.2g}" if self.p >= 1e-300 else "p < 1e-300"
        return f"what is missing goes with what was measured ({self.lacks} with {self.goes_with}, {p})"


def gaps_go_with(data: Data) -> Gaps | None:
    """Welch's test of every feature between rows that have another one and rows that lack it (Little 1988, one pair at
    a time), of x, or log(1 + x) of counts; None where nothing can be compared.

    It sees what depends on measured values, which claims allow for, and, where features go together, what depends on
    the missing values themselves, which they do not: no test of these rows tells one from the other.
    """
    if not data.incomplete:
        return None
    part = data.rows_at(data.spread(MOST_ROWS))
    known = part.known
    x = np.concatenate([np.asarray(block, dtype=float) for _, block in part.blocks()])
    x = np.log1p(x) if data.counts else x
    value = np.where(known, x - np.nanmean(x, 0) if known.any(0).all() else x, 0.0)
    groups = []
    for other in (known, ~known):  # of every feature (row), moments of all features (column) in rows that have, lack it
        own, there = other.astype(float), known.astype(float)
        count = own.T @ there
        mean = own.T @ value / np.maximum(count, 1)
        groups.append((count, mean, np.maximum(own.T @ value**2 / np.maximum(count, 1) - mean**2, 0.0)))
    (n, mean, var), (m, other_mean, other_var) = groups
    told = (n >= FEWEST) & (m >= FEWEST) & (var + other_var > 0)
    np.fill_diagonal(told, False)
    if not told.any():
        return None
    a, b = var / np.maximum(n - 1, 1), other_var / np.maximum(m - 1, 1)
    error = np.maximum(a + b, 1e-300)
    freedom = error**2 / np.maximum(a**2 / np.maximum(n - 1, 1) + b**2 / np.maximum(m - 1, 1), 1e-300)
    log_p = np.where(told, stats.t.logsf(np.abs(mean - other_mean) / np.sqrt(error), np.maximum(freedom, 1.0)), 0.0)
    j, k = (int(v) for v in np.unravel_index(int(log_p.argmin()), log_p.shape))
    p = float(np.exp(min(0.0, log_p[j, k] + np.log(2.0 * told.sum()))))
    return Gaps(p, data.feature_names[j], data.feature_names[k])
