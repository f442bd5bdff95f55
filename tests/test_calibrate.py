"""`pyrocrl.calibrate`: what exact and too narrow posteriors look like in it, its file, and what it refuses."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import pyrocrl
from pyrocrl import InputError, calibrate, cli, zoo
from pyrocrl.claims import labels
from pyrocrl.errors import reject
from pyrocrl.lab import calibrations
from pyrocrl.lab.calibrate import LEVELS, Calibration, _compared, _simulated, read
from pyrocrl.program import LATENT_DIMS

HEAD = {"model": "m", "rows": 10, "from": "the prior"}


def made(spread: float, sets: int = 400) -> Calibration:
    """Truths N(0, 1) and posteriors N(0, spread^2); cells of probability p that come true so often, or for spread
    below 1 less surely than that."""
    rng = np.random.default_rng(0)
    out = []
    for number in range(sets):
        truth, draws = rng.standard_normal((2, 1)), spread * rng.standard_normal((2, 99))
        p = rng.random(5)
        hit = rng.random(5) < (p if spread == 1 else 0.5 + 0.4 * (p - 0.5))
        out.append(
            {
                "set": number,
                "ranks": {"w": (((draws < truth).sum(1) + rng.random(2)) / 100).tolist()},
                "cells": {"graph": [[float(a), int(b)] for a, b in zip(p, hit, strict=True)]},
                "tarp": (rng.random(2) ** (1 if spread == 1 else 2)).tolist(),
            }
        )
    return Calibration(HEAD, (*out, {"set": sets, "failed": "singular"}))


def test_exact_posteriors_are_told_from_narrow_ones() -> None:
    exact, narrow = made(1.0), made(0.5)
    for level in LEVELS:
        assert abs(exact.scalars()["w"][f"covered_{round(100 * level)}"] - level) < 0.04
    assert narrow.scalars()["w"]["covered_90"] < 0.7
    assert exact.scalars()["w"]["p"] > 0.01 > 1e-6 > narrow.scalars()["w"]["p"]
    assert exact.cells()["graph"]["ece"] < 0.05 < 0.1 < narrow.cells()["graph"]["ece"]
    assert exact.tarp() < 0.06 < 0.15 < narrow.tarp()
    assert exact.summary()["failed"] == 1 and "1 fits failed" in str(exact)
    assert sum(n for *_, n in exact.curve("graph")) == exact.cells()["graph"]["cells"] == 2000
    assert exact.plot("graph").axes


@cache
def small() -> tuple[pyrocrl.Program, pyrocrl.Data]:
    data = pyrocrl.simulate.draw("squires2023_hard", 0, latents=2, features=4, samples=60)
    return pyrocrl.build("linear_sem_lin", data, latents=2), data


def test_sets_are_fitted_once_and_go_on(tmp_path: Path) -> None:
    program, data = small()
    path, seen = tmp_path / "found.json", []
    told = {"rows": 50, "chains": 1, "draws": 19, "path": path, "on_set": lambda one: seen.append(one["set"])}
    first = calibrate(program, data, sets=1, **told)
    both = calibrate(program, data, sets=2, **told)
    assert seen == [0, 1] and both.sets[0] == json.loads(json.dumps(first.sets[0]))
    assert str(read(path)) == str(both)
    (one, _) = both.sets
    assert len(one["ranks"]["z"]) == 2 * len(one["tarp"]) == 2 * 4 * 3  # four new rows of three environments
    assert len(one["cells"]["graph"]) == 2 and {"weight", "loadings", "noise"} <= set(one["ranks"])
    assert "unmixing" not in one["ranks"]  # which left inverse it is depends on units
    assert set(one["verdicts"]) == {"latents", "graph"}
    with pytest.raises(InputError, match="path: found results with another rows"):
        calibrate(program, data, sets=1, **(told | {"rows": 60}))
    path.write_text("[]")
    with pytest.raises(InputError, match=r"path: found .* which holds something else"):
        calibrate(program, data, sets=1, **told)


def test_rows_that_are_refused_are_a_set_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = small()
    source = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
    monkeypatch.setattr("pyrocrl.lab.calibrate.fit", lambda *_, **__: reject("x", "what explodes", "numbers"))
    found = calibrate(around=source, sets=2, rows=20)
    assert [one["failed"] for one in found.sets] == 2 * ["x: found what explodes; allowed: numbers"]


def test_around_a_fit(tmp_path: Path) -> None:
    program, data = small()
    fit, again = (pyrocrl.fit(program, data, chains=1, seed=0, progress=False) for _ in range(2))
    path = tmp_path / "found.json"
    found = calibrate(around=fit, sets=1, chains=1, draws=19, path=path)
    assert str(calibrate(around=again, sets=1, chains=1, draws=19, path=path)) == str(found), "kept"
    assert "failed" not in found.sets[0]
    assert found.sentence().startswith("around your data, 90 % intervals cover ")


def test_what_is_refused(capsys: pytest.CaptureFixture) -> None:
    program, data = small()
    with pytest.raises(InputError, match="program: found neither it nor `around`"):
        calibrate()
    with pytest.raises(InputError, match="data: found None"):
        calibrate(program)
    with pytest.raises(InputError, match="sets: found 0"):
        calibrate(program, data, sets=0)
    with pytest.raises(InputError, match="rows: found 2"):
        calibrate(program, data, rows=2)
    assert cli.main(["calibrate"]) == 2
    assert "MODEL: found neither it nor --around" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted({"sparse_vae", "do_polynomial", "mechanism_shift", "unknown_targets"}))
def test_the_story_lends_data_that_can_be_fitted(name: str) -> None:
    """A simulated set has the template's environments, and the truth's shapes are those of the posterior's sites."""
    program, data = zoo.get(name).example(0)
    source = pyrocrl.fit(program, data, chains=1, epochs=1, seed=0, progress=False)
    drawn, truth, fitted, _ = _simulated(source, data, 20, np.random.default_rng(0), 0, False)
    assert drawn.env_names == data.env_names and np.isfinite(drawn.x).all()
    assert fitted.sum() == 20 * len(data.env_names) and len(truth["z"]) == drawn.rows
    for site in program.sites.keys() & truth.keys():
        assert np.isfinite(truth[site]).all()


