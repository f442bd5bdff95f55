"""Is the module that a disease acts through found, are frequencies what they say, and are drugs that reverse it?

    python -m pyrocrl.lab.targets --seeds 0:8 --json pyrocrl/models/results/targets.json

A planted tree: a network of 200 genes grown by preferential attachment, two edges each, and in it a tree of twelve
genes that grows from a first one by any edge of any of its genes. Rows are linear equations along this tree, away from
the first gene, weights +-U(.5, 1), noise N(0, 1), all other genes N(0, 1) alone. The disease adds 1.5 to the first
gene's equation, with either sign, and .6 to 1.5 to those of ten genes outside: of the twenty genes of the largest
effects about half are the tree's, and of the tree's genes those far from the first are shifted little. Costs were
chosen on other seeds. In one setting half of the edges of the network that is given are wrong.

Drugs are those of `context_effects`: in each context a disease is made whose true effects are those of one of its drugs
turned round, and as much of something else. What is asked is which drugs have a correlation below -.3 with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from networkx.algorithms import approximation
from sklearn.metrics import average_precision_score

from pyrocrl import simulate, zoo
from pyrocrl.data import Data
from pyrocrl.infer.fit import fit
from pyrocrl.io import write_json
from pyrocrl.judge.imputation import RIVALS, Signatures
from pyrocrl.judge.metrics import expected_calibration_error, shd
from pyrocrl.judge.targets import discover_targets, reversing_drugs
from pyrocrl.lab.provenance import parse_seeds, provenance
from pyrocrl.predict import impute

GENES, MODULE, PASSENGERS, TERMINALS = 200, 12, 10, 20
SHIFT, STRENGTH = 1.5, (0.5, 1.0)
SETTINGS = ((100, 0.0), (50, 0.0), (100, 0.5))  # rows of either state, share of edges that are swapped
THRESHOLD, ERROR, DRAWS = 0.3, 0.3, 100  # of drugs
Array = np.ndarray


@dataclass(frozen=True)
class PlantedTree:
    """Rows of ill and healthy, a network, and the tree in it: whether each gene is in it, the graph (parent, child),
    and the genes whose own equation the disease shifts."""

    data: Data
    network: nx.Graph
    module: Array
    graph: Array
    hit: Array

    @classmethod
    def draw(cls, seed: int, samples: int, rewired: float = 0.0, genes: int = GENES) -> PlantedTree:
        """samples: rows of either state; rewired: share of the network's edges that are swapped after all else is
        drawn, every gene keeping as many."""
        rng = np.random.default_rng([seed, 29])
        network = nx.barabasi_albert_graph(genes, 2, seed=int(rng.integers(2**31)))
        inside, weight = [int(rng.integers(genes))], np.zeros((genes, genes))
        while len(inside) < MODULE:
            one = int(rng.choice(inside))
            if near := [v for v in network[one] if v not in inside]:
                inside.append(int(rng.choice(near)))
                weight[one, inside[-1]] = rng.uniform(*STRENGTH) * rng.choice([-1.0, 1.0])
        module = np.isin(np.arange(genes), inside)
        shift = np.zeros(genes)
        shift[inside[0]] = SHIFT * rng.choice([-1.0, 1.0])
        others = rng.choice(np.flatnonzero(~module), PASSENGERS, replace=False)
        shift[others] = SHIFT * rng.uniform(0.4, 1.0, PASSENGERS) * rng.choice([-1.0, 1.0], PASSENGERS)
        ill = np.repeat([0.0, 1.0], samples)
        noise = rng.standard_normal((2 * samples, genes)) + ill[:, None] * shift
        x = np.linalg.solve(np.eye(genes) - weight.T, noise.T).T
        names = [f"gene_{k}" for k in range(genes)]
        data = Data(x, np.where(ill > 0, "ill", "healthy"), control="healthy", feature_names=names)
        swaps = round(rewired * network.number_of_edges() / 2)
        if swaps:
            nx.double_edge_swap(network, swaps, max_tries=100 * swaps, seed=int(rng.integers(2**31)))
        return cls(data, network, module, (weight != 0).astype(int), shift != 0)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Of the network, by names."""
        return [(f"gene_{a}", f"gene_{b}") for a, b in self.network.edges]


