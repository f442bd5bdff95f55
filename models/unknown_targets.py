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

By default environments share nothing but which graph they are on: what tells graphs and targets apart is which latents
are dependent where. BDeu gives Markov equivalent graphs the same evidence, so the two directions of an isolated edge
(between latents with no other neighbour) have probability one half each, whatever the data; and a target without
parents looks like none. With invariant=True mechanisms that are not targeted are the same in all environments; then
changes of marginals direct isolated edges as well and tell targets without parents.

*Identified:* latents up to permutation, sign and shift (which state is called 1), mask and graph up to permutation,
if no latent's features are all among another's and all states occur: the graph up to Markov equivalence and, by the
targets, more; isolated edges never. With invariant=True the graph exactly, if every latent is a target.

Jiang & Aragam (2023), Learning nonparametric latent causal graphs with unknown interventions.

*Differs from the paper in* being a posterior where the paper identifies without an estimator, in Gaussian noise around
levels that are free, in latents that are binary and of known number, and in the default's use of dependence alone.

*For a variant, copy this file and change* `_set_scores`: another law of features given latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, graphs, run, shifts
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.indeterminacy import topological_order
from pyrocrl.program import check_sizes

MOST_LATENTS = 6  # 64 states, and tables of states by sets of latents by states
EQUIVALENT = 1.0  # BDeu's equivalent sample size
TIGHT = 0.02  # precision of a level a priori, in those of one row
SHAPE, RATE = 1.0, 0.01  # of the Gamma prior of 1 / s^2
MASK = math.log(0.3 / 0.7)
ROWS = 3000  # of the search for first states
STARTS = 3  # of that search: one by addition, the others at random
ROUNDS = 8  # of exchanges in each
STEPS = 60  # of expectation-maximisation
CLEAR_STEPS = 6  # of expectation-maximisation after each exchange
LINE_STEPS = 40  # of expectation-maximisation on single features

GIVEN = (
    "no latent's features are all among another's",
    "all combinations of states occur",
    "features are Gaussian given the latents",
)
FAITHFUL = "latents that are adjacent are dependent"
ALONE = "an intervention changes the mechanism of its target alone"


