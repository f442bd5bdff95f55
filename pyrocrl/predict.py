"""What a fit predicts: means of x under actions, tried or not, and under combinations of interventions never seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from pyrocrl.arrays import floats
from pyrocrl.claims.card import READ_MISSING
from pyrocrl.columns import columns_of, places
from pyrocrl.data import Data
from pyrocrl.errors import one_of, reject
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fitted import Fit
from pyrocrl.options import Bounds, Seed, Share, check_memory, checked
from pyrocrl.turns import drawing, reseed

DEGREES = (1, 2, 3)  # of polynomial baselines
PROCESS_ROWS = 1_000  # that the Gaussian-process baseline is fitted to
ROWS = 1_000  # of simulated latents for each draw of the equations
IMPUTED = ("contexts", "perturbations")  # arguments of `impute`
Array = np.ndarray
Draws = Annotated[int, Bounds(1, 1_000_000)]


@checked
def predict_action(
    fit: Fit, actions: Any, *, level: Share = 0.9, draws: Annotated[int, Bounds(2, 1_000_000)] = 2_000, seed: Seed = 0
) -> xr.Dataset:
    """Mean of x under each action: `mean`, `low`, `high` (action_row, feature), and each chain's own (`chain_mean`).

    actions: (rows, action) in the units of `data.aux`, a table's columns by name, inside or outside the range that was
    tried. Chains are draws of a bootstrap, so their deviation estimates the mean's error: the interval of `level` is
    mean +- t deviation, t Student's quantile for as many chains. A chain that is stuck (`Fit.there`) is no such draw
    and left out. draws: of the latents' noise, the same for every chain and
    action. Raises InputError for fewer than three chains left, actions of another shape, and models without actions.
    """
    size = fit.program.actions_count
    if not size:
        reject("fit", f"a fit of {fit.program.card.name}", "a model of actions, such as extrapolation")
    check_memory("draws", draws, 8.0 * draws * fit.program.latents_count)
    if (given := columns_of(actions)) and (named := fit.names.get("aux")):
        actions = np.asarray(actions)[:, places("actions", given, named, "aux")]
    values = floats(actions, "actions")
    if values.ndim != 2 or values.shape[1] != size or not np.isfinite(values).all():
        reject("actions", f"shape {values.shape}", f"finite numbers of shape (rows, {size})")
    kept = np.flatnonzero(fit.there)
    count = len(kept)
    if count < 3:
        reject(
            "fit", f"{count} chain(s) of {fit.chains.count} that got there", "3 or more, whose spread is the interval"
        )
    half = np.random.default_rng(seed).standard_normal((draws // 2, fit.program.latents_count))
    noise = np.concatenate([half, -half])
    means = []
    programs = list(fit.programs())
    for program in (programs[c] for c in kept):
        like: Any = next(program.parameters())
        send = [torch.as_tensor(v).to(like) for v in (values, noise)]
        parts = [program.predict_action(block, send[1]) for block in send[0].split(100)]
        means.append(fit.in_data_units("x", torch.cat(parts).double().cpu().numpy()))
    chain = np.stack(means)
    mean, sd = chain.mean(0), chain.std(0, ddof=1)
    half = student.ppf(0.5 + level / 2, count - 1) * sd * np.sqrt(1 + 1 / count)
    dims = ("action_row", "feature")
    return xr.Dataset(
        {
            "mean": (dims, mean),
            "low": (dims, mean - half),
            "high": (dims, mean + half),
            "chain_mean": (("chain", *dims), chain),
        },
        coords={"feature": fit.names["feature"], "chain": kept},
        attrs={"level": float(level)},
    )


@checked
def extrapolation_errors(fit: Fit, data: Data, actions: Array, truth: Array, *, level: Share = 0.9) -> dict[str, float]:
    """Errors of predicted means of x (root mean square over rows and features, in deviations of `data.x`, the rows of
    the fit) against the true ones `truth` (rows, feature) under `actions` (rows, action), both in the fit's order.

    `action_error`, and those of regression of x on the action: `action_error_linear`, `_quadratic`, `_cubic` (ridge,
    cross-validated), `_mlp`, `_gp` (Gaussian process of a linear and a smooth part), `_mean` (none), the least of them
    `_best`, `action_ratio` to it, and `action_coverage`, the share of means inside their intervals of `level`.
    """
    predicted, data = predict_action(fit, actions, level=level), fit.coded(data)
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


# -- combinations of interventions ---------------------------------------------------------------------------


@checked
def combination_mean(
    fit: Fit, data: Data, environments: Sequence[str], *, draws: Draws = 20, seed: Seed = 0
) -> np.ndarray:
    """(feature,) mean of x where the interventions of `environments` (names) are applied together.

    Features are in the order of the fit. Averaged over `draws` posterior draws of the equations of each chain, chains
    by their weights; covariates of rows are those of `data`. Raises InputError for unknown environments, and where the
    model knows no interventions.
    """
    for name in environments:
        one_of("environments", name, fit.names["env"])
    if not fit.program.knows_interventions:
        reject("fit", f"a fit of {fit.program.card.name}", "a model that knows what interventions do")
    places = [fit.names["env"].index(name) for name in environments]
    rows = np.random.default_rng(seed).integers(0, data.rows, ROWS)
    return _expected(fit, data.rows_at(rows), tuple(places), draws, seed).mean(0)


@checked
def expected_rows(fit: Fit, data: Data, *, draws: Draws = 20, seed: Seed = 0) -> np.ndarray:
    """(data, feature) mean of x given new latents of each row's own environment, features in the order of the fit;
    averaged as in `combination_mean`."""
    return _expected(fit, data, None, draws, seed)


def _expected(fit: Fit, data: Data, together: tuple[int, ...] | None, draws: int, seed: int) -> np.ndarray:
    """(data, feature) E[x | z] of latents drawn anew with each posterior draw of the equations."""
    batch = replace(fit.batch_of(data).annealed().whole(), together=together)
    one = batch.take(torch.arange(1, device=batch.device)).whole()
    total = np.zeros((data.rows, data.features))
    with drawing(), torch.no_grad():
        for chain, (weight, program) in enumerate(zip(fit.weights, fit.programs(), strict=True)):
            reseed(mix(seed, chain, 37))
            for _ in range(draws):
                sites = stories.drawn(program, one, local=False)
                x = stories.expected(program, batch, sites).double().cpu().numpy()
                total += weight / draws * fit.in_data_units("x", x)
    return total


@checked
def pair_errors(
    fit: Fit, train: Data, pairs: Data, parts: Mapping[str, Sequence[str]], *, draws: Draws = 20, seed: Seed = 0
) -> dict[str, float]:
    """Errors of the predicted mean of x in each environment of `pairs`, averaged over its environments.

    parts: environment of `pairs` -> the environments of `train`, the rows of the fit, that it combines, such as
    `labels.combinations(pairs.env_names)` of labels "A+B". An error is the root mean square over features of the
    difference of means, in standard deviations of the control rows of `train`; counts are divided by size factors.
    `model`; `additive`: control mean plus each part's mean difference; `control` and `training`: the mean of control
    rows, of all perturbed rows of `train`; `floor`: two samples of the pair's size, expected. Raises InputError for
    unknown environments, pairs without rows, and without a control.
    """
    if not train.control_rows.any():
        reject("train", "no control rows", "rows of the control, which is named (control=)")
    train, pairs = fit.coded(train), fit.coded(pairs, environments=False)
    x = per_size(train)
    control = x[train.control_rows]
    spread = control.std(0)
    spread[spread == 0] = 1.0
    base = control.mean(0)
    means = {name: x[train.env == e].mean(0) for e, name in enumerate(train.env_names) if (train.env == e).any()}
    perturbed = x[~train.control_rows].mean(0)
    seen = per_size(pairs)
    errors: dict[str, list[float]] = {}
    for name, singles in parts.items():
        one_of("parts", name, pairs.env_names)
        for single in singles:
            one_of(f"parts[{name!r}]", single, means)
        own = seen[pairs.env_labels() == name]
        if len(own) < 2:
            reject("pairs", f"{len(own)} row(s) of {name!r}", "2 or more")
        guesses = {
            "model": combination_mean(fit, train, singles, draws=draws, seed=seed) / mean_size(train),
            "additive": base + sum(means[single] - base for single in singles),
            "control": base,
            "training": perturbed,
            "floor": own.mean(0) + own.std(0) * np.sqrt(2.0 / len(own)),
        }
        for key, guess in guesses.items():
            errors.setdefault(key, []).append(float(np.sqrt((((guess - own.mean(0)) / spread) ** 2).mean())))
    if not errors:
        reject("parts", "none", "one combination or more")
    return {key: float(np.mean(values)) for key, values in errors.items()}


def mean_size(data: Data) -> float:
    """Mean size factor of counts, else 1."""
    return 1.0 if data.size_factor is None or not data.counts else float(data.size_factor.mean())


def per_size(data: Data) -> np.ndarray:
    """(data, feature) dense x, counts divided by the rows' size factors."""
    x = data.x.toarray() if hasattr(data.x, "toarray") else np.asarray(data.x)
    x = x.astype(np.float64)
    return x / data.size_factor[:, None] if data.counts and data.size_factor is not None else x


