"""Identifiable VAE: independent latents whose laws differ from environment to environment, behind any injective map.

    s_uk ~ LogNormal(0, 1);  m_uk ~ N(0, 1) with law="normal", else 0       (env, latent)
    z_ik ~ N(m_uk, s_uk^2), u the environment of row i                      (data, latent)
           Laplace(0, s_uk) with law="laplace"
    x_ij ~ N(f(z_i)_j, sigma_j^2)                                           (data, feature)

f is linear plus a network. The guide has the likelihood as a Gaussian of z, N(h(x), V(x)), from an encoder, and
multiplies it with the law of z given the environment, a normal one of the same mean and variance where that is Laplace.
`model` is the story: nothing is summed out.

*Identified:* latents up to permutation and scale (and shift, where environments have levels m), if environments move
the laws' natural parameters in as many directions as there are: of K latents with one statistic each (z^2 or |z|) that
takes K + 1 environments, of the two of law="normal" 2 K + 1. Two latents whose variances move together may be rotated.
No environments, or equal ones, leave any map that keeps the latents' law.

Khemakhem, Kingma, Monti & Hyvarinen (2020), Variational autoencoders and nonlinear ICA: a unifying framework.

*Differs from the paper in* its start, by contrasts between environments (`pyrocrl.constructions.modulation`), in scales
that are a posterior, in noise that is learned, and in the auxiliary variable, which is the environment. The encoder's
mean stays as it started: the likelihood of x that is almost without noise rewards a decoder that is easy to fit more
than latents of their law, and climbing it mixed them.

*For a variant, copy this file and change* `story`: the law of `z` given the environment, or the likelihood of `x`.
"""

from __future__ import annotations

import math
from typing import Literal

import pyro
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import modulation
from pyrocrl.dists import Laplace, LogNormal, MultivariateNormal, Normal
from pyrocrl.lab.studies.nonlinear import BesideVAE
from pyrocrl.options import Size
from pyrocrl.parts.guides import LogNormalBlock, NormalBlock
from pyrocrl.parts.nets import Residual, TrilEncoder
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Environments, Features, Latents, check_rows, check_sizes

LAW = "latents are independent given the environment, of the law that is told"
SLOPES = 1000  # rows at which the decoder's slopes are looked at, for the spread of z given x at the start
LEAST = 1e-6  # precision of z given x at the start, where the decoder does not feel a latent


