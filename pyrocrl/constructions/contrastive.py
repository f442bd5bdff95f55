"""Latents behind a nonlinear mixing, from contrasts between environments: how chains of `linear_sem_nonlin` start.

For perfect interventions on a linear Gaussian structural equation model the log-odds between an environment and the
observational one are quadratic in the latents,

    l_c(z) = sum_{k in targets of c} log N(z_k; m_ck, s_ck^2) - log N(z_k; a_k + sum_j z_j w[j, k], s_k^2),

and so are the log-odds of a classifier of x, whatever the injective mixing (Buchholz et al. 2023, equation 5). Fitting
h with l_c(h(x)) as logits is not enough: with w = 0 and s_ck = s_k, logits are linear in h, and h = l itself is as
good a classifier as the latents are; and wrong graphs, signs and directions are local optima. Steps here:

1. h starts at the leading principal components, and as an encoder that a decoder can undo (`Chart`); where targets are
   unknown, at the log-odds between the two environments of each latent (`paired_start`), and the next step is left out;
2. every class has a Gaussian law of its own, *without equations*, of the batch's moments: h minimises the
   cross-entropy of these laws as a classifier, the distance between the law of residuals in every class and N(0, I),
   and the error of x decoded from h. The loss does not change under affine maps of h, so that there are no graphs,
   signs or permutations to be wrong about, and what has it at its least is affine in the latents;
3. `optima` solves the linear case (`linear_sem.log_marginal`), `fitted` gives the equations, and both are put into the
   networks, which then minimise the same loss with the law of the equations (`Contrast`): far fewer parameters for
   the same rows. Where direct and indirect ways nearly cancel, a chart that is right to 1 % has several optima that
   are nearly as likely, and a network can bend to each: they are tried, and the one with the least loss and misfit
   kept. Above CHEAP latents one optimum is climbed, and no other tried;
4. the third step again from its own result, while the loss on rows kept out of it falls: from a chart that is not yet
   affine in the latents `optima` are of wrong directions and orders, and from a better one they are mended;
5. `optima` once more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from pyrocrl.constructions import directions
from pyrocrl.constructions.optimise import LR, minimise
from pyrocrl.exact import annealed, linear_sem, orders
from pyrocrl.exact.goodness import Misfit
from pyrocrl.exact.regression import least_squares, quadratic
from pyrocrl.parts.nets import Residual
from pyrocrl.turns import drawing

BATCH = 170
FEWER = 10.0  # rows count as this many times fewer for the affine map: latents are not exact
HIDDEN = 0.1  # square of errors in moments, in what another round of training changes of h (see `nearby_maps`)
PARTS = 200  # of the rows, whose sums tell the error of what one h has more than another
CHEAP = 6  # latents, up to which several starts of the affine map are climbed: a step costs d^2 2^d
SAME, OTHER = 0.97, 0.95  # correlations from which two maps read the same latent, and below which another one
PSEUDO_ROWS = 5.0  # of the law that classes share, added to each one's moments in a batch
SLICES = 32  # directions along which residuals are compared with a normal law in a step
SPARSITY = 2e-4  # of a Cauchy-like prior of standardised weights, whose half-width is NEGLIGIBLE
NEGLIGIBLE = 0.05
FREQUENCIES = torch.linspace(0.4, 2.8, 7)


class Equations(NamedTuple):
    """weight (..., parent, child), intercept and log_scale (..., latent) of the observational law; own_intercept and
    own_log_scale (..., class, latent) of targets, class 0 being the observational one and not listed."""

    weight: Tensor
    intercept: Tensor
    log_scale: Tensor
    own_intercept: Tensor
    own_log_scale: Tensor


# -- equations and their laws ------------------------------------------------------------------------------------------


def laws(equations: Equations, hit: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., class, latent) and covariance (..., class, latent, latent) of z, observational class first."""
    hit = torch.cat([torch.zeros_like(hit[:1]), hit])  # (class, latent)
    pad = (0, 0, 1, 0)
    intercept, scale = equations.intercept[..., None, :], equations.log_scale.exp()[..., None, :]
    own = torch.nn.functional.pad(equations.own_intercept, pad)
    own_scale = torch.nn.functional.pad(equations.own_log_scale, pad).exp()
    weight = equations.weight[..., None, :, :] * (1 - hit)[:, None, :]
    return linear_sem.sem_moments(
        linear_sem.LinearSEM(weight, torch.where(hit > 0, own, intercept), torch.where(hit > 0, own_scale, scale))
    )


