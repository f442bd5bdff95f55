"""Folders of runs: a fit and all that it writes, and what is read of it again."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrocrl.cli.app import Interrupted
from pyrocrl.cli.sources import data_of_run
from pyrocrl.errors import check_path, one_of, reject
from pyrocrl.files import LOCK, held

if TYPE_CHECKING:
    from pyrocrl.data import Data
    from pyrocrl.infer.fitted import Fit
    from pyrocrl.judge.diagnose import Verdict
    from pyrocrl.program import Program

CHECKPOINT, POSTERIOR, SCORES = "checkpoint.safetensors", "posterior.nc", "scores.json"
VERDICT, REPORT, RUN = "verdict.json", "report.html", "run.json"
RESULTS = (CHECKPOINT, POSTERIOR, SCORES, VERDICT, REPORT, RUN)
KEPT_ROWS, KEPT_NUMBERS = 1_000, 20_000_000  # posterior.nc thins rows to about the one, draws to about the other


def check_fit(
    model: str | type[Program],
    build: dict[str, Any],
    chains: int | None,
    epochs: int | None,
    seed: int,
    device: str,
    draws: int | None,
) -> type[Program]:
    """The model's class; refuses what can be refused before the data are read."""
    from pyrocrl import zoo
    from pyrocrl.infer.fit import resolve_device
    from pyrocrl.infer.number import asked
    from pyrocrl.options import Seed as SeedHint
    from pyrocrl.options import Size, conform
    from pyrocrl.program import check_options

    for name, number in (("--draws", draws), ("chains", chains), ("epochs", epochs)):
        conform(name, number, Size | None)
    conform("--seed", seed, SeedHint)
    resolve_device(device)
    kind = zoo.get(model, "MODEL")
    left = asked(kind, build.get("latents")) is not None
    check_options(kind, {name: value for name, value in build.items() if name != "latents" or not left})
    return kind


