"""Which chains fall hopelessly behind: what they may still gain, by their own progress, does not reach the best one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

EARLIEST = 0.3  # of the epochs, and after annealing, before which no chain is stopped
LEAST = 8  # looks at the held-out objective, in a third of the epochs so far, without which no progress is known
ERRORS = 4.0  # standard errors of a difference over rows, and deviations of a chain's looks about its own trend
FASTEST = 2.0  # times a chain's late progress, which is granted to it to the end
AT_LEAST = 2  # chains that go on in any case: one alone would agree with nobody


@dataclass(frozen=True)
class Stopped:
    """A chain that was stopped at an epoch, `behind` the best one by nats a row, and `hope`, what it could have caught
    up with at the most."""

    chain: int
    epoch: int
    behind: float
    hope: float

    def __str__(self) -> str:
        return (
            f"chain {self.chain} is stopped after epoch {self.epoch}: {self.behind:.3g} nats a row behind the best, of "
            f"which it might catch up with {self.hope:.2g}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def behind(history: np.ndarray, rows: np.ndarray, progress: float) -> dict[int, tuple[float, float]]:
    """Chain -> (how far it is behind the best one, the most it may catch up with), of chains that are hopeless.

    history: (look, 1 + chain) epochs and held-out objectives so far, the last one's that of rows, (chain, row); NaN of
    chains that do not count. progress: share of the epochs that is done. Over the last third of the looks: a chain is
    as far behind as in the one in which it is nearest to the chain that is now the best. It is hopeless where that
    exceeds the sum of what its own progress, doubled, would give in the epochs that are left, and of the noise: four
    standard errors of the difference over rows, and four deviations of its looks about their trend. Two chains go on
    in any case.
    """
    score = rows.mean(1)
    going = np.isfinite(score)
    late = history[-(len(history) // 3) :] if len(history) > 2 else history
    if progress < EARLIEST or progress >= 1.0 or len(late) < LEAST or going.sum() <= AT_LEAST:
        return {}
    at = late[:, 0] - late[-1, 0]
    left = float(late[-1, 0]) * (1.0 - progress) / progress  # epochs
    best = int(np.nanargmax(score))
    found = {}
    for chain in np.flatnonzero(going):
        looks = late[:, 1 + chain]
        gap = float((late[:, 1 + best] - looks).min())
        if not gap > 0.0:  # NaN of looks that a chain does not have
            continue
        slope, level = np.polyfit(at, looks, 1)
        noise = float(np.std(looks - level - slope * at, ddof=2))
        apart = rows[best] - rows[chain]
        error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else np.inf
        hope = FASTEST * max(0.0, float(slope)) * left + ERRORS * (error + noise)
        if gap > hope:
            found[int(chain)] = (gap, hope)
    spare = int(going.sum()) - AT_LEAST
    worst = sorted(found, key=lambda chain: -found[chain][0])[:spare]
    return {chain: found[chain] for chain in sorted(worst)}
