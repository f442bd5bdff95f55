"""Directions among latents from innovations that are not Gaussian, where features with Gaussian noise measure them.

    z = W^T z + noise * e,  e_k of unit variance, a mixture of two normals or normal;  m = z + u,  u_k ~ N(0, t_k)

m are scores of features of one latent each, of which t is known. Given which part of its mixture each e_k comes from, m
is normal, so that its density is a sum over 2^latents terms. Graphs of a Markov equivalence class, alike for normal e,
are told apart by their evidence, by Laplace's method (Shimizu et al. 2006 tell directions of what is seen by
innovations that are not normal). A latent has a mixture where the evidence prefers it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from pyrocrl.claims.indeterminacy import cpdag
from pyrocrl.exact.measured_sem import Measured, MeasuredDraws, one_hot
from pyrocrl.exact.orders import log_orders, only, sample_dags

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
FORM = 3  # numbers that a mixture has
MOST = 6  # latents in use whose mixtures are looked at
NEAR, FAR = 2.0, 40.0  # Jarque and Bera's statistic of what surely is normal, and surely is not
FEW = 0.05  # share of draws of a class from which it is looked at
CURVED = 0.1  # least curvature: the prior's, of forms, is 1
STEPS = 60  # of the optimiser
APART, RATIO = 3.0, 1.5  # units of forms: of a standard normal prior
PLACES, WIDTHS = (0.0, 0.8, 0.0), (0.0, 0.0, 0.8)  # forms to begin with: two places, or two widths


def components(mixed: Tensor, form: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log shares, means and deviations (latent, 2) of the mixtures of mean 0 and unit variance.

    form (latent, 3): log odds of the first part; how far apart their means are, `APART` times, in units of the
    geometric mean of their deviations; the logarithm of the ratio of these, `RATIO` times. Where mixed (latent,) is 0
    both parts are standard normal.
    """
    odds, apart, ratio = form[..., 0], APART * mixed * form[..., 1], RATIO * mixed * form[..., 2]
    share = odds.sigmoid()
    mean = torch.stack([-(1 - share) * apart, share * apart], -1)
    deviation = torch.stack([0.5 * ratio, -0.5 * ratio], -1).exp()
    shares = torch.stack([share, 1 - share], -1)
    unit = (shares * (mean.square() + deviation.square())).sum(-1, keepdim=True).sqrt()
    return shares.log(), mean / unit, deviation / unit


class _Fitted(NamedTuple):
    """gain: log evidence of the mixtures over that of normal innovations; mixed (latent,), form (latent, 3)."""

    gain: float
    mixed: Floats
    form: Floats


class _Maximum(NamedTuple):
    """Of the log posterior: where it is, as a vector and in parts."""

    log_posterior: float
    at: Tensor
    mixed: Floats
    weight: Floats
    noise: Floats
    form: Floats


