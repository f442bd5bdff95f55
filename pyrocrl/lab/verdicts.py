"""Are verdicts right? Small settings whose answer theory knows, half of them not identified or misspecified.

    python -m pyrocrl.lab.verdicts --seeds 0:3 --json models/results/verdicts.json

Each `Case` of `pyrocrl.lab.suite` draws data, fits one model and says which outcomes are right: what is identified must
not be refused, and what is not must not be called identified. Of a misspecified case any outcome is right where the
estimate is, and no outcome that lets it be read where it is not. Assumptions that no data can show are right where the
verdict names them.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrocrl import zoo
from pyrocrl.claims.indeterminacy import differing_pairs, interventional_cpdag, transitive_closure
from pyrocrl.claims.nested import Kept
from pyrocrl.data import Data
from pyrocrl.errors import InputError
from pyrocrl.infer.fit import fit
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.infer.loop import FitError
from pyrocrl.io import write_json
from pyrocrl.judge.diagnose import HOLDS, diagnose
from pyrocrl.judge.equivalence import equivalence_class
from pyrocrl.judge.metrics import mcc, r2, reorder_graph
from pyrocrl.lab.provenance import parse_seeds, provenance
from pyrocrl.lab.studies.view_blocks import block_scores
from pyrocrl.lab.suite import cases
from pyrocrl.lab.suite.case import Case

Array = np.ndarray


def run_case(case: Case, seed: int) -> dict[str, Any]:
    """Each claim's verdict and whether it is right, with the estimate's scores; a fit that fails is a row as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            data = case.draw(seed)
            program = zoo.build(case.model, data, **case.options)
            result = fit(program, data, seed=seed, device="cpu", progress=False, **case.recipe)
        except (FitError, InputError) as error:
            return {"seed": seed, "failed": str(error)}
    return judged(case, seed, result, data)


def judged(case: Case, seed: int, result: Fit, data: Data) -> dict[str, Any]:
    """The row of a fit."""
    scores = estimated(result, data)
    claims = {}
    for claim in diagnose(result, data).claims:
        said = {"verdict": claim.verdict, "right": case.right(claim, scores), "reason": claim.reason}
        claims[claim.what] = said | {"given": list(claim.given), "rows": claim.rows, "which": list(claim.which)}
    return {"seed": seed, "claims": claims, "scores": scores, "seconds": result.meta["cpu_seconds"]}


def estimated(result: Fit, data: Data) -> dict[str, float]:
    """Latents', graph's and mask's scores against the truth, where it is of as many latents."""
    z, mask, graph = result.latents(data), result.mask(), result.graph()
    if mask is not None and (
        graph is None or z.shape[1] > data.truth["z"].shape[1]
    ):  # more may be offered than are there
        used = (mask > INCLUDED).any(0)
        z, mask, graph = z[:, used], mask[:, used], None if graph is None else graph[np.ix_(used, used)]
    if z.shape != data.truth["z"].shape:
        return {}
    if isinstance(result.group, Kept):
        return {"r2": float(result.group.align(z, data.truth["z"]).agreement.min())}
    if result.group.keeps_masks:
        return block_scores(result, data)
    if result.program.group.mixes:
        return {"r2": r2(data.truth["z"], z)}
    score, nodes = mcc(data.truth["z"], z, return_assignment=True)
    out = {"mcc": float(score)}
    if graph is not None and "graph" in data.truth and min(nodes) >= 0:
        found: Array = reorder_graph(graph, nodes)
        true: Array = data.truth["graph"] > 0
        if any(
            "markov equivalence" in claim.up_to for claim in result.program.claims()
        ):  # what it says: which are joined
            found, true = np.triu(found + found.T), np.triu(true | true.T)
        elif any("interventional equivalence" in claim.up_to for claim in result.program.claims()):
            hit = np.zeros((len(result.names["env"]), len(true)))
            told: Any = data.truth["targets"]
            for env, at in told.items():
                hit[result.names["env"].index(env), list(at)] = 1
            arcs: Array = equivalence_class(result, data)["arc"].to_numpy()
            found, true = arcs, interventional_cpdag(true, hit)
            if (targets := result.targets()) is not None:
                out["wrong_targets"] = float(((targets > 0.5) != (hit > 0)).sum())
        elif any("transitive closure" in claim.up_to for claim in result.program.claims()):
            found, true = transitive_closure(found > 0.5), transitive_closure(true)
        out["wrong_pairs"] = float(differing_pairs(found > 0.5, true))
    if (parents := result.parents()) is not None:
        true = data.truth["graph"][:, [result.program.config["response"]]] > 0
        out["wrong_parents"] = float(((parents > 0.5) != true).sum())
    if mask is not None and "mask" in data.truth and min(nodes) >= 0:
        out["wrong_entries"] = float(((mask[:, nodes] > 0.5) != (data.truth["mask"] > 0)).mean())
    return out


