"""Discrete latents behind blocks of Gaussian features: evidence of parents and graphs, given counts of joint states.

A joint state of latents with `sizes` (latent,) states is a row of digits (joint, latent). The features of a variable
have a level in each slot, a combination of the states of its parents, and noise of one size,

    level ~ N(0, 1 / (LEVEL precision)),   precision ~ Gamma(SHAPE, RATE),   parents ~ Bernoulli(odds) each,

and the joint law of the latents is that of tables given parents, cells of which have Dirichlet laws that together say
`weight` rows of each joint state: equivalent graphs have the same evidence (Heckerman, Geiger & Chickering 1995).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from pyrocrl.exact import orders

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEVEL = 0.01  # prior precision of a level, in that of one row
SHAPE, RATE = 1.0, 0.01  # of the precision of a standardised feature
GRID = np.linspace(-5.0, 4.0, 91)  # of log odds of an edge
CHUNK = 4_000  # rows whose joint states are drawn at once


def digits(sizes: Sequence[int]) -> Ints:
    """(joint, latent) states of all latents, the last one's fastest."""
    return np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), 1) if len(sizes) else np.zeros((1, 0), int)


def subsets(latents: int) -> NDArray[np.bool_]:
    """(set, latent): set s has latent k where bit k of s is set."""
    return (np.arange(2**latents)[:, None] >> np.arange(latents) & 1).astype(bool)


def slots(sizes: Sequence[int], parents: NDArray[np.bool_]) -> Ints:
    """(joint,) which combination of the parents' states each joint state has; parents: (latent,)."""
    states, code = digits(sizes), np.zeros(math.prod(sizes), dtype=np.int64)
    for k in np.flatnonzero(parents).tolist():
        code = code * sizes[k] + states[:, k]
    return code


def pooled(values: Floats, slot: Ints) -> Floats:
    """Sums of values (joint, ...) over the joint states of each slot."""
    out = np.zeros((slot.max() + 1, *values.shape[1:]))
    np.add.at(out, slot, values)
    return out


def parent_scores(
    count: Floats, first: Floats, second: Floats, variable: Ints, sizes: Sequence[int], odds: float
) -> Floats:
    """(variable, set) log evidence of each set of parents, levels and noise integrated out; but for a constant.

    count (joint,) rows, first (joint, feature) sums, second (feature,) sums of squares; variable (feature,) of each
    feature; odds: log odds of a parent.
    """
    members, out = subsets(len(sizes)), []
    for own in members:
        slot = slots(sizes, own)
        rows, sums = pooled(count, slot), pooled(first, slot)
        left = second - (sums**2 / (LEVEL + rows)[:, None]).sum(0)
        volume = 0.5 * np.log(LEVEL / (LEVEL + rows)).sum()
        each = volume - (SHAPE + 0.5 * count.sum()) * np.log(RATE + 0.5 * np.maximum(left, 0.0))
        out.append(np.bincount(variable, each) + odds * own.sum())
    return np.stack(out, 1)


def family_scores(count: Floats, sizes: Sequence[int], weight: float) -> Floats:
    """(latent, set) log evidence of each latent's table given each set of parents; sets that hold the latent itself are
    never read."""
    whole = []
    for own in subsets(len(sizes)):
        rows = pooled(count, slots(sizes, own))
        prior = weight * len(count) / len(rows)
        whole.append(float((gammaln(rows + prior) - gammaln(prior)).sum()))
    score, sets = np.array(whole), np.arange(2 ** len(sizes))
    return np.stack([score[sets | 1 << k] - score for k in range(len(sizes))])


def log_counts(count: Floats, weight: float) -> float:
    """Log evidence of counts (joint,) of rows under a free joint law, Dirichlet(weight)."""
    total = weight * len(count)
    same = gammaln(total) - gammaln(total + count.sum())
    return float(same + (gammaln(count + weight) - gammaln(weight)).sum())


# -- draws -----------------------------------------------------------------------------------------------------


class StateDraws(NamedTuple):
    """Draws of the posterior, in tables for so many latents and states as are offered (`exact.tables`): acts (draw,
    variable, latent); extra (draw, latent) states beyond two; graph (draw, parent, child); table (draw, latent, joint,
    state); level (draw, feature, joint); precision (draw, feature); edge (draw,) log odds."""

    acts: Floats
    extra: Floats
    graph: Floats
    table: Floats
    level: Floats
    precision: Floats
    edge: Floats


