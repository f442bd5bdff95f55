"""Studies of effects never measured: pairs of a context and a perturbation that are left out and predicted.

Models list them, so this file loads what scores them only when it does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pyrocrl import datasets, simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies import Study, readable

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit


@dataclass(frozen=True)
class Imputation(Study):
    """Simulated pairs that were not measured, as the next measurement would give them."""

    def draw(self, seed: int) -> tuple[Data, Data]:
        train = simulate.draw(self.setting, seed, **self.options)
        every = simulate.draw(self.setting, seed, **{**self.options, "measured": 1.0})
        there = set(zip(train.batch.tolist(), train.env.tolist(), strict=True))
        pairs = zip(every.batch.tolist(), every.env.tolist(), strict=True)
        return train, every.rows_at(np.array([pair not in there for pair in pairs]))

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.imputation import MODEL, predicted, scores

        assert result.data is not None
        left = predicted(result, result.data, data)
        out = {f"effect_{name}": value for name, value in scores(left.truth, left.guess[MODEL]).items()}
        out |= {f"effect_coverage_{level * 100:.0f}": share for level, share in left.inside.items()}
        for rival, guess in left.guess.items():
            if rival != MODEL:
                out |= {f"{name}_{rival}": value for name, value in scores(left.truth, guess).items()}
        return out

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class MeasuredEffects(Imputation):
    """Real pairs that were left out. options: `fold` = "10 within contexts", each seed one of ten parts of every
    context's pairs, or "2 a context fitted", all others left out."""

    simulated: ClassVar[bool] = False

    def draw(self, seed: int) -> tuple[Data, Data]:
        from pyrocrl.judge.imputation import left_out

        data = datasets.load(self.setting)
        if str(self.options["fold"]).startswith("10"):
            out = list(left_out(data, 10, 0))[seed]
        else:
            kept = data.control_rows.copy()
            rng = np.random.default_rng([seed, 16])
            for c in range(len(data.batch_names)):
                kept[rng.permutation(np.flatnonzero((data.batch == c) & ~data.control_rows))[:2]] = True
            out = ~kept
        return data.rows_at(~out), data.rows_at(out)


METHODS = {
    "causal_imputation": "`causal_imputation`",
    "context_mean": "mean of the context",
    "both_means": "half of either mean",
    "dnpp": "DNPP",
    "falrtc": "FaLRTC",
    "synthetic_interventions": "synthetic interventions",
    "ridgeless_ntk": "ridgeless NTK",
}
SCORES = ("r", "r2", "cosine")


def table_of(results: Mapping[str, Any]) -> str:
    """The committed results as markdown, a line for each method: r, R² and cosine in every study, means over seeds, and
    below them the coverage of the model's 90 and 95 % intervals."""
    entries = results["studies"]
    heads = [f"`{e['setting']}`, {readable(e['options'])} ({len(e['seeds'])})" for e in entries]
    lines = [["r / R² / cosine", *heads], ["---"] * (1 + len(heads))]
    for name, title in METHODS.items():
        keys = [f"effect_{score}" if name == "causal_imputation" else f"{score}_{name}" for score in SCORES]
        lines.append([title, *(" / ".join(f"{e['summary'][key]['mean']:.3f}" for key in keys) for e in entries)])
    covered = [[f"{e['summary'][f'effect_coverage_{level}']['mean']:.3f}" for level in (90, 95)] for e in entries]
    lines.append(["inside its 90 / 95 % intervals", *map(" / ".join, covered)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("-0.", "−0.")


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent.parent / "models" / "results"
    print(table_of(json.loads((folder / "causal_imputation.json").read_text(encoding="utf-8"))))
