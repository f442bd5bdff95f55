"""The simulation of Moran et al. (2022), Identifiable deep generative models via sparse decoding, section 5.1."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.options import Bounds, Seed

MASK = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 1]])


def moran2022(seed: Seed = 0, rows: Annotated[int, Bounds(2)] = 1000, rho: float = 0.0, noise: float = 0.5) -> Data:
    """Two correlated factors behind seven features, three anchors each and one interaction.

        z ~ N(0, [[1, rho], [rho, 1]])                                     (data, 2)
        x = (z1, 2 z1, 3 z1^2, 4 z2, 5 z2, 6 sin z2, 7 z1 z2) + noise * e  (data, 7), e ~ N(0, I)

    Truth: z, mask. Raises InputError unless -1 < rho < 1 and noise >= 0.
    """
    if not -1 < rho < 1:
        reject("rho", rho, "a correlation between -1 and 1")
    if not noise >= 0:
        reject("noise", noise, "a standard deviation from 0 on")
    rng = np.random.default_rng([2022, seed])
    z = rng.multivariate_normal(np.zeros(2), [[1.0, rho], [rho, 1.0]], size=rows)
    one, two = z.T
    mean = np.stack([one, 2 * one, 3 * one**2, 4 * two, 5 * two, 6 * np.sin(two), 7 * one * two], 1)
    x = mean + noise * rng.standard_normal(mean.shape)
    return Data(x, truth={"z": z, "mask": MASK}, name=f"moran2022, rho={rho:g}")
