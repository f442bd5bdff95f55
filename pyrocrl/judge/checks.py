"""What data and fit show of a claim's conditions (`CHECKS`), with uncertainty.

A condition's check returns None where it holds, or a `Lack`. Tests of the fit against the data are in
`pyrocrl.judge.fit_tests`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy import special, stats
from scipy.sparse.csgraph import maximum_bipartite_matching

from pyrocrl.claims import conditions
from pyrocrl.claims.card import CONDITIONS
from pyrocrl.claims.conditions import Check, Lack, Situation
from pyrocrl.data import Data
from pyrocrl.errors import InputError
from pyrocrl.exact import equivariances, goodness
from pyrocrl.exact.sparse_factors import rival_axes
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.equivalence import class_draws
from pyrocrl.program import Carries
from pyrocrl.turns import drawing

LEVEL = 0.001  # of all tests of a fit together
SEEN = 0.05  # p from which an environment counts as unchanged
TELLING = 400  # rows of an environment from which an intervention worth the name should be seen
SURE = 0.9  # probability from which something is decided
MIN_PAIRS = 20  # pairs, or rows that follow others, that a test of them needs
MIN_STATE = 5.0  # rows in which a combination of states occurs, for it to be taken to occur
MANY = 20  # rows for each combination of states, of which one that never occurs is taken not to
RARE = 0.05  # share of the rows that a state has, which should not be overlooked
LEAST_PAIRS = 5  # that were not fitted, of which it is asked whether actions do the same in all
UNTOLD_STATES = 0.3  # share of a guess's errors about a latent's state that may be left
UNTOLD_NUMBERS = 0.1  # share of the variance of states' numbers that may be left: estimates correlate .95 with them
UNTOLD, TOLD_ROWS = 0.05, 200  # share of a latent's variance that may be open, and rows of which it is asked
MOST_ROWS = 20_000  # rows that a test of rows looks at: more find what does not matter
EVIDENT = 3.0  # nats of evidence, or half a difference of BIC, from which one of two models is preferred
DIFFERS = 2.0  # deviations from which a loading is taken to differ from 0
FAR = 100  # times the rows: what more of them would have to decide is open
HIDDEN = 3.5  # deviations below which a loading may be taken to be 0
ALIKE = 0.98  # correlation of two latents from which they are one
TOGETHER = 0.2  # part in a combination, of the largest one, from which a latent is named
TIED = 20.0  # rows' worth of what ties views that is asked for, for each latent of a view
SHOWS = 0.1  # least share of a shared latent's variance that a view shows
BY_CHANCE = 3.0  # odds of a squared correlation of two views, in those of the largest that noise has
ROTATED = 0.02  # share of a latent's variance that rotations may leave open
PARALLEL = 0.9  # cosine of two directions from which they may be one
ALONG = 0.9  # share of a latent's firing along with another from which neither is told from their sum
NEARLY_ALL = 0.95  # share of the rows of which it is asked how many latents fire
FIRING_ROWS, MIN_FIRING = 5_000, 5  # rows that are asked which latents fire, and firings that say something
MOST_LEFT_OUT = 100  # features, of the largest leverage, that are left out two at a time
AXES = 0.95  # mean squared cosine of a latent's loadings with their mean, from which its axis is told
CLASS_DRAWS = 50  # of each chain, of which it is asked what directs the edges at the response
SPANNED, HARDLY = 0.5, 0.2  # share of a direction that offsets span, and below which more rows would not show it
STEADY = 0.08  # share of a latent's variance by which it may be moved otherwise from pair to pair
BY_HEART = 0.7  # share of what is left of other pairs, below which pairs that were fitted are known by heart
LITTLE = 0.1  # share of a feature's variance that latents may leave, as noise or as latents that are not counted
REACH = 0.5  # of a latent's range, within which an offset shows how it bends
RANGE = (0.005, 0.995)  # quantiles that are its ends
HARDLY_MOVED = 1e-3  # part of a latent's range below which an action does not move it
MOST_MAPS = 4  # that commute with mechanisms, that are named
MOVED = 0.3  # deviations by which a map that nearly commutes may have moved latents: a third of one added to another
MIN_SILENT, OFTEN = 20, 0.05  # rows without a latent, for each latent in use, and their share, that are asked for
FIXED = 0.33  # part of a direction's variance that they have
RIVAL = 10.0  # nats by which latents should be likelier than others that a network finds
HELD = 0.2  # deviation of a latent in an environment that holds it, in that over all rows


# -- conditions that show in a fit -----------------------------------------------------------------------------


def situation(fit: Fit, data: Data) -> Situation:
    """What a fit knows of its data: their targets where given, else those that the reference chain has inferred."""
    program, names = fit.program, fit.names["latent"]
    hit: np.ndarray | None = None
    if data.targets is not None and program.target_mode != "unknown":
        hit = data.target_matrix(len(names))
    else:
        with torch.no_grad():
            found = fit.chains.chain(fit.reference).targets_matrix()
        if found is not None:
            hit = (found.cpu().numpy() > 0.5)[:, fit.alignments[fit.reference].permutation]
    return Situation(data, names, hit, program.intervention_kind, program.mechanism_kind)


def _of_data(check: Check) -> Callable[[Fit, Data], Lack | None]:
    return lambda fit, data: check(situation(fit, data))


def _interventions_show(fit: Fit, data: Data) -> Lack | None:
    """Environments with targets against those without, by their latents."""
    known = situation(fit, data)
    if known.hit is None or not (free := known.present & (known.hit.sum(1) == 0)).any():
        return None
    z, env = latents_of(fit, data)
    if not (natural := free[env]).any():
        return None
    shown, said = np.zeros_like(known.hit), []
    for e in np.flatnonzero(known.present & ~free):
        p = goodness.samples_differ(z[env == e], z[natural])
        shown[e] = known.hit[e] if p < SEEN else 0
        if p >= SEEN:
            said.append(f"{data.env_names[e]} (p = {p:.2g})")
    least = np.minimum(known.hit.sum(0), 1)
    short = [name for name, few in zip(fit.names["latent"], shown.sum(0) < least, strict=True) if few]
    if not short:
        return None
    reason = f"{', '.join(said)} cannot be told from the observational rows, so nothing is seen to act on"
    few = max(TELLING / np.bincount(env, minlength=len(known.hit))[known.present].min(), 0.0)
    rows = float(data.rows * few) if few > 1 else 0.0  # fewer may hide an intervention
    return Lack(f"{reason} {', '.join(short)}", "stronger interventions, or more rows of them", rows=rows)


def _two_anchors(fit: Fit, data: Data) -> Lack | None:
    """Two features that load on a latent alone, with the probability `SURE` together."""
    mask, remedy = fit.mask(), "two features of its own for each latent"
    if mask is None:
        return Lack(f"no mask, so it cannot hold that {CONDITIONS['two_anchors']}", "a model with a mask")
    present = mask > INCLUDED
    used = present.any(0)
    if not used.any():
        return Lack("no latent is in use", "features that depend on latents")
    alone = present & (present.sum(1) == 1)[:, None]
    short = [fit.names["latent"][k] for k in np.flatnonzero(used) if alone[:, k].sum() < 2]
    if not short:
        return None
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    them, lack = ("it", "lacks") if len(short) == 1 else ("them", "lack")
    return Lack(f"{', '.join(short[:3])}{more} {lack} two features that load on {them} alone", remedy)


def _pure_features(fit: Fit, data: Data) -> Lack | None:
    """Two pure features of each latent in use, with the probability `SURE`."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).pure()
    if found is None:
        raise TypeError(f"{fit.program.card.name} needs pure features but has no `pure()`: (feature, latent)")
    used, places = np.flatnonzero(fit.in_use(fit.reference)), fit.alignments[fit.reference].places
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    few = {}
    for k in used:
        none, one = 1.0, 0.0  # probabilities of so many
        for p in found[:, k].double().tolist():
            none, one = none * (1 - p), one * (1 - p) + none * p
        few[fit.names["latent"][int(places[k])]] = none + one
    worst = max(few, key=few.__getitem__)
    if few[worst] <= 1 - SURE:
        return _others_as_pure(fit, used)
    short = [name for name, p in few.items() if p > 1 - SURE]
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    rows = _times(data.rows, few[worst]) if few[worst] < SURE else 0.0  # surely not: no rows will help
    them = "it" if len(short) == 1 else "each of them"
    said = f"{', '.join(short[:3])}{more}: two features load on {them} alone with the probability {1 - few[worst]:.2g}"
    return Lack(said, "two features of its own for each latent", rows=rows)


