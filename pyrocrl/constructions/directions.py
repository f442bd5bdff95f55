"""Rows of a linear unmixing: their prior, where they start, and a search over the maxima of their likelihood.

A row has no scale of its own, so it is a direction: `Directions` is its uniform law, in a chart about a maximum.
`candidate_rows` are the theorem's construction (eigenvectors of score differences), `search` goes on from them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import chi2
from torch import Tensor

from pyrocrl.exact.linear_sem import KEEP_EQUATIONS, Environments, Intervention
from pyrocrl.parts.guides import FullNormalBlock

Objective = Callable[[Tensor], Tensor]
JOINT = 32  # candidates for a row that only joint interventions change
MANY = 8  # latents above which a start takes seconds
FAR = 0.9  # cosine of two rows, in white coordinates, below which they are not near
ANGLES, CHOICES = 8, 8  # rows around a plane, and choices among candidates from which an unmixing starts


class Effort(NamedTuple):
    """rivals: further starts beside the best one, a single one above MANY latents. enough: rows an environment, on
    average, on a share of which the search begins. keep: maxima between which a chain chooses by their evidence. draws:
    of the unmixing, for read-outs averaged over it."""

    rivals: int = 4
    enough: int = 600
    keep: int = 4
    draws: int = 64


EFFORT = Effort()


# ---- the unmixing: directions, where they start, how they are finished --------------------------------


class Directions(TorchDistribution):
    """d lines through the origin of R^d, uniform and independent, in gnomonic coordinates: shape (d (d - 1),).

    A row of the unmixing has no scale of its own (see `log_marginal`), so it is a point of projective space:
    m = e_0 + sum_i u_i e_i in an orthonormal basis e ("chart"). Uniform lines have the density of a
    (d - 1)-dimensional Cauchy distribution in u, whatever the basis.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, like: Tensor, d: int, validate_args: bool | None = None) -> None:
        self.like, self.d = like, d
        super().__init__(torch.Size(), torch.Size((d * (d - 1),)), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, self.d, self.d)
        normal = torch.randn(shape, dtype=self.like.dtype, device=self.like.device)
        return (normal[..., 1:] / normal[..., :1]).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        square = value.unflatten(-1, (self.d, self.d - 1)).square().sum(-1)
        constant = math.lgamma(self.d / 2) - self.d / 2 * math.log(math.pi)
        return (constant - self.d / 2 * square.log1p()).sum(-1)


def chart_at(rows: Tensor) -> Tensor:
    """Orthonormal bases (..., d, d, d), one for each row (..., d, d), that begin with the row's direction."""
    d = rows.shape[-1]
    eye = torch.eye(d, dtype=rows.dtype, device=rows.device).expand(*rows.shape, d)
    basis = torch.linalg.qr(torch.cat([rows[..., None], eye], -1)).Q
    sign = torch.where((basis[..., 0] * rows).sum(-1) < 0, -1.0, 1.0)
    return (basis * sign[..., None, None]).mT


def unit_rows(tangent: Tensor, chart: Tensor) -> Tensor:
    """Rows of length 1, (..., d, d), at gnomonic coordinates (..., d (d - 1)) of a chart (d, d, d)."""
    d = chart.shape[-1]
    u = tangent.unflatten(-1, (d, d - 1))
    rows = (torch.cat([torch.ones_like(u[..., :1]), u], -1)[..., None, :] @ chart).squeeze(-2)
    return rows / rows.norm(dim=-1, keepdim=True)


def whitening(cov: Tensor) -> Tensor:
    """Symmetric inverse root of a covariance (d, d)."""
    value, vector = torch.linalg.eigh(cov)
    return (vector / value.clamp_min(torch.finfo(cov.dtype).tiny).sqrt()) @ vector.mT


