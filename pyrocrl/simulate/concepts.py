"""Affine concepts of latents behind a nonlinear mixing, and environments that condition softly on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Deviation, Positive, Seed
from pyrocrl.program import check_sizes
from pyrocrl.simulate.ahuja import SLOPE, well_conditioned
from pyrocrl.simulate.mixtures import linear_r2

LEVELS = (0.5, 1.5)  # sizes of the values that environments condition on
TRIED = 100_000  # rows of the base environment that are drawn at once, of which conditioning keeps few

Array = np.ndarray


def rajendran2024(
    seed: Seed = 0,
    samples: Annotated[int, Bounds(2)] = 5_000,
    latents: int = 6,
    concepts: int = 3,
    features: int | None = None,
    spread: Positive = 0.5,
    layers: Annotated[int, Bounds(1, 10)] = 3,
    draws: Annotated[int, Bounds(1, 1_000_000)] = 25_000,
    noise: Deviation = 0.0,
) -> Data:
    """Concepts after Rajendran, Buchholz, Aragam, Schoelkopf & Ravikumar (2024), "From causal to concept-based
    representation learning".

        z ~ N(0, I),  c_k = a_k'z,  a_k a random unit vector                        (data, latent), (data, concept)
        p_e(z) ~ p_0(z) prod_k exp(-(c_k - b_ek)^2 / 2 spread^2), k the concepts of environment e
        x = f(z) + noise sd e                                                       (data, feature)

    Environment "concept_<k>" conditions on concept k alone, "all" on all of them; b_ek is +-U(.5, 1.5), of the other
    sign in "all" than in the concept's own. f: `layers` linear maps with leaky ReLUs (slope .2) between them, of as
    many units as there are latents, the last into `features` (None = twice the latents); weights as in
    `ahuja2022_pairs`: columns of length 1, the best-conditioned of `draws`. 1 layer = a linear mixing.

    samples: rows in each of the concepts + 2 environments, "base" first. Truth: z, the concepts' values; targets. The
    held-out R^2 of linear regression x -> z is in the data's name.
    """
    features = 2 * latents if features is None else features
    check_sizes(features, latents, square=True)
    if not 1 <= concepts <= latents:
        reject("concepts", concepts, f"1 to {latents}, the latents")
    rng = np.random.default_rng([2024, latents, concepts, seed])
    told = np.concatenate([np.eye(concepts, dtype=int), np.ones((1, concepts), dtype=int)])
    sign = rng.choice([-1.0, 1.0], concepts)
    level = np.concatenate(
        [np.diag(sign * rng.uniform(*LEVELS, concepts)), -sign * rng.uniform(*LEVELS, (1, concepts))]
    )
    names = [*(f"concept_{k}" for k in range(concepts)), "all"]
    return conditioned_data(
        rng, samples, unit_rows(rng, concepts, latents), told, level, names, spread, features, layers, draws, noise
    )


def unit_rows(rng: np.random.Generator, concepts: int, latents: int) -> Array:
    """(concept, latent) random unit vectors."""
    rows = rng.standard_normal((concepts, latents))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def conditioned_data(
    rng: np.random.Generator,
    samples: int,
    rows: Array,
    acting: Array,
    level: Array,
    names: list[str],
    spread: float | Sequence[float] = 0.5,
    features: int = 12,
    layers: int = 3,
    draws: int = 25_000,
    noise: float = 0.0,
    base: Literal["normal", "uniform"] = "normal",
    told: Array | None = None,
) -> Data:
    """Data of environment "base" and of those that condition on concepts.

    rows (concept, latent); acting (env, concept) in {0, 1}: which concepts each of the environments `names` conditions
    on; level (env, concept), at which values; spread: how closely, one number or one of each environment. told: (env,
    kept concepts) what is said of it, None = `acting`; truth has as many concepts. base: law of each latent in "base",
    of mean 0 and variance 1.
    """
    kept = acting if told is None else told
    own = np.broadcast_to(spread, len(names))
    free = conditioned_latents(rng, samples, rows, 0 * acting[0], 0 * level[0], 1.0, base)
    held = (conditioned_latents(rng, samples, rows, *one, base) for one in zip(acting, level, own, strict=True))
    z = np.concatenate([free, *held])
    x = z
    for layer in range(layers):
        wide = features if layer == layers - 1 else rows.shape[1]
        x = x @ well_conditioned(rng, x.shape[1], wide, draws)
        x = np.where(x > 0, x, SLOPE * x) if layer < layers - 1 else x
    x = x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x
    values = (z @ rows.T)[:, : kept.shape[1]]
    targets = {name: tuple(np.flatnonzero(on).tolist()) for name, on in zip(names, kept, strict=True) if on.any()}
    pick = rng.permutation(len(x))
    return Data(
        x=x,
        env=np.repeat(["base", *names], samples).tolist(),
        targets=targets,
        truth={"z": values, "targets": targets},
        name=f"rajendran2024, linear R2 {linear_r2(x[pick], values[pick]):.3f}",
    )


def conditioned_latents(
    rng: np.random.Generator, samples: int, rows: Array, on: Array, at: Array, spread: float, base: str
) -> Array:
    """(row, latent) z of one environment, which conditions on the concepts `on` (concept,) at the values `at`."""
    latents = rows.shape[1]
    if base == "normal":
        precision = np.eye(latents) + (rows.T * on) @ rows / spread**2
        mean = np.linalg.solve(precision, rows.T @ (on * at)) / spread**2
        root = np.linalg.inv(np.linalg.cholesky(precision))  # root' root is the covariance
        return np.asarray(mean + rng.standard_normal((samples, latents)) @ root)
    parts: list[Array] = []
    found = 0
    while found < samples:
        z = rng.uniform(-(3**0.5), 3**0.5, (TRIED, latents))
        kept = z[rng.random(TRIED) < np.exp(-0.5 * (on * (z @ rows.T - at) ** 2).sum(1) / spread**2)]
        parts, found = [*parts, kept], found + len(kept)
    return np.concatenate(parts)[:samples]