def baselines(network: nx.Graph, t: Array) -> dict[str, Array]:
    """(gene,) what others take: the terminals, genes of the largest effects over their errors; these and a shortest
    path between any two; a tree of least edges that has them all."""
    top = np.argsort(-np.abs(t))[:TERMINALS]
    out = {name: np.isin(np.arange(len(t)), top) for name in ("terminals", "paths", "steiner")}
    for one in top:
        for other, path in nx.single_source_shortest_path(network, one).items():
            if other in top:
                out["paths"][path] = True
    out["steiner"][list(approximation.steiner_tree(network, top.tolist()))] = True
    return out


def run_planted(seed: int, samples: int, rewired: float = 0.0) -> dict[str, Any]:
    """Precision and recall of every method, and every probability beside what is true; of the tree alone where the
    network is rewired."""
    planted, started = PlantedTree.draw(seed, samples, rewired), time.process_time()
    found = discover_targets(planted.data, planted.edges, graphs=0 if rewired else 20, seed=seed, device="cpu")
    seconds = time.process_time() - started
    at = [int(name.removeprefix("gene_")) for name in found["gene"].values]
    module, often = planted.module[at], found["frequency"].to_numpy()
    t = (found["effect"] / found["error"]).to_numpy()
    named = nx.relabel_nodes(planted.network, {gene: k for k, gene in enumerate(at)})
    picked = baselines(named, t) | {"tree": found["tree"].to_numpy() > 0}
    picked |= {"frequent": often >= found.attrs["least"], "half": often >= 0.5}
    row: dict[str, Any] = {"seed": seed, "seconds": round(seconds, 1), "scores": {}}
    for name, taken in picked.items():
        right = float((taken & module).sum())
        score = {"precision": right / max(float(taken.sum()), 1.0), "recall": right / MODULE}
        row["scores"][name] = score | {"genes": float(taken.sum())}
    row["average_precision"] = {
        "frequency": float(average_precision_score(module, often)),
        "shifted": float(average_precision_score(module, found["shifted"].to_numpy())),
    }
    row["frequency"] = [[round(float(f), 4), int(m)] for f, m in zip(often, module, strict=True)]
    row["verdict"] = found.attrs["verdict"].split("\n")
    if "edge" in found:
        inside = [int(name.removeprefix("gene_")) for name in found["parent"].values]
        true, off = planted.graph[np.ix_(inside, inside)], ~np.eye(len(inside), dtype=bool)
        for name in ("edge", "edge_frequency"):
            told = found[name].to_numpy()
            row[name] = [[round(float(p), 4), int(a)] for p, a in zip(told[off], true[off], strict=True)]
            row[f"{name}_shd"] = float(shd(true, told >= 0.5))
        row["shd_empty"] = float(true.sum())
        row["acts"] = [[round(float(p), 4), int(h)] for p, h in zip(found["acts"].values, planted.hit[inside])]
    return row


