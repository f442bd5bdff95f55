"""Several models of the same data side by side: latents matched, graphs in one order, one scale for held-out rows."""

import json
from pathlib import Path

import numpy as np
import pytest

import pyrocrl
from pyrocrl import simulate
from pyrocrl.cli import main
from pyrocrl.errors import InputError
from pyrocrl.judge.compare import Comparison, compare
from pyrocrl.show import report


@pytest.fixture(scope="module")
def parts() -> tuple[pyrocrl.Data, pyrocrl.Data]:
    return simulate.draw("squires2023_hard", seed=101, samples=1500, latents=3, features=6).split(0.2, 0)


@pytest.fixture(scope="module")
def fits(parts: tuple[pyrocrl.Data, pyrocrl.Data]) -> dict[str, pyrocrl.Fit]:
    train, _ = parts
    targets = {env: tuple((k + 1) % 3 for k in hit) for env, hit in train.targets.items()}
    turned = pyrocrl.Data(train.x, env=train.env_labels(), targets=targets)
    programs = {
        "known": (pyrocrl.build("linear_sem_lin", train), train),
        "turned": (pyrocrl.build("linear_sem_lin", turned, latents=3, targets="relabelled"), turned),
        "vae": (pyrocrl.build("vae", train, latents=3), train),
    }
    out = {}
    for name, (program, data) in programs.items():
        epochs = 1 if name == "vae" else None
        out[name] = pyrocrl.fit(program, data, chains=2, epochs=epochs, seed=0, progress=False)
    return out


@pytest.fixture(scope="module")
def found(fits: dict[str, pyrocrl.Fit], parts: tuple[pyrocrl.Data, pyrocrl.Data]) -> Comparison:
    held = parts[1]  # its targets are those of "known" alone; environments are matched by name
    return compare(fits, pyrocrl.Data(held.x, env=held.env_labels(), truth=held.truth))


def test_the_same_model_with_latents_in_another_order_agrees_with_itself(found: Comparison) -> None:
    pair = next(p for p in found.pairs if (p.first, p.second) == ("known", "turned"))
    assert pair.latents > 0.999
    assert pair.edges == 0 and pair.graph_up_to == "exact"
    assert set(pair.up_to.split(", ")) == {"permutation", "scale", "shift"}
    np.testing.assert_allclose(found.graphs["known"], found.graphs["turned"], atol=0.06)  # of 512 draws
    assert found.graphs["known"].max() > 0.9  # or there was nothing to put in order


def test_a_model_that_claims_nothing_is_compared_up_to_an_affine_map_and_has_no_graph(found: Comparison) -> None:
    pairs = [p for p in found.pairs if "vae" in (p.first, p.second)]
    assert len(pairs) == 2 and len(found.pairs) == 3
    assert all(p.up_to == "affine" and p.edges is None for p in pairs)
    assert "vae" not in found.graphs
    assert next(m for m in found.models if m.name == "vae").claims == ()


def test_held_out_rows_put_the_model_that_made_the_data_first(found: Comparison) -> None:
    models = {m.name: m for m in found.models}
    assert models["vae"].behind > 5 * models["vae"].error > 0
    assert min(models["known"].behind, models["turned"].behind) == 0
    assert abs(models["known"].held_out - models["turned"].held_out) < 0.01
    assert models["known"].scores["mcc"] > 0.99


def test_the_page_holds_verdicts_numbers_and_graphs(found: Comparison, tmp_path: Path) -> None:
    html = report.write_comparison(found, tmp_path).read_text()
    assert (tmp_path / "compare.html").exists() and html.count("<img") == 2
    for words in ("known", "turned", "vae", "Claims nothing", "one by one", "identified", "best"):
        assert words in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    json.dumps(found.to_dict())


def test_bad_arguments_are_refused(fits: dict[str, pyrocrl.Fit], parts: tuple[pyrocrl.Data, pyrocrl.Data]) -> None:
    with pytest.raises(InputError, match="fits: found 1; allowed: two or more"):
        compare({"known": fits["known"]}, parts[1])
    with pytest.raises(InputError, match="known: feature_names: found 7 columns; allowed: 6, as in the fit"):
        compare(fits, simulate.draw("squires2023_hard", seed=0, samples=9, latents=3, features=7))


# -- the shell -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "three.npz"
    pyrocrl.io.write(simulate.draw("squires2023_hard", seed=102, samples=200, latents=2, features=4), path)
    return path


def test_the_command_leaves_a_page_and_a_folder_per_model(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = ["compare", "linear_sem_lin", "vae", "--data", str(file), "--out", str(out), "--chains", "2", "--quiet"]
    told += ["--epochs", "1", "--option", "vae.hidden=8", "--latents", "2"]
    assert main([*told, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in shown["models"]] == ["linear_sem_lin", "vae"]
    assert json.loads((out / "compare.json").read_text()) == shown
    for model in ("linear_sem_lin", "vae"):
        assert (out / model / "report.html").exists()
    assert json.loads((out / "vae" / "run.json").read_text())["build"] == {"latents": 2, "hidden": 8}
    # the rows that were put aside stay aside when a run is read again
    record = json.loads((out / "vae" / "run.json").read_text())
    assert record["rows"] == 540 and shown["rows"] == 60
    assert main(["report", str(out / "vae")]) == 0
    assert main(told) == 2 and "holds files" in capsys.readouterr().err
    (out / "vae" / "checkpoint.safetensors").unlink()
    assert main([*told, "--resume"]) == 0
    assert "latents agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vae", "vae"], "MODEL: found vae, vae; allowed: two or more different models"),
        (["vae", "nothing"], "MODEL: found 'nothing'"),
        (["vae", "sparse_vae", "--option", "wings=2"], "--option: found 'wings'; allowed: an option of one of"),
        (["vae", "sparse_vae", "--option", "gmm_vae.latents=2"], "--option: found 'gmm_vae'"),
        (["vae", "linear_sem_lin", "--latents", "6"], "latents"),
    ],
)
def test_the_command_refuses_before_any_fit(
    arguments: list[str], words: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments, "--data", str(file), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
