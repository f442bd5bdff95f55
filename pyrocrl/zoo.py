"""The models: by name, those of the package and those that installed packages register, from a file, or as a class.

Every file of `models/` holds one `Program` whose card bears the file's name. An installed package registers a model by
an entry point of the group `pyrocrl.models`, in its pyproject.toml:

    [project.entry-points."pyrocrl.models"]
    my_vae = "my_package.my_module:MyVAE"

where `my_vae` is the name on the card. A file of one's own holds one `Program`, with any name on its card. It is run
as a module of its own and finds the modules that python finds: its folder is not put on `sys.path`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from pyrocrl.claims.card import ModelCard
from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.infer import number, origin
from pyrocrl.infer.fitted import Fit
from pyrocrl.options import conform
from pyrocrl.program import Program
from pyrocrl.turns import drawing, turn

Model = str | Path | type[Program]  # a name, a file ("./my_model.py") or the class itself
LONGEST = 160  # characters of an error of the user's file


def built_in() -> list[str]:
    """Names of the package's own models, sorted: the files of the models folder."""
    package = importlib.import_module("pyrocrl.models")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def names() -> list[str]:
    """Names of all models, sorted: the package's own and those of installed packages; no model is imported."""
    return sorted({*built_in(), *(point.name for point in origin.registered())})


def cards() -> list[ModelCard]:
    """The cards of all models by name. An installed model that cannot be used is left out, with a warning."""
    found = []
    for name in names():
        try:
            found.append(get(name).card)
        except InputError as error:
            warnings.warn(str(error), UserWarning, stacklevel=2)
    return found


def is_file(model: object) -> bool:
    """Whether a model is named by its file: a path, or a text that ends in .py or holds a separator."""
    if isinstance(model, str):
        return model.endswith(".py") or any(sep in model for sep in (os.sep, os.altsep) if sep)
    return isinstance(model, Path)


def get(model: Model, argument: str = "model") -> type[Program]:
    """The class of a model: by its name, from a file, or as it is given.

    Raises InputError, about `argument`, for an unknown name, for a file that is missing, fails when python runs it or
    does not define exactly one Program, and for an installed model that cannot be imported or is no Program of the
    name it is registered by. An entry point with the name of a built-in model is not used, and a warning says so.
    """
    if isinstance(model, type):
        if not issubclass(model, Program) or model is Program:
            reject(argument, f"the class {model.__name__}", "a subclass of pyrocrl.Program")
        return model
    if is_file(model):
        with turn():  # a module stands in `sys.modules` before it has run
            return _of_file(Path(model).expanduser(), argument)
    own, points = built_in(), origin.registered()
    known = [*own, *(point.name for point in points)]
    if isinstance(model, str) and model not in known and Path(f"{model}.py").is_file():
        reject(argument, f"{model!r} (did you mean './{model}.py'?)", "a model's name or file")
    name = one_of(argument, model, known)
    points = [point for point in points if point.name == name]
    if name not in own:
        return _of_package(points, argument)
    for point in points:
        line = f"{name!r} of {origin.package(point)} is not used: a model of pyrocrl has this name"
        warnings.warn(line, UserWarning, stacklevel=2)
    return _built_in(name)


def build(model: Model, data: Data, **options: Any) -> Program:
    """A program of a model, given as in `get`, for these data; what is not given is read off the data.

    pyrocrl.build("linear_sem_lin", data, latents=5, targets="relabelled")
    pyrocrl.build("./my_model.py", data, latents=5)
    pyrocrl.build("linear_sem_lin", data, latents="auto")  # or "2-8": as many as the data say; see `infer.number`
    """
    if not isinstance(data, Data):
        raise InputError(f"data: found a {type(data).__name__}; allowed: a pyrocrl.Data")
    kind, told = get(model), None
    if isinstance(latents := options.get("latents"), str):
        told = number.count(kind, data, latents, options)
        options = {**options, "latents": told.latents}
    with drawing():  # no parameter drawn here outlives the start of a chain
        program = kind.from_data(data, **options)
    program.check(data)
    program.number = None if told is None else told.to_dict()
    return program


def load(path: str | Path, data: Data | None = None, program: Model | None = None) -> Fit:
    """Read a fit that `fit.save` or `pyrocrl fit` wrote.

    program: the fit's model, given as in `get`. It can be left out for models of the package and of installed packages;
    a model in a file or a notebook has to be named, since no file that a checkpoint names is run. A model that is named
    is taken as it is, with a warning if its text has changed since the fit. Raises InputError for a file that is
    missing, damaged, edited, foreign or of another model, and for an installed model that is gone or has changed.
    """

    conform("path", path, str | Path)

    def find(header: dict[str, Any]) -> type[Program]:
        came = origin.origin_of(header)
        if program is None:
            return _recorded(header["model"], came)
        kind = get(program, "program")
        if header["model"] != kind.card.name:
            reject("path", f"a checkpoint of {header['model']!r}", f"one of {kind.card.name!r}")
        if not origin.same_text(came, origin.origin(kind)):
            line = f"the text of {kind.__name__} is not that of the fit's model, {origin.describe(came)}"
            warnings.warn(line, UserWarning, stacklevel=4)
        return kind

    return Fit.restore(path, find, data)


