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
differences, in closed form) is only where a search over maxima starts (`directions.search`); the guide is the Laplace
approximation at one. Each chain starts from a bootstrap of the moments; among the maxima it finds it takes one with the
probability of that maximum's evidence.

*For a variant, copy this file and change* a line of `story`, another prior of slopes say, and delete `model`, `recover`
and `finish`; or keep them and change `_objective` with it, the marginal likelihood that they rest on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import directions, subspaces
from pyrocrl.constructions.count_moments import RowPosterior, count_moments, row_posterior
from pyrocrl.dists import Law, MultivariateNormal, Normal
from pyrocrl.errors import one_of, reject
from pyrocrl.exact import linear_sem, orders
from pyrocrl.lab.studies import Escapees, Study
from pyrocrl.parts import escapees as escape
from pyrocrl.parts.guides import FullNormalBlock
from pyrocrl.parts.latent_sem import SEMReadouts, described
from pyrocrl.parts.mixing import LinearMixing
from pyrocrl.parts.observation import LIKELIHOODS, Observation
from pyrocrl.program import check_between, check_rows, check_sizes, checked_targets

GIVEN = ("noise is Gaussian", "mixing is linear and injective")
NEEDS = (
    "observational_environment",
    "one_intervention_per_latent",
    "separated_targets",
    "more_features_than_latents",
)
OTHERS = {"intervention": ("perfect", "variance", "shift")}
ROUNDING = 1e-14  # eigenvalues of a covariance below this share of the largest are 0
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
        approximate="Exact for Gaussian features and known targets. Of counts the moments behind them are fitted "
        "first, rows' latents by Laplace's method; so are shares of escaped rows; unknown targets are maximised with "
        "the unmixing.",
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
    new_rows = True
    knows_interventions = True
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
        escape_alpha: float = 1.0,
        escape_beta: float = 3.0,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, which latents each environment intervenes on.

        environments: how many there are, where targets are unknown (target_matrix is left out); the first is control.
        incomplete: whether latents that no environment targets are let through, though nothing can be claimed then.
        batches: technical batches, each with its own offsets of log rates; of counts alone. escapees: whether rows may
        have escaped their intervention; escape_alpha, escape_beta: of the Beta prior of the share that did.

        Raises InputError for more than 12 latents, a latent that no environment targets (for unknown targets: fewer
        environments than that needs), or none observational.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        if latents > orders.MAX_NODES:
            reject("latents", latents, f"2 to {orders.MAX_NODES}: sums over graphs are exact")
        one_of("targets", targets, ("known", "relabelled", "unknown"))
        one_of("intervention", intervention, get_args(linear_sem.Intervention))
        check_between("edge_probability", edge_probability, 0, 1)
        one_of("likelihood", likelihood, LIKELIHOODS)
        for name, value in (("escape_alpha", escape_alpha), ("escape_beta", escape_beta)):
            check_between(name, value)
        self.escape_prior = escape.Prior(escape_alpha, escape_beta)
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

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, kind = self.config["latents"], self.config["intervention"]
        tangent = pyro.sample("tangent", directions.Directions(self.project, d))  # (latent (latent - 1),)
        targets = self._targets()  # (env, latent)
        table, prior = self._slices(targets), orders.log_edge_prior(d, self.config["edge_probability"], targets.device)
        order = pyro.sample("order", orders.Order(prior))  # (latent,)
        graph = pyro.sample("graph", orders.Graph(prior, order))  # (parent, child)
        unmixing = directions.unit_rows(tangent, self.chart).double()  # M (latent, latent)
        known = linear_sem.conjugate(unmixing, graph, table, kind)
        with self._mechanisms(table):  # the natural equations, then one for each (env, target)
            variance = pyro.sample("variance", known.prior_variance())
            slope = pyro.sample("slope", known.prior_slopes(variance))  # (mechanism, latent)
            level = pyro.sample("level", known.prior_level(variance))
        equations, unmixing = self._equations(known.mechanisms(variance, slope, level), targets, unmixing)
        told = batch.x is not None and not self.counts
        told_z = batch.x.double() @ self.project.double().mT @ unmixing.mT if told else None
        with self.rows(batch):
            own = linear_sem.of_rows(equations, targets, self._acting(batch), batch.together, self.control)

            def equation(k: int, z: Tensor) -> Normal:
                return Normal(own.intercept[:, k] + (z * own.weight[:, :, k]).sum(-1), own.scale[:, k])

            z = self.along(order.tolist(), equation, torch.zeros_like(own.scale), told_z)  # (rows, latent)
            pyro.sample("x", self._mixed(z, unmixing, batch), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        tangent = pyro.sample("tangent", directions.Directions(self.project, self.config["latents"]))
        unmixing = directions.unit_rows(tangent, self.chart)
        law = Law((), (len(batch), self.config["features"]), lambda _: self._objective(unmixing))
        pyro.sample("x", law, obs=batch.x)  # all rows at once, through their moments

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        unmixing = directions.unit_rows(kept["tangent"], self.chart).double()
        targets = self._targets(unmixing)
        table = self._slices(targets)
        scores = self._scores(unmixing, table)
        order = pyro.sample("order", orders.Order(scores))
        graph = pyro.sample("graph", orders.Graph(scores, order))
        known = linear_sem.conjugate(unmixing, graph, table, self.config["intervention"])
        with self._mechanisms(table):
            variance = pyro.sample("variance", known.variance())
            slope = pyro.sample("slope", known.slopes(variance))
            pyro.sample("level", known.level(slope, variance))
        if not (self.counts or self.config["escapees"]):
            return  # x determines z
        own, natural, chance = self._told(batch)
        with self.rows(batch):
            y, cov = own.loc, own.cov
            if self.config["escapees"]:
                escaped = pyro.sample("escaped", dist.Bernoulli(chance))
                y, cov = y.lerp(natural.loc, escaped[:, None]), cov.lerp(natural.cov, escaped[:, None, None])
            if self.counts:  # by Laplace's method
                _, unmixing = self._equations(known.mechanisms(variance, slope, variance), targets, unmixing)
                law = MultivariateNormal(y, scale_tril=torch.linalg.cholesky(cov))
                y = pyro.sample("y", law, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(y.double() @ unmixing.mT, event_dim=1))

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

    @torch.no_grad()
    def escaped(self, batch: Batch) -> Tensor | None:
        return self._told(batch)[2] if self.config["escapees"] else None

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
        return own, natural, escape.probability(own.log_evidence, natural.log_evidence, share)

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
        return self._averaged()[0]

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        """(env, latent) probabilities that an environment intervenes on a latent; 0 and 1 where targets are known."""
        return self._averaged()[1] if self.unknown else self.target

    def _averaged(self) -> tuple[Tensor, Tensor]:
        """Edge and target probabilities, each averaged over draws of M; the same draws at every call."""
        generator = torch.Generator().manual_seed(0)
        tangent = directions.tangents(self.root, self.guide_block, generator)
        uniform = torch.rand(len(tangent), len(self.target), generator=generator, dtype=tangent.dtype).to(tangent)

        def probabilities(tangent: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            rows = directions.unit_rows(tangent, self.chart).double()
            target, probability = self._reassigned(rows, uniform)
            return orders.edge_probabilities(self._scores(rows, self._slices(target))), probability

        edges, targets = torch.func.vmap(probabilities, chunk_size=16)(tangent, uniform)
        return edges.mean(0), targets.mean(0)

    def _targets(self, unmixing: Tensor | None = None) -> Tensor:
        """(env, latent) targets; unknown ones from their prior or, given M, drawn by a sweep of Gibbs sampling."""
        target = self.target.double()
        if not self.unknown:
            return target
        envs, d = target.shape
        if unmixing is None:  # none in the first environment; every latent and none are equally probable elsewhere
            logits = torch.zeros(envs, d + 1, dtype=target.dtype, device=target.device)
            logits[0, :d] = -torch.inf
            law = dist.Categorical(logits=logits)
        else:
            found = self._reassigned(unmixing, torch.rand_like(target[:, 0]))[0]
            law = dist.Delta(torch.where(found.sum(1) > 0, found.argmax(1), d))
        with pyro.plate("env", envs, dim=-1):
            chosen = pyro.sample("target", law)
        return torch.nn.functional.one_hot(chosen, d + 1)[:, :d].to(target)

    def _reassigned(self, unmixing: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(env, latent) targets given M, drawn by the numbers `uniform` (env,) where unknown, and their probability."""
        target = self.target.double()
        if not self.unknown:
            return target, target
        return directions.reassigned(lambda t: self._objective(unmixing, t), target, uniform)

    def _scores(self, unmixing: Tensor, table: linear_sem.Slices) -> Tensor:
        """(latent, 2**latent) log scores of parent sets given M; their prior where interventions keep equations."""
        d, prob = self.config["latents"], self.config["edge_probability"]
        if self.reads_innovations:
            return orders.log_edge_prior(d, prob, unmixing.device)
        return linear_sem.mechanism_scores(unmixing, table, prob, self.config["intervention"])

    def _mechanisms(self, table: linear_sem.Slices) -> Any:
        """The plate of equations; with unknown targets, those of environments that have another do not count."""
        plate = contextlib.ExitStack()
        plate.enter_context(pyro.plate("mechanism", len(table.node), dim=-1))
        if self.unknown:
            plate.enter_context(pyro.poutine.mask(mask=table.count > 0))
        return plate

    def _equations(
        self, mechanisms: linear_sem.Mechanisms, targets: Tensor, unmixing: Tensor
    ) -> tuple[linear_sem.LinearSEM, Tensor]:
        """Equations (env, ...) and the unmixing to z, with their read-outs."""
        d, soft = len(unmixing), self.config["intervention"] == "soft"
        out = linear_sem.by_environment(mechanisms, self.pairs, targets)
        weight = described(mechanisms.weight[:d].mT, targets, mechanisms.intercept[:d], out, soft)
        if self.reads_innovations:  # what M gives are innovations
            out = out._replace(weight=weight.expand_as(out.weight))
            unmixing = torch.linalg.solve(torch.eye(d).to(weight) - weight.mT, unmixing)
        pyro.deterministic("unmixing", unmixing @ self.project.double())  # (latent, feature)
        pyro.deterministic("loadings", self.lift.double() @ torch.linalg.inv(unmixing))  # (feature, latent)
        return out, unmixing

    def _acting(self, batch: Batch) -> Tensor:
        """(rows,) the environment whose equations a row follows: its own or, had it escaped, the observational one."""
        if not self.config["escapees"]:
            return batch.env
        escaped = pyro.sample("escaped", dist.Bernoulli(self.share[batch.env]))
        return torch.where(escaped > 0.5, self.control, batch.env)

    def _mixed(self, z: Tensor, unmixing: Tensor, batch: Batch) -> Any:
        """The law of x given latents."""
        project, lift, offset, tau = (v.double() for v in (self.project, self.lift, self.offset, self.tau))
        if self.counts:
            eta = torch.linalg.solve(unmixing, z.mT).mT @ lift.mT
            return self.observation.likelihood(eta.to(batch.dtype), batch).to_event(1)
        return LinearMixing(z, unmixing, project, lift, offset, tau, self.log_jacobian.double())

    @property
    def control(self) -> int:
        """The first observational environment."""
        return int(self.observational[0])

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | M, weights, noise): a density of all features, given a draw of the global sites.

        Of counts by Laplace's method."""
        if "level" not in sites:
            sites = sites | self.recovered(batch, sites)
        unmixing, targets = directions.unit_rows(sites["tangent"], self.chart).double(), self.target.double()
        if self.unknown:
            targets = torch.nn.functional.one_hot(sites["target"], len(unmixing) + 1)[:, :-1].to(unmixing)
        known = linear_sem.conjugate(unmixing, sites["graph"], self._slices(targets), self.config["intervention"])
        mechanisms = known.mechanisms(sites["variance"], sites["slope"], sites["level"])
        equations, unmixing = self._equations(mechanisms, targets, unmixing)
        if self.counts:
            back = torch.linalg.inv(unmixing)  # y = back z
            mean, cov = linear_sem.sem_moments(equations)
            mean, cov = mean @ back.mT, back @ cov @ back.mT
            return self._either(lambda env: self._given(batch, mean[env], cov[env]).log_evidence, batch)
        z = batch.x.double() @ self.project.double().mT @ unmixing.mT
        inside = self._either(
            lambda env: linear_sem.sem_log_prob(z, linear_sem.LinearSEM(*(value[env] for value in equations))), batch
        )
        return inside + self._mixed(z, unmixing, batch).log_prob(batch.x.double())

    def _either(self, log_prob: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(rows,) log density of rows that may have escaped; log_prob: environments of rows -> their log density."""
        own = log_prob(batch.env)
        if not self.config["escapees"]:
            return own
        natural = log_prob(torch.full_like(batch.env, self.control))
        share = self.share[batch.env]
        return torch.logaddexp(torch.log1p(-share) + own, share.log() + natural)

    # -- from data ---------------------------------------------------------------------------------------------

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
        self._laplace(directions.best_modes(modes + again, directions.EFFORT.keep), generator)
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
        def objective_at(part: float) -> directions.Objective:
            return lambda rows: self._objective(rows, share=part)

        return directions.search_again(objective_at, self._environments(), self.config["intervention"], generator)

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
        check_rows(data, 2)
        if self.counts:
            return self._gather_counts(data)
        environments = linear_sem.Environments(moments.count, moments.mean, moments.cov, target)
        total, mean, cov = environments.pooled(torch.ones(len(target), dtype=torch.float64))
        use = torch.zeros_like(moments.count)
        use[self.observational] = 1.0
        found = subspaces.principal(cov, lambda matrix: environments.transform(matrix).pooled(use)[2], latents)
        free, value = data.features - latents, found.value
        tau2 = (value[:-latents].sum() / free).clamp_min(FLOOR * value[-1])
        for name in ("project", "lift", "log_jacobian"):
            getattr(self, name).copy_(getattr(found, name))
        self.offset.copy_(mean - found.axes @ (found.axes.mT @ mean))
        self.tau.copy_(tau2.sqrt())
        seen: linear_sem.Environments | escape.Changed = environments.transform(found.project)
        if self.config["escapees"]:
            batch = data.tensors(dtype=torch.float64)
            seen = escape.changed_moments(batch.x @ found.project.mT, batch.env, use.bool(), self.escape_prior)
            self.share.copy_(seen.share)
        for name in ("count", "mean", "cov"):
            getattr(self, name).copy_(getattr(seen, name))
        apart = torch.where(value > ROUNDING * value[-1], value, 0.0)[:-latents]  # 0 where x has exactly that rank
        misfit = total * apart.sum() / tau2
        self.residual.copy_(-0.5 * (misfit + total * free * torch.log(2 * torch.pi * tau2)))

    def _gather_counts(self, data: Data) -> None:
        latents, observational = self.config["latents"], self.observational.tolist()
        own, prior = self.config["escapees"], self.escape_prior
        found = count_moments(data, latents, observational, self.observation, own, prior)
        for name in ("count", "mean", "cov", "share"):
            getattr(self, name).copy_(getattr(found, name))
        self.lift.copy_(found.loadings)
        self.project.copy_(torch.linalg.pinv(found.loadings))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("squires2023_hard", seed=seed, samples=500, latents=3, features=6)
        return cls.from_data(data), data

    # samples: twice the rows of the published sizes, for one half is fitted
    studies = (
        *(Study("squires2023_hard", {"samples": 2 * n}, seeds=42) for n in (500, 1_000, 2_500, 10_000)),
        *(Study("varici2024_linear", {"samples": 2 * n}, seeds=12) for n in (5_000, 10_000, 50_000)),
        Study("squires2023_soft", {"samples": 20_000}, {"intervention": "soft"}, identified=False),
        Study("perturb_seq", {"rows": 6000}),
        Escapees("perturb_seq", {"rows": 6000, "escapees": 0.25}, {"escapees": True}),
    )


if __name__ == "__main__":
    run(LinearSEMLin)
