"""Discrete latents behind mixtures: how many, of how many states, which variables they act on, and their graph.

    edge ~ N(log odds of edge_probability, 1): log odds of an edge                    ()
    acts[v, k] ~ Bernoulli(mask_probability)                                          (variable, latent)
    extra_k ~ uniform on 0, ..., states - 2;  size_k = 2 + extra_k, or 1 of latents   (latent,)
              that are no variable's parent
    order ~ uniform;  graph[b, k] ~ Bernoulli(edge) if b precedes k, both used        (parent, child)
    table[k, s] ~ Dirichlet(weight joint states / cells) for states s of k's parents  (latent, joint, state)
    precision_j ~ Gamma(1, .01)                                                       (feature,)
    level[j, s] ~ N(0, 100 / precision_j) for states s of the parents of j's variable (feature, joint)
    z_ik ~ Categorical(table[k, z_i's states of k's parents])                         (data, latent)
    x_ij ~ N(level[j, z_i's states of the parents of j's variable], 1 / precision_j)  (data, feature)

A variable is a view of the data, that is a block of features, or where there are no views, each feature. Of the mixture
of a variable, components are joint states of its parents. States are numbered by the mean of all features in them.
Tables' laws say together that each joint state has been seen in `weight` rows, so that equivalent graphs have the same
evidence (Heckerman, Geiger & Chickering 1995): what the posterior says of a direction that the graph's class leaves
open is what orders say.

`model` sums out orders and the states of all rows. Each chain begins at the latents that components of variables, and
what these have in common, tell in four fifths of the rows (`constructions.state_partitions`), improved on all of them,
and is a run of a Gibbs sampler from there (`exact.joint_states`), in which the numbers of latents and states stay.
That chains agree on these, and by how much BIC prefers them to others, is the evidence for them.

*Identified:* how many latents there are and how many states each has, the parents of each variable, the latents up to
permutation and their graph up to Markov equivalence: if no latent's variables are all among another's (the subset
condition), joint states that differ in a parent have different components, all joint states occur, and components are
Gaussian and apart (Kivva et al. 2021). Names of states are free: the order in which they are numbered settles them. A
joint state that does not occur is a component that nobody sees: then fewer latents of more states may fit as well, and
no data tell.

Kivva, Rajendran, Ravikumar & Aragam (2021), Learning latent causal graphs via mixture oracles.

*Differs from the paper in* components that have independent noise of one size; partitions of components that occur
together in place of a decomposition of a tensor of their numbers, for which columns of the bipartite graph need not be
linearly independent; a posterior over parents, graphs and tables in place of one search.

Longer than other models because tables, levels and sizes are laid out for as many latents and states as are offered.

*For a variant, copy this file and change* `story`: the law of `table`, `level` or `precision`, and with it the
conditionals of `Sampler` in `pyrocrl.exact.joint_states`.
"""

from __future__ import annotations

import math
from typing import Annotated
from weakref import WeakKeyDictionary

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import state_partitions
from pyrocrl.dists import Gamma, Law, Normal, SpikeSlab
from pyrocrl.errors import reject
from pyrocrl.exact import tables
from pyrocrl.exact.joint_states import LEVEL, RATE, SHAPE, Sampler
from pyrocrl.exact.order_sampling import AnyOrder
from pyrocrl.exact.orders import Order, earlier, log_orders, only
from pyrocrl.lab.studies.measured_graphs import DiscreteLatents
from pyrocrl.options import Bounds, Positive, Share, check_memory
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import EdgeProbability, Features, check_rows, check_sizes

MOST_JOINT = 1024  # joint states that are offered
MOST_SEARCHED = 10_000  # rows in which a chain looks for latents
PART = 0.8  # of the rows, in which it does
BURN, KEPT = 10, 50  # sweeps
GAUSSIAN = "noise of features is Gaussian, the same in all states"
OWN = "noise is independent between features"
OCCUR = "all combinations of the latents' states occur, and differ where a parent does"
FAITHFUL = "independences are those that the graph asks for (faithfulness)"
ALONE = "nothing unobserved acts on two latents"
GIVEN = (GAUSSIAN, OWN, OCCUR)
NEEDS = ("own_features", "all_states", "states_apart")
_MARGINS: WeakKeyDictionary[Data, dict[bytes, float]] = WeakKeyDictionary()