def _recorded(name: str, came: dict[str, str]) -> type[Program]:
    """The class of a fit that was read without one: of this package or of an installed one, never of a file."""
    if came["kind"] == "built-in":
        return _built_in(one_of("model", name, built_in()))
    if came["kind"] != "entry point":
        origin.refuse_unnamed(came)
    points = [point for point in origin.registered() if point.name == came["name"] == name]
    if not points or name in built_in():
        lost = "whose name a model of pyrocrl has now" if points else "which is not installed"
        reject("program", f"a fit of {origin.describe(came)}, {lost}", "program=its class or file")
    kind = _of_package(points, "program")
    if not origin.same_text(came, origin.origin(kind)):
        found = f"a fit of {origin.describe(came)}, changed since the fit"
        reject("program", found, f"program={name!r} to take it as it is now (in the shell --model {name})")
    return kind


def _built_in(name: str) -> type[Program]:
    module = importlib.import_module(f"pyrocrl.models.{name}")
    found = _programs(module)
    if len(found) != 1 or found[0].card.name != name:
        raise TypeError(f"models/{name}.py must define one Program with card.name == {name!r}")
    return found[0]


def _of_package(points: list[EntryPoint], argument: str) -> type[Program]:
    """The class that the entry points of one name lead to."""
    name = points[0].name
    if len({point.value for point in points}) > 1:
        reject(argument, f"{name!r} of {' and of '.join(map(origin.package, points))}", "one of these installed")
    found = f"{name!r} of {origin.package(points[0])}, registered as {points[0].value!r}"
    module, attribute = origin.place(points[0])
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        line = f"{argument}: found {found}, which cannot be imported ({_words(error)})"
        raise InputError(f"{line}; allowed: module:Class of a module that can") from error
    if not isinstance(kind, type) or not issubclass(kind, Program) or kind is Program:
        raise InputError(f"{argument}: found {found}, which is no Program; allowed: a subclass of pyrocrl.Program")
    if kind.card.name != name:
        raise InputError(
            f"{argument}: found {found}, whose card is named {kind.card.name!r}; allowed: one name in both"
        )
    return kind


def _of_file(path: Path, argument: str) -> type[Program]:
    """The one Program that a file defines."""
    if path.is_dir():
        reject(argument, f"the folder {str(path)!r}", "a .py file that defines one Program")
    if not path.is_file():
        near = get_close_matches(path.name, (p.name for p in path.parent.glob("*.py")), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        reject(argument, f"no file {str(path)!r}{hint}", "an existing .py file, or a model's name")
    if path.suffix != ".py":
        reject(argument, repr(str(path)), "a file ending in .py")
    module = _run(path, argument)
    found = _programs(module)
    if len(found) == 1:
        return found[0]
    classes = found or [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    listed = ", ".join(dict.fromkeys(kind.__name__ for kind in classes)) or "no class"
    what = f"{len(found)} Programs ({listed})" if found else f"no Program ({listed})"
    allowed = "one subclass of pyrocrl.Program in the file" + (", or the class itself" if found else "")
    raise InputError(f"{argument}: found {what} in {str(path)!r}; allowed: {allowed}")


def _run(path: Path, argument: str) -> ModuleType:
    """The module of a file, named by its place and text: neither its namesakes nor its own older text are in its way.

    It is compiled from its text at each change, for python's cache goes by seconds.
    """
    path = path.resolve()
    try:
        text = path.read_bytes()
    except OSError as error:
        reject(argument, f"{str(path)!r} ({error.strerror or error})", "a file that can be read")
    name = f"pyrocrl_model_{hashlib.sha256(os.fsencode(path) + bytes(1) + text).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses and annotations look there
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        sys.modules.pop(name, None)
        if not isinstance(error, Exception | SystemExit):
            raise
        raise InputError(
            f"{argument}: found {_words(error)} in {_where(error, path)}; allowed: a file that python can run"
        ) from error
    return module


def _programs(module: ModuleType) -> list[type[Program]]:
    """The subclasses of Program that a module defines itself."""
    own: Iterable[Any] = (v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Program))
    return list(dict.fromkeys(kind for kind in own if kind.__module__ == module.__name__))


def _words(error: BaseException) -> str:
    """An error's type and text on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"[:LONGEST]


def _where(error: BaseException, path: Path) -> str:
    """The file and line of an error: of wrong syntax, wherever it is, else the last line of this file that ran."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename!r}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{str(path)!r}, line {lines[-1]}" if lines else repr(str(path))
