"""Conditions on codes: which of many latents fire in a row."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import FIRING_ROWS, UNTOLD_STATES, FitCheck

PARALLEL = 0.9  # cosine of two directions from which they may be one
ALONG = 0.9  # share of a latent's firing along with another from which neither is told from their sum
NEARLY_ALL = 0.95  # share of the rows of which it is asked how many latents fire
MIN_FIRING = 5  # firings of a latent that say something


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


CHECKS: dict[str, FitCheck] = {
    "few_fire": _few_fire,
    "firing_told": _firing_told,
    "directions_apart": _directions_apart,
    "fire_apart": _fire_apart,
}
