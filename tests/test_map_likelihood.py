"""The map to latents of a `LatentSEM` once more: the noise that equations leave, and draws of the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrocrl.constructions.map_likelihood import map_draws, noise_left
from pyrocrl.lab.suite.equations import HARD, linear_world
from pyrocrl.parts.latent_sem import LatentSEM

ROWS = 300
TOLD = {"on_0": (0,), "on_1": (1,), "on_2": (2,)}


def known(
    seed: int, hits: tuple[int, ...] = (0,), rows: int = ROWS, **options: Any
) -> tuple[Tensor, Tensor, LatentSEM, np.ndarray]:
    """True latents of three equations under perfect interventions, the first on `hits`, environments, equations for
    them, and weights."""
    data = linear_world(seed, [("on_0", hits, "perfect"), *HARD[1:]], rows=rows, told=TOLD, **options)
    relu = bool(options.get("relu"))
    sem = LatentSEM(3, 4, data.target_matrix(3).tolist(), "perfect", "relu" if relu else "linear", readings=32)
    z, env = torch.tensor(data.truth["z"], dtype=torch.float32), torch.tensor(data.env)
    sem.start(z, env)
    return z, env, sem, data.truth["weight"]


def deviance(noise: Tensor, env: Tensor) -> float:
    """Twice the log-likelihood that standard normal noise loses to normal noise of any moments in each environment."""
    lost = 0.0
    for e in range(4):
        own = noise[env == e].double().numpy()
        cov, mean = np.cov(own.T, bias=True), own.mean(0)
        lost += len(own) * (np.trace(cov) - np.linalg.slogdet(cov)[1] - 3 + mean @ mean)
    return float(lost)


@pytest.mark.parametrize("relu", [False, True])
def test_noise_of_true_equations_is_standard_normal(relu: bool) -> None:
    z, env, sem, _ = known(100, relu=relu)
    turned = z @ (torch.eye(3) + 0.05 * torch.tensor([[0.0, 1, -1], [1, 0, 1], [-1, 1, 0]]))
    left = noise_left(turned, env, sem)
    assert left.parameters == (12 if relu else 12 + 6 + 3)
    assert stats.chi2.sf(deviance(left.value, env), 36 - left.parameters) > 1e-3


def test_noise_of_an_intervention_that_moves_two_or_of_bent_equations_is_not() -> None:
    z, env, sem, _ = known(100, hits=(0, 2))
    assert stats.chi2.sf(deviance(noise_left(z, env, sem).value, env), 36) < 1e-6
    z, env, sem, _ = known(100, bent=0.5)
    assert np.abs(stats.skew(noise_left(z, env, sem).value.numpy())).max() > 0.3


@pytest.mark.parametrize("relu", [False, True])
def test_slopes_carry_the_error_of_the_map(relu: bool) -> None:
    """Latents are the true ones turned by as much as rows leave open: intervals of slopes given them alone miss."""
    inside, alone = [], []
    for seed in range(100, 104):
        z, env, sem, weight = known(seed, rows=600, relu=relu, lowered=False)
        generator = torch.Generator().manual_seed(seed)
        turn = torch.eye(3) + 0.04 * torch.randn(3, 3, generator=generator).fill_diagonal_(0.0)
        read = z @ turn
        sem.start(read, env)
        torch.manual_seed(seed)
        for kept in (alone, inside):
            drawn = np.array([sem.recover().weight.numpy() for _ in range(40)])
            low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
            kept.extend(((low <= weight) & (weight <= high))[weight != 0])
            draws = map_draws(read, env, sem, 32, generator, read)
            assert draws is not None
            sem.read(draws, env)
            sem.erring = True
    assert np.mean(inside) >= 0.6, "12 values"
    assert np.mean(inside) > np.mean(alone) + 0.2


@pytest.mark.parametrize("mechanism, kind", [("relu", "perfect"), ("linear", "perfect"), ("relu", "soft")])
def test_edges_that_no_map_needs_are_not_there(mechanism: str, kind: str) -> None:
    """Latents turned as far as rows leave open need more edges than there are: draws of the map go where few are."""
    size, rows = 4, 200
    target = np.vstack([np.zeros(size), np.eye(size)])
    env = np.repeat(np.arange(size + 1), rows)
    probability: dict[str, list[np.ndarray]] = {"alone": [], "drawn": []}
    truth = []
    for seed in range(100, 106):
        rng = np.random.default_rng(seed)
        graph = np.triu(rng.random((size, size)) < 0.5, 1)
        weight, z = graph * rng.choice([-1.0, 1.0], (size, size)), np.zeros((len(env), size))
        for k in range(size):
            parents = np.maximum(z, 0) if mechanism == "relu" else z
            kept = 0.0 if kind == "perfect" else 0.3  # of the slopes of a target
            usual = parents @ weight[:, k]
            z[:, k] = np.where(env == k + 1, 2.0 + kept * usual, usual) + rng.standard_normal(len(env))
        error = 0.5 / rows**0.5 * z.std(0) / z.std(0)[:, None] * rng.standard_normal((size, size))
        read = torch.tensor(z @ (np.eye(size) + error * (1 - np.eye(size))), dtype=torch.float32)
        sem = LatentSEM(size, size + 1, target.tolist(), kind, mechanism, readings=32)
        sem.start(read, torch.tensor(env))
        sem.gather(read, torch.tensor(env))
        probability["alone"].append(sem.graph().numpy())
        draws = map_draws(read, torch.tensor(env), sem, 32, torch.Generator().manual_seed(seed), read)
        assert draws is not None and sem.read(draws, torch.tensor(env))
        probability["drawn"].append(sem.graph().numpy())
        truth.append(graph)
    brier = {
        name: np.square(np.array(found) - np.array(truth)).sum((1, 2)).mean() for name, found in probability.items()
    }
    assert brier["drawn"] < 0.5, "of 12 edges"
    assert brier["drawn"] < 0.5 * brier["alone"]
