"""Maps that commute with known affine mechanisms m_u(z) = A_u z + b_u: what they leave free of the latents.

An encoder h with h(x') = m_u(h(x)) for all rows and actions is a(z) with a(m_u(z)) = m_u(a(z)) for all u (Ahuja,
Hartford & Bengio 2022, "Properties from mechanisms", theorem 1). Of two such maps the difference d has
d(m_u(z)) = A_u d(z), which is linear in d: affine ones, d(z) = D z + c, are the null space of

    D A_u - A_u D = 0,   D b_u - (A_u - I) c = 0,   the latter where b_u is told          for all u.

The maps themselves are z + d(z). Where some of them send a latent to a constant, bent maps commute as well, as z + |z|
does with a scaling of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
ROUNDING = 1e-8  # singular values below this share of the largest are 0


class Mechanisms(NamedTuple):
    """matrix: (action, latent, latent) A_u; offset: (action, latent) b_u, NaN in all of an action's where it is not
    told."""

    matrix: Array
    offset: Array

    @property
    def told(self) -> Array:
        """(action,) whether the offset is."""
        return ~np.isnan(self.offset).any(1)

    @property
    def latents(self) -> int:
        return int(self.matrix.shape[1])


def affine(known: Mechanisms) -> Array:
    """(free, latent, latent + 1) a basis of the [D, c], in reduced echelon form, so that each is sparse: the latent's
    own entry first, then others by row."""
    d, told = known.latents, known.told
    eye = np.eye(d)
    rows = []
    for matrix, offset, here in zip(known.matrix, known.offset, told, strict=True):
        commutes = np.einsum("ik,lj->ijkl", eye, matrix) - np.einsum("ik,jl->ijkl", matrix, eye)  # d(DA - AD) / dD_kl
        rows.append(np.concatenate([commutes.reshape(d * d, d * d), np.zeros((d * d, d))], 1))
        if here:
            moves = np.einsum("ik,l->ikl", eye, offset).reshape(d, d * d)
            rows.append(np.concatenate([moves, -(matrix - eye)], 1))
    null = _null(np.concatenate(rows)) if rows else np.eye(d * d + d)
    places = np.arange(d * d).reshape(d, d)
    order = np.concatenate([places.diagonal(), places[~np.eye(d, dtype=bool)], d * d + np.arange(d)])
    out = np.zeros_like(null)
    out[:, order] = _echelon(null[:, order])
    return np.concatenate([out[:, : d * d].reshape(-1, d, d), out[:, d * d :, None]], 2)


def elementwise(free: Array) -> bool:
    """Whether these maps, `affine`, only scale and shift each latent."""
    d = free.shape[1]
    return not (np.abs(free[:, :, :d]) * (1 - np.eye(d)) > 0).any()


def up_to(free: Array) -> tuple[str, ...]:
    """Names of `indeterminacy.LATENT_GROUPS` of maps that only scale and shift each latent."""
    d = free.shape[1]
    scale, shift = bool((free[:, :, :d] != 0).any()), bool((free[:, :, d] != 0).any())
    return ("scale",) * scale + ("shift",) * shift


def collapsing(free: Array) -> Array:
    """(latent,) whether some map of the group sends the latent to a constant, so that a constant is as equivariant."""
    d = free.shape[1]
    out = np.zeros(d, dtype=bool)
    for k in range(d):
        own = free[:, k, :d]  # (free, latent) what the maps add to the latent
        if len(own):
            weight = np.linalg.lstsq(own.T, np.eye(d)[k], rcond=None)[0]
            out[k] = np.abs(weight @ own - np.eye(d)[k]).max() < 1e-6
    return out


def words(free: Array, names: Sequence[str]) -> list[str]:
    """What each of these maps, `affine`, does, those that mix latents first."""
    mixing, alone = [], []
    for one in free:
        linear, shift = one[:, :-1], np.flatnonzero(one[:, -1])
        off = np.argwhere((linear != 0) & ~np.eye(len(linear), dtype=bool))
        own = [names[int(k)] for k in np.flatnonzero(linear.diagonal())]
        if not len(off):
            parts = [f"{_and(own)} scale{'' if len(own) > 1 else 's'}"] if own else []
            parts += (
                [f"{_and([names[int(k)] for k in shift])} shift{'' if len(shift) > 1 else 's'}"] if len(shift) else []
            )
            alone.append(" as ".join(parts) + (" together" if len(own) > 1 else ""))
            continue
        i, j = map(int, off[0])
        if len(off) == 2 and not own and abs(linear[i, j] + linear[j, i]) < 1e-6:
            mixing.append(f"{names[i]} and {names[j]} rotate together")
            continue
        more = f" and {len(off) - 3} more" if len(off) > 3 else ""
        mixing.append(_and([f"{names[int(j)]} added to {names[int(i)]}" for i, j in off[:3]]) + more)
    return mixing + alone


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _null(matrix: Array) -> Array:
    """(free, column) an orthonormal basis of the null space."""
    value, vector = np.linalg.svd(matrix)[1:]
    value = np.concatenate([value, np.zeros(len(vector) - len(value))])
    out: Array = vector[value <= ROUNDING * max(value[0], 1.0)]
    return out


def _echelon(rows: Array) -> Array:
    """Reduced row echelon form, with 1 as each row's first entry and what is 0 up to rounding exactly 0."""
    out, top = rows.copy(), 0
    for column in range(out.shape[1]):
        if top == len(out):
            break
        best = top + int(np.abs(out[top:, column]).argmax())
        if abs(out[best, column]) < 1e-6:
            continue
        out[[top, best]] = out[[best, top]]
        out[top] /= out[top, column]
        others = np.arange(len(out)) != top
        out[others] -= np.outer(out[others, column], out[top])
        top += 1
    out[np.abs(out) < 1e-6] = 0.0
    return out


