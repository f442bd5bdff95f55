"""`invariant_prediction`: exact tests of invariance, a response without targets, its parents, and what breaks it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.exact import goodness, invariance
from pyrocrl.judge.metrics import expected_calibration_error
from pyrocrl.lab.suite.equations import causes
from pyrocrl.models.invariant_prediction import InvariantPrediction
from pyrocrl.predict import beside_response

RESULTS = Path(__file__).parent.parent / "models" / "results" / "invariant_prediction.json"
CHAIN = ("a>y", "y>c", "c>d")


def moments(x: np.ndarray, env: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = np.column_stack([np.ones(len(x)), x])
    parts = [one[env == e] for e in range(env.max() + 1)]
    return np.stack([part.T @ part for part in parts]), np.array([float(len(part)) for part in parts])


@cache
def chain() -> tuple[Fit, Data]:
    """a -> y -> c -> d, of which environments shift a alone, and b that no other column depends on."""
    data = causes(100, {}, {"a": "shift"}, edges=CHAIN)
    return pyrocrl.fit(pyrocrl.build("invariant_prediction", data), data, chains=2, seed=0, progress=False), data


# -- exact tests -------------------------------------------------------------------------------------------------


def test_p_values_are_those_of_the_two_f_tests() -> None:
    rng, env = np.random.default_rng(0), np.repeat([0, 1, 2], [9, 12, 15])
    x = rng.normal(size=(36, 3)) * (1 + 0.2 * env)[:, None] + env[:, None]
    found, own, y = invariance.p_values(*moments(x, env), 1), [], x[:, 1]

    def left(rows: np.ndarray) -> float:
        design = np.column_stack([np.ones(rows.sum()), x[rows, 2]])  # the second set: the other column, x_2
        return float(np.square(y[rows] - design @ np.linalg.lstsq(design, y[rows], rcond=None)[0]).sum())

    own = [left(env == e) for e in range(3)]
    chow = (left(env >= 0) - sum(own)) / 4 / (sum(own) / 30)
    ends = []
    for e, free in enumerate([7, 10, 13]):
        law, ratio = stats.f(free, 30 - free), own[e] / free / ((sum(own) - own[e]) / (30 - free))
        ends.append(min(law.sf(ratio), law.cdf(ratio)))
    want = min(1.0, 2 * min(stats.f(4, 30).sf(chow), 2 * 3 * min(ends)))
    assert found.shape == (4,) and found[2] == pytest.approx(want, rel=1e-6)


def test_the_true_set_is_rejected_as_seldom_as_the_level_says() -> None:
    """At 7 rows an environment, whatever becomes of the other columns there."""
    rng, env = np.random.default_rng(1), np.repeat([0, 1, 2], 7)
    p = []
    for _ in range(1500):
        a = rng.normal(size=21) * (1 + env) + env
        y = a + rng.normal(size=21)
        c = y * (1 + env) + rng.normal(size=21)
        p.append(invariance.p_values(*moments(np.column_stack([a, y, c]), env), 1))
    rejected = (np.array(p) <= 0.1).mean(0)
    assert 0.03 < rejected[1] < 0.12, "the parent alone"
    assert rejected[0] > 0.2 and rejected[2] > 0.2 and rejected[3] > rejected[1]


def test_the_guaranteed_set_is_in_all_that_are_accepted() -> None:
    p = np.array([0.01, 0.3, 0.0, 0.2])  # sets {}, {0}, {1}, {0, 1}
    assert invariance.guaranteed(p, 0.05).tolist() == [True, False]
    assert invariance.guaranteed(p, 0.005).tolist() == [False, False], "the empty set is accepted"
    assert invariance.guaranteed(p, 0.25).tolist() == [True, False]
    assert invariance.guaranteed(p, 0.5).tolist() == [False, False], "no set is"
    untested = np.array([0.01, 0.01, np.nan, 0.01])
    assert invariance.guaranteed(untested, 0.05).tolist() == [False, True], "what cannot be tested may be"
    assert np.isnan(
        invariance.p_values(*moments(np.random.default_rng(0).normal(size=(9, 2)), np.zeros(9, int)), 0)
    ).all()


@pytest.mark.parametrize("rows", [60, 600])
def test_the_test_of_moments_is_calibrated(rows: int) -> None:
    """Of the true graph and targets, each environment's own equations included."""
    graph, hit, p = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]]) > 0, np.array([[0, 0, 0], [1, 0, 1]]) > 0, []
    for seed in range(150):
        rng, parts = np.random.default_rng(seed), []
        for e in range(2):
            a = rng.normal(size=rows) + 2 * e
            b = a + rng.normal(size=rows)
            parts.append(np.stack([a, b, a + (1 - 2 * e) * b + (1 + e) * rng.normal(size=rows)], 1))
        found = invariance.implied(*moments(np.concatenate(parts), np.repeat([0, 1], rows)), graph, hit)
        ratio = goodness.likelihood_ratio(found)
        assert ratio.freedom == 18 - 2 * 2 - 3 - 2 * 4
        p.append(ratio.p)
    assert stats.kstest(p, "uniform").pvalue > 0.001


