"""Nonlinear mixing of a linear latent structural equation model, under perfect interventions.

    order ~ uniform;  graph[j, k] ~ Bernoulli(rho) if j precedes k             (latent,), (parent, child)
    variance s^2 ~ InverseGamma(1, 1);  level a ~ N(0, 2^2)                    (mechanism,)
    slope w ~ N(0, 1)                                                          (mechanism, latent)
    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)            (data, latent)
    x_i  ~ N(f(z_i), sigma^2) or NegativeBinomial(s_i exp(f(z_i)), r)          (data, feature)

A mechanism is an equation: the natural one of each latent, then one without parents for each (env, target). f is linear
plus a network; the guide is q(z | x) = N(h(x), diag t(x)^2), the same for all environments.

*Identified:* latents up to scale and shift (and permutation, where targets are known up to relabelling only) and the
graph exactly, if every latent is the target of a perfect intervention, there is an observational environment, the SEM
is linear and Gaussian and f is injective.

`construct` (see `pyrocrl.constructions.contrastive`): h makes every environment's latents Gaussian, first with laws of
their own, then with those of equations that intervene on targets. `initialise` adds the decoder by regression; then the
evidence lower bound is maximised over everything but h: reconstruction would trade the law of the latents, which
identifies them, for a little noise. Of counts h sees the principal components that stand out of noise, and rows may
have missed their intervention (`escapees`): a Bernoulli each, summed out; h is trained on a draw of which did.

While a chain is trained its equations are parameters, with every earlier latent a parent. `recover` draws graphs and
equations from the moments of all rows' latents: a graph for one of the affine maps to latents that environments leave
open, by how much another round of training changes h (`contrastive.nearby_maps`), and equations given it. Errors of
which rows are no cure let rows count as fewer (`LatentSEM.temper`): q's variance, what q does not know
(`correlation_error`), the dispersion of the moments.

Buchholz, Rajendran, Rosenfeld, Aragam, Schoelkopf & Ravikumar (2023), Learning linear causal representations from
interventions under general nonlinear mixing.

*Differs from the paper in* the stage without equations, which starts them (the paper's loss alone has local optima, and
solutions in which latents are the log-odds themselves), in the normality of residuals as a part of the loss, in a
likelihood with a decoder, and in a posterior of graphs in place of a threshold on weights.

The verdict tests what latents leave of features, their normality and their equations within tolerances that right fits
keep: what is off by less (too few latents that tell little of features) it does not notice. Where direct and indirect
ways nearly cancel, other latents may explain the environments nearly as well: up to three are tried and compared, and
less than ten nats leave the claims undecided, as does a map that leaves a fiftieth of a latent's variance open. Of more
than six latents no others are tried.

Longer than other models because it takes floats and counts, each with a decoder and escaped rows of its own.

*For a variant, copy this file and change* the equation in `story`, a link of the parents say, and delete `model` and
`recover`: edges are then gates along the order that the chain started from.
"""

from __future__ import annotations

import math
from typing import Annotated

import pyro
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, run
from pyrocrl.constructions import contrastive, optimise, subspaces
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.exact import orders
from pyrocrl.exact.goodness import Misfit
from pyrocrl.lab.studies import Study
from pyrocrl.lab.studies.latent_graphs import TwoModels
from pyrocrl.options import Bounds, Positive, Share, Size
from pyrocrl.parts import escapees as escape
from pyrocrl.parts import nets
from pyrocrl.parts.latent_sem import LatentSEM, SEMReadouts
from pyrocrl.parts.observation import Observation
from pyrocrl.program import (
    Batches,
    Features,
    Latents,
    Likelihood,
    TargetMatrix,
    ToldTargets,
    check_rows,
    check_sizes,
    checked_targets,
)

GIVEN = ("interventions are perfect", "noise is Gaussian", "equations are linear", "mixing is injective")
ANY = ("observational_environment", "one_intervention_per_latent", "more_features_than_latents")
NEEDS = (*ANY, "perfect_interventions", "readings_apart", "map_told")
MAPS = 64  # draws of the affine map to latents
NOISE = 0.02  # least standard deviation of q(z | x) and of x, in those of latents and features
FIRST_SPREAD = 0.1  # of q(z | x), in deviations of z


