"""`fit.do`: latents set by hand, environments put together, and both at once, on a program whose answer is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Data, Fit, ModelCard, Program, Recipe, Site
from pyrocrl.dists import NegativeBinomial, Normal

SHIFT = {"ctrl": (0.0, 0.0, 0.0), "a": (4.0, 0.0, 0.0), "b": (0.0, -3.0, 0.0), "c": (0.0, 0.0, 2.0)}


class Chain(Program):
    """z_0 -> z_1 -> z_2 with weights 1 and -1, a shift of its own for each environment, x = (z, z_0)."""

    card = ModelCard("chain", "Chain", "test", "A chain of three.", needs_env=True, targets=("known",))
    recipe = Recipe(epochs=1, chains=2)
    knows_interventions = True
    own_units = True
    sites = {"z": Site(("data", "latent"), {"latent": "point"})}

    def __init__(self, features: int = 4, latents: int = 3) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latents))
        self.register_buffer("shift", torch.zeros(len(SHIFT), latents))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        self.shift.copy_(torch.tensor([SHIFT[name] for name in data.env_names]))

    def story(self, batch: Batch) -> None:
        with self.rows(batch):
            shift = self.shift[batch.env] if batch.together is None else self.shift[list(batch.together)].sum(0)
            shift = shift.expand(len(batch), 3)

            def equation(k: int, z: Tensor) -> Normal:
                parent = (0.0, z[:, 0], -z[:, 1])[k]
                return Normal(shift[:, k] + parent, 0.1 + 0 * self.loc[k])

            z = self.along((0, 1, 2), equation, torch.zeros_like(shift))
            pyro.sample("x", Normal(torch.cat([z, z[:, :1]], -1), 1.0).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        """Any that has z as one site: only what interventions do is tested."""
        with self.rows(batch):
            z = pyro.sample("z", Normal(0 * batch.x[:, :3], torch.ones_like(self.loc)).to_event(1))
            pyro.sample("x", Normal(torch.cat([z, z[:, :1]], -1), torch.ones_like(batch.x)).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", Normal(batch.x[:, :3] + self.loc, torch.ones_like(self.loc)).to_event(1))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x[:, :3]


@cache
def fitted() -> Fit:
    rng = np.random.default_rng(0)
    data = Data(rng.normal(size=(80, 4)), np.repeat(list(SHIFT), 20), {"a": (0,), "b": (1,), "c": (2,)})
    return pyrocrl.fit(Chain(), data, progress=False)


def mean(**arguments: object) -> np.ndarray:
    draws = fitted().do(None, draws=100, **arguments)  # type: ignore[arg-type]
    assert draws["z"].dims == ("chain", "draw", "latent") and draws["x"].shape == (2, 100, 4)
    np.testing.assert_allclose(draws["x"][..., :3], draws["z"], rtol=1e-6)
    return np.asarray(draws["z"].mean(("chain", "draw")))


@pytest.mark.parametrize(
    ("environments", "expected"),
    [
        (["ctrl"], (0, 0, 0)),
        (["a"], (4, 4, -4)),
        (["b"], (0, -3, 3)),
        (["a", "b"], (4, 1, -1)),
        (["b", "a", "c"], (4, 1, 1)),
    ],
)
def test_environments_act_together_on_the_observational_equations(
    environments: list[str], expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(mean(environments=environments), expected, atol=0.06)


def test_values_stay_set_whatever_the_environments_do() -> None:
    np.testing.assert_allclose(mean(environments=["a", "b"], values={"latent_1": 2.0}), (4, 2, -2), atol=0.06)
    np.testing.assert_allclose(mean(values={"latent_1": 2.0}), (0, 2, -2), atol=0.06)


def test_what_was_done_is_told() -> None:
    draws = fitted().do(None, {"latent_1": 2.0}, environments=("a", "c"), draws=2)
    assert draws.attrs["do"] == "a, c, latent_1=2"


def test_the_order_of_environments_is_theirs_not_the_callers() -> None:
    np.testing.assert_allclose(mean(environments=["a", "b"], seed=4), mean(environments=["b", "a"], seed=4))


class Counted(Chain):
    """The chain behind counts: how many random numbers a count takes depends on its rate."""

    own_units = True

    def story(self, batch: Batch) -> None:
        with self.rows(batch):
            zero = torch.zeros(len(batch), 3)
            z = self.along((0, 1, 2), lambda k, z: Normal(0.0 if k == 0 else z[:, k - 1], 0.1 + 0 * self.loc[k]), zero)
            rate = torch.cat([z, z[:, :1]], -1).exp()
            pyro.sample("x", NegativeBinomial(rate, torch.ones(())).to_event(1), obs=batch.x)


def test_two_values_of_a_latent_meet_the_same_noise_in_every_draw() -> None:
    plain = fitted()
    fit = pyrocrl.fit(Counted(), plain.data, progress=False)
    low, high = (fit.do(None, {"latent_1": value}, draws=30)["z"].to_numpy() for value in (0.0, 4.0))
    np.testing.assert_allclose(high - low, np.broadcast_to([0.0, 4, 4], low.shape), atol=1e-6)
