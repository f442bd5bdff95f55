"""Where results come from: seeds as a command is given them; versions, commit and day."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from pyrocrl.errors import reject


def parse_seeds(text: str) -> list[int]:
    """Seeds of "0:8" (0 to 7), "3" or "0,2,5". Raises InputError for anything else."""
    try:
        if ":" in text:
            start, stop = (int(part) for part in text.split(":"))
            seeds = list(range(start, stop))
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        reject("seeds", repr(text), "such as 0:8 (0 to 7), 3 or 0,2,5")
    return seeds


def provenance() -> dict[str, Any]:
    """Versions, commit (where the code sits in a git checkout) and day."""
    packages = {"torch": "torch", "pyro": "pyro-ppl", "numpy": "numpy", "pyrocrl": "pyrocrl"}
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {"versions": versions, "commit": _commit(), "date": time.strftime("%Y-%m-%d", time.gmtime())}


def _commit() -> str | None:
    """The commit of this source tree, with + where files of the code differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "pyrocrl", "models/*.py")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
