"""Are verdicts right? Small settings whose answer theory knows, half of them not identified or misspecified.

    python -m pyrocrl.lab.verdicts --seeds 0:3 --json pyrocrl/models/results/verdicts.json

Each `Case` draws data, fits one model and says which outcomes are right: what is identified must not be refused, and
what is not must not be called identified. Of a misspecified case any outcome is right where the estimate is, and no
outcome that lets it be read where it is not. Assumptions that no data can show are right where the verdict names them.
"""

from __future__ import annotations

import argparse
import functools
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyrocrl import simulate, zoo
from pyrocrl.claims.indeterminacy import differing_pairs, transitive_closure
from pyrocrl.data import Data
from pyrocrl.errors import InputError
from pyrocrl.infer.fit import FitError, fit
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.io import write_json
from pyrocrl.judge.diagnose import HOLDS, ClaimVerdict, diagnose
from pyrocrl.judge.metrics import mcc, r2, reorder_graph
from pyrocrl.lab.reproduce import parse_seeds, provenance
from pyrocrl.simulate.states import numbered

UNDECIDED = "identified, undecided at this n"
REFUSED = ("not identified", "contradicted", "not converged")
GOOD = 0.95  # mcc from which latents are right

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """One setting. kind: "identified", "small" (identified, yet of few rows: what is read has to be right), "open" (not
    identified), "word" (not identified, unless for an assumption that no data can show, which `names` a part of) or
    "misspecified".

    open: what of an open case is not identified, the other claims being free. options: of the program; recipe: of the
    fit. breaks: the assumption that does not hold: a key of `CONDITIONS`, or a sentence of the model's card.
    """

    name: str
    model: str
    kind: str
    draw: Callable[[int], Data]
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    open: tuple[str, ...] = ("latents", "mask", "graph", "parents")
    names: str = "interventions"
    breaks: str = ""

    def right(self, claim: ClaimVerdict, scores: Mapping[str, float]) -> bool:
        """Whether this verdict is right, given the estimate's scores against the truth."""
        if self.kind == "identified":
            return claim.identified
        if self.kind == "small":
            read = claim.identified and well_estimated(claim.what, scores)
            return read or claim.verdict in (UNDECIDED, "not converged")
        if self.kind == "misspecified":
            return not claim.identified or well_estimated(claim.what, scores)
        if claim.what not in self.open:
            return True
        if self.kind == "word":
            return not claim.identified or any(self.names in sentence for sentence in claim.given)
        return claim.verdict in REFUSED


def well_estimated(what: str, scores: Mapping[str, float]) -> bool:
    """Whether an estimate may be read: latents of an mcc of `GOOD` and as many as are true, or of such an R² where they
    mix; masks of as many wrong entries at most, graphs without a wrong pair, parents without a wrong one; of the rest,
    where the latents may."""
    if what == "mask":
        return scores.get("wrong_entries", 1.0) <= 1 - GOOD
    if what == "parents":
        return not scores.get("wrong_parents", 1.0)
    return not scores.get("wrong_pairs") if what == "graph" else scores.get("mcc", scores.get("r2", 0.0)) >= GOOD


# -- worlds ----------------------------------------------------------------------------------------------------


def linear_world(
    seed: int,
    environments: Iterable[tuple[str, tuple[int, ...], str]],
    latents: int = 3,
    rows: int = 1000,
    features: int = 10,
    *,
    bent: float = 0.0,
    curved: float = 0.0,
    saturated: float = 0.0,
    bad: float = 0.0,
    offsets: float = 0.0,
    noise: float = 0.1,
    law: str = "gaussian",
    told: Mapping[str, tuple[int, ...]] | None = None,
) -> Data:
    """x = G z + noise, z of linear equations on 0 -> 1 -> ... and 0 -> 2; environments are (name, targets, kind).

    kind: "perfect", "soft", "variance", "shift" or "none". bent: of the square of parents in equations; curved: of a
    tanh that is added to rotated latents before they are mixed; saturated: x through tanh; bad: share of rows with ten
    times the noise; offsets: deviation of a shift of x that every environment has of its own; law: "gaussian" or
    "laplace" noise of z. told: targets as they are listed; None = the true ones.
    """
    rng = np.random.default_rng([14, seed])
    weight = np.zeros((latents, latents))
    for k in range(1, latents):
        weight[k - 1, k] = rng.choice([-1, 1]) * rng.uniform(0.7, 1.4)
    if latents > 2:
        weight[0, 2] = rng.choice([-1, 1]) * rng.uniform(0.7, 1.4)
    scale = rng.uniform(0.6, 1.2, latents)
    mixing = rng.standard_normal((features, latents))
    parts, labels, targets = [], [], {}
    for name, hits, kind in [("control", (), "none"), *environments]:
        w, s, level = weight.copy(), scale.copy(), np.zeros(latents)
        for k in hits:
            if kind == "perfect":
                w[:, k] = 0.0
            elif kind == "soft":
                w[:, k] *= rng.uniform(-1.2, -0.4)
            if kind in ("perfect", "variance", "soft"):
                s[k] *= rng.uniform(1.8, 2.5)
            if kind != "none" and kind != "variance":
                level[k] = rng.choice([-1, 1]) * rng.uniform(1.0, 2.0)
        z = np.zeros((rows, latents))
        for k in range(latents):
            e = rng.standard_normal(rows) if law == "gaussian" else rng.laplace(size=rows) / np.sqrt(2)
            z[:, k] = (z + bent * z**2) @ w[:, k] + level[k] + s[k] * e
        parts.append(z)
        labels += [name] * rows
        targets[name] = hits
    z = np.concatenate(parts)
    x = z
    if curved:  # strictly increasing in each rotated latent: the mixing stays injective
        turned = (z - z.mean(0)) / z.std(0) @ np.linalg.qr(rng.standard_normal((latents, latents)))[0]
        x = turned + curved * np.tanh(3 * turned)
    x = x @ mixing.T
    x = np.tanh(saturated * x / x.std(0)) if saturated else x
    x = x + noise * x.std(0) * rng.standard_normal(x.shape)
    if bad:
        wrong = rng.random(len(x)) < bad
        x[wrong] += 10 * x.std(0) * rng.standard_normal((int(wrong.sum()), features))
    if offsets:
        own = offsets * x.std(0) * rng.standard_normal((len(targets), features))
        x = x + np.repeat(own, rows, 0)
    listed = targets if told is None else {"control": (), **told}
    truth = {"z": z, "graph": (weight != 0).astype(int), "weight": weight}
    return Data(x, labels, {k: v for k, v in listed.items() if v}, control="control", truth=truth, name="linear_world")


def each(kind: str, latents: int = 3) -> list[tuple[str, tuple[int, ...], str]]:
    """One intervention on every latent."""
    return [(f"on_{k}", (k,), kind) for k in range(latents)]


def confounded(seed: int, **options: Any) -> Data:
    """Three factors, of which the environments and the fit know two."""
    data = linear_world(seed, [("on_0", (0,), "perfect"), ("on_1", (1,), "perfect")], **options)
    return Data(data.x, data.env_labels(), data.targets, control="control", truth={"z": data.truth["z"][:, :2]})


def equations(seed: int, shifts: Sequence[int], rows: int = 500, bent: bool = False, hidden: bool = False) -> Data:
    """Observed variables 0 -> 1 -> 2, an environment for each of `shifts`, which shifts that mechanism; linear, or
    bent; hidden: something unobserved acts on 0 and 2."""
    rng = np.random.default_rng([15, seed])
    w = rng.choice([-1, 1], 2) * rng.uniform(0.7, 1.3, 2)
    parts, labels = [], []
    for e, k in enumerate([-1, *shifts]):
        eps = rng.standard_normal((rows, 3)) * [1.0, 0.8, 0.8]
        if k >= 0:
            eps[:, k] = 2 * eps[:, k] + 2.0
        if hidden:
            u = rng.standard_normal(rows)
            eps[:, 0] += u
            eps[:, 2] += u
        z0 = eps[:, 0]
        z1 = (2 * np.sin(1.5 * z0) if bent else w[0] * z0) + eps[:, 1]
        z2 = (2 * np.cos(1.5 * z1) if bent else w[1] * z1) + eps[:, 2]
        parts.append(np.stack([z0, z1, z2], 1))
        labels += [f"env_{e}"] * rows
    x = np.concatenate(parts)
    graph = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    return Data(x, labels, control="env_0", truth={"z": x, "graph": graph}, name="equations")


def states(
    seed: int, masks: Sequence[Sequence[int]], rows: int = 600, law: str = "gaussian", same: bool = False
) -> Data:
    """Two binary latents, 0 -> 1, and features of `masks`; an environment for each. same: the latents never differ."""
    rng = np.random.default_rng([16, seed])
    mask = np.asarray(masks)
    parts, labels = [], []
    for e, hit in enumerate((-1, 0, 1)):
        a = rng.random(rows) < (0.3 if hit == 0 else 0.55)
        b = rng.random(rows) < (0.4 if hit == 1 else np.where(a, 0.85, 0.2))
        parts.append(np.stack([a, a if same else b], 1).astype(float))
        labels += [["control", "env_0", "env_1"][e]] * rows
    z = np.concatenate(parts)
    x = rng.standard_normal((len(z), len(mask)))
    if law == "skewed":
        x = rng.exponential(size=x.shape) ** 1.5
    for j, own in enumerate(mask):
        level = 3.5 * rng.permutation(4) + rng.uniform(-0.3, 0.3, 4)
        x[:, j] += level[(z @ (own * np.array([1, 2]))).astype(int)]
    graph = np.array([[0, 1], [0, 0]])
    return Data(x, labels, control="control", truth={"z": z, "mask": mask, "graph": graph}, name="states")


def factors(seed: int, masks: Sequence[Sequence[int]], rows: int = 500, correlation: float = 0.3) -> Data:
    """Gaussian factors behind the features of `masks`."""
    rng = np.random.default_rng([17, seed])
    mask = np.asarray(masks)
    k = mask.shape[1]
    cov = np.full((k, k), correlation) + (1 - correlation) * np.eye(k)
    z = rng.multivariate_normal(np.zeros(k), cov, rows)
    loadings = mask * rng.uniform(0.8, 1.6, mask.shape) * rng.choice([-1, 1], mask.shape)
    return Data(z @ loadings.T + 0.4 * rng.standard_normal((rows, len(mask))), truth={"z": z, "mask": mask})


