"""Rows that carry an intervention's label and were not changed by it: a Bernoulli per row, summed out.

    e_i ~ Bernoulli(share_env)                               0 in observational environments
    y_i ~ N(m_env, S_env) if e_i = 0, N(m_0, S_0) if e_i = 1   0: the observational law           (latent,)

Laws are free: no equations yet. Fitted by expectation-maximisation; the observational law is that of the observational
rows alone, and the prior of share's logit keeps environments that change little from being taken for escapes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

FIRST = 0.2  # share that every environment starts from
ROUNDS, TOLERANCE = 1000, 1e-6  # of expectation-maximisation; change of a share that ends it


class Prior(NamedTuple):
    """Beta(alpha, beta) of the share p of an environment's rows: alpha log p + beta log(1 - p), of its logit."""

    alpha: float = 1.0
    beta: float = 3.0


PRIOR = Prior()


class Changed(NamedTuple):
    """Moments of the rows that did not escape: count (env,) that they are worth, mean (env, latent), cov (env, latent,
    latent); share (env,) of the rows that did; escaped (rows,), the probability that a row did."""

    count: Tensor
    mean: Tensor
    cov: Tensor
    share: Tensor
    escaped: Tensor


def probability(own: Tensor, natural: Tensor, share: Tensor) -> Tensor:
    """That a row escaped: own and natural are its log density under its environment's law and the observational."""
    return torch.sigmoid(share.logit() + natural - own)


def share_of(escaped: Tensor, rows: Tensor, prior: Prior = PRIOR) -> Tensor:
    """The most probable share, of the expected number of rows that escaped out of all."""
    return (escaped + prior.alpha) / (rows + sum(prior))


def worth(weight: Tensor, distance: Tensor, latents: int) -> Tensor:
    """(rows,) how much of a row known to be changed one that was with probability `weight` is worth to the mean of the
    law, averaged over directions (Louis 1982, equation 3.2'): its sum over rows is their information.

    distance: squared, of rows from the mean, in deviations."""
    return weight - weight * (1 - weight) * distance / latents


def changed_moments(y: Tensor, env: Tensor, observational: Tensor, prior: Prior = PRIOR) -> Changed:
    """The maximum for rows y (rows, latent) of environments env (rows,); observational: (env,) bool."""
    law = _law(y[observational[env]])
    chance, parts = torch.zeros_like(y[:, 0]), []
    for e in range(len(observational)):
        rows = y[env == e]
        weight, share = torch.ones_like(rows[:, 0]), rows.new_zeros(())
        if not observational[e]:
            natural, share = law.log_prob(rows), rows.new_tensor(FIRST)
            weight = 1 - share * (natural - natural.mean()).sigmoid()  # to begin with, the likelier the less changed
            for _ in range(ROUNDS):
                before = share
                escaped = probability(_law(rows, weight).log_prob(rows), natural, share)
                weight, share = 1 - escaped, share_of(escaped.sum(), rows.new_tensor(float(len(rows))), prior)
                if abs(float(share - before)) < TOLERANCE:
                    break
        own = _law(rows, weight)
        distance = torch.linalg.solve_triangular(own.scale_tril, (rows - own.loc).mT, upper=False).square().sum(0)
        count = worth(weight, distance, rows.shape[1]).sum().clamp_min(2.0)
        chance[env == e] = 1 - weight
        parts.append((count, own.loc, own.covariance_matrix, share))
    count, mean, cov, shares = (torch.stack(part) for part in zip(*parts, strict=True))
    return Changed(count, mean, cov, shares, chance)


def _law(rows: Tensor, weight: Tensor | None = None) -> MultivariateNormal:
    """The Gaussian of weighted rows, with a little more spread for it not to be singular."""
    weight = torch.ones_like(rows[:, 0]) if weight is None else weight
    mean = weight @ rows / weight.sum()
    apart = rows - mean
    cov = (weight[:, None] * apart).mT @ apart / weight.sum()
    ridge = 1e-9 * cov.diagonal().mean() * torch.eye(rows.shape[1]).to(rows)
    return MultivariateNormal(mean, cov + ridge, validate_args=False)