def log_det_change(weight: Tensor, hit: Tensor) -> Tensor:
    """(..., class) log det of I - w with the targets' parents cut, minus that of I - w: 0 without cycles."""
    eye = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    kept = torch.cat([torch.ones_like(hit[:1]), 1 - hit])
    log_det = torch.linalg.slogdet(eye - weight[..., None, :, :] * kept[:, None, :]).logabsdet
    return log_det[..., 1:] - log_det[..., :1]


def fitted(environments: linear_sem.Environments) -> Equations:
    """Least-squares equations of z under the most probable order; environment 0 is the observational one."""
    target, latents = environments.target, environments.target.shape[1]
    eye = torch.eye(latents, dtype=environments.cov.dtype, device=environments.cov.device)
    slices = linear_sem.slices(environments, linear_sem.target_pairs(target.cpu()))
    place = orders.best_order(linear_sem.mechanism_scores(eye, slices, 0.5)).argsort()
    least = linear_sem.draw_mechanisms(eye, place[:, None] < place[None, :], slices, noisy=False)
    own = environments.cov.diagonal(dim1=-2, dim2=-1).log() / 2
    return Equations(
        least.weight[:latents].mT,
        least.intercept[:latents],
        least.scale[:latents].log(),
        environments.mean[1:],
        own[1:],
    )


def misfit(environments: linear_sem.Environments) -> Misfit:
    """How far the laws of z lie from equations under the best order, against a Gaussian of its own for every
    environment; environments without targets share one law."""
    merged, _ = _merged(environments)
    count, mean, cov, target = merged
    latents = target.shape[1]
    expected, law = laws(fitted(merged), target[1:])
    precision = torch.linalg.inv(law)
    gap = mean - expected
    each = (precision @ cov).diagonal(dim1=-2, dim2=-1).sum(-1) - latents
    each = each - torch.linalg.slogdet(precision @ cov).logabsdet + quadratic(gap, precision)
    saturated = len(count) * (latents + latents * (latents + 1) / 2)
    used = latents * (latents - 1) / 2 + 2 * latents + 2 * float(target.sum())
    return Misfit(float((count * each).sum()), saturated - used)


def _merged(environments: linear_sem.Environments) -> tuple[linear_sem.Environments, Tensor]:
    """Environments without targets as one, which comes first, and the place (env,) of each in what that leaves."""
    free = environments.target.sum(1) == 0
    place = torch.where(free, 0, (~free).cumsum(0))
    parts = environments.pooled(one_hot(place).mT.double())
    return linear_sem.Environments(
        *parts, torch.cat([torch.zeros_like(environments.target[:1]), environments.target[~free]])
    ), place


def told(z: Tensor, env: Tensor, environments: linear_sem.Environments, escaped: Tensor) -> Tensor:
    """(part,) log p(env | z) of rows z (rows, latent) by the equations that fit the environments' moments, less what
    these leave of the moments, in nats: sums over the rows of each of PARTS parts, every PARTS-th row.

    The mixing has no part in it, so that of several h the one that reads the latents has most, however well each is
    decoded. escaped: (env,) shares of rows that missed their intervention.
    """
    merged, place = _merged(environments)
    mean, cov = laws(fitted(merged), merged.target[1:])
    law = torch.distributions.MultivariateNormal(mean, scale_tril=torch.linalg.cholesky(cov), validate_args=False)
    density = law.log_prob(z.double()[:, None])  # (rows, class)
    missed = torch.zeros_like(merged.count).index_copy_(0, place, escaped.to(merged.count))
    missed[0] = 0.0
    density = torch.logaddexp((1 - missed).log() + density, missed.log() + density[:, :1])
    group = place[env]
    share = torch.bincount(group, minlength=len(missed)).to(density).log()
    log_odds = -cross_entropy(density + share, group, reduction="none")
    part = torch.arange(len(z), device=z.device) % PARTS
    left = misfit(environments).deviance / 2 / PARTS
    return torch.full((PARTS,), -left).to(log_odds).index_add_(0, part, log_odds)


