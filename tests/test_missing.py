"""Values that are missing: laws, guides, starts and tests of fits leave them out; verdicts say what that rests on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor

import pyrocrl
from pyrocrl import Batch, Data, InputError, Program, io, simulate, zoo
from pyrocrl.claims.card import AT_RANDOM, READ_MISSING
from pyrocrl.constructions.completed import completed
from pyrocrl.exact import goodness
from pyrocrl.infer import stories
from pyrocrl.judge import metrics
from pyrocrl.judge.gaps import gaps_go_with
from pyrocrl.lab import completions
from pyrocrl.lab.suite.factors import APART, factors, lacking
from pyrocrl.lab.suite.states import clusters
from pyrocrl.parts.observation import column_deviations, column_means, log_rates

WIDTHS = [[1.0, 0.3], [0.3, 1.0], [0.5, 0.5]]


def holed(data: Data, share: float = 0.2, **more: Any) -> Data:
    x = np.asarray(data.x, dtype=float)
    lacks = np.random.default_rng(5).random(x.shape) < share
    lacks[:, 0] &= ~lacks.all(1)
    return Data(np.where(lacks, np.nan, x), missing=True, counts=data.counts, truth=data.truth, **more)


def counts() -> Data:
    whole = simulate.draw("sparse_counts", 3, rows=200, features=16, latents=2, median=20.0)
    return holed(whole, size_factor=np.asarray(whole.x.sum(1), float).ravel())


def floats() -> Data:
    return holed(simulate.draw("moran2022", 100, rows=120))


CASES = {
    "vae": (floats, {"latents": 2}),
    "vae of counts": (counts, {"latents": 2}),
    "sparse_vae": (floats, {"latents": 3}),
    "sparse_vae, linear": (floats, {"latents": 2, "decoder": "linear"}),
    "sparse_vae of counts": (counts, {"latents": 2}),
    "gmm_vae": (floats, {"latents": 2, "starts": 1, "search_steps": 5}),
}


def started(name: str) -> tuple[Program, Data, Batch]:
    make, options = CASES[name]
    data = make()
    program = pyrocrl.build(name.split(",")[0].split()[0], data, **options)
    with torch.no_grad(), pyrocrl.turns.drawing(0):
        program.initialise(data, torch.Generator().manual_seed(0))
    return program, data, data.tensors().annealed()


def elsewhere(batch: Batch, value: float) -> Batch:
    """The same rows with this in place of what is missing."""
    assert batch.known is not None
    x = torch.where(batch.known, batch.x, torch.full_like(batch.x, value))
    return Batch(**{**vars(batch), "x": x})


@pytest.mark.parametrize("name", CASES)
def test_nothing_rests_on_what_stands_in_place_of_a_missing_value(name: str) -> None:
    """Neither the guide nor the law of x, which adds up to that of whole rows with what is missing in its turn."""
    program, _, batch = started(name)
    other = elsewhere(batch, 3.0)
    assert batch.known is not None
    torch.testing.assert_close(program.latents(batch), program.latents(other))
    with pyrocrl.turns.drawing(1), torch.no_grad():
        sites = stories.drawn(program, batch)

        def row(one: Batch) -> Tensor:
            return stories.log_likelihood(stories.told(program, one, sites), sites)

        torch.testing.assert_close(row(batch), row(other))
        whole = Batch(**{**vars(other), "known": None})
        rest = Batch(**{**vars(other), "known": ~batch.known})
        torch.testing.assert_close(row(whole), row(batch) + row(rest))


def test_of_rows_that_lack_nothing_the_guide_is_that_of_whole_rows() -> None:
    program, _, batch = started("gmm_vae")
    assert batch.known is not None
    full = Batch(**{**vars(batch), "known": torch.ones_like(batch.known)})
    torch.testing.assert_close(
        program.latents(full), program.latents(Batch(**{**vars(batch), "known": None})), rtol=1e-4, atol=1e-4
    )


def test_the_mixtures_guide_is_exact_given_what_was_measured() -> None:
    """y ~ N(0, I) before, so N(m, V) by Bayes' rule with the features that a row has."""
    program, _, batch = started("gmm_vae")
    law = program._posterior(batch)  # type: ignore[operator]
    loadings, noise = program.loadings.detach().double(), program._noise().detach().double()  # type: ignore[operator]
    assert batch.known is not None
    row = int((~batch.known).any(1).nonzero()[0])
    own = batch.known[row]
    weighted = loadings[own] / noise[own].square()[:, None]
    cov = torch.linalg.inv(torch.eye(2) + loadings[own].mT @ weighted)
    apart = (batch.x[row] - program.centre.detach())[own].double()  # type: ignore[operator]
    torch.testing.assert_close(law.loc[row].detach().double(), cov @ weighted.mT @ apart, rtol=1e-3, atol=1e-3)
    tril = law.tril[row].detach().double()
    torch.testing.assert_close(tril @ tril.mT, cov, rtol=1e-3, atol=1e-5)
    z = law.rsample()
    law.drawn = (None, None)
    drawn = law.log_prob(z)
    assert drawn.shape == (len(batch),) and torch.isfinite(drawn).all()


