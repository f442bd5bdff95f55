"""`heavy_tailed_fa`: its sampler is exact, its laws are what they say, and verdicts tell normal latents from others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, simulate
from pyrocrl.exact.heavy_tails import (
    FREEDOM,
    NORMAL,
    PRIOR,
    SHAPE,
    SLAB,
    SPREAD,
    HeavyTailed,
    Sampler,
    aligned,
    given,
    log_density,
    precision,
)


def from_prior(rng: np.random.Generator, rows: int, features: int = 5, latents: int = 2) -> Sampler:
    """A chain that stands at a draw of the prior, and rows from it."""
    slab = math.exp(math.log(SLAB) + SPREAD * rng.standard_normal())
    loadings, law = slab * rng.standard_normal((features, latents)), rng.choice(len(PRIOR), latents, p=PRIOR)
    variance = 0.5 / rng.standard_gamma(SHAPE, features)
    torch.manual_seed(int(rng.integers(2**31)))
    z = HeavyTailed(torch.as_tensor(law), torch.ones((), dtype=torch.float64)).sample((rows,))
    x = z.numpy() @ loadings.T + np.sqrt(variance) * rng.standard_normal((rows, features))
    out = Sampler(*(torch.as_tensor(v) for v in (x, loadings, variance)), 0.5, rng)
    out.slab, out.z, out.law = slab, z, torch.as_tensor(law)
    return out


def told(state: Sampler) -> list[float]:
    turned = (state.loadings[:, 0] * state.loadings[:, 1]).sum()
    return [
        math.log(state.slab),
        float((state.law == NORMAL).sum()) + 1e-3 * float(state.law.sum()),
        float(state.variance.log().mean()),
        float(state.loadings.square().mean().log()),
        float(turned),
        float(state.z.square().mean()),
        float((state.z[:, 0] * state.z[:, 1]).mean()),
    ]


def test_sweeps_leave_the_posterior_as_it_is() -> None:
    """Truths from the prior, rows from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(200):
        before.append(told(from_prior(rng, 12)))
        state = from_prior(rng, 12)
        for _ in range(4):
            state.sweep()
        after.append(told(state))
    for old, new in zip(np.transpose(before), np.transpose(after), strict=True):
        assert stats.ks_2samp(old, new).pvalue > 1e-3


def test_turns_and_factors_leave_what_they_explain() -> None:
    state = from_prior(np.random.default_rng(1), 40, latents=3)
    state.each = state.by_law(state.z)
    explained, z = state.z @ state.loadings.mT, state.z.clone()
    for _ in range(20):
        state.turn()
        state.jump()
        state.rescale()
        state.move_law()
    torch.testing.assert_close(state.z @ state.loadings.mT, explained)
    torch.testing.assert_close(state.each, state.by_law(state.z))
    assert not torch.allclose(state.z, z)


def test_the_laws_have_unit_variance_and_are_mixtures_of_normal_ones() -> None:
    z = torch.cat([-torch.logspace(4, -6, 20_001).double(), torch.logspace(-6, 4, 20_001).double()])
    like = torch.ones((), dtype=torch.float64)
    torch.manual_seed(0)
    for law, nu in enumerate(FREEDOM):
        index = torch.tensor(law)
        density = log_density(z, index).exp()
        assert float(torch.trapezoid(density, z)) == pytest.approx(1.0, abs=1e-4)
        if not nu < 3:  # the variance's integral converges slowly
            assert float(torch.trapezoid(density * z.square(), z)) == pytest.approx(1.0, abs=0.03)
        slope = torch.linspace(0.2, 3.0, 15).double().requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(slope, index).sum(), slope)
        torch.testing.assert_close(precision(slope.square(), index), -gradient / slope)
        drawn = HeavyTailed(index[None], like).sample((4_000,))[:, 0].numpy()
        below = np.interp(drawn, z.numpy()[1:], torch.cumulative_trapezoid(density, z).numpy())
        assert stats.kstest(below, "uniform").pvalue > 1e-3, nu


