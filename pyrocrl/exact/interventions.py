"""Linear equations of observed nodes under interventions: their evidence on every set of parents, their posterior.

    z_k = b_k + w_k' z_parents + s_k eps,   b_k ~ N(0, (OFFSET s_k)^2),   w_kj ~ N(0, (t_k s_k)^2),   1 / s_k^2 ~ Gamma

t_k is one of SLABS, for noise may be all of a node's variance or a hundredth of it.

In an environment that intervenes on k, k follows an equation of its own without parents ("perfect": its rows tell
nothing of the others' equation) or with the same parents ("soft"), or the others' plus d_ek ~ N(0, (SHIFT s_k)^2)
("shift"). Mechanisms are the shared equation, then one of each environment; under shifts the shared one alone, which
has an indicator of each environment beside constant and candidates. Nodes are standardised; `moments` (env, 1 + node,
1 + node) are sums of products of (1, nodes) over the rows of each environment, count (env,) its rows. Where rows have
weights, sums of products are weighted, and mass (env,) are the sums of weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrocrl.exact import all_subsets, regression

OFFSET, SHIFT = 3.0, 3.0  # deviation of a constant, and of a shift, in that of the noise
SLABS = (1.0, 3.0, 10.0)  # t, deviation of a parent's weight


def units(slab: Tensor, candidates: int, environments: int, kind: str) -> Tensor:
    """(node, basis) prior deviations of a mechanism's weights, in that of its noise; slab: (node,) t_k."""
    one = torch.ones_like(slab)[:, None]
    parts = [OFFSET * one, slab[:, None].expand(-1, candidates)]
    return torch.cat([*parts, SHIFT * one.expand(-1, environments)] if kind == "shift" else parts, 1)


def with_slab(own: Tensor, slab: Tensor) -> Tensor:
    """`families` (..., env, column, column) whose candidates' weights have the prior deviation slab (...) s, as 1."""
    scale = slab[..., None].expand(*slab.shape, own.shape[-1]).clone()
    scale[..., 0], scale[..., -1] = 1.0, 1.0
    return own * scale[..., None, :, None] * scale[..., None, None, :]


def slabs(like: Tensor) -> Tensor:
    """(slab,) their values."""
    return torch.tensor(SLABS, dtype=like.dtype, device=like.device)


def families(moments: Tensor, candidates: Tensor) -> Tensor:
    """(node, env, 1 + candidates + 1, the same) sums of products of (constant, candidates, the node itself), the
    constant OFFSET: all weights then have a prior deviation of s."""
    d, count = candidates.shape
    node = torch.arange(d, device=candidates.device)[:, None]
    columns = torch.cat([torch.zeros_like(node), 1 + candidates, 1 + node], 1)
    scale = torch.ones(count + 2, dtype=moments.dtype, device=moments.device)
    scale[0] = OFFSET
    found = moments[:, columns[:, :, None], columns[:, None, :]] * scale[:, None] * scale
    return found.transpose(0, 1)


def less_shift(own: Tensor, mass: Tensor, constant: float = 1.0) -> Tensor:
    """Sums of products (..., env, column, column) once each environment's shift is integrated out; the first column is
    `constant`."""
    total = own[..., 0] / constant  # sums of the columns
    rest = SHIFT**2 / (1.0 + SHIFT**2 * mass)
    return own - rest[:, None, None] * total[..., :, None] * total[..., None, :]


