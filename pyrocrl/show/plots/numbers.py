"""The numbers behind the pictures, read off a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from pyrocrl.errors import one_of, reject
from pyrocrl.judge.metrics import weighted_quantiles
from pyrocrl.show.plots.style import PRESENT, SHOWN, Floats, shortened

INTERVAL = (0.05, 0.5, 0.95)  # quantiles of a median with its 90 % interval


def chain_weights(tree: xr.DataTree) -> Floats:
    """(chain,) the tree's stacking weights, summing to 1; equal where it has none."""
    stats = group_of(tree, "sample_stats", required=False)
    if stats is not None and "chain_weight" in stats:
        weights = np.asarray(stats["chain_weight"].to_numpy(), dtype=np.float64)
        return np.asarray(weights / weights.sum())
    chains = group_of(tree, "posterior").sizes["chain"]
    return np.full(chains, 1.0 / chains)


def posterior_mean(tree: xr.DataTree, name: str) -> xr.DataArray | None:
    """The posterior mean of a variable over draws and weighted chains; None where the tree has no such variable."""
    posterior = group_of(tree, "posterior")
    if name not in posterior:
        return None
    value = posterior[name].transpose("chain", "draw", ...)
    by_chain = value.to_numpy().mean(1, dtype=np.float64)
    mean = np.tensordot(chain_weights(tree), by_chain, 1)
    return xr.DataArray(mean, dims=value.dims[2:], coords={d: value[d] for d in value.dims[2:] if d in value.coords})


def latent_means(tree: xr.DataTree) -> xr.DataArray:
    """(data, latent) posterior means of the latents."""
    mean = posterior_mean(tree, "z")
    if mean is None:
        reject("tree", "no z in its posterior", "the tree of a model with latents z")
    return with_names(mean.transpose("data", "latent"))


def inclusion(tree: xr.DataTree) -> xr.DataArray | None:
    """(feature, latent) posterior inclusion probabilities of the mask, or None."""
    mean = posterior_mean(tree, "mask")
    return None if mean is None else with_names(mean.transpose("feature", "latent"))


def loadings(tree: xr.DataTree) -> xr.DataArray:
    """(feature, latent) signed loadings; the attribute `kind` says of which kind.

    "loading": the posterior mean of the model's `loadings`, times its mask where it has one. "correlation", for
    models without: of the feature (log(1 + x / size factor) for counts) with the latent's posterior mean.
    """
    posterior = group_of(tree, "posterior")
    if "loadings" in posterior and {"feature", "latent"} <= set(posterior["loadings"].dims):
        value = posterior["loadings"] * posterior["mask"] if "mask" in posterior else posterior["loadings"]
        only = xr.DataTree.from_dict({"posterior": xr.Dataset({"loadings": value}), "sample_stats": _weight_set(tree)})
        mean = posterior_mean(only, "loadings")
        assert mean is not None
        return with_names(mean.transpose("feature", "latent")).assign_attrs(kind="loading")
    z = latent_means(tree)
    x, names = _seen(tree)
    r = _correlation(x, z.to_numpy())
    return xr.DataArray(
        r, dims=("feature", "latent"), coords={"feature": names, "latent": z["latent"]}, attrs={"kind": "correlation"}
    )


def explained(tree: xr.DataTree) -> NDArray[np.float64]:
    """(latent,) mean squared correlation of the features with each latent: the share of their variance it goes with.

    Latents that are correlated share what they have in common.
    """
    x, _ = _seen(tree)
    return (_correlation(x, latent_means(tree).to_numpy()) ** 2).mean(0)


def ranking(strength: ArrayLike, loading: ArrayLike) -> NDArray[np.int64]:
    """Positions of features by decreasing probability; those within a hundredth by the size of their loading."""
    p, size = np.asarray(strength, dtype=np.float64), np.abs(np.asarray(loading, dtype=np.float64))
    return np.lexsort((-size, -np.round(p, 2)))


