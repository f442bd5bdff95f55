"""Nonlinear independent components of which each feature depends on few.

    log_concentration ~ N(0, 1)                                                           ()
    rate_k ~ Beta(exp(log_concentration) / latents, 1)                                    (latent,)
    mask_jk ~ Bernoulli(rate_k), no latent of one feature                                 (feature, latent)
    coefficients_jt ~ N(0, slab^2 s_t) where mask_jk is 1 for all latents k of term t, 0 elsewhere   (feature, term)
    f_j(z) = sum_t coefficients_jt phi_t(z)
    variance_j ~ InverseGamma(1.5, rate)                                                  (feature,)
    z_ik ~ N(0, 1)                                                                        (data, latent)
    x_ij ~ N(f_j(z_i), variance_j)                                                        (data, feature)

The phi_t are smooth curves of single latents and surfaces of two, s_t falls with their roughness (`exact.surfaces`).
The rates are summed out. Features are standardised; slab and `rate` are in units of their deviations.

Each chain starts from the pairs of features that depend on each other, which tell the mask
(`constructions.shared_supports`), and from lines with that mask; what rows come to, less what coefficients cost,
decides between starts. From there draws go on (`exact.surface_factors`): mask with coefficients summed out, for given z
the model is linear in these, and z about its mode. The guide draws mask, coefficients and variances together from this
run and z normal about its mode given them; log_concentration has a normal law that is fitted.

*Identified:* latents up to permutation and a map of each, monotone by the normal law that is a convention, and the mask
up to permutation, if for each latent there are features that have it alone in common (structural sparsity), and their
slopes, over rows, span all directions of the latents they depend on: lines do not. Latents may be normal. Whether the
mask is such, features bend, latents are independent and noise is Gaussian is put to the test. What no data tell: that
no others are meant, of which features depend on more; of normal latents any rotation is as independent.

Zheng, Ng & Zhang (2022), On the identifiability of nonlinear ICA: sparsity and beyond; with more features than latents
Zheng & Zhang (2023), Generalizing nonlinear ICA beyond structural sparsity.

*Differs from the paper in* a posterior over masks in place of a penalty of the Jacobian, features with noise, at most
two latents that act together on a feature beyond sums, a start by dependences.

*For a variant, copy this file and change* `story`: the law of `coefficients` or of `z`, and with it `Sampler` in
`pyrocrl.exact.surface_factors`.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import shared_supports
from pyrocrl.dists import InverseGamma, MultivariateNormal, Normal, SpikeSlab
from pyrocrl.exact import surfaces
from pyrocrl.exact.additive_factors import SHAPE
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.surface_factors import Told, latents_given
from pyrocrl.lab.studies.nonlinear import Curves
from pyrocrl.options import Bounds, Positive, check_memory
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

INDEPENDENT, NOISE = "latents are independent", "noise is independent and Gaussian"
PAIRS = "features are sums of smooth functions of one latent and of two"
SPARSEST = "no latents are meant on which features depend in larger numbers"
GIVEN, NEEDS = (INDEPENDENT, NOISE, PAIRS, SPARSEST), ("alone_in_common", "slopes_span", "latents_told")
BURN, KEPT = 8, 25  # sweeps
STEPS = 8  # towards the mode of latents
LEAST_ROWS, MOST_ROWS = 100, 1_500  # of a fit, and of the run of a sampler; more are drawn from
AT_ONCE = 10_000  # rows that are read at once


class StructuralSparsityICA(Program):
    card = ModelCard(
        name="structural_sparsity_ica",
        title="Nonlinear ICA by structural sparsity",
        family="nonlinear ICA",
        summary="Independent latents, normal or not, behind smooth features that each depend on few of them, in "
        "different sets.",
        when=(
            "each feature is a bent function of few independent latents, and no latent's features all share another",
            "features are lines of latents (`neuro_causal_fa`, `heavy_tailed_fa`), sums of curves (`additive_fa`), or "
            "have latents of their own that may correlate (`sparse_vae`)",
        ),
        assumes=GIVEN,
        claims=(
            Claim("latents", ("permutation", "elementwise"), GIVEN, NEEDS),
            Claim("mask", ("permutation",), GIVEN, NEEDS),
        ),
        references=(
            Reference(
                "Zheng, Ng & Zhang",
                2022,
                "On the identifiability of nonlinear ICA: sparsity and beyond",
                "NeurIPS",
                "https://arxiv.org/abs/2206.07751",
            ),
            Reference(
                "Zheng & Zhang",
                2023,
                "Generalizing nonlinear ICA beyond structural sparsity",
                "NeurIPS",
                "https://arxiv.org/abs/2311.00866",
            ),
        ),
        differs=(
            "a posterior over masks in place of a penalty of the Jacobian",
            "features with noise, more of them than latents",
            "beyond sums at most two latents act together on a feature",
            "a start from pairs of features that depend on each other",
        ),
        approximate="Of rows' latents the guide has a normal law about the mode. Curves and masks are told by 1,500 "
        "rows at most, whose latents have exactly normal ranks in every draw; masks as if noise were larger by a "
        "fiftieth of a feature's variance.",
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=2, most_steps=10, batch_size=512, lr=0.02, dtype=torch.float64, chains=3)
    checks = {
        "independent_ranks": (INDEPENDENT,),
        "closely_left": (NOISE, PAIRS),
        "smooth": (PAIRS,),
        "noise_law": (NOISE,),
    }
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "effect": Site(("feature", "latent"), unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(1, 12)],
        slab: Positive = 0.7,
        rate: Positive = 0.01,
    ) -> None:
        """latents: how many are offered; those that are not needed stay without features.

        slab: prior deviation of a curve of one latent; rate: of the variances' prior, which has its mode at rate / 2.5;
        both in units of the features' deviations.
        """
        super().__init__()
        check_sizes(features, latents)
        both, terms = (features, latents), (features, surfaces.terms(latents))
        check_memory("features", features, 8.0 * (2 * KEPT * features + 2 * MOST_ROWS + 2 * terms[1]) * terms[1])
        self.log_concentration = NormalBlock()
        self.drawn = DrawnBlock(KEPT, mask=both, coefficients=terms, variance=(features,))
        self.drawn.variance.fill_(1.0)
        self.register_buffers(  # means over draws, where latents are looked for at first, how little is told of each
            curve=torch.zeros(terms),
            noise=torch.ones(features),
            reader=torch.zeros(features * surfaces.BASIS, latents),
            untold=torch.ones(latents),
            bends=torch.ones(features),
            counted_rows=torch.zeros(()),
        )

    def story(self, batch: Batch) -> None:
        features, latents, slab = (self.config[name] for name in ("features", "latents", "slab"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        log_concentration = pyro.sample("log_concentration", Normal(0 * one, one))
        mask = pyro.sample("mask", BuffetColumns(log_concentration, features, latents))  # (feature, latent), no rate
        gate = surfaces.gates(mask)  # (feature, term)
        scale = slab * surfaces.share(latents, batch.dtype, batch.device).sqrt().expand(gate.shape)
        coefficients = pyro.sample("coefficients", SpikeSlab(gate, Normal(0 * scale, scale)).to_event(2))
        pyro.deterministic("effect", surfaces.effects(coefficients, latents))  # (feature, latent), deviations
        noise = InverseGamma(SHAPE * one.expand(features), self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        with self.rows(batch):
            z = pyro.sample("z", Normal(0 * one.expand(latents), one).to_event(1))  # (rows, latent)
            mean = surfaces.design(z) @ coefficients.mT
            pyro.sample("x", Normal(mean, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("log_concentration", self.log_concentration())
        sites = self.drawn.sample()
        told = self._told(batch.x, sites["coefficients"], sites["variance"])
        with self.rows(batch):
            pyro.sample("z", MultivariateNormal(told.mode, scale_tril=torch.linalg.cholesky(told.precision.inverse())))

    @torch.no_grad()
    def _told(self, x: Tensor, coefficients: Tensor, variance: Tensor) -> Told:
        first = surfaces.basis(x).flatten(-2) @ self.reader
        return latents_given(x, coefficients, variance, first, STEPS)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return torch.cat([self._told(part, self.curve, self.noise).mode for part in batch.x.split(AT_ONCE)])

    def mask(self) -> Tensor:
        return self.drawn.mask.mean(0)

    def mask_draws(self) -> Tensor:
        return self.drawn.mask

    def slopes_spread(self) -> tuple[Tensor, float]:
        return self.bends, float(self.counted_rows)

    def latents_untold(self) -> Tensor:
        return self.untold

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The search for a mask, and a run of the sampler from there, on a part of the rows."""
        check_rows(data, LEAST_ROWS)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        latents, slab, rate = (self.config[name] for name in ("latents", "slab", "rate"))
        start = shared_supports.search(x, latents, slab, rate, rng)
        x = x[rng.permutation(len(x))[:MOST_ROWS]]
        sampler = shared_supports.placed(x, start, slab, rate, rng)
        drawn = {name: torch.as_tensor(part) for name, part in sampler.run(BURN, KEPT)._asdict().items()}
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn[name])
        self.log_concentration.set(drawn["log_concentration"].mean(), drawn["log_concentration"].std().clamp_min(0.05))
        curve, noise = drawn["coefficients"].mean(0), drawn["variance"].mean(0)
        told = sampler.told
        assert told is not None
        self.put(
            curve=curve,
            noise=noise,
            reader=torch.as_tensor(shared_supports.reader(x, sampler.mode.numpy())),
            untold=told.precision.inverse().diagonal(dim1=1, dim2=2).mean(0),
            bends=surfaces.bends(curve, self.drawn.mask.mean(0) > 0.5),
            counted_rows=torch.tensor(float(len(x))),
        )

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("zheng2022", seed=seed, rows=800, latents=4)
        return cls(features=data.features, latents=4), data

    studies = tuple(
        Curves("zheng2022", {"law": law}, {"latents": 5}, 3, 0.2, rival=False) for law in ("normal", "uniform")
    )


if __name__ == "__main__":
    run(StructuralSparsityICA)
