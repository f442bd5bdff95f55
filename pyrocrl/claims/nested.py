"""The groups of maps of latents of which each may take of others that all of its views see, or its pairs keep, as well.

Then what a set of views sees in common, the span of the latents that all of them see, is the same set of combinations
whatever the map: every intersection of views is identified as a block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pyrocrl.claims.indeterminacy import Alignment, Floats, Group, as_latents
from pyrocrl.errors import reject


@dataclass(frozen=True)
class Nested(Group):
    """sees: (view, latent), which views see which latents, as nested tuples."""

    sees: tuple[tuple[bool, ...], ...] = ()

    @classmethod
    def seen(cls, sees: ArrayLike) -> Nested:
        """sees: (view, latent), of truth values."""
        named = Group.of("nested")
        rows = tuple(tuple(bool(one) for one in row) for row in np.asarray(sees))
        return cls(named.names, named.free, (), rows)

    @property
    def sets(self) -> list[np.ndarray]:
        """Of every latent those (latent,) that all of its views see, itself among them."""
        sees = np.asarray(self.sees, dtype=bool)
        return [np.flatnonzero((sees[:, [k]] <= sees).all(0)) for k in range(sees.shape[1])]

    def align(self, z: ArrayLike, reference: ArrayLike) -> Alignment:
        """Least squares from z (data, latent) to the reference, each latent from those of its set; agreement is R^2.
        Raises InputError for other numbers of latents, and for as many latents as rows."""
        z, reference = self._checked(z, reference)
        inputs, outputs = z - z.mean(0), reference - reference.mean(0)
        unit = np.maximum(np.linalg.norm(inputs, axis=0), 1e-300)
        matrix = np.zeros((z.shape[1], z.shape[1]))
        for k, own in enumerate(self.sets):
            matrix[own, k] = np.linalg.lstsq(inputs[:, own] / unit[own], outputs[:, k], rcond=None)[0] / unit[own]
        total, left = (outputs**2).sum(0), ((outputs - inputs @ matrix) ** 2).sum(0)
        order = np.arange(z.shape[1])
        agreement = np.clip(1 - left / np.where(total > 0, total, 1.0), 0.0, 1.0) * (total > 0)
        shift = np.zeros(len(order))  # a linear map has none
        return Alignment(order, np.ones(len(order)), shift, order, agreement, matrix)

    def distance(self, z: ArrayLike, reference: ArrayLike) -> float:
        """1 - the mean squared canonical correlation of the intersection that agrees least; 1 for other numbers of
        latents."""
        z, reference = as_latents("z", z), as_latents("reference", reference)
        if not z.shape[1] == reference.shape[1] == len(self.sets):
            return 1.0
        worst = 1.0
        for own in self.sets:
            u, v = (_basis(a[:, own] - a[:, own].mean(0)) for a in (z, reference))
            worst = min(worst, float(np.square(u.T @ v).sum() / max(u.shape[1], v.shape[1], 1)))
        return max(0.0, 1.0 - worst)

    def canonical(self, z: ArrayLike) -> Floats:
        """Latents by orthogonal parts, those of most views first; raises InputError, for the order within a part is
        free."""
        reject("indeterminacy", "maps within intersections of views", "a named group, which has a canonical form")

    def _checked(self, z: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
        z, reference = as_latents("z", z), as_latents("reference", reference)
        if z.shape != reference.shape or z.shape[1] != len(self.sets):
            reject("z", f"shape {z.shape}", f"that of the reference, {reference.shape}, with {len(self.sets)} latents")
        if len(z) <= z.shape[1] + 1:
            reject("z", f"{len(z)} rows", f"more than {z.shape[1] + 1}, to tell a linear map")
        return z, reference


@dataclass(frozen=True)
class Kept(Nested):
    """sees: (kind, latent), which pairs keep which latents. Maps within blocks are any, judged by their affine part."""

    @classmethod
    def seen(cls, sees: ArrayLike) -> Kept:
        """sees: (kind, latent), of truth values."""
        named, one = Group.of("kept"), Nested.seen(sees)
        return cls(named.names, named.free, (), one.sees)

    def align(self, z: ArrayLike, reference: ArrayLike) -> Alignment:
        """As `Nested.align`, and means are matched."""
        found = super().align(z, reference)
        z, reference = as_latents("z", z), as_latents("reference", reference)
        assert found.matrix is not None
        return replace(found, shift=reference.mean(0) - z.mean(0) @ found.matrix)

    def _bent_by(self, z: Floats, reference: Floats) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(own, np.array([k])) for k, own in enumerate(self.sets)]


def _basis(z: Floats) -> Floats:
    unit = np.linalg.norm(z, axis=0)
    u, s, _ = np.linalg.svd(z / np.where(unit > 0, unit, 1.0), full_matrices=False)
    out: Floats = u[:, s > 1e-10 * max(s.max(), 1e-300)]
    return out
