"""Latents moved by few actions, or by few latents of the row before, behind any injective map.

    acts_pk, follows_jk ~ Bernoulli(edge_probability)                    (action, latent), (parent, child)
    action_curves_pkb ~ N(0, s_b slab^2) where acts_pk is 1, N(0, s_b spike^2) elsewhere        (action, latent, basis)
    step_curves_jkb, likewise by follows_jk                                                      (parent, child, basis)
    intercept_k ~ N(0, 1);  variance_k ~ InverseGamma(1.5, rate)                                      (latent,)
    m_ik = intercept_k + sum_pb action_curves_pkb phi_b(a_ip) + sum_jb step_curves_jkb phi_b(z_i-1,j)  (data, latent)
    z_ik ~ N(m_ik, variance_k),  N(0, 1) where a series begins                                        (data, latent)
    x_ij ~ N(f(z_i)_j, sigma_j^2)                                                                     (data, feature)

a_i are the numbers of `aux`, of the action that led to row i; i-1 is the row before of its series; either may be left
out. The phi_b are a line and splines, s_b shares of variance (`exact.sparse_mechanism`). Latents are in units of their
deviations. f is linear, or linear and a sum of many ridge functions.

Latents are read off rows by z = W f(x), of x or of x and ridge functions of it. For actions W is closed: combinations
that curves of few actions explain. For steps it is the likeliest of searches from random starts
(`constructions.sparse_mechanism`). Each chain has ridge functions and two thirds of the rows of its own, so that chains
that agree are evidence; graph, curves and variances are drawn by Gibbs sampling given these latents. The guide is
q(z | x) = N(W f(x), t^2), t by what the readout errs in rows that the story tells (`parts.readings`). No number of
edges is told.

*Identified:* latents up to permutation and a map of each, of scale and shift where `mixing` is linear, if the graph
tells them: no other latent has all parents of i and all its children (the graphical criterion), which draws of the
graph show, and which names what latents mix with. It takes that effects of a parent on several latents are not in
proportion: else combinations have fewer parents than the latents, which looks as sparse mechanisms do.

Lachapelle, Rodríguez López, Sharma, Everett, Le Priol, Lacoste & Lacoste-Julien (2022), Disentanglement via mechanism
sparsity regularization; (2024), Nonparametric partial disentanglement via mechanism sparsity.

*Differs from the paper in* mechanisms that are sums of curves, in closed forms and searches over readouts in place of
a VAE's training, in a posterior over graphs in place of a penalty or a bound on their edges.

Longer than other models because rows may be moved by actions, by rows before, or by both.

*For a variant, copy this file and change* `story`: the law of `z` given its parents, and with it
`pyrocrl.exact.sparse_mechanism`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import sparse_mechanism as readouts
from pyrocrl.dists import InverseGamma, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import sparse_mechanism as exact
from pyrocrl.exact.sparse_mechanism import BASIS, SHAPE, Prior, basis
from pyrocrl.exact.sparse_steps import SPAN, Following, curves_of
from pyrocrl.exact.switching import Timeline
from pyrocrl.lab.studies.linked_rows import SparseMechanisms
from pyrocrl.options import Bounds, Positive, Size, check_memory
from pyrocrl.parts import readings
from pyrocrl.parts.guides import DrawnBlock
from pyrocrl.parts.observation import Observation
from pyrocrl.parts.ridges import Ridges
from pyrocrl.program import EdgeProbability, Features, Latents, check_sizes

BURN, KEPT = 15, 60  # sweeps
PART = 2 / 3  # of the rows, of each chain
MOST_ROWS = 20_000  # whose latents' mechanisms are drawn
EACH = 3  # rows for each number of a mechanism, at least
LEAST = 1e-5  # deviation, in those of features
SPIKE = {"linear": 0.003, "nonlinear": 0.05}
ADDITIVE = "effects of parents add up"
VARIED = "effects of a parent on several latents are not in proportion"
ALONE = "noise of latents is independent"
LINEAR_MAP = {"layers": 1, "rows": 4_000}
LINEAR, BENT = ("parents_apart",), ("parents_apart", "closely_moved")


class MechanismSparsity(Program):
    card = ModelCard(
        name="mechanism_sparsity",
        title="Mechanism sparsity",
        family="time",
        summary="Latents told apart by their few parents: numbers of actions, or latents of the step before; no number "
        "of edges is told.",
        when=(
            "every row has the numbers of an action, or follows another row, and few of these move each latent",
            "every action moves every latent, or what moves latents is environments without numbers",
        ),
        assumes=("x is an injective function of the latents, with little noise", ADDITIVE, ALONE),
        claims=(
            Claim(
                "latents",
                ("permutation", "scale", "shift"),
                (ADDITIVE, VARIED),
                LINEAR,
                {"mixing": "linear", "memory": False},
            ),
            Claim(
                "latents",
                ("permutation", "scale", "shift"),
                (ADDITIVE, VARIED, ALONE),
                LINEAR,
                {"mixing": "linear", "memory": True},
            ),
            Claim(
                "latents",
                ("permutation", "elementwise"),
                (ADDITIVE, VARIED),
                BENT,
                {"mixing": "nonlinear", "memory": False},
            ),
            Claim(
                "latents",
                ("permutation", "elementwise"),
                (ADDITIVE, VARIED, ALONE),
                BENT,
                {"mixing": "nonlinear", "memory": True},
            ),
        ),
        references=(
            Reference(
                "Lachapelle, Rodríguez López, Sharma, Everett, Le Priol, Lacoste & Lacoste-Julien",
                2022,
                "Disentanglement via mechanism sparsity regularization: a new principle for nonlinear ICA",
                "CLeaR",
                "https://arxiv.org/abs/2107.10098",
            ),
            Reference(
                "Lachapelle, Rodríguez López, Sharma, Everett, Le Priol, Lacoste & Lacoste-Julien",
                2024,
                "Nonparametric partial disentanglement via mechanism sparsity",
                "arXiv",
                "https://arxiv.org/abs/2401.04890",
            ),
        ),
        differs=(
            "mechanisms are sums of curves of single parents",
            "readouts of latents are closed, or the likeliest of searches, in place of a VAE's training",
            "a posterior over graphs in place of a penalty or a bound on their edges",
        ),
        approximate="Graph, curves and variances are drawn given the latents that the readout gives, not with it; "
        "latents have the noise that it reads, not the error of its own weights.",
    )
    recipe = Recipe.unannealed(epochs=1, batch_size=None, lr=1e-3, held_out=0.1, dtype=torch.float64, chains=3)
    checks = {"mechanisms_add": (ADDITIVE,), "left": (), "noiseless": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "acts": Site(("action", "latent"), discrete=True),
        "follows": Site(("parent", "child"), discrete=True),
        "variance": Site(("latent",), {"latent": 2}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        aux: Annotated[int, Bounds(0), "numbers that an action has; read off the data"] = 0,
        memory: Annotated[bool, "whether rows follow others; read off the data"] = False,
        mixing: Literal["nonlinear", "linear"] = "nonlinear",
        ridges: Size = 600,
        starts: Annotated[int, Bounds(1, 100)] = 3,
        edge_probability: EdgeProbability = 0.5,
        slab: Positive = 1.0,
        rate: Positive = 1e-4,
    ) -> None:
        """mixing: whether x is linear in the latents. ridges: functions that readouts and decoder have, where it is
        not; starts: of each chain's search, where rows follow others. slab: prior deviation of a curve; rate: of the
        variances' prior, which has its mode at rate / 2.5; both in units of the latents' deviations.

        Raises InputError for more latents than features, and where there are neither actions nor rows that follow.
        """
        super().__init__()
        check_sizes(features, latents, square=True)
        if not (aux or memory):
            reject("aux", "neither numbers of actions nor series", "one of them, or both")
        parents = aux + memory * latents
        check_memory("latents", latents, 8.0 * KEPT * parents * latents * BASIS + 8.0 * (parents * BASIS) ** 2)
        if memory and mixing == "nonlinear":
            self.recipe = replace(self.recipe, chains=2)  # a search takes long
        if mixing == "nonlinear":  # draws of latents are off by errors of the readout, which the decoder does not know
            self.checks = {"mechanisms_add": (ADDITIVE,), "left_beyond_error": (), "noiseless": ()}
        self.observation = Observation(features, noise=0.1)
        count = ridges if mixing == "nonlinear" else 0
        self.encoder, self.decoder = Ridges(features, latents, count), Ridges(latents, features, count)
        self.raw_width = torch.nn.Parameter(torch.full((latents,), 0.1).log())  # of q(z | x)
        shapes: dict[str, tuple[int, ...]] = {"intercept": (latents,), "variance": (latents,)}
        if aux:
            shapes |= {"acts": (aux, latents), "action_curves": (aux, latents, BASIS)}
        if memory:
            shapes |= {"follows": (latents, latents), "step_curves": (latents, latents, BASIS)}
        self.drawn = DrawnBlock(KEPT, **shapes)
        self.drawn.variance.fill_(1.0)
        self.register_buffers(low=torch.zeros(aux), reach=torch.ones(aux))  # of actions

    @property
    def reads_series(self) -> bool:
        return bool(self.config["memory"])

    # -- the story and the guide -------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        own = self.config
        latents, aux, memory = own["latents"], own["aux"], own["memory"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        curves = {}
        for name, graph, count in (("action_curves", "acts", aux), ("step_curves", "follows", memory * latents)):
            if count:
                there = pyro.sample(
                    graph, dist.Bernoulli(own["edge_probability"] * one.expand(count, latents)).to_event(2)
                )
                wide = torch.where(there > 0.5, own["slab"] * one, SPIKE[own["mixing"]] * one)[..., None]
                scale = wide * exact.shares(one.dtype, one.device).sqrt()
                curves[name] = pyro.sample(name, Normal(0 * scale, scale).to_event(3))  # (parent, latent, basis)
        intercept = pyro.sample("intercept", Normal(0 * one.expand(latents), one).to_event(1))
        variance = pyro.sample("variance", InverseGamma(SHAPE * one.expand(latents), own["rate"] * one).to_event(1))
        loc = intercept.expand(len(batch), latents)
        if aux:
            loc = loc + torch.einsum("rpb,pkb->rk", basis(self._actions(batch)), curves["action_curves"])
        with self.rows(batch):
            law: Any = Normal(loc, variance.sqrt()).to_event(1)
            if memory:
                law = Following(loc, curves["step_curves"], variance.sqrt(), Timeline(*batch.in_time()))
            z = pyro.sample("z", law)  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        self.drawn.sample()
        with self.rows(batch):
            mean = self.latents(batch)
            pyro.sample("z", Normal(mean, self.raw_width.exp().expand_as(mean)).to_event(1))

    def _actions(self, batch: Batch) -> Tensor:
        """(rows, action) as shares of the ranges that were fitted."""
        assert batch.aux is not None
        return (batch.aux - self.low) / self.reach

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(self.observation.inputs(batch))

    @torch.no_grad()
    def noise_share(self, batch: Batch) -> Tensor | None:
        features, latents = self.config["features"], self.config["latents"]
        if self.config["mixing"] != "linear" or features == latents:
            return None  # a network's functions of noise are not those of what the decoder leaves
        noise = (2 * self.observation.raw_noise).exp()
        return (self.encoder.weight.square() @ noise) / self.latents(batch).var(0)

    def parent_graphs(self) -> Tensor:
        """(draw, parent, latent) graphs; parents are actions and then latents of the row before."""
        names = [name for name in ("acts", "follows") if name in self.drawn.names]
        return torch.cat([getattr(self.drawn, name) for name in names], 1)

    @torch.no_grad()
    def given_parents(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows that have parents: latents and their means by the draws' mean mechanisms (row, latent), and the
        parents (row, parent)."""
        z, parents = self.latents(batch), []
        loc = self.drawn.intercept.mean(0).expand_as(z)
        order, since = batch.in_time()
        at = order[since > 0] if self.config["memory"] else order
        loc = loc[at]
        if self.config["aux"]:
            actions = self._actions(batch)[at]
            loc = loc + torch.einsum("rpb,pkb->rk", basis(actions), self.drawn.action_curves.mean(0))
            parents.append(actions)
        if self.config["memory"]:
            before = z[order[(since > 0).nonzero()[:, 0] - 1]]
            loc = loc + curves_of(before, self.drawn.step_curves.mean(0))
            parents.append(before)
        return z[at], loc, torch.cat(parents, 1)

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        """Whether rows follow others is read off the data."""
        return super().from_data(data, **({"memory": data.series is not None} | options))

    @torch.no_grad()
    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The readout of a part of the rows, mechanisms given its latents, and the decoder by regression."""
        own = self.config
        batch = self.observation.start(data)
        x = self.observation.inputs(batch).double()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if own["aux"]:
            assert batch.aux is not None
            low = batch.aux.min(0).values
            self.put(low=low, reach=(batch.aux.max(0).values - low).clamp_min(1e-12))
        order, since = batch.in_time()
        places = (since > 0).nonzero()[:, 0] if own["memory"] else torch.arange(len(order))
        parents = own["aux"] + own["memory"] * own["latents"]
        if len(places) < (least := EACH * (1 + parents * BASIS)):
            kind, after = ("series", " that follow others") if own["memory"] else ("x", "")
            reject(kind, f"{len(places)} rows{after} to fit", f"{least} or more, for {parents} parents")
        chosen = rng.permutation(len(places))[: max(least // 2, round(PART * len(places)))]
        places = places[torch.as_tensor(np.sort(chosen))]
        after, before = order[places], order[(places - 1).clamp_min(0)]
        self.encoder.draw(x, generator)
        self._read(x, before, after, batch, rng)
        z = self.encoder(x)
        design = [basis(self._actions(batch)[after].double())] if own["aux"] else []
        design += [basis(0.5 + z[before].double() / (2 * SPAN))] if own["memory"] else []
        phi = torch.cat(design, 1).numpy()[:MOST_ROWS]
        prior = Prior(own["edge_probability"], own["slab"], SPIKE[own["mixing"]], own["rate"])
        found = exact.draws(phi, z[after].double().numpy()[:MOST_ROWS], prior, BURN, KEPT, rng)
        drawn = {"intercept": found.intercept, "variance": found.variance, "acts": found.graph[:, : own["aux"]]}
        drawn |= {"action_curves": found.coefficients[:, : own["aux"]], "follows": found.graph[:, own["aux"] :]}
        drawn["step_curves"] = found.coefficients[:, own["aux"] :]
        self.decoder.draw(z, generator)
        self.decoder.regress(z, x)
        noise = (x - self.decoder(z)).std(0)
        if own["mixing"] == "linear":  # latents took a part of it, most of features that they are read from
            left = torch.eye(own["features"]).to(x) - self.decoder.weight.to(x) @ self.encoder.weight.to(x)
            noise = noise / left.square().sum(1).sqrt().clamp_min(LEAST)
            read = self.encoder.weight.to(x).square() @ noise.square()  # and vary by it
            drawn["variance"] = (drawn["variance"] - read).clamp_min(exact.LEAST)
        self.observation.raw_noise.copy_(noise.clamp_min(LEAST).log())
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn[name])

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Widths of q by what the readout errs in rows that the story tells."""
        rows, values = readings.told(self, data.tensors(self.raw_width.device, self.raw_width.dtype))
        error = readings.error(self.latents(rows), values["z"])
        if bool(error.isfinite().all()):  # not of series that explode
            self.raw_width.copy_(error.log())

    def _read(self, x: Tensor, before: Tensor, after: Tensor, batch: Batch, rng: np.random.Generator) -> None:
        """The encoder's weights."""
        own = self.config
        linear, latents = own["mixing"] == "linear", own["latents"]
        f = self.encoder.functions(x).numpy()
        phi = basis(self._actions(batch)[after].double()).numpy() if own["aux"] else np.zeros((len(after), 0, BASIS))
        if own["memory"]:
            weight = self._by_steps(x, f, before, after, phi, rng)
        else:
            weight = readouts.by_actions(f[after], phi, latents, linear, rng)
        z = f @ weight.T
        weight = torch.as_tensor(weight / z.std(0)[:, None])
        self.encoder.read(weight, -torch.as_tensor(f.mean(0)) @ weight.mT)

    def _by_steps(
        self, x: Tensor, f: np.ndarray, before: Tensor, after: Tensor, phi: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        latents = self.config["latents"]
        pick = rng.permutation(len(after))[: readouts.PLACES]
        at = after.numpy()[pick]
        along = readouts.tangents(x.numpy(), at, latents)
        steps = []
        for functions, most in ((x.numpy(), latents), (f, None)):
            turn = readouts.white(functions[after.numpy()], most)
            y = (functions - functions.mean(0)) @ turn
            slopes = turn.T @ (along if most else self.encoder.slopes(x[at]).numpy() @ along)
            steps.append((turn, readouts.Steps(y[before.numpy()], y[after.numpy()], phi, slopes)))
        (turn, plain), ridged = steps[0], steps[1] if self.config["mixing"] == "nonlinear" else None
        found = readouts.by_steps(plain, ridged[1] if ridged else None, latents, self.config["starts"], rng)
        out: np.ndarray = found.weight @ (ridged[0] if ridged else turn).T
        return out

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("lachapelle2022", seed=seed, rows=600, latents=2, features=4, layers=1, graph="diagonal")
        return cls.from_data(data, mixing="linear"), data

    studies = (
        SparseMechanisms("lachapelle2022", {"graph": "diagonal"}, held_out=0.1),
        SparseMechanisms("lachapelle2022", {"graph": "two-diagonal"}, seeds=6, held_out=0.1),
        SparseMechanisms("lachapelle2022", {"parents": "latents", "graph": "triangular"}, seeds=1, held_out=0.1),
        SparseMechanisms("lachapelle2022", {**LINEAR_MAP, "graph": "two-diagonal"}, {"mixing": "linear"}, seeds=3),
        SparseMechanisms(
            "lachapelle2022", {**LINEAR_MAP, "parents": "latents", "graph": "triangular"}, {"mixing": "linear"}, seeds=3
        ),
    )


if __name__ == "__main__":
    run(MechanismSparsity)
