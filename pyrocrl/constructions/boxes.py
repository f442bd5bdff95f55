"""Boxes that rows fill, in the space that their features span: starts of a search for the smallest one.

Any linear map of latents turns a box into another parallelepiped, and none but those that permute and scale latents
turn it into a box again: of latents whose joint support is a box, it is the smallest parallelepiped that holds all rows
(Wang & Jordan 2024; Ahuja et al. 2023). Ranges alone hang on a few rows, all of which may be
bad. So the box is found by likelihood: rows follow a mixture of a uniform law on the box and of normal laws, which any
linear map leaves normal, and which therefore say nothing of axes. The smaller the box, the larger its density: of rows
that no normal law explains it has to hold all.

Longer than other files because starts, bulk and box are improved in turns, each by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit, logit, ndtr

from pyrocrl.exact.box_walks import Walks

Floats = NDArray[np.float64]

FIRST_ROWS = 4000  # of a first search
BLUR = (0.5, 0.25, 0.12, 0.06, 0.03, 0.015)  # deviations by which edges are softened, one after another
LAST = BLUR[-3:]  # of the search by all rows
STARTS = ("wide", "even", "all", "wide", "even", "all")  # and "one" of all others
FIRST, TURN = 60, 10  # steps of expectation-maximisation: before there is a box, and for each softening
WIDEST, RARE = 9.0, 0.01  # variance of rows that are nowhere near, and their share at first
LEAST = 0.02  # variance that each component has a priori
TINY = 1e-300


class Bulk(NamedTuple):
    """Normal laws: weights (component,), middle (component, latent), covariance (component, latent, latent)."""

    weights: Floats
    middle: Floats
    covariance: Floats

    def log_parts(self, y: Floats) -> Floats:
        """(rows, component)"""
        root = np.linalg.cholesky(self.covariance)
        white = np.linalg.inv(root) @ (y - self.middle[:, None]).transpose(0, 2, 1)  # (component, latent, rows)
        volume = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1) + 0.5 * y.shape[1] * np.log(2 * np.pi)
        return (np.log(self.weights) - volume)[None] - 0.5 * (white**2).sum(1).T

    def repeated(self, components: int) -> Bulk:
        """The same law told by more components."""
        which = np.arange(components) % len(self.weights)
        times = np.bincount(which)[which]
        return Bulk(self.weights[which] / times, self.middle[which], self.covariance[which])

    def improved(self, y: Floats, share: Floats) -> Bulk:
        """The best laws given shares (rows, component) of rows, each with a weak prior."""
        count, latents = share.sum(0), y.shape[1]
        middle = share.T @ y / (count + 1e-3)[:, None]
        away = y - middle[:, None]
        square = np.einsum("rc,crk,crl->ckl", share, away, away, optimize=True)
        prior = LEAST * (latents + 2)
        covariance = (square + prior * np.eye(latents)) / (count + latents + 2)[:, None, None]
        return Bulk((count + 0.5) / (count + 0.5).sum(), middle, covariance)


class Box(NamedTuple):
    """z = unmixing y + offset fills [-1, 1]^K in a share `fill` of the rows; the others follow `bulk`, in y."""

    unmixing: Floats
    offset: Floats
    fill: float
    bulk: Bulk

    def soft(self, noise: Floats) -> Floats:
        """(latent,) deviations of the latents' noise."""
        return np.sqrt(np.einsum("kl,lm,km->k", self.unmixing, noise, self.unmixing))

    def log_parts(self, y: Floats, soft: Floats) -> tuple[Floats, Floats]:
        """(rows,) log densities of rows that fill and of others, each with its share."""
        u = y @ self.unmixing.T + self.offset
        filled = log_filled(u, soft).sum(1) + np.linalg.slogdet(self.unmixing)[1] + np.log(self.fill)
        return filled, np.logaddexp.reduce(self.bulk.log_parts(y), 1) + np.log1p(-self.fill)

    def log_likelihood(self, y: Floats, noise: Floats) -> float:
        return float(np.logaddexp(*self.log_parts(y, self.soft(noise))).sum())


def log_filled(u: Floats, soft: Floats) -> Floats:
    """Log density of u of rows that fill [-1, 1], edges softened by `soft`."""
    size = np.abs(u)
    return np.log(np.maximum(ndtr((1 - size) / soft) - ndtr((-1 - size) / soft), TINY)) - np.log(2)