def fit_and_write(
    kind: type[Program],
    rows: Data,
    source: dict[str, Any],
    build: dict[str, Any],
    out: Path,
    chains: int | None,
    epochs: int | None,
    seed: int,
    device: str,
    draws: int | None,
    resume: bool,
    quiet: bool,
    pages: dict[str, str | None] | None = None,
    going: bool = False,
    compiled: bool = False,
    stop_behind: bool | None = None,
    perturbed: int = 2,
) -> tuple[Fit, Verdict]:
    """Fit and write everything into `out`; `pages`: of the report, see `show.report.write`. going: with the finished
    fit that is there. compiled: steps. stop_behind: as in `Recipe`. perturbed:
    chains, as in `diagnose`."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.infer.fit import check_chains, recipe_of, resolve_device
    from pyrocrl.lab.provenance import provenance
    from pyrocrl.lab.reproduce import score_table

    program, name = pyrocrl.build(kind, rows, **build), kind.card.name
    started = time.perf_counter()
    print(rows)
    found = _finished(out, program, rows, seed, epochs) if resume else None
    if found is None:
        # refused before anything is removed
        check_chains(program, rows, recipe_of(program, None, chains, epochs, {}), resolve_device(device))
        start = pyrocrl.load(out / CHECKPOINT, rows, kind) if going else None
        stale = [] if resume or not out.is_dir() else [out / name for name in RESULTS]

        def clear(epoch: int = 0) -> None:
            while stale:
                stale.pop().unlink(missing_ok=True)

        on: dict[str, Any] = {}
        if start is None:
            clear()
        else:  # once it goes on
            stale.remove(out / CHECKPOINT)
            on = {"start": start, "on_epoch": clear}
        for path in out.glob("*.part"):
            path.unlink(missing_ok=True)
        effort = chains, epochs, seed, device, not quiet
        if stop_behind is not None:
            on["stop_behind"] = stop_behind
        found = pyrocrl.fit(program, rows, *effort, out=out, resume=resume, compile=compiled, **on)
    print(found)
    if (number := found.number()) is not None:
        print(number)
    kept = min(rows.rows, KEPT_ROWS)
    if draws is None:
        draws = min(100, max(20, KEPT_NUMBERS // (found.chains.count * rows.features * kept)))
    tree = found.posterior(draws, rows, thin=rows.rows // kept, seed=seed)
    io.write_tree(tree, out / POSTERIOR)
    if rows.truth:
        scores = pyrocrl.evaluate(found, rows)
        io.write_json({"fit": found.digest, **scores}, out / SCORES)
        print("\n" + score_table(scores, name))
    verdict = write_report(found, rows, tree, out, pages, perturbed)
    print(f"\n{verdict}")
    record = {
        "model": name,
        "fit": found.digest,
        "origin": found.meta.get("origin"),
        "build": build,
        "number": None if number is None else number.to_dict(),
        "source": source,
        "chains": found.chains.count,
        "stop_behind": found.meta["recipe"].get("stop_behind", False),
        "stopped": found.meta.get("stopped", []),
        "epochs": found.meta["epochs"],
        "seed": seed,
        "device": found.meta["device"],
        "compiled": found.meta.get("compiled", False),
        "draws": draws,
        "rows": rows.rows,
        "features": rows.features,
        "control": rows.control,
        "counts": rows.counts,
        "size_factor": rows.size_rule,
        "assumed": rows.assumed,
        "seconds": time.perf_counter() - started,
        "fit_seconds": found.meta["seconds"],
        "fit_cpu_seconds": found.meta["cpu_seconds"],
        **provenance(),
    }
    io.write_json(record, out / RUN)  # last: a folder that holds it is complete
    print(f"\n{out / REPORT}")
    return found, verdict


def write_report(
    found: Fit,
    data: Data,
    tree: Any,
    out: Path,
    pages: dict[str, str | None] | None = None,
    perturbed: int = 2,
) -> Verdict:
    """Diagnose, write verdict.json and report.html."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.show import report as page

    scores = json.loads((out / SCORES).read_text(encoding="utf-8")) if (out / SCORES).exists() else None
    if scores is not None:
        found.check_own(SCORES, scores.pop("fit", None))
    verdict = pyrocrl.diagnose(found, data, perturbed=perturbed)
    io.write_json(verdict.to_dict(), out / VERDICT)
    page.write(found, tree, verdict, scores, out / REPORT, pages)
    return verdict


def _finished(out: Path, program: Any, data: Data, seed: int, epochs: int | None) -> Fit | None:
    """The fit in `out` if it is finished and only its posterior and report are not; None if it is to go on."""
    import pyrocrl
    from pyrocrl.infer import checkpoint
    from pyrocrl.infer.origin import origin, refuse_other_text

    path = out / CHECKPOINT
    if not path.exists():
        return None
    _, header = checkpoint.read(path)
    if not header.get("finished"):
        return None
    meta = header["meta"]
    mine = {"model": program.card.name, "config": program.arguments, "seed": seed, "data": checkpoint.fingerprint(data)}
    theirs = {
        "model": header["model"],
        "config": header["config"],
        "seed": meta["seed"],
        "data": meta["fingerprint"],
        "epochs": meta["recipe"]["epochs"],
    }
    if epochs is not None:
        mine["epochs"] = epochs
    for key, value in mine.items():
        if json.loads(json.dumps(value)) != theirs[key]:
            reject("--resume", f"a fit with another {key} in {out}", f"the same {key} as before")
    refuse_other_text("--resume", header, origin(type(program)))
    return pyrocrl.load(path, data, type(program))


