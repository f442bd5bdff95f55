"""How fast a goal is reached when interventions are chosen one after another, by each acquisition on the same systems;
and what the next knock-out of a real screen tells of a graph.

    python -m pyrocrl.lab.designs --seeds 0:100 --json pyrocrl/models/results/interventions.json
    python -m pyrocrl.lab.designs --knockouts --json pyrocrl/models/results/knockouts.json

A system is x_k = w_k' x + a_k + NOISE eps over a known graph, complete in random order, |w_jk| ~ U(.25, 1) with random
signs; the goal is the mean under a shift drawn from the unit sphere. Each round adds one row under a shift of norm 1 at
most. What is scored is how far from the goal the mean is under the shift that then looks best, squared, in units of the
goal's squared length. These are the equations of Zhang et al. (2023); their text does not fix NOISE, and with this one
rounds that change nothing end about where it has them.

Knock-outs are those of papalexi2021 whose gene is measured too. Edge probabilities of all of them stand for the truth:
from each knock-out alone, beside the control, every other one is added, and how much nearer to them that brings is set
beside what was said of it before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrocrl import datasets, zoo
from pyrocrl.data import Data
from pyrocrl.exact import design
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fit import fit
from pyrocrl.infer.fitted import Fit
from pyrocrl.io import write_json
from pyrocrl.judge.design import Choice, next_interventions
from pyrocrl.judge.equivalence import equivalence_class
from pyrocrl.lab.provenance import parse_seeds, provenance
from pyrocrl.turns import drawing

SCREEN, CONTROL = "papalexi2021", "non-targeting"
ACQUISITIONS = ("civ", "lookahead", "cv", "maxv", "mi", "greedy", "random", "passive")
NOISE, ROUNDS, DRAWS = 0.5, 15, 256
SIZES = (5, 20)  # nodes; of the latter eight seeds


class System:
    """A linear system with a goal, and the rows of it that were seen."""

    def __init__(self, nodes: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 59])
        order = rng.permutation(nodes)
        graph = np.zeros((nodes, nodes))
        graph[np.ix_(order, order)] = np.triu(np.ones((nodes, nodes)), 1)
        if nodes > 10:  # sparse, or a complete graph of so many has effects without bounds
            graph *= rng.random(graph.shape) < 4 / nodes
        self.graph = graph
        self.weight = graph * rng.uniform(0.25, 1.0, graph.shape) * rng.choice([-1.0, 1.0], graph.shape)
        self.total = np.linalg.inv(np.eye(nodes) - self.weight.T)
        shift = rng.standard_normal(nodes)
        self.goal = self.total @ (shift / np.linalg.norm(shift))
        self.noise = NOISE * rng.standard_normal((1_000, nodes))
        self.x, self.shift = np.zeros((0, nodes)), np.zeros((0, nodes))

    def see(self, shift: np.ndarray) -> None:
        """One more row, under a shift."""
        row = self.total @ (shift + self.noise[len(self.x)])
        self.x, self.shift = np.vstack([self.x, row]), np.vstack([self.shift, shift])

    def believed(self) -> design.Equations:
        """The posterior of the equations; weights are N(0, NOISE^2) a priori, constants 0 and the noise known."""
        graph, x, shift = (torch.as_tensor(v) for v in (self.graph, self.x, self.shift))
        unit = torch.ones(1 + len(graph), dtype=torch.float64)
        unit[0] = 0.0
        return design.given_graph(graph, x, shift, torch.ones_like(x), unit, DRAWS, torch.full_like(unit[1:], NOISE))

    def distance(self, shift: np.ndarray) -> float:
        """Squared distance of the mean from the goal, over the goal's squared length."""
        return float(np.square(self.total @ shift - self.goal).sum() / np.square(self.goal).sum())


