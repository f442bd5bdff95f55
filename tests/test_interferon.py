"""Interferon in seven types of cells: what is scored, and the committed results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrocrl
from pyrocrl import Data, datasets
from pyrocrl.lab import interferon, reproduce

ROOT = Path(__file__).parent.parent


def cells(shared: bool) -> tuple[np.ndarray, ...]:
    """z (row, latent), hit, types and kept-out rows: the second latent tells the hit, of one type turned round unless
    it is shared, and differs by type."""
    rng = np.random.default_rng(0)
    types, hit = np.repeat(["a", "b", "c"], 200), np.tile([False, True], 300)
    z = rng.standard_normal((600, 2)) * 0.3
    z[:, 1] -= np.where(hit, 1.0, -1.0) * np.where((types == "c") & (not shared), -1, 1)
    return z, hit, types, interferon.kept_out(types, 0)


def test_one_latent_is_scored_within_types_and_across_them() -> None:
    z, hit, types, new = cells(shared=True)
    assert [int(new[types == name].sum()) for name in "abc"] == [60, 60, 60]
    found = interferon.score(z, hit, types, new)
    assert found["latent"] == 1 and found["worst"] == found["worst_across"] == 1.0
    z[types == "b", 1] += 5  # a latent that tells types as well
    found = interferon.score(z, hit, types, new)
    assert found["mean"] == 1.0 and found["worst_across"] == 0.0
    assert found["worst_pair"] in ("b against a", "b against c")


def test_a_type_that_answers_the_other_way_is_named() -> None:
    found = interferon.score(*cells(shared=False))
    assert found["worst_type"] == "c" and found["worst"] == 0.0 and found["types"]["a"] == 1.0


def test_rows_that_are_kept_out_choose_nothing() -> None:
    z, hit, types, new = cells(shared=True)
    z[:, 0] = np.where(new, 0.0, z[:, 0])
    z[new, 1] *= -1
    found = interferon.score(z, hit, types, new)
    assert found["latent"] == 1 and found["mean"] == 0.0


def test_latents_of_an_ivae_are_read_without_labels() -> None:
    _, data = pyrocrl.zoo.get("ivae").example(0)
    program = pyrocrl.build("ivae", data, width=8, steps=30)
    fit = pyrocrl.fit(program, data, chains=1, epochs=1, seed=0, progress=False)
    part = data.rows_at(np.arange(30))
    other = Data(part.x, np.roll(part.env_labels(), 7), feature_names=part.feature_names)
    assert np.allclose(interferon.blind(fit, part), interferon.blind(fit, other))


@pytest.mark.skipif(not os.environ.get(datasets.VARIABLE), reason="real data are not on this machine")
def test_every_type_has_both_conditions() -> None:
    try:
        data = datasets.load(interferon.SCREEN)
    except pyrocrl.InputError as missing:
        pytest.skip(str(missing))
    types = np.asarray(data.batch_names)[data.batch]
    assert len(data.batch_names) == 7
    for name in data.batch_names:
        assert 40 < (data.env_labels()[types == name] == interferon.STIMULATED).sum() < (types == name).sum() - 40


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(interferon.FILE.read_text())
    return found


def test_the_committed_figures() -> None:
    rows = results()["seeds"]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    for row in rows:
        own = row["methods"]
        assert set(own) == set(interferon.TITLES) and all(len(one["types"]) == 7 for one in own.values())
        assert min(own["spike_slab_fa"]["worst"], own["varimax"]["worst"]) > 0.99 > own["ivae"]["mean"]
        assert own["ivae"]["worst_across"] < own["pca"]["worst_across"] < own["varimax"]["worst_across"]
        assert own["ivae"]["verdict"] in ("contradicted", "not converged")


def test_the_page_shows_the_committed_results() -> None:
    page = (ROOT / "docs" / "figures.md").read_text()
    assert interferon.table_of(results()) in page and reproduce.fill(page) == page, (
        "run: python -m pyrocrl.lab.reproduce"
    )
