"""`weakly_supervised_nonlin`: the contrast of partners and strangers, the law of pairs, equations, what breaks it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import noise_contrast
from pyrocrl.exact import curve_equations
from pyrocrl.exact.curve_equations import BENDS, Prior
from pyrocrl.lab.suite.linked_rows import hidden_map_pairs
from pyrocrl.parts.paired_rows import Changes, PairedRows

MODEL, SETTING = "weakly_supervised_nonlin", "brehmer2022_nonlinear"


@cache
def fitted(**options: Any) -> tuple[Fit, Data]:
    data = hidden_map_pairs(100, **{"layers": 0} | options)
    program = pyrocrl.build(MODEL, data, width=32, steps=300)
    return pyrocrl.fit(program, data, chains=1, seed=0, progress=False), data


def changes() -> Changes:
    """Latent 1 is 0 with a curve, and noise."""
    curve = torch.zeros(2, BENDS, 2, dtype=torch.double)
    curve[0, :, 1] = torch.tensor([0.5, -1.0, 0.3, 0.7])
    level, scale = torch.tensor([0.2, -0.4]).double(), torch.tensor([1.5, 0.5]).double()
    return Changes(curve, level, scale, torch.tensor([0.1, 0.2]).double(), torch.tensor([0.3, 0.4]).double())


# -- the law of pairs --------------------------------------------------------------------------------------------


def test_the_law_of_pairs_is_that_of_its_equations() -> None:
    own, z = changes(), torch.tensor([[0.3, -0.2], [1.1, 0.4]]).double()
    place, follows = torch.tensor([0, 0]), torch.tensor([False, True])
    found = own.log_joint(z, place, follows, follows)
    eps = own.noise(z).numpy()
    assert eps[0, 0] == pytest.approx(0.3)
    np.testing.assert_allclose(found[0], [-np.inf, -np.inf, stats.norm.logpdf(eps[0]).sum()])
    grown = [m**2 / (1 + m**2) for m in (0.8, 0.6)]
    kept = [stats.norm.logpdf(eps[1, k], eps[0, k], np.sqrt(s**2 + b**2 * g)) for k, s, b, g in
            ((1, 0.2, 0.4, grown[0]), (0, 0.1, 0.3, grown[1]))]  # fmt: skip
    set_to = [stats.norm.logpdf(1.1, 0.2, 1.5), stats.norm.logpdf(0.4, -0.4, 0.5)]
    none = stats.norm.logpdf(eps[1], eps[0], [0.1, 0.2]).sum()
    np.testing.assert_allclose(found[1], [kept[0] + set_to[0], kept[1] + set_to[1], none])


def test_draws_of_pairs_change_their_target_alone() -> None:
    own, pairs = changes(), 20_000
    place = torch.arange(pairs).repeat(2)
    follows = torch.arange(2 * pairs) >= pairs
    target = torch.where(follows, 1, 2)
    torch.manual_seed(0)
    z = PairedRows(own, place, follows, follows, target, torch.tensor([0, 1])).sample()
    eps = own.noise(z)
    before, after = eps.chunk(2)
    np.testing.assert_allclose(torch.cov(before.mT), np.eye(2), atol=0.04)
    assert float((after - before)[:, 0].std()) == pytest.approx(0.24, abs=0.08)
    set_to = z[pairs:, 1]
    assert float(set_to.mean()) == pytest.approx(-0.4, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([set_to, z[:pairs, 0]]))[0, 1])) < 0.03


# -- equations ---------------------------------------------------------------------------------------------------


def test_equations_are_told_by_the_noise_of_pairs_that_changed() -> None:
    """0 -> 1 -> 2: the graph, and latents from noise by its curves."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 3000)
    noise = rng.normal(size=(3000, 3))
    z = np.zeros_like(noise)
    for k, parent in ((0, None), (1, 0), (2, 1)):
        f = 0.0 if parent is None else 1.5 * np.tanh(z[:, parent])
        z[:, k] = np.where(target == k, noise[:, k], f + noise[:, k])
    eps = z - 1.5 * np.column_stack([np.zeros(3000), np.tanh(z[:, 0]), np.tanh(z[:, 1])])
    chance = torch.nn.functional.one_hot(torch.as_tensor(target), 3).double()
    found = curve_equations.draw(
        torch.as_tensor(eps), chance, Prior(0.5, 1.0, 0.03), 100, torch.Generator().manual_seed(0)
    )
    assert found.order.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.graph.mean(0), [[0, 1, 0], [0, 0, 1], [0, 0, 0]], atol=0.2)
    told = found.latents(torch.as_tensor(eps)).numpy()
    assert min(np.corrcoef(told[:, k], z[:, k])[0, 1] for k in range(3)) > 0.99


