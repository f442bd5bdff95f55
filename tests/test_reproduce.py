"""Pooled calibration and the score of a construction by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pyrocrl import simulate, zoo
from pyrocrl.errors import InputError
from pyrocrl.lab import reproduce
from pyrocrl.lab.reproduce import knockout_table
from pyrocrl.lab.studies.screens import differential_genes


def entry(edges: list[list[float]], covered: float, total: float, identified: bool = True) -> dict:
    row = {"seed": 0, "edges": edges, "metrics": {"weight_covered": covered, "weight_total": total}}
    return {"setting": "s", "options": {}, "identified": identified, "summary": {}, "seeds": [row]}


def test_calibration_pools_edges_and_weights_of_identified_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    sure, unsure = [[0.95, 1], [0.05, 0]], [[0.5, 1], [0.5, 0]]
    tables = [
        {"model": "a", "studies": [entry(sure, 9, 10), entry([[1.0, 0]] * 50, 0, 50, identified=False)]},
        {"model": "b", "studies": [entry(unsure, 7, 10)]},
    ]
    monkeypatch.setattr(reproduce, "_tables", lambda *_: tables)
    found = reproduce.calibration()
    assert found["data_sets"] == 2
    assert found["edges"] == 4
    assert found["coverage"] == pytest.approx(0.8)
    assert found["ece"] == pytest.approx(0.025)  # 0.05 off in half of the entries
    assert found["ece_half"] == pytest.approx(0.0)
    assert "2 data sets" in reproduce.figures()


def test_no_results_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_tables", lambda *_: [{"model": "a", "studies": [entry([], 0, 0)]}])
    assert reproduce.calibration() == {}
    assert "Pooled" not in reproduce.figures()


def test_figures_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def study(setting: str, options: dict, **means: float) -> dict:
        summary = {k: {"mean": v, "min": v / 2, "max": 2 * v} for k, v in means.items()}
        found = entry([], 0, 0) | {"setting": setting, "options": options, "summary": summary | {"failed": 0}}
        return found | {"seeds": found["seeds"] * (2 if setting == "moran2022" else 1)}

    screen = study("papalexi2021", {"held_out": "rep_1"}, error_model=38.5, error_control=68.9, nulls=18.0)
    simulated = study(
        "moran2022", {"samples": 20_000, "pairs": [[0, 1], [2, 3]]}, cpu_seconds=3.0, shd=1.0, pca_mcc=0.6
    )
    monkeypatch.setattr(reproduce, "_tables", lambda *_: [{"model": "vae", "studies": [screen, simulated]}])
    first, second = reproduce.figures_of("vae").split("\n\n")
    assert first.splitlines() == [
        "| setting | seeds | pca mcc | shd ↓ | cpu seconds ↓ |",
        "| --- | --- | --- | --- | --- |",
        "| `moran2022` samples 20,000, pairs 0+1 2+3 | 2 | 0.600 | 1.00 (2.00) | 3 (6) |",
    ]
    assert second.splitlines()[::2] == [
        "| setting | seeds | nulls | error model ↓ | error control ↓ |",
        "| `papalexi2021` held out rep_1 | 1 | 18 | 38.50 | 68.90 |",
    ]
    assert reproduce.figures() == f"**`vae`**\n\n{first}\n\n{second}"
    assert reproduce.figures_of("sparse_vae") == ""
    with pytest.raises(InputError, match="name: found 'nothing'"):
        reproduce.figures_of("nothing")


def test_pages_are_filled_between_their_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_tables", lambda *_: [{"model": "vae", "studies": [entry([[0.9, 1]], 9, 10)]}])
    page = """a
<!-- models: how -->
stale
<!-- /models -->
b
<!-- figures vae: how -->
<!-- /figures -->
<!-- calibration: how -->
stale
<!-- /calibration -->
c"""
    filled = reproduce.fill(page)
    assert filled.startswith("a\n<!-- models: how -->\n| model") and filled.endswith(
        "edge weights.\n<!-- /calibration -->\nc"
    )
    assert "<!-- figures vae: how -->\n| setting | seeds |" in filled and "stale" not in filled
    assert reproduce.fill(filled) == filled
    assert reproduce.fill("a page without markers") == "a page without markers"


def test_a_study_s_table_shows_figures_with_their_digits() -> None:
    rows = [
        {"seed": seed, "cpu_seconds": 3.2, "metrics": {"mse": 1.0, "shd": shd, "mcc": 0.5}}
        for seed, shd in ((0, 1.0), (1, 2.0))
    ]
    found = {"seeds": rows, "summary": reproduce.summarise([row | {"seconds": 1.0} for row in rows])}
    lines = [line.split() for line in reproduce.study_table(found).splitlines()]
    assert lines[0] == ["seed", "mcc", "shd", "cpu_seconds"]
    assert lines[2:5] == [["0", "0.500", "1", "3"], ["1", "0.500", "2", "3"], ["mean", "0.500", "1.50", "3"]]


def test_a_construction_is_scored_before_any_step() -> None:
    data = simulate.draw("squires2023_hard", 100, samples=4000, latents=4)
    train, test = data.split(0.5, 0)
    scores = reproduce.construction(zoo.build("linear_sem_lin", train), train, test, seed=0)
    assert 0.9 < scores["start_mcc"] <= 1.0
    assert np.isfinite(scores["start_shd"])


def test_a_random_start_has_no_construction() -> None:
    train, test = simulate.draw("moran2022", 100).split(0.5, 0)
    assert reproduce.construction(zoo.build("vae", train, latents=2), train, test, seed=0) == {}


def test_differential_genes_are_those_of_knockouts_with_an_effect() -> None:
    data = simulate.draw("perturb_seq", seed=100, rows=3000, latents=3, intervention="shift", nulls=3)
    genes = differential_genes(data)
    assert data.targets is not None and set(genes) == set(data.env_names[1:])
    assert all((genes[name] > 2) == bool(latents) for name, latents in data.targets.items())
    assert sum(genes[f"null_{i}"] for i in range(3)) <= 1


def test_knockout_table_begins_with_the_surest_effect() -> None:
    rows = [{"knockout": "a", "none": 0.9, "escaped": None}, {"knockout": "b", "none": 0.1, "escaped": 0.2}]
    lines = knockout_table(rows).splitlines()
    assert lines[2].startswith("b") and lines[3].split() == ["a", "0.900", "-"]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "models" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_summaries_are_those_of_all_the_rows(path: Path) -> None:
    for entry in json.loads(path.read_text()).get("studies", []):
        for name, found in reproduce.summarise(entry["seeds"]).items():
            assert entry["summary"][name] == pytest.approx(found), (entry["setting"], entry["options"], name)
