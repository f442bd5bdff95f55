"""`pyrocrl reproduce`: a model's figures on its published settings, every seed shown, baselines beside.

A study draws a setting with a seed, keeps part of each environment's rows out of the fit, fits the model with its
own defaults, and scores the rows that were kept out. The results file holds every seed's metrics with seconds,
versions and the commit; it is rewritten after each seed, so that nothing is lost.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pyrocrl import datasets, zoo
from pyrocrl.data import Data
from pyrocrl.errors import one_of, reject
from pyrocrl.infer.fit import fit
from pyrocrl.infer.loop import FitError
from pyrocrl.infer.units import units_of
from pyrocrl.io import write_json
from pyrocrl.judge.diagnose import diagnose
from pyrocrl.judge.metric_table import ARROWS, in_order, read, score_rows
from pyrocrl.judge.metrics import expected_calibration_error, mcc, shd
from pyrocrl.lab import calibrations, interferon, numbers, programme_tables, run, targets
from pyrocrl.lab.provenance import provenance
from pyrocrl.lab.studies import Study, readable
from pyrocrl.program import Program
from pyrocrl.turns import drawing


def studies(model: str, setting: str | None = None) -> tuple[Study, ...]:
    """A model's studies, of one setting or of all.

    Raises InputError for unknown models, those without studies, and settings that the model has no study of.
    """
    found: tuple[Study, ...] = zoo.get(model).studies
    if not found:
        reject("model", repr(model), "a model that lists studies")
    if setting is not None:
        allowed = sorted({study.setting for study in found})
        if setting not in allowed:
            reject("setting", repr(setting), ", ".join(allowed))
        found = tuple(study for study in found if study.setting == setting)
    return found


def run_seed(model: str, study: Study, seed: int) -> dict[str, Any]:
    """Fit and score one seed with one thread; a fit that fails is a row as well, with its reason."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        try:
            return _run_seed(model, study, seed)
        finally:
            torch.set_num_threads(threads)


