"""Features that each depend on few of the latents, by networks."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from scipy.stats import ortho_group

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Deviation, Seed

UNITS = 8  # of a feature's network
STEEP, HIGH = 1.2, 1.8  # deviations of its weights into units and of those out of them, all together
LEAST, MOST = 0.5, 1.0  # of slopes beside it


def zheng2022(
    seed: Seed = 0,
    rows: Annotated[int, Bounds(2)] = 10_000,
    latents: Annotated[int, Bounds(3, 100)] = 5,
    law: Literal["normal", "uniform"] = "normal",
    supports: Literal["pairs", "threes", "all", "turned", "nested"] = "pairs",
    bend: Annotated[float, Bounds(0, 10, "[]")] = 1.0,
    noise: Deviation = 0.05,
) -> Data:
    """Features of two independent latents each, after Zheng, Ng & Zhang (2022); networks and sizes of our own.

        z ~ N(0, I), or uniform of variance 1                                             (data, latent)
        f_j(z) = a_j . tanh(W_j z_S + b_j) + c_j . z_S,   S the latents of feature j
        x_j = (f_j(z) - mean) / deviation + noise e,  e ~ N(0, 1)                         (data, feature)

    There are 2 * latents features: of latents j and j + 1, then of j and j + 2, so that the features of a latent have
    it alone in common. W has 8 units of weights N(0, 1.2^2 2 / |S|), b ~ N(0, 1), a ~ N(0, 1.8^2 / 8), bend times a; c
    of size .5 to 1, over the root of |S| / 2. supports: "threes": features are of j, j + 1 and one more, j + 2 or
    j + 3; "all": of all latents; "turned": of two each, but of a rotation of z, which of normal latents no data tell
    from those of "pairs"; "nested": of j and j + 1 but for the last, of the two before the end, so that all
    features of the first latent are of the second too, and those of the last of the one before.
    Truth: z, mask.
    """
    rng = np.random.default_rng([2206, seed])
    z = rng.standard_normal((rows, latents)) if law == "normal" else rng.uniform(-1, 1, (rows, latents)) * np.sqrt(3)
    turn = ortho_group.rvs(latents, random_state=rng) if supports == "turned" else np.eye(latents)
    source = z @ turn
    mask = np.zeros((2 * latents, latents), dtype=int)
    for j in range(2 * latents):
        first, round_ = j % latents, j // latents
        own = {
            "threes": [first, first + 1, first + 2 + round_],
            "all": range(latents),
            "nested": [min(first, latents - 2), min(first, latents - 2) + 1],
        }.get(supports, [first, first + 1 + round_])
        mask[j, np.asarray(own) % latents] = 1
    x = noise * rng.standard_normal((rows, 2 * latents))
    for j, row in enumerate(mask):
        members = np.flatnonzero(row)
        into = STEEP * np.sqrt(2 / len(members)) * rng.standard_normal((len(members), UNITS))
        offset, out = rng.standard_normal(UNITS), bend * HIGH * rng.standard_normal(UNITS) / np.sqrt(UNITS)
        slope = rng.choice([-1, 1], len(members)) * rng.uniform(LEAST, MOST, len(members)) * np.sqrt(2 / len(members))
        y = np.tanh(source[:, members] @ into + offset) @ out + source[:, members] @ slope
        x[:, j] += (y - y.mean()) / y.std()
    shown = np.ones_like(mask) if supports == "turned" else mask
    return Data(x, truth={"z": z, "mask": shown}, name=f"zheng2022, {law} latents, supports {supports}")
