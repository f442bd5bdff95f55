"""Views that each see some of the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyrocrl import simulate
from pyrocrl.data import Data
from pyrocrl.lab.suite.case import FEW, Case

LINEAR, NOISE = "x is linear in the latents", "noise is independent between features"
ONE = "latents of different views are not functions of each other"
SHOWN = "every view clearly shows all latents that it sees"
LACKS = "which views a row lacks says nothing of its latents"


def sights(seed: int, how: str = "", rows: int = 1000, **options: Any) -> Data:
    """`yao2024`. how: "bent", features through a cubic; "gone", a row lacks the first view where the first latent is
    large; "never", no row has the second and the last view; "flat", the last view shows one combination less than it
    sees; "sum", the first shows only the sum of two latents; "faint", the second shows the first latent at a fiftieth;
    "pair", the first view's private latent is in two features of it; "noise", that of two features of each view
    correlates."""
    data = simulate.draw("yao2024", seed, rows=rows, **options)
    x, z, rng = data.x.copy(), data.truth["z"], np.random.default_rng([24, seed])
    loadings, view = data.truth.get("loadings"), np.asarray(data.view)
    first, last = view == 0, view == view.max()

    def moved(which: np.ndarray, to: np.ndarray) -> np.ndarray:
        """x with these loadings (feature of the view, latent) in place of its own."""
        assert loadings is not None
        out = x.copy()
        out[:, which] += z @ (to - loadings[which]).T
        return out

    if how == "bent":
        x = x + 0.3 * x**3
    elif how == "gone":
        x[np.ix_(z[:, 0] > 0.5, first)] = np.nan
    elif how == "never":
        odd = np.arange(rows) % 2 == 0
        x[np.ix_(odd, view == 1)], x[np.ix_(~odd, last)] = np.nan, np.nan
    elif how == "flat":
        assert loadings is not None
        u, s, w = np.linalg.svd(loadings[last], full_matrices=False)
        s[int((s > 1e-9).sum()) - 1] = 0.0
        x = moved(last, u * s @ w)
    elif how == "sum":
        assert loadings is not None
        x = moved(first, loadings[first][:, :1] * data.truth["mask"][first])
    elif how == "faint":
        assert loadings is not None
        x = moved(view == 1, loadings[view == 1] * np.where(np.arange(z.shape[1]) == 0, 0.02, 1.0))
    elif how == "pair":
        assert loadings is not None
        alone = np.flatnonzero(data.truth["mask"][first].any(0) & ~data.truth["mask"][~first].any(0))[0]
        kept = np.where(np.arange(first.sum())[:, None] < 2, 1.0, np.arange(z.shape[1]) != alone)
        x = moved(first, loadings[first] * kept)
    elif how == "noise":
        for v in range(int(view.max()) + 1):
            x[:, np.flatnonzero(view == v)[:2]] += 0.5 * rng.standard_normal((rows, 1))
    truth = {"z": z, "mask": data.truth["mask"]}
    return Data(x, view=data.view_labels(), truth=truth, name="sights")


def sight_cases() -> list[Case]:
    model = "multiview"

    def case(
        name: str, kind: str, breaks: str = "", how: str = "", told: Mapping[str, Any] | None = None, **world: Any
    ) -> Case:
        draw: Callable[[int], Data] = lambda seed: sights(seed, how, **world)  # noqa: E731
        return Case(f"{model}: {name}", model, kind, draw, told or {}, FEW, names=breaks or "views", breaks=breaks)

    private: dict[str, Any] = {"sees": "private"}
    return [
        case("four views of five of six latents", "identified"),
        case("three views, latents that depend on each other", "identified", **private, dependent=True),
        case("rows that lack a view", "identified", lacks=0.7),
        case("two views", "identified", sees="two"),
        case("uniform latents", "identified", rows=2000, law="uniform"),
        case("private latents that correlate .9", "identified", **private, rows=2000, alike=0.9),
        case("features of as much noise as latents", "identified", **private, rows=2000, noise=1.0),
        case("60 rows", "small", rows=60),
        case("150 rows, private latents that correlate .97", "small", **private, rows=150, alike=0.97),
        case("nothing in common", "open", "latents_shared", sees="apart"),
        case("two views never in the same row", "open", "views_paired", "never", rows=2000),
        case("a view that shows the sum of two latents alone", "open", "views_tell", "sum", sees="chain", rows=2000),
        case("a private latent of two features", "open", "noise_told_apart", "pair", **private),
        case("views of as many features as latents", "misspecified", "sees_told", features=6, noise=0.5),
        case("200 rows of much noise", "misspecified", "shared_as_one", **private, rows=200, noise=2.0),
        case("a latent too few", "misspecified", "views_counted", told={"latents": 5}),
        case("a latent too many", "misspecified", "views_counted", told={"latents": 7}),
        case("private latents that are one", "word", ONE, **private, alike=0.9999, told={"latents": 5}),
        case("a view that shows a combination less than it sees", "word", SHOWN, "flat", **private, rows=2000),
        case("a view that hardly shows a latent", "word", SHOWN, "faint", **private),
        case("features bent", "misspecified", LINEAR, "bent", rows=2000),
        case("views of nonlinear mixings", "misspecified", LINEAR, rows=4000, layers=2),
        case("noise of features that correlates", "misspecified", NOISE, "noise"),
        case("rows lack a view by their latents", "misspecified", LACKS, "gone", rows=2000),
    ]
