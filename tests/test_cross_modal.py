"""Shared and private latents of views: densities, translation, what ties views, and what is recovered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, InputError, metrics, simulate
from pyrocrl.exact import shared_factors
from pyrocrl.exact.shared_factor_draws import FactorDraws
from pyrocrl.infer.fitted import Fit
from pyrocrl.models.cross_modal import LABELS, CrossModal

SMALL = {"rows": 300, "latents": 2, "private": 1, "features": 24, "noise": 0.5}


def fitted(seed: int = 100, anchors: bool = False, chains: int = 2, **options: Any) -> tuple[Fit, Data]:
    data = simulate.draw("shared_private", seed, **SMALL | options)
    program = pyrocrl.build("cross_modal", data, latents=2, private=1, anchors=anchors)
    return pyrocrl.fit(program, data, chains=chains, seed=seed, progress=False), data


@pytest.fixture(scope="module")
def partly() -> tuple[Fit, Data]:
    return fitted(paired=0.5, labels=3, anchors=True)


def moments(program: CrossModal) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loadings on all latents, offsets and levels at the mode, and variances: dense, as the story has them."""
    p = program._mode()
    loadings = torch.cat([p.shared, program._stacked(p.own)], 1)
    mean = p.offset + p.level @ p.shared.mT  # (env, feature)
    cov = loadings @ loadings.mT + torch.diag(p.variance)
    return mean.detach().numpy(), cov.detach().numpy(), loadings.detach().numpy()


def test_a_row_has_the_density_of_the_views_that_it_has(partly: tuple[Fit, Data]) -> None:
    fit, data = partly
    program = fit.chains.chain(fit.reference)
    assert isinstance(program, CrossModal)
    batch, (mean, cov, _) = fit.batch_of(data), moments(program)
    with torch.no_grad():
        found = program._summed(program._mode(), batch)[1].numpy()
        law = program._law(batch)
        total = float(law.log_likelihood(program._mode()))
    for row in range(0, data.rows, 37):
        own = np.flatnonzero(data.present[row][data.view])
        x, centre = batch.x[row].numpy()[own], mean[data.env[row]][own]
        assert found[row] == pytest.approx(stats.multivariate_normal(centre, cov[np.ix_(own, own)]).logpdf(x), abs=1e-8)
    constant = 0.5 * np.log(2 * np.pi) * data.present[:, data.view].sum()
    assert found.sum() == pytest.approx(total - constant, rel=1e-10)


def test_a_view_is_told_as_the_joint_law_has_it(partly: tuple[Fit, Data]) -> None:
    """Means are those of conditioning; intervals are as wide, and wider by what is not known of the parameters."""
    fit, data = partly
    program, units = fit.chains.chain(fit.reference), fit.units
    assert isinstance(program, CrossModal) and units is not None
    told = pyrocrl.translate(fit, data.rows_at(data.present[:, 0]), "view 1")
    mean, cov, _ = moments(program)
    one, two = (np.flatnonzero(data.view == v) for v in (0, 1))
    row = int(np.flatnonzero(data.present[:, 0])[7])
    x = (data.x[row] - units.centre) / units.scale
    slope = cov[np.ix_(two, one)] @ np.linalg.inv(cov[np.ix_(one, one)])
    env = data.env[row]
    expected = mean[env][two] + slope @ (x[one] - mean[env][one])
    spread = np.sqrt(np.diag(cov[np.ix_(two, two)] - slope @ cov[np.ix_(one, two)]))
    np.testing.assert_allclose(told["mean"][7], expected * units.scale[two] + units.centre[two], rtol=1e-3, atol=2e-3)
    assert (told["sd"][7] >= 0.999 * spread * units.scale[two]).all()
    assert (told["sd"][7] <= 1.1 * spread * units.scale[two]).all()
    assert told["mean"].dims == ("data", "feature") and told["z"].shape == (data.present[:, 0].sum(), 2)
    new = Data(np.random.default_rng(0).normal(size=(20, 4)))
    for bad, message in (
        ({"to": "view 2"}, "to: found 'view 2'"),
        ({"data": data.rows_at(data.present[:, 0] & ~data.present[:, 1])}, "data: found row .* without another view"),
        (
            {"fit": pyrocrl.fit(pyrocrl.build("vae", new, latents=1), new, chains=1, epochs=1, progress=False)},
            "a fit of",
        ),
    ):
        with pytest.raises(InputError, match=message):
            pyrocrl.translate(**{"fit": fit, "data": data, "to": "view 0"} | bad)  # type: ignore[arg-type]


