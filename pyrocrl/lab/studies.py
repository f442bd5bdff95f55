"""A study: one row of a model's table of results.

Models list theirs, so this file loads what fits and scores only when a study is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyrocrl import datasets, simulate
from pyrocrl.data import Data

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

REACH = 2.0
LISTED = 100  # latents up to which every edge's probability is kept
NOISE = 0.5  # variance of features' noise in `bhattacharya2011`
SUPPORT = 0.25  # loadings beyond which a baseline's mask is open
DRAWN = 200  # of a chain
SCORED = 200  # rows beyond those of a fit
TESTED = 0.001  # level of tests of pairs of features
COMPONENTS = (1, 2, 3, 4, 6, 8, 9, 12, 18, 27)  # of mixtures beside discrete latents: all numbers that there are
# edges of the consensus network of Sachs et al. (2005), and what their drugs act on
SIGNALLING = (
    "Raf>Mek Mek>Erk PLCg>PIP2 PLCg>PKC PIP2>PKC PIP3>PLCg PIP3>PIP2 PIP3>Akt PKC>Raf PKC>Mek PKC>Jnk PKC>P38 PKA>Raf "
    "PKA>Mek PKA>Erk PKA>Akt PKA>Jnk PKA>P38"
)
DRUGS = {
    "Akt inhibitor": "Akt",
    "G06976": "PKC",
    "psitectorigenin": "PIP2",
    "U0126": "Mek",
    "pma": "PKC",
    "b2camp": "PKA",
}


@dataclass(frozen=True)
class Study:
    """One row of a model's table: a setting with options, what the program is built with, and the seeds to report.

    held_out: share of each environment's rows that are scored and not fitted. identified: whether the claim fixes the
    graph exactly there, so that its edges count towards `calibration`. simulated: whether `setting` is one of
    `pyrocrl.simulate`, whose truth is known, and so one of the card's; else it is a data set.
    """

    simulated: ClassVar[bool] = True
    setting: str
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 8
    held_out: float = 0.5
    identified: bool = True

    def draw(self, seed: int) -> tuple[Data, Data]:
        """(rows to fit, rows to score)."""
        return simulate.draw(self.setting, seed, **self.options).split(self.held_out, seed)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        """Metrics on the rows that were kept out."""
        from pyrocrl.judge.evaluate import evaluate

        return evaluate(result, data)

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        """What a results row holds beside metrics: [probability, 0 or 1] of every edge, where the truth has a graph."""
        from pyrocrl.judge.evaluate import edge_table

        edges = [[round(p, 4), there] for p, there in edge_table(result, data)]
        return {"edges": edges} if edges else {}

    @property
    def label(self) -> str:
        options = readable(self.options)
        return f"{self.setting} ({options})" if options else self.setting


@dataclass(frozen=True)
class Pairs(Study):
    """Pairs of interventions never fitted, predicted from single ones: errors of means, see `combinations`."""

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = simulate.draw(self.setting, seed, **self.options)
        pair = np.array(["+" in label for label in data.env_labels()])
        return _only(data, ~pair), _only(data, pair)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.predict import pair_errors

        assert result.data is not None
        parts = {name: [f"target_{k}" for k in name.removeprefix("target_").split("+")] for name in data.env_names}
        errors = pair_errors(result, result.data, data, parts)
        return {f"pair_{name}": error for name, error in errors.items()}

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Actions(Study):
    """Means of x under actions outside the box of those tried, up to REACH times as far: see `actions`."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.predict import extrapolation_errors
        from pyrocrl.simulate import saengkyongam

        assert result.data is not None and data.aux is not None
        seed = result.meta["seed"]
        drawn = np.random.default_rng([seed, 3]).uniform(-REACH, REACH, (1_000, data.aux.shape[1]))
        outside = drawn[np.abs(drawn).max(1) > 1.0][:200]
        truth = saengkyongam.mean_under(outside, seed)
        return super().score(result, data) | extrapolation_errors(result, result.data, outside, truth)


@dataclass(frozen=True)
class TwoModels(Study):
    """How far the model agrees with `other`, a model whose assumptions hold there as well, fitted to the same rows."""

    other: str = "linear_sem_lin"

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.judge.metrics import mcc, reorder_graph, shd

        assert result.data is not None
        program = zoo.build(self.other, result.data)
        rival = fit(program, result.data, seed=result.meta["seed"], device="cpu", progress=False)
        z, theirs = result.latents(data), rival.latents(data)
        score, nodes = mcc(z, theirs, return_assignment=True)
        ours: dict[str, float] = {"agreement": float(score), "other_mcc": mcc(data.truth["z"], theirs)}
        graph, other = result.graph(), rival.graph()
        if graph is not None and other is not None:
            ours["graphs_differ"] = float(shd(graph > 0.5, reorder_graph(other, nodes) > 0.5))
        return super().score(result, data) | ours


@dataclass(frozen=True)
class ManyLatents(Study):
    """Latents and graph alone: what `evaluate` adds takes longer than a fit of 50 latents does."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import PCA

        from pyrocrl.judge import metrics

        z, graph = data.truth["z"], result.graph()
        assert graph is not None
        score, nodes = metrics.mcc(z, result.latents(data), return_assignment=True)
        principal = PCA(z.shape[1], svd_solver="full").fit_transform(data.x)
        ours = {"held_out": float(result.weights @ result.scores), "mcc": float(score)}
        ours |= {"pca_mcc": metrics.mcc(z, principal)}
        return ours | metrics.graph_scores(data.truth["graph"], metrics.reorder_graph(graph, nodes))

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}  # thousands of pairs; `ece` is among the scores


@dataclass(frozen=True)
class FiniteSamples(Study):
    """How right a graph and an encoder are at this number of rows, and how sure; beside the published estimator.

    closure_exact: whether all ancestors are right, graph_exact: all edges, of probability above .5. encoder_mixes:
    spectral norm of what is off the diagonal of encoder times decoder, rows of norm 1; encoder_error: that of what is
    neither there nor of a latent's parents, which is all that the published theorem forbids. credible_size: graphs in
    the 90 % credible set (`credible_graphs`), credible_holds: whether the true one is among them. reference: what the
    published estimator reaches, its code re-run: closure_exact, closure_errors, encoder_error, means of 20 runs.
    """

    reference: tuple[float, float, float] = (np.nan, np.nan, np.nan)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import PCA

        from pyrocrl.judge import metrics
        from pyrocrl.judge.credible import credible_graphs

        z, found, true, graph = data.truth["z"], result.latents(data), data.truth["graph"], result.graph()
        assert graph is not None
        score, nodes = metrics.mcc(z, found, return_assignment=True)
        centred = z - z.mean(0)
        encoded = np.linalg.lstsq(centred, found - found.mean(0), rcond=None)[0].T[nodes]  # encoder times decoder
        encoded /= np.linalg.norm(encoded, axis=1, keepdims=True)
        likely = credible_graphs(result, draws=DRAWN)["graph"].to_numpy()[:, nodes][:, :, nodes]
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(score),
            "pca_mcc": metrics.mcc(z, PCA(z.shape[1], svd_solver="full").fit_transform(data.x)),
            "encoder_error": float(np.linalg.norm(encoded * ~((true > 0).T | np.eye(len(true), dtype=bool)), 2)),
            "encoder_mixes": float(np.linalg.norm(encoded - np.diag(np.diag(encoded)), 2)),
            "credible_size": float(len(likely)),
            "credible_holds": float((likely == true).all((1, 2)).any()),
        } | metrics.graph_scores(true, metrics.reorder_graph(graph, nodes))
        out |= {"closure_exact": float(not out["closure_errors"]), "graph_exact": float(not out["shd"])}
        names = ("closure_exact", "closure_errors", "encoder_error")
        return out | {f"reference_{name}": value for name, value in zip(names, self.reference, strict=True)}


@dataclass(frozen=True)
class Bend(Study):
    """Whether the verdict falls before the answer does, as the mixing bends: latents and edges, and what is said of the
    latents (contradicted, identified: whether it is); linear_r2: of the best linear unmixing, which knows z."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import PCA

        from pyrocrl.judge import metrics
        from pyrocrl.judge.diagnose import diagnose

        z, true, graph = data.truth["z"], data.truth["graph"], result.graph()
        assert graph is not None
        score, nodes = metrics.mcc(z, result.latents(data), return_assignment=True)
        said = diagnose(result)["latents"]
        return {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(score),
            "pca_mcc": metrics.mcc(z, PCA(z.shape[1], svd_solver="full").fit_transform(data.x)),
            "linear_r2": metrics.linear_r2(data.x, z),
            "shd": float(metrics.shd(true, metrics.reorder_graph(graph, nodes) > 0.5)),
            "shd_empty": float(metrics.shd(true, np.zeros_like(true))),
            "contradicted": float(said.verdict == "contradicted"),
            "identified": float(said.identified),
        }


