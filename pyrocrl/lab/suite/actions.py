"""What is done between before and after."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case


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