def test_the_shell_tells_a_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyrocrl.cli import main

    data = simulate.draw("shared_private", 100, **SMALL)
    table = pd.DataFrame(data.x, [f"cell_{i}" for i in range(data.rows)], data.feature_names)
    table.columns = [f"{'rna' if v == 0 else 'atac'}_{j}" for j, v in enumerate(data.view)]
    table.to_csv(tmp_path / "both.csv")
    table.iloc[:9].to_csv(tmp_path / "few.csv")
    views, run = ["--view", "rna_", "--view", "atac_"], str(tmp_path / "run")
    fit = ["fit", "cross_modal", "--data", str(tmp_path / "both.csv"), *views, "--latents", "2", "--chains", "1"]
    assert main([*fit, "--out", run, "--draws", "5", "--quiet"]) == 0
    few = ["--data", str(tmp_path / "few.csv"), *views]
    capsys.readouterr()
    assert main(["translate", run, "--to", "atac", *few, "--csv", str(tmp_path / "atac.csv")]) == 0, capsys.readouterr()
    found = pd.read_csv(tmp_path / "atac.csv", index_col=0)
    own = [name for name in table.columns if name.startswith("atac_")]
    assert list(found.index) == list(table.index[:9]) and list(found.columns) == own
    loaded = pyrocrl.load(tmp_path / "run" / "checkpoint.safetensors")
    told = pyrocrl.translate(loaded, pyrocrl.io.read(tmp_path / "few.csv", view=["rna_", "atac_"]), "atac")
    np.testing.assert_allclose(found, told["mean"])
    assert main(["translate", run, "--to", "protein", "--csv", str(tmp_path / "p.csv")]) == 2
    assert "to: found 'protein'" in capsys.readouterr().err


def test_intervals_of_a_view_hold_what_they_say() -> None:
    held = simulate.draw("shared_private", 100, **SMALL | {"rows": 400})
    fit, _ = fitted_rows(held, 200)
    test = held.rows_at(np.arange(200, 400))
    inside = []
    for view in test.view_names:
        told, x = pyrocrl.translate(fit, test, view), test.x[:, test.view_labels() == view]
        inside.append(((told["low"] <= x) & (x <= told["high"])).to_numpy().mean())
    assert 0.87 <= np.mean(inside) <= 0.93


def fitted_rows(data: Data, rows: int) -> tuple[Fit, Data]:
    train = data.rows_at(np.arange(rows))
    program = pyrocrl.build("cross_modal", train, latents=2, private=1)
    return pyrocrl.fit(program, train, chains=1, seed=0, progress=False), train


def test_shared_latents_are_found_and_private_ones_kept_out() -> None:
    fit, data = fitted(chains=1, paired=0.4)
    z = fit.latents(data)
    assert metrics.r2(data.truth["z"], z) >= 0.95
    assert metrics.linear_r2(z, data.truth["private"]) <= 0.05


def test_the_verdict_says_what_ties_the_views() -> None:
    fit, data = fitted(paired=0.0)
    found = pyrocrl.diagnose(fit, data)["latents"]
    assert found.verdict == "not identified" and "0 rows' worth of ties" in found.reason
    fit, data = fitted(paired=0.0, labels=4, rows=800, anchors=True)
    assert metrics.r2(data.truth["z"], fit.latents(data)) >= 0.95
    found = pyrocrl.diagnose(fit, data)["latents"]
    assert found.verdict == "identified if" and list(found.given) == [LABELS]


def test_moments_are_tested_with_their_degrees_of_freedom() -> None:
    """Of the right model the deviance is as large as they are many; of too few latents it is larger."""
    deviance, freedom = 0.0, 0.0
    for seed in range(100, 104):
        data = simulate.draw("shared_private", seed, **SMALL | {"rows": 200, "features": 16})
        x = torch.tensor((data.x - data.x.mean(0)) / data.x.std(0))
        view, env = torch.tensor(data.view), torch.zeros(data.rows, dtype=torch.long)
        found = shared_factors.groups(x, torch.tensor(data.present), view, env, 1)
        law = shared_factors.SharedFactors(found, view, anchors=False, slab=1.0, rate=0.1)
        start = shared_factors.started(law, 2, 1, 1, lambda *shape: torch.zeros(*shape, dtype=torch.float64))
        one = shared_factors.misfit(law, law.climbed(start))
        assert one is not None and one.freedom == 16 * 17 / 2 + 16 - 16 * 5 + 1
        deviance, freedom = deviance + one.deviance, freedom + one.freedom
    assert 0.001 < stats.chi2.sf(deviance, freedom) < 0.999
    start = shared_factors.started(law, 1, 1, 1, lambda *shape: torch.zeros(*shape, dtype=torch.float64))
    few = shared_factors.misfit(law, law.climbed(start))
    assert few is not None and stats.chi2.sf(few.deviance, few.freedom) < 1e-10


