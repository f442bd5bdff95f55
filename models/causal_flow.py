"""Causal component analysis: latents of a structural equation model behind an invertible mixing of as many features.

    tangent: directions of the rows of the unmixing M, uniform lines              (latent, latent)
    order ~ uniform;  graph[j, k] ~ Bernoulli(rho) if j precedes k                (latent,), (parent, child)
    variance s^2: p(s^2) = s^-3;  level a: flat                                   (mechanism,)
    slope w ~ N(0, s^2 G^-1), G the parents' covariance: Zellner's g-prior        (mechanism, latent)
    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)               (data, latent)
    x_i = f(z_i),  f invertible; M h(x_i) = z_i, h a free-form flow               (data, feature)

A mechanism is an equation: the natural one of each latent, then one for each (env, target). An environment that
intervenes on k cuts z_k's parents and gives it a level and a variance of its own. What is improper is simulated by
convention: variances 1, levels 0. By the change of variables log p(x | env) = log p(M h(x) | env) + log |det M| + log
|det dh / dx|.

h (`pyrocrl.parts.flows`) is trained in `initialise`, and kept: by log p(env | x), the part of this likelihood that does
not hold the Jacobian, by the normality of every environment's latents and by a decoder that inverts it
(`pyrocrl.constructions.contrastive`). The rest, log p(x), is evaluated but not climbed: doing so raised the likelihood
and mixed the latents. So the density of x is a rough one. `model` keeps `tangent`, with a Laplace approximation;
equations, graphs and orders are summed out in closed form, and drawn exactly by `recover`. Errors of h correlate
latents a little, so each row counts for less than one (`correlation_error`): many rows would make an edge of any
correlation. What is left of the law of equations in the moments (`fewer`, their dispersion) makes them fewer still.
Where targets are unknown every pairing of environments is a hypothesis: h starts at log-odds between environments
(`contrastive.paired_start`), all hypotheses are fitted to it, and a chain takes one with the probability of its
evidence.

*Identified:* latents up to scale and shift (and permutation, where targets are not known by name) and the graph
exactly, from an observational environment and one perfect intervention on each latent whose target is known, two of
different laws where it is not.

Liang et al. (2023), Causal component analysis; von Kuegelgen et al. (2023), Nonparametric identifiability of causal
representations from unknown interventions.

The verdict compares moments of every environment with equations, and latents with normal laws, within tolerances that
trained flows keep, and not at all where an environment has fewer than 400 rows, which train no flow. Few rows, or a
flow that is trained for few steps, often leave the map from h to latents open between a graph and one without an edge:
that is undecided (`latent_maps`). That a batch is no intervention is the user's word: features are as many as latents,
and there may be others of which it moves one alone.

*Differs from the paper in* Gaussian linear structural equations in place of any, for which graphs need not be tried one
by one; and in a contrastive construction of the flow.

The file is long for its construction: a flow, its whitened moments and every hypothesis of targets come before the
story can be fitted.

*For a variant, copy this file and change* a line of `story`, another prior of slopes say, and delete `model` and
`recover`, with more epochs in `recipe`; or keep them and change `_objective` with it, the marginal likelihood that they
rest on.
"""

from __future__ import annotations

import functools
from typing import Annotated

import pyro
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Reference, Site, run
from pyrocrl.constructions import contrastive, contrastive_flow, directions
from pyrocrl.constructions.marginal_sem import MarginalSEM
from pyrocrl.dists import Law, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import linear_sem, orders
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.lab.studies import Study
from pyrocrl.options import Bounds, Share, Size
from pyrocrl.parts.flows import FreeFormFlow
from pyrocrl.parts.latent_sem import SEMReadouts
from pyrocrl.parts.mixing import InvertibleMixing
from pyrocrl.program import (
    EdgeProbability,
    Environments,
    Features,
    Latents,
    TargetMatrix,
    Targets,
    check_rows,
    checked_targets,
)

GIVEN = ("noise is Gaussian", "structural equations are linear", "interventions are perfect", "mixing is invertible")
ENVIRONMENTS = ("observational_environment", "single_targets", "perfect_interventions", "interventions_show")
EACH = (*ENVIRONMENTS, "readings_apart", "map_told")
ONCE, TWICE = (*EACH, "one_intervention_per_latent"), (*EACH, "two_interventions_per_latent")
TOLD, UNKNOWN = {"targets": ("known", "relabelled")}, {"targets": "unknown"}


