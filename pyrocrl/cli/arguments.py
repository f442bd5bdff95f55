"""Arguments that several commands share, and how a file is read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

COLUMNS = ("env", "control", "targets", "counts", "size_factor", "batch")  # options that describe a file
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
# how a file is read: arguments of `io.read` that every command with --data has (see `reading_options`)
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
    "without": Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="What the data tell and a fit is not to read: pair, series or aux; may be repeated.",
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
Perturbed = Annotated[
    int, typer.Option(min=0, help="Chains begun at turned latents, to see whether they are driven back.")
]
Force = Annotated[bool, typer.Option("--force", help="Write over what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
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
