"""Rows that escaped their intervention: the mixture's moments, and models on such rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

import pyrocrl
from pyrocrl import Batch, Data, InputError, Program, simulate
from pyrocrl.infer import stories
from pyrocrl.judge.metrics import mcc, shd
from pyrocrl.parts import escapees

SHARE = 0.3


def mixture(rows: int, shift: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y of an observational environment and one that moves the first of three coordinates; who escaped."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(2 * rows, 3, generator=generator, dtype=torch.float64)
    env = torch.arange(2).repeat_interleave(rows)
    escaped = (env == 1) & (torch.rand(2 * rows, generator=generator) < SHARE)
    changed = (env == 1) & ~escaped
    y[changed, 0] = 0.5 * y[changed, 0] - shift
    return y, env, escaped


def test_moments_are_those_of_the_rows_that_did_not_escape() -> None:
    y, env, escaped = mixture(8000, 2.0)
    found = escapees.changed_moments(y, env, torch.tensor([True, False]))
    changed = y[(env == 1) & ~escaped]
    assert float(found.share[0]) == 0.0
    assert float(found.share[1]) == pytest.approx(SHARE, abs=0.03)
    torch.testing.assert_close(found.mean[1], changed.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(found.cov[1], torch.cov(changed.mT), atol=0.08, rtol=0)
    assert float(found.count[0]) == 8000
    assert 0.5 * len(changed) < float(found.count[1]) < len(changed)


def test_count_says_how_sharp_the_mean_is() -> None:
    """Over repeated samples the mean varies as that of `count` rows does, where escapes overlap with changes."""
    means, counts = [], []
    for seed in range(60):
        y, env, _ = mixture(400, 1.5, seed)
        found = escapees.changed_moments(y[:, :1], env, torch.tensor([True, False]))
        means.append(float(found.mean[1, 0]))
        counts.append(float(found.count[1] / found.cov[1, 0, 0]))
    assert 0.5 < np.var(means) * np.median(counts) < 2.0


def test_an_environment_that_changes_nothing_keeps_its_moments() -> None:
    y, env, _ = mixture(4000, 2.0)
    y[env == 1] = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = escapees.changed_moments(y, env, torch.tensor([True, False]))
    torch.testing.assert_close(found.mean[1], torch.zeros(3).double(), atol=0.15, rtol=0)


def half_changed(seed: int) -> Data:
    """`squires2023_hard` in which a quarter of each intervention's rows are observational ones."""
    data = simulate.draw("squires2023_hard", seed, samples=4000, latents=3, features=6)
    rng, x, z = np.random.default_rng(seed), data.x.copy(), data.truth["z"].copy()
    labels = data.env_labels()
    control = data.env_names[0]
    escaped = (labels != control) & (rng.random(data.rows) < 0.25)
    origin = rng.choice(np.flatnonzero(labels == control), escaped.sum(), replace=False)
    keep = ~np.isin(np.arange(data.rows), origin)  # no row twice
    x[escaped], z[escaped] = data.x[origin], data.truth["z"][origin]
    truth = data.truth | {"z": z[keep], "component": (~escaped)[keep].astype(int)}
    return Data(x[keep], labels[keep], targets=data.targets, control=control, truth=truth)


@pytest.fixture(scope="module")
def fitted() -> pyrocrl.Fit:
    data = half_changed(101)
    return pyrocrl.fit(pyrocrl.build("linear_sem_lin", data, escapees=True), data, chains=1, seed=0, progress=False)


def test_latents_and_graph_where_rows_escaped(fitted: pyrocrl.Fit) -> None:
    data = fitted.data
    assert data is not None
    assert mcc(data.truth["z"], fitted.latents(data)) > 0.99
    graph = fitted.graph()
    assert graph is not None
    assert shd(data.truth["graph"] > 0, graph > 0.5) == 0
    knocked_out = data.env != 0
    drawn = fitted.posterior(draws=20, predictive=False)["posterior"]
    escaped = drawn["escaped"].mean(("chain", "draw")).to_numpy()
    assert roc_auc_score(1 - data.truth["component"][knocked_out], escaped[knocked_out]) > 0.65  # laws overlap
    assert escaped[knocked_out].mean() == pytest.approx(0.25, abs=0.08)
    assert not escaped[~knocked_out].any()
    told = fitted.programs()[0].escaped(fitted.batch_of(data))
    assert told is not None
    np.testing.assert_allclose(told[knocked_out].mean(), escaped[knocked_out].mean(), atol=0.03)
    assert np.corrcoef(told.numpy()[knocked_out], escaped[knocked_out])[0, 1] > 0.8


