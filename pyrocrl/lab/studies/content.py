"""Studies of blocks that pairs of rows share: content, told from style."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.studies import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

ROWS, CENTRES = 6_000, 500  # rows of the fit that a read-out is trained on, and functions that it has


class ContentBlock(Study):
    """A block of latents by nonlinear regression on its estimate: block_r2 of the content, style_r2 of the style, of
    which an estimate of independent content tells nothing. cca_: of as many canonical correlations of partners;
    linear_r2: of linear regression of the content on x, which knows the truth."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        fitted = result.data
        assert fitted is not None
        few = fitted.rows_at(fitted.spread(ROWS))
        z, style, count = data.truth["z"], data.truth["private"], data.truth["z"].shape[1]
        estimate, own = result.latents(data), result.latents(few)
        out = {"held_out": float(result.weights @ result.scores), "r2": metrics.r2(z, estimate)}
        out["linear_r2"] = metrics.linear_r2(data.x, z)
        matrix = canonical(fitted, count)
        for name, train, test in (("", own, estimate), ("cca_", few.x @ matrix, data.x @ matrix)):
            out[f"{name}block_r2"] = told(train, few.truth["z"], test, z)
            out[f"{name}style_r2"] = told(train, few.truth["private"], test, style)
        return out


def canonical(data: Data, count: int) -> np.ndarray:
    """(feature, count) directions of the largest canonical correlations between partners."""
    after = np.flatnonzero(data.after & (data.partner >= 0))
    one, other = data.x[data.partner[after]], data.x[after]
    both = np.concatenate([one, other])
    value, vector = np.linalg.eigh(np.cov(both.T))
    white = vector / np.sqrt(np.maximum(value, 1e-12 * value[-1]))
    cross = ((one - both.mean(0)) @ white).T @ ((other - both.mean(0)) @ white) / len(one)
    found: np.ndarray = white @ np.linalg.eigh((cross + cross.T) / 2)[1][:, -count:]
    return found


def told(train: np.ndarray, goal: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """R^2 of `truth` by ridge regression on radial functions of `test`, fitted to `goal` and `train`."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    centre, scale = train.mean(0), train.std(0)
    train, test = (train - centre) / scale, (test - centre) / scale
    functions = Nystroem(gamma=0.5 / train.shape[1], n_components=min(CENTRES, len(train)), random_state=0).fit(train)
    a, b = (np.hstack([functions.transform(rows), rows]) for rows in (train, test))
    return float(r2_score(truth, Ridge(1e-2).fit(a, goal).predict(b)))
