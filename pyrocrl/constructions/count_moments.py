"""Mean and covariance of linear Gaussian latents in every environment, seen through counts.

    y_i ~ N(m_e, S_e) in environment e of row i                                      (latent,)
    x_ij ~ NegativeBinomial(mean = s_i exp(offset[batch_i, j] + (L y_i)_j), dispersion r_j)

All of it is free but for the loadings L (feature, latent) and offsets that environments share: no graph yet, so that
what is found holds whatever the structural equations. Fitted by maximum likelihood: expectation-maximisation with the
rows' y integrated by Laplace's method, corrected for the likelihood's skewness, from the closed-form moments of the
Poisson-lognormal (Aitchison & Ho 1989, The multivariate Poisson-log normal distribution).

A row of counts tells less than its y would. With N the covariance of what it leaves open, the covariance of y is
estimated from n rows as sharply as (S + N) is, so in direction k the n rows are worth n / (1 + (N S^-1)_kk)^2 of y;
`count` has this with the mean over directions. Programs that take Gaussian moments then say how sure they are.

Rows of an intervention may have escaped it (`escapees`): then their y is of the observational law with a probability
that the same expectation-maximisation finds, and moments are those of the rows that did not.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.parts import escapees as escape
from pyrocrl.parts.observation import Observation

ROUNDS, TOLERANCE = 200, 1e-3  # of expectation-maximisation; change of the scaled moments that ends it
NEWTON = 20  # steps from an unknown mode, each at most LONGEST
LONGEST = 1.5
RIDGE = 1.0  # prior precision of loadings
CELLS = 400_000  # numbers that fit a processor's cache
DISPERSIONS = (1e-1, 1e3)


class CountMoments(NamedTuple):
    """What `count_moments` finds. count (env,): rows of y that the counts are worth; mean (env, latent); cov (env,
    latent, latent); loadings (feature, latent); share (env,) of the rows that escaped; y is white over the
    observational rows."""

    count: Tensor
    mean: Tensor
    cov: Tensor
    loadings: Tensor
    share: Tensor


class RowPosterior(NamedTuple):
    """Of rows' y given their counts, by Laplace's method. loc (rows, latent), the mean; cov (rows, latent, latent);
    log_evidence (rows,) log p(x_i)."""

    loc: Tensor
    cov: Tensor
    log_evidence: Tensor


_FOUND: WeakKeyDictionary[Data, dict[tuple, tuple[CountMoments, dict[str, Tensor]]]] = WeakKeyDictionary()


@torch.no_grad()
def count_moments(
    data: Data,
    latents: int,
    observational: list[int],
    observation: Observation,
    escapees: bool = False,
    prior: escape.Prior = escape.PRIOR,
) -> CountMoments:
    """The maximum likelihood of all rows; `observation` is left at its offsets and dispersions. prior: of escapees.

    Chains that start from the same `data` share one computation.
    """
    key = (latents, tuple(observational), escapees, prior)
    found = _FOUND.setdefault(data, {})
    if key not in found:
        batch = observation.start(data)
        found[key] = _Fit(observation, batch, len(data.env_names), latents, observational, escapees, prior).run()
    moments, state = found[key]
    observation.load_state_dict(state)
    return moments


def row_posterior(
    observation: Observation, loadings: Tensor, batch: Batch, mean: Tensor, cov: Tensor, start: Tensor | None = None
) -> RowPosterior:
    """y of rows with prior N(mean, cov), (rows, latent) and (rows, latent, latent). Newton's method from `start`, the
    prior's mean where none is given; log p(x | y) is concave, and steps are cut to a length at which it is near
    quadratic."""
    precision = torch.linalg.inv(cov)
    y = mean if start is None else start
    r = softplus(observation.raw_dispersion)
    for _ in range(NEWTON if start is None else 2):
        slope, weight, _ = _derivatives(observation, loadings, batch, y, r)
        y = y + _cut(_solve(_information(weight, loadings) + precision, slope @ loadings - _dot(precision, y - mean)))
    _, weight, bend = _derivatives(observation, loadings, batch, y, r)
    own = torch.linalg.inv(_information(weight, loadings) + precision)
    apart = y - mean
    likelihood = observation.likelihood(y @ loadings.mT, batch).log_prob(batch.x).sum(-1)
    evidence = likelihood - 0.5 * (apart * _dot(precision, apart)).sum(-1)
    evidence = evidence + 0.5 * (torch.linalg.slogdet(precision @ own).logabsdet)
    skew = 0.5 * (bend * _spread(own, loadings)) @ loadings  # third derivatives of log p(x | y)
    return RowPosterior(y + _dot(own, skew), own, evidence)


def _derivatives(
    observation: Observation, loadings: Tensor, batch: Batch, y: Tensor, r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, feature) first, minus second, and third derivative of log p(x_ij) in the log rate."""
    mean = observation.mean(y @ loadings.mT, batch)
    share = mean / (r + mean)
    slope = batch.x - (batch.x + r) * share
    weight = (batch.x + r) * share * (1 - share)
    return slope, weight, -weight * (1 - 2 * share)


