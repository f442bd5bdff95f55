"""Studies of overcomplete codes: their directions and which fire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyrocrl.data import Data
from pyrocrl.lab.studies.study import Study

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

    a, b = (w / np.maximum(np.linalg.norm(w, axis=0), 1e-12) for w in (true, found))
    cosine = np.abs(a.T @ b)
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    nodes = np.full(true.shape[1], -1)
    nodes[rows] = columns
    return float(cosine[rows, columns].sum() / true.shape[1]), nodes
