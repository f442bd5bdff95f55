"""Noise of latents behind pairs of rows between which one of them was set anew, by telling partners from strangers.

Of a pair all noise but that of one latent is the same, so that the log-odds of a row after's being the partner of a row
before, and not of another row, are those of differences of noise that are small but for one:

    score(x, x') = log sum_k exp(-sum_{j != k} (h_j(x') - h_j(x))^2 / 2 tau^2)

`encoder` trains h on the softmax of these scores over the rows before of a batch (InfoNCE; van den Oord, Li & Vinyals
2018), with tau falling. A map that forgets noise cannot tell partners, one that mixes it makes their differences no
longer small but for one: at the best one each h_j is a function of one latent's noise, by the argument of Brehmer et
al. (2022, theorem 1). Some starts end with a latent read twice and another one not at all, with a much larger loss: of
several short runs the one of the least loss is trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocrl.constructions import optimise
from pyrocrl.parts.nets import Residual

ROWS = 128  # pairs a step
CHECK = 2048  # pairs at which starts are compared, in batches of `ROWS`
STARTS, FIRST = 5, 0.15  # short runs, and how many steps each has as a share of the last run's
WIDE, NARROW, LAST = 2.0, 0.3, 0.2  # tau at the start, at the end of a short run and of the last one
HELD = 0.5  # share of a run in which tau falls


def encoder(
    before: Tensor, after: Tensor, latents: int, width: int, steps: int, generator: torch.Generator
) -> tuple[Residual, float]:
    """(network of x to the noise of each latent, in some units, in any order; its loss). before, after: (pair, feature)
    rows."""
    short, found = max(1, int(FIRST * steps)), []
    for _ in range(STARTS):
        net = Residual(before.shape[1], latents, width).to(before)
        _train(net, before, after, short, (WIDE, NARROW), generator)
        found.append((_loss_of(net, before, after, NARROW), net))
    best = min(found, key=lambda one: one[0])[1]
    _train(best, before, after, steps, (NARROW, LAST), generator)
    return best, _loss_of(best, before, after, LAST)


def _train(
    net: Residual, before: Tensor, after: Tensor, steps: int, taus: tuple[float, float], generator: torch.Generator
) -> None:
    def loss(pick: Tensor, progress: float) -> Tensor:
        tau = taus[0] * (taus[1] / taus[0]) ** min(1.0, progress / HELD)
        return contrast(net(torch.cat([before[pick], after[pick]])), tau)

    optimise.minimise(net, loss, torch.arange(len(before), device=before.device), steps, ROWS, generator)


def contrast(h: Tensor, tau: float) -> Tensor:
    """The loss of rows before and then their partners, h (2 pair, latent), in units of its deviations."""
    h = (h - h.mean(0)) / h.std(0).clamp_min(1e-6)
    first, second = h.chunk(2)
    near = (second[:, None] - first).square() / (2 * tau**2)  # (after, before, latent)
    score = torch.logsumexp(near - near.sum(-1, keepdim=True), -1)
    return torch.nn.functional.cross_entropy(score, torch.arange(len(first), device=h.device))


@torch.no_grad()
def _loss_of(net: Residual, before: Tensor, after: Tensor, tau: float) -> float:
    parts = zip(before[:CHECK].split(ROWS), after[:CHECK].split(ROWS), strict=True)
    each = [contrast(net(torch.cat([a, b])), tau) for a, b in parts if len(a) > 1]
    return float(torch.stack(each).mean())
