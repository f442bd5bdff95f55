"""Sparse codes in an overcomplete dictionary: a Bayesian sparse auto-encoder.

    rate_k ~ Beta(1, latents - 1)                                                    (latent,)
    spread_k ~ LogNormal(log .3, .5)                                                 (latent,)
    loadings_jk ~ N(0, slab^2)                                                       (feature, latent)
    center_j ~ N(0, 1),  variance_j ~ InverseGamma(1.5, noise)                       (feature,)
    z_ik = 0, or with probability rate_k ~ N(1, spread_k^2) where positive           (data, latent)
    x_i ~ N(center + loadings z_i, diag(variance))                                   (data, feature)
or, for counts, in place of center and variance, g being the batch of row i,
    base_gj ~ N(level_j, 2^2),  dispersion_j ~ LogNormal(log 3, 1.5)                 (batch, feature), (feature,)
    x_ij ~ NegativeBinomial(size_i exp(base_gj + loadings_j z_i), dispersion_j)      (data, feature)

There are more latents than features, and few fire in a row: z_ik = s_ik a_ik with s_ik ~ Bernoulli(rate_k) and a
positive magnitude a_ik. Column k of the loadings is direction k, as long as it is where the magnitude has its mode, 1:
a direction of length 1, with magnitudes of another mode.

Each chain starts from EM of its own (`constructions.dictionaries`); latents that rows do not pay for are left out, and
have no loadings. Of z the guide is the posterior over supports one latent less, one more or one exchanged away from the
best that a search finds, of at most `most` latents, magnitudes given the support exact but for their signs
(`exact.sparse_codes`): so `firing` gives probabilities. All else is independent, about the maximum, with the
errors that rows' scores tell (`constructions.code_errors`): what unseen codes lose is in them.

Of counts, loadings are those of log rates, size_i is the size factor over its mean, and level_j the log of the
feature's rate in the rows of the fit. A chain starts from the directions of log(1 + x / size) and goes on by EM of
counts (`constructions.count_dictionaries`). Supports are searched about the modes of their magnitudes, and weighed by
Laplace's approximation there (`exact.count_codes`); magnitudes are drawn from it. Of large counts log(1 + x / size) as
floats tells directions as well; of few rows of small ones chains may differ, as verdicts then say.

*Identified:* latents up to permutation, if supports are sparse, no direction is near parallel to another, and none
fires only along with another: then the sparsest codes are unique (Donoho & Elad 2003, of at most
(1 + 1 / coherence) / 2 latents; of random supports far more), and rows settle the dictionary (Aharon, Elad & Bruckstein
2006). Signs are fixed, for magnitudes are positive. Where two directions nearly always fire together, any two of their
span tell the rows, and where codes are dense nothing tells directions apart. EM finds one of many maxima: that chains
agree is evidence, each latent's agreement is in the verdict, and the best chain by held-out rows is read. Latents too
few, or two directions taken for one, as EM takes those of cosine above .9, show in what is left of rows and in latents
that do not fire independently. A direction in less than 3 % of the rows may be missed unseen.

Goodfellow, Courville & Bengio (2012), Large-scale feature learning with spike-and-slab sparse coding; Sheikh, Shelton &
Luecke (2014), A truncated EM approach for spike-and-slab sparse coding; Song et al. (2025), Mechanistic
interpretability should prioritize feature consistency in SAEs.

*Differs from the paper in* positive magnitudes, supports near the best one in place of mean field (Goodfellow) or of
all supports of preselected latents (Sheikh), a posterior of all parameters, starts that leave latents out, and a law of
counts.

Longer than other models because it has two laws of x under one law of codes.

*For a variant, copy this file and change* `story`: the law of `z`, and with it `Codes` in `pyrocrl.exact.sparse_codes`,
or that of counts, and with it `CountCodes` in `pyrocrl.exact.count_codes`.
"""

from __future__ import annotations

import math
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import code_errors, count_dictionaries, dictionaries
from pyrocrl.dists import InverseGamma, LogitNormal, LogNormal, NegativeBinomial, Normal, PositiveSpikeSlab
from pyrocrl.exact.count_codes import CountCodes, CountRows
from pyrocrl.exact.count_factors import BASE, DISPERSION, SPREAD
from pyrocrl.exact.sparse_codes import Codes, Drawn
from pyrocrl.lab.studies.codes import CountDirections, Directions
from pyrocrl.options import Bounds, Positive, Size, check_memory
from pyrocrl.parts.count_factors import baselines, size_of
from pyrocrl.parts.guides import LogNormalBlock, NormalBlock
from pyrocrl.program import Batches, Features, Likelihood, check_rows

SHAPE = 1.5
USUAL, WIDTH = math.log(0.3), 0.5  # of the logarithm of magnitudes' deviation, a priori
INDEPENDENT, SPARSEST = "latents fire independently", "the true codes are the sparsest of those that fit as well"
NEEDS = ("few_fire", "firing_told", "directions_apart", "fire_apart")
FEW = {"latents": 20, "active": 2.0, "median": 1.0, "dispersion": 2.0}  # counts
OVERCOMPLETE = {"latents": 24, "features": 16, "length": 4.0, "median": 50.0, "dispersion": 50.0}  # and large counts


