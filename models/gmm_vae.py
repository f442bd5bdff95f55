"""Mixture VAE: a Gaussian mixture of independent latents through an injective piecewise affine decoder.

    component_i ~ Categorical(pi)                             (data,)           c for short
    z_i  ~ N(mu_c, diag(s_c^2)) given component_i = c         (data, latent)
    x_ij ~ N(f(z_i)_j, sigma_j^2)                             (data, feature)
    f(z) = centre + loadings h(z)                             h: R^latent -> R^latent, one to one
    h^-1 = A_L . k_L . ... . A_1 . k_1 . A_0                  A_l affine and square, k_l a leaky ReLU of learned slope

`model` sums components out, `recover` draws them given z. f is injective by construction and affine in pieces, but
for corners rounded over a width of .05. It is given by the inverse, so that log p(z) and the volume at any x are exact.
The guide inverts the likelihood: y = h(z) given x is Gaussian under a flat prior, N(m(x), (loadings' sigma^-2
loadings)^-1), and q(z | x) is its image under h^-1. Values that are missing are left out of x's law, and of the guide's
features: of rows that lack some, y is N(0, I) before.

*Identified:* latents up to permutation, scale and shift, if f is injective and piecewise affine, latents are
independent given c, and two components' variances have different ratios for all latents. Without independence
given c the latents are identified up to an affine map. No labels or auxiliary variables are used. Any smooth
density can be warped into any other, so it is f's small number of pieces that identifies the latents from
finitely many rows: choose `layers` as small as the fit allows.

Kivva, Rajendran, Ravikumar & Aragam (2022), Identifiability of deep generative models without auxiliary information.

*Differs from the paper in* the decoder, which is injective by design and whose image spans as many dimensions as
there are latents, and in following the proof: `initialise` fits full covariances (latents up to an affine map),
then diagonalises all of them by one matrix. Corners are rounded because with sharp ones the volume jumps where a
row crosses a corner: the gradient misses the jumps, and maximisation walks away from the truth.

Longer than other models because the guide is the decoder's inverse, which needs a law of its own (`Unmixed`).

*For a variant, copy this file and change* `story`: the line of `z`, other components, or of `mean`, a decoder with more
dimensions than h.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.claims.card import AT_RANDOM
from pyrocrl.constructions import mixtures
from pyrocrl.constructions.completed import completed
from pyrocrl.dists import Normal
from pyrocrl.lab.studies import Study
from pyrocrl.options import Size
from pyrocrl.parts.piecewise_affine import CORNER, SLOPE, Maps, remix, unmix
from pyrocrl.program import Features, Latents, check_sizes

NOISE = 1e-4  # least noise of a standardised feature


class Unmixed(TorchDistribution):
    """The law of z = h^-1(y) for y ~ N(loc, tril tril'): loc (rows, latent), tril (latent, latent), or one a row."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, tril: Tensor, maps: Maps) -> None:
        self.loc, self.tril, self.maps = loc, tril, maps
        self.drawn: tuple[Tensor | None, Tensor | None] = (None, None)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """By cubature: the average of 2 latent points, exact where h^-1 is a polynomial of degree three."""
        steps = math.sqrt(self.loc.shape[-1]) * self.tril.mT  # (latent, latent), or one a row
        steps = steps[:, None] if steps.dim() == 2 else steps.transpose(0, 1)  # (latent, rows, latent)
        points = torch.cat([self.loc + steps, self.loc - steps])  # (2 latent, rows, latent)
        return unmix(points, self.maps, CORNER)[0].mean(0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        e = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        y = self.loc + (e @ self.tril.mT if self.tril.dim() == 2 else (self.tril @ e[..., None])[..., 0])
        z, log_det = unmix(y, self.maps, CORNER)
        self.drawn = (z, self._log_prob(y, log_det))
        return z

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        if value is self.drawn[0] and self.drawn[1] is not None:
            return self.drawn[1]
        y = remix(value, self.maps, CORNER)
        return self._log_prob(y, unmix(y, self.maps, CORNER)[1])

    def _log_prob(self, y: Tensor, log_det: Tensor) -> Tensor:
        if self.tril.dim() == 2:
            e = torch.linalg.solve_triangular(self.tril, (y - self.loc).mT, upper=False).mT
        else:
            e = torch.linalg.solve_triangular(self.tril, (y - self.loc)[..., None], upper=False)[..., 0]
        volume = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * e.shape[-1] * math.log(2 * math.pi)
        return -0.5 * e.square().sum(-1) - volume - log_det


class GMMVAE(Program):
    card = ModelCard(
        name="gmm_vae",
        title="Mixture VAE",
        family="identified by the prior",
        summary="Latents from a Gaussian mixture, independent in each component, through an injective piecewise "
        "affine map. Needs no labels: the shape of the latents' law identifies them.",
        when=(
            "there are neither labels nor interventions, and the latents fall into clusters of different widths",
            "the latents are one Gaussian cloud, features are counts, or a graph is wanted",
        ),
        assumes=(
            "latents are a finite Gaussian mixture",
            "the decoder is injective and affine in pieces, and its image spans as many dimensions as latents",
            AT_RANDOM[0],
        ),
        claims=(
            Claim(
                "latents",
                ("permutation", "scale", "shift"),
                given=("latents are independent given the component", "the decoder is injective and affine in pieces"),
                needs=("more_features_than_latents", "two_components", "distinct_variance_ratios"),
            ),
        ),
        references=(
            Reference(
                "Kivva, Rajendran, Ravikumar & Aragam",
                2022,
                "Identifiability of deep generative models without auxiliary information",
                "NeurIPS",
                "https://arxiv.org/abs/2206.10044",
            ),
        ),
        differs=(
            "the decoder is injective by design; its inverse is the guide",
            "chains start as the proof goes: full covariances first, then their joint diagonalisation",
        ),
        reads_missing=("gaussian",),
        status="stable",
    )
    checks = {"left": ()}
    recipe = Recipe(
        epochs=40,
        batch_size=500,
        lr=2e-3,
        lr_end=0.01,
        betas=(0.9, 0.99),
        kl_warmup=0.0,
        temperature_span=0.0,
        clip=5.0,
        patience=None,
    )
    sites = {"component": Site(("data",)), "z": Site(("data", "latent"), {"latent": "point"})}

    def __init__(
        self,
        features: Features,
        latents: Latents,
        components: Size = 4,
        layers: Size = 3,
        starts: Size = 16,
        search_steps: Size = 1500,
    ) -> None:
        """components: of the mixture. layers: leaky-ReLU layers of h^-1. starts, search_steps: of the search that
        starts a chain.
        """
        super().__init__()
        check_sizes(features, latents)
        self.matrix = nn.Parameter(torch.eye(latents).repeat(layers + 1, 1, 1))
        self.shift = nn.Parameter(torch.zeros(layers + 1, latents))
        self.bend = nn.Parameter(torch.full((layers, latents), -math.log(SLOPE)))  # log of the steeper slope
        self.loadings = nn.Parameter(torch.randn(features, latents))
        self.centre = nn.Parameter(torch.zeros(features))
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.component_mean = nn.Parameter(torch.randn(components, latents))
        self.log_spread = nn.Parameter(torch.zeros(components, latents))
        self.logits = nn.Parameter(torch.zeros(components))

    def story(self, batch: Batch) -> None:
        weights, centres, spreads = self.mixture()  # (component,), (component, latent) twice
        with self.rows(batch):
            component = pyro.sample("component", dist.Categorical(weights))  # (rows,)
            z = pyro.sample("z", Normal(centres[component], spreads[component]).to_event(1))  # (rows, latent)
            mean = self._mean(z)  # (rows, feature)
            pyro.sample("x", self.measured(Normal(mean, self._noise()), batch).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", self._prior())  # (rows, latent)
            pyro.sample("x", self.measured(Normal(self._mean(z), self._noise()), batch).to_event(1), obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        prior = self._prior()
        each = prior.component_distribution.log_prob(kept["z"][:, None])  # (rows, component)
        with self.rows(batch):
            pyro.sample("component", dist.Categorical(logits=self.logits + each))

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", self._posterior(batch))

    def _mean(self, z: Tensor) -> Tensor:
        """(rows, feature) E[x | z]."""
        return remix(z, self._maps(), CORNER) @ self.loadings.mT + self.centre

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._posterior(batch).mean

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (component,), means and standard deviations (component, latent) of the latents' law."""
        return self.logits.softmax(-1), self.component_mean, self.log_spread.exp()

    # -- parts -------------------------------------------------------------------------------------------------

    def _maps(self) -> Maps:
        return self.matrix, self.shift, self.bend

    def _noise(self) -> Tensor:
        return self.log_noise.exp() + NOISE * self.loadings.square().sum(-1).sqrt().detach()

    def _prior(self) -> Any:
        component = dist.Normal(self.component_mean, self.log_spread.exp(), validate_args=False).to_event(1)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits, validate_args=False), component, validate_args=False
        )

    def _posterior(self, batch: Batch) -> Unmixed:
        """By all features under a flat prior of y; of rows that lack some by the rest, y being N(0, I) before."""
        weighted = self.loadings / self._noise().square()[:, None]  # (feature, latent)
        apart = batch.x - self.centre
        if batch.known is None:
            tril = torch.linalg.cholesky_ex(torch.linalg.inv_ex(self.loadings.mT @ weighted).inverse).L
            return Unmixed(apart @ weighted @ tril @ tril.mT, tril, self._maps())
        known = batch.known.to(apart.dtype)
        pairs = (self.loadings[:, :, None] * weighted[:, None]).flatten(1)  # (feature, latent squared)
        own = (known @ pairs).unflatten(1, (weighted.shape[1], -1))  # (rows, latent, latent)
        lacks = (~batch.known).any(1).to(apart.dtype)[:, None]
        precision = own + torch.diag_embed(lacks.expand(-1, weighted.shape[1]))
        tril = torch.linalg.cholesky_ex(torch.linalg.inv_ex(precision).inverse).L
        loc = (tril @ (tril.mT @ ((known * apart) @ weighted)[..., None]))[..., 0]  # (rows, latent)
        return Unmixed(loc, tril, self._maps())

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Principal components y of the standardised features, then a search of h^-1 by maximum likelihood of y."""
        latents = self.config["latents"]
        x = completed(data.tensors(dtype=torch.float64), latents, generator).x
        mean, sd = x.mean(0), x.std(0).clamp_min(1e-12)
        standard = (x - mean) / sd
        value, vector = torch.linalg.eigh(standard.mT @ standard / len(x))
        value, vector = value[-latents:].clamp_min(1e-12), vector[:, -latents:]
        y = standard @ vector / value.sqrt()
        residual = standard - standard @ vector @ vector.mT
        noise = (residual.square().mean(0) * x.shape[1] / (x.shape[1] - latents)).sqrt().clamp_min(10 * NOISE)
        self.centre.copy_(mean)
        self.loadings.copy_(sd[:, None] * vector * value.sqrt())
        self.log_noise.copy_((sd * noise).log())
        own, y = self.config, y.to(self.matrix.dtype)
        best = mixtures.search(y, own["components"], own["layers"], own["starts"], own["search_steps"], generator)
        for name, parameter in best.items():
            getattr(self, name).copy_(parameter)

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """The last layer of h^-1 turned, and components with the variances that they then have."""
        turn = turn.to(self.matrix)
        self.component_mean.copy_(self.component_mean @ turn)
        self.log_spread.copy_(0.5 * ((2 * self.log_spread).exp() @ turn.square()).log())
        self.matrix[-1] = self.matrix[-1] @ turn
        self.shift[-1] = self.shift[-1] @ turn
        return True

    @classmethod
    def example(cls, seed: int = 0) -> tuple[GMMVAE, Data]:
        from pyrocrl import simulate

        data = simulate.draw("kivva2022_2d", seed=seed, rows=3000)
        return cls(features=data.features, latents=2, starts=4, search_steps=500), data

    studies = (Study("kivva2022_2d", held_out=0.1), Study("kivva2022_5d", held_out=0.1))


if __name__ == "__main__":
    run(GMMVAE)
