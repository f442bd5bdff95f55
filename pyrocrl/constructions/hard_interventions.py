"""The unmixing under hard interventions: an order and rows that make targets independent, and their error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.constructions.score_differences import Estimator, differences
from pyrocrl.exact import orders
from pyrocrl.exact.basis_regression import RIDGE, Posterior, Regression, allowed, basis_functions, places

STEP = 1e-3  # of finite differences of the unmixing


class Effort(NamedTuple):
    """starts, finalists: orders that a search starts from, and that are climbed. work: multiplications a row of the
    Gram matrix of a search, times its rows."""

    starts: int = 3
    finalists: int = 3
    work: float = 2e7


EFFORT = Effort()


class Unmixing:
    """z = M y in units of its deviation over observational rows: the objective of M, and the posterior given rows.

    y: (rows, latent); env: (rows,); target: (env, latent). All in float64.
    """

    def __init__(
        self, y: Tensor, env: Tensor, target: Tensor, generator: torch.Generator, effort: Effort = EFFORT
    ) -> None:
        self.y, self.env, self.target, self.effort = y, env, target, effort
        size = len(places(y.shape[1]))
        order = torch.randperm(len(y), generator=generator).to(y.device)
        few = order[: min(len(y), max(20 * size, int(effort.work / size**2)))]
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

        for _ in range(self.effort.starts):
            at = tuple(torch.randperm(d, generator=generator).tolist())
            while True:
                best = max(moved(at), key=value, default=at)
                if value(best) <= value(at):
                    break
                at = best
        if not mixed:
            return rows, earlier(max(tried, key=tried.__getitem__)).to(rows)
        finalists = []
        for order in sorted(tried, key=tried.__getitem__, reverse=True)[: self.effort.finalists]:
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
        use, f = allowed(before), basis_functions(z)
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
    member = orders.members(len(rows), rows.device).to(rows)
    return tuple(orders.best_order(-20.0 * (found @ (1 - member).mT)).tolist())


def from_scores(
    y: Tensor, env: Tensor, target: Tensor, method: Estimator, search: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(M (latent, latent), order (parent, child)) by score differences, LSCALE-I, and with `search` by likelihood next.

    y: (rows, latent), white over the observational rows.
    """
    unmixing = Unmixing(y, env, target, generator)
    change = differences(y, env, target, method, generator)
    rows = torch.linalg.eigh(change).eigenvectors[:, :, -1]  # (latent, latent)
    return unmixing.search(rows, generator) if search else unmixing.ordered(rows, order_of(change, rows))
