"""Concepts' values in new rows of the base environment, beside simpler answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.studies import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

Array = np.ndarray
NINETY = 1.645  # deviations of a normal law that hold 90 %
STEPS = 300  # of the search for quadratic forms


@dataclass(frozen=True)
class ConceptValues(Study):
    """R^2 of each concept's true values on its estimate (an affine map of one number), in rows of the base environment
    that were not fitted: base_r2, the mean over concepts, base_least_r2, of the worst, and base_covered_90, the share
    of values within 90 % intervals after that map.

    Beside: meandiff_, the difference of means between the base and that of the environments that condition on the
    concept which is furthest from it; lda_, that in units of the covariance within environments; quadratic_, logistic
    regression of environments on principal components with quadratic forms of the concepts, the model's head without
    its network; regression_, linear regression of the true concept on x, which is told it.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        fitted = result.data
        assert fitted is not None
        base, true = data.rows_at(np.flatnonzero(data.control_rows)), data.truth["z"][data.control_rows]
        out: dict[str, float] = {}
        guess, sd = result.latents(base), result.latents_sd(base)
        assert sd is not None
        slope, share = affine(guess, true)
        out["base_r2"], out["base_least_r2"] = float(share.mean()), float(share.min())
        left = true - true.mean(0) - slope * (guess - guess.mean(0))
        out["base_covered_90"] = float((np.abs(left) < NINETY * np.abs(slope) * sd).mean())
        for name, rows in directions(fitted).items():
            share = affine(base.x @ rows.T, true)[1]
            out[f"{name}_base_r2"], out[f"{name}_base_least_r2"] = float(share.mean()), float(share.min())
        return super().score(result, data) | out


def affine(guess: Array, true: Array) -> tuple[Array, Array]:
    """(slope, R^2) of each column of `true` on the same column of `guess`."""
    a, b = guess - guess.mean(0), true - true.mean(0)
    slope = (a * b).sum(0) / np.maximum((a**2).sum(0), 1e-300)
    return slope, 1 - ((b - slope * a) ** 2).mean(0) / (b**2).mean(0)


def directions(data: Data) -> dict[str, Array]:
    """(concept, feature) by each of the simpler answers."""
    import torch

    from pyrocrl.constructions import conditioned

    z = data.truth["z"]
    hit = data.target_matrix(z.shape[1])
    x, env = data.x, data.env
    mean = np.stack([x[env == e].mean(0) for e in range(len(hit))])
    free = x[hit[env].sum(1) == 0].mean(0)
    shift = np.stack([(mean[on > 0] - free)[np.argmax(((mean[on > 0] - free) ** 2).sum(1))] for on in hit.T])
    within = np.linalg.pinv(np.cov((x - mean[env]).T))
    oracle = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), z, rcond=None)[0][:-1].T
    rows = conditioned.quadratic_directions(torch.as_tensor(x), torch.as_tensor(env), torch.as_tensor(hit), STEPS)
    return {"meandiff": shift, "lda": shift @ within, "quadratic": rows.numpy(), "regression": oracle}
