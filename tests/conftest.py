"""Shared settings: one torch thread, the headless plot backend, and skips where there is no GPU."""

from __future__ import annotations

import os

# before torch and numpy are imported: small tensors gain nothing from threads, and busy machines lose much by them
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from pyrocrl.constructions import affine, interaction_starts, interactions, shared_supports  # noqa: E402
from pyrocrl.judge import evaluate  # noqa: E402
from pyrocrl.models import biscuit  # noqa: E402

# enough to say whether intervals hold a weight, and whether latents are mixed
evaluate.WEIGHT_DRAWS, evaluate.DCI_ROWS = 60, 300
LONGEST = ("test_tutorials", "test_zoo_recovery", "test_reference", "test_variants")  # first, so that none ends alone


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=lambda item: item.path.stem not in LONGEST)
        for item in items:  # what shares a cached fit stays in one worker: a file, or its part on one model
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            part = parameters.get("name", parameters.get("case", ""))
            if item.path.stem == "test_docs":  # pages are made in docs/: two builds at once remove each other's
                part = ""
            if item.path.stem == "test_tutorials":  # share nothing
                part = item.name
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {part}"))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Networks that a test or its fixtures draw unseeded are the same in every run."""
    pyro.set_rng_seed(0)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups that are not heeded would only show as builds that remove each other's pages, and as lost time."""
    if session.config.getoption("loadgroup", False) and session.items and "@" not in session.items[0].nodeid:
        raise pytest.UsageError(f"pytest {pytest.__version__} hides the groups of xdist: use one below 9.2")


LITTLE = {  # of searches that a start begins with
    affine: {
        "EFFORT": affine.Effort(
            rows=300, starts=2, steps=20, last_steps=40, rounds=1, finalists=1, linear_steps=20, net_steps=10
        )
    },
    interactions: {"COARSE": 3, "FIRST": 1, "TURNS": 8},
    interaction_starts: {"RANDOM": 1, "TRIES": 1},
    biscuit: {"DRAWS": 40},
    shared_supports: {"TURNS": 30, "COVERS": 1, "BEST": 1, "RELAID": 0},
}


@pytest.fixture
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts that are far from good, in less time: for laws that hold for these, too."""
    for module, values in LITTLE.items():
        for name, value in values.items():
            assert hasattr(module, name)
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def double() -> object:
    """Double precision by default, from one seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
