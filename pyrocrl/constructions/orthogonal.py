"""Maps of orthogonal columns (`exact.orthogonal_maps`) that make latents independent: a start, a mode, draws.

Conformal maps come first, a finite family: from special conformal ones at random, each with independent components of
what it makes of the rows, those of most likelihood go on. Polynomials bend the best of them. The mode is climbed in
coordinates in which the curvature, by products of single rows' gradients (Fisher) and of the cosines of their columns,
is that of a ball; `roughness`, the deviation of what bends, is set between climbs by how much of it rows tell (MacKay
1992). Draws are of the map and the laws of the latents together, from the normal law about the mode: given the laws the
map would be told too well, for of a latent and its law only the two together are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pyrocrl.exact import orthogonal_maps as maps
from pyrocrl.exact.monomials import slots as slots_of

GO_ON, BEND = 5, 3  # special conformal maps that go on, and those that polynomials bend then
SAME = 0.005  # nats a row, by which others have to be less likely than a better one
FIRST = 0.3  # of the steps, that a start has before it is decided whether it goes on
ROUNDS = 2  # of climbs, after the first
FEW, SOME = 1_000, 500  # rows that starts are climbed with, and that go through a gradient at once
POLE = 0.5  # deviation of a start's pole
ROUGH, LEAST = 0.03, 1e-3  # roughness a priori, its median, and at least
UNITS = 0.5  # deviation a priori of the log of units
BARRIER = 0.01  # times the log determinants of slopes' symmetric parts
PASSES = 200  # of FastICA
FLATTEST = 0.01  # of the curvature by products of gradients, from which the log posterior is concave


class Found(NamedTuple):
    """The mode and then draws: units, pole (draw, feature), coefficients (draw, latent, monomial), heights (draw,
    latent, bump); and roughness with the error of its logarithm."""

    units: Tensor
    pole: Tensor
    coefficients: Tensor
    heights: Tensor
    roughness: float
    error: float


class Climb:
    """The log posterior of rows x (rows, feature), standardised, by parameters in one vector: log units, pole,
    coefficients, heights."""

    def __init__(self, x: Tensor, degree: int, weight: float, roughness: float = 0.1) -> None:
        self.x, self.weight, self.roughness = x, weight, roughness
        self.slots = slots_of(x.shape[1], degree)
        d = x.shape[1]
        self.sizes = [d, d, d * len(self.slots), d * maps.BUMPS]

    @property
    def map_size(self) -> int:
        return sum(self.sizes[:3])

    def parts(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        units, pole, coefficients, heights = at.split(self.sizes)
        d = self.x.shape[1]
        return units.exp(), pole, coefficients.reshape(d, -1), heights.reshape(d, -1)

    def unfolded(self, at: Tensor, x: Tensor | None = None) -> maps.Unfolded:
        units, pole, coefficients, _ = self.parts(at)
        return maps.unfold(self.x if x is None else x, units, pole, coefficients, self.slots)

    def log_prior(self, at: Tensor) -> Tensor:
        units, pole, coefficients, heights = self.parts(at)
        grid = maps.prior_heights(at)
        up = torch.linalg.solve_triangular(grid.tril, (heights - grid.level).mT, upper=False)
        bends = coefficients / maps.spread(self.slots, at.new_tensor(self.roughness))
        size = (units.log() / UNITS).square().sum() + pole.square().sum()
        return -(size + bends.square().sum() + up.square().sum()) / 2

    def log_rows(self, at: Tensor, x: Tensor | None = None) -> Tensor:
        """(rows,) log p(x_i), the contrast taken off, and a barrier before maps that may fold."""
        seen = self.unfolded(at, x)
        value = maps.log_bumps(seen.z, self.parts(at)[3]) + seen.log_volume - self.weight * maps.contrast(seen.columns)
        return value + BARRIER * maps.upright(seen.forward)

    def value(self, at: Tensor) -> Tensor:
        return self.log_rows(at).sum() + self.log_prior(at)

    def climbed(self, at: Tensor, steps: int, root: Tensor | None = None) -> tuple[Tensor, float]:
        """(parameters, log posterior) by quasi-Newton steps; root: of the covariance of a normal law about the mode."""
        rows = len(self.x)

        @torch.enable_grad()
        def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
            step = torch.as_tensor(v)
            here = (at + (step if root is None else root @ step)).requires_grad_(True)
            value = -self.value(here) / rows
            if not bool(torch.isfinite(value)):
                return 1e6, np.zeros_like(v)
            (slope,) = torch.autograd.grad(value, here)
            if root is not None:
                slope = root.mT @ slope
            return float(value.detach()), slope.numpy()

        options = {"maxiter": steps, "maxcor": 30, "ftol": 1e-9, "gtol": 1e-6}
        found = minimize(loss, np.zeros(len(at)), jac=True, method="L-BFGS-B", options=options)
        step = torch.as_tensor(found.x)
        return at + (step if root is None else root @ step), -float(found.fun) * rows

    def precision(self, at: Tensor) -> Tensor:
        """(parameter, parameter) of the normal law about a mode: of rows by products of their gradients, of the
        contrast by products of those of the cosines of columns, and of the prior."""
        d = self.x.shape[1]
        upper = torch.triu_indices(d, d, 1)

        def one(here: Tensor, row: Tensor) -> Tensor:
            seen = self.unfolded(here, row[None])
            unit = seen.columns[0] / seen.columns[0].square().sum(0).sqrt()
            cosines = (unit.mT @ unit)[upper[0], upper[1]] * math.sqrt(self.weight)
            log = maps.log_bumps(seen.z, self.parts(here)[3]) + seen.log_volume
            return torch.cat([log, cosines])

        slopes = torch.func.vmap(torch.func.jacrev(one), (None, 0))
        total = torch.zeros(len(at), len(at), dtype=at.dtype)
        for part in self.x.split(SOME):
            rows = slopes(at, part).flatten(0, 1)
            total += rows.mT @ rows
        return total - torch.func.jacrev(torch.func.grad(self.log_prior))(at)

    @torch.enable_grad()
    def spread(self, at: Tensor) -> Tensor:
        """Root (parameter, parameter) of the covariance of the normal law about a mode, whose precision is the log
        posterior's own curvature there, of rows by `SOME` of them. Products of gradients are as much for very many rows
        alone; they stand in along directions in which the log posterior is not concave."""
        root, some, hessian = _root(self.precision(at)), self.x[:SOME], torch.autograd.functional.hessian
        rows = hessian(lambda v: self.log_rows(v, some).mean(), at) * len(self.x)
        curvature = -rows - hessian(self.log_prior, at)
        value, turn = torch.linalg.eigh(root.mT @ curvature @ root)
        value = torch.where(value > FLATTEST, value, torch.ones_like(value))
        return root @ (turn / value.sqrt())


def independent(u: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(matrix (latent, feature), offset (latent,)) of components matrix u + offset of variance 1, by fixed points of
    cubes from a random turn (FastICA: Hyvarinen 1999), decorrelated together."""
    centre = u.mean(0)
    value, vector = torch.linalg.eigh(torch.cov(u.mT))
    white = vector / value.clamp_min(1e-12 * value[-1]).sqrt()  # (feature, direction)
    y = (u - centre) @ white
    turn = torch.linalg.qr(torch.as_tensor(rng.standard_normal((len(value), len(value)))))[0]
    for _ in range(PASSES):
        fourth = (y @ turn.mT).pow(3).mT @ y / len(y) - 3 * turn
        left, _, right = torch.linalg.svd(fourth)
        new = left @ right
        done = float((new * turn).sum(1).abs().min()) > 1 - 1e-9
        turn = new
        if done:
            break
    matrix = turn @ white.mT
    return matrix, -matrix @ centre


