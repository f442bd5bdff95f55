"""Pairs of rows x = f(c, s), x' = f(c, s') that share content c and differ in style (von Kuegelgen et al. 2021).

A map of x that is the same in both rows of every pair, whatever the style, is a function of content; of all such maps
of as many outputs as content has dimensions, those that spread their outputs most are invertible in content (theorem
4.4). `train` finds one: outputs of partners are near, those of other pairs far, by the contrast of the paper (InfoNCE
with squared distances), whose minimum is alignment and greatest entropy.

A network of 20,000 pairs learns what bends single features by heart before it learns where. So these bends come first
(`bends`): the inverse of a leaky ReLU of each feature, as the first layer of a normalising flow of the pairs, all of
whose latents are correlated normal between partners; the flow's other layers are thrown away.

`shared` looks for what else is the same: the function of x of which partners have the most in common beside what
content tells of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyrocrl.constructions import offsets, optimise
from pyrocrl.parts.content_pairs import CORNER, ContentReader
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.piecewise_affine import steepened, unmix

PAIRS = 512  # a step
FLOW_LR, LAYERS, ROUND = 1e-2, 3, 0.1  # of the flow: Adam's rate, bent layers, and how round their corners are
RIDGE = 1e-6
PROBE, PROBE_WIDTH = 300, 32  # most steps, and width, of the search for what else is shared
FUNCTIONS = 64  # of content, that are taken out of it on the way
FAR = 3.0  # deviations from which it counts as no farther: few rows must not decide
FITTED = 5_000  # rows by which what content tells of it is fitted


class Shared(NamedTuple):
    """Of pairs that were not trained on: gap (latent,), ascending, shares of content's variance that differ between
    partners, by direction; gap_error, of their mean; trained (latent,), the same of pairs that were; left (), the share
    that partners have in common of a function of x beside content, and its error."""

    gap: Tensor
    gap_error: Tensor
    trained: Tensor
    left: Tensor
    left_error: Tensor


def bends(before: Tensor, after: Tensor, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(shift, log slope), (feature,) both, of the features' bends, by the first layer of a flow of pairs (pair,
    feature), standardised."""
    d, both = before.shape[1], torch.cat([before, after]).double()
    eye = torch.eye(d, dtype=torch.double).to(both)
    value, vector = torch.linalg.eigh(torch.cov(both.mT) + RIDGE * eye)
    white = vector / value.sqrt()
    one, other = before.double() @ white, after.double() @ white
    cross = one.mT @ other / len(one)
    kept, turn = torch.linalg.eigh((cross + cross.mT) / 2)  # canonical correlations of partners
    drawn = torch.randn(LAYERS, d, d, generator=generator, dtype=torch.double).to(both)
    turns = torch.linalg.qr(drawn)[0]
    first = [eye, white @ turns[0], *(turns[i].mT @ turns[i + 1] for i in range(LAYERS - 2)), turns[-2].mT @ turn]
    maps = [torch.stack(first), both.new_zeros(LAYERS + 1, d), both.new_zeros(LAYERS, d)]
    raw = torch.log1p(-kept.clamp(0.0, 0.99))
    matrix, shift, bend, gap = (value.to(before).requires_grad_() for value in (*maps, raw))
    adam = torch.optim.Adam([matrix, shift, bend, gap], lr=FLOW_LR)
    with torch.enable_grad():
        for step in range(steps):
            adam.param_groups[0]["lr"] = (
                FLOW_LR * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
            )
            pick = torch.randint(len(before), (min(PAIRS, len(before)),), generator=generator).to(before.device)
            z, log_det = unmix(torch.cat([before[pick], after[pick]]), (matrix, shift, bend), ROUND)
            z1, z2 = z.chunk(2)
            apart, along = gap.exp(), (2 - gap.exp()).clamp_min(0.05)
            square = (z1 + z2).square() / (2 * along) + (z1 - z2).square() / (2 * apart)
            loss = 0.5 * (square + along.log() + gap).sum(1).mean() - 2 * log_det.mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    scale = matrix[0].detach().diagonal()
    return shift[0].detach() / scale, bend[0].detach()


def contrast(one: Tensor, other: Tensor) -> Tensor:
    """() how much farther apart outputs (pair, latent) are of other pairs than of partners: less is better."""
    square = torch.addmm(one.square().sum(1)[:, None] + other.square().sum(1), one, other.mT, alpha=-2.0)
    spread = ((-square).logsumexp(0) + (-square).logsumexp(1)).mean() / 2 - math.log(len(one))
    return (one - other).square().sum(1).mean() + spread