class UnknownTargets(Program):
    card = ModelCard(
        name="unknown_targets",
        title="Discrete latents under interventions of unknown targets",
        family="interventions",
        summary="Binary latents, which features measure which, the graph between them and what each environment "
        "intervenes on. Directions that the data cannot tell get probability one half.",
        assumes=(
            "latents are binary and their number is known",
            "features depend on latents alone, not on one another",
            "interventions cut their targets from their parents",
        ),
        claims=(
            Claim("latents", ("permutation", "sign", "shift"), GIVEN, ("more_features_than_latents",)),
            Claim("mask", ("permutation",), GIVEN, ("more_features_than_latents",)),
            Claim("graph", ("permutation", "markov equivalence"), (*GIVEN, FAITHFUL), ("more_features_than_latents",)),
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
            "a posterior over masks, graphs and targets in place of conditions that are only shown to suffice",
            "features have Gaussian noise about free levels; latents are binary and of known number",
        ),
        settings=("jiang2023",),
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
    ) -> None:
        """environments: the first is observational. invariant: whether mechanisms that are not targeted are the same
        in all environments.

        Raises InputError for more than 6 latents or more than 10 environments.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        if latents > MOST_LATENTS:
            reject("latents", latents, f"2 to {MOST_LATENTS}: all states are summed")
        if isinstance(environments, bool) or not isinstance(environments, int | np.integer):
            reject("environments", repr(environments), "a whole number")
        if not 1 <= environments <= shifts.MAX_ENVIRONMENTS:
            reject("environments", environments, f"1 to {shifts.MAX_ENVIRONMENTS}")
        if not 0 < edge_probability < 1:
            reject("edge_probability", edge_probability, "a number strictly between 0 and 1")
        states, double = 2**latents, torch.float64
        self.level = nn.Parameter(torch.randn(states, features))  # standardised, as is the noise
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.logits = nn.Parameter(torch.zeros(environments, states))
        buffers = {
            "mean": torch.zeros(features, dtype=double),
            "spread": torch.ones(features, dtype=double),
            # expected over the rows' states: rows, sums of standardised x, and sums of its squares
            "count": torch.ones(environments, states, dtype=double),
            "first": torch.zeros(states, features, dtype=double),
            "second": torch.ones(features, dtype=double),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Candidate states from cuts of single features, those that explain all features best; then expectation-
        maximisation with the levels tied by the mask, and the coding of states that needs the fewest dependences."""
        self.construct(data, generator)
        x, env = self._rows_of(data)
        self._maximise(x, env)
        if self._recode():
            self._maximise(x, env)
        # chains start apart, by one posterior deviation of the levels
        apart = torch.randn(self.level.shape, generator=generator).to(self.level)
        spread = self.log_noise.exp() / (TIGHT + self.count.sum(0)).sqrt()[:, None]
        self.level.add_(spread.to(self.level) * apart)

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """First states alone: cuts of single features that together explain all features best."""
        batch = data.tensors(dtype=torch.float64)
        self.mean.copy_(batch.x.mean(0))
        self.spread.copy_(batch.x.std(0))
        x, env = self._rows_of(data)
        few = torch.randperm(len(x), generator=generator)[:ROWS]
        bits = _first_states(x[few], self.config["latents"], generator)
        share = torch.zeros(len(few), self.level.shape[0], dtype=torch.float64)
        share.scatter_(1, _code(bits)[:, None], 1.0)
        self._gather(x[few], env[few], share)
        self._tie()

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """The expected counts at the trained parameters."""
        x, env = self._rows_of(data)
        self._gather(x, env, self._state_logits(x, env).softmax(-1))

    def _rows_of(self, data: Data) -> tuple[Tensor, Tensor]:
        batch = data.tensors(self.mean.device, torch.float64)
        return (batch.x - self.mean) / self.spread, batch.env

    def _gather(self, x: Tensor, env: Tensor, share: Tensor) -> None:
        """Set the counts by the probabilities `share` (rows, state) of each row's states."""
        hot = torch.nn.functional.one_hot(env, len(self.count)).double()
        self.count.copy_(hot.mT @ share)
        self.first.copy_(share.mT @ x)
        self.second.copy_(x.square().sum(0))

    def _tie(self) -> None:
        """Levels, noise and laws of states by the counts: levels averaged over the posterior of masks."""
        level, noise = _tied(self.count.double().sum(0), self.first.double(), self.second.double())
        self.level.copy_(level)
        self.log_noise.copy_(noise.log())
        self.logits.copy_((self.count + EQUIVALENT / self.count.shape[1]).log())

    def _maximise(self, x: Tensor, env: Tensor) -> None:
        last = -math.inf
        for _ in range(STEPS):
            logits = self._state_logits(x, env)
            value = float(logits.logsumexp(-1).mean())
            self._gather(x, env, logits.softmax(-1))
            self._tie()
            if value - last < 1e-7:
                break
            last = value

    def _recode(self) -> bool:
        """Replace a latent by whether it equals another while that makes the masks sparser; whether any did."""
        d = self.config["latents"]
        moved = False
        while True:
            codes = torch.arange(2**d)
            options = [codes ^ (((codes >> b) & 1) << a) for a, b in permutations(range(d), 2)]
            count, first, second = self.count.double().sum(0), self.first.double(), self.second.double()
            now = _evidence(count, first, second)
            gains = [_evidence(count[o], first[o], second) - now for o in options]
            best = int(torch.stack(gains).argmax())
            if gains[best] < 1e-6 * now.abs():
                return moved
            self.count.copy_(self.count[:, options[best]])
            self.first.copy_(self.first[options[best]])
            self._tie()
            moved = True

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
        log_density = _log_density(x, self.level.to(x.dtype), self.log_noise.exp().to(x.dtype))
        return self.logits.log_softmax(-1).to(x.dtype)[env] + log_density

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return self.mean + self.spread * self.level[_code(z)]

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) probability of state 1."""
        member = graphs.members(self.config["latents"], batch.device).to(batch.dtype)
        return self._posterior(batch).softmax(-1) @ member

    @torch.no_grad()
    def mask(self) -> Tensor:
        member = graphs.members(self.config["latents"], self.count.device)
        return (self._mask_scores().softmax(-1) @ member.double()).clamp(0.0, 1.0)

    def _mask_scores(self) -> Tensor:
        return _set_scores(self.count.double().sum(0), self.first.double(), self.second.double())[0]

    @torch.no_grad()
    def graph(self) -> Tensor:
        return graphs.edge_probabilities(self._joint().logsumexp(-1))

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        joint = self._joint()
        sets = graphs.parent_set_probabilities(joint.logsumexp(-1))  # (child, set)
        return (torch.einsum("ks,ksg->kg", sets, joint.softmax(-1)) @ self._differs()).mT.clamp(0.0, 1.0)

    def _differs(self) -> Tensor:
        return shifts.subsets(len(self.count), True).to(self.count.device)

    def _joint(self) -> Tensor:
        """(child, set of parents, subset of environments that target the child) log posterior, not normalised."""
        d, differs, count = self.config["latents"], self._differs(), self.count.double()
        kept = 1.0 - differs
        own = _table_scores(count, d)  # (env, child, set)
        together = (
            _table_scores(kept @ count, d) if self.config["invariant"] else torch.einsum("ge,eks->gks", kept, own)
        )
        cut = own[:, :, :1].permute(1, 2, 0).expand(-1, own.shape[-1], -1)  # no parents: the empty set
        joint = shifts.log_joint(together.permute(1, 2, 0), cut, differs)
        rate = torch.tensor(-math.log(d - 1), dtype=torch.float64, device=count.device)
        prior = graphs.log_edge_prior(d, self.config["edge_probability"], count.device)
        return joint + shifts.log_prior(rate, differs, True) + prior[..., None]

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws of mask, graph and targets given the expected counts."""
        d, dtype = self.config["latents"], self.spread.dtype
        joint = self._joint()
        _, graph = graphs.sample_dags(joint.logsumexp(-1))
        nodes = torch.arange(d, device=graph.device)
        chosen = (graph * 2 ** nodes[:, None]).sum(0)
        subset = _draw(joint[nodes, chosen])  # (latent,)
        mask = graphs.members(d, graph.device)[_draw(self._mask_scores())]
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
        d, graph = self.config["latents"], sites["graph"] > 0.5
        z = torch.zeros(len(batch), d, dtype=self.spread.dtype, device=self.spread.device)
        with self.rows(batch):
            for k in topological_order(graph.cpu().numpy()):
                natural = 1.0 - sites["targets"][:, k].double()
                if not self.config["invariant"]:
                    natural = natural * (torch.arange(len(natural), device=natural.device) == 0)
                count, parents = natural @ self.count.double(), graph[:, k]
                for e in envs:
                    if sites["targets"][e, k] > 0.5:
                        count, parents = self.count[e].double(), torch.zeros_like(parents)
                share = _conditional(count, k, int((parents * 2 ** torch.arange(d, device=parents.device)).sum()))
                chance = share[_code(z)]
                value = (torch.rand_like(z[:, 0]) < chance).to(z.dtype)
                value = pyro.deterministic(f"z_{k}", value, event_dim=0).expand(len(z))
                z = torch.cat([z[:, :k], value[:, None], z[:, k + 1 :]], -1)
        return z

    def claims(self) -> tuple[Claim, ...]:
        if not self.config["invariant"]:
            return self.card.claims
        needs = ("more_features_than_latents", "observational_environment", "one_intervention_per_latent")
        return *self.card.claims[:2], Claim("graph", ("permutation",), (*GIVEN, FAITHFUL, ALONE), needs)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("jiang2023", seed=seed, samples=400, latents=3, features=8)
        return cls.from_data(data), data


