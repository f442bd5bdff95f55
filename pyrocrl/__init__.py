"""Causal representation learning as Pyro programs: posteriors over graphs, masks and factors, with a verdict.

data = pyrocrl.simulate.draw("moran2022", seed=0)
program = pyrocrl.build("sparse_vae", data, latents=5)
fit = pyrocrl.fit(program, data, chains=8)
tree = fit.posterior(draws=200)
print(pyrocrl.diagnose(fit, data))
"""

import importlib
from typing import Any

from . import datasets, io, simulate
from .card import Claim, ModelCard, Reference
from .data import Batch, Data
from .diagnose import diagnose
from .errors import InputError
from .evaluate import evaluate
from .infer.fit import FitError, fit
from .posterior import Fit, to_arviz
from .program import Program, Recipe, Site
from .zoo import build, load, run

__version__ = "0.1.0"
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
    "datasets",
    "diagnose",
    "evaluate",
    "fit",
    "io",
    "load",
    "run",
    "simulate",
    "to_arviz",
]


def __getattr__(name: str) -> Any:
    if name in ("plots", "report", "metrics"):  # matplotlib and scikit-learn wait until they are asked for
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'pyrocrl' has no attribute {name!r}")
