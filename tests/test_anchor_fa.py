"""`anchor_fa`: its sampler is exact, its start finds pure groups, and verdicts tell two pure features from fewer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import simulate
from pyrocrl.constructions.pure_groups import factors_shown, pure_groups
from pyrocrl.exact.gate_rows import PureOrSparse, RowPatterns
from pyrocrl.exact.goodness import residual_correlation
from pyrocrl.exact.rotations import varimax
from pyrocrl.exact.sparse_factors import RATE, SparseFactors, State, Summary, log_row_law, rival_axes
from pyrocrl.judge.metrics import mcc


def from_prior(rng: np.random.Generator, features: int = 5, latents: int = 2) -> State:
    purity, rate = rng.beta(1, 1), rng.beta(RATE / latents, 1, latents).clip(0, 1 - 1e-9)
    one = np.eye(latents)[rng.integers(latents, size=features)] > 0
    gate = np.where(rng.random((features, 1)) < purity, one, rng.random((features, latents)) < rate)
    r = 2 * rng.beta(2, 2) - 1  # LKJ(2) of two latents
    variance = 0.5 / rng.gamma(1.5, size=features)
    loadings = gate * 0.7 * rng.standard_normal((features, latents))
    return State(loadings, variance, np.array([[1, r], [r, 1]]), purity, rate)


def rows_of(state: State, rows: int, rng: np.random.Generator) -> np.ndarray:
    z = rng.standard_normal((rows, 2)) @ np.linalg.cholesky(state.correlation).T
    return z @ state.loadings.T + rng.standard_normal((rows, len(state.variance))) * np.sqrt(state.variance)


def told(state: State) -> list[float]:
    gate = state.loadings != 0
    return [gate.sum(), (gate.sum(1) == 1).sum(), np.log(state.variance).mean(), state.correlation[0, 1], state.purity]


@pytest.mark.parametrize("rows", (3, 12))
def test_sweeps_leave_the_posterior_as_it_is(rows: int) -> None:
    """Truths from the prior, rows from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(400):
        state = from_prior(rng)
        before.append(told(from_prior(rng)))
        x = rows_of(state, rows, rng)
        law = SparseFactors(x.T @ x / rows, rows, slab=0.7, rate=0.5)
        for _ in range(4):
            state = law.sweep(state, rng)
        after.append(told(state))
    for old, new in zip(np.transpose(before), np.transpose(after), strict=True):
        assert stats.ks_2samp(old, new).pvalue > 1e-3


def test_the_laws_of_rows_of_gates_sum_to_one_and_draw_what_they_say() -> None:
    purity, rate = (torch.tensor(v, dtype=torch.float64) for v in (0.3, [0.2, 0.5, 0.05]))
    rows = torch.tensor([*itertools.product((0.0, 1.0), repeat=3)]).double()
    law = PureOrSparse(purity, rate, 1)
    density = torch.stack([law.log_prob(row[None]) for row in rows]).exp()
    assert float(density.sum()) == pytest.approx(1.0)
    np.testing.assert_allclose(density.log().numpy(), log_row_law(rows.numpy(), 0.3, rate.numpy()), rtol=1e-9)
    torch.manual_seed(0)
    drawn = law.sample((4000,))[:, 0]
    often = torch.stack([(drawn == row).all(-1).double().mean() for row in rows])
    assert (often - density).abs().max() < 0.03
    few = RowPatterns(rows[None, [1, 6, 4]], torch.tensor([[0.5, 0.3, 0.2]]).double().log())
    drawn = few.sample((4000,))[:, 0]
    assert float((drawn == rows[6]).all(-1).double().mean()) == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(drawn.mean(0), few.mean[0], atol=0.03, rtol=0)
    assert float(few.log_prob(rows[[6]]).exp()) == pytest.approx(0.3)


def test_a_latent_of_one_feature_is_its_noise() -> None:
    rng = np.random.default_rng(0)
    state = from_prior(rng)._replace(loadings=np.array([[0.5, 0], [0.6, 0], [0.4, 0.9], [0, 0], [0, 0]]))
    found = Summary.of([state], 3)
    assert (found.slope[:, 1] == 0).all() and found.log_variance[2] == pytest.approx(np.log(state.variance[2] + 0.81))
    np.testing.assert_array_equal(found.pure[:, 0], [1, 1, 1, 0, 0])