class SparseDictionary(Program):
    card = ModelCard(
        name="sparse_dictionary",
        title="Sparse dictionary",
        family="factor analysis",
        summary="More directions than features, of which few fire in a row, with positive magnitudes: a Bayesian "
        "sparse auto-encoder, with probabilities of firing.",
        when=(
            "rows are sums of few of many directions, as activations of a network are taken to be",
            "most latents are at work in every row: then a factor model",
        ),
        assumes=(
            "x, or the log rate of counts, is linear in the latents",
            "few latents fire in a row",
            "noise is Gaussian",
            "counts are negative binomial given their rates",
        ),
        claims=(Claim("latents", ("permutation",), (SPARSEST, INDEPENDENT), NEEDS),),
        references=(
            Reference(
                "Goodfellow, Courville & Bengio",
                2012,
                "Large-scale feature learning with spike-and-slab sparse coding",
                "ICML",
                "https://arxiv.org/abs/1206.6407",
            ),
            Reference(
                "Sheikh, Shelton & Luecke",
                2014,
                "A truncated EM approach for spike-and-slab sparse coding",
                "JMLR",
                "https://arxiv.org/abs/1211.3589",
            ),
            Reference(
                "Song, Muhamed, Zheng, Kong, Tang, Diab, Smith & Zhang",
                2025,
                "Mechanistic interpretability should prioritize feature consistency in SAEs",
                "arXiv",
                "https://arxiv.org/abs/2505.20254",
            ),
        ),
        differs=(
            "magnitudes are positive",
            "the posterior is over supports near the best one",
            "chains start from EM that leaves latents out",
            "counts have a law of their own",
        ),
        approximate="Of counts, a support is weighed by Laplace's approximation at the mode of its magnitudes, and all "
        "but the most probable ones to second order about a mode nearby, for their evidence has no closed form.",
        likelihoods=("gaussian", "negative_binomial"),
    )
    recipe = Recipe.unannealed(epochs=2, most_steps=10, batch_size=1000, lr=1e-3, chains=3)
    count_recipe = Recipe.unannealed(epochs=1, most_steps=4, batch_size=256, lr=1e-3, chains=3)
    checks = {"explained": (), "independent_firing": (INDEPENDENT,)}
    constants = ("level", "size_unit")
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "rate": Site(("latent",)),
        "spread": Site(("latent",)),
        "variance": Site(("feature",), unit=2),
        "center": Site(("feature",), unit=1),
        "base": Site(("batch", "feature")),
        "dispersion": Site(("feature",)),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[
            int, Bounds(2), "how many directions are offered; those that rows do not pay for never fire"
        ],
        most: Size = 8,
        slab: Positive = 0.7,
        noise: Positive = 0.1,
        likelihood: Likelihood = "gaussian",
        batches: Batches = 1,
    ) -> None:
        """most: latents that fire in a row, at most, in the guide. slab: prior deviation of a loading; noise: of the
        variances' prior, which has its mode at noise / 2.5; counts have none. Both in units of the features'
        deviations, slab of the log rates of counts.
        """
        super().__init__()
        self.counts = likelihood == "negative_binomial"
        check_memory("latents", latents, 16.0 * latents * (latents + features) + 64e3 * latents * most)
        self.loadings, self.spread = NormalBlock(features, latents, scale=0.01), LogNormalBlock(latents, loc=USUAL)
        if self.counts:
            self.recipe, self.checks = self.count_recipe, {**self.checks, "counts_left": ()}
            self.center = NormalBlock(batches, features, scale=0.01)
            self.noise = LogNormalBlock(features, loc=math.log(DISPERSION))
        else:
            self.center, self.noise = NormalBlock(features, scale=0.01), LogNormalBlock(features, loc=-2.0)
        self.register_buffers(level=torch.zeros(features), size_unit=torch.ones(()))
        self.odds = NormalBlock(latents, loc=-math.log(latents))

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        with pyro.plate("latent", latents, dim=-1):
            rate = pyro.sample("rate", dist.Beta(one, (latents - 1) * one))
            spread = pyro.sample("spread", LogNormal(USUAL * one, WIDTH * one))
        slab = Normal(one.new_zeros(features, latents), self.config["slab"] * one)
        loadings = pyro.sample("loadings", slab.to_event(2))  # (feature, latent)
        if self.counts:
            level = self.level.expand(self.config["batches"], features)
            base = pyro.sample("base", Normal(level, BASE * one).to_event(2))  # (batch, feature)
        with pyro.plate("feature", features, dim=-1):
            if self.counts:
                dispersion = pyro.sample("dispersion", LogNormal(math.log(DISPERSION) * one, SPREAD * one))
            else:
                center = pyro.sample("center", Normal(0 * one, one))
                variance = pyro.sample("variance", InverseGamma(SHAPE * one, self.config["noise"] * one))
        with self.rows(batch):
            z = pyro.sample("z", PositiveSpikeSlab(rate, one, spread).to_event(1))  # (rows, latent)
            if self.counts:
                log_rate, size = baselines(base, batch) + z @ loadings.mT, size_of(batch, self.size_unit)
                law = NegativeBinomial(None, dispersion, log_rate=log_rate, size=size)
            else:
                law = Normal(center + z @ loadings.mT, variance.sqrt())
            pyro.sample("x", law.to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with pyro.plate("latent", self.config["latents"], dim=-1):
            rate = pyro.sample("rate", LogitNormal(self.odds.loc, self.odds.scale))
            spread = pyro.sample("spread", self.spread())
        loadings = pyro.sample("loadings", self.loadings().to_event(2))
        if self.counts:
            center = pyro.sample("base", self.center().to_event(2))
        with pyro.plate("feature", self.config["features"], dim=-1):
            if not self.counts:
                center = pyro.sample("center", self.center())
            noise = pyro.sample("dispersion" if self.counts else "variance", self.noise())
        with self.rows(batch), torch.no_grad():  # at its optimum the bound has no slope in this posterior
            codes = self._law(loadings, noise, spread, rate)
            pyro.sample("z", Drawn(codes, self._part(batch, center), self.config["most"]))

    @property
    def _law(self) -> type[Codes]:
        return CountCodes if self.counts else Codes

    def _part(self, batch: Batch, center: Tensor) -> Tensor | CountRows:
        """What codes read of rows."""
        if not self.counts:
            return batch.x - center
        return CountRows(batch.x, size_of(batch, self.size_unit).log() + baselines(center, batch))

    # -- read-outs ---------------------------------------------------------------------------------------------

    def codes(self) -> Codes:
        """Of the fitted parameters."""
        values = (self.loadings.loc, self.noise.loc.exp(), self.spread.loc.exp(), self.odds.loc.sigmoid())
        return self._law(*(value.detach() for value in values))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        codes, x = self.codes(), self._part(batch, self.center.loc)
        return codes.mean(x, codes.search(x, self.config["most"]))

    @torch.no_grad()
    def firing(self, batch: Batch) -> Tensor:
        """(rows, latent) probabilities that a latent fires."""
        return self.codes().search(self._part(batch, self.center.loc), self.config["most"]).firing()

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        return self.loadings.loc.detach(), self.loadings.scale.detach()

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """EM; deviations by the scores of rows (`constructions.code_errors`). Latents that are left out have no
        loadings."""
        check_rows(data, 3)
        batch, own = data.tensors(dtype=self.center.loc.dtype), self.config
        latents, most, rows, x = own["latents"], own["most"], data.rows, batch.x
        prior: code_errors.Prior | code_errors.CountPrior
        one: dictionaries.Dictionary
        if self.counts:
            self.put(size_unit=batch.size_factor.mean())
            size = size_of(batch, self.size_unit)
            self.put(level=((x.sum(0) + 0.5) / size.sum()).log())
            table = torch.eye(own["batches"], dtype=x.dtype)
            seen = count_dictionaries.Counts(x, size.log(), baselines(table, batch).expand(len(x), -1))
            prior = code_errors.CountPrior(own["slab"], self.level, USUAL, WIDTH, latents)
            one = count_dictionaries.learn(seen, latents, most, own["slab"], generator)
        else:
            seen, prior = x, code_errors.Prior(own["slab"], SHAPE, own["noise"], USUAL, WIDTH, latents)
            one = dictionaries.learn(x, latents, most, generator)
        used, error = one.count, code_errors.errors(seen, one, most, prior, generator)
        self.center.set(one.center, error.center.to(x))
        self.noise.set(one.noise.log(), error.log_noise.to(x))
        w, w_sd = torch.zeros_like(self.loadings.loc), torch.full_like(self.loadings.loc, 0.01)
        spread, spread_sd = torch.full_like(self.spread.loc, USUAL), torch.full_like(self.spread.loc, WIDTH)
        odds, odds_sd = torch.full_like(self.odds.loc, -math.log(rows + latents)), torch.ones_like(self.odds.loc)
        w[:, :used], w_sd[:, :used] = one.w, error.w.to(x)
        spread[:used], spread_sd[:used] = one.spread.log(), error.log_spread.to(x)
        odds[:used], odds_sd[:used] = torch.logit(one.rate), error.log_odds.to(x)
        for block, loc, scale in (
            (self.loadings, w, w_sd),
            (self.spread, spread, spread_sd),
            (self.odds, odds, odds_sd),
        ):
            block.set(loc, scale)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[SparseDictionary, Data]:
        from pyrocrl.simulate import draw

        data = draw("synth_sae_small", seed=seed, rows=300, latents=6, features=5, active=0.8)
        return cls(features=data.features, latents=6, most=3), data

    studies = (
        Directions("synth_sae_small", {"zipf": 0.7}, {"latents": 64}, held_out=0.1),
        Directions("synth_sae_small", {}, {"latents": 64}, held_out=0.1),
        CountDirections("code_counts", FEW, {"latents": 20}, seeds=3, held_out=0.2),
        CountDirections("code_counts", OVERCOMPLETE, {"latents": 24}, seeds=3, held_out=0.2),
    )


if __name__ == "__main__":
    run(SparseDictionary)
