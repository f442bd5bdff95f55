"""Effects never measured: what other methods predict for them, and how close each is to effects that were left out.

A signature is the profile of a context under a perturbation less the context's mean control profile; in data without a
control, the profile itself.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

from pyrocrl import zoo
from pyrocrl.data import Data
from pyrocrl.exact.gp import ntk
from pyrocrl.infer.fit import fit
from pyrocrl.judge.evaluate import seen
from pyrocrl.options import Bounds, Seed, checked
from pyrocrl.predict import impute, reach

NEIGHBOURS = 10  # of DNPP
CONTEXT_BLOCK, OWN_BLOCK = 0.75, 1.5  # lengths of the ridgeless kernel's blocks beside the perturbation's, 1
SWEEPS, SMOOTH = 60, 0.02  # of FaLRTC: steps; mu over the largest singular value of an unfolding
LEVELS = (0.9, 0.95)
Array = np.ndarray


@dataclass(frozen=True)
class Signatures:
    """Signatures y (pair, feature) of pairs of a context (pair,) and a perturbation (pair,), codes below `shape`."""

    context: Array
    perturbation: Array
    y: Array
    shape: tuple[int, int]

    @classmethod
    def of(cls, data: Data, level: Array | None = None) -> Signatures:
        """The mean signature of every pair of `data`, environments being perturbations and batches contexts; level:
        (context, feature) control profiles, None = these data's own."""
        x, shape = seen(data), (len(data.batch_names), len(data.env_names))
        level = levels(data) if level is None else level
        rows = ~data.control_rows
        place, at = np.unique(data.batch[rows] * shape[1] + data.env[rows], return_inverse=True)
        y = np.zeros((len(place), data.features))
        np.add.at(y, at, x[rows] - level[data.batch[rows]])
        return cls(place // shape[1], place % shape[1], y / np.bincount(at)[:, None], shape)

    def take(self, pairs: Array) -> Signatures:
        return dataclasses.replace(
            self, context=self.context[pairs], perturbation=self.perturbation[pairs], y=self.y[pairs]
        )

    def table(self) -> tuple[Array, Array]:
        """y as (context, perturbation, feature), 0 where nothing is, and whether something is."""
        there = np.zeros(self.shape, dtype=bool)
        there[self.context, self.perturbation] = True
        y = np.zeros((*self.shape, self.y.shape[1]))
        y[self.context, self.perturbation] = self.y
        return y, there

    def means(self, codes: Array, count: int) -> Array:
        """(code, feature) mean signature of each context or perturbation, of all pairs where it has none."""
        total = np.zeros((count, self.y.shape[1]))
        np.add.at(total, codes, self.y)
        n = np.bincount(codes, minlength=count)[:, None]
        return np.where(n > 0, total / np.maximum(n, 1), self.y.mean(0))


def levels(data: Data) -> Array:
    """(context, feature) mean control profile of each batch; 0 where there is no control."""
    x, rows = seen(data), data.control_rows
    total = np.zeros((len(data.batch_names), data.features))
    np.add.at(total, data.batch[rows], x[rows])
    return total / np.maximum(np.bincount(data.batch[rows], minlength=len(total)), 1)[:, None]


# -- other methods: signatures of pairs (context, perturbation) from those that are known ------------------------


def context_mean(known: Signatures, c: Array, d: Array) -> Array:
    """The context's mean signature."""
    return known.means(known.context, known.shape[0])[c]


def both_means(known: Signatures, c: Array, d: Array) -> Array:
    """Half the context's mean and half the perturbation's."""
    return 0.5 * (context_mean(known, c, d) + known.means(known.perturbation, known.shape[1])[d])


def dnpp(known: Signatures, c: Array, d: Array) -> Array:
    """Drug neighbour profile prediction (Hodos et al. 2018, "Cell-specific prediction and application of drug-induced
    gene expression profiles"): the mean of the ten perturbations most like d among those measured in c, weighted by
    their likeness, the correlation over features averaged over contexts that have both; without any, the context's
    mean.
    """
    y, there = known.table()
    apart = y - y.mean(-1, keepdims=True)
    unit = apart / np.maximum(np.linalg.norm(apart, axis=-1, keepdims=True), 1e-300)
    shared = there.astype(float).T @ there
    like = np.einsum("cdg,ceg->de", unit, unit) / np.maximum(shared, 1)
    out = context_mean(known, c, d)
    for row, (one, own) in enumerate(zip(c, d, strict=True)):
        near = np.flatnonzero(there[one] & (shared[own] > 0) & (like[own] > 0) & (np.arange(len(like)) != own))
        near = near[np.argsort(-like[own, near])][:NEIGHBOURS]
        if near.size:
            out[row] = np.average(y[one, near], axis=0, weights=like[own, near])
    return out


def falrtc(known: Signatures, c: Array, d: Array) -> Array:
    """Fast low-rank tensor completion (Liu, Musialski, Wonka & Ye 2013): the tensor that agrees with what was measured
    and whose unfoldings have the least sum of smoothed nuclear norms, by Nesterov's accelerated gradient.

    The gradient of an unfolding's smoothed norm is U min(S / mu, 1) V' of its singular values S. The unfolding by
    features, of which whole columns are missing, has weight 0: with it errors are larger.
    """
    y, there = known.table()
    start = both_means(known, *np.nonzero(~there))
    y[~there] = start
    # genes are rotated into the span of what was measured: the solution lies in it
    basis = np.linalg.qr(known.y.T)[0] if known.y.shape[0] < known.y.shape[1] else np.eye(known.y.shape[1])
    x = y @ basis
    mu = [SMOOTH * float(np.linalg.norm(_unfold(x, k), 2)) for k in range(2)]
    step = 1.0 / sum(1.0 / m for m in mu)
    momentum, ahead, free = 1.0, x.copy(), ~there
    for _ in range(SWEEPS):
        slope = np.sum([_fold(_clipped(_unfold(ahead, k), m), x.shape, k) for k, m in enumerate(mu)], 0)
        new = ahead.copy()
        new[free] -= step * slope[free]
        later = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / later * (new - x)
        x, momentum = new, later
    return (x @ basis.T)[c, d]


def _unfold(x: Array, mode: int) -> Array:
    return np.moveaxis(x, mode, 0).reshape(x.shape[mode], -1)


def _fold(x: Array, shape: tuple[int, ...], mode: int) -> Array:
    rest = [n for k, n in enumerate(shape) if k != mode]
    return np.moveaxis(x.reshape(shape[mode], *rest), 0, mode)


def _clipped(x: Array, mu: float) -> Array:
    """U min(S / mu, 1) V' of x = U S V', by the smaller of its two Gram matrices."""
    if x.shape[0] > x.shape[1]:
        return _clipped(x.T, mu).T
    value, u = np.linalg.eigh(x @ x.T)
    s = np.sqrt(np.maximum(value, 0.0))
    return (u * (np.minimum(s / mu, 1.0) / np.maximum(s, 1e-12 * s.max() + 1e-300))) @ (u.T @ x)


def synthetic_interventions(known: Signatures, c: Array, d: Array) -> Array:
    """Causal imputation via synthetic interventions (Squires et al. 2022), donors being perturbations: those measured
    in c; least squares with an intercept of d's features on theirs in the contexts that have d and all donors, applied
    in c. Where no context has all, the donors are those that c shares with the context that has most of them; where
    there are none, the context's mean."""
    y, there = known.table()
    out = context_mean(known, c, d)
    for row, (one, own) in enumerate(zip(c, d, strict=True)):
        others = np.flatnonzero(there[:, own] & (np.arange(len(there)) != one))
        if not others.size or not (there[others] & there[one]).any():
            continue
        best = others[(there[others] & there[one]).sum(1).argmax()]
        donors = np.flatnonzero(there[one] & there[best])
        training = others[there[np.ix_(others, donors)].all(1)]
        seen = np.moveaxis(y[np.ix_(training, donors)], 1, 2).reshape(-1, len(donors))
        design = np.column_stack([seen, np.ones(len(seen))])
        weight = np.linalg.lstsq(design, y[training, own].reshape(-1), rcond=None)[0]
        out[row] = y[one, donors].T @ weight[:-1] + weight[-1]
    return out


def ridgeless_ntk(known: Signatures, c: Array, d: Array) -> Array:
    """Interpolation with the neural tangent kernel of one hidden layer (Radhakrishnan et al. 2022): rows of a pair are
    the unit mean signatures of context and perturbation and an own coordinate, of fixed lengths, scaled to length 1."""
    context, drug = (
        _unit(known.means(codes, n)) for codes, n in zip((known.context, known.perturbation), known.shape, strict=True)
    )
    block, own = CONTEXT_BLOCK**2, OWN_BLOCK**2
    a, b = known.context, known.perturbation

    def kernel(e: Array, f: Array, same: Array) -> Array:
        t = (block * context[e] @ context[a].T + drug[f] @ drug[b].T + own * same) / (block + 1 + own)
        return ntk(torch.from_numpy(t), 1).numpy()

    gram = kernel(a, b, np.eye(len(a)))
    cross = kernel(c, d, (c[:, None] == a) & (d[:, None] == b))
    return cross @ np.linalg.solve(gram, known.y)


def _unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)


