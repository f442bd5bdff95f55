"""`independent_support`: densities of boxes, the search, the sampler, recovery, what breaks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import pyrocrl
from pyrocrl.constructions import boxes as construction
from pyrocrl.constructions import spans
from pyrocrl.errors import InputError
from pyrocrl.exact import boxes
from pyrocrl.exact.box_sampling import BoxSampler
from pyrocrl.exact.box_walks import BoxDraws, Prior, Walks
from pyrocrl.judge.checks import CHECKS
from pyrocrl.judge.metrics import mcc
from pyrocrl.models.independent_support import IndependentSupport
from pyrocrl.simulate import draw

SMALL = {"rows": 1000, "latents": 2, "features": 6, "filled": 0.6}


def tensor(value: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


@pytest.fixture
def seen() -> boxes.Unmixed:
    rng = np.random.default_rng(0)
    loadings, center, variance = rng.normal(size=(5, 2)), rng.normal(size=5), rng.uniform(0.01, 0.05, 5)
    x = rng.uniform(-1.2, 1.2, (40, 2)) @ loadings.T + center + 0.1 * rng.normal(size=(40, 5))
    return boxes.unmixed(*(tensor(v) for v in (x, loadings, center, variance)))


def test_log_below_is_the_normal_law_far_out() -> None:
    z = torch.linspace(-60, 30, 901, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(boxes.log_below(z), torch.special.log_ndtr(z), atol=1e-10, rtol=0)
    assert torch.isfinite(torch.autograd.grad(boxes.log_below(z).sum(), z)[0]).all()


def test_filled_density_is_a_box_with_noise() -> None:
    """By quadrature over the box, and as the law of draws."""
    soft, at = 0.2, np.linspace(-1.8, 1.8, 13)
    exact = [integrate.quad(lambda z: 0.5 * stats.norm.pdf(u, z, soft), -1, 1)[0] for u in at]  # noqa: B023
    np.testing.assert_allclose(boxes.log_filled(tensor(at)[:, None], tensor([soft])).exp()[:, 0], exact, rtol=1e-6)
    np.testing.assert_allclose(np.exp(construction.log_filled(at[:, None], np.array([soft])))[:, 0], exact, rtol=1e-6)


def test_density_of_x_is_that_of_the_noise_it_says() -> None:
    """log p(x | z) by parts is the normal law with the covariance that `noise_tril` has."""
    rng = np.random.default_rng(1)
    loadings, center, variance = rng.normal(size=(5, 2)), rng.normal(size=5), rng.uniform(0.1, 0.5, 5)
    x, z = rng.normal(size=(7, 5)), rng.normal(size=(7, 2))
    one = boxes.unmixed(*(tensor(v) for v in (x, loadings, center, variance)))
    parts = one.rest + torch.distributions.Normal(tensor(z), one.soft).log_prob(one.u).sum(-1)
    root = boxes.noise_tril(tensor(loadings), tensor(variance)).numpy()
    exact = [
        stats.multivariate_normal(center + loadings @ k, root @ root.T).logpdf(row) for k, row in zip(z, x, strict=True)
    ]
    np.testing.assert_allclose(parts, exact, rtol=1e-9)


def test_latents_given_x_are_drawn_from_their_density(seen: boxes.Unmixed) -> None:
    """Means of draws are the means told, of rows that fill, also far beyond the box, and of others."""
    middle, below = tensor(np.array([[0.3, -0.2]])), boxes.places_below(2).double()
    tril = boxes.tril_of(tensor(np.array([[0.4, 0.3]])), tensor(np.array([[0.8]])), below)
    few = boxes.Unmixed(torch.cat([seen.u[:6], 8 * seen.u[:2]]), seen.soft * 3, torch.zeros(8).double())
    torch.manual_seed(0)
    for component in (0, 1):
        which = torch.full((8,), component)
        z = torch.stack([boxes.BoxOrBulkGiven(few, which, middle, tril).sample() for _ in range(1500)])
        share = torch.eye(2, dtype=torch.float64)[which].clamp_min(1e-300).log()
        torch.testing.assert_close(boxes.mean_given(few, share, middle, tril), z.mean(0), atol=0.03, rtol=0.03)
        assert component or z.abs().max() <= 1


@pytest.mark.parametrize("bad", [0.0, 0.05], ids=["clean", "one row in twenty bad"])
def test_search_finds_the_box_that_ica_misses(bad: float) -> None:
    data = draw("wang2024_support", seed=105, rows=3000, latents=3, filled=0.2, bad=bad)
    x, rng = (data.x - data.x.mean(0)) / data.x.std(0), np.random.default_rng(0)
    space = spans.span(x, 3)
    y, z = space.rows(x)[space.kept], data.truth["z"][space.kept]
    assert abs(space.kept.mean() - (1 - bad)) < 0.02
    box = construction.search(y, space.noise, 6, 2, rng)
    assert mcc(z, y @ box.unmixing.T) > 0.99
    assert abs(box.fill - 0.2) < 0.05
    assert mcc(z, y @ construction.weighted_sources(y, np.ones(len(y)), rng)[0].T) < 0.9
    edges = np.quantile(np.abs(y @ box.unmixing.T + box.offset), 0.98, axis=0)
    assert (np.abs(edges - 1) < 0.06).all()


class Read:
    """Rows that are read without error."""

    def __init__(self, y: np.ndarray, noise: float) -> None:
        self.y, self.noise = y, noise

    def at(self, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return e, e

    def read(self, e: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        both = [np.broadcast_to(v, (len(e), *v.shape)) for v in (self.y, self.noise * np.eye(self.y.shape[1]))]
        return both[0], both[1], -0.5 * (e**2).sum(1)


def walks(many: int, unmixing: np.ndarray, fill: float = 0.9, law: float = 0.09) -> Walks:
    eye = np.broadcast_to(np.eye(2), (many, 2, 2, 2))
    to = np.broadcast_to(unmixing, (many, 2, 2))
    return Walks(
        to, np.zeros((many, 2)), np.full(many, fill), np.full((many, 2), 0.5), np.zeros((many, 2, 2)), law * eye
    )


def test_sampler_keeps_to_the_posterior_of_an_edge() -> None:
    """Rows on [-1, 1]^2: ends are beyond the largest row by as much as there is room for, n to one."""
    rng = np.random.default_rng(0)
    space = Read(rng.uniform(-1, 1, (400, 2)), 1e-8)
    sampler = BoxSampler(space, np.ones(1), Prior(np.eye(3, 2), np.zeros(3), 0.3), rng, moves=False)
    sampler.begin(walks(1, 0.97 * np.eye(2), law=1e-3))
    found = sampler.run(600)
    assert (found.fill > 0.95).all()
    half = 1 / np.abs(np.linalg.det(found.unmixing)) ** 0.5
    assert 0.99 < half.mean() < 1.02 and half.std() > 1e-4
    assert np.abs(found.unmixing[:, 0, 1]).max() < 0.03


def test_without_a_likelihood_draws_are_those_of_the_story() -> None:
    """Loadings and middles are standard normal, widths log-normal, lean standard normal, shares uniform."""
    rng = np.random.default_rng(1)
    sampler = BoxSampler(Read(np.zeros((2, 2)), 1e-6), np.full(150, 1e-12), Prior(np.eye(2), np.zeros(2), 0.3), rng)
    sampler.begin(walks(150, np.eye(2), fill=0.5))
    for one in range(450):
        sampler.sweep(one < 100, 0.3)
    found = sampler.walks
    loadings = np.linalg.inv(found.unmixing)
    assert loadings.std() == pytest.approx(1, abs=0.15)
    middle, covariance, noise = sampler._in_z(found.unmixing, found.offset)
    tril = np.linalg.cholesky(covariance - noise)
    width = np.log(np.diagonal(tril, axis1=-2, axis2=-1) / 0.3)
    assert middle.std() == pytest.approx(1, abs=0.1)
    assert width.mean() == pytest.approx(0, abs=0.15) and width.std() == pytest.approx(1, abs=0.15)
    assert (tril[..., 1, 0] / tril[..., 1, 1]).std() == pytest.approx(1, abs=0.15)
    assert found.fill.std() == pytest.approx(12**-0.5, abs=0.03)
    assert sampler.e.std() == pytest.approx(1, abs=0.1)  # what nothing tells is as it was said to be


def test_walks_cross_to_the_box_from_a_turned_one() -> None:
    rng = np.random.default_rng(2)
    y = np.concatenate([rng.uniform(-1, 1, (90, 2)), 0.2 * rng.standard_normal((60, 2)) @ [[1, 0.9], [0, 0.4]]])
    turned = np.array([[1, 1], [1, -1]]) / 2
    sampler = BoxSampler(
        Read(y, 1e-4), np.geomspace(1, 0.6, 6), Prior(np.eye(3, 2), np.zeros(3), 0.3), rng, moves=False
    )
    sampler.begin(walks(6, turned, fill=0.5))
    unit = sampler.run(300).unmixing
    assert (np.abs(unit).max(-1) / np.linalg.norm(unit, axis=-1)).mean() > 0.99


def test_draws_are_told_in_one_order() -> None:
    one = np.array([[1.0, 0.1], [0.1, 2.0]])
    draws = [one, -one[::-1], one[::-1] * [[1], [-1]]]
    none = np.zeros(3)
    offset = np.array([[1.0, 2], [-2, -1], [2, -1]])
    found = BoxDraws(np.array(draws), offset, none, none, none, none, none, np.array([2.0, 1, 0])).in_order()
    np.testing.assert_allclose(found.unmixing, np.broadcast_to(one, (3, 2, 2)))
    np.testing.assert_allclose(found.offset, np.broadcast_to([1.0, 2], (3, 2)))


def test_noise_is_as_open_as_rows_leave_it() -> None:
    """Of eight features' variances nine in ten intervals of 90 % hold the truth, over sets of rows."""
    inside = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        loadings, variance = rng.normal(size=(8, 2)), rng.uniform(0.005, 0.05, 8)
        x = rng.uniform(-1, 1, (150, 2)) @ loadings.T + np.sqrt(variance) * rng.standard_normal((150, 8))
        law = spans.settled(spans.span(x, 2), x, 1.5, 0.01)
        drawn = law.at(rng.standard_normal((400, 24)))[1]
        inside.append(np.abs((drawn < variance).mean(0) - 0.5) < 0.45)
    assert 0.8 < np.mean(inside) < 0.97