def test_pairs_are_worth_no_more_than_the_error_of_noise_allows() -> None:
    chance = torch.ones(100_000, 2, dtype=torch.double)
    np.testing.assert_allclose(Prior(0.5, 1.0, 0.1).worth(chance).sum(0), 100, rtol=0.01)
    np.testing.assert_allclose(Prior(0.5, 1.0, 0.0).worth(chance), chance)


# -- contrasts ---------------------------------------------------------------------------------------------------


def noise_of_pairs(pairs: int = 512) -> Tensor:
    """Noise (2 pair, 3) of rows before, then of those after, one of three changed."""
    torch.manual_seed(1)
    first = torch.randn(pairs, 3)
    second = torch.where(torch.nn.functional.one_hot(torch.arange(pairs) % 3, 3) > 0, torch.randn(pairs, 3), first)
    return torch.cat([first, second])


def test_noise_tells_partners_better_than_what_mixes_or_forgets_it() -> None:
    eps = noise_of_pairs()
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    own = float(noise_contrast.contrast(eps, 0.1))
    assert own < 0.7 * float(noise_contrast.contrast(eps @ turn, 0.1))
    assert own < 0.7 * float(noise_contrast.contrast(eps[:, [0, 1, 1]], 0.1))


def test_outputs_that_read_one_latent_twice_are_seen() -> None:
    eps = noise_of_pairs(1000)[:1000]
    found = noise_contrast.dependence(torch.stack([eps[:, 0], eps[:, 1], eps[:, 1].abs()], 1))
    assert found[1, 2] > noise_contrast.TWICE and found[0].max() < 0.1


# -- fits --------------------------------------------------------------------------------------------------------


def test_latents_graph_and_changes_are_found() -> None:
    fit, data = fitted()
    scores, verdict = pyrocrl.evaluate(fit, data), pyrocrl.diagnose(fit, data)
    assert scores["mcc"] > 0.95 and scores["ica_mcc"] < 0.9
    assert scores["shd"] == 0
    found = fit.row_targets(data)
    assert found is not None and (found[~data.after, 3] == 1.0).all()
    called = np.append(pyrocrl.judge.metrics.mcc(data.truth["z"], fit.latents(data), return_assignment=True)[1], 3)
    true = simulate.draw(SETTING, 100, pairs=1500, latents=3, layers=0).truth["row_target"][data.after]
    assert (found[data.after].argmax(1) == called[true]).mean() > 0.9
    assert not any("differs where it is said" in claim.reason for claim in verdict.claims)


def test_partners_of_other_pairs_are_seen() -> None:
    for claim in pyrocrl.diagnose(*fitted(how="exchanged")).claims:
        assert not claim.identified
        assert "differs where it is said not to have changed" in claim.reason


def test_it_asks_for_pairs() -> None:
    data = simulate.draw(SETTING, 0, pairs=30, latents=2)
    with pytest.raises(InputError, match="pair: found None"):
        pyrocrl.build(MODEL, Data(data.x), latents=2)
    program = pyrocrl.build(MODEL, data, width=8, steps=10)
    with pytest.raises(InputError, match="pair: found 10 pairs to fit; allowed: 20 or more, for 2 latents"):
        program.initialise(data.rows_at(np.arange(20)), torch.Generator().manual_seed(0))


def test_settings_share_their_pairs() -> None:
    """Equations, of what is set and of what is kept, hold in the rows drawn."""
    data = simulate.draw(SETTING, 1, pairs=400, latents=4)
    z, weight, target = data.truth["z"], data.truth["weight"], data.truth["row_target"]
    noise = z - np.tanh(z) @ weight
    moved = (np.abs(noise[data.after] - noise[~data.after]) > 1e-9).sum(1)
    np.testing.assert_array_equal(moved, np.where(target[data.after] >= 0, 1, 0))
