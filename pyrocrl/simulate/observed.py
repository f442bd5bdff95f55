"""Linear structural equations over observed variables, under interventions on a few of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Deviation, Natural, Positive, Seed, Share, Size
from pyrocrl.program import check_whole
from pyrocrl.simulate.linear_sem import _weighted_graph

MOST = 1000  # latents and environments, each of which solves as many equations as there are latents
SHIFT = 2.0  # of the target's mean
CUT_SD = 1.0  # noise of a target that is cut off from its parents
TAILS, OUTLYING = 3, 10.0  # degrees of freedom of heavy-tailed noise; how much larger an outlying row's noise is

Further = Annotated[int, Bounds(0, MOST)]
Outlying = Annotated[float, Bounds(0, 1, "[)")]


def squires2020(
    seed: Seed = 0,
    samples: Size = 1000,
    latents: int = 10,
    settings: Size = 5,
    neighbours: Positive = 1.5,
    intervention: Literal["shift", "perfect"] = "shift",
    told: bool = True,
    noise: Literal["gaussian", "student", "rows"] = "gaussian",
    outlying: Outlying = 0.0,
) -> Data:
    """Squires, Wang & Uhler (2020), "Permutation-based causal structure learning with unknown intervention targets".

    z_k = w_k' z_parents + eps, eps ~ N(0, 1): graph Erdos-Renyi with `neighbours` expected a node, random order,
    weights +-U(.25, 1). Each of `settings` environments, no more than nodes, intervenes on a node of its own: 2 added
    to its mean ("shift"), or its equation replaced by N(2, 1) ("perfect"). x = z: everything is observed.

    samples: rows in the observational and in every other environment; told: whether the fit is given the targets.
    noise: "student" is of Student's law of 3 degrees and variance 1 in each equation, in "rows" with one scale for all
    equations of a row; outlying: share of rows whose noise is `OUTLYING` times as large. Truth: z, graph and weight
    (parent, child), targets.
    """
    check_whole("latents", latents, 2, MOST)
    settings = min(settings, latents)
    rng = np.random.default_rng(seed)
    density = min(1.0, neighbours / (latents - 1))
    graph, weight = _weighted_graph(rng, latents, density, 0.25, 1.0)
    hit = rng.permutation(latents)[:settings]
    law = partial(_heavy, one=noise == "rows", tails=noise != "gaussian", outlying=outlying)
    parts = [_rows(rng, samples, weight, np.ones(latents), np.zeros(0, dtype=int), 0.0, False, law)]
    parts += [
        _rows(rng, samples, weight, np.ones(latents), np.array([k]), SHIFT, intervention == "perfect", law) for k in hit
    ]
    targets: dict[str, tuple[int, ...]] = {f"target_{k}": (int(k),) for k in hit}
    return _labelled("squires2020", parts, targets, graph, weight, told)


def peters2016(
    seed: Seed = 0,
    rows: Size = 200,
    latents: int = 7,
    environments: Annotated[int, Bounds(1, MOST)] = 3,
    density: Share = 0.5,
    shifted: Natural = 2,
    strong: Further = 0,
) -> Data:
    """A response among other columns, which environments shift, as in Peters, Buehlmann & Meinshausen (2016), "Causal
    inference by using invariant prediction".

    z_k = w_k' z_parents + eps, eps ~ N(0, 1): an edge from each earlier column with this density, weights +-U(.5, 1.5).
    The response, column latents // 2, is called y. Each environment but the first adds SHIFT to the means of `shifted`
    other columns, drawn at random. x = z: everything is observed.

    rows: in each environment; strong: further environments, `strong_<i>`, in which every other column is shifted by
    +-U(2, 6). Truth: z, graph and weight (parent, child), targets, which the fit is not given.
    """
    check_whole("latents", latents, 2, MOST)
    check_whole("shifted", shifted, 0, latents - 1)
    rng = np.random.default_rng(seed)
    graph = np.triu(rng.random((latents, latents)) < density, 1)
    weight = graph * rng.uniform(0.5, 1.5, graph.shape) * rng.choice([-1.0, 1.0], graph.shape)
    response = latents // 2
    others, spread = np.delete(np.arange(latents), response), np.ones(latents)
    parts, targets = [_rows(rng, rows, weight, spread, others[:0], 0.0, False)], {}
    for e in range(1, environments):
        hit = np.sort(rng.choice(others, shifted, replace=False))
        targets[f"env_{e}"] = tuple(int(k) for k in hit)
        parts.append(_rows(rng, rows, weight, spread, hit, SHIFT, False))
    for e in range(strong):
        far = rng.uniform(2.0, 6.0, len(others)) * rng.choice([-1.0, 1.0], len(others))
        targets[f"strong_{e}"] = tuple(int(k) for k in others)
        parts.append(_rows(rng, rows, weight, spread, others, far, False))
    z = np.concatenate(parts)
    names = ["y" if k == response else f"x{k}" for k in range(latents)]
    truth = {"z": z, "graph": graph.astype(int), "weight": weight, "targets": targets}
    return Data(z, np.repeat(["env_0", *targets], rows), feature_names=names, truth=truth, name="peters2016")


def lu2021(seed: Seed = 0, rows: Size = 1000, features: int = 10, noise: Deviation = 0.1, strong: Further = 0) -> Data:
    """A response among latents, in the manner of Lu et al. (2021), "Invariant causal representation learning": two of
    four latents are its parents, one its child, and one is correlated with it alone.

    z = (parent, parent, y, child, spurious): y of both parents, child of y, spurious of the first parent; weights
    +-U(.7, 1.3), noise N(0, 1). Columns are x = G z + noise deviation eps of all latents but y, G (feature, 4) standard
    normal, and last y itself. Environments: "control", and one for each of these latents, whose equation is N(+-2, 4)
    there. The paper mixes by a network, and scales noise; here the mixing is linear.

    rows: in each environment; strong: further environments, `strong_<i>`, in which every latent but y is shifted by
    +-U(2, 6). Truth: z, graph and weight (parent, child), targets, positions among the four.
    """
    check_whole("features", features, 5, MOST)
    rng = np.random.default_rng(seed)
    weight = np.zeros((5, 5))
    for parent, child in ((0, 2), (1, 2), (2, 3), (0, 4)):
        weight[parent, child] = rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.3)
    mixing, others = rng.standard_normal((features, 4)), np.array([0, 1, 3, 4])
    parts = [_rows(rng, rows, weight, np.ones(5), others[:0], 0.0, False)]
    targets: dict[str, tuple[int, ...]] = {}
    for place, k in enumerate(others):
        spread = np.ones(5)
        own = weight.copy()
        own[:, k], spread[k] = 0.0, 2.0
        parts.append(_rows(rng, rows, own, spread, np.array([k]), SHIFT * rng.choice([-1.0, 1.0]), False))
        targets[f"env_{place}"] = (place,)
    for e in range(strong):
        far = rng.uniform(2.0, 6.0, 4) * rng.choice([-1.0, 1.0], 4)
        parts.append(_rows(rng, rows, weight, np.ones(5), others, far, False))
        targets[f"strong_{e}"] = (0, 1, 2, 3)
    z = np.concatenate(parts)
    x = z[:, others] @ mixing.T
    x = np.column_stack([x + noise * rng.standard_normal(x.shape), z[:, 2]])
    truth = {"z": z, "graph": (weight != 0).astype(int), "weight": weight, "targets": targets}
    names = [*(f"x{j}" for j in range(features)), "y"]
    return Data(x, np.repeat(["control", *targets], rows), feature_names=names, truth=truth, name="lu2021")


def hagele2023(
    seed: Seed = 0,
    samples: Size = 200,
    latents: int = 20,
    settings: Size = 10,
    rows: Size = 20,
    graph: Literal["scale_free", "erdos_renyi"] = "scale_free",
) -> Data:
    """Haegele et al. (2023), "BaCaDI: Bayesian causal discovery with unknown interventions": few rows.

    Two edges a node, scale-free (each node is a child of two earlier ones, drawn by their degrees) or Erdos-Renyi;
    weights N(0, 1) moved away from 0 by .5, noise variance .1. Each of `settings` environments of `rows` rows replaces
    the equations of one to three nodes by N(+-2, 1). x = z. The paper's own draws of targets and of replaced equations
    are not published with its text: these are ours.

    samples: observational rows. Truth: z, graph and weight (parent, child), targets, which the fit is not given.
    """
    check_whole("latents", latents, 3, MOST)
    check_whole("settings", settings, 1, MOST)
    rng = np.random.default_rng(seed)
    if graph == "scale_free":
        there = _scale_free(rng, latents)
    else:
        there, _ = _weighted_graph(rng, latents, min(1.0, 4.0 / (latents - 1)), 0.5, 1.0)
    size = rng.standard_normal(there.shape)
    weight = np.where(there, size + 0.5 * np.sign(size), 0.0)
    spread = np.full(latents, np.sqrt(0.1))
    parts = [_rows(rng, samples, weight, spread, np.zeros(0, dtype=int), 0.0, True)]
    targets: dict[str, tuple[int, ...]] = {}
    for e in range(settings):
        hit = np.sort(rng.permutation(latents)[: rng.integers(1, 4)])
        parts.append(_rows(rng, rows, weight, spread, hit, SHIFT * rng.choice([-1.0, 1.0], len(hit)), True))
        targets[f"setting_{e}"] = tuple(int(k) for k in hit)
    return _labelled("hagele2023", parts, targets, there, weight, told=False)


def _scale_free(rng: np.random.Generator, latents: int) -> np.ndarray:
    """(parent, child) every node but the first two a child of two earlier ones, drawn by their degrees."""
    graph = np.zeros((latents, latents), dtype=bool)
    graph[0, 1] = True
    for k in range(2, latents):
        degree = (graph + graph.T)[:k, :k].sum(0).astype(float)
        graph[rng.choice(k, 2, replace=False, p=degree / degree.sum()), k] = True
    names = rng.permutation(latents)
    return graph[np.ix_(names, names)]


def _rows(
    rng: np.random.Generator,
    count: int,
    weight: np.ndarray,
    spread: np.ndarray,
    hit: np.ndarray,
    mean: np.ndarray | float,
    replaced: bool,
    law: Callable[[np.random.Generator, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """(rows, latent) of the equations, `mean` added to the targets `hit`, cut off from their parents or not; law: what
    becomes of standard normal noise (rows, latent)."""
    own, noise = weight.copy(), spread * rng.standard_normal((count, len(weight)))
    noise = noise if law is None else law(rng, noise)
    if replaced and len(hit):
        own[:, hit] = 0.0
        noise[:, hit] *= CUT_SD / spread[hit]
    noise[:, hit] += mean
    return np.linalg.solve(np.eye(len(weight)) - own.T, noise.T).T


def _heavy(rng: np.random.Generator, noise: np.ndarray, one: bool, tails: bool, outlying: float) -> np.ndarray:
    """Normal noise (rows, latent) with Student's tails, one scale a row or one each, and some rows' larger."""
    if tails:
        noise = noise / np.sqrt(rng.chisquare(TAILS, (len(noise), 1 if one else noise.shape[1])) / (TAILS - 2))
    return noise * np.where(rng.random((len(noise), 1)) < outlying, OUTLYING, 1.0) if outlying else noise


def _labelled(
    name: str,
    parts: list[np.ndarray],
    targets: dict[str, tuple[int, ...]],
    graph: np.ndarray,
    weight: np.ndarray,
    told: bool,
) -> Data:
    z = np.concatenate(parts)
    labels = np.repeat(["observational", *targets], [len(part) for part in parts])
    truth = {"z": z, "graph": graph.astype(int), "weight": weight, "targets": targets}
    return Data(z, labels, targets if told else None, truth=truth, name=name)