def twins(seed: int) -> Data:
    """Two factors that correlate at .99."""
    return factors(seed, [[1, 0]] * 8 + [[0, 1]] * 8, rows=2000, correlation=0.99)


def one_sum(seed: int, rows: int = 2000) -> Data:
    """Two factors, of which half of the features have the second alone and half as much of either: the sum of the two
    with the second is sparser."""
    rng = np.random.default_rng([31, seed])
    z = rng.standard_normal((rows, 2))
    mask = np.array([[1, 1]] * 10 + [[0, 1]] * 10)
    loadings = mask * rng.uniform(0.8, 1.6, (20, 1)) * rng.choice([-1, 1], (20, 1))
    return Data(z @ loadings.T + 0.4 * rng.standard_normal((rows, 20)), truth={"z": z, "mask": mask}, name="one_sum")


def heavy_noise(seed: int, rows: int = 2000) -> Data:
    """Two Gaussian latents behind six features with noise of three degrees of freedom."""
    rng = np.random.default_rng([22, seed])
    z, loadings = rng.standard_normal((rows, 2)), rng.standard_normal((6, 2))
    return Data(z @ loadings.T + 0.5 * rng.standard_t(3, (rows, 6)), truth={"z": z})


def measured(
    seed: int,
    own: Sequence[int] = (3, 3, 3),
    rows: int = 4000,
    *,
    apart: bool = False,
    mixed: bool = False,
    paired: bool = False,
    hidden: bool = False,
    cancelling: bool = False,
    heavy: bool = False,
) -> Data:
    """Latents 0 -> 1 -> 2 with so many features of their own each.

    apart: no latent depends on another; mixed: a feature of the first depends on the last as well; paired: features of
    the first and the last share noise; hidden: something acts on the first and the last, and nothing on the second;
    cancelling: the first acts on the last against what it does by way of the second; heavy: noise is large and Laplace.
    """
    rng = np.random.default_rng([21, seed])
    d = len(own)
    weight = np.zeros((d, d)) if apart else np.diag(rng.choice([-1, 1], d - 1) * rng.uniform(0.7, 1.2, d - 1), 1)
    e = rng.standard_normal((rows, d))
    if hidden:
        weight[:] = 0.0
        e[:, [0, -1]] += 1.2 * rng.standard_normal((rows, 1))
    if cancelling:
        weight[0, -1] = -weight[0, 1] * weight[1, -1]
    z = e @ np.linalg.inv(np.eye(d) - weight)
    mask = np.repeat(np.eye(d), own, axis=0)
    loadings = mask * (rng.uniform(0.8, 1.5, len(mask)) * rng.choice([-1, 1], len(mask)))[:, None]
    noise = 0.6 * rng.standard_normal((rows, len(mask)))
    if heavy:
        noise = rng.laplace(size=noise.shape)
    if mixed:
        loadings[0, -1] = mask[0, -1] = 1.0
    if paired:
        noise[:, [0, -1]] += 0.6 * rng.standard_normal((rows, 1))
    truth = {"z": z, "mask": mask, "graph": (weight != 0).astype(int)}
    return Data(z @ loadings.T + noise, truth=truth, name="measured")


def held(seed: int, environments: Sequence[tuple[int, ...]], rows: int = 300, moved: bool = False) -> Data:
    """Two latents behind a polynomial, environments that hold some of them (moved: that only shift them)."""
    rng = np.random.default_rng([18, seed])
    z, labels = [], []
    for e, hits in enumerate(environments):
        own = rng.uniform(-1, 1, (rows, 2))
        for k in hits:
            own[:, k] = own[:, k] + 1.5 if moved else rng.uniform(-1, 1)
        z.append(own)
        labels += [f"env_{e}"] * rows
    zs = np.concatenate(z)
    terms = np.column_stack([zs, zs[:, 0] ** 2, zs[:, 0] * zs[:, 1], zs[:, 1] ** 2])
    x = terms @ rng.standard_normal((5, 12))
    targets = {f"env_{e}": tuple(hits) for e, hits in enumerate(environments) if hits}
    return Data(x + 0.01 * rng.standard_normal(x.shape), labels, targets, truth={"z": zs}, name="held")


def clusters(seed: int, scales: Sequence[Sequence[float]], rows: int = 1500) -> Data:
    """Latents of a mixture of components with these deviations (component, latent), mixed linearly."""
    rng = np.random.default_rng([19, seed])
    scale = np.asarray(scales)
    mean = rng.uniform(-2, 2, scale.shape)
    component = rng.integers(len(scale), size=rows)
    z = mean[component] + scale[component] * rng.standard_normal((rows, scale.shape[1]))
    x = z @ rng.standard_normal((scale.shape[1], 8)) + 0.03 * rng.standard_normal((rows, 8))
    return Data(x, truth={"z": z}, name="clusters")


def modulated(
    seed: int,
    environments: int = 8,
    rows: int = 400,
    law: str = "normal",
    *,
    together: bool = False,
    same: bool = False,
    levels: bool = False,
    correlation: float = 0.0,
    latents: int = 2,
) -> Data:
    """Latents of mean 0 whose scales differ between environments, through two layers into six columns.

    together: the second scale is a multiple of the first; same: environments are alike; levels: they move means as
    well; correlation: of the first two within an environment.
    """
    rng = np.random.default_rng([20, seed])
    scale = np.exp(rng.uniform(-1.0, 1.0, (environments, latents)))
    if together:
        scale[:, 1] = 1.5 * scale[:, 0]
    if same:
        scale[:] = scale[0]
    level = rng.uniform(-2, 2, scale.shape) if levels else np.zeros_like(scale)
    size = environments * rows, latents
    drawn = rng.laplace(size=size) if law == "laplace" else rng.normal(size=size)
    drawn[:, 1] = correlation * drawn[:, 0] + np.sqrt(1 - correlation**2) * drawn[:, 1]
    z = np.repeat(level, rows, 0) + np.repeat(scale, rows, 0) * drawn
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    h = 1.5 * z @ turn[:latents] / z.std()
    x = (np.tanh(h) + 0.3 * h) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x = x + 0.02 * rng.standard_normal(x.shape)
    labels = np.repeat([f"env_{u}" for u in range(environments)], rows)
    return Data(x, labels, truth={"z": z}, name="modulated")


