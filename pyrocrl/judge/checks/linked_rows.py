"""Conditions on rows that belong together: views of one row, before and after, steps of a series."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import (
    ALIKE,
    EVIDENT,
    MIN_PAIRS,
    FitCheck,
    fitted_and_unfitted,
    unfitted,
)
from pyrocrl.readouts import SetApart
from pyrocrl.turns import drawing

UNTOLD, TOLD_ROWS = 0.05, 200  # share of a latent's variance that may be open, and rows of which it is asked
TIED = 20.0  # rows' worth of what ties views that is asked for, for each latent of a view
SHOWS = 0.1  # least share of a shared latent's variance that a view shows
BY_CHANCE = 3.0  # odds of a squared correlation of two views, in those of the largest that noise has
CHANGES, CHANGES_MOST = 0.05, 0.2  # share of latents' variance, and of any direction, that may differ in a pair
NEARLY = 1.5  # times these, of a block, up to which more rows may do
BY_HEART = 1.5  # times what differs in pairs that were trained on differs in others, where those are known by heart
BESIDE = 0.45  # share of the variance of what latents leave, that pairs may share: style that a pair keeps
BESIDE_BLOCKS = 0.65  # ... beside blocks that they name: transforms may change a part of a style
VAGUE = 0.2  # error of such a share from which it says little
STAYS = 0.1  # mean square of what differs of noise that is shared, in that of unrelated rows
SURELY_SET, GOES_WITH = 0.9, 0.02  # chance from which a latent was set, and r^2 that it may have with the row before
ERRORS_OF_R = 12.0  # squared deviations of a correlation by chance, of the largest of many
ROTATED = 0.02  # share of a latent's variance that rotations may leave open


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


def _one_changes(fit: Fit, data: Data) -> Lack | None:
    """Whether noise of latents other than the one that probably changed is the same in both rows of a pair, of pairs
    that were not fitted: the mean square of its differences, in those between two rows."""
    share = _moves_by_itself(fit, unfitted(fit, data))
    if share.max() <= STAYS:
        return None
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    said = (
        f"of the noise of {names[int(share.argmax())]} {share.max():.0%} differs where it is said not to have changed"
    )
    rows, both = 0.0, fitted_and_unfitted(fit, data)
    if both is not None and (trained := _moves_by_itself(fit, both[0]).max()) <= STAYS / BY_HEART:
        rows = data.rows * float(share.max() / max(trained, STAYS)) ** 2
    return Lack(said, "more steps, more pairs, or pairs between which one latent changes", rows=rows)


def _moves_by_itself(fit: Fit, data: Data) -> np.ndarray:
    """(latent,) mean square of differences of noise of pairs in which another latent changed, in that of strangers."""
    found = _set_apart(fit, data)
    moved, chance = found.moved.double().cpu().numpy(), found.chance.double().cpu().numpy()
    kept = 1.0 - chance[:, :-1]
    out: np.ndarray = (kept * moved**2).sum(0) / np.maximum(2 * kept.sum(0), 1e-12)
    return out


def _set_anew(fit: Fit, data: Data) -> Lack | None:
    """Whether what a latent was set to, and its square, go with noise of the row before or with its square, of normal
    scores: else noise is not normal, parents act together, or interventions keep a part of the equation."""
    found = _set_apart(fit, data)
    before, now = found.before.double().cpu().numpy(), found.now.double().cpu().numpy()
    chance = found.chance.double().cpu().numpy()
    names = [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]
    worst, said = 0.0, ""
    for k, name in enumerate(names):
        rows = chance[:, k] > SURELY_SET
        if rows.sum() < MIN_PAIRS:
            continue
        own, noise = (_normal_scores(v[rows]) for v in (now[:, k], before))
        r = np.corrcoef(np.column_stack([own, own**2, noise, noise**2]).T)[:2, 2:]
        size = np.maximum(np.square(r) - ERRORS_OF_R / rows.sum(), 0.0)
        if size.max() > worst:
            worst = float(size.max())
            other = names[int(size.max(0).argmax()) % len(names)]
            said = f"what {name} is set to goes with noise of {other} before (r^2 {worst:.2f})"
    remedy = "noise that is normal and added to curves of the parents; interventions that cut all parents"
    return Lack(said, remedy) if worst > GOES_WITH else None


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Normal quantiles of ranks in each column: a few rows read far off tell nothing of a dependence."""
    out: np.ndarray = stats.norm.ppf((stats.rankdata(values, axis=0) - 0.5) / len(values))
    return out


def _set_apart(fit: Fit, data: Data) -> SetApart:
    program, batch = fit.chains.chain(fit.reference), fit.batch_of(data)
    with drawing(), torch.no_grad():
        return program.set_apart(batch)


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


