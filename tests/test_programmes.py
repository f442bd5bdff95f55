"""Gene programmes compared: probabilities of counts on one scale, matches, and the committed results."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, datasets
from pyrocrl.exact.score_mixtures import deviations
from pyrocrl.lab import programme_tables, programmes, reproduce
from pyrocrl.lab import row_probability as rows
from pyrocrl.lab.studies.screens import PATHWAY

ROOT, DISPERSION, BASE = Path(__file__).parent.parent, 5.0, np.linspace(0.8, 2.2, 20)
TRIL = torch.linalg.cholesky(torch.tensor([[1.0, 0.4], [0.4, 1.0]]).double())
WEIGHTS = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1], [0.2] * 5]).double()


def entries(rounded: bool) -> rows.Entries:
    x = torch.as_tensor(np.random.default_rng(0).poisson(1.5, (5, 9))).double()
    level = torch.full_like(x, 0.2)
    if not rounded:
        return rows.Counts(x, level, torch.full((9,), 2.0).double())
    low = torch.where(x > 0, torch.log1p((x - 0.5).clamp_min(0)), torch.full_like(x, -math.inf))
    return rows.Rounded(low, torch.log1p(x + 0.5), level, torch.full((9,), 0.6).double())


def by_quadrature(law: rows.Entries, loadings: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(rows,) log p(x) where z ~ N(0, D R D), D of `scale`, on a grid of 50 x 50 points."""
    nodes, weight = np.polynomial.hermite_e.hermegauss(50)
    grid = torch.as_tensor(np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2))
    log_weight = torch.as_tensor(np.log(np.outer(weight, weight) / weight.sum() ** 2).ravel())
    eta = (grid @ TRIL.mT * scale) @ loadings.mT
    return torch.logsumexp(law.log_density(eta[:, None]) + log_weight[:, None], 0)


# -- probabilities ----------------------------------------------------------------------------------------------------


def test_rounded_values_add_up_to_one_like_counts() -> None:
    x, size = np.arange(4_000.0)[:, None], np.full(4_000, 0.7)
    low, high = (torch.as_tensor(v) for v in rows.CellCounts(x, size, np.full_like(x, 0.3)).ends)
    law = rows.Rounded(low, high, torch.full_like(high, 0.4), torch.tensor([0.8]).double())
    other = rows.Counts(torch.as_tensor(x), torch.full_like(high, 0.4), torch.tensor([0.8]).double())
    for each in (law, other):
        for eta in (-3.0, 0.0, 1.0):
            assert float(each.log_density(torch.full_like(high, eta)).exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rounded", [False, True])
def test_slopes_are_derivatives(rounded: bool) -> None:
    law, step = entries(rounded), 1e-4
    for value in (-20.0, -1.0, 0.3, 4.0):
        eta = torch.full((5, 9), value).double()
        for j in (0, 7):
            change = torch.zeros_like(eta)
            change[:, j] = step
            above, at, below = (law.log_density(eta + c) for c in (change, 0 * change, -change))
            first, bend = law.slope(eta)
            assert torch.allclose(first[:, j], (above - below) / (2 * step), atol=1e-4, rtol=1e-4)
            assert torch.allclose(bend[:, j], -(above - 2 * at + below) / step**2, atol=2e-2, rtol=1e-3)
            assert (bend >= 0).all()


@pytest.mark.parametrize("rounded", [False, True])
def test_latents_are_integrated_out(rounded: bool) -> None:
    law, loadings = entries(rounded), torch.as_tensor(np.random.default_rng(1).standard_normal((9, 2)))
    with pyrocrl.turns.drawing(0), torch.no_grad():
        found, effective = rows.log_probability(law, loadings, rows.Prior(TRIL), samples=2_000)
        assert torch.allclose(found, by_quadrature(law, loadings, torch.ones(2).double()), atol=0.02)
        assert effective.min() > 0.9
        without, _ = rows.log_probability(law, 0 * loadings, rows.Prior(TRIL))
        assert torch.equal(without, law.log_density(torch.zeros(5, 9).double()))


@pytest.mark.parametrize("rounded", [False, True])
def test_mixtures_are_integrated_out(rounded: bool) -> None:
    law, loadings = entries(rounded), torch.as_tensor(np.random.default_rng(1).standard_normal((9, 2)))
    each = [
        by_quadrature(law, loadings, torch.stack([deviations(WEIGHTS)[0, a], deviations(WEIGHTS)[1, b]]))
        + (WEIGHTS[0, a] * WEIGHTS[1, b]).log()
        for a in range(5)
        for b in range(5)
    ]
    middle = (law.high - law.level) / law.sd if isinstance(law, rows.Rounded) else None
    with pyrocrl.turns.drawing(0), torch.no_grad():
        found, effective = rows.log_probability(law, loadings, rows.Prior(TRIL, WEIGHTS), middle, samples=4_000)
    assert torch.allclose(found, torch.stack(each).logsumexp(0), atol=0.08) and effective.min() > 0.3


# -- fits, on cells whose programmes are known ------------------------------------------------------------------------


def drawn(cells: int, seed: int = 0) -> Data:
    """Cells of two programmes of half of the genes each, and what is true of them."""
    rng = np.random.default_rng(seed)
    z, size = rng.standard_normal((cells, 2)), np.exp(0.3 * rng.standard_normal(cells))
    loadings = np.eye(2)[np.arange(20) % 2] * rng.uniform(0.5, 1.0, (20, 1))
    mean = size[:, None] * np.exp(BASE + z @ loadings.T)
    x = rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION))
    return Data(x, counts=True, size_factor=size, truth={"z": z, "loadings": loadings})


