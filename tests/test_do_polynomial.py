"""do_polynomial: the construction's algebra, recovery with unknown targets, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, InputError, simulate
from pyrocrl.constructions.polynomials import axis_roots, constants, evidence, powers_inside
from pyrocrl.judge.metrics import linear_r2, mcc
from pyrocrl.models.do_polynomial import DoPolynomial
from pyrocrl.simulate.ahuja import LAWS, monomials


def small(seed: int = 3, **options: object) -> Data:
    return simulate.draw("ahuja2023", seed, **({"samples": 600, "latents": 3, "features": 30} | options))


def constructed(data: Data, **options: object) -> DoPolynomial:
    program = DoPolynomial.from_data(data, **options)
    assert isinstance(program, DoPolynomial)
    with torch.no_grad():
        program.construct(data, torch.Generator().manual_seed(5))
    return program


@pytest.mark.parametrize("law", LAWS)
def test_simulated_targets_are_held_and_x_spans_the_monomials(law: str) -> None:
    data = small(law=law)
    for name, (k,) in data.targets.items():
        np.testing.assert_array_equal(data.truth["z"][data.env_labels() == name, k], 2.0)
    centred = data.x - data.x.mean(0)
    assert np.linalg.matrix_rank(centred, tol=1e-8 * np.abs(centred).max()) == monomials(data.truth["z"], 2).shape[1]
    assert linear_r2(data.x, data.truth["z"]) > 0.9999


@pytest.mark.parametrize(("degree", "law"), [(1, "uniform"), (2, "linear_sem"), (3, "uniform"), (3, "correlated")])
def test_construction_is_exact_without_noise(degree: int, law: str) -> None:
    data = small(degree=degree, law=law)
    program = constructed(data, degree=degree, targets="unknown")
    z = program.latents(data.tensors()).numpy()
    score, order = mcc(data.truth["z"], z, return_assignment=True)
    assert score > 0.9999
    found = program.targets_matrix().numpy()[:, order]
    np.testing.assert_allclose(found, data.target_matrix(3), atol=1e-3)


def test_two_environments_may_hold_one_latent() -> None:
    data = small(environments=5, samples=1000)
    program = constructed(data, targets="unknown")
    score, order = mcc(data.truth["z"], program.latents(data.tensors()).numpy(), return_assignment=True)
    assert score > 0.9999
    np.testing.assert_allclose(program.targets_matrix().numpy()[:, order], data.target_matrix(3), atol=1e-3)


def test_without_interventions_latents_stay_mixed_and_no_target_is_named() -> None:
    """The control: the same construction with one latent never held leaves the others right and says what it lacks."""
    data = small(environments=2, samples=1000)
    program = constructed(data, targets="unknown")
    held = [k for (k,) in data.targets.values()]
    r = np.abs(np.corrcoef(data.truth["z"].T, program.latents(data.tensors()).numpy().T)[:3, 3:])
    assert (r[held].max(1) > 0.999).all()
    assert program.targets_matrix()[0].sum() < 1e-3
    assert float(program.targets_matrix()[1:].sum()) == pytest.approx(2.0, abs=1e-3)


def test_known_targets_name_the_latents() -> None:
    data = small()
    program = constructed(data)
    z = program.latents(data.tensors()).numpy()
    assert program.latents_up_to == ("scale", "shift")
    for k in range(3):
        assert abs(np.corrcoef(z[:, k], data.truth["z"][:, k])[0, 1]) > 0.9999


def test_powers_inside_leaves_an_affine_function_where_it_is() -> None:
    z = np.random.default_rng(0).standard_normal((400, 2))
    full = torch.as_tensor(np.c_[np.ones(400), monomials(z, 2)])
    null = torch.as_tensor(np.c_[z[:, 0], z[:, 0] * z[:, 0], z[:, 0] * z[:, 1]])
    found, outside = powers_inside(null, torch.tensor([1.0, 0.2, -0.2], dtype=torch.float64), full, 2)
    assert outside < 1e-12
    np.testing.assert_allclose(found.abs().numpy(), [1.0, 0.0, 0.0], atol=1e-5)
    _, curved = powers_inside(null[:, 1:], torch.tensor([1.0, 0.0], dtype=torch.float64), full, 2)
    assert curved > 0.01, "no affine function there"


def test_evidence_names_the_constant_latent_or_none() -> None:
    floor = torch.diag(torch.full((3,), 4e-4, dtype=torch.float64))
    held = torch.diag(torch.tensor([1.0, 1e-6, 0.5], dtype=torch.float64))
    assert evidence(held, floor, 500).argmax() == 1
    assert evidence(torch.eye(3, dtype=torch.float64), floor, 500).argmax() == 3
    assert evidence(held + floor, floor, 500).argmax() == 1  # that varies as the story lets it


def test_constants_joins_environments_of_one_direction() -> None:
    rng = np.random.default_rng(1)
    parts = [torch.as_tensor(rng.standard_normal((200, 3))) for _ in range(4)]
    for e, k in ((1, 2), (2, 0), (3, 2)):
        parts[e][:, k] = 0.3 * e
    hit = constants(parts)
    assert hit[0].sum() == 0
    assert torch.equal(hit[1], hit[3])
    assert not torch.equal(hit[1], hit[2])


def test_axes_are_told_by_rows_in_which_a_latent_is_held() -> None:
    """z_0, held with deviation .02, is read with .001 of z_1: as far off as its rows leave open."""
    rng = np.random.default_rng(0)
    env = torch.as_tensor(np.repeat([0, 1], 400))
    z = torch.as_tensor(rng.standard_normal((800, 2)))
    z[:400, 0] = 2.0 + 0.02 * torch.as_tensor(rng.standard_normal(400))
    hit = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    root = axis_roots(z, env, hit)
    sd = root.square().sum(-1).sqrt()
    assert sd[0, 1].item() == pytest.approx(0.02 / 20 / float(z[:400, 1].std()), rel=0.1)
    assert sd[1, 0] == 1.0 and (sd.diagonal() == 0).all(), "nothing holds z_1: its prior"


def test_draws_have_the_error_of_the_axes_in_all_rows_alike_and_predictions_do_not() -> None:
    data = small(100, samples=200)
    fit = pyrocrl.fit(DoPolynomial.from_data(data), data, chains=1, epochs=2, seed=0, progress=False)
    mean, told = fit.latents(data), []
    for error in (0.0, 0.1):
        root = fit.chains.buffers["axis_root"]
        root.zero_()
        root[:, 0, 1, 1] = error  # of z_1 in z_0
        tree = fit.posterior(80, data, density=False)
        apart = tree["posterior"]["z"].to_numpy()[0] - mean
        design = np.c_[np.ones(len(mean)), mean]
        slope = np.stack([np.linalg.lstsq(design, one, rcond=None)[0][1:] for one in apart])  # (draw, of, latent)
        assert slope[:, 1, 0].std() == pytest.approx(error, rel=0.3, abs=0.01)
        slope[:, 1, 0] = 0.0
        assert slope.std(0).max() < 0.01
        told.append(float(tree["log_likelihood"]["x"].mean()))
    assert told[1] == pytest.approx(told[0], abs=0.5)


def test_fit_recovers_latents_targets_and_constants() -> None:
    data = small(seed=101, noise=0.01, samples=900)
    train, test = data.split(0.5, 0)
    fit = pyrocrl.fit(DoPolynomial.from_data(train, targets="unknown"), train, chains=2, seed=0, progress=False)
    scores = pyrocrl.evaluate(fit, test)
    assert scores["mcc"] > 0.999
    assert scores["pca_mcc"] < 0.95
    assert scores["targets_right"] == 1.0
    assert all(claim.identified for claim in pyrocrl.diagnose(fit, train).claims)
    draws = fit.posterior(10, test, predictive=False)["posterior"]
    assert draws["constant"].dims == ("chain", "draw", "env", "latent")
    z, env = fit.latents(test), test.env
    for e in range(1, len(test.env_names)):
        k = int(draws["targets"].to_numpy()[0, 0, e].argmax())
        assert abs(float(draws["constant"][:, :, e, k].mean()) - z[env == e, k].mean()) < 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": 8}, "features: found 8"),
        ({"degree": 0}, "degree"),
        ({"targets": "guessed"}, "targets"),
        ({"target_matrix": None}, "target_matrix"),
        ({"target_matrix": [[0, 0, 0], [1, 0, 0], [0, 1, 0]]}, "target_matrix: found shape"),
        ({"target_matrix": [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0]]}, "target_matrix: found rows of different"),
        ({"target_matrix": [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2]]}, "target_matrix: found 2"),
        ({"target_matrix": [[0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]}, "2 targets in environment 1"),
        ({"target_matrix": [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]}, "no environment that intervenes on latent 2"),
    ],
)
def test_bad_input(change: dict, words: str) -> None:
    config = {
        "features": 30,
        "latents": 3,
        "environments": 4,
        "target_matrix": [[0] * 3, *np.eye(3, dtype=int).tolist()],
    }
    with pytest.raises(InputError, match=words):
        DoPolynomial(**(config | change))


def test_environments_with_few_rows_are_refused() -> None:
    data = small(samples=30)
    with pytest.raises(InputError, match="to fit in environment 'do_0'"):
        constructed(data)


@pytest.mark.parametrize(
    "option", [{"law": "cauchy"}, {"degree": 0}, {"samples": 1}, {"noise": -1.0}, {"environments": 0}]
)
def test_setting_refuses(option: dict) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        simulate.draw("ahuja2023", 0, **option)
