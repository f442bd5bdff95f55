"""Sparse mechanism shifts: which structural equations differ in which environment, and the graph they are on.

    order ~ uniform, edge[j, k] ~ Bernoulli if j precedes k                        (parent, child)
    target[e, k] ~ Bernoulli: environment e has a mechanism k of its own           (env, latent)
    z_i,k = f_ek(z_i,parents) + s_ek eps,  eps ~ N(0, 1)                           (data, latent)
    f_ek(z) = sum_b w_ekb phi_b(z_parents)                                         phi: (data, basis)
    w_ekb ~ N(0, (t_k s_ek)^2),  1 / s_ek^2 ~ Gamma(1, .1)                         (env, latent, basis), (env, latent)
    x_i = z_i                                                                      (data, feature)

Environments that are not targets of k share one f_k and s_k. phi are 1, the parents and the basis of a Gaussian process
of the parents with a squared exponential kernel, through inducing points (subset of regressors; mechanism="linear"
leaves them out); features are in units of their deviation over all rows. Everything but two global sites is summed out
exactly: w and s by conjugacy, the kernel's width and t_k over a grid, targets over all subsets of environments, graphs
and orders by a dynamic program over subsets. The sites are `change` and `edge`, the log odds that a mechanism differs
and that an edge is there; the guide is normal. The data enter through the second moments of phi and z in each
environment, gathered once for each set of parents. Draws of graph, targets, weights and noise given the two sites are
exact and every graph is acyclic.

*Identified:* nothing is to be found of the latents, all are observed. Targets, and the graph exactly, if the equations
are nonlinear with additive Gaussian noise; if they are linear, the graph up to Markov equivalence, and targets where no
equivalent graph needs as few. Targets are relative to the `reference` environment, or without one to the largest group
of environments that share a mechanism.

Perry, von Kuegelgen & Schoelkopf (2022), Causal discovery in heterogeneous environments under the sparse mechanism
shift hypothesis; Huang et al. (2020), Causal discovery from heterogeneous/nonstationary data; Chen, Bello, Aragam &
Ravikumar (2023), iSCAN.

*Differs from the paper in* being a posterior over graphs and shifts together: the papers test or score one conditional
at a time (Perry: the graph with the fewest shifts of an equivalence class; iSCAN: shifts between two environments,
without the graph).

*For a variant, copy this file and change* `_basis`: what equations may look like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.data import CUSTOMARY_CONTROLS
from pyrocrl.dists import Law, Normal, categorical
from pyrocrl.errors import one_of, reject
from pyrocrl.exact import orders, regression, sharing
from pyrocrl.lab.studies import ShiftedMechanisms
from pyrocrl.program import check_between, check_rows, check_whole

MOST_LATENTS = 7  # moments are kept for each of the 2**latents sets of parents
WIDTHS = (0.5, 1.0, 2.0)  # of the kernel, in deviations of one parent, times sqrt(parents)
RATIOS = (1.0, 10.0, 100.0)  # t^2: variance of a weight over that of the noise
CANDIDATES = 1500  # rows from which inducing points are taken

ADDITIVE = "equations are nonlinear with additive Gaussian noise"
LINEAR = "equations are linear with additive Gaussian noise"
FEWEST = "no Markov equivalent graph explains the environments by as few shifts"
SUFFICIENT = "no unobserved variable acts on two observed ones"
SHARED = "the environments that share a mechanism are more than those that have any other one in common"


class MechanismShift(Program):
    card = ModelCard(
        name="mechanism_shift",
        title="Sparse mechanism shifts",
        family="interventions",
        summary="Several environments in which few structural equations differ: which ones in which environment, and "
        "the graph, by exact sums over both.",
        when=(
            "the causal variables themselves are measured, seven at most, in two to ten environments between which "
            "few mechanisms differ",
            "the variables are latent, something unobserved acts on two of them, or most mechanisms change from one "
            "environment to another",
        ),
        assumes=(
            "latents are observed: x = z",
            "z follows structural equations with additive Gaussian noise and without cycles",
            "all environments have the same graph, and few equations differ between them",
        ),
        claims=(
            Claim("targets", (), (SUFFICIENT, ADDITIVE), ("observational_environment",)),
            Claim("graph", (), (SUFFICIENT, ADDITIVE)),
        ),
        references=(
            Reference(
                "Perry, von Kuegelgen & Schoelkopf",
                2022,
                "Causal discovery in heterogeneous environments under the sparse mechanism shift hypothesis",
                "NeurIPS",
                "https://arxiv.org/abs/2206.02013",
            ),
            Reference(
                "Huang, Zhang, Zhang, Ramsey, Sanchez-Romero, Glymour & Schoelkopf",
                2020,
                "Causal discovery from heterogeneous/nonstationary data",
                "JMLR",
                "https://jmlr.org/papers/v21/19-232.html",
            ),
            Reference(
                "Chen, Bello, Aragam & Ravikumar",
                2023,
                "iSCAN: identifying causal mechanism shifts among nonlinear additive noise models",
                "NeurIPS",
                "https://arxiv.org/abs/2306.17361",
            ),
        ),
        differs=(
            "a posterior over graphs and shifts together in place of tests of one conditional at a time",
            "any number of environments from two to ten, with or without one to compare with",
        ),
        status="stable",
        needs_env=True,
        targets=("unknown",),
    )
    recipe = Recipe(
        epochs=150,
        batch_size=None,
        lr=0.05,
        kl_warmup=0.0,
        temperature_span=0.0,
        held_out=0.05,
        patience=None,
        keep="last",
        chains=4,
        dtype=torch.float64,
    )
    uses_rows = False
    sites = {
        "z": Site(("data", "latent")),
        "graph": Site(("parent", "child"), discrete=True),
        "targets": Site(("env", "latent"), discrete=True),
        "coefficients": Site(("env", "latent", "basis")),
        "noise": Site(("env", "latent")),
        "base_coefficients": Site(("latent", "basis")),
        "base_noise": Site(("latent",)),
        "width": Site(("latent",)),
    }

    def __init__(
        self,
        features: int,
        latents: int,
        environments: int,
        mechanism: Literal["nonlinear", "linear"] = "nonlinear",
        reference: bool = True,
        inducing: int = 48,
        change_log_odds: float = -1.4,
        change_sd: float = 1.0,
        edge_log_odds: float = 0.0,
        edge_sd: float = 1.0,
    ) -> None:
        """reference: whether environment 0 is what the others are compared with. inducing: inducing points of a
        nonlinear mechanism. change_log_odds, change_sd: prior mean and deviation of the log odds that a mechanism
        differs; edge_log_odds, edge_sd: the same of an edge.

        Raises InputError unless latents = features, of 2 to 7, and there are 2 to 10 environments.
        """
        super().__init__()
        check_whole("features", features, 2, MOST_LATENTS)
        check_whole("environments", environments, 2, sharing.MAX_ENVIRONMENTS)
        check_whole("inducing", inducing, 2, 1000)
        if latents != features:
            reject("latents", repr(latents), f"{features}, as many as features: the latents are observed")
        one_of("mechanism", mechanism, ("nonlinear", "linear"))
        for name, sd in (("change_sd", change_sd), ("edge_sd", edge_sd)):
            check_between(name, sd)
        self.change_prior, self.edge_prior = (change_log_odds, change_sd), (edge_log_odds, edge_sd)
        self.nonlinear = mechanism == "nonlinear"
        count = inducing if self.nonlinear else 0
        self.widths = WIDTHS if self.nonlinear else WIDTHS[:1]
        differs, double = sharing.subsets(environments, reference), torch.float64
        size, widths = 1 + latents + count + latents, len(self.widths)  # of (phi, z)
        self.loc = nn.Parameter(torch.tensor([change_log_odds, edge_log_odds]))
        self.log_scale = nn.Parameter(torch.full((2,), -1.0))
        buffers = {
            "centre": torch.zeros(count, latents, dtype=double),  # inducing points, standardised
            "mean": torch.zeros(latents, dtype=double),
            "spread": torch.ones(latents, dtype=double),
            # sums of products of (phi, z) over the rows of each environment, by set of parents and width
            "moments": torch.zeros(2**latents, widths, environments, size, size, dtype=double),
            "count": torch.full((environments,), 2.0, dtype=double),
            # log evidence of the rows by child, set of parents, (width, ratio), subset of environments that differ
            "evidence": torch.zeros(latents, 2**latents, widths * len(RATIOS), len(differs), dtype=double),
            "differs": differs.clone(),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    # -- model and guide ---------------------------------------------------------------------------------------

    def _basis(self, z: Tensor, mask: Tensor, width: Tensor) -> Tensor:
        """phi (rows, ..., basis) of standardised z (rows, ..., latent): mask (..., latent) says which are parents."""
        size = mask.sum(-1, keepdim=True)
        unit = size.clamp_min(1.0).sqrt()
        linear = z * mask / unit
        parts = [torch.ones_like(linear[..., :1]), linear]
        if self.nonlinear:
            white = regression.inducing_basis(z, self.centre.double(), mask / unit / width[..., None])
            parts.append(white * (size > 0))
        return torch.cat(parts, -1)

    def _log_odds(self, mean: float, sd: float) -> Normal:
        return Normal(torch.full_like(self.loc[0], mean), sd)

    def model(self, batch: Batch) -> None:
        change = pyro.sample("change", self._log_odds(*self.change_prior))  # ()
        edge = pyro.sample("edge", self._log_odds(*self.edge_prior))  # ()

        def prior() -> Tensor:
            return self._simulate(self._equations(change, edge, told=0.0), batch.env)

        law = Law((), batch.x.shape, lambda _: self._objective(change, edge), prior)
        pyro.sample("x", law, obs=batch.x)  # all rows at once, by their moments

    def guide(self, batch: Batch) -> None:
        for i, name in enumerate(("change", "edge")):
            pyro.sample(name, Normal(self.loc[i], self.log_scale[i].exp()))

    def _joint(self, change: Tensor, told: float = 1.0) -> Tensor:
        """(child, set, grid, subset) log evidence and prior of targets, width and ratio; told=0: the prior alone."""
        prior = sharing.log_prior(change.double(), self.differs.double(), self.config["reference"])
        return told * self.evidence.double() + prior - math.log(self.evidence.shape[2])

    def _scores(self, change: Tensor, edge: Tensor, told: float = 1.0) -> Tensor:
        """(child, set) log score of every set of parents, targets summed out."""
        d = self.evidence.shape[0]
        size = orders.members(d, self.evidence.device).sum(-1)
        return self._joint(change, told).flatten(2).logsumexp(-1) + size * edge.double()

    def _objective(self, change: Tensor, edge: Tensor) -> Tensor:
        """log p(x | change, edge), everything else summed out."""
        d = self.evidence.shape[0]
        absent = torch.nn.functional.logsigmoid(-edge.double()) * (d * (d - 1) / 2) - math.lgamma(d + 1)
        return orders.log_partition(self._scores(change, edge)) + absent - self.count.sum() * self.spread.log().sum()

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, exact at the guide's mean of the log odds."""
        return orders.edge_probabilities(self._scores(*self.loc))

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        """(env, latent) probabilities that a mechanism differs, exact at the guide's mean of the log odds."""
        given_set = self._joint(self.loc[0]).logsumexp(2)
        return sharing.target_probabilities(self._scores(*self.loc), given_set, self.differs.double())

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Given the log odds, draws of graph, targets, width, weights and noise, in standardised units."""
        return {"z": batch.x, **self._equations(sites["change"], sites["edge"])}

    def _equations(self, change: Tensor, edge: Tensor, told: float = 1.0) -> dict[str, Tensor]:
        """Draws of everything that is summed out; told=0: from the prior."""
        d, dtype, device = self.evidence.shape[0], self.spread.dtype, self.spread.device
        _, graph = orders.sample_dags(self._scores(change, edge, told))
        chosen = orders.parent_sets(graph)  # (latent,)
        logits = self._joint(change, told)[torch.arange(d, device=device), chosen]  # (latent, grid, subset)
        cell = categorical(logits.flatten(1))
        grid, subset = cell // logits.shape[-1], cell % logits.shape[-1]
        differs = self.differs.double()[subset]  # (latent, env)
        ratio = torch.tensor(RATIOS, device=device, dtype=torch.float64)[grid % len(RATIOS)]
        # of the environments that share an equation, together, then of each environment
        moments = told * self.moments.double()[chosen, grid // len(RATIOS)]  # (latent, env, basis + latent, ...)
        count = told * self.count.double().expand(d, -1)
        shared = 1.0 - differs
        moments = torch.cat([(shared[:, :, None, None] * moments).sum(1, keepdim=True), moments], 1)
        count = torch.cat([(shared * count).sum(1, keepdim=True), count], 1)
        weight, noise = regression.draw(moments, count, ratio)  # (latent, 1 + env, basis), (latent, 1 + env)
        hit = differs[..., None] > 0.5
        out = {
            "graph": graph,
            "targets": differs.mT,  # (env, latent)
            "coefficients": torch.where(hit, weight[:, 1:], weight[:, :1]).transpose(0, 1),  # (env, latent, basis)
            "noise": torch.where(hit[..., 0], noise[:, 1:], noise[:, :1]).mT,  # (env, latent)
            "base_coefficients": weight[:, 0],  # (latent, basis)
            "base_noise": noise[:, 0],  # (latent,)
            "width": torch.tensor(self.widths, device=device)[grid // len(RATIOS)],  # (latent,)
        }
        return {name: value.to(dtype) for name, value in out.items()}

    def _fitted(self, z: Tensor, sites: dict[str, Tensor], coefficients: Tensor) -> Tensor:
        """f(z) (rows, latent) of standardised z; coefficients (rows or nothing, latent, basis)."""
        return (self._basis(z[:, None], sites["graph"].mT, sites["width"]) * coefficients).sum(-1)

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | graph, targets, weights, noise)."""
        if "noise" not in sites:
            sites = sites | self.posterior_sites(batch, sites)
        z, noise = (batch.x - self.mean) / self.spread, sites["noise"][batch.env]
        apart = (z - self._fitted(z, sites, sites["coefficients"][batch.env])) / noise
        return (-0.5 * apart.square() - (noise * self.spread).log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def predict(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(new rows of x from each row's own environment, log p(x_i | sites))."""
        return self._simulate(sites, batch.env), self.row_log_likelihood(batch, sites)

    def _simulate(self, sites: dict[str, Tensor], env: Tensor) -> Tensor:
        noise, coefficients = sites["noise"][env], sites["coefficients"][env]
        eps = noise * torch.randn_like(noise)
        z = eps
        for _ in range(noise.shape[-1]):  # each round settles one more generation of the acyclic graph
            z = self._fitted(z, sites, coefficients) + eps
        return self.mean + self.spread * z

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return z

    def prior_latents(self, batch: Batch, sites: dict[str, Tensor], envs: Sequence[int] = ()) -> Tensor:
        """(rows, latent) draws of the shared equations with one site `z_<k>` per latent, for `do`.

        envs: environments whose own mechanisms act together (the last of them that differs in k gives mechanism k).
        """
        coefficients, noise = sites["base_coefficients"], sites["base_noise"]
        for e in envs:
            hit = sites["targets"][e] > 0.5
            coefficients = torch.where(hit[:, None], sites["coefficients"][e], coefficients)
            noise = torch.where(hit, sites["noise"][e], noise)

        def value(k: int, z: Tensor) -> Tensor:
            eps = pyro.sample(f"eps_{k}", Normal(torch.zeros_like(noise[k]), noise[k]))
            fitted = self._fitted((z - self.mean) / self.spread, sites, coefficients)[:, k]
            return self.mean[k] + self.spread[k] * (fitted + eps)

        return self.along(batch, sites["graph"], noise.new_zeros(len(batch), len(noise)), value)

    @property
    def latents_up_to(self) -> tuple[str, ...]:
        return ("exact",)

    def claims(self) -> tuple[Claim, ...]:
        targets, graph = self.card.claims
        if not self.nonlinear:
            graph = Claim("graph", ("markov equivalence",), (SUFFICIENT, LINEAR))
            targets = Claim("targets", (), (*graph.given, FEWEST), targets.needs)
        if not self.config["reference"]:
            targets = Claim("targets", (), (*targets.given, SHARED))
        return targets, graph

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        known = data.control is not None or data.env_names[0] in CUSTOMARY_CONTROLS
        return super().from_data(data, **({"latents": data.features, "reference": known} | options))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Inducing points among rows drawn at random; then all evidence, in closed form."""
        batch = data.tensors(dtype=torch.float64)
        self.mean.copy_(batch.x.mean(0))
        self.spread.copy_(batch.x.std(0))
        z = (batch.x - self.mean) / self.spread
        self.count.copy_(torch.bincount(batch.env, minlength=len(self.count)))
        check_rows(data, 2)
        likely = self.count.double().reciprocal()[batch.env]  # evenly from all environments
        some = z[torch.multinomial(likely, min(CANDIDATES, len(z)), generator=generator)]
        self.centre.copy_(regression.spread_out(some, len(self.centre)))
        for s, mask in enumerate(orders.members(z.shape[1]).double()):
            for i, width in enumerate(self.widths):
                values = torch.cat([self._basis(z, mask, torch.tensor(width)), z], -1)
                for e in range(len(self.count)):
                    own = values[batch.env == e]
                    self.moments[s, i, e] = own.mT @ own
        self.evidence.copy_(sharing.regression_evidence(self.moments, self.count, self.differs, RATIOS))
        self.loc.add_(0.3 * torch.randn(2, generator=generator))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("mechanism_shift2024", seed=seed, samples=300, latents=3, environments=4, shifts=1, reference=True)
        return cls.from_data(data, inducing=16), data

    studies = (ShiftedMechanisms("mechanism_shift2024", seeds=10, held_out=0.1, identified=False),)


if __name__ == "__main__":
    run(MechanismShift)
