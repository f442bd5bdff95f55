"""Discrete latents of a causal graph, each of whose joint states puts features about a mean of its own."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from scipy.spatial.distance import pdist

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Positive, Seed, Share, check_memory

MOST_JOINT = 4096  # joint states of all latents
TRIES = 10_000


def kivva2021(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 10_000,
    latents: Annotated[int, Bounds(1, 8)] = 3,
    variables: Annotated[int, Bounds(1, 1000)] = 8,
    states: Annotated[int, Bounds(2, 8)] = 3,
    width: Annotated[int, Bounds(1, 1000)] = 5,
    separation: Positive = 20.0,
    edges: Share = 0.6,
    density: Share = 0.5,
    skewed: bool = False,
) -> Data:
    """Mixtures of joint states, as Kivva, Rajendran, Ravikumar & Aragam (2021), "Learning latent causal graphs via
    mixture oracles", draw them.

        size_h ~ uniform on 2, ..., states;  an edge between any two latents with probability `edges`, in random order
        p(state of h | states of parents): integers from 1 to 4, uniform, over their sum
        parent_vh ~ Bernoulli(density), given that no variable is without a parent, no latent's variables are all
        among another's, and columns are linearly independent                                       (variable, latent)
        x_v ~ N(mean of the states of its parents, sd^2 I): means uniform on the unit sphere of `width` dimensions

    sd is such that the two closest means of each variable are `separation` of it apart (those of the paper were about
    20). With width 1 means are numbers at distances of separation, moved by up to a fifth. skewed:
    noise has its own square added. States are numbered by the mean of all features in them; a variable is a view.

    Truth: z (the states' numbers), state (the same), mask (feature, latent), graph.
    """
    if states**latents > MOST_JOINT:
        reject("states", f"{states} of {latents} latents", f"{MOST_JOINT} joint states at most")
    check_memory("width", width, 8.0 * rows * variables * width)
    rng = np.random.default_rng([2021, seed])
    size = rng.integers(2, states + 1, latents)
    order = rng.permutation(latents)
    graph = np.zeros((latents, latents), dtype=int)
    graph[np.ix_(order, order)] = np.triu(rng.random((latents, latents)) < edges, 1)
    parent = _bipartite(rng, variables, latents, density)
    z = np.zeros((rows, latents), dtype=np.int64)
    for k in order:
        parents = np.flatnonzero(graph[:, k])
        table = rng.integers(1, 5, (*size[parents], size[k])).astype(float)
        chance = (table / table.sum(-1, keepdims=True))[tuple(z[:, parents].T)]  # (rows, state)
        z[:, k] = (rng.random(rows)[:, None] > chance.cumsum(-1)[..., :-1]).sum(-1)
    parts = []
    for own in parent:
        parents = np.flatnonzero(own)
        cells = int(np.prod(size[parents]))
        if width == 1:
            mean = (rng.permutation(cells) + rng.uniform(-0.1, 0.1, cells))[:, None] / 0.8
        else:
            mean = rng.standard_normal((cells, width))
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        apart = pdist(mean).min()
        noise = rng.standard_normal((rows, width))
        noise = noise + skewed * (noise**2 - 1)
        slot = np.ravel_multi_index(tuple(z[:, parents].T), tuple(size[parents]))
        parts.append(mean[slot] * separation / apart + noise)
    x = np.concatenate(parts, 1)
    z = numbered(z, size, x)
    mask, truth_z = np.repeat(parent, width, 0).astype(int), z.astype(float)
    truth = {"z": truth_z, "state": z, "mask": mask, "graph": graph}
    view = None if width == 1 or variables == 1 else np.repeat([f"x{v}" for v in range(variables)], width)
    return Data(x, truth=truth, view=view, name="kivva2021")


def _bipartite(rng: np.random.Generator, variables: int, latents: int, density: float) -> np.ndarray:
    """(variable, latent) bool, by rejection."""
    for _ in range(TRIES if variables >= latents else 0):
        parent = rng.random((variables, latents)) < density
        columns = parent.T.astype(int)
        within = (columns @ (1 - columns).T == 0) & ~np.eye(latents, dtype=bool)
        if parent.any(1).all() and not within.any() and np.linalg.matrix_rank(columns) == latents:
            return parent
    found = f"{variables} at density {density:g} for {latents} latents"
    reject("variables", found, "more of them, or another density: no graph tells all latents apart")


def numbered(z: np.ndarray, size: np.ndarray, x: np.ndarray) -> np.ndarray:
    """States (rows, latent) numbered by the mean of standardised features in them."""
    total, out = ((x - x.mean(0)) / x.std(0)).sum(1), z.copy()
    for k, states in enumerate(size):
        mean = [total[z[:, k] == s].mean() if (z[:, k] == s).any() else np.inf for s in range(states)]
        out[:, k] = np.argsort(np.argsort(mean))[z[:, k]]
    return out
