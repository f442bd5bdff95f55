"""What data and fit show of a claim's conditions (`CHECKS`) and a model's assumptions (`TESTS`), with uncertainty.

A condition's check returns None where it holds, or a `Lack`. A test returns what it `Found`: a p-value of known law
if the model is right. Programs name the tests that apply to them, and the assumptions that each puts to the test
(`Program.checks`); `tests` runs them and corrects for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from pyrocrl.exact import goodness
from pyrocrl.exact.sparse_factors import rival_axes
from pyrocrl.infer import stories
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.equivalence import class_draws
from pyrocrl.turns import drawing

LEVEL = 0.001  # of all tests of a fit together
SEEN = 0.05  # p from which an environment counts as unchanged
TELLING = 400  # rows of an environment from which an intervention worth the name should be seen
SURE = 0.9  # probability from which something is decided
MOST_FEATURES = 200  # whose covariance a test of the number of factors looks at
PAIRED_ROWS = 10_000  # rows of pairs that a test of their differences looks at
MIN_PAIRS = 20  # that it needs
PROBABLY = 0.45  # probability below which a latent probably did not change in a pair
EXACT = 0.12  # as far from 1/2 all distribution functions are at most where there is no noise at all
UNTOLD_STATES = 0.3  # share of a guess's errors about a latent's state that may be left
UNTOLD, TOLD_ROWS = 0.05, 200  # share of a latent's variance that may be open, and rows of which it is asked
MOST_ROWS = 20_000  # rows that a test of rows looks at: more find what does not matter
EVIDENT = 3.0  # nats of evidence, or half a difference of BIC, from which one of two models is preferred
DIFFERS = 2.0  # deviations from which a loading is taken to differ from 0
FAR = 100  # times the rows: what more of them would have to decide is open
HIDDEN = 3.5  # deviations below which a loading may be taken to be 0
ALIKE = 0.98  # correlation of two latents from which they are one
TOGETHER = 0.2  # part in a combination, of the largest one, from which a latent is named
SHARED = 0.03  # share of features' variances up to which a decoder may be off
SHARED_BY_CHART = 0.05  # ... one of latents that are read by contrasts alone, without the decoder
CLEAR = 1e-4  # probability below which another latent than this is taken to have changed in a pair
TIED = 20.0  # rows' worth of what ties views that is asked for, for each latent of a view
SHOWS = 0.1  # least share of a shared latent's variance that a view shows
BY_CHANCE = 3.0  # odds of a squared correlation of two views, in those of the largest that noise has
HEARD = 0.1  # part of a latent's variance that may be noise of features: it correlates .95 with what is true
ROTATED = 0.02  # share of a latent's variance that rotations may leave open
PARALLEL = 0.9  # cosine of two directions from which they may be one
ALONG = 0.9  # share of a latent's firing along with another from which neither is told from their sum
NEARLY_ALL = 0.95  # share of the rows of which it is asked how many latents fire
FIRING_ROWS, MIN_FIRING = 5_000, 5  # rows that are asked which latents fire, and firings that say something
BEYOND, UNEXPLAINED = 0.001, 0.03  # share of rows that noise leaves far off, and up to which others may be
CORRELATED = 0.1  # correlation of the firing of two latents that is let be
EXTRA = 0.1  # part of noise by which its variance in a direction may be larger
OFF = 0.05  # difference of two distributions of what is left up to which a fit may be off
MOST_LEFT_OUT = 100  # features, of the largest leverage, that are left out two at a time
AXES = 0.95  # mean squared cosine of a latent's loadings with their mean, from which its axis is told
DEPENDENT = 0.05  # rank correlation of two latents' sizes that their estimates may have
NEARLY = goodness.Tolerance(correlation=0.07, distance=0.02)  # of latents that a network reads, to be normal
APART = 1.5e-4  # nats a row and degree of freedom by which moments of a network's latents may be off equations
CLASS_DRAWS = 50  # of each chain, of which it is asked what directs the edges at the response
IMPROBABLE = 0.01  # probability from which a set of parents is asked whether it is invariant
SPANNED, HARDLY = 0.5, 0.2  # share of a direction that offsets span, and below which more rows would not show it
STEADY = 0.08  # share of a latent's variance by which it may be moved otherwise from pair to pair
BY_HEART = 0.7  # share of what is left of other pairs, below which pairs that were fitted are known by heart
LITTLE = 0.1  # share of a feature's variance that latents may leave, as noise or as latents that are not counted
REACH = 0.5  # of a latent's range, within which an offset shows how it bends
RANGE = (0.005, 0.995)  # quantiles that are its ends
MOVED_OFF = {"linear": 0.05, "nonlinear": 0.1}  # of a feature's deviation, by which rows after may be off
MIN_SILENT, OFTEN = 20, 0.05  # rows without a latent, for each latent in use, and their share, that are asked for
FIXED = 0.33  # part of a direction's variance that they have
HELD = 0.2  # deviation of a latent in an environment that holds it, in that over all rows


@dataclass(frozen=True)
class Found:
    """p: the test's p-value, corrected for the number of tests; detail: what was seen; remedy: what to try."""

    name: str
    p: float
    detail: str
    remedy: str
    tested: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The test, its p-value and what was seen."""
        p = f"p = {self.p:.2g}" if self.p >= 1e-300 else "p < 1e-300"
        return f"{self.name}: {p}, {self.detail}"

    @property
    def fails(self) -> bool:
        return self.p < LEVEL


Test = Callable[[Fit, Data], Found | None]


def tests(fit: Fit, data: Data) -> tuple[Found, ...]:
    """What the program's own tests find, p-values corrected for their number (Holm)."""
    found = []
    for name, tested in fit.program.checks.items():
        one = TESTS[name](fit, data)
        if one is not None:
            found.append((one, tested))
    corrected = goodness.holm([one.p for one, _ in found])
    return tuple(Found(o.name, p, o.detail, o.remedy, said) for (o, said), p in zip(found, corrected, strict=True))


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
    z, env = _latents(fit, data)
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
    z = _latents(fit, data, aligned=False)[0][:, used]
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
    for a, b in np.ndindex(mask.shape[1], mask.shape[1]):
        if a == b:
            continue
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
    if few >= 5.0:
        return None
    return Lack(f"a combination of the latents' states occurs in {few:.1f} rows", "rows of all combinations of states")


