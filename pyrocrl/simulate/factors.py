"""Linear factor models."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Fraction, Natural, Positive, Seed, Size


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


def bing2020(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 1000,
    latents: Size = 10,
    features: Annotated[int, Bounds(2)] = 200,
    pure: Natural = 2,
    loadings: Literal["equal", "random"] = "equal",
) -> Data:
    """Pure features of correlated latents among mixed ones, as in the simulations of Bing et al. (2020).

        C_kk ~ U(2, 3),  C_kl = (-.3)^|k - l| min(C_kk, C_ll)          (latent, latent)
        x = A z + e,  z ~ N(0, C),  e_j ~ N(0, v_j),  v_j ~ U(1, 3)     (data, feature)

    Each latent has `pure` features with A_jk = 1 or -1. The others load on 2 to 4 latents, or as many as there are,
    with 1 / q or -1 / q of q of them (loadings="equal", where several features may have proportional loadings), or with
    numbers of random size, (.5 to 1.5) / q ("random"). Columns are in random order. Truth: z, mask, loadings. Raises
    InputError where pure features are more than features.
    """
    if latents * pure > features:
        reject("pure", pure, f"at most {features // latents}, for {features} features of {latents} latents")
    rng = np.random.default_rng([2020, seed])
    spread, apart = rng.uniform(2.0, 3.0, latents), np.subtract.outer(np.arange(latents), np.arange(latents))
    covariance = (-0.3) ** np.abs(apart) * np.minimum.outer(spread, spread)
    a = np.zeros((features, latents))
    for j in range(features):
        if j < latents * pure:
            a[j, j // pure] = rng.choice([-1.0, 1.0])
            continue
        q = min(int(rng.integers(2, 5)), latents)
        size = rng.uniform(0.5, 1.5, q) if loadings == "random" else np.ones(q)
        a[j, rng.choice(latents, q, replace=False)] = rng.choice([-1.0, 1.0], q) * size / q
    a = a[rng.permutation(features)]
    noise = rng.uniform(1.0, 3.0, features) ** 0.5
    z = rng.standard_normal((rows, latents)) @ np.linalg.cholesky(covariance).T
    x = z @ a.T + noise * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "mask": (a != 0).astype(float), "loadings": a}, name="bing2020")


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


def sparse_scores(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 2000,
    features: Annotated[int, Bounds(2)] = 40,
    latents: Size = 5,
    share: Annotated[float, Bounds(0, 1, "(]")] = 0.2,
    loadings: Literal["dense", "sparse"] = "dense",
    together: Natural = 0,
    noise: Positive = 0.5,
) -> Data:
    """Rows that have few latents each, of dense loadings or of sparse ones.

        z_k = N(0, 1 / share) with the probability `share`, else 0                     (data, latent)
        L_jk ~ N(0, 1), or |L_jk| ~ U(.5, 1.5) of two latents for each feature         (feature, latent)
        x ~ N(L z, noise^2 I)                                                          (data, feature)

    together: pairs of latents, 0 and 1, 2 and 3, ..., that are in the same rows. Truth: z, mask, loadings. Raises
    InputError for more latents than features and for more pairs than there are.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    if 2 * together > latents:
        reject("together", together, f"at most {latents // 2}, the pairs of {latents} latents")
    rng = np.random.default_rng([2021, seed])
    there = rng.random((rows, latents)) < share
    there[:, 1 : 2 * together : 2] = there[:, 0 : 2 * together : 2]
    z = there * rng.standard_normal((rows, latents)) / share**0.5
    own = rng.standard_normal((features, latents))
    if loadings == "sparse":
        own = rng.uniform(0.5, 1.5, own.shape) * rng.choice([-1, 1], own.shape)
        own *= np.argsort(np.argsort(rng.random(own.shape), axis=1), axis=1) < 2
    x = z @ own.T + noise * rng.standard_normal((rows, features))
    truth = {"z": z, "mask": (own != 0).astype(int), "loadings": own}
    return Data(x, truth=truth, name=f"sparse_scores, share {share:g}")


