"""`sparse_perturbations`: the law of pairs, axes that few perturbations move, networks, what is refused."""

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
from pyrocrl.constructions import offsets
from pyrocrl.judge.metrics import mcc
from pyrocrl.lab.studies.linked_rows import MeanDifferences
from pyrocrl.lab.suite.actions import moved
from pyrocrl.parts.displaced import Displaced

ALONE = [[1.5, 0, 0], [0, -1.2, 0], [0, 0, 1.0]]
MODEL = "sparse_perturbations"


@cache
def fitted(offset: tuple[tuple[float, ...], ...], **world: Any) -> tuple[Fit, Data]:
    data = moved(100, offset, **{"pairs": 400} | world)
    program = pyrocrl.build(MODEL, data, decoder="linear")
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


def tuples(rows: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in rows)


# -- the law of pairs --------------------------------------------------------------------------------------------


def law(rows: int = 1) -> Displaced:
    """Pairs of rows, the one after first."""
    place = torch.arange(2 * rows).reshape(-1, 2)[:, [1, 1]].reshape(-1)
    follows = torch.tensor([True, False]).repeat(rows)
    shift = torch.tensor([[0.5, -1.0], [0.0, 0.0]], dtype=torch.double).repeat(rows, 1)
    spread, tril = torch.tensor([0.2, 0.4]).double(), torch.tensor([[1.0, 0.0], [0.6, 0.5]]).double()
    return Displaced(shift, spread, tril, place, follows)


def test_a_row_after_is_about_the_row_before_and_all_others_have_the_latents_law() -> None:
    own, value = law(), torch.tensor([[1.0, 0.3], [0.2, 0.7]], dtype=torch.double)
    near = stats.norm([0.7, -0.3], [0.2, 0.4]).logpdf(value[0].numpy()).sum()
    alone = stats.multivariate_normal([0, 0], (own.tril @ own.tril.mT).numpy()).logpdf(value[1].numpy())
    np.testing.assert_allclose(own.log_prob(value), [near, alone])
    torch.manual_seed(0)
    drawn = law(20_000).sample().reshape(-1, 2, 2)
    np.testing.assert_allclose((drawn[:, 0] - drawn[:, 1]).mean(0), [0.5, -1.0], atol=0.02)
    np.testing.assert_allclose((drawn[:, 0] - drawn[:, 1]).std(0), [0.2, 0.4], rtol=0.03)
    np.testing.assert_allclose(np.cov(drawn[:, 1].numpy().T), own.tril @ own.tril.mT, atol=0.04)


# -- axes --------------------------------------------------------------------------------------------------------


def found(offset: Any, error: float = 0.01, seed: int = 0) -> tuple[offsets.Axes, Tensor]:
    """Axes of differences in other coordinates, with errors of this size; and what they read of the true latents."""
    rng, own = np.random.default_rng(seed), np.asarray(offset, dtype=float)
    mixing = np.eye(own.shape[1]) + 0.3 * rng.normal(size=(own.shape[1],) * 2)
    mean = torch.as_tensor(own @ mixing.T + error * rng.normal(size=own.shape))
    cov = error**2 * torch.eye(own.shape[1], dtype=torch.double).expand(len(own), -1, -1)
    out = offsets.axes(offsets.Differences(mean, cov, torch.full((len(own),), 9.0)), 1e-4, torch.Generator())
    read = (out.rows @ torch.as_tensor(mixing)).abs()
    return out, read / read.max(1, keepdim=True).values


def overlapping(latents: int, each: int = 3) -> np.ndarray:
    """Perturbations that move two neighbouring latents, `each` by numbers of their own."""
    rng, out = np.random.default_rng(5), np.zeros((latents, each, latents))
    for k in range(latents):
        out[k][:, [k, (k + 1) % latents]] = rng.uniform(0.5, 1.5, (each, 2)) * rng.choice([-1, 1], (each, 2))
    return out.reshape(-1, latents)