def run(nodes: int, acquisition: str, seed: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """The distance after each round, and seconds that a choice took."""
    system, distances, seconds = System(nodes, seed), [], []
    acting = torch.ones(nodes, dtype=torch.bool)
    with drawing(mix(seed, 61)), torch.no_grad():
        for turn in range(1 + rounds):
            started = time.process_time()
            choice = Choice(system.believed(), system.goal, acting, 1.0, 1, acquisition, mix(seed, turn))
            distances.append(system.distance(choice.best.numpy()))
            if turn < rounds:
                system.see(choice.of_shifts(1)[0].action.value.numpy())
                seconds.append(time.process_time() - started)
    return {"seed": seed, "distances": [round(d, 6) for d in distances], "seconds": round(float(np.mean(seconds)), 4)}


def study(seeds: Sequence[int], path: str | Path | None = None) -> dict[str, Any]:
    """All acquisitions on all seeds; written to `path` after each."""
    table: dict[str, Any] = {"about": "interventions", **provenance(), "rounds": ROUNDS, "noise": NOISE, "runs": []}
    for nodes in SIZES:
        for acquisition in ACQUISITIONS:
            rows = [run(nodes, acquisition, seed) for seed in (seeds if nodes == SIZES[0] else seeds[:8])]
            last = np.array([row["distances"][-1] for row in rows])
            entry = {"nodes": nodes, "acquisition": acquisition, "mean": float(last.mean())}
            entry |= {"standard_error": float(last.std() / np.sqrt(len(last))), "median": float(np.median(last))}
            table["runs"].append(entry | {"seconds": float(np.mean([row["seconds"] for row in rows])), "seeds": rows})
            if path is not None:
                write_json(table, path)
            print({k: v for k, v in table["runs"][-1].items() if k != "seeds"}, flush=True)
    return table


def knocked_out() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """x (row, gene), log1p of counts per ten thousand; each row's label; the genes that were both knocked out and
    measured."""
    data = datasets.load(SCREEN)
    genes = [name for name in data.env_names if name in data.feature_names]
    counts = np.asarray(data.x[:, [data.feature_names.index(gene) for gene in genes]].todense())
    assert data.size_factor is not None
    return np.log1p(1e4 * counts / data.size_factor[:, None]), data.env_labels(), genes


def knockouts(path: str | Path | None = None) -> dict[str, Any]:
    """What each further knock-out tells of the graph, and what was said of it before; written to `path` at the end."""
    x, labels, genes = knocked_out()

    def fitted(knocked: Sequence[str]) -> Fit:
        rows = np.isin(labels, [CONTROL, *knocked])
        targets = {gene: (genes.index(gene),) for gene in knocked}
        data = Data(x[rows], labels[rows], targets, control=CONTROL, feature_names=genes)
        program = zoo.build("observed_dag", data)
        return fit(program, data, chains=2, seed=0, device="cpu", progress=False)

    off = ~np.eye(len(genes), dtype=bool)

    def graph_of(knocked: Sequence[str]) -> np.ndarray:
        graph = fitted(knocked).graph()
        assert graph is not None
        return graph[off]

    every, known = graph_of(genes), {}
    table: dict[str, Any] = {"about": "knockouts", **provenance(), "genes": genes, "runs": []}
    for start in genes:
        before, rest = fitted([start]), [gene for gene in genes if gene != start]
        graph = before.graph()
        assert graph is not None
        distance, gain = float(np.square(graph[off] - every).sum()), {}
        for gene in rest:
            pair = tuple(sorted((start, gene)))
            if pair not in known:
                known[pair] = float(np.square(graph_of(pair) - every).sum())
            gain[gene] = distance - known[pair]
        pool = {gene: {gene: 0.0} for gene in rest}
        told = next_interventions(before, pool=pool, kind="set", acquisition="mi", rows=500)
        scores = {
            "mi": dict(zip(told["candidate"].values.tolist(), told["score"].values.tolist(), strict=True)),
            "splits": dict(zip(genes, equivalence_class(before)["splits"].values.tolist(), strict=True)),
        }
        run: dict[str, Any] = {"start": start, "distance": distance, "gain": gain}
        run |= {"random": float(np.mean(list(gain.values()))), "best": max(gain.values())}
        for name, score in scores.items():
            chosen = rest[int(np.argmax([score[gene] for gene in rest]))]
            run[name] = {"chosen": chosen, "gain": gain[chosen], "scores": {gene: score[gene] for gene in rest}}
        table["runs"].append(run)
        print(start, distance, run["random"], run["mi"]["gain"], run["splits"]["gain"], flush=True)
    table["mean"] = {
        "mi": float(np.mean([run["mi"]["gain"] for run in table["runs"]])),
        "splits": float(np.mean([run["splits"]["gain"] for run in table["runs"]])),
        "random": float(np.mean([run["random"] for run in table["runs"]])),
        "best": float(np.mean([run["best"] for run in table["runs"]])),
    }
    if path is not None:
        write_json(table, path)
    print(table["mean"])
    return table


TITLES = {
    "civ": "`civ`: causal integrated variance",
    "lookahead": "`lookahead`: expected distance left",
    "cv": "`cv`: causal variance",
    "maxv": "`maxv`: greatest variance",
    "mi": "`mi`: information on the equations",
    "greedy": "`greedy`: what looks best now",
    "random": "`random`: any shift",
    "passive": "`passive`: no shift",
}


def table_of(results: Mapping[str, Any]) -> str:
    """The committed results of `study` as markdown, a line for each acquisition."""
    runs = {(run["nodes"], run["acquisition"]): run for run in results["runs"]}
    heads = [
        f"{nodes} variables ({len(runs[nodes, ACQUISITIONS[0]]['seeds'])}): mean ± s.e., median" for nodes in SIZES
    ]
    lines = [["acquisition", *heads, f"seconds a choice of {SIZES[1]}"], ["---"] * 4]
    for name in ACQUISITIONS:
        each = [runs[nodes, name] for nodes in SIZES]
        told = [f"{run['mean']:.3f} ± {run['standard_error']:.3f}, {run['median']:.3f}" for run in each]
        lines.append([TITLES[name], *told, f"{each[1]['seconds']:.2f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table_of_knockouts(results: Mapping[str, Any]) -> str:
    """The committed results of `knockouts` as markdown, a line for each knock-out that was there first."""
    lines = [["first", "apart before", "any other, mean", "by `mi`", "by `splits`", "the best"], ["---"] * 6]
    for run in results["runs"]:
        chosen = [f"{run[name]['gain']:.1f} ({run[name]['chosen']})" for name in ("mi", "splits")]
        lines.append([run["start"], f"{run['distance']:.1f}", f"{run['random']:.1f}", *chosen, f"{run['best']:.1f}"])
    mean = [f"**{results['mean'][name]:.1f}**" for name in ("random", "mi", "splits", "best")]
    lines.append(["**mean**", f"**{np.mean([run['distance'] for run in results['runs']]):.1f}**", *mean])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| -", "| −").replace("| −--", "| ---")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.designs", description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="0:100 (0 to 99), 3 or 0,2")
    parser.add_argument("--knockouts", action="store_true", help="those of a screen in place of systems")
    parser.add_argument("--json", default=None, help="where the results go")
    parser.add_argument("--tables", action="store_true", help="print the committed results")
    told = parser.parse_args(arguments)
    if told.tables:
        folder = Path(__file__).resolve().parent.parent / "models" / "results"
        for name, table in {"interventions": table_of, "knockouts": table_of_knockouts}.items():
            print(table(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))) + "\n")
        return
    if told.knockouts:
        knockouts(told.json)
    else:
        study(parse_seeds(told.seeds), told.json)


if __name__ == "__main__":
    main()
