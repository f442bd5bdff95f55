"""Noise of latents behind pairs of rows between which one of them was set anew, by telling partners from strangers.

Of a pair all noise but that of one latent is the same, so that the log-odds of a row after's being the partner of a row
before, and not of another row, are those of differences of noise that are small but for one:

    score(x, x') = log sum_k exp(-sum_{j != k} (h_j(x') - h_j(x))^2 / 2 tau^2)

`encoder` trains h on the softmax of these scores over the rows before of a batch (InfoNCE; van den Oord, Li & Vinyals
2018), with tau falling. A map that forgets noise cannot tell partners, one that mixes it makes their differences no
longer small but for one: at the best one each h_j is a function of one latent's noise, by the argument of Brehmer et
al. (2022, theorem 1). Many starts read a latent twice, another one not at all, and stay there, with a larger loss.
Noise of two latents is independent, so that outputs which depend on each other show that: the one of the two is then
drawn anew. Of several short runs the one of the least loss is trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocrl.constructions import optimise
from pyrocrl.parts.nets import Residual

ROWS = 128  # pairs a step
CHECK = 2048  # pairs at which starts are compared, in batches of `ROWS`
STARTS, ROUNDS, SHARE = 4, 3, 0.1  # short runs, their rounds, and steps of a round as a share of the last run's
WIDE, AGAIN, NARROW, LAST = 2.0, 0.6, 0.3, 0.2  # tau at first, of later rounds, and at the end of each and of the last
LATENTS = 5  # of which these are; fewer have less room for what tells partners: tau is smaller
HELD = 0.5  # share of a run in which tau falls
TWICE = 0.25  # squared correlations of functions of two outputs, summed, from which they read the same latent


def encoder(
    before: Tensor, after: Tensor, latents: int, width: int, steps: int, generator: torch.Generator
) -> tuple[Residual, float]:
    """(network of x to the noise of each latent, in some units, in any order; its loss). before, after: (pair, feature)
    rows."""
    room = min(1.0, (latents - 1) / (LATENTS - 1))
    again, narrow, last = AGAIN * room, NARROW * room, LAST * room
    found = []
    for _ in range(STARTS):
        net = Residual(before.shape[1], latents, width).to(before)
        for turn in range(ROUNDS):
            _train(net, before, after, max(1, int(SHARE * steps)), (again if turn else WIDE, narrow), generator)
            if turn < ROUNDS - 1:
                _renew(net, before)
        found.append((_loss_of(net, before, after, narrow), net))
    best = min(found, key=lambda one: one[0])[1]
    _train(best, before, after, steps, (narrow, last), generator)
    return best, _loss_of(best, before, after, last)


def _train(
    net: Residual, before: Tensor, after: Tensor, steps: int, taus: tuple[float, float], generator: torch.Generator
) -> None:
    def loss(pick: Tensor, progress: float) -> Tensor:
        tau = taus[0] * (taus[1] / taus[0]) ** min(1.0, progress / HELD)
        return contrast(net(torch.cat([before[pick], after[pick]])), tau)

    optimise.minimise(net, loss, torch.arange(len(before), device=before.device), steps, ROWS, generator)


@torch.no_grad()
def _renew(net: Residual, before: Tensor) -> None:
    """Draw anew the output that most reads what another one reads, if any does."""
    depends = dependence(net(before[:CHECK]))
    if depends.max() > TWICE:
        k = int(depends.max(0).values.argmax())
        for layer in (net.linear, net.net[-1]):
            assert isinstance(layer, torch.nn.Linear)
            layer.weight[k] = layer.weight.std() * torch.randn_like(layer.weight[k])
            layer.bias[k] = 0.0


def dependence(h: Tensor) -> Tensor:
    """(latent, latent) sums of squared correlations of h, |h| and tanh 2h of two columns (row, latent); 0 of a column
    with itself."""
    h = (h - h.mean(0)) / h.std(0).clamp_min(1e-6)
    f = torch.stack([h, h.abs(), (2 * h).tanh()])
    f = (f - f.mean(1, keepdim=True)) / f.std(1, keepdim=True).clamp_min(1e-6)
    square = (torch.einsum("ark,brl->abkl", f, f) / len(h)).square().sum((0, 1))
    return square - torch.diag_embed(square.diagonal())


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
