"""Whose turn it is: Pyro's stack of handlers, torch's default generators and matplotlib's settings are the process's.

Whatever uses them takes a turn, so threads that fit, draw, judge or plot go one after another and get the numbers that
each would get alone; processes run side by side. A fork takes a turn as well, so that a child never starts with the
state of somebody's half-done fit. Code that uses Pyro or torch's default generators past this package takes none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()
_forked = False


def _in_child() -> None:
    global _forked
    _forked = True
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)


@contextmanager
def turn() -> Iterator[None]:
    """Until the block ends all other threads' turns wait; turns of one thread may be nested."""
    with _lock:
        yield


@contextmanager
def drawing(seed: int | None = None) -> Iterator[None]:
    """A turn with Pyro's checks off, in which torch's default generators start from `seed` (None = where they are).

    However the block ends, an interrupt included, generators, handlers and plates are then as they were before it.
    """
    global _forked
    import pyro
    import torch
    from pyro.poutine import runtime

    with turn():
        if _forked:  # OpenMP's threads stayed with the parent: a child that called on them would wait for ever
            torch.set_num_threads(1)
            _forked = False
        state = torch.get_rng_state()
        on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        kept = [(stack, list(stack)) for stack in (runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack)]
        try:
            if seed is not None:
                reseed(seed)
            with pyro.validation_enabled(False):
                yield
        finally:
            for stack, before in kept:
                stack[:] = before
            torch.set_rng_state(state)
            if on_cuda:
                torch.cuda.set_rng_state_all(on_cuda)


def reseed(seed: int) -> None:
    """Start torch's default generators anew, inside `drawing`; unlike `torch.manual_seed` it leaves nothing behind on
    CUDA devices that are not in use yet."""
    import torch

    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
