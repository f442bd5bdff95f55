"""Unmixing of independent sources by their dynamics, and the posterior of both, from rows in the order of time.

Covariances between rows and rows some steps later, of the whole and of its segments, are diagonal in the sources alone
where these are independent and their spectra, or the changes of their variances, differ: an orthogonal matrix that
diagonalises all of them at once (`by_lags`; AMUSE: Tong et al. 1991; SOBI: Belouchrani et al. 1997) is what studies
compare with. From random unmixings (`best`) expectation-maximisation climbs the likelihood in which each source is a
switching autoregression (`exact.switching`): states by the forward-backward algorithm, equations by weighted least
squares, and the row of the unmixing of each source, given all else, in closed form (iterative projection: Ono 2011).
Draws are from a normal approximation about the maximum of the posterior, by its Hessian.

Ono (2011), Stable and fast update rules for independent vector analysis based on auxiliary function technique.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.exact.regression import quadratic
from pyrocrl.exact.switching import Dynamics, Smoothed, coefficients, lagged, log_emission, partials, smoothed

LAGS = (1, 2, 3, 5, 8, 13)  # of covariances that are diagonalised
SEGMENTS = 10
SWEEPS, ROUNDS = 30, 3  # of Jacobi rotations; of equations and unmixing between two passes over the rows
STARTS, SHORT = 3, 25  # random unmixings, and passes from each
PASSES, GAIN = 150, 1e-5  # of expectation-maximisation, until a pass gains less than this a row
NEWTON = 3
AT_ONCE = 64  # sources whose likelihoods are computed together
RATIO = 3.0  # deviation a priori of logarithms of scales
START = (1.0, 2.0)  # mean and deviation a priori of the logarithm of the first rows' deviation
STICK = 10.0  # pseudo-counts a priori of a state's staying
LEAST = 1e-4  # scale of innovations, of a source's deviation


class Sources(NamedTuple):
    """unmixing (latent, latent) of y to z in the units of the largest scale of each source's innovations, and dynamics;
    log (): log-likelihood."""

    unmixing: Tensor
    law: Dynamics
    log: Tensor


def by_lags(y: Tensor, since: Tensor, lags: tuple[int, ...] = LAGS, segments: int = SEGMENTS) -> Tensor:
    """(latent, latent) orthogonal matrix M, M y being sources, of rows y (rows, latent) that are white, in the order of
    time: by covariances of rows `lags` apart, and of as many segments."""
    each = []
    for lag in lags:
        ahead = y[lag:][since[lag:] >= lag]
        if len(ahead) > y.shape[1]:
            product = y[:-lag][since[lag:] >= lag].mT @ ahead / len(ahead)
            each.append((product + product.mT) / 2)
    each += [part.mT @ part / len(part) for part in y.chunk(segments)] if segments else []
    return jointly_diagonal(torch.stack(each)).mT


def jointly_diagonal(matrices: Tensor) -> Tensor:
    """(n, n) orthogonal U for which U^T M U of all symmetric M (count, n, n) are as diagonal as can be, by Jacobi
    rotations (Cardoso & Souloumiac 1996)."""
    m, n = matrices.clone(), matrices.shape[-1]
    out = torch.eye(n, dtype=m.dtype)
    for _ in range(SWEEPS):
        largest = 0.0
        for i in range(n):
            for j in range(i + 1, n):
                h = torch.stack([m[:, i, i] - m[:, j, j], m[:, i, j] + m[:, j, i]])
                g = h @ h.mT
                on, off = g[0, 0] - g[1, 1], 2 * g[0, 1]
                angle = 0.5 * torch.atan2(off, on + torch.hypot(on, off))
                c, s = angle.cos(), angle.sin()
                turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
                m[:, :, [i, j]] = m[:, :, [i, j]] @ turn
                m[:, [i, j]] = turn.mT @ m[:, [i, j]]
                out[:, [i, j]] = out[:, [i, j]] @ turn
                largest = max(largest, abs(float(angle)))
        if largest < 1e-8:
            break
    return out


def best(y: Tensor, since: Tensor, states: int, lags: int, generator: torch.Generator) -> Sources:
    """Most probable unmixing and dynamics of rows y (rows, latent), in the order of time: the best of a few short runs
    from random unmixings, in which a source may settle on states that are none, is carried on."""
    d = y.shape[1]
    turns = [torch.randn(d, d, generator=generator, dtype=y.dtype) for _ in range(STARTS)]
    found = [fitted(y, since, torch.linalg.qr(turn)[0], states, lags, passes=SHORT) for turn in turns]
    start = max(found, key=lambda one: float(one.log))
    return fitted(y, since, start.unmixing, states, lags, start.law)


def fitted(
    y: Tensor,
    since: Tensor,
    unmixing: Tensor,
    states: int,
    lags: int,
    law: Dynamics | None = None,
    passes: int = PASSES,
) -> Sources:
    """Most probable unmixing and dynamics of rows y (rows, latent), in the order of time, near these."""
    unmixing = unmixing.clone()
    rows = len(y)
    table = torch.cat([y[..., None], lagged(y, lags)], -1).reshape(rows, -1)  # (rows, latent and lag)
    table = torch.cat([table, torch.ones_like(table[:, :1])], -1)
    begun = since >= lags
    first = y[~begun].mT @ y[~begun]
    law = _start(y @ unmixing.mT, since, states, lags) if law is None else law
    before = -torch.inf
    for _ in range(passes):
        found = smoothed(log_emission(y @ unmixing.mT, since, law), since, law.transition)
        log = float(found.log.sum() + rows * torch.linalg.slogdet(unmixing).logabsdet)
        if log - before < GAIN * rows:
            break
        before = log
        unmixing, law = _maximised(table, begun, first, found, unmixing, law)
    return _in_order(Sources(unmixing, law, y.new_tensor(log)))


def _start(z: Tensor, since: Tensor, states: int, lags: int) -> Dynamics:
    """Equations of z (rows, latent) alike in all states, whose scales are spread by how innovations vary."""
    begun, before = since >= lags, lagged(z, lags)
    one = torch.cat([before, torch.ones_like(z[..., None])], -1)[begun].movedim(0, 1)  # (latent, rows, lag + 1)
    square = one.mT @ one + 1e-9 * len(z) * torch.eye(lags + 1, dtype=z.dtype)
    slope = torch.linalg.solve(square, one.mT @ z[begun].mT[..., None])[..., 0]
    apart = (z[begun].mT - (one @ slope[..., None])[..., 0]).abs()
    level = torch.linspace(0.9, 0.3, states, dtype=z.dtype) if states > 1 else torch.tensor([0.7], dtype=z.dtype)
    scale = torch.quantile(apart[:, :: max(1, apart.shape[1] // 10_000)], level, dim=1).mT.clamp_min(1e-6)
    stay = torch.eye(states, dtype=z.dtype)
    transition = (0.9 * stay + 0.1 / states).expand(z.shape[1], states, states)
    intercept, coefficient = slope[:, None, -1].expand_as(scale), slope[:, None, :-1].expand(*scale.shape, lags)
    return Dynamics(intercept, coefficient, scale, transition, z.std(0))


def _maximised(
    table: Tensor, begun: Tensor, first: Tensor, found: Smoothed, unmixing: Tensor, law: Dynamics
) -> tuple[Tensor, Dynamics]:
    """Transitions, then equations and rows of the unmixing, given the states' probabilities."""
    rows, (d, states, lags), dtype = len(table), law.coefficient.shape, table.dtype
    share = found.share * begun[:, None, None]
    moment = (
        torch.einsum("ta,tb,tks->ksab", table, table, share)
        if d * lags < 8
        else torch.stack(
            [torch.stack([(table * share[:, k, s, None]).mT @ table for s in range(states)]) for k in range(d)]
        )
    )  # (latent, state, column, column)
    count = share.sum(0)
    prior = STICK * torch.eye(states, dtype=dtype) + 1e-3
    transition = found.pairs + prior
    transition = transition / transition.sum(-1, keepdim=True)
    unmixing, scale, spread = unmixing.clone(), law.scale, law.spread
    ridge = torch.eye(lags + 1, dtype=dtype) * 1e-3
    begins = int((~begun).sum())
    slope = torch.cat([law.coefficient, law.intercept[..., None]], -1)
    for _ in range(ROUNDS):
        lift = torch.zeros(d, lags + 2, table.shape[1], dtype=dtype)  # of the table to z, its lags and 1
        for lag in range(lags + 1):
            lift[:, lag, lag : d * (lags + 1) : lags + 1] = unmixing
        lift[:, -1, -1] = 1.0
        own = lift[:, None] @ moment @ lift[:, None].mT  # (latent, state, lag + 2, lag + 2)
        slope = torch.linalg.solve(own[..., 1:, 1:] + ridge * scale[..., None, None].square(), own[..., 1:, :1])[..., 0]
        slope[..., :-1] = coefficients(partials(slope[..., :-1]))
        rest = own[..., 0, -1] - (slope[..., :-1] * own[..., 1:-1, -1]).sum(-1)
        slope[..., -1] = rest / (own[..., -1, -1] + 1e-3 * scale.square())
        lead = torch.cat([torch.ones_like(slope[..., :1]), -slope], -1)
        square = quadratic(lead, own)
        floor = LEAST * (own[..., 0, 0].sum(1) / count.sum(1).clamp_min(1)).sqrt()
        scale = ((square + floor[:, None].square()) / count.clamp_min(1.0)).sqrt().clamp_min(floor[:, None])
        start = quadratic(unmixing, first)
        spread = ((start + (own[..., 0, 0].sum(1) / count.sum(1).clamp_min(1))) / (begins + 1)).sqrt()
        for k in range(d):
            apart = torch.zeros(states, d, table.shape[1], dtype=dtype)
            for lag in range(lags + 1):
                apart[:, range(d), range(lag, d * (lags + 1), lags + 1)] = lead[k, :, lag, None]
            each = torch.cat([apart, torch.zeros_like(apart[:, :1])], 1)
            each[:, -1, -1] = 1.0
            part = each @ moment[k] @ each.mT  # (state, latent + 1, latent + 1): the last is 1
            centred = part[:, :-1, :-1] - part[:, :-1, -1:] * part[:, -1:, :-1] / part[:, -1:, -1:].clamp_min(1e-9)
            q = (centred / scale[k].square()[:, None, None]).sum(0) + first / spread[k].square()
            q = q / rows + 1e-12 * torch.eye(d, dtype=dtype) * q.diagonal().mean() / rows
            row = torch.linalg.solve(unmixing @ q, torch.eye(d, dtype=dtype)[k])
            unmixing[k] = row / (row @ q @ row).sqrt()
            mean = (part[:, :-1, -1] @ unmixing[k]) / part[:, -1, -1].clamp_min(1e-9)
            slope[k, :, -1] = mean
    return _scaled(unmixing, Dynamics(slope[..., -1], slope[..., :-1], scale, transition, spread))