@dataclass(frozen=True)
class BesideVAE(Study):
    """The latents of a plain VAE of as many on the same rows, `other_mcc`, after `epochs` passes: its loss is flat."""

    epochs: int = 3

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.judge.metrics import mcc

        assert result.data is not None
        program = zoo.build("vae", result.data, latents=result.program.latents_count)
        given: dict[str, Any] = {"seed": result.meta["seed"], "device": "cpu", "progress": False}
        rival = fit(program, result.data, chains=1, epochs=self.epochs, **given)
        return super().score(result, data) | {"other_mcc": mcc(data.truth["z"], rival.latents(data))}


@dataclass(frozen=True)
class BesideExact(Study):
    """How far edges and weights are from the exact posterior, see `judge.reference.departures`."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.reference import departures, reference

        return departures(result, reference(result, by="marginal", draws=600), draws=400)


@dataclass(frozen=True)
class Escapees(Study):
    """How well rows that escaped their intervention are told from those that it changed: area under the curve."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        drawn = result.posterior(20, data, predictive=False, density=False)["posterior"]["escaped"]
        labelled = data.env_labels() != data.control
        escaped = drawn.mean(("chain", "draw")).to_numpy()[labelled]
        unchanged = data.truth["component"][labelled] == 0
        auroc = float(roc_auc_score(unchanged, escaped))
        return super().score(result, data) | {"escaped_auroc": auroc, "escaped_share": float(escaped.mean())}


@dataclass(frozen=True)
class ShiftedMechanisms(Study):
    """Which mechanisms change in which environment, entry by entry of (env, latent), latents observed."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        found = result.targets()
        assert found is not None
        targets: Any = data.truth["targets"]
        changed = np.zeros_like(found)
        for env, latents in targets.items():
            changed[result.names["env"].index(env), list(latents)] = 1
        wrong = float(((found > 0.5) != changed).sum())
        ours = {"shift_errors": wrong, "shift_errors_empty": float(changed.sum()), "shifts_exact": float(wrong == 0)}
        return super().score(result, data) | ours


@dataclass(frozen=True)
class Skeleton(Study):
    """Which latents are joined, in either direction: for graphs that data leave open up to directions."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.metrics import mcc, reorder_graph

        graph, true = result.graph(), data.truth["graph"] > 0
        assert graph is not None
        _, nodes = mcc(data.truth["z"], result.latents(data), return_assignment=True)
        graph = reorder_graph(graph, nodes)
        wrong = float(np.triu((graph + graph.T > 0.5) != (true | true.T)).sum())
        ours = {"joined_errors": wrong, "joined_errors_empty": float(true.sum()), "skeleton_exact": float(wrong == 0)}
        return super().score(result, data) | ours


@dataclass(frozen=True)
class MeasuredGraph(Study):
    """Clusters of features and the graph of their latents, up to directions, and what is said of these.

    clusters_exact: whether features are together exactly as they truly are; both_exact: and the latents joined so.
    direction: mean over true edges that are found of the probability that they have the true direction, given that they
    are there. varimax_clusters_exact: of the largest loadings of varimax factors, as many as there are;
    joined_errors_greedy: of a greedy search by BIC over means of the true clusters' features.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import FactorAnalysis

        from pyrocrl.judge import metrics
        from pyrocrl.lab.greedy import search

        fitted, mask, graph = result.data, result.mask(), result.graph()
        assert fitted is not None and mask is not None and graph is not None
        own, true, latents = data.truth["mask"].argmax(1), data.truth["graph"] > 0, data.truth["z"].shape[1]
        together, found = own[:, None] == own, (mask > 0.5).astype(int)
        exact = bool(((found @ found.T > 0) == together).all())
        score, nodes = metrics.mcc(data.truth["z"], result.latents(data), return_assignment=True)
        graph = metrics.reorder_graph(graph, nodes)
        joined = graph + graph.T
        wrong = float(np.triu((joined > 0.5) != (true | true.T)).sum())
        seen = true & (joined > 0.5)
        x = (fitted.x - fitted.x.mean(0)) / fitted.x.std(0)
        factors = FactorAnalysis(latents, rotation="varimax", max_iter=500, random_state=0).fit(x)
        largest = np.abs(factors.components_).argmax(0)
        means = (x * np.sign(data.truth["loadings"].sum(1))) @ (own[:, None] == np.arange(latents))
        skeleton = search(Data(means))
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(score),
            "varimax_mcc": metrics.mcc(
                data.truth["z"], factors.transform((data.x - fitted.x.mean(0)) / fitted.x.std(0))
            ),
            "mask_f1": metrics.mask_scores(data.truth["mask"], mask, permutation=nodes)["f1"],
            "joined_errors": wrong,
            "joined_errors_empty": float(true.sum()),
            "joined_errors_greedy": float(np.triu((skeleton | skeleton.T) != (true | true.T)).sum()),
            "skeleton_exact": float(wrong == 0),
            "clusters_exact": float(exact),
            "varimax_clusters_exact": float(((largest[:, None] == largest) == together).all()),
            "both_exact": float(exact and wrong == 0),
            "latents_found": float(found.any(0).sum()),
            "latents_there": float(latents),
            "count_exact": float(found.any(0).sum() == latents),
        }
        if seen.any():
            each = graph[seen] / joined[seen]
            out |= {"direction": float(each.mean()), "direction_least": float(each.min())}
        return out


@dataclass(frozen=True)
class DiscreteLatents(Study):
    """Discrete latents: how many, of how many states, which features depend on them, and the class of their graph.

    sizes_exact: whether numbers of latents and of their states are right, bipartite_exact: and all features' latents,
    latents being matched by what their states tell of the true ones'. class_shd: pairs of latents that the Markov
    equivalence class joins otherwise than the true one, an arc where its probability exceeds .5; where the number of
    latents is wrong, one that is not there is joined with none. components_exact_gmm: whether, of mixtures of normals
    with full covariances, BIC chooses that of as many components as there are joint states, among `COMPONENTS`.
    states_right: of rows and latents, states being matched.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.metrics import mutual_info_score

        from pyrocrl.claims.indeterminacy import cpdag, differing_pairs
        from pyrocrl.judge.diagnose import diagnose
        from pyrocrl.judge.evaluate import _states_right
        from pyrocrl.judge.metrics import reorder_graph

        fitted, mask, shares = result.data, result.mask(), result.state_shares(data)
        assert fitted is not None and mask is not None and shares is not None
        true, graph = data.truth["state"].astype(int), data.truth["graph"] > 0
        sizes = np.array([len(np.unique(column)) for column in fitted.truth["state"].T])
        found, open_ = np.flatnonzero((mask > 0.5).any(0)), mask > 0.5
        told = np.array([[mutual_info_score(a, b) for b in shares.argmax(2).T] for a in true.T])
        nodes = np.full(len(sizes), -1)
        rows, places = linear_sum_assignment(-told)
        nodes[rows] = places
        few = data.rows_at(np.arange(10))
        drawn = result.posterior(DRAWN, few, predictive=False, density=False)["posterior"]
        size = drawn["size"].to_numpy()[result.reference].mean(0)
        number = len(found) == len(sizes) and set(found) == set(nodes)
        same = bool(number and (size[nodes] == sizes).all())
        classes = np.array([cpdag(one) for one in drawn["graph"].to_numpy().reshape(-1, *mask.shape[1:] * 2) > 0.5])
        weight = np.repeat(result.weights, DRAWN) / DRAWN
        arcs = reorder_graph(np.einsum("d,dpk->pk", weight, classes) > 0.5, nodes) > 0
        verdict = diagnose(result)
        return {
            "held_out": float(result.weights @ result.scores),
            "latents_found": float(len(found)),
            "latents_there": float(len(sizes)),
            "count_exact": float(number),
            "sizes_exact": float(same),
            "bipartite_exact": float(same and (open_[:, nodes] == (data.truth["mask"] > 0)).all()),
            "components_exact_gmm": float(_components(fitted.x) == sizes.prod()),
            "class_shd": float(differing_pairs(arcs, cpdag(graph))),
            "class_shd_empty": float(differing_pairs(np.zeros_like(arcs), cpdag(graph))),
            "identified": float(verdict["mask"].identified),
        } | _states_right(true, shares, nodes)


