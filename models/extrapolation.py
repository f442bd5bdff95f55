"""Latents that move linearly with an exogenous action: what actions never tried would do.

    z_i ~ N(M a_i, I)                                        (data, latent)
    x_i ~ N(f(z_i), sigma^2)                                 (data, feature)

a (data, action) is `aux`, standardised, and `effect` M in its units; f is linear plus a network; the guide is
q(z | x) = N(h(x), t(x)^2). The scale of v = z - M a and the origin of z are conventions, since f is free. `model` is
the story: nothing is summed out.

*Identified:* latents up to an affine map, if f is injective, v does not depend on a and M has full row rank (as many
actions as latents at least): E[z | a] is linear in a, and only affine functions of z keep that property. So the mean of
x under an action outside the range of those tried is E f(M a + v), as far as f is known where z goes: nonlinear in a
though the extrapolation of M a is linear.

`construct`: an auto-encoder gives coordinates c of the features' manifold; then h(c) maximises the likelihood of those,

    log p(c | a) = log N(h(c); M a, I) + log det h'(c),

exactly, in as many dimensions as there are latents. `initialise` adds f by regression of x on h. Only f, M and the
widths of q are then fitted with the evidence lower bound: alone it stops far below its value at the true latents.

*Every chain is one draw of a Bayesian bootstrap* (each row's log-likelihood weighted by an Exp(1) variable of its own,
Newton & Raftery 1994) from another start, so that the spread of the chains is what the rows leave open in M, f and z,
also where no row was. Chains weigh alike, and are few: of a number that is the same in a whole chain, such as an entry
of M, the range of K draws covers (K - 1) / (K + 1) at best. `pyrocrl.predict.predict_action` makes intervals by
Student's law of as many draws.

Saengkyongam, Rosenfeld, Ravikumar, Pfister & Peters (2024), Identifying representations for intervention extrapolation.

*Differs from the paper in* a likelihood in place of an auto-encoder with a penalty on E[z | a] - M a, in Gaussian v, in
intervals, and in predicting all features in place of one outcome.

*For a variant, copy this file and change* `story`: the line of `z`, another law of v, or of `loc`, an action that acts
through a known function.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import action_effects
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.lab.studies.nonlinear import Actions
from pyrocrl.options import Size
from pyrocrl.parts import nets
from pyrocrl.program import Features, Latents, check_sizes

GIVEN = (
    "the action is exogenous and moves the mean of the latents linearly",
    "the effects of the actions have full rank",
    "the mixing is injective",
)
NEEDS = ("more_features_than_latents", "enough_settings")
NOISE = 0.005  # least deviation of x, in that of each feature, and of q(z | x)
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
        when=(
            "an action measured in numbers, a dose say, moves the latents linearly, and the mean of x under actions "
            "outside the range of those tried is wanted",
            "single latents or a graph are wanted (latents are known up to an affine map only), or the action takes "
            "no more values than there are latents",
        ),
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
    )
    recipe = Recipe(
        epochs=10,
        least_steps=600,
        batch_size=512,
        lr=1e-3,
        lr_end=0.01,
        kl_warmup=0.0,
        temperature_span=0.0,
        patience=None,
        chains=4,
    )
    drawn_by_chains = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "effect": Site(("action", "latent"), {"latent": 1}),
    }

    def __init__(self, features: Features, latents: Latents, aux: Size, width: Size = 64, steps: Size = 4_000) -> None:
        """aux: number of action variables. width: of networks' layers; steps: of each part of the construction.

        Raises InputError for fewer actions than latents.
        """
        super().__init__()
        check_sizes(features, latents)
        if aux < latents:
            reject("aux", f"{aux} action(s)", f"{latents} or more: as many as there are latents")
        self.chart = nets.Residual(features, latents, width, layers=2).requires_grad_(False)
        self.unmix = nets.Residual(latents, latents, max(1, width // 2), layers=2).requires_grad_(False)
        self.uncertainty = nets.Residual(features, latents, width, layers=1)
        self.decoder = nets.Residual(latents, features, width, layers=2)
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

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        pyro.deterministic("effect", self.effect / self.action_sd[:, None])  # (action, latent)
        with self.rows(batch), self._bootstrap(batch):
            loc = self._moved(batch.aux)  # (rows, latent)
            z = pyro.sample("z", Normal(loc, torch.ones_like(loc)).to_event(1))  # (rows, latent)
            mean = self._mean(z)  # (rows, feature)
            pyro.sample("x", Normal(mean, self.spread * (self.log_noise.exp() + NOISE)).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch), self._bootstrap(batch):
            q = Normal(self.latents(batch), self._deviation(self._standard(batch)))
            pyro.sample("z", q.to_event(1))

    def _moved(self, action: Tensor | None) -> Tensor:
        """(rows, latent) M a, for actions (rows, action) in the units of the data."""
        return self._action(action) @ self.effect

    def _mean(self, z: Tensor) -> Tensor:
        """(rows, feature) E[x | z]."""
        return self.centre + self.spread * self.decoder(z)

    def _deviation(self, x: Tensor) -> Tensor:
        """(rows, latent) of q(z | x), of standardised x."""
        return softplus(self.uncertainty(x)) + NOISE

    def _bootstrap(self, batch: Batch) -> Any:
        return pyro.poutine.scale(scale=self._weight(batch))

    def _weight(self, batch: Batch) -> Tensor:
        return self.row_weight[batch.index % BLOCK]

    def _standard(self, batch: Batch) -> Tensor:
        return (batch.x - self.centre) / self.spread

    def _action(self, action: Tensor | None) -> Tensor:
        assert action is not None  # `check` has seen to it
        return (action - self.action_mean) / self.action_sd

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.unmix(self.chart(self._standard(batch)))

    @property
    def actions_count(self) -> int:
        return int(self.config["aux"])

    @torch.no_grad()
    def predict_action(self, action: Tensor, noise: Tensor) -> Tensor:
        """(rows, feature) mean of x under each row of `action` (rows, aux), over draws `noise` of v (draws, latent)."""
        shifted = self._moved(action)[:, None] + noise  # (rows, draws, latent)
        return self.centre + self.spread * self.decoder(shifted.flatten(0, 1)).unflatten(0, shifted.shape[:2]).mean(1)

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Bootstrap weights; coordinates of x by an auto-encoder, then latents by maximum likelihood of those."""
        self.check(data)
        batch = data.tensors(dtype=self.centre.dtype)
        assert batch.aux is not None
        for value, mean, sd in ((batch.x, self.centre, self.spread), (batch.aux, self.action_mean, self.action_sd)):
            mean.copy_(value.mean(0))
            sd.copy_(value.std(0).clamp_min(1e-12))
        drawn = torch.empty(BLOCK).exponential_(generator=generator)
        self.row_weight.copy_(drawn / drawn.mean())
        x, a, weight, steps = self._standard(batch), self._action(batch.aux), self._weight(batch), self.config["steps"]
        action_effects.fit_chart(self.chart, self.decoder, x, a, weight, steps, generator)
        action_effects.fit_unmixing(self.unmix, self.effect, self.chart(x), a, weight, steps, generator)

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction, then f by regression of x on latents."""
        self.construct(data, generator)
        batch, steps = data.tensors(dtype=self.centre.dtype), self.config["steps"]
        x, z, weight = self._standard(batch), self.latents(batch), self._weight(batch)
        action_effects.fit_decoder(self.decoder, z, x, weight, steps, generator)
        self.log_noise.copy_((x - self.decoder(z)).std(0).clamp_min(NOISE).log())
        slope = action_effects.slopes(self.decoder, z)  # (rows, feature, latent)
        spread = (1.0 + (slope / self.log_noise.exp()[:, None]).square().sum(1)).rsqrt()
        action_effects.fit_deviation(self.uncertainty, NOISE, x, spread, steps, generator)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("saengkyongam2024", seed=seed, samples=1000)
        return cls.from_data(data, width=32, steps=200), data

    studies = (Actions("saengkyongam2024", {"samples": 40_000}, {"latents": 2}, held_out=0.1),)


if __name__ == "__main__":
    run(Extrapolation)
