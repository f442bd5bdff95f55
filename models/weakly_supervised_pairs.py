"""Weakly supervised causal latents: pairs of rows, before and after one latent, nobody says which, was set anew.

    order ~ uniform;  graph[j, k] ~ Bernoulli(edge_probability) if j precedes k       (latent,), (parent, child)
    precision_k = 1 / s_k^2 ~ Gamma(.5, .01);  own_level_k ~ N(0, (3 s_k)^2)          (latent,)
    weight_jk ~ N(0, (slab s_k)^2) where there is an edge, else 0                     (parent, child)
    level_k ~ N(0, 3^2);  unshared_k ~ LogNormal(log .1, 2^2)                         (latent,)
    mixing A_jk ~ N(0, 1)                                                             (latent, latent)
    share ~ Dirichlet(1);  target_i ~ Categorical(share) of rows after, none before   (latent + 1,), (data,)
    z_ik = sum_j w_jk z_ij + eps_ik,  eps_ik ~ N(level_k, 1) of rows before           (data, latent)
    after:  eps_ik = that of the row before + unshared_k N(0, 1) for k other than the target,
            z_ik ~ N(own_level_k, s_k^2) for the target: a perfect intervention
    x_i = W z_i + offset + r_i,  W = lift A (I - w^T),  r_i ~ N(0, tau^2) off W       (data, feature)

lift, offset and tau are those of the principal subspace of x. A row without its partner stands alone.

`model` sums out targets. Its guide is draws of the posterior: of A, shares and unshared noise about their fit by
expectation-maximisation (`constructions.lines`), of order, graph and equations given these by Gibbs sampling
(`exact.paired_sem`).

*Identified:* latents up to permutation, scale and shift and the graph exactly, if every latent is the one that changed
in some pairs, interventions are perfect and all other noise is shared (Brehmer 2022, theorem 1, for a linear mixing).
Differences of pairs lie on one line for each latent, whose direction is a column of W (I - w^T)^-1; on the pairs in
which it changed a latent does not depend on anything before, which tells it from its parents.

Brehmer, de Haan, Lippe & Cohen (2022), Weakly supervised causal representation learning.

*Differs from the paper in* a linear mixing and linear equations, for which no network is trained; noise that is shared
up to a part that is fitted; a posterior over graphs, weights and targets.

*For a variant, copy this file and change* `story`: the law of `weight`, of `unshared` or of `share`.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import lines
from pyrocrl.constructions.subspaces import FLOOR, frame
from pyrocrl.dists import Categorical, Gamma, Law, LogNormal, Normal, SpikeSlab
from pyrocrl.errors import reject
from pyrocrl.exact import order_sampling, orders, paired_sem
from pyrocrl.exact.all_subsets import RATE, SHAPE
from pyrocrl.exact.paired_sem import LEVEL, Following, log_normal
from pyrocrl.lab.studies import Study
from pyrocrl.options import Positive, check_memory
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.parts.mixing import LinearMixing
from pyrocrl.program import EdgeProbability, Features, Latents, check_sizes
from pyrocrl.readouts import Partners

DRAWS = 200
READ = 20  # draws over which targets are averaged

LINES = "mixing and equations are linear, one latent at most changes between a pair's rows, other noise is shared"
NEEDS = ("changed_in_pairs", "perfect_interventions")


class WeaklySupervisedPairs(Program):
    card = ModelCard(
        name="weakly_supervised_pairs",
        title="Weakly supervised pairs",
        family="pairs",
        summary="Causal latents and their graph from rows before and after an intervention that nobody names: linear "
        "mixing, solved by the lines on which differences lie.",
        when=(
            "rows come in pairs, before and after, one latent at a time is set anew, and all else stays as it was",
            "partners differ in their noise, as two samples of cells do, or more than one latent changes at once",
        ),
        assumes=(
            "x is linear in the latents",
            "latents follow linear equations without cycles",
            "between a pair's rows one latent, or none, is cut from its parents and drawn anew",
            "noise of all other latents is the same in both rows, but for a small part",
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), (LINES,), NEEDS),
            Claim("graph", ("permutation",), (LINES,), NEEDS),
        ),
        references=(
            Reference(
                "Brehmer, de Haan, Lippe & Cohen",
                2022,
                "Weakly supervised causal representation learning",
                "NeurIPS",
                "https://arxiv.org/abs/2203.16437",
            ),
        ),
        differs=(
            "a linear mixing and linear equations, for which no network is trained",
            "noise is shared up to a part that is fitted",
            "a posterior over graphs, weights and targets",
        ),
        needs_pairs=True,
        approximate="Mixing and noise are drawn from a normal approximation about their maximum, and pairs counted by "
        "how probably each latent changed there; given these, order, graph and equations by Gibbs sampling, "
        "whose runs are too short to settle the graph of many more than 15 latents.",
    )
    counted = "evidence"
    recipe = Recipe.unannealed(epochs=1, batch_size=None, lr=1e-4, held_out=0.05, dtype=torch.float64, chains=4)
    checks = {"differences": (LINES,), "factors": ()}
    new_rows = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "graph": Site(("parent", "child"), discrete=True),
        "weight": Site(("parent", "child"), {"parent": -1, "child": 1}),
        "unmixing": Site(("latent", "feature"), {"latent": 1}, unit=-1),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
    }

    def __init__(
        self, features: Features, latents: Latents, edge_probability: EdgeProbability = 0.5, slab: Positive = 1.0
    ) -> None:
        """slab: prior deviation of a weight, in units of the deviation to which its child is set.

        Raises InputError for fewer than 2 latents, or more than features.
        """
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        check_memory("latents", latents, 8.0 * DRAWS * (latents + 2) ** 2 * latents)
        square, double = (latents, latents), torch.double
        self.level = NormalBlock(latents, scale=0.1)
        self.drawn = DrawnBlock(
            DRAWS,
            order=(latents,),
            graph=square,
            precision=(latents,),
            own_level=(latents,),
            weight=square,
            unshared=(latents,),
            mixing=square,
            share=(latents + 1,),
        ).double()
        self.drawn.order.copy_(torch.arange(latents))
        self.drawn.mixing.copy_(torch.eye(latents))
        for name, value in (("precision", 1.0), ("unshared", 0.1), ("share", 1 / (latents + 1))):
            getattr(self.drawn, name).fill_(value)
        self.register_buffers(
            project=torch.eye(latents, features, dtype=double),
            lift=torch.eye(features, latents, dtype=double),
            offset=torch.zeros(features, dtype=double),
            tau=torch.ones((), dtype=double),
            log_jacobian=torch.zeros((), dtype=double),
            unmixing=torch.eye(latents, dtype=double),  # of y to the posterior mean of z
        )

    # -- the story, what is fitted, and the way back -----------------------------------------------------------

    def _globals(self, batch: Batch) -> dict[str, Tensor]:
        """Samples of all sites but rows' own."""
        d, slab = self.config["latents"], self.config["slab"]
        zero = torch.zeros(d, dtype=batch.dtype, device=batch.device)
        out = {"order": pyro.sample("order", order_sampling.AnyOrder(zero, d))}
        chance = self.config["edge_probability"] * orders.earlier(out["order"])
        out["graph"] = pyro.sample("graph", dist.Bernoulli(chance.to(zero)).to_event(2))
        out["precision"] = pyro.sample("precision", Gamma(SHAPE + zero, RATE + zero).to_event(1))
        scale = out["precision"].rsqrt()
        out["own_level"] = pyro.sample("own_level", Normal(zero, LEVEL * scale).to_event(1))
        law = SpikeSlab(out["graph"], Normal(0 * out["graph"], slab * scale.expand(d, d)))
        out["weight"] = pyro.sample("weight", law.to_event(2))  # (parent, child)
        out["level"] = pyro.sample("level", Normal(zero, 3.0 + zero).to_event(1))
        out["unshared"] = pyro.sample("unshared", LogNormal(math.log(0.1) + zero, 2.0 + zero).to_event(1))
        out["mixing"] = pyro.sample("mixing", Normal(zero.expand(d, d), 1.0 + zero.expand(d, d)).to_event(2))
        out["share"] = pyro.sample("share", dist.Dirichlet(torch.cat([1.0 + zero, 1.0 + zero[:1]])))
        return out

    def story(self, batch: Batch) -> None:
        d, sites = self.config["latents"], {name: value.double() for name, value in self._globals(batch).items()}
        noise, unmixing = self._unmixings(sites)  # of y to eps and to z, (latent, latent) both
        pyro.deterministic("unmixing", unmixing @ self.project.double())
        pyro.deterministic("loadings", self.lift.double() @ torch.linalg.inv(unmixing))
        level, unshared, weight, own_level = (sites[n] for n in ("level", "unshared", "weight", "own_level"))
        own_scale = sites["precision"].rsqrt()
        (place, follows), after = batch.before(), self._after(batch)
        none = torch.nn.functional.one_hot(torch.tensor(d, device=batch.device), d + 1).to(sites["share"])
        told = None if batch.x is None else self._y(batch) @ unmixing.mT
        with self.rows(batch):
            target = pyro.sample("target", Categorical(torch.where(after[:, None], sites["share"], none)))  # (rows,)

            def equation(k: int, z: Tensor) -> Following:
                hit = target == k
                alone = torch.where(after, (1 + unshared[k].square()).sqrt(), 1.0)  # of a row without its partner
                scale = torch.where(hit, own_scale[k], torch.where(follows, unshared[k], alone))
                loc = torch.where(hit, own_level[k], level[k] + z @ weight[:, k])
                return Following(loc, scale, place, follows & ~hit)

            start = torch.zeros(len(batch), d, dtype=noise.dtype, device=noise.device)
            z = self.along(sites["order"].long().tolist(), equation, start, told)  # (rows, latent)
            pyro.sample("x", self._mixed(z, unmixing), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        sites = self._globals(batch)
        with self.rows(batch):
            law = Law((len(batch),), (self.config["features"],), lambda _: self.row_log_likelihood(batch, sites))
            pyro.sample("x", law, obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        with self.rows(batch):
            pyro.sample("target", Categorical(logits=self._log_joint(batch, kept)))

    def guide(self, batch: Batch) -> None:
        pyro.sample("level", self.level().to_event(1))
        self.drawn.sample()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | global sites), of rows after given the row before; targets summed out."""
        unmixing = self._unmixings(sites)[1]
        z = self._y(batch) @ unmixing.mT
        volume: Tensor = self._mixed(z, unmixing).log_prob(batch.x.double())
        return self._log_joint(batch, sites).logsumexp(-1) + volume

    def _log_joint(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows, latent + 1) log-density of z and, of rows after, of each latent as their target, the last being none;
        rows before have none."""
        level, unshared = sites["level"], sites["unshared"]
        noise, unmixing = self._unmixings(sites)
        (place, follows), after = batch.before(), self._after(batch)[:, None]
        y = self._y(batch)
        eps, z = y @ noise.mT, y @ unmixing.mT
        alone = torch.where(after, (1 + unshared.square()).sqrt(), 1.0)
        loc = torch.where(follows[:, None], eps[place], level)
        keep = log_normal(eps - loc, torch.where(follows[:, None], unshared, alone))
        own = log_normal(z - sites["own_level"], sites["precision"].rsqrt())
        total = keep.sum(-1, keepdim=True)
        changed = torch.where(after, total - keep + own + sites["share"][:-1].log(), -torch.inf)
        return torch.cat([changed, total + torch.where(after, sites["share"][-1].log(), 0.0)], -1)

    def _unmixings(self, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(latent, latent) of y to eps, A^-1, and of y to z, (I - w^T)^-1 A^-1."""
        noise, weight = torch.linalg.inv(sites["mixing"].double()), sites["weight"].double()
        eye = torch.eye(len(noise), dtype=noise.dtype, device=noise.device)
        return noise, torch.linalg.solve(eye - weight.mT, noise)

    def _mixed(self, z: Tensor, unmixing: Tensor) -> LinearMixing:
        parts = (self.project, self.lift, self.offset, self.tau, self.log_jacobian)
        return LinearMixing(z, unmixing, *(part.double() for part in parts))

    def _y(self, batch: Batch) -> Tensor:
        return (batch.x.double() - self.offset.double()) @ self.project.double().mT

    @staticmethod
    def _after(batch: Batch) -> Tensor:
        """(rows,) whether a row is one after, its partner here or not; none where all are asked to be observational."""
        if batch.pair is None or batch.together is not None:
            return torch.zeros_like(batch.env, dtype=torch.bool)
        return batch.pair % 2 == 1

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return (self._y(batch) @ self.unmixing.double().mT).to(batch.dtype)

    def graph(self) -> Tensor:
        return self.drawn.graph.mean(0)

    @torch.no_grad()
    def row_targets(self, batch: Batch) -> Tensor:
        each = [self._log_joint(batch, self._draw(place)).softmax(-1) for place in range(0, DRAWS, DRAWS // READ)]
        return torch.stack(each).mean(0)

    @torch.no_grad()
    def partners(self, batch: Batch) -> Partners:
        sites = self._draw(0) | {n: getattr(self.drawn, n).double().mean(0) for n in ("mixing", "unshared")}
        place, follows = batch.before()
        noise, unmixing = self._unmixings(sites)
        eps, z = self._y(batch) @ noise.mT, self._y(batch) @ unmixing.mT
        joint, share = self._log_joint(batch, sites)[follows], sites["share"].log()
        gain = joint[:, :-1] - (joint[:, -1:] - share[-1])  # of each latent's having changed, over that none has
        others = torch.where(torch.eye(gain.shape[1], device=gain.device) > 0, share[:-1], gain[:, None])
        changed = (share[:-1] - torch.logaddexp(others.logsumexp(-1), share[-1])).exp()
        left = ((eps - eps[place]) / sites["unshared"])[follows]
        own = ((z - sites["own_level"]) * sites["precision"].sqrt())[follows]
        below = torch.special.ndtr(left).lerp(torch.special.ndtr(own), changed)
        return Partners(below, changed, left.abs(), eps[place][follows])

    def _draw(self, place: int) -> dict[str, Tensor]:
        """All sites but rows' own: one of the draws."""
        return {name: getattr(self.drawn, name)[place] for name in self.drawn.names} | {"level": self.level.loc}

    # -- from data ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Lines of differences, expectation-maximisation from there, then draws of everything."""
        batch, d = data.tensors(self.project.device, torch.float64), self.config["latents"]
        place, follows = batch.before()
        if int(follows.sum()) < 2 * d:
            reject("pair", f"{int(follows.sum())} pairs to fit", f"{2 * d} or more, for {d} latents")
        found = frame(batch.x, ~self._after(batch), d, FLOOR)
        self.put(**found._asdict())
        y = self._y(batch)
        before, after = y[place[follows]], y[follows]
        noise = lines.fitted(before, after, d, generator)
        chance = noise.log_joint(before, after).softmax(1)
        unmixing = lines.draws(noise, before, after, chance, DRAWS, generator)  # (draw, latent, latent)
        one = torch.ones(len(after), 1, dtype=y.dtype)
        own = torch.cat([one, after], 1)
        products = torch.stack([(own * c[:, None]).mT @ own for c in chance[:, :d].T])  # (latent, 1 + latent, ...)
        edge = torch.zeros(DRAWS, 1 + d, 1 + d, dtype=y.dtype)
        edge[:, 0, 0], edge[:, 1:, 1:] = 1.0, unmixing
        moments = edge[:, None] @ products @ edge[:, None].mT
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        equations = paired_sem.draw(moments, self.config["edge_probability"], self.config["slab"])
        spread = chance.new_tensor(rng.chisquare(len(after), size=(DRAWS, d))) / len(after)
        drawn = {name: getattr(equations, name) for name in ("order", "graph", "precision", "own_level", "weight")}
        drawn |= {"mixing": torch.linalg.inv(unmixing), "unshared": noise.unshared / spread.sqrt()}
        drawn["share"] = torch.as_tensor(rng.dirichlet(1.0 + chance.sum(0).numpy(), DRAWS))
        for name, value in drawn.items():
            getattr(self.drawn, name).copy_(value)
        self.put(unmixing=(equations.total @ unmixing).mean(0))
        deviation = torch.full((d,), len(before) ** -0.5, dtype=y.dtype)
        start = (before @ noise.unmixing.mT).mean(0)
        self.level.set(start + deviation * torch.randn(d, generator=generator, dtype=y.dtype), deviation)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("brehmer2022_linear", seed=seed, pairs=300, latents=3, features=6, unshared=0.02)
        return cls.from_data(data), data

    studies = (
        Study("brehmer2022_linear", {"features": 5}),
        Study("brehmer2022_linear", {"unshared": 0.1}),
        Study("brehmer2022_linear", {"measurement": 0.05}),
    )


if __name__ == "__main__":
    run(WeaklySupervisedPairs)