@dataclass(frozen=True)
class Covers(Study):
    """The bipartite graph of latents with a pure child each, latents being matched by their features, beside tests of
    all pairs of features (Fisher's z at the level .001) with the greedy cover of what depends on what, and no entries.

    cover_exact: whether entries of probability above .5 are the true ones and no others, cover_errors: how many are
    wrong, latents without a counterpart counting with all of theirs. mask_ece: over true latents' entries and those of
    latents beyond them that have features. identified: whether the verdict is that the mask may be read.
    """

    def draw(self, seed: int) -> tuple[Data, Data]:
        rows = int(self.options["rows"])
        data = simulate.draw(self.setting, seed, **{**self.options, "rows": rows + SCORED})
        return data.rows_at(np.arange(rows)), data.rows_at(np.arange(rows, data.rows))

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.constructions.pure_children import cover, fisher_z, linked
        from pyrocrl.judge import metrics
        from pyrocrl.judge.diagnose import diagnose

        fitted, true, found = result.data, data.truth["mask"] > 0, result.mask()
        assert fitted is not None and found is not None
        tested = cover(linked(fisher_z(np.cov(fitted.x.T), fitted.rows), TESTED), data.features)
        ours, chance, there = _side_by_side(found, true)
        theirs, _, known = _side_by_side(tested.astype(float), true)
        wrong, missed = float((ours != there).sum()), float((theirs != known).sum())
        number = float((found > 0.5).any(0).sum())
        return {
            "held_out": float(result.weights @ result.scores),
            "cover_exact": float(wrong == 0),
            "fisherz_cover_exact": float(missed == 0),
            "cover_exact_empty": 0.0,
            "cover_errors": wrong,
            "fisherz_cover_errors": missed,
            "cover_errors_empty": float(true.sum()),
            "latents_found": number,
            "count_exact": float(number == true.shape[1]),
            "mask_ece": metrics.expected_calibration_error(there, chance),
            "identified": float(diagnose(result)["mask"].identified),
        }


