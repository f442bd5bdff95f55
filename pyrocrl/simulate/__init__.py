"""Simulated data with known truth: one function per named published setting, one file per family.

draw("moran2022", seed=0, rho=0.8) gives a `Data`; every setting takes `seed` and its own options.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

from pyrocrl import options
from pyrocrl.data import Data
from pyrocrl.errors import one_of

# setting -> the file of this folder that holds the function of that name
SETTINGS: dict[str, str] = {
    "moran2022": "moran",
    "squires2023_hard": "linear_sem",
    "squires2023_soft": "linear_sem",
    "squires2023_sparse": "linear_sem",
    "varici2024_linear": "linear_sem",
    "acarturk2024": "linear_sem",
    "kivva2022_2d": "mixtures",
    "kivva2022_5d": "mixtures",
    "perturb_seq": "perturb_seq",
    "zhang2023": "zhang",
    "mechanism_shift2024": "shifts",
    "jiang2023": "measurement",
    "buchholz2023": "buchholz",
    "buchholz2023_hard": "buchholz",
    "buchholz2024": "buchholz",
    "cauca": "cauca",
    "varici2024_quadratic": "scores",
    "varici2024_general": "scores",
    "ahuja2023": "ahuja",
    "ahuja2022_pairs": "ahuja",
    "ahuja2022_mechanisms": "ahuja",
    "kuegelgen2021": "kuegelgen",
    "eastwood2023": "eastwood",
    "rajendran2024": "concepts",
    "saengkyongam2024": "saengkyongam",
    "squires2020": "observed",
    "hagele2023": "observed",
    "peters2016": "observed",
    "lu2021": "observed",
    "context_effects": "contexts",
    "plt2010": "factors",
    "khemakhem2020": "segments",
    "bing2020": "factors",
    "sparse_fa": "factors",
    "sparse_counts": "counts",
    "code_counts": "counts",
    "sparse_scores": "factors",
    "synth_sae_small": "factors",
    "dense_fa": "factors",
    "bhattacharya2011": "factors",
    "brehmer2022_linear": "brehmer",
    "brehmer2022_nonlinear": "brehmer",
    "silva2006": "measurement",
    "markham2024": "measurement",
    "kivva2021": "states",
    "stored_rows": "memories",
    "shared_private": "views",
    "yao2024": "yao",
    "halva2021_linear": "dynamics",
    "xu2023_additive": "additive",
    "wang2024_support": "supports",
    "zheng2022": "structural",
    "gresele2021": "orthogonal",
    "lachapelle2022": "lachapelle",
    "voronoi_numeric": "lippe",
    "voronoi_actions": "lippe",
}


def names() -> list[str]:
    """Names of all settings."""
    return list(SETTINGS)


def get(name: str) -> Callable[..., Data]:
    """The setting's function, documented with its equations, which checks its options (see `draw`)."""
    one_of("setting", name, SETTINGS)
    return _checked(getattr(importlib.import_module(f".{SETTINGS[name]}", __name__), name))


@functools.cache
def _checked(function: Callable[..., Data]) -> Callable[..., Data]:
    @functools.wraps(function)
    def simulate(*args: Any, **kwargs: Any) -> Data:
        given = options.bound(function.__name__, function, args, kwargs)
        features, latents, environments = (given.get(name) or 1 for name in ("features", "latents", "environments"))
        rows = next((v for k in ("rows", "samples", "pairs") if type(v := given.get(k)) is int), 1)
        largest = max((v, k) for k, v in given.items() if type(v) is int and k != "seed")[::-1]
        options.check_memory(*largest, 8.0 * max(rows, environments, latents) * (features + latents))
        try:
            return function(**given)
        except MemoryError:
            options.check_memory(*largest, math.inf)
            raise

    return simulate


def draw(name: str, seed: int = 0, **more: Any) -> Data:
    """Simulated data of a named setting with its truth.

    Raises InputError for unknown names or options, for values that are not allowed and for sizes beyond memory.
    """
    return get(name)(seed=seed, **more)
