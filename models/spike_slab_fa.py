"""Factor analysis with spike-and-slab loadings and correlated latents: how many are in use is learned.

    log_concentration ~ N(0, 1)                                                 ()
    mask ~ Indian buffet of exp(log_concentration), no latent of one feature    (feature, latent)
    loadings_jk ~ N(0, slab^2) where mask_jk is 1, 0 elsewhere                  (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                        (feature,)
    R ~ LKJ(2), correlation_tril its Cholesky factor                            (latent, latent)
    z_i ~ N(0, R)                                                               (data, latent)
    x_i ~ N(loadings z_i, diag(variance))                                       (data, feature)

mask_jk ~ Bernoulli(theta_k) with theta_k ~ Beta(exp(log_concentration) / latents, 1) integrated out: with more latents
offered that is an Indian buffet process. A latent of one feature could not be told from that feature's noise. Features
are standardised, `slab` and `rate` are in units of their deviations.

Each chain is a run of a Gibbs sampler that sees the rows through their second moments alone, at a cost free of their
number (`exact.spike_slab`). It starts from promax factors of resampled rows, as many as are offered, and leaves out
those that are not needed. The guide draws mask, loadings, variances and R together from the run, z exactly given
these, and log_concentration from a normal law that is fitted.

*Identified:* latents up to permutation and sign, the mask up to permutation, given that the true loadings are the
sparsest that fit, if whichever feature is left out the others hold two disjoint sets that fix all latents (noise can be
told from latents: Anderson & Rubin 1956, theorem 5.1), and if for each latent the features that do not load on it fix
all others, with more such features than any rotation has by chance (Reiersol 1950). Two anchors for each latent are
enough for that (Bing et al. 2020), and not needed. Latents need not be Gaussian, but intervals of loadings take their
scale to be that of Gaussian rows: of heavy tails, read loadings per deviation of z in these rows. The slab expects
small loadings as well: where there are none, probabilities of the mask near one half are too high. A chain decides how
many latents there are, by BIC; that chains agree on it is the evidence.

Knowles & Ghahramani (2011), Nonparametric Bayesian sparse factor models; Reiersol (1950), On the identifiability of
parameters in Thurstone's multiple factor analysis.

*Differs from the paper in* correlated latents, a finite buffet, moments in place of rows, and starts from promax. For
counts: `sparse_vae`.

*For a variant, copy this file and change* `story`: the law of `loadings`, of `variance` or of R, and with it the
conditionals of `Sampler` in `pyrocrl.exact.spike_slab`.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import InverseGamma, MultivariateNormal, Normal, SpikeSlab
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.spike_slab import EFFORT, SHAPE, Sampler
from pyrocrl.lab.studies import SparseFactors
from pyrocrl.options import Positive, check_memory
from pyrocrl.parts.factor_scores import FactorReadouts, factors_given
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

SPARSEST = "the true loadings are the sparsest of those that fit as well"
NEEDS = ("noise_told_apart", "simple_structure", "not_collinear")
ETA = 2.0  # of LKJ's law: 1 is uniform over correlation matrices


class SpikeSlabFA(FactorReadouts, Program):
    card = ModelCard(
        name="spike_slab_fa",
        title="Spike-and-slab factor analysis",
        family="factor analysis",
        summary="Each feature loads on few latents: they may correlate, and how many there are is learned.",
        when=(
            "each feature depends linearly on few latents, whose number is not known and which may correlate",
            "features depend on all latents, or are counts: then `sparse_vae`",
        ),
        assumes=("x is linear in the latents", "each feature depends on few latents", "noise is independent"),
        claims=(
            Claim("latents", ("permutation", "sign"), (SPARSEST,), NEEDS),
            Claim("mask", ("permutation",), (SPARSEST,), NEEDS),
        ),
        references=(
            Reference(
                "Knowles & Ghahramani",
                2011,
                "Nonparametric Bayesian sparse factor models with application to gene expression modeling",
                "Annals of Applied Statistics",
                "https://doi.org/10.1214/10-AOAS435",
            ),
            Reference(
                "Reiersol",
                1950,
                "On the identifiability of parameters in Thurstone's multiple factor analysis",
                "Psychometrika",
                "https://doi.org/10.1007/BF02289197",
            ),
            Reference(
                "Bing, Bunea, Ning & Wegkamp",
                2020,
                "Adaptive estimation in structured factor models with applications to overlapping clustering",
                "Annals of Statistics",
                "https://doi.org/10.1214/19-AOS1877",
            ),
        ),
        differs=(
            "latents are correlated",
            "a finite number of latents is offered",
            "rows enter through their second moments",
            "chains start from promax factors",
        ),
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=10, most_steps=100, batch_size=512, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"factors": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
        "correlation": Site(("parent", "child"), {"parent": 1, "child": 1}),
    }

    def __init__(self, features: Features, latents: Latents, slab: Positive = 0.7, rate: Positive = 0.1) -> None:
        """latents: how many are offered, at least 2; those that are not needed stay without features.

        slab: prior deviation of a loading; rate: of the variances' prior, which has its mode at rate / 2.5. Both in
        units of the features' deviations.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        check_memory("features", features, 8.0 * EFFORT.draws * features * (2 * latents + 1))
        self.log_concentration = NormalBlock()
        shapes = {"mask": (features, latents), "loadings": (features, latents), "variance": (features,)}
        self.drawn = DrawnBlock(EFFORT.draws, **shapes, correlation_tril=(latents, latents))
        self.drawn.variance.fill_(1.0)
        self.drawn.correlation_tril.copy_(torch.eye(latents))
        self.register_buffers(scores=torch.zeros(latents, features))  # of posterior means, averaged over draws

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        log_concentration = pyro.sample("log_concentration", Normal(0 * one, one))
        mask = pyro.sample("mask", BuffetColumns(log_concentration, features, latents))  # (feature, latent)
        slab = Normal(0 * mask, self.config["slab"] * one)
        loadings = pyro.sample("loadings", SpikeSlab(mask, slab).to_event(2))  # (feature, latent)
        noise = InverseGamma(SHAPE * one.expand(features), self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        tril = pyro.sample("correlation_tril", dist.LKJCholesky(latents, ETA * one))  # (latent, latent)
        pyro.deterministic("correlation", tril @ tril.mT)
        with self.rows(batch):
            z = pyro.sample("z", MultivariateNormal(0 * tril[0], scale_tril=tril))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("log_concentration", self.log_concentration())
        _, loadings, variance, tril = self.drawn.sample().values()
        scores, covariance = factors_given(loadings, variance, tril)
        with self.rows(batch):
            law = MultivariateNormal(batch.x @ scores.mT, scale_tril=torch.linalg.cholesky(covariance))
            pyro.sample("z", law)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """A run of the sampler, from promax factors of resampled rows; fewer than 3 say nothing of correlations."""
        check_rows(data, 3)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        again = x[rng.integers(0, len(x), len(x))]
        latents, slab, rate = (self.config[name] for name in ("latents", "slab", "rate"))
        drawn = Sampler(x.T @ x / len(x), len(x), latents, slab, rate, ETA, rng).run(np.cov(again.T))
        loadings, variance, tril = (torch.as_tensor(part) for part in drawn[:3])
        scores = [factors_given(*one)[0] for one in zip(loadings, variance, tril, strict=True)]
        self.put(scores=torch.stack(scores).mean(0))
        for name, value in {"mask": loadings != 0, "loadings": loadings, "variance": variance}.items():
            getattr(self.drawn, name).copy_(value)
        self.drawn.correlation_tril.copy_(tril)
        log_concentration = torch.as_tensor(drawn.log_concentration)
        self.log_concentration.set(log_concentration.mean(), log_concentration.std().clamp_min(0.05))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[SpikeSlabFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("sparse_fa", seed=seed, rows=400, latents=3, features=20, correlation=0.3)
        return cls(features=data.features, latents=5), data

    studies = (
        SparseFactors("sparse_fa", {"correlation": 0.3}, {"latents": 20}, 10, 0.1),
        SparseFactors("sparse_fa", {}, {"latents": 20}, 8, 0.1),
        SparseFactors("sparse_fa", {"correlation": 0.3, "second": 1.0}, {"latents": 20}, 8, 0.1),
        SparseFactors("sparse_fa", {"correlation": 0.3, "rows": 500}, {"latents": 20}, 8, 0.1),
        SparseFactors("sparse_fa", {"correlation": 0.3, "law": "gaussian"}, {"latents": 20}, 8, 0.1),
    )


if __name__ == "__main__":
    run(SpikeSlabFA)
