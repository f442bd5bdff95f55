"""Sums of curves of latents: with features of each alone or without, closed, folded, of latents that go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn
from pyrocrl.simulate.additive import curve

ALL, BENT = ("linear", "square", "sine", "exponential", "bent"), ("saturating", "square", "sine", "bent")
CLOSED, FOLDED = ("sine", "cosine"), ("square", "cosine", "square")
TOGETHER = [[1, 1]] * 14
APART = [[1, 0]] * 4 + [[0, 1]] * 4 + [[1, 1]] * 6


def curves(
    seed: int,
    masks: Sequence[Sequence[int]] = APART,
    kinds: Sequence[Sequence[str]] = (ALL, ALL),
    rows: int = 600,
    *,
    noise: float = 0.3,
    correlation: float = 0.0,
    law: str = "uniform",
    together: float = 0.0,
    heavy: bool = False,
    faint: float = 1.0,
) -> Data:
    """Features of `masks`, each a sum of curves of the latents in it, for each latent the next of its `kinds`.

    correlation: of any two latents, by normal ones. law: "uniform", or "normal", lines of which are then lines. faint:
    size of curves of the last latent. together: of a product of two latents that features of both have as well. heavy:
    noise of two degrees of freedom.
    """
    rng = np.random.default_rng([61, seed])
    mask = np.asarray(masks)
    latents = mask.shape[1]
    cov = np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents)
    z = rng.multivariate_normal(np.zeros(latents), cov, rows)
    u = stats.norm.cdf(z)
    law_of = z if law == "normal" else u
    errors = rng.standard_t(2, (rows, len(mask))) if heavy else rng.standard_normal((rows, len(mask)))
    x = noise * errors
    for k in range(latents):
        for place, j in enumerate(np.flatnonzero(mask[:, k])):
            name = kinds[k][place % len(kinds[k])]
            part = z[:, k] if law == "normal" and name == "linear" else curve(name, u[:, k])
            part = faint * part if k == latents - 1 else part
            x[:, j] += rng.choice([-1, 1]) * rng.uniform(0.7, 1.3) * part
    both = mask.sum(1) > 1
    x[:, both] += together * np.prod(np.sqrt(12) * (u[:, :2] - 0.5), 1)[:, None] * rng.choice([-1, 1], both.sum())
    return Data(x, truth={"z": law_of, "mask": mask}, name="curves")


def curve_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 3) -> Case:
        return Case(
            f"additive_fa: {name}", "additive_fa", kind, draw, {"latents": latents}, FEW, names="fold", breaks=breaks
        )

    def world(*args: Any, **options: Any) -> Callable[[int], Data]:
        return lambda seed: curves(seed, *args, **options)

    three = {"rows": 800, "features": 24}
    lines = (("linear",), ("linear",))
    return [
        case("curves of one latent and of two", "identified", drawn("xu2023_additive", **three), latents=5),
        case(
            "no lines among curves of one latent",
            "identified",
            drawn("xu2023_additive", curves="hard", **three),
            latents=5,
        ),
        case("features of one latent alone, saturating and not monotone", "identified", world(kinds=(BENT, BENT))),
        case("lines", "identified", world(kinds=lines)),
        case("normal latents behind curves", "identified", world(law="normal", kinds=(BENT, ALL))),
        case("large noise", "identified", world(noise=0.8)),
        case("60 rows", "small", world(rows=60)),
        case("lines of normal latents, none of one alone", "open", world(TOGETHER, lines, law="normal"), "curves_bent"),
        case("curves of both latents alone", "open", world(TOGETHER, law="normal"), "pure_features"),
        case(
            "a latent with one curve of it alone",
            "open",
            world([[1, 0]] * 4 + [[0, 1]] + [[1, 1]] * 8),
            "pure_features",
        ),
        case("a closed curve", "open", world(kinds=(CLOSED, ALL)), "values_told"),
        case(
            "latents that are nearly one", "misspecified", world(correlation=0.99, rows=1500), "latents are independent"
        ),
        case(
            "a latent that is folded", "word", world(kinds=(FOLDED, ALL)), "a latent that shows only folded is its fold"
        ),
        case(
            "two of three latents",
            "misspecified",
            drawn("xu2023_additive", **three),
            "noise is independent and Gaussian",
            2,
        ),
        case("a latent that hardly shows", "misspecified", world(faint=0.15), "number_apart"),
        case("noise of heavy tails", "misspecified", world(heavy=True), "noise is independent and Gaussian"),
        case("latents that correlate", "misspecified", world(correlation=0.6), "latents are independent"),
        case(
            "latents that act together",
            "misspecified",
            world(together=1.0),
            "features are sums of curves of single latents",
        ),
    ]
