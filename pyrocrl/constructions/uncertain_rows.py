"""Rows of which x leaves latents open: counts, and rows that may have escaped their intervention.

y_i ~ N(mean_e, cov_e), or of the observational law if row i escaped, with the probability `share` of environment e
x_i = y_i as it is seen: by linear projection, or counts whose log rates are linear in it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocrl.constructions.count_moments import RowPosterior, count_moments, row_posterior
from pyrocrl.data import Batch, Data
from pyrocrl.dists import MultivariateNormal
from pyrocrl.exact import linear_sem
from pyrocrl.parts import escapees
from pyrocrl.parts.observation import Observation


class UncertainRows(nn.Module):
    """Part of a program with moments `count`, `mean` and `cov` of y and the escaped `share` of each environment (env,).

    counts: whether x is; then `observation` has offsets and dispersions, and `lift` (feature, latent) gives log rates
    of y. Else y is `project` (latent, feature) x. `config["escapees"]` says whether rows may have escaped, by the
    prior `escape_prior`; they then follow the `observational` environments.
    """

    config: dict[str, Any]
    counts: bool
    observation: Observation
    observational: np.ndarray
    escape_prior: escapees.Prior
    count: Tensor
    mean: Tensor
    cov: Tensor
    share: Tensor
    lift: Tensor
    project: Tensor
    _environments: Callable[[], linear_sem.Environments]

    def gather_counts(self, data: Data) -> None:
        """Moments of y behind counts, their loadings, and offsets and dispersions."""
        latents, observational = self.config["latents"], self.observational.tolist()
        own, prior = self.config["escapees"], self.escape_prior
        found = count_moments(data, latents, observational, self.observation, own, prior)
        for name in ("count", "mean", "cov", "share"):
            getattr(self, name).copy_(getattr(found, name))
        self.lift.copy_(found.loadings)
        self.project.copy_(torch.linalg.pinv(found.loadings))

    @torch.no_grad()
    def escaped(self, batch: Batch) -> Tensor | None:
        return self.y_given_x(batch)[2] if self.config["escapees"] else None

    def y_given_x(self, batch: Batch) -> tuple[RowPosterior, RowPosterior, Tensor]:
        """y of each row under its environment's law; had it escaped; (rows,) the probability that it did."""
        own = self._given(batch, self.mean[batch.env], self.cov[batch.env])
        if not self.config["escapees"]:
            return own, own, torch.zeros_like(own.log_evidence)
        use = torch.zeros_like(self.count)
        use[self.observational] = 1.0
        _, mean, cov = self._environments().pooled(use.double())
        natural = self._given(batch, mean.to(own.loc).expand_as(own.loc), cov.to(own.loc).expand_as(own.cov))
        share = self.share[batch.env]
        return own, natural, escapees.probability(own.log_evidence, natural.log_evidence, share)

    def log_evidence(self, batch: Batch, mean: Tensor, cov: Tensor) -> Tensor:
        """(rows,) log p(x_i) where y has the law N(mean, cov) of its environment (env, ...), by Laplace's method."""
        return self.either(lambda env: self._given(batch, mean[env], cov[env]).log_evidence, batch)

    def either(self, log_prob: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(rows,) log density of rows that may have escaped; log_prob: environments of rows -> their log density."""
        own = log_prob(batch.env)
        if not self.config["escapees"]:
            return own
        natural = log_prob(torch.full_like(batch.env, int(self.observational[0])))
        share = self.share[batch.env]
        return torch.logaddexp(torch.log1p(-share) + own, share.log() + natural)

    def _given(self, batch: Batch, mean: Tensor, cov: Tensor) -> RowPosterior:
        """y of each row with prior N(mean, cov), (rows, latent) and (rows, latent, latent), given x."""
        if self.counts:
            return row_posterior(self.observation, self.lift, batch, mean, cov)
        y = batch.x @ self.project.mT
        return RowPosterior(y, torch.zeros_like(cov), MultivariateNormal(mean, cov).log_prob(y))
