"""Graphs of observed columns: rows of heavy tails or not, fitted with the noise that they have or with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn

MODEL = "observed_dag"
ROWS = 800  # of each of four environments
# of its card
NORMAL = "equations are linear with additive Gaussian noise"
STUDENT = "equations are linear with additive noise of Student's law, of one scale a row"
HIDDEN = "no unobserved variable acts on two observed ones"
FAITHFUL = "independences are those that the graph asks for (faithfulness)"


def world(**options: Any) -> Callable[[int], Data]:
    return drawn("squires2020", **({"samples": ROWS, "latents": 5, "settings": 3, "neighbours": 2.0} | options))


def misread(seed: int, share: float = 0.02, size: float = 10.0) -> Data:
    """Normal rows of ten columns, this share of whose values is off by errors of this deviation."""
    data = world(latents=10)(seed)
    rng = np.random.default_rng([62, seed])
    x = data.x + size * rng.standard_normal(data.x.shape) * (rng.random(data.x.shape) < share)
    return Data(x, data.env_labels(), data.targets, control=data.control, truth=data.truth | {"z": x}, name="misread")


def chain(
    seed: int,
    rows: int = ROWS,
    bent: float = 0.0,
    skewed: bool = False,
    hidden: bool = False,
    cancelling: bool = False,
    freedom: float = 3.0,
) -> Data:
    """Columns 0 -> 1 -> 2 with 0 -> 2, an environment for each which shifts it; rows of Student's law of these degrees
    of freedom, 0 of a normal one. bent: of the square of parents; skewed: noise is; hidden: something unobserved acts
    on 1 and 2; cancelling: both ways from 0 to 2 add up to nothing."""
    rng = np.random.default_rng([61, seed])
    weight = np.zeros((3, 3))
    for parent, child in ((0, 1), (1, 2), (0, 2)):
        weight[parent, child] = rng.choice([-1, 1]) * rng.uniform(0.6, 1.0)
    if cancelling:
        weight[0, 2] = -weight[0, 1] * weight[1, 2]
    parts, targets = [], {f"on_{k}": (k,) for k in range(3)}
    for hit in ((), *targets.values()):
        noise = rng.standard_exponential((rows, 3)) - 1 if skewed else rng.standard_normal((rows, 3))
        if hidden:
            noise[:, 1:] += rng.standard_normal((rows, 1))
        if freedom:
            noise /= np.sqrt(rng.chisquare(freedom, (rows, 1)) / freedom)
        noise[:, list(hit)] += 2.0
        z = np.zeros((rows, 3))
        for k in range(3):
            z[:, k] = (z + bent * z**2) @ weight[:, k] + noise[:, k]
        parts.append(z)
    z, labels = np.concatenate(parts), np.repeat(["control", *targets], rows)
    truth = {"z": z, "graph": (weight != 0).astype(int), "weight": weight, "targets": targets}
    return Data(z, labels, targets, control="control", truth=truth, name="chain")


def graph_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        told = {"intervention": "shift"} | options
        return Case(f"{MODEL}: {name}", MODEL, kind, draw, told, FEW, names=breaks, breaks=breaks)

    def heavy(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return case(f"{name}, told Student's noise", kind, draw, breaks, noise="student", **options)

    perfect = {"intervention": "perfect"}
    return [
        case("shifts", "identified", world()),
        case("perfect", "identified", world(**perfect), **perfect),
        case("shifts, targets unknown", "small", world(told=False)),
        case("shifts, 60 rows", "small", world(samples=60)),
        heavy("shifts", "identified", world()),
        heavy("shifts, 60 rows", "small", world(samples=60)),
        heavy("heavy rows", "identified", world(noise="rows")),
        heavy("heavy rows, perfect", "identified", world(noise="rows", **perfect), **perfect),
        heavy("heavy rows, targets unknown", "small", world(noise="rows", told=False)),
        heavy("heavy rows, 60 rows", "small", world(noise="rows", samples=60)),
        heavy("heavy rows, 30 rows of nine columns", "small", world(noise="rows", samples=30, latents=9)),
        heavy("heavy rows of three columns", "identified", chain),
        heavy("rows of two degrees", "identified", lambda seed: chain(seed, freedom=2.0)),
        case("heavy rows", "misspecified", world(noise="rows"), NORMAL),
        case("heavy rows, perfect", "misspecified", world(noise="rows", **perfect), NORMAL, **perfect),
        case("heavy rows, targets unknown", "misspecified", world(noise="rows", told=False), NORMAL),
        case("heavy rows, 60 rows", "misspecified", world(noise="rows", samples=60), NORMAL),
        case("outlying rows", "misspecified", world(outlying=0.03), NORMAL),
        case("tails of each equation", "misspecified", world(noise="student"), NORMAL),
        case("bent", "misspecified", lambda seed: chain(seed, bent=0.3, freedom=0.0), NORMAL),
        case("something unobserved", "word", lambda seed: chain(seed, hidden=True, freedom=0.0), HIDDEN),
        case("ways that cancel", "word", lambda seed: chain(seed, cancelling=True, freedom=0.0), FAITHFUL),
        heavy("outlying rows", "misspecified", world(outlying=0.03), STUDENT),
        heavy("tails of each equation", "misspecified", world(noise="student"), STUDENT),
        heavy("values misread", "misspecified", misread, STUDENT),
        heavy("heavy rows, bent", "misspecified", lambda seed: chain(seed, bent=0.3, freedom=5.0), STUDENT),
        heavy("bent", "misspecified", lambda seed: chain(seed, bent=0.3, freedom=0.0), STUDENT),
        heavy("heavy rows, skewed", "misspecified", lambda seed: chain(seed, skewed=True), STUDENT),
        heavy("heavy rows, something unobserved", "word", lambda seed: chain(seed, hidden=True), HIDDEN),
        heavy("heavy rows, ways that cancel", "word", lambda seed: chain(seed, cancelling=True), FAITHFUL),
    ]
