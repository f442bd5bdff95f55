"""The story of every model: what ties it to what is fitted, that it simulates and can be drawn as a diagram."""

from __future__ import annotations

import importlib
import re
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch.overrides import TorchFunctionMode

import pyrocrl
from pyrocrl import Batch, Data, Program, simulate, zoo
from pyrocrl.infer import stories
from pyrocrl.infer.elbo import elbo, guide_trace, is_local, latent_values, sample_sites
from pyrocrl.parts.latent_sem import LatentSEM
from pyrocrl.program import PLATES
from pyrocrl.show.story import relations

MODELS = zoo.built_in()
UNTRAINED = ("causal_flow",)  # the example's decoder is trained for sixty steps: x is far from f(z)


def simulated(kind: str) -> str:
    """The setting's kind of intervention: perfect ones are soft, too."""
    return "perfect" if kind == "soft" else kind


def linear(kind: str, **options: Any) -> tuple[Program, Data]:
    mixing = {"mixing": "linear", "features": 6, "latents": 3, "samples": 300}
    data = simulate.draw("zhang2023", 0, mechanism="linear", intervention=simulated(kind), **mixing)
    return pyrocrl.build("linear_sem_lin", data, latents=3, intervention=kind, **options), data


def latent(model: str, kind: str, mechanism: str, **options: Any) -> tuple[Program, Data]:
    mixing = {"mixing": "linear", "features": 6, "latents": 3, "samples": 300}
    data = simulate.draw("zhang2023", 0, intervention=simulated(kind), **mixing)
    return pyrocrl.build(model, data, latents=3, intervention=kind, mechanism=mechanism, hidden=8, **options), data


def heavy(kind: str) -> tuple[Program, Data]:
    data = simulate.draw("squires2020", 0, samples=60, latents=4, settings=2, intervention=kind, noise="rows")
    return pyrocrl.build("observed_dag", data, intervention=kind, noise="student"), data


def trained() -> tuple[Program, Data]:
    """`linear_sem_nonlin` with a decoder that is near its data: after the forty steps of its example it isn't."""
    data = simulate.draw("buchholz2023_hard", 0, samples=200, latents=3)
    return pyrocrl.build("linear_sem_nonlin", data, width=32, steps=400), data


pytestmark = pytest.mark.usefixtures("little_effort")
CASES = {name: (lambda name=name: zoo.get(name).example(0)) for name in MODELS} | {"linear_sem_nonlin": trained}
CASES |= {f"linear_sem_lin {kind}": (lambda kind=kind: linear(kind)) for kind in ("soft", "variance", "shift")}
CASES |= {
    f"discrepancy_vae {kind} {mechanism}": (
        lambda kind=kind, mechanism=mechanism: latent("discrepancy_vae", kind, mechanism)
    )
    for kind in ("perfect", "soft", "variance", "shift")
    for mechanism in ("linear", "relu")
}
CASES |= {f"observed_dag student {kind}": (lambda kind=kind: heavy(kind)) for kind in ("perfect", "shift")}
CASES["discrepancy_vae escapees"] = lambda: latent("discrepancy_vae", "perfect", "linear", escapees=True)


@cache
def started(case: str) -> tuple[Program, Batch]:
    """A case's program, started from its data in float64 with its parameters moved, and all rows of those data."""
    torch.manual_seed(0)  # networks are drawn as the program is built
    program, data = CASES[case]()
    program = program.double()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
        for module in program.modules():
            if isinstance(module, LatentSEM) and module.unknown:
                # the model takes the expectation over targets: at one, where it is certain
                hard = torch.cat([module.hard_targets(), 1 - module.hard_targets().sum(1, keepdim=True)], 1)
                module.target_logits.copy_(80.0 * hard)
    return program, data.tensors(dtype=torch.float64, moments=not program.uses_rows).whole()


def conditioned(program: Any, batch: Batch, sites: dict[str, torch.Tensor], **kept: torch.Tensor) -> Any:
    trace = pyro.poutine.trace(pyro.poutine.condition(program, data=sites)).get_trace(batch, **kept)
    trace.compute_log_prob()
    return trace