@pytest.mark.parametrize("offset", [np.diag([1.0, -2.0, 0.7, 1.5]), overlapping(3), overlapping(6, 2)])
def test_axes_are_those_that_the_fewest_perturbations_move(offset: np.ndarray) -> None:
    for seed in range(3):
        out, read = found(offset, 0.002, seed)
        assert not out.mixed.any()
        assert sorted(read.argmax(1).tolist()) == list(range(offset.shape[1]))
        assert read.sort(1).values[:, -2].max() < 0.05, "each reads one latent"


def test_latents_whose_axes_others_match_are_named() -> None:
    out, read = found([[1, 0.5, 0, 0], [0.5, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]])
    inside = read[:, :2].sum(1) > read[:, 2:].sum(1)
    assert out.mixed.tolist() == inside.tolist() and int(inside.sum()) == 2


def test_directions_that_offsets_do_not_span_have_no_share() -> None:
    for offset, spanned in ((ALONE, 3), ([[1, 1, 0], [2, 2, 0], [0, 0, 1]], 2), ([[1, 0, 0]], 1)):
        own = torch.tensor(offset, dtype=torch.double)
        noise = 0.02 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        cov = 4e-4 * torch.eye(3, dtype=torch.double).expand(len(own), -1, -1)
        share = offsets.told_directions(offsets.Differences(own + noise, cov, torch.full((len(own),), 50.0)))
        assert (share > 0.9).sum() == spanned and (share[spanned:] < 0.2).all() and len(share) == 3


def test_a_network_finds_coordinates_in_which_differences_are_fixed() -> None:
    """Where mean differences do not: three latents behind two layers, and twice as many perturbations."""
    data = moved(100, [*ALONE, [0.8, 0, 0], [0, -0.7, 0], [0, 0, 1.7]], layers=2, pairs=2000, features=3, noise=0.0)
    x = torch.as_tensor((data.x - data.x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(data.x.T))).T).float()
    before, after = x[~data.after], x[data.after]
    torch.manual_seed(0)
    which = torch.as_tensor(data.env[data.after]).long() - 1
    net, share = offsets.encoder(before, after, which, 3, 32, 600, torch.Generator().manual_seed(0))
    assert (share[:3] > 0.8).all() and (share[3:] < 0.4).all()
    with torch.no_grad():
        apart = offsets.differences(net(after) - net(before), which, 6)
        axes = offsets.axes(apart, 0.02, torch.Generator()).rows
        z = (net(before) @ axes.mT).numpy()
    assert mcc(data.truth["z"][~data.after], z) > 0.99 > 0.95 > mcc(data.truth["z"][~data.after], before.numpy())


# -- fits --------------------------------------------------------------------------------------------------------


def test_latents_targets_and_offsets_of_a_linear_mixing() -> None:
    fit, data = fitted(tuples(ALONE))
    scores, verdict = MeanDifferences("moved").score(fit, data), pyrocrl.diagnose(fit, data)
    assert scores["mcc"] > 0.998 and scores["difference_mcc"] > 0.998 > 0.9 > scores["pca_mcc"]
    targets = fit.targets()
    assert targets is not None and (targets[0] < 0.01).all()
    assert (np.sort(targets[1:], 1)[:, :2] < 0.1).all() and (targets[1:].max(1) > 0.99).all()
    _, place = mcc(data.truth["z"], fit.latents(data), return_assignment=True)
    drawn = fit.posterior(20, thin=50, predictive=False, density=False)["posterior"]["offset"].to_numpy()
    assert drawn.shape == (2, 20, 4, 3)
    unit = fit.latents(data)[:, place].std(0) / data.truth["z"].std(0)
    np.testing.assert_allclose(np.abs(drawn[..., 1:, place].mean((0, 1))), np.abs(ALONE) * unit, atol=0.05)
    for claim in verdict.claims:
        assert claim.verdict == "identified if" and list(claim.given) == [
            "no axes are moved by fewer perturbations than the latents are"
        ]


