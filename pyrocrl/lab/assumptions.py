"""Which assumption buys which claim of which model, and in which settings it was broken, with the verdicts there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyrocrl import zoo
from pyrocrl.claims.card import CONDITIONS, ON_WORD, Claim
from pyrocrl.lab.suite import cases
from pyrocrl.program import Program

RESULTS = Path(__file__).resolve().parent.parent / "models" / "results" / "verdicts.json"


@dataclass(frozen=True)
class Assumption:
    """An assumption in words; the claims that a model makes of it; shown_by: "data and fit", "a test of the fit" or
    "your word"; broken: settings of `lab.verdicts` in which it does not hold, and the verdicts of the first claim
    there, by setting."""

    assumption: str
    claims: tuple[str, ...]
    model: str
    shown_by: str
    broken: Mapping[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def table(models: Iterable[str] | None = None) -> list[Assumption]:
    """All assumptions of all models that claim something, those that several models make together; the checked ones
    first, as they stand in `CONDITIONS`."""
    seen = _outcomes()
    found = [one for name in models or zoo.built_in() for one in _of(zoo.get(name), seen)]
    order = {text: place for place, text in enumerate(CONDITIONS.values())}
    first: dict[str, int] = {}
    for one in found:
        first.setdefault(one.assumption, order.get(one.assumption, len(order) + len(first)))
    return sorted(found, key=lambda one: first[one.assumption])


def _of(program: type[Program], seen: Mapping[str, tuple[str, ...]]) -> list[Assumption]:
    card = program.card
    tested = {sentence for sentences in program.checks.values() for sentence in sentences}
    buys: dict[str, list[str]] = {}
    for claim in card.claims:
        for sentence in needed(claim):
            heads = buys.setdefault(sentence, [])
            heads.extend([head] if (head := claim.head()) not in heads else [])
    whole = list(dict.fromkeys(claim.head() for claim in card.claims))
    for sentence in card.assumes if whole else ():
        buys.setdefault(sentence, whole)
    broken: dict[str, dict[str, tuple[str, ...]]] = {}
    for case in cases():
        if case.model == card.name and case.breaks:
            setting = case.name.removeprefix(f"{card.name}: ")
            broken.setdefault(CONDITIONS.get(case.breaks, case.breaks), {})[setting] = seen.get(case.name, ())
    keys = {text: key for key, text in CONDITIONS.items()}
    out = []
    for sentence, claims in buys.items():
        checked = sentence in keys and keys[sentence] not in ON_WORD
        by = "data and fit" if checked else "a test of the fit" if sentence in tested else "your word"
        out.append(Assumption(sentence, tuple(claims), card.name, by, broken.get(sentence, {})))
    return out


def needed(claim: Claim) -> list[str]:
    """What a claim needs, in words: conditions, then what is given."""
    return [*(CONDITIONS[need] for need in claim.conditions), *claim.given]


def _outcomes() -> dict[str, tuple[str, ...]]:
    """By case of `lab.verdicts` the verdicts of its first claim in the committed results, each once."""
    if not RESULTS.exists():
        return {}
    out: dict[str, tuple[str, ...]] = {}
    for case in json.loads(RESULTS.read_text(encoding="utf-8"))["cases"]:
        first = [next(iter(row["claims"].values()))["verdict"] for row in case["seeds"] if row.get("claims")]
        out[case["name"]] = tuple(dict.fromkeys(first))
    return out


def text(found: Iterable[Assumption]) -> str:
    """Each assumption with the models that make it: what they claim of it, and where it was broken."""
    lines: list[str] = []
    last = ""
    for one in found:
        if one.assumption != last:
            lines += ["", one.assumption]
        last = one.assumption
        lines.append(f"  {one.model} ({one.shown_by}): {'; '.join(one.claims)}")
        lines += [f"    broken in: {name} ({_said(said)})" for name, said in one.broken.items()]
    return "\n".join(lines[1:])


def markdown() -> str:
    """The same as a page of the site."""
    parts = [
        "# What buys what",
        "Every claim rests on assumptions. Some show in *data and fit*, some are put to *a test of the fit*, the rest "
        "are taken on *your word*, and a verdict that rests on them is *identified if*. Beside a model stand settings "
        "in which the assumption does not hold, and the verdict on the model's first claim there (`python -m "
        "pyrocrl.lab.verdicts`). In the shell: `pyrocrl list --assumptions`.",
        suite(),
    ]
    found = table()
    for sentence in dict.fromkeys(one.assumption for one in found):
        lines = ["| model | shown by | buys | broken in |", "|---|---|---|---|"]
        for one in found:
            if one.assumption == sentence:
                where = "; ".join(f"{name} (*{_said(said)}*)" for name, said in one.broken.items()) or "–"
                cells = [f"[`{one.model}`](models/{one.model}.md)", one.shown_by, "; ".join(one.claims), where]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts += [f"## {sentence[0].upper()}{sentence[1:]}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def suite() -> str:
    """The committed verdicts in a paragraph: how many are right, of what is not identified too, and which are not."""
    made = json.loads(RESULTS.read_text(encoding="utf-8"))
    count, entries = made["summary"], made["cases"]
    seeds = sorted({len(entry["seeds"]) for entry in entries})
    shown = " or ".join(dict.fromkeys([str(seeds[0]), str(seeds[-1])]))
    bad = ("open", "word", "misspecified")
    wrong = [
        f"{entry['name']}, {what}: {claim['verdict']}"
        for entry in entries
        for row in entry["seeds"]
        for what, claim in row.get("claims", {}).items()
        if not claim["right"]
    ]
    each = [f"- {one}" + (f" ({n} times)" if (n := wrong.count(one)) > 1 else "") for one in dict.fromkeys(wrong)]
    return (
        f"{len(entries)} settings, {shown} seeds each: {count['all']['right']} of {count['all']['verdicts']} verdicts "
        f"are right; of what is not identified, is misspecified, or holds on one's word alone, "
        f"{sum(count[kind]['right'] for kind in bad)} of {sum(count[kind]['verdicts'] for kind in bad)}. "
        "Wrong are:\n\n" + "\n".join(each or ["- none"])
    )


def _said(outcomes: tuple[str, ...]) -> str:
    return " or ".join(outcomes) or "not run"