def paired(seed: int, how: str = "", rows: int = 2000, **options: Any) -> Data:
    """Pairs of rows, of which a latent changed between. how: "bent", x through a cubic; "exchanged", partners are those
    of other pairs; "hidden", two of the latents are known."""
    size = {"pairs": rows // 2, "latents": 3, "features": 6, "unshared": 0.02}
    data = simulate.draw("brehmer2022_linear", seed, **size | options)
    rng = np.random.default_rng([21, seed])
    x, known = data.x / data.x.std(0), 2 if how == "hidden" else data.truth["z"].shape[1]
    if how == "bent":
        x = x + 0.3 * x**3
    pair = np.array(data.pair)
    if how == "exchanged":
        pair[data.after] = rng.permutation(pair[data.after])
    truth = {"z": data.truth["z"][:, :known], "graph": data.truth["graph"][:known, :known]}
    return Data(x, pair=pair, step=data.after, truth=truth, name="paired")


def moved(
    seed: int,
    offset: Sequence[Sequence[float]],
    pairs: int = 1500,
    how: str = "",
    layers: int = 0,
    features: int = 5,
    noise: float = 0.01,
    known: int = 3,
) -> Data:
    """Three latents, uniform on (0, 5), and pairs of rows that perturbations move by these offsets (perturbation,
    latent), behind so many layers.

    how: "bent", x through a cubic; "wavy", the first latent bent in step with its offset; "varying", offsets differ
    from pair to pair; "either", in half of the pairs a perturbation does half of what another does; "placed", offsets
    grow with another latent; "exchanged", partners are those of other pairs. known: of the latents.
    """
    rng = np.random.default_rng([23, seed])
    which, before = rng.integers(0, len(offset), pairs), rng.uniform(0, 5, (pairs, 3))
    step = np.asarray(offset)[which]
    if how == "varying":
        step = step * rng.uniform(0.2, 1.8, (pairs, 1))
    if how == "either":  # each perturbation does in half of the pairs what the next one does
        step = np.where(rng.random((pairs, 1)) < 0.5, step, 0.5 * np.roll(offset, 1, 0)[which])
    if how == "placed":
        step = step * (0.3 + 0.3 * before[:, [1, 2, 0]])
    z = np.stack([before, before + step], 1).reshape(-1, 3)
    h = z.copy()
    if how == "wavy":
        period = np.abs(np.asarray(offset)[:, 0]).max()
        h[:, 0] += 0.8 * period / (2 * np.pi) * np.sin(2 * np.pi * h[:, 0] / period)
    h = h - 2.5
    for layer in range(max(layers, 1)):
        wide = features if layer >= layers - 1 else 3
        turn = np.linalg.qr(rng.standard_normal((max(wide, 3), 3)))[0]
        h = h @ turn.T if wide > 3 or layer else h @ turn
        h = np.where(h > 0, h, 0.3 * h) if layers else h
    x = h + noise * h.std(0) * rng.standard_normal(h.shape)
    x = x / x.std(0)
    x = x + 0.3 * x**3 if how == "bent" else x
    pair = np.stack([np.arange(pairs), np.arange(pairs)], 1)
    if how == "exchanged":
        pair[:, 1] = rng.permutation(pairs)
    env = np.stack([np.full(pairs, "control"), np.array([f"move_{u}" for u in range(len(offset))])[which]], 1)
    step_of = np.tile([0, 1], pairs)
    truth = {"z": z[:, :known]}
    return Data(x, env.reshape(-1), pair=pair.reshape(-1), step=step_of, control="control", truth=truth, name="moved")


Action = tuple[Sequence[Sequence[float]] | None, Sequence[float] | str | None]  # matrix (None = identity) and offset


def acted(
    seed: int,
    actions: Sequence[Action],
    pairs: int = 1000,
    how: str = "",
    layers: int = 0,
    features: int = 6,
    noise: float = 0.01,
    spread: float = 0.0,
    known: int = 3,
) -> Data:
    """Three latents, N(0, C) with correlations of .3, and pairs of rows between which actions map them affinely, behind
    so many layers.

    how: "bent", x through a cubic; "wavy", the first latent bent in step with 1; "folded", x depends on its size alone;
    "varying", in each pair an action does
    a share of its effect from .2 to 1.8; "placed", effects grow with another latent; "exchanged", partners are those of
    other pairs. spread: deviation of latents about where an action takes them; known: of the latents.
    """
    rng = np.random.default_rng([24, seed])
    matrix = np.stack([np.eye(3) if a is None else np.asarray(a, dtype=float) for a, _ in actions])
    offset = np.stack([np.zeros(3) if b is None else np.asarray(b, dtype=float) for _, b in actions])
    which, before = rng.integers(0, len(actions), pairs), rng.standard_normal((pairs, 3))
    before = before @ np.linalg.cholesky(0.7 * np.eye(3) + 0.3).T
    step = np.einsum("pij,pj->pi", matrix[which] - np.eye(3), before) + offset[which]
    if how == "varying":
        step = step * rng.uniform(0.2, 1.8, (pairs, 1))
    if how == "placed":
        step = step * (1 + 0.5 * np.tanh(before[:, [1, 2, 0]]))
    z = np.stack([before, before + step + spread * rng.standard_normal(step.shape)], 1).reshape(-1, 3)
    h = z.copy()
    if how == "wavy":
        h[:, 0] += 0.8 / (2 * np.pi) * np.sin(2 * np.pi * h[:, 0])
    if how == "folded":
        h[:, 0] = np.abs(h[:, 0])
    for layer in range(max(layers, 1)):
        turn = np.linalg.qr(rng.standard_normal((max(features if layer >= layers - 1 else 3, 3), 3)))[0]
        h = h @ turn.T
        h = np.where(h > 0, h, 0.3 * h) if layers else h
    x = h + noise * h.std(0) * rng.standard_normal(h.shape)
    x = x / x.std(0)
    x = x + 0.3 * x**3 if how == "bent" else x
    pair = np.stack([np.arange(pairs), np.arange(pairs)], 1)
    if how == "exchanged":
        pair[:, 1] = rng.permutation(pairs)
    names = np.array([f"action_{u}" for u in range(len(actions))])
    env = np.stack([np.full(pairs, "control"), names[which]], 1).reshape(-1)
    told: dict[str, Any] = {"pair": pair.reshape(-1), "step": np.tile([0, 1], pairs), "control": "control"}
    return Data(x, env, truth={"z": z[:, :known]}, name="acted", **told)


def timed(seed: int, how: str = "", rows: int = 3000, features: int = 6, **options: Any) -> Data:
    """Sources with dynamics of their own. how: "shuffled", rows stand in any order; "bent", x through a cubic."""
    data = simulate.draw("halva2021_linear", seed, rows=rows, features=features, **options)
    x, z = data.x / data.x.std(0), data.truth["z"]
    if how == "shuffled":
        order = np.random.default_rng([22, seed]).permutation(rows)
        x, z = x[order], z[order]
    x = x + 0.3 * x**3 if how == "bent" else x
    return Data(x, series=data.series_labels(), step=data.step, truth={"z": z}, name="timed")


def alike(seed: int, rows: int = 1000) -> Data:
    """Two views whose shared latents correlate .8 and are not the same."""
    data = simulate.draw("shared_private", seed, rows=rows)
    rng = np.random.default_rng([22, seed])
    other = 0.8 * data.truth["z"] + 0.6 * rng.standard_normal(data.truth["z"].shape)
    second = data.view_labels() == "view 1"
    x = data.x + (other - data.truth["z"]) @ (data.truth["loadings"] * second[:, None]).T
    return Data(x, view=data.view_labels(), truth={"z": data.truth["z"]}, name="alike")


def lacking(draw: Callable[[int], Data], share: float = 0.2, how: str = "") -> Callable[[int], Data]:
    """The same rows without this share of the values, at random, or (how="low") those that are lowest."""

    def other(seed: int) -> Data:
        data = draw(seed)
        chance = np.random.default_rng([23, seed]).random(data.x.shape)
        lacks = data.x < np.quantile(data.x, share, axis=0) if how == "low" else chance < share
        return Data(np.where(lacks, np.nan, data.x), truth=data.truth, missing=True, name=data.name)

    return other


def mixed_sparsity(seed: int, rows: int = 2000) -> Data:
    """Two latents of sparse loadings that are in all rows, and two of dense ones that are in few, to which the former
    are related: no zeros tell how."""
    rng = np.random.default_rng([24, seed])
    few = (rng.random((rows, 2)) < 0.2) * rng.standard_normal((rows, 2)) / 0.2**0.5
    z = np.column_stack([rng.standard_normal((rows, 2)) + 0.6 * few, few])
    loadings = rng.standard_normal((40, 4))
    loadings[:, :2] *= np.arange(40)[:, None] % 4 == np.arange(2)
    x = z @ loadings.T + 0.5 * rng.standard_normal((rows, 40))
    return Data(x, truth={"z": z, "mask": (loadings != 0).astype(int)}, name="mixed_sparsity")


def drawn(setting: str, **options: Any) -> Callable[[int], Data]:
    return lambda seed: simulate.draw(setting, seed, **options)


def world(*args: Any, **options: Any) -> Callable[[int], Data]:
    return lambda seed: linear_world(seed, *args, **options)


# -- cases -----------------------------------------------------------------------------------------------------

FEW = {"chains": 2}
CODES = {"rows": 3000, "latents": 12, "features": 8, "active": 1.5}
LINEAR, SHIFTS, UNKNOWN = "linear_sem_lin", "mechanism_shift", "unknown_targets"
CLUSTERS, NETWORK = "linear_latent_sem", "linear_sem_nonlin"
HARD, SOFT, SHIFT, VARIANCE = each("perfect"), each("soft"), each("shift"), each("variance")
APART = [[1, 0]] * 3 + [[0, 1]] * 3 + [[1, 1]]
WITHIN, ALL = [[1, 1]] * 3 + [[0, 1]] * 3, [[1, 1]] * 6
STRAIGHT = {"mechanism": "linear"}
# of linear_sem_lin's card
MIXED, ALONE = "x = W z", "an intervention changes the equations of its targets alone"
EQUATIONS = "z follows a linear Gaussian structural equation model without cycles"


def linear_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return Case(f"{LINEAR}: {name}", LINEAR, kind, draw, options, FEW, breaks=breaks)

    null = [*HARD[:2], ("on_2", (2,), "none")]
    pair = [("on_0_and_1", (0, 1), "perfect"), HARD[2]]
    twice = [*HARD, ("again_0", (0,), "perfect"), ("again_1", (1,), "perfect")]
    two_labels = [("on_0", (0,), "perfect"), ("on_1", (0,), "perfect"), ("on_2", (2,), "perfect")]
    off_target = [("on_0", (0, 2), "perfect"), *HARD[1:]]
    labels = {"on_0": (0,), "on_1": (1,), "on_2": (2,)}
    return [
        case("perfect", "identified", world(HARD)),
        case("perfect, two latents", "identified", world(each("perfect", 2), 2)),
        case("perfect, Squires et al.", "identified", drawn("squires2023_hard", latents=3, features=6, samples=1000)),
        case("perfect, Varici et al.", "identified", drawn("varici2024_linear", latents=3, features=8, samples=2000)),
        case("perfect, up to relabelling", "identified", world(HARD), targets="relabelled"),
        case("perfect, targets unknown", "identified", world(HARD), targets="unknown"),
        case("perfect, two environments on some", "identified", world(twice)),
        case("soft", "identified", world(SOFT, rows=2000), intervention="soft"),
        case(
            "perfect, 13 latents",
            "identified",
            drawn("squires2023_sparse", latents=13, samples=7_000),
            edge_probability=0.15,
        ),
        case("perfect, 50 rows", "small", world(HARD, rows=50)),
        case("perfect, 100 rows", "small", world(HARD, rows=100)),
        case("perfect, two latents, 50 rows", "small", world(each("perfect", 2), 2, rows=50)),
        case(
            "perfect, Squires et al., 100 rows", "small", drawn("squires2023_hard", latents=3, features=6, samples=100)
        ),
        case(
            "one latent without intervention",
            "open",
            world(HARD[:2]),
            latents=3,
            incomplete=True,
            breaks="one_intervention_per_latent",
        ),
        case("two latents only together", "open", world(pair), incomplete=True, breaks="separated_targets"),
        case("an environment that changes nothing", "open", world(null), breaks="interventions_show"),
        case("shifts", "open", world(SHIFT), intervention="shift", breaks="nonlinear_or_replaced"),
        case("changes of variance", "open", world(VARIANCE), intervention="variance", breaks="nonlinear_or_replaced"),
        case("shifts told as perfect", "word", world(SHIFT), breaks="perfect_interventions"),
        case(
            "13 latents, shifts told as perfect",
            "word",
            world(each("shift", 13), 13, features=18, noise=0.002),
            breaks="perfect_interventions",
            edge_probability=0.15,
        ),
        case("changes of variance told as perfect", "word", world(VARIANCE), breaks="perfect_interventions"),
        case("soft told as perfect", "word", world(SOFT), breaks="perfect_interventions"),
        case("perfect told as shifts", "open", world(HARD), intervention="shift"),
        case("quadratic equations", "misspecified", world(HARD, bent=0.5), breaks=EQUATIONS),
        case("saturated features", "misspecified", world(HARD, saturated=1.0), breaks=MIXED),
        case("5 % bad rows", "misspecified", world(HARD, bad=0.05), breaks=MIXED),
        case("batches that go with environments", "misspecified", world(HARD, offsets=1.0), breaks=ALONE),
        case(
            "two labels on one latent",
            "misspecified",
            world(two_labels, told=labels),
            breaks="one_intervention_per_latent",
        ),
        case("an intervention that hits a second latent", "misspecified", world(off_target, told=labels), breaks=ALONE),
        case("two of three factors", "misspecified", confounded, breaks=MIXED),
        case("Laplace noise", "misspecified", world(HARD, law="laplace"), breaks="noise is Gaussian"),
        case("mixing not bent", "identified", drawn("buchholz2024", bend=0.0)),
        case("mixing not bent, 100 rows", "small", drawn("buchholz2024", bend=0.0, samples=100)),
        case("mixing bent a little", "misspecified", drawn("buchholz2024", bend=0.1), breaks=MIXED),
        case("mixing bent", "misspecified", drawn("buchholz2024", bend=1.0), breaks=MIXED),
        case(
            "mixing bent, 100 rows of four features",
            "misspecified",
            drawn("buchholz2024", bend=0.3, samples=100, features=4),
            breaks=MIXED,
        ),
    ]


def network_cases() -> list[Case]:
    """Behind a mixing that a network undoes; two chains, or the four of the recipe where they should agree."""

    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return Case(f"{NETWORK}: {name}", NETWORK, kind, draw, options, FEW, breaks=breaks)

    curved = {"curved": 1.0, "rows": 2000, "noise": 0.02}
    two = world(each("perfect", 2), 2, curved=0.3, rows=3000, noise=0.02)
    off_target = [("on_0", (0, 2), "perfect"), *HARD[1:]]
    labels = {"on_0": (0,), "on_1": (1,), "on_2": (2,)}
    return [
        Case(f"{NETWORK}: perfect, two latents", NETWORK, "small", two),
        Case(f"{NETWORK}: perfect", NETWORK, "small", world(HARD, **{**curved, "curved": 0.3})),
        case("perfect, Buchholz et al.", "small", drawn("buchholz2023_hard", latents=3, samples=4000)),
        case("perfect, weights that nearly cancel", "small", world(HARD, **curved)),
        case(
            "two of three latents",
            "misspecified",
            lambda seed: confounded(seed, **curved),
            breaks="mixing is injective",
        ),
        case("quadratic equations", "misspecified", world(HARD, bent=0.5, **curved), breaks="equations are linear"),
        case(
            "an intervention that hits a second latent",
            "misspecified",
            world(off_target, told=labels, **curved),
            breaks="perfect_interventions",
        ),
    ]


def shift_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return Case(f"{SHIFTS}: {name}", SHIFTS, kind, draw, {"inducing": 16, **options}, FEW, breaks=breaks)

    every = (0, 1, 2)
    return [
        case("nonlinear, every mechanism shifts", "identified", lambda s: equations(s, every, bent=True)),
        case("nonlinear, one shift", "identified", lambda s: equations(s, (0,), bent=True)),
        case("linear, told so, every mechanism shifts", "identified", lambda s: equations(s, every), **STRAIGHT),
        case("linear, told so, one shift", "identified", lambda s: equations(s, (0,)), **STRAIGHT),
        case("nonlinear, 40 rows", "small", lambda s: equations(s, every, rows=40, bent=True)),
        case("linear, told nonlinear, one shift in the first", "identified", lambda s: equations(s, (0,))),
        case(
            "linear, told nonlinear, one shift in the last",
            "open",
            lambda s: equations(s, (2,)),
            breaks="nonlinear_equations",
        ),
        case("linear, told nonlinear, no shift", "open", lambda s: equations(s, (-1,)), breaks="nonlinear_equations"),
        case(
            "linear, told nonlinear, two without shift",
            "open",
            lambda s: equations(s, (-1, -1)),
            breaks="nonlinear_equations",
        ),
        case(
            "something unobserved",
            "misspecified",
            lambda s: equations(s, every, bent=True, hidden=True),
            breaks="no unobserved variable acts on two observed ones",
        ),
    ]


def state_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        return Case(f"{UNKNOWN}: {name}", UNKNOWN, kind, draw, {"latents": 2}, FEW, breaks=breaks)

    return [
        case("features of their own", "identified", lambda s: states(s, APART)),
        Case(f"{UNKNOWN}: Jiang & Aragam", UNKNOWN, "identified", drawn("jiang2023", latents=3, features=9), {}, FEW),
        case("features of their own, 60 rows", "small", lambda s: states(s, APART, rows=60)),
        case("latents that share all their features", "open", lambda s: states(s, ALL), breaks="own_features"),
        case("features of one among the other's", "open", lambda s: states(s, WITHIN), breaks="own_features"),
        case("latents that never differ", "open", lambda s: states(s, APART, same=True), breaks="all_states"),
        case("a latent without features", "open", lambda s: states(s, [[1, 0]] * 6), breaks="states_told"),
        case(
            "skewed features",
            "misspecified",
            lambda s: states(s, APART, law="skewed"),
            breaks="features are Gaussian given the latents",
        ),
    ]


def factor_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        given = {"latents": 2, "decoder": "linear", **options}
        return Case(f"sparse_vae: {name}", "sparse_vae", kind, draw, given, FEW, breaks=breaks)

    one = [[1, 0]] * 3 + [[1, 1]] * 3 + [[0, 1]]
    three = [[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3
    return [
        case("anchors", "identified", lambda s: factors(s, APART, correlation=0.0)),
        case("anchors, correlated latents", "identified", lambda s: factors(s, APART), correlated=True),
        case(
            "correlated latents told as independent",
            "misspecified",
            lambda s: factors(s, APART),
            "latents are independent, unless `correlated`",
        ),
        case("anchors, 60 rows", "small", lambda s: factors(s, APART, rows=60)),
        case(
            "two of three factors", "misspecified", lambda s: factors(s, three), "noise is independent between features"
        ),
        case("no anchors", "open", lambda s: factors(s, ALL), breaks="two_anchors"),
        case("one anchor", "open", lambda s: factors(s, one), breaks="two_anchors"),
        case(
            "no mask", "open", lambda s: factors(s, APART), sparse=False, breaks="each feature depends on few latents"
        ),
    ]


def triangular_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        return Case(f"plt_fa: {name}", "plt_fa", kind, draw, {"latents": 2}, FEW, names="order", breaks=breaks)

    whole, alone = [[1, 0], *[[1, 1]] * 7], [[1, 0], [1, 1], *[[1, 0]] * 6]
    return [
        case("features in order", "identified", lambda s: factors(s, whole, rows=1000, correlation=0.0)),
        case("one feature of a latent", "open", lambda s: factors(s, alone, 1000, correlation=0.0), "noise_told_apart"),
        case(
            "no feature of the first latent alone",
            "word",
            lambda s: factors(s, [[1, 1]] * 8, 1000, correlation=0.0),
            "feature k, in the order of the columns, depends on latents 1 to k alone and on latent k for certain",
        ),
    ]


def pure_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        given = {"latents": 3, **options}
        return Case(f"anchor_fa: {name}", "anchor_fa", kind, draw, given, FEW, names="proportional", breaks=breaks)

    proportional = "features with proportional loadings load on one latent alone"
    single = [[1, 0], *[[1, 1]] * 5, [0, 1]]
    wide = {"rows": 1000, "latents": 4, "features": 40, "loadings": "random"}
    return [
        case("two pure features", "identified", lambda s: factors(s, APART)),
        case("two pure features, 60 rows", "small", lambda s: factors(s, APART, rows=60)),
        case("one pure feature, four latents", "open", drawn("bing2020", pure=1, **wide), "pure_features", latents=6),
        case("no pure features, four latents", "open", drawn("bing2020", pure=0, **wide), "pure_features", latents=6),
        case("one pure feature, two latents", "word", lambda s: factors(s, single), proportional),  # some, by chance
        case("many features of both", "word", lambda s: factors(s, [[1, 1]] * 40), proportional),
        case(
            "too few latents",
            "misspecified",
            drawn("bing2020", **wide),
            "what features share is their latents",
            latents=3,
        ),
    ]


def loading_cases(model: str = "spike_slab_fa") -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **given: Any) -> Case:
        return Case(f"{model}: {name}", model, kind, draw, given, FEW, names="sparsest", breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        return drawn("sparse_fa", **{"rows": 2000, "features": 40, "latents": 4, "correlation": 0.3} | options)

    return [
        case("correlated factors", "identified", sparse(), latents=4),
        case("correlated factors, seven offered", "identified", sparse(), latents=7),
        case("two factors a feature", "identified", sparse(second=1.0, rows=4000), latents=4),
        case("correlated factors, 60 rows", "small", sparse(rows=60), latents=4),
        case(
            "dense loadings", "open", lambda s: factors(s, [[1, 1, 1]] * 15, rows=2000), "simple_structure", latents=3
        ),
        case("three of four factors", "open", sparse(), "noise is independent", latents=3),
    ]


def lasso_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 4) -> Case:
        return Case(f"ssl_fa: {name}", "ssl_fa", kind, draw, {"latents": latents}, FEW, names="sparsest", breaks=breaks)

    normal = {"rows": 2000, "features": 40, "latents": 4, "correlation": 0.5, "law": "gaussian"}
    sparsest = "the true loadings are the sparsest of those that fit as well"
    alone = [[1, 1, 0]] * 18 + [[0, 0, 1]] * 2
    return [
        *loading_cases("ssl_fa"),
        case("normal factors of correlation .5", "identified", drawn("sparse_fa", **normal), latents=6),
        case("two features of a latent", "open", lambda s: factors(s, alone, 1000, 0.0), "noise_told_apart"),
        case("latents that are nearly one", "open", twins, "not_collinear"),
        case("loadings that are equal", "word", one_sum, sparsest),
    ]


def product_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 6) -> Case:
        told = {"latents": latents, "steps": 200}
        return Case(f"ebmf: {name}", "ebmf", kind, draw, told, FEW, names="sparsest", breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        return drawn("sparse_fa", **{"rows": 1500, "features": 40, "latents": 4, "correlation": 0.3} | options)

    def silent(**options: Any) -> Callable[[int], Data]:
        return drawn("sparse_scores", **{"rows": 1500, "features": 30, "latents": 4} | options)

    noise = "noise is independent between features"
    sparsest = "the true loadings or scores are the sparsest of those that fit as well"
    alone = [[1, 1, 0]] * 18 + [[0, 0, 1]] * 2

    return [
        case("sparse loadings", "identified", sparse()),
        case("sparse loadings, normal scores", "identified", sparse(law="gaussian")),
        case("sparse loadings, 20 % missing", "identified", lacking(sparse(rows=3500))),
        case("sparse scores", "identified", silent()),
        case("sparse scores, 20 % missing", "identified", lacking(silent())),
        case("sparse loadings and scores", "identified", silent(loadings="sparse")),
        case("sparse loadings, 60 rows", "small", sparse(rows=60)),
        case("sparse scores, 60 rows", "small", silent(rows=60)),
        case("dense loadings, normal scores", "open", silent(share=1.0), "zeros_tell"),
        case("latents that are in the same rows", "open", silent(together=2), "zeros_tell"),
        case("two features of a latent", "open", lambda s: factors(s, alone, correlation=0.0), "noise_told_apart"),
        case("latents that are nearly one", "open", twins, "not_collinear"),
        case("sparse loadings of some, sparse scores of others", "word", mixed_sparsity, sparsest),
        case("three of four factors", "misspecified", sparse(), noise, latents=3),
        case(
            "the lowest fifth missing",
            "misspecified",
            lacking(sparse(), how="low"),
            "what is missing does not depend on what its values are",
        ),
    ]


def tail_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 3) -> Case:
        told = {"latents": latents}
        return Case(f"heavy_tailed_fa: {name}", "heavy_tailed_fa", kind, draw, told, FEW, breaks=breaks)

    def dense(**options: Any) -> Callable[[int], Data]:
        return drawn("dense_fa", **{"rows": 1500, "features": 15, "latents": 3, "noise": 1.0} | options)

    independent, noise = "latents are independent", "noise is Gaussian, and independent between features"
    return [
        case("Laplace", "identified", dense()),
        case("t3", "identified", dense(law="t3")),
        case("one Gaussian", "identified", dense(gaussian=1)),
        case("Laplace, 60 rows", "small", dense(rows=60)),
        case("Gaussian", "open", dense(law="gaussian"), "non_gaussian"),
        case("two of three Gaussian", "open", dense(gaussian=2), "non_gaussian"),
        case("one scale a row", "open", dense(law="t3", shared=True), independent),
        case("Gaussian, noise of heavy tails", "open", lambda s: heavy_noise(s), noise, latents=2),
        case("two of three latents", "misspecified", dense(), noise, latents=2),
    ]


def subspace_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", latents: int = 8) -> Case:
        return Case(f"shrinkage_fa: {name}", "shrinkage_fa", kind, draw, {"latents": latents}, FEW, breaks=breaks)

    def sparse(**options: Any) -> Callable[[int], Data]:
        return drawn("bhattacharya2011", **{"rows": 300, "features": 40, "latents": 4, "density": 0.4} | options)

    alone = [[1, 1, 0]] * 18 + [[0, 0, 1]] * 2
    return [
        case("four of eight columns", "identified", sparse()),
        case("four of eight columns, 30 rows", "small", sparse(rows=30)),
        case("as many columns as latents", "open", sparse(), "number_told", latents=4),
        case("two features of a latent", "open", lambda s: factors(s, alone, correlation=0.0), "noise_told_apart"),
    ]


def cluster_cases() -> list[Case]:
    def case(
        name: str,
        kind: str,
        draw: Callable[[int], Data],
        breaks: str = "",
        open: Sequence[str] = ("graph",),
        **given: Any,
    ) -> Case:
        told, names = (
            {"latents": 5, "innovations": "gaussian", **given},
            "two features of its own" if kind == "word" else "interventions",
        )
        names = breaks if kind == "word" and breaks else names
        return Case(f"{CLUSTERS}: {name}", CLUSTERS, kind, draw, told, FEW, tuple(open), names, breaks)

    pure, own = "each feature depends linearly on one latent alone", "every latent has two features of its own"
    equations = "latents follow linear equations without cycles, and nothing unobserved acts on two of them"
    faithful, every = "independences are those that the graph asks for (faithfulness)", ("latents", "mask", "graph")
    return [
        case("three features each", "identified", measured),
        case("two features each", "identified", lambda s: measured(s, (2, 2, 2))),
        case("Laplace", "identified", drawn("silva2006", law="laplace", rows=4000)),
        case("uniform", "identified", drawn("silva2006", law="uniform", rows=4000)),
        case("Laplace, directions", "identified", drawn("silva2006", law="laplace", rows=4000), innovations="any"),
        case("uniform, directions", "identified", drawn("silva2006", law="uniform", rows=4000), innovations="any"),
        case("Gaussian, directions", "open", measured, "directions_shown", innovations="any"),
        case("three features each, 60 rows", "small", lambda s: measured(s, rows=60)),
        case(
            "two features each, latents apart",
            "open",
            lambda s: measured(s, (2, 2, 2), apart=True),
            "pure_children",
            every,
        ),
        case("one feature alone of the last latent", "word", lambda s: measured(s, (3, 3, 1)), own, every),
        case("something unobserved", "word", lambda s: measured(s, hidden=True), equations),
        case("ways that cancel", "word", lambda s: measured(s, cancelling=True), faithful),
        case(
            "heavy noise, directions",
            "word",
            lambda s: measured(s, heavy=True),
            "noise of features is Gaussian",
            innovations="any",
        ),
        case("a feature of two latents", "misspecified", lambda s: measured(s, mixed=True), pure),
        case("two features that share noise", "misspecified", lambda s: measured(s, paired=True), pure),
        case("two of three latents", "misspecified", measured, pure, latents=2),
    ]


def held_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "", **options: Any) -> Case:
        return Case(f"do_polynomial: {name}", "do_polynomial", kind, draw, options, {"chains": 2}, breaks=breaks)

    unknown = {"targets": "unknown"}
    return [
        case("each held", "identified", lambda s: held(s, [(), (0,), (1,)])),
        case("each held, targets unknown", "identified", lambda s: held(s, [(), (0,), (1,)]), **unknown),
        case("no free environment", "open", lambda s: held(s, [(0,), (1,)]), breaks="free_environment"),
        case("one never held", "open", lambda s: held(s, [(), (0,)]), **unknown, breaks="one_intervention_per_latent"),
        case("only held together", "open", lambda s: held(s, [(), (0, 1)]), **unknown, breaks="single_targets"),
        case("shifts", "misspecified", lambda s: held(s, [(), (0,), (1,)], moved=True), breaks="held_at_constants"),
    ]


