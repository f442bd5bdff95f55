"""The tree and the imports are as CONTRIBUTING says; wheel and sdist hold every module."""

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

# module -> modules of pyrocrl that it may not know
FORBIDDEN = {
    "card": {"data", "program", "infer", "posterior", "zoo", "models"},
    "indeterminacy": {"data", "program", "infer", "posterior", "zoo", "models"},
    "errors": {"card", "data", "program", "infer", "posterior", "zoo", "models"},
    "data": {"program", "infer", "posterior", "zoo", "models"},
    "program": {"posterior", "zoo", "models", "nets", "dists", "guides"},
    "nets": {"infer", "posterior", "zoo", "models"},
    "dists": {"infer", "posterior", "zoo", "models"},
    "guides": {"infer", "posterior", "zoo", "models"},
    "sem": {"infer", "posterior", "zoo", "models"},
    "graphs": {"infer", "posterior", "zoo", "models"},
    "latent_sem": {"infer", "posterior", "zoo", "models"},
    "observation": {"infer", "posterior", "zoo", "models"},
    "posterior": {"zoo", "models"},
    "diagnose": {"zoo", "models"},
    "metrics": {"data", "program", "infer", "posterior", "zoo", "models", "torch", "pyro"},
    "plots": {"data", "program", "infer", "posterior", "zoo", "models", "torch", "pyro"},
}


def imports(path: Path) -> set[str]:
    """Names of pyrocrl modules (first part after the package) and of top-level packages a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = node.level > 0 or (node.module or "").split(".")[0] == "pyrocrl"
            module = (node.module or "").removeprefix("pyrocrl").lstrip(".")
            names = [f"pyrocrl.{module}"] if inside and module else []
            names += [f"pyrocrl.{a.name}" for a in node.names] if inside and not module else []
            names += [] if inside else [node.module or ""]
        else:
            continue
        for name in names:
            found.add(name.split(".")[1] if name.startswith("pyrocrl.") else name.split(".")[0])
    return found


@pytest.mark.parametrize("module", sorted(FORBIDDEN))
def test_imports_go_one_way(module: str) -> None:
    assert not imports(PACKAGE / f"{module}.py") & FORBIDDEN[module]


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


def test_only_zoo_and_cli_know_the_models() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("zoo", "cli"):
            assert "models" not in imports(path), f"{path.name} imports pyrocrl.models"


def test_listed_packages_are_the_tree() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(config["tool"]["setuptools"]["packages"])
    tree = {"pyrocrl"} | {f"pyrocrl.{p.parent.name}" for p in PACKAGE.glob("*/__init__.py")}
    assert listed == tree


def test_metrics_and_plots_import_without_torch() -> None:
    code = (
        "import sys, importlib.util as u, types; p = types.ModuleType('pyrocrl'); "
        f"p.__path__ = [{str(PACKAGE)!r}]; sys.modules['pyrocrl'] = p; "
        "import pyrocrl.metrics, pyrocrl.plots; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_wheel_built_from_sdist_works_outside_the_tree(tmp_path: Path) -> None:
    """Build sdist, wheel from it, install that without dependencies and import every model elsewhere."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = next((tmp_path / "dist").glob("*.whl"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in [
        *PACKAGE.glob("*.py"),
        *(p for d in ("infer", "simulate", "studies") for p in PACKAGE.glob(f"{d}/*.py")),
    ]:
        assert str(path.relative_to(ROOT)) in inside
    for path in (ROOT / "models").glob("*.py"):
        assert f"pyrocrl/models/{path.name}" in inside
    for path in (ROOT / "models" / "results").glob("*.json"):
        assert f"pyrocrl/models/results/{path.name}" in inside
    assert {"pyrocrl/py.typed", "pyrocrl/templates/report.html"} <= inside
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
