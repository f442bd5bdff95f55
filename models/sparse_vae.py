"""The sparse VAE: every feature depends on few latents.

    theta_k ~ Beta(1, b),  m_jk ~ Bernoulli(theta_k)          (feature, latent), theta integrated out
    z_i     ~ N(0, R)                                          (data, latent), R a correlation matrix
    x_ij    ~ N(f_j(m_j * z_i), v_j)                           (data, feature)   or, for counts,
    x_ij    ~ NegativeBinomial(s_i exp(f_j(m_j * z_i)), r_j)
    f_j     = head_j . trunk(m_j * z)                          decoder="nonlinear": one trunk, a head per feature
    f_j     = a_j[batch_i] + sum_k m_jk w_jk z_k,  w_jk ~ N(0, tau^2)         decoder="linear"

A latent on which fewer than two features load is switched off: it could not be told from noise. v_j has an inverse
gamma prior scaled by the columns' spread, R an LKJ prior; s_i is the size factor. The guide is q(z | x) =
N(mu(x), L(x) L(x)^T), independent Bernoulli gates with straight-through gradients, log-normal v_j, and normal w_jk
where the gate is open. With a nonlinear decoder the gates stay at their more probable value for the last part of a
fit, so that the decoder settles, and end at the optimum of coordinate ascent given the rest (`finish`).

*Identified:* latents up to permutation and a monotone map of each, the mask up to permutation, if every latent has
two anchors (features that load on it alone). Latents may be correlated. `sparse=False` fixes all gates open: with a
linear decoder that is factor analysis, free up to rotation, and its guide can follow any rotation.

Moran, Sridhar, Wang & Blei (2022), Identifiable deep generative models via sparse decoding.

*Differs from the paper in* being a posterior: exact zeros by gates instead of a spike-and-slab lasso, an ELBO in which
global terms count once per data set, learned correlations. Chains start from the mask that the theorem's argument
reads off the data (`anchors.loadings_pattern`), each on its own subsample.

*For a variant, copy this file and change* `_gate_prior`: another prior of the mask.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import InverseGamma, constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, anchors, run
from pyrocrl.dists import Gate, MultivariateNormal, NegativeBinomial, Normal
from pyrocrl.errors import one_of, reject
from pyrocrl.guides import GateBlock, LogNormalBlock, NormalBlock
from pyrocrl.nets import MLP, MaskedDecoder
from pyrocrl.program import check_sizes

GIVEN = ("every latent has two anchors, which load on it alone", "latents are not perfectly correlated")
SURE = 12.0  # largest log odds of a gate
OPEN, SHUT = 3.0, -2.0  # log odds of gates at the start
LEAST_ROWS = 50  # fewer say nothing about anchors
START_ROWS = 300  # of each chain's subsample, for the starting mask
FINISH_ROWS, FINISH_DRAWS = 2_000, 8


class BetaBernoulliColumns(TorchDistribution):
    """(feature, latent) gates m_jk ~ Bernoulli(theta_k) with theta_k ~ Beta(1, b) integrated out."""

    arg_constraints = {"b": constraints.positive}  # noqa: RUF012  (torch's own form)
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, b: Tensor, features: int, latents: int, validate_args: bool | None = None) -> None:
        self.b = b
        super().__init__(torch.Size(), torch.Size((features, latents)), validate_args=validate_args)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.event_shape
        uniform = torch.rand(*shape[:-2], 1, shape[-1], dtype=self.b.dtype, device=self.b.device)
        theta = 1.0 - uniform ** (1.0 / self.b)
        return (torch.rand(shape, dtype=self.b.dtype, device=self.b.device) < theta).to(self.b.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        count, features = value.sum(-2), self.event_shape[0]
        column = torch.lgamma(1 + count) + torch.lgamma(self.b + features - count) + self.b.log()
        return (column - torch.lgamma(1 + self.b + features)).sum(-1)


class Encoder(nn.Module):
    """q(z | x): (rows, inputs) -> mean (rows, latent) and scale_tril (rows, latent, latent), full or diagonal."""

    def __init__(self, inputs: int, latents: int, hidden: int, full: bool) -> None:
        super().__init__()
        self.latents, self.full = latents, full
        self.linear = nn.Linear(inputs, latents)
        self.net = MLP([inputs, hidden, hidden, latents * (1 + (latents if full else 1))], "silu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(x)
        raw = out[..., self.latents :]
        if self.full:
            raw = raw.unflatten(-1, (self.latents, self.latents))
            tril = raw.tril(-1) + torch.diag_embed(_positive(raw.diagonal(dim1=-2, dim2=-1)))
        else:
            tril = torch.diag_embed(_positive(raw))
        return self.linear(x) + out[..., : self.latents], tril


class SparseVAE(Program):
    card = ModelCard(
        name="sparse_vae",
        title="Sparse VAE",
        family="sparse decoding",
        summary="Every feature depends on few latents; two features of its own identify a latent, correlated or not.",
        assumes=("each feature depends on few latents", "noise is independent between features"),
        claims=(
            Claim("latents", ("permutation", "elementwise"), given=GIVEN, needs=("two_anchors",)),
            Claim("mask", ("permutation",), given=GIVEN, needs=("two_anchors",)),
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
        likelihoods=("gaussian", "negative_binomial"),
        settings=("moran2022",),
        status="stable",
    )
    recipe = Recipe(
        epochs=400,
        batch_size=100,
        lr=5e-3,
        lr_end=0.01,
        lr_scale={"gate": 2.0},
        betas=(0.9, 0.99),
        kl_warmup=0.0,
        temperature=(1.0, 0.1),
        temperature_span=0.6,
        clip=5.0,
        patience=None,
    )
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "gate": Site(("feature", "latent"), discrete=True),
        "mask": Site(("feature", "latent"), discrete=True),
        "weight": Site(("feature", "latent"), {"latent": -1}),
        "variance": Site(("feature",)),
    }
    centre: Tensor
    spread: Tensor
    finished: Tensor

    def __init__(
        self,
        features: int,
        latents: int,
        likelihood: Literal["gaussian", "negative_binomial"] = "gaussian",
        decoder: Literal["nonlinear", "linear"] | None = None,
        sparse: bool = True,
        correlated: bool | None = None,
        inclusion: float | None = None,
        batches: int = 1,
        hidden: int = 50,
    ) -> None:
        """decoder: None = linear for counts. correlated: whether R is learned; None = where the decoder is nonlinear.

        inclusion: prior mean 1 / (1 + b) of a gate; None = 1e-4 (about log(data) per decoder weight that an open gate
        brings into use) for a nonlinear decoder, 1 / (1 + features) for a linear one.
        """
        super().__init__()
        check_sizes(features, latents)
        one_of("likelihood", likelihood, ("gaussian", "negative_binomial"))
        self.counts = likelihood == "negative_binomial"
        decoder = decoder or ("linear" if self.counts else "nonlinear")
        one_of("decoder", decoder, ("nonlinear", "linear"))
        self.linear, self.sparse = decoder == "linear", sparse
        self.correlated = (not self.linear) if correlated is None else correlated
        inclusion = (1.0 / (1 + features) if self.linear else 1e-4) if inclusion is None else inclusion
        if not 0 < inclusion < 1:
            reject("inclusion", inclusion, "a probability between 0 and 1")
        self.b = 1.0 / inclusion - 1.0
        self.encoder = Encoder(features, latents, hidden, full=not (self.linear and sparse))
        if self.linear:
            self.weight = NormalBlock(features, latents, scale=0.05, jitter=0.3)
        else:
            self.decoder = MaskedDecoder(features, latents, (hidden, hidden), "silu")
        if sparse:
            self.gate = GateBlock(features, latents, probability=0.8)
        if not self.counts:
            self.variance = LogNormalBlock(features)
        self.raw_dispersion = nn.Parameter(torch.full((features,), 3.0), requires_grad=self.counts)
        self.offset = nn.Parameter(torch.zeros(batches, features), requires_grad=self.counts)
        self.raw_correlation = nn.Parameter(torch.zeros(latents, latents), requires_grad=self.correlated)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("finished", torch.zeros(()))  # 1 once `finish` has set the gates' probabilities

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Columns' scales, and the mask's start from the anchors found in a subsample of the rows."""
        batch = data.tensors(dtype=self.centre.dtype)
        seen = self._seen(batch)
        spread = seen.std(0)
        self.centre.copy_(seen.mean(0))
        self.spread.copy_(torch.where(spread > 1e-8, spread, torch.ones_like(spread)))
        if self.counts:
            for group in range(len(self.offset)):
                rows = batch.group == group
                rate = (batch.x[rows].sum(0) + 0.5) / batch.size_factor[rows].sum().clamp_min(1e-8)
                self.offset[group] = rate.log()
        else:
            self.variance.loc.copy_(2.0 * self.spread.log())
        if self.sparse and data.rows >= LEAST_ROWS:
            pick = torch.randperm(data.rows, generator=generator)[: min(START_ROWS, int(0.8 * data.rows))]
            pattern = anchors.loadings_pattern(seen[pick].double().numpy(), self.config["latents"])
            self.gate.logits.copy_(torch.where(torch.from_numpy(pattern), OPEN, SHUT))

    def model(self, batch: Batch) -> None:
        zero = batch.x.new_zeros(self.config["latents"])
        mask = weight = None
        if self.sparse:
            mask = anchored(pyro.sample("gate", self._gate_prior(batch)))  # (feature, latent)
        if self.linear:
            slab = Normal(torch.zeros_like(self.weight.loc), 1.0)
            weight = pyro.sample("weight", slab.to_event(2))  # (feature, latent)
        if not self.counts:
            prior = InverseGamma(batch.x.new_tensor(1.5), 0.015 * self.spread.square())
            variance = pyro.sample("variance", prior.to_event(1))  # (feature,)
        if self.correlated:  # LKJ(2), up to a constant
            pyro.factor("correlation_prior", 2.0 * self._correlation_tril().diagonal(dim1=-2, dim2=-1).log().sum(-1))
        with self.rows(batch):
            prior_z = (
                MultivariateNormal(zero, scale_tril=self._correlation_tril())
                if self.correlated
                else Normal(zero, zero + 1).to_event(1)
            )
            z = pyro.sample("z", prior_z)  # (rows, latent)
            mean = self._mean(z, mask, weight, batch)  # (rows, feature)
            likelihood = (
                NegativeBinomial(mean, softplus(self.raw_dispersion)) if self.counts else Normal(mean, variance.sqrt())
            )
            pyro.sample("x", likelihood.to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        if self.sparse:
            gate = pyro.sample("gate", Gate(self._gate_logits(batch), batch.temperature).to_event(2))
        if self.linear:
            q = self.weight()
            if self.sparse:  # the slab itself where the gate is shut
                q = Normal(gate * q.loc, gate * q.scale + (1 - gate))
            pyro.sample("weight", q.to_event(2))
        if not self.counts:
            pyro.sample("variance", self.variance().to_event(1))
        with self.rows(batch):
            loc, tril = self.encoder(self._scaled(batch))
            pyro.sample("z", MultivariateNormal(loc, scale_tril=tril))

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Set every gate to its optimum given all else: log odds = gain in log-likelihood + prior log odds.

        Only x_j depends on row j of the mask, so one decoder pass per latent and state gives all gates. A gate counts
        with its latent in use; those of latents out of use keep their prior odds.
        """
        if not self.sparse or self.linear:
            return
        rows = torch.randperm(data.rows, generator=generator)[:FINISH_ROWS]
        batch = data.rows_at(rows.numpy()).tensors(self.centre.device, self.centre.dtype)
        mask = anchored(self._open())  # (feature, latent)
        loc, tril = self.encoder(self._scaled(batch))
        gain = torch.zeros_like(mask)
        for _ in range(FINISH_DRAWS):
            z = loc + (tril @ torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)
            for k in range(mask.shape[1]):
                shut, opened = mask.clone(), mask.clone()
                shut[:, k], opened[:, k] = 0.0, 1.0
                gain[:, k] += self._feature_fit(z, opened, batch) - self._feature_fit(z, shut, batch)
        gain *= data.rows / len(batch) / FINISH_DRAWS
        gain = torch.where(mask.sum(0) > 0, gain, torch.zeros_like(gain))
        others = mask.sum(0) - mask
        prior = (1.0 + others).log() - (self.b + mask.shape[0] - 1 - others).log()
        self.gate.logits.copy_((gain + prior).clamp(-SURE, SURE))
        self.finished.fill_(1.0)

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        mask = anchored(self._open()) if self.sparse else None
        return self._mean(z, mask, self.weight.loc if self.linear else None, batch)

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) posterior means; a latent that no feature uses is 0 throughout."""
        loc = self.encoder(self._scaled(batch))[0]
        return loc * (anchored(self._open()).sum(0) > 0) if self.sparse else loc

    def mask(self) -> Tensor | None:
        """(feature, latent) probability that the gate is open and its latent in use."""
        if not self.sparse:
            return None
        in_use = (anchored(self._open()).sum(0) > 0).to(self.centre.dtype)
        return self.gate.probabilities * in_use

    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"mask": anchored(sites["gate"])} if self.sparse else {}

    # -- parts -------------------------------------------------------------------------------------------------

    def _gate_prior(self, batch: Batch) -> BetaBernoulliColumns:
        return BetaBernoulliColumns(batch.x.new_tensor(self.b), self.config["features"], self.config["latents"])

    def _gate_logits(self, batch: Batch) -> Tensor:
        """The gates' log odds; with a nonlinear decoder settled for the last part of the fit, until `finish`."""
        if self.linear:
            return self.gate.logits
        settled = (batch.progress >= self.recipe.temperature_span) & (self.finished < 0.5)
        return torch.where(settled, SURE * self.gate.logits.sign(), self.gate.logits)

    def _open(self) -> Tensor:
        return (self.gate.logits > 0).to(self.gate.logits.dtype)

    def _correlation_tril(self) -> Tensor:
        """(latent, latent) Cholesky factor of R: rows of unit length."""
        size = self.config["latents"]
        eye = torch.eye(size, dtype=self.raw_correlation.dtype, device=self.raw_correlation.device)
        tril = self.raw_correlation.tril(-1) + eye
        return tril / tril.norm(dim=-1, keepdim=True)

    def _mean(self, z: Tensor, mask: Tensor | None, weight: Tensor | None, batch: Batch) -> Tensor:
        """(rows, feature) mean of x."""
        if self.linear:
            assert weight is not None
            out = z @ (weight if mask is None else mask * weight).mT
        else:
            out = self.decoder(z, torch.ones_like(self.decoder.head[:, : z.shape[-1]]) if mask is None else mask)
        if self.counts:
            return batch.size_factor[:, None] * (self.offset[batch.group] + out).clamp(max=15.0).exp()
        return self.centre + self.spread * out

    def _feature_fit(self, z: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """(feature,) log-likelihood of the batch's rows."""
        mean = self._mean(z, mask, None, batch)
        if self.counts:
            return NegativeBinomial(mean, softplus(self.raw_dispersion)).log_prob(batch.x).sum(0)
        return Normal(mean, (0.5 * self.variance.loc).exp()).log_prob(batch.x).sum(0)

    def _seen(self, batch: Batch) -> Tensor:
        return torch.log1p(batch.x / batch.size_factor[:, None]) if self.counts else batch.x

    def _scaled(self, batch: Batch) -> Tensor:
        return (self._seen(batch) - self.centre) / self.spread

    @classmethod
    def example(cls, seed: int = 0) -> tuple[SparseVAE, Data]:
        from pyrocrl.simulate import draw

        data = draw("moran2022", seed=seed, rows=400)
        return cls(features=data.features, latents=3, hidden=32), data


def anchored(gate: Tensor) -> Tensor:
    """(feature, latent) the mask: gates of latents on which at least two features load, 0 for the others."""
    return gate * (gate.detach().sum(-2, keepdim=True) > 1.5)


def _positive(raw: Tensor) -> Tensor:
    return softplus(raw + math.log(math.expm1(0.4))) + 1e-4


if __name__ == "__main__":
    run(SparseVAE)
