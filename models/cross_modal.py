"""Shared and private latents of several views, such as RNA and ATAC: one latent space, and translation between them.

    loadings_jk ~ N(0, slab^2),  own_jk ~ N(0, slab^2)                    (feature, latent), (feature, private)
    offset_j ~ N(0, 1)                                                    (feature,)
    variance_j ~ InverseGamma(1.5, rate)                                  (feature,)
    level_e ~ N(0, I), 0 in the first environment; where anchors          (env, latent)
    z_i ~ N(level of its environment, I)                                  (data, latent)
    private_iv ~ N(0, I)                                                  (data, view, private)
    x_ij ~ N(offset_j + loadings_j z_i + own_j private_iv, variance_j), v the view of feature j    (data, feature)

z is shared by all views, `private` belongs to one each. A row may lack views: what is not there is passed over. With
anchors=True labels of environments, such as hours, tie views that were measured in different rows: they move z and
nothing else. Other fits do not read labels.

`model` sums z and private out, `recover` draws them. Each chain climbs to the mode of loadings, offsets, variances and
levels (`exact.shared_factors`) from factor analysis of each view, rotated until views agree, and draws them by Gibbs
sampling from there (`exact.shared_factor_draws`), in the mode's rotation of the latents. The guide draws all but the
variances, which are log-normal, together from this run.

*Identified:* z up to a rotation, and so within the linear maps of the claim, if factor analysis tells the noise of each
view (2 (latents + private) + 1 features; Anderson & Rubin 1956), loadings of shared latents are outside the span of the
private ones, every view shows every shared latent, and views are tied. Scores of a view are then a rotation of
(z, private), and what ties views is the product of the shared parts of two rotations: rows with both views tell it all;
environments tell it if their levels span all shared latents, for which there is one more of them at least, and if they
do not move private latents. Without either any rotation of the latents of one view against those of the other fits as
well; where views are alike and not the same, so does any share of what they have in common in z. Private latents are
told apart from z, and nothing is claimed of them one by one.

Klami, Virtanen & Kaski (2013), Bayesian canonical correlation analysis; Yang, Belyaeva, Venkatachalapathy, Damodaran,
Katcoff, Radhakrishnan, Shivashankar & Uhler (2021), Multi-domain translation between single-cell imaging and sequencing
data using autoencoders.

*Differs from the paper in* linear maps and a likelihood in place of autoencoders and a discriminator; labels are
anchors of levels in place of a classifier's targets; the numbers of shared and private latents are given.

Longer than other models because rows may lack views and labels may tie them, and z and private latents are summed out
of any of these.

*For a variant, copy this file and change* `story`: the law of `loadings`, of `own` or of `z`; delete `initialise`,
which is made for these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import InverseGamma, Law, MultivariateNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import shared_factors
from pyrocrl.exact.goodness import Misfit
from pyrocrl.exact.shared_factor_draws import FactorDraws
from pyrocrl.exact.shared_factors import SHAPE, Parameters, SharedFactors
from pyrocrl.lab.studies.translations import MeasuredViews, Translation
from pyrocrl.options import Bounds, Positive, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.program import Environments, Features, Latents
from pyrocrl.readouts import Ties

LAW = "latents and noise are independent and Gaussian"
LABELS = "labels of environments move the shared latents alone"
NEEDS = ("views_tied", "shared_in_views", "private_apart")
MANY = 1000  # features from which two chains, which start nearly alike, are enough
JITTER = 0.05  # of loadings from which chains start
SWEEPS, DRAWS = 200, 50  # of the sampler, at most, and draws that are kept
TOLD = 25  # draws from which intervals of a view are told


class CrossModal(Program):
    card = ModelCard(
        name="cross_modal",
        title="Shared and private latents of views",
        family="views",
        summary="One latent space for several views, such as RNA and ATAC, measured in the same rows or in different "
        "ones that share labels; a view is told from another with intervals.",
        when=(
            "two assays or more see the same latents, linearly, and have latents of their own; counts enter as "
            "log(1 + x / size factor)",
            "views share neither rows nor labels, labels also move what is private to a view, or a relation bends",
        ),
        assumes=(
            "x is linear in shared latents and in latents of each view alone",
            "shared and private latents are independent, as is the noise of features",
        ),
        claims=(
            Claim("latents", ("linear",), (LAW,), NEEDS, {"anchors": False}),
            Claim("latents", ("linear",), (LAW, LABELS), NEEDS, {"anchors": True}),
        ),
        references=(
            Reference(
                "Klami, Virtanen & Kaski",
                2013,
                "Bayesian canonical correlation analysis",
                "Journal of Machine Learning Research",
                "https://www.jmlr.org/papers/v14/klami13a.html",
            ),
            Reference(
                "Yang, Belyaeva, Venkatachalapathy, Damodaran, Katcoff, Radhakrishnan, Shivashankar & Uhler",
                2021,
                "Multi-domain translation between single-cell imaging and sequencing data using autoencoders",
                "Nature Communications",
                "https://doi.org/10.1038/s41467-020-20249-2",
            ),
        ),
        differs=(
            "linear maps and a likelihood in place of autoencoders and a discriminator",
            "labels are anchors of levels in place of a classifier's targets",
            "the numbers of shared and private latents are given",
        ),
        approximate="Where no rows with the same views are twice as many as their features, loadings stay where factor "
        "analysis of each view and the correlations of its scores put them: the mode would spend shared latents on "
        "variance of single views. Draws are then normal about that, with deviations given all else.",
        needs_views=True,
        reads_gaps=True,
    )
    recipe = Recipe.unannealed(epochs=1, batch_size=None, lr=1e-5, held_out=0.05, dtype=torch.float64, chains=4)
    checks = {"views": (LAW,), "gaussian": (LAW,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "private": Site(("data", "view", "private")),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "own": Site(("feature", "private"), unit=1),
        "offset": Site(("feature",), unit=1),
        "variance": Site(("feature",), unit=2),
        "level": Site(("env", "latent"), {"latent": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        views: Annotated[list[str], "name of every feature's view; read off the data"],
        private: Annotated[int, Bounds(1), "how many latents each view has of its own"] = 2,
        anchors: Annotated[bool, "whether labels of environments tie views, by moving shared latents alone"] = False,
        environments: Environments = 1,
        slab: Positive = 1.0,
        rate: Positive = 0.1,
    ) -> None:
        """slab: prior deviation of a loading; rate: of the variances' prior, which has its mode at rate / 2.5. Both in
        units of the features' deviations.

        Raises InputError for views that do not name every feature, for one view, for a view of fewer than
        2 (latents + private) + 1 features, and for anchors with a single environment.
        """
        super().__init__()
        if features > MANY:
            self.recipe = replace(self.recipe, chains=2)
        names = list(dict.fromkeys(views))
        if len(views) != features or len(names) < 2:
            reject(
                "views",
                f"{len(views)} names, {len(names)} of them different",
                f"one for each of {features} features, two or more",
            )
        least = 2 * (latents + private) + 1
        for name in names:
            if (size := views.count(name)) < least:
                found = f"{latents} and private={private}, with {size} features in view {name!r}"
                reject(
                    "latents", found, f"latents + private up to {(size - 1) // 2}, so that noise is told from latents"
                )
        if anchors and environments < 2:
            reject("anchors", "True with one environment", "two environments or more, whose labels tie views")
        if not anchors:
            self.config.pop("environments", None)  # labels are not read
        self.names = names
        check_memory("features", features, 8.0 * DRAWS * features * (latents + private + 1))
        shapes = {"loadings": (features, latents), "own": (features, private), "offset": (features,)}
        shapes |= {"level": (environments, latents)} if anchors else {}
        self.drawn, self.variance = DrawnBlock(DRAWS, **shapes), LogNormalBlock(features)
        code = torch.tensor([names.index(view) for view in views])
        self.register_buffers(
            code=code,
            mine=torch.nn.functional.one_hot(code, len(names)).to(torch.get_default_dtype()),  # (feature, view)
            tied=torch.zeros(latents),
            **{f"{name}_mode": torch.zeros(shape) for name, shape in shapes.items()},
            **{name: torch.zeros(len(names)) for name in ("shown", "common", "chance", "within")},
        )

    def _globals(self, batch: Batch) -> Parameters:
        """Samples of all sites but rows' own, by their prior."""
        features, latents, private, slab, rate = (
            self.config[name] for name in ("features", "latents", "private", "slab", "rate")
        )
        one = torch.ones((), dtype=batch.dtype, device=batch.device)

        def normal(*shape: int, scale: float = 1.0) -> Normal:
            return Normal(one.new_zeros(shape), scale * one)

        shared = pyro.sample("loadings", normal(features, latents, scale=slab).to_event(2))
        own = pyro.sample("own", normal(features, private, scale=slab).to_event(2))
        offset = pyro.sample("offset", normal(features).to_event(1))
        noise = InverseGamma(SHAPE * one.expand(features), rate * one)
        variance = pyro.sample("variance", noise.to_event(1))
        level = one.new_zeros(1, latents)
        if self.config["anchors"]:
            level = self._centred(pyro.sample("level", normal(self.config["environments"], latents).to_event(2)))
        return Parameters(shared, own, offset, variance, level)

    def story(self, batch: Batch) -> None:
        p, size = self._globals(batch), (len(batch), len(self.names), self.config["private"])
        with self.rows(batch):
            level = p.level[self._code(batch)]  # (rows, latent)
            z = pyro.sample("z", Normal(level, torch.ones_like(level)).to_event(1))  # (rows, latent)
            private = pyro.sample("private", Normal(z.new_zeros(size), torch.ones_like(z[0, 0])).to_event(2))
            mean = p.offset + z @ p.shared.mT + private.flatten(1) @ self._stacked(p.own).mT  # (rows, feature)
            there = self._present(batch)[:, self.code]
            pyro.sample("x", Normal(mean, p.variance.sqrt()).mask(there).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        p = self._globals(batch)
        with self.rows(batch):
            law = Law((len(batch),), (self.config["features"],), lambda _: self._summed(p, batch)[1])
            pyro.sample("x", law, obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        p = self._told(kept)
        with self.rows(batch):
            z = pyro.sample("z", self._summed(p, batch)[0])
            pyro.sample("private", self._private(p, z, batch).to_event(1))

    def guide(self, batch: Batch) -> None:
        self.drawn.sample()
        pyro.sample("variance", self.variance().to_event(1))

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        return self._summed(self._told(sites), batch)[1]

    def _told(self, sites: Mapping[str, Tensor]) -> Parameters:
        shared, own, offset, variance = (sites[name] for name in ("loadings", "own", "offset", "variance"))
        level = self._centred(sites["level"]) if self.config["anchors"] else shared.new_zeros(1, shared.shape[1])
        return Parameters(shared, own, offset, variance, level)

    @staticmethod
    def _centred(level: Tensor) -> Tensor:
        """Levels (env, latent), that of the first environment at 0."""
        return level * (torch.arange(len(level), device=level.device) > 0).to(level)[:, None]

    def _code(self, batch: Batch) -> Tensor:
        """(rows,) environments, one for all where labels are not read."""
        return batch.env if self.config["anchors"] else torch.zeros_like(batch.env)

    @staticmethod
    def _present(batch: Batch) -> Tensor:
        assert batch.present is not None  # without views data are refused
        return batch.present

    def _stacked(self, value: Tensor) -> Tensor:
        """(feature, view * k) of (feature, k): 0 but for the feature's own view."""
        return (self.mine.to(value)[:, :, None] * value[:, None]).flatten(1)

    def _sums(self, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Of each view the products W^T v^-1 W (view, latent, latent), W^T v^-1 B (view, latent, private), and
        (I + B^T v^-1 B)^-1 (view, private, private)."""
        shape = (self.mine.shape[1], -1)
        ww, wb, bb = (
            (self._stacked(a).mT @ (b / p.variance[:, None])).unflatten(0, shape)
            for a, b in ((p.shared, p.shared), (p.shared, p.own), (p.own, p.own))
        )
        eye = torch.eye(bb.shape[-1], dtype=bb.dtype, device=bb.device)
        return ww, wb, torch.linalg.inv(eye + bb)

    def _summed(self, p: Parameters, batch: Batch, present: Tensor | None = None) -> tuple[MultivariateNormal, Tensor]:
        """Law of z (rows, latent) given what is `present` (rows, view) of x, private latents summed out, and the
        log-density (rows,) of what is present."""
        there = (self._present(batch) if present is None else present).to(p.shared)
        ww, wb, inner = self._sums(p)
        level, rows = p.level[self._code(batch)], there @ self.mine.to(there).mT  # (rows, latent), (rows, feature)
        apart = (batch.x - p.offset - level @ p.shared.mT) * rows
        white = apart / p.variance
        own = (white @ self._stacked(p.own)).unflatten(1, (-1, p.own.shape[1]))  # (rows, view, private)
        seen = white @ p.shared - torch.einsum("ivp,vpq,vkq->ik", own, inner, wb)
        eye = torch.eye(ww.shape[-1], dtype=ww.dtype, device=ww.device)
        precision = eye + torch.einsum("iv,vkl->ikl", there, ww - wb @ inner @ wb.mT)
        covariance = torch.linalg.inv(precision)
        tril = torch.linalg.cholesky(covariance)
        moved = (covariance @ seen[..., None])[..., 0]
        log_det = (
            rows @ p.variance.log() - there @ torch.logdet(inner) - 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
        square = (white * apart).sum(1) - torch.einsum("ivp,vpq,ivq->i", own, inner, own) - (seen * moved).sum(1)
        log_density = -0.5 * (log_det + square + math.log(2 * math.pi) * rows.sum(1))
        return MultivariateNormal(level + moved, scale_tril=tril), log_density

    def _private(self, p: Parameters, z: Tensor, batch: Batch) -> MultivariateNormal:
        """Law of private latents (rows, view, private) given z and x: the prior where the row lacks the view."""
        there = self._present(batch).to(z)[:, :, None]
        _, _, inner = self._sums(p)
        left = (batch.x - p.offset - z @ p.shared.mT) / p.variance
        seen = (left @ self._stacked(p.own)).unflatten(1, (-1, p.own.shape[1]))
        mean = there * torch.einsum("vpq,ivq->ivp", inner, seen)
        eye = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
        tril = there[..., None] * torch.linalg.cholesky(inner) + (1 - there[..., None]) * eye
        return MultivariateNormal(mean, scale_tril=tril)

    # -- read-outs ---------------------------------------------------------------------------------------------

    def _mode(self) -> Parameters:
        names = ("loadings", "own", "offset", *(("level",) if self.config["anchors"] else ()))
        mode = {name: self.get_buffer(f"{name}_mode") for name in names}
        return self._told(mode | {"variance": self.variance.loc.exp()})

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._summed(self._mode(), batch)[0].mean

    @torch.no_grad()
    def beside(self, batch: Batch) -> dict[str, Tensor]:
        p = self._mode()
        return {"private": self._private(p, self._summed(p, batch)[0].mean, batch).mean}

    @torch.no_grad()
    def translate(self, batch: Batch, view: int) -> tuple[Tensor, Tensor, Tensor]:
        p, columns = self._mode(), (self.code == view).nonzero()[:, 0]
        others = self._present(batch).clone()
        others[:, view] = False
        law = self._summed(p, batch, others)[0]
        shared, spread = p.shared[columns], law.scale_tril  # ..., (rows, latent, latent)
        square = torch.stack([(shared @ tril).square().sum(1) for tril in spread])
        square = square + self.drawn.own[:, columns].square().sum(-1).mean(0) + p.variance[columns]
        told = []  # of the parameters' draws: where loadings err, latents do as well
        for draw in range(0, DRAWS, DRAWS // TOLD):
            sites = {name: getattr(self.drawn, name)[draw] for name in self.drawn.names}
            one = self._told(sites | {"variance": p.variance})
            told.append(one.offset[columns] + self._summed(one, batch, others)[0].mean @ one.shared[columns].mT)
        unsure = torch.stack(told).var(0)
        return p.offset[columns] + law.mean @ shared.mT, (square + unsure).sqrt(), law.mean

    def ties(self) -> Ties:
        factors = self.config["latents"] + self.config["private"]
        return Ties(self.tied, self.shown, self.common, self.chance, self.within, factors)

    # -- from data ---------------------------------------------------------------------------------------------

    def _law(self, batch: Batch) -> SharedFactors:
        count = self.config.get("environments", 1)
        found = shared_factors.groups(batch.x.double(), self._present(batch), self.code, self._code(batch), count)
        return SharedFactors(found, self.code, **{name: self.config[name] for name in ("anchors", "slab", "rate")})

    @torch.no_grad()
    def misfit(self, batch: Batch) -> Misfit | None:
        return shared_factors.misfit(self._law(batch), Parameters(*(value.double() for value in self._mode())))

    @torch.no_grad()
    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Factor analysis of each view, rotated until they agree, then the mode of all of it and draws from there."""
        batch, count = data.tensors(self.code.device, torch.float64), self.config.get("environments", 1)
        latents, private = self.config["latents"], self.config["private"]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(batch.x)

        law = self._law(batch)
        start = shared_factors.started(law, latents, private, count, normal)
        mode = start
        spread = law.deviations(mode)
        if law.tells_covariance:
            mode = law.climbed(start._replace(shared=start.shared + JITTER * normal(*start.shared.shape)))
            chain = FactorDraws(law, mode, np.random.default_rng(int(torch.randint(2**62, (), generator=generator))))
            drawn = chain.run(law.affordable(SWEEPS, mode), DRAWS)
            spread = spread._replace(variance=drawn.variance.log().std(0))
            mode = mode._replace(variance=drawn.variance.log().mean(0).exp().to(mode.variance))
        else:
            drawn = Parameters(*(v + sd * normal(DRAWS, *v.shape) for v, sd in zip(mode, spread, strict=True)))
        names = {"loadings": 0, "own": 1, "offset": 2} | ({"level": 4} if self.config["anchors"] else {})
        for name, part in names.items():
            self.put(**{f"{name}_mode": mode[part]})
            getattr(self.drawn, name).copy_(drawn[part])
        self.variance.set(mode.variance.log().to(self.code.device), spread.variance.to(self.code.device))
        self.put(**law.ties(mode)._asdict())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("shared_private", seed, rows=240, latents=2, private=1, features=24, paired=0.8, noise=0.4)
        return cls.from_data(data, private=1), data

    studies = (
        Translation("shared_private", {}),
        Translation("shared_private", {"paired": 0.1}),
        Translation("shared_private", {"paired": 0.0, "labels": 5, "rows": 4000}, {"anchors": True}),
        Translation("shared_private", {"paired": 0.0}, identified=False),
        MeasuredViews("scicar_a549", {"rows": "paired"}, {"latents": 20, "private": 60}, seeds=3),
        MeasuredViews("scicar_a549", {"rows": "not paired"}, {"latents": 2, "private": 30, "anchors": True}, seeds=3),
    )


if __name__ == "__main__":
    run(CrossModal)
