"""Latents that go on from step to step by random networks, some of them targets of an intervention in each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_sizes, check_whole

Array = np.ndarray
HIDDEN, LEAK = 32, 0.1  # units of each of a network's two layers; slope of its activation below 0
NOISE = 0.4  # deviation of innovations, and of a target's value
BOUND = 3.0  # of means
BURN = 100  # steps before those that are seen
REFERENCE = 2_000  # standard normal rows by which layers are standardised
MOST_TARGETS = 12  # latents, whose sets of targets are environments
ARM = 0.3  # distance from an arm within which a tile's middle is covered


def voronoi_numeric(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(4)] = 20_000,
    latents: Annotated[int, Bounds(2, MOST_TARGETS)] = 6,
    features: int = 12,
    series: Annotated[int, Bounds(1)] = 10,
    mixing: Literal["linear", "leaky"] = "linear",
    targets: Literal["independent", "single", "codes", "together", "nearly together", "in turn"] = "independent",
    edges: Annotated[float, Bounds(0, 1, "[]")] = 0.4,
    never: Annotated[int, Bounds(0)] = 0,
    idle: Annotated[int, Bounds(0)] = 0,
    kept: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    spill: Annotated[float, Bounds(0, ends="[)")] = 0.0,
    coupled: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
    noise: Annotated[float, Bounds(0, ends="[)")] = 0.0,
    innovations: Literal["normal", "laplace"] = "normal",
) -> Data:
    """Lippe et al. (2022), "CITRIS: causal identifiability from temporal intervened sequences": the latents of their
    Voronoi benchmark, mixed into columns and not rendered as images.

        z_tk = m_k(z_t-1 of k's parents) + .4 e;   z_tk = .4 e in steps of which k is a target      (data, latent)

    e ~ N(0, 1). m_k are networks of two layers of 32 units, standardised, leaky ReLU of slope .1, of mean 0 and
    deviation 1, bounded by 3; each latent is a parent of each in the step after with probability `edges`, and each has
    one at least. x = A z (mixing="linear", A standard normal) or two more layers of leaky ReLU of slope .2 on
    standardised inputs ("leaky"). Published latents, not their means, are bounded, and divided by 2.

    targets: "independent", each latent with probability .15 in each step; "single", one latent at most; "codes", one of
    floor(log2 K) + 2 experiments in each step, or none, of which each targets the latents whose code has a 1 there;
    "together", as independent, but the first two are always targets together, "nearly together", but in one step of
    100; "in turn", but the second is one if and
    only if the first is none.

    series: sequences, of equal lengths. never: how many of the last latents are never targets; idle: of the first ones,
    that go on as they would though they are. kept: part of m_k that targets keep; spill: what targets of latent 0 add
    to latent 1; coupled: part of the first latent's innovation, by variance, that drives the second as well;
    noise: of every feature, in units of its deviation; innovations: law of e.
    Truth: z, lagged (parent, child), targets.
    """
    check_sizes(features, latents, least=2, square=True)
    check_whole("series", series, 1, rows // 2)
    check_whole("never", never, 0, latents)
    check_whole("idle", idle, 0, latents)
    rng = np.random.default_rng([2022, seed])
    graph = _parents(rng, latents, edges)
    mean = _networks(rng, graph)
    length = -(-rows // series)
    hit = _targets(rng, (series, BURN + length), latents, targets)
    hit[..., latents - never :] = False
    e = _innovations(rng, hit.shape, innovations, coupled)
    z = np.zeros(hit.shape)
    for t in range(1, BURN + length):
        goes_on, target = mean(z[:, t - 1]), hit[:, t].copy()
        target[:, :idle] = False
        z[:, t] = np.where(target, kept * goes_on, goes_on) + NOISE * e[:, t]
        z[:, t, 1] += spill * hit[:, t, 0]
    z, hit = z[:, BURN:], hit[:, BURN:]
    who, step = np.nonzero(np.ones(z.shape[:2], dtype=bool))
    z, hit = z.reshape(-1, latents)[:rows], hit.reshape(-1, latents)[:rows]
    who, step = who[:rows], step[:rows]
    x = _mixed(rng, z, features, mixing)
    x = x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x
    labels = np.array(["none" if not one.any() else "+".join(map(str, np.flatnonzero(one))) for one in hit])
    sets = {str(name): tuple(map(int, name.split("+"))) for name in np.unique(labels) if name != "none"}
    truth = {"z": z, "lagged": graph, "targets": sets}
    return Data(x, labels, sets, series=[f"series_{i}" for i in who], step=step, truth=truth, name="voronoi_numeric")


def voronoi_actions(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(4)] = 10_000,
    latents: Annotated[int, Bounds(2, MOST_TARGETS)] = 6,
    features: int = 12,
    series: Annotated[int, Bounds(1)] = 10,
    mixing: Literal["linear", "leaky"] = "linear",
    acting: Literal["arm", "codes"] = "arm",
    patterns: Literal["apart", "together", "in turn"] = "apart",
    edges: Annotated[float, Bounds(0, 1, "[]")] = 0.4,
    never: Annotated[int, Bounds(0)] = 0,
    idle: Annotated[int, Bounds(0)] = 0,
    kept: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    width: Annotated[float, Bounds(0, 100)] = 1.0,
    chance: Annotated[float, Bounds(0, 1, "(]")] = 1.0,
    at_once: Annotated[float, Bounds(0, 100, "[)")] = 0.0,
    coupled: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
    noise: Annotated[float, Bounds(0, ends="[)")] = 0.0,
    innovations: Literal["normal", "laplace"] = "normal",
) -> Data:
    """Lippe et al. (2023), "BISCUIT: causal representation learning from binary interactions": the latents of
    `voronoi_numeric` with actions, `aux`, in place of targets: whether one acts on a latent is not told.

        z_tk = m_k(z_t-1 of k's parents) + .4 e;   kept m_k(..) + .4 width e in steps in which the action acts on k

    acting: "arm", a robot's position, uniform in [-.25, 1.25]^2, which acts on latents whose tiles, spread evenly over
    [0, 1]^2, have their middle within .3 of it; "codes", a number: 0 acts on none, and each one up to floor(log2 K) + 1
    on the latents whose code has a 1 there. patterns: "together", the second latent is acted on when the first one is;
    "in turn", when the first one is not. chance: that an action acts on a latent that it may act on. at_once: what is
    added to the second latent of the first one in the same step, of which it keeps `kept` where it is acted on.

    Other options are those of `voronoi_numeric`. Truth: z, lagged (parent, child), state (row, latent), whether a
    latent was acted on.
    """
    check_sizes(features, latents, least=2, square=True)
    check_whole("series", series, 1, rows // 2)
    check_whole("never", never, 0, latents)
    check_whole("idle", idle, 0, latents)
    rng = np.random.default_rng([2023, seed])
    graph = _parents(rng, latents, edges)
    mean = _networks(rng, graph)
    length = -(-rows // series)
    action, hit = _acts(rng, (series, BURN + length), latents, acting)
    hit = hit & (rng.random(hit.shape) < chance)
    if patterns != "apart":
        hit[..., 1] = hit[..., 0] ^ (patterns == "in turn")
    hit[..., latents - never :] = False
    e = _innovations(rng, hit.shape, innovations, coupled)
    z = np.zeros(hit.shape)
    for t in range(1, BURN + length):
        goes_on, own = mean(z[:, t - 1]), hit[:, t].copy()
        own[:, :idle] = False
        z[:, t] = np.where(own, kept * goes_on + width * NOISE * e[:, t], goes_on + NOISE * e[:, t])
        z[:, t, 1] += at_once * np.where(own[:, 1], kept, 1.0) * z[:, t, 0]
    who, step = np.nonzero(np.ones(z[:, BURN:].shape[:2], dtype=bool))
    seen: list[Array] = [v[:, BURN:].reshape(-1, v.shape[-1])[:rows] for v in (action, z, hit)]
    x = _mixed(rng, seen[1], features, mixing)
    x = x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x
    truth = {"z": seen[1], "lagged": graph, "state": seen[2].astype(int)}
    names = [f"series_{i}" for i in who[:rows]]
    return Data(x, aux=seen[0], series=names, step=step[:rows], truth=truth, name="voronoi_actions")


def _acts(rng: np.random.Generator, size: tuple[int, int], latents: int, how: str) -> tuple[Array, Array]:
    """Actions (series, step, number) and which latents they act on (series, step, latent) bool."""
    if how == "codes":
        count = int(np.log2(latents)) + 1
        code = (np.arange(1, latents + 1)[:, None] >> np.arange(count)) & 1  # (latent, action)
        which = rng.integers(count + 1, size=size)
        table = np.concatenate([np.zeros((latents, 1), int), code], 1)
        return which[..., None].astype(float), table.T[which] > 0
    across = int(np.ceil(np.sqrt(latents)))
    down = -(-latents // across)
    place = np.arange(latents)
    middle = np.stack([(place % across + 0.5) / across, (place // across + 0.5) / down], 1)
    arm = rng.uniform(-0.25, 1.25, (*size, 2))
    return arm, np.linalg.norm(arm[..., None, :] - middle, axis=-1) < ARM


def _innovations(rng: np.random.Generator, shape: tuple[int, ...], law: str, coupled: float) -> Array:
    """(..., latent) of variance 1; coupled: part of the variance of the second that is the first's."""
    e = rng.standard_normal(shape) if law == "normal" else rng.laplace(size=shape) / np.sqrt(2)
    e[..., 1] = np.sqrt(1 - coupled) * e[..., 1] + np.sqrt(coupled) * e[..., 0]
    return e


def _parents(rng: np.random.Generator, latents: int, edges: float) -> Array:
    """(parent, child) in {0, 1}, a parent at least of each."""
    graph = rng.random((latents, latents)) < edges
    graph[rng.integers(latents, size=latents), np.arange(latents)] |= ~graph.any(0)
    return graph.astype(int)


def _networks(rng: np.random.Generator, graph: Array) -> Callable[[Array], Array]:
    """z (rows, latent) -> means (rows, latent) of the step after."""
    latents = len(graph)
    layers = [rng.standard_normal((latents, latents, HIDDEN)) * graph.T[:, :, None]]
    layers += [rng.standard_normal((latents, HIDDEN, size)) / np.sqrt(HIDDEN) for size in (HIDDEN, 1)]
    units: list[tuple[Array, Array]] = []

    def run(z: Array) -> Array:
        h: Array = np.broadcast_to(z, (latents, *z.shape))
        for place, layer in enumerate(layers):
            h = h @ layer
            if len(units) == place:
                units.append((h.mean(1, keepdims=True), h.std(1, keepdims=True)))
            h = (h - units[place][0]) / units[place][1]
            h = np.maximum(h, LEAK * h) if place < 2 else h
        return BOUND * np.tanh(h[..., 0].T / BOUND)

    run(rng.standard_normal((REFERENCE, latents)))
    return run


def _targets(rng: np.random.Generator, size: tuple[int, int], latents: int, how: str) -> Array:
    """(series, step, latent) bool."""
    if how == "single":
        which = np.where(rng.random(size) < min(0.15 * latents, 0.9), rng.integers(latents, size=size), latents)
        return which[..., None] == np.arange(latents)
    if how == "codes":
        groups = int(np.log2(latents)) + 2
        code = (np.arange(1, latents + 1)[:, None] >> np.arange(groups - 1)) & 1  # (latent, group)
        code = np.column_stack([code, 1 - code[:, 0]])
        return np.concatenate([code, np.zeros((latents, 1), int)], 1).T[rng.integers(groups + 1, size=size)] > 0
    hit = rng.random((*size, latents)) < 0.15
    if how in ("together", "nearly together"):
        hit[..., 1] = hit[..., 0] ^ (rng.random(size) < (how != "together") / 100)
    if how == "in turn":
        hit[..., 1] = ~hit[..., 0]
    return hit


def _mixed(rng: np.random.Generator, z: Array, features: int, mixing: str) -> Array:
    """(rows, feature) without noise."""
    x = z @ rng.standard_normal((z.shape[1], features))
    for _ in range(2 * (mixing == "leaky")):
        x = (x - x.mean(0)) / x.std(0)
        x = np.where(x > 0, x, 0.2 * x) @ np.linalg.qr(rng.standard_normal((features, features)))[0]
    return x
