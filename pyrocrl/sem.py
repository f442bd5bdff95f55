"""Linear Gaussian structural equation models under interventions: likelihoods in closed form, and draws.

A latent vector follows z_k = a_k + sum_j z_j w[j, k] + eps_k, eps_k ~ N(0, s_k^2), with weights w as
(parent, child). An environment that intervenes on k *perfectly* cuts k's parents and gives it a mean and a
variance of its own; a *soft* intervention keeps parents but gives k a regression of its own.

Two forms of one distribution: `sem_moments` and `sem_log_prob` are vectorised, for fitting;
`unrolled` has one site per latent, for ChiRho's `do`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl.errors import reject
from pyrocrl.graphs import is_acyclic, log_edge_prior, log_order_prior, log_partition, topological_order

Intervention = Literal["perfect", "soft"]


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
    scores = log_edge_prior(d, prob, unmixing.device) + regression_scores(cov[:d], data.count[:d], data.node[:d])
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
    jacobian = total * torch.linalg.slogdet(unmixing).logabsdet
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
        noise_var = 0.5 * n * rest / dist.Gamma(n / 2, torch.ones_like(n)).sample()
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


# ---- where the unmixing starts, and how it is finished ------------------------------------------------


def whitening(cov: Tensor) -> Tensor:
    """Symmetric inverse root of a covariance (d, d)."""
    value, vector = torch.linalg.eigh(cov)
    return (vector / value.clamp_min(torch.finfo(cov.dtype).tiny).sqrt()) @ vector.mT


def score_difference_directions(precision_change: Tensor) -> Tensor:
    """The two candidates for the target's row of the unmixing from one perfect intervention; (2, d) units.

    In coordinates where the reference environment is white, the change of precision is
    D = d d^T - c c^T: d = lambda m is the target's own row, c (a unit vector) the row of its mechanism.
    With D's extreme eigenpairs (a, v), (-b, w), all pairs (d, c) are a hyperbolic rotation by t of
    (sqrt(a) v, sqrt(b) w), and |c| = 1 leaves t up to its sign: sinh^2 t = (1 - b) / (a + b). This holds whether the
    intervention narrows or widens the target. (Squires et al. 2023; Varici et al. 2024, by way of eigenvectors.)
    """
    value, vector = torch.linalg.eigh(precision_change)
    a, b = value[-1].clamp_min(0.0), (-value[0]).clamp(0.0, 1.0)
    sinh = ((1 - b) / (a + b)).clamp_min(0.0).sqrt()
    cosh = (1 + sinh.square()).sqrt()
    up, down = a.sqrt() * vector[:, -1], b.sqrt() * vector[:, 0]
    rows = torch.stack([cosh * up + sinh * down, cosh * up - sinh * down])
    return rows / rows.norm(dim=-1, keepdim=True)