def _scaled(unmixing: Tensor, law: Dynamics) -> tuple[Tensor, Dynamics]:
    """The same, each source in units of its first state's scale."""
    unit = law.scale[:, 0]
    each = {"intercept": law.intercept / unit[:, None], "scale": law.scale / unit[:, None], "spread": law.spread / unit}
    return unmixing / unit[:, None], law._replace(**each)


def _in_order(found: Sources) -> Sources:
    """The same, states by their scales, the largest first."""
    order = found.law.scale.argsort(-1, descending=True)
    law = found.law

    def turned(values: Tensor) -> Tensor:
        return torch.stack([value[at] for value, at in zip(values, order, strict=True)])

    transition = torch.stack([t[at][:, at] for t, at in zip(law.transition, order, strict=True)])
    law = Dynamics(turned(law.intercept), turned(law.coefficient), turned(law.scale), transition, law.spread)
    return Sources(*_scaled(found.unmixing, law), found.log)


class SourceDraws(NamedTuple):
    """Draws of the posterior, sites of a story by name, (draw, ...) each, and the most probable `unmixing`."""

    unmixing: Tensor
    sites: dict[str, Tensor]


def draws(found: Sources, y: Tensor, since: Tensor, count: int, generator: torch.Generator) -> SourceDraws:
    """Draws about the maximum of the posterior near `found`, from rows y (rows, latent) in the order of time."""
    law = _Posterior(found, y, since)
    theta = law.start
    curve, axes = torch.linalg.eigh(law.curvature(theta))
    for _ in range(NEWTON):
        slope, now = law.gradient(theta)
        step = (axes @ ((axes.mT @ slope.reshape(-1)) / curve.clamp_min(1.0))).reshape(theta.shape)
        if law.gradient(theta + step)[1] < now - 1.0:  # beyond what a prior could cost
            break
        theta = theta + step
    curve, axes = torch.linalg.eigh(law.curvature(theta))
    noise = torch.randn(count, theta.numel(), generator=generator, dtype=y.dtype)
    drawn = theta + (noise * curve.clamp_min(1.0).rsqrt() @ axes.mT).reshape(count, *theta.shape)
    sites = law.sites(drawn.reshape(-1, theta.shape[1]))
    each = {name: value.reshape(count, len(theta), *value.shape[1:]) for name, value in sites.items()}
    return SourceDraws(law.unmixing(theta), each | {"mixing": torch.linalg.inv(law.unmixing(drawn))})


