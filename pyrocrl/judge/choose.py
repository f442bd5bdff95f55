"""`choose`: which models these data can feed, what each would identify, and what the next stronger claim still lacks.

No model is fitted. Each is built for the data as `fit` builds it, so that what the one refuses the other does, in the
same words. Conditions of claims that show in the data are checked (`conditions`), those that only a posterior shows are
left open, and what no data show is asked of the person who did the experiment (`card.ASSUMPTIONS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from pyrocrl import options, zoo
from pyrocrl.claims.card import ASSUMPTIONS, CONDITIONS, TARGETS, VALUES, Claim
from pyrocrl.claims.conditions import CHECKS, Lack, Situation
from pyrocrl.claims.indeterminacy import LATENT_GROUPS, Group
from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.options import Size
from pyrocrl.program import Program
from pyrocrl.turns import drawing

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
    """One model: what it lacks to be fitted at all, where each of its claims stands, and the options of `fit` (or
    `build`) under which it was judged. unread: what of the data it does not look at: "environments", whose rows it
    takes for draws of one law, or "views"."""

    model: str
    title: str
    status: str
    lacks: tuple[str, ...]
    claims: tuple[ClaimChoice, ...]
    options: Mapping[str, Any]
    unread: tuple[str, ...] = ()

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


@options.checked
def choose(
    data: Data,
    latents: Size | None = None,
    *,
    intervention: str | None = None,
    targets: str | None = None,
    mechanism: str | None = None,
    values: str = "continuous",
    models: Sequence[zoo.Model] = (),
) -> list[Choice]:
    """Every model of the zoo, best first: what it would identify from these data, and what is missing for more.

    latents: how many there are; None = as the truth or the targets say, else left open. No data tell the others, keys
    of the tables in `card.ASSUMPTIONS`. intervention: what interventions do to their targets; None = what each model
    takes them to do. targets: how far they are known; None = known where the data list them. mechanism: the form of
    the structural equations; None = each model's. values: of the latents. models: further ones, as files or classes.
    Raises InputError for data that nothing can be fitted to, for other words, for targets that the data do not list and
    for models that cannot be used.
    """
    data.check_fit()
    for name, word in {"intervention": intervention, "mechanism": mechanism, "values": values}.items():
        if word is not None:
            one_of(name, word, ASSUMPTIONS[name])
    mode = one_of("targets", targets or ("unknown" if data.targets is None else "known"), TARGETS)
    if mode != "unknown" and data.targets is None:
        reject("targets", f"{mode!r} for data that list none", "'unknown', or data with targets")
    if latents is not None and latents > data.features:
        reject("latents", latents, f"a whole number from 1 to {data.features}, the number of features")
    count = _count(data, latents)
    if count is not None and mode != "unknown":
        data.target_matrix(count)  # refuses targets that are none of so many latents
    told = _Told(data, count, mode, intervention, mechanism, values)
    return sorted((_judge(kind, told) for kind in _kinds(models)), key=_worth)


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
        return latents
    if "z" in data.truth:
        return int(data.truth["z"].shape[1])
    return max((k + 1 for hit in (data.targets or {}).values() for k in hit), default=None)


def _kinds(models: Sequence[zoo.Model]) -> list[type[Program]]:
    """All models that can be used: those that cannot are left out by `zoo.cards`, with a warning."""
    return [*(zoo.get(card.name) for card in zoo.cards()), *(zoo.get(model, "models") for model in models)]


@dataclass(frozen=True)
class _Told:
    """The data and what a person says of them: None where each model's own assumption is taken."""

    data: Data
    latents: int | None
    mode: str
    intervention: str | None
    mechanism: str | None
    values: str


