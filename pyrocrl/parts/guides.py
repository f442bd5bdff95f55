"""Variational blocks for global latents: plain modules whose parameters exist from the start.

Pyro's AutoGuides make theirs at the first call and share names between instances; these neither wait nor share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrocrl.dists import AnyOf, Gate, LogMultivariateNormal, LogNormal, MultivariateNormal, Normal

SURE = 12.0  # largest log odds of settled gates
SETTLED = 0.101  # temperature from which gates stay as they are


class NormalBlock(nn.Module):
    """q = N(loc, scale^2), independent entries of any shape."""

    def __init__(self, *shape: int, loc: float = 0.0, scale: float = 0.1, jitter: float = 0.0) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc + jitter * torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.full(shape, math.log(math.expm1(scale))))

    @property
    def scale(self) -> Tensor:
        return softplus(self.raw_scale) + 1e-6

    @torch.no_grad()
    def set(self, loc: Tensor, scale: Tensor) -> None:
        """Set means and deviations, as after a Laplace finish."""
        self.loc.copy_(loc)
        self.raw_scale.copy_(scale + torch.log(-torch.expm1(-scale.clamp_min(1e-6))))

    def forward(self) -> Normal:
        return Normal(self.loc, self.scale)


class LogNormalBlock(NormalBlock):
    """q of positive entries: exp of a NormalBlock; `loc` is the logarithm of the median."""

    def forward(self) -> LogNormal:
        return LogNormal(self.loc, self.scale)


class GateBlock(nn.Module):
    """q of 0/1 entries: independent Bernoulli with straight-through gradients."""

    def __init__(self, *shape: int, probability: float = 0.5, jitter: float = 0.0) -> None:
        super().__init__()
        start = math.log(probability) - math.log1p(-probability)
        self.logits = nn.Parameter(start + jitter * torch.randn(shape))

    @property
    def probabilities(self) -> Tensor:
        return self.logits.sigmoid()

    def forward(self, temperature: Tensor | float) -> Gate:
        return Gate(self.logits, temperature)


class SettlingGates(GateBlock):
    """Gates that end at given log odds (`settle`).

    While they are trained, `bounded` ones keep log odds in (-6, 4), for a gate beyond gets no gradient; others stay at
    their more probable value once the temperature has fallen to `SETTLED`, so that what they open settles.
    """

    finished: Tensor

    def __init__(self, *shape: int, probability: float = 0.5, bounded: bool = False) -> None:
        super().__init__(*shape, probability=probability)
        self.bounded = bounded
        self.register_buffer("finished", torch.zeros(()))  # 1 once `settle` has set the log odds

    @property
    def log_odds(self) -> Tensor:
        raw = self.logits
        return torch.where(self.finished > 0.5, raw, 5.0 * torch.tanh((raw + 1.0) / 5.0) - 1.0) if self.bounded else raw

    @property
    def probabilities(self) -> Tensor:
        return self.log_odds.sigmoid()

    @property
    def open(self) -> Tensor:
        """1 where a gate is more probably open, 0 elsewhere."""
        return (self.log_odds > 0).to(self.logits.dtype)

    def forward(self, temperature: Tensor | float) -> Gate:
        if self.bounded:
            return Gate(self.log_odds, temperature)
        settled = (temperature < SETTLED) & (self.finished < 0.5)
        return Gate(torch.where(settled, SURE * self.logits.sign(), self.logits), temperature)

    @torch.no_grad()
    def settle(self, log_odds: Tensor) -> None:
        """Set the log odds, up to `SURE`."""
        self.logits.copy_(log_odds.clamp(-SURE, SURE))
        self.finished.fill_(1.0)


class FullNormalBlock(nn.Module):
    """q = N(loc, L L^T) over `size` entries at once; the diagonal of L is positive."""

    def __init__(self, size: int, scale: float = 0.1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(size))
        self.raw_tril = nn.Parameter(torch.eye(size) * math.log(math.expm1(scale)))

    @property
    def scale_tril(self) -> Tensor:
        diagonal = softplus(self.raw_tril.diagonal(dim1=-2, dim2=-1)) + 1e-8
        return self.raw_tril.tril(-1) + torch.diag_embed(diagonal)

    @torch.no_grad()
    def set(self, loc: Tensor, covariance: Tensor) -> None:
        """Set mean (size,) and covariance (size, size), as after a Laplace finish."""
        tril = torch.linalg.cholesky(covariance)
        self.loc.copy_(loc)
        diagonal = tril.diagonal().clamp_min(1e-8)
        raw = diagonal + torch.log(-torch.expm1(-diagonal))
        self.raw_tril.copy_(tril.tril(-1) + torch.diag(raw))

    def forward(self) -> MultivariateNormal:
        return MultivariateNormal(self.loc, scale_tril=self.scale_tril)


class JointBlock(nn.Module):
    """q of several vectors, jointly normal, the positive ones in their logarithm.

    sizes, positive: of each. loc (sum of sizes,) and the Cholesky factor of the covariance are in that order; each
    vector is drawn given those before it.
    """

    def __init__(self, sizes: Sequence[int], positive: Sequence[bool], scale: float = 0.05) -> None:
        super().__init__()
        self.sizes, self.positive = list(sizes), list(positive)
        total = sum(sizes)
        self.loc = nn.Parameter(torch.zeros(total))
        self.raw_tril = nn.Parameter(math.log(scale) * torch.eye(total))  # logarithms on the diagonal

    @property
    def tril(self) -> Tensor:
        """(total, total) Cholesky factor."""
        return self.raw_tril.tril(-1) + torch.diag_embed(self.raw_tril.diagonal(dim1=-2, dim2=-1).exp())

    @torch.no_grad()
    def set(self, loc: Tensor, covariance: Tensor) -> None:
        """Set mean and covariance."""
        tril = torch.linalg.cholesky(covariance)
        self.loc.copy_(loc)
        self.raw_tril.copy_(tril.tril(-1) + torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1).log()))

    def sample(self, *names: str) -> list[Tensor]:
        """A `pyro.sample` for each vector, by name."""
        tril, noise, out, start = self.tril, self.loc[:0], [], 0
        for name, size, positive in zip(names, self.sizes, self.positive, strict=True):
            part = slice(start, start + size)
            law = MultivariateNormal(self.loc[part] + tril[part, :start] @ noise, scale_tril=tril[part, part])
            value = pyro.sample(name, LogMultivariateNormal(law) if positive else law)
            plain = value.log() if positive else value
            white = torch.linalg.solve_triangular(tril[part, part], (plain - law.loc)[:, None], upper=False)[:, 0]
            noise, start = torch.cat([noise, white]), start + size
            out.append(value)
        return out


class DrawnBlock(nn.Module):
    """q of several sites that are drawn together: `count` draws of a sampler, each as likely.

    shapes: of each site's event. The draws are buffers of the sites' names (count, *shape).
    """

    def __init__(self, count: int, **shapes: Sequence[int]) -> None:
        super().__init__()
        self.count, self.names = count, tuple(shapes)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(count, *shape))

    def sample(self) -> dict[str, Tensor]:
        """A `pyro.sample` for each site, by name, and an auxiliary one, `draw`, of which draw it is."""
        first: Tensor = getattr(self, self.names[0])
        draw = pyro.sample("draw", AnyOf(self.count, first), infer={"is_auxiliary": True})
        out = {}
        for name in self.names:
            value = getattr(self, name)[draw]
            out[name] = pyro.sample(name, dist.Delta(value, event_dim=value.dim()))
        return out
