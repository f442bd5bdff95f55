"""Graphs of observed variables from observational and interventional rows: linear Gaussian equations.

    edge ~ N(log odds of `neighbours` a variable, edge_sd^2): log odds of an edge                    ()
    order ~ uniform, graph[j, k] ~ Bernoulli(edge) if j precedes k                  (parent, child)
    targets[e, k] ~ Bernoulli(target_probability), where unknown                    (env, latent)
    slab_k ~ uniform: t_k is 1, 3 or 10                                             (latent,)
    precision_mk = 1 / s_mk^2 ~ Gamma(.5, .01)                                      (mechanism, latent)
    w_mkb ~ N(0, (u_kb s_mk)^2), u_k = 3, t_k, ..., t_k, 3, ..., 3                  (mechanism, latent, basis)
    z_i,k ~ N(w_mk' phi_k(z_i, e_i), s_mk^2), s_mk^2 / scale_i with noise="student" (data, latent)
    x_i = z_i                                                                       (data, feature)

phi_k are 1 and k's candidate parents, those that are none of its parents set to 0. An environment that intervenes on k
has a mechanism m of its own for it, without parents ("perfect") or with them ("soft"); under "shift" all share one, and
phi_k has an indicator of each environment that k is a target of. w and s are of standardised columns; `weight`,
`offset` and `noise` tell the equations in the data's units. A `reference` environment is no target.

With noise="student" a row's noise has one scale, scale_i ~ Gamma(freedom / 2, freedom / 2), log freedom ~ N(3, 1.5^2):
rows are of Student's law, outlying ones count for less, and given the scales all is as before, sums of products being
weighted. Freedom and scales are plugged in, at the maximum of a law without equations (`pyrocrl.exact.student_rows`);
in story and model rows then count for the part of a row that they tell without their scales, (freedom + d) / (freedom +
d + 2) of d columns. The evidence of normal rows takes tails that columns have in common for edges.

`model` keeps `edge`, with a normal guide, and sums out the rest exactly: w and s by conjugacy, for all sets of parents
at once, unknown targets over subsets of environments, graphs and orders by a dynamic program over subsets, up to 12
variables. Above, or with orders="sampled", it keeps `order` too: its guide draws from a run of annealed sequential
Monte Carlo that each chain begins with (`pyrocrl.exact.order_sampling`). `recover` draws the rest exactly.

*Identified:* the graph up to interventional Markov equivalence: an edge's direction shows where an intervention has one
of its ends as a target, or where v-structures force it. Latents are observed. Unknown targets are relative to the
`reference` environment.

Friedman & Koller (2003), Being Bayesian about network structure; Hauser & Buehlmann (2012) and Yang, Katcoff & Uhler
(2018), interventional equivalence; Squires, Wang & Uhler (2020), unknown targets.

*Differs from the paper in* being a posterior over graphs, targets and weights at once, where searches return the graph
of the best score or of accepted tests.

Longer than other models because orders are summed or sampled, targets known or not, and interventions of three kinds.

*For a variant, copy this file and change* `_edge`: how many edges there are a priori, or `_joint`: what equations, see
`pyrocrl.exact.interventions`, may look like.
"""

from __future__ import annotations

import contextlib
import math
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import Categorical, Gamma, Law, LogNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import all_subsets, interventions, orders, sharing, student_rows
from pyrocrl.exact import order_sampling as sampling
from pyrocrl.lab.studies.observed_graphs import HeavyTailedGraph, ObservedGraph, SignallingGraph
from pyrocrl.options import Bounds, Positive, Share, Size
from pyrocrl.parts.observed_equations import ObservedEquations
from pyrocrl.program import TargetMatrix, checked_targets

MOST = 1000  # variables
SUMMED = 12  # variables up to which orders are summed over
TOUCHING = 6  # environments a variable whose interventions on it are summed over, where targets are unknown

