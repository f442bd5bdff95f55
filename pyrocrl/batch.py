"""`Batch`, what a program sees of its data: tensors on the device of the fit, with the step's annealing scalars."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = np.ndarray


@dataclass(frozen=True)
class Moments:
    """Count, mean and covariance of x in each environment: all that a linear-Gaussian program needs.

    count: (env,) rows; mean: (env, feature); cov: (env, feature, feature), divided by the count. float64.
    """

    count: torch.Tensor
    mean: torch.Tensor
    cov: torch.Tensor

    def to(self, device: torch.device | str) -> Moments:
        return Moments(self.count.to(device), self.mean.to(device), self.cov.to(device))


@dataclass(frozen=True)
class Units:
    """Origin and unit (feature,) of each column of x, in float64: a program sees (x - centre) / scale."""

    centre: Array
    scale: Array

    def standard(self, x: Array) -> Array:
        """(rows, feature) x as a program sees it, float64."""
        out: Array = (x.astype(np.float64) - self.centre) / self.scale
        return out

    def restore(self, x: Array) -> Array:
        """x (..., feature) in the data's units, float64, of what a program made."""
        out: Array = x.astype(np.float64) * self.scale + self.centre
        return out

    @property
    def log_volume(self) -> float:
        """What a row's log-density loses when x is told in the data's units."""
        return float(np.log(self.scale).sum())

    def volumes(self, known: Array | None) -> float | Array:
        """The same of rows: one number, or (rows,) of the values that were measured, `known` (rows, feature)."""
        if known is None:
            return self.log_volume
        out: Array = known @ np.log(self.scale)
        return out


@dataclass(frozen=True)
class Batch:
    """Tensors of some rows of a `Data`, on the device of the fit.

    x: (rows, feature), in the `units` of its `Data`; env, group: (rows,) integer codes of environment and technical
    batch; aux: (rows, aux); size_factor: (rows,), 1 for floats; index: (rows,) positions in the whole data of `total`
    rows. pair: (rows,) twice the code of the row's pair, and one more for the row after; None without pairs.
    clock: (rows,) numbers, one more in each row than in the row before of its series, and none of other series right
    before or after; None without series. present: (rows, view) whether the row has that view, x being 0 where not;
    None without views. known: (rows, feature) whether each value was measured, x being 0 where not; None if all.
    `kl_weight`, `temperature` and `progress` are 0-d tensors that the recipe anneals, so no step waits for the host.
    together: environments whose interventions act together on the observational equations, in place of each row's own.
    """

    x: torch.Tensor  # None in a `blank` batch: a story then simulates it
    env: torch.Tensor
    size_factor: torch.Tensor
    index: torch.Tensor
    total: int
    group: torch.Tensor
    aux: torch.Tensor | None = None
    pair: torch.Tensor | None = None
    clock: torch.Tensor | None = None
    present: torch.Tensor | None = None
    known: torch.Tensor | None = None
    moments: Moments | None = None
    kl_weight: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones(()))
    temperature: torch.Tensor = dataclasses.field(default_factory=lambda: torch.full((), 0.1))
    progress: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones(()))
    together: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return int(self.index.shape[0])

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def dtype(self) -> torch.dtype:
        return self.size_factor.dtype

    def take(self, rows: torch.Tensor) -> Batch:
        """The rows at positions `rows` of this batch, standing for the same `total` rows."""
        pick: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[rows]
            for name in ("x", "env", "size_factor", "index", "group", "aux", "pair", "clock", "present", "known")
        }
        return dataclasses.replace(self, **pick)

    def before(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) position in this batch of the row before, of rows after one that is here, and of others their own;
        (rows,) whether a row is after one that is here."""
        own = torch.arange(len(self), device=self.device)
        if self.pair is None or not len(self):
            return own, torch.zeros_like(own, dtype=torch.bool)
        known, order = self.pair.sort()
        place = torch.searchsorted(known, self.pair - 1).clamp_max(len(self) - 1)
        found = (known[place] == self.pair - 1) & (self.pair % 2 == 1)
        return torch.where(found, order[place], own), found

    def in_time(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) positions of rows in the order of time, one series after another, and (rows,), in that order, how
        many rows of its series come right before: 0 where a series begins, or goes on after rows that are not here.
        Without series every row is one."""
        own = torch.arange(len(self), device=self.device)
        if self.clock is None:
            return own, torch.zeros_like(own)
        time, order = self.clock.sort()
        begins = torch.cat([own[:1] == 0, time[1:] != time[:-1] + 1])
        return order, own - torch.where(begins, own, 0).cummax(0).values

    def parts(self, rows: int) -> Iterator[torch.Tensor]:
        """Positions of all rows in parts of about `rows`, both rows of a pair in one part; all at once of series."""
        own = torch.arange(len(self), device=self.device)
        if self.clock is not None:
            yield own
            return
        yield from (own if self.pair is None else self.pair.argsort()).split(
            rows + (rows % 2 if self.pair is not None else 0)
        )

    def whole(self) -> Batch:
        """The same rows as a data set of their own (total = rows), as for a held-out objective."""
        rows = len(self)
        return dataclasses.replace(self, total=rows, index=torch.arange(rows, device=self.device))

    def blank(self) -> Batch:
        """The same rows and covariates without x: what a story needs to simulate them."""
        return dataclasses.replace(self, x=None)

    def anneal(self, kl_weight: torch.Tensor, temperature: torch.Tensor, progress: torch.Tensor) -> Batch:
        return dataclasses.replace(self, kl_weight=kl_weight, temperature=temperature, progress=progress)

    def annealed(self) -> Batch:
        """As at the end of annealing: gates drawn hard, the objective itself."""
        one = torch.ones((), dtype=self.dtype, device=self.device)
        return self.anneal(one, one * 1e-3, one)
