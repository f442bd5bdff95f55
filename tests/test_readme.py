"""README and the hand-written pages say what the code says: tables from cards and results, ten lines that run."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from pyrocrl import zoo
from pyrocrl.lab import reproduce

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    ("page", "holds"),
    [("README.md", "graph (permutation)"), ("docs/figures.md", "cauca"), ("docs/calibrated.md", "`plt_fa`")],
)
def test_the_tables_are_made_from_cards_and_results(page: str, holds: str) -> None:
    text = (ROOT / page).read_text()
    assert reproduce.fill(text) == text, (
        "run: python -m pyrocrl.lab.reproduce README.md docs/figures.md docs/calibrated.md"
    )
    assert reproduce.fill(text.replace(holds, "")) == text


def test_readme_is_a_page() -> None:
    assert len(README.encode()) <= 7000
    assert all(f"`{name}`" in README for name in zoo.built_in())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Pages made at build time, assumptions.md and those in docs/models and docs/api, are checked in `test_docs`."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        made = page.parent.name == "docs" and target.startswith(("models/", "api/", "assumptions"))
        assert made or (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    code = README.split("```python\n")[1].split("```")[0]
    code = code.replace("chains=8, seed=0", "chains=2, seed=0, epochs=20, progress=False")
    code = code.replace("draws=200", "draws=5")
    exec(compile(code, "README", "exec"), {})
    assert "latents:" in capsys.readouterr().out
    assert (tmp_path / "mask.png").stat().st_size > 1000
