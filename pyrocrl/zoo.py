"""The models by name: every file of `models/` holds one `Program` whose card bears the file's name."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.infer.fitted import Fit
from pyrocrl.program import Program


def names() -> list[str]:
    """Names of all models, sorted: the files of the models folder."""
    package = importlib.import_module("pyrocrl.models")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def get(name: str) -> type[Program]:
    """The model's class. Raises InputError for an unknown name."""
    one_of("model", name, names())
    module = importlib.import_module(f"pyrocrl.models.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Program) and value.__module__ == module.__name__
    ]
    if len(found) != 1 or found[0].card.name != name:
        raise TypeError(f"models/{name}.py must define one Program with card.name == {name!r}")
    return found[0]


def build(name: str, data: Data, **options: Any) -> Program:
    """A program of the named model for these data; what is not given is read off the data.

    pyrocrl.build("linear_sem_lin", data, latents=5, targets="relabelled")
    """
    if not isinstance(data, Data):
        raise InputError(f"data: found a {type(data).__name__}; allowed: a pyrocrl.Data")
    program = get(name).from_data(data, **options)
    program.check(data)
    return program


def load(path: str | Path, data: Data | None = None, program: type[Program] | None = None) -> Fit:
    """Read a fit that `fit.save` or `pyrocrl fit` wrote; `program` is the class of a model outside the zoo.

    Raises InputError for a file that is missing, damaged, edited, foreign or of another model.
    """

    def find(header: dict[str, Any]) -> type[Program]:
        if program is not None:
            if header["model"] != program.card.name:
                reject("path", f"a checkpoint of {header['model']!r}", f"one of {program.card.name!r}")
            return program
        return get(header["model"])

    return Fit.restore(path, find, data)
