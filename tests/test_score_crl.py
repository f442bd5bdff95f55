"""`score_crl`: recovery on small data, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch

import pyrocrl
from pyrocrl import Batch, InputError, simulate
from pyrocrl.infer import stories
from pyrocrl.infer.elbo import guide_trace, is_local, latent_values, sample_sites
from pyrocrl.models.score_crl import ScoreCRL


def test_quadratic_latents_behind_a_linear_mixing() -> None:
    data = simulate.draw("varici2024_quadratic", 100, samples=2000, latents=3, features=6)
    program = pyrocrl.build("score_crl", data)
    fit = pyrocrl.fit(program, data, chains=2, epochs=120, seed=0, progress=False)
    found = pyrocrl.evaluate(fit, data)
    assert found["mcc"] >= 0.97 > found["pca_mcc"]
    assert found["shd"] <= 1 < found["shd_empty"]


def test_claims_follow_the_transform() -> None:
    twice = [[0, 0], *[[1, 0]] * 2, *[[0, 1]] * 2]
    linear, general = ScoreCRL(4, 2, twice), ScoreCRL(4, 2, twice, targets="relabelled", transform="general")
    assert linear.claims()[0].up_to == ("scale", "shift")
    assert general.claims()[0].up_to == ("permutation", "elementwise")
    assert "two_interventions_per_latent" in general.claims()[0].needs


def log_prob_of(method: Callable, batch: Batch, values: dict) -> float:
    """Log density of rows at these values of a program's sites."""
    trace = pyro.poutine.trace(pyro.poutine.condition(method, data=stories.spread(values))).get_trace(batch)
    trace.compute_log_prob()
    return float(sum(s["log_prob_sum"] for _, s in sample_sites(trace) if is_local(s)))


@pytest.mark.parametrize("transform", ["linear", "general"])
def test_rows_given_what_is_plugged_in_are_the_models(transform: str) -> None:
    """And the order and graph that are plugged in have a density; another graph gives other rows."""
    setting = {"linear": "varici2024_quadratic", "general": "varici2024_general"}[transform]
    data = simulate.draw(setting, 0, samples=60, latents=2, features=4)
    program = ScoreCRL.from_data(data, transform=transform, steps=10).double()
    batch = data.tensors(dtype=torch.float64)
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        for parameter in program.parameters():  # networks start linear
            parameter.add_(0.1 * torch.randn_like(parameter))
        kept = latent_values(guide_trace(program, batch))
        plugged = program.plugged(batch)
        model = log_prob_of(program.model, batch, kept)
        assert log_prob_of(program.story, batch, {**kept, **plugged}) == pytest.approx(model, abs=1e-8)
        other = {**plugged, "graph": torch.zeros_like(plugged["graph"])}
        assert log_prob_of(program.story, batch, {**kept, **other}) != pytest.approx(model, abs=1e-3)
        trace = pyro.poutine.trace(pyro.poutine.condition(program.story, data={**plugged})).get_trace(batch.blank())
        trace.compute_log_prob()
        half = {"order": 0.5, "graph": 0.5}  # two orders, one possible edge
        for name, chance in half.items():
            assert float(trace.nodes[name]["log_prob_sum"].exp()) == pytest.approx(chance)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"target_matrix": [[0, 0], [1, 0]]}, "targets"),
        ({"target_matrix": [[1, 0], [0, 1]]}, "targets"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "transform": "general"}, "targets"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "score": "flow"}, "score"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "edge_probability": 1.0}, "edge_probability"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "steps": 0}, "steps"),
        ({"target_matrix": [[0], [1]]}, "target_matrix"),
    ],
)
def test_bad_options_are_refused(options: dict, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        ScoreCRL(4, 2, **options)


def test_unknown_targets_and_few_rows_are_refused() -> None:
    data = simulate.draw("varici2024_quadratic", 0, samples=50, latents=2, features=4)
    with pytest.raises(InputError, match="targets"):
        pyrocrl.build("score_crl", data, targets="unknown")
    few = data.rows_at(np.r_[0:50, 50:53, 100:150])
    with pytest.raises(InputError, match="target_0"):
        pyrocrl.fit(pyrocrl.build("score_crl", data), few, chains=1, epochs=1, progress=False)
