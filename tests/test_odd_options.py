"""Odd values of every option: taken, or refused in one clear line; and what options a program has and keeps."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, InputError, Recipe, predict, simulate, zoo
from pyrocrl.infer import checkpoint
from pyrocrl.models.vae import VAE
from pyrocrl.options import REQUIRED, Bounds, Option, conform, options_of, words

HUGE = 10**12
ODD: list[Any] = [None, True, np.bool_(True), float("nan"), float("inf"), -1, -1.5, 0, 0.0, 1, 1.5, HUGE, 10**400]
ODD += ["", "x", b"x", [], {}, (), object(), np.int64(2), np.float32(0.5), np.array([1, 2]), torch.tensor(3), 2 + 1j]
ODD += [[[0.5]], [[object()]], [1, [2]]]
# as small as a setting can be
SMALL = {
    "samples": 40,
    "rows": 100,
    "latents": 3,
    "layers": 1,
    "features": 12,
    "shifts": 1,
    "actions": 3,
    "active": 1.0,
    "draws": 10,
}


def refused_or_taken(call: Callable[[], object], what: str) -> bool:
    """Whether a call is refused; any other error than one clear line fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except InputError as error:
        said = str(error)
        assert "; allowed: " in said or ": missing; " in said, f"{what}: {said}"
        assert "\n" not in said and len(said) < 500, f"{what}: {said}"
        return True
    except Exception as error:  # an error that says nothing to a user
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    return False


def swept(known: dict[str, Option], call: Callable[[dict[str, Any]], object], base: dict[str, Any]) -> None:
    """Every odd value of every option, the others as in `base`; what is neither number nor text is refused."""
    for name in known:
        refused = [
            refused_or_taken(lambda: call(base | {name: value}), f"{name}={value!r:.40}")  # noqa: B023
            for value in ODD
        ]
        assert any(refused), f"{name}: nothing is refused"


@cache
def example(name: str) -> dict[str, Any]:
    return zoo.get(name).example()[0].arguments


@pytest.mark.parametrize("name", zoo.names())
def test_every_option_of_a_model(name: str) -> None:
    kind = zoo.get(name)
    swept(kind.options(), lambda given: kind(**given), example(name))


def test_every_field_of_a_recipe() -> None:
    swept(options_of(Recipe.__init__), lambda given: Recipe(**given), {})
    assert {f.name for f in fields(Recipe)} == options_of(Recipe.__init__).keys()


@pytest.mark.parametrize("name", simulate.names())
def test_every_option_of_a_setting(name: str) -> None:
    function = simulate.get(name)
    known = options_of(function)
    base = {k: v for k, v in SMALL.items() if k in known}
    function(**base)
    swept(known, lambda given: function(**given), base)


@pytest.fixture(scope="module")
def fitted() -> pyrocrl.Fit:
    return pyrocrl.fit(VAE(5, 2, hidden=4), rows(), chains=1, epochs=1, progress=False)


def rows() -> Data:
    return Data(np.random.default_rng(0).standard_normal((40, 5)))


class Unfitted:
    """In place of the loop: arguments are all that is looked at."""

    def __init__(self, *_: object) -> None: ...

    def run(self, *_: object) -> None: ...

    def restore(self, *_: object) -> None: ...


def test_every_argument_of_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pyrocrl.infer.fit.Loop", Unfitted)
    monkeypatch.chdir(tmp_path)
    program, data = VAE(5, 2, hidden=4), rows()
    swept(options_of(pyrocrl.fit), lambda given: pyrocrl.fit(**given), {"program": program, "data": data})
    for name in options_of(Recipe.__init__):
        for value in ODD:
            refused_or_taken(lambda: pyrocrl.fit(program, data, **{name: value}), f"{name}={value!r:.40}")  # noqa: B023


