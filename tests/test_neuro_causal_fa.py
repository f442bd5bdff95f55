"""`neuro_causal_fa`: its law of masks, what a mask is worth, the search and walk over masks, and what verdicts see."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl.constructions.pure_children import climb, cover, fisher_z, linked, search, settled, turns_margin
from pyrocrl.dists import Moment
from pyrocrl.exact.mask_walk import given, matched, walk
from pyrocrl.exact.one_pure import OnePure
from pyrocrl.exact.pure_masks import Bools, MaskPosterior, Pure, log_prior, prior_flips
from pyrocrl.exact.spike_slab import second_root
from pyrocrl.lab.suite.covers import BLOCKS, covered
from pyrocrl.simulate import draw


def all_masks(features: int, latents: int) -> list[Bools]:
    cells = itertools.product((False, True), repeat=features * latents)
    return [np.array(one).reshape(features, latents) for one in cells]


def posterior(data: pyrocrl.Data) -> MaskPosterior:
    x = (data.x - data.x.mean(0)) / data.x.std(0)
    return MaskPosterior(x.T @ x / len(x), len(x), 0.4, 0.1)


def padded(mask: np.ndarray, latents: int) -> Bools:
    return np.pad(mask > 0, ((0, 0), (0, latents - mask.shape[1])))


def test_the_law_of_masks_sums_to_one_over_masks_with_pure_children() -> None:
    law = OnePure(torch.tensor(0.3, dtype=torch.float64), 5, 2)
    masks = all_masks(5, 2)
    told = law.log_prob(torch.tensor(np.array(masks, dtype=float)))
    assert float(told.exp().sum()) == pytest.approx(1.0)
    own = np.array([log_prior(mask, 0.3) for mask in masks])
    assert [math.isfinite(one) for one in own] == [Pure.of(mask).allowed for mask in masks]
    fine = np.isfinite(own)
    np.testing.assert_allclose(own[fine], told.numpy()[fine])
    assert sum(math.exp(log_prior(mask)) for mask in masks) == pytest.approx(1.0), "the density summed out"
    torch.manual_seed(0)
    drawn = law.sample((20_000,)).numpy().reshape(20_000, -1) @ 2.0 ** np.arange(9, -1, -1)
    seen = np.bincount(drawn.astype(int), minlength=1024)
    expected = 20_000 * told.exp().numpy()
    often = expected > 5
    assert seen[expected == 0].sum() == 0
    statistic = float((np.square(seen - expected)[often] / expected[often]).sum())
    assert stats.chi2.sf(statistic, often.sum() - 1) > 1e-4


def test_flips_of_the_law_are_differences() -> None:
    rng = np.random.default_rng(0)
    mask = padded(draw("markham2024", 100, rows=2, features=9, latents=3, density=0.3).truth["mask"], 4)
    mask[rng.integers(9)] = False
    mask = settled(mask)
    found, before = prior_flips(mask), log_prior(mask)
    assert (found[:, ~mask.any(0)] == -math.inf).all()
    for place in zip(*np.nonzero(mask.any(0) & np.ones_like(mask)), strict=True):
        other = mask.copy()
        other[place] ^= True
        assert found[place] == pytest.approx(log_prior(other) - before)


def test_the_law_of_loadings_is_away_from_0() -> None:
    law = Moment(torch.tensor(0.4, dtype=torch.float64))
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    assert float(torch.trapezoid(law.log_prob(x).exp(), x)) == pytest.approx(1.0, abs=1e-6)
    torch.manual_seed(0)
    drawn = law.sample((20_000,))
    assert float(drawn.square().mean()) == pytest.approx(3 * 0.16, rel=0.03)
    assert abs(float(drawn.mean())) < 0.02 and float((drawn.abs() < 0.1).double().mean()) < 0.02


def test_evidence_is_that_of_importance_sampling() -> None:
    """Of one latent of three and of four features."""
    data = covered(100, [[1]] * 3 + [[0]], 150, size=(0.7, 0.9))
    told = posterior(data)
    rng = np.random.default_rng(0)
    for count in (3, 4):
        mask = np.arange(4)[:, None] < count
        answer, covariance = told(mask), told.covariance(mask)
        j, k = mask.nonzero()
        centre = np.concatenate([answer.loadings[j, k], answer.log_variance])
        law = stats.multivariate_t(centre, covariance, df=6, seed=rng)
        points, weights = law.rvs(4000), []
        for point in points:
            loadings, log_variance = np.zeros(mask.shape), point[count:]
            loadings[j, k] = point[:count]
            square = np.square(point[:count] / told.slab)
            normal = told.log_density(loadings, log_variance) - count * math.log(told.slab * math.sqrt(2 * math.pi))
            weights.append(normal + np.log(square).sum())
        log_weights = np.array(weights) - law.logpdf(points)
        sampled = np.logaddexp.reduce(log_weights) - math.log(len(points))
        ours = answer.value - log_prior(mask) - math.log(2)  # of either sign
        assert ours == pytest.approx(sampled, abs=0.4)


def test_scoring_is_the_slope_of_the_density() -> None:
    told = posterior(covered(100, BLOCKS, 200))
    rng, mask = np.random.default_rng(1), np.array(BLOCKS) > 0
    j, k = mask.nonzero()
    loadings, log_variance = mask * rng.normal(size=mask.shape), rng.normal(size=12) - 1
    grad = told.scoring(loadings, log_variance, j, k)[0]
    for place in (0, 5, len(j) + 3):
        up, down = ((loadings.copy(), log_variance.copy()) for _ in range(2))
        for (one, other), step in ((up, 1e-5), (down, -1e-5)):
            if place < len(j):
                one[j[place], k[place]] += step
            else:
                other[place - len(j)] += step
        assert (told.log_density(*up) - told.log_density(*down)) / 2e-5 == pytest.approx(grad[place], rel=1e-5)


def test_flips_tell_what_an_entry_is_worth() -> None:
    data = draw("markham2024", 100, rows=500, features=15, latents=5)
    told, mask = posterior(data), padded(data.truth["mask"], 6)
    answer = told(mask)
    close = np.argwhere((answer.flips > -8) & np.isfinite(answer.flips))
    assert len(close) > 10
    for j, k in close[:12]:
        other = mask.copy()
        other[j, k] ^= True
        assert answer.flips[j, k] == pytest.approx(told(other).value - answer.value, abs=1.5)
    moved = mask[:, [2, 0, 5, 1, 4, 3]]
    assert told(moved).value == answer.value and len(told.known) <= 13, "labels of latents do not matter"
    np.testing.assert_array_equal(told(moved).loadings != 0, moved)


def test_the_construction_finds_the_cover_of_true_dependences() -> None:
    for seed in (100, 101, 102):
        mask = draw("markham2024", seed, rows=2, features=20, latents=8).truth["mask"] > 0
        found = cover(mask.astype(int) @ mask.T > 0, 20)
        assert {*map(bytes, found.T[found.any(0)])} == {*map(bytes, mask.T)}


def test_the_search_finds_masks_where_tests_of_pairs_do_not() -> None:
    right = tested = 0
    for seed in range(100, 104):
        data = draw("markham2024", seed, rows=500, features=20, latents=8)
        told, true = posterior(data), padded(data.truth["mask"], 10)
        best = search(told, 10, np.random.default_rng(seed))[0]
        right += told.key(best.mask) == told.key(true)
        tested += told.key(cover(linked(fisher_z(told.second, 500), 0.001), 10)) == told.key(true)
        assert best.value >= climb(told, true).value - 1e-6
    assert right == 4 > tested


def test_a_walk_visits_masks_as_often_as_they_are_probable() -> None:
    told = posterior(covered(103, [[1]] * 3 + [[0]] * 2, 60, size=(0.4, 0.7)))
    masks = [mask for mask in all_masks(5, 2) if Pure.of(mask).allowed]
    value = {told.key(mask): told(mask).value for mask in masks}
    own = np.array(list(value.values()))
    labels = np.array([math.comb(2, int(np.frombuffer(key, bool).reshape(5, 2).any(0).sum())) for key in value])
    chance = dict(zip(value, np.exp(own - own.max()) * labels, strict=True))
    total = sum(chance.values())
    near = [np.frombuffer(key, bool).reshape(5, 2).copy() for key in sorted(value, key=lambda k: -value[k])[:12]]
    seen = [told.key(one) for one in walk(told, near[0], near, 5000, np.random.default_rng(0))]
    for key in sorted(chance, key=lambda k: -chance[k])[:5]:
        assert np.mean([one == key for one in seen]) == pytest.approx(chance[key] / total, abs=0.05)


def test_draws_of_loadings_are_those_of_the_posterior() -> None:
    """Of one latent of four features: moments against those of importance sampling."""
    told = posterior(covered(104, [[1]] * 4, 300, size=(0.6, 0.9)))
    mask, rng = np.ones((4, 1), dtype=bool), np.random.default_rng(0)
    root = second_root(told.second, told.rows)
    found = [given(told, mask, root, rng) for _ in range(700)]
    answer, covariance = told(mask), told.covariance(mask)
    law = stats.multivariate_t(np.append(answer.loadings, answer.log_variance), covariance, df=6, seed=rng)
    points = law.rvs(5000)
    inner = [told.log_density(p[:4, None], p[4:]) + np.log(np.square(p[:4])).sum() for p in points]
    weight = np.exp(np.array(inner) - law.logpdf(points) - max(inner))
    weight /= weight.sum()
    mean = weight @ points
    spread = np.sqrt(weight @ np.square(points - mean))
    ours = np.array([np.append(loadings, np.log(variance)) for loadings, variance in found])
    assert (np.abs(ours.mean(0) - mean) < 0.25 * spread).all()
    np.testing.assert_allclose(ours.std(0), spread, rtol=0.25)


def test_columns_are_matched() -> None:
    mask = np.array(BLOCKS) > 0
    np.testing.assert_array_equal(matched(mask[:, [2, 0, 1]], mask), mask)
    np.testing.assert_array_equal(matched(padded(mask[:, [1]], 3), mask), mask & [False, True, False])


def test_a_turn_of_two_latents_is_seen_where_loadings_are_orthogonal() -> None:
    one, other, along, across = (1.2, 0.0), (0.0, 1.2), (1.0, 0.7), (-0.7, 1.0)
    told = posterior(covered(100, [one, other, along, across] * 2, 1000, exact=True))
    margin, cosine, error, more = turns_margin(told, search(told, 3, np.random.default_rng(0))[0].mask)
    assert margin < 6 and abs(cosine) < 3 * error and more == 0
    apart = posterior(covered(100, [*[one] * 3, *[other] * 3, along, across], 1000, exact=True))
    assert turns_margin(apart, search(apart, 3, np.random.default_rng(0))[0].mask)[0] > 6


def test_setting_has_pure_children_and_refuses_what_cannot_be() -> None:
    data = draw("markham2024", 3, rows=50, features=20, latents=8)
    mask = data.truth["mask"]
    assert mask.sum() == 37 and (mask.sum(0) > 1).all() and Pure.of(mask > 0).allowed
    with pytest.raises(pyrocrl.InputError, match=r"^latents: found 8; allowed: so few that the other features"):
        draw("markham2024", 3, features=10, latents=8)


def test_independent_latents_are_read_and_correlated_ones_are_not() -> None:
    for correlation, outcome in ((0.0, "identified if"), (0.4, "contradicted")):
        data = covered(101, BLOCKS, 1000, correlation=correlation)
        program = pyrocrl.build("neuro_causal_fa", data, latents=4, steps=300)
        fit = pyrocrl.fit(program, data, chains=2, seed=0, progress=False)
        verdict = pyrocrl.diagnose(fit)["mask"]
        assert verdict.verdict == outcome, str(verdict)
        if not correlation:
            used = (fit.mask() > 0.5).any(0)
            assert used.sum() == 3 and {*map(bytes, (fit.mask() > 0.5).T[used])} == {
                *map(bytes, (np.array(BLOCKS) > 0).T)
            }