@checked
def beside_response(
    fit: Fit,
    response: Any,
    data: Data | None = None,
    *,
    name: str = "y",
    share: Annotated[float, Bounds(0, 1, "(]")] = 0.2,
    seed: Seed = 0,
) -> Data:
    """A fit's latents and a response as columns of one data set, for `invariant_prediction` to find its parents among
    latents: those have to be identified one by one, up to scales and shifts.

    response: (data,) numbers, one for each row of `data`, by default those of the fit. share: of each environment's
    rows, drawn at random, that are kept. Latents are estimates, each with a little of the others in it, about as much
    as that many rows leave open: what as many rows again would tell from 0, fewer do not. Environments are those of
    the data; columns are called as the fit's latents are, and `name`. Raises InputError for a response of another
    length, and for latents that are identified only up to mixtures of them.
    """
    data = fit._data(data)
    values = floats(response, "response")
    if values.shape != (data.rows,):
        reject("response", f"shape {values.shape}", f"one number for each of the {data.rows} rows")
    if fit.program.group.mixes or "elementwise" in fit.program.group.free:
        free = ", ".join(fit.program.latents_up_to)
        reject("fit", f"latents up to {free}", "latents identified one by one, up to scales and shifts")
    columns = np.column_stack([fit.latents(data), values])
    both = Data(columns, data.env_labels(), control=data.control, feature_names=[*fit.names["latent"], name])
    return both if share == 1.0 else both.split(1.0 - share, seed)[0]


