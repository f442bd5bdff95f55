"""A small Perturb-seq screen: counts of genes in cells, knock-outs of gene programmes, everything known."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from pyrocrl.data import Data
from pyrocrl.errors import one_of, reject
from pyrocrl.options import Bounds, Seed
from pyrocrl.program import check_sizes, check_whole

CONTROL = "non-targeting"


def perturb_seq(
    seed: Seed = 0,
    rows: int = 1500,
    features: int = 60,
    latents: int = 4,
    anchors: int = 4,
    intervention: Literal["perfect", "shift"] = "perfect",
    effect: Annotated[float, Bounds(-20, 20, "[]")] = 2.0,
    control: float = 0.3,
    batches: int = 3,
    library: float = 5000.0,
    knockouts: int = 1,
    nulls: int = 0,
    escapees: float = 0.0,
) -> Data:
    """Gene programmes that regulate each other, each knocked out in turn, seen through negative-binomial counts.

    Programmes z of cell i follow a linear structural equation model under a random order:

        A_kl   ~ +-U(.5, 1) with probability .5 for k before l, else 0     (parent, child)
        z_il   = sum_k A_kl z_ik + e_il,  e_il ~ N(0, sd_l^2), sd_l ~ U(.6, 1)
        target l, perfect:  z_il = -effect + .5 e_il       its parents lose their say
        target l, shift:    z_il = sum_k A_kl z_ik + e_il - effect

    and set the rates of the genes through sparse loadings:

        M_jl   = 1 for the `anchors` genes of each programme; of the other genes three in ten load on nothing,
                 half on one and the rest on two programmes
        W_jl   = M_jl (+-U(.4, 1)), the knocked-out gene's own positive    (feature, latent)
        log mu_ij = log s_i + b_j + sum_l W_jl z_il + c_{batch(i), j},   c ~ N(0, .1^2)
        x_ij   ~ NegativeBinomial(mean mu_ij, variance mu_ij + mu_ij^2 / r_j),   r_j ~ U(2, 10)
        s_i    ~ LogNormal, median `library`, sigma .3;  library * exp(b_j) ~ LogNormal, median 3, sigma .7, at least 1

    An environment is named after its knocked-out gene, an anchor of its target: `knockouts` of each programme, and
    `nulls` more, "null_0" and so on, that change nothing. A knocked-out cell escapes with probability `escapees`: it
    follows the equations of the controls. A share `control` of the cells is "non-targeting" and the others are spread
    evenly. Truth: z, mask, loadings, graph, weight, targets, and component (data,), 1 where a knock-out changed the
    cell. Raises InputError for sizes that leave no room for the anchors.
    """
    check_sizes(features, latents)
    for name, value, low in (
        ("anchors", anchors, 1),
        ("batches", batches, 1),
        ("knockouts", knockouts, 1),
        ("nulls", nulls, 0),
        ("rows", rows, 10 * (latents + 1)),
    ):
        check_whole(name, value, low)
    if anchors * latents > features:
        reject("anchors", f"{anchors} for each of {latents} latents", f"at most {features // latents}")
    if nulls > rows:
        reject("nulls", str(nulls), f"at most as many as rows ({rows})")
    if knockouts > anchors:
        reject("knockouts", str(knockouts), f"at most one for each of the {anchors} anchors of a programme")
    one_of("intervention", intervention, ("perfect", "shift"))
    for name, number, allowed, least, most in (
        ("control", control, "a share of the cells between 0 and 1", 0.0, 1.0),
        ("library", library, "a number of molecules above 0", 0.0, np.inf),
        ("escapees", escapees, "a share of the cells from 0 to below 1", -1e-12, 1.0),
    ):
        if isinstance(number, bool) or not isinstance(number, int | float) or not least < number < most:
            reject(name, repr(number), allowed)
    rng = np.random.default_rng([2016, seed])

    order = rng.permutation(latents)
    before = order[:, None] < order[None, :]
    graph = before & (rng.random((latents, latents)) < 0.5)  # (parent, child)
    weight = np.where(graph, rng.choice([-1.0, 1.0], graph.shape) * rng.uniform(0.5, 1.0, graph.shape), 0.0)

    mask = _mask(rng, features, latents, anchors)
    size = rng.uniform(0.4, 1.0, mask.shape) * rng.choice([-1.0, 1.0], mask.shape, p=[0.3, 0.7])
    single = mask & (mask.sum(1, keepdims=True) == 1)
    knocked_out = np.stack([np.flatnonzero(single[:, k])[:knockouts] for k in range(latents)], 1).ravel()
    size[knocked_out] = np.abs(size[knocked_out])
    loadings = np.where(mask, size, 0.0)

    place = np.full(rows, -1)  # of a cell's knock-out among the knocked-out genes and the nulls, -1 for controls
    cells = rng.permutation(rows)[round(control * rows) :]
    place[cells] = np.arange(cells.size) % (knocked_out.size + nulls)
    changed = (place >= 0) & (place < knocked_out.size)
    changed &= np.random.default_rng([2016, seed, 1]).random(rows) >= escapees
    target = np.where(changed, place % latents, -1)  # latent that is changed
    z = np.zeros((rows, latents))
    noise = rng.standard_normal(z.shape) * rng.uniform(0.6, 1.0, latents)
    for k in np.argsort(order):
        hit = target == k
        z[:, k] = z @ weight[:, k] + noise[:, k]
        if intervention == "perfect":
            z[hit, k] = 0.5 * noise[hit, k]
        z[hit, k] -= effect

    batch = rng.integers(0, batches, rows)
    size_factor = library * np.exp(0.3 * rng.standard_normal(rows))
    base = np.log(np.maximum(3.0 * np.exp(0.7 * rng.standard_normal(features)), 1.0) / library)
    shift = 0.1 * rng.standard_normal((batches, features))
    mean = size_factor[:, None] * np.exp(base + z @ loadings.T + shift[batch])
    dispersion = rng.uniform(2.0, 10.0, features)
    x = rng.poisson(rng.gamma(dispersion, mean / dispersion))

    names = [f"gene_{j:0{len(str(features - 1))}d}" for j in range(features)]
    empty = [f"null_{i}" for i in range(nulls)]
    labels = np.array([*(names[j] for j in knocked_out), *empty, CONTROL])  # position -1 is the control
    targets: dict[str, tuple[int, ...]] = {names[j]: (i % latents,) for i, j in enumerate(knocked_out)}
    targets |= {name: () for name in empty}
    return Data(
        x,
        env=labels[place],
        targets=targets,
        control=CONTROL,
        counts=True,
        size_factor=size_factor,
        batch=[f"replicate_{b + 1}" for b in batch],
        feature_names=names,
        truth={
            "z": z,
            "mask": mask.astype(int),
            "loadings": loadings,
            "graph": graph.astype(int),
            "weight": weight,
            "targets": targets,
            "component": changed.astype(int),
        },
        name="perturb_seq",
    )


def _mask(rng: np.random.Generator, features: int, latents: int, anchors: int) -> np.ndarray:
    """(feature, latent) which genes belong to which programmes, in a random order of the genes."""
    mask = np.zeros((features, latents), dtype=bool)
    for j in range(features):
        if j < anchors * latents:
            mask[j, j % latents] = True
        else:
            several = rng.choice(3, p=[0.3, 0.5, 0.2])
            mask[j, rng.choice(latents, min(several, latents), replace=False)] = True
    return rng.permutation(mask)
