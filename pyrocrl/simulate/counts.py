"""Counts of sparse factors and of sparse codes, as genes in single cells have."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Fraction, Natural, Positive, Seed, Size

LARGEST = 1e12  # mean of a count


def sparse_counts(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 1000,
    features: Annotated[int, Bounds(2)] = 60,
    latents: Annotated[int, Bounds(2)] = 4,
    correlation: Annotated[float, Bounds(0, 1, "[)")] = 0.3,
    second: Fraction = 0.3,
    free: Fraction = 0.2,
    least: Annotated[float, Bounds(0, 1, "[)")] = 0.4,
    law: Literal["laplace", "gaussian"] = "gaussian",
    median: Positive = 0.7,
    dispersion: Positive = 3.0,
    batches: Size = 1,
    share: Annotated[float, Bounds(0, 1, "(]")] = 1.0,
    loadings: Literal["sparse", "dense"] = "sparse",
) -> Data:
    """Programmes that correlate, seen through small negative-binomial counts.

        z = R^(1/2) e,  R_kl = correlation for k != l,  e_k of unit variance, Gaussian or Laplace      (data, latent)
        feature j loads on latent j mod latents, and with probability `second` on another one, but a share `free` of
        all features on none;  |L_jk| ~ U(least, 1), signs at random                                   (feature, latent)
        s_i ~ LogNormal(0, .3^2),  exp(b_j) ~ LogNormal(log median, .8^2),  r_j ~ dispersion U(.5, 1.5)
        x_ij ~ NegativeBinomial(mean s_i exp(b_j + c_gj + L_j z_i), variance mean + mean^2 / r_j)      (data, feature)

    batches: of rows, g, each with its own c_gj ~ N(0, .2^2); one has none. share: of rows that have a latent, each for
    itself: there z is divided by share^(1/2), elsewhere it is 0. loadings: dense ones are of all latents for every
    feature but the free ones. Truth: z, mask, loadings. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([2009, seed])
    value, vector = np.linalg.eigh(np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents))
    e = rng.laplace(size=(rows, latents)) / 2**0.5 if law == "laplace" else rng.standard_normal((rows, latents))
    z = e @ (vector * np.sqrt(value)) @ vector.T
    mask, first = np.zeros((features, latents), dtype=int), np.arange(features) % latents
    mask[np.arange(features), first] = 1
    two = np.flatnonzero(rng.random(features) < second)
    mask[two, ((first + rng.integers(1, latents, features)) % latents)[two]] = 1
    if loadings == "dense":
        mask[:] = 1
    mask[rng.permutation(features)[: round(free * features)]] = 0
    if share < 1:
        z *= (np.random.default_rng([2021, seed]).random(z.shape) < share) / share**0.5
    own = mask * rng.uniform(least, 1.0, mask.shape) * rng.choice([-1, 1], mask.shape)
    size = np.exp(0.3 * rng.standard_normal(rows))
    base = np.log(median) + 0.8 * rng.standard_normal(features)
    r = dispersion * rng.uniform(0.5, 1.5, features)
    group = rng.integers(0, batches, rows)
    shift = 0.2 * rng.standard_normal((batches, features)) * (batches > 1)
    mean = size[:, None] * np.exp(base + shift[group] + z @ own.T)
    x = rng.poisson(rng.gamma(r, mean / r))
    return Data(
        x,
        counts=True,
        size_factor=size,
        batch=None if batches == 1 else [f"batch_{g}" for g in group],
        truth={"z": z, "mask": mask, "loadings": own},
        name=f"sparse_counts, correlation {correlation:g}",
    )


def code_counts(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 2000,
    latents: Annotated[int, Bounds(2)] = 12,
    features: Annotated[int, Bounds(2)] = 40,
    active: Positive = 1.5,
    length: Positive = 5.0,
    median: Positive = 5.0,
    dispersion: Positive = 5.0,
    together: Natural = 0,
    batches: Size = 1,
) -> Data:
    """Sums of few of many directions in log rates, as of programmes of genes that are at work or not, seen through
    negative-binomial counts.

        w_k uniform on the sphere of radius `length`                                           (feature, latent)
        z_k = |N(1, .3^2)| with probability active / latents, else 0                           (data, latent)
        s_i ~ LogNormal(0, .3^2),  exp(b_j) ~ LogNormal(log median, .5^2),  r_j ~ dispersion U(.5, 1.5)
        x_ij ~ NegativeBinomial(mean s_i exp(b_j + c_gj + w_j z_i), variance mean + mean^2 / r_j)   (data, feature)

    together: pairs of latents, 0 and 1, 2 and 3, ..., of which both fire whenever the first does. batches: of rows, g,
    each with its own c_gj ~ N(0, .2^2); one has none. Truth: z, loadings. Raises InputError where a latent would fire
    in more than .95 of the rows, for more pairs than there are, and for means beyond 1e12.
    """
    if active > 0.95 * latents:
        reject("active", active, f"at most {0.95 * latents:.3g}, so that no latent fires in nearly every row")
    if 2 * together > latents:
        reject("together", together, f"at most {latents // 2}, the pairs of {latents} latents")
    rng = np.random.default_rng([2011, seed])
    w = rng.standard_normal((features, latents))
    w *= length / np.linalg.norm(w, axis=0)
    fires = rng.random((rows, latents)) < active / latents
    fires[:, 1 : 2 * together : 2] = fires[:, 0 : 2 * together : 2]
    z = fires * np.abs(rng.normal(1.0, 0.3, (rows, latents)))
    size = np.exp(0.3 * rng.standard_normal(rows))
    base = np.log(median) + 0.5 * rng.standard_normal(features)
    r = dispersion * rng.uniform(0.5, 1.5, features)
    group = rng.integers(0, batches, rows)
    shift = 0.2 * rng.standard_normal((batches, features)) * (batches > 1)
    with np.errstate(over="ignore"):
        mean = size[:, None] * np.exp(base + shift[group] + z @ w.T)
    if not mean.max() <= LARGEST:
        name, value = ("median", median) if median > LARGEST**0.5 else ("length", length)
        reject(name, value, f"less, for counts with means of at most {LARGEST:.0e}")
    return Data(
        rng.poisson(rng.gamma(r, mean / r)),
        counts=True,
        size_factor=size,
        batch=None if batches == 1 else [f"batch_{g}" for g in group],
        truth={"z": z, "loadings": w},
        name=f"code_counts, {active:g} of {latents}",
    )