class Effort(NamedTuple):
    """starts: special conformal maps to start from; steps: of a climb, at most."""

    starts: int
    steps: int


def conformal(x: Tensor, weight: float, effort: Effort, rng: np.random.Generator) -> list[Tensor]:
    """Parameters (`Climb` of degree 1) of conformal maps that make rows x most likely independent, the best first."""
    d = x.shape[1]
    climb = Climb(x[torch.as_tensor(rng.permutation(len(x))[:FEW])], 1, weight)
    starts = []
    for start in range(effort.starts):
        pole = torch.as_tensor(POLE * min(start, 1) * rng.standard_normal(d) / math.sqrt(d))
        matrix, offset = independent(maps.inverted(climb.x, pole)[0], rng)
        level = maps.prior_heights(x).level.repeat(d)
        at = torch.cat([torch.zeros(d).to(x), pole, torch.cat([offset[:, None], matrix], 1).flatten(), level])
        starts.append(climb.climbed(at, math.ceil(FIRST * effort.steps)))
    starts.sort(key=lambda one: -one[1])
    found: list[tuple[Tensor, float]] = []
    for at, _ in starts[:GO_ON]:
        found = sorted([*found, climb.climbed(at, effort.steps)], key=lambda one: -one[1])
        if len(found) > 1 and found[0][1] - found[1][1] < SAME * len(climb.x):  # the best was found twice
            break
    kept: list[tuple[Tensor, float]] = []
    for at, log in found:
        if all(other - log > SAME * len(climb.x) for _, other in kept) and len(kept) < BEND:
            kept.append((at, log))
    return [at for at, _ in kept]


