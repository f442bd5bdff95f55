"""Studies of latents and the graph among them, behind interventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies.study import DRAWN, Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit


FEW = 50  # latents whose independent components take less time than the fit


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
class ManyTargets(ManyLatents):
    """Targets and innovations as well, and independent components beside."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics
        from pyrocrl.judge.evaluate import targets_right

        truth, found, targets = data.truth, result.latents(data), result.targets()
        assert targets is not None
        told = "innovations" if result.program.reads_innovations else "z"
        _, nodes = metrics.mcc(truth[told], found, return_assignment=True)
        ours = super().score(result, data)
        if found.shape[1] <= FEW:
            ours["ica_mcc"] = metrics.baselines(data.x, truth["z"], found.shape[1], 0)["ica"]["mcc"]
        ours["innovations_mcc"] = metrics.mcc(truth["innovations"], found)
        return ours | targets_right(truth["targets"], targets, result.names["env"], nodes)


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


def _only(data: Data, rows: np.ndarray) -> Data:
    """The rows alone, without the other rows' environments."""
    labels = data.env_labels()[rows]
    targets = {env: hit for env, hit in (data.targets or {}).items() if env in set(labels)}
    return Data(data.x[rows], env=labels, targets=targets, truth={"z": data.truth["z"][rows]}, name=data.name)
