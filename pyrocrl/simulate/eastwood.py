"""Pairs of rows of one thing under several transforms, of which both have the same parameters of one."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from pyrocrl.data import Data
from pyrocrl.options import Bounds, Deviation, Seed
from pyrocrl.program import check_sizes
from pyrocrl.simulate.ahuja import SLOPE, well_conditioned

CONTENT = "content"


def eastwood2023(
    seed: Seed = 0,
    pairs: Annotated[int, Bounds(8, 1_000_000)] = 20_000,
    content: Annotated[int, Bounds(1, 200)] = 4,
    styles: Annotated[int, Bounds(1, 20)] = 3,
    size: Annotated[int, Bounds(1, 20)] = 2,
    features: int | None = None,
    layers: Annotated[int, Bounds(0, 10)] = 3,
    draws: Annotated[int, Bounds(1, 1_000_000)] = 25_000,
    across: bool = False,
    change: Annotated[float, Bounds(0, 1, "(]")] = 1.0,
    depends: bool = False,
    turns: Annotated[float, Bounds(0, 100, "[]")] = 0.0,
    moved: Annotated[float, Bounds(0, 1, "[]")] = 0.0,
    noise: Deviation = 0.0,
) -> Data:
    """Numerical data after Eastwood et al. (2023), "Self-supervised disentanglement by leveraging structure in data
    augmentations": transform m changes the style block m, and a pair says whose parameters both of its rows have.

    Content c ~ N(0, I). Styles s_m ~ N(0, I), or where they depend on content N(B c, I) / sqrt 2, entries of B ~ N(0,
    1) over the root of content. Pairs are of `styles` + 1 kinds, as many of each: both rows have the same content, and
    of the styles none ("content") or one ("content+style_m"); of the others the share `change` of the variance is drawn
    anew. across: as many kinds more ("style_m"), both rows of which have the same style of two things: content and the
    other styles are drawn anew. x = g(c, s), g as in `ahuja2022_pairs`: `layers` of leaky ReLUs (slope .2); 0 = linear.

    Beside the paper: turns: g turns the first two latents of a style by this angle times the first of content, in
    radians; moved: share of the pairs that keep content whose content is drawn anew all the same; noise: of x, in
    deviations of each feature. features: None = as many as latents. Truth: z, content and then the styles in order.
    """
    latents = content + styles * size
    features = latents if features is None else features
    check_sizes(features, latents, least=2, square=True)
    rng = np.random.default_rng([2023, content, styles, size, seed])
    slope = rng.standard_normal((content, styles * size)) / np.sqrt(content)
    block = np.repeat(np.arange(styles + 1), [content, *(size,) * styles])  # of each latent, 0 = content
    names = [f"style_{m}" for m in range(styles)]
    kinds = [CONTENT, *(f"{CONTENT}+{name}" for name in names), *(names if across else [])]
    keeps = np.array([[name in kind.split("+") for name in [CONTENT, *names]] for kind in kinds])
    kind = np.arange(pairs) % len(kinds)
    kept = keeps[kind][:, block]  # (pair, latent)
    kept[:, :content] &= rng.random((pairs, 1)) >= moved
    own = rng.standard_normal((pairs, 2, latents))
    same = np.where(block == 0, 0.0, np.where(keeps[kind, 0], 1 - change, 0.0)[:, None])  # of one thing's styles
    own[:, 1] = np.where(kept, own[:, 0], np.sqrt(same) * own[:, 0] + np.sqrt(1 - same) * own[:, 1])
    z = own.copy()
    if depends:
        s = (own[:, :, :content] @ slope + own[:, :, content:]) / np.sqrt(2)
        z[:, :, content:] = s
        z[:, 1] = np.where(kept, z[:, 0], z[:, 1])
    inner = z.copy()
    for first in range(content, latents, size) if size > 1 and turns else ():
        angle = turns * z[:, :, 0]
        one, two = z[:, :, first], z[:, :, first + 1]
        inner[:, :, first] = np.cos(angle) * one - np.sin(angle) * two
        inner[:, :, first + 1] = np.sin(angle) * one + np.cos(angle) * two
    x = inner.reshape(-1, latents)
    for layer in range(max(layers, 1)):
        x = x @ well_conditioned(rng, latents, latents if layer < layers - 1 else features, draws)
        x = np.where(x > 0, x, SLOPE * x) if layers else x
    return Data(
        x=x + noise * x.std(0) * rng.standard_normal(x.shape) if noise else x,
        env=np.repeat(np.array(kinds)[kind], 2),
        pair=np.repeat(np.arange(pairs), 2),
        step=np.tile([0, 1], pairs),
        truth={"z": z.reshape(-1, latents)},
        name="eastwood2023",
    )
