"""Functions of tensors, recorded once and replayed without Python: what is left of a step is its arithmetic.

Where it is asked for, the recording is compiled as well.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import get_proxy_mode, has_proxy_slot, make_fx
from torch.overrides import TorchFunctionMode

from pyrocrl.compiled import NotCompiled, compiled
from pyrocrl.turns import drawing

Function = Callable[..., tuple[Tensor, ...]]
WORTH = 250  # calls from which a recording, which takes about a hundred, is made
FASTER = 0.97  # of a recording's time, that what is compiled takes at most
TIMED = 5  # calls of each, in turns, of which the shortest is compared
READS = {"tolist", "numpy", "__array__"}
SHAPED_BY_VALUES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class _NoReads(TorchFunctionMode):
    """Refuses arrays that Python reads off recorded tensors, as the recorder itself refuses single values: Python could
    then do one thing or another. What does not follow from an argument is the same in every call."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = get_proxy_mode() if getattr(function, "__name__", "") in READS else None
        if recorder is not None and has_proxy_slot(args[0], recorder.tracer):
            raise RuntimeError(f"{function.__name__} of what is recorded")
        return function(*args, **(kwargs or {}))


class Recorded:
    """`function`, of tensors and of torch's default generators alone, to a tuple of tensors without gradients.

    It is called as it is at first, recorded at the second call, compared at the third, and replayed from then on if
    results were the same to the last bit and the generators ended alike. Otherwise, and where what it computes depends
    on values, tensors of another shape come or a replay fails, the function itself is called: results are its own in
    any case, as long as nothing but its arguments changes between calls.

    A recording that is replayed may be compiled at the fourth call: results are then the same but for rounding, which
    that call makes sure of, and draws are the same. Where that cannot be had, or is no faster, the recording is
    replayed as it is.
    """

    def __init__(self, function: Function, calls: int, refused: Callable[[str], None] | None = None) -> None:
        """calls: how many will come; for fewer than WORTH nothing is recorded. refused: asks for compiling, and is
        told, once, why there is none; None = it is not asked for."""
        self.function, self.left, self.refused = function, calls, refused
        self.called = 0
        self.graph: GraphModule | None = None
        self.replay: Function | None = None
        self.shapes: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        self.compiled = False

    @property
    def settled(self) -> bool:
        """Whether later calls cost what this one did."""
        return self.called > (2 if self.refused is None else 4) or not self.left

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.called += 1
        if self.called == 2 and self.left >= WORTH:
            found = _record(self.function, tensors)
            self.graph, self.replay = (None, None) if found is None else found
            self.shapes = _shapes(tensors)
        if self.called == 4 and self.refused is not None:
            self._compile(tensors)
        if self.replay is None or _shapes(tensors) != self.shapes:
            return self.function(*tensors)
        before = _generators(tensors)
        try:
            out = self.replay(*tensors)
        except RuntimeError:  # a matrix that cannot be inverted, say: the function knows what to do
            self.replay = None
        if self.replay is not None and self.called > 3:
            return out
        after = _generators(tensors)
        _set_generators(tensors, before)
        own = self.function(*tensors)
        if self.replay is not None and not _same([*own, *_generators(tensors)], [*out, *after]):
            self.replay = None
        return own

    def _compile(self, tensors: Sequence[Tensor]) -> None:
        """Replay what is compiled from now on, if it does as the recording does but for rounding; else say why not."""
        assert self.refused is not None
        if self.replay is None or self.graph is None or _shapes(tensors) != self.shapes:
            few = f"{self.left} steps are too few, {WORTH} the least" if self.left < WORTH else "it cannot be recorded"
            return self.refused(few)
        before = _generators(tensors)
        try:
            with torch.no_grad():
                fast = _checked(compiled(self.graph, tensors), len(self.replay(*tensors)))
                outs = []
                for one in (self.replay, fast):
                    _set_generators(tensors, before)
                    outs.append([one(*tensors), _generators(tensors)])
            if not (_same(outs[0][1], outs[1][1]) and _near(outs[0][0], outs[1][0])):
                return self.refused("the compiler's results are not the same")
            if (ratio := _ratio(fast, self.replay, tensors)) > FASTER:
                return self.refused(f"compiled ones take {ratio:.2f} of the time")
        except (NotCompiled, RuntimeError) as error:
            return self.refused(str(error).splitlines()[0])
        finally:
            _set_generators(tensors, before)
            self.graph = None
        self.replay, self.compiled = fast, True


