"""Profiles of contexts under perturbations, of which only some pairs are measured."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Positive, Seed
from pyrocrl.program import check_whole

HIDDEN = 12  # units through which effects go
CONTROL = "control"
ORIGIN = 6.0  # of profiles, about that of log2 expression


def context_effects(
    seed: Seed = 0,
    contexts: int = 16,
    perturbations: int = 24,
    features: int = 60,
    factors: int = 3,
    controls: int = 2,
    measured: Annotated[float, Bounds(0, 1, "(]")] = 0.6,
    noise: Positive = 0.5,
) -> Data:
    """Effects of perturbations that depend on the context, through few factors of either and not linearly, after the
    tables of drugs in cell types that causal imputation is about (Squires et al. 2022, "Causal imputation via synthetic
    interventions").

        u_c ~ N(0, I), v_d ~ N(0, I)                                          (factor,)
        level_c = 6 + B u_c                                                   (feature,)
        effect_cd = W (tanh(P u_c + Q v_d) - tanh(P u_c))                     (feature,)
        x = level_c + effect_cd + noise eps,  eps ~ N(0, I)                   (data, feature)

    B, W, P, Q have normal entries; W makes effects' deviation 1. Every context has `controls` rows of the environment
    "control", without effect, and one row under each of a share `measured` of the perturbations, at random but for two
    a context and one a perturbation at least. env: the perturbation; batch: the context. The same
    seed draws the same rows for any share. Truth: z, the profile without noise.
    """
    least = (("contexts", contexts, 2), ("perturbations", perturbations, 2), ("features", features, 2))
    for name, value, low in (*least, ("factors", factors, 1), ("controls", controls, 1)):
        check_whole(name, value, low)
    rng = np.random.default_rng([seed, 21])
    u, v = rng.standard_normal((contexts, factors)), rng.standard_normal((perturbations, factors))
    p, q = (rng.standard_normal((factors, HIDDEN)) / np.sqrt(factors) for _ in range(2))
    hidden = np.tanh((u @ p)[:, None] + v @ q) - np.tanh(u @ p)[:, None]  # (context, perturbation, hidden)
    effect = hidden @ rng.standard_normal((HIDDEN, features))
    effect /= effect.std()
    level = ORIGIN + u @ rng.standard_normal((factors, features))
    error = noise * rng.standard_normal((contexts, controls + perturbations, features))
    rank = rng.permuted(np.tile(np.arange(perturbations), (contexts, 1)), axis=1)
    there = rank < max(2, round(measured * perturbations))  # (context, perturbation)
    for never in np.flatnonzero(~there.any(0)):
        there[rng.integers(contexts), never] = True
    c, d = np.nonzero(np.concatenate([np.ones((contexts, controls), dtype=bool), there], 1))
    own = [f"perturbation_{k}" for k in range(perturbations)]
    z = np.concatenate([np.zeros((contexts, controls, features)), effect], 1) + level[:, None]
    batch = np.array([f"context_{k}" for k in range(contexts)])[c]
    env = np.array([CONTROL] * controls + own)[d]
    return Data(
        (z + error)[c, d],
        env=env,
        control=CONTROL,
        batch=batch,
        truth={"z": z[c, d]},
        name="context_effects",
    )
