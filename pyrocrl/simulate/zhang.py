"""A chain of latents with relu links under shifts of single latents and of pairs, behind mixings of three kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import one_of, reject
from pyrocrl.options import Deviation, Seed
from pyrocrl.program import check_sizes, check_whole

MIXINGS = {"identity": 10, "linear": 12, "mlp": 20}  # columns of x unless told otherwise


def zhang2023(
    seed: Seed = 0,
    samples: int = 1000,
    latents: int = 5,
    mixing: str = "identity",
    intervention: str = "shift",
    mechanism: str = "relu",
    pairs: Sequence[Sequence[int]] = (),
    features: int | None = None,
    noise: Deviation = 0.1,
) -> Data:
    """Zhang et al. (2023), "Identifiability guarantees for causal disentanglement from soft interventions".

    Chain z_0 = eps_0, z_k = eps_k + relu(z_{k-1}), eps ~ N(0, 1); mechanism="linear" drops the relu. Environment k
    adds 5 to eps_k (intervention="shift", as published), or doubles its deviation and adds 1 ("variance"), or sets
    z_k ~ N(2, 1/4) without its parent ("perfect"). An environment "target_j+k" for each pair (j, k) does both.

    mixing: "identity" pads z with columns of noise (published: with zeros, which vary in no row); "linear" is a dense
    Gaussian matrix; "mlp" two layers, leaky ReLU of slope .2 between them, each of orthonormal columns on standardised
    inputs, hence injective. Every column of x has noise of deviation `noise` times its own over all rows ("identity":
    `noise`). samples: rows in each environment. Truth: z, innovations (z less what the parent gives), graph and weight
    (parent, child), targets.
    """
    one_of("mixing", mixing, MIXINGS)
    one_of("intervention", intervention, ("shift", "variance", "perfect"))
    one_of("mechanism", mechanism, ("relu", "linear"))
    features = MIXINGS[mixing] if features is None else features
    check_sizes(features, latents)
    check_whole("samples", samples, 2)
    for pair in pairs:
        if len(set(pair)) != 2 or not all(isinstance(k, int | np.integer) and 0 <= k < latents for k in pair):
            reject("pairs", repr(tuple(pair)), f"two different latents of 0 to {latents - 1}")
    rng = np.random.default_rng(seed)
    hits: list[tuple[int, ...]] = [(), *((k,) for k in range(latents)), *(tuple(pair) for pair in pairs)]
    drawn = [_chain(rng, samples, latents, hit, intervention, mechanism) for hit in hits]
    z, innovations = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    names = ["observational", *("target_" + "+".join(map(str, hit)) for hit in hits[1:])]
    targets = {name: hit for name, hit in zip(names, hits, strict=True) if hit}
    x = _mix(rng, z, features, mixing)
    spread = np.ones(features) if mixing == "identity" else x.std(0)
    graph = np.eye(latents, k=1, dtype=int)
    return Data(
        x=x + noise * spread * rng.standard_normal(x.shape),
        env=np.repeat(names, samples),
        targets=targets,
        truth={"z": z, "innovations": innovations, "graph": graph, "weight": graph.astype(float), "targets": targets},
        name="zhang2023",
    )


def _chain(
    rng: np.random.Generator, rows: int, latents: int, hit: Sequence[int], intervention: str, mechanism: str
) -> tuple[np.ndarray, np.ndarray]:
    """z and its innovations, (rows, latent), under the interventions on `hit`."""
    z, innovations = np.zeros((rows, latents)), np.zeros((rows, latents))
    for k in range(latents):
        eps = rng.standard_normal(rows)
        if k in hit:
            eps = {"shift": eps + 5.0, "variance": 2.0 * eps + 1.0, "perfect": 0.5 * eps + 2.0}[intervention]
        parent = z[:, k - 1] if k and not (k in hit and intervention == "perfect") else np.zeros(rows)
        innovations[:, k] = eps
        z[:, k] = eps + (np.maximum(parent, 0.0) if mechanism == "relu" else parent)
    return z, innovations


def _mix(rng: np.random.Generator, z: np.ndarray, features: int, mixing: str) -> np.ndarray:
    """(rows, feature) without noise."""
    latents = z.shape[1]
    if mixing == "identity":
        return np.pad(z, ((0, 0), (0, features - latents)))
    if mixing == "linear":
        return z @ rng.standard_normal((latents, features))
    standard = (z - z.mean(0)) / z.std(0)
    hidden = standard @ _orthonormal(rng, latents, features)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    return (hidden - hidden.mean(0)) / hidden.std(0) @ _orthonormal(rng, features, features)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) of rank `rows`, rows orthonormal."""
    return np.linalg.qr(rng.standard_normal((columns, rows)))[0].T
