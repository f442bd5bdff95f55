"""Rows x in which y is seen linearly, for programs on moments of y: Gaussian or counts, some of them perhaps escaped.

y_i ~ N(mean_e, cov_e), or of the observational law if row i escaped, with the probability `share` of environment e
x_i = lift y_i + offset + r_i,  r_i ~ N(0, tau^2) off the columns of lift;  y_i = project x_i without its offset
or x_ij ~ NegativeBinomial(mean s_i exp(offset[batch_i, j] + (lift y_i)_j), r_j)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl.batch import Batch
from pyrocrl.constructions import subspaces
from pyrocrl.constructions.count_moments import RowPosterior, count_moments, row_posterior
from pyrocrl.data import Data
from pyrocrl.dists import MultivariateNormal
from pyrocrl.errors import one_of
from pyrocrl.exact import linear_sem
from pyrocrl.parts import escapees
from pyrocrl.parts.mixing import LinearMixing
from pyrocrl.parts.observation import LIKELIHOODS, Observation
from pyrocrl.program import check_between, check_rows


class LinearRows(nn.Module):
    """A program's part beside `MarginalSEM`: `class Model(MarginalSEM, LinearRows, Program)` calls `hold_rows`.

    Attributes: project (latent, feature), lift (feature, latent), offset (feature,), tau (), share (env,) as above;
    log_jacobian (), log |d y / d x| within the columns of lift; residual (), the rows' log-likelihood off them.
    counts: whether x is; then `observation` has the offsets of log rates and the dispersions. may_escape: whether rows
    may have escaped their intervention; then they follow the observational environments. escape_prior: of the shares.
    """

    config: dict[str, Any]
    observational: np.ndarray
    target: Tensor
    count: Tensor
    mean: Tensor
    cov: Tensor
    share: Tensor
    lift: Tensor
    project: Tensor
    offset: Tensor
    tau: Tensor
    log_jacobian: Tensor
    residual: Tensor
    rows: Callable[[Batch], Any]
    _environments: Callable[[], linear_sem.Environments]

    @property
    def reads_batches(self) -> bool:
        """Batches have offsets of log rates: of counts alone."""
        return self.counts

    def hold_rows(self, features: int, likelihood: str, batches: int, may_escape: bool, prior: escapees.Prior) -> None:
        """Register buffers and, of counts, offsets and dispersions: estimates, set from the data.

        Raises InputError for another likelihood than gaussian and negative_binomial, and for a prior that is none.
        """
        one_of("likelihood", likelihood, LIKELIHOODS)
        for name, value in prior._asdict().items():
            check_between(f"escape_{name}", value)
        self.counts, self.may_escape, self.escape_prior = likelihood == "negative_binomial", may_escape, prior
        if self.counts:
            self.observation = Observation(features, likelihood, batches).requires_grad_(False)
        envs, latents = self.target.shape
        double = torch.float64
        self.register_buffer("share", torch.zeros(envs, dtype=double))
        self.register_buffer("project", torch.eye(latents, features, dtype=double))
        self.register_buffer("lift", torch.eye(features, latents, dtype=double))
        self.register_buffer("offset", torch.zeros(features, dtype=double))
        for name, value in (("tau", 1.0), ("log_jacobian", 0.0), ("residual", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=double))

    # -- moments -----------------------------------------------------------------------------------------------

    def gather(self, data: Data) -> None:
        """Moments of y in every environment, and how x shows it. Raises InputError for an environment of no more rows
        than latents, whose covariance is singular (of counts: fewer than two), and for more latents than the rank of x
        over the observational rows."""
        latents = self.target.shape[1]
        check_rows(data, 2 if self.counts else latents + 1, "" if self.counts else f", for {latents} latents")
        found = self._of_counts(data) if self.counts else self._of_floats(data)
        for name, value in found.items():
            getattr(self, name).copy_(value)

    def _of_floats(self, data: Data) -> dict[str, Tensor]:
        moments, use = data.moments, torch.zeros_like(data.moments.count)
        use[self.observational] = 1.0
        environments = linear_sem.Environments(moments.count, moments.mean, moments.cov, self.target.cpu())
        total, mean, cov = environments.pooled(torch.ones_like(use))
        latents = self.target.shape[1]
        found = subspaces.principal(cov, lambda matrix: environments.transform(matrix).pooled(use)[2], latents)
        out = {"project": found.project, "lift": found.lift, "log_jacobian": found.log_jacobian}
        out |= subspaces.outside(found, total, mean)._asdict()
        if not self.may_escape:
            seen = environments.transform(found.project)
            return out | {"count": seen.count, "mean": seen.mean, "cov": seen.cov}
        batch = data.tensors(dtype=torch.float64)
        own = escapees.changed_moments(batch.x @ found.project.mT, batch.env, use.bool(), self.escape_prior)
        return out | {"count": own.count, "mean": own.mean, "cov": own.cov, "share": own.share}

    def _of_counts(self, data: Data) -> dict[str, Tensor]:
        latents, observational = self.target.shape[1], self.observational.tolist()
        found = count_moments(data, latents, observational, self.observation, self.may_escape, self.escape_prior)
        out = found._asdict()
        lift = out.pop("loadings")
        return out | {"lift": lift, "project": torch.linalg.pinv(lift)}

    # -- rows --------------------------------------------------------------------------------------------------

    def mixed(self, z: Tensor, unmixing: Tensor, batch: Batch) -> Any:
        """The law of x given latents z = unmixing y (rows, latent)."""
        project, lift, offset, tau = (v.double() for v in (self.project, self.lift, self.offset, self.tau))
        if self.counts:
            eta = torch.linalg.solve(unmixing, z.mT).mT @ lift.mT
            return self.observation.likelihood(eta.to(batch.dtype), batch).to_event(1)
        return LinearMixing(z, unmixing, project, lift, offset, tau, self.log_jacobian.double())

    def y_of(self, batch: Batch) -> Tensor:
        """(rows, latent) y that x determines, less the part that all rows share."""
        return batch.x.double() @ self.project.double().mT

    def recover_rows(self, batch: Batch, unmixing: Tensor) -> None:
        """Sites `escaped` and, of counts, `z` = unmixing y, by Laplace's method; nothing where x determines z."""
        if not (self.counts or self.may_escape):
            return
        own, natural, chance = self.y_given_x(batch)
        with self.rows(batch):
            y, cov = own.loc, own.cov
            if self.may_escape:
                escaped = pyro.sample("escaped", dist.Bernoulli(chance))
                y, cov = y.lerp(natural.loc, escaped[:, None]), cov.lerp(natural.cov, escaped[:, None, None])
            if self.counts:
                law = MultivariateNormal(y, scale_tril=torch.linalg.cholesky(cov))
                y = pyro.sample("y", law, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(y.double() @ unmixing.mT, event_dim=1))

    @torch.no_grad()
    def escaped(self, batch: Batch) -> Tensor | None:
        return self.y_given_x(batch)[2] if self.may_escape else None

    def y_given_x(self, batch: Batch) -> tuple[RowPosterior, RowPosterior, Tensor]:
        """y of each row under its environment's law; had it escaped; (rows,) the probability that it did."""
        own = self._given(batch, self.mean[batch.env], self.cov[batch.env])
        if not self.may_escape:
            return own, own, torch.zeros_like(own.log_evidence)
        use = torch.zeros_like(self.count)
        use[self.observational] = 1.0
        _, mean, cov = self._environments().pooled(use.double())
        natural = self._given(batch, mean.to(own.loc).expand_as(own.loc), cov.to(own.loc).expand_as(own.cov))
        share = self.share[batch.env]
        return own, natural, escapees.probability(own.log_evidence, natural.log_evidence, share)

    def rows_log_prob(self, batch: Batch, unmixing: Tensor, equations: linear_sem.LinearSEM) -> Tensor:
        """(rows,) log p(x_i) of z = unmixing y under the equations (env, ...); of counts by Laplace's method."""
        if self.counts:
            mean, cov = linear_sem.sem_moments(equations)
            back = torch.linalg.inv(unmixing)  # y = back z
            mean, cov = mean @ back.mT, back @ cov @ back.mT
            return self._either(lambda env: self._given(batch, mean[env], cov[env]).log_evidence, batch)
        z = self.y_of(batch) @ unmixing.mT
        inside = self._either(lambda env: linear_sem.sem_log_prob(z, equations.at(env)), batch)
        volume: Tensor = self.mixed(z, unmixing, batch).log_prob(batch.x.double())
        return inside + volume

    def _either(self, log_prob: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """(rows,) log density of rows that may have escaped; log_prob: environments of rows -> their log density."""
        own = log_prob(batch.env)
        if not self.may_escape:
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