class LinearSEMNonlin(SEMReadouts, Program):
    card = ModelCard(
        name="linear_sem_nonlin",
        title="Nonlinear causal disentanglement",
        family="interventions",
        summary="Linear Gaussian causal latents behind a nonlinear mixing, with a perfect intervention on each: which "
        "latents, which graph, how strong, and how sure.",
        when=(
            "the mixing is nonlinear, equations between latents are linear, and every latent has a perfect "
            "intervention whose target is known",
            "interventions are soft or shifts, targets are unknown, or the mixing is linear: `linear_sem_lin` is "
            "then closer to the truth and takes seconds",
        ),
        assumes=(
            "x is an injective function of latents, with noise",
            "z follows a linear Gaussian structural equation model without cycles",
            *GIVEN[:1],
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, NEEDS),
            Claim("graph", ("permutation",), GIVEN, NEEDS),
        ),
        references=(
            Reference(
                "Buchholz, Rajendran, Rosenfeld, Aragam, Schoelkopf & Ravikumar",
                2023,
                "Learning linear causal representations from interventions under general nonlinear mixing",
                "NeurIPS",
                "https://arxiv.org/abs/2306.02235",
            ),
        ),
        differs=(
            "laws of environments are Gaussian without equations at first: the start of the equations",
            "residuals are compared with a normal law while the encoder is trained",
            "a likelihood with a decoder, and a posterior of graphs in place of a threshold",
        ),
        likelihoods=("gaussian", "negative_binomial"),
        status="experimental",
        needs_env=True,
        targets=("known", "relabelled"),
        approximate="Equations are parameters while a chain is trained; graphs are then drawn for maps to latents that "
        "the rows leave open, and equations given the moments of the rows' latents, with a unit-information prior and "
        "counts that carry the latents' error.",
    )
    counted = "targets"
    checks = {"nearly_left": (), "nearly_gaussian": (), "nearly_equations": ()}
    recipe = Recipe.unannealed(epochs=10, least_steps=800, batch_size=512, lr=1e-3, check_every=2, chains=4)

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, orders.MAX_NODES)],
        target_matrix: TargetMatrix,
        targets: ToldTargets = "known",
        likelihood: Likelihood = "gaussian",
        batches: Batches = 1,
        escapees: bool = False,
        width: Size = 64,
        steps: Size = 400,
        correlation_error: Share = 0.06,
        spike: Positive = 0.02,
        escape_alpha: Positive = 1.0,
        escape_beta: Positive = 3.0,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}. escapees: whether rows may have missed their intervention; of
        counts alone. width: of networks' layers; steps: of the encoder's construction. correlation_error: of latents,
        that errors of h leave in all environments alike and whatever the rows. spike: deviation of the weights of
        absent edges while a chain is trained. escape_alpha, escape_beta: of the Beta prior of the share of escapees.

        Raises InputError for a latent that no environment targets, or no observational environment.
        """
        super().__init__()
        check_sizes(features, latents)
        if escapees and likelihood != "negative_binomial":
            reject("escapees", escapees, "False, or likelihood='negative_binomial'")
        matrix = checked_targets(target_matrix, latents)
        prior = escape.Prior(escape_alpha, escape_beta)
        self.sem = LatentSEM(
            latents,
            len(matrix),
            matrix.tolist(),
            "perfect",
            escapees=escapees,
            spike=spike,
            escape_prior=prior,
            maps=MAPS,
        )
        self.observation = Observation(features, likelihood, batches, noise=0.1)
        self.encoder = nets.Residual(features, latents, width).requires_grad_(False)
        self.spread = nets.Residual(features, latents, width, layers=1)
        self.decoder = nets.Residual(latents, features, width)
        signal = torch.eye(features)  # from x to what the encoder sees; h(x) = unmixing encoder(x) + offset
        self.register_buffers(signal=signal, unmixing=torch.eye(latents), offset=torch.zeros(latents))
        # `readings_margin`, how much of h another round of training changed, `log_evidence`
        self.register_buffers(rival=torch.tensor(math.inf), changed=torch.zeros(()))
        self.register_buffers(evidence=torch.zeros(contrastive.PARTS))

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        equations = self.sem.story()  # targets, order, graph, and every equation, with their read-outs
        with self.rows(batch):
            own = self.sem.of_rows(equations, self.sem.acting(batch.env), batch.together)

            def equation(k: int, z: Tensor) -> Normal:
                return Normal(own.intercept[:, k] + (z * own.weight[:, :, k]).sum(-1), own.scale[:, k])

            z = self.along(equations.order.tolist(), equation, torch.zeros_like(own.scale))  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        self.sem.prior()
        with self.rows(batch):
            z = pyro.sample("z", self.sem.rows(batch.env))  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", self._posterior(batch).to_event(1))

    def _inputs(self, batch: Batch) -> Tensor:
        return self.observation.inputs(batch) @ self.signal

    def _posterior(self, batch: Batch) -> Normal:
        return Normal(self.latents(batch), softplus(self.spread(self._inputs(batch))) + NOISE)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(self._inputs(batch)) @ self.unmixing.mT + self.offset

    def readings_margin(self) -> float | None:
        return float(self.rival)

    def latent_maps(self) -> Tensor | None:
        return self.sem.maps

    def log_evidence(self) -> Tensor | None:
        """(part,) of environments given rows: what h is made from. The bound of x is that of the decoder above all."""
        return None if self.fits_story else self.evidence

    @torch.no_grad()
    def misfit(self, batch: Batch) -> Misfit | None:
        if self.observation.counts:
            return None
        return contrastive.misfit(contrastive.moments(self.latents(batch), batch.env, self.sem.hard_targets()))

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """The contrastive construction of h, and equations by least squares from its latents.

        Raises InputError for an environment of no more rows than latents, whose covariance is singular.
        """
        sem, latents = self.sem, self.config["latents"]
        check_rows(data, latents + 1, f", for {latents} latents")
        batch = self.observation.start(data)
        if self.observation.counts:
            self.signal.copy_(subspaces.signal_components(self.observation.inputs(batch), latents))
        x = self._inputs(batch)
        env, share = batch.env, torch.zeros_like(sem.escape_logit)
        if sem.escapees:
            env, share = subspaces.escaped(x, env, sem.target.sum(1) == 0, latents, sem.escape_prior, generator)
        width, steps = self.config["width"], self.config["steps"]
        encoder, unmixing, rival, changed = contrastive.construct(x, env, sem.target, width, steps, generator)
        self.encoder.load_state_dict(encoder.state_dict())
        z = encoder(x) @ unmixing.to(x).mT
        mean, sd = z.mean(0), z.std(0)
        self.put(unmixing=unmixing / sd[:, None], offset=-mean / sd)
        self.put(rival=torch.tensor(rival), changed=torch.tensor(changed))
        sem.escape_logit.fill_(-math.inf)  # of the rows as they are drawn, none did
        sem.start((z - mean) / sd, env)
        sem.escape_logit.copy_(share.clamp_min(1e-3).logit())
        self.spread.constant(math.log(math.expm1(FIRST_SPREAD)))
        self.finish(data, generator)

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction, then the decoder by regression of features on latents."""
        self.construct(data, generator)
        batch = data.tensors(dtype=self.unmixing.dtype)
        x, z = self.observation.inputs(batch), self.latents(batch)
        eta = x * self.observation.spread if self.observation.counts else x
        optimise.regress(self.decoder, z, eta, max(1, self.config["steps"] // 2), generator, noise=FIRST_SPREAD)
        if not self.observation.counts:
            residual = (x - self.decoder(z)).square().mean(0).sqrt().clamp_min(NOISE)
            self.observation.raw_noise.copy_(residual.log())

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """The last map to latents turned, with a decoder of these, and their equations by least squares."""
        batch, turn = data.tensors(self.unmixing.device, self.unmixing.dtype), turn.to(self.unmixing)
        self.put(unmixing=turn.mT @ self.unmixing, offset=self.offset @ turn)
        self.decoder.of_turned(turn)
        self.sem.start(self.latents(batch), batch.env)
        return True

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Moments of the latents of all rows, from which graph and equations are then drawn exactly."""
        batch = data.tensors(self.unmixing.device, self.unmixing.dtype)
        q = self._posterior(batch)
        self.sem.gather(q.mean, batch.env)
        environments, escaped = self.sem.changed(), self.sem.escape_logit.sigmoid() * self.sem.escapees
        self.evidence.copy_(contrastive.told(q.mean, batch.env, environments, escaped))
        self.sem.maps.copy_(contrastive.nearby_maps(environments, float(self.changed), MAPS, generator))
        fewer = contrastive.dispersion(environments)
        self.sem.temper(q.mean, q.stddev.square(), fewer, self.config["correlation_error"])

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("buchholz2023_hard", seed=seed, samples=200, latents=2)
        return cls.from_data(data, width=32, steps=40), data

    studies = (
        *(Study(f"buchholz2023{s}", {"samples": 20_000, "latents": d}) for s in ("_hard", "") for d in (5, 10)),
        Study("perturb_seq", {"rows": 6000}),
        TwoModels("varici2024_linear", {"samples": 10_000}),
    )


if __name__ == "__main__":
    run(LinearSEMNonlin)
