"""Orders of more latents than can be searched one by one: sampled, of all equations' regressions at once.

Rows of an unmixing that environments give may mix in a latent's parents: z_c = y_c - sum_p v_p z_p. So y_c is regressed
on z_p and on what p gives its children, of a few likely parents p, for every set of these; both are columns of one
table, and an order is one draw from it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyrocrl.exact import capped_parents, order_sampling
from pyrocrl.parts.latent_sem import LatentSEM

PARTICLES = 48
WIDE = 2  # directions of x that are kept for each latent, beside those in which environments' means differ


def equation_moments(known: LatentSEM, z: Tensor, env: Tensor) -> tuple[Tensor, Tensor]:
    """Moments (latent, 1 + 2 latent, 1 + 2 latent) of each latent, then z and phi(z) of every latent, and counts
    (latent,), of the rows that tell its equation.

    known: of known targets. An intervention that keeps the equation leaves a mean of its own; a perfect one takes away
    phi; rows under a soft one are left out.
    """
    known.gather(z, env)
    envs, d = known.environments, known.latents
    count, mean, cov = (part[:envs].double() for part in (known.count, known.mean, known.cov))
    hit = known.hard_targets().to(count).mT  # (latent, env)
    weight = (1 - hit) * count
    total = weight.sum(1).clamp_min(1.0)
    share = weight / total[:, None]
    centre = share @ mean
    second = torch.einsum("ke,eij->kij", weight, cov)
    apart = mean - centre[:, None]  # (latent, env, column)
    second = second + (weight[:, :, None] * apart).mT @ apart
    if known.intervention != "soft":
        own = torch.einsum("ke,eij->kij", hit * count, cov)
        if known.intervention == "perfect":
            own[:, d:], own[:, :, d:] = 0.0, 0.0
        second, total = second + own, total + (hit * count).sum(1)
    second = second / total[:, None, None]
    pairs = torch.stack([torch.arange(d), torch.arange(d) + d], 1).flatten().to(cov.device)  # z, phi of each latent
    places = torch.cat([torch.arange(d, device=cov.device)[:, None], pairs.expand(d, -1)], 1)
    return capped_parents.at(second, places), total


def proposed(known: LatentSEM, z: Tensor, env: Tensor, rng: np.random.Generator, few: int) -> list[Tensor]:
    """At most `few` orders (latent,), the likeliest first; the likely parents of `known` are set."""
    moments, count = equation_moments(known, z, env)
    known.graphs.choose(moments, width=2)
    likely = known.graphs.candidates
    size = order_sampling.members(likely.shape[1], z.device).sum(1)
    table = capped_parents.scores(moments, count, likely, width=2) + known.graphs.log_odds * size
    drawn = known.graphs.sample(table, PARTICLES, rng)
    found = dict.fromkeys(tuple(order.tolist()) for order in drawn)
    return [torch.tensor(order, device=z.device) for order in list(found)[:few]]


def by_sources(
    known: LatentSEM, z: Tensor, env: Tensor, knots: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, list[set[int]]]:
    """An order, sources first: (order (latent,), matrix (latent, latent), shift (latent,), parents), z -> matrix z +
    shift, the latents that follow from it.

    z: (rows, latent) latents that may mix in their parents. Of the latents that are left the next is the one that is
    least better explained by another of them than the other way round. It is then taken out of the others: what they
    mix in of it, and what it gives them.
    """
    d, n = z.shape[1], len(z)
    z, rest = z.double(), z.double()
    hit = known.hard_targets().double()
    kept, perfect = known.keeps, known.intervention == "perfect"
    envs, bends = known.environments, known.mechanism == "relu"
    matrix, shift = torch.eye(d).to(z), torch.zeros(d).to(z)
    left, order = list(range(d)), []
    parents: list[set[int]] = [set() for _ in range(d)]
    count = torch.bincount(env, minlength=envs).double()
    natural = 1.0 - hit.mT  # (latent, env)
    rows = natural @ count
    penalty = 0.5 * math.log(n)

    def by_env(values: Tensor) -> Tensor:
        return values.new_zeros(envs, values.shape[1]).index_add_(0, env, values)

    while left:
        here = z[:, left]
        low = here[env == 0].quantile(torch.tensor(knots).to(z), dim=0) if bends else here.new_zeros(1, len(left))
        seen = (here[:, None, :] - low[None]).relu() if bends else here[:, None, :]  # (rows, knot, parent)
        flat, m, q = seen.flatten(1), len(left), len(low)
        at = natural[left]  # (child, env)
        centre = by_env(rest[:, left])  # (env, child)
        nat = (centre.mT * at).sum(1) / rows[left].clamp_min(1.0)
        own = centre.mT / count.clamp_min(1.0)
        level = torch.where(at > 0.5, nat[:, None], own)  # (child, env)
        r = rest[:, left] - level.mT[env]
        told = at.mT[env] if not kept else torch.ones_like(r)  # rows in which parents give as they do in all
        square = (r * r * (told if known.intervention == "soft" else 1.0)).sum(0)
        cross_z = r.mT @ here  # (child, parent)
        cross_f = ((r * told).mT @ flat).unflatten(1, (q, m))  # (child, knot, parent)

        def product(one: Tensor, two: Tensor, only: bool) -> Tensor:
            """(child, column) inner products of two sets of columns, about the child's levels."""
            e1, e2, e12 = by_env(one), by_env(two), by_env(one * two)
            w = at if only else torch.ones_like(at)
            s1, s2 = at @ e1, at @ e2
            about = s1 * s2 / rows[left].clamp_min(1.0)[:, None]
            if not only:
                about = about + (1.0 - at) @ (e1 * e2 / count.clamp_min(1.0)[:, None])
            return w @ e12 - about

        only = not kept
        zz = product(here, here, False)  # (child, parent)
        each = here.repeat(1, q)
        zf = product(each, flat, only).unflatten(1, (q, m))
        ff = product(flat, flat, only).unflatten(1, (q, m))
        det = (zz[:, None] * ff - zf.square()).clamp_min(1e-9 * zz[:, None] * ff) + 1e-12
        v = (ff * cross_z[:, None] - zf * cross_f) / det  # (child, knot, parent)
        w = (zz[:, None] * cross_f - zf * cross_z[:, None]) / det
        gone = v * cross_z[:, None] + w * cross_f
        alone = cross_z.square() / zz.clamp_min(1e-12)
        # what the link adds to what the map could have mixed in
        total = square[:, None, None]
        gain = 0.5 * n * (torch.log1p(-(alone / square[:, None]).clamp_max(0.999999))[:, None]
                          - torch.log1p(-(gone / total).clamp(0.0, 0.999999)))
        full = -0.5 * n * torch.log1p(-(gone / total).clamp(0.0, 0.999999)) - penalty
        self_ = torch.eye(m, dtype=torch.bool, device=z.device)[:, None]
        full = full.masked_fill(self_, 0.0).clamp_min(0.0)  # (child, knot, parent)
        knot = full.sum(0).argmax(0)  # (parent,)
        told_by = full[:, knot, torch.arange(m)]  # (child, parent)
        against = (told_by - told_by.mT).clamp_min(0.0).sum(1)  # of each as a child
        pick = int((against - 1e-6 * told_by.sum(0)).argmin())
        k = left.pop(pick)
        order.append(k)
        if bends:
            z[:, k] -= low[knot[pick], pick]
            shift[k] -= low[knot[pick], pick]
        link = z[:, k].relu() if bends else z[:, k]
        for j, c in enumerate([*left[:pick], k, *left[pick:]]):
            if c != k and told_by[j, pick] > 0:
                a, b = v[j, knot[pick], pick], w[j, knot[pick], pick]
                natural_rows = natural[c][env] if not kept else 1.0
                rest[:, c] -= a * z[:, k] + b * link * natural_rows
                z[:, c] -= a * z[:, k]
                matrix[c] -= a * matrix[k]
                shift[c] -= a * shift[k]
                parents[c].add(k)
        del perfect, gain
        perfect = None
    return torch.tensor(order, device=z.device), matrix, shift, parents


def basis(x: Tensor, env: Tensor, latents: int) -> Tensor:
    """(feature, direction) orthonormal: the directions in which environments' means differ, and principal ones."""
    envs = int(env.max()) + 1
    count = torch.bincount(env, minlength=envs).clamp_min(1)
    mean = torch.zeros(envs, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, env, x) / count[:, None]
    within = x - mean[env]
    lead = torch.linalg.svd(mean - mean[0], full_matrices=False)[2][:latents]
    value, vector = torch.linalg.eigh(within.mT @ within / len(x))
    return torch.linalg.qr(torch.cat([lead.mT, vector[:, -WIDE * latents :]], 1))[0]
