"""Linear factor models."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Fraction, Positive, Seed, Size


def plt2010(
    seed: Seed = 0, rows: Annotated[int, Bounds(2)] = 200, latents: Size = 3, features: Annotated[int, Bounds(2)] = 12
) -> Data:
    """A positive lower triangular loading matrix, as Carvalho et al. (2008) and Fruehwirth-Schnatter & Lopes (2010)
    have it.

        L_jk ~ N(0, 1) below the diagonal, U(.5, 1.5) on it, 0 above      (feature, latent)
        v_j ~ U(.3, 1),  z ~ N(0, I),  x ~ N(L z, diag v)                 (data, feature)

    Truth: z, loadings. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([2010, seed])
    loadings = np.tril(rng.standard_normal((features, latents)), -1)
    loadings[np.arange(latents), np.arange(latents)] = rng.uniform(0.5, 1.5, latents)
    noise = rng.uniform(0.3, 1.0, features) ** 0.5
    z = rng.standard_normal((rows, latents))
    x = z @ loadings.T + noise * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "loadings": loadings}, name="plt2010")


def sparse_fa(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 5000,
    features: Annotated[int, Bounds(2)] = 100,
    latents: Annotated[int, Bounds(2)] = 10,
    correlation: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
    second: Fraction = 0.5,
    law: Literal["laplace", "gaussian"] = "laplace",
    noise: Positive = 0.5,
) -> Data:
    """Sparse loadings and factors that correlate, of heavy tails.

        z = R^(1/2) e,  R_kl = correlation for k != l,  e_k of unit variance, Laplace or Gaussian      (data, latent)
        feature j loads on latent j mod latents, and with probability `second` on another one
        |loading| ~ U(.5, 1.5), signs at random,  x ~ N(L z, noise^2 I)                                (data, feature)

    Truth: z, mask, loadings. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([777, seed])
    value, vector = np.linalg.eigh(np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents))
    e = rng.laplace(size=(rows, latents)) / 2**0.5 if law == "laplace" else rng.standard_normal((rows, latents))
    z = e @ (vector * np.sqrt(value)) @ vector.T
    mask, own = np.zeros((features, latents), dtype=int), np.arange(features) % latents
    mask[np.arange(features), own] = 1
    other = (own + rng.integers(1, latents, features)) % latents
    two = np.flatnonzero(rng.random(features) < second)
    mask[two, other[two]] = 1
    loadings = mask * rng.uniform(0.5, 1.5, mask.shape) * rng.choice([-1, 1], mask.shape)
    x = z @ loadings.T + noise * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "mask": mask, "loadings": loadings}, name=f"sparse_fa, correlation {correlation:g}")