def _side_by_side(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(feature, latent) which entries are found, their probabilities and which are true, latents matched by the entries
    in which they differ; those beyond the true ones that have no entry are left out."""
    used = found[:, (found > 0.5).any(0)]
    most = max(used.shape[1], true.shape[1])
    chance, there = (np.pad(one, ((0, 0), (0, most - one.shape[1]))) for one in (used, true))
    open_ = chance > 0.5
    _, places = linear_sum_assignment((there[:, :, None] != open_[:, None]).sum(0))
    return open_[:, places], chance[:, places], there


def _components(x: np.ndarray) -> int:
    """Of a mixture of normals with full covariances, by BIC among `COMPONENTS`, until it has become worse twice."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    scores: list[float] = []
    for count in COMPONENTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores.append(GaussianMixture(count, max_iter=50, reg_covar=1e-4, random_state=0).fit(x).bic(x))
        if len(scores) > 2 and min(scores[-2:]) > min(scores[:-2]):
            break
    return COMPONENTS[int(np.argmin(scores))]


@dataclass(frozen=True)
class ObservedGraph(Study):
    """A graph over observed variables up to what interventions tell, beside the empty graph and a greedy search.

    class_shd: pairs of variables that the class (`equivalence_class`, an arc where its probability exceeds .5) joins
    otherwise than the true one; expected_shd: mean over posterior graphs of the edges that are wrong, a reversed one
    once; sure_right: share of true edges among those of probability .9 or more; auprc_greedy: of the search's class,
    one half for each way of an edge that it leaves undirected.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.metrics import average_precision_score

        from pyrocrl.claims.indeterminacy import differing_pairs, interventional_cpdag
        from pyrocrl.judge import metrics
        from pyrocrl.judge.equivalence import class_draws
        from pyrocrl.lab.greedy import search

        assert result.data is not None
        true, envs = data.truth["graph"] > 0, result.names["env"]
        hit = np.zeros((len(envs), len(true)))
        told: Any = data.truth["targets"]
        for env, nodes in told.items():
            hit[envs.index(env), list(nodes)] = 1
        graph, wanted, off = result.graph(), interventional_cpdag(true, hit), ~np.eye(len(true), dtype=bool)
        assert graph is not None
        drawn = class_draws(result)
        arcs = sum(w * classes.mean(0) for w, (classes, _, _) in zip(result.weights, drawn, strict=True)) > 0.5
        expected = [w * np.mean([metrics.shd(true, g) for g in part[1]]) for w, part in zip(result.weights, drawn)]
        found = interventional_cpdag(search(result.data, result.program.intervention_kind), hit)
        out = {"held_out": float(result.weights @ result.scores)} | metrics.graph_scores(true, graph)
        out |= {
            "class_shd": float(differing_pairs(arcs, wanted)),
            "class_shd_empty": float(differing_pairs(np.zeros_like(wanted), wanted)),
            "class_shd_greedy": float(differing_pairs(found, wanted)),
            "expected_shd": float(sum(expected)),
            "expected_shd_empty": float(true.sum()),
            "auprc": float(average_precision_score(true[off], graph[off])),
            "auprc_empty": float(true[off].mean()),
            "auprc_greedy": float(average_precision_score(true[off], (found * (1.0 - 0.5 * found.T))[off])),
        }
        if (sure := (graph >= 0.9)).any():
            out["sure_right"] = float(true[sure].mean())
        targets = result.targets()
        if result.program.target_mode == "unknown" and targets is not None:
            there = targets > 0.5
            out |= {
                "targets_found": float((there & (hit > 0)).sum()),
                "targets_false": float((there & (hit == 0)).sum()),
            }
            out |= {
                "targets_there": float(hit.sum()),
                "target_auprc": float(average_precision_score(hit[1:].ravel(), targets[1:].ravel())),
            }
        return out

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return super().tell(result, data) if len(result.names["latent"]) <= LISTED else {}  # `ece` is among the scores


@dataclass(frozen=True)
class Parents(Study):
    """Parents of a response, and its prediction in an environment never fitted, in which all other columns are shifted.

    parents_exact: those of a probability above .5 are the true ones; parents_false: there is a false one among them;
    surely: of a probability above .9. icp_: the guaranteed set, at the level .05; lasso_: columns that a lasso over all
    rows keeps, its penalty by cross-validation; pooled_: those whose coefficient in a regression over all rows differs
    from 0, at the level .05 over the columns (Bonferroni). shift_error: mean squared error in the new environment;
    _oracle: of regression on the true parents.
    """

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = simulate.draw(self.setting, seed, **{"strong": 1, **self.options})
        strong = np.array([label.startswith("strong") for label in data.env_labels()])
        truth: dict[str, Any] = {name: data.truth[name] for name in ("graph", "weight")}

        def part(rows: np.ndarray) -> Data:
            own = truth | {"z": data.truth["z"][rows]}
            names = data.feature_names
            return Data(data.x[rows], data.env_labels()[rows], feature_names=names, truth=own, name=data.name)

        return part(~strong), part(strong)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.linear_model import LassoCV

        fitted, chance, response = result.data, result.parents(), int(result.program.config["response"])
        assert fitted is not None and chance is not None
        others = np.delete(np.arange(data.features), response)
        true, found, x, y = (
            data.truth["graph"][others, response] > 0,
            chance[others, 0],
            fitted.x,
            fitted.x[:, response],
        )
        guaranteed = result.guaranteed() or []
        called = {
            "": found > 0.5,
            "surely": found > 0.9,
            "icp": np.array([data.feature_names[j] in guaranteed for j in others]),
            "lasso": LassoCV(cv=5).fit(x[:, others] / x[:, others].std(0), y).coef_ != 0,
            "pooled": _significant(x[:, others], y),
        }
        out = {
            "held_out": float(result.weights @ result.scores),
            "parents_brier": float(np.square(found - true).mean()),
            "parents_there": float(true.sum()),
        }
        for name, columns in called.items():
            head = f"{name}_" if name else ""
            out[f"{head}parents_exact"] = float((columns == true).all())
            out[f"{head}parents_false"] = float((columns & ~true).any())
            out[f"{head}parents_called"] = float(columns.sum())
        drawn = result.posterior(DRAWN, fitted, predictive=False, density=False, thin=fitted.rows)["posterior"]
        slope = np.einsum("c,cp->p", result.weights, drawn["weight"].to_numpy()[..., response].mean(1))
        level = np.einsum("c,c->", result.weights, drawn["offset"].to_numpy()[..., 0, response].mean(1))
        out["shift_error"] = float(np.square(data.x[:, response] - level - data.x @ slope).mean())
        for name, columns in (("pooled", others), ("oracle", others[true])):
            design = np.column_stack([np.ones(len(x)), x[:, columns]])
            slopes = np.linalg.lstsq(design, y, rcond=None)[0]
            left = data.x[:, response] - slopes[0] - data.x[:, columns] @ slopes[1:]
            out["pooled_shift_error" if name == "pooled" else "shift_error_oracle"] = float(np.square(left).mean())
        return out

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        chance, response = result.parents(), int(result.program.config["response"])
        assert chance is not None
        others, true = np.delete(np.arange(data.features), response), data.truth["graph"][:, response] > 0
        return {"edges": [[round(float(chance[j, 0]), 4), int(true[j])] for j in others]}


@dataclass(frozen=True)
class ParentsOfLatents(Parents):
    """The same of a response whose parents are latents, which `identify`, another model, finds first from the features
    but the response, its environments' targets told; in the share of the rows that `predict.beside_response` keeps."""

    identify: str = "linear_sem_lin"

    def draw(self, seed: int) -> tuple[Data, Data]:
        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.judge.metrics import mcc
        from pyrocrl.predict import beside_response

        data = simulate.draw(self.setting, seed, **{"strong": 1, **self.options})
        strong, y = np.array([label.startswith("strong") for label in data.env_labels()]), data.features - 1
        labels = np.where(strong, "control", data.env_labels())  # whose equations are right there, but for their levels
        truth: Any = data.truth
        targets = {name: hit for name, hit in truth["targets"].items() if len(hit) == 1}
        first = Data(data.x[~strong][:, :y], labels[~strong], targets, control="control")
        found = fit(zoo.build(self.identify, first, latents=4), first, seed=seed, device="cpu", progress=False)
        others = np.array([0, 1, 3, 4])
        nodes = mcc(truth["z"][~strong][:, others], found.latents(), return_assignment=True)[1]
        order = np.append(others[np.argsort(nodes)], 2)  # true columns, as the fit's latents stand

        def part(rows: np.ndarray, share: float = 0.2) -> Data:
            own = Data(data.x[rows][:, :y], labels[rows], control="control")
            both = beside_response(found, data.x[rows, y], own, share=share, seed=seed)
            told = {"graph": truth["graph"][np.ix_(order, order)]}
            return Data(both.x, both.env_labels(), feature_names=both.feature_names, truth=told, name=data.name)

        return part(~strong), part(strong, share=1.0)


def _significant(x: np.ndarray, y: np.ndarray, level: float = 0.05) -> np.ndarray:
    """(column,) whether its coefficient in least squares differs from 0, at this level over all columns."""
    from scipy import stats

    design = np.column_stack([np.ones(len(x)), x])
    inverse = np.linalg.inv(design.T @ design)
    slope = inverse @ design.T @ y
    free = len(x) - design.shape[1]
    error = np.sqrt(np.square(y - design @ slope).sum() / free * np.diag(inverse))
    p: np.ndarray = 2 * stats.t.sf(np.abs(slope / error), free)[1:] * x.shape[1]
    return p < level


@dataclass(frozen=True)
class SignallingGraph(Study):
    """Sachs et al. (2005), eleven proteins under inhibitors and activators of known targets: the edges that are called
    at each probability, right or not, by the consensus network of that paper. No more is claimed of it: proteins act
    on each other in cycles, cells are no Gaussian sample, and published graphs score about as the empty one does."""

    simulated: ClassVar[bool] = False

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = datasets.load(self.setting)
        labels, stimulus = data.env_labels(), np.asarray(data.batch_names)[data.batch]
        classical = (stimulus != "cd3cd28icam2") | (labels == "control")
        rows = classical & (labels != "LY294002")  # whose target is not measured
        names = data.feature_names
        graph = np.zeros((len(names), len(names)), dtype=int)
        for edge in SIGNALLING.split():
            graph[tuple(names.index(name) for name in edge.split(">"))] = 1
        targets = {drug: (names.index(name),) for drug, name in DRUGS.items()}
        kept = Data(data.x[rows], labels[rows], targets, control="control", feature_names=names, truth={"graph": graph})
        return kept, kept

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.metrics import average_precision_score

        from pyrocrl.judge import metrics
        from pyrocrl.lab.greedy import search

        graph, true = result.graph(), data.truth["graph"] > 0
        assert graph is not None
        off = ~np.eye(len(true), dtype=bool)
        out = {"held_out": float(result.weights @ result.scores)} | metrics.graph_scores(true, graph)
        out |= {"auprc": float(average_precision_score(true[off], graph[off])), "auprc_empty": float(true[off].mean())}
        for name, found in {"": graph > 0.5, "_greedy": search(data)}.items():
            out |= {
                "edges_right" + name: float((found & true).sum()),
                "edges_wrong" + name: float((found & ~true).sum()),
            }
        return out


class Loadings(Study):
    """True loadings and latents inside their 90 % intervals; _ml: of the loadings' maximum of the likelihood in the
    same triangle, with its expected information."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.exact.factor_analysis import Triangular
        from pyrocrl.judge.metrics import interval_coverage

        true, entry = data.truth["loadings"], np.tril(np.ones_like(data.truth["loadings"])) > 0
        drawn = (
            result.posterior(500, data, predictive=False, density=False)["posterior"]
            .to_dataset()
            .stack(sample=("chain", "draw"))
        )
        mine = drawn["loadings"].transpose("sample", "feature", "latent").to_numpy()
        z = drawn["z"].transpose("sample", "data", "latent").to_numpy()
        fitted = result.data
        assert fitted is not None
        x = torch.as_tensor(fitted.x - fitted.x.mean(0), dtype=torch.float64)
        spread = x.std(0)
        second = (x / spread).mT @ (x / spread) / len(x)
        law = Triangular(second, len(x), entry.shape[1], 1.0, 0.0, flat=True)
        start = torch.as_tensor(mine.mean(0)) / spread[:, None]
        vector = torch.cat([start[law.j, law.k], (1 - start.square().sum(1)).clamp_min(0.05).log()])
        vector[law.diagonal] = vector[law.diagonal].log()
        mode, covariance = law.moments(vector, mode=True)
        best, sd = law.split(mode)[0], torch.zeros_like(start)
        sd[law.j, law.k] = covariance.diagonal()[: len(law.j)].sqrt()
        sd.diagonal().mul_(best.diagonal())
        likely, error = (best * spread[:, None]).numpy(), (sd * spread[:, None]).numpy()
        inside = np.abs(likely - true)[entry] <= 1.645 * error[entry]
        ours = {
            "loadings_coverage": interval_coverage(true[entry], mine[:, entry]),
            "latents_coverage": interval_coverage(data.truth["z"], z),
            "loadings_error": float(np.sqrt(np.square(mine.mean(0) - true)[entry].mean())),
            "loadings_coverage_ml": float(inside.mean()),
            "loadings_error_ml": float(np.sqrt(np.square(likely - true)[entry].mean())),
        }
        return super().score(result, data) | ours


class PureFeatures(Study):
    """Latents, their number and the mask, beside varimax with the true number of latents: of factor analysis (varimax_)
    and of principal components (pcavarimax_), where loadings of a quarter of their column's largest count.

    mcc_oracle: of the posterior means at the true parameters, which no estimate exceeds but by chance; mask_ece:
    calibration of inclusion probabilities, of the matched latents; count_exact: whether as many latents are in use.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import PCA, FactorAnalysis

        from pyrocrl.exact.rotations import varimax
        from pyrocrl.judge import metrics

        z, a, fitted, mask = data.truth["z"], data.truth["loadings"], result.data, result.mask()
        assert fitted is not None and mask is not None
        out = super().score(result, data)
        _, match = metrics.mcc(z, result.latents(data), return_assignment=True)
        matched = np.where(match >= 0, mask[:, match], 0.0)
        used = (mask > 0.5).any(0)
        out |= {
            "mask_ece": metrics.expected_calibration_error(a != 0, matched),
            "latents_found": float(used.sum()),
            "latents_there": float(z.shape[1]),
            "count_exact": float(used.sum() == z.shape[1]),
        }
        noise = (data.x - z @ a.T).var(0)
        precision = np.linalg.inv(np.cov(z.T)) + (a / noise[:, None]).T @ a
        out["mcc_oracle"] = metrics.mcc(z, data.x @ np.linalg.solve(precision, (a / noise[:, None]).T).T)
        centre, spread = fitted.x.mean(0), fitted.x.std(0)
        seen, new = (fitted.x - centre) / spread, (data.x - centre) / spread
        factors = FactorAnalysis(z.shape[1], rotation="varimax", max_iter=500, random_state=0).fit(seen)
        parts = PCA(z.shape[1], random_state=0).fit(seen)
        turned = parts.components_.T * np.sqrt(parts.explained_variance_)
        turned = turned @ varimax(turned, normalise=False)
        weights = np.linalg.pinv(turned).T
        beside = {"varimax": (factors.components_.T, factors.transform(new)), "pcavarimax": (turned, new @ weights)}
        for name, (loadings, scores) in beside.items():
            value, match = metrics.mcc(z, scores, return_assignment=True)
            large = np.abs(loadings) > 0.25 * np.abs(loadings).max(0)
            out[f"{name}_mcc"] = float(value)
            out[f"{name}_mask_f1"] = metrics.mask_scores(a != 0, large.astype(float), permutation=match)["f1"]
        return out


class Directions(Study):
    """Directions and firing of sparse codes, latents matched by the cosines of their directions, beside dictionary
    learning by scikit-learn and directions at random, as many.

    direction_mcc: mean cosine with the true directions; direction_agreement: of two chains, over all pairs (Song et al.
    2025). firing_*: of rows, a latent firing at probability .5 or more; firing_ece: calibration of these probabilities.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        from pyrocrl.judge import metrics

        fitted, true, z = result.data, data.truth["loadings"], data.truth["z"]
        assert fitted is not None and result.units is not None
        scale = np.asarray(result.units.scale, dtype=float)[:, None]
        found = [program.loadings.loc.detach().double().numpy() * scale for program in result.programs()]
        used = [np.where(result.in_use(c), w, 0.0) for c, w in enumerate(found)]
        own, nodes = directions_matched(true, used[result.reference])
        pairs = [directions_matched(a, b)[0] for i, a in enumerate(used) for b in used[:i]]
        program, parts = result.chains.chain(result.reference), max(1, data.rows // 5_000)
        batches = (result.batch_of(data.rows_at(rows)) for rows in np.array_split(np.arange(data.rows), parts))
        chance = np.concatenate([program.firing(batch).double().numpy() for batch in batches])  # type: ignore[union-attr]
        fires, chance = z > 0, np.where(nodes >= 0, chance[:, nodes], 0.0)
        called = chance >= 0.5
        right = float((called & fires).sum())
        precision, recall = right / max(1, called.sum()), right / max(1, fires.sum())
        peer = MiniBatchDictionaryLearning(
            true.shape[1], alpha=0.3, batch_size=256, max_iter=5, fit_algorithm="cd", positive_code=True, random_state=0
        ).fit(fitted.x)
        random = np.random.default_rng([5, result.meta["seed"]]).standard_normal(true.shape)
        number = float(result.in_use(result.reference).sum())
        return {
            "held_out": float(result.weights @ result.scores),
            "mcc": metrics.mcc(z, result.latents(data)),
            "direction_mcc": own,
            "dictionary_direction_mcc": directions_matched(true, peer.components_.T)[0],
            "chance_direction_mcc": directions_matched(true, random)[0],
            "direction_mcc_least": min(directions_matched(true, w)[0] for w in used),
            "direction_agreement": float(np.mean(pairs)) if pairs else 1.0,
            "firing_f1": 2 * right / max(1, called.sum() + fires.sum()),
            "firing_precision": precision,
            "firing_recall": recall,
            "firing_ece": metrics.expected_calibration_error(fires, chance),
            "latents_found": number,
            "latents_there": float(true.shape[1]),
            "latents_dead": float(used[0].shape[1] - number),
        }


def directions_matched(true: np.ndarray, found: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean |cosine| of true directions (feature, latent) with their partners under the best one-to-one assignment, 0
    for one without, and the partner of each, -1 for none."""
    from scipy.optimize import linear_sum_assignment

    a, b = (w / np.maximum(np.linalg.norm(w, axis=0), 1e-12) for w in (true, found))
    cosine = np.abs(a.T @ b)
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    nodes = np.full(true.shape[1], -1)
    nodes[rows] = columns
    return float(cosine[rows, columns].sum() / true.shape[1]), nodes


@dataclass(frozen=True)
class SparseFactors(Study):
    """Loadings, their mask and the number of latents, beside scikit-learn's factors, as many as there are: of factor
    analysis with varimax, of principal components with varimax, and of FastICA.

    latents_found: how many are in use, some feature's probability above .5. loadings_coverage: true loadings of the
    true mask inside their 90 % intervals, per deviation of each latent in the rows of the fit. Baselines' masks: of
    loadings beyond `SUPPORT` in the data's units, latents in their deviations.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        fitted, z, mask, found = result.data, data.truth["z"], data.truth["mask"], result.mask()
        assert fitted is not None and found is not None
        score, nodes = metrics.mcc(z, result.latents(data), return_assignment=True)
        matched = np.where(nodes >= 0, found[:, nodes], 0.0)
        drawn = result.posterior(DRAWN, fitted, predictive=False, density=False, thin=fitted.rows)[
            "posterior"
        ].to_dataset()
        drawn = drawn.stack(sample=("chain", "draw")).transpose("sample", ...)
        loadings, variance, correlation = (drawn[name].to_numpy() for name in ("loadings", "variance", "correlation"))
        # deviations of z in these rows, given each draw
        scaled = (loadings / variance[..., None]).swapaxes(1, 2)
        covariance = np.linalg.inv(np.linalg.inv(correlation) + scaled @ loadings)
        scores = covariance @ scaled
        spread = np.einsum("skf,fg,skg->sk", scores, np.cov(fitted.x.T), scores, optimize=True)
        spread = np.sqrt(spread + np.einsum("skk->sk", covariance))
        truly = fitted.truth["z"]
        sign = np.sign((result.latents(fitted)[:, nodes] * truly).sum(0))
        mine = (loadings * spread[:, None])[..., nodes] * sign
        low, high = metrics.weighted_quantiles(mine, np.repeat(result.weights / DRAWN, DRAWN), (0.05, 0.95))
        true, there = data.truth["loadings"] * truly.std(0), mask > 0
        used = float((found > 0.5).any(0).sum())
        return {
            "held_out": float(result.weights @ result.scores),
            "mcc": score,
            "mask_f1": metrics.mask_scores(mask, found, permutation=nodes)["f1"],
            "latents_found": used,
            "count_exact": float(used == mask.shape[1]),
            "mask_ece": metrics.expected_calibration_error(mask, matched),
            "loadings_coverage": float(((low <= true) & (true <= high))[there].mean()),
            "loadings_error": float(np.sqrt(np.square(mine.mean(0) - true)[there].mean())),
        } | _rotated_factors(fitted.x, data.x, z, mask)


@dataclass(frozen=True)
class SparseCounts(Study):
    """Loadings of log rates, their mask and the number of latents, beside the same program of log(1 + x / size)
    (logged_), and `sparse_vae` of counts with a linear decoder (other_), which is told the number, both in one chain;
    and beside NMF of x / size (nmf_) and the factors of `SparseFactors` of log(1 + x / size), which are told it too.

    latents_found, loadings_coverage and loadings_error as in `SparseFactors`, of log rates.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import NMF

        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.judge import metrics
        from pyrocrl.judge.evaluate import seen

        fitted, z, mask, found = result.data, data.truth["z"], data.truth["mask"], result.mask()
        assert fitted is not None and found is not None and fitted.size_factor is not None
        score, nodes = metrics.mcc(z, result.latents(data), return_assignment=True)
        drawn = result.posterior(DRAWN, fitted, predictive=False, density=False, thin=fitted.rows)["posterior"]
        loadings = drawn["loadings"].stack(sample=("chain", "draw")).transpose("sample", ...).to_numpy()
        mine = loadings[..., nodes] * np.sign((result.latents(data)[:, nodes] * z).sum(0))
        low, high = metrics.weighted_quantiles(mine, np.repeat(result.weights / DRAWN, DRAWN), (0.05, 0.95))
        true, there = data.truth["loadings"], mask > 0
        used = float((found > 0.5).any(0).sum())
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": score,
            "mask_f1": metrics.mask_scores(mask, found, permutation=nodes)["f1"],
            "latents_found": used,
            "count_exact": float(used == mask.shape[1]),
            "mask_ece": metrics.expected_calibration_error(mask, np.where(nodes >= 0, found[:, nodes], 0.0)),
            "loadings_coverage": float(((low <= true) & (true <= high))[there].mean()),
            "loadings_error": float(np.sqrt(np.square(mine.mean(0) - true)[there].mean())),
        }
        size = fitted.size_factor.mean()
        old, new = seen(fitted), np.log1p(data.x / (data.size_factor / size)[:, None])
        rivals = {
            "logged": (result.program.card.name, Data(old), Data(new), dict(self.build)),
            "other": ("sparse_vae", fitted, data, {"latents": z.shape[1], "decoder": "linear"}),
        }
        for name, (model, rows, scored, options) in rivals.items():
            program = zoo.build(model, rows, **options)
            rival = fit(program, rows, seed=result.meta["seed"], device="cpu", progress=False, chains=1)
            own, pip = rival.latents(scored), rival.mask()
            assert pip is not None
            out[f"{name}_mcc"], place = metrics.mcc(z, own, return_assignment=True)
            out[f"{name}_mask_f1"] = metrics.mask_scores(mask, pip, permutation=place)["f1"]
            matched = np.where(place >= 0, pip[:, place], 0.0)
            out[f"{name}_mask_ece"] = metrics.expected_calibration_error(mask, matched)
        parts = NMF(z.shape[1], random_state=0, max_iter=500).fit(np.expm1(old))
        out["nmf_mcc"] = metrics.mcc(z, parts.transform(np.expm1(new)))
        return out | _rotated_factors(old, new, z, mask)