def score_difference_directions(change: Tensor) -> Tensor:
    """Two candidates for a target's row of the unmixing, and two for its observational mechanism's: unit rows (4, d).

    In coordinates where the reference environment is white, the change of the precision is
    D = d d^T - c c^T: c (a unit vector) is the row of the old mechanism, d that of the new one times 1 / its
    deviation, which after a perfect intervention is the target's own row. D is a difference of scores (Gaussian scores
    are linear). With its extreme eigenpairs (a, v) and (-b, w), all such (d, c) are hyperbolic rotations by t of
    (sqrt(a) v, sqrt(b) w), and |c| = 1 fixes t up to its sign: sinh^2 t = (1 - b) / (a + b). Squires et al. (2023) and
    Varici et al. (2024) use D's column space; the sign is what acyclicity has to tell.
    """
    value, vector = torch.linalg.eigh(change)
    a, b = value[-1].clamp_min(0.0), (-value[0]).clamp(0.0, 1.0)
    sinh = ((1 - b) / (a + b).clamp_min(1e-12)).sqrt()
    cosh = (1 + sinh.square()).sqrt()
    up, down = a.sqrt() * vector[:, -1], b.sqrt() * vector[:, 0]
    new = [cosh * up + sinh * down, cosh * up - sinh * down]
    rows = torch.stack([*new, sinh * up + cosh * down, sinh * up - cosh * down])
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def candidate_rows(
    environments: Environments, generator: torch.Generator, intervention: Intervention = "perfect"
) -> Tensor:
    """Candidates for every row of the unmixing, (d, candidate, d), from the environments that target it.

    Uses the environments with this target alone; where there are none, random directions within the span
    that the joint interventions change (twice as many dimensions as targets). For variance and shift interventions
    the rows are those of the innovations: the direction of the change of precision, which has rank one, and the row
    that the changes of mean imply, for these are columns of the innovations' mixing.
    """
    target = environments.target
    d = target.shape[1]
    single = target.sum(1) == 1
    reference = (target.sum(1) == 0).to(environments.cov.dtype)
    _, centre, natural = environments.pooled(reference)
    root = whitening(natural)
    white = environments.transform(root)
    eye = torch.eye(d, dtype=root.dtype, device=root.device)
    rows = []
    for k in range(d):
        use = (target[:, k] == 1) & single
        alone = bool(use.any())
        if not alone:
            use = target[:, k] == 1
        if not use.any():
            rows.append(torch.randn(JOINT, d, generator=generator, dtype=root.dtype).to(root.device))
            continue
        value, vector = torch.linalg.eigh(torch.linalg.inv(white.pooled(use.to(root.dtype))[2]) - eye)
        order = value.abs().argsort(descending=True)
        if not alone:
            rank = 1 if intervention in KEEP_EQUATIONS else 2
            span = vector[:, order[: min(d, rank * int(target[use].sum(1).min()))]]
            noise = torch.randn(JOINT, span.shape[1], generator=generator, dtype=root.dtype).to(root.device)
            rows.append(noise @ span.mT)
        elif intervention in KEEP_EQUATIONS:
            rows.append(vector[:, order[:1]].mT)
        else:
            directions = score_difference_directions((vector * value) @ vector.mT)
            rows.append(directions[:2] if intervention == "perfect" else directions)
    if intervention in KEEP_EQUATIONS:
        moved = white.mean - root @ centre  # (env, d): sums of the targets' columns
        jitter = 1e-6 * torch.randn(d, d, generator=generator, dtype=root.dtype).to(root.device)
        columns = torch.linalg.pinv(target.to(root.dtype)) @ moved + jitter
        implied = torch.linalg.inv(columns.mT)
        rows = [
            implied[k : k + 1] if intervention == "shift" else torch.cat([own, implied[k : k + 1]])
            for k, own in enumerate(rows)
        ]
    most = max(len(own) for own in rows)
    out = torch.stack([own[torch.arange(most) % len(own)] for own in rows]) @ root
    return out / out.norm(dim=-1, keepdim=True)


def plane_rows(environments: Environments, angles: int) -> Tensor:
    """Rows (d, angles, d) all around the plane that holds the row of each target after perfect interventions: that of
    the two leading eigenvectors of the change of precision (see `score_difference_directions`), of all environments
    that intervene on it. Where moments are a little off, the two candidates of the theory are too, and the plane less.
    """
    reference = (environments.target.sum(1) == 0).to(environments.cov)
    root = whitening(environments.pooled(reference)[2])
    white = environments.transform(root)
    eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
    angle = torch.arange(angles, dtype=root.dtype, device=root.device) * (math.pi / angles)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    rows = []
    for hit in white.target.mT:
        value, vector = torch.linalg.eigh(torch.linalg.inv(white.pooled(hit.to(root))[2]) - eye)
        rows.append(circle @ vector[:, value.abs().argsort(descending=True)[:2]].mT)
    out = torch.stack(rows) @ root
    return out / out.norm(dim=-1, keepdim=True)


