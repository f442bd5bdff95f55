"""How many factors a covariance needs: the evidence of factor models of 0, 1, 2, ... factors, by Schwarz's criterion.

    x ~ N(0, L L^T + diag(v)),   L (feature, K),   log p(x | K) = max log p(x | L, v) - p_K / 2 log rows,
    p_K = features K - K (K - 1) / 2 + features

and K uniform a priori. Where x has fewer exact dimensions than features there is no noise, and these are the factors.
Factors that hardly stand out of the noise are not counted, and the probabilities do not tell of them: they are those of
factors as strong as one row's worth of prior expects.

Schwarz (1978), Estimating the dimension of a model; for factors, Bai & Ng (2002), Lopes & West (2004).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from pyrocrl.exact import goodness

Floats = goodness.Floats
BEHIND = 40.0  # nats behind the best at which larger numbers are not tried


class Factors(NamedTuple):
    """number (number,) of factors tried, ascending; probability (number,); exact: whether x has as many dimensions."""

    number: list[int]
    probability: Floats
    exact: bool

    @property
    def mode(self) -> int:
        return self.number[int(self.probability.argmax())]


def most(features: int) -> int:
    """As many factors as features tell from noise of their own (Ledermann 1937)."""
    return math.floor(features + 0.5 - math.sqrt(2 * features + 0.25) + 1e-9)


def factors(x: Floats, low: int = 0, high: int | None = None, lost: int = 1) -> Factors | None:
    """The posterior of the number of factors of x (row, feature), from `low` to `high`, at most `most`. lost: as many
    means as were taken out of x, of groups of rows say.

    None where x has too few rows or features to tell any.
    """
    rows = len(x) - lost
    x = x - x.mean(0)
    spread = x.std(0)
    moving = spread > 1e-12 * max(float(spread.max(initial=0.0)), 1e-300)
    x = x[:, moving] / spread[moving]
    features = x.shape[1]
    if features < 2 or rows < 3:
        return None
    second = x.T @ x / len(x)
    rank = int((np.linalg.eigvalsh(second) > goodness.EXACT * features).sum())
    if rank < min(features, rows):
        return Factors([rank], np.ones(1), True)
    high = most(features) if high is None else min(high, most(features))
    if rows <= features or high < low:
        return None
    evidence: list[float] = []
    for k in range(low, high + 1):
        free = features * k - k * (k - 1) / 2 + features
        evidence.append(-0.5 * rows * goodness.factor_discrepancy(second, k) - 0.5 * free * math.log(rows))
        if len(evidence) > 1 and max(evidence[-2:]) < max(evidence) - BEHIND:
            break
    return Factors([*range(low, low + len(evidence))], softmax(evidence), False)
