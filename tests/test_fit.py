"""The loop: chains, annealing, early stop, resume, the fallback, and what it refuses. Posterior weights."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.sparse
import torch
import xarray as xr
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Data, InputError, ModelCard, Program, Recipe, simulate, zoo
from pyrocrl.dists import Normal
from pyrocrl.exact.regression import least_squares
from pyrocrl.infer.chains import Repeated, clip_by_chain, mix
from pyrocrl.infer.elbo import validate
from pyrocrl.infer.fitted import _draw
from pyrocrl.infer.weights import stacking_weights, weighed_once
from pyrocrl.models.vae import VAE


class Slope(Program):
    """x_i ~ N(z_i w, 1), z_i ~ N(0, 1): small enough to know what comes out."""

    card = ModelCard(name="slope", title="Slope", family="test", summary="One latent, one direction.")
    recipe = Recipe(epochs=40, batch_size=50, lr=0.05, patience=None, chains=3)
    own_units = True

    def __init__(self, features: int, latents: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features))
        self.slope = nn.Parameter(torch.zeros(features))
        self.raw = nn.Parameter(torch.zeros(1))

    def story(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", Normal(torch.zeros_like(self.raw), torch.ones_like(self.raw)).to_event(1))
            pyro.sample("x", Normal(z * self.weight, torch.ones_like(self.weight)).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            loc = (batch.x @ self.slope)[:, None]
            pyro.sample("z", Normal(loc, self.raw.exp() + torch.zeros_like(loc)).to_event(1))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return (batch.x @ self.slope)[:, None]


def slope_data(rows: int = 400) -> Data:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 1))
    return Data(z * [2.0, -1.0, 0.5] + rng.normal(size=(rows, 3)), truth={"z": z})


def test_finds_the_maximum_likelihood() -> None:
    """Probabilistic PCA with unit noise: w is the top eigenvector times sqrt(eigenvalue - 1) (Tipping & Bishop)."""
    data = slope_data(2000)
    fit = pyrocrl.fit(Slope(3), data, seed=2, epochs=60, batch_size=200, lr=0.1, progress=False)
    value, vector = np.linalg.eigh(data.x.T @ data.x / len(data))
    expected = vector[:, -1] * np.sqrt(value[-1] - 1)
    weight = fit.chains.params["weight"].detach().numpy()
    for w in weight:
        np.testing.assert_allclose(np.abs(w), np.abs(expected), atol=0.1)
    assert np.corrcoef(fit.latents(data)[:, 0], data.x @ expected)[0, 1] ** 2 > 0.999


def test_fallback_runs_chains_one_after_another_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Slope):
        card = dataclasses.replace(Slope.card, name="stubborn")

        def story(self, batch: Batch) -> None:
            float(self.weight.sum())  # .item() cannot be vmapped
            super().story(batch)

    data = slope_data()
    with caplog.at_level(logging.WARNING, "pyrocrl"):
        fit = pyrocrl.fit(Stubborn(3), data, seed=0, epochs=3, progress=False)
    assert "one after another" in caplog.text
    assert not fit.chains.batched
    assert np.isfinite(fit.latents(data)).all()


def test_a_real_fault_in_a_model_is_not_taken_for_a_lack_of_vmap() -> None:
    class Broken(Slope):
        card = dataclasses.replace(Slope.card, name="broken")

        def story(self, batch: Batch) -> None:
            with self.rows(batch):
                pyro.sample("z", Normal(torch.zeros_like(self.raw), 1.0).to_event(1))
                raise KeyError("my mistake")

    with pytest.raises(KeyError, match="my mistake"):
        pyrocrl.fit(Broken(3), slope_data(), epochs=2, progress=False)


def test_validation_names_the_sites_that_differ() -> None:
    class Forgets(Slope):
        card = dataclasses.replace(Slope.card, name="forgets")

        def guide(self, batch: Batch) -> None:
            pass

    data = slope_data()
    with pytest.raises(ValueError, match=r"not in the guide \['z'\]"):
        validate(Forgets(3), data.tensors())


def test_early_stop() -> None:
    options = {"batch_size": 400, "lr": 0.1, "patience": 20, "check_every": 5}
    fit = pyrocrl.fit(Slope(3), slope_data(), epochs=400, progress=False, **options)
    assert fit.meta["epochs"] < 400


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    data = simulate.draw("moran2022", seed=3, rows=200)
    program = VAE(data.features, 2, hidden=16)
    whole = pyrocrl.fit(program, data, chains=3, epochs=12, seed=4, progress=False)

    class Stop(Exception):
        pass

    def stop(epoch: int) -> None:
        if epoch == 7:
            raise Stop

    options = {"chains": 3, "epochs": 12, "seed": 4, "progress": False, "out": tmp_path, "checkpoint_every": 2}
    with pytest.raises(Stop):
        pyrocrl.fit(program, data, on_epoch=stop, **options)
    resumed = pyrocrl.fit(program, data, resume=True, **options)
    for name, value in whole.chains.params.items():
        assert torch.equal(value, resumed.chains.params[name]), name
    np.testing.assert_array_equal(whole.history, resumed.history)
    np.testing.assert_array_equal(whole.latents(data), resumed.latents(data))


def test_a_finished_fit_goes_on_and_gets_no_worse(tmp_path: Path) -> None:
    program, data = VAE.example(0)
    first = pyrocrl.fit(program, data, chains=2, epochs=20, seed=0, progress=False)
    whole = pyrocrl.fit(program, data, epochs=20, seed=0, progress=False, start=first)
    assert (whole.scores > first.scores + 0.02).all() and whole.meta["epochs"] == 40
    assert len(whole.history) == 2 * len(first.history) and whole.history[-1, 0] == 40
    np.testing.assert_allclose(whole.history[: len(first.history)], first.history)

    def stop(epoch: int) -> None:
        if epoch == 12:
            raise KeyboardInterrupt

    again = {"epochs": 20, "seed": 0, "progress": False, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        pyrocrl.fit(program, data, start=first, on_epoch=stop, **again)
    resumed = pyrocrl.fit(program, data, resume=True, **again)
    np.testing.assert_array_equal(whole.history, resumed.history)
    np.testing.assert_array_equal(whole.latents(data), resumed.latents(data))


def test_only_the_same_fit_goes_on() -> None:
    program, data = VAE.example(0)
    fit = pyrocrl.fit(program, data, chains=2, epochs=1, seed=0, progress=False)
    for more, line in (
        ({"chains": 3}, "start: found a fit of 2 chains, and chains=3; allowed: as many chains"),
        ({"resume": True, "out": "nowhere"}, "start: found with resume=True"),
        ({"seed": 1}, "start: found a fit with seed 0; allowed: the same seed as before (1)"),
    ):
        with pytest.raises(InputError, match=re.escape(line)):
            pyrocrl.fit(program, data, epochs=1, progress=False, start=fit, **more)
    with pytest.raises(InputError, match="start: found a fit with other data"):
        pyrocrl.fit(program, data.rows_at(np.arange(100)), epochs=1, seed=0, progress=False, start=fit)


def test_the_seed_and_nothing_else_decides() -> None:
    data = slope_data()
    torch.manual_seed(1)
    one = pyrocrl.fit(Slope(3), data, epochs=3, seed=5, progress=False)
    torch.manual_seed(2)
    two = pyrocrl.fit(Slope(3), data, epochs=3, seed=5, progress=False)
    other = pyrocrl.fit(Slope(3), data, epochs=3, seed=6, progress=False)
    assert torch.equal(one.chains.params["weight"], two.chains.params["weight"])
    assert not torch.equal(one.chains.params["weight"], other.chains.params["weight"])


def test_a_chain_does_not_feel_the_others() -> None:
    """Gradients are clipped by chain: one chain's large gradient leaves the others' alone."""
    small, large = torch.full((3, 3), 0.1), torch.zeros(3, 4)
    large[1], large[2, 0] = 1e6, torch.nan
    norm = clip_by_chain([small, large], 1.0, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(small[0], torch.full((3,), 0.1))
    assert norm[1] > 1e6
    assert float(torch.cat([small[1], large[1]]).norm()) == pytest.approx(1.0)
    assert not small[2].any()
    assert not large[2].any()


def test_annealing_reaches_its_ends() -> None:
    recipe = Recipe(kl_warmup=0.4, temperature=(1.0, 0.1), temperature_span=0.5)
    assert [recipe.kl_weight_at(p) for p in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert [recipe.temperature_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.1, 0.1])
    assert recipe.annealed_after() == 0.5


def test_budgets_are_in_steps() -> None:
    recipe = Recipe(epochs=40, least_steps=100, most_steps=400, batch_size=50)
    lengths = {passes: recipe.length(passes) for passes in (1, 5, 20, 300, 900)}
    assert lengths == {1: (100, 1), 5: (40, 5), 20: (20, 20), 300: (2, 300), 900: (1, 400)}
    with pytest.raises(pyrocrl.InputError, match="most_steps"):
        Recipe(least_steps=10, most_steps=9)


def test_a_large_table_costs_no_more_steps_and_epochs_asked_for_are_kept_to() -> None:
    data, seen = slope_data(1000), []
    recipe = Recipe(epochs=40, most_steps=12, batch_size=100, patience=None, chains=1)
    fit = pyrocrl.fit(Slope(3), data, recipe=recipe, progress=False, on_epoch=seen.append)
    assert (seen, fit.meta["epochs"]) == ([1, 2], 2)  # of 9 steps each
    assert pyrocrl.fit(Slope(3), data, epochs=3, recipe=recipe, progress=False).meta["epochs"] == 3


def test_the_time_to_be_expected_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyrocrl.infer.loop.MEASURED", 0.0)
    pyrocrl.fit(Slope(3), slope_data(), epochs=2, chains=2)
    assert "about" not in capsys.readouterr().err  # it is over at once
    monkeypatch.setattr("pyrocrl.infer.loop.LONG", 0.0)
    pyrocrl.fit(Slope(3), slope_data(), epochs=2, chains=2)
    assert capsys.readouterr().err.count("slope: about 0 s for 14 steps of 2 chains") == 1
    pyrocrl.fit(Slope(3), slope_data(), epochs=2, chains=2, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("many, threads", [(10_000, 1), (100, 2)])
def test_small_fits_run_on_one_thread_and_leave_the_setting(
    many: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrocrl.infer.fit.MANY", many)
    """Those of torch, and those of the algebra behind numpy and scipy, that starts are read off by."""

    def counts() -> set[int]:
        return {torch.get_num_threads(), *(pool["num_threads"] for pool in pools().info())}

    def pools() -> ThreadpoolController:
        return ThreadpoolController().select(user_api="blas")

    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        with pools().limit(limits=2):
            pyrocrl.fit(Slope(3), slope_data(), epochs=1, progress=False, on_epoch=lambda _: seen.append(counts()))
            assert (seen, counts()) == ([{threads}], {2})
    finally:
        torch.set_num_threads(before)


def test_a_large_sparse_table_is_made_dense_by_batch_and_fits_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    data = simulate.draw("perturb_seq", seed=100, rows=300, features=20, latents=2)
    data.x = scipy.sparse.csr_matrix(data.x)
    program, dense = pyrocrl.build("sparse_vae", data, latents=2), []
    monkeypatch.setattr(Data, "tensors", _noting(Data.tensors, dense))
    options = {"epochs": 2, "chains": 2, "batch_size": 32, "progress": False}
    whole = pyrocrl.fit(program, data, **options)
    at_once = [dense.count(270), dense.count(32)]  # training rows, rows of a step
    dense.clear()
    monkeypatch.setattr("pyrocrl.infer.loop.DENSE", 1000)
    by_batch = pyrocrl.fit(program, data, **options)
    assert [dense.count(270), dense.count(32)] == [at_once[0] - 1, 2 * (270 // 32) + 1]  # one to validate on
    np.testing.assert_array_equal(by_batch.history, whole.history)


def _noting(method: Callable[..., Batch], seen: list[int]) -> Callable[..., Batch]:
    def noted(self: Data, *args: Any, **options: Any) -> Batch:
        seen.append(self.rows)
        return method(self, *args, **options)

    return noted


def test_seeds_do_not_collide() -> None:
    seen = {mix(seed, chain, stream) for seed in range(20) for chain in range(20) for stream in range(5)}
    assert len(seen) == 2000


def test_predictive_draws_hold_no_rows_that_are_not_shown() -> None:
    fit = pyrocrl.fit(Slope(3), slope_data(), epochs=1, chains=1, progress=False)
    with torch.no_grad(), pyro.validation_enabled(False):
        drawn = _draw(fit.programs()[0], fit.batch_of(slope_data()), np.arange(0, 400, 5), True)
    assert drawn["posterior_predictive"]["x"].shape == (80, 3)


@pytest.mark.parametrize("name", ["linear_sem_lin", "spike_slab_fa"])
def test_draws_are_the_same_without_their_density(name: str) -> None:
    program, data = zoo.get(name).example(0)
    fit = pyrocrl.fit(program, data, chains=2, epochs=2, progress=False)
    whole, light = (fit.posterior(5, predictive=False, density=density) for density in (True, False))
    assert "lp" in whole["sample_stats"] and "lp" not in light["sample_stats"]
    assert whole["posterior"].to_dataset().identical(light["posterior"].to_dataset())
    assert pyrocrl.to_arviz(light)["posterior"].sizes["draw"] == 5


def test_what_branches_on_its_draws_is_called_once_after_another() -> None:
    repeated = Repeated(True)
    torch.manual_seed(0)
    drawn = repeated(lambda: {"flip": torch.bernoulli(torch.full((5,), 0.5))}, 100)["flip"]
    assert repeated.batched and drawn.shape == (100, 5) and 0.4 < drawn.mean() < 0.6
    branching = repeated(lambda: torch.randn(()) if torch.rand(()) < 0.5 else torch.zeros(()), 100)
    assert not repeated.batched and 20 < (branching == 0).sum() < 80
    rng, others = np.random.default_rng(0), Repeated(True)
    noise = others(lambda: (torch.randn(()), torch.tensor(rng.normal())), 100)[1]
    assert not others.batched and len(noise.unique()) == 100, "NumPy's noise is not shared by draws"


@pytest.mark.parametrize("name", ["vae", "sparse_vae", "multiview"])
def test_draws_made_at_once_have_the_law_of_single_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = zoo.get(name).example(0)
    fit = pyrocrl.fit(program, data, chains=1, epochs=2, progress=False)
    trees = []
    for step in (pyrocrl.infer.fitted.AT_ONCE, 1):
        monkeypatch.setattr(pyrocrl.infer.fitted, "AT_ONCE", step)
        trees.append(fit.posterior(160, data.rows_at(np.arange(40))))
    for group, site in [("posterior", n) for n in trees[0]["posterior"]] + [("posterior_predictive", "x")]:
        own, single = (tree[group][site].values[0].astype(float).reshape(160, -1) for tree in trees)
        error = np.sqrt((own.var(0) + single.var(0)) / 160) + 1e-9
        many = own.shape[1] >= 10
        assert (np.abs(own.mean(0) - single.mean(0)) / error).mean() < (1.5 if many else 4), site
        assert np.median(own.std(0)) == pytest.approx(np.median(single.std(0)), rel=0.2 if many else 0.5, abs=1e-9), (
            site
        )


def test_draws_are_held_once() -> None:
    """A mask of many features in a byte each; beside the tree no more than one chain's draws."""
    data = Data(np.random.default_rng(0).normal(size=(40, 300)))
    program = pyrocrl.build("sparse_vae", data, latents=8)
    fit = pyrocrl.fit(program, data, chains=4, epochs=1, progress=False)
    tracemalloc.start()
    tree = fit.posterior(draws=100, predictive=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tree["posterior"]["mask"].dtype == np.int8
    whole = sum(v.nbytes for group in tree.children.values() for v in group.data_vars.values())
    assert whole < peak < 1.5 * whole


def test_rows_are_thinned_where_all_draws_would_read_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    data = slope_data()
    fit = pyrocrl.fit(Slope(3), data, epochs=1, chains=2, progress=False)
    monkeypatch.setattr(pyrocrl.infer.fitted, "MOST_READ", 400 * 3 * 2 * 5 // 4)
    monkeypatch.setattr(pyrocrl.infer.fitted, "MOST_PREDICTED", 50 * 3 * 2 * 5)
    tree = fit.posterior(draws=5)
    assert tree.attrs["thin"] == 4
    np.testing.assert_array_equal(tree["log_likelihood"]["data"], np.arange(0, 400, 4))
    np.testing.assert_array_equal(tree["posterior_predictive"]["data"], np.arange(0, 400, 8))
    assert tree["constant_data"]["latent_mean"].shape == (400, 1)
    own, known = tree["posterior_predictive"]["x"], tree["observed_data"]["x"].sel(data=np.arange(0, 400, 8))
    mean = own.mean(("chain", "draw")).values
    assert np.corrcoef(mean[:, 0], known.values[:, 0])[0, 1] > 0.5  # each row's own draws


def test_stacking_prefers_the_better_chain_and_splits_equal_ones() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(size=300)
    weights = stacking_weights(np.stack([good, good, good - 3]))
    np.testing.assert_allclose(weights, [0.5, 0.5, 0.0], atol=1e-3)
    # two chains each right on half of the rows are better together
    half = np.where(np.arange(300) < 150, 0.0, -5.0)
    np.testing.assert_allclose(stacking_weights(np.stack([half, half[::-1]])), [0.5, 0.5], atol=1e-3)


def test_chains_of_less_evidence_than_its_error_explains_weigh_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four chains: 40 nats less in every part of the rows alike are told, as many by chance are not; rows kept out then
    decide among those that are left. Exact evidence is weighed as it stands."""
    fit = pyrocrl.fit(Slope(3), slope_data(), epochs=1, chains=4, progress=False)
    noise = np.random.default_rng(0).normal(0, 2, (4, 200))  # 200 parts: an error of 28 nats, of a difference of 40
    noise -= noise.mean(1, keepdims=True)
    less = np.array([0.0, 40.0, 200.0, 0.5]) / 200
    fit.__dict__["evidence_parts"] = noise - less[:, None]
    np.testing.assert_allclose(fit.log_evidence.max() - fit.log_evidence, [0, 40, 200, 0.5], atol=1e-8)
    assert ((fit.evidence_error > 35) & (fit.evidence_error < 45)).tolist() == [False, True, True, True]
    kept = np.array([True, True, False, True])
    np.testing.assert_array_equal(fit.weights[kept], stacking_weights(fit.held_out.numpy()[kept]))
    assert fit.weights[2] == 0

    wide = copy.copy(fit)
    wide.__dict__.pop("weights")
    monkeypatch.setattr(Slope, "evidence_spread", lambda self: 100.0)  # nats that chains differ by for other reasons
    assert wide.weights[2] > 0
    monkeypatch.undo()

    exact = copy.copy(fit)
    exact.__dict__.pop("weights")
    exact.__dict__["evidence_parts"] = fit.log_evidence[:, None]
    assert exact.weights[3] == pytest.approx(np.exp(-0.5) * exact.weights[0]) and exact.weights[1] < 1e-15


def test_a_program_without_card_story_or_guide_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a `card`"):
        type("NoCard", (Program,), {"story": Slope.story, "guide": Slope.guide})
    with pytest.raises(TypeError, match="needs `story"):
        type("NoStory", (Program,), {"card": Slope.card, "model": Slope.story, "guide": Slope.guide})
    with pytest.raises(TypeError, match="needs `guide"):
        type("NoGuide", (Program,), {"card": Slope.card, "story": Slope.story})
    claim = pyrocrl.Claim("latents", ("scale",), when={"depth": 2})
    reference = pyrocrl.Reference("A", 2020, "B", "C", "https://d.org")
    card = dataclasses.replace(Slope.card, claims=(claim,), references=(reference,))
    with pytest.raises(TypeError, match="a claim when 'depth', which is no option"):
        type("NoDepth", (Slope,), {"card": card})


def test_least_squares_is_bitwise_repeatable() -> None:
    torch.manual_seed(0)
    design, value = torch.randn(901, 84), torch.randn(901, 10)
    first = least_squares(design, value)
    torch.testing.assert_close(design.mT @ (value - design @ first), torch.zeros_like(first), atol=1e-3, rtol=0)
    for size in range(1, 40_000, 400):
        apart = torch.empty(size)  # moves what is allocated next
        assert torch.equal(least_squares(design.clone(), value.clone()), first), len(apart)


def test_draws_that_arviz_sees_are_as_many_as_chains_weigh() -> None:
    """Means of equally weighted draws are those of weighted chains; a fitted chain's draws stand together."""
    draws = np.arange(3 * 40, dtype=float).reshape(3, 40)
    weights = np.array([0.75, 0.25, 0.0])
    coords = {"chain": np.arange(3), "draw": np.arange(40)}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"w": (("chain", "draw"), draws)}, coords),
            "sample_stats": xr.Dataset({"lp": (("chain", "draw"), draws), "chain_weight": ("chain", weights)}, coords),
            "constant_data": xr.Dataset({"env": ("data", ["a", "b"])}),
        }
    )
    out = weighed_once(tree)
    w = out["posterior"]["w"]
    assert w.dims == ("chain", "draw") and w.shape == (3, 40)
    assert [float((w < 40).mean()), float((w >= 80).mean())] == [0.75, 0.0]
    assert abs(float(w.mean()) - weights @ draws.mean(1)) < 0.5
    assert (np.diff(w.values.ravel()) >= 0).all() and np.unique(w).size == 70  # 40 of the first chain, 30 of the other
    assert "chain_weight" not in out["sample_stats"] and "env" in out["constant_data"]
    equal = tree["sample_stats"].to_dataset().assign(chain_weight=("chain", np.full(3, 1 / 3)))
    tree["sample_stats"] = xr.DataTree(equal)
    assert weighed_once(tree) is tree
