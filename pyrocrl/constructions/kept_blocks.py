"""Blocks of latents of which every pair of rows keeps some, and says which (Eastwood et al. 2023).

A map of x that is the same in both rows of all pairs of a kind is a function of the blocks that this kind keeps, and
one that spreads as much as may be is invertible in them (von Kuegelgen et al. 2021, theorem 4.4). A map that is the
same in pairs of several kinds is a function of the blocks that all of them keep (Yao et al. 2024, theorem 3.2). So one
network reads all blocks, and in pairs of each kind the outputs of the blocks that it keeps are near for partners and
far for other pairs: the contrast of `content_pairs`, summed over kinds.

Where x is linear in latents the answer is closed: of white x the directions that differ least between partners of these
kinds. It is taken where next to nothing of what is to be kept differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions import content_pairs, offsets, optimise
from pyrocrl.parts.content_pairs import CORNER, ContentReader
from pyrocrl.parts.piecewise_affine import steepened

PAIRS = 256  # of each kind, on average, a step
LINEAR = 0.01  # share of what is kept that may differ between partners, up to which linear readings are taken
RIDGE = 1e-8
FAR = 10.0  # variance of a difference, that no direction of white x has


class Kept(NamedTuple):
    """Of pairs that were not trained on, (kind, block) each: gap, the mean share of a block's variance that differs
    between partners of this kind, its error, and `most` and `least`, of the directions that differ most and least.
    trained, trained_most: the same of pairs that were trained on. left, left_error (kind,): the share that partners
    have in common of a function of x beside what their kind keeps."""

    gap: Tensor
    error: Tensor
    most: Tensor
    least: Tensor
    trained: Tensor
    trained_most: Tensor
    left: Tensor
    left_error: Tensor


class Blocks:
    """Which latents are a block, and which blocks are kept by which kinds of pairs.

    sizes: (block,) latents of each, one block after another; keeps: (kind, block).
    """

    def __init__(self, sizes: Sequence[int], keeps: Sequence[Sequence[bool]]) -> None:
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + size)
        self.places = [list(range(a, b)) for a, b in pairwise(ends)]
        self.keeps = [[bool(one) for one in row] for row in keeps]
        self.latents = ends[-1]

    def columns(self, kind: int) -> list[int]:
        """Latents that pairs of this kind keep."""
        return [k for own, kept in zip(self.places, self.keeps[kind], strict=True) if kept for k in own]

    def matrix(self) -> Tensor:
        """(kind, latent) whether it is kept."""
        out = torch.zeros(len(self.keeps), self.latents, dtype=torch.bool)
        for kind in range(len(self.keeps)):
            out[kind, self.columns(kind)] = True
        return out

    def order(self) -> list[tuple[int, list[int]]]:
        """Blocks, those kept with few others first, each with the latents of earlier ones that all of its kinds keep
        too."""
        along = {}
        for b in range(len(self.places)):
            kinds = [row for row in self.keeps if row[b]]
            along[b] = [a for a in range(len(self.places)) if a != b and all(row[a] for row in kinds)]
        out: list[tuple[int, list[int]]] = []
        for b in sorted(along, key=lambda b: (len(along[b]), b)):
            earlier = {a for a, _ in out}
            out.append((b, [k for a in along[b] if a in earlier for k in self.places[a]]))
        return out


def linear(one: Tensor, other: Tensor, kind: Tensor, blocks: Blocks) -> Tensor:
    """(feature, latent) directions of white x of partners (pair, feature), block by block: those that differ least in
    all kinds that keep the block, beside directions of earlier blocks that these keep too."""
    apart = (one - other).double()
    differ = [apart[kind == k].mT @ apart[kind == k] / max(1, int((kind == k).sum())) for k in range(len(blocks.keeps))]
    out = apart.new_zeros(apart.shape[1], blocks.latents)
    for b, along in blocks.order():
        mean = torch.stack([differ[k] for k, row in enumerate(blocks.keeps) if row[b]]).mean(0)
        taken = out[:, along]
        mean = mean + FAR * taken @ taken.mT
        out[:, blocks.places[b]] = torch.linalg.eigh(mean)[1][:, : len(blocks.places[b])]
    return out


@torch.no_grad()
def whiten(reader: ContentReader, x: Tensor, blocks: Blocks) -> None:
    """Let each block be white, and uncorrelated with blocks that all of its pairs keep too."""
    out = reader.net(reader.bent(x)).double()
    cov = torch.cov(out.mT) + RIDGE * torch.eye(out.shape[1]).to(out)
    unmixing = torch.zeros_like(cov)
    for b, along in blocks.order():
        own = blocks.places[b]
        turn = torch.zeros_like(cov)[:, own]
        turn[own] = torch.eye(len(own)).to(cov)
        if along:
            turn[along] = -torch.linalg.solve(cov[along][:, along], cov[along][:, own])
        tril = torch.linalg.cholesky(turn.mT @ cov @ turn)
        unmixing[:, own] = turn @ torch.linalg.inv(tril).mT
    reader.centre.copy_(out.mean(0))
    reader.unmixing.copy_(unmixing)


@torch.no_grad()
def train(
    reader: ContentReader,
    before: Tensor,
    after: Tensor,
    kind: Tensor,
    blocks: Blocks,
    test: tuple[Tensor, Tensor, Tensor],
    steps: int,
    generator: torch.Generator,
    square: bool,
) -> None:
    """Train the reader on pairs (pair, feature), standardised, of kinds (pair,). test: others, for which linear
    readings are taken where they keep what they are to keep. square: whether features are as many as latents, so that a
    flow may tell their bends."""
    both = torch.cat([before, after])

    def see(shift: Tensor, bend: Tensor) -> None:
        reader.shift.copy_(shift)
        reader.bend.copy_(bend)
        inner = steepened(both + reader.shift, reader.bend, CORNER)[0]
        reader.middle.copy_(inner.mean(0))
        reader.signal.copy_(offsets.scaled_components(inner))

    none = torch.zeros_like(reader.shift)
    see(none, none)
    reader.net.near(linear(reader.bent(before), reader.bent(after), kind, blocks).mT.to(both))
    last = reader.net.net[-1].weight.clone()
    reader.net.net[-1].weight.zero_()
    whiten(reader, both, blocks)
    if float(gaps(reader, *test, blocks)[2][torch.as_tensor(blocks.keeps)].max()) <= LINEAR:
        return
    reader.net.net[-1].weight.copy_(last)
    if square:
        see(*content_pairs.bends(before, after, steps, generator))
        reader.net.near(linear(reader.bent(before), reader.bent(after), kind, blocks).mT.to(both))
    columns = [blocks.columns(k) for k in range(len(blocks.keeps))]

    def loss(pick: Tensor, _: float) -> Tensor:
        pick = pick[kind[pick].argsort()]
        one, other = reader.net(reader.bent(torch.cat([before[pick], after[pick]]))).chunk(2)
        total, start = one.new_zeros(()), 0
        for count, own in zip(kind[pick].bincount(minlength=len(columns)).tolist(), columns, strict=True):
            rows, start = slice(start, start + count), start + count
            if count > 1:
                total = total + content_pairs.contrast(one[rows][:, own], other[rows][:, own])
        return total

    every = torch.arange(len(before), device=before.device)
    reader.requires_grad_(True)
    optimise.minimise(reader, loss, every, steps, min(PAIRS * len(columns), len(before)), generator)
    reader.requires_grad_(False)
    whiten(reader, both, blocks)


@torch.no_grad()
def gaps(
    reader: ContentReader, before: Tensor, after: Tensor, kind: Tensor, blocks: Blocks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gap, error, most and least, (kind, block) each, as in `Kept`, of these pairs."""
    out = torch.ones(4, len(blocks.keeps), len(blocks.places), dtype=torch.double)
    one, other = (reader(x).double() for x in (before, after))
    for k in range(len(blocks.keeps)):
        pairs = kind == k
        for b, own in enumerate(blocks.places):
            if int(pairs.sum()) > len(own):
                gap, each = content_pairs.differing(one[pairs][:, own], other[pairs][:, own])
                out[:, k, b] = torch.stack([gap.mean(), each.std() / math.sqrt(len(each)), gap.max(), gap.min()])
    return out[0], out[1], out[2], out[3]


@torch.no_grad()
def kept(
    reader: ContentReader,
    before: Tensor,
    after: Tensor,
    kind: Tensor,
    test: tuple[Tensor, Tensor, Tensor],
    blocks: Blocks,
    steps: int,
    generator: torch.Generator,
) -> Kept:
    """What the pairs of `test` keep of blocks and beside them; steps: of the search for the latter, on the others."""
    few = torch.linspace(0, len(before) - 1, min(len(before), content_pairs.FITTED)).long()
    trained, _, trained_most, _ = gaps(reader, before[few], after[few], kind[few], blocks)
    left = []
    for k in range(len(blocks.keeps)):
        own, held, columns = kind == k, test[2] == k, blocks.columns(k)
        left.append(
            content_pairs.beside(
                reader.bent,
                lambda x, columns=columns: reader(x)[:, columns],
                before[own],
                after[own],
                (test[0][held], test[1][held]),
                min(content_pairs.PROBE, steps),
                generator,
            )
        )
    share, error = (torch.stack(v) for v in zip(*left, strict=True))
    gap, spread, most, least = gaps(reader, *test, blocks)
    return Kept(gap, spread, most, least, trained, trained_most, share, error)
