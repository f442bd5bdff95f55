"""Nonlinear ICA by structural sparsity: surfaces, draws, the start, conditions, what it finds and refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyrocrl import InputError, diagnose, fit, zoo
from pyrocrl.constructions import shared_supports
from pyrocrl.exact import surfaces
from pyrocrl.exact.surface_factors import SLACK, Sampler, latents_given
from pyrocrl.judge import metrics
from pyrocrl.judge.checks import CHECKS
from pyrocrl.judge.checks.surfaces import in_common
from pyrocrl.simulate import draw

PAIRS = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=bool)


def some_surfaces(seed: int, mask: np.ndarray) -> torch.Tensor:
    """(feature, term) coefficients drawn from the prior."""
    rng = np.random.default_rng(seed)
    terms = surfaces.terms(mask.shape[1])
    scale = np.sqrt(surfaces.shares(mask.shape[1]))
    gate = surfaces.gates(torch.as_tensor(mask * 1.0))
    return gate * torch.as_tensor(0.7 * scale * rng.standard_normal((len(mask), terms)))


def test_terms_are_orthonormal_from_a_line_on() -> None:
    z = torch.as_tensor(np.random.default_rng(0).standard_normal((200_000, 2)))
    phi = surfaces.design(z).numpy()
    assert phi.shape[1] == surfaces.terms(2)
    np.testing.assert_allclose(phi.T @ phi / len(phi), np.eye(phi.shape[1]), atol=0.06)
    assert abs(np.corrcoef(phi[:, 0], z[:, 0])[0, 1]) > 1 - 1e-6, "the first is a line, also beyond the ends"
    bent = np.tanh(2 * z[:, 0].numpy() - z[:, 1].numpy())
    left = bent - phi @ np.linalg.lstsq(phi, bent, rcond=None)[0]
    assert left.var() < 0.01 * bent.var()


def test_derivatives_are_those_of_the_surfaces() -> None:
    coefficients = some_surfaces(0, PAIRS)
    z = torch.as_tensor(np.random.default_rng(0).standard_normal((50, 3)))
    for k in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = 0.01
        slope = (surfaces.design(z + step) - surfaces.design(z - step)) @ coefficients.mT / 0.02
        np.testing.assert_allclose(surfaces.jacobian(z, coefficients)[:, :, k], slope, atol=0.02)
    assert (surfaces.jacobian(z, coefficients)[:, torch.as_tensor(~PAIRS)] == 0).all()
    effect = surfaces.effects(coefficients, 3).numpy()
    assert ((effect > 0) == PAIRS).all()


def test_slopes_of_lines_are_along_one_line_and_those_of_bent_features_are_not() -> None:
    mask = torch.as_tensor(PAIRS[:2])
    coefficients = some_surfaces(1, PAIRS[:2])
    lines = torch.zeros_like(coefficients)
    lines[:, [0, surfaces.BASIS, 2 * surfaces.BASIS]] = 0.5
    lines = lines * surfaces.gates(mask * 1.0)
    assert (surfaces.bends(lines, mask) < 1e-6).all()
    assert (surfaces.bends(coefficients, mask) > 0.02).all()
    assert surfaces.bends(coefficients, torch.zeros_like(mask)).tolist() == [1.0, 1.0]


def test_latents_given_features_are_at_their_mode() -> None:
    rng = np.random.default_rng(2)
    coefficients, variance = some_surfaces(2, PAIRS), torch.full((6,), 0.01, dtype=torch.float64)
    z = torch.as_tensor(rng.standard_normal((200, 3)))
    x = surfaces.design(z) @ coefficients.mT + 0.1 * torch.as_tensor(rng.standard_normal((200, 6)))
    told = latents_given(x, coefficients, variance, z + 0.3, 40)
    slope = surfaces.jacobian(told.mode, coefficients)
    left = (x - surfaces.design(told.mode) @ coefficients.mT) / variance
    uphill = (slope.mT @ left[:, :, None])[:, :, 0] - told.mode
    step = torch.linalg.solve(told.precision, uphill[:, :, None])[:, :, 0]
    assert float(step.abs().quantile(0.95)) < 0.01
    white = torch.linalg.cholesky(told.precision).mT @ (z - told.mode)[:, :, None]
    assert 0.3 < float(white.square().median()) < 0.65, "its curvature is that of the errors"


def test_masks_are_drawn_by_the_evidence_of_features() -> None:
    """Of one entry, the log odds of the draws against those of the features' normal law, coefficients summed out."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((25, 2))
    mask = np.array([[1, 0], [1, 1], [1, 1], [0, 1]], dtype=bool)
    x = rng.standard_normal((25, 4)) + 0.5 * z @ rng.standard_normal((2, 4))
    sampler = Sampler(x, z, mask, 0.7, 0.5, rng)
    terms = surfaces.design(sampler.z).numpy()
    variance = sampler.variance.copy()

    def evidence(row: list[int]) -> float:
        gate = surfaces.gates(torch.tensor([row], dtype=torch.float64)).numpy()[0]
        cov = (terms * gate / sampler.prior) @ terms.T + (variance[0] + SLACK) * np.eye(25)
        return float(stats.multivariate_normal.logpdf(x[:, 0], np.zeros(25), cov))

    gain = evidence([1, 1]) - evidence([1, 0])
    opened = []
    for _ in range(600):
        sampler.mask, sampler.variance, sampler.log_concentration = mask.copy(), variance.copy(), 0.0
        sampler._masks(terms.T @ terms, x.T @ terms)
        opened.append(sampler.mask[0, 1])
    share = rng.beta(0.5 + 3, 1 + 4 - 3, 4000)
    want = (1 / (1 + np.exp(-gain) * (1 - share) / share)).mean()
    assert np.mean(opened) == pytest.approx(want, abs=0.12)


