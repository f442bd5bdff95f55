"""The command line. Exit code 0: done; 2: bad input, one line says what is allowed; 1: failed, one line says why.

Whatever is heavy (torch, Pyro, matplotlib) is imported inside the commands.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyrocrl.errors import InputError, check_path, did_you_mean, one_of, reject
from pyrocrl.files import LOCK, held

if TYPE_CHECKING:
    from pyrocrl.data import Data
    from pyrocrl.infer.fitted import Fit
    from pyrocrl.judge.choose import Choice
    from pyrocrl.judge.compare import Comparison
    from pyrocrl.judge.diagnose import Verdict
    from pyrocrl.options import Option
    from pyrocrl.program import Program

CHECKPOINT, POSTERIOR, SCORES = "checkpoint.safetensors", "posterior.nc", "scores.json"
VERDICT, REPORT, RUN = "verdict.json", "report.html", "run.json"
COMPARISON = "compare.json"
IMPUTED, CROSS_VALIDATION = ("imputed.nc", "imputed.csv"), "cross_validation.json"
DISCOVERED = ("targets.nc", "genes.csv", "links.csv", "edges.csv", "drugs.csv", "drugs.nc")
HELD_OUT = 0.1  # of the rows, put aside by `compare`
RESULTS = (CHECKPOINT, POSTERIOR, SCORES, VERDICT, REPORT, RUN)
KEPT_ROWS, KEPT_NUMBERS = 1_000, 20_000_000  # posterior.nc thins rows to about the one, draws to about the other
COLUMNS = ("env", "control", "targets", "counts", "size_factor", "batch")  # options that describe a file
TARGET_MODES = ("known", "relabelled", "unknown")
# the demo's pages: model -> title, options, chains, epochs; both see the same cells
DEMO: dict[str, tuple[str, dict[str, Any], int | None, int | None]] = {
    "linear_sem_lin": ("Graph and effects", {}, None, None),
    "sparse_vae": ("Programmes", {"latents": 6}, 4, None),
}
SHOWN = 20  # lines of a table that `discover` prints
DEMO_DRAWS = 10  # of the posterior, per chain


class Interrupted(Exception):
    """Ctrl-C, with the line to say; typer would end a KeyboardInterrupt without one."""


app = typer.Typer(
    name="pyrocrl",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model; `pyrocrl list` names them. Or a file of yours: ./my_model.py.")
]
OwnModel = Annotated[
    str | None,
    typer.Option("--model", metavar="FILE", help="The run's model, where it is in a file of yours; it is run only so."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `pyrocrl fit` wrote.")]
Seed = Annotated[int, typer.Option(help="Everything random follows it.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="K=V", help="An option by name, V as in JSON; may be repeated."),
]
Source = Annotated[
    str,
    typer.Option(
        metavar="DATA", help="A data set, a setting, or a .csv, .tsv, .npz, .parquet, .h5ad, .zarr or .h5mu file."
    ),
]
OwnSource = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="As in `fit`; without it the data that were fitted.")
]
Number = Annotated[
    str | None,
    typer.Option(metavar="K|auto|LOW-HIGH", help="Number of latents; auto, or a range, leaves it to the data."),
]
Env = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds environments.")]
Control = Annotated[
    str | None,
    typer.Option(metavar="LABEL", help="The observational environment.  [default: the one called ctrl, NT, DMSO, ...]"),
]
Targets = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Latents that environments intervene on: .json, or a .csv of env,latent."),
]
Told = Annotated[
    list[str] | None,
    typer.Option(
        "--targets",
        metavar="MODE|FILE",
        help="What is known of the latents that environments intervene on: known, relabelled or unknown; or a file "
        "that lists them, as .json or a .csv of env,latent. May be given twice, one of each.",
    ),
]
Intervention = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="What interventions do: perfect, soft, variance or shift.  [default: the model's]"
    ),
]
Mechanism = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="Structural equations: linear, nonlinear or relu.  [default: the model's]"),
]
Counts = Annotated[
    bool | None,
    typer.Option(
        "--counts/--no-counts",
        help="Whether features are counts.  [default: whole numbers from 0 on, with a 0 or one above 100]",
    ),
]
SizeFactor = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="The column that holds library sizes of counts, or none for no sizes.  "
        "[default: n_umis_total, n_counts, total_counts or nCount_RNA, or else sums of rows]",
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column that holds technical batches, for models that read them."),
]
# how a file is read: arguments of `io.read` that every command with --data has (see `_reading`)
READING = {
    "pair": Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column that holds pairs: two rows each, before and after.")
    ],
    "series": Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column that holds labels of series: sequences of rows in time."),
    ],
    "step": Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Which row of a pair is before: numbers, or before and after; of series, times of rows, evenly "
            "spaced.  [default: rows are in order]",
        ),
    ],
    "view": Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What the names of a view's features begin with, such as rna_; repeated for each view. Of an AnnData "
            "also a column of var, of a .h5mu a modality, or MODALITY/LAYER.",
        ),
    ],
    "missing": Annotated[
        bool | None,
        typer.Option("--missing", help="Single values may be missing, for models that leave them out."),
    ],
    "adjust": Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of a batch, day or age whose effect is taken out of continuous features; may be repeated.",
        ),
    ],
    "layer": Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A layer of an AnnData, or raw; of a .h5mu MODALITY or MODALITY/LAYER."),
    ],
    "where": Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="Rows to keep: \"column == 'value'\", != or in ['a', 'b']; may be repeated."
        ),
    ],
    "drop": Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column or feature to leave out, or constant; may be repeated."),
    ],
    "index": Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds names of rows.")],
    "sep": Annotated[
        str | None, typer.Option(metavar="CHARACTER", help="What separates columns, or tab.  [default: found]")
    ],
    "combine": Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What stands between the parts of a combination's label: + for A+B, A+ctrl."),
    ],
}
Level = Annotated[float, typer.Option(help="Of the intervals.")]
PredictedFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Means, deviations and intervals, as netCDF.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:index].")]
Force = Annotated[bool, typer.Option("--force", help="Write over what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _reading(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options READING, which it gets as one mapping, `reading`, of those that are given."""
    own = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in READING.items()
    ]

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        given = {name: value for name in READING if (value := values.pop(name))}
        command(**values, reading=given)

    kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.parameters.items() if name != "reading"]
    with_options.__signature__ = own.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in [*kept, *more]}
    return with_options


