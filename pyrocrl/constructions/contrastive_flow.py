"""Flows trained by contrasts between environments (`contrastive`), with a decoder by regression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrocrl.constructions import contrastive, optimise
from pyrocrl.parts.flows import LAYERS, FreeFormFlow
from pyrocrl.parts.nets import Residual
from pyrocrl.turns import drawing

# steps on normality are noisy, and rows are enough not to need it
PLAN = contrastive.Plan(LAYERS, rounds=3, normality=0.1, cooling=0.4)


class Effort(NamedTuple):
    """rounds: of the construction where targets are unknown, for log-odds between environments are a start near the
    latents. decoder: steps of the decoder, in those of the flow."""

    rounds: int = 2
    decoder: float = 0.5


EFFORT = Effort()


def train(
    x: Tensor,
    env: Tensor,
    target: Tensor,
    width: int,
    steps: int,
    generator: torch.Generator,
    hypotheses: Sequence[Tensor] = (),
    effort: Effort = EFFORT,
) -> tuple[FreeFormFlow, contrastive.Start]:
    """A flow whose latents are affine in those of the equations, and the start that it was made from. Arguments are
    those of `contrastive.construct`, of features x (rows, feature) as they are."""
    flow = FreeFormFlow(x.shape[1], width).to(x)
    inputs = flow.start(x)
    plan = PLAN._replace(rounds=effort.rounds) if hypotheses else PLAN
    start = contrastive.construct(inputs, env, target, width, steps, generator, hypotheses, plan)
    flow.encoder.load_state_dict(start.encoder.state_dict())
    with torch.no_grad():
        h, g = start.encoder(inputs), flow.gaussianise(x)[0]
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed):
        flow.decoder = Residual(x.shape[1], x.shape[1], width).to(x)
    optimise.regress(flow.decoder, h, g, max(1, int(effort.decoder * steps)), generator)
    return flow, start


def pairings(latents: int) -> Iterator[np.ndarray]:
    """Every way of giving two of the environments 1, 2, ... to each latent, (env, latent), up to the latents' names."""

    def pairs(left: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
        if not left:
            yield ()
        for other in left[1:]:
            for rest in pairs(tuple(e for e in left[1:] if e != other)):
                yield ((left[0], other), *rest)

    for hypothesis in pairs(tuple(range(1, 2 * latents + 1))):
        target = np.zeros((2 * latents + 1, latents))
        for k, pair in enumerate(hypothesis):
            target[list(pair), k] = 1.0
        yield target
