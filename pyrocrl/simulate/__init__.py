"""Simulated data with known truth: one function per named published setting, one file per family.

draw("moran2022", seed=0, rho=0.8) gives a `Data`; every setting takes `seed` and its own options.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of
from pyrocrl.program import check_whole

# setting -> the file of this folder that holds the function of that name
SETTINGS: dict[str, str] = {
    "moran2022": "moran",
    "squires2023_hard": "linear_sem",
    "squires2023_soft": "linear_sem",
    "varici2024_linear": "linear_sem",
    "kivva2022_2d": "mixtures",
    "kivva2022_5d": "mixtures",
    "perturb_seq": "perturb_seq",
    "zhang2023": "zhang",
    "mechanism_shift2024": "shifts",
    "jiang2023": "measurement",
    "buchholz2023": "buchholz",
    "buchholz2023_hard": "buchholz",
    "cauca": "cauca",
    "varici2024_quadratic": "scores",
    "varici2024_general": "scores",
    "ahuja2023": "ahuja",
    "saengkyongam2024": "saengkyongam",
}


def names() -> list[str]:
    """Names of all settings."""
    return list(SETTINGS)


def get(name: str) -> Callable[..., Data]:
    """The setting's function, documented with its equations. Raises InputError for an unknown name."""
    one_of("setting", name, SETTINGS)
    module = importlib.import_module(f".{SETTINGS[name]}", __name__)
    function: Callable[..., Data] = getattr(module, name)
    return function


def draw(name: str, seed: int = 0, **options: Any) -> Data:
    """Simulated data of a named setting with its truth. Raises InputError for unknown names or options."""
    function = get(name)
    check_whole("seed", seed, 0)
    known = [k for k in inspect.signature(function).parameters if k != "seed"]
    for option in options:
        if option not in known:
            raise InputError(f"{option}: not an option of {name}; allowed: {', '.join(known)}")
    return function(seed=int(seed), **options)
