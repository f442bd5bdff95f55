"""Studies of views: shared latents, rows of one view found by another, and one view told from another.

Models list them, so this file loads what scores them only when it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pyrocrl import datasets, simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

TEST = 340  # cells of scicar_a549 that are scored
COMPONENTS = 20  # of each view, before canonical correlations
NEAREST = 10


@dataclass(frozen=True)
class Translation(Study):
    """Simulated views, of which new rows have all: the shared latents, beside principal components and canonical
    correlations of the rows that have all views (cca_); private_r2: how much of the private latents is in them."""

    def draw(self, seed: int) -> tuple[Data, Data]:
        part = simulate.draw(self.setting, seed, **self.options)
        whole = simulate.draw(self.setting, seed, **{**self.options, "paired": 1.0})
        half = part.rows // 2
        return part.rows_at(np.arange(half)), whole.rows_at(np.arange(half, part.rows))

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        z, estimate = data.truth["z"], result.latents(data)
        out = {"r2": metrics.r2(z, estimate), "private_r2": metrics.linear_r2(estimate, data.truth["private"])}
        return out | matched(result, data)

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class MeasuredViews(Translation):
    """RNA and ATAC of the same cells, of which `TEST` are scored, as log(1 + counts), RNA per median library. options:
    `rows` = "paired", or "not paired", where each cell is fitted with one of its views and its label."""

    simulated: ClassVar[bool] = False

    def draw(self, seed: int) -> tuple[Data, Data]:
        found = datasets.load(self.setting)
        assert found.aux is not None and found.size_factor is not None
        rna = np.log1p(np.asarray(found.x.todense()) * (np.median(found.size_factor) / found.size_factor)[:, None])
        x, order = np.hstack([rna, np.log1p(found.aux)]), np.random.default_rng([seed, 549]).permutation(found.rows)
        view = np.repeat([0, 1], [rna.shape[1], found.aux.shape[1]])
        train, test = order[TEST:], order[:TEST]
        lacks = np.zeros(x.shape, dtype=bool)
        if self.options["rows"] == "not paired":
            lacks[train] = view != (np.arange(len(train)) % 2)[:, None]
        known = np.where(lacks, np.nan, x)
        varies = np.nanstd(known[train], 0) > 0
        names = [f"{('rna', 'atac')[v]}_{j}" for j, v in enumerate(view[varies])]
        told = [("rna", "atac")[v] for v in view[varies]]
        data = Data(
            known[:, varies], found.env_labels(), view=told, feature_names=names, control="0", name=self.setting
        )
        return data.rows_at(train), data.rows_at(test)

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        return {"held_out": float(result.weights @ result.scores)} | matched(result, data)


def matched(result: Fit, data: Data) -> dict[str, float]:
    """How the first two views of new rows are told from each other: `foscttm` and `match_10`, of means of the shared
    latents given either view alone and no label, which both would share; `translation_error`, root mean square in
    deviations of the features, and `translation_coverage` of 90 % intervals, over both directions; with `cca_` and
    `chance_` beside."""
    from pyrocrl.judge import metrics
    from pyrocrl.predict import translate

    fitted = result.data
    assert fitted is not None and data.view is not None and fitted.view is not None
    spread = np.nanstd(fitted.x, 0)
    blind = data.rows_at(slice(None))
    blind.env = np.zeros_like(data.env)
    errors, inside, means = [], [], []
    for view in data.view_names[:2]:
        told = translate(result, data, view)
        x = data.x[:, data.view_labels() == view]
        errors.append(np.square((told["mean"].to_numpy() - x) / spread[data.view_labels() == view]).mean())
        inside.append(((told["low"].to_numpy() <= x) & (x <= told["high"].to_numpy())).mean())
        means.append(translate(result, blind, view)["z"].to_numpy())
    out = {
        "translation_error": float(np.sqrt(np.mean(errors))),
        "translation_coverage": float(np.mean(inside)),
        "foscttm": metrics.foscttm(means[0], means[1]),
        "match_10": metrics.match_at(means[0], means[1], NEAREST),
        "chance_foscttm": 0.5,
        "chance_match_10": NEAREST / data.rows,
        "chance_translation_error": 1.0,
    }
    return out | canonical(fitted, data, result.program.latents_count)


def canonical(fitted: Data, data: Data, latents: int) -> dict[str, float]:
    """Principal components of each view, then canonical correlations, of the rows that have both, each variate times
    its correlation; nothing where fewer than four times as many rows do as there are latents."""
    from sklearn.decomposition import PCA

    from pyrocrl.judge import metrics

    assert fitted.view is not None
    both = fitted.present[:, :2].all(1)
    size = min(COMPONENTS, *(int((fitted.view == v).sum()) for v in (0, 1)), int(both.sum()) // 4)
    if size < latents:
        return {}
    bases, scores, new, columns = [], [], [], []
    for v in (0, 1):
        mine = fitted.view == v
        x = fitted.x[both][:, mine]
        centre, sd = x.mean(0), np.maximum(x.std(0), 1e-12)
        pca = PCA(size, random_state=0).fit((x - centre) / sd)
        own = pca.transform((x - centre) / sd)
        unit = own.std(0)
        bases.append((pca.components_ * unit[:, None], centre, sd))
        scores.append(own / unit)
        new.append(pca.transform((data.x[:, mine] - centre) / sd) / unit)
        columns.append(mine)
    u, r, w = np.linalg.svd(scores[0].T @ scores[1] / len(scores[0]))
    axes, r = (u[:, :latents], w[:latents].T), r[:latents]
    means = [score @ axis * r for score, axis in zip(new, axes, strict=True)]  # as far as the other view tells them
    errors = []
    for v in (0, 1):
        basis, centre, sd = bases[v]
        guess = means[1 - v] @ axes[v].T @ basis
        errors.append(np.square(guess - (data.x[:, columns[v]] - centre) / sd).mean())
    return {
        "cca_translation_error": float(np.sqrt(np.mean(errors))),
        "cca_foscttm": metrics.foscttm(means[0], means[1]),
        "cca_match_10": metrics.match_at(means[0], means[1], NEAREST),
    } | ({"cca_r2": metrics.r2(data.truth["z"], np.mean(means, 0))} if "z" in data.truth else {})
