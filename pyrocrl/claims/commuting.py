"""Groups of affine maps that are computed, not named: those that commute with mechanisms a user has told.

Which maps these are says `pyrocrl.exact.equivariances`; here they align latents, as the groups of `indeterminacy` do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pyrocrl.claims.indeterminacy import Alignment, Floats, Group, as_latents
from pyrocrl.errors import reject


@dataclass(frozen=True)
class Commuting(Group):
    """Maps z -> z + D z + c, [D, c] in the span of `maps` (free, latent, latent + 1), as nested tuples; without any,
    nothing is free. `names` are those of the smallest named group that holds them."""

    maps: tuple[tuple[tuple[float, ...], ...], ...] = ()

    @classmethod
    def spanned(cls, maps: ArrayLike, names: str | Iterable[str]) -> Commuting:
        """maps: (free, latent, latent + 1)."""
        named = Group.of(names)
        told = tuple(tuple(tuple(float(v) for v in row) for row in one) for one in np.asarray(maps, dtype=float))
        return cls(named.names, named.free, (), told)

    @property
    def mixes(self) -> bool:
        return any(v != 0 for one in self.maps for i, row in enumerate(one) for j, v in enumerate(row[:-1]) if i != j)

    def align(self, z: ArrayLike, reference: ArrayLike) -> Alignment:
        """The map that brings z (data, latent) nearest to the reference by least squares, each latent in the deviation
        it has there; agreement is Lin's concordance after it. `InputError` for other numbers of latents."""
        z, reference = as_latents("z", z), as_latents("reference", reference)
        latents = len(self.maps[0]) if self.maps else z.shape[1]
        if z.shape != reference.shape or z.shape[1] != latents:
            reject("z", f"shape {z.shape}", f"that of the reference, {reference.shape}, with {latents} latents")
        matrix, shift = np.eye(latents), np.zeros(latents)
        spread = np.where(reference.std(0) > 0, reference.std(0), 1.0)
        if self.maps:
            basis = np.array(self.maps)
            unit = np.sqrt(np.mean(z**2))
            size = np.array([*[unit if unit > 0 else 1.0] * latents, 1.0])
            edge = np.concatenate([z, np.ones((len(z), 1))], 1)
            moved = np.einsum("fij,rj->fri", basis, edge) / spread  # (free, data, latent)
            length = np.sqrt(np.square(basis * size).sum((1, 2)))[:, None, None]
            gap = ((reference - z) / spread).ravel()
            weight = np.linalg.lstsq((moved / length).reshape(len(basis), -1).T, gap, rcond=None)[0] / length[:, 0, 0]
            found = np.einsum("f,fij->ij", weight, basis)
            matrix, shift = matrix + found[:, :latents], found[:, latents]
        order = np.arange(latents)
        agreement = _concordance(z @ matrix.T + shift, reference)
        if self.mixes:
            return Alignment(order, np.ones(latents), shift, order, agreement, matrix.T)
        scale = np.where(matrix.diagonal() != 0, matrix.diagonal(), 1.0)
        return Alignment(order, scale, shift, order, agreement)

    def distance(self, z: ArrayLike, reference: ArrayLike) -> float:
        """1 - mean agreement after alignment, the mean of both directions."""
        both = self.align(z, reference).agreement.mean(), self.align(reference, z).agreement.mean()
        return float(max(0.0, 1.0 - np.mean(both)))

    def canonical(self, z: ArrayLike) -> Floats:
        """A group that is computed has no canonical form of its own; raises InputError."""
        reject("indeterminacy", "maps that commute with mechanisms", "a named group, which has a canonical form")


def _concordance(z: Floats, reference: Floats) -> Floats:
    """(latent,) Lin's concordance of columns; 0 where one does not vary."""
    cov = ((z - z.mean(0)) * (reference - reference.mean(0))).mean(0)
    total = z.var(0) + reference.var(0) + (z.mean(0) - reference.mean(0)) ** 2
    out: Floats = np.clip(np.where(total > 0, 2 * cov / np.where(total > 0, total, 1.0), 0.0), 0.0, 1.0)
    return out
