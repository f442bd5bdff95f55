"""`ebmf` of counts: its sampler, what it settles at the start, what it finds and how probable it says rows are."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, InputError, simulate
from pyrocrl.constructions.count_starts import matrix_start
from pyrocrl.exact.count_factors import BASE, DISPERSION
from pyrocrl.exact.count_scores import RowsOfCounts, components_given_counts
from pyrocrl.exact.matrix_counts import MatrixCountSampler, MatrixCountStart
from pyrocrl.exact.matrix_factors import ALPHA, ETA, SLAB
from pyrocrl.exact.score_mixtures import GRID, deviations
from pyrocrl.infer import stories
from pyrocrl.judge import metrics
from pyrocrl.lab.row_probability import Counts
from pyrocrl.turns import drawing


def sampler_of(x: np.ndarray, z: np.ndarray, rng: np.random.Generator, batches: int = 1) -> MatrixCountSampler:
    """A chain over x (rows, feature) at scores z (rows, latent)."""
    rows, features = x.shape
    latents = z.shape[1]
    start = MatrixCountStart(z, np.full((latents, 5), 0.2), np.eye(latents), np.ones((features, latents), dtype=bool))
    centre, group = np.zeros(features), np.arange(rows) % batches
    return MatrixCountSampler(x, np.ones(rows), group, batches, centre, start, latents, rng)


def at_prior(rng: np.random.Generator, rows: int = 12, features: int = 4, batches: int = 2) -> MatrixCountSampler:
    """A chain that stands at a draw of the prior, of two latents, with counts drawn from it."""
    state = sampler_of(np.ones((rows, features)), rng.standard_normal((rows, 2)), rng, batches)
    own = state.priors
    own.share = rng.beta(1 / 2, 1, 2)
    own.weights = rng.dirichlet(np.full(len(GRID), ALPHA), 2)
    own.slab = SLAB * np.exp(rng.standard_normal(2)) / own.size
    r = 2 * rng.beta(ETA, ETA) - 1
    own.correlation = np.array([[1.0, r], [r, 1.0]])
    own.scale = GRID[np.array([rng.choice(len(GRID), rows, p=w) for w in own.weights]).T]
    own.counts = np.array([(own.scale == g).sum(0) for g in GRID]).T
    state.z = (rng.multivariate_normal(np.zeros(2), own.correlation, rows) * own.scale).T.copy()
    there = rng.random((features, 2)) < own.share
    state.loadings = there * own.slab * rng.standard_normal((features, 2))
    state.base = BASE * rng.standard_normal((features, batches))
    state.usual = math.log(DISPERSION) + rng.standard_normal()
    state.dispersion = np.exp(state.usual + rng.standard_normal(features))
    state.walk[:] = 1.0
    mean, r = np.exp(state._level(state.loadings, state.z, state.base)), state.dispersion[:, None]
    state.x = rng.poisson(np.minimum(rng.gamma(r, mean / r, mean.shape), 1e6)).astype(float)
    state.observe()
    return state


def summary(state: MatrixCountSampler) -> list[float]:
    size = state.priors.size
    z = state.z / size[:, None]
    return [
        float(np.log(state.priors.slab * size).sum()),
        float(state.priors.weights[:, 0].sum()),
        float((state.loadings != 0).sum()) + 1e-3 * float(state.priors.share.sum()),
        float(np.square(state.loadings * size).sum()),
        float(state.priors.correlation[0, 1]),
        float(np.square(z).mean()),
        float(np.abs(z[0] * z[1]).mean()),
        float((state.priors.scale == GRID[0]).mean()) + 1e-3 * float(z.sum()),
        state.usual,
        float(np.log(state.dispersion).mean()),
        float(state.base.mean()),
        float(np.square(state.base).mean()),
    ]


def test_sweeps_leave_the_posterior_of_counts_as_it_is() -> None:
    """Truths from the prior, counts from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(0)
    before, after = [], []
    with np.errstate(all="ignore"):
        for _ in range(200):
            before.append(summary(at_prior(rng)))
            state = at_prior(rng)
            for _ in range(4):
                state.count_sweep()
            after.append(summary(state))
    p = [stats.ks_2samp(old, new).pvalue for old, new in zip(np.transpose(before), np.transpose(after), strict=True)]
    assert min(p) > 1e-3, p


