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


def known(seed: int, hits: tuple[int, ...] = (0,), **options: Any) -> tuple[Tensor, Tensor, LatentSEM, np.ndarray]:
    """True latents of three equations under perfect interventions, the first on `hits`, environments, equations for
    them, and weights."""
    data = linear_world(seed, [("on_0", hits, "perfect"), *HARD[1:]], rows=ROWS, told=TOLD, **options)
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
    noise, parameters = noise_left(turned, env, sem)
    assert parameters == (12 if relu else 12 + 6 + 3)
    assert stats.chi2.sf(deviance(noise, env), 36 - parameters) > 1e-3


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
        z, env, sem, weight = known(seed, relu=relu, lowered=False)
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
    assert np.mean(inside) >= 0.6, "12 values"
    assert np.mean(inside) > np.mean(alone) + 0.2
