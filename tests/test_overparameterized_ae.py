"""Rows stored as attractors: Jacobians, what cannot contract, recall; signatures with a planted shared shift."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import memories
from pyrocrl.exact.attractors import iterate, spectral_radius
from pyrocrl.infer.elbo import traces
from pyrocrl.judge.memory import alignment, attractors
from pyrocrl.lab.studies.memories import BELOW, alignment_scores

QUICK: dict[str, Any] = {"chains": 2, "progress": False, "device": "cpu", "seed": 3}
PLAIN = {"activation": "leaky_relu", "bias": False}
RNG = np.random.default_rng(0)


@cache
def stored(activation: str = "tanh", bias: bool = True, seed: int = 103) -> Fit:
    data = simulate.draw("stored_rows", seed, features=30)
    program = pyrocrl.build("overparameterized_ae", data, activation=activation, bias=bias, steps=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one row of ten is most of a feature's variance
        return pyrocrl.fit(program, data, **QUICK)


def planted(shared: float, contexts: int = 5, perturbations: int = 8, noise: float = 0.3, seed: int = 0) -> Data:
    """Profiles: a context's level, and the effect of a perturbation, `shared` of whose variance is that of all
    contexts; the rest is the context's own."""
    rng = np.random.default_rng(seed)
    level, common = rng.normal(size=(contexts, 1, 40)), rng.normal(size=(1, perturbations, 40))
    own = rng.normal(size=(contexts, perturbations, 40))
    effect = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
    x = level + np.concatenate([np.zeros((contexts, 1, 40)), effect], 1)
    x += noise * rng.normal(size=x.shape)
    names = ["control", *(f"drug_{k}" for k in range(perturbations))]
    env, batch = np.tile(names, contexts), np.repeat([f"cell_{c}" for c in range(contexts)], len(names))
    return Data(x.reshape(-1, 40), env, control="control", batch=batch)


@cache
def aligned(shared: float) -> Fit:
    data = planted(shared)
    return pyrocrl.fit(pyrocrl.build("overparameterized_ae", data, latents=64, steps=60), data, **QUICK)


# -- maps --------------------------------------------------------------------------------------------------------


def test_the_radius_is_that_of_finite_differences_and_of_the_closed_form() -> None:
    fit = stored()
    program = fit.programs()[1]
    x = fit.batch_of(simulate.draw("stored_rows", 5, features=30)).x[:3]  # rows that were not stored
    with torch.no_grad():
        got = spectral_radius(program.auto_encode, x)
        step, eye = 1e-5, torch.eye(30, dtype=x.dtype)
        for row, radius in zip(x, got, strict=True):
            moved = (program.auto_encode(row + step * eye) - program.auto_encode(row - step * eye)) / (2 * step)
            assert float(torch.linalg.eigvals(moved).abs().max()) == pytest.approx(float(radius), rel=1e-6)
        z = program.encoder(x)
        closed = (program.decoder.weight * memories.ACTIVATIONS["tanh"][1](z)[:, None]) @ program.encoder.weight
        torch.testing.assert_close(torch.linalg.eigvals(closed).abs().amax(1), got)


def test_slopes_are_those_of_the_activations() -> None:
    z = torch.linspace(-3, 3, 14, dtype=torch.float64)
    for s, slope in memories.ACTIVATIONS.values():
        torch.testing.assert_close(slope(z), torch.func.vmap(torch.func.grad(s))(z))


def test_iterates_end_where_a_known_map_has_its_fixed_points() -> None:
    f = lambda x: torch.tanh(3 * x)  # noqa: E731
    ends = iterate(f, torch.tensor([[0.2, -0.3], [-2.0, 1e-9]], dtype=torch.float64), 200)
    fixed = ends[0, 0]
    assert float(torch.tanh(3 * fixed)) == pytest.approx(float(fixed)) and fixed > 0.9
    torch.testing.assert_close(ends, torch.stack([fixed, -fixed, -fixed, fixed]).view(2, 2))
    assert iterate(f, torch.full((1, 2), 0.1), 0).tolist() == torch.full((1, 2), 0.1).tolist()


# -- the bound and its ends --------------------------------------------------------------------------------------