@pytest.fixture(scope="module")
def both() -> tuple[Data, list[tuple[dict[str, Any], dict[str, programmes.Programmes]]]]:
    """Figures and programmes of either half, of the second by one model alone."""
    data, out = drawn(360), []
    study = programmes.Study("cells", None, 360, 3, 60)
    parts = [np.arange(180), np.arange(180, 360)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programmes, "CHAINS", 1)
        for k in range(2):
            half = programmes.Half.of(data, parts[k], parts[1 - k][:60])
            out.append(programmes.run_half(study, half, data.env_labels(), k))
            patch.setattr(programmes, "MODELS", {"ebmf, log": ("ebmf", False)})
    return data, out


def test_programmes_are_found_shared_and_come_again(both: Any) -> None:
    data, ((figures, own), (_, other)) = both
    truth = programmes.Programmes(data.truth["z"], (data.truth["loadings"] != 0).astype(float))
    for label in programmes.MODELS:
        assert [r > 0.9 for *_, r in programmes.matched(own[label], truth)] == [True, True], label
        assert figures[label]["gain"] > 3 * figures[label]["standard_error"] and figures[label]["effective"] > 0.3
    again = programmes.shared(own["ebmf, log"], other["ebmf, log"])
    assert again["same"] == 2 and again["sure_again"] > 0.8 * again["sure"] > again["sure_by_chance"]
    assert figures["spike_slab_fa, counts"]["held_out"] > figures["spike_slab_fa, log"]["held_out"]
    assert abs(figures["spike_slab_fa, log"]["held_out"] - figures[programmes.FACTORS]["held_out"]) < 1


def test_a_fits_probabilities_are_near_those_of_the_truth(both: Any) -> None:
    data, ((figures, _), _) = both
    part = data.rows_at(np.arange(180, 240))
    x, size, base = (torch.as_tensor(np.asarray(v, float)) for v in (part.x, part.size_factor, BASE))
    law = rows.Counts(x, size.log()[:, None] + base, torch.full((20,), DISPERSION).double())
    with pyrocrl.turns.drawing(0), torch.no_grad():
        best, _ = rows.log_probability(
            law, torch.as_tensor(data.truth["loadings"]), rows.Prior(torch.eye(2).double()), samples=200
        )
    for label in ("spike_slab_fa, counts", "sparse_vae, counts"):
        assert -1.5 < figures[label]["held_out"] - float(best.mean()) < 0.5


def test_a_programme_is_matched_once_and_chance_is_told() -> None:
    z = np.random.default_rng(0).standard_normal((200, 3))
    pip = np.eye(6, 3)
    one, other = programmes.Programmes(z, pip), programmes.Programmes(-z[:, [2, 0, 0]], pip[:, [2, 0, 0]])
    found = programmes.shared(one, other)
    assert found["same"] == 2 and found["programmes"] == [3, 3] and found["correlations"][1] > 0.999
    assert (found["genes_in_both"], found["genes_in_either"], found["sure"], found["sure_again"]) == (2, 2, 3, 2)
    assert found["sure_by_chance"] == pytest.approx(2 / 6, abs=0.01)
    nothing = programmes.Programmes(z[:, :0], pip[:, :0])
    assert programmes.shared(one, nothing)["same"] == programmes.shared(nothing, one)["sure"] == 0


