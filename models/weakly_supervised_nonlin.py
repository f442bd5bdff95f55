"""Weakly supervised causal latents behind a nonlinear mixing: pairs of rows, before and after one latent, nobody says
which, was set anew.

    order ~ uniform;  graph[j, k] ~ Bernoulli(edge_probability) if j precedes k       (latent,), (parent, child)
    precision_k = 1 / s_k^2 ~ Gamma(.5, .01);  own_level_k ~ N(0, (3 s_k)^2)          (latent,)
    size_jk = 2^-level_jk,  level_jk any of 0 to 3, as likely (`curve_equations.sizes`)  (parent, child)
    curve_jbk ~ N(0, (slab size_jk s_k)^2) where there is an edge, else 0             (parent, basis, child)
    share ~ Dirichlet(1);  target_i ~ Categorical(share) of rows after, none before   (latent + 1,), (data,)
    z_ik = f_k(z_i) + eps_ik,  f_k(z) = sum_jb curve_jbk phi_b(z_j),  eps_ik ~ N(0, 1) of rows before
    after:  z_ik ~ N(own_level_k, s_k^2) of the target k: a perfect intervention; for others eps_ik is that of the row
            before, but for noise that grows with how far the target moved (`parts.paired_rows`)  (data, latent)
    x_i ~ N(g(z_i), diag sigma^2),  g linear plus a network                           (data, feature)

A row without its partner stands alone. `model` sums out targets. The guide is q(z | x) = N(h(x), t^2), both rows of a
pair with the same error, and draws of the posterior of order, graph and equations given h.

`initialise`: a network tells partners from strangers (`constructions.noise_contrast`), which makes it the noise eps of
each latent in units of its own; a spline makes that standard normal over rows before; targets and equations follow in
turn from pairs (`constructions.pair_changes`); g is a regression. h and t, its errors as differences of noise that
did not change show them, are kept; the evidence lower bound is maximised over g and sigma.

*Identified:* latents up to permutation, scale and shift and the graph exactly, if every latent is the one that changed
in some pairs, interventions are perfect and all other noise is shared (Brehmer 2022, theorem 1: up to a monotone map of
each latent), and noise is normal and added to curves of the parents, which gives the latents' units.

Brehmer, de Haan, Lippe & Cohen (2022), Weakly supervised causal representation learning.

*Differs from the paper in* noise that is told by contrasts between pairs, not by a variational autoencoder; equations
that add up curves of the parents, of which there is a posterior; normal noise.

A file of its own beside `weakly_supervised_pairs`, with which it shares no step: there, lines of differences and
moments are exact, here a network is trained.

*For a variant, copy this file and change* `story`: the law of `curve` or of `share`.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import noise_contrast, offsets, optimise, pair_changes
from pyrocrl.dists import Categorical, Gamma, Normal, SpikeSlab
from pyrocrl.errors import reject
from pyrocrl.exact import curve_equations, order_sampling, orders
from pyrocrl.exact.all_subsets import RATE, SHAPE
from pyrocrl.exact.curve_equations import BENDS, LEVEL
from pyrocrl.lab.studies.linked_rows import LinesOfPairs
from pyrocrl.options import Bounds, Positive, Size
from pyrocrl.parts.displaced import Displaced
from pyrocrl.parts.flows import Gaussianise
from pyrocrl.parts.guides import DrawnBlock
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.observation import Observation
from pyrocrl.parts.paired_rows import Changes, PairedRows
from pyrocrl.program import EdgeProbability, Features, Latents, check_sizes
from pyrocrl.readouts import SetApart

DRAWS = 200
READ = 10  # draws over which targets are averaged
LEAST = 0.01  # deviation of noise of features

ALONE = "one latent at most changes between a pair's rows, other noise is shared"
CURVES = "noise is normal, and added to curves of the parents"
NEEDS = ("perfect_interventions", "changed_in_pairs", "one_changes", "set_anew", "little_left")


class WeaklySupervisedNonlin(Program):
    card = ModelCard(
        name="weakly_supervised_nonlin",
        title="Weakly supervised pairs, nonlinear",
        family="pairs",
        summary="Causal latents and their graph behind any injective map, from rows before and after an intervention "
        "that nobody names: a network that tells partners from strangers.",
        when=(
            "rows come in pairs, before and after, one latent at a time is set anew, and the mixing is nonlinear",
            "the mixing is linear (`weakly_supervised_pairs` is exact then), pairs are few, or more than one latent "
            "changes at once",
        ),
        assumes=(
            "x is an injective function of latents, with little noise",
            "between a pair's rows one latent, or none, is cut from its parents and drawn anew",
            "noise of all other latents is the same in both rows",
            CURVES,
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), (ALONE, CURVES), NEEDS),
            Claim("graph", ("permutation",), (ALONE, CURVES), NEEDS),
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
            "noise is told by contrasts between pairs, not by a variational autoencoder",
            "equations add up curves of the parents, of which there is a posterior",
            "noise is normal",
        ),
        needs_pairs=True,
        approximate="The network that reads noise is kept, with the error that its pairs show; given it, order, graph "
        "and equations are drawn, from pairs that count for less where that error goes with another latent.",
    )
    recipe = Recipe.unannealed(epochs=3, least_steps=200, batch_size=512, lr=1e-3, held_out=0.1, chains=2)
    checks = {"left_beyond_error": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "graph": Site(("parent", "child"), discrete=True),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, orders.MAX_NODES)],
        edge_probability: EdgeProbability = 0.5,
        slab: Positive = 1.0,
        width: Size = 128,
        steps: Size = 3_000,
    ) -> None:
        """slab: prior deviation of a coefficient of the largest curves, in units of the deviation to which their
        child is set. width: of networks' layers; steps: of the encoder's training.

        Raises InputError for fewer than 2 latents, or more than features.
        """
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        self.observation = Observation(features, noise=0.1)
        self.encoder = Residual(features, latents, width).requires_grad_(False)
        self.decoder = Residual(latents, features, width)
        self.normal = Gaussianise(latents)
        square, table = (latents, latents), (latents, BENDS, latents)
        self.drawn = DrawnBlock(
            DRAWS,
            order=(latents,),
            graph=square,
            level=square,
            precision=(latents,),
            own_level=(latents,),
            curve=table,
            share=(latents + 1,),
        )
        self.drawn.order.copy_(torch.arange(latents))
        self.drawn.precision.fill_(1.0)
        self.drawn.share.fill_(1 / (latents + 1))
        size, log_level = curve_equations.sizes(latents)
        self.register_buffers(
            size=size.float(),
            log_level=log_level.float(),
            signal=torch.eye(features),  # from x to what the encoder sees
            mean_curve=torch.zeros(table),
            still=torch.full((latents,), 0.1),  # deviations of noise that is not shared, see `parts.paired_rows`
            moving=torch.full((latents,), 0.1),
            error=torch.full((latents,), 0.1),  # t, of h
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
        levels = Categorical(logits=self.log_level.to(zero).expand(d, d, -1)).to_event(2)
        out["level"] = pyro.sample("level", levels)
        size = self.size.to(zero)[out["level"].long()]
        gate, own = (value[:, None].expand(d, BENDS, d) for value in (out["graph"], size))
        law = SpikeSlab(gate, Normal(0 * gate, slab * own * scale))
        out["curve"] = pyro.sample("curve", law.to_event(3))  # (parent, basis, child)
        out["share"] = pyro.sample("share", dist.Dirichlet(torch.cat([1.0 + zero, 1.0 + zero[:1]])))
        return out

    def _changes(self, sites: dict[str, Tensor]) -> Changes:
        return Changes(sites["curve"], sites["own_level"], sites["precision"].rsqrt(), self.still, self.moving)

    def story(self, batch: Batch) -> None:
        d, sites = self.config["latents"], self._globals(batch)
        (place, follows), after = batch.before(), self._after(batch)
        none = torch.nn.functional.one_hot(torch.tensor(d, device=batch.device), d + 1).to(sites["share"])
        with self.rows(batch):
            target = pyro.sample("target", Categorical(torch.where(after[:, None], sites["share"], none)))  # (rows,)
            changes = self._changes(sites)
            if batch.together is None:
                z = pyro.sample("z", PairedRows(changes, place, follows, after, target, sites["order"]))
            else:  # rows alone, of which `do` sets latents: one by one, so that others follow

                def equation(k: int, z: Tensor) -> Normal:
                    loc = curve_equations.told(z, changes.curve)[:, k]
                    return Normal(loc, torch.ones_like(loc))

                start = torch.zeros(len(batch), d, dtype=batch.dtype, device=batch.device)
                z = self.along(sites["order"].long().tolist(), equation, start)  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        sites = self._globals(batch)
        with self.rows(batch):
            law = PairedRows(self._changes(sites), *batch.before(), self._after(batch), log_share=sites["share"].log())
            z = pyro.sample("z", law)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        with self.rows(batch):
            pyro.sample("target", Categorical(logits=self._log_joint(batch, kept["z"], kept)))

    def guide(self, batch: Batch) -> None:
        self.drawn.sample()
        place, follows = batch.before()
        with self.rows(batch):
            mean = self.latents(batch)
            shift = mean - torch.where(follows[:, None], mean[place], 0.0)
            pyro.sample("z", Displaced(shift, self.still, torch.diag_embed(self.error), place, follows))

    def _log_joint(self, batch: Batch, z: Tensor, sites: dict[str, Tensor]) -> Tensor:
        """(rows, latent + 1) log-density of z and, of rows after, of each latent as their target, the last being none;
        rows before have none."""
        after = self._after(batch)
        joint = self._changes(sites).log_joint(z, *batch.before(), after)
        return joint + torch.where(after[:, None], sites["share"].log(), 0.0)

    @staticmethod
    def _after(batch: Batch) -> Tensor:
        """(rows,) whether a row is one after, its partner here or not; none where all are asked to be observational."""
        if batch.pair is None or batch.together is not None:
            return torch.zeros_like(batch.env, dtype=torch.bool)
        return batch.pair % 2 == 1

    # -- read-outs ---------------------------------------------------------------------------------------------

    def _noise(self, batch: Batch) -> Tensor:
        """(rows, latent) eps, as it is read."""
        return self.normal(self.encoder(self.observation.inputs(batch) @ self.signal))[0]

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return curve_equations.latents(self._noise(batch), self.mean_curve)

    def graph(self) -> Tensor:
        return self.drawn.graph.mean(0)

    @torch.no_grad()
    def row_targets(self, batch: Batch) -> Tensor:
        z, places = self.latents(batch), range(0, DRAWS, DRAWS // READ)
        each = [self._log_joint(batch, z, self._draw(place)).softmax(-1) for place in places]
        return torch.stack(each).mean(0)

    @torch.no_grad()
    def set_apart(self, batch: Batch) -> SetApart:
        place, follows = batch.before()
        z, sites = self.latents(batch), self._draw(0) | {"curve": self.mean_curve}
        eps = self._changes(sites).noise(z)
        chance = self._log_joint(batch, z, sites).softmax(-1)[follows]
        return SetApart((eps - eps[place])[follows], eps[place][follows], z[follows], chance)

    def _draw(self, place: int) -> dict[str, Tensor]:
        """All sites but rows' own: one of the draws."""
        return {name: getattr(self.drawn, name)[place] for name in self.drawn.names}

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The encoder by contrasts, targets and equations, and the decoder by regression."""
        batch, own = self.observation.start(data), self.config
        place, follows = batch.before()
        least = 10 * own["latents"]
        if int(follows.sum()) < least:
            reject("pair", f"{int(follows.sum())} pairs to fit", f"{least} or more, for {own['latents']} latents")
        x = self.observation.inputs(batch)
        self.signal.copy_(offsets.scaled_components(x))
        y, budget = x @ self.signal, (own["latents"], own["width"], own["steps"], generator)
        net, _ = noise_contrast.encoder(y[place[follows]], y[follows], *budget)
        self.encoder.load_state_dict(net.state_dict())
        with torch.no_grad():
            self.normal.start(self.encoder(y)[~self._after(batch)])
            eps = self._noise(batch).double()
        prior = (own["edge_probability"], own["slab"])
        found = pair_changes.found(eps[place[follows]], eps[follows], *prior, DRAWS, generator)
        for name in ("order", "graph", "level", "precision", "own_level", "curve"):
            getattr(self.drawn, name).copy_(getattr(found.equations, name))
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        self.drawn.share.copy_(torch.as_tensor(rng.dirichlet(1.0 + found.chance.sum(0).cpu().numpy(), DRAWS)))
        still, moving = found.changes.still, found.changes.moving
        self.put(mean_curve=found.equations.mean, still=still, moving=moving, error=found.changes.error)
        z = self.latents(batch)
        middle, unit = z.mean(0), z.std(0)
        optimise.regress(self.decoder, (z - middle) / unit, x, max(1, own["steps"] // 3), generator)
        with torch.no_grad():
            self.decoder.preceded_by(1 / unit, -middle / unit)
            left = (x - self.decoder(z)).square().mean(0).sqrt()
        self.observation.raw_noise.copy_(left.clamp_min(LEAST).log())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("brehmer2022_nonlinear", seed=seed, pairs=600, latents=2, layers=1)
        return cls.from_data(data, width=32, steps=400), data

    studies = (LinesOfPairs("brehmer2022_nonlinear", seeds=3, held_out=0.1),)


if __name__ == "__main__":
    run(WeaklySupervisedNonlin)
