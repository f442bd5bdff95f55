"""A box that some rows fill and normal laws of the others: what walks of a sampler hold, their prior, their draws."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Floats = NDArray[np.float64]

DRAWS = 50
LEAST = 1e-10  # variance of a law beside noise


class Walks(NamedTuple):
    """unmixing (walk, latent, latent), offset (walk, latent), fill (walk,), and laws of the bulk in y: weights (walk,
    component), middle (walk, component, latent), covariance (walk, component, latent, latent), noise included."""

    unmixing: Floats
    offset: Floats
    fill: Floats
    weights: Floats
    middle: Floats
    covariance: Floats


class Prior(NamedTuple):
    """loadings (feature, latent) and center (feature,) of x given y, standard normal a priori as z has them; width: the
    median of a law's log-normal widths in z, of deviation 1."""

    loadings: Floats
    center: Floats
    width: float

    def log_box(self, unmixing: Floats, offset: Floats) -> Floats:
        """(walk,) of unmixing and offset, the space that features span being known."""
        features, latents = self.loadings.shape
        mixing = self.loadings @ np.linalg.inv(unmixing)
        center = self.center - (mixing @ offset[..., None])[..., 0]
        volume = np.linalg.slogdet(unmixing)[1]
        return -0.5 * ((mixing**2).sum((1, 2)) + (center**2).sum(1)) - (features + latents + 1) * volume

    def log_laws(self, middle: Floats, covariance: Floats) -> Floats:
        """(walk, component) of middles and covariances in z, without noise; -inf of what is no covariance."""
        latents = middle.shape[-1]
        fine = np.linalg.eigvalsh(covariance)[..., 0] > LEAST
        tril = np.linalg.cholesky(np.where(fine[..., None, None], covariance, np.eye(latents)))
        width = np.diagonal(tril, axis1=-2, axis2=-1)
        lean = np.tril(tril / width[..., None], -1)
        log = -0.5 * ((middle**2).sum(-1) + (np.log(width / self.width) ** 2).sum(-1) + (lean**2).sum((-1, -2)))
        return np.where(fine, log - (latents + 1) * np.log(width).sum(-1), -np.inf)


class Space(Protocol):
    """What is open of the space that features span, at numbers that are standard normal without what the box tells."""

    def at(self, e: Floats) -> tuple[Floats, Floats]: ...

    def read(self, loadings: Floats, variance: Floats) -> tuple[Floats, Floats, Floats]: ...


class BoxDraws(NamedTuple):
    """What `Walks` has of a walk, a draw each, e (draw, parameter), and log_likelihood (draw,)."""

    unmixing: Floats
    offset: Floats
    fill: Floats
    weights: Floats
    middle: Floats
    covariance: Floats
    e: Floats
    log_likelihood: Floats

    def in_order(self) -> BoxDraws:
        """Latents of each draw in the order and with the signs of the likeliest draw, y being of unit covariance."""
        unit = self.unmixing / np.linalg.norm(self.unmixing, axis=-1, keepdims=True)
        along = unit[int(self.log_likelihood.argmax())] @ unit.swapaxes(-1, -2)  # (draw, latent there, latent)
        order = np.array([optimize.linear_sum_assignment(-(own**2))[1] for own in along])
        sign = np.sign(np.take_along_axis(along, order[:, :, None], 2)[..., 0])
        return self._replace(
            unmixing=sign[..., None] * np.take_along_axis(self.unmixing, order[..., None], 1),
            offset=sign * np.take_along_axis(self.offset, order, 1),
        )


def log_sum(log: Floats) -> Floats:
    """log sum exp over the last axis."""
    top = log.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(log - top).sum(-1))
