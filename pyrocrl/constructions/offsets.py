"""Pairs of rows x = g(z), x' = g(z + offset_u) of perturbations u = 1, ..., m with fixed offsets (Ahuja et al. 2022).

Coordinates y = h(x) in which every perturbation moves all rows alike are affine in z, if offsets span them. `encoder`
trains a network to be such coordinates: of m outputs first, output u to move by 1 under perturbation u and by 0 under
all others, of which what can be met is the projection on the offsets' column space; then of its leading directions.
`axes` are the coordinates of which most perturbations leave each where it is: normals of hyperplanes through
differences, taken by how many differences they hold. Sets of independent normals are a matroid, so taking the best
first is best for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrocrl.constructions import optimise
from pyrocrl.parts.nets import Residual

ROWS = 512  # pairs a step
FIRST = 0.4  # share of the steps with an output for each perturbation
DIM = 1e-3  # variance, as a share of the largest, from which a principal component is scaled to 1
HYPERPLANES = 20_000  # that are looked at, drawn at random where there are more
NEAR = 4.0  # deviations within which a difference is taken to lie in a hyperplane
SURELY = 10.0  # deviations that the smallest direction has of differences that tell a hyperplane
SAME = 0.999  # cosine of two normals from which they are one
FREE = 0.05  # length of a normal outside of others' span from which it is independent of them
PART = 0.1  # coefficient of a latent, in a rival's, from which it is part of it


class Differences(NamedTuple):
    """Of y' - y over the pairs of each perturbation: mean (m, latent), error (m, latent, latent) covariance of the
    mean, count (m,)."""

    mean: Tensor
    error: Tensor
    count: Tensor


def differences(moved: Tensor, which: Tensor, perturbations: int) -> Differences:
    """moved: (pair, latent) y' - y; which: (pair,) below `perturbations`. Of one with fewer than two pairs the error is
    very large."""
    one_hot = torch.nn.functional.one_hot(which, perturbations).to(moved)
    count = one_hot.sum(0)
    mean = one_hot.mT @ moved / count.clamp_min(1.0)[:, None]
    left = moved - mean[which]
    cov = torch.einsum("pu,pk,pl->ukl", one_hot, left, left) / (count - 1).clamp_min(1.0)[:, None, None]
    error = cov / count.clamp_min(1.0)[:, None, None]
    few = torch.eye(moved.shape[1]).to(moved) * 1e6
    return Differences(mean, torch.where((count < 2)[:, None, None], few, error), count)


# -- coordinates -------------------------------------------------------------------------------------------------


def scaled_components(x: Tensor) -> Tensor:
    """(feature, feature): principal components of x, centred, each scaled to variance 1 unless it is nearly none."""
    value, vector = torch.linalg.eigh(torch.cov(x.mT.double()))
    return (vector / value.clamp_min(DIM * float(value[-1])).sqrt()).to(x)


def encoder(
    before: Tensor, after: Tensor, which: Tensor, latents: int, width: int, steps: int, generator: torch.Generator
) -> tuple[Residual, Tensor]:
    """(network of x, (m,) shares). before, after: (pair, feature) x and x'; which: (pair,) below m >= latents.

    shares: descending; about 1 for each direction that offsets span, about 0 for others. Rows of which the network is
    trained are all.
    """
    m = int(which.max()) + 1
    target = torch.nn.functional.one_hot(which, m).to(before)
    net = Residual(before.shape[1], m, width).to(before)
    rows = torch.arange(len(before))
    first = max(1, int(FIRST * steps))

    def loss(goal: Tensor) -> Callable[[Tensor, float], Tensor]:
        def square(pick: Tensor, _: float) -> Tensor:
            both = net(torch.cat([before[pick], after[pick]]))
            return (both[len(pick) :] - both[: len(pick)] - goal[pick]).square().sum(1).mean()

        return square

    optimise.minimise(net, loss(target), rows, first, ROWS, generator)
    with torch.no_grad():
        mean = differences(net(after) - net(before), which, m).mean.double()
        share, vector = torch.linalg.eigh((mean + mean.mT) / 2)
        turn = vector[:, -latents:].mT.to(before)
        net.followed_by(turn, before.new_zeros(latents))
    optimise.minimise(net, loss(target @ turn.mT), rows, max(1, steps - first), ROWS, generator)
    return net, share.flip(0).clamp(0.0, 1.0)


def told_directions(found: Differences) -> Tensor:
    """(latent,) shares as those of `encoder`, descending, of coordinates that are given: s^2 / (s^2 + 10 e^2), s the
    singular values of the means and e the largest that their errors would have alone."""
    m, d = found.mean.shape
    error = torch.einsum("ukk->", found.error) / (m * d)
    chance = 10 * (math.sqrt(m) + math.sqrt(d)) ** 2 * error
    square = torch.linalg.svdvals(found.mean).square()
    share = square / (square + chance)
    return torch.cat([share, share.new_zeros(d - len(share))])


# -- axes --------------------------------------------------------------------------------------------------------


class Axes(NamedTuple):
    """rows: (latent, latent) of z = rows y, of length 1; mixed: (latent,) whether other axes would be moved as
    sparsely, of which the latent is a part."""

    rows: Tensor
    mixed: Tensor


def axes(found: Differences, tolerance: float, generator: torch.Generator) -> Axes:
    """The coordinates that the fewest perturbations move; y white over the rows before, at least two latents.

    tolerance: error of differences that stays however many pairs there are, in deviations of y.
    """
    mean = found.mean.double().cpu().numpy()
    m, d = mean.shape
    error = found.error.double().cpu().numpy() + tolerance**2 * np.eye(d)
    sets = _subsets(m, d - 1, generator)
    part = mean[sets]  # (set, d - 1, d)
    _, value, vector = np.linalg.svd(part)
    normal = vector[:, -1]
    told = value[:, -1] > SURELY * np.sqrt(np.trace(error, axis1=1, axis2=2).min() / d)
    normal, zero = normal[told], _held(mean, error, normal[told], sets[told])
    zero, place = np.unique(zero, axis=0, return_index=True)
    normal = np.array([_through(mean, error, held, one) for held, one in zip(zero, normal[place], strict=True)])
    order = np.argsort(-zero.sum(1), kind="stable")
    normal, count = normal.reshape(-1, d)[order], zero.sum(1)[order]
    chosen: list[int] = []
    for i in range(len(normal)):
        if len(chosen) < d and _outside(normal[i], normal[chosen]) > FREE:
            chosen.append(i)
    rows = normal[chosen]
    full = np.linalg.svd(np.concatenate([rows, np.zeros((1, d))]))[2][len(chosen) :]
    rows = np.concatenate([rows, full])  # what no perturbation tells
    held = np.concatenate([count[chosen], np.zeros(len(full), dtype=int)])
    mixed = np.zeros(d, dtype=bool)
    for one, many in zip(normal, count, strict=True):
        if len(chosen) and np.abs(rows[: len(chosen)] @ one).max() < SAME:
            share = np.abs(np.linalg.solve(rows.T, one)) > PART
            mixed |= share & (many >= held[share].min()) if share.any() else share
    return Axes(torch.as_tensor(rows).to(found.mean), torch.as_tensor(mixed))


def _subsets(m: int, size: int, generator: torch.Generator) -> np.ndarray:
    """(set, size) of all sets of so many of m, or `HYPERPLANES` at random."""
    if math.comb(m, size) <= HYPERPLANES:
        return np.array(list(itertools.combinations(range(m), size)), dtype=int).reshape(-1, size)
    drawn = torch.rand(HYPERPLANES, m, generator=generator).argsort(1)[:, :size].sort(1).values
    return np.unique(drawn.numpy(), axis=0)


def _held(mean: np.ndarray, error: np.ndarray, normal: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """(set, m) whether a difference lies in the hyperplane through those of a set, given the errors of all."""
    along = normal @ mean.T
    own = np.einsum("sk,ukl,sl->su", normal, error, normal)
    weight = np.einsum("uk,skj->suj", mean, np.linalg.pinv(mean[sets]))  # of a set's differences in each one
    square = own + np.einsum("suj,sj->su", weight**2, np.take_along_axis(own, sets, 1))
    out: np.ndarray = np.abs(along) < NEAR * np.sqrt(square)
    np.put_along_axis(out, sets, True, 1)
    return out


def _through(mean: np.ndarray, error: np.ndarray, held: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The normal of the hyperplane nearest to all that it holds, by their errors."""
    sd = np.sqrt(np.einsum("k,ukl,l->u", normal, error[held], normal))
    out: np.ndarray = np.linalg.svd(mean[held] / np.maximum(sd, 1e-12)[:, None])[2][-1]
    return out


def _outside(one: np.ndarray, others: np.ndarray) -> float:
    """Length of a normal outside of the span of others."""
    if not len(others):
        return 1.0
    basis = np.linalg.qr(others.T)[0]
    return float(np.linalg.norm(one - basis @ (basis.T @ one)))
