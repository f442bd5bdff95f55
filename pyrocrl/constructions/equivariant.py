"""Coordinates of pairs x = g(z), x' = g(m_u(z)) in which known affine mechanisms m_u(z) = A_u z + b_u act (Ahuja,
Hartford & Bengio 2022, "Properties from mechanisms").

`encoder` trains a network h with h(x') = m_u(h(x)). What it makes of rows, or principal components under a linear
mixing, is an affine function y of z; `affine` finds z = W y + c: of all that is left free of it one element, the one
nearest to latents of mean 0 and deviation 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrocrl.claims.commuting import Commuting
from pyrocrl.constructions import optimise
from pyrocrl.exact.equivariances import Mechanisms, collapsing
from pyrocrl.parts.nets import Residual

ROWS = 512  # pairs a step
KEPT = 0.3  # weight of what a decoder misses of rows, where a constant is as equivariant
TRIES = 40  # elements of what is free that are looked at, for one in which no latent is lost


def units(known: Mechanisms, free: np.ndarray) -> np.ndarray:
    """(latent,) sizes of latents by the offsets told; 1 of those whose scale is free."""
    offset = np.nan_to_num(known.offset)
    own = np.sqrt(np.square(offset).mean(0))
    own = np.where(own > 1e-9 * own.max(), own, own.max())
    out: np.ndarray = np.where(collapsing(free) | (own == 0), 1.0, own)
    return out


def encoder(
    before: Tensor,
    after: Tensor,
    which: Tensor,
    known: Mechanisms,
    free: np.ndarray,
    width: int,
    steps: int,
    generator: torch.Generator,
) -> Residual:
    """A network of x. before, after: (pair, feature) x and x'; which: (pair,) actions; free: as `equivariances.affine`
    has them.

    It makes the mean square of h(x') - A_u h(x) - b_u least, in units of the offsets, or, of latents that might as well
    be constant, in units of their variance; where there are such latents, a decoder has to find x in all of them.
    """
    unit, lost = units(known, free), torch.as_tensor(collapsing(free))
    matrix = torch.as_tensor(known.matrix * unit / unit[:, None]).to(before)
    offset = torch.as_tensor(known.offset / unit).to(before)
    features, latents = before.shape[1], known.latents
    net = Residual(features, latents, width).to(before)
    back = Residual(latents, features, width).to(before)

    def loss(pick: Tensor, _: float) -> Tensor:
        both = net(torch.cat([before[pick], after[pick]]))
        here, there = both[: len(pick)], both[len(pick) :]
        act = which[pick]
        left = (there - (matrix[act] @ here[..., None])[..., 0] - offset[act]).square().mean(0)
        if not lost.any():
            return left.sum()
        spread = here.var(0) + 1e-6
        told = back(torch.where(lost, (both - here.mean(0)) / spread.sqrt(), both))
        missed = (told - torch.cat([before[pick], after[pick]])).square().mean()
        return torch.where(lost, left / spread, left).sum() + KEPT * missed

    trained = nn.ModuleList([net, back] if lost.any() else [net])
    optimise.minimise(trained, loss, torch.arange(len(before)), steps, ROWS, generator)
    with torch.no_grad():
        net.followed_by(torch.diag(torch.as_tensor(unit).to(before)), before.new_zeros(latents))
    return net


class Placed(NamedTuple):
    """z = rows y + centre: rows (latent, latent), centre (latent,)."""

    rows: np.ndarray
    centre: np.ndarray


def affine(
    before: np.ndarray,
    after: np.ndarray,
    which: np.ndarray,
    known: Mechanisms,
    free: np.ndarray,
    noise: np.ndarray,
    generator: torch.Generator,
) -> Placed:
    """Where known mechanisms act. before, after: (pair, latent) y and y'; noise: (latent, latent) covariance of errors
    of y, which must not attenuate how y' depends on y; all offsets are told.

    y' is regressed on y first, action by action; W and c are least squares of W y' + c = A_u (W y + c) + b_u at what is
    predicted, so that what mechanisms leave to chance does not shrink them (two-stage least squares).
    """
    d = known.latents
    unit = units(known, free)
    matrix, offset = known.matrix * unit / unit[:, None], known.offset / unit
    system, goal = [], []
    for u in range(len(matrix)):
        here = which == u
        points, there = _predicted(before[here], after[here], noise, bool(np.allclose(matrix[u], np.eye(d))))
        eye = np.eye(d)
        # d left_i / d W_kl = delta_ik y'_l - A_ik y_l;  d left_i / d c_k = delta_ik - A_ik
        by_rows = np.einsum("ik,pl->pikl", eye, there) - np.einsum("ik,pl->pikl", matrix[u], points)
        by_centre = np.broadcast_to(eye - matrix[u], (len(points), d, d))
        weight = np.sqrt(here.mean() / len(points))
        system.append(weight * np.concatenate([by_rows.reshape(-1, d * d), by_centre.reshape(-1, d)], 1))
        goal.append(weight * np.tile(offset[u], len(points)))
    value, vector = np.linalg.svd(np.concatenate(system))[1:]
    kept = d * d + d - len(free)
    left = np.concatenate(system).T @ np.concatenate(goal)
    start = vector[:kept].T @ (vector[:kept] @ left / np.maximum(value[:kept], 1e-9 * value[0]) ** 2)
    y = np.concatenate([before, after])
    best, most, first = start, -np.inf, kept
    while most == -np.inf:  # factors that are nearly equal leave a map that noise makes look less free
        for attempt in range(TRIES if first < len(vector) else 1):
            size = 0.0 if not attempt else 1.0
            weights = torch.randn(len(vector) - first, generator=generator, dtype=torch.float64).numpy()
            one = start + size * weights @ vector[first:]
            score = _volume(y @ one[: d * d].reshape(d, d).T)
            if score > most:
                best, most = one, score
        if first == 0:
            break
        first -= 1
    rows, centre = best[: d * d].reshape(d, d) * unit[:, None], best[d * d :] * unit
    z = before @ rows.T + centre
    # without noise z is nearest to these of all that is left free
    near = Commuting.spanned(free, ()).align(z, (z - z.mean(0)) / np.maximum(z.std(0), 1e-12))
    turn = np.diag(near.scale) if near.matrix is None else near.matrix.T
    return Placed(turn @ rows, turn @ centre + near.shift)


def _predicted(before: np.ndarray, after: np.ndarray, noise: np.ndarray, steps: bool) -> tuple[np.ndarray, np.ndarray]:
    """(point, latent) of y with its mean and its covariance, less that of noise, and what y' is expected to be there;
    steps: whether y' - y is known not to depend on y."""
    mean, d = before.mean(0), before.shape[1]
    cov = np.atleast_2d(np.cov(before.T)) if len(before) > 1 else np.zeros((d, d))
    value, vector = np.linalg.eigh(cov - noise)
    value = np.maximum(value, 1e-6 * max(value[-1], 1e-12))
    root = vector * np.sqrt(d * value)
    points = np.concatenate([mean + root.T, mean - root.T])
    if steps:
        return points, points + (after - before).mean(0)
    cross = (before - mean).T @ (after - after.mean(0)) / max(len(before) - 1, 1)
    slope = vector @ ((vector.T @ cross) / value[:, None])  # (y, y')
    return points, after.mean(0) + (points - mean) @ slope


def _volume(z: np.ndarray) -> float:
    """Log determinant of the correlations of latents; minus infinity where one is lost."""
    spread = z.std(0)
    if (spread <= 1e-6 * max(spread.max(), 1e-12)).any():
        return -np.inf
    return float(np.linalg.slogdet(np.atleast_2d(np.corrcoef(z.T)) + 1e-9 * np.eye(z.shape[1])).logabsdet)
