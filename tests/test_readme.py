"""README says what the code says: its table is made from the cards, its ten lines run."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from pyrocrl.lab import reproduce

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tables_are_made_from_cards_and_results() -> None:
    assert reproduce.fill(README) == README, "run: python -m pyrocrl.lab.reproduce README.md"
    assert "**`linear_sem_lin`**" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


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
