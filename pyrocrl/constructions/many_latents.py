"""Unmixing and graph of more latents than graphs can be summed over: a start that no sum is needed for, and a run.

The two signs that the score differences leave open (`directions.score_difference_directions`) are told apart by
invariance: the row of a latent's natural equation has one variance in all environments that leave the latent alone.
A first order follows from what an intervention shows: its target is independent of all but its descendants there, and
no other latent's variance changes. Both cost a power of the latents; `joint_sampling` goes on from them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocrl.constructions import directions
from pyrocrl.exact import joint_sampling, linear_sem
from pyrocrl.exact.linear_sem import Environments


def invariant_rows(environments: Environments, generator: torch.Generator) -> Tensor:
    """Rows of the unmixing (latent, latent), of single perfect interventions; random within what joint ones change."""
    found = directions.candidate_rows(environments, generator, "soft")  # (latent, candidate, latent)
    target = environments.target
    single = target.sum(1) == 1
    rows = found[:, 0].clone()
    for k in range(len(rows)):
        if not bool(((target[:, k] == 1) & single).any()):
            continue
        natural = found[k, 2:4]  # those of the old mechanism, of either sign
        variance = torch.einsum("ci,eij,cj->ce", natural, environments.cov, natural)[:, target[:, k] == 0]
        n = environments.count[target[:, k] == 0]
        share = n / n.sum()
        change = n.sum() * (variance @ share).log() - variance.log() @ n
        rows[k] = found[k, int(change.argmin())]
    return rows


def first_order(rows: Tensor, environments: Environments) -> NDArray[np.int64]:
    """(latent,) an order, parents first, against which interventions tell least."""
    cov = (rows @ environments.cov @ rows.mT).numpy()  # (env, latent, latent)
    count, target = environments.count.numpy(), environments.target.numpy()
    d = len(rows)
    acts = np.zeros((d, d))  # log likelihood ratio of: the one's intervention shows in the other
    reference = cov[target.sum(1) == 0].mean(0).diagonal()
    for k in range(d):
        hit = target[:, k] == 1
        alone = hit & (target.sum(1) == 1)
        for e in np.flatnonzero(alone if alone.any() else hit):
            variance = cov[e].diagonal()
            square = np.clip(cov[e, k] ** 2 / (variance[k] * variance), 0.0, 1.0 - 1e-12)
            square[k] = 0.0
            shown = 0.25 * count[e] * np.log(variance / reference) ** 2 - 0.5 * count[e] * np.log1p(-square)
            acts[k] = np.maximum(acts[k], shown)
        acts[k, k] = 0.0
    left, out = list(range(d)), []
    while left:
        out.append(left.pop(int(acts[np.ix_(left, left)].sum(0).argmin())))
    order, moved = np.array(out), True
    while moved:
        moved = False
        for k in range(d):
            rest = order[order != k]
            against = np.zeros(d)  # at each place
            against[1:] = acts[k, rest].cumsum()
            against[:-1] += acts[rest, k][::-1].cumsum()[::-1]
            place = int(against.argmin())
            if against[place] < against[np.flatnonzero(order == k)[0]] - 1e-9:
                order, moved = np.insert(rest, place, k), True
    return order


def sampled(
    environments: Environments, table: linear_sem.Slices, log_odds: float, generator: torch.Generator
) -> joint_sampling.JointDraws:
    """A run of its own: it starts from a bootstrap of the moments."""
    apart = directions.resample(environments, generator)
    rows = invariant_rows(apart, generator)
    order = first_order(rows, apart)
    seed = int(torch.randint(2**62, (), generator=generator))
    node, count, cov = table.node.numpy(), table.count.numpy(), table.cov.numpy()
    return joint_sampling.run(node, count, cov, log_odds, rows.numpy(), order, seed)


def constructed(
    environments: Environments, table: linear_sem.Slices, draws: int, generator: torch.Generator
) -> joint_sampling.JointDraws:
    """The start alone, `draws` times the same; an edge is where a regression on all earlier latents has a t beyond the
    square root of the rows' logarithm."""
    rows = invariant_rows(environments, generator)
    order = first_order(rows, environments)
    d = len(order)
    cov, count = (rows @ table.cov[:d] @ rows.mT).numpy(), table.count[:d].numpy()
    graph = np.zeros((d, d), dtype=bool)
    for place, k in enumerate(order):
        before = order[:place]
        precision = np.linalg.inv(cov[k][np.ix_(before, before)])
        slope = precision @ cov[k, before, k]
        rest = cov[k, k, k] - slope @ cov[k, before, k]
        graph[before, k] = count[k] * slope**2 > math.log(count[k]) * rest * precision.diagonal()
    peak = joint_sampling.JointState(rows.numpy(), graph, order)
    same = np.zeros(draws, dtype=np.int64)  # places
    return joint_sampling.JointDraws(
        peak.unmixing[None][same], graph[None][same], order[None][same], np.zeros(draws), peak
    )
