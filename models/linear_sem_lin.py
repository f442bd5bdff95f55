"""Linear causal disentanglement: a linear mixing of a linear Gaussian structural equation model under interventions.

    order ~ uniform, edge[j, k] ~ Bernoulli(rho) if j precedes k            (parent, child)
    w[j, k] ~ edge * slab  (Zellner's g-prior, unit information)             (parent, child)
    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)          (data, latent)
    x_i = W z_i + offset + r_i,  r_i ~ N(0, tau^2) off the columns of W      (data, feature)

An environment that intervenes on k perfectly drops k's parents and gives k a mean and variance of its own
(environment, latent); with intervention="soft" k keeps its parents and gets a regression of its own. Noise and
intercepts have the scale-free prior p(a, s^2) = s^-3.

The one latent site is `tangent`, the directions of the rows of the unmixing M, z = M x; a row's length is not
identified and is set so that z_k has variance 1 over the observational rows. Given M everything else is summed or
integrated out in closed form: weights, intercepts and noise by conjugacy, graphs and orders by a dynamic program over
subsets. The data enter through each environment's count, mean and covariance, so ten million rows cost what ten
thousand do. Draws of order, graph, weights and noise given M are exact and every graph is acyclic.

*Identified:* latents up to scale (and permutation, where targets are known up to relabelling only), the graph
exactly, if every latent is the one target of some perfect intervention and there is an observational environment;
latents up to their ancestors only when interventions are soft (not claimed).

Squires, Seigal, Bhate & Uhler (2023), Linear causal disentanglement via interventions; Varici et al. (2024),
Score-based causal representation learning.

*Differs from the paper in* being a posterior: the theorem's construction (`initialise`: eigenvectors of the score
differences, in closed form) is only where Newton's method starts; the guide is the Laplace approximation there. Each
chain starts from a bootstrap of the moments; among the maxima it finds it takes one with the probability
of that maximum's evidence.

*For a variant, copy this file and change* `_objective`: another prior of graphs, or of what an intervention does.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, graphs, run, sem
from pyrocrl.dists import MultivariateNormal
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.guides import FullNormalBlock
from pyrocrl.program import check_sizes

GIVEN = ("interventions are perfect", "noise is Gaussian", "mixing is linear and injective")
NEEDS = ("observational_environment", "one_intervention_per_latent", "more_features_than_latents")
RIVALS = 5  # further starts beside the best one; a single one above 8 latents, where each takes seconds
FLOOR = 1e-12  # least residual variance, as a share of the variance: data may have exactly rank `latents`


class LinearSEMLin(Program):
    card = ModelCard(
        name="linear_sem_lin",
        title="Linear causal disentanglement",
        family="interventions",
        summary="Linear Gaussian causal latents, mixed linearly, with an intervention on each: which latents, "
        "which graph, how strong, and how sure.",
        assumes=(
            "x = W z",
            "z follows a linear Gaussian structural equation model without cycles",
            *GIVEN[:1],
        ),
        claims=(
            Claim("latents", ("permutation", "scale"), GIVEN, NEEDS),
            Claim("graph", ("permutation",), GIVEN, NEEDS),
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
        ),
        settings=("squires2023_hard", "squires2023_soft"),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled"),
    )
    # the second-order start and finish leave nothing to stochastic steps: one epoch is one step
    recipe = Recipe(
        epochs=1,
        batch_size=None,
        lr=1e-3,
        kl_warmup=0.0,
        temperature_span=0.0,
        held_out=0.05,
        dtype=torch.float64,
    )
    uses_rows = False
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "graph": Site(("parent", "child"), discrete=True),
        "weight": Site(("parent", "child"), {"parent": -1, "child": 1}),
        "env_weight": Site(("env", "parent", "child"), {"parent": -1, "child": 1}),
        "intercept": Site(("env", "latent"), {"latent": 1}),
        "noise": Site(("env", "latent"), {"latent": "spread"}),
        "unmixing": Site(("latent", "feature"), {"latent": 1}),
        "loadings": Site(("feature", "latent"), {"latent": -1}),
    }

    def __init__(
        self,
        features: int,
        latents: int,
        target_matrix: list[list[int]],
        targets: Literal["known", "relabelled"] = "known",
        intervention: Literal["perfect", "soft"] = "perfect",
        edge_probability: float = 0.5,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, which latents each environment intervenes on.

        Raises InputError for more than 12 latents, a latent that no environment targets, or none observational.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        if latents > graphs.MAX_NODES:
            reject("latents", latents, f"2 to {graphs.MAX_NODES}: sums over graphs are exact")
        one_of("targets", targets, ("known", "relabelled"))
        one_of("intervention", intervention, ("perfect", "soft"))
        if not 0 < edge_probability < 1:
            reject("edge_probability", edge_probability, "a number strictly between 0 and 1")
        target = _checked(target_matrix, latents)
        self.pairs = sem.target_pairs(target)
        envs, size = len(target), latents * (latents - 1)
        self.guide_block = FullNormalBlock(size, scale=1.0)  # in units of `root`
        double = torch.float64
        buffers = {
            "chart": sem.chart_at(torch.eye(latents, dtype=double)),
            "root": 0.1 * torch.eye(size, dtype=double),
            # moments of y = project @ x: white over the observational rows
            "count": torch.full((envs,), 2.0, dtype=double),
            "mean": torch.zeros(envs, latents, dtype=double),
            "cov": torch.eye(latents, dtype=double).repeat(envs, 1, 1),
            "target": torch.as_tensor(target, dtype=double),
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
        if data.targets is None and "target_matrix" not in options:
            raise InputError(
                "targets: found None in the data; allowed: a mapping environment -> latents, known or up to relabelling"
            )
        if options.get("targets") == "unknown":
            reject("targets", "'unknown'", "'known' or 'relabelled'")
        return super().from_data(data, **options)

    def check(self, data: Data) -> None:
        super().check(data)
        if len(data.env_names) != len(self.target):
            reject("data", f"{len(data.env_names)} environments", f"the program's {len(self.target)}")
        if data.targets is not None:
            found = data.target_matrix(self.config["latents"])
            if not np.array_equal(found, self.target.cpu().numpy()):
                reject("targets", "other targets than the program's", self.config["target_matrix"])

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Gather the moments, then the theorem's construction on a bootstrap of them, then Newton's method."""
        self._gather(data)
        environments = self._environments()
        candidates = sem.candidate_rows(sem.resample(environments, generator), generator)
        rivals = RIVALS if self.config["latents"] <= 8 else 1
        self._laplace(sem.choose_rows(candidates, self._objective, rivals, generator), generator)
        loc = self.guide_block.loc  # chains start apart, by one posterior deviation
        loc.copy_(torch.randn(loc.shape, generator=generator))

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Newton's method from the guide's mean, and the guide set to the Laplace approximation there."""
        self._laplace(self._rows()[None].double(), generator)

    def _laplace(self, starts: Tensor, generator: torch.Generator) -> None:
        modes = sem.climb(self._objective, starts)
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
        environments = sem.Environments(moments.count, moments.mean, moments.cov, target)
        total, mean, cov = environments.pooled(torch.ones(len(target), dtype=torch.float64))
        value, vector = torch.linalg.eigh(cov)
        principal = vector[:, -latents:]  # (feature, latent)
        observational = environments.transform(principal.mT).pooled((target.sum(1) == 0).double())[2]
        spread = torch.linalg.eigvalsh(observational)
        if spread[0] <= 1e-10 * spread[-1]:
            rank = int((spread > 1e-10 * spread[-1]).sum())
            reject("latents", latents, f"at most {rank}, the rank of x over the observational rows")
        white = sem.whitening(observational)
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
        misfit = total * value[:-latents].clamp_min(0).sum() / tau2
        self.residual.copy_(-0.5 * (misfit + total * free * torch.log(2 * torch.pi * tau2)))

    # -- model and guide ---------------------------------------------------------------------------------------

    def model(self, batch: Batch) -> None:
        prior = sem.Directions(self.project, self.config["latents"])
        tangent = pyro.sample("tangent", prior)  # (latent (latent - 1),)
        rows = sem.unit_rows(tangent, self.chart)  # (latent, latent)
        pyro.sample("x", _Marginal(self, rows, len(batch)), obs=batch.x)  # all rows at once, through their moments

    def guide(self, batch: Batch) -> None:
        pyro.sample("tangent", self._posterior())

    def _posterior(self) -> MultivariateNormal:
        block = self.guide_block
        return MultivariateNormal(self.root @ block.loc, scale_tril=self.root @ block.scale_tril)

    def _environments(self) -> sem.Environments:
        # double whatever the fit's dtype: log-likelihoods of many rows differ in their last digits
        return sem.Environments(*(v.double() for v in (self.count, self.mean, self.cov, self.target)))

    def _slices(self) -> sem.Slices:
        return sem.slices(self._environments(), self.pairs)

    def _objective(self, rows: Tensor) -> Tensor:
        """log p(x | rows of the unmixing), everything else summed out."""
        prob, kind = self.config["edge_probability"], self.config["intervention"]
        total = self.count.double().sum()
        inside = sem.log_marginal(rows.double(), self._slices(), total, prob, kind)
        return inside + total * self.log_jacobian + self.residual

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x @ (self._rows() @ self.project).mT

    def _rows(self) -> Tensor:
        """Rows of the unmixing of y at the guide's mean."""
        return sem.unit_rows(self.root @ self.guide_block.loc, self.chart)

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, exact given M, averaged over 64 fixed draws of M."""
        generator = torch.Generator().manual_seed(0)
        size = len(self.root)
        noise = torch.randn(64, size, generator=generator, dtype=self.root.dtype).to(self.root.device)
        block = self.guide_block
        tangent = (block.loc + noise @ block.scale_tril.mT) @ self.root.mT
        slices = self._slices()

        def edges(one: Tensor) -> Tensor:
            return graphs.edge_probabilities(self._scores(sem.unit_rows(one, self.chart).double(), slices))

        return torch.func.vmap(edges)(tangent).mean(0)

    def _scores(self, rows: Tensor, slices: sem.Slices) -> Tensor:
        return sem.mechanism_scores(rows, slices, self.config["edge_probability"], self.config["intervention"])

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Given a draw of M, exact draws of graph, weights, intercepts and noise; and z, which M determines."""
        rows = sem.unit_rows(sites["tangent"], self.chart).double()
        slices = self._slices()
        _, graph = graphs.sample_dags(self._scores(rows, slices))
        mechanisms = sem.draw_mechanisms(rows, graph, slices, self.config["intervention"])
        per_env = sem.by_environment(mechanisms, self.pairs, len(self.target))
        latents = self.config["latents"]
        unmixing = rows @ self.project.double()
        out = {
            "graph": graph.double(),
            "weight": mechanisms.weight[:latents].mT,  # (parent, child)
            "intercept": per_env.intercept,  # (env, latent)
            "noise": per_env.scale,  # (env, latent)
            "unmixing": unmixing,  # (latent, feature)
            "loadings": self.lift.double() @ torch.linalg.inv(rows),  # (feature, latent)
            "z": batch.x.double() @ unmixing.mT,  # (rows, latent)
        }
        if self.config["intervention"] == "soft":
            out["env_weight"] = per_env.weight  # (env, parent, child)
        return {name: value.to(self.root.dtype) for name, value in out.items()}

    def _sem(self, sites: dict[str, Tensor]) -> sem.LinearSEM:
        """The structural equations of every environment, (env, ...)."""
        weight = sites.get("env_weight", sites["weight"] * (1 - self.target)[:, None, :])
        return sem.LinearSEM(weight, sites["intercept"], sites["noise"])

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | M, weights, noise): a density of all features, given a draw of the global sites."""
        if "weight" not in sites:
            sites = sites | self.posterior_sites(batch, sites)
        rows = sem.unit_rows(sites["tangent"], self.chart)
        z = batch.x @ (rows @ self.project).mT
        own = sem.LinearSEM(*(value[batch.env] for value in self._sem(sites)))
        free = self.config["features"] - self.config["latents"]
        apart = batch.x - self.offset - batch.x @ self.project.mT @ self.lift.mT
        outside = -0.5 * (apart / self.tau).square().sum(-1) - free * (self.tau.log() + 0.5 * np.log(2 * np.pi))
        jacobian = sem.log_abs_det(rows) + self.log_jacobian
        return sem.sem_log_prob(z, own) + jacobian + outside

    @torch.no_grad()
    def predict(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(new rows of x from each row's own environment, log p(x_i | sites))."""
        mean, cov = sem.sem_moments(self._sem(sites))  # (env, latent), (env, latent, latent)
        noise = torch.randn(len(batch.x), mean.shape[-1], dtype=mean.dtype, device=mean.device)
        root = torch.linalg.cholesky(cov)[batch.env]
        z = mean[batch.env] + (root @ noise[..., None]).squeeze(-1)
        x = z @ sites["loadings"].mT + self.offset
        return x + self._off_mixing(x), self.row_log_likelihood(batch, sites)

    def _off_mixing(self, like: Tensor) -> Tensor:
        """Residuals of the shape of `like`, (rows, feature), orthogonal to the mixing."""
        noise = self.tau * torch.randn_like(like)
        return noise - noise @ self.project.mT @ self.lift.mT

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        tangent = pyro.sample("tangent", Delta(self.root @ self.guide_block.loc).to_event(1))
        return z @ (self.lift @ torch.linalg.inv(sem.unit_rows(tangent, self.chart))).mT + self.offset

    def prior_latents(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows, latent) draws of the observational equations with one site `z_<k>` per latent, for `do`."""
        everywhere = self._sem(sites)
        at = int((self.target.sum(1) == 0).nonzero()[0])
        observational = sem.LinearSEM(*(value[at] for value in everywhere))
        return sem.unrolled(observational, len(batch), [str(k) for k in range(self.config["latents"])])

    def claims(self) -> tuple[Claim, ...]:
        if self.config["intervention"] == "soft":
            return ()
        free = ("permutation",) if self.config["targets"] == "relabelled" else ()
        return (Claim("latents", (*free, "scale"), GIVEN, NEEDS), Claim("graph", free, GIVEN, NEEDS))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("squires2023_hard", seed=seed, samples=500, latents=3, features=6)
        return cls.from_data(data), data


class _Marginal(TorchDistribution):
    """p(x | unmixing) of all rows: its log-density reads the moments that the program gathered from them.

    Draws (of the prior predictive only) fix what the scale-free prior leaves open: noise deviations 1, slab
    deviations 1, intercepts 0.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(self, program: LinearSEMLin, rows: Tensor, length: int, validate_args: bool | None = None) -> None:
        self.program, self.rows = program, rows
        shape = torch.Size((length, program.config["features"]))
        super().__init__(torch.Size(), shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.program._objective(self.rows)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        program, d = self.program, self.rows.shape[-1]
        prior = graphs.log_edge_prior(d, program.config["edge_probability"], self.rows.device)
        _, graph = graphs.sample_dags(prior.to(self.rows.dtype))
        weight = graph * torch.randn_like(self.rows)
        unit = torch.ones_like(self.rows[0])
        _, cov = sem.sem_moments(sem.LinearSEM(weight, 0 * unit, unit))
        noise = torch.randn(*sample_shape, self.event_shape[0], d, dtype=cov.dtype, device=cov.device)
        z = noise @ torch.linalg.cholesky(cov).mT
        x = z @ (program.lift @ torch.linalg.inv(self.rows)).mT + program.offset
        return x + program._off_mixing(x)


def _checked(target_matrix: Any, latents: int) -> np.ndarray:
    target = np.asarray(target_matrix)
    if target.ndim != 2 or target.shape[1] != latents or not np.isin(target, (0, 1)).all():
        reject("target_matrix", f"shape {target.shape}", f"0/1 entries of shape (env, latent), {latents} latents")
    if not (target.sum(1) == 0).any():
        reject("targets", "no observational environment", "one environment or more without targets")
    missing = np.flatnonzero(target.sum(0) == 0)
    if missing.size:
        reject("targets", f"no environment that intervenes on latent {missing[0]}", "one or more for each latent")
    return target.astype(np.int64)


if __name__ == "__main__":
    run(LinearSEMLin)