def test_scales_are_those_of_what_was_measured() -> None:
    data = floats()
    x = torch.as_tensor(np.nan_to_num(data.x))
    known = torch.as_tensor(data.known)
    np.testing.assert_allclose(column_means(x, known), np.nanmean(data.x, 0))
    np.testing.assert_allclose(column_deviations(x, known), np.nanstd(data.x, 0, ddof=1))
    few = counts()
    x, known, size = torch.as_tensor(np.nan_to_num(few.x)), torch.as_tensor(few.known), torch.as_tensor(few.size_factor)
    expected = [(np.nansum(few.x[:, j]) + 0.5) / few.size_factor[few.known[:, j]].sum() for j in range(16)]
    np.testing.assert_allclose(log_rates(x, size, known), np.log(expected))
    fit = pyrocrl.fit(pyrocrl.build("vae", data, latents=2), data, chains=1, epochs=1, progress=False)
    assert fit.units is not None
    np.testing.assert_allclose(fit.units.centre, np.nanmean(data.x, 0))
    np.testing.assert_allclose(fit.units.scale, np.nanstd(data.x, 0))


def test_starts_read_rows_that_are_made_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = floats().tensors()
    full = completed(batch, 2, generator)
    assert full.known is None and batch.known is not None
    assert (full.x[batch.known] == batch.x[batch.known]).all() and (full.x[~batch.known] != 0).all()
    assert completed(full, 2, generator) is full
    some = counts().tensors()
    whole = completed(some, 2, generator, some.size_factor)
    assert (whole.x >= 0).all() and (whole.x == whole.x.round()).all()


def test_rows_without_gaps_are_fitted_as_before() -> None:
    """Whatever was told of them: the same networks, parameters and objective."""
    whole = simulate.draw("moran2022", 100, rows=100)
    told = Data(whole.x, missing=True, truth=whole.truth)
    assert not told.incomplete
    fits = []
    for data in (whole, told):
        program = pyrocrl.build("sparse_vae", data, latents=3)
        assert program.config["missing"] is False
        assert not any(len(v.shape) == 2 and v.shape[1] == 2 * data.features for v in program.parameters())
        fits.append(pyrocrl.fit(program, data, chains=1, epochs=2, seed=3, progress=False))
    for name, value in fits[0].chains.params.items():
        assert torch.equal(value, fits[1].chains.params[name]), name
    assert torch.equal(fits[0].held_out, fits[1].held_out)


# -- tests of the fit, and what a verdict rests on ---------------------------------------------------------------


def test_what_latents_leave_is_of_what_was_measured() -> None:
    rng = np.random.default_rng(0)
    group, p = np.zeros(2000, dtype=int), []
    for _ in range(40):
        left = rng.standard_normal((2000, 5))
        left[rng.random(left.shape) < 0.3] = np.nan
        p.append(goodness.shared(left, group, 0.0).p)
    assert np.mean(np.array(p) < 0.1) < 0.25
    left = rng.standard_normal((2000, 5))
    left[:, 1] = 0.8 * left[:, 0] + 0.6 * left[:, 1]
    whole = goodness.shared(left, group, 0.03)
    gaps = np.where(rng.random(left.shape) < 0.3, np.nan, left)
    found = goodness.shared(gaps, group, 0.03)
    assert {found.column, found.other} == {0, 1} and found.p < 1e-20
    assert found.size == pytest.approx(whole.size, abs=0.1)


def test_whether_what_is_missing_goes_with_what_was_measured() -> None:
    """By chance it does in few draws; where it depends on another feature, or on itself, it is seen."""

    def lone(seed: int) -> Data:
        return factors(seed, APART, 500, 0.0)

    by_chance = [gaps_go_with(lacking(lone)(seed)) for seed in range(30)]
    assert sum(one is not None and one.p < 0.1 for one in by_chance) < 8
    for how in ("low", "beside"):
        found = gaps_go_with(lacking(lone, how=how)(0))
        assert found is not None and found.p < 1e-6 and found.lacks in found.words
    assert gaps_go_with(lone(0)) is None