def test_every_argument_of_what_a_fit_does(
    fitted: pyrocrl.Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = rows()
    one = {"fit": fitted, "data": data}
    calls: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
        "posterior": (fitted.posterior, {"draws": 1}),
        "prior": (fitted.prior, {"draws": 1}),
        "do": (fitted.do, {"data": None, "values": {"latent_0": 1.0}, "draws": 1}),
        "held_out_objective": (fitted.held_out_objective, {"data": data}),
        "chain_latents": (fitted.chain_latents, {"data": data}),
        "save": (fitted.save, {"path": "run"}),
        "choose": (pyrocrl.choose, {"data": data, "latents": 2}),
        "build": (pyrocrl.build, {"model": "vae", "data": data, "latents": 2}),
        "diagnose": (pyrocrl.diagnose, one),
        "evaluate": (pyrocrl.evaluate, one),
        "draw": (simulate.draw, {"name": "moran2022", "rows": 50}),
        "load": (pyrocrl.load, {"path": "nowhere"}),
        "predict_action": (predict.predict_action, {"fit": fitted, "actions": [[0.0]]}),
        "combination_mean": (
            predict.combination_mean,
            one | {"environments": ["observational"], "draws": 1},
        ),
        "expected_rows": (predict.expected_rows, one | {"draws": 1}),
    }
    monkeypatch.setattr(zoo, "names", lambda: ["vae"])  # for `choose`: the others are swept above
    for name, (call, base) in calls.items():
        swept(options_of(call), lambda given: call(**given), base)  # noqa: B023
        assert name == "draw" or base.keys() <= options_of(call).keys() | {"latents"}, name


# -- what options are ---------------------------------------------------------------------------------------------


def test_every_option_is_explained_and_its_default_allowed() -> None:
    for name in zoo.names():
        for option in zoo.get(name).options().values():
            assert option.meaning and words(option.hint) != "anything", f"{name}: {option.name}"
            if option.default is not REQUIRED:
                assert conform(option.name, option.default, option.hint) == option.default, f"{name}: {option.name}"
            json.dumps(option.to_dict())


HINTS: list[tuple[Any, Any, Any]] = [  # hint, value, what it becomes (InputError's words where it is refused)
    (int, np.int64(3), 3),
    (int, True, "a whole number"),
    (int, 3.0, "a whole number"),
    (Annotated[int, Bounds(2, 6)], 7, "a whole number from 2 to 6"),
    (float, 2, 2.0),
    (float, np.float32(0.5), 0.5),
    (float, float("nan"), "a finite number"),
    (Annotated[float, Bounds(0, 1)], 1, "a number strictly between 0 and 1"),
    (Annotated[float, Bounds(0, 1, "[]")], 1, 1.0),
    (Annotated[float, Bounds(0, 1, "[)")], 1, "a number from 0 to below 1"),
    (Annotated[float, Bounds(0, 1, "(]")], 0, "a number above 0, at most 1"),
    (Annotated[float, Bounds(0)], 0, "a number above 0"),
    (Annotated[int, Bounds(1)] | None, None, None),
    (Annotated[int, Bounds(1)] | None, 0, "a whole number from 1 on or None"),
    (bool, np.bool_(False), False),
    (bool, 1, "True or False"),
    (Literal["linear", "mlp"], np.str_("mlp"), "mlp"),
    (Literal["linear", "mlp"], "lienar", "linear, mlp"),
    (tuple[float, float], [1, 2], (1.0, 2.0)),
    (tuple[float, float], [1], "2 values: a finite number, a finite number"),
    (list[list[Any]], np.eye(2, dtype=int), [[1, 0], [0, 1]]),
    (str | Path | None, "a\0b", "a path or None"),
]


@pytest.mark.parametrize(("hint", "value", "becomes"), HINTS)
def test_what_a_hint_makes_of_a_value(hint: Any, value: Any, becomes: Any) -> None:
    try:
        found = conform("it", value, hint)
    except InputError as error:
        assert str(error).startswith("it: found ") and str(error).endswith(f"; allowed: {becomes}")
    else:
        assert found == becomes and type(found) is type(becomes)


# -- subclasses, checkpoints, sizes --------------------------------------------------------------------------------


