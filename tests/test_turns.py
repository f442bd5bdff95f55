"""Threads, forks and interrupts: everyone's numbers are those that they would get alone."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable

import numpy as np
import pyro
import pytest
import sklearn.model_selection  # noqa: F401  - python's generator moves, once, when this is imported
import torch
from joblib import Parallel, delayed
from pyro.poutine import runtime

import pyrocrl
from pyrocrl import Fit, simulate, turns

DATA = simulate.draw("moran2022", seed=3, rows=60)


def fitted(seed: int, **more: object) -> Fit:
    program = pyrocrl.build("vae", DATA, latents=2, hidden=4)
    return pyrocrl.fit(program, DATA, 2, 3, seed, progress=False, **more)


def numbers(seed: int) -> tuple[np.ndarray, ...]:
    """What a fit, draws, a verdict and a held-out objective say."""
    fit = fitted(seed)
    z = fit.posterior(2)["posterior"]["z"].to_numpy()
    khat = np.array(pyrocrl.diagnose(fit, DATA).chains["khat_median"])
    return fit.latents(), z, khat, fit.held_out_objective(DATA)


def assert_same(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def alone() -> list[tuple[np.ndarray, ...]]:
    return [numbers(seed) for seed in range(3)]


def test_threads_get_the_numbers_that_each_gets_alone(alone: list) -> None:
    together = Parallel(n_jobs=3, backend="threading")(delayed(numbers)(seed) for seed in range(3))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_one_fit_serves_threads_at_once() -> None:
    fit = fitted(0)
    wanted = fit.posterior(2)["posterior"]["z"].to_numpy()
    for tree in Parallel(n_jobs=3, backend="threading")(delayed(fit.posterior)(2) for _ in range(3)):
        np.testing.assert_array_equal(tree["posterior"]["z"], wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_gets_them_too_while_a_thread_of_its_parent_fits(alone: list) -> None:
    """With two threads of OpenMP's in the parent, which the child does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(300, 300) @ torch.rand(300, 300)
    begun = threading.Event()
    other = threading.Thread(target=fitted, args=(9,), kwargs={"on_epoch": lambda _: begun.set()})
    other.start()
    begun.wait(60)
    child = os.fork()
    if child == 0:
        try:
            assert_same(numbers(1), alone[1])
            os._exit(0)
        finally:
            os._exit(1)
    other.join()
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fit_travels_between_processes() -> None:
    fit = fitted(1)
    again = pickle.loads(pickle.dumps(fit))
    assert again.digest == fit.digest
    np.testing.assert_array_equal(again.posterior(2)["posterior"]["z"], fit.posterior(2)["posterior"]["z"])


def state() -> tuple[object, ...]:
    """All that a caller may have set: random states, and what Pyro keeps for the process."""
    numpy = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().tolist(),
        str(numpy[1].tolist()),
        numpy[2],
        random.getstate(),
        list(runtime._PYRO_STACK),
        list(runtime._DIM_ALLOCATOR._stack),
        len(pyro.get_param_store()),
        torch.distributions.Distribution._validate_args,
        torch.get_num_threads(),
    )


@pytest.fixture(scope="module")
def whole() -> Fit:
    return fitted(0)


CALLS: dict[str, Callable[[Fit], object]] = {
    "build": lambda fit: pyrocrl.build("vae", DATA, latents=2),
    "fit": lambda fit: fitted(5),
    "latents": lambda fit: fit.latents(DATA),
    "programs": lambda fit: fit.programs(),
    "posterior": lambda fit: fit.posterior(2),
    "prior": lambda fit: fit.prior(2),
    "held_out": lambda fit: fit.held_out_objective(DATA),
    "diagnose": lambda fit: pyrocrl.diagnose(fit),
    "evaluate": lambda fit: pyrocrl.evaluate(fit, DATA),
    "reference": lambda fit: pyrocrl.reference(fit, draws=4, warmup=1),
    "report": lambda fit: pyrocrl.report.render(fit, fit.posterior(2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_callers_state_is_left_alone(name: str, whole: Fit) -> None:
    torch.manual_seed(7)
    before = state()
    CALLS[name](whole)
    assert state() == before


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_also_when_it_fails(failure: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()

    def fail(*_: object) -> None:
        raise failure

    with pytest.raises(failure):
        fitted(0, on_epoch=fail)
    assert state() == before
    from pyrocrl.models.vae import VAE

    def left_open(self: VAE, batch: pyrocrl.Batch) -> None:
        self.rows(batch).__enter__()  # as an interrupt between a plate and its exit leaves it
        fail()

    monkeypatch.setattr(VAE, "story", left_open)
    with pytest.raises(failure):
        fitted(0)
    assert state() == before
    assert turns._lock.acquire(blocking=False), "a turn that failed is over"
    turns._lock.release()
