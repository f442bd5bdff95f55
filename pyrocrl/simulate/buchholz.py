"""Nonlinear mixing of a linear Gaussian structural equation model, one perfect intervention per latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_sizes, check_whole
from pyrocrl.simulate.mixtures import linear_r2

SLOPE = 0.2

Array = np.ndarray


def buchholz2023(seed: Seed = 0, samples: int = 10_000, latents: int = 5) -> Data:
    """Buchholz et al. (2023), "Learning linear causal representations from interventions under general nonlinear
    mixing": the design of their experiments.

    Erdos-Renyi graph under a random order, mean degree 2 (4 from 10 latents on), weights +-U(.25, 1), noise variances
    U(1, 2). Environment k cuts the parents of latent k and gives it a mean +-U(1, 2) and a variance U(1, 2). x = f(z)
    without noise: three layers of 512 leaky ReLUs (slope .2) and a linear map into 100 columns, with PyTorch's default
    initial weights and biases. Linear regression undoes most of this mixing: its held-out R^2 is in the data's name.

    samples: rows in each of the latents + 1 environments. Truth: z, graph and weight (parent, child), targets.
    """
    check_sizes(100, latents, least=2)
    return _buchholz2023("buchholz2023", seed, samples, latents, (512, 512, 512, 100), standardise=False)


def buchholz2023_hard(seed: Seed = 0, samples: int = 10_000, latents: int = 5) -> Data:
    """As `buchholz2023` with a mixing that linear regression cannot undo (R^2 about .73 at 5, .77 at 10 latents).

    Three layers of 4 K leaky ReLUs (slope .2) and a linear map into 2 K columns, the inputs of every layer
    standardised over all rows.
    """
    check_sizes(2 * latents, latents, least=2)
    sizes = (4 * latents,) * 3 + (2 * latents,)
    return _buchholz2023("buchholz2023_hard", seed, samples, latents, sizes, standardise=True)


def buchholz2024(
    seed: Seed = 0,
    samples: int = 1_000,
    latents: int = 3,
    features: int = 10,
    bend: Annotated[float, Bounds(0, 10, "[]")] = 0.1,
    noise: Annotated[float, Bounds(0, 10, "[]")] = 0.05,
) -> Data:
    """Latents of `buchholz2023` behind a mixing that is linear but for a bend, after Buchholz & Schoelkopf (2024),
    "Robustness of nonlinear representation learning": x = A z + bend h(z) + noise.

    z is standardised over all rows first. A (feature, latent) standard normal; h = C tanh(B z + b) less its linear
    regression on z, B standard normal to 8 units a latent, b ~ U(-1, 1), C standard normal, scaled so that h varies as
    much as A z in all. noise: deviation of what is added to each feature, in those that it has.

    samples: rows in each of the latents + 1 environments. Truth: z, graph and weight (parent, child), targets.
    """
    check_sizes(features, latents, least=2)
    check_whole("samples", samples, 2)
    rng = np.random.default_rng([2024, latents, seed])
    z, env, graph, weight = _latents(rng, samples, latents)
    s = (z - z.mean(0)) / z.std(0)
    straight = s @ rng.standard_normal((latents, features))
    units = np.tanh(s @ rng.standard_normal((latents, 8 * latents)) + rng.uniform(-1, 1, 8 * latents))
    bent = units @ rng.standard_normal((8 * latents, features))
    bent -= bent.mean(0)
    bent -= s @ np.linalg.lstsq(s, bent, rcond=None)[0]
    x = straight + bend * np.sqrt(straight.var(0).sum() / bent.var(0).sum()) * bent
    x += noise * x.std(0) * rng.standard_normal(x.shape)
    return _told("buchholz2024", x, z, env, graph, weight)


def _buchholz2023(name: str, seed: int, samples: int, latents: int, sizes: Sequence[int], standardise: bool) -> Data:
    check_whole("samples", samples, 2)
    rng = np.random.default_rng([2023, latents, seed])
    z, env, graph, weight = _latents(rng, samples, latents)
    x = _mix(rng, z, sizes, standardise)
    rows = rng.permutation(len(x))  # `linear_r2` fits on the first half
    return _told(f"{name}, linear R2 {linear_r2(x[rows], z[rows]):.3f}", x, z, env, graph, weight)


def _latents(rng: np.random.Generator, samples: int, latents: int) -> tuple[Array, list[str], Array, Array]:
    """z (row, latent), environments' names, graph and weight (parent, child)."""
    rank = rng.permutation(latents)
    degree = min(latents - 1, 2 if latents < 10 else 4)
    graph = (rank[:, None] < rank[None, :]) & (rng.random((latents, latents)) < degree / (latents - 1))
    weight = np.where(graph, rng.choice([-1.0, 1.0], graph.shape) * rng.uniform(0.25, 1.0, graph.shape), 0.0)
    sd = np.sqrt(rng.uniform(1.0, 2.0, latents))
    parts, env = [], []
    for k in range(-1, latents):
        noise = sd * rng.standard_normal((samples, latents))
        changed = weight.copy()
        if k >= 0:
            changed[:, k] = 0.0
            mean, own = rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 2.0), math.sqrt(rng.uniform(1.0, 2.0))
            noise[:, k] = mean + own * rng.standard_normal(samples)
        parts.append(noise @ np.linalg.inv(np.eye(latents) - changed))
        env += ["observational" if k < 0 else f"target_{k}"] * samples
    return np.concatenate(parts), env, graph, weight


def _told(name: str, x: Array, z: Array, env: list[str], graph: Array, weight: Array) -> Data:
    targets = {f"target_{k}": (k,) for k in range(z.shape[1])}
    return Data(
        x=x,
        env=env,
        targets=targets,
        truth={"z": z, "graph": graph.astype(int), "weight": weight, "targets": targets},
        name=name,
    )


def _mix(rng: np.random.Generator, z: Array, sizes: Sequence[int], standardise: bool) -> Array:
    h = z
    for layer, outputs in enumerate(sizes):
        if standardise:
            h = (h - h.mean(0)) / h.std(0)
        bound = 1.0 / math.sqrt(h.shape[1])
        h = h @ rng.uniform(-bound, bound, (h.shape[1], outputs)) + rng.uniform(-bound, bound, outputs)
        if layer < len(sizes) - 1:
            h = np.where(h > 0, h, SLOPE * h)
    return h