def dispersion(environments: linear_sem.Environments) -> float:
    """Deviance from equations over its degrees of freedom, at least 1."""
    found = misfit(environments)
    return max(1.0, found.deviance / found.freedom)


class Optimum(NamedTuple):
    """A local maximum of the linear case: unmixing (latent, latent) of y, its log-likelihood, and whether y is what it
    reads, but for signs and scales."""

    unmixing: Tensor
    value: float
    own: bool


def optima(environments: linear_sem.Environments, generator: torch.Generator, wide: bool = True) -> list[Optimum]:
    """Unmixings that make y's law that of a graph, the likeliest first, no two of which read the same latents.

    They start as the best choices among the theorem's candidates, those of the identity, and rows of the planes that
    hold them. wide: then one row or two of the best at a time are exchanged for others of their planes, while that
    leads to a better one; where ways nearly cancel, two latents are wrong together. Rows count as FEWER times fewer:
    with all of them the objective takes errors of y for edges.
    """
    environments = environments._replace(count=(environments.count / FEWER).clamp_min(2.0))
    root = directions.whitening(environments.pooled((environments.target.sum(1) == 0).to(environments.cov))[2])
    white = environments.transform(root)
    slices, total = linear_sem.slices(white, linear_sem.target_pairs(white.target.cpu())), white.count.sum()

    def objective(rows: Tensor) -> Tensor:
        return linear_sem.log_marginal(rows, slices, total, 0.5)

    def climb(starts: Tensor) -> list[tuple[float, Tensor]]:
        ends = [mode.chart[:, 0] for mode in directions.climb(objective, starts)]
        return [(float(objective(rows)), rows) for rows in ends]

    own = torch.linalg.inv(root)
    own = (own / own.norm(dim=-1, keepdim=True)).contiguous()
    candidates = torch.cat([directions.candidate_rows(white, generator), own[:, None]], 1)
    cheap = len(root) <= CHEAP
    starts = directions.choose_rows(candidates, objective, 2 if cheap else 0, generator)
    if cheap:
        starts = torch.cat([starts, directions.starts_around(white, candidates, objective, generator), own[None]])
    found = climb(starts)
    before, planes = -math.inf, directions.plane_rows(white, directions.ANGLES)
    while cheap and wide and (best := max(found, key=lambda one: one[0]))[0] > before + 0.1:
        before = best[0]
        pairs = directions.pairs_exchanged(best[1], planes, objective)
        found += climb(torch.cat([pairs, directions.rows_exchanged(best[1], planes)]))
    cov = white.pooled(torch.ones_like(white.count))[2]
    kept: list[tuple[float, Tensor]] = []
    for value, rows in sorted(found, key=lambda one: -one[0]):
        if not any(_same(rows, better, cov) for _, better in kept):
            kept.append((value, rows))
    return [Optimum(rows @ root, value, _same(rows, own, cov)) for value, rows in kept]


def _same(rows: Tensor, others: Tensor, cov: Tensor) -> bool:
    """Whether two unmixings of y, which has this covariance, read the same latents."""
    scale = (quadratic(rows, cov) * quadratic(others, cov)).sqrt()
    return bool((((rows @ cov) * others).sum(-1).abs() >= SAME * scale).all())


def likely(
    environments: linear_sem.Environments, within: float, settled: bool, generator: torch.Generator
) -> list[Tensor]:
    """Unmixings of the optima within so many nats a row of the best. settled: y was bent to equations, and is what one
    of them reads: that one comes first, for what the others gain is not more than errors of y."""
    found = optima(environments, generator, wide=not settled)
    enough = found[0].value - within * float(environments.count.sum()) / FEWER
    near = [one for one in found if one.value >= enough]
    return [one.unmixing for one in sorted(near, key=lambda one: not (settled and one.own))]


