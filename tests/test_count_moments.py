"""Moments of latents behind counts, and the linear causal model on counts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

import pyrocrl
from pyrocrl import Data
from pyrocrl.constructions.count_moments import count_moments, row_posterior
from pyrocrl.errors import InputError
from pyrocrl.judge.metrics import mcc, shd
from pyrocrl.parts.observation import Observation


def simulate(seed: int, latents: int = 3, features: int = 50, rows: int = 1000, level: float = 2.0) -> Data:
    """One perfect intervention a latent; log rates linear in z; library sizes, two batches and dispersions vary.

    truth["mask"] is the second batch's log rates less the first's, (feature, 1)."""
    rng = np.random.default_rng(seed)
    rank = rng.permutation(latents)
    graph = rank[:, None] < rank
    weight = graph * rng.uniform(0.6, 1.2, graph.shape) * rng.choice([-1, 1], graph.shape)
    if latents > 2:
        weight[rank == 0, rank == latents - 1] = 0.0
    z = []
    for e in range(latents + 1):
        w, mean, scale = weight.copy(), np.zeros(latents), np.ones(latents)
        if e:
            w[:, e - 1], mean[e - 1], scale[e - 1] = 0.0, rng.choice([-1, 1]) * rng.uniform(1, 2), 0.6
        noise = mean + scale * rng.standard_normal((rows, latents))
        z.append(np.linalg.solve(np.eye(latents) - w.T, noise.T).T)
    latent = np.concatenate(z)
    env = np.repeat(["control", *(f"e{k}" for k in range(latents))], rows)
    loadings = 0.35 * rng.standard_normal((features, latents)) / z[0].std(0)
    size = np.exp(0.3 * rng.standard_normal(len(latent)))
    # batches differ in what they hold: a batch's mean is not its baseline
    batch = (rng.random(len(latent)) < np.where(np.isin(env, ["control", "e0"]), 0.3, 0.7)).astype(int)
    base = np.log(level) + 0.7 * rng.standard_normal(features) + 0.3 * rng.standard_normal((2, features))
    dispersion = rng.uniform(2, 10, features)
    mean = size[:, None] * np.exp(base[batch] + latent @ loadings.T)
    return Data(
        rng.poisson(rng.gamma(dispersion, mean / dispersion)),
        env,
        targets={f"e{k}": (k,) for k in range(latents)},
        control="control",
        counts=True,
        size_factor=4000 * size,
        batch=[f"b{b}" for b in batch],
        truth={
            "z": latent,
            "graph": (weight != 0).astype(int),
            "weight": weight,
            "loadings": loadings,
            "mask": (base[1:] - base[:1]).T,
        },
    )


def test_moments_are_those_of_the_latents() -> None:
    """Within the error of samples of `count` rows, in each environment, in the truth's coordinates."""
    data = simulate(100)
    observation = Observation(data.features, "negative_binomial", 2).double().requires_grad_(False)
    found = count_moments(data, 3, [0], observation)
    assert ((found.count > 300) & (found.count < 1000)).all()
    loadings, z = data.truth["loadings"], data.truth["z"]
    basis = np.linalg.lstsq(found.loadings.numpy(), loadings, rcond=None)[0]  # y = basis z
    assert np.linalg.norm(found.loadings.numpy() @ basis - loadings) < 0.1 * np.linalg.norm(loadings)
    y = (z - z[data.env == 0].mean(0)) @ basis.T
    for e in range(4):
        own = y[data.env == e]
        root = np.linalg.cholesky(np.cov(own.T))
        apart = np.linalg.solve(root, found.mean[e].numpy() - own.mean(0))
        assert np.abs(apart).max() < 0.15  # 3 deviations of a mean of 500 rows
        ratio = np.linalg.eigvals(np.linalg.solve(root @ root.T, found.cov[e].numpy())).real
        assert (np.abs(np.log(ratio)) < 0.25).all()
    effect = (observation.offset[1] - observation.offset[0]).numpy() - data.truth["mask"][:, 0]
    assert np.sqrt(np.square(effect).mean()) < 0.1
    assert np.median(np.abs(np.log(softplus(observation.raw_dispersion).numpy() / 5.0))) < 0.6
    again = Observation(data.features, "negative_binomial", 2).double().requires_grad_(False)
    assert count_moments(data, 3, [0], again) is found  # chains share it
    torch.testing.assert_close(again.offset, observation.offset)