@dataclass(frozen=True)
class Curves(Study):
    """Latents behind curves, their mask and their number, beside factors by principal components, FastICA and factor
    analysis with varimax, as many as there are, and a plain VAE of as many (`other_mcc`).

    linear_r2: of the best linear unmixing, which knows z. mcc_spearman: of ranks. latents_found: how many are in use,
    some feature's probability above .5. rival: whether the VAE is fitted.
    """

    rival: bool = True

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import FactorAnalysis

        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.judge import metrics

        fitted, z, mask, found = result.data, data.truth["z"], data.truth["mask"], result.mask()
        assert fitted is not None and found is not None
        ours, latents = result.latents(data), z.shape[1]
        score, nodes = metrics.mcc(z, ours, return_assignment=True)
        centre, unit = fitted.x.mean(0), fitted.x.std(0)
        factors = FactorAnalysis(latents, rotation="varimax", max_iter=500).fit((fitted.x - centre) / unit)
        rotated = factors.transform((data.x - centre) / unit)
        others = {"varimax": {"mcc": metrics.mcc(z, rotated), "mcc_spearman": metrics.mcc(z, rotated, "spearman")}}
        others |= metrics.baselines((data.x - centre) / unit, z, latents)
        if self.rival:
            told = {"seed": result.meta["seed"], "device": "cpu", "progress": False, "chains": 1}
            vae = fit(zoo.build("vae", fitted, latents=latents), fitted, **told)
            others["other"] = {"mcc": metrics.mcc(z, vae.latents(data))}
        used = float((found > 0.5).any(0).sum())
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(score),
            "mcc_spearman": metrics.mcc(z, ours, "spearman"),
            "linear_r2": metrics.linear_r2(data.x, z),
            "mask_f1": metrics.mask_scores(mask, found, permutation=nodes)["f1"],
            "latents_found": used,
            "count_exact": float(used == latents),
        }
        if self.rival:
            out["other_mcc"] = others["other"]["mcc"]
        names = ("mcc", "mcc_spearman")
        return out | {f"{name}_{k}": others[name][k] for name in ("pca", "ica", "varimax") for k in names}


