"""`shrinkage_fa`: its sampler is exact, and finds the number of latents and their subspace."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import pyrocrl
from pyrocrl import Data, simulate
from pyrocrl.exact.shrinkage import (
    A1,
    A2,
    CONCENTRATION,
    NU,
    RATE,
    SHAPE,
    SLAB,
    SLAB_SHAPE,
    Process,
    Shrinkage,
    State,
    chances,
)
from pyrocrl.judge.metrics import r2
from pyrocrl.lab.studies.factors import Covariance

SPIKE = 0.05


def from_prior(rng: np.random.Generator, process: Process, features: int = 4, latents: int = 3) -> State:
    rate = RATE * math.exp(rng.standard_normal())
    variance = rate / rng.standard_gamma(SHAPE, features)
    stick = rng.beta(1, CONCENTRATION, latents - 1)
    active = (np.log(rng.random(latents)) < chances(stick)).astype(float)
    slab = SLAB / rng.standard_gamma(SLAB_SHAPE, latents)
    growth = rng.standard_gamma(np.array([A1, *[A2] * (latents - 1)]))
    local = rng.standard_gamma(NU / 2, (features, latents)) / (NU / 2)
    spread = 1 / (local * growth.cumprod())
    if process == "cusp":
        spread = np.where(active > 0, slab / local, SPIKE)
    loadings = np.sqrt(spread) * rng.standard_normal((features, latents))
    return State(loadings, variance, stick, active, slab, growth, local, rate)


def told(state: State, process: Process) -> list[float]:
    own = [np.log(state.growth).sum(), np.log(state.growth[0])]
    if process == "cusp":
        own = [state.active @ [1, 1.01, 1.02], np.log(state.slab).mean(), state.stick[0], state.stick[1]]
    sizes = np.log((state.loadings**2).sum(0))
    cosine = (state.loadings[:, 0] * state.loadings[:, 1]).sum() / np.exp((sizes[0] + sizes[1]) / 2)
    rest = [np.log(state.local).mean(), np.log(state.variance).mean(), np.log(state.rate)]
    return [*own, *sizes[:2], cosine, sizes.mean(), *rest]


@pytest.mark.parametrize("process", ["cusp", "gamma"])
@pytest.mark.parametrize("rows", [3, 12])
def test_sweeps_leave_the_posterior_as_it_is(process: Process, rows: int) -> None:
    """Truths from the prior, rows from them, some sweeps: what comes out has the prior's law (Geweke 2004)."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(250):
        before.append(told(from_prior(rng, process), process))
        state = from_prior(rng, process)
        z = rng.standard_normal((rows, state.loadings.shape[1]))
        x = z @ state.loadings.T + np.sqrt(state.variance) * rng.standard_normal((rows, len(state.variance)))
        law = Shrinkage(x.T @ x / rows, rows, process, SPIKE)
        for _ in range(4):
            state = law.sweep(state, rng)
        after.append(told(state, process))
    for place, (old, new) in enumerate(zip(np.transpose(before), np.transpose(after), strict=True)):
        assert stats.ks_2samp(old, new).pvalue > 1e-3, place


def test_the_subspace_the_covariance_and_the_number_of_latents_are_found() -> None:
    data = simulate.draw("bhattacharya2011", seed=100, rows=300, features=40, latents=4, density=0.4)
    fit = pyrocrl.fit(pyrocrl.build("shrinkage_fa", data, latents=8), data, chains=2, seed=0, progress=False)
    found = Covariance("bhattacharya2011").score(fit, data)
    assert found["covariance_error"] < 1.05 * found["covariance_error_ml"]
    assert found["count_probability"] > 0.5 and found["subspace_error"] < 0.01
    verdict = pyrocrl.diagnose(fit, data)
    assert verdict["latents"].verdict in ("identified", "identified, undecided at this n"), verdict
    assert verdict["latents"].claim.startswith("latents up to a linear map"), "and nothing of loadings"
    assert r2(data.truth["z"], fit.latents(data)) > 0.98


@pytest.mark.parametrize(("latents", "says"), [(4, "all latents that can be in use are"), (6, "too few features tell")])
def test_too_few_columns_and_too_few_features_are_noticed(latents: int, says: str) -> None:
    rng = np.random.default_rng(0)
    z, loadings = rng.standard_normal((400, 4)), rng.standard_normal((20, 4))
    if latents > 4:  # the last one has two features
        loadings[2:, 3], loadings[:2, 3] = 0.0, 3.0
    data = Data(z @ loadings.T + 0.3 * rng.standard_normal((400, 20)))
    program = pyrocrl.build("shrinkage_fa", data, latents=latents, steps=300)
    found = pyrocrl.diagnose(pyrocrl.fit(program, data, chains=2, seed=0, progress=False))["latents"]
    assert found.verdict == "not identified" and says in found.reason, found.reason


def test_gammas_shrink_later_columns() -> None:
    data = simulate.draw("bhattacharya2011", seed=100, rows=200, features=30, latents=3, density=0.5)
    program = pyrocrl.build("shrinkage_fa", data, latents=6, process="gamma", steps=200)
    fit = pyrocrl.fit(program, data, chains=2, seed=0, progress=False)
    growth = fit.posterior(20, predictive=False)["posterior"]["growth"]
    assert (
        growth.cumprod("growth_dim_0" if "growth_dim_0" in growth.dims else growth.dims[-1])
        .mean(("chain", "draw"))
        .diff(growth.dims[-1])
        > 0
    ).all()
    assert fit.program.claims()[0].needs == ("noise_told_apart",)
    assert Covariance("bhattacharya2011").score(fit, data)["subspace_error"] < 0.05
