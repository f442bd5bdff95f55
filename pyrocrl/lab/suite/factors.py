"""Factors behind sparse, triangular, pure or dense loadings, and graphs of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyrocrl.claims.card import AT_RANDOM
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn


def factors(seed: int, masks: Sequence[Sequence[int]], rows: int = 500, correlation: float = 0.3) -> Data:
    """Gaussian factors behind the features of `masks`."""
    rng = np.random.default_rng([17, seed])
    mask = np.asarray(masks)
    k = mask.shape[1]
    cov = np.full((k, k), correlation) + (1 - correlation) * np.eye(k)
    z = rng.multivariate_normal(np.zeros(k), cov, rows)
    loadings = mask * rng.uniform(0.8, 1.6, mask.shape) * rng.choice([-1, 1], mask.shape)
    return Data(z @ loadings.T + 0.4 * rng.standard_normal((rows, len(mask))), truth={"z": z, "mask": mask})


def twins(seed: int) -> Data:
    """Two factors that correlate at .99."""
    return factors(seed, [[1, 0]] * 8 + [[0, 1]] * 8, rows=2000, correlation=0.99)


def one_sum(seed: int, rows: int = 2000) -> Data:
    """Two factors, of which half of the features have the second alone and half as much of either: the sum of the two
    with the second is sparser."""
    rng = np.random.default_rng([31, seed])
    z = rng.standard_normal((rows, 2))
    mask = np.array([[1, 1]] * 10 + [[0, 1]] * 10)
    loadings = mask * rng.uniform(0.8, 1.6, (20, 1)) * rng.choice([-1, 1], (20, 1))
    return Data(z @ loadings.T + 0.4 * rng.standard_normal((rows, 20)), truth={"z": z, "mask": mask}, name="one_sum")


def heavy_noise(seed: int, rows: int = 2000) -> Data:
    """Two Gaussian latents behind six features with noise of three degrees of freedom."""
    rng = np.random.default_rng([22, seed])
    z, loadings = rng.standard_normal((rows, 2)), rng.standard_normal((6, 2))
    return Data(z @ loadings.T + 0.5 * rng.standard_t(3, (rows, 6)), truth={"z": z})


def measured(
    seed: int,
    own: Sequence[int] = (3, 3, 3),
    rows: int = 4000,
    *,
    apart: bool = False,
    mixed: bool = False,
    paired: bool = False,
    hidden: bool = False,
    cancelling: bool = False,
    heavy: bool = False,
) -> Data:
    """Latents 0 -> 1 -> 2 with so many features of their own each.

    apart: no latent depends on another; mixed: a feature of the first depends on the last as well; paired: features of
    the first and the last share noise; hidden: something acts on the first and the last, and nothing on the second;
    cancelling: the first acts on the last against what it does by way of the second; heavy: noise is large and Laplace.
    """
    rng = np.random.default_rng([21, seed])
    d = len(own)
    weight = np.zeros((d, d)) if apart else np.diag(rng.choice([-1, 1], d - 1) * rng.uniform(0.7, 1.2, d - 1), 1)
    e = rng.standard_normal((rows, d))
    if hidden:
        weight[:] = 0.0
        e[:, [0, -1]] += 1.2 * rng.standard_normal((rows, 1))
    if cancelling:
        weight[0, -1] = -weight[0, 1] * weight[1, -1]
    z = e @ np.linalg.inv(np.eye(d) - weight)
    mask = np.repeat(np.eye(d), own, axis=0)
    loadings = mask * (rng.uniform(0.8, 1.5, len(mask)) * rng.choice([-1, 1], len(mask)))[:, None]
    noise = 0.6 * rng.standard_normal((rows, len(mask)))
    if heavy:
        noise = rng.laplace(size=noise.shape)
    if mixed:
        loadings[0, -1] = mask[0, -1] = 1.0
    if paired:
        noise[:, [0, -1]] += 0.6 * rng.standard_normal((rows, 1))
    truth = {"z": z, "mask": mask, "graph": (weight != 0).astype(int)}
    return Data(z @ loadings.T + noise, truth=truth, name="measured")


def lacking(draw: Callable[[int], Data], share: float = 0.2, how: str = "") -> Callable[[int], Data]:
    """The same rows without this share of the values, at random, or (how="low") those that are lowest, or
    (how="beside"), of every other feature, those of rows in which the feature before, which is there, is lowest. Rows
    of which nothing is left are left out."""

    def other(seed: int) -> Data:
        data = draw(seed)
        chance = np.random.default_rng([23, seed]).random(data.x.shape)
        lacks = data.x < np.quantile(data.x, share, axis=0) if how == "low" else chance < share
        if how == "beside":
            lacks = np.roll(data.x, 1, axis=1) < np.quantile(np.roll(data.x, 1, axis=1), share, axis=0)
            lacks[:, ::2] = False
        there = ~lacks.all(1)
        data, x = data.rows_at(there), np.where(lacks, np.nan, data.x)[there]
        more: dict[str, Any] = {
            "counts": data.counts,
            "size_factor": data.size_factor,
            "truth": data.truth,
            "name": data.name,
        }
        return Data(x, missing=True, **more)

    return other


def mixed_sparsity(seed: int, rows: int = 2000) -> Data:
    """Two latents of sparse loadings that are in all rows, and two of dense ones that are in few, to which the former
    are related: no zeros tell how."""
    rng = np.random.default_rng([24, seed])
    few = (rng.random((rows, 2)) < 0.2) * rng.standard_normal((rows, 2)) / 0.2**0.5
    z = np.column_stack([rng.standard_normal((rows, 2)) + 0.6 * few, few])
    loadings = rng.standard_normal((40, 4))
    loadings[:, :2] *= np.arange(40)[:, None] % 4 == np.arange(2)
    x = z @ loadings.T + 0.5 * rng.standard_normal((rows, 40))
    return Data(x, truth={"z": z, "mask": (loadings != 0).astype(int)}, name="mixed_sparsity")


CLUSTERS = "linear_latent_sem"
APART = [[1, 0]] * 3 + [[0, 1]] * 3 + [[1, 1]]
WITHIN, ALL = [[1, 1]] * 3 + [[0, 1]] * 3, [[1, 1]] * 6


def factor_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        given = {"latents": 2, "decoder": "linear", **options}
        return Case(f"sparse_vae: {name}", "sparse_vae", kind, draw, given, FEW, breaks=breaks)

    def word(name: str, draw: Callable[[int], Data], latents: int = 2) -> Case:
        given = {"latents": latents, "decoder": "linear"}
        return Case(f"sparse_vae: {name}", "sparse_vae", "word", draw, given, FEW, names="missing", breaks=AT_RANDOM[0])

    def lone(seed: int) -> Data:
        return factors(seed, APART, 1000, 0.0)

    numbers = drawn("sparse_counts", rows=1500, features=30, latents=3, median=8.0, least=0.5, dispersion=20.0)
    one = [[1, 0]] * 3 + [[1, 1]] * 3 + [[0, 1]]
    three = [[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3
    return [
        case("anchors", "identified", lambda s: factors(s, APART, correlation=0.0)),
        case("anchors, correlated latents", "identified", lambda s: factors(s, APART), correlated=True),
        case(
            "correlated latents told as independent",
            "misspecified",
            lambda s: factors(s, APART),
            "latents are independent, unless `correlated`",
        ),
        case("anchors, 60 rows", "small", lambda s: factors(s, APART, rows=60)),
        case(
            "two of three factors", "misspecified", lambda s: factors(s, three), "noise is independent between features"
        ),
        case("no anchors", "open", lambda s: factors(s, ALL), breaks="two_anchors"),
        case("one anchor", "open", lambda s: factors(s, one), breaks="two_anchors"),
        case(
            "no mask", "open", lambda s: factors(s, APART), sparse=False, breaks="each feature depends on few latents"
        ),
        case("anchors, 20 % missing", "identified", lacking(lambda s: factors(s, APART, 1000), 0.2), correlated=True),
        case("anchors, missing where another is low", "identified", lacking(lone, how="beside")),
        case(
            "two of three factors, 20 % missing",
            "misspecified",
            lacking(lambda s: factors(s, three)),
            "noise is independent between features",
        ),
        word("the lowest fifth missing", lacking(lone, how="low")),
        word("counts, the lowest fifth missing", lacking(numbers, how="low"), 3),
        case("counts of anchors, 20 % missing", "identified", lacking(numbers), latents=3),
    ]


def triangular_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        return Case(f"plt_fa: {name}", "plt_fa", kind, draw, {"latents": 2}, FEW, names="order", breaks=breaks)

    whole, alone = [[1, 0], *[[1, 1]] * 7], [[1, 0], [1, 1], *[[1, 0]] * 6]
    return [
        case("features in order", "identified", lambda s: factors(s, whole, rows=1000, correlation=0.0)),
        case("one feature of a latent", "open", lambda s: factors(s, alone, 1000, correlation=0.0), "noise_told_apart"),
        case(
            "no feature of the first latent alone",
            "word",
            lambda s: factors(s, [[1, 1]] * 8, 1000, correlation=0.0),
            "feature k, in the order of the columns, depends on latents 1 to k alone and on latent k for certain",
        ),
    ]


def pure_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        given = {"latents": 3, **options}
        return Case(f"anchor_fa: {name}", "anchor_fa", kind, draw, given, FEW, names="proportional", breaks=breaks)

    proportional = "features with proportional loadings load on one latent alone"
    single = [[1, 0], *[[1, 1]] * 5, [0, 1]]
    wide = {"rows": 1000, "latents": 4, "features": 40, "loadings": "random"}
    return [
        case("two pure features", "identified", lambda s: factors(s, APART)),
        case("two pure features, 60 rows", "small", lambda s: factors(s, APART, rows=60)),
        case("one pure feature, four latents", "open", drawn("bing2020", pure=1, **wide), "pure_features", latents=6),
        case("no pure features, four latents", "open", drawn("bing2020", pure=0, **wide), "pure_features", latents=6),
        case("one pure feature, two latents", "word", lambda s: factors(s, single), proportional),  # some, by chance
        case("many features of both", "word", lambda s: factors(s, [[1, 1]] * 40), proportional),
        case(
            "too few latents",
            "misspecified",
            drawn("bing2020", **wide),
            "what features share is their latents",
            latents=3,
        ),
    ]


def loading_cases(model: str = "spike_slab_fa") -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **given: Any) -> Case:
        return Case(f"{model}: {name}", model, kind, draw, given, FEW, names="sparsest", breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        return drawn("sparse_fa", **{"rows": 2000, "features": 40, "latents": 4, "correlation": 0.3} | options)

    return [
        case("correlated factors", "identified", sparse(), latents=4),
        case("correlated factors, seven offered", "identified", sparse(), latents=7),
        case("two factors a feature", "identified", sparse(second=1.0, rows=4000), latents=4),
        case("correlated factors, 60 rows", "small", sparse(rows=60), latents=4),
        case(
            "dense loadings", "open", lambda s: factors(s, [[1, 1, 1]] * 15, rows=2000), "simple_structure", latents=3
        ),
        case("three of four factors", "open", sparse(), "noise is independent", latents=3),
    ]


def lasso_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 4) -> Case:
        return Case(f"ssl_fa: {name}", "ssl_fa", kind, draw, {"latents": latents}, FEW, names="sparsest", breaks=breaks)

    normal = {"rows": 2000, "features": 40, "latents": 4, "correlation": 0.5, "law": "gaussian"}
    sparsest = "the true loadings are the sparsest of those that fit as well"
    alone = [[1, 1, 0]] * 18 + [[0, 0, 1]] * 2
    return [
        *loading_cases("ssl_fa"),
        case("normal factors of correlation .5", "identified", drawn("sparse_fa", **normal), latents=6),
        case("two features of a latent", "open", lambda s: factors(s, alone, 1000, 0.0), "noise_told_apart"),
        case("latents that are nearly one", "open", twins, "not_collinear"),
        case("loadings that are equal", "word", one_sum, sparsest),
    ]


def product_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 6) -> Case:
        told = {"latents": latents, "steps": 200}
        return Case(f"ebmf: {name}", "ebmf", kind, draw, told, FEW, names="sparsest", breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        return drawn("sparse_fa", **{"rows": 1500, "features": 40, "latents": 4, "correlation": 0.3} | options)

    def silent(**options: Any) -> Callable[[int], Data]:
        return drawn("sparse_scores", **{"rows": 1500, "features": 30, "latents": 4} | options)

    noise = "noise is independent between features"
    sparsest = "the true loadings or scores are the sparsest of those that fit as well"
    alone = [[1, 1, 0]] * 18 + [[0, 0, 1]] * 2

    return [
        case("sparse loadings", "identified", sparse()),
        case("sparse loadings, normal scores", "identified", sparse(law="gaussian")),
        case("sparse loadings, 20 % missing", "identified", lacking(sparse(rows=3500))),
        case("sparse scores", "identified", silent()),
        case("sparse scores, 20 % missing", "identified", lacking(silent())),
        case("sparse loadings and scores", "identified", silent(loadings="sparse")),
        case("sparse loadings, 60 rows", "small", sparse(rows=60)),
        case("sparse scores, 60 rows", "small", silent(rows=60)),
        case("dense loadings, normal scores", "open", silent(share=1.0), "zeros_tell"),
        case("latents that are in the same rows", "open", silent(together=2), "zeros_tell"),
        case("two features of a latent", "open", lambda s: factors(s, alone, correlation=0.0), "noise_told_apart"),
        case("latents that are nearly one", "open", twins, "not_collinear"),
        case("sparse loadings of some, sparse scores of others", "word", mixed_sparsity, sparsest),
        case("three of four factors", "misspecified", sparse(), noise, latents=3),
        case(
            "the lowest fifth missing",
            "misspecified",
            lacking(sparse(), how="low"),
            AT_RANDOM[0],
        ),
    ]


def tail_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 3) -> Case:
        told = {"latents": latents}
        return Case(f"heavy_tailed_fa: {name}", "heavy_tailed_fa", kind, draw, told, FEW, breaks=breaks)

    def dense(**options: Any) -> Callable[[int], Data]:
        return drawn("dense_fa", **{"rows": 1500, "features": 15, "latents": 3, "noise": 1.0} | options)

    independent, noise = "latents are independent", "noise is Gaussian, and independent between features"
    return [
        case("Laplace", "identified", dense()),
        case("t3", "identified", dense(law="t3")),
        case("one Gaussian", "identified", dense(gaussian=1)),
        case("Laplace, 60 rows", "small", dense(rows=60)),
        case("Gaussian", "open", dense(law="gaussian"), "non_gaussian"),
        case("two of three Gaussian", "open", dense(gaussian=2), "non_gaussian"),
        case("one scale a row", "open", dense(law="t3", shared=True), independent),
        case("Gaussian, noise of heavy tails", "open", lambda s: heavy_noise(s), noise, latents=2),
        case("two of three latents", "misspecified", dense(), noise, latents=2),
    ]


def subspace_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 8) -> Case:
        return Case(f"shrinkage_fa: {name}", "shrinkage_fa", kind, draw, {"latents": latents}, FEW, breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        return drawn("bhattacharya2011", **{"rows": 300, "features": 40, "latents": 4, "density": 0.4} | options)

    alone = [[1, 1, 0]] * 18 + [[0, 0, 1]] * 2
    return [
        case("four of eight columns", "identified", sparse()),
        case("four of eight columns, 30 rows", "small", sparse(rows=30)),
        case("as many columns as latents", "open", sparse(), "number_told", latents=4),
        case("two features of a latent", "open", lambda s: factors(s, alone, correlation=0.0), "noise_told_apart"),
    ]


def cluster_cases() -> list[Case]:
    def case(
        name: str,
        kind: str,
        draw: Callable[[int], Data],
        breaks: str = "",
        open: Sequence[str] = ("graph",),
        **given: Any,
    ) -> Case:
        told, names = (
            {"latents": 5, "innovations": "gaussian", **given},
            "two features of its own" if kind == "word" else "interventions",
        )
        names = breaks if kind == "word" and breaks else names
        return Case(f"{CLUSTERS}: {name}", CLUSTERS, kind, draw, told, FEW, tuple(open), names, breaks)

    pure, own = "each feature depends linearly on one latent alone", "every latent has two features of its own"
    equations = "latents follow linear equations without cycles, and nothing unobserved acts on two of them"
    faithful, every = "independences are those that the graph asks for (faithfulness)", ("latents", "mask", "graph")
    return [
        case("three features each", "identified", measured),
        case("two features each", "identified", lambda s: measured(s, (2, 2, 2))),
        case("Laplace", "identified", drawn("silva2006", law="laplace", rows=4000)),
        case("uniform", "identified", drawn("silva2006", law="uniform", rows=4000)),
        case("Laplace, directions", "identified", drawn("silva2006", law="laplace", rows=4000), innovations="any"),
        case("uniform, directions", "identified", drawn("silva2006", law="uniform", rows=4000), innovations="any"),
        case("Gaussian, directions", "open", measured, "directions_shown", innovations="any"),
        case("three features each, 60 rows", "small", lambda s: measured(s, rows=60)),
        case(
            "two features each, latents apart",
            "open",
            lambda s: measured(s, (2, 2, 2), apart=True),
            "pure_children",
            every,
        ),
        case("one feature alone of the last latent", "word", lambda s: measured(s, (3, 3, 1)), own, every),
        case("something unobserved", "word", lambda s: measured(s, hidden=True), equations),
        case("ways that cancel", "word", lambda s: measured(s, cancelling=True), faithful),
        case(
            "heavy noise, directions",
            "word",
            lambda s: measured(s, heavy=True),
            "noise of features is Gaussian",
            innovations="any",
        ),
        case("a feature of two latents", "misspecified", lambda s: measured(s, mixed=True), pure),
        case("two features that share noise", "misspecified", lambda s: measured(s, paired=True), pure),
        case("two of three latents", "misspecified", measured, pure, latents=2),
    ]
