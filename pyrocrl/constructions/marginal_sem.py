"""Programs that keep the unmixing of linear Gaussian equations alone, and sum the equations out: what they share.

    z = M y,  rows of M with the directions `tangent`;  y (latent,) as a program sees it in x

`story`, `model` and `recover` are the program's own, so are y and the search of a start. Here are the moments of y that
they read, the guide, averages over draws of M, and the finish by Newton's method and Laplace's approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyrocrl.constructions import directions
from pyrocrl.data import Batch, Data
from pyrocrl.dists import MultivariateNormal
from pyrocrl.exact import goodness, linear_sem, orders
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.parts.guides import FullNormalBlock
from pyrocrl.parts.latent_sem import described
from pyrocrl.program import Program, Recipe

REFINED = 0.2  # p of the fitted moments below which the unmixing is tried again
MOST_REFINED = 6  # latents of which it is


class MarginalSEM(nn.Module):
    """A program's part: `class Model(MarginalSEM, Program)`, which calls `hold_moments` in its `__init__`.

    Its config has `latents`, `edge_probability`, `targets` and, where they are not perfect, `intervention`; it writes
    `_objective`, log p(x | rows of M), on `_log_marginal`. Attributes that it reads:

    count (env,), mean (env, latent), cov (env, latent, latent): moments of y, white over the observational rows.
    target: (env, latent) in {0, 1}. unknown: whether these are found. observational: codes of environments without.
    pairs: (environment, latent) of every mechanism after the natural ones; all of them where targets are unknown.
    chart (latent, latent, latent): orthonormal bases in which `tangent` stands, centred on a maximum.
    guide_block, root: q(tangent) in units of the Cholesky factor `root` of its covariance at the maximum.
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

    def hold_moments(self, target: np.ndarray, unknown: bool) -> None:
        """Register guide and buffers, for targets (env, latent) in {0, 1} or, where unknown, a first guess of them."""
        envs, latents = target.shape
        every = [(e, k) for e in range(1, envs) for k in range(latents)]
        self.unknown = unknown
        self.pairs = every if unknown else linear_sem.target_pairs(target)
        self.observational = np.flatnonzero(target.sum(1) == 0)[: 1 if unknown else None]
        self.guide_block = FullNormalBlock(latents * (latents - 1), scale=1.0)
        eye = torch.eye(latents, dtype=torch.float64)
        self.hold(
            chart=directions.chart_at(eye),
            root=0.1 * torch.eye(latents * (latents - 1), dtype=torch.float64),
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
        pyro.sample("tangent", self._posterior())

    def _posterior(self) -> MultivariateNormal:
        block = self.guide_block
        return MultivariateNormal(self.root @ block.loc, scale_tril=self.root @ block.scale_tril)

    def _unmixing(self, tangent: Tensor) -> Tensor:
        """M (latent, latent), its rows of length 1."""
        return directions.unit_rows(tangent, self.chart).double()

    def _rows(self) -> Tensor:
        """M at the guide's mean."""
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
        generator = torch.Generator().manual_seed(0)
        tangent = directions.tangents(self.root, self.guide_block, generator)
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
        parent: no graph is taken for granted, only what the interventions leave alone."""
        if getattr(self, "counts", False) or getattr(self, "may_escape", False):
            return None
        own = self._environments().transform(self._rows())
        count, mean, cov, target = (v.cpu().numpy() for v in own)
        told = count, mean, cov, target > 0.5, self._first_to_last(), self.intervention_kind
        found = goodness.implied(*told)
        if mean.shape[1] > MOST_REFINED or goodness.likelihood_ratio(found).p > REFINED:
            return found
        return goodness.implied_at_best(*told)

    def _first_to_last(self) -> list[int]:
        """Latents in an order that the edges' probabilities agree with."""
        edges, left, out = self.graph(), list(range(self.config["latents"])), []
        while left:
            out.append(min(left, key=lambda k: float(edges[left, k].sum())))
            left.remove(out[-1])
        return out

    @torch.no_grad()
    def rivals(self, kinds: Sequence[Any]) -> dict[str, float]:
        """Of moments that are known, by Laplace's approximation at the best maximum of each kind."""
        if getattr(self, "counts", False) or getattr(self, "may_escape", False):
            return {}
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

    # -- the maximum -------------------------------------------------------------------------------------------

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Newton's method from the guide's mean, and the guide set to the Laplace approximation there; nothing for a
        variant of which the story itself is fitted."""
        if type(self).model is not Program.model:
            self._laplace(directions.climb(self._objective, self._rows()[None])[0])

    def _laplace(self, mode: directions.Mode) -> None:
        self.chart.copy_(mode.chart)
        self.root.copy_(mode.root)
        self.guide_block.set(torch.zeros_like(self.guide_block.loc), torch.eye(len(mode.root), dtype=mode.root.dtype))

    def _start_apart(self, generator: torch.Generator) -> None:
        """Chains start apart, by one posterior deviation."""
        loc = self.guide_block.loc
        loc.copy_(torch.randn(loc.shape, generator=generator))
