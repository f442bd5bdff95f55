"""Credible sets of graphs, settings of finite samples and of bent mixings, and what their studies score."""

from __future__ import annotations

import numpy as np
import pytest

import pyrocrl
from pyrocrl import InputError, metrics, simulate
from pyrocrl.judge.credible import smallest_set
from pyrocrl.lab.studies.latent_graphs import Bend, FiniteSamples

A, B, C = (np.eye(2, k=k, dtype=bool) for k in (1, -1, 5))


def test_the_smallest_set_holds_its_share_by_the_weights_of_chains() -> None:
    drawn = np.stack([np.stack([A, A, A, B]), np.stack([B, B, C, C])])
    found, share = smallest_set(drawn, np.array([0.8, 0.2]), 0.8)
    assert share == pytest.approx([0.6, 0.3])
    assert (found[0] == A).all() and (found[1] == B).all()
    assert len(smallest_set(drawn, np.array([0.8, 0.2]), 0.6)[0]) == 1
    assert len(smallest_set(drawn, np.array([0.8, 0.2]), 0.95)[0]) == 3
    assert len(smallest_set(drawn, np.array([1.0, 0.0]), 1.0)[0]) == 2  # what weighs nothing is in no set


@pytest.mark.parametrize(("latents", "factor"), [(3, 0.25)])
def test_acarturk2024_scales_variances_of_what_it_hits(latents: int, factor: float) -> None:
    data = simulate.draw("acarturk2024", 1, samples=20_000, latents=latents)
    z, weight, env = data.truth["z"], data.truth["weight"], data.env_labels()
    free = (z - z @ weight)[env == "observational"].var(0)
    for k in range(latents):
        assert z[env == f"target_{k}"][:, k].var() == pytest.approx(factor * free[k], rel=0.05)
    assert np.linalg.matrix_rank(data.x, tol=1e-8 * np.linalg.norm(data.x, 2)) == latents
    loadings = np.linalg.lstsq(z, data.x, rcond=None)[0]
    size = np.linalg.svd(loadings, compute_uv=False)
    assert data.x.shape[1] == 15 and size[-1] >= 0.1 * size[0]


def test_a_bend_is_as_large_as_it_is_told_and_not_linear() -> None:
    straight, bent = (simulate.draw("buchholz2024", 2, samples=500, bend=b, noise=0.0) for b in (0.0, 0.5))
    added = bent.x - straight.x
    assert added.var(0).sum() == pytest.approx(0.25 * straight.x.var(0).sum())
    z = straight.truth["z"]
    assert np.abs(np.linalg.lstsq(z - z.mean(0), added, rcond=None)[0]).max() < 1e-8
    assert metrics.linear_r2(straight.x, z) > 0.999 > metrics.linear_r2(bent.x, z)
    with pytest.raises(InputError, match="bend: found -1"):
        simulate.draw("buchholz2024", 2, bend=-1.0)


def test_a_study_of_finite_samples_beside_the_published_estimator() -> None:
    study = FiniteSamples("acarturk2024", {"samples": 400, "latents": 2}, reference=(0.25, 1.55, 0.085))
    train, test = study.draw(100)
    fit = pyrocrl.fit(
        pyrocrl.build("linear_sem_lin", train), train, chains=2, progress=False, device="cpu", seed=0, epochs=1
    )
    scores = study.score(fit, test)
    assert scores["closure_exact"] == 1.0 and scores["credible_holds"] == 1.0 and scores["credible_size"] >= 1
    assert 0 < scores["encoder_error"] <= scores["encoder_mixes"] < 0.3
    assert scores["reference_closure_errors"] == 1.55
    likely = pyrocrl.credible_graphs(fit, level=0.5, draws=100)
    assert likely["graph"].dims == ("rank", "parent", "child")
    chance = likely["probability"].to_numpy()
    assert (np.diff(chance) <= 0).all() and chance.sum() >= 0.5 > chance[:-1].sum()
    truth = train.truth["graph"]
    assert any((graph == truth).all() for graph in likely["graph"].to_numpy())


def test_a_study_of_a_bend_tells_what_the_verdict_says() -> None:
    study = Bend("buchholz2024", {"bend": 1.0, "samples": 200, "latents": 2, "features": 5})
    train, test = study.draw(100)
    fit = pyrocrl.fit(
        pyrocrl.build("linear_sem_lin", train), train, chains=2, progress=False, device="cpu", seed=0, epochs=1
    )
    scores = study.score(fit, test)
    assert scores["contradicted"] == 1.0 and not scores["identified"] and scores["mcc"] < 0.9


def test_a_model_without_a_graph_has_no_credible_graphs() -> None:
    data = simulate.draw("moran2022", 0, rows=60)
    fit = pyrocrl.fit(
        pyrocrl.build("vae", data, latents=2), data, chains=2, epochs=1, progress=False, device="cpu", seed=0
    )
    with pytest.raises(InputError, match="fit: found one of vae; allowed: a model of a graph"):
        pyrocrl.credible_graphs(fit)
