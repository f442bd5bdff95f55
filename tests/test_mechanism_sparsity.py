"""`mechanism_sparsity`: curves and their draws, what graphs tell, readouts, series, what it finds and refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, InputError
from pyrocrl.constructions import sparse_mechanism as readouts
from pyrocrl.exact.sparse_mechanism import BASIS, Prior, basis, confounded, draws, shares
from pyrocrl.exact.sparse_steps import Following, curves_of
from pyrocrl.exact.switching import Timeline
from pyrocrl.judge.metrics import mcc
from pyrocrl.lab.suite.mechanisms import SHARED, actions, steps
from pyrocrl.models.mechanism_sparsity import MechanismSparsity
from pyrocrl.parts.ridges import Ridges
from pyrocrl.simulate import draw
from pyrocrl.simulate.lachapelle import graph_of, moved

LINEAR: dict[str, Any] = {"mixing": "linear"}


def test_functions_are_orthonormal_and_the_line_goes_on() -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    phi = basis(u)
    torch.testing.assert_close(phi.mT @ phi / len(phi), torch.eye(BASIS, dtype=torch.float64), atol=1e-4, rtol=0)
    far = basis(torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64))
    torch.testing.assert_close(far[3, 0] - far[2, 0], torch.tensor(math.sqrt(12) / 2, dtype=torch.float64))
    torch.testing.assert_close(far[[0, 3], 1:], far[[1, 2], 1:])
    share = shares(torch.float64, torch.device("cpu"))
    assert float(share.sum()) == pytest.approx(1) and bool((share.diff() < 0).all())
    wave = torch.sin(10 * u)
    assert float((phi.mT @ wave / len(u)).square().sum()) > 0.999 * float((wave - wave.mean()).square().mean())


def test_draws_find_parents_and_let_be_what_a_spike_may_explain() -> None:
    rng = np.random.default_rng(0)
    u = rng.uniform(size=(2_000, 3))
    mean = np.stack([np.sin(6 * u[:, 0]) + 0.15 * (u[:, 1] - 0.5), 3 * u[:, 2] ** 2], 1)
    z = mean + 0.1 * rng.standard_normal(mean.shape)
    phi = basis(torch.as_tensor(u)).numpy()
    found = draws(phi, z, Prior(0.5, 1.0, 0.05, 1e-4), 10, 20, rng)
    np.testing.assert_array_equal(found.graph.mean(0) > 0.9, [[1, 0], [0, 0], [0, 1]])
    np.testing.assert_allclose(found.variance.mean(0), 0.01, rtol=0.15)
    fitted = torch.einsum("rpb,dpkb->drk", torch.as_tensor(phi), found.coefficients) + found.intercept[:, None]
    assert np.square(fitted.mean(0).numpy() - mean).mean() < 0.001
    sharp = draws(phi, z, Prior(0.5, 1.0, 0.001, 1e-4), 10, 20, rng)
    assert float(sharp.graph[:, 1, 0].mean()) > 0.9, "where the spike is a point, a small effect is an edge"


@pytest.mark.parametrize(
    ("graph", "actions", "pairs"),
    [
        (graph_of("diagonal", 3), 3, []),
        (graph_of("two-diagonal", 3), 3, []),
        (graph_of("triangular", 3), 3, [(0, 1), (0, 2), (1, 2)]),  # all actions of the one move the other
        (graph_of("twins", 3), 3, [(1, 2), (2, 1)]),
        (graph_of("none", 2), 2, [(0, 1), (1, 0)]),
        (graph_of("triangular", 3), 0, []),  # later latents have not all children
        (graph_of("dense", 2), 0, [(0, 1), (1, 0)]),
        (np.concatenate([np.eye(2), np.ones((2, 2))]), 2, []),
    ],
)
def test_the_graphical_criterion(graph: np.ndarray, actions: int, pairs: list[tuple[int, int]]) -> None:
    assert [tuple(pair) for pair in np.argwhere(confounded(graph > 0, actions))] == pairs


@pytest.mark.parametrize("spread", [0.01, 0.7])
def test_readouts_of_a_linear_mixing_are_closed_whatever_the_noise(spread: float) -> None:
    data = actions(3, rows=3_000, spread=spread)
    phi = basis(torch.as_tensor((data.aux + 2) / 4)).numpy()
    weight = readouts.by_actions(data.x, phi, 3, True, np.random.default_rng(0))
    assert mcc(data.truth["z"], data.x @ weight.T) > 0.999


def test_rows_follow_those_before_them() -> None:
    generator = torch.Generator().manual_seed(0)
    coefficients = 0.3 * torch.randn(2, 2, BASIS, generator=generator, dtype=torch.float64)
    line = Timeline(torch.tensor([2, 0, 1, 3, 4]), torch.tensor([0, 1, 2, 0, 1]))
    loc, scale = torch.randn(5, 2, generator=generator, dtype=torch.float64), torch.tensor([0.3, 0.5]).double()
    law, z = Following(loc, coefficients, scale, line), torch.randn(5, 2, generator=generator, dtype=torch.float64)
    before = {0: 2, 1: 0, 4: 3}  # row -> the row before
    for row, value in enumerate(law.log_prob(z)):
        mean, sd = torch.zeros(2).double(), torch.ones(2).double()
        if row in before:
            mean, sd = loc[row] + curves_of(z[before[row]][None], coefficients)[0], scale
        torch.testing.assert_close(value, torch.distributions.Normal(mean, sd).log_prob(z[row]).sum())
    torch.manual_seed(0)
    exact = Following(loc, coefficients, 1e-9 * scale, line).sample()
    torch.testing.assert_close(exact[1], loc[1] + curves_of(exact[0][None], coefficients)[0])


def test_ridge_functions_are_smooth_and_fit_what_is() -> None:
    x = torch.randn(2_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = Ridges(2, 1, 80).double()
    net.draw(x, torch.Generator().manual_seed(1))
    goal = (x[:, :1] * x[:, 1:]).tanh()
    net.regress(x[:1_000], goal[:1_000])
    assert float((net(x[1_000:]) - goal[1_000:]).var() / goal.var()) < 0.02
    slopes = torch.func.vmap(torch.func.jacrev(lambda row: net.functions(row[None])[0]))(x[:5])
    torch.testing.assert_close(net.slopes(x[:5]), slopes)


def test_the_setting_is_that_of_the_paper() -> None:
    data = draw("lachapelle2022", seed=1, rows=50, latents=3, features=6, layers=2, spread=1e-6)
    a, z = data.aux, data.truth["z"]
    graph = data.truth["moved_by"]
    np.testing.assert_array_equal(graph, [[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    want = np.sin(4 * a[:, 0] / np.pi + 1) + np.sin(4 * a[:, 1] / np.pi + 1)
    np.testing.assert_allclose(z[:, 1], want, atol=1e-4)
    step = draw("lachapelle2022", seed=1, parents="latents", graph="diagonal", rows=50, latents=3, spread=1e-6)
    before, after = step.truth["z"][::2], step.truth["z"][1::2]
    np.testing.assert_allclose(after, before + 0.5 * moved(before, np.eye(3)), atol=1e-4)


@pytest.mark.parametrize(
    ("data", "options", "right"),
    [
        (lambda: actions(0, rows=800), LINEAR, True),
        (lambda: actions(0, rows=2_500, layers=3), {"ridges": 300}, True),
        (lambda: steps(0, "triangular", 400), {**LINEAR, "starts": 2}, True),
        (lambda: actions(0, SHARED, rows=800), LINEAR, False),
        (lambda: actions(0, "none", rows=800, spread=1.0), LINEAR, False),
    ],
)
def test_latents_and_their_parents_are_found_or_said_to_mix(data: Any, options: dict[str, Any], right: bool) -> None:
    rows = data()
    program = pyrocrl.build("mechanism_sparsity", rows, **options)
    fit = pyrocrl.fit(program, rows, chains=2, seed=0, progress=False, device="cpu")
    verdict = pyrocrl.diagnose(fit, rows)["latents"]
    assert verdict.identified == right, str(verdict)
    if not right:
        return None
    score, nodes = mcc(rows.truth["z"], fit.latents(rows), return_assignment=True)
    assert score > 0.97 and "not in proportion" in str(verdict)
    order = fit.alignments[fit.reference].permutation[nodes]
    own = fit.chains.chain(fit.reference)
    assert isinstance(own, MechanismSparsity)
    found = own.parent_graphs().mean(0).numpy()[:, order]
    found = found if rows.aux is not None else found[order]
    np.testing.assert_array_equal(found > 0.5, rows.truth["moved_by"] > 0)


def test_intervals_of_latents_cover_what_they_say() -> None:
    """Of x linear in latents, with noise that latents read from it take a part of."""
    covered, noise = [], []
    for seed in range(100, 104):
        data = actions(seed, "diagonal", rows=400, latents=2)
        rng = np.random.default_rng(seed)
        x = data.x + 0.03 * data.x.std(0) * rng.standard_normal(data.x.shape)
        rows = Data(x, aux=data.aux, truth=data.truth)
        program = pyrocrl.build("mechanism_sparsity", rows, **LINEAR)
        fit = pyrocrl.fit(program, rows, chains=1, seed=0, progress=False, device="cpu")
        z = fit.posterior(60, predictive=False, density=False)["posterior"]["z"].to_numpy()[0]
        truth = fit.group.align(rows.truth["z"], z.mean(0)).apply(rows.truth["z"])
        low, high = np.quantile(z, [0.05, 0.95], axis=0)
        covered.append(((low < truth) & (truth < high)).mean())
        own = fit.programs()[0].observation.raw_noise.exp().detach().numpy()
        noise.append(np.median(own) / 0.03)
    assert 0.85 < np.mean(covered) < 0.96, covered
    assert 0.85 < np.mean(noise) < 1.15, noise


def test_it_names_the_latents_that_mix() -> None:
    rows = actions(1, SHARED, rows=800)
    program = pyrocrl.build("mechanism_sparsity", rows, mixing="linear")
    fit = pyrocrl.fit(program, rows, chains=2, seed=0, progress=False, device="cpu")
    verdict = pyrocrl.diagnose(fit, rows)["latents"]
    _, nodes = mcc(rows.truth["z"], fit.latents(rows), return_assignment=True)
    names = {f"latent_{k}" for k in nodes[1:]}
    assert verdict.verdict == "not identified" and set(verdict.which) == names


def test_effects_of_two_actions_together_are_noticed() -> None:
    rows = actions(0, rows=1_500, effects="together")
    program = pyrocrl.build("mechanism_sparsity", rows, mixing="linear")
    fit = pyrocrl.fit(program, rows, chains=2, seed=0, progress=False, device="cpu")
    verdict = pyrocrl.diagnose(fit, rows)["latents"]
    assert verdict.verdict == "contradicted" and "sums of curves" in verdict.reason


def test_bad_input_gets_a_line() -> None:
    x = np.random.default_rng(0).standard_normal((200, 4))
    with pytest.raises(InputError, match="aux: found neither numbers of actions nor series; allowed: one of them, or"):
        pyrocrl.build("mechanism_sparsity", Data(x), latents=2)
    few = Data(x, aux=x[:, :1].repeat(6, 1), truth={"z": x[:, :2]})
    with pytest.raises(InputError, match=r"x: found .* rows to fit; allowed: 291 or more, for 6 parents"):
        pyrocrl.fit(pyrocrl.build("mechanism_sparsity", few), few, chains=1, progress=False)
    with pytest.raises(InputError, match="latents"):
        pyrocrl.build("mechanism_sparsity", few, latents=5)