class Sampler:
    """Gibbs sampling of all but the numbers of latents and of their states: joint states of rows given levels, noise
    and their law; each variable's parents, levels and noise given these, levels and noise summed out of parents; order
    and graph from the exact sum over all, and tables.

    x: (rows, feature) standardised, variable (feature,); share (rows, joint) to begin with.
    """

    def __init__(
        self,
        x: Floats,
        variable: Ints,
        sizes: Sequence[int],
        share: Floats,
        odds: float,
        sparse: float,
        weight: float,
        generator: torch.Generator,
    ) -> None:
        self.x, self.variable, self.sizes, self.odds, self.sparse, self.weight = (
            x,
            variable,
            sizes,
            odds,
            sparse,
            weight,
        )
        self.generator, self.second = generator, (x**2).sum(0)
        self.rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        self.state, self.edge = share.argmax(1), sparse
        u, joint = len(sizes), math.prod(sizes)
        self.parents, self.graph = np.zeros((variable.max() + 1, u), dtype=bool), np.zeros((u, u), dtype=bool)
        self.mean, self.precision, self.law = np.zeros((joint, x.shape[1])), np.ones(x.shape[1]), np.ones(joint)
        self.tables: list[Floats] = []
        self.first_parents = True

    def run(self, latents: int, states: int, burn: int, kept: int) -> StateDraws:
        """`kept` draws, in tables for so many latents and states."""
        out = []
        for sweep in range(burn + kept):
            self.sweep()
            if sweep >= burn:
                out.append(self.drawn(latents, states))
        return StateDraws(*(np.stack(part) for part in zip(*out, strict=True)))

    def sweep(self) -> None:
        """Move all that is unknown once."""
        count = np.bincount(self.state, minlength=len(self.law)).astype(float)
        first = np.zeros_like(self.mean)
        order = np.argsort(self.state, kind="stable")
        there = np.flatnonzero(count)
        first[there] = np.add.reduceat(self.x[order], np.concatenate([[0], count[there].cumsum()[:-1].astype(int)]))
        self.move_features(count, first)
        self.move_law(count)
        self.move_rows()

    def move_features(self, count: Floats, first: Floats) -> None:
        """Parents of each variable, every latent being a parent of some, then noise and levels."""
        scores = parent_scores(count, first, self.second, self.variable, self.sizes, self.odds)
        members = subsets(len(self.sizes))
        if self.first_parents:
            self.parents, self.first_parents = members[scores.argmax(1)], False
        for v in self.rng.permutation(len(scores)):
            needed = ~np.delete(self.parents, v, 0).any(0)
            allowed = (members | ~needed).all(1)
            self.parents[v] = members[_any_of(np.where(allowed, scores[v], -np.inf), self.rng)]
        for v, own in enumerate(self.parents):
            slot, mine = slots(self.sizes, own), self.variable == v
            rows, sums = pooled(count, slot)[:, None], pooled(first[:, mine], slot)
            left = np.maximum(self.second[mine] - (sums**2 / (LEVEL + rows)).sum(0), 0.0)
            precision = self.rng.gamma(SHAPE + 0.5 * len(self.x), 1 / (RATE + 0.5 * left))
            noise = self.rng.standard_normal(sums.shape) / np.sqrt((LEVEL + rows) * precision)
            self.mean[:, mine], self.precision[mine] = (sums / (LEVEL + rows) + noise)[slot], precision

    def move_law(self, count: Floats) -> None:
        """Order and graph, tables given these, and the log odds of an edge."""
        u = len(self.sizes)
        if not u:
            return
        inside = subsets(u)
        scores = family_scores(count, self.sizes, self.weight) + self.edge * inside.sum(1)
        self.graph = orders.sample_dags(torch.as_tensor(scores), self.generator)[1].numpy()
        log_law, self.tables = np.zeros(len(count)), []
        states = digits(self.sizes)
        for k in range(u):
            parents = self.graph[:, k]
            slot = slots(self.sizes, parents)
            rows = np.zeros((slot.max() + 1, self.sizes[k]))
            np.add.at(rows, (slot, states[:, k]), count)
            drawn = self.rng.gamma(rows + self.weight * len(count) / rows.size)
            table = np.maximum(drawn, 1e-300) / np.maximum(drawn, 1e-300).sum(1, keepdims=True)
            self.tables.append(table)
            log_law += np.log(table[slot, states[:, k]])
        self.law = np.exp(log_law)
        there, pairs = self.graph.sum(), u * (u - 1) / 2
        self.edge = float(
            GRID[_any_of(there * GRID - pairs * np.log1p(np.exp(GRID)) - 0.5 * (GRID - self.sparse) ** 2, self.rng)]
        )

    def move_rows(self) -> None:
        """The joint state of each row."""
        scaled = self.mean * self.precision
        offset = np.log(self.law) - 0.5 * (scaled * self.mean).sum(1)
        for start in range(0, len(self.x), CHUNK):
            part = slice(start, start + CHUNK)
            logits = self.x[part] @ scaled.T + offset
            logits += self.rng.gumbel(size=logits.shape)
            self.state[part] = logits.argmax(1)

    def drawn(self, latents: int, states: int) -> tuple[Floats, ...]:
        """What stands now, in tables for so many latents and states."""
        u = len(self.sizes)
        parent = np.zeros((len(self.parents), latents))
        parent[:, :u] = self.parents
        extra = self.rng.integers(0, states - 1, latents).astype(float)  # of latents without variables: a priori
        extra[:u] = np.asarray(self.sizes) - 2
        graph = np.zeros((latents, latents))
        graph[:u, :u] = self.graph
        place = states ** np.arange(latents - 1, -1, -1)
        own, joint = digits(self.sizes), states**latents
        table = np.zeros((latents, joint, states))
        table[u:, 0, 0] = 1.0
        for k, tab in enumerate(self.tables):
            code = (own * graph[:u, k] * place[:u]).sum(1).astype(int)
            table[k, code, : self.sizes[k]] = tab[slots(self.sizes, self.graph[:, k])]
        level = np.zeros((self.x.shape[1], joint))
        for v, mine in enumerate(self.parents):
            code, features = (own * mine * place[:u]).sum(1).astype(int), self.variable == v
            level[np.ix_(features, code)] = self.mean[:, features].T
        return parent, extra, graph, table, level, self.precision.copy(), np.asarray(self.edge)


def _any_of(logits: Floats, rng: np.random.Generator) -> int:
    """An index, drawn with the probabilities of these logits."""
    return int((logits + rng.gumbel(size=logits.shape)).argmax())