def _others_as_pure(fit: Fit, used: np.ndarray) -> Lack | None:
    """Whether other features with proportional loadings might as well be called pure."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        found, correlation = program.loading_matrix(), program.latent_correlation()
    if found is None or correlation is None:
        return None
    loadings, error = (v.double().cpu().numpy()[:, used] for v in found)
    error = np.maximum(error, np.median(error[loadings != 0]))  # that of what is 0 is not known
    rival = rival_axes(loadings, error, correlation.double().cpu().numpy()[np.ix_(used, used)])
    if rival is None:
        return None
    a, b, k = rival
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[used[k]])]
    pair = f"{fit.names['feature'][a]} and {fit.names['feature'][b]}"
    said = (
        f"{pair}, of proportional loadings, might as well be those that load on one latent alone, in place of {name}'s"
    )
    return Lack(said, "sparser loadings, or more rows")


def _pure_children(fit: Fit, data: Data) -> Lack | None:
    """Three features of each latent in use, or two and another latent that it depends on, with the probability `SURE`:
    of two alone any loadings of one product fit as well."""
    mask, graph = fit.mask(), fit.graph()
    if mask is None or graph is None:
        raise TypeError(f"{fit.program.card.name} needs features of latents that depend on others: mask and graph")
    names, used = fit.names["latent"], np.flatnonzero((mask > INCLUDED).any(0))
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    alone = 1 - (graph + graph.T).max(0)  # of depending on no other
    for k in used:
        most = np.sort(mask[:, k])[::-1]
        two, three = float(most[:2].prod()), float(most[:3].prod()) if len(most) > 2 else 0.0
        wrong = 1 - max(three, two * (1 - float(alone[k])))
        if wrong > 1 - SURE:
            said = f"{names[k]} has two features of its own and depends on no other latent"
            said = said if two > SURE else f"{names[k]} has fewer than two features of its own"
            rows = _times(data.rows, wrong) if wrong < SURE else 0.0
            return Lack(f"{said} (probability {wrong:.2g})", "three features of its own for each latent", rows=rows)
    return None


def _clusters_apart(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        margin = fit.chains.chain(fit.reference).clusters_margin()
    if margin is None:
        raise TypeError(f"{fit.program.card.name} needs clusters that are apart but has no `clusters_margin()`")
    if float(margin) > EVIDENT:
        return None
    said = f"clusters with two merged or one split fit as well ({-float(margin):+.1f} nats of evidence)"
    return Lack(said, "more features of each latent, or more rows", rows=2.0 * data.rows)


def _not_collinear(fit: Fit, data: Data) -> Lack | None:
    used = np.flatnonzero(fit.in_use(fit.reference))
    if len(used) < 2:
        return None
    z = latents_of(fit, data, aligned=False)[0][:, used]
    r = np.abs(np.corrcoef(z.T)) - np.eye(len(used))
    if r.max() < ALIKE:
        return None
    places = fit.alignments[fit.reference].places[used]
    a, b = (fit.names["latent"][int(places[k])] for k in divmod(int(r.argmax()), len(used)))
    return Lack(f"{a} and {b} correlate {r.max():.3f}", "rows in which they differ")


def _own_features(fit: Fit, data: Data) -> Lack | None:
    """For any two latents a feature of the one that is not the other's: probable, by the mask."""
    mask = fit.mask()
    if mask is None:
        return Lack(f"no mask, so it cannot hold that {CONDITIONS['own_features']}", "a model with a mask")
    remedy = "features that depend on one of the two latents only"
    used = np.flatnonzero((mask > INCLUDED).any(0))
    if not used.size:
        return Lack("no latent is in use", "features that depend on latents")
    for a, b in itertools.permutations(used, 2):
        inside = float(np.prod(1 - mask[:, a] * (1 - mask[:, b])))  # that all features of a are features of b
        if inside > 1 - SURE:
            one, other = fit.names["latent"][a], fit.names["latent"][b]
            said = f"all features of {one} are features of {other} (probability {inside:.2g})"
            return Lack(said, remedy, rows=0.0 if inside > 0.5 else _times(data.rows, inside))
    return None