def _states_told(fit: Fit, data: Data) -> Lack | None:
    """Whether rows show which state each latent is in. A state that no feature tells is invented by halving the noise
    of some feature, which by masks looks like a feature of its own."""
    chance = fit.chain_latents(data)[fit.reference]  # (row, latent) probabilities
    wrong, guessed = np.minimum(chance, 1 - chance).mean(0), np.minimum(chance.mean(0), 1 - chance.mean(0))
    share = wrong / np.maximum(guessed, 1e-12)
    if share.max() < UNTOLD_STATES:
        return None
    worst = int(share.argmax())
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    said = f"rows show the state of {name} little better than a guess ({share[worst]:.2f} of its errors are left)"
    return Lack(said, f"fewer latents, or features that depend on {name} more strongly")


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
            said = f"loadings on {name} may be 0 by a rotation of dense ones (p below {np.exp(min(chance, 0.0)):.2g})"
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
    z = _latents(fit, data, aligned=False)[0]
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
    z, env = _latents(fit, _unfitted(fit, data))
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


def _unfitted(fit: Fit, data: Data) -> Data:
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
    z, env = _latents(fit, data)
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
    apart, fitted = _unsteady(fit, _unfitted(fit, data)), _unsteady(fit, data)
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
    rows = _unfitted(fit, data)
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
    "little_left": _little_left,
    "few_fire": _few_fire,
    "firing_told": _firing_told,
    "directions_apart": _directions_apart,
    "fire_apart": _fire_apart,
    "environments_differ": _environments_differ,
    "parents_directed": _parents_directed,
}


# -- tests of the fit against the data -------------------------------------------------------------------------


