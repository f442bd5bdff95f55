"""Factor analysis with latents of heavy tails: their laws, and draws of everything but the noise's latents.

    L_jk ~ N(0, slab^2),  v_j ~ InverseGamma(SHAPE, rate),  log slab ~ N(log SLAB, SPREAD^2)
    law_k is normal with the probability GAUSSIAN, else Laplace or Student's of one of `FREEDOM` degrees, each alike
    z_ik ~ law_k, of unit variance,  x_i ~ N(L z_i, diag v)

All laws are scale mixtures of normals (Andrews & Mallows 1974): given the scales s, z is normal and so are loadings
given z, hence a Gibbs sampler. Where noise is small, z and L hold each other in place; so L and z are also turned and
rescaled together, in two columns at a time, which leaves x as likely as it was: what then tells rotations apart is how
likely the turned z are, with scales and laws summed out. Normal latents turn freely; whether a latent is normal is so
decided by evidence over all rotations, not by the one that looks least normal.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SHAPE = 1.5  # of the variances' prior
SLAB, SPREAD = 0.7, 0.5  # median of the loadings' deviation, and deviation of its logarithm
GAUSSIAN = 0.5  # probability a priori that a latent is normal
# Student's degrees of freedom by law; the first two are normal and Laplace
FREEDOM = (math.inf, math.nan, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0)
PRIOR = (GAUSSIAN, *[(1 - GAUSSIAN) / (len(FREEDOM) - 1)] * (len(FREEDOM) - 1))
NORMAL, LAPLACE = 0, 1
ROUNDS = 4  # of the mean of z given x
INFORMATION = torch.tensor(  # of the location of each law, of unit variance
    [1.0, 2.0, *(nu * (nu + 1) / ((nu + 3) * (nu - 2)) for nu in FREEDOM[2:])], dtype=torch.float64
)
STEP = 0.8  # of the angles together, squared, against their posterior's
FLAT = 10.0  # information of an angle of two normal latents
DRAWS = 150  # that are kept
LEAST = 1e-12


@cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers, sent to a device once."""
    return torch.tensor(values, dtype=dtype, device=device)


def log_density(z: Tensor, law: Tensor) -> Tensor:
    """Log density of z under laws, indices of `FREEDOM`, that broadcast to it."""
    freedom = constant(FREEDOM, z.dtype, z.device)[law]
    nu = torch.where(law > LAPLACE, freedom, 4.0)
    student = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * ((nu - 2) * math.pi).log()
    student = student - (nu + 1) / 2 * (z.square() / (nu - 2)).log1p()
    laplace = -(2**0.5) * z.abs() - 0.5 * math.log(2)
    normal = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    return torch.where(law > LAPLACE, student, torch.where(law == LAPLACE, laplace, normal))


def precision(square: Tensor, law: Tensor) -> Tensor:
    """Mean of 1 / s given z^2, of z ~ N(0, s) and laws that broadcast to it."""
    freedom = constant(FREEDOM, square.dtype, square.device)[law]
    nu = torch.where(law > LAPLACE, freedom, 4.0)
    laplace = (2 / square.clamp_min(LEAST)).sqrt()
    heavy = torch.where(law > LAPLACE, (nu + 1) / (nu - 2 + square), laplace)
    return torch.where(law == NORMAL, torch.ones_like(heavy), heavy)


class HeavyTailed(TorchDistribution):
    """Independent latents of unit variance, each of its law: `law` (latent,), indices of `FREEDOM`; like: a tensor of
    the type and device of draws."""

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, law: Tensor, like: Tensor, validate_args: bool | None = None) -> None:
        self.law, self.like = law, like
        super().__init__(law.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HeavyTailed:
        return HeavyTailed(self.law.expand(batch_shape), self.like)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=self.like.dtype, device=self.like.device)

    @property
    def variance(self) -> Tensor:
        return self.mean + 1

    def sample(self, sample_shape: Any = ()) -> Tensor:
        law = self.law.expand(self._extended_shape(sample_shape))
        freedom = constant(FREEDOM, self.like.dtype, self.like.device)[law]
        student, one = law > LAPLACE, torch.ones_like(freedom)
        drawn = torch._standard_gamma(torch.where(student, freedom / 2, one)).clamp_min(LEAST)
        scale = torch.where(student, (freedom - 2) / (2 * drawn), torch.where(law == LAPLACE, drawn, one))
        return scale.sqrt() * torch.randn_like(scale)

    def log_prob(self, value: Tensor) -> Tensor:
        return log_density(value, self.law)


