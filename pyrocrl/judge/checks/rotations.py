"""Conditions that tell loadings from their rotations: noise, zeros, and the latents' laws."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy import special, stats
from scipy.sparse.csgraph import maximum_bipartite_matching

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.checks.shared import FAR, FIRING_ROWS, LEVEL, SURE, TELLING, FitCheck, rows_to_decide
from pyrocrl.turns import drawing

DIFFERS = 2.0  # deviations from which a loading is taken to differ from 0
HIDDEN = 3.5  # deviations below which a loading may be taken to be 0
MOST_LEFT_OUT = 100  # features, of the largest leverage, that are left out two at a time
AXES = 0.95  # mean squared cosine of a latent's loadings with their mean, from which its axis is told
MIN_SILENT, OFTEN = 20, 0.05  # rows without a latent, for each latent in use, and their share, that are asked for
FIXED = 0.33  # part of a direction's variance that they have


class Loadings(NamedTuple):
    """Of the reference chain, on latents in use: mean, sd (feature, latent) of loadings, and whether each is surely
    there, surely 0, and probably there, by the mask where there is one; names of the latents."""

    mean: np.ndarray
    sd: np.ndarray
    there: np.ndarray
    shut: np.ndarray
    probable: np.ndarray
    names: list[str]


def _loadings(fit: Fit) -> Loadings:
    program, used = fit.chains.chain(fit.reference), fit.in_use(fit.reference)
    with torch.no_grad():
        found, mask = program.loading_matrix(), program.mask()
    if found is None:
        raise TypeError(f"{fit.program.card.name} claims loadings but has no `loading_matrix()`: means, deviations")
    mean, sd = (value.cpu().numpy()[:, used] for value in found)
    there = np.abs(mean) > DIFFERS * sd
    pip = there.astype(float) if mask is None else mask.cpu().numpy()[:, used]
    places = fit.alignments[fit.reference].places
    names = [fit.names["latent"][int(k)] for k in places[used]]
    return Loadings(mean, sd, there, pip < 1 - SURE, pip > INCLUDED, names)


def _noise_told_apart(fit: Fit, data: Data) -> Lack | None:
    """Anderson & Rubin (1956), theorem 5.1, for loadings that differ from 0 by `DIFFERS` deviations: whichever feature
    is left out, each latent can be matched with two features of its own. Undecided where that holds for the probable
    ones."""
    if fit.program.group.mixes:
        return _two_left_out(fit, data)
    own = _loadings(fit)
    named = "permutation" not in fit.program.group.free  # by the first features
    if named and (short := [own.names[k] for k in np.flatnonzero(~own.there.diagonal())]):
        said = f"the feature that is to name {', '.join(short)} may not load on it"
        return Lack(said, "another order of the features, or more rows")
    if (lacking := _unmatched(own.there)) is None:
        return None
    names = own.names[lacking[1]], fit.names["feature"][lacking[0]]
    said = f"without {names[1]} too few features load on {names[0]} to tell it from noise"
    rows = 0.0
    if _unmatched(own.probable) is None:
        there = own.probable & (own.mean != 0)
        rows = data.rows * float(np.square(DIFFERS * own.sd[there] / own.mean[there]).max(initial=1.0))
    return Lack(said, "more features of it, or fewer latents", rows=rows)


def _two_left_out(fit: Fit, data: Data) -> Lack | None:
    """The same of latents in any rotation: no direction of theirs is one or two features' alone, beyond what loadings
    would have by chance."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        found = program.loading_matrix()
    if found is None:
        raise TypeError(f"{fit.program.card.name} claims latents but has no `loading_matrix()`: means, deviations")
    used = fit.in_use(fit.reference)
    mean, sd = (v.double().cpu().numpy()[:, used] for v in found)
    features, latents = mean.shape
    if not latents:
        return Lack("no latent is in use", "features that depend on latents")
    if features < 2 * latents + 1:
        return Lack(f"{features} features for {latents} latents in use", f"{2 * latents + 1} features or more")
    scaled = mean / np.maximum(np.sqrt(np.square(sd).mean(1)), 1e-9)[:, None]
    inner = scaled.T @ scaled
    leverage = (scaled @ np.linalg.pinv(inner) * scaled).sum(1)
    a, b = np.triu_indices(min(features, MOST_LEFT_OUT), 1)
    a, b = (np.argsort(-leverage)[side] for side in (a, b))
    without = inner - scaled[a][:, :, None] * scaled[a][:, None] - scaled[b][:, :, None] * scaled[b][:, None]
    least = np.linalg.eigvalsh(without)[:, 0]
    chance = (np.sqrt(features) + np.sqrt(latents)) ** 2
    if least.min() > chance:
        return None
    if (weakest := float(np.linalg.eigvalsh(inner)[0])) < chance:  # a direction that may not be there at all
        rows = data.rows * chance / max(weakest, chance / FAR)
        return Lack("a latent's loadings are as small as chance makes them", "fewer latents, or more rows", rows=rows)
    worst = int(least.argmin())
    pair = f"{fit.names['feature'][a[worst]]} and {fit.names['feature'][b[worst]]}"
    said = f"without {pair} too few features tell the latents from noise"
    return Lack(said, "more features of each latent, or fewer latents")


