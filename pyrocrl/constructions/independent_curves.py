"""Latents of an additive factor model: independent parts of the rows, each laid out along a curve.

Without noise rows are a sum over latents of curves, so the space that they span holds parts, one for each latent, that
are independent of each other (independent subspaces: Hyvarinen & Hoyer 2000). Independent components of the rows fall
into such parts, for components of one part are curves of one number, and so tell each other (`components`,
`dependence`, `parts`). Rows of one part lie along a curve, and the second eigenvector of a random walk among them
ascends along it (diffusion maps: Coifman & Lafon 2006; `along`), be any feature monotone or none. With
one to all latents draws of the whole model start from there (`exact.additive_factors`), and what rows come to then,
less what curves cost, decides (`search`); the best are laid out anew, each latent by what the others leave, and with
one latent less. Lines of normal latents have no independent components: of these nothing is found but by chance.

NIFTY lays out all latents at once by diffusion maps (Xu, Herring & Dunson 2023).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from pyrocrl.exact.additive_factors import Sampler
from pyrocrl.exact.curve_latents import rows_told, shares_of
from pyrocrl.exact.curves import BASIS, CELLS, ON_GRID, SHARE, on_grid

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]
MOST_ROWS, PART = 1500, 0.8  # rows of which a search draws at most, and their share of all
WALKERS, NEAR = 600, 10  # rows of a random walk at most, and neighbours that its steps reach
FLAT = 4  # dimensions in which a latent is laid out anew, at most
SHORT, SWEEPS, KEPT = 5, 30, 5  # of a start at first, then, and those of which its curves are the mean
ROUNDS, CLIMBED = 3, 3  # of laying out anew, and starts of which that is done
SAME = 0.98  # rank correlation from which it is as it was
ITERATIONS = 200


class Start(NamedTuple):
    """cell (latent, row) of the rows that were searched; mask (feature, latent); coefficients (feature, latent, basis)
    and variance (feature,), means of draws; score: rows' log-likelihood less what curves cost."""

    cell: Cells
    mask: NDArray[np.bool_]
    coefficients: Floats
    variance: Floats
    score: float
    margin: float = np.inf


def cells(values: Floats) -> Cells:
    """(column, row) of ranks on the grid; values (row, column)."""
    ranks = (stats.rankdata(values, axis=0) - 0.5) / len(values)
    out: Cells = (ranks.T * CELLS).astype(np.int64).clip(0, CELLS - 1)
    return out


def search(x: Floats, latents: int, slab: float, rate: float, rng: np.random.Generator) -> Start:
    """The best start, of at most so many latents, from a part of the rows; x (row, feature), standardised."""
    x = x[rng.permutation(len(x))[: min(MOST_ROWS, max(round(PART * len(x)), 2))]]
    best: dict[int, Start] = {}  # by the number of latents

    def tried(cell: Cells, sweeps: int = SWEEPS) -> Start:
        one = climb(x, cell, slab, rate, rng, sweeps)
        count = len(one.cell)
        if count not in best or one.score > best[count].score:
            best[count] = one
        return one

    def improved(one: Start) -> Start:
        """Laid out anew as long as that is better."""
        for _ in range(ROUNDS):
            again = laid_out(x, one, rng)
            if again is None or (then := tried(again)).score <= one.score:
                break
            one = then
        return one

    starts = [np.zeros((len(x), 0))]
    for cubic in (True, False):
        y = components(x, cubic, rng)
        told = dependence(y)
        tree = linkage(squareform(1 - told, checks=False), "average") if len(told) > 1 else None
        for count in range(1, min(latents, len(told)) + 1):
            group = np.ones(1, int) if tree is None else fcluster(tree, count, "maxclust")
            starts.append(np.stack([along(y[:, group == k], rng) for k in np.unique(group)], 1))
    found = sorted((tried(cells(one), SHORT) for one in starts), key=_score)[-CLIMBED:]
    now = max((improved(tried(one.cell)) for one in found), key=_score)
    while len(now.cell) > 1:  # one less
        fewer = (tried(np.delete(now.cell, k, 0), SHORT) for k in range(len(now.cell)))
        then = improved(tried(max(fewer, key=_score).cell))
        if then.score <= now.score:
            break
        now = then
    now = max(best.values(), key=_score)
    others = [one.score for count, one in best.items() if count != len(now.cell)]
    return now._replace(margin=now.score - max(others, default=-np.inf))


def _score(start: Start) -> float:
    return start.score


