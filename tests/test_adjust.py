"""Technical batches: read, taken out by regression, or refused; never passed over."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import pyrocrl
from pyrocrl import Adjustment, Data, InputError, zoo

RNG = np.random.default_rng(0)
ENV = np.repeat(["ctrl", "A", "B"], 200)
BATCH = RNG.choice(["r1", "r2", "r3"], 600, p=[0.6, 0.3, 0.1])
AGE = RNG.normal(50, 10, 600)
CLEAN = RNG.normal(size=(600, 4)) + np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, -1, 0, 0]])[np.repeat(range(3), 200)]
SHIFT = np.array([[0, 0, 0, 0], [3, 1, 0, 0], [-2, 5, 1, 0]])[np.unique(BATCH, return_inverse=True)[1]]
X = CLEAN + SHIFT + 0.1 * (AGE - 50)[:, None] * [1, 0, -1, 0]


def test_batches_and_covariates_are_taken_out_and_environments_stay() -> None:
    data = Data(X, ENV, batch=BATCH)
    made = Adjustment.of(data, AGE)
    out = made(data, AGE)
    assert out.batch_names == ["all"] and (out.batch == 0).all() and out.env_names == data.env_names
    left = out.x - CLEAN
    assert np.abs(left - left.mean(0)).max() < 0.6  # of effects up to 5; errors of 60 rows a batch
    np.testing.assert_allclose(out.x.mean(0), X.mean(0), atol=1e-12)
    for e in range(3):  # what distinguishes environments is no batch's
        gap = out.x[data.env == e].mean(0) - out.x[data.env == 0].mean(0)
        truth = CLEAN[data.env == e].mean(0) - CLEAN[data.env == 0].mean(0)
        np.testing.assert_allclose(gap, truth, atol=0.15)
    assert (data.x == X).all() and len(data.batch_names) == 3  # the data themselves stay


def test_new_rows_are_adjusted_as_the_old_ones() -> None:
    data = Data(X, ENV, batch=BATCH, feature_names=list("abcd"))
    made = Adjustment.of(data)
    few = Data(X[:5, ::-1], ENV[:5], batch=BATCH[:5], feature_names=list("dcba"))
    np.testing.assert_allclose(made(few).x, made(data).x[:5], atol=1e-12)
    with pytest.raises(InputError, match="batch: found 'r9', which was not fitted"):
        made(Data(X[:5], ENV[:5], batch=["r9", *BATCH[:4]], feature_names=list("abcd")))
    with pytest.raises(InputError, match=re.escape("covariates: found 1 columns; allowed: 0, as the adjustment was")):
        made(few, AGE[:5])


WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "counts": ({"x": RNG.poisson(3, (600, 4)), "counts": True}, None, "data: found counts; allowed: continuous"),
    "batches are environments": (
        {"batch": ENV},
        None,
        "batch: found batches that environments determine; allowed: ",
    ),
    "a covariate is": (
        {"batch": None},
        np.repeat([0.0, 1, 2], 200),
        "covariates: found batches or covariates that ",
    ),
    "few covariates": (
        {},
        AGE[:3],
        "covariates: found shape (3, 1); allowed: finite numbers of shape (600, ",
    ),
    "gaps": ({}, np.where(AGE > 60, np.nan, AGE), "covariates: found shape (600, 1); allowed: finite numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_adjusted_is_refused(case: str) -> None:
    given, covariates, line = WRONG[case]
    with pytest.raises(InputError, match=re.escape(line)):
        Adjustment.of(Data(**({"x": X, "env": ENV, "batch": BATCH} | given)), covariates)


def test_no_model_passes_over_batches() -> None:
    """Those that do not read them refuse them, with what to do; without them they are built."""
    options: dict[str, Any] = {  # None: other columns or environments than these
        "mechanism_shift": {},
        "observed_dag": {},
        "extrapolation": None,
        "causal_flow": None,
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