# -- the posterior -----------------------------------------------------------------------------------------------


def test_no_environment_changes_the_response() -> None:
    data = simulate.draw("peters2016", 0, rows=30, latents=4, environments=3)
    program = InvariantPrediction.from_data(data, response="y").double()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
        targets = program.targets_matrix()
        assert (targets[:, 2] == 0).all() and (targets[:, [0, 1, 3]] > 0).any()
        batch = data.tensors(dtype=torch.float64, moments=True)
        drawn = [program.recovered(batch, {"edge": torch.tensor(0.0).double()}) for _ in range(20)]
    assert all((one["targets"][:, 2] == 0).all() for one in drawn)
    pooled = data.tensors(dtype=torch.float64)
    z = (pooled.x - program.mean) / program.spread
    from pyrocrl.exact import all_subsets, interventions

    one = torch.cat([interventions.OFFSET * torch.ones(len(z), 1), z[:, [0, 1, 3, 2]]], 1).double()
    found = []
    for t in interventions.SLABS:
        scaled = one * torch.tensor([1, t, t, t, 1.0]).double()
        found.append(all_subsets.log_evidence(scaled.mT @ scaled, torch.tensor(90.0).double()))
    want = torch.stack(found).logsumexp(0) - np.log(3)
    torch.testing.assert_close(program.evidence[2], want)  # of all rows as one


def test_a_child_that_no_environment_changes_is_none_of_the_parents() -> None:
    """The regression on a and c is invariant as well, and its evidence of being shared is higher: see the docstring."""
    fit, data = chain()
    parents = fit.parents()
    assert parents is not None and parents.shape == (5, 1)
    assert parents[0, 0] > 0.95 and parents[1:, 0].max() < 0.1
    found = fit.chains.chain(0).invariance()
    assert found is not None and fit.guaranteed() == ["a"]
    p, chance = (value.numpy() for value in found)
    assert min(p[0b0001], p[0b0101]) > 0.01 and p[0] < 1e-6  # of a, b, c, d: {a} and {a, c}; none
    assert chance.sum() == pytest.approx(1.0) and chance[0b0001] == chance.max()
    shared = [gain(data, s) for s in ([0], [0, 3])]
    assert shared[1] > shared[0] > 0


def gain(data: Data, columns: list[int]) -> float:
    """BIC's log evidence that the response's regression on these columns is shared, against one free in each
    environment."""
    y, out = data.x[:, 2], 0.0
    for sign, groups in ((1, [np.arange(data.rows)]), (-1, [np.flatnonzero(data.env == e) for e in range(2)])):
        for rows in groups:
            design = np.column_stack([np.ones(len(rows)), data.x[np.ix_(rows, columns)]])
            left = y[rows] - design @ np.linalg.lstsq(design, y[rows], rcond=None)[0]
            n = len(rows)
            out += sign * (-0.5 * n * np.log(np.square(left).mean()) - 0.5 * (len(columns) + 2) * np.log(n))
    return out


def test_verdict_names_what_no_data_show_and_what_is_guaranteed() -> None:
    fit, data = chain()
    verdict = pyrocrl.diagnose(fit, data)["parents"]
    assert verdict.verdict == "identified if" and "guarantees a (level .05)" in verdict.reason
    assert "no unobserved variable acts on two observed ones" in verdict.given
    checks = {one.assumption: one.result for one in verdict.evidence if one.p is not None}
    assert set(checks.values()) == {"holds"} and len(checks) == 2


