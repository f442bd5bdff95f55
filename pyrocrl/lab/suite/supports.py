"""Latents in a box that rows fill, and supports that are none."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn

MODEL = "independent_support"
BOX, LINEAR = "the joint support of the latents is a box", "x is linear in the latents"
NOISE = "noise of features is small against the box"


def sheared(seed: int, **options: Any) -> Data:
    """Rows fill a box of sums of latents: the latents' own support is sheared."""
    data = simulate.draw("wang2024_support", seed, **options)
    z = data.truth["z"]
    return Data(data.x, truth={"z": z @ (np.eye(z.shape[1]) - 0.8 * np.eye(z.shape[1], k=1))}, name="sheared")


def support_cases() -> list[Case]:
    def case(name: str, kind: str, breaks: str = "", told: dict[str, int] | None = None, **world: Any) -> Case:
        draw = world.pop("draw", None) or drawn("wang2024_support", **{"rows": 2000} | world)
        return Case(f"{MODEL}: {name}", MODEL, kind, draw, told or {}, FEW, names="a box", breaks=breaks)

    return [
        case("two latents that depend", "identified", latents=2, features=6, filled=0.2),
        case("three latents that depend", "identified", latents=3, correlation=0.8, filled=0.4),
        case("four independent latents", "identified", correlation=0.0),
        case("five thousand rows, a fifth of them anywhere", "identified", rows=5000, filled=0.2),
        case("more noise", "identified", latents=2, features=10, filled=0.3, noise=0.1),
        case("few rows", "small", rows=300),
        case("two thousand rows, a tenth of them anywhere", "small"),
        case("no rows in the corners", "open", "any_bulk", filled=0.0),
        case("an empty corner", "misspecified", "corners_filled", support="cut", rows=5000, filled=0.2),
        case("a ball", "open", "within_the_box", support="ball", latents=3),
        case("a simplex", "open", BOX, support="simplex", latents=2, features=6),
        case("normal latents", "open", BOX, support="unbounded"),
        case("a sheared box", "word", BOX, draw=lambda seed: sheared(seed, rows=2000, latents=2, filled=0.3)),
        case("bent mixing", "misspecified", LINEAR, mixing="mlp"),
        case("one latent too few", "misspecified", LINEAR, told={"latents": 3}),
        case("one row in twenty is bad", "misspecified", "within_the_box", bad=0.05),
        case("noise as large as the box", "misspecified", NOISE, noise=0.5, filled=0.3),
    ]
