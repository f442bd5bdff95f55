"""A setting of the suite: what it draws, which model is fitted, and which verdicts are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.judge.diagnose import ClaimVerdict

UNDECIDED = "identified, undecided at this n"
REFUSED = ("not identified", "contradicted", "not converged")
GOOD = 0.95  # mcc from which latents are right


@dataclass(frozen=True)
class Case:
    """One setting. kind: "identified" (but for a graph with a wrong pair, which has to be undecided), "small"
    (identified, yet of few rows: what is read has to be right), "open" (not identified), "word" (not identified, unless
    for an assumption that no data can show, which `names` a part of) or "misspecified".

    open: what of an open case is not identified, the other claims being free. options: of the program; recipe: of the
    fit. breaks: the assumption that does not hold: a key of `CONDITIONS`, or a sentence of the model's card.
    """

    name: str
    model: str
    kind: str
    draw: Callable[[int], Data]
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    open: tuple[str, ...] = ("latents", "mask", "graph", "parents")
    names: str = "interventions"
    breaks: str = ""

    def right(self, claim: ClaimVerdict, scores: Mapping[str, float]) -> bool:
        """Whether this verdict is right, given the estimate's scores against the truth."""
        if self.kind == "identified":
            if claim.what == "graph" and not well_estimated("graph", scores):
                return claim.verdict == UNDECIDED
            return claim.identified
        if self.kind == "small":
            read = claim.identified and well_estimated(claim.what, scores)
            return read or claim.verdict in (UNDECIDED, "not converged")
        if self.kind == "misspecified":
            return not claim.identified or well_estimated(claim.what, scores)
        if claim.what not in self.open:
            return True
        if self.kind == "word":
            return not claim.identified or any(self.names in sentence for sentence in claim.given)
        return claim.verdict in REFUSED


def well_estimated(what: str, scores: Mapping[str, float]) -> bool:
    """Whether an estimate may be read: latents of an mcc of `GOOD` and as many as are true, or of such an R² where they
    mix; masks of as many wrong entries at most, graphs without a wrong pair, parents without a wrong one, targets of
    columns without a wrong one; of the rest, where the latents may."""
    if what == "mask":
        return scores.get("wrong_entries", 1.0) <= 1 - GOOD
    if what == "targets" and "wrong_targets" in scores:
        return not scores["wrong_targets"]
    if what == "parents":
        return not scores.get("wrong_parents", 1.0)
    return not scores.get("wrong_pairs") if what == "graph" else scores.get("mcc", scores.get("r2", 0.0)) >= GOOD


def drawn(setting: str, **options: Any) -> Callable[[int], Data]:
    return lambda seed: simulate.draw(setting, seed, **options)


FEW = {"chains": 2}
