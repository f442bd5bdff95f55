"""What a step descends: minus the evidence lower bound of every chain, and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.infer.chains import Chains, Flat, State
from pyrocrl.infer.elbo import elbo
from pyrocrl.program import Program
from pyrocrl.recorded import Recorded

Names = tuple[str, ...]


class Objective:
    """Minus the evidence lower bound of each chain (chain,) and its gradients (chain, number), one for each of `flats`,
    the parameters that are trained. Recorded, as a step's arithmetic is the same in every step."""

    def __init__(
        self, chains: Chains, flats: list[Flat], steps: int, refused: Callable[[str], None] | None = None
    ) -> None:
        """steps: how many will be taken. refused: asks for compiled steps, see `Recorded`."""
        self.chains, self.flats = chains, flats
        trained = {name for flat in flats for name in flat.shapes}
        self.others = [name for name in {**chains.params, **chains.buffers} if name not in trained]
        self.like: Batch | None = None
        self.recorded = Recorded(self._of_tensors, steps, refused)

    @property
    def settled(self) -> bool:
        """Whether a step costs what all later ones will."""
        return self.recorded.settled

    @property
    def compiled(self) -> bool:
        """Whether steps are compiled."""
        return self.recorded.compiled

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        state: State = {**self.chains.params, **self.chains.buffers}
        self.like = batch
        given = [flat.value.detach() for flat in self.flats] + [state[name].detach() for name in self.others]
        return self.recorded(*given, *_tensors(batch).values())

    def _of_tensors(self, *given: Tensor) -> tuple[Tensor, ...]:
        assert self.like is not None
        count = len(self.flats)
        values = [value.detach().requires_grad_() for value in given[:count]]
        state: State = dict(zip(self.others, given[count:], strict=False))
        for flat, value in zip(self.flats, values, strict=True):
            state |= flat.views(value)
        batch = _with(self.like, given[count + len(self.others) :])
        objective = self.chains.map(_negative_elbo, batch, state=state)
        return objective.detach(), *torch.autograd.grad(objective.sum(), values)


def _negative_elbo(program: Program, batch: Batch) -> Tensor:
    """Per row, so that learning rates and clipping do not depend on the size of the data."""
    return -elbo(program, batch) / batch.total


def _tensors(of: Any) -> dict[Names, Tensor]:
    """The tensors of a batch by where they stand in it."""
    found: dict[Names, Tensor] = {}
    for field in dataclasses.fields(of):
        value = getattr(of, field.name)
        if isinstance(value, Tensor):
            found[(field.name,)] = value
        elif dataclasses.is_dataclass(value):
            found |= {(field.name, *names): own for names, own in _tensors(value).items()}
    return found


def _with(batch: Batch, tensors: tuple[Tensor, ...]) -> Batch:
    """The batch with these in place of its tensors, in the order of `_tensors`."""
    changed: dict[str, Any] = {}
    for names, value in zip(_tensors(batch), tensors, strict=True):
        if len(names) == 1:
            changed[names[0]] = value
        else:
            inner = changed.get(names[0], getattr(batch, names[0]))
            changed[names[0]] = dataclasses.replace(inner, **{names[1]: value})
    return dataclasses.replace(batch, **changed)