class _Posterior:
    """The log-posterior of the unmixing V and of dynamics, in numbers theta (latent, number) of each source.

    The log-likelihood is rows log |det V| and a sum over sources, each of its own row of V and its own dynamics: so
    derivatives are those of single sources, many of which, moved in different ways, are computed at once. V moves by
    (1 + E) V, E in units of the sources' deviations. What the prior of the mixing says beside the rows is left out.
    """

    def __init__(self, found: Sources, y: Tensor, since: Tensor) -> None:
        self.since, self.base, law = since, found.unmixing, found.law
        self.latents, self.states, self.lags = law.coefficient.shape
        self.z = y @ found.unmixing.mT
        self.unit = self.z.std(0)
        states = self.states
        self.sizes = (self.latents, states, states * self.lags, states - 1, states * (states - 1), 1)
        partial = partials(law.coefficient).atanh().flatten(1)
        each = (0 * found.unmixing, law.intercept, partial, law.scale[:, 1:].log(), _changes(law.transition))
        self.start = torch.cat([*each, law.spread.log()[:, None]], 1)

    def sites(self, theta: Tensor) -> dict[str, Tensor]:
        """Sites of a story, of sources with these numbers."""
        _, intercept, partial, ratio, change, spread = theta.split(self.sizes, 1)
        out = {"intercept": intercept, "partial": partial.reshape(-1, self.states, self.lags).tanh()}
        return out | {
            "ratio": ratio.exp(),
            "transition": _transition(change, self.states),
            "spread": spread[:, 0].exp(),
        }

    def unmixing(self, theta: Tensor) -> Tensor:
        """(..., latent, latent)"""
        turn = theta[..., : self.latents] * self.unit[:, None] / self.unit
        return self.base + turn @ self.base

    def expected(self, theta: Tensor, source: Tensor, given: Smoothed | None = None) -> tuple[Tensor, Smoothed]:
        """(source,) log-posterior of sources with these numbers, as expected given the states' probabilities at
        `given`, or else their own, which come along. source: (source,) which of the latents each is."""
        own = self.sites(theta)
        scale = torch.cat([torch.ones_like(own["spread"][:, None]), own["ratio"]], 1)
        law = Dynamics(own["intercept"], coefficients(own["partial"]), scale, own["transition"], own["spread"])
        moved = (self.z / self.unit) @ theta[:, : self.latents].mT * self.unit[source]
        emission = log_emission(self.z[:, source] + moved, self.since, law)
        if given is None:
            with torch.no_grad():
                given = smoothed(emission, self.since, law.transition)
        log = torch.einsum("tks,tks->k", given.share, emission)
        stay = given.pairs + 2.0 + STICK * torch.eye(self.states, dtype=theta.dtype)
        log = log + (stay * law.transition.log()).sum((-2, -1)) - 0.5 * law.intercept.square().sum(1)
        log = log + torch.log1p(-own["partial"].square().clamp_max(1 - 1e-15)).sum((-2, -1))
        log = log - 0.5 * (own["ratio"].log() / RATIO).square().sum(1)
        return log - 0.5 * ((law.spread.log() - START[0]) / START[1]).square(), given

    def _slopes(self, theta: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Of each source, but for the volume: gradients of the log-posterior (Fisher's identity), log-likelihood."""
        each = []
        for part, own in zip(theta.split(AT_ONCE), source.split(AT_ONCE), strict=True):
            leaf = part.detach().requires_grad_()
            value, given = self.expected(leaf, own)
            each.append((torch.autograd.grad(value.sum(), leaf)[0], given.log))
        return torch.cat([slope for slope, _ in each]), torch.cat([log for _, log in each])

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(latent, number) of the log-posterior, and log-likelihood ()."""
        slope, log = self._slopes(theta, torch.arange(self.latents))
        turn = torch.eye(self.latents, dtype=theta.dtype) + theta[:, : self.latents]
        slope[:, : self.latents] += len(self.z) * torch.linalg.inv(turn).mT
        return slope, log.sum() + len(self.z) * torch.linalg.slogdet(turn).logabsdet

    def curvature(self, theta: Tensor) -> Tensor:
        """Minus the Hessian, by differences of gradients over a tenth of what complete data would leave open."""
        d, many = theta.shape
        source, leaf = torch.arange(d), theta.detach().requires_grad_()
        value, _ = self.expected(leaf, source)
        slope = torch.autograd.grad(value.sum(), leaf, create_graph=True)[0]
        least = [torch.autograd.grad(slope[:, j].sum(), leaf, retain_graph=True)[0][:, j] for j in range(many)]
        step = 0.1 / (-torch.stack(least, 1)).clamp_min(1.0).sqrt()  # (latent, number)
        move = torch.diag_embed(step)  # (latent, number that moves, number)
        both = torch.stack([theta[:, None] + move, theta[:, None] - move])
        slopes = self._slopes(both.reshape(-1, many), source[None, :, None].expand(2, d, many).reshape(-1))[0]
        high, low = slopes.reshape(2, d, many, many)
        hessian = torch.zeros(d, many, d, many, dtype=theta.dtype)
        hessian[range(d), :, range(d)] = (high - low) / (2 * step[..., None])
        inverse = torch.linalg.inv(torch.eye(d, dtype=theta.dtype) + theta[:, :d])
        hessian[:, :d, :, :d] -= len(self.z) * torch.einsum("jk,li->ijkl", inverse, inverse)
        flat = hessian.reshape(d * many, d * many)
        return -(flat + flat.mT) / 2


def _transition(change: Tensor, states: int) -> Tensor:
    """(source, state, state) from logits of all changes (source, state * (state - 1)), of staying 0."""
    logits = torch.zeros(len(change), states * states, dtype=change.dtype)
    off = ~torch.eye(states, dtype=torch.bool).reshape(-1)
    return logits.masked_scatter(off.expand_as(logits), change).reshape(-1, states, states).softmax(-1)


def _changes(transition: Tensor) -> Tensor:
    """The inverse of `_transition`."""
    off = ~torch.eye(transition.shape[-1], dtype=torch.bool)
    return (transition.log() - transition.diagonal(dim1=-2, dim2=-1).log()[..., None])[:, off]