def _information(weight: Tensor, loadings: Tensor) -> Tensor:
    """(rows, latent, latent) sum_j weight_ij L_j L_j'."""
    outer = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)
    return (weight @ outer).unflatten(1, (loadings.shape[1], -1))


def _spread(cov: Tensor, loadings: Tensor) -> Tensor:
    """(rows, feature) L_j' cov_i L_j."""
    outer = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)
    return cov.flatten(1) @ outer.mT


def _dot(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None]).squeeze(-1)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, vector[..., None]).squeeze(-1)


def _cut(step: Tensor, longest: float = LONGEST) -> Tensor:
    return step * (longest / step.abs().amax(-1, keepdim=True).clamp_min(longest))


def _mixture(own: RowPosterior, free: RowPosterior, changed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of y, of law `own` with probability `changed` (rows,), else `free`."""
    gap, weight = own.loc - free.loc, changed[:, None]
    between = (weight * (1 - weight) * gap)[:, :, None] * gap[:, None, :]
    return free.loc.lerp(own.loc, weight), free.cov.lerp(own.cov, weight[..., None]) + between


class _Fit:
    """Expectation-maximisation: y's moments, then loadings, offsets and dispersions by a Newton step each."""

    def __init__(
        self,
        observation: Observation,
        batch: Batch,
        envs: int,
        latents: int,
        observational: list[int],
        escapees: bool,
        prior: escape.Prior,
    ) -> None:
        self.observation, self.batch, self.latents, self.prior = observation, batch, latents, prior
        self.observational = torch.as_tensor(observational)
        self.loadings = self._begin()
        self.rows = torch.bincount(batch.env, minlength=envs).to(batch.dtype)
        self.mean = torch.zeros(envs, latents, dtype=batch.dtype)
        self.cov = torch.eye(latents, dtype=batch.dtype).repeat(envs, 1, 1)
        self.share = torch.full_like(self.rows, escape.FIRST if escapees else 0.0)
        self.share[self.observational] = 0.0
        self.worth = self.rows  # of the rows that did not escape
        self.y: Tensor | None = None
        self.natural: Tensor | None = None  # y of rows if they escaped
        self.values, place = batch.x.unique(return_inverse=True)
        m, p = len(self.values), batch.x.shape[1]
        cell = place + m * torch.arange(p)
        self.histogram = torch.bincount(cell.flatten(), minlength=m * p).to(batch.dtype).view(p, m)  # (feature, value)
        step = max(1, CELLS // (8 * batch.x.shape[1]))
        self.chunks = torch.arange(len(batch)).split(step)

    def _begin(self) -> Tensor:
        """Loadings and dispersions from second factorial moments: log E[x_j x_k / s^2] / (E[x_j / s] E[x_k / s]) is
        the covariance of log rates, on the diagonal plus log(1 + 1 / r_j); offsets from the first."""
        observation, batch = self.observation, self.batch
        rate = observation.mean(torch.zeros_like(batch.x), batch)  # of the batch's own mean
        size = rate.sum(0)
        relative = batch.x / rate.mean(0)
        expected = rate / rate.mean(0)
        ratio = (relative.mT @ relative) / (expected.mT @ expected)
        square = (batch.x * (batch.x - 1)).sum(0) / rate.square().sum(0)
        ratio.diagonal().copy_(square)
        level = batch.x.sum(0) / size  # offsets are those of observational rows
        log = (ratio / (level[:, None] * level[None, :])).clamp(0.1, 10.0).log()
        within = log.clone()
        for _ in range(20):  # principal factors: the diagonal is completed by the others
            value, vector = torch.linalg.eigh(within)
            loadings = vector[:, -self.latents :] * value[-self.latents :].clamp_min(1e-3).sqrt()
            within.diagonal().copy_(loadings.square().sum(1))
        over = (log.diagonal() - within.diagonal()).clamp_min(0.02).expm1()
        self._set_dispersion(1.0 / over)
        return loadings

    def _set_dispersion(self, r: Tensor) -> None:
        r = r.clamp(*DISPERSIONS)
        self.observation.raw_dispersion.copy_(r + torch.log(-torch.expm1(-r)))

    def run(self) -> tuple[CountMoments, dict[str, Tensor]]:
        for _ in range(ROUNDS):
            before = torch.cat([self.mean.flatten(), self.cov.flatten()])
            self._round()
            after = torch.cat([self.mean.flatten(), self.cov.flatten()])
            if float((after - before).abs().max()) < TOLERANCE:
                break
        information = self._round()
        noise = torch.linalg.solve(information @ self.cov, torch.eye(self.latents).to(self.cov))  # N S^-1, up to basis
        count = self.worth / (1 + noise.diagonal(dim1=-2, dim2=-1).mean(-1)).square()
        state = {name: value.clone() for name, value in self.observation.state_dict().items()}
        return CountMoments(count, self.mean, self.cov, self.loadings, self.share), state

    def _round(self) -> Tensor:
        """One round; returns the rows' mean information on y, (env, latent, latent), in its last basis."""
        envs, d = self.mean.shape
        p, groups = self.loadings.shape[0], len(self.observation.offset)
        like = self.batch.x.new_zeros
        first, second, inform = like(envs, d), like(envs, d, d), like(envs, d, d)
        gradient, hessian = like(p, 1 + d), like(p, (1 + d) ** 2)
        up, down = like(groups, p), like(groups, p)
        tilt, curve = like(p), like(p)
        r, locs, naturals = softplus(self.observation.raw_dispersion), [], []
        weights, worth = like(envs), like(envs)
        for rows in self.chunks:
            batch = self.batch.take(rows)
            prior = self.mean[batch.env], self.cov[batch.env]
            start = None if self.y is None else self.y[rows]
            own = row_posterior(self.observation, self.loadings, batch, *prior, start)
            locs.append(own.loc)
            y, cov, changed = own.loc, own.cov, torch.ones_like(own.log_evidence)
            if self.share.any():
                law = torch.zeros_like(y), torch.eye(d).to(cov).expand_as(cov)  # observational rows are white
                begin = None if self.natural is None else self.natural[rows]
                free = row_posterior(self.observation, self.loadings, batch, *law, begin)
                naturals.append(free.loc)
                changed = 1 - escape.probability(own.log_evidence, free.log_evidence, self.share[batch.env])
                precision, apart = torch.linalg.inv(prior[1]), own.loc - prior[0]
                distance = (apart * _dot(precision, apart)).sum(-1) + (precision * own.cov).sum((-2, -1))
                worth.index_add_(0, batch.env, escape.worth(changed, distance, d))
                y, cov = _mixture(own, free, changed)
            weights.index_add_(0, batch.env, changed)
            first.index_add_(0, batch.env, changed[:, None] * own.loc)
            second.index_add_(
                0, batch.env, changed[:, None, None] * (own.loc[:, :, None] * own.loc[:, None, :] + own.cov)
            )
            slope, weight, bend = _derivatives(self.observation, self.loadings, batch, y, r)
            inform.index_add_(0, batch.env, changed[:, None, None] * _information(weight, self.loadings))
            spread = _spread(cov, self.loadings)
            slope = slope + 0.5 * bend * spread  # in expectation over y
            one = torch.cat([torch.ones_like(y[:, :1]), y], -1)
            outer = one[:, :, None] * one[:, None, :]
            outer[:, 1:, 1:] += cov
            gradient += slope.mT @ one
            gradient[:, 1:] -= torch.einsum(
                "jkl,jl->jk", (weight.mT @ cov.flatten(1)).unflatten(1, (d, d)), self.loadings
            )
            hessian += weight.mT @ outer.flatten(1)
            up.index_add_(0, batch.group, slope)
            down.index_add_(0, batch.group, weight)
            eta = y @ self.loadings.mT
            ends = eta + spread.sqrt(), eta - spread.sqrt()  # two-point quadrature of a Gaussian
            for end in ends:
                total = r + self.observation.mean(end, batch)
                share = (batch.x + r) / total
                tilt += 0.5 * ((r / total).log() + 1 - share).sum(0)
                curve += 0.5 * (1 / r - 2 / total + share / total).sum(0)
        self.y = torch.cat(locs)
        self.mean = first / weights[:, None]
        self.cov = second / weights[:, None, None] - self.mean[:, :, None] * self.mean[:, None, :]
        if self.share.any():
            self.natural, self.worth = torch.cat(naturals), worth.clamp_min(2.0)
            self.share = torch.where(self.share > 0, escape.share_of(self.rows - weights, self.rows, self.prior), 0.0)
        if groups > 1:
            self.observation.offset += (up / down.clamp_min(1e-3)).clamp(-0.5, 0.5)
        prior_precision = torch.full((1 + d,), RIDGE).to(gradient)
        prior_precision[0] = 0.0
        gradient[:, 1:] -= RIDGE * self.loadings
        move = _cut(_solve(hessian.unflatten(1, (1 + d, 1 + d)) + torch.diag(prior_precision), gradient), 0.5)
        if groups == 1:
            self.observation.offset += move[:, 0]
        self.loadings = self.loadings + move[:, 1:]
        values = r[:, None] + self.values
        tilt += (self.histogram * (torch.digamma(values) - torch.digamma(r)[:, None])).sum(1)
        curve += (self.histogram * (torch.polygamma(1, values) - torch.polygamma(1, r)[:, None])).sum(1)
        tilt, curve = r * tilt, r * tilt + r.square() * curve  # in log r
        change = torch.where(curve < 0, -tilt / curve.clamp_max(-1e-9), tilt.sign())
        self._set_dispersion(r * change.clamp(-0.5, 0.5).exp())
        return self._whiten(inform / weights[:, None, None])

    def _whiten(self, information: Tensor) -> Tensor:
        """Make y white and centred over the observational rows; returns `information` in that basis."""
        share = self.rows[self.observational] / self.rows[self.observational].sum()
        centre = share @ self.mean[self.observational]
        apart = self.mean[self.observational] - centre
        cov = torch.einsum("e,ekl->kl", share, self.cov[self.observational]) + (share[:, None] * apart).mT @ apart
        root = torch.linalg.cholesky(cov)
        back = torch.linalg.inv(root)
        assert self.y is not None
        self.y = (self.y - centre) @ back.mT
        if self.natural is not None:
            self.natural = (self.natural - centre) @ back.mT
        self.mean = (self.mean - centre) @ back.mT
        self.cov = back @ self.cov @ back.mT
        self.observation.offset += self.loadings @ centre
        self.loadings = self.loadings @ root
        return root.mT @ information @ root
