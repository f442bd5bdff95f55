"""extrapolation: better than regression under actions never tried, and intervals from the chains."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, predict, simulate
from pyrocrl.judge.metrics import linear_r2
from pyrocrl.models.extrapolation import BLOCK, Extrapolation
from pyrocrl.predict import extrapolation_errors, predict_action
from pyrocrl.simulate.saengkyongam import mean_under

SEED = 101


@cache
def fitted() -> tuple[Fit, Data]:
    data = simulate.draw("saengkyongam2024", SEED, samples=3000)
    program = Extrapolation.from_data(data, width=32, steps=300)
    return pyrocrl.fit(program, data, chains=3, seed=0, progress=False), data


def outside(rows: int = 60) -> np.ndarray:
    """Actions outside the range that was tried."""
    a = np.random.default_rng(0).uniform(-2, 2, (4 * rows, 2))
    return a[np.abs(a).max(1) > 1][:rows]


def test_the_same_world_under_a_wider_range() -> None:
    near, wide = (simulate.draw("saengkyongam2024", SEED, samples=4000, reach=r, noise=0.0) for r in (1.0, 2.0))
    assert np.abs(wide.aux).max() > 1.9 > 1 > np.abs(near.aux).max()
    effects = [np.linalg.lstsq(d.aux, d.truth["z"], rcond=None)[0] for d in (near, wide)]
    np.testing.assert_allclose(*effects, atol=0.1)
    np.testing.assert_allclose(near.x.mean(0), mean_under(near.aux[:400], SEED, draws=200).mean(0), atol=0.1)


def test_beats_every_regression_outside_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "PROCESS_ROWS", 400)  # seconds, not tens of them
    fit, data = fitted()
    actions = outside()
    scores = extrapolation_errors(fit, data, actions, mean_under(actions, SEED, draws=4000))
    assert scores["action_error"] < scores["action_error_best"]
    assert scores["action_error"] < 0.5 * scores["action_error_linear"]
    assert scores["action_error_best"] == min(v for k, v in scores.items() if k.startswith("action_error_"))
    assert scores["action_coverage"] > 0.5


def test_latents_are_affine_in_the_true_ones() -> None:
    fit, data = fitted()
    best = fit.chain_latents(data)[fit.reference]
    assert linear_r2(best, data.truth["z"]) > max(0.93, linear_r2(data.x, data.truth["z"]))


def test_intervals_are_the_spread_of_chains() -> None:
    fit, _ = fitted()
    narrow, wide = (predict_action(fit, outside(), level=level) for level in (0.5, 0.9))
    assert (wide["high"] - wide["low"] > narrow["high"] - narrow["low"]).all()
    np.testing.assert_allclose(wide["mean"], wide["chain_mean"].mean("chain"))
    inside = predict_action(fit, 0.5 * outside() / 2)
    assert float((inside["high"] - inside["low"]).mean()) < float((wide["high"] - wide["low"]).mean())


def test_actions_of_a_table_are_matched_by_name() -> None:
    fit, data = fitted()
    frame = pd.DataFrame(outside(10), columns=data.aux_names)
    for table in (frame, frame[frame.columns[::-1]], frame.set_axis(range(2), axis=1)):
        np.testing.assert_array_equal(predict_action(fit, table)["mean"], predict_action(fit, outside(10))["mean"])
    with pytest.raises(InputError, match="actions: found 'dose', 'time'; allowed: 2 columns without names"):
        predict_action(fit, frame.set_axis(["dose", "time"], axis=1))


def test_effect_is_in_the_units_of_the_action() -> None:
    fit, data = fitted()
    effect = fit.posterior(1, data, thin=100, predictive=False)["posterior"]["effect"].to_numpy()[fit.reference, 0]
    slope = np.linalg.lstsq(data.aux - data.aux.mean(0), fit.chain_latents(data)[fit.reference], rcond=None)[0]
    np.testing.assert_allclose(effect, slope, atol=0.15)


def test_rows_have_bootstrap_weights_that_the_held_out_objective_ignores() -> None:
    from pyrocrl.infer.elbo import elbo
    from pyrocrl.infer.held_out import row_elbo

    program, data = Extrapolation.example()
    batch = data.tensors().whole()
    assert isinstance(program, Extrapolation)
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
        assert program.row_weight.mean().item() == pytest.approx(1.0, abs=1e-5)
        assert program.row_weight.std() > 0.9
        torch.manual_seed(1)
        rows = row_elbo(program, batch)
        torch.manual_seed(1)
        whole = elbo(program, batch)
    expected = (program.row_weight[batch.index % BLOCK] * rows).sum()
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1.0)
    assert abs(float(rows.sum() - whole)) > 10


@pytest.mark.parametrize(
    ("change", "words"), [({"aux": 1}, "aux"), ({"latents": 10}, "latents"), ({"steps": 0}, "steps")]
)
def test_bad_config(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Extrapolation(**({"features": 10, "latents": 2, "aux": 2} | change))


def test_bad_input() -> None:
    fit, data = fitted()
    for actions in (np.zeros((3, 1)), np.zeros(2), np.array([[np.nan, 0.0]])):
        with pytest.raises(InputError, match="actions"):
            predict_action(fit, actions)
    with pytest.raises(InputError, match="level"):
        predict_action(fit, outside(), level=1.0)
    with pytest.raises(InputError, match="draws"):
        predict_action(fit, outside(), draws=1)
    with pytest.raises(InputError, match="aux: found none"):
        pyrocrl.fit(fit.program, Data(x=data.x), progress=False)
    with pytest.raises(InputError, match="actions"):
        simulate.draw("saengkyongam2024", 0, actions=1)
    with pytest.raises(InputError, match="reach"):
        simulate.draw("saengkyongam2024", 0, reach=0.0)


def test_a_chain_that_is_stuck_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = fitted()
    assert len(predict_action(fit, outside(5))["chain"]) == 3
    behind = fit.scores - np.array([0.0, 10.0, 0.0])
    monkeypatch.setattr(Fit, "scores", property(lambda self: behind))
    with pytest.raises(InputError, match="2 chain"):
        predict_action(fit, outside(5))


def test_draws_of_the_bootstrap_weigh_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = fitted()
    np.testing.assert_allclose(fit.weights, np.full(3, 1 / 3))
    behind = fit.scores.max() - np.array([0.0, 10.0, 0.5])  # one is stuck
    monkeypatch.setattr(Fit, "scores", property(lambda self: behind))
    np.testing.assert_allclose(Fit.weights.func(fit), [0.5, 0.0, 0.5])
