"""Pairs of rows before and after an intervention on one latent that nobody names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_sizes, check_whole
from pyrocrl.simulate.buchholz import _mix


def brehmer2022_linear(
    seed: Seed = 0,
    pairs: int = 20_000,
    latents: int = 5,
    features: int = 10,
    unshared: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    measurement: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    never: Annotated[int, Bounds(0)] = 0,
    together: Literal[1, 2] = 1,
    kept: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
) -> Data:
    """Brehmer et al. (2022), "Weakly supervised causal representation learning", their linear graphs of any size.

    Graph Erdos-Renyi with density .5 under a random order, weights of either sign and size 1 + .3 N(0, 1), noise
    N(0, 1). Between the row before and the row after of a pair one latent, or none, each as likely, is cut from its
    parents and set to N(0, 1); all other noise stays as it is. x = G z: where features = latents, G is a random
    rotation, as published; else standard normal.

    Beside the paper: unshared: deviation of new noise that is added to every latent's between the rows; measurement:
    of noise that every feature gets in every row, in units of its deviation; never: how many of the latents are never
    changed; together: how many are changed at once; kept: share of the weights of its parents that a changed latent
    keeps, 0 for perfect interventions. Truth: z, graph and weight (parent, child), row_target (the first
    of those changed).
    """
    check_sizes(features, latents, square=True)
    rng = np.random.default_rng([2022, seed])
    pairs_of = _pairs(rng, pairs, latents, unshared, never, together, kept, lambda parents: parents)
    square = np.linalg.qr(rng.standard_normal((latents, latents)))[0]
    mixing = square if features == latents else rng.standard_normal((features, latents))
    return _told("brehmer2022_linear", rng, pairs_of.z @ mixing.T, pairs_of, measurement)


def brehmer2022_nonlinear(
    seed: Seed = 0,
    pairs: int = 20_000,
    latents: int = 5,
    layers: Annotated[int, Bounds(0, 6)] = 3,
    unshared: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    measurement: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    never: Annotated[int, Bounds(0)] = 0,
    together: Literal[1, 2] = 1,
    kept: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    noise: Literal["normal", "exponential"] = "normal",
) -> Data:
    """As `brehmer2022_linear`, with equations z_k = sum_j w_jk tanh(z_j) + e_k and the mixing of `buchholz2023_hard`:
    `layers` of 4 K leaky ReLUs (slope .2) and a linear map into 2 K columns, inputs standardised over all rows.

    noise: the law of e_k, of variance 1; exponential: less its mean. Other options and truth: as there.
    """
    check_sizes(2 * latents, latents, least=2)
    rng = np.random.default_rng([2022, 1, seed])
    pairs_of = _pairs(rng, pairs, latents, unshared, never, together, kept, np.tanh, noise)
    x = _mix(rng, pairs_of.z, (4 * latents,) * layers + (2 * latents,), standardise=True)
    return _told("brehmer2022_nonlinear", rng, x, pairs_of, measurement)


class _Pairs(NamedTuple):
    """z (row, latent), graph and weight (parent, child), target (pair,), the number of latents for none."""

    z: np.ndarray
    graph: np.ndarray
    weight: np.ndarray
    target: np.ndarray


def _pairs(
    rng: np.random.Generator,
    pairs: int,
    latents: int,
    unshared: float,
    never: int,
    together: int,
    kept: float,
    bend: Callable[[np.ndarray], np.ndarray],
    law: str = "normal",
) -> _Pairs:
    check_whole("pairs", pairs, 2)
    check_whole("never", never, 0, latents - together)
    rank = rng.permutation(latents)
    graph = (rank[:, None] < rank[None, :]) & (rng.random((latents, latents)) < 0.5)
    size = rng.choice([-1.0, 1.0], graph.shape) * (1.0 + 0.3 * rng.standard_normal(graph.shape))
    weight = np.where(graph, size, 0.0)
    allowed = rng.permutation(latents)[never:]
    target = rng.choice(np.append(allowed, -1), pairs)
    hit = np.zeros((pairs, latents + 1), dtype=bool)
    hit[np.arange(pairs), target] = True  # the last column is none
    hit = hit[:, :latents]
    if together == 2:
        other = np.array([rng.choice(allowed[allowed != t]) for t in target])
        hit[np.arange(pairs), other] = True
    shape = (pairs, latents)
    noise = rng.exponential(size=shape) - 1.0 if law == "exponential" else rng.standard_normal(shape)
    changed = noise + unshared * rng.standard_normal(noise.shape)
    before, after, fresh = np.zeros_like(noise), np.zeros_like(noise), rng.standard_normal(noise.shape)
    for k in np.argsort(rank):
        before[:, k] = bend(before) @ weight[:, k] + noise[:, k]
        after[:, k] = bend(after) @ weight[:, k] * np.where(hit[:, k], kept, 1.0)
        after[:, k] += np.where(hit[:, k], fresh[:, k], changed[:, k])
    return _Pairs(np.stack([before, after], 1).reshape(-1, latents), graph, weight, target)


def _told(name: str, rng: np.random.Generator, x: np.ndarray, pairs_of: _Pairs, measurement: float) -> Data:
    pairs = len(pairs_of.target)
    x = x + measurement * x.std(0) * rng.standard_normal(x.shape)
    return Data(
        x=x,
        pair=np.repeat(np.arange(pairs), 2),
        step=np.tile([0, 1], pairs),
        truth={
            "z": pairs_of.z,
            "graph": pairs_of.graph.astype(int),
            "weight": pairs_of.weight,
            "row_target": np.stack([np.full(pairs, -1), pairs_of.target], 1).reshape(-1),
        },
        name=name,
    )
