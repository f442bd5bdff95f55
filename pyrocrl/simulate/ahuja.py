"""Polynomial mixing of latents that interventions fix at a constant."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import one_of
from pyrocrl.options import Bounds, Deviation, Seed
from pyrocrl.program import check_sizes, check_whole

FIXED = 2.0  # do(z_k = 2)
LAWS = ("uniform", "correlated", "mixture", "linear_sem")

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
