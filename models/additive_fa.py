"""Factor analysis in which features are sums of smooth curves of single latents.

    log_concentration ~ N(0, 1)                                                           ()
    rate_k ~ Beta(exp(log_concentration) / latents, 1)                                    (latent,)
    mask_jk ~ Bernoulli(rate_k), no latent of one feature                                 (feature, latent)
    coefficients_jkb ~ N(0, slab^2 s_b) where mask_jk is 1, 0 elsewhere                   (feature, latent, basis)
    g_jk(u) = sum_b coefficients_jkb phi_b(u)
    variance_j ~ InverseGamma(1.5, rate)                                                  (feature,)
    z_ik ~ U(0, 1)                                                                        (data, latent)
    x_ij ~ N(sum_k g_jk(z_ik), variance_j)                                                (data, feature)

The phi_b are cubic splines from a line to ever rougher ones, and s_b falls with their roughness, sum_b s_b = 1
(`exact.curves`). rate is summed out. Later features may be curves of several latents, and those of one alone, its
anchors, may be monotone or not. Features are standardised; slab and `rate` are in units of their deviations.

Each chain starts from independent parts of the rows, each laid out along a curve (`constructions.independent_curves`),
with one latent to as many as are offered; what rows come to, less what curves cost, decides how many are in use: that
chains agree on it is the evidence. From there a Gibbs sampler goes on (`exact.additive_factors`): mask with curves
summed out, for given z the model is linear in coefficients, and z_ik on a grid. The guide draws mask, coefficients and
variances together from the run, z on a grid by mean field given these, and log_concentration from a normal law that is
fitted.

*Identified:* latents up to permutation and a monotone map of each, the mask up to permutation, if every latent has two
anchors and features tell its values apart. The uniform law is a convention that settles the monotone map but for its
direction: another law bends the curves. That latents are independent, that effects add up and that noise is Gaussian is
put to the test. What no data tell: a latent that features show folded, each a curve of |2u - 1| alone, is no other than
that fold, which is a latent as good. A closed curve, as of sin(2 pi u) and cos(2 pi u) alone, has no beginning: then
the verdict refuses, as where a latent has no anchors. There lines of latents that are uniform may still be told, as
sources that are not normal; nothing is claimed of it. Of normal latents without anchors any rotation fits as well.

Xu, Herring & Dunson (2023), Identifiable and interpretable nonparametric factor analysis.

*Differs from the paper in* a posterior by Gibbs sampling, splines with a mask in place of anchors that are told, a
start by independent components, the uniform law as a prior alone, without a penalty of draws' law.

*For a variant, copy this file and change* `story`: the law of `z` or of `coefficients`, and with it `Sampler` in
`pyrocrl.exact.additive_factors` and `latent_shares` in `pyrocrl.exact.curve_latents`.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import independent_curves
from pyrocrl.dists import InverseGamma, Normal, SpikeSlab
from pyrocrl.exact.additive_factors import SHAPE, Sampler
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.curve_latents import OnGrid, latent_shares
from pyrocrl.exact.curves import BASIS, basis, constants
from pyrocrl.lab.studies.nonlinear import Curves
from pyrocrl.options import Positive, check_memory
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

INDEPENDENT, ADDITIVE = "latents are independent", "features are sums of curves of single latents"
NOISE, WHOLE = "noise is independent and Gaussian", "a latent that shows only folded is its fold"
GIVEN, NEEDS = (INDEPENDENT, ADDITIVE, NOISE, WHOLE), ("pure_features", "values_told", "curves_bent", "number_apart")
BURN, KEPT = 50, 100  # sweeps
SWEEPS, READ = 3, 8  # of mean field, in the guide and for read-outs
POINTS = 512  # of a lattice, over which laws of features are averaged
LEAST_ROWS, MOST_ROWS = 30, 10_000  # of a fit, and of the run of a sampler; more are drawn from
AT_ONCE = 20_000  # rows that are read at once


class AdditiveFA(Program):
    card = ModelCard(
        name="additive_fa",
        title="Additive factor analysis",
        family="factor analysis",
        summary="Each feature is a sum of smooth curves of few independent latents, monotone or not; features of one "
        "latent alone identify it.",
        when=(
            "features bend with latents, effects of latents add up, and some features depend on one latent alone",
            "features are lines of latents (`ssl_fa`, `spike_slab_fa`), or latents act together on features: then "
            "`sparse_vae`",
        ),
        assumes=("curves are smooth", ADDITIVE, INDEPENDENT),
        claims=(
            Claim("latents", ("permutation", "elementwise"), GIVEN, NEEDS),
            Claim("mask", ("permutation",), GIVEN, NEEDS),
        ),
        references=(
            Reference(
                "Xu, Herring & Dunson",
                2023,
                "Identifiable and interpretable nonparametric factor analysis",
                "arXiv",
                "https://arxiv.org/abs/2311.08254",
            ),
        ),
        differs=(
            "a posterior over masks, curves and latents by Gibbs sampling",
            "features of one latent alone are found, not told",
            "a start by independent components in place of diffusion maps of all latents at once",
            "the latents' uniform law is a prior alone, without a penalty of draws' law",
        ),
        approximate="How many latents are in use is settled at the start, by an approximate evidence; of rows' latents "
        "the guide has a mean field on a grid. Of more than 10,000 rows curves are told by as many.",
    )
    recipe = Recipe.unannealed(epochs=2, most_steps=10, batch_size=512, lr=0.02, dtype=torch.float64, chains=3)
    checks = {
        "additive": (ADDITIVE,),
        "independent_pairs": (INDEPENDENT,),
        "closely_left": (NOISE,),
        "features": (NOISE,),
    }
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "effect": Site(("feature", "latent"), unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(self, features: Features, latents: Latents, slab: Positive = 0.7, rate: Positive = 0.1) -> None:
        """latents: how many are offered; those that are not needed stay without features.

        slab: prior deviation of a curve; rate: of the variances' prior, which has its mode at rate / 2.5; both in units
        of the features' deviations.
        """
        super().__init__()
        check_sizes(features, latents)
        check_memory("features", features, 8.0 * features * latents * BASIS * (2 * KEPT + 3 * latents * BASIS))
        self.log_concentration = NormalBlock()
        both = (features, latents)
        self.drawn = DrawnBlock(KEPT, mask=both, coefficients=(*both, BASIS), variance=(features,))
        self.drawn.variance.fill_(1.0)
        self.register_buffers(  # means over the draws, and what the start says of other numbers of latents
            curve=torch.zeros(*both, BASIS), noise=torch.ones(features), margin=torch.zeros(())
        )

    def story(self, batch: Batch) -> None:
        features, latents, slab = (self.config[name] for name in ("features", "latents", "slab"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        log_concentration = pyro.sample("log_concentration", Normal(0 * one, one))
        mask = pyro.sample("mask", BuffetColumns(log_concentration, features, latents))  # (feature, latent), no rate
        gate = mask[:, :, None].expand(features, latents, BASIS)
        scale = (slab * constants(batch.dtype, batch.device).share.sqrt()).expand(gate.shape)
        coefficients = pyro.sample("coefficients", SpikeSlab(gate, Normal(0 * scale, scale)).to_event(3))
        pyro.deterministic("effect", coefficients.square().sum(-1).sqrt())  # (feature, latent), deviations of curves
        noise = InverseGamma(SHAPE * one.expand(features), self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        with self.rows(batch):
            z = pyro.sample("z", dist.Uniform(0 * one.expand(latents), one).to_event(1))  # (rows, latent)
            mean = torch.einsum("rkb,jkb->rj", basis(z.clamp(0, 1)), coefficients)  # `do` may set z to any number
            pyro.sample("x", Normal(mean, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("log_concentration", self.log_concentration())
        sites = self.drawn.sample()
        with self.rows(batch):
            pyro.sample("z", OnGrid(latent_shares(batch.x, sites["coefficients"], sites["variance"], SWEEPS)))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        parts = batch.x.split(AT_ONCE)
        return torch.cat([OnGrid(latent_shares(part, self.curve, self.noise, READ)).mean for part in parts])

    def mask(self) -> Tensor:
        return self.drawn.mask.mean(0)

    def pure(self) -> Tensor:
        mask = self.drawn.mask
        return (mask * (mask.sum(-1, keepdim=True) == 1)).mean(0)

    @torch.no_grad()
    def values_apart(self) -> Tensor:
        at = self.curve @ constants(self.curve.dtype, self.curve.device).on_grid.mT
        return torch.stack(
            [torch.cdist(one.mT, one.mT) for one in (at / self.noise.sqrt()[:, None, None]).transpose(0, 1)]
        )

    def number_margin(self) -> Tensor:
        return self.margin

    @torch.no_grad()
    def normal_lines(self) -> Tensor:
        line = constants(self.curve.dtype, self.curve.device).line
        square, error = self.curve.square(), self.drawn.coefficients.var(0)  # of means of draws, about the truth
        whole = ((square - error).sum(-1) / self.noise[:, None]).sum(0)
        along = (((self.curve @ line).square() - error @ line.square()) / self.noise[:, None]).sum(0)
        return torch.where(whole > 0, along / whole.clamp_min(1e-12), 0.0)

    @torch.no_grad()
    def cdf(self, batch: Batch) -> Tensor:
        steps = torch.arange(1, POINTS + 1, dtype=batch.dtype, device=batch.device)[:, None]
        roots = [math.sqrt(2 + 3 * k) + k / math.pi for k in range(self.config["latents"])]
        z = (steps * torch.tensor(roots, dtype=batch.dtype, device=batch.device)) % 1.0
        mean = torch.einsum("rkb,jkb->rj", basis(z), self.curve)  # (point, feature)
        each = zip(batch.x.mT, mean.mT, self.noise.sqrt(), strict=True)
        return torch.stack([torch.special.ndtr((x[:, None] - own) / noise).mean(1) for x, own, noise in each], -1)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The search for latents in a part of the rows, and a run of the sampler from there."""
        check_rows(data, LEAST_ROWS)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        latents, slab, rate = (self.config[name] for name in ("latents", "slab", "rate"))
        start = independent_curves.search(x, latents, slab, rate, rng)
        x = x if len(x) <= MOST_ROWS else x[rng.permutation(len(x))[:MOST_ROWS]]
        sampler = Sampler(x, latents, slab, rate, rng)
        sampler.begin(independent_curves.placed(x, start, rng), start.mask, start.variance)
        drawn = {name: torch.as_tensor(part) for name, part in sampler.run(BURN, KEPT)._asdict().items()}
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn[name])
        self.log_concentration.set(drawn["log_concentration"].mean(), drawn["log_concentration"].std().clamp_min(0.05))
        means = {"curve": drawn["coefficients"].mean(0), "noise": drawn["variance"].mean(0)}
        self.put(**means, margin=torch.tensor(min(start.margin, 1e6)))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("xu2023_additive", seed=seed, rows=300, latents=2, features=12)
        return cls(features=data.features, latents=2), data

    studies = tuple(Curves("xu2023_additive", {"curves": curves}, {"latents": 5}, 8, 0.2) for curves in ("all", "hard"))


if __name__ == "__main__":
    run(AdditiveFA)