class IVAE(Program):
    card = ModelCard(
        name="ivae",
        title="Identifiable VAE",
        family="auxiliary variables",
        summary="Independent latents behind any injective map, told apart by how their laws differ between "
        "environments whose targets nobody needs to know.",
        when=(
            "there are many environments, each of which changes the variances (or means) of most latents, and x is "
            "not linear in them",
            "latents act on each other within an environment, or environments are fewer than latents",
        ),
        assumes=(
            LAW,
            "x is an injective function of the latents, and noise",
        ),
        claims=(
            Claim(
                "latents",
                ("permutation", "scale"),
                (LAW, "the decoder is injective"),
                ("more_environments", "modulated_apart"),
                when={"law": ("scaled normal", "laplace")},
            ),
            Claim(
                "latents",
                ("permutation", "scale", "shift"),
                (LAW, "the decoder is injective"),
                ("twice_the_environments", "modulated_apart"),
                when={"law": "normal"},
            ),
        ),
        references=(
            Reference(
                "Khemakhem, Kingma, Monti & Hyvarinen",
                2020,
                "Variational autoencoders and nonlinear ICA: a unifying framework",
                "AISTATS",
                "https://arxiv.org/abs/1907.04809",
            ),
        ),
        differs=(
            "chains start from contrasts between environments",
            "the encoder's mean stays as it started",
            "the laws' scales are a posterior, and noise is learned",
            "the auxiliary variable is the environment",
        ),
        needs_env=True,
    )
    recipe = Recipe.unannealed(epochs=6, least_steps=300, batch_size=500, lr=2e-3, held_out=0.2, chains=2)
    checks = {"given_environment": (LAW,), "left": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "level": Site(("env", "latent"), {"latent": "point"}),
        "scale": Site(("env", "latent"), {"latent": "spread"}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        environments: Environments,
        law: Literal["scaled normal", "normal", "laplace"] = "scaled normal",
        width: Size = 64,
        steps: Size = 4_000,
    ) -> None:
        """law: of a latent given its environment; "scaled normal" and "laplace" have mean 0 and a scale, "normal" has a
        mean as well. width: of networks' layers; steps: of the construction that starts a chain.
        """
        super().__init__()
        check_sizes(features, latents, square=True)
        self.observation = Observation(features)
        self.encoder = TrilEncoder(features, latents, width, "silu", Residual(features, latents, width), held=True)
        self.decoder = Residual(latents, features, width)
        self.scale = LogNormalBlock(environments, latents)
        if law == "normal":
            self.level = NormalBlock(environments, latents)

    def story(self, batch: Batch) -> None:
        envs, latents, law = (self.config[name] for name in ("environments", "latents", "law"))
        zero = torch.zeros((), dtype=batch.dtype, device=batch.device)
        level = zero.expand(envs, latents)
        with pyro.plate("env", envs, dim=-2), pyro.plate("latent", latents, dim=-1):
            scale = pyro.sample("scale", LogNormal(zero, zero + 1))  # (env, latent)
            if law == "normal":
                level = pyro.sample("level", Normal(zero, zero + 1))
        kind = Laplace if law == "laplace" else Normal
        with self.rows(batch):
            z = pyro.sample("z", kind(level[batch.env], scale[batch.env]).to_event(1))  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        envs, latents, law = (self.config[name] for name in ("environments", "latents", "law"))
        with pyro.plate("env", envs, dim=-2), pyro.plate("latent", latents, dim=-1):
            scale = pyro.sample("scale", self.scale())
            level = pyro.sample("level", self.level()) if law == "normal" else torch.zeros_like(scale)
        with self.rows(batch):
            pyro.sample("z", self._given(batch, level, scale))

    def _given(self, batch: Batch, level: Tensor, scale: Tensor) -> MultivariateNormal:
        """Law of z (rows, latent) given x and its environment's."""
        loc, tril = self.encoder(self.observation.inputs(batch))
        spread = scale[batch.env] * (math.sqrt(2) if self.config["law"] == "laplace" else 1.0)
        # of V - V (V + S)^-1 V and of the mean, S the variances of z given the environment
        own = tril @ tril.mT
        gain = torch.linalg.solve_ex(own + torch.diag_embed(spread.square()), own).result.mT  # V (V + S)^-1
        mean = loc + (gain @ (level[batch.env] - loc)[..., None])[..., 0]
        # of the precision, times that of z's own law: in double, for without noise it is large
        root = (spread[..., None] * torch.linalg.inv_ex(tril).inverse.mT).double()
        precision = root @ root.mT + torch.eye(loc.shape[-1], dtype=root.dtype, device=loc.device)
        inverse = torch.linalg.inv_ex(torch.linalg.cholesky_ex(precision.flip(-1, -2)).L).inverse.to(loc)
        return MultivariateNormal(mean, scale_tril=(spread[..., None] * inverse.mT.flip(-1, -2)).tril())

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        scale = self.scale().mean
        level = self.level().mean if self.config["law"] == "normal" else torch.zeros_like(scale)
        return self._given(batch, level, scale).mean

    def modulated_law(self) -> str:
        return str(self.config["law"])

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Networks and scales by contrasts between environments, noise by what the decoder leaves."""
        check_rows(data, 2)
        batch = self.observation.start(data)
        x, own = self.observation.inputs(batch), self.config
        laplace, levels = own["law"] == "laplace", own["law"] == "normal"
        found = modulation.construct(
            *(x, batch.env, own["environments"], own["latents"], own["width"], own["steps"], generator),
            laplace=laplace,
            levels=levels,
        )
        self.decoder.load_state_dict(found.decoder.state_dict())
        z = found.encoder(x)
        noise = (self.decoder(z) - x).std(0).clamp_min(1e-3)
        self.observation.raw_noise.copy_(noise.log())
        pick = torch.randint(len(x), (SLOPES,), generator=generator).to(x.device)
        # (some rows, feature, latent) in units of the noise
        slopes = torch.func.vmap(torch.func.jacrev(self.decoder))(z[pick]) / noise[:, None]
        precision = (slopes.mT @ slopes).mean(0).double() + LEAST * torch.eye(z.shape[1]).to(z.device)
        assert isinstance(self.encoder.mean, Residual)
        self.encoder.mean.load_state_dict(found.encoder.state_dict())
        self.encoder.quieten(torch.linalg.cholesky(torch.linalg.inv(precision)).to(x))
        count = torch.bincount(batch.env, minlength=own["environments"]).to(x).clamp_min(1.0)[:, None]
        self.scale.set(found.log_scale, (1 / (2 * count)).sqrt().expand_as(found.log_scale))
        if levels:
            self.level.set(found.level, found.log_scale.exp() / count.sqrt())

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """Encoder and decoder turned, and levels and scales that environments then have."""
        turn = turn.to(self.scale.loc)
        self.encoder.turn(turn)
        self.decoder.of_turned(turn)
        self.scale.loc.copy_(0.5 * ((2 * self.scale.loc).exp() @ turn.square()).log())
        if self.config["law"] == "normal":
            self.level.loc.copy_(self.level.loc @ turn)
        return True

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        options = {"segments": 10, "samples": 300, "latents": 2, "features": 4, "layers": 2, "noise": 0.05}
        data = draw("khemakhem2020", seed=seed, **options)
        return cls.from_data(data, width=32, steps=500), data

    studies = (
        BesideVAE("khemakhem2020", held_out=0.1),
        BesideVAE("khemakhem2020", {"latents": 2, "features": 4}, held_out=0.1),
    )


if __name__ == "__main__":
    run(IVAE)
