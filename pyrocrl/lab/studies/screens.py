"""Real CRISPR screens: fitted without guide labels and scored by them, or with knock-outs as environments.

Models list their screens, so this file loads what scores them only when it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scipy.stats import norm, rankdata

from pyrocrl import datasets
from pyrocrl.constructions import anchors
from pyrocrl.data import Data
from pyrocrl.lab.studies import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")  # knock-outs of one receptor chain


@dataclass(frozen=True)
class Screen(Study):
    """A real CRISPR screen, fitted without its guide labels and scored by them: every cell is fitted and scored.

    knockouts: those of one pathway, which one latent should tell from `control`. Figures stand beside varimax factor
    analysis of the standardised log-normalised counts, whose loadings count as non-zero above `loading`.
    """

    simulated: ClassVar[bool] = False
    knockouts: tuple[str, ...] = ()
    control: str = "non-targeting"
    loading: float = 0.25

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = datasets.load(self.setting)
        return data, data

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.evaluate import seen

        latents = int(self.build["latents"])
        x = seen(data)
        x = (x - x.mean(0)) / x.std(0)
        loadings, scores, _ = anchors.varimax(x, latents)
        mask = result.mask()
        assert mask is not None
        out = {"held_out": float(result.weights @ result.scores)}
        out |= self._separation(result.latents(data), data, "")
        out |= self._separation(x @ scores.T, data, "varimax_")
        out |= {
            "entries": float((mask > 0.5).sum()),
            "varimax_entries": float((np.abs(loadings) > self.loading).sum()),
            "latents_in_use": float((mask > 0.5).any(0).sum()),
        }
        return out

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {"programmes": programmes(result)}

    def _separation(self, z: np.ndarray, data: Data, prefix: str) -> dict[str, float]:
        """AUROC of each knock-out against control cells by one latent, the one that is best on average."""
        from sklearn.metrics import roc_auc_score

        env = data.env_labels()
        table = np.zeros((len(self.knockouts), z.shape[1]))
        for row, knockout in enumerate(self.knockouts):
            rows = (env == knockout) | (env == self.control)
            for k in np.flatnonzero(z.std(0) > 0):
                area = roc_auc_score(env[rows] == knockout, z[rows, k])
                table[row, k] = max(area, 1.0 - area)
        best = int(table.mean(0).argmax())
        out = {f"{prefix}latent": float(best)}
        return out | {f"{prefix}auroc_{name}": float(v) for name, v in zip(self.knockouts, table[:, best], strict=True)}


def programmes(result: Fit, least: float = 0.1) -> dict[str, list[str]]:
    """For each latent in use its features with an inclusion probability above `least`, the surest first."""
    mask = result.mask()
    if mask is None:
        return {}
    out = {}
    for k in np.flatnonzero((mask > 0.5).any(0)):
        order = [j for j in np.argsort(-mask[:, k]) if mask[j, k] > least]
        out[result.names["latent"][k]] = [f"{result.names['feature'][j]} {mask[j, k]:.2f}" for j in order]
    return out


@dataclass(frozen=True)
class PerturbationScreen(Study):
    """A real CRISPR screen fitted with knock-outs as environments of unknown target, scored on a held-out replicate.

    Fitted are all cells of the other replicates of `options["replicates"]` and the control cells of
    `options["held_out"]`, which say where that replicate's baseline is; scored is the mean expression of its
    knock-outs: counts over size factors, log(1 + mean), squared error averaged over genes, in 1e-4. Beside the model:
    the control mean of that replicate, the knock-out's training mean, and that mean with the control means'
    difference added (`shifted`). Knock-outs without differential genes: own gene apart, at most one gene at Bonferroni
    .05 over all tests, by van Elteren's rank-sum test stratified by replicate; `changed` are the others.
    """

    simulated: ClassVar[bool] = False
    control: str = "non-targeting"
    predicted: int = 40  # posterior draws a chain

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = datasets.load(self.setting)
        batch = np.asarray(data.batch_names)[data.batch]
        held = (batch == self.options["held_out"]) & ~data.control_rows
        return data.rows_at(np.isin(batch, self.options["replicates"]) & ~held), data.rows_at(held)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        table = {row["knockout"]: row for row in knockouts(result, data, self.predicted)}
        probs = result.targets()
        assert probs is not None
        place = {name: probs[e] for e, name in enumerate(result.names["env"])}
        shared = int(sum(place[name] for name in PATHWAY).argmax())
        elsewhere = np.delete(place["SMAD4"], shared).max()
        weakest = min(abs(table[name]["shift"]) for name in PATHWAY)
        few = {name for name, genes in differential_genes(datasets.load(self.setting)).items() if genes <= 1}
        called = sum(table[name]["none"] > 0.5 for name in few)
        out = {
            "held_out": float(result.weights @ result.scores),
            "pathway_together": float(min(place[name][shared] for name in PATHWAY)),
            "irf1_with_them": float(place["IRF1"][shared]),
            "irf1_relative_shift": abs(table["IRF1"]["shift"]) / weakest,
            "smad4_apart": float(elsewhere),
            "nulls": float(len(few)),
            "nulls_called_none": float(called),
        }
        rows = [row for row in table.values() if row["cells"]]
        cells = np.array([row["cells"] for row in rows])
        for name in ("model", "control", "training", "shifted"):
            errors = np.array([row[f"error_{name}"] for row in rows])
            out |= {f"error_{name}": float(errors.mean()), f"error_{name}_cells": float(errors @ cells / cells.sum())}
        changed = [row for row in rows if row["knockout"] not in few]
        for name in ("control", "training", "shifted"):
            out[f"beats_{name}"] = float(sum(row["error_model"] <= row[f"error_{name}"] for row in rows))
            out[f"changed_beats_{name}"] = float(sum(row["error_model"] <= row[f"error_{name}"] for row in changed))
        return out | {"changed": float(len(changed))}

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {"knockouts": knockouts(result, data, self.predicted), "genes": _leading_genes(result)}


@torch.no_grad()
def knockouts(result: Fit, data: Data, draws: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each knock-out: probability of no effect, its most probable programme and that one's probability, the
    shift there with its 90 % interval (in deviations of the programme's noise), share of its cells that escaped, and
    errors of predicted means in the held-out cells `data` (see `PerturbationScreen`)."""
    from pyrocrl.judge.metrics import weighted_quantiles
    from pyrocrl.predict import expected_rows, mean_size, per_size

    train = result.data
    assert train is not None and train.size_factor is not None and data.size_factor is not None
    probs = result.targets()
    assert probs is not None
    tree = result.posterior(draws=100, data=train, thin=50, predictive=False, density=False, seed=seed)["posterior"]
    hit, shift = (tree[name].to_numpy() for name in ("targets", "shift"))  # (chain, draw, env, latent)
    shift = shift / tree["noise"].to_numpy()[:, :, :1]
    weight = np.broadcast_to(result.weights[:, None], hit.shape[:2])
    batch = result.batch_of(train)
    escaped = np.zeros(train.rows)
    for w, program in zip(result.weights, result.programs(), strict=True):
        probability = program.escaped(batch)
        assert probability is not None
        escaped += w * probability.double().numpy()
    size = mean_size(train)
    mean = expected_rows(result, data, draws=draws, seed=seed) / data.size_factor[:, None] * size
    fitted, found = per_size(train) * size, per_size(data) * size
    there = np.bincount(data.batch).argmax()
    control = train.control_rows
    base, base_there = (
        fitted[control & (train.batch != there)].mean(0),
        fitted[control & (train.batch == there)].mean(0),
    )
    out = []
    for e, name in enumerate(result.names["env"]):
        if name == train.control:
            continue
        k = int(probs[e].argmax())
        use = hit[:, :, e, k] > 0.5
        low, middle, high = weighted_quantiles(shift[:, :, e, k][use], weight[use], (0.05, 0.5, 0.95))
        row: dict[str, Any] = {
            "knockout": name,
            "none": float(1 - probs[e].sum()),
            "programme": result.names["latent"][k],
        }
        row |= {"probability": float(probs[e, k]), "shift": float(middle), "low": float(low), "high": float(high)}
        share = float(escaped[train.env == e].mean()) if row["none"] < 0.5 else None
        row |= {"escaped": share, "cells": int((data.env == e).sum())}
        if row["cells"]:
            truth = np.log1p(found[data.env == e].mean(0))
            own = np.log1p(fitted[train.env == e].mean(0))
            guesses = {"model": np.log1p(mean[data.env == e].mean(0)), "control": np.log1p(base_there), "training": own}
            guesses["shifted"] = own + np.log1p(base_there) - np.log1p(base)
            row |= {f"error_{n}": float(1e4 * np.mean((g - truth) ** 2)) for n, g in guesses.items()}
        out.append(row)
    return out


