"""Where to look for latents on which actions act, unseen: unmixings of two closed forms, and of which actions.

In region g of actions, with r_gk its probability to act on latent k,

    E[y_t | y_t-1, g] = A diag(1 - r_g) m(y_t-1) + ..,    cov(y_t | y_t-1, g) = A D_g A',  D_g diagonal,

so coefficients of y_t-1, less their mean over regions, are a sum of products of three: of columns of the mixing A, of
how r_g varies and of how mechanisms differ, which alternating least squares finds (`by_means`); and one matrix
diagonalises all covariances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocrl.constructions.directions import whitening
from pyrocrl.constructions.sources import jointly_diagonal

ALTERNATIONS, TRIES = 60, 4  # of least squares, and starts of these
RANDOM = 6  # unmixings at random


@dataclass(frozen=True)
class Acted:
    """Rows in the order of time: y (rows, y) white, since (rows,) how many are right before each, region (rows,) of the
    `regions` of actions; soft: whether latents that are acted on keep parents, with weights of their own; edge: a
    parent's probability a priori."""

    y: Tensor
    since: Tensor
    region: Tensor
    regions: int
    soft: bool
    edge: float


def starts(acted: Acted, generator: torch.Generator) -> list[Tensor]:
    """Unmixings (latent, y) by both closed forms, and some at random; rows in units of innovations."""
    follow = (acted.since > 0).nonzero()[:, 0]
    y, before, region = acted.y[follow], acted.y[follow - 1], acted.region[follow]
    d = y.shape[1]
    one = torch.cat([torch.ones_like(y[:, :1]), before], 1)
    pooled = torch.linalg.solve(one.mT @ one, one.mT @ y)
    left = y - one @ pooled
    white = whitening(left.mT @ left / len(left))
    e = left @ white.mT
    slopes, covariances, counts = [], [], []
    root = torch.linalg.cholesky(one.mT @ one / len(one))
    for g in range(acted.regions):
        at = region == g
        if (n := int(at.sum())) > 2:
            scaled = one[at] @ torch.linalg.inv(root).mT
            slope = torch.linalg.solve(scaled.mT @ scaled + torch.eye(d + 1, dtype=y.dtype), scaled.mT @ e[at])
            own = e[at] - scaled @ slope
            slopes.append(slope.mT)
            covariances.append(own.mT @ own / max(n - d - 1, 1) if n > 2 * d else torch.eye(d, dtype=y.dtype))
            counts.append(float(n))
    weight = y.new_tensor(counts)
    out = [jointly_diagonal(torch.stack(covariances) * weight.sqrt()[:, None, None]).mT]
    mean = by_means(torch.stack(slopes), weight, generator)
    out += [mean] if mean is not None else []
    turns = torch.randn(RANDOM, d, d, generator=generator, dtype=y.dtype)
    out += list(torch.linalg.qr(turns)[0])
    return [v / (e @ v.mT).std(0)[:, None] @ white for v in out]


def by_means(slope: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor | None:
    """Unmixing (latent, e) of which slopes (region, e, number), of weights (region,), are sums of products of three, or
    None where columns that are found do not span the latents."""
    share = weight / weight.sum()
    t = (slope - torch.einsum("g,gip->ip", share, slope)) * share.sqrt()[:, None, None]
    d = t.shape[1]
    eye = 1e-6 * torch.eye(d, dtype=t.dtype)
    best, least = None, math.inf
    for _ in range(TRIES):
        parts = [torch.randn(size, d, generator=generator, dtype=t.dtype) for size in t.shape]
        for _ in range(ALTERNATIONS):
            for mode, sums in enumerate(("gip,ik,pk->gk", "gip,gk,pk->ik", "gip,gk,ik->pk")):
                a, b = (parts[i] for i in range(3) if i != mode)
                gram = (a.mT @ a) * (b.mT @ b)
                parts[mode] = torch.linalg.solve(gram + eye * gram.trace(), torch.einsum(sums, t, a, b).mT).mT
                parts[mode] = parts[mode] if mode == 2 else parts[mode] / parts[mode].norm(dim=0).clamp_min(1e-12)
        error = float((t - torch.einsum("gk,ik,pk->gip", *parts)).square().sum())
        if error < least:
            best, least = parts[1], error
    if best is None or torch.linalg.svdvals(best / best.norm(dim=0))[-1] < 1e-2:
        return None
    return torch.linalg.inv(best)


def two_kinds(gram: Tensor, cross: Tensor, square: Tensor, count: Tensor, soft: bool) -> Tensor:
    """(region,) probabilities of the second of two regressions, of a column for all of a region's rows."""
    size = gram.shape[-1]
    eye = torch.eye(size, dtype=gram.dtype)

    def fit(share: Tensor, constant: bool) -> Tensor:
        """(region,) log-densities of a regression on all that has `share` of each region."""
        g, c, n = (torch.tensordot(share, part, 1) for part in (gram, cross, count))
        use = 1 if constant else size
        slope = torch.zeros_like(c)
        slope[:use] = torch.linalg.solve(g[:use, :use] + eye[:use, :use], c[:use])
        left = square - 2 * cross @ slope + torch.einsum("gab,a,b->g", gram, slope, slope)
        variance = ((share * left).sum() / n.clamp_min(1e-9)).clamp_min(1e-9)
        return -0.5 * (left / variance + count * variance.log())

    pooled = torch.linalg.solve(gram.sum(0) + eye, cross.sum(0))
    each = torch.linalg.solve(gram + len(gram) * eye, (cross - (gram @ pooled))[..., None])[..., 0]  # (region, column)
    weight = count.sqrt()[:, None] * each * gram.sum(0).diagonal().sqrt()
    score = torch.linalg.svd(weight - weight.mean(0))[0][:, 0]
    best, most = score, -math.inf
    for sign in (1, -1):
        share = (sign * score > (sign * score).median()).to(gram)
        for _ in range(15):
            natural, acted_on = fit(1 - share, False), fit(share, not soft)
            share = (acted_on - natural).sigmoid()
        value = float(torch.logaddexp(natural, acted_on).sum())
        if value > most:
            best, most = share, value
    return 1 - best if soft and (best * count).sum() > count.sum() / 2 else best
