"""Studies of values that are missing, in place of the same rows whole and of means in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies.study import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit


@dataclass(frozen=True)
class Lacking(Study):
    """Latents (lacking_mcc), a mask (lacking_mask_f1) and what is missing (fill_error, relative to means of columns;
    fill_coverage of 90 % intervals) from rows that lack values at random; beside fits of the same rows whole (whole_)
    and with columns' means in place of what is missing (means_). missing: share of the values. recipe: of the two
    other fits, where they take fewer chains."""

    missing: float = 0.2
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = simulate.draw(self.setting, seed, **self.options)
        lacks = np.random.default_rng([9, seed]).random(data.x.shape) < self.missing
        data, lacks = data.rows_at(~lacks.all(1)), lacks[~lacks.all(1)]
        return Data(np.where(lacks, np.nan, data.x), truth=data.truth, missing=True, name=data.name), data

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.lab import completions
        from pyrocrl.predict import fill

        fitted, seed = result.data, result.meta["seed"]
        assert fitted is not None
        told, lacks = fill(result), ~fitted.known
        inside = (told["low"].to_numpy() <= data.x) & (data.x <= told["high"].to_numpy())
        means = completions.column_means(fitted.x.astype(float))
        out = {
            "held_out": float(result.weights @ result.scores),
            "fill_error": completions.relative_error(told["mean"].to_numpy(), data.x, lacks),
            "means_fill_error": completions.relative_error(means, data.x, lacks),
            "fill_coverage": float(inside[lacks].mean()),
        }
        out |= {f"lacking_{name}": value for name, value in _recovered(result, fitted).items()}
        for name, rows in {"whole": data, "means": Data(means, truth=data.truth)}.items():
            program = zoo.build(result.program.card.name, rows, **self.build)
            rival = fit(program, rows, seed=seed, device="cpu", progress=False, **self.recipe)
            out |= {f"{name}_lacking_{what}": value for what, value in _recovered(rival, rows).items()}
        return out

    @property
    def label(self) -> str:
        return f"{super().label}, {self.missing:.0%} missing"


def _recovered(result: Fit, data: Data) -> dict[str, float]:
    """How well latents, and a mask where the truth has one, are recovered."""
    from pyrocrl.judge import metrics

    score, nodes = metrics.mcc(data.truth["z"], result.latents(data), return_assignment=True)
    mask = result.mask()
    if mask is None or "mask" not in data.truth:
        return {"mcc": float(score)}
    return {"mcc": float(score), "mask_f1": metrics.mask_scores(data.truth["mask"], mask, permutation=nodes)["f1"]}