# -- on rows -----------------------------------------------------------------------------------------------------


class Left(NamedTuple):
    """What mechanisms leave of latents after an action, in deviations of latents before. explained: (action, latent)
    mean square that an affine map of the row before explains; chance: (action, latent) of this, what it would by
    chance; rest: (action, latent) variance that it does not explain; pairs: (action,) on which maps are fitted. Actions
    of too few of these, latents + 2 or less, have 0 in all."""

    explained: Array
    chance: Array
    rest: Array
    pairs: Array


def left(
    before: Array, after: Array, which: Array, known: Mechanisms, fitted: tuple[Array, Array, Array] | None = None
) -> Left:
    """before, after: (pair, latent) latents; which: (pair,) actions. fitted: as these, the pairs on which the affine
    maps are fitted; None = the same."""
    d, unit = known.latents, np.maximum(before.std(0), 1e-12)
    own = (before, after, which) if fitted is None else fitted
    explained, chance, rest = (np.zeros((len(known.matrix), d)) for _ in range(3))
    pairs = np.zeros(len(known.matrix))
    for u in range(len(known.matrix)):
        here, there = own[2] == u, which == u
        if here.sum() <= d + 2 or not there.any():
            continue
        gap, edge = _gap(own[0][here], own[1][here], known, u) / unit, _edge(own[0][here])
        slope = np.linalg.lstsq(edge, gap, rcond=None)[0]
        explained[u] = np.square(edge @ slope).mean(0)
        chance[u] = (d + 1) / len(gap) * np.square(gap - edge @ slope).sum(0) / (len(gap) - d - 1)
        rest[u] = np.square(_gap(before[there], after[there], known, u) / unit - _edge(before[there]) @ slope).mean(0)
        pairs[u] = len(gap)
    return Left(explained, chance, rest, pairs)


def slack(before: Array, which: Array, known: Mechanisms, free: Array) -> tuple[float, Array]:
    """(rate, [D, c]) of the affine map z + D z + c, outside the group of `free`, that most nearly commutes with the
    mechanisms: root mean square, summed over latents, of what the mechanisms leave after it, for each unit by which it
    moves latents. Latents in their deviations, with the correlations of these rows, or without any, whichever rate is
    less: maps that do not commute may have made latents alike. Infinite where all affine maps are free."""
    d, unit = known.latents, np.maximum(before.std(0), 1e-12)
    matrix, offset = known.matrix * unit / unit[:, None], known.offset / unit
    own = free.copy()
    own[:, :, :d] *= unit
    own /= unit[:, None]
    edge = _edge(before / unit)
    best: tuple[float, Array] = np.inf, np.zeros((d, d + 1))
    for alone in (False, True):
        moment = [edge[which == u].T @ edge[which == u] / len(edge) for u in range(len(matrix))]
        if alone:
            mean = edge.mean(0)
            whole = np.outer(mean, mean) + np.diag([1.0] * d + [0.0])
            moment = [whole * (which == u).mean() for u in range(len(matrix))]
        found = _least(moment, matrix, offset, own)
        best = min(best, found, key=lambda one: one[0])
    return best


def _least(moment: Sequence[Array], matrix: Array, offset: Array, free: Array) -> tuple[float, Array]:
    """`slack` of rows with these second moments of (z, 1), (latent + 1, latent + 1), an action's share of all rows."""
    d = matrix.shape[1]
    size = np.kron(np.eye(d), np.sum(moment, 0))  # of D z + c
    cost = np.zeros_like(size)
    for own, turn, step in zip(moment, matrix, offset, strict=True):
        carry = np.eye(d + 1)  # of (z, 1) to (A z + b, 1)
        if not np.isnan(step).any():
            carry[:d, :d], carry[:d, d] = turn, step
        there = carry @ own
        cost += np.kron(np.eye(d), there @ carry.T) - np.kron(turn, there) - np.kron(turn.T, there.T)
        cost += np.kron(turn.T @ turn, own)
    value, vector = np.linalg.eigh(size)
    root = vector * np.sqrt(np.maximum(value, 1e-12 * value[-1]))
    white = np.linalg.inv(root)
    inside = free.reshape(len(free), len(size)) @ root
    outside = np.linalg.svd(np.concatenate([inside, np.zeros((1, len(size)))]))[2][len(free) :]
    if not len(outside):
        return np.inf, np.zeros((d, d + 1))
    least, turned = np.linalg.eigh(outside @ white @ cost @ white.T @ outside.T)
    return float(np.sqrt(max(least[0], 0.0))), (turned[:, 0] @ outside @ white).reshape(d, d + 1)


def _gap(before: Array, after: Array, known: Mechanisms, u: int) -> Array:
    return after - before @ known.matrix[u].T - known.offset[u]


def _edge(z: Array) -> Array:
    return np.concatenate([z, np.ones((len(z), 1))], 1)
