"""Commands that take something from a run: export, fill, translate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrocrl.cli.app import app
from pyrocrl.cli.arguments import (
    Batch,
    Control,
    Counts,
    Env,
    Force,
    Level,
    OwnModel,
    OwnSource,
    PredictedFile,
    RunFolder,
    SizeFactor,
    Targets,
    reading_options,
)
from pyrocrl.cli.runs import CHECKPOINT, POSTERIOR, VERDICT, check_files, read_record, run_and_rows, write_predicted
from pyrocrl.cli.sources import read_data, source_of_run
from pyrocrl.errors import reject

if TYPE_CHECKING:
    pass


@app.command()
@reading_options
def export(
    reading: dict[str, Any],
    run: RunFolder,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table of latents, a row for each of the data's.")
    ] = None,
    h5ad: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The data as AnnData, with latents, loadings, graph and verdict in it."),
    ] = None,
    data: OwnSource = None,
    env: Env = None,
    control: Control = None,
    targets: Targets = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    model: OwnModel = None,
    force: Force = False,
) -> None:
    """Write what a run found for other tools: latents of its rows, or of new ones, as CSV or into an AnnData."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.judge.diagnose import Verdict
    from pyrocrl.show import export as exports

    check_files({"--csv": csv, "--h5ad": h5ad}, force)
    source = source_of_run(read_record(run), data, reading, env, control, targets, counts, size_factor, batch)
    if not (run / VERDICT).exists():
        reject("RUN", f"no {VERDICT} in {str(run)!r}", "one with it; `pyrocrl report` writes it")
    rows = read_data(source)
    found = pyrocrl.load(run / CHECKPOINT, rows, model)
    if csv is not None:
        print(exports.write_csv(exports.to_frame(found), csv))
    if h5ad is not None:
        own = Path(source["data"])
        adata = io.read_h5ad(own) if own.suffix == ".h5ad" else io.to_anndata(rows)
        judged = json.loads((run / VERDICT).read_text())
        verdict = Verdict.from_dict(judged)
        exports.to_anndata(found, None, adata, verdict=verdict, tree=io.read_tree(run / POSTERIOR))
        print(exports.write_h5ad(adata, h5ad))


@app.command()
@reading_options
def fill(
    reading: dict[str, Any],
    run: RunFolder,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The table, missing values filled in with their means.")
    ] = None,
    nc: PredictedFile = None,
    level: Level = 0.9,
    draws: Annotated[int, typer.Option(help="Of each chain's posterior.")] = 50,
    data: OwnSource = None,
    env: Env = None,
    control: Control = None,
    batch: Batch = None,
    model: OwnModel = None,
    force: Force = False,
) -> None:
    """Fill in values that are missing, in a run's rows or in new ones, with intervals."""
    from pyrocrl import predict

    check_files({"--csv": csv, "--nc": nc}, force)
    found, rows = run_and_rows(run, model, data, reading, env, control, None, None, None, batch)
    filled = predict.fill(found, rows, level=level, draws=draws)
    measured = filled["measured"].to_numpy()
    write_predicted(filled, predict.filled_frame(rows, filled), csv, nc)
    print(f"{int((~measured).sum())} of {measured.size} values filled in")


@app.command()
@reading_options
def translate(
    reading: dict[str, Any],
    run: RunFolder,
    to: Annotated[str, typer.Option(metavar="VIEW", help="The view to tell; rows need another one.")],
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Means of the view, a row for each of the data's.")
    ] = None,
    nc: PredictedFile = None,
    level: Level = 0.9,
    data: OwnSource = None,
    env: Env = None,
    control: Control = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    model: OwnModel = None,
    force: Force = False,
) -> None:
    """Tell one view of a run's rows, or of new ones, from the other views that they have, with intervals."""
    from pyrocrl import predict

    check_files({"--csv": csv, "--nc": nc}, force)
    found, rows = run_and_rows(run, model, data, reading, env, control, None, counts, size_factor, batch)
    told = predict.translate(found, rows, to, level=level)
    write_predicted(told, told["mean"].to_pandas(), csv, nc)
