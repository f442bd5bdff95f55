"""Views of some of the latents: the construction, moments and draws, the group of the claim, and what is recovered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, InputError, simulate
from pyrocrl.claims.nested import Nested
from pyrocrl.constructions import view_intersections
from pyrocrl.exact import view_factors
from pyrocrl.exact.view_factors import Moments, Sampler, ViewFactors, ViewLoadings
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.diagnose import diagnose
from pyrocrl.lab.studies.view_blocks import apart, block_scores, by_view, canonical, read
from pyrocrl.lab.suite.view_sights import ONE, SHOWN, sights
from pyrocrl.models.multiview import Multiview

SLAB, RATE = 0.7, 0.05


@pytest.fixture(scope="module")
def lacking() -> tuple[Fit, Data]:
    data = simulate.draw("yao2024", 100, rows=400, sees="private", features=7, lacks=0.3)
    return pyrocrl.fit(pyrocrl.build("multiview", data), data, chains=2, progress=False), data


def moments(data: Data) -> Moments:
    x = (data.x - np.nanmean(data.x, 0)) / np.nanstd(data.x, 0)
    return Moments.of(np.nan_to_num(x), data.present, np.asarray(data.view))


def same(found: np.ndarray, data: Data) -> bool:
    return sorted(map(tuple, found.T)) == sorted(map(tuple, by_view(data.truth["mask"], data).T))


def dense(p: ViewLoadings) -> np.ndarray:
    return p.loadings @ p.correlation @ p.loadings.T + np.diag(p.variance)


@pytest.mark.parametrize("options", [{}, {"sees": "private", "dependent": True}, {"sees": "two"}, {"lacks": 0.7}])
def test_intersections_tell_which_views_see_which_latents(options: dict[str, Any]) -> None:
    data = simulate.draw("yao2024", 101, rows=1000, **options)
    law = ViewFactors(moments(data), SLAB, RATE)
    found = view_intersections.started(law, law.moments.whole(), data.truth["z"].shape[1])
    assert same(found.factors.sees, data) and found.margin > 3


def test_latents_of_two_views_that_nearly_are_one_are_told_apart() -> None:
    """The angle between them is one that noise of the loadings has as well."""
    data = simulate.draw("yao2024", 103, rows=2000, sees="private", alike=0.98)
    law = ViewFactors(moments(data), SLAB, RATE)
    assert same(view_intersections.started(law, law.moments.whole(), 6).factors.sees, data)


def test_moments_are_as_good_as_rows(lacking: tuple[Fit, Data]) -> None:
    fit, data = lacking
    program = fit.chains.chain(fit.reference)
    assert isinstance(program, Multiview)
    batch, p = fit.batch_of(data), program._factors()
    x, present, code = batch.x.double().numpy(), batch.present.numpy(), np.asarray(data.view)
    z, each = program._told(batch, program.centre.double(), program.noise.double(), program.tril.double())
    for row in (0, 1, 2, 50, 200):
        own = np.flatnonzero(present[row][code])
        cov = dense(p)[np.ix_(own, own)]
        assert float(each[row]) == pytest.approx(stats.multivariate_normal(cov=cov).logpdf(x[row, own]), abs=1e-6)
        mean = p.correlation @ p.loadings[own].T @ np.linalg.solve(cov, x[row, own])
        np.testing.assert_allclose(z.mean[row].numpy(), mean, atol=1e-6)
    law = ViewFactors(Moments.of(x, present, code), SLAB, RATE)
    total, cross, inner, whole = law.expected(p)
    assert total == pytest.approx(float(each.sum()), rel=1e-9)
    second = torch.einsum("rk,rl->rkl", z.mean, z.mean) + z.covariance_matrix
    np.testing.assert_allclose(whole, second.sum(0).numpy(), rtol=1e-6, atol=1e-6)
    has = batch.present[:, 1]
    np.testing.assert_allclose(inner[1], second[has].sum(0).numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(cross, (batch.x.double().mT @ z.mean).numpy() * 1.0, rtol=1e-6, atol=1e-6)


def test_each_step_climbs_and_another_answer_of_the_same_law_is_as_likely() -> None:
    data = simulate.draw("yao2024", 102, rows=300, sees="two")
    law = ViewFactors(moments(data), SLAB, RATE)
    p = view_intersections.factors(law, law.moments.whole(), 5)
    before = -np.inf
    for _ in range(4):
        p, now = law.climbed(p, 3)
        assert now + law.log_prior(p) >= before
        before = now + law.log_prior(p)
    sees = np.array([[1, 1, 0], [1, 1, 1]], dtype=bool)
    assert view_factors.free(sees, np.array([0, 0, 0, 1, 1, 1])) == 15 + 6 - 7  # latents 0 and 1 mix, 2 takes of both


def test_a_draw_is_of_the_posterior_of_what_a_view_sees() -> None:
    """The probability that the second view sees the latent of the first, against the sum over both answers by
    numerical integration of a case with one feature a view and known all else is not closed; so against evidence."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((200, 1))
    cross, inner, noise = rng.standard_normal((4, 1)) * 8, z.T @ z, rng.uniform(0.5, 1.5, 4)
    gain = view_factors.evidence(cross, inner, noise, SLAB, np.ones(1, dtype=bool))
    grid = np.linspace(-3, 3, 20_001)
    direct = 0.0
    for c, v in zip(cross[:, 0], noise, strict=True):
        log = grid * c / v - 0.5 * grid**2 * inner[0, 0] / v
        direct += np.log(np.trapezoid(np.exp(log) * stats.norm(0, SLAB).pdf(grid), grid))
    assert gain == pytest.approx(direct, abs=1e-5)