def _run_seed(model: str, study: Study, seed: int) -> dict[str, Any]:
    train, test = study.draw(seed)
    program = zoo.build(model, train, **study.build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # retired chains are counted below
        try:
            result = fit(program, train, seed=seed, device="cpu", progress=False)
        except FitError as error:
            return {"seed": seed, "failed": str(error)}
    verdict = diagnose(result, train)
    agreement = np.asarray(verdict.chains["agreement"], dtype=float)
    metrics = study.score(result, test)
    if agreement.ndim == 2 and len(agreement) > 1:
        metrics["chain_agreement"] = float(agreement[np.triu_indices(len(agreement), 1)].mean())
    metrics |= construction(program, train, test, seed)
    return {
        "seed": seed,
        "metrics": metrics,
        **study.tell(result, test),
        "verdict": {claim.what: claim.verdict for claim in verdict.claims},
        "chains": result.chains.count,
        "chains_retired": verdict.chains["retired"],
        "epochs": result.meta["epochs"],
        "rows": [train.rows, test.rows],
        "seconds": result.meta["seconds"],
        "cpu_seconds": result.meta["cpu_seconds"],
    }


def construction(program: Program, train: Data, test: Data, seed: int) -> dict[str, float]:
    """Scores of the theorem's construction by itself, before any step: `start_mcc`, `start_shd`.

    Empty for programs that start at random, and where the truth holds neither latents nor a graph.
    """
    if type(program).construct is Program.construct or "z" not in test.truth:
        return {}
    with drawing(seed), torch.no_grad():
        one = program.fresh().to(program.recipe.dtype)
        units = units_of(program, train)
        one.construct(train.in_units(units), torch.Generator().manual_seed(seed))
        batch = test.in_units(units).tensors(dtype=program.recipe.dtype, moments=not program.uses_rows).whole()
        z, graph = one.latents(batch).double().numpy(), one.graph()
    score, nodes = mcc(test.truth["z"], z, return_assignment=True)
    out = {"start_mcc": float(score)}
    if graph is not None and "graph" in test.truth and min(nodes) >= 0:
        out["start_shd"] = float(shd(test.truth["graph"], graph.double().numpy()[np.ix_(nodes, nodes)] > 0.5))
    return out


def reproduce(
    model: str,
    setting: str | None = None,
    seeds: Sequence[int] | None = None,
    path: str | Path | None = None,
    jobs: int = 1,
    on_seed: Callable[[Study, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run a model's studies and return (and write to `path` after every seed) the table of results.

    seeds: None = 0 to each study's own number. jobs: processes, each with one thread. Studies of other settings
    that `path` already holds are kept. Raises InputError before any work for bad arguments.
    """
    todo = studies(model, setting)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        reject("jobs", repr(jobs), "a whole number from 1 on")
    if seeds is not None and (not len(seeds) or any(isinstance(s, bool) or s < 0 for s in seeds)):
        reject("seeds", repr(seeds), "whole numbers from 0 on, at least one")
    kept = _other_studies(path, model, todo)
    table: dict[str, Any] = {"model": model, "studies": kept}
    if path is not None:
        write_json(table, path)  # an unwritable place is found before the work
    for study in todo:
        entry = {
            "setting": study.setting,
            "options": dict(study.options),
            "build": dict(study.build),
            "held_out_rows": study.held_out,
            "identified": study.identified,
            "threads": 1,
            **provenance(),
            "summary": {},
            "seeds": [],
        }
        table["studies"].append(entry)
        for row in _rows(model, study, range(study.seeds) if seeds is None else seeds, jobs):
            entry["seeds"] = sorted([*entry["seeds"], row], key=lambda r: r["seed"])
            entry["summary"] = summarise(entry["seeds"])
            if path is not None:
                write_json(table, path)
            if on_seed is not None:
                on_seed(study, row)
    return table


def _rows(model: str, study: Study, seeds: Sequence[int], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        for seed in seeds:
            yield run_seed(model, study, seed)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_seed, model, study, seed) for seed in seeds]):
            yield done.result()


def _other_studies(path: str | Path | None, model: str, todo: Sequence[Study]) -> list[dict[str, Any]]:
    """Studies in the file at `path` that are not about to be run again."""
    if path is None or not Path(path).exists():
        return []
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        theirs, entries = found["model"], list(found["studies"])
        again = [(study.setting, dict(study.options)) for study in todo]
        kept = [entry for entry in entries if (entry["setting"], entry["options"]) not in again]
    except (OSError, ValueError, KeyError, TypeError):
        reject("json", f"{str(path)!r}, which holds something else", "a new file, or results of this command")
    if theirs != model:
        reject("json", f"results of {theirs!r} in {str(path)!r}", f"a new file, or results of {model!r}")
    return kept


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and largest value of every metric over seeds, and how many fits failed."""
    done = [row for row in rows if "metrics" in row]
    flat = [row["metrics"] | {k: row[k] for k in ("seconds", "cpu_seconds")} for row in done]
    out: dict[str, Any] = {}
    for name in flat[0] if flat else ():
        values = np.array([v for row in flat if (v := row.get(name)) is not None and np.isfinite(v)])
        if values.size:
            out[name] = {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
    return out | {"failed": len(rows) - len(done)}


# -- tables as text ------------------------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned, numbers to the right with three digits after the point."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[c]) for row in [list(header), *cells]) for c in range(len(header))]
    right = [all(map(_is_number, column)) for column in zip(*cells, strict=True)] or [False] * len(header)

    def line(row: Sequence[str]) -> str:
        parts = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "-" if not np.isfinite(value) else f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _is_number(cell: str) -> bool:
    return cell in ("", "-", "–") or cell.lstrip("−-").replace(",", "").replace(".", "", 1).isdigit()


def study_table(entry: Mapping[str, Any]) -> str:
    """One study's figures: a line per seed, then mean, least and largest; the file holds every metric."""
    rows = [row.get("metrics", {}) | {"cpu_seconds": row.get("cpu_seconds")} for row in entry["seeds"]]
    columns = in_order(name for row in rows for name, value in row.items() if value is not None)
    heads = [*(str(row["seed"]) for row in entry["seeds"]), "mean", "min", "max"]
    for which in heads[-3:]:
        rows.append({name: found[which] for name, found in entry["summary"].items() if name != "failed"})
    lines = [
        [head, *(read(c)[0].text(row.get(c)) or "-" for c in columns)] for head, row in zip(heads, rows, strict=True)
    ]
    return format_table(["seed", *columns], lines)


def knockout_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The knock-outs of a `PerturbationScreen`'s seed, the surest effects first."""
    columns = [c for c in rows[0] if c != "knockout"]
    ordered = sorted(rows, key=lambda row: row["none"])
    return format_table(["knockout", *columns], [[row["knockout"], *(row.get(c) for c in columns)] for row in ordered])


def score_table(scores: Mapping[str, float], name: str) -> str:
    """Scores of one fit, what trivial methods reach beside them."""
    columns, rows = score_rows(scores)
    return format_table(["metric", name, *columns[1:]], [[label, *values] for label, values in rows])


# -- markdown ------------------------------------------------------------------------------------------------


def figures() -> str:
    """The committed results as markdown, tables for each model (see `figures_of`), and the pooled calibration."""
    parts = [f"**`{table['model']}`**\n\n{found}" for table in _tables() if (found := _figures(table))]
    return "\n\n".join([*parts, *filter(None, [calibration_text()])])


def figures_of(name: str) -> str:
    """A model's committed results as markdown: a line per study, mean over seeds and in brackets the worst.

    Settings with known truth come first, then a table of real data. Empty for a model without results. Raises
    InputError for an unknown name.
    """
    one_of("name", name, zoo.names())
    return next((_figures(table) for table in _tables(name) if table["model"] == name), "")


def _figures(table: Mapping[str, Any]) -> str:
    real = [entry for entry in table["studies"] if entry["setting"] in datasets.names()]
    simulated = [entry for entry in table["studies"] if entry not in real]
    return "\n\n".join(_lines(entries) for entries in (simulated, real) if entries)


def _lines(entries: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table of the figures that any of these studies has; an arrow says which way a metric is better."""
    shown = in_order(name for entry in entries for name in entry["summary"])
    heads = [name.replace("_", " ") + ("" if (found := read(name))[1] else ARROWS[found[0].better]) for name in shown]
    lines = [["setting", "seeds", *heads], ["---"] * (2 + len(shown))]
    for entry in entries:
        options, seeds = readable(entry["options"]), len(entry["seeds"])
        cells = [f"`{entry['setting']}`" + (f" {options}" if options else ""), str(seeds)]
        for name in shown:
            metric, variant = read(name)
            found = entry["summary"].get(name)
            cells.append("" if found is None else metric.mean(found, seeds, variant))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def calibration() -> dict[str, float]:
    """Edge probabilities and 90 % intervals of edge weights pooled over the committed results, studies with
    `identified` only: data sets, edges, expected calibration error (and that of the share of edges, said of
    every pair), weights, coverage."""
    edges: list[list[float]] = []
    data_sets = covered = weights = 0.0
    for table in _tables():
        for row in (row for entry in table.get("studies", []) if entry.get("identified") for row in entry["seeds"]):
            edges += row.get("edges", [])
            data_sets += bool(row.get("edges"))
            covered += row.get("metrics", {}).get("weight_covered", 0.0)
            weights += row.get("metrics", {}).get("weight_total", 0.0)
    if not edges:
        return {}
    prob, outcome = np.array(edges).T
    out = {"data_sets": data_sets, "edges": float(len(edges)), "weights": weights, "coverage": covered / weights}
    out["ece"] = expected_calibration_error(outcome, prob)
    return out | {"ece_half": expected_calibration_error(outcome, np.full_like(prob, 0.5))}


def calibration_text() -> str:
    """`calibration` in a sentence; empty where no results hold edges."""
    found = calibration()
    if not found:
        return ""
    return (
        f"Pooled over the {found['data_sets']:.0f} data sets whose graph is identified "
        f"({found['edges']:.0f} possible edges): expected calibration error of edge probabilities {found['ece']:.3f} "
        f"({found['ece_half']:.3f} for probability .5 throughout); 90 % intervals cover {found['coverage']:.0%} of "
        f"{found['weights']:.0f} edge weights."
    )


def _tables(name: str = "*") -> list[dict[str, Any]]:
    """The committed results of studies, of all models or of one."""
    folder = Path(__file__).resolve().parent.parent / "models" / "results"
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}.json"))]
    return [table for table in found if "studies" in table]


MARKED = re.compile(
    r"(<!-- (models|figures|calibration|calibrated|targets|numbers|programmes|interferon)(?: (\w+))?: [^\n]* -->\n)"
    r".*?(<!-- /\2 -->)",
    re.DOTALL,
)


def fill(page: str) -> str:
    """A page's text with tables between their markers: `models`, `figures`, `figures NAME`, `calibration` (edges of the
    results), `calibrated` (what `calibrate` found), `targets` (what `pyrocrl.lab.targets` found), `numbers`
    (`pyrocrl.lab.numbers`), `programmes` (`pyrocrl.lab.programmes`) and `interferon` (`pyrocrl.lab.interferon`).

    A marker is a comment `<!-- figures: how to fill it -->` on a line of its own, up to `<!-- /figures -->`.
    """
    texts: dict[str, Callable[[], str]] = {
        "models": run.table,
        "figures": figures,
        "calibration": calibration_text,
        "calibrated": calibrations.table,
        "targets": targets.tables,
        "numbers": numbers.table,
        "programmes": programme_tables.tables,
        "interferon": interferon.table,
    }

    def filled(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        return f"{start}{figures_of(name) if name else texts[kind]()}\n{end}"

    return MARKED.sub(filled, page)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