@dataclass(frozen=True)
class Completion(Study):
    """Values missing at random, told from the others: root of the squared error over the squares, about columns' means;
    beside softImpute (softimpute_), a truncated SVD of the true rank over columns' means (svd_) and these means
    (means_). missing: share of the values. fill_coverage: of 90 % intervals."""

    missing: float = 0.2

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = simulate.draw(self.setting, seed, **self.options)
        lacks = np.random.default_rng([9, seed]).random(data.x.shape) < self.missing
        x = np.where(lacks, np.nan, data.x)
        return Data(x, truth=data.truth, missing=True, name=data.name), data

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics
        from pyrocrl.lab import completions
        from pyrocrl.predict import fill

        fitted, z = result.data, data.truth["z"]
        assert fitted is not None
        lacks, x = ~fitted.known, fitted.x.astype(float)
        told = fill(result)
        inside = (told["low"].to_numpy() <= data.x) & (data.x <= told["high"].to_numpy())
        mask = result.mask()
        assert mask is not None
        score, nodes = metrics.mcc(z, result.latents(fitted), return_assignment=True)
        used = float((mask > 0.5).any(0).sum())
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(score),
            "mask_f1": metrics.mask_scores(data.truth["mask"], mask, permutation=nodes)["f1"],
            "latents_found": used,
            "count_exact": float(used == z.shape[1]),
            "fill_coverage": float(inside[lacks].mean()),
            "fill_error": completions.relative_error(told["mean"].to_numpy(), data.x, lacks),
        }
        rivals = {
            "softimpute": completions.soft_impute(x, result.meta["seed"]),
            "svd": completions.truncated_svd(x, z.shape[1]),
            "means": completions.column_means(x),
        }
        errors = {name: completions.relative_error(found, data.x, lacks) for name, found in rivals.items()}
        return out | {f"{name}_fill_error": error for name, error in errors.items()}

    @property
    def label(self) -> str:
        return f"{super().label}, {self.missing:.0%} missing"