def _all_states(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        counts = fit.chains.chain(fit.reference).state_counts()
    if counts is None:
        return None
    few = float(counts.min())
    if few >= MIN_STATE:
        return None
    rows = MIN_STATE * data.rows / max(few, 1.0)
    if few < 1.0 and data.rows >= MANY * len(counts):  # not that rows are few
        rows = 0.0
    said = f"a combination of the latents' states occurs in {few:.1f} rows"
    return Lack(said, "rows of all combinations of states", rows=rows)


def _states_apart(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        margin = fit.chains.chain(fit.reference).states_margin()
    if margin is None:
        raise TypeError(f"{fit.program.card.name} needs states that are apart but has no `states_margin()`")
    if float(margin) > EVIDENT:
        if (seen := RARE * data.rows) >= 2 * MIN_STATE:
            return None
        said = f"a state of {RARE:.0%} of the rows, in {seen:.0f} of them, might be overlooked"
        return Lack(said, "more rows", rows=2 * MIN_STATE / RARE)
    said = f"two states merged, or one more component of a variable, fit as well ({-float(margin):+.1f} nats by BIC)"
    remedy = "more rows; a transformation of the features, where components are not normal or differ in noise"
    return Lack(said, remedy, rows=2.0 * data.rows)


def _states_told(fit: Fit, data: Data) -> Lack | None:
    """Whether rows show which state each latent is in. A state that no feature tells is invented by halving the noise
    of some feature, which by masks looks like a feature of its own."""
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        states = program.state_shares(fit.batch_of(data.rows_at(data.spread(MOST_ROWS))))
    if states is not None:
        return _numbers_told(fit, states.double().cpu().numpy())
    chance = fit.chain_latents(data)[fit.reference]  # (row, latent) probabilities
    wrong, guessed = np.minimum(chance, 1 - chance).mean(0), np.minimum(chance.mean(0), 1 - chance.mean(0))
    share = wrong / np.maximum(guessed, 1e-12)
    if share.max() < UNTOLD_STATES:
        return None
    worst = int(share.argmax())
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    said = f"rows show the state of {name} little better than a guess ({share[worst]:.2f} of its errors are left)"
    return Lack(said, f"fewer latents, or features that depend on {name} more strongly")


def _numbers_told(fit: Fit, chance: np.ndarray) -> Lack | None:
    """The same of latents of any number of states, by the variance of their numbers; chance: (row, latent, state)."""
    number = np.arange(chance.shape[2])
    mean = chance @ number
    inside = np.maximum((chance @ number**2 - mean**2).mean(0), 0.0)
    share = inside / np.maximum(inside + mean.var(0), 1e-12)
    if share.max() < UNTOLD_NUMBERS:
        return None
    worst = int(share.argmax())
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    said = f"rows leave {share[worst]:.0%} of the variance of the state of {name} open"
    return Lack(said, f"features that depend on {name} more strongly")


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


def _components(fit: Fit, data: Data) -> Lack | None:
    weights, _, _ = _mixture(fit)
    used = int((weights > 0.01).sum())
    return None if used >= 2 else Lack(f"{used} mixture component in use", "latents that fall into clusters")


def _variance_ratios(fit: Fit, data: Data) -> Lack | None:
    """For any two latents, the mixture against one in which components scale both alike (Kivva 2022), by BIC."""
    weights, mean, scale = _mixture(fit)
    z = latents_of(fit, data, aligned=False)[0]
    used = weights > 0.01
    start = weights[used] / weights[used].sum(), mean[used], scale[used]
    free = goodness.mixture_log_likelihood(z, *start)
    names = fit.alignments[fit.reference].places
    least, pair = np.inf, (0, 0)
    for a in range(z.shape[1]):
        for b in range(a):
            alike = goodness.mixture_log_likelihood(z, *start, alike=(a, b))
            gain = free - alike - 0.5 * (int(used.sum()) - 1) * np.log(len(z))
            if gain < least:
                least, pair = float(gain), (b, a)
    if least > EVIDENT:
        return None
    one, other = (fit.names["latent"][int(names[k])] for k in pair)
    said = f"the components' variances may have the same ratios for {one} and {other} ({least:+.1f} nats of evidence)"
    return Lack(said, "clusters whose widths differ from latent to latent")


def _mixture(fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(component,) weights, (component, latent) means and deviations of the reference chain's mixture."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).mixture()
    if found is None:
        raise TypeError(f"{fit.program.card.name} claims a mixture but has no `mixture()`: weights, means, scales")
    weights, mean, scale = (v.detach().double().cpu().numpy() for v in found)
    return weights, mean, scale


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
    rows = _times(data.rows, min(wrong, 1 - wrong)) if wrong < 0.5 or few else 0.0
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


def _number_told(fit: Fit, data: Data) -> Lack | None:
    with torch.no_grad():
        drawn = fit.chains.chain(fit.reference).number_told()
    if drawn is None:
        raise TypeError(f"{fit.program.card.name} needs the number of latents but has no `number_told()`")
    numbers, often = np.unique(drawn.cpu().numpy().astype(int), return_counts=True)
    most = fit.program.latents_count - 1
    if numbers[often.argmax()] >= most:
        return Lack(f"as many latents are in use as are offered ({most})", "more latents")
    share = often / often.sum()
    if share.max() > SURE:
        return None
    each = ", ".join(f"{number} ({p:.2f})" for number, p in zip(numbers, share, strict=True) if p > 1 - SURE)
    return Lack(f"how many latents there are is open: {each}", "more rows", rows=_times(data.rows, 1 - share.max()))


def _modulated_apart(fit: Fit, data: Data) -> Lack | None:
    """Natural parameters of the latents' laws against any that are linearly dependent over environments, by rows that
    were not fitted: a network finds differences between environments in those that it is trained on."""
    program = fit.chains.chain(fit.reference)
    law = program.modulated_law()
    if law is None:
        raise TypeError(f"{program.card.name} claims modulated latents but has no `modulated_law()`")
    z, env = latents_of(fit, unfitted(fit, data))
    found = goodness.modulation(z, env, law)
    remedy = "environments in which each latent's law differs in a way of its own"
    if found is not None and found.p < LEVEL:
        return None
    least = np.bincount(data.env)[np.unique(data.env)].min()
    rows = float(data.rows * TELLING / least) if least < TELLING else 0.0  # fewer may hide what environments do
    if found is None:
        said = (
            f"fewer environments of {goodness.FEWEST} rows that were not fitted than natural parameters, and one more"
        )
        return Lack(said, remedy, rows=rows)
    names = [name for name, part in zip(fit.names["latent"], found.share, strict=True) if part > TOGETHER]
    moves = "may differ between environments in no way of its own" if len(names) == 1 else "may move together"
    return Lack(f"the law of {', '.join(names)} {moves} (p = {found.p:.2g})", remedy, rows=rows)


def unfitted(fit: Fit, data: Data) -> Data:
    """The rows that the fit held out, or all of them where it held out none or these are other rows."""
    try:
        fitted = fit.fitted_rows(data)
    except InputError:
        return data
    return data.rows_at(np.setdiff1d(np.arange(data.rows), fitted)) if len(fitted) < data.rows else data


def _held(fit: Fit, data: Data) -> Lack | None:
    known = situation(fit, data)
    if known.hit is None:
        return None
    z, env = latents_of(fit, data)
    moving = []
    for e, k in np.argwhere(known.hit & known.present[:, None]):
        share = float(z[env == e, k].std() / max(z[:, k].std(), 1e-12))
        if share > HELD:
            moving.append(f"{fit.names['latent'][k]} varies in {data.env_names[e]} ({share:.0%} of its deviation)")
    return Lack("; ".join(moving), "interventions that hold their target") if moving else None


def _nonlinear(fit: Fit, data: Data) -> Lack | None:
    """Edges surely there whose direction is open, though neither direction's equation is seen to bend."""
    graph = fit.graph()
    with torch.no_grad():
        gain = fit.chains.chain(fit.reference).nonlinearity()
    if graph is None or gain is None:
        return None
    gain = gain.cpu().numpy()  # (parent, child)
    turning = [(i, j) for i, j in open_directions(graph) if max(gain[i, j], gain[j, i]) < EVIDENT]
    if not turning:
        return None
    names = fit.names["latent"]
    pairs = ", ".join(f"{names[i]} - {names[j]}" for i, j in turning)
    said = f"{pairs} may be turned: no equation between them is seen to bend, and no shift tells the direction"
    return Lack(said, "shifts of one of the two, or mechanism='linear', which claims what is left")


def _directions_shown(fit: Fit, data: Data) -> Lack | None:
    """Edges surely there whose direction is open, of latents whose innovations may both be normal."""
    graph = fit.graph()
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).non_gaussian()
    if graph is None or found is None:
        raise TypeError(f"{fit.program.card.name} needs innovations that tell directions but has no `non_gaussian()`")
    mixed = np.zeros(len(graph))
    places = fit.alignments[fit.reference].places
    mixed[places[places >= 0]] = found.double().cpu().numpy()[places >= 0]
    names = fit.names["latent"]
    turning = [f"{names[i]} - {names[j]}" for i, j in open_directions(graph) if max(mixed[i], mixed[j]) < SURE]
    if not turning:
        return None
    said = f"{', '.join(turning)} may be turned: innovations of both may be Gaussian, and no v-structure tells"
    return Lack(said, "innovations='gaussian', which claims what is left, or more rows")


def open_directions(graph: np.ndarray) -> list[tuple[int, int]]:
    """Pairs that are joined with the probability `SURE` while each direction has more than 1 - `SURE`."""
    nodes = range(len(graph))
    return [
        (i, j)
        for i in nodes
        for j in nodes
        if i < j and graph[i, j] + graph[j, i] > SURE and min(graph[i, j], graph[j, i]) > 1 - SURE
    ]


def _times(rows: int, wrong: float) -> float:
    """Rows after which something of this probability of being wrong is decided, its log odds growing with them."""
    odds = np.log((1 - wrong) / max(wrong, 1e-12))
    return float(rows * np.log(SURE / (1 - SURE)) / max(odds, 0.05))


def _views_tied(fit: Fit, data: Data) -> Lack | None:
    """Whether rows with several views or levels of environments tie every direction of the shared latents."""
    found = fit.chains.chain(fit.reference).ties()
    tied = found.tied.double().cpu().numpy()
    if fit.program.config["anchors"]:  # what noise of the levels adds to the least of them
        tied = np.maximum(tied - (np.sqrt(len(data.env_names)) + np.sqrt(len(tied))) ** 2, 0.0)
    needed = float(TIED * found.factors)
    if tied.min() >= needed:
        return None
    open_ = int((tied < needed).sum())
    said = f"{open_} of {len(tied)} directions of the shared latents rest on {tied.min():.0f} rows' worth of ties"
    remedy = "rows with several views, or anchors=True with more labels than shared latents"
    rows = data.rows * needed / tied.min() if tied.min() > 1 else 0.0
    return Lack(f"{said}, of {needed:.0f} that are asked", remedy, rows=rows)


def _shared_in_views(fit: Fit, data: Data) -> Lack | None:
    """Whether every view alone tells something of every direction of the shared latents, and more than noise would."""
    found = fit.chains.chain(fit.reference).ties()
    shown, common, chance = (v.double().cpu().numpy() for v in (found.shown, found.common, found.chance))
    noise = (chance >= 1) | (common * (1 - chance) < BY_CHANCE * chance * (1 - common))  # odds against odds
    if not noise.any() and shown.min() >= SHOWS:
        return None
    v = int(np.argmax(noise)) if noise.any() else int(shown.argmin())
    said = f"view {data.view_names[v]!r} shows {shown[v]:.1%} of a shared latent's variance"
    said += f", {common[v]:.2g} of it in common with another, where noise may have {chance[v]:.2g}" if noise[v] else ""
    rows = 0.0
    if noise[v] and common[v] > 0.5:  # noise falls with the rows, and what is there stays
        odds = common[v] / max(1 - common[v], 1e-9) / BY_CHANCE
        rows = data.rows * float(chance[v] * (1 + odds) / odds)
    return Lack(said, "fewer latents, or more rows" if noise[v] else "fewer latents", rows=rows)


def _private_apart(fit: Fit, data: Data) -> Lack | None:
    """Whether the loadings of shared latents are outside the span of the private ones: else views are alike and not the
    same there, and how much of what they share is in either is open."""
    within = fit.chains.chain(fit.reference).ties().within.double().cpu().numpy()
    if within.max() < ALIKE:
        return None
    said = f"a shared latent of view {data.view_names[int(within.argmax())]!r} has loadings of its private ones"
    return Lack(f"{said} ({within.max():.1%} of them)", "fewer private latents, or fewer shared ones")


def _changed_in_pairs(fit: Fit, data: Data) -> Lack | None:
    """Whether every latent changes, and in as many pairs as tell it from its parents: the posterior leaves at most
    `UNTOLD` of its variance open."""
    chance = fit.row_targets(data)
    if chance is None:
        raise TypeError(f"{fit.program.card.name} claims pairs but has no `row_targets()`")
    names, count = fit.names["latent"], chance[data.after, :-1].sum(0)
    rows = data.rows_at(data.spread(TOLD_ROWS))
    sd = fit.latents_sd(rows)
    assert sd is not None
    open_ = np.square(sd).mean(0) / np.maximum(fit.latents(rows).var(0), 1e-12)
    few = np.flatnonzero((count < 2) | (open_ > UNTOLD))
    if not few.size:
        return None
    said = ", ".join(f"{names[k]} changes in {count[k]:.0f} pairs" for k in few)
    remedy = f"pairs in which {', '.join(names[k] for k in few)} changes"
    return Lack(said, remedy, rows=0.0 if count.min() < 2 else data.rows * float(open_.max()) / UNTOLD)


def _dynamics_apart(fit: Fit, data: Data) -> Lack | None:
    """Whether dynamics tell every two latents apart: by BIC against Gaussian ones that both share, which any
    combinations of the two would have as well; and the posterior leaves at most `ROTATED` of each variance open."""
    program, batch = fit.chains.chain(fit.reference), fit.batch_of(data)
    with drawing(), torch.no_grad():
        found, numbers = program.dynamics_apart(batch)
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    gain = found.double().cpu().numpy()
    needed = EVIDENT + 0.5 * numbers * np.log(data.rows)
    pairs = [(gain[j, k], j, k) for j in range(len(gain)) for k in range(j)]
    alike = [(value, *sorted((names[j], names[k]))) for value, j, k in pairs if value < needed]
    if alike:
        least, one, other = min(alike)
        said = f"{one} and {other} may have the same dynamics ({least:.0f} nats tell them apart; {needed:.0f} would)"
        more = f", and {len(alike) - 1} more pairs" if len(alike) > 1 else ""
        seen = least > 2 * numbers  # more than fitted numbers give by chance
        rows = data.rows * float(needed / least) if seen else 0.0
        return Lack(said + more, f"rows in which dynamics of {one} and {other} differ", rows=rows)
    open_ = program.rotated().double().cpu().numpy()
    if (open_ <= ROTATED).all():
        return None
    far = ", ".join(names[k] for k in np.flatnonzero(open_ > ROTATED))
    more_rows = data.rows * float(open_.max()) / ROTATED
    return Lack(f"dynamics leave {open_.max():.0%} of {far} open", "more rows", rows=more_rows)


def _offsets_span(fit: Fit, data: Data) -> Lack | None:
    """Whether perturbations move latents in as many directions as there are, and in no more, and every latent at
    all."""
    found, names = fit.chains.chain(fit.reference).offsets(), fit.names["latent"]
    share, latents = found.spanned.double().cpu().numpy(), len(names)
    if (spanned := int((share > SPANNED).sum())) != latents:
        worst, more = float(share[latents - 1]), spanned > latents
        rows = data.rows * (1 - worst) / worst if HARDLY < worst < SPANNED else 0.0
        said = f"offsets of the perturbations span {spanned} directions, of {latents} latents"
        return Lack(said, "more latents" if more else "perturbations that move the others", rows=rows)
    targets = fit.targets()
    assert targets is not None
    still = tuple(name for name, p in zip(names, targets.max(0), strict=True) if p < SURE)
    if not still:
        return None
    return Lack(f"no perturbation surely moves {', '.join(still)}", "perturbations that move them", which=still)


def _axes_apart(fit: Fit, data: Data) -> Lack | None:
    mixed = fit.chains.chain(fit.reference).offsets().mixed.cpu().numpy()
    names = tuple(fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places[np.flatnonzero(mixed)])
    if not names:
        return None
    said = f"{', '.join(sorted(names))} mix: other axes of theirs are moved by as few perturbations"
    return Lack(said, "perturbations that move each of them alone", which=tuple(sorted(names)))


def _offsets_steady(fit: Fit, data: Data) -> Lack | None:
    """How much latents are moved otherwise than on average, in pairs that were not fitted. Undecided where that is much
    less in those that were: they were learned by heart."""
    apart, fitted = _unsteady(fit, unfitted(fit, data)), _unsteady(fit, data)
    if apart is None or fitted is None:
        return None
    worst = int(apart.argmax())
    if apart[worst] < STEADY:
        return None
    said = (
        f"what {fit.names['latent'][worst]} is moved by differs from pair to pair by {apart[worst]:.0%} of its variance"
    )
    rows = data.rows * float(apart[worst] / STEADY) if fitted[worst] < BY_HEART * apart[worst] else 0.0
    return Lack(said, "more pairs, more steps; perturbations that do the same in all pairs", rows=rows)


def _unsteady(fit: Fit, data: Data) -> np.ndarray | None:
    """(latent,) variance of differences of pairs about their perturbation's mean, over that of latents of rows
    before; None of fewer than `MIN_PAIRS`."""
    after = np.flatnonzero(data.after & (data.partner >= 0))
    if len(after) < MIN_PAIRS:
        return None
    z, env = fit.latents(data), data.env[after]
    moved, before = z[after] - z[data.partner[after]], z[data.partner[after]]
    present = np.flatnonzero(np.bincount(env) > 1)
    left = np.concatenate([moved[env == e] - _offset_means(fit)[e] for e in present])
    out: np.ndarray = np.square(left).mean(0) / np.maximum(before.var(0), 1e-12)
    return out


def _offsets_overlap(fit: Fit, data: Data) -> Lack | None:
    """Whether rows after reach where rows before are: a step of more than half of a latent's range leaves how the
    latent bends inside of it open."""
    z, targets = fit.latents(data.rows_at(np.flatnonzero(~data.after))), fit.targets()
    assert targets is not None
    low, high = np.quantile(z, RANGE, axis=0)
    size = np.where(targets > INCLUDED, np.abs(_offset_means(fit)), np.inf).min(0) / np.maximum(high - low, 1e-12)
    far = [(fit.names["latent"][k], size[k]) for k in np.flatnonzero(size > REACH)]
    if not far:
        return None
    said = ", ".join(f"{name} by {by:.0%} of its range" for name, by in far)
    return Lack(f"perturbations move {said} at least", "smaller steps", which=tuple(name for name, _ in far))


def _little_left(fit: Fit, data: Data) -> Lack | None:
    """How much of a feature the decoder leaves open, given the latents: a latent that is not counted, and that no
    perturbation moves, may be a part of all others."""
    rows = unfitted(fit, data)
    batch, program = fit.batch_of(rows).annealed(), fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        sites = stories.centre(program, batch) | {"z": program.latents(batch)}
        left = (batch.x - stories.expected(program, batch, sites)).double().cpu().numpy()
    share = np.square(left).mean(0) / np.maximum(batch.x.double().cpu().numpy().var(0), 1e-12)
    worst = int(share.argmax())
    if share[worst] < LITTLE:
        return None
    said = f"latents leave {share[worst]:.0%} of the variance of {fit.names['feature'][worst]}"
    return Lack(said, "more latents, features with less noise, more steps")


def _offset_means(fit: Fit) -> np.ndarray:
    """(env, latent) offsets of the aligned chains, by their weights."""
    each = [
        alignment.act(program.offsets().mean.double().cpu().numpy(), {-1: 1})
        for program, alignment in zip(fit.programs(), fit.alignments, strict=True)
    ]
    out: np.ndarray = np.einsum("c,cuk->uk", fit.weights, np.stack(each))
    return out


def _mechanisms_tell(fit: Fit, data: Data) -> Lack | None:
    """Which maps commute with the mechanisms told, as computed from these alone."""
    found = fit.chains.chain(fit.reference).carries()
    remedy = "actions that move latents by steps of known sizes in all directions"
    if found.mixing:
        shown = "; ".join(found.mixing[:MOST_MAPS])
        more = f"; and {len(found.mixing) - MOST_MAPS} more" if len(found.mixing) > MOST_MAPS else ""
        linear = found.free[:, :, :-1].double().cpu().numpy() * (1 - np.eye(len(fit.names["latent"])))
        mixed = (linear != 0).any((0, 1)) | (linear != 0).any((0, 2))
        which = tuple(name for name, one in zip(fit.names["latent"], mixed, strict=True) if one)
        return Lack(f"other maps commute with the mechanisms: {shown}{more}", remedy, which=which)
    if found.bent:
        said = f"nothing fixes the scale of {', '.join(found.bent)}, so that bent maps commute as well, as z + |z| does"
        return Lack(f"{said} with a scaling", remedy, which=found.bent)
    return None


class CarriedPairs(NamedTuple):
    """Latents of the reference chain: before, after (pair, latent); which: (pair,) actions from 0 on."""

    before: np.ndarray
    after: np.ndarray
    which: np.ndarray


def carried(fit: Fit, data: Data) -> tuple[CarriedPairs, equivariances.Mechanisms]:
    """Pairs to which something was done, and how it maps latents."""
    program, found = fit.chains.chain(fit.reference), fit.chains.chain(fit.reference).carries()
    rows = data.rows_at(data.spread(MOST_ROWS))
    with drawing(), torch.no_grad():
        z = program.latents(fit.batch_of(rows)).double().cpu().numpy()
    after = np.flatnonzero(rows.after & (rows.partner >= 0) & (rows.env > 0))
    known = equivariances.Mechanisms(*(v[1:].double().cpu().numpy() for v in (found.turn, found.shift)))
    return CarriedPairs(z[rows.partner[after]], z[after], rows.env[after] - 1), known


def nearly_free(found: Carries, pairs: CarriedPairs, known: equivariances.Mechanisms) -> tuple[float, np.ndarray]:
    """`equivariances.slack` of maps outside of what is free."""
    return equivariances.slack(pairs.before, pairs.which, known, found.free.double().cpu().numpy())


def _mechanisms_apart(fit: Fit, data: Data) -> Lack | None:
    """The map outside of what is free that most nearly commutes with the mechanisms, against what pairs leave open by
    chance and a network by its errors: how far it may have moved latents."""
    found = fit.chains.chain(fit.reference).carries()
    pairs, known = carried(fit, data)
    rate, turned = nearly_free(found, pairs, known)
    left = equivariances.left(*pairs, known)
    if (few := left.pairs == 0).any():
        name = data.env_names[1 + int(few.argmax())]
        rows = data.rows * (known.latents + 3) / max(int((pairs.which == few.argmax()).sum()), 1)
        return Lack(f"{name} has too few pairs to tell what it does", f"more pairs of {name}", rows=rows)
    share = left.pairs / max(left.pairs.sum(), 1.0)
    chance, lasting = (value / max(rate, 1e-12) for value in (math.sqrt(share @ left.chance.sum(1)), found.error))
    if (may := math.hypot(chance, lasting)) < MOVED:
        return None
    names, linear = fit.names["latent"], np.abs(turned[:, :-1])
    i, j = np.unravel_index(int(linear.argmax()), linear.shape)
    said = f"{names[j]} added to {names[i]}" if i != j else f"a scaling or shift of {names[i]}"
    said = f"{said} nearly commutes with the mechanisms: it may be off by {may:.2f} of its deviation"
    rows = data.rows * (chance / MOVED) ** 2 * 2 if lasting < 0.5 * MOVED else 0.0
    return Lack(said, "actions of larger or more different effects", rows=rows, which=(names[i],))


def _mechanisms_steady(fit: Fit, data: Data) -> Lack | None:
    """How much of latents actions leave to chance, in pairs that were not fitted, against their variance before or
    after, whichever is less. Undecided where that is much less in those that were: they were learned by heart."""
    pairs, known = carried(fit, data)
    few, _ = carried(fit, unfitted(fit, data))
    if len(few.which) < LEAST_PAIRS:
        rows = data.rows * LEAST_PAIRS / max(len(few.which), 1)
        said = f"{len(few.which)} pairs that were not fitted do not tell whether actions do the same in all"
        return Lack(said, "more pairs", rows=rows)
    apart, fitted = (_chance(some, pairs, known) for some in (few, pairs))
    worst = int(apart.argmax())
    if apart[worst] < STEADY:
        return None
    said = f"what actions do to {fit.names['latent'][worst]} differs from pair to pair by {apart[worst]:.0%} of its"
    rows = data.rows * float(apart[worst] / STEADY) if fitted[worst] < BY_HEART * apart[worst] else 0.0
    return Lack(f"{said} variance", "more pairs, more steps; actions that do the same in all pairs", rows=rows)


def _chance(some: CarriedPairs, fitted: CarriedPairs, known: equivariances.Mechanisms) -> np.ndarray:
    """(latent,) share of the variance that no affine map explains: of all actions together, or of one of `MIN_PAIRS`
    pairs of which it is larger."""
    rest = equivariances.left(*some, known, (fitted.before, fitted.after, fitted.which)).rest
    count, unit = np.bincount(some.which, minlength=len(rest)), np.maximum(fitted.before.var(0), 1e-12)
    shares = np.zeros_like(rest)
    for u in np.unique(fitted.which):
        here = fitted.which == u
        least = np.minimum(fitted.before[here].var(0), fitted.after[here].var(0)) / unit
        shares[u] = rest[u] / np.maximum(least, 1e-12)
    out: np.ndarray = np.concatenate([[count @ shares / max(count.sum(), 1)], shares[count >= MIN_PAIRS]]).max(0)
    return out


def _steps_overlap(fit: Fit, data: Data) -> Lack | None:
    """Whether rows after reach where rows before are, by some action that moves the latent: a step of more than half of
    its range leaves how the latent bends inside of it open."""
    pairs, known = carried(fit, data)
    low, high = np.quantile(pairs.before, RANGE, axis=0)
    steps = []
    for matrix, offset in zip(known.matrix, known.offset, strict=True):
        step = np.median(np.abs(pairs.before @ (matrix.T - np.eye(len(low))) + offset), 0) / np.maximum(
            high - low, 1e-12
        )
        steps.append(np.where(step > HARDLY_MOVED, step, np.inf))
    size = np.min(steps, 0)
    far = [(fit.names["latent"][k], size[k]) for k in np.flatnonzero((size > REACH) & np.isfinite(size))]
    if not far:
        return None
    said = ", ".join(f"{name} by {by:.0%} of its range" for name, by in far)
    return Lack(f"actions move {said} at least", "smaller steps", which=tuple(name for name, _ in far))


def _few_fire(fit: Fit, data: Data) -> Lack | None:
    """How many latents fire in nearly all rows, against half of the features, from which on other sets of as many reach
    the same rows, and against the search's limit, where it stops short."""
    chance, most = _firing(fit, data), int(fit.program.config["most"])
    number = float(np.quantile(chance.sum(1), NEARLY_ALL))
    if round(number) > data.features / 2:
        return Lack(f"{number:.1f} latents fire in a row, of {data.features} features", "more features, sparser codes")
    if (limited := float((chance.sum(1) > most - 0.5).mean())) > 1 - NEARLY_ALL:
        return Lack(f"{limited:.0%} of the rows have the {most} latents that the search allows", "a larger `most`")
    return None


def _firing_told(fit: Fit, data: Data) -> Lack | None:
    """Errors of a guess at which latents fire, against how many do: dense codes end as noise."""
    chance = _firing(fit, data)
    wrong = float(np.minimum(chance, 1 - chance).sum() / max(chance.sum(), 1.0))
    if wrong <= UNTOLD_STATES:
        return None
    return Lack(f"of the latents that fire {wrong:.0%} are guessed wrong", "less noise, sparser codes, fewer latents")


def _directions_apart(fit: Fit, data: Data) -> Lack | None:
    """The largest cosine of two directions, features in their own units."""
    found = fit.chains.chain(fit.reference).loading_matrix()
    assert found is not None
    w = found[0].double().cpu().numpy()[:, fit.alignments[fit.reference].permutation]
    w = w if fit.units is None else w * np.asarray(fit.units.scale)[:, None]
    used = fit.in_use(fit.reference)[fit.alignments[fit.reference].permutation]
    w = w / np.maximum(np.linalg.norm(w, axis=0), 1e-12)
    cosine = np.triu(w.T @ w, 1)
    cosine *= used[:, None] & used
    a, b = np.unravel_index(int(cosine.argmax()), cosine.shape)
    if cosine[a, b] < PARALLEL:
        return None
    names = fit.names["latent"]
    return Lack(f"directions of {names[a]} and {names[b]} have cosine {cosine[a, b]:.2f}", "fewer latents")


def _fire_apart(fit: Fit, data: Data) -> Lack | None:
    """Share of a latent's firing that is along with another's, as far as that is more than by chance."""
    chance = _firing(fit, data)
    both, each = chance.T @ chance, chance.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(each[:, None] >= MIN_FIRING, both / each[:, None], 0.0)
    share[np.arange(len(each)), np.arange(len(each))] = 0.0
    share = np.where(chance.mean(0) < 0.5, share, 0.0)  # what nearly always fires, does so along with all
    a, b = np.unravel_index(int(share.argmax()), share.shape)
    if share[a, b] < ALONG:
        return None
    names = fit.names["latent"]
    said = f"{names[a]} fires along with {names[b]} in {share[a, b]:.0%} of the rows in which it does"
    return Lack(said, f"rows in which {names[a]} fires without {names[b]}")


def _firing(fit: Fit, data: Data) -> np.ndarray:
    """(row, latent) probabilities of firing under the reference chain, of `FIRING_ROWS` rows at most."""
    with torch.no_grad():
        chance = fit.chains.chain(fit.reference).firing(fit.batch_of(data.rows_at(data.spread(FIRING_ROWS))))
    if chance is None:
        raise TypeError(f"{fit.program.card.name} claims sparse codes but has no `firing()`")
    return chance.double().cpu().numpy()[:, fit.alignments[fit.reference].permutation]


def _readings_apart(fit: Fit, data: Data) -> Lack | None:
    """Other latents that a network was bent to from the same start, less likely by few nats: `RIVAL`."""
    margin = fit.chains.chain(fit.reference).readings_margin()
    if margin is None or margin >= RIVAL:
        return None
    reason = f"other latents explain the environments nearly as well ({margin:.1f} nats less)"
    return Lack(reason, "more rows, or stronger interventions", rows=data.rows * min(RIVAL / max(margin, 0.1), FAR))


def _environments_differ(fit: Fit, data: Data) -> Lack | None:
    """Whether some environment changes the equation of some column, as the posterior has it. Which of two environments
    has an equation of its own is a matter of names."""
    present = np.bincount(data.env, minlength=len(data.env_names)) > 0
    if present.sum() < 2:
        return Lack("there is one environment, so nothing is seen to be invariant", "rows of another environment")
    hit = np.stack([targets for _, _, targets in class_draws(fit, data, CLASS_DRAWS)])  # (chain, draw, env, latent)
    most = float((fit.weights @ hit[:, :, present].any(2).mean(1)).max())
    if most > SURE:
        return None
    said = f"no environment is seen to change the equation of a column (probability {most:.2g} at most)"
    rows = _times(data.rows, 1 - most) if most > INCLUDED else 0.0
    return Lack(said, "environments that act on columns other than the response", rows=rows)


def _parents_directed(fit: Fit, data: Data) -> Lack | None:
    """Whether the class of the graph under interventions (`equivalence_class`) directs the edges at the response."""
    response, open_ = int(fit.program.config["response"]), {}
    found = class_draws(fit, data, CLASS_DRAWS)
    for j, name in enumerate(fit.names["feature"]):
        both = [(arcs[:, j, response] & arcs[:, response, j]).mean() for arcs, _, _ in found]
        if j != response and (share := float(fit.weights @ both)) > 1 - SURE:
            open_[name] = share
    if not open_:
        return None
    most, which = max(open_.values()), tuple(open_)
    said = f"nothing tells whether {', '.join(which[:3])} {'is' if len(which) == 1 else 'are'} among the response's "
    said += f"parents or its children (probability {most:.2g})"
    rows = _times(data.rows, most) if most < INCLUDED else 0.0
    return Lack(said, f"an environment that acts on {' and '.join(which[:3])}", rows=rows, which=which)


CHECKS: dict[str, Callable[[Fit, Data], Lack | None]] = {
    **{need: _of_data(check) for need, check in conditions.CHECKS.items()},
    "interventions_show": _interventions_show,
    "two_anchors": _two_anchors,
    "pure_features": _pure_features,
    "pure_children": _pure_children,
    "clusters_apart": _clusters_apart,
    "not_collinear": _not_collinear,
    "own_features": _own_features,
    "all_states": _all_states,
    "states_told": _states_told,
    "states_apart": _states_apart,
    "noise_told_apart": _noise_told_apart,
    "simple_structure": _simple_structure,
    "zeros_tell": _zeros_tell,
    "two_components": _components,
    "distinct_variance_ratios": _variance_ratios,
    "non_gaussian": _non_gaussian,
    "axes_told": _axes_told,
    "number_told": _number_told,
    "modulated_apart": _modulated_apart,
    "held_at_constants": _held,
    "nonlinear_equations": _nonlinear,
    "changed_in_pairs": _changed_in_pairs,
    "directions_shown": _directions_shown,
    "views_tied": _views_tied,
    "shared_in_views": _shared_in_views,
    "private_apart": _private_apart,
    "dynamics_apart": _dynamics_apart,
    "offsets_span": _offsets_span,
    "axes_apart": _axes_apart,
    "offsets_steady": _offsets_steady,
    "offsets_overlap": _offsets_overlap,
    "mechanisms_tell": _mechanisms_tell,
    "mechanisms_apart": _mechanisms_apart,
    "mechanisms_steady": _mechanisms_steady,
    "steps_overlap": _steps_overlap,
    "little_left": _little_left,
    "few_fire": _few_fire,
    "firing_told": _firing_told,
    "directions_apart": _directions_apart,
    "fire_apart": _fire_apart,
    "environments_differ": _environments_differ,
    "readings_apart": _readings_apart,
    "parents_directed": _parents_directed,
}


def latents_of(fit: Fit, data: Data, aligned: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(row, latent) posterior means under the reference chain and (row,) environments, of `MOST_ROWS` rows at most."""
    rows = np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int))
    few = data.rows_at(rows)
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        z = program.latents(fit.batch_of(few)).double().cpu().numpy()
    return fit.alignments[fit.reference].apply(z) if aligned else z, few.env