def mixture_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        options = {"latents": 2, "components": 3, "layers": 1, "starts": 4, "search_steps": 400}
        return Case(f"gmm_vae: {name}", "gmm_vae", kind, draw, options, {"chains": 2, "epochs": 20}, breaks=breaks)

    widths = [[1.0, 0.3], [0.3, 1.0], [0.5, 0.5]]
    wider = [[1.0, 0.3, 0.6], [0.3, 1.0, 0.9], [0.5, 0.5, 0.3]]
    return [
        case("widths that differ", "identified", lambda s: clusters(s, widths)),
        case("one width", "open", lambda s: clusters(s, [[0.5, 0.5]] * 3), breaks="distinct_variance_ratios"),
        case(
            "two of three latents",
            "misspecified",
            lambda s: clusters(s, wider),
            "the decoder is injective and affine in pieces",
        ),
        case("one component", "open", lambda s: clusters(s, [[1.0, 1.0]]), breaks="two_components"),
    ]


def score_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        recipe = {"chains": 2, "least_steps": 500}
        return Case(f"score_crl: {name}", "score_crl", kind, draw, {}, recipe, breaks=breaks)

    return [
        case("quadratic, 2,000 rows", "small", drawn("varici2024_quadratic", latents=3, features=6, samples=2000)),
        case("soft told as hard", "word", world(SOFT), breaks="perfect_interventions"),
        case("two of three factors", "misspecified", confounded, breaks="mixing is injective"),
    ]


