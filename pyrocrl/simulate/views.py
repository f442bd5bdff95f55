"""Several views of shared latents, with latents of their own."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Natural, Positive, Seed, Size


def shared_private(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(4)] = 1000,
    latents: Size = 3,
    private: Natural = 2,
    features: Annotated[int, Bounds(2)] = 40,
    views: Annotated[int, Bounds(2)] = 2,
    paired: Annotated[float, Bounds(0, 1, "[]")] = 1.0,
    labels: Size = 1,
    level: Positive = 1.5,
    moved: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    bend: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    noise: Positive = 0.7,
) -> Data:
    """Factor analysis of several views with shared and private latents (Klami, Virtanen & Kaski 2013, section 3).

        z_i ~ N(level_e, I),  private_iv ~ N(0, I)                                  (data, latent), (data, private)
        x_iv = W_v z_i + B_v private_iv + e,  entries of W, B ~ N(0, 1), e ~ N(0, noise^2 U(.5, 1.5))

    features: in all, the same number in every view, but for the last, which has the rest. paired: share of the rows
    with all views; each of the others has one, the next one in turn. labels: environments, of which all but the first
    have level_e ~ N(0, level^2) (as an orthogonal frame times that where labels - 1 are no more than latents). moved:
    how far environments move private latents too, in units of `level`. bend: of a cubic that features go through.
    Truth: z, private (those of all views side by side), loadings (of z). Raises InputError for too few features.
    """
    if features < 2 * views:
        reject("features", features, f"{2 * views} or more, for {views} views")
    rng = np.random.default_rng([2013, seed])
    view = np.minimum(np.arange(features) // (features // views), views - 1)
    w, b = rng.standard_normal((features, latents)), rng.standard_normal((features, private))
    variance = noise**2 * rng.uniform(0.5, 1.5, features)
    centre = rng.standard_normal((labels, latents))
    if 1 < labels <= latents + 1:
        centre[1:] = np.linalg.qr(centre[1:].T)[0].T * 1.5
    centre[0] = 0.0
    away = rng.standard_normal((labels, views * private))
    away[0] = 0.0
    env = np.arange(rows) % labels
    z = rng.standard_normal((rows, latents)) + level * centre[env]
    own = rng.standard_normal((rows, views * private)) + level * moved * away[env]
    mine = own.reshape(rows, views, private)[:, view]  # (data, feature, private)
    x = z @ w.T + np.einsum("ijp,jp->ij", mine, b) + np.sqrt(variance) * rng.standard_normal((rows, features))
    if bend:
        scale = x.std(0)
        x = x + bend * scale * (x / scale) ** 3
    order = rng.permutation(rows)
    for place, row in enumerate(order[: rows - round(paired * rows)]):
        x[row, view != (place // labels) % views] = np.nan
    truth = {"z": z, "private": own, "loadings": w}
    names = [f"label {e}" for e in env]
    told = [f"view {v}" for v in view]
    return Data(
        x,
        names if labels > 1 else None,
        view=told,
        control="label 0" if labels > 1 else None,
        truth=truth,
        name="shared_private",
    )
