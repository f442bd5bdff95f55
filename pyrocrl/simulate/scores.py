"""Quadratic structural equations behind a linear or a nonlinear mixing, under hard interventions on one latent each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import one_of
from pyrocrl.options import Seed
from pyrocrl.program import check_sizes, check_whole
from pyrocrl.simulate.mixtures import linear_r2

Array = np.ndarray
Laws = Literal["means", "variances"]


def varici2024_quadratic(seed: Seed = 0, samples: int = 5_000, latents: int = 5, features: int = 15) -> Data:
    """Varici et al. (2024), "Score-based causal representation learning", quadratic SEM under hard interventions.

    Graph Erdos-Renyi with density .5 under a random order. z_k = sqrt(pa' A_k pa) + n_k, A_k = B'B with entries of B
    (parent, parent) ~ U(-1, 1), n_k ~ N(0, s_k^2), s_k^2 ~ U(.5, 1.5). Environment k cuts the parents of latent k and
    multiplies its noise variance by 5. x = G z with G (feature, latent) standard normal; no observation noise.

    samples: rows in each of the latents + 1 environments. Truth: z, graph (parent, child), targets.
    """
    _check(samples, latents, features)
    rng = np.random.default_rng([2024, 1, seed])
    graph, form, sd = _quadratic(rng, latents)
    mixing = rng.standard_normal((features, latents))
    own: dict[int, Callable[[int], Array]] = {
        k: lambda rows, k=k: np.sqrt(5.0) * sd[k] * rng.standard_normal(rows)  # type: ignore[misc]
        for k in range(latents)
    }
    z = [_rows(rng, samples, graph, form, sd)]
    z += [_rows(rng, samples, graph, form, sd, {k: own[k]}) for k in range(latents)]
    names = [f"target_{k}" for k in range(latents)]
    latent = np.concatenate(z)
    return _labelled("varici2024_quadratic", latent, latent @ mixing.T, names, range(latents), samples, graph)


def varici2024_general(
    seed: Seed = 0, samples: int = 10_000, latents: int = 3, features: int = 6, laws: Laws = "means"
) -> Data:
    """As `varici2024_quadratic` behind a nonlinear mixing, with two hard interventions on every latent.

    laws: how the two differ. "variances", as published: N(0, s_k^2 + 1) and N(0, s_k^2 + 2). "means":
    N(m, v) and N(-m, v'), m ~ +-U(1, 2), v and v' ~ U(.5, 1.5). x = f(z) without noise: two layers of `features`
    units, each standardised and bent, u + tanh(2 u), then a linear map; matrices are Gaussian with orthonormal columns,
    so that f is injective. (The paper has one layer, tanh(G z).) The held-out R^2 of a linear regression of z on x is
    in the data's name.

    samples: rows in each of the 2 latents + 1 environments, "target_<k>_a" and "target_<k>_b". Truth: z, graph
    (parent, child), targets.
    """
    _check(samples, latents, features)
    one_of("laws", laws, get_args(Laws))
    rng = np.random.default_rng([2024, 2, seed])
    graph, form, sd = _quadratic(rng, latents)
    z, names = [_rows(rng, samples, graph, form, sd)], []
    for k in range(latents):
        mean = rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 2.0)
        spread = np.sqrt(rng.uniform(0.5, 1.5, 2))
        if laws == "variances":
            mean, spread = 0.0, np.sqrt(sd[k] ** 2 + np.array([1.0, 2.0]))
        for which, sign in enumerate((1.0, -1.0)):

            def own(rows: int, at: float = sign * mean, scale: float = spread[which]) -> Array:
                return at + scale * rng.standard_normal(rows)

            z.append(_rows(rng, samples, graph, form, sd, {k: own}))
            names.append(f"target_{k}_{'ab'[which]}")
    latent = np.concatenate(z)
    x = _mixed(rng, latent, features)
    rows = rng.permutation(len(x))  # `linear_r2` fits on the first half
    name = f"varici2024_general, linear R2 {linear_r2(x[rows], latent[rows]):.3f}"
    return _labelled(name, latent, x, names, np.repeat(np.arange(latents), 2), samples, graph)


def _check(samples: int, latents: int, features: int) -> None:
    check_sizes(features, latents)
    check_whole("samples", samples, 2)


def _quadratic(rng: np.random.Generator, latents: int) -> tuple[Array, list[Array], Array]:
    """Graph (parent, child), the form A of each latent over its parents, and noise deviations (latent,)."""
    rank = rng.permutation(latents)
    graph = (rank[:, None] < rank[None, :]) & (rng.random((latents, latents)) < 0.5)
    roots = [rng.uniform(-1.0, 1.0, (int(graph[:, k].sum()),) * 2) for k in range(latents)]
    return graph, [b.T @ b for b in roots], np.sqrt(rng.uniform(0.5, 1.5, latents))


def _rows(
    rng: np.random.Generator,
    rows: int,
    graph: Array,
    form: list[Array],
    sd: Array,
    own: Mapping[int, Callable[[int], Array]] | None = None,
) -> Array:
    """(rows, latent) draws, those of the latents in `own` from their own laws."""
    own = own or {}
    z = np.zeros((rows, len(sd)))
    done = np.zeros(len(sd), dtype=bool)
    while not done.all():
        for k in np.flatnonzero(~done & ~graph[~done].any(0)).tolist():  # every parent is done
            if k in own:
                z[:, k] = own[k](rows)
            else:
                parents = z[:, graph[:, k]]
                mean = np.sqrt(np.einsum("ri,ij,rj->r", parents, form[k], parents).clip(0.0))
                z[:, k] = mean + sd[k] * rng.standard_normal(rows)
            done[k] = True
    return z


def _mixed(rng: np.random.Generator, z: Array, features: int) -> Array:
    h = z
    for _ in range(2):
        h = (h - h.mean(0)) / h.std(0)
        h = h @ np.linalg.qr(rng.standard_normal((features, h.shape[1])))[0].T
        h = h / h.std(0)
        h = h + np.tanh(2.0 * h)
    return h @ np.linalg.qr(rng.standard_normal((features, features)))[0].T


def _labelled(
    name: str, z: Array, x: Array, names: list[str], target: range | Array, samples: int, graph: Array
) -> Data:
    """Rows of the observational environment and then of each of `names`, with their truth."""
    targets = {env: (int(k),) for env, k in zip(names, target, strict=True)}
    return Data(
        x=x,
        env=np.repeat(["observational", *names], samples),
        targets=targets,
        truth={"z": z, "graph": graph.astype(int), "targets": targets},
        name=name,
    )
