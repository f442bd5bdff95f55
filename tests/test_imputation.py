"""Effects never measured: the kernel, the evidence in closed form, other methods on tables they solve, the shell."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.stats import multivariate_normal

import pyrocrl
from pyrocrl import Data, Fit, InputError, cli, simulate
from pyrocrl.constructions import pairs
from pyrocrl.exact import gp
from pyrocrl.judge import imputation
from pyrocrl.lab.studies.imputations import Imputation, table_of

SMALL = {"contexts": 10, "perturbations": 16, "features": 30, "measured": 0.5}
Capture = pytest.CaptureFixture[str]


@cache
def fitted() -> Fit:
    data = simulate.draw("context_effects", 100, contexts=8, perturbations=10, features=30)
    return pyrocrl.fit(pyrocrl.build("causal_imputation", data), data, chains=2, progress=False)


# -- the law -----------------------------------------------------------------------------------------------------


def test_the_kernel_is_that_of_wide_relu_networks() -> None:
    """One hidden layer: what gradients have in common on average over normal weights, by an integral over angles."""
    angle, apart = np.linspace(0, 2 * np.pi, 100_000, endpoint=False), np.arccos(0.6)
    a, b = np.cos(angle), np.cos(angle - apart)
    outer = 4 * (np.maximum(a, 0) * np.maximum(b, 0)).mean()  # 2 E relu(w x) relu(w y), of E |w|^2 = 2 in the plane
    inner = 2 * 0.6 * ((a > 0) & (b > 0)).mean()
    got = gp.ntk(torch.tensor([0.6, 1.0], dtype=torch.float64), 1)
    assert float(got[0]) == pytest.approx((outer + inner) / 2, abs=1e-4)
    assert float(got[1]) == pytest.approx(1.0, abs=1e-4)


def test_evidence_is_that_of_all_rows_together() -> None:
    """Replicates and an empty place: against the density of rows given a variance, integrated over a grid of it."""
    rng = np.random.default_rng(1)
    place = np.array([0, 0, 2, 3, 3, 3])  # pairs 0, 2 and 3 of four
    x, noise = rng.standard_normal((6, 1)), 0.3
    root = rng.standard_normal((4, 4))
    covariance = root @ root.T + 0.1 * np.eye(4)
    at, inverse, count = np.unique(place, return_inverse=True, return_counts=True)
    mean = np.array([[x[inverse == k].mean()] for k in range(3)] + [[0.0]])
    square = np.array([((x - mean[inverse]) ** 2).sum()])
    rows = gp.Rows(*(torch.as_tensor(v) for v in ([*at, 0], np.append(count, 0).astype(float), mean, square)))
    among = torch.as_tensor(covariance)[rows.at][:, rows.at]
    known = gp.Known(among, torch.tensor(noise, dtype=torch.float64), rows, torch.tensor([2.0], dtype=torch.float64))
    full = covariance[np.ix_(place, place)] + noise * np.eye(6)
    precision = np.linspace(1e-3, 20, 4_001)
    density = [np.exp(multivariate_normal(np.zeros(6), full / t).logpdf(x[:, 0])) for t in precision]
    prior = 2.0**2 * precision * np.exp(-2.0 * precision)  # Gamma(2, 2)
    expected = np.log(np.trapezoid(density * prior, precision))
    assert float(known.log_evidence()) == pytest.approx(expected, abs=1e-4)


def test_perturbations_are_alike_where_both_were_measured() -> None:
    """Two that act alike in every context are, also where their means are of different contexts."""
    rng = np.random.default_rng(2)
    by_context = rng.standard_normal((4, 50))
    c, d = np.nonzero(np.array([[1, 1, 0], [1, 1, 1], [1, 0, 1], [0, 1, 1]]))
    apart = rng.standard_normal((4, 50))
    signature = np.stack([by_context[a] if b < 2 else apart[a] for a, b in zip(c, d, strict=True)])
    like = pairs.response_likeness(*(torch.as_tensor(v) for v in (signature, c, d)), 3).numpy()
    assert like[0, 1] > 0.7 > 0.4 > abs(like[0, 2])
    assert np.linalg.eigvalsh(like)[0] > 0


# -- effects -----------------------------------------------------------------------------------------------------


def test_effects_are_found_and_intervals_hold_them() -> None:
    train, test = Imputation("context_effects", SMALL).draw(101)
    found = pyrocrl.fit(pyrocrl.build("causal_imputation", train), train, chains=1, progress=False)
    left = imputation.predicted(found, train, test)
    scores = {name: imputation.scores(left.truth, guess) for name, guess in left.guess.items()}
    mine = scores.pop(imputation.MODEL)
    assert all(mine["r"] > other["r"] and mine["r2"] > other["r2"] for other in scores.values()), scores
    assert mine["r"] > 0.75 and abs(left.inside[0.9] - 0.9) < 0.03 and abs(left.inside[0.95] - 0.95) < 0.03


def test_imputed_is_what_was_missing() -> None:
    fit = fitted()
    assert fit.data is not None
    table = pyrocrl.impute(fit)
    assert table["mean"].dims == ("context", "perturbation", "feature") and "control" not in table["perturbation"]
    missing = table["measured"].to_numpy() == 0
    assert missing.any() and not missing.all()
    for name in ("mean", "sd", "low", "high"):
        assert (np.isfinite(table[name].to_numpy()).all(-1) == missing).all(), name
    wide = pyrocrl.impute(fit, level=0.99)
    assert (wide["high"] > table["high"]).to_numpy()[missing].all()
    one = pyrocrl.impute(fit, contexts=["context_1"], perturbations=list(table["perturbation"].to_numpy()[missing[1]]))
    np.testing.assert_allclose(one["mean"][0], table["mean"].to_numpy()[1, missing[1]])
    every = pyrocrl.impute(fit, measured=True)
    known = imputation.Signatures.of(fit.data)
    seen = every["mean"].to_numpy()[known.context, known.perturbation - 1]
    assert np.corrcoef(seen.ravel(), known.y.ravel())[0, 1] > 0.95
    unsure, sure = (every["sd"].to_numpy()[rows].mean() for rows in (missing, ~missing))
    assert sure < unsure


def test_replicates_sharpen_an_effect_and_its_neighbours() -> None:
    fit = fitted()
    assert fit.data is not None
    more = fit.data.rows_at(np.concatenate([np.arange(fit.data.rows)] * 3))
    assert (pyrocrl.impute(fit, more)["sd"] < pyrocrl.impute(fit)["sd"]).mean() > 0


# -- other methods -------------------------------------------------------------------------------------------------


def tensor(rank: int = 2) -> tuple[imputation.Signatures, np.ndarray]:
    """Two of a 6 x 7 table of low rank are missing: what is known, and the two."""
    rng = np.random.default_rng(3)
    y = np.einsum("ck,dk,gk->cdg", *(rng.standard_normal((n, rank)) for n in (6, 7, 40)))
    there = np.ones((6, 7), dtype=bool)
    there[0, 0] = there[3, 5] = False
    c, d = np.nonzero(there)
    return imputation.Signatures(c, d, y[there], (6, 7)), y[[0, 3], [0, 5]]


@pytest.mark.parametrize(("name", "least"), [("synthetic_interventions", 0.999), ("falrtc", 0.9)])
def test_methods_fill_a_table_of_low_rank(name: str, least: float) -> None:
    known, truth = tensor()
    guess = imputation.RIVALS[name](known, np.array([0, 3]), np.array([0, 5]))
    assert imputation.scores(truth, guess)["r"] > least


def test_the_ridgeless_kernel_interpolates() -> None:
    known, _ = tensor()
    np.testing.assert_allclose(imputation.ridgeless_ntk(known, known.context, known.perturbation), known.y, atol=1e-8)


def test_dnpp_takes_those_that_act_alike() -> None:
    rng = np.random.default_rng(4)
    y = rng.standard_normal((5, 4, 60))
    y[:, 1] = y[:, 0] + 0.01 * rng.standard_normal((5, 60))
    y[:, 2:] -= y[:, :2]  # opposite ones have no weight
    there = np.ones((5, 4), dtype=bool)
    there[2, 0] = False
    c, d = np.nonzero(there)
    guess = imputation.dnpp(imputation.Signatures(c, d, y[there], (5, 4)), np.array([2]), np.array([0]))
    np.testing.assert_allclose(guess[0], y[2, 1], atol=0.05)


@pytest.mark.parametrize("name", imputation.RIVALS)
def test_methods_go_on_where_nothing_tells(name: str) -> None:
    """A perturbation and a context of which nothing was measured."""
    known, _ = tensor()
    fewer = known.take((known.context != 1) & (known.perturbation != 2))
    guess = imputation.RIVALS[name](fewer, np.array([1, 0, 1]), np.array([0, 2, 2]))
    assert guess.shape == (3, 40) and np.isfinite(guess).all()


def test_folds_leave_every_pair_out_once_and_controls_never() -> None:
    data = simulate.draw("context_effects", 0, contexts=4, perturbations=8, features=4)
    out = np.stack(list(imputation.left_out(data, 3, 0)))
    assert (out.sum(0) == ~data.control_rows).all()
    for c in range(4):
        each = out[:, data.batch == c].sum(1)
        assert each.max() - each.min() <= 1


# -- the shell -------------------------------------------------------------------------------------------------------


def write(path: Path, **more: Any) -> pd.DataFrame:
    data = simulate.draw("context_effects", 3, contexts=5, perturbations=6, features=8, **more)
    table = pyrocrl.io.to_frame(data).rename(columns={"env": "drug"})
    table["cell"] = np.asarray(data.batch_names)[data.batch]
    table.to_csv(path, index=False)
    return table


def test_impute_writes_tables_and_compares(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "t.csv")
    told = ["--data", str(tmp_path / "t.csv"), "--env", "drug", "--batch", "cell", "--control", "control"]
    out = tmp_path / "out"
    assert cli.main(["impute", *told, "--out", str(out), "--folds", "2", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*imputation.RIVALS, imputation.MODEL, "coverage_90"))
    table, full = pd.read_csv(out / "imputed.csv"), pyrocrl.io.read_tree(out / "imputed.nc")
    missing = int((full["measured"] == 0).sum())
    assert len(table) == 8 * missing > 0 and f"{missing} of 30 pairs imputed" in text
    first = table.iloc[0]
    cell = full["mean"].sel(context=first["context"], perturbation=first["perturbation"], feature=first["feature"])
    assert float(cell) == pytest.approx(first["mean"], rel=1e-4)
    record = json.loads((out / "cross_validation.json").read_text())
    assert [row["method"] for row in record["methods"]] == [*imputation.RIVALS, imputation.MODEL]
    assert pyrocrl.load(out).digest == record["fit"]
    assert not list(out.glob("*.part"))


def test_a_table_of_signatures_needs_no_control(tmp_path: Path, capsys: Capture) -> None:
    table = write(tmp_path / "t.csv")
    table[table["drug"] != "control"].to_csv(tmp_path / "s.csv", index=False)
    told = ["--data", str(tmp_path / "s.csv"), "--env", "drug", "--batch", "cell", "--folds", "0", "--json", "--quiet"]
    assert cli.main(["impute", *told, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["methods"] == []
    assert not pyrocrl.load(tmp_path / "out").program.config["reference"]


BAD: dict[str, tuple[str, list[str], str]] = {
    "one context": ("", ["--batch", "one"], "batch: found one context; allowed: two or more"),
    "no contexts": ("", [], "columns that are not numbers"),
    "nothing missing": ("full", ["--batch", "cell"], "--data: found all 5 x 7 pairs of a context and an environment"),
    "not finite": ("gap", ["--batch", "cell"], "x: found 1 missing value in 1 of 8 features"),
    "no control": ("bare", ["--batch", "cell"], "control: found no row of 'control' in context 'context_0'"),
    "folds": ("", ["--batch", "cell", "--folds", "1"], "--folds: found 1; allowed: a whole number from 2 on"),
    "level": ("", ["--batch", "cell", "--level", "2"], "--level: found 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path, capsys: Capture) -> None:
    kind, told, line = BAD[case]
    table = write(tmp_path / "t.csv", measured=1.0 if kind == "full" else 0.6)
    table["one"] = "A"
    if kind == "gap":
        table.loc[3, "feature_2"] = np.nan
    if kind == "bare":
        table = table[(table["cell"] != "context_0") | (table["drug"] != "control")]
    dropped = [f"--drop={name}" for name in ("one", "cell") if name not in told and case != "no contexts"]
    table.to_csv(tmp_path / "t.csv", index=False)
    given = ["impute", "--data", str(tmp_path / "t.csv"), "--env", "drug", "--out", str(tmp_path / "out")]
    assert cli.main([*given, *told, *dropped]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_names_that_nobody_knows_are_refused() -> None:
    for given, line in (
        ({"perturbations": ["aspirin"]}, "perturbations: found 'aspirin'; allowed: perturbation_0"),
        ({"perturbations": ["control"]}, "perturbations: found 'control'"),
        ({"contexts": ["context_99"]}, "contexts: found 'context_99'"),
    ):
        with pytest.raises(InputError, match=line):
            pyrocrl.impute(fitted(), **given)
    data = simulate.draw("context_effects", 0, contexts=3, perturbations=4, features=3, measured=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = pyrocrl.fit(pyrocrl.build("causal_imputation", data), data, chains=1, epochs=1, progress=False)
    with pytest.raises(InputError, match="data: found all 12 pairs measured"):
        pyrocrl.impute(full)
    plain = Data(np.random.default_rng(0).standard_normal((20, 3)))
    vae = pyrocrl.fit(pyrocrl.build("vae", plain, latents=1), plain, chains=1, epochs=1, progress=False)
    with pytest.raises(InputError, match="fit: found a fit of vae; allowed: a model that imputes"):
        pyrocrl.impute(vae)


def test_imputed_survives_a_file(tmp_path: Path) -> None:
    table = pyrocrl.impute(fitted())
    pyrocrl.io.write_dataset(table, tmp_path / "t.nc")
    xr.testing.assert_identical(pyrocrl.io.read_tree(tmp_path / "t.nc").to_dataset(), table)


def test_the_page_shows_the_committed_results() -> None:
    root = Path(__file__).parent.parent
    results = json.loads((root / "models" / "results" / "causal_imputation.json").read_text())
    page = (root / "docs" / "effects_never_measured.md").read_text()
    assert table_of(results) in page, "run: python -m pyrocrl.lab.studies.imputations, and put the table there"
