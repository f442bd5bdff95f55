"""Latents whose laws environments modulate, or that they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case


def held(seed: int, environments: Sequence[tuple[int, ...]], rows: int = 300, moved: bool = False) -> Data:
    """Two latents behind a polynomial, environments that hold some of them (moved: that only shift them)."""
    rng = np.random.default_rng([18, seed])
    z, labels = [], []
    for e, hits in enumerate(environments):
        own = rng.uniform(-1, 1, (rows, 2))
        for k in hits:
            own[:, k] = own[:, k] + 1.5 if moved else rng.uniform(-1, 1)
        z.append(own)
        labels += [f"env_{e}"] * rows
    zs = np.concatenate(z)
    terms = np.column_stack([zs, zs[:, 0] ** 2, zs[:, 0] * zs[:, 1], zs[:, 1] ** 2])
    x = terms @ rng.standard_normal((5, 12))
    targets = {f"env_{e}": tuple(hits) for e, hits in enumerate(environments) if hits}
    return Data(x + 0.01 * rng.standard_normal(x.shape), labels, targets, truth={"z": zs}, name="held")


def modulated(
    seed: int,
    environments: int = 8,
    rows: int = 400,
    law: str = "normal",
    *,
    together: bool = False,
    same: bool = False,
    levels: bool = False,
    correlation: float = 0.0,
    latents: int = 2,
) -> Data:
    """Latents of mean 0 whose scales differ between environments, through two layers into six columns.

    together: the second scale is a multiple of the first; same: environments are alike; levels: they move means as
    well; correlation: of the first two within an environment.
    """
    rng = np.random.default_rng([20, seed])
    scale = np.exp(rng.uniform(-1.0, 1.0, (environments, latents)))
    if together:
        scale[:, 1] = 1.5 * scale[:, 0]
    if same:
        scale[:] = scale[0]
    level = rng.uniform(-2, 2, scale.shape) if levels else np.zeros_like(scale)
    size = environments * rows, latents
    drawn = rng.laplace(size=size) if law == "laplace" else rng.normal(size=size)
    drawn[:, 1] = correlation * drawn[:, 0] + np.sqrt(1 - correlation**2) * drawn[:, 1]
    z = np.repeat(level, rows, 0) + np.repeat(scale, rows, 0) * drawn
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    h = 1.5 * z @ turn[:latents] / z.std()
    x = (np.tanh(h) + 0.3 * h) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x = x + 0.02 * rng.standard_normal(x.shape)
    labels = np.repeat([f"env_{u}" for u in range(environments)], rows)
    return Data(x, labels, truth={"z": z}, name="modulated")


def held_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return Case(f"do_polynomial: {name}", "do_polynomial", kind, draw, options, {"chains": 2}, breaks=breaks)

    unknown = {"targets": "unknown"}
    return [
        case("each held", "identified", lambda s: held(s, [(), (0,), (1,)])),
        case("each held, targets unknown", "identified", lambda s: held(s, [(), (0,), (1,)]), **unknown),
        case("no free environment", "open", lambda s: held(s, [(0,), (1,)]), breaks="free_environment"),
        case("one never held", "open", lambda s: held(s, [(), (0,)]), **unknown, breaks="one_intervention_per_latent"),
        case("only held together", "open", lambda s: held(s, [(), (0, 1)]), **unknown, breaks="single_targets"),
        case("shifts", "misspecified", lambda s: held(s, [(), (0,), (1,)], moved=True), breaks="held_at_constants"),
    ]


def modulated_cases() -> list[Case]:
    def case(name: str, kind: str, told: str = "scaled normal", breaks: str = "", **world: Any) -> Case:
        options = {"latents": 2, "law": told, "width": 32, "steps": 600}
        return Case(f"ivae: {name}", "ivae", kind, lambda s: modulated(s, **world), options, FEW, breaks=breaks)

    law = "latents are independent given the environment, of the law that is told"

    return [
        case("scales that differ", "identified"),
        case("Laplace, told so", "identified", "laplace", law="laplace"),
        case("levels and scales that differ, told so", "identified", "normal", levels=True),
        case("scales that differ, 50 rows", "small", rows=50),
        case("scales that move together", "open", together=True, breaks="modulated_apart"),
        case("environments that are alike", "open", same=True, breaks="modulated_apart"),
        case("as many environments as latents", "open", environments=2, breaks="more_environments"),
        case("latents that correlate", "misspecified", correlation=0.6, breaks=law),
        case("levels told as none", "misspecified", levels=True, breaks=law),
        case("two of four latents", "misspecified", latents=4, environments=12, breaks="the decoder is injective"),
        case(
            "levels and scales, few environments",
            "open",
            "normal",
            "twice_the_environments",
            levels=True,
            environments=4,
        ),
    ]
