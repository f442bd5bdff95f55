"""`Data`, the labelled set a user hands in: on the host, with names and, where simulated, the truth."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyrocrl import arrays
from pyrocrl.batch import Array, Batch, Moments, Units
from pyrocrl.columns import check_order, checked_names, columns_of, index_of, numbered, places
from pyrocrl.errors import listed, one_of, reject
from pyrocrl.labels import (
    check_texts,
    customary_controls,
    feature_views,
    row_labels,
    row_pairs,
    row_series,
    stripped,
)

TRUTH_KEYS = (
    "z",
    "mask",
    "loadings",
    "graph",
    "weight",
    "targets",
    "moved_by",
    "component",
    "innovations",
    "row_target",
    "private",
    "state",
    "lagged",
    "contrast",
)
STRUCTURE = ("pair", "series", "aux")  # what ties rows together or moves them, which models need not read
TRUTH_BY_ROW = ("z", "innovations", "component", "row_target", "private", "state", "contrast")


class Data:
    """Rows of observed features with what is known about them.

    x: (data, feature) floats or counts, in any form that `arrays.plain` takes: numpy (also masked or memory-mapped),
        torch, scipy.sparse, lists, or a pandas table, whose columns and index are the names of features and rows.
    env: (data,) labels of environments, without spaces around them; None = one environment, "observational".
    targets: environment -> latents it intervenes on (by position); environments not listed are observational;
        None = targets unknown.
    control: label of the observational environment, listed first; None = the only one that `targets` leaves out, or the
        only one that is called as controls are (see `customary_controls`), or else unknown.
    counts: whether x holds counts; None = where x has an integer dtype, holds no number below 0, and has a 0 or a
        number above 100 (else they are ratings, ages or percentages).
    aux: (data, aux) auxiliary observations. size_factor: (data,) positive library sizes of counts; None = the sums of
        rows over all features; 1 or "none" = all rows alike.
    batch: (data,) labels of technical batches. covariates: a table or a mapping of names to (data,) numbers or texts,
        such as age and day, or an array (data, covariate): no model reads them, `pyrocrl.Adjustment` takes them out of
        the features.
    pair: (data,) labels of pairs, of two rows each: one before something happened and one after. step: (data,) numbers,
        or "before" and "after", of which a pair's row before has the lower; None = that is the row that comes first.
    series: (data,) labels of sequences of two rows or more, such as recordings, in which rows depend on those before
        them. step: (data,) numbers, evenly spaced, by the same distance in all series; None = rows are in order.
    view: views of the features, such as RNA and ATAC: (feature,) names, or a mapping of views to names of their
        features; two or more. A row may lack whole views: x is NaN there.
    missing: whether single values of x may be missing, NaN: models whose card says `reads_missing` leave them out of
        the likelihood, and all others refuse such rows. Not along with views, and not all values of a row.
    feature_names: (feature,) unique names; None = the table's, else
        feature_0, feature_1, ...; aux_names: (aux,) likewise. row_names: (data,) such as barcodes; None = the table's.
        Rows are known by their positions where names are those, or where one is there twice, with a warning.
    truth: arrays known by simulation, any of z (data, latent), innovations (data, latent; z less what parents give),
        mask (feature, latent), loadings (feature, latent), graph and weight (parent, child), targets, moved_by
        (parent, latent), numbers of actions and then latents of the row before that are parents of a latent, lagged
        (parent, child) of latents in the row before,
        component (data,), state (data, latent) of latents' dynamics, row_target (data,): the latent that was changed
        between the row before and this one, -1 for none and for rows before, private (data, any): latents of single
        views, contrast (data,): how far the columns of the mixing's slopes are from orthogonal.

    `pair_names` are the pairs' labels, `pair` (data,) the code of each row's, or None, and `after` (data,) whether it
    is the row after. Rows of a pair stay together where rows are split, held out or drawn; a row that is chosen without
    its partner (`rows_at`) stands alone. `series_names` are the series' labels, `series` (data,) the code of each
    row's, or None, and `step` (data,) its place in it, 0, 1, ...; of series whole ones are held out, or where these are
    few the end of each; where rows between others are left out (`rows_at`) those after them begin anew. `view_names`
    are the views in the order of their first features, `view` (feature,) the code of each feature's, or None, and
    `present` (data, view) whether a row has it; a share of the rows is held out of those with the same views.
    `incomplete` is whether single values are missing.

    `assumed` maps what was not told to what is taken in its place, in words; `repr` says it too. `size_rule` is where
    size factors of counts are from: "sums", "none" or "given"; None for floats. Raises InputError for anything that is
    missing, not finite, not of these shapes, or not known, for counts with rows that sum to 0 and no size factors, and
    for labels whose own index has the rows of x in another order. One row, or a feature that does not vary, is enough
    to predict with; `fit` refuses them.
    """

    units: Units | None = None  # in which `tensors` and `moments` give x; None = as it is
    adjustment: dict[str, Any] | None = None  # what `Adjustment` has taken out of x, as its `to_dict`

    def __init__(
        self,
        x: Any,
        env: Any = None,
        targets: Mapping[Any, Sequence[int]] | None = None,
        *,
        control: Any = None,
        counts: bool | None = None,
        aux: Any = None,
        size_factor: Any = None,
        batch: Any = None,
        pair: Any = None,
        series: Any = None,
        step: Any = None,
        view: Any = None,
        missing: bool = False,
        covariates: Any = None,
        feature_names: Sequence[str] | None = None,
        aux_names: Sequence[str] | None = None,
        row_names: Sequence[str] | None = None,
        truth: Mapping[str, Any] | None = None,
        name: str = "data",
    ) -> None:
        self.name = name
        along = {"env": env, "size_factor": size_factor, "batch": batch, "aux": aux, "covariates": covariates}
        along |= {"pair": pair, "series": series, "step": step}
        for argument, values in along.items():
            check_order(argument, values, x)
        index, named = index_of(x), columns_of(x) if feature_names is None else feature_names
        self.x = arrays.plain(x, "x")
        if self.x.ndim != 2:
            reject("x", f"shape {self.x.shape}", "two dimensions (data, feature)")
        rows, features = self.x.shape
        self.feature_names = checked_names("feature_names", named, features, "feature", "column of x")
        check_texts([name], "name")
        self.view_names: list[str] = []
        self.view: Array | None = None
        if view is not None:
            self.view_names, self.view = feature_views(view, self.feature_names)
        self.present = np.ones((rows, len(self.view_names)), dtype=bool)
        if missing and view is not None:
            reject("missing", "True, with views", "one of both: single values that are missing, or views")
        self.incomplete = False
        self._check_x(bool(missing))
        self.row_names = self._check_row_names(index if row_names is None else row_names)
        self.assumed: dict[str, str] = {}
        self.counts = self._are_counts() if counts is None else bool(counts)
        if self.counts:
            self._check_counts()
        labels = np.full(rows, "observational") if env is None else row_labels(env, "env", rows)
        self.targets = self._check_targets(targets, labels)
        self.control = self._find_control(labels) if control is None else self._check_control(control, labels)
        self.env_names, self.env = self._code_environments(labels)
        self.batch_names, self.batch = self._code(batch, "batch")
        if series is not None and pair is not None:
            reject("series", "series and pairs", "one of both")
        if step is not None and series is None and pair is None:
            allowed = "None, or series as well, the labels of sequences, or pair, the labels of pairs of rows"
            reject("step", "steps without series or pair", allowed)
        self.pair_names, self.pair, self.after = self._check_pairs(pair, step)
        self.series_names, self.series, self.step = self._check_series(series, step)
        self.covariates = self._check_covariates(covariates)
        self.size_factor, self.size_rule = self._check_size_factor(size_factor)
        self.aux = self._check_aux(aux)
        named = columns_of(aux) if aux_names is None else aux_names
        columns = 0 if self.aux is None else self.aux.shape[1]
        self.aux_names = checked_names("aux_names", named, columns, "aux", "column of aux")
        self.truth = self._check_truth(dict(truth or {}))

    # -- checks ------------------------------------------------------------------------------------------------

    def _check_x(self, missing_allowed: bool) -> None:
        rows, features = self.x.shape
        if rows < 1:
            reject("x", "0 rows", "at least 1 row, and 2 to fit to")
        if features < 2:
            reject("x", f"{features} feature{'s' * (features != 1)}", "at least 2 features")
        gaps, first = np.zeros(features, dtype=np.int64), -1  # missing values of each feature; the first row with one
        empty = -1  # the first row without any value
        for start, block in arrays.blocks(self.x):
            if not np.isfinite(block).all():
                missing = np.isnan(block)
                for row, column in np.argwhere(np.isinf(block))[:1]:
                    found = f"{block[row, column]} at row {start + row}, in {self.feature_names[column]!r}"
                    reject("x", found, "finite numbers")
                for v in range(len(self.view_names)):
                    own = np.flatnonzero(self.view == v)
                    absent = missing[:, own].all(1)
                    missing[np.ix_(absent, own)] = False
                    self.present[start : start + len(block), v] = ~absent
                if not missing.any():
                    continue
                first = start + int(missing.any(1).argmax()) if first < 0 else first
                gaps += missing.sum(0)
                if empty < 0 and (none := missing.all(1)).any():
                    empty = start + int(none.argmax())
        if gaps.any() and not missing_allowed:
            allowed = "finite numbers: fill gaps in, or leave out features (in files: drop) or rows (where); "
            other = "missing=True (--missing) for models that leave gaps out, such as ebmf"
            allowed += other if self.view is None else "a row may lack a whole view"
            reject("x", _gaps_told(gaps, first, self.feature_names), allowed)
        if empty >= 0:
            reject("x", f"row {empty} without any value", "rows of which something was measured: leave the others out")
        self.incomplete = bool(gaps.any())
        if self.view is not None:
            if (bare := np.flatnonzero(~self.present.any(1))).size:
                reject("x", f"row {bare[0]} without any view", "one view or more in every row")
            self._check_view_rows()

    def _check_view_rows(self) -> None:
        for name, count in zip(self.view_names, self.present.sum(0), strict=True):
            if not count:
                reject("view", f"view {name!r} without rows", "a row or more that has it")

    def check_fit(self) -> tuple[Array, Array]:
        """Least and largest value (feature,) of each column. Raises InputError for rows that nothing can be fitted to:
        fewer than two, or a feature that does not vary."""
        if self.rows < 2:
            reject("x", f"{self.rows} row", "at least 2 rows to fit to")
        self._check_view_rows()
        low, high = np.full(self.features, np.inf), np.full(self.features, -np.inf)
        for _, block in self.blocks():  # NaN of views that a row lacks is passed over
            low, high = np.fmin(low, np.fmin.reduce(block, 0)), np.fmax(high, np.fmax.reduce(block, 0))
        if (empty := np.flatnonzero(low > high)).size:
            reject("x", f"feature {self.feature_names[empty[0]]!r} without any value", "features that were measured")
        constant = [self.feature_names[j] for j in np.flatnonzero(low == high)]
        if constant:
            found = f"constant feature{'s' * (len(constant) > 1)} {listed(constant)}"
            reject("x", found, "features that vary: leave out those that do not (in files: drop 'constant')")
        return low, high

    def missing_told(self) -> str:
        """How many values are missing, and where, in words. Needs `incomplete`."""
        gaps, first = np.zeros(self.features, dtype=np.int64), -1
        for start, block in self.blocks():
            lacks = np.isnan(block)
            gaps += lacks.sum(0)
            if first < 0 and lacks.any():
                first = start + int(lacks.any(1).argmax())
        return _gaps_told(gaps, first, self.feature_names) if gaps.any() else "missing values in other rows"

    @property
    def known(self) -> Array:
        """(data, feature) whether each value was measured. Rows are made dense."""
        return np.concatenate([~np.isnan(block) for _, block in self.blocks()])

    def _are_counts(self) -> bool:
        """Whether to take x for counts where nobody says; `assumed` tells, unless the numbers are not whole."""
        whole, counted = self.x.dtype.kind in "iub", arrays.are_counts(self.x)
        if whole and counted:
            self.assumed["counts"] = "True (whole numbers)"
        elif whole:
            self.assumed["counts"] = f"False (whole numbers below 0, or all from 1 to {arrays.MOST_RATED})"
        elif counted:
            self.assumed["counts"] = "False (whole numbers, but as floats)"
        return whole and counted

    def _check_counts(self) -> None:
        for start, block in arrays.blocks(self.x):
            bad = np.argwhere((block < 0) | ((block != np.round(block)) & ~np.isnan(block)))
            if bad.size:
                row, column = bad[0]
                found = f"{block[row, column]:g} at row {start + row}, column {column}"
                reject("x", found, "counts: whole numbers from 0 on")

    def _check_row_names(self, names: Any) -> Array | None:
        """(data,) names of rows that differ from each other, or None: rows are then known by their positions."""
        if names is None:
            return None
        out = np.asarray([str(name) for name in names])
        if len(out) != self.rows:
            reject("row_names", f"{len(out)} names", f"one per row of x, {self.rows}")
        if (out == np.arange(self.rows).astype(str)).all():
            return None
        known, count = np.unique(out, return_counts=True)
        if len(known) < self.rows:
            line = f"row_names: {str(known[count > 1][0])!r} more than once, so rows go by their positions"
            warnings.warn(line, UserWarning, stacklevel=3)
            return None
        return out

    @staticmethod
    def _check_targets(targets: Any, labels: Array) -> dict[str, tuple[int, ...]] | None:
        if targets is None:
            return None
        if not isinstance(targets, Mapping):
            reject("targets", f"a {type(targets).__name__}", "a mapping environment -> latents, or None")
        known = set(np.unique(labels))
        out: dict[str, tuple[int, ...]] = {}
        for label, latents in zip(stripped(map(str, targets), "targets"), targets.values(), strict=True):
            if label in out:
                reject("targets", f"two environments with the label {label!r}", "labels that differ as texts")
            if label not in known:
                reject("targets", f"unknown environment {label!r}", f"one of {listed(sorted(known))}")
            wanted = (latents,) if isinstance(latents, int | np.integer) else tuple(latents)
            for k in wanted:
                if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 0:
                    reject("targets", f"{k!r} for environment {label!r}", "positions of latents, 0, 1, ...")
            if len(set(wanted)) != len(wanted):
                reject("targets", f"a latent twice for environment {label!r}", "each latent once")
            out[label] = tuple(int(k) for k in wanted)
        return out

    def _check_control(self, control: Any, labels: Array) -> str:
        [control] = stripped([str(control)], "control")
        if control not in set(names := np.unique(labels)):
            reject("control", f"unknown environment {control!r}", f"one of {listed(sorted(names))}")
        if (self.targets or {}).get(control):
            reject("control", f"{control!r}, which has targets", "an environment without targets")
        return str(control)

    def _find_control(self, labels: Array) -> str | None:
        """The only environment without targets, where these are known, or the only one that is called as controls are;
        never one of several."""
        names = np.unique(labels)
        free = [str(e) for e in names if not (self.targets or {}).get(e)]
        if self.targets is not None and len(free) == 1:
            return free[0]
        called = customary_controls(free)
        if len(called) != 1:
            return None
        if len(names) > 1:
            self.assumed["control"] = f"{called[0]!r} (its name)"
        return called[0]

    def _code_environments(self, labels: Array) -> tuple[list[str], Array]:
        """Control, then other observational environments, then the rest in order of their targets and names."""
        names = np.unique(labels)
        targets = self.targets or {}
        order = sorted(names, key=lambda e: (e != self.control, targets.get(e, ()), e))
        place = {e: i for i, e in enumerate(order)}
        codes = np.array([place[e] for e in names])[np.searchsorted(names, labels)]
        return [str(e) for e in order], codes.astype(np.int64)

    def _code(self, values: Any, argument: str) -> tuple[list[str], Array]:
        if values is None:
            return ["all"], np.zeros(self.rows, dtype=np.int64)
        names, codes = np.unique(row_labels(values, argument, self.rows), return_inverse=True)
        return [str(n) for n in names], codes.astype(np.int64)

    def _check_pairs(self, pair: Any, step: Any) -> tuple[list[str], Array | None, Array]:
        """Names of pairs, the code of each row's, and whether it is the one after."""
        if pair is None:
            return [], None, np.zeros(self.rows, dtype=bool)
        found = row_pairs(pair, step, self.rows)
        if step is None:
            self.assumed["step"] = "the first row of a pair is before"
        return found.names, found.code, found.after

    def _check_series(self, series: Any, step: Any) -> tuple[list[str], Array | None, Array]:
        """Names of series, the code of each row's, and its place in it."""
        if series is None:
            return [], None, np.zeros(self.rows, dtype=np.int64)
        found = row_series(series, step, self.rows)
        if step is None:
            self.assumed["step"] = "rows of a series are in order"
        return found.names, found.code, found.step

    def _check_size_factor(self, size_factor: Any) -> tuple[Array | None, str | None]:
        """Size factors, and where they are from."""
        if size_factor is None:
            if not self.counts:
                return None, None
            self.assumed["size_factor"] = "sums of rows"
            return self._sizes("sums"), "sums"
        if np.ndim(size_factor) == 0:
            if size_factor not in (1, "none"):
                reject("size_factor", repr(size_factor), "one number per row of x, None, or 1 or 'none' for no sizes")
            return (self._sizes("none"), "none") if self.counts else (None, None)
        s = arrays.floats(size_factor, "size_factor")
        if s.shape != (self.rows,):
            reject("size_factor", f"shape {s.shape}", f"one per row of x, shape ({self.rows},)")
        if not (np.isfinite(s).all() and (s > 0).all()):
            reject("size_factor", f"{s[~(np.isfinite(s) & (s > 0))][0]}", "finite numbers above 0")
        return s, "given" if self.counts else None

    def _sizes(self, rule: str) -> Array:
        """(data,) size factors by the rule "sums" or "none"."""
        if rule == "none":
            return np.ones(self.rows)
        if self.gaps:
            reject("size_factor", "None, with rows that lack a view", "one number per row, or 1")
        if self.incomplete:
            allowed = "one number per row, such as counts of features that all rows have, or 1 (--size-factor none)"
            reject("size_factor", f"None, with {self.missing_told()}, of which rows have no sums", allowed)
        sums = np.asarray(self.x.sum(1, dtype=np.float64)).reshape(self.rows)
        if (empty := np.flatnonzero(sums == 0)).size:
            more = f" and in {empty.size - 1} more" * (empty.size > 1)
            allowed = "rows that hold a count, or size_factor=1 (--size-factor none)"
            if "counts" in self.assumed:
                allowed += ", or counts=False (--no-counts)"
            reject("size_factor", f"counts that sum to 0 in row {empty[0]}{more}", allowed)
        return sums

    def _check_aux(self, aux: Any) -> Array | None:
        if aux is None:
            return None
        a = arrays.floats(aux, "aux")
        a = a[:, None] if a.ndim == 1 else a
        if a.ndim != 2 or a.shape[0] != self.rows:
            reject("aux", f"shape {a.shape}", f"({self.rows}, aux)")
        if not np.isfinite(a).all():
            reject("aux", "NaN or infinite values", "finite numbers")
        return a

    def _check_covariates(self, covariates: Any) -> dict[str, Array]:
        """Covariate -> (data,) floats, or texts."""
        if covariates is None:
            return {}
        try:
            table = pd.DataFrame(covariates)
        except (TypeError, ValueError) as error:
            reject("covariates", f"what is no table ({error})", f"a table of {self.rows} rows, or names and columns")
        if len(table) != self.rows:
            reject("covariates", f"{len(table)} rows", f"one for each row of x, {self.rows}")
        names = columns_of(table) or numbered("covariate", table.shape[1])
        out = {}
        names = checked_names("covariates", names, len(names), "", "")
        for name, (_, column) in zip(names, table.items(), strict=True):
            if not pd.api.types.is_numeric_dtype(column):
                out[name] = row_labels(column.to_numpy(), f"covariates[{name!r}]", self.rows)
                continue
            out[name] = arrays.floats(column, f"covariates[{name!r}]")
            if not np.isfinite(out[name]).all():
                count = int((~np.isfinite(out[name])).sum())
                reject(f"covariates[{name!r}]", f"{count} values that are not finite", "finite numbers, or texts")
        return out

    def _check_truth(self, truth: dict[str, Any]) -> dict[str, Array]:
        out = {}
        for key, value in truth.items():
            if key not in TRUTH_KEYS:
                reject("truth", f"{key!r}", f"any of {', '.join(TRUTH_KEYS)}")
            out[key] = value if key == "targets" else arrays.dense(value, f"truth[{key!r}]")
        for key in TRUTH_BY_ROW:
            if key in out and out[key].shape[0] != self.rows:
                reject(f"truth[{key!r}]", f"{out[key].shape[0]} rows", f"one per row of x, {self.rows}")
        for key in ("mask", "loadings"):
            if key in out and (out[key].ndim != 2 or out[key].shape[0] != self.features):
                reject(f"truth[{key!r}]", f"shape {out[key].shape}", f"(feature, latent), {self.features} features")
        for key in ("graph", "weight"):
            if key in out and (out[key].ndim != 2 or out[key].shape[0] != out[key].shape[1]):
                reject(f"truth[{key!r}]", f"shape {out[key].shape}", "(parent, child), square")
        return out

    # -- what it holds -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        kind = "counts" if self.counts else "floats"
        pairs = "" if self.pair is None else f"; {int((self.partner[self.after] >= 0).sum())} pairs"
        if self.series is not None:
            count = len(np.unique(self.series))
            pairs += f"; {count} series of {self.rows / count:.0f} rows on average" if count > 1 else "; one series"
        if self.view is not None:
            seen = (f"{n!r} in {c} rows" for n, c in zip(self.view_names, self.present.sum(0), strict=True))
            pairs += f"; views {', '.join(seen)}"
        known = "unknown" if self.targets is None else f"{len(self.targets)} listed"
        return (
            f"Data({self.name}: {self.rows} rows x {self.features} features, {kind}; "
            f"{len(self.env_names)} environments, targets {known}{pairs}; truth: {', '.join(self.truth) or 'none'}"
            f"{'; assumed unless told: ' * bool(self.assumed)}{', '.join(f'{k}={v}' for k, v in self.assumed.items())})"
        )

    @property
    def rows(self) -> int:
        return int(self.x.shape[0])

    @property
    def gaps(self) -> bool:
        """Whether some row lacks a view: x is NaN there."""
        return not self.present.all()

    @property
    def measured(self) -> Array:
        """(feature,) rows that have each feature."""
        if self.incomplete:
            return np.sum([(~np.isnan(block)).sum(0) for _, block in self.blocks()], axis=0)
        return np.full(self.features, self.rows) if self.view is None else self.present.sum(0)[self.view]

    def view_labels(self) -> Array:
        """(feature,) the name of every feature's view. Needs views."""
        if self.view is None:
            reject("view", "None", "names of the features' views")
        return np.asarray(self.view_names)[self.view]

    @property
    def partner(self) -> Array:
        """(data,) position of the other row of each row's pair; -1 where there is none."""
        if self.pair is None:
            return np.full(self.rows, -1)
        own = 2 * self.pair + self.after
        order = np.argsort(own, kind="stable")
        place = order[np.minimum(np.searchsorted(own[order], own ^ 1), self.rows - 1)]
        return np.where(own[place] == own ^ 1, place, -1)

    def pair_labels(self) -> Array:
        """(data,) the name of every row's pair. Needs pairs."""
        if self.pair is None:
            reject("pair", "None", "labels of pairs of rows")
        return np.asarray(self.pair_names)[self.pair]

    def series_labels(self) -> Array:
        """(data,) the name of every row's series. Needs series."""
        if self.series is None:
            reject("series", "None", "labels of series")
        return np.asarray(self.series_names)[self.series]

    @property
    def clock(self) -> Array | None:
        """(data,) see `Batch`; None without series."""
        return None if self.series is None else self.series * (2 + int(self.step.max())) + self.step

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    @property
    def control_rows(self) -> Array:
        """(data,) whether a row is of the control; nowhere where there is none."""
        place = self.env_names.index(self.control) if self.control in self.env_names else -1
        return np.asarray(self.env == place)

    def row_labels(self) -> Array:
        """(data,) names of rows, or their positions where they have none."""
        return np.arange(self.rows) if self.row_names is None else self.row_names

    def env_labels(self) -> Array:
        """(data,) the environment's name of every row."""
        return np.asarray(self.env_names)[self.env]

    def target_matrix(self, latents: int) -> Array:
        """(env, latent) in {0, 1}: which latents each environment intervenes on. Needs known targets."""
        if self.targets is None:
            reject("targets", "None (unknown)", "a mapping environment -> latents")
        out = np.zeros((len(self.env_names), latents), dtype=np.int64)
        for e, label in enumerate(self.env_names):
            for k in self.targets.get(label, ()):
                if k >= latents:
                    reject("targets", f"latent {k} for environment {label!r}", f"latents 0 to {latents - 1}")
                out[e, k] = 1
        return out

    def rows_at(self, index: Array | slice) -> Data:
        """The rows at `index` (positions, booleans or a slice), with every environment's and batch's code kept."""
        if isinstance(index, slice) and index == slice(None):  # no copies: x may be large
            part = object.__new__(Data)
            part.__dict__.update({k: v for k, v in self.__dict__.items() if k != "moments"})
            part.truth = dict(self.truth)
            return part
        if not isinstance(index, slice):
            index = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index)
        part = object.__new__(Data)
        part.__dict__.update({k: v for k, v in self.__dict__.items() if k != "moments"})
        part.x, part.env, part.batch = self.x[index], self.env[index], self.batch[index]
        part.size_factor = None if self.size_factor is None else self.size_factor[index]
        part.aux = None if self.aux is None else self.aux[index]
        part.pair, part.after = None if self.pair is None else self.pair[index], self.after[index]
        part.series, part.step = None if self.series is None else self.series[index], self.step[index]
        part.present = self.present[index]
        part.row_names = None if self.row_names is None else self.row_names[index]
        part.covariates = {name: values[index] for name, values in self.covariates.items()}
        part.truth = {k: v[index] if k in TRUTH_BY_ROW else v for k, v in self.truth.items()}
        return part

    def without(self, *structure: str) -> Data:
        """The same rows as if "pair", "series" or "aux" were not told, for models that do not read it: a fit then takes
        rows of pairs and series as independent. Raises InputError for other words, and for what is not told."""
        part = self.rows_at(slice(None))
        for name in structure:
            one_of("without", name, STRUCTURE)
            if getattr(part, name) is None:
                told = [each for each in STRUCTURE if getattr(part, each) is not None]
                reject("without", f"{name!r}, which these data do not tell", ", ".join(told) or "nothing")
            setattr(part, name, None)
            setattr(part, f"{name}_names", [])
            if name != "aux":
                part.step, part.after = np.zeros(part.rows, dtype=np.int64), np.zeros(part.rows, dtype=bool)
                part.assumed = {key: value for key, value in part.assumed.items() if key != "step"}
        return part

    def in_units(self, units: Units | None) -> Data:
        """The same rows, of which programs see x in these units; None = as it is."""
        if self.units is units:
            return self
        part = self.rows_at(slice(None))
        part.units = units
        return part

    def coded_as(
        self,
        env_names: Sequence[str] | None = None,
        batch_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        aux_names: Sequence[str] | None = None,
    ) -> Data:
        """The same rows with environments, batches, features and auxiliary columns in the order of another data set's,
        or as they are for None.

        Raises InputError for labels of rows that it does not have, and for columns that are missing or unknown.
        """
        wanted = (env_names, batch_names, feature_names, aux_names)
        mine = (self.env_names, self.batch_names, self.feature_names, self.aux_names)
        if all(names is None or list(names) == own for names, own in zip(wanted, mine, strict=True)):
            return self
        part = self.rows_at(slice(None))
        for argument, names in (("env", env_names), ("batch", batch_names)):
            own, codes = getattr(self, f"{argument}_names"), getattr(self, argument)
            if names is None or list(names) == own:
                continue
            for code in np.unique(codes):
                if own[code] not in names:
                    reject(argument, f"{own[code]!r}, which was not fitted", f"one of {listed(list(names))}")
            place = np.array([list(names).index(name) if name in names else -1 for name in own])
            setattr(part, argument, place[codes])
            setattr(part, f"{argument}_names", list(names))
        if feature_names is not None and list(feature_names) != self.feature_names:
            order = places("feature_names", self.feature_names, feature_names)
            part.x, part.feature_names = self.x[:, order], list(feature_names)
            if self.view is not None:
                part.view_names, part.view = feature_views(self.view_labels()[order], part.feature_names)
                part.present = self.present[:, [self.view_names.index(name) for name in part.view_names]]
            part.truth |= {k: part.truth[k][order] for k in ("mask", "loadings") if k in part.truth}
        if aux_names is not None and list(aux_names) != self.aux_names:
            order = places("aux", self.aux_names, aux_names, "aux")
            part.aux, part.aux_names = None if self.aux is None else self.aux[:, order], list(aux_names)
        return part

    def sized_as(self, rule: str | None) -> Data:
        """The same rows with size factors by another data set's `size_rule`; None = of a fit that kept none, for which
        all rows were alike where nothing was told.

        Raises InputError where these rows were told other ones, or cannot have them.
        """
        assumed = self.assumed.get("size_factor")
        if rule is None and assumed == "sums of rows":
            rule = "none"
        if not self.counts or rule in (None, self.size_rule):
            return self
        if rule == "given":
            reject("size_factor", "none given", "one number per row, since the fit was given such numbers")
        assert rule is not None and self.size_factor is not None
        part = self.rows_at(slice(None))
        part.size_factor, part.size_rule = self._sizes(rule), rule
        if assumed is None and not np.allclose(part.size_factor, self.size_factor):
            words = "the sums of rows" if rule == "sums" else "1"
            reject("size_factor", "other numbers than in the fit", f"None, for {words}, as in the fit")
        return part

    def split(self, fraction: float, seed: int, *, by_env: bool = True) -> tuple[Data, Data]:
        """(train, held-out) with `fraction` of the rows held out; see `held_out`."""
        out = self.held_out(fraction, seed, by_env=by_env)
        return self.rows_at(~out), self.rows_at(out)

    def held_out(self, fraction: float, seed: int, *, by_env: bool = True) -> np.ndarray:
        """(row,) whether a row is among the `fraction` held out, of each environment or regardless of them.

        At least one row of each environment is not. Of a pair both rows are or neither, by the environments of both.
        Of series whole ones are, by the environments of their first rows; where the fraction is less than one of them,
        the last rows of every one. Where rows lack views, those with the same ones are taken alike.
        """
        if not 0 < fraction < 1:
            reject("fraction", fraction, "a number strictly between 0 and 1")
        rng = np.random.default_rng(seed)
        if self.pair is not None:
            return self._pairs_held_out(fraction, rng, by_env)
        if self.series is not None:
            return self._series_held_out(fraction, rng, by_env)
        out = np.zeros(self.rows, dtype=bool)
        kinds, count = (self.env, len(self.env_names)) if by_env else (np.zeros(self.rows, dtype=np.int64), 1)
        if self.gaps:
            same = np.unique(self.present, axis=0, return_inverse=True)[1].reshape(-1)
            kinds, count = kinds + count * same, count * (1 + int(same.max()))
        for kind in range(count):
            rows = np.flatnonzero(kinds == kind)
            take = min(round(fraction * rows.size), rows.size - 1)
            out[rng.permutation(rows)[: max(take, 0)]] = True
        if not out.any():
            out[rng.integers(self.rows)] = True
        return out

    def _pairs_held_out(self, fraction: float, rng: np.random.Generator, by_env: bool) -> np.ndarray:
        assert self.pair is not None
        codes, first = np.unique(self.pair, return_index=True)
        last = self.rows - 1 - np.unique(self.pair[::-1], return_index=True)[1]
        if len(codes) < 2:
            reject("pair", "one pair", "two or more, of which one can be held out")
        low, high = np.sort([self.env[first], self.env[last]], axis=0)
        kinds = low * len(self.env_names) + high if by_env else np.zeros(len(codes), dtype=int)
        chosen = np.zeros(len(codes), dtype=bool)
        for kind in np.unique(kinds):
            own = np.flatnonzero(kinds == kind)
            chosen[rng.permutation(own)[: min(round(fraction * own.size), own.size - 1)]] = True
        if not chosen.any():
            chosen[rng.integers(len(codes))] = True
        return np.isin(self.pair, codes[chosen])

    def _series_held_out(self, fraction: float, rng: np.random.Generator, by_env: bool) -> np.ndarray:
        assert self.series is not None
        codes, first = np.unique(self.series, return_index=True)
        kinds = self.env[first] if by_env else np.zeros(len(codes), dtype=int)
        out = np.zeros(self.rows, dtype=bool)
        for kind in np.unique(kinds):
            own = codes[kinds == kind]
            take = min(round(fraction * own.size), own.size - 1)
            if take:
                out |= np.isin(self.series, rng.permutation(own)[:take])
                continue
            for code in own:
                rows = np.flatnonzero(self.series == code)
                last = rows[np.argsort(self.step[rows], kind="stable")]
                out[last[len(last) - min(round(fraction * len(last)), len(last) - 2) :]] = len(last) > 2
        if not out.any() or out.all():
            reject("series", f"{self.rows} rows of series", "more, of which some can be held out")
        return out

    def spread(self, most: int) -> Array:
        """Positions of about `most` rows, spread evenly over all of them, in their order; of a pair both or neither;
        of series whole ones, and where one alone has more the first of these."""
        if self.rows <= most:
            return np.arange(self.rows)
        if self.series is not None:
            codes = pd.unique(self.series)
            many = max(1, min(len(codes), int(most * len(codes) / self.rows)))
            chosen = codes[np.unique(np.linspace(0, len(codes) - 1, many).astype(int))]
            own = np.flatnonzero(np.isin(self.series, chosen))
            return np.sort(own[np.lexsort((self.step[own], self.series[own]))][:most])
        if self.pair is None:
            return np.unique(np.linspace(0, self.rows - 1, most).astype(int))
        codes = pd.unique(self.pair)  # as they come
        chosen = codes[np.unique(np.linspace(0, len(codes) - 1, max(1, most // 2)).astype(int))]
        return np.flatnonzero(np.isin(self.pair, chosen))

    def some(self, cells: float, least: int) -> Data:
        """All rows, or rows spread evenly over them where x has more than `cells` entries; no fewer than `least`."""
        most = max(least, int(cells // self.features))
        return self if self.rows <= most else self.rows_at(self.spread(most))

    @cached_property
    def moments(self) -> Moments:
        """Count, mean and covariance per environment of x in `units`, gathered once in a pass over the rows."""
        envs, p = len(self.env_names), self.features
        count = np.bincount(self.env, minlength=envs).astype(np.float64)
        shift = self._in_units(next(arrays.blocks(self.x[: min(self.rows, 4096)]))[1]).mean(0)
        first, second = np.zeros((envs, p)), np.zeros((envs, p, p))
        for start, block in self.blocks():
            block = self._in_units(block) - shift  # shifted, so that squares keep their digits
            codes = self.env[start : start + block.shape[0]]
            for e in np.unique(codes):
                rows = block[codes == e]
                first[e] += rows.sum(0)
                second[e] += rows.T @ rows
        at_least_one = np.maximum(count, 1.0)
        mean = first / at_least_one[:, None]
        cov = second / at_least_one[:, None, None] - mean[:, :, None] * mean[:, None, :]
        as_tensor = torch.from_numpy
        return Moments(as_tensor(count), as_tensor(mean + shift), as_tensor(cov))

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Dense blocks of x as it is, with the position of their first row."""
        return arrays.blocks(self.x)

    def _in_units(self, block: Array) -> Array:
        return block.astype(np.float64) if self.units is None else self.units.standard(block)

    def tensors(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        rows: bool = True,
        moments: bool = False,
    ) -> Batch:
        """All rows as one `Batch` on `device`, x in `units`; with rows=False only the moments travel (x is empty)."""
        n = self.rows if rows else 0

        def send(values: Array, kind: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(values[:n]), dtype=kind, device=device)

        lacks = self.gaps or self.incomplete
        x = torch.empty(n, self.features, dtype=dtype)
        for start, block in arrays.blocks(self.x[:n]):
            values = self._in_units(block)
            x[start : start + len(block)] = torch.from_numpy(np.nan_to_num(values) if lacks else values)
        size = np.ones(n) if self.size_factor is None else self.size_factor
        return Batch(
            x=x.to(device),
            env=send(self.env, torch.long),
            size_factor=send(size, dtype),
            index=torch.arange(n, device=device),
            total=self.rows,
            group=send(self.batch, torch.long),
            aux=None if self.aux is None else send(self.aux, dtype),
            pair=None if self.pair is None else send(2 * self.pair + self.after, torch.long),
            clock=None if (clock := self.clock) is None else send(clock, torch.long),
            present=None if self.view is None else send(self.present, torch.bool),
            known=send(self.known, torch.bool) if self.incomplete else None,
            moments=self.moments.to(device) if moments else None,
            kl_weight=torch.ones((), device=device),
            temperature=torch.full((), 0.1, device=device),
            progress=torch.ones((), device=device),
        )


def _gaps_told(gaps: Array, first: int, names: Sequence[str]) -> str:
    """How many values are missing, `gaps` (feature,) of each, in words; first: the first row that lacks one."""
    total, columns = int(gaps.sum()), np.flatnonzero(gaps)
    worst = columns[np.argsort(-gaps[columns], kind="stable")]
    where = ", ".join(f"{names[j]!r} ({gaps[j]})" for j in worst[:3]) + ", ..." * (len(worst) > 3)
    plural = "s" * (total > 1)
    return f"{total} missing value{plural} in {len(columns)} of {len(gaps)} features, the first at row {first}: {where}"
