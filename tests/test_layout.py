"""The rooms and the imports between them are as the table says; wheel and sdist hold every module."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyrocrl"

# room (a module or a sub-package) -> the rooms that it may import, besides itself; those stand above it in this table
GROUND = {"errors", "arrays", "labels", "columns", "options", "turns", "files", "dists", "recorded"}
DATA = {"batch", "data"}
PARTS = {*GROUND, *DATA, "claims", "exact", "readouts", "program"}
FIT = {*PARTS, "infer", "simulate", "zoo", "predict"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "turns": set(),
    "compiled": set(),
    "recorded": {"turns", "compiled"},
    "files": {"errors"},
    "arrays": {"errors"},
    "labels": {"errors"},
    "options": {"errors"},
    "dists": {"errors"},
    "columns": {"errors", "labels"},
    "batch": set(),
    "data": {"errors", "arrays", "labels", "columns", "batch"},
    "adjust": {"errors", "arrays", *DATA},
    "pick": {"errors", "arrays", "labels", *DATA},
    "io": {"errors", "files", "arrays", *DATA, "pick"},
    "datasets": {"errors", "arrays", *DATA, "io"},
    "claims": {"errors", "arrays", *DATA},
    "exact": {*GROUND, "claims"},  # knows neither Data nor Program
    "readouts": {*DATA},
    "program": {*GROUND, *DATA, "claims", "readouts"},
    "parts": PARTS,
    "constructions": {*PARTS, "parts"},
    "infer": {*PARTS, "parts", "adjust"},
    "simulate": PARTS - {"exact"},
    "zoo": {*PARTS, "infer", "models"},
    "predict": {*PARTS, "infer"},
    "judge": FIT,
    "show": {*FIT, "judge", "io"},
    "lab": {*FIT, "parts", "constructions", "judge", "show", "io", "datasets"},
    "cli": {*FIT, "judge", "show", "lab", "io", "datasets", "adjust"},
    "models": {*PARTS, "parts", "constructions", "simulate", "lab"},
}
# in these rooms, modules that must be importable without torch (the shell's help and plots of a saved run)
WITHOUT_TORCH = ("judge.metrics", "judge.metric_table", "show.plots", "claims.card")


def imported(path: Path) -> set[tuple[str, str]]:
    """(room, module) of everything of pyrocrl that a file imports; names of the top level count as their homes."""
    import pyrocrl

    homes = pyrocrl._HOMES | pyrocrl._MODULES
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyrocrl":
            module = (node.module or "").removeprefix("pyrocrl").lstrip(".")
            for alias in node.names:
                name = module or homes.get(alias.name, alias.name)
                found.add((name.split(".")[0], f"{module}.{alias.name}" if module else name))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
        elif isinstance(node, ast.Import):
            found |= {("pyrocrl", a.name) for a in node.names if a.name.split(".")[0] == "pyrocrl"}
    return found


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return "models" if relative.parts[0] == "models" else Path(relative.parts[1]).stem


SOURCES = [
    p
    for p in sorted(PACKAGE.rglob("*.py"))
    if "models" not in p.relative_to(PACKAGE).parts and p != PACKAGE / "__init__.py"
]


def test_every_room_has_a_layer_and_only_knows_earlier_ones() -> None:
    assert {room_of(p) for p in SOURCES} | {"models"} == set(LAYERS)
    rank = {room: place for place, room in enumerate(LAYERS)}
    for room, known in LAYERS.items():
        later = {other for other in known if rank[other] >= rank[room]} - {"models", "lab"}
        assert not later, f"{room} may import {later}, which stand below it"
    assert "zoo" not in LAYERS["models"]


@pytest.mark.parametrize("path", SOURCES + sorted((ROOT / "models").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    surplus = {r for r, _ in imported(path)} - LAYERS[room] - {room, "pyrocrl"}
    assert not surplus, f"{path.relative_to(ROOT)} imports {sorted(surplus)}"


def test_only_turns_touch_what_is_the_processs() -> None:
    """Else threads would draw from each other's streams, and the caller's would not be as before."""
    for path in [*SOURCES, *(ROOT / "models").glob("*.py")]:
        text = path.read_text()
        for word in ("torch.manual_seed", "fork_rng", "set_rng_seed", "np.random.seed", "random.seed("):
            assert word not in text or path.stem == "turns", f"{path.name}: {word}"


def test_models_take_from_the_lab_only_studies_and_run() -> None:
    for path in (ROOT / "models").glob("[a-z]*.py"):
        lab = {name for room, name in imported(path) if room == "lab"}
        assert all(name.startswith(("lab.run", "lab.studies")) for name in lab), path.name


def test_models_never_import_each_other() -> None:
    names = {p.stem for p in (ROOT / "models").glob("*.py")} - {"__init__"}
    for path in (ROOT / "models").glob("*.py"):
        known = {
            part
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom | ast.Import)
            for part in (getattr(node, "module", None) or "").split(".") + [a.name for a in node.names]
        }
        assert not known & (names - {path.stem}), f"{path.name} imports another model"


def test_a_model_is_imported_under_one_name() -> None:
    """As `models.vae` beside `pyrocrl.models.vae` a module would be there twice, with classes that differ."""
    for path in [*SOURCES, *(ROOT / "models").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.split(".")[0] == "models" for name in names), path.name


def test_listed_packages_are_the_tree() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(config["tool"]["setuptools"]["packages"])
    inits = [p.parent for p in SOURCES if p.name == "__init__.py"]
    tree = {"pyrocrl", "pyrocrl.models"} | {".".join(p.relative_to(ROOT).parts) for p in inits}
    assert listed == tree


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys, pyrocrl.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_models_loads_nothing_that_fits_or_scores() -> None:
    code = """
import sys
from pyrocrl import zoo
assert all(zoo.get(name).studies for name in zoo.names())
assert not {"sklearn", "pyrocrl.judge", "pyrocrl.predict", "pyrocrl.infer.fit"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_wheel_built_from_sdist_works_outside_the_tree(tmp_path: Path) -> None:
    """Build sdist, wheel from it, install that without dependencies and import every model elsewhere."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = next((tmp_path / "dist").glob("*.whl"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in [PACKAGE / "__init__.py", *SOURCES]:
        assert str(path.relative_to(ROOT)) in inside
    for path in (ROOT / "models").glob("*.py"):
        assert f"pyrocrl/models/{path.name}" in inside
    for path in (ROOT / "models" / "results").glob("*.json"):
        assert f"pyrocrl/models/results/{path.name}" in inside
    assert {"pyrocrl/py.typed", "pyrocrl/show/templates/report.html"} <= inside
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import pyrocrl, pyrocrl.zoo as zoo; "
        f"assert pyrocrl.__file__.startswith({str(site)!r}); "
        "print([zoo.get(n).__name__ for n in zoo.names()])"
    )
    # -S would drop the dependencies; the editable install's finder comes after sys.path, so `site` wins
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for path in (ROOT / "models").glob("[a-z]*.py"):
        assert path.stem in ("vae",) or path.stem.replace("_", "") in done.stdout.lower()
