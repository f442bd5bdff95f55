"""Sparse codes of counts: evidence by Laplace's method, the search, the density of draws, slopes, recovery."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor

import pyrocrl
from pyrocrl import Data
from pyrocrl.constructions import code_errors
from pyrocrl.constructions.count_dictionaries import CountDictionary, Counts
from pyrocrl.dists import NegativeBinomial, PositiveSpikeSlab
from pyrocrl.exact import goodness
from pyrocrl.exact.count_codes import CountCodes, CountRows
from pyrocrl.exact.sparse_codes import Drawn
from pyrocrl.infer import stories
from pyrocrl.judge import fit_tests, metrics
from pyrocrl.lab.studies.codes import directions_matched
from pyrocrl.simulate import draw
from pyrocrl.turns import drawing

FEATURES, LATENTS, ROWS = 10, 5, 120
WORLD = {"rows": 700, "latents": 5, "features": 24, "active": 0.8, "length": 4.0, "median": 2.0, "batches": 2}


def some(rows: int = ROWS) -> tuple[CountDictionary, Counts, Tensor]:
    """A dictionary in two batches, rows that follow it, and their codes."""
    torch.manual_seed(3)
    w, spread, rate = 0.8 * torch.randn(FEATURES, LATENTS), torch.full((LATENTS,), 0.3), torch.full((LATENTS,), 0.2)
    center = math.log(3.0) + 0.2 * torch.randn(2, FEATURES)
    z = PositiveSpikeSlab(rate, torch.ones(()), spread).expand([rows, LATENTS]).sample()
    batch = torch.eye(2)[torch.randint(2, (rows,))]
    one = CountDictionary(
        w, center, torch.full((FEATURES,), 4.0), spread, rate, usual=center.mean(0), slab=0.7, rows=rows
    )
    log_size = 0.3 * torch.randn(rows, 1)
    law = NegativeBinomial(None, one.noise, log_rate=log_size + batch @ center + z @ w.mT)
    return one, Counts(law.sample(), log_size, batch), z


@pytest.fixture
def small() -> tuple[CountCodes, CountRows, CountDictionary]:
    torch.set_default_dtype(torch.float64)
    try:
        one, x, _ = some()
        return one.codes, one.part(x), one
    finally:
        torch.set_default_dtype(torch.float32)


def sampled(x: CountRows, one: CountDictionary, support: tuple[int, ...]) -> Tensor:
    """(row,) log p(x, support), by draws of magnitudes from the prior."""
    torch.manual_seed(0)
    z = torch.zeros(20_000, LATENTS, dtype=torch.float64)
    like = torch.ones(20_000, dtype=torch.float64)
    for k in support:
        z[:, k] = PositiveSpikeSlab(like, like, one.spread[k]).sample()
    eta = z @ one.w.mT
    out = []
    for row in range(len(x)):
        law = NegativeBinomial(None, one.noise, log_rate=x.level[row] + eta)
        out.append(law.log_prob(x.x[row].expand_as(eta)).sum(1).logsumexp(0) - math.log(len(z)))
    fires = torch.isin(torch.arange(LATENTS), torch.tensor(support, dtype=torch.long))
    return torch.stack(out) + torch.where(fires, one.rate.log(), (-one.rate).log1p()).sum()


def test_evidence_of_supports_is_that_of_draws(small) -> None:
    """Where magnitudes are told to be positive; more often than not to a tenth of a nat in all."""
    codes, x, one = small
    x = x[:25]
    none = torch.full((len(x), 3), LATENTS)
    for support in [(0,), (3,), (1, 4)]:
        places = none.clone()
        places[:, : len(support)] = torch.tensor(support)
        found = codes.evidence(x, places) - codes.evidence(x, none)
        wrong = (found - (sampled(x, one, support) - sampled(x, one, ()))).abs()
        mean, cov = codes.given(x, places)
        sure = (mean / cov.diagonal(dim1=1, dim2=2).sqrt())[:, : len(support)].min(1).values > 3
        assert wrong[sure].max() < 0.15 and wrong.median() < 0.1


def test_supports_near_are_weighed_by_their_own_modes(small) -> None:
    """The most probable ones exactly so; the support itself counts 0."""
    codes, x, _ = small
    places = torch.tensor([[0, 2, LATENTS]]).expand(len(x), -1)
    near = codes.near(x, places)
    assert (near.log_weight[:, -1, -1] == 0).all()
    for which in near.flat.topk(3, 1).indices.T:
        own = codes.evidence(x, near.moved(which)) - codes.evidence(x, places)
        torch.testing.assert_close(near.flat.gather(1, which[:, None])[:, 0], own, atol=0.02, rtol=0)


def test_search_finds_the_most_probable_support(small) -> None:
    codes, x, _ = small
    supports = [s for size in range(4) for s in itertools.combinations(range(LATENTS), size)]
    places = torch.tensor([[*s, *[LATENTS] * (3 - len(s))] for s in supports])
    value = torch.stack([codes.evidence(x, p.expand(len(x), -1)) for p in places], 1)
    for near in (codes.search(x, 3), codes.steady(x, 3)):
        assert float((value.max(1).values - codes.evidence(x, near.places) < 0.1).double().mean()) > 0.95
    fires = torch.stack([torch.isin(torch.arange(LATENTS), torch.tensor(s, dtype=torch.long)) for s in supports])
    exact = value.softmax(1) @ fires.double()
    assert (codes.search(x, 3).firing() - exact).abs().mean() < 0.03


def test_density_is_that_of_draws(small) -> None:
    """Firing as often as said; magnitudes of one latent have a density that adds up to how often it fires alone."""
    codes, x, _ = small
    torch.manual_seed(0)
    row = CountRows(x.x[3:4], x.level[3:4])
    law = Drawn(codes, row.repeated(5_000), 3)
    z = law.sample()
    torch.testing.assert_close(law.near.firing()[0], (z > 0).double().mean(0), atol=0.03, rtol=0)
    assert torch.isfinite(law.log_prob(z)).all()
    alone = (z > 0).sum(1) == 1
    k = int((z[alone] > 0).double().mean(0).argmax())
    grid = torch.linspace(1e-4, 4, 2001, dtype=torch.float64)
    at = torch.zeros(len(grid), LATENTS, dtype=torch.float64)
    at[:, k] = grid
    mass = torch.trapezoid(Drawn(codes, row.repeated(len(grid)), 3).log_prob(at).exp(), grid)
    assert abs(float(mass) - float((alone & (z[:, k] > 0)).double().mean())) < 0.03


def test_slopes_are_those_of_the_story_s_law() -> None:
    one, x, z = some()
    log_rate, log_noise = one.part(x).level + z @ one.w.mT, one.noise.log()
    own, noise = one.slopes(x, z)
    log_rate.requires_grad_(), log_noise.requires_grad_()
    NegativeBinomial(None, log_noise.exp(), log_rate=log_rate).log_prob(x.x).sum().backward()
    torch.testing.assert_close(own, log_rate.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(noise.sum(0), log_noise.grad, atol=0.02, rtol=1e-3)
    each, rest = one.rest(x)  # what evidence leaves out of log p(x)
    none = torch.full((len(x.x), 1), LATENTS)
    whole = NegativeBinomial(None, one.noise, log_rate=one.part(x).level).log_prob(x.x).sum(1)
    torch.testing.assert_close(one.codes.evidence(one.part(x), none) + each + rest, whole, atol=0.01, rtol=1e-4)


def test_scores_of_rows_are_0_on_average_at_the_truth() -> None:
    one, x, _ = some(2_000)
    scores = code_errors._scores(x, one, LATENTS, torch.Generator().manual_seed(0))
    assert scores.shape == (2_000, LATENTS * FEATURES + 3 * FEATURES + 2 * LATENTS)
    assert (scores.mean(0) / (scores.std(0) / math.sqrt(2_000))).abs().max() < 5


def test_quantiles_of_counts_are_normal_under_their_law_alone() -> None:
    rng = np.random.default_rng(0)
    r, mean = np.array([3.0, 5.0, 50.0]), rng.gamma(2.0, 2.0, (20_000, 1)) * [0.1, 1.0, 20.0]
    x = rng.poisson(rng.gamma(r, mean / r))
    left = goodness.count_residuals(x, mean, r, rng)
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in left.T)
    assert np.abs(np.corrcoef(left.T) - np.eye(3)).max() < 0.03
    assert goodness.count_residuals(x, mean, 10 * r, rng)[:, 1:].std(0).min() > 1.02


def test_floats_are_refused_in_one_line() -> None:
    data = draw("code_counts", seed=0, rows=50)
    program = pyrocrl.build("sparse_dictionary", data, latents=4)
    floats = Data(data.x + 0.5)
    with pytest.raises(pyrocrl.InputError, match=r"data: found floats .*; allowed: counts, for likelihood"):
        pyrocrl.fit(program, floats, progress=False)
    with pytest.raises(pyrocrl.InputError, match="active: found 12"):
        draw("code_counts", active=12.0)
    with pytest.raises(pyrocrl.InputError, match="together: found 7"):
        draw("code_counts", together=7)


@pytest.fixture(scope="module")
def fitted() -> tuple[pyrocrl.Fit, Data]:
    data = draw("code_counts", seed=100, **WORLD)
    program = pyrocrl.build("sparse_dictionary", data, latents=6, most=4)
    return pyrocrl.fit(program, data, chains=1, seed=0, progress=False), data


def test_learns_directions_of_log_rates_better_than_of_logarithms(fitted: tuple[pyrocrl.Fit, Data]) -> None:
    fit, data = fitted
    assert fit.program.config["likelihood"] == "negative_binomial" and fit.program.config["batches"] == 2
    best, used = fit.chains.chain(fit.reference), fit.in_use(fit.reference)
    assert used.sum() == 5
    w = np.where(used, best.loadings.loc.detach().numpy(), 0.0)
    score, nodes = directions_matched(data.truth["loadings"], w)
    assert score > 0.97
    assert np.abs(w[:, nodes] - data.truth["loadings"]).mean() < 0.2
    with torch.no_grad():
        chance = best.firing(fit.batch_of(data)).double().numpy()[:, nodes]
    fires = data.truth["z"] > 0
    assert ((chance > 0.5) == fires).mean() > 0.95
    assert metrics.expected_calibration_error(fires, chance) < 0.03
    logged = Data(np.log1p(data.x / data.size_factor[:, None]))  # the same, as if normal
    rival = pyrocrl.fit(pyrocrl.build("sparse_dictionary", logged, latents=6, most=4), logged, chains=1, progress=False)
    own = rival.programs()[0].loadings.loc.detach().numpy() * rival.units.scale[:, None]  # type: ignore[union-attr]
    assert directions_matched(data.truth["loadings"], own)[0] < score - 0.02


def test_what_is_read_of_counts(fitted: tuple[pyrocrl.Fit, Data]) -> None:
    """The guide has all of the story but counts; predictions are counts of the data's size; the verdict stands."""
    fit, data = fitted
    program, batch = fit.chains.chain(0), fit.batch_of(data.rows_at(np.arange(40)))
    with drawing(0), torch.no_grad():
        guide = pyro.poutine.trace(program.guide).get_trace(batch)
        told = pyro.poutine.trace(pyro.poutine.replay(program.story, trace=guide)).get_trace(batch)
        kept = {n: guide.nodes[n]["value"] for n in ("loadings", "rate", "spread", "base", "dispersion")}
        alone = stories.told(program, batch, kept)
    hidden = {n for n, s in told.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    assert hidden == {n for n, s in guide.nodes.items() if s["type"] == "sample"}
    own, other = (trace.nodes["x"]["fn"].log_prob(batch.x).sum() for trace in (told, alone))
    assert own > other + 100
    new = fit.posterior(20, data, thin=20)["posterior_predictive"]["x"].to_numpy()
    assert (new == np.round(new)).all() and abs(np.log(new.mean() / data.x[::20].mean())) < 0.3
    assert not any(test.fails for test in fit_tests.tests(fit, data))


def test_two_directions_too_few_show_in_what_is_left() -> None:
    data = draw("code_counts", seed=101, **WORLD)
    program = pyrocrl.build("sparse_dictionary", data, latents=3, most=4)
    fit = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
    assert any(test.fails for test in fit_tests.tests(fit, data))
