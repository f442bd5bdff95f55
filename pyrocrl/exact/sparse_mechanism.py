"""Mechanisms as sums of curves of few parents: draws of graph, curves and noise given latents, and what graphs tell.

    graph_pk ~ Bernoulli(edge);  c_pkb ~ N(0, s_b slab^2) where graph_pk, else N(0, s_b spike^2)
    z_k ~ N(intercept_k + sum_pb c_pkb phi_b(u_p), variance_k),  intercept_k ~ N(0, 1),  variance_k ~ InverseGamma

phi_0 is a line; the others are cubic splines on `PIECES` equal pieces of [0, 1], orthonormal under the uniform law, in
the order of their roughness (Demmler & Reinsch 1975), with prior shares s_b that fall with it. A spike that is not a
point (George & McCulloch 1993) lets be what latents that are read imperfectly owe to others' parents.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from pyrocrl.exact.splines import by_roughness, splines

Floats = NDArray[np.float64]
PIECES, BASIS = 24, 16  # of the splines, and functions that are kept
USUAL = 5e4  # roughness from which prior shares fall, that of about two waves
SHAPE = 1.5  # of the variances' prior
LEAST = 1e-8  # variance


@cache
def _prepared() -> tuple[Floats, Floats, Floats]:
    """offset (PIECES + 3,), turn (PIECES + 3, BASIS - 1) from splines less these to phi_1, phi_2, ...; shares."""
    offset, turn, roughness = by_roughness(PIECES)
    share = 1 / np.sqrt(1 + roughness[:BASIS] / USUAL)
    return offset, turn[:, 1:BASIS], share / share.sum()


@cache
def _tensors(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """`_prepared`, sent to this device once."""
    return tuple(torch.as_tensor(part, dtype=dtype, device=device) for part in _prepared())


def shares(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(BASIS,) shares s_b of a curve's prior variance."""
    return _tensors(dtype, device)[2]


def basis(u: Tensor) -> Tensor:
    """(..., BASIS) phi_b at u; beyond [0, 1] the line goes on and the rest stays as it is."""
    offset, turn, _ = _tensors(u.dtype, u.device)
    bent = (splines(u.clamp(0.0, 1.0), PIECES) - offset) @ turn
    return torch.cat([math.sqrt(12) * (u[..., None] - 0.5), bent], -1)


class Draws(NamedTuple):
    """graph (draw, parent, latent); coefficients (draw, parent, latent, basis); intercept, variance (draw, latent)."""

    graph: Tensor
    coefficients: Tensor
    intercept: Tensor
    variance: Tensor


class Prior(NamedTuple):
    edge: float
    slab: float
    spike: float
    rate: float


def draws(design: Floats, z: Floats, prior: Prior, burn: int, keep: int, rng: np.random.Generator) -> Draws:
    """A Gibbs sampler of graph, curves and noise given latents z (rows, latent) and phi of parents (rows, parent,
    basis): each entry of the graph with all curves of its latent summed out, then these and the variance."""
    rows, parents, _ = design.shape
    latents = z.shape[1]
    flat = np.concatenate([np.ones((rows, 1)), design.reshape(rows, -1)], 1)
    gram, cross, square = flat.T @ flat, flat.T @ z, np.square(z).sum(0)
    share = _prepared()[2]
    wide = {True: 1 / (prior.slab**2 * share), False: 1 / (prior.spike**2 * share)}
    odds = math.log(prior.edge) - math.log1p(-prior.edge)
    graph = np.ones((parents, latents), dtype=bool)
    variance = np.full(latents, 0.1)
    kept: list[tuple[Floats, ...]] = []
    for sweep in range(burn + keep):
        coefficients, intercept = np.zeros((parents, latents, BASIS)), np.zeros(latents)
        for k in range(latents):

            def solved(own: NDArray[np.bool_], k: int = k) -> tuple[float, Floats, Floats]:
                precision = np.concatenate([[1.0], *(wide[bool(there)] for there in own)])
                root = np.linalg.cholesky(gram / variance[k] + np.diag(precision))
                half = linalg.solve_triangular(root, cross[:, k] / variance[k], lower=True)
                return (
                    float(0.5 * half @ half + 0.5 * np.log(precision).sum() - np.log(root.diagonal()).sum()),
                    root,
                    half,
                )

            own = graph[:, k]
            now, root, half = solved(own)
            for p in rng.permutation(parents):
                other = own.copy()
                other[p] = ~own[p]
                then, other_root, other_half = solved(other)
                gain = then - now + (odds if other[p] else -odds)
                if math.log(max(rng.random(), 1e-300)) < -np.logaddexp(0.0, -gain):
                    own, now, root, half = other, then, other_root, other_half
            graph[:, k] = own
            c = linalg.solve_triangular(root.T, half + rng.standard_normal(len(half)))
            left = max(float(square[k] - 2 * c @ cross[:, k] + c @ gram @ c), 0.0)
            variance[k] = max((prior.rate + left / 2) / rng.gamma(SHAPE + rows / 2), LEAST)
            intercept[k], coefficients[:, k] = c[0], c[1:].reshape(parents, BASIS)
        if sweep >= burn:
            kept.append((graph.astype(float), coefficients, intercept, variance.copy()))
    return Draws(*(torch.as_tensor(np.stack(part)) for part in zip(*kept, strict=True)))


def confounded(graph: NDArray[np.bool_], actions: int) -> NDArray[np.bool_]:
    """(latent, latent) whether graph (parent, latent), parents being actions and then latents of the row before, lets
    k into i: i is told from all k that are none.

    Where i has all parents among those of k, and all children among those of k (Lachapelle et al. 2022, the graphical
    criterion: intersections of the sets of children of i's parents and of parents of i's children are {i}).
    """
    before = graph[actions:]
    out: NDArray[np.bool_] = np.all(graph[:, :, None] <= graph[:, None, :], 0)  # (i, k): every parent of i is one of k
    if len(before):
        out = out & np.all(before[:, None, :] <= before[None, :, :], -1)  # every child of i is one of k
    np.fill_diagonal(out, False)
    return out
