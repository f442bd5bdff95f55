"""Pairs of rows that share content and differ in style."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Deviation, Natural, Seed, Size
from pyrocrl.program import check_sizes, check_whole
from pyrocrl.simulate.ahuja import SLOPE, well_conditioned


def kuegelgen2021(
    seed: Seed = 0,
    pairs: Annotated[int, Bounds(2)] = 20_000,
    content: Size = 5,
    style: Size = 5,
    features: int | None = None,
    layers: Annotated[int, Bounds(0, 10)] = 3,
    draws: Annotated[int, Bounds(1, 1_000_000)] = 25_000,
    rate: Annotated[float, Bounds(0, 1, "[]")] = 0.75,
    depends: bool = False,
    never: Natural = 0,
    moved: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    noise: Deviation = 0.0,
) -> Data:
    """Von Kuegelgen et al. (2021), "Self-supervised learning with data augmentations provably isolates content from
    style": numerical data, of which styles are drawn anew where the paper adds noise to them.

    Content c ~ N(0, I). Style s ~ N(0, I), or where it depends on content, N(B c, I / 2), entries of B ~ N(0, 1) over
    the root of content. In the row after each style is, with chance `rate`, drawn anew given content. x = g(c, s), g as
    in `ahuja2022_pairs`: `layers` of leaky ReLUs (slope .2); 0 = linear.

    Beside the paper: never: how many of the styles never change; moved: share of the pairs whose content is drawn anew
    as well; noise: of x, in deviations of each feature. features: None = as many as content and style. Truth: z, the
    content; private, the style.
    """
    latents = content + style
    features = latents if features is None else features
    check_sizes(features, latents, least=2, square=True)
    check_whole("never", never, 0, style)
    rng = np.random.default_rng([2021, content, style, seed])
    slope = rng.standard_normal((content, style)) / np.sqrt(content)
    c = rng.standard_normal((pairs, content))
    c = np.stack([c, np.where(rng.random((pairs, 1)) < moved, rng.standard_normal(c.shape), c)], 1)
    own = rng.standard_normal((pairs, 2, style))
    s = c @ slope + own / np.sqrt(2) if depends else own
    kept = rng.random((pairs, style)) >= rate
    kept[:, :never] = True
    s[:, 1] = np.where(kept, s[:, 0], s[:, 1])
    z = np.concatenate([c, s], 2).reshape(-1, latents)
    x = z
    for layer in range(max(layers, 1)):
        x = x @ well_conditioned(rng, latents, latents if layer < layers - 1 else features, draws)
        x = np.where(x > 0, x, SLOPE * x) if layers else x
    return Data(
        x=x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x,
        pair=np.repeat(np.arange(pairs), 2),
        step=np.tile([0, 1], pairs),
        truth={"z": z[:, :content], "private": z[:, content:]},
        name="kuegelgen2021",
    )