def shifts(tree: xr.DataTree, reference: str | None = None) -> xr.Dataset:
    """How each environment moves the latents' posterior means away from the `reference` environment.

    shift (env, latent): difference of means in standard deviations of the reference; spread (env, latent): ratio
    of standard deviations; auroc (env, latent): the probability that a row of the environment lies above one of
    the reference; rows (env,). `reference`: a name; None = the control, the tree's attribute `control`;
    without one an environment is compared with all other rows. The attribute `reference` says which; NaN where there
    is nothing to compare with.
    """
    z, labels, names = means_by_environment(tree)
    reference = reference_of(tree, names, reference)
    names = [reference, *(n for n in names if n != reference)] if reference else names
    values = z.to_numpy()
    shift, ratio, auroc = np.full((3, len(names), values.shape[1]), np.nan)
    rows = np.zeros(len(names), dtype=np.int64)
    for e, name in enumerate(names):
        here = labels == name
        there = ~here if reference is None else labels == reference
        rows[e] = here.sum()
        if not there.any():
            continue
        base = values[there]
        spread = base.std(0)
        spread = np.where(spread > 0, spread, np.where(values.std(0) > 0, values.std(0), 1.0))
        shift[e] = (values[here].mean(0) - base.mean(0)) / spread
        ratio[e] = values[here].std(0) / spread
        auroc[e] = 0.5 if name == reference else _auroc(values[here], base)
    return xr.Dataset(
        {
            "shift": (("env", "latent"), shift),
            "spread": (("env", "latent"), ratio),
            "auroc": (("env", "latent"), auroc),
            "rows": ("env", rows),
        },
        coords={"env": names, "latent": z["latent"].to_numpy()},
        attrs={"reference": reference or "all other rows"},
    )


def edges(tree: xr.DataTree) -> xr.Dataset | None:
    """Edges of probability from .1 on, the surest first: parent, child and probability (edge,), and where the model has
    weights also weight (edge, level), its quantiles .05, .5 and .95 over draws with the edge; None without a graph."""
    mean = posterior_mean(tree, "graph")
    if mean is None:
        return None
    mean = mean.transpose("parent", "child")
    p, names = mean.to_numpy(), [str(n) for n in with_names(mean)["parent"].to_numpy()]
    pairs = [(i, j) for i, j in np.argwhere(p >= SHOWN) if i != j]
    pairs.sort(key=lambda pair: -p[pair])
    out: dict[str, Any] = {
        "parent": ("edge", [names[i] for i, _ in pairs]),
        "child": ("edge", [names[j] for _, j in pairs]),
        "probability": ("edge", np.array([p[pair] for pair in pairs])),
    }
    posterior = group_of(tree, "posterior")
    if "weight" in posterior and {"parent", "child"} <= set(posterior["weight"].dims):
        order = ("chain", "draw", "parent", "child")
        weight, present = (posterior[v].transpose(*order).to_numpy() for v in ("weight", "graph"))
        share = np.broadcast_to(chain_weights(tree)[:, None], weight.shape[:2])
        levels = np.full((len(pairs), 3), np.nan)
        for at, (i, j) in enumerate(pairs):
            use = (present[:, :, i, j] > 0) & (share > 0)
            if use.any():
                levels[at] = np.ravel(weighted_quantiles(weight[:, :, i, j][use], share[use], INTERVAL))
        out["weight"] = (("edge", "level"), levels)
    return xr.Dataset(out, coords={"level": list(INTERVAL)})


def strongest(found: xr.Dataset, k: int, top: int) -> NDArray[np.int64]:
    """Positions of the `top` features that setting latent k changes most, of those whose interval leaves out 0;
    found: of `show.effects.effects`."""
    low, middle, high = found["of_features"].to_numpy()[k].T
    order = np.argsort(-np.abs(middle), kind="stable")
    return order[(low * high > 0)[order]][:top]


def group_of(tree: xr.DataTree, name: str, required: bool = True) -> Any:
    if not isinstance(tree, xr.DataTree):
        reject("tree", f"a {type(tree).__name__}", "the DataTree that fit.posterior() returns")
    if name in tree.children:
        return tree[name]
    if required:
        reject("tree", f"no group {name!r}", f"a tree with it; this one has {', '.join(tree.children) or 'none'}")
    return None


def _weight_set(tree: xr.DataTree) -> xr.Dataset:
    return xr.Dataset({"chain_weight": ("chain", chain_weights(tree))})


def with_names(value: xr.DataArray) -> xr.DataArray:
    """With coordinates on every dimension: positions where the tree has no names."""
    return value.assign_coords({d: [str(i) for i in range(n)] for d, n in value.sizes.items() if d not in value.coords})


def labels_of(value: xr.DataArray, dim: str) -> list[str]:
    return [shortened(str(v)) for v in (value[dim].to_numpy() if dim in value.coords else range(value.sizes[dim]))]


def means_by_environment(tree: xr.DataTree) -> tuple[xr.DataArray, NDArray[np.str_], list[str]]:
    """Posterior means (row, latent) of all rows, also where draws are of some; each row's environment; their names."""
    constant = group_of(tree, "constant_data", required=False)
    if constant is None or "latent_mean" not in constant:
        return latent_means(tree), *_environments(tree)
    labels = np.asarray(constant["row_env"].to_numpy()).astype(str)
    z = with_names(constant["latent_mean"].transpose("row", "latent"))
    return z, labels, [str(e) for e in np.unique(labels)]