def test_models_that_are_fitted_alone_join_rows_that_stand() -> None:
    def entry(label: str, value: int) -> dict[str, Any]:
        halves = [{"scored": 2, "models": {label: value, "both": value}}]
        pairs = [{"models": ["both", label], "halves": value}]
        return {"name": "cells", "halves": halves, "common": pairs, "again": {label: value}, "cpu_seconds": value}

    found = programmes.added(entry("new", 2), entry("old", 1))
    assert found["halves"] == [{"scored": 2, "models": {"old": 1, "both": 2, "new": 2}}]
    assert [pair["models"] for pair in found["common"]] == [["both", "old"], ["both", "new"]]
    assert found["again"] == {"old": 1, "new": 2} and found["cpu_seconds"] == 3
    with pytest.raises(pyrocrl.InputError, match="only: found 'ebmf, count' \\(did you mean 'ebmf, counts'"):
        programmes.study(only=["ebmf, count"])


def test_separation_takes_one_programme_for_all_knockouts() -> None:
    labels = np.repeat(["a", "b", "none"], 50)
    z = np.random.default_rng(0).standard_normal((150, 2)) * 0.1
    z[:100, 1] -= 1
    z[:50, 0] += 1
    study = dataclasses.replace(programmes.STUDIES[1], knockouts=("a", "b"), control="none")
    assert programmes.separation(z, labels, study) == {"programme": 1.0, "a": 1.0, "b": 1.0}


# -- the committed results --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get(datasets.VARIABLE), reason="real data are not on this machine")
def test_what_is_compared_of_real_cells() -> None:
    try:
        data = programmes.prepared(programmes.STUDIES[0])
    except pyrocrl.InputError as missing:
        pytest.skip(str(missing))
    assert (data.rows, data.features, data.counts) == (500, 200, True) and "Mbp" in data.feature_names
    half = programmes.Half.of(data, np.arange(250), np.arange(250, 500))
    assert np.abs(half.cells.logged[:250].mean(0)).max() < 1e-9 and half.cells.size[:250].mean() == pytest.approx(1)


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(programme_tables.FILE.read_text())
    return found


def test_the_committed_figures() -> None:
    table = results()
    assert [entry["name"] for entry in table["data"]] == [study.name for study in programmes.STUDIES]
    assert sum(entry["cpu_seconds"] for entry in table["data"]) < 20 * 60
    for entry in table["data"]:
        for half in entry["halves"]:
            gain = {name: row["gain"] for name, row in half["models"].items()}
            best = {"spike_slab_fa, counts"} | ({"ebmf, counts"} if entry is table["data"][1] else set())
            assert max(gain, key=gain.__getitem__) in best
            assert min(gain["spike_slab_fa, counts"], gain["sparse_vae, counts"]) > 3 * max(
                half["models"][name]["standard_error"] for name in ("spike_slab_fa, counts", "sparse_vae, counts")
            )
            assert all(row["effective"] > 0.3 for row in half["models"].values() if "effective" in row)
    zeisel, screen = table["data"]
    for half in screen["halves"]:
        alone = half["models"]["independent, counts"]["held_out"]
        for name in ("spike_slab_fa, log", "ebmf, log"):
            row = half["models"][name]
            assert row["gain"] < -10 < 80 < row["density"] - alone  # as a density it would seem to win
        mean = {
            name: np.mean([row["auroc"][k] for k in PATHWAY])
            for name, row in half["models"].items()
            if row.get("auroc")
        }
        assert all(
            abs(mean[name] - mean["sparse_vae, counts"]) < 0.01 for name in ("spike_slab_fa, counts", "ebmf, log")
        )
        assert min(mean["sparse_vae, counts"], mean[programmes.FACTORS]) > 0.9
        assert mean["ebmf, counts"] > max(mean["sparse_vae, counts"], mean[programmes.FACTORS])
    for entry in (zeisel, screen):
        for pair in entry["again"].values():
            assert all(half["sure_again"] > half["sure_by_chance"] for half in pair)


def test_pages_show_the_committed_results() -> None:
    for name in ("gene_programmes",):
        page = (ROOT / "docs" / f"{name}.md").read_text()
        shown = programme_tables.tables_of(results())
        assert shown in page and reproduce.fill(page) == page, "run: python -m pyrocrl.lab.reproduce docs/*.md"
