"""Nonlinear structural equations with hard interventions: densities of rows, and the posterior of the graph.

    z_k = m_k(z_pa(k)) + s_k(z_pa(k)) e_k,   m_k and log s_k: a network's output, e_k: a mixture of normals

An environment that intervenes on k cuts the parents and gives z_k a mixture of normals of its own.

Graphs are scored by regression on fixed functions f of single latents and of pairs of them (`features`). With latents
z = (1 + E) z^, E the error of the unmixing, and b_k(E) the least-squares coefficients of z_k on f(z),

    b_k | rows ~ N(b_k(0), V_k + J_k S J_k'),     V: their sandwich covariance,   J = db / dE,   S = cov(E),

so that the error of the latents is carried into the edges. S is what hard interventions leave open: in the environments
of k, z_k is independent of earlier latents, and in those of a later l, z_l is of z_k. A set of parents leaves the other
functions' coefficients at zero; included ones have N(0, t^2) slabs, averaged over a grid of t (`Posterior`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import graphs
from .dists import categorical

SINGLE, PAIRED = 5, 6  # functions of one latent, and of two
ANGLES = tuple((math.cos(t), math.sin(t)) for t in (0.4, 0.8, 1.2, -0.4, -0.8, -1.2))  # of ridges in pairs
HIDDEN = 24  # units of an equation's network
COMPONENTS = 3  # of mixtures
RIDGE = 1e-6  # of regressions, a row
SLABS = (1.0, 0.1, 0.01, 0.001)  # prior variances of standardised coefficients
STEP = 1e-3  # of finite differences of the unmixing
STARTS, FINALISTS = 3, 3  # orders that a search starts from, and that are climbed
EFFORT = 2e7  # multiplications a row of the Gram matrix of a search, times its rows
BANNED = -1e6  # log score of parents that the order forbids


def features(z: Tensor) -> Tensor:
    """(rows, latent) -> (rows, feature): 1, `SINGLE` functions of each latent, `PAIRED` of each pair; see `places`."""
    square = z.square()
    single = [z, (0.05 + square).sqrt(), (1.0 + square).sqrt(), (2.0 * z).tanh(), (-square).exp()]
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    i, j = torch.triu_indices(z.shape[-1], z.shape[-1], 1, device=z.device)
    a, b = z @ eye[:, i], z @ eye[:, j]  # products are faster to differentiate than indexing
    paired = [(0.1 + (u * a + v * b).square()).sqrt() for u, v in ANGLES]
    parts = [torch.ones_like(z[..., :1]), torch.stack(single, -1).flatten(-2), torch.stack(paired, -1).flatten(-2)]
    return torch.cat(parts, -1)


def places(latents: int, device: torch.device | str = "cpu") -> Tensor:
    """(feature, latent) bool: which latents a feature is a function of."""
    eye = torch.eye(latents, dtype=torch.bool, device=device)
    i, j = torch.triu_indices(latents, latents, 1, device=device)
    single, paired = eye.repeat_interleave(SINGLE, 0), (eye[i] | eye[j]).repeat_interleave(PAIRED, 0)
    return torch.cat([torch.zeros_like(eye[:1]), single, paired])


def allowed(parents: Tensor) -> Tensor:
    """(parent, child) in {0, 1} -> (child, feature) in {0, 1}: the features that are functions of parents alone."""
    member = places(parents.shape[-1], parents.device).to(parents.dtype)
    return (member @ (1 - parents) < 0.5).mT.to(parents.dtype)


def column(latent: Tensor) -> Tensor:
    """Which feature is the latent itself."""
    return 1 + SINGLE * latent


class Mixture(nn.Module):
    """Mixtures of normals, one for each entry of a shape (...): log-densities and draws."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(*shape, COMPONENTS))
        self.loc = nn.Parameter(torch.linspace(-0.7, 0.7, COMPONENTS).repeat(*shape, 1))
        self.log_scale = nn.Parameter(torch.full((*shape, COMPONENTS), -0.3))

    @torch.no_grad()
    def start(self, mean: Tensor, sd: Tensor) -> None:
        """About the normal law of these means and deviations (...)."""
        grid = torch.linspace(-0.7, 0.7, COMPONENTS).to(mean)
        self.loc.copy_(mean[..., None] + sd[..., None] * grid)
        self.log_scale.copy_((0.85 * sd).log()[..., None].expand_as(self.log_scale))
        self.logits.zero_()

    def log_prob(self, value: Tensor, index: Tensor | None = None) -> Tensor:
        """index: (rows,) leading positions of the mixtures of each row; None: the same for all rows."""
        logits, loc, log_scale = (v if index is None else v[index] for v in (self.logits, self.loc, self.log_scale))
        standard = (value[..., None] - loc) / log_scale.exp()
        each = logits.log_softmax(-1) - 0.5 * standard.square() - log_scale
        return each.logsumexp(-1) - 0.5 * math.log(2 * math.pi)

    def sample(self, rows: int, index: Tensor | None = None) -> Tensor:
        """(rows, ...) draws."""
        logits, loc, log_scale = (v if index is None else v[index] for v in (self.logits, self.loc, self.log_scale))
        shape = (rows, *self.logits.shape[-2:])
        pick = categorical(logits.expand(shape))[..., None]
        drawn = loc + log_scale.exp() * torch.randn(shape, dtype=loc.dtype, device=loc.device)
        return drawn.gather(-1, pick).squeeze(-1)


