"""Draws of a box that some rows fill and of the normal laws of the others, by Metropolis and Gibbs steps.

In coordinates y of the space that features span, z = W y + offset; rows that fill have the density |det W| times that
of `boxes.log_filled` on z, others follow normal laws that are told in y. One latent at a time, its row of W and its
offset move together by a normal step, in the latents' own units. Given which rows are whose, shares are drawn, and each
law from a conjugate one near its prior, taken or not as the prior has it. Where y is read with an error, of loadings
and noise, these move as well.

Boxes of few rows have several maxima. So several walks may go side by side along powers of the likelihood, of rows and
of whose they are together, and change places: the flatter ones cross from one maximum to another.

Geyer (1991), Markov chain Monte Carlo maximum likelihood (walks that change places).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from pyrocrl.exact.box_walks import DRAWS, BoxDraws, Prior, Space, Walks, log_sum

Floats = NDArray[np.float64]

BURNT = 1 / 3  # of the sweeps, in which steps find their sizes
TAKEN = 0.25  # share of steps that are
TINY = 1e-300
LEAST = 1e-6  # by which laws are made wider than noise
WIDEST = 1e3  # entry of W: beyond that a box is a point
WEAK = 0.1  # rows that the conjugate law of middles is worth


class BoxSampler:
    """space: what y and its noise may be; heat: (walk,) powers of the likelihood, 1 first; moves: whether the space is
    drawn with the box, or beside it."""

    def __init__(self, space: Space, heat: Floats, prior: Prior, rng: np.random.Generator, moves: bool = True) -> None:
        self.space, self.heat, self.prior, self.rng, self.moves = space, heat, prior, rng, moves

    def begin(self, walks: Walks) -> None:
        """Boxes that are points, of which a search may tell, give way to the first one."""
        features, latents = self.prior.loadings.shape
        self.e = np.zeros((len(self.heat), features * (latents + 1)))
        self.y, self.noise, self.beside = self.space.read(*self.space.at(self.e))
        self.stride = np.full(len(self.heat), 0.1)
        far = np.abs(walks.unmixing).max((1, 2)) > WIDEST
        walks = Walks(*(np.where(np.reshape(far, (-1,) + (1,) * (v.ndim - 1)), v[:1], v) for v in walks))
        self.walks = walks
        edge = np.maximum(self._soft(walks.unmixing), 1e-3)
        self.size = edge / np.sqrt(1 + self.y.shape[1] * walks.fill[:, None] * edge)  # (walk, latent)
        self.each = self._filled(walks.unmixing, walks.offset)
        self._renew()
        wider = LEAST
        while (narrow := ~np.isfinite(self.log_prior)).any() and wider < 1:  # laws that are no wider than noise
            more = wider * narrow[:, None, None, None] * np.eye(self.y.shape[-1])
            self.walks, wider = self.walks._replace(covariance=self.walks.covariance + more), 4 * wider
            self._renew()

    def _renew(self) -> None:
        """What hangs on the laws of the bulk."""
        middle, covariance = self.walks.middle, self.walks.covariance
        root = np.linalg.cholesky(covariance)
        white = (self.y[:, None] - middle[:, :, None]) @ np.linalg.inv(root).swapaxes(
            -1, -2
        )  # (walk, component, rows, latent)
        volume = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1) + 0.5 * middle.shape[-1] * np.log(2 * np.pi)
        self.parts = (-0.5 * (white**2).sum(-1) - volume[..., None]).swapaxes(1, 2)  # (walk, rows, component)
        self.log_prior = self._log_prior(self.walks.unmixing, self.walks.offset)

    def _soft(self, rows: Floats) -> Floats:
        """(walk, latent) deviations of noise."""
        return np.sqrt(((rows @ self.noise) * rows).sum(-1))

    def _filled(self, rows: Floats, offset: Floats) -> Floats:
        """(walk, rows, latent) log density of latents of rows that fill."""
        size, soft = np.abs(self.y @ rows.swapaxes(-1, -2) + offset[:, None]), self._soft(rows)[:, None]
        return np.log(np.maximum(ndtr((1 - size) / soft) - ndtr((-1 - size) / soft), TINY)) - math.log(2)

    def _in_z(self, unmixing: Floats, offset: Floats) -> tuple[Floats, Floats, Floats]:
        """Middles and covariances of the bulk in z, and noise (walk, 1, latent, latent), one latent at a time."""
        to = unmixing[:, None]
        middle = self.walks.middle @ unmixing.swapaxes(-1, -2) + offset[:, None]
        noise = self._soft(unmixing)[:, None, :, None] ** 2 * np.eye(unmixing.shape[-1])
        return middle, to @ self.walks.covariance @ to.swapaxes(-1, -2), noise

    def _log_prior(self, unmixing: Floats, offset: Floats) -> Floats:
        """(walk,) as densities of W, offset and laws in y."""
        middle, covariance, noise = self._in_z(unmixing, offset)
        laws = self.prior.log_laws(middle, covariance - noise)
        larger = (middle.shape[-1] + 2) * np.linalg.slogdet(unmixing)[1]  # of middle and covariance, by the box
        return self.prior.log_box(unmixing, offset) + laws.sum(1) + laws.shape[1] * larger

    def _log_joint(self) -> Floats:
        """(walk, rows, 1 + component), of rows that fill first."""
        fill, volume = self.walks.fill, np.linalg.slogdet(self.walks.unmixing)[1]
        filled = self.each.sum(-1) + (volume + np.log(fill))[:, None]
        bulk = self.parts + (np.log(self.walks.weights) + np.log1p(-fill)[:, None])[:, None]
        return np.concatenate([filled[..., None], bulk], -1)

    def sweep(self, finding: bool, decay: float) -> None:
        """A step of each latent, draws of shares and laws, and changes of places; finding: whether steps' sizes change,
        by as little as decay says."""
        self._move_box(finding, decay)
        self._draw_laws()
        if self.moves:
            self._move_space(finding, decay)
        if len(self.heat) > 1:
            self._change_places()

    def _move_box(self, finding: bool, decay: float) -> None:
        heat, log_fill = self.heat[:, None], np.log(self.walks.fill)
        others = log_sum(heat[..., None] * self._log_joint()[..., 1:])

        def likelihood(each: Floats, unmixing: Floats) -> Floats:
            filled = each.sum(-1) + (np.linalg.slogdet(unmixing)[1] + log_fill)[:, None]
            return np.logaddexp(heat * filled, others).sum(-1)

        at = likelihood(self.each, self.walks.unmixing)
        for k in range(self.walks.offset.shape[1]):
            unmixing, offset, each = self.walks.unmixing.copy(), self.walks.offset.copy(), self.each.copy()
            step = self.size[:, k, None] * self.rng.standard_normal((len(heat), unmixing.shape[1] + 1))
            unmixing[:, k] += (step[:, None, :-1] @ self.walks.unmixing)[:, 0]
            offset[:, k] += (step[:, :-1] * self.walks.offset).sum(1) + step[:, -1]
            each[..., k] = self._filled(unmixing[:, k : k + 1], offset[:, k : k + 1])[..., 0]
            new, prior = likelihood(each, unmixing), self._log_prior(unmixing, offset)
            stretch = 1 + step[:, k]  # of the volume, and by which the way back is shorter
            back = 0.5 * (step**2).sum(1) / self.size[:, k] ** 2 * (1 - stretch**-2) - np.log(np.abs(stretch))
            taken = np.log(self.rng.random(len(heat))) < new + prior - at - self.log_prior + back
            own = taken[:, None, None]
            self.walks = self.walks._replace(
                unmixing=np.where(own, unmixing, self.walks.unmixing),
                offset=np.where(taken[:, None], offset, self.walks.offset),
            )
            self.each, at = np.where(own, each, self.each), np.where(taken, new, at)
            self.log_prior = np.where(taken, prior, self.log_prior)
            if finding:
                self.size[:, k] *= np.exp(decay * (taken - TAKEN))

    def _move_space(self, finding: bool, decay: float) -> None:
        """A step that keeps e standard normal (Neal 1998), taken as true densities go beyond that."""
        before = self.y, self.noise, self.beside, self.each, self.parts, self.log_prior, self.e

        def log_density() -> Floats:
            rows = log_sum(self.heat[:, None, None] * self._log_joint()).sum(-1)
            return rows + self.beside + self.log_prior + 0.5 * (self.e**2).sum(-1)

        at = log_density()
        turn = self.stride[:, None]
        self.e = np.sqrt(1 - turn**2) * self.e + turn * self.rng.standard_normal(self.e.shape)
        self.y, self.noise, self.beside = self.space.read(*self.space.at(self.e))
        self.each = self._filled(self.walks.unmixing, self.walks.offset)
        self._renew()
        taken = np.log(self.rng.random(len(at))) < log_density() - at
        after = self.y, self.noise, self.beside, self.each, self.parts, self.log_prior, self.e
        both = [np.where(taken.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(after, before, strict=True)]
        self.y, self.noise, self.beside, self.each, self.parts, self.log_prior, self.e = both
        if finding:
            self.stride = np.clip(self.stride * np.exp(decay * (taken - TAKEN)), 1e-3, 1.0)

    def _draw_laws(self) -> None:
        """Shares and laws given which rows are whose, counts in powers of the likelihood."""
        rng, heat = self.rng, self.heat[:, None]
        joint = heat[..., None] * self._log_joint()
        reached = np.exp(joint - joint.max(-1, keepdims=True)).cumsum(-1)
        which = (rng.random(reached.shape[:2])[..., None] * reached[..., -1:] > reached).sum(-1)
        own = (which[:, None] == np.arange(joint.shape[-1])[:, None]).astype(float)  # (walk, 1 + component, rows)
        count = own.sum(-1) * heat
        fill = np.clip(rng.beta(1 + count[:, 0], 1 + count[:, 1:].sum(1)), 1e-6, 1 - 1e-6)
        weights = np.maximum(rng.gamma(1 + count[:, 1:]), 1e-12)
        unmixing, offset = self.walks.unmixing, self.walks.offset
        u = self.y @ unmixing.swapaxes(-1, -2) + offset[:, None]
        latents = u.shape[-1]
        pairs = (u[..., None] * u[..., None, :]).reshape(*u.shape[:2], -1)
        square = (own[:, 1:] @ pairs).reshape(*own[:, 1:].shape[:2], latents, latents) * heat[..., None, None]
        worth = WEAK + count[:, 1:, None]
        mean = heat[..., None] * (own[:, 1:] @ u) / worth
        scale = square - worth[..., None] * mean[..., None] * mean[..., None, :]
        ridge = self.prior.width**2 + 1e-9 * np.trace(square, axis1=-2, axis2=-1)[..., None, None]
        half = np.linalg.cholesky(scale + ridge * np.eye(latents))
        half = half @ np.linalg.inv(self._wishart(latents + 2 + count[:, 1:], latents)).swapaxes(-1, -2)
        covariance = half @ half.swapaxes(-1, -2)
        middle = mean + (half @ rng.standard_normal((*mean.shape, 1)))[..., 0] / np.sqrt(worth)
        old_middle, old, noise = self._in_z(unmixing, offset)
        gain = self.prior.log_laws(middle, covariance - noise) - self._log_conjugate(middle, covariance)
        gain -= self.prior.log_laws(old_middle, old - noise) - self._log_conjugate(old_middle, old)
        taken = (np.log(rng.random(gain.shape)) < gain)[..., None]
        back = np.linalg.inv(unmixing)
        in_y = back[:, None] @ covariance @ back[:, None].swapaxes(-1, -2)
        self.walks = self.walks._replace(
            fill=fill,
            weights=weights / weights.sum(1, keepdims=True),
            middle=np.where(taken, (middle - offset[:, None]) @ back.swapaxes(-1, -2), self.walks.middle),
            covariance=np.where(taken[..., None], in_y, self.walks.covariance),
        )
        self._renew()

    def _wishart(self, freedom: Floats, latents: int) -> Floats:
        """Bartlett's factors of Wishart matrices, of these degrees of freedom each."""
        out = np.tril(self.rng.standard_normal((*freedom.shape, latents, latents)), -1)
        for k in range(latents):
            out[..., k, k] = np.sqrt(self.rng.chisquare(freedom - k))
        return out

    def _log_conjugate(self, middle: Floats, covariance: Floats) -> Floats:
        """(walk, component) normal and inverse Wishart law that is near the prior."""
        inverse, latents = np.linalg.inv(covariance), middle.shape[-1]
        volume = 2 * (latents + 2) * np.linalg.slogdet(covariance)[1]
        spread = self.prior.width**2 * np.trace(inverse, axis1=-2, axis2=-1)
        away = WEAK * ((middle[..., None, :] @ inverse)[..., 0, :] * middle).sum(-1)
        return -0.5 * (volume + spread + away)

    def _change_places(self) -> None:
        """Between neighbours; what is beside y has the power 1 in all walks."""
        one = np.arange(int(self.rng.integers(2)), len(self.heat) - 1, 2)
        two, joint, heat = one + 1, self._log_joint(), self.heat[:, None, None]
        own = log_sum(heat * joint).sum(-1)
        crossed = log_sum(heat[two] * joint[one]).sum(-1) + log_sum(heat[one] * joint[two]).sum(-1)
        taken = np.log(self.rng.random(len(one))) < crossed - own[one] - own[two]
        order = np.arange(len(self.heat))
        order[one[taken]], order[two[taken]] = two[taken], one[taken]
        self.walks = Walks(*(part[order] for part in self.walks))
        own = self.y, self.noise, self.beside, self.each, self.parts, self.log_prior, self.e
        self.y, self.noise, self.beside, self.each, self.parts, self.log_prior, self.e = (part[order] for part in own)

    def run(self, sweeps: int) -> BoxDraws:
        """`DRAWS` draws of the first walk, as far apart as `sweeps` have it."""
        burnt, kept = round(BURNT * sweeps), []
        for one in range(sweeps):
            self.sweep(one < burnt, 3 / (1 + one) ** 0.6)
            if one >= burnt:
                kept.append((*(part[0] for part in self.walks), self.e[0], log_sum(self._log_joint()[0]).sum()))
        at = np.linspace(0, len(kept) - 1, DRAWS).round().astype(int)
        return BoxDraws(*(np.array([kept[i][part] for i in at]) for part in range(len(BoxDraws._fields)))).in_order()
