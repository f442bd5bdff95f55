"""Factor analysis with a spike-and-slab lasso on loadings, fitted along a ladder of spikes; latents may correlate.

    log_concentration ~ N(0, 1)                                                           ()
    stick_k ~ Beta(exp(log_concentration), 1),  share_k = prod_{l <= k} stick_l           (latent,)
    mask_jk ~ Bernoulli(share_k), no latent of one feature                                (feature, latent)
    loadings_jk ~ Laplace(slab) where mask_jk is 1, Laplace(spike) elsewhere,             (feature, latent)
        0 on a latent of no feature
    variance_j ~ InverseGamma(1.5, rate)                                                  (feature,)
    R ~ LKJ(2), correlation_tril its Cholesky factor                                      (latent, latent)
    z_i ~ N(0, R)                                                                         (data, latent)
    x_i ~ N(loadings z_i, diag(variance))                                                 (data, feature)

Sticks are those of an Indian buffet process: later latents have fewer features, and `latents` is an upper limit. A
loading from the spike is as good as 0, of size `spike`. Features are standardised; slab, spike and `rate` are in units
of their deviations.

Each chain finds modes by parameter-expanded EM (`constructions.lasso_ladder`), from factors of maximum likelihood of
resampled rows in rotations at random: mask and z are summed out, the spike narrows rung by rung, and each rung starts
where the last one ended. The mode with the best objective is where a Gibbs sampler starts (`exact.spike_slab_lasso`).
Both see the rows through their second moments alone, at a cost free of their number. The guide draws sticks, mask,
loadings, variances and R together from the run, z exactly given these, and log_concentration from a normal law that is
fitted.

*Identified:* latents up to permutation and sign, the mask up to permutation, given that the true loadings are the
sparsest that fit, if whichever feature is left out the others hold two disjoint sets that fix all latents (noise can be
told from latents: Anderson & Rubin 1956, theorem 5.1), and if for each latent the features that do not load on it fix
all others, with more such features than any rotation has by chance (Reiersol 1950). Latents need not be Gaussian, but
intervals of loadings take their scale to be that of Gaussian rows: of heavy tails, read loadings per deviation of z in
these rows. A chain decides how many latents there are, by BIC; that chains agree on it is the evidence.

Rockova & George (2016), Fast Bayesian factor analysis via automatic rotations to sparsity; Reiersol (1950), On the
identifiability of parameters in Thurstone's multiple factor analysis.

*Differs from the paper in* correlated latents, and so turns of two latents, or to hyperplanes of many features, in
place of one rotation; a slab of finite width; draws of the posterior in place of its mode.

*For a variant, copy this file and change* `story`: the law of `loadings` or of `stick`, and with it `Ladder` in
`pyrocrl.constructions.lasso_ladder` and the conditionals of `LassoSampler` in `pyrocrl.exact.spike_slab_lasso`.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions.lasso_ladder import Ladder
from pyrocrl.dists import InverseGamma, Laplace, MultivariateNormal, Normal, SpikeSlab
from pyrocrl.errors import reject
from pyrocrl.exact.beta_bernoulli import SharedColumns
from pyrocrl.exact.spike_slab import EFFORT, SHAPE
from pyrocrl.exact.spike_slab_lasso import LassoSampler
from pyrocrl.lab.studies.factors import SparseFactors
from pyrocrl.options import Bounds, Positive, check_memory
from pyrocrl.parts.factor_scores import FactorReadouts, factors_given
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

SPARSEST = "the true loadings are the sparsest of those that fit as well"
NEEDS = ("noise_told_apart", "simple_structure", "not_collinear")
ETA = 2.0  # of LKJ's law: 1 is uniform over correlation matrices
APART = 10.0  # by which the slab is wider than the spike, at least


class SSLFA(FactorReadouts, Program):
    card = ModelCard(
        name="ssl_fa",
        title="Spike-and-slab lasso factor analysis",
        family="factor analysis",
        summary="Each feature loads on few latents, small loadings count as none; the mode is found along a ladder.",
        when=(
            "each feature depends linearly on few latents, and loadings below some size are not to count",
            "features depend on all latents, or are counts: then `sparse_vae`",
        ),
        assumes=("x is linear in the latents", "each feature depends on few latents", "noise is independent"),
        claims=(
            Claim("latents", ("permutation", "sign"), (SPARSEST,), NEEDS),
            Claim("mask", ("permutation",), (SPARSEST,), NEEDS),
        ),
        references=(
            Reference(
                "Rockova & George",
                2016,
                "Fast Bayesian factor analysis via automatic rotations to sparsity",
                "Journal of the American Statistical Association",
                "https://doi.org/10.1080/01621459.2015.1100620",
            ),
            Reference(
                "Reiersol",
                1950,
                "On the identifiability of parameters in Thurstone's multiple factor analysis",
                "Psychometrika",
                "https://doi.org/10.1007/BF02289197",
            ),
        ),
        differs=(
            "latents are correlated, so that turns of latents take the place of one rotation",
            "a slab of finite width",
            "draws of the posterior from its mode on",
        ),
        approximate="How many latents are in use is settled by BIC at the start and draws are given it, so for data of "
        "its own story, with latents that hardly show, intervals of loadings are too narrow; also where nearly all "
        "features load on a latent and rows are few, for a run turns latents slowly.",
    )
    recipe = Recipe.unannealed(epochs=10, most_steps=100, batch_size=512, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"factors": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "share": Site(("latent",)),
        "mask": Site(("feature", "latent"), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
        "correlation": Site(("parent", "child"), {"parent": 1, "child": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        slab: Positive = 1.0,
        spike: Positive = 0.005,
        rate: Positive = 0.1,
        starts: Annotated[int, Bounds(1, 50)] = 2,
    ) -> None:
        """latents: how many are offered, at least 2; those that are not needed stay without features.

        slab, spike: prior scales of loadings that count, and of those that do not, a tenth of it at most; rate: of the
        variances' prior, which has its mode at rate / 2.5; these in units of the features' deviations. starts: modes
        that a chain looks for.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        if spike > slab / APART:
            reject("spike", spike, f"at most {slab / APART:g}, a tenth of the slab")
        check_memory("features", features, 8.0 * EFFORT.draws * features * (2 * latents + 1))
        self.log_concentration = NormalBlock()
        both = (features, latents)
        shapes = {"stick": (latents,), "mask": both, "loadings": both, "variance": (features,)}
        self.drawn = DrawnBlock(EFFORT.draws, **shapes, correlation_tril=(latents, latents))
        self.drawn.stick.fill_(0.5)
        self.drawn.variance.fill_(1.0)
        self.drawn.correlation_tril.copy_(torch.eye(latents))
        self.register_buffers(scores=torch.zeros(latents, features))  # of posterior means, averaged over draws

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        log_concentration, every = pyro.sample("log_concentration", Normal(0 * one, one)), one.expand(latents)
        stick = pyro.sample("stick", dist.Beta(log_concentration.exp() * every, every).to_event(1))  # (latent,)
        share = pyro.deterministic("share", stick.cumprod(-1))
        mask = pyro.sample("mask", SharedColumns(share, features))  # (feature, latent)
        scale = torch.where(mask > 0.5, self.config["slab"] * one, self.config["spike"] * one)
        used = mask.amax(-2, keepdim=True).expand_as(mask)
        loadings = pyro.sample("loadings", SpikeSlab(used, Laplace(0 * scale, scale)).to_event(2))  # (feature, latent)
        noise = InverseGamma(SHAPE * one.expand(features), self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        tril = pyro.sample("correlation_tril", dist.LKJCholesky(latents, ETA * one))  # (latent, latent)
        pyro.deterministic("correlation", tril @ tril.mT)
        with self.rows(batch):
            z = pyro.sample("z", MultivariateNormal(0 * tril[0], scale_tril=tril))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("log_concentration", self.log_concentration())
        sites = self.drawn.sample()
        scores, covariance = factors_given(*(sites[name] for name in ("loadings", "variance", "correlation_tril")))
        with self.rows(batch):
            law = MultivariateNormal(batch.x @ scores.mT, scale_tril=torch.linalg.cholesky(covariance))
            pyro.sample("z", law)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Modes from resampled rows, and draws from the best one on; fewer than 3 rows say nothing of correlations."""
        check_rows(data, 3)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        latents, slab, spike, rate = (self.config[name] for name in ("latents", "slab", "spike", "rate"))
        second, rows = x.T @ x / len(x), len(x)
        ladder = Ladder(second, rows, latents, slab, spike, rate, rng)
        again = (x[rng.integers(0, rows, rows)] for _ in range(self.config["starts"]))
        mode = max((ladder.climb(np.cov(one.T)) for one in again), key=lambda found: found.objective)
        sampler = LassoSampler(second, rows, latents, slab, rate, ETA, rng, spike)
        sampler.begin(*mode[:4])
        drawn = {name: torch.as_tensor(part) for name, part in sampler.draws()._asdict().items()}
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn[name])
        self.log_concentration.set(drawn["log_concentration"].mean(), drawn["log_concentration"].std().clamp_min(0.05))
        parts = (drawn[name] for name in ("loadings", "variance", "correlation_tril"))
        scores = [factors_given(*one)[0] for one in zip(*parts, strict=True)]
        self.put(scores=torch.stack(scores).mean(0))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[SSLFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("sparse_fa", seed=seed, rows=400, latents=3, features=20, correlation=0.3)
        return cls(features=data.features, latents=5), data

    studies = (SparseFactors("sparse_fa", {"correlation": 0.3}, {"latents": 20}, 8, 0.1),)


if __name__ == "__main__":
    run(SSLFA)
