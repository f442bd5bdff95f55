"""Chains that fall hopelessly behind are stopped, cost no more steps, and count neither as agreement nor against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Data, ModelCard, Program, Recipe
from pyrocrl.dists import Normal
from pyrocrl.infer.behind import AT_LEAST, EARLIEST, behind
from pyrocrl.infer.chains import Chains
from pyrocrl.show import plots

ROWS = np.random.default_rng(3).standard_normal(60)


def looks(*chains: Any, count: int = 60, noise: float = 0.02) -> np.ndarray:
    """(look, 1 + chain): epochs 1, 2, ... and each chain's objective at these shares of the fit."""
    rng = np.random.default_rng(7)
    at = np.arange(1, count + 1) / 100
    scores = [chain(at) + noise * rng.standard_normal(count) for chain in chains]
    return np.stack([100 * at, *scores], 1)


def rows_of(history: np.ndarray, apart: float = 0.1) -> np.ndarray:
    """(chain, row) with these means, whose differences vary over rows."""
    count = history.shape[1] - 1
    rows = np.stack([ROWS + apart * np.roll(ROWS, c) for c in range(count)])
    return rows - rows.mean(1, keepdims=True) + history[-1, 1:, None]


def flat(at: np.ndarray) -> np.ndarray:
    return np.zeros_like(at)


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        (lambda at: flat(at) - 1.0, True),
        (lambda at: flat(at) - 0.05, False),  # within its noise
        (lambda at: 1.5 * at - 1.5, False),  # gains as much as it lacks
        (lambda at: 0.2 * at - 1.5, True),
        (lambda at: np.where(np.abs(at - 0.5) < 0.02, 0.0, -1.0), False),  # was with the best one once of late
        (lambda at: np.where(at < 0.1, 0.0, -1.0), True),
        (lambda at: np.where(at < 0.6, np.nan, -1.0), False),  # a chain of which little is known
    ],
)
def test_a_chain_is_hopeless_by_its_own_progress_and_noise(chain: Any, found: bool) -> None:
    history = looks(flat, flat, flat, chain)
    assert set(behind(history, rows_of(history), 0.6)) == ({3} if found else set())


def test_what_is_early_few_or_noisy_stops_nothing() -> None:
    low = lambda at: flat(at) - 1.0  # noqa: E731
    history = looks(flat, low, low, low)
    assert len(behind(history, rows_of(history), 0.6)) == 4 - AT_LEAST
    assert not behind(history, rows_of(history), EARLIEST - 0.01)
    assert not behind(history, rows_of(history), 1.0)
    assert not behind(history[-12:], rows_of(history), 0.6)
    assert not behind(history, rows_of(history, apart=3.0), 0.6)
    wild = looks(flat, low, low, low, noise=0.4)
    assert not behind(wild, rows_of(wild), 0.6)