def given(x: Tensor, loadings: Tensor, variance: Tensor, law: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (rows, latent) of z given x (rows, feature), and the Cholesky factor (rows, latent, latent) of its
    covariance: the normal law, and that of scales, whose product is nearest to the posterior (Palmer et al. 2006)."""
    scaled = loadings / variance[:, None]
    inner, seen = loadings.mT @ scaled, x @ scaled
    weight = torch.ones_like(seen)
    for _ in range(ROUNDS):
        covariance = torch.linalg.inv(inner + torch.diag_embed(weight))
        mean = (covariance @ seen[..., None])[..., 0]
        weight = precision(mean.square() + covariance.diagonal(dim1=-2, dim2=-1), law)
    covariance = torch.linalg.inv(inner + torch.diag_embed(weight))
    mean = (covariance @ seen[..., None])[..., 0]
    return mean, torch.linalg.cholesky(covariance)


class Draws(NamedTuple):
    """loadings (draw, feature, latent), variance (draw, feature), law (draw, latent), slab (draw,), with latents in the
    order and signs of the last draw. heavy (latent,): the probability that a latent is not normal, averaged over draws.
    centre (feature, latent): the mean, with latents that are probably normal turned back. spread (feature, latent):
    deviations of loadings given the rotation. settled (latent,): the mean squared cosine of a latent's loadings, in
    units of noise, with its mean ones."""

    loadings: Tensor
    variance: Tensor
    law: Tensor
    slab: Tensor
    heavy: Tensor
    centre: Tensor
    spread: Tensor
    settled: Tensor


class Sampler:
    """State and sweeps of a chain over rows x (rows, feature), float64."""

    def __init__(self, x: Tensor, loadings: Tensor, variance: Tensor, rate: float, rng: np.random.Generator) -> None:
        self.x, self.loadings, self.variance, self.rate, self.rng = x, loadings, variance, rate, rng
        self.rows, (self.features, self.latents) = len(x), loadings.shape
        self.square = x.square().sum(0)
        self.freedom = torch.tensor(FREEDOM[LAPLACE + 1 :], dtype=x.dtype)
        at_zero = log_density(x.new_zeros(()), torch.arange(len(FREEDOM)))
        self.constant = self.rows * at_zero + torch.tensor(PRIOR, dtype=x.dtype).log()  # (law,)
        self.slab = SLAB
        self.z = given(x, loadings, variance, torch.full((self.latents,), FREEDOM.index(5.0)))[0]
        self.each = self.by_law(self.z)  # (latent, law)
        self.move_law()

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape))

    def accepted(self, gain: Tensor) -> Tensor:
        """Which of these changes of log density are taken."""
        return torch.as_tensor(np.log(self.rng.random(gain.shape))) < gain

    def by_law(self, z: Tensor) -> Tensor:
        """(column, law) log density of columns z (rows, column) under each law, with its prior: `log_density`, summed
        over rows, in as few passes as there are."""
        square = z.square()
        student = (square[..., None] / (self.freedom - 2)).log1p_().sum(0) * (-(self.freedom + 1) / 2)
        flat = torch.stack([-0.5 * square.sum(0), -(2**0.5) * z.abs().sum(0)], 1)
        return torch.cat([flat, student], 1) + self.constant

    def sweep(self) -> None:
        """Move all that is unknown once."""
        self.move_z()
        self.move_loadings()
        self.each = self.by_law(self.z)
        self.jump()
        self.turn()
        self.rescale()
        self.move_law()

    def move_z(self) -> None:
        """Scales given z, then z given scales."""
        law, square = self.law, self.z.square()
        weight, student = torch.ones_like(square), law > LAPLACE
        if student.any():
            nu = torch.tensor(FREEDOM, dtype=square.dtype)[law[student]]
            drawn = self.rng.standard_gamma(((nu + 1) / 2).expand(self.rows, -1).numpy())
            weight[:, student] = torch.from_numpy(drawn) / ((nu - 2 + square[:, student]) / 2)
        if (laplace := law == LAPLACE).any():
            mean = (2 / square[:, laplace].clamp_min(LEAST)).sqrt()
            weight[:, laplace] = torch.from_numpy(self.rng.wald(mean.numpy(), 2.0))
        scaled = self.loadings / self.variance[:, None]
        inner = self.loadings.mT @ scaled + torch.diag_embed(weight.clamp(LEAST, 1 / LEAST))
        tril, seen = torch.linalg.cholesky(inner), (self.x @ scaled)[..., None]
        white = torch.linalg.solve_triangular(tril, seen, upper=False) + self.normal(self.rows, self.latents, 1)
        self.z = torch.linalg.solve_triangular(tril.mT, white, upper=True)[..., 0]

    def move_loadings(self) -> None:
        """Loadings, variances and the slab, given z."""
        inner, cross = self.z.mT @ self.z, self.x.mT @ self.z
        value, vector = torch.linalg.eigh(inner)
        spread = 1 / (value / self.variance[:, None] + self.slab**-2)  # (feature, direction)
        along = cross @ vector / self.variance[:, None] * spread
        self.loadings = (along + spread.sqrt() * self.normal(self.features, self.latents)) @ vector.mT
        rest = self.square + ((self.loadings @ inner - 2 * cross) * self.loadings).sum(1)
        drawn = torch.from_numpy(self.rng.standard_gamma(SHAPE + self.rows / 2, self.features))
        self.variance = (self.rate + 0.5 * rest.clamp_min(1e-9 * self.rows)) / drawn
        size, total = self.loadings.numel(), float(self.loadings.square().sum())
        new = self.slab * math.exp(1.5 / math.sqrt(size) * self.rng.standard_normal())

        def log_prob(slab: float) -> float:
            away = (math.log(slab) - math.log(SLAB)) / SPREAD
            return -size * math.log(slab) - 0.5 * total / slab**2 - 0.5 * away**2

        if math.log(self.rng.random()) < log_prob(new) - log_prob(self.slab):
            self.slab = new

    def turn(self) -> None:
        """All latents together by small angles, given their laws: Langevin's proposal with the angles' expected
        information, n (I_a + I_b - 2) where I is that of a law's location."""
        if self.latents < 2:
            return
        law, upper = self.law, torch.triu_indices(self.latents, self.latents, 1).unbind()
        known = INFORMATION[law]
        spread = STEP / (self.rows * (known[:, None] + known - 2) + FLAT)
        noise = torch.zeros_like(spread).index_put(upper, self.normal(len(upper[0])))
        drift = self.drift(self.z, spread)
        angle = drift + spread.sqrt() * (noise - noise.mT)
        rotation = torch.linalg.matrix_exp(angle)
        z, back = self.z @ rotation, -angle
        new = self.by_law(z)
        gain = (new - self.each).gather(1, law[:, None]).sum()
        away = (angle - drift).square() - (back - self.drift(z, spread)).square()
        if self.accepted(gain + 0.5 * (away / spread)[upper].sum()):
            self.z, self.loadings, self.each = z, self.loadings @ rotation, new

    def drift(self, z: Tensor, spread: Tensor) -> Tensor:
        """(latent, latent) angles by which z is turned up its density, times half of `spread`."""
        score = (z * precision(z.square(), self.law)).mT @ z
        return 0.5 * spread * (score - score.mT)

    def jump(self) -> None:
        """Pairs of latents by an angle of any size, laws summed out."""
        if self.latents < 2:
            return
        pairs = torch.from_numpy(self.rng.permutation(self.latents)[: self.latents // 2 * 2].reshape(2, -1))
        a, b = self.z[:, pairs[0]], self.z[:, pairs[1]]
        size = self.rows ** (-0.5 * self.rng.random(len(pairs[0])))
        angle = torch.from_numpy(size * self.rng.standard_normal(len(size)))
        cos, sin = angle.cos(), angle.sin()
        now = self.each[pairs]  # (2, pair, law)
        new = self.by_law(torch.cat([cos * a + sin * b, cos * b - sin * a], 1)).reshape(now.shape)
        taken = self.accepted((new.logsumexp(2) - now.logsumexp(2)).sum(0))
        self.each[pairs] = torch.where(taken[:, None], new, now)
        angle = torch.where(taken, angle, 0.0)
        cos, sin = angle.cos(), angle.sin()
        for columns in (self.z, self.loadings):
            a, b = columns[:, pairs[0]], columns[:, pairs[1]]
            columns[:, pairs[0]], columns[:, pairs[1]] = cos * a + sin * b, cos * b - sin * a

    def rescale(self) -> None:
        """Latents by a factor and their loadings by its inverse, laws summed out."""
        size = torch.from_numpy(self.rows ** (-0.5 * self.rng.random(self.latents)))
        step = size * self.normal(self.latents)
        factor = step.exp()
        new = self.by_law(self.z * factor)
        gain = new.logsumexp(1) - self.each.logsumexp(1) + (self.rows - self.features) * step
        taken = self.accepted(gain - 0.5 * self.loadings.square().sum(0) / self.slab**2 * (factor**-2 - 1))
        self.each = torch.where(taken[:, None], new, self.each)
        factor = torch.where(taken, factor, 1.0)
        self.z, self.loadings = self.z * factor, self.loadings / factor

    def move_law(self) -> None:
        """Laws given z."""
        self.heavy = 1 - self.each.softmax(1)[:, NORMAL]
        self.law = (self.each + torch.from_numpy(self.rng.gumbel(size=self.each.shape))).argmax(1)

    def run(self, sweeps: int) -> Draws:
        """`DRAWS` draws of so many sweeps, of which the first quarter is left out."""
        kept = []
        for t in range(sweeps):
            self.sweep()
            if 4 * t >= sweeps:
                slab = torch.tensor(self.slab, dtype=self.x.dtype)
                kept.append((self.loadings.clone(), self.variance, self.law, slab, self.heavy))
        at = np.linspace(0, len(kept) - 1, DRAWS).round().astype(int)
        return aligned(*(torch.stack(part) for part in zip(*(kept[t] for t in at), strict=True)))


def aligned(loadings: Tensor, variance: Tensor, law: Tensor, slab: Tensor, heavy: Tensor) -> Draws:
    """Draws with latents in the order and signs of the last one, and what is read off them all."""
    scaled = loadings[-1] / variance.mean(0)[:, None]
    loadings, law, heavy = loadings.clone(), law.clone(), heavy.clone()
    for d in range(len(loadings)):
        like = scaled.mT @ loadings[d]  # (latent of the last, latent)
        place = torch.from_numpy(linear_sum_assignment(-like.abs().numpy())[1])
        sign = like.gather(1, place[:, None])[:, 0].sign()
        loadings[d], law[d], heavy[d] = loadings[d][:, place] * sign, law[d][place], heavy[d][place]
    turning, back = heavy.mean(0) < 0.5, loadings.clone()
    if turning.sum() > 1:
        back[..., turning] = _turned(loadings[..., turning], scaled[:, turning])
    centre = back.mean(0)
    unit = variance.mean(0).sqrt()[:, None]
    with_mean = torch.nn.functional.cosine_similarity(loadings / unit, centre / unit, dim=1)
    spread = _turned(loadings, centre / unit**2).std(0)
    return Draws(loadings, variance, law, slab, heavy.mean(0), centre, spread, with_mean.square().mean(0))


def _turned(loadings: Tensor, to: Tensor) -> Tensor:
    """Loadings (draw, feature, latent), those of each draw rotated to be most like `to` (feature, latent)."""
    left, _, right = torch.linalg.svd(loadings.mT @ to)
    return loadings @ left @ right


def categorical(latents: int, like: Tensor) -> Any:
    """The prior of the laws (latent,)."""
    return dist.Categorical(constant(PRIOR, like.dtype, like.device).expand(latents, -1)).to_event(1)
