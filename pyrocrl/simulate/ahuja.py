"""Polynomial mixing of latents that interventions fix at a constant, and pairs of rows that differ by fixed offsets or
by known maps of the latents."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Annotated, Any, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import one_of
from pyrocrl.options import Bounds, Deviation, Seed, Size
from pyrocrl.program import check_sizes, check_whole

FIXED = 2.0  # do(z_k = 2)
LAWS = ("uniform", "correlated", "mixture", "linear_sem")
SLOPE = 0.2  # of leaky ReLUs below 0

Array = np.ndarray


def ahuja2023(
    seed: Seed = 0,
    samples: int = 10_000,
    latents: int = 6,
    degree: Annotated[int, Bounds(1, 10)] = 2,
    features: int = 200,
    law: str = "uniform",
    environments: int | None = None,
    noise: Deviation = 0.0,
) -> Data:
    """Ahuja et al. (2023), "Interventional causal representation learning": the design of their experiments.

    x = G kappa(z), kappa all monomials of z up to `degree`, G standard Gaussian, monomials of degree 2 and more divided
    by half the ratio of the two parts' largest values. `samples` rows are observational, as many again are spread
    evenly over `environments` (None = one for each latent) that set one latent to 2: each latent once, then latents
    drawn at random. z by `law`: "uniform" on (-5, 5); "correlated", each pair of neighbours in (-5, 0)^2 or (0, 5)^2;
    "mixture" of two Gaussians with independent latents; "linear_sem", an Erdos-Renyi graph of density .5, in which an
    intervention moves the descendants of its target. noise: standard deviation of x's noise in that of each feature;
    published without.

    Truth: z, targets. Latents are a linear function of x where there are as many features as monomials: regression of z
    on x, were z known, has an R^2 of 1.
    """
    one_of("law", law, LAWS)
    check_sizes(features, latents, least=2)
    environments = latents if environments is None else environments
    check_whole("environments", environments, 1)
    check_whole("samples", samples, 2 * environments)
    rng = np.random.default_rng([209, latents, seed])
    hit = np.concatenate([rng.permutation(latents), rng.integers(0, latents, max(0, environments - latents))])
    hit = hit[:environments]
    world = _world(rng, latents, law)
    parts = [world(samples, -1)]
    env = ["observational"] * samples
    for e, rows in enumerate(np.array_split(np.arange(samples), environments)):
        parts.append(world(len(rows), int(hit[e])))
        env += [f"do_{e}"] * len(rows)
    z = np.concatenate(parts)
    x = _mix(rng, z, degree, features)
    targets = {f"do_{e}": (int(k),) for e, k in enumerate(hit)}
    return Data(
        x=x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x,
        env=env,
        targets=targets,
        truth={"z": z, "targets": targets},
        name="ahuja2023",
    )


def _world(rng: np.random.Generator, latents: int, law: str) -> Callable[[int, int], Array]:
    """A function (rows, target or -1) -> z (rows, latent), with the law's own parameters drawn once."""
    centre = rng.uniform(1.0, 3.0, latents) * rng.choice([-1.0, 1.0], latents)
    spread = rng.uniform(0.5, 1.5, (2, latents))
    rank = rng.permutation(latents)
    graph = (rank[:, None] < rank[None, :]) & (rng.random((latents, latents)) < 0.5)
    weight = graph * rng.choice([-1.0, 1.0], graph.shape) * rng.uniform(0.5, 1.5, graph.shape)

    def draw(rows: int, target: int) -> Array:
        if law == "uniform":
            z = rng.uniform(-5.0, 5.0, (rows, latents))
        elif law == "correlated":
            side = rng.choice([-1.0, 1.0], (rows, -(-latents // 2))).repeat(2, 1)[:, :latents]
            z = side * rng.uniform(0.0, 5.0, (rows, latents))
        elif law == "mixture":
            one = rng.random((rows, latents)) < 0.5
            z = np.where(one, centre, -centre) + np.where(one, *spread[:, None]) * rng.standard_normal(one.shape)
        else:
            z = rng.standard_normal((rows, latents))
            for k in rank.argsort():  # parents first
                z[:, k] = FIXED if k == target else z[:, k] + z @ (weight[:, k])
        if target >= 0:
            z[:, target] = FIXED
        return z

    return draw


def monomials(z: Array, degree: int) -> Array:
    """(rows, monomial) all distinct monomials of degree 1 to `degree`, by degree."""
    powers = [
        z[:, list(pick)].prod(1)
        for order in range(1, degree + 1)
        for pick in combinations_with_replacement(range(z.shape[1]), order)
    ]
    return np.stack(powers, 1)


def _mix(rng: np.random.Generator, z: Array, degree: int, features: int) -> Array:
    powers = monomials(z, degree)
    first = z @ rng.standard_normal((z.shape[1], features)) + rng.standard_normal(features)
    if degree == 1:
        return first
    rest = powers[:, z.shape[1] :]
    rest = rest @ rng.standard_normal((rest.shape[1], features))
    return np.asarray(first + rest / (0.5 * np.abs(rest).max() / np.abs(first).max()))


def ahuja2022_pairs(
    seed: Seed = 0,
    pairs: Size = 10_000,
    latents: int = 6,
    features: int | None = None,
    layers: Annotated[int, Bounds(0, 10)] = 3,
    draws: Annotated[int, Bounds(1, 1_000_000)] = 25_000,
    law: Literal["uniform", "blocks"] = "uniform",
    perturbations: int | None = None,
    together: Literal[1, 2] = 1,
    noise: Deviation = 0.0,
) -> Data:
    """Ahuja, Hartford & Bengio (2022), "Weakly supervised representation learning with sparse perturbations": pairs
    x = g(z), x' = g(z + offset_u) of a perturbation u, whose name is the environment of the row after.

    z is uniform on (0, 5), or normal in blocks of two with covariance I + 11'. Perturbation u moves latent u (modulo
    their number), or latents u and u + 1, by numbers of either sign and size U(1, 2). g: `layers` of leaky ReLUs (slope
    .2), square; 0 = linear. A layer's weights, columns of length 1, are the best-conditioned of `draws`: 25,000 as
    published, there with two layers, which the mean of x' - x nearly undoes; fewer draws make a harder mixing.
    features: None = as many as latents; else the last layer has so many. perturbations: None = one for each latent;
    noise: deviation of x's noise in that of each feature, published without.

    Truth: z, targets: which latents a perturbation moves.
    """
    check_sizes(latents if features is None else features, latents, least=2, square=True)
    perturbations = latents if perturbations is None else perturbations
    check_whole("perturbations", perturbations, 1)
    check_whole("pairs", pairs, 2 * perturbations)
    rng = np.random.default_rng([2022, latents, seed])
    before = rng.uniform(0.0, 5.0, (pairs, latents))
    if law == "blocks":
        before = rng.standard_normal((pairs, latents))
        before = before + rng.standard_normal((pairs, -(-latents // 2))).repeat(2, 1)[:, :latents]
    moved = np.zeros((perturbations, latents), dtype=bool)
    first = rng.permutation(latents)
    for u in range(perturbations):
        moved[u, [first[(u + step) % latents] for step in range(together)]] = True
    offset = moved * rng.choice([-1.0, 1.0], moved.shape) * rng.uniform(1.0, 2.0, moved.shape)
    which = rng.integers(0, perturbations, pairs)
    z = np.stack([before, before + offset[which]], 1).reshape(-1, latents)
    x = z
    for layer in range(max(layers, 1)):
        wide = latents if features is None or layer < layers - 1 else features
        x = x @ well_conditioned(rng, latents, wide, draws)
        x = np.where(x > 0, x, SLOPE * x) if layers else x
    names = np.array([f"move_{u}" for u in range(perturbations)])
    return Data(
        x=x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x,
        env=np.stack([np.full(pairs, "control"), names[which]], 1).reshape(-1),
        pair=np.repeat(np.arange(pairs), 2),
        step=np.tile([0, 1], pairs),
        control="control",
        truth={"z": z, "targets": {name: tuple(np.flatnonzero(m)) for name, m in zip(names, moved, strict=True)}},
        name="ahuja2022_pairs",
    )


def ahuja2022_mechanisms(
    seed: Seed = 0,
    pairs: Size = 10_000,
    latents: int = 4,
    features: int = 8,
    layers: Annotated[int, Bounds(0, 10)] = 3,
    draws: Annotated[int, Bounds(1, 1_000_000)] = 25_000,
    mechanism: Literal["steps", "scaling", "rotation"] = "steps",
    spread: Deviation = 0.0,
    noise: Deviation = 0.0,
) -> Data:
    """Pairs x = g(z), x' = g(m_u(z)) of actions whose maps of latents are known, as in Ahuja, Hartford & Bengio (2022),
    "Properties from mechanisms"; which action it was is the environment of the row after.

    z ~ N(0, I). mechanism: "steps", action u adds 1 to latent u; "scaling", one action, which multiplies latent k by
    1 + (k + 1) / latents; "rotation", one action, which turns latents 2 k and 2 k + 1 by .5 + k radians, a last one
    without partner staying as it is. `known_mechanisms` tells them to a model. g: `layers` of leaky ReLUs (slope .2),
    the last of which has so many features; 0 = linear. A layer's weights, columns of length 1, are the best-conditioned
    of `draws`. spread: deviation of latents after an action about where it takes them; noise: of x's noise in that of
    each feature.

    Truth: z.
    """
    check_sizes(features, latents, least=2, square=True)
    matrix, offset = _actions(latents, mechanism)
    check_whole("pairs", pairs, 2 * len(matrix))
    rng = np.random.default_rng([20222, latents, seed])
    before = rng.standard_normal((pairs, latents))
    which = rng.integers(0, len(matrix), pairs)
    after = np.einsum("pij,pj->pi", matrix[which], before) + offset[which]
    after = after + spread * rng.standard_normal(after.shape) if spread else after
    z = np.stack([before, after], 1).reshape(-1, latents)
    x = z
    for layer in range(max(layers, 1)):
        x = x @ well_conditioned(rng, latents, latents if layer < layers - 1 else features, draws)
        x = np.where(x > 0, x, SLOPE * x) if layers else x
    names = np.array([f"action_{u}" for u in range(len(matrix))])
    return Data(
        x=x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x,
        env=np.stack([np.full(pairs, "control"), names[which]], 1).reshape(-1),
        pair=np.repeat(np.arange(pairs), 2),
        step=np.tile([0, 1], pairs),
        control="control",
        truth={"z": z},
        name="ahuja2022_mechanisms",
    )


def _actions(latents: int, mechanism: str) -> tuple[Array, Array]:
    """(action, latent, latent) and (action, latent) of z -> matrix z + offset."""
    if mechanism == "steps":
        return np.stack([np.eye(latents)] * latents), np.eye(latents)
    matrix = np.diag(1 + np.arange(1, latents + 1) / latents)
    if mechanism == "rotation":
        matrix = np.eye(latents)
        for k in range(latents // 2):
            cos, sin = np.cos(0.5 + k), np.sin(0.5 + k)
            matrix[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[cos, -sin], [sin, cos]]
    return matrix[None], np.zeros((1, latents))


def known_mechanisms(latents: int = 4, mechanism: str = "steps") -> dict[str, dict[str, Any]]:
    """What `ahuja2022_mechanisms` does to latents, by the names of its environments, as `equivariant_mechanism` is told
    it."""
    matrix, offset = _actions(latents, mechanism)
    return {
        f"action_{u}": {"matrix": a.tolist(), "offset": b.tolist()}
        for u, (a, b) in enumerate(zip(matrix, offset, strict=True))
    }


def well_conditioned(rng: np.random.Generator, inputs: int, outputs: int, draws: int) -> Array:
    """(inputs, outputs) uniform weights, columns of length 1, the best-conditioned of so many."""
    best, least = np.eye(inputs, outputs), np.inf
    for start in range(0, draws, 1000):
        weight = rng.uniform(-1.0, 1.0, (min(1000, draws - start), inputs, outputs))
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)
        number = np.linalg.cond(weight)
        if number.min() < least:
            best, least = weight[number.argmin()], number.min()
    return best
