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
from typing import Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl.claims.indeterminacy import is_acyclic, topological_order
from pyrocrl.errors import reject
from pyrocrl.exact.orders import log_edge_prior, log_order_prior, log_partition, sample_dags

Intervention = Literal["perfect", "soft", "variance", "shift"]
KEEP_EQUATIONS = ("variance", "shift")  # kinds that change no weight


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
