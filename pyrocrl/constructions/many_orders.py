"""Orders of more latents than can be searched one by one: sampled, of all equations' regressions at once.

Rows of an unmixing that environments give may mix in a latent's parents: z_c = y_c - sum_p v_p z_p. So y_c is regressed
on z_p and on what p gives its children, of a few likely parents p, for every set of these; both are columns of one
table, and an order is one draw from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def by_sources(known: LatentSEM, z: Tensor, env: Tensor, knots: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(matrix (latent, latent), shift (latent,)): matrix z + shift, a first guess of the latents, sources first.

    z: (rows, latent) latents that may mix in their parents. Of those that are left the next source is the one that is
    least better explained by another than the other way round. What the others mix in of it, and what it gives them, is
    then taken out of them; where a link bends, at the one of `knots`, quantiles of control rows, that tells most.
    """
    d, n = z.shape[1], len(z)
    z, rest = z.double().clone(), z.double().clone()
    matrix, shift, left = torch.eye(d).to(z), torch.zeros(d).to(z), list(range(d))
    natural = 1.0 - known.hard_targets().double().mT  # (latent, env)
    while left:
        here = z[:, left]
        low = here[env == 0].quantile(torch.tensor(knots).to(z), dim=0)  # (knot, parent)
        if known.mechanism == "linear":
            low = here.new_full((1, len(left)), -torch.inf)
        bent = known.link(here[:, None, :] - low) if known.mechanism == "relu" else here[:, None, :]
        mixed, given, gain = _explained(known, rest[:, left], here, bent, env, natural[left])
        gain = (gain - 0.5 * math.log(n)).clamp_min(0.0)  # (child, knot, parent)
        knot, places = gain.sum(0).argmax(0), torch.arange(len(left), device=z.device)
        told = gain[:, knot, places]  # (child, parent)
        better = (told - told.mT).clamp_min(0.0).sum(1)  # explained by others, beyond what it explains of them
        place = int((better - 1e-6 * told.sum(0)).argmin())
        k, at = left[place], int(knot[place])
        if known.mechanism == "relu":
            z[:, k] -= low[at, place]
            shift[k] -= low[at, place]
        link = known.link(z[:, k])
        for child, c in enumerate(left):
            if told[child, place] > 0:
                v, w = mixed[child, at, place], given[child, at, place]
                acts = 1.0 if known.keeps else natural[c][env]
                rest[:, c] -= v * z[:, k] + w * link * acts
                z[:, c] -= v * z[:, k]
                matrix[c] -= v * matrix[k]
                shift[c] -= v * shift[k]
        left.pop(place)
    return matrix, shift


def _explained(
    known: LatentSEM, rest: Tensor, z: Tensor, bent: Tensor, env: Tensor, natural: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(child, knot, parent) slopes of what is left of each child (rows, child) on z (rows, parent) and bent (rows,
    knot, parent), two at a time, and the gain in log-likelihood; of a child by itself 0.

    natural: (child, env) where its own equation holds. Elsewhere it has a level of its own, and takes nothing from its
    parents (perfect), or is left out (soft).
    """
    m, q, envs = z.shape[1], bent.shape[1], known.environments
    count = torch.bincount(env, minlength=envs).to(z)
    rows = (natural @ count).clamp_min(1.0)[:, None]
    flat, each = bent.flatten(1), z.repeat(1, q)

    def by_env(values: Tensor) -> Tensor:
        return values.new_zeros(envs, values.shape[1]).index_add_(0, env, values)

    sums = by_env(rest).mT  # (child, env)
    level = torch.where(natural > 0.5, (sums * natural).sum(1, keepdim=True) / rows, sums / count.clamp_min(1.0))
    left = rest - level.mT[env]
    acting = left if known.keeps else left * natural.mT[env]
    left = acting if known.intervention == "soft" else left

    def product(one: Tensor, two: Tensor, everywhere: bool) -> Tensor:
        """(child, column) inner products of two sets of columns about each child's levels."""
        first, second, both = by_env(one), by_env(two), by_env(one * two)
        inside = natural @ both - (natural @ first) * (natural @ second) / rows
        if not everywhere:
            return inside
        return inside + (1.0 - natural) @ (both - first * second / count.clamp_min(1.0)[:, None])

    cross_z = (left.mT @ z)[:, None]  # (child, 1, parent)
    cross = (acting.mT @ flat).unflatten(1, (q, m))
    square_z = product(z, z, known.intervention != "soft")[:, None]
    square = product(flat, flat, known.keeps).unflatten(1, (q, m))
    between = product(each, flat, known.keeps).unflatten(1, (q, m))
    det = (square_z * square - between.square()).clamp_min(1e-9 * square_z * square) + 1e-12
    mixed = (square * cross_z - between * cross) / det
    given = (square_z * cross - between * cross_z) / det
    share = (mixed * cross_z + given * cross) / left.square().sum(0)[:, None, None]
    own = torch.eye(m, dtype=torch.bool, device=z.device)[:, None]
    return mixed, given, (-0.5 * len(z) * torch.log1p(-share.clamp(0.0, 0.999999))).masked_fill(own, 0.0)


def basis(x: Tensor, env: Tensor, latents: int) -> Tensor:
    """(feature, direction) orthonormal: the directions in which environments' means differ, and principal ones."""
    envs = int(env.max()) + 1
    count = torch.bincount(env, minlength=envs).clamp_min(1)
    mean = torch.zeros(envs, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, env, x) / count[:, None]
    within = x - mean[env]
    lead = torch.linalg.svd(mean - mean[0], full_matrices=False)[2][:latents]
    vector = torch.linalg.eigh(within.mT @ within / len(x)).eigenvectors
    return torch.linalg.qr(torch.cat([lead.mT, vector[:, -WIDE * latents :]], 1))[0]
