"""CITRIS, linear mixing: latents of time series, told apart by steps in which some of them are known targets.

    lagged_jk ~ Bernoulli(edge_probability)                                           (parent, child)
    slab_k ~ uniform on 3, 1, .3, .1;  width_k ~ LogNormal(0, 1.5^2)                  (latent,)
    spread_k ~ LogNormal(1, 2^2)                                                      (latent,)
    w_akf ~ N(0, 1), of latents that are no targets (a = 0) and that are (1)     (mechanism, latent, basis)
    mixing A_jk ~ N(0, 1)                                                             (latent, latent)
    z_tk ~ N(sum_f size_kf w_akf phi_f(z_t-1), scale_ak^2), a as step t is       (data, latent)
    x_t = lift A z_t + offset + r_t,  r_t ~ N(0, tau^2) off the span of A             (data, feature)

Environments name the sets of latents that are targets in a row, of what came between the row before and it. scale is
width_k of targets and 1 of others, and multiplies the weights of targets; size_kf is slab_k of functions phi_f of k's
parents alone, 10 of the constant and 0 of others; of targets of intervention="perfect", which lose their parents, of
all but the constant. phi are five functions of each latent and six of each two (`exact.basis_regression`), of the most
probable latents before. A series' first row is N(0, spread_k^2).

Sets of parents, slabs and weights are summed out (`exact.target_steps`) while each chain climbs to the most probable
unmixing, by Newton's method from a closed form and random starts (`constructions.target_steps`); its guide holds draws
of all sites, of the unmixing from a normal approximation about the maximum, of the rest exactly given that.

*Identified:* latents by name, up to scale and shift, if each is a target in some steps and not in others, no two always
together or always in turn, and its law then changes (Lippe et al. 2022, theorem 1, whose minimal causal variables, what
interventions act on, are here whole latents). Latents that are never targets are named by the verdict: they are known
as a block alone. The graph `lagged` comes with probabilities and is not claimed.

Lippe, Magliacane, Löwe, Asano, Cohen & Gavves (2022), CITRIS: causal identifiability from temporal intervened
sequences.

*Differs from the paper in* a linear mixing without noise within its span, in place of an autoencoder or a flow; one
latent for each target, in place of blocks assigned to it; sums over parents, and a posterior, in place of a maximum.

Longer than other models because the evidence of targets, of turns and of laws from step to step is read out for the
verdict. Functions of latents before are not exact for any mechanism: their test lets correlations of .1 be, and behind
a mixing that bends, latents are found as far as it is linear alone, which the verdict says.

*For a variant, copy this file and change* `story`: the law of a latent given those before, and with it sums over its
weights in `pyrocrl.exact.target_steps`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import target_steps as construction
from pyrocrl.constructions.subspaces import FLOOR, frame
from pyrocrl.constructions.target_steps import SPREAD, WIDTH
from pyrocrl.dists import LogNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import target_steps
from pyrocrl.exact.switching import Timeline
from pyrocrl.exact.target_steps import MOST, SLABS
from pyrocrl.lab.studies.linked_rows import TargetSteps
from pyrocrl.options import Bounds, Share, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.parts.target_steps import Mechanisms, StepReadouts, Steps, step_buffers
from pyrocrl.parts.unmixed import Unmixed, frame_buffers
from pyrocrl.program import Environments, Features, TargetMatrix, check_sizes, checked_targets
from pyrocrl.readouts import Stepped

DRAWS = 200
LAW = "each latent depends on the row before and on whether it is a target itself, with normal innovations of its own"
NOISELESS = "features have neither noise of their own nor other latents among the latents"
NEEDS = ("targets_in_steps", "targets_act", "no_turn_fits")


class Citris(Unmixed, StepReadouts, Program):
    card = ModelCard(
        name="citris",
        title="CITRIS, linear mixing",
        family="time",
        summary="Latents of time series that drive each other from step to step, told apart by known targets of steps.",
        when=(
            "rows are steps of series and it is known which latents were intervened on in each",
            "targets act on other latents in the same step, or features bend what they measure",
        ),
        assumes=("x is linear in the latents", LAW, NOISELESS),
        claims=(Claim("latents", ("scale", "shift"), (LAW, NOISELESS), NEEDS),),
        references=(
            Reference(
                "Lippe, Magliacane, Löwe, Asano, Cohen & Gavves",
                2022,
                "CITRIS: causal identifiability from temporal intervened sequences",
                "ICML",
                "https://arxiv.org/abs/2202.03169",
            ),
        ),
        differs=(
            "a linear mixing, without noise within its span, in place of an autoencoder or a flow",
            "one latent for each target, in place of blocks of latents that are assigned to it",
            "a posterior over unmixing, mechanisms and parents in place of a maximum",
        ),
        needs_env=True,
        needs_series=True,
        targets=("known",),
        approximate="The unmixing is drawn from a normal approximation about its maximum, and functions of latents "
        "before are those of the most probable latents; all else is exact given these.",
    )
    recipe = Recipe.unannealed(epochs=1, batch_size=None, lr=1e-4, held_out=0.05, dtype=torch.float64, chains=3)
    checks = {"nearly_dynamics": (LAW,), "own_targets": (LAW,), "noiseless": (NOISELESS,), "factors": ()}
    new_rows = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "lagged": Site(("parent", "child"), discrete=True),
        "width": Site(("latent",)),
        "unmixing": Site(("latent", "feature"), {"latent": 1}, unit=-1),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[int, Bounds(2, MOST), "how many latents there are, each a target in some steps"],
        environments: Environments,
        target_matrix: TargetMatrix,
        targets: Annotated[Literal["known"], "what is known of targets: their latents' names"] = "known",
        intervention: Annotated[
            Literal["perfect", "soft"], "whether targets lose their parents, or keep them"
        ] = "perfect",
        edge_probability: Annotated[
            Share, "a priori, that a latent depends on another, or itself, in the row before"
        ] = 0.3,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}.

        Raises InputError for more latents than features or 8, and for a matrix of another shape or other numbers.
        """
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        hit = checked_targets(target_matrix, latents, environments, least=0, observational=False)
        square = (latents, latents)
        basis = target_steps.places(latents).shape[0]
        check_memory("latents", latents, 16.0 * DRAWS * latents * basis)
        self.spread = LogNormalBlock(latents)
        shapes = {"mixing": square, "width": (latents,), "lagged": square, "slab": (latents,)}
        self.drawn = DrawnBlock(DRAWS, **shapes, w=(2, latents, basis)).double()
        self.drawn.mixing.copy_(torch.eye(latents))
        self.drawn.width.fill_(1.0)
        self.register_buffers(
            hit=torch.as_tensor(hit).double(),  # (env, latent)
            **frame_buffers(features, latents),
            **step_buffers(latents),
        )

    # -- the story, which is what is fitted --------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, chance = self.config["latents"], self.config["edge_probability"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        lagged = pyro.sample("lagged", dist.Bernoulli(chance * one.expand(d, d)).to_event(2))  # (parent, child)
        slab = pyro.sample("slab", dist.Categorical(logits=0 * one.expand(d, len(SLABS))).to_event(1))
        width = pyro.sample("width", LogNormal(WIDTH[0] * one.expand(d), WIDTH[1] * one).to_event(1))
        spread = pyro.sample("spread", LogNormal(SPREAD[0] * one.expand(d), SPREAD[1] * one).to_event(1))
        w = pyro.sample("w", Normal(0 * one.expand(self.slope.shape), one).to_event(3))
        mixing = pyro.sample("mixing", Normal(0 * one.expand(d, d), one).to_event(2)).double()
        unmixing = torch.linalg.inv(mixing)
        pyro.deterministic("unmixing", unmixing @ self.project.double())
        pyro.deterministic("loadings", self.lift.double() @ mixing)
        scale = torch.stack([torch.ones_like(width), width]).double()
        slope = self._sizes(lagged, slab) * w.double() * scale[..., None]
        law = Mechanisms(slope, scale, spread.double(), mixing, self._basis())
        told = None if batch.x is None else self._y(batch) @ unmixing.mT
        with self.rows(batch):
            steps = Steps(law, Timeline(*batch.in_time()), self.hit.double()[batch.env])
            z = pyro.sample("z", steps, obs=told)  # (rows, latent)
            pyro.sample("x", self._mixed(z, unmixing), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("spread", self.spread().to_event(1))
        self.drawn.sample()

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def stepped(self, batch: Batch) -> Stepped:
        line, hit = Timeline(*batch.in_time()), self.hit.double()[batch.env]
        y, follows = line.lay(self._y(batch)), line.since > 0
        z, before = y @ self.unmixing.double().mT, y.roll(1, 0)[follows]
        own = line.lay(hit)[follows]
        mixing = torch.linalg.inv(self.unmixing.double())
        law = Mechanisms(self.slope.double(), self.scale.double(), self.unit.double(), mixing, self._basis())
        mean, scale = law.law(before, own)
        return Stepped(torch.special.ndtr((z[follows] - mean) / scale), own, z.roll(1, 0)[follows], z[follows])

    def targets_act(self, batch: Batch) -> Tensor:
        evidence, found = self._evidence(batch)
        return construction.acting(evidence, found)

    def turned_by(self, batch: Batch) -> Tensor:
        evidence, found = self._evidence(batch)
        return construction.turning(evidence, found)

    def _evidence(self, batch: Batch) -> tuple[construction.StepsEvidence, construction.StepsFound]:
        """Of these rows, and where the chain is."""
        width, spread = self.scale[1].double().log(), self.spread.loc.detach().double()
        evidence = construction.StepsEvidence.of(self._steps(batch), self._basis())
        return evidence, construction.StepsFound(self.unmixing.double(), width, spread, width.sum())

    def _steps(self, batch: Batch) -> construction.Steps:
        order, since = batch.in_time()
        soft, edge = self.config["intervention"] == "soft", self.config["edge_probability"]
        return construction.Steps(self._y(batch)[order], batch.env[order], since, self.hit.double(), soft, edge)

    # -- from data ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The most probable unmixing, then draws about it."""
        batch, d = data.tensors(self.project.device, torch.float64), self.config["latents"]
        follow, least = int((batch.in_time()[1] > 0).sum()), 4 * d * (d + 2)
        if follow < least:
            reject("series", f"{follow} rows after others", f"{least} or more")
        self.put(**frame(batch.x, torch.ones_like(batch.env, dtype=torch.bool), d, FLOOR)._asdict())
        found, evidence = construction.best(self._steps(batch), generator)
        drawn = construction.draws(found, evidence, DRAWS, generator)
        mixing = torch.linalg.inv(drawn.unmixing)
        sites = {"mixing": mixing, "width": drawn.width, "lagged": drawn.graph, "slab": drawn.slab, "w": drawn.weight}
        self._settle(evidence.basis.unmixing, evidence.basis, drawn.spread, **sites)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("voronoi_numeric", seed=seed, rows=600, latents=2, features=4, series=3, targets="single")
        return cls.from_data(data), data

    studies = (
        TargetSteps("voronoi_numeric"),
        TargetSteps("voronoi_numeric", {"targets": "codes", "rows": 5_000}),
        TargetSteps("voronoi_numeric", {"kept": 0.5, "rows": 5_000}, {"intervention": "soft"}),
        TargetSteps("voronoi_numeric", {"mixing": "leaky", "rows": 5_000}, seeds=3),
    )


if __name__ == "__main__":
    run(Citris)
