"""`ebmf`: its sampler is exact, priors of a factor are found, what is missing is left out, and verdicts tell zeros."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, InputError, io, simulate
from pyrocrl.claims.conditions import Lack
from pyrocrl.constructions import matrix_starts
from pyrocrl.exact import score_mixtures
from pyrocrl.exact.matrix_factors import ALPHA, ETA, RATE, SHAPE, SLAB, Sampler
from pyrocrl.exact.score_mixtures import GRID, components_given, point_normal, scale_mixture, scores_given, told
from pyrocrl.judge.checks import CHECKS
from pyrocrl.lab import completions
from pyrocrl.show import plots, report

# -- the sampler -----------------------------------------------------------------------------------------------


def from_prior(rng: np.random.Generator, rows: int = 12, features: int = 5, latents: int = 2) -> Sampler:
    """A chain that stands at a draw of the prior, and rows from it, of which a fifth of the values are missing."""
    share = rng.beta(1 / latents, 1, latents)
    slab = SLAB * np.exp(rng.standard_normal(latents))
    weights = rng.dirichlet(np.full(len(GRID), ALPHA), latents)
    loadings = (rng.random((features, latents)) < share) * slab * rng.standard_normal((features, latents))
    r = 2 * rng.beta(ETA, ETA) - 1
    rate = RATE * math.exp(rng.standard_normal())
    variance = rate / rng.standard_gamma(SHAPE, features)
    size = np.sqrt(weights @ GRID**2)
    component = np.array([rng.choice(len(GRID), rows, p=w) for w in weights]).T
    y = rng.multivariate_normal(np.zeros(2), [[1, r], [r, 1]], rows)
    z = y * GRID[component] / size
    x = z @ loadings.T + np.sqrt(variance) * rng.standard_normal((rows, features))
    known = rng.random(x.shape) > 0.2
    state = Sampler(np.where(known, x, 0.0), known, np.ones_like(loadings), variance, np.eye(2), latents, rng)
    state.u, state.scale, state.weights, state.share, state.rate = z * size, GRID[component], weights, share, rate
    state.loadings, state.slab, state.correlation = loadings / size, slab / size, np.array([[1, r], [r, 1.0]])
    return state


def summary(state: Sampler) -> list[float]:
    size = state.size
    return [
        float(np.log(state.slab * size).sum()),
        float(state.weights[:, 0].sum()),
        float((state.loadings != 0).sum()) + 1e-3 * float(state.share.sum()),
        float(np.square(state.loadings * size).sum()),
        float(state.correlation[0, 1]),
        math.log(state.rate),
        float(np.log(state.variance).mean()),
        float(np.square(state.u / size).mean()),
    ]


def test_sweeps_leave_the_posterior_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truths from the prior, rows from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    monkeypatch.setattr(score_mixtures, "STEPS", 1)  # of starts, which are overwritten
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(200):
        before.append(summary(from_prior(rng)))
        state = from_prior(rng)
        for _ in range(4):
            state.sweep()
        after.append(summary(state))
    for old, new in zip(np.transpose(before), np.transpose(after), strict=True):
        assert stats.ks_2samp(old, new).pvalue > 1e-3


def test_components_and_scores_given_a_row_are_exact_for_one_latent() -> None:
    """Also where a value is missing: as by the joint normal law of what is there."""
    loadings, variance = torch.tensor([[1.0], [0.8], [-0.9]]).double(), torch.tensor([0.3, 0.4, 0.5]).double()
    weights = torch.tensor([[0.4, 0.1, 0.2, 0.2, 0.1]]).double()
    x = torch.tensor([[0.1, 0.2, 0.1], [1.5, 99.0, -1.2]]).double()
    known = torch.tensor([[True, True, True], [True, False, True]])
    tril = torch.eye(1).double()
    inner, seen = told(x, known, loadings, variance)
    found = components_given(inner, seen, tril, weights)[0][:, 0].exp()
    sd = torch.tensor(GRID) / (weights[0] * torch.tensor(GRID).square()).sum().sqrt()
    for i in range(2):
        own = known[i]
        a, noise = loadings[own], torch.diag(variance[own])
        density = [
            torch.distributions.MultivariateNormal(0 * x[i, own], s**2 * a @ a.mT + noise).log_prob(x[i, own])
            for s in sd
        ]
        torch.testing.assert_close(found[i], (torch.stack(density) + weights[0].log()).softmax(0))
    mean, covariance = scores_given(inner, seen, tril, sd[3].expand(2, 1))
    precision = (loadings[:, 0].square() / variance * known).sum(1) + sd[3] ** -2
    torch.testing.assert_close(covariance[:, 0, 0], 1 / precision)
    torch.testing.assert_close(mean[:, 0], (loadings[:, 0] * x / variance * known).sum(1) / precision)


def test_priors_of_a_factor_are_found_from_estimates_and_their_errors() -> None:
    rng = np.random.default_rng(0)
    error = np.full(2000, 0.1)
    sparse = (rng.random(2000) < 0.3) * 1.5 * rng.standard_normal(2000)
    normal = rng.standard_normal(2000)
    share, deviation, gain = point_normal(sparse + 0.1 * rng.standard_normal(2000), error)
    assert share == pytest.approx(0.3, abs=0.05) and deviation == pytest.approx(1.5, abs=0.15) and gain > 100
    assert abs(point_normal(normal, error)[2]) < 5
    weights, unit, gain = scale_mixture(sparse + 0.1 * rng.standard_normal(2000), error)
    assert weights[0] == pytest.approx(0.7, abs=0.1) and gain > 100
    assert unit**2 * weights @ GRID**2 == pytest.approx(sparse.var(), rel=0.15)
    assert scale_mixture(normal, error)[2] < 10


def test_what_is_missing_is_filled_by_what_is_there() -> None:
    rng = np.random.default_rng(0)
    z, loadings = rng.standard_normal((300, 2)), rng.standard_normal((12, 2))
    x = z @ loadings.T + 0.3 * rng.standard_normal((300, 12))
    known = rng.random(x.shape) > 0.2
    full = matrix_starts.filled(np.where(known, x, np.nan), known, 3, rng)
    assert (full[known] == x[known]).all()
    assert np.square(full - x)[~known].mean() < 4 * 0.3**2 < 0.3 * x.var()


def test_softimpute_is_better_than_a_truncated_svd() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 3)) @ rng.standard_normal((3, 20)) + 0.5 * rng.standard_normal((80, 20)) + 4.0
    lacks = rng.random(x.shape) < 0.2
    holed = np.where(lacks, np.nan, x)
    error = [
        completions.relative_error(found, x, lacks)
        for found in (
            completions.soft_impute(holed),
            completions.truncated_svd(holed, 3),
            completions.column_means(holed),
        )
    ]
    assert error[0] < error[1] < error[2] and error[2] == pytest.approx(1.0, abs=0.1)


# -- fits ------------------------------------------------------------------------------------------------------

SMALL = {"rows": 300, "features": 12, "latents": 2}


def lacking() -> tuple[Data, Data]:
    """Rows that lack a tenth of their values, and the same ones whole."""
    whole = simulate.draw("sparse_fa", 100, **SMALL)
    lacks = np.random.default_rng(0).random(whole.x.shape) < 0.1
    return Data(np.where(lacks, np.nan, whole.x), missing=True, truth=whole.truth), whole


@cache
def fitted() -> pyrocrl.Fit:
    data = lacking()[0]
    program = pyrocrl.build("ebmf", data, latents=3, steps=80)
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False)


def test_values_that_are_missing_are_left_out(tmp_path: Path) -> None:
    (data, whole), fit = lacking(), fitted()
    assert pyrocrl.evaluate(fit, data)["mcc"] > 0.95
    batch = fit.batch_of(data)
    assert batch.known is not None and (batch.known.numpy() == ~np.isnan(data.x)).all()
    program = fit.programs()[0]
    other = torch.where(batch.known, batch.x, torch.full_like(batch.x, 7.0))
    torch.testing.assert_close(program.latents(batch), program.latents(pyrocrl.Batch(**{**vars(batch), "x": other})))
    filled = pyrocrl.fill(fit, draws=20)
    gaps = np.isnan(data.x)
    inside = (filled["low"].to_numpy() < whole.x) & (whole.x < filled["high"].to_numpy())
    assert completions.relative_error(filled["mean"].to_numpy(), whole.x, gaps) < 0.7
    assert 0.8 < inside[gaps].mean() < 0.98 and (filled["measured"].to_numpy() == ~gaps).all()
    new = pyrocrl.fill(fit, whole.rows_at(np.arange(5)), draws=5)
    assert new["measured"].to_numpy().all() and new.sizes["data"] == 5
    tree = fit.posterior(3)
    assert (np.isnan(tree["observed_data"]["x"].to_numpy()) == gaps).all()
    assert np.isfinite(tree["log_likelihood"]["x"].to_numpy()).all()
    fit.save(tmp_path / "fit.pt")
    again = pyrocrl.load(tmp_path / "fit.pt", data)
    np.testing.assert_allclose(again.latents(), fit.latents())
    page = report.render(again, tree, pyrocrl.diagnose(again))
    assert "ebmf" in page and "nan" not in page


def test_zeros_of_loadings_or_of_scores_tell_latents_and_nothing_else_does() -> None:
    def lack(**options: object) -> object:
        data = simulate.draw(
            "sparse_scores", 101, **({"rows": 700, "features": 8, "latents": 2, "noise": 0.4} | options)
        )
        program = pyrocrl.build("ebmf", data, latents=2, steps=60)
        return CHECKS["zeros_tell"](pyrocrl.fit(program, data, chains=1, seed=0, progress=False), data)

    assert lack() is None
    for options, words in (({"share": 1.0}, "surely without"), ({"together": 1}, "a combination of the others")):
        found = lack(**options)
        assert isinstance(found, Lack) and not found.rows and words in found.reason


def test_where_nothing_is_shared_no_latent_is_claimed() -> None:
    data = Data(np.random.default_rng(3).standard_normal((60, 6)))
    fit = pyrocrl.fit(pyrocrl.build("ebmf", data, latents=2, steps=20), data, chains=1, seed=0, progress=False)
    lack = CHECKS["zeros_tell"](fit, data)
    assert lack is not None and "no latent is in use" in lack.reason


# -- data ------------------------------------------------------------------------------------------------------

X = np.square(np.arange(24.0)).reshape(6, 4) + 0.5
HOLED = np.where(np.eye(6, 4) > 0, np.nan, X)


def test_only_models_that_leave_them_out_are_given_missing_values() -> None:
    data = Data(HOLED, missing=True)
    assert data.incomplete and data.measured.tolist() == [5, 5, 5, 5]
    for model in ("ivae", "spike_slab_fa", "plt_fa"):
        message = (
            rf"^x: found 4 missing values in 4 of 4 features, .* 'feature_0' \(1\).*, which {model} does not read; "
        )
        message += "allowed: finite numbers, or a model that leaves out what is missing: ebmf, gmm_vae, sparse_vae, vae"
        with pytest.raises(InputError, match=message):
            pyrocrl.build(model, data, latents=2)
    whole = Data(np.random.default_rng(0).normal(size=(30, 4)))
    with pytest.raises(InputError, match="which this vae has not learned"):
        pyrocrl.fit(pyrocrl.build("vae", whole, latents=2), data)
    assert pyrocrl.build("ebmf", data, latents=2).config["features"] == 4
    lacks = {c.model: c.lacks for c in pyrocrl.choose(data, latents=2)}
    assert not lacks["ebmf"] and any("does not read" in one for one in lacks["plt_fa"])
    assert not Data(X, missing=True).incomplete


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Data(HOLED), r"x: found 4 missing values .*; missing=True \(--missing\) for models"),
        (lambda: Data(np.round(HOLED), counts=True, missing=True), "size_factor: found None, with 4 missing values"),
        (
            lambda: Data(np.where(np.arange(6)[:, None] == 2, np.nan, X), missing=True),
            "x: found row 2 without any value; allowed: rows of which something was measured",
        ),
        (lambda: Data(HOLED, missing=True, view=list("aabb")), "missing: found True, with views; allowed: one of both"),
        (
            lambda: pyrocrl.choose(Data(np.where(np.arange(4) == 1, np.nan, X), missing=True)),
            "x: found feature 'feature_1' without any value",
        ),
        (lambda: Data(np.where(HOLED > 100, np.inf, HOLED), missing=True), "x: found inf at row"),
        (
            lambda: pyrocrl.Adjustment.of(Data(HOLED, missing=True, covariates={"age": np.arange(6)})),
            "x: found 4 missing values .*; allowed: finite numbers, to take covariates out of",
        ),
    ],
)
def test_missing_values_are_refused_elsewhere(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_files_and_the_shell_hold_missing_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyrocrl.cli import main

    data = Data(HOLED, missing=True, feature_names=list("abcd"))
    table = pd.DataFrame(HOLED, columns=list("abcd"))
    table.to_csv(tmp_path / "holed.csv", index=False)
    for again in (
        io.read(io.write(data, tmp_path / "holed.npz")),
        io.read(tmp_path / "holed.csv", missing=True),
        io.from_frame(table, missing=True),
    ):
        assert again.incomplete
        np.testing.assert_array_equal(again.x, HOLED)
    with pytest.raises(InputError, match=r"4 missing values in 4 of 4 features, the first at row 0: 'a' \(1\)"):
        io.read(tmp_path / "holed.csv")
    told = ["choose", "--data", str(tmp_path / "holed.csv"), "--latents", "2"]
    assert main([*told, "--missing", "--json"]) == 0
    out = capsys.readouterr().out
    assert any(one["model"] == "ebmf" and not one["lacks"] for one in json.loads(out)["models"])
    assert main(told) == 2 and "--missing" in capsys.readouterr().err
    fit = [
        "fit",
        "plt_fa",
        "--data",
        str(tmp_path / "holed.csv"),
        "--missing",
        "--latents",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main([*fit, "--force"]) == 2 and "which plt_fa does not read" in capsys.readouterr().err


def test_the_shell_fills_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyrocrl.cli import main

    rng = np.random.default_rng(3)
    x = rng.standard_normal((120, 1)) @ rng.uniform(1, 2, (1, 8)) + 0.1 * rng.standard_normal((120, 8))
    holed = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    table = pd.DataFrame(holed, [f"cell_{i}" for i in range(120)], list("abcdefgh"))
    table.to_csv(tmp_path / "holed.csv")
    run, filled, full = str(tmp_path / "run"), tmp_path / "filled.csv", tmp_path / "filled.nc"
    fit = ["fit", "ebmf", "--data", str(tmp_path / "holed.csv"), "--missing", "--latents", "2", "--chains", "1"]
    assert main([*fit, "--out", run, "--draws", "5", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["fill", run, "--csv", str(filled), "--nc", str(full)]) == 0
    lacks = np.isnan(holed)
    assert f"{lacks.sum()} of {x.size} values filled in" in capsys.readouterr().out
    found = pd.read_csv(filled, index_col=0)
    assert list(found.index) == list(table.index) and list(found.columns) == list(table.columns)
    np.testing.assert_allclose(found.to_numpy()[~lacks], holed[~lacks])
    assert np.abs(found.to_numpy() - x)[lacks].max() < 1.0 < np.abs(x[lacks]).max()
    kept = io.read_tree(full)
    np.testing.assert_allclose(kept["mean"].to_numpy()[lacks], found.to_numpy()[lacks])
    assert (kept["high"] > kept["low"]).all() and (kept["measured"].to_numpy() == ~lacks).all()
    table.iloc[:7].to_csv(tmp_path / "more.csv")
    more = ["--data", str(tmp_path / "more.csv"), "--missing", "--csv", str(tmp_path / "more_filled.csv")]
    assert main(["fill", run, *more]) == 0 and len(pd.read_csv(tmp_path / "more_filled.csv")) == 7
    for bad, said in {
        (): "--csv: found neither it nor --nc",
        ("--csv", str(filled)): "which exists",
        ("--nc", "filled.csv"): "a file ending in .nc",
        ("--csv", str(tmp_path / "f.csv"), "--level", "2"): "level: found 2.0",
    }.items():
        assert main(["fill", run, *bad]) == 2 and said in capsys.readouterr().err


def test_pictures_tell_what_was_measured() -> None:
    """Shares of variance and predictive checks with a tenth of the values missing are those of whole rows, nearly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4))
    z = np.column_stack([x[:, 0] + 0.5 * rng.normal(size=2000), rng.normal(size=2000)])
    gaps = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    whole = np.corrcoef(x.T, z.T)[:4, 4:]
    np.testing.assert_allclose(plots.numbers._correlation(x, z), whole, atol=1e-12)
    np.testing.assert_allclose(plots.numbers._correlation(gaps, z), whole, atol=0.03)
    there = np.isfinite(gaps[:, 0])
    exact = np.corrcoef(gaps[there, 0], z[there, 0])[0, 1]
    assert plots.numbers._correlation(gaps, z)[0, 0] == pytest.approx(exact)
    assert (
        plots.numbers._correlation(np.column_stack([np.ones(9), np.arange(9.0)]), np.arange(9.0)[:, None])[0] == 0
    ).all()
