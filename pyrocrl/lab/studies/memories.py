"""Studies of auto-encoders that store rows: what they recall, and whether contexts are aligned in their latents.

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
    import xarray as xr

    from pyrocrl.infer.fitted import Fit

BELOW = 1 - 1e-6  # a radius of 1 comes out on either side
FEW = 10  # rows of a real data set at which the Jacobian is looked at
OF_THE_NET = ("net", "noise")  # options that name what the study builds


@dataclass(frozen=True)
class StoredRows(Study):
    """Rows to be stored, all of them, and how many the worst chain recalls. options: `net` and `noise` name what is
    built, others are the setting's."""

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = simulate.draw(self.setting, seed, **{k: v for k, v in self.options.items() if k not in OF_THE_NET})
        return data, data

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.memory import attractors

        found = attractors(result, data, seed=result.meta["seed"])
        return memory_scores(found) | {"elsewhere": float(1 - found["basin"].sum("data").mean())}

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Contexts(StoredRows):
    """Perturbations in several contexts: signatures of one found among another context's, in latents, in x and in
    principal components; means over chains."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.memory import alignment

        return alignment_scores(alignment(result, data))


@dataclass(frozen=True)
class MeasuredContexts(Contexts):
    """Those of a real data set, whatever the options; and how a few rows are remembered."""

    simulated: ClassVar[bool] = False

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge.memory import attractors

        few = data.rows_at(data.spread(FEW))
        remembered = memory_scores(attractors(result, few, noise=[0.1], starts=0, seed=result.meta["seed"]))
        return super().score(result, data) | remembered

    def draw(self, seed: int) -> tuple[Data, Data]:
        data = datasets.load(self.setting)
        return data, data


def memory_scores(found: xr.Dataset) -> dict[str, float]:
    """Of `judge.memory.attractors`, the worst chain's."""
    recalled = found["recalled"].sum("data").min("chain")
    return {
        "radius": float(found["radius"].max()),
        "contracting": float((found["radius"] < BELOW).sum("data").min()),
        "stored": float(found.sizes["data"]),
        "stored_error": float(found["error"].max()),
    } | {f"recalled_{noise:g}": float(recalled.sel(noise=noise)) for noise in found["noise"].to_numpy()}


def alignment_scores(found: xr.Dataset) -> dict[str, float]:
    """Means of `judge.memory.alignment` over pairs: of latents, also over chains; raw_ of x, pca_ and white_."""
    spaces: dict[str, Any] = {"raw_": found.sel(space=["x"])}
    spaces |= {f"{name}_": found.sel(space=[name]) for name in ("pca", "white")}
    spaces |= {"": found.isel(space=slice(3, None))}
    sign = np.sign(found["cosine"].sel(space="x").to_numpy())
    out = {"retrieval_blind": float(found["chance"].mean()), "components": float(found.attrs["components"])}
    for head, part in spaces.items():
        cosine, each = part["cosine"].to_numpy(), part["found"].mean("pair").to_numpy()
        out |= {
            f"{head}retrieval": float(each.mean()),
            f"{head}abs_cosine": float(np.abs(cosine).mean()),
            f"{head}abs_cosine_different": float(part["different"].mean()),
            f"{head}acute": float((cosine > 0).mean()),
        }
        if head != "raw_":
            out[f"{head}sign_kept"] = float((np.sign(cosine) == sign).mean())
        if not head:
            out["retrieval_sd"] = float(each.std(ddof=1)) if len(each) > 1 else 0.0
    return out
