"""Gaussian mixtures with independent coordinates behind an injective piecewise affine map (Kivva et al. 2022)."""

from __future__ import annotations

import math

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Seed
from pyrocrl.program import check_sizes, check_whole

COMPONENTS = 4
LINEAR_R2 = 0.9  # mixings that a linear regression undoes better than this are drawn again
MIXTURES, MIXINGS = 300, 1000  # draws to choose from

Array = np.ndarray


def kivva2022_2d(seed: Seed = 0, rows: int = 20_000, noise: float = 0.03, features: int = 20) -> Data:
    """A mixture of four Gaussians in two dimensions through three leaky-ReLU layers into 20 columns.

        c ~ Categorical(pi),  z | c ~ N(mu_c, diag(s_c^2))             (data, latent)
        x = W_3 h(W_2 h(W_1 z)) + noise * e,  e ~ N(0, I)              (data, feature)

    The assumptions of Kivva et al. (2022), theorem 3.2 with independence given c; the sizes are ours, since the
    paper's own figures are not published as numbers. pi ~ Dirichlet(20), mu ~ U(-2, 2), log s ~ U(log .2, 0): of 300
    draws, the mixture whose components' variance ratios differ most between the two most similar latents; then z is
    brought to mean 0 and sd 1. W_l has orthonormal columns, of sizes latent, latent and `features`; every layer's
    output is centred and brought to overall sd 1; h is a leaky ReLU of slope .3. Mixings are redrawn until linear
    regression x -> z has R^2 <= .9 on held-out rows (in the name of the data), so that none is nearly linear.
    x without noise spans `latent` dimensions, which PCA finds; what is hard is the map within them.

    Truth: z, component. Raises InputError unless noise >= 0, rows >= 100 and features > latents.
    """
    return _kivva2022("kivva2022_2d", 2, seed, rows, noise, features)


def kivva2022_5d(seed: Seed = 0, rows: int = 20_000, noise: float = 0.03, features: int = 20) -> Data:
    """As `kivva2022_2d` with five latents."""
    return _kivva2022("kivva2022_5d", 5, seed, rows, noise, features)


def _kivva2022(name: str, latents: int, seed: int, rows: int, noise: float, features: int) -> Data:
    check_sizes(features, latents)
    check_whole("rows", rows, 100)
    if not (noise >= 0 and math.isfinite(noise)):
        reject("noise", noise, "a standard deviation from 0 on")
    rng = np.random.default_rng([2022, latents, seed])
    weights, mean, sd = _mixture(rng, latents)
    component = rng.choice(COMPONENTS, rows, p=weights)
    z = mean[component] + sd[component] * rng.standard_normal((rows, latents))
    for _ in range(MIXINGS):
        clean = _mix(rng, z, features)
        x = clean + noise * rng.standard_normal(clean.shape)
        linear = linear_r2(x, z)
        if linear <= LINEAR_R2:
            break
    return Data(x, truth={"z": z, "component": component}, name=f"{name}, linear R2 {linear:.2f}")


def _mixture(rng: np.random.Generator, latents: int) -> tuple[Array, Array, Array]:
    """Weights (component,), means and standard deviations (component, latent); each latent has mean 0 and sd 1."""
    a, b = np.triu_indices(latents, 1)
    best = -1.0
    for _ in range(MIXTURES):
        new_mean = rng.uniform(-2.0, 2.0, (COMPONENTS, latents))
        log_sd = rng.uniform(math.log(0.2), 0.0, (COMPONENTS, latents))
        contrast = float((log_sd[:, a] - log_sd[:, b]).std(0).min())
        if contrast > best:
            best, mean, sd = contrast, new_mean, np.exp(log_sd)
    weights = rng.dirichlet(np.full(COMPONENTS, 20.0))
    centre = weights @ mean
    spread = np.sqrt(weights @ ((mean - centre) ** 2 + sd**2))
    return weights, (mean - centre) / spread, sd / spread


def _mix(rng: np.random.Generator, z: Array, features: int, slope: float = 0.3) -> Array:
    """(data, feature): injective, since every layer has full column rank and the leaky ReLU is one to one."""
    h = z
    for last in (False, False, True):
        outputs = features if last else z.shape[1]
        weight, _ = np.linalg.qr(rng.standard_normal((outputs, z.shape[1])))
        h = h @ weight.T
        h = (h - h.mean(0)) / h.std()
        h = h if last else np.where(h > 0, h, slope * h)
    return h


def linear_r2(x: Array, z: Array) -> float:
    """Mean R^2 over latents of least squares x -> z, fitted on the first half of the rows, on the second."""
    half = len(x) // 2
    design = np.column_stack([x, np.ones(len(x))])
    coefficient = np.linalg.lstsq(design[:half], z[:half], rcond=None)[0]
    residual = z[half:] - design[half:] @ coefficient
    return float(np.mean(1.0 - residual.var(0) / z[half:].var(0)))