def train(
    reader: ContentReader,
    before: Tensor,
    after: Tensor,
    steps: int,
    generator: torch.Generator,
    square: bool,
) -> None:
    """Train the reader on pairs (pair, feature), standardised. square: whether features are as many as content and
    style are, so that a flow may tell their bends."""
    both = torch.cat([before, after])
    with torch.no_grad():
        if square:
            shift, bend = bends(before, after, steps, generator)
            reader.shift.copy_(shift)
            reader.bend.copy_(bend)
        inner = steepened(both + reader.shift, reader.bend, CORNER)[0]
        reader.middle.copy_(inner.mean(0))
        reader.signal.copy_(offsets.scaled_components(inner))

    def loss(pick: Tensor, _: float) -> Tensor:
        out = reader.net(reader.bent(torch.cat([before[pick], after[pick]])))
        return contrast(*out.chunk(2))

    reader.requires_grad_(True)
    optimise.minimise(reader, loss, torch.arange(len(before)), steps, min(PAIRS, len(before)), generator)
    reader.requires_grad_(False)
    reader.whiten(both)


@torch.no_grad()
def shared(
    reader: ContentReader,
    before: Tensor,
    after: Tensor,
    test: tuple[Tensor, Tensor],
    steps: int,
    generator: torch.Generator,
) -> Shared:
    """What the pairs (before, after) of `test`, which were not trained on, share of content and beside it; steps: of
    the search for the latter, on the others, `PROBE` at most."""
    gap, each = differing(*(reader(x).double() for x in test))
    trained = differing(*(reader(x[:FITTED]).double() for x in (before, after)))[0]
    left, error = beside(reader.bent, reader, before, after, test, min(PROBE, steps), generator)
    return Shared(gap, each.std() / math.sqrt(len(each)), trained, left, error)


def differing(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(latent,) shares of the variance of latents (pair, latent) that differ between partners, ascending; (pair,) those
    of each pair, over all latents."""
    both, apart = torch.cat([one, other]), one - other
    tril = torch.linalg.cholesky(torch.cov(both.mT) + 1e-8 * torch.eye(both.shape[1]).to(both))
    white = torch.linalg.solve_triangular(tril, apart.mT, upper=False).mT
    return torch.linalg.eigvalsh(white.mT @ white / len(white) / 2).clamp_min(0.0), white.square().mean(1) / 2


@torch.no_grad()
def beside(
    bent: Callable[[Tensor], Tensor],
    reader: Callable[[Tensor], Tensor],
    before: Tensor,
    after: Tensor,
    test: tuple[Tensor, Tensor],
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Share, and its error, of the variance of a function of x that partners share beside what `reader` reads. bent:
    features as the function sees them."""
    latents = reader(before[:1]).shape[1]
    weight = torch.randn(latents, FUNCTIONS, generator=generator).to(before)
    offset = torch.randn(FUNCTIONS, generator=generator).to(before)

    def functions(h: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(h[:, :1]), h, torch.tanh(h @ weight + offset)], 1)

    probe = nn.Module()
    probe.net = Residual(before.shape[1], 1, PROBE_WIDTH).to(before)
    inner, known = ([move(x) for x in (before, after)] for move in (bent, lambda x: functions(reader(x))))

    def loss(pick: Tensor, _: float) -> Tensor:
        of, value = torch.cat([k[pick] for k in known]), probe.net(torch.cat([x[pick] for x in inner]))
        gram = of.mT @ of + 1e-3 * len(of) * torch.eye(of.shape[1]).to(of)
        one, other = (value - of @ torch.linalg.solve(gram, of.mT @ value)).chunk(2)
        return -(one * other).mean() / value.var().clamp_min(1e-9)

    optimise.minimise(probe, loss, torch.arange(len(before)), steps, min(PAIRS, len(before)), generator)
    few = min(FITTED, len(before))
    value = torch.cat([probe.net(x[:few]) for x in inner])
    centre, scale = value.mean(), value.std().clamp_min(1e-9)

    def bounded(x: Tensor) -> Tensor:
        return ((probe.net(x) - centre) / scale).clamp(-FAR, FAR)

    told = Residual(latents, 1, PROBE_WIDTH * 2).to(before)
    optimise.regress(
        told,
        torch.cat([reader(x[:few]) for x in (before, after)]),
        torch.cat([bounded(x[:few]) for x in inner]),
        steps,
        generator,
    )
    one, other = ((bounded(bent(x)) - told(reader(x))).clamp(-FAR, FAR) for x in test)
    product = (one * other)[:, 0]
    return product.mean().double(), (product.std() / math.sqrt(len(one))).double()