# -- names of states ---------------------------------------------------------------------------------------------


def test_names_are_brought_to_those_of_a_reference() -> None:
    rng = np.random.default_rng(0)
    reference, table = rng.integers(0, 3, (200, 2)), rng.random((2, 3, 3))
    names = np.array([[2, 0, 1], [0, 2, 1]])  # what state 0, 1, 2 of each latent is called in the reference
    own = np.stack([np.argsort(to)[column] for to, column in zip(names, reference.T, strict=True)], 1)
    np.testing.assert_array_equal(labels.renamed_all(own, reference, 3), names)
    np.testing.assert_array_equal(labels.called(own, names), reference)
    told = labels.brought(table, (1, 2), names)
    assert told[0, 2, 0] == table[0, 0, 1] and told[1, 0, 2] == table[1, 0, 1]
    turned = labels.latents_by_labels(own[:, ::-1], reference, 3)
    assert turned.permutation.tolist() == [1, 0] and turned.agreement.tolist() == [1.0, 1.0]
    constant = labels.latents_by_labels(np.stack([own[:, 0], 0 * own[:, 0]], 1), reference[:, ::-1], 3)
    assert constant.permutation.tolist() == [1, 0] and constant.agreement.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("name", "rows"), [("snica_lin", 200), ("mixture_oracle", 150)])
