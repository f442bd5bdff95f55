"""Factor analysis with its latents summed out: derivatives, and moments beside importance sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrocrl.exact.factor_analysis import FactorAnalysis, Triangular

PRIOR = {
    "slab": torch.ones(6, 2).double(),
    "shape": torch.full((6,), 1.5).double(),
    "rate": torch.full((6,), 0.015).double(),
}


def law(rows: int = 40, coarse: float = float("inf"), seed: int = 0) -> tuple[FactorAnalysis, torch.Tensor]:
    """Six features, two correlated latents, one shut slope a feature but the last; and a point near its mode."""
    rng = np.random.default_rng(seed)
    gate = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 1]], bool)
    slope = gate * np.array([[0.9, 0], [-0.8, 0], [0.7, 0], [0, 1.1], [0, 0.9], [0.5, 0.7]])
    correlation = np.array([[1, 0.3], [0.3, 1]])
    x = rng.multivariate_normal(np.zeros(2), correlation, rows) @ slope.T + 0.6 * rng.normal(size=(rows, 6))
    parts = [torch.as_tensor(v) for v in (x.T @ x / rows, gate, correlation)]
    made = FactorAnalysis(parts[0], rows, *parts[1:], **PRIOR, coarse=coarse)
    return made, torch.cat([torch.as_tensor(slope[gate]), torch.full((6,), np.log(0.4)).double()])


def test_its_gradient_is_that_of_its_density() -> None:
    for coarse in (float("inf"), 10.0):
        made, theta = law(coarse=coarse)
        theta = theta.requires_grad_()
        own = torch.autograd.grad(made.log_density(theta), theta)[0]
        assert torch.allclose(own, made.scoring(theta.detach())[0], rtol=1e-9, atol=1e-9)


def test_its_information_is_the_expected_curvature() -> None:
    made, theta = law()
    slope, log_variance = made.split(theta)
    made.second = slope @ made.correlation @ slope.mT + torch.diag(log_variance.exp())  # what these parameters expect
    curvature = -torch.autograd.functional.hessian(made.log_density, theta)
    assert torch.allclose(curvature, made.scoring(theta)[1], rtol=1e-8, atol=1e-8)


def test_slopes_that_count_as_fewer_rows_spread_as_widely() -> None:
    made, theta = law(rows=4000)
    start = made.split(theta)
    full, coarse = made.posterior(*start), law(rows=4000, coarse=1000.0)[0].posterior(*start)
    gate = made.gate
    assert torch.allclose(coarse.slope_sd[gate], 2 * full.slope_sd[gate], rtol=0.02)
    assert (full.slope_sd[~gate] == 0).all() and (full.slope[~gate] == 0).all()


@pytest.mark.parametrize("rows", (200, 1000))
def test_means_and_deviations_are_those_of_importance_sampling(rows: int) -> None:
    """Of draws from a Student's t about the mode, whose weights make them exact."""
    made, theta = law(rows)
    found = made.posterior(*made.split(theta))
    mean = torch.cat([found.slope[made.j, made.k], found.log_variance])
    sd = torch.cat([found.slope_sd[made.j, made.k], found.log_variance_sd])
    rng = torch.Generator().manual_seed(0)
    tril = torch.linalg.cholesky(1.3 * torch.linalg.inv(made.scoring(mean)[1]))
    freedom, size = 6, len(mean)
    normal = torch.randn(8_000, size, generator=rng, dtype=torch.float64)
    chi = torch.randn(8_000, freedom, generator=rng, dtype=torch.float64).square().mean(1, keepdim=True)
    draws = mean + (normal / chi.sqrt()) @ tril.mT
    distance = (normal / chi.sqrt()).square().sum(1)
    log_q = -0.5 * (freedom + size) * torch.log1p(distance / freedom)
    log_p = torch.stack([made.log_density(draw) for draw in draws])
    weight = (log_p - log_q).softmax(0)
    assert 1 / weight.square().sum() > 250
    exact = weight @ draws
    exact_sd = (weight @ (draws - exact).square()).sqrt()
    apart, ratio = (mean - exact).abs() / exact_sd, sd / exact_sd
    assert (apart < 0.2).all(), apart
    assert ((ratio - 1).abs() < 0.1)[: len(made.j)].all() and ((ratio - 1).abs() < 0.3).all(), ratio  # small ones skew


def test_a_triangle_is_found_and_walkers_widen_its_normal() -> None:
    """Derivatives in logarithms of the diagonal; and the moments that walkers find are those of importance sampling."""
    rng = np.random.default_rng(1)
    loadings = np.tril(rng.normal(size=(7, 2)))
    loadings[[0, 1], [0, 1]] = 0.8, 0.7
    x = rng.normal(size=(150, 2)) @ loadings.T + 0.7 * rng.normal(size=(150, 7))
    x = torch.as_tensor((x - x.mean(0)) / x.std(0))
    law = Triangular(x.mT @ x / 150, 150, 2, 0.7, 0.1)
    theta = torch.cat([torch.zeros(11), -0.5 * torch.ones(9)]).double().requires_grad_()
    own = torch.autograd.grad(law.log_density(theta), theta)[0]
    assert torch.allclose(own, law.scoring(theta.detach())[0], rtol=1e-9, atol=1e-9)
    mean, covariance = law.moments(theta.detach())
    assert (law.split(mean)[0].diagonal() > 0).all() and (law.split(mean)[0].triu(1) == 0).all()
    walked, wide = law.walked(mean, covariance, torch.Generator().manual_seed(0))
    tril, generator = torch.linalg.cholesky(1.2 * wide), torch.Generator().manual_seed(1)
    noise = torch.randn(30_000, len(mean), generator=generator, dtype=torch.float64)
    draws = walked + noise @ tril.mT
    weight = (torch.func.vmap(law.log_density)(draws) + 0.5 * noise.square().sum(1)).softmax(0)
    exact = weight @ draws
    sd = (weight @ (draws - exact).square()).sqrt()
    assert 1 / weight.square().sum() > 500
    assert ((walked - exact) / sd).abs().max() < 0.15
    ours, first = ((c.diagonal().sqrt() / sd - 1)[: len(law.j)] for c in (wide, covariance))
    assert ours.abs().max() < 0.05 and ours.abs().mean() < 0.7 * first.abs().mean()
