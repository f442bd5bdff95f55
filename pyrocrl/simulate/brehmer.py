"""Pairs of rows before and after an intervention on one latent that nobody names."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_sizes, check_whole


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
    check_whole("pairs", pairs, 2)
    check_whole("never", never, 0, latents - together)
    rng = np.random.default_rng([2022, seed])
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
    noise = rng.standard_normal((pairs, latents))
    before = np.linalg.solve(np.eye(latents) - weight.T, noise.T).T
    noise = noise + unshared * rng.standard_normal(noise.shape)
    after, fresh = np.zeros_like(before), rng.standard_normal(noise.shape)
    for k in np.argsort(rank):
        after[:, k] = after @ weight[:, k] * np.where(hit[:, k], kept, 1.0)
        after[:, k] += np.where(hit[:, k], fresh[:, k], noise[:, k])
    z = np.stack([before, after], 1).reshape(-1, latents)
    square = np.linalg.qr(rng.standard_normal((latents, latents)))[0]
    mixing = square if features == latents else rng.standard_normal((features, latents))
    x = z @ mixing.T
    x = x + measurement * x.std(0) * rng.standard_normal(x.shape)
    return Data(
        x=x,
        pair=np.repeat(np.arange(pairs), 2),
        step=np.tile([0, 1], pairs),
        truth={
            "z": z,
            "graph": graph.astype(int),
            "weight": weight,
            "row_target": np.stack([np.full(pairs, -1), target], 1).reshape(-1),
        },
        name="brehmer2022_linear",
    )
