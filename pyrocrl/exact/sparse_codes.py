"""Posterior of a row's sparse codes under a dictionary: which directions fire, and how strongly.

    x ~ N(sum_k z_k w_k, diag(variance)),  z_k ~ rate_k N(1, spread_k^2) where positive, 0 otherwise

Given the support, the latents that fire, magnitudes are jointly normal but for their signs, and the support's evidence
is closed. From that of one support follow, by rank one, those of all that leave out one latent of it, have one more, or
both. A search goes to the best of these until none is better, and the posterior is taken to be over those that it saw
last (a truncated posterior: Sheikh, Shelton & Luecke 2014; the moves are those of Bayesian matching pursuit,
Schniter, Potter & Ziniel 2008, and exchanges). That magnitudes are positive is exact of the one that comes, and of
others as if each were alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import pad
from torch.special import ndtr, ndtri

from pyrocrl.dists import log_below

NEVER = -1e30  # log weight of a support that is none
BETTER = 1e-3  # nats that a move has to gain
EXCHANGES = 2  # moves of `steady` after those that only add
FIRST = 6  # supports of a row whose means are averaged
EDGE = 1e-6  # of probabilities of the normal law, of both sides


@dataclass(frozen=True)
class Near:
    """Supports near one of each row: (row, place + 1, latent + 1), without the latent of that place (the last: with
    all of them) and with that latent (the last: with no other); or with all of them alone (row, 1, latent + 1).

    places: (row, place) latents of the support, their number where a place is empty. log_weight: log p(x, support), up
    to a constant of the row; `NEVER` of those that stand elsewhere.
    """

    places: Tensor
    log_weight: Tensor

    @property
    def flat(self) -> Tensor:
        """(row, support) log weights."""
        return self.log_weight.flatten(1)

    def moved(self, which: Tensor) -> Tensor:
        """(row, place) latents of the supports `which` (row,), places in `flat`; or (row, one, place) of (row, one)."""
        width, count = self.places.shape[1], self.log_weight.shape[2] - 1
        place, latent = which // (count + 1) + width + 1 - self.log_weight.shape[1], which % (count + 1)
        free, places = (self.places == count).to(torch.uint8).argmax(1), pad(self.places, (0, 1))
        if which.dim() == 2:
            free, places = free[:, None], places[:, None].expand(-1, which.shape[1], -1)
        place = torch.where(place < width, place, torch.where(latent < count, free, width))
        # a support as it is changes the place that follows the last
        return places.scatter(-1, place[..., None], latent[..., None])[..., :width]

    def firing(self) -> Tensor:
        """(row, latent) probabilities that a latent is in the support."""
        weight = self.flat.softmax(1).view_as(self.log_weight)
        stays = 1 - weight[:, :-1].sum(2)
        return weight.sum(1).scatter(1, self.places, stays)[:, :-1]


class Told(NamedTuple):
    """What rows tell of latents, the last of which is none: scores (row, latent + 1), the slopes of log p(x | z) at 0;
    less its second derivatives, those of the latents of a support with all (row, place, latent + 1), and of each with
    itself, own (latent + 1,) or (row, latent + 1)."""

    scores: Tensor
    across: Tensor
    own: Tensor


class Codes:
    """w: (feature, latent) directions, of the length that they have at magnitude 1; variance: (feature,); spread, rate:
    (latent,)."""

    def __init__(self, w: Tensor, variance: Tensor, spread: Tensor, rate: Tensor) -> None:
        self.count = w.shape[1]
        self.scaled = pad(w / variance[:, None], (0, 1))  # (feature, latent + 1): the last is none, and changes nothing
        self.gram = pad(w, (0, 1)).mT @ self.scaled
        self.prior = pad(spread.square().reciprocal(), (0, 1), value=1.0)  # precision of magnitudes
        self.pull = pad(spread.square().reciprocal(), (0, 1))  # times their mode
        odds = rate.log() - (-rate).log1p()
        law = -spread.log() - 0.5 * spread.square().reciprocal() - log_below(spread.reciprocal())
        self.offset = pad(odds + law, (0, 1), value=math.log(2.0))

    def near(self, x: Any, places: Tensor, more: bool = False) -> Near:
        """x: (row, feature), about the center; places: (row, place), none twice; more: those that leave out
        no latent alone."""
        return self._near(self.told(x, places), places, more)

    def _near(self, told: Told, places: Tensor, more: bool) -> Near:
        scores, of, own = told
        mean, cov = self._given(scores, of.gather(2, places[:, None].expand(-1, places.shape[1], -1)), places)
        down, var = cov @ of, cov.diagonal(dim1=1, dim2=2)
        ratio = mean / var
        # what the support leaves of each latent's score, and of its precision: without each place, then with all
        left = scores - (mean[:, None] @ of)[:, 0]
        rest = own - (down * of).sum(1)
        left, rest = left[:, None], rest[:, None]
        if not more:
            left = torch.cat([left + ratio[:, :, None] * down, left], 1)
            rest = torch.cat([rest + down.square() / var[:, :, None], rest], 1)
        precision = rest.clamp_min(0.0) + self.prior
        z = (left + self.pull) * precision.rsqrt()
        weight = self.offset + 0.5 * (z.square() - precision.log()) + log_below(z)
        empty = places == self.count
        if not more:
            lost = 0.5 * (mean * ratio + var.log()) + log_below(mean * var.rsqrt()) + self.offset[places]
            weight = weight - pad(lost, (0, 1))[:, :, None]
            weight = weight.masked_fill(pad(empty, (0, 1))[:, :, None], NEVER)
        held = torch.zeros_like(scores, dtype=torch.bool).scatter(1, places, True)
        held[:, -1] = False
        weight = weight.masked_fill(held[:, None], NEVER)
        full = ~empty.any(1)  # there is no place for one more
        others = torch.arange(self.count + 1, device=places.device) < self.count
        weight[:, -1] = weight[:, -1].masked_fill(full[:, None] & others, NEVER)
        return Near(places, weight)

    def told(self, x: Any, places: Tensor) -> Told:
        """What rows tell of latents, about these supports where that hangs on them."""
        return Told(x @ self.scaled, self.gram[places], self.gram.diagonal())

    def given(self, x: Any, places: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (row, place) and covariance (row, place, place) of magnitudes of these latents, signs left out."""
        return self._given(x @ self.scaled, self.gram[places[:, :, None], places[:, None]], places)

    def _given(self, scores: Tensor, within: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        cov = torch.cholesky_inverse(torch.linalg.cholesky(within + torch.diag_embed(self.prior[places])))
        right = scores.gather(1, places) + self.pull[places]
        return (cov @ right[:, :, None])[:, :, 0], cov

    def evidence(self, x: Any, places: Tensor) -> Tensor:
        """(row,) log p(x, support) of these supports, up to a constant of the row, signs taken as in `near`."""
        mean, cov = self.given(x, places)
        var = cov.diagonal(dim1=1, dim2=2)
        right = (x @ self.scaled).gather(1, places) + self.pull[places]
        each = self.offset[places] + log_below(mean * var.rsqrt())
        return each.sum(1) + 0.5 * (right * mean).sum(1) + 0.5 * torch.logdet(cov)

    def search(self, x: Any, most: int, start: Tensor | None = None, without: Tensor | None = None) -> Near:
        """From `start` (row, place), or no latent, to supports of at most `most` that no move betters.

        without: (row,) a latent that is not to be in the row's support.
        """
        places = torch.full((len(x), 1), self.count, device=x.device) if start is None else start
        live = torch.arange(len(x), device=x.device)
        for _ in range(most):  # at first none is left out, which is faster
            places = self._roomy(places, most)
            near = self._without(self.near(x[live], places[live], True), without, live)
            best, which = near.flat.max(1)
            go = best > near.flat[:, -1] + BETTER
            live = live[go]
            if not len(live):
                break
            places[live] = near.moved(which)[go]
        places = self._roomy(self._roomy(places, most), most, 2)
        live, weight = torch.arange(len(x), device=x.device), None
        for left in reversed(range(2 * most)):
            near = self._without(self.near(x[live], places[live]), without, live)
            weight = near.log_weight if weight is None else weight.index_copy(0, live, near.log_weight)
            best, which = near.flat.max(1)
            go = best > near.flat[:, -1] + BETTER
            live = live[go]
            if not left or not len(live):
                break
            places[live] = near.moved(which)[go]
        assert weight is not None
        return Near(places, weight)

    @staticmethod
    def _without(near: Near, without: Tensor | None, live: Tensor) -> Near:
        if without is not None:
            wide = near.log_weight.shape[1]
            near.log_weight.scatter_(2, without[live, None, None].expand(-1, wide, 1), NEVER)
        return near

    def steady(self, x: Any, most: int) -> Near:
        """`search` in as many moves as it mostly needs, made whether or not they are: nothing waits for a value."""
        places = torch.full((len(x), most), self.count, device=x.device)
        for more in [True] * most + [False] * EXCHANGES:
            near = self.near(x, places, more)
            best, which = near.flat.max(1)
            places = torch.where((best > near.flat[:, -1] + BETTER)[:, None], near.moved(which), places)
        return self.near(x, places.sort(1).values)

    def _roomy(self, places: Tensor, most: int, room: int = 1) -> Tensor:
        """The same with `room` empty places in every row, up to `most` places, and no more that all rows have empty."""
        places = places.sort(1).values  # empty ones last
        width = min(most, int((places < self.count).sum(1).max()) + room if len(places) else 1)
        return pad(places, (0, max(0, width - places.shape[1])), value=self.count)[:, :width]

    def mean(self, x: Any, near: Near) -> Tensor:
        """(row, latent) posterior means of z."""
        weight, which = near.flat.softmax(1).topk(min(FIRST, near.flat.shape[1]), 1)
        weight = weight / weight.sum(1, keepdim=True)
        parts = zip(weight.T, which.T, strict=True)
        out: Tensor = sum(share[:, None] * self.mean_given(x, near.moved(one)) for share, one in parts)
        return out

    def mean_given(self, x: Any, places: Tensor) -> Tensor:
        """(row, latent) means of z given these supports, each magnitude positive as if it were alone."""
        mean, cov = self.given(x, places)
        sd = cov.diagonal(dim1=1, dim2=2).sqrt()
        z = mean / sd
        positive = mean + sd * (-0.5 * z.square() - 0.5 * math.log(2 * math.pi) - log_below(z)).exp()
        return self._placed(places, positive.clamp_min(EDGE))

    def _placed(self, places: Tensor, values: Tensor) -> Tensor:
        """(row, latent) these values (row, place) of latents, and 0."""
        return torch.zeros_like(values[:, :1]).expand(-1, self.count + 1).scatter(1, places, values)[:, :-1]

    def draw(self, x: Any, near: Near, gumbel: Tensor, uniform: Tensor) -> Tensor:
        """(row, latent) z: its support by `gumbel`, of the shape of `near.flat`, magnitudes by `uniform` (row, place),
        one after the other, each positive and given those before."""
        places = near.moved((near.flat + gumbel).argmax(1))
        mean, cov = self.given(x, places)
        tril, noise, z = torch.linalg.cholesky(cov), torch.zeros_like(mean), []
        for j in range(places.shape[1]):
            loc, sd = mean[:, j] + (tril[:, j] * noise).sum(1), tril[:, j, j]
            below = ndtr(-loc / sd)
            noise[:, j] = ndtri((below + (1 - below) * uniform[:, j]).clamp(EDGE, 1 - EDGE))
            z.append((loc + sd * noise[:, j]).clamp_min(EDGE))
        return self._placed(places, torch.stack(z, 1))

    def log_prob(self, x: Any, near: Near, z: Tensor) -> Tensor:
        """(row,) log density of `draw` at z (row, latent); -inf of supports that are not near."""
        width = near.places.shape[1]
        fires = pad(z > 0, (0, 1))
        gone = (near.places < self.count) & ~fires.gather(1, near.places)
        come = fires & ~torch.zeros_like(fires).scatter(1, near.places, True)
        place = torch.where(gone.any(1), gone.to(torch.uint8).argmax(1), width)
        latent = torch.where(come.any(1), come.to(torch.uint8).argmax(1), self.count)
        which = place * (self.count + 1) + latent
        density = near.flat.log_softmax(1).gather(1, which[:, None])[:, 0]
        density = density.masked_fill((gone.sum(1) > 1) | (come.sum(1) > 1), -math.inf)
        places = near.moved(which)
        mean, cov = self.given(x, places)
        tril = torch.linalg.cholesky(cov)
        value = pad(z, (0, 1)).gather(1, places)
        noise = torch.linalg.solve_triangular(tril, (value - mean)[:, :, None], upper=False)[:, :, 0]
        sd = tril.diagonal(dim1=1, dim2=2)
        loc = value - sd * noise
        each = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) - sd.log() - log_below(loc / sd)
        return density + each.masked_fill(places == self.count, 0.0).sum(1)


class Drawn(TorchDistribution):
    """The posterior of z (row, latent) given x (row, feature), about the center, over supports near the best one found,
    of at most `most` latents. It carries no gradient."""

    arg_constraints: dict = {}

    def __init__(self, codes: Codes, x: Any, most: int, validate_args: bool | None = None) -> None:
        self.codes, self.x = codes, x
        self.near = codes.steady(x, most)
        super().__init__(torch.Size([len(x)]), torch.Size([codes.count]), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, 1)

    @property
    def mean(self) -> Tensor:
        """Given the most probable support: of all supports together it would be none that is drawn."""
        return self.codes.mean_given(self.x, self.near.places)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if sample_shape:
            raise NotImplementedError("one draw a row")
        like = self.near.flat
        uniform = torch.rand_like(like).clamp_min(torch.finfo(like.dtype).tiny)
        places = torch.rand(self.near.places.shape, dtype=like.dtype, device=like.device)
        return self.codes.draw(self.x, self.near, -(-uniform.log()).log(), places)

    def log_prob(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            return self.codes.log_prob(self.x, self.near, value)
