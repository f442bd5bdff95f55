"""The sparse VAE: every feature depends on few latents.

    theta_k    ~ Beta(1, b)                                    (latent,)
    gate_jk    ~ Bernoulli(theta_k)                            (feature, latent)
    slope_jk   ~ N(0, slab^2)                                  (feature, latent), where decoder="linear"
    variance_j ~ InverseGamma(1.5, .015 spread_j^2)            (feature,), of floats
    z_i        ~ N(0, R)                                       (data, latent), R a correlation matrix
    x_ij       ~ N(f_j(mask_j * z_i), variance_j)              (data, feature)   or, for counts,
    x_ij       ~ NegativeBinomial(s_i exp(f_j(mask_j * z_i)), r_j)
    f_j        = head_j . trunk(mask_j * z)                    decoder="nonlinear": one trunk, a head per feature
    f_j        = a_j[batch_i] + sum_k loadings_jk z_k          decoder="linear": loadings = mask * slope

mask is gate, but for a latent on which fewer than two features load, which is switched off: it could not be told from
noise. The prior of variances is scaled by the columns' spread, that of R is LKJ; s_i is the size factor. `model` sums
theta out, `recover` draws it given the gates. The guide is q(z | x) = N(mu(x), L(x) L(x)^T), independent Bernoulli
gates with straight-through gradients (`SettlingGates`), log-normal variances, and normal slopes, which only count where
the gate is open: elsewhere the guide itself is their (pseudo-)prior. Gates end at the optimum of coordinate ascent,
then floats' slopes and variances behind a linear decoder at the means and deviations that they have with z summed out
(`finish`, `exact.factor_analysis`): fitted as independent of z, they are too sure. Up to `LARGEST` of them.

Values that are missing are left out of x's law; the encoder sees them at their features' means, is told which they
are, and chains start from rows in which factors stand in for them (`completed`). Slopes and variances of rows that lack
values stay as they were fitted, too sure.

With thousands of rows a loading of any size is significant, and no model of real counts is right to that precision.
`smallest_loading` = rho asks for loadings of that standardised size and larger: the mask's posterior is coarsened
(Miller & Dunson 2019) to that of alpha = 2 log(2 features) / rho^2 rows, in which a loading rho earns as much as the
prior asks of a column's first entry. By default rho = .25 for counts, and off otherwise.

*Identified:* latents up to permutation and a monotone map of each, the mask up to permutation, if every latent has
two anchors (features that load on it alone). Latents may be correlated. `sparse=False` fixes all gates open: with a
linear decoder that is factor analysis, free up to rotation, and its guide can follow any rotation.

Moran, Sridhar, Wang & Blei (2022), Identifiable deep generative models via sparse decoding.

*Differs from the paper in* being a posterior: exact zeros by gates instead of a spike-and-slab lasso, an ELBO in which
global terms count once per data set, learned correlations. Chains start from the mask that the theorem's argument
reads off the data (`anchors.loadings_pattern`), each on its own subsample.

Longer than other models because it is two decoders under one mask, each with the start, the recipe and the last step
that its gates need.

*For a variant, copy this file and change* `story`: the line of `slab`, another prior of weights, of `gate`, another one
of the mask (then the prior odds in `finish` too), or of `likelihood`, and delete `model` and `recover`: the story is
then fitted as it stands, with a mean-field block for theta.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Annotated, Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import InverseGamma
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.claims.card import AT_RANDOM
from pyrocrl.constructions import anchors, gates, log_rates
from pyrocrl.constructions.completed import completed
from pyrocrl.dists import Beta, MultivariateNormal, Normal, PseudoPrior
from pyrocrl.exact.beta_bernoulli import BetaBernoulliColumns, log_odds_given_others
from pyrocrl.exact.factor_analysis import FactorAnalysis
from pyrocrl.lab.studies import Study
from pyrocrl.lab.studies.missing import Lacking
from pyrocrl.lab.studies.screens import PATHWAY, Screen
from pyrocrl.options import Bounds, Positive, Share, Size
from pyrocrl.parts.guides import LogNormalBlock, NormalBlock, SettlingGates
from pyrocrl.parts.nets import MaskedDecoder, TrilEncoder, turned_weights
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Batches, Features, Latents, Likelihood, Missing, check_sizes

NEEDS = ("two_anchors", "not_collinear")
OPEN, SHUT = 3.0, -3.0  # log odds of gates at the start
LEAST_ROWS = 50  # fewer say nothing about anchors
LARGEST = 4_000  # slopes and variances whose joint information is inverted


class Effort(NamedTuple):
    """start_rows: of each chain's subsample, for the starting mask. start_cells, least_start_rows: starts are read off
    as many rows as have so many entries, and no fewer. finish_rows, finish_draws: for the last gates."""

    start_rows: int = 300
    start_cells: float = 1e7
    least_start_rows: int = 2_000
    finish_rows: int = 2_000
    finish_draws: int = 8


EFFORT = Effort()


def anchored(gate: Tensor) -> Tensor:
    """(feature, latent) the mask: gates of latents on which at least two features load, 0 for the others."""
    return gate * (gate.detach().sum(-2, keepdim=True) > 1.5)


class SparseVAE(Program):
    card = ModelCard(
        name="sparse_vae",
        title="Sparse VAE",
        family="sparse decoding",
        summary="Every feature depends on few latents; two features of its own identify a latent, correlated or not.",
        when=(
            "each feature depends on few latents, as genes do on programmes, whether or not there are interventions",
            "hardly any feature belongs to one latent alone, or a graph and the effects of interventions are wanted: "
            "environments are not looked at; latents correlate and features are linear in them: then `spike_slab_fa`",
        ),
        assumes=(
            "each feature depends on few latents",
            "noise is independent between features",
            "latents are independent, unless `correlated`",
            AT_RANDOM[0],
        ),
        claims=(
            Claim("latents", ("permutation", "elementwise"), needs=NEEDS),
            Claim("mask", ("permutation",), needs=NEEDS),
        ),
        references=(
            Reference(
                "Moran, Sridhar, Wang & Blei",
                2022,
                "Identifiable deep generative models via sparse decoding",
                "TMLR",
                "https://arxiv.org/abs/2110.10804",
            ),
        ),
        differs=(
            "gates with exact zeros in place of a spike-and-slab lasso",
            "an ELBO: global terms count once per data set",
            "the latents' correlation is learned",
            "chains start from the anchors found in the data",
        ),
        reads_missing=("gaussian", "negative_binomial"),
        likelihoods=("gaussian", "negative_binomial"),
        status="stable",
    )
    counted = "offered"
    checks = {"left": ()}
    recipe = Recipe(
        epochs=450,
        most_steps=2700,
        batch_size=100,
        lr=2e-2,
        lr_end=0.01,
        betas=(0.9, 0.99),
        kl_warmup=0.0,
        temperature=(1.0, 0.1),
        temperature_span=0.4,
        clip=5.0,
        patience=None,
    )
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "theta": Site(("latent",)),
        "gate": Site(("feature", "latent"), discrete=True),
        "mask": Site(("feature", "latent"), discrete=True),
        "slope": Site(("feature", "latent"), {"latent": -1}),
        "loadings": Site(("feature", "latent"), {"latent": -1}),
        "variance": Site(("feature",), unit=2),
    }
    linear_recipe = dataclasses.replace(
        recipe,
        epochs=50,
        least_steps=800,
        most_steps=800,
        batch_size=512,
        lr=3e-3,
        lr_hold=0.7,
        lr_end=0.02,
        lr_scale={"gate": 16.0, "slope": 7.0, "observation": 7.0, "variance": 7.0},
        kl_warmup=0.07,
        temperature=(1.0, 0.5),
        temperature_span=0.2,
        clip=20.0,
        keep="last",  # predictions lose a little while gates close
    )

    def __init__(
        self,
        features: Features,
        latents: Latents,
        likelihood: Likelihood = "gaussian",
        decoder: Literal["nonlinear", "linear"] | None = None,
        sparse: bool = True,
        correlated: bool | None = None,
        inclusion: Share | None = None,
        smallest_loading: Annotated[float, Bounds(0, 1, "[)")] | None = None,
        batches: Batches = 1,
        hidden: Size = 50,
        slab: Positive | None = None,
        missing: Missing = False,
    ) -> None:
        """decoder: None = linear for counts. sparse: whether features have a mask. hidden: units of networks' layers.
        correlated: whether R is learned; None = where the decoder is nonlinear.

        inclusion: prior mean 1 / (1 + b) of a gate; None = 1e-4 (about log(data) per decoder weight that an open gate
        brings into use) for a nonlinear decoder, 1 / (1 + features) for a linear one.
        smallest_loading: the standardised size from which loadings are of interest; None = .25 for counts with a linear
        decoder, 0 (any size that the data show) otherwise.
        slab: prior deviation of a linear decoder's loadings, of log rates or of standardised features; None = .5 for
        counts, 1 otherwise.
        """
        super().__init__()
        check_sizes(features, latents)
        self.counts = likelihood == "negative_binomial"
        decoder = decoder or ("linear" if self.counts else "nonlinear")
        self.linear, self.sparse = decoder == "linear", sparse
        self.correlated = (not self.linear) if correlated is None else correlated
        inclusion = (1.0 / (1 + features) if self.linear else 1e-4) if inclusion is None else inclusion
        self.b = 1.0 / inclusion - 1.0
        smallest = (0.25 if self.counts and self.linear else 0.0) if smallest_loading is None else smallest_loading
        self.coarse_rows = 2 * math.log(2 * features) / smallest**2 if smallest else math.inf  # alpha
        # behind a nonlinear decoder a linear map only leads astray where x is far out, as with products of latents
        mean = nn.Linear(features, latents) if self.linear else None
        full = not (self.linear and sparse)
        self.encoder = TrilEncoder(features, latents, hidden, "silu", mean, full=full, scale=0.4, flags=missing)
        if self.linear:
            self.recipe = self.linear_recipe
            self.checks = {"factors": ()}
            self.slope = NormalBlock(features, latents, scale=0.05, jitter=0.3)
            self.slab = (0.5 if self.counts else 1.0) if slab is None else slab
        else:
            self.decoder = MaskedDecoder(features, latents, (hidden, hidden), "silu")
            for net in (self.encoder.net, self.decoder.trunk):
                net.scale_up()
        if sparse:
            self.gate = SettlingGates(features, latents, probability=0.8, bounded=self.linear)
        if not self.counts:
            self.variance = LogNormalBlock(features)
        self.observation = Observation(features, likelihood, batches, noise=None)
        self.raw_correlation = nn.Parameter(torch.zeros(latents, latents), requires_grad=self.correlated)

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        feature = pyro.plate("feature", self.config["features"], dim=-2)
        latent = pyro.plate("latent", self.config["latents"], dim=-1)
        mask = slope = None
        with self._coarsened(batch):
            if self.sparse:
                with latent:
                    theta = pyro.sample("theta", dist.Beta(one, self.b * one))  # (latent,)
                with feature, latent:
                    gate = pyro.sample("gate", dist.Bernoulli(theta))  # (feature, latent)
                mask = pyro.deterministic("mask", anchored(gate))
            if self.linear:
                slab = Normal(torch.zeros_like(self.slope.loc), self.slab)
                with feature, latent:
                    law = PseudoPrior(gate, slab, self.slope()) if self.sparse else slab
                    slope = pyro.sample("slope", law)  # (feature, latent)
                pyro.deterministic("loadings", slope if mask is None else mask * slope)
        if not self.counts:
            prior = InverseGamma(1.5 * one, 0.015 * self.observation.spread.square())
            variance = pyro.sample("variance", prior.to_event(1))  # (feature,)
        if self.correlated:
            pyro.factor("correlation_prior", self._log_correlation_prior())  # LKJ(2)
        with self.rows(batch):
            z = pyro.sample("z", self._prior_z())  # (rows, latent)
            eta = self._eta(z, mask, slope)  # (rows, feature)
            likelihood = self.observation.likelihood(eta, batch, None if self.counts else variance.sqrt())
            pyro.sample("x", self.measured(likelihood, batch).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        mask = slope = None
        with self._coarsened(batch):
            if self.sparse:
                b = torch.full((), self.b, dtype=batch.dtype, device=batch.device)
                gates = BetaBernoulliColumns(b, self.config["features"], self.config["latents"])
                gate = pyro.sample("gate", gates)  # (feature, latent)
                mask = anchored(gate)
            if self.linear:
                slab = Normal(torch.zeros_like(self.slope.loc), self.slab)
                law = PseudoPrior(gate, slab, self.slope()) if self.sparse else slab
                slope = pyro.sample("slope", law.to_event(2))  # (feature, latent)
        if not self.counts:
            prior = InverseGamma(batch.x.new_tensor(1.5), 0.015 * self.observation.spread.square())
            variance = pyro.sample("variance", prior.to_event(1))  # (feature,)
        if self.correlated:
            pyro.factor("correlation_prior", self._log_correlation_prior())  # LKJ(2)
        with self.rows(batch):
            z = pyro.sample("z", self._prior_z())  # (rows, latent)
            eta = self._eta(z, mask, slope)  # (rows, feature)
            likelihood = self.observation.likelihood(eta, batch, None if self.counts else variance.sqrt())
            pyro.sample("x", self.measured(likelihood, batch).to_event(1), obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        if not self.sparse:
            return
        loading = kept["gate"].sum(-2)  # (latent,) how many features do
        with self._coarsened(batch), pyro.plate("latent", self.config["latents"], dim=-1):
            pyro.sample("theta", Beta(1 + loading, self.b + self.config["features"] - loading))

    def guide(self, batch: Batch) -> None:
        with self._coarsened(batch):
            if self.sparse:
                pyro.sample("gate", self.gate(batch.temperature).to_event(2))
            if self.linear:
                pyro.sample("slope", self.slope().to_event(2))
        if not self.counts:
            pyro.sample("variance", self.variance().to_event(1))
        with self.rows(batch):
            loc, tril = self.encoder(self.observation.inputs(batch), batch.known)
            pyro.sample("z", MultivariateNormal(loc, scale_tril=tril))

    def _coarsened(self, batch: Batch) -> Any:
        """Count the mask and slopes as if there were `coarse_rows` rows, with full weight from .4 of the fit on."""
        if not self.linear or not self.sparse:
            return contextlib.nullcontext()
        ramp = (batch.progress / 0.4).clamp(1e-3, 1.0)
        return pyro.poutine.scale(scale=ramp * max(1.0, batch.total / self.coarse_rows))

    def _prior_z(self) -> Any:
        zero = torch.zeros_like(self.raw_correlation[0])
        if self.correlated:
            return MultivariateNormal(zero, scale_tril=self._correlation_tril())
        return Normal(zero, zero + 1).to_event(1)

    def _log_correlation_prior(self) -> Tensor:
        """Up to a constant."""
        return 2.0 * self._correlation_tril().diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _correlation_tril(self) -> Tensor:
        """(latent, latent) Cholesky factor of R: rows of unit length."""
        tril = self.raw_correlation.tril(-1) + torch.eye(len(self.raw_correlation), device=self.raw_correlation.device)
        return tril / tril.norm(dim=-1, keepdim=True)

    def _eta(self, z: Tensor, mask: Tensor | None, slope: Tensor | None) -> Tensor:
        """(rows, feature) the decoder's output, as `Observation` takes it."""
        if self.linear:
            assert slope is not None
            return z @ (slope if mask is None else mask * slope).mT
        open_ = torch.ones_like(self.decoder.head[:, : z.shape[-1]]) if mask is None else mask
        out: Tensor = self.decoder(z, open_)
        return out

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) posterior means; a latent that no feature uses is 0 throughout."""
        loc = self.encoder(self.observation.inputs(batch), batch.known)[0]
        return loc * self._in_use() if self.sparse else loc

    def mask(self) -> Tensor | None:
        """(feature, latent) probability that the gate is open and its latent in use."""
        return self.gate.probabilities * self._in_use().to(self.gate.logits.dtype) if self.sparse else None

    def _in_use(self) -> Tensor:
        return anchored(self.gate.open).sum(0) > 0

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Columns' scales, and the mask's start from the anchors found in a subsample of the rows."""
        observed, latents = self.observation, self.config["latents"]
        data = data.some(EFFORT.start_cells, EFFORT.least_start_rows)
        batch = observed.start(data)
        if not self.counts:
            self.variance.loc.copy_(2.0 * observed.spread.log())
        if not self.sparse or data.rows < LEAST_ROWS:
            return
        batch = completed(batch, latents, generator, observed.size(batch) if self.counts else None)
        if self.linear:
            start = log_rates.varimax_factors(observed, batch, latents, generator)
            sd = torch.linalg.inv(start.precision).diagonal().clamp_min(1e-6).sqrt()  # of a factor analysis
            tril = None if self.encoder.full else torch.diag(sd)
            self.encoder.start(start.scores, torch.zeros_like(sd), tril, keep=0.0)
            self.slope.loc.copy_(start.slope.clamp(-3 * self.slab, 3 * self.slab))
            self.gate.logits.copy_((3.0 * (start.loadings.abs() / 0.25 - 1.0)).clamp(-1.5, 1.5))
        else:
            pick = torch.randperm(data.rows, generator=generator)[: min(EFFORT.start_rows, int(0.8 * data.rows))]
            pattern = anchors.loadings_pattern(observed.seen(batch)[pick].double().numpy(), latents)
            self.gate.logits.copy_(torch.where(torch.from_numpy(pattern), OPEN, SHUT))

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """Encoder and slopes turned, all gates open; not of networks, which see what their masks let through."""
        if not self.linear:
            return False
        turn = turn.to(self.slope.loc)
        self.encoder.turn(turn)
        mask = anchored(self.gate.open) if self.sparse else torch.ones_like(self.slope.loc)
        self.slope.loc.copy_(turned_weights(mask * self.slope.loc, turn))
        if self.sparse:
            self.gate.logits.fill_(OPEN)
            self.gate.finished.fill_(0.0)
        return True

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Set every gate to its optimum given all else: log odds = gain in log-likelihood + prior log odds.

        A gate counts with its latent in use; those of latents out of use keep their prior odds. The likelihood and the
        slab are the story's; the prior odds are those of gates with theta summed out.
        """
        if not self.sparse:
            return
        rows = torch.randperm(data.rows, generator=generator)[: EFFORT.finish_rows]
        batch = data.rows_at(rows.numpy()).tensors(self.gate.logits.device, self.gate.logits.dtype)
        mask = anchored(self.gate.open)  # (feature, latent)
        loc, tril = self.encoder(self.observation.inputs(batch), batch.known)
        draws = [loc + (tril @ torch.randn_like(loc).unsqueeze(-1)).squeeze(-1) for _ in range(EFFORT.finish_draws)]

        def log_density(z: Tensor, gate: Tensor) -> Tensor:
            law: Any = self._told(z, gate, batch)["x"]["fn"]
            return law.base_dist.log_prob(batch.x).sum(0)

        gain = gates.gains(log_density, draws, mask, torch.nonzero(mask.sum(0)).flatten().tolist())
        gain *= min(data.rows, self.coarse_rows) / len(batch) / EFFORT.finish_draws
        if self.linear:
            gain -= kl_divergence(self.slope(), self._told(draws[-1], mask, batch)["slope"]["fn"].slab)
        gain = torch.where(mask.sum(0) > 0, gain, torch.zeros_like(gain))
        self.gate.settle(gain + log_odds_given_others(mask, self.b))
        if self.linear and not self.counts:
            self._given_mask(data, self._told(draws[-1], mask, batch))

    def _given_mask(self, data: Data, story: Any) -> None:
        """Open slopes and variances as the mask leaves them with z summed out: independent of z, they are too sure.

        Where the story's laws are other ones, as a variant's, they stay as they were fitted.
        """
        slab, noise, x = story["slope"]["fn"].slab, story["variance"]["fn"].base_dist, story["x"]["fn"].base_dist
        gate = anchored(self.gate.open) > 0
        conjugate = (isinstance(slab, Normal), isinstance(noise, InverseGamma), isinstance(x, Normal))
        if not all(conjugate) or int(gate.sum()) + len(gate) > LARGEST:
            return
        seen = self.observation.inputs(data.tensors(gate.device, self.slope.loc.dtype))
        unit = self.observation.spread.double().square()
        tril = self._correlation_tril().double()
        law = FactorAnalysis(
            sum(part.mT @ part for part in (block.double() for block in seen.split(4096))) / len(seen),
            len(seen),
            gate,
            tril @ tril.mT,
            slab=slab.scale.double(),
            shape=noise.concentration.double(),
            rate=noise.rate.double() / unit,
            coarse=self.coarse_rows,
        )
        found = law.posterior(self.slope.loc.double(), self.variance.loc.double() - unit.log())
        loc, sd = (torch.where(gate, *pair) for pair in zip(found[:2], (self.slope.loc, self.slope.scale), strict=True))
        self.slope.set(loc, sd)
        self.variance.set(found.log_variance + unit.log(), found.log_variance_sd)
        # and z as these leave it: of the slopes as they were the encoder's would be wrong
        scaled = found.slope / found.log_variance.exp()[:, None]  # (feature, latent)
        precision = found.slope.mT @ scaled + torch.linalg.inv(law.correlation)
        covariance = torch.linalg.inv(precision)
        tril = torch.linalg.cholesky(covariance) if self.encoder.full else torch.diag(precision.diagonal().rsqrt())
        self.encoder.start(covariance @ scaled.mT, torch.zeros_like(precision[0]), tril, keep=0.0)

    def _told(self, z: Tensor, gate: Tensor, batch: Batch) -> Any:
        """Sites of the story, given z (rows, latent), gates (feature, latent) and medians of what else is drawn."""
        known = {"z": z, "gate": gate, "theta": gate.new_full(gate.shape[1:], 1.0 / (1.0 + self.b))}
        if self.linear:
            known["slope"] = self.slope.loc
        if not self.counts:
            known["variance"] = (0.5 * self.variance.loc).exp().square()
        return pyro.poutine.trace(pyro.poutine.condition(self.story, data=known)).get_trace(batch).nodes

    @classmethod
    def example(cls, seed: int = 0) -> tuple[SparseVAE, Data]:
        from pyrocrl.simulate import draw

        data = draw("moran2022", seed=seed, rows=400)
        return cls(features=data.features, latents=3, hidden=32), data

    studies = (
        *(Study("moran2022", {"rho": rho}, {"latents": 5}) for rho in (0.0, 0.8)),
        Study("perturb_seq", {"rows": 3000}, {"latents": 6}),
        Lacking("moran2022", {"rho": 0.0, "rows": 1000}, {"latents": 5}, 3, recipe={"chains": 4}),
        Screen("papalexi2021", build={"latents": 15}, seeds=1, knockouts=PATHWAY),
    )


if __name__ == "__main__":
    run(SparseVAE)
