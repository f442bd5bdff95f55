"""Studies of what features tell of the graph behind them: clusters, discrete latents, covers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies.study import DRAWN, Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

SCORED = 200  # rows beyond those of a fit
TESTED = 0.001  # level of tests of pairs of features
COMPONENTS = (1, 2, 3, 4, 6, 8, 9, 12, 18, 27)  # of mixtures beside discrete latents: all numbers that there are


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
