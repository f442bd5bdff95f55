"""Commands that draw data, fit and score: simulate, fit, compare, evaluate, report."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrocrl.cli.app import app
from pyrocrl.cli.arguments import (
    Batch,
    Control,
    Counts,
    Device,
    Env,
    Force,
    Intervention,
    Json,
    Mechanism,
    ModelName,
    Number,
    Options,
    OwnModel,
    OwnSource,
    Perturbed,
    Quiet,
    RunFolder,
    Seed,
    SizeFactor,
    Source,
    Targets,
    Told,
    reading_options,
)
from pyrocrl.cli.runs import (
    CHECKPOINT,
    POSTERIOR,
    RUN,
    builds_of,
    check_fit,
    check_out,
    fit_and_write,
    read_record,
    run_and_rows,
    write_report,
    writing,
)
from pyrocrl.cli.sources import adjusted, assumed, data_of_run, described, parsed_options, read_data, told_targets
from pyrocrl.cli.tables import print_json, print_table
from pyrocrl.errors import InputError, reject
from pyrocrl.files import held

if TYPE_CHECKING:
    from pyrocrl.judge.compare import Comparison

COMPARISON = "compare.json"
HELD_OUT = 0.1  # of the rows, put aside by `compare`


@app.command()
def simulate(
    setting: Annotated[str, typer.Argument(metavar="SETTING", help="`pyrocrl list settings` names them.")],
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="Where the data go, truth included.")],
    seed: Seed = 0,
    option: Options = None,
    force: Force = False,
) -> None:
    """Draw a setting's data, with their truth, into a .npz file."""
    from pyrocrl import io
    from pyrocrl import simulate as settings

    if out.suffix != ".npz":
        reject("--out", f"{str(out)!r}", "a file ending in .npz")
    if out.exists() and not force:
        reject("--out", f"{str(out)!r}, which exists", "a new file, or --force")
    data = settings.draw(setting, seed, **parsed_options(option))
    io.write(data, out)
    print(f"{out}: {data}")


