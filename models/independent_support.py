"""Dependent latents whose joint support is a box: the smallest box that holds all rows tells them, no independence.

    rate ~ LogNormal(log .01, 1)                                                          ()
    fill ~ U(0, 1): share of rows that fill the box                                       ()
    weights ~ Dirichlet(1, ..., 1)                                                        (component,)
    middle_c ~ N(0, I)                                                                    (component, latent)
    width_ck ~ LogNormal(log .3, 1),  lean_cp ~ N(0, 1): S_c^(1/2) has rows of width      (component, latent),
        times 1 on the diagonal and lean below it                                         (component, pair)
    loadings_jk ~ N(0, 1),  center_j ~ N(0, 1)                                            (feature, latent), (feature,)
    variance_j ~ InverseGamma(1.5, rate)                                                  (feature,)
    component_i ~ (fill, (1 - fill) weights)                                              (data,)
    z_i ~ U[-1, 1]^K of rows that fill, else N(middle_c, S_c)                             (data, latent)
    x_i ~ N(center + loadings z_i, V)                                                     (data, feature)

V is diag(variance), but for noise of the unmixed latents, which V has independent of one another (`exact.boxes`): so z
integrates out, and rows that fill have a uniform density with soft edges. `model` has z and the components summed out.

Normal laws of the bulk, as many as `components`, may depend in any way, and stay normal under any linear map: they tell
no axes. Rows that fill do: the smaller the box, the larger its density, and no row outside of it fills. So the
likelihood is that of the smallest parallelepiped that holds what the bulk does not explain, and bad rows far away are
the bulk's.

Each chain takes the span of the latents from factors (`constructions.spans`), searches in it for the box from several
starts, by some of the rows first (`constructions.boxes`), and goes on with a sampler of axes, edges, the bulk, span and
noise (`exact.box_sampling`). With few rows several boxes may be as good: 14 walks along powers of the likelihood then
cross from one to another. The guide draws all but rate from the run.

*Identified:* latents up to permutation, scale and shift, if their joint support is a box and x is linear in them: no
other linear map of a box is one (Wang & Jordan 2024; Ahuja et al. 2023); that it is [-1, 1]^K is a convention. Latents
may depend on one another in any way as long as rows reach all corners. The verdict asks whether rows are in all four
corners of each two latents, as rows that fill would leave there, whether few are beyond the box, and whether a search
beside twice as many normal laws finds the same box: without rows in the corners it does not. Where rows are few that
search may fail, and a box that was found is refused. That what fills is a box in the true latents and not in some
mixture of them, a sheared one, no data tell.

Intervals are those of a uniform law of the rows that fill: where these are denser in the middle, as by a copula, axes
are off by a little more than intervals say. With a few hundred rows and tight clusters in the bulk, walks may stay away
from a likelier box, of which intervals know nothing then; so do those of more rows, of which there is one walk a chain.

Wang & Jordan (2024), Desiderata for representation learning: a causal perspective; Ahuja et al. (2023), Interventional
causal representation learning; Roth et al. (2023), Disentanglement of correlated factors via Hausdorff factorized
support.

*Differs from the paper in* a likelihood in place of distances of codes from recombined codes (IOSS, HFS), which have
none and need a term that keeps codes from shrinking; rows that fill are uniform; linear mixing; a posterior of the
axes.

Longer than other models because draws of the span, the bulk and the box are put together in each draw's units of z.

*For a variant, copy this file and change* `story`: the law of `z`, and with it `log_joint` and `BoxOrBulkGiven` in
`pyrocrl.exact.boxes`.
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
from pyrocrl.constructions.boxes import LAST, boxes_apart, refined, search, searched, walks_from
from pyrocrl.constructions.spans import SpanLaw, settled, span
from pyrocrl.dists import Categorical, InverseGamma, Law, LogNormal, MultivariateNormal, Normal
from pyrocrl.exact import boxes
from pyrocrl.exact.box_sampling import BoxSampler
from pyrocrl.exact.box_walks import DRAWS, BoxDraws, Prior
from pyrocrl.lab.studies.nonlinear import Supports
from pyrocrl.options import Bounds, Size, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.program import Features, Latents, check_rows, check_sizes

RATE, SHAPE, WIDTH = 0.01, 1.5, 0.3
RICHER = 2  # times as many normal laws, with which the box should be the same
ROWS_EACH = 250  # of a normal law, at least
MOST_ROWS = 8000  # of which that is asked
FEW_ROWS, WALKS, FLATTEST = 500, 14, 0.6  # up to which several walks go along powers of the likelihood
LEAST = 1e-3  # deviation of the bulk's components, at least
BOX = "the joint support of the latents is a box"
LINEAR = "x is linear in the latents"
NOISE = "noise of features is small against the box"
NEEDS = ("corners_filled", "within_the_box", "any_bulk", "box_told")


class IndependentSupport(Program):
    card = ModelCard(
        name="independent_support",
        title="Independent support",
        family="support",
        summary="Latents that depend on one another, while each takes all its values whatever the others are: the box "
        "that rows fill tells them.",
        when=(
            "features are linear in latents that are bounded and depend on each other, and now and then rows reach "
            "every combination of their extremes",
            "latents have no ends, or some combinations of their extremes never occur: `heavy_tailed_fa` or `ebmf`",
        ),
        assumes=(BOX, LINEAR, NOISE),
        claims=(Claim("latents", ("permutation", "scale", "shift"), (BOX,), NEEDS),),
        references=(
            Reference(
                "Wang & Jordan",
                2024,
                "Desiderata for representation learning: a causal perspective",
                "Journal of Machine Learning Research",
                "https://arxiv.org/abs/2109.03795",
            ),
            Reference(
                "Ahuja, Mahajan, Wang & Bengio",
                2023,
                "Interventional causal representation learning",
                "ICML",
                "https://arxiv.org/abs/2209.11924",
            ),
            Reference(
                "Roth, Ibrahim, Akata, Vincent & Bouchacourt",
                2023,
                "Disentanglement of correlated factors via Hausdorff factorized support",
                "ICLR",
                "https://arxiv.org/abs/2210.07347",
            ),
        ),
        differs=(
            "a likelihood in place of distances between codes and recombined codes",
            "rows that fill the box are uniform on it",
            "linear mixing",
            "a posterior of the axes",
        ),
        approximate="The level of features is that of the mean row; with many features the span of the latents and "
        "noise are drawn beside the box, not with it.",
    )
    recipe = Recipe.unannealed(epochs=2, most_steps=20, batch_size=256, lr=0.02, dtype=torch.float64, chains=2)
    checks = {"factors": (LINEAR,), "noiseless": (NOISE,)}
    new_rows = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        components: Annotated[int, Bounds(1, 100), "most normal laws of rows that do not fill the box"] = 8,
        starts: Annotated[int, Bounds(1, 50)] = 3,
        steps: Size = 200,
    ) -> None:
        """latents: how many there are, at least 2. components: of these two for each latent are used, one for each 250
        rows, and at least 2. starts: of a chain's search for the box. steps: sweeps of the sampler, of which the first
        third is left out. Up to 500 rows there are 28 starts, and `components` laws."""
        super().__init__()
        check_sizes(features, latents, least=2)
        both, pairs = (components, latents), latents * (latents - 1) // 2
        check_memory("features", features, 8.0 * DRAWS * (features * (latents + 2) + components * latents**2))
        self.rate = LogNormalBlock(loc=math.log(RATE))
        self.drawn = DrawnBlock(
            DRAWS,
            fill=(),
            weights=(components,),
            middle=both,
            width=both,
            lean=(components, pairs),
            loadings=(features, latents),
            center=(features,),
            variance=(features,),
        )
        for name, value in {"fill": 0.5, "weights": 1 / components, "width": 1.0, "variance": 1.0}.items():
            getattr(self.drawn, name).fill_(value)
        self.drawn.loadings.copy_(torch.eye(features, latents))
        self.register_buffers(
            left_open=torch.zeros(latents),  # share of axes that draws leave to others
            moved=torch.zeros(latents),  # ... and that other laws of the bulk do
            below=boxes.places_below(latents),
        )

    def story(self, batch: Batch) -> None:
        fill, weights, middle, tril, *mixing = self._laws(batch)
        loadings, center, variance = mixing
        root = boxes.noise_tril(loadings, variance)
        with self.rows(batch):
            law = Categorical(boxes.component_law(fill, weights).expand(len(batch), -1))
            component = pyro.sample("component", law)  # (rows,)
            z = pyro.sample("z", boxes.BoxOrBulk(component, middle, tril))  # (rows, latent)
            pyro.sample("x", MultivariateNormal(center + z @ loadings.mT, scale_tril=root), obs=batch.x)

    def _laws(self, batch: Batch) -> tuple[Tensor, ...]:
        features, latents, components = (self.config[name] for name in ("features", "latents", "components"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        every, each = one.expand(components, latents), one.expand(features, latents)
        pair = one.expand(components, latents * (latents - 1) // 2)
        rate = pyro.sample("rate", LogNormal(math.log(RATE) * one, one))
        fill = pyro.sample("fill", dist.Beta(one, one))
        weights = pyro.sample("weights", dist.Dirichlet(every[:, 0]))  # (component,)
        middle = pyro.sample("middle", Normal(0 * every, every).to_event(2))  # (component, latent)
        width = pyro.sample("width", LogNormal(math.log(WIDTH) * every, every).to_event(2))
        lean = pyro.sample("lean", Normal(0 * pair, pair).to_event(2))  # (component, pair)
        loadings = pyro.sample("loadings", Normal(0 * each, each).to_event(2))  # (feature, latent)
        center = pyro.sample("center", Normal(0 * each[:, 0], each[:, 0]).to_event(1))  # (feature,)
        variance = pyro.sample("variance", InverseGamma(SHAPE * each[:, 0], rate * each[:, 0]).to_event(1))
        return fill, weights, middle, boxes.tril_of(width, lean, self.below), loadings, center, variance

    def model(self, batch: Batch) -> None:
        *bulk, loadings, center, variance = self._laws(batch)

        def log_rows(x: Tensor) -> Tensor:  # z and components summed out
            return boxes.log_joint(boxes.unmixed(x, loadings, center, variance), *bulk).logsumexp(-1)

        with self.rows(batch):
            pyro.sample("x", Law((len(batch),), (len(center),), log_rows), obs=batch.x)

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        seen = boxes.unmixed(batch.x, *(kept[name] for name in ("loadings", "center", "variance")))
        middle, tril = kept["middle"], boxes.tril_of(kept["width"], kept["lean"], self.below)
        joint = boxes.log_joint(seen, kept["fill"], kept["weights"], middle, tril)
        with self.rows(batch):
            component = pyro.sample("component", Categorical(logits=joint))
            pyro.sample("z", boxes.BoxOrBulkGiven(seen, component, middle, tril))

    def guide(self, batch: Batch) -> None:
        pyro.sample("rate", self.rate())
        self.drawn.sample()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | all that rows share)."""
        seen = boxes.unmixed(batch.x, *(sites[name] for name in ("loadings", "center", "variance")))
        tril = boxes.tril_of(sites["width"], sites["lean"], self.below)
        return boxes.log_joint(seen, sites["fill"], sites["weights"], sites["middle"], tril).logsumexp(-1)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        mean = {name: getattr(self.drawn, name).mean(0) for name in self.drawn.names}
        seen = boxes.unmixed(batch.x, mean["loadings"], mean["center"], mean["variance"])
        middle, tril = mean["middle"], boxes.tril_of(mean["width"], mean["lean"], self.below)
        joint = boxes.log_joint(seen, mean["fill"], mean["weights"], middle, tril)
        return boxes.mean_given(seen, joint.log_softmax(-1), middle, tril)

    def filling(self) -> Tensor:
        return self.drawn.fill

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent) over the draws."""
        return self.drawn.loadings.mean(0), self.drawn.loadings.std(0)

    def rotated(self) -> Tensor:
        return self.left_open

    def box_moved(self) -> Tensor:
        return self.moved

    @torch.no_grad()
    def noise_share(self, batch: Batch) -> Tensor:
        mean = [getattr(self.drawn, name).mean(0) for name in ("loadings", "center", "variance")]
        seen = boxes.unmixed(batch.x, *mean)
        return seen.soft.square() / seen.u.var(0)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The box of most likelihood of several that are searched for, and draws from there on; fewer rows than three
        for each feature say nothing of noise."""
        check_rows(data, 3 * data.features, f", three for each of the {data.features} features")
        x = data.tensors("cpu", torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        latents, components, starts, steps = (self.config[k] for k in ("latents", "components", "starts", "steps"))
        law = settled(span(x, latents), x, SHAPE, RATE)
        space = law.space
        y = space.rows(x)[space.kept]
        laws = min(components, 2 * latents, max(2, len(y) // ROWS_EACH))
        walks = WALKS if len(y) <= FEW_ROWS else 1
        few = walks > 1
        found = searched(y, space.noise, components if few else laws, 2 * walks if few else starts, rng)
        box = refined(found[0], y, space.noise, LAST)
        some = y[rng.permutation(len(y))[:MOST_ROWS]]
        self.put(moved=torch.as_tensor(boxes_apart(box, search(some, space.noise, RICHER * laws, 2, rng))))
        prior = Prior(space.loadings, space.center, WIDTH)
        sampler = BoxSampler(law, np.geomspace(1, FLATTEST, walks), prior, rng, moves=law.root is not None)
        sampler.begin(walks_from([box, *found[1:walks]], components))
        self._take(law, sampler.run(steps), rng)
        self.rate.set(torch.tensor(rng.normal(law.log_rate, law.log_rate_sd)), torch.tensor(law.log_rate_sd))

    @torch.no_grad()
    def _take(self, law: SpanLaw, found: BoxDraws, rng: np.random.Generator) -> None:
        """Set the draws: bulk and mixing are told in each draw's own units of z."""
        to = found.unmixing
        e = rng.standard_normal(found.e.shape) if law.root is None else found.e
        loadings, variance = law.at(e)
        _, read_noise, _ = law.read(loadings, variance)
        loadings = loadings @ np.linalg.inv(to)  # (draw, feature, latent)
        cov = to[:, None] @ found.covariance @ to[:, None].swapaxes(-1, -2)
        noise = ((to @ read_noise) * to).sum(-1)
        value, vector = np.linalg.eigh(cov - np.eye(cov.shape[-1]) * noise[:, None, None])
        tril = np.linalg.cholesky((vector * np.maximum(value, LEAST**2)[..., None, :]) @ vector.swapaxes(-1, -2))
        width = np.diagonal(tril, axis1=-2, axis2=-1)
        row, column = np.tril_indices(cov.shape[-1], -1)
        for name, draws in {
            "fill": found.fill,
            "weights": found.weights,
            "middle": found.middle @ to.swapaxes(-1, -2) + found.offset[:, None],
            "width": width,
            "lean": (tril / width[..., None])[..., row, column],
            "loadings": loadings,
            "center": law.space.center - (loadings @ found.offset[..., None])[..., 0],
            "variance": variance,
        }.items():
            getattr(self.drawn, name).copy_(torch.as_tensor(draws.copy()))
        turn = to @ np.linalg.inv(to.mean(0))
        own = np.diagonal(turn, axis1=1, axis2=2) ** 2
        self.put(left_open=torch.as_tensor((1 - own / (turn**2).sum(-1)).mean(0)))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[IndependentSupport, Data]:
        from pyrocrl.simulate import draw

        data = draw("wang2024_support", seed=seed, rows=600, latents=2, features=6, correlation=0.7, filled=0.3)
        return cls(features=data.features, latents=2, components=3, steps=300), data

    studies = (
        Supports("wang2024_support", {"correlation": 0.9}, held_out=0.1),
        Supports("wang2024_support", {"correlation": 0.5}, held_out=0.1),
    )


if __name__ == "__main__":
    run(IndependentSupport)