def test_densities_are_in_the_units_of_what_was_measured() -> None:
    """A column in other units moves the density of the rows that have it, and of no other."""
    data, unit = floats(), np.array([1.0, 10.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    fits = []
    for x in (data.x, data.x * unit):
        rows = Data(x, missing=True)
        fit = pyrocrl.fit(pyrocrl.build("vae", rows, latents=2), rows, chains=1, epochs=2, seed=0, progress=False)
        tree = fit.posterior(2, predictive=True)
        total = tree["sample_stats"]["lp"].to_numpy().mean()
        fits.append(
            (fit.held_out_objective(rows), tree["log_likelihood"]["x"].to_numpy().mean((0, 1)), total, fit.scores)
        )
    lost = data.known[:, 1] * np.log(10.0)
    for which in (0, 1):
        np.testing.assert_allclose(fits[0][which] - fits[1][which], lost, atol=1e-3)
    assert fits[0][2] - fits[1][2] == pytest.approx(lost.sum(), abs=0.05)
    assert fits[0][3][0] - fits[1][3][0] == pytest.approx(lost.mean(), abs=0.5)


@cache
def mixed() -> tuple[pyrocrl.Fit, Data, Data]:
    """A fit of rows that lack a fifth of their values, these, and the same ones whole."""
    whole = clusters(100, WIDTHS, rows=1000)
    data = holed(whole)
    program = pyrocrl.build("gmm_vae", data, latents=2, components=3, layers=1, starts=2, search_steps=200)
    return pyrocrl.fit(program, data, chains=2, epochs=10, seed=0, progress=False), data, whole


def test_latents_are_recovered_where_means_in_place_of_gaps_lose_them() -> None:
    fit, data, whole = mixed()
    means = Data(completions.column_means(data.x), truth=data.truth)
    options = {"latents": 2, "components": 3, "layers": 1, "starts": 2, "search_steps": 200}
    rival = pyrocrl.fit(pyrocrl.build("gmm_vae", means, **options), means, chains=1, epochs=5, seed=0, progress=False)
    own = metrics.mcc(whole.truth["z"], fit.latents(data))
    assert 1 - own < 0.005 < (1 - metrics.mcc(whole.truth["z"], rival.latents(means))) / 4
    filled, lacks = pyrocrl.fill(fit, draws=10), ~data.known
    assert completions.relative_error(filled["mean"].to_numpy(), whole.x, lacks) < 0.3
    inside = (filled["low"].to_numpy() <= whole.x) & (whole.x <= filled["high"].to_numpy())
    assert 0.8 < inside[lacks].mean() < 0.98


def test_a_verdict_says_what_it_rests_on() -> None:
    fit, data, whole = mixed()
    said = pyrocrl.diagnose(fit, data)["latents"]
    assert said.verdict == "identified if" and said.given[AT_RANDOM[0]] == AT_RANDOM[1]
    checked = next(one for one in said.evidence if one.assumption == AT_RANDOM[0])
    assert checked.result == "on your word" and "goes with" in checked.check
    assert fit.posterior(2)["log_likelihood"]["x"].shape[2] == data.rows
    # of whole rows alone there is nothing to assume
    chains = fit.program, fit.chains, fit.kept, fit.held_out, fit.history, fit.names, fit.meta
    other = pyrocrl.Fit(*chains, whole, fit.anchor, fit.units)
    assert AT_RANDOM[0] not in pyrocrl.diagnose(other, whole)["latents"].given


# -- ways in ----------------------------------------------------------------------------------------------------


def test_cards_say_which_models_take_them() -> None:
    cards = zoo.cards()
    for law, names in READ_MISSING.items():
        assert set(names) == {card.name for card in cards if law in card.reads_missing}
    for card in cards:
        assert bool(card.reads_missing) == ("values may be missing" in card.markdown())
        assert not (card.reads_missing and card.claims) or AT_RANDOM[0] in card.assumes, card.name


def test_nan_masked_arrays_and_missing_objects_are_the_same() -> None:
    x = simulate.draw("moran2022", 0, rows=30).x.copy()
    x[3, 2] = np.nan
    table = pd.DataFrame(x).astype(object).where(~np.isnan(x), pd.NA)
    masked = np.ma.masked_invalid(x)
    for other in (masked, table, pd.DataFrame(x).astype("Float64"), torch.as_tensor(x)):
        np.testing.assert_array_equal(Data(other, missing=True).x, x)


def test_other_options_of_that_sort_are_let_be() -> None:
    """`linear_sem_lin` has one of its own: whether latents may be no environment's target."""
    data = simulate.draw("squires2023_hard", 0, latents=3, features=4, samples=200)
    assert pyrocrl.build("linear_sem_lin", data, incomplete=True).config["incomplete"] is True
    assert "missing" not in pyrocrl.build("linear_sem_lin", data).config


def test_what_cannot_be_read_is_refused_in_a_line() -> None:
    whole = simulate.draw("moran2022", 0, rows=60)
    data = holed(whole)
    fit = pyrocrl.fit(pyrocrl.build("vae", whole, latents=2), whole, chains=1, epochs=1, progress=False)
    for read in (fit.latents, fit.held_out_objective, lambda rows: pyrocrl.fill(fit, rows)):
        with pytest.raises(InputError, match=r"^x: found .* missing values .* not learned.*; allowed: .*missing=True"):
            read(data)
    some = np.where(np.eye(6, 8) > 0, np.nan, np.arange(48.0)[::-1].reshape(6, 8))
    with pytest.raises(
        InputError, match=r"^size_factor: found None, with 6 missing values .*; allowed: one number per row"
    ):
        Data(some, counts=True, missing=True)
    kept = Data(some, counts=True, missing=True, size_factor=1)
    with pytest.raises(InputError, match=r"does not read of counts; allowed: .* missing of counts: sparse_vae, vae$"):
        pyrocrl.build("ebmf", kept, latents=2)
    assert pyrocrl.build("vae", kept, latents=2).config["missing"]
    assert "as floats" in Data(some, missing=True).assumed["counts"]


@pytest.mark.parametrize("name", ["vae", "vae of counts", "sparse_vae, linear"])
def test_new_rows_and_saved_runs(name: str, tmp_path: Path) -> None:
    make, options = CASES[name]
    data = make()
    program = pyrocrl.build(name.split(",")[0].split()[0], data, **options)
    fit = pyrocrl.fit(program, data, chains=2, epochs=3, progress=False, out=tmp_path)
    again = pyrocrl.load(tmp_path / "checkpoint.safetensors", data)
    np.testing.assert_array_equal(again.latents(), fit.latents())
    np.testing.assert_array_equal(again.held_out, fit.held_out)
    new = data.rows_at(np.arange(10))
    np.testing.assert_allclose(again.latents(new), fit.latents()[:10], rtol=1e-4, atol=1e-5)
    assert np.isfinite(again.held_out_objective(new)).all()
    filled = pyrocrl.fill(again, new, draws=3)
    assert np.isfinite(filled["mean"]).all() and (filled["measured"].to_numpy() == new.known).all()
    whole = new.rows_at(np.flatnonzero(new.known.all(1)))
    if whole.rows:  # a row that lacks nothing reads alike among others
        np.testing.assert_allclose(
            again.latents(whole), again.latents(new)[np.flatnonzero(new.known.all(1))], rtol=1e-4, atol=1e-5
        )


def test_the_shell_takes_empty_cells_and_an_anndata_with_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyrocrl.cli import main

    data = floats()
    table = pd.DataFrame(data.x, [f"cell_{i}" for i in range(data.rows)], data.feature_names)
    table.to_csv(tmp_path / "cells.csv")
    io.to_anndata(data).write_h5ad(tmp_path / "cells.h5ad")
    table.iloc[:5].to_csv(tmp_path / "new.csv")
    np.testing.assert_array_equal(io.read(tmp_path / "cells.h5ad", missing=True).x, data.x)
    run = str(tmp_path / "run")
    fit = ["fit", "vae", "--data", str(tmp_path / "cells.csv"), "--missing", "--latents", "2", "--chains", "1"]
    assert main([*fit, "--epochs", "2", "--draws", "5", "--out", run, "--quiet"]) == 0, capsys.readouterr().err
    csv = str(tmp_path / "new_latents.csv")
    new = ["--data", str(tmp_path / "new.csv"), "--missing", "--csv", csv]
    assert main(["export", run, *new]) == 0, capsys.readouterr().err
    assert np.isfinite(pd.read_csv(csv, index_col=0).select_dtypes("number")).all(None)
    capsys.readouterr()
    assert main(["choose", "--data", str(tmp_path / "cells.csv"), "--missing", "--latents", "2", "--json"]) == 0
    free = {one["model"] for one in json.loads(capsys.readouterr().out)["models"] if not one["lacks"]}
    assert free == set(READ_MISSING["gaussian"])
    assert main(["list"]) == 0
    assert "may be missing (--missing) for ebmf (gaussian), gmm_vae (gaussian), sparse_vae" in capsys.readouterr().out


def test_the_story_leaves_out_what_was_not_measured() -> None:
    """And simulates it where x is not given."""
    program, _, batch = started("vae")
    trace = pyro.poutine.trace(program.story).get_trace(batch.blank())
    assert trace.nodes["x"]["value"].shape == batch.x.shape