def test_posterior_of_a_row_against_numerical_integration() -> None:
    torch.manual_seed(0)
    observation = Observation(5, "negative_binomial").double().requires_grad_(False)
    loadings = torch.randn(5, 1, dtype=torch.float64)
    data = Data(np.random.default_rng(0).poisson(3.0, (6, 5)), counts=True)
    batch = data.tensors(dtype=torch.float64)
    mean, cov = torch.full((6, 1), 0.3).double(), torch.full((6, 1, 1), 0.8).double()
    found = row_posterior(observation, loadings, batch, mean, cov)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    for i in range(6):
        eta = grid[:, None] * loadings[:, 0]
        row = batch.take(torch.full((len(grid),), i))
        log = observation.likelihood(eta, row).log_prob(row.x).sum(-1)
        log = log - 0.5 * (grid - 0.3).square() / 0.8 - 0.5 * np.log(2 * np.pi * 0.8)
        share = log.softmax(0)
        loc = share @ grid
        assert float(found.loc[i, 0]) == pytest.approx(float(loc), abs=0.02)
        assert float(found.cov[i, 0, 0]) == pytest.approx(float(share @ (grid - loc).square()), rel=0.15)
        evidence = float(log.logsumexp(0) + (grid[1] - grid[0]).log())
        assert float(found.log_evidence[i]) == pytest.approx(evidence, abs=0.05)


@pytest.mark.slow
def test_fewer_molecules_count_for_less() -> None:
    worth = []
    for level in (0.7, 4.0):
        data = simulate(101, level=level, rows=300)
        observation = Observation(data.features, "negative_binomial", 2).double().requires_grad_(False)
        worth.append(float(count_moments(data, 3, [0], observation).count.mean()))
    assert worth[0] < 0.6 * worth[1] < 180


@pytest.mark.slow
def test_graph_and_latents_from_counts() -> None:
    data = simulate(102)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        program = pyrocrl.build("linear_sem_lin", data)
        assert program.config["likelihood"] == "negative_binomial"
        assert program.config["batches"] == 2
        fit = pyrocrl.fit(program, data, chains=2, device="cpu", progress=False)
    assert data.truth["graph"].sum() == 2
    assert shd(data.truth["graph"], fit.graph() > 0.5) == 0
    z = fit.latents(data)
    assert mcc(data.truth["z"], z) > 0.95
    tree = fit.posterior(draws=10, thin=40)
    drawn = tree["posterior"]["z"].values.reshape(20, -1, 3)
    spread = drawn.std(0).mean(0)
    assert (spread > 0.1 * z.std(0)).all()  # counts leave latents in doubt
    x = tree["posterior_predictive"]["x"].values
    assert (x == np.round(x)).all()
    assert (x >= 0).all()
    ratio = np.log(x.mean((0, 1, 2)) / data.x.mean(0))
    assert np.sqrt(np.square(ratio).mean()) < 0.15
    assert np.isfinite(tree["log_likelihood"]["x"].values).all()
    moved = fit.do(data, {"latent_0": 2.0}, draws=20)
    assert (moved["x"].values >= 0).all()  # rates
    with pytest.raises(InputError, match="counts"):
        program.check(Data(data.x.astype(float), data.env_labels(), targets=data.targets))
    one, two, both = (
        fit.do(data, environments=[data.env_names[e] for e in envs], draws=40) for envs in ((1,), (2,), (1, 2))
    )
    assert np.isfinite(both["x"]).all() and (both["x"].values >= 0).all()
    hit = [int(np.flatnonzero(data.target_matrix(3)[e])[0]) for e in (1, 2)]
    for alone, k in ((one, hit[0]), (two, hit[1])):  # each target has its own law, whatever else is hit
        apart = alone["z"].values[..., k].mean() - both["z"].values[..., k].mean()
        assert abs(apart) < 5 * both["z"].values[..., k].std() * (2 / 40) ** 0.5