def total(trace: Any, rows: bool) -> float:
    """Log-density of all sites, or of those in the data plate."""
    return float(sum(site["log_prob_sum"] for _, site in sample_sites(trace) if is_local(site) or not rows))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_story_less_recover_is_model(case: str) -> None:
    """Besag's candidate identity, at draws of `recover` and at moved values. Where something is plugged in, of rows."""
    program, batch = started(case)
    torch.manual_seed(1)
    with pyro.validation_enabled(False):
        plugged = program.plugged(batch)
        for _ in range(2):
            kept = latent_values(guide_trace(program, batch))
            fitted = total(conditioned(program.model, batch, kept), bool(plugged))
            drawn = conditioned(program.recover, batch, plugged, **kept)
            lost = {n: s["value"] for n, s in sample_sites(drawn) if n not in plugged and (is_local(s) or not plugged)}
            for moved in (False, True):
                if moved:
                    lost = {name: elsewhere(value, drawn.nodes[name]["fn"]) for name, value in lost.items()}
                told = {**plugged, **kept, **lost}
                known = total(conditioned(program.recover, batch, {**plugged, **lost}, **kept), bool(plugged))
                story = stories.told(program, batch, told)
                story.compute_log_prob()
                assert total(story, bool(plugged)) - known == pytest.approx(fitted, rel=1e-10, abs=1e-8), (case, moved)


def elsewhere(value: torch.Tensor, law: Any) -> torch.Tensor:
    """Another value of the law's support: a real one is moved, a positive one rescaled, others stay as drawn."""
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(law, pyro.distributions.Delta):
        return value
    if support is torch.distributions.constraints.real:
        return value + 0.1 * torch.randn_like(value)
    if support is torch.distributions.constraints.unit_interval:
        return value.pow(0.9)
    return value * (1 + 0.1 * torch.rand_like(value)) if "positive" in repr(support).lower() else value


MAKES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "randperm", "scalar_tensor", "zeros"}
READS = {"cpu", "from_numpy", "item", "nonzero", "numpy", "tensor", "tolist", "__bool__", "__float__", "__index__"}


class HostWaits(TorchFunctionMode):
    """Notes what would wait for the host on an accelerator: values read, sent there, or made on no named device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        sent = name == "as_tensor" and not isinstance(args[0], torch.Tensor)
        if sent or name in READS or (name in MAKES and kwargs.get("device") is None):
            callers = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_stack(limit=4)[:-1]]
            if not callers[-1].startswith("subsample_messenger"):  # Pyro's plates keep a zero on the host
                self.seen.append(f"{name} at {' > '.join(callers)}")
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_never_waits_for_the_host(name: str) -> None:
    program, batch = started(name)
    with pyro.validation_enabled(False):
        elbo(program, batch)  # what is sent once is sent
        with HostWaits() as waits:
            value = elbo(program, batch)
    assert not waits.seen, waits.seen
    assert torch.isfinite(value)
    with HostWaits() as waits:
        torch.eye(2).sum().item()
    assert [seen.split()[0] for seen in waits.seen] == ["eye", "item"]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_plugged_in_is_said_on_the_card(name: str) -> None:
    program, batch = started(name)
    assert bool(program.plugged(batch)) <= bool(program.card.approximate)
    if not program.plugged(batch) and program.card.approximate:  # exact in the example, approximate for some options
        exact = (
            "linear_sem_lin",
            "causal_flow",
            "observed_dag",
            "invariant_prediction",
            "weakly_supervised_pairs",
            "weakly_supervised_nonlin",  # but that its network is kept
            "cross_modal",
            "snica_lin",
            "citris",
            "biscuit",
            "ebmf",  # but that the number of latents is settled at the start
            "mixture_oracle",  # but for that, and numbers of states
            "ssl_fa",
            "spike_slab_fa",  # but of counts
            "sparse_dictionary",  # but of counts
            "neuro_causal_fa",  # but that draws of masks rest on second-order evidence
            "additive_fa",  # but that the number of latents is settled at the start
            "concepts",
            "mechanism_sparsity",  # but that mechanisms are drawn given latents as they are read
            "independent_support",  # but that the level of features is settled at the start
            "ima",  # but that laws of latents are settled at the start, and the guide is normal about modes
            "structural_sparsity_ica",  # but that the guide is normal about modes
        )
        assert name in exact


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_its_story_recovers_what_it_lost(name: str) -> None:
    """The story's latent sites are those of the model, of `recover`, and those that x determines."""
    program, batch = started(name)
    sites = {n for n, s in sample_sites(pyro.poutine.trace(program.story).get_trace(batch)) if not s["is_observed"]}
    with torch.no_grad():
        kept = latent_values(guide_trace(program, batch))
        lost = program.recovered(batch, kept)
    latents = {f"z_{k}" for k in range(program.latents_count)}
    assert sites - latents <= kept.keys() | lost.keys()
    assert (lost.keys() - {"y"}) - sites <= {"z"}
    assert (type(program).model is Program.model) == (not lost)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_density_of_a_draw_is_the_objective(name: str) -> None:
    """log p - log q of a draw, x decoded once, is the one-sample ELBO of that draw where `recover` is exact."""
    program, batch = started(name)
    with pyro.validation_enabled(False):
        if program.plugged(batch):
            return
        torch.manual_seed(3)
        lp = float(stories.drawn_and_told(program, batch)[2])
        torch.manual_seed(3)
        assert lp == pytest.approx(float(elbo(program, batch)), rel=1e-9), name


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_story_without_x_simulates(name: str) -> None:
    """Finite rows, another draw each time; conditioning on the posterior's global sites gives rows like the data's."""
    program, batch = started(name)
    torch.manual_seed(2)
    with pyro.validation_enabled(False):
        first, second = (stories.told(program, batch.blank(), {}).nodes["x"]["value"] for _ in range(2))
        assert first.shape == second.shape == batch.x.shape
        assert torch.isfinite(first).all() and not torch.equal(first, second)
        draws = [
            stories.told(program, batch.blank(), stories.drawn(program, batch, local=False)).nodes["x"]["value"]
            for _ in range(4)
        ]
    if not program.new_rows or name in UNTRAINED:
        return
    new = torch.cat(draws)
    env = batch.env.repeat(4)
    for e in range(int(batch.env.max()) + 1):  # in every environment, to within its own spread
        seen, made = batch.x[batch.env == e], new[env == e]
        assert ((made.mean(0) - seen.mean(0)).abs() < 0.8 * seen.std(0) + 1e-6).float().mean() > 0.75, e
        ratio = (made.std(0) / seen.std(0)).log().abs()
        assert (ratio < 0.7).float().mean() > 0.75, e


