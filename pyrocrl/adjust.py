"""Technical batches and covariates taken out of continuous features by regression, for models that do not read them.

    x_ij = mean_j[env_i] + effect_j[batch_i] + covariates_i . slope_j + rest_ij

by least squares, so that what environments differ in is not taken for a batch's; effect and slope are then subtracted.
A covariate of texts has a column for each of its levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrocrl.arrays import dense
from pyrocrl.data import Data
from pyrocrl.errors import listed, reject


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What batches and covariates add to features of the rows that it was made of, and what takes it off any rows.

    columns: covariate -> its levels, or () for numbers. effect: (batch, feature), 0 on average over those rows. slope:
    (column, feature); centre: (column,), of numbers and of levels as 0 and 1.
    """

    batch_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    effect: np.ndarray
    slope: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, data: Data) -> Adjustment:
        """The adjustment of these rows, for their `batch` and `covariates`.

        Raises InputError for counts, for data without either, and for batches or covariates whose effect cannot be told
        from that of environments.
        """
        _check_floats(data)
        if data.incomplete:
            reject("x", data.missing_told(), "finite numbers, to take covariates out of")
        if data.gaps:
            reject("view", "rows that lack a view", "rows that have every view")
        if len(data.batch_names) < 2 and not data.covariates:
            reject("data", "neither batches nor covariates", "Data(x, batch=..., covariates=...)")
        columns = {
            name: () if values.dtype.kind == "f" else tuple(np.unique(values).tolist())
            for name, values in data.covariates.items()
        }
        c = _design(data, columns)
        centre = c.mean(0)
        factors = ((data.env_names, data.env), (data.batch_names, data.batch))
        design = np.hstack([np.eye(len(names))[code] for names, code in factors] + [c - centre])
        envs, batches = (len(names) for names, _ in factors)
        present = design.any(0)
        scaled = design[:, present] / np.maximum(np.linalg.norm(design[:, present], axis=0), 1e-300)
        # means, batches and the levels of a covariate each add up to one constant
        shared = 1 + sum(bool(levels) for levels in columns.values())
        if np.linalg.matrix_rank(scaled) < present.sum() - shared:
            found = "batches or covariates" if columns else "batches"
            argument = "batch" if batches > 1 else "covariates"
            reject(argument, f"{found} that environments determine", "such as vary within environments")
        solved = np.zeros((design.shape[1], data.features))
        solved[present] = np.linalg.lstsq(design[:, present], dense(data.x, "x").astype(np.float64), rcond=None)[0]
        effect = solved[envs : envs + batches]
        effect = effect - np.bincount(data.batch, minlength=batches) @ effect / data.rows
        names = tuple(data.batch_names), tuple(data.feature_names)
        return cls(*names, columns, effect, solved[envs + batches :], centre)

    def __call__(self, data: Data) -> Data:
        """These rows, or others with the same features, batches and covariates, less what batches and covariates add;
        the result has neither. Rows that this took it off already stay as they are.

        Raises InputError for batches, levels or covariates that are missing or unknown, and for rows that another
        adjustment was made of.
        """
        if data.adjustment is not None:
            if data.adjustment != self.to_dict():
                reject("data", "rows that were adjusted otherwise", "rows as they were before, or adjusted by this")
            return data
        _check_floats(data)
        part = data.coded_as(batch_names=self.batch_names, feature_names=self.feature_names).rows_at(slice(None))
        if sorted(data.covariates) != sorted(self.columns):
            reject("covariates", listed(list(data.covariates)) or "none", listed(list(self.columns)) or "none")
        c = _design(data, self.columns)
        part.x = dense(part.x, "x").astype(np.float64) - self.effect[part.batch] - (c - self.centre) @ self.slope
        part.batch_names, part.batch = ["all"], np.zeros(part.rows, dtype=np.int64)
        part.covariates, part.adjustment = {}, self.to_dict()
        return part

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, ready for JSON."""
        return {
            "batch_names": list(self.batch_names),
            "feature_names": list(self.feature_names),
            "columns": {name: list(levels) for name, levels in self.columns.items()},
            "effect": self.effect.tolist(),
            "slope": self.slope.tolist(),
            "centre": self.centre.tolist(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Adjustment:
        """What `to_dict` gave."""
        features = tuple(plain["feature_names"])
        columns = {name: tuple(levels) for name, levels in plain["columns"].items()}
        effect, slope, centre = (np.asarray(plain[k], dtype=np.float64) for k in ("effect", "slope", "centre"))
        return cls(tuple(plain["batch_names"]), features, columns, effect, slope.reshape(-1, len(features)), centre)


def _check_floats(data: Data) -> None:
    if data.counts:
        reject("data", "counts", "continuous features, such as log(1 + x / size factor), or a model that reads batches")


def _design(data: Data, columns: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """(data, column) numbers, and levels as 0 and 1."""
    parts = [np.zeros((data.rows, 0))]
    for name, levels in columns.items():
        values, argument = data.covariates[name], f"covariates[{name!r}]"
        if (values.dtype.kind == "f") == bool(levels):
            kinds = ("texts", "numbers")
            reject(argument, kinds[values.dtype.kind == "f"], f"{kinds[not levels]}, as in the adjustment")
        if not levels:
            parts.append(values[:, None])
            continue
        if unknown := sorted(set(values.tolist()) - set(levels)):
            reject(argument, repr(unknown[0]), f"one of {listed(list(levels))}")
        parts.append((values[:, None] == np.array(levels)).astype(np.float64))
    return np.hstack(parts)
