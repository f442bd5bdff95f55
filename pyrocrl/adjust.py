"""Technical batches and covariates taken out of continuous features by regression, for models that do not read them.

    x_ij = mean_j[env_i] + effect_j[batch_i] + covariate_i . slope_j + rest_ij

by least squares, so that what environments differ in is not taken for a batch's; effect and slope are then subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrocrl.arrays import dense, floats
from pyrocrl.data import Data
from pyrocrl.errors import reject


@dataclass(frozen=True)
class Adjustment:
    """What batches and covariates add to features of the rows that it was made of, and what takes it off any rows.

    effect: (batch, feature), 0 on average over those rows. slope: (covariate, feature); centre: (covariate,).
    """

    batch_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    effect: np.ndarray
    slope: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, data: Data, covariates: Any = None) -> Adjustment:
        """The adjustment of these rows. covariates: (data, covariate) numbers, such as an age; None = batches alone.

        Raises InputError for counts, and for batches or covariates whose effect cannot be told from environments'.
        """
        _check_floats(data)
        c = _covariates(covariates, data)
        centre = c.mean(0)
        design = np.hstack([np.eye(len(names))[code] for names, code in _factors(data)] + [c - centre])
        envs, batches = (len(names) for names, _ in _factors(data))
        present = design.any(0)
        scaled = design[:, present] / np.maximum(np.linalg.norm(design[:, present], axis=0), 1e-300)
        if np.linalg.matrix_rank(scaled) < present.sum() - 1:  # means and effects share one constant
            found = (
                "batches or covariates that environments determine" if c.size else "batches that environments determine"
            )
            reject("batch" if batches > 1 else "covariates", found, "such as vary within environments")
        solved = np.zeros((design.shape[1], data.features))
        solved[present] = np.linalg.lstsq(design[:, present], dense(data.x, "x").astype(np.float64), rcond=None)[0]
        effect = solved[envs : envs + batches]
        effect = effect - np.bincount(data.batch, minlength=batches) @ effect / data.rows
        return cls(tuple(data.batch_names), tuple(data.feature_names), effect, solved[envs + batches :], centre)

    def __call__(self, data: Data, covariates: Any = None) -> Data:
        """These rows, or others with the same features and batches, less what batches and covariates add; the result
        has no batches."""
        _check_floats(data)
        part = data.coded_as(batch_names=self.batch_names, feature_names=self.feature_names).rows_at(slice(None))
        c = _covariates(covariates, data)
        if c.shape[1] != len(self.centre):
            reject("covariates", f"{c.shape[1]} columns", f"{len(self.centre)}, as the adjustment was made with")
        part.x = dense(part.x, "x").astype(np.float64) - self.effect[part.batch] - (c - self.centre) @ self.slope
        part.batch_names, part.batch = ["all"], np.zeros(part.rows, dtype=np.int64)
        return part


def _factors(data: Data) -> tuple[tuple[list[str], np.ndarray], tuple[list[str], np.ndarray]]:
    return (data.env_names, data.env), (data.batch_names, data.batch)


def _check_floats(data: Data) -> None:
    if data.counts:
        reject("data", "counts", "continuous features, such as log(1 + x / size factor), or a model that reads batches")


def _covariates(values: Any, data: Data) -> np.ndarray:
    if values is None:
        return np.zeros((data.rows, 0))
    c = floats(values, "covariates")
    c = c[:, None] if c.ndim == 1 else c
    if c.ndim != 2 or len(c) != data.rows or not np.isfinite(c).all():
        reject("covariates", f"shape {c.shape}", f"finite numbers of shape ({data.rows}, covariate)")
    return c