def bent(starts: list[Tensor], x: Tensor, degree: int, weight: float, steps: int) -> tuple[Climb, Tensor]:
    """(climb, parameters) of most likelihood with polynomials, from conformal maps' parameters."""
    d = x.shape[1]
    climb, first = Climb(x, degree, weight), Climb(x, 1, weight)
    found = []
    for start in starts:
        units, pole, coefficients, heights = start.split(first.sizes)
        lines = torch.zeros(d, len(climb.slots)).to(x)
        lines[:, (climb.slots > 0).sum(1) < 2] = coefficients.reshape(d, -1)
        at = torch.cat([units, pole, lines.flatten(), heights])
        found.append(climb.climbed(at, steps, _root(climb.precision(at))))
    at = max(found, key=lambda one: one[1])[0]
    for _ in range(ROUNDS):
        climb.roughness = _roughness(climb, at)
        at, _ = climb.climbed(at, steps, _root(climb.precision(at)))
    return climb, at


def _root(precision: Tensor) -> Tensor:
    """R with R R' the inverse."""
    tril = torch.linalg.cholesky(precision)
    return torch.linalg.solve_triangular(tril, torch.eye(len(tril)).to(tril), upper=False).mT


def _roughness(climb: Climb, at: Tensor) -> float:
    """Root of the mean over coefficients that bend of what is expected of their squares, in units of their spread."""
    size = climb.map_size
    variance = climb.precision(at)[:size, :size].inverse().diagonal()[2 * climb.x.shape[1] :]
    coefficients = climb.parts(at)[2]
    bends = (climb.slots > 0).sum(1) > 1
    if not bool(bends.any()):
        return climb.roughness
    share = maps.spread(climb.slots, at.new_tensor(1.0))[bends]
    squares = coefficients.square() + variance.reshape(coefficients.shape)
    return max(LEAST, float((squares[:, bends] / share.square()).mean().sqrt()))


def search(x: Tensor, degree: int, weight: float, effort: Effort, draws: int, rng: np.random.Generator) -> Found:
    """The map of rows x (rows, feature), standardised, and draws of it with the laws of latents."""
    climb, at = bent(conformal(x, weight, effort, rng), x, degree, weight, effort.steps)
    root = climb.spread(at)
    each = [at]
    for _ in range(draws):
        step = root @ torch.as_tensor(rng.standard_normal(len(at)))
        while not bool(maps.upright(climb.unfolded(at + step).forward).isfinite().all()):
            step = step / 2
        each.append(at + step)
    parts = [climb.parts(one) for one in each]
    units, pole, coefficients, heights = (torch.stack([part[i] for part in parts]) for i in range(4))
    bends = max(1, int(((climb.slots > 0).sum(1) > 1).sum()) * x.shape[1])
    return Found(units, pole, coefficients, heights, climb.roughness, (2 * bends) ** -0.5)
