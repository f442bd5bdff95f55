"""`pyrocrl bench`: what chains and Pyro cost, as ratios of times measured in turns (A B A B) in one run.

(a) chains: CPU time of 16 chains of `sparse_vae` in one fit over that of 16 fits of one chain, on two threads;
(b) step: CPU time of a step of `pyrocrl.fit` over that of the same objective in bare torch (`BareVAE` below), for
    one chain and for 8;
(c) throughput: seconds for a million cells to pass once through a fit of 8 chains;
(d) compiled: CPU time of a compiled step of `pyrocrl.fit` over that of a recorded one;
(e) launches: operators that a step of each model calls, each a kernel where there is a GPU.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocrl import recorded, simulate, zoo
from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer.chains import clip_by_chain
from pyrocrl.infer.fit import fit, recipe_of
from pyrocrl.infer.loop import Loop, steps_per_epoch
from pyrocrl.lab.provenance import provenance
from pyrocrl.lab.reproduce import format_table
from pyrocrl.program import Program
from pyrocrl.turns import drawing

THREADS = 2
CHAINS = 16
EPOCHS = 10
STEPS = 40
ROUNDS = 5


class BareVAE(nn.Module):
    """The objective of `vae` with Gaussian noise in torch alone, started at a program's weights."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        features, latents, hidden = (program.config[k] for k in ("features", "latents", "hidden"))

        def mlp(first: int, last: int) -> nn.Sequential:
            sizes = (nn.Linear(first, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            return nn.Sequential(*sizes, nn.Linear(hidden, last))

        self.encoder, self.decoder = mlp(features, 2 * latents), mlp(latents, features)
        self.encoder.load_state_dict(program.encoder.net.state_dict())
        self.decoder.load_state_dict(program.decoder.state_dict())
        self.shift = nn.Parameter(program.shift.detach().clone())
        self.raw_noise = nn.Parameter(program.raw_noise.detach().clone())
        self.centre, self.spread = program.encoder.centre.clone(), program.encoder.spread.clone()

    def forward(self, x: Tensor, kl_weight: Tensor) -> Tensor:
        """Minus the one-draw ELBO per row: x (rows, feature)."""
        loc, raw = self.encoder((x - self.centre) / self.spread).chunk(2, -1)
        scale = softplus(raw + math.log(math.expm1(0.5))) + 1e-4
        noise = torch.randn(loc.shape)
        z = loc + scale * noise
        sd = softplus(self.raw_noise) + 1e-4
        residual = (x - self.decoder(z) - self.shift) / sd
        likelihood = -0.5 * residual.square() - sd.log() - 0.5 * math.log(2 * math.pi)
        prior = 0.5 * (noise.square() - z.square()) + scale.log()
        return -(likelihood.sum() + kl_weight * prior.sum()) / x.shape[0]


def run(
    progress: bool = True, threads: int = THREADS, rounds: int = ROUNDS, epochs: int = EPOCHS, steps: int = STEPS
) -> dict[str, Any]:
    """Every measurement, with versions. On a machine with other work, more than one thread mostly waits for it."""
    if threads < 1:
        reject("threads", str(threads), "a whole number from 1 on")
    out: dict[str, Any] = {"threads": threads}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        for name, measure in (
            ("chains", lambda: chains(max(1, rounds // 3), epochs)),
            ("step", lambda: step(rounds, steps, 1)),
            ("chains_step", lambda: step(rounds, steps, 8)),
            ("throughput", lambda: throughput(epochs)),
            ("compiled", lambda: compiled(rounds, steps)),
            ("launches", launches),
        ):
            if progress:
                print(f"measuring {name} ...", file=sys.stderr, flush=True)
            out[name] = measure()
    torch.set_num_threads(before)
    return out | provenance()


def chains(rounds: int, epochs: int, count: int = CHAINS) -> dict[str, float]:
    """CPU seconds of one fit of `count` chains of `sparse_vae` and of `count` fits of one, in turns.

    A whole fit by the model's recipe takes minutes, so fits of 1 and of 1 + `epochs` epochs are timed: start, end and
    every epoch cost what they cost there, and the recipe's number of epochs is put in.
    """
    data = simulate.draw("moran2022", seed=100)
    program = zoo.build("sparse_vae", data, latents=5)

    def together(length: int) -> None:
        fit(program, data, count, length, device="cpu", progress=False, patience=None)

    def one_by_one(length: int) -> None:
        for seed in range(count):
            fit(program, data, 1, length, seed=seed, device="cpu", progress=False, patience=None)

    short = _in_turns(lambda: together(1), lambda: one_by_one(1), rounds, time.process_time)
    long = _in_turns(lambda: together(1 + epochs), lambda: one_by_one(1 + epochs), rounds, time.process_time)
    epoch = [(b - a) / epochs for a, b in zip(short, long, strict=True)]
    steps = steps_per_epoch(program, program.recipe, data.rows - int(program.recipe.held_out * data.rows))
    length, _ = program.recipe.length(steps)
    whole = [a + (length - 1) * e for a, e in zip(short, epoch, strict=True)]
    return {
        "chains": count,
        "epochs": length,
        "together_cpu_s": whole[0],
        "one_by_one_cpu_s": whole[1],
        "together_cpu_s_per_epoch": epoch[0],
        "one_by_one_cpu_s_per_epoch": epoch[1],
        "ratio": whole[0] / whole[1],
    }


def step(rounds: int, steps: int, count: int) -> dict[str, float]:
    """CPU milliseconds of a step of the fit of `count` chains of `vae`, and of the same objective in bare torch.

    256 rows x 100 features, hidden layers of 128, one thread: more would only add waiting to what is compared. One
    chain in bare torch is an ordinary eager step; several are vmapped, as those of the fit are. Both clip each
    chain's gradient and step one Adam.
    """
    loop, bare, batch = step_pair(count)
    params, _ = stack_module_state(bare)
    eager = list(bare[0].parameters())
    trained = eager if count == 1 else [p.detach().requires_grad_() for p in params.values()]
    stacked = dict(zip(params, trained, strict=True))
    optimiser = torch.optim.Adam(trained, lr=loop.recipe.lr)

    def objective(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(bare[0], parameters, (batch.x, batch.kl_weight))

    def with_pyro() -> None:
        for _ in range(steps):
            loop._step(batch, 0.5)

    def without() -> None:
        for _ in range(steps):
            if count == 1:
                gradients = torch.autograd.grad(bare[0](batch.x, batch.kl_weight), trained)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.grad = gradient
                nn.utils.clip_grad_norm_(trained, loop.recipe.clip)
            else:
                value = vmap(objective, randomness="different")(stacked)
                gradients = torch.autograd.grad(value.sum(), trained)
                clip_by_chain([g.flatten(1) for g in gradients], loop.recipe.clip, loop.alive)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.grad = gradient
            optimiser.step()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pyro.validation_enabled(False):
            a, b = _in_turns(with_pyro, without, rounds, time.process_time)
    finally:
        torch.set_num_threads(threads)
    return {"chains": count, "pyrocrl_ms": 1e3 * a / steps, "torch_ms": 1e3 * b / steps, "ratio": a / b}


def step_pair(
    count: int, rows: int = 256, features: int = 100, hidden: int = 128, epochs: int = 10, compiled: bool = False
) -> tuple[Loop, list[BareVAE], Batch]:
    """A loop of `count` chains of `vae`, the bare objective at the same weights, and a batch for both."""
    rng = np.random.default_rng(100)
    data = Data(rng.standard_normal((2 * rows, 10)) @ rng.standard_normal((10, features)), counts=False)
    program = zoo.build("vae", data, latents=10, hidden=hidden)
    loop = Loop(
        program, data, recipe_of(program, None, count, epochs, {}), 0, torch.device("cpu"), None, compiled=compiled
    )
    batch = loop._annealed(loop.batch.take(torch.arange(rows)), 0.5)
    return loop, [BareVAE(loop.chains.chain(c)) for c in range(count)], batch


def compiled(rounds: int, steps: int, count: int = 1) -> dict[str, Any]:
    """CPU milliseconds of a compiled step and of a recorded one, of `count` chains of `vae`, and their ratio; these are
    None where nothing is compiled. One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with drawing(0):
            loops = [step_pair(count, epochs=recorded.WORTH, compiled=on) for on in (True, False)]

            def run(loop: Loop, batch: Batch) -> None:
                for _ in range(steps):
                    loop._step(batch, 0.5)

            for loop, _, batch in loops:
                while not loop.objective.settled:
                    loop._step(batch, 0.5)
            (fast, _, batch), (slow, _, _) = loops
            if not fast.objective.compiled:
                return {"chains": count, "compiled_ms": None, "recorded_ms": None, "ratio": None}
            a, b = _in_turns(lambda: run(fast, batch), lambda: run(slow, batch), rounds, time.process_time)
    finally:
        torch.set_num_threads(threads)
    return {"chains": count, "compiled_ms": 1e3 * a / steps, "recorded_ms": 1e3 * b / steps, "ratio": a / b}


def throughput(epochs: int, rows: int = 5000, features: int = 300, count: int = 8) -> dict[str, float]:
    """Seconds per million cells and epoch of `sparse_vae` on counts, 15 latents and 8 chains.

    From fits of 1 and of 1 + `epochs` / 5 epochs, so that start and end, which do not grow with epochs, drop out.
    """
    data = simulate.draw("perturb_seq", seed=100, rows=rows, features=features)
    program = zoo.build("sparse_vae", data, latents=15)
    few = max(1, epochs // 5)
    seconds = []
    for length in (1, 1, 1 + few):  # the first also pays what only a first fit does
        started = time.perf_counter()
        fit(program, data, count, length, device="cpu", progress=False, patience=None)
        seconds.append(time.perf_counter() - started)
    per_million = 1e6 * (seconds[2] - seconds[1]) / (rows * few)
    return {"rows": rows, "features": features, "chains": count, "s_per_million_cell_epochs": per_million}


def launches(models: Sequence[str] | None = None, count: int = 2) -> dict[str, int]:
    """Operators, views apart, that one step of `count` chains of each model's example calls; None = all models. Where
    chains run as one, their number does not matter."""
    found = {}
    for name in zoo.built_in() if models is None else models:
        program, data = zoo.get(name).example()
        loop = Loop(program, data, recipe_of(program, None, count, None, {}), 0, torch.device("cpu"), None)
        batch = loop._annealed(loop._sample_batch(), 0.5)
        with drawing(0), _Launches() as counter:
            loop._step(batch, 0.5)
        found[name] = counter.count
    return found


class _Launches(TorchDispatchMode):
    """Counts the operators that are called inside it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _in_turns(
    a: Callable[[], None], b: Callable[[], None], rounds: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median times of a and b, run in turns; what only a first call pays is paid before."""
    times: tuple[list[float], list[float]] = ([], [])
    a()
    for _ in range(rounds):
        for function, taken in zip((a, b), times, strict=True):
            started = clock()
            function()
            taken.append(clock() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def table(found: dict[str, Any]) -> str:
    """The measurements as text."""
    a, c = found["chains"], found["throughput"]
    count = int(a["chains"])
    name = f"CPU s, {count} chains in one fit | {count} fits"
    rows: list[list[Any]] = [[name, a["together_cpu_s"], a["one_by_one_cpu_s"], a["ratio"]]]
    for b in (found["step"], found["chains_step"]):
        name = f"CPU ms, a step of fit | bare torch, chains: {int(b['chains'])}"
        rows.append([name, b["pyrocrl_ms"], b["torch_ms"], b["ratio"]])
    if (d := found.get("compiled")) is not None:
        name = f"CPU ms, a step compiled | recorded, chains: {int(d['chains'])}"
        rows.append([name, d["compiled_ms"], d["recorded_ms"], d["ratio"]])
    name = f"s per million cell-epochs, {int(c['chains'])} chains, {int(c['features'])} genes"
    rows.append([name, c["s_per_million_cell_epochs"], None, None])
    rows += [[f"operators a step, {name}", count, None, None] for name, count in found["launches"].items()]
    return format_table(["measured", "this", "against", "ratio"], rows)