def resample(environments: Environments, generator: torch.Generator) -> Environments:
    """A parametric bootstrap of the covariances: Wishart draws (Bartlett's decomposition) at each count."""
    d = environments.cov.shape[-1]
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    covs = []
    for n, cov in zip(environments.count.tolist(), environments.cov, strict=True):
        freedom = max(n - 1, d)
        root = np.tril(rng.standard_normal((d, d)), -1)
        root += np.diag(np.sqrt(rng.chisquare(freedom - np.arange(d))))
        factor = torch.linalg.cholesky_ex(cov).L @ torch.as_tensor(root, dtype=cov.dtype, device=cov.device)
        covs.append(factor @ factor.mT / freedom)
    return environments._replace(cov=torch.stack(covs))


def choose_rows(candidates: Tensor, objective: Objective, rivals: int, generator: torch.Generator) -> Tensor:
    """Unmixings (1 + rivals, d, d): the best choice of a candidate for each row, then its nearest rivals.

    candidates: (d, candidate, d). Changes of single rows from a random choice until none helps; rivals are the best
    such changes of the result.
    """
    d, each = candidates.shape[:2]
    node = torch.arange(d, device=candidates.device)
    choice = torch.randint(each, (d,), generator=generator).to(candidates.device)
    value = objective(candidates[node, choice])
    for _ in range(4 * d):
        others = choice.repeat(d, each, 1)
        others[node, :, node] = torch.arange(each, device=candidates.device)
        rows = candidates[node, others.flatten(0, 1)]  # (change, d, d)
        values = torch.func.vmap(objective, chunk_size=64)(rows).nan_to_num(nan=-torch.inf)
        best = int(values.argmax())
        if not values[best] > value:
            break
        choice, value = others.flatten(0, 1)[best], values[best]
    changed = (others.flatten(0, 1) != choice).any(-1)
    values = torch.where(changed, values, -torch.inf)
    order = values.argsort(descending=True)[: min(rivals, int(changed.sum()))]
    return torch.cat([candidates[node, choice][None], rows[order]])


def starts_around(
    environments: Environments, candidates: Tensor, objective: Objective, generator: torch.Generator
) -> Tensor:
    """Unmixings (start, d, d), likeliest first: choices (`choose_rows`) among candidates (d, candidate, d) and rows of
    the planes of all around, each from a random first choice."""
    wide = torch.cat([candidates, plane_rows(environments, ANGLES)], 1)
    found = torch.stack([choose_rows(wide, objective, 0, generator)[0] for _ in range(CHOICES)])
    found = torch.unique(found, dim=0)
    values = torch.stack([objective(rows) for rows in found]).nan_to_num(nan=-torch.inf)
    return found[values.argsort(descending=True)]


def pairs_exchanged(rows: Tensor, candidates: Tensor, objective: Objective) -> Tensor:
    """(pair, d, d) the unmixing `rows` with two rows exchanged, for each pair of them: the best of their candidates
    (d, candidate, d) that are not near what they replace (`FAR`)."""
    others = [own[(own @ row).abs() < FAR] for own, row in zip(candidates, rows, strict=True)]
    starts = []
    for j, k in itertools.combinations(range(len(rows)), 2):
        both = len(others[j]), len(others[k])
        if min(both) == 0:
            continue
        tried = rows.repeat(*both, 1, 1)
        tried[:, :, j] = others[j][:, None]
        tried[:, :, k] = others[k]
        values = torch.func.vmap(objective, chunk_size=64)(tried.flatten(0, 1)).nan_to_num(nan=-torch.inf)
        starts.append(tried.flatten(0, 1)[int(values.argmax())])
    return torch.stack(starts) if starts else rows.new_zeros(0, *rows.shape)


def rows_exchanged(rows: Tensor, candidates: Tensor) -> Tensor:
    """(latent times candidate, d, d) the unmixing `rows` with one row exchanged for each of its candidates (d,
    candidate, d)."""
    node = torch.arange(len(rows), device=rows.device)
    starts = rows.repeat(*candidates.shape[:2], 1, 1)
    starts[node, :, node] = candidates
    return starts.flatten(0, 1)


