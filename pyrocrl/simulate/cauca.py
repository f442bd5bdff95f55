"""Invertible nonlinear mixing of as many features as latents: causal component analysis."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_whole
from pyrocrl.simulate.mixtures import linear_r2

LEAK = 0.1
LEAST_DETERMINANT = 0.1
SHIFT = 2.0


def cauca(
    seed: Seed = 0,
    samples: int = 20_000,
    latents: int = 4,
    layers: Annotated[int, Bounds(1, 100)] = 3,
    interventions: Annotated[int, Bounds(1, 100)] = 1,
    density: Annotated[float, Bounds(0.01, 1, "[]")] = 0.5,
) -> Data:
    """Liang et al. (2023), "Causal component analysis": the design of their synthetic experiments.

        graph ~ Erdos-Renyi(density) under a random order, at least one edge; weights ~ U(-1, 1)   (parent, child)
        z_i,k = sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, 1)                                       (data, latent)
        target_k:  z_i,k = 2 + eps_i,k                                  its parents lose their say
        x_i   = g(A_m .. g(A_1 z_i)),  g(y) = tanh(y) + .1 y            `layers` times            (data, latent)

    Entries of A are U(0, 1), or N(0, 1) where that gave |det A| < .1. There are as many features as latents and no
    noise. interventions: environments for each latent, target_k, target_k_2 and so on; the shift of every second one
    is -2 (the paper: one, +2). samples: rows of each environment (the paper: 200,000). The R^2 of linear regression
    x -> z is in the data's name. Truth: z, graph and weight, targets.
    """
    for name, value, low in (
        ("samples", samples, 2),
        ("latents", latents, 2),
    ):
        check_whole(name, value, low)
    rng = np.random.default_rng([2023, 17, latents, seed])
    rank = rng.permutation(latents)
    graph = np.zeros((latents, latents), dtype=bool)
    while not graph.any():
        graph = (rank[:, None] < rank) & (rng.random((latents, latents)) < density)
    weight = np.where(graph, rng.uniform(-1.0, 1.0, graph.shape), 0.0)
    matrices = [_matrix(rng, latents) for _ in range(layers)]
    labels: list[str] = []
    parts: list[np.ndarray] = []
    for target in [-1, *(k for _ in range(interventions) for k in range(latents))]:
        noise = rng.standard_normal((samples, latents))
        changed = weight.copy()
        turn = (len(parts) - 1) // latents
        if target >= 0:
            changed[:, target] = 0.0
            noise[:, target] += SHIFT if turn % 2 == 0 else -SHIFT
        parts.append(noise @ np.linalg.inv(np.eye(latents) - changed))
        name = f"target_{target}" + (f"_{turn + 1}" if turn else "")
        labels.append("observational" if target < 0 else name)
    z = np.concatenate(parts)
    x = z
    for matrix in matrices:
        x = x @ matrix.T
        x = np.tanh(x) + LEAK * x
    targets = {name: ((i % latents),) for i, name in enumerate(labels[1:])}
    rows = rng.permutation(len(x))[:20_000]  # `linear_r2` fits on the first half
    return Data(
        x=x,
        env=np.repeat(labels, samples),
        targets=targets,
        truth={"z": z, "graph": graph.astype(int), "weight": weight, "targets": targets},
        name=f"cauca, linear R2 {linear_r2(x[rows], z[rows]):.3f}",
    )


def _matrix(rng: np.random.Generator, size: int) -> np.ndarray:
    matrix = rng.uniform(0.0, 1.0, (size, size))
    while abs(np.linalg.det(matrix)) < LEAST_DETERMINANT:
        matrix = rng.standard_normal((size, size))
    return matrix