def modulated_cases() -> list[Case]:
    def case(name: str, kind: str, told: str = "scaled normal", breaks: str = "", **world: Any) -> Case:
        options = {"latents": 2, "law": told, "width": 32, "steps": 600}
        return Case(f"ivae: {name}", "ivae", kind, lambda s: modulated(s, **world), options, FEW, breaks=breaks)

    law = "latents are independent given the environment, of the law that is told"

    return [
        case("scales that differ", "identified"),
        case("Laplace, told so", "identified", "laplace", law="laplace"),
        case("levels and scales that differ, told so", "identified", "normal", levels=True),
        case("scales that differ, 50 rows", "small", rows=50),
        case("scales that move together", "open", together=True, breaks="modulated_apart"),
        case("environments that are alike", "open", same=True, breaks="modulated_apart"),
        case("as many environments as latents", "open", environments=2, breaks="more_environments"),
        case("latents that correlate", "misspecified", correlation=0.6, breaks=law),
        case("levels told as none", "misspecified", levels=True, breaks=law),
        case("two of four latents", "misspecified", latents=4, environments=12, breaks="the decoder is injective"),
        case(
            "levels and scales, few environments",
            "open",
            "normal",
            "twice_the_environments",
            levels=True,
            environments=4,
        ),
    ]


def pair_cases() -> list[Case]:
    model = "weakly_supervised_pairs"

    def case(name: str, kind: str, breaks: str = "", how: str = "", **options: Any) -> Case:
        return Case(f"{model}: {name}", model, kind, lambda seed: paired(seed, how, **options), {}, FEW, breaks=breaks)

    alone, shared = (
        "between a pair's rows one latent, or none, is cut from its parents and drawn anew",
        "noise of all other latents is the same in both rows, but for a small part",
    )
    return [
        case("one latent changes", "identified", rows=12_000),
        case("noise without a part of its own", "identified", rows=12_000, unshared=0.0),
        case("50 pairs", "small", rows=100),
        case("a latent that never changes", "open", "changed_in_pairs", never=1),
        case("a changed latent keeps its equation", "word", "perfect_interventions", kept=1.0),
        case("two latents change in every pair", "misspecified", alone, together=2),
        case("noise of features in every row", "misspecified", shared, measurement=0.2),
        case("partners of other pairs", "misspecified", shared, "exchanged"),
        case("features bent", "misspecified", "x is linear in the latents", "bent"),
        case("two of three latents", "misspecified", "x is linear in the latents", "hidden"),
    ]