def test_draws_open_what_is_there_and_shut_what_is_not() -> None:
    data = simulate.draw("yao2024", 104, rows=300, sees="private", features=8)
    told = moments(data)
    law = ViewFactors(told, SLAB, RATE)
    best = view_intersections.started(law, told.whole(), 6).factors
    wrong = best._replace(sees=best.sees.copy())
    wrong.sees[0, np.flatnonzero(~best.sees[0])[0]] = True
    drawn = Sampler(told, wrong, SLAB, RATE, 2.0, np.random.default_rng(0)).draws(10, 20)
    assert (drawn.sees.mean(0) > 0.5).astype(int).tolist() == best.sees.astype(int).tolist()
    assert ((drawn.loadings != 0) == (drawn.sees[:, np.asarray(data.view)] > 0.5)).all()


def test_the_group_mixes_within_intersections_only() -> None:
    rng = np.random.default_rng(0)
    z, group = rng.standard_normal((200, 3)), Nested.seen([[1, 1, 0], [1, 0, 1]])  # latent 0 is in both views
    moved = z @ np.array([[2.0, 0.7, -0.5], [0.0, -1.0, 0.0], [0.0, 0.0, 3.0]])
    assert group.distance(moved, z) < 1e-9 and group.mixes and group.keeps_masks
    found = group.align(moved, z)
    np.testing.assert_allclose(found.apply(moved) - found.apply(moved).mean(0), z - z.mean(0), atol=1e-9)
    assert (found.matrix[[1, 1, 2], [0, 2, 1]] == 0).all()  # the shared latent takes nothing of private ones
    shared = moved + 0.5 * z[:, [1]] * np.array([1.0, 0.0, 0.0])
    assert group.distance(shared, z) > 0.01
    assert group.distance(z[:, :2], z) == 1.0
    with pytest.raises(InputError, match="with 3 latents"):
        group.align(z[:, :2], z[:, :2])
    with pytest.raises(InputError, match="intersections of views"):
        group.canonical(z)


def test_rows_that_lack_views_are_used_and_blocks_recovered(lacking: tuple[Fit, Data]) -> None:
    fit, data = lacking
    scores = block_scores(fit, data)
    assert scores["r2"] > 0.8 and scores["wrong_entries"] == 0
    shared = by_view(data.truth["mask"], data)[:2].all(0)
    block = fit.latents(data)[:, by_view(fit.mask(), data)[:2].all(0)]
    assert read(block, data.truth["z"][:, shared], True) > 0.9
    assert canonical(data, data, 0, 1, 2).shape == (400, 2)
    verdict = diagnose(fit, data)
    assert verdict["latents"].verdict == "identified if", str(verdict)
    assert set(verdict["latents"].given) >= {ONE, SHOWN}


def test_views_that_were_never_together_are_refused() -> None:
    data = sights(100, "never", sees="chain", rows=300, features=6)
    fit = pyrocrl.fit(pyrocrl.build("multiview", data, latents=4), data, chains=2, progress=False)
    found = diagnose(fit, data)["latents"]
    assert found.verdict == "not identified" and "together in 0 rows" in found.reason


def test_entries_are_counted_up_to_the_order_of_latents() -> None:
    sees = np.array([[1, 1, 0], [1, 0, 1]], dtype=bool)
    assert apart(sees, sees[:, [2, 0, 1]]) == 0
    assert apart(sees, np.ones_like(sees)) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"latents": 6, "views": ["a"] * 5 + ["b"] * 7},
            "latents: found 6, with 5 features in view 'a'; allowed: 1 to 5",
        ),
        ({"latents": 2, "views": ["a"] * 12}, "views: found 12 names, 1 of them different"),
        ({"latents": 2, "views": ["a", "b"]}, "views: found 2 names"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        Multiview(features=12, **options)


def test_data_without_views_are_refused() -> None:
    with pytest.raises(InputError, match="view: found None"):
        pyrocrl.build("multiview", Data(np.random.default_rng(0).standard_normal((30, 8))), latents=2)