def builds_of(kinds: dict[str, type[Program]], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each model is built with: options named after it, and those without a name where it takes them."""
    takes = {name: kind.options() for name, kind in kinds.items()}
    builds: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for key, value in options.items():
        model, _, name = key.rpartition(".")
        if model:
            one_of("--option", model, kinds)
        fed = [model] if model else [m for m in kinds if name in takes[m]]
        if not fed:
            reject("--option", repr(key), "an option of one of the models")
        for m in fed:
            builds[m][name] = value
    return builds


def read_record(run: Path) -> dict[str, Any]:
    path = run / RUN
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(record["source"], dict) and isinstance(record["seed"], int)
    except FileNotFoundError:
        if (run / CHECKPOINT).exists():
            reject("RUN", f"{str(run)!r}, an unfinished fit", "a finished one; `pyrocrl fit ... --resume` ends it")
        reject("RUN", f"no {RUN} in {str(run)!r}", "a folder that `pyrocrl fit` wrote")
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        reject("RUN", f"a damaged {RUN} in {str(run)!r}", "a folder that `pyrocrl fit` wrote")
    return record


def check_files(wanted: Mapping[str, Path | None], force: bool) -> None:
    """Of options such as --csv: one of them or more, each a file of that ending that is not there yet."""
    if all(path is None for path in wanted.values()):
        first, *others = wanted
        reject(first, f"neither it nor {', '.join(others)}", "one of them or more")
    for option, path in wanted.items():
        if path is not None and path.suffix != f".{option[2:]}":
            reject(option, f"{str(path)!r}", f"a file ending in .{option[2:]}")
        if path is not None and path.exists() and not force:
            reject(option, f"{str(path)!r}, which exists", "a new file, or --force")


def run_and_rows(
    run: Path, model: str | None, data: str | None, reading: dict[str, Any], *told: Any
) -> tuple[Fit, Data]:
    """A run's fit, and its rows or new ones."""
    import pyrocrl

    record = read_record(run)
    rows = data_of_run(record, data, reading, *told)
    found = pyrocrl.load(run / CHECKPOINT, program=model)
    found.check_own(RUN, record.get("fit"))
    return found, rows


def write_predicted(values: Any, table: Any, csv: Path | None, nc: Path | None) -> None:
    from pyrocrl import io
    from pyrocrl.show import export as exports

    if csv is not None:
        print(exports.write_csv(table, csv))
    if nc is not None:
        print(io.write_dataset(values, nc))


def check_out(
    out: Path, force: bool, resume: bool, holds: tuple[str, ...] = (CHECKPOINT,), going: bool = False
) -> None:
    """--out is new, or meant to be written over, or holds a fit to go on with, whose checkpoint is `holds` in it:
    `resume` an interrupted one, `going` a finished one."""
    if force and (resume or going):
        reject("--resume" if resume else "--more", "together with --force", "one of them")
    from pyrocrl.infer import checkpoint

    check_path("--out", out)
    if out.exists() and not out.is_dir():
        reject("--out", f"{str(out)!r}, which is a file", "a folder")
    parent = next(p for p in [out, *out.absolute().parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reject("--out", f"{str(out)!r}, and {str(parent)!r} cannot be written", "a folder that can be written")
    if resume and not out.joinpath(*holds).exists():
        reject("--resume", f"no checkpoint in {str(out)!r}", "the folder of an interrupted fit")
    if resume and (out / RUN).exists() and checkpoint.read(out / CHECKPOINT)[1]["finished"]:
        further = "--more EPOCHS goes on with this one"
        reject("--resume", f"a finished fit in {str(out)!r}", f"an interrupted fit; {further}")
    if going and not (out / RUN).exists():
        reject("--more", f"no finished fit in {str(out)!r}", "a folder that `pyrocrl fit` wrote to its end")
    if not (force or resume or going) and out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        reject("--out", f"{str(out)!r}, which holds files", "a new folder, --force to write over or --resume to go on")


@contextlib.contextmanager
def writing(out: Path, command: str | None) -> Iterator[None]:
    """`out` is this process's to write; Ctrl-C ends in one line that says what goes on there: `command`, if any."""
    try:
        with held(out, "--out"):
            yield
    except KeyboardInterrupt:
        if command is None:
            raise Interrupted("interrupted; --force begins anew") from None
        if not any(out.rglob(CHECKPOINT)):
            raise Interrupted(f"interrupted before the first checkpoint; `{command} ...` begins anew") from None
        raise Interrupted(f"interrupted; `{command} ... --resume` goes on with what is in {out}") from None
