"""How many latents there are, where a user leaves it to the data: latents="auto", or a range such as "2-8".

Programs say how theirs are counted (`Program.counted`): by the evidence of factor models, where the mixing is linear;
by the targets that environments are told to have, where each latent needs an intervention; or by the fit itself, where
latents that are not needed stay without features: then as many are offered as might be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.exact.number import Factors, factors
from pyrocrl.options import check_memory, reach
from pyrocrl.program import Program

AUTO = "auto"
WORDS = "a whole number from 1 on, 'auto', or a range such as '2-8'"
OFFERED = 15  # latents, where factors cannot be counted
SPARE = 3  # latents that are offered beyond the factors, at least; else as many again
MOST_FEATURES = 1_000  # whose covariance factor models are fitted to
MOST_ROWS = 20_000  # rows that they are fitted to
SHOWN = 0.005  # probabilities below are not told


@dataclass(frozen=True)
class Number:
    """How many latents a program has been given (`latents`), and what is known of how many there are.

    by: "evidence", "targets" or "offered"; probability: number -> posterior probability, of a uniform prior over `low`
    to `high`; of "offered" it is the fit's, and empty before. about: what it rests on, in words.
    """

    latents: int
    by: str
    probability: Mapping[int, float]
    low: int
    high: int
    about: str

    @property
    def mode(self) -> int | None:
        """The most probable number; None where nothing is known of it yet."""
        return max(self.probability, key=lambda k: self.probability[k]) if self.probability else None

    def __str__(self) -> str:
        if not self.probability:
            return f"latents: {self.latents} offered, how many are in use is learned ({self.about})"
        shown = [f"{k}: {p:.2f}" for k, p in sorted(self.probability.items()) if p >= SHOWN]
        return f"latents: {self.mode} (probability of {', '.join(shown)}; {self.about})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"probability": {str(k): p for k, p in self.probability.items()}, "mode": self.mode}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Number:
        """The one that `to_dict` made this of."""
        known = {name: told[name] for name in ("latents", "by", "low", "high", "about")}
        return cls(**known, probability={int(k): float(p) for k, p in told["probability"].items()})

    @classmethod
    def drawn(cls, numbers: np.ndarray, weights: np.ndarray, latents: int, about: str) -> Number:
        """Of as many `latents` as are offered, those in use by draws of a fit: numbers (chain, draw) in 0 .. latents,
        and the chains' weights (chain,)."""
        share = np.bincount(numbers.ravel().astype(int), np.repeat(weights / numbers.shape[1], numbers.shape[1]))
        probability = {k: float(p) for k, p in enumerate(share) if p > 0}
        if probability.get(latents, 0.0) > 0.5:
            about += "; all are in use, so offer more"
        return cls(latents, "offered", probability, 0, latents, about)


def asked(kind: type[Program], latents: object) -> tuple[int, int | None] | None:
    """The range that a user leaves to the data, None for its upper end where that is open; None where `latents` is no
    text. Raises InputError for a text that says something else, and for a model that has no way to count latents."""
    if not isinstance(latents, str):
        return None
    if "latents" not in kind.options():
        reject("latents", f"{latents!r} for {kind.card.name}", "nothing: its latents are not an option")
    found = re.fullmatch(r"(\d{1,6})-(\d{1,6})", latents.strip())
    if latents.strip() != AUTO and not found:
        reject("latents", repr(latents), WORDS)
    if kind.counted is None:
        reject("latents", f"{latents!r} for {kind.card.name}, which cannot count them", "a whole number from 1 on")
    low, high = (int(found[1]), int(found[2])) if found else (1, None)
    if low < 1 or (high is not None and high < low):
        reject("latents", repr(latents), "a range of whole numbers from 1 on, the smaller one first")
    return low, high