def test_pairs_that_depend_tell_the_mask() -> None:
    data = draw("zheng2022", seed=100, rows=6000)
    told = shared_supports.dependences(data.x)
    mask, cost = min(
        (shared_supports.cover(told, 5, np.random.default_rng(seed)) for seed in range(3)), key=lambda one: one[1]
    )
    true = data.truth["mask"] > 0
    assert {bytes(column) for column in mask.T} == {bytes(column) for column in true.T}
    assert cost < 20 * shared_supports.ENTRY + 3 * shared_supports.MISSED
    alone = shared_supports.dependences(np.random.default_rng(0).standard_normal((2000, 8)))
    assert (alone[np.triu_indices(8, 1)] < 0).mean() > 0.9


def test_what_features_have_in_common() -> None:
    assert (in_common(PAIRS * 1.0) == np.eye(3)).all()
    nested = PAIRS.copy()
    nested[2, 1] = nested[5, 1] = True
    assert in_common(nested * 1.0)[0].tolist() == [1, 1, 0], "all features of the first depend on the second"


class Told:
    def __init__(self, mask: np.ndarray, bends: list[float], untold: list[float]) -> None:
        self.mask, self.bends, self.untold = torch.as_tensor(mask * 1.0), torch.tensor(bends), torch.tensor(untold)

    def mask_draws(self) -> torch.Tensor:
        return self.mask.expand(10, *self.mask.shape)

    def slopes_spread(self) -> tuple[torch.Tensor, float]:
        return self.bends, 2000.0

    def latents_untold(self) -> torch.Tensor:
        return self.untold


def lack(need: str, mask: np.ndarray = PAIRS, bends: Any = None, untold: Any = None) -> Any:
    program = Told(mask, bends or [0.5] * 6, untold or [0.01] * 3)
    one = SimpleNamespace(
        chains=SimpleNamespace(chain=lambda _: program),
        reference=0,
        in_use=lambda _: mask.any(0),
        alignments=[SimpleNamespace(places=np.arange(3))],
        names={"latent": ["a", "b", "c"], "feature": [f"x{j}" for j in range(6)]},
    )
    return CHECKS[need](one, SimpleNamespace(rows=2000))  # type: ignore[arg-type]


def test_conditions_name_the_latents_that_may_mix() -> None:
    assert lack("alone_in_common") is None and lack("slopes_span") is None and lack("latents_told") is None
    nested = PAIRS.copy()
    nested[2, 1] = nested[5, 1] = True
    found = lack("alone_in_common", nested)
    assert found.which == ("a", "c") and "all features of a depend on b too" in found.reason
    assert lack("slopes_span", bends=[0.5] * 5 + [0.01]) is None, "the other five are enough"
    straight = lack("slopes_span", bends=[0.5, 0.5, 0.01, 0.5, 0.5, 0.01])
    assert straight.which == ("a", "c") and "x2, x5" in straight.reason
    assert lack("latents_told", untold=[0.01, 0.4, 0.01]).which == ("b",)
    assert lack("alone_in_common", np.zeros((6, 3), dtype=bool)).reason == "no latent is in use"


@pytest.fixture(scope="module")
def bent() -> tuple[Any, Any]:
    data = draw("zheng2022", seed=102, rows=700)
    program = zoo.build("structural_sparsity_ica", data, latents=5)
    return fit(program, data, seed=0, chains=1, device="cpu", progress=False), data


def test_it_finds_normal_latents_and_which_features_depend_on_them(bent: tuple[Any, Any]) -> None:
    found, data = bent
    score, nodes = metrics.mcc(data.truth["z"], found.latents(), return_assignment=True)
    beside = metrics.baselines(data.x, data.truth["z"], 5)["ica"]["mcc"]
    assert score > 0.97 > beside
    assert ((found.mask()[:, nodes] > 0.5) == (data.truth["mask"] > 0)).all()
    given = {claim.what: claim.given for claim in diagnose(found, data).claims}
    assert any("depend in larger numbers" in said for said in given["latents"])
    assert found.latents(draw("zheng2022", seed=102, rows=11)).shape == (11, 5)


def test_it_says_what_it_cannot_take() -> None:
    data = draw("zheng2022", seed=0, rows=90)
    with pytest.raises(InputError, match="to fit in environment"):
        fit(zoo.build("structural_sparsity_ica", data, latents=5), data, chains=1, progress=False)
    with pytest.raises(InputError, match="latents: found 13; allowed: a whole number from 1 to 12"):
        zoo.build("structural_sparsity_ica", draw("zheng2022", seed=0, rows=90, latents=8), latents=13)
    with pytest.raises(InputError, match="latents: found 10; allowed: fewer than the 10 features"):
        zoo.build("structural_sparsity_ica", data, latents=10)