def nearby_maps(
    environments: linear_sem.Environments, changed: float, draws: int, generator: torch.Generator
) -> Tensor:
    """Draws of the unmixing of y (draw, latent, latent) about the maximum at the identity, with rows of unit diagonals.

    changed: as `Start` has it. n rows count as m, 1 / m = 1 / n + HIDDEN changed, for errors of y that are the same in
    all: where ways nearly cancel, little of the likelihood tells the map. HIDDEN stands between what mixings that
    hardly bend need and, larger, those that bend: network and map err together, which no constant tells.
    """
    fewer = 1.0 + float(environments.count.sum()) * HIDDEN * changed
    environments = environments._replace(count=(environments.count / fewer).clamp_min(2.0))
    slices = linear_sem.slices(environments, linear_sem.target_pairs(environments.target.cpu()))
    total = environments.count.sum()

    def objective(rows: Tensor) -> Tensor:
        return linear_sem.log_marginal(rows, slices, total, 0.5)

    eye = torch.eye(environments.mean.shape[1]).to(environments.cov)
    mode = directions.climb(objective, eye[None])[0]
    start = annealed.Maxima(mode.chart[None], mode.root[None], mode.value.new_zeros(1))
    if len(eye) <= CHEAP:
        rows = annealed.about_maxima(objective, start, generator).rows
    else:
        rows = annealed.of_maxima(start, mode.log_evidence, generator).rows
    rows = rows[torch.randperm(len(rows), generator=generator)[:draws].to(rows.device)]
    return rows / rows.diagonal(dim1=-2, dim2=-1)[..., None]


# -- latents -----------------------------------------------------------------------------------------------------