RIVALS: dict[str, Callable[[Signatures, Array, Array], Array]] = {
    "context_mean": context_mean,
    "both_means": both_means,
    "dnpp": dnpp,
    "falrtc": falrtc,
    "synthetic_interventions": synthetic_interventions,
    "ridgeless_ntk": ridgeless_ntk,
}
MODEL = "causal_imputation"


# -- scores --------------------------------------------------------------------------------------------------------


def scores(truth: Array, guess: Array) -> dict[str, float]:
    """r: correlation of all entries of (pair, feature) signatures; r2 and cosine: of each pair, averaged over pairs."""
    r2 = 1 - np.square(truth - guess).sum(1) / np.square(truth - truth.mean(1, keepdims=True)).sum(1)
    cosine = (_unit(truth) * _unit(guess)).sum(1)
    flat = guess.std() > 0
    r = float(np.corrcoef(truth.ravel(), guess.ravel())[0, 1]) if flat else 0.0
    return {"r": r, "r2": float(r2.mean()), "cosine": float(cosine.mean())}


def left_out(data: Data, folds: int, seed: int) -> Iterator[Array]:
    """(row,) whether a row is left out, for each fold: the pairs of each context in as many parts of equal size."""
    rng = np.random.default_rng([seed, 15])
    fold = np.full((len(data.batch_names), len(data.env_names)), -1)
    rows = ~data.control_rows
    for c in range(len(fold)):
        own = np.unique(data.env[rows & (data.batch == c)])
        fold[c, rng.permutation(own)] = (np.arange(len(own)) + c) % folds
    for k in range(folds):
        yield rows & (fold[data.batch, data.env] == k)