def _version(asked: bool) -> None:
    if asked:
        import pyrocrl

        print(f"pyrocrl {pyrocrl.__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Causal representation learning as Pyro programs: posteriors over graphs, masks and factors, with a verdict."""


# -- commands: what there is ---------------------------------------------------------------------------------


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="[WHAT]", help="models, settings, datasets or assumptions.")
    ] = "models",
    assumptions: Annotated[bool, typer.Option("--assumptions", help="The same as WHAT = assumptions.")] = False,
    as_json: Json = False,
) -> None:
    """List the models, the simulation settings, the data sets, or which assumption buys which claim."""
    from pyrocrl import datasets, simulate, zoo

    one_of("WHAT", what, ("models", "settings", "datasets", "assumptions"))
    if assumptions or what == "assumptions":
        from pyrocrl.lab.assumptions import table, text

        found = table()
        if as_json:
            _print_json([one.to_dict() for one in found])
        else:
            print(text(found))
        return
    if what == "models":
        cards = zoo.cards()
        if as_json:
            _print_json([card.to_dict() for card in cards])
            return
        rows = [
            [c.name, c.status, "; ".join(dict.fromkeys(map(_identifies, c.claims))) or "nothing", c.title]
            for c in cards
        ]
        _print_table(["model", "status", "identifies", "title"], rows)
        return
    names = simulate.names() if what == "settings" else datasets.names()
    if as_json:
        _print_json(names)
    elif what == "datasets":
        print("\n".join(names))
    else:
        rows = [[name, (inspect.getdoc(simulate.get(name)) or "").split("\n")[0]] for name in names]
        _print_table(["setting", "what it is"], rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, its file, or a setting.")], as_json: Json = False
) -> None:
    """Show a model's card in short, or a setting's equations, and the options of either."""
    from pyrocrl import simulate, zoo
    from pyrocrl.options import options_of

    if not zoo.is_file(name):
        one_of("NAME", name, [*zoo.names(), *simulate.names()])
    if name not in simulate.names():
        kind = zoo.get(name, "NAME")
        told, text, options = kind.card.to_dict(), kind.card.markdown(short=True), kind.options()
    else:
        function = simulate.get(name)
        doc = inspect.getdoc(function) or ""
        told, text, options = {"name": name, "doc": doc}, f"# {name}\n\n{doc}\n", options_of(function)
    if as_json:
        _print_json(told | {"options": [option.to_dict() for option in options.values()]})
    else:
        print(f"{text}\n## Options")
        _print_options(options.values())


# -- commands: simulate, fit, evaluate, report ----------------------------------------------------------------


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
    data = settings.draw(setting, seed, **_options(option))
    io.write(data, out)
    print(f"{out}: {data}")


