"""Invariant prediction: the parents of a response, whose equation is the same in all environments.

    edge ~ N(log odds of `neighbours` a variable, edge_sd^2): log odds of an edge                    ()
    order ~ uniform, graph[j, k] ~ Bernoulli(edge) if j precedes k                  (parent, child)
    targets[e, k] ~ Bernoulli(target_probability), 0 of the response                (env, latent)
    slab_k ~ uniform: t_k is 1, 3 or 10                                             (latent,)
    precision_mk = 1 / s_mk^2 ~ Gamma(.5, .01)                                      (mechanism, latent)
    w_mkb ~ N(0, (u_kb s_mk)^2), u_k = 3, t_k, ..., t_k                             (mechanism, latent, basis)
    z_i,k ~ N(w_mk' phi_k(z_i), s_mk^2), m = m(e_i, k)                              (data, latent)
    x_i = z_i                                                                       (data, feature)

The response is the column of x that the option of that name tells; its parents are those of `graph`. phi_k are 1 and
all other variables, those that are none of k's parents set to 0. m(e, k) is environment e's own equation where it has k
as a target, else the one that environments share: which they do of the response, always. w and s are of standardised
columns; `weight`, `offset` and `noise` tell the equations in the data's units.

`model` keeps `edge`, with a normal guide, and sums out the rest exactly: w and s by conjugacy for all sets of parents
at once, targets over subsets of environments, graphs and orders by a dynamic program over subsets, for 12 variables at
most. `recover` draws it exactly.

`guaranteed` is the read-out of Peters et al. (2016): the columns that are in every set on which the response's
regression is not seen to differ between environments, by exact F tests of all sets. They are parents, all of them, with
a probability of 1 - level or more, whatever the law of the other columns: it asks for the response's equation alone.

Latents that another model identifies can stand for columns (`predict.beside_response`). What such an estimate holds of
other latents is a small coefficient of theirs, which as many rows as it was made of may tell from 0: then parents are
called that are none. So a share of the rows is kept.

*Identified:* the parents exactly, if every edge at the response is directed by an environment that acts on its other
end, or by v-structures: as interventional Markov equivalence has it, the response being no target. Latents are
observed.

Peters, Buehlmann & Meinshausen (2016), Causal inference by using invariant prediction; Lu, Wu, Hernandez-Lobato &
Schoelkopf (2021), Invariant causal representation learning.

*Differs from the paper in* being a posterior over sets of parents, in which other columns have equations too. The
evidence that one regression on a set is shared, against one free in each environment, is no posterior of parents: sets
with children whose equations no environment changes are invariant as well, and being larger they share more numbers, so
that their evidence is higher. In the posterior those children's equations are shared as well.

Longer than other models because its story has all that the fit sums out, equations of the other columns included.

*For a variant, copy this file and change* `_edge`: how many edges there are a priori, or `_joint`: what equations, see
`pyrocrl.exact.interventions`, may look like.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import Categorical, Law, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import all_subsets, interventions, invariance, orders, sharing
from pyrocrl.exact import order_sampling as sampling
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.lab.studies.observed_graphs import Parents, ParentsOfLatents
from pyrocrl.options import Bounds, Positive, Share
from pyrocrl.parts.observed_equations import ObservedEquations
from pyrocrl.program import check_rows

TOUCHING = 6  # environments a variable whose changes of it are summed over
NAMED = "y"  # the response, unless it is told

UNTOUCHED = "environments act on the response through other columns alone"
INVARIANT = "one regression of the response on its parents holds in all environments"
SUFFICIENT = "no unobserved variable acts on two observed ones"
MEASURED = "columns are measured without error"
STRAIGHT = "equations are linear with additive Gaussian noise"
FAITHFUL = "independences are those that the graph asks for (faithfulness)"
NEEDS = ("environments_differ", "parents_directed")


class InvariantPrediction(ObservedEquations, Program):
    gathered = ("mean", "spread", "moments", "count", "evidence", "touching", "touched")
    card = ModelCard(
        name="invariant_prediction",
        title="Invariant prediction",
        family="observed graphs",
        summary="Posterior over the parents of one measured column, the response, from environments that change the "
        "others, and beside it the set of parents that invariance alone guarantees.",
        when=(
            "the causes of one measured column are asked for, and rows come from several environments that act on "
            "others, whichever these are",
            "environments may act on the response itself, or something unobserved acts on it and on another column; "
            "of more than 12 columns some have to be left out first",
        ),
        assumes=("latents are observed: x = z", UNTOUCHED, SUFFICIENT, STRAIGHT),
        claims=(Claim("parents", (), (UNTOUCHED, INVARIANT, MEASURED, SUFFICIENT, STRAIGHT, FAITHFUL), NEEDS),),
        references=(
            Reference(
                "Peters, Buehlmann & Meinshausen",
                2016,
                "Causal inference by using invariant prediction: identification and confidence intervals",
                "JRSS B",
                "https://doi.org/10.1111/rssb.12167",
            ),
            Reference(
                "Lu, Wu, Hernandez-Lobato & Schoelkopf",
                2021,
                "Invariant causal representation learning for out-of-distribution generalization",
                "ICLR 2022",
                "https://openreview.net/forum?id=-e4EXDWXnSn",
            ),
        ),
        differs=(
            "a posterior over sets of parents, other columns' equations included, beside the intersection of accepted "
            "sets",
            "exact F tests in place of t and F tests of pooled residuals",
        ),
        approximate="Of more than 6 environments, those that change a variable are among its 6 likeliest.",
    )
    recipe = Recipe.unannealed(
        epochs=60, batch_size=None, lr=0.1, held_out=0.05, patience=None, keep="last", dtype=torch.float64, chains=4
    )
    checks = {"invariance": (INVARIANT,), "gaussian": (STRAIGHT,), "moments": (STRAIGHT,)}
    constants = ("mean", "spread")
    uses_rows = False
    new_rows = True
    sites = {
        "z": Site(("data", "latent")),
        "graph": Site(("parent", "child"), discrete=True),
        "targets": Site(("env", "latent"), discrete=True),
        "weight": Site(("parent", "child")),
        "offset": Site(("env", "latent")),
        "noise": Site(("env", "latent")),
    }

    def __init__(
        self,
        features: Annotated[int, Bounds(2, orders.MAX_NODES), "columns of x, which are the latents; read off the data"],
        latents: Annotated[int, Bounds(2), "as many as features"],
        environments: Annotated[int, Bounds(1), "how many there are; read off the data"],
        response: Annotated[int | str, "the column of x whose parents are asked for, by position or name"] = NAMED,
        neighbours: Annotated[Positive, "of a variable, expected a priori"] = 2.0,
        edge_sd: Annotated[Positive, "prior deviation of the log odds of an edge"] = 1.0,
        target_probability: Annotated[Share, "a priori, that an environment changes a column's equation"] = 0.2,
    ) -> None:
        """response: a position, 0 for the first column; names are read off data, by `pyrocrl.build` and the shell.

        Raises InputError unless latents = features, and for a response that is no position of a column.
        """
        super().__init__()
        if latents != features:
            reject("latents", repr(latents), f"{features}, as many as features: the latents are observed")
        if isinstance(response, str) or not 0 <= response < features:
            reject("response", repr(response), f"a position from 0 to {features - 1}; names are read off data")
        d, double, most = latents, torch.double, min(environments, TOUCHING)
        odds = min(neighbours / (d - 1), 0.5)
        self.prior = (math.log(odds / (1.0 - odds)), edge_sd)
        self.loc = nn.Parameter(torch.tensor(self.prior[0]))
        self.log_scale = nn.Parameter(torch.tensor(-1.0))
        others = torch.arange(d - 1).expand(d, -1)
        self.register_buffers(
            candidates=others + (others >= torch.arange(d)[:, None]),  # (latent, d - 1) all others
            free=(torch.arange(d) != response).to(double),  # (latent,) what environments may change
            mean=torch.zeros(d, dtype=double),
            spread=torch.ones(d, dtype=double),
            moments=torch.zeros(environments, 1 + d, 1 + d, dtype=double),  # of (1, z), standardised
            count=torch.zeros(environments, dtype=double),
            evidence=torch.zeros(d, 2 ** (d - 1), dtype=double),  # log p(rows of k | candidates that are parents)
            touching=torch.zeros(d, most, dtype=torch.long),  # environments that may change k
            touched=torch.zeros(d, 2 ** (d - 1), most, dtype=double),  # p(they do | parents)
        )

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, envs = self.config["latents"], self.config["environments"]
        edge = pyro.sample("edge", self._edge())  # ()
        order = pyro.sample("order", sampling.AnyOrder(edge.double(), d))  # (latent,)
        with pyro.plate("parent", d, dim=-2), pyro.plate("child", d, dim=-1):
            graph = pyro.sample("graph", dist.Bernoulli(edge.double().sigmoid() * orders.earlier(order)))
        latent, chance = pyro.plate("latent", d, dim=-1), self.config["target_probability"] * self.free.double()
        with pyro.plate("env", envs, dim=-2), latent:
            targets = pyro.sample("targets", dist.Bernoulli(chance.expand(envs, d)))  # (env, latent)
        with latent:
            slab = pyro.sample("slab", dist.Categorical(logits=targets.new_zeros(d, len(interventions.SLABS))))
        unit = interventions.units(interventions.slabs(targets)[slab], d - 1, envs, "soft")  # (latent, basis)
        shape, rate = (torch.full_like(chance, value) for value in (all_subsets.SHAPE, all_subsets.RATE))
        with pyro.plate("mechanism", 1 + envs, dim=-2), latent:  # the shared one, then each environment's own
            precision = pyro.sample("precision", dist.Gamma(shape, rate))  # (mechanism, latent)
            scale = unit * precision.rsqrt()[..., None]
            w = pyro.sample("w", Normal(torch.zeros_like(scale), scale).to_event(1))  # (mechanism, latent, basis)
        pyro.deterministic("weight", self._equations(graph, targets, w, precision, [])[1][0])  # (parent, child)
        each = self._equations(graph, targets, w, precision, *([e] for e in range(envs)))
        pyro.deterministic("offset", each[0])  # (env, latent)
        pyro.deterministic("noise", each[2])  # (env, latent)
        own, (offset, weight, noise) = self._acting(batch, graph, targets, w, precision)
        with self.rows(batch):

            def equation(k: int, z: Tensor) -> Normal:
                return Normal(offset[own, k] + (z * weight[own, :, k]).sum(-1), noise[own, k])

            z = self.along(order.tolist(), equation, w.new_zeros(len(batch), d), batch.x)  # (rows, latent)
            pyro.sample("x", dist.Delta(z, event_dim=1), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        edge = pyro.sample("edge", self._edge())
        d = self.config["latents"]
        total = orders.log_partition(sampling.over_nodes(self._scores(edge), self.candidates)) - math.lgamma(d + 1)
        total = total + d * (d - 1) / 2 * nn.functional.logsigmoid(-edge.double())  # of absent edges
        total = total - self.count.sum() * self.spread.log().sum()  # of standardising
        pyro.sample("x", Law((), (len(batch), d), lambda _: total), obs=batch.x)  # all rows at once, by their moments

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        scores = sampling.over_nodes(self._scores(kept["edge"]), self.candidates)
        order = pyro.sample("order", orders.Order(scores))
        graph = pyro.sample("graph", orders.Graph(scores, order))  # (parent, child)
        parents, count = graph.mT.gather(1, self.candidates).double(), self.count.double()  # (latent, candidate)
        inside = torch.cat([torch.ones_like(parents[:, :1]), parents, torch.ones_like(parents[:, :1])], 1)
        own = interventions.families(self.moments.double(), self.candidates)
        own = own * inside[:, None, :, None] * inside[:, None, None]  # absent parents are columns of zeros
        hit, prior = self._subsets()
        score = self._joint(own, hit, prior, all_subsets.log_evidence_of_all)[..., 0]  # (latent, slab, subset)
        latent, node = pyro.plate("latent", len(parents), dim=-1), torch.arange(len(parents), device=graph.device)
        with latent:
            slab = pyro.sample("slab", Categorical(logits=score.logsumexp(-1)))  # (latent,)
        targets = pyro.sample("targets", sharing.Targets(score[node, slab], hit))  # (env, latent)
        known = interventions.posterior(own, count, parents, targets, interventions.slabs(own)[slab], "soft")
        with pyro.plate("mechanism", len(known.rate), dim=-2), latent:
            precision = pyro.sample("precision", known.precision())
            pyro.sample("w", known.weights(precision))

    def guide(self, batch: Batch) -> None:
        pyro.sample("edge", Normal(self.loc, self.log_scale.exp()))

    def _edge(self) -> Normal:
        return Normal(*(torch.full_like(self.loc, value) for value in self.prior))

    def _scores(self, edge: Tensor) -> Tensor:
        """(latent, 2**candidates) log score of every set of parents."""
        size = sampling.members(self.candidates.shape[1], self.evidence.device).sum(1)
        return self.evidence.double() + edge.double() * size

    def _joint(self, own: Tensor, hit: Tensor, prior: Tensor, evidence: Any = all_subsets.log_evidence) -> Tensor:
        """(latent, slab, subset, set) log evidence and prior, of own (latent, env, ...); see `_subsets`."""
        count = self.count.double()
        found = [
            interventions.log_evidence(interventions.with_slab(own, t.expand(len(own))), count, hit, "soft", evidence)
            for t in interventions.slabs(own)
        ]
        return torch.stack(found, 1) + prior[:, None, :, None] - math.log(len(found))

    def _subsets(self) -> tuple[Tensor, Tensor]:
        """(latent, subset, env) the environments that may change each variable, all subsets of `touching`, and their
        log prior (latent, subset): of the response, none."""
        inside = sampling.members(self.touching.shape[1], self.free.device)  # (subset, touching)
        places = self.touching[:, None].expand(-1, len(inside), -1)
        hit = inside.new_zeros(*places.shape[:2], len(self.count)).scatter(2, places, inside.expand(places.shape))
        chance, own, free = self.config["target_probability"], hit.sum(-1), self.free.double()[:, None]
        prior = own * math.log(chance) + (len(self.count) - own) * math.log1p(-chance)
        return hit, torch.where(free > 0, prior, torch.where(own > 0, -torch.inf, 0.0))

    # -- read-outs ---------------------------------------------------------------------------------------------

    def _parent_sets(self) -> Tensor:
        """(latent, 2**candidates) probability of every set of parents, at the guide's mean of the log odds."""

        def log_graphs(scores: Tensor) -> Tensor:
            return orders.log_partition(sampling.over_nodes(scores, self.candidates))

        found: Tensor = torch.func.grad(log_graphs)(self._scores(self.loc).detach())
        return found.clamp(0.0, 1.0)  # rounding may exceed 1

    def graph(self) -> Tensor:
        return sampling.edges_of(self._parent_sets(), self.candidates)

    def parents(self) -> Tensor:
        return self.graph()[:, [self.config["response"]]]

    def targets_matrix(self) -> Tensor:
        chance = torch.einsum("ks,kst->kt", self._parent_sets(), self.touched.double())  # (latent, touching)
        out = chance.new_zeros(len(chance), len(self.count))
        return out.scatter(1, self.touching, chance.clamp(0.0, 1.0)).mT

    def invariance(self) -> tuple[Tensor, Tensor]:
        response = self.config["response"]
        p = invariance.p_values(self.moments.double().cpu().numpy(), self.count.double().cpu().numpy(), response)
        return torch.as_tensor(p), self._parent_sets()[response]

    def implied(self) -> Gaussians:
        """Of the most probable order, graph and targets, each equation of maximum likelihood."""
        scores = self._scores(self.loc).detach()
        order = orders.best_order(sampling.over_nodes(scores, self.candidates))
        sets, before = torch.arange(scores.shape[1]), sampling.earlier_candidates(order, self.candidates)
        best = torch.where((sets.to(order) & ~before[:, None]) == 0, scores, -torch.inf).argmax(1)  # (latent,)
        node, d = torch.arange(len(best), device=best.device), self.config["latents"]
        inside = sampling.members(d - 1, best.device)[best]  # (latent, candidate)
        graph = inside.new_zeros(d, d).scatter(1, self.candidates, inside).mT
        hit = inside.new_zeros(d, len(self.count)).scatter(1, self.touching, self.touched.double()[node, best]).mT
        moments, count = (v.double().cpu().numpy() for v in (self.moments, self.count))
        return invariance.implied(moments, count, graph.cpu().numpy() > 0.5, hit.cpu().numpy() > 0.5)

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        response = options.get("response", NAMED)
        if isinstance(response, str):
            if response not in data.feature_names:
                names = ", ".join(data.feature_names[:20])
                told = "" if "response" in options else " (its default: the response is not told)"
                reject("response", f"{response!r}{told}", f"the response's name or position; columns are {names}")
            response = data.feature_names.index(response)
        return super().from_data(data, **({"latents": data.features} | options | {"response": response}))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """All evidence, in closed form."""
        self._gather_once(data)
        self.loc.add_(0.1 * torch.randn((), generator=generator))

    def _gather(self, data: Data) -> None:
        """Moments, and the evidence of every set of parents."""
        check_rows(data, 2)
        correlation = np.corrcoef(data.x.T)
        if np.linalg.eigvalsh(correlation)[0] < invariance.FLAT:
            reject("x", "columns that others determine", "columns none of which is a copy or a sum of others")
        batch = data.tensors(dtype=torch.float64)
        self.put(mean=batch.x.mean(0), spread=batch.x.std(0))
        z = torch.cat([torch.ones(len(batch), 1), (batch.x - self.mean) / self.spread], 1).double()
        for e in range(len(self.count)):
            own = z[batch.env == e]
            self.moments[e], self.count[e] = own.mT @ own, len(own)
        own, count = interventions.families(self.moments.double(), self.candidates), self.count.double()
        free = torch.ones_like(count, dtype=torch.bool)
        self.put(touching=interventions.likely_targets(own, count, free, self.touching.shape[1], "soft"))
        hit, prior = self._subsets()
        for k in range(len(own)):  # one by one, for memory
            joint = self._joint(own[k : k + 1], hit[k : k + 1], prior[k : k + 1])[0].logsumexp(0)  # (subset, set)
            self.evidence[k] = joint.logsumexp(0)
            self.touched[k] = joint.softmax(0).mT @ hit[k][:, self.touching[k]]

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("peters2016", seed=seed, rows=300, latents=4, environments=3)
        return cls.from_data(data, response="y"), data

    studies = (
        *(
            Parents("peters2016", {"rows": rows}, {"response": NAMED}, seeds=40, held_out=0.0, identified=False)
            for rows in (200, 1000)
        ),
        ParentsOfLatents("lu2021", {}, {"response": NAMED}, seeds=10, held_out=0.0, identified=False),
    )


if __name__ == "__main__":
    run(InvariantPrediction)
