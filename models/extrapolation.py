"""Latents that move linearly with an exogenous action: what actions never tried would do.

    z_i = M a_i + v_i,  v_i ~ N(0, I)                        (data, latent)
    x_i ~ N(f(z_i), sigma^2)                                 (data, feature)

a (data, action) is `aux`, standardised; f is linear plus a network; the guide is q(z | x) = N(h(x), t(x)^2). The scale
of v and the origin of z are conventions, since f is free.

*Identified:* latents up to an affine map, if f is injective, v does not depend on a and M has full row rank (as many
actions as latents at least): E[z | a] is linear in a, and only affine functions of z keep that property. So the mean of
x under an action outside the range of those tried is E f(M a + v), as far as f is known where z goes: nonlinear in a
though the extrapolation of M a is linear.

*Every chain is one draw of a Bayesian bootstrap* (each row's log-likelihood weighted by an Exp(1) variable of its own,
Newton & Raftery 1994) from another start, so that the spread of the chains is what the rows leave open in M, f and z,
also where no row was. `pyrocrl.actions.predict_action` turns it into intervals.

`initialise`: E[a | x] is a smooth function of z that is nearly one to one, as M has full row rank: h starts there, f by
regression of x on it.

Saengkyongam, Rosenfeld, Ravikumar, Pfister & Peters (2024), Identifying representations for intervention extrapolation.

*Differs from the paper in* a likelihood in place of an auto-encoder with a penalty on E[z | a] - M a, in Gaussian v, in
intervals, and in predicting all features in place of one outcome.

*For a variant, copy this file and change* `prior`: another law of v, or an action that acts through a known function.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, contrastive, run
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.program import check_sizes

GIVEN = (
    "the action is exogenous and moves the mean of the latents linearly",
    "the effects of the actions have full rank",
    "the mixing is injective",
)
NEEDS = ("more_features_than_latents", "enough_settings")
NOISE = 0.005  # least deviation of x, in that of each feature, and of q(z | x)
FIRST_SPREAD = 0.1  # of q(z | x)
BLOCK = 4096  # rows with bootstrap weights of their own; further rows share them, one each


class Extrapolation(Program):
    centre: Tensor
    spread: Tensor
    action_mean: Tensor
    action_sd: Tensor
    row_weight: Tensor
    card = ModelCard(
        name="extrapolation",
        title="Intervention extrapolation",
        family="interventions",
        summary="Latents that an exogenous action moves linearly, behind a nonlinear mixing: predicts x under actions "
        "outside the range of those tried, with intervals.",
        assumes=("x is an injective function of latents, with noise", "z is linear in the action, plus Gaussian noise"),
        claims=(Claim("latents", ("affine",), GIVEN, NEEDS),),
        references=(
            Reference(
                "Saengkyongam, Rosenfeld, Ravikumar, Pfister & Peters",
                2024,
                "Identifying representations for intervention extrapolation",
                "ICLR",
                "https://arxiv.org/abs/2310.04295",
            ),
            Reference(
                "Newton & Raftery",
                1994,
                "Approximate Bayesian inference with the weighted likelihood bootstrap",
                "Journal of the Royal Statistical Society B",
                "https://doi.org/10.1111/j.2517-6161.1994.tb01956.x",
            ),
        ),
        differs=(
            "a likelihood in place of an auto-encoder with a penalty on nonlinear effects",
            "the latents' noise is Gaussian",
            "chains are draws of a Bayesian bootstrap, and give intervals",
        ),
        settings=("saengkyongam2024",),
    )
    recipe = Recipe(
        epochs=120,
        least_steps=2_000,
        batch_size=256,
        lr=2e-3,
        lr_end=0.01,
        lr_hold=0.3,
        kl_warmup=0.0,
        temperature_span=0.0,
        patience=None,
    )
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "effect": Site(("action", "latent"), {"latent": 1}),
    }

    def __init__(self, features: int, latents: int, aux: int, width: int = 64, steps: int = 500) -> None:
        """aux: number of action variables. width: of networks' layers; steps: of the regressions that start a chain.

        Raises InputError for fewer actions than latents.
        """
        super().__init__()
        check_sizes(features, latents)
        for name, value, least in (("aux", aux, latents), ("width", width, 1), ("steps", steps, 1)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                reject(name, repr(value), f"a whole number from {least} on" + ", the latents" * (name == "aux"))
        self.encoder = contrastive.Residual(features, latents, width, layers=2)
        self.uncertainty = contrastive.Residual(features, latents, width, layers=1)
        self.decoder = contrastive.Residual(latents, features, width, layers=2)
        self.effect = nn.Parameter(0.1 * torch.randn(aux, latents))
        self.log_noise = nn.Parameter(torch.full((features,), math.log(0.1)))
        for name, size in (("centre", features), ("action_mean", aux)):
            self.register_buffer(name, torch.zeros(size))
        for name, size in (("spread", features), ("action_sd", aux)):
            self.register_buffer(name, torch.ones(size))
        self.register_buffer("row_weight", torch.ones(BLOCK))

    def check(self, data: Data) -> None:
        super().check(data)
        if data.aux is None or data.aux.shape[1] != self.config["aux"]:
            found = "none" if data.aux is None else f"{data.aux.shape[1]} columns"
            reject("aux", found, f"the actions, (data, {self.config['aux']})")

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Bootstrap weights; h by regression of actions on x, then f by regression of x on latents."""
        self.check(data)
        batch = data.tensors(dtype=self.centre.dtype)
        assert batch.aux is not None
        for value, mean, sd in ((batch.x, self.centre, self.spread), (batch.aux, self.action_mean, self.action_sd)):
            mean.copy_(value.mean(0))
            sd.copy_(value.std(0).clamp_min(1e-12))
        drawn = torch.empty(BLOCK).exponential_(generator=generator)
        self.row_weight.copy_(drawn / drawn.mean())
        x, a = self._standard(batch), self._action(batch.aux)
        weight = self.row_weight[batch.index % BLOCK]
        readout = nn.Linear(self.config["latents"], a.shape[1]).to(x)
        together = nn.ModuleList([self.encoder, readout])
        rows = torch.arange(len(x))
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)

            def action_loss(pick: Tensor, _: float) -> Tensor:
                error = readout(self.encoder(x[pick])) - a[pick]
                return (weight[pick, None] * error.square()).mean()

            contrastive.minimise(together, action_loss, rows, self.config["steps"], 256, generator)
            self._normalise(self.encoder(x), a)
            z = self.encoder(x)

            def feature_loss(pick: Tensor, _: float) -> Tensor:
                noisy = z[pick] + FIRST_SPREAD * torch.randn_like(z[pick])
                return mse_loss(self.decoder(noisy), x[pick])

            contrastive.minimise(self.decoder, feature_loss, rows, self.config["steps"], 256, generator)
        self.log_noise.copy_((x - self.decoder(z)).std(0).clamp_min(NOISE).log())
        self.uncertainty.constant(math.log(math.expm1(FIRST_SPREAD)))

    def _normalise(self, z: Tensor, a: Tensor) -> None:
        """Give h an affine map after which z - M a is white and z has mean 0; set M. z: h of all rows."""
        design = torch.cat([torch.ones_like(a[:, :1]), a], 1).double()
        found = torch.linalg.lstsq(design, z.double()).solution
        rest = z.double() - design @ found
        white = torch.linalg.inv(torch.linalg.cholesky(rest.mT @ rest / len(rest))).to(z)
        for layer in (self.encoder.linear, self.encoder.net[-1]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(white @ layer.weight)
            layer.bias.copy_(white @ layer.bias)
        self.encoder.linear.bias.sub_(white @ found[0].to(z))
        self.effect.copy_(found[1:].to(z) @ white.mT)

    # -- model and guide ---------------------------------------------------------------------------------------

    def prior(self, action: Tensor) -> Normal:
        """p(z | a) for standardised actions (rows, action)."""
        loc = action @ self.effect  # (rows, latent)
        return Normal(loc, torch.ones_like(loc))

    def model(self, batch: Batch) -> None:
        with self.rows(batch), self._bootstrap(batch):
            z = pyro.sample("z", self.prior(self._action(batch.aux)).to_event(1))  # (rows, latent)
            mean = self.decode(z, batch)  # (rows, feature)
            pyro.sample("x", Normal(mean, self.spread * (self.log_noise.exp() + NOISE)).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch), self._bootstrap(batch):
            x = self._standard(batch)
            pyro.sample("z", Normal(self.encoder(x), softplus(self.uncertainty(x)) + NOISE).to_event(1))

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return self.centre + self.spread * self.decoder(z)

    def _bootstrap(self, batch: Batch) -> Any:
        return pyro.poutine.scale(scale=self.row_weight[batch.index % BLOCK])

    def _standard(self, batch: Batch) -> Tensor:
        return (batch.x - self.centre) / self.spread

    def _action(self, action: Tensor | None) -> Tensor:
        assert action is not None  # `check` has seen to it
        return (action - self.action_mean) / self.action_sd

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(self._standard(batch))

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """effect (action, latent): by how much a unit of an action moves a latent."""
        return {"effect": self.effect / self.action_sd[:, None]}

    @torch.no_grad()
    def predict_action(self, action: Tensor, noise: Tensor) -> Tensor:
        """(rows, feature) mean of x under each row of `action` (rows, aux), over draws `noise` of v (draws, latent)."""
        shifted = self.prior(self._action(action)).loc[:, None] + noise  # (rows, draws, latent)
        return self.centre + self.spread * self.decoder(shifted.flatten(0, 1)).unflatten(0, shifted.shape[:2]).mean(1)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("saengkyongam2024", seed=seed, samples=1000)
        return cls.from_data(data, width=32, steps=200), data


if __name__ == "__main__":
    run(Extrapolation)
