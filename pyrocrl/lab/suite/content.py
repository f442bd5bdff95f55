"""Pairs of rows that share content and differ in style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import Case

TOLD = {"width": 32, "steps": 200}
WORLD = {"pairs": 1500, "content": 2, "style": 2, "layers": 1, "draws": 100}


def contents(seed: int, how: str = "", **options: Any) -> Data:
    """`kuegelgen2021`. how: "exchanged", partners are those of other pairs; "even", x is the same for a content and its
    negative; "style", a style that never changes counts as content."""
    data = simulate.draw("kuegelgen2021", seed, **WORLD | options)
    rng = np.random.default_rng([31, seed])
    x, z, pair = data.x, data.truth["z"], data.pair_labels()
    if how == "exchanged":
        pair = pair.copy()
        pair[data.after] = rng.permutation(pair[data.after])
    if how == "even":
        both = np.hstack([np.abs(z), data.truth["private"]])
        x = both @ rng.standard_normal((both.shape[1], both.shape[1]))
    return Data(x, pair=pair, step=data.after.astype(int), truth=dict(data.truth), name="contents")


def content_cases() -> list[Case]:
    model = "content_style"
    changes, known = (
        "no style stays as it is in all pairs: what never changes counts as content",
        "x is an invertible, smooth function of content and style",
    )

    def case(
        name: str, kind: str, breaks: str = "", how: str = "", told: Mapping[str, Any] | None = None, **world: Any
    ) -> Case:
        def draw(seed: int) -> Data:
            return contents(seed, how, **world)

        options = TOLD | {"latents": 2} | dict(told or {})
        return Case(f"{model}: {name}", model, kind, draw, options, names=breaks, breaks=breaks)

    return [
        case("content and style", "identified"),
        case("style depends on content", "identified", depends=True),
        case("linear mixing", "identified", layers=0),
        case("one content, three styles", "identified", told={"latents": 1}, content=1, style=3),
        case("eight features", "identified", told={"style": 2}, features=8, noise=0.01),
        case("60 pairs", "small", pairs=60),
        case("a content latent too many", "open", "content_shared", told={"latents": 3}),
        case("content changes in a fifth of the pairs", "open", "content_shared", moved=0.2),
        case("partners of other pairs", "open", "content_shared", "exchanged"),
        case("a content latent too few", "open", "nothing_else_shared", told={"latents": 1}),
        case("style hardly changes", "open", "nothing_else_shared", rate=0.1),
        case("a style that never changes, told as content", "word", changes, told={"latents": 3}, never=1),
        case("x is even in content", "word", known, "even"),
        case(
            "features with much noise",
            "misspecified",
            "x is an invertible function of content and style, with little noise",
            noise=0.4,
        ),
    ]