class Stuck(Program):
    """x_i ~ N(z_i w, 1), z_i ~ N(0, 1), in which every second chain starts where w stays at 0."""

    card = ModelCard(name="stuck", title="Stuck", family="test", summary="One latent, one direction.")
    recipe = Recipe.unannealed(epochs=60, batch_size=700, lr=0.05, patience=None, chains=6, check_every=1)
    own_units = True
    started = 0

    def __init__(self, features: int, latents: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.slope = nn.Parameter(torch.zeros(features))
        self.register_buffer("on", torch.ones(()))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        Stuck.started += 1
        self.on.fill_(Stuck.started % 2)
        self.weight.mul_(1 + 0.1 * torch.randn(self.weight.shape, generator=generator))

    def story(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", Normal(torch.zeros(1), torch.ones(1)).to_event(1))
            pyro.sample("x", Normal(self.on * z * self.weight, torch.ones_like(self.weight)).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            loc = (batch.x @ self.slope)[:, None]
            pyro.sample("z", Normal(loc, 0.5 + torch.zeros_like(loc)).to_event(1))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return (batch.x @ self.slope)[:, None]


def data_of(rows: int = 1500) -> Data:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((rows, 1)) * [[2.0, -1.0, 1.5]] + rng.standard_normal((rows, 3))
    return Data(x, counts=False)


def fitted(**options: Any) -> pyrocrl.Fit:
    Stuck.started = 0
    return pyrocrl.fit(Stuck(3), data_of(), seed=1, progress=False, device="cpu", **options)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps are worth a stop: what a new recording costs is no matter here."""
    monkeypatch.setattr("pyrocrl.infer.loop.STOP_STEPS", 0.0)


def test_chains_that_fell_behind_cost_nothing_and_are_told(
    soon: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = fitted()
    assert whole.kept == [0, 1, 2, 3, 4, 5] and whole.meta["stopped"] == []
    gap = whole.scores.max() - whole.scores
    assert (gap[1::2] > 2.0).all() and (gap[::2] < 0.3).all()
    counts = []
    mapped = Chains.map
    monkeypatch.setattr(Chains, "map", lambda self, *a, **k: counts.append(self.count) or mapped(self, *a, **k))
    found = fitted(stop_behind=True)
    assert found.kept == [0, 2, 4] and set(counts) == {6, 3}
    assert np.mean(np.array(counts) == 3) > 0.5  # more than half of the fit is of three chains
    stopped = found.meta["stopped"]
    assert [one["chain"] for one in stopped] == [1, 3, 5] and found.meta["recipe"]["stop_behind"] is True
    assert all(one["behind"] > one["hope"] > 0 and 18 <= one["epoch"] < 40 for one in stopped)
    np.testing.assert_allclose(found.scores, whole.scores[::2], atol=0.3)
    after = int(stopped[0]["epoch"])
    assert np.isfinite(found.history[:after]).all() and np.isnan(found.history[after:, [2, 4, 6]]).all()
    assert np.isfinite(found.history[:, [1, 3, 5]]).all()

    verdict = pyrocrl.diagnose(found, data_of())
    assert verdict.chains["stopped"] == [1, 3, 5] and len(verdict.chains["weights"]) == 3
    assert "3 more stopped early, far behind, and not compared" in str(verdict)
    words = [text.get_text() for text in plots.objective(found.history, 0, [1, 3, 5]).legends[0].get_texts()]
    assert "stopped, far behind" in words and "retired" not in words

    found.save(tmp_path / "fit.safetensors")
    again = pyrocrl.load(tmp_path / "fit.safetensors", data_of(), Stuck)
    assert again.kept == [0, 2, 4] and again.meta["stopped"] == stopped
    more = pyrocrl.fit(Stuck(3), data_of(), epochs=3, seed=1, start=again, progress=False, device="cpu")
    assert more.chains.count == 3 and np.isfinite(more.history).all()  # goes on with those that ended


def test_a_fit_that_is_interrupted_after_a_stop_ends_as_one_that_is_not(soon: None, tmp_path: Path) -> None:
    whole = fitted(stop_behind=True)

    def interrupt(epoch: int) -> None:
        if epoch == 45:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"stop_behind": True, "out": tmp_path, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        fitted(on_epoch=interrupt, **options)
    resumed = fitted(resume=True, **options)
    assert resumed.kept == whole.kept and resumed.meta["stopped"] == whole.meta["stopped"]
    np.testing.assert_array_equal(whole.history, resumed.history)
    np.testing.assert_array_equal(whole.latents(data_of()), resumed.latents(data_of()))
    with pytest.raises(KeyboardInterrupt):
        fitted(on_epoch=interrupt, stop_behind=True, out=tmp_path / "other")
    with pytest.raises(pyrocrl.InputError, match="stop_behind"):
        fitted(resume=True, out=tmp_path / "other")


def test_few_steps_that_would_be_saved_stop_nothing() -> None:
    assert fitted(stop_behind=True).meta["stopped"] == []
