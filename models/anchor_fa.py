"""Factor analysis with pure features: those that load on one latent alone tell latents apart, correlated or not.

    purity     ~ Beta(1, 1)                                                               ()
    rate_k     ~ Beta(1 / 4K, 1)                                                          (latent,)
    gate_j     : with probability purity exactly one entry is 1, each alike,              (feature, latent)
                 else gate_jk ~ Bernoulli(rate_k)
    slope_jk   ~ N(0, slab^2) where gate_jk = 1                                           (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                                  (feature,)
    z_i        ~ N(0, R), R a correlation matrix, LKJ(2)                                  (data, latent)
    x_i        ~ N(L z_i, diag(variance)),   L = gate * slope                             (data, feature)

K latents are offered; those on which two features or more load are in use, and their number is part of the posterior.
`pure` says which features load on one latent alone: groups of them are what names the latents.

The posterior of all but z comes from Gibbs sampling with z summed out through moments, at a cost free of the rows
(`finish`, `exact.sparse_factors`), from the groups that proportional loadings show (`constructions.pure_groups`). The
guide has its margins: each feature's patterns of gates with their probabilities, normal slopes and log variances, R at
its mean; z given these is exact. A latent on which one feature alone loads is counted as that feature's noise.

*Identified:* latents and loadings up to permutation, sign and scale, and K, if every latent has two pure features.
Whatever rotation the loadings are seen in, pure features of one latent have proportional rows (Bing et al. 2020,
theorem 1). With one pure feature a latent, or none, any features may be taken as pure: then no pairs are found. That no
others have proportional rows is what data can show in part: a pair that leaves as few and as small loadings refutes it.
As pure counts a feature that owes other latents a twentieth of its squared loadings at most: less is not told from 0.

Bing, Bunea, Ning & Wegkamp (2020), Adaptive estimation in structured factor models with applications to overlapping
clustering.

*Differs from the paper in* a posterior over pure groups, K and loadings in place of thresholds by cross-validation; the
scale is that of unit variance of latents, not of loadings of pure features.

Longer than other models because its guide holds patterns of gates with their probabilities, and reads them off draws.

*For a variant, copy this file and change* `story`: the law of `gate`, of `slope` or of `variance`, and delete `finish`,
which is made for these.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions.pure_groups import factors_shown, pure_groups
from pyrocrl.dists import InverseGamma, LogitNormal, MultivariateNormal, Normal, PseudoPrior
from pyrocrl.exact.gate_rows import PureOrSparse, RowPatterns
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.exact.sparse_factors import RATE, SHAPE, SparseFactors, State, Summary
from pyrocrl.lab.studies.factors import PureFeatures
from pyrocrl.options import Positive
from pyrocrl.parts.guides import LogNormalBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

LAW = "latents and noise are independent and Gaussian"
FACTORS = "what features share is their latents"
PROPORTIONAL = "features with proportional loadings load on one latent alone"
PATTERNS = 24  # of a feature's gates that are kept
BURN, KEPT = 300, 500  # sweeps
JITTER = 0.02  # of loadings from which chains start
MORE = 4  # latents beyond those that eigenvalues show, from which chains may start


class AnchorFA(Program):
    card = ModelCard(
        name="anchor_fa",
        title="Factor analysis with pure features",
        family="factor analysis",
        summary="Two features of its own identify a latent, correlated or not; how many latents there are is inferred.",
        when=(
            "features are linear in few latents, correlated or not, and some depend on one of them alone",
            "hardly any feature belongs to one latent alone, or the mixing bends: `sparse_vae` follows curves",
        ),
        assumes=("x is linear in the latents", "every latent has two features that load on it alone"),
        claims=(
            Claim(
                "latents", ("permutation", "scale"), (LAW, FACTORS, PROPORTIONAL), ("pure_features", "not_collinear")
            ),
            Claim("mask", ("permutation",), (LAW, FACTORS, PROPORTIONAL), ("pure_features", "not_collinear")),
        ),
        references=(
            Reference(
                "Bing, Bunea, Ning & Wegkamp",
                2020,
                "Adaptive estimation in structured factor models with applications to overlapping clustering",
                "Annals of Statistics",
                "https://doi.org/10.1214/19-AOS1877",
            ),
        ),
        differs=(
            "a posterior over pure groups, their number and loadings in place of thresholds by cross-validation",
            "latents have unit variance, where pure features have loadings of 1 in the paper",
        ),
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=5, least_steps=40, batch_size=512, lr=0.003, dtype=torch.float64, chains=4)
    checks = {"gaussian": (LAW,), "residuals": (FACTORS,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "rate": Site(("latent",)),
        "gate": Site(("feature", "latent"), discrete=True),
        "mask": Site(("feature", "latent"), discrete=True),
        "pure": Site(("feature", "latent"), discrete=True),
        "slope": Site(("feature", "latent"), {"latent": -1}),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(self, features: Features, latents: Latents, slab: Positive = 0.7, rate: Positive = 0.1) -> None:
        """latents: as many as there may be. slab: prior deviation of a loading; rate: of the variances' prior, which
        has its mode at rate / 2.5. Both in units of the features' deviations."""
        super().__init__()
        check_sizes(features, latents)
        self.slope = NormalBlock(features, latents, scale=0.05)
        self.variance = LogNormalBlock(features)
        self.raw_correlation = nn.Parameter(torch.zeros(latents, latents))
        self.register_buffers(
            pattern=torch.ones(features, PATTERNS, latents),
            log_share=torch.zeros(features, PATTERNS),
            purity=torch.ones(2),
            rate=torch.ones(2, latents),
            second=torch.eye(features),
            fitted=torch.eye(features),
            alone=torch.zeros(features, latents),
            count=torch.ones(()),
        )

    def story(self, batch: Batch) -> None:
        slab, rate, features, latents = (self.config[name] for name in ("slab", "rate", "features", "latents"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        purity = pyro.sample("purity", dist.Beta(one, one))
        with pyro.plate("latent", latents, dim=-1):
            rates = pyro.sample("rate", dist.Beta(RATE / latents * one, one))  # (latent,)
        gate = pyro.sample("gate", PureOrSparse(purity, rates, features))  # (feature, latent)
        mask = pyro.deterministic("mask", gate)
        pyro.deterministic("pure", gate * (gate.sum(-1, keepdim=True) == 1))
        law = PseudoPrior(gate, Normal(torch.zeros_like(gate), slab * one), self.slope())
        slope = pyro.sample("slope", law.to_event(2))  # (feature, latent)
        loadings = pyro.deterministic("loadings", mask * slope)
        with pyro.plate("feature", features, dim=-1):
            variance = pyro.sample("variance", InverseGamma(SHAPE * one, rate * one))
        pyro.factor("correlation_prior", self._log_correlation_prior())  # LKJ(2)
        with self.rows(batch):
            tril = self._correlation_tril()
            z = pyro.sample("z", MultivariateNormal(0 * tril[0], scale_tril=tril))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("purity", LogitNormal(*self.purity))
        with pyro.plate("latent", self.config["latents"], dim=-1):
            pyro.sample("rate", LogitNormal(*self.rate))
        gate = pyro.sample("gate", RowPatterns(self.pattern, self.log_share))
        slope = pyro.sample("slope", self.slope().to_event(2))
        with pyro.plate("feature", self.config["features"], dim=-1):
            variance = pyro.sample("variance", self.variance())
        with self.rows(batch):
            pyro.sample("z", self._given(gate * slope, variance, batch))

    def _given(self, loadings: Tensor, variance: Tensor, batch: Batch) -> MultivariateNormal:
        """Law of z (rows, latent) given x, loadings and variances."""
        scaled = loadings / variance[:, None]
        covariance = torch.linalg.inv(torch.cholesky_inverse(self._correlation_tril()) + loadings.mT @ scaled)
        return MultivariateNormal(batch.x @ scaled @ covariance, scale_tril=torch.linalg.cholesky(covariance))

    def _correlation_tril(self) -> Tensor:
        """(latent, latent) Cholesky factor of R: rows of unit length."""
        like = self.raw_correlation
        tril = like.tril(-1) + torch.eye(len(like), dtype=like.dtype, device=like.device)
        return tril / tril.norm(dim=-1, keepdim=True)

    def _log_correlation_prior(self) -> Tensor:
        """Up to a constant."""
        return 2.0 * self._correlation_tril().diagonal(dim1=-2, dim2=-1).log().sum(-1)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        mask = self.mask()
        z = self._given(mask * self.slope.loc, self.variance.loc.exp(), batch).mean
        return z * (mask > 0.5).any(0)  # 0 out of use

    def mask(self) -> Tensor:
        return RowPatterns(self.pattern, self.log_share).mean.clamp(0, 1)

    @torch.no_grad()
    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent), gates included."""
        mask, slope, sd = self.mask(), self.slope.loc, self.slope.scale
        return mask * slope, (mask * sd.square() + mask * (1 - mask) * slope.square()).sqrt()

    @torch.no_grad()
    def latent_correlation(self) -> Tensor:
        tril = self._correlation_tril()
        return tril @ tril.mT

    def pure(self) -> Tensor:
        return self.alone

    def implied(self) -> Gaussians:
        zero, chosen = np.zeros((1, len(self.fitted))), float(self.mask().sum() + len(self.fitted))
        cov, fitted = (v.double().cpu().numpy()[None] for v in (self.second, self.fitted))
        return Gaussians(np.array([float(self.count)]), zero, cov, zero, fitted, chosen)

    # -- from data ---------------------------------------------------------------------------------------------

    def _moments(self, data: Data) -> np.ndarray:
        """(feature, feature) mean of x x^T, which it keeps."""
        x = data.tensors(self.second.device, torch.float64).x
        self.put(second=x.mT @ x / len(x), count=self.count.new_tensor(len(x)))
        return (x.mT @ x / len(x)).cpu().numpy()

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Latents at groups of proportional loadings, as many as eigenvalues show and up to `MORE` beyond."""
        check_rows(data, 3)
        second, latents, features = self._moments(data), self.config["latents"], data.features
        scale = np.sqrt(np.maximum(np.diag(second), 1e-12))
        more = int(torch.randint(MORE + 1, (), generator=generator))
        start = pure_groups(second / scale[:, None] / scale, min(latents, factors_shown(second, data.rows) + more))
        loadings, correlation = np.zeros((features, latents)), np.eye(latents)
        used = start.loadings.shape[1]
        loadings[:, :used], correlation[:used, :used] = start.loadings * scale[:, None], start.correlation
        shares = 0.5, np.full(latents, 1 / latents)
        noise = torch.randn(features, latents, generator=generator, dtype=torch.float64).numpy()
        loadings += JITTER * noise * (loadings != 0)
        state = State(loadings, start.variance * scale**2, correlation, *shares)
        self._take(Summary.of([state], PATTERNS))

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Draws of the posterior, z summed out, from where the chain stands."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        tril = self._correlation_tril()
        gate = (self.mask() > 0.5).to(self.slope.loc)
        parts = (gate * self.slope.loc, self.variance.loc.exp(), tril @ tril.mT, self.rate[0].sigmoid())
        loadings, variance, correlation, shares = (v.detach().double().cpu().numpy() for v in parts)
        state = State(loadings, variance, correlation, float(self.purity[0].sigmoid()), shares)
        law = SparseFactors(self._moments(data), data.rows, slab=self.config["slab"], rate=self.config["rate"])
        self._take(Summary.of(law.walk(state, BURN, KEPT, rng), PATTERNS))

    @torch.no_grad()
    def _take(self, found: Summary) -> None:
        """Set the guide to these margins."""
        each = {name: torch.as_tensor(value) for name, value in found._asdict().items()}
        like = self.slope.loc
        self.slope.set(*(each[name].to(like) for name in ("slope", "slope_sd")))
        self.variance.set(*(each[name].to(like) for name in ("log_variance", "log_variance_sd")))
        tril = torch.linalg.cholesky(each["correlation"])
        names = ("pattern", "log_share", "purity", "rate")
        self.put(raw_correlation=tril / tril.diagonal()[:, None], fitted=each["covariance"], alone=each["pure"])
        self.put(**{name: each[name] for name in names})

    @classmethod
    def example(cls, seed: int = 0) -> tuple[AnchorFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("bing2020", seed=seed, rows=500, latents=6, features=120)
        return cls(features=data.features, latents=8), data

    studies = tuple(PureFeatures("bing2020", {"rows": rows}, {"latents": 20}) for rows in (600, 2000))


if __name__ == "__main__":
    run(AnchorFA)
