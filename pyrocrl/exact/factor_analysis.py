"""Factor analysis with its latents summed out: the posterior of loadings and noise, to second order about its mode.

    x_i ~ N(0, S),   S = L R L^T + diag(v),   slopes L_jk ~ N(0, slab^2) where open, 0 elsewhere,
    v_j ~ InverseGamma(shape, rate)

With P = S^-1 and u_k = (L R)_k, the expected information of n rows (Lawley & Maxwell 1971, chapter 4) is

    (L_jk, L_j'k')   n [P_jj' u_k^T P u_k' + (P u_k')_j (P u_k)_j']
    (L_jk, log v_i)  n P_ij (P u_k)_i v_i
    (log v_i, log v_j)   n/2 P_ij^2 v_i v_j
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 200  # of scoring, most of which are not needed
CLOSE = 1e-10  # relative gain at which the mode is reached
LONGEST, WALKERS, WALK = 100, 200, 1200  # parameters up to which walkers mix in as many steps
FEW = 200  # features up to which the mean is told from the mode


class Posterior(NamedTuple):
    """slope, slope_sd: (feature, latent), 0 where shut; log_variance, log_variance_sd: (feature,)."""

    slope: Tensor
    slope_sd: Tensor
    log_variance: Tensor
    log_variance_sd: Tensor


class FactorAnalysis:
    """The log posterior of open slopes and log variances, its gradient and its expected information.

    second: (feature, feature) mean of x x^T over `rows` rows. gate: (feature, latent) booleans, the open slopes.
    correlation: (latent, latent) R. slab: (feature, latent); shape, rate: (feature,). coarse: rows as which the slopes
    count, at most `rows` (Miller & Dunson 2019). All float64.
    """

    def __init__(
        self,
        second: Tensor,
        rows: int,
        gate: Tensor,
        correlation: Tensor,
        *,
        slab: Tensor,
        shape: Tensor,
        rate: Tensor,
        coarse: float = float("inf"),
    ) -> None:
        self.second, self.rows, self.gate, self.correlation = second, rows, gate, correlation
        self.slab, self.shape, self.rate = slab, shape, rate
        self.weight = max(1.0, rows / coarse)  # of the slopes' prior against one row's likelihood
        self.j, self.k = gate.nonzero(as_tuple=True)  # (open,)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(feature, latent) slopes and (feature,) log variances of a vector (open + feature,)."""
        slope = theta.new_zeros(self.gate.shape)
        slope[self.j, self.k] = theta[: len(self.j)]
        return slope, theta[len(self.j) :]

    def log_density(self, theta: Tensor) -> Tensor:
        """Log posterior of open slopes and log variances, up to a constant."""
        slope, log_variance = self.split(theta)
        s = slope @ self.correlation @ slope.mT + torch.diag(log_variance.exp())
        tril = torch.linalg.cholesky_ex(s)[0]  # of a step too far: not finite, and not taken
        fit = -0.5 * torch.cholesky_solve(self.second, tril).trace() - tril.diagonal().log().sum()
        prior = -0.5 * self.weight * (slope / self.slab).square().sum()
        prior = prior - (self.shape * log_variance + self.rate * (-log_variance).exp()).sum()
        return self.rows * fit + prior

    def scoring(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (open + feature,) and expected information, prior included."""
        slope, log_variance = FactorAnalysis.split(self, theta)
        v, (j, k), opened = log_variance.exp(), (self.j, self.k), len(self.j)
        u = slope @ self.correlation  # (feature, latent)
        p = torch.linalg.inv(u @ slope.mT + torch.diag(v))
        pu = p @ u
        down = 0.5 * self.rows * (p @ self.second @ p - p)  # of the log-likelihood in S
        grad = torch.cat(
            [
                2 * (down @ u)[j, k] - self.weight * theta[:opened] / self.slab[j, k] ** 2,
                down.diagonal() * v - self.shape + self.rate / v,
            ]
        )
        slopes = p[j[:, None], j] * (u.mT @ pu)[k[:, None], k] + pu[j[:, None], k] * pu[j[:, None], k].mT
        across = p[j] * pu[:, k].mT * v  # (open, feature)
        noise = 0.5 * p.square() * v * v[:, None]
        info = self.rows * torch.cat([torch.cat([slopes, across], 1), torch.cat([across.mT, noise], 1)])
        prior = torch.cat([self.weight / self.slab[j, k] ** 2, self.rate / v])
        return grad, info + torch.diag(prior)

    def moments(self, theta: Tensor, mode: bool = False) -> tuple[Tensor, Tensor]:
        """Mean (open + feature,), or the mode itself, and covariance, about the mode that damped scoring finds from
        `theta`."""
        value, damping = self.log_density(theta), 1e-3
        for _ in range(STEPS):
            grad, info = self.scoring(theta)
            step = torch.linalg.solve(info + damping * torch.diag(info.diagonal()), grad)
            new = self.log_density(theta + step)
            if not new > value:
                damping *= 10
                if damping > 1e6:
                    break
                continue
            gain, theta, value, damping = new - value, theta + step, new, damping / 5
            if gain < CLOSE * value.abs():
                break
        covariance = torch.linalg.inv(self.scoring(theta)[1])
        if len(self.gate) <= FEW and not mode:
            theta = theta + covariance @ self._skew(theta, covariance)
        return theta, covariance

    def walked(self, mean: Tensor, covariance: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the posterior itself, by Metropolis walkers from a normal approximation to it; that
        approximation where a vector is longer than `LONGEST`."""
        size = len(mean)
        if size > LONGEST:
            return mean, covariance
        tril, density = torch.linalg.cholesky(covariance), torch.func.vmap(self.log_density)

        def normal() -> Tensor:
            return torch.randn(WALKERS, size, generator=generator, dtype=torch.float64).to(mean.device) @ tril.mT

        at, kept = mean + normal(), []
        value = density(at)
        for step in range(WALK):
            to = at + 2.0 / size**0.5 * normal()  # accepted one time in three (Roberts, Gelman & Gilks 1997)
            new = density(to)
            luck = torch.rand(WALKERS, generator=generator, dtype=torch.float64).to(mean.device).log()
            taken = luck < new - value  # not where new is not a number
            at, value = torch.where(taken[:, None], to, at), torch.where(taken, new, value)
            if step >= WALK // 3 and step % 10 == 0:
                kept.append(at)
        drawn = torch.cat(kept)
        return drawn.mean(0), torch.cov(drawn.mT)

    def posterior(self, slope: Tensor, log_variance: Tensor) -> Posterior:
        """Means, from a start (feature, latent), (feature,), and deviations there."""
        theta, covariance = self.moments(torch.cat([slope[self.j, self.k], log_variance]))
        sd = covariance.diagonal().sqrt()
        opened = len(self.j)
        # where slopes count as fewer rows, so does their spread
        sd = torch.cat([sd[:opened] * self.weight**0.5, sd[opened:]])
        (slope, log_variance), (slope_sd, log_variance_sd) = self.split(theta), self.split(sd)
        return Posterior(slope, slope_sd, log_variance, log_variance_sd)

    def _skew(self, theta: Tensor, covariance: Tensor) -> Tensor:
        """Half the sum of third derivatives against the covariance, which moves the mean away from the mode."""
        centre, total = self.scoring(theta)[0], torch.zeros_like(theta)
        for direction in torch.linalg.cholesky(covariance).mT:  # differences of gradients a tenth of a deviation away
            total += self.scoring(theta + 0.1 * direction)[0] + self.scoring(theta - 0.1 * direction)[0] - 2 * centre
        return 0.5 * total / 0.1**2


class Triangular(FactorAnalysis):
    """Slopes that are open below the diagonal and positive on it, there in their logarithm.

    L_kk ~ slab chi(K - k + 1), k = 1 .. K, with which L L^T has the law of a full L (Leung & Drton 2016). A parameter
    vector holds the slopes below the diagonal by rows, the logarithms of the diagonal, and log variances. flat: without
    priors, and for the maximum of the likelihood.
    """

    def __init__(self, second: Tensor, rows: int, latents: int, slab: float, rate: float, flat: bool = False) -> None:
        features = len(second)
        like = second.new_ones(features)
        super().__init__(
            second,
            rows,
            torch.ones(features, latents, dtype=torch.bool, device=second.device).tril(),
            torch.eye(latents, dtype=second.dtype, device=second.device),
            slab=second.new_full((features, latents), math.inf if flat else slab),
            shape=(0.0 if flat else 1.5) * like,
            rate=(0.0 if flat else rate) * like,
        )
        below = self.j != self.k
        self.order = torch.cat([below.nonzero()[:, 0], (~below).nonzero()[:, 0]])  # of the base's slopes, in a vector
        self.j, self.k = self.j[self.order], self.k[self.order]
        self.diagonal = slice(int(below.sum()), len(self.j))
        self.freedom = torch.arange(latents, 0, -1, dtype=second.dtype, device=second.device) * (not flat)

    def plain(self, theta: Tensor) -> Tensor:
        """With the diagonal itself in place of its logarithm."""
        below, log_diagonal, rest = self.parts(theta)
        return torch.cat([below, log_diagonal.exp(), rest])

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(below,), (latent,) and (feature,) of a vector."""
        first, last = self.diagonal.start, self.diagonal.stop
        return theta[:first], theta[first:last], theta[last:]

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return super().split(self.plain(theta))

    def log_density(self, theta: Tensor) -> Tensor:
        return super().log_density(theta) + self.freedom @ theta[self.diagonal]

    def scoring(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        plain = self.plain(theta)
        grad, info = super().scoring(plain)
        jacobian = torch.ones_like(theta)
        jacobian[self.diagonal] = plain[self.diagonal]
        grad, info = grad * jacobian, info * jacobian * jacobian[:, None]
        grad[self.diagonal] += self.freedom
        extra = torch.zeros_like(theta)
        extra[self.diagonal] = self.freedom  # the curvature of exp, at the mode
        return grad, info + torch.diag(extra)

    @staticmethod
    def rotated(loadings: Tensor) -> Tensor:
        """(feature, latent) L Q, lower triangular with a positive diagonal, of any loadings: their LQ decomposition."""
        q, r = torch.linalg.qr(loadings[: loadings.shape[1]].mT)
        return (loadings @ q * r.diagonal().sign()).tril()