def perturbation_cases() -> list[Case]:
    model = "sparse_perturbations"
    fixed = "a perturbation moves latents by the same in all its pairs"
    sparse = "no axes are moved by fewer perturbations than the latents are"
    bent = "the mixing does not bend in step with the offsets"
    linear, nets = {"decoder": "linear"}, {"steps": 1500}
    every = ("latents", "targets")

    def case(name: str, kind: str, offset: Any, breaks: str = "", told: Any = None, **world: Any) -> Case:
        names = "bend" if breaks == bent else "axes"
        options = linear if told is None else told
        return Case(
            f"{model}: {name}",
            model,
            kind,
            lambda seed: moved(seed, offset, **world),
            options,
            FEW,
            every,
            names,
            breaks,
        )

    alone = [[1.5, 0, 0], [0, -1.2, 0], [0, 0, 1.0]]
    doses = [*alone, [0.8, 0, 0], [0, -0.7, 0], [0, 0, 1.7]]
    each_way = np.array([[1, 1], [1, -0.6], [0.5, 1.4]])  # of any two latents
    two = np.concatenate([np.insert(each_way, k, 0, axis=1) for k in range(3)])
    bent_by: dict[str, Any] = {"layers": 2, "pairs": 4000, "told": nets}
    unmoved: dict[str, Any] = bent_by | {"told": {**nets, "latents": 2}, "known": 2}
    return [
        case("one latent each", "identified", alone),
        case("two doses each", "identified", doses),
        case("two latents each, in pairs that overlap", "identified", two),
        case("no noise, as many features as latents", "identified", alone, noise=0.0, features=3),
        case("one latent each, 60 pairs", "small", alone, pairs=60),
        case("two latents each, 100 pairs", "small", two, pairs=100),
        case("one latent each, bent", "identified", alone, **bent_by),
        case("two doses each, bent", "identified", doses, **bent_by),
        case("features with some noise", "identified", alone, noise=0.1),
        case("as many features as latents, bent", "identified", alone, **bent_by, features=3),
        case("two latents each, in pairs that overlap, bent", "identified", two, **bent_by),
        case("one latent each, bent, 300 pairs", "small", alone, **bent_by | {"pairs": 300}),
        case("two latents in one ratio", "open", [[1, 1, 0], [2, 2, 0], [0, 0, 1]], "offsets_span"),
        case("two latents in one ratio, bent", "open", [[1, 1, 0], [-1, -1, 0], [0, 0, 1]], "offsets_span", **bent_by),
        case(
            "three directions of two latents", "open", [[1, 0.5, 0], [0.5, 1, 0], [1, -1, 0], [0, 0, 1]], "axes_apart"
        ),
        case("steps beyond a latent's range, bent", "open", np.multiply(alone, 4), "offsets_overlap", **bent_by),
        case("two latents in two ratios", "word", [[1, 1, 0], [1, 2, 0], [0, 0, 1]], sparse),
        case("a wave in step with an offset", "word", alone, bent, how="wavy", **bent_by),
        case(
            "a latent that nothing moves, not counted",
            "open",
            alone[:2],
            "little_left",
            {**linear, "latents": 2},
            known=2,
        ),
        case("a latent that nothing moves, not counted, bent", "open", alone[:2], "little_left", **unmoved),
        case("a latent that nothing moves, counted", "open", [*alone[:2], [0, 0, 0]], "offsets_span"),
        case("offsets that vary", "misspecified", alone, fixed, how="varying"),
        case("perturbations that do one thing or another", "misspecified", alone, fixed, how="either"),
        case("offsets that grow with another latent", "misspecified", alone, fixed, how="placed"),
        case("features bent", "misspecified", alone, fixed, how="bent"),
        case("partners of other pairs", "open", alone, "offsets_steady", how="exchanged"),
        case("two of three latents", "misspecified", alone, fixed, {**linear, "latents": 2}, known=2),
    ]


def mechanism_cases() -> list[Case]:
    model, linear, nets = "equivariant_mechanism", {"decoder": "linear"}, {"steps": 1000}
    told_so = "actions map latents as they were told to, which other latents under other mechanisms would do as well"
    followed = "rows after are where the mechanisms told take latents of rows before"
    bent = "the mixing does not bend in step with the mechanisms"
    little = "x is an injective function of latents, with little noise"

    def case(
        name: str,
        kind: str,
        actions: Sequence[Action],
        breaks: str = "",
        told: Any = None,
        more: Any = None,
        **world: Any,
    ) -> Case:
        """told: actions as the model is told them, None = as they are; more: options beside."""
        own = {f"action_{u}": one for u, one in enumerate(actions if told is None else told)}
        mechanisms = {
            u: {"matrix": a and [*map(list, a)], "offset": b if isinstance(b, str) else b and list(b)}
            for u, (a, b) in own.items()
        }
        options = {**(nets if world.get("layers") else linear), "mechanisms": mechanisms, **(more or {})}
        names = "bend" if breaks == bent else "told to"
        draw = functools.partial(acted, actions=actions, **world)
        return Case(f"{model}: {name}", model, kind, draw, options, FEW, names=names, breaks=breaks)

    def turned(angle: float) -> list[list[float]]:
        c, s = float(np.cos(angle)), float(np.sin(angle))
        return [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]

    def scaled(*by: float) -> list[list[float]]:
        return [[*map(float, row)] for row in np.diag(by)]

    steps: list[Action] = [(None, [1.0, 0, 0]), (None, [0, 1.0, 0]), (None, [0, 0, 1.0])]
    oblique: list[Action] = [
        (None, [1.0, 0.5, 0]),
        (None, [-0.5, 1.0, 0]),
        (None, [0, 0.5, 1.0]),
        (None, [1.0, 0, -1.0]),
    ]
    factors: list[Action] = [(scaled(1.5, 0.6, 1.2), None)]
    spins: list[Action] = [(turned(0.6), None), (None, [1.0, 0, 0]), (None, [0, 0, 1.0])]
    shrunk: list[Action] = [(scaled(0.5, 0.6, 0.8), None), *steps]
    bent_by: dict[str, Any] = {"layers": 2, "pairs": 3000}
    unknown: list[Action] = [(None, "unknown")] * 3
    two_of_three = {"latents": 2}
    return [
        case("a step of each latent", "identified", steps),
        case("factors of each latent", "identified", factors),
        case("factors and steps", "identified", shrunk),
        case("a rotation and steps", "identified", spins),
        case("four oblique steps", "identified", oblique),
        case("no noise, as many features as latents", "identified", steps, noise=0.0, features=3),
        case("actions that are random a little", "identified", steps, spread=0.1),
        case("features with some noise", "identified", steps, noise=0.1),
        case("a step of each latent, bent", "identified", steps, **bent_by),
        case("four oblique steps, bent", "identified", oblique, **bent_by),
        case("a rotation and steps, bent", "identified", spins, **bent_by),
        case("factors and steps, bent", "identified", shrunk, **bent_by),
        case("a step of each latent, 60 pairs", "small", steps, pairs=60),
        case("factors of each latent, 60 pairs", "small", factors, pairs=60),
        case("a step of each latent, bent, 300 pairs", "small", steps, **bent_by | {"pairs": 300}),
        case("a rotation", "open", spins[:1], "mechanisms_tell"),
        case("a rotation, bent", "open", spins[:1], "mechanisms_tell", **bent_by),
        case("two equal factors", "open", [(scaled(1.5, 1.5, 1.2), None)], "mechanisms_tell"),
        case("factors of each latent, bent", "open", factors, "mechanisms_tell", **bent_by),
        case("steps that nobody knows", "open", steps, "mechanisms_tell", unknown),
        case("steps that nobody knows, bent", "open", steps, "mechanisms_tell", unknown, **bent_by),
        case("a latent that nothing moves, counted", "open", steps[:2], "mechanisms_tell"),
        case("two factors that are nearly equal", "open", [(scaled(1.5, 1.5001, 1.2), None)], "mechanisms_apart"),
        case("two factors that are not far from equal", "small", [(scaled(1.5, 1.502, 1.2), None)], noise=0.05),
        case("a step that is small", "open", [*steps[:2], (None, [0, 0, 0.02])], "mechanisms_apart", **bent_by),
        case("partners of other pairs", "open", steps, "mechanisms_steady", how="exchanged"),
        case("partners of other pairs, bent", "open", steps, "mechanisms_steady", how="exchanged", **bent_by),
        case(
            "steps beyond a latent's range, bent",
            "open",
            [(None, [5.0, 0, 0]), (None, [0, 5.0, 0]), (None, [0, 0, 5.0])],
            "steps_overlap",
            **bent_by,
        ),
        case(
            "a latent that nothing moves, not counted",
            "open",
            steps[:2],
            "little_left",
            [(None, [1.0, 0]), (None, [0, 1.0])],
            two_of_three,
            known=2,
        ),
        case("steps of other directions than told", "word", oblique[:3], told_so, steps),
        case("a wave in step with an action, bent", "word", steps, bent, how="wavy", **bent_by),
        case("another angle than told", "misspecified", spins, followed, [(turned(0.9), None), *spins[1:]]),
        case(
            "another angle than told, bent",
            "misspecified",
            spins,
            followed,
            [(turned(0.9), None), *spins[1:]],
            **bent_by,
        ),
        case("another factor than told", "misspecified", factors, followed, [(scaled(1.5, 0.6, 1.35), None)]),
        case(
            "a step twice as large as told", "misspecified", oblique, followed, [*oblique[:3], (None, [2.0, 0, -2.0])]
        ),
        case("effects that vary", "misspecified", steps, followed, how="varying"),
        case("effects that grow with another latent", "misspecified", steps, followed, how="placed"),
        case("features bent", "misspecified", steps, followed, how="bent"),
        case("features with much noise", "misspecified", steps, little, noise=0.5),
        case(
            "two values of a latent that features do not tell apart, bent",
            "misspecified",
            steps,
            little,
            how="folded",
            **bent_by,
        ),
        case(
            "two of three latents, all moved",
            "misspecified",
            steps,
            followed,
            [(None, [1.0, 0]), (None, [0, 1.0]), (None, [0, 0])],
            two_of_three,
            known=2,
        ),
    ]


def view_cases() -> list[Case]:
    model, linear = "cross_modal", "x is linear in shared latents and in latents of each view alone"
    labels = "labels of environments move the shared latents alone"

    def case(name: str, kind: str, breaks: str = "", told: Mapping[str, Any] | None = None, **world: Any) -> Case:
        draw = drawn("shared_private", **world) if world.pop("same", True) else alike
        named = labels if kind == "word" else "interventions"
        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names=named, breaks=breaks)

    anchors = {"anchors": True}
    return [
        case("all rows paired", "identified"),
        case("a tenth of the rows paired", "identified", rows=2000, paired=0.1),
        case("labels, no row paired", "identified", told=anchors, rows=6000, paired=0.0, labels=5),
        case("three views", "identified", views=3, features=60),
        case("60 rows", "small", rows=60),
        case("neither pairs nor labels", "open", "views_tied", paired=0.0),
        case("fewer labels than latents", "open", "views_tied", anchors, rows=2000, paired=0.0, labels=3),
        case("a shared latent too many", "open", "shared_in_views", {"latents": 4}),
        case("views that are alike", "open", "private_apart", {"private": 5}, same=False),
        case("labels move private latents", "word", labels, anchors, rows=2000, paired=0.0, labels=5, moved=0.5),
        case("two of three latents", "misspecified", linear, {"latents": 2}),
        case("features bent", "misspecified", linear, bend=0.3),
    ]


