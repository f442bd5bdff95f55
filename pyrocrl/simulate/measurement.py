"""Latents measured by features of their own: binary ones under interventions, ones of linear equations, and causes."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Fraction, Positive, Seed, Size
from pyrocrl.program import check_sizes, check_whole
from pyrocrl.simulate.linear_sem import _weighted_graph

MOST_PARENTS = 2  # latents that one feature depends on
TRIES = 10_000


def jiang2023(
    seed: Seed = 0,
    samples: int = 2000,
    latents: int = 5,
    features: int = 15,
    density: float = 0.4,
    spacing: float = 3.0,
) -> Data:
    """A measurement model in the setting of Jiang & Aragam (2023), "Learning nonparametric latent causal graphs with
    unknown interventions"; the paper has no experiments.

    h_k ~ Bernoulli(sigmoid(b_k + sum_j w_jk h_j)): graph Erdos-Renyi of the density under a random order, weights
    +-U(1.5, 3), b_k = U(-.5, .5) less half the sum of the weights. Every feature depends on one or two latents,
    every latent acts on two features or more, and no latent's features are all among another's. x_j ~ N(mean, 1)
    where the mean is a table of the states of its latents without further structure: one value for each combination,
    at multiples of `spacing`, moved by U(-.2, .2) of it, in random order.

    Environments "observational" and one for each latent in random order, "env_0", ..., which draws its target from
    Bernoulli(U(.3, .7)) without parents. samples: rows in each. Truth: z (the states), mask (feature, latent), graph,
    targets; targets are not given to the fit.
    """
    check_sizes(features, latents, least=2)
    check_whole("samples", samples, 2)
    if not 0 <= density <= 1:
        reject("density", density, "a number from 0 to 1")
    rng = np.random.default_rng(seed)
    graph, weight = _weighted_graph(rng, latents, density, 1.5, 3.0)
    bias = rng.uniform(-0.5, 0.5, latents) - weight.sum(0) / 2
    mask = _mask(rng, features, latents)
    hits = [-1, *rng.permutation(latents).tolist()]
    names = ["observational", *(f"env_{e}" for e in range(latents))]
    parts = [_states(rng, samples, graph, weight, bias, hit) for hit in hits]
    z = np.concatenate(parts)
    x = rng.standard_normal((len(z), features))
    for j in range(features):
        parents = np.flatnonzero(mask[j])
        cells = 2**parents.size
        level = spacing * (rng.permutation(cells) + rng.uniform(-0.2, 0.2, cells))
        x[:, j] += level[z[:, parents] @ (1 << np.arange(parents.size))]
    targets = {name: (int(hit),) for name, hit in zip(names, hits, strict=True) if hit >= 0}
    truth = {"z": z.astype(float), "mask": mask.astype(int), "graph": graph.astype(int), "targets": targets}
    return Data(x=x, env=np.repeat(names, samples), truth=truth, name="jiang2023")


def _mask(rng: np.random.Generator, features: int, latents: int) -> np.ndarray:
    """(feature, latent) bool, by rejection."""
    for _ in range(TRIES):
        count = rng.integers(1, min(MOST_PARENTS, latents) + 1, features)
        rank = rng.permuted(np.tile(np.arange(latents), (features, 1)), axis=1)
        mask = rank < count[:, None]
        columns = mask.T.astype(int)
        within = (columns @ (1 - columns).T == 0) & ~np.eye(latents, dtype=bool)  # all features of i are among j's
        if columns.sum(1).min() >= 2 and not within.any():
            return mask
    reject("features", features, f"more features for {latents} latents: none of {TRIES} masks tells all latents apart")


def _states(
    rng: np.random.Generator, rows: int, graph: np.ndarray, weight: np.ndarray, bias: np.ndarray, hit: int
) -> np.ndarray:
    """(rows, latent) in {0, 1}, ancestors first; `hit` is drawn without its parents."""
    reach = np.linalg.matrix_power(np.eye(len(graph)) + graph, len(graph)) > 0
    z = np.zeros((rows, len(graph)), dtype=np.int64)
    for k in np.argsort(reach.sum(0)):
        probability = 1.0 / (1.0 + np.exp(-(bias[k] + z @ weight[:, k])))
        if k == hit:
            probability = np.full(rows, rng.uniform(0.3, 0.7))
        z[:, k] = rng.random(rows) < probability
    return z


def silva2006(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 1000,
    latents: Annotated[int, Bounds(2)] = 3,
    children: Annotated[int, Bounds(1)] = 3,
    graph: Literal["chain", "random"] = "chain",
    law: Literal["gaussian", "laplace", "uniform"] = "gaussian",
    noise: Positive = 0.3,
) -> Data:
    """Latents of linear equations, each with features of its own, as Silva et al. (2006) have it.

        z_k = sum_j w_jk z_j + e_k,  |w_jk| ~ U(.5, 1.5) of random sign, scaled to unit variance      (data, latent)
        x_j = l_j z_c(j) + noise u_j,  |l_j| ~ U(.8, 1.5) of random sign                              (data, feature)

    e and u are of unit variance before scaling, all of the `law`. Latents are a chain or of a random graph in which
    half of the pairs are joined, in random order; each has `children` features, in random order as well. Truth: z,
    mask, loadings, graph, weight.
    """
    rng = np.random.default_rng([2006, seed])
    order = rng.permutation(latents)
    any_two = np.triu(rng.random((latents, latents)) < 0.5, 1).astype(float)
    upper = np.eye(latents, k=1) if graph == "chain" else any_two
    weight = np.zeros((latents, latents))
    weight[np.ix_(order, order)] = upper * rng.uniform(0.5, 1.5, upper.shape) * rng.choice([-1, 1], upper.shape)

    def drawn(*shape: int) -> np.ndarray:
        if law == "gaussian":
            return rng.standard_normal(shape)
        return rng.laplace(size=shape) / 2**0.5 if law == "laplace" else rng.uniform(-(3**0.5), 3**0.5, shape)

    total = np.linalg.inv(np.eye(latents) - weight)  # (from, to)
    covariance = total.T @ total
    unit = np.sqrt(np.diag(covariance))
    z = drawn(rows, latents) @ total / unit
    own = rng.permutation(np.repeat(np.arange(latents), children))
    mask = (own[:, None] == np.arange(latents)).astype(int)
    loadings = mask * (rng.uniform(0.8, 1.5, len(own)) * rng.choice([-1, 1], len(own)))[:, None]
    x = z @ loadings.T + noise * drawn(rows, len(own))
    truth = {"z": z, "mask": mask, "loadings": loadings, "graph": (weight != 0).astype(int)}
    truth["weight"] = weight * unit[:, None] / unit
    return Data(x, truth=truth, name="silva2006")


def markham2024(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 1000,
    features: Annotated[int, Bounds(2)] = 15,
    latents: Size = 5,
    density: Fraction = 0.2,
) -> Data:
    """Independent latents with a pure child each, as in Markham et al. (2023), Neuro-causal factor analysis.

        mask: a pure child for each latent, of every other feature one latent at random, and of the
            entries that are left of these features the share `density`            (feature, latent)
        w_jk of size U(.5, 2) and random sign where mask_jk, v_j ~ U(.5, 2)         (feature, latent), (feature,)
        z ~ N(0, I),  x ~ N(w z, diag v)                                           (data, latent), (data, feature)

    Features are in random order. A latent of its pure child alone would be noise: masks that have one are drawn again.
    Truth: z, mask, loadings. Raises InputError where too few entries are there for a second child of each latent.
    """
    rng, most = np.random.default_rng([2024, seed]), features - latents
    left = round(density * most * (latents - 1))
    if most < 1 or most + left < latents:
        reject("latents", latents, "so few that the other features give each a second child")
    for _ in range(TRIES):
        own = np.eye(latents)[rng.integers(latents, size=most)]
        rest = np.argwhere(own == 0)
        own[tuple(rest[rng.permutation(len(rest))[:left]].T)] = 1
        if own.any(0).all():
            break
    else:
        reject("density", density, f"a larger one: of {TRIES} masks none has a second child of each latent")
    mask = rng.permutation(np.concatenate([np.eye(latents), own]))
    loadings = mask * rng.uniform(0.5, 2.0, mask.shape) * rng.choice([-1, 1], mask.shape)
    variance = rng.uniform(0.5, 2.0, features)
    z = rng.standard_normal((rows, latents))
    x = z @ loadings.T + np.sqrt(variance) * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "mask": mask.astype(int), "loadings": loadings}, name="markham2024")