@dataclass(frozen=True)
class Left:
    """What was predicted of signatures that were left out: truth (pair, feature), method -> guess (pair, feature), and
    the share of rows' entries inside the model's intervals, by their level."""

    truth: Array
    guess: dict[str, Array]
    inside: dict[float, float]


def predicted(found: Any, train: Data, test: Data) -> Left:
    """What a fit to `train` and every rival predict of the pairs of `test`."""
    known, level = Signatures.of(train), levels(train)
    new = Signatures.of(test, level)
    table = impute(found, train, measured=True)
    first = int(train.control is not None)
    mean, rows = table["mean"].to_numpy(), ~test.control_rows
    guess = {MODEL: mean[new.context, new.perturbation - first]}
    guess |= {name: rival(known, new.context, new.perturbation) for name, rival in RIVALS.items()}
    at = test.batch[rows], test.env[rows] - first  # of single rows: an interval is of one measurement
    apart = np.abs(seen(test)[rows] - level[test.batch[rows]] - mean[at])
    inside = {share: float((apart < reach(table, share)[at]).mean()) for share in LEVELS}
    return Left(new.y, guess, inside)


@checked
def cross_validate(
    data: Data,
    folds: Annotated[int, Bounds(2)] = 10,
    *,
    seed: Seed = 0,
    device: str = "auto",
    progress: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Every method on pairs of `data` that are left out in turn, the others known: a row for each with `method`, r, r2
    and cosine (see `scores`, over the pairs of all folds), and the model's coverage of 90 and 95 % intervals.

    Each fold is of every context's pairs, at random by `seed`. progress: whether a bar is shown. options: of
    `causal_imputation`. Raises InputError as the model does.
    """
    done = []
    for out in tqdm(left_out(data, folds, seed), "folds", folds, disable=not progress):
        train, test = data.rows_at(~out), data.rows_at(out)
        if not out.any():
            continue
        program = zoo.build(MODEL, train, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of columns: told once, of all rows
            found = fit(program, train, chains=1, seed=seed, device=device, progress=False)
        done.append(predicted(found, train, test))
    truth = np.concatenate([one.truth for one in done])
    rows: list[dict[str, Any]] = []
    for name in (*RIVALS, MODEL):
        rows.append({"method": name, **scores(truth, np.concatenate([one.guess[name] for one in done]))})
    pairs = np.array([len(one.truth) for one in done])
    for level in LEVELS:
        share = np.average([one.inside[level] for one in done], weights=pairs)
        rows[-1][f"coverage_{level * 100:.0f}"] = float(share)
    return rows
