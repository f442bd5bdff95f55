"""What is recorded of a function of tensors, compiled: `torch.compile` with the numbers drawn as without it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

# "fallback_random": draws are torch's own; one compiling thread: no processes are left behind
OPTIONS = {"fallback_random": True, "compile_threads": 1}


class NotCompiled(RuntimeError):
    """There is no compiler, or it did not take the function; the message says why, in a line."""


@torch.library.custom_op("pyrocrl::lgamma", mutates_args=())
def lgamma(x: Tensor) -> Tensor:
    """log Gamma. Compiled C++ computes it number by number, six times as slowly as torch."""
    return torch.lgamma(x)


@lgamma.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def compiled(graph: GraphModule, tensors: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """`graph`, a recording of a function of `tensors`, compiled; torch keeps what it compiles on disk, for later
    processes as well. Raises NotCompiled."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.lgamma.default:
            node.target = torch.ops.pyrocrl.lgamma.default
    graph.recompile()
    try:
        with _quiet():
            out = torch.compile(graph, fullgraph=True, dynamic=False, options=OPTIONS)
            out(*tensors)
    except Exception as error:  # whatever it is: what cannot be compiled is no fault
        raise NotCompiled(_in_words(error)) from error
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the compiler's parts warn of, which is not the user's to mend."""
    logs = [logging.getLogger(name) for name in ("torch._dynamo", "torch._inductor", "torch._functorch")]
    levels = [one.level for one in logs]
    try:
        for one in logs:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(logs, levels, strict=True):
            one.setLevel(level)


def _in_words(error: BaseException) -> str:
    """The cause in one line."""
    while (cause := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = cause
    lines: list[Any] = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": ")
