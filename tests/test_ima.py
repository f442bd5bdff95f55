"""Independent mechanism analysis: conformal maps, contrast, turns, the start, conditions, what it finds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pyrocrl import InputError, diagnose, fit, zoo
from pyrocrl.constructions import orthogonal
from pyrocrl.exact import orthogonal_maps as maps
from pyrocrl.exact.monomials import slots
from pyrocrl.judge import metrics
from pyrocrl.judge.checks import CHECKS
from pyrocrl.readouts import Columns
from pyrocrl.simulate import draw

PLACES = slots(3, 2)


def a_map(seed: int, bend: float = 0.03) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """units, pole and coefficients of a map of three features that bends a little."""
    rng = np.random.default_rng(seed)
    coefficients = bend * rng.standard_normal((3, len(PLACES)))
    coefficients[:, (PLACES > 0).sum(1).numpy() == 1] += np.linalg.qr(rng.standard_normal((3, 3)))[0]
    units, pole = np.exp(0.3 * rng.standard_normal(3)), 0.15 * rng.standard_normal(3)
    return torch.as_tensor(units), torch.as_tensor(pole), torch.as_tensor(coefficients)


def test_slopes_volume_and_inverse_are_those_of_the_map() -> None:
    units, pole, coefficients = a_map(0)
    x = torch.as_tensor(np.random.default_rng(0).standard_normal((40, 3)))
    seen = maps.unfold(x, units, pole, coefficients, PLACES)
    slope = torch.func.vmap(
        torch.func.jacrev(lambda row: maps.unfold(row[None], units, pole, coefficients, PLACES).z[0])
    )
    forward = slope(x)  # dz/dx
    torch.testing.assert_close(torch.linalg.slogdet(forward).logabsdet, seen.log_volume)
    torch.testing.assert_close(maps.fold(seen.z, units, pole, coefficients, PLACES), x, atol=1e-9, rtol=1e-9)
    # conformal maps leave the angles of columns as they are: the contrast is that of features in their units
    columns = torch.linalg.inv(forward) / units[:, None]
    torch.testing.assert_close(maps.contrast(columns), maps.contrast(seen.columns))
    u, _ = maps.inverted(x / units, pole)
    own = maps.columns_of_features(u, pole, seen.columns)
    torch.testing.assert_close(own / own.norm(dim=1, keepdim=True), columns / columns.norm(dim=1, keepdim=True))


def test_the_contrast_is_zero_of_orthogonal_columns_alone() -> None:
    rng = np.random.default_rng(1)
    turn = torch.as_tensor(np.linalg.qr(rng.standard_normal((5, 4, 4)))[0])
    assert maps.contrast(turn * torch.tensor([0.1, 3.0, 1.0, 7.0])).abs().max() < 1e-12
    assert (maps.contrast(turn + 0.2 * torch.as_tensor(rng.standard_normal((5, 4, 4)))) > 1e-3).all()
    for mixing, low, high in (("moebius", -1e-9, 1e-9), ("polar", -1e-9, 1e-9), ("sheared", 0.05, 1.0)):
        told = draw("gresele2021", 100, rows=200, mixing=mixing).truth["contrast"]
        assert low < told.mean() < high


def test_the_darmois_construction_has_oblique_columns() -> None:
    """Of x_2 = x_1 + e the slope of its quantiles is 1 everywhere: half of log 2."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2000, 2)) @ np.array([[1.0, 1.0], [0.0, 1.0]])
    x[:, 1] /= math.sqrt(2)
    assert maps.darmois_contrast(torch.as_tensor(x)) == pytest.approx(0.5 * math.log1p(0.5), abs=0.05)
    assert maps.darmois_contrast(torch.as_tensor(rng.standard_normal((2000, 2)))) < 0.02


def test_turns_of_normal_scores_are_seen_unless_columns_are_alike() -> None:
    """Lines of uniform latents at right angles become oblique, those of normal latents do not, in some units."""
    rng = np.random.default_rng(3)
    turn = torch.as_tensor(np.linalg.qr(rng.standard_normal((3, 3)))[0])
    scores = torch.as_tensor(rng.standard_normal((400, 3)))
    normal = turn.expand(400, 3, 3)
    uniform = turn * (-scores.square() / 2).exp()[:, None, :]
    generator = torch.Generator().manual_seed(0)
    assert abs(maps.least_turn(normal, 0.3, generator).rise) < 1e-6
    found = maps.least_turn(uniform, 0.3, generator)
    assert found.rise > 0.08
    assert maps.least_turn(uniform * torch.tensor([1.0, 3.0, 0.5])[:, None], 0.3, generator).rise == pytest.approx(
        found.rise, abs=0.01
    ), "units of features are found anew"


