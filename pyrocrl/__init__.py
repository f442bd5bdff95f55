"""Causal representation learning as Pyro programs: posteriors over graphs, masks and factors, with a verdict.

data = pyrocrl.simulate.draw("moran2022", seed=0)
program = pyrocrl.build("sparse_vae", data, latents=5)
fit = pyrocrl.fit(program, data, chains=8)
tree = fit.posterior(draws=200)
print(pyrocrl.diagnose(fit, data))

Names are imported on first use, so that the shell answers at once.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, io, metrics, plots, report, simulate
    from .card import Claim, ModelCard, Reference
    from .choose import choose
    from .data import Batch, Data
    from .diagnose import diagnose
    from .errors import InputError
    from .evaluate import evaluate
    from .infer.fit import FitError, fit
    from .posterior import Fit, to_arviz
    from .program import Program, Recipe, Site
    from .zoo import build, load, run

__version__ = "0.1.0"
_MODULES = ("datasets", "io", "metrics", "plots", "report", "simulate")
_HOMES = {
    "Batch": "data",
    "Claim": "card",
    "Data": "data",
    "Fit": "posterior",
    "FitError": "infer.fit",
    "InputError": "errors",
    "ModelCard": "card",
    "Program": "program",
    "Recipe": "program",
    "Reference": "card",
    "Site": "program",
    "build": "zoo",
    "choose": "choose",
    "diagnose": "diagnose",
    "evaluate": "evaluate",
    "fit": "infer.fit",
    "load": "zoo",
    "run": "zoo",
    "to_arviz": "posterior",
}
__all__ = [
    "Batch",
    "Claim",
    "Data",
    "Fit",
    "FitError",
    "InputError",
    "ModelCard",
    "Program",
    "Recipe",
    "Reference",
    "Site",
    "build",
    "choose",
    "datasets",
    "diagnose",
    "evaluate",
    "fit",
    "io",
    "load",
    "metrics",
    "plots",
    "report",
    "run",
    "simulate",
    "to_arviz",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pyrocrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing `pyrocrl.diagnose` must not put the module where `pyrocrl.diagnose` the function belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