@app.command()
@_reading
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
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a model and write checkpoint, posterior, verdict, scores (where there is truth) and report into a folder."""
    file, mode = _targets(targets)
    source = {"data": data, "seed": seed} | _told(env, control, file, counts, size_factor, batch) | reading
    build = _options(option) | _assumed(latents, mode, intervention, mechanism)
    if more is not None and epochs is not None:
        reject("--more", f"{more} with --epochs {epochs}", "one of them")
    kind = _check_fit(model, build, chains, epochs if more is None else more, seed, device, draws)
    going = more is not None and not resume
    _check_out(out, force, resume, going=going)
    with _writing(out, "pyrocrl fit"):
        rows = _adjusted(_read_data(source))
        effort = chains, epochs if more is None else more, seed, device, draws
        _fit(
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
        )


@app.command()
@_reading
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
    file, mode = _targets(targets)
    source |= _told(env, control, file, counts, size_factor, batch) | reading
    if len(set(models)) < 2 or len(set(models)) < len(models):
        reject("MODEL", ", ".join(models), "two or more different models")
    found_kinds = [zoo.get(model, "MODEL") for model in models]
    kinds = {kind.card.name: kind for kind in found_kinds}
    if len(kinds) < len(models):
        reject("MODEL", ", ".join(kind.card.name for kind in found_kinds), "models whose cards have different names")
    told = _assumed(latents, mode, intervention, mechanism)
    builds = _builds(kinds, told | _options(option, dotted=True))
    for name, kind in kinds.items():
        _check_fit(kind, builds[name], chains, epochs, seed, device, None)
    _check_out(out, force, resume, holds=(next(iter(kinds)), CHECKPOINT))
    every = _read_data(source)
    rows, apart = every.split(HELD_OUT, seed)
    rows = _adjusted(rows)
    for name, kind in kinds.items():  # refused before the first is fitted
        try:
            pyrocrl.build(kind, rows, **builds[name])
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    fits, verdicts = {}, {}
    quietly = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with _writing(out, "pyrocrl compare"), quietly:
        for name, kind in kinds.items():
            print(f"\n== {name}")
            going = resume and (out / name / CHECKPOINT).exists()
            fits[name], verdicts[name] = _fit(
                kind, rows, source, builds[name], out / name, chains, epochs, seed, device, None, going, quiet
            )
        found = compared(fits, apart, verdicts)
        io.write_json(found.to_dict(), out / COMPARISON)
        page = report.write_comparison(found, out)
    if as_json:
        _print_json(found.to_dict())
        return
    print()
    _print_comparison(found)
    print(f"\n{page}")


@app.command()
@_reading
def choose(
    reading: dict[str, Any],
    data: Source,
    latents: Annotated[
        int | None, typer.Option(metavar="K", help="Number of latents.  [default: as truth or targets say]")
    ] = None,
    intervention: Intervention = None,
    mechanism: Mechanism = None,
    values: Annotated[str, typer.Option(metavar="KIND", help="What latents are: continuous or binary.")] = "continuous",
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="FILE", help="A model in a file of yours; may be repeated.")
    ] = None,
    seed: Seed = 0,
    env: Env = None,
    control: Control = None,
    targets: Told = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    as_json: Json = False,
) -> None:
    """Say which models these data can feed, what each would identify, and what the next stronger claim lacks."""
    from pyrocrl import zoo
    from pyrocrl.judge.choose import FEW_ROWS, environments
    from pyrocrl.judge.choose import choose as judged

    file, mode = _targets(targets)
    source = {"data": data, "seed": seed} | _told(env, control, file, counts, size_factor, batch) | reading
    rows = _adjusted(_read_data(source))
    found = judged(
        rows,
        latents,
        intervention=intervention,
        targets=mode,
        mechanism=mechanism,
        values=values,
        models=tuple(model or ()),
    )
    own = {zoo.get(file).card.name: file for file in model or ()}
    commands = {
        choice.model: _command(own.get(choice.model, choice.model), choice.options, source)
        for choice in found
        if not choice.lacks
    }
    envs = environments(rows)
    if as_json:
        models = [choice.to_dict() | {"command": commands.get(choice.model)} for choice in found]
        _print_json({"data": str(rows), "environments": envs, "models": models})
        return
    print(f"{rows}\n")
    _print_environments(envs, FEW_ROWS)
    print()
    _print_choices(found)
    held = [choice for choice in found if choice.identifies]
    for unread in sorted({choice.unread for choice in held}, key=len):
        without = f" that does not read {' or '.join(unread)}" if unread else ""
        print(f"\nto fit one{without}:")
        for choice in held:
            if choice.unread == unread:
                print(f"  {commands[choice.model]}")


@app.command()
@_reading
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

    found, rows = _run_and_rows(run, model, data, reading, env, control, targets, counts, size_factor, batch)
    scores = pyrocrl.evaluate(found, rows)
    _print_json(scores) if as_json else print(score_table(scores, found.program.card.name))


@app.command()
@_reading
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
) -> None:
    """Write a run's report.html and verdict anew, from its checkpoint, posterior and data."""
    import pyrocrl
    from pyrocrl import io

    record = _read_record(run)
    rows = _data_of_run(record, data, reading, env, control, targets, counts, size_factor, batch)
    found = pyrocrl.load(run / CHECKPOINT, rows, model)
    found.check_own(RUN, record.get("fit"))
    tree = io.read_tree(run / POSTERIOR)
    found.check_own(POSTERIOR, tree.attrs.get("fit"))
    with held(run, "RUN"):
        print(_write_report(found, rows, tree, run))


@app.command()
@_reading
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

    _check_files({"--csv": csv, "--h5ad": h5ad}, force)
    source = _source_of_run(_read_record(run), data, reading, env, control, targets, counts, size_factor, batch)
    if not (run / VERDICT).exists():
        reject("RUN", f"no {VERDICT} in {str(run)!r}", "one with it; `pyrocrl report` writes it")
    rows = _read_data(source)
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
@_reading
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

    _check_files({"--csv": csv, "--nc": nc}, force)
    found, rows = _run_and_rows(run, model, data, reading, env, control, None, None, None, batch)
    filled = predict.fill(found, rows, level=level, draws=draws)
    measured = filled["measured"].to_numpy()
    _write_predicted(filled, predict.filled_frame(rows, filled), csv, nc)
    print(f"{int((~measured).sum())} of {measured.size} values filled in")


@app.command()
@_reading
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

    _check_files({"--csv": csv, "--nc": nc}, force)
    found, rows = _run_and_rows(run, model, data, reading, env, control, None, counts, size_factor, batch)
    told = predict.translate(found, rows, to, level=level)
    _write_predicted(told, told["mean"].to_pandas(), csv, nc)


