"""`sparse_dictionary`: evidence of supports, draws and their density, the search, recovery, what breaks it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl.constructions import dictionaries
from pyrocrl.dists import PositiveSpikeSlab, log_below
from pyrocrl.errors import InputError
from pyrocrl.exact.sparse_codes import Codes, Drawn
from pyrocrl.judge import checks, fit_tests, metrics
from pyrocrl.lab.studies.codes import directions_matched
from pyrocrl.models.sparse_dictionary import SparseDictionary
from pyrocrl.simulate import draw


@pytest.fixture
def small() -> tuple[Codes, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    told = {
        "w": torch.randn(4, 5, generator=generator, dtype=torch.float64),
        "variance": torch.rand(4, generator=generator, dtype=torch.float64) * 0.1 + 0.05,
        "spread": torch.rand(5, generator=generator, dtype=torch.float64) * 0.3 + 0.2,
        "rate": torch.rand(5, generator=generator, dtype=torch.float64) * 0.3 + 0.1,
    }
    z = PositiveSpikeSlab(told["rate"], torch.ones(5, dtype=torch.float64), told["spread"]).sample((40,))
    x = z @ told["w"].mT + told["variance"].sqrt() * torch.randn(40, 4, generator=generator, dtype=torch.float64)
    return Codes(**told), x, told


def evidence(x: np.ndarray, support: tuple[int, ...], told: dict[str, torch.Tensor]) -> float:
    """log p(x, support), one magnitude at most, up to a constant: by the normal law of x, and that it is positive."""
    w, variance, spread, rate = (told[name].numpy() for name in ("w", "variance", "spread", "rate"))
    s = np.isin(np.arange(len(rate)), support)
    cov = np.diag(variance) + (w[:, s] * spread[s] ** 2) @ w[:, s].T
    out = stats.multivariate_normal(w[:, s].sum(1), cov).logpdf(x) + np.log(np.where(s, rate, 1 - rate)).sum()
    for k in support:
        precision = w[:, k] @ (w[:, k] / variance) + spread[k] ** -2
        mean = (w[:, k] @ (x / variance) + spread[k] ** -2) / precision
        out += stats.norm.logcdf(mean * math.sqrt(precision)) - stats.norm.logcdf(1 / spread[k])
    return float(out)


def test_log_below_is_the_normal_law() -> None:
    z = torch.linspace(-30, 6, 400, dtype=torch.float64)
    torch.testing.assert_close(log_below(z), torch.special.log_ndtr(z), atol=1e-3, rtol=0)


def test_evidence_of_supports_is_exact(small) -> None:
    """Of none and of one latent, by the law of x; of more, by rank one as from the start."""
    codes, x, told = small
    none = torch.full((len(x), 1), 5)
    weight = codes.near(x, none).log_weight[:, -1]
    for k in range(5):
        want = [evidence(row, (k,), told) - evidence(row, (), told) for row in x.numpy()]
        np.testing.assert_allclose(weight[:, k], want, atol=1e-3)
        np.testing.assert_allclose(codes.evidence(x, none * 0 + k), want, atol=1e-3)
    places = torch.tensor([[0, 2, 5]]).expand(len(x), -1)
    near = codes.near(x, places)
    assert (near.flat > -1e29).sum(1).unique() == 1 + 3 + 2 * 4  # itself, one more, one less or exchanged
    for place, latent in itertools.product((0, 1, 3), (1, 3, 4, 5)):
        which = torch.full((len(x),), place * 6 + latent)
        moved = near.moved(which)
        change = near.flat.gather(1, which[:, None])[:, 0] - near.log_weight[:, -1, -1]
        sure = codes.given(x, moved)[0].min(1).values > 0.7  # signs hold for certain
        exact = codes.evidence(x, moved) - codes.evidence(x, places)
        both = sure & (codes.given(x, places)[0].min(1).values > 0.7)
        torch.testing.assert_close(change[both], exact[both], atol=0.05, rtol=0)


def test_density_is_that_of_draws(small) -> None:
    """Densities of supports and magnitudes add up to one; probabilities of firing and means are those of draws."""
    codes, x, _ = small
    torch.manual_seed(0)
    law = Drawn(codes, x[:1].expand(20_000, -1), 3)
    z = law.sample()
    fires = (z > 0).double().mean(0)
    torch.testing.assert_close(law.near.firing()[0], fires, atol=0.02, rtol=0)
    mean = codes.mean(law.x[:1], codes.near(law.x[:1], law.near.places[:1]))[0]
    torch.testing.assert_close(mean, z.mean(0), atol=0.03, rtol=0)
    density = law.log_prob(z)
    assert torch.isfinite(density).all()
    one = (z > 0).sum(1) == 1
    k = int((z[one] > 0).double().mean(0).argmax())
    own = one & (z[:, k] > 0)
    grid = torch.linspace(1e-4, 4, 4001, dtype=torch.float64)
    at = torch.zeros(len(grid), 5, dtype=torch.float64)
    at[:, k] = grid
    mass = torch.trapezoid(Drawn(codes, x[:1].expand(len(grid), -1), 3).log_prob(at).exp(), grid)
    assert abs(float(mass) - float(own.double().mean())) < 0.02
    far = torch.ones(1, 5, dtype=torch.float64)
    assert Drawn(codes, x[:1], 1).log_prob(far) == -math.inf  # no such support is near


def test_search_finds_the_most_probable_support(small) -> None:
    codes, x, _ = small
    supports = [s for size in range(4) for s in itertools.combinations(range(5), size)]
    places = torch.tensor([[*s, *[5] * (3 - len(s))] for s in supports])
    value = torch.stack([codes.evidence(x, p.expand(len(x), -1)) for p in places], 1)
    for near in (codes.search(x, 3), codes.steady(x, 3)):
        assert float((value.max(1).values - codes.evidence(x, near.places) < 0.5).double().mean()) > 0.9
        assert (near.places < 5).sum(1).max() <= 3


def test_learns_directions_and_leaves_out_those_that_are_not_there() -> None:
    data = draw("synth_sae_small", seed=101, rows=2000, latents=12, features=8, active=1.2)
    program = pyrocrl.build("sparse_dictionary", data, latents=14, most=4)
    fit = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
    scale = np.asarray(fit.units.scale)[:, None]  # type: ignore[union-attr]
    best = fit.chains.chain(fit.reference)
    used, w = fit.in_use(fit.reference), best.loadings.loc.detach().numpy() * scale
    assert used.sum() == 12
    score, nodes = directions_matched(data.truth["loadings"], np.where(used, w, 0.0))
    assert score > 0.98
    with torch.no_grad():
        chance = best.firing(fit.batch_of(data)).double().numpy()[:, nodes]
    fires = data.truth["z"] > 0
    assert ((chance > 0.5) == fires).mean() > 0.98
    assert metrics.expected_calibration_error(fires, chance) < 0.02
    assert not any(test.fails for test in fit_tests.tests(fit, data))
    assert all(checks.CHECKS[need](fit, data) is None for need in SparseDictionary.card.claims[0].needs)


@pytest.mark.parametrize(
    "options, latents, lack",
    [({"active": 5.0}, 8, "firing_told"), ({}, 5, "")],
    ids=["dense", "too few"],
)
def test_notices_what_breaks_it(options: dict, latents: int, lack: str) -> None:
    data = draw("synth_sae_small", seed=102, **{"rows": 1000, "latents": 8, "features": 6, "active": 1.2} | options)
    program = pyrocrl.build("sparse_dictionary", data, latents=latents, most=5)
    fit = pyrocrl.fit(program, data, chains=1, progress=False)
    unexplained = any(test.fails for test in fit_tests.tests(fit, data))
    assert unexplained or (lack and checks.CHECKS[lack](fit, data) is not None)


def test_matching_is_one_to_one_and_misses_count() -> None:
    true = np.eye(3)
    assert directions_matched(true, np.eye(3)[:, [2, 0, 1]])[0] == 1.0
    score, nodes = directions_matched(true, np.eye(3)[:, [0, 0, 1]])
    assert score == pytest.approx(2 / 3) and sorted(nodes[:2]) != [0, 0]
    assert directions_matched(true, np.eye(3)[:, :2])[1].tolist() == [0, 1, -1]


def test_setting_refuses_what_cannot_be() -> None:
    with pytest.raises(InputError, match="active"):
        draw("synth_sae_small", latents=4, features=3, active=3.9, zipf=1.0)
    with pytest.raises(InputError, match="together"):
        draw("synth_sae_small", latents=4, features=3, active=1.0, together=3)


def test_objective_is_best_at_the_truth() -> None:
    data = draw("synth_sae_small", seed=103, rows=800, latents=8, features=6, active=1.0)
    x = torch.as_tensor((data.x - data.x.mean(0)) / data.x.std(0))
    w = torch.as_tensor(data.truth["loadings"] / data.x.std(0)[:, None])
    z = torch.as_tensor(data.truth["z"])
    rate, like = (z > 0).double().mean(0), torch.ones(8, dtype=torch.float64)
    true = dictionaries.Dictionary(w, -w @ z.mean(0), torch.as_tensor(0.05 / data.x.std(0)) ** 2, 0.3 * like, rate)
    turned = dictionaries.Dictionary(w.roll(1, 0), true.center, true.noise, true.spread, rate)
    assert dictionaries.objective(x, true, 4) > dictionaries.objective(x, turned, 4) + 1
