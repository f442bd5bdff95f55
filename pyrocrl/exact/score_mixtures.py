"""Scores that are mixtures of normals, and the priors of one factor at a time.

    c_ik ~ weights_k,  y_i ~ N(0, R),  z_ik = y_ik g_c / s_k of variance one: s_k^2 = sum_m weights_km g_m^2, g `SCALES`

The first component is nearly a point: rows without the latent. `point_normal` and `scale_mixture` fit one factor's
prior to estimates and their errors by expectation-maximisation, the empirical Bayes normal means of Wang & Stephens
(2021); what they gain over one normal law says which of two starts is sparser.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from pyrocrl.exact.heavy_tails import constant

Floats = NDArray[np.float64]
SCALES = (0.02, 0.25, 0.5, 1.0, 2.0)  # deviations of components, against each other
GRID = np.asarray(SCALES)
ROUNDS = 6  # of expectation propagation
STEPS = 30  # of expectation-maximisation
LEAST = 1e-12


def deviations(weights: Tensor) -> Tensor:
    """(latent, component) deviations of the components of scores of unit variance."""
    scales = constant(SCALES, weights.dtype, weights.device)
    return scales / (weights * scales.square()).sum(-1, keepdim=True).sqrt()


def told(x: Tensor, known: Tensor | None, loadings: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """What of x (rows, feature) is `known` (rows, feature; None = all) tells of z: a precision (rows or 1, latent,
    latent), and this times the mean (rows, latent)."""
    scaled, latents = loadings / variance[:, None], loadings.shape[1]
    if known is None:
        return (loadings.mT @ scaled)[None], x @ scaled
    there = known.to(x.dtype)
    pairs = (loadings[:, :, None] * scaled[:, None, :]).flatten(1)
    return (there @ pairs).unflatten(1, (latents, latents)), (x * there) @ scaled


def scores_given(inner: Tensor, seen: Tensor, tril: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (rows, latent) and covariance (rows, latent, latent) of z given what is `told` of it and deviations sd
    (rows, latent) of its components; tril: of R."""
    between = torch.cholesky_inverse(tril) / (sd[:, :, None] * sd[:, None, :])
    covariance = torch.linalg.inv(inner + between)
    return (covariance @ seen[..., None])[..., 0], covariance


def components_given(inner: Tensor, seen: Tensor, tril: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (rows, latent, component) of each score's component given what is `told` of z, those of all
    others being normal with the variance that theirs make probable (expectation propagation); and the mean of z."""
    sd = deviations(weights)
    spread = torch.ones_like(seen)
    log_p, mean = weights.log(), seen
    for _ in range(ROUNDS):
        mean, covariance = scores_given(inner, seen, tril, spread)
        own = covariance.diagonal(dim1=-2, dim2=-1).reciprocal()
        precision = (own - spread.square().reciprocal()).clamp_min(0.0)[..., None]  # of what is told of this score
        gain = 1 + precision * sd.square()
        slope = (mean * own)[..., None]
        log_p = weights.clamp_min(1e-30).log() - 0.5 * gain.log() + 0.5 * slope.square() * sd.square() / gain
        log_p = log_p.log_softmax(-1)
        spread = (log_p.exp() * sd.square()).sum(-1).sqrt()
    return log_p, mean


def evidence_given(inner: Tensor, seen: Tensor, tril: Tensor, weights: Tensor) -> Tensor:
    """(rows,) log of the mean, over z a priori, of the exponential of what is `told` of it, z seen - z inner z / 2: to
    the approximation of `components_given`."""
    sd = deviations(weights)
    log_p, _ = components_given(inner, seen, tril, weights)
    spread = (log_p.exp() * sd.square()).sum(-1).sqrt()
    mean, covariance = scores_given(inner, seen, tril, spread)
    own = covariance.diagonal(dim1=-2, dim2=-1).reciprocal()
    precision, slope = (own - spread.square().reciprocal()).clamp_min(0.0)[..., None], (mean * own)[..., None]

    def told_of(variance: Tensor) -> Tensor:
        gain = 1 + precision * variance
        return 0.5 * slope.square() * variance / gain - 0.5 * gain.log()

    mixed = (weights.clamp_min(1e-30).log() + told_of(sd.square())).logsumexp(-1)
    more = mixed - told_of(spread.square()[..., None])[..., 0]  # than by one normal law
    prior = spread[:, :, None] * (tril @ tril.mT) * spread[:, None, :]
    eye = torch.eye(len(tril), dtype=seen.dtype, device=seen.device)
    whole: Tensor = 0.5 * (seen * mean).sum(-1) - 0.5 * torch.linalg.slogdet(eye + prior @ inner)[1]
    return whole + more.sum(-1)


# -- priors of one factor, from estimates and their errors -----------------------------------------------------


def _mixture_fit(values: Floats, error: Floats, scales: Floats, moving: bool) -> tuple[Floats, Floats, float]:
    """Weights and deviations (component,) of a mixture of normals around 0 of which `values` are told with these
    errors, and its log-likelihood. moving: whether the last component's deviation is learned; else the weights are."""
    weights = np.full(len(scales), 1.0 / len(scales))
    scales, square, noise = scales.copy(), values**2, error**2
    log_density = np.empty((len(values), len(scales)))
    for _ in range(STEPS):
        total = scales**2 + noise[:, None]
        log_density = np.log(np.maximum(weights, 1e-300)) - 0.5 * np.log(total) - 0.5 * square[:, None] / total
        each = special.softmax(log_density, axis=1)
        weights = each.mean(0)
        if moving:
            shrunk = scales[-1] ** 2 / total[:, -1]
            second = shrunk**2 * square + shrunk * noise
            scales[-1] = math.sqrt(max((each[:, -1] * second).sum() / max(each[:, -1].sum(), LEAST), LEAST))
    return weights, scales, float(special.logsumexp(log_density, axis=1).sum())


def point_normal(values: Floats, error: Floats) -> tuple[float, float, float]:
    """Share and deviation of what is not 0, of `values` told with these errors, and log-likelihood gained over one
    normal law."""
    start = max(float(np.sqrt(np.mean(values**2))), LEAST)
    weights, scales, found = _mixture_fit(values, error, np.array([0.0, 1.5 * start]), True)
    return float(weights[1]), float(scales[1]), found - _mixture_fit(values, error, np.array([start]), True)[2]


def scale_mixture(values: Floats, error: Floats) -> tuple[Floats, float, float]:
    """Weights (component,) of `SCALES` times the unit returned, and log-likelihood gained over one normal law."""
    size = max(float(np.sqrt(np.mean(values**2))), LEAST)
    found = [(_mixture_fit(values, error, unit * size * GRID, False), unit * size) for unit in (0.7, 1.0, 1.4, 2.0)]
    (weights, _, best), unit = max(found, key=lambda one: one[0][2])
    return weights, unit, best - _mixture_fit(values, error, np.array([size]), True)[2]


def sparser(x: Floats, loadings: Floats, variance: Floats) -> float:
    """Log-likelihood that priors of loadings and of scores gain over normal ones: of these loadings' scores by least
    squares, and of loadings by least squares given those."""
    scaled = loadings / variance[:, None]
    spread = np.linalg.pinv(loadings.T @ scaled)
    z = x @ scaled @ spread
    inner = np.linalg.pinv(z.T @ z)
    again = x.T @ z @ inner
    total = 0.0
    for k in range(loadings.shape[1]):
        total += scale_mixture(z[:, k], np.full(len(z), math.sqrt(max(spread[k, k], 0.0))))[2]
        total += point_normal(again[:, k], np.sqrt(variance * inner[k, k]))[2]
    return total
