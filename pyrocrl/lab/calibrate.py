"""`calibrate`: data drawn from a program's own story, fitted, and the posteriors beside what they were drawn from.

If fits are exact, the truth has every rank among its draws equally often, what has probability p comes true in a
share p of the cases, and intervals cover what they say. Whatever departs from this is the fit's error: of guides, of
maxima that were missed, of weights of chains. The truth is first brought to the fit by the claim's group, as draws are,
for no theorem promises more.

Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based calibration, arXiv 1804.06788;
Lemos et al. (2023), Sampling-based accuracy testing of posterior estimators (TARP), ICML.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from scipy import stats

from pyrocrl.claims import labels
from pyrocrl.claims.indeterminacy import Alignment, Group, normal_scores
from pyrocrl.data import Data
from pyrocrl.dists import PseudoPrior
from pyrocrl.errors import InputError, reject
from pyrocrl.exact.linear_sem import Flat, ScaleFree
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.checkpoint import digest, fingerprint
from pyrocrl.infer.fit import fit
from pyrocrl.infer.fitted import Fit
from pyrocrl.infer.loop import FitError
from pyrocrl.io import write_json
from pyrocrl.judge.diagnose import HOLDS, diagnose
from pyrocrl.judge.metrics import expected_calibration_error
from pyrocrl.lab.provenance import provenance
from pyrocrl.lab.reproduce import format_table
from pyrocrl.options import Bounds, Natural, Seed, Size, checked
from pyrocrl.program import LATENT_DIMS, Program
from pyrocrl.turns import drawing, reseed

LEVELS = (0.5, 0.8, 0.9, 0.95)
STANDS = {*HOLDS, "identified, undecided at this n"}  # verdicts beside which a posterior is to be believed
DRAWS = 99  # of each posterior: the truth has one of 100 ranks among them
NEW_ROWS = 4  # of each environment, not fitted, whose latents are looked at
SKIPPED = ("unmixing",)  # one of many left inverses of the loadings: which one, depends on the features' units
UNCLAIMED = ("private",)  # latents beside those of the claims: nothing brings them to each other
ROUNDED = 1e-5  # of a value: draws that differ by less are one, of a latent that the row determines
CELLS = {"mask": "mask", "graph": "graph", "targets": "targets_matrix"}
STAND_INS = "variances log-normal about 1 with deviation .7 of their logarithms, levels N(0, 1)"


@dataclass(frozen=True)
class Calibration:
    """What many data sets say of a program's posteriors. Tables are made by `scalars` and `cells`, `str` prints them;
    those of sets whose verdict holds by themselves (`held`).

    header: model, options, rows of each environment, where truths were drawn from, seed, versions. sets: for each data
    set its number and seconds; the verdict on each claim; ranks of true values among their draws, in (0, 1), by site;
    [probability, truth] of cells by name; `tarp`, for each new row, the share of draws of z nearer than the truth to a
    random point. Or why a fit
    `failed`.
    """

    header: Mapping[str, Any]
    sets: tuple[Mapping[str, Any], ...]

    def ranks(self, name: str) -> np.ndarray:
        """(set, entry) of a site, NaN where a set has none; `z`: (set, row and latent)."""
        own = [np.asarray(one["ranks"].get(name, []), dtype=float) for one in self._done]
        out = np.full((len(own), max((len(r) for r in own), default=0)), np.nan)
        for place, r in enumerate(own):
            out[place, : len(r)] = r
        return out

    def scalars(self) -> dict[str, dict[str, float]]:
        """By site: how many values, coverage of central intervals at each of `LEVELS`, and `p`, the probability of
        ranks no more uniform than these if fits were exact: Kolmogorov and Smirnov's over data sets, the least of all
        entries times their number. Of z, whose rows share a fit, p is that of one row a data set."""
        out = {}
        for name in dict.fromkeys(key for one in self._done for key in one["ranks"]):
            table = self.ranks(name)
            u = table[np.isfinite(table)]
            found = {"values": float(len(u))}
            found |= {f"covered_{round(100 * v)}": float((np.abs(u - 0.5) <= v / 2).mean()) for v in LEVELS}
            entries = [own for c in range(table.shape[1]) if len(own := table[np.isfinite(table[:, c]), c]) > 4]
            if name == "z":
                entries = entries[:1]
            p = [float(stats.kstest(own, "uniform").pvalue) for own in entries]
            out[name] = found | {"p": min(1.0, len(p) * min(p)) if p else float("nan")}
        return out

    def cells(self) -> dict[str, dict[str, float]]:
        """By `mask`, `graph` and `targets`: how many cells, expected calibration error over all of them and over those
        of probability .05 to .95 (`undecided` of them), and the Brier score."""
        out = {}
        for name in dict.fromkeys(key for one in self._done for key in one["cells"]):
            p, hit = np.array([pair for one in self._done for pair in one["cells"].get(name, [])]).T
            open_ = (p >= 0.05) & (p <= 0.95)
            out[name] = {
                "cells": float(len(p)),
                "ece": expected_calibration_error(hit, p),
                "undecided": float(open_.sum()),
                "ece_undecided": expected_calibration_error(hit[open_], p[open_]) if open_.any() else float("nan"),
                "brier": float(((p - hit) ** 2).mean()),
            }
        return out

    def tarp(self) -> float:
        """Largest difference between the share of rows whose z lies in a region of TARP's and the probability that
        the posterior gives the region; NaN without z."""
        f = np.sort(np.concatenate([np.asarray(one["tarp"], dtype=float) for one in self._done] or [np.zeros(0)]))
        return float(np.abs(f - (np.arange(len(f)) + 0.5) / len(f)).max()) if len(f) else float("nan")

    @property
    def _done(self) -> list[Mapping[str, Any]]:
        return [one for one in self.sets if "failed" not in one]

    def held(self) -> Calibration:
        """Of the sets whose verdict lets every claim stand. It is read off the data alone, as posteriors are, so that
        exact ones are calibrated among these as well."""
        sets = (one for one in self._done if STANDS.issuperset(one.get("verdicts", {}).values()))
        return replace(self, sets=tuple(sets))

    def summary(self) -> dict[str, Any]:
        """All tables, and how many sets were fitted and failed; `held`: the same of sets whose verdict holds."""
        numbers: dict[str, Any] = {"sets": len(self.sets), "failed": len(self.sets) - len(self._done)}
        numbers |= {"tarp": self.tarp(), "scalars": self.scalars(), "cells": self.cells()}
        held = self.held()
        return numbers | ({"held": held.summary()} if len(held.sets) < len(self.sets) else {})

    def curve(self, name: str, bins: int = 10) -> list[list[float]]:
        """[mean probability, share that is true, cells] of each bin that has any: what `plots.calibration` draws."""
        p, hit = np.array([pair for one in self._done for pair in one["cells"].get(name, [])]).T
        place = np.minimum((p * bins).astype(int), bins - 1)
        return [
            [float(p[place == b].mean()), float(hit[place == b].mean()), int((place == b).sum())] for b in set(place)
        ]

    def plot(self, name: str) -> Any:
        """The reliability curve of `mask`, `graph` or `targets`, a figure."""
        from pyrocrl.show import plots

        p, hit = np.array([pair for one in self._done for pair in one["cells"].get(name, [])]).T
        return plots.calibration(p, hit)

    def __str__(self) -> str:
        done, held, head = self._done, self.held(), self.header
        lines = [
            f"{head['model']}, {len(done)} data sets of {head['rows']} rows an environment, drawn from {head['from']}"
        ]
        lines += [f"{len(self.sets) - len(done)} fits failed"] if len(done) < len(self.sets) else []
        lines += self._tables()
        if 0 < len(held.sets) < len(done):
            lines += ["", f"of these the {len(held.sets)} whose verdict holds", *held._tables()]
        elif not held.sets:
            lines += ["", "no verdict holds"]
        return "\n".join(lines)

    def _tables(self) -> list[str]:
        lines, shown = [], [f"{v:.0%}" for v in LEVELS]
        if scalars := self.scalars():
            rows = [
                [n, int(s["values"]), *(s[f"covered_{round(100 * v)}"] for v in LEVELS), s["p"]]
                for n, s in scalars.items()
            ]
            lines += ["", format_table(["intervals cover", "values", *shown, "p of ranks"], rows)]
        if cells := self.cells():
            whole = ("cells", "undecided")
            names = ["cells", "ece", "undecided", "ece_undecided", "brier"]
            rows = [[n, *(int(c[k]) if k in whole else c[k] for k in names)] for n, c in cells.items()]
            lines += ["", format_table(["probabilities", "cells", "ECE", ".05-.95", "ECE there", "Brier"], rows)]
        if np.isfinite(self.tarp()):
            lines += ["", f"z as a whole (TARP): off by {self.tarp():.3f} at most"]
        return lines

    def sentence(self) -> str:
        """What 90 % intervals cover, in a line."""
        scalars = self.scalars()
        parts = [f"{scalars[n]['covered_90']:.0%} of {n}" for n in scalars]
        where = "around your data" if self.header["from"] == "a fit" else "on data of the story"
        return f"{where}, 90 % intervals cover " + (", ".join(parts) if parts else "nothing that is claimed")


@checked
def calibrate(
    program: Program | None = None,
    data: Data | None = None,
    *,
    around: Fit | None = None,
    sets: Size = 200,
    rows: Annotated[int, Bounds(4)] | None = None,
    chains: Size | None = None,
    seed: Seed = 0,
    draws: Annotated[int, Bounds(9)] = DRAWS,
    first: Natural = 0,
    path: str | Path | None = None,
    on_set: Callable[[Mapping[str, Any]], None] | None = None,
) -> Calibration:
    """Draw parameters and data from a program's story `sets` times, fit each, and compare posteriors with the truth.

    program, data: whose story, and rows that lend the data sets their environments, auxiliary columns, batches and size
    factors; a fit to them gives what is no site of the story, such as a decoder's weights. Priors that are improper
    have stand-ins (`STAND_INS`), so that the last bit of calibration is not to be had there. around: a fit in place of
    both; truths are then draws of its posterior, so that it is asked about data like yours. rows: of each environment;
    None = as many as there are. chains: of each fit; None = the recipe's. first: the first set's number. path: a
    results file, written after every set; sets that it holds are not fitted again. on_set: called after each.

    Of every site without rows, ranks of all entries; of z, those of rows that were not fitted; of mask, graph, inferred
    targets and latents that are states, the probability and the truth of each cell; and the verdict on each claim. The
    truth and every draw are aligned with the fit's latents first, by what the claim leaves free (an affine map where
    none is made; where maps of each latent are free, z are normal scores of its ranks; where those of blocks are, z go
    through a smooth one, see `Group.bent`), and names of states with those that the fit finds. Fits see x in the
    story's own units and have its constants, to which its priors belong. Left out are sites of latents that have no
    meaning where latents mix, or of which nothing is claimed, slopes whose gates may be shut, and codes. A fit that
    fails is a row with its reason.

    Raises InputError for neither or both of `program` and `around`, and for a file that holds something else.
    """
    if (program is None) == (around is None):
        reject("program", "both it and `around`" if program else "neither it nor `around`", "one of them")
    program, data = (program, data) if around is None else (around.program, data or around.data)
    assert program is not None
    if data is None:
        reject(
            "data", "None", "rows that lend their environments; of a fit read from a file, the Data it was fitted to"
        )
    header = {
        "model": program.card.name,
        "config": program.arguments,
        "rows": rows,
        "chains": chains,
        "from": "the prior" if around is None else "a fit",
        "fit": None if around is None else digest(around.chains.params, {}),  # the same when fitted again
        "template": fingerprint(data),
        "draws": draws,
        "seed": seed,
    }
    kept = _kept(path, header)
    source = around
    if source is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            source = fit(program, data, chains=1, seed=seed, device="cpu", progress=False)
    head = header | provenance() | ({"stand_ins": STAND_INS} if around is None else {})
    found = {one["set"]: one for one in kept}
    for number in range(first, first + sets):
        if number not in found:
            found[number] = _one(source, data, rows, chains, draws, mix(seed, number, 61), around is not None)
            found[number] = {"set": number, **found[number]}
            if on_set is not None:
                on_set(found[number])
        if path is not None:
            so_far = Calibration(head, tuple(found[k] for k in sorted(found)))
            tables = so_far.summary() if number == first + sets - 1 else {}
            write_json({**head, "summary": tables, "sets": list(so_far.sets)}, path)
    return Calibration(head, tuple(found[k] for k in sorted(found)))


def read(path: str | Path) -> Calibration:
    """A results file of `calibrate`. Raises InputError for anything else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        sets = tuple(found.pop("sets"))
        found.pop("summary")
        assert isinstance(found["from"], str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        reject("path", f"{str(path)!r}, which holds something else", "results of `pyrocrl calibrate`")
    return Calibration(found, sets)


def _kept(path: str | Path | None, header: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Sets that the file at `path` holds already."""
    if path is None or not Path(path).exists():
        return []
    there = read(path)
    for key, mine in json.loads(json.dumps(header)).items():
        if there.header.get(key) != mine:
            reject("path", f"results with another {key} in {str(path)!r}", "a new file, or the same command as before")
    return list(there.sets)


# -- one data set --------------------------------------------------------------------------------------------------


class _Proper(Messenger):
    """Draws of what has an improper prior from the stand-ins."""

    def _pyro_sample(self, msg: Any) -> None:
        law = msg["fn"]
        while hasattr(law, "base_dist"):
            law = law.base_dist
        if msg["value"] is None and isinstance(law, ScaleFree | Flat):
            like = law.like if isinstance(law, ScaleFree) else law.log_height
            noise = torch.randn(msg["fn"].batch_shape, dtype=like.dtype, device=like.device)
            msg["value"], msg["done"] = (0.7 * noise).exp() if isinstance(law, ScaleFree) else noise, True


def _one(
    source: Fit, data: Data, rows: int | None, chains: int | None, draws: int, seed: int, around: bool
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    started = time.process_time()
    try:
        whole, truth, fitted, teller = _simulated(source, data, rows, rng, seed, around)
        kept = whole.rows_at(np.flatnonzero(fitted))
        program = teller.fresh().with_constants_of(teller)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            result = fit(program, kept, chains=chains, seed=seed % 2**31, device="cpu", progress=False)
            verdicts = {claim.what: claim.verdict for claim in diagnose(result, kept).claims}
    except (FitError, InputError) as error:  # ... or rows that are refused, as of series that explode
        return {"failed": str(error)}
    found = _compared(result, whole, truth, fitted, draws, rng)
    return {"seconds": round(time.process_time() - started, 2), "verdicts": verdicts, **found}


def _simulated(
    source: Fit, data: Data, rows: int | None, rng: np.random.Generator, seed: int, around: bool
) -> tuple[Data, dict[str, np.ndarray], np.ndarray, Program]:
    """A data set, the true values of the story's sites by name, (row,) whether a row is to be fitted, and the program
    that told it."""
    coded = source.coded(data)
    at, fitted = _drawn_rows(coded, rows, rng)
    template = coded.rows_at(at)
    if coded.pair is not None:  # drawn twice, a pair is two pairs
        template.pair = np.arange(len(at)) // 2
    if coded.series is not None:  # those to fit, and those that are not, stand side by side
        template.series, template.series_names = np.where(fitted, 0, 1), ["fitted", "new"]
        template.step = np.where(fitted, np.cumsum(fitted), np.cumsum(~fitted)) - 1
    batch = source.batch_of(template).annealed()
    with drawing(), torch.no_grad(), _Proper():
        reseed(seed)
        program = source.programs()[int(rng.choice(source.chains.count, p=source.weights))]
        sites = stories.drawn(program, batch, local=False) if around else {}
        trace = stories.told(program, batch.blank(), sites)
        values = stories.values(trace) | {"x": trace.nodes["x"]["value"]}
    told = {n: source.in_data_units(n, v.double().cpu().numpy()[None])[0] for n, v in values.items()}
    x = told.pop("x")
    if template.view is not None and template.gaps:
        x = np.where(template.present[:, template.view], x, np.nan)
    if template.incomplete:
        x = np.where(template.known, x, np.nan)
    kept = {*CELLS, *program.labels, "z"}
    told = {n: v for n, v in told.items() if n in kept or _has_density(trace.nodes[n])}
    data = Data(
        x.round().astype(np.int64) if coded.counts else x,
        template.env_labels(),
        targets=coded.targets,
        control=coded.control,
        counts=coded.counts,
        aux=template.aux,
        size_factor=template.size_factor,
        batch=None if coded.batch_names == ["all"] else np.array(coded.batch_names)[template.batch],
        pair=template.pair,
        series=None if template.series is None else template.series_labels(),
        step=_steps_of(template),
        view=None if template.view is None else template.view_labels(),
        missing=template.incomplete,
        feature_names=coded.feature_names,
        aux_names=coded.aux_names if template.aux is not None else None,
        name="calibration",
    )
    return data.in_units(source.units), told, fitted, program


def _drawn_rows(data: Data, rows: int | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(row,) positions drawn from each environment, `rows` or as many as it has and a few more, and whether a row is to
    be fitted. Of pairs both rows, side by side, by the environment of the one before."""
    partner, size = data.partner, 1 if data.pair is None else 2
    first = np.ones(data.rows, dtype=bool) if data.pair is None else ~data.after & (partner >= 0)
    places, fitted = [], []
    for env in range(len(data.env_names)):
        own = np.flatnonzero((data.env == env) & first)
        if not own.size:  # rows after alone
            continue
        many = own.size if rows is None else max(1, rows // size)
        places += [rng.choice(own, many, replace=many > len(own)), rng.choice(own, NEW_ROWS // size)]
        fitted += [np.ones(many, dtype=bool), np.zeros(NEW_ROWS // size, dtype=bool)]
    at, use = np.concatenate(places), np.concatenate(fitted)
    return (at, use) if size == 1 else (np.stack([at, partner[at]], 1).ravel(), np.repeat(use, 2))


def _steps_of(data: Data) -> np.ndarray | None:
    if data.series is not None:
        return data.step
    return None if data.pair is None else data.after.astype(int)


def _has_density(node: Mapping[str, Any]) -> bool:
    """Whether ranks of a site's values mean something: not of codes, nor of slopes whose gates may be shut."""
    law = node["fn"]
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return not isinstance(law, PseudoPrior) and not law.support.is_discrete


def _compared(
    result: Fit, data: Data, truth: Mapping[str, np.ndarray], fitted: np.ndarray, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Ranks, cells and TARP of one fit, all in the order and units of its own latents.

    The truth is brought to the fit's latents as every draw is: where the posterior is exact they are exchangeable, and
    nothing of the truth's units is lent to the fit.
    """
    program, new = result.program, np.flatnonzero(~fitted)
    claimed = any(claim.what == "latents" for claim in program.claims())
    group = program.group if claimed or not program.group.free else Group.of("affine")
    count = rng.multinomial(draws, result.weights)  # of each chain
    tree = result.posterior(
        int(count.max()), data, predictive=False, density=False, thin=1, seed=int(rng.integers(2**31))
    )
    drawn = {
        str(name): np.concatenate([v.to_numpy()[chain, :many] for chain, many in enumerate(count)]).astype(float)
        for name, v in tree["posterior"].to_dataset().data_vars.items()
    }
    reference, alignments = result.latents(data), None
    if "z" in truth and not program.reads_innovations and "z" not in program.labels:
        alignments = [group.align(z, reference) for z in (truth["z"], *drawn["z"])]
    alignments, named = _named(result, data, truth, drawn, alignments)
    scores, told = alignments, {n: np.stack([truth[n], *drawn[n]]) for n in ("z",) if n in truth and n in drawn}
    if alignments and "elementwise" in group.free and "z" not in program.labels:
        told["z"], reference = normal_scores(told["z"], axis=1), normal_scores(reference)
        scores = [group.align(z, reference) for z in told["z"]]
    if alignments and group.free & {"block", "kept"}:
        told["z"] = np.stack([group.bent(z, reference) for z in told["z"]])
        scores = [group.align(z, reference) for z in told["z"]]

    def brought(name: str, values: np.ndarray, by: list[Alignment] | None) -> np.ndarray | None:
        """Values (draw, ...) by these alignments; None where they have no meaning."""
        site = result._site(name)
        axes: dict[int, Any] = {a: site.scales.get(dim, 0) for a, dim in enumerate(site.dims) if dim in LATENT_DIMS}
        if not set(site.dims).isdisjoint(UNCLAIMED):
            return None
        if not axes:
            return values
        if by is None or (group.mixes and any(how not in (1, -1, "point") for how in axes.values())):
            return None
        moved = np.stack([a.act(value, axes) for a, value in zip(by, values, strict=True)])
        listing = {dim for dims in program.labels.values() for dim in dims}
        lists = [a for a, dim in enumerate(site.dims) if dim in listing]
        if not lists:
            return moved
        return np.stack([labels.brought(v, lists, n, site.dims.index("latent")) for v, n in zip(moved, named)])

    ranks: dict[str, list[float]] = {}
    cells: dict[str, list[list[float]]] = {}
    tarp: list[float] = []
    for name in program.labels if alignments else ():
        turned = zip(alignments or (), (truth[name], *drawn[name]), named, strict=True)
        own = [labels.called(a.act(v, {-1: 0}), names) for a, v, names in turned]
        share = np.mean([np.eye(named.shape[-1])[v] for v in own[1:]], 0)[new]  # (row, latent, name)
        true = np.eye(named.shape[-1])[own[0]][new]
        moves = np.ptp(own, axis=(0, 1)) > 0  # of a latent that is none there is nothing to tell
        cells[name] = _pairs(share[:, moves], true[:, moves])
    for name, values in drawn.items():
        site = result._site(name)
        if name in program.labels or name not in truth or site.discrete or (name not in program.sites and name != "z"):
            continue
        if name in SKIPPED or ("data" in site.dims and name != "z") or values.shape[1:] != truth[name].shape:
            continue
        if name == "z" and np.isin(truth["z"], (0.0, 1.0)).all():  # states, of which the group may swap the names
            on = [a.act(z - 0.5, {-1: 1}) > 0 for a, z in zip(alignments or (), (truth["z"], *values), strict=False)]
            cells["z"] = _pairs(np.mean(on[1:], 0)[new], on[0][new]) if on else []
            continue
        together = told["z"] if name == "z" else np.stack([truth[name], *values])
        both = brought(name, together, scores if name == "z" else alignments)
        if both is None:
            continue
        known, aligned = (both[0][new], both[1:, new]) if name == "z" else (both[0], both[1:])
        below = (aligned < known).sum(0) + rng.random(known.shape) * ((aligned == known).sum(0) + 1)
        moves = np.ptp(both, axis=0) > ROUNDED * (1e-9 + np.abs(both).max(0))
        moves = moves[new] if name == "z" else moves
        ranks[name] = np.round(below / (draws + 1), 4)[moves].ravel().tolist()
        if name == "z" and moves.any():
            spread = reference.std(0) + 1e-12
            point = reference.mean(0) + spread * rng.standard_normal(known.shape)
            far = (((known - point) / spread) ** 2).sum(-1)
            near = (((aligned - point) / spread) ** 2).sum(-1)
            inside = (near < far).sum(0) + rng.random(far.shape) * ((near == far).sum(0) + 1)  # draws may be alike
            tarp = np.round(inside / (draws + 1), 4).tolist()
    for name, read in CELLS.items():
        chain = result.chain_values(read) if name in truth else None
        if chain is None or (name == "targets" and program.target_mode == "known"):
            continue
        p = np.clip(np.tensordot(result.weights, chain, 1), 0, 1)
        goal = brought(name, truth[name][None], alignments and alignments[:1])
        if goal is None or goal.shape[1:] != p.shape:
            continue
        use = ~np.eye(len(p), dtype=bool) if name == "graph" else np.ones(p.shape, dtype=bool)
        cells[name] = _pairs(p[use], goal[0][use])
    return {"ranks": {k: v for k, v in ranks.items() if v}, "cells": cells, "tarp": tarp}


def _named(
    result: Fit,
    data: Data,
    truth: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    alignments: list[Alignment] | None,
) -> tuple[list[Alignment] | None, np.ndarray]:
    """Alignments of the truth and all draws, and (1 + draw, latent, name) what each calls the names of a program's
    labels, brought to those that are most probable in the fit. Latents that are labels are aligned by these as well."""
    shares = result.state_shares(data)
    if shares is None or not result.program.labels:
        return alignments, np.zeros((0, 0, 0), dtype=int)
    [name], most, names = result.program.labels, shares.argmax(-1), shares.shape[-1]
    own = [v.astype(int) for v in (truth[name], *drawn[name])]
    if name == "z":
        alignments = [labels.latents_by_labels(v, most, names) for v in own]
    assert alignments is not None
    turned = [a.act(v, {-1: 0}) for a, v in zip(alignments, own, strict=True)]
    return alignments, np.array([labels.renamed_all(v, most, names) for v in turned])


def _pairs(p: np.ndarray, truth: np.ndarray) -> list[list[float]]:
    """[probability, truth] of each cell."""
    return [[round(float(a), 4), int(b > 0.5)] for a, b in zip(p.ravel(), truth.ravel(), strict=True)]