def run_drugs(seed: int) -> dict[str, Any]:
    """Correlations of drugs with a disease of each context, by the model and by signatures that others predict."""
    options = {"contexts": 12, "perturbations": 24, "features": 60}
    data = simulate.draw("context_effects", seed, measured=0.6, **options)
    every, rng = simulate.draw("context_effects", seed, measured=1.0, **options), np.random.default_rng([seed, 31])
    truth = np.zeros((len(data.batch_names), len(data.env_names), data.features))
    truth[every.batch, every.env] = every.truth["z"]  # context names and perturbations are those of the full table
    names = [every.batch_names.index(name) for name in data.batch_names]
    effect = truth[names][:, [every.env_names.index(name) for name in data.env_names]]
    effect = effect[:, 1:] - effect[:, :1]  # (context, drug, gene)
    found = fit(zoo.build("causal_imputation", data), data, seed=seed, device="cpu", progress=False)
    known, table = Signatures.of(data), impute(found)
    there = np.zeros(effect.shape[:2], dtype=bool)
    there[known.context, known.perturbation - 1] = True
    row: dict[str, Any] = {"seed": seed, "reverses": [], "inside": [], "error": {}, "first": []}
    apart: dict[str, list[Array]] = {}
    for c, context in enumerate(data.batch_names):
        drug = int(rng.integers(effect.shape[1]))
        disease = -effect[c, drug] + effect[c, drug].std() * rng.standard_normal(data.features)
        seen = disease + ERROR * rng.standard_normal(data.features)
        told = {name: (float(e), ERROR) for name, e in zip(data.feature_names, seen, strict=True)}
        ranked = reversing_drugs(found, told, contexts=[context], threshold=THRESHOLD, draws=DRAWS, seed=seed)
        ranked = ranked.sel(drug=data.env_names[1:])
        true = np.array([np.corrcoef(one, disease)[0, 1] for one in effect[c]])
        missing = ~there[c]
        reverses = ranked["reverses"].to_numpy()
        pairs = zip(reverses[missing], true[missing] < -THRESHOLD, strict=True)
        row["reverses"] += [[round(float(p), 4), int(hit)] for p, hit in pairs]
        low, high = (ranked[name].to_numpy()[missing] for name in ("low", "high"))
        row["inside"] += [int(hit) for hit in (low <= true[missing]) & (true[missing] <= high)]
        row["first"].append(int(true[reverses.argmax()] < -THRESHOLD))
        apart.setdefault("causal_imputation", []).append(ranked["correlation"].to_numpy()[missing] - true[missing])
        at = np.flatnonzero(missing)
        filled = table["mean"].sel(context=context).to_numpy()[missing]
        guesses = {name: rival(known, np.full(len(at), c), at + 1) for name, rival in RIVALS.items()}
        for name, guess in {"imputed_mean": filled, **guesses}.items():
            by = np.array([np.corrcoef(one, seen)[0, 1] if one.std() > 0 else 0.0 for one in guess])
            apart.setdefault(name, []).append(by - true[missing])
    row["error"] = {name: float(np.sqrt(np.square(np.concatenate(v)).mean())) for name, v in apart.items()}
    return row


