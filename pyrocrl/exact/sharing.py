"""Sums over which environments share a mechanism: the others have one of their own.

A mechanism is a node's law given its parents. Environments that share it are scored together (`pooled`), each that
differs alone (`own`); which ones differ is a subset of the environments, and all subsets are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyrocrl.dists import categorical
from pyrocrl.exact import binary, orders, regression

MAX_ENVIRONMENTS = 10  # 2**10 subsets for each node and parent set


@lru_cache(maxsize=16)
def subsets(environments: int, reference: bool) -> Tensor:
    """(subset, env) in {0, 1}, which environments differ; with `reference`, environment 0 never does."""
    table = (torch.arange(2**environments)[:, None] >> torch.arange(environments)) & 1
    return (table[table[:, 0] == 0] if reference else table).double()


def log_joint(pooled: Tensor, own: Tensor, differs: Tensor) -> Tensor:
    """(..., subset) log evidence of all rows for each subset of environments that differ.

    pooled: (..., subset) of the environments that share, together; own: (..., env) of each alone; differs: (subset,
    env) as `subsets` gives it.
    """
    return pooled + own @ differs.mT


def regression_evidence(moments: Tensor, count: Tensor, differs: Tensor, ratios: Sequence[float]) -> Tensor:
    """(node, set, basis * ratio, subset) log evidence of conjugate regressions, by sets of parents and kinds of basis.

    moments: (set, basis, env, ...) as `regression.log_evidence` takes them, over count (env,) rows; differs: (subset,
    env); ratios: variances of weights over that of the noise. One Cholesky factor for all nodes of a set of parents.
    """
    nodes = len(moments).bit_length() - 1
    shared = 1.0 - differs
    counts = torch.cat([shared @ count, count])
    out = torch.zeros(nodes, len(moments), moments.shape[1] * len(ratios), len(differs)).to(moments)
    for s, by_basis in enumerate(moments):
        for i, own in enumerate(by_basis):
            pooled = (shared @ own.flatten(1)).unflatten(-1, own.shape[1:])
            for r, ratio in enumerate(ratios):
                log = regression.log_evidence(torch.cat([pooled, own]), counts, ratio, nodes)  # (subset + env, node)
                together, alone = log.mT.split([len(shared), len(own)], -1)
                out[:, s, i * len(ratios) + r] = log_joint(together, alone, differs)
    return out


def table_evidence(count: Tensor, differs: Tensor, alike: bool, equivalent: float) -> Tensor:
    """(node, set, subset) BDeu log evidence of binary nodes' tables, by sets of parents; who differs has no parents.

    count: (env, state) rows; alike: whether environments that do not differ have one table, or each its own.
    """
    nodes, kept = count.shape[1].bit_length() - 1, 1.0 - differs
    own = binary.table_scores(count, nodes, equivalent)  # (env, node, set)
    pooled = kept @ count
    together = binary.table_scores(pooled, nodes, equivalent) if alike else torch.einsum("ge,eks->gks", kept, own)
    cut = own[:, :, :1].permute(1, 2, 0).expand(-1, own.shape[-1], -1)  # no parents: the empty set
    return log_joint(together.permute(1, 2, 0), cut, differs)


def regressions(moments: Tensor, count: Tensor, targets: Tensor, ratio: Tensor) -> regression.Conjugate:
    """(mechanism, node) posteriors of weights and noise: of rows that share a mechanism, then of each that differs.

    moments: (node, env, ...) on each node's own basis, over count (env,) rows; targets: (env, node); ratio: (node,).
    """
    use = torch.cat([(1.0 - targets)[None], torch.diag_embed(targets.mT).permute(1, 2, 0)])  # (mechanism, env, node)
    pooled = torch.einsum("mek,ekab->mkab", use, moments.transpose(0, 1))
    return regression.conjugate(pooled, (use * count[:, None]).sum(1), ratio)


class Evidence(NamedTuple):
    """What the rows tell of graphs and of environments that differ, everything else integrated out.

    table: (node, set, cell, subset) log evidence, as `regression_evidence` gives it, cells equally probable;
    differs: (subset, env). change, edge: () log odds that an environment differs, and of an edge.
    """

    table: Tensor
    differs: Tensor
    reference: bool

    def joint(self, change: Tensor) -> Tensor:
        """(node, set, cell, subset) log evidence and prior."""
        prior = log_prior(change.double(), self.differs, self.reference)
        return self.table + prior - math.log(self.table.shape[2])

    def scores(self, change: Tensor, edge: Tensor) -> Tensor:
        """(node, set) log score of every set of parents, cells and subsets summed out."""
        return self.joint(change).flatten(2).logsumexp(-1) + orders.edge_log_odds(len(self.table), edge)

    def log_total(self, change: Tensor, edge: Tensor) -> Tensor:
        """() log p(rows | change, edge), graphs and orders summed out."""
        d = len(self.table)
        absent = logsigmoid(-edge.double()) * (d * (d - 1) / 2) - math.lgamma(d + 1)
        return orders.log_partition(self.scores(change, edge)) + absent

    def target_probabilities(self, change: Tensor, edge: Tensor) -> Tensor:
        """(env, node) probability that each environment differs."""
        return target_probabilities(self.scores(change, edge), self.joint(change).logsumexp(2), self.differs)


def log_prior(logit: Tensor, differs: Tensor, reference: bool) -> Tensor:
    """(subset,) log prior: every environment but the reference differs with log odds `logit` (), independently."""
    count = differs.sum(-1)
    free = differs.shape[-1] - int(reference)
    return count * logsigmoid(logit) + (free - count) * logsigmoid(-logit)


def target_probabilities(sets: Tensor, given_set: Tensor, differs: Tensor) -> Tensor:
    """(env, node) probability that each environment differs, graphs summed out.

    sets: (node, set) log score of each set of parents; given_set: (node, set, subset) log score of each subset given
    the set, up to a constant; differs: (subset, env).
    """
    probability = orders.parent_set_probabilities(sets)
    subset = torch.einsum("ks,ksg->kg", probability, given_set.softmax(-1))
    return (subset @ differs).mT.clamp(0.0, 1.0)  # rounding may exceed 1


def acting_together(targets: Tensor, environments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(node,) whether one of these environments differs in a node, and the last of them that does (0 if none).

    targets: (env, node) in {0, 1}.
    """
    hit = torch.zeros_like(targets[0], dtype=torch.bool)
    last = torch.zeros_like(hit, dtype=torch.long)
    for e in environments:
        here = targets[e] > 0.5
        hit, last = hit | here, torch.where(here, e, last)
    return hit, last


class Targets(TorchDistribution):
    """Which environments have a mechanism of their own, independently for each node: event (env, node) in {0, 1}.

    scores: (node, subset) log-probabilities up to a constant; differs: (subset, env) as `subsets` gives it, or each
    node's own (node, subset, env).
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.boolean, 2)

    def __init__(self, scores: Tensor, differs: Tensor, validate_args: bool | None = None) -> None:
        self.scores, self.differs = scores, differs.expand(len(scores), *differs.shape[-2:])
        super().__init__(torch.Size(), torch.Size((differs.shape[-1], len(scores))), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.einsum("ks,kse->ek", self.scores.softmax(-1), self.differs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        chosen = categorical(self.scores.detach().expand(*sample_shape, *self.scores.shape))
        return self.differs[torch.arange(chosen.shape[-1], device=chosen.device), chosen].mT

    def log_prob(self, value: Tensor) -> Tensor:
        same = (value.mT[:, None] == self.differs).all(-1)  # (node, subset)
        return torch.where(same, self.scores.log_softmax(-1), -torch.inf).amax(-1).sum()
