"""Sources that follow dynamics of their own and switch between two of them."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_sizes, check_whole

STAY = 0.99
BURN = 200  # rows before those that are seen


def halva2021_linear(
    seed: Seed = 0,
    rows: int = 10_000,
    latents: int = 3,
    features: int = 12,
    series: int = 1,
    noise: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    sources: Literal["switching", "autoregressive", "alike", "white"] = "switching",
    coupled: Annotated[float, Bounds(0, 1, "[)")] = 0.0,
) -> Data:
    """Hälvä et al. (2021), "Disentangling identifiable features from noisy data with structured nonlinear ICA": their
    sources, under a linear mixing.

    z_t = z_{t-1} + a (z_{t-1} - z_{t-2}) - b (z_{t-1} - m) + s N(0, 1) in each of two states: one oscillates,
    a ~ U(.9, 1), b = .1, s = .003, m ~ U(0, .5); one returns to its mean, a = .3, b ~ U(.5, .6), s = .3,
    m ~ U(-.5, 0). A state stays with probability .99. x = W z, W standard normal.

    Beside the paper: series: how many sequences the rows are cut into, of unequal lengths where there are two or more;
    noise: deviation of noise that every feature gets in every row, in units of its deviation; sources: "autoregressive"
    ones, Gaussian, z_t = c z_{t-1} + N(0, 1), c evenly from .9 to -.9; "alike", the first two of them with the same c;
    "white", all c = 0; coupled: part of the first latent's innovations, by variance, that drives the second as well.
    Truth: z, loadings, state (data, latent; of switching sources alone).
    """
    check_sizes(features, latents, square=True)
    check_whole("rows", rows, 4)
    check_whole("series", series, 1, rows // 4)
    check_whole("latents", latents, 2)
    rng = np.random.default_rng([2021, seed])
    cuts = np.sort(rng.dirichlet(np.full(series, 4.0)))
    lengths = 2 + np.floor(cuts * (rows - 2 * series)).astype(int)
    lengths[-1] += rows - lengths.sum()
    e = rng.standard_normal((series, BURN + int(lengths.max()), latents))
    e[..., 1] = np.sqrt(1 - coupled) * e[..., 1] + np.sqrt(coupled) * e[..., 0]
    if sources == "switching":
        move = np.stack([rng.uniform(0.9, 1.0, latents), np.full(latents, 0.3)])
        pull = np.stack([np.full(latents, 0.1), rng.uniform(0.5, 0.6, latents)])
        mean = np.stack([rng.uniform(0.0, 0.5, latents), rng.uniform(-0.5, 0.0, latents)])
        scale = np.array([0.003, 0.3])
        change = rng.random(e.shape) > STAY
        change[:, 0] = rng.random((series, latents)) < 0.5
        state = np.cumsum(change, 1) % 2
        own = np.arange(latents)
        each = (1 + move - pull, -move, pull * mean, scale[:, None].repeat(latents, 1))
        first, second, drift, size = (part[state, own] for part in each)
    else:
        slope = np.linspace(0.9, -0.9, latents) * (sources != "white")
        slope[1] = slope[0] if sources == "alike" else slope[1]
        state = np.zeros(e.shape, dtype=int)
        first, second, drift, size = np.broadcast_to(slope, e.shape), 0 * e, 0 * e, 1 + 0 * e
    z = np.zeros((series, e.shape[1] + 2, latents))
    for t in range(e.shape[1]):
        z[:, t + 2] = first[:, t] * z[:, t + 1] + second[:, t] * z[:, t] + drift[:, t] + size[:, t] * e[:, t]
    kept = np.arange(e.shape[1] - BURN) < lengths[:, None]  # (series, step)
    flat, states = z[:, BURN + 2 :][kept], state[:, BURN:][kept]
    mixing = rng.standard_normal((features, latents))
    x = flat @ mixing.T
    x = x + noise * x.std(0) * rng.standard_normal(x.shape)
    who, step = np.nonzero(kept)
    truth = {"z": flat, "loadings": mixing} | ({"state": states} if sources == "switching" else {})
    return Data(x, series=[f"series_{i}" for i in who], step=step, truth=truth, name="halva2021_linear")
