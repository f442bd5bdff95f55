"""Every tutorial runs from top to bottom, and is stored with its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import xarray as xr
from IPython.core.interactiveshell import InteractiveShell

import pyrocrl

LESS = {"steps": 60, "search_steps": 60, "starts": 2}
ENOUGH = 1_000  # rows of real data
NOTEBOOKS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.usefixtures("little_effort")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell in IPython, here: a kernel of its own would import everything again.

    Starts take few steps, fits an eighth of their epochs, in two chains, and draws are few, of every third row of real
    data: what they find is stored in the notebook, and held by the tests of recovery.
    """
    fitted, drawn, loaded = pyrocrl.fit, pyrocrl.Fit.posterior, pyrocrl.datasets.load

    def short(program: pyrocrl.Program, *args: Any, epochs: int | None = None, **options: Any) -> pyrocrl.Fit:
        few = {"epochs": (epochs or program.recipe.epochs) // 8 + 1, "chains": min(2, options.pop("chains", 2))}
        less = {name: most for name, most in LESS.items() if program.config.get(name, 0) > most}
        program = type(program)(**program.arguments | less) if less else program
        return fitted(program, *args, **few, **options)

    def part(*args: Any, **options: Any) -> pyrocrl.Data:
        data = loaded(*args, **options)
        return data.rows_at(np.arange(0, data.rows, 3)) if data.rows > 3 * ENOUGH else data

    def few(fit: pyrocrl.Fit, draws: int = 200, *args: Any, **options: Any) -> xr.DataTree:
        return drawn(fit, min(20, draws), *args, **options)

    monkeypatch.setattr(pyrocrl, "fit", short)
    monkeypatch.setattr(pyrocrl.datasets, "load", part)
    monkeypatch.setattr(pyrocrl.Fit, "posterior", few)
    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source.replace("%matplotlib inline", "")).raise_error()
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_kept_and_name_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(cell.execution_count for cell in code)
    text = path.read_text()
    for trace in ("Traceback", "/home/", "/root/", "/tmp/"):
        assert trace not in text


def test_there_are_tutorials() -> None:
    assert len(NOTEBOOKS) >= 3
