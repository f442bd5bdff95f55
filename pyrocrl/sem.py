"""Linear Gaussian structural equation models under interventions: likelihoods in closed form, and draws.

A latent vector follows z_k = a_k + sum_j z_j w[j, k] + eps_k, eps_k ~ N(0, s_k^2), with weights w as
(parent, child). An environment that intervenes on k *perfectly* cuts k's parents and gives it a mean and a
variance of its own; a *soft* intervention keeps parents but gives k a regression of its own; a *variance*
intervention keeps k's weights but gives its noise a mean and variance of its own; a *shift* only a mean of its own.

Under variance and shift interventions only the noise changes. With a free linear mixing z = M y the graph then drops
out of the likelihood: the innovations n = (I - w^T) z = N y are independent in every environment, and any graph and
weights turn the same N into an M. `log_marginal` is then a function of N alone.

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
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import chi2
from torch import Tensor

from pyrocrl.errors import reject
from pyrocrl.graphs import log_edge_prior, log_order_prior, log_partition, sample_dags
from pyrocrl.indeterminacy import is_acyclic, topological_order

Intervention = Literal["perfect", "soft", "variance", "shift"]
KEEP_EQUATIONS = ("variance", "shift")  # kinds that change no weight
Objective = Callable[[Tensor], Tensor]
JOINT = 32  # candidates for a row that only joint interventions change


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
    pair, of count 0 where the environment does not intervene on the node after all. Rows: node (slice,),
    count (slice,), mean (slice, d), cov (slice, d, d).
    """

    node: Tensor
    count: Tensor
    mean: Tensor
    cov: Tensor


