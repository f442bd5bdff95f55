"""Pairs of rows that share content and differ in style, or share content and one of several styles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import Case
from pyrocrl.simulate.ahuja import well_conditioned

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


BLOCKS = {"pairs": 3000, "content": 2, "styles": 2, "layers": 1, "draws": 100}


def style_blocks(seed: int, how: str = "", **options: Any) -> Data:
    """`eastwood2023`. how: "mislabelled", a fifth of the pairs say of others what they share; "unnamed", no pair keeps
    the second style; "one", both transforms change the first style, and there is no other; "names", pairs that keep it
    have two names, and there is no other; "never", the second style is the same in all pairs; "fixed", and it is told
    as content; "leaks", transform 0 changes content as well; "even", x is the same for a content and its negative."""
    world = BLOCKS | options
    data = simulate.draw("eastwood2023", seed, **world)
    rng = np.random.default_rng([37, seed])
    x, z, kind, pair = data.x, data.truth["z"].copy(), data.env_labels().astype(object), data.pair_labels()
    first = world["content"] + np.arange(world.get("size", 2))
    second, other = first + len(first), data.partner
    if how == "mislabelled":
        wrong = rng.random(len(kind) // 2) < 0.2
        kind = np.where(np.repeat(wrong, 2), np.repeat(rng.permutation(kind[::2]), 2), kind)
    elif how in ("one", "names", "never", "fixed", "leaks", "even"):
        after = np.flatnonzero(data.after)
        if how in ("never", "fixed"):
            z[np.ix_(after, second)] = z[np.ix_(other[after], second)]
        if how == "leaks":
            moved = after[kind[after] != "content+style_0"]
            z[moved, 0] += 0.7 * rng.standard_normal(len(moved))
        if how == "one":
            z[np.ix_(after, first)] = rng.standard_normal((len(after), len(first)))
            z = np.delete(z, second, 1)
        if how == "names":
            named = after[kind[after] == "content+style_1"]
            z[np.ix_(named, first)] = z[np.ix_(other[named], first)]
            z = np.delete(z, second, 1)
        inner = np.hstack([np.abs(z[:, : first[0]]), z[:, first[0] :]]) if how == "even" else z
        x = inner @ well_conditioned(rng, inner.shape[1], x.shape[1], 100)
        x = x if how == "even" else np.where(x > 0, x, 0.2 * x)
        if how == "fixed":
            kind, z = (
                np.where(kind == "content+style_1", "content", kind),
                np.delete(np.hstack([z[:, second], z]), 2 + second, 1),
            )
    keep = np.ones(len(kind), dtype=bool)
    if how == "unnamed":
        keep = kind != "content+style_1"
        z = np.delete(z, second, 1)
    return Data(
        x[keep],
        env=kind[keep].astype(str),
        pair=pair[keep],
        step=data.after[keep].astype(int),
        truth={"z": z[keep]},
        name="style_blocks",
    )


def style_cases() -> list[Case]:
    model = "multi_augmentation"
    changes, known = (
        "no direction stays as it is in all pairs of a kind that does not keep it: what never changes counts as kept",
        "x is an invertible, smooth function of the blocks and of what no pair keeps",
    )

    def case(
        name: str, kind: str, breaks: str = "", how: str = "", told: Mapping[str, Any] | None = None, **world: Any
    ) -> Case:
        def draw(seed: int) -> Data:
            return style_blocks(seed, how, **world)

        options = TOLD | {"latents": 6, "style": 2} | dict(told or {})
        return Case(f"{model}: {name}", model, kind, draw, options, {"least_steps": 50}, names=breaks, breaks=breaks)

    one = {"style_0": 1, "style_1": 2}
    return [
        case("content and two styles", "identified"),
        case("pairs of two things, styles depend on content", "identified", across=True, depends=True),
        case("linear mixing, three styles", "identified", told={"latents": 8}, layers=0, styles=3),
        case("one latent a style", "identified", told={"latents": 4, "style": 1}, size=1),
        case("transforms change a part of styles", "identified", change=0.9),
        case("styles turn with content", "identified", turns=2.0),
        case("a style that no pair keeps", "identified", "", "unnamed", told={"latents": 4}),
        case("300 pairs", "small", pairs=300),
        case("a fifth of the pairs named wrongly", "open", "blocks_kept", "mislabelled"),
        case("two transforms of one style", "open", "blocks_kept", "one"),
        case("a transform changes content", "open", "blocks_kept", "leaks"),
        case("content too large, styles too small", "open", "blocks_kept", told={"style": 1}),
        case("a style latent too few", "open", "nothing_else_kept", told={"latents": 5, "style": one}),
        case("one style by two names", "open", "nothing_else_kept", "names"),
        case("a transform that changes nothing", "open", "nothing_else_kept", "never"),
        case("a style that never changes, told as content", "word", changes, "fixed"),
        case("x is even in content", "word", known, "even"),
        case(
            "features with much noise",
            "misspecified",
            "x is an invertible function of the blocks, with little noise",
            noise=0.4,
        ),
    ]
