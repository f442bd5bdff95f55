"""Programs that keep the unmixing of linear Gaussian equations alone, and sum the equations out: what they share.

    z = M y,  rows of M with the directions `tangent`;  y (latent,) as a program sees it in x

`story`, `model` and `recover` are the program's own, so are y and the search of a start. Here are the moments of y that
they read, averages over draws of M, and the guide: up to SAMPLED latents draws of M from its exact posterior, beyond
that of Laplace's approximations, over all maxima that a chain has found. Of more latents than graphs can be summed over
(`many`) a program's `model` keeps `order` and `graph` beside `tangent`, and the guide holds draws of the three together
(`many_latents`), made when a chain starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrocrl.batch import Batch
from pyrocrl.constructions import directions, many_latents
from pyrocrl.data import Data
from pyrocrl.dists import MultivariateNormal, Normal
from pyrocrl.exact import annealed, goodness, joint_sampling, linear_sem, order_sampling, orders
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.parts.guides import FullNormalBlock, NormalBlock
from pyrocrl.parts.latent_sem import described
from pyrocrl.program import Program, Recipe

REFINED = 0.2  # p of the fitted moments below which the unmixing is tried again
FAR = 10.0  # nats of evidence by which kinds that fit worse are worse at the least
MOST_REFINED = 6  # latents of which it is
SAMPLED = 6  # latents up to which the posterior of M is sampled: seconds a chain at worst


class Drawn(TorchDistribution):
    """The guide's law of `tangent`: a normal while a chain is trained, afterwards the posterior itself, of which there
    are draws (draw, size) and, but for the evidence, the density.

    settled (): above .5 once there are. log_prob: of the posterior, at a value (size,); mean: (size,).
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, normal: Any, draws: Tensor, settled: Tensor, log_prob: Any, mean: Tensor) -> None:
        self.normal, self.draws, self.settled, self._log_prob, self._mean = normal, draws, settled, log_prob, mean
        super().__init__(normal.batch_shape, normal.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._mean

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        uniform = torch.rand((*sample_shape, 1), device=self.draws.device)
        place = (uniform * len(self.draws)).long().clamp_max(len(self.draws) - 1)
        one = self.draws.index_select(0, place.flatten()).view(*sample_shape, -1)
        return torch.where(self.settled > 0.5, one, self.normal.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(self.settled > 0.5, self._log_prob(value), self.normal.log_prob(value))


class MarginalSEM(nn.Module):
    """A program's part: `class Model(MarginalSEM, Program)`, which calls `hold_moments` in its `__init__`.

    Its config has `latents`, `edge_probability`, `targets` and, where they are not perfect, `intervention`; it writes
    `_objective`, log p(x | rows of M), on `_log_marginal`. Attributes that it reads:

    count (env,), mean (env, latent), cov (env, latent, latent): moments of y, white over the observational rows.
    target: (env, latent) in {0, 1}. unknown: whether these are found. observational: codes of environments without.
    pairs: (environment, latent) of every mechanism after the natural ones; all of them where targets are unknown.
    chart (latent, latent, latent): orthonormal bases in which `tangent` stands, centred on the highest evidence.
    guide_block, root: q(tangent) of a chain in training, in units of the Cholesky factor `root` of its covariance.
    charts, roots, log_weights: all maxima that the chain has found, see `annealed.Maxima`; weight 0 where there are
    fewer. drawn (draw, latent (latent - 1)): of the posterior of `tangent`, once settled () is 1; log_density (): the
    log of what it integrates to, log p(x).
    many: whether there are more latents than graphs can be summed over. Then there are drawn_order (draw, latent) and
    drawn_graph (draw, parent, child) instead of maxima, peak_graph (parent, child) of the maximum on which the chart is
    centred, and log_density is the mean height of the joint density.
    """

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
    config: dict[str, Any]
    intervention_kind: Any
    count: Tensor
    mean: Tensor
    cov: Tensor
    target: Tensor
    chart: Tensor
    root: Tensor
    charts: Tensor
    roots: Tensor
    log_weights: Tensor
    drawn: Tensor
    settled: Tensor
    log_density: Tensor
    drawn_order: Tensor
    drawn_graph: Tensor
    peak_graph: Tensor

    def hold_moments(self, target: np.ndarray, unknown: bool) -> None:
        """Register guide and buffers, for targets (env, latent) in {0, 1} or, where unknown, a first guess of them."""
        envs, latents = target.shape
        every = [(e, k) for e in range(1, envs) for k in range(latents)]
        self.unknown = unknown
        self.pairs = every if unknown else linear_sem.target_pairs(target)
        self.observational = np.flatnonzero(target.sum(1) == 0)[: 1 if unknown else None]
        size, keep = latents * (latents - 1), directions.EFFORT.keep
        self.many = latents > orders.MAX_NODES
        eye = torch.eye(latents, dtype=torch.float64)
        chart, draws = directions.chart_at(eye), joint_sampling.EFFORT.draws if self.many else annealed.EFFORT.draws
        if self.many:
            self.guide_block = NormalBlock(size)
            self.register_buffer("drawn_order", torch.arange(latents).expand(draws, latents).clone())
            self.register_buffer("drawn_graph", torch.zeros(draws, latents, latents, dtype=torch.bool))
            self.register_buffer("peak_graph", torch.zeros(latents, latents, dtype=torch.bool))
        else:
            root = 0.1 * torch.eye(size, dtype=torch.float64)
            self.guide_block = FullNormalBlock(size, scale=1.0)
            self.hold(
                root=root,
                charts=chart.repeat(keep, 1, 1, 1),
                roots=root.repeat(keep, 1, 1),
                log_weights=torch.zeros(keep),
            )
        self.hold(
            chart=chart,
            drawn=torch.zeros(draws, size),
            settled=torch.zeros(()),
            log_density=torch.zeros(()),
            count=torch.full((envs,), 2.0),
            mean=torch.zeros(envs, latents),
            cov=eye.repeat(envs, 1, 1),
            target=torch.as_tensor(target),
        )

    def hold(self, **buffers: Tensor) -> None:
        """Register buffers, in double precision: log-likelihoods of many rows differ in their last digits."""
        for name, value in buffers.items():
            self.register_buffer(name, value.double())

    @property
    def control(self) -> int:
        """The first observational environment."""
        return int(self.observational[0])

    # -- the unmixing ------------------------------------------------------------------------------------------

    def guide(self, batch: Batch) -> None:
        if not self.many:
            pyro.sample("tangent", self._posterior())
            return
        uniform = torch.rand((1,), device=self.drawn.device)
        place = (uniform * len(self.drawn)).long().clamp_max(len(self.drawn) - 1)
        drawn = (self.drawn, self.drawn_order, self.drawn_graph.to(self.drawn.dtype))
        tangent, order, graph = (own.index_select(0, place)[0] for own in drawn)
        block = self.guide_block
        normal = Normal(block.loc, block.scale).to_event(1)

        def log_prob(value: Tensor) -> Tensor:
            return self._log_joint(value, graph) - self.log_density

        pyro.sample("tangent", Drawn(normal, tangent[None], self.settled, log_prob, tangent))
        pyro.sample("order", dist.Delta(order, event_dim=1))
        pyro.sample("graph", dist.Delta(graph, event_dim=2))

    def _any_order(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Sites `order` (latent,) and `graph` (parent, child), from their prior."""
        d, prob = self.config["latents"], self.config["edge_probability"]
        order = pyro.sample("order", order_sampling.AnyOrder(like, d))
        graph = pyro.sample("graph", dist.Bernoulli(prob * orders.earlier(order).to(like)).to_event(2))
        return order, graph

    def _log_joint(self, tangent: Tensor, graph: Tensor) -> Tensor:
        """log p(x, tangent, order, graph), whatever order the graph fits."""
        d, prob = self.config["latents"], self.config["edge_probability"]
        odds = math.log(prob) - math.log1p(-prob)
        prior = (
            graph.sum() * odds + orders.log_order_prior(d, prob) + directions.Directions(tangent, d).log_prob(tangent)
        )
        return self._given_graph(self._unmixing(tangent), graph) + prior

    def _posterior(self) -> Drawn:
        block = self.guide_block
        normal = MultivariateNormal(self.root @ block.loc, scale_tril=self.root @ block.scale_tril)
        mean = torch.where(self.settled > 0.5, annealed.tangents(self._mean_rows(), self.chart), normal.loc)
        return Drawn(normal, self.drawn, self.settled, self._log_posterior, mean)

    def _log_posterior(self, tangent: Tensor) -> Tensor:
        """log q(tangent) of a settled chain: of the posterior, or of the mixture that stands in for it."""
        rows, prior = self._unmixing(tangent), directions.Directions(tangent, self.config["latents"]).log_prob(tangent)
        if self.config["latents"] <= SAMPLED:
            return self._objective(rows) + prior - self.log_density
        mixture = annealed.Maxima(self.charts, self.roots, self.log_weights.log_softmax(0))
        return mixture.log_density(rows, wide=False) + prior

    def _unmixing(self, tangent: Tensor) -> Tensor:
        """M (latent, latent), its rows of length 1."""
        return directions.unit_rows(tangent, self.chart).double()

    def _mean_rows(self) -> Tensor:
        """The mean of draws of M."""
        return directions.unit_rows(self.drawn, self.chart).mean(0)

    def _rows(self) -> Tensor:
        """The posterior mean of M; while a chain is trained, M at the guide's mean."""
        if self.many or self.settled > 0.5:
            return self._mean_rows()
        return self._unmixing(self.root @ self.guide_block.loc)

    # -- what is summed out ------------------------------------------------------------------------------------

    def _environments(self) -> linear_sem.Environments:
        return linear_sem.Environments(*(v.double() for v in (self.count, self.mean, self.cov, self.target)))

    def _slices(self, target: Tensor | None = None, share: float = 1.0) -> linear_sem.Slices:
        """The moments sorted by mechanism; target (env, latent): other targets than the program's."""
        environments = self._environments()
        target = environments.target if target is None else target
        return linear_sem.slices(environments._replace(count=share * environments.count, target=target), self.pairs)

    def _log_marginal(self, rows: Tensor, target: Tensor | None = None, share: float = 1.0) -> Tensor:
        """log p(y | rows of M, targets): orders, graphs and equations summed out, as if of a share of the rows."""
        prob, total = self.config["edge_probability"], share * self.count.double().sum()
        return linear_sem.log_marginal(rows.double(), self._slices(target, share), total, prob, self.intervention_kind)

    def _objective(self, rows: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} lacks _objective")

    def _given_graph(self, rows: Tensor, graph: Tensor) -> Tensor:
        """log p(x | rows of M, graph), of programs with many latents."""
        raise NotImplementedError(f"{type(self).__name__} lacks _given_graph")

    def _scores(self, unmixing: Tensor, table: linear_sem.Slices) -> Tensor:
        """(latent, 2**latent) log scores of parent sets given M; their prior where interventions keep equations."""
        d, prob = self.config["latents"], self.config["edge_probability"]
        if self.reads_innovations:
            return orders.log_edge_prior(d, prob, unmixing.device)
        return linear_sem.mechanism_scores(unmixing, table, prob, self.intervention_kind)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @property
    def reads_innovations(self) -> bool:
        return self.intervention_kind in linear_sem.KEEP_EQUATIONS

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, exact given M and targets, averaged over fixed draws of both."""
        return self._averaged()[0]

    def _averaged(self) -> tuple[Tensor, Tensor]:
        """Edge and target probabilities, each averaged over draws of M; the same draws at every call."""
        if self.many:
            return self.drawn_graph.double().mean(0), self.target
        generator = torch.Generator().manual_seed(0)
        tangent = directions.tangents(self.root, self.guide_block, generator)
        if self.settled > 0.5:
            tangent = self.drawn if self.config["latents"] <= SAMPLED else self.drawn[: len(tangent)]
        uniform = torch.rand(len(tangent), len(self.target), generator=generator, dtype=tangent.dtype).to(tangent)

        def probabilities(tangent: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            rows = self._unmixing(tangent)
            target, probability = self._reassigned(rows, uniform)
            return orders.edge_probabilities(self._scores(rows, self._slices(target))), probability

        edges, targets = torch.func.vmap(probabilities, chunk_size=16)(tangent, uniform)
        return edges.mean(0), targets.mean(0)

    def _reassigned(self, unmixing: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(env, latent) targets given M, and their probability: those that are held, unless a program draws them by
        the numbers `uniform` (env,)."""
        target = self.target.double()
        return target, target

    def _equations(self, mechanisms: linear_sem.Mechanisms, targets: Tensor) -> linear_sem.LinearSEM:
        """Equations (env, ...), with their read-outs; a query may have set the weights where all environments share
        them."""
        d, soft = self.config["latents"], self.intervention_kind == "soft"
        out = linear_sem.by_environment(mechanisms, self.pairs, targets)
        weight = described(mechanisms.weight[:d].mT, targets, mechanisms.intercept[:d], out, soft)
        return out._replace(weight=weight.expand_as(out.weight)) if self.reads_innovations else out

    def _of_draw(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, linear_sem.LinearSEM]:
        """M and the equations (env, ...) of a draw of the sites; those that `model` lacks are recovered."""
        if "level" not in sites:
            assert isinstance(self, Program)
            sites = sites | self.recovered(batch, sites)
        unmixing, targets = self._unmixing(sites["tangent"]), self.target.double()
        if "target" in sites:
            targets = self._hot(sites["target"])
        known = linear_sem.conjugate(unmixing, sites["graph"], self._slices(targets), self.intervention_kind)
        return unmixing, self._equations(known.mechanisms(sites["variance"], sites["slope"], sites["level"]), targets)

    def _hot(self, target: Tensor) -> Tensor:
        """(env, latent) targets in {0, 1}, of the latent (env,) that each environment has; the last one is none."""
        d = self.config["latents"]
        return torch.nn.functional.one_hot(target, d + 1)[:, :d].double()

    # -- what a verdict asks ----------------------------------------------------------------------------------

    @torch.no_grad()
    def implied(self) -> Gaussians | None:
        """Moments of z = M y in every environment, and of equations of maximum likelihood with every earlier latent a
        parent: no graph is taken for granted, only what the interventions leave alone. Of many latents, M and graph are
        those of the highest density."""
        if getattr(self, "counts", False) or getattr(self, "may_escape", False):
            return None
        own = self._environments().transform(self.chart[:, 0] if self.many else self._rows())
        count, mean, cov, target = (v.cpu().numpy() for v in own)
        told = count, mean, cov, target > 0.5, self._first_to_last(), self.intervention_kind
        if self.many:  # with all earlier latents as parents M would be another
            return goodness.implied(*told, self.peak_graph.cpu().numpy())
        found = goodness.implied(*told)
        if mean.shape[1] > MOST_REFINED or goodness.likelihood_ratio(found).p > REFINED:
            return found
        return goodness.implied_at_best(*told)

    def _first_to_last(self) -> list[int]:
        """Latents in an order that the edges' probabilities agree with; of many latents, that of `peak_graph`."""
        edges = self.peak_graph.double() if self.many else self.graph()
        left, out = list(range(self.config["latents"])), []
        while left:
            out.append(min(left, key=lambda k: float(edges[left, k].sum())))
            left.remove(out[-1])
        return out

    @torch.no_grad()
    def rivals(self, kinds: Sequence[Any]) -> dict[str, float]:
        """Of moments that are known, by Laplace's approximation at the best maximum of each kind; of many latents by
        `_without_edges`, which of kinds that fit far worse gives an upper bound."""
        if getattr(self, "counts", False) or getattr(self, "may_escape", False):
            return {}
        if self.many:
            return {kind: gain for kind, gain in self._without_edges().items() if kind in kinds}
        table, total, prob = self._slices(), self.count.double().sum(), self.config["edge_probability"]

        def evidence(kind: Any, start: Tensor) -> float:
            def objective(rows: Tensor) -> Tensor:
                return linear_sem.log_marginal(rows.double(), table, total, prob, kind)

            return max(float(mode.log_evidence) for mode in directions.climb(objective, start, most=20, tolerance=0.1))

        own, generator, out = evidence(self.intervention_kind, self._rows()[None]), torch.Generator().manual_seed(0), {}
        for kind in (kind for kind in kinds if kind != self.intervention_kind):
            candidates = directions.candidate_rows(self._environments(), generator, kind)

            def objective(rows: Tensor, kind: Any = kind) -> Tensor:
                return linear_sem.log_marginal(rows.double(), table, total, prob, kind)

            starts = directions.choose_rows(candidates, objective, 2, generator)
            out[kind] = evidence(kind, torch.cat([starts, self._rows()[None]])) - own
        return out

    def _without_edges(self) -> dict[str, float]:
        """Evidence of kinds that keep equations, over perfect interventions: for changes of variance it is that of the
        graph without edges, whose latents are the innovations; shifts are changes of variance by none."""
        d, prob = self.config["latents"], self.config["edge_probability"]
        table = linear_sem.Slices(*(part.cpu() for part in self._slices()))
        eye, odds = torch.eye(d, dtype=torch.float64), math.log(prob / (1 - prob))

        def shifts(rows: Tensor, data: linear_sem.Slices) -> Tensor:
            gain = (linear_sem.innovation_scores(rows, data, kind) for kind in ("shift", "variance"))
            return (next(gain) - next(gain)).sum()

        most = float(shifts(eye, table._replace(cov=eye.expand_as(table.cov))))  # where all variances are as they were
        prior = d * (d - 1) / 2 * math.log1p(math.exp(odds))
        rows, graph = self.chart[:, 0].cpu().numpy(), self.peak_graph.cpu().numpy() > 0.5
        state = joint_sampling.JointState(rows, graph, np.array(self._first_to_last()))
        node, count, cov = table.node.numpy(), table.count.numpy(), table.cov.numpy()
        enough = prior + max(most, 0.0) + FAR
        probability, drawn = joint_sampling.without_edges(node, count, cov, odds, state, enough, seed=0)
        out = {"variance": prior + probability}
        each = [shifts(torch.as_tensor(one), table) for one in drawn]
        more = float(torch.stack(each).logsumexp(0)) - math.log(len(each)) if each else most
        return out | {"shift": out["variance"] + more}

    # -- the maxima --------------------------------------------------------------------------------------------

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """The maximum that turned rows of M lead to; not of many latents, of which M is drawn with the graph."""
        if self.many:
            return False
        self._laplace(directions.climb(self._objective, (turn.to(self.drawn).mT @ self._mean_rows())[None]))
        self.settled.fill_(0.0)
        self._start_apart(generator)
        return True

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Draws of M by `annealed`, from the maxima that were found; nothing for a variant of which the story itself
        is fitted."""
        if self.many or type(self).model is Program.model:
            return
        use = self.log_weights > -torch.inf
        start = annealed.Maxima(self.charts[use], self.roots[use], self.log_weights[use].log_softmax(0))
        if self.config["latents"] <= SAMPLED:
            found = annealed.about_maxima(self._objective, start, generator)
        else:
            found = annealed.of_maxima(start, self.log_weights.logsumexp(0), generator)
        self.drawn.copy_(annealed.tangents(found.rows, self.chart))
        self.log_density.copy_(found.log_evidence)
        self.settled.fill_(1.0)

    def exact_draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor] | None:
        """`tangent` (draw, size) by quadrature of two latents, else by a walk from the prior: nothing is taken from
        the maxima that the fit knows. None of many latents."""
        d = self.config["latents"]
        if self.many:
            return None
        if d == 2:
            found = annealed.on_a_grid(self._objective, generator, count)
        else:
            found = annealed.from_the_prior(self._objective, d, count, generator)
        return {"tangent": annealed.tangents(found.rows, self.chart)}

    def _sample(self, generator: torch.Generator) -> None:
        """Of many latents: a run of this chain's own."""
        prob = self.config["edge_probability"]
        odds = math.log(prob) - math.log1p(-prob)
        self._keep(many_latents.sampled(self._environments(), self._slices(), odds, generator))
        place = torch.arange(len(self.drawn), device=self.drawn.device)
        heights = [self._log_joint(self.drawn[at], self.drawn_graph[at].double()) for at in place.tolist()]
        self.log_density.copy_(torch.stack(heights).mean())

    def _keep(self, found: joint_sampling.JointDraws) -> None:
        """Hold these draws, the chart centred on the maximum."""
        rows, peak = (torch.as_tensor(own).to(self.drawn) for own in (found.unmixing, found.peak.unmixing))
        self.chart.copy_(directions.chart_at(peak / peak.norm(dim=-1, keepdim=True)))
        self.peak_graph.copy_(torch.as_tensor(found.peak.graph))
        self.drawn.copy_(annealed.tangents(rows, self.chart))
        self.drawn_order.copy_(torch.as_tensor(found.order))
        self.drawn_graph.copy_(torch.as_tensor(found.graph))
        self.settled.fill_(1.0)

    def _laplace(self, modes: Sequence[directions.Mode]) -> None:
        """Hold these maxima, the one of most evidence first, and train from Laplace's approximation at the first."""
        self.chart.copy_(modes[0].chart)
        self.root.copy_(modes[0].root)
        self.log_weights.fill_(-torch.inf)
        for place, mode in enumerate(modes):
            self.charts[place], self.roots[place] = mode.chart, mode.root
            self.log_weights[place] = mode.log_evidence
        self.guide_block.set(torch.zeros_like(self.guide_block.loc), torch.eye(len(self.root), dtype=self.root.dtype))

    def _start_apart(self, generator: torch.Generator) -> None:
        """Chains start apart, by one posterior deviation."""
        loc = self.guide_block.loc
        loc.copy_(torch.randn(loc.shape, generator=generator))