def differential_genes(data: Data) -> dict[str, int]:
    """How many genes, its own apart, each environment changes against the control: van Elteren's rank-sum test of
    log-normalised counts stratified by batch, Bonferroni .05 over all genes and environments."""
    from pyrocrl.judge.evaluate import seen

    y = seen(data)
    level = 0.05 / (data.features * (len(data.env_names) - 1))
    genes = np.asarray(data.feature_names)
    out = {}
    for e, name in enumerate(data.env_names):
        if name == data.control:
            continue
        total, variance = np.zeros(data.features), np.full(data.features, 1e-12)
        for b in range(len(data.batch_names)):
            rows = (data.batch == b) & (data.control_rows | (data.env == e))
            own, n = data.env[rows] == e, int(rows.sum())
            if not 0 < own.sum() < n:
                continue
            rank = rankdata(y[rows], axis=0) - (n + 1) / 2
            total += rank[own].sum(0) / (n + 1)
            variance += own.sum() * (n - own.sum()) / (n - 1) * (rank**2).mean(0) / (n + 1) ** 2
        p = 2 * norm.sf(np.abs(total) / np.sqrt(variance))
        out[name] = int(((p < level) & (genes != name)).sum())
    return out


def _leading_genes(result: Fit, most: int = 10) -> dict[str, list[str]]:
    """For each programme of the reference chain the genes whose counts it moves most, as loading x sqrt(mean count)."""
    assert result.data is not None
    program: Any = result.programs()[result.reference]
    loadings = program.decoder.loadings.detach().double().numpy()
    strength = loadings * np.sqrt(np.asarray(result.data.x.mean(0)).reshape(-1, 1))
    align, out = result.alignments[result.reference], {}
    for k, name in enumerate(result.names["latent"]):
        own = align.permutation[k]
        best = np.argsort(-np.abs(strength[:, own]))[:most]
        sign = np.sign(align.scale[k])
        out[name] = [f"{result.names['feature'][j]} {sign * loadings[j, own]:+.2f}" for j in best]
    return out