@pytest.mark.parametrize("name", MODELS)
def test_the_diagram_holds_what_the_docstring_names(name: str) -> None:
    """`pyro.render_model` draws the story; its plates have documented names, and their sites stand in the docstring."""
    program, batch = started(name)
    pytest.importorskip("graphviz")
    few = batch.take(torch.arange(min(8, len(batch)))).whole()
    with pyro.validation_enabled(False):
        assert "digraph" in str(pyro.render_model(program.story, model_args=(few,)))
        found = relations(program, few)
    plates = set(found["plate_sample"])
    assert "data" in plates and plates <= set(PLATES), plates
    assert "x" in found["plate_sample"]["data"] and "x" in found["observed"]
    text = importlib.import_module(type(program).__module__).__doc__ or ""
    for plate in plates - {"data"}:
        assert re.search(rf"\b{plate}\b", text), f"plate {plate} is not in the docstring of {name}"
    for site, law in found["sample_dist"].items():
        if law == "Deterministic":
            continue
        word = "z_" if re.fullmatch(r"z_\d+", site) else rf"{site}(_|\b)"
        assert re.search(rf"\b{word}", text), f"site {site} is not in the docstring of {name}"


@pytest.mark.parametrize("name", MODELS)
def test_a_story_fits_on_a_screen(name: str) -> None:
    import inspect

    assert len(inspect.getsource(zoo.get(name).story).splitlines()) <= 45


def test_relations_of_the_story_tell_what_depends_on_what() -> None:
    """In the diagram of `linear_sem_lin` features depend on latents, latents on equations, those on the graph."""
    program, batch = started("linear_sem_lin")
    with pyro.validation_enabled(False):
        found = relations(program, batch.take(torch.arange(5)).whole())["sample_sample"]
    assert "order" in found["graph"] and "variance" in found["slope"]
    assert {"slope", "variance", "level"} <= set(found["z_0"]) | set(found["z_1"]) | set(found["z_2"])
    assert any(f"z_{k}" in found["x"] for k in range(3))


def test_expected_features_agree_with_the_mixing() -> None:
    """E[x | z] by conditioning the story is the decoder's linear map, at any z."""
    program, batch = started("linear_sem_lin")
    with torch.no_grad(), pyro.validation_enabled(False):
        sites = stories.drawn(program, batch)
        loadings = stories.values(stories.told(program, batch, sites))["loadings"]
        z = torch.randn(len(batch), 3, dtype=torch.float64)
        got = stories.expected(program, batch, {**sites, "z": z})
    np.testing.assert_allclose(got, z @ loadings.mT + program.offset, atol=1e-9)
