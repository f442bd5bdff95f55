"""Views that each see some of the latents, through a linear mixing of their own: which views share which latents.

    log_odds ~ N(0, 1.5^2)                                                                ()
    sees_vk ~ Bernoulli(logits=log_odds)                                                  (view, latent)
    loadings_jk ~ N(0, slab^2) where the view of feature j sees latent k, else 0          (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                                  (feature,)
    R ~ LKJ(2), correlation_tril its Cholesky factor                                      (latent, latent)
    z_i ~ N(0, R)                                                                         (data, latent)
    x_ij ~ N(loadings_j z_i, variance_j), where row i has the view of feature j           (data, feature)

Rows may lack views: what is not there is passed over. Latents may depend on each other, as under causal equations; a
latent that depends on others is no other than a latent that is seen by its own views.

Each chain starts from the theorem's construction on resampled rows: factor analysis of all features, whose row spaces
of loadings are what each view sees, and their intersections (`constructions.view_intersections`); of answers near it
the one of most evidence is kept. From there a Gibbs sampler runs on the moments of rows with the same views, at a cost
free of their number (`exact.view_factors`). The guide draws sees, loadings, variances and R together from the run, z
exactly given these, and log_odds from a normal law that is fitted.

*Identified:* what any views see in common, as a block: each latent up to a linear map of itself and of the latents that
all of its views see as well; and which views see which latents. This if every view shows all that it sees (loadings of
full rank), views were measured together, noise can be told from latents, and rows are enough. A latent is what is one
in all its views: where latents of two views are functions of each other, as one that causes the other without noise of
its own would be, they are one, and the views' intersection is larger by it. No data tell these apart, nor a view that
sees a latent and hardly shows it from one that does not. Latents need not be normal.

Yao, Xu, Lachapelle, Magliacane, Taslakian, Martius, von Kuegelgen & Locatello (2024), Multi-view causal representation
learning with partial observability; Klami, Virtanen, Leppaaho & Kaski (2015), Group factor analysis.

*Differs from the paper in* linear mixings with noise of features; moments in place of contrastive networks; which views
share what is a posterior, not told; rows may lack views.

*For a variant, copy this file and change* `story`: the law of `sees` or of `loadings`, and with it the conditionals of
`Sampler` in `pyrocrl.exact.view_factors`.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.claims.nested import Nested
from pyrocrl.constructions import view_intersections
from pyrocrl.dists import InverseGamma, MultivariateNormal, Normal, SpikeSlab
from pyrocrl.errors import reject
from pyrocrl.exact import view_factors
from pyrocrl.exact.goodness import Misfit
from pyrocrl.exact.view_factors import KEPT, SPREAD, Moments, Sampler, ViewFactors, ViewLoadings
from pyrocrl.lab.studies.view_blocks import Intersections
from pyrocrl.options import Positive, check_memory
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes
from pyrocrl.readouts import Sights

LINEAR, NOISE = "x is linear in the latents", "noise is independent between features"
ONE = "latents of different views are not functions of each other"
SHOWN = "every view clearly shows all latents that it sees"
NEEDS = (
    "latents_shared",
    "views_paired",
    "views_tell",
    "noise_told_apart",
    "views_counted",
    "sees_told",
    "shared_as_one",
)
GIVEN = (LINEAR, NOISE, ONE, SHOWN)
ETA, SHAPE, LEAST_ROWS = 2.0, view_factors.SHAPE, 10
READ = 10  # one draw of so many is read for means of latents


class Multiview(Program):
    card = ModelCard(
        name="multiview",
        title="Views of some of the latents",
        family="views",
        summary="Views that each see some of the latents: which views share which, and what any of them have in "
        "common, as blocks.",
        when=(
            "two assays or more see overlapping sets of latents, linearly, in rows that have several of them",
            "views share no rows, or relations bend: what is shared by all views of unpaired rows is `cross_modal`'s",
        ),
        assumes=(LINEAR, NOISE, ONE, "which views a row lacks says nothing of its latents"),
        claims=(
            Claim("latents", ("nested",), GIVEN, NEEDS),
            Claim("mask", ("permutation",), GIVEN, NEEDS),
        ),
        references=(
            Reference(
                "Yao, Xu, Lachapelle, Magliacane, Taslakian, Martius, von Kügelgen & Locatello",
                2024,
                "Multi-view causal representation learning with partial observability",
                "ICLR",
                "https://arxiv.org/abs/2311.04056",
            ),
            Reference(
                "Klami, Virtanen, Leppäaho & Kaski",
                2015,
                "Group factor analysis",
                "IEEE Transactions on Neural Networks and Learning Systems",
                "https://doi.org/10.1109/TNNLS.2014.2376974",
            ),
        ),
        differs=(
            "linear mixings, with noise of features",
            "moments in place of contrastive networks",
            "which views share which latents is a posterior, not told",
            "rows may lack views",
        ),
        needs_views=True,
        reads_gaps=True,
    )
    counted = "evidence"
    recipe = Recipe.unannealed(epochs=2, most_steps=10, batch_size=512, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"views": (NOISE,), "straight": (LINEAR,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "sees": Site(("view", "latent"), discrete=True),
        "mask": Site(("feature", "latent"), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
        "correlation": Site(("parent", "child"), {"parent": 1, "child": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        views: Annotated[list[str], "name of every feature's view; read off the data"],
        slab: Positive = 0.7,
        rate: Positive = 0.05,
    ) -> None:
        """latents: of all views together.

        slab: prior deviation of a loading; rate: of the variances' prior, which has its mode at rate / 2.5. Both in
        units of the features' deviations.

        Raises InputError for views that do not name every feature, for one view or more than 10, and for a view of
        fewer features than there are latents.
        """
        super().__init__()
        check_sizes(features, latents)
        names = list(dict.fromkeys(views))
        if len(views) != features or not 2 <= len(names) <= view_intersections.MOST_VIEWS:
            found = f"{len(views)} names, {len(names)} of them different"
            reject("views", found, f"one for each of {features} features, 2 to {view_intersections.MOST_VIEWS}")
        least = min(names, key=views.count)
        if (size := views.count(least)) < latents:
            reject("latents", f"{latents}, with {size} features in view {least!r}", f"1 to {size}")
        check_memory("features", features, 8.0 * (KEPT * (latents + 1) + features) * features)
        both = (features, latents)
        self.log_odds = NormalBlock()
        shapes = {"sees": (len(names), latents), "loadings": both, "variance": (features,)}
        self.drawn = DrawnBlock(KEPT, **shapes, correlation_tril=(latents, latents))
        self.drawn.variance.fill_(1.0)
        self.drawn.correlation_tril.copy_(torch.eye(latents))
        views_here = torch.zeros(len(names))
        self.register_buffers(
            code=torch.tensor([names.index(view) for view in views]),
            seen=torch.ones(len(names), latents),  # by the answer of most evidence, as are the next three
            centre=torch.zeros(both),
            noise=torch.ones(features),
            tril=torch.eye(latents),
            numbers_apart=torch.zeros(()),
            answers_apart=torch.zeros(()),
            weakest=views_here.clone(),
            blurred=torch.zeros(len(names), len(names)),
            together=torch.zeros(len(names), len(names)),
        )

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        log_odds = pyro.sample("log_odds", Normal(0 * one, SPREAD * one))
        logits = log_odds.expand(self.seen.shape)
        sees = pyro.sample("sees", dist.Bernoulli(logits=logits).to_event(2))  # (view, latent)
        gate = pyro.deterministic("mask", sees[self.code])  # (feature, latent)
        slab = Normal(0 * gate, self.config["slab"] * one)
        loadings = pyro.sample("loadings", SpikeSlab(gate, slab).to_event(2))  # (feature, latent)
        noise = InverseGamma(SHAPE * one.expand(features), self.config["rate"] * one)
        variance = pyro.sample("variance", noise.to_event(1))  # (feature,)
        tril = pyro.sample("correlation_tril", dist.LKJCholesky(latents, ETA * one))  # (latent, latent)
        pyro.deterministic("correlation", tril @ tril.mT)
        with self.rows(batch):
            z = pyro.sample("z", MultivariateNormal(0 * tril[0], scale_tril=tril))  # (rows, latent)
            law = Normal(z @ loadings.mT, variance.sqrt()).mask(self._present(batch)[:, self.code])
            pyro.sample("x", law.to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        pyro.sample("log_odds", self.log_odds())
        _, loadings, variance, tril = self.drawn.sample().values()
        with self.rows(batch):
            pyro.sample("z", self._told(batch, loadings, variance, tril)[0])

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log N of what is present, z summed out."""
        return self._told(batch, *(sites[name] for name in ("loadings", "variance", "correlation_tril")))[1]

    @staticmethod
    def _present(batch: Batch) -> Tensor:
        assert batch.present is not None  # without views data are refused
        return batch.present

    def _told(
        self, batch: Batch, loadings: Tensor, variance: Tensor, tril: Tensor
    ) -> tuple[MultivariateNormal, Tensor]:
        """Law of z (rows, latent) given what is present of x, and the log-density (rows,) of that."""
        there = self._present(batch)[:, self.code].to(loadings)  # (rows, feature)
        scaled = loadings / variance[:, None]
        prior = torch.cholesky_inverse(tril)
        precision = prior + torch.einsum("rj,jk,jl->rkl", there, scaled, loadings)
        covariance = torch.linalg.inv(precision)
        own = batch.x * there @ scaled
        mean = (covariance @ own[..., None])[..., 0]
        log_det = there @ variance.log() + torch.logdet(precision) + 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = there * batch.x.square() @ (1 / variance) - (own * mean).sum(1)
        log_density = -0.5 * (log_det + square + math.log(2 * math.pi) * there.sum(1))
        return MultivariateNormal(mean, scale_tril=torch.linalg.cholesky(covariance)), log_density

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        told = (self.drawn.loadings, self.drawn.variance, self.drawn.correlation_tril)
        each = [self._told(batch, *draw)[0].mean for draw in zip(*(v[::READ] for v in told), strict=True)]
        return torch.stack(each).mean(0)

    def mask(self) -> Tensor:
        """(feature, latent) probabilities that the feature's view sees a latent."""
        return self.drawn.sees.mean(0)[self.code]

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent) over the draws."""
        return self.drawn.loadings.mean(0), self.drawn.loadings.std(0)

    def number_margin(self) -> Tensor:
        return self.numbers_apart

    def sights(self) -> Sights:
        return Sights(self.drawn.sees.mean(0), self.answers_apart, self.weakest, self.blurred, self.together)

    @property
    def group(self) -> Nested:
        return Nested.seen(self.seen.cpu().numpy() > 0.5)

    def misfit(self, batch: Batch) -> Misfit | None:
        x, present, view = (v.cpu().numpy() for v in (batch.x.double(), self._present(batch), self.code))
        law = ViewFactors(Moments.of(x, present, view), self.config["slab"], self.config["rate"])
        p, _ = law.climbed(self._factors())
        return view_factors.misfit(p, x, present, view, view_factors.free(p.sees, view))

    def _factors(self) -> ViewLoadings:
        loadings, noise, tril, seen = (
            v.double().cpu().numpy() for v in (self.centre, self.noise, self.tril, self.seen)
        )
        return ViewLoadings(loadings, noise, tril @ tril.T, seen > 0.5)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction on resampled rows, the best answer near it, and a run of the sampler from there."""
        check_rows(data, LEAST_ROWS)
        batch, latents = data.tensors("cpu", torch.float64), self.config["latents"]
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        x, present, view = batch.x.numpy(), self._present(batch).numpy(), self.code.cpu().numpy()
        again = rng.integers(0, len(x), len(x))
        moments, second = Moments.of(x, present, view), Moments.of(x[again], present[again], view).whole()
        law = ViewFactors(moments, self.config["slab"], self.config["rate"])
        found = view_intersections.started(law, second, latents)
        most = int(np.bincount(view).min())
        others = [k for k in (latents - 1, latents + 1) if 1 <= k <= most]
        beside = [view_intersections.started(law, second, k, found.score).score for k in others]
        p, shown = found.factors, view_factors.sights(found.factors, moments)
        self.put(
            seen=torch.as_tensor(p.sees),
            centre=torch.as_tensor(p.loadings),
            noise=torch.as_tensor(p.variance),
            tril=torch.as_tensor(np.linalg.cholesky(p.correlation)),
            numbers_apart=torch.tensor(min(found.score - max(beside, default=-np.inf), 1e6)),
            answers_apart=torch.tensor(min(found.margin, 1e6)),
            **{name: torch.as_tensor(value) for name, value in shown._asdict().items()},
        )
        drawn = Sampler(moments, p, self.config["slab"], self.config["rate"], ETA, rng).draws()
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(torch.as_tensor(getattr(drawn, name)))
        odds = torch.as_tensor(drawn.log_odds)
        self.log_odds.set(odds.mean(), odds.std().clamp_min(0.05))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("yao2024", seed, rows=300, sees="chain", features=10, lacks=0.2)
        return cls.from_data(data), data

    studies = (
        Intersections("yao2024", {"rows": 1000}),
        Intersections("yao2024", {"rows": 1000, "sees": "private", "dependent": True}),
        Intersections("yao2024", {"rows": 1000, "lacks": 0.7}),
        Intersections("yao2024", {"rows": 300, "sees": "private", "alike": 0.9}),
        Intersections("yao2024", {"rows": 20_000, "layers": 3}, seeds=3),
    )


if __name__ == "__main__":
    run(Multiview)
