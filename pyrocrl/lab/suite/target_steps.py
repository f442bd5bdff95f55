"""Series in which latents are targets of some steps, or actions act on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case


def stepped(seed: int, how: str = "", **options: Any) -> Data:
    """Three latents in five columns. how: "bent", x through a cubic; "hidden", the last latent and its targets are not
    told; "square", the same in two columns; "late", targets are told one row late; "shuffled", rows stand in any
    order."""
    size = {"rows": 3000, "latents": 3, "features": 5}
    data = simulate.draw("voronoi_numeric", seed, **size | options)
    x, z, labels, targets = data.x / data.x.std(0), data.truth["z"], data.env_labels(), dict(data.targets or {})
    order = np.arange(len(x))
    if how == "bent":
        x = x + 0.3 * x**3
    if how == "shuffled":
        order = np.random.default_rng([23, seed]).permutation(len(x))
    if how == "late":
        labels = np.roll(labels, 1)
    if how in ("hidden", "square"):
        last = z.shape[1] - 1
        kept = {name: tuple(k for k in latents if k != last) for name, latents in targets.items()}
        targets, z = {name: latents for name, latents in kept.items() if latents}, z[:, :last]
        x = x[:, :last] if how == "square" else x
    series = data.series_labels()
    return Data(x[order], labels[order], targets, series=series, step=data.step, truth={"z": z[order]}, name="stepped")


def step_cases() -> list[Case]:
    model = "citris"
    law = (
        "each latent depends on the row before and on whether it is a target itself, with normal innovations of its own"
    )
    linear, noiseless = (
        "x is linear in the latents",
        "features have neither noise of their own nor other latents among the latents",
    )

    def case(name: str, kind: str, breaks: str = "", how: str = "", told: Any = None, **world: Any) -> Case:
        def draw(seed: int) -> Data:
            return stepped(seed, how, **world)

        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names="noise", breaks=breaks)

    soft = {"intervention": "soft"}
    nearly: dict[str, Any] = {"targets": "nearly together", "edges": 1.0}
    return [
        case("targets independent of each other", "identified"),
        case("one target at a time", "identified", targets="single"),
        case("targets by a code", "identified", targets="codes", latents=4, features=6, rows=6000),
        case("targets keep their parents, told so", "identified", told=soft, kept=0.5, rows=6000),
        case("many short series", "identified", series=100),
        case("as many features as latents", "identified", features=3),
        case("300 rows", "small", rows=300),
        case("two latents targets together but in a few steps", "small", rows=800, **nearly),
        case("two latents always targets together", "open", "targets_in_steps", targets="together"),
        case("the same, all latents parents of all", "open", "no_turn_fits", targets="together", edges=1.0),
        case("two latents targets in turn", "open", "targets_in_steps", targets="in turn"),
        case("a latent that is never a target", "open", "targets_in_steps", never=1),
        case("targets that change nothing of two latents", "open", "targets_act", told=soft, idle=2, kept=1.0),
        case("targets that change nothing of one, told as perfect", "misspecified", "targets_act", idle=1),
        case("targets keep their parents", "misspecified", law, kept=0.5),
        case("targets act on another latent", "misspecified", law, spill=1.0),
        case("innovations of two latents correlate", "misspecified", law, coupled=0.5),
        case("innovations of heavy tails", "misspecified", law, innovations="laplace"),
        case("targets told a row late", "misspecified", law, "late"),
        case("rows in any order", "misspecified", law, "shuffled"),
        case("features with much noise", "misspecified", noiseless, noise=0.5),
        case("much noise, no more features than latents", "word", noiseless, noise=0.5, features=3),
        case("features bent", "misspecified", linear, "bent"),
        case("two layers between latents and features", "misspecified", linear, mixing="leaky"),
        case("two of three latents", "misspecified", linear, "hidden", {"latents": 2}),
        case("two of three latents, no more features", "word", noiseless, "square", {"latents": 2}),
    ]


def acted(seed: int, how: str = "", **options: Any) -> Data:
    """Three latents in five columns. how: "late", actions are told one row late; "beside", with a number that says
    nothing; else as in `stepped`."""
    size = {"rows": 3000, "latents": 3, "features": 5}
    data = simulate.draw("voronoi_actions", seed, **size | options)
    rng = np.random.default_rng([29, seed])
    x, z, aux = data.x / data.x.std(0), data.truth["z"], data.aux
    assert aux is not None
    order = np.arange(len(x))
    if how == "bent":
        x = x + 0.3 * x**3
    if how == "shuffled":
        order = rng.permutation(len(x))
    if how == "late":
        aux = np.roll(aux, 1, 0)
    if how == "beside":
        aux = np.column_stack([aux, rng.standard_normal(len(x))])
    if how in ("hidden", "square"):
        z = z[:, :-1]
        x = x[:, : z.shape[1]] if how == "square" else x
    series = data.series_labels()
    return Data(x[order], aux=aux[order], series=series, step=data.step, truth={"z": z[order]}, name="acted")


def acted_cases() -> list[Case]:
    model = "biscuit"
    law = (
        "each latent depends on the row before and on whether the action acts on it, with normal innovations of its own"
    )
    linear, noiseless = (
        "x is linear in the latents",
        "features have neither noise of their own nor other latents among the latents",
    )

    alone = "no latent acts on another in the same step"

    def case(name: str, kind: str, breaks: str = "", how: str = "", told: Any = None, **world: Any) -> Case:
        def draw(seed: int) -> Data:
            return acted(seed, how, **world)

        names = "same step" if breaks == alone else "noise"
        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names=names, breaks=breaks)

    soft = {"intervention": "soft"}
    return [
        case("an arm over tiles", "identified"),
        case("actions by a code", "identified", acting="codes", latents=4, features=6, rows=4000),
        case("latents keep half of their law, told so", "identified", told=soft, kept=0.5, width=2.0),
        case("perfect actions, told as soft", "identified", told=soft),
        case("actions act in 7 of 10 steps", "identified", chance=0.7),
        case("actions tell another number that says nothing", "identified", how="beside"),
        case("actions treble innovations", "identified", width=3.0),
        case("two latents, actions by a code", "identified", latents=2, features=3, acting="codes", rows=1500),
        case("many short series", "identified", series=100),
        case("as many features as latents", "identified", features=3),
        case("300 rows", "small", rows=300),
        case("800 rows", "small", rows=800),
        case("two latents always acted on together", "open", "patterns_apart", patterns="together"),
        case("two latents acted on in turn", "open", "patterns_apart", patterns="in turn"),
        case("a latent on which no action acts", "open", "actions_act", never=1),
        case("actions that change nothing of a latent", "open", "actions_act", told=soft, idle=1, kept=0.5, width=2.0),
        case("actions told a row late", "open", "actions_act", how="late"),
        case("latents keep half of their law, told as perfect", "misspecified", law, kept=0.5),
        case("a latent acts on another in the same step", "misspecified", law, at_once=0.7),
        case("the same, told as soft", "word", alone, told=soft, at_once=0.7, kept=1.0, width=3.0),
        case("innovations of two latents correlate", "misspecified", law, coupled=0.5),
        case("innovations of heavy tails", "misspecified", law, innovations="laplace"),
        case("rows in any order", "misspecified", law, "shuffled"),
        case("features with much noise", "misspecified", noiseless, noise=0.5),
        case("much noise, no more features than latents", "word", noiseless, noise=0.5, features=3),
        case("features bent", "misspecified", linear, "bent"),
        case("two layers between latents and features", "misspecified", linear, mixing="leaky"),
        case("two of three latents", "misspecified", noiseless, "hidden", {"latents": 2}),
        case("two of three latents, no more features", "word", noiseless, "square", {"latents": 2}),
    ]