def drawn_sites(fitted: pyrocrl.Fit) -> tuple[Program, Batch, dict[str, torch.Tensor]]:
    """The only chain's program, the rows of the fit, and one draw of all sites at the guide's mean."""
    program, data = fitted.programs()[0], fitted.data
    assert data is not None
    batch = data.in_units(fitted.units).tensors(dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        sites = {"tangent": program.root @ program.guide_block.loc}
        sites |= program.recovered(batch, sites)
        return program, batch, sites | stories.values(stories.told(program, batch, sites))


def test_a_row_s_likelihood_sums_its_bernoulli_out(fitted: pyrocrl.Fit) -> None:
    program, batch, sites = drawn_sites(fitted)
    found = program.row_log_likelihood(batch, sites).detach()
    some = torch.randperm(len(batch))[:20]
    z, weight, share = batch.x[some] @ sites["unmixing"].mT, sites["weight"].numpy(), program.share
    outside = []
    for row, e in zip(z.numpy(), batch.env[some].tolist(), strict=True):
        density = 0.0
        for env, p in ((e, 1 - float(share[e])), (0, float(share[e]))):
            w = weight * (1 - sites["targets"][env].numpy())
            noise = np.diag(sites["noise"][env].numpy() ** 2)
            back = np.linalg.inv(np.eye(3) - w)
            mean = sites["intercept"][env].numpy() @ back
            density += p * multivariate_normal(mean, back.T @ noise @ back).pdf(row)
        outside.append(np.log(density))
    constant = found[some].numpy() - np.array(outside)  # the Jacobian, and what lies outside the mixing
    apart = batch.x[some] - program.offset - batch.x[some] @ program.project.mT @ program.lift.mT
    constant += 0.5 * (apart / program.tau).square().sum(-1).numpy()
    assert np.ptp(constant) < 1e-6


def test_new_rows_escape_as_often(fitted: pyrocrl.Fit) -> None:
    program, batch, sites = drawn_sites(fitted)
    kept = {name: value for name, value in sites.items() if name not in ("z", "escaped")}
    new = stories.told(program, batch.blank(), kept).nodes["x"]["value"]
    z, true = ((x @ sites["unmixing"].mT)[batch.env == 1] for x in (new, batch.x))
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        torch.testing.assert_close(z.quantile(level, 0), true.quantile(level, 0), atol=0.15, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_sem_lin", "linear_sem_nonlin"])
def test_counts_of_cells_that_escaped(name: str) -> None:
    data = simulate.draw("perturb_seq", 100, rows=3000, features=40, latents=3, escapees=0.25)
    less = {"steps": 200} if name == "linear_sem_nonlin" else {}
    fit = pyrocrl.fit(pyrocrl.build(name, data, escapees=True, **less), data, chains=1, seed=0, progress=False)
    found = pyrocrl.evaluate(fit, data)
    assert found["mcc"] > 0.9 > found["pca_mcc"]
    assert found["shd"] <= 1 < found["shd_empty"]
    escaped = fit.posterior(draws=10, predictive=False)["posterior"]["escaped"].mean(("chain", "draw")).to_numpy()
    knocked_out = data.env_labels() != data.control
    assert roc_auc_score(1 - data.truth["component"][knocked_out], escaped[knocked_out]) > 0.9
    assert escaped[knocked_out].mean() == pytest.approx(0.25, abs=0.08)


def test_escapes_behind_a_nonlinear_mixing_are_of_counts_alone() -> None:
    data = simulate.draw("buchholz2023", 0, samples=50, latents=3)
    with pytest.raises(InputError, match="escapees: found True; allowed: False, or likelihood='negative_binomial'"):
        pyrocrl.build("linear_sem_nonlin", data, escapees=True)
