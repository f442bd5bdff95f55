"""Which intervention next: closed forms against brute force, choices against chance, and one line for bad input."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import pyrocrl
from pyrocrl import Data, InputError, cli, simulate
from pyrocrl.cli import runs
from pyrocrl.exact import design
from pyrocrl.judge.design import Choice, design_frame
from pyrocrl.lab import designs
from pyrocrl.turns import drawing

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parent.parent


def believed(rows: int = 6, seed: int = 0, nodes: int = 4) -> tuple[design.Equations, designs.System]:
    system = designs.System(nodes, seed)
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        system.see(rng.standard_normal(nodes) / 2)
    with drawing(seed):
        return system.believed(), system


@lru_cache
def fitted() -> tuple[pyrocrl.Fit, Data]:
    data = simulate.draw("squires2020", seed=3, samples=300, latents=4, settings=2)
    return pyrocrl.fit(pyrocrl.build("observed_dag", data, intervention="shift"), data, progress=False), data


# -- mathematics -----------------------------------------------------------------------------------------------------


def test_a_given_graphs_posterior_is_conjugate_regression() -> None:
    known, system = believed(rows=9)
    for k in range(4):
        parents = np.flatnonzero(system.graph[:, k])
        x, y = system.x[:, parents], system.x[:, k] - system.shift[:, k]
        precision = np.eye(len(parents)) + x.T @ x
        own = known.mean[k].numpy()[1 + parents]
        assert np.allclose(own, np.linalg.solve(precision, x.T @ y))
        variance = (known.root[k] @ known.root[k].mT).numpy()
        inside = np.ix_(1 + parents, 1 + parents)
        assert np.allclose(variance[inside], designs.NOISE**2 * np.linalg.inv(precision))
        assert np.allclose(variance.sum(), variance[inside].sum())
    assert np.allclose(known.weight.mean(0), known.mean[:, 1:].mT, atol=0.2)


def test_what_rows_leave_is_the_posterior_that_they_give() -> None:
    known, _ = believed(rows=9)
    one = design.Equations(known.weight[:1], known.constant[:1], known.noise[:1], known.mean, known.root)
    action = design.Action(torch.tensor([0.3, -1.0, 0.2, 0.5]).double(), torch.tensor([False, False, True, False]))
    u, rows = torch.tensor([1.0, 0.2, -0.4, 1.5, 0.3]).double(), 7
    mean, covariance = one.under(action)
    second = np.zeros((5, 5))
    second[1:, 1:] = covariance
    m = np.concatenate([[1.0], mean[0]])
    second += np.outer(m, m)
    found, told = design.outcome(one, action, rows, u), one.told(action, rows)
    for k in range(4):
        root = known.root[k].numpy()
        inner = root.T @ second @ root * (0 if k == 2 else rows) / float(one.variance[k])
        left = root @ np.linalg.inv(np.eye(5) + inner) @ root.T
        assert np.isclose(found.variance[k], u.numpy() @ left @ u.numpy())
        assert np.allclose(told.root[k] @ told.root[k].mT, left)
        assert np.isclose(found.information[k], 0.5 * np.linalg.slogdet(np.eye(5) + inner)[1])


def test_means_under_shifts_and_of_what_is_set() -> None:
    known, _ = believed()
    value = torch.tensor([0.5, -1.0, 0.0, 2.0]).double()
    shifted, covariance = known.under(design.Action(value, torch.zeros(4, dtype=torch.bool)))
    for draw in (0, 17):
        w = known.weight[draw].mT
        assert torch.allclose(shifted[draw], w @ shifted[draw] + value)
    held = torch.tensor([True, False, False, False])
    fixed, spread = known.under(design.Action(value * held, held))
    assert torch.allclose(fixed[:, 0], value[0]) and spread[0].abs().max() == 0 < covariance[0, 0]
    w = known.weight[5].mT
    assert torch.allclose(fixed[5, 1:], (w @ fixed[5])[1:])


def test_the_best_shift_is_the_least_of_a_quadratic_in_a_ball() -> None:
    known, system = believed()
    goal = torch.as_tensor(system.goal)
    there, acting = torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True])

    def expected(shift: np.ndarray) -> float:
        apart = known.shifted(torch.as_tensor(shift)) - goal
        return float(apart[:, there].square().sum(-1).mean())

    for norm in (0.3, 50.0):
        best = design.best_shift(known, goal, there, acting, norm).numpy()
        assert best[1] == 0.0 and np.linalg.norm(best) <= norm * (1 + 1e-9)
        ball = {"type": "ineq", "fun": lambda a, norm=norm: norm**2 - (a @ a)}
        full = np.zeros(4)

        def loss(a: np.ndarray, full: np.ndarray = full) -> float:
            full[[0, 2, 3]] = a
            return expected(full)

        rival = minimize(loss, np.full(3, 0.1), constraints=[ball], method="SLSQP")
        assert expected(best) <= rival.fun + 1e-6


def test_units_change_nothing() -> None:
    known, _ = believed()
    centre, scale = torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 0.1, 5.0, 1.0]).double()
    other, shift = known.rescaled(centre, scale), torch.tensor([0.3, 1.0, -0.2, 0.4]).double()
    assert torch.allclose(other.shifted(shift * scale), centre + scale * known.shifted(shift))
    assert torch.allclose(other.spread, known.spread * scale * scale[:, None])
    u = torch.tensor([1.0, 0.2, -0.4, 1.5, 0.3]).double()
    v = torch.cat([u[:1], centre + scale * u[1:]])
    idle = torch.zeros(4, dtype=torch.bool)
    before = design.outcome(known, design.Action(shift, idle), 5, u).variance
    after = design.outcome(other, design.Action(shift * scale, idle), 5, v).variance
    assert torch.allclose(after, before * scale**2)


@pytest.mark.parametrize("acquisition", ["lookahead", "civ", "cv", "maxv", "mi"])
def test_the_search_beats_five_hundred_shifts(acquisition: str) -> None:
    known, system = believed()
    with drawing(0), torch.no_grad():
        choice = Choice(known, system.goal, torch.ones(4, dtype=torch.bool), 1.0, 3, acquisition)
        found = choice.of_shifts(1)[0]
        assert found.action.value.norm() <= 1 + 1e-9
        raw = torch.as_tensor(np.random.default_rng(1).standard_normal((500, 4)))
        others = [choice.candidate("", choice.shift(a)).score for a in raw / raw.norm(dim=1, keepdim=True)]
    scale = np.std(others)
    assert found.score <= min(others) + 0.05 * scale  # the search takes fewer draws


# -- what it is for ---------------------------------------------------------------------------------------------------


def test_the_committed_figures() -> None:
    table = json.loads((ROOT / "models" / "results" / "interventions.json").read_text())
    last = {(run["nodes"], run["acquisition"]): run for run in table["runs"]}
    assert all(len(last[5, name]["seeds"]) == 100 for name in designs.ACQUISITIONS)
    own = last[5, "civ"]  # the default, whose mean has an error of .004
    assert last[5, "lookahead"]["mean"] <= 0.029 < 0.08 < last[5, "passive"]["mean"]
    assert own["mean"] <= 0.029 + own["standard_error"] < last[5, "greedy"]["mean"] < last[5, "random"]["mean"]
    assert all(last[20, name]["seconds"] <= 1.0 for name in designs.ACQUISITIONS)


def test_on_a_real_screen_splits_tell_more_than_chance() -> None:
    mean = json.loads((ROOT / "models" / "results" / "knockouts.json").read_text())["mean"]
    assert mean["best"] > mean["splits"] > 2 * mean["random"] > 0


def test_the_page_shows_the_committed_results() -> None:
    page = (ROOT / "docs" / "what_to_perturb_next.md").read_text()
    for name, table in {"interventions": designs.table_of, "knockouts": designs.table_of_knockouts}.items():
        results = json.loads((ROOT / "models" / "results" / f"{name}.json").read_text())
        assert table(results) in page, "run: python -m pyrocrl.lab.designs --tables, and put them there"


def test_a_choice_comes_nearer_than_rows_alone() -> None:
    ends = {name: [designs.run(5, name, seed)["distances"][-1] for seed in range(2)] for name in ("civ", "passive")}
    assert np.mean(ends["civ"]) < np.mean(ends["passive"])
    assert designs.run(5, "civ", 0)["distances"][-1] == ends["civ"][0]  # and is the same every time


# -- fits and data ----------------------------------------------------------------------------------------------------


def test_distances_of_a_fit_hold_the_true_ones() -> None:
    fit, data = fitted()
    names = data.feature_names
    goal = {name: 0.5 for name in names}
    pool: dict[str, Any] = {f"{name}{v:+g}": {name: v} for name in names for v in (-1.0, 1.0)}
    found = pyrocrl.next_interventions(fit, goal, pool=pool, batch=2, rows=50, draws=15)
    weight = data.truth["weight"]
    for label, amounts in pool.items():
        shift = np.array([amounts.get(name, 0.0) for name in names])
        true = np.square(np.linalg.solve(np.eye(4) - weight.T, shift) - 0.5).sum()
        row = found.sel(candidate=label)
        assert abs(true - row["distance"]) < 3 * max(0.05, float(row["high"] - row["low"]))
        assert row["low"] <= row["distance"] <= row["high"]
    assert sorted(found["chosen"].values) == [0] * 7 + [1, 2] and list(found["chosen"].values[:2]) == [1, 2]
    assert found["candidate"].values[-1] == "nothing" and np.isnan(found["action"].values[-1]).all()
    assert found["score"].values[0] == found["score"].values[:-1].min()
    again = pyrocrl.next_interventions(fit, goal, pool=pool, batch=2, rows=50, draws=15)
    assert again.identical(found)
    greedy = pyrocrl.next_interventions(fit, goal, pool=pool, batch=8, acquisition="greedy", draws=10)
    assert np.allclose(np.sort(greedy["distance"].values[:-1]), greedy["distance"].values[:-1])


def test_shifts_of_a_fit_and_of_some_variables_alone() -> None:
    fit, data = fitted()
    name = data.feature_names[1]
    found = pyrocrl.next_interventions(fit, {name: 1.0}, on=[name], batch=2, norm=0.5, draws=10)
    action = found["action"].to_numpy()
    assert list(found["candidate"].values) == ["shift_1", "shift_2", "nothing", "best"]
    assert np.isfinite(action[0, 1]) and np.isnan(np.delete(action[0], 1)).all()
    assert np.isclose(abs(action[0, 1]), 0.5) and np.isclose(action[-1, 1], 0.5, atol=1e-3)
    assert found["distance"].values[-1] < found["distance"].values[-2]
    table = design_frame(found)
    assert table["action"].iloc[-1] == f"{name}=0.5" and table["action"].iloc[-2] == ""


def test_acquisitions_without_a_goal() -> None:
    fit, data = fitted()
    pool = {name: {name: 2.0} for name in data.feature_names}
    for acquisition in ("mi", "passive", "random"):
        found = pyrocrl.next_interventions(fit, pool=pool, acquisition=acquisition, draws=5)  # type: ignore[arg-type]
        assert np.isnan(found["distance"]).all() and (found["chosen"] == 1).sum() == (acquisition != "passive")
    told = pyrocrl.next_interventions(fit, pool=pool, acquisition="mi", kind="set", draws=5)
    best = told["score"].values[:-1]
    assert best[0] == best.max() > 0


def test_splits_are_those_of_the_equivalence_class() -> None:
    data = simulate.draw("squires2020", seed=3, samples=300, latents=4, settings=1, neighbours=3)
    fit = pyrocrl.fit(pyrocrl.build("observed_dag", data, intervention="shift"), data, progress=False, chains=2)
    pool = {name: {name: 1.0} for name in data.feature_names} | {"two": {"feature_0": 1.0, "feature_1": 1.0}}
    found = pyrocrl.next_interventions(fit, pool=pool, acquisition="splits", batch=2, draws=5)
    score = dict(zip(found["candidate"].values, found["score"].values, strict=True))
    wanted = pyrocrl.equivalence_class(fit)["splits"].to_numpy()
    assert np.allclose([score[name] for name in data.feature_names], wanted) and wanted.max() > 0
    assert score["two"] >= wanted[:2].max() and score["nothing"] == 0
    assert score[found["candidate"].values[0]] == max(score.values())
    with pytest.raises(InputError, match="acquisition: found 'splits' without a pool or a fit"):
        pyrocrl.next_interventions(fit, acquisition="splits")


def test_latents_of_a_fit() -> None:
    program, data = pyrocrl.zoo.get("linear_sem_lin").example(0)
    fit = pyrocrl.fit(program, data, progress=False, chains=2)
    found = pyrocrl.next_interventions(fit, {"latent_0": 1.0}, batch=1, draws=10)
    assert list(found["variable"].values) == ["latent_0", "latent_1", "latent_2"]
    assert found["distance"].values[-1] < found["distance"].values[-2]


def test_a_known_graph_gives_what_the_truth_does() -> None:
    data = simulate.draw("squires2020", seed=5, samples=400, latents=4, settings=3)
    names, weight = data.feature_names, data.truth["weight"]
    goal = dict(zip(names, [0.5, -0.5, 1.0, 0.0], strict=True))
    tried = {f"target_{k[0]}": {names[k[0]]: 2.0} for k in data.truth["targets"].values()}
    found = pyrocrl.next_interventions(data, goal, graph=data.truth["graph"], norm=9.0)
    more = pyrocrl.next_interventions(data, goal, graph=data.truth["graph"], norm=9.0, tried=tried)
    needed = np.array(list(goal.values())) - weight.T @ np.array(list(goal.values()))
    for table in (found, more):
        best = np.nan_to_num(table.sel(candidate="best")["action"].to_numpy())
        assert np.allclose(best, needed, atol=0.2)
    assert more["left"].values[-1] < found["left"].values[-1]  # targets' equations learn from sizes that are known


def test_environments_of_unknown_targets_tell_nothing_of_a_known_graph() -> None:
    data = simulate.draw("squires2020", seed=5, samples=300, latents=4, settings=3)
    bare = Data(data.x, data.env_labels(), control="observational", feature_names=data.feature_names)
    alone = Data(data.x[data.env == 0], feature_names=data.feature_names)
    goal = {data.feature_names[0]: 1.0}
    both = [pyrocrl.next_interventions(d, goal, graph=data.truth["graph"]) for d in (bare, alone)]
    assert np.allclose(both[0]["left"], both[1]["left"], rtol=0.3)
    unlabelled = Data(data.x, data.env_labels(), control=None, feature_names=data.feature_names)
    if unlabelled.control is None:
        with pytest.raises(InputError, match="data: found 4 environments"):
            pyrocrl.next_interventions(unlabelled, goal, graph=data.truth["graph"])


NAMES = ["a", "b", "c"]
TABLE = Data(np.random.default_rng(0).standard_normal((30, 3)), feature_names=NAMES)
CHAIN = np.eye(3, k=1)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no goal": ({}, "goal: found None; allowed: a mapping of variables to means, or an acquisition of mi, splits"),
    "an empty goal": ({"goal": {}}, r"goal: found \{\}; allowed: a mapping of one variable or more to numbers"),
    "a goal elsewhere": ({"goal": {"d": 1.0}}, "goal: found 'd'; allowed: a, b, c"),
    "an endless goal": ({"goal": {"a": np.inf}}, r"goal\['a'\]: found inf; allowed: a finite number"),
    "a goal that is a text": ({"goal": {"a": "1"}}, r"goal\['a'\]: found '1'; allowed: a finite number"),
    "no candidates": ({"goal": {"a": 1.0}, "pool": {}}, "pool: found no candidates; allowed: one or more"),
    "a candidate of nothing": ({"goal": {"a": 1.0}, "pool": {"x": {}}}, r"pool\['x'\]: found \{\}; allowed"),
    "a candidate elsewhere": (
        {"goal": {"a": 1.0}, "pool": {"x": {"d": 1.0}}},
        r"pool\['x'\]: found 'd'; allowed: a, b",
    ),
    "an amount that is none": (
        {"goal": {"a": 1.0}, "pool": {"x": {"a": np.nan}}},
        r"pool\['x'\]\['a'\]: found nan; allowed: a finite number",
    ),
    "a label taken": ({"goal": {"a": 1.0}, "pool": {"nothing": {"a": 1.0}}}, "pool: found a candidate 'nothing'"),
    "more than there are": (
        {"goal": {"a": 1.0}, "pool": {"x": {"a": 1.0}}, "batch": 2},
        "batch: found 2; allowed: 1",
    ),
    "an unknown rule": ({"goal": {"a": 1.0}, "acquisition": "ei"}, "acquisition: found 'ei'"),
    "acting elsewhere": ({"goal": {"a": 1.0}, "on": ["d"]}, "on: found 'd'; allowed: a, b, c"),
    "acting nowhere": ({"goal": {"a": 1.0}, "on": []}, "on: found no variable; allowed: one or more"),
    "set to what": ({"goal": {"a": 1.0}, "kind": "set"}, "kind: found 'set' without a pool"),
    "no norm": ({"goal": {"a": 1.0}, "norm": 0.0}, "norm: found 0.0; allowed: a number above 0"),
    "a cycle": ({"goal": {"a": 1.0}, "graph": [[0, 1, 0], [1, 0, 0], [0, 0, 0]]}, "graph: found a cycle"),
    "a loop": ({"goal": {"a": 1.0}, "graph": np.eye(3)}, "graph: found an edge from a node to itself"),
    "another shape": (
        {"goal": {"a": 1.0}, "graph": np.zeros((2, 2))},
        r"graph: found shape \(2, 2\); allowed",
    ),
    "no graph": ({"goal": {"a": 1.0}, "graph": None}, "graph: found None beside data"),
    "tried elsewhere": ({"goal": {"a": 1.0}, "tried": {"x": {"a": 1.0}}}, "tried: found 'x'; allowed: obs"),
    "no data": ({"goal": {"a": 1.0}, "fit": 3}, "fit: found a int; allowed: a pyrocrl.Fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str) -> None:
    given, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        pyrocrl.next_interventions(**{"fit": TABLE, "graph": CHAIN, **given})
    assert "\n" not in str(caught.value)


def test_fits_without_linear_equations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = fitted()
    with pytest.raises(InputError, match="graph: found one beside a fit"):
        pyrocrl.next_interventions(fit, {"feature_0": 1.0}, graph=np.zeros((4, 4)))
    program = pyrocrl.build("vae", TABLE, latents=2, hidden=4)
    vae = pyrocrl.fit(program, TABLE, chains=1, epochs=1, progress=False)
    with pytest.raises(InputError, match="fit: found a fit of vae; allowed: one of linear equations over a graph"):
        pyrocrl.next_interventions(vae, {"latent_0": 1.0})
    monkeypatch.setattr(type(fit.program), "mechanism_kind", "relu")
    with pytest.raises(InputError, match="fit: found a fit of observed_dag with relu equations; allowed"):
        pyrocrl.next_interventions(fit, {"feature_0": 1.0})


# -- the shell --------------------------------------------------------------------------------------------------------


def test_next_prints_a_table_and_writes_it(tmp_path: Path, capsys: Capture) -> None:
    pd.DataFrame(TABLE.x, columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    (tmp_path / "g.csv").write_text("child,parent\nb,a\nc,b\n")
    (tmp_path / "pool.csv").write_text("candidate,variable,amount\nA,a,2\nAB,a,1\nAB,b,-1\n")
    (tmp_path / "goal.csv").write_text("variable,mean\nc,1.5\n")
    told = ["next", "--data", str(tmp_path / "x.csv"), "--graph", str(tmp_path / "g.csv")]
    told += ["--pool", str(tmp_path / "pool.csv"), "--goal", str(tmp_path / "goal.csv")]
    assert cli.main([*told, "--batch", "2", "--csv", str(tmp_path / "out.csv")]) == 0
    text, table = capsys.readouterr().out, pd.read_csv(tmp_path / "out.csv")
    assert set(table["candidate"]) == {"A", "AB", "nothing"} and sorted(table["chosen"]) == [0, 1, 2]
    assert "distance" in text and "a=1, b=-1" in text
    assert cli.main([*told, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert np.isclose(rows[0]["distance"], table["distance"][table["candidate"] == rows[0]["candidate"]].item())


def test_next_reads_a_run(tmp_path: Path, capsys: Capture) -> None:
    fit, data = fitted()
    pyrocrl.io.write(data, tmp_path / "x.npz")
    fit.save(tmp_path / runs.CHECKPOINT)
    record = {"seed": 0, "fit": fit.digest, "source": {"data": str(tmp_path / "x.npz"), "seed": 0}}
    pyrocrl.io.write_json(record, tmp_path / runs.RUN)
    assert cli.main(["next", str(tmp_path), "--goal", "feature_0=1", "--draws", "5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = pyrocrl.next_interventions(fit, {"feature_0": 1.0}, draws=5)
    assert np.allclose([row["distance"] for row in rows], found["distance"])
    assert cli.main(["next", str(tmp_path), "--goal", "feature_0=1", "--graph", "g.csv"]) == 2
    assert "--graph: found g.csv beside a RUN" in capsys.readouterr().err


SHELL = {
    "neither": (["next", "--goal", "a=1"], "RUN: found neither it nor --data; allowed: one of them"),
    "no number": (["--goal", "a=much"], "--goal: found 'much' for 'a'; allowed: a number"),
    "twice": (["--goal", "a=1", "--goal", "a=2"], "--goal: found 'a' twice; allowed: each variable once"),
    "no mean": (["--goal", "a", "--goal", "b=1"], "--goal: found 'a'; allowed: NAME=MEAN"),
    "another file": (["--goal", "@/g.txt"], "--goal: found '@/g.txt'; allowed: a .csv or .tsv file"),
    "other columns": (["--goal", "a=1", "--pool", "@/g.csv"], "g.csv: parent, child; allowed: the columns candidate"),
    "an amount twice": (["--goal", "a=1", "--pool", "@/two.csv"], "--pool: found 'a' twice for 'x'; allowed: each"),
    "an empty pool": (["--goal", "a=1", "--pool", "@/none.csv"], "pool: found no candidates"),
    "an unknown edge": (["--goal", "a=1", "--graph", "@/odd.csv"], "--graph: found 'd'; allowed: a, b, c"),
    "a cycle": (["--goal", "a=1", "--graph", "@/ring.csv"], "graph: found a cycle; allowed: a graph without cycles"),
    "no table": (
        ["--goal", "a=1", "--csv", "@/out.txt"],
        "--csv: found '@/out.txt'; allowed: a new file",
    ),
}


@pytest.mark.parametrize("case", SHELL)
def test_the_shell_says_one_line(case: str, tmp_path: Path, capsys: Capture) -> None:
    pd.DataFrame(TABLE.x, columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    for name, text in {"g": "a,b", "odd": "a,d", "ring": "a,b\nb,a"}.items():
        (tmp_path / f"{name}.csv").write_text(f"parent,child\n{text}\n")
    (tmp_path / "none.csv").write_text("candidate,variable,amount\n")
    (tmp_path / "two.csv").write_text("candidate,variable,amount\nx,a,1\nx,a,2\n")
    given, message = SHELL[case]
    if given[0] != "next":
        graph = [] if "--graph" in given else ["--graph", str(tmp_path / "g.csv")]
        given = ["next", "--data", str(tmp_path / "x.csv"), *graph, *given]
    assert cli.main([text.replace("@", str(tmp_path)) for text in given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message.replace("@", str(tmp_path)) in err
