"""Linear equations among latents with features of their own: clusters of features tell latents, and these a graph.

    edge ~ N(log odds of edge_probability, 1): log odds of an edge                    ()
    mask: a partition of the features, each as probable, into sets of two or more,    (feature, latent)
          one a latent, and features of no latent
    loadings_jk ~ N(0, slab^2) where mask_jk is 1, 0 elsewhere                        (feature, latent)
    variance_j ~ InverseGamma(1.5, rate)                                              (feature,)
    order ~ uniform;  graph[b, k] ~ Bernoulli(edge) if b precedes k, features of both (parent, child)
    precision_k ~ Gamma((3 + parents of k) / 2, 1/8)                                  (latent,)
    slope_bk ~ N(0, 4 / precision_k) where graph[b, k] is 1, 0 elsewhere              (parent, child)
    mixed_k ~ Bernoulli(1/2), or 0 with innovations="gaussian"; form_kl ~ N(0, 1)     (latent, 3)
    z_k = sum_b weight_bk z_b + noise_k e_k                                           (data, latent)
    e_k ~ a mixture of two normals, told by form_k, where mixed_k is 1, else N(0, 1)
    x_i ~ N(loadings z_i, diag(variance))                                             (data, feature)

weight and noise are those of the equations y_k = sum_b slope_bk y_b + e_k / sqrt(precision_k), with z_k = y_k over its
deviation. Equivalent graphs have the same evidence by this law of slopes and precisions (Geiger & Heckerman 2002): what
the posterior says of a direction that the graph's class leaves open is what orders say, about one half, unless
innovations e that are not normal tell it (Shimizu et al. 2006).

`model` sums out orders. Each chain is a run of a Gibbs sampler for normal e, which sees the rows through their second
moments (`exact.measured_sem`), so that clusters and joined latents do not rest on the law of e; it begins at the
clusters that a search by BIC finds in resampled rows (`constructions.pure_clusters`), improved on these rows. Then
graphs within each class get the evidence of mixtures, forms being at their most probable (`exact.mixed_sem`), up to six
latents in use. The guide has these draws, and the normal law of z given them that has its moments. A chain decides how
many of the `latents` that are offered are in use, and that chains agree on it is the evidence.

*Identified:* clusters and latents up to permutation, sign and scale, and the graph up to Markov equivalence besides,
if every latent has three features of its own, or two and another latent that it depends on; directions as well, where
innovations are not Gaussian and the noise of features is: large noise far from it may pass for innovations. A latent
with one feature alone cannot be told: that feature is then counted as another latent's. That features depend on one
latent each is put to the test: the fitted moments against free ones, which tests vanishing tetrads and all else that
clusters imply.

Silva, Scheines, Glymour & Spirtes (2006), Learning the structure of linear latent variable models.

*Differs from the paper in* a posterior in place of tests of single tetrads; features that depend on two latents are not
left out, they contradict the model; two features may be enough.

Longer than other models because innovations have a law of their own, and `model` draws graphs and latents at once that
the story draws one by one.

*For a variant, copy this file and change* `_equations`: the law of weights or of loadings, and with it the
conditionals of `Sampler` in `pyrocrl.exact.measured_sem`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal
from weakref import WeakKeyDictionary

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions.pure_clusters import pure_clusters
from pyrocrl.dists import InverseGamma, Law, MultivariateNormal, Normal, SpikeSlab
from pyrocrl.exact.gate_rows import Partitions
from pyrocrl.exact.goodness import Gaussians
from pyrocrl.exact.measured_sem import KEPT, SHAPE, SIZE, Sampler
from pyrocrl.exact.mixed_sem import FORM, Directions, components
from pyrocrl.exact.order_sampling import AnyOrder
from pyrocrl.exact.orders import MAX_NODES, Order, earlier, log_orders, only
from pyrocrl.lab.studies.measured_graphs import MeasuredGraph
from pyrocrl.options import Bounds, Positive, check_memory
from pyrocrl.parts.factor_scores import factors_log_prob
from pyrocrl.parts.guides import DrawnBlock, NormalBlock
from pyrocrl.program import EdgeProbability, Features, Latents, check_rows, check_sizes

PURE = "each feature depends linearly on one latent alone"
OWN = "every latent has two features of its own"
EQUATIONS = "latents follow linear equations without cycles, and nothing unobserved acts on two of them"
FAITHFUL = "independences are those that the graph asks for (faithfulness)"
NEEDS = ("pure_children", "clusters_apart")
NORMAL = "noise of features is Gaussian"
GIVEN = ("loadings", "variance", "slope", "precision")  # what the law of z given x depends on
_KNOWN: WeakKeyDictionary[Data, dict[bytes, Directions]] = WeakKeyDictionary()


class LinearLatentSEM(Program):
    card = ModelCard(
        name="linear_latent_sem",
        title="Linear equations among latents with pure features",
        family="latent graphs",
        summary="Features that depend on one latent each cluster by it; which latents depend on which is told from "
        "observational rows alone, up to Markov equivalence, and directions where innovations are not Gaussian.",
        when=(
            "each feature measures one latent, as items of a questionnaire do, there are no interventions, and it is "
            "asked what is measured and how that depends on each other",
            "most features depend on several latents (`anchor_fa`, without a graph), or directions among Gaussian "
            "latents are asked for: without interventions rows tell v-structures alone",
        ),
        assumes=(PURE, OWN, "latents follow linear equations"),
        claims=(
            Claim("latents", ("permutation", "scale"), (PURE, OWN), NEEDS),
            Claim("mask", ("permutation",), (PURE, OWN), NEEDS),
            Claim(
                "graph",
                ("permutation",),
                (PURE, OWN, EQUATIONS, FAITHFUL, NORMAL),
                (*NEEDS, "directions_shown"),
                {"innovations": "any"},
            ),
            Claim(
                "graph",
                ("permutation", "markov equivalence"),
                (PURE, OWN, EQUATIONS, FAITHFUL),
                NEEDS,
                {"innovations": "gaussian"},
            ),
        ),
        references=(
            Reference(
                "Silva, Scheines, Glymour & Spirtes",
                2006,
                "Learning the structure of linear latent variable models",
                "JMLR",
                "https://jmlr.org/papers/v7/silva06a.html",
            ),
            Reference(
                "Geiger & Heckerman",
                2002,
                "Parameter priors for directed acyclic graphical models and the characterization of several "
                "probability distributions",
                "Annals of Statistics",
                "https://doi.org/10.1214/aos/1035844981",
            ),
            Reference(
                "Shimizu, Hoyer, Hyvarinen & Kerminen",
                2006,
                "A linear non-Gaussian acyclic model for causal discovery",
                "JMLR",
                "https://jmlr.org/papers/v7/shimizu06a.html",
            ),
        ),
        differs=(
            "a posterior in place of tests of single tetrads",
            "features that depend on two latents are not left out: they contradict the model",
            "two features of a latent are enough where it depends on another one",
            "directions by the evidence of innovations that are mixtures of two normals, by Laplace's method",
        ),
    )
    counted = "offered"
    recipe = Recipe.unannealed(epochs=10, most_steps=60, batch_size=512, lr=0.02, dtype=torch.float64, chains=4)
    checks = {"clusters": (PURE,), "residuals": (PURE,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "mask": Site(("feature", "latent"), discrete=True),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "variance": Site(("feature",), unit=2),
        "graph": Site(("parent", "child"), discrete=True),
        "weight": Site(("parent", "child"), {"parent": -1, "child": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, MAX_NODES)],
        slab: Positive = 0.7,
        rate: Positive = 0.1,
        edge_probability: EdgeProbability = 0.25,
        innovations: Annotated[Literal["any", "gaussian"], "law of what parents do not give of a latent"] = "any",
    ) -> None:
        """latents: how many are offered; those that are not needed stay without features.

        slab: prior deviation of a loading; rate: of the variances' prior, which has its mode at rate / 2.5. Both in
        units of the features' deviations. edge_probability: in the median, a priori. innovations: "gaussian" claims
        the graph up to Markov equivalence; "any" claims directions as well, and refuses those that are left open.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        check_memory("features", features, 8.0 * KEPT * features * (2 * latents + 1))
        self.sparse = math.log(edge_probability / (1 - edge_probability))
        self.edge = NormalBlock(loc=self.sparse)
        square, wide = (latents, latents), (features, latents)
        self.drawn = DrawnBlock(
            KEPT,
            mask=wide,
            loadings=wide,
            variance=(features,),
            graph=square,
            slope=square,
            precision=(latents,),
            mixed=(latents,),
            form=(latents, FORM),
        )
        for name in ("variance", "precision"):
            getattr(self.drawn, name).fill_(1.0)
        self.register_buffers(
            scores=torch.zeros(latents, features),  # of posterior means, averaged over draws
            second=torch.eye(features),
            fitted=torch.eye(features),  # with the clusters of the start, at the maximum of the posterior
            chosen=torch.zeros(()),
            count=torch.ones(()),
            evidence=torch.zeros(()),
            margin=torch.zeros(()),
        )

    def story(self, batch: Batch) -> None:
        edge, mask = self._features(batch)
        loadings, variance = self._measures(mask)
        order = pyro.sample("order", AnyOrder(edge, self.config["latents"]))  # (latent,)
        used = mask.sum(0) > 0
        free = earlier(order) & used[:, None] & used
        graph = pyro.sample("graph", dist.Bernoulli(edge.sigmoid() * free).to_event(2))  # (parent, child)
        weight, noise, (log_share, centre, spread) = self._equations(graph)
        with self.rows(batch):

            def equation(k: int, z: Tensor) -> dist.MixtureSameFamily:
                parts = Normal(
                    (z @ weight[:, k])[:, None] + noise[k] * centre[k], (noise[k] * spread[k]).expand(len(z), 2)
                )
                return dist.MixtureSameFamily(dist.Categorical(logits=log_share[k].expand(len(z), 2)), parts)

            z = self.along([int(k) for k in order], equation, weight.new_zeros(len(batch), len(weight)))
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        edge = pyro.sample("edge", Normal(self.sparse * one, one))
        return edge, pyro.sample("mask", Partitions(self.config["features"], self.config["latents"], one))

    def _measures(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(mask[0, 0])
        slab = Normal(0 * mask, self.config["slab"] * one)
        loadings = pyro.sample("loadings", SpikeSlab(mask, slab).to_event(2))  # (feature, latent)
        law = InverseGamma(SHAPE * one.expand(len(mask)), self.config["rate"] * one)
        return loadings, pyro.sample("variance", law.to_event(1))  # (feature,)

    def _equations(self, graph: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Weights (parent, child), noise (latent,) and the parts (latent, 2) of the laws of innovations."""
        one = torch.ones_like(graph[0])  # (latent,)
        precision = pyro.sample("precision", dist.Gamma(0.5 * (3 + graph.sum(0)), 0.5 * SIZE * one).to_event(1))
        normal = Normal(0 * graph, (SIZE * precision).rsqrt().expand(graph.shape))
        slope = pyro.sample("slope", SpikeSlab(graph, normal).to_event(2))  # (parent, child)
        chance = 0.5 * one if self.config["innovations"] == "any" else 0 * one
        mixed = pyro.sample("mixed", dist.Bernoulli(chance).to_event(1))  # (latent,)
        form = pyro.sample("form", Normal(0 * one[:, None].expand(-1, FORM), one[:, None]).to_event(2))  # (latent, 3)
        unit = _root(slope, precision).norm(dim=-1)  # (latent,) deviations of y
        weight = pyro.deterministic("weight", slope * unit[:, None] / unit)
        return weight, precision.rsqrt() / unit, components(mixed, form)

    def model(self, batch: Batch) -> None:
        edge, mask = self._features(batch)
        loadings, variance = self._measures(mask)
        used = (mask.sum(0) > 0).to(edge).sum()
        absent, present = torch.nn.functional.logsigmoid(-edge), torch.nn.functional.logsigmoid(edge)

        def log_graph(graph: Tensor) -> Tensor:  # orders summed out
            there, orders = graph.sum(), log_orders(graph).to(edge) - math.lgamma(len(graph) + 1)
            return orders + there * present + (used * (used - 1) / 2 - there) * absent

        size = self.config["latents"]
        graph = pyro.sample("graph", Law((), (size, size), log_graph))
        weight, noise, (log_share, centre, spread) = self._equations(graph)

        def log_latents(z: Tensor) -> Tensor:  # all at once
            e = ((z - z @ weight) / noise)[..., None]  # (rows, latent, 1)
            parts = log_share + Normal(centre, spread).log_prob(e)
            return (parts.logsumexp(-1) - noise.log()).sum(-1)

        with self.rows(batch):
            z = pyro.sample("z", Law((len(batch),), (size,), log_latents))
            pyro.sample("x", Normal(z @ loadings.mT, variance.sqrt()).to_event(1), obs=batch.x)

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        pyro.sample("order", Order(only(kept["graph"])))

    def guide(self, batch: Batch) -> None:
        pyro.sample("edge", self.edge())
        drawn = self.drawn.sample()
        scores, covariance = _given(*(drawn[name] for name in GIVEN))
        with self.rows(batch):
            pyro.sample("z", MultivariateNormal(batch.x @ scores.mT, scale_tril=torch.linalg.cholesky(covariance)))

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor | None:
        """(rows,) log N(x_i; 0, the covariance of features), of normal innovations."""
        if self.config["innovations"] == "any":
            return None
        root = _unit_root(sites["slope"], sites["precision"])
        return factors_log_prob(batch.x, sites["loadings"], sites["variance"], root)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x @ self.scores.mT

    def mask(self) -> Tensor:
        return self.drawn.mask.mean(0)

    def graph(self) -> Tensor:
        """(parent, child) edge probabilities."""
        return self.drawn.graph.mean(0)

    def loading_matrix(self) -> tuple[Tensor, Tensor]:
        """Means and deviations (feature, latent) over the draws."""
        return self.drawn.loadings.mean(0), self.drawn.loadings.std(0)

    def log_evidence(self) -> Tensor:
        """By BIC, of the clusters that the chain began with."""
        return self.evidence

    def clusters_margin(self) -> Tensor:
        """By BIC, of the clusters that the chain began with."""
        return self.margin

    def non_gaussian(self) -> Tensor:
        """(latent,) probabilities that an innovation is not normal."""
        return self.drawn.mixed.mean(0)

    def implied(self) -> Gaussians:
        """Of the clusters that the chain began with, latents' correlations free."""
        zero, (cov, fitted) = (
            np.zeros((1, len(self.fitted))),
            (v.double().cpu().numpy()[None] for v in (self.second, self.fitted)),
        )
        return Gaussians(np.array([float(self.count)]), zero, cov, zero, fitted, len(self.fitted) + float(self.chosen))

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The search for clusters, first in resampled rows, and a run of the sampler from there."""
        check_rows(data, 3)
        x = data.tensors(dtype=torch.float64).x.numpy()
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        again = x[rng.integers(0, len(x), len(x))]
        latents, slab, rate = (self.config[name] for name in ("latents", "slab", "rate"))
        second = x.T @ x / len(x)
        start = pure_clusters(second, len(x), latents, rate, np.cov(again.T))
        drawn = Sampler(second, len(x), start, slab, rate, self.sparse, generator).run(latents)
        mixed, form = np.zeros_like(drawn.precision), rng.standard_normal((*drawn.precision.shape, FORM))
        if self.config["innovations"] == "any":
            known = _KNOWN.setdefault(data, {})  # chains of a fit mostly begin at the same clusters
            if (key := start.cluster.tobytes()) not in known:
                known[key] = Directions(x, start)
            drawn, mixed, form = known[key].turn(drawn, rng, generator)
        each = {name: torch.as_tensor(value) for name, value in drawn._asdict().items()}
        each |= {"mixed": torch.as_tensor(mixed), "form": torch.as_tensor(form)}
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(each[name])
        self.edge.set(each["edge"].mean(), each["edge"].std())
        scores = [_given(*one)[0] for one in zip(*(each[name] for name in GIVEN), strict=True)]
        values = {"scores": torch.stack(scores).mean(0), "second": second, "fitted": start.covariance()}
        values |= {"chosen": start.parameters, "count": len(x), "evidence": start.bic}
        values["margin"] = min(start.margin, 1e6)
        self.put(**{name: torch.as_tensor(value) for name, value in values.items()})

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("silva2006", seed=seed, rows=500)
        return cls(features=data.features, latents=5, innovations="gaussian"), data

    studies = tuple(
        MeasuredGraph("silva2006", {"rows": rows, "law": law, "noise": noise}, {"latents": 6}, 8, 0.5, False)
        for rows, noise in ((1000, 0.3), (1000, 1.0), (4000, 1.0))
        for law in ("gaussian", "laplace", "uniform")
    )


def _root(slope: Tensor, precision: Tensor) -> Tensor:
    """(latent, latent) a root R of the covariance of y, R R^T."""
    apart = torch.eye(len(slope), dtype=slope.dtype, device=slope.device) - slope.mT
    return torch.linalg.solve(apart, torch.diag_embed(precision.rsqrt()))


def _unit_root(slope: Tensor, precision: Tensor) -> Tensor:
    """(latent, latent) a root of the correlations of z."""
    root = _root(slope, precision)
    return root / root.norm(dim=-1, keepdim=True)


def _given(loadings: Tensor, variance: Tensor, slope: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Of z given x: the map of its mean (latent, feature), and its covariance (latent, latent)."""
    scaled = loadings / variance[:, None]
    root = _unit_root(slope, precision)
    seen = root.mT @ loadings.mT @ scaled @ root
    inner = torch.linalg.inv(seen + torch.eye(len(slope), dtype=slope.dtype, device=slope.device))
    covariance = root @ inner @ root.mT
    return covariance @ scaled.mT, covariance


if __name__ == "__main__":
    run(LinearLatentSEM)
