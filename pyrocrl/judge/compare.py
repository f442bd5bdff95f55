"""`compare`: several models of the same data side by side, with claims, held-out objective, and how far they agree.

Fits are compared on rows that none of them has seen. The held-out objective, a lower bound of log p(x) a row or the
density itself, is one scale for models of one kind of x. Where the assumptions of two models both hold their latents
agree; where they disagree, at least one assumption is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyrocrl.claims.indeterminacy import Group, differing_pairs, graph_canonical
from pyrocrl.data import Data
from pyrocrl.errors import InputError, reject
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.diagnose import ClaimVerdict, Verdict, diagnose
from pyrocrl.judge.evaluate import evaluate
from pyrocrl.judge.metrics import mcc, reorder_graph


@dataclass(frozen=True)
class Candidate:
    """One model: its verdict, held-out objective (nats a row, and its standard error against the best model's on the
    same rows) and, where the truth is known, `scores` of `evaluate`. fit: the fit's digest."""

    name: str
    title: str
    claims: tuple[ClaimVerdict, ...]
    held_out: float
    behind: float
    error: float
    seconds: float
    scores: dict[str, float]
    fit: str


@dataclass(frozen=True)
class Agreement:
    """Two models: agreement of latents in [0, 1] once `up_to` is taken out; pairs of latents on which their graphs
    differ up to `graph_up_to` (None where either has no graph, or its latents are not identified one by one)."""

    first: str
    second: str
    latents: float
    up_to: str
    edges: int | None
    graph_up_to: str | None


@dataclass(frozen=True)
class Comparison:
    """`compare`'s result. graphs: (parent, child) edge probabilities of each model that has them, latents in the order
    of the first such model's, named by `latents`."""

    data: str
    rows: int
    models: tuple[Candidate, ...]
    pairs: tuple[Agreement, ...]
    latents: tuple[str, ...]
    graphs: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"graphs": {name: graph.tolist() for name, graph in self.graphs.items()}}


def compare(fits: Mapping[str, Fit], data: Data, verdicts: Mapping[str, Verdict] | None = None) -> Comparison:
    """Set fits of the same data side by side.

    fits: a name for each. data: rows that no fit has seen, see `Data.split`. verdicts: of `diagnose`, by name; None
    makes them from the rows of each fit. Raises InputError for fewer than two fits, and for data that a program cannot
    take, and for verdicts of other fits.
    """
    if len(fits) < 2:
        reject("fits", f"{len(fits)}", "two or more")
    for name, fit in fits.items():
        try:
            fit.program.check(fit.coded(data))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    verdicts = verdicts or {name: diagnose(fit) for name, fit in fits.items()}
    for name, verdict in verdicts.items():
        fits[name].check_own("verdicts", verdict.fit)
    density = {name: fit.held_out_objective(data) for name, fit in fits.items()}
    best = max(density, key=lambda name: density[name].mean())
    models = []
    for name, fit in fits.items():
        gap = density[best] - density[name]
        found = evaluate(fit, data) if data.truth else {}
        models.append(
            Candidate(
                name,
                fit.program.card.title,
                verdicts[name].claims,
                float(density[name].mean()),
                float(gap.mean()),
                float(gap.std() / np.sqrt(len(gap))),
                float(fit.meta.get("seconds", np.nan)),
                found,
                fit.digest,
            )
        )
    z = {name: fit.latents(data) for name, fit in fits.items()}
    names = list(fits)
    pairs = tuple(_agreement(a, b, fits, z) for i, a in enumerate(names) for b in names[i + 1 :])
    latents, graphs = _graphs(fits, z)
    return Comparison(data.name, data.rows, tuple(models), pairs, latents, graphs)


def _agreement(first: str, second: str, fits: Mapping[str, Fit], z: Mapping[str, np.ndarray]) -> Agreement:
    """The pair's latents are compared up to what either claim leaves free."""
    pair = fits[first], fits[second]
    free = frozenset().union(*(fit.program.group.free for fit in pair))
    if all(_one_by_one(fit) for fit in pair):
        group = Group.of(("permutation", "elementwise") if "elementwise" in free else ("permutation", "scale", "shift"))
    else:
        group = Group.of("affine")
    latents = 1.0 - group.distance(z[first], z[second])
    own, other = (fit.graph() for fit in pair)
    if group.mixes or own is None or other is None:
        return Agreement(first, second, latents, ", ".join(group.names), None, None)
    _, nodes = mcc(z[first], z[second], return_assignment=True)
    own, other = own > 0.5, reorder_graph(other, nodes) > 0.5
    words = {word for fit in pair for claim in fit.program.claims() if claim.what == "graph" for word in claim.up_to}
    freedom = next((word for word in ("markov equivalence", "transitive closure") if word in words), "exact")
    edges = differing_pairs(graph_canonical(own, freedom), graph_canonical(other, freedom))
    return Agreement(first, second, latents, ", ".join(group.names), edges, freedom)


def _one_by_one(fit: Fit) -> bool:
    """Whether the model claims to identify its latents one by one."""
    return any(claim.what == "latents" for claim in fit.program.claims()) and not fit.program.group.mixes


def _graphs(fits: Mapping[str, Fit], z: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    graphs = {name: fit.graph() for name, fit in fits.items() if _one_by_one(fit)}
    found = {name: graph for name, graph in graphs.items() if graph is not None}
    if not found:
        return (), {}
    first = next(iter(found))
    nodes = {name: mcc(z[first], z[name], return_assignment=True)[1] for name in found}
    out = {name: reorder_graph(graph, nodes[name]) for name, graph in found.items()}
    return tuple(fits[first].names["latent"]), out
