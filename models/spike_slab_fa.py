"""Factor analysis with spike-and-slab loadings and correlated latents: how many are in use is learned.

    log_concentration ~ N(0, 1)                                                 ()
    mask ~ Indian buffet of exp(log_concentration), no latent of one feature    (feature, latent)
    loadings_jk ~ N(0, slab^2) where mask_jk is 1, 0 elsewhere                  (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                        (feature,)
    R ~ LKJ(2), correlation_tril its Cholesky factor                            (latent, latent)
    z_i ~ N(0, R)                                                               (data, latent)
    x_i ~ N(loadings z_i, diag(variance))                                       (data, feature)
or, for counts, in place of variance,
    base_gj ~ N(centre_j, 2^2),  dispersion_j ~ LogNormal(log 3, 1.5)           (batch, feature), (feature,)
    x_ij ~ NegativeBinomial(size_i exp(base_gj + loadings_j z_i), dispersion_j) (data, feature), g the batch of row i

mask_jk ~ Bernoulli(theta_k) with theta_k ~ Beta(exp(log_concentration) / latents, 1) integrated out: with more latents
offered that is an Indian buffet process. A latent of one feature could not be told from that feature's noise. Features
are standardised, `slab` and `rate` are in units of their deviations; of counts loadings are those of log rates, size_i
is the size factor over its mean, and centre_j the log of the feature's rate in the rows of the fit.

Each chain is a run of a Gibbs sampler that sees the rows through their second moments alone, at a cost free of their
number (`exact.spike_slab`). It starts from promax factors of resampled rows, as many as are offered, and leaves out
those that are not needed. The guide draws mask, loadings, variances and R together from the run, z exactly given
these, and log_concentration from a normal law that is fitted.

Of counts, a chain starts so from log(1 + x / size), which settles how many latents there are, and goes on by Metropolis
within Gibbs (`exact.count_factors`), exact given that number and the rows that it sees: all of them, or of more than 1
million entries of x its own choice of as many. z is drawn by its Laplace approximation given the rest.

*Identified:* latents up to permutation and sign, the mask up to permutation, given that the true loadings are the
sparsest that fit, if whichever feature is left out the others hold two disjoint sets that fix all latents (noise can be
told from latents: Anderson & Rubin 1956, theorem 5.1), and if for each latent the features that do not load on it fix
all others, with more such features than any rotation has by chance (Reiersol 1950). Two anchors for each latent are
enough for that (Bing et al. 2020), and not needed. Latents need not be Gaussian, but intervals of loadings take their
scale to be that of Gaussian rows: of heavy tails, read loadings per deviation of z in these rows. The slab expects
small loadings as well: where there are none, probabilities of the mask near one half are too high. A chain decides how
many latents there are, by BIC; that chains agree on it is the evidence. Of counts, two latents that correlate at .98
may be taken for one, and masks of heavy tails are left open.

Knowles & Ghahramani (2011), Nonparametric Bayesian sparse factor models; Reiersol (1950), On the identifiability of
parameters in Thurstone's multiple factor analysis.

*Differs from the paper in* correlated latents, a finite buffet, moments in place of rows, starts from promax, and a law
of counts.

Longer than other models because it has two laws of x under one mask, each with a sampler of its own.

*For a variant, copy this file and change* `story`: the law of `loadings`, of `variance` or of R, and with it the
conditionals of `Sampler` in `pyrocrl.exact.spike_slab`, or of `CountSampler` in `pyrocrl.exact.count_factors`.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import count_starts
from pyrocrl.dists import InverseGamma, LogNormal, MultivariateNormal, NegativeBinomial, Normal, SpikeSlab
from pyrocrl.exact import count_factors
from pyrocrl.exact.beta_bernoulli import BuffetColumns
from pyrocrl.exact.count_scores import scores_given_counts
from pyrocrl.exact.spike_slab import EFFORT, SHAPE, Sampler
from pyrocrl.lab.studies.factors import SparseCounts, SparseFactors
from pyrocrl.options import Positive, check_memory
from pyrocrl.parts.count_factors import baselines, size_of
from pyrocrl.parts.factor_scores import FactorReadouts, factors_given
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Batches, Features, Latents, Likelihood, check_rows, check_sizes

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
            "features depend on all latents, or not linearly: then `sparse_vae`",
        ),
        assumes=(
            "x, or the log rate of counts, is linear in the latents",
            "each feature depends on few latents",
            "noise is independent",
        ),
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
            "counts have a law of their own",
        ),
        approximate="Of counts, latents are drawn by Laplace's approximation given all else, for their law has no "
        "closed form, and how many are in use is settled on log(1 + x / size).",
        likelihoods=("gaussian", "negative_binomial"),
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=10, most_steps=100, batch_size=512, lr=0.02, dtype=torch.float64, chains=4)
    count_recipe = Recipe.unannealed(epochs=1, most_steps=4, batch_size=128, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"factors": ()}
    constants = ("centre", "size_unit")
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
        "base": Site(("batch", "feature")),
        "dispersion": Site(("feature",)),
        "correlation": Site(("parent", "child"), {"parent": 1, "child": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        likelihood: Likelihood = "gaussian",
        slab: Positive = 0.7,
        rate: Positive = 0.1,
        batches: Batches = 1,
    ) -> None:
        """latents: how many are offered, at least 2; those that are not needed stay without features.

        slab: prior deviation of a loading, in units of the features' deviations, or of the log rates of counts.
        rate: of the prior of variances, which has its mode at rate / 2.5, in the same units; counts have none.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        self.counts = likelihood == "negative_binomial"
        draws = count_factors.DRAWS if self.counts else EFFORT.draws
        shapes = {"mask": (features, latents), "loadings": (features, latents)}
        noise = {"dispersion": (features,), "base": (batches, features)} if self.counts else {"variance": (features,)}
        check_memory("features", features, 8.0 * draws * features * (2 * latents + 1))
        check_memory("batches", batches, 8.0 * draws * features * batches)
        self.log_concentration = NormalBlock()
        self.drawn = DrawnBlock(draws, **shapes, **noise, correlation_tril=(latents, latents))
        (self.drawn.dispersion if self.counts else self.drawn.variance).fill_(1.0)
        self.drawn.correlation_tril.copy_(torch.eye(latents))
        self.register_buffers(centre=torch.zeros(features), size_unit=torch.ones(()))
        if self.counts:
            self.recipe, self.checks = self.count_recipe, {"counts_left": ()}
        else:
            self.register_buffers(scores=torch.zeros(latents, features))  # of posterior means, averaged over draws

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        log_concentration = pyro.sample("log_concentration", Normal(0 * one, one))
        mask = pyro.sample("mask", BuffetColumns(log_concentration, features, latents))  # (feature, latent)
        loadings = pyro.sample("loadings", SpikeSlab(mask, Normal(0 * mask, self.config["slab"] * one)).to_event(2))
        every = one.expand(features)
        if self.counts:
            centre = self.centre.expand(self.config["batches"], features)
            base = pyro.sample("base", Normal(centre, count_factors.BASE * one).to_event(2))  # (batch, feature)
            log_median = math.log(count_factors.DISPERSION)
            law = LogNormal(log_median * every, count_factors.SPREAD * one)
            dispersion = pyro.sample("dispersion", law.to_event(1))  # (feature,)
        else:
            noise = InverseGamma(SHAPE * every, self.config["rate"] * one)
            variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        tril = pyro.sample("correlation_tril", dist.LKJCholesky(latents, ETA * one))  # (latent, latent)
        pyro.deterministic("correlation", tril @ tril.mT)
        with self.rows(batch):
            z = pyro.sample("z", MultivariateNormal(0 * tril[0], scale_tril=tril))  # (rows, latent)
            eta = z @ loadings.mT  # (rows, feature)
            if self.counts:
                log_rate, size = baselines(base, batch) + eta, size_of(batch, self.size_unit)
                likelihood = NegativeBinomial(None, dispersion, log_rate=log_rate, size=size)
            else:
                likelihood = Normal(eta, variance.sqrt())
            pyro.sample("x", likelihood.to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("log_concentration", self.log_concentration())
        sites = self.drawn.sample()
        with self.rows(batch):
            if self.counts:
                mean, scale = self._scores(batch, sites)
            else:
                scores, covariance = factors_given(sites["loadings"], sites["variance"], sites["correlation_tril"])
                mean, scale = batch.x @ scores.mT, torch.linalg.cholesky(covariance)
            pyro.sample("z", MultivariateNormal(mean, scale_tril=scale))

    def _scores(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (rows, latent) and Cholesky factors of the covariance of z given counts and these sites."""
        level = size_of(batch, self.size_unit).log() + baselines(sites["base"], batch)
        return scores_given_counts(batch.x, level, sites["loadings"], sites["dispersion"], sites["correlation_tril"])

    # -- read-outs ---------------------------------------------------------------------------------------------

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor | None:
        return None if self.counts else super().row_log_likelihood(batch, sites)

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        if not self.counts:
            return super().latents(batch)
        sites = {name: getattr(self.drawn, name).mean(0) for name in ("loadings", "dispersion", "base")}
        tril = self.drawn.correlation_tril
        return self._scores(batch, sites | {"correlation_tril": torch.linalg.cholesky((tril @ tril.mT).mean(0))})[0]

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """A run of the sampler, from promax factors of resampled rows; fewer than 3 say nothing of correlations."""
        check_rows(data, 3)
        batch = data.tensors(dtype=torch.float64)
        x = batch.x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        drawn = self._of_counts(batch, rng) if self.counts else self._of_floats(x, rng)
        log_concentration = torch.as_tensor(drawn.pop("log_concentration"))
        self.log_concentration.set(log_concentration.mean(), log_concentration.std().clamp_min(0.05))
        for name, value in (drawn | {"mask": drawn["loadings"] != 0}).items():
            getattr(self.drawn, name).copy_(torch.as_tensor(value))

    def _of_floats(self, x: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        again = x[rng.integers(0, len(x), len(x))]
        sampler = Sampler(
            x.T @ x / len(x), len(x), self.config["latents"], self.config["slab"], self.config["rate"], ETA, rng
        )
        drawn = sampler.run(np.cov(again.T))
        parts = zip(*(torch.as_tensor(part) for part in drawn[:3]), strict=True)
        self.put(scores=torch.stack([factors_given(*one)[0] for one in parts]).mean(0))
        return drawn._asdict()

    def _of_counts(self, batch: Batch, rng: np.random.Generator) -> dict[str, np.ndarray]:
        self.put(size_unit=batch.size_factor.mean())
        size = size_of(batch, self.size_unit)
        self.put(centre=((batch.x.sum(0) + 0.5) / size.sum()).log())
        some = np.sort(rng.permutation(len(size))[: max(1000, int(count_factors.MOST / self.config["features"]))])
        x, own, group = batch.x.numpy()[some], size[some, 0].numpy(), batch.group.numpy()[some]
        start = count_starts.start(x, own, self.config["latents"], ETA, rng)
        centre, batches = self.centre.double().numpy(), self.config["batches"]
        return (
            count_factors.CountSampler(x, own, group, batches, centre, start, self.config["slab"], ETA, rng)
            .run()
            ._asdict()
        )

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
        SparseCounts("sparse_counts", {"rows": 600, "features": 60, "latents": 4}, {"latents": 8}, 8, 0.1),
        SparseCounts(
            "sparse_counts", {"rows": 600, "features": 60, "latents": 4, "least": 0.0}, {"latents": 8}, 8, 0.1
        ),
    )


if __name__ == "__main__":
    run(SpikeSlabFA)