def test_components_and_rows_are_as_probable_as_by_quadrature() -> None:
    """Of one latent: log-probabilities of its components, and of a row of counts, on a grid of scores."""
    rng = np.random.default_rng(1)
    state = at_prior(rng, rows=30, features=12, batches=1)
    state.leave_factor_out(1)
    state.priors.weights = np.array([[0.4, 0.1, 0.1, 0.2, 0.2]])
    state.loadings, state.dispersion = rng.uniform(0.3, 0.8, (12, 1)), np.full(12, 5.0)
    state.base = np.full((12, 1), 1.0)
    z = state.z / state.priors.size[:, None]
    state.x = rng.poisson(np.exp(1.0 + state.loadings @ (state.priors.size[:, None] * z))).astype(float)
    state.observe()
    size, weights = float(state.priors.size[0]), torch.as_tensor(state.priors.weights)
    x, grid = torch.as_tensor(state.x.T), torch.linspace(-12, 12, 4001).double()
    law = Counts(x, torch.ones_like(x), torch.full((12,), 5.0).double())
    log_x = law.log_density(size * grid[:, None, None] * torch.as_tensor(state.loadings[:, 0]))
    log_x = log_x + torch.lgamma(x + 1).sum(-1)  # (score, row)
    sd = deviations(weights)[0]
    prior = torch.distributions.Normal(0.0, sd).log_prob(grid[:, None]) + math.log(24 / 4000)
    joint = (log_x[:, :, None] + prior[:, None]).logsumexp(0) + weights[0].log()  # (row, component)
    one = torch.eye(1).double()
    parts = x, torch.ones_like(x), size * torch.as_tensor(state.loadings), torch.full((12,), 5.0).double(), one
    found = components_given_counts(RowsOfCounts(*parts), weights)[0][:, 0].exp()
    assert float((found - joint.softmax(1)).abs().max()) < 0.05
    assert state.log_evidence() == pytest.approx(float(joint.logsumexp(1).sum()), abs=30 * 0.02)


def test_what_a_factor_that_is_left_out_gave_goes_to_the_one_most_like_it() -> None:
    rng = np.random.default_rng(2)
    z = rng.standard_normal((40, 3))
    z[:, 2] = -0.5 * z[:, 0]
    state = sampler_of(rng.poisson(2.0, (40, 6)).astype(float), z, rng)
    state.loadings = rng.standard_normal((6, 3))
    before = state.loadings @ state.z
    state.leave_factor_out(2)
    assert state.z.shape == (2, 40) and len(state.priors.share) == 2 and state.priors.scale.shape == (40, 2)
    np.testing.assert_allclose(state.loadings @ state.z, before, atol=1e-9)
    assert (state.z[0] ** 2).mean() == pytest.approx((z[:, 0] ** 2).mean())


# -- fits ------------------------------------------------------------------------------------------------------

SILENT = {"rows": 500, "features": 30, "latents": 3, "share": 0.2, "correlation": 0.0, "loadings": "dense"}


def tails(program: pyrocrl.Program) -> np.ndarray:
    """(latent,) fourth moments of scores of variance 1 under their priors, averaged over the draws; normal: 3."""
    weights = program.drawn.weights.numpy()
    return (3 * (weights @ GRID**4) / (weights @ GRID**2) ** 2).mean(0)


@pytest.fixture(scope="module")
def fitted() -> tuple[pyrocrl.Fit, Data]:
    data = simulate.draw("sparse_counts", 100, rows=400, features=24, latents=3, median=8.0, least=0.5, batches=2)
    program = pyrocrl.build("ebmf", data, latents=5, steps=40)
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


