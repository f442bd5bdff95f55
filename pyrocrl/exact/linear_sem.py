"""Linear Gaussian structural equation models under interventions: likelihoods in closed form, and draws.

A latent vector follows z_k = a_k + sum_j z_j w[j, k] + eps_k, eps_k ~ N(0, s_k^2), with weights w as
(parent, child). An environment that intervenes on k *perfectly* cuts k's parents and gives it a mean and a
variance of its own; a *soft* intervention keeps parents but gives k a regression of its own; a *variance*
intervention keeps k's weights but gives its noise a mean and variance of its own; a *shift* only a mean of its own.

Under variance and shift interventions only the noise changes. With a free linear mixing z = M y the graph then drops
out of the likelihood: the innovations n = (I - w^T) z = N y are independent in every environment, and any graph and
weights turn the same N into an M. `log_marginal` is then a function of N alone.

`Regressions` and `Innovations` hold what the conjugate posterior of the equations needs, given unmixing and graph: the
laws of a story's sites, before the data and after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrocrl.dists import InverseGamma, Normal
from pyrocrl.exact.orders import log_edge_prior, log_order_prior, log_partition
from pyrocrl.exact.regression import quadratic

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
        between = (share[..., None] * apart).mT @ apart
        return count, mean, torch.einsum("...e,eij->...ij", share, self.cov) + between

    def transform(self, matrix: Tensor) -> Environments:
        """Statistics of matrix @ y, with matrix (..., k, d) (leading dimensions go before env)."""
        mean = torch.einsum("...kd,ed->...ek", matrix, self.mean)
        wide = matrix[..., None, :, :]
        cov = wide @ self.cov @ wide.mT
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


@lru_cache(maxsize=64)
def _positions(pairs: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(pair,) environments and nodes: sent to the device once, for a copy in every step would wait for it."""
    sent = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).to(device)
    return sent[:, 0], sent[:, 1]


def slices(environments: Environments, pairs: Sequence[tuple[int, int]]) -> Slices:
    """Sort environments by mechanism; `pairs` lists (env, node): every pair that is a target, be there more of them."""
    d = environments.mean.shape[-1]
    count, mean, cov = environments.pooled(1.0 - environments.target.to(environments.count.dtype).T)
    env, own = _positions(tuple(pairs), count.device)
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
    variance = quadratic(rows, data.cov)
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


def log_marginal_given_graph(unmixing: Tensor, graph: Tensor, data: Slices, total: Tensor) -> Tensor:
    """log p(y | unmixing, graph) under perfect interventions: `log_marginal` of one graph (parent, child), its prior
    left out, at a cost that is a power of the latents."""
    d = unmixing.shape[-1]
    cov = unmixing @ data.cov @ unmixing.mT  # (slice, latent, latent)
    own = torch.eye(d, dtype=cov.dtype, device=cov.device)  # of the natural slices, in the latents' order
    parents, n = graph.to(cov.dtype).mT, data.count[:d]
    roots = (torch.linalg.cholesky(_block(cov[:d], use)) for use in (parents + own, parents))
    both, without = (2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in roots)
    log_var = cov[:d].diagonal(dim1=-2, dim2=-1).diagonal(dim1=-2, dim2=-1).log()
    log_rest = torch.log1p(n * (both - without - log_var).exp()) - torch.log1p(n)
    alone = quadratic(unmixing[data.node], data.cov)
    fitted = -0.5 * n * log_rest - 0.5 * parents.sum(-1) * torch.log1p(n)  # beside no parents at all
    return _sample_scores(alone, data.count).sum() + fitted.sum() + total * log_abs_det(unmixing)


class Mechanisms(NamedTuple):
    """Drawn or averaged parameters of each slice (see `Slices`): weight (slice, d) into the slice's node."""

    weight: Tensor
    intercept: Tensor
    scale: Tensor


class Regressions(NamedTuple):
    """Each slice's regression of its node on its parents, given unmixing and graph: what the conjugate posterior needs.

    parents (slice, d) in {0, 1}; gram (slice, d, d), the covariance of z; slope (slice, d), its posterior mean; rest
    (slice,), the residual variance with the prior's part; mean (slice, d) of z; node (slice, d), one-hot; count
    (slice,), at least 1.
    """

    parents: Tensor
    gram: Tensor
    slope: Tensor
    rest: Tensor
    mean: Tensor
    node: Tensor
    count: Tensor

    def prior_variance(self) -> Any:
        """Of the noise variances: p(a, s^2) = s^-3."""
        return ScaleFree(self.count)

    def prior_slopes(self, variance: Tensor) -> Slopes:
        """Zellner's g-prior of unit information: the variances (slice,) times the inverse Gram matrix."""
        return Slopes(torch.zeros_like(self.slope), self.gram / variance[:, None, None], self.parents)

    def prior_level(self, variance: Tensor) -> Any:
        """Of the intercepts: flat."""
        return Flat(torch.zeros_like(variance))

    def variance(self) -> Any:
        """Posterior of the noise variances."""
        return InverseGamma(self.count / 2, 0.5 * self.count * self.rest)

    def slopes(self, variance: Tensor) -> Slopes:
        """Posterior of the slopes given the variances."""
        return Slopes(self.slope, self.gram * ((1 + self.count) / variance)[:, None, None], self.parents)

    def level(self, slope: Tensor, variance: Tensor) -> Normal:
        """Posterior of the intercepts given slopes (slice, d) and variances."""
        acting = slope * self.parents
        return Normal((self.mean * self.node).sum(-1) - (self.mean * acting).sum(-1), (variance / self.count).sqrt())

    def mechanisms(self, variance: Tensor, slope: Tensor, level: Tensor) -> Mechanisms:
        """The slices' equations."""
        return Mechanisms(slope * self.parents, level, variance.sqrt())


