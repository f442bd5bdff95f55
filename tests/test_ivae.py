"""`ivae`: its setting, its guide, and what shows whether environments tell the latents apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, simulate
from pyrocrl.claims.conditions import CHECKS, Situation
from pyrocrl.constructions import modulation
from pyrocrl.dists import Laplace
from pyrocrl.exact import goodness
from pyrocrl.lab.suite.modulation import modulated
from pyrocrl.models.ivae import IVAE

ROTATION = np.array([[0.8, -0.6], [0.6, 0.8]])


def world(seed: int, law: str, *, together: bool = False, rows: int = 80, groups: int = 12) -> tuple[Any, Any]:
    """Two latents of `law` in each group, the second moving with the first or not; those that do are turned."""
    rng = np.random.default_rng(seed)
    scale, level = np.exp(rng.uniform(-1, 1, (groups, 2))), rng.uniform(-2, 2, (groups, 2)) * (law == "normal")
    if together:
        scale[:, 1], level[:, 1] = scale[:, 0], level[:, 0]
    size = (groups * rows, 2)
    noise = rng.laplace(size=size) if law == "laplace" else rng.normal(size=size)
    z = np.repeat(level, rows, 0) + np.repeat(scale, rows, 0) * noise
    return z @ ROTATION if together and law != "laplace" else z, np.repeat(np.arange(groups), rows)


@pytest.mark.parametrize("law", list(goodness.MODULATED))
def test_latents_that_move_together_are_seldom_told_apart(law: str) -> None:
    """Of true hypotheses, p is uniform or larger; latents that move apart are told so."""
    p = np.array([goodness.modulation(*world(seed, law, together=True), law).p for seed in range(60)])
    assert (p < 0.05).mean() < 0.17 and (p < 0.001).mean() < 0.05 and np.median(p) > 0.3
    apart = goodness.modulation(*world(1, law), law)
    assert apart.p < 1e-4 and apart.freedom == 12 - 2 * (1 + (law == "normal"))


def test_modulation_names_the_latents_that_move_together_and_needs_groups() -> None:
    rng = np.random.default_rng(0)
    z, group = world(3, "scaled normal", together=True)
    third = np.exp(rng.uniform(-1, 1, 12))[group] * rng.normal(size=len(z))
    found = goodness.modulation(np.column_stack([third, z]), group, "scaled normal")
    assert found.p > 0.01 and found.share[0] < 0.2 and found.share[1:].min() > 0.5
    assert goodness.modulation(z, group % 2, "scaled normal") is None, "as many groups as latents"


@pytest.mark.parametrize(
    ("bend", "part"),
    [
        (lambda z, group: z, None),
        (lambda z, group: z + 0.5 * np.random.default_rng(0).normal(size=12)[group][:, None], "levels"),
        (lambda z, group: np.column_stack([z[:, 0], z[:, 0] * 0.5 + z[:, 1]]), "correlations"),
        (lambda z, group: z * np.abs(z), "law"),
    ],
)
def test_departures_from_the_law_are_seen(bend: Any, part: str | None) -> None:
    z, group = world(5, "scaled normal", rows=300)
    found = goodness.departure(bend(z / z.std(0), group), group, "scaled normal")
    assert found.p > 0.5 if part is None else getattr(found, part) < 1e-3 > found.p / 3


def test_as_many_environments_as_latents_are_too_few() -> None:
    data = Data(np.zeros((4, 3)), ["a", "a", "b", "b"])
    for need, latents, holds in (
        ("more_environments", 1, True),
        ("more_environments", 2, False),
        ("twice_the_environments", 1, False),
    ):
        found = CHECKS[need](Situation(data, [f"latent_{k}" for k in range(latents)], None))
        assert (found is None) == holds and (holds or "2 environments" in found.reason)


@pytest.mark.parametrize("features", [4, 2])
def test_the_setting_is_its_equations(features: int) -> None:
    data = simulate.draw("khemakhem2020", seed=3, segments=6, samples=500, latents=2, features=features)
    z, spread = data.truth["z"], []
    assert data.x.shape == (3000, features) and data.env_names == [f"segment_{u}" for u in range(6)]
    for u in range(6):
        own = z[data.env == u]
        assert stats.kstest(own[:, 0] / own[:, 0].std(), "norm").pvalue > 1e-3
        spread.append(own.std(0))
    assert 0.4 < np.min(spread) < np.max(spread) < 3.2
    with pytest.raises(pyrocrl.InputError, match="latents"):
        simulate.draw("khemakhem2020", latents=3, features=2)


def test_laplace_draws_have_their_law() -> None:
    torch.manual_seed(0)
    draws = Laplace(torch.tensor(1.0), torch.tensor(2.0)).sample((20_000,))
    assert stats.kstest(draws.numpy(), stats.laplace(1.0, 2.0).cdf).pvalue > 1e-3


def test_standardised_laws_give_the_same_odds() -> None:
    torch.manual_seed(0)
    found = modulation.Modulated(4, 2, 16, torch.tensor([0.4, 0.3, 0.3]), levels=True).double()
    x, env = torch.randn(50, 4).double(), torch.arange(50) % 3
    with torch.no_grad():
        found.level.normal_()
    odds, decoded = found.log_odds(found.encoder(x)).log_softmax(-1), found.decoder(found.encoder(x))
    found.standardise()
    torch.testing.assert_close(found.log_odds(found.encoder(x)).log_softmax(-1), odds)
    torch.testing.assert_close(found.decoder(found.encoder(x)), decoded)
    assert found.loss(x, env).isfinite() and found.level.mean(0).abs().max() < 1e-9


@pytest.mark.parametrize("law", ["scaled normal", "normal"])
def test_the_guide_is_the_exact_posterior_where_the_encoder_is(law: str) -> None:
    """Of x = z + noise with the encoder's N(x, V): precision V^-1 + S^-1."""
    data = simulate.draw("khemakhem2020", segments=6, samples=20, latents=2, features=4)
    program = IVAE(4, 2, 6, law=law).double()
    batch = data.tensors(dtype=torch.float64).whole()
    scale, level = torch.rand(6, 2).double() + 0.2, torch.randn(6, 2).double()
    loc, tril = program.encoder(program.observation.inputs(batch))
    found = program._given(batch, level, scale)
    prior = torch.diag_embed(scale[batch.env] ** -2)
    precision = torch.linalg.inv(tril @ tril.mT)
    torch.testing.assert_close(found.covariance_matrix, torch.linalg.inv(prior + precision), rtol=1e-6, atol=1e-9)
    both = prior @ level[batch.env][..., None] + precision @ loc[..., None]
    torch.testing.assert_close(found.mean, (found.covariance_matrix @ both)[..., 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("law", ["scaled normal", "normal", "laplace"])
def test_posteriors_of_scales_are_positive_whatever_the_signs_of_latents(law: str) -> None:
    data = simulate.draw("khemakhem2020", segments=5, samples=40, latents=2, features=3)
    program = pyrocrl.build("ivae", data, latents=2, law=law, width=8, steps=5)
    fit = pyrocrl.fit(program, data, chains=4, epochs=1, progress=False)
    found = fit.posterior(draws=5, predictive=False)["posterior"]
    assert found["scale"].dims == ("chain", "draw", "env", "latent") and (found["scale"] > 0).all()
    assert ("level" in found) == (law == "normal")
    assert pyrocrl.diagnose(fit, data)["latents"].verdict != "identified"


@pytest.mark.slow
def test_environments_tell_latents_apart_unless_they_move_them_together() -> None:
    for world, said in (({}, "identified if"), ({"together": True}, "not identified"), ({"same": True}, None)):
        data = modulated(3, **world)
        fit = pyrocrl.fit(pyrocrl.build("ivae", data, latents=2, width=32, steps=300), data, chains=2, progress=False)
        verdict = pyrocrl.diagnose(fit, data)["latents"]
        assert verdict.verdict == said or (not verdict.identified and said != "identified if"), verdict.reason