def _environments(tree: xr.DataTree) -> tuple[NDArray[np.str_], list[str]]:
    """(data,) names of the rows' environments, and the sorted names that occur."""
    rows = group_of(tree, "posterior")["z"].sizes["data"]
    constant = group_of(tree, "constant_data", required=False)
    if constant is None or "env" not in constant:
        return np.full(rows, "observational"), ["observational"]
    labels = np.asarray(constant["env"].to_numpy()).astype(str)
    return labels, [str(e) for e in np.unique(labels)]


def reference_of(tree: xr.DataTree, names: Sequence[str], reference: str | None = None) -> str | None:
    """The environment that others are compared with, see `shifts`."""
    if reference is not None:
        return one_of("reference", reference, names)
    control = tree.attrs.get("control")
    return control if control in names else None


def observed_rows(tree: xr.DataTree) -> tuple[Floats, list[str]]:
    x = group_of(tree, "observed_data")["x"].transpose("data", "feature")
    names = x["feature"].to_numpy() if "feature" in x.coords else range(x.sizes["feature"])
    return np.asarray(x.to_numpy(), dtype=np.float64), [str(n) for n in names]


def _seen(tree: xr.DataTree) -> tuple[Floats, list[str]]:
    """(data, feature) x on the scale where it is roughly linear in latents: log(1 + x / s) for counts."""
    x, names = observed_rows(tree)
    told = group_of(tree, "observed_data")["x"].attrs.get("counts")
    if (x >= 0).all() and (x == np.round(x)).all() if told is None else told:
        constant = group_of(tree, "constant_data", required=False)
        size = constant["size_factor"].to_numpy() if constant is not None and "size_factor" in constant else None
        x = np.log1p(x if size is None else x * (size.mean() / size)[:, None])
    return x, names


def latents_in_use(tree: xr.DataTree) -> NDArray[np.bool_]:
    """(latent,) whether a latent is in use: with a mask, some feature includes it; all of them otherwise."""
    pip = inclusion(tree)
    latents = group_of(tree, "posterior")["z"].sizes["latent"]
    every = np.ones(latents, dtype=np.bool_)
    used = every if pip is None else np.asarray((pip.to_numpy() > PRESENT).any(0), dtype=np.bool_)
    return used if used.any() else every


def mean_edge_weights(tree: xr.DataTree) -> Floats | None:
    """(parent, child) mean weight over the draws that have the edge, or None."""
    posterior = group_of(tree, "posterior")
    if "weight" not in posterior or not {"parent", "child"} <= set(posterior["weight"].dims):
        return None
    order = ("chain", "draw", "parent", "child")
    weight, present = (posterior[v].transpose(*order).to_numpy() for v in ("weight", "graph"))
    chain = chain_weights(tree)
    total = np.einsum("c,cdij->ij", chain, weight * present)
    count = np.einsum("c,cdij->ij", chain, present.astype(np.float64))
    return np.asarray(total / np.maximum(count, 1e-12))


def standardised(z: Floats) -> Floats:
    """Columns with mean 0 and standard deviation 1; a constant column becomes 0."""
    spread = z.std(0)
    alive = spread > 1e-12 * np.maximum(np.abs(z).max(0), 1e-300)
    return np.asarray(np.where(alive, z - z.mean(0), 0.0) / np.where(alive, spread, 1.0))


def _correlation(x: Floats, z: Floats) -> Floats:
    """(feature, latent) correlation over the rows in which the feature was measured; 0 where either is constant."""
    there = np.isfinite(x)
    count = np.maximum(there.sum(0), 1)[:, None]
    x = np.where(there, x, 0.0)
    x = np.where(there, x - x.sum(0) / count[:, 0], 0.0)
    z = z - z.mean(0)
    spread = np.sqrt(np.maximum(there.T @ z**2 / count - (there.T @ z / count) ** 2, 0.0))
    scale = np.sqrt((x**2).sum(0)[:, None] / count) * spread
    return np.asarray(np.where(scale > 1e-12 * scale.max(), x.T @ z / count / np.maximum(scale, 1e-300), 0.0))


def _auroc(above: Floats, below: Floats) -> Floats:
    """(latent,) probability that a row of `above` exceeds one of `below`, ties counting half (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([above, below]), axis=0)[: len(above)]
    n = len(above)
    return np.asarray((ranks.sum(0) - n * (n + 1) / 2) / (n * len(below)))
