"""Linear causal disentanglement: a linear mixing of a linear Gaussian structural equation model under interventions.

    order ~ uniform, edge[j, k] ~ Bernoulli(rho) if j precedes k            (parent, child)
    w[j, k] ~ edge * slab  (Zellner's g-prior, unit information)             (parent, child)
    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)          (data, latent)
    x_i = W z_i + offset + r_i,  r_i ~ N(0, tau^2) off the columns of W      (data, feature); counts: see below

An environment that intervenes on k changes its equation (`intervention`): "perfect" drops k's parents and gives k a
mean and variance of its own (environment, latent); "soft" gives k a regression of its own on its parents; "variance"
keeps the weights and gives eps_k a mean and variance of its own; "shift" a mean only. An environment may have several
targets, and a latent several environments. Targets are known, known up to relabelling, or unknown: then each
environment but the first (control) has one or none, a Categorical of equal probabilities. Noise and intercepts have
the scale-free prior p(a, s^2) = s^-3.

The one latent site is `tangent`, the directions of the rows of the unmixing M, z = M x; a row's length is not
identified and is set so that z_k has variance 1 over the observational rows. Given M everything else is summed or
integrated out in closed form: weights, intercepts and noise by conjugacy, graphs and orders by a dynamic program over
subsets. The data enter through each environment's count, mean and covariance, so ten million rows cost what ten
thousand do. Draws of order, graph, weights and noise given M are exact and every graph is acyclic. Unknown targets are
maximised together with M, and drawn by a Gibbs sweep given M.

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

`escapees`: rows of an intervention may have missed it, a Bernoulli per row; moments are then those of the rows that did
not (`pyrocrl.parts.escapees`), before anything is asked of their equations.

Squires, Seigal, Bhate & Uhler (2023), Linear causal disentanglement via interventions; Varici et al. (2024),
Score-based causal representation learning.

*Differs from the paper in* being a posterior: the theorem's construction (`initialise`: eigenvectors of the score
differences, in closed form) is only where a search over maxima starts (`directions.search`); the guide is the Laplace
approximation at one. Each chain starts from a bootstrap of the moments; among the maxima it finds it takes one with the
probability of that maximum's evidence.

*For a variant, copy this file and change* `_objective`: another prior of graphs, or of what an intervention does.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import directions
from pyrocrl.constructions.count_moments import RowPosterior, count_moments, row_posterior
from pyrocrl.data import CUSTOMARY_CONTROLS
from pyrocrl.dists import Law, MultivariateNormal
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.exact import linear_sem, orders
from pyrocrl.parts import escapees
from pyrocrl.parts.guides import FullNormalBlock
from pyrocrl.parts.latent_sem import SEMReadouts
from pyrocrl.parts.observation import LIKELIHOODS, Observation
from pyrocrl.program import check_sizes, checked_targets

GIVEN = ("noise is Gaussian", "mixing is linear and injective")
SOFT = "soft interventions change every weight into their target"
NEEDS = (
    "observational_environment",
    "one_intervention_per_latent",
    "separated_targets",
    "more_features_than_latents",
)
RIVALS = 4  # further starts beside the best one; a single one above 8 latents, where each takes seconds
ENOUGH = 600  # rows an environment, on average, on a share of which the search begins
KEEP = 4  # maxima between which a chain chooses by their evidence
DRAWS = 64  # of the unmixing, for edge probabilities
FLOOR = 1e-12  # least residual variance, as a share of the variance: data may have exactly rank `latents`


class LinearSEMLin(Program):
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
            Claim("latents", ("permutation", "scale"), GIVEN, (*NEEDS, "perfect_interventions")),
            Claim("graph", ("permutation",), GIVEN, (*NEEDS, "perfect_interventions")),
            Claim("graph", ("permutation", "transitive closure"), (*GIVEN, SOFT), (*NEEDS, "nonlinear_or_replaced")),
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
        ),
        differs=(
            "a posterior over mixing, graph and weights in place of a threshold on matrix ranks",
            "several targets per environment and several environments per target are allowed",
            "soft, variance and shift interventions; targets may be unknown",
            "x may be counts, of log rates W z; rows may have escaped their intervention",
        ),
        likelihoods=("gaussian", "negative_binomial"),
        settings=("squires2023_hard", "squires2023_soft", "varici2024_linear"),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled", "unknown"),
    )
    # the second-order start and finish leave nothing to stochastic steps: one epoch is one step
    recipe = Recipe(
        epochs=1,
        batch_size=None,
        lr=1e-3,
        kl_warmup=0.0,
        temperature_span=0.0,
        held_out=0.05,
        chains=4,
        dtype=torch.float64,
    )
    uses_rows = False
    sites = {
        **SEMReadouts.sites,
        "unmixing": Site(("latent", "feature"), {"latent": 1}),
        "loadings": Site(("feature", "latent"), {"latent": -1}),
    }

    def __init__(
        self,
        features: int,
        latents: int,
        target_matrix: list[list[int]] | None = None,
        targets: Literal["known", "relabelled", "unknown"] = "known",
        intervention: linear_sem.Intervention = "perfect",
        edge_probability: float = 0.5,
        environments: int | None = None,
        incomplete: bool = False,
        likelihood: Literal["gaussian", "negative_binomial"] = "gaussian",
        batches: int = 1,
        escapees: bool = False,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, which latents each environment intervenes on.

        environments: how many there are, where targets are unknown (target_matrix is left out); the first is control.
        incomplete: whether latents that no environment targets are let through, though nothing can be claimed then.
        batches: technical batches, each with its own offsets of log rates; of counts alone. escapees: whether rows may
        have escaped their intervention.

        Raises InputError for more than 12 latents, a latent that no environment targets (for unknown targets: fewer
        environments than that needs), or none observational.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        if latents > orders.MAX_NODES:
            reject("latents", latents, f"2 to {orders.MAX_NODES}: sums over graphs are exact")
        one_of("targets", targets, ("known", "relabelled", "unknown"))
        one_of("intervention", intervention, get_args(linear_sem.Intervention))
        if not 0 < edge_probability < 1:
            reject("edge_probability", edge_probability, "a number strictly between 0 and 1")
        one_of("likelihood", likelihood, LIKELIHOODS)
        self.counts = likelihood == "negative_binomial"
        self.unknown = targets == "unknown"
        if self.unknown:
            if environments is None or environments < latents + 1:
                reject("environments", environments, f"{latents + 1} or more, for {latents} latents of unknown targets")
            target = np.zeros((environments, latents), dtype=np.int64)
            self.pairs = [(e, k) for e in range(1, environments) for k in range(latents)]
        else:
            target = checked_targets(target_matrix, latents, least=0 if incomplete else 1)
            self.pairs = linear_sem.target_pairs(target)
        self.observational = np.flatnonzero(target.sum(1) == 0)[: 1 if self.unknown else None]  # environments
        envs, size = len(target), latents * (latents - 1)
        self.guide_block = FullNormalBlock(size, scale=1.0)  # in units of `root`
        if self.counts:  # offsets and dispersions are estimates, set from the data
            self.observation = Observation(features, likelihood, batches).requires_grad_(False)
        double = torch.float64
        buffers = {
            "chart": directions.chart_at(torch.eye(latents, dtype=double)),
            "root": 0.1 * torch.eye(size, dtype=double),
            # moments of y, white over the observational rows: project @ x, or of log rates lift @ y + offsets
            "count": torch.full((envs,), 2.0, dtype=double),
            "mean": torch.zeros(envs, latents, dtype=double),
            "cov": torch.eye(latents, dtype=double).repeat(envs, 1, 1),
            "target": torch.as_tensor(target, dtype=double),
            "share": torch.zeros(envs, dtype=double),  # of the rows that escaped
            "project": torch.eye(latents, features, dtype=double),
            "lift": torch.eye(features, latents, dtype=double),
            "offset": torch.zeros(features, dtype=double),
            "tau": torch.ones((), dtype=double),
            "log_jacobian": torch.zeros((), dtype=double),  # log |d y / d x| within the columns of the mixing
            "residual": torch.zeros((), dtype=double),  # log-likelihood of what lies outside them
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        if options.get("targets") == "unknown":
            if data.control is None and data.env_names[0] not in CUSTOMARY_CONTROLS:
                raise InputError("control: found None in the data; allowed: the observational environment's name")
            data = copy.copy(data)
            data.targets = None  # labels that are not believed
            return super().from_data(data, **options)
        if data.targets is None and "target_matrix" not in options:
            raise InputError(
                "targets: found None in the data; allowed: a mapping environment -> latents, or targets='unknown'"
            )
        return super().from_data(data, **options)

    def check(self, data: Data) -> None:
        if self.counts and not data.counts:
            reject("data", "floats (counts=False)", "counts, for likelihood='negative_binomial'")
        if data.features != self.config["features"]:
            reject("data", f"{data.features} features", f"the program's {self.config['features']}")
        if len(data.env_names) != len(self.target):
            reject("data", f"{len(data.env_names)} environments", f"the program's {len(self.target)}")
        if data.targets is not None and not self.unknown:
            found = data.target_matrix(self.config["latents"])
            if not np.array_equal(found, self.target.cpu().numpy()):
                reject("targets", "other targets than the program's", self.config["target_matrix"])

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Gather the moments, then the theorem's construction on a bootstrap of them, then a search over maxima."""
        self._begin(data)
        modes = self._search(generator)
        for _ in range(2 * len(self.target) if self.unknown else 0):  # each change gains, so that it ends well before
            evidence = functools.partial(self._objective, modes[0].chart[:, 0])
            target, gain = directions.best_reassignment(evidence, self.target)
            if gain <= 0:
                break
            self.target.copy_(target)
            modes = self._search(generator)
        again = [] if self.config["latents"] > 8 else self._search(generator)  # one search in six misses the best
        self._laplace(directions.best_modes(modes + again, KEEP), generator)
        loc = self.guide_block.loc  # chains start apart, by one posterior deviation
        loc.copy_(torch.randn(loc.shape, generator=generator))

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Eigenvectors of the score differences, those of the two signs that fit best, and nothing optimised."""
        self._begin(data)
        candidates = directions.candidate_rows(self._environments(), generator, self.config["intervention"])
        self.chart.copy_(directions.chart_at(directions.choose_rows(candidates, self._objective, 0, generator)[0]))
        block = self.guide_block
        block.set(torch.zeros_like(block.loc), 1e-6 * torch.eye(len(block.loc), dtype=block.loc.dtype))

    def _begin(self, data: Data) -> None:
        self._gather(data)
        if self.unknown:
            self.target.copy_(directions.cluster_targets(self._environments(), self.config["intervention"]))

    def _search(self, generator: torch.Generator) -> list[directions.Mode]:
        environments, kind = self._environments(), self.config["intervention"]
        candidates = directions.candidate_rows(directions.resample(environments, generator), generator, kind)
        share = float((ENOUGH * len(self.count) / self.count.sum()).clamp(0.03, 1.0))
        rivals = RIVALS if self.config["latents"] <= 8 else 1

        def objective_at(part: float) -> directions.Objective:
            return lambda rows: self._objective(rows, share=part)

        return directions.search(objective_at, candidates, share, rivals, KEEP, generator)

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Newton's method from the guide's mean, and the guide set to the Laplace approximation there."""
        self._laplace(directions.climb(self._objective, self._rows()[None].double()), generator)

    def _laplace(self, modes: list[directions.Mode], generator: torch.Generator) -> None:
        evidence = torch.stack([mode.log_evidence for mode in modes])
        chosen = torch.multinomial((evidence - evidence.logsumexp(0)).exp().cpu(), 1, generator=generator)
        mode = modes[int(chosen)]
        self.chart.copy_(mode.chart)
        self.root.copy_(mode.root)
        self.guide_block.set(torch.zeros_like(self.guide_block.loc), torch.eye(len(mode.root), dtype=mode.root.dtype))

    def _gather(self, data: Data) -> None:
        moments, latents = data.moments, self.config["latents"]
        target = self.target.cpu()
        for name, count in zip(data.env_names, moments.count.tolist(), strict=True):
            if count < 2:
                reject("env", f"{count:g} row(s) to fit in environment {name!r}", "2 or more")
        if self.counts:
            return self._gather_counts(data)
        environments = linear_sem.Environments(moments.count, moments.mean, moments.cov, target)
        total, mean, cov = environments.pooled(torch.ones(len(target), dtype=torch.float64))
        value, vector = torch.linalg.eigh(cov)
        principal = vector[:, -latents:]  # (feature, latent)
        use = torch.zeros_like(moments.count)
        use[self.observational] = 1.0
        observational = environments.transform(principal.mT).pooled(use)[2]
        spread = torch.linalg.eigvalsh(observational)
        if spread[0] <= 1e-10 * spread[-1]:
            rank = int((spread > 1e-10 * spread[-1]).sum())
            reject("latents", latents, f"at most {rank}, the rank of x over the observational rows")
        white = directions.whitening(observational)
        free = data.features - latents
        tau2 = (value[:-latents].sum() / free).clamp_min(FLOOR * value[-1])
        projected = environments.transform(white @ principal.mT)
        self.count.copy_(projected.count)
        self.mean.copy_(projected.mean)
        self.cov.copy_(projected.cov)
        self.project.copy_(white @ principal.mT)
        self.lift.copy_(principal @ torch.linalg.inv(white))
        self.offset.copy_(mean - principal @ (principal.mT @ mean))
        self.tau.copy_(tau2.sqrt())
        self.log_jacobian.copy_(torch.linalg.slogdet(white).logabsdet)
        if self.config["escapees"]:
            batch = data.tensors(dtype=torch.float64)
            observational = use.bool()
            changed = escapees.changed_moments(batch.x @ (white @ principal.mT).mT, batch.env, observational)
            for name in ("count", "mean", "cov", "share"):
                getattr(self, name).copy_(getattr(changed, name))
        misfit = total * value[:-latents].clamp_min(0).sum() / tau2
        self.residual.copy_(-0.5 * (misfit + total * free * torch.log(2 * torch.pi * tau2)))

    def _gather_counts(self, data: Data) -> None:
        latents, observational = self.config["latents"], self.observational.tolist()
        found = count_moments(data, latents, observational, self.observation, self.config["escapees"])
        for name in ("count", "mean", "cov", "share"):
            getattr(self, name).copy_(getattr(found, name))
        self.lift.copy_(found.loadings)
        self.project.copy_(torch.linalg.pinv(found.loadings))

    # -- model and guide ---------------------------------------------------------------------------------------

    def model(self, batch: Batch) -> None:
        prior = directions.Directions(self.project, self.config["latents"])
        tangent = pyro.sample("tangent", prior)  # (latent (latent - 1),)
        rows = directions.unit_rows(tangent, self.chart)  # (latent, latent)
        shape = (len(batch), self.config["features"])
        law = Law((), shape, lambda _: self._objective(rows), lambda: self._simulated(rows, batch))
        pyro.sample("x", law, obs=batch.x)  # all rows at once, through their moments

    def _simulated(self, rows: Tensor, batch: Batch) -> Tensor:
        """New x (rows, feature), all environments observational, from the prior of equations; what the scale-free prior
        leaves open is fixed: noise deviations 1, slab deviations 1, intercepts 0."""
        weight = linear_sem.draw_equations(torch.ones_like(rows[0]), self.config["edge_probability"])[1]
        unit = torch.ones_like(rows[0])
        cov = linear_sem.sem_moments(linear_sem.LinearSEM(weight, 0 * unit, unit))[1]
        z = torch.randn(len(batch), len(rows), dtype=cov.dtype, device=cov.device) @ torch.linalg.cholesky(cov).mT
        x = z @ (self.lift @ torch.linalg.inv(rows)).mT
        if self.counts:
            return self.observation.likelihood(x, batch).sample()
        x = x + self.offset
        return x + self._off_mixing(x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("tangent", self._posterior())

    def _posterior(self) -> MultivariateNormal:
        block = self.guide_block
        return MultivariateNormal(self.root @ block.loc, scale_tril=self.root @ block.scale_tril)

    def _environments(self) -> linear_sem.Environments:
        # double whatever the fit's dtype: log-likelihoods of many rows differ in their last digits
        return linear_sem.Environments(*(v.double() for v in (self.count, self.mean, self.cov, self.target)))

    def _slices(self, target: Tensor | None = None, share: float = 1.0) -> linear_sem.Slices:
        """The moments sorted by mechanism; target (env, latent): other targets than the program's."""
        environments = self._environments()
        target = environments.target if target is None else target
        return linear_sem.slices(environments._replace(count=share * environments.count, target=target), self.pairs)

    def _objective(self, rows: Tensor, target: Tensor | None = None, share: float = 1.0) -> Tensor:
        """log p(x | rows of the unmixing, targets), everything else summed out, as if of a share of the rows."""
        prob, kind = self.config["edge_probability"], self.config["intervention"]
        total = share * self.count.double().sum()
        inside = linear_sem.log_marginal(rows.double(), self._slices(target, share), total, prob, kind)
        return inside + total * self.log_jacobian + share * self.residual

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        if not self.counts:
            return batch.x @ (self._rows() @ self.project).mT
        own, natural, escaped = self._told(batch)
        return own.loc.lerp(natural.loc, escaped[:, None]) @ self._rows().mT

    def _told(self, batch: Batch) -> tuple[RowPosterior, RowPosterior, Tensor]:
        """y of each row under its environment's law; had it escaped; (rows,) the probability that it did."""
        own = self._given(batch, self.mean[batch.env], self.cov[batch.env])
        if not self.config["escapees"]:
            return own, own, torch.zeros_like(own.log_evidence)
        use = torch.zeros_like(self.count)
        use[self.observational] = 1.0
        _, mean, cov = self._environments().pooled(use.double())
        natural = self._given(batch, mean.to(own.loc).expand_as(own.loc), cov.to(own.loc).expand_as(own.cov))
        share = self.share[batch.env]
        return own, natural, escapees.probability(own.log_evidence, natural.log_evidence, share)

    def _given(self, batch: Batch, mean: Tensor, cov: Tensor) -> RowPosterior:
        """y of each row with prior N(mean, cov), (rows, latent) and (rows, latent, latent), given x."""
        if self.counts:
            return row_posterior(self.observation, self.lift, batch, mean, cov)
        y = batch.x @ self.project.mT
        return RowPosterior(y, torch.zeros_like(cov), MultivariateNormal(mean, cov).log_prob(y))

    def _rows(self) -> Tensor:
        """Rows of the unmixing of y at the guide's mean."""
        return directions.unit_rows(self.root @ self.guide_block.loc, self.chart)

    @property
    def reads_innovations(self) -> bool:
        return self.config["intervention"] in linear_sem.KEEP_EQUATIONS

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, exact given M and targets, averaged over fixed draws of both."""
        if self.reads_innovations:
            table = orders.log_edge_prior(self.config["latents"], self.config["edge_probability"], self.root.device)
            return orders.edge_probabilities(table.to(self.root.dtype))
        return self._averaged()[0]

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        """(env, latent) probabilities that an environment intervenes on a latent; 0 and 1 where targets are known."""
        return self._averaged()[1] if self.unknown else self.target

    def _averaged(self) -> tuple[Tensor, Tensor]:
        """Edge and target probabilities, each averaged over `DRAWS` draws of M; the same draws at every call."""
        generator = torch.Generator().manual_seed(0)
        like, block = self.root, self.guide_block
        noise = torch.randn(DRAWS, len(like), generator=generator, dtype=like.dtype).to(like.device)
        uniform = torch.rand(DRAWS, len(self.target), generator=generator, dtype=like.dtype).to(like.device)

        def probabilities(tangent: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            rows = directions.unit_rows(tangent, self.chart).double()
            target, probability = self._targets(rows, uniform)
            return orders.edge_probabilities(self._scores(rows, self._slices(target))), probability

        tangent = (block.loc + noise @ block.scale_tril.mT) @ like.mT
        edges, targets = torch.func.vmap(probabilities, chunk_size=16)(tangent, uniform)
        return edges.mean(0), targets.mean(0)

    def _targets(self, rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(env, latent) targets given M, drawn by the numbers `uniform` (env,) where unknown, and their probability."""
        target = self.target.double()
        if not self.unknown:
            return target, target
        return directions.reassigned(lambda t: self._objective(rows, t), target, uniform)

    def _scores(self, rows: Tensor, slices: linear_sem.Slices) -> Tensor:
        return linear_sem.mechanism_scores(rows, slices, self.config["edge_probability"], self.config["intervention"])

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Given a draw of M, draws of targets, graph, weights, intercepts and noise; and z, which they determine."""
        rows = directions.unit_rows(sites["tangent"], self.chart).double()
        prob, kind = self.config["edge_probability"], self.config["intervention"]
        latents = self.config["latents"]
        target, _ = self._targets(rows, torch.rand_like(self.count))
        slices = self._slices(target)
        if self.reads_innovations:
            mechanisms = linear_sem.draw_innovations(rows, slices, kind)
            graph, weight = linear_sem.draw_equations(mechanisms.scale[:latents], prob)
            rows = torch.linalg.solve(torch.eye(latents, dtype=rows.dtype, device=rows.device) - weight.mT, rows)
        else:
            _, graph = orders.sample_dags(self._scores(rows, slices))
            mechanisms = linear_sem.draw_mechanisms(rows, graph, slices, kind)
            weight = mechanisms.weight[:latents].mT
        per_env = linear_sem.by_environment(mechanisms, self.pairs, target)
        unmixing = rows @ self.project.double()
        out = {
            "graph": graph.double(),
            "weight": weight,  # (parent, child)
            "targets": target,  # (env, latent)
            "shift": per_env.intercept - mechanisms.intercept[:latents],  # (env, latent), 0 off the targets
            "intercept": per_env.intercept,  # (env, latent)
            "noise": per_env.scale,  # (env, latent)
            "unmixing": unmixing,  # (latent, feature)
            "loadings": self.lift.double() @ torch.linalg.inv(rows),  # (feature, latent)
        }
        if not (self.counts or self.config["escapees"]):
            out["z"] = batch.x.double() @ unmixing.mT
        else:
            own, natural, probability = self._told(batch)
            y, cov = own.loc, own.cov
            if self.config["escapees"]:
                escaped = out["escaped"] = torch.bernoulli(probability)
                y, cov = y.lerp(natural.loc, escaped[:, None]), cov.lerp(natural.cov, escaped[:, None, None])
            if self.counts:
                y = y + (torch.linalg.cholesky(cov) @ torch.randn_like(y)[..., None]).squeeze(-1)
            out["z"] = y.double() @ rows.mT  # (rows, latent)
        if kind == "soft":
            out["env_weight"] = per_env.weight  # (env, parent, child)
        return {name: value.to(self.root.dtype) for name, value in out.items()}

    def _sem(self, sites: dict[str, Tensor]) -> linear_sem.LinearSEM:
        """The structural equations of every environment, (env, ...)."""
        kept = 1 - sites["targets"] if self.config["intervention"] == "perfect" else torch.ones_like(sites["targets"])
        weight = sites.get("env_weight", sites["weight"] * kept[:, None, :])
        return linear_sem.LinearSEM(weight, sites["intercept"], sites["noise"])

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | M, weights, noise): a density of all features, given a draw of the global sites.

        Of counts by Laplace's method."""
        if "weight" not in sites:
            sites = sites | self.posterior_sites(batch, sites)
        if self.counts:
            back = self.project @ sites["loadings"]  # y = back z
            mean, cov = linear_sem.sem_moments(self._sem(sites))
            mean, cov = mean @ back.mT, back @ cov @ back.mT
            return self._mixed(lambda env: self._given(batch, mean[env], cov[env]).log_evidence, batch)
        rows = directions.unit_rows(sites["tangent"], self.chart)  # of the same determinant as M in every case
        z = batch.x @ sites["unmixing"].mT
        equations = self._sem(sites)
        inside = self._mixed(
            lambda env: linear_sem.sem_log_prob(z, linear_sem.LinearSEM(*(value[env] for value in equations))), batch
        )
        free = self.config["features"] - self.config["latents"]
        apart = batch.x - self.offset - batch.x @ self.project.mT @ self.lift.mT
        outside = -0.5 * (apart / self.tau).square().sum(-1) - free * (self.tau.log() + 0.5 * np.log(2 * np.pi))
        jacobian = linear_sem.log_abs_det(rows) + self.log_jacobian
        return inside + jacobian + outside

    def _mixed(self, log_prob: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(rows,) log density of rows that may have escaped; log_prob: environments of rows -> their log density."""
        own = log_prob(batch.env)
        if not self.config["escapees"]:
            return own
        natural = log_prob(torch.full_like(batch.env, int(self.observational[0])))
        share = self.share[batch.env]
        return torch.logaddexp(torch.log1p(-share) + own, share.log() + natural)

    @torch.no_grad()
    def predict(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(new rows of x from each row's own environment, log p(x_i | sites))."""
        mean, cov = linear_sem.sem_moments(self._sem(sites))  # (env, latent), (env, latent, latent)
        noise = torch.randn(len(batch.x), mean.shape[-1], dtype=mean.dtype, device=mean.device)
        env = batch.env
        if self.config["escapees"]:
            escaped = torch.rand_like(noise[:, 0]) < self.share[env]
            env = torch.where(escaped, int(self.observational[0]), env)
        root = torch.linalg.cholesky(cov)[env]
        z = mean[env] + (root @ noise[..., None]).squeeze(-1)
        if self.counts:
            likelihood = self.observation.likelihood(z @ sites["loadings"].mT, batch)
            return likelihood.sample(), self.row_log_likelihood(batch, sites)
        x = z @ sites["loadings"].mT + self.offset
        return x + self._off_mixing(x), self.row_log_likelihood(batch, sites)

    def _off_mixing(self, like: Tensor) -> Tensor:
        """Residuals of the shape of `like`, (rows, feature), orthogonal to the mixing."""
        noise = self.tau * torch.randn_like(like)
        return noise - noise @ self.project.mT @ self.lift.mT

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        loadings = pyro.sample("loadings", Delta(self.lift @ torch.linalg.inv(self._rows())).to_event(2))
        return self.observation.mean(z @ loadings.mT, batch) if self.counts else z @ loadings.mT + self.offset

    def prior_latents(self, batch: Batch, sites: dict[str, Tensor], envs: Sequence[int] = ()) -> Tensor:
        """(rows, latent) draws of the observational equations with one site `z_<k>` per latent, for `do`.

        envs: environments whose interventions act together, each target with its mechanism from there (from the last
        of them that targets it).
        """
        own = linear_sem.acting_together(self._sem(sites), sites["targets"], int(self.observational[0]), envs)
        return linear_sem.unrolled(own, len(batch))

    @property
    def latents_up_to(self) -> tuple[str, ...]:
        """Latents are called by their targets, also where they are mixed with their ancestors."""
        return ("scale",) if self.config["targets"] == "known" else ("permutation", "scale")

    def claims(self) -> tuple[Claim, ...]:
        free = self.latents_up_to[:-1]
        if self.config["intervention"] == "soft":
            return (Claim("graph", (*free, "transitive closure"), (*GIVEN, SOFT), NEEDS),)
        needs = (*NEEDS, "perfect_interventions")
        return (Claim("latents", (*free, "scale"), GIVEN, needs), Claim("graph", free, GIVEN, needs))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("squires2023_hard", seed=seed, samples=500, latents=3, features=6)
        return cls.from_data(data), data


if __name__ == "__main__":
    run(LinearSEMLin)
