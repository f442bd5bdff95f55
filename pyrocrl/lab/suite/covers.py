"""Independent latents with a pure child each, and what is no such thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn

MODEL = "neuro_causal_fa"
PURE = "each latent has a pure child: a feature that depends on it alone"
INDEPENDENT = "latents are independent, and noise is between features"
LAW = "latents and noise are Gaussian, and features linear in latents"
CANCEL = "what two latents give two features does not cancel"
WEAK = "no loading that is not 0 is below a tenth of its feature's deviation"
BLOCKS = [[1, 0, 0]] * 4 + [[0, 1, 0]] * 4 + [[0, 0, 1]] * 4
SHARED = [[1, 0, 0]] * 2 + [[0, 1, 0]] * 2 + [[0, 0, 1]] * 2 + [[1, 1, 0]] * 2 + [[0, 1, 1]] * 2 + [[1, 0, 1]]


def covered(
    seed: int,
    masks: Sequence[Sequence[float] | np.ndarray],
    rows: int = 1000,
    *,
    correlation: float = 0.0,
    paired: float = 0.0,
    law: Literal["gaussian", "t3"] = "gaussian",
    bent: float = 0.0,
    size: tuple[float, float] = (0.6, 1.5),
    exact: bool = False,
) -> Data:
    """Latents behind the features of `masks`, with loadings of random sign and a size between these, and noise of
    variance U(.5, 1.5).

    correlation: of any two latents; paired: of the noise of features 0 and 4; bent: of the squares of latents in
    features; exact: masks are loadings, as they are.
    """
    rng = np.random.default_rng([37, seed])
    loadings = np.asarray(masks, dtype=float)
    (features, latents), mask = loadings.shape, (loadings != 0).astype(int)
    if not exact:
        loadings = mask * rng.uniform(*size, mask.shape) * rng.choice([-1, 1], mask.shape)
    cov = np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents)
    z = rng.standard_normal((rows, latents)) @ np.linalg.cholesky(cov).T
    noise = rng.standard_normal((rows, features))
    if paired:
        noise[:, 4] = paired * noise[:, 0] + (1 - paired**2) ** 0.5 * noise[:, 4]
    if law == "t3":
        z = z / np.sqrt(rng.chisquare(3, (rows, latents)))
    x = (z + bent * z**2) @ loadings.T + np.sqrt(rng.uniform(0.5, 1.5, features)) * noise
    return Data(x, truth={"z": z, "mask": mask}, name="covered")


def cover_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 5) -> Case:
        told = {"latents": latents}
        return Case(f"{MODEL}: {name}", MODEL, kind, draw, told, FEW, names=breaks, breaks=breaks)

    def two(*loadings: Sequence[float]) -> Callable[[int], Data]:
        return lambda seed: covered(seed, loadings, exact=True)

    one, other, along, across = (1.2, 0.0), (0.0, 1.2), (1.0, 0.7), (-0.7, 1.0)
    triangle = [[1, 1, 0], [0, 1, 1], [1, 0, 1], *[[0, 0, 0]] * 3]
    return [
        case("features of one latent each", "identified", lambda s: covered(s, BLOCKS)),
        case("features of two latents", "identified", lambda s: covered(s, SHARED)),
        case("two children each", "identified", lambda s: covered(s, [*np.repeat(np.eye(4), 2, 0)])),
        case("features of no latent", "identified", lambda s: covered(s, [*BLOCKS[:8], *[[0, 0, 0]] * 4])),
        case(
            "15 features of 5 latents",
            "identified",
            drawn("markham2024", rows=2000, features=15, latents=5),
            latents=7,
        ),
        case("two features that cancel", "identified", two(*[one] * 3, *[other] * 3, along, across)),
        case("features of one latent each, 60 rows", "small", lambda s: covered(s, BLOCKS, 60)),
        case("features of two latents, 60 rows", "small", lambda s: covered(s, SHARED, 60)),
        case("as many that cancel as are pure", "open", two(*[one, other, along, across] * 2), "turned_apart"),
        case("more that cancel than are pure", "word", two(one, other, *[along, across] * 4), CANCEL),
        case("no pure child", "word", lambda s: covered(s, triangle), PURE),
        case("latents of correlation .97", "word", lambda s: covered(s, BLOCKS, correlation=0.97), INDEPENDENT),
        case("small loadings", "word", lambda s: covered(s, SHARED, size=(0.05, 0.4)), WEAK),
        case("latents of correlation .4", "misspecified", lambda s: covered(s, BLOCKS, correlation=0.4), INDEPENDENT),
        case("two features that share noise", "misspecified", lambda s: covered(s, BLOCKS, paired=0.6), INDEPENDENT),
        case("two of three latents", "misspecified", lambda s: covered(s, SHARED), INDEPENDENT, latents=2),
        case("latents of heavy tails", "misspecified", lambda s: covered(s, SHARED, law="t3"), LAW),
        case("squares of latents", "misspecified", lambda s: covered(s, SHARED, bent=0.3), LAW),
    ]