def test_the_start_maximises_the_bound_in_its_widths() -> None:
    """The evidence lower bound, by other draws, is lower where all widths are larger or smaller."""
    data = simulate.draw("stored_rows", 100, features=8, rows=6)
    program = pyrocrl.build("overparameterized_ae", data, latents=16, noise=0.05, steps=400).double()
    units = (data.x - data.x.mean(0)) / data.x.std(0)
    told = Data(units)
    with torch.no_grad():
        program.initialise(told, torch.Generator().manual_seed(1))
    batch = told.tensors(dtype=torch.float64).whole()

    def bound(scale: float) -> float:
        torch.manual_seed(0)
        total = 0.0
        with torch.no_grad():
            program.log_width.add_(math.log(scale))
            for _ in range(60):
                guide, model = traces(program, batch)
                total += float(model.log_prob_sum() - guide.log_prob_sum()) / 60
            program.log_width.sub_(math.log(scale))
        return total

    best = bound(1.0)
    assert best > bound(2.0) + 1 and best > bound(0.5) + 1


@pytest.mark.parametrize("bias", [True, False])
def test_interpolation_is_exact_and_the_least_change(bias: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, residual = (torch.randn(5, n, generator=rng, dtype=torch.float64) for n in (12, 3))
    matrix, constant = memories.interpolate(hidden, residual, bias)
    torch.testing.assert_close(hidden @ matrix.mT + constant, residual)
    design = torch.cat([hidden, torch.full((5, 1), float(bias), dtype=hidden.dtype)], 1)
    least = torch.linalg.pinv(design) @ residual
    torch.testing.assert_close(torch.cat([matrix, constant[:, None]], 1), least.mT)
    twice = hidden[[0, 0, 1]], torch.stack([residual[0], residual[0] + 2, residual[1]])  # which no map can part
    matrix, constant = memories.interpolate(*twice, bias)
    torch.testing.assert_close((hidden[:1] @ matrix.mT + constant)[0], residual[0] + 1)


# -- attractors --------------------------------------------------------------------------------------------------


def test_tanh_stores_rows_as_attractors_and_iterates_recall_them() -> None:
    fit = stored()
    found = attractors(fit, seed=1)
    assert float(found["error"].max()) < 1e-8
    assert float(found["radius"].max()) < 1
    assert bool(found["recalled"].sel(noise=0.1).all())
    assert found["recalled"].dims == ("chain", "noise", "data") and found["basin"].dims == ("chain", "data")
    assert (found["basin"].sum("data") <= 1).all() and float(found["basin"].sum()) > 0
    far = attractors(fit, noise=[30.0], starts=0, steps=50)["recalled"]
    assert float(far.mean()) < 0.5, "from afar other rows are nearer"
    few = attractors(fit, noise=[0.1], starts=0, steps=1)
    assert not few["recalled"].all() and not few["basin"].any()


def test_rows_that_were_not_stored_are_no_fixed_points() -> None:
    fit = stored()
    others = simulate.draw("stored_rows", 104, features=30)
    found = attractors(fit, others, noise=[0.1], starts=0)
    assert float(found["error"].min()) > 0.05 and not found["recalled"].any()


@pytest.mark.parametrize("seed", [103, 105])
def test_a_homogeneous_net_cannot_contract(seed: int) -> None:
    """f(a x) = a f(x), so that f'(x) x = x at a stored row: 1 is an eigenvalue, whatever was fitted."""
    fit = stored(**PLAIN, seed=seed)
    x = fit.batch_of(fit._data(None)).x
    for program in fit.programs():
        f = program.auto_encode
        with torch.no_grad():
            for a in (0.1, 3.0):
                torch.testing.assert_close(f(a * x), a * f(x))
            torch.testing.assert_close(f(x), x, rtol=1e-7, atol=1e-7)
            slope = torch.func.vmap(torch.func.jacrev(f))(x)
            torch.testing.assert_close((slope @ x[..., None])[..., 0], x, rtol=1e-6, atol=1e-6)
            values = torch.linalg.eigvals(slope)
        assert float((values - 1).abs().amin(1).max()) < 1e-6
    found = attractors(fit, noise=[0.1], starts=0)
    assert float(found["radius"].min()) > BELOW and not found["recalled"].any()


def test_a_fit_keeps_every_row_and_is_scored_on_them() -> None:
    fit = stored()
    assert fit.data is not None
    assert fit.fitted_rows().tolist() == list(range(10)) and fit.held_out.shape[1] == 10
    for value in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"held_out: found .*; allowed: a number from 0 to below 1"):
            pyrocrl.fit(fit.program, fit.data, **QUICK, held_out=value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        some = pyrocrl.fit(fit.program, fit.data, **QUICK, held_out=0.2, epochs=1)
    assert len(some.fitted_rows()) == 8 and some.held_out.shape[1] == 2


# -- contexts ----------------------------------------------------------------------------------------------------


def test_a_planted_shared_shift_is_found_in_every_space() -> None:
    found = alignment(aligned(0.8))
    scores = alignment_scores(found)
    assert found["space"].to_numpy().tolist() == ["x", "pca", "white", "chain 0", "chain 1"]
    assert found.sizes["pair"] == 5 * 4 * 8 and float(found["chance"].mean()) == pytest.approx(1 / 8)
    for name in ("retrieval", "raw_retrieval", "acute", "sign_kept"):
        assert scores[name] > 0.95, name
    assert scores["abs_cosine"] > 2 * scores["abs_cosine_different"]
    assert scores["retrieval_sd"] < 0.05
    first = found.isel(pair=0)
    assert str(first["context"].values) != str(first["other"].values)
    one = planted(0.8)
    sub = {(c, e): one.x[(one.batch == c) & (one.env == e)][0] for c in range(5) for e in range(9)}
    unit = one.x.std(0)  # a pair by hand
    c, o, e = (
        names.index(str(first[k].values))
        for k, names in zip(
            ("context", "other", "perturbation"), (one.batch_names, one.batch_names, one.env_names), strict=True
        )
    )
    a, b = ((sub[k, e] - sub[k, 0]) / unit for k in (c, o))
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(first["cosine"].sel(space="x")) == pytest.approx(cosine)


def test_where_nothing_is_shared_no_space_finds_anything() -> None:
    scores = alignment_scores(alignment(aligned(0.0)))
    for head in ("", "raw_", "pca_", "white_"):
        assert scores[f"{head}retrieval"] < 0.25, head
        assert abs(scores[f"{head}abs_cosine"] - scores[f"{head}abs_cosine_different"]) < 0.05, head


def test_without_a_control_profiles_are_their_own_signatures() -> None:
    fit, data = aligned(0.8), planted(0.8)
    rows = data.rows_at(~data.control_rows)
    bare = Data(rows.x, rows.env_labels(), batch=np.array(data.batch_names)[rows.batch])
    assert bare.control is None
    found = alignment(fit, bare)
    assert found.sizes["pair"] == 5 * 4 * 8
    assert float(found["found"].sel(space="x").mean()) < 1.0, "levels of contexts stand in the way"


# -- bad input ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_stored_or_compared_is_refused() -> None:
    data = simulate.draw("stored_rows", 0, features=30)
    with pytest.raises(InputError, match=r"^latents: found 30; allowed: more than the 30 features"):
        pyrocrl.build("overparameterized_ae", data, latents=30)
    many = simulate.draw("stored_rows", 0, rows=40, features=8)
    with pytest.raises(InputError, match=r"^latents: found 16; allowed: 40 or more"):
        pyrocrl.build("overparameterized_ae", many, latents=16)
    assert pyrocrl.build("overparameterized_ae", many).latents_count == 256
    with pytest.raises(InputError, match=r"^activation: found 'relu'"):
        pyrocrl.build("overparameterized_ae", data, activation="relu")
    gaps = np.array(data.x)
    gaps[2, 3] = np.nan
    with pytest.raises(InputError, match=r"^x: found 1 missing value"):
        Data(gaps)
    gaps[2, 3] = np.inf
    with pytest.raises(InputError, match=r"^x: found"):
        Data(gaps)


def test_read_outs_refuse_other_fits_and_single_contexts() -> None:
    data = Data(RNG.normal(size=(30, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = pyrocrl.fit(pyrocrl.build("vae", data, latents=1, hidden=4), data, epochs=1, **QUICK)
    with pytest.raises(InputError, match=r"^fit: found a fit of vae; allowed: a model with a map of rows"):
        attractors(other)
    with pytest.raises(TypeError, match="VAE is no auto-encoder"):
        other.program.auto_encode(torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"^batch: found one context; allowed: two or more"):
        alignment(stored())
    for noise in ([0.0], [-1.0], [np.nan]):
        with pytest.raises(InputError, match=r"^noise"):
            attractors(stored(), noise=noise)
    fit, known = aligned(0.8), planted(0.8)
    cells = np.array(known.batch_names)[known.batch]
    part = known.rows_at((cells != "cell_0") | ~known.control_rows)
    with pytest.raises(InputError, match=r"^control: found no row of 'control' in context 'cell_0'"):
        alignment(fit, part)
    once = known.rows_at(known.control_rows | (known.batch == 0))
    with pytest.raises(InputError, match=r"^data: found no perturbation in two contexts"):
        alignment(fit, once)