def test_one_environment_identifies_nothing() -> None:
    data = causes(0, {}, rows=100)
    fit = pyrocrl.fit(pyrocrl.build("invariant_prediction", data), data, chains=2, seed=0, progress=False)
    verdict = pyrocrl.diagnose(fit, data)["parents"]
    assert verdict.verdict == "not identified" and verdict.reason.startswith("there is one environment")
    assert fit.guaranteed() == []


def test_a_shifted_response_contradicts() -> None:
    data = causes(101, {}, {"y": "shift"}, {"c": "shift"}, rows=300)
    fit = pyrocrl.fit(pyrocrl.build("invariant_prediction", data), data, chains=2, seed=0, progress=False)
    verdict = pyrocrl.diagnose(fit, data)["parents"]
    assert verdict.verdict == "contradicted" and "F tests of the response's regression" in verdict.reason


# -- the response ------------------------------------------------------------------------------------------------


def test_the_response_is_told_by_name_or_position() -> None:
    data = simulate.draw("peters2016", 0, rows=10, latents=3)
    assert [pyrocrl.build("invariant_prediction", data, **o).config["response"] for o in ({}, {"response": 2})] == [
        1,
        2,
    ]
    named = Data(data.x, data.env_labels(), feature_names=["a", "b", "c"])
    assert pyrocrl.build("invariant_prediction", named, response="c").config["response"] == 2
    with pytest.raises(InputError, match=r"response: found 'y'.*its default.*columns are a, b, c"):
        pyrocrl.build("invariant_prediction", named)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"response": "z"}, "response: found 'z'; allowed: the response's name or position; columns are x0, y, x2"),
        ({"response": 3}, "response: found 3; allowed: a position from 0 to 2"),
        ({"response": -1}, "response: found -1; allowed: a position"),
        ({"response": 0.5}, "response: found 0.5; allowed: a whole number or a text"),
        ({"latents": 2}, "latents: found 2; allowed: 3, as many as features"),
        ({"target_probability": 1.0}, "target_probability: found 1"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], said: str) -> None:
    data = simulate.draw("peters2016", 0, rows=10, latents=3)
    with pytest.raises(InputError, match=said):
        pyrocrl.build("invariant_prediction", data, **wrong)


def test_more_than_twelve_columns_are_refused() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 13))
    with pytest.raises(InputError, match="features: found 13; allowed: a whole number from 2 to 12"):
        pyrocrl.build("invariant_prediction", Data(rows), response=0)


def test_columns_that_others_determine_are_refused_but_where_environments_hold_them() -> None:
    rng, labels = np.random.default_rng(0), ["a"] * 40 + ["b"] * 40
    x = rng.normal(size=(80, 4))
    held = x.copy()
    held[:40, 3] = 1.5
    fit = pyrocrl.fit(
        pyrocrl.build("invariant_prediction", Data(held, labels), response=0),
        Data(held, labels),
        chains=2,
        epochs=5,
        progress=False,
    )
    assert np.isfinite(fit.parents()).all() and pyrocrl.diagnose(fit)["parents"].reason and fit.guaranteed() == []
    copied = Data(np.column_stack([x, x[:, 0] - 2 * x[:, 1]]), labels)
    with pytest.raises(InputError, match="x: found columns that others determine; allowed: columns none of which"):
        pyrocrl.fit(pyrocrl.build("invariant_prediction", copied, response=0), copied, chains=1, progress=False)


def test_an_environment_of_one_row_is_refused() -> None:
    data = Data(np.random.default_rng(0).normal(size=(9, 2)), ["a"] * 8 + ["b"])
    with pytest.raises(InputError, match=r"env: found 1 row\(s\) to fit in environment 'b'"):
        pyrocrl.fit(pyrocrl.build("invariant_prediction", data, response=0), data, chains=1, progress=False)


# -- among latents -------------------------------------------------------------------------------------------------