class _Scores:
    """m (row, latent) and t (latent,); fits of graphs are kept."""

    def __init__(self, scores: Floats, error: Floats) -> None:
        self.scores, self.error = torch.as_tensor(scores), torch.as_tensor(error)
        self.rows, self.latents = scores.shape
        self.parts = torch.tensor([*itertools.product((0, 1), repeat=self.latents)])
        self.known: dict[bytes, _Fitted] = {}

    def log_likelihood(self, weight: Tensor, noise: Tensor, mixed: Tensor, form: Tensor) -> Tensor:
        """() of all rows."""
        log_share, mean, deviation = components(mixed, form)
        k = torch.arange(self.latents)
        total = torch.linalg.inv(torch.eye(self.latents, dtype=weight.dtype) - weight.mT)  # of e to z
        centre = (noise * mean[k, self.parts]) @ total.mT  # (part, latent)
        spread = (noise * deviation[k, self.parts]).square()
        tril = torch.linalg.cholesky((total * spread[:, None]) @ total.mT + torch.diag(self.error))
        apart = (self.scores - centre[:, None]).mT  # (part, latent, row)
        white = torch.linalg.solve_triangular(tril, apart, upper=False)
        each = log_share[k, self.parts].sum(-1) - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        rows = (each[:, None] - 0.5 * white.square().sum(1)).logsumexp(0)
        return rows.sum() - 0.5 * self.rows * self.latents * math.log(2 * math.pi)

    def of(self, graph: Bools) -> _Fitted:
        """The best mixtures of a graph: of all latents, then without those that earn too little."""
        if (key := graph.tobytes()) not in self.known:
            self.known[key] = self._best(graph)
        return self.known[key]

    def _best(self, graph: Bools) -> _Fitted:
        weight, noise = self._normal(graph)
        e = self.scores.numpy() @ (np.eye(self.latents) - weight)
        e = (e - e.mean(0)) / e.std(0)
        skewness, excess = (e**3).mean(0), (e**4).mean(0) - 3
        far = self.rows * (skewness**2 / 6 + excess**2 / 24)
        mixed = (far > NEAR).astype(float)  # others could not earn their mixture
        form = np.where(excess[:, None] > 0, WIDTHS, PLACES)
        if not mixed.any():
            return _Fitted(0.0, mixed, form)
        normal = self._maximum(graph, weight, noise, np.zeros_like(mixed), form)
        now = self._maximum(graph, weight, noise, mixed, form)
        evidence = self._log_evidence(graph, now)
        while (open_ := np.flatnonzero((now.mixed > 0) & (far < FAR))).size:
            fewer = [now.mixed * (np.arange(len(mixed)) != k) for k in open_]
            tried = [self._maximum(graph, now.weight, now.noise, one, now.form) for one in fewer]
            best = max(tried, key=lambda one: one.log_posterior)
            without = self._log_evidence(graph, best)
            if evidence > without:
                break
            now, evidence = best, without
        return _Fitted(evidence - self._log_evidence(graph, normal), now.mixed, now.form)

    def _normal(self, graph: Bools) -> tuple[Floats, Floats]:
        """Weights and noise by regressions of z's covariance."""
        m = self.scores.numpy()
        covariance = m.T @ m / self.rows - np.diag(self.error.numpy())
        weight, noise = np.zeros_like(covariance), np.ones(self.latents)
        for k in range(self.latents):
            parents = np.flatnonzero(graph[:, k])
            weight[parents, k] = np.linalg.lstsq(
                covariance[np.ix_(parents, parents)], covariance[parents, k], rcond=None
            )[0]
            noise[k] = math.sqrt(max(covariance[k, k] - weight[parents, k] @ covariance[parents, k], 0.02))
        return weight, noise

    def _lost(
        self, graph: Bools, mixed: Floats, form: Floats
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
        """Minus the log posterior of a vector (weights, log noise, forms of mixtures), and these in their places."""
        edges, on, start = torch.as_tensor(graph), torch.as_tensor(mixed), torch.as_tensor(form)
        sizes = (int(graph.sum()), self.latents, FORM * int(mixed.sum()))

        def placed(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            w, s, own = at.split(sizes)
            weight = torch.zeros(graph.shape, dtype=at.dtype).index_put(tuple(edges.nonzero().mT), w)
            return weight, s.exp(), start.index_put((on.nonzero()[:, 0],), own.reshape(-1, FORM))

        def lost(at: Tensor) -> Tensor:
            weight, noise, form = placed(at)
            return 0.5 * at[sum(sizes[:2]) :].square().sum() - self.log_likelihood(weight, noise, on, form)

        return lost, placed

    @torch.enable_grad()
    def _maximum(self, graph: Bools, weight: Floats, noise: Floats, mixed: Floats, form: Floats) -> _Maximum:
        """Found from here."""
        lost, placed = self._lost(graph, mixed, form)

        def value_and_slope(at: Floats) -> tuple[float, Floats]:
            free = torch.tensor(at, requires_grad=True)
            value = lost(free)
            (slope,) = torch.autograd.grad(value, free)
            return value.item(), slope.numpy()

        first = np.concatenate([weight[graph], np.log(noise), form[mixed > 0].ravel()])
        best = optimize.minimize(value_and_slope, first, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
        at = torch.as_tensor(best.x)
        return _Maximum(-float(best.fun), at, mixed, *(part.detach().numpy() for part in placed(at)))

    @torch.enable_grad()
    def _log_evidence(self, graph: Bools, found: _Maximum) -> float:
        """By Laplace's method about this maximum, weights and log noise of flat priors."""
        lost, _ = self._lost(graph, found.mixed, found.form)
        curvature = torch.autograd.functional.hessian(lost, found.at, vectorize=True)
        values = torch.linalg.eigvalsh(curvature).clamp_min(CURVED)
        # two forms, with their parts swapped, are one law; 2 pi of the prior of forms and of their integral cancel
        return found.log_posterior - 0.5 * float(values.log().sum()) + float(found.mixed.sum()) * math.log(2)


class Directed(NamedTuple):
    """Draws with graphs of mixtures, and of each draw mixed (draw, latent) and form (draw, latent, 3)."""

    draws: MeasuredDraws
    mixed: Floats
    form: Floats


class Directions:
    """What rows x (row, feature) say of directions among the latents of these clusters."""

    def __init__(self, x: Floats, start: Measured) -> None:
        loadings = one_hot(start.cluster, len(start.correlation)) * start.slope[:, None]
        information = (loadings**2 / start.variance[:, None]).sum(0)
        self.scores = _Scores(x @ (loadings / start.variance[:, None]) / information, 1 / information)

    def turn(self, draws: MeasuredDraws, rng: np.random.Generator, generator: torch.Generator) -> Directed:
        """Draws of normal innovations, turned to those of mixtures where rows prefer these.

        A class of graphs keeps the probability that it has in `draws`, so that which latents are joined rests on
        moments alone; its graphs are as probable as the numbers of their orders times exp(gain). Weights of a turned
        graph are those of the same correlations. Classes of few draws stay as they are, and all do where more than
        `MOST` latents have features.
        """
        count, latents = draws.precision.shape
        u, scores = self.scores.latents, self.scores
        mixed, form = np.zeros((count, latents)), rng.standard_normal((count, latents, FORM))
        if not 1 < u <= MOST:
            return Directed(draws, mixed, form)
        out = MeasuredDraws(*(part.copy() for part in draws))
        classes: dict[bytes, list[int]] = {}
        for i, graph in enumerate(draws.graph[:, :u, :u] > 0):
            classes.setdefault(cpdag(graph).tobytes(), []).append(i)
        for own in classes.values():
            found = _climbed(draws.graph[own[0], :u, :u] > 0, scores) if len(own) >= FEW * count else []
            if len(found) < 2 and not (found and scores.of(found[0]).mixed.any()):
                continue
            odds = np.array([float(log_orders(torch.as_tensor(one))) + scores.of(one).gain for one in found])
            each = np.exp(odds - np.logaddexp.reduce(odds))
            for i in own:
                graph = found[int(rng.choice(len(found), p=each))]
                fitted = scores.of(graph)
                _turn(out, i, graph, generator)
                mixed[i, :u] = fitted.mixed
                form[i, :u] = np.where(fitted.mixed[:, None] > 0, fitted.form, form[i, :u])
        return Directed(out, mixed, form)


def _turn(draws: MeasuredDraws, i: int, graph: Bools, generator: torch.Generator) -> None:
    """Make draw i one of this graph over the latents in use: of the same covariance, which an equivalent graph has."""
    u = len(graph)
    slope, precision = draws.slope[i, :u, :u], draws.precision[i, :u]
    apart = np.eye(u) - slope
    covariance = np.linalg.inv(apart * precision @ apart.T)
    slope[:], draws.graph[i, :u, :u] = 0.0, graph
    for k in range(u):
        parents = np.flatnonzero(graph[:, k])
        slope[parents, k] = np.linalg.solve(covariance[np.ix_(parents, parents)], covariance[parents, k])
        precision[k] = 1 / (covariance[k, k] - slope[parents, k] @ covariance[parents, k])
    order = sample_dags(only(torch.as_tensor(graph)), generator)[0].numpy()
    draws.order[i, draws.order[i] < u] = order  # at the places of those in use


def _climbed(graph: Bools, scores: _Scores) -> list[Bools]:
    """Graphs of its equivalence class: all that a climb by turning one covered edge has looked at (Chickering 1995);
    itself alone where innovations are normal, as they then are in all of them."""
    known = {graph.tobytes(): graph}
    best = graph
    if not scores.of(graph).mixed.any():
        return [graph]
    while True:
        near = [_turned(best, a, b) for a, b in np.argwhere(best) if _covered(best, a, b)]
        known |= {one.tobytes(): one for one in near}
        new = max(known.values(), key=lambda one: scores.of(one).gain)
        if scores.of(new).gain <= scores.of(best).gain:
            return list(known.values())
        best = new


def _covered(graph: Bools, a: int, b: int) -> bool:
    """Whether a and b have the same parents, but for a itself."""
    parents = graph[:, b].copy()
    parents[a] = False
    return bool((parents == graph[:, a]).all())


def _turned(graph: Bools, a: int, b: int) -> Bools:
    out = graph.copy()
    out[a, b], out[b, a] = False, True
    return out