class States(TorchDistribution):
    """A categorical law over the states of all latents as rows of bits: log_prob (..., state), normalised."""

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, log_prob: Tensor, validate_args: bool | None = None) -> None:
        self.by_state = log_prob
        d = log_prob.shape[-1].bit_length() - 1
        self.member = graphs.members(d, log_prob.device).to(log_prob.dtype)
        super().__init__(log_prob.shape[:-1], torch.Size([d]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> States:
        return States(self.by_state.expand(*batch_shape, -1))

    @property
    def mean(self) -> Tensor:
        return self.by_state.exp() @ self.member

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.by_state.shape
        return self.member[_draw(self.by_state.detach().expand(shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        return self.by_state.gather(-1, _code(value)[..., None])[..., 0]


def _code(z: Tensor) -> Tensor:
    """The state (...) of rows of bits (..., latent): latent k is bit k, set where z is above one half."""
    return ((z > 0.5) * 2 ** torch.arange(z.shape[-1], device=z.device)).sum(-1)


def _draw(logits: Tensor) -> Tensor:
    """An index along the last dimension, by Gumbel's trick."""
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits - (-uniform.log()).log()).argmax(-1)


@lru_cache(maxsize=8)
def _slots(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(set, state) the state with the bits outside the set cleared, and the same as (set, state, slot) in {0, 1}."""
    codes = torch.arange(2**d, device=device)
    slot = codes[:, None] & codes[None, :]
    return slot, torch.nn.functional.one_hot(slot, 2**d).double()


def _set_scores(count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evidence of every set of latents for every feature, levels and noise integrated out.

    count: (state,); first: (state, feature) sums; second: (feature,) sums of squares. Returns scores (feature, set),
    sums of squares left (feature, set), slots (set, state) and mean levels (set, slot, feature).
    """
    d = len(count).bit_length() - 1
    slot, hot = _slots(d, count.device)
    rows = count @ hot  # (set, slot)
    sums = hot.mT @ first  # (set, slot, feature)
    level = sums / (TIGHT + rows)[..., None]
    left = (second[:, None] - (sums * level).sum(1).mT).clamp_min(0.0)  # (feature, set)
    volume = 0.5 * (TIGHT / (TIGHT + rows)).log().sum(-1)  # (set,)
    size = graphs.members(d, count.device).sum(-1)
    scores = volume + MASK * size - (SHAPE + 0.5 * count.sum()) * (RATE + 0.5 * left).log()
    return scores, left, slot, level


def _tied(count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (state, feature) and noise (feature,), averaged over the posterior of the sets of latents."""
    scores, left, slot, mean = _set_scores(count, first, second)
    weight = scores.softmax(-1)  # (feature, set)
    by_state = mean[torch.arange(len(slot), device=slot.device)[:, None], slot]  # (set, state, feature)
    variance = (weight * (RATE + 0.5 * left)).sum(-1) / (SHAPE + 0.5 * count.sum())
    return torch.einsum("js,stj->tj", weight, by_state), variance.sqrt()


def _log_density(x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """(rows, state) log p(x | state) of standardised x."""
    precision = noise.pow(-2)
    square = (x.square() @ precision)[:, None] - 2 * x @ (level * precision).mT + level.square() @ precision
    return -0.5 * square - noise.log().sum() - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def _evidence(count: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """() log evidence of all features given the states, masks summed out."""
    return _set_scores(count, first, second)[0].logsumexp(-1).sum()


def _table_scores(count: Tensor, d: int) -> Tensor:
    """(group, child, set) BDeu log evidence of each latent given each set of parents, by counts (group, state).

    Score equivalent (Heckerman et al. 1995): it is the evidence of the family less that of its parents, each a sum
    over cells of log Gamma(n + a / cells) / Gamma(a / cells).
    """
    _, hot = _slots(d, count.device)
    cells = torch.einsum("gt,stu->gsu", count, hot)  # (group, set, slot); slots outside a set stay empty
    prior = EQUIVALENT / 2.0 ** graphs.members(d, count.device).sum(-1).double()[:, None]
    whole = (torch.lgamma(cells + prior) - torch.lgamma(prior)).sum(-1)  # (group, set)
    codes = torch.arange(2**d, device=count.device)
    return torch.stack([whole[:, codes | 1 << k] - whole for k in range(d)], 1)


def _conditional(count: Tensor, k: int, parents: int) -> Tensor:
    """(state,) probability that latent k is 1 given the bits of its parents in the state, by counts (state,)."""
    _, hot = _slots(len(count).bit_length() - 1, count.device)
    codes = torch.arange(len(count), device=count.device)
    family = parents | 1 << k
    cells = count @ hot[family] + EQUIVALENT / 2.0 ** family.bit_count()
    one, zero = cells[(codes & parents) | 1 << k], cells[codes & parents]
    return one / (one + zero)


def _first_states(x: Tensor, latents: int, generator: torch.Generator) -> Tensor:
    """(rows, latent) in {0, 1}: of all cuts of single features into two, those that explain all features best.

    Latents are added one at a time, or drawn at random, and then exchanged until nothing is gained, by the evidence of
    all features with masks summed out; the best of `STARTS`. After each change the states are cleared of the noise
    that a single feature's cut has, for a second noisy copy of a latent would look like one more.
    """
    cuts = _cuts(x)
    second = x.square().sum(0)

    def best_next(bits: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [(bits[:, a] != bits[:, b]).to(x.dtype)[:, None] for a, b in combinations(range(bits.shape[1]), 2)]
        options = torch.cat([cuts, *pairs], -1)  # (rows, option)
        hot = torch.nn.functional.one_hot(_code(bits), 2 ** bits.shape[1]).to(x.dtype)
        count, first = hot.sum(0), hot.mT @ x
        with_one = hot.mT @ options  # (state, option)
        sums = torch.einsum("rs,ro,rj->osj", hot, options, x)
        counts = torch.cat([count - with_one.mT, with_one.mT], -1)  # (option, state)
        firsts = torch.cat([first - sums, sums], 1)  # (option, state, feature)
        found = torch.func.vmap(_evidence, in_dims=(0, 0, None))(counts, firsts, second)
        return _refined(x, torch.cat([bits, options[:, int(found.argmax())][:, None]], -1))

    best, highest = cuts[:, :latents], torch.tensor(-torch.inf, dtype=x.dtype)
    for start in range(STARTS):
        pick = torch.randperm(cuts.shape[1], generator=generator)[: latents if start else 0]
        bits = cuts[:, pick]
        while bits.shape[1] < latents:
            bits, value = best_next(bits)
        before, stale = torch.tensor(-torch.inf, dtype=x.dtype), 0
        for _ in range(ROUNDS * latents):  # take out the oldest, put in the best
            bits, value = best_next(bits[:, 1:])
            stale = 0 if value > before + 1e-6 * value.abs() else stale + 1
            if value > highest:
                best, highest = bits, value
            before = torch.maximum(before, value)
            if stale == latents:
                break
    return best


def _refined(x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable states after a few steps of expectation-maximisation from `bits`, and the evidence of x."""
    member, second = graphs.members(bits.shape[1]).to(x.dtype), x.square().sum(0)
    share = torch.nn.functional.one_hot(_code(bits), len(member)).to(x.dtype)
    for _ in range(CLEAR_STEPS):
        count = share.sum(0)
        share = (_log_density(x, *_tied(count, share.mT @ x, second)) + (count + EQUIVALENT).log()).softmax(-1)
    return member[share.argmax(-1)], _evidence(share.sum(0), share.mT @ x, second)


def _cuts(x: Tensor) -> Tensor:
    """(rows, cut) in {0, 1}: each feature clustered into two levels, and into four, two of which are taken for 1 in the
    three ways there are: those of a feature of one latent and of two."""
    two, four = _levels(x, 2), _levels(x, 4)  # (rows, feature)
    pairs = [(four == a) | (four == 3) for a in range(3)]
    return torch.cat([two == 1, *pairs], -1).to(x.dtype)


def _levels(x: Tensor, levels: int) -> Tensor:
    """(rows, feature) the most probable component of a mixture of normals of equal spread on each feature, from two
    starts: centres at quantiles, and evenly between them."""
    at = (torch.arange(levels, dtype=x.dtype) + 0.5) / levels
    low, high = torch.quantile(x, torch.tensor([0.005, 0.995], dtype=x.dtype), dim=0)
    centre = torch.stack([torch.quantile(x, at, dim=0), low + at[:, None] * (high - low)])  # (start, level, feature)
    spread = (high - low).expand(2, -1) / (2 * levels)
    weight = torch.full_like(centre, 1.0 / levels)
    for _ in range(LINE_STEPS):
        apart = (x[:, None, None] - centre) / spread[:, None]  # (rows, start, level, feature)
        log = weight.log() - 0.5 * apart.square() - spread[:, None].log()
        share = log.softmax(2)
        rows = share.sum(0) + 1e-3
        centre = (share * x[:, None, None]).sum(0) / rows
        weight = rows / rows.sum(1, keepdim=True)
        spread = ((share * (x[:, None, None] - centre).square()).sum((0, 2)) / len(x)).sqrt().clamp_min(1e-3)
    best = log.logsumexp(2).sum(0).argmax(0)  # (feature,)
    place = centre.argsort(1).argsort(1)  # components in order of their centres
    label = place[torch.arange(2)[:, None], log.argmax(2), torch.arange(x.shape[1])]  # (rows, start, feature)
    return label[:, best, torch.arange(x.shape[1])]


if __name__ == "__main__":
    run(UnknownTargets)
