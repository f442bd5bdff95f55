"""Latents of linear equations behind an invertible mixing of as many features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn
from pyrocrl.lab.suite.equations import each, linear_world

MODEL, ROWS = "causal_flow", 3000
SMALL = {"width": 32, "steps": 200}  # of the flow, for two or three latents
PERFECT = "interventions are perfect"


def behind(*environments: tuple[str, tuple[int, ...], str], latents: int = 2, **options: Any) -> Callable[[int], Data]:
    """`linear_world` of as many features as latents and no noise, rotated latents bent before they are mixed."""
    told = {"features": latents, "noise": 0.0, "rotated": True, "curved": 0.5, "rows": ROWS, **options}
    return lambda seed: linear_world(seed, environments, latents, **told)


def hidden(seed: int) -> Data:
    """Two features of three latents, of which the environments and the fit know two."""
    data = behind(*each("perfect", 2), latents=3, features=2)(seed)
    return Data(data.x, data.env_labels(), data.targets, control="control", truth={"z": data.truth["z"][:, :2]})


def flow_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return Case(f"{MODEL}: {name}", MODEL, kind, draw, {**SMALL, **options}, FEW, breaks=breaks)

    two = each("perfect", 2)
    twice = [*two, ("again_0", (0,), "perfect"), ("again_1", (1,), "perfect")]
    one = [(name, (0,), kind) for name, _, kind in twice]
    labels = {"on_0": (0,), "on_1": (1,)}
    paper = {"samples": ROWS, "latents": 2, "layers": 2}
    return [
        case("Liang et al., two latents", "small", drawn("cauca", **paper), steps=300),
        case(
            "Liang et al., targets unknown",
            "small",
            drawn("cauca", interventions=2, **paper),
            targets="unknown",
            steps=300,
        ),
        case("perfect, two latents", "small", behind(*two)),
        case("Liang et al., 200 rows", "small", drawn("cauca", **{**paper, "samples": 200})),
        case(
            "an environment that changes nothing", "open", behind(two[0], ("on_1", (1,), "none")), "interventions_show"
        ),
        case(
            "all on one latent, targets unknown",
            "open",
            behind(*one),
            "two_interventions_per_latent",
            targets="unknown",
        ),
        # with as many features as latents, other latents may exist of which a batch moves one alone, as an intervention
        case("batches that go with environments", "word", behind(*two, offsets=1.0), PERFECT),
        case("5 % bad rows", "misspecified", behind(*two, bad=0.05), "mixing is invertible"),
        case("two labels on one latent", "misspecified", behind(*one[:2], told=labels), "one_intervention_per_latent"),
        case("perfect, two environments on each", "small", behind(*twice)),
        case("two of three latents", "misspecified", hidden, "mixing is invertible"),
        case("shifts told as perfect", "word", behind(*each("shift", 2)), PERFECT),
    ]
