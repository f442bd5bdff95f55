"""`Data`, the labelled set a user hands in, and `Batch`, what a program sees of it.

`Data` lives on the host with names for features and environments and, where simulated, the truth.
`Batch` holds tensors on the device of the fit together with the annealing scalars of the current step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
import torch

from pyrocrl.errors import reject

Array = np.ndarray
CUSTOMARY_CONTROLS = ("observational", "control", "non-targeting")  # labels taken for a control where none is told
TRUTH_KEYS = ("z", "mask", "loadings", "graph", "weight", "targets", "component", "innovations")


@dataclass(frozen=True)
class Moments:
    """Count, mean and covariance of x in each environment: all that a linear-Gaussian program needs.

    count: (env,) rows; mean: (env, feature); cov: (env, feature, feature), divided by the count. float64.
    """

    count: torch.Tensor
    mean: torch.Tensor
    cov: torch.Tensor

    def to(self, device: torch.device | str) -> Moments:
        return Moments(self.count.to(device), self.mean.to(device), self.cov.to(device))


@dataclass(frozen=True)
class Units:
    """Origin and unit (feature,) of each column of x, in float64: a program sees (x - centre) / scale."""

    centre: Array
    scale: Array

    def standard(self, x: Array) -> Array:
        """(rows, feature) x as a program sees it, float64."""
        out: Array = (x.astype(np.float64) - self.centre) / self.scale
        return out

    def restore(self, x: Array) -> Array:
        """x (..., feature) in the data's units, float64, of what a program made."""
        out: Array = x.astype(np.float64) * self.scale + self.centre
        return out

    @property
    def log_volume(self) -> float:
        """What a row's log-density loses when x is told in the data's units."""
        return float(np.log(self.scale).sum())


@dataclass(frozen=True)
class Batch:
    """Tensors of some rows of a `Data`, on the device of the fit.

    x: (rows, feature), in the `units` of its `Data`; env, group: (rows,) integer codes of environment and technical
    batch; aux: (rows, aux); size_factor: (rows,), 1 where none was given; index: (rows,) positions in the whole data of
    `total` rows.
    `kl_weight`, `temperature` and `progress` are 0-d tensors that the recipe anneals, so no step waits for the host.
    together: environments whose interventions act together on the observational equations, in place of each row's own.
    """

    x: torch.Tensor  # None in a `blank` batch: a story then simulates it
    env: torch.Tensor
    size_factor: torch.Tensor
    index: torch.Tensor
    total: int
    group: torch.Tensor
    aux: torch.Tensor | None = None
    moments: Moments | None = None
    kl_weight: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones(()))
    temperature: torch.Tensor = dataclasses.field(default_factory=lambda: torch.full((), 0.1))
    progress: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones(()))
    together: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return int(self.index.shape[0])

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def dtype(self) -> torch.dtype:
        return self.size_factor.dtype

    def take(self, rows: torch.Tensor) -> Batch:
        """The rows at positions `rows` of this batch, standing for the same `total` rows."""
        pick: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[rows]
            for name in ("x", "env", "size_factor", "index", "group", "aux")
        }
        return dataclasses.replace(self, **pick)

    def whole(self) -> Batch:
        """The same rows as a data set of their own (total = rows), as for a held-out objective."""
        rows = len(self)
        return dataclasses.replace(self, total=rows, index=torch.arange(rows, device=self.device))

    def blank(self) -> Batch:
        """The same rows and covariates without x: what a story needs to simulate them."""
        return dataclasses.replace(self, x=None)

    def anneal(self, kl_weight: torch.Tensor, temperature: torch.Tensor, progress: torch.Tensor) -> Batch:
        return dataclasses.replace(self, kl_weight=kl_weight, temperature=temperature, progress=progress)

    def annealed(self) -> Batch:
        """As at the end of annealing: gates drawn hard, the objective itself."""
        one = torch.ones((), dtype=self.dtype, device=self.device)
        return self.anneal(one, one * 1e-3, one)


def _labels(values: Any, argument: str, rows: int) -> Array:
    labels = np.asarray(values)
    if labels.shape != (rows,):
        reject(argument, f"shape {labels.shape}", f"one label per row of x, shape ({rows},)")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        reject(argument, "missing labels (NaN)", "a label for every row")
    if labels.dtype.kind == "O" and any(v is None or v != v for v in labels):
        reject(argument, "missing labels", "a label for every row")
    if labels.dtype.kind == "O":  # 1 and "1" are two labels to Python and one name to us
        texts = [str(label) for label in set(labels)]
        if twice := [text for text in texts if texts.count(text) > 1]:
            reject(argument, f"two environments with the label {twice[0]!r}", "labels that differ as texts")
    return labels.astype(str)


