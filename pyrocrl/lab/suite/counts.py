"""Counts of sparse factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn


def counted(
    seed: int,
    masks: Sequence[Sequence[int]],
    rows: int = 1500,
    correlation: float = 0.3,
    rate: float = 3.0,
    dispersion: float = 4.0,
    *,
    together: float = 0.0,
    squares: bool = False,
) -> Data:
    """Counts whose log rates are Gaussian factors behind the features of `masks`. together: times the product of the
    first two, added to the log rates of features of the first. squares: the latents are squares of such factors."""
    rng = np.random.default_rng([18, seed])
    mask = np.asarray(masks)
    k = mask.shape[1]
    cov = np.full((k, k), correlation) + (1 - correlation) * np.eye(k)
    z = rng.multivariate_normal(np.zeros(k), cov, rows)
    z = (z**2 - 1) / 2**0.5 if squares else z
    loadings = mask * rng.uniform(0.5, 1.0, mask.shape) * rng.choice([-1, 1], mask.shape)
    mean = rate * np.exp(z @ loadings.T + together * np.outer(z[:, 0] * z[:, 1], mask[:, 0]))
    x = rng.poisson(rng.gamma(dispersion, mean.clip(max=1e5) / dispersion))
    return Data(x, counts=True, size_factor=np.ones(rows), truth={"z": z, "mask": mask}, name="counted")


def count_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 3) -> Case:
        model = "spike_slab_fa"
        told = {"latents": latents}
        return Case(f"{model}: counts, {name}", model, kind, draw, told, FEW, names="sparsest", breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        given = {"rows": 1500, "features": 30, "latents": 3, "median": 8.0, "least": 0.5, "dispersion": 20.0}
        return drawn("sparse_counts", **given | options)

    linear = "x, or the log rate of counts, is linear in the latents"
    alone, apart = [[1, 1, 0]] * 16 + [[0, 0, 1]] * 2, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    return [
        case("correlated factors", "identified", sparse()),
        case("correlated factors, five offered", "identified", sparse(), latents=5),
        case("small counts in two batches", "small", sparse(median=1.0, batches=2)),
        case("heavy tails", "small", sparse(law="laplace")),
        case("correlated factors, 150 rows", "small", sparse(rows=150)),
        case("dense loadings", "open", lambda s: counted(s, [[1, 1, 1]] * 30), "simple_structure"),
        case("two features of a latent", "open", lambda s: counted(s, alone, correlation=0.0), "noise_told_apart"),
        case(
            "factors that are nearly one",
            "open",
            lambda s: counted(s, [[1, 0]] * 12 + [[0, 1]] * 12, 2000, 0.99, 50.0, 200.0),
            "not_collinear",
            2,
        ),
        case(
            "factors of correlation .985",
            "small",
            lambda s: counted(s, [[1, 0]] * 12 + [[0, 1]] * 12, 1500, 0.985, 20.0, 30.0),
            latents=2,
        ),
        case("two of three factors", "open", sparse(second=0.6), "noise is independent", latents=2),
        case("factors that act together", "misspecified", lambda s: counted(s, apart * 10, together=0.6), linear),
        case("factors that are squares", "small", lambda s: counted(s, apart * 10, squares=True)),
    ]


def unsized(seed: int) -> Data:
    """Counts whose size factors were taken for one: what differs between rows is in all features."""
    data = drawn("sparse_counts", rows=1500, features=30, latents=3, median=8.0, least=0.5, dispersion=20.0)(seed)
    wide = np.exp(0.7 * np.random.default_rng([19, seed]).standard_normal(data.rows))
    x = np.random.default_rng([20, seed]).poisson(data.x * wide[:, None])
    return Data(x, counts=True, size_factor=np.ones(data.rows), truth=data.truth, name="unsized")


def product_count_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 5) -> Case:
        told = {"latents": latents, "steps": 80}
        return Case(f"ebmf: counts, {name}", "ebmf", kind, draw, told, FEW, names="sparsest", breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        given = {"rows": 1500, "features": 30, "latents": 3, "median": 8.0, "least": 0.5, "dispersion": 20.0}
        return drawn("sparse_counts", **given | options)

    def silent(**options: Any) -> Callable[[int], Data]:
        given = {"rows": 1000, "features": 40, "latents": 3, "share": 0.2, "correlation": 0.0, "loadings": "dense"}
        return drawn("sparse_counts", **given | options)

    linear, noise = "x, or the log rate of counts, is linear in the latents", "noise is independent between features"
    alone, apart = [[1, 1, 0]] * 16 + [[0, 0, 1]] * 2, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    return [
        case("sparse loadings", "identified", sparse()),
        case("sparse scores", "identified", silent()),
        case("sparse loadings and scores", "identified", silent(loadings="sparse", median=2.0)),
        case("sparse loadings, small counts in two batches", "small", sparse(median=1.0, dispersion=3.0, batches=2)),
        case("sparse loadings, 150 rows", "small", sparse(rows=150)),
        case("dense loadings, normal scores", "open", lambda s: counted(s, [[1, 1, 1]] * 30), "zeros_tell"),
        case("size factors taken for one", "open", unsized, "zeros_tell"),
        case("two features of a latent", "open", lambda s: counted(s, alone, correlation=0.0), "noise_told_apart"),
        case(
            "factors that are nearly one",
            "open",
            lambda s: counted(s, [[1, 0]] * 12 + [[0, 1]] * 12, 2000, 0.99, 50.0, 200.0),
            "not_collinear",
            2,
        ),
        case("two of three factors", "misspecified", sparse(second=0.6), noise, 2),
        case("factors that act together", "misspecified", lambda s: counted(s, apart * 10, together=0.6), linear),
    ]