def weighted_sources(y: Floats, weight: Floats, rng: np.random.Generator, steps: int = 100) -> tuple[Floats, Floats]:
    """Unmixing (latent, latent) and offset (latent,) by which weighted rows are independent as kurtosis has it
    (Hyvaerinen 1999), ends at -1 and 1: of rows weighed until they are uniform on a box, its axes."""
    weight, latents = weight / weight.sum(), y.shape[1]
    middle = weight @ y
    value, vector = np.linalg.eigh((weight[:, None] * (y - middle)).T @ (y - middle))
    to = (vector / np.sqrt(np.maximum(value, 1e-12))).T
    white = (y - middle) @ to.T
    turn = np.linalg.qr(rng.standard_normal((latents, latents)))[0]
    for _ in range(steps):
        left, _, right = np.linalg.svd((weight[:, None] * (white @ turn.T) ** 3).T @ white - 3 * turn)
        last, turn = turn, left @ right
        if np.abs(np.abs((turn * last).sum(1)) - 1).max() < 1e-8:
            break
    u = white @ turn.T
    order = np.argsort(u, axis=0)
    reached = np.cumsum(weight[order], axis=0)
    ends = [np.take_along_axis(u, order, 0)[(reached < q).sum(0), np.arange(latents)] for q in (0.01, 0.99)]
    half = np.maximum(ends[1] - ends[0], 1e-6) / 1.96  # 98 % of a uniform law's range
    return turn @ to / half[:, None], -(turn @ to @ middle + (ends[0] + ends[1]) / 2) / half


def mixture(y: Floats, components: int, rng: np.random.Generator) -> Bulk:
    """Normal laws by expectation-maximisation from rows at random, one of them wide."""
    size = np.where(np.arange(components) == 0, 3.0, 0.2)
    middle = y[rng.integers(0, len(y), components)]
    bulk = Bulk(np.full(components, 1 / components), middle, size[:, None, None] * np.cov(y.T).reshape(y.shape[1], -1))
    for _ in range(FIRST):
        log_p = bulk.log_parts(y)
        bulk = bulk.improved(y, np.exp(log_p - np.logaddexp.reduce(log_p, 1)[:, None]))
    return bulk


def start(y: Floats, components: int, by: str, rng: np.random.Generator) -> Box:
    """A box from rows of the widest law ("wide"), of a law at random, as often as rows are its own ("one"), from rows
    in inverse proportion to their density ("even"), or from all alike ("all")."""
    bulk = mixture(y, components + 1, rng)
    log_p = bulk.log_parts(y)
    total = np.logaddexp.reduce(log_p, 1)
    widest = int(np.linalg.slogdet(bulk.covariance)[1].argmax())
    widest = int(rng.choice(components + 1, p=bulk.weights)) if by == "one" else widest
    own = np.exp(log_p[:, widest] - total)
    weight = {
        "wide": own + 1e-6,
        "one": own + 1e-6,
        "even": np.exp(-np.maximum(total, np.quantile(total, 0.02)) + total.min()),
        "all": np.ones(len(y)),
    }[by]
    unmixing, offset = weighted_sources(y, weight, rng)
    others = np.arange(components + 1) != widest
    weights = bulk.weights[others] * (1 - RARE) / bulk.weights[others].sum()
    fill = float(np.clip(own.mean(), 0.05, 0.95)) if by == "one" else 0.3
    return Box(unmixing, offset, fill, Bulk(weights, bulk.middle[others], bulk.covariance[others]))


def strays(box: Box) -> Box:
    """The same with the least component in place of rows that are nowhere near, and so no part of the box."""
    weights, middle, covariance = (part.copy() for part in box.bulk)
    least = int(weights.argmin())
    weights[least], middle[least], covariance[least] = RARE, 0.0, WIDEST * np.eye(middle.shape[1])
    return box._replace(bulk=Bulk(weights / weights.sum(), middle, covariance))


