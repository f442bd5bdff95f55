"""Switching autoregressive sources: all sequences of their states summed out exactly, by scans over time.

    state_t ~ transition[state_{t-1}],  uniform in a series' first row
    z_t ~ N(intercept_s + sum_l coefficient_sl z_{t-l}, scale_s^2),  s = state_t;  N(0, spread^2) in the first rows

The probability of rows up to t is a product of small matrices, one for each row, and so is every other sum over
states, draw of states, or run of z. Products of all first t are found in about 2 log2(t) rounds, each over many rows at
once (Blelloch 1990). A series' first row has a matrix of equal rows: what was before is forgotten there, and series
of any lengths stand in one sequence of rows.

Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the business cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

Parts = tuple[Tensor, ...]
SHORT = 1000  # rows
SAME = 10  # rounds of weighted least squares


class Timeline(NamedTuple):
    """order (rows,): positions of rows in the order of time, one series after another; since (rows,): how many rows of
    its series are right before each row, in that order."""

    order: Tensor
    since: Tensor

    def lay(self, values: Tensor) -> Tensor:
        """Values of rows, in the order of time."""
        return values[self.order]

    def back(self, values: Tensor) -> Tensor:
        """Values in the order of time, in that of rows."""
        return torch.zeros_like(values).index_copy(0, self.order, values)


class Dynamics(NamedTuple):
    """Of each source: intercept and scale (latent, state), coefficient (latent, state, lag), transition (latent, state
    before, state), spread (latent,)."""

    intercept: Tensor
    coefficient: Tensor
    scale: Tensor
    transition: Tensor
    spread: Tensor


class Filtered(NamedTuple):
    """share (rows, latent, state): of each state given the rows up to this one; log (rows, latent): log-density of a
    row given those before it; rows in the order of time."""

    share: Tensor
    log: Tensor


def prefix(parts: Parts, combine: Callable[[Parts, Parts], Parts]) -> Parts:
    """(rows, ...) of every row the combination of all rows up to it, the earlier one on the left."""
    rows = len(parts[0])
    if rows <= SHORT:  # all rows in each of log2(rows) rounds (Hillis & Steele 1986): more products, fewer calls
        shift = 1
        while shift < rows:
            later = combine(tuple(p[:-shift] for p in parts), tuple(p[shift:] for p in parts))
            parts = tuple(torch.cat([p[:shift], new]) for p, new in zip(parts, later, strict=True))
            shift *= 2
        return parts
    even, odd = tuple(p[0::2] for p in parts), tuple(p[1::2] for p in parts)
    half = len(odd[0])
    seconds = prefix(combine(tuple(p[:half] for p in even), odd), combine)  # up to rows 1, 3, 5, ...
    later = tuple(p[1:] for p in even)  # rows 2, 4, ...
    firsts = combine(tuple(p[: len(later[0])] for p in seconds), later)
    out = []
    for own, first, second in zip(even, firsts, seconds, strict=True):
        first = torch.cat([own[:1], first])
        both = torch.stack([first[:half], second], 1).flatten(0, 1)
        out.append(torch.cat([both, first[half:]]))
    return tuple(out)


def lagged(z: Tensor, lags: int) -> Tensor:
    """(rows, ..., lag) values of rows before, rows in the order of time; 0 where there are none."""
    each = [torch.cat([0 * z[:lag], z[:-lag]])[: len(z)] for lag in range(1, lags + 1)]
    return torch.stack(each, -1)


def log_emission(z: Tensor, since: Tensor, law: Dynamics) -> Tensor:
    """(rows, latent, state) log-density of z (rows, latent) given the rows before and its state."""
    lags = law.coefficient.shape[-1]
    loc = law.intercept + torch.einsum("tkl,ksl->tks", lagged(z, lags), law.coefficient)
    begun = (since >= lags)[:, None, None]
    scale = torch.where(begun, law.scale, law.spread[:, None])
    return log_normal(z[..., None] - torch.where(begun, loc, 0.0), scale)


def log_normal(value: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * (value / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def matrices(emission: Tensor, since: Tensor, transition: Tensor) -> Parts:
    """(rows, latent, state, state) of each row the probabilities of a next state and of its emission, in units of
    exp(the second (rows, latent))."""
    most = emission.amax(-1)
    start = torch.full_like(transition, 1 / transition.shape[-1])
    step = torch.where((since == 0)[:, None, None, None], start, transition)
    return step * (emission - most[..., None]).exp()[..., None, :], most


def _product(one: Parts, other: Parts) -> Parts:
    out = one[0] @ other[0]
    most = out.amax((-2, -1))
    return out / most[..., None, None], one[1] + other[1] + most.log()


def filtered(emission: Tensor, since: Tensor, transition: Tensor) -> Filtered:
    """The forward algorithm, of all rows at once."""
    product, log = prefix(matrices(emission, since, transition), _product)
    weight = product[..., 0, :]
    total = weight.sum(-1)
    log = log + total.log()
    return Filtered(weight / total[..., None], torch.cat([log[:1], log[1:] - log[:-1]]))


class Smoothed(NamedTuple):
    """share (rows, latent, state): of each state given all rows; pairs (latent, state, state): expected transitions;
    log (latent,): log-likelihood."""

    share: Tensor
    pairs: Tensor
    log: Tensor


def smoothed(emission: Tensor, since: Tensor, transition: Tensor) -> Smoothed:
    """The forward-backward algorithm, of all rows at once."""
    each = matrices(emission, since, transition)
    found = filtered(emission, since, transition)
    reverse = prefix(tuple(p.flip(0) for p in each), lambda later, earlier: _product(earlier, later))
    after = reverse[0].flip(0).sum(-1)  # (rows, latent, state): of rows from this one on, given the state before
    after = torch.cat([after[1:], torch.ones_like(after[:1])])
    share = found.share * after
    pairs = found.share[:-1, :, :, None] * each[0][1:] * after[1:, :, None]
    pairs = pairs / pairs.sum((-2, -1), keepdim=True)
    going = (since[1:] > 0).to(pairs)
    return Smoothed(share / share.sum(-1, keepdim=True), torch.einsum("t,tkij->kij", going, pairs), found.log.sum(0))


def below(z: Tensor, since: Tensor, law: Dynamics) -> Tensor:
    """(rows after the first, latent) distribution function of each row's z given the rows before: uniform, and
    independent of each other, where the law holds; rows in the order of time."""
    lags = law.coefficient.shape[-1]
    share = filtered(log_emission(z, since, law), since, law.transition).share
    loc = law.intercept + torch.einsum("tkl,ksl->tks", lagged(z, lags), law.coefficient)
    ahead = torch.einsum("tki,kij->tkj", share[:-1], law.transition)
    out = (ahead * torch.special.ndtr((z[1:, :, None] - loc[1:]) / law.scale)).sum(-1)
    return out[since[1:] >= lags]


def evidence_apart(z: Tensor, since: Tensor, law: Dynamics) -> tuple[Tensor, int]:
    """(latent, latent) log-likelihood of each two sources z (rows, latent), in the order of time, less that of what any
    two combinations of both would have as well; and how many more numbers the former has.

    The latter are Gaussian autoregressions with the same coefficients, and any covariance of their innovations: a
    linear map of the pair then changes that covariance alone. On the diagonal 0.
    """
    latents, states, lags = law.coefficient.shape
    begun = since >= lags
    own = filtered(log_emission(z, since, law), since, law.transition).log[begun].sum(0)
    before = lagged(z, lags)[begun]  # (rows, latent, lag)
    now, count = z[begun] - z[begun].mean(0), int(begun.sum())
    before = before - before.mean(0)
    out = torch.zeros(latents, latents, dtype=z.dtype)
    for j in range(latents):
        for k in range(j):
            y, x = now[:, [j, k]], before[:, [j, k]]
            cov = y.mT @ y / count
            for _ in range(SAME):
                root = torch.linalg.inv(torch.linalg.cholesky(cov))
                white, lags_white = y @ root.mT, torch.einsum("tkl,mk->tml", x, root).flatten(0, 1)
                slope = torch.linalg.solve(lags_white.mT @ lags_white, lags_white.mT @ white.reshape(-1))
                left = y - x @ slope
                cov = left.mT @ left / count
            same = -0.5 * count * (torch.logdet(cov) + 2 * (1 + math.log(2 * math.pi)))
            out[j, k] = out[k, j] = own[j] + own[k] - same
    # of two sources and their mixing, against slopes, a covariance and two means
    numbers = 2 * (states * (lags + 2) - 1 + states * (states - 1)) + 4 - (lags + 5)
    return out, numbers


# -- laws of a story -------------------------------------------------------------------------------------------


class _OfRows(TorchDistribution):
    """A law of rows that depend on the rows before them, or after; its log-density is told row by row."""

    arg_constraints: dict = {}

    def __init__(self, line: Timeline, event: tuple[int, ...]) -> None:
        self.line = line
        super().__init__(torch.Size((len(line.order),)), torch.Size(event), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return self


class StateChains(_OfRows):
    """States (rows, latent), each a Markov chain along each series: event (latent,)."""

    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, transition: Tensor, line: Timeline) -> None:
        self.transition = transition
        super().__init__(line, (len(transition),))

    def _steps(self) -> Tensor:
        """(rows, latent, state before, state) log-probabilities, in the order of time."""
        start = torch.full_like(self.transition, 1 / self.transition.shape[-1])
        return torch.where((self.line.since == 0)[:, None, None, None], start, self.transition).log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.line.back(_run(self._steps()))

    def log_prob(self, value: Tensor) -> Tensor:
        own = self.line.lay(value).long()
        before = torch.cat([own[:1], own[:-1]])
        return self.line.back(_at(self._steps(), before, own))


class StateChainsGiven(_OfRows):
    """States (rows, latent) given z: by forward filtering and backward sampling (Carter & Kohn 1994)."""

    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, share: Tensor, transition: Tensor, line: Timeline) -> None:
        """share: as `filtered`."""
        self.share, self.transition = share, transition
        super().__init__(line, (len(transition),))

    def _steps(self) -> Tensor:
        """(rows, latent, next state, state) log-probabilities, in the order of time."""
        last = torch.cat([self.line.since[1:] == 0, torch.ones_like(self.line.since[:1], dtype=torch.bool)])
        step = torch.where(last[:, None, None, None], torch.ones_like(self.transition), self.transition.mT)
        return (self.share[:, :, None] * step).clamp_min(1e-300).log().log_softmax(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.line.back(_run(self._steps().flip(0)).flip(0))

    def log_prob(self, value: Tensor) -> Tensor:
        own = self.line.lay(value).long()
        after = torch.cat([own[1:], own[-1:]])
        return self.line.back(_at(self._steps(), after, own))


def _at(steps: Tensor, given: Tensor, own: Tensor) -> Tensor:
    """(rows,) entries of steps (rows, latent, given, own), summed over latents."""
    row = steps.gather(-2, given[..., None, None].expand(*given.shape, 1, steps.shape[-1]))[..., 0, :]
    return row.gather(-1, own[..., None])[..., 0].sum(-1)


def _run(steps: Tensor) -> Tensor:
    """(rows, latent) a run of chains: of every row a map of each state to the next is drawn, then composed."""
    chance = torch.rand_like(steps).clamp_min(1e-30)
    maps = (steps - (-chance.log()).log()).argmax(-1)  # (rows, latent, state)
    return prefix((maps,), lambda one, other: (other[0].gather(-1, one[0]),))[0][..., 0].to(steps)


class Autoregression(_OfRows):
    """One source (rows,) given its states: loc and scale of each row, coefficients (rows, lag) of those before."""

    support = constraints.real

    def __init__(self, states: Tensor, line: Timeline, law: Dynamics, k: int) -> None:
        """states: (rows,) of source k."""
        state = line.lay(states).long()
        self.begun = line.since >= law.coefficient.shape[-1]
        self.coefficient = torch.where(self.begun[:, None], law.coefficient[k][state], 0.0)
        self.loc = torch.where(self.begun, law.intercept[k][state], 0.0)
        self.scale = torch.where(self.begun, law.scale[k][state], law.spread[k])
        super().__init__(line, ())

    @property
    def mean(self) -> Tensor:
        return self.line.back(self._run(self.loc))

    def _run(self, drive: Tensor) -> Tensor:
        """Values (rows,) that the equation, driven by these, runs through, in the order of time."""
        lags = self.coefficient.shape[-1]
        move = torch.eye(lags, dtype=drive.dtype, device=drive.device).roll(1, 0).repeat(len(drive), 1, 1)
        move[:, 0] = self.coefficient
        add = torch.nn.functional.pad(drive[:, None], (0, lags - 1))[..., None]
        return prefix((move, add), lambda a, b: (b[0] @ a[0], b[0] @ a[1] + b[1]))[1][:, 0, 0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.line.back(self._run(self.loc + self.scale * torch.randn_like(self.loc)))

    def log_prob(self, value: Tensor) -> Tensor:
        z = self.line.lay(value)
        loc = self.loc + (self.coefficient * lagged(z, self.coefficient.shape[-1])).sum(-1)
        return self.line.back(log_normal(z - loc, self.scale))


# -- partial autocorrelations ----------------------------------------------------------------------------------


def coefficients(partial: Tensor) -> Tensor:
    """(..., lag) of an autoregression with these partial autocorrelations, each in (-1, 1): a stationary one.

    Barndorff-Nielsen & Schou (1973), On the parametrization of autoregressive models by partial autocorrelations."""
    out = partial[..., :1]
    for lag in range(1, partial.shape[-1]):
        own = partial[..., lag : lag + 1]
        out = torch.cat([out - own * out.flip(-1), own], -1)
    return out


def partials(coefficient: Tensor, most: float = 1 - 1e-6) -> Tensor:
    """The inverse of `coefficients`; those of an equation that is not stationary are drawn in to `most`."""
    out = []
    for _ in range(coefficient.shape[-1]):
        own = coefficient[..., -1:].clamp(-most, most)
        out.append(own)
        rest = coefficient[..., :-1]
        coefficient = (rest + own * rest.flip(-1)) / (1 - own.square())
    return torch.cat(out[::-1], -1)