class Covariance(Study):
    """The features' covariance, the latents' subspace and their number, from all rows; _ml: of scikit-learn's factor
    analysis with the true number of latents; _ledoit: of Ledoit and Wolf's estimate.

    covariance_error: mean square over entries, in the data's units. subspace_error: 1 less the mean squared cosine of
    the angles between the columns of loadings and the true ones. count_probability: of the true number, where the
    process says it.
    """

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = simulate.draw(self.setting, seed, **self.options)
        return data, data

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import FactorAnalysis

        program, loadings, units = result.chains.chain(result.reference), data.truth["loadings"], result.units
        assert units is not None
        latents, scale = loadings.shape[1], units.scale
        true = loadings @ loadings.T + NOISE * np.eye(len(loadings))
        with torch.no_grad():
            fitted, matrix, drawn = program.implied().fitted_cov[0], program.loading_matrix(), program.number_told()
        assert matrix is not None
        own = scale[:, None] * matrix[0].double().numpy()
        rival = FactorAnalysis(latents, max_iter=1000, random_state=0).fit(data.x)

        def apart(found: np.ndarray) -> float:
            a, b = (np.linalg.svd(side, full_matrices=False)[0] for side in (loadings, found))
            return 1 - float(((a.T @ b) ** 2).sum()) / max(latents, found.shape[1])

        def wrong(found: np.ndarray) -> float:
            return float(((found - true) ** 2).mean())

        used = np.argsort(-(own**2).sum(0))
        used = used[: latents if drawn is None else int(drawn.mode()[0])]
        out = {
            "held_out": float(result.weights @ result.scores),
            "covariance_error": wrong(fitted * np.outer(scale, scale)),
            "covariance_error_ml": wrong(rival.get_covariance()),
            "covariance_error_ledoit": wrong(LedoitWolf().fit(data.x).covariance_),
            "subspace_error": apart(own[:, used]),
            "subspace_error_ml": apart(rival.components_.T),
        }
        if drawn is not None:
            numbers = result.posterior(DRAWN, data, predictive=False, density=False, thin=data.rows)["posterior"][
                "count"
            ]
            each = (numbers.to_numpy() == latents).mean(1)
            out |= {"count_probability": float(result.weights @ each), "latents_found": float(drawn.mode()[0])}
        return out


class HeavyTails(Study):
    """Latents and loadings, beside the estimators of `SparseFactors`.

    loadings_coverage: true loadings inside their 90 % intervals. latents_coverage: true latents inside theirs. Both in
    the order, signs and scales that latents of the fitted rows have. heavy_found: how many latents are surely not
    normal; identified: whether the verdict says so.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics
        from pyrocrl.judge.checks.shared import SURE
        from pyrocrl.judge.diagnose import diagnose

        fitted, z = result.data, data.truth["z"]
        assert fitted is not None
        found = result.latents(data)
        score, nodes = metrics.mcc(z, found, return_assignment=True)
        drawn = result.posterior(DRAWN, data, predictive=False, density=False, thin=10)["posterior"].to_dataset()
        drawn = drawn.stack(sample=("chain", "draw")).transpose("sample", ...)
        sign = np.sign((found[:, nodes] * z).sum(0))
        weights = np.repeat(result.weights / DRAWN, DRAWN)

        def covered(site: str, true: np.ndarray) -> float:
            mine = drawn[site].to_numpy()[..., nodes] * sign
            low, high = metrics.weighted_quantiles(mine, weights, (0.05, 0.95))
            return float(((low <= true) & (true <= high)).mean())

        heavy = result.chain_values("non_gaussian")
        assert heavy is not None
        return {
            "held_out": float(result.weights @ result.scores),
            "mcc": score,
            "loadings_coverage": covered("loadings", data.truth["loadings"]),
            "latents_coverage": covered("z", z[::10]),
            "heavy_found": float((result.weights @ heavy > SURE).sum()),
            "identified": float(diagnose(result)["latents"].identified),
        } | {name: value for name, value in _rotated_factors(fitted.x, data.x, z).items() if name.endswith("mcc")}


@dataclass(frozen=True)
class Supports(Study):
    """Latents whose joint support is a box, [-1, 1] of each, beside PCA, FastICA and the best linear unmixing.

    latents_coverage: true latents inside their 90 % intervals, in the box's units. identified: whether the verdict says
    so of the latents.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import PCA

        from pyrocrl.judge import metrics
        from pyrocrl.judge.diagnose import diagnose

        fitted, z = result.data, data.truth["z"]
        assert fitted is not None
        found = result.latents(data)
        score, nodes = metrics.mcc(z, found, return_assignment=True)
        drawn = result.posterior(DRAWN, data, predictive=False, density=False, thin=20)["posterior"].to_dataset()
        drawn = drawn.stack(sample=("chain", "draw")).transpose("sample", ...)
        mine = drawn["z"].to_numpy()[..., nodes] * np.sign((found[:, nodes] * z).sum(0))
        low, high = metrics.weighted_quantiles(mine, np.repeat(result.weights / DRAWN, DRAWN), (0.05, 0.95))
        beside = _rotated_factors(fitted.x, data.x, z)
        pca = metrics.mcc(z, PCA(z.shape[1]).fit(fitted.x).transform(data.x))
        return {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(score),
            "pca_mcc": float(pca),
            "ica_mcc": beside["ica_mcc"],
            "linear_r2": metrics.linear_r2(data.x, z),
            "latents_coverage": float(((low <= z[::20]) & (z[::20] <= high)).mean()),
            "identified": float(diagnose(result)["latents"].identified),
        }


@dataclass(frozen=True)
class Mechanisms(Study):
    """Independent latents behind as many features, beside principal components, FastICA and the best linear unmixing.

    mcc_spearman: of ranks. contrast: the mean local contrast of the map of the best chain, in units of features that
    are learned; contrast_oracle: of the true mixing, in the features' own; contrast_darmois: of the Darmois
    construction, for two features. identified: whether the verdict says so of the latents.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.exact.orthogonal_maps import darmois_contrast
        from pyrocrl.judge import metrics
        from pyrocrl.judge.diagnose import diagnose

        x, z = data.x, data.truth["z"]
        found = result.latents(data)
        columns = result.chains.chain(result.reference).columns(result.batch_of(data.rows_at(data.spread(1_000))))
        beside = metrics.baselines((x - x.mean(0)) / x.std(0), z, z.shape[1])
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": metrics.mcc(z, found),
            "mcc_spearman": metrics.mcc(z, found, "spearman"),
            "linear_r2": metrics.linear_r2(x, z),
            "contrast": float(columns.contrast.mean()),
            "contrast_oracle": float(data.truth["contrast"].mean()),
            "identified": float(diagnose(result)["latents"].identified),
        }
        if x.shape[1] == 2:
            out["contrast_darmois"] = darmois_contrast(torch.as_tensor(x))
        names = ("mcc", "mcc_spearman")
        return out | {f"{name}_{k}": beside[name][k] for name in ("pca", "ica") for k in names}


def _rotated_factors(x: np.ndarray, new: np.ndarray, z: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """mcc on new rows, and mask_f1 where there is a mask, of the baselines of `SparseFactors`, fitted to x (row,
    feature)."""
    import warnings

    from sklearn.decomposition import PCA, FactorAnalysis, FastICA

    from pyrocrl.exact.rotations import varimax
    from pyrocrl.judge import metrics

    latents, out = z.shape[1], {}
    pca = PCA(latents).fit(x)
    turn = varimax(pca.components_.T * np.sqrt(pca.explained_variance_)) / np.sqrt(pca.explained_variance_)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Gaussian factors FastICA does not converge
        kinds = {
            "varimax": FactorAnalysis(latents, rotation="varimax", random_state=0).fit(x).transform,
            "pcavarimax": lambda rows: pca.transform(rows) @ turn,
            "ica": FastICA(latents, random_state=0, whiten="unit-variance").fit(x).transform,
        }
    for name, scores in kinds.items():
        own = scores(x)
        out[f"{name}_mcc"], nodes = metrics.mcc(z, scores(new), return_assignment=True)
        if mask is None:
            continue
        loadings = np.linalg.lstsq(own / own.std(0), x - x.mean(0), rcond=None)[0].T
        found = (np.abs(loadings) > SUPPORT).astype(float)
        out[f"{name}_mask_f1"] = metrics.mask_scores(mask, found, permutation=nodes)["f1"]
    return out


def readable(options: Mapping[str, Any]) -> str:
    """Options in words: "samples 20,000, pairs 0+1 0+3"."""
    return ", ".join(f"{name.replace('_', ' ')} {_words(value)}" for name, value in options.items())


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        nested = any(isinstance(item, list | tuple) for item in value)
        return (" " if nested else "+").join(map(_words, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _only(data: Data, rows: np.ndarray) -> Data:
    """The rows alone, without the other rows' environments."""
    labels = data.env_labels()[rows]
    targets = {env: hit for env, hit in (data.targets or {}).items() if env in set(labels)}
    return Data(data.x[rows], env=labels, targets=targets, truth={"z": data.truth["z"][rows]}, name=data.name)


