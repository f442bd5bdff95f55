"""Sums of smooth functions of single latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Positive, Seed, Size

Floats = np.ndarray
GRID = (np.arange(10_000) + 0.5) / 10_000

CURVES: dict[str, Callable[[Floats], Floats]] = {
    "linear": lambda u: u,
    "exponential": lambda u: np.exp(3 * u),
    "saturating": lambda u: np.tanh(4 * u),
    "square": lambda u: np.square(2 * u - 1),
    "sine": lambda u: np.sin(2 * np.pi * u),
    "cosine": lambda u: np.cos(2 * np.pi * u),
    "bent": lambda u: np.abs(u - 0.3),
}
MONOTONE = {"all": ("linear", "exponential"), "hard": ("saturating",)}
ANCHORS = {
    "all": ("linear", "square", "sine", "exponential", "bent"),
    "hard": ("saturating", "square", "sine", "bent"),
}


def curve(name: str, u: Floats) -> Floats:
    """A function of `CURVES`, of mean 0 and variance 1 where u is uniform."""
    on_grid = CURVES[name](GRID)
    out: Floats = (CURVES[name](u) - on_grid.mean()) / on_grid.std()
    return out


def xu2023_additive(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 1000,
    latents: Size = 3,
    features: Annotated[int, Bounds(2)] = 30,
    anchors: Annotated[int, Bounds(1)] = 4,
    curves: Literal["all", "hard"] = "all",
    noise: Positive = 0.3,
) -> Data:
    """Features that are curves of one latent or sums of curves of two, as in the simulations of Xu, Herring & Dunson
    (2023); their functions, sizes of our own.

        u ~ U(0, 1)                                                                       (data, latent)
        x_j = sum over its latents of +-g_jk(u_k), + noise e,  e ~ N(0, 1)                (data, feature)

    The first anchors * latents features are curves of one latent alone, j mod latents; each of the others is one of two
    latents. g is u, (2u - 1)^2, sin(2 pi u), exp(3u) or |u - .3|, at random, of mean 0 and variance 1. One anchor of
    each latent is u or exp(3u). curves="hard": anchors are no lines: of each latent one is tanh(4u), the others that,
    (2u - 1)^2, sin(2 pi u) or |u - .3|. Truth: z (u), mask. Raises InputError for more anchors than features.
    """
    if latents * anchors > features:
        reject("anchors", anchors, f"at most {features // latents}, for {features} features of {latents} latents")
    rng = np.random.default_rng([2311, seed])
    u = rng.random((rows, latents))
    mask, x = np.zeros((features, latents), dtype=int), noise * rng.standard_normal((rows, features))
    for j in range(features):
        alone = j < anchors * latents
        own = [j % latents] if alone else rng.permutation(latents)[:2]
        for k in own:
            kinds = ANCHORS[curves] if alone else ANCHORS["all"]
            name = rng.choice(MONOTONE[curves] if j < latents else kinds)
            x[:, j] += rng.choice([-1, 1]) * curve(str(name), u[:, k])
            mask[j, k] = 1
    return Data(x, truth={"z": u, "mask": mask}, name=f"xu2023_additive, {curves} curves")
