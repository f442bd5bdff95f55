"""Linear Gaussian structural equation models under interventions: likelihoods in closed form, and draws.

A latent vector follows z_k = a_k + sum_j z_j w[j, k] + eps_k, eps_k ~ N(0, s_k^2), with weights w as
(parent, child). An environment that intervenes on k *perfectly* cuts k's parents and gives it a mean and a
variance of its own; a *soft* intervention keeps parents but gives k a regression of its own.

Two forms of one distribution: `sem_moments` and `sem_log_prob` are vectorised, for fitting;
`unrolled` has one site per latent, for ChiRho's `do`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.errors import reject
from pyrocrl.graphs import log_edge_prior, log_order_prior, log_partition
from pyrocrl.indeterminacy import is_acyclic, topological_order

Intervention = Literal["perfect", "soft"]
Objective = Callable[[Tensor], Tensor]


class Environments(NamedTuple):
    """Sufficient statistics of Gaussian environments and what each intervenes on.

    count: (env,); mean: (env, d); cov: (env, d, d), divided by the count; target: (env, d) in {0, 1}.
    """

    count: Tensor
    mean: Tensor
    cov: Tensor
    target: Tensor

    def pooled(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count (...), mean (..., d) and covariance (..., d, d) of the environments weighted by (..., env)."""
        n = weight * self.count
        count = n.sum(-1)
        share = n / count.clamp_min(1.0)[..., None]
        mean = share @ self.mean
        apart = self.mean - mean[..., None, :]  # (..., env, d)
        between = torch.einsum("...e,...ei,...ej->...ij", share, apart, apart)
        return count, mean, torch.einsum("...e,eij->...ij", share, self.cov) + between

    def transform(self, matrix: Tensor) -> Environments:
        """Statistics of matrix @ y, with matrix (..., k, d) (leading dimensions go before env)."""
        mean = torch.einsum("...kd,ed->...ek", matrix, self.mean)
        cov = torch.einsum("...ki,eij,...lj->...ekl", matrix, self.cov, matrix)
        return Environments(self.count, mean, cov, self.target)


class Slices(NamedTuple):
    """The environments sorted by mechanism: every (node, own mechanism) has a count, mean and covariance.

    Slice k < d pools the environments that leave node k alone; each further slice is one (env, target)
    pair. Rows: node (slice,), count (slice,), mean (slice, d), cov (slice, d, d).
    """

    node: Tensor
    count: Tensor
    mean: Tensor
    cov: Tensor


def slices(environments: Environments, pairs: Sequence[tuple[int, int]]) -> Slices:
    """Sort environments by mechanism; `pairs` lists (env, target), as `target_pairs` gives them."""
    d = environments.mean.shape[-1]
    count, mean, cov = environments.pooled(1.0 - environments.target.to(environments.count.dtype).T)
    env = torch.tensor([e for e, _ in pairs], dtype=torch.long, device=count.device)
    own = torch.tensor([k for _, k in pairs], dtype=torch.long, device=count.device)
    return Slices(
        torch.cat([torch.arange(d, device=count.device), own]),
        torch.cat([count, environments.count[env]]),
        torch.cat([mean, environments.mean[env]]),
        torch.cat([cov, environments.cov[env]]),
    )


def target_pairs(target: Tensor | np.ndarray) -> list[tuple[int, int]]:
    """(env, target) pairs of a target matrix (env, d), environments in order."""
    return [(int(e), int(k)) for e, k in np.argwhere(np.asarray(target) != 0)]


def log_minors(cov: Tensor) -> Tensor:
    """Log determinants of all 2**d principal submatrices, (..., d, d) -> (..., 2**d); the empty one is 0.

    Node by node, each matrix is once reduced (its Schur complement) and once just left out: O(2**d)
    work in all, with batched operations only.
    """
    d = cov.shape[-1]
    rest, out = cov[..., None, :, :], torch.zeros_like(cov[..., :1, 0])
    for _ in range(d):
        pivot = rest[..., :1, :1]
        without = rest[..., 1:, 1:]
        with_ = without - rest[..., 1:, :1] * (rest[..., :1, 1:] / pivot)
        out = torch.cat([out, out + pivot[..., 0, 0].log()], -1)
        rest = torch.cat([without, with_], -3)
    return out


