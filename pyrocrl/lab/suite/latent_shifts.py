"""Latents of equations with links, under shifts and other interventions, told or not (`discrepancy_vae`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import Case
from pyrocrl.lab.suite.equations import HARD, SHIFT, VARIANCE, confounded, each, world

MODEL = "discrepancy_vae"
BRIEF = {"chains": 2, "least_steps": 400}
FUNCTION = "x is a function of latents and noise"
EQUATIONS = "latents follow a structural equation model without cycles, linear or with relu links"
EACH = "one_intervention_per_latent"
SMALL: dict[str, Any] = {"rows": 400, "features": 8}
LINKS: dict[str, Any] = {**SMALL, "relu": True, "lowered": False}
NORMAL = "noise is Gaussian"
PERFECT, STRAIGHT = {"intervention": "perfect"}, {"intervention": "perfect", "mechanism": "linear"}
NET: dict[str, Any] = {**PERFECT, "decoder": "mlp"}
OPEN: tuple[str, ...] = ("latents", "mask", "graph", "parents")  # claims that a broken condition opens
TOLD = {"on_0": (0,), "on_1": (1,)}
RAISES = "interventions raise their targets: else a latent's sign is open, and relu links mix it with those it acts on"


def discrepancy_cases() -> list[Case]:
    """Links are relu unless told; two latents where these are enough to be wrong."""

    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        names, open_ = "interventions", OPEN
        if breaks == RAISES:  # turned over, a latent keeps its edges
            names, open_ = RAISES, OPEN[:1]
        return Case(f"{MODEL}: {name}", MODEL, kind, draw, options, BRIEF, open_, names, breaks)

    two, hard = each("shift", 2), each("perfect", 2)
    twice = [two[0], ("on_1", (0,), "shift")]
    null = [two[0], ("on_1", (1,), "none")]
    entangled = [("on_0", (0, 1), "shift"), two[1]]
    lowered = {**LINKS, "lowered": True}
    apart = {**LINKS, "edges": False, "told": TOLD}
    return [
        case("shifts", "identified", world(SHIFT, **LINKS)),
        case("shifts, targets unknown", "identified", world(SHIFT, **LINKS), targets="unknown"),
        case("perfect, linear equations", "identified", world(HARD, **SMALL), **STRAIGHT),
        case("two latents, 60 rows", "small", world(two, 2, **{**LINKS, "rows": 60})),
        case("counts", "small", world(hard, 2, **{**SMALL, "features": 12}, counts=10.0), **STRAIGHT),
        case("batches that go with environments", "misspecified", world(two, 2, offsets=1.0, **LINKS), FUNCTION),
        case("quadratic equations", "misspecified", world(hard, 2, bent=0.5, **SMALL), EQUATIONS, **STRAIGHT),
        case("shifts told as perfect", "misspecified", world(two, 2, **LINKS), EQUATIONS, **PERFECT),
        case("independent causes, a shift of both", "misspecified", world(entangled, 2, **apart), EQUATIONS),
        case("two labels on one latent", "misspecified", world(twice, 2, told=TOLD, **LINKS), EACH),
        case("5 % bad rows", "misspecified", world(two, 2, bad=0.05, **LINKS), NORMAL),
        case("shifts that may lower", "word", world(two, 2, **lowered), RAISES),
        case("saturated features", "misspecified", world(two, 2, saturated=1.0, **LINKS), FUNCTION),
        case("two of three latents", "misspecified", lambda seed: confounded(seed, **SMALL), EQUATIONS, **STRAIGHT),
        case("an environment that changes nothing", "open", world(null, 2, **LINKS), "interventions_show"),
        case("one latent without intervention", "open", world(two[:1], 2, **LINKS), EACH, latents=2),
        case("shifts behind a network", "open", world(two, 2, **LINKS), "perfect_interventions", decoder="mlp"),
        case("shifts, linear equations", "open", world(two, 2, **SMALL), "nonlinear_or_replaced", mechanism="linear"),
        case("changes of variance", "identified", world(VARIANCE, **LINKS), intervention="variance"),
        case("perfect", "identified", world(HARD, **LINKS), **PERFECT),
        case("perfect, behind a network", "identified", world(HARD, saturated=0.7, **LINKS), **NET),
        case("5 % bad rows, behind a network", "misspecified", world(HARD, bad=0.05, **LINKS), NORMAL, **NET),
    ]
