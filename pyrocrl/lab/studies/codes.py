"""Studies of overcomplete codes: their directions and which fire."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyrocrl.data import Data
from pyrocrl.lab.studies.study import DRAWN, Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit


class Directions(Study):
    """Directions and firing of sparse codes, latents matched by the cosines of their directions, beside dictionary
    learning by scikit-learn and directions at random, as many.

    direction_mcc: mean cosine with the true directions; direction_agreement: of two chains, over all pairs (Song et al.
    2025). firing_*: of rows, a latent firing at probability .5 or more; firing_ece: calibration of these probabilities.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        fitted, true = result.data, data.truth["loadings"]
        assert fitted is not None
        peer = MiniBatchDictionaryLearning(
            true.shape[1], alpha=0.3, batch_size=256, max_iter=5, fit_algorithm="cd", positive_code=True, random_state=0
        ).fit(fitted.x)
        random = np.random.default_rng([5, result.meta["seed"]]).standard_normal(true.shape)
        return codes_scored(result, data) | {
            "dictionary_direction_mcc": directions_matched(true, peer.components_.T)[0],
            "chance_direction_mcc": directions_matched(true, random)[0],
        }


class CountDirections(Study):
    """The same of counts, whose directions are those of log rates; beside the same program of log(1 + x / size)
    (logged_), in one chain, and beside dictionary learning and NMF (nmf_) of these, as many. The latter has no negative
    entries.

    loadings_coverage: of true loadings, inside their 90 % intervals.
    """

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from sklearn.decomposition import NMF, MiniBatchDictionaryLearning

        from pyrocrl import zoo
        from pyrocrl.infer.fit import fit
        from pyrocrl.judge import metrics
        from pyrocrl.judge.evaluate import seen

        fitted, true = result.data, data.truth["loadings"]
        assert fitted is not None and fitted.size_factor is not None
        out = codes_scored(result, data)
        drawn = result.posterior(DRAWN, fitted, predictive=False, density=False, thin=fitted.rows)["posterior"]
        loadings = drawn["loadings"].stack(sample=("chain", "draw")).transpose("sample", ...).to_numpy()
        nodes = directions_matched(true, loadings.mean(0))[1]
        mine, weights = loadings[..., nodes], np.repeat(result.weights / DRAWN, DRAWN)
        low, high = metrics.weighted_quantiles(mine, weights, (0.05, 0.95))
        out["loadings_coverage"] = float(((low <= true) & (true <= high)).mean())
        old = seen(fitted)
        new = np.log1p(data.x / (data.size_factor / fitted.size_factor.mean())[:, None])
        program = zoo.build(result.program.card.name, Data(old), **self.build)
        rival = fit(program, Data(old), seed=result.meta["seed"], device="cpu", progress=False, chains=1)
        logged = codes_scored(rival, Data(new, truth=data.truth))
        out |= {f"logged_{name}": logged[name] for name in ("mcc", "direction_mcc", "firing_f1", "firing_ece")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left to gain by their last steps is not looked at
            peers = {
                "dictionary": MiniBatchDictionaryLearning(
                    true.shape[1],
                    alpha=0.3,
                    batch_size=256,
                    max_iter=20,
                    fit_algorithm="cd",
                    positive_code=True,
                    random_state=0,
                ).fit(old - old.mean(0)),
                "nmf": NMF(true.shape[1], random_state=0, max_iter=500).fit(old),
            }
        random = np.random.default_rng([5, result.meta["seed"]]).standard_normal(true.shape)
        out |= {f"{name}_direction_mcc": directions_matched(true, p.components_.T)[0] for name, p in peers.items()}
        return out | {"chance_direction_mcc": directions_matched(true, random)[0]}


def codes_scored(result: Fit, data: Data) -> dict[str, float]:
    """Of `Directions`, of the fit itself."""
    from pyrocrl.judge import metrics

    true, z = data.truth["loadings"], data.truth["z"]
    scale = 1.0 if result.units is None else np.asarray(result.units.scale, dtype=float)[:, None]
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
    number = float(result.in_use(result.reference).sum())
    return {
        "held_out": float(result.weights @ result.scores),
        "mcc": metrics.mcc(z, result.latents(data)),
        "direction_mcc": own,
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

    a, b = (w / np.maximum(np.linalg.norm(w, axis=0), 1e-12) for w in (true, found))
    cosine = np.abs(a.T @ b)
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    nodes = np.full(true.shape[1], -1)
    nodes[rows] = columns
    return float(cosine[rows, columns].sum() / true.shape[1]), nodes