def parts(
    moments: Tensor, count: Tensor, hit: Tensor, kind: str, mass: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(moments (part, ...), use (part, node), rows (node,)) of what tells of each node's shared equation; hit (env,
    node) in {0, 1}: see `order_sampling.likely_parents`."""
    if kind == "shift":
        both = torch.cat([moments, less_shift(moments, count if mass is None else mass)])
        return both, torch.cat([1.0 - hit, hit]), count.sum().expand(hit.shape[1])
    return moments, 1.0 - hit, count @ (1.0 - hit)


def log_evidence(
    own: Tensor,
    count: Tensor,
    hit: Tensor,
    kind: str,
    evidence: Callable[[Tensor, Tensor], Tensor] = all_subsets.log_evidence,
    mass: Tensor | None = None,
) -> Tensor:
    """(..., subset, set) log p(node | parents) for each subset of environments that intervene on it, set by set of
    candidates.

    own: (..., env, 1 + candidates + 1, ...), `families`; hit: (..., subset, env) in {0, 1}. evidence: of all sets, or
    `all_subsets.log_evidence_of_all`.
    """
    if kind == "shift":
        mass = count if mass is None else mass
        pooled = _pool(1.0 - hit, own) + _pool(hit, less_shift(own, mass, OFFSET))
        rows, apart = count.sum().expand(hit.shape[:-1]), -0.5 * hit @ torch.log1p(SHIFT**2 * mass)[:, None]
    else:
        pooled, rows = _pool(1.0 - hit, own), (1.0 - hit) @ count
        ends = [0, own.shape[-1] - 1]
        alone = own if kind == "soft" else own[..., ends, :][..., ends]
        apart = hit @ evidence(alone, count.expand(own.shape[:-2]))  # perfect: the same whatever the parents
    return evidence(pooled, rows) + apart


def _pool(use: Tensor, own: Tensor) -> Tensor:
    return torch.einsum("...ge,...eab->...gab", use, own)


def likely_targets(
    own: Tensor, count: Tensor, free: Tensor, most: int, kind: str, mass: Tensor | None = None
) -> Tensor:
    """(node, most) the environments that most probably intervene on each node, of those that are `free` (env,) to.

    By the evidence of a law of its own against the shared one, parents left out: given parents and children, which
    both tell of a node, an intervention on it may hardly show. own: (node, env, ...), `families`.
    """
    hit = torch.cat([torch.zeros_like(count)[None], torch.ones_like(count).diag()])
    ends = [0, own.shape[-1] - 1]
    bare = own[..., ends, :][..., ends]
    found = log_evidence(bare, count, hit, kind, all_subsets.log_evidence_of_all, mass)[..., 0]
    gain = torch.where(free, found[:, 1:] - found[:, :1], -torch.inf)
    return gain.topk(most, -1).indices.sort(-1).values


def posterior(
    own: Tensor,
    count: Tensor,
    parents: Tensor,
    hit: Tensor,
    slab: Tensor,
    kind: str,
    mass: Tensor | None = None,
) -> regression.Conjugate:
    """(mechanism, node) posteriors of noise and of weights on (1, candidates), under shifts (1, candidates,
    environments), in the nodes' units; what no row tells has its prior.

    own: (node, env, ...), `families`; parents: (node, candidate), hit: (env, node), both in {0, 1}; slab: (node,) t_k.
    """
    own = with_slab(own, slab)
    one = torch.ones_like(parents[:, :1])
    inside = torch.cat([one, parents], 1)[None]  # (mechanism, node, basis)
    if kind == "shift":
        dummies = (SHIFT / OFFSET) * own[:, :, 0] * hit.mT[..., None]  # (node, env, 1 + candidates + 1)
        square = torch.diag_embed((SHIFT**2 * (count if mass is None else mass)[:, None] * hit).mT)  # (node, env, env)
        pooled = torch.cat([torch.cat([own.sum(1), dummies.mT], -1), torch.cat([dummies, square], -1)], -2)
        last = own.shape[-1] - 1  # the node itself, which goes behind the environments
        places = [*range(last), *range(last + 1, pooled.shape[-1]), last]
        pooled, rows = pooled[None, :, places][..., places], count.sum().expand(1, len(parents))
        inside = torch.cat([inside, one.expand(1, -1, len(count))], -1)
    else:
        use = torch.cat([(1.0 - hit)[None], torch.diag_embed(hit.mT).permute(1, 2, 0)])  # (mechanism, env, node)
        pooled, rows = torch.einsum("mek,keab->mkab", use, own), (use * count[:, None]).sum(1)
        bare = torch.cat([one, torch.zeros_like(parents)], 1)[None] if kind == "perfect" else inside
        inside = torch.cat([inside, bare.expand(len(hit), -1, -1)])
    gram = pooled[..., :-1, :-1] * inside[..., :, None] * inside[..., None, :]
    cross = pooled[..., :-1, -1:] * inside[..., None]
    root, mean, rest = regression.regress(gram, cross, pooled[..., -1:, -1], torch.ones_like(rows))
    unit = units(slab, parents.shape[1], len(count), kind)
    shape, rate = all_subsets.SHAPE + 0.5 * rows, all_subsets.RATE + 0.5 * rest[..., 0]
    return regression.Conjugate(shape, rate, mean[..., 0] * unit, root / unit[..., None])


def equations(
    graph: Tensor, hit: Tensor, w: Tensor, precision: Tensor, acting: Tensor, candidates: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Constant (case, node), weights (case, parent, child) and deviation (case, node) of the nodes' equations where the
    environments of each row of acting (case, env) act together; of several that replace an equation, the last.

    graph: (parent, child); hit: (env, node); w: (mechanism, node, basis); precision: (mechanism, node).
    """
    mechanisms, (d, count), cases = len(w), candidates.shape, len(acting)
    table = w.new_zeros(mechanisms, d, d).scatter(2, candidates.expand(mechanisms, d, count), w[..., 1 : 1 + count])
    table = table * graph.mT.to(w)  # (mechanism, child, parent)
    acting, hit = acting.to(w), hit.to(w)
    if kind == "shift":
        shifts = hit * w[0, :, 1 + count :].mT  # (env, node)
        return w[0, :, 0] + acting @ shifts, table.mT.expand(cases, d, d), precision.rsqrt().expand(cases, d)
    turn = torch.arange(1, len(hit) + 1, device=w.device)[:, None]
    own = (acting[..., None] * hit * turn).amax(1).long()  # (case, node) the mechanism that holds
    child = torch.arange(d, device=w.device)
    rows = table[own, child]  # (case, child, parent)
    if kind == "perfect":
        rows = rows * (own == 0)[..., None]
    return w[own, child, 0], rows.mT, precision[own, child].rsqrt()
