"""Commands about perturbations: impute, next, discover."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrocrl.cli.app import app
from pyrocrl.cli.arguments import (
    Control,
    Counts,
    Device,
    Env,
    Force,
    Intervention,
    Json,
    Level,
    Options,
    OwnModel,
    Quiet,
    Seed,
    SizeFactor,
    Source,
    Told,
    reading_options,
)
from pyrocrl.cli.runs import CHECKPOINT, RUN, check_fit, check_out, read_record, writing
from pyrocrl.cli.sources import (
    adjusted,
    assumed,
    data_of_run,
    described,
    number_of,
    parsed_options,
    read_data,
    told_targets,
)
from pyrocrl.cli.tables import print_json, print_table
from pyrocrl.errors import one_of, reject

IMPUTED, CROSS_VALIDATION = ("imputed.nc", "imputed.csv"), "cross_validation.json"
DISCOVERED = ("targets.nc", "genes.csv", "links.csv", "edges.csv", "drugs.csv", "drugs.nc")
SHOWN = 20  # lines of a table that `discover` prints


@app.command()
@reading_options
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

    build = parsed_options(option)
    kind = check_fit(MODEL, build, None, None, seed, device, None)
    conform("--level", level, Share)
    if folds != 0:
        conform("--folds", folds, Annotated[int, Bounds(2)])
    check_out(out, force, False)
    source = {"data": data, "seed": seed} | described(env, control, None, counts, None, batch) | reading
    rows = adjusted(read_data(source))
    program = pyrocrl.build(kind, rows, **build)
    predict.check_missing(rows, "--data")
    say = sys.stderr if as_json else sys.stdout
    with writing(out, None):
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
        print_json({"missing": missing, "measured": int(table["measured"].size) - missing, "methods": scores})
        return
    if scores:
        print(f"\nMeasured pairs, left out in {folds} parts:\n")
        columns = list(scores[-1])
        print_table(columns, [[row.get(name) for name in columns] for row in scores])
    print(f"\n{missing} of {table['measured'].size} pairs imputed: {out / IMPUTED[1]}, {out / IMPUTED[0]}")


@app.command("next")
@reading_options
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
    file, mode = told_targets(targets)
    told = env, control, file, counts, size_factor, None
    given: dict[str, Any] = {}
    if pool is not None:
        candidates: dict[str, dict[str, float]] = {}
        for label, name, amount in io.read_columns(pool, ("candidate", "variable", "amount"), "--pool"):
            if name in candidates.setdefault(label, {}):
                reject("--pool", f"{name!r} twice for {label!r}", "each variable of a candidate once")
            candidates[label][name] = number_of("--pool", name, amount)
        given["pool"] = candidates
    say = sys.stderr if as_json else sys.stdout
    if run is not None:
        for name, value in {"--graph": graph, "--intervention": intervention, "--option": option}.items():
            if value is not None:
                reject(name, f"{value} beside a RUN", "--data in place of RUN: a run has its own")
        record = read_record(run)
        source = data_of_run(record, data, reading, *told)
        fitted: Any = pyrocrl.load(run / CHECKPOINT, source, model)
        fitted.check_own(RUN, record.get("fit"))
    else:
        source = adjusted(read_data({"data": data, "seed": seed} | described(*told) | reading))
        print(source, file=say)
        if graph is not None:
            fitted, names = source, source.feature_names
            matrix = [[0] * len(names) for _ in names]
            for ends in io.read_columns(graph, ("parent", "child"), "--graph"):
                parent, child = (names.index(one_of("--graph", name, names)) for name in ends)
                matrix[parent][child] = 1
            given["graph"] = matrix
        else:
            build = parsed_options(option) | assumed(None, mode, intervention, None)
            kind_ = check_fit("observed_dag", build, None, None, seed, device, draws)
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
        print_json(table.to_dict("records"))
        return
    lines = [
        [None if value != value else f"{value:.4g}" if isinstance(value, float) else value for value in line]
        for line in table.to_numpy(dtype=object).tolist()
    ]
    print()
    print_table(list(table.columns), lines)


@app.command()
@reading_options
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

    check_fit("causal_imputation", {}, None, None, seed, device, draws)
    conform("--level", level, Share)
    conform("--threshold", threshold, Fraction)
    if (data is None) == (signature is None):
        reject("--data", "neither it nor --signature" if data is None else "it and --signature", "one of them")
    check_out(out, force, False)
    edges = [
        (*edge[:2], *(number_of("--network", "-".join(edge[:2]), text) for text in edge[2:]))
        for edge in io.read_columns(network, ("gene", "other"), "--network", ("cost",))
    ]
    given: dict[str, Any] = {"state": state, "cost": cost, "hubs": hubs, "carried": carried, "least": least}
    given |= {"subsamples": subsamples, "graphs": graphs, "partial": partial, "seed": seed, "device": device}
    if prizes is not None:
        given["prizes"] = _by_gene(io.read_columns(prizes, ("gene", "prize"), "--prizes"), "--prizes")
    if signature is not None:
        disease: Any = _by_gene(io.read_columns(signature, ("gene", "effect", "error"), "--signature"), "--signature")
    else:
        told = described(env, control, None, counts, None, None)
        disease = adjusted(read_data({"data": data, "seed": seed} | told | reading))
    ranks = None
    if drugs is not None:
        rows = read_data({"data": drugs, "seed": seed} | described(drug, vehicle, None, counts, None, context))
        if len(rows.batch_names) < 2:
            reject("--context", "one context", "a column of --drugs with two or more")
        for name in within or ():
            one_of("--within", name, rows.batch_names)
        genes = targets.DiseaseSignature.of(disease, state, errors=False).genes
        targets.shared_genes(rows.feature_names, genes, partial)
        ranks = pyrocrl.build("causal_imputation", rows)
    say = sys.stderr if as_json else sys.stdout
    with writing(out, None):
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
        print_json({name: frame.to_dict("records") for name, frame in frames.items()} | verdict)
        return
    often = frames["genes"][frames["genes"]["frequency"] >= least]
    shown = {"Genes": often, "Edges": frames.get("edges"), "Drugs": frames.get("drugs")}
    for title, table in shown.items():
        if table is not None:
            lines = table.head(SHOWN).astype(object).where(table.head(SHOWN).notna(), None).to_numpy().tolist()
            print(f"\n{title}, {len(lines)} of {len(table)}:\n", file=say)
            print_table(list(table.columns), lines)
    print(f"\n{found.attrs['verdict']}\n\n{', '.join(str(out / f'{name}.csv') for name in frames)}", file=say)


def _by_gene(rows: Sequence[tuple[str, ...]], option: str) -> dict[str, Any]:
    """gene -> its number, or its numbers, of a table's lines."""
    out: dict[str, Any] = {}
    for gene, *texts in rows:
        if gene in out:
            reject(option, f"{gene!r} twice", "each gene once")
        values = tuple(number_of(option, gene, text) for text in texts)
        out[gene] = values if len(values) > 1 else values[0]
    return out


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
        out[name] = number_of("--goal", name, value)
    return out
