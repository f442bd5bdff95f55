"""Features that are smooth functions of as many independent latents, of orthogonal columns of slopes or not."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from scipy import stats
from scipy.stats import ortho_group
from torch import Tensor

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Deviation, Positive, Seed

Mixing = Literal["moebius", "polar", "linear", "oblique", "sheared", "network"]
FAR = 3.0  # deviations of normal latents from their mean to the surface from which the pole is `near` away
RADIUS, ANGLE = 0.5, 0.9  # of polar coordinates: log radius and angle of a latent of size 1
SHEAR = 0.5  # of the square of the first feature, in deviations, that is added to the others
LEAK, STEEP = 0.3, 3.0  # of a network's units


def gresele2021(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 10_000,
    latents: Annotated[int, Bounds(2, 20)] = 2,
    mixing: Mixing = "moebius",
    law: Literal["uniform", "normal", "beta"] = "uniform",
    near: Positive = 0.3,
    correlation: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
    noise: Deviation = 0.0,
) -> Data:
    """Moebius maps of independent latents, after Gresele et al. (2021), with a pole nearer than theirs, and others.

        z_k uniform on -1 to 1, beta(2, 2) there, or normal                                  (data, latent)
        x = A (z - a) / |z - a|^2,  A orthogonal                                             (data, feature)

    There are as many features as latents. The pole a is in a random direction, `near` beyond the box of the latents
    (normal ones: beyond a sphere of 3). mixing: "polar": the log of the radius and the angle of two features are .5 and
    .9 times latents, others latents, all turned by A; "linear": of orthogonal columns, .5 to 2 long. Columns are not
    orthogonal for "oblique": linear by a matrix of normal entries; "sheared": the Moebius map, then to all other
    features half of the square of the first is added, in deviations; "network": two layers of smooth leaky units.
    correlation: of latents, by a normal copula; noise: of features, in their deviations. Truth: z, and contrast
    (data,), the local contrast of the mixing's columns, sum_k log |dx/dz_k| - log |det dx/dz|.
    """
    rng = np.random.default_rng([2106, seed])
    z = _latents(rng, rows, latents, law, correlation)
    way = rng.standard_normal(latents)
    way /= np.linalg.norm(way)
    surface = FAR if law == "normal" else 1 / np.abs(way).max()
    pole, turn = torch.as_tensor((surface + near) * way), torch.as_tensor(ortho_group.rvs(latents, random_state=rng))
    matrix = torch.as_tensor(rng.standard_normal((latents, latents)))
    long = torch.as_tensor(rng.uniform(0.5, 2.0, latents))

    def moebius(z: Tensor) -> Tensor:
        return turn @ ((z - pole) / (z - pole).square().sum())

    if mixing == "sheared":
        first = torch.func.vmap(moebius)(torch.as_tensor(z))[:, 0]
        middle, unit = first.mean(), first.std()

    def mix(z: Tensor) -> Tensor:
        if mixing == "polar":
            radius, angle = (RADIUS * z[0]).exp(), ANGLE * z[1]
            return turn @ torch.cat([torch.stack([radius * angle.cos(), radius * angle.sin()]), z[2:]])
        if mixing == "linear":
            return turn @ (long * z)
        if mixing == "oblique":
            return matrix @ z
        if mixing == "network":
            for layer in (turn, torch.eye(latents).to(z) + matrix / 2):
                y = layer @ z
                z = LEAK * y + (1 - LEAK) * torch.nn.functional.softplus(STEEP * y) / STEEP
            return z
        x = moebius(z)
        if mixing == "sheared":
            bend = SHEAR * unit * ((x[0] - middle) / unit).square()
            x = torch.cat([x[:1], x[1:] + bend])
        return x

    told = torch.as_tensor(z)
    slopes = torch.func.vmap(torch.func.jacrev(mix))(told)
    x = torch.func.vmap(mix)(told).numpy()
    x = x + noise * x.std(0) * rng.standard_normal(x.shape)
    lengths = slopes.square().sum(1).log().sum(1) / 2  # (row,) logs of columns' lengths, all together
    truth = {"z": z, "contrast": (lengths - torch.linalg.slogdet(slopes).logabsdet).numpy()}
    return Data(x, truth=truth, name=f"gresele2021, {mixing} mixing of {law} latents")


def _latents(rng: np.random.Generator, rows: int, latents: int, law: str, correlation: float) -> np.ndarray:
    cov = np.full((latents, latents), correlation) + (1 - correlation) * np.eye(latents)
    scores = rng.multivariate_normal(np.zeros(latents), cov, rows)
    if law == "normal":
        return scores
    below = stats.norm.cdf(scores)
    return 2 * (stats.beta(2, 2).ppf(below) if law == "beta" else below) - 1
