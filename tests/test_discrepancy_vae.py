"""The bound by which chains of `discrepancy_vae` are compared."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pytest
import torch

import pyrocrl
from pyrocrl.infer.held_out import row_objectives
from pyrocrl.infer.weights import TIE
from pyrocrl.models.discrepancy_vae import DiscrepancyVAE
from pyrocrl.parts.latent_sem import LatentSEM
from pyrocrl.simulate import draw


@pytest.fixture(scope="module")
def fitted() -> tuple[pyrocrl.Fit, pyrocrl.Data]:
    data = draw("zhang2023", seed=100, samples=300, latents=3, mixing="linear", features=6, intervention="perfect")
    program = pyrocrl.build("discrepancy_vae", data, latents=3, intervention="perfect", hidden=8)
    return pyrocrl.fit(program, data, chains=2, epochs=20, least_steps=100, seed=0, progress=False), data


def test_evidence_is_the_bound_of_the_rows_that_were_fitted(fitted: tuple[pyrocrl.Fit, pyrocrl.Data]) -> None:
    fit, data = fitted
    rows = data.rows_at(fit.fitted_rows(data))
    own = row_objectives(fit.chains, fit.batch_of(rows).annealed(), 0).sum(1).numpy()
    assert fit.log_evidence == pytest.approx(own, abs=0.1 * rows.rows)  # nats, by four draws a row each
    assert (fit.evidence_error >= fit.program.evidence_spread()).all() and fit.program.evidence_spread() > 0


def test_a_turned_chain_has_less_than_its_error_explains(fitted: tuple[pyrocrl.Fit, pyrocrl.Data]) -> None:
    fit, data = fitted
    rows = data.rows_at(fit.fitted_rows(data)).in_units(fit.units)
    told, turned = (copy.deepcopy(fit.programs()[fit.reference]) for _ in range(2))
    turn = torch.eye(3)
    turn[0, 1] = 0.7
    turned.encoder.turn(turn)
    turned.decoder.of_turned(turn)
    for one in (told, turned):
        one.finish(rows, torch.Generator().manual_seed(0))
    lost = told.log_evidence() - turned.log_evidence()
    error = float((len(lost) * lost.var() + told.evidence_spread() ** 2).sqrt())
    assert float(lost.sum()) > 2 * TIE * error


@pytest.mark.parametrize("other", [{"decoder": "mlp"}, {"objective": "mmd"}, {"likelihood": "negative_binomial"}])
def test_others_are_compared_by_rows_kept_out(other: dict) -> None:
    assert DiscrepancyVAE(4, 2, 3, [[0, 0], [1, 0], [0, 1]], **other).log_evidence() is None


def test_the_error_of_the_map_goes_into_equations_and_not_into_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the decoder makes of latents, and `do`, follow the equations of the latents that it takes."""
    data = draw("zhang2023", seed=100, samples=60, latents=3, mixing="linear", features=6, intervention="perfect")
    program = pyrocrl.build("discrepancy_vae", data, latents=3, intervention="perfect", hidden=8)
    fit = pyrocrl.fit(program, data, chains=1, epochs=20, least_steps=300, seed=0, progress=False)
    sem, drawn = fit.programs()[0].sem, {}
    for erring in (False, True):
        sem.erring = erring
        pyro.set_rng_seed(0)
        drawn[erring] = torch.stack([sem.recover().weight for _ in range(100)]).std(0)
    there = sem.graph() > 0.9
    assert there.any() and (drawn[True] > 1.2 * drawn[False])[there].all()

    asked, recover = [], LatentSEM.recover
    monkeypatch.setattr(LatentSEM, "recover", lambda sem: (asked.append(sem.erring), recover(sem))[1])
    new = fit.posterior(draws=20)["posterior_predictive"]["x"].to_numpy()[0]  # (draw, row, feature)
    assert asked[-40:] == 20 * [True, False]  # before these a try to make all draws at once
    asked.clear()
    fit.do(data, {fit.names["latent"][0]: 1.0}, draws=3)
    assert asked and not any(asked)
    parts = [new[:, data.env == e].var((0, 1)).sum() / data.x[data.env == e].var(0).sum() for e in range(4)]
    assert np.mean(parts) < 1.3