def test_latents_that_earn_too_little_are_pruned_and_others_stay() -> None:
    rng = np.random.default_rng(1)
    loadings = np.zeros((12, 2))
    loadings[:, 0], loadings[:2, 1] = 0.7, 0.6
    true = State(loadings, np.full(12, 0.5), np.eye(2), 0.5, np.full(2, 0.5))
    for shared, left in ((true, 2), (true._replace(loadings=loadings * [1, 0]), 1)):
        x = rows_of(shared, 400, rng)
        law = SparseFactors(x.T @ x / 400, 400, slab=0.7, rate=0.1)
        tried = law.pruned(true)
        assert (tried.loadings != 0).any(0).sum() == left
        exact = stats.multivariate_normal(np.zeros(12), loadings @ loadings.T + 0.5 * np.eye(12)).logpdf(x).sum()
        assert law.log_likelihood(true) == pytest.approx(exact + 400 * 6 * np.log(2 * np.pi))


def test_proportional_loadings_show_the_latents() -> None:
    for seed in (100, 101):
        data = simulate.draw("bing2020", seed=seed, rows=800)
        x = (data.x - data.x.mean(0)) / data.x.std(0)
        second = x.T @ x / len(x)
        assert factors_shown(second, len(x)) == 10
        start = pure_groups(second, 10)
        scaled = start.loadings / start.variance[:, None]
        z = x @ scaled @ np.linalg.inv(np.linalg.inv(start.correlation) + scaled.T @ start.loadings)
        parts = np.linalg.eigh(second)[1][:, -10:] * np.linalg.eigvalsh(second)[-10:] ** 0.5
        far = parts @ varimax(parts)
        assert mcc(data.truth["z"], z) > 0.955 > 0.94 > mcc(data.truth["z"], x @ np.linalg.pinv(far).T)


@pytest.mark.parametrize(("pure", "verdict"), [(2, "identified if"), (1, "not identified"), (0, "not identified")])
def test_two_pure_features_a_latent_are_told_from_fewer(pure: int, verdict: str) -> None:
    """Where latents have one pure feature or none, any of them may be taken as axes."""
    data = simulate.draw("bing2020", seed=101, rows=1000, latents=4, features=40, pure=pure, loadings="random")
    program = pyrocrl.build("anchor_fa", data, latents=6)
    fit = pyrocrl.fit(program, data, chains=2, seed=0, progress=False)
    found = pyrocrl.diagnose(fit, data)["latents"]
    assert found.verdict == verdict, found.reason
    assert int((fit.mask() > 0.5).any(0).sum()) == 4
    assert ("two features load on" in found.reason) == (pure < 2)


def test_features_that_might_as_well_be_pure_are_found() -> None:
    """Where all features load on both latents, some are proportional up to error, whichever are called pure."""
    rng = np.random.default_rng(0)
    sparse = np.kron(np.eye(2), np.ones((6, 1)))
    sparse = np.concatenate([sparse, [[0.8, 0.9], [0.9, -0.7]]])
    assert rival_axes(sparse, np.full_like(sparse, 0.04), np.eye(2)) is None
    dense = rng.standard_normal((50, 2))
    dense[:2, 1], dense[2:4, 0] = 0.0, 0.0
    a, b, _ = rival_axes(dense, np.full_like(dense, 0.04), np.eye(2)) or (0, 0, 0)
    assert min(a, b) > 3 and abs(np.linalg.det(dense[[a, b]])) < 0.2 * np.prod(np.linalg.norm(dense[[a, b]], axis=1))


def test_the_largest_residual_correlation_has_a_valid_p_value() -> None:
    rng = np.random.default_rng(0)
    covariance = 0.5 * np.eye(8) + 0.5
    p = [
        residual_correlation(np.cov(rng.multivariate_normal(np.zeros(8), covariance, 300).T), covariance, 300)[0]
        for _ in range(400)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.08
    other = covariance.copy()
    other[2, 5] = other[5, 2] = 0.75
    found, pair = residual_correlation(other, covariance, 300)
    assert found < 0.01 and pair == (2, 5)


def test_too_few_latents_contradict_it() -> None:
    data = simulate.draw("bing2020", seed=101, rows=1000, latents=4, features=40)
    fit = pyrocrl.fit(pyrocrl.build("anchor_fa", data, latents=3), data, chains=2, seed=0, progress=False)
    found = pyrocrl.diagnose(fit, data)["latents"]
    assert not found.identified
    assert any(one.check == "correlations that the latents leave" and one.result == "fails" for one in found.evidence)
