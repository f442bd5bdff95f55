"""What `calibrate` found of the zoo: the committed results as tables, and where stable models fall short of the law.

The law: where the verdict lets the claims stand, 90 % intervals of weights, loadings and latents cover 85 to 95 %, and
probabilities of edges, mask entries, targets and states have an expected calibration error of .05 at most.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyrocrl.errors import one_of
from pyrocrl.zoo import names

COVERED = (0.85, 0.95)  # of 90 % intervals
ECE = 0.05
SCALARS, CELLS = ("weight", "loadings", "z"), ("graph", "mask", "targets", "z", "state")
FOLDER = Path(__file__).resolve().parents[1] / "models" / "results" / "calibration"

# by model and what falls short, the reason in a sentence; a shortfall that is none any more is to be taken out
POINT = "is a point estimate, whose error does not reach z."
SHORT: Mapping[str, Mapping[str, str]] = {
    "linear_sem_lin": {"graph ECE": "At 100 rows: of 48 cells exact probabilities would show .10 on average."},
    "ivae": {"z": f"The encoder's mean {POINT}", "scale": "The encoder's mean is a point estimate."},
    "sparse_vae": {
        "variance": "What the decoder misses counts as noise, most of a product of latents; an anchor that latents are "
        "read from has too little; and both are told too well, given latents as the guide has them."
    },
    "anchor_fa": {
        "rate": "Shares of features below 1e-6 are told as that.",
    },
    "discrepancy_vae": {"intercept": "Zeros of latents that no link tells are a convention, and levels go with them."},
    "gmm_vae": {"z": f"Two sets, of 16 values in all, tell little from chance; the mixing {POINT}"},
    "linear_sem_nonlin": {
        "z": "One set of three has a verdict that holds, at the example's short training.",
        "weight": "As z: six values.",
        "graph ECE": "As z: six cells, none of them decided.",
    },
    "cross_modal": {"own": "Turns and signs of private latents, of which nothing is claimed, were not matched."},
    "structural_sparsity_ica": {
        "variance": "Latents of every draw have exactly normal ranks, which smooth curves cannot follow: with little "
        "noise the variance takes that up.",
        "z": "Few sets have a verdict that holds: most masks that the prior draws leave latents untold.",
    },
    "equivariant_mechanism": {
        "z": "One deviation stands for all rows: intervals are too wide where the encoder reads well."
    },
    "overparameterized_ae": {
        "not measured": "Nothing of z is claimed, and it has more latents than rows: the affine map by which truths "
        "are then brought to a fit would bring any to any. Weights are a net's, without a posterior."
    },
    "independent_support": {
        "loadings": "Two sets; of all, walks of 300 sweeps may stay away from a likelier box beside tight clusters.",
        "variance": "Two sets; rows far off the span are left out, which would tell of noise.",
    },
    "ima": {"z": "Draws are of a normal law about one of several modes, of maps as rough as is most likely."},
    "score_crl": {"z": "The unmixing's law is that under the trained equations, whose error does not reach z."},
    "unknown_targets": {
        "graph ECE": "Of 48 cells exact probabilities would show .10 on average.",
        "targets ECE": "Of 96 cells exact probabilities would show .08 on average.",
    },
}


def results(name: str) -> list[dict[str, Any]]:
    """The committed results of a model, by rows; empty where there are none. Raises InputError for an unknown name."""
    one_of("name", name, names())
    found = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob(f"{name}_*.json")]
    return sorted((one for one in found if one["model"] == name), key=lambda one: one["rows"] or 0)


def held(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The summary of the sets whose verdict holds; of all where there is none."""
    found: Mapping[str, Any] = result["summary"].get("held", {})
    return found if found.get("sets") else result["summary"]


def shortfalls(result: Mapping[str, Any], *, every: bool = False) -> dict[str, float]:
    """What of a result falls short of the law, and the figure: `z` and the like of intervals, `graph ECE` of cells.

    every: of all sites, not of those alone that the law is about.
    """
    found, low, high = held(result), *COVERED
    covered = {n: s["covered_90"] for n, s in found["scalars"].items() if every or n in SCALARS}
    errors = {f"{n} ECE": s["ece"] for n, s in found["cells"].items()}
    return {n: v for n, v in covered.items() if not low <= round(v, 2) <= high} | {
        n: v for n, v in errors.items() if round(v, 2) > ECE
    }


def table() -> str:
    """All committed results as markdown, a line each; where verdicts differ, the figure of all sets in brackets."""
    return _lines(result for name in names() for result in results(name))


def findings(name: str) -> str:
    """A model's results as markdown: its lines of the table, other sites, and what falls short and why. Empty where
    there is nothing to tell."""
    found = results(name)
    parts = [_lines(found)] if found else []
    for result in found:
        scalars = held(result)["scalars"]
        more = [f"{s['covered_90']:.2f} of {n}" for n, s in scalars.items() if n not in SCALARS]
        if more:
            parts.append(f"With {_rows(result)}, 90 % intervals cover also {', '.join(more)}.")
    parts += [f"Short of the law: {what}. {why}" for what, why in SHORT.get(name, {}).items()]
    return "\n\n".join(parts)


def _lines(found: Iterator[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    heads = ["model", "rows an environment", "truths", "sets", "verdict holds"]
    heads += [f"{name} covered" for name in SCALARS] + [f"{name} ECE" for name in CELLS]
    lines = [heads, ["---"] * len(heads)]
    for result in found:
        whole, best = result["summary"], held(result)
        done = whole["sets"] - whole["failed"]
        stands = whole.get("held", {"sets": done})["sets"]
        line = [f"`{result['model']}`", str(result["rows"] or "as given"), result["from"].removeprefix("the ")]
        line += [str(whole["sets"]) + (f", {whole['failed']} failed" if whole["failed"] else ""), str(stands)]
        line += [_cell(best["scalars"], whole["scalars"], name, "covered_90") for name in SCALARS]
        line += [_cell(best["cells"], whole["cells"], name, "ece") for name in CELLS]
        lines.append(line)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(best: Mapping[str, Any], whole: Mapping[str, Any], name: str, key: str) -> str:
    """The figure of the sets whose verdict holds, that of all in brackets where it is another."""
    shown = [f"{summary[name][key]:.2f}".removeprefix("0") for summary in (best, whole) if name in summary]
    return "" if not shown else shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[-1]})"


def _rows(result: Mapping[str, Any]) -> str:
    return f"{result['rows']} rows an environment" if result["rows"] else "as many rows as the example has"
