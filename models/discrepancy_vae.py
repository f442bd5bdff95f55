"""Discrepancy VAE: latents of a structural equation model under soft or shift interventions of unknown targets.

    target_e ~ Categorical(latents, none), where targets are not known         (env,)
    order ~ uniform;  graph[j, k] ~ Bernoulli(rho) if j precedes k             (latent,), (parent, child)
    variance s^2 ~ InverseGamma(1, 1);  level a ~ N(0, 2^2)                    (mechanism,)
    slope w ~ N(0, 1)                                                          (mechanism, latent)
    change ~ N(0, 2^2), of the level; ratio ~ LogNormal(0, 1), of the scale    (pair,): shift, variance
    z_i,k = a_k + sum_j w[j, k] phi(z_i,j) + eps_i,k,  eps ~ N(0, s_k^2)       (data, latent), phi = relu or identity
    x_i  ~ N(f(z_i), sigma^2) or NegativeBinomial(s_i exp(f(z_i)), r)          (data, feature)

A mechanism is an equation: the natural one of each latent and, for perfect and soft interventions, one for each (env,
target): without parents, or with slopes of its own. Shifts and changes of variance keep their target's equation: a pair
(env, target) changes its level, and its scale.

f is linear, or linear plus a network. The guide is q(z | x) = N(mu(x), L(x) L(x)^T), the same for all environments.
Rows of every environment count by their own likelihood, in expectation over targets; rows may have missed their
intervention, `escaped` ~ Bernoulli each, summed out. While a chain is trained its equations are parameters; `recover`
draws targets, graph and equations exactly (sums over orders, conjugacy) from the moments of all rows' latents. Effects
of shifts and variance changes on one latent add, so combinations of interventions never seen are predicted from single
ones (`Fit.do(environments=)`, `pyrocrl.predict`).

*Identified:* with a linear decoder, latents up to permutation, scale and shift and the graph up to its transitive
closure (exactly, for perfect interventions), if every latent is the target of an environment and there is an
observational one. With linear structural equations, shifts and changes of variance leave the graph open, as the decoder
can absorb any weights: `latents` are then the innovations, graphs and weights are drawn from their prior, and z
follows. The same holds for relu links where the decoder is a network: only perfect interventions count there. For
shifts and changes of variance a latent's sign is a convention at the graph's last links, z_c = w relu(z_p) + .. being
(z_c - w z_p) = w relu(-z_p) + ..; chains start so that interventions raise their target.

*Targets do not collapse* onto one latent. In the paper's objective an environment's target is a softmax that only has
to match that environment's distribution, and any latent whose decoder direction is free to turn will do. Here (1) each
environment has a density of its own in z, so that two environments on one latent would have to move x along the same
line: where they do not, the second costs its rows' likelihood; (2) chains start with as many directions as there are
latents, those by which environments differ most, one a latent; (3) targets are settled by their evidence, graphs and
equations integrated out in closed form (`LatentSEM`), one environment at a time given the others, before training and
again after it: no gradient has to find its way from one latent to another.

Zhang, Greenewald, Squires, Srivastava, Shanmugam & Uhler (2023), Identifiability guarantees for causal disentanglement
from soft interventions.

*Differs from the paper in* each environment's own likelihood as the objective; `objective="mmd"` is the paper's:
control rows alone are encoded, their exogenous noise is put through each intervened model, and the result is compared
with the rows of that environment by the maximum mean discrepancy. Decoders start from the affine unmixing of maximum
likelihood (`pyrocrl.constructions.affine`), each chain from its own bootstrap. Behind a network mu(x) is constructed
(`affine.bend`) and then held: reconstruction would trade the law of the latents, which identifies them, for a little
noise.

*Of more than 12 latents* (up to 128, studied at 20; a linear decoder, and shifts and changes of variance, or perfect
interventions of told targets in linear equations) graphs are too many to be summed over. Each latent has ten likely
parents, whose sets are still summed over exactly; orders are drawn by annealed sequential Monte Carlo
(`exact.order_sampling`), and targets settled by the evidence given an order.
A first order and the map to the latents are found in turns: regressions on latents as they are known so far propose an
order, under which equations and map are fitted (`constructions.many_orders`). The means of q(z | x) are then held, and
a chain takes all rows, of which it searches with its own part; there are two chains, for the search is what costs. It
may miss: chains that ended in other orders are the sign, and the verdict says so. A graph has two neighbours a latent
a priori. Equations that a decoder absorbs need no order and no search.

*The verdict does not notice* counts that say little of a row's latents: their errors may be taken for an edge, and the
graph called identified (in the suite of verdicts, two latents behind twelve features of ten counts each).

Longer than other models because one decoder serves four kinds of intervention, known or unknown targets, floats or
counts, and two objectives, and its studies cover them.

*For a variant, copy this file and change* the equation in `story`, a link of the parents say, and delete `model` and
`recover`: edges are then gates along the order that the chain started from.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, run
from pyrocrl.constructions import affine, map_likelihood
from pyrocrl.constructions.contrastive import PARTS
from pyrocrl.constructions.log_rates import count_factors
from pyrocrl.dists import MultivariateNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import orders
from pyrocrl.exact.mmd import mmd2
from pyrocrl.lab.studies import Study
from pyrocrl.lab.studies.latent_graphs import ManyTargets, Pairs, TwoModels
from pyrocrl.lab.studies.screens import PerturbationScreen
from pyrocrl.options import Bounds, Positive, Share, Size
from pyrocrl.parts import escapees as escape
from pyrocrl.parts.latent_sem import MOST, LatentSEM, Mechanism, SEMReadouts
from pyrocrl.parts.nets import MLP, Residual, TrilEncoder, turned_weights
from pyrocrl.parts.observation import Observation
from pyrocrl.program import (
    Batches,
    Environments,
    Features,
    Intervention,
    Latents,
    Likelihood,
    TargetMatrix,
    Targets,
    check_rows,
    check_sizes,
    checked_targets,
)
from pyrocrl.turns import drawing

READINGS, BOUND_DRAWS = 32, 4  # draws of the map to latents; of z, for the bound of the fitted rows
GAUSSIAN = "noise is Gaussian"
GIVEN = ("the decoder is injective", GAUSSIAN)
NEEDS = (
    "observational_environment",
    "one_intervention_per_latent",
    "more_features_than_latents",
    "nonlinear_or_replaced",
)
# a network can undo the structural equations that interventions keep
REPLACED = (*NEEDS[:-1], "perfect_interventions")
LINEAR, NETWORK = {"decoder": "linear"}, {"decoder": "mlp"}
OTHERS = {"intervention": ("soft", "variance", "shift")}
KEPT, CUT = {"intervention": ("variance", "shift")}, {"intervention": ("perfect", "soft")}
RAISED = "interventions raise their targets: else a latent's sign is open, and relu links mix it with those it acts on"
# shifts move x along their target's direction, whatever the graph
TARGET_NEEDS = ("observational_environment", "more_features_than_latents")

# what its studies are built with: of simulated settings, of a real screen
UNKNOWN = {"targets": "unknown", "latents": 5}
SIMULATED: tuple[tuple[dict, dict, bool], ...] = (  # settings, options, whether the graph is identified
    ({"mixing": "identity"}, {}, False),
    ({"mixing": "linear"}, {}, False),
    ({"mixing": "linear", "intervention": "perfect"}, {"intervention": "perfect"}, True),
    ({"mixing": "linear", "intervention": "variance"}, {"intervention": "variance"}, True),
    ({"mixing": "linear", "mechanism": "linear"}, {"mechanism": "linear"}, False),
    ({"mixing": "mlp", "intervention": "perfect"}, {"intervention": "perfect", "decoder": "mlp"}, True),
    ({"mixing": "mlp"}, {"decoder": "mlp"}, False),
)
MANY: dict[str, Any] = {"mixing": "linear", "features": 100, "samples": 2000, "noise": 0.05}
SHIFTS = {"targets": "unknown", "intervention": "shift", "mechanism": "linear", "escapees": True, "variation": 0.1}


class Decoder(nn.Module):
    """f(z) = bias + loadings z, plus a network unless linear: (rows, latent) -> (rows, feature)."""

    def __init__(self, latents: int, features: int, hidden: int, linear: bool) -> None:
        super().__init__()
        self.loadings = nn.Parameter(0.1 * torch.randn(features, latents))
        self.bias = nn.Parameter(torch.zeros(features))
        self.net = None if linear else MLP([latents, hidden, hidden, features], "leaky_relu")

    def forward(self, z: Tensor) -> Tensor:
        out = self.bias + z @ self.loadings.mT
        return out if self.net is None else out + self.net(z)

    @torch.no_grad()
    def of_turned(self, turn: Tensor) -> None:
        """f of z becomes f of z @ turn."""
        for weight in (self.loadings, *([] if self.net is None else [self.net[0].weight])):
            weight.copy_(turned_weights(weight, turn))

    @torch.no_grad()
    def start(self, loadings: Tensor, bias: Tensor) -> None:
        self.loadings.copy_(loadings)
        self.bias.copy_(bias)
        if self.net is not None:
            self.net.quieten()


class DiscrepancyVAE(SEMReadouts, Program):
    card = ModelCard(
        name="discrepancy_vae",
        title="Discrepancy VAE",
        family="interventions",
        summary="Causal latents behind a nonlinear decoder, from shifts and other soft interventions whose targets "
        "are learned; predicts combinations of interventions never seen.",
        when=(
            "targets are unknown, interventions are soft or shifts, or means of combinations never seen are wanted, "
            "and x is not far from linear in the latents",
            "the decoder is a network and interventions are not perfect, or equations are linear and interventions "
            "are shifts, and the graph is wanted: its edges then keep their prior probability",
        ),
        assumes=(
            "x is a function of latents and noise",
            "latents follow a structural equation model without cycles, linear or with relu links",
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, NEEDS, LINEAR | CUT),
            Claim("latents", ("permutation", "scale", "shift"), (*GIVEN, RAISED), NEEDS, LINEAR | KEPT),
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, REPLACED, NETWORK),
            Claim("graph", ("permutation",), GIVEN, NEEDS, LINEAR | {"intervention": "perfect"}),
            Claim("graph", ("permutation", "transitive closure"), GIVEN, NEEDS, LINEAR | OTHERS),
            Claim("graph", ("permutation",), GIVEN, REPLACED, NETWORK),
            Claim("targets", ("permutation",), GIVEN, TARGET_NEEDS, {"targets": "unknown"}),
        ),
        references=(
            Reference(
                "Zhang, Greenewald, Squires, Srivastava, Shanmugam & Uhler",
                2023,
                "Identifiability guarantees for causal disentanglement from soft interventions",
                "NeurIPS",
                "https://arxiv.org/abs/2307.06250",
            ),
        ),
        differs=(
            "every environment's own likelihood is the objective; the paper's discrepancy is an option",
            "graphs, weights and targets are a posterior given the latents, every graph acyclic",
            "chains start from the directions that mean differences give",
        ),
        likelihoods=("gaussian", "negative_binomial"),
        settings=("zhang2023",),
        needs_env=True,
        targets=("known", "relabelled", "unknown"),
        approximate="Equations are parameters while a chain is trained, targets enter by their expectation; all are "
        "then drawn given the moments of the rows' latents, with a unit-information prior: under draws of the map to "
        "these, normal about the most likely one, jointly with edges that may be missing, or else by counts that stand "
        "for its error. z itself is drawn under one map. Of more than 12 latents means of q(z | x) are held, orders "
        "are a sample, and parents are among each latent's ten likeliest.",
    )
    counted = "targets"
    infers_targets = True
    compares_with_control = True  # whatever is known of the targets
    checks = {"left": (), "equations": (), "noise_of_equations": (GAUSSIAN,)}
    recipe = Recipe.unannealed(epochs=100, least_steps=3000, batch_size=500, lr=3e-3, chains=4)
    # rates and dispersions of rare genes have far to go, and every step costs as much as ten of floats
    count_recipe = replace(recipe, epochs=60, least_steps=1500, lr_scale={"observation": 5.0, "sem": 5.0})

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(1, MOST)],
        environments: Environments,
        target_matrix: TargetMatrix | None = None,
        targets: Targets = "known",
        intervention: Intervention = "shift",
        mechanism: Mechanism = "relu",
        decoder: Literal["linear", "mlp"] = "linear",
        likelihood: Likelihood = "gaussian",
        batches: Batches = 1,
        escapees: bool = False,
        variation: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
        objective: Literal["likelihood", "mmd"] = "likelihood",
        hidden: Size = 64,
        correlation_error: Share = 0.06,
        unmixed: Positive = 4.0,
        slab: Positive = 0.3,
        discrepancy_weight: Positive = 10.0,
        spike: Positive = 0.02,
        none_probability: Share = 0.5,
        escape_alpha: Positive = 1.0,
        escape_beta: Positive = 3.0,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, environment 0 observational; not read where targets are unknown.
        mechanism: the links of the structural equations. decoder: linear, or linear plus a network.

        escapees: rows of an intervention may have missed it. variation: deviation by which environments' means differ
        for other reasons than interventions, see `LatentSEM`. correlation_error: of latents, that errors of mu leave
        behind a network, in all environments alike and whatever the rows. unmixed: rows say this many times less of the
        equations, for the same rows have to tell the latents' directions, where no posterior of these is drawn: of
        counts, networks, escapees, environments that vary and more than 12 latents. slab: prior deviation of the
        loadings of log rates. objective: of training. discrepancy_weight: in nats a row, of objective="mmd". hidden:
        units of networks' layers. spike, none_probability: of weights of absent edges and of environments without
        target, see `LatentSEM`.
        escape_alpha, escape_beta: of the Beta prior of the share of escapees.

        Raises InputError for more than 128 latents, or 12 where interventions are soft, perfect of
        unknown targets or with relu links, or the decoder is a network.
        """
        super().__init__()
        check_sizes(features, latents)
        found = {"soft": intervention == "soft", "perfect and mechanism=relu": mechanism == "relu"}
        found["perfect and targets=unknown"] = targets == "unknown"
        unsure = [words for words, so in found.items() if so and words.startswith(intervention)]
        unsure += ["any and decoder=mlp"] * (decoder == "mlp")
        if latents > orders.MAX_NODES and unsure:
            most = f"at most {orders.MAX_NODES}: graphs are summed over there"
            reject("latents", f"{latents} with intervention={unsure[0]}", most)
        known = None
        if targets != "unknown":
            known = checked_targets(target_matrix, latents, environments, least=0, observational=False).tolist()
        if objective == "mmd":  # Gram matrices of all pairs of rows
            self.recipe = replace(self.recipe, batch_size=150)
        # what the rows leave open of a linear map to latents goes into their equations, which a decoder does not absorb
        noisy = likelihood != "gaussian" or escapees or variation > 0 or latents > orders.MAX_NODES
        held_open = decoder == "linear" and not noisy
        self.sem = LatentSEM(
            *(latents, environments, known, intervention, mechanism, escapees),
            variation=variation,
            free=decoder == "mlp",
            spike=spike,
            none_probability=none_probability,
            escape_prior=escape.Prior(escape_alpha, escape_beta),
            readings=READINGS * held_open,
        )
        self.observation = Observation(features, likelihood, batches, noise=0.1)
        if self.observation.counts:
            self.recipe = self.count_recipe
            self.checks = {"counts_left": ()}
        bent = decoder == "mlp" and not self.observation.counts
        held = bent or (self.sem.many and not self.observation.counts)
        if held:  # decoder, spread and equations of latents that stay
            self.recipe = replace(self.recipe, least_steps=800)
        if held and not bent:  # most of a chain is its search for an order
            self.recipe = replace(self.recipe, epochs=20, chains=2)
        # networks fit the rows that they are trained on by chance, and of counts the guide's own error differs by chain
        self.compares_bounds = decoder == "linear" and not self.observation.counts and objective == "likelihood"
        self.register_buffers(bound=torch.zeros(PARTS))
        mean = Residual(features, latents, hidden, 1) if bent else nn.Linear(features, latents)
        self.encoder = TrilEncoder(features, latents, hidden, "leaky_relu", mean, held=held)
        self.decoder = Decoder(latents, features, hidden, decoder == "linear")

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        equations = self.sem.story()  # targets, order, graph, and every equation, with their read-outs
        with self.rows(batch):
            own = self.sem.of_rows(equations, self.sem.acting(batch.env), batch.together)

            def equation(k: int, z: Tensor) -> Normal:
                loc = own.intercept[:, k] + (self.sem.link(z) * own.weight[:, :, k]).sum(-1)
                return Normal(loc, own.scale[:, k])

            z = self.along(equations.order.tolist(), equation, torch.zeros_like(own.scale))  # (rows, latent)
            eta = self.decoder(self.sem.seen(z, equations.weight))  # (rows, feature)
            pyro.sample("x", self.observation.likelihood(eta, batch).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        self.sem.prior()
        if self.observation.counts:  # or a rare gene's few molecules would set its slopes
            pyro.factor("loadings_prior", -0.5 * (self.decoder.loadings / self.config["slab"]).square().sum())
        paired = self.config["objective"] == "likelihood"
        counted = torch.ones_like(batch.env, dtype=torch.bool) if paired else batch.env == 0
        with self.rows(batch), pyro.poutine.mask(mask=counted):
            z = pyro.sample("z", self.sem.rows(batch.env))  # (rows, latent)
            likelihood = self.observation.likelihood(self.decoder(z), batch)  # (rows, feature)
            pyro.sample("x", likelihood.to_event(1), obs=batch.x)
        if not paired:
            pyro.factor("discrepancy", -self.config["discrepancy_weight"] * batch.total * self._discrepancy(z, batch))

    def guide(self, batch: Batch) -> None:
        counted = batch.env < (1 if self.config["objective"] == "mmd" else self.sem.environments)
        with self.rows(batch), pyro.poutine.mask(mask=counted):
            loc, tril = self.encoder(self.observation.inputs(batch))
            pyro.sample("z", MultivariateNormal(loc, scale_tril=tril))

    def _discrepancy(self, z: Tensor, batch: Batch) -> Tensor:
        """Sum over environments of MMD^2 between their rows and control rows put through their equations."""
        inputs = self.observation.inputs(batch)
        with torch.no_grad():
            width = torch.cdist(inputs, inputs).square().median()
        total = torch.zeros_like(z[0, 0])
        control = (batch.env == 0).to(z.dtype)
        for e in range(1, self.sem.environments):
            virtual = self.observation.mean(self.decoder(self.sem.moved(z, e)), batch)
            made = self.observation.inputs(replace(batch, x=virtual))
            own = (batch.env == e).to(z.dtype)
            total = total + mmd2(made, control, inputs, own, width)
        return total

    # -- read-outs ---------------------------------------------------------------------------------------------

    @property
    def reads_innovations(self) -> bool:
        return self.sem.absorbed

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        z = self.encoder(self.observation.inputs(batch))[0]
        return self.sem.innovations(z) if self.reads_innovations else z

    def log_evidence(self) -> Tensor | None:
        """(part,) the bound of the rows that were fitted: those kept out are too few to tell maxima apart."""
        return self.bound if self.compares_bounds and not self.fits_story else None

    def evidence_spread(self) -> float:
        return math.sqrt(self.config["features"] * self.config["latents"])

    def noise_of_equations(self, batch: Batch) -> map_likelihood.Noise | None:
        """None of counts, whose latents are shrunk by errors of their own, of escapees and of environments that vary,
        where noise is not normal, and of many latents, whose map takes minutes."""
        many = self.sem.many and not self.sem.absorbed
        if self.observation.counts or self.sem.escapees or self.sem.variation or many:
            return None
        found = map_likelihood.noise_left(self.encoder(self.observation.inputs(batch))[0], batch.env, self.sem)
        return found._replace(bent=isinstance(self.encoder.mean, Residual))

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Linear latents along the directions in which environments differ, bent where the decoder is a network."""
        batch = self.observation.start(data)
        x, bent = self.observation.inputs(batch), isinstance(self.encoder.mean, Residual)
        free, self.sem.free = self.sem.free, False  # latents start as those of equations
        # a network that bends what it is given would make more of a bootstrap's chance than chains need to differ
        every = torch.arange(len(x), device=x.device)
        # nor can an order of many latents spare the third of the rows that a bootstrap leaves out, nor a search for
        # directions, which takes a bootstrap of its own
        spared = (self.sem.many and not self.sem.absorbed) or (
            affine.searches_directions(self.sem) and not self.observation.counts
        )
        pick = every if bent or spared else affine.bootstrap(batch.env, self.sem.environments, generator)
        if self.observation.counts:
            start = count_factors(self.observation, batch, pick, self.sem, generator)
        else:
            check_rows(data, 2)
            start, residual = affine.gaussian_factors(x, batch.env, pick, self.sem, bent, generator)
        self.decoder.start(start.loadings, start.bias)
        self.encoder.start(start.unmixing, start.offset, start.tril)
        if isinstance(self.encoder.mean, Residual):
            affine.bend(x, batch.env, self.encoder.mean, self.decoder, self.sem, generator)
            residual = (x - self.decoder(self.encoder.mean(x))).var(0).clamp_min(1e-3)
        if not self.observation.counts:
            self.observation.raw_noise.copy_(0.5 * residual.log())
        self.sem.free = free

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """Encoder and decoder turned, and equations, and targets where they are unknown, of the turned latents; not of
        many latents, of which a start is a search for their order."""
        if self.sem.many:
            return False
        turn = turn.to(self.decoder.loadings)
        self.encoder.turn(turn)
        self.decoder.of_turned(turn)
        batch = data.tensors(turn.device, turn.dtype)
        free, self.sem.free = self.sem.free, False
        self.sem.start(self.encoder(self.observation.inputs(batch))[0], batch.env)
        self.sem.free = free
        return True

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Moments of the latents of all rows, from which graph, equations and targets are then drawn exactly.

        Targets are settled given the latents. The latents' own errors reach the equations by draws of the map to them,
        or else by counts that are tempered.
        """
        batch = data.tensors(self.observation.spread.device, self.observation.spread.dtype)
        loc, tril = self.encoder(self.observation.inputs(batch))
        if self.compares_bounds:
            self._bound_parts(batch, loc, tril)
        bent = isinstance(self.encoder.mean, Residual)
        drawn = loc if bent else MultivariateNormal(loc, scale_tril=tril).sample()
        self.sem.gather(drawn, batch.env)
        read = None
        if self.sem.readings and not self.sem.absorbed:
            read = map_likelihood.map_draws(loc, batch.env, self.sem, self.sem.readings, generator, drawn)
        if read is not None and self.sem.read(read, batch.env):
            return
        if bent:
            variance = tril.square().sum(-1)
            self.sem.temper(loc, variance, self.config["unmixed"], self.config["correlation_error"])
        else:
            self.sem.count.div_(self.config["unmixed"])
        self.sem.sample_orders(generator)

    @torch.no_grad()
    def _bound_parts(self, batch: Batch, loc: Tensor, tril: Tensor) -> None:
        """Keep the rows' parts of the ELBO, summed over every PARTS-th row, by the same few draws in all chains."""
        guide, bound = MultivariateNormal(loc, scale_tril=tril), torch.zeros(len(batch)).to(loc)
        with drawing(0):
            for _ in range(BOUND_DRAWS):
                z = guide.sample()
                told = self.observation.likelihood(self.decoder(z), batch).log_prob(batch.x).sum(-1)
                bound += (told + self.sem.rows(batch.env).log_prob(z) - guide.log_prob(z)) / BOUND_DRAWS
        part = torch.arange(len(batch), device=loc.device) % PARTS
        self.bound.zero_().index_add_(0, part, bound)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        options: dict[str, Any] = {"mixing": "linear", "features": 6, "intervention": "perfect"}
        data = draw("zhang2023", seed=seed, samples=300, latents=3, **options)
        return cls.from_data(data, targets="unknown", intervention="perfect", hidden=16), data

    studies = (
        *(Study("zhang2023", setting, UNKNOWN | options, identified=known) for setting, options, known in SIMULATED),
        ManyTargets("zhang2023", MANY | {"latents": 20}, {"targets": "unknown", "latents": 20}, 3, identified=False),
        Pairs("zhang2023", {"mixing": "linear", "pairs": [[0, 1], [0, 3], [2, 3]]}, UNKNOWN, identified=False),
        TwoModels("varici2024_linear", {"samples": 10_000}, {"intervention": "perfect", "mechanism": "linear"}),
        # the number of latents by replicates 1 and 2, then the score on the third
        *(
            PerturbationScreen(
                "papalexi2021",
                {"held_out": held_out, "replicates": [f"rep_{i + 1}" for i in range(count)], "latents": latents},
                SHIFTS | {"latents": latents},
                seeds=1,
                identified=False,
            )
            for latents, held_out, count in (
                *((latents, held_out, 2) for latents in (4, 6, 8) for held_out in ("rep_1", "rep_2")),
                (6, "rep_3", 3),
            )
        ),
    )


if __name__ == "__main__":
    run(DiscrepancyVAE)