class MixtureOracle(Program):
    card = ModelCard(
        name="mixture_oracle",
        title="Discrete latents by mixture components",
        family="latent graphs",
        summary="Discrete latents of a causal graph, each joint state of which puts features about a mean of its own: "
        "components of single variables and of several tell how many latents there are, their states and their graph.",
        when=(
            "rows fall into clusters in every variable or block of features, by discrete latents that act on several "
            "blocks, there are no interventions, and the latents' states and graph are asked for",
            "features vary continuously with latents (`linear_latent_sem`), or interventions are there "
            "(`unknown_targets`)",
        ),
        assumes=("latents are discrete", *GIVEN),
        claims=(
            Claim("latents", ("permutation",), GIVEN, (*NEEDS, "states_told")),
            Claim("mask", ("permutation",), GIVEN, NEEDS),
            Claim("graph", ("permutation", "markov equivalence"), (*GIVEN, FAITHFUL, ALONE), NEEDS),
        ),
        references=(
            Reference(
                "Kivva, Rajendran, Ravikumar & Aragam",
                2021,
                "Learning latent causal graphs via mixture oracles",
                "NeurIPS",
                "https://arxiv.org/abs/2106.15563",
            ),
        ),
        differs=(
            "components have independent noise of one size",
            "latents by partitions of components that occur together, not by a tensor of their numbers",
            "a posterior over parents, graphs and tables",
        ),
        approximate="The numbers of latents and of their states are those of the best answer by BIC.",
    )
    recipe = Recipe.unannealed(epochs=2, most_steps=20, batch_size=512, lr=0.02, dtype=torch.float64, chains=2)
    checks = {"features": (GAUSSIAN,), "left": (OWN,)}
    new_rows = True
    labels = {"z": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "size": Site(("latent",), discrete=True),
        "graph": Site(("parent", "child"), discrete=True),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[int, Bounds(1, 10), "how many latents are offered"],
        states: Annotated[int, Bounds(2, 32), "most states of a latent"] = 4,
        views: Annotated[list[str] | None, "variable of every feature; read off the data"] = None,
        mask_probability: Annotated[Share, "a priori, that a latent acts on a variable"] = 0.3,
        edge_probability: EdgeProbability = 0.3,
        weight: Positive = 1.0,
    ) -> None:
        """latents: how many are offered; those that are not needed stay without variables. views: None = each feature
        is a variable. weight: rows of each joint state that the tables' laws say have been seen.

        Raises InputError for more than 1,024 joint states, and for views that do not name every feature.
        """
        super().__init__()
        check_sizes(features, latents)
        if (joint := states**latents) > MOST_JOINT:
            reject("states", f"{states} of {latents} latents, {joint} joint states", f"{MOST_JOINT} of these at most")
        if views is not None and len(views) != features:
            reject("views", f"{len(views)} names", f"{features}, one for each feature")
        check_memory("features", features, 8.0 * KEPT * features * joint)
        self.sparse = math.log(edge_probability / (1 - edge_probability))
        self.edge = NormalBlock(loc=self.sparse)
        names = list(dict.fromkeys(views or ()))
        variable = torch.tensor([names.index(view) for view in views] if views else range(features))
        square = (latents, latents)
        self.drawn = DrawnBlock(
            KEPT,
            acts=(int(variable.max()) + 1, latents),
            extra=(latents,),
            graph=square,
            table=(latents, joint, states),
            level=(features, joint),
            precision=(features,),
        )
        self.drawn.precision.fill_(1.0)
        self.drawn.table[:, :, 0, 0] = 1.0
        self.register_buffers(
            variable=variable,
            law=torch.eye(joint)[0],  # of joint states, where the likelihood is largest, as are
            centre=torch.zeros(joint, features),
            noise=torch.ones(features),
            count=torch.full((joint,), -1.0),  # expected rows of each; -1 of those that there are not
            evidence=torch.zeros(()),
            margin=torch.zeros(()),
        )

    def story(self, batch: Batch) -> None:
        edge, acts, mask, size = self._acting(batch)
        order = pyro.sample("order", AnyOrder(edge, self.config["latents"]))  # (latent,)
        used = acts.sum(0) > 0
        free = earlier(order) & used[:, None] & used
        graph = pyro.sample("graph", dist.Bernoulli(edge.sigmoid() * free).to_event(2))  # (parent, child)
        table, level, precision = self._laws(graph, mask, size)
        place = tables.radix(*self._offered, batch.device)

        def state(z: Tensor) -> Tensor:  # `do` may set it to any number
            return torch.minimum(z.round().clamp_min(0), size - 1)

        with self.rows(batch):

            def equation(k: int, z: Tensor) -> tables.State:
                own = table[k, (state(z) * graph[:, k] * place).sum(-1).long()]  # (rows, state)
                return tables.State(own)

            z = self.along([int(k) for k in order], equation, level.new_zeros(len(batch), len(graph)))
            slot = ((state(z) * place) @ mask.mT).long()  # (rows, feature)
            mean = level[torch.arange(len(level), device=level.device), slot]
            pyro.sample("x", Normal(mean, precision.rsqrt()).to_event(1), obs=batch.x)

    def _acting(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents, states = self._offered
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        edge = pyro.sample("edge", Normal(self.sparse * one, one))
        chance = self.config["mask_probability"] * one.expand(self.drawn.acts.shape[-2:])
        acts = pyro.sample("acts", dist.Bernoulli(chance).to_event(2))  # (variable, latent)
        mask = pyro.deterministic("mask", acts[self.variable])  # (feature, latent)
        extra = pyro.sample("extra", dist.Categorical(logits=0 * one.expand(latents, states - 1)).to_event(1))
        size = torch.where(acts.sum(0) > 0, 2 + extra.to(one), one)
        return edge, acts, mask, pyro.deterministic("size", size)  # (latent,)

    def _laws(self, graph: Tensor, mask: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, one = self.config["states"], torch.ones_like(mask[:, 0])
        prior = tables.table_prior(graph, size, states, self.config["weight"])
        table = pyro.sample("table", tables.Tables(prior))  # (latent, joint, state)
        precision = pyro.sample("precision", Gamma(SHAPE * one, RATE * one).to_event(1))  # (feature,)
        pyro.deterministic("variance", 1 / precision)
        gate = tables.used_slots(mask, size, states)  # (feature, joint)
        slab = Normal(0 * gate, (LEVEL * precision).rsqrt()[:, None].expand(gate.shape))
        return table, pyro.sample("level", SpikeSlab(gate, slab).to_event(2)), precision

    def model(self, batch: Batch) -> None:
        edge, acts, mask, size = self._acting(batch)
        used = (acts.sum(0) > 0).to(edge).sum()
        absent, present = torch.nn.functional.logsigmoid(-edge), torch.nn.functional.logsigmoid(edge)

        def log_graph(graph: Tensor) -> Tensor:  # orders summed out
            there, orders = graph.sum(), log_orders(graph).to(edge) - math.lgamma(len(graph) + 1)
            return orders + there * present + (used * (used - 1) / 2 - there) * absent

        graph = pyro.sample("graph", Law((), 2 * self._offered[:1], log_graph))
        table, level, precision = self._laws(graph, mask, size)
        with self.rows(batch):  # states of rows summed out

            def log_rows(x: Tensor) -> Tensor:
                return self._joint(x, table, graph, mask, level, precision).logsumexp(-1)

            pyro.sample("x", Law((len(batch),), (len(level),), log_rows), obs=batch.x)

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        pyro.sample("order", Order(only(kept["graph"])))
        mask = kept["acts"][self.variable]
        joint = self._joint(batch.x, kept["table"], kept["graph"], mask, kept["level"], kept["precision"])
        with self.rows(batch):
            pyro.sample("z", tables.JointState(joint.log_softmax(-1), self._digits(batch)))

    def guide(self, batch: Batch) -> None:
        pyro.sample("edge", self.edge())
        self.drawn.sample()

    @property
    def _offered(self) -> tuple[int, int]:
        return self.config["latents"], self.config["states"]

    def _digits(self, batch: Batch) -> Tensor:
        return tables.all_digits(*self._offered, batch.device)

    def _joint(self, x: Tensor, table: Tensor, graph: Tensor, mask: Tensor, level: Tensor, precision: Tensor) -> Tensor:
        """(rows, joint) log p(x_i, joint state)."""
        centre = level.gather(1, tables.slots(mask, self.config["states"])).mT  # (joint, feature)
        return tables.joint_law(table, graph) + _log_density(x, centre, precision)

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | tables, graph, levels, noise), states summed out."""
        mask = sites["acts"][self.variable]
        laws = sites["table"], sites["graph"], mask, sites["level"], sites["precision"]
        return self._joint(batch.x, *laws).logsumexp(-1)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def state_shares(self, batch: Batch) -> Tensor:
        """(rows, latent, state) probabilities, where the likelihood is largest."""
        there = (self.law > 0).nonzero()[:, 0]
        logits = self.law[there].log() + _log_density(batch.x, self.centre[there], 1 / self.noise)
        hot = torch.nn.functional.one_hot(self._digits(batch)[there], self.config["states"])
        return torch.einsum("rj,jks->rks", logits.softmax(-1), hot.to(logits))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) mean number of the state."""
        share = self.state_shares(batch)
        return share @ torch.arange(share.shape[-1], dtype=share.dtype, device=share.device)

    @torch.no_grad()
    def cdf(self, batch: Batch) -> Tensor:
        there = (self.law > 0).nonzero()[:, 0]
        each = zip(batch.x.mT, self.centre[there].mT, self.noise.sqrt(), strict=True)
        below = [torch.special.ndtr((x[:, None] - centre) / noise) @ self.law[there] for x, centre, noise in each]
        return torch.stack(below, -1)

    def mask(self) -> Tensor:
        return self.drawn.acts.mean(0)[self.variable]

    def graph(self) -> Tensor:
        """(parent, child) edge probabilities."""
        return self.drawn.graph.mean(0)

    def state_counts(self) -> Tensor:
        """(joint,) expected rows of each joint state."""
        return self.count[self.count >= 0]

    def log_evidence(self) -> Tensor:
        """By BIC, of the latents that the chain began with."""
        return self.evidence

    def states_margin(self) -> Tensor:
        """By BIC, of the latents that the chain began with."""
        return self.margin

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The search for latents in a part of the rows, and a run of the sampler from there."""
        check_rows(data, 10)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        variable, chance = self.variable.cpu().numpy(), self.config["mask_probability"]
        (latents, states), odds = self._offered, math.log(chance / (1 - chance))
        part = rng.permutation(len(x))[: min(math.ceil(PART * len(x)), MOST_SEARCHED)]
        first = state_partitions.search(x[part], variable, latents, states, odds)
        share = state_partitions.expect(x, first.weight, first.mean, first.variance)[0]
        found = state_partitions.settle(x, variable, first.sizes, share, odds)
        found = state_partitions.numbered(x, variable, found)
        known, key = _MARGINS.setdefault(data, {}), repr((found.sizes, found.parents.tolist())).encode()
        if key not in known:  # chains of a fit mostly begin at the same latents
            known[key] = state_partitions.margin(x, variable, found)
        sampler = Sampler(x, variable, found.sizes, found.share, odds, self.sparse, self.config["weight"], generator)
        drawn = sampler.run(latents, states, BURN, KEPT)._asdict()
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(torch.as_tensor(drawn[name]))
        self.edge.set(torch.as_tensor(drawn["edge"].mean()), torch.as_tensor(max(drawn["edge"].std(), 0.1)))
        place = state_partitions.places(found.sizes, latents, states)
        self.put(law=torch.zeros_like(self.law), count=torch.full_like(self.count, -1.0), noise=_as(found.variance))
        self.law[place], self.centre[place] = _as(found.weight).to(self.law), _as(found.mean).to(self.law)
        self.count[place] = _as(found.share.sum(0)).to(self.law)
        self.put(evidence=_as(found.bic), margin=_as(float(np.clip(known[key], -1e6, 1e6))))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("kivva2021", seed=seed, rows=500, latents=2, variables=6, width=2, separation=6.0)
        return cls.from_data(data, latents=3, states=3), data

    studies = tuple(
        DiscreteLatents(
            "kivva2021",
            {"rows": rows, "latents": latents, "variables": variables, "separation": separation},
            {"latents": latents + 2},
            10,
            0.1,
            False,
        )
        for rows, latents, variables, separation in ((1000, 2, 5, 3.0), (10_000, 3, 8, 3.0), (1000, 2, 5, 20.0))
    )


def _log_density(x: Tensor, centre: Tensor, precision: Tensor) -> Tensor:
    """(rows, joint) log p(x_i | joint state); centre (joint, feature), precision (feature,)."""
    scaled = centre * precision
    square = (x.square() @ precision)[:, None] - 2 * x @ scaled.mT + (scaled * centre).sum(-1)
    return -0.5 * square + 0.5 * precision.log().sum() - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def _as(value: np.ndarray | float) -> Tensor:
    return torch.as_tensor(value)


if __name__ == "__main__":
    run(MixtureOracle)
