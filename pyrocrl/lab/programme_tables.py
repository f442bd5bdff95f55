"""What `pyrocrl.lab.programmes` found, as markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocrl.lab.programmes import FACTORS, MODELS

FILE = Path(__file__).resolve().parents[1] / "models" / "results" / "programmes.json"
NAMES = {
    "sparse_vae, counts": "`sparse_vae` of counts",
    "spike_slab_fa, counts": "`spike_slab_fa` of counts",
    "spike_slab_fa, log": "`spike_slab_fa` of log(1 + x / size)",
    "ebmf, counts": "`ebmf` of counts",
    "ebmf, log": "`ebmf` of log(1 + x / size)",
    FACTORS: "factor analysis, varimax, of log(1 + x / size)",
    "independent, counts": "independent genes, of counts",
    "independent, log": "independent genes, of log(1 + x / size)",
}

ALONE = "independent, counts"


def tables() -> str:
    """`tables_of` the committed results; empty where there are none."""
    return tables_of(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.exists() else ""


def tables_of(results: Mapping[str, Any]) -> str:
    """The committed results as markdown: prediction, programmes and verdicts; what models share, what comes again; how
    well a programme tells knock-outs; and the genes of the programmes of the screen's first half."""
    parts = []
    for entry in results["data"]:
        count = f"{entry['cells'][0]:,} cells fitted, {entry['genes']} genes, {entry['offered']} programmes offered"
        parts += [f"**`{entry['name']}`**: {count}; the two halves stand side by side.", _figures(entry)]
        parts += [_in_pairs(entry), _again(entry)]
        if any(row.get("auroc") for row in entry["halves"][0]["models"].values()):
            parts += [_aurocs(entry), _genes(entry)]
    return "\n\n".join(parts)


def _table(*lines: Sequence[str]) -> str:
    head, *rest = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rest])


def _both(entry: Mapping[str, Any], label: str, told: Callable[[Mapping[str, Any]], str]) -> str:
    """What is told of a model in either half; once where it is the same."""
    found = [told(half["models"][label]) for half in entry["halves"]]
    return found[0] if found[0] == found[1] else "; ".join(found)


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _figures(entry: Mapping[str, Any]) -> str:
    heads = ["model", "log-probability of a new cell, beyond independent genes ± s.e.", "as a density", "programmes"]
    heads += ["genes above .9", "between .1 and .9", "verdict on programmes", "cpu seconds"]
    lines = [heads]
    for label, title in NAMES.items():
        if label not in entry["halves"][0]["models"]:
            continue
        gain = _both(entry, label, lambda row: f"{_signed(row['gain'])} ± {row['standard_error']:.1f}")
        cells = [title, gain if label != ALONE else "0", _density(entry, label)]
        cells.append(_both(entry, label, lambda row: str(row.get("programmes", ""))))
        if label in MODELS:
            cells.append(_both(entry, label, lambda row: str(sum(map(len, row["genes"])))))
            cells.append(_both(entry, label, lambda row: str(row["undecided"])))
            cells.append(_both(entry, label, lambda row: f"*{row['verdict']['latents']}*"))
            cells.append(_both(entry, label, lambda row: f"{row['cpu_seconds']:.0f}"))
        lines.append(cells + [""] * (len(heads) - len(cells)))
    return _table(*lines)


def _density(entry: Mapping[str, Any], label: str) -> str:
    """Of a model of log counts, with the Jacobian, beyond the log-probability under independent genes."""
    halves = [half["models"] for half in entry["halves"]]
    if "density" not in halves[0][label]:
        return ""
    return "; ".join(_signed(models[label]["density"] - models[ALONE]["held_out"]) for models in halves)


def _in_pairs(entry: Mapping[str, Any]) -> str:
    lines = [["two models of the same cells", "programmes", "the same", "genes of these in both, of those in either"]]
    for pair in entry["common"]:
        first, second = (NAMES[label] for label in pair["models"])
        halves = pair["halves"]
        cells = [f"{first}; {second}", "; ".join("{}, {}".format(*half["programmes"]) for half in halves)]
        cells.append("; ".join(str(half["same"]) for half in halves))
        lines.append([*cells, "; ".join(f"{half['genes_in_both']} of {half['genes_in_either']}" for half in halves)])
    return _table(*lines)


def _again(entry: Mapping[str, Any]) -> str:
    heads = ["one model of either half", "programmes", "the same", "sure genes (above .9)", "included again"]
    lines = [[*heads, "by chance in the same programmes"]]
    for label, title in NAMES.items():
        if label in entry["again"]:
            halves = entry["again"][label]
            cells = [title, "{}, {}".format(*halves[0]["programmes"]), str(halves[0]["same"])]
            cells.append("; ".join(str(half["sure"]) for half in halves))
            again = [f"{half['sure_again'] / half['sure']:.0%}" if half["sure"] else "–" for half in halves]
            chance = [f"{half['sure_by_chance'] / half['sure']:.0%}" if half["sure"] else "–" for half in halves]
            lines.append([*cells, "; ".join(again), "; ".join(chance)])
    return _table(*lines)


def _aurocs(entry: Mapping[str, Any]) -> str:
    knockouts = [name for name in entry["halves"][0]["models"][FACTORS]["auroc"] if name != "programme"]
    lines = [["AUROC of one programme in cells that were not fitted", *knockouts, "mean"]]
    for label, title in NAMES.items():
        if entry["halves"][0]["models"].get(label, {}).get("auroc"):
            each = [_both(entry, label, lambda row, n=n: f"{row['auroc'][n]:.3f}") for n in knockouts]  # type: ignore[misc]
            mean = _both(entry, label, lambda row: f"{np.mean([row['auroc'][n] for n in knockouts]):.3f}")
            lines.append([title, *each, mean])
    return _table(*lines)


def _genes(entry: Mapping[str, Any], most: int = 10) -> str:
    lines = [["programmes of the first half", "genes above .9", "those that go with it most"]]
    for label in filter(entry["halves"][0]["models"].__contains__, MODELS):
        row = entry["halves"][0]["models"][label]
        for k in sorted(range(len(row["genes"])), key=lambda k: -len(row["genes"][k])):
            if row["genes"][k]:
                mark = " (the one of the AUROCs)" if row["auroc"]["programme"] == k else ""
                lines.append([NAMES[label] + mark, str(len(row["genes"][k])), ", ".join(row["genes"][k][:most])])
    return _table(*lines)
