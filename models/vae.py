"""The plain variational auto-encoder: the baseline that claims nothing.

    z_i   ~ N(0, I)                              (data, latent)
    x_ij  ~ N(f(z_i)_j, sigma_j^2)               (data, feature)   or, for counts,
    x_ij  ~ NegativeBinomial(s_i exp(f(z_i)_j), r_j)

f is one MLP, s_i the size factor, sigma_j and r_j are learned constants. The guide is q(z_i | x_i) = N(mu, diag)
from an MLP of x (of log(1 + x / s) for counts). `model` is the story: nothing is summed out. Values that are missing
are left out of x's law; the MLP sees them at their features' means, and is told which they are.

*Identified:* nothing. Any map that leaves N(0, I) as it is, such as a rotation, can be undone by f, so two chains
with the same likelihood may have different latents. It stands beside every other model as the row to beat.

Kingma & Welling (2014), Auto-Encoding Variational Bayes.

*Differs from the paper in* the noise, which has its own scale for each feature, and in the count likelihood.

*For a variant, copy this file and change* `story`: the line of `z` (its prior), of `mean` (f) or of `likelihood`.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocrl import Batch, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import NegativeBinomial, Normal
from pyrocrl.lab.studies import Study
from pyrocrl.lab.studies.missing import Lacking
from pyrocrl.options import Size
from pyrocrl.parts.nets import MLP, GaussianEncoder
from pyrocrl.parts.observation import column_deviations, column_means, log_rates
from pyrocrl.program import Features, Latents, Likelihood, Missing, check_sizes

START_CELLS, START_ROWS = 3e7, 2_000  # entries of x that a start reads, and rows at least


class VAE(Program):
    size_unit: Tensor
    card = ModelCard(
        name="vae",
        title="Variational auto-encoder",
        family="baseline",
        summary="Gaussian latents through one MLP. Claims nothing; the row that every other model has to beat.",
        when=(
            "a baseline is wanted: what a model that claims nothing reaches on the same rows",
            "latents are to be read one by one: any rotation of them fits as well",
        ),
        assumes=("latents are independent standard normal",),
        claims=(),
        references=(
            Reference(
                "Kingma & Welling", 2014, "Auto-Encoding Variational Bayes", "ICLR", "https://arxiv.org/abs/1312.6114"
            ),
        ),
        differs=("each feature has its own noise scale", "count likelihood"),
        reads_missing=("gaussian", "negative_binomial"),
        likelihoods=("gaussian", "negative_binomial"),
        status="stable",
    )
    recipe = Recipe(epochs=150, batch_size=128, lr=3e-3, kl_warmup=0.2, temperature_span=0.2)
    sites = {"z": Site(("data", "latent"), {"latent": "point"})}

    def __init__(
        self,
        features: Features,
        latents: Latents,
        likelihood: Likelihood = "gaussian",
        hidden: Size = 64,
        missing: Missing = False,
    ) -> None:
        """hidden: units of each layer of encoder and decoder."""
        super().__init__()
        check_sizes(features, latents, square=True)
        self.counts = likelihood == "negative_binomial"
        self.encoder = GaussianEncoder(features, latents, (hidden, hidden), flags=missing)
        self.decoder = MLP([latents, hidden, hidden, features])
        self.shift = nn.Parameter(torch.zeros(features))  # column means, of x or of log rates
        self.raw_noise = nn.Parameter(torch.zeros(features))  # sigma or r, before softplus
        self.register_buffer("size_unit", torch.ones(()))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Start at the columns' means and spreads, of large tables in rows spread over them."""
        batch = data.some(START_CELLS, START_ROWS).tensors(dtype=self.shift.dtype)
        self.size_unit.copy_(batch.size_factor.mean())
        seen, known = self._seen(batch), batch.known
        mean, sd = column_means(seen, known), column_deviations(seen, known)
        self.encoder.standardise(mean, sd)
        if self.counts:
            self.shift.copy_(log_rates(batch.x, self._size(batch), known))
        else:
            self.shift.copy_(mean)
            self.raw_noise.copy_(sd.expm1().clamp_min(1e-3).log())

    def story(self, batch: Batch) -> None:
        zero = torch.zeros(self.config["latents"], dtype=batch.dtype, device=batch.device)
        with self.rows(batch):
            z = pyro.sample("z", Normal(zero, zero + 1).to_event(1))  # (rows, latent)
            mean = self.decoder(z) + self.shift  # (rows, feature) f(z)
            noise = softplus(self.raw_noise) + 1e-4  # (feature,)
            size = self._size(batch)[:, None]
            likelihood = NegativeBinomial(None, noise, log_rate=mean, size=size) if self.counts else Normal(mean, noise)
            pyro.sample("x", self.measured(likelihood, batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            loc, scale = self.encoder(self._seen(batch), batch.known)
            pyro.sample("z", Normal(loc, scale).to_event(1))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(self._seen(batch), batch.known)[0]

    def _seen(self, batch: Batch) -> Tensor:
        return torch.log1p(batch.x / self._size(batch)[:, None]) if self.counts else batch.x

    def _size(self, batch: Batch) -> Tensor:
        """(rows,) size factors, 1 on average over the rows of the fit."""
        return batch.size_factor / self.size_unit

    @classmethod
    def example(cls, seed: int = 0) -> tuple[VAE, Data]:
        from pyrocrl.simulate import draw

        data = draw("moran2022", seed=seed, rows=400)
        return cls(features=data.features, latents=2, hidden=32), data

    studies = (
        *(Study("moran2022", {"rho": rho}, {"latents": 5}) for rho in (0.0, 0.8)),
        Lacking("moran2022", {"rho": 0.0, "rows": 1000}, {"latents": 5}, 4, recipe={"chains": 4}),
    )


if __name__ == "__main__":
    run(VAE)
