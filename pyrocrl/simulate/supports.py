"""Latents whose joint support is a box, and some whose support is none."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from scipy.special import ndtr
from scipy.stats import ortho_group

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Fraction, Seed

SLOPE = 0.2  # of leaky ReLU
TURNS = 2  # of latents, before the last layer
CUT = 0.5  # sum of two latents beyond which their corner is empty


def wang2024_support(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 20_000,
    latents: Annotated[int, Bounds(2, 50)] = 4,
    features: Annotated[int, Bounds(2)] = 8,
    correlation: Annotated[float, Bounds(0, 1, "[)")] = 0.9,
    filled: Fraction = 0.1,
    mixing: Literal["linear", "mlp"] = "linear",
    noise: Annotated[float, Bounds(0, 10)] = 0.03,
    support: Literal["box", "cut", "ball", "simplex", "unbounded"] = "box",
    bad: Fraction = 0.0,
) -> Data:
    """Dependent latents that have a box to themselves, after Wang & Jordan (2024) and Roth et al. (2023).

        g ~ N(0, R),  R_kl = correlation for k != l                                        (data, latent)
        z = 2 Phi(g) - 1, or with the probability `filled` uniform on [-1, 1]^K            (data, latent)
        x = f(z) + noise sd(f) e,  e ~ N(0, I)                                             (data, feature)

    mixing: f is a matrix of standard normal numbers ("linear"), or that after two rotations of z by a random matrix
    with a leaky ReLU of slope .2 each ("mlp"). support: of z; "cut": rows are drawn again where the first two latents
    add up to more than 1/2, as no row fills that corner; "ball", "simplex": all rows are uniform on these; "unbounded":
    z = g. bad: share of rows to which noise of twice the deviation of the features is added. Truth: z and, of a matrix,
    loadings. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([2024, 3, seed])
    r = np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents)
    tril = np.linalg.cholesky(r)

    def drawn(count: int) -> np.ndarray:
        if support == "simplex":
            return 2 * rng.dirichlet(np.ones(latents + 1), count)[:, :latents] - 1
        g = rng.standard_normal((count, latents))
        if support == "ball":
            g /= np.linalg.norm(g, axis=1, keepdims=True)
            return g * rng.random((count, 1)) ** (1 / latents)
        g = g @ tril.T
        if support == "unbounded":
            return g
        fills = rng.random((count, 1)) < filled
        return np.where(fills, rng.uniform(-1, 1, g.shape), 2 * ndtr(g) - 1)

    z = drawn(rows)
    while support == "cut" and (over := z[:, 0] + z[:, 1] > CUT).any():
        z[over] = drawn(int(over.sum()))
    bent = z
    for _ in range(TURNS if mixing == "mlp" else 0):
        bent = bent @ ortho_group.rvs(latents, random_state=rng)
        bent = np.where(bent > 0, bent, SLOPE * bent)
    loadings = rng.standard_normal((features, latents))
    x = bent @ loadings.T
    sd = np.maximum(x.std(0), 1e-12)
    x = x + noise * sd * rng.standard_normal(x.shape)
    x = x + (rng.random((rows, 1)) < bad) * 2 * sd * rng.standard_normal(x.shape)
    truth = {"z": z} | ({"loadings": loadings} if mixing == "linear" else {})
    return Data(x, truth=truth, name=f"wang2024_support, correlation {correlation:g}, {mixing}")
