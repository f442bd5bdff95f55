"""Environments that condition softly on concepts, on what they are said to or on something else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case
from pyrocrl.simulate import concepts as simulated


def world(
    seed: int,
    matrix: Sequence[Sequence[int]],
    level: Sequence[Sequence[float]],
    samples: int = 600,
    latents: int = 3,
    alike: float | None = None,
    told: Sequence[Sequence[int]] | None = None,
    known: int | None = None,
    **more: Any,
) -> Data:
    """Concepts of `latents`, on which environments condition by `matrix` at `level` (env, concept). The mixing is
    linear unless `layers` are more than one.

    alike: cosine of the first two concepts; else all are random. told: what is said of `matrix`, of the first `known`
    concepts.
    """
    rng = np.random.default_rng([29, seed])
    acting = np.array(matrix)
    rows = simulated.unit_rows(rng, acting.shape[1], latents)
    if alike is not None:
        rows[1] -= (rows[1] @ rows[0]) * rows[0]
        rows[1] = alike * rows[0] + (1 - alike**2) ** 0.5 * rows[1] / np.linalg.norm(rows[1])
    names = [f"near_{e}" for e in range(len(acting))]
    kept = np.array(matrix if told is None else told)[:, : known or acting.shape[1]]
    options = {"features": 2 * latents, "layers": 1, "draws": 2000} | more
    return simulated.conditioned_data(rng, samples, rows, acting, np.array(level), names, told=kept, **options)


def concept_cases() -> list[Case]:
    model, build = "concepts", {"rest": 1, "hidden": 24, "steps": 100}
    two, both = [[1, 0], [0, 1], [1, 1]], [[1.0, 0], [0, -1.0], [-1.0, 1.0]]
    three = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    apart = [[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0], [-1.0, 1.0, -1.0]]
    pairs = [[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
    paired = [[1.0, -1.0, 0], [0, 1.0, 1.0], [-1.0, 0, -1.0], [1.0, 1.0, 1.0]]
    others = "environments condition on the concepts told and on no others"
    same = "an environment conditions on a concept softly, with the same deviation wherever it does"
    normal = "latents are normal in the base"

    def case(name: str, kind: str, matrix: Any, level: Any, breaks: str = "", more: Any = None, **own: Any) -> Case:
        draw, options = functools.partial(world, matrix=matrix, level=level, **own), build | (more or {})
        return Case(f"{model}: {name}", model, kind, draw, options, FEW, names="same deviation", breaks=breaks)

    return [
        case("two concepts, each alone and both", "identified", two, both),
        case("two layers", "identified", two, both, more={"steps": 200}, layers=2, samples=1000),
        case("three concepts, conditioned in pairs", "identified", pairs, paired, latents=4),
        case("concepts that correlate", "identified", two, both, alike=0.6),
        case("no other latents", "identified", two, both, more={"rest": 0}, latents=2),
        case("noise of features", "identified", two, both, noise=0.05),
        case("levels of one sign", "identified", two, [[0.3, 0], [0, -0.3], [1.5, -1.5]]),
        case("more environments than are needed", "identified", [*two, *two], [*both, [0, 0], [0, 1.0], [0.5, 0.5]]),
        case("120 rows of each", "small", two, both, samples=120),
        case("25 rows of each", "misspecified", two, both, "concepts_told", layers=2, samples=25),
        case("environments that do nothing", "open", [[1, 0], [0, 0], [0, 0]], both, "interventions_show", told=two),
        case("an environment that does nothing", "open", [[0, 0], [0, 1], [1, 1]], both, "conditioned_apart", told=two),
        case("no more environments than concepts", "open", three[:3], apart[:3], "conditioned_apart", latents=4),
        case(
            "two concepts always together",
            "open",
            [[1, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0]],
            [[1.0, -1.0, 0], [0, 0, 1.0], [-1.0, 1.0, -1.0], [0.5, 1.0, 0]],
            "conditioned_apart",
            latents=4,
        ),
        case("the same levels everywhere", "open", two, [[1.0, 0], [0, -1.0], [1.0, -1.0]], "levels_apart"),
        case("two concepts that are one", "open", two, both, "not_collinear", alike=1.0),
        case(
            "a concept that was not told",
            "misspecified",
            [[1, 0, 0], [0, 1, 1], [1, 1, 0]],
            [[1.0, 0, 0], [0, -1.0, 1.0], [-1.0, 1.0, 0]],
            others,
            known=2,
        ),
        case(
            "a concept told of another environment",
            "misspecified",
            [[1, 0], [1, 1], [1, 1]],
            [[1.0, 0], [1.0, -1.0], [-1.0, 1.0]],
            others,
            told=two,
        ),
        case("held less closely in one environment", "word", two, both, same, spread=[0.3, 0.3, 0.9]),
        case("uniform latents", "misspecified", two, both, normal, base="uniform"),
        case("more latents than are counted", "open", two, both, "little_left", {"rest": 0}, latents=5),
    ]
