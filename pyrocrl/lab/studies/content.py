"""Studies of blocks that pairs of rows share: content, told from style, and from several styles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.studies import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit

ROWS, CENTRES = 6_000, 500  # rows of the fit that a read-out is trained on, and functions that it has


class ContentBlock(Study):
    """A block of latents by nonlinear regression on its estimate: block_r2 of the content, style_r2 of the style, of
    which an estimate of independent content tells nothing. cca_: of as many canonical correlations of partners;
    linear_r2: of linear regression of the content on x, which knows the truth."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        fitted = result.data
        assert fitted is not None
        few = fitted.rows_at(fitted.spread(ROWS))
        z, style, count = data.truth["z"], data.truth["private"], data.truth["z"].shape[1]
        estimate, own = result.latents(data), result.latents(few)
        out = {"held_out": float(result.weights @ result.scores), "r2": metrics.r2(z, estimate)}
        out["linear_r2"] = metrics.linear_r2(data.x, z)
        matrix = canonical(fitted, count)
        for name, train, test in (("", own, estimate), ("cca_", few.x @ matrix, data.x @ matrix)):
            out[f"{name}block_r2"] = told(train, few.truth["z"], test, z)
            out[f"{name}style_r2"] = told(train, few.truth["private"], test, style)
        return out


class StyleBlocks(Study):
    """Blocks that pairs of some kinds share, by nonlinear regression on estimates of their own: content_r2; styles_r2,
    mean over styles, and styles_least; leak_r2, the most that an estimate tells of another block, which is independent
    of it; given_r2, of the least told style from its estimate and that of content. cca_: of as many canonical
    correlations of partners, of the pairs that share content and no style or content and this style alone. pca_: of as
    many of the first principal components as the block has latents. regression_: linear, on x, and
    linear_r2 its mean over latents."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        fitted = result.data
        assert fitted is not None
        found = result.chains.chain(result.reference).kept()
        own = found.block.cpu().numpy()
        blocks = [np.flatnonzero(own == b) for b in range(len(found.names))]
        few, z = fitted.rows_at(fitted.spread(ROWS)), data.truth["z"]
        goal, here, there = few.truth["z"], result.latents(few), result.latents(data)
        out = {"held_out": float(result.weights @ result.scores), "linear_r2": metrics.linear_r2(data.x, z)}
        reads = {"": [(here[:, b], there[:, b]) for b in blocks]}
        maps = of_kinds(fitted, found.names, [len(b) for b in blocks])
        reads["cca_"] = [(few.x @ m, data.x @ m) for m in maps]
        axes = np.linalg.eigh(np.cov((fitted.x / fitted.x.std(0)).T))[1][:, ::-1] / fitted.x.std(0)[:, None]
        reads["pca_"] = [(few.x @ axes[:, : len(b)], data.x @ axes[:, : len(b)]) for b in blocks]
        for name, pairs in reads.items():
            each = [told(a, goal[:, b], c, z[:, b]) for (a, c), b in zip(pairs, blocks, strict=True)]
            out[f"{name}content_r2"], out[f"{name}styles_r2"] = each[0], float(np.mean(each[1:]))
            out[f"{name}styles_least"] = min(each[1:])
            if name != "pca_":
                others = [np.setdiff1d(np.arange(z.shape[1]), b) for b in blocks]
                leaks = [told(a, goal[:, o], c, z[:, o]) for (a, c), o in zip(pairs, others, strict=True)]
                out[f"{name}leak_r2"] = max(leaks)
        linear = [metrics.linear_r2(data.x, z[:, b]) for b in blocks]
        out["regression_content_r2"], out["regression_styles_r2"] = linear[0], float(np.mean(linear[1:]))
        joint = [np.concatenate([blocks[0], b]) for b in blocks[1:]]
        out["given_r2"] = min(
            told(here[:, j], goal[:, b], there[:, j], z[:, b]) for j, b in zip(joint, blocks[1:], strict=True)
        )
        return out

    def tell(self, result: Fit, data: Data) -> dict[str, Any]:
        return {}


def of_kinds(data: Data, names: list[str], sizes: list[int]) -> list[np.ndarray]:
    """(feature, latent of the block) of each block: directions of the largest canonical correlations between partners
    that share content alone, and of a style those that partners who share it as well have more in common."""
    after = np.flatnonzero(data.after & (data.partner >= 0))
    value, vector = np.linalg.eigh(np.cov(data.x.T))
    white = vector / np.sqrt(np.maximum(value, 1e-12 * value[-1]))
    cross = {}
    for k, kind in enumerate(data.env_names):
        rows = after[data.env[after] == k]
        one, other = ((data.x[own] - data.x.mean(0)) @ white for own in (data.partner[rows], rows))
        product = one.T @ other / max(1, len(rows))
        cross[kind] = (product + product.T) / 2
    content = cross[names[0]]
    return [
        white @ np.linalg.eigh(content if b == 0 else cross[f"{names[0]}+{name}"] - content)[1][:, -size:]
        for b, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]


def canonical(data: Data, count: int) -> np.ndarray:
    """(feature, count) directions of the largest canonical correlations between partners."""
    after = np.flatnonzero(data.after & (data.partner >= 0))
    one, other = data.x[data.partner[after]], data.x[after]
    both = np.concatenate([one, other])
    value, vector = np.linalg.eigh(np.cov(both.T))
    white = vector / np.sqrt(np.maximum(value, 1e-12 * value[-1]))
    cross = ((one - both.mean(0)) @ white).T @ ((other - both.mean(0)) @ white) / len(one)
    found: np.ndarray = white @ np.linalg.eigh((cross + cross.T) / 2)[1][:, -count:]
    return found


def told(train: np.ndarray, goal: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """R^2 of `truth` by ridge regression on radial functions of `test`, fitted to `goal` and `train`."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    centre, scale = train.mean(0), train.std(0)
    train, test = (train - centre) / scale, (test - centre) / scale
    functions = Nystroem(gamma=0.5 / train.shape[1], n_components=min(CENTRES, len(train)), random_state=0).fit(train)
    a, b = (np.hstack([functions.transform(rows), rows]) for rows in (train, test))
    return float(r2_score(truth, Ridge(1e-2).fit(a, goal).predict(b)))
