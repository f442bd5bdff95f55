"""Chains begun at turned latents: they start there, are driven back where latents are told, and count in verdicts."""

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import zoo
from pyrocrl.data import Data
from pyrocrl.judge import diagnose as verdicts
from pyrocrl.judge.turned_latents import ASSUMPTION, Perturbed, compare
from pyrocrl.program import Program

MODELS = [name for name in zoo.names() if zoo.get(name).begin_turned is not Program.begin_turned]
CLIMBS = {"linear_sem_lin", "causal_flow"}  # go to a maximum at once


def fitted(name):
    program, data = zoo.get(name).example()
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


@pytest.fixture(scope="module")
def quick():
    return fitted("do_polynomial")


@pytest.mark.parametrize("name", [name for name in MODELS if name not in CLIMBS])
def test_begins_at_turned_latents(name):
    program, data = zoo.get(name).example()
    if name == "sparse_vae":  # of networks it cannot
        program = pyrocrl.build(name, data, latents=2, decoder="linear")
    program = program.fresh().eval()
    batch = data.tensors(dtype=torch.float32).whole()
    generator = torch.Generator().manual_seed(0)
    k = program.latents_count
    turn = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]
    with torch.no_grad():
        if name in ("score_crl", "do_polynomial"):  # read nothing before they know the data's frame
            program.initialise(data, generator)
        before = program.latents(batch).double()
        assert program.begin_turned(data, turn, generator)
        after = program.latents(batch).double()
    wanted = before @ turn
    agreed = [
        np.corrcoef(after[:, i], wanted[:, i])[0, 1] for i in range(k)
    ]  # up to what the law of z does to its mean
    assert min(agreed) > 0.99
    assert min(np.abs(np.corrcoef(after[:, i], before[:, i])[0, 1]) for i in range(k)) < 0.9


def test_models_that_can_are_those_said():
    assert set(MODELS) == {
        *("causal_flow", "discrepancy_vae", "do_polynomial", "gmm_vae", "ivae", "linear_sem_lin"),
        *("linear_sem_nonlin", "score_crl", "sparse_vae"),
    }
    program, data = zoo.get("vae").example()
    assert not program.begin_turned(data, torch.eye(2), torch.Generator())


def test_driven_back_where_latents_are_told():
    fit, data = fitted("linear_sem_lin")
    found = compare(fit, data, 2, 0)
    assert not found.as_good.any() and not found.better.any() and found.back.any()
    assert "stayed" not in str(found)


def test_latents_that_are_not_trained_are_said_to_have_stayed():
    _, data = zoo.get("ivae").example()
    program = pyrocrl.build("ivae", data, latents=2, width=16, steps=60)
    fit = pyrocrl.fit(program, data, chains=1, epochs=2, least_steps=20, seed=0, progress=False)
    found = compare(fit, data, 2, 0)
    assert found.stayed.all() and not found.back.any() and str(found).count("stayed there") == 2


def test_one_more_line_of_evidence(quick):
    fit, _ = quick
    first = pyrocrl.perturbed_chains(fit, chains=1)  # the reference chain itself, and one begun elsewhere
    assert first.chains.count == 2
    aligned = fit.group.align(first.anchor[0], fit.anchor[fit.reference])
    assert aligned.agreement.min() > 0.99
    verdict = pyrocrl.diagnose(fit)["latents"]
    (row,) = [one for one in verdict.evidence if one.assumption == ASSUMPTION]
    assert row.result == "holds" and "2 chains" in row.check and verdict.identified
    without = pyrocrl.diagnose(fit, perturbed=0)["latents"]
    assert ASSUMPTION not in {one.assumption for one in without.evidence}


def test_nothing_tells_factors_without_a_mask():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 2)) @ rng.standard_normal((2, 6)) + 0.5 * rng.standard_normal((600, 6))
    program = pyrocrl.build("sparse_vae", Data(x), latents=2, decoder="linear", sparse=False)
    fit = pyrocrl.fit(program, Data(x), chains=1, epochs=200, seed=0, progress=False)
    found = compare(fit, fit.data, 2, 0)
    assert found.as_good.any() and not found.better.any()
    lack = found.lack(fit.names["latent"])
    assert lack is not None and "turned among each other" in lack.reason and lack.which


def test_other_rows_are_not_perturbed(quick):
    fit, data = quick
    some = data.rows_at(np.arange(0, data.rows, 2))
    assert ASSUMPTION not in {one.assumption for one in pyrocrl.diagnose(fit, some)["latents"].evidence}
    with pytest.raises(pyrocrl.InputError, match="rows that were not fitted"):
        pyrocrl.perturbed_chains(fit, some)


def _said(monkeypatch, fit, worse, told, gained=0.0):
    each = np.array([worse]), 5.0, np.array([told]), 500, np.array([gained]), np.array([False])
    made = Perturbed(np.array([[1.0, 0.5, 0.6]]), *each)
    monkeypatch.setattr(verdicts, "compare", lambda *_: made)
    return pyrocrl.diagnose(fit)["latents"]


def test_counts_in_the_verdict(quick, monkeypatch):
    fit, _ = quick
    names = fit.names["latent"]
    same = _said(monkeypatch, fit, 1.0, 0.0)  # one law: no rows tell
    assert same.verdict == "not identified" and same.which == (names[1], names[2])
    few = _said(monkeypatch, fit, 1.0, 1e-3)
    assert few.verdict == "identified, undecided at this n" and few.rows >= 1000
    for gained, result in ((0.0, "holds"), (5.0, "open")):  # fits worse, and will, or may not
        worse = _said(monkeypatch, fit, 9.0, 1e-3, gained)
        row = next(one for one in worse.evidence if one.assumption == ASSUMPTION)
        assert worse.identified and row.result == result
    better = _said(monkeypatch, fit, -9.0, 1e-3)
    assert better.verdict == "not converged" and "9 nats better" in better.reason
