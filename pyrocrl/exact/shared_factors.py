"""Factor analysis of several views with shared and private latents, both summed out: what rows say of its parameters.

    x_v = offset_v + W_v z + B_v private_v + e_v,  e_v ~ N(0, diag variance),  z ~ N(level_env, I),  private_v ~ N(0, I)

A row has some of the views. Rows with the same ones enter through their scatter about the means of environments, and
these means: at most as many numbers as there are features, however many rows. Loadings are L = [W | B], where feature j
loads on the private latents of its own view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from pyrocrl.exact.goodness import Misfit

SHAPE = 1.5  # of the variances' inverse gamma law
STEPS, LEAST, CLOSE = 400, 15, 1e-7  # of the search, at most and at least, and the relative gain at which it ends
AGAIN = 150  # ... of the search from a mode that is near
SAME = 0.9  # share from which a factor is the same in two views
EFFORT = 4e9  # products that a search may take, beyond its least steps


class Group(NamedTuple):
    """Rows with the same views: present (view,); total, how many; columns (own features,), their positions; within
    (at most own features, own features), a root of the scatter about the means of environments; mean (env, own
    features) and rows (env,) of each environment."""

    present: Tensor
    total: int
    columns: Tensor
    within: Tensor
    mean: Tensor
    rows: Tensor


class Parameters(NamedTuple):
    """shared (feature, latent), own (feature, private), offset (feature,), variance (feature,), level (env, latent), of
    which the first environment's is 0."""

    shared: Tensor
    own: Tensor
    offset: Tensor
    variance: Tensor
    level: Tensor


def groups(x: Tensor, present: Tensor, view: Tensor, env: Tensor, environments: int) -> list[Group]:
    """Rows x (data, feature), with anything where a view is not `present` (data, view), by the views they have."""
    out = []
    for pattern in torch.unique(present, dim=0):
        rows = (present == pattern).all(1)
        columns = pattern[view].nonzero()[:, 0]
        own, code = x[rows][:, columns], env[rows]
        one = torch.nn.functional.one_hot(code, environments).to(x)
        count = one.sum(0)
        mean = one.mT @ own / count.clamp_min(1.0)[:, None]
        apart = own - mean[code]
        within = torch.linalg.qr(apart, mode="r").R if len(apart) > apart.shape[1] else apart
        out.append(Group(pattern, int(rows.sum()), columns, within, mean, count))
    return out


class Ties(NamedTuple):
    """tied (latent,), ascending: of every direction of the shared latents, how many rows' worth ties the view that is
    tied least. shown (view,): the share of a shared latent's variance that a view alone shows, of the direction of
    which it shows least, private latents summed out. common (view,): that times the share that another view shows of
    it, the squared correlation of the two; chance (view,): the largest that noise alone would have, by the features and
    the rows that have both (Johnstone 2001), and 0 without such rows. within (view,): the largest squared cosine of
    loadings of shared latents with the span of the private ones, per deviation of the noise.
    """

    tied: Tensor
    shown: Tensor
    common: Tensor
    chance: Tensor
    within: Tensor