def calibrated(pairs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Calibration error of [probability, 0 or 1]: of all, of those above 0, and of the share of ones said of all."""
    p, hit = np.array(pairs).T
    some = p > 0
    return {
        "ece": expected_calibration_error(hit, p),
        "ece_above_0": expected_calibration_error(hit[some], p[some]),
        "ece_constant": expected_calibration_error(hit, np.full_like(p, hit.mean())),
        "brier": float(np.square(p - hit).mean()),
        "brier_constant": float(hit.var()),
        "number": float(len(p)),
        "above_0": float(some.sum()),
        "expected": float(p.sum()),
        "there": float(hit.sum()),
    }


def study(seeds: Sequence[int], path: str | Path | None = None) -> dict[str, Any]:
    """Planted trees at every number of rows, and drugs; written to `path` after each."""
    table: dict[str, Any] = {"about": "targets", **provenance(), "planted": [], "drugs": {}}
    for samples, rewired in SETTINGS:
        entry: dict[str, Any] = {"samples": samples, "rewired": rewired, "seeds": []}
        table["planted"].append(entry)
        for seed in seeds:
            entry["seeds"].append(run_planted(seed, samples, rewired))
            entry["calibration"] = {
                name: calibrated([pair for row in entry["seeds"] for pair in row.get(name, [])])
                for name in ("frequency", "edge", "edge_frequency", "acts")
                if any(row.get(name) for row in entry["seeds"])
            }
            print(samples, rewired, seed, entry["seeds"][-1]["scores"]["frequent"], flush=True)
            if path is not None:
                write_json(table, path)
    rows = [run_drugs(seed) for seed in seeds]
    table["drugs"] = {
        "threshold": THRESHOLD,
        "error": {name: float(np.mean([row["error"][name] for row in rows])) for name in rows[0]["error"]},
        "coverage_90": float(np.mean([hit for row in rows for hit in row["inside"]])),
        "first_right": float(np.mean([hit for row in rows for hit in row["first"]])),
        "calibration": calibrated([pair for row in rows for pair in row["reverses"]]),
        "seeds": rows,
    }
    if path is not None:
        write_json(table, path)
    return table


NAMES = {
    "terminals": "terminals: the 20 largest effects",
    "paths": "terminals and shortest paths between them",
    "steiner": "Steiner tree of the terminals",
    "tree": "prize-collecting tree of all rows",
    "half": "frequency .5 or more",
    "frequent": "frequency .2 or more, the default",
    "=terminals": "largest frequencies, as many as terminals",
    "=paths": "largest frequencies, as many as with paths",
}
SEEDS = ("frequent", "terminals", "paths")  # shown of every seed
DRUGS = {
    "causal_imputation": "`reversing_drugs`: mean of draws",
    "imputed_mean": "`causal_imputation`: its imputed signature",
    "both_means": "half of either mean",
    "dnpp": "DNPP",
    "falrtc": "FaLRTC",
    "synthetic_interventions": "synthetic interventions",
    "ridgeless_ntk": "ridgeless NTK",
    "context_mean": "mean of the context",
}
PROBABILITIES = {
    "frequency": "gene in the tree: frequency",
    "edge": "edge: probability",
    "edge_frequency": "edge: frequency",
    "acts": "disease acts on the gene: probability",
    "reverses": "missing drug reverses: probability",
}


def as_many(row: Mapping[str, Any], name: str) -> dict[str, float]:
    """Precision and recall of as many genes as a method takes, those of the largest frequency."""
    count = int(row["scores"][name]["genes"])
    right = float(sum(hit for _, hit in sorted(row["frequency"], key=lambda pair: -pair[0])[:count]))
    return {"precision": right / count, "recall": right / MODULE, "genes": float(count)}


def score(row: Mapping[str, Any], name: str) -> dict[str, float]:
    """Precision, recall and genes of a method, or of the genes that `NAMES` calls as many as another's."""
    found: dict[str, float] = as_many(row, name[1:]) if name.startswith("=") else row["scores"][name]
    return found


def tables() -> str:
    """`tables_of` the committed results."""
    path = Path(__file__).resolve().parent.parent / "models" / "results" / "targets.json"
    return tables_of(json.loads(path.read_text(encoding="utf-8")))


def tables_of(results: Mapping[str, Any]) -> str:
    """The committed results as markdown: methods on planted trees, means over seeds and all seeds; probabilities beside
    what is true; errors of drugs' correlations."""
    entries = results["planted"]
    titles = [
        f"{e['samples']} rows of either state" + ", half of the edges wrong" * bool(e["rewired"]) for e in entries
    ]
    heads = [f"{title} ({len(e['seeds'])} seeds)" for title, e in zip(titles, entries, strict=True)]
    lines = [["precision / recall (genes)", *heads], ["---"] * (1 + len(heads))]
    for name, title in NAMES.items():
        each = [[score(row, name) for row in e["seeds"]] for e in entries]
        means = [[float(np.mean([s[k] for s in own])) for k in ("precision", "recall", "genes")] for own in each]
        lines.append([title, *(f"{p:.2f} / {r:.2f} ({n:.0f})" for p, r, n in means)])
    seeds = [["seed: frequency .2 or more; terminals; with paths", *heads], ["---"] * (1 + len(heads))]
    for k in range(len(entries[0]["seeds"])):
        each_seed = [e["seeds"][k] for e in entries]
        told = [[score(row, name) for name in SEEDS] for row in each_seed]
        cells = ["; ".join(f"{s['precision']:.2f} / {s['recall']:.2f}" for s in own) for own in told]
        seeds.append([str(each_seed[0]["seed"]), *cells])
    pooled = {
        f"{name}, {title}": value
        for title, e in zip(titles, entries, strict=True)
        for name, value in e["calibration"].items()
    } | {"reverses": results["drugs"]["calibration"]}
    right = [["probability", "number", "expected", "true", "ECE", "ECE of those above 0", "Brier", "of the base rate"]]
    right.append(["---"] * len(right[0]))
    for key, value in pooled.items():
        name, _, rows = key.partition(", ")
        cells = [PROBABILITIES[name] + (f", {rows}" if rows else ""), f"{value['number']:.0f}"]
        cells += [f"{value[k]:.1f}" for k in ("expected", "there")]
        cells += [f"{value[k]:.3f}" for k in ("ece", "ece_above_0", "brier", "brier_constant")]
        right.append(cells)
    errors = [["correlation of a missing drug with the disease", "error (root mean square)"], ["---"] * 2]
    errors += [[title, f"{results['drugs']['error'][name]:.3f}"] for name, title in DRUGS.items()]
    return "\n\n".join(
        "\n".join(f"| {' | '.join(cells)} |" for cells in table) for table in (lines, seeds, right, errors)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.targets", description=__doc__)
    parser.add_argument("--seeds", default="0:8", help="0:8 (0 to 7), 3 or 0,2")
    parser.add_argument("--json", default=None, help="where the results go")
    told = parser.parse_args()
    study(parse_seeds(told.seeds), told.json)