def log_abs_det(matrix: Tensor) -> Tensor:
    """log |det| of (..., d, d), from the pivots of the Gram matrix.

    Not `torch.linalg.slogdet`: under vmap its forward-over-reverse second derivative is wrong (torch 2.13).
    """
    rest, out = matrix @ matrix.mT, torch.zeros_like(matrix[..., 0, 0])
    for _ in range(matrix.shape[-1]):
        pivot = rest[..., :1, :1]
        out = out + 0.5 * pivot[..., 0, 0].log()
        rest = rest[..., 1:, 1:] - rest[..., 1:, :1] * (rest[..., :1, 1:] / pivot)
    return out


def regression_scores(cov: Tensor, count: Tensor, node: Tensor) -> Tensor:
    """Log marginal likelihood of node's values given each set of parents: (s, d, d) -> (s, 2**d).

    cov, count: moments of the rows (s slices); node: (s,). Intercept and noise have the prior
    p(a, s^2) = s^-3, slopes Zellner's g-prior with g = count (unit information): with R^2 of the parents,
    (1 + g)^(-|pa|/2) times (count var (1 + g (1 - R^2)) / (1 + g))^(-count/2), and constants. The prior is
    scale-free: rescaling any z by c only adds -count log c to its own score. Entries whose set holds the node
    are meaningless.
    """
    d = cov.shape[-1]
    minors = log_minors(cov)
    sets = torch.arange(2**d, device=cov.device)
    own = 2**node
    size = ((sets[:, None] >> torch.arange(d, device=cov.device)) & 1).sum(-1)
    with_node = minors.gather(-1, sets | own[:, None])
    log_var = minors.gather(-1, own[:, None])
    n = count[:, None]
    g = n
    log_unexplained = with_node - minors.gather(-1, sets & ~own[:, None]) - log_var  # log (1 - R^2)
    log_rest = torch.log1p(g * log_unexplained.exp()) - torch.log1p(g)
    constant = torch.lgamma(n / 2) - 0.5 * (n - 1) * math.log(2 * math.pi) - 0.5 * n.log()
    constant = constant - 0.5 * n * (n / 2).log()
    score = constant - 0.5 * n * (log_var + log_rest) - 0.5 * size * torch.log1p(g)
    return torch.where(n > 0, score, torch.zeros_like(score))


def mechanism_scores(unmixing: Tensor, data: Slices, prob: float, intervention: Intervention = "perfect") -> Tensor:
    """Score table (d, 2**d) of z = unmixing @ y for the sums over orders: prior and marginal likelihood."""
    d = unmixing.shape[-1]
    cov = unmixing @ data.cov @ unmixing.mT  # (slice, d, d)
    scores = log_edge_prior(d, prob, unmixing.device).to(cov.dtype)
    scores = scores + regression_scores(cov[:d], data.count[:d], data.node[:d])
    if len(data.node) == d:
        return scores
    own = data.node[d:]
    if intervention == "soft":
        more = regression_scores(cov[d:], data.count[d:], own)
    else:
        alone = cov[d:].gather(-1, own[:, None, None].expand(-1, d, 1)).squeeze(-1).gather(-1, own[:, None])
        more = regression_scores(alone[..., None], data.count[d:], torch.zeros_like(own))[:, :1]
    hot = (own[None, :] == torch.arange(d, device=own.device)[:, None]).to(scores.dtype)  # (d, pair)
    return scores + hot @ more


def log_marginal(
    unmixing: Tensor, data: Slices, total: Tensor, prob: float, intervention: Intervention = "perfect"
) -> Tensor:
    """log p(y | unmixing): graph, weights, intercepts and noise summed and integrated out. Scalar.

    y (total rows) has z = unmixing @ y; the order of the nodes is uniform, edges given the order are
    Bernoulli(prob). Does not change when a row of `unmixing` is multiplied by a number.
    """
    d = unmixing.shape[-1]
    scores = mechanism_scores(unmixing, data, prob, intervention)
    jacobian = total * log_abs_det(unmixing)
    return log_partition(scores) + log_order_prior(d, prob) + jacobian


class Mechanisms(NamedTuple):
    """Drawn or averaged parameters of each slice (see `Slices`): weight (slice, d) into the slice's node."""

    weight: Tensor
    intercept: Tensor
    scale: Tensor


