"""Laws that every model of the zoo obeys; a new file in models/ is tested without a new test."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pyro
import pytest
import torch
import xarray as xr

import pyrocrl
from pyrocrl import Data, Fit, Program, Site, zoo
from pyrocrl.claims.card import INTERVENTIONS, TARGETS
from pyrocrl.claims.indeterminacy import topological_order, transitive_closure
from pyrocrl.infer import stories
from pyrocrl.infer.chains import Chains
from pyrocrl.infer.elbo import elbo, is_local, validate
from pyrocrl.judge.diagnose import Outcome
from pyrocrl.lab.calibrate import UNCLAIMED, _compared, _simulated

ROOT = Path(__file__).parent.parent
MODELS = zoo.names()
every_model = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.usefixtures("little_effort")


LESS = {"steps": 100, "search_steps": 60, "starts": 2}  # the laws hold for starts that are far from good, too


def example(name: str, seed: int = 0) -> tuple[Program, Data]:
    """The example, its start made with little effort."""
    program, data = zoo.get(name).example(seed)
    less = {option: most for option, most in LESS.items() if program.config.get(option, 0) > most}
    return type(program)(**program.arguments | less) if less else program, data


def batch_of(program: Program, data: Data, dtype: torch.dtype = torch.float64) -> pyrocrl.Batch:
    return data.tensors(dtype=dtype, moments=not program.uses_rows).whole()


@cache
def apart(name: str) -> Chains:
    """Two chains, each with a start of its own."""
    return Chains.start(*example(name), 2, 5, torch.device("cpu"), torch.float64)


def started(name: str) -> tuple[Program, Data]:
    """The example with its parameters started from the data, in double precision."""
    return copy.deepcopy(apart(name).chain(0)), example(name)[1]


@cache
def fitted(name: str) -> tuple[Fit, Data]:
    """A short fit of the example: long enough to have a posterior, too short to be right."""
    program, data = example(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pyrocrl.fit(program, data, chains=2, epochs=6, seed=1, progress=False), data


@cache
def tree(name: str) -> xr.DataTree:
    """All groups of ten draws a chain of that fit."""
    return fitted(name)[0].posterior(draws=10)


@cache
def drawn(name: str) -> xr.Dataset:
    """Sixty draws a chain from the posterior of that fit."""
    return fitted(name)[0].posterior(draws=60, predictive=False)["posterior"].to_dataset()


# -- the file ----------------------------------------------------------------------------------------------------


@every_model
def test_card_and_file_agree(name: str) -> None:
    program = zoo.get(name)
    card = program.card
    assert card.name == name
    assert json.loads(json.dumps(card.to_dict()))["name"] == name
    text = (ROOT / "models" / f"{name}.py").read_text()
    docstring = text.split('"""')[1]
    for part in ("*Identified:*", "*Differs from the paper in*", "*For a variant, copy this file and change*"):
        assert part in docstring, f"the docstring of {name} lacks {part}"
    assert set(card.settings) <= set(pyrocrl.simulate.names())
    assert set(card.settings) >= {study.setting for study in program.studies if study.simulated}
    if card.status == "stable":
        assert (ROOT / "models" / "results" / f"{name}.json").exists(), "a stable card needs its results"


@every_model
def test_a_variant_begins_with_something_that_is_there(name: str) -> None:
    """What the docstring says to change is in the class, its module, or a module of the package that it names."""
    cls = zoo.get(name)
    module = importlib.import_module(cls.__module__)
    advice = (module.__doc__ or "").strip().split("\n\n")[-1]
    assert advice.startswith("*For a variant, copy this file and change*")
    named = re.findall(r"`([\w.]+)`", advice)
    modules = [importlib.import_module(word) for word in named if word.startswith("pyrocrl.")]
    found = [word for word in named if not word.startswith("pyrocrl.")]
    assert found, "names nothing to change"
    for word in found:
        here = hasattr(cls, word) or hasattr(module, word) or re.search(rf"\b{word}\b", inspect.getsource(cls))
        assert here or any(hasattr(m, word) for m in modules), f"{name} has no {word}"


