"""The commands: what they print, write and return; the simulated screen, the studies and the benchmark behind them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Program, cli, datasets, io, simulate, zoo
from pyrocrl.cli import runs
from pyrocrl.infer.elbo import elbo
from pyrocrl.lab import bench, provenance, reproduce

Capture = pytest.CaptureFixture[str]
SMALL = ["--latents", "2", "--chains", "2", "--epochs", "3", "--draws", "3", "--option", "hidden=8", "--quiet"]


def said(capsys: Capture, *arguments: str) -> str:
    """What a command prints; it must succeed and leave stderr empty."""
    capsys.readouterr()
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# -- what there is -----------------------------------------------------------------------------------------------


def test_every_command_has_help(capsys: Capture) -> None:
    text = said(capsys, "--help")
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert {"fit", "compare", "demo"} <= set(names)
    for name in names:
        assert name in text
        assert f"pyrocrl {name}" in said(capsys, name, "--help")


def test_list_and_show(capsys: Capture) -> None:
    table = said(capsys, "list")
    cards = json.loads(said(capsys, "list", "--json"))
    assert [card["name"] for card in cards] == zoo.names()
    assert all(name in table for name in zoo.names())
    assert json.loads(said(capsys, "list", "settings", "--json")) == simulate.names()
    assert "papalexi2021" in said(capsys, "list", "datasets").split()
    page = said(capsys, "show", "vae")
    assert page.startswith(zoo.get("vae").card.markdown(short=True))
    hidden = "- `hidden`: a whole number from 1 on, default 64\n    units of each layer of encoder and decoder\n"
    assert hidden in page and "## References" not in page
    told = json.loads(said(capsys, "show", "vae", "--json"))
    assert told["title"] == zoo.get("vae").card.title
    (units,) = [option for option in told["options"] if option["name"] == "hidden"]
    assert units["default"] == 64 and units["allowed"] == "a whole number from 1 on"
    assert "- `rho`: a finite number, default 0.0\n" in said(capsys, "show", "moran2022")
    options = json.loads(said(capsys, "show", "moran2022", "--json"))["options"]
    assert next(option for option in options if option["name"] == "rho")["default"] == 0.0
    assert said(capsys, "--version") == f"pyrocrl {pyrocrl.__version__}\n"


# -- simulate, fit, evaluate, report ------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Reports have tests of their own; here a file in their place saves most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrocrl.report.write", lambda *given: given[4].write_text(f"<html>{given[5]}"))
        yield


def test_simulate_writes_what_draw_gives(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "rows.npz"
    options = ["--option", "rows=60", "--option", "rho=0.5"]
    assert str(path) in said(capsys, "simulate", "moran2022", "--seed", "100", "--out", str(path), *options)
    np.testing.assert_array_equal(io.read(path).x, simulate.draw("moran2022", 100, rows=60, rho=0.5).x)
    said(capsys, "simulate", "moran2022", "--out", str(path), "--force")
    assert io.read(path).rows == 1000


def test_fit_evaluate_and_report(tmp_path: Path, capsys: Capture) -> None:
    out, rows = tmp_path / "runs" / "one", tmp_path / "rows.npz"
    data = simulate.draw("perturb_seq", seed=100, rows=200, features=12, latents=2, batches=1)
    io.write(data, rows)
    steps = ["--stop-behind", "--compile"]  # of which these are too few for either
    text = said(capsys, "fit", "vae", "--data", str(rows), "--out", str(out), "--seed", "5", *steps, *SMALL)
    assert "5 environments" not in text and "3 environments" in text
    assert "PCA" in text and "ICA" in text and "claims nothing" in text and str(out / "report.html") in text
    assert sorted(p.name for p in out.iterdir()) == sorted(runs.RESULTS)
    record = json.loads((out / runs.RUN).read_text())
    assert record["source"]["data"] == str(rows) and record["seed"] == 5 and record["chains"] == 2
    assert record["stop_behind"] is True and record["stopped"] == [] and record["compiled"] is False
    assert record["versions"].keys() == {"python", "torch", "pyro", "numpy", "pyrocrl"} and record["seconds"] > 0

    tree = io.read_tree(out / runs.POSTERIOR)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "data", "latent")
    assert list(tree["observed_data"]["feature"].to_numpy()) == data.feature_names
    assert set(tree["constant_data"]["env"].to_numpy()) == set(data.env_names)

    scores = json.loads((out / runs.SCORES).read_text())
    assert {"mcc", "pca_mcc", "ica_mcc", "r2"} <= scores.keys()
    again = json.loads(said(capsys, "evaluate", str(out), "--json"))
    assert again["mcc"] == pytest.approx(scores["mcc"])
    assert "Rank correlation with the true latents" in said(capsys, "evaluate", str(out), "--data", str(rows))

    for name in (runs.VERDICT, runs.REPORT):
        (out / name).unlink()
    assert "claims nothing" in said(capsys, "report", str(out))
    assert (out / runs.REPORT).exists()
    assert json.loads((out / runs.VERDICT).read_text())["model"] == "vae"


def test_demo_shows_a_graph_beside_its_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A smaller screen than the command's own: the simulated edge is found, and two pages lead to each other."""
    rows = simulate.draw("perturb_seq", seed=3, rows=600, features=16, latents=2)
    assert rows.truth["graph"].sum() == 1
    monkeypatch.setattr(cli.studies, "read_data", lambda source: rows)
    monkeypatch.setitem(cli.studies.DEMO, "linear_sem_lin", ("Graph and effects", {}, 2, None))
    monkeypatch.setitem(cli.studies.DEMO, "sparse_vae", ("Programmes", {"latents": 2}, 2, 20))
    out = tmp_path / "demo"
    lines = said(capsys, "demo", "--out", str(out), "--quiet").splitlines()
    (i,), (j,) = np.nonzero(rows.truth["graph"])
    edge = next(line.split() for line in lines if line.startswith(f"latent_{i} -> latent_{j}"))
    probability, weight, truth = float(edge[3]), float(edge[4]), float(edge[-1])
    assert probability > 0.9 and weight == pytest.approx(truth, abs=0.15) and abs(truth) > 0.2
    effect = next(line.split() for line in lines if line.startswith(f"latent_{i}  latent_{j}"))
    assert float(effect[2]) == pytest.approx(float(effect[-2]), abs=0.15)
    assert any(line.startswith(f"latent_{i}  gene_") for line in lines)
    said_of = [line.split(": ", 1)[1] for line in lines if line.startswith(("  latents: ", "  graph: ", "  mask: "))]
    assert len(said_of) == 4 and all(line.startswith("IDENTIFIED") for line in said_of)
    assert sorted(p.name for p in out.iterdir()) == sorted([*runs.RESULTS, "sparse_vae"])
    assert "'Programmes': 'sparse_vae/report.html'" in (out / runs.REPORT).read_text()
    assert "'Graph and effects': '../report.html'" in (out / "sparse_vae" / runs.REPORT).read_text()