def test_maps_that_would_fold_are_not_upright() -> None:
    u = torch.as_tensor(np.random.default_rng(4).uniform(-1, 1, (300, 2)))

    def forward(map_: Any) -> torch.Tensor:
        return torch.func.vmap(torch.func.jacrev(map_))(u)

    square = forward(lambda w: torch.stack([w[0] ** 2 - w[1] ** 2, 2 * w[0] * w[1]]))
    assert not bool(maps.upright(square).isfinite().all()), "two points have one image"
    gentle = forward(lambda w: torch.stack([w[0] + 0.2 * w[0] ** 2, w[1] + 0.1 * w[0] * w[1]]))
    assert bool(maps.upright(gentle).isfinite().all())


def test_the_conformal_start_undoes_a_moebius_map() -> None:
    data = draw("gresele2021", 103, rows=500)
    x = torch.as_tensor((data.x - data.x.mean(0)) / data.x.std(0))
    best = orthogonal.conformal(x, 1.0, orthogonal.Effort(4, 40), np.random.default_rng(0))[0]
    found = orthogonal.Climb(x, 1, 1.0).unfolded(best).z.numpy()
    assert (
        metrics.mcc(data.truth["z"], found) > 0.99 > 0.8 > metrics.baselines(data.x, data.truth["z"], 2)["ica"]["mcc"]
    )


def test_draws_are_as_wide_as_the_log_posterior_falls_off() -> None:
    """Half a deviation along each direction of the law about the mode, up and down, costs an eighth of a nat; given
    the laws of latents the map would be told too well."""
    data = draw("gresele2021", 101, rows=300)
    x = torch.as_tensor((data.x - data.x.mean(0)) / data.x.std(0))
    rng = np.random.default_rng(0)
    effort = orthogonal.Effort(3, 25)
    climb, at = orthogonal.bent(orthogonal.conformal(x, 1.0, effort, rng), x, 2, 1.0, effort.steps)
    root, best = climb.spread(at), float(climb.value(at))
    falls = np.array([best - (climb.value(at + 0.5 * c) + climb.value(at - 0.5 * c)) / 2 for c in root.mT])
    assert np.median(falls) == pytest.approx(1 / 8, rel=0.1) and falls.mean() == pytest.approx(1 / 8, rel=0.3)
    size = climb.map_size
    joint = (root @ root.mT).diagonal()[:size].sqrt()
    given = (root @ root.mT).inverse()[:size, :size].inverse().diagonal().sqrt()
    assert float((joint / given).max()) > 2
    found = orthogonal.search(x, 2, 1.0, effort, 200, np.random.default_rng(0))
    assert found.heights.shape == (201, 2, maps.BUMPS)
    drawn = found.coefficients[1:].flatten(1).std(0)
    torch.testing.assert_close(drawn, joint[4:], rtol=0.35, atol=0.002)


def lack(need: str, contrast: float = 0.001, rise: float = 0.15) -> Any:
    axes = torch.tensor([[0.95, 0.3, 0.0], [-0.3, 0.95, 0.0], [0.0, 0.0, 1.0]])
    told = Columns(torch.full((10,), contrast), torch.tensor(rise), torch.tensor(0.01), axes)
    one = SimpleNamespace(
        chains=SimpleNamespace(chain=lambda _: SimpleNamespace(columns=lambda _: told)),
        reference=0,
        batch_of=lambda _: SimpleNamespace(annealed=lambda: None),
        alignments=[SimpleNamespace(places=np.arange(3))],
        names={"latent": ["a", "b", "c"]},
    )
    rows = SimpleNamespace(rows=2000, rows_at=lambda _: None, spread=lambda _: None)
    return CHECKS[need](one, rows)  # type: ignore[arg-type]


def test_conditions_refuse_oblique_columns_and_turns_that_leave_them_orthogonal() -> None:
    assert lack("columns_orthogonal") is None and lack("turns_told") is None
    assert "0.020" in lack("columns_orthogonal", contrast=0.02).reason
    some = lack("turns_told", rise=0.025)
    assert some.which == ("a", "b") and some.rows == pytest.approx(2400)
    assert not lack("turns_told", rise=0.012).rows, "as much as by chance"


def test_it_finds_what_is_behind_a_moebius_map_and_names_its_assumption() -> None:
    data = draw("gresele2021", 104, rows=400)
    program = zoo.build("ima", data, degree=2, starts=4, steps=40)
    found = fit(program, data, seed=0, chains=1, device="cpu", progress=False)
    assert metrics.mcc(data.truth["z"], found.latents()) > 0.97
    given = diagnose(found, data)["latents"].given
    assert any("no other map with orthogonal columns" in said for said in given)


def test_it_says_what_it_cannot_take() -> None:
    data = draw("gresele2021", 0, rows=90)
    with pytest.raises(InputError, match="to fit in environment"):
        fit(zoo.build("ima", data), data, chains=1, progress=False)
    with pytest.raises(InputError, match=r"latents: found 3; allowed: as many as features \(2\), at most 6"):
        zoo.build("ima", data, latents=3)
    with pytest.raises(InputError, match="latents: found 7; allowed: a whole number from 2 to 6"):
        zoo.get("ima")(7, 7)