class MeanDifferences(Study):
    """Latents of pairs, beside the closed form for a linear mixing whose offsets are of one latent each
    (difference_): mean differences of pairs are then columns of the mixing."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        fitted, z = result.data, data.truth["z"]
        assert fitted is not None
        after = np.flatnonzero(fitted.after & (fitted.partner >= 0))
        moved, env = fitted.x[after] - fitted.x[fitted.partner[after]], fitted.env[after]
        columns = np.stack([moved[env == e].mean(0) for e in np.unique(env[env > 0])], 1)
        told = (data.x - fitted.x.mean(0)) @ np.linalg.pinv(columns).T
        return super().score(result, data) | {"difference_mcc": float(metrics.mcc(z, told))}


class KnownMechanisms(MeanDifferences):
    """Latents of pairs whose mechanisms are told, beside the closed form for a linear mixing (closed_). concordance: of
    latents with the true ones, after what the mechanisms leave free and nothing else."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.judge import metrics

        z, fitted = data.truth["z"], result.data
        assert fitted is not None
        linear = type(result.program)(**(result.program.arguments | {"decoder": "linear"}))
        with torch.no_grad():
            linear.initialise(fitted, torch.Generator().manual_seed(result.meta["seed"]))
            told = linear.latents(data.tensors(dtype=torch.float32)).double().numpy()
        group = result.program.group
        out = {"closed_mcc": float(metrics.mcc(z, told))}
        out["concordance"] = float(group.align(result.latents(data), z).agreement.mean())
        out["closed_concordance"] = float(group.align(told, z).agreement.mean())
        return super().score(result, data) | out


class SwitchingSources(Study):
    """Independent sources, beside AMUSE (amuse_, covariances one row apart) and SOBI (sobi_, of several lags), fitted
    to the same rows."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.constructions import sources
        from pyrocrl.judge import metrics

        z, fitted = data.truth["z"], result.data
        assert fitted is not None
        out = super().score(result, data)
        centre, count = fitted.x.mean(0), z.shape[1]
        value, vector = np.linalg.eigh(np.cov(fitted.x.T))
        project = vector[:, -count:] / np.sqrt(value[-count:])
        batch = fitted.tensors(dtype=torch.float64)
        order, since = batch.in_time()
        y = torch.as_tensor((fitted.x - centre) @ project)[order]
        for name, lags in (("amuse", (1,)), ("sobi", sources.LAGS)):
            turn = sources.by_lags(y, since, lags, segments=0).numpy()
            out[f"{name}_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ turn.T))
        return out


class SparseMechanisms(Study):
    """Latents of few parents, and which parents: shd, how many entries of (parent, latent) are wrong of those
    with probability above .5 (shd_empty: of none), beside principal components and FastICA. linear_r2: of the
    best linear readout, which knows z."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.judge import metrics

        z, truth = data.truth["z"], np.asarray(data.truth["moved_by"])
        mcc, nodes = metrics.mcc(z, ours := result.latents(data), return_assignment=True)
        program = result.chains.chain(result.reference)
        with torch.no_grad():
            found = program.parent_graphs().mean(0).cpu().numpy() > 0.5
        order = result.alignments[result.reference].permutation[nodes]
        actions = program.config["aux"]
        found = np.concatenate([found[:actions], found[actions:][order] if len(found) > actions else found[actions:]])
        rows = metrics.baselines(data.x, z, z.shape[1])
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(mcc),
            "mcc_spearman": metrics.mcc(z, ours, "spearman"),
            "linear_r2": metrics.linear_r2(data.x, z),
            "shd": float((found[:, order] != (truth > 0)).sum()),
            "shd_empty": float((truth > 0).sum()),
        }
        return out | {f"{name}_{k}": rows[name][k] for name in ("pca", "ica") for k in ("mcc", "mcc_spearman")}


@dataclass(frozen=True)
class TargetSteps(Study):
    """Latents of series of which some are targets in each step, beside the closed form by targets (closed_) and, of two
    covariances of rows, those in which a latent is a target and others, the axes that differ most (modulated_).

    own_r2: of a cubic of each latent's estimate, held out, of the worst one; other_r2: of other true latents from it,
    of the largest; true_other_r2: the same of the true latent itself. lagged_errors: wrong entries of the graph from
    step to step, beside those of an empty one.
    """

    held_out: float = 0.1

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.constructions import target_steps
        from pyrocrl.judge import metrics

        z, fitted = data.truth["z"], result.data
        assert fitted is not None
        count = z.shape[1]
        _, place = metrics.mcc(z, found := result.latents(data), return_assignment=True)
        own, true = _cubic_r2(found[:, place], z), _cubic_r2(z, z)
        off = ~np.eye(count, dtype=bool)
        out = super().score(result, data) | {"own_r2": float(own.diagonal().min()), "other_r2": float(own[off].max())}
        out["true_other_r2"] = float(true[off].max())
        program = result.chains.chain(result.reference)
        lagged, graph = program.lagged().cpu().numpy() > 0.5, data.truth["lagged"] > 0
        out["lagged_errors"] = float((lagged[np.ix_(place, place)] != graph).sum())
        out["lagged_errors_empty"] = float(graph.sum())
        value, vector = np.linalg.eigh(np.cov(fitted.x.T))
        project, centre = vector[:, -count:] / np.sqrt(value[-count:]), fitted.x.mean(0)
        batch = fitted.tensors(dtype=torch.float64)
        order, since = batch.in_time()
        hit = fitted.target_matrix(count)
        y = (fitted.x - centre) @ project
        steps = target_steps.Steps(
            torch.as_tensor(y)[order], batch.env[order], since, torch.as_tensor(hit), soft=False, edge=0.5
        )
        closed = target_steps.by_targets(steps)[0].numpy()
        if np.isfinite(closed).all():
            out["closed_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ closed.T))
        axes = []
        for own_hit in (hit[fitted.env] > 0).T:
            if min(own_hit.sum(), (~own_hit).sum()) > count:
                change = np.cov(y[~own_hit].T) - np.cov(y[own_hit].T)
                axes.append(np.linalg.eigh(change)[1][:, -1])
        if len(axes) == count:
            out["modulated_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ np.stack(axes, 1)))
        return out


def _cubic_r2(estimate: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(latent, latent) squared correlation, in every second row, of a latent with a cubic of another's estimate that is
    fitted to the other rows."""
    out = np.zeros((estimate.shape[1], z.shape[1]))
    for k, one in enumerate(estimate.T):
        unit = (one - one.mean()) / one.std()
        terms = np.stack([unit**0, unit, unit**2, unit**3], 1)
        told = terms[1::2] @ np.linalg.lstsq(terms[::2], z[::2], rcond=None)[0]
        out[k] = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(told.T, z[1::2].T, strict=True)]
    return out
