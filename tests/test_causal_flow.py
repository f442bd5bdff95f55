"""`causal_flow`: recovery on small data, its flow's density, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import InputError, simulate
from pyrocrl.constructions import contrastive
from pyrocrl.constructions.contrastive_flow import pairings
from pyrocrl.judge.metrics import mcc
from pyrocrl.models.causal_flow import CausalFlow
from pyrocrl.parts.flows import FreeFormFlow
from pyrocrl.parts.nets import Residual

ONCE = [[0, 0], [1, 0], [0, 1]]


def test_latents_behind_an_invertible_mixing() -> None:
    data = simulate.draw("cauca", 100, samples=6000, latents=2, layers=2)
    train, test = data.split(0.25, 0)
    program = pyrocrl.build("causal_flow", train, width=32, steps=200)
    fit = pyrocrl.fit(program, train, chains=1, seed=0, progress=False)
    found = pyrocrl.evaluate(fit, test)
    assert found["mcc"] >= 0.95 > found["pca_mcc"]


def test_unknown_targets_are_found() -> None:
    data = simulate.draw("cauca", 100, samples=4000, latents=2, layers=2, interventions=2)
    train, test = data.split(0.25, 0)
    program = pyrocrl.build("causal_flow", train, targets="unknown", width=32, steps=200)
    found = pyrocrl.evaluate(pyrocrl.fit(program, train, chains=1, seed=0, progress=False), test)
    assert found["targets_right"] == 1.0
    assert found["mcc"] >= 0.95 > found["pca_mcc"]


def test_every_pairing_is_a_hypothesis() -> None:
    for latents, count in ((2, 3), (3, 15), (4, 105)):
        every = np.stack(list(pairings(latents)))
        assert len(np.unique(every, axis=0)) == len(every) == count
        assert (every.sum(1) == 2).all()
        assert (every.sum(2) == [0] + [1] * 2 * latents).all()


def test_log_determinant_is_that_of_the_map() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 3, dtype=torch.float64) ** 3
    flow = FreeFormFlow(3, 8).double()
    flow.start(x)
    with torch.no_grad():
        h, log_det = flow(x[:20])
        nudge = 1e-6
        columns = [
            (flow.encode(x[:20] + nudge * e) - flow.encode(x[:20] - nudge * e)) / (2 * nudge) for e in torch.eye(3)
        ]
        numeric = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
        g, _ = flow.gaussianise(x)
    torch.testing.assert_close(h, flow.encode(x[:20]))
    torch.testing.assert_close(log_det, numeric, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(flow.gaussianise.inverse(g), x, rtol=1e-5, atol=1e-5)


def test_splines_make_features_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tanh(1.2 * torch.randn(20_000, 2, generator=generator))
    flow = FreeFormFlow(2, 8)
    flow.start(x)
    g, _ = flow.gaussianise(x)
    for level, share in ((-1.0, 0.1587), (0.0, 0.5), (1.5, 0.9332)):
        assert (g < level).double().mean(0).numpy() == pytest.approx([share] * 2, abs=0.01)


def test_claims_follow_the_targets() -> None:
    known, unknown = CausalFlow(2, 2, ONCE), CausalFlow(2, 2, targets="unknown", environments=5)
    assert known.claims()[0].up_to == ("scale", "shift")
    assert unknown.claims()[0].up_to == ("permutation", "scale", "shift")
    assert "two_interventions_per_latent" in unknown.claims()[1].needs


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"features": 3, "target_matrix": ONCE}, "latents"),
        ({"target_matrix": [[1, 0], [0, 1]]}, "targets"),
        ({"target_matrix": [[0, 0], [1, 0]]}, "targets"),
        ({"target_matrix": [[0], [1]]}, "target_matrix"),
        ({"target_matrix": ONCE, "steps": 0}, "steps"),
        ({"target_matrix": ONCE, "edge_probability": 0.0}, "edge_probability"),
        ({"targets": "unknown", "environments": 3}, "environments"),
        ({"features": 5, "latents": 5, "targets": "unknown", "environments": 11}, "latents"),
    ],
)
def test_bad_options_are_refused(options: dict, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        CausalFlow(**({"features": 2, "latents": 2} | options))


def test_too_few_rows_are_refused() -> None:
    data = simulate.draw("cauca", 0, samples=50, latents=2)
    few = data.rows_at(np.r_[0:51, 100:150])
    assert (few.env_labels() == "target_0").sum() == 1
    with pytest.raises(InputError, match="target_0"):
        pyrocrl.fit(pyrocrl.build("causal_flow", data), few, chains=1, epochs=1, progress=False)


def test_log_odds_between_two_interventions_tell_which_share_a_latent() -> None:
    data = simulate.draw("cauca", 100, samples=4000, latents=3, interventions=2)
    program = CausalFlow.from_data(data, targets="unknown")
    batch = data.tensors(torch.device("cpu"), torch.float32)
    x = program.flow.start(batch.x)
    torch.manual_seed(0)
    h = Residual(x.shape[1], len(data.env_names), 32)
    hypotheses = program._hypotheses()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(x), generator=generator)
    contrastive.paired_start(h, x, batch.env, rows, 300, hypotheses, generator)
    with torch.no_grad():
        found = h(x)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(3), atol=0.05, rtol=0)
    assert mcc(data.truth["z"], found.numpy()) >= 0.9 > pyrocrl.metrics.linear_r2(data.x, data.truth["z"])


def test_rows_count_as_fewer_for_what_moments_leave_of_equations() -> None:
    data = simulate.draw("cauca", 100, samples=300, latents=2, layers=2)
    program = pyrocrl.build("causal_flow", data, width=8, steps=4)
    generator = torch.Generator().manual_seed(0)
    program.initialise(data, generator)  # a flow of four steps is far from any equations
    square = program.config["correlation_error"] ** 2
    assert program.fewer > 2
    expected = 300 / (float(program.fewer) + 300 * square)
    assert program.count.tolist() == pytest.approx([expected] * 3)
    batch = data.tensors(program.target.device, torch.float32)
    assert float(program._worth(batch)[batch.env == 0].sum()) == pytest.approx(expected)
    told = program.implied()  # which is tested: not by rows that were made fewer for it
    assert told is not None and told.rows.tolist() == pytest.approx([300 / (1 + 300 * square)] * 3)


def test_maps_of_draws_are_about_what_is_read() -> None:
    program = CausalFlow(2, 2, ONCE)
    with torch.no_grad():
        program.drawn.copy_(0.3 * torch.randn(program.drawn.shape, generator=torch.Generator().manual_seed(0)))
        program.settled.fill_(1.0)
        maps = program.latent_maps()
        assert maps is not None
        torch.testing.assert_close(maps.mean(0), torch.eye(2).to(maps))
        torch.testing.assert_close(maps[3] @ program._rows(), program._unmixing(program.drawn[3]))
