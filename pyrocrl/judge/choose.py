"""`choose`: which models these data can feed, what each would identify, and what the next stronger claim still lacks.

Read off the models' cards alone, before any fit: conditions that show in the data are checked (`conditions`), those
that only a posterior shows are left open, and what no data show is asked of the person who did the experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pyrocrl import zoo
from pyrocrl.claims.card import CONDITIONS, TARGETS, Claim, ModelCard
from pyrocrl.claims.conditions import CHECKS, INTERVENTIONS, Lack, Situation
from pyrocrl.claims.indeterminacy import LATENT_GROUPS, Group
from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.program import check_whole

State = Literal["met", "open", "missing"]
FEW_ROWS = 100  # below it a mean is known to a tenth of a standard deviation at best
MODES = tuple(TARGETS)  # who knows the targets knows them up to relabelling, and may leave them unknown


@dataclass(frozen=True)
class ClaimChoice:
    """One claim of a card, judged on the data: head in words, what it asks, and where it stands.

    met: every condition that can be judged before a fit holds; open: so it is, but a fit has to show `open`; missing:
    `missing` says what would have to be added. `given` is what only a person can judge.
    """

    claim: str
    what: str
    state: State
    missing: tuple[str, ...]
    open: tuple[str, ...]
    given: tuple[str, ...]
    freedom: int


@dataclass(frozen=True)
class Choice:
    """One model: what it lacks to be fitted at all, and where each of its claims stands."""

    model: str
    title: str
    status: str
    lacks: tuple[str, ...]
    claims: tuple[ClaimChoice, ...]

    @property
    def identifies(self) -> tuple[ClaimChoice, ...]:
        """The strongest claim on each thing whose conditions are not known to fail; none for a model that lacks."""
        best: dict[str, ClaimChoice] = {}
        for claim in self.claims:
            if claim.state != "missing" and claim.freedom < best.get(claim.what, _WEAKEST).freedom:
                best[claim.what] = claim
        return () if self.lacks else tuple(best.values())

    @property
    def next(self) -> ClaimChoice | None:
        """Of the claims that say more than what is identified, the one for which the least is missing."""
        held = {claim.what: claim.freedom for claim in self.identifies}
        more = [c for c in self.claims if c.freedom < held.get(c.what, _WEAKEST.freedom)]
        return min(more, key=lambda c: len(c.missing), default=None)

    @property
    def missing(self) -> tuple[str, ...]:
        """What the next stronger claim lacks, or the model to be fitted at all."""
        return tuple(dict.fromkeys((*self.lacks, *(self.next.missing if self.next else ()))))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and texts, ready for JSON."""
        found = asdict(self)
        found["claims"] = [{k: v for k, v in claim.items() if k != "freedom"} for claim in found["claims"]]
        more = {"identifies": [c.claim for c in self.identifies], "next": self.next.claim if self.next else None}
        return found | more | {"missing": list(self.missing)}


_WEAKEST = ClaimChoice("", "", "missing", (), (), (), freedom=1_000)


def choose(
    data: Data,
    latents: int | None = None,
    *,
    intervention: str = "perfect",
    targets: str | None = None,
    mechanism: str = "linear",
    models: Sequence[zoo.Model] = (),
) -> list[Choice]:
    """Every model of the zoo, best first: what it would identify from these data, and what is missing for more.

    latents: how many there are; None = as the truth or the targets say, else left open. intervention: what
    interventions do to their targets, a key of `conditions.INTERVENTIONS`. targets: how far they are known, "known",
    "relabelled" or "unknown"; None = known where the data list them. mechanism: "linear" or "nonlinear" structural
    equations. These are asked because no data tell them. models: further ones, as files or classes. Raises InputError
    for data that nothing can be fitted to, for other words, for targets that the data do not list and for models that
    cannot be used.
    """
    if not isinstance(data, Data):
        raise InputError(f"data: found a {type(data).__name__}; allowed: a pyrocrl.Data")
    data.check_fit()
    one_of("intervention", intervention, INTERVENTIONS)
    one_of("mechanism", mechanism, ("linear", "nonlinear"))
    mode = one_of("targets", targets or ("unknown" if data.targets is None else "known"), MODES)
    if mode != "unknown" and data.targets is None:
        reject("targets", f"{mode!r} for data that list none", "'unknown', or data with targets")
    count = _count(data, latents)
    names = None if count is None else [f"latent_{k}" for k in range(count)]
    hit = data.target_matrix(count) if mode != "unknown" and count is not None else None
    known = Situation(data, names, hit, intervention, mechanism)
    cards = [*zoo.cards(), *(zoo.get(model, "models").card for model in models)]
    found = [_judge(card, known, mode) for card in cards]
    return sorted(found, key=_worth)