class Mode(NamedTuple):
    """A local maximum of log p(y, unmixing): chart (d, d, d) centred on it, and its Laplace approximation."""

    chart: Tensor
    root: Tensor  # lower Cholesky factor of the covariance of the gnomonic coordinates
    value: Tensor
    log_evidence: Tensor


def climb(objective: Objective, start: Tensor, most: int = 60, tolerance: float = 1e-4) -> list[Mode]:
    """Newton's method on the directions from each start (s, d, d), all at once; the distinct maxima found.

    objective: rows (d, d) -> log p(y | rows), blind to the rows' scale. Each step solves with |eigenvalues| of
    the Hessian, so that it always ascends, and tries lengths 1, 1/2, ... in parallel; the chart is re-centred after
    each step. Twice-differentiable objectives need 3 to 6 steps from the theorem's start.
    """
    d = start.shape[-1]
    size = d * (d - 1)
    prior = Directions(start, d)

    def density(tangent: Tensor, chart: Tensor) -> Tensor:
        return objective(unit_rows(tangent, chart)) + prior.log_prob(tangent)

    # reverse over reverse, in chunks that keep d 2**d numbers a column within memory
    chunk = max(1, 2**21 // (d * 2**d * len(start)))
    gradient = torch.func.grad(density)
    eye = torch.eye(size, dtype=start.dtype, device=start.device)

    def hessian(tangent: Tensor, chart: Tensor) -> Tensor:
        _, pull = torch.func.vjp(lambda u: gradient(u, chart), tangent)
        full: Tensor = torch.func.vmap(lambda row: pull(row)[0], chunk_size=chunk)(eye)
        return 0.5 * (full + full.mT)

    curvature = torch.func.vmap(hessian)
    length = 0.5 ** torch.arange(24, dtype=start.dtype, device=start.device)
    along = torch.func.vmap(torch.func.vmap(density, in_dims=(0, None)))
    zero = start.new_zeros(len(start), size)
    rows = start / start.norm(dim=-1, keepdim=True)
    for _ in range(most):
        chart = chart_at(rows)
        slope = torch.func.vmap(gradient)(zero, chart)
        value, vector = torch.linalg.eigh(-curvature(zero, chart))
        steep = value.abs().clamp_min(1e-8 * value.abs().amax(-1, keepdim=True))
        step = (vector @ ((vector.mT @ slope[..., None]) / steep[..., None])).squeeze(-1)
        tried = torch.cat([torch.zeros_like(length[:1]), length])
        values = along(tried[:, None] * step[:, None, :], chart).nan_to_num(nan=-torch.inf)
        best = values.argmax(-1)
        rows = torch.func.vmap(unit_rows)(tried[best][:, None] * step, chart)
        if bool((values.amax(-1) - values[:, 0] < tolerance + 1e-12 * values[:, 0].abs()).all()):
            break
    chart = chart_at(rows)
    value, vector = torch.linalg.eigh(-curvature(zero, chart))
    value = value.abs().clamp_min(1e-8 * value.abs().amax(-1, keepdim=True))
    root = torch.linalg.cholesky((vector / value[..., None, :]) @ vector.mT)
    height = torch.func.vmap(density)(zero, chart)
    evidence = height + 0.5 * size * math.log(2 * math.pi) - 0.5 * value.log().sum(-1)
    modes: list[Mode] = []
    kept: list[Tensor] = []
    for i in torch.argsort(height, descending=True).tolist():
        if all(float((rows[i] * other).sum(-1).abs().min()) < 1 - 1e-7 for other in kept):
            kept.append(rows[i])
            modes.append(Mode(chart[i], root[i], height[i], evidence[i]))
    return modes


def search(
    objective_at: Callable[[float], Objective],
    candidates: Tensor,
    share: float,
    rivals: int,
    keep: int,
    generator: torch.Generator,
) -> list[Mode]:
    """The best maxima found from candidates for every row (d, candidate, d), the one of most evidence first.

    A sum over graphs has a narrow peak for every sparse graph beside the broad ones of dense graphs, and many local
    maxima. With a share of the data, `objective_at(share)`, peaks are broad enough to be found: there, `choose_rows`
    gives starts with `rivals`, and rows of the best unmixing are exchanged for their farthest candidate, one at a time,
    until no exchange leads to more evidence. The best `keep` maxima are then followed while the share rises to 1.
    """
    d, each = candidates.shape[:2]
    node = torch.arange(d, device=candidates.device)
    starts = choose_rows(candidates, objective_at(share), rivals, generator)
    modes: list[Mode] = []
    best = -math.inf
    while True:
        modes = best_modes(modes + climb(objective_at(share), starts, most=20, tolerance=0.1), keep)
        gain, best = float(modes[0].log_evidence) - best, float(modes[0].log_evidence)
        if gain < 0.1 or each == 1:
            break
        rows = modes[0].chart[:, 0]
        farthest = (candidates * rows[:, None]).sum(-1).abs().argmin(1)
        starts = rows.repeat(d, 1, 1)
        starts[node, node] = candidates[node, farthest]
    while share < 1.0:
        share = 1.0 if share > 0.3 else 3.0 * share
        starts = torch.stack([mode.chart[:, 0] for mode in modes])
        modes = climb(objective_at(share), starts, most=20, tolerance=0.1) if share < 1.0 else modes
    return best_modes(climb(objective_at(1.0), torch.stack([mode.chart[:, 0] for mode in modes])), keep)


def search_again(
    objective_at: Callable[[float], Objective],
    environments: Environments,
    intervention: Intervention,
    generator: torch.Generator,
    effort: Effort = EFFORT,
) -> list[Mode]:
    """`search` from candidates of a bootstrap of the environments' moments."""
    candidates = candidate_rows(resample(environments, generator), generator, intervention)
    share = float((effort.enough * len(environments.count) / environments.count.sum()).clamp(0.03, 1.0))
    rivals = effort.rivals if len(candidates) <= MANY else 1
    return search(objective_at, candidates, share, rivals, effort.keep, generator)


def search_targets(
    log_density: Callable[[Tensor, Tensor, float], Tensor],
    environments: Environments,
    intervention: Intervention,
    unknown: bool,
    generator: torch.Generator,
    effort: Effort = EFFORT,
) -> tuple[list[Mode], Tensor]:
    """Maxima, the one of most evidence first, and targets: unknown ones are changed one at a time until none gains.

    log_density: rows (d, d), targets (env, d) and a share of the data -> log p(y | rows, targets) as if of that share.
    """
    target = environments.target

    def again() -> list[Mode]:
        def objective_at(share: float) -> Objective:
            return lambda rows: log_density(rows, target, share)

        return search_again(objective_at, environments._replace(target=target), intervention, generator, effort)

    modes = again()
    for _ in range(2 * len(target) if unknown else 0):  # each change gains, so that it ends well before
        rows = modes[0].chart[:, 0]
        better, gain = best_reassignment(lambda tried, rows=rows: log_density(rows, tried, 1.0), target)  # type: ignore[misc]
        if gain <= 0:
            break
        target = better
        modes = again()
    more = [] if target.shape[1] > MANY else again()  # one search in six misses the best
    return best_modes(modes + more, effort.keep), target


def tangents(root: Tensor, guide: FullNormalBlock, generator: torch.Generator, effort: Effort = EFFORT) -> Tensor:
    """(draw, d (d - 1)) draws of coordinates whose law, in units of `root`, is that of a block."""
    noise = torch.randn(effort.draws, len(root), generator=generator, dtype=root.dtype).to(root.device)
    return (guide.loc + noise @ guide.scale_tril.mT) @ root.mT


def best_modes(modes: Sequence[Mode], keep: int) -> list[Mode]:
    """The `keep` distinct modes of most evidence, in that order."""
    out: list[Mode] = []
    for mode in sorted(modes, key=lambda m: -float(m.log_evidence)):
        cosines = [float((mode.chart[:, 0] * other.chart[:, 0]).sum(-1).abs().min()) for other in out]
        if len(out) < keep and all(c < 1 - 1e-7 for c in cosines):
            out.append(mode)
    return out


# ---- unknown targets ------------------------------------------------------------------------------------


def cluster_targets(environments: Environments, intervention: Intervention = "perfect") -> Tensor:
    """A first guess of single targets, (env, d) in {0, 1}: environments that change the same directions share one.

    Environment 0 is the reference. In coordinates where it is white, the change of an environment's precision lies in
    two directions (one for a variance intervention), the same for all environments with the same target; a shift's is
    its change of mean. Environments are joined by average linkage into d clusters; one that does not differ from the
    reference (likelihood-ratio test, 1 in 100) has no target.
    """
    d = environments.mean.shape[-1]
    white = environments.transform(whitening(environments.cov[0]))
    moved = white.mean - white.mean[0]  # (env, d)
    change = torch.linalg.inv(white.cov) - torch.eye(d, dtype=moved.dtype, device=moved.device)
    if intervention == "shift":
        change = moved[:, :, None] * moved[:, None, :]
    value, vector = torch.linalg.eigh(change)
    order = value.abs().argsort(-1, descending=True)[:, : 1 if intervention in KEEP_EQUATIONS else 2]
    span = vector.gather(2, order[:, None, :].expand(-1, d, -1))
    inside = span @ span.mT
    left = change[None] - inside[:, None] @ change[None] @ inside[:, None]  # (span of env, change of env)
    misfit = left.flatten(2).norm(dim=-1) / change.flatten(1).norm(dim=-1).clamp_min(1e-12)
    n, n0 = environments.count, environments.count[0]
    both = (n[:, None, None] * white.cov + n0 * white.cov[0]) / (n + n0)[:, None, None]
    both = both + (n * n0 / (n + n0) ** 2)[:, None, None] * moved[:, :, None] * moved[:, None, :]
    logdet = torch.linalg.slogdet(white.cov).logabsdet
    ratio = (n + n0) * torch.linalg.slogdet(both).logabsdet - n * logdet - n0 * logdet[0]
    changed = ratio.cpu().numpy() > chi2.ppf(0.99, d * (d + 3) / 2)
    changed[0] = False
    used = np.flatnonzero(changed)
    target = torch.zeros_like(moved)
    if len(used) > 1:
        distance = torch.maximum(misfit, misfit.mT).cpu().numpy()[np.ix_(used, used)]
        np.fill_diagonal(distance, 0.0)
        label = fcluster(linkage(squareform(distance, checks=False), "average"), d, "maxclust") - 1
    else:
        label = np.zeros(len(used), dtype=int)
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))  # clusters in order of their first environment
    target[used, place[label]] = 1.0
    return target