@checked
def translate(fit: Fit, data: Data, to: str, *, level: Share = 0.9) -> xr.Dataset:
    """A view of each row told from all other views that it has: `mean`, `sd`, `low` and `high` (data, feature) of a new
    measurement, with the interval of `level`, and `z` (data, latent), the mean of the shared latents given these views.

    to: the view; what rows hold of it is not looked at, so that it may be compared. Chains are averaged by their
    weights. Raises InputError for a view that is not there, for rows that have no other one, and for fits of models
    without views.
    """
    if not fit.program.card.needs_views:
        reject("fit", f"a fit of {fit.program.card.name}", "a model of views, such as cross_modal")
    data = fit.coded(data)
    fit.program.check(data)
    place = data.view_names.index(one_of("to", to, data.view_names))
    others = np.delete(data.present, place, 1).any(1)
    if not others.all():
        reject("data", f"row {data.row_labels()[int((~others).argmax())]!r} without another view", "rows that have one")
    with drawing(), torch.no_grad():
        each = [[v.double().cpu().numpy() for v in p.translate(fit.batch_of(data), place)] for p in fit.programs()]
    weight = fit.weights[:, None, None]
    mean, sd = (np.stack([one[k] for one in each]) for k in (0, 1))
    z = sum(w * a.apply(one[2]) for w, a, one in zip(fit.weights, fit.alignments, each, strict=True))
    centre = (weight * mean).sum(0)
    spread = np.sqrt((weight * (sd**2 + (mean - centre) ** 2)).sum(0))
    columns = np.flatnonzero(data.view == place)
    scale, shift = (1.0, 0.0) if fit.units is None else (fit.units.scale[columns], fit.units.centre[columns])
    centre, spread = centre * scale + shift, spread * scale
    half = norm.ppf(0.5 + level / 2) * spread
    dims = ("data", "feature")
    return xr.Dataset(
        {
            "mean": (dims, centre),
            "sd": (dims, spread),
            "low": (dims, centre - half),
            "high": (dims, centre + half),
            "z": (("data", "latent"), z),
        },
        coords={
            "data": data.row_labels(),
            "feature": [fit.names["feature"][j] for j in columns],
            "latent": fit.names["latent"],
        },
        attrs={"level": float(level), "view": to},
    )


