"""Additive factor analysis: its curves, its sampler, its start, its conditions, what it finds and what it refuses."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyrocrl import InputError, diagnose, fit, zoo
from pyrocrl.constructions import independent_curves
from pyrocrl.exact import dependence
from pyrocrl.exact.additive_factors import Sampler
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.curve_latents import OnGrid, latent_shares, rows_told, shares_of
from pyrocrl.exact.curves import BASIS, CELLS, GRID, NORMAL_LINE, ON_GRID, SHARE, basis
from pyrocrl.judge import metrics
from pyrocrl.judge.checks import CHECKS
from pyrocrl.simulate import draw
from pyrocrl.simulate.additive import curve


def test_curves_are_orthonormal_from_a_line_on_and_reach_what_is_smooth() -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    phi = basis(u).numpy()
    np.testing.assert_allclose(phi.T @ phi / len(phi), np.eye(BASIS), atol=1e-4)
    np.testing.assert_allclose(phi.mean(0), 0, atol=1e-4)
    assert abs(np.corrcoef(phi[:, 0], u)[0, 1]) > 1 - 1e-9, "the first is a line"
    assert SHARE.sum() == pytest.approx(1) and (np.diff(SHARE) < 0).all()
    for name, least in (("linear", 1.0), ("square", 1.0), ("sine", 0.999), ("exponential", 0.999), ("bent", 0.99)):
        g = curve(name, u.numpy())
        assert g.mean() == pytest.approx(0, abs=1e-3) and g.std() == pytest.approx(1, abs=1e-3)
        assert np.square(phi.T @ g / len(g)).sum() > least - 1e-3, name


def test_a_law_on_a_grid_is_that_of_its_cells() -> None:
    law = OnGrid(torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]], dtype=torch.float64))
    at = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    one = torch.stack([at, torch.full_like(at, 0.1)], -1)
    assert float(law.log_prob(one).exp().mean()) == pytest.approx(3.0), "density 3 on the second's first third"
    torch.manual_seed(0)
    drawn = law.sample((4000,))
    assert float((drawn[:, 0] < 1 / 3).double().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(drawn[:, 1].max()) < 1 / 3
    np.testing.assert_allclose(drawn.mean(0), law.mean, atol=0.02)


def test_sweeps_keep_the_prior_of_data_from_the_prior() -> None:
    """Geweke (2004): parameters moved given data that were drawn given them keep the law that they have a priori."""
    rng = np.random.default_rng(1)
    rows, features, latents, slab, rate = 15, 4, 2, 0.7, 0.3
    sampler = Sampler(np.zeros((rows, features)), latents, slab, rate, rng)
    torch.manual_seed(0)

    def prior() -> None:
        sampler.log_concentration = float(rng.standard_normal())
        law = BuffetColumns(torch.tensor(sampler.log_concentration, dtype=torch.float64), features, latents)
        sampler.mask = law.sample().numpy() > 0.5
        sampler.variance = rate / rng.standard_gamma(1.5, features)
        size = slab * np.sqrt(SHARE) * rng.standard_normal((features, latents, BASIS))
        sampler.coefficients = size * sampler.mask[:, :, None]
        sampler.cell = rng.integers(0, CELLS, (latents, rows))

    def told() -> list[float]:
        size = np.square(sampler.coefficients).sum(2)[sampler.mask]
        used = GRID[sampler.cell[sampler.mask.any(0)]]
        return [
            sampler.mask.mean(),
            np.log(sampler.variance).mean(),
            float(size.mean()) if size.size else 0.0,
            float(np.square(used - 0.5).mean()) if used.size else 1 / 12,
            float((np.diff(GRID[sampler.cell], axis=1) ** 2).mean()),
        ]

    before, after = [], []
    for _ in range(400):
        prior()
        while not sampler.mask.any():  # what is shut stays shut
            prior()
        before.append(told())
        was = sampler.mask.any(0)
        for _ in range(4):
            mean = sum(ON_GRID[sampler.cell[k]] @ sampler.coefficients[:, k].T for k in range(latents))
            sampler.x = mean + np.sqrt(sampler.variance) * rng.standard_normal((rows, features))
            sampler._curves(masks=True)
            sampler._latents()
        assert (sampler.mask.any(0) == was).all()
        after.append(told())
    one, two = np.array(before), np.array(after)
    apart = (two.mean(0) - one.mean(0)) / np.sqrt((one.var(0) + two.var(0)) / len(one))
    assert (np.abs(apart[1:]) < 4).all(), apart


def test_laws_of_latents_given_curves_are_exact_of_one_and_bound_two() -> None:
    rng = np.random.default_rng(0)
    coefficients = np.sqrt(SHARE) * rng.standard_normal((6, 2, BASIS))
    coefficients[:3, 1], coefficients[3:5, 0] = 0.0, 0.0
    variance = rng.uniform(0.1, 0.4, 6)
    x = rng.standard_normal((40, 6))
    curves = coefficients @ ON_GRID.T
    pairs = np.array(list(itertools.product(range(CELLS), repeat=2)))
    mean = curves[:, 0][:, pairs[:, 0]] + curves[:, 1][:, pairs[:, 1]]
    logits = np.stack([stats.norm.logpdf(row[:, None], mean, np.sqrt(variance)[:, None]).sum(0) for row in x])
    exact = float((np.logaddexp.reduce(logits, axis=1) - 2 * np.log(CELLS)).sum())
    told = rows_told(x, coefficients, variance, rng, draws=200)
    assert exact - 3 < told < exact + 1.5
    single = shares_of(x, coefficients[:, :1], variance)
    alone = np.stack([stats.norm.logpdf(row[:, None], curves[:, 0], np.sqrt(variance)[:, None]).sum(0) for row in x])
    want = np.exp(alone - np.logaddexp.reduce(alone, axis=1)[:, None])
    np.testing.assert_allclose(single[:, 0], want, atol=1e-10)
    assert latent_shares(torch.zeros(3, 6), torch.zeros(6, 0, BASIS), torch.ones(6), 2).shape == (3, 0, CELLS)


def test_rows_are_laid_out_along_their_curve() -> None:
    rng = np.random.default_rng(0)
    u = rng.random(500)
    bow = np.column_stack([curve("sine", u), curve("bent", u), curve("square", u)])  # none of them is monotone
    along = independent_curves.along(bow + 0.1 * rng.standard_normal(bow.shape), rng)
    assert abs(stats.spearmanr(along, u)[0]) > 0.98


def test_numbers_that_are_independent_pass_and_others_fail() -> None:
    rng = np.random.default_rng(0)
    p = [dependence.independence(rng.random((300, 3)), 0.0)[0] for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.1
    u = rng.random((500, 2))
    folded = np.column_stack([u[:, 0], (np.abs(2 * u[:, 0] - 1) + 0.3 * u[:, 1]) / 1.3])
    folded[:, 1] = (stats.rankdata(folded[:, 1]) - 0.5) / 500
    assert dependence.independence(folded, 0.01)[0] < 1e-10
    left, none = rng.standard_normal((500, 4)), np.zeros(4)
    assert dependence.interactions(left, u, none)[0] > 0.001
    left[:, 2] += 0.5 * 12 * (u[:, 0] - 0.5) * (u[:, 1] - 0.5)
    p_, feature, which = dependence.interactions(left / left.std(0), u, none)
    assert p_ < 1e-6 and feature == 2 and which == (0, 1)


class Told:
    """A program that has said this much."""

    def __init__(self, apart: np.ndarray, lines: tuple[float, ...], margin: float) -> None:
        self.apart, self.lines, self.margin = apart, lines, margin

    def values_apart(self) -> torch.Tensor:
        return torch.as_tensor(self.apart)

    def normal_lines(self) -> torch.Tensor:
        return torch.tensor(self.lines)

    def number_margin(self) -> torch.Tensor:
        return torch.tensor(self.margin)


def lack(need: str, apart: np.ndarray, lines: tuple[float, ...] = (0.5, 0.5), margin: float = 100.0) -> Any:
    program = Told(np.stack([apart, apart]), lines, margin)
    one = SimpleNamespace(
        chains=SimpleNamespace(chain=lambda _: program),
        reference=0,
        in_use=lambda _: np.array([True, True]),
        alignments=[SimpleNamespace(places=np.array([0, 1]))],
        names={"latent": ["latent_0", "latent_1"]},
    )
    return CHECKS[need](one, SimpleNamespace(rows=100))  # type: ignore[arg-type]


def test_conditions_read_curves_lines_and_the_evidence_of_other_numbers() -> None:
    line = 40 * np.abs(GRID[:, None] - GRID)
    assert lack("values_told", line) is None
    turn = np.exp(2j * np.pi * GRID)
    closed = lack("values_told", 40 * np.abs(turn[:, None] - turn))
    assert closed.rows == 0 and closed.which == ("latent_0", "latent_1"), "its ends meet"
    end = np.minimum(GRID, 0.5)
    assert lack("values_told", 40 * np.abs(end[:, None] - end)) is not None, "flat from the middle on"
    assert lack("curves_bent", line, lines=(0.99, 0.95)) is None, "one normal latent is told from others"
    assert lack("curves_bent", line, lines=(0.99, 0.98)).which == ("latent_0", "latent_1")
    assert lack("number_apart", line) is None
    assert lack("number_apart", line, margin=10.0).rows == 600
    uniform = basis(torch.as_tensor(GRID)).numpy()[:, 0]
    assert 0.955 < (uniform @ ON_GRID @ NORMAL_LINE / CELLS) ** 2 < 0.964, "a uniform one's are"


@pytest.fixture(scope="module")
def bent() -> tuple[Any, Any]:
    data = draw("xu2023_additive", seed=100, rows=300, latents=2, features=12, curves="hard")
    return fit(zoo.build("additive_fa", data, latents=3), data, seed=0, chains=2, device="cpu", progress=False), data


def test_it_finds_latents_behind_curves_that_are_not_monotone(bent: tuple[Any, Any]) -> None:
    found, data = bent
    z = found.latents()
    score, nodes = metrics.mcc(data.truth["z"], z, "spearman", return_assignment=True)
    beside = metrics.baselines(data.x, data.truth["z"], 2)["pca"]["mcc_spearman"]
    assert score > 0.99 > beside
    assert ((found.mask()[:, nodes] > 0.5) == (data.truth["mask"] > 0)).all()
    assert (found.mask() > 0.5).any(0).sum() == 2, "three were offered"
    verdict = diagnose(found, data)
    assert verdict["latents"].verdict == "identified if" and "fold" in next(iter(verdict["latents"].given))


def test_it_reads_new_rows(bent: tuple[Any, Any]) -> None:
    found, _ = bent
    new = draw("xu2023_additive", seed=100, rows=301, latents=2, features=12, curves="hard")
    assert found.latents(new).shape == (301, 3)
    own = found.chains.chain(found.reference).latents(found.batch_of(new))
    assert float(own.min()) > 0 and float(own.max()) < 1


def test_noise_alone_has_no_latent() -> None:
    x = np.random.default_rng(0).standard_normal((200, 6))
    start = independent_curves.search((x - x.mean(0)) / x.std(0), 2, 0.7, 0.1, np.random.default_rng(0))
    assert start.cell.shape[0] == 0 and start.margin > 0


def test_it_refuses_what_it_cannot_start_from() -> None:
    data = draw("xu2023_additive", seed=0, rows=20, latents=2, features=9)
    with pytest.raises(InputError, match="18 row"):
        fit(zoo.build("additive_fa", data, latents=2), data, chains=1, progress=False)
    with pytest.raises(InputError, match="latents: found 9; allowed: fewer than the 9 features"):
        zoo.build("additive_fa", data, latents=9)
    with pytest.raises(InputError, match="anchors: found 4; allowed: at most 3"):
        draw("xu2023_additive", latents=3, features=10, anchors=4)