class Mechanisms(nn.Module):
    """p(z | env) of rows (rows, latent). target_matrix: (env, latent) in {0, 1}.

    `before` (parent, child) holds the chain's order: every earlier latent is a parent while the chain is trained.
    """

    before: Tensor
    target: Tensor
    table: Tensor

    def __init__(self, latents: int, target_matrix: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(latents, latents))  # (parent, child)
        self.inner = nn.Parameter(torch.randn(latents, latents, HIDDEN))  # (parent, child, unit)
        self.bias = nn.Parameter(torch.randn(latents, HIDDEN))
        self.outer = nn.Parameter(0.01 * torch.randn(latents, HIDDEN, 2))  # to location and log scale
        self.intercept = nn.Parameter(torch.zeros(latents))
        self.log_scale = nn.Parameter(torch.zeros(latents))
        self.noise = Mixture(latents)
        self.own = Mixture(len(target_matrix), latents)
        self.register_buffer("target", torch.as_tensor(target_matrix, dtype=torch.get_default_dtype()))
        self.register_buffer("before", torch.ones(latents, latents).triu(1))
        # log scores of parent sets given the rows; see `Posterior`
        self.register_buffer("table", torch.zeros(latents, 2**latents, dtype=torch.float64))

    def equations(self, z: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale (rows, latent) of every latent given its parents in `graph` (parent, child)."""
        unit = torch.nn.functional.silu(
            (z @ (self.inner * graph[..., None]).flatten(1)).unflatten(-1, self.bias.shape) + self.bias
        )
        out = torch.einsum("rkh,kho->rko", unit, self.outer)
        loc = self.intercept + z @ (self.linear * graph) + out[..., 0]
        return loc, (self.log_scale + 2.0 * (0.5 * out[..., 1]).tanh()).exp()

    def log_prob(self, z: Tensor, env: Tensor) -> Tensor:
        """(rows,)"""
        loc, scale = self.equations(z, self.before)
        natural = self.noise.log_prob((z - loc) / scale) - scale.log()
        hit = self.target[env]
        return (natural + hit * (self.own.log_prob(z, env) - natural)).sum(-1)

    def sample(self, env: Tensor, graph: Tensor | None = None) -> Tensor:
        """(rows, latent) draws, under the chain's own equations or those of a graph (parent, child)."""
        graph = self.before if graph is None else graph
        own, noise, hit = self.own.sample(len(env), env), self.noise.sample(len(env)), self.target[env]
        z = torch.zeros_like(noise)
        for _ in range(z.shape[-1]):  # as many rounds as the longest path could need
            loc, scale = self.equations(z, graph)
            z = torch.where(hit > 0.5, own, loc + scale * noise)
        return z

    def prior(self) -> Tensor:
        """Weak log prior of the parameters."""
        total = 0.5 * self.outer.square().sum() + 0.05 * (self.inner.square().sum() + self.bias.square().sum())
        for mixture in (self.noise, self.own):
            total = total + 0.5 * (mixture.log_scale.square().sum() + mixture.logits.square().sum())
        return -total

    @torch.no_grad()
    def start(self, z: Tensor, env: Tensor, before: Tensor) -> None:
        """Linear equations by least squares under an order (parent, child), laws by moments."""
        self.before.copy_(before)
        ones = torch.ones_like(z[:, :1])
        for k in range(z.shape[1]):
            rows = self.target[env, k] == 0
            design = torch.cat([ones, z * before[:, k].to(z)], 1)[rows]
            gram = design.mT @ design + RIDGE * len(design) * torch.eye(design.shape[1]).to(z)
            solution = torch.linalg.solve(gram, design.mT @ z[rows, k])
            self.intercept[k], self.linear[:, k] = solution[0], solution[1:]
            self.log_scale[k] = (z[rows, k] - design @ solution).std().log()
        self.noise.start(torch.zeros_like(self.log_scale), torch.ones_like(self.log_scale))
        own = [z[env == e] for e in range(len(self.target))]
        self.own.start(torch.stack([v.mean(0) for v in own]), torch.stack([v.std(0) for v in own]))

    @torch.no_grad()
    def gather(self, posterior: Posterior, edge_probability: float) -> None:
        """Keep the scores of parent sets, with their prior."""
        prior = graphs.log_edge_prior(len(self.linear), edge_probability)
        self.table.copy_(posterior.scores(self.before) + prior.to(self.table))

    def graph(self) -> Tensor:
        """(parent, child) edge probabilities."""
        return graphs.edge_probabilities(self.table).to(self.linear)

    def draw_graph(self) -> Tensor:
        """(parent, child) in {0, 1}."""
        return graphs.sample_dags(self.table)[1].to(self.linear)


class Regression:
    """Least squares of every latent on features of others, from Gram matrices of each environment's rows.

    z: (rows, latent). count: (latent,) rows that leave a latent alone; mean, var: (env, latent). Differentiable.
    """

    def __init__(self, z: Tensor, env: Tensor, target: Tensor) -> None:
        latents = z.shape[1]
        f = features(z)
        rows = [f[env == e] for e in range(len(target))]
        self.own_count = torch.stack([torch.full_like(z[0, 0], len(part)) for part in rows]).clamp_min(1.0)
        gram = torch.stack([part.mT @ part for part in rows])  # (env, feature, feature)
        self.target, self.latents = target, latents
        self.gram = torch.einsum("ek,eij->kij", 1 - target, gram)  # (child, feature, feature)
        self.count = (1 - target).mT @ self.own_count
        self.node = column(torch.arange(latents, device=z.device))
        self.mean = gram[:, 0, self.node] / self.own_count[:, None]
        second = gram[:, self.node, self.node] / self.own_count[:, None]
        self.var = (second - self.mean.square()).clamp_min(1e-8)

    def solve(self, child: Tensor, use: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (..., feature), residual sums of squares (...) and regularised Gram matrices of children
        (...) on the features in `use` (..., feature); the Gram matrix is the identity elsewhere."""
        gram = self.gram[child]
        ridge = RIDGE * self.count[child][..., None] * use + (1 - use)
        inner = gram * use[..., :, None] * use[..., None, :] + torch.diag_embed(ridge)
        own = self.node[child]
        cross = gram.gather(-1, own[..., None, None].expand(*gram.shape[:-1], 1)).squeeze(-1)
        theta = torch.linalg.solve(inner, (cross * use)[..., None]).squeeze(-1)
        total = cross.gather(-1, own[..., None]).squeeze(-1)
        return theta, (total - (theta * cross * use).sum(-1)).clamp_min(1e-8), inner

    def fit(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """(coefficients (child, feature), residual sums of squares (child,)) given (parent, child)."""
        theta, rss, _ = self.solve(torch.arange(self.latents, device=parents.device), allowed(parents))
        return theta, rss

    def objective(self, parents: Tensor) -> Tensor:
        """Gaussian log-likelihood, at its maximum over coefficients and laws, up to a constant and log |det M|."""
        _, rss = self.fit(parents)
        natural = -0.5 * (self.count * (rss / self.count).log()).sum()
        return natural - 0.5 * (self.target * self.own_count[:, None] * self.var.log()).sum()


class Posterior(NamedTuple):
    """Coefficients (child, feature) and their covariances (child, feature, feature), in units of `scale` (child,) and
    of the features' deviations `sd` (child, feature)."""

    theta: Tensor
    cov: Tensor
    scale: Tensor
    sd: Tensor

    def scores(self, before: Tensor) -> Tensor:
        """(latent, 2**latent) log evidence of parent sets among the earlier latents, the others `BANNED`."""
        latents = len(self.theta)
        member = graphs.members(latents, self.theta.device).to(self.theta)
        inside = places(latents, self.theta.device).to(self.theta)
        use = (inside @ (1 - member).mT < 0.5).mT.to(self.theta)
        use[:, 0] = 0.0
        full = allowed(before.to(self.theta))
        out = torch.full((latents, len(member)), BANNED, dtype=torch.float64, device=self.theta.device)
        slabs = torch.tensor(SLABS, dtype=self.theta.dtype, device=self.theta.device)
        for k in range(latents):
            at = torch.nonzero(full[k] > 0).flatten()[1:]  # without the constant
            sets = torch.nonzero(member @ (1 - before[:, k].to(member)) < 0.5).flatten()
            if not len(at):
                out[k, sets] = 0.0
                continue
            unit = self.sd[k, at] / self.scale[k]
            theta, cov = self.theta[k, at] * unit, self.cov[k][at][:, at] * unit[:, None] * unit
            prior = torch.diag_embed(use[sets][:, None, at] * slabs[:, None])  # (set, slab, feature, feature)
            law = torch.distributions.MultivariateNormal(torch.zeros_like(theta), cov + prior, validate_args=False)
            out[k, sets] = (law.log_prob(theta).logsumexp(-1) - math.log(len(SLABS))).double()
        return out


class Unmixing:
    """z = M y in units of its deviation over observational rows: the objective of M, and the posterior given rows.

    y: (rows, latent); env: (rows,); target: (env, latent). All in float64.
    """

    def __init__(self, y: Tensor, env: Tensor, target: Tensor, generator: torch.Generator) -> None:
        self.y, self.env, self.target = y, env, target
        size = len(places(y.shape[1]))
        order = torch.randperm(len(y), generator=generator).to(y.device)
        few = order[: min(len(y), max(20 * size, int(EFFORT / size**2)))]
        self.few, self.few_env = y[few], env[few]
        self.free = target.sum(1) == 0
        self.natural_cov = torch.cov(y[self.free[env]].mT)
        self.own_cov = [torch.cov(y[(target[:, k] > 0)[env]].mT) for k in range(target.shape[1])]

    def latents(self, matrix: Tensor, y: Tensor, env: Tensor) -> Tensor:
        """(rows, latent) z of these rows, mean 0 and deviation 1 over the observational ones."""
        z = y @ matrix.mT
        natural = z[self.free[env]]
        return (z - natural.mean(0)) / natural.std(0)

    def objective(self, matrix: Tensor, before: Tensor) -> Tensor:
        """Log-likelihood a row, of the few rows."""
        z = self.latents(matrix, self.few, self.few_env)
        natural = (self.few @ matrix.mT)[self.free[self.few_env]]
        jacobian = torch.linalg.slogdet(matrix).logabsdet - natural.std(0).log().sum()
        return Regression(z, self.few_env, self.target).objective(before) / len(z) + jacobian

    def climb(self, matrix: Tensor, before: Tensor, steps: int = 25) -> tuple[Tensor, float]:
        """(M, log-likelihood a row) at a maximum given an order, by L-BFGS."""
        change = torch.zeros_like(matrix).requires_grad_(True)
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        optimiser = torch.optim.LBFGS([change], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-7)

        def loss() -> Tensor:
            value = -self.objective((eye + change) @ matrix, before)
            change.grad = torch.autograd.grad(value, change)[0].contiguous()
            return value

        with torch.enable_grad():
            optimiser.step(loss)
        out = ((eye + change) @ matrix).detach()
        return out, float(self.objective(out, before))

    def search(self, rows: Tensor, generator: torch.Generator, mixed: bool = True) -> tuple[Tensor, Tensor]:
        """(M, order (parent, child)) from first rows (latent, latent), each of which mixes a latent with its ancestors.

        An order turns them into an unmixing (`cut`), whose likelihood ranks orders: from a few of them, one latent
        is moved at a time. The best are then climbed. With mixed=False the rows are M, and only the order is sought.
        """
        d = len(rows)
        tried: dict[tuple[int, ...], float] = {}

        def value(order: tuple[int, ...]) -> float:
            if order not in tried:
                matrix = self.cut(rows, order) if mixed else rows
                tried[order] = float(self.objective(matrix, earlier(order).to(matrix)))
            return tried[order]

        for _ in range(STARTS):
            at = tuple(torch.randperm(d, generator=generator).tolist())
            while True:
                best = max(moved(at), key=value, default=at)
                if value(best) <= value(at):
                    break
                at = best
        if not mixed:
            return rows, earlier(max(tried, key=tried.__getitem__)).to(rows)
        finalists = []
        for order in sorted(tried, key=tried.__getitem__, reverse=True)[:FINALISTS]:
            finalists.append((*self.climb(self.cut(rows, order), earlier(order).to(rows)), order))
        matrix, _, order = max(finalists, key=lambda one: one[1])
        return matrix, earlier(order).to(rows)

    def ordered(self, rows: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(M, order (parent, child)) of first rows under an order."""
        return self.cut(rows, order), earlier(order).to(rows)

    def cut(self, rows: Tensor, order: tuple[int, ...]) -> Tensor:
        """Rows less their regression on earlier ones in their target's environments, where these are independent."""
        out = rows.clone()
        for position, k in enumerate(order):
            if position:
                before = out[list(order[:position])]
                cov = self.own_cov[k]
                out[k] = rows[k] - torch.linalg.solve(before @ cov @ before.mT, before @ cov @ rows[k]) @ before
        return out / (out @ self.natural_cov * out).sum(1).sqrt()[:, None]

    def posterior(self, matrix: Tensor, before: Tensor, dispersed: bool = False) -> Posterior:
        """Coefficients at M with their covariance; see the head of this file.

        dispersed: whether latents have an error beyond that of a linear unmixing, so that in the environments of a
        target more than its mean may depend on earlier latents; covariances then grow by the dispersion of that.
        """
        z = self.latents(matrix, self.y, self.env)
        regression = Regression(z, self.env, self.target)
        theta, rss, inner = regression.solve(torch.arange(len(matrix), device=z.device), allowed(before))
        use, f = allowed(before), features(z)
        cov, residual = torch.zeros_like(inner), z - f @ theta.mT
        for k in range(len(matrix)):
            rows = self.target[self.env, k] == 0
            part = f[rows] * use[k] * residual[rows, k, None]
            half = torch.linalg.solve(inner[k], part.mT @ part)
            cov[k] = torch.linalg.solve(inner[k], half.mT)
        change, slopes = self._error(z, residual, before), self._slopes(matrix, before)
        cov = cov + torch.einsum("abki,abc,ackj->kij", slopes, change, slopes)
        if dispersed:
            cov = cov * self._dispersion(z, f, before)[:, None, None]
        second = regression.gram.diagonal(dim1=-2, dim2=-1) / regression.count[:, None]
        first = regression.gram[:, 0] / regression.count[:, None]
        sd = (second - first.square()).clamp_min(1e-12).sqrt()
        tiny = 1e-12 * torch.eye(cov.shape[-1]).to(cov)
        return Posterior(theta, 0.5 * (cov + cov.mT) + tiny, (rss / regression.count).sqrt(), sd)

    def _error(self, z: Tensor, residual: Tensor, before: Tensor) -> Tensor:
        """(latent, latent, latent) covariance of each row of E, the error of M^ in M = (1 + E) M^."""
        d = len(before)
        out = torch.zeros(d, d, d, dtype=z.dtype, device=z.device)
        for k in range(d):
            own = z[(self.target[:, k] > 0)[self.env]]
            earlier_ = torch.nonzero(before[:, k] > 0).flatten()
            design = own[:, earlier_] - own[:, earlier_].mean(0)
            value = own[:, k] - own[:, k].mean()
            gram = design.mT @ design
            left = design * (value - design @ torch.linalg.solve(gram, design.mT @ value))[:, None]
            half = torch.linalg.solve(gram, left.mT @ left)
            out[k, earlier_[:, None], earlier_] = torch.linalg.solve(gram, half.mT)
            for j in torch.nonzero(before[k] > 0).flatten().tolist():
                rows = (self.target[:, j] > 0)[self.env]
                other = z[rows, j] - z[rows, j].mean()
                out[k, j, j] = (residual[rows, k] * other).square().sum() / other.square().sum().square()
        return out

    def _dispersion(self, z: Tensor, f: Tensor, before: Tensor) -> Tensor:
        """(latent,) how far z_k depends on earlier latents where it should not, in the environments of k: the Wald
        statistic of that regression over its degrees of freedom, at least 1."""
        use, out = allowed(before), torch.ones_like(z[0])
        for k in range(z.shape[1]):
            rows = (self.target[:, k] > 0)[self.env]
            at = torch.nonzero(use[k] > 0).flatten()
            if len(at) == 1:
                continue
            part, value = f[rows][:, at], z[rows, k]
            gram = part.mT @ part + RIDGE * len(part) * torch.eye(len(at)).to(part)
            theta = torch.linalg.solve(gram, part.mT @ value)
            residual = value - part @ theta
            explained = (part @ theta).var() * len(part)
            out[k] = (explained / residual.var() / (len(at) - 1)).clamp_min(1.0)
        return out

    def _slopes(self, matrix: Tensor, before: Tensor) -> Tensor:
        """(row, column, child, feature) derivatives of the coefficients by entries of E, over the few rows."""
        d = len(matrix)
        out = torch.zeros(d, d, d, len(places(d)), dtype=matrix.dtype, device=matrix.device)
        for i in range(d):
            for j in range(d):
                if i == j:
                    continue
                ends = []
                for sign in (STEP, -STEP):
                    moved_ = matrix.clone()
                    moved_[i] += sign * matrix[j]
                    z = self.latents(moved_, self.few, self.few_env)
                    ends.append(Regression(z, self.few_env, self.target).fit(before)[0])
                out[i, j] = (ends[0] - ends[1]) / (2 * STEP)
        return out


def earlier(order: tuple[int, ...]) -> Tensor:
    """(parent, child) in {0, 1}: which latents come before which."""
    place = torch.tensor(order).argsort()
    return (place[:, None] < place[None, :]).double()


def moved(order: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every order that moves one latent to another place, once each."""
    found: dict[tuple[int, ...], None] = {}
    for i in range(len(order)):
        rest = order[:i] + order[i + 1 :]
        for j in range(len(order)):
            found[(*rest[:j], order[i], *rest[j:])] = None
    found.pop(order, None)
    return list(found)


def order_of(differences: Tensor, rows: Tensor) -> tuple[int, ...]:
    """The order that score differences imply: with H the inverse of the first rows, [H' R_k H]_jj is large if latent k
    depends on j (Varici et al. 2024)."""
    lift = torch.linalg.pinv(rows)
    found = torch.einsum("ji,kjl,li->ki", lift, differences, lift)  # (target, latent)
    found = found / found.diagonal()[:, None]
    member = graphs.members(len(rows), rows.device).to(rows)
    return tuple(graphs.best_order(-20.0 * (found @ (1 - member).mT)).tolist())
