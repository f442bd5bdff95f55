"""`Loop`, a fit in progress: stacked parameters, steps of all chains at once that do not wait for the host, looks at
the held-out objective, checkpoints from which it goes on, and the `Fit` that it ends as."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from tqdm import tqdm

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer import checkpoint
from pyrocrl.infer.behind import Stopped, behind
from pyrocrl.infer.chains import SINGULAR, Chains, Flat, clip_by_chain, mix
from pyrocrl.infer.completion import Completion
from pyrocrl.infer.elbo import validate
from pyrocrl.infer.fitted import Fit
from pyrocrl.infer.held_out import held_out_rows, row_objectives
from pyrocrl.infer.objective import Objective
from pyrocrl.infer.origin import origin, refuse_other_text
from pyrocrl.infer.units import units_of
from pyrocrl.program import Program, Recipe
from pyrocrl.turns import reseed

log = logging.getLogger("pyrocrl")
COMPLETION_LR = 0.03  # at least, of blocks that stand in for a guide's lines: log odds and logarithms have far to go
SETTLING_ROWS = 2_000
DENSE = 64_000_000  # entries of x beyond which a sparse table stays sparse
MEASURED = 1.0  # seconds of steps that show how long they take
LONG = 10.0  # seconds of a fit that says how long it will take
STOP_STEPS = 200.0  # of all chains that stopping some must save: a step of fewer is recorded anew
SAVE_SECONDS = 20.0  # between checkpoints, however long an epoch is


class FitError(RuntimeError):
    """The fit itself failed: every chain's objective became non-finite, or a matrix of every chain was singular."""


