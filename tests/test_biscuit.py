"""`biscuit`: evidence of what actions act on, rows of an unmixing, closed forms, what breaks it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import interaction_draws, interaction_starts
from pyrocrl.constructions import interactions as construction
from pyrocrl.exact import interactions
from pyrocrl.judge.metrics import mcc
from pyrocrl.models.biscuit import Biscuit

SMALL = {"rows": 700, "latents": 2, "features": 3, "series": 3, "acting": "codes"}
RNG = torch.Generator().manual_seed(0)


@cache
def fitted(intervention: str = "perfect", **options: Any) -> tuple[Fit, Data]:
    data = simulate.draw("voronoi_actions", 100, **SMALL | options)
    program = Biscuit.from_data(data, intervention=intervention, regions=16)
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG, dtype=torch.double)


def test_actions_fall_into_regions() -> None:
    few = torch.tensor([[0.0], [2.0], [1.0]]).double()[torch.randint(3, (300,), generator=RNG)]
    found = interactions.regions(few, 8)
    assert sorted(found.of(few).unique().tolist()) == [0, 1, 2]
    arms = torch.rand(2000, 2, generator=RNG, dtype=torch.double)
    found = interactions.regions(arms, 40)
    own = found.of(arms)
    assert len(own.unique()) == 32 and torch.bincount(own).min() >= 20
    wide = arms * torch.tensor([1.0, 50.0]) + 3.0
    assert (interactions.regions(wide, 40).of(wide) == own).all()
    assert len(interactions.regions(arms[:100], 40).of(arms[:100]).unique()) <= 4  # 20 rows each, or more


def test_probabilities_of_regions_are_summed_out_as_integrals_are() -> None:
    ratio, region = 2 * random(12, 2), torch.tensor([0, 1] * 6)
    found = interactions.patterns(ratio, region, 3, torch.tensor([0.5, 0.5]).double())

    def log(*columns: torch.Tensor) -> float:
        """Of one probability for all of these."""
        each = torch.cat(columns).exp().numpy()
        value = integrate.quad(lambda t: np.prod(1 + np.sin(t) ** 2 * (each - 1)), 0, np.pi / 2)[0]
        return float(np.log(value / (np.pi / 2)))

    def open_(apart: float, together: float) -> float:
        """Regions have probabilities of their own, or the two together, or all."""
        return float(np.logaddexp.reduce([apart, together, together]) - np.log(3))

    parts = [[ratio[region == g, k] for g in range(2)] for k in range(2)]
    own = [open_(sum(log(part) for part in one), log(*one)) for one in parts]
    for k in range(2):
        assert found.varies[k] == pytest.approx(own[k] - log(ratio[:, k]))
    other = [[part, -turned] for part, turned in zip(*parts, strict=True)]
    same = open_(sum(log(*both) for both in zip(*parts, strict=True)), log(*parts[0], *parts[1]))
    turn = open_(sum(log(*both) for both in other), log(*other[0], *other[1])) + float(ratio[:, 1].sum())
    assert found.apart[0, 1] == found.apart[1, 0] == pytest.approx(sum(own) - max(same, turn))


def test_rows_of_an_unmixing_are_drawn_as_the_others_leave_them() -> None:
    """Moments of |along' v|^rows exp(-v' S v / 2): v' S v is chi-squared, and along' v is on one side."""
    square, unmixing = torch.eye(3).double() * 50 + 5.0, random(3, 3)
    drawn = torch.stack([interaction_draws.row_drawn(square, unmixing, 1, 40, RNG) for _ in range(3000)])
    size = torch.einsum("na,ab,nb->n", drawn, square, drawn)
    assert float(size.mean()) == pytest.approx(43, rel=0.02) and float(size.var()) == pytest.approx(86, rel=0.15)
    along = torch.linalg.inv(unmixing)[:, 1]
    assert ((drawn @ along) * (unmixing[1] @ along) > 0).all()
    others = (
        unmixing[[0, 2]] @ square @ drawn.mean(0) / (unmixing[[0, 2]] @ square @ unmixing[[0, 2]].mT).diagonal().sqrt()
    )
    middle = torch.linalg.solve(square, along)  # about which draws are even
    apart = drawn - (drawn @ along / (middle @ along))[:, None] * middle
    assert others.shape == (2,) and apart.mean(0).abs().max() < 0.02


def acted(**options: Any) -> tuple[interaction_starts.Acted, np.ndarray, np.ndarray]:
    """Rows in time, as they were mixed, their latents, and whether these were acted on, of rows that follow."""
    data = simulate.draw("voronoi_actions", 101, **SMALL | {"features": 2} | options)
    batch = data.tensors(dtype=torch.float64)
    order, since = batch.in_time()
    x = (batch.x - batch.x.mean(0))[order]
    y = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.mT))).mT
    found = interactions.regions(batch.aux, 16)
    rows = interaction_starts.Acted(y, since, found.of(batch.aux)[order], 16, soft=False, edge=0.3)
    return rows, data.truth["z"][order], data.truth["state"][order][since > 0]


def test_means_and_covariances_of_regions_tell_columns_of_the_mixing() -> None:
    rows, z, _ = acted(rows=3000)
    by_covariances, by_means, *_ = interaction_starts.starts(rows, RNG)
    assert mcc(z, (rows.y @ by_means.mT).numpy()) > 0.95
    rows, z, _ = acted(rows=3000, width=3.0)
    by_covariances = interaction_starts.starts(rows, RNG)[0]
    assert mcc(z, (rows.y @ by_covariances.mT).numpy()) > 0.95


def test_what_acts_is_worth_its_numbers() -> None:
    """The bound against the evidence of the same unmixing where nothing acts."""
    rows, z, _ = acted()
    found = construction.best(rows, RNG)
    assert mcc(z, (rows.y @ found.found.unmixing.mT).numpy()) > 0.99
    none = construction.improved(found.rows.given(0 * found.share), found.found)
    assert found.bound > none.log + 50


def test_latents_and_what_acts_on_them_are_found_and_the_verdict_says_so() -> None:
    fit, data = fitted()
    z, found = data.truth["z"], fit.latents(data)
    assert mcc(z, found) > 0.99
    [claim] = pyrocrl.diagnose(fit, data).claims
    assert claim.verdict == "identified" and "permutation" in claim.claim, claim.reason
    program, batch = fit.chains.chain(fit.reference), fit.batch_of(data)
    own = mcc(z, program.latents(batch).numpy(), return_assignment=True)[1]
    acts = program.beside(batch)["acted_on"].numpy()[:, own]
    assert ((acts > 0.5) != data.truth["state"]).mean() < 0.02 < data.truth["state"].mean() / 4
    assert (program.lagged().numpy()[np.ix_(own, own)] > 0.5).sum() <= data.truth["lagged"].sum()


def test_rows_in_any_order_are_the_same_data() -> None:
    fit, data = fitted()
    order = np.random.default_rng(0).permutation(data.rows)
    each, again = (fit.held_out_objective(rows) for rows in (data, data.rows_at(order)))
    np.testing.assert_allclose(again, each[order], rtol=1e-7)


def test_latents_on_which_the_same_actions_act_are_named() -> None:
    fit, data = fitted(patterns="together", rows=900)
    [claim] = pyrocrl.diagnose(fit, data).claims
    said = "the same actions may act on latent_0 and latent_1, or on either alone"
    assert claim.verdict == "not identified" and said in claim.reason, claim.reason


def test_nothing_is_seen_of_latents_that_actions_leave_as_they_are() -> None:
    """Nor of those on which all act alike: then no evidence grows with the rows."""
    region, rate = torch.randint(8, (4000,), generator=RNG), torch.tensor([0.1, 0.5, 0.3]).double()
    acts = torch.rand(4000, generator=RNG) < torch.tensor([0.05, 0.95])[region % 2]
    alike = torch.rand(4000, generator=RNG) < 0.3
    ratio = torch.stack([torch.zeros(4000), 2 * alike - 1.0, 2 * acts - 1.0], 1).double()
    found = interactions.patterns(ratio, region, 8, rate)
    assert (found.varies[:2] < 3).all() and found.varies[2] > 100


def test_bad_input_is_one_line() -> None:
    data = fitted()[1]
    told = {"series": data.series_labels(), "step": data.step}
    with pytest.raises(InputError, match="aux: found None; allowed: auxiliary columns, which biscuit needs"):
        Biscuit.from_data(Data(data.x, **told), latents=2)
    with pytest.raises(InputError, match="series: found None; allowed: labels of series, which biscuit needs"):
        Biscuit.from_data(Data(data.x, aux=data.aux), latents=2)
    with pytest.raises(InputError, match="latents: found 9; allowed"):
        Biscuit.from_data(simulate.draw("voronoi_actions", 0, rows=40, latents=9))
    still = Data(data.x, aux=0 * data.aux + 3, **told)
    with pytest.raises(InputError, match="aux: found 'aux_0', which is 3 in all rows; allowed: actions that vary"):
        pyrocrl.fit(Biscuit.from_data(still, latents=2), still, chains=1, progress=False)
    few = data.rows_at(np.arange(20))
    with pytest.raises(InputError, match=r"series: found \d+ rows after others; allowed: 32 or more"):
        pyrocrl.fit(Biscuit.from_data(data), few, chains=1, progress=False)
    with pytest.raises(InputError, match="never: found 4; allowed"):
        simulate.draw("voronoi_actions", latents=3, never=4)


def test_actions_act_as_the_setting_says() -> None:
    codes = simulate.draw("voronoi_actions", 0, rows=400, latents=5, features=5, acting="codes")
    assert codes.aux is not None
    for action in range(4):
        own = codes.truth["state"][codes.aux[:, 0] == action]
        assert (own == [(k >> action - 1) & 1 if action else 0 for k in range(1, 6)]).all()
    turn = simulate.draw("voronoi_actions", 0, rows=400, latents=3, features=3, patterns="in turn").truth["state"]
    assert (turn[:, 0] + turn[:, 1] == 1).all() and 0.05 < turn[:, 2].mean() < 0.3


def test_regions_are_constants_of_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has another's constants keeps its regions, whatever rows it starts from: chances belong to
    them."""

    def search(rows: interaction_starts.Acted, generator: torch.Generator) -> None:
        raise StopIteration  # regions are settled before

    monkeypatch.setattr("pyrocrl.models.biscuit.construction.best", search)
    program, data = Biscuit.example(0)
    regions = interactions.regions(data.tensors(dtype=torch.float64).aux, 16)
    program.put(**regions._asdict())
    other = program.fresh().with_constants_of(program)
    for one, same in ((other, True), (program, False)):
        with torch.no_grad(), pytest.raises(StopIteration):
            one.initialise(data.rows_at(np.arange(100)), torch.Generator())
        assert torch.equal(one.centre, regions.centre) == same