def test_latents_given_a_row_are_near_their_posterior() -> None:
    loadings, variance = torch.tensor([[1.0], [0.8], [-0.9]]).double(), torch.tensor([0.3, 0.4, 0.5]).double()
    x, grid = (
        torch.tensor([[0.1, 0.1, 0.0], [1.5, 1.0, -1.2], [6.0, 5.0, -5.0]]).double(),
        torch.linspace(-12, 12, 8001).double(),
    )
    for nu in (math.inf, 2.5, 5.0):
        law = torch.tensor([FREEDOM.index(nu)])
        mean, tril = given(x, loadings, variance, law)
        apart = (x[:, None] - grid[:, None] * loadings[:, 0]).square() / variance
        weight = (log_density(grid, law) - 0.5 * apart.sum(-1)).softmax(1)
        true = weight @ grid
        sd = (weight @ grid.square() - true.square()).sqrt()
        assert ((mean[:, 0] - true).abs() < 0.15 * sd).all()
        torch.testing.assert_close(tril[:, 0, 0], sd, rtol=0.2, atol=0.0)


def test_draws_are_brought_to_one_order_and_normal_latents_turned_back() -> None:
    rng = np.random.default_rng(0)
    true, draws = torch.as_tensor(rng.standard_normal((12, 3))), []
    for _ in range(40):
        angle = torch.tensor(rng.uniform(0, 2 * math.pi))
        turn = torch.eye(3).double()
        turn[:2, :2] = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
        draws.append((true @ turn)[:, torch.as_tensor(rng.permutation(3))] * torch.as_tensor(rng.choice([-1, 1], 3)))
    heavy = torch.stack([(true[:, 2] @ draw).abs() for draw in draws])
    heavy = (heavy > heavy.max(1, keepdim=True)[0] - 1e-9).double()  # the third latent alone
    found = aligned(torch.stack(draws), torch.ones(40, 12).double(), heavy.long(), torch.ones(40).double(), heavy)
    k = int(found.heavy.argmax())
    assert float(found.heavy[k]) == 1.0 and float(found.heavy.sum()) == pytest.approx(1.0)
    assert float(found.settled[k]) == pytest.approx(1.0) and float(found.settled.min()) < 0.8
    torch.testing.assert_close(found.centre @ found.centre.mT, true @ true.mT)
    assert float(found.spread.max()) < 1e-6


@pytest.mark.parametrize(
    ("options", "verdict", "says"),
    [
        ({"law": "t3"}, "identified", ""),
        ({"law": "t3", "gaussian": 2}, "not identified", "may be Gaussian"),
        ({"law": "t3", "shared": True}, "contradicted", "latents' sizes"),
        ({"rows": 60}, "identified, undecided at this n", "tails leave open"),
    ],
)
def test_what_tails_tell_is_told_from_what_they_do_not(options: dict, verdict: str, says: str) -> None:
    data = simulate.draw("dense_fa", **{"seed": 100, "rows": 900, "features": 12, "latents": 3, "noise": 0.7} | options)
    program = pyrocrl.build("heavy_tailed_fa", data, latents=3, steps=120)
    fit = pyrocrl.fit(program, data, chains=2, seed=0, progress=False)
    found = pyrocrl.diagnose(fit, data)["latents"]
    assert found.verdict == verdict, found.reason
    assert says in found.reason
    if options.get("gaussian"):  # which mix, and that the third is told from them
        mixing = [fit.names["latent"].index(name) for name in found.which]
        other = next(k for k in range(3) if k not in mixing)
        z, true = fit.latents(data), data.truth["z"]
        assert len(mixing) == 2 and abs(np.corrcoef(z[:, other], true[:, 0])[0, 1]) > 0.95


def test_noise_of_heavy_tails_is_noticed() -> None:
    rng = np.random.default_rng(0)
    z, loadings = rng.standard_t(3, (1200, 2)), rng.standard_normal((8, 2))
    x = z @ loadings.T + rng.standard_t(3, (1200, 8))
    fit = pyrocrl.fit(
        pyrocrl.build("heavy_tailed_fa", Data(x), latents=2, steps=100), Data(x), chains=2, seed=0, progress=False
    )
    found = pyrocrl.diagnose(fit)["latents"]
    assert any(one.check == "kurtosis of what the latents leave" and one.result == "fails" for one in found.evidence)
