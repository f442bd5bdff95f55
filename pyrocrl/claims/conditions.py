"""The conditions of claims that show in the data or in what a person knows of them: `diagnose` and `choose` share them.

Each check takes a `Situation` and returns None where its condition holds, or a `Lack`: what fails, and what would
close the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pyrocrl.data import Data


@dataclass(frozen=True)
class Situation:
    """What is known of the data and of what was done to them, before a fit or after it.

    latents: their names, or None where not even their number is known; hit: (env, latent) in {0, 1}, which latents
    each environment intervenes on, or None where that is unknown; intervention, mechanism: keys of `card.INTERVENTIONS`
    and `card.MECHANISMS`; asked: the kind of interventions that the claim asks for, "" for any.
    """

    data: Data
    latents: Sequence[str] | None
    hit: np.ndarray | None
    intervention: str = "perfect"
    mechanism: str = "linear"
    asked: str = ""

    @property
    def present(self) -> np.ndarray:
        """(env,) whether an environment has rows."""
        return np.bincount(self.data.env, minlength=len(self.data.env_names)) > 0

    @property
    def control(self) -> bool:
        """Whether one environment is known to be observational, be its targets known or not."""
        return bool(self.data.control_rows.any())


@dataclass(frozen=True)
class Lack:
    """reason: what fails, in the words of a verdict. remedy: what would close the gap. open: a fit may show it does not
    fail after all. rows: with how many it would probably show that it holds, where these are too few to say. which: the
    latents that are at issue, by name, where some are."""

    reason: str
    remedy: str
    open: bool = False
    rows: float = 0.0
    which: tuple[str, ...] = ()


UNCOUNTED = Lack("the number of latents is not known", "the number of latents")
Check = Callable[[Situation], Lack | None]


def _more_features(s: Situation) -> Lack | None:
    if s.latents is None:
        return UNCOUNTED
    if s.data.features > len(s.latents):
        return None
    return Lack(f"{s.data.features} features for {len(s.latents)} latents", f"more than {len(s.latents)} features")


def _observational(s: Situation) -> Lack | None:
    if s.hit is None:
        if s.control:
            return None
        return Lack("no environment is known to be observational", "an observational environment, named", open=True)
    if (s.hit[s.present].sum(1) == 0).any():
        return None
    return Lack("every environment is intervened on", "an observational environment")


def _free(s: Situation) -> Lack | None:
    """Where every environment holds a latent, a polynomial that is 0 in all of them may be added to x."""
    if s.hit is None:
        return Lack("no environment is known to hold no latent", "an environment that holds none", open=True)
    if (s.hit[s.present].sum(1) == 0).any():
        return None
    return Lack("every environment holds a latent at a constant", "an environment that holds none")


def _interventions(least: int) -> Check:
    def check(s: Situation) -> Lack | None:
        if s.latents is None:
            return UNCOUNTED
        if s.hit is None:
            return _enough_environments(s, least)
        counts = s.hit[s.present].sum(0)
        short = [name for name, count in zip(s.latents, counts, strict=True) if count < least]
        if not short:
            return None
        words = "no environment intervenes" if least == 1 else f"fewer than {least} environments intervene"
        by_need: dict[int, list[str]] = {}
        for name, count in zip(s.latents, counts, strict=True):
            if count < least:
                by_need.setdefault(least - int(count), []).append(name)
        asked = [
            f"{_some(need, s.asked, more=need < least)} on {'each of ' * (len(names) > 1)}{', '.join(names)}"
            for need, names in sorted(by_need.items())
        ]
        return Lack(f"{words} on {', '.join(short)}", " and ".join(asked))

    return check


def _enough_environments(s: Situation, least: int) -> Lack:
    """Targets unknown: there must be as many interventions as they are to hit; which ones they hit a fit may show."""
    assert s.latents is not None
    done, need = int(s.present.sum()) - 1, least * len(s.latents)  # one environment is observational
    if done >= need:
        return Lack("the targets of the environments are not known", "targets of the environments", open=True)
    found = f"{done} environment{'s' * (done != 1)}" if done else "no environment"
    remedy = f"{_some(least, s.asked)} on each of the {len(s.latents)} latents"
    return Lack(f"{found} beside the observational one, {need} are needed", remedy)


def _single_targets(s: Situation) -> Lack | None:
    if s.hit is None:
        return None
    several = np.flatnonzero((s.hit.sum(1) > 1) & s.present)
    if not several.size:
        return None
    name = s.data.env_names[several[0]]
    return Lack(f"{name} has more than one target", "interventions on one latent at a time")


def _separated(s: Situation) -> Lack | None:
    if s.hit is None or s.latents is None:
        return None  # that their targets are unknown is said elsewhere
    columns = s.hit[s.present].T
    for a, one in enumerate(columns):
        for b in range(a):
            if one.any() and (one == columns[b]).all():
                both = f"{s.latents[b]} and {s.latents[a]}"
                return Lack(f"{both} are only intervened on together", f"an intervention on one of {both} alone")
    return None


def _perfect(s: Situation) -> Lack | None:
    if s.intervention == "perfect":
        return None
    absorbed = _nonlinear_or_replaced(s)
    kept = "its parents" if s.intervention == "soft" else "its equation"
    reason = absorbed.reason if absorbed else f"interventions are not perfect ({s.intervention}): a target keeps {kept}"
    return Lack(reason, "perfect interventions")


def _nonlinear_or_replaced(s: Situation) -> Lack | None:
    if s.mechanism != "linear" or s.intervention in ("perfect", "soft"):
        return None
    kind = {"variance": "changes of variance", "shift": "shifts"}[s.intervention]
    reason = f"interventions are {kind} in linear structural equations: the mixing can absorb the graph"
    return Lack(reason, "interventions that replace mechanisms, or nonlinear structural equations")


def _settings(s: Situation) -> Lack | None:
    if s.latents is None:
        return UNCOUNTED
    if s.data.aux is None:
        return Lack("no auxiliary variable", f"an auxiliary variable with {len(s.latents) + 1} values or more")
    values, need = len(np.unique(s.data.aux, axis=0)), len(s.latents) + 1
    if values >= need:
        return None
    reason = f"the auxiliary variable takes {values} values, {need} are needed"
    return Lack(reason, f"an auxiliary variable with {need} values or more")


def _environments(times: int) -> Check:
    def check(s: Situation) -> Lack | None:
        if s.latents is None:
            return UNCOUNTED
        found, most = int(s.present.sum()), times * len(s.latents)
        if found > most:
            return None
        reason = f"{found} environment{'s' * (found != 1)} for {len(s.latents)} latents, more than {most} are needed"
        return Lack(reason, f"more than {most} environments")

    return check


def _conditioned_apart(s: Situation) -> Lack | None:
    """What the theorem asks of the matrix of environments and concepts (Rajendran et al. 2024)."""
    if s.hit is None or s.latents is None:
        return UNCOUNTED
    matrix = s.hit[s.present & (s.hit.sum(1) > 0)]
    found, names = len(matrix), s.latents
    if found <= len(names):
        reason = f"{found} environment{'s' * (found != 1)} for {len(names)} concepts, more than {len(names)} are needed"
        return Lack(reason, f"more than {len(names)} environments that condition on concepts")
    for a, one in enumerate(matrix.T):
        for b, other in enumerate(matrix.T):
            if a != b and not (one > other).any():
                reason = f"no environment conditions on {names[a]} and not on {names[b]}"
                return Lack(reason, f"an environment that conditions on {names[a]} alone")
    if (rank := int(np.linalg.matrix_rank(matrix))) < len(names):
        reason = f"the matrix of environments and concepts has rank {rank}, for {len(names)} concepts"
        return Lack(reason, "environments that condition on other combinations of concepts")
    return None


def _some(count: int, kind: str, more: bool = False) -> str:
    number = {1: "one", 2: "two"}[count]
    return " ".join([number, *["more"] * more, *[kind] * bool(kind), "interventions" if count > 1 else "intervention"])


CHECKS: dict[str, Check] = {
    "more_features_than_latents": _more_features,
    "observational_environment": _observational,
    "one_intervention_per_latent": _interventions(1),
    "two_interventions_per_latent": _interventions(2),
    "single_targets": _single_targets,
    "separated_targets": _separated,
    "perfect_interventions": _perfect,
    "nonlinear_or_replaced": _nonlinear_or_replaced,
    "enough_settings": _settings,
    "more_environments": _environments(1),
    "twice_the_environments": _environments(2),
    "free_environment": _free,
    "conditioned_apart": _conditioned_apart,
}
