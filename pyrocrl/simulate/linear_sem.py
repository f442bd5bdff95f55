"""Linear mixing of a linear Gaussian structural equation model under one intervention per latent."""

from __future__ import annotations

import numpy as np

from ..data import Data
from ..errors import reject
from ..program import check_sizes


def squires2023_hard(seed: int = 0, samples: int = 2500, latents: int = 5, features: int = 10) -> Data:
    """Squires et al. (2023), "Linear causal disentanglement via interventions", perfect interventions.

    Observational B_0 = Omega^(1/2) (I - A) with B_0 z ~ N(0, I): graph Erdos-Renyi with density .75 under a random
    order, weights +-U(.25, 1), Omega^(1/2) ~ U(2, 4). Environment k replaces row k of B_0 by lambda e_k,
    lambda ~ U(6, 8). z = H x with H (latent, feature) ~ U(-2, 2), each row divided by its signed largest entry;
    x = pinv(H) z has exactly rank `latents`.

    samples: rows in each of the latents + 1 environments. Unlike the paper, which perturbs precisions by a Wishart,
    rows are drawn. Truth: z, graph and weight (parent, child), targets.
    """
    return _squires2023(seed, samples, latents, features, hard=True)


def squires2023_soft(seed: int = 0, samples: int = 2500, latents: int = 5, features: int = 10) -> Data:
    """As `squires2023_hard` with soft interventions: row k keeps its parents, its entries are drawn anew.

    All non-zero entries of row k of B_0, the diagonal included, become U(1.75, 2). Outside the theorem for perfect
    interventions: latents are identified up to their ancestors.
    """
    return _squires2023(seed, samples, latents, features, hard=False)


def _squires2023(seed: int, samples: int, latents: int, features: int, hard: bool) -> Data:
    check_sizes(features, latents)
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 2:
        reject("samples", repr(samples), "a whole number from 2 on")
    rng = np.random.default_rng(seed)
    rank = rng.permutation(latents)
    before = rank[:, None] < rank[None, :]
    graph = before & (rng.random((latents, latents)) < 0.75)  # (parent, child)
    size, sign = rng.uniform(0.25, 1.0, graph.shape), rng.choice([-1.0, 1.0], graph.shape)
    weight = np.where(graph, sign * size, 0.0)
    mechanism = rng.uniform(2.0, 4.0, latents)[:, None] * (np.eye(latents) - weight.T)  # B_0, rows are children
    unmixing = rng.uniform(-2.0, 2.0, (latents, features))
    largest = np.abs(unmixing).argmax(1)
    unmixing /= unmixing[np.arange(latents), largest][:, None]

    z, env = [], []
    for k in range(-1, latents):
        changed = mechanism.copy()
        if k >= 0 and hard:
            changed[k] = 0.0
            changed[k, k] = rng.uniform(6.0, 8.0)
        elif k >= 0:
            changed[k] = np.where(changed[k] != 0, rng.uniform(1.75, 2.0, latents), 0.0)
        z.append(np.linalg.solve(changed, rng.standard_normal((latents, samples))).T)
        env += ["observational" if k < 0 else f"target_{k}"] * samples
    latent = np.concatenate(z)
    targets = {f"target_{k}": (k,) for k in range(latents)}
    return Data(
        x=latent @ np.linalg.pinv(unmixing).T,
        env=env,
        targets=targets,
        truth={"z": latent, "graph": graph.astype(int), "weight": weight, "targets": targets},
        name="squires2023_hard" if hard else "squires2023_soft",
    )