def _moments(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of every environment's moments against the fitted equations."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        found = program.implied()
    if found is None:
        return None
    ratio = goodness.likelihood_ratio(found)
    if ratio.freedom <= 0:
        return None
    worst = int(np.argmax(ratio.deviance / np.maximum(found.rows, 1)))
    detail = f"deviance {ratio.deviance.sum():.1f} on {ratio.freedom:.0f} degrees of freedom"
    p = ratio.p
    remedy = ""
    if p < LEVEL:
        detail += f", most in {data.env_names[worst]}"
        others = program.rivals(("perfect", "shift", "variance"))
        better = max(others, key=lambda kind: others[kind], default=None)
        remedy = "targets that were listed otherwise, batches that go with environments, a nonlinear model"
        if better is not None and others[better] > EVIDENT:
            remedy = f"intervention={better!r}, which has {others[better]:.0f} nats more evidence; {remedy}"
    return Found("likelihood ratio of environments' moments", p, detail, remedy)


def _gaussian(fit: Fit, data: Data) -> Found | None:
    """Mardia's skewness and kurtosis of the latents of every environment."""
    if data.counts or fit.program.config.get("escapees"):
        return None
    z, env = _latents(fit, data, aligned=False)
    used = fit.in_use(fit.reference)
    if not used.any():
        return None
    if data.gaps:  # means shrink by what a row lacks
        rows = np.unique(np.linspace(0, data.rows - 1, len(env)).astype(int))
        env = env + (1 + env.max()) * np.unique(data.present[rows], axis=0, return_inverse=True)[1].reshape(-1)
    found = goodness.mardia(z[:, used], env)
    detail = f"skewness p = {found.skewness:.2g}, kurtosis p = {found.kurtosis:.2g} ({found.excess:+.0%})"
    remedy = "a look at outlying rows; score_crl, or another model of nonlinear equations; a nonlinear mixing"
    return Found("Mardia's skewness and kurtosis of latents", found.p, detail, remedy)


def _factors(fit: Fit, data: Data) -> Found | None:
    """Whether the observational rows, about their means in each technical batch, need more factors than the fit has
    latents."""
    if data.counts or data.features > MOST_FEATURES:
        return None
    if data.incomplete:  # by rows that lack nothing, if there are any
        data = data.rows_at(np.flatnonzero(data.known.all(1)))
        if data.rows <= 2:
            return None
    known = situation(fit, data)
    free = known.present if known.hit is None else known.present & (known.hit.sum(1) == 0)
    rows = np.flatnonzero(free[data.env] & ~data.after)[:MOST_ROWS]
    x, batch = fit.batch_of(data.rows_at(rows)).x.double().cpu().numpy(), data.batch[rows]
    for one in np.unique(batch):
        x[batch == one] -= x[batch == one].mean(0)
    p = goodness.enough_factors(x, len(fit.names["latent"])) if len(x) > 2 else None
    if p is None:
        return None
    detail = f"{len(fit.names['latent'])} factors for {data.features} features"
    return Found("likelihood ratio of the number of factors", p, detail, "more latents; features without outliers")


def _residuals(fit: Fit, data: Data) -> Found | None:
    """The largest correlation of two features that the fitted moments leave, corrected for the number of pairs."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).implied()
    if found is None:
        return None
    p, worst = 1.0, (0, 0)
    for rows, cov, fitted in zip(found.rows, found.cov, found.fitted_cov, strict=True):
        one = goodness.residual_correlation(cov, fitted, rows)
        p, worst = min((p, worst), one)
    pair = " and ".join(data.feature_names[j] for j in worst)
    remedy = "more latents; loadings that were shut; features that are copies of each other"
    return Found("correlations that the latents leave", min(1.0, p * len(found.rows)), f"least for {pair}", remedy)


def _clusters(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of the covariance that clusters imply, correlations of latents free. Where noise and
    latents' innovations are independent it holds of any law of these (Browne & Shapiro 1988)."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).implied()
    if found is None or (ratio := goodness.likelihood_ratio(found)).freedom <= 0:
        return None
    detail = f"deviance {ratio.deviance.sum():.1f} on {ratio.freedom:.0f} degrees of freedom"
    remedy = "more latents; without the features that depend on two latents or on each other"
    return Found("likelihood ratio of clusters of features", ratio.p, detail, remedy)


def _views(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of the moments of rows with the same views against those of shared and private latents."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    with drawing():
        found = fit.chains.chain(fit.reference).misfit(batch)
    if found is None:
        return None
    p = float(stats.chi2.sf(found.deviance, found.freedom))
    detail = f"deviance {found.deviance:.1f} on {found.freedom:.0f} degrees of freedom"
    remedy = "more shared or private latents; a transformation of the features; anchors=False, or labels of one kind"
    return Found("likelihood ratio of the views' moments", p, detail, remedy)


def _features(fit: Fit, data: Data) -> Found | None:
    """Kolmogorov and Smirnov's test of every feature against its fitted law, corrected for their number."""
    rows = np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int))
    with drawing(), torch.no_grad():
        below = fit.chains.chain(fit.reference).cdf(fit.batch_of(data.rows_at(rows)))
    if below is None:
        return None
    p = [float(stats.kstest(column, "uniform").pvalue) for column in below.double().cpu().numpy().T]
    worst = int(np.argmin(p))
    detail = f"least for {data.feature_names[worst]}"
    remedy = "a transformation of the features; a look at outlying rows; more latents"
    return Found("Kolmogorov-Smirnov test of features' fitted laws", min(1.0, min(p) * len(p)), detail, remedy)