class CausalFlow(MarginalSEM, Program):
    card = ModelCard(
        name="causal_flow",
        title="Causal component analysis",
        family="interventions",
        summary="As many features as latents, mixed by any invertible function: which latents, which graph and, from "
        "two interventions on each, which targets.",
        when=(
            "there are as many features as latents, any invertible function may have mixed them, and every latent "
            "has a perfect intervention, or two of different laws where targets are unknown",
            "features outnumber latents, rows are few (the figures take 50,000 and more), or intervals of edge "
            "weights have to hold: here they cover too little",
        ),
        assumes=(
            "x is an invertible function of as many latents",
            "z follows a linear Gaussian structural equation model without cycles",
            "an intervention replaces the equation of its target",
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, ONCE, TOLD),
            Claim("graph", ("permutation",), GIVEN, ONCE, TOLD),
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, TWICE, UNKNOWN),
            Claim("graph", ("permutation",), GIVEN, TWICE, UNKNOWN),
        ),
        references=(
            Reference(
                "Liang, Kekic, von Kuegelgen, Buchholz, Besserve, Gresele & Schoelkopf",
                2023,
                "Causal component analysis",
                "NeurIPS",
                "https://arxiv.org/abs/2305.17225",
            ),
            Reference(
                "von Kuegelgen, Besserve, Liang, Gresele, Kekic, Bareinboim, Blei & Schoelkopf",
                2023,
                "Nonparametric identifiability of causal representations from unknown interventions",
                "NeurIPS",
                "https://arxiv.org/abs/2306.00542",
            ),
        ),
        differs=(
            "linear Gaussian structural equations: graphs are summed out, not tried one by one",
            "the flow is trained by contrasts between environments, not by the density of features",
        ),
        settings=("cauca",),
        status="experimental",
        needs_env=True,
        targets=("known", "relabelled", "unknown"),
        approximate="Exact given the flow and the targets: the flow is trained by contrasts and kept, rows count for "
        "less than one (`correlation_error`) in the story as in what is fitted, and a chain holds one hypothesis of "
        "unknown targets.",
    )
    counted = "targets"
    checks = {"flow_moments": (), "flow_gaussian": ()}
    recipe = MarginalSEM.recipe
    sites = {
        **{k: v for k, v in SEMReadouts.sites.items() if k not in ("escaped", "env_weight")},
        "unmixing": Site(("latent", "direction"), {"latent": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, orders.MAX_NODES)],
        target_matrix: TargetMatrix | None = None,
        targets: Targets = "known",
        environments: Environments | None = None,
        edge_probability: EdgeProbability = 0.5,
        width: Size = 64,
        steps: Size = 1500,
        correlation_error: Share = 0.06,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, one target for each environment but the observational ones; left out
        where targets are unknown: environment 0 is then observational. width, steps: of the flow's layers, and its
        training. correlation_error: of latents, that errors of h leave in all environments alike and whatever the rows.

        Raises InputError unless there are as many features as latents (2 to 12), for a latent without an environment,
        none observational, and for unknown targets unless there are two environments for each latent, at most 4.
        """
        super().__init__()
        if latents != features:
            reject("latents", latents, f"as many as features ({features}), at most {orders.MAX_NODES}")
        unknown = targets == "unknown"
        if unknown and environments != 2 * latents + 1:
            reject("environments", environments, f"{2 * latents + 1}: an observational one, then two a latent")
        if unknown and latents > 4:
            reject("latents", latents, "2 to 4 where targets are unknown: every hypothesis is fitted")
        self.flow = FreeFormFlow(features, width).requires_grad_(False)
        first = next(iter(contrastive_flow.pairings(latents))) if unknown else checked_targets(target_matrix, latents)
        self.hold_moments(first, unknown)
        self.hold(  # y = project (h(x) - offset)
            project=torch.eye(latents),
            offset=torch.zeros(latents),
            log_jacobian=torch.zeros(()),  # mean log |det dy / dx|, times the counts
            rival=torch.tensor(torch.inf),  # `readings_margin`
            fewer=torch.ones(()),  # times that rows count as fewer for the dispersion of moments
        )

    # -- the story, what is fitted, and the way back -----------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d = self.config["latents"]
        tangent = pyro.sample("tangent", directions.Directions(self.project, d))  # (latent (latent - 1),)
        prior = orders.log_edge_prior(d, self.config["edge_probability"], tangent.device)
        order = pyro.sample("order", orders.Order(prior))  # (latent,)
        graph = pyro.sample("graph", orders.Graph(prior, order))  # (parent, child)
        unmixing, targets = self._unmixing(tangent), self.target.double()  # M (latent, latent), (env, latent)
        known = linear_sem.regressions(unmixing, graph, self._slices())
        with pyro.plate("mechanism", len(known.count), dim=-1):  # the natural equations, then each (env, target)
            variance = pyro.sample("variance", known.prior_variance())
            slope = pyro.sample("slope", known.prior_slopes(variance))  # (mechanism, latent)
            level = pyro.sample("level", known.prior_level(variance))
        equations = self._equations(known.mechanisms(variance, slope, level), targets)
        pyro.deterministic("unmixing", unmixing)
        told_z = None if batch.x is None else self._white(batch.x)[0].double() @ unmixing.mT
        with self.rows(batch), pyro.poutine.scale(scale=self._worth(batch)):
            own = linear_sem.of_rows(equations, targets, batch.env, batch.together, self.control)

            def equation(k: int, z: Tensor) -> Normal:
                return Normal(own.intercept[:, k] + (z * own.weight[:, :, k]).sum(-1), own.scale[:, k])

            z = self.along(order.tolist(), equation, torch.zeros_like(own.scale), told_z)  # (rows, latent)
            pyro.sample("x", InvertibleMixing(z, unmixing, self._mix, self._white), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        tangent = pyro.sample("tangent", directions.Directions(self.project, self.config["latents"]))
        law = Law((), (len(batch), self.config["features"]), lambda _: self._objective(self._unmixing(tangent)))
        pyro.sample("x", law, obs=batch.x)  # all rows at once, through their moments

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        unmixing, table = self._unmixing(kept["tangent"]), self._slices()
        scores = self._scores(unmixing, table)
        order = pyro.sample("order", orders.Order(scores))
        graph = pyro.sample("graph", orders.Graph(scores, order))
        known = linear_sem.regressions(unmixing, graph, table)
        with pyro.plate("mechanism", len(known.count), dim=-1):
            variance = pyro.sample("variance", known.variance())
            slope = pyro.sample("slope", known.slopes(variance))
            pyro.sample("level", known.level(slope, variance))

    def _objective(self, rows: Tensor, target: Tensor | None = None) -> Tensor:
        """log p(x | rows of the unmixing, targets), everything else summed out."""
        return self._log_marginal(rows, target) + self.log_jacobian

    def _worth(self, batch: Batch) -> Tensor:
        """(rows,) what a row counts for: errors of h are the same however many rows there are."""
        return (1.0 - self.count.double()[batch.env] * self.config["correlation_error"] ** 2) / self.fewer

    def _white(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y (rows, latent), log |det dy / dx| (rows,))."""
        h, log_det = self.flow(x)
        return (h - self.offset) @ self.project.mT, log_det + torch.linalg.slogdet(self.project).logabsdet

    def _mix(self, z: Tensor, unmixing: Tensor) -> Tensor:
        """(rows, feature) x of z by the decoder."""
        y = torch.linalg.solve(unmixing.to(z), z.mT).mT
        h = torch.linalg.solve(self.project.to(z), y.mT).mT + self.offset.to(z)
        return self.flow.decode(h.to(self.flow.centres.dtype))  # mechanisms are told in double, x not

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        y = (self.flow.encode(batch.x) - self.offset) @ self.project.mT
        return y @ self._rows().to(y).mT

    def targets_matrix(self) -> Tensor | None:
        return self.target if self.config["targets"] != "known" else None

    def readings_margin(self) -> float | None:
        return float(self.rival)

    @torch.no_grad()
    def latent_maps(self) -> Tensor | None:
        """(draw, latent, latent) from the latents that are read to those of draws of M."""
        return directions.unit_rows(self.drawn, self.chart) @ torch.linalg.inv(self._mean_rows())

    @torch.no_grad()
    def implied(self) -> Gaussians | None:
        """Of rows that count as fewer for `correlation_error` alone: the dispersion of moments is what is tested."""
        found, square = super().implied(), self.config["correlation_error"] ** 2
        if found is None:
            return None
        count = self.count.double()
        rows = self.fewer * count / (1.0 - count * square)  # (env,) as they are
        return found._replace(rows=(rows / (1.0 + rows * square)).cpu().numpy())

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | M, weights, noise)."""
        unmixing, equations = self._of_draw(batch, sites)
        y, log_det = self._white(batch.x)
        inside = linear_sem.sem_log_prob(y.double() @ unmixing.mT, equations.at(batch.env))
        return inside + linear_sem.log_abs_det(unmixing) + log_det

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The flow from contrasts, its decoder by regression, and the unmixing and targets of the most evidence."""
        check_rows(data, 3 * self.config["latents"])
        batch = data.tensors(self.target.device, torch.float32)
        hypotheses = self._hypotheses() if self.unknown else []
        sizes = self.config["width"], self.config["steps"]
        flow, start = contrastive_flow.train(batch.x, batch.env, self.target.float(), *sizes, generator, hypotheses)
        self.flow.load_state_dict(flow.state_dict())
        self.put(rival=torch.tensor(start.rival))
        self._gather(data, start.unmixing)
        found = [(self._modes(target, generator), target) for target in self._hypotheses()]
        evidence = torch.stack([modes[0].log_evidence for modes, _ in found])
        chosen = int(torch.multinomial((evidence - evidence.max()).exp().cpu(), 1, generator=generator))
        modes, target = found[chosen]
        self.target.copy_(target)
        self._laplace(modes)
        self._start_apart(generator)

    def _hypotheses(self) -> list[Tensor]:
        if not self.unknown:
            return [self.target]
        return [torch.as_tensor(t).to(self.target) for t in contrastive_flow.pairings(self.config["latents"])]

    @torch.no_grad()
    def _gather(self, data: Data, unmixing: Tensor) -> None:
        """Moments of y, white over the observational rows, and what its rows are worth; unmixing (latent, latent): of
        the construction, by whose latents equations are compared with the moments."""
        batch = data.tensors(self.target.device, self.target.dtype)
        h, log_det = (torch.cat(part) for part in zip(*map(self.flow, batch.x.split(8192)), strict=True))
        found = contrastive.moments(h, batch.env, self.target)
        use = torch.zeros_like(found.count)
        use[self.observational] = 1.0
        _, mean, cov = found.pooled(use)
        white = directions.whitening(cov)
        y = found._replace(mean=found.mean - mean).transform(white)
        z = found.transform(unmixing.double())
        self.put(fewer=torch.tensor(min(contrastive.dispersion(z._replace(target=t)) for t in self._hypotheses())))
        count = y.count / (self.fewer + y.count * self.config["correlation_error"] ** 2)
        for own, value in zip((self.project, self.offset, self.count), (white, mean, count), strict=True):
            own.copy_(value)
        self.mean.copy_(y.mean)
        self.cov.copy_(y.cov)
        volume = self._worth(batch) @ log_det.double() + self.count.sum() * torch.linalg.slogdet(white).logabsdet
        self.log_jacobian.copy_(volume)

    def _modes(self, target: Tensor, generator: torch.Generator) -> list[directions.Mode]:
        """The maxima under these targets, from the theorem's candidates and the planes that hold them; where targets
        are unknown the best alone, for there are many of them."""
        environments = self._environments()._replace(target=target)
        candidates = directions.candidate_rows(environments, generator)
        objective = functools.partial(self._objective, target=target)
        starts = directions.starts_around(environments, candidates, objective, generator)
        starts = starts[: 1 if self.unknown else 1 + directions.EFFORT.rivals]
        found = directions.climb(objective, starts)
        if not self.unknown:
            planes = directions.plane_rows(environments, directions.ANGLES)
            found += directions.climb(objective, directions.rows_exchanged(found[0].chart[:, 0], planes))
        return directions.best_modes(found, 1 if self.unknown else directions.EFFORT.keep)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("cauca", seed=seed, samples=500, latents=2, layers=1)
        return cls.from_data(data, width=16, steps=60), data

    studies = (
        Study("cauca", {"samples": 200_000}, held_out=0.05),
        Study(
            "cauca", {"samples": 50_000, "latents": 3, "interventions": 2}, {"targets": "unknown"}, 20, held_out=0.05
        ),
    )


if __name__ == "__main__":
    run(CausalFlow)
