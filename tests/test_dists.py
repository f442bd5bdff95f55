"""Distributions draw under vmap, have the right moments, and their densities are the library's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.func import vmap

from pyrocrl import dists

DRAWS = 40_000
CASES: dict[str, tuple[Any, Any]] = {
    "normal": (lambda a: dists.Normal(a, 2.0 * torch.ones_like(a)), lambda a: dist.Normal(a, 2.0)),
    "lognormal": (lambda a: dists.LogNormal(a, 0.4 * torch.ones_like(a)), lambda a: dist.LogNormal(a, 0.4)),
    "mvn": (
        lambda a: dists.MultivariateNormal(a.expand(2), scale_tril=torch.tensor([[1.0, 0.0], [0.6, 0.8]])),
        lambda a: dist.MultivariateNormal(a.expand(2), scale_tril=torch.tensor([[1.0, 0.0], [0.6, 0.8]])),
    ),
}


CASES["beta"] = (
    lambda a: dists.Beta(a.exp(), 2.0 * torch.ones_like(a)),
    lambda a: dist.Beta(a.exp(), 2.0 * torch.ones_like(a)),
)


@pytest.mark.parametrize("name", CASES)
def test_draws_under_vmap_follow_the_density(name: str) -> None:
    mine, library = CASES[name]
    loc = torch.tensor([-0.5, 0.7])
    torch.manual_seed(0)

    def drawn(a: Tensor) -> Tensor:
        law = mine(a)
        return (law.rsample if law.has_rsample else law.sample)((DRAWS,))

    draws = vmap(drawn, randomness="different")(loc)
    for a, x in zip(loc, draws, strict=True):
        reference = library(a)
        np.testing.assert_allclose(x.mean(0), reference.mean, atol=5 * float(reference.variance.max()) ** 0.5 / 200)
        np.testing.assert_allclose(x.var(0), reference.variance, rtol=0.06)
        torch.testing.assert_close(mine(a).log_prob(x[:5]), reference.log_prob(x[:5]))
    assert not torch.equal(draws[0] - loc[0], draws[1] - loc[1])


def test_draws_carry_gradients_and_expand() -> None:
    loc = torch.tensor(0.3, requires_grad=True)
    dists.Normal(loc, 1.0).rsample((10,)).sum().backward()
    assert loc.grad == 10
    assert dists.Normal(0.0, 1.0).expand((3, 2)).rsample().shape == (3, 2)
    assert dists.Gate(torch.zeros(2)).expand((5, 2)).rsample().shape == (5, 2)


def test_a_logit_normal_has_its_density_and_about_its_mean() -> None:
    place = torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=torch.float64)
    for loc, scale in ((-2.0, 0.7), (0.4, 2.0)):
        law = dists.LogitNormal(torch.tensor(loc), torch.tensor(scale))
        density = law.log_prob(place).exp()
        assert float(torch.trapezoid(density, place)) == pytest.approx(1.0, abs=2e-3)
        assert float(law.mean) == pytest.approx(float(torch.trapezoid(place * density, place)), abs=0.01)
        torch.manual_seed(0)
        draws = vmap(lambda a: dists.LogitNormal(a, torch.tensor(0.7)).rsample((DRAWS,)), randomness="different")
        assert (draws(torch.tensor([loc, 0.0])).logit().mean(1) - torch.tensor([loc, 0.0])).abs().max() < 0.02


def test_gate_is_hard_forward_and_relaxed_backward() -> None:
    logits = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    torch.manual_seed(0)
    draws = dists.Gate(logits, 0.5).rsample((DRAWS,))
    assert set(draws.detach().unique().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(draws.detach().mean(0), torch.sigmoid(logits.detach()), atol=0.015)
    (gradient,) = torch.autograd.grad(draws.mean(0).sum(), logits)
    exact = torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    np.testing.assert_allclose(gradient, exact.detach(), rtol=0.35)  # biased, yet of the right sign and size
    value = torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(dists.Gate(logits).log_prob(value), dist.Bernoulli(logits=logits).log_prob(value))


def test_negative_binomial_matches_scipy() -> None:
    mean, r = torch.tensor([0.3, 4.0, 60.0]), torch.tensor([0.5, 3.0, 10.0])
    mine = dists.NegativeBinomial(mean, r)
    counts = torch.tensor([0.0, 3.0, 50.0])
    expected = scipy.stats.nbinom.logpmf(counts.numpy(), r.numpy(), (r / (r + mean)).numpy())
    np.testing.assert_allclose(mine.log_prob(counts), expected, rtol=1e-4)
    torch.manual_seed(0)
    draws = mine.sample((DRAWS,))
    np.testing.assert_allclose(draws.mean(0), mean, rtol=0.05)
    np.testing.assert_allclose(draws.var(0), mine.variance, rtol=0.1)


@pytest.mark.parametrize("cells", [7, 1 << 16])
def test_gradients_of_counts_are_those_of_the_formula(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks or at once, alone or vmapped, with a dispersion of features and sizes of rows."""
    monkeypatch.setattr(dists, "IN_CACHE", cells)
    torch.manual_seed(0)
    rate, r, size = torch.randn(2, 5, 3), torch.rand(2, 3) * 4 + 0.05, torch.rand(5, 1) + 0.5
    rate[0, 0, 0] = 16.0  # beyond the largest
    value = torch.randint(0, 30, (5, 3)).float()

    def plain(rate: Tensor, r: Tensor) -> Tensor:
        mean = size * rate.clamp(max=dists.LARGEST).exp()
        rest = torch.lgamma(value + r) - torch.lgamma(r) - torch.lgamma(value + 1)
        return rest + r * (r / (r + mean)).log() + value * (mean / (r + mean)).log()

    def mine(rate: Tensor, r: Tensor) -> Tensor:
        return dists.NegativeBinomial(None, r, log_rate=rate, size=size).log_prob(value)

    for these in ((rate[0], r[0]), (rate, r)):
        inputs = [tensor.clone().requires_grad_() for tensor in these]
        found = vmap(mine)(*inputs) if inputs[0].dim() == 3 else mine(*inputs)
        expected = vmap(plain)(*inputs) if inputs[0].dim() == 3 else plain(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        weight = torch.rand_like(found)
        pair = (torch.autograd.grad((weight * values).sum(), inputs) for values in (found, expected))
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


def test_categorical_draws_with_its_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log() + 7.0
    found = vmap(dists.categorical, randomness="different")(logits.expand(20_000, 3))
    np.testing.assert_allclose(np.bincount(found) / 20_000, [0.5, 0.3, 0.2], atol=0.012)


def test_gamma_and_categorical_draw_under_vmap() -> None:
    torch.manual_seed(0)
    shape = torch.tensor([0.7, 4.0])
    draws = vmap(lambda a: dists.Gamma(a, 2.0 * torch.ones_like(a)).sample((DRAWS,)), randomness="different")(shape)
    torch.testing.assert_close(draws.mean(1), shape / 2, rtol=0.03, atol=0.0)
    torch.testing.assert_close(draws.var(1), shape / 4, rtol=0.06, atol=0.0)
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])
    draws = vmap(lambda a: dists.Categorical(logits=a).sample((DRAWS,)), randomness="different")(logits)
    found = torch.nn.functional.one_hot(draws, 3).float().mean(1)
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0.0, atol=0.02)


def test_law_is_what_its_function_says() -> None:
    law = dists.Law((3,), (2,), lambda x: x.sum(-1))
    assert law.log_prob(torch.arange(6.0).reshape(3, 2)).tolist() == [1.0, 5.0, 9.0]
    assert law.support.event_dim == 1