def test_sweeps_keep_the_law_of_parameters_and_rows() -> None:
    """Rows drawn given parameters and parameters moved given rows, in turns, leave these with their prior law (Geweke
    2004): of means over the run, in deviations of what they differ by."""
    rng, steps = np.random.default_rng(0), 600
    view, env = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1] * 6)
    present = np.array([[True, True]] * 6 + [[True, False]] * 3 + [[False, True]] * 3)
    sizes = (6, 1), (6, 1), (6,), (6,), (2, 1)
    shared, own, offset, _, level = (rng.standard_normal(size) for size in sizes)
    level[0] = 0.0
    variance, kept = 0.5 / rng.gamma(1.5, size=6), []
    for _ in range(steps):
        z, private = level[env] + rng.standard_normal((12, 1)), rng.standard_normal((12, 2))
        x = offset + z @ shared.T + private[:, view] * own[:, 0] + np.sqrt(variance) * rng.standard_normal((12, 6))
        found = shared_factors.groups(torch.tensor(x), torch.tensor(present), view, env, 2)
        law = shared_factors.SharedFactors(found, view, anchors=True, slab=1.0, rate=0.5)
        p = shared_factors.Parameters(*(torch.tensor(v) for v in (shared, own, offset, variance, level)))
        chain = FactorDraws(law, p, rng)
        chain.sweep()
        shared, own, offset, variance, level = chain.shared, chain.own, chain.offset, chain.variance, chain.level
        squares = [float((v**2).mean()) for v in (shared, own, offset, level[1:])]
        kept.append([*squares, float((0.5 / variance).mean()), float((shared * own).mean()), float(offset.mean())])
    parts = np.array(kept).reshape(15, -1, 7).mean(1)
    away = (parts.mean(0) - [1, 1, 1, 1, 1.5, 0, 0]) / (parts.std(0, ddof=1) / np.sqrt(15))
    assert (np.abs(away) < 4).all(), away
    assert (parts.std(0) < 0.6).all()


def test_labels_are_read_where_they_tie_views_and_nowhere_else(partly: tuple[Fit, Data]) -> None:
    data = simulate.draw("shared_private", 100, **SMALL | {"labels": 3})
    fit, _ = fitted_rows(data, 200)
    renamed = Data(data.x[200:], ["new"] * 100, view=data.view_labels())
    np.testing.assert_allclose(fit.latents(renamed), fit.latents(data.rows_at(np.arange(200, 300))))
    tied, _ = partly
    with pytest.raises(InputError, match="env: found 'new', which was not fitted"):
        tied.latents(renamed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": 4, "private": 2}, "latents: found 4 and private=2, with 12 features in view 'view 0'"),
        ({"anchors": True}, "anchors: found True with one environment"),
        ({"views": ["a"] * 24}, "views: found 24 names, 1 of them different"),
        ({"views": ["a", "b"]}, "views: found 2 names"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict, message: str) -> None:
    data = simulate.draw("shared_private", 100, **SMALL)
    with pytest.raises(InputError, match=message):
        pyrocrl.build("cross_modal", data, **{"latents": 2, "private": 1} | options)


def test_data_without_views_are_refused() -> None:
    with pytest.raises(InputError, match="view: found None; allowed: views of the features, which cross_modal needs"):
        pyrocrl.build("cross_modal", Data(np.random.default_rng(0).normal(size=(20, 12))), latents=1)
    fit, data = fitted(chains=1)
    with pytest.raises(InputError, match="view: found other views than the program's"):
        fit.latents(Data(data.x, view=["a"] * 11 + ["b"] * 13))


def test_matches_of_rows_are_counted() -> None:
    a = np.array([[0.0], [1.0], [2.0], [10.0]])
    b = np.array([[0.1], [1.1], [9.0], [2.2]])  # the last two are exchanged
    assert metrics.foscttm(a, a) == 0.0 and metrics.match_at(a, a, 1) == 1.0
    # nearer than the match are all others to row 2 of a and to row 3 of b, and one row to row 3 of a and to row 2 of b
    assert metrics.foscttm(a, b) == pytest.approx((3 + 1 + 1 + 3) / (2 * 4 * 3))
    assert metrics.match_at(a, b, 1) == 0.5
    with pytest.raises(InputError):
        metrics.foscttm(a, b[:3])


def test_the_setting_hides_views_of_rows_that_are_not_paired() -> None:
    whole = simulate.draw("shared_private", 3, **SMALL)
    part = simulate.draw("shared_private", 3, **SMALL | {"paired": 0.5})
    np.testing.assert_allclose(np.where(np.isnan(part.x), whole.x, part.x), whole.x)
    assert part.present.all(1).sum() == 150 and part.present.sum(0).tolist() == [225, 225]
    assert part.truth["private"].shape == (300, 2)
