"""Numbers with a normal likelihood of which groups may be zero: draws of which are, and of the numbers given that.

    log p(data | v) = b' v - v' H v / 2 + const;    v_g = 0 with probability 1 - rho, else N(0, inverse(prior_g))

A group's worth is its Savage-Dickey ratio, the other numbers summed out: what they leave open of a group counts as not
told. Gibbs sampling, a group at a time, of as many walks as there are draws (George & McCulloch 1993, Variable
selection via Gibbs sampling).
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 30


def draw(
    information: Tensor,
    linear: Tensor,
    prior: Tensor,
    group: Tensor,
    log_odds: float,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """(draw, number) of the posterior. information (number, number) H and linear (number,) b of the likelihood; prior
    (number, number) precisions, positive definite among the numbers of any groups; group (number,) that each number
    belongs to, -1 = to none, never zero; log_odds: of a group that is not zero, a priori."""
    some, rest = (group >= 0).nonzero()[:, 0], (group < 0).nonzero()[:, 0]
    total, own = information + prior, prior[some][:, some]
    root = torch.linalg.cholesky(total[rest][:, rest])
    cross = torch.linalg.solve_triangular(root, total[rest][:, some], upper=False)  # what the others leave
    mean = torch.linalg.solve_triangular(root, linear[rest, None], upper=False)[:, 0]
    left, told = total[some][:, some] - cross.mT @ cross, linear[some] - cross.mT @ mean
    groups = int(group.max()) + 1 if len(some) else 0

    def roots(there: Tensor, matrix: Tensor) -> Tensor:
        """Of the part of a matrix that is there, 1 on the diagonal of the rest: (draw, number, number)."""
        both = there[:, :, None] & there[:, None]
        return torch.linalg.cholesky(both * matrix + torch.diag_embed((~there).to(matrix)))

    def halves(there: Tensor) -> tuple[Tensor, Tensor]:
        factor = roots(there, left)
        return factor, torch.linalg.solve_triangular(factor, (there * told)[:, :, None], upper=False)

    def log_evidence(on: Tensor) -> Tensor:
        there = on[:, group[some]]
        factor, half = halves(there)
        volume = (roots(there, own).diagonal(dim1=1, dim2=2).log() - factor.diagonal(dim1=1, dim2=2).log()).sum(1)
        return volume + 0.5 * half.square().sum((1, 2)) + log_odds * on.sum(1)

    def uniform() -> Tensor:
        return torch.rand(draws, generator=generator, dtype=torch.float64).to(linear)

    on = torch.ones(draws, groups, dtype=torch.bool, device=linear.device)
    worth = log_evidence(on)
    for _ in range(SWEEPS):
        for g in range(groups):
            other = on.clone()
            other[:, g] ^= True
            there = log_evidence(other)
            moved = uniform() < (there - worth).sigmoid()
            on, worth = torch.where(moved[:, None], other, on), torch.where(moved, there, worth)
    there = on[:, group[some]]
    factor, half = halves(there)
    noise = torch.randn(draws, len(group), generator=generator, dtype=torch.float64).to(linear)
    value = torch.zeros_like(noise)
    value[:, some] = torch.linalg.solve_triangular(factor.mT, half + noise[:, some, None], upper=True)[:, :, 0] * there
    white = mean + noise[:, rest] - value[:, some] @ cross.mT
    value[:, rest] = torch.linalg.solve_triangular(root.mT, white.mT, upper=True).mT
    return value