def synth_sae_small(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 30_000,
    latents: Annotated[int, Bounds(2)] = 64,
    features: Annotated[int, Bounds(2)] = 32,
    active: Positive = 3.0,
    zipf: Annotated[float, Bounds(0)] = 0.0,
    noise: Positive = 0.05,
    together: Natural = 0,
) -> Data:
    """Sums of few of many directions, as synthetic activations for sparse auto-encoders are made (SynthSAEBench, arXiv
    2602.14687, at a small size and without hierarchy).

        w_k uniform on the sphere                                                         (feature, latent)
        z_k = |N(1, .3^2)| with probability p_k, else 0,  p_k ~ 1 / k^zipf, sum of p_k = active  (data, latent)
        x ~ N(W z, noise^2 I)                                                             (data, feature)

    together: pairs of latents, 0 and 1, 2 and 3, ..., of which both fire whenever the first does. Truth: z, loadings.
    Raises InputError where a probability would exceed .95, and for more pairs than there are.
    """
    p = np.arange(1, latents + 1.0) ** -zipf
    p *= active / p.sum()
    if p[0] > 0.95:
        reject("active", active, f"at most {active * 0.95 / p[0]:.3g}, so that no latent fires in nearly every row")
    if 2 * together > latents:
        reject("together", together, f"at most {latents // 2}, the pairs of {latents} latents")
    rng = np.random.default_rng([602, seed])
    w = rng.standard_normal((features, latents))
    w /= np.linalg.norm(w, axis=0)
    fires = rng.random((rows, latents)) < p
    fires[:, 1 : 2 * together : 2] = fires[:, 0 : 2 * together : 2]
    z = fires * np.abs(rng.normal(1.0, 0.3, (rows, latents)))
    x = z @ w.T + noise * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "loadings": w}, name=f"synth_sae_small, zipf {zipf:g}")


def dense_fa(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 3000,
    features: Annotated[int, Bounds(2)] = 60,
    latents: Size = 6,
    law: Literal["laplace", "t3", "gaussian"] = "laplace",
    gaussian: Natural = 0,
    shared: bool = False,
    noise: Positive = 1.5,
) -> Data:
    """Dense loadings of independent latents of heavy tails: nothing but the tails tells rotations apart.

        L_jk ~ N(0, 1),  v_j ~ noise^2 U(.5, 1.5)             (feature, latent), (feature,)
        z_k of `law` and unit variance                        (data, latent)
        x ~ N(L z, diag v)                                    (data, feature)

    law: Laplace, Student's of 3 degrees of freedom, or Gaussian. gaussian: how many latents are Gaussian in its place.
    shared: a row has one scale for all latents, which are then uncorrelated, of the same tails, and dependent. Truth:
    z, loadings. Raises InputError for more latents than features, and for more Gaussian ones than there are.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    if gaussian > latents:
        reject("gaussian", gaussian, f"at most {latents}, the latents")
    rng = np.random.default_rng([2023, seed])
    loadings = rng.standard_normal((features, latents))
    spread = noise * rng.uniform(0.5, 1.5, features) ** 0.5
    size = (rows, 1 if shared else latents)
    scale = {
        "laplace": lambda: rng.standard_exponential(size),
        "t3": lambda: 1 / rng.chisquare(3, size),
        "gaussian": lambda: np.ones(size),
    }[law]()
    scale = np.broadcast_to(scale, (rows, latents)).copy()
    scale[:, latents - gaussian :] = 1.0
    z = np.sqrt(scale) * rng.standard_normal((rows, latents))
    x = z @ loadings.T + spread * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "loadings": loadings}, name=f"dense_fa, {law}")


def bhattacharya2011(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 500,
    features: Annotated[int, Bounds(2)] = 100,
    latents: Size = 10,
    density: Fraction = 0.2,
    variance: Positive = 0.5,
) -> Data:
    """Many features of few Gaussian latents, as in the simulations of Bhattacharya & Dunson (2011).

        L_jk ~ N(0, 9) with the probability `density`, else 0     (feature, latent)
        z ~ N(0, I),  x ~ N(L z, variance I)                    (data, feature)

    Truth: z, loadings. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([2011, seed])
    loadings = 3.0 * rng.standard_normal((features, latents)) * (rng.random((features, latents)) < density)
    z = rng.standard_normal((rows, latents))
    x = z @ loadings.T + variance**0.5 * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "loadings": loadings}, name="bhattacharya2011")