@checked
def fill(fit: Fit, data: Data | None = None, *, draws: Draws = 50, level: Share = 0.9, seed: Seed = 0) -> xr.Dataset:
    """Values of x that are missing, given those that are there: `mean`, `sd`, `low` and `high` (data, feature) of a
    measurement, with the interval of `level`, and `measured` (data, feature), whether there was one.

    data: None = the rows of the fit. Where a value was measured, `mean` is that of the fit, as of a second measurement.
    draws: of each chain's posterior; chains are averaged by their weights. Raises InputError for fits of models that do
    not leave missing values out.
    """
    if not fit.program.card.reads_missing:
        models = ", ".join(READ_MISSING["gaussian"])
        reject("fit", f"a fit of {fit.program.card.name}", f"a model that leaves out what is missing: {models}")
    data = fit._data(data)
    fit.program.check(data)
    batch = fit.batch_of(data).annealed()
    check_memory("data", data.rows, 40.0 * data.rows * data.features)
    centre, square = np.zeros((2, data.rows, data.features))
    with drawing(), torch.no_grad():
        for chain, program in enumerate(fit.programs()):
            reseed(mix(seed, fit.meta["seed"], chain, 31))
            for _ in range(draws):
                law = stories.told(program, batch.blank(), stories.drawn(program, batch)).nodes["x"]["fn"]
                mean, variance = (v.double().cpu().numpy() for v in (law.mean, law.variance))
                share = fit.weights[chain] / draws
                centre += share * mean
                square += share * (mean**2 + variance)
    sd = np.sqrt(np.maximum(square - centre**2, 0.0))
    centre, sd = fit.in_data_units("x", centre), sd * (1.0 if fit.units is None else fit.units.scale)
    half, dims = norm.ppf(0.5 + level / 2) * sd, ("data", "feature")
    values = {"mean": centre, "sd": sd, "low": centre - half, "high": centre + half, "measured": data.known}
    coords = {"data": data.row_labels(), "feature": fit.names["feature"]}
    attrs = {"level": float(level), "fit": fit.digest}
    return xr.Dataset({name: (dims, value) for name, value in values.items()}, coords=coords, attrs=attrs)


def filled_frame(data: Data, filled: xr.Dataset) -> pd.DataFrame:
    """The rows as a table, what is missing filled in with the means that `fill` gave of them."""
    x = np.where(data.known, np.asarray(data.x, np.float64), filled["mean"].to_numpy())
    return pd.DataFrame(x, filled["data"].to_numpy(), filled["feature"].to_numpy())


