"""Latents, or columns, of equations that environments change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case, drawn


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
    rotated: bool = False,
    relu: bool = False,
    lowered: bool = True,
    strength: float = 1.0,
    counts: float = 0.0,
    edges: bool = True,
    told: Mapping[str, tuple[int, ...]] | None = None,
) -> Data:
    """x = G z + noise, z of linear equations on 0 -> 1 -> ... and 0 -> 2; environments are (name, targets, kind).

    kind: "perfect", "soft", "variance", "shift" or "none". bent: of the square of parents in equations; curved: of a
    tanh that is added to rotated latents before they are mixed; saturated: x through tanh; bad: share of rows with ten
    times the noise; offsets: deviation of a shift of x that every environment has of its own; law: "gaussian" or
    "laplace" noise of z; rotated: standardised latents are mixed by a rotation, or a projection. relu: equations see
    the positive parts of parents; lowered: interventions may lower their targets, by chance; strength: times their
    changes of level. counts: 0, or the mean of counts whose log rates are x. edges: whether latents act on each other.
    told: targets as they are listed; None = the true ones.
    """
    rng = np.random.default_rng([14, seed])
    weight = np.zeros((latents, latents))
    for k in range(1, latents):
        weight[k - 1, k] = rng.choice([-1, 1]) * rng.uniform(0.7, 1.4)
    if latents > 2:
        weight[0, 2] = rng.choice([-1, 1]) * rng.uniform(0.7, 1.4)
    weight = weight * edges
    scale = rng.uniform(0.6, 1.2, latents)
    mixing = rng.standard_normal((features, latents))
    if rotated:  # the nearest one with orthonormal rows or columns
        left, _, right = np.linalg.svd(mixing, full_matrices=False)
        mixing = left @ right
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
                level[k] = strength * rng.choice([-1, 1]) * rng.uniform(1.0, 2.0)
        level = level if lowered else np.abs(level)
        z = np.zeros((rows, latents))
        for k in range(latents):
            e = rng.standard_normal(rows) if law == "gaussian" else rng.laplace(size=rows) / np.sqrt(2)
            seen = np.maximum(z, 0.0) if relu else z + bent * z**2
            z[:, k] = seen @ w[:, k] + level[k] + s[k] * e
        parts.append(z)
        labels += [name] * rows
        targets[name] = hits
    z = np.concatenate(parts)
    x = (z - z.mean(0)) / z.std(0) if rotated else z
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
    named = {k: v for k, v in listed.items() if v}
    if counts:
        rate = np.exp(0.6 * (x - x.mean(0)) / x.std(0)) * counts * rng.uniform(0.5, 2.0, features)
        x = rng.poisson(rng.gamma(10.0, rate / 10.0))
        size = np.ones(len(x))
        return Data(x, labels, named, control="control", truth=truth, counts=True, size_factor=size, name="counted")
    return Data(x, labels, named, control="control", truth=truth, name="linear_world")


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


def world(*args: Any, **options: Any) -> Callable[[int], Data]:
    return lambda seed: linear_world(seed, *args, **options)


LINEAR, SHIFTS, NETWORK = "linear_sem_lin", "mechanism_shift", "linear_sem_nonlin"
HARD, SOFT, SHIFT, VARIANCE = each("perfect"), each("soft"), each("shift"), each("variance")
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


def score_cases() -> list[Case]:
    def case(name: str, kind: str, draw: Callable[[int], Data], breaks: str = "") -> Case:
        recipe = {"chains": 2, "least_steps": 500}
        return Case(f"score_crl: {name}", "score_crl", kind, draw, {}, recipe, breaks=breaks)

    return [
        case("quadratic, 2,000 rows", "small", drawn("varici2024_quadratic", latents=3, features=6, samples=2000)),
        case("soft told as hard", "word", world(SOFT), breaks="perfect_interventions"),
        case("two of three factors", "misspecified", confounded, breaks="mixing is injective"),
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
