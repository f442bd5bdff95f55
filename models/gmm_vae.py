"""Mixture VAE: a Gaussian mixture of independent latents through an injective piecewise affine decoder.

    c_i  ~ Categorical(pi)                                    (data,)           summed out, never drawn
    z_i  ~ N(mu_c, diag(s_c^2)) given c_i = c                 (data, latent)
    x_ij ~ N(f(z_i)_j, sigma_j^2)                             (data, feature)
    f(z) = centre + loadings h(z)                             h: R^latent -> R^latent, one to one
    h^-1 = A_L . k_L . ... . A_1 . k_1 . A_0                  A_l affine and square, k_l a leaky ReLU of learned slope

f is injective by construction and affine in pieces, but for corners rounded over a width of .05. It is given by
the inverse, so that log p(z) and the volume at any x are exact. The guide inverts the likelihood: y = h(z) given x
is Gaussian under a flat prior, N(m(x), (loadings' sigma^-2 loadings)^-1), and q(z | x) is its image under h^-1.

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

*For a variant, copy this file and change* `model`: other components, or a decoder with more dimensions than h.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import Normal
from pyrocrl.program import check_sizes, check_whole

CORNER = 0.05  # width over which corners are rounded, in units of a standardised layer
WIDE = 1.0  # ... at the start of the search, where h is nearly linear
SLOPE = 0.7  # of leaky ReLUs at the start
NOISE = 1e-4  # least noise of a standardised feature
POLISH = 0.25  # share of the search's steps with diagonal covariances
ROWS_A_STEP = 500
KEPT = 6  # starts that are polished

Maps = tuple[Tensor, Tensor, Tensor]  # (.., layers + 1, latent, latent), (.., layers + 1, latent), (.., layers, latent)


def unmix(y: Tensor, maps: Maps, corner: float) -> tuple[Tensor, Tensor]:
    """h^-1 of (.., rows, latent) and its log |det Jacobian| (.., rows); leading dimensions are those of `maps`."""
    matrix, shift, bend = maps
    layers = bend.shape[-2]
    log_det = torch.linalg.slogdet(matrix)[1].sum(-1)[..., None]
    z = y
    for i in range(layers + 1):
        z = z @ matrix[..., i, :, :] + shift[..., i, None, :]
        if i < layers:
            z, log_slope = steepened(z, bend[..., i, None, :], corner)
            log_det = log_det + log_slope.sum(-1)
    return z, log_det


def steepened(z: Tensor, bend: Tensor, corner: float) -> tuple[Tensor, Tensor]:
    """A rounded leaky ReLU, of slope exp(bend) on the left and 1 on the right, and the log of its slope at z."""
    steep = bend.exp()
    half, root = (1 - steep) / 2, (z.square() + corner**2).sqrt()
    return (1 + steep) / 2 * z + half * root, ((1 + steep) / 2 + half * z / root).log()


def remix(z: Tensor, maps: Maps, corner: float) -> Tensor:
    """h of (rows, latent): the inverse of `unmix` in closed form."""
    matrix, shift, bend = maps
    inverse = torch.linalg.inv_ex(matrix).inverse  # without the check, which would wait for the device
    layers = bend.shape[-2]
    y = z
    for i in reversed(range(layers + 1)):
        if i < layers:
            steep = bend[i].exp()
            root = (y.square() + steep * corner**2).sqrt()
            y = ((1 + steep) / 2 * y - (1 - steep) / 2 * root) / steep
        y = (y - shift[i]) @ inverse[i]
    return y


class Unmixed(TorchDistribution):
    """The law of z = h^-1(y) for y ~ N(loc, tril tril'): loc (rows, latent), tril (latent, latent)."""

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
        steps = math.sqrt(self.loc.shape[-1]) * self.tril.mT  # (latent, latent)
        points = torch.cat([self.loc + steps[:, None], self.loc - steps[:, None]])  # (2 latent, rows, latent)
        return unmix(points, self.maps, CORNER)[0].mean(0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        y = self.loc + torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device) @ self.tril.mT
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
        e = torch.linalg.solve_triangular(self.tril, (y - self.loc).mT, upper=False).mT
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
        settings=("kivva2022_2d", "kivva2022_5d"),
        status="stable",
    )
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
    sites = {"z": Site(("data", "latent"), {"latent": "point"})}

    def __init__(
        self,
        features: int,
        latents: int,
        components: int = 4,
        layers: int = 3,
        starts: int = 16,
        search_steps: int = 1500,
    ) -> None:
        """layers: leaky-ReLU layers of h^-1. starts, search_steps: of the search that starts a chain."""
        super().__init__()
        check_sizes(features, latents)
        for name, value, least in (
            ("components", components, 1),
            ("layers", layers, 1),
            ("starts", starts, 1),
            ("search_steps", search_steps, 1),
        ):
            check_whole(name, value, least)
        self.matrix = nn.Parameter(torch.eye(latents).repeat(layers + 1, 1, 1))
        self.shift = nn.Parameter(torch.zeros(layers + 1, latents))
        self.bend = nn.Parameter(torch.full((layers, latents), -math.log(SLOPE)))  # log of the steeper slope
        self.loadings = nn.Parameter(torch.randn(features, latents))
        self.centre = nn.Parameter(torch.zeros(features))
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.component_mean = nn.Parameter(torch.randn(components, latents))
        self.log_spread = nn.Parameter(torch.zeros(components, latents))
        self.logits = nn.Parameter(torch.zeros(components))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Principal components y of the standardised features, then a search of h^-1 by maximum likelihood of y."""
        latents = self.config["latents"]
        x = data.tensors(dtype=torch.float64).x
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
        best = search(y.to(self.matrix.dtype), self.config, generator)
        for name, parameter in best.items():
            getattr(self, name).copy_(parameter)

    def model(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", self._prior())  # (rows, latent)
            mean = self.decode(z, batch)  # (rows, feature)
            pyro.sample("x", Normal(mean, self._noise()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", self._posterior(batch.x))

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return remix(z, self._maps(), CORNER) @ self.loadings.mT + self.centre

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._posterior(batch.x).mean

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

    def _posterior(self, x: Tensor) -> Unmixed:
        weighted = self.loadings / self._noise().square()[:, None]  # (feature, latent)
        tril = torch.linalg.cholesky_ex(torch.linalg.inv_ex(self.loadings.mT @ weighted).inverse).L
        loc = (x - self.centre) @ weighted @ tril @ tril.mT  # (rows, latent)
        return Unmixed(loc, tril, self._maps())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[GMMVAE, Data]:
        from pyrocrl import simulate

        data = simulate.draw("kivva2022_2d", seed=seed, rows=3000)
        return cls(features=data.features, latents=2, starts=8, search_steps=800), data


# -- the search that starts a chain ------------------------------------------------------------------------------


def search(y: Tensor, config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of h^-1 and the mixture with the best likelihood of y (rows, latent), of many local optima.

    As the proof goes: from many starts at once, maximise the likelihood under full covariances, corners growing
    sharper; that gives the latents up to an affine map. Diagonalise the components' covariances jointly, then
    maximise under diagonal ones. Optima differ by hundredths of a nat a row, which only all rows together can tell.
    """
    steps = config["search_steps"]
    state = _random_start(y, config, generator)
    _climb(state, y, steps, 3e-2, (WIDE, CORNER), generator)
    best = _score(y, state).topk(min(KEPT, config["starts"])).indices
    state = _diagonalised({name: value[best] for name, value in state.items()})
    _climb(state, y, max(1, int(POLISH * steps)), 1e-2, (CORNER, CORNER), generator)
    winner = int(_score(y, state).argmax())
    return {name: value[winner] for name, value in state.items()}


