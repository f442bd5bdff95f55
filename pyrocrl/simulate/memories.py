"""Few rows to be stored."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Fraction, Seed, Size


def stored_rows(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 10,
    features: Annotated[int, Bounds(2)] = 60,
    latents: Size = 5,
    own: Fraction = 0.2,
) -> Data:
    """Few rows of many features that have factors in common, as profiles of expression do.

        z ~ N(0, I),  B_jk ~ N(0, 1 / latents)                          (data, latent), (feature, latent)
        x = sqrt(1 - own) B z + sqrt(own) eps,  eps ~ N(0, I)           (data, feature)

    own: the share of a feature's variance that no factor gives. Truth: z.
    """
    rng = np.random.default_rng([seed, 27])
    z = rng.standard_normal((rows, latents))
    common = z @ rng.standard_normal((latents, features)) / np.sqrt(latents)
    x = np.sqrt(1 - own) * common + np.sqrt(own) * rng.standard_normal((rows, features))
    return Data(x, truth={"z": z}, name="stored_rows")
