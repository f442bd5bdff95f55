"""Studies of graphs over observed variables, and of the parents of a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pyrocrl import datasets, simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies.study import DRAWN, Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

LISTED = 100  # latents up to which every edge's probability is kept
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
class ObservedGraph(Study):
    """A graph over observed variables up to what interventions tell, beside the empty graph and a greedy search.

    class_shd: pairs of variables that the class (`equivalence_class`, an arc where its probability exceeds .5) joins
    otherwise than the true one; expected_shd: mean over posterior graphs of the edges that are wrong, a reversed one
    once; sure_right: share of true edges among those of probability .9 or more; sure_wrong: how many of these are not
    there; auprc_greedy: of the search's class, one half for each way of an edge that it leaves undirected.
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
            "sure_wrong": float(((graph >= 0.9) & ~true).sum()),
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
class HeavyTailedGraph(ObservedGraph):
    """The same of rows that may have heavy tails, beside a fit of the same rows with Gaussian noise (`BESIDE`)."""

    BESIDE: ClassVar[tuple[str, ...]] = (
        *("held_out", "class_shd", "expected_shd", "ece", "sure_wrong", "auprc", "targets_found", "targets_false"),
    )

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit

        assert result.data is not None
        program = zoo.build(result.program.card.name, result.data, **{**self.build, "noise": "gaussian"})
        other = fit(program, result.data, seed=result.meta["seed"], device="cpu", progress=False)
        normal = super().score(other, data)
        beside = {f"{name}_gaussian": normal[name] for name in self.BESIDE if name in normal}
        return super().score(result, data) | beside


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
