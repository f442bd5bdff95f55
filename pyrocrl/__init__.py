"""Causal representation learning as Pyro programs: posteriors over graphs, masks and factors, with a verdict.

data = pyrocrl.simulate.draw("moran2022", seed=0)
program = pyrocrl.build("sparse_vae", data, latents=5)
fit = pyrocrl.fit(program, data, chains=8)
tree = fit.posterior(draws=200)
print(pyrocrl.diagnose(fit, data))

Names are imported on first use, so that the shell answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, io, simulate
    from .adjust import Adjustment
    from .batch import Batch
    from .claims.card import Claim, ModelCard, Reference
    from .data import Data
    from .errors import InputError
    from .infer.fit import fit
    from .infer.fitted import Fit
    from .infer.loop import FitError
    from .infer.perturbed_chains import perturbed_chains
    from .infer.weights import to_arviz
    from .judge import metrics
    from .judge.choose import choose
    from .judge.credible import credible_graphs
    from .judge.design import next_interventions
    from .judge.diagnose import diagnose
    from .judge.evaluate import evaluate
    from .judge.memory import alignment, attractors
    from .judge.reference import agreement, reference
    from .judge.targets import discover_targets, reversing_drugs
    from .lab.calibrate import calibrate
    from .lab.run import run
    from .predict import fill, impute, translate
    from .program import Program, Recipe, Site
    from .show import export, plots, report
    from .zoo import build, load

__version__ = "0.1.0"
_MODULES = {
    "datasets": "datasets",
    "export": "show.export",
    "io": "io",
    "metrics": "judge.metrics",
    "plots": "show.plots",
    "report": "show.report",
    "simulate": "simulate",
}
_HOMES = {
    "Adjustment": "adjust",
    "Batch": "batch",
    "Claim": "claims.card",
    "Data": "data",
    "Fit": "infer.fitted",
    "FitError": "infer.loop",
    "InputError": "errors",
    "ModelCard": "claims.card",
    "Program": "program",
    "Recipe": "program",
    "Reference": "claims.card",
    "Site": "program",
    "agreement": "judge.reference",
    "alignment": "judge.memory",
    "attractors": "judge.memory",
    "build": "zoo",
    "calibrate": "lab.calibrate",
    "choose": "judge.choose",
    "credible_graphs": "judge.credible",
    "diagnose": "judge.diagnose",
    "discover_targets": "judge.targets",
    "equivalence_class": "judge.equivalence",
    "evaluate": "judge.evaluate",
    "fill": "predict",
    "fit": "infer.fit",
    "impute": "predict",
    "load": "zoo",
    "next_interventions": "judge.design",
    "perturbed_chains": "infer.perturbed_chains",
    "reference": "judge.reference",
    "reversing_drugs": "judge.targets",
    "run": "lab.run",
    "to_arviz": "infer.weights",
    "translate": "predict",
}
__all__ = [
    "Adjustment",
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
    "agreement",
    "alignment",
    "attractors",
    "build",
    "calibrate",
    "choose",
    "credible_graphs",
    "datasets",
    "diagnose",
    "discover_targets",
    "equivalence_class",
    "evaluate",
    "export",
    "fill",
    "fit",
    "impute",
    "io",
    "load",
    "metrics",
    "next_interventions",
    "perturbed_chains",
    "plots",
    "reference",
    "report",
    "reversing_drugs",
    "run",
    "simulate",
    "to_arviz",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pyrocrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