def draw_mechanisms(
    unmixing: Tensor, graph: Tensor, data: Slices, intervention: Intervention = "perfect", noisy: bool = True
) -> Mechanisms:
    """Exact posterior draw of weights, intercepts and noise given unmixing and graph (parent, child).

    With noisy=False the posterior means of weights and intercepts, and the noise's posterior mode.
    Randomness through torch's global generator (`torch.randn`, Gamma), safe under vmap.
    """
    d = unmixing.shape[-1]
    mean = data.mean @ unmixing.mT  # (slice, d)
    cov = unmixing @ data.cov @ unmixing.mT
    parents = graph.to(cov.dtype).mT[data.node]  # (slice, d)
    if intervention == "perfect":
        natural = torch.arange(len(data.node), device=cov.device) < d
        parents = parents * natural[:, None]
    node = (data.node[:, None] == torch.arange(d, device=cov.device)).to(cov.dtype)  # one-hot (slice, d)
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    outer = parents[:, :, None] * parents[:, None, :]
    inner = cov * outer + eye * (1 - parents)[:, :, None]  # parents' block; identity elsewhere
    root = torch.linalg.cholesky(inner)
    cross = (cov @ node[..., None]) * parents[..., None]
    slope = torch.cholesky_solve(cross, root).squeeze(-1)  # least squares
    n = data.count.clamp_min(1.0)
    shrink = n / (1 + n)
    variance = torch.einsum("si,sij,sj->s", node, cov, node)
    rest = variance - shrink * (cross.squeeze(-1) * slope).sum(-1)
    floor = torch.finfo(cov.dtype).eps * variance
    rest = torch.maximum(rest, floor)
    if noisy:
        noise_var = 0.5 * n * rest / torch._standard_gamma(n / 2)
        wobble = torch.linalg.solve_triangular(root.mT, torch.randn_like(cross), upper=True).squeeze(-1) * parents
        slope = shrink[:, None] * slope + (shrink * noise_var / n).sqrt()[:, None] * wobble
        jitter = (noise_var / n).sqrt() * torch.randn_like(n)
    else:
        noise_var, slope, jitter = n * rest / (n + 2), shrink[:, None] * slope, torch.zeros_like(n)
    intercept = (mean * node).sum(-1) - (mean * slope).sum(-1) + jitter
    return Mechanisms(slope, intercept, noise_var.sqrt())


class LinearSEM(NamedTuple):
    """z = intercept + weight^T z + eps, eps ~ N(0, scale^2); weight (..., parent, child), others (..., d)."""

    weight: Tensor
    intercept: Tensor
    scale: Tensor


def by_environment(mechanisms: Mechanisms, pairs: Sequence[tuple[int, int]], environments: int) -> LinearSEM:
    """Mechanisms put together per environment: weight (env, parent, child), intercept and scale (env, d)."""
    d = mechanisms.weight.shape[-1]
    use = np.tile(np.arange(d), (environments, 1))
    for position, (env, node) in enumerate(pairs):
        use[env, node] = d + position
    index = torch.as_tensor(use, device=mechanisms.weight.device)
    weight = mechanisms.weight[index]  # (env, child, parent)
    return LinearSEM(weight.mT, mechanisms.intercept[index], mechanisms.scale[index])


def sem_moments(sem: LinearSEM) -> tuple[Tensor, Tensor]:
    """Mean (..., d) and covariance (..., d, d) of z."""
    eye = torch.eye(sem.weight.shape[-1], dtype=sem.weight.dtype, device=sem.weight.device)
    total = torch.linalg.inv(eye - sem.weight)  # (source, reached): sum over directed paths
    mean = (sem.intercept[..., None, :] @ total).squeeze(-2)
    root = sem.scale[..., :, None] * total
    return mean, root.mT @ root