class SharedFactors:
    """Log posterior of the parameters; slopes ~ N(0, slab^2), variance ~ InverseGamma(1.5, rate), offset and level ~
    N(0, 1). view: (feature,) codes; anchors: whether environments have levels. All float64."""

    def __init__(self, found: list[Group], view: Tensor, *, anchors: bool, slab: float, rate: float) -> None:
        self.groups, self.view, self.anchors, self.slab, self.rate = found, view, anchors, slab, rate
        self.views = int(view.max()) + 1
        self.rows = sum(group.total for group in found)

    def stacked(self, p: Parameters) -> Tensor:
        """(feature, latent + view * private) loadings on all latents."""
        mine = torch.nn.functional.one_hot(self.view, self.views).to(p.own)
        return torch.cat([p.shared, (mine[:, :, None] * p.own[:, None]).flatten(1)], 1)

    def log_likelihood(self, p: Parameters) -> Tensor:
        total, loadings = p.offset.new_zeros(()), self.stacked(p)
        for g in self.groups:
            own, scale = loadings[g.columns], p.variance[g.columns].sqrt()
            about = g.mean - p.offset[g.columns]
            if self.anchors:
                about = about - p.level @ p.shared[g.columns].mT
            root = torch.cat([g.within, g.rows.sqrt()[:, None] * about]) / scale
            white = own / scale[:, None]
            tril = torch.linalg.cholesky(torch.eye(own.shape[1]).to(own) + white.mT @ white)
            fitted = torch.linalg.solve_triangular(tril, (root @ white).mT, upper=False)
            log_det = 2 * tril.diagonal().log().sum() + 2 * scale.log().sum()
            total = total - 0.5 * (g.total * log_det + root.square().sum() - fitted.square().sum())
        return total

    def log_density(self, p: Parameters) -> Tensor:
        """Log posterior, up to a constant, of loadings, offsets, levels and log variances."""
        out = self.log_likelihood(p) - 0.5 * (p.shared.square().sum() + p.own.square().sum()) / self.slab**2
        out = out - 0.5 * p.offset.square().sum() - (SHAPE * p.variance.log() + self.rate / p.variance).sum()
        return out - 0.5 * p.level.square().sum() if self.anchors else out

    def climbed(self, start: Parameters, most: int = STEPS) -> Parameters:
        """The mode that L-BFGS finds from there, within `most` steps, or fewer where each takes long."""
        steps = self.affordable(most, start)
        shapes = [value.shape for value in start]
        sizes = [value.numel() for value in start]

        def split(theta: Tensor) -> Parameters:
            parts = [part.reshape(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
            level = torch.cat([torch.zeros_like(parts[4][:1]), parts[4][1:]])  # the first is the origin
            return Parameters(parts[0], parts[1], parts[2], parts[3].exp(), level)

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.tensor(values, dtype=torch.float64, requires_grad=True)
            with torch.enable_grad():
                loss = -self.log_density(split(theta)) / self.rows
                [gradient] = torch.autograd.grad(loss, theta)
            return float(loss.detach()), gradient.numpy()

        begin = torch.cat([v.reshape(-1) for v in start._replace(variance=start.variance.log())])
        options = {"maxiter": steps, "maxcor": 20, "ftol": CLOSE, "gtol": 1e-7, "maxfun": 2 * steps}
        best = optimize.minimize(objective, begin.detach().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
        return Parameters(*(value.to(start.offset) for value in split(torch.as_tensor(best.x))))

    def affordable(self, most: int, p: Parameters) -> int:
        """So many steps or sweeps, or fewer where each takes long."""
        entries = sum((len(g.within) + len(g.mean)) * len(g.columns) for g in self.groups)
        return int(min(most, max(LEAST, EFFORT / (6 * entries * (p.shared.shape[1] + p.own.shape[1])))))

    @property
    def tells_covariance(self) -> bool:
        """Whether some rows with the same views are twice as many as their features."""
        return any(g.total - int((g.rows > 0).sum()) >= 2 * len(g.columns) for g in self.groups)

    def ties(self, p: Parameters) -> Ties:
        """What ties the views at these parameters: rows with two views or more, and levels of environments."""
        eye = torch.eye(p.shared.shape[1]).to(p.shared)
        tied, within, told, size = [], [], [], []
        for v in range(self.views):
            having = [g for g in self.groups if bool(g.present[v])]
            evidence = sum(g.total for g in having if int(g.present.sum()) > 1) * eye
            if self.anchors:
                here = sum(g.rows for g in having)
                there = sum(g.rows for g in self.groups if int(g.present.sum()) > int(g.present[v]))
                weight = torch.minimum(here, there)
                apart = p.level - weight @ p.level / weight.sum().clamp_min(1.0)
                evidence = evidence + (weight[:, None] * apart).mT @ apart
            tied.append(torch.linalg.eigvalsh(evidence))
            mine = self.view == v
            scale = p.variance[mine, None].sqrt()
            w, b = p.shared[mine] / scale, p.own[mine] / scale
            inner = torch.linalg.inv(torch.eye(b.shape[1]).to(b) + b.mT @ b)
            told.append(w.mT @ w - w.mT @ b @ inner @ b.mT @ w)
            size.append(float(mine.sum()))
            within.append(torch.linalg.svdvals(torch.linalg.qr(b).Q.mT @ torch.linalg.qr(w).Q)[0].square())
        shown, common, chance = [], [], []
        for v in range(self.views):
            value, vector = torch.linalg.eigh(told[v])
            axis, share = vector[:, 0], value[0] / (1 + value[0])
            best: tuple[float, float] | None = None
            for k in range(self.views):
                pairs = sum(g.total for g in self.groups if bool(g.present[v]) and bool(g.present[k]))
                if k != v and pairs:
                    other = 1 - axis @ torch.linalg.inv(eye + told[k]) @ axis
                    noise = ((size[v] / pairs) ** 0.5 + (size[k] / pairs) ** 0.5) ** 2
                    found = float(share * other), noise
                    best = found if best is None or found[0] - noise > best[0] - best[1] else best
            shown.append(float(share))
            common.append(best[0] if best else 0.0)
            chance.append(best[1] if best else 0.0)
        shares = (p.offset.new_tensor(one) for one in (shown, common, chance))
        first, second, third = shares
        return Ties(torch.stack(tied).amin(0), first, second, third, torch.stack(within))

    def deviations(self, p: Parameters) -> Parameters:
        """Deviations of the parameters given the others, latents as the rows show them: what is not summed up of
        their uncertainty is that of a common rotation. Variances: of their logarithm."""
        loadings, private = self.stacked(p), p.own.shape[1]
        latents = p.shared.shape[1]
        seen = torch.zeros(self.views, latents + private, dtype=p.own.dtype)  # of each latent, squares over the rows
        left = torch.zeros_like(seen)  # posterior variances, over the rows
        count = torch.zeros(self.views, dtype=p.own.dtype)
        level = torch.zeros_like(p.level)
        for g in self.groups:
            own = loadings[g.columns]
            white = own / p.variance[g.columns, None]
            covariance = torch.linalg.inv(torch.eye(own.shape[1]).to(own) + own.mT @ white)
            about = g.mean - p.offset[g.columns]
            moved = p.level @ p.shared[g.columns].mT if self.anchors else 0.0
            root = torch.cat([g.within, g.rows.sqrt()[:, None] * (about - moved)])
            squares = (root @ white @ covariance).square().sum(0)
            if self.anchors:
                squares[:latents] += g.rows @ p.level.square()
                level += g.rows[:, None] * (1 - covariance.diagonal()[:latents])
            for v in g.present.nonzero()[:, 0].tolist():
                mine = [*range(latents), *range(latents + v * private, latents + (v + 1) * private)]
                seen[v] += squares[mine]
                left[v] += g.total * covariance.diagonal()[mine]
                count[v] += g.total
        own = torch.cat([p.shared, p.own], 1)
        noise = p.variance + (own.square() * (left / count[:, None])[self.view]).sum(1)
        slope = (seen[self.view] / noise[:, None] + self.slab**-2).rsqrt()
        rows = count[self.view]
        total = p.variance + own.square().sum(1)
        return Parameters(
            slope[:, :latents],
            slope[:, latents:],
            (rows / total + 1).rsqrt(),
            (2 / rows).sqrt(),
            (level + 1).rsqrt() if self.anchors else torch.ones_like(level),
        )


def misfit(law: SharedFactors, p: Parameters) -> Misfit | None:
    """Likelihood ratio of moments, fitted anew from p, against means free in every environment and a covariance free
    for all rows with the same views, with Bartlett's factor (Lawley & Maxwell 1971, chapter 4): over groups with twice
    as many rows as features; None where there are none."""
    kept = [g for g in law.groups if g.total - int((g.rows > 0).sum()) >= 2 * len(g.columns)]
    if not kept:
        return None
    law = SharedFactors(kept, law.view, anchors=law.anchors, slab=law.slab, rate=law.rate)
    p = law.climbed(p, AGAIN)
    loadings, deviance, freedom = law.stacked(p), 0.0, 0.0
    latents, private = p.shared.shape[1], p.own.shape[1]
    for g in kept:
        size, there = len(g.columns), int((g.rows > 0).sum())
        degrees = g.total - there
        own = loadings[g.columns]
        fitted = own @ own.mT + torch.diag(p.variance[g.columns])
        cov = g.within.mT @ g.within / degrees
        about = g.mean - p.offset[g.columns] - (p.level @ p.shared[g.columns].mT if law.anchors else 0.0)
        inverse = torch.linalg.inv(fitted)
        gap = torch.linalg.slogdet(fitted).logabsdet - torch.linalg.slogdet(cov).logabsdet
        gap = gap + (inverse * cov).sum() - size
        factor = degrees - (2 * size + 5) / 6 - 2 * (latents + private * int(g.present.sum())) / 3
        deviance += float(factor * gap + (g.rows * ((about @ inverse) * about).sum(1)).sum())
        freedom += size * (size + 1) / 2 + size * there
    present = torch.stack([g.present for g in kept])
    features = int(present.any(0)[law.view].sum())
    freedom -= features * (latents + private + 2)
    freedom -= (len(p.level) - 1) * latents if law.anchors else 0.0
    freedom += _turns(present, latents, private, min(len(p.level) - 1, latents) if law.anchors else 0)
    return Misfit(deviance, freedom) if freedom > 0 else None


def _turns(present: Tensor, latents: int, private: int, moved: int) -> float:
    """Dimensions of the rotations of latents that change no moments of rows with these views (group, view), where
    environments move `moved` directions of the shared latents: of views seen together one rotation of the shared
    latents and one of the private ones of each; of a view seen alone, one of all its latents but those directions."""

    def size(k: int) -> float:
        return k * (k - 1) / 2

    left, total = set(present.any(0).nonzero()[:, 0].tolist()), size(latents) - size(latents - moved)
    while left:
        together = {left.pop()}
        for _ in range(present.shape[1]):  # as far as shared rows reach
            together |= {
                v for row in present.tolist() if any(row[v] for v in together) for v, is_ in enumerate(row) if is_
            }
        left -= together
        alone = len(together) == 1
        total += size(latents + private - moved) if alone else len(together) * size(private) + size(latents - moved)
    return total


def started(
    law: SharedFactors, latents: int, private: int, environments: int, normal: Callable[[int, int], Tensor]
) -> Parameters:
    """Where the search begins: factor analysis of each view alone, rotated so that its first factors are those that
    rows and environments tell in the other views.

    Of each view Bartlett's scores of its latents + private factors are f = R (z, private) + noise, R a rotation: the
    covariance of two views' scores over rows that have both is A_v A_w^T, with orthonormal columns, and means of
    environments are A_v level. Where scores correlate less, views are alike and not the same: shared latents have as
    much of the view's factor, and private ones the rest, for which there are then fewer factors. normal: draws (a, b)
    of standard normal numbers, which stand where neither tells.
    """
    means = [_means(law, v, environments) for v in range(law.views)]
    factors = latents + private
    while True:
        alone = [_view_alone(law, v, factors) for v in range(law.views)]
        axes, shares = _axes(law, alone, means, latents, normal)
        same = int((shares.amin(0) > SAME).sum())  # of which no part is private
        if factors == max(latents, private + same) or factors < latents + private:
            break
        factors = max(latents, private + same)
    features, like = len(law.view), law.groups[0].mean
    level, ones = like.new_zeros(environments, latents), like.new_ones(features)
    out = Parameters(like.new_zeros(features, latents), like.new_zeros(features, private), ones, ones.clone(), level)
    for v, (one, axis, share) in enumerate(zip(alone, axes, shares, strict=True)):
        mine, shared = law.view == v, one.loadings @ axis
        out.shared[mine], out.offset[mine], out.variance[mine] = shared * share.sqrt(), one.offset, one.variance
        scale = one.variance.sqrt()[:, None]
        rest = torch.cat([one.loadings - shared @ axis.mT, shared * (1 - share).sqrt()], 1) / scale
        left, value, _ = torch.linalg.svd(rest, full_matrices=False)
        out.own[mine] = left[:, :private] * value[:private] * scale
        level = level + (means[v] - means[v][:1]) @ one.scores @ axis / law.views
    return out._replace(level=level if law.anchors else 0.0 * level)


def _axes(
    law: SharedFactors,
    alone: Sequence[_Alone],
    means: Sequence[Tensor],
    latents: int,
    normal: Callable[[int, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """(view, factor, latent) orthonormal axes of the shared latents among the factors of each view, and (view, latent)
    how much of these axes' variance the views share."""
    factors = alone[0].loadings.shape[1]
    tie = means[0].new_zeros(law.views, factors, law.views, factors)
    pairs = torch.zeros(law.views, law.views)
    for v in range(law.views):
        for w in range(v):
            for g in law.groups:
                if bool(g.present[v]) and bool(g.present[w]):
                    a, b = (g.within[:, law.view[g.columns] == k] @ alone[k].scores for k in (v, w))
                    tie[v, :, w] += a.mT @ b
                    pairs[v, w] += g.total
            pairs[w, v] = pairs[v, w]
            tie[w, :, v] = tie[v, :, w].mT
    whole = tie.clone()
    for v in range(law.views):
        for w in range(v):
            whole[v, :, w] += normal(factors, factors)  # a row's worth, where nothing tells
            if law.anchors:
                a, b = ((means[k] - means[k].mean(0)) @ alone[k].scores for k in (v, w))
                whole[v, :, w] += law.rows / len(means[0]) * a.mT @ b
            whole[w, :, v] = whole[v, :, w].mT
    size = law.views * factors
    axes = torch.linalg.eigh(whole.reshape(size, size))[1][:, -latents:].reshape(law.views, factors, latents)
    u, _, w = torch.linalg.svd(axes, full_matrices=False)
    axes, shares = u @ w, tie.new_ones(law.views, latents)
    for v in range(law.views):
        for k in range(law.views):
            if count := float(pairs[v, k]):
                noise = min(4.0 * factors / count, 0.9)  # the largest squared correlation that noise has
                square = (axes[v] * (tie[v, :, k] / count @ axes[k])).sum(0).clamp(0.0, 1.0).square()
                shares[v] = torch.minimum(shares[v], ((square - noise) / (1 - noise)).clamp(0.01, 1.0).sqrt())
    return axes, shares


class _Alone(NamedTuple):
    """Factor analysis of a view: loadings (feature, factor), offset, variance (feature,), and scores (feature, factor),
    which take a row about its mean to Bartlett's scores."""

    loadings: Tensor
    offset: Tensor
    variance: Tensor
    scores: Tensor


def _parts(law: SharedFactors, v: int) -> list[tuple[Group, Tensor]]:
    """Groups that have a view, and which of their columns are its own."""
    return [(g, law.view[g.columns] == v) for g in law.groups if bool(g.present[v])]


def _means(law: SharedFactors, v: int, environments: int) -> Tensor:
    """(env, feature of the view) means of all rows that have it; of the whole where an environment has none."""
    parts = _parts(law, v)
    total = sum(g.rows[:, None] * g.mean[:, own] for g, own in parts)
    count = sum(g.rows for g, _ in parts)
    whole = total.sum(0) / count.sum()
    return torch.where(count[:, None] > 0, total / count.clamp_min(1.0)[:, None], whole)


def _view_alone(law: SharedFactors, v: int, factors: int) -> _Alone:
    parts = _parts(law, v)
    count = float(sum(g.total for g, _ in parts))
    size = int((law.view == v).sum())
    mean = sum(g.rows @ g.mean[:, own] for g, own in parts) / count
    root = torch.cat(
        [part for g, own in parts for part in (g.within[:, own], g.rows.sqrt()[:, None] * (g.mean[:, own] - mean))]
    )
    value, vector = leading(root, factors, count)
    total = root.square().sum(0) / count
    rest = (total.sum() - value.sum()).clamp_min(1e-6) / (size - factors)
    start = vector * (value - rest).clamp_min(1e-3).sqrt()
    variance = (total - start.square().sum(1)).clamp_min(0.05)
    one = torch.ones(1, dtype=torch.bool)
    group = Group(one, int(count), torch.arange(size), root, mean[None], mean.new_tensor([count]))
    whole = SharedFactors([group], torch.zeros(size, dtype=torch.long), anchors=False, slab=law.slab, rate=law.rate)
    begin = Parameters(start[:, :0], start, mean, variance, mean.new_zeros(1, 0))
    found = whole.climbed(begin, STEPS // 2)
    white = found.own / found.variance[:, None]
    ridge = 1e-6 * torch.eye(factors).to(white)
    return _Alone(found.own, found.offset, found.variance, white @ torch.linalg.inv(found.own.mT @ white + ridge))


def leading(scatter: Tensor, factors: int, count: float) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (factor,) of scatter^T scatter / count, and their vectors (feature, factor)."""
    small = scatter @ scatter.mT if len(scatter) < scatter.shape[1] else scatter.mT @ scatter
    value, vector = torch.linalg.eigh(small / count)
    value, vector = value[-factors:].clamp_min(1e-12), vector[:, -factors:]
    if len(scatter) < scatter.shape[1]:
        vector = scatter.mT @ vector / (value * count).sqrt()
    return value, vector
