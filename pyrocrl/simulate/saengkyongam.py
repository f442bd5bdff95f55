"""Latents that move linearly with an exogenous action, behind a nonlinear mixing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Deviation, Positive, Seed
from pyrocrl.program import check_sizes, check_whole
from pyrocrl.simulate.mixtures import linear_r2

SLOPE = 0.2
OFFSET = 1.5  # corners of the leaky ReLUs lie within this many deviations of the centre
CORRELATION = 0.5  # of the latents' noise

Array = np.ndarray


def saengkyongam2024(
    seed: Seed = 0,
    samples: int = 10_000,
    latents: int = 2,
    actions: int = 2,
    features: int = 10,
    reach: Positive = 1.0,
    noise: Deviation = 0.05,
) -> Data:
    """Saengkyongam et al. (2024), "Identifying representations for intervention extrapolation": after the design of
    their experiments; the sizes are ours.

    z = M a + v, x = f(z) + e: actions a uniform on (-reach, reach) in each coordinate, M (latent, action) a random
    rotation (a part of one), v ~ N(0, S) with variances 1 and correlations .5. f is injective: two layers of twice
    as many leaky ReLUs (slope .2) as latents, with offsets, and a linear map, of orthonormal columns on inputs of
    deviation 1. e has deviation
    `noise` in that of each feature under reach 1. The same seed with another `reach` gives the same M and f, so that
    actions never tried can be drawn; `mean_under` gives the mean of x under any action.

    aux: a (data, action). Truth: z. The held-out R^2 of linear regression x -> z is in the name of the data.
    """
    effect, root, mix, spread = _world(seed, latents, actions, features)
    check_whole("samples", samples, 10)
    rng = np.random.default_rng([2024, latents, seed, 1, round(1000 * reach)])
    a = rng.uniform(-reach, reach, (samples, actions))
    z = a @ effect.T + rng.standard_normal((samples, latents)) @ root.T
    x = mix(z)
    x = x + noise * spread * rng.standard_normal(x.shape)
    name = f"saengkyongam2024, linear R2 {linear_r2(x, z):.3f}"
    return Data(x=x, aux=a, truth={"z": z}, name=name)


def mean_under(
    action: Array, seed: int = 0, latents: int = 2, actions: int = 2, features: int = 10, draws: int = 20_000
) -> Array:
    """(rows, feature) mean of x under each row of `action` (rows, action) in the world of `seed`, by `draws` of v."""
    effect, root, mix, _ = _world(seed, latents, actions, features)
    half = np.random.default_rng([2024, latents, seed, 2]).standard_normal((draws // 2, latents)) @ root.T
    v = np.concatenate([half, -half])
    return np.stack([mix(effect @ row + v).mean(0) for row in np.asarray(action, dtype=np.float64)])


def _world(
    seed: int, latents: int, actions: int, features: int
) -> tuple[Array, Array, Callable[[Array], Array], Array]:
    """M, a root of S, f, and the deviation of f's features under reach 1."""
    check_sizes(features, latents)
    check_whole("actions", actions, latents)
    rng = np.random.default_rng([2024, latents, seed])
    effect = np.linalg.qr(rng.standard_normal((actions, latents)))[0].T
    cov = np.full((latents, latents), CORRELATION) + (1 - CORRELATION) * np.eye(latents)
    root = np.linalg.cholesky(cov)
    h = rng.uniform(-1.0, 1.0, (4_000, actions)) @ effect.T + rng.standard_normal((4_000, latents)) @ root.T
    layers = []
    for layer in range(3):
        mean, sd = h.mean(0), h.std(0)
        outputs = min(2 * latents, features) if layer < 2 else features
        columns = np.linalg.qr(rng.standard_normal((outputs, h.shape[1])))[0].T  # (inputs, outputs), of full rank
        offset = rng.uniform(-OFFSET, OFFSET, outputs) if layer < 2 else np.zeros(outputs)
        layers.append((mean, sd, columns, offset))
        h = _layer(h, *layers[-1], bent=layer < 2)

    def mix(z: Array) -> Array:
        for layer, parts in enumerate(layers):
            z = _layer(z, *parts, bent=layer < 2)
        return z

    return effect, root, mix, h.std(0)


def _layer(h: Array, mean: Array, sd: Array, columns: Array, offset: Array, bent: bool) -> Array:
    h = (h - mean) / sd @ columns
    h = h / np.sqrt(columns.shape[0] / columns.shape[1]) + offset  # of deviation 1 on average
    return np.where(h > 0, h, SLOPE * h) if bent else h