@checked
def impute(
    fit: Fit,
    data: Data | None = None,
    *,
    contexts: Sequence[str] | None = None,
    perturbations: Sequence[str] | None = None,
    measured: bool = False,
    level: Share = 0.9,
) -> xr.Dataset:
    """Signatures of pairs of a context and a perturbation that were never measured: `mean`, `sd`, `low` and `high`
    (context, perturbation, feature), and `measured` (context, perturbation), how many rows were there.

    A signature is a profile less the mean control profile of its context, where there is a control; sd and the interval
    of `level` are those of the next measurement. All rows of `data` are taken as known, those that the fit held out as
    well; None = those of the fit. contexts, perturbations: names to predict for, None = all. measured: True = also for
    pairs that were measured, which are NaN otherwise. Raises InputError for names that are not known, for data in which
    no pair is missing, for contexts without rows of the control, and for fits of models that impute nothing.
    """
    program = fit.program
    if not program.imputes:
        reject("fit", f"a fit of {program.card.name}", "a model that imputes, such as causal_imputation")
    data = fit._data(data)
    batch, known = fit.batch_of(data), (fit.names["batch"], fit.names["env"])
    first = int(fit.meta["control"] is not None)  # the control is no perturbation
    picked = []
    for argument, names, allowed in zip(IMPUTED, (contexts, perturbations), (known[0], known[1][first:]), strict=True):
        for name in names or ():
            one_of(argument, name, allowed)
        picked.append(list(names or allowed))
    c, d = (np.array([own.index(name) for name in names]) for own, names in zip(known, picked, strict=True))
    count = rows_of_pairs(data)
    if first and (bare := np.flatnonzero(count[:, 0] == 0)).size:
        reject("data", f"no row of {known[1][0]!r} in context {known[0][bare[0]]!r}", "rows of it in every context")
    place = (c[:, None] * len(known[1]) + d).ravel()
    wanted = np.full(len(place), True) if measured else count.ravel()[place] == 0
    if not wanted.any():
        reject("data", f"all {len(place)} pairs measured", "a pair of a context and a perturbation without a row")
    parts = []
    with drawing(), torch.no_grad():
        for one in fit.programs():
            law = one.impute(batch, torch.as_tensor(place[wanted], device=batch.device))
            parts.append([v.double().cpu().numpy() for v in law])
    weight = fit.weights[:, None, None]
    mean, scale = (np.stack([part[k] for part in parts]) for k in (0, 1))
    freedom = float(parts[0][2])
    centre = (weight * mean).sum(0)
    variance = (weight * (scale**2 * freedom / (freedom - 2) + np.square(mean - centre))).sum(0)
    if first:
        control = np.zeros((len(count), data.features))
        rows = data.env == 0
        np.add.at(control, data.batch[rows], batch.x.double().cpu().numpy()[rows])
        centre = centre - (control / count[:, :1])[place[wanted] // len(known[1])]
    dims, shape = ("context", "perturbation", "feature"), (len(c), len(d), data.features)
    variables: dict[str, Any] = {"measured": (dims[:2], count[np.ix_(c, d)])}
    for name, value in {"mean": centre, "sd": np.sqrt(variance)}.items():
        full = np.full((len(place), data.features), np.nan)
        full[wanted] = value
        variables[name] = (dims, full.reshape(shape))
    coords = {"context": picked[0], "perturbation": picked[1], "feature": fit.names["feature"]}
    attrs = {"level": float(level), "freedom": freedom, "fit": fit.digest}
    out = xr.Dataset(variables, coords=coords, attrs=attrs)
    half = reach(out, level)
    return out.assign(low=out["mean"] - half, high=out["mean"] + half)


def imputed_frame(imputed: xr.Dataset) -> pd.DataFrame:
    """What `impute` gave as a table of a row for each context, perturbation and feature that it predicts."""
    names = ["mean", "sd", "low", "high"]
    return imputed[names].to_dataframe().dropna().reset_index()[["context", "perturbation", "feature", *names]]


def check_missing(data: Data, argument: str = "data") -> None:
    """Raise InputError, about `argument`, where every pair of a context and a perturbation has a row."""
    if rows_of_pairs(data).all():
        found = f"all {len(data.batch_names)} x {len(data.env_names)} pairs of a context and an environment measured"
        reject(argument, found, "a table in which some pair has no row")


def rows_of_pairs(data: Data) -> Array:
    """(batch, env) how many rows there are of each pair."""
    count = np.zeros((len(data.batch_names), len(data.env_names)), dtype=int)
    np.add.at(count, (data.batch, data.env), 1)
    return count


def reach(imputed: xr.Dataset, level: float) -> Array:
    """(context, perturbation, feature) half the length of the intervals of `level` of what `impute` gave."""
    freedom = imputed.attrs["freedom"]
    out: Array = student.ppf(0.5 + level / 2, freedom) * np.sqrt((freedom - 2) / freedom) * imputed["sd"].to_numpy()
    return out
