"""Effects never measured: a Gaussian process over contexts and perturbations with a neural tangent kernel.

    block ~ N(0, 9), log_amplitude ~ N(0, 1), log_noise ~ N(-1.5, 2.25): the kernel's       (block,), (), ()
    variance_j ~ InverseGamma(2, 2 unit_j^2)                                                (feature,)
    profile_j ~ N(base_j, variance_j K) over all pairs                                      (feature, pair)
    z_i = profile at the pair of row i                                                      (data, feature)
    x_ij ~ N(z_ij, noise variance_j), noise = .01 + exp(log_noise)                          (data, feature)

A pair (c, d) is a context c, told as `batch`, under a perturbation d, told as `env`; with `reference` environment 0 is
the control, whose profiles are the contexts' levels:

    K((c, d), (c', d')) = 100 [c = c'] + exp(log_amplitude) (.99 T_L(t) + .01 [c = c', d = d'])
    t = w_1 [c = c'] + w_2 near_cc' + w_3 [d = d'] + w_4 like_dd',   w = softmax(block)

the second part of K between perturbed pairs alone, the first with `reference` alone. T_L is the neural tangent kernel
of L = `depth` hidden layers, 1 at t = 1. near is the cosine of two contexts' control profiles about their mean over
contexts. like is the cosine of two perturbations' signatures, which are profiles less the control of their context,
averaged over contexts that have both, to which the cosine of their mean signatures counts as three contexts more;
whatever was never measured is like itself alone. base_j is the control's mean, or 0; unit_j the deviation of
signatures. These, near and like are taken from the rows before the fit and are constants of the story.

`model` keeps block, log_amplitude and log_noise, and integrates the rest out exactly: one Cholesky factor of K between
the pairs that were measured serves all features, and leaves Student's t for each. `recover` draws variances and then
the profiles of all pairs, measured or not, exactly. Replicates of a pair stay rows of their own.

*Identified:* nothing. An effect that was never measured is predicted, not identified: it rests on the prior, that
perturbations act alike in similar contexts and similar perturbations act alike.

Radhakrishnan, Stefanakis, Belkin & Uhler (2022), Simple, fast, and flexible framework for matrix completion with
infinite width neural networks; Jacot, Gabriel & Hongler (2018), Neural tangent kernel; Squires, Shen, Agarwal, Shah &
Uhler (2022), Causal imputation via synthetic interventions.

*Differs from the paper in* noise, weights of the blocks and scales of features that are learned, by the marginal
likelihood, where the paper interpolates under fixed ones; in intervals; and in control profiles as rows.

Longer than other models because it has the law of a new row beside the story, and refuses tables that it cannot fill.

*For a variant, copy this file and change* `_alike`: what makes pairs similar.
"""

from __future__ import annotations

from typing import Annotated, Any

import pyro
import torch
from pyro.distributions import StudentT
from torch import Tensor, nn

from pyrocrl import Batch, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import pairs
from pyrocrl.constructions.optimise import optimum
from pyrocrl.dists import InverseGamma, Law, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import gp
from pyrocrl.lab.studies.imputations import Imputation, MeasuredEffects
from pyrocrl.options import Bounds, Size
from pyrocrl.parts.observed_equations import ObservedLatents
from pyrocrl.program import check_whole

MOST_PAIRS = 4_000  # profiles of all pairs are drawn together
LEVEL, OWN, FLOOR = 100.0, 0.01, 0.01  # variance of levels; a pair's own share; least noise
SITES: dict[str, Any] = {"block": slice(0, 4), "log_amplitude": 4, "log_noise": 5}  # of the guide, their places in it
PRIOR = ((0.0, 0.0, 0.0, 0.0, 0.0, -1.5), (3.0, 3.0, 3.0, 3.0, 1.0, 1.5))  # their means and deviations
LEAST = 4  # effects to learn from
EDGE = 1e-6  # of correlations, from singular
STEPS = 40  # of the start's optimiser