def _random_start(y: Tensor, config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """`starts` nearly linear maps with corners in random directions, and components at random rows."""
    starts, latents, layers, components = (config[k] for k in ("starts", "latents", "layers", "components"))

    def normal(*shape: int) -> Tensor:
        return torch.randn(starts, *shape, generator=generator, dtype=y.dtype)

    matrix = torch.linalg.qr(normal(layers + 1, latents, latents))[0]
    shift = 0.5 * normal(layers + 1, latents)
    bend = torch.full((starts, layers, latents), -math.log(SLOPE), dtype=y.dtype)
    z = y[torch.randperm(len(y), generator=generator)[:2000]].expand(starts, -1, -1)
    for i in range(layers + 1):
        z = z @ matrix[:, i]
        mean, spread = z.mean(1), z.std(1)
        matrix[:, i] /= spread[:, None]  # standardise the layer's input before the shift
        shift[:, i] -= mean / spread
        z = z / spread[:, None] + shift[:, i, None]
        if i < layers:
            z, _ = steepened(z, bend[:, i, None], WIDE)
    at = torch.randint(z.shape[1], (starts, components), generator=generator)
    return {
        "matrix": matrix,
        "shift": shift,
        "bend": bend,
        "component_mean": torch.gather(z, 1, at[..., None].expand(-1, -1, latents)),
        "log_spread": (z.std(1).log() - 0.5)[:, None].repeat(1, components, 1),
        "logits": torch.zeros(starts, components, dtype=y.dtype),
        "skew": torch.zeros(starts, components, latents, latents, dtype=y.dtype),
    }


def _log_density(y: Tensor, state: dict[str, Tensor], corner: float) -> Tensor:
    """(start, rows) log p(y), components' precisions being T'T with T = diag(1 / spread) + the lower part of skew."""
    z, log_det = unmix(y, (state["matrix"], state["shift"], state["bend"]), corner)
    gap = z[:, None] - state["component_mean"][:, :, None]  # (start, component, rows, latent)
    whitened = gap * (-state["log_spread"]).exp()[:, :, None]
    if "skew" in state:
        whitened = whitened + gap @ state["skew"].tril(-1).mT
    log_scale = state["log_spread"].sum(-1) + 0.5 * z.shape[-1] * math.log(2 * math.pi)
    each = state["logits"].log_softmax(-1) - log_scale  # (start, component)
    return (each[..., None] - 0.5 * whitened.square().sum(-1)).logsumexp(1) + log_det


def _score(y: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(start,) mean log-density, -inf where it is not a number."""
    return _log_density(y, state, CORNER).mean(-1).nan_to_num(nan=-torch.inf)


def _climb(
    state: dict[str, Tensor],
    y: Tensor,
    steps: int,
    lr: float,
    corners: tuple[float, float],
    generator: torch.Generator,
    hold: float = 0.6,
) -> None:
    """Adam on the mean log-density of minibatches, for all starts at once; corners and then lr fall."""
    starts, first, last = len(state["shift"]), *corners
    values = list(state.values())
    with torch.enable_grad():
        for value in values:
            value.requires_grad_(True)
        optimiser = torch.optim.Adam(values)
        for step in range(steps):
            at = step / steps
            fall = 0.5 * (1 + math.cos(math.pi * max(0.0, at - hold) / (1 - hold)))
            optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (fall + 1e-3)
            corner = first * (last / first) ** min(1.0, at / hold)
            rows = torch.randint(len(y), (starts, min(ROWS_A_STEP, len(y))), generator=generator)
            loss = -_log_density(y[rows], state, corner).mean(-1)
            gradients = torch.autograd.grad(loss.sum(), values)
            norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
            factor = torch.where(norm.isfinite(), (5.0 / (norm + 1e-6)).clamp(max=1.0), 0.0)
            for value, g in zip(values, gradients, strict=True):
                value.grad = g.nan_to_num() * factor.view(-1, *[1] * (g.dim() - 1))
            optimiser.step()
    for value in values:
        value.requires_grad_(False)


def _diagonalised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same states in latents that make all components' covariances as diagonal as one matrix can."""
    state = {name: value.clone() for name, value in state.items()}
    factor = state.pop("skew").tril(-1) + torch.diag_embed((-state["log_spread"]).exp())
    covariance = torch.linalg.inv(factor.mT @ factor)
    weights = state["logits"].softmax(-1)
    for start in range(len(covariance)):
        found = joint_diagonaliser(covariance[start].double().numpy(), weights[start].double().numpy())
        turn = torch.as_tensor(found).to(factor)  # z -> turn z
        state["matrix"][start, -1] = state["matrix"][start, -1] @ turn.mT
        state["shift"][start, -1] = state["shift"][start, -1] @ turn.mT
        state["component_mean"][start] = state["component_mean"][start] @ turn.mT
        rotated = turn @ covariance[start] @ turn.mT
        state["log_spread"][start] = 0.5 * rotated.diagonal(dim1=-2, dim2=-1).log()
    return state


def joint_diagonaliser(covariance: np.ndarray, weights: np.ndarray, sweeps: int = 200) -> np.ndarray:
    """B (latent, latent) minimising sum_c w_c [log det diag(B S_c B') - log det(B S_c B')] (Pham 2001).

    covariance: (component, latent, latent), positive definite; weights: (component,). Starts from the eigenvectors of
    several random combinations after whitening by the mean; each sweep takes Pham's step for every pair of rows.
    """
    count, size, _ = covariance.shape
    whiten = np.linalg.inv(np.linalg.cholesky(np.einsum("c,cab->ab", weights, covariance)))
    best, least = whiten, np.inf
    for seed in range(6):
        mix = np.random.default_rng(seed).standard_normal(count)
        turned = np.einsum("c,cab->ab", mix, whiten @ covariance @ whiten.T)
        found = np.linalg.eigh(turned)[1].T @ whiten
        s = found @ covariance @ found.T
        for _ in range(sweeps):
            moved = 0.0
            for i in range(size):
                for j in range(i):
                    g_ij, g_ji = weights @ (s[:, i, j] / s[:, i, i]), weights @ (s[:, i, j] / s[:, j, j])
                    w_ij, w_ji = weights @ (s[:, j, j] / s[:, i, i]), weights @ (s[:, i, i] / s[:, j, j])
                    free = max(w_ij * w_ji - 1.0, 1e-9)
                    h_ij, h_ji = (w_ji * g_ij - g_ji) / free, (w_ij * g_ji - g_ij) / free
                    scale = 1.0 + math.sqrt(max(1.0 - h_ij * h_ji, 1e-12))
                    step = np.eye(size)
                    step[i, j], step[j, i] = -h_ij / scale, -h_ji / scale
                    found, s = step @ found, step @ s @ step.T
                    moved = max(moved, abs(g_ij * h_ij + g_ji * h_ji))
            if moved < 1e-10:
                break
        value = weights @ (np.log(np.diagonal(s, axis1=1, axis2=2)).sum(1) - np.linalg.slogdet(s)[1])
        if value < least:
            best, least = found, value
    spread = np.sqrt(np.diag(best @ np.einsum("c,cab->ab", weights, covariance) @ best.T))
    return best / spread[:, None]


if __name__ == "__main__":
    run(GMMVAE)