def test_the_order_of_rows_and_pairs_without_a_perturbation_do_not_matter() -> None:
    fit, data = fitted(tuples(ALONE))
    order = np.random.default_rng(0).permutation(data.rows)
    np.testing.assert_allclose(fit.latents(data.rows_at(order)), fit.latents(data)[order], atol=1e-5)
    lone = data.rows_at(np.flatnonzero(data.after)[:20])
    np.testing.assert_allclose(fit.latents(lone), fit.latents(data)[data.after][:20], atol=1e-5)
    env = data.env_labels().astype(object)
    env[np.flatnonzero(data.after)[:40]] = "control"
    other = Data(data.x, env, pair=data.pair, step=data.after, control="control", truth=data.truth)
    again = pyrocrl.fit(pyrocrl.build(MODEL, other, decoder="linear"), other, chains=1, seed=0, progress=False)
    assert mcc(other.truth["z"], again.latents(other)) > 0.998


@pytest.mark.parametrize(
    ("offset", "world", "verdict", "words"),
    [
        ([[1, 0.5, 0], [0.5, 1, 0], [1, -1, 0], [0, 0, 1]], {}, "not identified", "mix: other axes of theirs"),
        (ALONE, {"how": "placed"}, "contradicted", "where offsets move rows"),
        (ALONE, {"how": "exchanged"}, "not identified", "differs from pair to pair"),
    ],
)
def test_what_breaks_it_is_seen(offset: Any, world: dict[str, Any], verdict: str, words: str) -> None:
    for claim in pyrocrl.diagnose(*fitted(tuples(offset), **world)).claims:
        assert words in claim.reason and claim.verdict == verdict
        assert "mix" not in words or len(claim.which) == 2


def test_bad_input_is_one_clear_line() -> None:
    data = moved(100, ALONE, pairs=60)
    told = {"pair": data.pair, "step": data.after}
    with pytest.raises(InputError, match="environments: found 4; allowed: 6 or more: the control and a perturb"):
        pyrocrl.build(MODEL, data, latents=5)
    with pytest.raises(InputError, match="pair: found None; allowed: labels of pairs of rows"):
        pyrocrl.build(MODEL, Data(data.x, data.env_labels(), control="control"), latents=2)
    nameless = Data(data.x, np.char.replace(data.env_labels().astype(str), "control", "none"), **told)
    with pytest.raises(InputError, match="control: found none told, nor known by its name"):
        pyrocrl.build(MODEL, nameless, latents=2)
    env = data.env_labels().astype(object)
    for rows, label, message in (
        (
            np.flatnonzero(~data.after)[[3]],
            "move_1",
            "env: found a row before of 'move_1'; allowed: rows before of the",
        ),
        (np.flatnonzero(env == "move_2")[1:], "move_1", "pair: found . pairs of 'move_2' to fit; allowed: two or more"),
    ):
        changed = env.copy()
        changed[rows] = label
        wrong = Data(data.x, changed, control="control", truth=data.truth, **told)
        with pytest.raises(InputError, match=message):
            pyrocrl.fit(pyrocrl.build(MODEL, wrong, decoder="linear"), wrong, chains=1, progress=False)


def test_the_setting_is_as_it_says() -> None:
    data = simulate.draw(
        "ahuja2022_pairs", 0, pairs=300, latents=4, law="blocks", together=2, perturbations=6, draws=50
    )
    z, after = data.truth["z"], data.after
    step = z[after] - z[data.partner[after]]
    for name, latents in data.truth["targets"].items():
        own = step[data.env_labels()[after] == name]
        assert len(latents) == 2 and np.ptp(own, axis=0).max() < 1e-9
        size = np.abs(own[0])
        assert set(np.flatnonzero(size > 1e-9)) == set(latents) and (size[list(latents)] >= 1 - 1e-9).all()
    r = np.corrcoef(z[~after].T)
    assert 0.3 < r[0, 1] < 0.7 and abs(r[0, 2]) < 0.2
    linear = simulate.draw("ahuja2022_pairs", 0, pairs=300, latents=4, layers=0, features=6, draws=50)
    own = (linear.x[after] - linear.x[linear.partner[after]])[linear.env[after] == 1]
    assert linear.features == 6 and np.ptp(own, axis=0).max() < 1e-9
