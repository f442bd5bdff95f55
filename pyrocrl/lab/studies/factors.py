"""Studies of linear factors: loadings, masks, numbers, missing values and counts, beside rotations of others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.studies.study import DRAWN, Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

NOISE = 0.5  # variance of features' noise in `bhattacharya2011`
SUPPORT = 0.25  # loadings beyond which a baseline's mask is open


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
        } | rotated_factors(fitted.x, data.x, z, mask)


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
        return out | rotated_factors(old, new, z, mask)


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
        } | {name: value for name, value in rotated_factors(fitted.x, data.x, z).items() if name.endswith("mcc")}


def rotated_factors(x: np.ndarray, new: np.ndarray, z: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """mcc on new rows, and mask_f1 where there is a mask, of the baselines of `SparseFactors`, fitted to x (row,
    feature)."""

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
