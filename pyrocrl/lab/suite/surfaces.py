"""Smooth features of few latents each: with a latent alone in common or without, lines, of latents that go together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn

ROWS = 1000
SPARSEST = "no latents are meant on which features depend in larger numbers"


def correlated(seed: int, correlation: float) -> Data:
    """Features of pairs of five latents as of zheng2022, lines and squares of these and a product."""
    rng = np.random.default_rng([71, seed])
    latents = 5
    cov = np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents)
    z = rng.multivariate_normal(np.zeros(latents), cov, ROWS)
    mask, x = np.zeros((2 * latents, latents), dtype=int), 0.05 * rng.standard_normal((ROWS, 2 * latents))
    for j in range(2 * latents):
        a, b = j % latents, (j % latents + 1 + j // latents) % latents
        mask[j, [a, b]] = 1
        first, second = rng.choice([-1, 1], 2) * rng.uniform(0.7, 1.2, 2)
        y = first * (z[:, a] + 0.3 * z[:, a] ** 2) + second * np.tanh(1.5 * z[:, b]) + 0.4 * z[:, a] * z[:, b]
        x[:, j] += (y - y.mean()) / y.std()
    return Data(x, truth={"z": z, "mask": mask}, name="bent pairs")


def surface_cases() -> list[Case]:
    def case(name: str, kind: str, draw_: Callable[[int], Data], breaks: str = "", latents: int = 5) -> Case:
        options = {"latents": latents}
        full = f"structural_sparsity_ica: {name}"
        return Case(full, "structural_sparsity_ica", kind, draw_, options, FEW, names="larger numbers", breaks=breaks)

    few = {"rows": ROWS}
    return [
        case("pairs of normal latents", "identified", drawn("zheng2022", **few)),
        case("pairs of uniform latents", "identified", drawn("zheng2022", law="uniform", **few)),
        case("lines and squares of pairs, a product", "identified", lambda seed: correlated(seed, 0.0)),
        case("more noise", "identified", drawn("zheng2022", noise=0.3, **few)),
        case("six were offered", "identified", drawn("zheng2022", **few), latents=6),
        case("300 rows", "small", drawn("zheng2022", rows=300)),
        case("all features of all latents", "open", drawn("zheng2022", supports="all", **few), "alone_in_common"),
        case(
            "all features of a latent another's too",
            "open",
            drawn("zheng2022", supports="nested", **few),
            "alone_in_common",
        ),
        case("lines", "open", drawn("zheng2022", bend=0.0, **few), "slopes_span"),
        case("much noise", "misspecified", drawn("zheng2022", noise=1.5, **few), "latents_told"),
        case("a rotation of the latents", "word", drawn("zheng2022", supports="turned", **few), SPARSEST),
        case("latents that correlate", "misspecified", lambda seed: correlated(seed, 0.5), "latents are independent"),
        case("four of five latents", "misspecified", drawn("zheng2022", **few), "noise is independent and Gaussian", 4),
        case(
            "latents that act together in threes",
            "misspecified",
            drawn("zheng2022", supports="threes", **few),
            "features are sums of smooth functions of one latent and of two",
        ),
    ]
