"""Factor analysis with independent latents that have a pure child each: which features share which latent causes.

    density ~ Beta(1, 3)                                                              ()
    mask: `count` latents in use, uniform from 0 to half of the features or to        (feature, latent)
        as many as are offered, each with a pure child at random, a feature that
        depends on it alone; of the other features one, each alike, is its child,
        and all others are with the probability `density`
    loadings_jk of random sign and size slab chi(3) where mask_jk is 1, 0 elsewhere   (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                              (feature,)
    z_ik ~ N(0, 1)                                                                    (data, latent)
    x_ij ~ N(loadings_j z_i, variance_j)                                              (data, feature)

Features are standardised. The law of loadings is away from 0: entries are those that matter, and what is not there is
refuted at a faster rate than under a normal law (Johnson & Rossell 2010). A latent has two children or more, for one
that acts on a single feature is that feature's noise; features may depend on no latent.

Each chain starts from the theorem's construction: children of a latent are the features on which its pure child depends
(Fisher's z), and pure children are a maximum independent set of the graph of dependences. Of such covers at several
levels the most probable ones are improved, entry by entry and by whole latents (`constructions.pure_children`). Then a
Metropolis walk over masks runs (`exact.mask_walk`), loadings and noise summed out to second order, z exactly, at a cost
free of the rows. The guide draws mask, loadings and variances from the walk and z exactly given these; density has a
logit-normal law that is fitted.

*Identified:* the mask up to permutation, and with it how many latents there are, if latents and noise are independent
and each latent has a pure child: pure children depend on the features of their latent and no others, two of different
latents are independent, and any feature depends on all that its latents' pure children depend on, so that pure children
are those with the fewest dependences (Markham et al. 2023). The paper asks besides that features with a common latent
are dependent. The likelihood sees more than pairs: where what two latents give two features cancels, it tells the mask
all the same, unless the two latents may be turned so that these features are pure children in place of others. Then
either mask fits, and the one with fewer entries is preferred; where neither has, the verdict says so.

Loadings are not claimed: of a latent with two children only their product is known.

Markham, Liu, Aragam & Solus (2023), Neuro-causal factor analysis; Markham & Grosse-Wentrup (2020), Measurement
dependence inducing latent causal models.

*Differs from the paper in* linear Gaussian features in place of a variational autoencoder with the mask of one cover; a
posterior over masks in place of tests of pairs; no latents beyond those that features share.

*For a variant, copy this file and change* `story`: the law of `mask`, and with it `log_prior` and `prior_flips` in
`pyrocrl.exact.pure_masks`, or the law of `loadings` or `variance`, and with it `MaskPosterior` there.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions.pure_children import search, turns_margin
from pyrocrl.dists import InverseGamma, LogitNormal, Moment, MultivariateNormal, Normal, SpikeSlab
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.exact.mask_walk import DRAWS, draws
from pyrocrl.exact.one_pure import OnePure
from pyrocrl.exact.pure_masks import DENSITY, SHAPE, MaskPosterior
from pyrocrl.lab.studies.measured_graphs import Covers
from pyrocrl.options import Bounds, Positive, check_memory
from pyrocrl.parts.factor_scores import FactorReadouts, factors_given, factors_log_prob
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

LAW = "latents and noise are Gaussian, and features linear in latents"
INDEPENDENT = "latents are independent, and noise is between features"
PURE = "each latent has a pure child: a feature that depends on it alone"
CANCEL = "what two latents give two features does not cancel"
WEAK = "no loading that is not 0 is below a tenth of its feature's deviation"
GIVEN = (LAW, INDEPENDENT, PURE, CANCEL, WEAK)


class NeuroCausalFA(FactorReadouts, Program):
    card = ModelCard(
        name="neuro_causal_fa",
        title="Neuro-causal factor analysis",
        family="factor analysis",
        summary="Which features share which independent causes, each of which has a feature of its own; how many there "
        "are is inferred.",
        when=(
            "features share causes that are independent of each other, and of each cause some feature depends on it "
            "alone",
            "latents may depend on each other: `linear_latent_sem`, `anchor_fa`",
        ),
        assumes=GIVEN,
        claims=(Claim("mask", ("permutation",), GIVEN, ("turned_apart",)),),
        references=(
            Reference(
                "Markham, Liu, Aragam & Solus",
                2023,
                "Neuro-causal factor analysis",
                "arXiv",
                "https://arxiv.org/abs/2305.19802",
            ),
            Reference(
                "Markham & Grosse-Wentrup",
                2020,
                "Measurement dependence inducing latent causal models",
                "UAI",
                "https://proceedings.mlr.press/v124/markham20a.html",
            ),
        ),
        differs=(
            "linear Gaussian features in place of a variational autoencoder",
            "a posterior over masks in place of tests of pairs",
            "no latents beyond those that features share",
        ),
        approximate="Loadings and noise are summed out of the posterior of masks to second order about their mode.",
    )
    counted = "offered"
    recipe = Recipe.unannealed(
        epochs=2, most_steps=20, batch_size=512, lr=0.02, held_out=0.0, dtype=torch.float64, chains=4
    )
    checks = {"gaussian": (LAW,), "noise": (LAW,), "covariance": ()}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        slab: Positive = 0.4,
        rate: Positive = 0.1,
        steps: Annotated[int, Bounds(1, 1_000_000)] = 1200,
    ) -> None:
        """latents: how many are offered; those that are not needed stay without features.

        slab: most loadings are from half of it to three times it in size; rate: of the variances' prior, which has its
        mode at rate / 2.5. Both in units of the features' deviations. steps: of the walk over masks.
        """
        super().__init__()
        check_sizes(features, latents)
        check_memory("features", features, 8.0 * DRAWS * features * (2 * latents + 1))
        both = (features, latents)
        self.density = NormalBlock()
        self.drawn = DrawnBlock(DRAWS, mask=both, loadings=both, variance=(features,))
        self.drawn.variance.fill_(1.0)
        self.register_buffers(
            scores=torch.zeros(latents, features),  # of posterior means, averaged over draws
            second=torch.eye(features),
            fitted=torch.eye(features),  # by the most probable mask
            entries=torch.zeros(()),  # numbers that it is chosen by
            count=torch.ones(()),
            turn=torch.full((4,), torch.inf),  # see `turns_margin`
        )

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        density = pyro.sample("density", dist.Beta(DENSITY[0] * one, DENSITY[1] * one))
        mask = pyro.sample("mask", OnePure(density, features, latents))  # (feature, latent)
        slab = Moment(self.config["slab"] * torch.ones_like(mask))
        loadings = pyro.sample("loadings", SpikeSlab(mask, slab).to_event(2))  # (feature, latent)
        noise = InverseGamma(SHAPE * one.expand(features), self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        with self.rows(batch):
            z = pyro.sample("z", Normal(0 * one.expand(latents), one).to_event(1))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("density", LogitNormal(self.density.loc, self.density.scale))
        _, loadings, variance = self.drawn.sample().values()
        scores, covariance = factors_given(loadings, variance, self._independent())
        with self.rows(batch):
            law = MultivariateNormal(batch.x @ scores.mT, scale_tril=torch.linalg.cholesky(covariance))
            pyro.sample("z", law)

    def _independent(self) -> Tensor:
        """(latent, latent) Cholesky factor of latents' correlations."""
        return torch.eye(self.config["latents"], dtype=self.second.dtype, device=self.second.device)

    # -- read-outs ---------------------------------------------------------------------------------------------

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log N(x_i; 0, loadings loadings^T + diag(variance))."""
        return factors_log_prob(batch.x, sites["loadings"], sites["variance"], self._independent())

    def implied(self) -> Gaussians:
        zero = np.zeros((1, self.config["features"]))
        cov, fitted = (v.double().cpu().numpy()[None] for v in (self.second, self.fitted))
        return Gaussians(np.array([float(self.count)]), zero, cov, zero, fitted, float(self.entries))

    def turned(self) -> Tensor:
        return self.turn

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The search for masks, and a walk from the best one on; fewer than 3 rows say nothing of correlations."""
        check_rows(data, 3)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        latents, slab, rate, steps = (self.config[name] for name in ("latents", "slab", "rate", "steps"))
        posterior = MaskPosterior(x.T @ x / len(x), len(x), slab, rate)
        found = search(posterior, latents, rng)
        sampled = draws(posterior, [one.mask for one in found], steps, rng)
        drawn = {name: torch.as_tensor(part) for name, part in sampled._asdict().items()}
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn[name])
        log_odds = drawn["density"].logit()
        self.density.set(log_odds.mean(), log_odds.std().clamp_min(0.05))
        parts = zip(drawn["loadings"], drawn["variance"], strict=True)
        scores = [factors_given(*one, self._independent().double())[0] for one in parts]
        fitted, entries = posterior.best()
        self.put(
            scores=torch.stack(scores).mean(0),
            second=torch.as_tensor(posterior.second),
            fitted=torch.as_tensor(fitted),
            entries=torch.tensor(float(entries)),
            count=torch.tensor(float(len(x))),
            turn=torch.as_tensor(turns_margin(posterior, found[0].mask)),
        )

    @classmethod
    def example(cls, seed: int = 0) -> tuple[NeuroCausalFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("markham2024", seed=seed, rows=400, features=8, latents=2)
        return cls(features=data.features, latents=3, steps=200), data

    studies = tuple(
        Covers("markham2024", {"features": p, "latents": k, "density": d, "rows": rows}, {"latents": k + 4}, 10)
        for rows in (500, 2000)
        for p, k, d in ((10, 3, 0.2), (15, 5, 0.2), (20, 8, 0.2), (15, 5, 0.5))
    )


if __name__ == "__main__":
    run(NeuroCausalFA)
