"""Linear factor models."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Seed, Size


def plt2010(
    seed: Seed = 0, rows: Annotated[int, Bounds(2)] = 200, latents: Size = 3, features: Annotated[int, Bounds(2)] = 12
) -> Data:
    """A positive lower triangular loading matrix, as Carvalho et al. (2008) and Fruehwirth-Schnatter & Lopes (2010)
    have it.

        L_jk ~ N(0, 1) below the diagonal, U(.5, 1.5) on it, 0 above      (feature, latent)
        v_j ~ U(.3, 1),  z ~ N(0, I),  x ~ N(L z, diag v)                 (data, feature)

    Truth: z, loadings. Raises InputError for more latents than features.
    """
    if latents > features:
        reject("latents", latents, f"at most {features}, the features")
    rng = np.random.default_rng([2010, seed])
    loadings = np.tril(rng.standard_normal((features, latents)), -1)
    loadings[np.arange(latents), np.arange(latents)] = rng.uniform(0.5, 1.5, latents)
    noise = rng.uniform(0.3, 1.0, features) ** 0.5
    z = rng.standard_normal((rows, latents))
    x = z @ loadings.T + noise * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z, "loadings": loadings}, name="plt2010")
