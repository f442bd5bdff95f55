"""Causal component analysis: latents of a structural equation model behind an invertible mixing of as many features.

    order ~ uniform, edge[j, k] ~ Bernoulli(rho) if j precedes k             (parent, child)
    w[j, k] ~ edge * slab  (Zellner's g-prior, unit information)              (parent, child)
    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)           (data, latent)
    x_i = f(z_i),  f invertible; M h(x_i) = z_i, h a free-form flow           (data, feature)

An environment that intervenes on k cuts z_k's parents and gives it a mean and a variance of its own. By the change of
variables log p(x | env) = log p(M h(x) | env) + log |det M| + log |det dh / dx|.

h (`pyrocrl.parts.flows`) is trained in `initialise`, and kept: by log p(env | x), the part of this likelihood that does
not hold the Jacobian, by the normality of every environment's latents and by a decoder that inverts it
(`pyrocrl.constructions.contrastive`). The rest, log p(x), is evaluated but not climbed: doing so raised the likelihood
and mixed the latents. So the density of x is a rough one. The one site is `tangent`, the directions of the rows of M,
with a Laplace approximation; weights, graphs and orders are summed out in closed form and drawn exactly. Errors of h
correlate latents a little, so each environment's count is tempered (`contrastive.ERROR`): many rows would make an edge
of any correlation. Where targets are unknown every pairing of environments is a hypothesis: h starts at log-odds
between environments (`contrastive.paired_start`), all hypotheses are fitted to it, and a chain takes one with the
probability of its evidence.

*Identified:* latents up to scale and shift (and permutation, where targets are not known by name) and the graph
exactly, from an observational environment and one perfect intervention on each latent whose target is known, two of
different laws where it is not.

Liang et al. (2023), Causal component analysis; von Kuegelgen et al. (2023), Nonparametric identifiability of causal
representations from unknown interventions.

*Differs from the paper in* Gaussian linear structural equations in place of any, for which graphs need not be tried one
by one; and in a contrastive construction of the flow.

*For a variant, copy this file and change* `_objective`, what is asked of the latents' law.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import contrastive, directions, optimise
from pyrocrl.dists import Law, MultivariateNormal
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.exact import linear_sem, orders
from pyrocrl.parts import nets
from pyrocrl.parts.flows import LAYERS, FreeFormFlow
from pyrocrl.parts.guides import FullNormalBlock
from pyrocrl.parts.latent_sem import SEMReadouts
from pyrocrl.program import check_whole, checked_targets

GIVEN = ("noise is Gaussian", "structural equations are linear", "interventions are perfect", "mixing is invertible")
ONCE = ("observational_environment", "one_intervention_per_latent", "single_targets", "perfect_interventions")
TWICE = ("observational_environment", "two_interventions_per_latent", "single_targets", "perfect_interventions")
RIVALS = 4  # further starts of the unmixing beside the best one
DRAWS = 64  # of the unmixing, for edge probabilities
# steps on normality are noisy, and rows are enough not to need it
PLAN = contrastive.Plan(LAYERS, rounds=3, normality=0.1, cooling=0.4)
FEWER_ROUNDS = 2  # where targets are unknown: log-odds between environments are a start near the latents
ROWS = 1024  # a step, of the decoder's regression
DECODER = 0.5  # steps of the decoder, in those of the flow


class CausalFlow(Program):
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
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, ONCE),
            Claim("graph", ("permutation",), GIVEN, ONCE),
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
    )
    recipe = Recipe(  # the construction and the second-order finish leave nothing to stochastic steps
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
    sites = {
        **{k: v for k, v in SEMReadouts.sites.items() if k not in ("escaped", "env_weight")},
        "unmixing": Site(("latent", "direction"), {"latent": 1}),
    }

    def __init__(
        self,
        features: int,
        latents: int,
        target_matrix: list[list[int]] | None = None,
        targets: Literal["known", "relabelled", "unknown"] = "known",
        environments: int | None = None,
        edge_probability: float = 0.5,
        width: int = 64,
        steps: int = 1500,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}, one target for each environment but the observational ones; left out
        where targets are unknown: environment 0 is then observational. width, steps: of the flow's layers, and its
        training.

        Raises InputError unless there are as many features as latents (2 to 12), for a latent without an environment,
        none observational, and for unknown targets unless there are two environments for each latent, at most 4.
        """
        super().__init__()
        for name, number, least in (("features", features, 2), ("latents", latents, 2), ("width", width, 1)):
            check_whole(name, number, least)
        check_whole("steps", steps, 1)
        if latents != features or latents > orders.MAX_NODES:
            reject("latents", latents, f"as many as features ({features}), at most {orders.MAX_NODES}")
        one_of("targets", targets, ("known", "relabelled", "unknown"))
        if not 0 < edge_probability < 1:
            reject("edge_probability", edge_probability, "a number strictly between 0 and 1")
        self.unknown = targets == "unknown"
        if self.unknown:
            if environments != 2 * latents + 1:
                reject("environments", environments, f"{2 * latents + 1}: an observational one, then two a latent")
            if latents > 4:
                reject("latents", latents, "2 to 4 where targets are unknown: every hypothesis is fitted")
            target = next(iter(_pairings(latents)))
            self.pairs = [(e, k) for e in range(1, len(target)) for k in range(latents)]
        else:
            target = checked_targets(target_matrix, latents)
            self.pairs = linear_sem.target_pairs(target)
        self.observational = np.flatnonzero(target.sum(1) == 0)
        envs, size = len(target), latents * (latents - 1)
        self.flow = FreeFormFlow(features, width).requires_grad_(False)
        self.guide_block = FullNormalBlock(size, scale=1.0)  # in units of `root`
        double = torch.float64
        buffers = {
            "chart": directions.chart_at(torch.eye(latents, dtype=double)),
            "root": 0.1 * torch.eye(size, dtype=double),
            # moments of y = project (h(x) - offset), white over the observational rows
            "count": torch.full((envs,), 2.0, dtype=double),
            "mean": torch.zeros(envs, latents, dtype=double),
            "cov": torch.eye(latents, dtype=double).repeat(envs, 1, 1),
            "target": torch.as_tensor(target, dtype=double),
            "project": torch.eye(latents, dtype=double),
            "offset": torch.zeros(latents, dtype=double),
            "log_jacobian": torch.zeros((), dtype=double),  # mean log |det dy / dx|, times the counts
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        if options.get("targets") == "unknown":
            data = copy.copy(data)
            data.targets = None  # labels that are not believed
        elif data.targets is None and "target_matrix" not in options:
            raise InputError(
                "targets: found None in the data; allowed: a mapping environment -> latents, or targets='unknown'"
            )
        else:
            options = {"environments": None} | options
        return super().from_data(data, **options)

    def check(self, data: Data) -> None:
        super().check(data)
        if len(data.env_names) != len(self.target):
            reject("data", f"{len(data.env_names)} environments", f"the program's {len(self.target)}")

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The flow from contrasts, its decoder by regression, and the unmixing and targets of the most evidence."""
        least = 3 * self.config["latents"]
        for position, name in enumerate(data.env_names):
            rows = int((data.env == position).sum())
            if rows < least:
                reject("env", f"{rows} row(s) in environment {name!r}", f"{least} or more")
        self._train(data, generator)
        self._gather(data)
        modes, targets = [], []
        for target in self._hypotheses():
            found = self._modes(target, generator)
            modes += found
            targets += [target] * len(found)
        evidence = torch.stack([mode.log_evidence for mode in modes])
        chosen = int(torch.multinomial((evidence - evidence.max()).exp().cpu(), 1, generator=generator))
        self.target.copy_(targets[chosen])
        self._laplace(modes[chosen])
        loc = self.guide_block.loc  # chains start apart, by one posterior deviation
        loc.copy_(torch.randn(loc.shape, generator=generator))

    def _train(self, data: Data, generator: torch.Generator) -> None:
        batch = data.tensors(self.target.device, torch.float32)
        width, steps = self.config["width"], self.config["steps"]
        flow = FreeFormFlow(data.features, width).to(batch.x)
        inputs = flow.start(batch.x)
        target, hypotheses = self.target.float(), self._hypotheses() if self.unknown else []
        plan = PLAN._replace(rounds=FEWER_ROUNDS) if self.unknown else PLAN
        encoder, _ = contrastive.construct(inputs, batch.env, target, width, steps, generator, hypotheses, plan)
        flow.encoder.load_state_dict(encoder.state_dict())
        with torch.no_grad():
            h, g = encoder(inputs), flow.gaussianise(batch.x)[0]
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow.decoder = nets.Residual(data.features, data.features, width).to(batch.x)

        def error(pick: Tensor, _: float) -> Tensor:
            return torch.nn.functional.mse_loss(flow.decoder(h[pick]), g[pick])

        rows = torch.arange(len(h), device=h.device)
        optimise.minimise(flow.decoder, error, rows, max(1, int(DECODER * steps)), ROWS, generator)
        self.flow.load_state_dict(flow.state_dict())

    def _hypotheses(self) -> list[Tensor]:
        if not self.unknown:
            return [self.target]
        return [torch.as_tensor(t).to(self.target) for t in _pairings(self.config["latents"])]

    @torch.no_grad()
    def _gather(self, data: Data) -> None:
        batch = data.tensors(self.target.device, self.target.dtype)
        parts = [self.flow(x) for x in batch.x.split(8192)]
        h, log_det = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        found = contrastive.moments(h, batch.env, self.target)
        use = torch.zeros_like(found.count)
        use[self.observational] = 1.0
        _, mean, cov = found.pooled(use)
        white = directions.whitening(cov)
        self.project.copy_(white)
        self.offset.copy_(mean)
        y = found._replace(mean=found.mean - mean).transform(white)
        self.count.copy_(y.count / (1.0 + y.count * contrastive.ERROR**2))
        self.mean.copy_(y.mean)
        self.cov.copy_(y.cov)
        self.log_jacobian.copy_(self.count.sum() * (log_det.mean() + torch.linalg.slogdet(white).logabsdet))

    def _modes(self, target: Tensor, generator: torch.Generator) -> list[directions.Mode]:
        environments = self._environments()._replace(target=target)
        candidates = directions.candidate_rows(environments, generator)

        def objective(rows: Tensor) -> Tensor:
            return self._objective(rows, target)

        starts = directions.choose_rows(candidates, objective, 0 if self.unknown else RIVALS, generator)
        return directions.best_modes(directions.climb(objective, starts), 1)

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Newton's method from the guide's mean, and the guide set to the Laplace approximation there."""
        self._laplace(directions.climb(self._objective, self._rows()[None])[0])

    def _laplace(self, mode: directions.Mode) -> None:
        self.chart.copy_(mode.chart)
        self.root.copy_(mode.root)
        self.guide_block.set(torch.zeros_like(self.guide_block.loc), torch.eye(len(mode.root), dtype=mode.root.dtype))

    # -- model and guide ---------------------------------------------------------------------------------------

    def model(self, batch: Batch) -> None:
        tangent = pyro.sample("tangent", directions.Directions(self.project, self.config["latents"]))
        rows = directions.unit_rows(tangent, self.chart)  # (latent, latent)
        shape = (len(batch), self.config["features"])
        law = Law((), shape, lambda _: self._objective(rows), lambda: self._simulated(rows, len(batch)))
        pyro.sample("x", law, obs=batch.x)  # all rows at once, through their moments

    def _simulated(self, rows: Tensor, count: int) -> Tensor:
        """(count, feature) of the prior, what it leaves open fixed: deviations of noise and slab 1, intercepts 0."""
        d = rows.shape[-1]
        prior = orders.log_edge_prior(d, self.config["edge_probability"], rows.device)
        _, graph = orders.sample_dags(prior.to(rows.dtype))
        unit = torch.ones_like(rows[0])
        _, cov = linear_sem.sem_moments(linear_sem.LinearSEM(graph * torch.randn_like(rows), 0 * unit, unit))
        noise = torch.randn(count, d, dtype=cov.dtype, device=cov.device)
        return self._mix(noise @ torch.linalg.cholesky(cov).mT, rows)

    def guide(self, batch: Batch) -> None:
        block = self.guide_block
        pyro.sample("tangent", MultivariateNormal(self.root @ block.loc, scale_tril=self.root @ block.scale_tril))

    def _environments(self) -> linear_sem.Environments:
        return linear_sem.Environments(*(v.double() for v in (self.count, self.mean, self.cov, self.target)))

    def _slices(self, target: Tensor | None = None) -> linear_sem.Slices:
        environments = self._environments()
        return linear_sem.slices(
            environments._replace(target=environments.target if target is None else target), self.pairs
        )

    def _objective(self, rows: Tensor, target: Tensor | None = None) -> Tensor:
        """log p(x | rows of the unmixing, targets): everything else summed out."""
        prob, total = self.config["edge_probability"], self.count.double().sum()
        return linear_sem.log_marginal(rows.double(), self._slices(target), total, prob) + self.log_jacobian

    def _rows(self) -> Tensor:
        """Rows of the unmixing of y at the guide's mean."""
        return directions.unit_rows(self.root @ self.guide_block.loc, self.chart).double()

    # -- read-outs ---------------------------------------------------------------------------------------------

    def _white(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y (rows, latent), log |det dy / dx| (rows,))."""
        h, log_det = self.flow(x)
        return (h - self.offset) @ self.project.mT, log_det + torch.linalg.slogdet(self.project).logabsdet

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        y = (self.flow.encode(batch.x) - self.offset) @ self.project.mT
        return y @ self._rows().to(y).mT

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, exact given M, averaged over fixed draws of it."""
        generator = torch.Generator().manual_seed(0)
        like, block = self.root, self.guide_block
        noise = torch.randn(DRAWS, len(like), generator=generator, dtype=like.dtype).to(like.device)
        tangent = (block.loc + noise @ block.scale_tril.mT) @ like.mT

        def edges(one: Tensor) -> Tensor:
            return orders.edge_probabilities(self._scores(directions.unit_rows(one, self.chart).double()))

        return torch.func.vmap(edges, chunk_size=16)(tangent).mean(0)

    def targets_matrix(self) -> Tensor | None:
        return self.target if self.config["targets"] != "known" else None

    def _scores(self, rows: Tensor) -> Tensor:
        return linear_sem.mechanism_scores(rows, self._slices(), self.config["edge_probability"])

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Given a draw of M, draws of graph, weights, intercepts and noise; and z, which it determines."""
        rows, latents = directions.unit_rows(sites["tangent"], self.chart).double(), self.config["latents"]
        slices, target = self._slices(), self.target.double()
        _, graph = orders.sample_dags(self._scores(rows))
        mechanisms = linear_sem.draw_mechanisms(rows, graph, slices)
        per_env = linear_sem.by_environment(mechanisms, self.pairs, target)
        out = {
            "z": self._white(batch.x)[0].double() @ rows.mT,
            "graph": graph.double(),
            "weight": mechanisms.weight[:latents].mT,  # (parent, child)
            "targets": target,
            "shift": per_env.intercept - mechanisms.intercept[:latents],  # (env, latent), 0 off the targets
            "intercept": per_env.intercept,
            "noise": per_env.scale,
            "unmixing": rows,  # of y
        }
        return {name: value.to(self.root.dtype) for name, value in out.items()}

    def _sem(self, sites: dict[str, Tensor]) -> linear_sem.LinearSEM:
        """The structural equations of every environment, (env, ...)."""
        kept = 1 - sites["targets"]
        return linear_sem.LinearSEM(sites["weight"] * kept[:, None, :], sites["intercept"], sites["noise"])

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | M, weights, noise)."""
        if "weight" not in sites:
            sites = sites | self.posterior_sites(batch, sites)
        y, log_det = self._white(batch.x)
        own = linear_sem.LinearSEM(*(value[batch.env] for value in self._sem(sites)))
        return (
            linear_sem.sem_log_prob(y @ sites["unmixing"].mT, own) + linear_sem.log_abs_det(sites["unmixing"]) + log_det
        )

    @torch.no_grad()
    def predict(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(new rows of x from each row's own environment, log p(x_i | sites))."""
        mean, cov = linear_sem.sem_moments(self._sem(sites))  # (env, latent), (env, latent, latent)
        noise = torch.randn(len(batch.x), mean.shape[-1], dtype=mean.dtype, device=mean.device)
        z = mean[batch.env] + (torch.linalg.cholesky(cov)[batch.env] @ noise[..., None]).squeeze(-1)
        return self._mix(z, sites["unmixing"]), self.row_log_likelihood(batch, sites)

    def _mix(self, z: Tensor, rows: Tensor) -> Tensor:
        """(rows, feature) x of z by the decoder."""
        y = torch.linalg.solve(rows.to(z), z.mT).mT
        return self.flow.decode(torch.linalg.solve(self.project.to(z), y.mT).mT + self.offset.to(z))

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        rows = pyro.sample("unmixing", Delta(self._rows().to(z)).to_event(2))
        return self._mix(z, rows)

    def prior_latents(self, batch: Batch, sites: dict[str, Tensor], envs: Sequence[int] = ()) -> Tensor:
        """(rows, latent) draws of the observational equations with one site `z_<k>` per latent, for `do`.

        envs: environments whose interventions act together, each target with its mechanism from there (from the last
        of them that targets it).
        """
        own = linear_sem.acting_together(self._sem(sites), sites["targets"], int(self.observational[0]), envs)
        return linear_sem.unrolled(own, len(batch))

    def claims(self) -> tuple[Claim, ...]:
        free = () if self.config["targets"] == "known" else ("permutation",)
        needs = TWICE if self.unknown else ONCE
        return (Claim("latents", (*free, "scale", "shift"), GIVEN, needs), Claim("graph", free, GIVEN, needs))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("cauca", seed=seed, samples=500, latents=3, layers=1)
        return cls.from_data(data, width=16, steps=60), data


def _pairings(latents: int) -> Iterator[np.ndarray]:
    """Every way of giving two of the environments 1, 2, ... to each latent, (env, latent), up to the latents' names."""

    def pairs(left: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
        if not left:
            yield ()
        for other in left[1:]:
            for rest in pairs(tuple(e for e in left[1:] if e != other)):
                yield ((left[0], other), *rest)

    for hypothesis in pairs(tuple(range(1, 2 * latents + 1))):
        target = np.zeros((2 * latents + 1, latents))
        for k, pair in enumerate(hypothesis):
            target[list(pair), k] = 1.0
        yield target


if __name__ == "__main__":
    run(CausalFlow)
