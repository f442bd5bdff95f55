"""Score-based causal representation learning: latents from differences of scores between hard interventions.

    order ~ uniform, graph[j, k] ~ Bernoulli(rho) if j precedes k                   (parent, child)
    linear: unmixing M, M_kj ~ N(0, 1), z_i = M y_i, y the white projection of x    (latent, latent)
    z_i,k = m_k(z_i,parents) + s_k(z_i,parents) e_i,k,  e_k ~ a mixture of normals  (data, latent)
    or, in an environment that targets k, z_i,k ~ a mixture of normals of its own
    linear:   x_i = G z_i + r_i, r_i ~ N(0, tau^2) off the columns of G             (data, feature)
    general:  x_i ~ N(f(z_i), diag sigma^2),  f linear plus a network               (data, feature)

m_k and log s_k are networks, trained with a weak prior (`equations_prior`), as are the mixtures. `model` plugs in
the chain's order and the graph in which every earlier latent is a parent (`plugged`). The guide is normal about M
(linear; x then determines z), or q(z | x) = N(h(x), diag t(x)^2) (general). `recover` draws order and graph by the
evidence of regressions, see below.

`construct`, linear (LSCALE-I): scores are estimated in every environment (`score`: "gaussian", "stein" or "sliced", see
`pyrocrl.constructions.score_differences`); the leading eigenvector of the second moments of the score difference of
target k mixes the row of k with those of its parents; independence in k's environments takes the parents out. General
(GSCALE-I): the log-odds between two hard interventions on one latent are a function of it alone, and their gradients,
the score differences, are diagonal; h is trained so that a classifier of each pair needs h_k alone, and x can be
decoded from h.

`initialise` searches the order of the latents and a first M by a Gaussian likelihood; then everything but h is trained
by the evidence lower bound. Graphs are then drawn exactly from the evidence of regressions of each latent on functions
of earlier ones. There is no threshold: the error of the unmixing, the sampling error of the regressions and, for the
general transform, the dispersion of what should be independent are in the covariance of the coefficients
(`pyrocrl.exact.basis_regression`).

*Identified:* linear: latents up to scale and shift (and permutation, where targets are known up to relabelling only)
and the graph exactly, from one hard intervention on each latent. General: latents up to a function of each and the
graph exactly, from two hard interventions of different laws on each latent. Both need an observational environment.

Varici, Acarturk, Shanmugam, Kumar & Tajer (2024), Score-based causal representation learning: linear and general
transformations.

*Differs from the paper in* a likelihood that refines the construction, an order found by it, and a posterior of graphs
in place of a threshold on score differences.

Longer than other models because it is the paper's two transforms, each with a mixing, a guide and a construction.

*For a variant, copy this file and change* `law`: how a latent follows from its parents (`NetworkSEM`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pyro
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import score_differences, subspaces
from pyrocrl.constructions.hard_interventions import Unmixing, from_scores
from pyrocrl.dists import Law, Normal
from pyrocrl.exact import orders
from pyrocrl.lab.studies import Study
from pyrocrl.lab.studies.latent_graphs import TwoModels
from pyrocrl.options import Bounds, Size
from pyrocrl.parts.guides import NormalBlock
from pyrocrl.parts.mixing import LinearMixing
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.network_sem import NetworkSEM
from pyrocrl.parts.observation import Observation
from pyrocrl.program import (
    EdgeProbability,
    Features,
    Latents,
    TargetMatrix,
    ToldTargets,
    check_rows,
    check_sizes,
    checked_targets,
)

Transform = Literal["linear", "general"]
GIVEN = ("interventions are hard", "mixing is injective")
BOTH = ("observational_environment", "single_targets", "more_features_than_latents", "perfect_interventions")
NEEDS, TWICE = (*BOTH, "one_intervention_per_latent"), (*BOTH, "two_interventions_per_latent")
LINEAR, GENERAL = {"transform": "linear"}, {"transform": "general"}
FLOOR = 1e-8  # least residual variance, as a share of the largest variance: data may have exactly rank `latents`
FIRST_SPREAD = 0.1  # of q(z | x), in deviations of z
NOISE = 0.02  # least deviation of q(z | x) and of x


class ScoreCRL(Program):
    card = ModelCard(
        name="score_crl",
        title="Score-based causal representation learning",
        family="interventions",
        summary="Nonlinear causal latents behind a linear mixing, or behind any with two hard interventions on each: "
        "which latents, which graph, and how sure.",
        when=(
            "equations between latents are nonlinear and the mixing is linear, with a hard intervention on each "
            "latent, or the mixing is any and there are two on each",
            "interventions are soft, targets are unknown, features are counts, or equations and mixing are linear: "
            "`linear_sem_lin` is then exact and faster",
        ),
        assumes=(
            "x is an injective function of latents",
            "a latent's parents act on its location and scale, without cycles",
            GIVEN[0],
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), (*GIVEN, "mixing is linear"), NEEDS, LINEAR),
            Claim("graph", ("permutation",), (*GIVEN, "mixing is linear"), NEEDS, LINEAR),
            Claim("latents", ("permutation", "elementwise"), GIVEN, TWICE, GENERAL),
            Claim("graph", ("permutation",), GIVEN, TWICE, GENERAL),
        ),
        references=(
            Reference(
                "Varici, Acarturk, Shanmugam, Kumar & Tajer",
                2024,
                "Score-based causal representation learning: linear and general transformations",
                "arXiv",
                "https://arxiv.org/abs/2402.00849",
            ),
        ),
        differs=(
            "a likelihood refines the construction from score differences",
            "the order of the latents is found by likelihood",
            "a posterior of graphs that carries the error of the latents, in place of a threshold on scores",
        ),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled"),
        approximate="The equations' networks are trained with every latent that is earlier in the chain's order as a "
        "parent; graphs are drawn from the evidence of regressions of latents on fixed functions of others.",
    )
    counted = "targets"
    recipe = Recipe.unannealed(
        epochs=40, least_steps=1500, batch_size=1024, lr=1e-2, held_out=0.05, check_every=2, patience=None, chains=4
    )
    new_rows = True
    knows_interventions = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "graph": Site(("parent", "child"), discrete=True),
        "unmixing": Site(("latent", "direction"), {"latent": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, orders.MAX_NODES)],
        target_matrix: TargetMatrix,
        targets: ToldTargets = "known",
        transform: Transform = "linear",
        score: score_differences.Estimator = "stein",
        edge_probability: EdgeProbability = 0.5,
        width: Size = 64,
        steps: Size = 600,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}. transform: from x back to the latents. score: the estimator of the
        linear transform's construction. width, steps: of networks' layers and of the encoder's construction (general
        transform).

        Raises InputError for more than 12 latents, a latent that no environment targets (two, for the general
        transform), or none observational.
        """
        super().__init__()
        check_sizes(features, latents)
        matrix = checked_targets(target_matrix, latents, least=1 if transform == "linear" else 2)
        self.general = transform == "general"
        if not self.general:
            self.checks = {"factors": ()}
        self.mechanisms = NetworkSEM(latents, matrix.tolist())
        if self.general:
            self.observation = Observation(features, noise=0.1)
            self.encoder = Residual(features, latents, width).requires_grad_(False)
            self.spread = Residual(features, latents, width, layers=1)
            self.decoder = Residual(latents, features, width)
            self.register_buffers(centre=torch.zeros(latents), unit=torch.ones(latents))  # of h: mean and deviation
        else:
            self.block = NormalBlock(latents, latents, scale=0.01)
            project, lift = torch.eye(latents, features), torch.eye(features, latents)
            self.register_buffers(project=project, lift=lift, offset=torch.zeros(features))
            self.register_buffers(tau=torch.ones(()), log_jacobian=torch.zeros(()))

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, sem = self.config["latents"], self.mechanisms
        pyro.factor("equations_prior", sem.prior())
        prior = orders.log_edge_prior(d, self.config["edge_probability"], sem.before.device)
        order = pyro.sample("order", orders.Order(prior))  # (latent,)
        graph = pyro.sample("graph", orders.Graph(prior, order))  # (parent, child)
        told = None
        if not self.general:
            zero = torch.zeros_like(self.block.loc)
            with pyro.plate("latent", d, dim=-1):
                matrix = pyro.sample("unmixing", Normal(zero, torch.ones_like(zero)).to_event(1))  # (latent, latent)
            told = None if batch.x is None else self._white(batch.x) @ matrix.mT
        with self.rows(batch):
            hit, env = sem.acting(batch.env, batch.together)  # (rows, latent)

            def law(k: int, z: Tensor) -> Any:
                return sem.law(k, z, graph, hit[:, k], env[:, k])

            z = self.along(order.tolist(), law, sem.before.new_zeros(len(batch), d), told)  # (rows, latent)
            if self.general:
                mixed = self.observation.likelihood(self.decoder(z), batch).to_event(1)
            else:
                mixed = LinearMixing(z, matrix, self.project, self.lift, self.offset, self.tau, self.log_jacobian)
            pyro.sample("x", mixed, obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        pyro.factor("equations_prior", self.mechanisms.prior())
        if self.general:
            with self.rows(batch):
                z = pyro.sample("z", self._prior(batch.env))  # (rows, latent)
                likelihood = self.observation.likelihood(self.decoder(z), batch)  # (rows, feature)
                pyro.sample("x", likelihood.to_event(1), obs=batch.x)
            return
        zero = torch.zeros_like(self.block.loc)
        matrix = pyro.sample("unmixing", Normal(zero, torch.ones_like(zero)).to_event(2))  # (latent, latent)
        with self.rows(batch):
            pyro.sample("x", self._linear(matrix, batch.env), obs=batch.x)

    @torch.no_grad()
    def plugged(self, batch: Batch) -> dict[str, Tensor]:
        before = self.mechanisms.before
        return {"order": before.sum(0).argsort(), "graph": before}

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        order = pyro.sample("order", orders.Order(self.mechanisms.table))
        pyro.sample("graph", orders.Graph(self.mechanisms.table, order))

    def guide(self, batch: Batch) -> None:
        if self.general:
            with self.rows(batch):
                pyro.sample("z", self._posterior(batch).to_event(1))
        else:
            pyro.sample("unmixing", self.block().to_event(2))

    def _prior(self, env: Tensor) -> Law:
        """p(z | env) of rows."""
        own = self.mechanisms
        return Law(env.shape, own.target.shape[1:], lambda z: own.log_prob(z, env))

    def _linear(self, matrix: Tensor, env: Tensor) -> Law:
        """p(x | M, env) of rows."""
        features, latents = self.config["features"], self.config["latents"]

        def log_prob(x: Tensor) -> Tensor:
            y = self._white(x)
            inside = self.mechanisms.log_prob(y @ matrix.mT, env)
            apart = (x - self.offset - y @ self.lift.mT) / self.tau
            free = (features - latents) * (self.tau.log() + 0.5 * math.log(2 * math.pi))
            jacobian = torch.linalg.slogdet(matrix).logabsdet + self.log_jacobian
            return inside - 0.5 * apart.square().sum(-1) - free + jacobian

        return Law(env.shape, (features,), log_prob)

    def _white(self, x: Tensor, double: bool = False) -> Tensor:
        """(rows, latent) y, white over the observational rows."""
        project, offset = (v.double() if double else v for v in (self.project, self.offset))
        return (x - offset) @ project.mT

    def _posterior(self, batch: Batch) -> Normal:
        spread = softplus(self.spread(self.observation.inputs(batch))) + NOISE
        return Normal(self.latents(batch), spread)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        if self.general:
            return (self.encoder(self.observation.inputs(batch)) - self.centre) / self.unit
        return self._white(batch.x) @ self.block.loc.mT

    @torch.no_grad()
    def graph(self) -> Tensor:
        return self.mechanisms.graph()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor | None:
        """Linear: (rows,) log p(x_i | M), of the equations as trained."""
        if self.general:
            return None
        return self._linear(sites["unmixing"], batch.env).log_prob(batch.x)

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """The theorem's construction alone: see the head of this file. Raises InputError for environments of fewer rows
        than three a latent."""
        self._construct(data, generator, search=False)

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction, the order of most likelihood, and first equations by least squares."""
        self._construct(data, generator, search=True)

    def _construct(self, data: Data, generator: torch.Generator, search: bool) -> None:
        check_rows(data, 3 * self.config["latents"])
        batch = data.tensors(dtype=torch.float64)
        target = self.mechanisms.target.double()
        if self.general:
            self._train_encoder(data, generator)
            z = self.latents(data.tensors(dtype=self.centre.dtype)).double()
            unmixing = Unmixing(z, batch.env, target, generator)
            matrix, before = unmixing.search(torch.eye(z.shape[1]).to(z), generator, mixed=False)
        else:
            natural = (target.sum(1) == 0)[batch.env]
            self.put(**subspaces.frame(batch.x, natural, self.config["latents"], FLOOR)._asdict())
            y = self._white(batch.x, double=True)
            matrix, before = from_scores(y, batch.env, target, self.config["score"], search, generator)
            z = y @ matrix.mT
            self.block.loc.copy_(matrix)
        self.mechanisms.start(z, batch.env, before)
        self.finish(data, generator)

    def _train_encoder(self, data: Data, generator: torch.Generator) -> None:
        batch = self.observation.start(data)
        x, target = self.observation.inputs(batch), self.mechanisms.target
        width, steps = self.config["width"], self.config["steps"]
        encoder, decoder = score_differences.encoder(x, batch.env, target, width, steps, generator)
        self.encoder.load_state_dict(encoder.state_dict())
        self.decoder.load_state_dict(decoder.state_dict())
        h = self.encoder(x)
        natural = h[(target.sum(1) == 0)[batch.env]]
        self.put(centre=natural.mean(0), unit=natural.std(0))
        self.spread.constant(math.log(math.expm1(FIRST_SPREAD)))

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """A linear transform turned, and first equations of its latents in the chain's order."""
        if self.general:
            return False
        self.block.loc.copy_(turn.to(self.block.loc).mT @ self.block.loc)
        batch = data.tensors(self.block.loc.device, self.block.loc.dtype)
        self.mechanisms.start(self.latents(batch), batch.env, self.mechanisms.before.clone())
        return True

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Scores of parent sets given the latents of all rows, from which graphs are drawn exactly."""
        batch = data.tensors(self.mechanisms.before.device, self.mechanisms.before.dtype)
        z = self.latents(batch).double()
        unmixing = Unmixing(z, batch.env, self.mechanisms.target.double(), generator)
        before = self.mechanisms.before.double()
        matrix = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        if not self.general:  # what training left of earlier latents has an error that is known once it is taken out
            matrix = unmixing.cut(matrix, tuple(before.sum(0).argsort().tolist()))
        found = unmixing.posterior(matrix, before, dispersed=self.general)
        self.mechanisms.gather(found, self.config["edge_probability"])

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("varici2024_quadratic", seed=seed, samples=1000, latents=3, features=6)
        return cls.from_data(data), data

    studies = (
        Study("varici2024_quadratic", {"samples": 20_000}),
        Study("varici2024_general", {"samples": 10_000}, {"transform": "general"}),
        TwoModels("varici2024_linear", {"samples": 10_000}),
    )


if __name__ == "__main__":
    run(ScoreCRL)
