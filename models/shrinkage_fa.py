"""Factor analysis whose columns of loadings shrink: the subspace, the covariance and how many latents there are.

    rate ~ LogNormal(log 0.1, 1)                                                       ()
    variance_j ~ InverseGamma(0.5, rate)                                               (feature,)
    process "cusp":
        stick_l ~ Beta(1, 5),  w_l = stick_l prod_{m < l} (1 - stick_m)                (latent - 1,)
        active_h ~ Bernoulli(1 - sum_{l <= h} w_l), the last one 0                     (latent,)
        slab_h ~ InverseGamma(2, 0.06)                                                 (latent,)
        local_jh ~ Gamma(3 / 2, 3 / 2)                                                 (feature, latent)
        column_jh ~ N(0, slab_h / local_jh) where active_h, N(0, spike) elsewhere      (feature, latent)
    process "gamma":
        growth_1 ~ Gamma(2.1, 1),  growth_l ~ Gamma(3.1, 1),  local as above           (latent,)
        column_jh ~ N(0, 1 / (local_jh prod_{l <= h} growth_l))                        (feature, latent)
    loadings = column Q, Q the rotation by which they are most like `frame`            (feature, latent)
    z_i ~ N(0, I)                                                                      (data, latent)
    x_i ~ N(loadings z_i, diag(variance))                                              (data, feature)

Later columns are less probably active, or smaller: `latents` is an upper limit. `count`, the number of active columns,
is the number of latents; "gamma" says nothing of it. Q changes no law of x: it has draws of z in one rotation, that of
a run's `frame`.

Each chain is a run of a Gibbs sampler that sees the rows through their second moments alone, at a cost free of their
number (`exact.shrinkage`), from principal components. The guide draws all but rate and z from the run, z exactly given
these, and rate from a fitted law.

*Identified:* the latents up to a linear map, that is their subspace, and the features' covariance, if noise can be told
from latents: whichever feature is left out, the others hold two disjoint sets that fix all latents (Anderson & Rubin
1956, theorem 5.1), and if rows are enough to say how many there are. Loadings and single latents are not identified,
and no claim is made of them: any rotation of z has the same law. With few features a column may stand for the noise of
one of them: then `count` is too large, and the verdict refuses.

Bhattacharya & Dunson (2011), Sparse Bayesian infinite factor models; Legramanti, Durante & Dunson (2020), Bayesian
cumulative shrinkage for infinite factorizations.

*Differs from the paper in* a fixed number of columns in place of an adapted one, local scales under both processes, and
a learned rate of the noise.

Longer than other models because it holds two processes.

*For a variant, copy this file and change* `story`: the law of `column` or of `variance`, and with it the conditionals
of `Shrinkage` in `pyrocrl.exact.shrinkage`.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import InverseGamma, LogNormal, MultivariateNormal, Normal
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.exact.shrinkage import (
    A1,
    A2,
    CONCENTRATION,
    DRAWS,
    NU,
    RATE,
    SHAPE,
    SLAB,
    SLAB_SHAPE,
    Process,
    Shrinkage,
    State,
)
from pyrocrl.lab.studies.factors import Covariance
from pyrocrl.options import Positive, Size, check_memory
from pyrocrl.parts.factor_scores import factors_given
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

NOISE = "what features share is their latents"


class ShrinkageFA(Program):
    card = ModelCard(
        name="shrinkage_fa",
        title="Shrinkage factor analysis",
        family="factor analysis",
        summary="The subspace of the latents, how many there are, and the features' covariance; never single latents.",
        when=(
            "a covariance of many features, or the number of latents, is what is asked for",
            "single latents or loadings are to be read: `spike_slab_fa`, `anchor_fa`, `heavy_tailed_fa`, `plt_fa`",
        ),
        assumes=("x is linear in the latents", "noise is independent between features"),
        claims=(
            Claim("latents", ("linear",), (NOISE,), ("noise_told_apart", "number_told"), {"process": "cusp"}),
            Claim("latents", ("linear",), (NOISE,), ("noise_told_apart",), {"process": "gamma"}),
        ),
        references=(
            Reference(
                "Bhattacharya & Dunson",
                2011,
                "Sparse Bayesian infinite factor models",
                "Biometrika",
                "https://doi.org/10.1093/biomet/asr013",
            ),
            Reference(
                "Legramanti, Durante & Dunson",
                2020,
                "Bayesian cumulative shrinkage for infinite factorizations",
                "Biometrika",
                "https://doi.org/10.1093/biomet/asaa008",
            ),
        ),
        differs=(
            "a fixed number of columns in place of an adapted one",
            "local scales under both processes",
            "the rate of the noise is learned",
        ),
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=2, most_steps=20, batch_size=256, lr=0.02, dtype=torch.float64, chains=2)
    checks = {"residuals": (NOISE,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        process: Process = "cusp",
        spike: Positive = 1e-3,
        steps: Size = 600,
    ) -> None:
        """latents: as many as there may be, and one more, for the last column is never active. process: of shrinkage,
        cumulative ("cusp") or a product of gammas. spike: variance of a loading of an inactive column, in units of the
        features' variances. steps: sweeps of the sampler, of which the first half is left out."""
        super().__init__()
        check_sizes(features, latents, least=2)
        check_memory("features", features, 8.0 * DRAWS * features * (2 * latents + 1))
        self.rate = LogNormalBlock(loc=math.log(RATE))
        one, both = (latents,), (features, latents)
        shapes = {"stick": (latents - 1,), "active": one, "slab": one} if process == "cusp" else {"growth": one}
        self.drawn = DrawnBlock(DRAWS, variance=(features,), local=both, column=both, **shapes)
        for name in ("variance", "local", *shapes):
            getattr(self.drawn, name).fill_(0.5 if name in ("stick", "active") else 1.0)
        self.register_buffers(
            frame=torch.zeros(features, latents),
            spread=torch.ones(features, latents),
            second=torch.eye(features),
            fitted=torch.eye(features),
            rows_seen=torch.ones(()),
        )

    def story(self, batch: Batch) -> None:
        features, latents, spike = (self.config[name] for name in ("features", "latents", "spike"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        every = one.expand(features, latents)
        rate = pyro.sample("rate", LogNormal(math.log(RATE) * one, one))
        variance = pyro.sample("variance", InverseGamma(SHAPE * every[:, 0], rate * every[:, 0]).to_event(1))
        local = pyro.sample("local", dist.Gamma(NU / 2 * every, NU / 2 * every).to_event(2))  # (feature, latent)
        if self.config["process"] == "cusp":
            stick = pyro.sample("stick", dist.Beta(every[0, 1:], CONCENTRATION * every[0, 1:]).to_event(1))
            chance = torch.cat([(1 - stick).cumprod(0), 0 * stick[:1]])
            active = pyro.sample("active", dist.Bernoulli(chance).to_event(1))  # (latent,)
            slab = pyro.sample("slab", InverseGamma(SLAB_SHAPE * every[0], SLAB * one).to_event(1))  # (latent,)
            pyro.deterministic("count", active.sum())
            size = torch.where(active > 0.5, slab / local, spike * every)
        else:
            first = torch.arange(latents, device=batch.device) == 0
            growth = pyro.sample("growth", dist.Gamma(torch.where(first, A1 * one, A2 * one), every[0]).to_event(1))
            size = 1 / (local * growth.cumprod(0))
        column = pyro.sample("column", Normal(0 * every, size.sqrt()).to_event(2))
        loadings = pyro.deterministic("loadings", turned(column, self.frame))
        with self.rows(batch):
            z = pyro.sample("z", Normal(0 * every[0], every[0]).to_event(1))  # (rows, latent)
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("rate", self.rate())
        sites = self.drawn.sample()
        eye = torch.eye(self.config["latents"], dtype=batch.dtype, device=batch.device)
        scores, covariance = factors_given(turned(sites["column"], self.frame), sites["variance"], eye)
        with self.rows(batch):
            law = MultivariateNormal(batch.x @ scores.mT, scale_tril=torch.linalg.cholesky(covariance))
            pyro.sample("z", law)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        eye = torch.eye(self.config["latents"], dtype=self.frame.dtype, device=self.frame.device)
        return batch.x @ factors_given(self.frame, self.drawn.variance.mean(0), eye)[0].mT

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent), these given the rotation."""
        return self.frame, self.spread

    def number_told(self) -> Tensor | None:
        return self.drawn.active.sum(1) if self.config["process"] == "cusp" else None

    def implied(self) -> Gaussians:
        """`fitted_cov` is the posterior mean of the features' covariance."""
        zero, chosen = np.zeros((1, len(self.fitted))), float((self.frame != 0).sum() + len(self.fitted))
        cov, fitted = (v.double().cpu().numpy()[None] for v in (self.second, self.fitted))
        return Gaussians(np.array([float(self.rows_seen)]), zero, cov, zero, fitted, chosen)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Principal components of the correlations, all of them active, moved a little; `frame` is theirs until the
        sampler has run."""
        check_rows(data, 3)
        x, latents = data.tensors(self.frame.device, torch.float64).x, self.config["latents"]
        second = x.mT @ x / len(x)
        unit = second.diagonal().sqrt()  # 1, but for rows that come in units of their own
        value, vector = torch.linalg.eigh(second / unit / unit[:, None])
        noise = torch.randn(data.features, latents, generator=generator, dtype=torch.float64).to(x.device)
        loadings = vector[:, -latents:] * value[-latents:].clamp_min(0).sqrt() + 0.02 * noise
        variance = (1 - loadings.square().sum(1)).clamp_min(0.02) * unit.square()
        loadings = loadings * unit[:, None]
        self.put(second=second, rows_seen=self.rows_seen.new_tensor(len(x)))
        self._take([State.of(loadings.flip(1).cpu().numpy(), variance.cpu().numpy())])
        self.rate.set(math.log(RATE) + 0.1 * noise[0, 0], 0.5 + 0 * noise[0, 0])

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Draws of the posterior, from where the chain started."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        column, variance = (v.double().cpu().numpy() for v in (self.drawn.column[-1], self.drawn.variance[-1]))
        law = (self.second.double().cpu().numpy(), int(self.rows_seen), self.config["process"], self.config["spike"])
        self._take(Shrinkage(*law).run(State.of(column, variance), self.config["steps"], rng))

    @torch.no_grad()
    def _take(self, found: list[State]) -> None:
        """Set the guide to these draws, or all of its draws to one."""
        like = self.frame
        each = {name: torch.as_tensor(np.stack([getattr(s, name) for s in found])) for name in State._fields}
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(each["loadings" if name == "column" else name])
        column, log_rate = each["loadings"].to(like.device), each["rate"].log()
        signal = (column @ column.mT).mean(0)  # (feature, feature)
        self.put(fitted=signal + torch.diag(each["variance"].to(like.device).mean(0)))
        value, vector = torch.linalg.eigh(signal)
        own, latents = int(each["active"].sum(1).mode()[0]), column.shape[2]
        own = own if self.config["process"] == "cusp" else latents
        frame = torch.zeros_like(signal[:, :latents])
        frame[:, :own] = (vector * value.clamp_min(0).sqrt()).flip(1)[:, :own]
        self.put(frame=frame)
        self.put(spread=torch.stack([turned(one, frame) for one in column]).std(0, correction=0))
        self.rate.set(log_rate.mean(), log_rate.std(correction=0).clamp_min(0.05))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[ShrinkageFA, Data]:
        from pyrocrl.simulate import draw

        data = draw("bhattacharya2011", seed=seed, rows=300, latents=3, features=30, density=0.5)
        return cls(features=data.features, latents=6), data

    studies = (
        Covariance("bhattacharya2011", {"rows": 100}, {"latents": 20}, 10),
        Covariance("bhattacharya2011", {"rows": 500}, {"latents": 20}, 10),
        Covariance("bhattacharya2011", {"rows": 100}, {"latents": 20, "process": "gamma"}),
    )


def turned(column: Tensor, frame: Tensor) -> Tensor:
    """The columns (feature, latent), rotated to be most like `frame` (feature, latent)."""
    left, _, right = torch.linalg.svd(column.mT @ frame)
    return column @ left @ right


if __name__ == "__main__":
    run(ShrinkageFA)