@app.command()
@_reading
def impute(
    reading: dict[str, Any],
    data: Source,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder: imputed.csv, imputed.nc, the fit.")],
    env: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds perturbations.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds contexts.")] = None,
    control: Control = None,
    level: Level = 0.9,
    folds: Annotated[
        int, typer.Option(help="Parts of every context's pairs, left out in turn to compare methods; 0 = none.")
    ] = 10,
    seed: Seed = 0,
    device: Device = "auto",
    option: Options = None,
    counts: Counts = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict effects never measured, of perturbations in contexts, beside other methods on measured ones left out."""
    import pyrocrl
    from pyrocrl import io, predict
    from pyrocrl.judge.imputation import MODEL, cross_validate
    from pyrocrl.options import Bounds, Share, conform

    build = _options(option)
    kind = _check_fit(MODEL, build, None, None, seed, device, None)
    conform("--level", level, Share)
    if folds != 0:
        conform("--folds", folds, Annotated[int, Bounds(2)])
    _check_out(out, force, False)
    source = {"data": data, "seed": seed} | _told(env, control, None, counts, None, batch) | reading
    rows = _adjusted(_read_data(source))
    program = pyrocrl.build(kind, rows, **build)
    predict.check_missing(rows, "--data")
    say = sys.stderr if as_json else sys.stdout
    with _writing(out, None):
        for path in (*IMPUTED, CROSS_VALIDATION, CHECKPOINT):
            (out / path).unlink(missing_ok=True)
        print(rows, file=say)
        found = pyrocrl.fit(program, rows, seed=seed, device=device, progress=not quiet, out=out)
        table = predict.impute(found, level=level)
        io.write_dataset(table, out / IMPUTED[0])
        io.write_frame(predict.imputed_frame(table), out / IMPUTED[1])
        scores = cross_validate(rows, folds, seed=seed, device=device, progress=not quiet, **build) if folds else []
        io.write_json({"fit": found.digest, "folds": folds, "methods": scores}, out / CROSS_VALIDATION)
    missing = int((table["measured"] == 0).sum())
    if as_json:
        _print_json({"missing": missing, "measured": int(table["measured"].size) - missing, "methods": scores})
        return
    if scores:
        print(f"\nMeasured pairs, left out in {folds} parts:\n")
        columns = list(scores[-1])
        _print_table(columns, [[row.get(name) for name in columns] for row in scores])
    print(f"\n{missing} of {table['measured'].size} pairs imputed: {out / IMPUTED[1]}, {out / IMPUTED[0]}")


@app.command("next")
@_reading
def next_(
    reading: dict[str, Any],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A folder that `pyrocrl fit` wrote; or else --data.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="As in `fit`, to fit observed_dag to or, with --graph, its equations alone."),
    ] = None,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MEAN|FILE", help="A variable's mean to reach, may be repeated; or a .csv of variable,mean."
        ),
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Candidates: a .csv of candidate,variable,amount.  [default: any shift]"),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="How many to try together.")] = 1,
    acquisition: Annotated[
        str, typer.Option(help="civ, lookahead, cv, maxv, mi, splits, greedy, passive or random.")
    ] = "civ",
    kind: Annotated[str, typer.Option(help="What amounts of the pool are: shift or set.")] = "shift",
    norm: Annotated[float, typer.Option(help="The longest shift, without a pool.")] = 1.0,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A variable that may be shifted, may be repeated.  [default: all]"),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", help="Rows that the experiment will have of each.")] = 100,
    graph: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The graph, where it is known: a .csv of parent,child.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the table goes as well.")] = None,
    level: Level = 0.9,
    draws: Annotated[
        int | None, typer.Option(help="Posterior draws per chain; of --graph in all.  [default: 50; 400]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    intervention: Intervention = None,
    option: Options = None,
    env: Env = None,
    control: Control = None,
    targets: Told = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    model: OwnModel = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rank interventions to try next: by what they tell of how to reach a goal, and by how near they lead to it."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.judge.design import design_frame

    if run is None and data is None:
        reject("RUN", "neither it nor --data", "one of them")
    if csv is not None and (csv.suffix != ".csv" or (csv.exists() and not force)):
        reject("--csv", f"{str(csv)!r}" + ", which exists" * csv.exists(), "a new file ending in .csv, or --force")
    wanted = _goal(goal)
    file, mode = _targets(targets)
    told = env, control, file, counts, size_factor, None
    given: dict[str, Any] = {}
    if pool is not None:
        candidates: dict[str, dict[str, float]] = {}
        for label, name, amount in io.read_columns(pool, ("candidate", "variable", "amount"), "--pool"):
            if name in candidates.setdefault(label, {}):
                reject("--pool", f"{name!r} twice for {label!r}", "each variable of a candidate once")
            candidates[label][name] = _number("--pool", name, amount)
        given["pool"] = candidates
    say = sys.stderr if as_json else sys.stdout
    if run is not None:
        for name, value in {"--graph": graph, "--intervention": intervention, "--option": option}.items():
            if value is not None:
                reject(name, f"{value} beside a RUN", "--data in place of RUN: a run has its own")
        record = _read_record(run)
        source = _data_of_run(record, data, reading, *told)
        fitted: Any = pyrocrl.load(run / CHECKPOINT, source, model)
        fitted.check_own(RUN, record.get("fit"))
    else:
        source = _adjusted(_read_data({"data": data, "seed": seed} | _told(*told) | reading))
        print(source, file=say)
        if graph is not None:
            fitted, names = source, source.feature_names
            matrix = [[0] * len(names) for _ in names]
            for ends in io.read_columns(graph, ("parent", "child"), "--graph"):
                parent, child = (names.index(one_of("--graph", name, names)) for name in ends)
                matrix[parent][child] = 1
            given["graph"] = matrix
        else:
            build = _options(option) | _assumed(None, mode, intervention, None)
            kind_ = _check_fit("observed_dag", build, None, None, seed, device, draws)
            program = pyrocrl.build(kind_, source, **build)
            fitted = pyrocrl.fit(program, source, seed=seed, device=device, progress=not quiet)
    found = pyrocrl.next_interventions(
        fitted,
        wanted,
        batch=batch,
        acquisition=acquisition,  # type: ignore[arg-type]
        kind=kind,  # type: ignore[arg-type]
        norm=norm,
        on=on,
        rows=rows,
        level=level,
        draws=draws,
        seed=seed,
        **given,
    )
    table = design_frame(found)
    if csv is not None:
        io.write_frame(table, csv)
    if as_json:
        _print_json(table.to_dict("records"))
        return
    lines = [
        [None if value != value else f"{value:.4g}" if isinstance(value, float) else value for value in line]
        for line in table.to_numpy(dtype=object).tolist()
    ]
    print()
    _print_table(list(table.columns), lines)


@app.command()
@_reading
def discover(
    reading: dict[str, Any],
    network: Annotated[
        Path, typer.Option(metavar="FILE", help="Edges between genes: a .csv of gene,other or gene,other,cost.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder: genes.csv, links.csv, edges.csv, ...")],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Rows of ill and healthy, as in `fit`; or else --signature.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the disease does: a .csv of gene,effect,error.")
    ] = None,
    env: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that holds the state of rows.")] = None,
    control: Annotated[str | None, typer.Option(metavar="LABEL", help="Healthy rows.  [default: as in `fit`]")] = None,
    state: Annotated[str | None, typer.Option(metavar="LABEL", help="Ill rows.  [default: all others]")] = None,
    prizes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What is known of genes besides: a .csv of gene,prize, in nats.")
    ] = None,
    cost: Annotated[float, typer.Option(help="Of an edge, in nats.")] = 0.8,
    hubs: Annotated[float, typer.Option(help="How much more an edge between genes of many edges costs.")] = 0.5,
    carried: Annotated[float, typer.Option(help="Share of the module's genes that the disease shifts.")] = 0.7,
    subsamples: Annotated[int, typer.Option(help="Halves of the rows that the tree is found on.")] = 100,
    least: Annotated[float, typer.Option(help="Frequency from which a gene is in the graph.")] = 0.2,
    graphs: Annotated[int, typer.Option(help="Halves that the graph is found on; 0 = no graph.")] = 20,
    partial: Annotated[
        bool, typer.Option("--partial", help="Genes of the network may have no column, and columns no gene.")
    ] = False,
    drugs: Annotated[
        str | None, typer.Option(metavar="DATA", help="Profiles of drugs in contexts, to rank by the signature.")
    ] = None,
    drug: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of --drugs: the column that holds drugs.")] = None,
    context: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of --drugs: the column that holds contexts.")
    ] = None,
    vehicle: Annotated[str | None, typer.Option(metavar="LABEL", help="Of --drugs: the drug that is none.")] = None,
    within: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A context to rank drugs in, may be repeated.  [default: all]"),
    ] = None,
    threshold: Annotated[float, typer.Option(help="A drug reverses below minus this correlation.")] = 0.3,
    level: Level = 0.9,
    draws: Annotated[int, typer.Option(help="Of drugs' signatures.")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    counts: Counts = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find genes that a disease acts through: a tree of a network, a causal graph on it, and drugs that reverse it."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.judge import targets
    from pyrocrl.options import Fraction, Share, conform

    _check_fit("causal_imputation", {}, None, None, seed, device, draws)
    conform("--level", level, Share)
    conform("--threshold", threshold, Fraction)
    if (data is None) == (signature is None):
        reject("--data", "neither it nor --signature" if data is None else "it and --signature", "one of them")
    _check_out(out, force, False)
    edges = [
        (*edge[:2], *(_number("--network", "-".join(edge[:2]), text) for text in edge[2:]))
        for edge in io.read_columns(network, ("gene", "other"), "--network", ("cost",))
    ]
    given: dict[str, Any] = {"state": state, "cost": cost, "hubs": hubs, "carried": carried, "least": least}
    given |= {"subsamples": subsamples, "graphs": graphs, "partial": partial, "seed": seed, "device": device}
    if prizes is not None:
        given["prizes"] = _by_gene(io.read_columns(prizes, ("gene", "prize"), "--prizes"), "--prizes")
    if signature is not None:
        disease: Any = _by_gene(io.read_columns(signature, ("gene", "effect", "error"), "--signature"), "--signature")
    else:
        told = _told(env, control, None, counts, None, None)
        disease = _adjusted(_read_data({"data": data, "seed": seed} | told | reading))
    ranks = None
    if drugs is not None:
        rows = _read_data({"data": drugs, "seed": seed} | _told(drug, vehicle, None, counts, None, context))
        if len(rows.batch_names) < 2:
            reject("--context", "one context", "a column of --drugs with two or more")
        for name in within or ():
            one_of("--within", name, rows.batch_names)
        genes = targets.DiseaseSignature.of(disease, state, errors=False).genes
        targets.shared_genes(rows.feature_names, genes, partial)
        ranks = pyrocrl.build("causal_imputation", rows)
    say = sys.stderr if as_json else sys.stdout
    with _writing(out, None):
        for path in DISCOVERED:
            (out / path).unlink(missing_ok=True)
        found = pyrocrl.discover_targets(disease, edges, progress=not quiet, **given)
        frames = {"genes": targets.genes_frame(found), "links": targets.links_frame(found)}
        if "edge" in found:
            frames["edges"] = targets.edges_frame(found)
        io.write_dataset(found, out / DISCOVERED[0])
        if ranks is not None:
            fitted = pyrocrl.fit(ranks, rows, seed=seed, device=device, progress=not quiet)
            told = {"state": state, "contexts": within, "threshold": threshold, "level": level}
            ranked = pyrocrl.reversing_drugs(fitted, disease, draws=draws, partial=partial, seed=seed, **told)
            frames["drugs"] = targets.drugs_frame(ranked, found)
            io.write_dataset(ranked, out / DISCOVERED[-1])
        for name, frame in frames.items():
            io.write_frame(frame, out / f"{name}.csv")
    if as_json:
        verdict = {"verdict": found.attrs["verdict"].split("\n")}
        _print_json({name: frame.to_dict("records") for name, frame in frames.items()} | verdict)
        return
    often = frames["genes"][frames["genes"]["frequency"] >= least]
    shown = {"Genes": often, "Edges": frames.get("edges"), "Drugs": frames.get("drugs")}
    for title, table in shown.items():
        if table is not None:
            lines = table.head(SHOWN).astype(object).where(table.head(SHOWN).notna(), None).to_numpy().tolist()
            print(f"\n{title}, {len(lines)} of {len(table)}:\n", file=say)
            _print_table(list(table.columns), lines)
    print(f"\n{found.attrs['verdict']}\n\n{', '.join(str(out / f'{name}.csv') for name in frames)}", file=say)


def _by_gene(rows: Sequence[tuple[str, ...]], option: str) -> dict[str, Any]:
    """gene -> its number, or its numbers, of a table's lines."""
    out: dict[str, Any] = {}
    for gene, *texts in rows:
        if gene in out:
            reject(option, f"{gene!r} twice", "each gene once")
        values = tuple(_number(option, gene, text) for text in texts)
        out[gene] = values if len(values) > 1 else values[0]
    return out


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
        record = _read_record(around)
        data = _read_data(_source_of_run(record, None, {}))
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
    _print_json(found) if as_json else print(benchmark.table(found))


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
    _check_out(out, force, resume=False)
    kinds = {model: _check_fit(model, DEMO[model][1], None, None, seed, "auto", None) for model in DEMO}
    source = {"data": "perturb_seq", "seed": seed}
    rows = _read_data(source)
    knocked = ", ".join(f"{gene} in latent_{k[0]}" for gene, k in (rows.targets or {}).items())
    print(
        f"Simulated: {rows.rows:,} cells, counts of {rows.features} genes. Behind them {rows.truth['z'].shape[1]} gene "
        f"programmes, none of them measured,\nthat regulate each other. Knock-outs: {knocked}."
    )
    verdicts, found = {}, {}
    with _writing(out, None):
        for model, (title, build, chains, epochs) in DEMO.items():
            print(f"\nFitting {model} for {title[0].lower()}{title[1:]} ...", flush=True)
            pages = {
                DEMO[other][0]: None if other == model else os.path.relpath(folder / REPORT, folders[model])
                for other, folder in folders.items()
            }
            with contextlib.redirect_stdout(None):  # scores and the like stand in the report
                found[model], verdicts[model] = _fit(
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
    _print_table(["edge", "probability", "weight", "truth"], tables.edge_rows(found[first], rows, tree))
    print("\nWhat do(latent = its mean + 1 sd) changes: other latents, and the genes that respond most\n")
    changed = tables.effect_rows(found[first], rows, effects(found[first], rows))
    _print_table(["set", "changes", "by", "truth"], changed)
    print("\nMay this be believed?\n")
    for model, verdict in verdicts.items():
        print(verdict)
        print(f"  report: {folders[model] / REPORT}\n")
    print(f"Open {out / REPORT}; its second tab shows the programmes.")


# -- the work behind them --------------------------------------------------------------------------------------


def _check_fit(
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


def _fit(
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
) -> tuple[Fit, Verdict]:
    """Fit and write everything into `out`; `pages`: of the report, see `show.report.write`. going: with the finished
    fit that is there. compiled: steps. stop_behind: as in `Recipe`."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.infer.fit import _recipe, check_chains, resolve_device
    from pyrocrl.lab.provenance import provenance
    from pyrocrl.lab.reproduce import score_table

    program, name = pyrocrl.build(kind, rows, **build), kind.card.name
    started = time.perf_counter()
    print(rows)
    found = _finished(out, program, rows, seed, epochs) if resume else None
    if found is None:
        # refused before anything is removed
        check_chains(program, rows, _recipe(program, None, chains, epochs, {}), resolve_device(device))
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
    verdict = _write_report(found, rows, tree, out, pages)
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


def _write_report(found: Fit, data: Data, tree: Any, out: Path, pages: dict[str, str | None] | None = None) -> Verdict:
    """Diagnose, write verdict.json and report.html."""
    import pyrocrl
    from pyrocrl import io
    from pyrocrl.show import report as page

    scores = json.loads((out / SCORES).read_text(encoding="utf-8")) if (out / SCORES).exists() else None
    if scores is not None:
        found.check_own(SCORES, scores.pop("fit", None))
    verdict = pyrocrl.diagnose(found, data)
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


def _read_data(source: dict[str, Any]) -> Data:
    """The data that `--data` and its companions name: a data set, a setting or a file."""
    from pyrocrl import datasets, io
    from pyrocrl import simulate as settings

    name = str(source["data"])
    told = {k: source[k] for k in (*COLUMNS, *READING) if source.get(k) is not None}
    if Path(name).suffix.lower() in io.SUFFIXES:
        return io.read(name, **told)
    known = [*datasets.names(), *settings.names()]
    if name not in known:
        if Path(name).exists():
            reject("--data", repr(name), f"a file ending in {', '.join(io.SUFFIXES)}")
        one_of("--data", name, known)
    for given, value in told.items():
        option = "--" + given.replace("_", "-")
        reject(option, repr(value), f"nothing: {name} brings its own; {option} is for files")
    return datasets.load(name) if name in datasets.names() else settings.draw(name, seed=source["seed"])


def _adjusted(rows: Data) -> Data:
    """Without what --adjust names, for a fit; a fit does the same to other rows."""
    from pyrocrl.adjust import Adjustment

    return Adjustment.of(rows)(rows) if rows.covariates else rows


def _read_rows(source: dict[str, Any]) -> Data:
    """Those of `_read_data` that were fitted: all but what `compare` had put aside."""
    rows = _read_data(source)
    return rows.split(source["held_out"], source["seed"])[0] if "held_out" in source else rows


def _targets(told: list[str] | None) -> tuple[Path | None, str | None]:
    """The file and the word of --targets."""
    files = [text for text in told or () if Path(text).suffix]
    words = [text for text in told or () if not Path(text).suffix]
    for word in words:
        if word not in TARGET_MODES:
            hint = did_you_mean(word, TARGET_MODES)
            reject("--targets", f"{word!r}{hint}", f"{', '.join(TARGET_MODES)}, or a file ending in .json, .csv")
    if len(files) > 1 or len(words) > 1:
        reject("--targets", " and ".join(told or ()), "one word, one file, or one of each")
    return (Path(files[0]) if files else None), (words[0] if words else None)


def _goal(told: list[str] | None) -> dict[str, float] | None:
    """The means of --goal, given one by one or in a file."""
    from pyrocrl.io import read_columns

    if not told:
        return None
    if len(told) == 1 and "=" not in told[0]:
        pairs: list[tuple[str, ...]] = read_columns(told[0], ("variable", "mean"), "--goal")
    else:
        for text in told:
            if "=" not in text:
                reject("--goal", repr(text), "NAME=MEAN, such as STAT1=0.5, or one file")
        pairs = [tuple(text.rsplit("=", 1)) for text in told]
    out: dict[str, float] = {}
    for name, value in pairs:
        if name in out:
            reject("--goal", f"{name!r} twice", "each variable once")
        out[name] = _number("--goal", name, value)
    return out


def _number(option: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        reject(option, f"{text!r} for {name!r}", "a number")


def _assumed(
    latents: int | str | None, targets: str | None, intervention: str | None, mechanism: str | None
) -> dict[str, Any]:
    """What options of their own tell a model, by the names of the model's options."""
    if isinstance(latents, str):
        with contextlib.suppress(ValueError):
            latents = int(latents)
    told = {"latents": latents, "targets": targets, "intervention": intervention, "mechanism": mechanism}
    return {name: value for name, value in told.items() if value is not None}


def _command(model: str, options: Mapping[str, Any], source: dict[str, Any]) -> str:
    """The command that fits a model to these data under these options."""
    words = ["pyrocrl", "fit", model, "--data", str(source["data"]), "--out", f"runs/{Path(model).stem}"]
    for name in (*COLUMNS, *READING):
        value = source.get(name)
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{name.replace('_', '-')}", str(one)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    if source["seed"]:
        words += ["--seed", str(source["seed"])]
    return shlex.join(words)


def _builds(kinds: dict[str, type[Program]], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
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


def _told(*values: Any) -> dict[str, Any]:
    """What a user says of a file, by the names in COLUMNS, as JSON can hold it."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in zip(COLUMNS, values, strict=True)}


def _source_of_run(record: dict[str, Any], data: str | None, reading: dict[str, Any], *told: Any) -> dict[str, Any]:
    source = record["source"] if data is None else {"data": data, "seed": record["seed"]}
    return source | {k: v for k, v in _told(*told).items() if v is not None} | reading


def _data_of_run(record: dict[str, Any], data: str | None, reading: dict[str, Any], *told: Any) -> Data:
    return _read_rows(_source_of_run(record, data, reading, *told))


def _read_record(run: Path) -> dict[str, Any]:
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


def _check_files(wanted: Mapping[str, Path | None], force: bool) -> None:
    """Of options such as --csv: one of them or more, each a file of that ending that is not there yet."""
    if all(path is None for path in wanted.values()):
        first, *others = wanted
        reject(first, f"neither it nor {', '.join(others)}", "one of them or more")
    for option, path in wanted.items():
        if path is not None and path.suffix != f".{option[2:]}":
            reject(option, f"{str(path)!r}", f"a file ending in .{option[2:]}")
        if path is not None and path.exists() and not force:
            reject(option, f"{str(path)!r}, which exists", "a new file, or --force")


def _run_and_rows(
    run: Path, model: str | None, data: str | None, reading: dict[str, Any], *told: Any
) -> tuple[Fit, Data]:
    """A run's fit, and its rows or new ones."""
    import pyrocrl

    record = _read_record(run)
    rows = _data_of_run(record, data, reading, *told)
    found = pyrocrl.load(run / CHECKPOINT, program=model)
    found.check_own(RUN, record.get("fit"))
    return found, rows


def _write_predicted(values: Any, table: Any, csv: Path | None, nc: Path | None) -> None:
    from pyrocrl import io
    from pyrocrl.show import export as exports

    if csv is not None:
        print(exports.write_csv(table, csv))
    if nc is not None:
        print(io.write_dataset(values, nc))


def _check_out(
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
def _writing(out: Path, command: str | None) -> Iterator[None]:
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


def _options(pairs: Sequence[str] | None, dotted: bool = False) -> dict[str, Any]:
    """Options given as k=v, `dotted` ones also as model.k=v; v is JSON where it reads as such, else a text."""
    out: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        names = key.split(".") if dotted else [key]
        if not equals or len(names) > 2 or not all(name.isidentifier() for name in names):
            reject("--option", repr(pair), "K=V, such as rho=0.8")
        if key in out:
            reject("--option", f"{key!r} twice", "each option once")
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
    return out


# -- printing --------------------------------------------------------------------------------------------------


def _identifies(claim: Any) -> str:
    names = [name for name in claim.up_to if name != "exact"]
    return f"{claim.what} up to {', '.join(names)}" if names else claim.what


def _print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from pyrocrl.lab.reproduce import format_table

    print(format_table(header, rows))


def _print_options(options: Iterable[Option]) -> None:
    """Each option's name, default and allowed values, and below them what it means."""
    for option in options:
        told = option.to_dict()
        default = f", default {told['default']!r}" if "default" in told else ""
        print(f"- `{option.name}`: {told['allowed']}{default}")
        if option.meaning:
            print(textwrap.fill(option.meaning, 110, initial_indent="    ", subsequent_indent="    "))


def _print_environments(envs: Sequence[dict[str, Any]], least: int) -> None:
    def words(targets: list[str] | None) -> str:
        return "not known" if targets is None else ", ".join(targets) or "none: observational"

    _print_table(["environment", "targets", "rows"], [[e["environment"], words(e["targets"]), e["rows"]] for e in envs])
    few = [e["environment"] for e in envs if e["few"]]
    if few:
        print(f"warning: fewer than {least} rows in {', '.join(few)}: estimates from them will be poor")


def _print_choices(found: Sequence[Choice]) -> None:
    lines = []
    for choice in found:
        held = "; ".join(claim.claim for claim in choice.identifies) or "nothing"
        more = choice.next.claim if choice.next else "-"
        lines.append([choice.model, held, more, "; ".join(choice.missing) or "-"])
    _print_table(["model", "would identify", "next stronger claim", "missing"], lines)
    for heading, attribute in (("if a fit shows that", "open"), ("if you can say that", "given")):
        notes = {
            choice.model: list(dict.fromkeys(text for claim in choice.identifies for text in getattr(claim, attribute)))
            for choice in found
        }
        if any(notes.values()):
            print(f"\n{heading}:")
        for model, texts in notes.items():
            if texts:
                print(f"  {model}: {'; '.join(texts)}")


def _print_comparison(found: Comparison) -> None:
    lines = []
    for model in found.models:
        verdicts = "; ".join(f"{c.what}: {c.verdict}" for c in model.claims) or "claims nothing"
        lines.append([model.name, verdicts, model.held_out, model.behind, model.error, model.scores.get("mcc")])
    _print_table(["model", "verdict", "held out", "behind", "error", "mcc"], lines)
    print()
    rows = [[p.first, p.second, p.latents, p.up_to, p.edges] for p in found.pairs]
    _print_table(["model", "and", "latents agree", "up to", "edges apart"], rows)


def _print_json(value: Any) -> None:
    from pyrocrl.io import _finite

    print(json.dumps(_finite(value), indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _mend_streams()
    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"pyrocrl: warning: {' '.join(str(message).split())}\n"
    try:
        code = app(args=arguments, prog_name="pyrocrl", standalone_mode=False)
        return _complain("interrupted", 130) if code == 130 else code if isinstance(code, int) else 0
    except InputError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Interrupted as error:
        return _complain(str(error), 130)
    except Exception as error:
        if type(error).__name__ == "Abort":  # Ctrl-C under older typers
            return _complain("interrupted", 130)
        if hasattr(error, "format_message"):  # the command line itself: typer's, or click's under older typers
            return _complain(_usage(error, arguments), 2) if str(error) or error.format_message() else 0
        if os.environ.get("PYROCRL_TRACEBACK"):
            raise
        hint = "" if type(error).__name__ == "FitError" else " (PYROCRL_TRACEBACK=1 shows where)"
        return _complain(f"failed: {error or type(error).__name__}{hint}", 1)
    finally:
        warnings.formatwarning = shown


def _mend_streams() -> None:
    """What was closed at the start goes nowhere, rather than into the first file that is opened; a character that the
    terminal's encoding lacks is printed as its escape."""
    for place in range(3):
        try:
            os.fstat(place)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """A usage error in one line, with the value that was found."""
    message = str(error.format_message()).rstrip(".")
    names = getattr(getattr(error, "param", None), "opts", None) or []
    for name in names:
        for place, argument in enumerate(arguments):
            if argument == name and place + 1 < len(arguments):
                message += f"; found {arguments[place + 1]!r}"
            elif argument.startswith(f"{name}="):
                message += f"; found {argument.partition('=')[2]!r}"
    command = getattr(getattr(error, "ctx", None), "command_path", "pyrocrl")
    return f"{message}; `{command} --help` says what is allowed"


def _complain(message: str, code: int) -> int:
    print(f"pyrocrl: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