def _given_environment(fit: Fit, data: Data) -> Found | None:
    """Whether latents given the environment are independent and of their law, on rows that were not fitted: within
    `goodness.TOLERANCE` of it, for networks are not exact."""
    program = fit.chains.chain(fit.reference)
    law = program.modulated_law()
    assert law is not None
    z, env = _latents(fit, _unfitted(fit, data), aligned=False)
    found = goodness.departure(z, env, law)
    detail = f"levels p = {found.levels:.2g}, correlations p = {found.correlations:.2g}, law p = {found.law:.2g}"
    other = 'law="normal", where environments have levels' if law == "scaled normal" else "another law"
    return Found("departures of latents from their law given the environment", found.p, detail, other)


def _nearly_gaussian(fit: Fit, data: Data) -> Found | None:
    """Whether latents of every environment are normal, on all rows: within `NEARLY` of it, for networks are not exact.
    Latents of equations that are not linear, of noise that is not normal, of environments that differ from what is told
    of them, or that a network did not find, are further from it."""
    used = fit.in_use(fit.reference)
    if data.counts or not used.any():
        return None
    z, env = _latents(fit, data, aligned=False)
    white = goodness.whitened(z[:, used], env)
    found = goodness.departure(white, np.zeros(len(white), int), "normal", NEARLY)
    detail = f"correlations p = {found.correlations:.2g}, law p = {found.law:.2g}"
    remedy = "targets that were listed otherwise; score_crl, for equations that are not linear; more steps"
    return Found("departures of latents from normal laws", found.p, detail, remedy)


