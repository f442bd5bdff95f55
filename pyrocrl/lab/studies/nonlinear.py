"""Studies of latents behind nonlinear mixings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.studies.factors import rotated_factors
from pyrocrl.lab.studies.study import DRAWN, Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

REACH = 2.0


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
        beside = rotated_factors(fitted.x, data.x, z)
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
