"""A study: one row of a model's table of results.

Models list theirs, so these files load what fits and scores only when a study is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pyrocrl import simulate
from pyrocrl.data import Data

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

DRAWN = 200  # of a chain


@dataclass(frozen=True)
class Study:
    """One row of a model's table: a setting with options, what the program is built with, and the seeds to report.

    held_out: share of each environment's rows that are scored and not fitted. identified: whether the claim fixes the
    graph exactly there, so that its edges count towards `calibration`. simulated: whether `setting` is one of
    `pyrocrl.simulate`, whose truth is known, and so one of the card's; else it is a data set.
    """

    simulated: ClassVar[bool] = True
    setting: str
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 8
    held_out: float = 0.5
    identified: bool = True

    def draw(self, seed: int) -> tuple[Data, Data]:
        """(rows to fit, rows to score)."""
        return simulate.draw(self.setting, seed, **self.options).split(self.held_out, seed)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        """Metrics on the rows that were kept out."""
        from pyrocrl.judge.evaluate import evaluate

        return evaluate(result, data)

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        """What a results row holds beside metrics: [probability, 0 or 1] of every edge, where the truth has a graph."""
        from pyrocrl.judge.evaluate import edge_table

        edges = [[round(p, 4), there] for p, there in edge_table(result, data)]
        return {"edges": edges} if edges else {}

    @property
    def label(self) -> str:
        options = readable(self.options)
        return f"{self.setting} ({options})" if options else self.setting


def readable(options: Mapping[str, Any]) -> str:
    """Options in words: "samples 20,000, pairs 0+1 0+3"."""
    return ", ".join(f"{name.replace('_', ' ')} {_words(value)}" for name, value in options.items())


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        nested = any(isinstance(item, list | tuple) for item in value)
        return (" " if nested else "+").join(map(_words, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