def reassigned(
    evidence: Callable[[Tensor], Tensor], target: Tensor, uniform: Tensor, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """One sweep of Gibbs sampling over single targets: (target, probability), each (env, d).

    evidence: targets (env, d) -> log p(y | unmixing, targets); every target and none are equally probable before.
    uniform: (env,) numbers in (0, 1) that decide. Environment 0 stays without target.
    """
    envs, d = target.shape
    eye = torch.eye(d, dtype=target.dtype, device=target.device)
    options = torch.cat([eye, torch.zeros_like(eye[:1])])  # (d + 1, d)
    probs = [torch.zeros_like(target[0])]
    at = torch.arange(envs, device=target.device)
    for e in range(1, envs):
        here = (at == e)[:, None]
        tried = torch.where(here, options[:, None, :], target)  # (d + 1, env, d)
        p = torch.func.vmap(evidence, chunk_size=chunk)(tried).softmax(0)
        below = (p.cumsum(0) < uniform[e]).sum(0).clamp_max(d)
        chosen = (torch.arange(d, device=target.device) == below).to(target.dtype)
        target = torch.where(here, chosen, target)
        probs.append(p[:d])
    return target, torch.stack(probs)


def best_reassignment(evidence: Callable[[Tensor], Tensor], target: Tensor, chunk: int = 64) -> tuple[Tensor, float]:
    """(targets, gain in log evidence) of the best change of one environment's target; see `reassigned`."""
    envs, d = target.shape
    eye = torch.eye(d, dtype=target.dtype, device=target.device)
    options = torch.cat([eye, torch.zeros_like(eye[:1])])
    here = torch.eye(envs, device=target.device)[1:, None, :, None] > 0  # (changed, 1, env, 1)
    tried = torch.where(here, options[None, :, None, :], target).flatten(0, 1)
    values = torch.func.vmap(evidence, chunk_size=chunk)(tried)
    best = int(values.argmax())
    return tried[best], float(values[best] - evidence(target))
