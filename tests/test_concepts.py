"""`concepts`: laws of conditioning, concepts of exact moments, what environments must be, a fit, what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.claims import conditions
from pyrocrl.claims.conditions import Situation
from pyrocrl.constructions import conditioned
from pyrocrl.constructions.contrastive import Chart
from pyrocrl.exact import linear_sem
from pyrocrl.judge.checks import CHECKS
from pyrocrl.judge.metrics import mcc
from pyrocrl.lab.studies.concepts import affine, directions
from pyrocrl.lab.suite.concepts import world
from pyrocrl.parts.nets import Residual
from pyrocrl.simulate.concepts import conditioned_latents, unit_rows

MODEL = "concepts"
HIT = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.float64)
ROWS = torch.tensor([[2.0, 0.0, 0.5], [0.6, 1.5, -0.3]], dtype=torch.float64)
LEVEL = torch.tensor([[0, 0], [2.0, 0], [0, -1.0], [-1.0, 1.5]], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
TWO, BOTH = [[1, 0], [0, 1], [1, 1]], [[1.0, 0], [0, -1.0], [-1.0, 1.0]]


# -- laws and the construction -----------------------------------------------------------------------------------


def test_a_conditioned_normal_law_is_the_product_of_its_parts() -> None:
    law = conditioned.laws(ROWS, LEVEL, HIT, EYE)
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = MultivariateNormal(torch.zeros_like(z[0]), EYE).log_prob(z)
    for e, (mean, precision) in enumerate(zip(law.mean, law.precision, strict=True)):
        own = MultivariateNormal(mean, precision_matrix=precision).log_prob(z)
        product = base - 0.5 * (HIT[e] * (z @ ROWS.mT - LEVEL[e]).square()).sum(1)
        np.testing.assert_allclose((own - product).std(), 0, atol=1e-12)  # but for the constant


def test_densities_of_the_head_are_those_of_the_laws() -> None:
    chart = Chart(Residual(4, 3, 4), Residual(3, 4, 4), torch.full((4,), 0.25))
    head = conditioned.Conditioned(chart, HIT, conditioned.Optimum(ROWS, LEVEL, 0.0)).double()
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    member = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 3]]
    odds, left = head.law(z, member)
    law = conditioned.laws(ROWS, LEVEL, HIT, EYE)
    own = torch.stack(
        [MultivariateNormal(m, precision_matrix=p).log_prob(z) for m, p in zip(law.mean, law.precision, strict=True)], 1
    )
    np.testing.assert_allclose(odds.detach(), own - own[:, :1], atol=1e-6)
    size = own - torch.linalg.slogdet(law.precision).logabsdet / 2 + 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(left.detach().square().sum(1), -2 * (size * member).sum(1), rtol=1e-5)


def environments(rows: torch.Tensor, level: torch.Tensor, hit: torch.Tensor) -> linear_sem.Environments:
    law = conditioned.laws(rows, level, hit, EYE)
    return linear_sem.Environments(
        torch.full((len(hit),), 1e3).double(), law.mean, torch.linalg.inv(law.precision), hit
    )


def test_concepts_of_exact_moments_are_found_and_stand_alone() -> None:
    best, *others = conditioned.optima(environments(ROWS, LEVEL, HIT), torch.Generator().manual_seed(0))
    sign = torch.sign((best.rows * ROWS).sum(1, keepdim=True))
    np.testing.assert_allclose(best.rows * sign, ROWS, atol=1e-3)
    np.testing.assert_allclose(best.level * sign.mT, LEVEL, atol=1e-3)
    assert best.deviance < 1e-3 and all(one.deviance > 10 for one in others)


def test_a_concept_that_was_not_told_is_left_over() -> None:
    more = torch.cat([HIT, HIT[:, :1]], 1) * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor(
        [[0, 0, 0]] * 2 + [[0, 0, 1.0]] * 2
    )
    rows = torch.cat([ROWS, torch.tensor([[0.0, 0.5, 2.0]], dtype=torch.float64)])
    level = torch.cat([LEVEL, torch.ones(4, 1)], 1)
    seen = environments(rows, level, more.double())._replace(target=HIT)
    assert conditioned.optima(seen, torch.Generator().manual_seed(0))[0].deviance > 300


def test_coordinates_set_concepts_apart_from_the_rest() -> None:
    root = torch.tensor([[1.0, 0, 0], [0.5, 2.0, 0], [0.1, -0.4, 0.7]], dtype=torch.float64)
    turn = conditioned.coordinates(ROWS, root @ root.mT)
    cov = turn @ root @ root.mT @ turn.mT
    np.testing.assert_allclose(cov.diagonal(), 1, atol=1e-9)
    np.testing.assert_allclose(cov[2, :2], 0, atol=1e-9)
    np.testing.assert_allclose(turn[:2] / ROWS, (turn[:2, :1] / ROWS[:, :1]).expand(2, 3).where(ROWS != 0, np.nan))


# -- settings and conditions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["normal", "uniform"])
def test_rows_are_of_the_conditioned_law(base: str) -> None:
    """Against weights on rows of the base."""
    rng = np.random.default_rng(0)
    rows, on, at = unit_rows(rng, 2, 3), np.array([1, 1]), np.array([0.8, -0.5])
    z = conditioned_latents(rng, 20_000, rows, on, at, 0.5, base)
    free = conditioned_latents(rng, 200_000, rows, 0 * on, at, 0.5, base)
    weight = np.exp(-0.5 * ((free @ rows.T - at) ** 2).sum(1) / 0.25)
    np.testing.assert_allclose(z.mean(0), weight @ free / weight.sum(), atol=0.03)
    second = np.einsum("n,ni,nj->ij", weight, free, free) / weight.sum()
    np.testing.assert_allclose(z.T @ z / len(z), second, atol=0.05)


def test_the_setting_is_as_it_says() -> None:
    data = simulate.draw("rajendran2024", 0, samples=300, latents=4, concepts=2, draws=50)
    assert data.x.shape == (1200, 8) and data.env_names[0] == "base"
    assert data.targets == {"concept_0": (0,), "concept_1": (1,), "all": (0, 1)} and data.control == "base"
    z = data.truth["z"]
    assert z[data.env == 0].std(0) == pytest.approx(1, abs=0.1) and z[data.env_labels() == "concept_0", 0].std() < 0.55
    with pytest.raises(InputError, match=r"concepts: found 5; allowed: 1 to 4, the latents"):
        simulate.draw("rajendran2024", latents=4, concepts=5)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[1, 0], [0, 1], [1, 1]], None),
        ([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]], None),
        ([[1, 0], [0, 1]], "2 environments for 2 concepts, more than 2 are needed"),
        ([[1, 0], [1, 1], [1, 1]], "no environment conditions on b and not on a"),
        ([[1, 1], [1, 1], [1, 1]], "no environment conditions on a and not on b"),
        (
            [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]],
            "the matrix of environments and concepts has rank 3, for 4 concepts",
        ),
    ],
)
def test_what_the_matrix_of_environments_and_concepts_must_be(matrix: list[list[int]], said: str | None) -> None:
    hit = np.array([[0] * len(matrix[0]), *matrix])
    data = Data(np.zeros((len(hit), 2)), [f"e{e}" for e in range(len(hit))])
    found = conditions.CHECKS["conditioned_apart"](Situation(data, "abcd"[: hit.shape[1]], hit))
    assert (found and found.reason) == said


# -- fits --------------------------------------------------------------------------------------------------------


@cache
def fitted() -> tuple[Fit, Data]:
    data = world(100, TWO, BOTH, samples=400, layers=1)
    program = pyrocrl.build(MODEL, data, rest=1, hidden=24, steps=80)
    return pyrocrl.fit(program, data, chains=2, epochs=60, seed=0, progress=False), data


def test_concepts_are_found_and_assumptions_named() -> None:
    fit, data = fitted()
    assert mcc(data.truth["z"], fit.latents(data)) > 0.98
    verdict = pyrocrl.diagnose(fit, data)["latents"]
    assert verdict.verdict == "identified if" and len(verdict.given) >= 1, verdict.reason
    assert "the mixing is injective" in verdict.given
    base = data.control_rows
    share = {name: affine(data.x @ rows.T, data.truth["z"])[1] for name, rows in directions(data).items()}
    assert affine(fit.latents(data)[base], data.truth["z"][base])[1].min() > 0.95
    assert share["regression"].min() > 0.999 > 0.9 > share["meandiff"].min(), "the mixing is linear"
    assert share["quadratic"].min() > 0.97


def test_levels_that_do_not_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, data = fitted()
    assert CHECKS["levels_apart"](fit, data) is None and CHECKS["concepts_told"](fit, data) is None
    level, error = fit.program.held_near()
    monkeypatch.setattr(type(fit.program), "held_near", lambda self: (torch.ones_like(level), 0 * error + 0.01))
    found = CHECKS["levels_apart"](fit, data)
    assert found is not None and found.which == ("latent_0", "latent_1") and "mirror image" in found.reason
    monkeypatch.setattr(Fit, "latents_sd", lambda self, data: np.tile([0.1, 0.6], (data.rows, 1)))
    found = CHECKS["concepts_told"](fit, data)
    assert found is not None and found.which == ("latent_1",) and found.rows > data.rows


def test_environments_that_do_nothing_do_not_count() -> None:
    fit, data = fitted()
    env = np.array(data.env_labels())
    near = np.flatnonzero(env == "near_0")
    base = np.resize(np.flatnonzero(env == "base"), len(near))
    x = data.x.copy()
    x[near] = data.x[base]
    found = CHECKS["conditioned_apart"](fit, Data(x, env, targets=data.targets))
    assert found is not None and found.reason.startswith("near_0 cannot be told from the base; without it 2 environ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rest": 5}, "latents: found 7; allowed: fewer than the 6 features"),
        ({"rest": -1}, "rest: found -1; allowed"),
        ({"latents": 3}, "targets: found no environment that intervenes on latent 2; allowed: one or more"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    data = world(100, TWO, BOTH, samples=30, layers=1)
    with pytest.raises(InputError, match=message) as caught:
        pyrocrl.build(MODEL, data, **options)
    assert "\n" not in str(caught.value)


def test_too_few_rows_and_no_base_are_said() -> None:
    data = world(100, TWO, BOTH, samples=5, layers=1)
    with pytest.raises(InputError, match=r"env: found .* row\(s\) to fit in environment .*; allowed: 6 or more, for 3"):
        pyrocrl.fit(pyrocrl.build(MODEL, data, rest=1), data, chains=1, progress=False)
    few = data.rows_at(np.flatnonzero(~data.control_rows))
    told = Data(few.x, few.env_labels(), targets=data.targets, truth=few.truth)
    with pytest.raises(InputError, match="targets: found no observational environment"):
        pyrocrl.build(MODEL, told)