def steps_per_epoch(program: Program, recipe: Recipe, rows: int) -> int:
    """Steps that one epoch of `rows` training rows takes; one where the data enter as moments."""
    if not program.uses_rows or recipe.batch_size is None:
        return 1
    return max(1, rows // min(recipe.batch_size, rows))


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Until the block ends Ctrl-C only fills this list, so that a step is never cut; a second one ends the block."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            signal.default_int_handler(number, frame)
        came.append(number)

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield came  # another thread gets none, and another handler is not ours to replace
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Loop:
    """State of one fit: stacked parameters, Adam, the best state of each chain and the history of checks."""

    def __init__(
        self,
        program: Program,
        data: Data,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        path: Path | None,
        saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
        start: Fit | None = None,
        compiled: bool = False,
        made: Sequence[Program] = (),
    ) -> None:
        """saved: tensors and header of an interrupted fit's checkpoint. start: a finished fit whose chains go on.
        compiled: whether steps are to be. made: chains that have started."""
        self.program, self.data, self.seed = program, data, seed
        self.number = program.number if start is None or program.number is not None else start.meta.get("number")
        self.device, self.path = device, path
        self.running = list(range(recipe.chains))  # which of the chains the rows of stacked tensors are
        self.stopped: list[Stopped] = []  # those that fell behind
        self.units = units_of(program, data)
        self.origin = origin(type(program))
        out = held_out_rows(program, data, recipe.held_out, seed)
        held = out if out.any() else ~out  # chains are compared on all rows where none is kept for that
        self.train, self.held = (data.in_units(self.units).rows_at(rows) for rows in (~out, held))
        epochs, self.steps = recipe.length(steps_per_epoch(program, recipe, self.train.rows))
        self.recipe = dataclasses.replace(recipe, epochs=epochs)
        self.started = self.saved = time.perf_counter()
        self.cpu_started = time.process_time()
        self.seconds_before = self.cpu_before = 0.0
        rows = program.uses_rows
        self.sparse = rows and device.type == "cpu" and scipy.sparse.issparse(self.train.x) and self.train.x.nnz > 0
        self.sparse = self.sparse and self.train.rows * self.train.features > DENSE
        whole = self.train.rows_at(slice(0, 1)) if self.sparse else self.train  # in place of rows made dense by step
        self.batch = whole.tensors(device, recipe.dtype, rows=rows, moments=not rows)
        self.held_batch = self.held.tensors(device, recipe.dtype).whole()
        self.made = list(made)  # chains that have started
        self.before = 0  # epochs of the fit that goes on
        if start is not None:
            self._check_same(start._content()[1], "start")
            self.before = start.meta["epochs"]
            self.seconds_before, self.cpu_before = start.meta["seconds"], start.meta["cpu_seconds"]
            self.made = [start.chains.chain(c).to(recipe.dtype).train() for c in range(start.chains.count)]
        if saved is not None:
            self._check_same(saved[1], "resume")
            self._take_starts(*saved)
        try:
            self.chains = Chains.start(
                program, self.train, len(self.running), seed, device, recipe.dtype, self.made, self._save_starts
            )
        except KeyboardInterrupt:
            self._save_starts(at_once=True)
            raise
        self.flats = self._flatten()
        self.optimiser = torch.optim.Adam(self._groups(), betas=recipe.betas, fused=True)
        self.compiled = compiled
        self.objective = self._objective(self.recipe.epochs * self.steps)
        self.alive = torch.ones(len(self.running), dtype=torch.bool, device=device)
        self._retire_singular()
        self.best = {k: v.detach().clone() for k, v in self._state().items()}
        self.best_score = torch.full((len(self.running),), -torch.inf, dtype=torch.float64, device=device)
        self.best_epoch = 0
        self.epoch = self.step = 0  # epochs that are done, steps of the one that is not
        self.generators: dict[str, Tensor] = {}  # torch's in the middle of an epoch, of a checkpoint
        self.interrupts: list[int] = []
        self.tell: Callable[[str], None] | None = None  # what people see as it happens
        self.say: Callable[[str], None] | None = None  # where the time that is to be expected is still to be told
        self.clock: tuple[float, int] | None = None  # time and steps done when it began to be measured
        self.history: list[list[float]] = []
        if start is not None:
            self.history = start.history[:, [0, *(1 + chain for chain in start.kept)]].tolist()
            self.history = [[row[0], *(v + self._volume for v in row[1:])] for row in self.history]
            self.best_score = self._held_out_rows().mean(1)
        validate(self.chains.chain(0).train(), self._sample_batch())
        if saved is not None and "best_epoch" in saved[1]:
            self._restore(*saved)

    def _objective(self, steps: int) -> Objective:
        refused = self._say_not_compiled if self.compiled else None
        return Objective(self.chains, [flat for _, flat in self.flats], steps, refused)

    def _say_not_compiled(self, why: str) -> None:
        log.warning("%s: steps are not compiled: %s", self.program.card.name, why)

    def _state(self) -> dict[str, Tensor]:
        return {**self.chains.params, **self.chains.buffers}

    def _flatten(self) -> list[tuple[float, Flat]]:
        """(learning rate scale, parameters) for each scale; the chains' parameters become views of these."""
        groups: dict[float, dict[str, Tensor]] = {}
        for name, value in self.chains.params.items():
            if value.requires_grad:
                scales = {"completion.": max(1.0, COMPLETION_LR / self.recipe.lr), **self.recipe.lr_scale}
                scale = next((s for key, s in scales.items() if name.startswith(key)), 1.0)
                groups.setdefault(scale, {})[name] = value
        flats = [(scale, Flat(values)) for scale, values in groups.items()]
        for _, flat in flats:
            self.chains.params |= flat.views(flat.value.detach())
        return flats

    def _groups(self) -> list[dict[str, Any]]:
        return [{"params": [f.value], "lr": self.recipe.lr * s, "scale": s} for s, f in self.flats]

    def _sample_batch(self) -> Batch:
        if not self.program.uses_rows:
            return self.batch
        few = torch.arange(min(self.train.rows, self.recipe.batch_size or 64), device=self.device)
        return self._take(few)

    def _take(self, rows: Tensor) -> Batch:
        """The training rows at these positions; of a large sparse table only they are made dense."""
        if not self.sparse:
            return self.batch.take(rows)
        part = self.train.rows_at(rows.numpy()).tensors(self.device, self.recipe.dtype)
        return dataclasses.replace(part, index=rows, total=self.train.rows)

    # -- one epoch ---------------------------------------------------------------------------------------------

    def run(self, progress: bool, checkpoint_every: int, on_epoch: Callable[[int], None] | None) -> Fit:
        recipe = self.recipe
        bar = tqdm(
            total=recipe.epochs,
            initial=self.epoch,
            disable=not progress or sys.stderr is None or sys.stderr.closed,
            desc=f"{self.program.card.name}, {recipe.chains} chains",
            unit="epoch",
        )
        self.say = self.tell = None if bar.disable else partial(bar.write, file=sys.stderr)
        with bar, _ctrl_c() as self.interrupts:
            while self.epoch < recipe.epochs and not self._stalled():
                self._run_epoch()
                self.epoch += 1
                if self.epoch % recipe.check_every == 0 or self.epoch == recipe.epochs:
                    score = self._check()
                    bar.set_postfix_str(f"held-out {score - self._volume:.4g}", refresh=False)
                bar.update(1)
                if self.epoch % checkpoint_every == 0 and self.epoch < recipe.epochs:
                    self._save()
                if on_epoch is not None:
                    on_epoch(self.epoch)
                self._stop_if_told()
        return self._finish()

    def _run_epoch(self) -> None:
        recipe = self.recipe
        reseed(mix(self.seed, self.before + self.epoch, 7))  # each epoch has its own stream: nothing to save at its end
        if self.generators:
            self._set_generators()
        rows = self.train.rows if self.program.uses_rows else 0
        size = rows if recipe.batch_size is None else min(recipe.batch_size, rows)
        if self.program.uses_rows:
            # whole minibatches only: a short last one would be a noisier step than the others
            generator = torch.Generator().manual_seed(mix(self.seed, self.before + self.epoch, 11))
            order = torch.randperm(rows, generator=generator).to(self.device)
            if self.train.pair is not None:  # partners side by side, and so in one minibatch
                pair = np.unique(2 * self.train.pair + self.train.after, return_inverse=True)[1]
                own = torch.as_tensor(pair, device=self.device)
                order = (2 * order[own // 2] + own % 2).argsort()
                size -= size % 2 * (size > 1)
            if self.train.clock is not None and self.program.card.needs_series:  # runs of a minibatch's length
                clock = torch.as_tensor(self.train.clock, device=self.device)
                run = (clock + int(torch.randint(size, (), generator=generator))) // size
                first = run.argsort()[torch.searchsorted(run.sort().values, run)]
                order = (order[first] * (int(clock.max()) + 1) + clock).argsort()
        else:
            order = None
        steps = self.steps
        for step in range(self.step, steps):
            at = (self.epoch + step / steps) / recipe.epochs
            batch = self.batch if order is None else self._take(order[step * size : (step + 1) * size])
            self._step(self._annealed(batch, at), at)
            self.step = step + 1
            if self.say is not None:
                self._say_how_long()
            if time.perf_counter() - self.saved > SAVE_SECONDS:
                self._save()
            self._stop_if_told()
        self.step = 0

    def _say_how_long(self) -> None:
        """Say once how long the steps will take, as soon as a second of them shows it, unless it is short."""
        now, done = time.perf_counter(), self.epoch * self.steps + self.step
        if not self.objective.settled:  # the first steps pay for what is made once
            return
        if self.clock is None:
            self.clock = (now, done)
        elif self.say is not None and now - self.clock[0] > MEASURED:
            left = (now - self.clock[0]) / (done - self.clock[1]) * (self.recipe.epochs * self.steps - done)
            if left > LONG:
                steps = f"{self.recipe.epochs * self.steps:,} steps of {len(self.running)} chains"
                self.say(f"{self.program.card.name}: about {_duration(left)} for {steps}")
            self.say = None

    def _stop_if_told(self) -> None:
        """Raise KeyboardInterrupt, with a checkpoint of this very step, if Ctrl-C came."""
        if self.interrupts:
            self._save()
            raise KeyboardInterrupt

    def _get_generators(self) -> dict[str, Tensor]:
        cuda = {"generator.cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"generator.cpu": torch.get_rng_state(), **cuda}

    def _set_generators(self) -> None:
        torch.set_rng_state(self.generators["generator.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.generators["generator.cuda"], self.device)
        self.generators = {}

    def _annealed(self, batch: Batch, at: float) -> Batch:
        def scalar(value: float) -> Tensor:
            return torch.full((), value, dtype=self.recipe.dtype, device=self.device)

        recipe = self.recipe
        return batch.anneal(scalar(recipe.kl_weight_at(at)), scalar(recipe.temperature_at(at)), scalar(at))

    def _step(self, batch: Batch, at: float) -> None:
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.lr_at(at) * group["scale"]
        value, *gradients = self.objective(batch)
        self.alive &= torch.isfinite(value)
        norm = clip_by_chain(gradients, recipe.clip, self.alive)
        self.alive &= torch.isfinite(norm)
        for (_, flat), gradient in zip(self.flats, gradients, strict=True):
            flat.value.grad = gradient
        self.optimiser.step()
        self._retire_singular()

    def _retire_singular(self) -> None:
        """Retire chains with a matrix that cannot be inverted; they go on as copies of another, or all would fail."""
        if self.chains.singular:
            self.alive[list(self.chains.singular)] = False
            self.chains.replace(self.chains.singular, next(iter(set(range(self.chains.count)) - self.chains.singular)))
            self.chains.singular.clear()

    # -- held-out objective ------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Chains that have been started, stopped ones included."""
        return len(self.running) + len(self.stopped)

    @property
    def _volume(self) -> float:
        return float(np.mean(self._volumes))

    @property
    def _volumes(self) -> float | np.ndarray:
        """Of each held-out row, see `Units.volumes`."""
        return 0.0 if self.units is None else self.units.volumes(self.held.known if self.held.incomplete else None)

    def _held_out_rows(self) -> Tensor:
        """(chain, row) held-out objective with annealing over, averaged over a few draws with fixed noise; of x in the
        units of the fit, so that no threshold depends on the data's. What people see is less `_volume`."""
        return row_objectives(self.chains, self._annealed(self.held_batch, 1.0), mix(self.seed, 13))

    def _check(self) -> float:
        """Look at the held-out objective, keep improved chains' states; returns the best chain's score a row."""
        rows = self._held_out_rows()
        score = rows.mean(1)
        self.alive &= torch.isfinite(score)
        self._retire_singular()
        if self.epoch / self.recipe.epochs >= self.recipe.annealed_after() or self.epoch == self.recipe.epochs:
            better = self.alive & (score > self.best_score) if self.recipe.keep == "best" else self.alive
            for name, value in self._state().items():
                keep = better.view(-1, *[1] * (value.dim() - 1))
                self.best[name] = torch.where(keep, value.detach(), self.best[name])
            notable = self.alive & (score > self.best_score + 1e-4 * self.best_score.abs())
            self.best_score = torch.where(better, score, self.best_score)
            if bool(notable.any()):
                self.best_epoch = self.epoch
        values = torch.where(self.alive, score, torch.nan).tolist()
        every = dict(zip(self.running, values, strict=True))
        self.history.append([float(self.before + self.epoch), *(every.get(c, np.nan) for c in range(self.count))])
        if not bool(self.alive.any()):
            raise FitError(f"every chain's objective became non-finite by epoch {self.epoch}; try a smaller lr")
        if self.recipe.stop_behind:
            self._stop_behind(torch.where(self.alive[:, None], rows, torch.nan))
        return max(v for v in values if v == v)

    def _stop_behind(self, rows: Tensor) -> None:
        """Stop chains that are hopelessly behind, where fewer chains pay for what a step of fewer is made once; rows
        (chain, row) of this look, NaN of retired chains."""
        progress = self.epoch / self.recipe.epochs
        if progress < self.recipe.annealed_after():
            return
        own = np.asarray(self.history)[:, [0, *(1 + chain for chain in self.running)]]
        found = behind(own, rows.cpu().numpy(), progress)
        left = (self.recipe.epochs - self.epoch) * self.steps
        if left * len(found) < STOP_STEPS * len(self.running):
            return
        for place, (gap, hope) in found.items():
            self.stopped.append(Stopped(self.running[place], self.before + self.epoch, gap, hope))
            if self.tell is not None:
                self.tell(str(self.stopped[-1]))
        self._keep_running([place for place in range(len(self.running)) if place not in found])

    def _keep_running(self, places: list[int]) -> None:
        """Go on with the chains at these places alone."""
        pick = torch.tensor(places, device=self.device)
        adam = self.optimiser.state_dict()
        trained = {name for _, flat in self.flats for name in flat.shapes}
        params = {k: v.detach()[pick].requires_grad_(k in trained) for k, v in self.chains.params.items()}
        chains = Chains(self.chains.program, params, {k: v.detach()[pick] for k, v in self.chains.buffers.items()})
        chains.batched = self.chains.batched
        self.chains, self.running = chains, [self.running[place] for place in places]
        self.flats = self._flatten()
        self.optimiser = torch.optim.Adam(self._groups(), betas=self.recipe.betas, fused=True)
        state = {i: {k: v[pick] if v.dim() else v for k, v in one.items()} for i, one in adam["state"].items()}
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.objective = self._objective((self.recipe.epochs - self.epoch) * self.steps)
        self.alive, self.best_score = self.alive[pick], self.best_score[pick]
        self.best = {name: value[pick] for name, value in self.best.items()}

    def _stalled(self) -> bool:
        patience = self.recipe.patience
        return patience is not None and self.best_epoch > 0 and self.epoch - self.best_epoch >= patience

    # -- end, save, restore ------------------------------------------------------------------------------------

    def _finish(self) -> Fit:
        kept = torch.isfinite(self.best_score)
        for chain in torch.nonzero(~self.alive).flatten().tolist():
            state = "its last good state is kept" if bool(kept[chain]) else "it is left out"
            warnings.warn(
                f"chain {self.running[chain]}: non-finite objective, retired; {state}", RuntimeWarning, stacklevel=4
            )
        if not bool(kept.any()):
            raise FitError("no chain has a finite objective; try a smaller lr")
        states: list[dict[str, Tensor]] = []
        for chain in torch.nonzero(kept).flatten().tolist():
            for target, source in ((self.chains.params, self.best), (self.chains.buffers, self.best)):
                for name in target:
                    target[name].data[chain] = source[name][chain]
            one = self.chains.chain(chain)
            number = self.running[chain]
            reseed(mix(self.seed, number, 17))
            try:
                with torch.no_grad():
                    one.finish(self.train, torch.Generator().manual_seed(mix(self.seed, number, 19)))
                    if one.completion is not None:
                        one.completion.settle(one, self._some_rows(), mix(self.seed, number, 21))
            except SINGULAR as error:
                if not states and not bool(kept[chain + 1 :].any()):
                    raise
                kept[chain] = self.alive[chain] = False
                reason = str(error).splitlines()[0]
                warnings.warn(
                    f"chain {number}: singular at its end ({reason}); it is left out", RuntimeWarning, stacklevel=4
                )
                continue
            states.append({k: v.detach().cpu() for k, v in one.state_dict().items()})
        stacked = {k: torch.stack([s[k] for s in states]) for k in states[0]}
        names = set(self.chains.params)
        final = Chains(
            self.chains.program,
            {k: v.to(self.device) for k, v in stacked.items() if k in names},
            {k: v.to(self.device) for k, v in stacked.items() if k not in names},
        )
        final.batched = self.chains.batched
        self.chains = final
        result = Fit(
            program=final.program,
            chains=final,
            kept=[self.running[chain] for chain in torch.nonzero(kept).flatten().tolist()],
            held_out=self._held_out_rows().cpu() - torch.as_tensor(self._volumes, dtype=torch.float64),
            history=np.asarray(self.history) - self._volume * (np.arange(1 + self.count) > 0),
            names=Fit.names_of(self.data, self.program),
            meta={
                "seed": self.seed,
                "epochs": self.before + self.epoch,
                "recipe": plain(self.recipe),
                "device": str(self.device),
                "seconds": self.seconds_before + time.perf_counter() - self.started,
                "cpu_seconds": self.cpu_before + time.process_time() - self.cpu_started,
                "fingerprint": checkpoint.fingerprint(self.data),
                "origin": self.origin,
                "rows": self.data.rows,
                "control": self.data.control,
                "size_factor": self.data.size_rule,
                "adjustment": self.data.adjustment,
                "retired": [self.running[chain] for chain in torch.nonzero(~self.alive).flatten().tolist()],
                "stopped": [one.to_dict() for one in self.stopped],
                "compiled": self.objective.compiled,
                "number": self.number,
            },
            data=self.data,
            units=self.units,
        )
        if self.path is not None:
            result.save(self.path)
        return result

    def _some_rows(self) -> Batch:
        """Training rows on which gates are settled, standing for all of them."""
        generator = torch.Generator().manual_seed(mix(self.seed, 25))
        pick = torch.randperm(self.train.rows, generator=generator)[:SETTLING_ROWS].to(self.device)
        if self.program.uses_rows:
            return self._annealed(self._take(pick), 1.0)
        return self._annealed(self.train.tensors(self.device, self.recipe.dtype).take(pick), 1.0)

    def _save_starts(self, at_once: bool = False) -> None:
        """A checkpoint of the chains that have started, where starts take long: the others have not."""
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        if self.path is not None and (late or at_once) and 0 < len(self.made) < self.recipe.chains:
            states = [one.state_dict() for one in self.made]
            tensors = {f"state.{k}": torch.stack([s[k] for s in states]) for k in states[0]}
            checkpoint.write(self.path, tensors, self._header(self.made[0]))
            self.saved = time.perf_counter()

    def _take_starts(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Chains as far as a checkpoint has them."""
        states = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
        for chain in range(len(next(iter(states.values())))):
            one = self.program.fresh().to(self.recipe.dtype)
            if header["completion"] is not None:
                one.complete_with(Completion(header["completion"]).to(dtype=self.recipe.dtype))
            one.load_state_dict({k: v[chain] for k, v in states.items()})
            self.made.append(one)
        self.running = header.get("running", self.running)
        self.stopped = [Stopped(**one) for one in header.get("stopped", [])]
        self.seconds_before, self.cpu_before = header["seconds"], header["cpu_seconds"]
        self.before = header.get("before", 0)

    def _header(self, program: Program) -> dict[str, Any]:
        return self._identity() | {
            "finished": False,
            "before": self.before,
            "running": self.running,
            "stopped": [one.to_dict() for one in self.stopped],
            "origin": self.origin,
            "completion": None if program.completion is None else program.completion.spec,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
            "cpu_seconds": self.cpu_before + time.process_time() - self.cpu_started,
        }

    def _save(self) -> None:
        if self.path is None:
            return
        tensors = {f"state.{k}": v for k, v in self._state().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        adam = self.optimiser.state_dict()["state"]
        for index, entry in adam.items():
            tensors |= {f"adam.{index}.{k}": v for k, v in entry.items()}
        tensors |= {"alive": self.alive, "best_score": self.best_score}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
        tensors = {k: v.detach().cpu() for k, v in (tensors | self._get_generators()).items()}
        header = self._header(self.chains.program) | {
            "epoch": self.epoch,
            "step": self.step,
            "best_epoch": self.best_epoch,
            "batched": self.chains.batched,
        }
        checkpoint.write(self.path, tensors, header)
        self.saved = time.perf_counter()

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.program.card.name,
            "config": self.program.arguments,
            "seed": self.seed,
            "recipe": plain(self.recipe),
            "fingerprint": checkpoint.fingerprint(self.data),
            "size_factor": self.data.size_rule,
        }

    def _check_same(self, header: dict[str, Any], argument: str) -> None:
        """Raise InputError unless this is the fit that was interrupted ("resume"), or that goes on ("start")."""
        for key, mine in self._identity().items():
            if key == "recipe" and argument == "start":
                continue
            mine, theirs = plain(mine), header.get("meta", {}).get(key, header.get(key))
            if key == "recipe" and mine != theirs:
                key = next(field for field in mine if mine[field] != theirs.get(field))
                mine, theirs = mine[key], theirs.get(key)
            if mine != theirs:
                what = "data" if key == "fingerprint" else key
                found = "other data" if key == "fingerprint" else f"{what} {_short(theirs)}"
                kind = "a checkpoint" if argument == "resume" else "a fit"
                reject(argument, f"{kind} with {found}", f"the same {what} as before ({_short(mine)})")
        refuse_other_text(argument, header, self.origin)
        if header["finished"] and argument == "resume":
            further = "pyrocrl.load reads this one, and start=, in the shell --more, goes on with it"
            reject("resume", f"a finished fit in {self.path}", f"an interrupted fit; {further}")

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Take up an interrupted fit whose chains have started."""
        self.best = {name: tensors[f"best.{name}"].to(self.device) for name in self._state()}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, entry = key.split(".")
                state.setdefault(int(index), {})[entry] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.alive = tensors["alive"].to(self.device)
        self.best_score = tensors["best_score"].to(self.device)
        self.history = tensors["history"].tolist()
        self.epoch, self.step, self.best_epoch = header["epoch"], header["step"], header["best_epoch"]
        self.generators = {k: v for k, v in tensors.items() if k.startswith("generator.") and self.step}
        self.chains.batched = header["batched"]


def _duration(seconds: float) -> str:
    """In words: seconds, minutes or hours."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, Recipe):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, torch.dtype) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
