"""BISCUIT, linear mixing: latents of time series, told apart by actions that act on some of them, unseen, in each step.

    lagged_jk ~ Bernoulli(edge_probability)                                           (parent, child)
    slab_k ~ uniform on 3, 1, .3, .1;  width_k ~ LogNormal(0, 1.5^2)                  (latent,)
    spread_k ~ LogNormal(1, 2^2)                                                      (latent,)
    w_akf ~ N(0, 1), of latents that are not acted on (a = 0) and that are (1)        (mechanism, latent, basis)
    rate_k ~ Uniform(.01, .99)                                                        (latent,)
    chance_gk ~ Beta(rate_k, 1 - rate_k)                                              (region, latent)
    inverse_kj ~ N(0, 3^2), of the mixing A                                           (latent, latent)
    acted_on_tk ~ Bernoulli(chance_gk), g the region of the step's action             (data, latent)
    z_tk ~ N(sum_f size_kf w_akf phi_f(z_t-1), scale_ak^2), a = acted_on_tk           (data, latent)
    x_t = lift A z_t + offset + r_t,  r_t ~ N(0, tau^2) off the span of A             (data, feature)

Actions are the numbers of `aux` in a row, of what came between the row before and it; each value is a region, or, of
more than `regions` values, what is near. scale is width_k of latents that are acted on and 1 of others, and multiplies
weights; size_kf is slab_k of functions phi_f of k's parents alone, 10 of the constant and 0 of others; of latents that
are acted on with intervention="perfect", which lose their parents, of all but the constant. phi are five functions of
each latent and six of each two (`exact.basis_regression`), of the most probable latents before. A series' first row is
N(0, spread_k^2).

`model` sums out `acted_on`, which `recover` draws. Each chain climbs to the most probable unmixing from two closed
forms and random ones (`constructions.interactions`), then draws by Gibbs sampling (`constructions.interaction_draws`).

*Identified:* latents up to permutation, scale and shift, if actions differ in whether they act on each latent, in no
way that two latents share, and what they act on has another law then (Lippe et al. 2023, theorem 3.1). Two latents that
are acted on by the same actions, or one by those that the other is not, are named by the verdict, as are latents of
which no action is seen. The graph `lagged`, `chance` and `acted_on` come with probabilities and are not claimed.
With intervention="soft" the second of two latents, less what the first adds to it in the same step, would fit as well
as itself, and no data tell.

Lippe, Magliacane, Löwe, Asano, Cohen & Gavves (2023), BISCUIT: causal representation learning from binary interactions.

*Differs from the paper in* a linear mixing without noise within its span, in place of an autoencoder or a flow; actions
that act on a latent with a probability that regions of them tell, whatever latents were before; a posterior.

Longer than other models because what actions act on is summed out, recovered and told, beside what steps are.

*For a variant, copy this file and change* `story`: the law of `acted_on` given the action, and with it
`pyrocrl.exact.interactions`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import interaction_draws
from pyrocrl.constructions import interactions as construction
from pyrocrl.constructions.interaction_draws import SIZE, TINY
from pyrocrl.constructions.interaction_starts import Acted
from pyrocrl.constructions.subspaces import FLOOR, frame
from pyrocrl.constructions.target_steps import SPREAD, WIDTH
from pyrocrl.dists import Law, LogNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import interactions, target_steps
from pyrocrl.exact.interactions import LEAST, Regions
from pyrocrl.exact.switching import Timeline
from pyrocrl.exact.target_steps import MOST, SLABS
from pyrocrl.lab.studies.linked_rows import ActedSteps
from pyrocrl.options import Bounds, Share, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.parts.target_steps import Mechanisms, StepReadouts, Steps, step_buffers
from pyrocrl.parts.unmixed import Unmixed, frame_buffers
from pyrocrl.program import Features, check_sizes
from pyrocrl.readouts import Patterns, Stepped

DRAWS = 100
LAW = "each latent depends on the row before and on whether the action acts on it, with normal innovations of its own"
NOISELESS = "features have neither noise of their own nor other latents among the latents"
ALONE = "no latent acts on another in the same step"
UP_TO, NEEDS = ("permutation", "scale", "shift"), ("actions_act", "patterns_apart")


class Biscuit(Unmixed, StepReadouts, Program):
    card = ModelCard(
        name="biscuit",
        title="BISCUIT, linear mixing",
        family="time",
        summary="Latents of time series that drive each other from step to step, told apart by which actions act on "
        "them; that is learned.",
        when=(
            "rows are steps of series, the action in each step is known, and of which latents it acts on nothing is",
            "all actions act on the same latents, latents act on each other in the same step, or features bend what "
            "they measure",
        ),
        assumes=("x is linear in the latents", LAW, NOISELESS),
        claims=(
            Claim("latents", UP_TO, (LAW, NOISELESS), NEEDS, {"intervention": "perfect"}),
            Claim("latents", UP_TO, (LAW, NOISELESS, ALONE), NEEDS, {"intervention": "soft"}),
        ),
        references=(
            Reference(
                "Lippe, Magliacane, Löwe, Asano, Cohen & Gavves",
                2023,
                "BISCUIT: causal representation learning from binary interactions",
                "UAI",
                "https://arxiv.org/abs/2306.09643",
            ),
        ),
        differs=(
            "a linear mixing, without noise within its span, in place of an autoencoder or a flow",
            "whether an action acts on a latent depends on the action alone, by regions, and by chance",
            "a posterior over unmixing, mechanisms, parents and interactions in place of a maximum",
        ),
        needs_series=True,
        approximate="Functions of latents before are those of the most probable latents; all else is exact, but for "
        "the length of Gibbs sampling.",
    )
    recipe = Recipe.unannealed(epochs=1, batch_size=None, lr=1e-4, held_out=0.05, dtype=torch.float64, chains=2)
    constants = ("centre", "reach")
    checks = {"nearly_dynamics": (LAW,), "own_actions": (LAW,), "noiseless": (NOISELESS,), "factors": ()}
    new_rows = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "acted_on": Site(("data", "latent"), discrete=True),
        "rate": Site(("latent",)),
        "chance": Site(("region", "latent")),
        "lagged": Site(("parent", "child"), discrete=True),
        "width": Site(("latent",)),
        "unmixing": Site(("latent", "feature"), {"latent": 1}, unit=-1),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[int, Bounds(2, MOST), "how many latents there are"],
        aux: Annotated[int, Bounds(1), "numbers that an action has; read off the data"],
        regions: Annotated[int, Bounds(2, 4096), "parts of the actions that may differ in what they act on"] = 64,
        intervention: Annotated[
            Literal["perfect", "soft"], "whether latents that are acted on lose their parents, or keep them"
        ] = "perfect",
        edge_probability: Annotated[
            Share, "a priori, that a latent depends on another, or itself, in the row before"
        ] = 0.3,
    ) -> None:
        """Raises InputError for more latents than features or 8."""
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        square, double = (latents, latents), torch.double
        basis = target_steps.places(latents).shape[0]
        check_memory("latents", latents, 16.0 * DRAWS * latents * basis)
        check_memory("regions", regions, 8.0 * DRAWS * latents * regions + 16.0 * regions * aux)
        self.spread = LogNormalBlock(latents)
        shapes = {"inverse": square, "width": (latents,), "lagged": square, "slab": (latents,)}
        self.drawn = DrawnBlock(
            DRAWS, **shapes, w=(2, latents, basis), rate=(latents,), chance=(regions, latents)
        ).double()
        self.drawn.inverse.copy_(torch.eye(latents))
        self.drawn.width.fill_(1.0)
        self.drawn.rate.fill_(0.5)
        self.drawn.chance.fill_(0.5)
        self.register_buffers(
            **frame_buffers(features, latents),
            centre=torch.zeros(regions, aux, dtype=double),  # of regions
            reach=torch.ones(aux, dtype=double),
            **step_buffers(latents),
        )

    # -- the story, what is fitted, and the way back -----------------------------------------------------------

    def _globals(self, batch: Batch) -> tuple[Mechanisms, Tensor]:
        """What samples of all sites but rows' own make: mechanisms, and the unmixing of y (latent, latent)."""
        d, edge, shape = self.config["latents"], self.config["edge_probability"], self.drawn.chance.shape[-2:]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        sites = {"lagged": pyro.sample("lagged", dist.Bernoulli(edge * one.expand(d, d)).to_event(2))}
        sites["slab"] = pyro.sample("slab", dist.Categorical(logits=0 * one.expand(d, len(SLABS))).to_event(1))
        sites["width"] = pyro.sample("width", LogNormal(WIDTH[0] * one.expand(d), WIDTH[1] * one).to_event(1))
        sites["spread"] = pyro.sample("spread", LogNormal(SPREAD[0] * one.expand(d), SPREAD[1] * one).to_event(1))
        sites["w"] = pyro.sample("w", Normal(0 * one.expand(self.slope.shape), one).to_event(3))
        ends = LEAST * one.expand(d), 1 - LEAST * one.expand(d)
        rate = pyro.sample("rate", dist.Uniform(*ends).to_event(1)).expand(shape)
        sites["chance"] = pyro.sample("chance", dist.Beta(rate, 1 - rate).to_event(2))  # (region, latent)
        sites["inverse"] = pyro.sample("inverse", Normal(0 * one.expand(d, d), SIZE * one).to_event(2))
        return self._law(sites), sites["chance"].double().clamp(TINY, 1 - TINY)

    def _law(self, sites: dict[str, Tensor]) -> Mechanisms:
        own = {name: sites[name].double() for name in ("width", "spread", "w", "inverse")}
        scale = torch.stack([torch.ones_like(own["width"]), own["width"]])
        slope = self._sizes(sites["lagged"], sites["slab"]) * own["w"] * scale[..., None]
        return Mechanisms(slope, scale, own["spread"], torch.linalg.inv(own["inverse"]), self._basis())

    def story(self, batch: Batch) -> None:
        law, chance = self._globals(batch)
        unmixing = torch.linalg.inv(law.mixing)
        pyro.deterministic("unmixing", unmixing @ self.project.double())
        pyro.deterministic("loadings", self.lift.double() @ law.mixing)
        told = None if batch.x is None else self._y(batch) @ unmixing.mT
        with self.rows(batch):
            acted_on = pyro.sample("acted_on", dist.Bernoulli(chance[self.regions_of(batch)]).to_event(1))
            z = pyro.sample("z", Steps(law, Timeline(*batch.in_time()), acted_on), obs=told)  # (rows, latent)
            pyro.sample("x", self._mixed(z, unmixing), obs=batch.x)

    def model(self, batch: Batch) -> None:
        law, chance = self._globals(batch)
        with self.rows(batch):
            rows = Law((len(batch),), (self.config["features"],), lambda _: self._log_likelihood(batch, law, chance))
            pyro.sample("x", rows, obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        odds = self._odds(batch, self._law(kept), kept["chance"].double().clamp(TINY, 1 - TINY))
        with self.rows(batch):
            pyro.sample("acted_on", dist.Bernoulli(logits=odds).to_event(1))

    def guide(self, batch: Batch) -> None:
        pyro.sample("spread", self.spread().to_event(1))
        self.drawn.sample()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_t | the row of its series before, global sites); what is acted on summed out."""
        return self._log_likelihood(batch, self._law(sites), sites["chance"].double().clamp(TINY, 1 - TINY))

    def _log_likelihood(self, batch: Batch, law: Mechanisms, chance: Tensor) -> Tensor:
        unmixing = torch.linalg.inv(law.mixing)
        z = self._y(batch) @ unmixing.mT
        own = chance[self.regions_of(batch)]
        log = self._densities(batch, law, z) + torch.stack([(-own).log1p(), own.log()], -1)
        volume: Tensor = self._mixed(z, unmixing).log_prob(batch.x.double())
        return log.logsumexp(-1).sum(-1) + volume

    def _odds(self, batch: Batch, law: Mechanisms, chance: Tensor) -> Tensor:
        """(rows, latent) log odds of being acted on."""
        log = self._densities(batch, law, self._y(batch) @ torch.linalg.inv(law.mixing).mT)
        return log[..., 1] - log[..., 0] + chance[self.regions_of(batch)].logit()

    def _densities(self, batch: Batch, law: Mechanisms, z: Tensor) -> Tensor:
        """(rows, latent, mechanism) log-densities of z (rows, latent)."""
        line = Timeline(*batch.in_time())
        return line.back(law.log_densities(line.lay(z), line))

    def regions_of(self, batch: Batch) -> Tensor:
        """(rows,) of each row's action."""
        assert batch.aux is not None
        return Regions(self.centre.double(), self.reach.double()).of(batch.aux.double())

    # -- read-outs ---------------------------------------------------------------------------------------------

    def chance(self) -> Tensor:
        """(region, latent) probabilities that actions act on a latent."""
        return self.drawn.chance.mean(0)

    def drawn_unmixing(self) -> Tensor:
        return self.drawn.inverse.double()

    @torch.no_grad()
    def beside(self, batch: Batch) -> dict[str, Tensor]:
        return {"acted_on": self._odds(batch, self._mode(), self.chance()).sigmoid().to(batch.dtype)}

    def _mode(self) -> Mechanisms:
        """Means of the posterior about the most probable latents."""
        mixing = torch.linalg.inv(self.unmixing.double())
        spread = self.spread.loc.detach().double().exp()
        return Mechanisms(self.slope.double(), self.scale.double(), spread, mixing, self._basis())

    @torch.no_grad()
    def stepped(self, batch: Batch) -> Stepped:
        """`hit` are latents on which a row's action acts more probably than not, before the row is seen."""
        line, chance = Timeline(*batch.in_time()), self.chance()[self.regions_of(batch)]
        y, own, follows = line.lay(self._y(batch)), line.lay(chance), line.since > 0
        z, before = y @ self.unmixing.double().mT, y.roll(1, 0)[follows]
        below = torch.special.ndtr(self._mode().standardised(z[follows], before))
        own = own[follows]
        mixed = below[..., 0] + own * (below[..., 1] - below[..., 0])
        return Stepped(mixed, (own > 0.5).double(), z.roll(1, 0)[follows], z[follows])

    @torch.no_grad()
    def action_patterns(self, batch: Batch) -> Patterns:
        line = Timeline(*batch.in_time())
        z = line.lay(self._y(batch)) @ self.unmixing.double().mT
        log, region = self._mode().log_densities(z, line), line.lay(self.regions_of(batch))
        at = line.since > 0
        ratio, rate = (log[..., 1] - log[..., 0])[at], self.drawn.rate.mean(0)
        return Patterns(*interactions.patterns(ratio, region[at], len(self.centre), rate))

    # -- from data ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The most probable unmixing, then draws by Gibbs sampling from there."""
        batch, own = data.tensors(self.project.device, torch.float64), self.config
        order, since = batch.in_time()
        batch = batch.take(order)
        follow, least = int((since > 0).sum()), 4 * own["latents"] * (own["latents"] + 2)
        if follow < least:
            reject("series", f"{follow} rows after others", f"{least} or more")
        assert batch.aux is not None
        for name, values in zip(data.aux_names, batch.aux.mT, strict=True):
            if (values == values[0]).all():
                reject("aux", f"{name!r}, which is {float(values[0]):.4g} in all rows", "actions that vary")
        self.put(**interactions.regions(batch.aux, own["regions"])._asdict())
        self.put(**frame(batch.x, torch.ones_like(batch.env, dtype=torch.bool), own["latents"], FLOOR)._asdict())
        parts = self._y(batch), since, self.regions_of(batch), own["regions"]
        soft = own["intervention"] == "soft"
        acted = Acted(*parts, soft=soft, edge=own["edge_probability"])
        found = construction.best(acted, generator)
        drawn = interaction_draws.draws(found, DRAWS, generator)
        sites = {"inverse": drawn.unmixing, "width": drawn.width, "lagged": drawn.graph, "slab": drawn.slab}
        sites |= {"w": drawn.weight, "rate": drawn.rate, "chance": drawn.chance}
        self._settle(found.found.unmixing, found.rows.basis, drawn.spread, **sites)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("voronoi_actions", seed=seed, rows=600, latents=2, features=4, series=3)
        return cls.from_data(data, regions=16), data

    studies = (ActedSteps("voronoi_actions", {"rows": 5_000}),)


if __name__ == "__main__":
    run(Biscuit)
