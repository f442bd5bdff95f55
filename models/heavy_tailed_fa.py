"""Factor analysis with independent latents of heavy tails: these alone tell rotations apart, loadings may be dense.

    slab ~ LogNormal(log 0.7, 0.5^2)                                           ()
    law_k ~ Categorical: normal with probability 1/2, else Laplace, or         (latent,)
            Student's of 2.5, 3, 4, 5, 6, 8 or 12 degrees of freedom, each alike
    loadings_jk ~ N(0, slab^2)                                                 (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                       (feature,)
    z_ik ~ law_k, of unit variance                                             (data, latent)
    x_i ~ N(loadings z_i, diag(variance))                                      (data, feature)

`heavy` says which latents are not normal. Features are standardised and told about their means.

Each chain is a run of a Gibbs sampler over slab, laws, loadings, variances and z (`exact.heavy_tails`), which also
turns z and loadings together and decides by evidence over all rotations whether a latent is normal. It starts from
factors of maximum likelihood whose scores are turned by varimax, the estimator of Rohe & Zeng. The guide draws laws,
loadings and variances together from the run, z given these from a normal law, and slab from a fitted one.

*Identified:* latents and loadings up to permutation, sign and scale, if latents are independent, at most one of them
is normal (Comon 1994, theorem 11), and noise can be told from latents: whichever feature is left out, the others hold
two disjoint sets that fix all latents (Anderson & Rubin 1956, theorem 5.1). Normal latents mix with each other and no
others. Latents that share the scale of a row have heavy tails and are not independent: the verdict tests that.
Tails that are lighter than the normal law's are taken for normal.

Rohe & Zeng (2023), Vintage factor analysis with varimax performs statistical inference; Comon (1994), Independent
component analysis, a new concept?

*Differs from the paper in* a posterior over loadings, tails and latents in place of varimax's estimate; noise of
unequal variances.

*For a variant, copy this file and change* `story`: the law of `loadings` or of `variance`, and with it the conditionals
of `Sampler` in `pyrocrl.exact.heavy_tails`.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import InverseGamma, LogNormal, MultivariateNormal, Normal
from pyrocrl.exact.heavy_tails import DRAWS, NORMAL, SHAPE, SLAB, SPREAD, HeavyTailed, Sampler, categorical, given
from pyrocrl.exact.rotations import likely_factors, varimax
from pyrocrl.lab.studies.factors import HeavyTails
from pyrocrl.options import Positive, Size, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

INDEPENDENT = "latents are independent"
NOISE = "noise is Gaussian, and independent between features"


class HeavyTailedFA(Program):
    card = ModelCard(
        name="heavy_tailed_fa",
        title="Factor analysis with heavy tails",
        family="factor analysis",
        summary="Latents that are independent and heavy-tailed need no sparse loadings; normal ones are told by name.",
        when=(
            "features depend linearly on all latents, which are independent and take extreme values now and then",
            "latents are normal or share the rows' scale: sparse or ordered loadings may tell them, tails cannot",
        ),
        assumes=("x is linear in the latents", INDEPENDENT),
        claims=(
            Claim(
                "latents",
                ("permutation", "scale"),
                (INDEPENDENT, NOISE),
                ("non_gaussian", "axes_told", "noise_told_apart", "not_collinear"),
            ),
        ),
        references=(
            Reference(
                "Rohe & Zeng",
                2023,
                "Vintage factor analysis with varimax performs statistical inference",
                "Journal of the Royal Statistical Society, Series B",
                "https://doi.org/10.1093/jrsssb/qkad029",
            ),
            Reference(
                "Comon",
                1994,
                "Independent component analysis, a new concept?",
                "Signal Processing",
                "https://doi.org/10.1016/0165-1684(94)90029-9",
            ),
        ),
        differs=(
            "a posterior over loadings, tails and latents in place of varimax's estimate",
            "noise of unequal variances",
        ),
    )
    counted = "evidence"
    recipe = Recipe.unannealed(epochs=2, most_steps=20, batch_size=256, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"factors": (NOISE,), "independent": (INDEPENDENT,), "noise": (NOISE,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "heavy": Site(("latent",), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(self, features: Features, latents: Latents, rate: Positive = 0.1, steps: Size = 400) -> None:
        """rate: of the variances' prior, which has its mode at rate / 2.5, in units of the features' variances. steps:
        sweeps of the sampler, of which the first quarter is left out."""
        super().__init__()
        check_sizes(features, latents)
        check_memory("features", features, 8.0 * DRAWS * features * (latents + 1))
        self.slab = LogNormalBlock(loc=math.log(SLAB))
        self.drawn = DrawnBlock(DRAWS, law=(latents,), loadings=(features, latents), variance=(features,))
        self.drawn.variance.fill_(1.0)
        self.register_buffers(
            centre=torch.zeros(features, latents),
            usual=torch.zeros(latents, dtype=torch.long),
            probable=torch.zeros(latents),
            spread=torch.ones(features, latents),
            settled=torch.ones(latents),
        )

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        slab = pyro.sample("slab", LogNormal(math.log(SLAB) * one, SPREAD * one))
        law = pyro.sample("law", categorical(latents, one)).long()  # (latent,)
        pyro.deterministic("heavy", (law != NORMAL).to(one))
        every = one.expand(features, latents)
        loadings = pyro.sample("loadings", Normal(0 * every, slab * every).to_event(2))  # (feature, latent)
        noise = InverseGamma(SHAPE * every[:, 0], self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        with self.rows(batch):
            z = pyro.sample("z", HeavyTailed(law, one).to_event(1))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("slab", self.slab())
        law, loadings, variance = self.drawn.sample().values()
        mean, tril = given(batch.x, loadings, variance, law.long())
        with self.rows(batch):
            pyro.sample("z", MultivariateNormal(mean, scale_tril=tril))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return given(batch.x, self.centre, self.drawn.variance.mean(0), self.usual)[0]

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent), these given the rotation, of which `axes` tells."""
        return self.centre, self.spread

    def axes(self) -> Tensor:
        return self.settled

    def non_gaussian(self) -> Tensor:
        return self.probable

    # -- from data ---------------------------------------------------------------------------------------------

    def _rows(self, data: Data) -> Tensor:
        return data.tensors(self.centre.device, torch.float64).x

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Factors of maximum likelihood of resampled rows, their scores turned by varimax."""
        check_rows(data, 3)
        x, latents = self._rows(data).cpu().numpy(), self.config["latents"]
        rows = np.random.default_rng(int(torch.randint(2**31, (), generator=generator))).integers(0, len(x), len(x))
        again = x[rows]
        unit = np.maximum(again.std(0), 1e-6)
        second = again.T @ again / len(x) / unit / unit[:, None]
        np.fill_diagonal(second, 1.0)
        loadings, noise = likely_factors(second, latents)
        scores = np.linalg.lstsq(loadings / np.sqrt(noise)[:, None], (again / unit / np.sqrt(noise)).T, rcond=None)[0].T
        left, _, right = np.linalg.svd(scores, full_matrices=False)
        turn = varimax(np.sqrt(len(x)) * left @ right, normalise=False)
        start = torch.as_tensor(loadings @ turn * unit[:, None])
        self._take(torch.as_tensor(noise * unit**2), start[None], torch.full((latents,), float(NORMAL)))
        self.slab.set(start.square().mean().sqrt().log(), torch.tensor(0.1))

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Draws of the posterior, from where the chain stands."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        x = self._rows(data).cpu()
        start = self.centre.double().cpu(), self.drawn.variance.mean(0).double().cpu()
        found = Sampler(x, *start, self.config["rate"], rng).run(self.config["steps"])
        self._take(found.variance, found.loadings, found.law.double())
        log_slab = found.slab.log()
        self.slab.set(log_slab.mean(), log_slab.std().clamp_min(0.01))
        self.put(centre=found.centre, probable=found.heavy, spread=found.spread, settled=found.settled)

    @torch.no_grad()
    def _take(self, variance: Tensor, loadings: Tensor, law: Tensor) -> None:
        """Set the draws to these (draw, ...), or all of them to one."""
        for name, value in {"variance": variance, "loadings": loadings, "law": law}.items():
            getattr(self.drawn, name).copy_(value)
        self.put(centre=loadings.mean(0), usual=self.drawn.law.mode(0)[0].long())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[HeavyTailedFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("dense_fa", seed=seed, rows=300, latents=2, features=8, law="t3", noise=0.6)
        return cls(features=data.features, latents=2), data

    studies = (
        HeavyTails("dense_fa", {}),
        HeavyTails("dense_fa", {"law": "t3"}),
        HeavyTails("dense_fa", {"rows": 1000}),
        HeavyTails("dense_fa", {"gaussian": 1}),
        HeavyTails("dense_fa", {"gaussian": 3}),
        HeavyTails("dense_fa", {"law": "gaussian"}),
    )


if __name__ == "__main__":
    run(HeavyTailedFA)
