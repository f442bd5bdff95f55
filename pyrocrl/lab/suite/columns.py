"""Smooth maps of as many latents: of orthogonal columns or not, of latents whose turns can be told or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn
from pyrocrl.simulate import draw

ROWS = 1000
TURN = 0.6  # of the normal scores of two latents


def turned(seed: int) -> Data:
    """A Moebius map of latents that turn those which are meant: these are independent and uniform, too, and behind
    columns that are not orthogonal."""
    data = draw("gresele2021", seed, rows=ROWS)
    scores = stats.norm.ppf((data.truth["z"] + 1) / 2)
    turn = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
    return Data(data.x, truth={"z": 2 * stats.norm.cdf(scores @ turn) - 1}, name="latents that were turned")


def column_cases() -> list[Case]:
    def case(name: str, kind: str, draw_: Callable[[int], Data], breaks: str = "") -> Case:
        return Case(f"ima: {name}", "ima", kind, draw_, {}, FEW, names="no other map", breaks=breaks)

    def world(**options: Any) -> Callable[[int], Data]:
        return drawn("gresele2021", **({"rows": ROWS} | options))

    smooth = "x is a smooth invertible function of as many latents, nearly without noise"
    return [
        case("a Moebius map of two", "identified", world()),
        case("a Moebius map of three", "identified", world(latents=3)),
        case("a Moebius map, latents of a round law", "identified", world(law="beta", rows=2000)),
        case("polar coordinates", "identified", world(mixing="polar")),
        case("lines at right angles", "identified", world(mixing="linear")),
        case("a little noise", "identified", world(noise=0.03)),
        case("300 rows", "small", world(rows=300)),
        case("normal latents, a Moebius map", "open", world(law="normal"), "turns_told"),
        case("normal latents, lines at right angles", "open", world(law="normal", mixing="linear"), "turns_told"),
        case("a network", "misspecified", world(mixing="network"), "columns_orthogonal"),
        case("a Moebius map, sheared", "misspecified", world(mixing="sheared"), "columns_orthogonal"),
        case("three lines at any angle", "misspecified", world(latents=3, mixing="oblique"), "columns_orthogonal"),
        case("latents that correlate", "misspecified", world(correlation=0.5), "latents are independent"),
        Case("ima: much noise", "ima", "word", world(noise=0.3), {}, FEW, names="nearly without noise", breaks=smooth),
        case("latents that were turned", "word", turned, "no other map with orthogonal columns makes rows independent"),
    ]