def test_choose_prints_what_is_identified_and_what_is_missing(tmp_path: Path, capsys: Capture) -> None:
    whole = simulate.draw("squires2023_hard", seed=100, samples=99, latents=3, features=6)
    path = tmp_path / "rows.npz"
    io.write(whole, path)
    text = said(capsys, "choose", "--data", str(path))
    table = [line for line in text.splitlines() if line.startswith("linear_sem_lin")]
    assert len(table) == 1 and "graph" in table[0]
    assert ["target_1", "latent_1", "99"] in [line.split() for line in text.splitlines()]
    assert "none: observational" in text
    assert "warning: fewer than 100 rows in observational, target_0, target_1, target_2" in text
    assert all(name in text for name in zoo.names())

    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps({"target_0": [0], "target_1": [1]}))
    frame = io.to_frame(whole)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    told = ["--data", str(tmp_path / "rows.csv"), "--env", "env", "--targets", str(targets), "--latents", "3"]
    found = json.loads(said(capsys, "choose", *told, "--json"))
    assert [env["rows"] for env in found["environments"]] == [99] * 4
    assert sorted(model["model"] for model in found["models"]) == zoo.names()
    linear = next(model for model in found["models"] if model["model"] == "linear_sem_lin")
    assert any("intervention on latent_2" in text for text in linear["missing"]) and not linear["identifies"]
    told[-1] = "2"
    linear = next(
        model
        for model in json.loads(said(capsys, "choose", *told, "--json"))["models"]
        if model["model"] == "linear_sem_lin"
    )
    assert linear["identifies"] and not linear["missing"]