def test_recovers_and_says_so() -> None:
    data = draw("wang2024_support", seed=106, **SMALL)
    fit = pyrocrl.fit(pyrocrl.build("independent_support", data, steps=100), data, seed=0, progress=False)
    assert mcc(data.truth["z"], fit.latents(data)) > 0.99
    assert all(CHECKS[need](fit, data) is None for need in IndependentSupport.card.claims[0].needs)
    told = pyrocrl.diagnose(fit, data)["latents"]
    assert told.verdict == "identified if" and any("box" in sentence for sentence in told.given)


@pytest.mark.parametrize("support", ["ball", "simplex", "unbounded"])
def test_notices_supports_that_are_no_box(support: str) -> None:
    data = draw("wang2024_support", seed=107, rows=1000, latents=2, features=6, support=support)
    fit = pyrocrl.fit(pyrocrl.build("independent_support", data, steps=100), data, chains=1, seed=0, progress=False)
    lacks = [CHECKS[need](fit, data) for need in IndependentSupport.card.claims[0].needs]
    assert any(lacks), "nothing is lacking"


def test_axes_that_the_posterior_leaves_open_are_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    data = IndependentSupport.example()[1]
    fit = pyrocrl.fit(IndependentSupport(6, 2, components=2, steps=30), data, chains=1, seed=0, progress=False)
    monkeypatch.setattr(IndependentSupport, "rotated", lambda _: tensor(np.array([0.01, 0.01])))
    assert CHECKS["box_told"](fit, data) is None
    monkeypatch.setattr(IndependentSupport, "rotated", lambda _: tensor(np.array([0.01, 0.06])))
    lack = CHECKS["box_told"](fit, data)
    assert lack is not None and lack.rows == pytest.approx(3 * data.rows) and len(lack.which) == 1


def test_axes_apart_are_those_of_other_directions() -> None:
    one = construction.Box(np.eye(2), np.zeros(2), 0.5, construction.Bulk(*(np.ones(1),) * 3))
    assert np.allclose(construction.boxes_apart(one, one._replace(unmixing=np.array([[0, -3.0], [2, 0]]))), 0)
    assert construction.boxes_apart(one, one._replace(unmixing=np.array([[1.0, 0.5], [0, 1]]))).max() > 0.1


def test_bad_input_is_told() -> None:
    data = draw("wang2024_support", seed=0, rows=12, latents=2, features=6)
    with pytest.raises(InputError, match="18 or more, three for each"):
        IndependentSupport(6, 2).initialise(data, torch.Generator())
    with pytest.raises(InputError, match="latents"):
        IndependentSupport(features=4, latents=4)
    with pytest.raises(InputError, match="at most 8, the features"):
        draw("wang2024_support", latents=9)
