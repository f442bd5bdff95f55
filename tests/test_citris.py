"""`citris`: sums over parents and weights, laws of steps, the closed form, what breaks it."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import target_steps as construction
from pyrocrl.exact import target_steps
from pyrocrl.exact.switching import Timeline
from pyrocrl.exact.target_steps import CONSTANT, SLABS, Basis
from pyrocrl.judge.metrics import mcc
from pyrocrl.models.citris import Citris
from pyrocrl.parts.target_steps import Mechanisms, Steps

SMALL = {"rows": 600, "latents": 2, "features": 4, "series": 3}
RNG = torch.Generator().manual_seed(0)


@cache
def fitted(intervention: str = "perfect", **options: Any) -> tuple[Fit, Data]:
    data = simulate.draw("voronoi_numeric", 100, **SMALL | options)
    program = Citris.from_data(data, intervention=intervention)
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG, dtype=torch.double)


def test_weights_are_summed_out_as_normal_laws_say() -> None:
    """Of every set of parents and slab, for any unmixing: the density of z with a covariance of its own."""
    y, before, row = random(12, 2), random(12, 2), random(2)
    basis = Basis.of(torch.eye(2, dtype=torch.double), before)
    own = target_steps.moments(basis(before), y, torch.zeros(12, dtype=torch.long), 1)
    found = target_steps.terms(own.of(torch.ones(2, 1, dtype=torch.double)))
    log = found.log - 0.5 * torch.einsum("a,kcab,b->kc", row, found.square, row) - 6 * math.log(2 * math.pi)
    z, phi = y @ row, basis(before)
    for place, parents in enumerate(target_steps.members(2)):
        for s, slab in enumerate(SLABS):
            size = target_steps.sizes(target_steps.inside(parents), torch.tensor(slab, dtype=torch.double))
            cov = torch.eye(12, dtype=torch.double) + (phi * size.square()) @ phi.mT
            told = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=torch.double), cov).log_prob(z)
            torch.testing.assert_close(log[:, place * len(SLABS) + s], told.expand(2))
    alone = target_steps.terms_of_constant(own)
    torch.testing.assert_close(alone.log[0, 0], -0.5 * torch.tensor(1 + 12 * CONSTANT**2).double().log())
    used = target_steps.inside(torch.tensor([1.0, 0.0]))
    assert used.sum() == 6 and target_steps.inside(torch.ones(2)).sum() == 17


def test_weights_are_drawn_as_they_are_given_the_rows() -> None:
    phi, z = random(40, 3), random(40)
    own = target_steps.Moments(phi.mT @ phi, phi.mT @ z[:, None], z[None] @ z[:, None], torch.tensor(40.0))
    size = torch.tensor([1.0, 0.5, 0.0], dtype=torch.double)
    drawn = target_steps.weights(own, torch.ones(4000, 1, dtype=torch.double), size, RNG)
    precision = torch.eye(3, dtype=torch.double) + size[:, None] * (phi.mT @ phi) * size
    mean = torch.linalg.solve(precision, size * (phi.mT @ z))
    assert (drawn.mean(0) - mean).abs().max() < 0.06
    assert (torch.cov(drawn.mT) - torch.linalg.inv(precision)).abs().max() < 0.08


def test_laws_of_steps_draw_what_they_say() -> None:
    """A function of the row before for those that are no targets, another law for those that are."""
    rows, basis = 3000, Basis.of(torch.eye(2, dtype=torch.double), random(100, 2))
    slope = 0.3 * random(2, 2, 17)
    slope[1, :, 1:] = 0
    scale = torch.tensor([[1.0, 1.0], [0.2, 3.0]]).double()
    law = Mechanisms(slope, scale, torch.tensor([5.0, 1.0]).double(), torch.eye(2, dtype=torch.double), basis)
    order = torch.randperm(rows, generator=RNG)
    line = Timeline(order, torch.arange(rows) % 100)
    hit = (torch.rand(rows, 2, generator=RNG) < 0.3).double()
    torch.manual_seed(0)
    steps = Steps(law, line, hit)
    z = steps.sample()
    mean, deviation = law.law(line.lay(z).roll(1, 0), line.lay(hit))
    begins = line.since == 0
    left = ((line.lay(z) - mean) / deviation)[~begins]
    assert left.mean(0).abs().max() < 0.08 and (left.std(0) - 1).abs().max() < 0.06
    torch.testing.assert_close(mean[line.lay(hit)[:, 1] > 0][:, 1].std(), torch.zeros(()).double())
    log = torch.distributions.Normal(mean, deviation).log_prob(line.lay(z)).sum(-1)
    torch.testing.assert_close(steps.log_prob(z)[order][~begins], log[~begins])
    assert 3 < float(line.lay(z)[begins][:, 0].std()) < 7


def test_targets_tell_columns_of_a_linear_mixing() -> None:
    data = simulate.draw("voronoi_numeric", 100, rows=2000, latents=3, features=3)
    batch = data.tensors(dtype=torch.float64)
    order, since = batch.in_time()
    y, hit = (batch.x - batch.x.mean(0))[order], torch.as_tensor(data.target_matrix(3))
    told, _ = construction.by_targets(construction.Steps(y, batch.env[order], since, hit, False, 0.5))
    assert mcc(data.truth["z"][order], (y @ told.mT).numpy()) > 0.98
    none = construction.Steps(y, batch.env[order], since, 0 * hit, False, 0.5)
    assert not torch.isfinite(construction.by_targets(none)[0]).all()


def test_latents_are_found_by_name_and_the_verdict_says_so() -> None:
    fit, data = fitted()
    z, found = data.truth["z"], fit.latents(data)
    r2 = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(z.T, found.T, strict=True)]
    assert min(r2) > 0.99
    [claim] = pyrocrl.diagnose(fit, data).claims
    assert claim.verdict == "identified" and "permutation" not in claim.claim, claim.reason
    assert ((fit.chains.chain(0).lagged().numpy() > 0.5) == data.truth["lagged"]).mean() >= 0.75


def test_rows_in_any_order_are_the_same_data() -> None:
    fit, data = fitted()
    order = np.random.default_rng(0).permutation(data.rows)
    each, again = (fit.held_out_objective(rows) for rows in (data, data.rows_at(order)))
    np.testing.assert_allclose(again, each[order], rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "verdict", "said"),
    [
        ({"targets": "together"}, "not identified", "in 0 steps one of latent_0 and latent_1 alone is a target"),
        ({"never": 1}, "not identified", "in 0 steps latent_1 is a target: latents that never are, are known as a"),
        ({"idle": 2, "kept": 1.0, "intervention": "soft"}, "not identified", "being a target may change nothing of"),
        ({"spill": 1.0}, "contradicted", "latents where others are targets"),
    ],
)
def test_what_is_not_told_is_named(options: dict[str, Any], verdict: str, said: str) -> None:
    fit, data = fitted(**options)
    [claim] = pyrocrl.diagnose(fit, data).claims
    assert claim.verdict == verdict and said in claim.reason, claim.reason


def test_bad_input_is_one_line() -> None:
    data = fitted()[1]
    with pytest.raises(InputError, match=r"latents: found 3; allowed|targets"):
        Citris.from_data(Data(data.x[:, :2], data.env_labels(), data.targets, series=data.series_labels()), latents=3)
    with pytest.raises(InputError, match=r"series: found None; allowed: labels of series, which citris needs"):
        Citris.from_data(Data(data.x, data.env_labels(), data.targets), latents=2)
    with pytest.raises(InputError, match="targets: found None in the data"):
        Citris.from_data(Data(data.x, data.env_labels(), series=data.series_labels()), latents=2)
    with pytest.raises(InputError, match="latents: found 9; allowed"):
        simulated = simulate.draw("voronoi_numeric", 0, rows=40, latents=9)
        Citris.from_data(simulated)
    few = data.rows_at(np.arange(20))
    with pytest.raises(InputError, match=r"series: found \d+ rows after others; allowed: 32 or more"):
        pyrocrl.fit(Citris.from_data(data), few, chains=1, progress=False)
    with pytest.raises(InputError, match="never: found 4; allowed"):
        simulate.draw("voronoi_numeric", latents=3, never=4)
