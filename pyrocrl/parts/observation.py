"""From latents to features: the likelihood of a decoder's output, floats or counts.

A decoder gives eta (rows, feature). Floats: x_j ~ N(centre_j + spread_j eta_j, sd_j^2). Counts:
x_j ~ NegativeBinomial(mean = s_i exp(offset[batch_i, j] + eta_j), dispersion r_j), s_i the library size over its mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.dists import LARGEST, NegativeBinomial, Normal
from pyrocrl.errors import one_of

LIKELIHOODS = ("gaussian", "negative_binomial")
CONTROLS = 20  # control rows that a technical batch needs to have its baseline read off them alone


class Observation(nn.Module):
    """The likelihood's own parameters and scales: noise or dispersion (feature,), and offset (batch, feature).

    `start` reads them off the data; `inputs` is what an encoder sees. A batch of counts has the baseline of its control
    rows, since batches may differ in which other environments they hold.
    """

    centre: Tensor
    spread: Tensor
    size_unit: Tensor

    def __init__(
        self, features: int, likelihood: str = "gaussian", batches: int = 1, noise: float | None = 0.3
    ) -> None:
        """noise: the Gaussian's first standard deviation, in those of the features; None = the model has its own."""
        super().__init__()
        one_of("likelihood", likelihood, LIKELIHOODS)
        self.counts = likelihood == "negative_binomial"
        learned = noise is not None and not self.counts
        self.raw_noise = nn.Parameter(torch.full((features,), math.log(noise or 1.0)), requires_grad=learned)
        self.raw_dispersion = nn.Parameter(torch.full((features,), 3.0), requires_grad=self.counts)
        self.offset = nn.Parameter(torch.zeros(batches, features), requires_grad=self.counts)
        self.register_buffer("centre", torch.zeros(batches, features))  # of x, or of log(1 + x / s)
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("size_unit", torch.ones(()))

    @torch.no_grad()
    def start(self, data: Data) -> Batch:
        """Set scales and offsets to those of `data`; returns its rows as a batch."""
        batch = data.tensors(dtype=self.centre.dtype)
        self.size_unit.copy_(batch.size_factor.mean())
        seen, control, known = self.seen(batch), torch.as_tensor(data.control_rows), batch.known
        for group in range(len(self.centre)):
            rows = batch.group == group
            if self.counts and int((rows & control).sum()) >= CONTROLS:
                rows = rows & control
            own = None if known is None else known[rows]
            self.centre[group] = column_means(seen[rows], own) if rows.any() else column_means(seen, known)
            if known is not None and rows.any():  # a feature that nobody measured in this batch
                self.centre[group] = torch.where(known[rows].any(0), self.centre[group], column_means(seen, known))
            if self.counts:
                self.offset[group] = log_rates(batch.x[rows], self.size(batch)[rows], own)
        spread = column_deviations(seen - self.centre[batch.group], known)
        self.spread.copy_(torch.where(spread > 1e-8, spread, torch.ones_like(spread)))
        return batch

    def size(self, batch: Batch) -> Tensor:
        """(rows,) size factors, 1 on average over the rows of the fit."""
        return batch.size_factor / self.size_unit

    def seen(self, batch: Batch) -> Tensor:
        """(rows, feature) x, or log(1 + x / s) of counts."""
        return torch.log1p(batch.x / self.size(batch)[:, None]) if self.counts else batch.x

    def inputs(self, batch: Batch) -> Tensor:
        """(rows, feature) `seen`, centred in its technical batch and scaled, 0 where missing: what an encoder gets."""
        scaled = (self.seen(batch) - _of_rows(self.centre, batch)) / self.spread
        return scaled if batch.known is None else torch.where(batch.known, scaled, torch.zeros_like(scaled))

    @property
    def noise(self) -> Tensor:
        """(feature,) Gaussian standard deviations, in units of `spread`."""
        return self.raw_noise.exp()

    def mean(self, eta: Tensor, batch: Batch) -> Tensor:
        """(rows, feature) mean of x."""
        if self.counts:
            return self.size(batch)[:, None] * (_of_rows(self.offset, batch) + eta).clamp(max=LARGEST).exp()
        return _of_rows(self.centre, batch) + self.spread * eta

    def likelihood(self, eta: Tensor, batch: Batch, sd: Tensor | None = None) -> NegativeBinomial | Normal:
        """The distribution of x (rows, feature) given the decoder's output. sd: (feature,) of a model's own noise."""
        if self.counts:
            rate = _of_rows(self.offset, batch) + eta
            return NegativeBinomial(None, softplus(self.raw_dispersion), log_rate=rate, size=self.size(batch)[:, None])
        mean = self.mean(eta, batch)
        return Normal(mean, (self.spread * self.noise if sd is None else sd).expand_as(mean))


def column_means(values: Tensor, known: Tensor | None) -> Tensor:
    """(feature,) means of values (rows, feature) where these are known (rows, feature); None = everywhere."""
    if known is None:
        return values.mean(0)
    return torch.where(known, values, 0 * values).sum(0) / known.sum(0).clamp_min(1)


def column_deviations(values: Tensor, known: Tensor | None) -> Tensor:
    """(feature,) standard deviations, likewise."""
    if known is None:
        return values.std(0)
    apart = torch.where(known, values - column_means(values, known), 0 * values)
    return (apart.square().sum(0) / (known.sum(0) - 1).clamp_min(1)).sqrt()


def log_rates(x: Tensor, size: Tensor, known: Tensor | None) -> Tensor:
    """(feature,) logarithms of counts (rows, feature) a unit of size (rows,), over the rows in which each is known."""
    if known is None:
        return ((x.sum(0) + 0.5) / size.sum().clamp_min(1.0)).log()
    return ((x.sum(0) + 0.5) / (size @ known.to(size.dtype)).clamp_min(1.0)).log()


def _of_rows(table: Tensor, batch: Batch) -> Tensor:
    """(rows, feature) lines of a table (batch, feature) by the rows' technical batch, or its only one (feature,)."""
    if len(table) == 1:
        return table[0]
    places = torch.arange(len(table), device=table.device)
    one_hot = (batch.group[:, None] == places).to(table.dtype)
    return one_hot @ table  # several times faster than indexing, whose gradient is added up row by row
