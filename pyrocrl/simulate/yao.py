"""Views that each see some of the latents, through a mixing of their own (Yao et al. 2024)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed

SLOPE = 0.2  # of the Leaky ReLU
WORST = 10.0  # largest condition number of a layer
SEES = {  # latents of each view
    "published": ((0, 1, 2, 3, 4), (0, 1, 2, 4, 5), (0, 1, 2, 3, 5), (0, 2, 3, 4, 5)),
    "private": ((0, 1, 3), (0, 1, 4), (0, 2, 5)),
    "two": ((0, 1, 2), (0, 1, 3, 4)),
    "apart": ((0, 1), (2, 3), (4, 5)),
    "chain": ((0, 1), (0, 2), (1, 3)),
}


def yao2024(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(4)] = 2000,
    sees: Literal["published", "private", "two", "apart", "chain"] = "published",
    features: Annotated[int, Bounds(5, 10_000, "[]")] = 10,
    layers: Annotated[int, Bounds(0, 20, "[]")] = 0,
    dependent: bool = False,
    alike: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
    noise: Annotated[float, Bounds(0, 100, "[]")] = 0.3,
    lacks: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    law: Literal["normal", "uniform"] = "normal",
) -> Data:
    """Views of subsets of the latents, after the numerical experiment of Yao et al. (2024, section 5.1).

        z ~ N(0, C),  x_v = f_v(z_j, j in S_v) + e,  e_j ~ N(0, noise^2 U(.5, 1.5))           (data, feature)

    sees: the S_v, "published" (four views of five of six latents each; latents 1 and 3 are in all), "private" (three of
    three of six: one in all, one in two, the others in one each), "two" (two views: two latents in both, three in one),
    "apart" (three, with nothing in common), "chain" (three, the first of which shares one latent with each other).
    features: of each view, in deviations of f_v. layers: of the mixing, Leaky ReLU of slope .2 between square maps of
    condition number 10 at most, before a linear one; 0 = that alone. dependent: C are the correlations of a Wishart
    matrix of twice as many degrees of freedom as there are latents. alike: correlation, beside, of the fourth and the
    fifth latent. lacks: share of the rows that lack a view, the next one in turn. law: of a latent, "uniform" with the
    same variance. Truth: z, mask (feature, latent), and loadings where layers = 0.
    """
    rng, sets = np.random.default_rng([2024, seed]), SEES[sees]
    size = 1 + max(k for own in sets for k in own)
    cov = np.eye(size)
    if dependent:
        root = rng.standard_normal((size, 2 * size))
        cov = root @ root.T
        cov = cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    z = rng.standard_normal((rows, size)) if law == "normal" else rng.uniform(-1, 1, (rows, size)) * np.sqrt(3)
    z = z @ np.linalg.cholesky(cov).T
    z[:, 4 % size] = alike * z[:, 3 % size] + np.sqrt(1 - alike**2) * z[:, 4 % size]
    parts, loadings, mask = [], np.zeros((len(sets) * features, size)), np.zeros((len(sets) * features, size))
    for v, own in enumerate(sets):
        h = z[:, own]
        for _ in range(layers):
            h = h @ _layer(len(own), rng)
            h = np.where(h > 0, h, SLOPE * h)
        last = rng.standard_normal((len(own), features))
        y = h @ last
        unit, place = y.std(0), slice(v * features, (v + 1) * features)
        loadings[place, own], mask[place, own] = (last / unit).T, 1.0
        deviation = noise * np.sqrt(rng.uniform(0.5, 1.5, features))
        parts.append(y / unit + deviation * rng.standard_normal((rows, features)))
    x, view = np.hstack(parts), np.repeat(np.arange(len(sets)), features)
    for turn, row in enumerate(rng.permutation(rows)[: round(lacks * rows)]):
        x[row, view == turn % len(sets)] = np.nan
    truth = {"z": z, "mask": mask} | ({} if layers else {"loadings": loadings})
    return Data(x, view=[f"view {v}" for v in view], truth=truth, name="yao2024")


def _layer(size: int, rng: np.random.Generator) -> np.ndarray:
    """A square map whose condition number is at most `WORST`, its columns of unit length."""
    while True:
        one = rng.standard_normal((size, size))
        one = one / np.linalg.norm(one, axis=0)
        if np.linalg.cond(one) <= WORST:
            return one
