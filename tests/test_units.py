"""Neither unit nor origin of a column moves a result; a fit's predictions ask less of rows than the fit does."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, Program, zoo
from pyrocrl.batch import Units
from pyrocrl.infer.units import units_of

MODELS = zoo.names()
every_model = pytest.mark.parametrize("name", MODELS)
# what makes a start short; it need not be good
BRIEF: dict[str, Any] = {"steps": 4, "search_steps": 4, "starts": 2, "width": 8, "hidden": 8, "inducing": 8}
ROWS = 400
# starts that sample: a last digit changes which draw comes next, and results by what short samplers leave open; and
# climbs in which the law of a latent and a map of it go together, and stop where little is left to gain
SAMPLED = {
    "additive_fa",
    "anchor_fa",
    "ebmf",
    "ima",
    "linear_latent_sem",
    "mixture_oracle",
    "multiview",
    "neuro_causal_fa",
    "plt_fa",
    "spike_slab_fa",
    "ssl_fa",
    "structural_sparsity_ica",
}


@cache
def example(name: str) -> tuple[Program, Data]:
    program, data = zoo.get(name).example(0)
    if name == "causal_flow":  # whose search takes long for three latents
        data = pyrocrl.simulate.draw("cauca", seed=0, samples=100, latents=2, layers=1)
        program = type(program).from_data(data)
    brief = {key: value for key, value in BRIEF.items() if key in program.config}
    rows = np.random.default_rng(0).permutation(data.rows)[:ROWS]
    return type(program)(**program.config | brief), data.rows_at(np.sort(rows))


def moved(data: Data) -> tuple[Data, np.ndarray]:
    """The data with every column in a unit from 1e-9 to 1e6 of the first and an origin up to 1e5 deviations away, and
    the units. Such columns keep eleven digits, of which float32 takes seven."""
    unit = 10.0 ** np.resize([-9, 6, 0, -5, 5], data.features)
    out = data.rows_at(slice(None))
    out.x = (data.x + np.nanstd(data.x, 0) * np.resize([0, -1e5, 1e3], data.features)) * unit
    return out, unit


def fit(program: Program, data: Data, **options: Any) -> Fit:
    return pyrocrl.fit(program, data, **{"chains": 1, "epochs": 1, "progress": False} | options)


@cache
def fitted(name: str) -> Fit:
    return fit(*example(name))


@every_model
def test_neither_unit_nor_origin_of_a_column_moves_a_result(name: str) -> None:
    before, (program, data) = fitted(name), example(name)
    other, unit = moved(data)
    after = fit(program, other)
    z = before.latents()
    if name in ("mechanism_shift", "observed_dag", "invariant_prediction"):  # whose latents are the features
        np.testing.assert_allclose(after.latents(), other.x, rtol=1e-9)
    elif name == "causal_imputation":  # its latents are the features' true values
        origin = other.x[0] / unit - data.x[0]
        np.testing.assert_allclose(after.latents() / unit - origin, z, atol=2e-3 * z.std())
    else:
        turn = program.group.align(after.latents(), z)
        apart, loose = np.abs(turn.apply(after.latents()) - z), name in SAMPLED
        assert np.sqrt(np.square(apart).mean()) <= 0.1 * z.std() if loose else apart.max() <= 2e-3 * z.std()
        for read in ("mask", "graph", "targets"):
            own, there = getattr(before, read)(), getattr(after, read)()
            if own is not None:
                axes = {-1: 0, -2: 0} if read == "graph" else {-1: 0}
                there = there if before.group.keeps_masks else turn.act(there, axes)
                np.testing.assert_allclose(there, own, atol=0.3 if loose else 2e-2, err_msg=read)
    # where noise is little, scores are large, and move with its last digits
    np.testing.assert_allclose(after.scores, before.scores - np.log(unit).sum(), atol=0.1, rtol=5e-3)


@every_model
def test_one_new_row_and_columns_that_do_not_vary_can_be_predicted(name: str) -> None:
    fit, data = fitted(name), example(name)[1]
    one = data.rows_at([3])
    five = data.rows_at(np.arange(5))
    five.x = five.x.copy()
    five.x[:, 0] = 0 * five.x[:, 0] + five.x[0, 0]  # and not there where it was not
    for rows in (one, five):
        kind = {"counts": rows.counts, "aux": rows.aux, "feature_names": rows.feature_names}
        if rows.view is not None:
            kind["view"] = np.asarray(rows.view_names)[rows.view]
        if name == "causal_imputation":  # batches are contexts
            kind["batch"] = np.asarray(rows.batch_names)[rows.batch]
        new = Data(rows.x, env=rows.env_labels(), **kind)  # as a user would hand it in
        np.testing.assert_allclose(fit.latents(new)[0], fit.latents(data)[3], atol=1e-4) if rows is one else None
        assert np.isfinite(fit.held_out_objective(new)).all()
        tree = fit.posterior(2, new)
        assert tree["posterior_predictive"]["x"].shape[2:] == rows.x.shape
        assert np.isfinite(tree["log_likelihood"]["x"]).all()
        np.testing.assert_allclose(tree["observed_data"]["x"], rows.x, rtol=1e-5, atol=1e-5)


def test_a_fit_refuses_what_is_enough_to_predict_with() -> None:
    program, data = example("vae")
    one, flat = Data(data.x[:1]), Data(np.where(np.arange(data.features) == 2, 1.0, data.x))
    with pytest.raises(InputError, match="x: found 1 row; allowed: at least 2 rows to fit to"):
        fit(program, one)
    with pytest.raises(InputError, match="x: found constant feature 'feature_2'; allowed: features that v"):
        fit(program, flat)
    with pytest.raises(InputError, match="constant feature 'feature_2'"):
        pyrocrl.choose(flat)


# -- the units themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [0.0, 1e5, 1e8])
def test_programs_see_the_same_numbers_whatever_units_and_origin(far: float) -> None:
    x = np.random.default_rng(0).standard_normal((300, 4))
    env = np.repeat(list("abc"), 100)
    program, seen = zoo.get("vae")(4, 2), []
    for unit in (1.0, 1e-9, 1e6, 1e-150, 1e150):
        data = Data(unit * (x + far * np.arange(4)), env=env)
        units = units_of(program, data)
        assert units is not None
        part = data.in_units(units)
        seen.append((part.tensors(dtype=torch.float64).x.numpy(), part.moments.cov.numpy()))
        assert seen[-1][0].std(0) == pytest.approx(1.0) and np.abs(seen[-1][0].mean(0)).max() < 1e-15 * max(far, 100)
        np.testing.assert_allclose(units.restore(seen[-1][0]), data.x, rtol=1e-12, atol=1e-12 * unit)
        assert units.log_volume == pytest.approx(np.log(data.x.std(0)).sum(), rel=1e-6)
    for other in seen[1:]:
        np.testing.assert_allclose(other[0], seen[0][0], atol=max(1e-12, 4e-16 * far * 3))
        np.testing.assert_allclose(other[1], seen[0][1], atol=max(1e-12, 4e-16 * far * 9))


def test_rows_that_come_in_units_keep_them() -> None:
    """So that data of a story are fitted in the units that its priors are in."""
    program, data = zoo.get("vae")(4, 2), Data(np.random.default_rng(0).standard_normal((30, 4)))
    told = Units(np.arange(4.0), np.full(4, 3.0))
    assert units_of(program, data.in_units(told)) is told
    assert units_of(program, data) is not told


def test_counts_and_latents_that_are_features_keep_their_units() -> None:
    counts = Data(np.random.default_rng(0).poisson(3.0, (50, 4)))
    assert units_of(zoo.get("vae").from_data(counts, latents=2), counts) is None
    assert units_of(*example("mechanism_shift")) is None
    assert units_of(zoo.get("gmm_vae")(4, 2), counts) is not None  # a model of floats, given counts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: np.c_[x, -3e5 * x[:, 1] + 7.0], "a copy of another column in other units in columns 'b', 'e'"),
        (lambda x: np.c_[x, np.eye(len(x))[0]], "one row with over half of the variance in column 'e'"),
        (lambda x: np.c_[x, x[:, 1] ** 2 + 1e15], "a variation of few digits, lost in the origin in column 'e'"),
        (lambda x: np.c_[x, 5.0 + 0 * x[:, 0]], "constant feature 'e'"),
        (lambda x: np.c_[x, np.where(x[:, 0] > 0, 1e308, -1e308)], "a spread beyond floats in column 'e'"),
        (lambda x: x, None),
    ],
)
def test_columns_that_spoil_a_fit_are_named(change: Any, said: str | None) -> None:
    data = Data(change(np.random.default_rng(0).standard_normal((200, 4))))
    data.feature_names = list("abcde")[: data.features]
    told: list[str] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            units_of(zoo.get("vae")(data.features, 2), data)
        except InputError as error:
            told.append(str(error))
    told += [str(w.message) for w in seen]
    assert len(told) == (said is not None) and all(said in line for line in told), told


def test_what_is_told_of_x_is_in_the_units_of_the_data(tmp_path: Path) -> None:
    """Loadings, variances, predictions and densities of a fit of changed data are those of the first, changed."""
    data = pyrocrl.simulate.draw("squires2023_hard", seed=0, samples=200, latents=2, features=4)
    other, unit = moved(data)
    trees, fits = [], []
    for rows in (data, other):
        fits.append(fit(zoo.get("linear_sem_lin").from_data(rows), rows))
        trees.append(fits[-1].posterior(3, rows, seed=1))
    one, two = (tree["posterior"].to_dataset() for tree in trees)
    np.testing.assert_allclose(two["loadings"] / unit[:, None], one["loadings"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two["unmixing"] * unit, one["unmixing"], rtol=1e-4, atol=1e-5)
    for group, power in (("posterior_predictive", 1), ("log_likelihood", 0)):
        before, now = (tree[group]["x"].to_numpy() for tree in trees)
        if power:
            before, now = before - data.x, (now - other.x) / unit
        else:
            now = now + np.log(unit).sum()
        np.testing.assert_allclose(now, before, atol=1e-3 * max(1.0, np.abs(before).max()), err_msg=group)
    np.testing.assert_allclose(trees[1]["observed_data"]["x"], other.x, rtol=1e-6)
    again = pyrocrl.load(fits[1].save(tmp_path), other)
    np.testing.assert_array_equal(again.latents(), fits[1].latents())
    np.testing.assert_array_equal(again.held_out_objective(other), fits[1].held_out_objective(other))