def environments(data: Data) -> list[dict[str, Any]]:
    """Each environment's name, targets (None = unknown), rows, and whether these are fewer than `FEW_ROWS`."""
    rows = np.bincount(data.env, minlength=len(data.env_names)).tolist()
    targets = data.targets
    return [
        {
            "environment": name,
            "targets": None if targets is None else [f"latent_{k}" for k in targets.get(name, ())],
            "rows": count,
            "few": count < FEW_ROWS,
        }
        for name, count in zip(data.env_names, rows, strict=True)
    ]


def _count(data: Data, latents: int | None) -> int | None:
    """The number of latents: as told, of the truth, or the highest target's."""
    if latents is not None:
        check_whole("latents", latents, 1)
        return int(latents)
    if "z" in data.truth:
        return int(data.truth["z"].shape[1])
    return max((k + 1 for hit in (data.targets or {}).values() for k in hit), default=None)


def _judge(card: ModelCard, known: Situation, mode: str) -> Choice:
    claims = tuple(_stands(claim, known) for claim in card.claims if claim.holds({"targets": mode}))
    return Choice(card.name, card.title, card.status, tuple(_lacks(card, known, mode)), claims)


def _lacks(card: ModelCard, known: Situation, mode: str) -> list[str]:
    """What these data lack before a model can be fitted to them at all."""
    out = []
    if card.needs_env and known.present.sum() < 2:
        out.append("two or more environments")
    if card.targets and MODES.index(mode) > max(MODES.index(accepted) for accepted in card.targets):
        out.append("targets of the environments")
    kind = "negative_binomial" if known.data.counts else "gaussian"
    if kind not in card.likelihoods:
        out.append("counts" if kind == "gaussian" else "features that are no counts, such as log(1 + x / size factor)")
    return out


def _stands(claim: Claim, known: Situation) -> ClaimChoice:
    asked = "perfect" if "perfect_interventions" in claim.needs else ""
    situation = Situation(known.data, known.latents, known.hit, known.intervention, known.mechanism, asked)
    missing: list[str] = []
    left_open: list[str] = []
    for need in claim.needs:
        lack = CHECKS[need](situation) if need in CHECKS else Lack("", CONDITIONS[need], open=True)
        if lack is not None:
            (left_open if lack.open else missing).append(CONDITIONS[need] if lack.open else lack.remedy)
    state: State = "missing" if missing else "open" if left_open else "met"
    once = tuple(dict.fromkeys(missing))
    words = claim.head() + (f", where {claim.where()}" if claim.when else "")
    return ClaimChoice(words, claim.what, state, once, tuple(left_open), claim.given, _freedom(claim))


def _freedom(claim: Claim) -> int:
    """How much a claim leaves free; latents that mix and edges that stay open count most."""
    group = Group.of([name for name in claim.up_to if name in LATENT_GROUPS])
    edges = any(name not in LATENT_GROUPS for name in claim.up_to)
    return len(group.free) + 10 * group.mixes + 10 * edges


def _worth(choice: Choice) -> tuple[Any, ...]:
    """Sorts best first: models that can be fitted, that identify most, most surely and most tightly."""
    held: Sequence[ClaimChoice] = choice.identifies
    sure = sum(claim.state == "met" for claim in held)
    freedom = sum(claim.freedom for claim in held)
    return bool(choice.lacks), -sure, -len(held), freedom, len(choice.missing), choice.model
