"""Linear causal disentanglement: a linear mixing of a linear Gaussian structural equation model under interventions.

    tangent: directions of the rows of the unmixing M, uniform lines              (latent, latent)
    target_e ~ Categorical(latents, none), where targets are not known            (env,)
    order ~ uniform;  graph[j, k] ~ Bernoulli(rho) if j precedes k                (latent,), (parent, child)
    variance s^2: p(s^2) = s^-3                                                   (mechanism,)
    slope w ~ N(0, s^2 G^-1), G the parents' covariance: Zellner's g-prior        (mechanism, latent)
    level a: flat                                                                 (mechanism,)
    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)               (data, latent)
    x_i = W z_i + offset + r_i,  W = the right inverse of M,
          r_i ~ N(0, tau^2) off the columns of W                                  (data, feature); counts: see below

A mechanism is an equation: the natural one of each latent, then one for each (env, target). An environment changes its
targets' equations (`intervention`): "perfect" drops the parents and has a level and variance of its own; "soft" a
regression of its own on the parents; "variance" keeps the slopes and has a level and variance of its own; "shift" a
level only. An environment may have several targets, and a latent several environments. Targets are known, known up to
relabelling, or unknown: then each environment but the first (control) has one or none, equally probable. A row of M has
no length of its own. What is improper is simulated by convention: variances 1, levels 0, G of the rows of the fit.

`model` keeps `tangent` alone; everything else is summed or integrated out in closed form: slopes, levels and variances
by conjugacy, graphs and orders by a dynamic program over subsets. The data enter through each environment's count, mean
and covariance, so ten million rows cost what ten thousand do. `recover` draws order, graph and equations exactly; every
graph is acyclic. Unknown targets are maximised together with M, and drawn by a Gibbs sweep given M.

Of more than 12 latents (up to 100; perfect interventions, targets told) graphs are too many to be summed over: `model`
keeps `order` and `graph` as well, and `guide` draws from a Gibbs sampler of M and graph that each chain begins with, a
sweep of which costs the fourth power of the latents (`exact.joint_sampling`). It starts from the theorem's
construction, the two solutions for each row told apart by invariance (`constructions.many_latents`). Chains that ended
in other graphs are the sign that it has not mixed; held-out rows weigh them, for nobody knows their evidence. Graphs
of so many latents are sparse a priori with an `edge_probability` of 2 / latents, say: at .5 there are many weak edges.

Under "variance" and "shift" x = W (I - w^T)^-1 eps, and W absorbs (I - w^T)^-1 whatever the graph: the likelihood knows
the innovations alone, eps + a = N x. So M is N there, `latents` are the innovations (the posterior mean of z), and
draws of graph and weights are the prior's (w[j, k] ~ N(0, s_k^2 / s_j^2)), z = (I - w^T)^-1 N x.

*Identified:* latents up to scale (and permutation, where targets are not known by name), the graph exactly, if every
latent is the one target of some perfect intervention and there is an observational environment. Soft interventions:
the graph up to its transitive closure; latents are mixed with their ancestors (not claimed). Variance, shift: neither.

Counts (likelihood="negative_binomial") are x_ij ~ NegativeBinomial(mean s_i exp(offset[batch_i, j] + (W z_i)_j), r_j):
W z is then a vector of log rates, and the moments are those of linear Gaussian latents behind the counts, fitted before
anything is asked of their equations (`count_moments`); an environment's rows count for as many as a row of counts tells
of its latents.

`escapees`: rows of an intervention may have missed it, `escaped` ~ Bernoulli per row; moments are then those of the
rows that did not (`pyrocrl.parts.escapees`), before anything is asked of their equations.

Squires, Seigal, Bhate & Uhler (2023), Linear causal disentanglement via interventions; Varici et al. (2024),
Score-based causal representation learning.

*Differs from the paper in* being a posterior: the theorem's construction (`initialise`: eigenvectors of the score
differences, in closed form) is only where a search over maxima starts (`directions.search`), each chain from a
bootstrap of the moments. Up to six latents the guide holds draws of M from its exact posterior, by annealed sequential
Monte Carlo from Laplace's approximations at all maxima found (`exact.annealed`); beyond that, draws of these
approximations by their evidence. Chains weigh as much as their evidence.

The file is long for its options: four kinds of interventions, unknown targets, counts and escaped rows each need words
and a line of the story.

*For a variant, copy this file and change* a line of `story`, another prior of slopes say, and delete `model` and
`recover`, with more epochs in `recipe`; or keep them and change `_objective` with it, the marginal likelihood that they
rest on.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Reference, Site, run
from pyrocrl.constructions import directions, many_latents
from pyrocrl.constructions.linear_rows import LinearRows
from pyrocrl.constructions.marginal_sem import MarginalSEM
from pyrocrl.dists import Law, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import linear_sem, orders
from pyrocrl.lab.studies import Study
from pyrocrl.lab.studies.latent_graphs import Bend, BesideExact, Escapees, FiniteSamples, ManyLatents
from pyrocrl.options import Bounds, Positive
from pyrocrl.parts.escapees import Prior
from pyrocrl.parts.latent_sem import SEMReadouts, table_of
from pyrocrl.program import (
    Batches,
    EdgeProbability,
    Environments,
    Features,
    Intervention,
    Latents,
    Likelihood,
    TargetMatrix,
    Targets,
    check_sizes,
    checked_targets,
)

GIVEN = ("noise is Gaussian", "mixing is linear and injective")
MOST = 100  # latents
# Acarturk et al. (2024), their code re-run: of 3 latents and of 5, by rows of an environment, share of graphs whose
# ancestors are all right, ancestors that are wrong, error of the encoder; means of 20 runs
RERUN = {
    3: {
        316: (0.25, 1.55, 0.085),
        1_000: (0.50, 0.85, 0.051),
        3_162: (0.35, 0.85, 0.033),
        10_000: (0.80, 0.30, 0.013),
        31_622: (0.90, 0.10, 0.008),
        100_000: (1.0, 0.0, 0.004),
    },
    5: {
        316: (0.0, 5.4, 0.17),
        1_000: (0.10, 4.15, 0.086),
        3_162: (0.15, 2.55, 0.049),
        10_000: (0.35, 1.30, 0.030),
        31_622: (0.90, 0.35, 0.017),
        100_000: (1.0, 0.0, 0.009),
    },
}
SEEDS = {3: (20, 20, 10, 1, 1, 1), 5: (10, 5, 2, 1, 1, 1)}  # of our studies of the same: most where answers differ
NEEDS = (
    "observational_environment",
    "one_intervention_per_latent",
    "separated_targets",
    "more_features_than_latents",
)
OTHERS = {"intervention": ("perfect", "variance", "shift")}


class LinearSEMLin(MarginalSEM, LinearRows, Program):
    card = ModelCard(
        name="linear_sem_lin",
        title="Linear causal disentanglement",
        family="interventions",
        summary="Linear Gaussian causal latents, mixed linearly, with an intervention on each: which latents, "
        "which graph, how strong, and how sure.",
        when=(
            "the mixing is linear, or the logarithm of a count's rate is linear, every latent has an intervention, "
            "and graph, weights and their uncertainty are wanted in seconds",
            "the mixing is nonlinear, or interventions are shifts or changes of variance and the graph is wanted: "
            "such data do not hold it",
        ),
        assumes=(
            "x = W z",
            "z follows a linear Gaussian structural equation model without cycles",
            "an intervention changes the equations of its targets alone",
        ),
        claims=(
            Claim("latents", ("permutation", "scale"), GIVEN, (*NEEDS, "perfect_interventions"), OTHERS),
            Claim("graph", ("permutation",), GIVEN, (*NEEDS, "perfect_interventions"), OTHERS),
            Claim(
                "graph",
                ("permutation", "transitive closure"),
                (*GIVEN, "soft interventions change every weight into their target"),
                (*NEEDS, "nonlinear_or_replaced"),
                {"intervention": "soft"},
            ),
        ),
        references=(
            Reference(
                "Squires, Seigal, Bhate & Uhler",
                2023,
                "Linear causal disentanglement via interventions",
                "ICML",
                "https://arxiv.org/abs/2211.16467",
            ),
            Reference(
                "Varici, Acarturk, Shanmugam, Kumar & Tajer",
                2024,
                "Score-based causal representation learning: linear and general transformations",
                "arXiv",
                "https://arxiv.org/abs/2402.00849",
            ),
            Reference(
                "Acarturk, Varici, Shanmugam & Tajer",
                2024,
                "Sample complexity of interventional causal representation learning",
                "NeurIPS",
                "https://nips.cc/virtual/2024/poster/94775",
            ),
        ),
        differs=(
            "a posterior over mixing, graph and weights in place of a threshold on matrix ranks",
            "several targets per environment and several environments per target are allowed",
            "soft, variance and shift interventions; targets may be unknown",
            "x may be counts, of log rates W z; rows may have escaped their intervention",
        ),
        likelihoods=("gaussian", "negative_binomial"),
        settings=(
            "squires2023_hard",
            "squires2023_sparse",
            "squires2023_soft",
            "varici2024_linear",
            "acarturk2024",
            "buchholz2024",
        ),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled", "unknown"),
        approximate="Exact for Gaussian features and known targets. Of counts the moments behind them are fitted "
        "first, rows' latents by Laplace's method; so are shares of escaped rows; unknown targets are maximised with "
        "the unmixing. More than 12 latents are sampled, with the graph.",
    )
    counted = "evidence"
    recipe = MarginalSEM.recipe
    checks = {"moments": (), "gaussian": GIVEN, "factors": ()}
    sites = {
        **SEMReadouts.sites,
        "unmixing": Site(("latent", "feature"), {"latent": 1}, unit=-1),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, MOST)],
        target_matrix: TargetMatrix | None = None,
        targets: Targets = "known",
        intervention: Intervention = "perfect",
        edge_probability: EdgeProbability = 0.5,
        environments: Environments | None = None,
        incomplete: bool = False,
        likelihood: Likelihood = "gaussian",
        batches: Batches = 1,
        escapees: bool = False,
        escape_alpha: Positive = 1.0,
        escape_beta: Positive = 3.0,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, which latents each environment intervenes on.

        environments: how many there are, where targets are unknown (target_matrix is left out); the first is control.
        incomplete: whether latents that no environment targets are let through, though nothing can be claimed then.
        edge_probability: of many latents better 2 / latents, that is two neighbours each, than one half.
        batches: technical batches, each with its own offsets of log rates; of counts alone. escapees: whether rows may
        have escaped their intervention; escape_alpha, escape_beta: of the Beta prior of the share that did.

        Raises InputError for more than 100 latents, or 12 where interventions are not perfect or targets unknown, a
        latent that no environment targets (for unknown targets: fewer environments than that needs), or none
        observational.
        """
        super().__init__()
        check_sizes(features, latents)
        unknown = targets == "unknown"
        if latents > orders.MAX_NODES and (unknown or intervention != "perfect"):
            other = "targets='unknown'" if unknown else f"intervention={intervention!r}"
            reject(
                "latents", f"{latents} with {other}", f"at most {orders.MAX_NODES}: sums over graphs are exact there"
            )
        if unknown and (environments is None or environments < latents + 1):
            reject("environments", environments, f"{latents + 1} or more, for {latents} latents of unknown targets")
        target = np.zeros((environments or 0, latents), dtype=np.int64)
        if not unknown:
            target = checked_targets(target_matrix, latents, least=0 if incomplete else 1)
        self.hold_moments(target, unknown)
        self.hold_rows(features, likelihood, batches, escapees, Prior(escape_alpha, escape_beta))

    # -- the story, what is fitted, and the way back -----------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d = self.config["latents"]
        tangent = pyro.sample("tangent", directions.Directions(self.project, d))  # (latent (latent - 1),)
        targets = self.target.double()  # (env, latent)
        if self.unknown:
            with pyro.plate("env", len(targets), dim=-1):
                targets = self._hot(pyro.sample("target", self._any_target()))  # (env,)
        table = self._slices(targets)
        if self.many:
            order, graph = self._any_order(targets)
        else:
            prior = orders.log_edge_prior(d, self.config["edge_probability"], targets.device)
            order = pyro.sample("order", orders.Order(prior))  # (latent,)
            graph = pyro.sample("graph", orders.Graph(prior, order))  # (parent, child)
        unmixing = self._unmixing(tangent)  # M (latent, latent)
        known = linear_sem.conjugate(unmixing, graph, table, self.intervention_kind)
        # the natural equations, then one for each (env, target); of unknown targets those that are
        with table_of(len(table.node), drawn=self.unknown), pyro.poutine.mask(mask=table.count > 0):
            variance = pyro.sample("variance", known.prior_variance())
            slope = pyro.sample("slope", known.prior_slopes(variance))  # (mechanism, latent)
            level = pyro.sample("level", known.prior_level(variance))
        equations = self._equations(known.mechanisms(variance, slope, level), targets)
        unmixing = self._to_latents(unmixing, equations.weight[0])
        pyro.deterministic("unmixing", unmixing @ self.project.double())  # (latent, feature)
        pyro.deterministic("loadings", self.lift.double() @ torch.linalg.inv(unmixing))  # (feature, latent)
        told_z = None if batch.x is None or self.counts else self.y_of(batch) @ unmixing.mT
        with self.rows(batch):
            env = batch.env
            if self.may_escape:
                env = torch.where(pyro.sample("escaped", dist.Bernoulli(self.share[env])) > 0.5, self.control, env)
            own = linear_sem.of_rows(equations, targets, env, batch.together, self.control)

            def equation(k: int, z: Tensor) -> Normal:
                return Normal(own.intercept[:, k] + (z * own.weight[:, :, k]).sum(-1), own.scale[:, k])

            z = self.along(order.tolist(), equation, torch.zeros_like(own.scale), told_z)  # (rows, latent)
            pyro.sample("x", self.mixed(z, unmixing, batch), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        tangent = pyro.sample("tangent", directions.Directions(self.project, self.config["latents"]))
        unmixing = self._unmixing(tangent)
        graph = self._any_order(tangent.double())[1] if self.many else None

        def log_prob(_: Tensor) -> Tensor:
            return self._objective(unmixing) if graph is None else self._given_graph(unmixing, graph)

        law = Law((), (len(batch), self.config["features"]), log_prob)
        pyro.sample("x", law, obs=batch.x)  # all rows at once, through their moments

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        unmixing, targets = self._unmixing(kept["tangent"]), self.target.double()
        if self.unknown:
            found = self._reassigned(unmixing, torch.rand_like(targets[:, 0]))[0]
            found = torch.where(found.sum(1) > 0, found.argmax(1), self.config["latents"])
            with pyro.plate("env", len(targets), dim=-1):
                targets = self._hot(pyro.sample("target", dist.Delta(found)))
        table = self._slices(targets)
        if self.many:
            graph = kept["graph"]
        else:
            scores = self._scores(unmixing, table)
            order = pyro.sample("order", orders.Order(scores))
            graph = pyro.sample("graph", orders.Graph(scores, order))
        known = linear_sem.conjugate(unmixing, graph, table, self.intervention_kind)
        with table_of(len(table.node), drawn=self.unknown), pyro.poutine.mask(mask=table.count > 0):
            variance = pyro.sample("variance", known.variance())
            slope = pyro.sample("slope", known.slopes(variance))
            level = pyro.sample("level", known.level(slope, variance))
        if self.counts or self.may_escape:  # otherwise x determines z
            weight = known.mechanisms(variance, slope, level).weight[: len(unmixing)].mT  # (parent, child)
            self.recover_rows(batch, self._to_latents(unmixing, weight))

    def _objective(self, rows: Tensor, target: Tensor | None = None, share: float = 1.0) -> Tensor:
        """log p(x | rows of the unmixing, targets), everything else summed out, as if of a share of the rows."""
        total = share * self.count.double().sum()
        return self._log_marginal(rows, target, share) + total * self.log_jacobian + share * self.residual

    def _given_graph(self, rows: Tensor, graph: Tensor) -> Tensor:
        """log p(x | rows of the unmixing, graph), equations integrated out."""
        total = self.count.double().sum()
        inside = linear_sem.log_marginal_given_graph(rows.double(), graph, self._slices(), total)
        return inside + total * self.log_jacobian + self.residual

    def _any_target(self) -> dist.Categorical:
        """Every latent and none are equally probable, but in the first environment: none."""
        envs, d = self.target.shape
        logits = self.target.new_zeros(envs, d + 1, dtype=torch.float64)
        logits[0, :d] = -torch.inf
        return dist.Categorical(logits=logits)

    def _reassigned(self, unmixing: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(env, latent) targets given M, drawn by a Gibbs sweep where unknown, and their probability."""
        if not self.unknown:
            return super()._reassigned(unmixing, uniform)
        return directions.reassigned(lambda t: self._objective(unmixing, t), self.target.double(), uniform)

    def _to_latents(self, unmixing: Tensor, weight: Tensor) -> Tensor:
        """The unmixing to z: where interventions keep equations, of these weights (parent, child), M gives eps."""
        if not self.reads_innovations:
            return unmixing
        return torch.linalg.solve(torch.eye(len(weight)).to(weight) - weight.mT, unmixing)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        rows = self._rows().to(self.project)
        if not self.counts:
            return batch.x @ (rows @ self.project).mT
        own, natural, escaped = self.y_given_x(batch)
        return own.loc.lerp(natural.loc, escaped[:, None]) @ rows.mT

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        """(env, latent) probabilities that an environment intervenes on a latent; 0 and 1 where targets are known."""
        return self._averaged()[1] if self.unknown else self.target

    def log_evidence(self) -> Tensor | None:
        return None if self.many or self.fits_story else self.log_density

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | M, weights, noise): a density of all features, given a draw of the global sites."""
        unmixing, equations = self._of_draw(batch, sites)
        return self.rows_log_prob(batch, self._to_latents(unmixing, equations.weight[0]), equations)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Gather the moments, then the theorem's construction on a bootstrap of them, then a search over maxima."""
        self._begin(data)
        if self.many:
            return self._sample(generator)
        own = self._environments(), self.config["intervention"], self.unknown
        modes, target = directions.search_targets(self._objective, *own, generator)
        self.target.copy_(target)
        self._laplace(modes)
        self._start_apart(generator)

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Eigenvectors of the score differences, those of the two signs that fit best, and nothing optimised."""
        self._begin(data)
        if self.many:
            return self._keep(
                many_latents.constructed(self._environments(), self._slices(), len(self.drawn), generator)
            )
        candidates = directions.candidate_rows(self._environments(), generator, self.config["intervention"])
        self.chart.copy_(directions.chart_at(directions.choose_rows(candidates, self._objective, 0, generator)[0]))
        block = self.guide_block
        block.set(torch.zeros_like(block.loc), 1e-6 * torch.eye(len(block.loc), dtype=block.loc.dtype))

    def _begin(self, data: Data) -> None:
        """Moments of y and, where they are unknown, a first guess of the targets."""
        self.gather(data)
        if self.unknown:
            self.target.copy_(directions.cluster_targets(self._environments(), self.config["intervention"]))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("squires2023_hard", seed=seed, samples=500, latents=3, features=6)
        return cls.from_data(data), data

    # samples: twice the rows of the published sizes, for one half is fitted
    studies = (
        *(Study("squires2023_hard", {"samples": 2 * n}, seeds=42) for n in (500, 1_000, 2_500, 10_000)),
        *(Study("varici2024_linear", {"samples": 2 * n}, seeds=12) for n in (5_000, 10_000, 50_000)),
        *(
            FiniteSamples("acarturk2024", {"latents": k, "samples": 2 * n}, seeds=seeds, reference=reached)
            for k, curve in RERUN.items()
            for (n, reached), seeds in zip(curve.items(), SEEDS[k], strict=True)
        ),
        *(
            Bend("buchholz2024", {"bend": bend, "samples": 2_000}, seeds=3, identified=not bend)
            for bend in (0.0, 0.1, 0.3, 1.0)
        ),
        *(
            ManyLatents("squires2023_sparse", {"latents": k, "samples": n}, {"edge_probability": 2 / k}, seeds, 1 / 21)
            for k, n, seeds in (
                (20, 2_100, 8),
                (20, 10_500, 8),
                (5, 2_100, 8),
                (5, 10_500, 8),
                (50, 2_100, 3),
                (50, 10_500, 3),
            )
        ),
        Study("squires2023_soft", {"samples": 20_000}, {"intervention": "soft"}, identified=False),
        Study("perturb_seq", {"rows": 6000}),
        *(
            BesideExact("squires2023_hard", {"samples": 2 * n, "latents": 2, "features": 4}, seeds=seeds)
            for n, seeds in ((100, 16), (300, 3))
        ),
        Escapees("perturb_seq", {"rows": 6000, "escapees": 0.25}, {"escapees": True}),
    )


if __name__ == "__main__":
    run(LinearSEMLin)
