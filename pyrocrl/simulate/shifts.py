"""Nonlinear structural equations over observed variables, some of whose mechanisms differ between environments."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import one_of
from pyrocrl.options import Seed
from pyrocrl.program import check_whole
from pyrocrl.simulate.linear_sem import _weighted_graph

HIDDEN = 6  # units of a mechanism's random network
KINDS = ("function", "noise", "mean")  # how a mechanism changes
Mechanism = Callable[[np.ndarray], np.ndarray]


def mechanism_shift2024(
    seed: Seed = 0,
    samples: int = 1000,
    latents: int = 5,
    environments: int = 6,
    shifts: int = 2,
    density: float = 0.5,
    mechanism: str = "nonlinear",
    reference: bool = False,
) -> Data:
    """Sparse mechanism shifts (Perry et al. 2022, "Causal discovery in heterogeneous environments under the sparse
    mechanism shift hypothesis") among additive noise models (Chen et al. 2023, "iSCAN"), more than two environments.

    z_k = f_k(parents) + s_k eps, eps ~ N(0, 1): graph Erdos-Renyi of the density under a random order, s_k ~ U(.5, 1),
    f_k = sum_h a_h tanh(b_h' parents + c_h) with a network of 6 units drawn at random and scaled to deviation 1.5 over
    standard normal parents; mechanism="linear": weights +-U(.5, 1.5). In each environment `shifts` mechanisms differ,
    no two environments alike and each mechanism shared by half of the environments or more: a new f_k ("function";
    roots have none), s_k times or over U(1.8, 3) ("noise"), or a constant +-U(1, 2) added ("mean"). x = z: everything
    is observed.

    samples: rows in each environment; reference: one more environment, "observational", without shifts. Truth: z,
    graph, targets (environment -> shifted mechanisms); targets are not given to the fit.
    """
    for name, value in (("samples", samples), ("latents", latents), ("environments", environments)):
        check_whole(name, value, 2)
    one_of("mechanism", mechanism, ("nonlinear", "linear"))
    often = (environments + int(reference)) // 2
    most = min(latents, latents * often // environments)
    check_whole("shifts", shifts, 1, most)
    rng = np.random.default_rng(seed)
    graph, weight = _weighted_graph(rng, latents, density, 0.5, 1.5)
    reach = np.linalg.matrix_power(np.eye(latents) + graph, latents) > 0
    order = np.argsort(reach.sum(0))  # by the number of ancestors: parents first

    def function(k: int, fresh: bool) -> Mechanism:
        parents = np.flatnonzero(graph[:, k])
        if mechanism == "nonlinear":
            return _network(rng, parents)
        change = rng.choice([-1.0, 1.0], len(parents)) * rng.uniform(0.5, 1.5, len(parents))
        row = change if fresh else weight[parents, k]
        return lambda z: z[:, parents] @ row

    base = [function(k, fresh=False) for k in range(latents)]
    spread = rng.uniform(0.5, 1.0, latents)
    hit = _assign(rng, environments, latents, shifts, often)
    names = [f"env_{e}" for e in range(environments)]
    rows = [np.zeros(latents, dtype=bool)] * int(reference) + list(hit)
    labels = ["observational"] * int(reference) + names
    parts = []
    for own in rows:
        z = np.zeros((samples, latents))
        for k in order:
            f, s, mean = base[k], spread[k], 0.0
            kind = rng.choice(KINDS[0 if graph[:, k].any() else 1 :]) if own[k] else ""
            if kind == "function":
                f = function(k, fresh=True)
            elif kind == "noise":
                s *= rng.uniform(1.8, 3.0) ** rng.choice([-1.0, 1.0])
            elif kind == "mean":
                mean = rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 2.0)
            z[:, k] = f(z) + mean + s * rng.standard_normal(samples)
        parts.append(z)
    latent = np.concatenate(parts)
    targets = {name: tuple(int(k) for k in np.flatnonzero(own)) for name, own in zip(names, hit, strict=True)}
    return Data(
        x=latent,
        env=np.repeat(labels, samples),
        truth={"z": latent, "graph": graph.astype(int), "targets": targets},
        name="mechanism_shift2024",
    )


def _network(rng: np.random.Generator, parents: np.ndarray) -> Mechanism:
    """sum_h a_h tanh(b_h' z_parents + c_h), of mean 0 and deviation 1.5 over standard normal z; 0 without parents."""
    if not parents.size:
        return lambda z: np.zeros(len(z))
    b = rng.standard_normal((parents.size, HIDDEN)) / np.sqrt(parents.size)
    c, a = rng.standard_normal(HIDDEN), rng.standard_normal(HIDDEN)
    probe = np.tanh(rng.standard_normal((4000, parents.size)) @ b + c) @ a
    mean, scale = probe.mean(), 1.5 / probe.std()
    return lambda z: scale * (np.tanh(z[:, parents] @ b + c) @ a - mean)


def _assign(rng: np.random.Generator, environments: int, latents: int, shifts: int, most: int) -> np.ndarray:
    """(env, latent) bool: `shifts` mechanisms an environment, none shifted more than `most` times, rows distinct
    where there are enough combinations of them."""
    distinct = min(environments, comb(latents, shifts))
    while True:
        order = rng.permuted(np.tile(np.arange(latents), (environments, 1)), axis=1)[:, :shifts]
        hit = np.zeros((environments, latents), dtype=bool)
        np.put_along_axis(hit, order, True, axis=1)
        if hit.sum(0).max() <= most and len(np.unique(hit, axis=0)) >= distinct:
            return hit
