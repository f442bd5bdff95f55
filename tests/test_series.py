"""Series of rows in time: how `Data` takes them, keeps them whole, and how files hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyrocrl import Data, InputError, fit, io
from pyrocrl.infer.checkpoint import fingerprint
from pyrocrl.models.snica_lin import SnicaLin

LABELS = np.array(["b", "a", "b", "a", "b"])


def make(lengths: tuple[int, ...] = (30, 12, 7, 3), seed: int = 0, **options: object) -> Data:
    """Series whose rows stand in any order."""
    rng = np.random.default_rng(seed)
    label = np.repeat([f"s{i}" for i in range(len(lengths))], lengths)
    step = np.concatenate([rng.integers(-5, 5) + np.arange(n) for n in lengths]) * 0.1
    order = rng.permutation(len(label))
    return Data(rng.normal(size=(len(label), 4)), series=label[order], step=step[order], **options)  # type: ignore[arg-type]


def test_rows_are_in_order_or_have_steps() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    plain = Data(x, series=LABELS)
    assert plain.series is not None and plain.series_names == ["b", "a"]
    assert plain.series.tolist() == [0, 1, 0, 1, 0] and plain.step.tolist() == [0, 0, 1, 1, 2]
    assert plain.series_labels().tolist() == LABELS.tolist()
    assert "2 series" in repr(plain) and "step=rows of a series are in order" in repr(plain)
    told = Data(x, series=LABELS, step=[2.5, 7, 1.5, 6, 2.0 - 1.5])
    assert told.step.tolist() == [2, 1, 1, 0, 0] and "step" not in told.assumed
    assert "one series" in repr(Data(x, series=np.zeros(5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"series": LABELS[:4]}, r"series: found shape \(4,\)"),
        ({"series": [*LABELS[:4], "c"]}, r"series: found series 'c' of one row, at row 4; allowed: two rows or more"),
        ({"series": ["a", "b", "c", "c", "c"]}, r"series: found series 'a' of one row, at row 0 \(and 1 more series\)"),
        ({"series": [*LABELS[:4], None]}, "series: found 1 missing label of 5"),
        ({"step": range(5)}, "step: found steps without series or pair; allowed: None, or series as well"),
        ({"series": LABELS, "pair": LABELS}, "series: found series and pairs; allowed: one of both"),
        ({"series": LABELS, "step": [0, 0, 1, 1, 1]}, "step: found the same step twice in series 'b', at rows 2 and 4"),
        (
            {"series": LABELS, "step": [0, 0, 1, 1, 4]},
            "step: found a gap in series 'b', from step 1 to 4 where others are 1 apart; allowed: evenly spaced steps",
        ),
        ({"series": LABELS, "step": [0, 0, 1, 2, 2]}, "step: found a gap in series 'a', from step 0 to 2"),
        ({"series": LABELS, "step": ["before", 1, 2, 3, 4]}, "step: found 'before'; allowed: finite numbers"),
        ({"series": LABELS, "step": [np.nan, 1, 2, 3, 4]}, "step: found 1 missing label of 5"),
        ({"truth": {"state": [[0], [1]]}}, r"truth\['state'\]: found 2 rows"),
    ],
)
def test_bad_series_are_one_clear_line(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Data(np.random.default_rng(0).normal(size=(5, 3)), **options)


def test_batches_know_the_order_of_time_and_where_it_breaks() -> None:
    data = make()
    order, since = data.tensors().in_time()
    assert data.series is not None
    assert (np.lexsort((data.step, data.series)) == order.numpy()).all()
    assert (data.step[order] == since.numpy()).all()
    longest = data.series_labels() == "s0"
    part = data.rows_at(~(longest & (data.step == 4)))
    order, since = part.tensors().in_time()
    broken = since[torch.as_tensor(part.series_labels() == "s0")[order]].tolist()
    assert broken == [*range(4), *range(25)], "what comes after a row that is left out begins anew"
    shuffled = data.tensors().take(torch.randperm(data.rows))
    assert (shuffled.clock[shuffled.in_time()[0]] == data.tensors().clock[data.tensors().in_time()[0]]).all()
    assert [len(p) for p in data.tensors().parts(5)] == [data.rows]
    assert (Data(data.x).tensors().in_time()[1] == 0).all()


def test_series_stay_whole_where_rows_are_held_out_or_spread() -> None:
    data = make((20,) * 30, env=np.repeat(["u", "v"], 300)[np.random.default_rng(0).permutation(600)])
    for by_env in (True, False):
        held = data.held_out(0.2, 0, by_env=by_env)
        share = [held[data.series == code].mean() for code in range(30)]
        assert set(share) == {0.0, 1.0} and 0.1 < np.mean(share) < 0.3
    some = data.rows_at(data.spread(100))
    assert some.rows == 100 and (np.bincount(some.series)[np.unique(some.series)] == 20).all()
    one = make((50,))
    held = one.held_out(0.1, 0)
    assert sorted(one.step[held]) == [45, 46, 47, 48, 49], "of a few series the end is held out"
    assert sorted(one.step[one.spread(10)]) == list(range(10))
    with pytest.raises(InputError, match="series: found 2 rows of series"):
        one.rows_at(one.step < 2).held_out(0.5, 0)


def test_minibatches_are_runs_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = make((90, 60)), []
    guide = SnicaLin.guide

    def noted(self: SnicaLin, batch: object) -> None:
        seen.append(batch.clock)  # type: ignore[attr-defined]
        guide(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(SnicaLin, "guide", noted)
    fit(SnicaLin(4, 2, states=1, lags=1), data, chains=1, epochs=1, batch_size=15, progress=False)
    steps = [clock.sort().values for clock in seen if len(clock) == 15]
    assert len(steps) >= 8
    assert np.mean([int((clock.diff() > 1).sum()) for clock in steps]) < 4


def test_files_hold_series(tmp_path: Path) -> None:
    data = make(truth={"state": np.arange(104).reshape(52, 2) % 2})
    path = io.write(data, tmp_path / "series.npz")
    io.to_frame(data).to_csv(tmp_path / "series.csv")
    columns = {"env": "env", "series": "series", "step": "step"}
    for again in (
        io.read(path),
        io.read(tmp_path / "series.csv", **columns),  # type: ignore[arg-type]
        io.from_anndata(io.to_anndata(data), **columns),  # type: ignore[arg-type]
    ):
        assert again.series_labels().tolist() == data.series_labels().tolist()
        assert again.step.tolist() == data.step.tolist()
    kept = io.read(path, where="series in ['s1', 's3']")
    assert set(kept.series_labels()) == {"s1", "s3"} and kept.rows == 15
    np.testing.assert_array_equal(io.read(path).truth["state"], data.truth["state"])
    with pytest.raises(InputError, match="series: found no column 'who'"):
        io.from_frame(pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), series="who")
    with pytest.raises(InputError, match="a gap in series"):
        io.read(path, where="step != '1'")


def test_the_shell_reads_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyrocrl.cli import main

    data = make()
    io.to_frame(data).drop(columns="env").rename(columns={"series": "animal", "step": "time"}).to_csv(
        tmp_path / "long.csv"
    )
    told = ["--data", str(tmp_path / "long.csv"), "--series", "animal", "--step", "time"]
    assert main(["choose", *told, "--latents", "2"]) == 0
    out = capsys.readouterr().out
    assert "4 series" in out and "--series animal --step time" in out and "snica_lin" in out
    assert main(["choose", *told[:4], "--latents", "2"]) == 0, "time is then a feature"
    capsys.readouterr()
    assert main(["fit", "snica_lin", *told[:2], "--latents", "2", "--out", str(tmp_path / "out")]) == 2
    assert "columns that are not numbers: 'animal'" in capsys.readouterr().err


def test_other_series_are_other_data() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    told = ({}, {"series": LABELS}, {"series": LABELS[[1, 0, 2, 3, 4]]}, {"series": LABELS, "step": [2, 1, 1, 0, 0]})
    assert len({fingerprint(Data(x, **one)) for one in told}) == 4  # type: ignore[arg-type]


def test_a_model_of_series_asks_for_them() -> None:
    data = Data(np.random.default_rng(0).normal(size=(50, 4)))
    with pytest.raises(InputError, match=r"series: found None; allowed: labels of series, which snica_lin needs"):
        SnicaLin.from_data(data, latents=2)
    with pytest.raises(InputError, match=r"series: found None"):
        fit(SnicaLin(4, 2), data, progress=False)