def test_commands_that_choose_prints_are_taken_by_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Each is parsed by the shell, its data read and its program built: all but the fit itself."""
    whole = simulate.draw("squires2023_hard", seed=100, samples=50, latents=3, features=6)
    table, targets = tmp_path / "my rows.csv", tmp_path / "targets.json"
    io.to_frame(whole).to_csv(table, index=False)
    targets.write_text(json.dumps(whole.targets))
    told = ["--data", str(table), "--env", "env", "--control", "observational", "--no-counts", "--latents", "3"]
    built: list[Program] = []
    monkeypatch.setattr(
        cli.fits,
        "fit_and_write",
        lambda kind, rows, source, build, *_, **__: built.append(pyrocrl.build(kind, rows, **build)),
    )
    for more in ([], ["--targets", str(targets), "--targets", "relabelled", "--intervention", "soft", "--seed", "2"]):
        text = said(capsys, "choose", *told, *more)
        found = json.loads(said(capsys, "choose", *told, *more, "--json"))["models"]
        commands = {model["model"]: model["command"] for model in found if model["command"]}
        best = next(model for model in found if model["identifies"])
        assert f"  {commands[best['model']]}\n" in text and len(commands) > 3
        for name, command in commands.items():
            program, *arguments = shlex.split(command)
            assert program == "pyrocrl"
            said(capsys, *arguments, "--out", str(tmp_path / name))
            assert built[-1].card.name == name and built[-1].latents_count == 3
            for option, word in {"targets": "relabelled", "intervention": "soft"}.items():
                assert not more or built[-1].config.get(option, word) == word


def test_fit_takes_tables_and_settings(tmp_path: Path, capsys: Capture) -> None:
    data = simulate.draw("perturb_seq", seed=100, rows=100, features=8, latents=2, anchors=2)
    io.to_frame(data).assign(library=data.size_factor).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "targets.json").write_text(json.dumps(data.targets))
    columns = ["--env", "env", "--control", "non-targeting", "--size-factor", "library", "--counts"]
    more = [*columns, "--targets", str(tmp_path / "targets.json")]
    text = said(capsys, "fit", "vae", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "a"), *more, *SMALL)
    assert "8 features, counts; 3 environments, targets 2 listed" in text
    assert not (tmp_path / "a" / runs.SCORES).exists(), "no truth, no scores"
    assert "moran2022" in said(capsys, "fit", "vae", "--data", "moran2022", "--out", str(tmp_path / "b"), *SMALL)


def test_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken() -> list[str]:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(zoo, "names", broken)
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "pyrocrl: failed: two lines (PYROCRL_TRACEBACK=1 shows where)\n"
    monkeypatch.setenv("PYROCRL_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="two"):
        cli.main(["list"])


def test_warnings_are_one_line_each(tmp_path: Path) -> None:
    code = "import warnings; from pyrocrl import cli\ncli.overview.print_table = lambda *_: warnings.warn('a\\nb')\n"
    code += "cli.main(['list'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == "pyrocrl: warning: a b\n"


# -- studies -----------------------------------------------------------------------------------------------------


def test_seeds() -> None:
    assert provenance.parse_seeds("0:3") == [0, 1, 2]
    assert provenance.parse_seeds("7") == [7]
    assert provenance.parse_seeds("0,2,5") == [0, 2, 5]


def test_reproduce_writes_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    studies = tuple(reproduce.Study("moran2022", {"rho": rho, "rows": 120}, {"latents": 2}) for rho in (0.0, 0.8))
    monkeypatch.setattr(zoo.get("vae"), "studies", studies)
    path = tmp_path / "sub" / "vae.json"
    assert cli.main(["reproduce", "vae", "--seeds", "100:102", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "vae on moran2022 (rho 0.8, rows 120)" in text and "pca_mcc" in text and "min" in text
    table = json.loads(path.read_text())
    assert [entry["options"]["rho"] for entry in table["studies"]] == [0.0, 0.8]
    for entry in table["studies"]:
        assert [row["seed"] for row in entry["seeds"]] == [100, 101]
        assert all(row["rows"] == [60, 60] and row["cpu_seconds"] > 0 for row in entry["seeds"])
        values = [row["metrics"]["mcc"] for row in entry["seeds"]]
        assert entry["summary"]["mcc"] == pytest.approx(
            {"mean": np.mean(values), "min": min(values), "max": max(values)}
        )
        assert entry["versions"]["torch"] and entry["summary"]["failed"] == 0
    assert str(tmp_path) not in path.read_text()

    # one study alone is run again, the other stays; a model's file does not take another model's results
    kept = table["studies"][1]
    monkeypatch.setattr(zoo.get("vae"), "studies", studies[:1])
    again = reproduce.reproduce("vae", seeds=[103], path=path)
    assert [entry["options"]["rho"] for entry in again["studies"]] == [0.8, 0.0]
    assert json.loads(path.read_text())["studies"][0] == kept
    with pytest.raises(pyrocrl.InputError, match="json: found results of 'vae'"):
        reproduce.reproduce(next(n for n in zoo.names() if n != "vae"), path=path)


@pytest.mark.slow
def test_processes_give_the_same_figures() -> None:
    study = reproduce.Study("moran2022", {"rows": 120}, {"latents": 2})
    alone = reproduce.run_seed("vae", study, 100)
    by_seed = {row["seed"]: row for row in reproduce._rows("vae", study, [100, 101], jobs=2)}
    assert by_seed.keys() == {100, 101}
    assert by_seed[100]["metrics"] == pytest.approx(alone["metrics"])


def test_a_seed_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise pyrocrl.FitError("no chain has a finite objective")

    monkeypatch.setattr(reproduce, "fit", broken)
    row = reproduce.run_seed("vae", reproduce.Study("moran2022", {"rows": 100}, {"latents": 2}), 100)
    assert row == {"seed": 100, "failed": "no chain has a finite objective"}
    assert reproduce.summarise([row]) == {"failed": 1}


def test_studies_name_settings_that_exist() -> None:
    for model in zoo.names():
        for study in reproduce.studies(model):
            assert study.setting in (simulate.names() if study.simulated else datasets.names())


def test_studies_of_a_model_of_a_setting_and_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {study.setting for study in reproduce.studies("sparse_vae")} == {"moran2022", "perturb_seq", "papalexi2021"}
    assert [study.options["rho"] for study in reproduce.studies("sparse_vae", "moran2022")] == [0.0, 0.8, 0.0]
    with pytest.raises(pyrocrl.InputError, match="setting: found 'kivva2022_2d'; allowed: moran2022"):
        reproduce.studies("vae", "kivva2022_2d")
    monkeypatch.setattr(zoo.get("vae"), "studies", ())
    with pytest.raises(pyrocrl.InputError, match="model: found 'vae'; allowed: a model that lists studies"):
        reproduce.studies("vae")


# -- the simulated screen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("intervention", ["perfect", "shift"])
def test_perturb_seq_is_what_its_equations_say(intervention: str) -> None:
    data = simulate.draw("perturb_seq", seed=100, rows=20_000, features=30, intervention=intervention)
    z, weight, graph = data.truth["z"], data.truth["weight"], data.truth["graph"]
    assert data.env_names[0] == data.control == "non-targeting"
    assert set(data.env_names[1:]) <= set(data.feature_names) and data.targets == data.truth["targets"]
    assert ((weight != 0) == graph).all() and ((data.truth["loadings"] != 0) == data.truth["mask"]).all()
    alone = data.truth["mask"][data.truth["mask"].sum(1) == 1]
    assert (alone.sum(0) >= 4).all(), "anchors"
    labels = data.env_labels()
    control = labels == data.control
    assert control.mean() == pytest.approx(0.3, abs=0.01)
    for label, (k,) in data.targets.items():
        gene = data.feature_names.index(label)
        assert data.truth["mask"][gene].sum() == data.truth["mask"][gene, k] == 1
        hit = labels == label
        assert z[hit, k].mean() < z[control, k].mean() - 1.5
        parents = np.flatnonzero(graph[:, k])
        for parent in parents:
            inside = abs(np.corrcoef(z[hit, parent], z[hit, k])[0, 1])
            assert inside < 0.06 if intervention == "perfect" else inside > 0.06
    noise = z[control] - z[control] @ weight
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(4), atol=0.06)
    # given z, counts have the log-linear mean: a regression of log rates on z finds the loadings
    pure = np.flatnonzero((data.truth["mask"].sum(1) == 1) & (data.x.mean(0) > 3))
    assert len(pure) >= 5 and graph.any()
    s = data.size_factor
    for j in pure[:5]:
        k = int(data.truth["mask"][j].argmax())
        low, high = z[:, k] < np.quantile(z[:, k], 0.3), z[:, k] > np.quantile(z[:, k], 0.7)
        rate = [data.x[part, j].sum() / s[part].sum() for part in (low, high)]
        assert np.sign(np.log(rate[1] / rate[0])) == np.sign(data.truth["loadings"][j, k])


# -- the benchmark -----------------------------------------------------------------------------------------------


def test_bare_torch_has_the_same_objective() -> None:
    loop, bare, batch = bench.step_pair(2, rows=16, features=12, hidden=8)
    for chain in range(2):
        torch.manual_seed(chain)
        mine = -elbo(loop.chains.chain(chain), batch).detach() / batch.total
        torch.manual_seed(chain)
        torch.testing.assert_close(bare[chain](batch.x, batch.kl_weight).detach(), mine, rtol=1e-5, atol=0)


def test_more_chains_cost_no_more_operators() -> None:
    few, many = (bench.launches(["vae"], count)["vae"] for count in (2, 5))
    assert 50 < few == many < 500


def test_bench_prints_ratios(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(
        bench, "chains", lambda *_: {"chains": 16, "together_cpu_s": 1.0, "one_by_one_cpu_s": 5.0, "ratio": 0.2}
    )
    monkeypatch.setattr(
        bench, "throughput", lambda *_: {"rows": 1, "features": 2, "chains": 8, "s_per_million_cell_epochs": 9.0}
    )
    compiled = {"chains": 1, "compiled_ms": 3.0, "recorded_ms": 4.0, "ratio": 0.75}
    monkeypatch.setattr(bench, "compiled", lambda *_: compiled)
    monkeypatch.setattr(bench, "launches", lambda: {"vae": 223})
    whole = bench.run
    monkeypatch.setattr(bench, "run", lambda progress, threads: whole(progress, threads, rounds=1, epochs=1, steps=1))
    found = json.loads(said(capsys, "bench", "--json"))
    assert found["step"]["ratio"] == pytest.approx(found["step"]["pyrocrl_ms"] / found["step"]["torch_ms"])
    assert cli.main(["bench"]) == 0
    out, err = capsys.readouterr()
    assert "0.200" in out and "9.000" in out and "223" in out and "measuring step" in err