def test_what_the_truths_states_are_called_does_not_matter(name: str, rows: int) -> None:
    """Other names and another order of latents leave all ranks and cells; states are told rightly, which those of other
    names are not."""
    program, data = zoo.get(name).example(0)
    source = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
    whole, truth, fitted, teller = _simulated(source, data, rows, np.random.default_rng(1), 1, True)
    own, kept = teller.fresh().with_constants_of(teller), whole.rows_at(np.flatnonzero(fitted))
    fit = pyrocrl.fit(own, kept, chains=1, seed=0, progress=False)
    [site], listing = program.labels, {dim for dims in program.labels.values() for dim in dims}
    latents = program.latents_count
    order, swap = np.arange(latents)[::-1], np.array([1, 0, *range(2, program.config["states"])])
    other = {}
    for key, value in truth.items():
        dims = program.sites[key].dims if key in program.sites else ()
        value = value.astype(int) if key == site else value
        value = np.where(value == 0, 1, np.where(value == 1, 0, value)) if key == site else value
        for axis, dim in enumerate(dims):
            value = np.take(value, swap, axis) if dim in listing else value
            value = np.take(value, order, axis) if dim in LATENT_DIMS else value
        other[key] = value
    once, again = (_compared(fit, whole, t, fitted, 50, np.random.default_rng(2)) for t in (truth, other))
    shared = once["ranks"].keys() & program.sites.keys()
    assert shared and {key: once["ranks"][key] for key in shared} == {key: again["ranks"][key] for key in shared}
    assert once["cells"] == again["cells"]
    p, true = np.array(once["cells"][site]).T
    assert len(p) and np.abs(p - true).mean() < 0.2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(labels, "renamed", lambda own, reference, names: np.arange(names))
        unmatched = _compared(fit, whole, other, fitted, 50, np.random.default_rng(2))["cells"][site]
    assert np.abs(np.subtract(*np.array(unmatched).T)).mean() > 0.3


def test_maps_that_a_claim_leaves_free_change_no_ranks() -> None:
    """Of each latent, where any monotone one is."""
    program, data = zoo.get("additive_fa").example(0)
    fit = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
    fitted = np.arange(data.rows) >= 4
    draw = fit.posterior(1, data, predictive=False, density=False)["posterior"]
    truth = {name: draw[name].to_numpy()[0, 0].astype(float) for name in ("z", "variance")}
    bent = truth | {"z": np.exp(2 * truth["z"])}
    once, again = (_compared(fit, data, t, fitted, 50, np.random.default_rng(2)) for t in (truth, bent))
    assert len(once["ranks"]["z"]) == 4 * program.latents_count and once == again


# -- the law -----------------------------------------------------------------------------------------------------

STABLE = [card.name for card in zoo.cards() if card.status == "stable"]


@pytest.mark.parametrize("name", zoo.built_in())
def test_every_model_is_calibrated_or_says_what_falls_short(name: str) -> None:
    """Stable ones name every shortfall, and no model one that is none."""
    found = calibrations.results(name)
    assert all(result["commit"] and not result["commit"].endswith("+") for result in found)
    none = set() if found else {"not measured"}
    short = none | {what for result in found for what in calibrations.shortfalls(result)}
    every = none | {what for result in found for what in calibrations.shortfalls(result, every=True)}
    told = set(calibrations.SHORT.get(name, {}))
    assert told <= every, f"no longer short: {sorted(told - every)}"
    if name in STABLE:
        assert short <= told, f"not told: {sorted(short - told)}"


def test_what_falls_short_of_the_law() -> None:
    def result(covered: float, ece: float, held: dict | None = None) -> dict:
        own = {"scalars": {"z": {"covered_90": covered}}, "cells": {"graph": {"ece": ece}}, "sets": 4, "failed": 0}
        return {"summary": own | ({} if held is None else {"held": held})}

    assert calibrations.shortfalls(result(0.9, 0.05)) == {}
    assert calibrations.shortfalls(result(0.84, 0.06)) == {"z": 0.84, "graph ECE": 0.06}
    assert calibrations.shortfalls(result(0.96, 0.0)) == {"z": 0.96}
    better = result(0.9, 0.0)["summary"]
    assert calibrations.shortfalls(result(0.5, 0.5, better)) == {}
    assert calibrations.shortfalls(result(0.5, 0.0, better | {"sets": 0})) == {"z": 0.5}, "no verdict holds"