def slices(environments: Environments, pairs: Sequence[tuple[int, int]]) -> Slices:
    """Sort environments by mechanism; `pairs` lists (env, node): every pair that is a target, be there more of them."""
    d = environments.mean.shape[-1]
    count, mean, cov = environments.pooled(1.0 - environments.target.to(environments.count.dtype).T)
    env = torch.tensor([e for e, _ in pairs], dtype=torch.long, device=count.device)
    own = torch.tensor([k for _, k in pairs], dtype=torch.long, device=count.device)
    return Slices(
        torch.cat([torch.arange(d, device=count.device), own]),
        torch.cat([count, environments.count[env] * environments.target[env, own].to(count.dtype)]),
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


def innovation_scores(unmixing: Tensor, data: Slices, intervention: Intervention) -> Tensor:
    """Log marginal likelihood of each innovation, (d,), n = unmixing @ y, under variance or shift interventions.

    Variance: natural and own values are Gaussian samples of their own, p(a, s^2) = s^-3 each. Shift: they share s^2,
    p(a, s^2) = s^-3 of the natural ones, and each own intercept has a prior of unit information, constant:
    p(a' | s^2) = (2 pi s^2)^(-1/2).
    """
    d = unmixing.shape[-1]
    rows = unmixing[data.node]  # (slice, d)
    variance = torch.einsum("si,sij,sj->s", rows, data.cov, rows)
    n = data.count
    hot = (data.node[None, :] == torch.arange(d, device=n.device)[:, None]).to(variance.dtype)  # (d, slice)
    if intervention == "variance":
        return hot @ _sample_scores(variance, n)
    total = hot @ n
    within = hot @ (n * variance) / total.clamp_min(1.0)
    groups = hot @ torch.where(n > 0, n.clamp_min(1.0).log(), torch.zeros_like(n))
    return _sample_scores(within, total) + 0.5 * total.clamp_min(1.0).log() - 0.5 * groups


def _sample_scores(variance: Tensor, count: Tensor) -> Tensor:
    """(s,) log marginal likelihood of Gaussian samples with these moments; see `regression_scores`."""
    return regression_scores(variance[:, None, None], count, torch.zeros_like(count).long())[:, 0]


def log_marginal(
    unmixing: Tensor, data: Slices, total: Tensor, prob: float, intervention: Intervention = "perfect"
) -> Tensor:
    """log p(y | unmixing): graph, weights, intercepts and noise summed and integrated out. Scalar.

    y (total rows) has z = unmixing @ y; the order of the nodes is uniform, edges given the order are
    Bernoulli(prob). Does not change when a row of `unmixing` is multiplied by a number. Under variance and shift
    interventions unmixing @ y are the innovations, and graph and weights do not enter.
    """
    d = unmixing.shape[-1]
    jacobian = total * log_abs_det(unmixing)
    if intervention in KEEP_EQUATIONS:
        return innovation_scores(unmixing, data, intervention).sum() + jacobian
    scores = mechanism_scores(unmixing, data, prob, intervention)
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


def draw_innovations(unmixing: Tensor, data: Slices, intervention: Intervention) -> Mechanisms:
    """Exact posterior draw of intercepts and noise of the innovations unmixing @ y; weights are 0."""
    d = unmixing.shape[-1]
    rows = unmixing[data.node]  # (slice, d)
    variance = torch.einsum("si,sij,sj->s", rows, data.cov, rows)
    mean = (data.mean * rows).sum(-1)
    n = data.count.clamp_min(1.0)
    if intervention == "variance":
        noise_var = 0.5 * n * variance / torch._standard_gamma(n / 2)
    else:
        hot = (data.node[None, :] == torch.arange(d, device=n.device)[:, None]).to(variance.dtype)
        squares = 0.5 * hot @ (data.count * variance)
        noise_var = (squares / torch._standard_gamma(0.5 * (hot @ data.count).clamp_min(1.0)))[data.node]
    intercept = mean + (noise_var / n).sqrt() * torch.randn_like(n)
    return Mechanisms(torch.zeros_like(data.mean), intercept, noise_var.sqrt())


def draw_equations(scale: Tensor, prob: float) -> tuple[Tensor, Tensor]:
    """(graph, weight), each (parent, child), from the prior: w[j, k] ~ N(0, s_k^2 / s_j^2), noise deviations s (d,)."""
    d = len(scale)
    _, graph = sample_dags(log_edge_prior(d, prob, scale.device).to(scale.dtype))
    weight = graph * torch.randn(d, d, dtype=scale.dtype, device=scale.device) * scale[None, :] / scale[:, None]
    return graph, weight


class LinearSEM(NamedTuple):
    """z = intercept + weight^T z + eps, eps ~ N(0, scale^2); weight (..., parent, child), others (..., d)."""

    weight: Tensor
    intercept: Tensor
    scale: Tensor


def by_environment(mechanisms: Mechanisms, pairs: Sequence[tuple[int, int]], target: Tensor) -> LinearSEM:
    """Mechanisms put together per environment: weight (env, parent, child), intercept and scale (env, d).

    pairs: those of `slices`; target: (env, d) in {0, 1}, where a node has its own mechanism.
    """
    envs, d = target.shape
    own = np.zeros((envs, d), dtype=np.int64)
    for position, (env, node) in enumerate(pairs):
        own[env, node] = d + position
    natural = torch.arange(d, device=target.device).expand(envs, d)
    index = torch.where(target > 0.5, torch.as_tensor(own, device=target.device), natural)
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


def acting_together(everywhere: LinearSEM, targets: Tensor, observational: int, envs: Sequence[int]) -> LinearSEM:
    """The observational equations with those of environments `envs` at their targets, the last one's where two meet.

    everywhere: equations (env, ...); targets: (env, d), above .5 where an environment has its own.
    """
    weight, intercept, scale = (value[observational] for value in everywhere)
    for e in envs:
        hit = targets[e] > 0.5
        weight = torch.where(hit, everywhere.weight[e], weight)
        intercept = torch.where(hit, everywhere.intercept[e], intercept)
        scale = torch.where(hit, everywhere.scale[e], scale)
    return LinearSEM(weight, intercept, scale)


def unrolled(sem: LinearSEM, rows: int, link: Callable[[Tensor], Tensor] = lambda z: z) -> Tensor:
    """Rows (rows, d) of one SEM drawn site by site: ``eps_<k>`` (noise), ``z_<k>`` (the latent).

    link: what children see of a latent. The sites sit in a plate ``data`` (dim -1), parents before children; setting
    ``z_<k>`` with ChiRho's `do` cuts the node from its parents. InputError when the weights have a directed cycle.
    """
    d = sem.weight.shape[-1]
    graph = (sem.weight != 0).detach().cpu().numpy()
    if not is_acyclic(graph):
        reject("weight", "a directed cycle", "an acyclic graph")
    z: dict[int, Tensor] = {}
    with pyro.plate("data", rows, dim=-1):
        for k in topological_order(graph):
            eps = pyro.sample(f"eps_{k}", dist.Normal(torch.zeros_like(sem.scale[k]), sem.scale[k]))
            value = sem.intercept[k] + eps
            for j in np.flatnonzero(graph[:, k]):
                value = value + sem.weight[j, k] * link(z[int(j)])
            z[k] = pyro.deterministic(f"z_{k}", value, event_dim=0)
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
