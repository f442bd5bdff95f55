"""How fast a goal is reached when interventions are chosen one after another, by each acquisition on the same systems.

    python -m pyrocrl.lab.designs --seeds 0:64 --json pyrocrl/models/results/interventions.json

A system is x_k = w_k' x + a_k + NOISE eps over a known graph, complete in random order, |w_jk| ~ U(.25, 1) with random
signs; the goal is the mean under a shift drawn from the unit sphere. Each round adds one row under a shift of norm 1 at
most. What is scored is how far from the goal the mean is under the shift that then looks best, squared, in units of the
goal's squared length. These are the equations of Zhang et al. (2023); their text does not fix NOISE, and with this one
rounds that change nothing end about where it has them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrocrl.design import Choice
from pyrocrl.exact import design
from pyrocrl.infer.chains import mix
from pyrocrl.io import write_json
from pyrocrl.lab.reproduce import parse_seeds, provenance
from pyrocrl.turns import drawing

ACQUISITIONS = ("lookahead", "civ", "cv", "maxv", "mi", "greedy", "random", "passive")
NOISE, ROUNDS, DRAWS = 0.5, 15, 256
SIZES = (5, 20)  # nodes


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
            started = time.perf_counter()
            choice = Choice(system.believed(), system.goal, acting, 1.0, 1, acquisition, mix(seed, turn))
            distances.append(system.distance(choice.best.numpy()))
            if turn < rounds:
                system.see(choice.of_shifts(1)[0].action.value.numpy())
                seconds.append(time.perf_counter() - started)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.designs", description=__doc__)
    parser.add_argument("--seeds", default="0:64", help="0:64 (0 to 63), 3 or 0,2")
    parser.add_argument("--json", default=None, help="where the results go")
    told = parser.parse_args(arguments)
    study(parse_seeds(told.seeds), told.json)


if __name__ == "__main__":
    main()
