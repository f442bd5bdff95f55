"""Affine concepts of latents behind a nonlinear mixing, from environments that condition softly on some of them.

    width s ~ LogNormal(log .5, 1)                                             (latent,)
    level b ~ N(0, 2^2)                                                        (env, latent)
    z_i   ~ N(0, R) prod_k exp(-(z_ik - b_ek)^2 / 2 s_k^2), over the concepts k of environment e   (data, latent)
    reading_i ~ N(z_i, diag error^2)                                           (data, latent)
    rest_i ~ N(0, I)                                                           (data, rest)
    x_i   ~ N(f(reading_i, rest_i), diag sigma^2)                              (data, feature)

A latent here is a concept's value: c = a'z of the latents of the paper, whose other directions are `rest`; they may be
taken independent of the concepts in the base environment, and then are in all. Conditioning a normal law gives a
normal one, so that rows are drawn in closed form. `targets` tell which concepts an environment conditions on. f is
linear plus a network. R is read off the base environment's rows.

A network h reads concepts with an error that no row tells: `error`, from what another h, of half of the rows, reads
(`conditioned.construct_with_error`). It is taken for noise of each row. `model` sums z out, the guide is
q(reading, rest | x) = N(h(x), diag t(x)^2), and `recover` draws z given its reading and its environment.

*Identified:* each concept up to scale and shift, whatever the other latents, if f is injective and environments
condition softly on the concepts told, with one deviation each: where the matrix of environments and concepts has full
rank and more environments than concepts, for any two concepts an environment conditions on one and not on the other,
and the levels differ (Rajendran et al. 2024). Log-odds of an environment and the base are then sums of
quadratic functions of its concepts, whatever the mixing.

`construct` (see `pyrocrl.constructions.conditioned`): h as a classifier of environments whose log-odds are those sums,
with an inverse, and normal laws. `initialise` adds the decoder by regression; then the evidence lower bound is
maximised over everything but h.

Rajendran, Buchholz, Aragam, Schoelkopf & Ravikumar (2024), From causal to concept-based representation learning.

*Differs from the paper in* the base law, which is normal here and any there, and in a decoder, so that the story
simulates; h starts as a chart with a Gaussian law for every environment, for the paper's loss alone has local optima.

The verdict tests moments of readings and of the other latents against conditioning on the concepts told, within a
tolerance that right fits keep: conditioning on another concept that moves little, or less closely in one environment
than in others, it does not notice, nor laws of the base that are not quite normal. Intervals leave out what networks
of all rows and of half of them have in common.

Longer than other models because rows' concepts are summed out beside the story, and the start is put in its units.

*For a variant, copy this file and change* `story`: the law of `z` given its environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import pyro
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import conditioned, optimise
from pyrocrl.dists import LogNormal, MultivariateNormal, Normal
from pyrocrl.exact.goodness import Misfit
from pyrocrl.lab.studies.concepts import ConceptValues
from pyrocrl.options import Bounds, Positive, Size
from pyrocrl.parts.guides import LogNormalBlock, NormalBlock
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.observation import Observation
from pyrocrl.program import (
    Features,
    Latents,
    TargetMatrix,
    ToldTargets,
    check_rows,
    check_sizes,
    checked_targets,
)

GIVEN = (
    "the mixing is injective",
    "environments condition on the concepts told and on no others",
    "an environment conditions on a concept softly, with the same deviation wherever it does",
)
NEEDS = (
    "observational_environment",
    "one_intervention_per_latent",
    "conditioned_apart",
    "levels_apart",
    "not_collinear",
    "readings_apart",
    "concepts_told",
    "little_left",
)
NOISE = 0.02  # least deviation of q(z | x) and of x, in those of latents and features
LEAST = 200  # steps of the decoder's regression
SINGULAR = 1e-3  # least variance of a combination of concepts
FIRST = 0.1  # of q(z | x) and of levels, in deviations of z
Rest = Annotated[int, Bounds(0, 100), "how many latents there are beside the concepts"]


class Concepts(Program):
    card = ModelCard(
        name="concepts",
        title="Concepts from conditional environments",
        family="interventions",
        summary="Affine concepts of latents behind a nonlinear mixing, from environments in which some concepts are "
        "softly held near a value: each concept's value in every row, and how sure.",
        when=(
            "rows were selected or made so that named concepts are near some value, which need not be known, and "
            "there are rows of a base population beside",
            "environments change equations between latents: `linear_sem_nonlin` then says more; or concepts are not "
            "linear in anything",
        ),
        assumes=(
            "x is an injective function of latents, with little noise",
            "latents are normal in the base",
            *GIVEN[1:],
        ),
        claims=(Claim("latents", ("permutation", "scale", "shift"), GIVEN, NEEDS),),
        references=(
            Reference(
                "Rajendran, Buchholz, Aragam, Schoelkopf & Ravikumar",
                2024,
                "From causal to concept-based representation learning",
                "NeurIPS",
                "https://arxiv.org/abs/2402.09236",
            ),
        ),
        differs=(
            "latents are normal in the base environment",
            "a likelihood with a decoder",
            "laws of environments are Gaussian without concepts at first: the start of the concepts",
            "a network's error, from half of the rows, gives intervals",
        ),
        needs_env=True,
        approximate="A network's error in reading a concept is taken for independent noise of each row, of a size told "
        "by another network of half of the rows.",
        targets=("known", "relabelled"),
    )
    counted = "targets"
    checks = {"nearly_gaussian": (), "nearly_conditioned": ()}
    recipe = Recipe.unannealed(epochs=10, least_steps=400, batch_size=512, lr=1e-3, check_every=2, chains=2)
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "reading": Site(("data", "latent"), {"latent": "point"}),
        "rest": Site(("data", "rest")),
        "level": Site(("env", "latent"), {"latent": "point"}),
        "width": Site(("latent",), {"latent": "spread"}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        target_matrix: TargetMatrix,
        targets: ToldTargets = "known",
        rest: Rest = 0,
        hidden: Size = 96,
        steps: Size = 600,
        slab: Positive = 2.0,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, which concepts each environment conditions on. rest: latents beside
        the concepts, which environments leave alone. hidden: width of networks' layers; steps: of each of the two steps
        of the encoder's construction. slab: prior deviation of levels, in deviations of concepts.

        Raises InputError for a concept that no environment conditions on, for no base environment, and for as many
        concepts and other latents as features.
        """
        super().__init__()
        check_sizes(features, latents + rest)
        hit = torch.as_tensor(checked_targets(target_matrix, latents))
        every = latents + rest
        self.observation = Observation(features, noise=0.1)
        self.encoder = Residual(features, every, hidden).requires_grad_(False)
        self.deviation = Residual(features, every, hidden, layers=1)
        self.decoder = Residual(every, features, hidden)
        self.level, self.width = NormalBlock(len(hit), latents), LogNormalBlock(latents, loc=math.log(0.5))
        one = torch.eye(every)
        self.register_buffers(
            hit=hit.to(one),
            unmixing=one.clone(),  # (z, rest) = unmixing h(x) + centre
            centre=torch.zeros(every),
            tril=one[:latents, :latents].clone(),  # tril tril' = R
            error=torch.full((latents,), FIRST),
            rival=torch.tensor(math.inf),
        )

    # -- story, model and guide --------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        mean, cov = self._held(self._globals())
        root = torch.linalg.cholesky_ex(cov).L  # (env, latent, latent)
        with self.rows(batch):
            z = pyro.sample("z", MultivariateNormal(mean[batch.env], scale_tril=root[batch.env]))  # (rows, latent)
            reading = pyro.sample("reading", Normal(z, self.error.expand_as(z)).to_event(1))  # (rows, latent)
            self._features(reading, batch)

    def model(self, batch: Batch) -> None:
        mean, cov = self._held(self._globals())
        root = torch.linalg.cholesky_ex(cov + torch.diag_embed(self.error.square())).L
        with self.rows(batch):
            reading = pyro.sample("reading", MultivariateNormal(mean[batch.env], scale_tril=root[batch.env]))
            self._features(reading, batch)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        mean, root = self._given(kept["reading"], kept, batch)
        with self.rows(batch):
            pyro.sample("z", MultivariateNormal(mean, scale_tril=root))

    def guide(self, batch: Batch) -> None:
        latents = self.config["latents"]
        with pyro.plate("latent", latents, dim=-1):
            pyro.sample("width", self.width())
            with pyro.plate("env", len(self.hit), dim=-2):
                pyro.sample("level", self.level())
        with self.rows(batch):
            mean = self._read(batch)
            scale = softplus(self.deviation(self.observation.inputs(batch))) + NOISE
            pyro.sample("reading", Normal(mean[:, :latents], scale[:, :latents]).to_event(1))
            if self.config["rest"]:
                pyro.sample("rest", Normal(mean[:, latents:], scale[:, latents:]).to_event(1))

    def _globals(self) -> dict[str, Tensor]:
        one = torch.ones((), dtype=self.tril.dtype, device=self.tril.device)
        with pyro.plate("latent", self.config["latents"], dim=-1):
            width = pyro.sample("width", LogNormal(math.log(0.5) * one, one))  # (latent,)
            with pyro.plate("env", len(self.hit), dim=-2):
                level = pyro.sample("level", Normal(0 * one, self.config["slab"] * one))  # (env, latent)
        return {"width": width, "level": level}

    def _held(self, sites: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (env, latent) and covariance (env, latent, latent) of concepts."""
        width, level = sites["width"], sites["level"]
        rows = torch.diag_embed(1 / width)  # concepts in units of the conditioning's deviation
        law = conditioned.laws(rows, level / width, self.hit.to(width), torch.cholesky_inverse(self.tril).to(width))
        return law.mean, torch.linalg.inv(law.precision)

    def _given(self, reading: Tensor, sites: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean (rows, latent) and root (rows, latent, latent) of the covariance of concepts given their readings."""
        mean, cov = self._held(sites)
        gain = cov @ torch.linalg.inv(cov + torch.diag_embed(self.error.square()))  # (env, latent, latent)
        root = torch.linalg.cholesky_ex(gain * self.error.square()).L
        centre, e = mean[batch.env], batch.env
        return centre + (gain[e] @ (reading - centre)[..., None])[..., 0], root[e]

    def _features(self, reading: Tensor, batch: Batch) -> None:
        every = reading
        if self.config["rest"]:
            free = reading.new_zeros(len(batch), self.config["rest"])
            every = torch.cat([reading, pyro.sample("rest", Normal(free, torch.ones_like(free)).to_event(1))], -1)
        pyro.sample("x", self.observation.likelihood(self.decoder(every), batch).to_event(1), obs=batch.x)

    def _read(self, batch: Batch) -> Tensor:
        """(rows, latent + rest) readings of concepts and the other latents."""
        with torch.no_grad():
            return self.encoder(self.observation.inputs(batch)) @ self.unmixing.mT + self.centre

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        sites = {"width": self.width.loc.exp(), "level": self.level.loc}
        return self._given(self._read(batch)[:, : self.config["latents"]], sites, batch)[0]

    def beside(self, batch: Batch) -> dict[str, Tensor]:
        reading, rest = self._read(batch).split([self.config["latents"], self.config["rest"]], 1)
        return {"reading": reading} | ({"rest": rest} if self.config["rest"] else {})

    def held_near(self) -> tuple[Tensor, Tensor]:
        return self.level.loc, self.level.scale

    def readings_margin(self) -> float | None:
        return float(self.rival)

    @torch.no_grad()
    def misfit(self, batch: Batch) -> Misfit | None:
        group, hit, acting = self._classes(batch.env)
        mean, cov = self._held({"width": self.width.loc.exp().double(), "level": self.level.loc.double()})
        rest = torch.eye(self.config["rest"]).to(mean)
        each = [torch.block_diag(torch.linalg.inv(c + torch.diag(self.error.double().square())), rest) for c in cov]
        own = [int(torch.nonzero(self.hit.sum(1) == 0)[0]), *acting]
        law = conditioned.Law(torch.stack(each)[own], torch.nn.functional.pad(mean, (0, len(rest)))[own])
        return conditioned.misfit(self._read(batch).double(), group, hit, law)

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """The encoder, its error and the law of concepts.

        Raises InputError for an environment of too few rows for its covariance.
        """
        latents, every = self.config["latents"], self.config["latents"] + self.config["rest"]
        check_rows(data, 2 * every, f", for {every} latents")
        batch = self.observation.start(data)
        x, (group, hit, acting) = self.observation.inputs(batch), self._classes(batch.env)
        found, share = conditioned.construct_with_error(
            x, group, hit, every, self.config["hidden"], self.config["steps"], generator
        )
        self.encoder.load_state_dict(found.encoder.state_dict())
        y, rows = self.encoder(x).double(), found.rows.double()
        base = y[group == 0]
        mean, error = base.mean(0), share / (1 - share)  # concepts have variance 1, readings 1 + error
        turn = conditioned.coordinates(rows, torch.cov(base.mT))
        turn[:latents] *= (1 + error).sqrt()[:, None]
        width = turn[:latents].norm(dim=1) / rows.norm(dim=1)
        level = (found.level.double() - rows @ mean) * width
        cov = torch.cov((base @ turn[:latents].mT).mT).reshape(latents, latents) - torch.diag(error)
        self.put(unmixing=turn, centre=-turn @ mean, rival=torch.tensor(found.rival))
        self.put(error=error.sqrt(), tril=_correlation_root(cov))
        self.width.set(width.log().to(x), torch.full_like(x[0, :latents], FIRST))
        loc, scale = torch.zeros_like(self.hit), torch.full_like(self.hit, self.config["slab"])
        loc[acting] = torch.where(self.hit[acting] > 0, level[1:].to(x), loc[acting])
        self.level.set(loc, torch.where(self.hit > 0, FIRST, scale))

    def _classes(self, env: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Classes (rows,), 0 of the base; hit (class, latent), 0 of class 0; the environments of the other classes."""
        acting = torch.nonzero(self.hit.sum(1)).flatten().tolist()
        group = torch.zeros_like(env)
        for position, e in enumerate(acting):
            group[env == e] = position + 1
        return group, torch.cat([0 * self.hit[:1], self.hit[acting]]).double(), acting

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction, then the decoder by regression of features on latents."""
        self.construct(data, generator)
        batch = data.tensors(dtype=self.unmixing.dtype)
        x, z = self.observation.inputs(batch), self._read(batch)
        optimise.regress(self.decoder, z, x, max(self.config["steps"], LEAST), generator, noise=NOISE)
        self.observation.raw_noise.copy_((x - self.decoder(z)).square().mean(0).sqrt().clamp_min(NOISE).log())
        self.deviation.constant(math.log(math.expm1(FIRST)))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("rajendran2024", seed=seed, samples=300, latents=4, concepts=2, layers=1, draws=1000)
        return cls.from_data(data, rest=2, hidden=16, steps=60), data

    studies = (ConceptValues("rajendran2024", {"samples": 10_000}, {"rest": 3}),)


def _correlation_root(cov: Tensor) -> Tensor:
    """Root of the correlations nearest to a covariance from which errors were taken, which may have left none."""
    value, vector = torch.linalg.eigh(cov)
    cov = vector * value.clamp_min(SINGULAR) @ vector.mT
    sd = cov.diagonal().sqrt()
    return torch.linalg.cholesky(cov / sd[:, None] / sd)


if __name__ == "__main__":
    run(Concepts)