def refined(box: Box, y: Floats, noise: Floats, blurs: tuple[float, ...]) -> Box:
    """By turns laws of the bulk by expectation-maximisation and the box by its gradient, edges less and less soft."""
    for blur in blurs:
        soft = np.hypot(box.soft(noise), blur)
        u = y @ box.unmixing.T + box.offset
        filled = log_filled(u, soft).sum(1) + np.linalg.slogdet(box.unmixing)[1]
        for _ in range(TURN):
            both = np.column_stack([filled + np.log(box.fill), box.bulk.log_parts(y) + np.log1p(-box.fill)])
            share = np.exp(both - np.logaddexp.reduce(both, 1)[:, None])
            fill = float(np.clip(share[:, 0].mean(), 1e-4, 1 - 1e-4))
            box = box._replace(fill=fill, bulk=box.bulk.improved(y, share[:, 1:]))
        box = _climbed(box, y, soft)
    return box


def _climbed(box: Box, y: Floats, soft: Floats, steps: int = 40) -> Box:
    """The box and its share of the rows at a maximum of the likelihood, the bulk as it is."""
    latents = y.shape[1]
    u = y @ box.unmixing.T + box.offset
    bulk, volume = np.logaddexp.reduce(box.bulk.log_parts(y), 1), np.linalg.slogdet(box.unmixing)[1]

    def loss(theta: Floats) -> tuple[float, Floats]:
        turn = np.eye(latents) + theta[: latents**2].reshape(latents, latents)
        moved = u @ turn.T + theta[latents**2 : -1]
        each = log_filled(moved, soft)
        filled = each.sum(1) + volume + np.linalg.slogdet(turn)[1] - np.logaddexp(0, -theta[-1])
        total = np.logaddexp(filled, bulk - np.logaddexp(0, theta[-1]))
        share = np.exp(filled - total)
        low, high = ((end - moved) / soft for end in (-1, 1))
        density = np.exp(-0.5 * low**2 - each) - np.exp(-0.5 * high**2 - each)
        slope = share[:, None] * density / (2 * np.sqrt(2 * np.pi) * soft)
        up = slope.T @ u + share.sum() * np.linalg.inv(turn).T
        gradient = np.concatenate([up.ravel(), slope.sum(0), [share.sum() - len(y) * expit(theta[-1])]])
        return -float(total.sum()), -gradient

    first = np.append(np.zeros(latents**2 + latents), logit(box.fill))
    theta = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
    turn, shift = np.eye(latents) + theta[: latents**2].reshape(latents, latents), theta[latents**2 : -1]
    fill = float(np.clip(expit(theta[-1]), 1e-4, 1 - 1e-4))
    return box._replace(unmixing=turn @ box.unmixing, offset=turn @ box.offset + shift, fill=fill)


def searched(y: Floats, noise: Floats, components: int, starts: int, rng: np.random.Generator) -> list[Box]:
    """`starts` boxes, each from some of the rows, the likeliest first."""
    found = []
    for one in range(starts):
        some = y if len(y) <= FIRST_ROWS else y[rng.permutation(len(y))[:FIRST_ROWS]]
        by = STARTS[one] if one < len(STARTS) else "one"
        begun = start(some, components, by, rng)
        begun = begun if by == "one" else strays(begun)
        found.append(refined(begun, some, noise, BLUR[2:] if by == "one" and one % 2 else BLUR))
    return sorted(found, key=lambda box: -box.log_likelihood(y, noise))


def search(y: Floats, noise: Floats, components: int, starts: int, rng: np.random.Generator) -> Box:
    """The likeliest of `starts` boxes, improved on all rows."""
    return refined(searched(y, noise, components, starts, rng)[0], y, noise, LAST)


def boxes_apart(one: Box, other: Box) -> Floats:
    """(latent,) share of each axis of the one box, in squares, that is along others than its own of the other box."""
    share = (one.unmixing @ np.linalg.inv(other.unmixing)) ** 2
    share /= share.sum(1, keepdims=True)
    return 1 - share[optimize.linear_sum_assignment(-share)]


def walks_from(boxes: Sequence[Box], components: int) -> Walks:
    """A walk from each box, its bulk told by so many components."""
    bulks = [box.bulk.repeated(components) for box in boxes]
    own = [(b.unmixing, b.offset, np.array(b.fill), *bulk) for b, bulk in zip(boxes, bulks, strict=True)]
    return Walks(*(np.stack(part) for part in zip(*own, strict=True)))
