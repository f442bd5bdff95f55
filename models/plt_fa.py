"""Factor analysis with a positive lower triangular loading matrix: rotations are settled by the order of features.

    slope_jk ~ N(0, slab^2) for j > k, 0 for j < k                              (open,)
    diagonal_k = L_kk ~ slab chi(K - k + 1), k = 1 .. K                         (latent,)
    variance_j ~ InverseGamma(1.5, rate)                                        (feature,)
    z_i ~ N(0, I)                                                               (data, latent)
    x_i ~ N(L z_i, diag(variance))                                              (data, feature)

Column k of L begins at feature k, with a positive loading: the first K features name the latents. With these diagonals
L L^T has the law of a full matrix of N(0, slab^2), so that the prior of the covariance does not depend on the order of
features (Leung & Drton 2016). Features are told about their means.

The guide is exact for z given L and variances; these are jointly normal, those that are positive in their logarithm,
with the mean and covariance that they have with z summed out (`finish`, `exact.factor_analysis`).

*Identified:* L and z exactly, given the order of features, if the K by K block at the top has no small diagonal and the
noise can be told from the latents: whichever feature is left out, the others hold two disjoint sets of K that fix all
latents (Anderson & Rubin 1956, theorem 5.1), for which 2 K + 1 features are needed.

Anderson & Rubin (1956), Statistical inference in factor analysis; Carvalho, Chang, Lucas, Nevins, Wang & West (2008),
High-dimensional sparse factor modeling; Leung & Drton (2016), Order-invariant prior specification in Bayesian factor
analysis.

*Differs from the paper in* a posterior about its mode in place of Gibbs sampling (Carvalho), without sparsity of L.

*For a variant, copy this file and change* `story`: the law of `slope`, of `variance` or of `z`.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import PowerTransform

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import InverseGamma, MultivariateNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact.factor_analysis import Triangular
from pyrocrl.lab.studies.factors import Loadings
from pyrocrl.options import Positive, check_memory
from pyrocrl.parts.guides import JointBlock
from pyrocrl.program import Features, Latents, check_sizes

ORDER = "feature k, in the order of the columns, depends on latents 1 to k alone and on latent k for certain"
LAW = "latents and noise are independent and Gaussian"


class PLTFA(Program):
    card = ModelCard(
        name="plt_fa",
        title="Triangular factor analysis",
        family="factor analysis",
        summary="Factor analysis whose first features name the latents: no rotation is left, and intervals are joint.",
        when=(
            "there is a feature for each latent that depends on it and on the latents before it alone",
            "no features are known to come first: any order of them is fitted, and names other latents",
        ),
        assumes=("x is linear in the latents", "features stand in an order that names the latents"),
        claims=(Claim("latents", ("exact",), (ORDER, LAW), ("noise_told_apart",)),),
        references=(
            Reference(
                "Anderson & Rubin",
                1956,
                "Statistical inference in factor analysis",
                "Berkeley Symposium on Mathematical Statistics and Probability",
                "https://projecteuclid.org/euclid.bsmsp/1200511860",
            ),
            Reference(
                "Leung & Drton",
                2016,
                "Order-invariant prior specification in Bayesian factor analysis",
                "Statistics & Probability Letters",
                "https://doi.org/10.1016/j.spl.2016.01.006",
            ),
        ),
        differs=("a posterior about its mode in place of Gibbs sampling", "no sparsity of loadings"),
    )
    counted = "evidence"
    recipe = Recipe.unannealed(epochs=20, least_steps=100, batch_size=512, lr=0.01, dtype=torch.float64, chains=2)
    checks = {"gaussian": (LAW,), "factors": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "slope": Site(("open",)),
        "diagonal": Site(("latent",)),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(self, features: Features, latents: Latents, slab: Positive = 0.7, rate: Positive = 0.1) -> None:
        """slab: prior deviation of a loading; rate: of the variances' prior, which has its mode at rate / 2.5. Both in
        units of the features' deviations.

        Raises InputError for fewer than 2 latents + 1 features.
        """
        super().__init__()
        check_sizes(features, latents)
        if features < 2 * latents + 1:
            reject("latents", latents, f"at most {(features - 1) // 2}, so that noise is told from latents")
        check_memory("features", features, 8.0 * (features * (latents + 1)) ** 2)
        j, k = torch.tril_indices(features, latents, offset=-1)
        self.register_buffers(j=j, k=k)
        self.joint = JointBlock((len(j), latents, features), positive=(False, True, True))

    def story(self, batch: Batch) -> None:
        slab, rate, features, latents = (self.config[name] for name in ("slab", "rate", "features", "latents"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        slope = pyro.sample("slope", Normal(one.new_zeros(len(self.j)), slab * one).to_event(1))
        with pyro.plate("latent", latents, dim=-1):
            freedom = one * torch.arange(latents, 0, -1, device=batch.device)
            square = dist.Gamma(freedom / 2, one / (2 * slab**2))
            diagonal = pyro.sample("diagonal", dist.TransformedDistribution(square, PowerTransform(0.5 * one)))
        with pyro.plate("feature", features, dim=-1):
            variance = pyro.sample("variance", InverseGamma(1.5 * one, rate * one))
        loadings = pyro.deterministic("loadings", self._loadings(slope, diagonal))  # (feature, latent)
        with self.rows(batch):
            z = pyro.sample("z", Normal(0 * diagonal, 0 * diagonal + 1).to_event(1))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        slope, diagonal, variance = self.joint.sample("slope", "diagonal", "variance")
        scaled = self._loadings(slope, diagonal) / variance[:, None]  # (feature, latent)
        with self.rows(batch):
            pyro.sample("z", self._given(self._loadings(slope, diagonal), scaled, batch))

    def _given(self, loadings: Tensor, scaled: Tensor, batch: Batch) -> MultivariateNormal:
        """Law of z (rows, latent) given x, loadings and variances."""
        precision = loadings.mT @ scaled + torch.eye(loadings.shape[1], dtype=loadings.dtype, device=loadings.device)
        covariance = torch.linalg.inv(precision)
        return MultivariateNormal(batch.x @ scaled @ covariance, scale_tril=torch.linalg.cholesky(covariance))

    def _loadings(self, slope: Tensor, diagonal: Tensor) -> Tensor:
        """(feature, latent) L."""
        zeros = slope.new_zeros(self.config["features"], self.config["latents"])
        k = torch.arange(len(diagonal), device=slope.device)
        return zeros.index_put((self.j, self.k), slope).index_put((k, k), diagonal)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        slope, log_diagonal, log_variance = self.joint.loc.split(self.joint.sizes)
        loadings = self._loadings(slope, log_diagonal.exp())
        return self._given(loadings, loadings / log_variance.exp()[:, None], batch).mean

    @torch.no_grad()
    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent), 0 above the diagonal."""
        sd = self.joint.tril.square().sum(1).sqrt()
        (slope, log_diagonal, _), (slope_sd, log_sd, _) = (v.split(self.joint.sizes) for v in (self.joint.loc, sd))
        return self._loadings(slope, log_diagonal.exp()), self._loadings(slope_sd, log_diagonal.exp() * log_sd)

    # -- from data ---------------------------------------------------------------------------------------------

    def _law(self, data: Data) -> Triangular:
        x = data.tensors(self.j.device, torch.float64).x
        return Triangular(x.mT @ x / len(x), len(x), *(self.config[name] for name in ("latents", "slab", "rate")))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Principal components of the correlations, rotated; deviations of a tenth."""
        law, latents = self._law(data), self.config["latents"]
        values, vectors = torch.linalg.eigh(law.second)
        rest = values[:-latents].mean()
        loadings = Triangular.rotated(vectors[:, -latents:] * (values[-latents:] - rest).clamp_min(1e-3).sqrt())
        variance = (law.second.diagonal() - loadings.square().sum(1)).clamp_min(0.05)
        k = torch.arange(latents)
        start = torch.cat([loadings[self.j, self.k], loadings[k, k].clamp_min(0.05).log(), variance.log()])
        noise = torch.randn(len(start), generator=generator, dtype=torch.float64)
        self.joint.set(start + 0.1 * noise, 0.01 * torch.eye(len(start), dtype=torch.float64))

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Loadings and variances with z summed out."""
        law = self._law(data)
        self.joint.set(*law.walked(*law.moments(self.joint.loc.double()), generator))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[PLTFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("plt2010", seed=seed, rows=400, latents=2, features=8)
        return cls(features=data.features, latents=2), data

    studies = tuple(Loadings("plt2010", {"rows": rows}, {"latents": 3}, seeds=20) for rows in (400, 2000))


if __name__ == "__main__":
    run(PLTFA)
