"""Independent latents whose variances differ from segment to segment, behind a nonlinear mixing (Khemakhem et al.)."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Seed, Size
from pyrocrl.simulate.mixtures import linear_r2

MATRICES = 10_000  # draws of which the quarter with the smallest condition numbers is drawn from
LEAK = 0.1  # of the activation tanh u + LEAK u

Array = np.ndarray


def khemakhem2020(
    seed: Seed = 0,
    segments: Size = 40,
    samples: Annotated[int, Bounds(2)] = 1000,
    latents: Size = 5,
    features: Annotated[int, Bounds(2)] = 5,
    layers: Annotated[int, Bounds(1, 20)] = 3,
    noise: Annotated[float, Bounds(0, ends="[)")] = 0.0,
) -> Data:
    """Khemakhem et al. (2020), "Variational autoencoders and nonlinear ICA": the design of their simulations.

        s ~ U(.5, 3),  z | segment u ~ N(0, diag(s_u^2))          (segment, latent), (data, latent)
        x = B g(.. B g(A z)) + noise sd e,  g(u) = tanh u + .1 u      (data, feature)

    A (latent, feature) and B (feature, feature) have entries U(-1, 1) and columns of norm 1, and are of the quarter of
    such matrices with the smallest condition numbers; B is the same in every layer, and A is B where it is square. g
    follows every layer but the last. sd are the features' deviations, e ~ N(0, I); the paper has no noise.

    samples: rows in each segment; layers: linear maps. Segments are environments. Truth: z. The held-out R^2 of linear
    regression x -> z is in the name of the data. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([2020, latents, features, seed])
    scale = rng.uniform(0.5, 3.0, (segments, latents))
    z = np.repeat(scale, samples, 0) * rng.standard_normal((segments * samples, latents))
    first = _matrix(rng, latents, features)
    later = first if latents == features else _matrix(rng, features, features)
    x = z @ first
    for _ in range(1, layers):
        x = (np.tanh(x) + LEAK * x) @ later
    x = x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x
    env = [f"segment_{u}" for u in range(segments) for _ in range(samples)]
    pick = rng.permutation(len(x))
    name = f"khemakhem2020, linear R2 {linear_r2(x[pick], z[pick]):.2f}"
    return Data(x, env, truth={"z": z}, name=name)


def _matrix(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """(inputs, outputs) of columns of norm 1, better conditioned than three quarters of them are."""
    drawn: Array = rng.uniform(-1, 1, (MATRICES, inputs, outputs))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    condition = np.linalg.cond(drawn)
    return drawn[np.flatnonzero(condition <= np.quantile(condition, 0.25))[0]]