def test_finds_factors_of_counts_and_their_number(fitted: tuple[pyrocrl.Fit, Data]) -> None:
    fit, data = fitted
    assert fit.program.config["likelihood"] == "negative_binomial" and fit.program.config["batches"] == 2
    score, nodes = metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    assert score > 0.93
    assert metrics.mask_scores(data.truth["mask"], fit.mask(), permutation=nodes)["f1"] > 0.9
    assert (fit.mask() > 0.5).any(0).sum() == 3
    program = fit.programs()[0]
    used = program.mask().numpy().max(0) > 0.5
    assert max(tails(program)[used]) < 5  # normal scores
    share, there = program.drawn.share.mean(0).numpy()[used], program.mask().numpy().mean(0)[used]
    assert np.abs(share - there).max() < 0.1
    drawn = fit.posterior(20, data, thin=20)
    loadings = drawn["posterior"]["loadings"].mean(("chain", "draw")).to_numpy()[:, nodes]
    sign = np.sign((fit.latents(data)[:, nodes] * data.truth["z"]).sum(0))
    assert np.abs(loadings * sign - data.truth["loadings"]).mean() < 0.08
    new = drawn["posterior_predictive"]["x"].to_numpy()
    assert (new == np.round(new)).all() and abs(np.log(new.mean() / data.x[::20].mean())) < 0.3


@torch.no_grad()
def test_the_guide_has_all_of_the_story_but_counts(fitted: tuple[pyrocrl.Fit, Data]) -> None:
    """Then the objective is log p - log q of a draw; and the guide's rows are likelier than those of the prior."""
    fit, data = fitted
    program, batch = fit.chains.chain(0), fit.batch_of(data.rows_at(np.arange(40)))
    with drawing(0):
        guide = pyro.poutine.trace(program.guide).get_trace(batch)
        told = pyro.poutine.trace(pyro.poutine.replay(program.story, trace=guide)).get_trace(batch)
        names = [*program.drawn.names, "usual"]
        alone = stories.told(program, batch, {n: guide.nodes[n]["value"] for n in names})
    hidden = {n for n, s in told.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    assert {n for n in hidden if "plate" not in n and n != "data"} <= set(guide.nodes)
    assert {"usual", "dispersion", "base", "share", "weights", "component", "z"} <= set(
        guide.nodes
    ) and "rate" not in guide
    own, other = (trace.nodes["x"]["fn"].log_prob(batch.x).sum() for trace in (told, alone))
    assert own > other + 100


def test_rows_without_latents_tell_them_apart_and_their_number_is_that_of_counts() -> None:
    """A logarithm bends sparse scores into more factors than there are, which counts do not ask for."""
    data = simulate.draw("sparse_counts", 100, **SILENT)
    size = data.size_factor / data.size_factor.mean()
    assert len(matrix_start(data.x.astype(float), size, 8, np.random.default_rng(0)).correlation) > 3
    fit = pyrocrl.fit(pyrocrl.build("ebmf", data, latents=6, steps=40), data, chains=1, seed=0, progress=False)
    assert (fit.mask() > 0.5).any(0).sum() == 3
    score, nodes = metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    assert score > 0.93
    with drawing(), torch.no_grad():
        program = fit.programs()[0]
        silent = program.silent(fit.batch_of(data)).numpy()[:, nodes]
    assert silent[data.truth["z"] == 0].mean() > 4 * silent[np.abs(data.truth["z"]) > 1].mean()
    assert min(tails(program)[nodes]) > 6  # 15 in truth


def test_counts_have_to_be_there() -> None:
    with pytest.raises(InputError, match="size_factor: found None, with 1 missing value"):
        Data(np.array([[1.0, np.nan], [2.0, 3.0]]), counts=True, missing=True)
