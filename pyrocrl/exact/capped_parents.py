"""Regressions of many nodes on sets of a few likely parents: score tables for `order_sampling`.

Every node has moments of its own, ``(node, 1 + nodes * width, ...)``: what is regressed, then `width` columns of every
node, which are what it gives its children. Those of the node itself are never read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrocrl.exact import order_sampling

MOST = 10  # likely parents of a node: 2**10 sets of them
TINY = 1e-9  # share of a column's variance that is added to it, where columns are the same


def likely(cov: Tensor, width: int = 1, most: int = MOST) -> Tensor:
    """(node, candidate) the other nodes that leave least of a node when they enter one after another; sorted."""
    d = len(cov)
    if d - 1 <= most:
        places = torch.arange(d - 1, device=cov.device)
        return places + (places >= torch.arange(d, device=cov.device)[:, None])
    at = torch.arange(d, device=cov.device)
    columns = 1 + torch.arange(d * width, device=cov.device).reshape(d, width)
    ridge = _ridge(cov)
    rest, free, out = cov.clone(), ~torch.eye(d, dtype=torch.bool, device=cov.device), []
    for _ in range(most):
        block = rest[:, columns[:, :, None], columns[:, None, :]]  # (node, candidate, width, width)
        block = block + torch.diag_embed(ridge[:, columns])
        cross = rest[:, 0, columns]  # (node, candidate, width)
        gone = (torch.linalg.solve(block, cross[..., None])[..., 0] * cross).sum(-1)
        chosen = torch.where(free, gone, -torch.inf).argmax(1)
        free[at, chosen] = False
        out.append(chosen)
        line = rest.gather(2, columns[chosen][:, None, :].expand(-1, rest.shape[1], -1))  # (node, column, width)
        rest = rest - line @ torch.linalg.solve(block[at, chosen], line.mT)
    return torch.stack(out, 1).sort(-1).values


def scores(cov: Tensor, count: Tensor, candidates: Tensor, width: int = 1) -> Tensor:
    """(node, 2**candidates) log marginal likelihood of a node's values given each set of its candidates.

    cov: as in the head; count: (node,) rows. The law of `linear_sem.regression_scores`; the slopes of a candidate count
    as one, however many columns it has, for all but one are a freedom of the map to the latents.
    """
    columns = 1 + candidates[:, :, None] * width + torch.arange(width, device=cov.device)
    places = torch.cat([torch.zeros_like(candidates[:, :1]), columns.flatten(1)], 1)  # (node, 1 + candidate * width)
    return log_evidence(at(cov + torch.diag_embed(_ridge(cov) * (width > 1)), places), count, width)


def log_evidence(cov: Tensor, count: Tensor, width: int = 1) -> Tensor:
    """(node, 2**candidates) `scores` of moments of the node and its candidates alone, in their order."""
    rest = cov[:, None]  # (node, set, column, column)
    for _ in range((cov.shape[-1] - 1) // width):
        keep = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1 + width, rest.shape[-1])]).to(cov.device)
        line = rest[..., keep, 1 : 1 + width]
        without = rest[..., keep[:, None], keep]
        pivot = rest[..., 1 : 1 + width, 1 : 1 + width]
        gone = line @ (line.mT / pivot if width == 1 else torch.linalg.solve(pivot, line.mT))
        rest = torch.cat([without, without - gone], 1)
    left = rest[..., 0, 0]  # (node, set)
    size = order_sampling.members(left.shape[1].bit_length() - 1, cov.device).sum(1).to(cov)
    n = count[:, None]
    log_var = cov[:, 0, 0, None].log()
    log_rest = torch.log1p(n * (left / cov[:, 0, 0, None]).clamp_min(1e-15)) - torch.log1p(n)
    constant = torch.lgamma(n / 2) - 0.5 * (n - 1) * math.log(2 * math.pi) - 0.5 * n.log() - 0.5 * n * (n / 2).log()
    out = constant - 0.5 * n * (log_var + log_rest) - 0.5 * size * torch.log1p(n)
    return torch.where(n > 0, out, torch.zeros_like(out))


def allowed(order: Tensor | None, candidates: Tensor) -> Tensor:
    """(node, 2**candidates) whether all of a set come before the node in an order (node,); no set but the empty one
    where there is no order."""
    inside = order_sampling.members(candidates.shape[1], candidates.device) > 0.5
    if order is None:
        return ~inside.any(1).expand(len(candidates), -1)
    place = order.argsort()
    later = place[candidates] > place[:, None]  # (node, candidate)
    return ~(inside & later[:, None]).any(-1)


def at(cov: Tensor, places: Tensor) -> Tensor:
    """(node, place, place) rows and columns of each node's moments."""
    rows = cov.gather(1, places[:, :, None].expand(-1, -1, cov.shape[2]))
    return rows.gather(2, places[:, None, :].expand(-1, places.shape[1], -1))


def _ridge(cov: Tensor) -> Tensor:
    return TINY * cov.diagonal(dim1=1, dim2=2)