@every_model
def test_config_is_json_and_rebuilds_the_program(name: str) -> None:
    program, _ = example(name)
    again = type(program)(**json.loads(json.dumps(program.config)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in program.state_dict().items()}


# -- model and guide ---------------------------------------------------------------------------------------------


@every_model
def test_guide_covers_the_latents(name: str) -> None:
    program, data = started(name)
    validate(program, batch_of(program, data))


@every_model
def test_plates_and_shapes_are_as_documented(name: str) -> None:
    program, data = started(name)
    batch = batch_of(program, data)
    with torch.no_grad():
        trace = pyro.poutine.trace(program.guide).get_trace(batch)
        told = pyro.poutine.trace(pyro.poutine.replay(program.model, trace=trace)).get_trace(batch)
    latents = program.latents_count
    sizes = {"data": data.rows, "feature": data.features, "env": len(data.env_names)}
    sizes |= dict.fromkeys(("latent", "parent", "child"), latents)
    for key, site in [*trace.nodes.items(), *told.nodes.items()]:
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        rows = program.uses_rows if key == "x" else "data" in program.sites.get(key, Site(())).dims
        assert is_local(site) == rows, f"{key} and the data plate"
        if is_local(site):
            assert site["value"].shape[0] == len(batch)
    assert program.latents(batch).shape == (data.rows, latents)
    with torch.no_grad():
        found = stories.told(program, batch, drawn_sites := stories.drawn(program, batch))
        sites = stories.values(found)
        assert sites["z"].shape == (data.rows, latents)
        for key, value in sites.items():
            if key in program.sites:
                dims = program.sites[key].dims
                assert value.shape == tuple(sizes.get(d, n) for d, n in zip(dims, value.shape, strict=True)), key
        x = stories.told(program, batch.blank(), drawn_sites).nodes["x"]["value"]
        log_likelihood = stories.log_likelihood(found, drawn_sites)
        mask, graph = program.mask(), program.graph()
    assert x.shape == (data.rows, data.features)
    assert log_likelihood.shape == (data.rows,)
    assert torch.isfinite(log_likelihood).all()
    for value, shape in ((mask, (data.features, latents)), (graph, (latents, latents))):
        if value is not None:
            assert value.shape == shape
            assert ((value >= 0) & (value <= 1)).all()


@every_model
def test_minibatch_objective_is_unbiased(name: str) -> None:
    """The mean over a partition into equal minibatches is the whole objective, given the guide's means as draws."""
    program, data = started(name)
    if not program.uses_rows:
        pytest.skip("the whole data enter each step as moments: there are no minibatches")
    if program.card.needs_series:
        pytest.skip("rows depend on all that come before in their series: what is cut off begins anew")
    rows = data.rows - data.rows % 4
    batch = batch_of(program, data.rows_at(np.arange(rows)))

    def fixed_elbo(part: pyrocrl.Batch) -> float:
        torch.manual_seed(0)  # rows' latents may be given what is drawn of the globals
        guide = pyro.poutine.trace(program.guide).get_trace(part)
        if "component" in guide.nodes:  # which has no mean, and z is given it
            guide.nodes["component"]["value"] = torch.zeros(len(part), program.latents_count).long()
            guide = pyro.poutine.trace(pyro.poutine.replay(program.guide, trace=guide)).get_trace(part)
        for own, site in guide.nodes.items():
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and own != "component":
                site["value"] = site["fn"].mean
        model = pyro.poutine.trace(pyro.poutine.replay(program.model, trace=guide)).get_trace(part)
        guide.compute_log_prob()
        model.compute_log_prob()
        both = [
            sign * s["log_prob_sum"]
            for trace, sign in ((model, 1), (guide, -1))
            for s in trace.nodes.values()
            if s["type"] == "sample" and type(s["fn"]).__name__ != "_Subsample"
        ]
        return float(sum(both))

    with torch.no_grad():
        whole = fixed_elbo(batch)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(3)).chunk(4)
        parts = [fixed_elbo(batch.take(p)) for p in (order if batch.pair is None else batch.parts(rows // 4))]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-6)
    assert np.std(parts) > 0


@every_model
def test_gradients_reach_every_parameter(name: str) -> None:
    program, data = started(name)
    batch = batch_of(program, data)
    trained = {k: v for k, v in program.named_parameters() if v.requires_grad}
    total = {k: torch.zeros_like(v) for k, v in trained.items()}
    torch.manual_seed(0)
    warm = batch.anneal(*(torch.full((), v, dtype=torch.float64) for v in (1.0, 1.0, 0.5)))
    for _ in range(8):
        gradients = torch.autograd.grad(elbo(program, warm), list(trained.values()), allow_unused=True)
        for key, g in zip(trained, gradients, strict=True):
            assert g is not None, f"{key} is not part of the objective"
            assert torch.isfinite(g).all(), key
            total[key] += g.abs()
    for key, g in total.items():
        assert (g > 0).any(), f"no gradient reaches {key}"


# -- chains ------------------------------------------------------------------------------------------------------


@every_model
def test_vmapped_chains_equal_single_ones_given_the_same_noise(name: str) -> None:
    program, data = started(name)
    chains, batch = apart(name), batch_of(program, data)
    with pyro.validation_enabled(False), torch.no_grad():
        torch.manual_seed(11)
        together = chains.map(elbo, batch, randomness="same")
        alone = []
        for program in [chains.chain(c) for c in range(2)]:
            torch.manual_seed(11)
            alone.append(elbo(program, batch))
    assert chains.batched == program.vmappable
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-6)


@every_model
def test_chains_start_apart(name: str) -> None:
    assert any(not torch.equal(v[0], v[1]) for v in apart(name).params.values())


# -- fit, draws, files -------------------------------------------------------------------------------------------


@every_model
def test_deterministic_given_a_seed(name: str) -> None:
    first, data = fitted(name)
    program, _ = example(name)
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second = pyrocrl.fit(program, data, chains=2, epochs=6, seed=1, progress=False)
    assert torch.equal(before, torch.random.get_rng_state()), "fit must leave the caller's random state alone"
    for key, value in first.chains.params.items():
        assert torch.equal(value, second.chains.params[key]), key
    np.testing.assert_array_equal(first.latents(data), second.latents(data))


@every_model
def test_tree_has_real_coordinates_and_arviz_takes_it(name: str) -> None:
    fit, data = fitted(name)
    assert isinstance(tree(name), xr.DataTree)
    groups = {"posterior", "posterior_predictive", "log_likelihood", "sample_stats", "observed_data", "constant_data"}
    assert set(tree(name).children) == groups
    posterior = tree(name)["posterior"]
    latents = fit.program.latents_count
    assert posterior["z"].dims == ("chain", "draw", "data", "latent")
    assert posterior["z"].shape == (fit.chains.count, 10, data.rows, latents)
    assert list(tree(name)["posterior_predictive"].coords["feature"].values) == data.feature_names
    for variable, dims in (("mask", ("feature", "latent")), ("graph", ("parent", "child"))):
        if variable in posterior:
            assert posterior[variable].dims == ("chain", "draw", *dims)
            assert set(np.unique(posterior[variable])) <= {0, 1}
    if "graph" in posterior:
        for draw in posterior["graph"].values.reshape(-1, latents, latents):
            topological_order(draw)  # raises on a cycle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        idata = pyrocrl.to_arviz(tree(name))
        summary = arviz.summary(idata, var_names=["z"], coords={"data": [0, 1]})
    assert len(summary) == 2 * latents


@every_model
def test_prior_predictive_and_loo(name: str) -> None:
    """Draws from the prior have the posterior's layout; ArviZ computes LOO from the rows' log-likelihood."""
    fit, data = fitted(name)
    prior = fit.prior(draws=3)
    assert prior["prior_predictive"]["x"].shape == (1, 3, data.rows, data.features)
    assert np.isfinite(prior["prior_predictive"]["x"]).all()
    assert prior["prior"].to_dataset().sizes["draw"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        loo = arviz.loo(pyrocrl.to_arviz(tree(name)))
    assert np.isfinite(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd)  # as 0.x and as 1.x name it


@every_model
def test_latents_are_aligned_draws_mean(name: str) -> None:
    """Draws of z lie around the stacked posterior mean, in the same order and units."""
    fit, data = fitted(name)
    z = drawn(name)["z"].values
    weighted = np.einsum("c,cdl->dl", fit.weights, z.mean(1))
    mean = fit.latents(data)
    error = z.std(1).mean(0) * np.sqrt((fit.weights**2).sum()) / np.sqrt(60)
    assert (np.abs(weighted - mean) < 8 * error + 1e-3 + 0.05 * mean.std(0)).mean() > 0.99
    spread = np.sqrt(np.einsum("c,cdl->dl", fit.weights, ((z - weighted) ** 2).mean(1)))
    few = np.arange(30)
    found = fit.latents_sd(data.rows_at(few))
    assert found is not None and found.shape == spread[few].shape
    np.testing.assert_allclose(found.mean(0), spread[few].mean(0), rtol=0.15, atol=0.02)


@every_model
def test_new_rows_are_matched_with_the_fit_by_name(name: str) -> None:
    fit, data = fitted(name)
    few = data.rows_at(np.arange(40))
    turned = few.coded_as(feature_names=few.feature_names[::-1])
    np.testing.assert_array_equal(turned.x, few.x[:, ::-1])
    np.testing.assert_array_equal(fit.latents(turned), fit.latents(few))
    np.testing.assert_array_equal(fit.held_out_objective(turned), fit.held_out_objective(few))
    renamed = few.rows_at(slice(None))
    renamed.feature_names = ["other", *few.feature_names[1:]]
    for read in (fit.latents, fit.held_out_objective, lambda rows: pyrocrl.diagnose(fit, rows)):
        with pytest.raises(pyrocrl.InputError, match="feature_names: found "):
            read(renamed)


@every_model
def test_draws_are_as_frequent_as_the_probabilities_say(name: str) -> None:
    """Masks, graphs and inferred targets, chain by chain, after alignment."""
    fit, _ = fitted(name)
    for variable, read in (("mask", "mask"), ("graph", "graph"), ("targets", "targets_matrix")):
        probability = fit.chain_values(read)
        if probability is None:
            assert variable not in drawn(name) or variable == "targets"  # given targets are drawn as they are given
            continue
        error = np.sqrt(probability * (1 - probability) / 60)
        assert (np.abs(drawn(name)[variable].mean("draw") - probability) <= 5 * error + 0.05).all(), variable


@every_model
def test_save_and_load(name: str, tmp_path: Path) -> None:
    fit, data = fitted(name)
    path = fit.save(tmp_path)
    assert not list(tmp_path.glob("*.part"))
    again = pyrocrl.load(path, data)
    np.testing.assert_array_equal(again.latents(data), fit.latents(data))
    np.testing.assert_array_equal(again.weights, fit.weights)
    assert again.names == fit.names
    assert again.meta == json.loads(json.dumps(fit.meta))
    xr.testing.assert_identical(
        again.posterior(draws=2)["posterior"].to_dataset(), fit.posterior(draws=2)["posterior"].to_dataset()
    )
    new = data.rows_at(np.arange(5))
    assert again.latents(new).shape == (5, fit.program.latents_count)


STATES = {"mixture_oracle"}  # latents are states


@every_model
def test_do_sets_its_target_and_moves_its_descendants_alone(name: str) -> None:
    """Under one seed two values differ in the descendants of each draw's graph, by their total effects if linear."""
    fit, data = fitted(name)
    if fit.program.group.mixes:  # no latent to set
        with pytest.raises(pyrocrl.InputError, match="identified one by one"):
            fit.do(data, {"latent_1": 0.7})
        return
    latents, chains = fit.program.latents_count, fit.chains.count
    graph, probable = np.zeros((chains, 1, latents, latents)), np.zeros((chains, latents, latents))
    if "graph" in drawn(name):
        graph, probable = drawn(name)["graph"].values, fit.chain_values("graph")
    reach = transitive_closure(graph.astype(bool))  # (chain, draw, latent, latent)
    k = int(reach.sum((0, 1, 3)).argmax()) if reach.any() else 1  # with as many descendants as there are
    low, high = (fit.do(data, {f"latent_{k}": value}, draws=60, seed=3) for value in (0.7, 5.7))
    assert low["z"].dims == ("chain", "draw", "latent")
    np.testing.assert_allclose(low["z"][..., k], 0.7, rtol=1e-4)
    np.testing.assert_allclose(high["z"][..., k], 5.7, rtol=1e-4)
    assert np.isfinite(low["x"]).all()
    change = (high["z"] - low["z"]).values
    moved = (np.abs(change) > 1e-5 * (1 + np.abs(low["z"].values))).mean(1)  # (chain, latent) share of the draws
    never = ~transitive_closure((probable > 0) | graph.any(1))[:, k]
    never[:, k] = False
    assert (moved[never] == 0).all()
    share = reach[:, :, k].mean(1)
    share[:, k] = 1.0
    error = np.sqrt(share * (1 - share) * (1 / 60 + 1 / 60))
    more = moved - share if name in STATES else np.abs(moved - share)  # a state may stay though its law moves
    assert (more <= 5 * error + 0.05).all()
    if "weight" in drawn(name) and fit.program.config.get("mechanism", "linear") == "linear":
        effect = np.linalg.inv(np.eye(latents) - drawn(name)["weight"].values)[:, :, k]  # (chain, draw, latent)
        error = 5 * effect.std(1) * np.sqrt(1 / 60 + 1 / 60)
        assert (np.abs(change.mean(1) - 5 * effect.mean(1)) <= 5 * error + 5e-3).all()
    with pytest.raises(pyrocrl.InputError, match="latent_99"):
        fit.do(data, {"latent_99": 0.0})


@every_model
def test_verdict_covers_every_claim(name: str) -> None:
    fit, data = fitted(name)
    verdict = pyrocrl.diagnose(fit, data)
    assert [c.what for c in verdict.claims] == [c.what for c in fit.program.claims()]
    for claim in verdict.claims:
        assert claim.verdict in get_args(Outcome)
        assert claim.reason
    assert json.loads(json.dumps(verdict.to_dict()))["model"] == name


# charts of this short fit that its decoder does not invert, or that have more latents than features: z as simulated are
# not those that are read
ROUGH = {"causal_flow", "linear_sem_nonlin", "extrapolation", "overparameterized_ae", "sparse_perturbations"} | {
    "multi_augmentation",
    "weakly_supervised_nonlin",
}


@every_model
def test_a_posterior_is_calibrated_for_data_of_its_own(name: str) -> None:
    """Truths that are draws of a posterior have every rank among its other draws, wherever what is compared is in one
    order and unit: a small calibration without a fit of its own."""
    fit, data = fitted(name)
    ranks: dict[str, list[float]] = {}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        new, truth, among, _ = _simulated(fit, data, 10, rng, seed, True)
        found = _compared(fit, new, truth, among, 39, rng)
        assert all(0 <= p <= 1 and hit in (0, 1) for cells in found["cells"].values() for p, hit in cells)
        assert found["ranks"] or found["cells"]
        for site, own in found["ranks"].items():
            assert min(own) >= 0 and max(own) <= 1, site
            ranks.setdefault(site, []).extend(own)
    compared = {
        site
        for site, what in fit.program.sites.items()
        if site in drawn(name) and not what.discrete and site not in ("unmixing", "slope", "env_weight")
        if set(what.dims).isdisjoint(UNCLAIMED)
    }
    assert set(ranks) >= compared - {"z", "target", "component", "block", "private", "reading", "rest"}
    if name not in ROUGH:
        for site, own in ranks.items():
            assert np.mean(np.abs(np.array(own) - 0.5) < 0.475) > 0.5, site


@every_model
def test_dtype_is_the_recipes(name: str) -> None:
    """Of the fit by the recipe as it stands, and of a fit in the other precision."""
    program, data = example(name)
    own = program.recipe.dtype
    other = torch.float32 if own == torch.float64 else torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = dataclasses.replace(program.recipe, dtype=other)
        changed = pyrocrl.fit(program, data, chains=1, epochs=1, progress=False, recipe=recipe)
    for dtype, fit in ((own, fitted(name)[0]), (other, changed)):
        assert {v.dtype for v in fit.chains.params.values() if v.is_floating_point()} == {dtype}
        with torch.no_grad():
            assert fit.chains.chain(0).latents(batch_of(program, data, dtype)).dtype == dtype


# -- GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@every_model
def test_cpu_equals_cuda(name: str) -> None:
    program, data = started(name)
    chains = Chains.start(program, data, 2, 5, torch.device("cpu"), torch.float64)
    there = Chains.start(program, data, 2, 5, torch.device("cuda"), torch.float64)
    for key, value in chains.params.items():
        torch.testing.assert_close(value, there.params[key].cpu())

    def mean_latents(program: Program, batch: pyrocrl.Batch) -> torch.Tensor:
        return program.latents(batch)

    with torch.no_grad():
        moments = not program.uses_rows
        here = mean_latents(chains.chain(0), data.tensors("cpu", torch.float64, moments=moments).whole())
        away = mean_latents(there.chain(0), data.tensors("cuda", torch.float64, moments=moments).whole())
    torch.testing.assert_close(here, away.cpu(), rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
@every_model
def test_one_fit_on_cuda_without_a_host_sync_in_a_step(name: str) -> None:
    from pyrocrl.infer.loop import Loop

    program, data = example(name)
    fit = pyrocrl.fit(program, data, chains=2, epochs=2, device="cuda", progress=False)
    assert np.isfinite(fit.latents(data)).all()
    with pyro.validation_enabled(False):
        recipe = dataclasses.replace(program.recipe, chains=2)
        loop = Loop(program, data, recipe, 0, torch.device("cuda"), None)
        batch = loop._sample_batch()
        loop._step(loop._annealed(batch, 0.1), 0.1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop._step(loop._annealed(batch, 0.2), 0.2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@every_model
def test_what_programs_declare_has_the_shapes_they_say(name: str) -> None:
    program, data = started(name)
    batch = batch_of(program, data)
    assert program.latents(batch).shape == (len(batch), program.latents_count)
    assert program.batches_count >= 1 and program.intervention_kind in INTERVENTIONS
    assert (program.target_mode in TARGETS) == ("targets" in program.config)
    found, escaped = program.mixture(), program.escaped(batch)
    assert (found is not None) == any("two_components" in claim.needs for claim in program.claims())
    if found is not None:
        weights, mean, scale = found
        assert mean.shape == scale.shape == (len(weights), program.latents_count)
        assert (scale > 0).all() and weights.sum().item() == pytest.approx(1.0)
    assert (escaped is not None) == bool(program.config.get("escapees"))
    noise, action = torch.randn(4, program.latents_count), torch.randn(3, program.actions_count)
    if program.actions_count:
        assert program.predict_action(action, noise).shape == (3, data.features)
    else:
        with pytest.raises(TypeError, match="has no actions"):
            program.predict_action(action, noise)


# -- a new file --------------------------------------------------------------------------------------------------


def test_a_dropped_file_is_listed_contract_tested_and_fitted() -> None:
    """Copy a model under a new name into the folder: it is listed and passes these very tests in a fresh process, which
    are made for what is listed."""
    import subprocess
    import sys

    path = ROOT / "models" / "zz_dropped.py"
    text = (ROOT / "models" / "vae.py").read_text()
    text = text.replace('name="vae"', 'name="zz_dropped"').replace("class VAE", "class Dropped")
    text = text.replace("tuple[VAE, Data]", "tuple[Dropped, Data]").replace("run(VAE)", "run(Dropped)")
    path.write_text(text.replace('status="stable"', 'status="experimental"'))
    try:
        tests = [sys.executable, "-m", "pytest", "-vv", "-x", "-k", "zz_dropped and not gpu", __file__]
        done = subprocess.run(tests, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-3000:]
        assert done.stdout.count("[zz_dropped]") + done.stdout.count("-zz_dropped]") >= 15, done.stdout[-3000:]
    finally:
        path.unlink()
