"""`snica_lin`: sums over states, laws of series, the unmixing and its posterior, what breaks it."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import sources
from pyrocrl.exact import switching
from pyrocrl.exact.switching import Dynamics, Timeline
from pyrocrl.judge.evaluate import _states_right
from pyrocrl.judge.metrics import mcc
from pyrocrl.models.snica_lin import SnicaLin

SETTING = "halva2021_linear"


def dynamics(states: int = 2) -> Dynamics:
    generator = torch.Generator().manual_seed(1)
    shape = (2, states)
    chance = torch.rand(*shape, states, generator=generator, dtype=torch.double) + 0.2
    partial = 1.8 * torch.rand(*shape, 2, generator=generator, dtype=torch.double) - 0.9
    return Dynamics(
        torch.randn(shape, generator=generator, dtype=torch.double),
        switching.coefficients(partial),
        0.3 + torch.rand(shape, generator=generator, dtype=torch.double),
        chance / chance.sum(-1, keepdim=True),
        torch.tensor([1.0, 2.0], dtype=torch.double),
    )


SINCE = torch.tensor([0, 1, 2, 0, 1, 2, 3])


def summed(z: Tensor, law: Dynamics) -> tuple[Tensor, Tensor]:
    """(latent,) log-likelihood and (rows, latent, state) probabilities, by all sequences of states."""
    emission = switching.log_emission(z, SINCE, law)
    states = law.scale.shape[1]
    logs, shares = [], []
    for k in range(2):
        log, paths = [], list(itertools.product(range(states), repeat=len(z)))
        for path in paths:
            one = torch.zeros((), dtype=z.dtype)
            for t, s in enumerate(path):
                one = one + emission[t, k, s]
                one = one - np.log(states) if SINCE[t] == 0 else one + law.transition[k, path[t - 1], s].log()
            log.append(one)
        each = torch.stack(log)
        logs.append(each.logsumexp(0))
        weight, at = each.softmax(0), torch.tensor(paths)
        shares.append(torch.stack([weight @ (at == s).to(weight) for s in range(states)], -1))
    return torch.stack(logs), torch.stack(shares, 1)


@pytest.mark.parametrize(("states", "short"), [(1, 2), (2, switching.SHORT), (3, 2)])
def test_states_are_summed_out_as_if_one_by_one(states: int, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "SHORT", short)
    law, z = dynamics(states), torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    log, share = summed(z, law)
    emission = switching.log_emission(z, SINCE, law)
    torch.testing.assert_close(switching.filtered(emission, SINCE, law.transition).log.sum(0), log)
    found = switching.smoothed(emission, SINCE, law.transition)
    torch.testing.assert_close(found.share, share)
    torch.testing.assert_close(found.pairs.sum((-2, -1)), torch.full((2,), 5.0, dtype=torch.double))
    line = Timeline(torch.arange(7), SINCE)
    given = switching.StateChainsGiven(switching.filtered(emission, SINCE, law.transition).share, law.transition, line)
    torch.manual_seed(0)
    drawn = torch.stack([given.sample() for _ in range(600)])
    for s in range(states):
        assert ((drawn == s).double().mean(0) - share[..., s]).abs().max() < 0.08


def test_laws_of_series_draw_what_they_say() -> None:
    """Draws of long runs have the moments of the equation, and densities those of rows one by one."""
    law = dynamics()
    rows = 20_000
    since = torch.arange(rows) % 5000
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(2))
    line = Timeline(order, since)
    torch.manual_seed(3)
    state = switching.StateChains(law.transition, line).sample()
    moves = torch.zeros(2, 2, 2)
    own = state[order].long()
    for k in range(2):
        np.add.at(moves[k].numpy(), (own[:-1, k].numpy(), own[1:, k].numpy()), 1)
    assert (moves / moves.sum(-1, keepdim=True) - law.transition).abs().max() < 0.02
    z = torch.stack([switching.Autoregression(state[:, k], line, law, k).sample() for k in range(2)], 1)
    log = sum(switching.Autoregression(state[:, k], line, law, k).log_prob(z[:, k]) for k in range(2))
    emission = switching.log_emission(z[order], since, law)
    assert isinstance(log, Tensor)
    torch.testing.assert_close(log[order], emission.gather(-1, own[..., None])[..., 0].sum(-1))
    u = switching.below(z[order], since, law)
    assert (u.mean(0) - 0.5).abs().max() < 0.01 and (u.var(0) - 1 / 12).abs().max() < 0.003


def test_partial_autocorrelations_are_those_of_stationary_equations() -> None:
    partial = torch.tensor([[0.9, -0.95, 0.5], [-0.3, 0.2, 0.99]], dtype=torch.double)
    coefficient = switching.coefficients(partial)
    torch.testing.assert_close(switching.partials(coefficient), partial)
    for one in coefficient:
        roots = np.roots(np.r_[1.0, -one.numpy()])
        assert np.abs(roots).max() < 1
    assert (switching.partials(torch.tensor([[1.7, -1.2]])).abs() < 1).all()


def test_matrices_are_diagonalised_together() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    each = np.stack([turn @ np.diag(rng.normal(size=4)) @ turn.T for _ in range(5)])
    found = sources.jointly_diagonal(torch.as_tensor(each)).numpy()
    assert np.abs(np.abs(found.T @ turn).max(0) - 1).max() < 1e-10


@cache
def fitted(**options: Any) -> tuple[Fit, Data]:
    states = 2 if options.get("sources", "switching") == "switching" else 1
    data = simulate.draw(SETTING, 100, **{"rows": 600, "latents": 3, "features": 5, **options})
    return pyrocrl.fit(SnicaLin.from_data(data, states=states), data, chains=2, seed=0, progress=False), data


def test_latents_and_states_are_found_and_the_verdict_says_so() -> None:
    fit, data = fitted(series=4)
    score, place = mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    shares = fit.state_shares()
    assert shares is not None and shares.shape == (600, 3, 2)
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=1e-6)
    states = _states_right(data.truth["state"], shares, place)
    assert score > 0.995 and states["states_right"] > 0.95 > states["states_right_empty"]
    [claim] = pyrocrl.diagnose(fit, data).claims
    assert claim.verdict == "identified", claim.reason


def test_predicted_rows_of_series_go_on_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found, data = fitted()
    cells = data.rows * data.features * found.chains.count * 20
    monkeypatch.setattr(pyrocrl.infer.fitted, "MOST_PREDICTED", cells // 4)
    tree = found.posterior(20, data, density=False)
    new, seen = tree["posterior_predictive"]["x"], tree["observed_data"]["x"].to_numpy()
    place = np.searchsorted(data.row_labels(), new["data"].to_numpy())
    assert len(place) == 150 and (np.diff(place) == 1).all()
    x = new.to_numpy().reshape(-1, *new.shape[2:])

    def follows(rows: np.ndarray) -> np.ndarray:
        return np.array([np.corrcoef(a[:-1], a[1:])[0, 1] for a in rows.T])

    told, true = np.mean([follows(one) for one in x], 0), follows(seen)
    assert np.abs(true).max() > 0.3 and np.abs(told - true).max() < 0.15


def test_rows_in_any_order_are_the_same_data() -> None:
    fit, data = fitted(series=4)
    order = np.random.default_rng(0).permutation(data.rows)
    each, again = (fit.held_out_objective(rows) for rows in (data, data.rows_at(order)))
    np.testing.assert_allclose(again, each[order], rtol=1e-7)


def test_two_latents_of_the_same_dynamics_are_named() -> None:
    fit, data = fitted(sources="alike")
    [claim] = pyrocrl.diagnose(fit, data).claims
    assert claim.verdict == "not identified" and "may have the same dynamics" in claim.reason
    _, place = mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    assert all(fit.names["latent"][k] in claim.reason for k in place[:2]), claim.reason


def test_draws_of_the_unmixing_are_as_wide_as_its_error() -> None:
    """Off the diagonal, over data sets: z-scores of N A - 1 about 0 of deviation 1."""
    scores = []
    for seed in range(100, 106):
        data = simulate.draw(SETTING, seed, rows=400, latents=2, features=2, sources="autoregressive")
        batch = data.tensors(dtype=torch.double)
        since = batch.in_time()[1]
        found = sources.fitted(batch.x, since, torch.linalg.inv(torch.as_tensor(data.truth["loadings"])), 1, 1)
        drawn = sources.draws(found, batch.x, since, 400, torch.Generator().manual_seed(seed))
        apart = torch.linalg.inv(drawn.sites["mixing"]) @ torch.as_tensor(data.truth["loadings"])
        apart = apart / apart.diagonal(dim1=-2, dim2=-1)[..., None]
        off = ~torch.eye(2, dtype=torch.bool)
        scores.append((apart.mean(0) / apart.std(0))[off])
    assert 0.6 < float(torch.cat(scores).square().mean()) ** 0.5 < 1.5


def test_too_few_rows_are_refused() -> None:
    data = simulate.draw(SETTING, 100, rows=40, latents=3, features=5)
    with pytest.raises(InputError, match=r"series: found \d+ rows after 2 others; allowed: 66 or more"):
        pyrocrl.fit(SnicaLin.from_data(data), data, chains=1, progress=False)