class CausalImputation(ObservedLatents, Program):
    card = ModelCard(
        name="causal_imputation",
        title="Causal imputation",
        family="imputation",
        summary="Effects of perturbations in contexts where they were never measured, with intervals: a Gaussian "
        "process over pairs whose kernel is a wide network's.",
        when=(
            "perturbations were measured in some of several contexts, such as drugs in cell types, and their effects "
            "in the others are wanted",
            "the effects must be identified, not predicted, or a context or a perturbation was never measured at all",
        ),
        assumes=(
            "similar perturbations act alike, and perturbations act alike in similar contexts",
            "which pairs were measured does not depend on their effects",
            "features are independent given the kernel that they share, and noise is Gaussian",
        ),
        references=(
            Reference(
                "Radhakrishnan, Stefanakis, Belkin & Uhler",
                2022,
                "Simple, fast, and flexible framework for matrix completion with infinite width neural networks",
                "PNAS",
                "https://arxiv.org/abs/2108.00131",
            ),
            Reference(
                "Jacot, Gabriel & Hongler",
                2018,
                "Neural tangent kernel: convergence and generalization in neural networks",
                "NeurIPS",
                "https://arxiv.org/abs/1806.07572",
            ),
            Reference(
                "Squires, Shen, Agarwal, Shah & Uhler",
                2022,
                "Causal imputation via synthetic interventions",
                "CLeaR",
                "https://arxiv.org/abs/2011.03127",
            ),
        ),
        differs=(
            "noise, weights of the kernel's blocks and scales of features are learned, where the paper interpolates",
            "intervals of every effect",
            "control profiles are rows, so that their noise is in the effects of their context",
        ),
        needs_env=True,
    )
    recipe = Recipe.unannealed(
        epochs=20, batch_size=None, lr=0.01, held_out=0.05, patience=None, keep="last", dtype=torch.float64, chains=2
    )
    uses_rows = False
    imputes = True
    constants = ("unit", "near", "like")
    sites = {
        "z": Site(("data", "latent")),
        "block": Site(("block",)),
        "variance": Site(("feature",)),
        "profile": Site(("feature", "pair")),
    }

    def __init__(
        self,
        features: Annotated[int, Bounds(2), "columns of x, which are the latents; read off the data"],
        latents: Annotated[int, Bounds(2), "as many as features"],
        environments: Annotated[int, Bounds(2, MOST_PAIRS), "perturbations and control; read off the data"],
        batches: Annotated[int, Bounds(2, MOST_PAIRS), "contexts; read off the data"],
        measured: Annotated[int, Bounds(1, MOST_PAIRS), "how many pairs rows are of; read off the data"],
        reference: bool = True,
        depth: Size = 5,
    ) -> None:
        """reference: whether environment 0 is the control. depth: hidden layers of the network.

        Raises InputError unless latents = features, and for more than 4,000 pairs of a context and an environment.
        """
        super().__init__()
        check_whole("depth", depth, 1, 100)
        if latents != features:
            reject("latents", repr(latents), f"{features}, as many as features: each is a profile's true value")
        if batches * environments > MOST_PAIRS:
            reject("batches", f"{batches} x {environments} environments", f"{MOST_PAIRS} pairs at most")
        self.loc = nn.Parameter(torch.tensor(PRIOR[0]))
        self.log_scale = nn.Parameter(torch.full((len(PRIOR[0]),), -3.0))
        double = torch.float64
        self.register_buffers(
            grid=torch.arange(batches * environments),
            at=torch.zeros(measured, dtype=torch.long),  # place of a measured pair in the grid
            count=torch.zeros(measured, dtype=double),  # its rows; the last ones may be empty
            mean=torch.zeros(measured, features, dtype=double),  # of its rows, less base
            square=torch.zeros(features, dtype=double),  # squared deviations of rows from their pair's mean
            base=torch.zeros(features, dtype=double),
            unit=torch.ones(features, dtype=double),  # deviation of signatures
            prior=torch.tensor(PRIOR, dtype=double),
            near=torch.eye(batches, dtype=double),
            like=torch.eye(environments, dtype=double),
        )

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        block, log_amplitude, log_noise = self._kernel_prior()
        with pyro.plate("feature", len(self.unit), dim=-1):
            rate = self._rate()
            variance = pyro.sample("variance", InverseGamma(torch.full_like(rate, gp.SHAPE), rate))  # (feature,)
            root = torch.linalg.cholesky(self._kernel(block, log_amplitude, self.grid, self.grid))  # (pair, pair)
            base = self.base.double()[:, None].expand(-1, len(root))
            profile = pyro.sample("profile", gp.Field(base, variance, root))  # (feature, pair)
        with self.rows(batch):
            z = pyro.deterministic("z", profile[:, self._place(batch)].mT, event_dim=1)  # (rows, feature)
            pyro.sample("x", self._row(z, variance, log_noise), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        known = self._known(*self._kernel_prior())
        law = Law((), (len(batch), self.config["features"]), lambda _: known.log_evidence())
        pyro.sample("x", law, obs=batch.x)  # all rows at once, by their pairs' means

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        known = self._known(**kept)
        prior, cross = (
            self._kernel(kept["block"], kept["log_amplitude"], self.grid, to) for to in (self.grid, self.at)
        )
        with pyro.plate("feature", len(self.unit), dim=-1):
            variance = pyro.sample("variance", known.variance())
            pyro.sample("profile", known.field(prior, cross, variance, self.base.double()))

    def guide(self, batch: Batch) -> None:
        for name, own in SITES.items():
            law = Normal(self.loc[own], self.log_scale[own].exp())
            pyro.sample(name, law.to_event(1) if name == "block" else law)

    def _kernel_prior(self) -> list[Tensor]:
        """block (block,), log_amplitude () and log_noise ()."""
        mean, sd = self.prior.to(self.loc.dtype)
        laws = {name: Normal(mean[own], sd[own]) for name, own in SITES.items()}
        return [pyro.sample(name, law.to_event(law.loc.dim())) for name, law in laws.items()]

    def _known(self, block: Tensor, log_amplitude: Tensor, log_noise: Tensor) -> gp.Known:
        """What the rows that were gathered tell under this kernel."""
        rows = gp.Rows(self.at, self.count.double(), self.mean.double(), self.square.double())
        noise = FLOOR + log_noise.double().exp()
        return gp.Known(self._kernel(block, log_amplitude, self.at, self.at), noise, rows, self._rate())

    def _kernel(self, block: Tensor, log_amplitude: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """(left, right) covariances of places in the grid, in units of a feature's variance."""
        count, blocks = self.config["environments"], block.double().softmax(-1)
        c, d, c2, d2 = left // count, left % count, right // count, right % count
        context, drug = c[:, None] == c2, d[:, None] == d2
        t = sum(w * k for w, k in zip(blocks, self._alike(c, d, c2, d2), strict=True))
        acts = (1 - OWN) * gp.ntk(t, self.config["depth"]) + OWN * (context & drug)
        acts = log_amplitude.double().exp() * acts
        if not self.config["reference"]:
            return acts
        return LEVEL * context + acts * ((d > 0)[:, None] & (d2 > 0))

    def _alike(self, c: Tensor, d: Tensor, c2: Tensor, d2: Tensor) -> tuple[Tensor, ...]:
        """The blocks of the kernel's argument, each (left, right) and 1 between a pair and itself."""
        near, like = self.near.double(), self.like.double()
        return c[:, None] == c2, near[c][:, c2], d[:, None] == d2, like[d][:, d2]

    def _rate(self) -> Tensor:
        return gp.SHAPE * self.unit.double().square()

    def _row(self, z: Tensor, variance: Tensor, log_noise: Tensor) -> Any:
        return Normal(z, ((FLOOR + log_noise.double().exp()) * variance).sqrt()).to_event(1)

    def _place(self, batch: Batch) -> Tensor:
        """(rows,) places in the grid of pairs."""
        return batch.group * self.config["environments"] + batch.env

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, feature) posterior mean of the profile of each row's pair."""
        return self._new_row(self._place(batch), *(self.loc[own] for own in SITES.values()))[0].to(batch.dtype)

    @torch.no_grad()
    def impute(self, batch: Batch, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Student's law of a new row at each of these places of the grid, context * environments + environment, given
        all rows of `batch`: mean and scale (place, feature), degrees of freedom ()."""
        self.gather(batch)
        return self._new_row(places, *(self.loc[own] for own in SITES.values()))

    @torch.no_grad()
    def draw_profiles(self, batch: Batch, places: Tensor, draws: int) -> Tensor:
        """(draw, feature, place) profiles at these places of the grid, drawn jointly given all rows of `batch`, at the
        guide's mean. Errors of features go together as signatures that were measured do (correlations of their means,
        shrunk as in Ledoit & Wolf 2004), which leaves the means as they are. In the story features are apart, and what
        is summed over them, such as a correlation, would be too sure."""
        from sklearn.covariance import ledoit_wolf

        self.gather(batch)
        block, log_amplitude, log_noise = (self.loc[own] for own in SITES.values())
        known = self._known(block, log_amplitude, log_noise)
        prior, cross = (self._kernel(block, log_amplitude, places, to) for to in (places, self.at))
        field = known.field(prior, cross, torch.ones_like(known.rate), self.base.double())
        left = self._signatures(known, block, log_amplitude)  # (pair, feature)
        together = torch.as_tensor(ledoit_wolf(left.cpu().numpy(), assume_centered=True)[0]).to(left)
        size = together.diagonal().sqrt()
        together = together / (size[:, None] * size) + EDGE * torch.eye(len(size)).to(left)
        mixed = torch.linalg.cholesky(together / (1 + EDGE))
        noise = mixed @ torch.randn(draws, *field.mean.shape).to(left) @ field.root.mT
        return field.mean + known.variance().sample((draws,)).sqrt()[..., None] * noise

    def _signatures(self, known: gp.Known, block: Tensor, log_amplitude: Tensor) -> Tensor:
        """(pair, feature) posterior means of the signatures that were measured, in units of features' deviations."""
        count, first = self.config["environments"], int(self.config["reference"])
        at = self.at[known.there]
        at = at[at % count >= first]
        to = [self._kernel(block, log_amplitude, places, self.at) for places in (at, at - at % count)]
        mean, level = (known.row(cross.new_ones(len(cross)), cross)[0] for cross in to)
        return (mean - first * level) / (known.rate / known.shape).sqrt()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | profile, variance, noise), or of a new row given those that were gathered."""
        if "profile" in sites:
            z = sites["profile"][:, self._place(batch)].mT
            return self._row(z, sites["variance"], sites["log_noise"]).log_prob(batch.x)
        mean, scale, freedom = self._new_row(self._place(batch), *(sites[name] for name in SITES))
        return StudentT(freedom, mean, scale).log_prob(batch.x.double()).sum(-1)

    def _new_row(self, place: Tensor, block: Tensor, log_amplitude: Tensor, log_noise: Tensor) -> tuple[Tensor, ...]:
        known = self._known(block, log_amplitude, log_noise)
        prior, cross = (self._kernel(block, log_amplitude, self.grid, to) for to in (self.grid, self.at))
        mean, scale, freedom = known.row(prior.diagonal(), cross)
        return self.base.double() + mean[place], scale[place], freedom

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        """Raises InputError for fewer than two contexts, for contexts without rows of the control, and for fewer than
        four effects."""
        if len(data.batch_names) < 2:
            reject("batch", "one context", "two or more (in the shell --batch COLUMN)")
        known = set(zip(data.batch.tolist(), data.env.tolist(), strict=True))
        if data.control is not None:
            lacks = [name for c, name in enumerate(data.batch_names) if (c, 0) not in known]
            if lacks:
                reject("control", f"no row of {data.control!r} in context {lacks[0]!r}", "rows of it in every context")
        if (found := sum(d > 0 or data.control is None for _, d in known)) < LEAST:
            reject("data", f"{found} effects", f"{LEAST} pairs of a context and a perturbation at least")
        read = {"latents": data.features, "reference": data.control is not None, "measured": len(known)}
        return super().from_data(data, **(read | options))

    @torch.no_grad()
    def gather(self, batch: Batch) -> None:
        """Keep what these rows say of their pairs, and which contexts and which perturbations are alike."""
        place = self._place(batch)
        if (found := len(place.unique())) > len(self.at):
            reject("data", f"rows of {found} pairs", f"{len(self.at)} at most, as the program was built for")
        batches, envs, reference = (self.config[name] for name in ("batches", "environments", "reference"))
        self.put(**pairs.gather(batch.x.double(), place, batches, envs, reference, len(self.at)))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The mode, from a start of its own, and its curvature."""
        self.gather(data.tensors(dtype=torch.float64))
        mean, sd = self.prior.double()

        def loss(at: Tensor) -> Tensor:
            evidence = self._known(*(at[own] for own in SITES.values())).log_evidence()
            return (((at - mean) / sd).square().sum() / 2 - evidence) / self.count.sum()

        start = mean + 0.3 * torch.randn(len(mean), generator=generator, dtype=mean.dtype)
        mode, curvature = optimum(loss, start, STEPS)
        scale = (curvature.diagonal() * self.count.double().sum()).clamp_min(1e-2).rsqrt()
        self.put(loc=mode, log_scale=scale.log())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("context_effects", seed=seed, contexts=6, perturbations=7, features=10, measured=0.7)
        return cls.from_data(data, depth=2), data

    studies = (
        Imputation("context_effects", {"measured": 0.6}),
        Imputation("context_effects", {"measured": 0.15}),
        MeasuredEffects("l1000", {"fold": "10 within contexts"}, seeds=10),
        MeasuredEffects("l1000", {"fold": "2 a context fitted"}),
    )


if __name__ == "__main__":
    run(CausalImputation)