def sem_log_prob(z: Tensor, sem: LinearSEM) -> Tensor:
    """Log density of rows z (..., d): every node given its parents (the graph is acyclic: no determinant)."""
    fitted = sem.intercept + (z[..., None, :] @ sem.weight).squeeze(-2)
    standard = (z - fitted) / sem.scale
    return (-0.5 * standard.square() - sem.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def unrolled(sem: LinearSEM, rows: int, names: Sequence[str] | None = None) -> Tensor:
    """Rows (rows, d) of one SEM drawn site by site: ``eps_<name>`` (noise), ``z_<name>`` (the latent).

    The sites sit in a plate ``data`` (dim -1), parents before children; setting ``z_<name>`` with ChiRho's
    `do` cuts the node from its parents. InputError when the weights have a directed cycle.
    """
    d = sem.weight.shape[-1]
    names = [f"latent_{k}" for k in range(d)] if names is None else list(names)
    graph = (sem.weight != 0).detach().cpu().numpy()
    if not is_acyclic(graph):
        reject("weight", "a directed cycle", "an acyclic graph")
    z: dict[int, Tensor] = {}
    with pyro.plate("data", rows, dim=-1):
        for k in topological_order(graph):
            eps = pyro.sample(f"eps_{names[k]}", dist.Normal(torch.zeros_like(sem.scale[k]), sem.scale[k]))
            value = sem.intercept[k] + eps
            for j in np.flatnonzero(graph[:, k]):
                value = value + sem.weight[j, k] * z[int(j)]
            z[k] = pyro.deterministic(f"z_{names[k]}", value, event_dim=0)
    return torch.stack([z[k].expand(rows) for k in range(d)], -1)


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
    """The two candidates, unit rows (2, d), for the target's row of the unmixing after a perfect intervention.

    In coordinates where the reference environment is white, the change of the precision is
    D = d d^T - c c^T: d is the target's own row times 1 / its new deviation, c (a unit vector) the row of its old
    mechanism. D is a difference of scores (Gaussian scores are linear). With its extreme eigenpairs (a, v) and
    (-b, w), all such (d, c) are hyperbolic rotations by t of (sqrt(a) v, sqrt(b) w), and |c| = 1 fixes t up to
    its sign: sinh^2 t = (1 - b) / (a + b). Squires et al. (2023) and Varici et al. (2024) use D's column space;
    the sign is what acyclicity has to tell.
    """
    value, vector = torch.linalg.eigh(change)
    a, b = value[-1].clamp_min(0.0), (-value[0]).clamp(0.0, 1.0)
    sinh = ((1 - b) / (a + b).clamp_min(1e-12)).sqrt()
    cosh = (1 + sinh.square()).sqrt()
    up, down = a.sqrt() * vector[:, -1], b.sqrt() * vector[:, 0]
    rows = torch.stack([cosh * up + sinh * down, cosh * up - sinh * down])
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def candidate_rows(environments: Environments, generator: torch.Generator) -> Tensor:
    """Two candidates for every row of the unmixing, (d, 2, d), from the environments that target it.

    Uses the environments with this target alone; where there are none, random directions within the span
    that the joint interventions change (twice as many dimensions as targets).
    """
    target = environments.target
    d = target.shape[1]
    single = target.sum(1) == 1
    reference = (target.sum(1) == 0).to(environments.cov.dtype)
    root = whitening(environments.pooled(reference)[2])
    eye = torch.eye(d, dtype=root.dtype, device=root.device)
    rows = []
    for k in range(d):
        use = (target[:, k] == 1) & single
        alone = bool(use.any())
        if not alone:
            use = target[:, k] == 1
        cov = environments.pooled(use.to(root.dtype))[2]
        change = torch.linalg.inv(root @ cov @ root) - eye
        if alone:
            rows.append(score_difference_directions(change))
        else:
            value, vector = torch.linalg.eigh(change)
            width = min(d, 2 * int(target[use].sum(1).min()))
            span = vector[:, value.abs().argsort(descending=True)[:width]]
            noise = torch.randn(2, width, generator=generator, dtype=root.dtype).to(root.device)
            rows.append(noise @ span.mT)
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
    """Unmixings (1 + rivals, d, d): the best choice among two candidates a row, then its nearest rivals.

    Single flips from a random choice until none helps; rivals are the best single flips of the result.
    """
    d = candidates.shape[0]
    node = torch.arange(d, device=candidates.device)
    choice = torch.randint(2, (d,), generator=generator).to(candidates.device)
    flips = torch.eye(d, dtype=torch.long, device=candidates.device)
    value = objective(candidates[node, choice])
    for _ in range(4 * d):
        others = candidates[node, choice ^ flips]  # (flip, d, d)
        values = torch.func.vmap(objective)(others).nan_to_num(nan=-torch.inf)
        best = int(values.argmax())
        if not values[best] > value:
            break
        choice, value = choice ^ flips[best], values[best]
    nearest = others[values.argsort(descending=True)[:rivals]]
    return torch.cat([candidates[node, choice][None], nearest])


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
