"""Pairs of rows, before and after: how `Data` takes them, keeps them together, and how files hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyrocrl import Batch, Data, InputError, fit, io
from pyrocrl.models.vae import VAE

LABELS = np.array(["p2", "p1", "p1", "p3", "p2", "p3"])


def make(pairs: int = 30, seed: int = 0, **options: object) -> Data:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat([f"p{i}" for i in range(pairs)], 2))
    return Data(rng.normal(size=(2 * pairs, 4)), pair=label, **options)  # type: ignore[arg-type]


def test_the_row_before_is_the_first_or_the_one_of_the_lower_step() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    first = Data(x, pair=LABELS)
    assert first.pair is not None and first.pair_names == ["p2", "p1", "p3"]
    assert first.pair.tolist() == [0, 1, 1, 2, 0, 2] and first.after.tolist() == [False, False, True, False, True, True]
    assert first.partner.tolist() == [4, 2, 1, 5, 0, 3]
    assert first.pair_labels().tolist() == LABELS.tolist()
    assert "3 pairs" in repr(first) and "step=the first row of a pair is before" in repr(first)
    for step in ([9, 2, 1, 0, 10, -1.5], ["before", "after", "before", "Post", "after", "pre"]):
        told = Data(x, pair=LABELS, step=step)
        assert told.after.tolist() == [False, True, False, True, True, False]
        assert "step" not in told.assumed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": LABELS[:5]}, r"pair: found shape \(5,\)"),
        ({"pair": [*LABELS[:5], "p4"]}, r"pair: found pair 'p3' of one row, without a partner, at row 3 \(and 1 more"),
        ({"pair": [*LABELS[:5], "p2"]}, r"pair: found pair 'p2' of 3 rows, the third at row 5 \(and 1 more pairs\)"),
        ({"pair": [*LABELS[:5], None]}, "pair: found 1 missing label of 6"),
        ({"step": [0, 1] * 3}, "step: found steps without series or pair; allowed: None, or series as well"),
        ({"pair": LABELS, "step": [0, 0, 0, 1, 1, 2]}, "step: found the same step for both rows of pair 'p1', 1 and 2"),
        ({"pair": LABELS, "step": ["a", "b"] * 3}, "step: found 'a'; allowed: finite numbers, or before and after"),
        ({"pair": LABELS, "step": [np.nan, 1, 2, 3, 4, 5]}, "step: found 1 missing label of 6"),
        ({"pair": LABELS, "step": [np.inf, 1, 2, 3, 4, 5]}, "step: found 'inf'"),
        ({"truth": {"row_target": [0, 1]}}, r"truth\['row_target'\]: found 2 rows"),
    ],
)
def test_bad_pairs_are_one_clear_line(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Data(np.random.default_rng(0).normal(size=(6, 3)), **options)


def test_pairs_stay_together_where_rows_are_held_out_or_spread() -> None:
    env = np.random.default_rng(1).choice(["a", "b"], 60)
    data = make(env=env)
    for by_env in (True, False):
        train, held = data.split(0.3, 0, by_env=by_env)
        for part in (train, held):
            assert (part.partner >= 0).all()
            assert part.pair is not None and (part.pair[part.partner] == part.pair).all()
        assert 0.15 * 60 < held.rows < 0.45 * 60
    some = data.some(80, 1)
    assert some.rows == 20 and (some.partner >= 0).all()
    assert set(some.pair_labels()) <= set(data.pair_labels())
    with pytest.raises(InputError, match="pair: found one pair; allowed: two or more"):
        data.rows_at(np.flatnonzero(data.pair == 0)).split(0.5, 0)


def test_a_row_without_its_partner_stands_alone() -> None:
    data = make()
    part = data.rows_at(np.arange(21))
    lone = part.partner < 0
    assert lone.any() and not lone.all()
    place, found = part.tensors().before()
    assert (found.numpy() == (part.after & ~lone)).all()
    assert (place.numpy()[found] == part.partner[found]).all()
    assert (place[~found] == torch.arange(21)[~found]).all()


def test_batches_know_the_row_before() -> None:
    data = make()
    batch = data.tensors()
    rows = torch.as_tensor(np.random.default_rng(3).permutation(60)[:37])
    place, found = batch.take(rows).before()
    for here, row in enumerate(rows.tolist()):
        there = np.flatnonzero(rows.numpy() == data.partner[row])
        assert bool(found[here]) == bool(data.after[row] and there.size)
        assert place[here] == (there[0] if found[here] else here)
    for part in batch.parts(7):
        assert len(part) % 2 == 0 and (data.after[part].reshape(-1, 2) == [False, True]).all()
        assert data.pair is not None and len(set(data.pair[part])) == len(part) // 2


def test_minibatches_keep_partners_together() -> None:
    data, seen = make(50), []

    class PairedVAE(VAE):
        card = replace(VAE.card, needs_pairs=True)

        def guide(self, batch: Batch) -> None:
            seen.append(batch.pair)
            super().guide(batch)

    found = fit(PairedVAE(4, 1), data, chains=1, epochs=2, batch_size=15, progress=False)
    steps = [pair for pair in seen if len(pair) == 14]
    assert len(steps) >= 10
    assert all(len(set((pair // 2).tolist())) == 7 for pair in steps)
    assert found.latents(data).shape == (100, 1)  # in the rows' own order
    np.testing.assert_allclose(found.latents(data.rows_at(np.array([70]))), found.latents(data)[[70]], atol=1e-6)
    tree = found.posterior(2, thin=3)
    constant = tree["constant_data"]
    assert (constant["pair"].to_numpy().reshape(-1) == data.pair_labels()[constant["data"].to_numpy()]).all()
    assert (np.bincount(data.pair[constant["data"].to_numpy()]) % 2 == 0).all()  # type: ignore[index]
    np.testing.assert_allclose(found.held_out_objective(data), found.held_out_objective(data), atol=0)


def test_files_hold_pairs(tmp_path: Path) -> None:
    data = make(10, truth={"row_target": np.arange(20) % 3})
    path = io.write(data, tmp_path / "pairs.npz")
    io.to_frame(data).to_csv(tmp_path / "pairs.csv")
    columns = {"env": "env", "pair": "pair", "step": "step"}
    for again in (
        io.read(path),
        io.read(tmp_path / "pairs.csv", **columns),  # type: ignore[arg-type]
        io.from_anndata(io.to_anndata(data), **columns),  # type: ignore[arg-type]
    ):
        assert again.pair_labels().tolist() == data.pair_labels().tolist()
        assert again.after.tolist() == data.after.tolist()
    kept = io.read(path, where="pair in ['p1', 'p4']")
    assert set(kept.pair_labels()) == {"p1", "p4"} and kept.rows == 4
    np.testing.assert_array_equal(io.read(path).truth["row_target"], data.truth["row_target"])
    with pytest.raises(InputError, match="pair: found no column 'who'"):
        io.from_frame(pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), pair="who")
    with pytest.raises(InputError, match="without a partner"):
        io.read(path, where="step == 'before'")


def test_the_shell_reads_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyrocrl.cli import main

    data = make(20)
    io.to_frame(data).drop(columns="env").rename(columns={"pair": "person"}).to_csv(tmp_path / "pairs.csv")
    told = ["--data", str(tmp_path / "pairs.csv"), "--pair", "person", "--step", "step"]
    assert main(["choose", *told, "--latents", "1"]) == 0
    out = capsys.readouterr().out
    assert "20 pairs" in out and "--pair person --step step" in out
    assert main(["choose", *told[:4], "--latents", "1"]) == 2
    assert "columns that are not numbers: 'step'" in capsys.readouterr().err


def test_another_pairing_is_other_data() -> None:
    from pyrocrl.infer.checkpoint import fingerprint

    x = np.random.default_rng(0).normal(size=(6, 3))
    prints = {fingerprint(Data(x, **told)) for told in ({}, {"pair": LABELS}, {"pair": LABELS[::-1]})}  # type: ignore[arg-type]
    assert len(prints) == 3