def _judge(kind: type[Program], told: _Told) -> Choice:
    card = kind.card
    given, lacks = _options(kind, told)
    program: Program | None = None
    with drawing():
        try:
            program = kind.from_data(told.data, **given)
            program.check(told.data)
        except InputError as error:
            unsaid = str(error).startswith("latents: missing")
            lacks.append("the number of latents" if unsaid else str(error))
    config = {k: v.default for k, v in kind.options().items() if k in ASSUMPTIONS} | given
    config = config if program is None else program.config
    given |= {name: config[name] for name in ("latents", "intervention", "mechanism") if name in config}
    count = (program.latents_count if program else 0) or told.latents
    names = None if count is None else [f"latent_{k}" for k in range(count)]
    hit = told.data.target_matrix(count) if told.mode != "unknown" and count is not None else None
    intervention = told.intervention or config.get("intervention", "perfect")
    mechanism = told.mechanism or config.get("mechanism", "linear")
    known = Situation(told.data, names, hit, intervention, mechanism)
    named = config.get("targets") == "known"
    claims = tuple(
        _stands(replace(claim, up_to=tuple(n for n in claim.up_to if n != "permutation" or not named)), known, config)
        for claim in card.claims
        if claim.holds({"targets": config.get("targets", told.mode)})
    )
    reads = {
        "environments": card.needs_env or bool(card.targets) or "environments" in kind.options(),
        "views": card.needs_views,
    }
    there = {"environments": len(np.unique(told.data.env)) > 1, "views": told.data.view is not None}
    unread = tuple(name for name, read in reads.items() if there[name] and not read)
    return Choice(card.name, card.title, card.status, tuple(lacks), claims, given, unread)


def _options(kind: type[Program], told: _Told) -> tuple[dict[str, Any], list[str]]:
    """The options by which a model is told what a person knows, and what of it no option tells."""
    known, lacks = kind.options(), []
    given: dict[str, Any] = {}
    if told.latents is not None and "latents" in known:
        given["latents"] = told.latents
    if told.values != kind.card.values:
        lacks.append(f"values: found {told.values!r}; allowed: {kind.card.values!r}: {VALUES[kind.card.values]}")
    if kind.card.targets and "targets" in known:
        ways = [mode for mode in MODES[MODES.index(told.mode) :] if mode in kind.card.targets]
        if ways or told.data.targets is not None:
            given["targets"] = ways[0] if ways else told.mode
    for name, word in (("intervention", told.intervention), ("mechanism", told.mechanism)):
        if word is not None and name in known:
            allowed = options.choices(known[name].hint)
            bent = [other for other in allowed if name == "mechanism" and "linear" not in (word, other)]
            given[name] = word if word in allowed or not bent else bent[0]
    return given, lacks


def _stands(claim: Claim, known: Situation, config: Mapping[str, Any]) -> ClaimChoice:
    """Where a claim stands for a program of these options."""
    asked = "perfect" if "perfect_interventions" in claim.needs else ""
    situation = Situation(known.data, known.latents, known.hit, known.intervention, known.mechanism, asked)
    missing: list[str] = []
    left_open: list[str] = []
    for need in claim.needs:
        lack = CHECKS[need](situation) if need in CHECKS else Lack("", CONDITIONS[need], open=True)
        if lack is not None:
            (left_open if lack.open else missing).append(CONDITIONS[need] if lack.open else lack.remedy)
    other = [name for name, value in claim.when.items() if not replace(claim, when={name: value}).holds(config)]
    replaced = "perfect interventions" in missing
    missing += [_otherwise(claim, name) for name in other if name != "intervention" or not replaced]
    state: State = "missing" if missing else "open" if left_open else "met"
    once = tuple(dict.fromkeys(missing))
    asks = {name: claim.when[name] for name in other if name not in ASSUMPTIONS}
    words = claim.head() + (f", where {replace(claim, when=asks).where()}" if asks else "")
    return ClaimChoice(words, claim.what, state, once, tuple(left_open), claim.given, _freedom(claim))


def _otherwise(claim: Claim, option: str) -> str:
    """The option under which a claim would be made, as something that is missing."""
    values = claim.when[option] if isinstance(claim.when[option], tuple) else (claim.when[option],)
    words = " or ".join(map(str, values))
    kinds = {"intervention": f"{words} interventions", "mechanism": f"{words} structural equations"}
    return kinds.get(option, f"the option {option}={words}")


def _freedom(claim: Claim) -> int:
    """How much a claim leaves free; latents that mix and edges that stay open count most."""
    group = Group.of([name for name in claim.up_to if name in LATENT_GROUPS])
    edges = any(name not in LATENT_GROUPS for name in claim.up_to)
    return len(group.free) + 10 * group.mixes + 10 * edges


def _worth(choice: Choice) -> tuple[Any, ...]:
    """Sorts best first: models that can be fitted, that read environments and views where there are some, that
    identify most, most surely and most tightly."""
    held: Sequence[ClaimChoice] = choice.identifies
    sure = sum(claim.state == "met" for claim in held)
    freedom = sum(claim.freedom for claim in held)
    return (
        bool(choice.lacks),
        bool(choice.unread) or not held,
        -sure,
        -len(held),
        freedom,
        len(choice.missing),
        choice.model,
    )