@app.command()
@reading_options
def fit(
    reading: dict[str, Any],
    model: ModelName,
    data: Source,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder for everything the fit leaves.")],
    latents: Number = None,
    chains: Annotated[int | None, typer.Option(help="Independent fits.  [default: the model's]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.  [default: the model's]")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    draws: Annotated[
        int | None, typer.Option(help="Posterior draws per chain.  [default: 20 to 100, by the size of the data]")
    ] = None,
    intervention: Intervention = None,
    mechanism: Mechanism = None,
    option: Options = None,
    env: Env = None,
    control: Control = None,
    targets: Told = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted fit in --out.")] = False,
    more: Annotated[
        int | None, typer.Option(metavar="EPOCHS", help="Go on with the finished fit in --out for as many epochs more.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile steps: a minute at first, and up to half of their time in long fits."),
    ] = False,
    stop_behind: Annotated[
        bool | None,
        typer.Option(
            "--stop-behind/--no-stop-behind",
            help="Stop chains that fall hopelessly behind, and leave them out.  [default: the model's]",
        ),
    ] = None,
    perturbed: Perturbed = 2,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a model and write checkpoint, posterior, verdict, scores (where there is truth) and report into a folder."""
    file, mode = told_targets(targets)
    source = {"data": data, "seed": seed} | described(env, control, file, counts, size_factor, batch) | reading
    build = parsed_options(option) | assumed(latents, mode, intervention, mechanism)
    if more is not None and epochs is not None:
        reject("--more", f"{more} with --epochs {epochs}", "one of them")
    kind = check_fit(model, build, chains, epochs if more is None else more, seed, device, draws)
    going = more is not None and not resume
    check_out(out, force, resume, going=going)
    with writing(out, "pyrocrl fit"):
        rows = adjusted(read_data(source))
        effort = chains, epochs if more is None else more, seed, device, draws
        fit_and_write(
            kind,
            rows,
            source,
            build,
            out,
            *effort,
            resume,
            quiet,
            going=going,
            compiled=compiled,
            stop_behind=stop_behind,
            perturbed=perturbed,
        )


@app.command()
@reading_options
def compare(
    reading: dict[str, Any],
    models: Annotated[list[str], typer.Argument(metavar="MODEL MODEL ...", help="Two models or more, or files.")],
    data: Source,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder: compare.html, and a folder per model.")],
    latents: Number = None,
    chains: Annotated[int | None, typer.Option(help="Independent fits.  [default: each model's]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.  [default: each model's]")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    intervention: Intervention = None,
    mechanism: Mechanism = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="[MODEL.]K=V", help="As in `fit`, for every model that takes K or for one."),
    ] = None,
    env: Env = None,
    control: Control = None,
    targets: Told = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out; models that are done stay.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fit several models to the same rows and set claims, verdicts, held-out objective and agreement side by side."""
    import pyrocrl
    from pyrocrl import io, zoo
    from pyrocrl.judge.compare import compare as compared
    from pyrocrl.show import report

    source = {"data": data, "seed": seed, "held_out": HELD_OUT}
    file, mode = told_targets(targets)
    source |= described(env, control, file, counts, size_factor, batch) | reading
    if len(set(models)) < 2 or len(set(models)) < len(models):
        reject("MODEL", ", ".join(models), "two or more different models")
    found_kinds = [zoo.get(model, "MODEL") for model in models]
    kinds = {kind.card.name: kind for kind in found_kinds}
    if len(kinds) < len(models):
        reject("MODEL", ", ".join(kind.card.name for kind in found_kinds), "models whose cards have different names")
    told = assumed(latents, mode, intervention, mechanism)
    builds = builds_of(kinds, told | parsed_options(option, dotted=True))
    for name, kind in kinds.items():
        check_fit(kind, builds[name], chains, epochs, seed, device, None)
    check_out(out, force, resume, holds=(next(iter(kinds)), CHECKPOINT))
    every = read_data(source)
    rows, apart = every.split(HELD_OUT, seed)
    rows = adjusted(rows)
    for name, kind in kinds.items():  # refused before the first is fitted
        try:
            pyrocrl.build(kind, rows, **builds[name])
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    fits, verdicts = {}, {}
    quietly = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with writing(out, "pyrocrl compare"), quietly:
        for name, kind in kinds.items():
            print(f"\n== {name}")
            going = resume and (out / name / CHECKPOINT).exists()
            fits[name], verdicts[name] = fit_and_write(
                kind, rows, source, builds[name], out / name, chains, epochs, seed, device, None, going, quiet
            )
        found = compared(fits, apart, verdicts)
        io.write_json(found.to_dict(), out / COMPARISON)
        page = report.write_comparison(found, out)
    if as_json:
        print_json(found.to_dict())
        return
    print()
    _print_comparison(found)
    print(f"\n{page}")


@app.command()
@reading_options
def evaluate(
    reading: dict[str, Any],
    run: RunFolder,
    data: OwnSource = None,
    env: Env = None,
    control: Control = None,
    targets: Targets = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    model: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Score a fit against data with known truth, baselines beside it."""
    import pyrocrl
    from pyrocrl.lab.reproduce import score_table

    found, rows = run_and_rows(run, model, data, reading, env, control, targets, counts, size_factor, batch)
    scores = pyrocrl.evaluate(found, rows)
    print_json(scores) if as_json else print(score_table(scores, found.program.card.name))


@app.command()
@reading_options
def report(
    reading: dict[str, Any],
    run: RunFolder,
    data: OwnSource = None,
    env: Env = None,
    control: Control = None,
    targets: Targets = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    model: OwnModel = None,
    perturbed: Perturbed = 2,
) -> None:
    """Write a run's report.html and verdict anew, from its checkpoint, posterior and data."""
    import pyrocrl
    from pyrocrl import io

    record = read_record(run)
    rows = data_of_run(record, data, reading, env, control, targets, counts, size_factor, batch)
    found = pyrocrl.load(run / CHECKPOINT, rows, model)
    found.check_own(RUN, record.get("fit"))
    tree = io.read_tree(run / POSTERIOR)
    found.check_own(POSTERIOR, tree.attrs.get("fit"))
    with held(run, "RUN"):
        print(write_report(found, rows, tree, run, perturbed=perturbed))


def _print_comparison(found: Comparison) -> None:
    lines = []
    for model in found.models:
        verdicts = "; ".join(f"{c.what}: {c.verdict}" for c in model.claims) or "claims nothing"
        lines.append([model.name, verdicts, model.held_out, model.behind, model.error, model.scores.get("mcc")])
    print_table(["model", "verdict", "held out", "behind", "error", "mcc"], lines)
    print()
    rows = [[p.first, p.second, p.latents, p.up_to, p.edges] for p in found.pairs]
    print_table(["model", "and", "latents agree", "up to", "edges apart"], rows)