def _unmatched(there: np.ndarray) -> tuple[int, int] | None:
    """A feature without which a latent has not two features of its own, and that latent; None where all have."""
    for left_out in range(len(there)):
        twice = scipy.sparse.csr_matrix(np.repeat(np.delete(there, left_out, 0), 2, axis=1))
        match = maximum_bipartite_matching(twice, perm_type="row")  # of each latent's two places, a feature
        if (match < 0).any():
            return left_out, int(np.argmax(match < 0)) // 2
    return None


def _simple_structure(fit: Fit, data: Data) -> Lack | None:
    """Reiersol (1950): for each latent k, loadings on the others of the features that do not load on k have full rank.

    Any loadings can be rotated until one feature less than there are latents has none on k, and some more will look as
    if they had none. How many, is binomial for loadings that are spread as those that are open, of which as many would
    not be seen as are within `HIDDEN` deviations of 0: as improbable as `LEVEL`, whichever features the rotation was
    chosen by, or it is undecided.
    """
    own = _loadings(fit)
    if not own.names:
        return Lack("no latent is in use", "features that depend on latents")
    features, latents = own.mean.shape
    if latents == 1:
        return None
    size, unsure = np.sqrt(np.square(own.mean[own.probable]).mean()), float(np.median(own.sd[own.probable]))
    unseen = min(1.0, 2 * HIDDEN * unsure / (size * np.sqrt(2 * np.pi)))
    remedy = "features that depend on other latents only"
    undecided = None
    for k, name in enumerate(own.names):
        others = np.delete(own.mean, k, 1)
        if not (_full_rank(others, ~own.probable[:, k], unsure)):
            return Lack(f"features that do not load on {name} fix too few of the others", remedy)
        free, probably = (int(zeros[:, k].sum()) - (latents - 1) for zeros in (own.shut, ~own.probable))
        rotations = special.gammaln(features + 1) - special.gammaln(latents) - special.gammaln(features - latents + 2)
        among = features - latents + 1
        sure = free > 0 and _full_rank(others, own.shut[:, k], unsure)
        chance = stats.binom.logsf(free - 1, among, unseen) + rotations if sure else 0.0
        if chance > np.log(LEVEL):
            said = f"loadings on {name} may be 0 by a rotation of dense ones"
            said += f" (p below {np.exp(chance):.2g})" if chance < np.log(0.5) else ""
            # `unseen` falls with the root of the rows
            short = stats.binom.logsf(probably - 1, among, unseen) + rotations - np.log(LEVEL)
            times = float(np.exp(max(0.0, 2 * short / probably))) if probably > 0 else np.inf
            if times > FAR:  # as many zeros as any loadings have
                return Lack(said, remedy)
            undecided = undecided or Lack(said, remedy, rows=data.rows * times)
    return undecided


def _zeros_tell(fit: Fit, data: Data) -> Lack | None:
    """Reiersol's condition of features, or of rows: those that surely are without a latent have every direction of the
    others, `FIXED` of its variance in all rows or more, and are more than rotations have without a law that is pointed
    at 0. It is of all latents alike: what is sparse in loadings may take of what is sparse in scores."""
    by_features = _simple_structure(fit, data)
    if by_features is None or not fit.in_use(fit.reference).any():
        return by_features
    by_rows = _rows_without(fit, data)
    if by_rows is None:
        return None
    said = f"{by_features.reason}, and {by_rows.reason}"
    rows = [lack.rows for lack in (by_features, by_rows) if lack.rows]
    return Lack(said, f"{by_features.remedy}, or {by_rows.remedy}", rows=min(rows, default=0.0))


