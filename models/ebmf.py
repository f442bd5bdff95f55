"""Matrix factorisation whose factors learn their priors: sparse loadings, sparse scores or both; values may be missing.

    share_k ~ Beta(1 / latents, 1),  slab_k ~ LogNormal(log 0.5, 1)                   (latent,)
    weights_k ~ Dirichlet(1/2), of components whose deviations are as
        0.02 : 0.25 : 0.5 : 1 : 2, and such that scores have variance 1               (latent, component)
    mask_jk ~ Bernoulli(share_k)                                                      (feature, latent)
    loadings_jk ~ N(0, slab_k^2) where mask_jk is 1, 0 elsewhere                      (feature, latent)
    R ~ LKJ(2), correlation_tril its Cholesky factor                                  (latent, latent)
    component_ik ~ weights_k                                                          (data, latent)
    z_i ~ N(0, D_i R D_i), D_i the deviations of row i's components                   (data, latent)
    rate ~ LogNormal(log 0.1, 1),  variance_j ~ InverseGamma(1.5, rate)               (feature,)
    x_ij ~ N(loadings_j z_i, variance_j), where x_ij was measured                     (data, feature)
or, for counts, in place of rate and variance, g being the batch of row i,
    usual ~ LogNormal(log 3, 1),  dispersion_j ~ LogNormal(log usual, 1)              (feature,)
    base_gj ~ N(level_j, 2^2)                                                         (batch, feature)
    x_ij ~ NegativeBinomial(size_i exp(base_gj + loadings_j z_i), dispersion_j)       (data, feature)

Each factor's loadings have a point-normal prior of its own, and its scores a mixture of normals of which the first is
nearly a point: rows without the latent. A factor on which nothing loads is off. What is missing is left out, whatever
its pattern, as long as that does not depend on the values. Features are standardised by what was measured of them. Of
counts, which have to be all there, loadings are those of log rates, size_i is the size factor over its mean, and
level_j the log of the feature's rate in the rows of the fit.

Each chain starts from sparse loadings or from sparse scores, whichever the priors explain better, by expectation-
maximisation of one factor at a time, the paper's inner problem (`constructions.matrix_starts`). A start settles by BIC
how many factors are on: that chains agree on it is the evidence. Then a Gibbs sampler runs (`exact.matrix_factors`).
The guide draws all but rate (of counts, usual), z and component from the run, components given these and x by
expectation propagation, one by one, and z exactly given all of these.

Of counts, a chain starts so from log(1 + x / size), and goes on by Metropolis within Gibbs (`exact.matrix_counts`),
exact given how many factors are on and the rows that it sees: all of them, or of more than 1 million entries of x its
own choice of as many. It first leaves out those for which counts do not ask (by BIC, scores summed out to second
order): a logarithm bends sparse scores into more. Components are guessed from what counts tell to second order, and z
is drawn by its Laplace approximation given the rest. That a row is without a latent is told less surely than of floats.
Of large counts with sparse scores behind dense loadings chains may stay apart, as verdicts then say.

*Identified:* latents up to permutation, sign and scale, and the mask up to permutation, given that the true loadings or
scores are the sparsest that fit, if noise can be told from latents (whichever feature is left out, the others hold two
disjoint sets that fix all latents: Anderson & Rubin 1956, theorem 5.1), and if zeros tell latents: for each of them the
features that do not load on it fix all others, with more such features than any rotation has by chance (Reiersol 1950);
or, the same of the transposed x, the rows without it do. It has to be features for all latents, or rows for all:
latents of sparse loadings may take anything from latents of sparse scores. Where loadings are dense and scores normal,
any rotation fits as well. Tails that are heavy alone tell nothing here, for scores may correlate.

Wang & Stephens (2021), Empirical Bayes matrix factorization; Reiersol (1950), On the identifiability of parameters in
Thurstone's multiple factor analysis.

*Differs from the paper in* a posterior over priors, loadings and scores in place of a variational approximation at the
best priors; scores that may correlate; factors that start together in place of one by one; and a law of counts.

Longer than other models because it has two laws of x under one set of priors, each with a sampler of its own.

*For a variant, copy this file and change* `story`: the law of `loadings` or of `component`, and with it the
conditionals of `Sampler` in `pyrocrl.exact.matrix_factors`, or of `MatrixCountSampler` in
`pyrocrl.exact.matrix_counts`.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.claims.card import AT_RANDOM
from pyrocrl.constructions.count_starts import matrix_start
from pyrocrl.constructions.matrix_starts import filled, start
from pyrocrl.dists import Categorical, InverseGamma, LogNormal, MultivariateNormal, NegativeBinomial, Normal, SpikeSlab
from pyrocrl.exact import count_factors
from pyrocrl.exact.count_scores import RowsOfCounts, components_given_counts, scores_given_counts
from pyrocrl.exact.matrix_counts import MatrixCountSampler
from pyrocrl.exact.matrix_factors import ALPHA, DRAWS, ETA, RATE, SHAPE, SLAB, Sampler
from pyrocrl.exact.score_mixtures import SCALES, components_given, deviations, scores_given, told
from pyrocrl.lab.studies.factors import Completion, SparseCounts, SparseFactors
from pyrocrl.options import Size, check_memory
from pyrocrl.parts.count_factors import baselines, size_of
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.program import Batches, Features, Latents, Likelihood, check_rows, check_sizes

SPARSEST = "the true loadings or scores are the sparsest of those that fit as well"
NOISE = "noise is independent between features"
NEEDS = ("noise_told_apart", "zeros_tell", "not_collinear")


class EBMF(Program):
    card = ModelCard(
        name="ebmf",
        title="Empirical Bayes matrix factorisation",
        family="factor analysis",
        summary="Sparse loadings, sparse scores or both: each factor learns its priors; values may be missing.",
        when=(
            "features depend linearly on few latents each, or rows have few latents each, or values are missing",
            "loadings are dense and all latents are in all rows: `heavy_tailed_fa` where they have heavy tails",
        ),
        assumes=(
            "x, or the log rate of counts, is linear in the latents",
            NOISE,
            AT_RANDOM[0],
        ),
        claims=(
            Claim("latents", ("permutation", "scale"), (SPARSEST,), NEEDS),
            Claim("mask", ("permutation",), (SPARSEST,), NEEDS),
        ),
        references=(
            Reference(
                "Wang & Stephens",
                2021,
                "Empirical Bayes matrix factorization",
                "Journal of Machine Learning Research",
                "https://www.jmlr.org/papers/v22/20-589.html",
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
            "a posterior over priors, loadings and scores in place of a variational approximation",
            "scores may correlate",
            "factors start together in place of one by one",
            "counts have a law of their own",
        ),
        reads_missing=("gaussian",),
        approximate="How many factors are on is settled by BIC at the start and draws are given it, so for data of its "
        "own story, with factors that hardly show, intervals of loadings are too narrow. Of counts it is settled to "
        "second order, and latents are drawn by Laplace's approximation given all else.",
        likelihoods=("gaussian", "negative_binomial"),
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=2, most_steps=20, batch_size=256, lr=0.02, dtype=torch.float64, chains=4)
    count_recipe = Recipe.unannealed(epochs=1, most_steps=4, batch_size=128, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"factors": (NOISE,)}
    constants = ("level", "size_unit")
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "component": Site(("data", "latent"), discrete=True),
        "share": Site(("latent",)),
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
        steps: Size = 300,
        batches: Batches = 1,
    ) -> None:
        """latents: how many are offered, at least 2; those that are not needed stay without features. steps: sweeps of
        the sampler, of which the first quarter is left out, or of counts those that settle how many are on."""
        super().__init__()
        check_sizes(features, latents, least=2)
        check_memory("features", features, 8.0 * DRAWS * features * (2 * latents + 1))
        check_memory("batches", batches, 8.0 * DRAWS * features * batches)
        self.counts = likelihood == "negative_binomial"
        one, both, components = (latents,), (features, latents), len(SCALES)
        shapes = {"share": one, "slab": one, "weights": (latents, components), "mask": both, "loadings": both}
        shapes |= {"correlation_tril": (latents, latents)}
        noise = {"dispersion": (features,), "base": (batches, features)} if self.counts else {"variance": (features,)}
        self.drawn = DrawnBlock(DRAWS, **shapes, **noise)
        start = {
            "share": 0.5,
            "slab": SLAB,
            "weights": 1 / components,
            "dispersion" if self.counts else "variance": 1.0,
        }
        for name, value in start.items():
            getattr(self.drawn, name).fill_(value)
        self.drawn.correlation_tril.copy_(torch.eye(latents))
        self.register_buffers(centre=torch.zeros(features, latents), tril=torch.eye(latents))
        self.register_buffers(level=torch.zeros(features), size_unit=torch.ones(()))
        if self.counts:
            self.recipe, self.checks = self.count_recipe, {"counts_left": (NOISE,)}
            self.usual = LogNormalBlock(loc=math.log(count_factors.DISPERSION))
        else:
            self.rate = LogNormalBlock(loc=math.log(RATE))

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        every = one.expand(features, latents)
        share = pyro.sample("share", dist.Beta(every[0] / latents, every[0]).to_event(1))  # (latent,)
        slab = pyro.sample("slab", LogNormal(math.log(SLAB) * every[0], every[0]).to_event(1))  # (latent,)
        equal = ALPHA * one.expand(latents, len(SCALES))
        weights = pyro.sample("weights", dist.Dirichlet(equal).to_event(1))  # (latent, component)
        mask = pyro.sample("mask", dist.Bernoulli(share.expand(features, latents)).to_event(2))
        loadings = pyro.sample("loadings", SpikeSlab(mask, Normal(0 * every, slab * every)).to_event(2))
        tril = pyro.sample("correlation_tril", dist.LKJCholesky(latents, ETA * one))  # (latent, latent)
        pyro.deterministic("correlation", tril @ tril.mT)
        if self.counts:
            level = self.level.expand(self.config["batches"], features)
            base = pyro.sample("base", Normal(level, count_factors.BASE * one).to_event(2))  # (batch, feature)
            usual = pyro.sample("usual", LogNormal(math.log(count_factors.DISPERSION) * one, one))
            dispersion = pyro.sample("dispersion", LogNormal(usual.log() * every[:, 0], one).to_event(1))
        else:
            rate = pyro.sample("rate", LogNormal(math.log(RATE) * one, one))
            variance = pyro.sample("variance", InverseGamma(SHAPE * every[:, 0], rate * every[:, 0]).to_event(1))
        with self.rows(batch):
            component = pyro.sample("component", Categorical(weights).to_event(1)).long()  # (rows, latent)
            sd = deviations(weights).gather(1, component.mT).mT  # (rows, latent)
            z = pyro.sample("z", MultivariateNormal(0 * sd, scale_tril=sd[:, :, None] * tril))
            if self.counts:
                log_rate, size = baselines(base, batch) + z @ loadings.mT, size_of(batch, self.size_unit)
                law = NegativeBinomial(None, dispersion, log_rate=log_rate, size=size)
            else:
                law = Normal(z @ loadings.mT, variance.sqrt())
            pyro.sample("x", self.measured(law, batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        if self.counts:
            pyro.sample("usual", self.usual())
        else:
            pyro.sample("rate", self.rate())
        sites = self.drawn.sample()
        with self.rows(batch):
            log_p, _, inner, seen = self._components(batch, sites)
            component = pyro.sample("component", Categorical(logits=log_p).to_event(1)).long()
            sd = deviations(sites["weights"]).gather(1, component.long().mT).mT
            if self.counts:
                mean, tril = scores_given_counts(*self._rows_of_counts(batch, sites), sd)
            else:
                mean, covariance = scores_given(inner, seen, sites["correlation_tril"], sd)
                tril = torch.linalg.cholesky(covariance)
            pyro.sample("z", MultivariateNormal(mean, scale_tril=tril))

    def _components(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`components_given` and what is `told` of z, given these sites."""
        tril, weights = sites["correlation_tril"], sites["weights"]
        if not self.counts:
            inner, seen = told(batch.x, batch.known, sites["loadings"], sites["variance"])
            return *components_given(inner, seen, tril, weights), inner, seen
        return components_given_counts(self._rows_of_counts(batch, sites), weights)

    def _rows_of_counts(self, batch: Batch, sites: dict[str, Tensor]) -> RowsOfCounts:
        level = size_of(batch, self.size_unit).log() + baselines(sites["base"], batch)
        return RowsOfCounts(batch.x, level, *(sites[name] for name in ("loadings", "dispersion", "correlation_tril")))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._given(batch)[1]

    def _given(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`components_given` at the means of the draws."""
        names = ("weights", "base", "dispersion") if self.counts else ("weights", "variance")
        sites = {name: getattr(self.drawn, name).mean(0) for name in names}
        return self._components(batch, sites | {"loadings": self.centre, "correlation_tril": self.tril})[:2]

    def mask(self) -> Tensor:
        return self.drawn.mask.mean(0)

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent) over the draws."""
        return self.drawn.loadings.mean(0), self.drawn.loadings.std(0)

    @torch.no_grad()
    def silent(self, batch: Batch) -> Tensor:
        return self._given(batch)[0].exp()[..., 0]

    def silent_share(self) -> Tensor:
        return self.drawn.weights[..., 0]

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """A run of the sampler, from sparse loadings or scores; fewer than 3 rows say nothing of correlations."""
        check_rows(data, 3)
        batch, latents = data.tensors("cpu", torch.float64), self.config["latents"]
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        found = self._of_counts(batch, rng) if self.counts else self._of_floats(batch, rng)
        each = {name: torch.as_tensor(value) for name, value in found.items()}
        each["mask"] = each["loadings"] != 0
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(each[name])
        tril, on = each["correlation_tril"], each["mask"].any(0).any(0)
        correlation = (tril @ tril.mT).mean(0)  # with factors that are off it is 0, but for the draws
        correlation = torch.where(on & on[:, None], correlation, torch.eye(latents, dtype=correlation.dtype))
        self.put(centre=each["loadings"].mean(0), tril=torch.linalg.cholesky(correlation))
        block, log_median = (self.usual, each["usual"].log()) if self.counts else (self.rate, each["rate"].log())
        block.set(log_median.mean(), log_median.std().clamp_min(0.05))

    def _of_floats(self, batch: Batch, rng: np.random.Generator) -> dict[str, np.ndarray]:
        latents = self.config["latents"]
        x, known = batch.x.numpy(), None if batch.known is None else batch.known.numpy()
        if known is not None:
            factors = max(1, min(latents, (self.config["features"] - 1) // 2, len(x) - 1))
            x = filled(x, known, factors, rng)
        return Sampler(x, known, *start(x, latents, rng), latents, rng).run(self.config["steps"])._asdict()

    def _of_counts(self, batch: Batch, rng: np.random.Generator) -> dict[str, np.ndarray]:
        latents = self.config["latents"]
        self.put(size_unit=batch.size_factor.mean())
        size = size_of(batch, self.size_unit)
        self.put(level=((batch.x.sum(0) + 0.5) / size.sum()).log())
        some = np.sort(rng.permutation(len(size))[: max(1000, int(count_factors.MOST / self.config["features"]))])
        x, own, group = batch.x.numpy()[some], size[some, 0].numpy(), batch.group.numpy()[some]
        begin, level = matrix_start(x, own, latents, rng), self.level.double().numpy()
        sampler = MatrixCountSampler(x, own, group, self.config["batches"], level, begin, latents, rng)
        return sampler.run_matrix(self.config["steps"])._asdict()

    @classmethod
    def example(cls, seed: int = 0) -> tuple[EBMF, Data]:
        from pyrocrl.simulate import draw

        data = draw("sparse_fa", seed=seed, rows=250, latents=2, features=14, correlation=0.3)
        return cls(features=data.features, latents=3, steps=100), data

    studies = (
        SparseFactors("sparse_fa", {"correlation": 0.3}, {"latents": 20}, 10, 0.1),
        SparseFactors("sparse_fa", {"correlation": 0.3, "rows": 500}, {"latents": 20}, 8, 0.1),
        SparseFactors("sparse_scores", {}, {"latents": 10}, 8, 0.1),
        Completion("sparse_fa", {"correlation": 0.3, "rows": 1000}, {"latents": 20}),
        Completion("sparse_fa", {"correlation": 0.3, "rows": 300}, {"latents": 20}),
        SparseCounts("sparse_counts", {"rows": 600, "features": 60, "latents": 4}, {"latents": 8}, 8, 0.1),
    )


if __name__ == "__main__":
    run(EBMF)
