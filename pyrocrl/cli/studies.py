"""Commands that measure: reproduce, calibrate, bench; and the demo."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pyrocrl.cli.app import app
from pyrocrl.cli.arguments import Force, Json, ModelName, Quiet, Seed
from pyrocrl.cli.runs import (
    CHECKPOINT,
    POSTERIOR,
    REPORT,
    RUN,
    check_fit,
    check_out,
    fit_and_write,
    read_record,
    writing,
)
from pyrocrl.cli.sources import read_data, source_of_run
from pyrocrl.cli.tables import print_json, print_table
from pyrocrl.errors import reject

# the demo's pages: model -> title, options, chains, epochs; both see the same cells
DEMO: dict[str, tuple[str, dict[str, Any], int | None, int | None]] = {
    "linear_sem_lin": ("Graph and effects", {}, None, None),
    "sparse_vae": ("Programmes", {"latents": 6}, 4, None),
}
DEMO_DRAWS = 10  # of the posterior, per chain


@app.command()
def reproduce(
    model: ModelName,
    setting: Annotated[str | None, typer.Option(metavar="S", help="One setting only.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0:8, 3 or 0,2,5.  [default: each study's]")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Results file, rewritten after every seed.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Seeds at a time, one thread each.")] = 1,
) -> None:
    """Reproduce a model's figures on its settings, every seed shown."""
    from pyrocrl.judge.metric_table import HEADLINE, METRICS
    from pyrocrl.lab import reproduce as runner
    from pyrocrl.lab.provenance import parse_seeds
    from pyrocrl.lab.studies import Study, readable

    wanted = None if seeds is None else parse_seeds(seeds)

    def tell(study: Study, row: dict[str, Any]) -> None:
        metrics = row.get("metrics", {})
        shown = ", ".join(f"{k} {METRICS[k].text(metrics[k])}" for k in HEADLINE if metrics.get(k) is not None)
        print(f"{study.label}, seed {row['seed']}: {row.get('failed') or shown}", file=sys.stderr, flush=True)

    table = runner.reproduce(model, setting, wanted, json_file, jobs, tell)
    for entry in table["studies"]:
        options = readable(entry["options"])
        print(f"\n{model} on {entry['setting']}" + (f" ({options})" if options else ""))
        print(runner.study_table(entry))
        for row in entry["seeds"]:
            if "knockouts" in row:
                print(runner.knockout_table(row["knockouts"]))
    failed = sum(entry["summary"].get("failed", 0) for entry in table["studies"])
    if failed:
        raise RuntimeError(f"{failed} fits failed")


@app.command()
def calibrate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model, fitted to data of its own story, or its file.")
    ] = None,
    around: Annotated[
        Path | None, typer.Option(metavar="RUN", help="In its place: data drawn from the posterior of this run.")
    ] = None,
    truths: Annotated[
        Literal["prior", "fit"], typer.Option(help="Of MODEL: from its prior, or from a fit to the model's example.")
    ] = "prior",
    sets: Annotated[int, typer.Option(help="Data sets, a fit each.")] = 200,
    rows: Annotated[
        int | None, typer.Option(metavar="N", help="Rows of each environment.  [default: as many as there are]")
    ] = None,
    chains: Annotated[int | None, typer.Option(help="Independent fits of each.  [default: the model's]")] = None,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Results file, rewritten after every set; what it holds is kept."),
    ] = None,
) -> None:
    """Ask whether intervals cover what they say: fit data whose truth is known, drawn from a model's own story."""
    import pyrocrl
    from pyrocrl import zoo

    if (model is None) == (around is None):
        reject("MODEL", "neither it nor --around" if model is None else "both it and --around", "one of them")

    def tell(one: Any) -> None:
        print(f"set {one['set']}: {one.get('failed') or str(one['seconds']) + ' s'}", file=sys.stderr, flush=True)

    told: dict[str, Any] = {"sets": sets, "rows": rows, "chains": chains, "seed": seed}
    if around is not None:
        record = read_record(around)
        data = read_data(source_of_run(record, None, {}))
        found = pyrocrl.load(around / CHECKPOINT, data)
        found.check_own(RUN, record.get("fit"))
        out = pyrocrl.calibrate(around=found, **told, path=json_file, on_set=tell)
    else:
        assert model is not None
        program, data = zoo.get(model).example(seed)
        if truths == "fit":
            found = pyrocrl.fit(program, data, seed=seed, device="cpu", progress=False)
            out = pyrocrl.calibrate(around=found, **told, path=json_file, on_set=tell)
        else:
            out = pyrocrl.calibrate(program, data, **told, path=json_file, on_set=tell)
    print(out)
    if around is not None:
        print("\n" + out.sentence())


@app.command()
def bench(threads: Annotated[int, typer.Option(help="Threads of the fits.")] = 2, as_json: Json = False) -> None:
    """Measure what chains and Pyro cost: ratios of times taken in one run."""
    from pyrocrl.lab import bench as benchmark

    found = benchmark.run(progress=not as_json, threads=threads)
    print_json(found) if as_json else print(benchmark.table(found))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")] = Path("runs/demo"),
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a small Perturb-seq screen; recover latents, their graph and effects of setting them, with verdicts."""
    # before torch is loaded: so few rows gain nothing from threads, which on busy cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from pyrocrl import io
    from pyrocrl.lab import demo as tables
    from pyrocrl.show.effects import effects

    first, second = DEMO
    folders = {first: out, second: out / second}
    check_out(out, force, resume=False)
    kinds = {model: check_fit(model, DEMO[model][1], None, None, seed, "auto", None) for model in DEMO}
    source = {"data": "perturb_seq", "seed": seed}
    rows = read_data(source)
    knocked = ", ".join(f"{gene} in latent_{k[0]}" for gene, k in (rows.targets or {}).items())
    print(
        f"Simulated: {rows.rows:,} cells, counts of {rows.features} genes. Behind them {rows.truth['z'].shape[1]} gene "
        f"programmes, none of them measured,\nthat regulate each other. Knock-outs: {knocked}."
    )
    verdicts, found = {}, {}
    with writing(out, None):
        for model, (title, build, chains, epochs) in DEMO.items():
            print(f"\nFitting {model} for {title[0].lower()}{title[1:]} ...", flush=True)
            pages = {
                DEMO[other][0]: None if other == model else os.path.relpath(folder / REPORT, folders[model])
                for other, folder in folders.items()
            }
            with contextlib.redirect_stdout(None):  # scores and the like stand in the report
                found[model], verdicts[model] = fit_and_write(
                    kinds[model],
                    rows,
                    source,
                    build,
                    folders[model],
                    chains,
                    epochs,
                    seed,
                    "auto",
                    DEMO_DRAWS,
                    False,
                    quiet,
                    pages,
                )
    print(
        "\nThe graph over latents: probability of each edge, weight with its 90 % interval, and the simulated weight\n"
    )
    tree = io.read_tree(out / POSTERIOR)
    print_table(["edge", "probability", "weight", "truth"], tables.edge_rows(found[first], rows, tree))
    print("\nWhat do(latent = its mean + 1 sd) changes: other latents, and the genes that respond most\n")
    changed = tables.effect_rows(found[first], rows, effects(found[first], rows))
    print_table(["set", "changes", "by", "truth"], changed)
    print("\nMay this be believed?\n")
    for model, verdict in verdicts.items():
        print(verdict)
        print(f"  report: {folders[model] / REPORT}\n")
    print(f"Open {out / REPORT}; its second tab shows the programmes.")