class Short(VAE):
    """Fewer options than its parent, of which it sets one by another."""

    def __init__(self, features: int, latents: int | None = None) -> None:
        super().__init__(features, latents or 2, hidden=6)


class Longer(VAE):
    """One option more; the others go to the parent."""

    def __init__(self, strength: Annotated[float, Bounds(0), "of it"] = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.strength = strength


def test_a_shorter_init_has_all_of_its_parents_config(tmp_path: Path) -> None:
    program = Short(5)
    own = {"features": 5, "latents": 2, "likelihood": "gaussian", "hidden": 6, "missing": False}
    assert program.config == own
    assert program.arguments == {"features": 5, "latents": None} and program.latents_count == 2
    assert program.fresh().config == program.config
    found = pyrocrl.fit(program, rows(), chains=1, epochs=1, progress=False)
    again = pyrocrl.load(found.save(tmp_path), rows(), Short)
    assert again.program.config == program.config
    assert np.array_equal(again.latents(), found.latents())


def test_options_that_are_passed_on() -> None:
    program = pyrocrl.build(Longer, rows(), latents=2, hidden=np.int64(4))
    parents = {"features": 5, "latents": 2, "likelihood": "gaussian", "hidden": 4, "missing": False}
    assert program.config == {"strength": 1.0} | parents
    assert type(program.config["hidden"]) is int and program.fresh().config == program.config
    with pytest.raises(InputError, match=r"hiden: not an option of vae \(did you mean 'hidden'\?\); allowed"):
        pyrocrl.build(Longer, rows(), latents=2, hiden=4)
    with pytest.raises(InputError, match="strength: found 0; allowed: a number above 0"):
        pyrocrl.build(Longer, rows(), latents=2, strength=0)


def test_a_checkpoint_is_checked_as_a_call_is(fitted: pyrocrl.Fit, tmp_path: Path) -> None:
    tensors, header = checkpoint.read(fitted.save(tmp_path))
    for config, what in (({"hidden": 1.5}, "hidden: found 1.5"), ({"depth": 1}, "depth: not an option of vae")):
        checkpoint.write(tmp_path / "edited.safetensors", tensors, header | {"config": header["config"] | config})
        with pytest.raises(InputError, match=f"path: found .*{what}"):
            pyrocrl.load(tmp_path / "edited.safetensors")


BEYOND: dict[str, Callable[[], object]] = {
    "hidden": lambda: VAE(5, 2, hidden=10**9),
    "latents": lambda: VAE(10**9, 10**6),
    "layers": lambda: zoo.get("gmm_vae")(features=5, latents=2, layers=10**12),
    "environments": lambda: zoo.get("do_polynomial")(features=9, latents=2, environments=10**12, targets="unknown"),
    "chains": lambda: pyrocrl.fit(VAE(5, 2), rows(), chains=10**7),
    "rows": lambda: simulate.draw("moran2022", rows=10**12),
}


@pytest.mark.parametrize("name", BEYOND)
def test_sizes_beyond_memory_are_refused_with_what_they_take(name: str) -> None:
    with pytest.raises(InputError, match=r": found \d+, which takes .* GB or more; allowed: what fits into .* GB of"):
        BEYOND[name]()


def test_what_a_size_takes_is_what_is_allocated(monkeypatch: pytest.MonkeyPatch, fitted: pyrocrl.Fit) -> None:
    """A program is refused a little below the bytes of its state, and made at what building it takes."""
    size = sum(v.numel() * v.element_size() for v in VAE(50, 2, hidden=400).state_dict().values())
    monkeypatch.setattr("pyrocrl.options.memory", lambda: 0.99 * size)
    with pytest.raises(InputError, match="hidden: found 400, which takes"):
        VAE(50, 2, hidden=400)
    monkeypatch.setattr("pyrocrl.options.memory", lambda: 3.0 * size)
    VAE(50, 2, hidden=400)
    with pytest.raises(InputError, match="draws: found 1000000, which takes"):
        fitted.posterior(10**6, thin=1)
