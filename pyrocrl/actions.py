"""The mean of x under actions, tried or not: predictions of a fit whose chains are bootstrap draws, with intervals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from .data import Data
from .errors import reject
from .posterior import Fit
from .program import check_whole

DEGREES = (1, 2, 3)  # of polynomial baselines
BEHIND = 3.0  # nats a row; draws of the bootstrap differ by one at most, chains that are stuck by ten
PROCESS_ROWS = 1_000  # that the Gaussian-process baseline is fitted to
Array = np.ndarray


def predict_action(fit: Fit, actions: Any, *, level: float = 0.9, draws: int = 2_000, seed: int = 0) -> xr.Dataset:
    """Mean of x under each action: `mean`, `low`, `high` (action_row, feature), and each chain's own (`chain_mean`).

    actions: (rows, action) in the units of `data.aux`, inside or outside the range that was tried. Chains are draws of
    a bootstrap, so their deviation estimates the mean's error: the interval of `level` is mean +- t deviation, t
    Student's quantile for as many chains. A chain whose held-out objective is more than BEHIND below the best is stuck,
    no such draw, and left out. draws: of the latents' noise, the same for every chain and action. Raises InputError for
    fewer than three chains left, actions of another shape, and models without `predict_action`.
    """
    if not hasattr(fit.program, "predict_action"):
        reject("fit", f"a fit of {fit.program.card.name}", "a model of actions, such as extrapolation")
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        reject("level", repr(level), "a number strictly between 0 and 1")
    check_whole("draws", draws, 2)
    values = np.asarray(actions, dtype=np.float64)
    size = fit.program.config["aux"]
    if values.ndim != 2 or values.shape[1] != size or not np.isfinite(values).all():
        reject("actions", f"shape {values.shape}", f"finite numbers of shape (rows, {size})")
    kept = np.flatnonzero(fit.scores >= fit.scores.max() - BEHIND)
    count = len(kept)
    if count < 3:
        reject(
            "fit", f"{count} chain(s) of {fit.chains.count} that got there", "3 or more, whose spread is the interval"
        )
    half = np.random.default_rng(seed).standard_normal((draws // 2, fit.program.config["latents"]))
    noise = np.concatenate([half, -half])
    means = []
    programs = list(fit.programs())
    for program in (programs[c] for c in kept):
        like: Any = next(program.parameters())
        send = [torch.as_tensor(v).to(like) for v in (values, noise)]
        predict: Any = program
        parts = [predict.predict_action(block, send[1]) for block in send[0].split(100)]
        means.append(torch.cat(parts).double().cpu().numpy())
    chain = np.stack(means)
    mean, sd = chain.mean(0), chain.std(0, ddof=1)
    reach = student.ppf(0.5 + level / 2, count - 1) * sd * np.sqrt(1 + 1 / count)
    dims = ("action_row", "feature")
    return xr.Dataset(
        {
            "mean": (dims, mean),
            "low": (dims, mean - reach),
            "high": (dims, mean + reach),
            "chain_mean": (("chain", *dims), chain),
        },
        coords={"feature": fit.names["feature"], "chain": kept},
        attrs={"level": float(level)},
    )


def extrapolation_errors(fit: Fit, data: Data, actions: Array, truth: Array, *, level: float = 0.9) -> dict[str, float]:
    """Errors of predicted means of x (root mean square over rows and features, in deviations of `data.x`, the rows of
    the fit) against the true ones `truth` (rows, feature) under `actions` (rows, action).

    `action_error`, and those of regression of x on the action: `action_error_linear`, `_quadratic`, `_cubic` (ridge,
    cross-validated), `_mlp`, `_gp` (Gaussian process of a linear and a smooth part), `_mean` (none), the least of them
    `_best`, `action_ratio` to it, and `action_coverage`, the share of means inside their intervals of `level`.
    """
    predicted = predict_action(fit, actions, level=level)
    assert data.aux is not None
    x = np.asarray(data.x, dtype=np.float64)
    centre, sd = x.mean(0), x.std(0)

    def error(guess: Array) -> float:
        return float(np.sqrt((((guess - truth) / sd) ** 2).mean()))

    standard = (x - centre) / sd
    others = {"mean": error(centre[None])}
    for degree, name in zip(DEGREES, ("linear", "quadratic", "cubic"), strict=True):
        ridge = RidgeCV(np.logspace(-3, 5, 17))
        model = make_pipeline(PolynomialFeatures(degree, include_bias=False), StandardScaler(), ridge)
        others[name] = error(centre + sd * model.fit(data.aux, standard).predict(actions))
    scaler = StandardScaler().fit(data.aux)
    network = MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, random_state=0, max_iter=200)
    network.fit(scaler.transform(data.aux), standard)
    others["mlp"] = error(centre + sd * network.predict(scaler.transform(actions)))
    kernel = ConstantKernel() * DotProduct() + ConstantKernel() * RBF(np.ones(data.aux.shape[1])) + WhiteKernel()
    process = GaussianProcessRegressor(kernel, random_state=0)
    rows = np.random.default_rng(0).permutation(len(x))[:PROCESS_ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a part of the kernel that data do not need
        process.fit(scaler.transform(data.aux[rows]), standard[rows])
    others["gp"] = error(centre + sd * process.predict(scaler.transform(actions)))
    own, best = error(predicted["mean"].to_numpy()), min(others.values())
    inside = (predicted["low"].to_numpy() <= truth) & (truth <= predicted["high"].to_numpy())
    return {
        "action_error": own,
        **{f"action_error_{name}": value for name, value in others.items()},
        "action_error_best": best,
        "action_ratio": own / best,
        "action_coverage": float(inside.mean()),
    }