def regressions(unmixing: Tensor, graph: Tensor, data: Slices, intervention: Intervention = "perfect") -> Regressions:
    """Regressions of z = unmixing @ y under a graph (parent, child)."""
    d = unmixing.shape[-1]
    mean = data.mean @ unmixing.mT  # (slice, d)
    cov = unmixing @ data.cov @ unmixing.mT
    parents = graph.to(cov.dtype).mT[data.node]  # (slice, d)
    if intervention == "perfect":
        natural = torch.arange(len(data.node), device=cov.device) < d
        parents = parents * natural[:, None]
    node = (data.node[:, None] == torch.arange(d, device=cov.device)).to(cov.dtype)  # one-hot (slice, d)
    root = torch.linalg.cholesky(_block(cov, parents))
    cross = (cov @ node[..., None]) * parents[..., None]
    slope = torch.cholesky_solve(cross, root).squeeze(-1)  # least squares
    n = data.count.clamp_min(1.0)
    shrink = n / (1 + n)
    variance = (cov.diagonal(dim1=-2, dim2=-1) * node).sum(-1)
    rest = variance - shrink * (cross.squeeze(-1) * slope).sum(-1)
    rest = torch.maximum(rest, torch.finfo(cov.dtype).eps * variance)
    return Regressions(parents, cov, shrink[:, None] * slope, rest, mean, node, n)


def _block(matrix: Tensor, use: Tensor) -> Tensor:
    """(..., d, d) the rows and columns in `use` (..., d) of a matrix; the identity elsewhere."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    both = use[..., :, None] * use[..., None, :]
    # Not a product alone: a mechanism without rows, which a mask drops, has any variance and may have infinite terms.
    return torch.where(both > 0, matrix * both, 0.0) + eye * (1 - use)[..., :, None]


def draw_mechanisms(
    unmixing: Tensor, graph: Tensor, data: Slices, intervention: Intervention = "perfect", noisy: bool = True
) -> Mechanisms:
    """Exact posterior draw of weights, intercepts and noise given unmixing and graph (parent, child).

    With noisy=False the posterior means of weights and intercepts, and the noise's posterior mode.
    Randomness through torch's global generator (`torch.randn`, Gamma), safe under vmap.
    """
    found = regressions(unmixing, graph, data, intervention)
    variance = found.variance().sample() if noisy else found.count * found.rest / (found.count + 2)
    slope = found.slopes(variance).sample() * found.parents if noisy else found.slope
    level = found.level(slope, variance)
    return Mechanisms(slope, level.sample() if noisy else level.loc, variance.sqrt())


class ScaleFree(TorchDistribution):
    """Variances with the improper density s^-3, as `regression_scores` has it. A draw is 1, a convention."""

    arg_constraints: dict = {}
    support = constraints.positive

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(like.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaleFree:
        return ScaleFree(self.like.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.ones_like(self.like).expand(*sample_shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -1.5 * value.log()


class Flat(TorchDistribution):
    """Numbers with a constant, improper density exp(log_height) (...). A draw is 0, a convention."""

    arg_constraints: dict = {}
    support = constraints.real

    def __init__(self, log_height: Tensor, validate_args: bool | None = None) -> None:
        self.log_height = log_height
        super().__init__(log_height.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flat:
        return Flat(self.log_height.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.zeros_like(self.log_height).expand(*sample_shape, *self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_height + 0 * value


class Slopes(TorchDistribution):
    """Slopes (..., d) of which those in `parents` (..., d) are N(loc, precision^-1); the others do not act, and have
    the pseudo-prior N(0, 1) (Carlin & Chib 1995)."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, loc: Tensor, precision: Tensor, parents: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.precision, self.parents = loc * parents, precision, parents
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Slopes:
        shape = (*batch_shape, *self.event_shape)
        return Slopes(self.loc.expand(shape), self.precision.expand(*shape, shape[-1]), self.parents.expand(shape))

    @property
    def mean(self) -> Tensor:
        return self.loc

    def _root(self) -> Tensor:
        return torch.linalg.cholesky(_block(self.precision, self.parents))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(*sample_shape, *self.shape(), 1, dtype=self.loc.dtype, device=self.loc.device)
            return self.loc + torch.linalg.solve_triangular(self._root().mT, noise, upper=True).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        root = self._root()
        white = (root.mT @ (value - self.loc)[..., None]).squeeze(-1)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * white.square().sum(-1) - 0.5 * value.shape[-1] * math.log(2 * math.pi)