def test_latents_stand_beside_a_response() -> None:
    fit, data = chain()
    few = data.rows_at(np.arange(480, 520))
    both = beside_response(fit, np.arange(40.0), few, name="height", share=1.0)
    assert both.feature_names == [*(f"latent_{k}" for k in range(5)), "height"]
    assert both.env_labels().tolist() == few.env_labels().tolist() and len(both.env_names) == 2
    np.testing.assert_array_equal(both.x[:, :5], fit.latents(few))
    np.testing.assert_array_equal(both.x[:, 5], np.arange(40.0))
    fifth = beside_response(fit, np.arange(40.0), few, seed=1)
    assert np.bincount(fifth.env).tolist() == [4, 4]
    np.testing.assert_array_equal(fifth.x[:, :5], both.x[fifth.x[:, 5].astype(int), :5])
    with pytest.raises(
        InputError, match=r"response: found shape \(3,\); allowed: one number for each of the 1,?000 rows"
    ):
        beside_response(fit, [1.0, 2.0, 3.0])
    mixed = simulate.draw("bhattacharya2011", rows=40, latents=2, features=8, density=0.5)
    program = pyrocrl.build("shrinkage_fa", mixed, latents=3, steps=10)
    turned = pyrocrl.fit(program, mixed, chains=1, epochs=1, progress=False)
    with pytest.raises(InputError, match="fit: found latents up to linear; allowed: latents identified one by one"):
        beside_response(turned, np.zeros(40))


def test_the_response_among_latents_has_two_of_four_as_parents() -> None:
    data = simulate.draw("lu2021", 0, rows=2000, strong=1)
    z, weight = data.truth["z"], data.truth["weight"]
    assert data.features == 11 and data.feature_names[-1] == "y" and (data.x[:, 10] == z[:, 2]).all()
    assert weight[:, 2].nonzero()[0].tolist() == [0, 1] and weight[2].nonzero()[0].tolist() == [3]
    left = z - z @ weight
    free = data.env_labels() == "control"
    np.testing.assert_allclose(left[free].mean(0), 0.0, atol=0.12)
    np.testing.assert_allclose(np.corrcoef(left[free].T), np.eye(5), atol=0.1)
    child = data.env_labels() == "env_2"
    assert abs(np.corrcoef(z[child][:, 2], z[child][:, 3])[0, 1]) < 0.1 and z[child][:, 3].std() > 1.8
    np.testing.assert_allclose(left[:, 2].std(), 1.0, atol=0.05)


# -- the setting and its results -----------------------------------------------------------------------------------


def test_the_setting_shifts_columns_other_than_the_response() -> None:
    data = simulate.draw("peters2016", 3, rows=4000, latents=5, shifted=2, strong=1)
    assert data.feature_names[2] == "y" and data.env_names == ["env_0", "env_1", "env_2", "strong_0"]
    targets: Any = data.truth["targets"]
    weight = data.truth["weight"]
    assert all(2 not in hit for hit in targets.values()) and len(targets["env_1"]) == 2
    noise = data.x - data.x @ weight
    for e, name in enumerate(data.env_names[:3]):
        level = np.zeros(5)
        level[list(targets.get(name, ()))] = 2.0
        np.testing.assert_allclose(noise[data.env == e].mean(0), level, atol=0.1)
    assert np.abs(noise[data.env == 3].mean(0)[[0, 1, 3, 4]]).min() > 1.9
    np.testing.assert_allclose(noise[:, 2].std(), 1.0, atol=0.05)
    with pytest.raises(InputError, match="shifted: found 5"):
        simulate.draw("peters2016", latents=5, shifted=5)


def test_committed_results_keep_what_is_guaranteed_and_are_calibrated() -> None:
    """Probabilities of parents by their calibration over all seeds."""
    for entry in json.loads(RESULTS.read_text())["studies"]:
        found = [row["metrics"] for row in entry["seeds"]]
        edges = np.array([edge for row in entry["seeds"] for edge in row["edges"]])
        of_latents = entry["setting"] == "lu2021"
        assert (len(found), len(edges)) == ((10, 40) if of_latents else (40, 240))

        def mean(name: str, found: list[dict[str, float]] = found) -> float:
            return float(np.mean([one[name] for one in found]))

        assert mean("shift_error") < mean("pooled_shift_error")
        assert mean("icp_parents_false") <= 0.05 and mean("surely_parents_false") <= 0.05
        assert mean("parents_exact") >= (0.8 if of_latents else 0.6)
        assert of_latents or mean("icp_parents_exact") < 0.6
        assert expected_calibration_error(edges[:, 1], edges[:, 0]) <= 0.05
