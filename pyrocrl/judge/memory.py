"""What an auto-encoder remembers, and whether signatures of perturbations are alike across contexts in its latents.

A signature is the profile of a context under a perturbation less the context's mean control profile; in data without a
control, the profile itself. Environments are perturbations, batches contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import xarray as xr

from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.exact.attractors import iterate, spectral_radius
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fitted import Fit
from pyrocrl.options import Bounds, Natural, Positive, Seed, Size, checked
from pyrocrl.turns import drawing, reseed

KEPT = 0.9  # share of the variance of x that principal components hold
Array = np.ndarray


@checked
def attractors(
    fit: Fit,
    data: Data | None = None,
    *,
    noise: Sequence[Positive] = (0.1, 0.5, 1.0),
    starts: Natural = 100,
    steps: Size = 1000,
    tolerance: Annotated[float, Bounds(0, 1)] = 1e-3,
    seed: Seed = 0,
) -> xr.Dataset:
    """How the maps of an auto-encoder act at rows and around them, chain by chain, in deviations of the features.

    radius (chain, data): spectral radius of the Jacobian at a row, which is an attractor where it is below 1 and
    `error` 0. error (chain, data): root mean square of f(x) - x. recalled (chain, noise, data): whether iterates of f
    from the row plus normal noise of that deviation come within `tolerance` of it, root mean square, in at most `steps`
    steps. basin (chain, data): the share of `starts` random points, normal as standardised features are, whose iterates
    end at the row; what is left went elsewhere, or nowhere. data: None = the rows of the fit; a Jacobian costs
    features^3 a row and chain. Raises InputError for fits of models that are no auto-encoders.
    """
    if not fit.program.auto_encodes:
        reject("fit", f"a fit of {fit.program.card.name}", "a model with a map of rows, such as overparameterized_ae")
    data = fit._data(data)
    x = fit.batch_of(data).x
    found: dict[str, list[Array]] = {name: [] for name in ("radius", "error", "recalled", "basin")}
    with drawing(), torch.no_grad():
        for chain, program in enumerate(fit.programs()):
            reseed(mix(seed, chain, 53))
            f = program.auto_encode
            far = [iterate(f, x + deviation * torch.randn_like(x), steps) for deviation in noise]
            ends = iterate(f, x.new_empty(starts, x.shape[1]).normal_(), steps)
            at = (torch.cdist(ends, x) < tolerance * x.shape[1] ** 0.5).double()
            values = {
                "radius": spectral_radius(f, x),
                "error": _size(f(x) - x),
                "recalled": torch.stack([_size(end - x) < tolerance for end in far]),
                "basin": at.mean(0) if starts else at.sum(0),
            }
            for name, value in values.items():
                found[name].append(value.cpu().numpy())
    dims = {name: ("chain", "data") for name in found} | {"recalled": ("chain", "noise", "data")}
    coords = {"noise": list(noise), "data": data.row_labels()}
    return xr.Dataset({name: (dims[name], np.stack(value)) for name, value in found.items()}, coords=coords)


def _size(x: torch.Tensor) -> torch.Tensor:
    """(rows,) root mean square of each row."""
    return x.square().mean(1).sqrt()


@checked
def alignment(fit: Fit, data: Data | None = None) -> xr.Dataset:
    """Signatures of the same perturbation in two contexts: how alike they are, in x and in each chain's latents.

    space: "x", standardised features; "pca", the principal components that hold .9 of the variance of x; "white", these
    with variance 1; "chain 0", ... the latents of each chain. pair: a perturbation measured in `context` and in
    `other`, each order a pair. cosine (space, pair): of the two signatures. found (space, pair): whether, of all
    signatures in `other`, the one most like that in `context` is of the same perturbation; chance (pair,): of finding
    it blindly. different (space,): the mean absolute cosine of two perturbations in two contexts: cosines that grow for
    these as well say that the space has fewer directions, not that perturbations act alike. data: None = the rows of
    the fit. Raises InputError for a single context, for contexts without rows of the control, and where no perturbation
    was measured in two contexts.
    """
    data = fit._data(data)
    if len(data.batch_names) < 2:
        reject("batch", "one context", "two or more (in the shell --batch COLUMN)")
    known = set(zip(data.batch.tolist(), data.env.tolist(), strict=True))
    lacks = [name for c, name in enumerate(data.batch_names) if (c, 0) not in known]
    if data.control is not None and lacks:
        reject("control", f"no row of {data.control!r} in context {lacks[0]!r}", "rows of it in every context")
    x = fit.batch_of(data).x.double().cpu().numpy()
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(s**2), KEPT * (s**2).sum())) + 1
    spaces = {"x": x, "pca": u[:, :kept] * s[:kept], "white": u[:, :kept]}
    spaces |= {f"chain {k}": z for k, z in enumerate(fit.chain_latents(data))}
    place, at = np.unique(data.batch * len(data.env_names) + data.env, return_inverse=True)
    context, perturbation = place // len(data.env_names), place % len(data.env_names)
    told = np.full(len(place), True) if data.control is None else perturbation > 0
    c, d = context[told], perturbation[told]
    a, b = np.nonzero((d[:, None] == d) & (c[:, None] != c))
    if not a.size:
        reject("data", "no perturbation in two contexts", "one or more that was measured in two")
    rivals = c[:, None] == c[b]  # (signature, pair)
    cosine, found, different = [], [], []
    for value in spaces.values():
        mean = np.zeros((len(place), value.shape[1]))
        np.add.at(mean, at, value)
        mean /= np.bincount(at)[:, None]
        level = np.zeros((len(data.batch_names), value.shape[1]))
        level[context[~told]] = mean[~told]
        signature = mean[told] - level[c]
        signature /= np.maximum(np.linalg.norm(signature, axis=1, keepdims=True), 1e-300)
        like = signature @ signature.T
        cosine.append(like[a, b])
        found.append(np.where(rivals, like[:, a], -np.inf).argmax(0) == b)
        different.append(
            np.abs(like[(d[:, None] != d) & (c[:, None] != c)]).mean() if len(np.unique(d)) > 1 else np.nan
        )
    names = np.array(data.batch_names), np.array(data.env_names)
    along = {"context": names[0][c[a]], "other": names[0][c[b]], "perturbation": names[1][d[a]]}
    return xr.Dataset(
        {
            "cosine": (("space", "pair"), np.stack(cosine)),
            "found": (("space", "pair"), np.stack(found)),
            "chance": (("pair",), 1.0 / rivals.sum(0)),
            "different": (("space",), np.array(different)),
        },
        coords={"space": list(spaces)} | {name: ("pair", value) for name, value in along.items()},
        attrs={"components": kept},
    )