NORMAL = "equations are linear with additive Gaussian noise"
STUDENT = "equations are linear with additive noise of Student's law, of one scale a row"
LAWS = {"gaussian": NORMAL, "student": STUDENT}
HIDDEN = "no unobserved variable acts on two observed ones"
FAITHFUL = "independences are those that the graph asks for (faithfulness)"
GIVEN = {law: (HIDDEN, sentence, FAITHFUL) for law, sentence in LAWS.items()}
SHARED = "the environments that share an equation are more than those that have any other one in common"
COMPARED = ("observational_environment",)


class ObservedDAG(ObservedEquations, Program):
    gathered: tuple[str, ...] = (
        *("mean", "spread", "moments", "count", "candidates", "touching", "evidence", "touched"),
    )
    card = ModelCard(
        name="observed_dag",
        title="Graphs of observed variables",
        family="observed graphs",
        summary="Posterior over graphs of measured variables, from observational rows and interventions that are "
        "perfect, soft or shifts, targets known or not: sums over sets of parents are exact, up to a thousand nodes.",
        when=(
            "the causal variables themselves are measured, their equations are about linear, and it is the graph, or "
            "what interventions hit, that is asked for",
            "the variables are latent, something unobserved acts on two of them, or equations are far from linear "
            "(`mechanism_shift`)",
        ),
        assumes=(
            "latents are observed: x = z",
            HIDDEN,
            f"{NORMAL}, or of Student's law",
            "all environments have the same graph",
        ),
        claims=tuple(
            claim
            for law, given in GIVEN.items()
            for claim in (
                Claim("graph", ("interventional equivalence",), given, (), {"noise": law}),
                Claim("targets", (), given, COMPARED, {"noise": law, "targets": "unknown", "reference": True}),
                Claim("targets", (), (*given, SHARED), (), {"noise": law, "targets": "unknown", "reference": False}),
            )
        ),
        references=(
            Reference(
                "Friedman & Koller",
                2003,
                "Being Bayesian about network structure",
                "Machine Learning",
                "https://doi.org/10.1023/A:1020249912095",
            ),
            Reference(
                "Hauser & Buehlmann",
                2012,
                "Characterization and greedy learning of interventional Markov equivalence classes",
                "JMLR",
                "https://jmlr.org/papers/v13/hauser12a.html",
            ),
            Reference(
                "Yang, Katcoff & Uhler",
                2018,
                "Characterizing and learning equivalence classes of causal DAGs under interventions",
                "ICML",
                "https://arxiv.org/abs/1802.06310",
            ),
            Reference(
                "Finegold & Drton",
                2011,
                "Robust graphical modeling of gene networks using classical and alternative t-distributions",
                "Annals of Applied Statistics",
                "https://arxiv.org/abs/1009.3669",
            ),
            Reference(
                "Squires, Wang & Uhler",
                2020,
                "Permutation-based causal structure learning with unknown intervention targets",
                "UAI",
                "https://arxiv.org/abs/1910.09007",
            ),
        ),
        differs=("a posterior over graphs, targets and weights in place of one graph",),
        status="experimental",
        targets=("known", "unknown"),
        approximate="Orders of more than 12 variables are a sample, whose sum is estimated; parents are among each "
        "variable's likeliest candidates, and unknown targets among its 6 likeliest environments. With noise='student' "
        "scales of rows and degrees of freedom are plugged in; rows count for less than one, as scales are unknown.",
    )
    recipe = Recipe.unannealed(
        epochs=60, batch_size=None, lr=0.1, held_out=0.05, patience=None, keep="last", dtype=torch.float64, chains=4
    )
    constants = ("mean", "spread")
    uses_rows = False
    new_rows = True
    infers_targets = True
    knows_interventions = True
    sites = {
        "z": Site(("data", "latent")),
        "graph": Site(("parent", "child"), discrete=True),
        "targets": Site(("env", "latent"), discrete=True),
        "weight": Site(("parent", "child")),
        "offset": Site(("env", "latent")),
        "noise": Site(("env", "latent")),
        "freedom": Site(()),
        "scale": Site(("data",)),
    }

    def __init__(
        self,
        features: Annotated[int, Bounds(2, MOST), "columns of x, which are the latents; read off the data"],
        latents: Annotated[int, Bounds(2, MOST), "as many as features"],
        environments: Annotated[int, Bounds(1), "how many there are; read off the data"],
        target_matrix: TargetMatrix | None = None,
        targets: Annotated[Literal["known", "unknown"], "whether the targets of environments are given"] = "known",
        intervention: Annotated[
            Literal["perfect", "shift", "soft"], "what interventions do to their targets"
        ] = "perfect",
        reference: Annotated[bool, "whether environment 0 is no target, where targets are unknown"] = True,
        orders: Literal["auto", "summed", "sampled"] = "auto",
        candidates: Annotated[int, Bounds(1, 16), "parents that a variable may have, where orders are sampled"] = 13,
        particles: Annotated[Size, "of a chain's run, where orders are sampled"] = 256,
        neighbours: Annotated[Positive, "of a variable, expected a priori"] = 2.0,
        edge_sd: Annotated[Positive, "prior deviation of the log odds of an edge"] = 1.0,
        target_probability: Annotated[Share, "a priori, that an environment intervenes on a variable"] = 0.1,
        noise: Annotated[Literal["gaussian", "student"], "the law of equations' noise"] = "gaussian",
    ) -> None:
        """orders: summed over, up to 12 variables, or sampled; "auto" sums where it can. target_matrix: (env, latent)
        in {0, 1}; not read where targets are unknown. noise: "student" has one scale a row, for rows of heavy tails and
        outlying rows; the site `noise` is then the deviation where that scale is 1.

        Raises InputError unless latents = features, for more than 12 variables with orders="summed", and for a target
        matrix of another shape or with other numbers than 0 and 1.
        """
        super().__init__()
        if latents != features:
            reject("latents", repr(latents), f"{features}, as many as features: the latents are observed")
        if orders == "summed" and latents > SUMMED:
            reject("orders", f"'summed' for {latents} variables", f"'sampled', for more than {SUMMED}")
        self.sampled = orders == "sampled" or latents > SUMMED
        self.unknown, d = targets == "unknown", latents
        count = min(d - 1, candidates) if self.sampled else d - 1
        hit = torch.zeros(environments, d, dtype=torch.double)
        free = environments - int(reference or environments == 1) if self.unknown else 0
        if not self.unknown and target_matrix is not None:
            known = checked_targets(target_matrix, d, environments, least=0, observational=False)
            hit = torch.as_tensor(known).double()
        self.free_count = free
        odds = min(neighbours / (d - 1), 0.5)
        self.prior = (math.log(odds / (1.0 - odds)), edge_sd)
        self.loc = nn.Parameter(torch.tensor(self.prior[0]))
        self.log_scale = nn.Parameter(torch.tensor(-1.0))
        self.register_buffers(
            hit=hit,  # (env, latent) targets that are given
            free=torch.arange(environments) >= environments - free,  # (env,) which may have unknown ones
            mean=torch.zeros(d, dtype=torch.double),
            spread=torch.ones(d, dtype=torch.double),
            moments=torch.zeros(environments, 1 + d, 1 + d, dtype=torch.double),  # of (1, z), standardised
            count=torch.zeros(environments, dtype=torch.double),
            candidates=torch.zeros(d, count, dtype=torch.long),
            evidence=torch.zeros(d, 2**count, dtype=torch.double),  # log p(rows of k | candidates that are parents)
            touching=torch.zeros(d, min(free, TOUCHING), dtype=torch.long),  # environments that may intervene on k
            touched=torch.zeros(d, 2**count, min(free, TOUCHING), dtype=torch.double),  # p(they do | parents)
        )
        self.checks = {"rows": (LAWS[noise],)}
        self.student = noise == "student"
        if self.student:
            self.gathered = (*self.gathered, "freedom", "centre", "root", "log_scales")
            scatters = 1 if intervention == "shift" else environments
            self.register_buffers(
                freedom=torch.ones((), dtype=torch.double),
                centre=torch.zeros(environments, d, dtype=torch.double),  # of rows, standardised
                root=torch.eye(d, dtype=torch.double).repeat(scatters, 1, 1),  # of their scatter
                log_scales=torch.zeros((), dtype=torch.double),  # log p(scales, freedom), see `student_rows`
            )
        if self.sampled:
            self.register_buffer("orders", torch.arange(d).expand(particles, d).clone())  # (particle, latent)
            self.register_buffer("log_density", torch.zeros(particles, dtype=torch.double))

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, envs, kind = self.config["latents"], self.config["environments"], self.config["intervention"]
        edge = pyro.sample("edge", self._edge())  # ()
        if self.student:
            freedom = pyro.sample("freedom", LogNormal(*edge.new_tensor(student_rows.FREEDOM).double()))  # ()
        order = pyro.sample("order", sampling.AnyOrder(edge.double(), d))  # (latent,)
        with pyro.plate("parent", d, dim=-2), pyro.plate("child", d, dim=-1):
            graph = pyro.sample("graph", dist.Bernoulli(edge.double().sigmoid() * orders.earlier(order)))
        latent, targets = pyro.plate("latent", d, dim=-1), self.hit.double()
        if self.unknown:
            chance = self.config["target_probability"] * self.free.to(targets)
            with pyro.plate("env", envs, dim=-2), latent:
                targets = pyro.sample("targets", dist.Bernoulli(chance[:, None].expand(-1, d)))  # (env, latent)
        else:
            pyro.deterministic("targets", targets)
        with latent:
            slab = pyro.sample("slab", dist.Categorical(logits=targets.new_zeros(d, len(interventions.SLABS))))
        size = interventions.slabs(targets)[slab]  # (latent,)
        unit = interventions.units(size, self.candidates.shape[1], envs, kind)  # (latent, basis)
        shape, rate = torch.full_like(size, all_subsets.SHAPE), torch.full_like(size, all_subsets.RATE)
        with pyro.plate("mechanism", 1 if kind == "shift" else 1 + envs, dim=-2), latent:
            precision = pyro.sample("precision", dist.Gamma(shape, rate))  # (mechanism, latent)
            scale = unit * precision.rsqrt()[..., None]
            w = pyro.sample("w", Normal(torch.zeros_like(scale), scale).to_event(1))  # (mechanism, latent, basis)
        pyro.deterministic("weight", self._equations(graph, targets, w, precision, [])[1][0])  # (parent, child)
        each = self._equations(graph, targets, w, precision, *([e] for e in range(envs)))
        pyro.deterministic("offset", each[0])  # (env, latent)
        pyro.deterministic("noise", each[2])  # (env, latent)
        own, (offset, weight, noise) = self._acting(batch, graph, targets, w, precision)
        with self.rows(batch), contextlib.ExitStack() as counted:
            spread = noise[own]  # (rows, latent)
            if self.student:
                scale = pyro.sample("scale", Gamma(freedom / 2, freedom / 2))  # (rows,)
                spread = spread * scale.rsqrt()[:, None]
                counted.enter_context(pyro.poutine.scale(scale=student_rows.worth(freedom, d)))

            def equation(k: int, z: Tensor) -> Normal:
                return Normal(offset[own, k] + (z * weight[own, :, k]).sum(-1), spread[:, k])

            z = self.along(order.tolist(), equation, w.new_zeros(len(batch), d), batch.x)  # (rows, latent)
            pyro.sample("x", dist.Delta(z, event_dim=1), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        edge = pyro.sample("edge", self._edge())
        scores, d = self._scores(edge), self.config["latents"]
        total = d * (d - 1) / 2 * torch.nn.functional.logsigmoid(-edge.double())  # of absent edges
        if self.sampled:
            order = pyro.sample("order", sampling.AnyOrder(edge.double(), d))
            total = total + sampling.log_sum(scores, order, self.candidates)
        else:
            total = total + orders.log_partition(sampling.over_nodes(scores, self.candidates)) - math.lgamma(d + 1)
        total = total - self.count.sum() * self.spread.log().sum()  # of standardising
        if self.student:
            total = total + self.log_scales
        pyro.sample("x", Law((), (len(batch), d), lambda _: total), obs=batch.x)  # all rows at once, by their moments

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        scores, kind = self._scores(kept["edge"]), self.config["intervention"]
        if self.student:
            pyro.sample("freedom", dist.Delta(self.freedom))
            with self.rows(batch):
                pyro.sample("scale", dist.Delta(self._law_of_x().scales(self._standard(batch), batch.env)))
        order = kept.get("order")
        if order is None:
            order = pyro.sample("order", orders.Order(sampling.over_nodes(scores, self.candidates)))
        graph = pyro.sample("graph", sampling.Graph(scores, order, self.candidates))  # (parent, child)
        parents = graph.mT.gather(1, self.candidates).double()  # (latent, candidate)
        inside = torch.cat([torch.ones_like(parents[:, :1]), parents, torch.ones_like(parents[:, :1])], 1)
        own = interventions.families(self.moments.double(), self.candidates)
        own = own * inside[:, None, :, None] * inside[:, None, None]  # absent parents are columns of zeros
        score = self._joint(own, self._subsets(), all_subsets.log_evidence_of_all)[..., 0]  # (latent, slab, subset)
        latent = pyro.plate("latent", len(parents), dim=-1)
        with latent:
            slab = pyro.sample("slab", Categorical(logits=score.logsumexp(-1)))  # (latent,)
        targets, node = self.hit.double(), torch.arange(len(parents), device=graph.device)
        if self.unknown:
            targets = pyro.sample("targets", sharing.Targets(score[node, slab], self._subsets()[0]))  # (env, latent)
        size = interventions.slabs(own)[slab]
        known = interventions.posterior(own, self.count.double(), parents, targets, size, kind, self._mass())
        with pyro.plate("mechanism", len(known.rate), dim=-2), latent:
            precision = pyro.sample("precision", known.precision())
            pyro.sample("w", known.weights(precision))

    def guide(self, batch: Batch) -> None:
        pyro.sample("edge", Normal(self.loc, self.log_scale.exp()))
        if self.sampled:
            pyro.sample("order", sampling.SampledOrder(self.orders, self.log_density))

    def _edge(self) -> Normal:
        return Normal(*(torch.full_like(self.loc, value) for value in self.prior))

    def _scores(self, edge: Tensor) -> Tensor:
        """(latent, 2**candidates) log score of every set of parents."""
        size = sampling.members(self.candidates.shape[1], self.evidence.device).sum(1)
        return self.evidence.double() + edge.double() * size

    def _joint(self, own: Tensor, subsets: tuple[Tensor, Tensor], evidence: Any = all_subsets.log_evidence) -> Tensor:
        """(latent, slab, subset, set) log evidence and prior, of own (latent, env, ...); see `_subsets`."""
        (hit, prior), count, kind = subsets, self.count.double(), self.config["intervention"]
        found = [
            interventions.log_evidence(
                interventions.with_slab(own, t.expand(len(own))), count, hit, kind, evidence, self._mass()
            )
            for t in interventions.slabs(own)
        ]
        return torch.stack(found, 1) + prior[:, None, :, None] - math.log(len(found))

    def _subsets(self) -> tuple[Tensor, Tensor]:
        """(latent, subset, env) the environments that may intervene on each variable, as targets are given or all
        subsets of `touching`; and their log prior (latent, subset)."""
        if not self.unknown:
            hit = self.hit.double().mT[:, None]
            return hit, torch.zeros_like(hit[..., 0])
        inside = sampling.members(self.touching.shape[1], self.hit.device)  # (subset, touching)
        places = self.touching[:, None].expand(-1, len(inside), -1)
        hit = inside.new_zeros(*places.shape[:2], len(self.hit)).scatter(2, places, inside.expand(places.shape))
        chance, own = self.config["target_probability"], hit.sum(-1)
        return hit, own * math.log(chance) + (self.free_count - own) * math.log1p(-chance)

    def _targets(self, sites: dict[str, Tensor]) -> Tensor:
        return sites["targets"] if self.unknown else self.hit.double()

    def _mass(self) -> Tensor | None:
        """(env,) sums of rows' scales, None where they are all 1."""
        return self.moments.double()[:, 0, 0] if self.student else None

    def row_worth(self) -> float:
        return float(student_rows.worth(self.freedom, self.latents_count)) if self.student else 1.0

    def _law_of_x(self) -> student_rows.StudentRows:
        """Of standardised rows, without equations."""
        return student_rows.StudentRows(self.freedom.double(), self.centre.double(), self.root.double())

    def _standard(self, batch: Batch) -> Tensor:
        return (batch.x.double() - self.mean.double()) / self.spread.double()

    # -- read-outs ---------------------------------------------------------------------------------------------

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | graph, targets, weights, noise), the row's scale integrated out."""
        if not self.student:
            return super().row_log_likelihood(batch, sites)
        mean, noise = self._law_of_rows(batch, sites)
        square = ((batch.x.to(mean) - mean) / noise).square().sum(-1)
        return student_rows.log_density(square, mean.shape[1], self.freedom.double()) - noise.log().sum(-1)

    def heavy_rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        if not self.student:
            return None
        law = self._law_of_x()
        return *law.apart(self._standard(batch), batch.env), law.freedom

    def _parent_sets(self) -> Tensor:
        """(latent, 2**candidates) probability of every set of parents, at the guide's mean of the log odds."""

        def log_graphs(scores: Tensor) -> Tensor:
            if self.sampled:
                return sampling.mean_log_sum(scores, self.orders, self.candidates)
            return orders.log_partition(sampling.over_nodes(scores, self.candidates))

        found: Tensor = torch.func.grad(log_graphs)(self._scores(self.loc).detach())
        return found

    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, at the guide's mean of the log odds."""
        return sampling.edges_of(self._parent_sets(), self.candidates)

    def targets_matrix(self) -> Tensor:
        """(env, latent) probabilities that an environment intervenes on a variable, or the targets that are given."""
        if not self.unknown:
            return self.hit
        chance = torch.einsum("ks,kst->kt", self._parent_sets(), self.touched.double())  # (latent, touching)
        out = torch.zeros_like(self.hit.double().mT)
        return out.scatter(1, self.touching, chance.clamp(0.0, 1.0)).mT

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        return super().from_data(data, **({"latents": data.features, "reference": data.control is not None} | options))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Candidates and all evidence, in closed form; then this chain's own run over orders."""
        self._gather_once(data)
        if self.sampled:
            rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            run = sampling.run(self.evidence.double(), self.candidates, self.prior, len(self.orders), rng)
            self.put(orders=torch.as_tensor(run.key.argsort(1)), log_density=torch.as_tensor(run.value - run.log_total))
            self.loc.fill_(run.edge)
        self.loc.add_(0.1 * torch.randn((), generator=generator))

    def _gather(self, data: Data) -> None:
        """Moments, candidates and the evidence of every set of parents."""
        batch, kind = data.tensors(dtype=torch.float64), self.config["intervention"]
        self.put(mean=batch.x.mean(0), spread=batch.x.std(0))
        scale = self._gather_rows(batch) if self.student else None
        z = torch.cat([torch.ones(len(batch), 1), (batch.x - self.mean) / self.spread], 1).double()
        z = z if scale is None else z * scale.sqrt()[:, None]
        for e in range(len(self.count)):
            own = z[batch.env == e]
            self.moments[e], self.count[e] = own.mT @ own, len(own)
        if self.student:
            worth = student_rows.worth(self.freedom, z.shape[1] - 1)
            self.put(moments=worth * self.moments, count=worth * self.count)
        moments, count = self.moments.double(), self.count.double()
        free = self.free[:, None].expand(self.hit.shape).double()
        mass = self._mass()
        told = interventions.parts(moments, count, free, "shift", mass) if self.unknown else None
        told = told or interventions.parts(moments, count, self.hit.double(), kind, mass)
        self.put(candidates=sampling.likely_parents(*told, self.candidates.shape[1]))
        own = interventions.families(moments, self.candidates)
        if self.unknown:
            most = self.touching.shape[1]
            self.put(touching=interventions.likely_targets(own, count, self.free, most, kind, mass))
        hit, prior = self._subsets()
        for k in range(len(own)):  # one by one, for memory
            joint = self._joint(own[k : k + 1], (hit[k : k + 1], prior[k : k + 1]))[0].logsumexp(0)  # (subset, set)
            self.evidence[k] = joint.logsumexp(0)
            self.touched[k] = joint.softmax(0).mT @ hit[k][:, self.touching[k]]

    def _gather_rows(self, batch: Batch) -> Tensor:
        """(rows,) scales, once units are such that outlying rows do not set them, and the law that they are of."""
        z, alike = self._standard(batch), self.config["intervention"] == "shift"
        law = student_rows.fitted(z, batch.env, len(self.count), alike)
        scale = law.scales(z, batch.env)
        share = (scale / scale.sum())[:, None]
        mean = (share * z).sum(0)
        before = self.mean.double().clone(), self.spread.double().clone()
        spread = (share * (z - mean).square()).sum(0).sqrt()
        self.put(mean=before[0] + mean * before[1], spread=spread * before[1])
        law = law.moved((self.mean.double() - before[0]) / before[1], self.spread.double() / before[1])
        self.put(**law._asdict())
        scale = law.scales(self._standard(batch), batch.env)
        self.put(log_scales=student_rows.log_scales(scale, z.shape[1], law.freedom))
        return scale

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("squires2020", seed=seed, samples=1000, latents=4, settings=2, intervention="perfect")
        return cls.from_data(data), data

    studies = (
        *(
            ObservedGraph("squires2020", {"intervention": kind, "told": told}, {"intervention": kind}, n, 0.05, False)
            for kind, told, n in (("shift", True, 20), ("shift", False, 8), ("perfect", True, 8), ("perfect", False, 4))
        ),
        *(
            ObservedGraph("squires2020", {"latents": 50, "told": told}, {"intervention": "shift"}, 2, 0.05, False)
            for told in (True, False)
        ),
        ObservedGraph("squires2020", {"latents": 1000, "settings": 1}, {"intervention": "shift"}, 1, 0.05, False),
        ObservedGraph("hagele2023", {}, {}, 3, 0.05, False),
        *(
            HeavyTailedGraph("squires2020", options, {"intervention": kind, "noise": "student"}, n, 0.05, False)
            for kind, options, n in (
                ("shift", {"noise": "rows"}, 8),
                ("perfect", {"noise": "rows", "intervention": "perfect"}, 8),
                ("shift", {"noise": "rows", "told": False}, 4),
                ("shift", {"noise": "rows", "samples": 100}, 8),
                ("shift", {"noise": "student"}, 8),
                ("shift", {"noise": "student", "outlying": 0.03}, 8),
                ("shift", {"noise": "gaussian"}, 4),
                ("shift", {"noise": "gaussian", "samples": 100}, 4),
            )
        ),
        *(
            SignallingGraph("sachs2005", {"told": told}, {"intervention": kind, "targets": mode}, 1, 0.05, False)
            for told, kind, mode in ((True, "perfect", "known"), (False, "soft", "unknown"))
        ),
        *(
            SignallingGraph(
                "sachs2005",
                {"told": told, "noise": "student"},
                {"intervention": kind, "targets": mode, "noise": "student"},
                1,
                0.05,
                False,
            )
            for told, kind, mode in ((True, "perfect", "known"), (False, "soft", "unknown"))
        ),
    )


if __name__ == "__main__":
    run(ObservedDAG)
