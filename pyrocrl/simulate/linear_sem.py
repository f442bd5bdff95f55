"""Linear mixings of linear Gaussian structural equation models under one intervention per latent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Positive, Seed
from pyrocrl.program import check_sizes, check_whole


def squires2023_hard(seed: Seed = 0, samples: int = 2500, latents: int = 5, features: int = 10) -> Data:
    """Squires et al. (2023), "Linear causal disentanglement via interventions", perfect interventions.

    Observational B_0 = Omega^(1/2) (I - A) with B_0 z ~ N(0, I): graph Erdos-Renyi with density .75 under a random
    order, weights +-U(.25, 1), Omega^(1/2) ~ U(2, 4). Environment k replaces row k of B_0 by lambda e_k,
    lambda ~ U(6, 8). z = H x with H (latent, feature) ~ U(-2, 2), each row divided by its signed largest entry;
    x = pinv(H) z has exactly rank `latents`.

    samples: rows in each of the latents + 1 environments. Unlike the paper, which perturbs precisions by a Wishart,
    rows are drawn. Truth: z, graph and weight (parent, child), targets.
    """
    return _squires2023(seed, samples, latents, features, hard=True)


def squires2023_soft(seed: Seed = 0, samples: int = 2500, latents: int = 5, features: int = 10) -> Data:
    """As `squires2023_hard` with soft interventions: row k keeps its parents, its entries are drawn anew.

    All non-zero entries of row k of B_0, the diagonal included, become U(1.75, 2). Outside the theorem for perfect
    interventions: latents are identified up to their ancestors.
    """
    return _squires2023(seed, samples, latents, features, hard=False)


def squires2023_sparse(
    seed: Seed = 0,
    samples: int = 2500,
    latents: int = 20,
    features: int | None = None,
    parents: Positive = 1.0,
) -> Data:
    """As `squires2023_hard` with many latents and sparse graphs: `parents` of a latent on average, of a long order.

    The density is 2 parents / latents (at most 1) in place of .75. features: latents + 5, unless given.
    """
    features = latents + 5 if features is None else features
    _check(samples, latents, features)
    return _squires2023(seed, samples, latents, features, hard=True, density=min(1.0, 2.0 * parents / latents))


def _squires2023(
    seed: int, samples: int, latents: int, features: int, hard: bool, density: float | None = None
) -> Data:
    _check(samples, latents, features)
    rng = np.random.default_rng(seed)
    graph, weight = _weighted_graph(rng, latents, 0.75 if density is None else density, 0.25, 1.0)
    mechanism = rng.uniform(2.0, 4.0, latents)[:, None] * (np.eye(latents) - weight.T)  # B_0, rows are children
    unmixing = rng.uniform(-2.0, 2.0, (latents, features))
    largest = np.abs(unmixing).argmax(1)
    unmixing /= unmixing[np.arange(latents), largest][:, None]

    z = []
    for k in range(-1, latents):
        changed = mechanism.copy()
        if k >= 0 and hard:
            changed[k] = 0.0
            changed[k, k] = rng.uniform(6.0, 8.0)
        elif k >= 0:
            changed[k] = np.where(changed[k] != 0, rng.uniform(1.75, 2.0, latents), 0.0)
        z.append(np.linalg.solve(changed, rng.standard_normal((latents, samples))).T)
    mixing = np.linalg.pinv(unmixing)
    name = "sparse" if density is not None else "hard" if hard else "soft"
    return _labelled(f"squires2023_{name}", z, mixing, graph, weight)


def varici2024_linear(seed: Seed = 0, samples: int = 5000, latents: int = 5, features: int = 15) -> Data:
    """Varici et al. (2024), "Score-based causal representation learning", linear SEM under perfect interventions.

    Graph Erdos-Renyi with density .5 under a random order, weights +-U(.5, 1.5), noise variances U(.5, 1.5), no
    means. Environment k cuts the parents of latent k and multiplies its noise variance by 5. x = G z with
    G (feature, latent) standard normal; no observation noise, so x has exactly rank `latents`.

    samples: rows in each of the latents + 1 environments. Truth: z, graph and weight (parent, child), targets.
    """

    def mixed(rng: np.random.Generator, *shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    return _varici2024("varici2024_linear", seed, samples, latents, features, 5.0, mixed)


def acarturk2024(seed: Seed = 0, samples: int = 10_000, latents: int = 3, features: int = 15) -> Data:
    """Acarturk et al. (2024), "Sample complexity of interventional causal representation learning", hard interventions.

    Latents as those of `varici2024_linear`, but that environment k multiplies the noise variance of latent k by .25.
    x = Q R z: Q (feature, latent) random orthonormal columns, R entries U(-.5, .5) of singular values that differ by a
    factor of 10 at most. Published of 3 or 5 latents, 15 features and 316 to 100,000 rows in each of the latents + 1
    environments (`samples`). Truth: z, graph and weight (parent, child), targets.
    """
    return _varici2024("acarturk2024", seed, samples, latents, features, 0.25, _well_mixed)


def _well_mixed(rng: np.random.Generator, features: int, latents: int) -> np.ndarray:
    basis = np.linalg.qr(rng.standard_normal((features, latents)))[0]
    while True:
        inside = rng.random((latents, latents)) - 0.5
        size = np.linalg.svd(inside, compute_uv=False)
        if size[-1] >= 0.1 * size[0]:
            return basis @ inside


def _varici2024(
    name: str,
    seed: int,
    samples: int,
    latents: int,
    features: int,
    changed: float,
    mixed: Callable[[np.random.Generator, int, int], np.ndarray],
) -> Data:
    """changed: what an intervention multiplies its target's noise variance by; mixed: draws (feature, latent)."""
    _check(samples, latents, features)
    rng = np.random.default_rng(seed)
    graph, weight = _weighted_graph(rng, latents, 0.5, 0.5, 1.5)
    variance = rng.uniform(0.5, 1.5, latents)
    mixing = mixed(rng, features, latents)
    z = []
    for k in range(-1, latents):
        cut, scale = weight.copy(), np.sqrt(variance)
        if k >= 0:
            cut[:, k] = 0.0
            scale[k] *= np.sqrt(changed)
        noise = scale[:, None] * rng.standard_normal((latents, samples))
        z.append(np.linalg.solve(np.eye(latents) - cut.T, noise).T)
    return _labelled(name, z, mixing, graph, weight)


def _check(samples: int, latents: int, features: int) -> None:
    check_sizes(features, latents)
    check_whole("samples", samples, 2)


def _weighted_graph(
    rng: np.random.Generator, latents: int, density: float, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Erdos-Renyi graph under a random order, and weights +-U(low, high): (parent, child) both."""
    rank = rng.permutation(latents)
    before = rank[:, None] < rank[None, :]
    graph = before & (rng.random((latents, latents)) < density)
    size, sign = rng.uniform(low, high, graph.shape), rng.choice([-1.0, 1.0], graph.shape)
    return graph, np.where(graph, sign * size, 0.0)


def _labelled(name: str, z: list[np.ndarray], mixing: np.ndarray, graph: np.ndarray, weight: np.ndarray) -> Data:
    """x = z mixing^T of the observational environment and then one for each target, with its truth."""
    labels = ["observational", *(f"target_{k}" for k in range(len(z) - 1))]
    latent = np.concatenate(z)
    targets = {f"target_{k}": (k,) for k in range(len(z) - 1)}
    return Data(
        x=latent @ mixing.T,
        env=np.repeat(labels, [len(rows) for rows in z]),
        targets=targets,
        truth={"z": latent, "graph": graph.astype(int), "weight": weight, "targets": targets},
        name=name,
    )
