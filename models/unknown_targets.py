"""Measurement model of binary latents under interventions of unknown targets, by exact sums over their states.

    order ~ uniform, edge[j, k] ~ Bernoulli(rho) if j precedes k                    (parent, child)
    target[e, k] ~ Bernoulli(1 / latents), none in the first environment            (env, latent)
    h_k | parents ~ a table of its own in each environment; targets have no parents (data, latent), in {0, 1}
    mask[j, k] ~ Bernoulli(.3)                                                      (feature, latent)
    x_ij ~ N(level_j(h_i), s_j^2), level_j a table of the states of latents in mask (data, feature)

`z` is the row's states h; the guide is its exact posterior, so that the ELBO is the log-likelihood. What is trained is
the table of levels, the noise and each environment's law of h, over all 2^latents states. Given the expected counts of
states, mask, graph and targets are summed out: tables by conjugacy (normal-gamma levels, BDeu tables of h), masks over
all sets of latents, targets over all subsets of environments, graphs and orders by a dynamic program over subsets.
Their draws are exact given these counts, and every graph is acyclic.

By default environments share nothing but the graph: what tells graphs and targets apart is which latents are dependent
where. Graphs that some choice of targets makes Markov equivalent in every environment have the same likelihood. So
skeleton and v-structures are identified, and further directions where no choice of targets undoes them. Latents that a
tree without v-structures joins leave every one of them as its root: each environment cuts one edge, whichever end it
targets. The smallest such tree is an isolated edge, between latents with no other neighbour. The directions left open
share the probability by the orders that graphs fit: one half each for an isolated edge. A target without parents
looks like none. With invariant=True mechanisms that are not targeted are the same in all environments, and changes of
their laws tell directions and targets that dependence does not.

*Identified:* latents up to permutation, sign and shift (which state is called 1) and mask up to permutation, if no
latent's features are all among another's and all states occur; the graph up to Markov equivalence (claimed, though
targets often tell more), and with invariant=True exactly, if every latent is a target.

Jiang & Aragam (2023), Learning nonparametric latent causal graphs with unknown interventions.

*Differs from the paper in* being a posterior where the paper identifies without an estimator, in Gaussian noise around
levels that are free, in latents that are binary and of known number, and in the default's use of dependence alone.

*For a variant, copy this file and change* `_joint`: what an intervention does, or another law of latents given parents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import binary_states
from pyrocrl.dists import Normal, categorical
from pyrocrl.exact import binary, orders, sharing
from pyrocrl.exact.binary import States
from pyrocrl.lab.studies import Skeleton
from pyrocrl.program import check_between, check_sizes, check_whole

MOST_LATENTS = 6  # 64 states, and tables of states by sets of latents by states
PRIORS = ("level_precision", "noise_shape", "noise_rate", "equivalent_sample_size")

GIVEN = (
    "no latent's features are all among another's",
    "all combinations of states occur",
    "features are Gaussian given the latents",
)
FAITHFUL = "latents are independent only where the graph says so"
ALONE = "an intervention changes the mechanism of its target alone"
NEEDS = ("more_features_than_latents", "observational_environment")


class UnknownTargets(Program):
    card = ModelCard(
        name="unknown_targets",
        title="Discrete latents under interventions of unknown targets",
        family="interventions",
        summary="Binary latents, which features measure which, the graph between them and what each environment "
        "intervenes on. Directions that dependence leaves open, such as an isolated edge's, stay open.",
        when=(
            "latents are on or off, six at most, features are continuous, and nobody knows what the environments act "
            "on",
            "latents are continuous, features are counts, or every direction of the graph is needed: those that "
            "dependence leaves open stay open",
        ),
        assumes=(
            "latents are binary and their number is known",
            "features depend on latents alone, not on one another",
            "interventions cut their targets from their parents",
        ),
        claims=(
            Claim("latents", ("permutation", "sign", "shift"), GIVEN, NEEDS[:1]),
            Claim("mask", ("permutation",), GIVEN, NEEDS[:1]),
            Claim("graph", ("permutation", "markov equivalence"), (*GIVEN, FAITHFUL), NEEDS),
        ),
        references=(
            Reference(
                "Jiang & Aragam",
                2023,
                "Learning nonparametric latent causal graphs with unknown interventions",
                "NeurIPS",
                "https://arxiv.org/abs/2306.02899",
            ),
        ),
        differs=(
            "a posterior over masks, graphs and targets; the paper has conditions and no estimator",
            "features have Gaussian noise about free levels; latents are binary and of known number",
        ),
        status="stable",
        needs_env=True,
        targets=("unknown",),
    )
    recipe = Recipe(
        epochs=10,
        batch_size=1000,
        lr=1e-3,
        kl_warmup=0.0,
        temperature_span=0.0,
        held_out=0.05,
        patience=None,
        chains=4,
        dtype=torch.float64,
    )
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "graph": Site(("parent", "child"), discrete=True),
        "targets": Site(("env", "latent"), discrete=True),
    }

    def __init__(
        self,
        features: int,
        latents: int,
        environments: int,
        invariant: bool = False,
        edge_probability: float = 0.5,
        mask_probability: float = 0.3,
        level_precision: float = 0.02,
        noise_shape: float = 1.0,
        noise_rate: float = 0.01,
        equivalent_sample_size: float = 1.0,
    ) -> None:
        """environments: the first is observational. invariant: whether mechanisms that are not targeted are the same
        in all environments. mask_probability: a priori that a feature measures a latent. level_precision: a priori of a
        standardised level, in those of one row. noise_shape, noise_rate: of the Gamma prior of a standardised feature's
        precision. equivalent_sample_size: of BDeu's prior of the latents' tables.

        Raises InputError for more than 6 latents or more than 10 environments.
        """
        super().__init__()
        check_sizes(features, latents)
        check_whole("latents", latents, 2, MOST_LATENTS)
        check_whole("environments", environments, 1, sharing.MAX_ENVIRONMENTS)
        check_between("edge_probability", edge_probability, 0, 1)
        check_between("mask_probability", mask_probability, 0, 1)
        self.prior = binary.Prior(mask_probability, level_precision, noise_shape, noise_rate, equivalent_sample_size)
        for name, value in zip(PRIORS, self.prior[1:], strict=True):
            check_between(name, value)
        size, double = 2**latents, torch.float64
        self.level = nn.Parameter(torch.randn(size, features))  # standardised, as is the noise
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.logits = nn.Parameter(torch.zeros(environments, size))
        buffers = {
            "mean": torch.zeros(features, dtype=double),
            "spread": torch.ones(features, dtype=double),
            # expected over the rows' states: rows, sums of standardised x, and sums of its squares
            "count": torch.ones(environments, size, dtype=double),
            "first": torch.zeros(size, features, dtype=double),
            "second": torch.ones(features, dtype=double),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    # -- model and guide ---------------------------------------------------------------------------------------

    def model(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", States(self.logits.log_softmax(-1)[batch.env]))  # (rows, latent)
            noise = self.spread * self.log_noise.exp()
            mean = self.decode(z, batch)  # (rows, feature)
            pyro.sample("x", Normal(mean, noise).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", States(self._posterior(batch).log_softmax(-1)))

    def _posterior(self, batch: Batch) -> Tensor:
        return self._state_logits((batch.x - self.mean) / self.spread, batch.env)

    def _state_logits(self, x: Tensor, env: Tensor) -> Tensor:
        """(rows, state) log p(x, h | env) of standardised x."""
        return binary.state_logits(x, env, self.level, self.log_noise, self.logits)

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return self.mean + self.spread * self.level[binary.code(z)]

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) probability of state 1."""
        member = orders.members(self.config["latents"], batch.device).to(batch.dtype)
        return self._posterior(batch).softmax(-1) @ member

    @torch.no_grad()
    def mask(self) -> Tensor:
        member = orders.members(self.config["latents"], self.count.device)
        return (self._mask_scores().softmax(-1) @ member.double()).clamp(0.0, 1.0)

    def _mask_scores(self) -> Tensor:
        count, first, second = self.count.double(), self.first.double(), self.second.double()
        return binary.set_scores(count.sum(0), first, second, self.prior)[0]

    @torch.no_grad()
    def graph(self) -> Tensor:
        return orders.edge_probabilities(self._joint().logsumexp(-1))

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        joint = self._joint()
        return sharing.target_probabilities(joint.logsumexp(-1), joint, self._differs())

    def _differs(self) -> Tensor:
        return sharing.subsets(len(self.count), True).to(self.count.device)

    def _joint(self) -> Tensor:
        """(child, set of parents, subset of environments that target the child) log posterior, up to a constant."""
        d, differs, count = self.config["latents"], self._differs(), self.count.double()
        kept = 1.0 - differs
        own = binary.table_scores(count, d, self.prior.equivalent)  # (env, child, set)
        alike = self.config["invariant"]
        pooled = kept @ count
        together = (
            binary.table_scores(pooled, d, self.prior.equivalent) if alike else torch.einsum("ge,eks->gks", kept, own)
        )
        cut = own[:, :, :1].permute(1, 2, 0).expand(-1, own.shape[-1], -1)  # no parents: the empty set
        joint = sharing.log_joint(together.permute(1, 2, 0), cut, differs)
        rate = torch.tensor(-math.log(d - 1), dtype=torch.float64, device=count.device)
        prior = orders.log_edge_prior(d, self.config["edge_probability"], count.device)
        return joint + sharing.log_prior(rate, differs, True) + prior[..., None]

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws of mask, graph and targets given the expected counts."""
        d, dtype = self.config["latents"], self.spread.dtype
        joint = self._joint()
        _, graph = orders.sample_dags(joint.logsumexp(-1))
        subset = categorical(joint[torch.arange(d, device=graph.device), orders.parent_sets(graph)])  # (latent,)
        mask = orders.members(d, graph.device)[categorical(self._mask_scores())]
        out = {"mask": mask, "graph": graph, "targets": self._differs()[subset].mT}
        return {name: value.to(dtype) for name, value in out.items()}

    @torch.no_grad()
    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | levels, noise, law of states), states summed out."""
        return self._posterior(batch).logsumexp(-1) - self.spread.log().sum()

    @torch.no_grad()
    def predict(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        z = States(self.logits.log_softmax(-1)[batch.env]).sample()
        mean = self.decode(z, batch)
        x = mean + self.spread * self.log_noise.exp() * torch.randn_like(mean)
        return x, self.row_log_likelihood(batch, sites)

    def prior_latents(self, batch: Batch, sites: dict[str, Tensor], envs: Sequence[int] = ()) -> Tensor:
        """(rows, latent) states drawn along a graph with one site `z_<k>` per latent, for `do`; children see whether a
        latent is above one half. envs: environments whose targets are drawn as there, without parents."""
        hit, parents = sites["targets"] > 0.5, orders.parent_sets(sites["graph"])
        kept = ~hit if self.config["invariant"] else ~hit & (torch.arange(len(hit), device=hit.device) == 0)[:, None]

        def value(k: int, z: Tensor) -> Tensor:
            count, own = kept[:, k].double() @ self.count.double(), int(parents[k])
            for e in envs:
                if hit[e, k]:
                    count, own = self.count[e].double(), 0
            chance = binary.conditional(count, k, own, self.prior.equivalent)[binary.code(z)]
            return (torch.rand_like(z[:, 0]) < chance).to(z.dtype)

        return self.along(batch, sites["graph"], self.spread.new_zeros(len(batch), len(parents)), value)

    def claims(self) -> tuple[Claim, ...]:
        if not self.config["invariant"]:
            return self.card.claims
        given, needs = (*GIVEN, FAITHFUL, ALONE), (*NEEDS, "one_intervention_per_latent")
        return *self.card.claims[:2], Claim("graph", ("permutation",), given, needs)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Candidate states from cuts of single features, those that explain all features best; then expectation-
        maximisation with the levels tied by the mask, and the coding of states that needs the fewest dependences."""
        first = self._construct(data, generator)
        found = binary_states.climbed(*self._rows_of(data), first, self.prior)
        self._set(found, found.laws(self.prior))
        # chains start apart, by one posterior deviation of the levels
        apart = torch.randn(self.level.shape, generator=generator).to(self.level)
        spread = self.log_noise.exp() / (self.prior.precision + self.count.sum(0)).sqrt()[:, None]
        self.level.add_(spread.to(self.level) * apart)

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """First states alone: cuts of single features that together explain all features best."""
        found = self._construct(data, generator)
        self._set(found, found.laws(self.prior))

    def _construct(self, data: Data, generator: torch.Generator) -> binary_states.Counts:
        batch = data.tensors(dtype=torch.float64)
        self.mean.copy_(batch.x.mean(0))
        self.spread.copy_(batch.x.std(0))
        sizes = self.config["latents"], self.config["environments"]
        return binary_states.first_counts(*self._rows_of(data), *sizes, generator, self.prior)

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """The expected counts at the trained parameters."""
        x, env = self._rows_of(data)
        share = self._state_logits(x, env).softmax(-1)
        self._set(binary_states.counts(x, env, share, len(self.count)))

    def _rows_of(self, data: Data) -> tuple[Tensor, Tensor]:
        batch = data.tensors(self.mean.device, torch.float64)
        return (batch.x - self.mean) / self.spread, batch.env

    def _set(self, *found: binary_states.Counts | binary_states.Laws) -> None:
        for part in found:
            for name, value in part._asdict().items():
                getattr(self, name).copy_(value)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("jiang2023", seed=seed, samples=400, latents=3, features=8)
        return cls.from_data(data), data

    studies = (Skeleton("jiang2023", seeds=10, held_out=0.1, identified=False),)


if __name__ == "__main__":
    run(UnknownTargets)