def _nearly_equations(fit: Fit, data: Data) -> Found | None:
    """Likelihood-ratio test of every environment's moments of latents against equations that its interventions change:
    within `APART` of them for each degree of freedom, for networks are not exact."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    with drawing():
        found = fit.chains.chain(fit.reference).misfit(batch)
    if found is None or found.freedom <= 0:
        return None
    p = float(stats.ncx2.sf(found.deviance, found.freedom, 2 * len(batch) * APART * found.freedom))
    detail = f"deviance {found.deviance:.1f} on {found.freedom:.0f} degrees of freedom, {len(batch)} rows"
    remedy = "targets that were listed otherwise, batches that go with environments; more steps"
    return Found("departures of environments' moments from equations", p, detail, remedy)


def _left(fit: Fit, data: Data, tolerance: float = SHARED) -> Found | None:
    """Whether what a draw of their latents leaves of features is noise of each one's own, of one variance in all
    environments, as it is where the model is right. Within `tolerance` of their variances, for networks are not
    exact."""
    if data.counts:
        return None
    rows = data.rows_at(np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int)))
    program = fit.chains.chain(fit.reference)
    batch = fit.batch_of(rows).annealed()
    with drawing(43), torch.no_grad():
        left = batch.x - stories.expected(program, batch, stories.drawn(program, batch))
    x, left = batch.x.double().cpu().numpy(), left.double().cpu().numpy()
    found = goodness.shared(left / np.maximum(x.std(0), 1e-12), rows.env, tolerance)
    name = data.feature_names[found.column]
    if found.group is None:
        assert found.other is not None
        detail = f"{name} and {data.feature_names[found.other]} share {abs(found.size):.0%} of their variances"
    else:
        detail = f"that of {name} changes by {abs(found.size):.0%} of its variance in {data.env_names[found.group]}"
    return Found("what the latents leave of features", found.p, detail, "more latents; more steps; another decoder")


def _explained(fit: Fit, data: Data) -> Found | None:
    """Whether what a draw of the latents leaves of a row is noise. Its size: by the share of rows beyond the quantile
    that `BEYOND` of them should exceed, of which `UNEXPLAINED` may be, and by how far its distribution is from that of
    noise, which may be `OFF` (Dvoretzky, Kiefer & Wolfowitz 1956). And the largest variance in any direction, in rows
    that are not beyond and in which one latent fires, of which `EXTRA` may be too much: two directions taken for one
    leave what they differ in."""
    batch = fit.batch_of(data.rows_at(data.spread(FIRING_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(47), torch.no_grad():
        values = stories.drawn(program, batch)
        left = (batch.x - stories.expected(program, batch, values)) / values["variance"].sqrt()
    left = left.double().cpu().numpy()
    size = np.square(left).sum(1)
    beyond = size > stats.chi2.isf(BEYOND, data.features)
    away = float(stats.kstest(size, stats.chi2(data.features).cdf).statistic)
    tail = float(stats.binom.sf(int(beyond.sum()) - 1, len(size), UNEXPLAINED))
    inner = left[~beyond] / np.maximum(left[~beyond].std(0), 1e-12)
    fires, wide, one = (values["z"] > 0).cpu().numpy()[~beyond], 1.0, 0.0
    for own in fires.T:
        if own.sum() >= 2 * data.features:
            value = float(np.linalg.eigvalsh(np.atleast_2d(np.cov(inner[own].T)))[-1])
            p = goodness.largest_eigenvalue(value / (1 + EXTRA), int(own.sum()), data.features)
            wide, one = min((wide, one), (p, value))
    wide = min(1.0, wide * fires.shape[1])
    p = min(1.0, 3 * tail, 6 * float(np.exp(-2 * len(size) * max(0.0, away - OFF) ** 2)), 3 * wide)
    detail = f"{beyond.mean():.1%} of the rows are beyond what {BEYOND:.1%} should be, sizes differ by {away:.1%}, "
    detail += f"variance in one direction is {one:.2f} times that of noise"
    return Found("what latents leave of a row", p, detail, "more latents; a look at outlying rows")


def _independent_firing(fit: Fit, data: Data) -> Found | None:
    """Whether latents fire independently, in a draw of them: the largest correlation, of which `CORRELATED` is let be,
    corrected for the number of pairs."""
    batch = fit.batch_of(data.rows_at(data.spread(FIRING_ROWS))).annealed()
    program = fit.chains.chain(fit.reference)
    with drawing(53), torch.no_grad():
        fires = (stories.drawn(program, batch)["z"] > 0).double().cpu().numpy()
    often = np.flatnonzero((fires.sum(0) >= MIN_FIRING) & (fires.sum(0) <= len(fires) - MIN_FIRING))
    if len(often) < 2 or len(fires) < 4:
        return None
    r = np.abs(np.triu(np.corrcoef(fires[:, often].T), 1))
    a, b = np.unravel_index(int(r.argmax()), r.shape)
    away = math.atanh(min(r[a, b], 1 - 1e-12)) - math.atanh(CORRELATED)
    p = min(1.0, float(stats.norm.sf(away * math.sqrt(len(fires) - 3))) * len(often) * (len(often) - 1))
    places = fit.alignments[fit.reference].places
    names = " and ".join(fit.names["latent"][int(places[often[k]])] for k in (a, b))
    detail = f"correlation {r[a, b]:.2f} of {names}"
    return Found("correlations of firing", p, detail, "more latents, or fewer; rows of other kinds apart")


def _independent(fit: Fit, data: Data) -> Found | None:
    """Spearman's test of sizes |z| of any two latents, corrected for their number, and of all pairs in the mean, both
    against `DEPENDENT`: rows that share a scale give every latent heavy tails, and leave rotations open."""
    z, used = np.abs(_latents(fit, data, aligned=False)[0]), np.flatnonzero(fit.in_use(fit.reference))
    if len(used) < 2 or len(z) < goodness.FEWEST:
        return None
    ranks = stats.rankdata(z[:, used], axis=0)
    signed = np.corrcoef(ranks.T) - np.eye(len(used))
    r, pairs = np.abs(signed), len(used) * (len(used) - 1) / 2
    largest, mean = float(r.max()), float(signed.sum() / (2 * pairs))
    unit = np.sqrt(len(z) / 1.06)  # of Fisher's transform (Fieller, Hartley & Pearson 1957)
    one = 2 * pairs * float(stats.norm.sf((np.arctanh(min(largest, 1 - 1e-12)) - np.arctanh(DEPENDENT)) * unit))
    every = float(stats.norm.sf((np.arctanh(min(mean, 1 - 1e-12)) - np.arctanh(DEPENDENT)) * unit * np.sqrt(pairs)))
    places = fit.alignments[fit.reference].places[used]
    a, b = (fit.names["latent"][int(places[k])] for k in divmod(int(r.argmax()), len(used)))
    p = min(1.0, 2 * min(one, every))
    detail = f"{largest:.2f} for {a} and {b}, {mean:.2f} in the mean"
    return Found("rank correlation of latents' sizes", p, detail, "sparse_vae or spike_slab_fa, for sparse loadings")


def _noise(fit: Fit, data: Data) -> Found | None:
    """Kurtosis of what the latents leave of each feature, against the normal law's (Anscombe & Glynn 1983), corrected
    for their number: noise of heavy tails would give normal latents tails of its own."""
    batch = fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        found = program.loading_matrix()
        assert found is not None
        z = program.latents(batch)
    x, z = (v.double().cpu().numpy() for v in (batch.x, z))
    if len(x) < 20:
        return None
    left = x - z @ np.linalg.lstsq(z, x, rcond=None)[0]
    p = stats.kurtosistest(left).pvalue
    worst = int(np.argmin(p))
    detail = f"least for {data.feature_names[worst]}"
    remedy = "a transformation of the features; a look at outlying rows; more latents"
    return Found("kurtosis of what the latents leave", min(1.0, float(p[worst]) * len(p)), detail, remedy)


def _differences(fit: Fit, data: Data) -> Found | None:
    """Whether latents that are not the one that changed differ between a pair's rows as the fit says, by noise of their
    own alone: of each, Kolmogorov and Smirnov's test, and rank correlations with its noise before and with the size of
    other latents' changes; of any two their rank correlation; corrected for their number. Where they do not differ at
    all, that is so."""
    batch = fit.batch_of(data.rows_at(data.spread(PAIRED_ROWS)))
    with drawing(), torch.no_grad():
        found = fit.chains.chain(fit.reference).partners(batch)
    below, changed, moved, before = (
        v.double().cpu().numpy() for v in (found.below, found.changed, found.moved, found.before)
    )
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    p: dict[str, float] = {}
    clearly = [np.abs(below[changed[:, k] < CLEAR, k] - 0.5) for k in range(len(names))]
    exact = np.array([len(own) >= MIN_PAIRS and (own < EXACT).all() for own in clearly])
    for k, name in enumerate(names):
        kept = changed[:, k] < PROBABLY
        if exact[k] or len(kept) < 2 * MIN_PAIRS:
            continue
        if kept.sum() < MIN_PAIRS:  # though there are many pairs
            p[f"{name}, which may have changed in all pairs"] = 0.0
            continue
        own, others = below[kept, k], np.delete(moved[kept], k, 1).max(1)
        p[f"the law of {name}"] = stats.kstest(own, "uniform").pvalue
        p[f"{name} and its noise before"] = stats.spearmanr(own, before[kept, k]).pvalue
        p[f"{name} and the size of other changes"] = stats.spearmanr(np.abs(own - 0.5), others).pvalue
        for m in range(k):
            clear = (changed[:, [k, m]] < CLEAR).all(1)
            if not exact[m] and clear.sum() >= MIN_PAIRS:
                p[f"{names[m]} and {name}"] = stats.spearmanr(below[clear, k], below[clear, m]).pvalue
    if not p:
        return Found("differences of latents that did not change", 1.0, "there are none", "") if exact.all() else None
    worst = min(p, key=lambda one: p[one])
    remedy = "more latents; a nonlinear mixing; pairs in which one latent changes at a time, without noise of features"
    least = min(1.0, float(p[worst]) * len(p))
    return Found("differences of latents that did not change", least, f"least for {worst}", remedy)


def _displaced(fit: Fit, data: Data) -> Found | None:
    """Whether rows after are where the decoder moves rows before: of each perturbation and feature the mean of what is
    left, its slopes on the means of both rows and on their squares, and its variance against that under others,
    corrected for their number. Within `MOVED_OFF`, for networks are not exact."""
    allow = MOVED_OFF[fit.program.config["decoder"]]
    few = _unfitted(fit, data)
    least = np.bincount(few.env[few.after & (few.partner >= 0)], minlength=len(data.env_names))[1:].min()
    few = data if least < MIN_PAIRS else few
    few = few.rows_at(few.spread(PAIRED_ROWS))
    batch = fit.batch_of(few)
    with drawing(), torch.no_grad():
        moved = fit.chains.chain(fit.reference).displaced(batch).double().cpu().numpy()
    x, after = batch.x.double().cpu().numpy(), np.flatnonzero(few.after & (few.partner >= 0))
    x, moved = x / np.maximum(x.std(0), 1e-12), moved / np.maximum(x.std(0), 1e-12)
    left, middle, env = (x - moved)[after], (x[after] + x[few.partner[after]]) / 2, few.env[after]
    middle = (middle - middle.mean(0)) / np.maximum(middle.std(0), 1e-12)
    terms = np.column_stack([np.ones(len(left)), middle, (middle**2 - 1) / np.sqrt(2)])
    p: dict[str, float] = {}
    number = 0
    for e in np.unique(env):
        here = env == e
        if here.sum() < MIN_PAIRS or here.all():
            continue
        products = left[here][:, :, None] * terms[here][:, None]  # (pair, feature, term)
        apart = np.square(left[here] - left[here].mean(0))
        size = np.concatenate([np.abs(products.mean(0)), np.abs(apart.mean(0) - left[~here].var(0))[:, None]], 1)
        error = np.concatenate([products.std(0), apart.std(0)[:, None]], 1) / np.sqrt(here.sum())
        allowed = np.full_like(size, allow)
        allowed[:, -1] = (2 * allow) ** 2
        z = ((size - allowed) / np.maximum(error, 1e-9)).max(1)
        number += size.size
        for name, value in zip(fit.names["feature"], z, strict=True):
            p[f"{name} under {data.env_names[e]}"] = 2 * float(stats.norm.sf(value))
    if not p:
        return None
    worst = min(p, key=lambda one: p[one])
    remedy = "decoder='nonlinear'; more latents; more steps; perturbations that do the same in all pairs"
    return Found("where offsets move rows", min(1.0, p[worst] * number), f"least for {worst}", remedy)


def _noiseless(fit: Fit, data: Data) -> Found | None:
    """Whether noise of features, as large among latents as in the directions without them, is more than `HEARD` of any
    latent: chi-squared, by how well those directions tell its size. Nothing is seen where there are none."""
    program = fit.chains.chain(fit.reference)
    with torch.no_grad():
        share = program.noise_share(fit.batch_of(data))
    if share is None:
        return None
    freedom, worst = data.rows * (data.features - len(share)), int(share.argmax())
    p = float(stats.chi2.sf(freedom * float(share[worst]) / HEARD, freedom))
    name = fit.names["latent"][int(fit.alignments[fit.reference].places[worst])]
    detail = f"{float(share[worst]):.1%} of the variance of {name}"
    return Found("noise of features in latents", p, detail, "fewer latents; features with less noise")


def _dynamics(fit: Fit, data: Data) -> Found | None:
    """Whether latents go on from the rows before by their fitted laws, and each by itself: of each Kolmogorov and
    Smirnov's test, and rank correlations with the row before, of values and of sizes; of any two rank correlations, in
    the same row and with the row before, and a test of independence by cells; corrected for their number."""
    with drawing(), torch.no_grad():
        program = fit.chains.chain(fit.reference)
        u = program.innovations_below(fit.batch_of(data.rows_at(data.spread(MOST_ROWS)))).double().cpu().numpy()
    if len(u) < MIN_PAIRS:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    size, p = np.abs(u - 0.5), {}
    bins = int(np.clip(np.sqrt(len(u) / 20), 2, 8))  # 20 rows a cell, or more
    for k, name in enumerate(names):
        p[f"the law of {name}"] = stats.kstest(u[:, k], "uniform").pvalue
        p[f"{name} and the row before"] = stats.spearmanr(u[1:, k], u[:-1, k]).pvalue
        p[f"sizes of {name} and of the row before"] = stats.spearmanr(size[1:, k], size[:-1, k]).pvalue
        for m, other in enumerate(names):
            if m < k:
                p[f"{other} and {name}"] = stats.spearmanr(u[:, k], u[:, m]).pvalue
                cells = np.histogram2d(u[:, k], u[:, m], bins=bins, range=[[0, 1], [0, 1]])[0]
                p[f"what {other} says of {name}"] = stats.chi2.sf(_independence(cells), (bins - 1) ** 2)
            if m != k:
                p[f"{name} and {other} in the row before"] = stats.spearmanr(u[1:, k], u[:-1, m]).pvalue
    worst = min(p, key=lambda one: p[one])
    remedy = "more lags or states; features without noise; latents that do not drive each other"
    least = min(1.0, float(p[worst]) * len(p))
    return Found("dynamics of latents", least, f"least for {worst}", remedy)


def _independence(cells: np.ndarray) -> float:
    """Pearson's statistic of a table of counts against the product of its margins."""
    expected = np.maximum(np.outer(cells.sum(1), cells.sum(0)) / cells.sum(), 1e-12)
    return float((np.square(cells - expected) / expected).sum())