def count(kind: type[Program], data: Data, latents: str, options: Mapping[str, Any]) -> Number:
    """The number of latents that a program of these data is to have. Raises InputError as `asked` does, and where these
    data do not tell it."""
    told = asked(kind, latents)
    assert told is not None
    low, high = told
    text, name = repr(latents), kind.card.name
    named = _named(data, options)
    if kind.counted == "targets":
        if named is None:
            reject("latents", f"{text} for {name} of data that tell no targets", "a whole number from 1 on")
        return _by_targets(named, low, high, "")
    least, largest = reach(kind.options()["latents"].hint)  # of the model
    low = max(low, int(max(least, 1)))
    found = None if high is not None and kind.counted == "offered" else _factors(data, low, high)
    if (
        kind.counted == "evidence"
        and named is not None
        and (found is None or (not found.exact and found.mode < named))  # weak factors do not show
    ):
        why = "no factors could be counted" if found is None else f"{_words(found, data)} alone finds {found.mode}"
        return _by_targets(named, low, high, f"; {why}")
    if kind.counted == "offered":
        most = int(min(largest, data.features - 1, data.features if high is None else high))
        if high is None and found is not None:
            most = min(most, max(2 * found.mode, found.mode + SPARE, named or 0))
        elif high is None:
            most = min(most, OFFERED)
        if most < low:
            reject("latents", f"{text} for {data.features} features", f"a range that begins at {most} or below")
        about = "the end of the range" if high is not None else "no factors could be counted"
        return Number(most, "offered", {}, low, most, _words(found, data) if found else about)
    if found is None:
        seen = f"{data.rows} rows of {data.features} {'counts' if data.counts else 'features'}"
        needs = f"none missing, more rows than features, and {MOST_FEATURES} of these at most"
        reject("latents", f"{text} for {seen}", f"a whole number; to count them takes no counts, {needs}")
    within = {k: float(p) for k, p in zip(found.number, found.probability, strict=True)}
    number = Number(found.mode, "evidence", within, found.number[0], found.number[-1], _words(found, data))
    if not low <= found.mode <= (found.mode if high is None else high):  # of exact dimensions
        reject("latents", f"{text}; {number}", "a range that holds this number")
    others = bool(options.get("incomplete", not kind.card.targets))  # whether latents may be no environment's target
    enough = named is None or found.mode == named or (found.mode > named and others)
    if not enough:
        assert named is not None
        more = "interventions on the others, or latents as many as are targeted, which the verdict may contradict"
        less = "targets of as many latents; features in which more latents show"
        told_so = f"{number}, of which environments target {named}"
        reject("latents", f"{text}; {told_so}", more if found.mode > named else less)
    return number


def _by_targets(named: int, low: int, high: int | None, why: str) -> Number:
    if not low <= named <= (named if high is None else high):
        found = f"'{low}-{named if high is None else high}', where environments target {named} latents"
        reject("latents", found, "a range that holds this number")
    about = f"as many as environments are told to target{why}"
    return Number(named, "targets", {named: 1.0}, low, high or named, about)


def _named(data: Data, options: Mapping[str, Any]) -> int | None:
    """How many latents environments are told to target, unless that is not to be believed."""
    if data.targets is None or options.get("targets") == "unknown":
        return None
    hit = {int(k) for latents in data.targets.values() for k in latents}
    return max(hit) + 1 if hit else None


def _factors(data: Data, low: int, high: int | None) -> Factors | None:
    """Of the rows about their means in every environment and batch; None where a factor model is none of theirs."""
    if data.counts or data.incomplete or data.gaps or data.features > MOST_FEATURES:
        return None
    rows = data.spread(MOST_ROWS)
    check_memory("features", data.features, 32.0 * data.features**2)
    x = data.rows_at(rows).x
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float64).copy()
    group = np.unique(np.column_stack([data.env[rows], data.batch[rows]]), axis=0, return_inverse=True)[1].reshape(-1)
    for one in np.unique(group):
        x[group == one] -= x[group == one].mean(0)
    return factors(x, low, high, int(group.max()) + 1)


def _words(found: Factors, data: Data) -> str:
    if found.exact:
        return f"{data.features} features span exactly so many dimensions"
    tried = f"{found.number[0]} to {found.number[-1]}" if len(found.number) > 1 else str(found.number[0])
    return f"evidence of {tried} factors in {data.features} features"
