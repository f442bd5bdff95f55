"""Latents of few parents, actions or steps: graphs that tell them and that do not, other mechanisms, other mixings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case
from pyrocrl.simulate.lachapelle import graph_of, mixed, moved

EACH, PAIRS, NESTED = "diagonal", "two-diagonal", "triangular"
SHARED = ((1, 0, 0), (0, 1, 1), (0, 1, 1))
MANY = (*((1, 0, 0),) * 2, (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1))


def actions(
    seed: int,
    graph: str | Sequence[Sequence[int]] = PAIRS,
    rows: int = 2_000,
    *,
    latents: int = 3,
    effects: str = "waves",
    layers: int = 1,
    spread: float = 0.05,
    noise: float = 0.01,
    levels: int = 0,
    correlation: float = 0.0,
) -> Data:
    """graph (action, latent). effects: "waves", "lines" of random slopes, "thresholds", or "together", products of two
    actions as well. correlation: of any two actions, about. levels: how many values an action has, 0 for any."""
    rng = np.random.default_rng([83, seed])
    mask = graph_of(graph, latents) if isinstance(graph, str) else np.asarray(graph, dtype=float)
    a = rng.uniform(-2, 2, (rows, len(mask)))
    a = np.sqrt(1 - correlation) * a + np.sqrt(correlation) * rng.uniform(-2, 2, (rows, 1))
    if levels:
        a = np.floor((a + 2) / 4 * levels)
    if effects == "waves":
        mean = moved(a, mask)
    elif effects == "lines":
        mean = a @ (mask * rng.uniform(0.5, 1.5, mask.shape) * rng.choice([-1, 1], mask.shape))
    elif effects == "thresholds":
        at = rng.uniform(-1, 1, mask.shape)
        mean = ((a[:, :, None] > at) * mask).sum(1)
    else:
        mean = moved(a, mask) + 0.5 * (a * np.roll(a, 1, 1)) @ mask
    z = mean + spread * rng.standard_normal(mean.shape)
    x = mixed(z, 2 * latents, layers, rng)
    x = (x - x.mean(0)) / x.std(0) + noise * rng.standard_normal(x.shape)
    return Data(x, aux=a, truth={"z": z, "moved_by": mask}, name="actions")


def steps(
    seed: int,
    graph: str = EACH,
    series: int = 1_000,
    length: int = 3,
    *,
    latents: int = 3,
    lines: bool = False,
    shuffled: bool = False,
    together: float = 0.0,
    spread: float = 0.05,
) -> Data:
    """lines: of mechanisms, in place of waves. shuffled: rows in any order. together: correlation of latents' noise."""
    rng = np.random.default_rng([89, seed])
    mask = graph_of(graph, latents)
    slope = mask * rng.uniform(0.3, 0.6, mask.shape) * rng.choice([-1, 1], mask.shape)
    root = np.linalg.cholesky(np.full((latents, latents), together) + (1 - together) * np.eye(latents))
    z = [rng.standard_normal((series, latents))]
    for _ in range(length - 1):
        mean = z[-1] @ slope if lines else 0.8 * z[-1] + 0.7 * moved(z[-1], mask)
        z.append(mean + spread * rng.standard_normal(mean.shape) @ root.T)
    rows = np.stack(z, 1).reshape(-1, latents)
    if shuffled:
        rows = rng.permutation(rows)
    x = mixed(rows, 2 * latents, 1, rng)
    x = (x - x.mean(0)) / x.std(0) + 0.01 * rng.standard_normal(x.shape)
    along: dict[str, Any] = {"series": np.repeat(np.arange(series), length), "step": np.tile(np.arange(length), series)}
    return Data(x, **along, truth={"z": rows, "moved_by": mask}, name="steps")


def mechanism_sparsity_cases() -> list[Case]:
    model = "mechanism_sparsity"
    injective = "x is an injective function of the latents, with little noise"
    varied = "effects of a parent on several latents are not in proportion"
    linear: Mapping[str, Any] = {"mixing": "linear"}
    bent: dict[str, Any] = {"layers": 3, "rows": 6_000}

    def case(
        name: str,
        kind: str,
        breaks: str = "",
        told: Mapping[str, Any] = linear,
        names: str = "proportion",
        world: Callable[..., Data] = actions,
        **how: Any,
    ) -> Case:
        def draw(seed: int) -> Data:
            return world(seed, **how)

        return Case(f"{model}: {name}", model, kind, draw, told, FEW, names=names, breaks=breaks)

    return [
        case("each action of one latent", "identified", graph=EACH),
        case("each action of two latents", "identified"),
        case("six actions of three latents", "identified", graph=MANY),
        case("thresholds of actions", "identified", effects="thresholds"),
        case("large noise of latents", "identified", spread=0.5),
        case("actions of five levels", "identified", levels=5),
        case("behind a network, each action of one latent", "identified", told={}, graph=EACH, **bent),
        case("behind a network, each action of two latents", "identified", told={}, **bent),
        case("steps, each latent by itself", "identified", world=steps),
        case("steps, all later latents as well", "identified", world=steps, graph=NESTED),
        case("250 rows", "small", rows=250),
        case("every action of every latent", "open", "parents_apart", graph="dense"),
        case("two latents of the same actions", "open", "parents_apart", graph=SHARED),
        case("a latent whose actions are all another's", "open", "parents_apart", graph=NESTED),
        case("actions of nothing", "open", "parents_apart", graph="none", spread=1.0),
        case("the same behind a network", "open", "parents_apart", {}, graph=SHARED, **bent),
        case("a latent too many", "open", "parents_apart", {**linear, "latents": 4}),
        case("a latent too many, behind a network", "open", "parents_apart", {"latents": 4}, **bent),
        case("steps, rows in any order", "open", "parents_apart", world=steps, shuffled=True),
        case("steps, each latent of all", "open", "parents_apart", world=steps, graph="dense"),
        case("much noise of latents behind a network", "misspecified", "closely_moved", {}, spread=0.5, **bent),
        case("lines of every action in every latent", "word", varied, graph="dense", effects="lines"),
        case("steps, lines", "word", varied, world=steps, graph=NESTED, lines=True, spread=0.5),
        case("effects of actions together", "misspecified", "effects of parents add up", effects="together"),
        case(
            "steps, noise that goes together",
            "word",
            "noise of latents is independent",
            names="noise",
            world=steps,
            graph=NESTED,
            together=0.9,
        ),
        case("two of three latents", "misspecified", injective, {**linear, "latents": 2}),
        case("two of three latents, behind a network", "misspecified", injective, {"latents": 2}, **bent),
        case("features bent", "misspecified", injective, layers=3),
        case("features with much noise", "misspecified", injective, noise=0.5),
    ]
