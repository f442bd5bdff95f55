"""Discrete latents, mixtures, and codes that fire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.claims.card import AT_RANDOM
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn
from pyrocrl.lab.suite.factors import ALL, APART, WITHIN, lacking
from pyrocrl.simulate.states import numbered


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


def clusters(seed: int, scales: Sequence[Sequence[float]], rows: int = 1500) -> Data:
    """Latents of a mixture of components with these deviations (component, latent), mixed linearly."""
    rng = np.random.default_rng([19, seed])
    scale = np.asarray(scales)
    mean = rng.uniform(-2, 2, scale.shape)
    component = rng.integers(len(scale), size=rows)
    z = mean[component] + scale[component] * rng.standard_normal((rows, scale.shape[1]))
    x = z @ rng.standard_normal((scale.shape[1], 8)) + 0.03 * rng.standard_normal((rows, 8))
    return Data(x, truth={"z": z}, name="clusters")


CODES = {"rows": 3000, "latents": 12, "features": 8, "active": 1.5}
CODE_COUNTS = {"rows": 1500, "latents": 12, "features": 40, "active": 1.5}
UNKNOWN = "unknown_targets"


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


def mixture_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        options = {"latents": 2, "components": 3, "layers": 1, "starts": 4, "search_steps": 400}
        fit = {"chains": 2, "epochs": 20}
        return Case(f"gmm_vae: {name}", "gmm_vae", kind, draw, options, fit, names="missing", breaks=breaks)

    def lone(seed: int) -> Data:
        return clusters(seed, widths)

    def one_width(seed: int) -> Data:
        return clusters(seed, [[0.5, 0.5]] * 3)

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
        case("widths that differ, 20 % missing", "identified", lacking(lambda s: clusters(s, widths))),
        case("widths that differ, missing where another is low", "identified", lacking(lone, how="beside")),
        case("one width, 20 % missing", "open", lacking(one_width), breaks="distinct_variance_ratios"),
        case(
            "two of three latents, 20 % missing",
            "misspecified",
            lacking(lambda s: clusters(s, wider)),
            "the decoder is injective and affine in pieces",
        ),
        case("the lowest fifth missing", "word", lacking(lone, how="low"), AT_RANDOM[0]),
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

    def counted(name: str, kind: str, breaks: str = "", latents: int = 12, **world: Any) -> Case:
        draw = drawn("code_counts", **CODE_COUNTS | world)
        return case(f"counts, {name}", kind, breaks, latents, 6, draw=draw)

    return [
        case("twelve directions of eight features", "identified"),
        case("fifteen offered", "identified", latents=15),
        case("twelve directions of twelve features, some rare", "identified", features=12, zipf=0.7),
        case("two directions fire together", "open", "fire_apart", together=1),
        case("half of the directions in a row", "open", "firing_told", active=6.0),
        case("more directions in a row than the search allows", "open", "few_fire", most=2, active=2.0),
        case("two directions near parallel", "open", "directions_apart", draw=parallel),
        case("nine of twelve directions", "misspecified", "noise is Gaussian", latents=9),
        counted("twelve directions of forty features", "identified"),
        counted("fourteen offered, in two batches", "identified", latents=14, batches=2),
        counted("two directions fire together", "open", "fire_apart", together=1),
        counted("nine of twelve directions", "misspecified", "counts are negative binomial given their rates", 9),
    ]


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