def _rows_without(fit: Fit, data: Data) -> Lack | None:
    rows = data.rows_at(data.spread(FIRING_ROWS))
    program, used = fit.chains.chain(fit.reference), np.flatnonzero(fit.in_use(fit.reference))
    with drawing(), torch.no_grad():
        batch = fit.batch_of(rows)
        chance, z = program.silent(batch), program.latents(batch).double().cpu().numpy()[:, used]
    if chance is None:
        raise TypeError(f"{program.card.name} needs latents that rows are without but has no `silent()`")
    sure = chance.double().cpu().numpy()[:, used] > SURE
    share = program.silent_share().double().cpu().numpy()[:, used]
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places[used]]
    white = z / np.maximum(z.std(0), 1e-12)
    tril = np.linalg.cholesky(np.cov(white.T).reshape(len(used), -1) + 1e-9 * np.eye(len(used)))
    for k, name in enumerate(names):
        without = sure[:, k]
        needed = MIN_SILENT * len(used)
        if without.sum() < needed or without.mean() < OFTEN:
            said = f"{without.sum()} of {len(z)} rows are surely without {name}, of {needed} that are asked for"
            maybe = np.quantile(share[:, k], SURE) > OFTEN  # rows may be too few to say
            times = min(FAR, max(2.0, needed / max(without.sum(), 1))) if maybe else 0.0
            return Lack(said, f"rows without {name}", rows=data.rows * times)
        others = np.delete(np.arange(len(used)), k)
        if not len(others):
            continue
        root = np.linalg.cholesky((tril @ tril.T)[np.ix_(others, others)])
        inside = np.linalg.solve(root, (white[np.ix_(without, others)]).T)
        least = float(np.linalg.eigvalsh(inside @ inside.T / without.sum())[0])
        if least < FIXED:
            said = f"rows without {name} have {least:.1%} of a combination of the others"
            return Lack(said, f"rows with each of the others and without {name}")
    return None


def _full_rank(loadings: np.ndarray, rows: np.ndarray, unsure: float) -> bool:
    """Whether these rows of the loadings have independent columns, beyond deviations `unsure` of their entries."""
    if rows.sum() < loadings.shape[1]:
        return False
    noise = unsure * (np.sqrt(rows.sum()) + np.sqrt(loadings.shape[1]))
    return bool(np.linalg.svd(loadings[rows], compute_uv=False)[-1] > noise)


def _non_gaussian(fit: Fit, data: Data) -> Lack | None:
    """Whether all latents in use but one are surely not normal; those that may be mix with each other alone."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).non_gaussian()
    if found is None:
        raise TypeError(f"{fit.program.card.name} needs latents that are not normal but has no `non_gaussian()`")
    places, used = fit.alignments[fit.reference].places, np.flatnonzero(fit.in_use(fit.reference))
    chance = found.double().cpu().numpy()[used]
    normal = np.flatnonzero(chance < SURE)
    if len(normal) < 2:
        return None
    names = tuple(fit.names["latent"][int(places[used[k]])] for k in normal)
    each = ", ".join(f"{name} ({1 - p:.2g})" for name, p in zip(names, chance[normal], strict=True))
    wrong = 1 - float(np.sort(chance)[1])  # that one beside the most normal one is
    few = wrong < SURE and data.rows < TELLING
    rows = rows_to_decide(data.rows, min(wrong, 1 - wrong)) if wrong < 0.5 or few else 0.0
    said = f"{each} may be Gaussian (probability in brackets): these mix with each other, and with no others"
    return Lack(said, "latents of heavy tails, or more rows", rows=rows, which=names)


def _axes_told(fit: Fit, data: Data) -> Lack | None:
    """Whether the posterior settles latents' axes: a squared cosine of `AXES`, short of which falls with the rows."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).axes()
    if found is None:
        raise TypeError(f"{fit.program.card.name} needs axes that tails tell but has no `axes()`")
    places, used = fit.alignments[fit.reference].places, np.flatnonzero(fit.in_use(fit.reference))
    cosine = found.double().cpu().numpy()[used]
    few = np.flatnonzero(cosine < AXES)
    if not few.size:
        return None
    names = tuple(fit.names["latent"][int(places[used[k]])] for k in few)
    said = f"tails leave open which mixtures are {', '.join(names)} (squared cosine {cosine.min():.2f})"
    rows = data.rows * float(1 - cosine.min()) / (1 - AXES)
    return Lack(said, "more rows, or heavier tails", rows=rows, which=names)


CHECKS: dict[str, FitCheck] = {
    "noise_told_apart": _noise_told_apart,
    "simple_structure": _simple_structure,
    "zeros_tell": _zeros_tell,
    "non_gaussian": _non_gaussian,
    "axes_told": _axes_told,
}
