"""Technical batches: read, taken out by regression, or refused; never passed over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pyrocrl
from pyrocrl import Adjustment, Data, InputError, zoo
from pyrocrl.cli import main

RNG = np.random.default_rng(0)
ENV = np.repeat(["ctrl", "A", "B"], 200)
BATCH = RNG.choice(["r1", "r2", "r3"], 600, p=[0.6, 0.3, 0.1])
AGE = RNG.normal(50, 10, 600)
CLEAN = RNG.normal(size=(600, 4)) + np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, -1, 0, 0]])[np.repeat(range(3), 200)]
SHIFT = np.array([[0, 0, 0, 0], [3, 1, 0, 0], [-2, 5, 1, 0]])[np.unique(BATCH, return_inverse=True)[1]]
X = CLEAN + SHIFT + 0.1 * (AGE - 50)[:, None] * [1, 0, -1, 0]


@pytest.mark.parametrize("told", [{"batch": BATCH, "covariates": AGE}, {"covariates": {"run": BATCH, "age": AGE}}])
def test_batches_and_covariates_are_taken_out_and_environments_stay(told: dict[str, Any]) -> None:
    data = Data(X, ENV, **told)
    out = Adjustment.of(data)(data)
    assert (
        out.covariates == {}
        and out.batch_names == ["all"]
        and (out.batch == 0).all()
        and out.env_names == data.env_names
    )
    left = out.x - CLEAN
    assert np.abs(left - left.mean(0)).max() < 0.6  # of effects up to 5; errors of 60 rows a batch
    np.testing.assert_allclose(out.x.mean(0), X.mean(0), atol=1e-12)
    for e in range(3):  # what distinguishes environments is no batch's
        gap = out.x[data.env == e].mean(0) - out.x[data.env == 0].mean(0)
        truth = CLEAN[data.env == e].mean(0) - CLEAN[data.env == 0].mean(0)
        np.testing.assert_allclose(gap, truth, atol=0.15)
    assert (data.x == X).all() and data.covariates  # the data themselves stay


def test_new_rows_are_adjusted_as_the_old_ones() -> None:
    data = Data(X, ENV, batch=BATCH, feature_names=list("abcd"))
    made = Adjustment.of(data)
    few = Data(X[:5, ::-1], ENV[:5], batch=BATCH[:5], feature_names=list("dcba"))
    np.testing.assert_allclose(made(few).x, made(data).x[:5], atol=1e-12)
    with pytest.raises(InputError, match="batch: found 'r9', which was not fitted"):
        made(Data(X[:5], ENV[:5], batch=["r9", *BATCH[:4]], feature_names=list("abcd")))
    with pytest.raises(InputError, match="covariates: found 'covariate_0'; allowed: none"):
        made(Data(X[:5], ENV[:5], batch=BATCH[:5], feature_names=list("abcd"), covariates=AGE[:5]))
    assert made(made(few)).x is made(few).x or np.array_equal(made(made(few)).x, made(few).x)  # once
    other = Adjustment.of(Data(X, ENV, covariates=AGE, feature_names=list("abcd")))
    with pytest.raises(InputError, match="data: found rows that were adjusted otherwise"):
        other(made(few))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "counts": ({"x": RNG.poisson(3, (600, 4)), "counts": True}, "data: found counts; allowed: continuous"),
    "batches are environments": ({"batch": ENV}, "batch: found batches that environments determine; allowed: "),
    "a covariate is": (
        {"batch": None, "covariates": np.repeat([0.0, 1, 2], 200)},
        "covariates: found batches or covariates that ",
    ),
    "two that are one": (
        {"batch": None, "covariates": {"day": BATCH, "run": BATCH}},
        "covariates: found batches or covariates that ",
    ),
    "nothing to adjust for": ({"batch": None}, "data: found neither batches nor covariates; allowed: "),
    "few covariates": ({"covariates": AGE[:3]}, "covariates: found 3 rows; allowed: one for each row of x, 600"),
    "gaps": (
        {"covariates": pd.DataFrame({"age": np.where(AGE > 60, np.nan, AGE)})},
        "covariates['age']: found ",
    ),
    "twice": (
        {"covariates": pd.DataFrame(np.zeros((600, 2)), columns=["age", "age"])},
        "covariates: found 'age' more than once",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_adjusted_is_refused(case: str) -> None:
    given, line = WRONG[case]
    with pytest.raises(InputError, match=re.escape(line)):
        Adjustment.of(Data(**({"x": X, "env": ENV, "batch": BATCH} | given)))


def test_a_fit_adjusts_new_rows_as_those_it_was_made_of(tmp_path: Path) -> None:
    raw = Data(X, ENV, covariates={"run": BATCH, "age": AGE})
    with pytest.raises(
        InputError, match=r"^covariates: found 'run', 'age', which vae does not read; allowed: none, or"
    ):
        pyrocrl.build("vae", raw, latents=2)
    adjusted = Adjustment.of(raw)(raw)
    program = pyrocrl.build("vae", adjusted, latents=2)
    fit = pyrocrl.fit(program, adjusted, chains=1, epochs=3, progress=False, out=tmp_path)
    for one in (fit, pyrocrl.load(tmp_path)):
        few = Data(X[:5], ENV[:5], covariates={"age": AGE[:5], "run": BATCH[:5]})
        np.testing.assert_allclose(one.latents(few), fit.latents()[:5], atol=1e-6)
        with pytest.raises(InputError, match="covariates: found none; allowed: 'run', 'age'"):
            one.latents(Data(X[:5], ENV[:5]))
        with pytest.raises(
            InputError, match=re.escape("covariates['run']: found 'r9'; allowed: one of 'r1', 'r2', 'r3'")
        ):
            one.latents(Data(X[:5], ENV[:5], covariates={"age": AGE[:5], "run": ["r9", *BATCH[:4]]}))
    plain = Data(X, ENV)
    other = pyrocrl.fit(pyrocrl.build("vae", plain, latents=2), plain, chains=1, epochs=1, progress=False)
    for rows, found in ((raw, "covariates"), (adjusted, "rows that were adjusted")):
        with pytest.raises(InputError, match=f"data: found {found}; allowed: rows without covariates"):
            other.latents(rows)


def test_the_shell_and_files_adjust(tmp_path: Path) -> None:
    table = pd.DataFrame(X, columns=list("abcd")).assign(cond=ENV, run=BATCH, age=AGE)
    table.to_csv(tmp_path / "rows.csv", index=False)
    table[300:].to_csv(tmp_path / "more.csv", index=False)
    data = pyrocrl.io.read(tmp_path / "rows.csv", env="cond", adjust=["run", "age"])
    assert data.feature_names == list("abcd") and list(data.covariates) == ["run", "age"]
    again = pyrocrl.io.read(pyrocrl.io.write(data, tmp_path / "rows.npz"))
    assert again.covariates["run"].tolist() == BATCH.tolist() and np.allclose(again.covariates["age"], AGE)
    common = ["--env", "cond", "--data", str(tmp_path / "rows.csv")]
    fit = ["fit", "vae", *common, "--latents", "2", "--chains", "1", "--epochs", "2", "--draws", "2", "--quiet"]
    assert main([*fit, "--adjust", "run", "--adjust", "age", "--out", str(tmp_path / "run")]) == 0
    found = pyrocrl.load(tmp_path / "run")
    assert found.adjustment is not None and list(found.adjustment.columns) == ["run", "age"]
    assert main(["report", str(tmp_path / "run")]) == 0
    out = tmp_path / "z.csv"
    more = ["--data", str(tmp_path / "more.csv"), "--env", "cond", "--adjust", "age", "--adjust", "run"]
    assert main(["export", str(tmp_path / "run"), *more, "--csv", str(out)]) == 0
    np.testing.assert_allclose(
        pd.read_csv(out, index_col=0)[["latent_0", "latent_1"]], found.latents(data)[300:], atol=1e-5
    )


def test_columns_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame(X, columns=list("abcd")).to_csv(tmp_path / "rows.csv", index=False)
    given = ["fit", "vae", "--data", str(tmp_path / "rows.csv"), "--latents", "2", "--out", str(tmp_path / "run")]
    assert main([*given, "--adjust", "day"]) == 2
    assert "adjust: found no column 'day'; allowed: one of 'a', 'b', 'c', 'd'" in capsys.readouterr().err


def test_no_model_passes_over_batches() -> None:
    """Those that do not read them refuse them, with what to do; without them they are built."""
    options: dict[str, Any] = {  # None: other columns, environments, pairs, views or series than these
        "mechanism_shift": {},
        "observed_dag": {},
        "invariant_prediction": {"response": 0},
        "extrapolation": None,
        "causal_flow": None,
        "ima": None,
        "causal_imputation": None,
        "weakly_supervised_pairs": None,
        "weakly_supervised_nonlin": None,
        "overparameterized_ae": None,  # batches are contexts
        "cross_modal": None,
        "multiview": None,
        "snica_lin": None,
        "citris": None,
        "biscuit": None,
        "sparse_perturbations": None,
        "content_style": None,
        "multi_augmentation": None,
        "equivariant_mechanism": None,
        "mechanism_sparsity": None,
    }
    for name in zoo.built_in():
        more = options.get(name, {"latents": 2})
        if more is None:
            continue
        kind = zoo.get(name)
        named = bool(kind.card.targets) and "unknown" not in kind.card.targets
        known = {"targets": {"A": [0], "B": [1]}} if named else {}
        more = more | ({"targets": "unknown"} if "targets" in kind.options() and not named else {})
        batched = Data(RNG.normal(size=(600, 6)), ENV, control="ctrl", batch=BATCH, **known)
        if "batches" in kind.options() and name != "linear_sem_lin":
            assert pyrocrl.build(name, batched, **more).reads_batches
            continue
        with pytest.raises(InputError, match=rf"^batch: found 3 batches, which {name} does not read of cont"):
            pyrocrl.build(name, batched, **more)
        program = pyrocrl.build(name, Adjustment.of(batched)(batched), **more)
        with pytest.raises(InputError, match="batch: found 3 batches, which"):
            pyrocrl.fit(program, batched, epochs=1, chains=1, progress=False)
    counts = Data(RNG.poisson(3.0, (600, 4)), ENV, {"A": [0], "B": [1]}, batch=BATCH, counts=True)
    assert pyrocrl.build("linear_sem_lin", counts, latents=2).reads_batches
