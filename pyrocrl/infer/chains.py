"""Many chains of one program as one stacked, vmapped computation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.infer.completion import complete
from pyrocrl.program import Program
from pyrocrl.turns import drawing, reseed

log = logging.getLogger("pyrocrl")
State = dict[str, Tensor]
FEW = 64  # rows that show the shapes of a story's sites
AT_ONCE = 40  # draws that are vmapped at once
SINGULAR = (torch.linalg.LinAlgError, np.linalg.LinAlgError)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (a splitmix-like hash), so that streams do not overlap."""
    value = 0x9E3779B97F4A7C15
    for number in numbers:
        value = ((value ^ (number & (2**64 - 1))) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value ^= value >> 31
    return value & (2**63 - 1)


class Repeated:
    """Calls of a function that draws: vmapped if `batched`, and one after another from where that does not go."""

    def __init__(self, batched: bool) -> None:
        self.batched, self.tried = batched, False

    def __call__(self, function: Callable[[], Any], times: int) -> Any:
        """What `function()` gives, tensors or containers of them, of `times` draws, stacked."""
        if self.batched and times > 1:
            try:
                drawn = vmap(lambda _: function(), randomness="different", chunk_size=AT_ONCE)(torch.arange(times))
            except RuntimeError:  # a branch on what is drawn, say; one after another shows what else is wrong
                self.batched = False
            else:
                self.batched = self.tried or not _share_noise(drawn, function())
                self.tried = True
                if self.batched:
                    return drawn
        return tree_map(lambda *parts: torch.stack(parts), *(function() for _ in range(times)))


def _share_noise(drawn: Any, alone: Any) -> bool:
    """Whether something is the same in draws made at once and another in one more: noise that is not torch's."""

    def shared(many: Tensor, one: Tensor) -> bool:
        alike = bool((many == many[:1]).all())
        return alike and not torch.allclose(many[0].double(), one.double(), rtol=1e-4, atol=1e-6, equal_nan=True)

    return any(shared(many[:AT_ONCE], one) for many, one in zip(tree_leaves(drawn), tree_leaves(alone), strict=True))


class Chains:
    """`count` chains of a program: parameters and buffers stacked along a leading chain dimension.

    singular: chains of which a matrix could not be inverted, at the start or in `map` since it was last emptied.
    """

    def __init__(self, program: Program, params: State, buffers: State) -> None:
        self.params, self.buffers = params, buffers
        self.skeleton = copy.deepcopy(program)
        self.program = program
        self.count = int(next(iter({**params, **buffers}.values())).shape[0])
        self.batched = program.vmappable and (program.completion is None or program.completion.vmappable)
        self.slots = _slots(self.skeleton)
        self.singular: set[int] = set()

    @classmethod
    def start(
        cls,
        program: Program,
        data: Data,
        count: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        made: list[Program] | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> Chains:
        """Each chain from its own seed: fresh parameters, then the program's `initialise`. Chains that are `singular`
        stand as copies of another; raises LinAlgError where all are.

        made: chains that have started already; each further one is added to it, up to the first that is singular, and
        `after` is called.
        """
        made = [] if made is None else made
        started = dict(enumerate(made))
        program = made[0] if made and made[0].completion is not None else program
        singular: dict[int, Exception] = {}
        for chain in range(len(made), count):
            reseed(mix(seed, chain))
            one = program.fresh().to(dtype)
            with torch.no_grad():
                try:
                    one.initialise(data, torch.Generator().manual_seed(mix(seed, chain, 1)))
                except SINGULAR as error:
                    singular[chain] = error
                    continue
                if one.fits_story:
                    few = data.rows_at(np.arange(min(FEW, data.rows))).tensors(dtype=dtype).whole()
                    complete(one, few)
                    program = one if one.completion is not None else program
            started[chain] = one
            if not singular:  # a checkpoint knows starts by their order
                made.append(one)
                after()
        if not started:
            raise singular[0]
        params, buffers = stack_module_state([started.get(c, next(iter(started.values()))) for c in range(count)])
        params = {k: v.detach().to(device).requires_grad_(v.requires_grad) for k, v in params.items()}
        out = cls(program, params, {k: v.to(device) for k, v in buffers.items()})
        out.singular |= singular.keys()
        return out

    def chain(self, index: int) -> Program:
        """A program of its own holding the parameters of one chain."""
        with drawing():  # the parameters drawn here are overwritten at once
            one = self.program.fresh()
        state = {k: v[index].detach().clone() for k, v in {**self.params, **self.buffers}.items()}
        first = next(v for v in state.values() if v.is_floating_point())
        one = one.to(device=first.device, dtype=first.dtype)
        one.load_state_dict(state, assign=False)
        return one.eval()

    def map(
        self,
        function: Callable[[Program, Batch], Any],
        batch: Batch,
        randomness: str = "different",
        state: State | None = None,
    ) -> Any:
        """`function(program, batch)` of every chain, stacked; vmapped, or one after another as the fallback.

        A chain in which a matrix cannot be inverted is NaN, and `singular`; raises LinAlgError where all are.
        state: other stacked parameters and buffers than the chains' own, such as views that carry gradients.
        """
        state = {**self.params, **self.buffers} if state is None else state

        def one(state: State) -> Any:
            try:
                for place, leaf, name, _ in self.slots:
                    place[leaf] = state[name]
                return function(self.skeleton, batch)
            finally:
                for place, leaf, _, empty in self.slots:
                    place[leaf] = empty

        if self.count == 1:  # vmap over one chain only costs
            alone = one({k: v.squeeze(0) for k, v in state.items()})
            return tree_map(lambda value: value.unsqueeze(0), alone)
        if self.batched:
            try:
                return vmap(one, randomness=randomness)(state)
            except SINGULAR:
                pass  # one after another shows of which chains
            except RuntimeError as error:
                if "vmap" not in str(error) and "functorch" not in str(error) and "batch" not in str(error).lower():
                    raise
                reason = str(error).splitlines()[0]
                log.warning(
                    "%s cannot run its chains in one (%s): they run one after another", self.program.card.name, reason
                )
                self.batched = False
        results: dict[int, Any] = {}
        for c in range(self.count):
            try:
                results[c] = one({k: v[c] for k, v in state.items()})
            except SINGULAR:
                self.singular.add(c)
                if len(self.singular) == self.count:
                    raise
        like = next(iter(results.values()))
        nothing = tree_map(lambda value: torch.full_like(value.detach(), torch.nan), like)
        return tree_map(lambda *parts: torch.stack(parts), *(results.get(c, nothing) for c in range(self.count)))

    @torch.no_grad()
    def replace(self, chains: Iterable[int], by: int) -> None:
        """Give these chains the state of another."""
        for value in {**self.params, **self.buffers}.values():
            value.data[list(chains)] = value.data[by].clone()


def _slots(program: Program) -> list[tuple[dict[str, Any], str, str, Any]]:
    """Where a program keeps its tensors: (dictionary, key, name in the state, a stand-in without numbers).

    What `torch.func.functional_call` looks up at every call is looked up once. A tensor with several names (tied) has
    a slot for each and the name that `named_parameters` gives it.
    """
    first: dict[int, str] = {}
    slots = []
    for prefix, module in program.named_modules():
        for place in (module._parameters, module._buffers):
            for leaf, value in place.items():
                if value is not None:
                    name = first.setdefault(id(value), f"{prefix}.{leaf}" if prefix else leaf)
                    slots.append((place, leaf, name, value.to("meta")))
    return slots


class Flat:
    """Stacked parameters laid end to end in one (chain, number) tensor, so that a step is a few large operations."""

    def __init__(self, params: State) -> None:
        self.shapes = {name: value.shape for name, value in params.items()}
        self.sizes = [value[0].numel() for value in params.values()]
        self.value = torch.cat([v.detach().reshape(len(v), -1) for v in params.values()], 1).requires_grad_()

    def views(self, of: Tensor | None = None) -> State:
        """The parameters by name, views of `of` or of the flat tensor; gradients arrive there."""
        parts = (self.value if of is None else of).split(self.sizes, 1)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def clip_by_chain(gradients: list[Tensor], limit: float, alive: Tensor) -> Tensor:
    """Scale each chain's gradient in place to norm at most `limit`, to 0 where a chain is not alive or not finite.

    gradients: (chain, number) each. Returns the norms (chain,).
    """
    norm = torch.stack([g.square().sum(1) for g in gradients]).sum(0).sqrt()
    alive = (alive & torch.isfinite(norm))[:, None]
    factor = (limit / (norm + 1e-12)).clamp(max=1.0)[:, None]
    for g in gradients:
        g.copy_(torch.where(alive, g * factor, 0.0))
    return norm
