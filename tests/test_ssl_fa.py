"""Factor analysis with a spike-and-slab lasso: its laws, its ladder, its sampler, what it finds and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate

import pyrocrl
from pyrocrl.constructions.lasso_ladder import Ladder
from pyrocrl.exact.beta_bernoulli import SharedColumns
from pyrocrl.exact.spike_slab import SHAPE
from pyrocrl.exact.spike_slab_lasso import LassoSampler, laplace_draw, log_shares, log_sides
from pyrocrl.judge import metrics
from pyrocrl.simulate import draw


def test_columns_with_shares_sum_to_one_and_have_no_lone_entries() -> None:
    share = torch.tensor([0.6, 0.2], dtype=torch.float64)
    law = SharedColumns(share, 3)
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64).reshape(-1, 3, 2)
    masks = masks[(masks.sum(1) != 1).all(1)]
    log_prob = torch.stack([law.log_prob(mask) for mask in masks])
    assert float(log_prob.exp().sum()) == pytest.approx(1.0)
    stick = np.array([0.6, 0.2 / 0.6])
    ours = [float(log_shares(stick, mask.sum(0).long().numpy(), 3).sum()) for mask in masks]
    np.testing.assert_allclose(ours, log_prob.numpy())
    torch.manual_seed(0)
    drawn = law.sample((4000,))
    assert set(drawn.sum(1).flatten().tolist()) == {0.0, 2.0, 3.0}
    empty = float((drawn.sum(1)[:, 1] == 0).double().mean())
    assert empty == pytest.approx(0.8**3 / (1 - 3 * 0.2 * 0.8**2), abs=0.03)


@pytest.mark.parametrize("slope, precision, rate", [(1.5, 2.0, 1.0), (-30.0, 400.0, 100.0), (0.0, 50.0, 2.0)])
def test_a_loading_under_a_laplace_law_is_a_normal_one_cut_at_0(slope: float, precision: float, rate: float) -> None:
    def density(b: float) -> float:
        return rate / 2 * np.exp(slope * b - precision * b * b / 2 - rate * abs(b))

    sides = [integrate.quad(density, *ends, points=[0])[0] for ends in ((0, 6), (-6, 0))]
    told = log_sides(np.array(slope), np.array(precision), np.array(rate))
    np.testing.assert_allclose(np.exp(told), sides, rtol=1e-6)
    mean, square = (integrate.quad(lambda b, n=n: b**n * density(b), -6, 6, points=[0])[0] / sum(sides) for n in (1, 2))
    many = np.ones(20_000)
    drawn = laplace_draw(slope * many, precision * many, rate * many, np.random.default_rng(0))
    spread = np.sqrt(square - mean**2)
    assert drawn.mean() == pytest.approx(mean, abs=0.03 * spread)
    assert drawn.std() == pytest.approx(spread, rel=0.03)
    assert (drawn > 0).mean() == pytest.approx(sides[0] / sum(sides), abs=0.015)


def test_sweeps_keep_the_prior_of_data_from_the_prior() -> None:
    """Geweke (2004): parameters moved given data that were drawn given them keep the law that they have a priori."""
    rng = np.random.default_rng(1)
    rows, features, latents, slab, spike, rate = 20, 5, 2, 0.7, 0.05, 0.3
    sampler = LassoSampler(np.eye(features), rows, latents, slab, rate, 2.0, rng, spike)
    sampler.heated, sampler.frozen, sampler.settled = False, False, True

    def prior() -> None:
        sampler.concentration = float(np.exp(rng.standard_normal()))
        sampler.stick = rng.beta(sampler.concentration, 1.0, latents).clip(1e-9, 1 - 1e-9)
        sampler.opened = SharedColumns(torch.as_tensor(sampler.stick.cumprod()), features).sample().numpy() > 0.5
        scale = np.where(sampler.opened, slab, spike)
        sampler.loadings = sampler.opened.any(0) * rng.laplace(scale=scale)
        sampler.variance = rate / rng.standard_gamma(SHAPE, features)
        r = 2 * rng.beta(2.0, 2.0) - 1  # LKJ(2) of two
        sampler.correlation = np.array([[1.0, r], [r, 1.0]])

    def told() -> list[float]:
        return [
            np.log(sampler.concentration),
            np.log(sampler.stick[0]),
            np.log(sampler.stick[1]),
            sampler.mask.mean(),
            sampler.mask.any(0).sum(),
            np.log1p(np.abs(sampler.loadings[sampler.mask]).sum()),
            np.log1p(100 * np.abs(sampler.loadings[~sampler.mask]).sum()),
            np.log(sampler.variance).mean(),
            sampler.correlation[0, 1] ** 2,
        ]

    torch.manual_seed(0)
    before, after = [], []
    for _ in range(300):
        prior()
        before.append(told())
        for _ in range(6):
            z = rng.standard_normal((rows, latents)) @ np.linalg.cholesky(sampler.correlation).T
            x = z @ sampler.loadings.T + np.sqrt(sampler.variance) * rng.standard_normal((rows, features))
            value, vector = np.linalg.eigh(x.T @ x / rows)
            sampler.second, sampler.root = x.T @ x / rows, vector * np.sqrt(np.maximum(value, 0.0))
            sampler.sweep(rows)
        after.append(told())
    one, two = np.array(before), np.array(after)
    apart = (two.mean(0) - one.mean(0)) / np.sqrt((one.var(0) + two.var(0)) / len(one))
    assert (np.abs(apart) < 4).all(), apart
    wide = np.log(two.std(0) / one.std(0)) * np.sqrt(len(one))
    assert (np.abs(wide) < 5).all(), wide


def ladder(seed: int = 0) -> tuple[Ladder, np.ndarray]:
    data = draw("sparse_fa", seed=100, rows=800, latents=4, features=24, correlation=0.3)
    second = np.corrcoef(data.x.T)
    own = Ladder(second, data.rows, 6, 0.5, 0.01, 0.1, np.random.default_rng(seed))
    own.start(second)
    return own, data.truth["mask"]


def test_steps_climb_the_objective_and_turns_leave_the_covariance() -> None:
    own, _ = ladder()
    own.most = 10.0
    before = own.objective()
    for _ in range(40):
        own.step(10.0)
        assert own.objective() > before - 1e-6
        before = own.objective()
    covariance = own.loadings @ own.correlation @ own.loadings.T
    assert own.turn(10.0) > 0
    np.testing.assert_allclose(own.loadings @ own.correlation @ own.loadings.T, covariance, atol=1e-10)
    np.testing.assert_allclose(np.diag(own.correlation), 1.0)
    assert own.objective() > before + 1.0


def test_ladders_from_any_rotation_end_in_the_true_zeros() -> None:
    found = [(own := ladder(seed))[0].climb(own[0].second) for seed in range(3)]
    mask, best = ladder()[1], max(found, key=lambda mode: mode.objective)
    order = metrics.mcc(mask.astype(float), best.mask.astype(float), return_assignment=True)[1]
    np.testing.assert_array_equal(best.mask[:, order], mask > 0)
    assert best.mask.any(0).sum() == 4 and (best.loadings[:, ~best.mask.any(0)] == 0).all()


def test_finds_factors_and_their_number() -> None:
    data = draw("sparse_fa", seed=100, rows=4000, latents=3, features=30, correlation=0.3)
    fit = pyrocrl.fit(pyrocrl.build("ssl_fa", data, latents=5, starts=1), data, chains=2, seed=0, progress=False)
    score, nodes = metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    assert score > 0.97
    assert metrics.mask_scores(data.truth["mask"], fit.mask(), permutation=nodes)["f1"] > 0.97
    used = (fit.mask() > 0.5).any(0)
    assert used.sum() == 3
    drawn = fit.posterior(50, data, predictive=False, thin=500)["posterior"]["correlation"].mean(("chain", "draw"))
    off = np.abs(drawn.to_numpy()[np.ix_(used, used)][np.triu_indices(3, 1)])
    assert np.abs(off - 0.3).max() < 0.15
    verdict = pyrocrl.diagnose(fit)
    assert verdict["latents"].verdict == "identified if", str(verdict)


def test_refuses_dense_loadings() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((800, 3)) @ rng.standard_normal((3, 20)) + 0.5 * rng.standard_normal((800, 20))
    data = pyrocrl.Data(x)
    fit = pyrocrl.fit(pyrocrl.build("ssl_fa", data, latents=3, starts=1), data, chains=2, seed=0, progress=False)
    verdict = pyrocrl.diagnose(fit)
    assert all(claim.verdict in ("not identified", "contradicted") for claim in verdict.claims), str(verdict)


def test_a_spike_is_narrower_than_the_slab() -> None:
    data = draw("sparse_fa", seed=100, rows=50, latents=2, features=8)
    with pytest.raises(pyrocrl.InputError, match=r"^spike: found 0.2; allowed: at most 0.1, a tenth of the slab"):
        pyrocrl.build("ssl_fa", data, latents=2, spike=0.2)