class Innovations(NamedTuple):
    """Equations that variance and shift interventions keep, given the unmixing to innovations n = unmixing @ y and a
    graph, with the methods of `Regressions`. Data tell levels and variances of n; weights have their prior alone.

    mean (slice,) of n; node (slice,); count (slice,), at least 1; rows, squares (slice,): counts and sums of squares
    that tell the variance; own (slice,): whether a slice has a variance of its own, or its node's; graph (parent,
    child).
    """

    mean: Tensor
    node: Tensor
    count: Tensor
    rows: Tensor
    squares: Tensor
    own: Tensor
    graph: Tensor

    def prior_variance(self) -> Any:
        return ScaleFree(self.rows).mask(self.own)

    def prior_slopes(self, variance: Tensor) -> Slopes:
        """w[j, k] ~ N(0, s_k^2 / s_j^2), of the natural equations."""
        d = len(self.graph)
        natural = variance[:d]
        precision = torch.diag_embed(natural / variance[:, None])  # (slice, parent, parent)
        parents = self.graph.mT.to(variance)[self.node]
        parents = parents * (torch.arange(len(self.node), device=parents.device) < d)[:, None]
        return Slopes(torch.zeros_like(parents), precision, parents)

    def prior_level(self, variance: Tensor) -> Any:
        """Flat; of a shifted intercept with the height (2 pi s^2)^(-1/2), unit information."""
        height = -0.5 * (2 * math.pi * self._tied(variance)).log()
        return Flat(torch.where(self.own, torch.zeros_like(height), height))

    def variance(self) -> Any:
        return InverseGamma(self.rows / 2, 0.5 * self.squares).mask(self.own)

    def slopes(self, variance: Tensor) -> Slopes:
        return self.prior_slopes(variance)

    def level(self, slope: Tensor, variance: Tensor) -> Normal:
        return Normal(self.mean, (self._tied(variance) / self.count).sqrt())

    def mechanisms(self, variance: Tensor, slope: Tensor, level: Tensor) -> Mechanisms:
        weight = slope * self.graph.mT.to(slope)[self.node]
        return Mechanisms(weight[self.node], level, self._tied(variance).sqrt())

    def _tied(self, variance: Tensor) -> Tensor:
        return torch.where(self.own, variance, variance[self.node])


def innovations(unmixing: Tensor, graph: Tensor, data: Slices, intervention: Intervention) -> Innovations:
    """Of n = unmixing @ y, under variance or shift interventions."""
    rows = unmixing[data.node]  # (slice, d)
    variance = quadratic(rows, data.cov)
    mean = (data.mean * rows).sum(-1)
    total, squares = data.count, data.count * variance
    natural = torch.arange(len(data.node), device=total.device) < len(unmixing)
    if intervention == "shift":
        hot = (data.node[None, :] == torch.arange(len(unmixing), device=total.device)[:, None]).to(variance)
        total, squares = (hot @ total)[data.node], (hot @ squares)[data.node]
    own = natural | (intervention == "variance")
    return Innovations(mean, data.node, data.count.clamp_min(1.0), total.clamp_min(1.0), squares, own, graph)


def conjugate(
    unmixing: Tensor, graph: Tensor, data: Slices, intervention: Intervention = "perfect"
) -> Regressions | Innovations:
    """What the prior and the posterior of the slices' equations need, given unmixing and graph."""
    if intervention in KEEP_EQUATIONS:
        return innovations(unmixing, graph, data, intervention)
    return regressions(unmixing, graph, data, intervention)


class LinearSEM(NamedTuple):
    """z = intercept + weight^T z + eps, eps ~ N(0, scale^2); weight (..., parent, child), others (..., d)."""

    weight: Tensor
    intercept: Tensor
    scale: Tensor

    def at(self, env: Tensor) -> LinearSEM:
        """The equations of rows of environments `env` (rows,), of those of every environment."""
        return LinearSEM(self.weight[env], self.intercept[env], self.scale[env])


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


def of_rows(
    everywhere: LinearSEM, targets: Tensor, env: Tensor, together: Sequence[int] | None, observational: int
) -> LinearSEM:
    """The equations of rows with environments `env` (rows,): weight (rows, parent, child), others (rows, d).

    everywhere: equations (env, ...); targets: (env, d), above .5 where an environment has its own. together: not None =
    every row has the observational equations, with those of these environments at their targets, the last one's where
    two meet.
    """
    if together is None:
        return everywhere.at(env)
    weight, intercept, scale = (value[observational] for value in everywhere)
    for e in together:
        hit = targets[e] > 0.5
        weight = torch.where(hit, everywhere.weight[e], weight)
        intercept = torch.where(hit, everywhere.intercept[e], intercept)
        scale = torch.where(hit, everywhere.scale[e], scale)
    return LinearSEM(*(value.expand(len(env), *value.shape) for value in (weight, intercept, scale)))