def components(x: Floats, cubic: bool, rng: np.random.Generator) -> Floats:
    """(row, component) independent components of the directions of more variance than noise has in any, by FastICA
    (Hyvarinen 1999), symmetric, with the cube or tanh."""
    u, size, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    shuffled = np.column_stack([rng.permutation(column) for column in x.T])
    noise = np.linalg.svd(shuffled - shuffled.mean(0), compute_uv=False)
    count = max(int((size > noise[0]).sum()), 1)
    white = u[:, :count] * np.sqrt(len(x))
    turn = linalg.qr(rng.standard_normal((count, count)))[0]
    for _ in range(ITERATIONS):
        y = white @ turn.T
        g, slope = (y**3, np.full(count, 3.0)) if cubic else (np.tanh(y), 1 - np.square(np.tanh(y)).mean(0))
        left, _, right = np.linalg.svd(g.T @ white / len(x) - slope[:, None] * turn)
        before, turn = turn, left @ right
        if np.abs(np.abs((turn * before).sum(1)) - 1).max() < 1e-5:
            break
    out: Floats = white @ turn.T
    return out


def dependence(y: Floats) -> Floats:
    """(column, column) share of the variance of either that a curve of the other's ranks explains, the larger one."""
    out = np.ones((y.shape[1], y.shape[1]))
    for a, cell in enumerate(cells(y)):
        design = ON_GRID[cell]
        cross = design.T @ y
        solved = np.linalg.solve(design.T @ design + np.eye(BASIS), cross)
        out[a] = (cross * solved).sum(0) / np.maximum(np.square(y).sum(0), 1e-12)
    out = np.maximum(out, out.T).clip(0, 1)
    np.fill_diagonal(out, 1.0)
    return out


def along(y: Floats, rng: np.random.Generator) -> Floats:
    """(row,) what ascends along the curve on which rows of y (row, dimension) lie."""
    few = y[rng.permutation(len(y))[:WALKERS]]
    apart = np.square(few[:, None] - few).sum(-1)
    reach = 2 * np.median(np.partition(apart, min(NEAR, len(few) - 1), axis=1)[:, min(NEAR, len(few) - 1)])
    reach = max(float(reach), 1e-12)
    weight = np.exp(-apart / reach)
    density = weight.sum(1)
    weight /= np.outer(density, density)
    degree = weight.sum(1)
    walk = weight / np.sqrt(np.outer(degree, degree))
    second = linalg.eigh(walk, subset_by_index=[len(few) - 2, len(few) - 2])[1][:, 0] / np.sqrt(degree)
    apart = np.square(y).sum(1)[:, None] - 2 * y @ few.T + np.square(few).sum(1)
    near = np.exp(-(apart - apart.min(1, keepdims=True)) / reach)
    out: Floats = near @ second / near.sum(1)
    return out


def climb(x: Floats, cell: Cells, slab: float, rate: float, rng: np.random.Generator, sweeps: int = SWEEPS) -> Start:
    """Draws from this layout (latent, row) on, in which a latent may come to be without features."""
    sampler = Sampler(x, max(len(cell), 1), slab, rate, rng)
    sampler.begin(cell, np.ones((x.shape[1], len(cell)), dtype=bool), np.full(x.shape[1], 0.5))
    draws = sampler.run(sweeps, KEPT, closing=True)
    used = sampler.used
    mask, variance = sampler.mask[:, used], draws.variance.mean(0)
    mean = draws.coefficients.mean(0)[:, used] * mask[:, :, None]
    prior = slab**2 * SHARE
    cost = np.log1p(len(x) * prior / variance[:, None]).sum(1)[:, None] + (np.square(mean) / prior).sum(2)
    return Start(
        sampler.cell[used], mask, mean, variance, rows_told(x, mean, variance, rng) - 0.5 * float((cost * mask).sum())
    )


def laid_out(x: Floats, start: Start, rng: np.random.Generator) -> Cells | None:
    """(latent, row) each latent along what the others leave of its features; None where that changes nothing."""
    curve = on_grid(start.coefficients)
    parts = [curve[:, k].T[cell] for k, cell in enumerate(start.cell)]
    left = x - sum(parts)
    cell, changed = start.cell.copy(), False
    for k, own in enumerate(start.mask.T):
        y = ((left + parts[k]) / np.sqrt(start.variance))[:, own]
        u, size, _ = np.linalg.svd(y - y.mean(0), full_matrices=False)
        new = along((u * size)[:, :FLAT], rng)
        if abs(stats.spearmanr(new, cell[k])[0]) < SAME:
            cell[k], changed = cells(new[:, None])[0], True
    return cell if changed else None


def placed(x: Floats, start: Start, rng: np.random.Generator) -> Cells:
    """(latent, row) of all rows, drawn given the curves of a start."""
    share = shares_of(x, start.coefficients, start.variance).cumsum(2)
    uniform = rng.random((*share.shape[:2], 1))
    out: Cells = (share < uniform).sum(2).clip(0, CELLS - 1).T
    return out