class Data:
    """Rows of observed features with what is known about them.

    x: (data, feature) floats or counts; numpy, torch or scipy.sparse, or a numpy memory map.
    env: (data,) labels of environments; None = one environment, "observational".
    targets: environment -> latents it intervenes on (by position); environments not listed are observational;
        None = targets unknown.
    control: label of the observational environment, listed first; None = as `targets` says, or a customary name.
    counts: whether x holds counts; None = float data, unless x has an integer dtype.
    aux: (data, aux) auxiliary observations. size_factor: (data,) positive library sizes.
    batch: (data,) labels of technical batches. feature_names: (feature,) unique names.
    truth: arrays known by simulation, any of z (data, latent), innovations (data, latent; z less what parents give),
        mask (feature, latent), loadings (feature, latent), graph and weight (parent, child), targets,
        component (data,).

    Raises InputError for anything that is not finite, not of these shapes, or not known. One row, or a feature that
    does not vary, is enough to predict with; `fit` refuses them.
    """

    units: Units | None = None  # in which `tensors` and `moments` give x; None = as it is

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
        feature_names: Sequence[str] | None = None,
        truth: Mapping[str, Any] | None = None,
        name: str = "data",
    ) -> None:
        self.name = name
        self.x = self._check_x(x)
        self.counts = self.x.dtype.kind in "iub" if counts is None else bool(counts)
        if self.counts:
            self._check_counts()
        rows, features = self.x.shape
        if feature_names is None:
            feature_names = [f"feature_{j}" for j in range(features)]
        self.feature_names = [str(f) for f in feature_names]
        if len(self.feature_names) != features:
            reject("feature_names", f"{len(self.feature_names)} names", f"one per column of x, {features}")
        if len(set(self.feature_names)) != features:
            twice = next(f for f in self.feature_names if self.feature_names.count(f) > 1)
            reject("feature_names", f"{twice!r} more than once", "unique names")
        labels = np.full(rows, "observational") if env is None else _labels(env, "env", rows)
        self.targets = self._check_targets(targets, labels)
        self.control = self._check_control(control, labels)
        self.env_names, self.env = self._code_environments(labels)
        self.batch_names, self.batch = self._code(batch, "batch")
        self.size_factor = self._check_size_factor(size_factor)
        self.aux = self._check_aux(aux)
        self.truth = self._check_truth(dict(truth or {}))

    # -- checks ------------------------------------------------------------------------------------------------

    @staticmethod
    def _check_x(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu().numpy()
        if scipy.sparse.issparse(x):
            x = x.tocsr()
        elif hasattr(x, "to_numpy"):
            x = x.to_numpy()
        else:
            x = np.asanyarray(x)
        if x.ndim != 2:
            reject("x", f"shape {x.shape}", "two dimensions (data, feature)")
        if x.dtype.kind not in "fiub":
            reject("x", f"dtype {x.dtype}", "floats or integer counts")
        rows, features = x.shape
        if rows < 1:
            reject("x", "0 rows", "at least 1 row, and 2 to fit to")
        if features < 2:
            reject("x", f"{features} feature{'s' * (features != 1)}", "at least 2 features")
        for start, block in _blocks(x):
            if not np.isfinite(block).all():
                row, column = np.argwhere(~np.isfinite(block))[0]
                bad = block[row, column]
                reject("x", f"{bad} at row {start + row}, column {column}", "finite numbers")
        return x

    def check_fit(self) -> tuple[Array, Array]:
        """Least and largest value (feature,) of each column. Raises InputError for rows that nothing can be fitted to:
        fewer than two, or a feature that does not vary."""
        if self.rows < 2:
            reject("x", f"{self.rows} row", "at least 2 rows to fit to")
        low, high = np.full(self.features, np.inf), np.full(self.features, -np.inf)
        for _, block in self.blocks():
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
        constant = np.flatnonzero(low == high)
        if constant.size:
            more = f" and {constant.size - 1} more" if constant.size > 1 else ""
            found = f"constant feature in column {constant[0]}, {self.feature_names[constant[0]]!r}{more}"
            reject("x", found, "features that vary")
        return low, high

    def _check_counts(self) -> None:
        for start, block in _blocks(self.x):
            bad = np.argwhere((block < 0) | (block != np.round(block)))
            if bad.size:
                row, column = bad[0]
                found = f"{block[row, column]:g} at row {start + row}, column {column}"
                reject("x", found, "counts: whole numbers from 0 on")

    @staticmethod
    def _check_targets(targets: Any, labels: Array) -> dict[str, tuple[int, ...]] | None:
        if targets is None:
            return None
        if not isinstance(targets, Mapping):
            reject("targets", f"a {type(targets).__name__}", "a mapping environment -> latents, or None")
        known = set(np.unique(labels))
        out: dict[str, tuple[int, ...]] = {}
        for label, latents in targets.items():
            if str(label) in out:
                reject("targets", f"two environments with the label {str(label)!r}", "labels that differ as texts")
            if str(label) not in known:
                reject("targets", f"unknown environment {str(label)!r}", f"one of {_some(sorted(known))}")
            wanted = (latents,) if isinstance(latents, int | np.integer) else tuple(latents)
            for k in wanted:
                if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 0:
                    reject("targets", f"{k!r} for environment {str(label)!r}", "positions of latents, 0, 1, ...")
            if len(set(wanted)) != len(wanted):
                reject("targets", f"a latent twice for environment {str(label)!r}", "each latent once")
            out[str(label)] = tuple(int(k) for k in wanted)
        return out

    def _check_control(self, control: Any, labels: Array) -> str | None:
        if control is None:
            return None
        if str(control) not in set(names := np.unique(labels)):
            reject("control", f"unknown environment {str(control)!r}", f"one of {_some(sorted(names))}")
        if (self.targets or {}).get(str(control)):
            reject("control", f"{str(control)!r}, which has targets", "an environment without targets")
        return str(control)

    def _code_environments(self, labels: Array) -> tuple[list[str], Array]:
        """Control, then other observational environments, then the rest in order of their targets and names."""
        names = np.unique(labels)
        targets = self.targets or {}
        customary = CUSTOMARY_CONTROLS if self.targets is None else ()
        order = sorted(names, key=lambda e: (e != self.control, e not in customary, targets.get(e, ()), e))
        place = {e: i for i, e in enumerate(order)}
        codes = np.array([place[e] for e in names])[np.searchsorted(names, labels)]
        return [str(e) for e in order], codes.astype(np.int64)

    def _code(self, values: Any, argument: str) -> tuple[list[str], Array]:
        if values is None:
            return ["all"], np.zeros(self.rows, dtype=np.int64)
        names, codes = np.unique(_labels(values, argument, self.rows), return_inverse=True)
        return [str(n) for n in names], codes.astype(np.int64)

    def _check_size_factor(self, size_factor: Any) -> Array | None:
        if size_factor is None:
            return None
        s = np.asarray(size_factor, dtype=np.float64)
        if s.shape != (self.rows,):
            reject("size_factor", f"shape {s.shape}", f"one per row of x, shape ({self.rows},)")
        if not (np.isfinite(s).all() and (s > 0).all()):
            reject("size_factor", f"{s[~(np.isfinite(s) & (s > 0))][0]}", "finite numbers above 0")
        return s

    def _check_aux(self, aux: Any) -> Array | None:
        if aux is None:
            return None
        a = np.asarray(aux, dtype=np.float64)
        a = a[:, None] if a.ndim == 1 else a
        if a.ndim != 2 or a.shape[0] != self.rows:
            reject("aux", f"shape {a.shape}", f"({self.rows}, aux)")
        if not np.isfinite(a).all():
            reject("aux", "NaN or infinite values", "finite numbers")
        return a

    def _check_truth(self, truth: dict[str, Any]) -> dict[str, Array]:
        out = {}
        for key, value in truth.items():
            if key not in TRUTH_KEYS:
                reject("truth", f"{key!r}", f"any of {', '.join(TRUTH_KEYS)}")
            out[key] = value if key == "targets" else np.asarray(value)
        for key in ("z", "innovations", "component"):
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
        known = "unknown" if self.targets is None else f"{len(self.targets)} listed"
        return (
            f"Data({self.name}: {self.rows} rows x {self.features} features, {kind}; "
            f"{len(self.env_names)} environments, targets {known}; truth: {', '.join(self.truth) or 'none'})"
        )

    @property
    def rows(self) -> int:
        return int(self.x.shape[0])

    @property
    def features(self) -> int:
        return int(self.x.shape[1])

    @property
    def has_control(self) -> bool:
        """Whether the first environment is known to be observational: it was told, or is called as controls are."""
        return self.control is not None or self.env_names[0] in CUSTOMARY_CONTROLS

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
        if not isinstance(index, slice):
            index = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index)
        part = object.__new__(Data)
        part.__dict__.update({k: v for k, v in self.__dict__.items() if k != "moments"})
        part.x, part.env, part.batch = self.x[index], self.env[index], self.batch[index]
        part.size_factor = None if self.size_factor is None else self.size_factor[index]
        part.aux = None if self.aux is None else self.aux[index]
        part.truth = {k: v[index] if k in ("z", "innovations", "component") else v for k, v in self.truth.items()}
        return part

    def in_units(self, units: Units | None) -> Data:
        """The same rows, of which programs see x in these units; None = as it is."""
        part = self.rows_at(slice(None))
        part.units = units
        return part

    def coded_as(self, env_names: Sequence[str] | None = None, batch_names: Sequence[str] | None = None) -> Data:
        """The same rows with environments and batches in the order of another data set's, or as they are for None.

        Raises InputError for labels of rows that it does not have.
        """
        part = self.rows_at(slice(None))
        for argument, names in (("env", env_names), ("batch", batch_names)):
            own, codes = getattr(self, f"{argument}_names"), getattr(self, argument)
            if names is None or list(names) == own:
                continue
            for code in np.unique(codes):
                if own[code] not in names:
                    reject(argument, f"{own[code]!r}, which was not fitted", f"one of {_some(list(names))}")
            place = np.array([list(names).index(name) if name in names else -1 for name in own])
            setattr(part, argument, place[codes])
            setattr(part, f"{argument}_names", list(names))
        return part

    def split(self, fraction: float, seed: int, *, by_env: bool = True) -> tuple[Data, Data]:
        """(train, held-out) with `fraction` of the rows held out; see `held_out`."""
        out = self.held_out(fraction, seed, by_env=by_env)
        return self.rows_at(~out), self.rows_at(out)

    def held_out(self, fraction: float, seed: int, *, by_env: bool = True) -> np.ndarray:
        """(row,) whether a row is among the `fraction` held out, of each environment or regardless of them.

        At least one row of each environment is not.
        """
        if not 0 < fraction < 1:
            reject("fraction", fraction, "a number strictly between 0 and 1")
        rng = np.random.default_rng(seed)
        out = np.zeros(self.rows, dtype=bool)
        parts = range(len(self.env_names)) if by_env else [None]
        for e in parts:
            rows = np.arange(self.rows) if e is None else np.flatnonzero(self.env == e)
            take = min(round(fraction * rows.size), rows.size - 1)
            out[rng.permutation(rows)[: max(take, 0)]] = True
        if not out.any():
            out[rng.integers(self.rows)] = True
        return out

    @cached_property
    def moments(self) -> Moments:
        """Count, mean and covariance per environment of x in `units`, gathered once in a pass over the rows."""
        envs, p = len(self.env_names), self.features
        count = np.bincount(self.env, minlength=envs).astype(np.float64)
        shift = self._in_units(next(_blocks(self.x[: min(self.rows, 4096)]))[1]).mean(0)
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
        return _blocks(self.x)

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

        x = torch.empty(n, self.features, dtype=dtype)
        for start, block in _blocks(self.x[:n]):
            x[start : start + len(block)] = torch.from_numpy(self._in_units(block))
        size = np.ones(n) if self.size_factor is None else self.size_factor
        return Batch(
            x=x.to(device),
            env=send(self.env, torch.long),
            size_factor=send(size, dtype),
            index=torch.arange(n, device=device),
            total=self.rows,
            group=send(self.batch, torch.long),
            aux=None if self.aux is None else send(self.aux, dtype),
            moments=self.moments.to(device) if moments else None,
            kl_weight=torch.ones((), device=device),
            temperature=torch.full((), 0.1, device=device),
            progress=torch.ones((), device=device),
        )


def _blocks(x: Any, cells: int = 4_000_000) -> Iterator[tuple[int, Array]]:
    """Dense blocks of rows of about `cells` entries each, with the position of their first row."""
    step = max(1, cells // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        block = x[start : start + step]
        yield start, block.toarray() if scipy.sparse.issparse(block) else np.asarray(block)


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:most])  # numpy's texts would show their type
    return shown + (f", ... ({len(names)})" if len(names) > most else "")