def series_cases() -> list[Case]:
    model = "snica_lin"
    linear = "x is linear in the latents"
    law = "each latent is an autoregression that switches between states, independent of all others"
    noiseless = "features have no noise of their own among the latents"

    def case(name: str, kind: str, breaks: str = "", how: str = "", told: Any = None, **world: Any) -> Case:
        def draw(seed: int) -> Data:
            return timed(seed, how, **world)

        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names="noise", breaks=breaks)

    return [
        case("switching sources", "identified"),
        case("Gaussian sources of different spectra", "identified", sources="autoregressive"),
        case("many short series", "identified", series=60),
        case("300 rows", "small", rows=300),
        case("two Gaussian sources of one spectrum", "open", "dynamics_apart", sources="alike"),
        case("white Gaussian sources", "open", "dynamics_apart", sources="white"),
        case("Gaussian sources, rows in any order", "open", "dynamics_apart", "shuffled", sources="autoregressive"),
        case("switching sources, rows in any order", "misspecified", law, "shuffled"),
        case("one latent drives another", "misspecified", law, coupled=0.5),
        case("features with much noise", "misspecified", noiseless, noise=0.5),
        case("much noise, no more features than latents", "word", noiseless, noise=0.5, features=3),
        case("features bent", "misspecified", linear, "bent"),
        case("two of three latents", "misspecified", linear, told={"latents": 2}),
        case("a latent too many", "misspecified", noiseless, told={"latents": 4}, noise=0.0003),
    ]


def parallel(seed: int) -> Data:
    """Sparse codes of which two directions have cosine .97."""
    data = simulate.draw("synth_sae_small", seed=seed, **CODES)
    rng, w, z = np.random.default_rng([15, seed]), data.truth["loadings"].copy(), data.truth["z"]
    other = w[:, 1] - (w[:, 1] @ w[:, 0]) * w[:, 0]
    w[:, 1] = 0.97 * w[:, 0] + 0.243 * other / np.linalg.norm(other)
    return Data(z @ w.T + 0.1 * rng.standard_normal(data.x.shape), truth={"z": z, "loadings": w})


def dictionary_cases() -> list[Case]:
    def case(name: str, kind: str, breaks: str = "", latents: int = 12, most: int = 5, **world: Any) -> Case:
        draw = world.pop("draw", None) or drawn("synth_sae_small", **CODES | world)
        told = {"latents": latents, "most": most}
        return Case(f"sparse_dictionary: {name}", "sparse_dictionary", kind, draw, told, FEW, breaks=breaks)

    return [
        case("twelve directions of eight features", "identified"),
        case("fifteen offered", "identified", latents=15),
        case("twelve directions of twelve features, some rare", "identified", features=12, zipf=0.7),
        case("two directions fire together", "open", "fire_apart", together=1),
        case("half of the directions in a row", "open", "firing_told", active=6.0),
        case("more directions in a row than the search allows", "open", "few_fire", most=2, active=2.0),
        case("two directions near parallel", "open", "directions_apart", draw=parallel),
        case("nine of twelve directions", "misspecified", "noise is Gaussian", latents=9),
    ]


CAUSES = ("a>b", "a>y", "b>y", "y>c", "c>d")


def causes(
    seed: int,
    *acts: Mapping[str, str],
    rows: int = 500,
    edges: Sequence[str] = CAUSES,
    bent: float = 0.0,
    tails: bool = False,
    hidden: str = "",
    cancelling: bool = False,
    noisy: str = "",
) -> Data:
    """Columns a, b, y, c, d of linear equations on `edges`, one environment for each of `acts`: what it does to which
    columns, "shift", "variance", "soft" or "perfect". bent: of the square of parents; tails: noise of Student's law of
    3 degrees; hidden: columns that something unobserved acts on; cancelling: a acts on y through b and otherwise, and
    both ways add up to nothing; noisy: columns that are measured with errors as large as they vary."""
    rng, names = np.random.default_rng([18, seed]), "abycd"
    weight = np.zeros((5, 5))
    for edge in edges:
        weight[names.index(edge[0]), names.index(edge[2])] = rng.choice([-1, 1]) * rng.uniform(0.7, 1.3)
    if cancelling:
        weight[0, 2] = -weight[0, 1] * weight[1, 2]
    parts = []
    for act in acts:
        w, s, level = weight.copy(), np.ones(5), np.zeros(5)
        for name, kind in act.items():
            k = names.index(name)
            w[:, k] *= {"perfect": 0.0, "soft": rng.uniform(-1.0, -0.3)}.get(kind, 1.0)
            s[k] *= rng.uniform(1.8, 2.5) if kind == "variance" else 1.0
            level[k] = rng.choice([-1, 1]) * rng.uniform(1.5, 2.5) * (kind in ("shift", "perfect"))
        noise = rng.standard_t(3, (rows, 5)) / np.sqrt(3) if tails else rng.standard_normal((rows, 5))
        noise[:, [names.index(name) for name in hidden]] += 1.2 * rng.standard_normal((rows, 1))
        z = np.zeros((rows, 5))
        for k in range(5):
            z[:, k] = (z + bent * z**2) @ w[:, k] + level[k] + s[k] * noise[:, k]
        parts.append(z)
    z = np.concatenate(parts)
    for k in map(names.index, noisy):
        z[:, k] += z[:, k].std() * rng.standard_normal(len(z))
    truth = {"z": z, "graph": (weight != 0).astype(int)}
    labels = np.repeat([f"env_{e}" for e in range(len(acts))], rows)
    return Data(z, labels, feature_names=list(names), truth=truth, name="causes")


def mixed(
    seed: int,
    acts: Sequence[Sequence[int]],
    sizes: Sequence[int] = (3, 2),
    rows: int = 1000,
    *,
    width: int = 2,
    separation: float = 6.0,
    never: Sequence[int] = (),
    noise: str = "",
    same: bool = False,
    hidden: bool = False,
) -> Data:
    """Discrete latents, the first one a parent of the others, and variables of `width` features in joint states' means.

    acts: (variable, latent) in {0, 1}; separation: of the two closest means of a variable, in noise's deviations;
    never: a joint state that does not occur. noise: "skewed", of heavy "tails", of "sizes" that differ between states,
    or "shared" by the features of a variable; with "between" latents are normal and means linear in them. same:
    whether the first variable's mean is the same in all but one of its states; hidden: whether something unobserved
    acts on all latents, in place of the first one.
    """
    rng = np.random.default_rng([2106, seed])
    between = rng.standard_normal((rows, len(sizes)))
    size, z = np.array(sizes), np.zeros((rows, len(sizes)), dtype=int)
    other = rng.integers(0, 2, rows) if hidden else np.zeros(rows, dtype=int)
    for k, states in enumerate(sizes):
        table = rng.dirichlet(np.full(states, 4.0), (size[0], 2))
        if k:  # the first state of the first latent favours the first one of this, and so on
            table = 0.5 * table + 0.5 * np.eye(states)[(np.arange(size[0])[:, None] + np.arange(2)) % states]
        chance = table[0, other] if not k else table[0 if hidden else z[:, 0], other]
        z[:, k] = (rng.random(rows)[:, None] > chance.cumsum(-1)[:, :-1]).sum(-1)
    if len(never):
        z[(z == np.array(never)).all(1), 0] = (never[0] + 1) % size[0]
    parts = []
    for v, own in enumerate(acts):
        parents = np.flatnonzero(own)
        cells = int(np.prod(size[parents]))
        mean = rng.standard_normal((cells, width))
        if width == 1:
            mean = (rng.permutation(cells) * rng.uniform(1.0, 1.3))[:, None].astype(float)
        mean *= separation / np.linalg.norm(mean[:, None] - mean, axis=-1)[np.triu_indices(cells, 1)].min()
        slot = np.ravel_multi_index(tuple(z[:, parents].T), tuple(size[parents]))
        mean = mean[np.minimum(np.arange(cells), 1)] if same and not v else mean
        e = rng.standard_normal((rows, width))
        e = e + (e**2 - 1) if noise == "skewed" else e
        e = rng.standard_t(3, e.shape) / np.sqrt(3) if noise == "tails" else e
        e = e * rng.uniform(0.4, 1.6, cells)[slot][:, None] if noise == "sizes" else e
        mean = mean[slot]
        if noise == "between":
            mean = 3.0 * (between * own) @ rng.standard_normal((len(sizes), width))
        parts.append(mean + (e + rng.standard_normal((rows, 1)) if noise == "shared" else e))
    x, graph = np.concatenate(parts, 1), np.zeros((len(sizes),) * 2, dtype=int)
    graph[0, 1:] = 0 if hidden else 1
    z = between if noise == "between" else numbered(z, size, x).astype(float)
    truth = {"z": z, "graph": graph, "mask": np.repeat(np.array(acts), width, 0)}
    view = None if width == 1 else np.repeat([f"x{v}" for v in range(len(acts))], width)
    return Data(x, truth=truth, view=view, name="mixed")


def oracle_cases() -> list[Case]:
    model, every = "mixture_oracle", ("latents", "mask", "graph")

    def case(name: str, kind: str, acts: Any, breaks: str = "", open: Any = every, told: Any = None, **w: Any) -> Case:
        given = {"latents": 4, "states": 4} | (told or {})
        return Case(
            f"{model}: {name}", model, kind, lambda s: mixed(s, acts, **w), given, FEW, tuple(open), breaks, breaks
        )

    two = [[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]]
    three = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]
    within, one = [[1, 0], [1, 1], [1, 0], [1, 1]], [[1], [1], [1]]
    normal = "noise of features is Gaussian, the same in all states"
    alone = "noise is independent between features"
    occur = "all combinations of the latents' states occur, and differ where a parent does"
    return [
        case("two latents", "identified", two),
        case("two latents, 3 deviations apart", "identified", two, separation=3.0, width=4),
        case("three latents", "identified", three, sizes=(2, 3, 2), rows=2000),
        case("three latents of two states", "identified", three, sizes=(2, 2, 2), rows=4000, separation=4.0),
        case("single columns", "identified", two * 2, width=1),
        case("one latent", "identified", one, sizes=(3,)),
        case("more latents offered", "identified", two, told={"latents": 5, "states": 3}),
        case("two latents, 60 rows", "small", two, rows=60),
        case("two latents, 2 deviations apart, 300 rows", "small", two, separation=2.0, rows=300),
        case("a latent whose variables are another's", "open", within, "own_features"),
        case("a joint state that does not occur", "open", two, "all_states", never=(0, 0)),
        case("three joint states of two latents of two", "word", two, occur, sizes=(2, 2), never=(0, 0)),
        case(
            "states that overlap",
            "open",
            [[1]] * 2,
            "states_told",
            ("latents",),
            sizes=(2,),
            separation=1.3,
            width=3,
            rows=8000,
        ),
        case(
            "states that overlap, by few rows",
            "open",
            one,
            "states_told",
            ("latents",),
            sizes=(2,),
            separation=1.3,
            rows=400,
        ),
        case("joint states of one mean", "word", two, occur, same=True),
        case(
            "something unobserved",
            "word",
            three,
            "nothing unobserved acts on two latents",
            ("graph",),
            sizes=(2, 2, 2),
            hidden=True,
            rows=2000,
        ),
        case("skewed noise", "misspecified", two, "states_apart", noise="skewed"),
        case("noise of different sizes", "misspecified", two, normal, noise="sizes"),
        case("heavy tails", "misspecified", two, normal, noise="tails"),
        case("latents that are not discrete", "misspecified", two, "latents are discrete", noise="between"),
        case("noise that features share", "misspecified", two, alone, noise="shared"),
        case("two latents, one offered", "misspecified", two, "latents are discrete", told={"latents": 1}),
    ]


