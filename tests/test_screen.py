"""Counts, knock-outs of unknown target or none, and escapees: a simulated screen whose truth is known."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import pyrocrl
from pyrocrl import Data, InputError, simulate
from pyrocrl.constructions.log_rates import count_factors
from pyrocrl.infer import stories
from pyrocrl.lab.studies.screens import knockouts
from pyrocrl.models.discrepancy_vae import DiscrepancyVAE
from pyrocrl.parts.latent_sem import LatentSEM
from pyrocrl.parts.observation import Observation


@pytest.fixture(scope="module")
def screen() -> Data:
    return simulate.draw(
        "perturb_seq",
        seed=100,
        rows=3000,
        features=40,
        latents=3,
        intervention="shift",
        knockouts=2,
        nulls=4,
        escapees=0.25,
    )


@pytest.fixture(scope="module")
def fitted(screen: Data) -> pyrocrl.Fit:
    program = pyrocrl.build(
        "discrepancy_vae",
        screen,
        latents=3,
        targets="unknown",
        mechanism="linear",
        escapees=True,
        variation=0.1,
        hidden=16,
    )
    return pyrocrl.fit(program, screen, chains=2, seed=100, device="cpu", progress=False)


def test_knockouts_find_their_programmes_and_nulls_have_none(fitted: pyrocrl.Fit, screen: Data) -> None:
    assert pyrocrl.evaluate(fitted, screen)["targets_right"] == 1.0
    posterior = fitted.posterior(3, predictive=False)["posterior"]
    assert not {"variance", "slope", "level", "change"} & set(posterior), "their lines differ from draw to draw"
    assert "aligned" not in posterior["weight"].attrs and posterior["order"].attrs["aligned"] == 0
    targets = fitted.targets()
    assert targets is not None
    hit = dict(zip(screen.env_names, targets.sum(1), strict=True))
    assert screen.targets is not None
    assert all(hit[name] > 0.5 for name, latents in screen.targets.items() if latents)
    assert all(hit[name] < 0.5 for name, latents in screen.targets.items() if not latents)
    assert hit["non-targeting"] == 0.0


def test_cells_that_escaped_are_told_from_those_that_were_changed(fitted: pyrocrl.Fit, screen: Data) -> None:
    tree = fitted.posterior(draws=20, predictive=False)
    escaped = tree["posterior"]["escaped"].mean(("chain", "draw")).to_numpy()
    assert screen.targets is not None
    knocked_out = np.isin(screen.env_labels(), [name for name, latents in screen.targets.items() if latents])
    assert roc_auc_score(1 - screen.truth["component"][knocked_out], escaped[knocked_out]) > 0.8
    assert abs(escaped[knocked_out].mean() - 0.25) < 0.1
    assert not escaped[screen.env == 0].any()
    batch, drawn = fitted.batch_of(screen), tree["posterior"]["escaped"].mean("draw").to_numpy()
    for program, draws in zip(fitted.programs(), drawn, strict=True):
        told = program.escaped(batch)
        assert told is not None
        assert np.corrcoef(told.numpy()[knocked_out], draws[knocked_out])[0, 1] > 0.9
        assert abs(told.numpy()[knocked_out].mean() - draws[knocked_out].mean()) < 0.02


def test_the_table_of_knockouts_says_which_have_an_effect(fitted: pyrocrl.Fit, screen: Data) -> None:
    rows = {row["knockout"]: row for row in knockouts(fitted, screen, draws=2)}
    assert json.loads(json.dumps(rows)) == rows and screen.targets is not None
    assert rows.keys() == set(screen.env_names[1:])
    for name, latents in screen.targets.items():
        row = rows[name]
        assert (row["none"] < 0.5) == bool(latents) == (row["escaped"] is not None)
        if latents:
            assert row["low"] < row["shift"] < row["high"] and abs(row["escaped"] - 0.25) < 0.15
            assert row["error_training"] < row["error_control"], "the same cells, so their own mean is best"


def test_every_graph_drawn_is_acyclic_and_shifts_lower_what_they_hit(fitted: pyrocrl.Fit, screen: Data) -> None:
    posterior = fitted.posterior(draws=20, predictive=False, thin=100)["posterior"]
    for graph in posterior["graph"].to_numpy().reshape(-1, 3, 3):
        assert nx.is_directed_acyclic_graph(nx.from_numpy_array(graph, create_using=nx.DiGraph))
    hit, shift = posterior["targets"].to_numpy() > 0, posterior["shift"].to_numpy()
    sizes = {name: np.abs(shift[:, :, e][hit[:, :, e]]) for e, name in enumerate(screen.env_names)}
    assert screen.targets is not None
    true = [np.median(sizes[name]) for name, latents in screen.targets.items() if latents]
    false = [np.median(sizes[name]) for name, latents in screen.targets.items() if not latents and sizes[name].size]
    assert min(true) > 3 * max(false, default=0.0)
    assert not hit[:, :, 0].any()


def test_means_of_knockouts_are_predicted_better_than_by_the_control_mean(fitted: pyrocrl.Fit, screen: Data) -> None:
    program, env = fitted.programs()[fitted.reference], torch.as_tensor(screen.env)
    batch = screen.tensors()
    torch.manual_seed(0)
    draws = []
    with torch.no_grad():
        for _ in range(20):
            sites = stories.drawn(program, batch.take(torch.arange(1)).whole(), local=False)
            draws.append(stories.expected(program, batch, sites))
    predicted = torch.stack(draws).mean(0).numpy()
    assert screen.targets is not None
    for e, name in enumerate(screen.env_names):
        if screen.targets.get(name):
            found, guess, control = (
                np.log1p(v.mean(0)) for v in (screen.x[env == e], predicted[env == e], screen.x[env == 0])
            )
            assert np.square(guess - found).sum() < 0.3 * np.square(control - found).sum()


@pytest.mark.parametrize("known", [False, True])
def test_the_start_of_counts_lies_near_the_true_programmes(screen: Data, known: bool) -> None:
    observation = Observation(40, "negative_binomial", batches=3)
    sem = LatentSEM(3, len(screen.env_names), screen.target_matrix(3).tolist() if known else None, "shift")
    batch = observation.start(screen)
    start = count_factors(observation, batch, torch.arange(len(batch)), sem, torch.Generator().manual_seed(0))
    z = (observation.inputs(batch) @ start.unmixing.mT + start.offset).numpy()
    true = screen.truth["z"]
    if known:  # what shifts single out are the equations' own parts
        true = true - true @ screen.truth["weight"]
    score, nodes = pyrocrl.metrics.mcc(true, z, return_assignment=True)
    assert score > 0.75
    if known:
        assert list(nodes) == [0, 1, 2]
    else:
        found = np.abs(start.loadings.numpy()[:, nodes])
        assert np.corrcoef(np.abs(screen.truth["loadings"]).ravel(), found.ravel())[0, 1] > 0.6


def test_a_shift_within_the_variation_between_environments_is_no_effect() -> None:
    generator = torch.Generator().manual_seed(0)
    env = torch.arange(3).repeat_interleave(20_000)
    z = torch.randn(len(env), 2, generator=generator)
    z[env == 1, 0] += 0.06
    z[env == 2, 1] += 1.0
    none = []
    for variation in (0.0, 0.1):
        sem = LatentSEM(2, 3, None, "shift", variation=variation)
        sem.gather(z, env)
        none.append(sem.target_log_prob[:, -1].exp().tolist())
    (_, small, large), (_, small_varied, large_varied) = none
    assert small < 0.01 and large < 0.01
    assert small_varied > 0.7 and large_varied < 0.01
    with pytest.raises(InputError, match="variation: found"):
        LatentSEM(2, 3, None, "shift", variation=1.0)


def test_the_baseline_of_a_batch_of_counts_is_that_of_its_controls(screen: Data) -> None:
    uneven = screen.rows_at((screen.batch != 2) | (screen.env == 0))
    controls = screen.rows_at(screen.env == 0)
    one, other = (Observation(40, "negative_binomial", batches=3) for _ in range(2))
    one.start(uneven)
    other.start(controls)
    scale = one.size_unit / other.size_unit  # of the two sets' size factors
    assert torch.allclose(one.offset, other.offset + scale.log(), atol=1e-4)
    assert (one.centre - one.centre.mean(0)).abs().max() < 0.5


def test_escapees_and_nulls_are_what_the_simulator_says(screen: Data) -> None:
    assert screen.env_names[:5] == ["non-targeting", "null_0", "null_1", "null_2", "null_3"]
    assert screen.targets is not None and sorted(k for hit in screen.targets.values() for k in hit) == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    changed = screen.truth["component"] == 1
    labels = screen.env_labels()
    for name, latents in screen.targets.items():
        own = labels == name
        if not latents:
            assert not changed[own].any()
            continue
        assert 0.6 < changed[own].mean() < 0.9
        z = screen.truth["z"][:, latents[0]]
        assert abs(z[own & ~changed].mean() - z[screen.env == 0].mean()) < 0.5
        assert z[own & changed].mean() < z[screen.env == 0].mean() - 1.5
    for bad, message in (
        ({"escapees": 1.0}, "escapees: found 1.0; allowed: a share of the cells from 0 to below 1"),
        ({"nulls": -1}, "nulls: found -1; allowed: a whole number from 0 on"),
        ({"knockouts": 5}, "knockouts: found 5; allowed: at most one for each of the 4 anchors of a programme"),
    ):
        with pytest.raises(InputError) as found:
            simulate.draw("perturb_seq", **bad)
        assert str(found.value) == message


def test_counts_need_few_options() -> None:
    data = simulate.draw("perturb_seq", seed=101, rows=200, features=12, latents=2, nulls=1)
    program = DiscrepancyVAE.from_data(data, latents=2, intervention="shift")
    assert program.recipe == DiscrepancyVAE.count_recipe and program.config["likelihood"] == "negative_binomial"