def _content_shared(fit: Fit, data: Data) -> Lack | None:
    """Whether latents are the same in both rows of a pair, in pairs that were not trained on: what style they hold, or
    a latent too many, differs."""
    found = fit.chains.chain(fit.reference).partners_share()
    gap, error = found.gap.double().cpu().numpy(), float(found.gap_error)
    mean, most = float(gap.mean()) + 2 * error, float(gap.max())
    if mean <= CHANGES and most <= CHANGES_MOST:
        return None
    said = f"{gap.mean():.1%} of the latents' variance differs between rows of a pair, {most:.0%} in one direction"
    trained = found.trained.double().cpu().numpy()
    rows = 0.0
    if trained.mean() <= CHANGES and trained.max() <= CHANGES_MOST:  # pairs that were trained on are known by heart
        rows = data.rows * max(mean / CHANGES, most / CHANGES_MOST) ** 2
    return Lack(said, "fewer latents, more steps, or pairs that share what they are to share", rows=rows)


def _nothing_else_shared(fit: Fit, data: Data) -> Lack | None:
    """Whether anything of x that latents leave is the same in both rows of a pair: content that is not counted, or
    style that hardly changes."""
    found = fit.chains.chain(fit.reference).partners_share()
    left, error = float(found.left), float(found.left_error)
    if left + 2 * error <= BESIDE:
        return None
    said = f"pairs share {left:.0%} (± {error:.0%}) of something that the latents leave"
    rows = data.rows * (2 * error / (BESIDE - left)) ** 2 if left < BESIDE else 0.0
    return Lack(said, "more latents, or pairs between which style changes more", rows=rows)


def _blocks_kept(fit: Fit, data: Data) -> Lack | None:
    """Whether blocks are the same in both rows of the pairs that are said to keep them, of pairs that were not trained
    on: what a block has of others, or a latent too many, differs, and so does what was named wrongly."""
    found = fit.chains.chain(fit.reference).kept()
    told = found.told
    gap, error, most, trained, trained_most = (
        v.double().cpu().numpy() for v in (told.gap, told.error, told.most, told.trained, told.trained_most)
    )
    mean = gap + 2 * error
    bad = found.keeps.cpu().numpy() & ((mean > CHANGES) | (most > CHANGES_MOST))
    if not bad.any():
        return None
    k, b = np.unravel_index(int(np.argmax(np.where(bad, gap, -1.0))), gap.shape)
    said = f"{gap[k, b]:.1%} of the variance of {found.names[b]!r} differs in pairs said to share {data.env_names[k]!r}"
    said += f", {most[k, b]:.0%} in one direction" if most[k, b] > CHANGES_MOST else ""
    said += f", and {int(bad.sum()) - 1} more such" if bad.sum() > 1 else ""
    rows = 0.0
    heart = ((trained <= CHANGES) & (trained_most <= CHANGES_MOST)) | (gap > BY_HEART * trained)  # trained on
    near = (mean <= NEARLY * CHANGES) & (most <= NEARLY * CHANGES_MOST)
    if (heart | near)[bad].all():
        rows = data.rows * max(float((mean[bad] / CHANGES).max()), float((most[bad] / CHANGES_MOST).max())) ** 2
    which = tuple(fit.names["latent"][j] for j in np.flatnonzero(found.block.cpu().numpy() == b))
    remedy = f"fewer latents in {found.names[b]!r}, more steps, or pairs that share what they are said to"
    return Lack(said, remedy, rows=rows, which=which)


def _nothing_else_kept(fit: Fit, data: Data) -> Lack | None:
    """Whether anything of x beside what they are said to share is the same in both rows of the pairs of any kind: a
    block of more latents, or one that hardly changes, such as one that another block is as well."""
    found = fit.chains.chain(fit.reference).kept()
    told = found.told
    least = np.where(found.keeps.cpu().numpy(), 1.0, told.least.double().cpu().numpy())
    if least.min() <= CHANGES:
        kind, b = np.unravel_index(int(least.argmin()), least.shape)
        said = (
            f"{found.names[b]!r} hardly differs ({least.min():.1%} of its variance in one direction) in pairs said to "
        )
        which = tuple(fit.names["latent"][j] for j in np.flatnonzero(found.block.cpu().numpy() == b))
        return Lack(f"{said}share {data.env_names[kind]!r} alone", "pairs between which it changes", which=which)
    left, error = (v.double().cpu().numpy() for v in (told.left, told.left_error))
    if (left + 2 * error <= BESIDE_BLOCKS).all():
        return None
    k = int(np.argmax(left + 2 * error))
    said = f"pairs said to share {data.env_names[k]!r} share {left[k]:.0%} (± {error[k]:.0%}) of something else"
    rows = 0.0
    if not ((left - error >= BESIDE_BLOCKS) & (error <= VAGUE)).any():
        rows = data.rows * float((2 * error / np.maximum(BESIDE_BLOCKS - left, error / 2)).max()) ** 2
    return Lack(said, "more latents, or pairs of each kind between which all else changes more", rows=rows)


CHECKS: dict[str, FitCheck] = {
    "changed_in_pairs": _changed_in_pairs,
    "views_tied": _views_tied,
    "shared_in_views": _shared_in_views,
    "private_apart": _private_apart,
    "one_changes": _one_changes,
    "set_anew": _set_anew,
    "dynamics_apart": _dynamics_apart,
    "content_shared": _content_shared,
    "nothing_else_shared": _nothing_else_shared,
    "blocks_kept": _blocks_kept,
    "nothing_else_kept": _nothing_else_kept,
}
