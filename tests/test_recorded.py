"""Recordings give what the function gives, to the last bit, or are not used."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrocrl
from pyrocrl import recorded, zoo
from pyrocrl.compiled import NotCompiled
from pyrocrl.recorded import Recorded


class Counted:
    """A function that counts how often it runs."""

    def __init__(self, function: Any) -> None:
        self.function, self.runs = function, 0

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.runs += 1
        return self.function(*tensors)


def noisy(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    w = w.detach().requires_grad_()
    value = torch.func.vmap(lambda v: (x @ v + torch.randn(len(x))).square().sum(), randomness="different")(w)
    return value.detach(), *torch.autograd.grad(value.sum(), w)


def inputs(seed: int, rows: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator), torch.randn(4, 3, generator=generator)


def test_a_recording_draws_and_differentiates_as_its_function_does() -> None:
    function = Counted(noisy)
    replayed = Recorded(function, 1000)
    torch.manual_seed(0)
    found = [replayed(*inputs(seed)) for seed in range(8)]
    state = torch.get_rng_state()
    assert replayed.replay is not None and replayed.settled
    assert function.runs == 4  # once as it is, once while it is recorded, then beside it; the last calls run no Python
    torch.manual_seed(0)
    for seed, (value, slope) in enumerate(found):
        own = noisy(*inputs(seed))
        assert torch.equal(value, own[0]) and torch.equal(slope, own[1])
    assert torch.equal(state, torch.get_rng_state())


def test_few_calls_are_not_worth_a_recording() -> None:
    replayed = Recorded(noisy, recorded.WORTH - 1)
    for seed in range(5):
        replayed(*inputs(seed))
    assert replayed.replay is None and replayed.settled


def counting() -> Any:
    calls = []

    def function(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        calls.append(None)
        return (x.sum() * len(calls),)

    return function


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: (x.sum() if float(x.sum()) > 0 else w.sum(),),
        lambda x, w: (x.sum() if x.sum() > 0 else w.sum(),),
        lambda x, w: (x[x > 0].sum(),),
        lambda x, w: (torch.nonzero(x > 0).double().sum(),),
        lambda x, w: (x * x.detach().numpy().sum(),),
        lambda x, w: (x * sum(w[0].tolist()),),
        counting(),
    ],
    ids=["a value", "a branch", "a mask", "positions", "numpy", "a list", "a state of its own"],
)
def test_what_depends_on_values_is_not_replayed(function: Any) -> None:
    replayed = Recorded(function, 1000)
    torch.manual_seed(0)
    found = [replayed(*inputs(seed)) for seed in range(6)]
    assert replayed.replay is None
    if function.__name__ == "<lambda>":
        for seed, one in enumerate(found):
            torch.testing.assert_close(one, function(*inputs(seed)), rtol=0, atol=0)


def test_other_shapes_and_failures_are_the_function_s_own() -> None:
    def inverted(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        try:
            return (torch.linalg.inv(x.mT @ x) * torch.randn(()),)
        except torch.linalg.LinAlgError:
            return (torch.full((3, 3), 7.0) * torch.randn(()),)

    replayed = Recorded(inverted, 1000)
    for seed in range(5):
        replayed(*inputs(seed))
    assert replayed.replay is not None
    short = inputs(9, rows=5)
    torch.manual_seed(1)
    (found,) = replayed(*short)
    torch.manual_seed(1)
    assert torch.equal(found, inverted(*short)[0])
    torch.manual_seed(1)
    (found,) = replayed(torch.zeros(7, 3), short[1])  # singular: the replay ends in an error
    assert (found == found[0, 0]).all() and replayed.replay is None
    after = torch.randn(())
    torch.manual_seed(1)
    inverted(torch.zeros(7, 3), short[1])
    assert torch.equal(after, torch.randn(()))


@pytest.mark.parametrize("name", ["vae", "linear_sem_lin", "weakly_supervised_pairs"])
def test_a_fit_by_recorded_steps_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = zoo.get(name).example(0)
    used = []
    record = recorded._record
    monkeypatch.setattr(recorded, "_record", lambda *a: used.append(record(*a)) or used[-1])
    fits = []
    for worth in (0, 10**9):
        monkeypatch.setattr(recorded, "WORTH", worth)
        fits.append(pyrocrl.fit(program, data, chains=2, epochs=8, seed=3, progress=False))
    assert len(used) == 1 and used[0] is not None
    for key, value in fits[0].chains.params.items():
        assert torch.equal(value, fits[1].chains.params[key]), key
    np.testing.assert_array_equal(fits[0].history, fits[1].history)


def growing(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    w = w.detach().requires_grad_()
    value = torch.func.vmap(lambda v: torch.lgamma((x @ v).exp() + torch.rand(len(x))).sum(), randomness="different")(w)
    return value.detach(), *torch.autograd.grad(value.sum(), w)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")
def test_a_recording_is_compiled_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    graphs = []
    compile_ = recorded.compiled
    monkeypatch.setattr(recorded, "compiled", lambda graph, *a: graphs.append(graph) or compile_(graph, *a))
    monkeypatch.setattr(recorded, "_ratio", lambda *a: 0.5)
    fast, own = Counted(growing), Counted(growing)
    compiled, plain = Recorded(fast, 1000, said.append), Recorded(own, 1000)
    states = []
    for one in (compiled, plain):
        torch.manual_seed(0)
        found = [one(*inputs(seed)) for seed in range(7)]
        states.append((found, torch.get_rng_state()))
    assert not said and compiled.compiled and compiled.settled and not plain.compiled
    assert fast.runs == own.runs  # what is compiled is the recording, not the function once more
    assert torch.equal(states[0][1], states[1][1])
    for mine, theirs in zip(states[0][0], states[1][0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert "pyrocrl.lgamma" in graphs[0].code and "aten.lgamma" not in graphs[0].code  # torch's own, many times faster


@pytest.mark.parametrize("fault", ["none", "no compiler", "wrong", "slow"])
def test_a_fit_says_in_a_line_why_it_is_not_compiled(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_(graph: Any, tensors: Any) -> Any:
        if fault == "no compiler":
            raise NotCompiled("InvalidCxxCompiler: no working C++ compiler")
        return (lambda *t: tuple(1.1 * v for v in graph(*t))) if fault == "wrong" else graph

    monkeypatch.setattr(recorded, "compiled", compile_)
    monkeypatch.setattr(recorded, "_ratio", lambda *a: 1.64 if fault == "slow" else 0.5)
    monkeypatch.setattr(recorded, "WORTH", 0)
    program, data = zoo.get("vae").example(0)
    with caplog.at_level(logging.WARNING, logger="pyrocrl"):
        found = [
            pyrocrl.fit(program, data, chains=2, epochs=8, seed=3, progress=False, compile=c) for c in (False, True)
        ]
    said = [record.getMessage() for record in caplog.records]
    why = {"no compiler": "InvalidCxxCompiler: no working C++ compiler", "wrong": "results are not the same"}
    why["slow"] = "compiled ones take 1.64 of the time"
    assert found[1].meta["compiled"] == (fault == "none") and not found[0].meta["compiled"]
    assert len(said) == (fault != "none") and all("\n" not in line and why[fault] in line for line in said)
    for key, value in found[0].chains.params.items():
        assert torch.equal(value, found[1].chains.params[key]), key
