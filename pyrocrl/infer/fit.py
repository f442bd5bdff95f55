"""`fit`, the training of all chains at once: what it takes, what it refuses before any work, and where it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.files import held
from pyrocrl.infer import checkpoint
from pyrocrl.infer.chains import SINGULAR
from pyrocrl.infer.fitted import Fit
from pyrocrl.infer.loop import FitError, Loop
from pyrocrl.options import Seed, Size, check_memory, checked, known_names
from pyrocrl.program import Program, Recipe
from pyrocrl.turns import drawing

CHECKPOINT = "checkpoint.safetensors"
STATES = 3  # as many numbers as parameters: gradient and Adam's two moments
MANY = 1_000_000  # entries of x in a step of all chains from which threads may pay
LOOKS = 8  # at the held-out objective while chains are fitted again


@checked
def fit(
    program: Program,
    data: Data,
    chains: Size | None = None,
    epochs: Size | None = None,
    seed: Seed = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
    out: str | Path | None = None,
    resume: bool = False,
    *,
    start: Fit | None = None,
    recipe: Recipe | None = None,
    compile: bool = False,
    checkpoint_every: Size = 10,
    on_epoch: Callable[[int], None] | None = None,
    **overrides: Any,
) -> Fit:
    """Fit `chains` independent chains of `program` to `data` by stochastic variational inference.

    chains, epochs: None = the model's own recipe, in which small data have more epochs and large ones fewer; other
    fields of `Recipe` may be given by name (lr=, patience=...). seed: everything random follows it. device: "auto"
    (cuda where there is one), "cpu" or "cuda[:i]". Small fits (fewer than a million entries of x in a step of all
    chains) run on one thread, larger ones on as many as torch is set to (torch.set_num_threads, OMP_NUM_THREADS). out:
    a folder for the checkpoint, written every `checkpoint_every` epochs, every 20 seconds, when Ctrl-C stops the fit
    and at the end; with resume=True an interrupted fit found there goes on and ends as an uninterrupted one would have.
    start: a finished fit of this program to these data, whose chains go on from where they ended for `epochs` more,
    without annealing; where a recipe keeps the best state, never to a worse one. compile: steps through
    `torch.compile`, which takes a minute at first and seconds once torch has kept it on disk, and pays in long fits; of
    a step the results are the same but for rounding, and where there is no compiler, or it fails, the fit says so in a
    line and goes on without (`fit.meta["compiled"]`). on_epoch: called after each epoch. Threads that fit take turns;
    processes run side by side. The global random state of torch, numpy and python is afterwards what it was before.
    Raises InputError for bad arguments before any work and for a folder that another fit is writing, FitError when no
    chain stays finite.
    """
    recipe = recipe_of(program, recipe, chains, epochs, overrides)
    if start is not None:
        if chains not in (None, start.chains.count) or resume:
            found = "with resume=True" if resume else f"{start.chains.count} chains, and chains={chains}"
            reject("start", f"a fit of {found}" if not resume else found, "as many chains, and a fit that is finished")
        recipe = _annealed(recipe, start.chains.count)
    where = resolve_device(device)
    program.check(data)
    program.check_control(data)
    program.check_batches(data)
    program.check_structure(data)
    data.check_fit()
    check_chains(program, data, recipe, where)
    path = None if out is None else Path(out) / CHECKPOINT
    if resume and path is None:
        reject("resume", "True without out", "resume=True with out, the folder of the interrupted fit")
    cells = recipe.chains * data.features * min(recipe.batch_size or data.rows, data.rows)
    with nullcontext() if path is None else held(path.parent, "out"), drawing(), _threads(cells):
        saved = checkpoint.read(path) if resume and path is not None and path.exists() else None
        if saved is not None and saved[1].get("before"):
            recipe = _annealed(recipe, saved[1]["recipe"]["chains"])
        try:
            loop = Loop(program, data, recipe, seed, where, path, saved, start, compile)
            return loop.run(progress, checkpoint_every, on_epoch)
        except SINGULAR as error:
            raise FitError(f"a matrix is singular in every chain ({str(error).splitlines()[0]})") from error


def refit(found: Fit, programs: list[Program], share: float, data: Data) -> Fit:
    """Chains that begin as these programs are, fitted to the data of `found` for `share` of its epochs, without
    annealing; held out are the same rows. Raises FitError as `fit` does."""
    recipe = Recipe(**found.meta["recipe"] | {"dtype": found.program.recipe.dtype})
    epochs = math.ceil(share * found.meta["epochs"])
    recipe = dataclasses.replace(_still(recipe), chains=len(programs), epochs=epochs, least_steps=0, stop_behind=False)
    recipe = dataclasses.replace(recipe, check_every=max(1, epochs // LOOKS), patience=None)
    cells = recipe.chains * data.features * min(recipe.batch_size or data.rows, data.rows)
    device = next(iter({**found.chains.params, **found.chains.buffers}.values())).device
    with drawing(), _threads(cells):
        try:
            made = [one.to(recipe.dtype) for one in programs]
            return Loop(found.program, data, recipe, found.meta["seed"], device, None, made=made).run(False, 1, None)
        except SINGULAR as error:
            raise FitError(f"a matrix is singular in every chain ({str(error).splitlines()[0]})") from error


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` -> cuda where there is one. Raises InputError where there is no such device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        reject("device", repr(device), "auto, cpu or cuda[:index]")
    if where.type not in ("cpu", "cuda"):
        reject("device", repr(device), "auto, cpu or cuda[:index]")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        reject("device", f"{device!r} with {torch.cuda.device_count()} CUDA devices here", "auto or cpu")
    return where


def recipe_of(
    program: Program, recipe: Recipe | None, chains: int | None, epochs: int | None, more: dict[str, Any]
) -> Recipe:
    known_names("fit", more, sorted(f.name for f in dataclasses.fields(Recipe)), "an argument")
    if chains is not None:
        more["chains"] = chains
    if epochs is not None:
        more |= {
            "epochs": epochs,
            "least_steps": 0,
            "most_steps": None,
        }  # a number of epochs that is asked for is kept to
    return dataclasses.replace(recipe or program.recipe, **more)


def _annealed(recipe: Recipe, chains: int) -> Recipe:
    """For chains that have been annealed: at a quarter of the learning rate, in which the optimiser finds its scale."""
    return dataclasses.replace(_still(recipe), chains=chains, lr=recipe.lr / 4, lr_hold=0.0)


def _still(recipe: Recipe) -> Recipe:
    """Without annealing: as it is at its end."""
    end = recipe.temperature[1]
    return dataclasses.replace(recipe, kl_warmup=0.0, temperature_span=0.0, temperature=(end, end))


def check_chains(program: Program, data: Data, recipe: Recipe, device: torch.device) -> None:
    """Raise InputError where so many chains are beyond memory: their states and the rows of one step, at the least."""
    bytes_of = torch.finfo(recipe.dtype).bits // 8
    trained = sum(p.numel() for p in program.parameters() if p.requires_grad)
    state = sum(v.numel() for v in program.state_dict().values())
    rows = 0
    if program.uses_rows:
        rows = min(recipe.batch_size or data.rows, data.rows) * (data.features + program.latents_count)
    each = bytes_of * (2 * state + STATES * trained + rows)  # the best state is kept beside the present one
    room = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    check_memory("chains", recipe.chains, float(recipe.chains * each), room)


@contextmanager
def _threads(cells: int) -> Iterator[None]:
    """One thread, of torch and of numpy's and scipy's algebra, for steps of fewer than `MANY` entries of x: threads
    that wait for each other cost more than they give, on busy cores many times more. Larger ones have as many as both
    are set to, which is so again afterwards."""
    before = torch.get_num_threads()
    if cells >= MANY:
        yield
        return
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