def response_cases() -> list[Case]:
    model = "invariant_prediction"

    def case(name: str, kind: str, acts: Sequence[Mapping[str, str]], breaks: str = "", **world: Any) -> Case:
        draw = lambda seed: causes(seed, *acts, **world)  # noqa: E731
        return Case(f"{model}: {name}", model, kind, draw, {}, FEW, names=breaks, breaks=breaks)

    def on(columns: str, kind: str) -> list[dict[str, str]]:
        return [{}, *({column: kind} for column in columns)]

    response = "environments act on the response through other columns alone"
    straight = "equations are linear with additive Gaussian noise"
    hidden = "no unobserved variable acts on two observed ones"
    faithful = "independences are those that the graph asks for (faithfulness)"
    measured = "columns are measured without error"
    return [
        case("shifts of all others", "identified", on("abcd", "shift")),
        case("changes of variance", "identified", on("abc", "variance")),
        case("soft changes", "identified", [{}, {"a": "shift", "b": "soft"}, {"c": "soft"}]),
        case("perfect interventions", "identified", on("abc", "perfect")),
        case("a chain, its start shifted", "identified", on("a", "shift"), edges=CAUSES[1::2] + CAUSES[4:], rows=1000),
        case("both parents shifted at once", "identified", [{}, {"a": "shift", "b": "shift"}], edges=CAUSES[1:]),
        case("no parents", "identified", on("cd", "shift"), edges=("a>b", "y>c", "a>c", "c>d")),
        case("shifts, 60 rows", "small", on("abc", "shift"), rows=60),
        case("shifts, 20 rows", "small", on("abcd", "shift"), rows=20),
        case("one environment", "open", [{}], "environments_differ", rows=2000),
        case("environments that are alike", "open", [{}, {}, {}], "environments_differ"),
        case("a pair that none acts on", "open", on("d", "shift"), "parents_directed", edges=("b>y", "c>d")),
        case("the response shifted", "misspecified", [{}, {"y": "shift"}, {"c": "shift"}], response),
        case("the response shifted along with a parent", "word", [{}, {"a": "shift", "y": "shift"}], response),
        case("noise of the response", "misspecified", [{}, {"a": "shift", "y": "variance"}], response),
        case("something unobserved, a parent", "word", on("ac", "shift"), hidden, hidden="by"),
        case("something unobserved, a child", "word", on("abc", "shift"), hidden, hidden="yc"),
        case("a parent with errors", "word", on("abc", "shift"), measured, noisy="b"),
        case("equations bent", "misspecified", on("abc", "shift"), straight, bent=0.3),
        case("tails", "misspecified", on("abc", "shift"), straight, tails=True),
        case("ways that cancel", "word", on("ac", "shift"), faithful, cancelling=True),
    ]


def cases() -> list[Case]:
    """All of them."""
    every = (
        dictionary_cases,
        linear_cases,
        network_cases,
        shift_cases,
        state_cases,
        factor_cases,
        triangular_cases,
        loading_cases,
        lasso_cases,
        product_cases,
        tail_cases,
        subspace_cases,
        pure_cases,
        cluster_cases,
        held_cases,
        mixture_cases,
        score_cases,
        modulated_cases,
        pair_cases,
        perturbation_cases,
        mechanism_cases,
        view_cases,
        series_cases,
        response_cases,
        oracle_cases,
    )
    return [case for some in every for case in some()]


# -- runs ------------------------------------------------------------------------------------------------------


def run_case(case: Case, seed: int) -> dict[str, Any]:
    """Each claim's verdict and whether it is right, with the estimate's scores; a fit that fails is a row as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            data = case.draw(seed)
            program = zoo.build(case.model, data, **case.options)
            result = fit(program, data, seed=seed, device="cpu", progress=False, **case.recipe)
        except (FitError, InputError) as error:
            return {"seed": seed, "failed": str(error)}
    return judged(case, seed, result, data)


def judged(case: Case, seed: int, result: Fit, data: Data) -> dict[str, Any]:
    """The row of a fit."""
    scores = estimated(result, data)
    claims = {}
    for claim in diagnose(result, data).claims:
        said = {"verdict": claim.verdict, "right": case.right(claim, scores), "reason": claim.reason}
        claims[claim.what] = said | {"given": list(claim.given), "rows": claim.rows, "which": list(claim.which)}
    return {"seed": seed, "claims": claims, "scores": scores, "seconds": result.meta["cpu_seconds"]}


def estimated(result: Fit, data: Data) -> dict[str, float]:
    """Latents', graph's and mask's scores against the truth, where it is of as many latents."""
    z, mask, graph = result.latents(data), result.mask(), result.graph()
    if mask is not None and (
        graph is None or z.shape[1] > data.truth["z"].shape[1]
    ):  # more may be offered than are there
        used = (mask > INCLUDED).any(0)
        z, mask, graph = z[:, used], mask[:, used], None if graph is None else graph[np.ix_(used, used)]
    if z.shape != data.truth["z"].shape:
        return {}
    if result.program.group.mixes:
        return {"r2": r2(data.truth["z"], z)}
    score, nodes = mcc(data.truth["z"], z, return_assignment=True)
    out = {"mcc": float(score)}
    if graph is not None and "graph" in data.truth and min(nodes) >= 0:
        found: Array = reorder_graph(graph, nodes)
        true: Array = data.truth["graph"] > 0
        if any(
            "markov equivalence" in claim.up_to for claim in result.program.claims()
        ):  # what it says: which are joined
            found, true = np.triu(found + found.T), np.triu(true | true.T)
        elif any("transitive closure" in claim.up_to for claim in result.program.claims()):
            found, true = transitive_closure(found > 0.5), transitive_closure(true)
        out["wrong_pairs"] = float(differing_pairs(found > 0.5, true))
    if (parents := result.parents()) is not None:
        true = data.truth["graph"][:, [result.program.config["response"]]] > 0
        out["wrong_parents"] = float(((parents > 0.5) != true).sum())
    if mask is not None and "mask" in data.truth and min(nodes) >= 0:
        out["wrong_entries"] = float(((mask[:, nodes] > 0.5) != (data.truth["mask"] > 0)).mean())
    return out


def study(chosen: Sequence[Case], seeds: Sequence[int], path: str | Path | None = None) -> dict[str, Any]:
    """All cases with all seeds, and the shares that are right; written to `path` after each case, where rows of other
    cases and seeds stay as they are, each with the commit that it is of."""
    made = provenance()
    known: dict[str, dict[int, dict[str, Any]]] = {}
    if path is not None and Path(path).exists():
        before = json.loads(Path(path).read_text(encoding="utf-8"))
        for entry in before["cases"]:
            known[entry["name"]] = {row["seed"]: {"commit": before["commit"]} | row for row in entry["seeds"]}
    table: dict[str, Any] = {"about": "verdicts", **made, "summary": summarise([]), "cases": []}
    for case in chosen:
        new = {seed: run_case(case, seed) | {"commit": made["commit"]} for seed in seeds}
        known[case.name] = known.get(case.name, {}) | new
        print(line({"name": case.name, "kind": case.kind, "seeds": list(new.values())}), flush=True)
        table["cases"] = [
            {"name": one.name, "model": one.model, "kind": one.kind, "seeds": [rows[seed] for seed in sorted(rows)]}
            for one in cases()
            if (rows := known.get(one.name))
        ]
        table["summary"] = summarise(table["cases"])
        if path is not None:
            write_json(table, path)
    return table


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By kind and in all: verdicts, those that are right, and where a claim must not be called identified and is."""
    out: dict[str, Any] = {}
    wrong = []
    for entry in entries:
        for row in entry["seeds"]:
            for what, claim in row.get("claims", {}).items():
                for kind in (entry["kind"], "all"):
                    known = out.setdefault(kind, {"verdicts": 0, "right": 0})
                    known["verdicts"] += 1
                    known["right"] += claim["right"]
                if not claim["right"] and claim["verdict"] in HOLDS:
                    wrong.append(f"{entry['name']}, seed {row['seed']}, {what}")
    failed = [f"{entry['name']}, seed {row['seed']}" for entry in entries for row in entry["seeds"] if "failed" in row]
    return {**out, "settings": len(entries), "unearned": wrong, "failed": failed}


def line(entry: Mapping[str, Any]) -> str:
    """A case in one line: of every seed the verdicts, those that are wrong in capitals."""
    parts = []
    for row in entry["seeds"]:
        if "failed" in row:
            parts.append(f"failed: {row['failed'][:60]}")
            continue
        said = [f"{w} {c['verdict'] if c['right'] else c['verdict'].upper()}" for w, c in row["claims"].items()]
        score = " ".join(f"{name} {value:.2f}" for name, value in row["scores"].items())
        parts.append(f"{', '.join(said)} ({score}; {row['seconds']:.0f} s)")
    return f"{entry['name']} [{entry['kind']}]: " + " | ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.verdicts", description=__doc__)
    parser.add_argument("--seeds", default="0:3", help="0:3 (0 to 2), 3 or 0,2")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", default=None, help="where the results go")
    told = parser.parse_args(arguments)
    chosen = [case for case in cases() if told.only in case.name]
    if not chosen:
        parser.error(f"--only {told.only!r}: no case is called so")
    table = study(chosen, parse_seeds(told.seeds), told.json)
    found = table["summary"].get("all", {"right": 0, "verdicts": 0})
    print(f"{found['right']} of {found['verdicts']} verdicts right in {len(table['cases'])} settings")
    for one in table["summary"]["unearned"]:
        print(f"identified, and must not be: {one}")


if __name__ == "__main__":
    main()