def _record(function: Function, tensors: Sequence[Tensor]) -> tuple[GraphModule, Function] | None:
    """The graph and its recording, or None where there can be none. Generators are left alone."""
    before = _generators(tensors)
    try:
        with drawing(), _NoReads(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit has no successor that needs no compiler
            graph = make_fx(function)(*tensors)
            if any(_shaped_by_values(graph, node) for node in graph.graph.nodes):
                return None
            results = _return_checks(graph)
            recording = torch.jit.trace(graph, tuple(tensors), check_trace=False)
    except Exception:  # whatever it is: a step that cannot be recorded is no fault
        return None
    finally:
        _set_generators(tensors, before)

    return graph, _checked(recording, results)


def _checked(recording: Callable[..., Any], results: int) -> Function:
    """The first `results` of what is returned. Raises RuntimeError where the others, of matrices, say so."""

    def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = recording(*tensors)
        if any(bool(failed.any()) for failed in out[results:]):
            raise RuntimeError("a matrix cannot be inverted")
        return tuple(out[:results])

    return replay


def _return_checks(graph: GraphModule) -> int:
    """Let the graph return what tells whether matrices could be inverted, which torch.jit would drop, behind its
    results; how many of these there are."""
    end = next(node for node in graph.graph.nodes if node.op == "output")
    checks = [n.args[0] for n in graph.graph.nodes if n.target is torch.ops.aten._linalg_check_errors.default]
    results = tuple(end.args[0])
    end.args = ((*results, *checks),)
    graph.recompile()
    return len(results)


def _shaped_by_values(graph: GraphModule, node: torch.fx.Node) -> bool:
    """Whether the shape of a node's result depends on values."""
    if node.op != "call_function" or not any(tag in getattr(node.target, "tags", ()) for tag in SHAPED_BY_VALUES):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    picks = [pick for pick in node.args[1] if pick is not None]
    made = [getattr(graph, str(p.target)) if p.op == "get_attr" else p.meta["val"] for p in picks]
    return any(one.dtype in (torch.bool, torch.uint8) for one in made)  # positions tell the shape, a mask does not


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(one.shape, one.dtype, one.device) for one in tensors]


def _cuda(tensors: Sequence[Tensor]) -> list[torch.device]:
    return list(dict.fromkeys(one.device for one in tensors if one.device.type == "cuda"))


def _generators(tensors: Sequence[Tensor]) -> list[Tensor]:
    """States of torch's default generators, of the host and of the tensors' devices."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _cuda(tensors))]


def _set_generators(tensors: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(_cuda(tensors), states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """To the last bit, NaN being NaN."""
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(one, other, strict=True))


def _ratio(one: Function, other: Function, tensors: Sequence[Tensor]) -> float:
    """Of times that a call takes."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(TIMED):
            for function, taken in zip((one, other), times, strict=True):
                started = time.perf_counter()
                function(*tensors)
                for device in _cuda(tensors):
                    torch.cuda.synchronize(device)
                taken.append(time.perf_counter() - started)
    return min(times[0]) / min(times[1])


def _near(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """But for rounding, by the largest number of each; NaN being NaN."""
    for a, b in zip(one, other, strict=True):
        largest = a.nan_to_num(0.0, 0.0, 0.0).abs().max() if a.numel() else a.new_zeros(())
        if not torch.allclose(a, b, rtol=0.0, atol=float(largest) * torch.finfo(a.dtype).eps ** 0.5, equal_nan=True):
            return False
    return True
