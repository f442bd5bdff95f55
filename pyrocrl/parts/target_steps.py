"""Latents that go on from the row before by a regression on functions of it, one of two in each step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.exact import target_steps
from pyrocrl.exact.switching import Timeline, log_normal
from pyrocrl.exact.target_steps import Basis
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.readouts import Stepped


class Mechanisms(NamedTuple):
    """slope (mechanism, latent, basis) of z on functions of y before: mechanism 0, and 1 of targets; scale (mechanism,
    latent) of innovations; spread (latent,) of a series' first row; mixing (latent, latent), y = mixing z."""

    slope: Tensor
    scale: Tensor
    spread: Tensor
    mixing: Tensor
    basis: Basis

    def law(self, y: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (rows, latent) after rows y (rows, latent), of those that are targets (hit, the same in
        {0, 1}) and others."""
        both = torch.einsum("tf,akf->atk", self.basis(y), self.slope)
        return both[0] + hit * (both[1] - both[0]), self.scale[0] + hit * (self.scale[1] - self.scale[0])

    def standardised(self, z: Tensor, before: Tensor) -> Tensor:
        """(rows, latent, mechanism) distance of z (rows, latent) from each mechanism's mean after rows y, in its
        scale."""
        mean = torch.einsum("tf,akf->tka", self.basis(before), self.slope)
        return (z[..., None] - mean) / self.scale.mT

    def log_densities(self, z: Tensor, line: Timeline) -> Tensor:
        """(rows, latent, mechanism) of z (rows, latent) given the row before; rows in the order of time."""
        apart = self.standardised(z, z.roll(1, 0) @ self.mixing.mT)
        unit = torch.ones_like(self.spread)[:, None]
        first = (line.since == 0)[:, None, None]
        scale = torch.where(first, self.spread[:, None], self.scale.mT)
        return log_normal(torch.where(first, (z / self.spread)[..., None], apart), unit) - scale.log()


class Steps(TorchDistribution):
    """Rows (rows, latent) in series: of a row after another N(mean, scale^2) by `Mechanisms`, of a first row
    N(0, spread^2). hit: (rows, latent) in {0, 1}, which latents are targets in a row."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, law: Mechanisms, line: Timeline, hit: Tensor, validate_args: bool | None = None) -> None:
        self.law, self.line, self.hit = law, line, line.lay(hit).to(law.slope)
        super().__init__(hit.shape[:1], hit.shape[1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Steps:
        return self

    @property
    def mean(self) -> Tensor:
        return 0 * self.hit

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            z = self.law.spread * torch.randn_like(self.hit)
            noise = torch.randn_like(self.hit)
            for step in range(1, int(self.line.since.max()) + 1):
                at = (self.line.since == step).nonzero()[:, 0]
                mean, scale = self.law.law(z[at - 1] @ self.law.mixing.mT, self.hit[at])
                z[at] = mean + scale * noise[at]
            return self.line.back(z)

    def log_prob(self, value: Tensor) -> Tensor:
        z = self.line.lay(value)
        begins = self.line.since[:, None] == 0
        mean, scale = self.law.law(z.roll(1, 0) @ self.law.mixing.mT, self.hit)
        log = log_normal(z - torch.where(begins, 0.0, mean), torch.where(begins, self.law.spread, scale))
        return self.line.back(log.sum(-1))


def step_buffers(latents: int) -> dict[str, Tensor]:
    """Buffers of `StepReadouts`: means of the posterior, and the basis (see `Basis`)."""
    size, double = len(target_steps.places(latents)), torch.double
    return {
        "slope": torch.zeros(2, latents, size, dtype=double),
        "scale": torch.ones(2, latents, dtype=double),
        "unit": torch.ones(latents, dtype=double),
        "middle": torch.zeros(size, dtype=double),
        "basis_spread": torch.ones(size, dtype=double),
    }


class StepReadouts:
    """What programs share whose latents go on by `Mechanisms` from the row before.

    The program has `step_buffers`, `unmixing` (latent, y), an option intervention, `spread` for that of first rows, and
    `drawn` with draws of all other sites.
    """

    config: dict[str, Any]
    unmixing: Tensor
    slope: Tensor
    scale: Tensor
    unit: Tensor
    middle: Tensor
    basis_spread: Tensor
    spread: LogNormalBlock
    drawn: DrawnBlock

    def stepped(self, batch: Batch) -> Stepped:
        raise NotImplementedError

    def innovations_below(self, batch: Batch) -> Tensor:
        return self.stepped(batch).below

    def lagged(self) -> Tensor:
        """(parent, child) probabilities that a latent depends on another, or itself, in the row before."""
        return self.drawn.lagged.mean(0)

    def _sizes(self, lagged: Tensor, slab: Tensor) -> Tensor:
        """(mechanism, latent, basis) by which weights are multiplied."""
        return target_steps.both_sizes(lagged, slab, soft=self.config["intervention"] == "soft")

    def _basis(self) -> Basis:
        return Basis(*(v.double() for v in (self.unmixing, self.unit, self.middle, self.basis_spread)))

    def _settle(self, unmixing: Tensor, basis: Basis, spread: Tensor, **drawn: Tensor) -> None:
        """Take the most probable unmixing, the basis, and draws: of spread (draw, latent), and of the sites of `drawn`,
        of which slope and scale are the means."""
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn[name])
        scale = torch.stack([torch.ones_like(drawn["width"]), drawn["width"]], 1)  # (draw, mechanism, latent)
        sizes = torch.stack([self._sizes(*one) for one in zip(drawn["lagged"], drawn["slab"], strict=True)])
        own = {
            "unmixing": unmixing,
            "unit": basis.unit,
            "middle": basis.middle,
            "basis_spread": basis.spread,
            "slope": (sizes * drawn["w"] * scale[..., None]).mean(0),
            "scale": scale.mean(0),
        }
        for name, value in own.items():
            getattr(self, name).copy_(value)
        self.spread.set(spread.log().mean(0), spread.log().std(0).clamp_min(1e-3))
