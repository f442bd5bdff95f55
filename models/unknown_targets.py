"""Measurement model of binary latents under interventions of unknown targets, by exact sums over their states.

    order ~ uniform, graph[j, k] ~ Bernoulli(rho) if j precedes k                   (parent, child)
    targets[e, k] ~ Bernoulli(1 / latents), none in the first environment           (env, latent)
    log_odds_ek of a Beta(a_ek, a_ek) for each state of parents, a_ek = 1 / 2^(parents + 1)   (env, latent, state)
    mask_j,k ~ Bernoulli(.3)                                                        (feature, latent)
    precision_j = 1 / s_j^2 ~ Gamma(1, .01)                                         (feature,)
    level_j ~ N(0, s_j^2 / .02) for each state of the latents in mask               (feature, state)
    z_i,k ~ Bernoulli(log_odds_ek(z_i,parents)), in {0, 1}; targets have no parents (data, latent)
    x_ij ~ N(level_j(z_i), s_j^2)                                                   (data, feature)

e is the row's environment: each has tables of its own. Levels and noise are in units of features' deviations.
`state_law` is the law of z over all states that each environment's tables give (env, state), `state_level` the levels
of all states (state, feature).

`model` plugs in free forms of both, and the noise, as trained (`plugged`): each environment any law over the
2^latents states, each feature a level for each of them. `z` is the row's states; the guide is its exact posterior, so
that the ELBO is the log-likelihood. `recover` draws order, graph, targets, log_odds, mask, precision and level given
the expected counts of states, exactly: tables by conjugacy (normal-gamma levels, BDeu's tables of z), masks over all
sets of latents, targets over all subsets of environments, graphs and orders by a dynamic program over subsets.

By default environments share nothing but the graph: what tells graphs and targets apart is which latents are dependent
where. Graphs that some choice of targets makes Markov equivalent in every environment have the same likelihood. So
skeleton and v-structures are identified, and further directions where no choice of targets undoes them. Latents that a
tree without v-structures joins leave every one of them as its root: each environment cuts one edge, whichever end it
targets. The smallest such tree is an isolated edge, between latents with no other neighbour. The directions left open
share the probability by the orders that graphs fit: one half each for an isolated edge. A target without parents
looks like none. With invariant=True mechanisms that are not targeted are the first environment's, and changes of their
laws tell directions and targets that dependence does not.

*Identified:* latents up to permutation, sign and shift (which state is called 1) and mask up to permutation, if no
latent's features are all among another's, all states occur and features tell them; the graph up to Markov equivalence
(claimed, though targets often tell more), and with invariant=True exactly, if every latent is a target.

Jiang & Aragam (2023), Learning nonparametric latent causal graphs with unknown interventions.

*Differs from the paper in* being a posterior where the paper identifies without an estimator, in Gaussian noise around
levels that are free, in latents that are binary and of known number, and in the default's use of dependence alone.

Longer than other models because its story is two models, of tables under targets and of levels under masks, and all
parts of both are recovered.

*For a variant, copy this file and change* `level`: how features depend on states; with `_masks`, the evidence of it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import binary_states
from pyrocrl.dists import Gamma, Normal
from pyrocrl.exact import binary, orders, sharing
from pyrocrl.exact.binary import LogitBeta, States
from pyrocrl.lab.studies.latent_graphs import Skeleton
from pyrocrl.options import Bounds, Positive, Share
from pyrocrl.program import EdgeProbability, Environments, Features, check_sizes

MOST_LATENTS = 6  # 64 states, and tables of states by sets of latents by states
PRIORS = ("level_precision", "noise_shape", "noise_rate", "equivalent_sample_size")

GIVEN = ("features are Gaussian given the latents",)
FAITHFUL = "latents are independent only where the graph says so"
SEEN = ("more_features_than_latents", "own_features", "all_states", "states_told")
NEEDS = (*SEEN, "observational_environment")


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
            Claim("latents", ("permutation", "sign", "shift"), GIVEN, SEEN),
            Claim("mask", ("permutation",), GIVEN, SEEN),
            Claim("graph", ("permutation", "markov equivalence"), (*GIVEN, FAITHFUL), NEEDS, {"invariant": False}),
            Claim(
                "graph",
                ("permutation",),
                (*GIVEN, FAITHFUL, "an intervention changes the mechanism of its target alone"),
                (*NEEDS, "one_intervention_per_latent"),
                {"invariant": True},
            ),
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
        values="binary",
        approximate="Levels, noise and laws of states are trained free of mask, graph and targets; draws of these are "
        "given the expected counts of states, as if the counts were known.",
    )
    recipe = Recipe.unannealed(
        epochs=10, batch_size=1000, lr=1e-3, held_out=0.05, patience=None, dtype=torch.float64, chains=4
    )
    new_rows = True
    knows_interventions = True
    checks = {"features": GIVEN}
    constants = ("mean", "spread")
    sites = {  # the others are in each chain's own order of latents and coding of states
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "graph": Site(("parent", "child"), discrete=True),
        "targets": Site(("env", "latent"), discrete=True),
        "precision": Site(("feature",)),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[int, Bounds(2, MOST_LATENTS), "how many binary latents there are"],
        environments: Annotated[Environments, Bounds(1, sharing.MAX_ENVIRONMENTS)],
        invariant: bool = False,
        edge_probability: EdgeProbability = 0.5,
        mask_probability: Share = 0.3,
        level_precision: Positive = 0.02,
        noise_shape: Positive = 1.0,
        noise_rate: Positive = 0.01,
        equivalent_sample_size: Positive = 1.0,
    ) -> None:
        """environments: the first is observational. invariant: whether mechanisms that are not targeted are the same
        in all environments. mask_probability: a priori that a feature measures a latent. level_precision: a priori of a
        standardised level, in those of one row. noise_shape, noise_rate: of the Gamma prior of a standardised feature's
        precision. equivalent_sample_size: of BDeu's prior of the latents' tables.

        Raises InputError for more than 6 latents or more than 10 environments.
        """
        super().__init__()
        check_sizes(features, latents)
        self.prior = binary.Prior(mask_probability, level_precision, noise_shape, noise_rate, equivalent_sample_size)
        size, double = 2**latents, torch.float64
        self.level = nn.Parameter(torch.randn(size, features))  # standardised, as is the noise
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.logits = nn.Parameter(torch.zeros(environments, size))
        self.register_buffers(
            mean=torch.zeros(features, dtype=double),
            spread=torch.ones(features, dtype=double),
            # expected over the rows' states: rows, sums of standardised x, and sums of its squares
            count=torch.ones(environments, size, dtype=double),
            first=torch.zeros(size, features, dtype=double),
            second=torch.ones(features, dtype=double),
        )

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, envs, (features, states) = self.config["latents"], len(self.count), self.level.mT.shape
        one = self.count.new_ones((), dtype=torch.float64)
        prior = orders.log_edge_prior(d, self.config["edge_probability"], one.device)
        order = pyro.sample("order", orders.Order(prior))  # (latent,)
        graph = pyro.sample("graph", orders.Graph(prior, order))  # (parent, child)
        with pyro.plate("env", envs, dim=-2), pyro.plate("latent", d, dim=-1):
            chance = self._differs().amax(0)[:, None] / d  # 0 in the first environment
            targets = pyro.sample("targets", dist.Bernoulli(chance))  # (env, latent)
            sets = self._parents(graph, targets)
            a = binary.table_prior(sets, self.prior.equivalent)[..., None].expand(-1, -1, states)
            log_odds = pyro.sample("log_odds", LogitBeta(a, a).to_event(1))  # (env, latent, state)
        with pyro.plate("feature", features, dim=-1):
            mask = pyro.sample("mask", dist.Bernoulli(self.prior.mask * one.expand(d)).to_event(1))  # (feature, latent)
            precision = pyro.sample("precision", Gamma(self.prior.shape * one, self.prior.rate * one))  # (feature,)
            scale = (self.prior.precision * precision).rsqrt()[:, None].expand(-1, states)
            level = pyro.sample("level", Normal(torch.zeros_like(scale), scale).to_event(1))  # (feature, state)
        law = pyro.deterministic("state_law", self._law(log_odds, sets, self._acting(targets)))  # (env, state)
        levels = pyro.deterministic("state_level", level.gather(-1, self._slots(mask)).mT)  # (state, feature)
        env, parents_first = batch.env, order.tolist()
        if batch.together is not None:  # as in the first environment, but for the targets of these
            law = self._law(log_odds, sets, sharing.acting_together(targets, batch.together)[1])[None]
            env = torch.zeros_like(env)
        with self.rows(batch):

            def equation(k: int, z: Tensor) -> Any:  # of a table, what earlier latents tell is what parents tell
                earlier = sum(2**j for j in parents_first[: parents_first.index(k)])
                return dist.Bernoulli(logits=binary.log_odds_given(law, k, earlier)[env, binary.code(z)])

            z = self.along(parents_first, equation, law.new_zeros(len(batch), d))  # (rows, latent)
            loc = self.mean.double() + self.spread.double() * levels[binary.code(z)]
            scale = self.spread.double() * precision.rsqrt()
            pyro.sample("x", Normal(loc, scale.expand_as(loc)).to_event(1), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", States(self.logits.log_softmax(-1)[batch.env]))  # (rows, latent)
            noise = self.spread * self.log_noise.exp()
            mean = self.mean + self.spread * self.level[binary.code(z)]  # (rows, feature)
            pyro.sample("x", Normal(mean, noise).to_event(1), obs=batch.x)

    def plugged(self, batch: Batch) -> dict[str, Tensor]:
        """Free levels are those of features that all latents measure."""
        return {
            "mask": torch.ones(self.level.shape[1], self.config["latents"], dtype=torch.float64, device=batch.device),
            "level": self.level.double().mT,
            "precision": (-2 * self.log_noise.double()).exp(),
            "state_law": self.logits.double().log_softmax(-1),
        }

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        joint, count, prior = self._joint(), self.count.double(), self.prior
        scores = joint.logsumexp(-1)
        order = pyro.sample("order", orders.Order(scores))
        graph = pyro.sample("graph", orders.Graph(scores, order))
        node = torch.arange(len(order), device=order.device)
        targets = pyro.sample("targets", sharing.Targets(joint[node, orders.parent_sets(graph)], self._differs()))
        sets, follows = self._parents(graph, targets), self._acting(targets)
        told = torch.nn.functional.one_hot(follows, len(count)).double()  # (env, latent, whose tables)
        one, zero = binary.families(torch.einsum("eko,et->okt", told, count), sets)
        a = binary.table_prior(sets, prior.equivalent)[..., None]
        with pyro.plate("env", len(count), dim=-2), pyro.plate("latent", len(order), dim=-1):
            pyro.sample("log_odds", LogitBeta(a + one, a + zero).to_event(1))
        by_mask, left, _, mean = self._masks()
        rows = prior.precision + count.sum(0) @ binary.slots(len(order), count.device)[1]  # (set, state)
        feature = torch.arange(len(by_mask), device=count.device)
        with pyro.plate("feature", len(feature), dim=-1):
            chosen = binary.code(pyro.sample("mask", States(by_mask.log_softmax(-1))))
            shape = prior.shape + 0.5 * count.sum().expand(len(feature))
            precision = pyro.sample("precision", Gamma(shape, prior.rate + 0.5 * left[feature, chosen]))
            scale = (rows[chosen] * precision[:, None]).rsqrt()
            pyro.sample("level", Normal(mean[chosen, :, feature], scale).to_event(1))

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", States(self._posterior(batch).log_softmax(-1)))

    def _posterior(self, batch: Batch) -> Tensor:
        return self._state_logits((batch.x - self.mean) / self.spread, batch.env)

    def _state_logits(self, x: Tensor, env: Tensor) -> Tensor:
        """(rows, state) log p(x, h | env) of standardised x."""
        return binary.state_logits(x, env, self.level, self.log_noise, self.logits)

    def _parents(self, graph: Tensor, targets: Tensor) -> Tensor:
        """(env, latent) sets of parents: none of targets."""
        return torch.where(targets > 0.5, 0, orders.parent_sets(graph))

    def _acting(self, targets: Tensor) -> Tensor:
        """(env, latent) the environment whose tables an environment's latents follow."""
        own = torch.arange(len(targets), device=targets.device)[:, None]
        return torch.where(targets > 0.5, own, 0) if self.config["invariant"] else own.expand(targets.shape)

    @staticmethod
    def _law(log_odds: Tensor, sets: Tensor, follows: Tensor) -> Tensor:
        """(..., state) law of states of latents that follow these environments' tables (..., latent)."""
        node = torch.arange(follows.shape[-1], device=follows.device)
        return binary.state_law(log_odds[follows, node], sets[follows, node])

    def _slots(self, mask: Tensor) -> Tensor:
        """(feature, state) the state with the bits of latents that a feature does not measure cleared."""
        return binary.code(mask)[:, None] & torch.arange(len(self.level), device=mask.device)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) probability of state 1."""
        member = orders.members(self.config["latents"], batch.device).to(batch.dtype)
        return self._posterior(batch).softmax(-1) @ member

    @torch.no_grad()
    def mask(self) -> Tensor:
        member = orders.members(self.config["latents"], self.count.device)
        return (self._masks()[0].softmax(-1) @ member.double()).clamp(0.0, 1.0)

    def _masks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the expected counts tell of masks and levels, see `binary.set_scores`."""
        count, first, second = self.count.double(), self.first.double(), self.second.double()
        return binary.set_scores(count.sum(0), first, second, self.prior)

    @torch.no_grad()
    def graph(self) -> Tensor:
        return orders.edge_probabilities(self._joint().logsumexp(-1))

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        joint = self._joint()
        return sharing.target_probabilities(joint.logsumexp(-1), joint, self._differs())

    @torch.no_grad()
    def state_counts(self) -> Tensor:
        return self.count.sum(0)

    @torch.no_grad()
    def cdf(self, batch: Batch) -> Tensor:
        standard = ((batch.x - self.mean) / self.spread)[:, None] - self.level  # (rows, state, feature)
        below = torch.special.ndtr(standard / self.log_noise.exp())
        return torch.einsum("rs,rsf->rf", self.logits.softmax(-1)[batch.env], below)

    def _differs(self) -> Tensor:
        return sharing.subsets(len(self.count), True).to(self.count.device)

    def _joint(self) -> Tensor:
        """(child, set of parents, subset of environments that target the child) log posterior, up to a constant."""
        d, differs, count = self.config["latents"], self._differs(), self.count.double()
        known = sharing.table_evidence(count, differs, self.config["invariant"], self.prior.equivalent)
        rate = torch.tensor(-math.log(d - 1), dtype=torch.float64, device=count.device)
        prior = orders.log_edge_prior(d, self.config["edge_probability"], count.device)
        return known + sharing.log_prior(rate, differs, True) + prior[..., None]

    @torch.no_grad()
    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | levels, noise, law of states) as trained, states summed out."""
        return self._posterior(batch).logsumexp(-1) - self.spread.log().sum()

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Candidate states from cuts of single features, those that explain all features best; then expectation-
        maximisation with the levels tied by the mask, and the coding of states that needs the fewest dependences."""
        first = self._construct(data, generator)
        found = binary_states.climbed(*self._rows_of(data), first, self.prior)
        self.put(**found._asdict(), **found.laws(self.prior)._asdict())
        # chains start apart, by one posterior deviation of the levels
        apart = torch.randn(self.level.shape, generator=generator).to(self.level)
        spread = self.log_noise.exp() / (self.prior.precision + self.count.sum(0)).sqrt()[:, None]
        self.level.add_(spread.to(self.level) * apart)

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """First states alone: cuts of single features that together explain all features best."""
        found = self._construct(data, generator)
        self.put(**found._asdict(), **found.laws(self.prior)._asdict())

    def _construct(self, data: Data, generator: torch.Generator) -> binary_states.Counts:
        batch = data.tensors(dtype=torch.float64)
        self.put(mean=batch.x.mean(0), spread=batch.x.std(0))
        sizes = self.config["latents"], self.config["environments"]
        return binary_states.first_counts(*self._rows_of(data), *sizes, generator, self.prior)

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """The expected counts at the trained parameters."""
        x, env = self._rows_of(data)
        share = self._state_logits(x, env).softmax(-1)
        self.put(**binary_states.counts(x, env, share, len(self.count))._asdict())

    def _rows_of(self, data: Data) -> tuple[Tensor, Tensor]:
        batch = data.tensors(self.mean.device, torch.float64)
        return (batch.x - self.mean) / self.spread, batch.env

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("jiang2023", seed=seed, samples=400, latents=3, features=8)
        return cls.from_data(data), data

    studies = (Skeleton("jiang2023", seeds=10, held_out=0.1, identified=False),)


if __name__ == "__main__":
    run(UnknownTargets)
