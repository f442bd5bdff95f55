"""Gene programmes of real cells by several models: how well they predict cells, what they share, what comes again.

    python -m pyrocrl.lab.programmes --json pyrocrl/models/results/programmes.json

Cells are parted at random into two halves of equal number. Every model is fitted to either half, of cells whose
labels it is not told. Of each fit: the log-probability of the other half's counts with programmes integrated out, all
models on one scale (`pyrocrl.lab.row_probability`), beside independent genes and factor analysis; programmes in use and
genes in them at a probability above .9; verdicts. Programmes of two fits are matched one to one by the correlation over
all cells of the data set, and those beyond `COMMON` are called the same. Of a screen, how well one programme, the best
on average, tells knock-outs of one pathway from cells without a target, in cells that were not fitted (AUROC).

Genes are those seen in 2 % of all cells or more, of zeisel2015 the 200 with the most variable log(1 + x / size). Of
that is taken its mean in each technical batch, for which models of counts have a baseline each.

Longer than other files because a half of the cells is fitted, scored, matched and told in one place.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score

from pyrocrl import datasets, zoo
from pyrocrl.data import Data
from pyrocrl.errors import one_of
from pyrocrl.infer.fit import fit
from pyrocrl.infer.fitted import Fit
from pyrocrl.io import write_json
from pyrocrl.judge.diagnose import diagnose
from pyrocrl.lab.provenance import provenance
from pyrocrl.lab.row_probability import CellCounts, of_factor_analysis, of_fit, of_independent_counts
from pyrocrl.lab.studies.screens import PATHWAY

CHAINS = 4
SEEN = 0.02  # share of cells that show a gene, from which it is taken
COMMON = 0.7  # correlation from which two programmes are one
SURE, INCLUDED = 0.9, 0.5  # probabilities of a gene
VARIMAX = 0.25  # standardised loading from which factor analysis counts a gene
MODELS = {
    "sparse_vae, counts": ("sparse_vae", True),
    "spike_slab_fa, counts": ("spike_slab_fa", True),
    "spike_slab_fa, log": ("spike_slab_fa", False),
    "ebmf, counts": ("ebmf", True),
    "ebmf, log": ("ebmf", False),
}
FACTORS = "factor analysis, log"
Array = np.ndarray


@dataclass(frozen=True)
class Study:
    """A data set: how many genes (None = all that are seen) and cells, programmes offered, cells scored of a half."""

    name: str
    genes: int | None
    cells: int
    offered: int
    scored: int
    knockouts: tuple[str, ...] = ()
    control: str = ""


STUDIES = (
    Study("zeisel2015", 200, 500, 20, 250),
    Study("papalexi2021", None, 4_000, 8, 500, PATHWAY, "non-targeting"),
)


@dataclass(frozen=True)
class Half:
    """Cells that are fitted and how all cells are read from there: `counted` and `logged` hold all of them."""

    fitted: Array
    scored: Array
    cells: CellCounts
    counted: Data
    logged: Data

    @classmethod
    def of(cls, data: Data, fitted: Array, scored: Array) -> Half:
        """Sizes are over their mean, and log counts less the mean in each batch, of the cells that are fitted."""
        assert data.size_factor is not None
        counts = dense(data)
        size = data.size_factor / data.size_factor[fitted].mean()
        level = np.zeros_like(counts)
        first = np.log1p(counts / size[:, None])
        for g in np.unique(data.batch):
            level[data.batch == g] = first[fitted][data.batch[fitted] == g].mean(0)
        cells = CellCounts(counts, size, level)
        batch = np.asarray(data.batch_names)[data.batch] if len(data.batch_names) > 1 else None
        names = data.feature_names
        counted = Data(counts, counts=True, size_factor=data.size_factor, batch=batch, feature_names=names)
        return cls(fitted, scored, cells, counted, Data(cells.logged, feature_names=names))

    def rows(self, index: Array) -> CellCounts:
        """Some of the cells."""
        return CellCounts(*(part[index] for part in (self.cells.counts, self.cells.size, self.cells.level)))


@dataclass(frozen=True)
class Programmes:
    """Those of one fit that are in use: scores of all cells (cell, programme), and probabilities of genes."""

    z: Array
    pip: Array

    @classmethod
    def of(cls, result: Fit, data: Data) -> Programmes:
        pip = result.mask()
        assert pip is not None
        used = np.flatnonzero((pip > INCLUDED).any(0))
        return cls(result.latents(data)[:, used], pip[:, used])


def dense(data: Data) -> Array:
    """(rows, feature) x in float64."""
    return np.asarray(data.x.toarray() if scipy.sparse.issparse(data.x) else data.x, dtype=np.float64)


def prepared(study: Study) -> Data:
    """The genes of a study, in all cells."""
    data = datasets.load(study.name)
    assert data.size_factor is not None
    x = dense(data)
    seen = (x > 0).mean(0) >= SEEN
    spread = seen * np.log1p(x / (data.size_factor / data.size_factor.mean())[:, None]).var(0)
    genes = np.sort(np.argsort(-spread, kind="stable")[: study.genes or seen.sum()])
    return Data(
        x[:, genes],
        data.env_labels(),
        control=data.control,
        counts=True,
        size_factor=data.size_factor,
        batch=np.asarray(data.batch_names)[data.batch] if len(data.batch_names) > 1 else None,
        feature_names=[data.feature_names[j] for j in genes],
        name=study.name,
    )


def matched(one: Programmes, other: Programmes) -> list[tuple[int, int, float]]:
    """Pairs of programmes and the size of their correlation over cells, one to one, the sum of squares the largest."""
    if not one.z.shape[1] or not other.z.shape[1]:
        return []
    flat = [np.where(p.z.std(0) > 0, (p.z - p.z.mean(0)) / np.maximum(p.z.std(0), 1e-12), 0.0) for p in (one, other)]
    r = np.abs(flat[0].T @ flat[1]) / len(flat[0])
    return [(int(a), int(b), float(r[a, b])) for a, b in zip(*linear_sum_assignment(-(r**2)), strict=True)]


def shared(one: Programmes, other: Programmes) -> dict[str, Any]:
    """What two fits have in common: numbers of programmes, how many are the same, correlations of all matches; of the
    same ones, genes at a probability above .5 in both and in either; and of all genes that the first is sure of, in any
    programme, those that the other includes in the same one, beside as many as genes at random would give."""
    pairs = matched(one, other)
    same = [(a, b) for a, b, r in pairs if r >= COMMON]
    both = sum(int(((one.pip[:, a] > INCLUDED) & (other.pip[:, b] > INCLUDED)).sum()) for a, b in same)
    either = sum(int(((one.pip[:, a] > INCLUDED) | (other.pip[:, b] > INCLUDED)).sum()) for a, b in same)
    again = sum(int(((one.pip[:, a] > SURE) & (other.pip[:, b] > INCLUDED)).sum()) for a, b in same)
    chance = sum(float((one.pip[:, a] > SURE).sum() * (other.pip[:, b] > INCLUDED).mean()) for a, b in same)
    return {
        "programmes": [one.z.shape[1], other.z.shape[1]],
        "same": len(same),
        "correlations": sorted((round(r, 4) for _, _, r in pairs), reverse=True),
        "genes_in_both": both,
        "genes_in_either": either,
        "sure": int((one.pip > SURE).sum()),
        "sure_again": again,
        "sure_by_chance": round(chance, 2),
    }


def separation(z: Array, labels: Array, study: Study) -> dict[str, float]:
    """AUROC of each knock-out against the control by the programme that is best on average."""
    if not study.knockouts:
        return {}
    table = np.full((len(study.knockouts), max(z.shape[1], 1)), 0.5)
    for row, name in enumerate(study.knockouts):
        rows = (labels == name) | (labels == study.control)
        for k in range(z.shape[1]):
            area = float(roc_auc_score(labels[rows] == name, z[rows, k]))
            table[row, k] = max(area, 1 - area)
    best = int(table.mean(0).argmax())
    return {"programme": float(best)} | dict(zip(study.knockouts, table[:, best].tolist(), strict=True))


def _told(result: Fit, found: Programmes, y: Array) -> dict[str, Any]:
    """Programmes in words: genes above .9, those first whose y (cell, gene) correlates most with the programme; genes
    that are undecided; the verdict."""
    names, genes = result.names["feature"], []
    for z, pip in zip(found.z.T, found.pip.T, strict=True):
        sure = np.flatnonzero(pip > SURE)
        r = np.abs(((y[:, sure] - y[:, sure].mean(0)) / y[:, sure].std(0)).T @ (z - z.mean()))
        genes.append([names[j] for j in sure[np.argsort(-r)]])
    return {
        "programmes": found.z.shape[1],
        "genes": genes,
        "undecided": int(((found.pip > 1 - SURE) & (found.pip < SURE)).sum()),
        "verdict": {claim.what: claim.verdict for claim in diagnose(result).claims},
    }


def run_half(
    study: Study, half: Half, labels: Array, seed: int, only: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Programmes]]:
    """All models of one half, or these and factor analysis: their figures, and their programmes in all cells."""
    train, new = half.rows(half.fitted), half.rows(half.scored)
    group = half.counted.batch
    y = half.cells.logged
    rows: dict[str, Any] = {}
    own: dict[str, Programmes] = {}
    alone = of_independent_counts(train, group[half.fitted], new, group[half.scored])
    each = {"independent, counts": alone, "independent, log": of_factor_analysis(y[half.fitted], 0, new)[0]}
    each[FACTORS], loadings = of_factor_analysis(y[half.fitted], study.offered, new)
    apart = np.setdiff1d(np.arange(len(y)), half.fitted)  # cells that were not fitted
    standard = (y - y[half.fitted].mean(0)) / y[half.fitted].std(0)
    noise = np.maximum(1 - (loadings**2).sum(1), 1e-3)
    scaled = loadings / noise[:, None]
    z = standard @ scaled @ np.linalg.inv(np.eye(study.offered) + loadings.T @ scaled)
    own[FACTORS] = Programmes(z, (np.abs(loadings) > VARIMAX).astype(float))
    rows[FACTORS] = {"programmes": study.offered, "auroc": separation(z[apart], labels[apart], study)}
    for label in only or MODELS:
        model, counts = MODELS[label]
        data, started = half.counted if counts else half.logged, time.process_time()
        fitted = data.rows_at(half.fitted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # chains that are left out
            program = zoo.build(model, fitted, latents=study.offered)
            result = fit(program, fitted, chains=CHAINS, seed=seed, device="cpu", progress=False)
        seconds = time.process_time() - started
        each[label], effective = of_fit(result, data.rows_at(half.scored), new, seed=seed)
        own[label] = Programmes.of(result, data)
        rows[label] = _told(result, own[label], y) | {
            "cpu_seconds": round(seconds, 1),
            "effective": round(effective, 3),
        }
        rows[label]["auroc"] = separation(own[label].z[apart], labels[apart], study)
        if not counts:
            density = result.held_out_objective(data.rows_at(half.scored), seed=seed)
            rows[label]["density"] = float((density + new.log_jacobian).mean())
        print(study.name, label, rows[label]["programmes"], each[label].mean() - alone.mean(), seconds, flush=True)
    for label, value in each.items():
        gain = value - alone
        rows.setdefault(label, {})
        rows[label] |= {"held_out": float(value.mean()), "gain": float(gain.mean())}
        rows[label] |= {"standard_error": float(gain.std(ddof=1) / np.sqrt(len(gain)))}
    return rows, own


def run(study: Study, seed: int = 0, only: Sequence[str] = ()) -> dict[str, Any]:
    """Both halves of a data set, what models share in each, and what of a model comes again in the other. only: of
    these models, and of factor analysis."""
    data = prepared(study)
    picked = np.random.default_rng([seed, 67]).permutation(data.rows)[: study.cells]
    parts = [np.sort(part) for part in np.array_split(picked, 2)]
    out: dict[str, Any] = {"name": study.name, "genes": data.features, "cells": [len(part) for part in parts]}
    out |= {"offered": study.offered, "halves": [], "common": [], "again": {}}
    found = []
    for k, part in enumerate(parts):
        other = parts[1 - k]
        scored = other[np.linspace(0, len(other) - 1, min(study.scored, len(other))).astype(int)]
        half = Half.of(data, part, scored)
        rows, own = run_half(study, half, data.env_labels(), seed + k, only)
        zeros = float((half.cells.counts[scored] == 0).mean())
        out["halves"].append({"scored": len(scored), "zeros": zeros, "models": rows})
        found.append(own)
    labels = list(found[0])
    for a, one in enumerate(labels):
        for b in labels[a + 1 :]:
            each = [shared(own[one], own[b]) for own in found]
            out["common"].append({"models": [one, b], "halves": each})
        out["again"][one] = [shared(found[k][one], found[1 - k][one]) for k in range(2)]
    return out


def added(entry: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What an entry has, and of an earlier one of the same cells what it lacks."""
    pairs = {tuple(pair["models"]): pair for pair in (*before["common"], *entry["common"])}
    halves = [
        old | new | {"models": old["models"] | new["models"]}
        for old, new in zip(before["halves"], entry["halves"], strict=True)
    ]
    both = {"halves": halves, "common": list(pairs.values()), "again": before["again"] | entry["again"]}
    return before | entry | both | {"cpu_seconds": round(before["cpu_seconds"] + entry["cpu_seconds"], 1)}


def study(
    studies: Sequence[Study] = STUDIES, path: str | Path | None = None, only: Sequence[str] = ()
) -> dict[str, Any]:
    """All data sets; written to `path` after each. only: models that are fitted; rows of others, and pairs of these,
    stay as they are there, and pairs of both kinds are left out."""
    for label in only:
        one_of("only", label, tuple(MODELS))
    known: dict[str, Any] = {}
    if only and path is not None and Path(path).exists():
        known = {entry["name"]: entry for entry in json.loads(Path(path).read_text(encoding="utf-8"))["data"]}
    table: dict[str, Any] = {"about": "programmes", **provenance(), "data": list(known.values())}
    for one in studies:
        started = time.process_time()
        entry = run(one, only=only)
        entry["cpu_seconds"] = round(time.process_time() - started, 1)
        known[one.name] = added(entry, known[one.name]) if one.name in known else entry
        table["data"] = list(known.values())
        if path is not None:
            write_json(table, path)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.programmes", description=__doc__)
    parser.add_argument("--json", default=None, help="where the results go")
    parser.add_argument("--only", action="append", default=[], help="a model that is fitted, such as 'ebmf, counts'")
    told = parser.parse_args()
    study(path=told.json, only=told.only)
