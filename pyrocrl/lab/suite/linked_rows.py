"""Rows that belong together: before and after, steps of a series, views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn


def paired(seed: int, how: str = "", rows: int = 2000, **options: Any) -> Data:
    """Pairs of rows, of which a latent changed between. how: "bent", x through a cubic; "exchanged", partners are those
    of other pairs; "hidden", two of the latents are known."""
    size = {"pairs": rows // 2, "latents": 3, "features": 6, "unshared": 0.02}
    data = simulate.draw("brehmer2022_linear", seed, **size | options)
    rng = np.random.default_rng([21, seed])
    x, known = data.x / data.x.std(0), 2 if how == "hidden" else data.truth["z"].shape[1]
    if how == "bent":
        x = x + 0.3 * x**3
    pair = np.array(data.pair)
    if how == "exchanged":
        pair[data.after] = rng.permutation(pair[data.after])
    truth = {"z": data.truth["z"][:, :known], "graph": data.truth["graph"][:known, :known]}
    return Data(x, pair=pair, step=data.after, truth=truth, name="paired")


def timed(seed: int, how: str = "", rows: int = 3000, features: int = 6, **options: Any) -> Data:
    """Sources with dynamics of their own. how: "shuffled", rows stand in any order; "bent", x through a cubic."""
    data = simulate.draw("halva2021_linear", seed, rows=rows, features=features, **options)
    x, z = data.x / data.x.std(0), data.truth["z"]
    if how == "shuffled":
        order = np.random.default_rng([22, seed]).permutation(rows)
        x, z = x[order], z[order]
    x = x + 0.3 * x**3 if how == "bent" else x
    return Data(x, series=data.series_labels(), step=data.step, truth={"z": z}, name="timed")


def alike(seed: int, rows: int = 1000) -> Data:
    """Two views whose shared latents correlate .8 and are not the same."""
    data = simulate.draw("shared_private", seed, rows=rows)
    rng = np.random.default_rng([22, seed])
    other = 0.8 * data.truth["z"] + 0.6 * rng.standard_normal(data.truth["z"].shape)
    second = data.view_labels() == "view 1"
    x = data.x + (other - data.truth["z"]) @ (data.truth["loadings"] * second[:, None]).T
    return Data(x, view=data.view_labels(), truth={"z": data.truth["z"]}, name="alike")


def pair_cases() -> list[Case]:
    model = "weakly_supervised_pairs"

    def case(name: str, kind: str, breaks: str = "", how: str = "", **options: Any) -> Case:
        return Case(f"{model}: {name}", model, kind, lambda seed: paired(seed, how, **options), {}, FEW, breaks=breaks)

    alone, shared = (
        "between a pair's rows one latent, or none, is cut from its parents and drawn anew",
        "noise of all other latents is the same in both rows, but for a small part",
    )
    return [
        case("one latent changes", "identified", rows=12_000),
        case("noise without a part of its own", "identified", rows=12_000, unshared=0.0),
        case("50 pairs", "small", rows=100),
        case("a latent that never changes", "open", "changed_in_pairs", never=1),
        case("a changed latent keeps its equation", "word", "perfect_interventions", kept=1.0),
        case("two latents change in every pair", "misspecified", alone, together=2),
        case("noise of features in every row", "misspecified", shared, measurement=0.2),
        case("partners of other pairs", "misspecified", shared, "exchanged"),
        case("features bent", "misspecified", "x is linear in the latents", "bent"),
        case("two of three latents", "misspecified", "x is linear in the latents", "hidden"),
    ]


def hidden_map_pairs(seed: int, how: str = "", **options: Any) -> Data:
    """Pairs of rows behind a layer of leaky ReLUs. how: "exchanged", partners are those of other pairs; "hidden", two
    of the latents are known."""
    size = {"pairs": 1500, "latents": 3, "layers": 1} | options
    data = simulate.draw("brehmer2022_nonlinear", seed, **size)
    known, pair = size["latents"] - (how == "hidden"), np.array(data.pair)
    if how == "exchanged":
        pair[data.after] = np.random.default_rng([23, seed]).permutation(pair[data.after])
    truth = {"z": data.truth["z"][:, :known], "graph": data.truth["graph"][:known, :known]}
    return Data(data.x, pair=pair, step=data.after, truth=truth, name="hidden_map_pairs")


def hidden_map_cases() -> list[Case]:
    model, few = "weakly_supervised_nonlin", {"width": 32, "steps": 1500}

    def case(name: str, kind: str, breaks: str = "", how: str = "", **options: Any) -> Case:
        return Case(
            f"{model}: {name}",
            model,
            kind,
            lambda seed: hidden_map_pairs(seed, how, **options),
            few,
            {},
            ("latents",),
            breaks=breaks,
        )

    shared = "noise of all other latents is the same in both rows"
    return [
        case("one latent changes", "identified"),
        case("a map of two layers", "identified", layers=2),
        case("noise with a part of its own", "identified", unshared=0.05),
        case("a linear map", "identified", layers=0),
        case("four latents", "identified", latents=4, pairs=2500),
        case("60 pairs", "small", pairs=60),
        case("a latent that never changes", "open", "changed_in_pairs", never=1),
        case("a changed latent keeps its equation", "word", "perfect_interventions", kept=1.0),
        case("two latents change in every pair", "open", "one_changes", together=2),
        case("two of three latents", "open", "little_left", "hidden"),
        case("noise that is not normal", "open", "set_anew", noise="exponential", latents=4),
        case("partners of other pairs", "misspecified", shared, "exchanged"),
    ]


def view_cases() -> list[Case]:
    model, linear = "cross_modal", "x is linear in shared latents and in latents of each view alone"
    labels = "labels of environments move the shared latents alone"

    def case(name: str, kind: str, breaks: str = "", told: Mapping[str, Any] | None = None, **world: Any) -> Case:
        draw = drawn("shared_private", **world) if world.pop("same", True) else alike
        named = labels if kind == "word" else "interventions"
        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names=named, breaks=breaks)

    anchors = {"anchors": True}
    return [
        case("all rows paired", "identified"),
        case("a tenth of the rows paired", "identified", rows=2000, paired=0.1),
        case("labels, no row paired", "identified", told=anchors, rows=6000, paired=0.0, labels=5),
        case("three views", "identified", views=3, features=60),
        case("60 rows", "small", rows=60),
        case("neither pairs nor labels", "open", "views_tied", paired=0.0),
        case("fewer labels than latents", "open", "views_tied", anchors, rows=2000, paired=0.0, labels=3),
        case("a shared latent too many", "open", "shared_in_views", {"latents": 4}),
        case("views that are alike", "open", "private_apart", {"private": 5}, same=False),
        case("labels move private latents", "word", labels, anchors, rows=2000, paired=0.0, labels=5, moved=0.5),
        case("two of three latents", "misspecified", linear, {"latents": 2}),
        case("features bent", "misspecified", linear, bend=0.3),
    ]


def series_cases() -> list[Case]:
    model = "snica_lin"
    linear = "x is linear in the latents"
    law = "each latent is an autoregression that switches between states, independent of all others"
    noiseless = "features have no noise of their own among the latents"

    def case(name: str, kind: str, breaks: str = "", how: str = "", told: Any = None, **world: Any) -> Case:
        def draw(seed: int) -> Data:
            return timed(seed, how, **world)

        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names="noise", breaks=breaks)

    return [
        case("switching sources", "identified"),
        case("Gaussian sources of different spectra", "identified", sources="autoregressive"),
        case("many short series", "identified", series=60),
        case("300 rows", "small", rows=300),
        case("two Gaussian sources of one spectrum", "open", "dynamics_apart", sources="alike"),
        case("white Gaussian sources", "open", "dynamics_apart", sources="white"),
        case("Gaussian sources, rows in any order", "open", "dynamics_apart", "shuffled", sources="autoregressive"),
        case("switching sources, rows in any order", "misspecified", law, "shuffled"),
        case("one latent drives another", "misspecified", law, coupled=0.5),
        case("features with much noise", "misspecified", noiseless, noise=0.5),
        case("much noise, no more features than latents", "word", noiseless, noise=0.5, features=3),
        case("features bent", "misspecified", linear, "bent"),
        case("two of three latents", "misspecified", linear, told={"latents": 2}),
        case("a latent too many", "misspecified", noiseless, told={"latents": 4}, noise=0.0003),
    ]