def _invariance(fit: Fit, data: Data) -> Found | None:
    """Whether the response's regression on some set of parents that is not improbable is the same in all environments:
    the largest of exact p-values, so that it is valid where the true set is one of them."""
    found = fit.chains.chain(fit.reference).invariance()
    assert found is not None
    p, chance = (v.double().cpu().numpy() for v in found)
    likely = (chance > IMPROBABLE) & np.isfinite(p)
    if not likely.any():
        return None
    best = int(np.where(likely, p, -1.0).argmax())
    others = [name for j, name in enumerate(fit.names["feature"]) if j != fit.program.config["response"]]
    names = [name for c, name in enumerate(others) if best >> c & 1]
    detail = f"of {int(likely.sum())} probable sets of parents the most invariant is {', '.join(names) or 'none'}"
    remedy = "environments that do not act on the response; columns that act on it and were not measured"
    return Found("F tests of the response's regression", float(p[best]), detail, remedy)


def _latents(fit: Fit, data: Data, aligned: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(row, latent) posterior means under the reference chain and (row,) environments, of `MOST_ROWS` rows at most."""
    rows = np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int))
    few = data.rows_at(rows)
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        z = program.latents(fit.batch_of(few)).double().cpu().numpy()
    return fit.alignments[fit.reference].apply(z) if aligned else z, few.env


TESTS: dict[str, Test] = {
    "moments": _moments,
    "gaussian": _gaussian,
    "factors": _factors,
    "residuals": _residuals,
    "clusters": _clusters,
    "features": _features,
    "given_environment": _given_environment,
    "nearly_gaussian": _nearly_gaussian,
    "nearly_equations": _nearly_equations,
    "left": _left,
    "nearly_left": partial(_left, tolerance=SHARED_BY_CHART),
    "differences": _differences,
    "displaced": _displaced,
    "views": _views,
    "noiseless": _noiseless,
    "dynamics": _dynamics,
    "explained": _explained,
    "independent_firing": _independent_firing,
    "independent": _independent,
    "noise": _noise,
    "invariance": _invariance,
}
