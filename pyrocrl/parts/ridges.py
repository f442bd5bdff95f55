"""Maps that are linear in fixed functions of single directions: what a network of random first layer is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

BEND = 4.0  # of softplus: a bend within about 1 / BEND deviations of inputs
STEEP = 1.5  # deviation of directions' lengths, times the inputs'
RIDGE = 1e-6  # of the readout's regression, a row, in units of the functions' mean variance
ONES = 1e-5  # share of the largest variance below which combinations of functions are noise


class Ridges(nn.Module):
    """(rows, inputs) -> (rows, outputs): offset + weight [x, softplus(directions x + bends)], ridge functions of x.

    directions (count, inputs) and bends (count,) are drawn once and stay (Rahimi & Recht 2008); with count = 0 the map
    is linear. Weights are set by regression, not trained.
    """

    directions: Tensor
    bends: Tensor
    weight: Tensor
    offset: Tensor

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.zeros(count, inputs))
        self.register_buffer("bends", torch.zeros(count))
        self.register_buffer("weight", torch.zeros(outputs, inputs + count))
        self.register_buffer("offset", torch.zeros(outputs))

    @torch.no_grad()
    def draw(self, x: Tensor, generator: torch.Generator) -> None:
        """Directions for inputs of the spread of x (rows, inputs)."""
        count, inputs = self.directions.shape
        directions, bends = (torch.randn(*shape, generator=generator) for shape in ((count, inputs), (count,)))
        unit = x.std(0).clamp_min(1e-12)
        self.directions.copy_(STEEP * directions.to(x) / (unit * inputs**0.5))
        self.bends.copy_(bends.to(x) - self.directions.to(x) @ x.mean(0))

    def functions(self, x: Tensor) -> Tensor:
        """(rows, inputs + count) what the map is linear in."""
        return torch.cat([x, softplus(BEND * (x @ self.directions.to(x).mT + self.bends.to(x))) / BEND], -1)

    def slopes(self, x: Tensor) -> Tensor:
        """(rows, inputs + count, inputs) derivatives of `functions`."""
        rise = (BEND * (x @ self.directions.to(x).mT + self.bends.to(x))).sigmoid()
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        return torch.cat([eye, rise[..., None] * self.directions.to(x)], -2)

    def forward(self, x: Tensor) -> Tensor:
        return self.functions(x) @ self.weight.to(x).mT + self.offset.to(x)

    @torch.no_grad()
    def regress(self, x: Tensor, outputs: Tensor) -> None:
        """Weights by least squares of outputs (rows, outputs), all but ridge-free."""
        f = self.functions(x).double()
        mean, goal = f.mean(0), outputs.double()
        f, centre = f - mean, goal.mean(0)
        gram = f.mT @ f
        gram.diagonal().add_(RIDGE * gram.diagonal().mean() if len(self.bends) else 0.0)
        weight = torch.linalg.solve(gram, f.mT @ (goal - centre)).mT
        self.weight.copy_(weight)
        self.offset.copy_(centre - weight @ mean)

    @torch.no_grad()
    def read(self, weight: Tensor, offset: Tensor) -> None:
        """Set the weights (outputs, inputs + count) and offset (outputs,)."""
        self.weight.copy_(weight)
        self.offset.copy_(offset)