def study(chosen: Sequence[Case], seeds: Sequence[int], path: str | Path | None = None) -> dict[str, Any]:
    """All cases with all seeds, and the shares that are right; written to `path` after each case, where rows of other
    cases and seeds stay as they are, each with the commit that it is of."""
    made = provenance()
    known: dict[str, dict[int, dict[str, Any]]] = {}
    if path is not None and Path(path).exists():
        before = json.loads(Path(path).read_text(encoding="utf-8"))
        for entry in before["cases"]:
            known[entry["name"]] = {row["seed"]: {"commit": before["commit"]} | row for row in entry["seeds"]}
    table: dict[str, Any] = {"about": "verdicts", **made, "summary": summarise([]), "cases": []}
    for case in chosen:
        new = {seed: run_case(case, seed) | {"commit": made["commit"]} for seed in seeds}
        known[case.name] = known.get(case.name, {}) | new
        print(line({"name": case.name, "kind": case.kind, "seeds": list(new.values())}), flush=True)
        table["cases"] = [
            {"name": one.name, "model": one.model, "kind": one.kind, "seeds": [rows[seed] for seed in sorted(rows)]}
            for one in cases()
            if (rows := known.get(one.name))
        ]
        table["summary"] = summarise(table["cases"])
        if path is not None:
            write_json(table, path)
    return table


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By kind and in all: verdicts, those that are right, and where a claim must not be called identified and is."""
    out: dict[str, Any] = {}
    wrong = []
    for entry in entries:
        for row in entry["seeds"]:
            for what, claim in row.get("claims", {}).items():
                for kind in (entry["kind"], "all"):
                    known = out.setdefault(kind, {"verdicts": 0, "right": 0})
                    known["verdicts"] += 1
                    known["right"] += claim["right"]
                if not claim["right"] and claim["verdict"] in HOLDS:
                    wrong.append(f"{entry['name']}, seed {row['seed']}, {what}")
    failed = [f"{entry['name']}, seed {row['seed']}" for entry in entries for row in entry["seeds"] if "failed" in row]
    return {**out, "settings": len(entries), "unearned": wrong, "failed": failed}


def line(entry: Mapping[str, Any]) -> str:
    """A case in one line: of every seed the verdicts, those that are wrong in capitals."""
    parts = []
    for row in entry["seeds"]:
        if "failed" in row:
            parts.append(f"failed: {row['failed'][:60]}")
            continue
        said = [f"{w} {c['verdict'] if c['right'] else c['verdict'].upper()}" for w, c in row["claims"].items()]
        score = " ".join(f"{name} {value:.2f}" for name, value in row["scores"].items())
        parts.append(f"{', '.join(said)} ({score}; {row['seconds']:.0f} s)")
    return f"{entry['name']} [{entry['kind']}]: " + " | ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.verdicts", description=__doc__)
    parser.add_argument("--seeds", default="0:3", help="0:3 (0 to 2), 3 or 0,2")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", default=None, help="where the results go")
    told = parser.parse_args(arguments)
    chosen = [case for case in cases() if told.only in case.name]
    if not chosen:
        parser.error(f"--only {told.only!r}: no case is called so")
    table = study(chosen, parse_seeds(told.seeds), told.json)
    found = table["summary"].get("all", {"right": 0, "verdicts": 0})
    print(f"{found['right']} of {found['verdicts']} verdicts right in {len(table['cases'])} settings")
    for one in table["summary"]["unearned"]:
        print(f"identified, and must not be: {one}")


if __name__ == "__main__":
    main()
