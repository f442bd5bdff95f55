"""`weakly_supervised_pairs`: lines of differences, the posterior of equations, lone rows, what breaks it."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import lines
from pyrocrl.exact import all_subsets, paired_sem
from pyrocrl.judge.metrics import mcc
from pyrocrl.models.weakly_supervised_pairs import WeaklySupervisedPairs
from pyrocrl.show import export

SETTING = "brehmer2022_linear"


def white(data: Data) -> tuple[Tensor, Tensor]:
    """Rows before and after, white over those before, of as many columns as latents."""
    x = torch.as_tensor(data.x)
    before, after = x[~data.after], x[data.after]
    value, vector = torch.linalg.eigh(torch.cov(before.mT))
    latents = data.truth["z"].shape[1]
    scale = vector[:, -latents:] / value[-latents:].sqrt()
    return (before - before.mean(0)) @ scale, (after - before.mean(0)) @ scale


@cache
def fitted(**options: Any) -> tuple[Fit, Data]:
    data = simulate.draw(SETTING, 100, **{"pairs": 1000, "latents": 3, "features": 5, **options})
    program = pyrocrl.build("weakly_supervised_pairs", data)
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


@pytest.mark.parametrize(("unshared", "least"), [(0.0, 0.999), (0.3, 0.7)])
def test_lines_of_differences_are_columns_of_the_noise_s_mixing(unshared: float, least: float) -> None:
    data = simulate.draw(SETTING, 100, pairs=4000, latents=6, features=8, unshared=unshared)
    before, after = white(data)
    found = lines.fitted(before, after, 6, torch.Generator().manual_seed(0))
    noise = data.truth["z"][~data.after] @ (np.eye(6) - data.truth["weight"])
    score, place = mcc(noise, (before @ found.unmixing.mT).numpy(), return_assignment=True)
    assert score > 0.999
    np.testing.assert_allclose(found.unshared, max(unshared, lines.FLOOR), rtol=0.1)
    called, true = found.log_joint(before, after).argmax(1).numpy(), data.truth["row_target"][data.after]
    assert (called == np.append(place, 6)[true]).mean() > least


def test_draws_of_the_unmixing_are_as_wide_as_its_error() -> None:
    """Off the diagonal, over data sets: z-scores of N A - 1 about 0 of deviation 1."""
    scores = []
    for seed in range(100, 106):
        data = simulate.draw(SETTING, seed, pairs=800, latents=3, features=3, unshared=0.2)
        before, after = white(data)
        found = lines.fitted(before, after, 3, torch.Generator().manual_seed(seed))
        chance = found.log_joint(before, after).softmax(1)
        drawn = lines.draws(found, before, after, chance, 400, torch.Generator().manual_seed(1))
        noise = torch.as_tensor(data.truth["z"][~data.after] @ (np.eye(3) - data.truth["weight"]))
        mixing = torch.linalg.lstsq(noise, before).solution.mT  # y = A eps
        _, place = mcc(noise.numpy(), (before @ found.unmixing.mT).numpy(), return_assignment=True)
        apart = (drawn @ mixing)[:, place]  # (draw, latent, latent), near a diagonal of signs
        off = ~torch.eye(3, dtype=torch.bool)
        scores.append((apart.mean(0) / apart.std(0))[off])
    assert 0.6 < float(torch.cat(scores).square().mean()) ** 0.5 < 1.5


def test_two_latents_graphs_and_weights_are_those_of_their_evidence() -> None:
    """A root's z is its noise, so that for two latents every graph's evidence is closed."""
    rng = np.random.default_rng(3)
    count, slab = (40, 60), 1.0
    noise = [rng.normal(size=(n, 2)) for n in count]
    noise[1][:, 1] -= 0.45 * noise[1][:, 0]  # w_01 = .45
    own = [np.column_stack([np.ones(len(e)), e]) for e in noise]
    moments = torch.as_tensor(np.stack([m.T @ m for m in own]))
    log_p = {}
    for name, parents in {"none": (), "0>1": ((0, 1),), "1>0": ((1, 0),)}.items():
        log_p[name] = math.log(2.0) if name == "none" else 0.0  # which fits both orders
        for k in range(2):
            basis = [3.0 * own[k][:, 0], *(slab * own[k][:, 1 + j] for j, child in parents if child == k)]
            design = torch.as_tensor(np.column_stack([*basis, own[k][:, 1 + k]]))
            each = all_subsets.log_evidence_of_all(
                design.mT @ design, torch.tensor(float(count[k]), dtype=torch.double)
            )
            log_p[name] += float(each)
    weight = np.exp(np.array(list(log_p.values())) - max(log_p.values()))
    torch.manual_seed(0)
    found = paired_sem.draw(moments.expand(2000, -1, -1, -1), 0.5, slab)
    edge = found.graph.double().mean(0)
    assert float(edge[0, 1]) == pytest.approx(weight[1] / weight.sum(), abs=0.04)
    assert float(edge[1, 0]) == pytest.approx(weight[2] / weight.sum(), abs=0.04)
    drawn = found.weight[:, 0, 1][found.graph[:, 0, 1] > 0.5]
    centred = noise[1] - noise[1].mean(0)
    assert float(drawn.mean()) == pytest.approx(
        -(centred[:, 0] @ centred[:, 1]) / (centred[:, 0] @ centred[:, 0]), abs=0.03
    )
    assert 0.8 < float(drawn.std()) * np.linalg.norm(centred[:, 0]) / centred[:, 1].std() < 1.25


def test_equations_of_a_chain_are_drawn_with_all_that_tells_of_them() -> None:
    """0 -> 1 -> 2 -> 3: z-scores of weights over data sets, of which own regressions tell half."""
    scores, right = [], []
    true = torch.zeros(4, 4, dtype=torch.double)
    for a, b in pairwise(range(4)):
        true[a, b] = 1.2
    for seed in range(6):
        rng = np.random.default_rng([7, seed])
        parts = []
        for k in range(4):
            noise = rng.normal(size=(150, 4))
            z = np.zeros_like(noise)
            for j in range(4):
                z[:, j] = noise[:, j] + (0 if j == k else z @ true[:, j].numpy())
            own = np.column_stack([np.ones(150), z @ (np.eye(4) - true.numpy())])
            parts.append(own.T @ own)
        torch.manual_seed(seed)
        found = paired_sem.draw(torch.as_tensor(np.stack(parts)).expand(200, -1, -1, -1), 0.5, 1.0)
        edges = found.graph.double().mean(0) > 0.5
        right.append(bool((edges == (true > 0)).all()))
        scores.append(((found.weight.mean(0) - true) / found.weight.std(0))[true > 0])
    assert sum(right) >= 5
    assert 0.6 < float(torch.cat(scores).square().mean()) ** 0.5 < 1.5


def test_a_row_without_its_partner_has_its_margin() -> None:
    """Its density is the mean over rows before of that given the row before."""
    fit, data = fitted(unshared=0.3)
    program = fit.programs()[0]
    sites = {name: value.detach() for name, value in program._draw(0).items()}
    place = int(np.flatnonzero(data.after)[3])
    lone = fit.batch_of(data.rows_at(np.array([place])))
    rows = torch.arange(40_000)
    noise = sites["level"] + torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    before = program.offset + noise @ sites["mixing"].mT @ program.lift.mT
    batch = dataclasses.replace(
        lone,
        x=torch.cat([before, lone.x.expand(20_000, -1)]),
        pair=torch.cat([2 * rows[:20_000], 2 * rows[:20_000] + 1]),
        **{name: getattr(lone, name).expand(40_000) for name in ("env", "size_factor", "group")},
        index=rows,
        total=40_000,
    )
    each = program.row_log_likelihood(batch, sites)[20_000:]
    alone = float(program.row_log_likelihood(lone, sites))
    assert float(each.logsumexp(0) - math.log(20_000)) == pytest.approx(alone, abs=0.1)
    assert program.row_targets(lone).shape == (1, 4)


def test_latents_graph_and_changes_are_found_whatever_the_rows_order() -> None:
    fit, data = fitted(unshared=0.02)
    order = np.random.default_rng(0).permutation(data.rows)
    turned = data.rows_at(order)
    np.testing.assert_allclose(fit.latents(turned), fit.latents(data)[order], atol=1e-9)
    found = fit.row_targets(data)
    assert found is not None and found.shape == (2000, 4)
    np.testing.assert_allclose(fit.row_targets(turned), found[order], atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1.0)
    assert (found[~data.after, 3] == 1.0).all()
    scores, verdict = pyrocrl.evaluate(fit, data.rows_at(np.arange(600))), pyrocrl.diagnose(fit, data)
    assert scores["mcc"] > 0.995 and scores["shd"] == 0 and scores["changes_right"] > 0.95
    assert scores["changes_right_empty"] < 0.4
    assert verdict["latents"].identified
    assert "interventions replace their targets' mechanisms" in verdict["latents"].given
    alone = fit.row_targets(data.rows_at(~data.after))
    assert alone is not None and (alone[:, 3] == 1.0).all()


def test_what_changed_is_exported_row_by_row() -> None:
    fit, data = fitted(unshared=0.02)
    few = data.rows_at(data.spread(60))
    table, chance = export.to_frame(fit, few, draws=2), fit.row_targets(few)
    assert chance is not None
    called = np.array([*fit.names["latent"], "none"])[chance.argmax(1)]
    assert table["changed"].tolist() == np.where(few.after, called, "").tolist()
    np.testing.assert_allclose(table["changed_p"][few.after], chance[few.after].max(1))
    adata = export.to_anndata(fit, few, draws=2)
    assert adata.obs["pyrocrl_changed"].tolist() == table["changed"].tolist()
    assert adata.obsm["X_pyrocrl_sd"].shape == (60, 3)


@pytest.mark.parametrize(
    ("options", "verdict", "words"),
    [
        ({"never": 1}, "not identified", "changes in 0 pairs"),
        ({"together": 2}, "contradicted", "differences of latents that did not change"),
        ({"measurement": 0.1}, "contradicted", "differences of latents that did not change"),
    ],
)
def test_what_breaks_it_is_seen(options: dict[str, Any], verdict: str, words: str) -> None:
    found = pyrocrl.diagnose(*fitted(**options))
    for claim in found.claims:
        assert claim.verdict == verdict and words in claim.reason


def test_it_asks_for_pairs() -> None:
    data = simulate.draw(SETTING, 0, pairs=20, latents=2, features=4)
    bare = Data(data.x)
    with pytest.raises(InputError, match="pair: found None; allowed: labels of pairs of rows"):
        pyrocrl.build("weakly_supervised_pairs", bare, latents=2)
    with pytest.raises(InputError, match="pair: found None"):
        pyrocrl.fit(WeaklySupervisedPairs(4, 2), bare, progress=False)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="pair: found 3 pairs to fit; allowed: 4 or more"):
        pyrocrl.fit(WeaklySupervisedPairs(4, 2), data.rows_at(np.arange(8)), progress=False, held_out=0.1)