def slice_directions(latents: int, slices: int, like: Tensor) -> Tensor:
    """(latent, slices) random unit vectors, half of them with two non-zero coordinates at most."""
    direction = torch.randn(latents, slices, device=like.device, dtype=like.dtype)
    pairs = one_hot(torch.randint(latents, (2, slices // 2), device=like.device), latents).sum(0).clamp(max=1).mT
    direction = torch.cat([direction[:, : slices // 2] * pairs, direction[:, slices // 2 :]], 1)
    return direction / direction.norm(dim=0)


def law_distance(along: Tensor, average: Tensor, direction: Tensor | None = None) -> Tensor:
    """() squared difference of characteristic functions (Epps & Pulley 1983), of residuals along random directions and
    of N(0, 1), averaged over these and over groups of rows.

    along: (rows, slices); average: (group, rows), each group's weights. direction: (latent, slices), where residuals
    are to be independent Laplace ones of scale 1 instead.
    """
    real, imaginary = Waves.apply(along, average)  # (frequency, group, slices)
    t = FREQUENCIES.to(along)[:, None]
    law = (-0.5 * t.square()).exp()
    if direction is not None:
        law = (1 / (1 + (t[:, None] * direction).square())).prod(1)  # (frequency, slices)
    gap = (real - law[:, None]).square() + imaginary.square()
    return gap.mean((1, 2)) @ (-0.25 * t[:, 0].square()).exp()


class Waves(torch.autograd.Function):
    """Averages (2, frequency, group, slices) of cos(t a) and sin(t a), for t in `FREQUENCIES`, of a (rows, slices) by
    weights (group, rows). The first frequency's waves give all others, its multiples', by products; those are kept for
    the gradient, of a alone."""

    @staticmethod
    def forward(ctx: Any, along: Tensor, average: Tensor) -> Tensor:
        first = along * FREQUENCIES[0].item()
        wave = along.new_empty(2, len(FREQUENCIES), *along.shape)
        torch.cos(first, out=wave[0, 0])
        torch.sin(first, out=wave[1, 0])
        twice = 2 * wave[0, 0]
        for k in range(1, len(FREQUENCIES)):
            torch.mul(twice, wave[:, k - 1], out=wave[:, k])
            if k > 1:
                wave[:, k] -= wave[:, k - 2]
            else:
                wave[0, k] -= 1.0
        ctx.save_for_backward(average, wave)
        return average @ wave

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        average, wave = ctx.saved_tensors
        real, imaginary = gradient * FREQUENCIES.to(wave)[:, None, None]
        along = (average.mT @ imaginary).mul_(wave[0])
        return along.addcmul_(average.mT @ real, wave[1], value=-1).sum(0), None


class Chart(nn.Module):
    """h (`encoder`) and its inverse (`decoder`), with a Gaussian law of its own for every class.

    normality, reconstruction: weights of the distance from a normal law, and of the mean squared error of the
    standardised inputs. They are small here, for heavy ones hold h near its start. batch: rows a step, for each class.
    """

    normality, reconstruction, batch = 0.3, 0.1, BATCH
    share: Tensor

    def __init__(self, encoder: Residual, decoder: nn.Module, share: Tensor) -> None:
        """share: (class,) of the rows."""
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("share", share.log())

    def law(self, z: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities (rows, class) but for constants, and residuals (rows, latent), N(0, I), under each row's own.

        z: (rows, latent); member: (rows, class) one-hot. Classes lie side by side in columns (class * latent), so that
        all are one long matrix product.
        """
        classes, latents = member.shape[1], z.shape[1]
        each = torch.eye(classes).to(z).repeat_interleave(latents, 0)  # (class * latent, class)
        own = torch.eye(latents).to(z).repeat(classes, 1)  # (class * latent, latent)
        member_of = member @ each.mT  # (rows, class * latent)
        count = member.sum(0)
        z = z - z.mean(0)  # or squares would lose digits
        mean = member.mT @ z / count.clamp_min(1.0)[:, None]  # (class, latent)
        scatter = ((z @ own.mT * member_of).mT @ z).unflatten(0, mean.shape)  # (class, latent, latent)
        scatter = scatter - count[:, None, None] * mean[:, :, None] * mean[:, None]
        eye = torch.eye(latents).to(z)
        shared = scatter.sum(0) / len(z) + 1e-6 * eye
        root = torch.linalg.cholesky((scatter + PSEUDO_ROWS * shared) / (count + PSEUDO_ROWS)[:, None, None])
        white = torch.linalg.solve_triangular(root, eye, upper=False)
        centre = (white @ mean[..., None]).flatten()
        residual = torch.addmm(-centre, z, white.flatten(0, 1).mT)  # (rows, class * latent)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (residual.square() @ each) - log_det, (member_of * residual) @ own

    def penalty(self) -> Tensor:
        """Minus the log prior of the law's parameters."""
        return self.share.new_zeros(())

    def terms(self, x: Tensor, group: Tensor, slices: int) -> tuple[Tensor, Tensor, Tensor]:
        """(cross-entropy, distance of the residuals from N(0, I), squared error of the inputs decoded from h).

        x: (rows, inputs) of the classes `group` (rows,). The distance is `law_distance` along `slice_directions`, class
        by class.
        """
        z = self.encoder(x)
        latents = z.shape[1]
        member = one_hot(group, len(self.share)).to(z)
        density, residual = self.law(z, member)
        average = member / member.sum(0).clamp_min(1.0)
        distance = law_distance(residual @ slice_directions(latents, slices, z), average.mT)
        return cross_entropy(density + self.share, group), distance, mse_loss(self.decoder(z), x)

    def loss(self, x: Tensor, group: Tensor, slices: int) -> Tensor:
        """The weighted sum of the terms, and the penalty."""
        entropy, distance, error = self.terms(x, group, slices)
        return entropy + self.normality * distance + self.reconstruction * error + self.penalty()

    @torch.no_grad()
    def apart(self, x: Tensor, group: Tensor, target: Tensor) -> float:
        """By how many nats a Gaussian law of its own for every class fits h better than equations do: a sharper test
        than the distance from a normal law."""
        return misfit(moments(self.encoder(x), group, target)).deviance / 2

    @torch.no_grad()
    def differs(self, other: Chart, x: Tensor) -> bool:
        """Whether some output of h correlates less than OTHER with the same one of another chart."""
        both = torch.cat([self.encoder(x), other.encoder(x)], 1).double()
        latents = both.shape[1] // 2
        return bool(torch.corrcoef(both.mT)[:latents, latents:].diagonal().abs().min() < OTHER)

    @torch.no_grad()
    def error(self, x: Tensor, group: Tensor, slices: int) -> float:
        """The loss of these rows."""
        return float(self.loss(x, group, slices))

    def train_on(
        self,
        x: Tensor,
        group: Tensor,
        rows: Tensor,
        steps: int,
        generator: torch.Generator,
        lr: float = LR,
        heat: float = 1.0,
    ) -> None:
        """Minimise the loss over the rows at these positions, see `minimise`."""

        def loss(pick: Tensor, _: float) -> Tensor:
            return self.loss(x[pick], group[pick], SLICES)

        minimise(self, loss, rows, steps, self.batch * len(self.share), generator, lr, heat)

    def bent(self, unmixing: Tensor, x: Tensor, group: Tensor, target: Tensor) -> Contrast:
        """A copy whose h is unmixing h, standardised, with the equations that fit it; target: (class, latent)."""
        chart = Chart(copy.deepcopy(self.encoder), copy.deepcopy(self.decoder), self.share.exp())
        found = moments(chart.encoder(x), group, target).transform(unmixing)
        _, mean, cov = found.pooled(torch.ones_like(found.count))
        sd = cov.diagonal().sqrt()
        chart.reparametrise((unmixing / sd[:, None]).to(x), (-mean / sd).to(x))
        equations = fitted(moments(chart.encoder(x), group, target))
        return Contrast(chart.encoder, chart.decoder, self.share.exp(), target[1:], equations)

    @torch.no_grad()
    def reparametrise(self, unmixing: Tensor, offset: Tensor) -> None:
        """h becomes unmixing h + offset, and the decoder still its inverse."""
        inverse = torch.linalg.inv(unmixing)
        self.encoder.followed_by(unmixing, offset)
        for layer in (self.decoder.linear, self.decoder.net[0]):
            layer.weight.copy_(layer.weight @ inverse)
            layer.bias.sub_(layer.weight @ offset)


class Contrast(Chart):
    """A chart in which the law of every class is that of equations.

    hit: (class - 1, latent), which latents each class but the observational one intervenes on.
    """

    normality, reconstruction = 3.0, 1.0
    hit: Tensor

    def __init__(self, encoder: Residual, decoder: Residual, share: Tensor, hit: Tensor, equations: Equations) -> None:
        super().__init__(encoder, decoder, share)
        for name, value in equations._asdict().items():
            setattr(self, name, nn.Parameter(value.to(share)))
        self.register_buffer("hit", hit.to(share))

    def equations(self) -> Equations:
        weight = self.weight * (1 - torch.eye(len(self.weight)).to(self.weight))
        return Equations(weight, *(getattr(self, name) for name in Equations._fields[1:]))

    def penalty(self) -> Tensor:
        """A prior of few weights, in units of the noise: the same whatever the latents' scales."""
        weight, _, log_scale, *_ = self.equations()
        unit = weight * (log_scale[:, None] - log_scale).exp()
        return SPARSITY * (unit / NEGLIGIBLE).square().log1p().sum()

    def law(self, z: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        weight, intercept, log_scale, own_intercept, own_log_scale = self.equations()
        natural = (z - intercept - z @ weight) * (-log_scale).exp()  # (rows, latent)
        precision = self.hit * (-2 * own_log_scale).exp()  # (class - 1, latent)
        linear = precision * own_intercept
        own = z.square() @ precision.mT - 2 * z @ linear.mT + (linear * own_intercept).sum(-1)
        change = (self.hit * (log_scale - own_log_scale)).sum(-1) + log_det_change(weight, self.hit)
        odds = 0.5 * (natural.square() @ self.hit.mT - own) + change  # (rows, class - 1)
        acting = member[:, 1:] @ self.hit  # (rows, latent)
        level, scale = (member[:, 1:] @ (self.hit * part) for part in (own_intercept, (-own_log_scale).exp()))
        residual = torch.where(acting > 0, (z - level) * scale, natural)
        return torch.cat([torch.zeros_like(odds[:, :1]), odds], 1), residual


class Plan(NamedTuple):
    """layers: of h's network. branches: optima of the third step's affine map that are tried, at most, within so many
    nats a row of the best. rounds: of the third step, at most. normality: its weight there. cooling: of the rates of
    optimisation, from one round to the next. pretrain: steps of the first step, in those of each later one. kept: one
    row in this many is kept out, to tell whether a round helped, by residuals along last_slices directions. looked_at:
    rows, at most, by which optima are compared, and of the regressions that tell which classes share a latent."""

    layers: int = 3
    branches: int = 3
    within: float = 0.0125
    rounds: int = 5
    normality: float = Contrast.normality
    cooling: float = 1.0
    pretrain: float = 0.25
    kept: int = 10
    last_slices: int = 256
    looked_at: int = 20_000


PLAN = Plan()


class Start(NamedTuple):
    """encoder: h; unmixing (latent, latent): latents are unmixing h(x). rival: by how many nats the best of the other
    optima that were tried, which bent h to other latents, is worse; infinite where there was none. changed: share of
    the variance of h after the last round of training that is no affine function of h before it."""

    encoder: Residual
    unmixing: Tensor
    rival: float
    changed: float


def construct(
    x: Tensor,
    env: Tensor,
    target: Tensor,
    width: int,
    steps: int,
    generator: torch.Generator,
    hypotheses: Sequence[Tensor] = (),
    plan: Plan = PLAN,
) -> Start:
    """h and its unmixing, by the five steps of this file.

    x: (rows, inputs), standardised; target: (env, latent) in {0, 1}; steps: of the second step, and of each round of
    the third. hypotheses: of targets, where they are unknown, environment 0 is observational and every latent has two
    others; `target` is then only the shape of one of them.
    Networks draw their weights from torch's global generator, whose state is restored.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed):
        return _construct(x, env, target, width, steps, generator, hypotheses, plan)


def _construct(
    x: Tensor,
    env: Tensor,
    target: Tensor,
    width: int,
    steps: int,
    generator: torch.Generator,
    hypotheses: Sequence[Tensor],
    plan: Plan,
) -> Start:
    changed = torch.nonzero(target.sum(1) > 0).flatten()
    group = torch.zeros_like(env)
    for position, e in enumerate(changed.tolist()):
        group[env == e] = position + 1
    latents = target.shape[1]
    target = torch.cat([torch.zeros_like(target[:1]), target[changed]])  # (class, latent)
    share = one_hot(group, len(target)).to(x).mean(0)
    mixed = torch.randperm(len(x), generator=generator).to(x.device)
    out = max(1, len(x) // plan.kept)
    kept, rows = mixed[:out], mixed[out:]
    encoder = Residual(x.shape[1], len(target) if hypotheses else latents, width, plan.layers).to(x)
    decoder = Residual(latents, x.shape[1], width).to(x)
    if hypotheses:
        paired_start(encoder, x, group, rows, steps, hypotheses, generator, plan)
        with torch.no_grad():
            h = moments(encoder(x), group, target)
            fits = [optima(h._replace(target=one.double()), generator)[0].value for one in hypotheses]
        target = hypotheses[int(np.argmax(fits))].to(target)
    else:
        linear_start(encoder, decoder, x)
    chart = Chart(encoder, decoder, share)

    def decoded(pick: Tensor, _: float) -> Tensor:
        return mse_loss(decoder(encoder(x[pick])), x[pick])

    first = decoder if hypotheses else chart  # reconstruction alone would undo the log-odds
    minimise(first, decoded, rows, max(1, int(plan.pretrain * steps)), chart.batch * len(share), generator)
    if not hypotheses:
        chart.train_on(x, group, rows, steps, generator)
    best, least, rival, changed = chart.encoder, math.inf, math.inf, 0.0
    look = mixed[: plan.looked_at]
    for turn in range(plan.rounds):
        before = chart.encoder
        with torch.no_grad():
            near = likely(moments(chart.encoder(x), group, target), plan.within, turn > 0, generator)
            tried = [chart.bent(one, x, group, target) for one in near[: 1 if turn else plan.branches]]
        for contrast in tried:
            contrast.normality = plan.normality
            contrast.train_on(x, group, rows, steps, generator, heat=plan.cooling**turn)
        if not turn:
            apart = [one.apart(x, group, target) for one in tried]
            error = [one.error(x[look], group[look], plan.last_slices) for one in tried]
            nats = len(x) * np.array(error) + np.array(apart)
            others = [one.differs(tried[int(nats.argmin())], x[look]) for one in tried]
            rival = float(np.min(nats[others] - nats.min(), initial=math.inf))
            tried = [tried[int(nats.argmin())]]
        (chart,) = tried
        changed = _not_affine(before(x), chart.encoder(x)) if turn else 0.0
        reached = chart.error(x[kept], group[kept], plan.last_slices)
        if not reached < least:
            break
        least, best = reached, chart.encoder
    with torch.no_grad():
        unmixing = likely(moments(best(x), group, target), plan.within, True, generator)[0]
    return Start(best, unmixing, rival, changed)


@torch.no_grad()
def _not_affine(inputs: Tensor, outputs: Tensor) -> float:
    """Share of the outputs' (rows, output) variance that no affine function of the inputs (rows, input) explains."""
    a, b = (v.double() - v.double().mean(0) for v in (inputs, outputs))
    left = b - a @ least_squares(a, b)
    return float((left.var(0) / b.var(0)).mean())


@torch.no_grad()
def linear_start(encoder: Residual, decoder: Residual, x: Tensor) -> None:
    """The leading principal components of x with variance 1, and the linear map back."""
    value, vector = torch.linalg.eigh(torch.cov(x.mT.double()))
    value, vector = (part[..., -encoder.linear.out_features :] for part in (value, vector))
    sd = value.clamp_min(1e-6 * float(value[-1])).sqrt()
    encoder.near((vector / sd).mT)
    decoder.near(vector * sd)


def paired_start(
    encoder: Residual,
    x: Tensor,
    group: Tensor,
    rows: Tensor,
    steps: int,
    hypotheses: Sequence[Tensor],
    generator: torch.Generator,
    plan: Plan = PLAN,
) -> None:
    """Let an encoder with an output a class become h, the log-odds between the two classes of each latent.

    Those between two perfect interventions on z_k depend on z_k alone, whatever the mixing (von Kuegelgen et al. 2023,
    section 4), and linearly where only the mean differs; then all other log-odds are quadratic in them. So h is that of
    the hypothesis whose log-odds leave least of all others to a quadratic regression. A start only: where variances
    differ it may be wrong, and the evidence of h's moments decides.
    """
    classes = encoder.linear.out_features
    encoder.constant(0.0)

    def loss(pick: Tensor, _: float) -> Tensor:
        return cross_entropy(encoder(x[pick]), group[pick])

    minimise(encoder, loss, rows, steps, BATCH * classes, generator)
    with torch.no_grad():
        logits = encoder(x[rows[: plan.looked_at]]).double()
        odds = logits[:, 1:] - logits[:, :1]
        left = []
        for target in hypotheses:
            r = logits @ _between(target).mT.to(logits)
            r = (r - r.mean(0)) / r.std(0)
            pairs = torch.combinations(torch.arange(r.shape[1]), with_replacement=True)
            design = torch.cat([torch.ones_like(r[:, :1]), r, r[:, pairs[:, 0]] * r[:, pairs[:, 1]]], 1)
            left.append((odds - design @ least_squares(design, odds)).square().sum())
        contrast = _between(hypotheses[int(torch.stack(left).argmin())]).to(logits)
        r = logits @ contrast.mT
        sd = r.std(0)
        encoder.followed_by((contrast / sd[:, None]).to(x), (-r.mean(0) / sd).to(x))


def _between(target: Tensor) -> Tensor:
    """(latent, class) 1 and -1 for the two classes of each latent."""
    out = torch.zeros_like(target).mT
    for k, column in enumerate(target.mT):
        first, second = torch.nonzero(column).flatten().tolist()
        out[k, first], out[k, second] = 1.0, -1.0
    return out


def moments(z: Tensor, group: Tensor, target: Tensor) -> linear_sem.Environments:
    """Statistics of rows z (rows, latent) in each environment, float64."""
    parts = [z[group == c].double() for c in range(len(target))]
    return linear_sem.Environments(
        torch.tensor([float(len(part)) for part in parts], dtype=torch.float64, device=z.device),
        torch.stack([part.mean(0) for part in parts]),
        torch.stack([torch.cov(part.mT, correction=0).reshape(z.shape[1], z.shape[1]) for part in parts]),
        target.double(),
    )
