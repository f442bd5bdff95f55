"""Is the number of latents right where it is left to the data, `latents="auto"`? Settings with known truth.

    python -m pyrocrl.lab.numbers --seeds 0:10 --json pyrocrl/models/results/numbers.json

Models that count by evidence are not fitted: the number is found before. Models that are offered more than they need
are fitted, in `CHAINS` chains. `baseline`: eigenvalues of the features' correlations above 1 (Kaiser's rule).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyrocrl import simulate, zoo
from pyrocrl.data import Data
from pyrocrl.infer.fit import fit
from pyrocrl.infer.number import Number
from pyrocrl.io import write_json
from pyrocrl.lab.provenance import parse_seeds, provenance

CHAINS = 2
FILE = Path(__file__).resolve().parents[1] / "models" / "results" / "numbers.json"


@dataclass(frozen=True)
class Case:
    """A model and a setting with options."""

    model: str
    setting: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        told = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in self.options.items())
        return f"{self.model}: {self.setting}{f' ({told})' if told else ''}"


WEAK = Case("heavy_tailed_fa", "dense_fa", {"rows": 100, "noise": 3.0})  # factors that hardly stand out of the noise
CASES = (
    *(Case("linear_sem_lin", "squires2023_hard", {"samples": n}) for n in (100, 2_500)),
    *(Case("linear_sem_lin", "buchholz2024", {"bend": 0.0, "noise": noise}) for noise in (0.05, 0.5)),
    Case("linear_sem_lin", "buchholz2024", {"bend": 0.0, "samples": 30}),
    Case("plt_fa", "plt2010"),
    *(Case("heavy_tailed_fa", "dense_fa", {"rows": n}) for n in (100, 3_000)),
    WEAK,
    Case("snica_lin", "halva2021_linear"),
    Case("weakly_supervised_pairs", "brehmer2022_linear"),
    Case("spike_slab_fa", "sparse_fa", {"correlation": 0.3}),
    Case("sparse_vae", "moran2022"),
)


def kaiser(data: Data) -> int:
    """How many eigenvalues of the features' correlations exceed 1."""
    return int((np.linalg.eigvalsh(np.corrcoef(np.asarray(data.x, dtype=float).T)) > 1).sum())


def run_case(case: Case, seed: int) -> dict[str, Any]:
    """The number found, the probability of the true one, Kaiser's, and CPU seconds to find it."""
    data = simulate.draw(case.setting, seed, **case.options)
    started = time.process_time()
    program = zoo.build(case.model, data, latents="auto")
    assert program.number is not None
    number: Number | None = Number.from_dict(program.number)
    if program.counted == "offered":
        number = fit(program, data, chains=CHAINS, seed=seed, device="cpu", progress=False).number()
    assert number is not None
    there = int(data.truth["z"].shape[1])
    return {
        "seed": seed,
        "there": there,
        "found": number.mode,
        "probability": number.probability.get(there, 0.0),
        "offered": number.latents,
        "kaiser": kaiser(data),
        "cpu_seconds": time.process_time() - started,
    }


def study(cases: Sequence[Case], seeds: Sequence[int], path: str | Path | None = None) -> dict[str, Any]:
    """All cases and seeds, written to `path` after each case, where other cases stay as they are."""
    known: dict[str, Any] = {}
    if path is not None and Path(path).exists():
        known = {entry["name"]: entry for entry in json.loads(Path(path).read_text(encoding="utf-8"))["cases"]}
    table: dict[str, Any] = {"about": "numbers", "cases": []}
    for case in cases:
        rows = [run_case(case, seed) for seed in seeds]
        head = {"name": case.label, "model": case.model, "setting": case.setting, "options": dict(case.options)}
        known[case.label] = {**head, **provenance(), "seeds": rows}
        print(line(known[case.label]), flush=True)
        table["cases"] = [known[one.label] for one in CASES if one.label in known]
        if path is not None:
            write_json(table, path)
    return table


def line(entry: Mapping[str, Any]) -> str:
    """A case in one line."""
    right, baseline, rows = *_right(entry), entry["seeds"]
    found = " ".join(str(row["found"]) for row in rows)
    return f"{entry['name']}: {right} of {len(rows)} right ({found}); Kaiser's rule {baseline}"


def _right(entry: Mapping[str, Any]) -> tuple[int, int]:
    rows = entry["seeds"]
    return (sum(row["found"] == row["there"] for row in rows), sum(row["kaiser"] == row["there"] for row in rows))


def table() -> str:
    """The committed results as markdown; empty where there are none."""
    if not FILE.exists():
        return ""
    lines = [
        "| model | setting | latents | right | Kaiser's rule right | probability of the true number | cpu seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in json.loads(FILE.read_text(encoding="utf-8"))["cases"]:
        rows, (right, baseline) = entry["seeds"], _right(entry)
        told = entry["name"].partition(" (")[2].rstrip(")")
        there = "–".join(map(str, sorted({min(r["there"] for r in rows), max(r["there"] for r in rows)})))
        chance = [row["probability"] for row in rows]
        cells = [
            f"`{entry['model']}`",
            f"`{entry['setting']}`" + (f" {told}" if told else ""),
            there,
            f"{right} of {len(rows)}",
            f"{baseline} of {len(rows)}",
            f"{np.mean(chance):.2f} ({min(chance):.2f})",
            f"{np.mean([row['cpu_seconds'] for row in rows]):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.numbers", description=__doc__)
    parser.add_argument("--seeds", default="0:10", help="0:10 (0 to 9), 3 or 0,2")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", default=None, help="where the results go")
    told = parser.parse_args(arguments)
    chosen = [case for case in CASES if told.only in case.label]
    if not chosen:
        parser.error(f"--only {told.only!r}: no case is called so")
    study(chosen, parse_seeds(told.seeds), told.json)


if __name__ == "__main__":
    main()
