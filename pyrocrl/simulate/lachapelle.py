"""Latents whose few parents are actions, or latents of the step before, behind a network that does not lose any."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Positive, Seed, Size

Floats = np.ndarray
SLOPE = 0.2  # of a unit below 0
MOVED = 0.5  # size of what parents add to the step before


def graph_of(kind: str, latents: int) -> Floats:
    """(parent, child) in {0, 1}: "diagonal", "two-diagonal" (the next one's parent as well), "triangular" (of all later
    ones), "dense" or "none"; "twins": diagonal, but the last two have both their parents."""
    eye = np.eye(latents)
    if kind == "twins":
        out = eye.copy()
        out[-2:, -2:] = 1
        return out
    return {
        "diagonal": eye,
        "two-diagonal": np.maximum(eye, np.roll(eye, 1, 1)),
        "triangular": np.triu(np.ones((latents, latents))),
        "dense": np.ones((latents, latents)),
        "none": 0 * eye,
    }[kind]


def moved(parents: Floats, graph: Floats) -> Floats:
    """(rows, child) sum of sin((i + 3) a_j / pi + i) over parents j of child i, from 0 on."""
    i = np.arange(graph.shape[1])
    waves = np.sin((i + 3) * parents[:, :, None] / np.pi + i)  # (rows, parent, child)
    out: Floats = (waves * graph).sum(1)
    return out


def mixed(z: Floats, features: int, layers: int, rng: np.random.Generator) -> Floats:
    """z (rows, latent) behind a linear map and then `layers` layers of leaky units, whose matrices have orthonormal
    rows or columns, times a factor that keeps variances."""
    out, width = z, z.shape[1]
    for layer in range(max(layers, 1)):
        if layer:
            out = np.where(out > 0, out, SLOPE * out)
        wide, narrow = max(features, width), min(features, width)
        turn = np.linalg.qr(rng.standard_normal((wide, narrow)))[0]
        turn = turn if features >= width else turn.T
        gain = np.sqrt(2 / (1 + SLOPE**2)) * np.sqrt(2 / (width + features))
        out, width = out @ turn.T * gain * np.sqrt(wide), features
    return out


def lachapelle2022(
    seed: Seed = 0,
    parents: Literal["actions", "latents"] = "actions",
    graph: Literal["diagonal", "two-diagonal", "triangular", "dense", "twins", "none"] = "two-diagonal",
    rows: Annotated[int, Bounds(2)] = 20_000,
    latents: Size = 5,
    features: Annotated[int, Bounds(2)] = 10,
    layers: Annotated[int, Bounds(1, 100)] = 4,
    spread: Positive = 0.01,
    noise: Positive = 0.01,
) -> Data:
    """Latents that few actions, or few latents of the step before, move, as in Lachapelle et al. (2022):

        a_j ~ U(-2, 2),         z_i ~ N(sum_j G_ji sin((i + 3) a_j / pi + i), spread^2)            parents="actions"
        z_j in step 0 ~ N(0, 1), z_i in step 1 ~ N(z_i + .5 sum_j G_ji sin((i + 3) z_j / pi + i), spread^2)  "latents"
        x = f(z) in units of its deviations, plus noise * N(0, 1)

    f: `layers` linear maps with leaky units between them, 1 for a linear one; their matrices have orthonormal columns.
    Of latents there are `rows` pairs of steps, each a series. Truth: z and `moved_by`
    (parent, latent).
    """
    rng = np.random.default_rng([2022, seed])
    mask = graph_of(graph, latents)
    if parents == "actions":
        action = rng.uniform(-2, 2, (rows, latents))
        z = moved(action, mask) + spread * rng.standard_normal((rows, latents))
        along: dict = {"aux": action}
    else:
        before = rng.standard_normal((rows, latents))
        after = before + MOVED * moved(before, mask) + spread * rng.standard_normal((rows, latents))
        z = np.stack([before, after], 1).reshape(-1, latents)
        along = {"series": np.repeat(np.arange(rows), 2), "step": np.tile([0, 1], rows)}
    x = mixed(z, features, layers, rng)
    x = (x - x.mean(0)) / x.std(0)
    x = x + noise * rng.standard_normal(x.shape)
    return Data(x, **along, truth={"z": z, "moved_by": mask}, name="lachapelle2022")
