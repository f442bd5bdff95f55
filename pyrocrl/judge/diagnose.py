"""`diagnose`: did these data identify what the model's card claims?

The chains are aligned by the claim's group and weighted by their held-out objective. Chains that reach the same
objective with different answers are evidence of non-identification. Chains that never reach the best objective are
evidence of poor optimisation, unless they agree on what is claimed: then they differ in what is not, a decoder's last
steps, say. The claim's own conditions are checked on the data and the posterior as well: a
variational family can break a symmetry of the likelihood, so agreement alone proves nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrocrl.claims.card import AT_RANDOM, CONDITIONS, ON_WORD, OUTCOMES, Claim
from pyrocrl.claims.conditions import Lack
from pyrocrl.claims.indeterminacy import graph_distance, transitive_closure
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer import stories
from pyrocrl.infer.chains import Repeated, mix
from pyrocrl.infer.checkpoint import fingerprint
from pyrocrl.infer.elbo import guide_trace, is_local, sample_sites, traces
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.infer.weights import TIE
from pyrocrl.judge.checks import CHECKS
from pyrocrl.judge.checks.environments import open_directions
from pyrocrl.judge.checks.shared import AGREE, AGREE_EACH, EVIDENT, FAR, SURE, TELLING
from pyrocrl.judge.equivalence import class_draws
from pyrocrl.judge.fit_tests import Found, tests
from pyrocrl.judge.gaps import Gaps, gaps_go_with
from pyrocrl.judge.turned_latents import ASSUMPTION, Perturbed, compare
from pyrocrl.options import Natural, Seed, checked
from pyrocrl.turns import drawing

Outcome = Literal[
    "identified",
    "identified if",
    "identified, undecided at this n",
    "not converged",
    "contradicted",
    "not identified",
]
HOLDS = ("identified", "identified if")  # the answer may be read
Result = Literal["holds", "fails", "open", "on your word"]
OVERLAP = 0.8  # least overlap of two chains' masks or graphs, sum of minima over sum of maxima of probabilities
TIE_NATS = 0.01  # ... or within this share of the objective's spread over rows
WRONG_ENTRIES = 0.05  # expected share of a mask's entries that are wrong, from which it is undecided
KHAT_ROWS = 100
RHAT_ROWS, RHAT_DRAWS = 40, 20
KHAT_DRAWS = 200


@dataclass(frozen=True)
class Finding:
    """An assumption or condition of a claim, how it was looked at, and the result; p: of a test, corrected for their
    number."""

    assumption: str
    check: str
    result: Result
    detail: str = ""
    p: float | None = None


@dataclass(frozen=True)
class ClaimVerdict:
    """One claim's verdict, the reason in words and what it rests on.

    latents: for a claim on latents each one's agreement, the mean over pairs of the chains that were compared. which:
    the latents that mix, the edges or entries that turn or are undecided. rows: with how many rows in all an undecided
    claim would probably be decided. given: every assumption that no data of this kind can show, and what is left where
    it is wrong. evidence: each assumption and condition, what was looked at, and what was found.
    """

    claim: str
    what: str
    verdict: Outcome
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)
    latents: dict[str, float] = field(default_factory=dict)
    which: tuple[str, ...] = ()
    rows: float | None = None
    given: dict[str, str] = field(default_factory=dict)
    evidence: tuple[Finding, ...] = ()

    @property
    def identified(self) -> bool:
        """Whether the answer may be read: identified, be it on one's word for what no data can show."""
        return self.verdict in HOLDS

    def __str__(self) -> str:
        text = f"{self.what}: {self.verdict.upper()}"
        if self.verdict == "identified if":
            text += f" {'; '.join(self.given)}"
        text += f" - {self.reason}"
        if self.given and self.verdict != "identified if" and self.verdict.startswith("identified"):
            text += f"; given that {'; '.join(self.given)}"
        for left in filter(None, dict.fromkeys(self.given.values()) if self.verdict == "identified if" else ()):
            text += f". Otherwise: {left}"
        return text


@dataclass(frozen=True)
class Verdict:
    """Verdicts of all claims, and how the chains compare. `str()` is a short text, `to_dict()` JSON."""

    model: str
    claims: tuple[ClaimVerdict, ...]
    chains: dict[str, Any]
    fit: str | None = None  # its digest

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.chains['held_out'])} chains, {self.chains['ties']} at the best objective"]
        if stopped := self.chains.get("stopped"):
            lines[0] += f"; {len(stopped)} more stopped early, far behind, and not compared"
        if not self.claims:
            lines.append("  claims nothing: there is nothing to identify")
        return "\n".join(lines + [f"  {claim}" for claim in self.claims])

    def to_dict(self) -> dict[str, Any]:
        claims = [asdict(c) for c in self.claims]
        return {"model": self.model, "fit": self.fit, "claims": claims, "chains": self.chains}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Verdict:
        """The verdict of which `to_dict` made this."""
        claims = []
        for claim in found["claims"]:
            evidence = tuple(Finding(**one) for one in claim.get("evidence", ()))
            claims.append(ClaimVerdict(**{**claim, "which": tuple(claim.get("which", ())), "evidence": evidence}))
        return cls(found["model"], tuple(claims), found["chains"], found.get("fit"))

    def __getitem__(self, what: str) -> ClaimVerdict:
        """The verdict of the claim on latents, mask, graph, ..."""
        for c in self.claims:
            if c.what == what:
                return c
        reject("what", repr(what), ", ".join(c.what for c in self.claims) or "nothing: the model makes no claim")


@checked
def diagnose(fit: Fit, data: Data | None = None, *, perturbed: Natural = 2, seed: Seed = 0) -> Verdict:
    """A verdict for every claim of the fitted model's card.

    not identified: a condition fails, or chains equally good disagree and rows tell them no better. contradicted: a
    test of the fit against the data fails (`pyrocrl.judge.fit_tests`). not converged: one chain alone reaches the best
    objective and no other agrees with it on what is claimed. identified, undecided at this n: neither, and yet the
    posterior leaves open what is claimed. identified if: the chains that reach the best held-out objective, or evidence
    where it is known, agree after alignment and nothing is open, given assumptions that no data of this kind can show.
    identified: as before, and there are none. A graph is never surer than its latents.

    perturbed: as many chains are begun at turned latents of the reference chain and fitted for a quarter of its epochs
    (`pyrocrl.perturbed_chains`), of models that can and rows that are the fit's own; 0 = none. One that fits as well
    elsewhere is evidence that the latents are not told.

    Beside it: r-hat after alignment, pairwise agreement, stacking weights, and PSIS k-hat of the guide (below .7 its
    draws can be trusted; Yao 2018).
    """
    given, data = data or fit.data, fit._data(data)
    ties = tied_chains(fit.held_out.numpy(), fit.log_evidence, fit.evidence_error)
    khat = psis_khat(fit, data, seed)
    chains = {
        "held_out": fit.scores.tolist(),
        "weights": fit.weights.tolist(),
        "reference": fit.reference,
        "ties": int(ties.sum()),
        "tied": ties.tolist(),
        "agreement": pairwise_agreement(fit).tolist(),
        "khat_median": khat["median"],
        "khat_above_0.7": khat["bad"],
        "retired": len(fit.meta["retired"]),
        "stopped": [one["chain"] for one in fit.meta.get("stopped", [])],
    }
    claims = fit.program.claims()
    known = _Known(fit, data, ties, tests(fit, data) if claims else ())
    if claims and perturbed and given is not None and fingerprint(given) == fit.meta["fingerprint"]:
        known.perturbed = compare(fit, given, perturbed, seed)
    judged = [_judge(known, claim) for claim in claims]
    return Verdict(fit.program.card.name, tuple(_no_surer_than_latents(judged)), chains, fit.digest)


@dataclass
class _Known:
    """What verdicts of all claims are read from."""

    fit: Fit
    data: Data
    ties: np.ndarray
    tests: tuple[Found, ...]
    perturbed: Perturbed | None = None

    @cached_property
    def arcs(self) -> list[np.ndarray]:
        """(parent, child) of each chain: probabilities that the class of the graph has an arc that way."""
        return [classes.mean(0) for classes, _, _ in class_draws(self.fit, self.data)]

    @property
    def lacking(self) -> Data | None:
        """The rows of the fit, or these, if values are missing there."""
        return next((rows for rows in (self.fit.data, self.data) if rows is not None and rows.incomplete), None)

    @cached_property
    def gaps(self) -> Gaps | None:
        """Whether what is missing goes with what was measured; None where nothing is, or can be compared."""
        return None if self.lacking is None else gaps_go_with(self.lacking)

    @cached_property
    def rivals(self) -> dict[str, float]:
        """Kinds of interventions that keep equations, against the kind told."""
        return self.fit.chains.chain(self.fit.reference).rivals(("shift", "variance"))


def _no_surer_than_latents(judged: list[ClaimVerdict]) -> list[ClaimVerdict]:
    """The verdict on the graph is the latents' where that is less sure: its nodes are these."""
    latents = next((one for one in judged if one.what == "latents"), None)
    order = list(OUTCOMES)
    out = []
    for one in judged:
        if latents is not None and one.what == "graph" and order.index(one.verdict) < order.index(latents.verdict):
            reason = f"its latents are {latents.verdict}: {latents.reason}"
            one = replace(one, verdict=latents.verdict, reason=reason, rows=one.rows or latents.rows)
        out.append(one)
    return out


def _judge(known: _Known, claim: Claim) -> ClaimVerdict:
    fit, ties = known.fit, known.ties
    numbers: dict[str, float] = {"chains": float(fit.chains.count), "chains_at_best": float(ties.sum())}
    chains = str(fit.chains.count)
    if stopped := len(fit.meta.get("stopped", [])):
        numbers["chains_stopped"] = float(stopped)
        chains = f"{fit.chains.count + stopped}"
    lacks, evidence = _conditions(known, claim)
    given = _given(known, claim, evidence)
    failed = [test for test in known.tests if test.fails]
    alone = ties.sum() < 2
    compared = np.flatnonzero(ties)
    if alone:  # chains may fall behind in what is not claimed
        best, every = fit.reference, range(fit.chains.count)
        compared = np.array([c for c in every if c == best or _agreement(known, claim, np.array([best, c]), {})[0]])
    agree, words = _agreement(known, claim, compared, numbers)
    each: dict[str, float] = {}
    if claim.what == "latents":
        numbers["rhat_max"] = rhat_after_alignment(fit, known.data, compared)
        each = latents_agreement(fit, compared)

    def said(verdict: Outcome, reason: str, which: tuple[str, ...] = (), rows: float | None = None) -> ClaimVerdict:
        return ClaimVerdict(
            claim.sentence(), claim.what, verdict, reason, numbers, each, which, rows, given, tuple(evidence)
        )

    closed = [lack for lack in lacks if not lack.rows]
    if closed:
        which = tuple(dict.fromkeys(name for lack in closed for name in lack.which))
        return said("not identified", "; ".join(dict.fromkeys(lack.reason for lack in closed)), which)
    doubts = "; ".join(test.words for test in failed)
    by_chance = [known.gaps.words] if known.gaps is not None and known.gaps.words else []
    if known.perturbed is not None and known.perturbed.better.any():
        return said(
            "not converged", f"a chain begun elsewhere fits better ({known.perturbed}); fit more chains or longer"
        )
    if len(compared) < 2:
        evidence_of = fit.log_evidence
        measure, unit = ("held-out objective", "nats a row") if evidence_of is None else ("evidence", "nats")
        standing = np.sort(fit.scores if evidence_of is None else evidence_of)[::-1]
        gap = (
            f", the next is {standing[0] - standing[1]:.3g} {unit} below and no other agrees"
            if len(standing) > 1
            else ""
        )
        reason = (
            f"only {int(ties.sum())} of {chains} chains reached the best {measure}{gap}"
            + (f"; {stopped} were stopped early, far behind, and are not compared" if stopped else "")
            + "; fit more chains or longer"
            + (f"; the fit is at odds with the data as well ({doubts})" if failed else "")
        )
        return said("not converged", reason)
    if failed:
        tries = "; ".join(dict.fromkeys(each for test in failed if test.remedy for each in test.remedy.split("; ")))
        doubts = "; ".join([doubts, *by_chance])
        return said("contradicted", doubts + (f". To try: {tries}" if tries else ""))
    apart = f", {stopped} stopped early and not compared," if stopped else ""
    reach = f"{int(ties.sum())} of {chains} chains{apart} reach the best objective and, aligned, "
    if alone:
        reach = f"1 of {chains} chains{apart} reaches the best objective and, with {len(compared) - 1} below it, "
    few = [lack for lack in lacks if lack.rows]
    if few:
        which, needed = tuple(dict.fromkeys(name for x in few for name in x.which)), max(x.rows for x in few)
        return said("identified, undecided at this n", "; ".join(x.reason for x in few), which, needed)
    if not (agree or alone):  # all agree with the best one
        rows = _rows_to_tell(known, claim, compared)
        weak = tuple(name for name, value in each.items() if value < AGREE_EACH)
        if rows is None:
            return said("not identified", reach + words, weak)
        return said("identified, undecided at this n", f"{reach}{words}; {_rows_in_words(rows)}", weak, rows)
    which, rows = _undecided(known, claim)
    if which:
        shown = ", ".join(which[:4]) + (f" and {len(which) - 4} more" if len(which) > 4 else "")
        return said("identified, undecided at this n", f"{shown} undecided; {_rows_in_words(rows)}", which, rows)
    as_well = [
        f"{kind} fits as well ({gain:+.0f} nats of evidence)"
        for kind, gain in (known.rivals if any(one.startswith("interventions") for one in given) else {}).items()
        if gain > -EVIDENT
    ]
    reason = "; ".join([reach + words, *as_well, *by_chance])
    rows_each = np.bincount(known.data.env)
    if as_well and (few_rows := float(rows_each[rows_each > 0].min())) < TELLING:
        # a peak without edges, which such equations would have as well, is what few rows may leave of any graph
        return said("identified, undecided at this n", reason, (), known.data.rows * TELLING / few_rows)
    return said("identified if" if given else "identified", reason)


def _rows_in_words(rows: float) -> str:
    return (
        f"about {float(f'{rows:.1g}'):,.0f} rows would probably decide" if math.isfinite(rows) else "more rows decide"
    )


def _conditions(known: _Known, claim: Claim) -> tuple[list[Lack], list[Finding]]:
    """What the claim lacks, and the whole list of what was looked at."""
    fit, data = known.fit, known.data
    lacks: list[Lack] = []
    evidence: list[Finding] = []

    def note(assumption: str, check: str, lack: Lack | None) -> None:
        lacks.extend([lack] if lack else [])
        result: Result = "holds" if lack is None else "open" if lack.rows else "fails"
        evidence.append(Finding(assumption, check, result, lack.reason if lack else ""))

    for need in claim.conditions:
        lack = CHECKS[need](fit, data)
        if need in ON_WORD and lack is None:
            continue  # whether that is so, no check says
        note(CONDITIONS[need], "data and fit", lack)
    if claim.what in ("latents", "loadings") and not fit.program.group.mixes:
        turned = rotation_freedom(fit, data)
        note("no rotation of the latents fits as well", "the fitted program", Lack(turned, "") if turned else None)
    if known.perturbed is not None and claim.what in ("latents", "loadings", "mask"):
        check = f"{len(known.perturbed.worse)} chains begun at turned latents"
        lack = known.perturbed.lack(
            [name for name, use in zip(fit.names["latent"], fit.in_use(fit.reference), strict=True) if use]
        )
        note(ASSUMPTION, check, lack)
        open_ = lack is None and known.perturbed.climbing.all()  # of chains that were fitted for too short a time
        result: Result = "open" if open_ else evidence[-1].result
        evidence[-1] = replace(evidence[-1], result=result, detail=str(known.perturbed))
    if fit.program.completion is not None and fit.program.completion.probabilities(claim.what) is not None:
        gates = (
            f"the {claim.what} of this variant has independent gates, settled from where the chains start: that chains "
            f"agree is no evidence of it; a `model` that sums the {claim.what} out would give some"
        )
        note("chains that agree are evidence", "the variant's guide", Lack(gates, ""))
    for test in known.tests:
        for sentence in test.tested or ("the model describes the data",):
            result = "fails" if test.fails else "holds"
            evidence.append(Finding(sentence, test.name, result, test.detail, test.p))
    return lacks, evidence


def _given(known: _Known, claim: Claim, evidence: list[Finding]) -> dict[str, str]:
    """Assumptions that nothing above has tested, and what is left without each; they join the evidence."""
    tested = {one.assumption for one in evidence}
    out = {sentence: "" for sentence in claim.given if sentence not in tested}
    for sentence in out:
        if sentence.startswith("interventions are"):
            out[sentence] = ON_WORD["perfect_interventions"][1]
    program = known.fit.program
    told = not any(sentence.startswith("interventions are") for sentence in claim.given)
    told = told and "held_at_constants" not in claim.needs  # of what is held at a constant that shows
    for need in claim.conditions:
        if need in ON_WORD and told and not (need == "nonlinear_or_replaced" and program.mechanism_kind != "linear"):
            sentence, left = ON_WORD[need]
            out[sentence] = left
    if known.lacking is not None:
        sentence, left = AT_RANDOM
        out[sentence] = left
    for sentence in out:
        check, detail = "none", ""
        if sentence == AT_RANDOM[0] and known.gaps is not None:
            check = "whether what is missing goes with what was measured"
            detail = known.gaps.words or f"not to be seen (p = {known.gaps.p:.2g})"
        if sentence.startswith("interventions") and (others := known.rivals):
            check = "evidence of other kinds"
            detail = ", ".join(
                f"{kind} {gain:+,.0f} nats" + " (fits as well)" * (gain > -EVIDENT) for kind, gain in others.items()
            )
        evidence.append(Finding(sentence, check, "on your word", detail))
    return out


def _rows_to_tell(known: _Known, claim: Claim, compared: np.ndarray) -> float | None:
    """Rows that would probably tell chains apart that disagree on what is claimed, or None where no number would.

    Two answers of one law give every row the same density. Where rows' densities differ by a deviation s, the answers
    are `log(SURE / (1 - SURE))` nats apart after that many times 2 / s^2 rows. Where rows as many as those of the fit
    should have told them, the difference is noise of the objective.
    """
    fit, rows = known.fit, known.data.rows
    if claim.what != "latents" and _agree_on_latents(fit, compared):  # what is open is open given the latents
        return _undecided(known, claim)[1] or 2.0 * rows
    needed = []
    for i, a in enumerate(compared):
        for b in compared[i + 1 :]:
            if not _agreement(known, claim, np.array([a, b]), {})[0]:
                s = float((fit.held_out[a] - fit.held_out[b]).std())
                needed.append(2 * math.log(SURE / (1 - SURE)) / max(s, 1e-12) ** 2)
    if not needed or max(needed) > FAR * rows:
        return None
    if max(needed) < rows:
        return None if fit.program.uses_rows else 2.0 * rows
    return max(needed)


def _agree_on_latents(fit: Fit, chains: np.ndarray) -> bool:
    each = latents_agreement(fit, chains)
    return bool(each) and float(np.mean(list(each.values()))) >= AGREE and min(each.values()) >= AGREE_EACH


def _undecided(known: _Known, claim: Claim) -> tuple[tuple[str, ...], float]:
    """Edges, targets or entries that the posterior leaves open, up to what the claim does, and rows to decide them."""
    fit, names = known.fit, known.fit.names
    if claim.what not in ("graph", "mask", "targets", "parents"):
        return (), 0.0
    values = getattr(fit, claim.what)()
    if values is None:
        return (), 0.0
    if by_class := "interventional equivalence" in claim.up_to:  # an edge that the class leaves open has arcs both ways
        values = np.einsum("c,cpk->pk", fit.weights, np.stack(known.arcs))
    unsure = np.minimum(values, 1 - values) > 1 - SURE
    if claim.what == "mask":
        if np.minimum(values, 1 - values).sum() <= WRONG_ENTRIES * max(values.sum(), 1e-12):
            return (), 0.0
        sides = names["feature"], names["latent"]
        label = "{} of {}"
    elif claim.what == "targets":
        sides, label = (names["env"], names["latent"]), "{} on {}"
    elif claim.what == "parents":
        sides, label = (names["feature"], [names["feature"][fit.program.config["response"]]]), "{} -> {}"
        wrong = np.minimum(values, 1 - values)  # the set is claimed: all of it has to be right
        unsure = wrong > ((1 - SURE) / len(wrong) if wrong.sum() > 1 - SURE else 1.0)
    else:
        sides, label = (names["latent"], names["latent"]), "{} -> {}"
        kinds = [name for name in claim.up_to if name in ("transitive closure", "markov equivalence")]
        if kinds == ["markov equivalence"]:
            values = values + values.T  # that a pair is joined
            unsure = np.triu(np.minimum(values, 1 - values) > 1 - SURE)
            label = "{} - {}"
        elif kinds and _same_closure(values):
            return (), 0.0
    open_ = np.argwhere(unsure)
    if not len(open_):
        return (), 0.0
    directed = claim.what == "graph" and label == "{} -> {}" and not by_class
    turning = {*open_directions(values)} if directed else set()
    rows = []
    for i, j in open_:
        p = float(values[i, j])
        if (min(i, j), max(i, j)) in turning:  # log odds of a direction grow with the rows, either way
            rate = abs(math.log(p / max(1 - p, 1e-9)))
            rows.append(known.data.rows * math.log(SURE / (1 - SURE)) / max(rate, 0.05))
        else:
            p = min(float(wrong.sum()), 0.5) if claim.what == "parents" else p  # that the set is wrong
            rows.append(_rows_to_decide(p, known.data.rows))
    which = tuple(label.format(sides[0][i], sides[1][j]) + f" ({values[i, j]:.2f})" for i, j in open_)
    return which, max(rows)


def _rows_to_decide(p: float, rows: int) -> float:
    """Rows at which something of the probability p, of these rows, probably has one of `SURE` or 1 - `SURE`.

    By Schwarz's criterion log odds are half of z^2 less half the logarithm of the rows. With r times the rows, z^2 of
    what is there becomes r z^2, and that of what is not z^2 / r + 1 - 1 / r: chance wears off. p says which to expect.
    """
    logit, asked, times = math.log(p / (1 - p)), math.log(SURE / (1 - SURE)), np.geomspace(1, 1000, 500)
    square = max(2 * logit + math.log(rows), 0.0)
    later = square * times if p > 0.5 else square / times + 1 - 1 / times
    odds = 0.5 * (later - np.log(rows * times))
    enough = odds >= asked if p > 0.5 else odds <= -asked
    return float(rows * (times[enough.argmax()] if enough.any() else times[-1]))


def _same_closure(values: np.ndarray) -> bool:
    """Whether the sure edges and the possible ones make the same ancestors."""
    return bool((transitive_closure(values > SURE) == transitive_closure(values > 1 - SURE)).all())


def _agreement(known: _Known, claim: Claim, compared: np.ndarray, numbers: dict[str, float]) -> tuple[bool, str]:
    """Whether these chains agree on what is claimed, in words; the measure goes into `numbers`."""
    fit = known.fit
    if claim.what in ("mask", "graph", "targets", "parents"):
        values = fit.chain_values("targets_matrix" if claim.what == "targets" else claim.what)
        if values is None:
            return False, f"have no {claim.what} to compare"
        pairs = [(a, b) for i, a in enumerate(compared) for b in compared[i + 1 :]]
        if "interventional equivalence" in claim.up_to:  # of draws: its undirected edges have no probable direction
            arcs = known.arcs
            each = [
                (arcs[a] * arcs[b]).sum() / max(arcs[a].sum(), arcs[b].sum(), 1e-9) for a in compared for b in compared
            ]
            least = float(min(each)) if max(arc.sum() for arc in arcs) > 0.01 else 1.0
            numbers["overlap_least"] = least
            words = f"draws of their graphs share {least:.0%} of their classes' edges at least ({OVERLAP:.0%} is asked)"
            return least >= OVERLAP, words
        if claim.what == "graph" and "exact" not in claim.up_to:
            kinds = [name for name in claim.up_to if name in ("transitive closure", "markov equivalence")]
            if kinds:
                apart = [_share_apart(values[a], values[b], kinds[0]) for a, b in pairs]
                worst = float(np.max(apart, initial=0.0))
                numbers["largest_difference"] = worst
                return worst == 0, f"their graphs differ in {worst:.0%} of the pairs at most, up to {kinds[0]}"
        if claim.what == "parents":  # of few columns, of which none may be probable
            worst = float(np.max([np.abs(values[a] - values[b]).max() for a, b in pairs], initial=0.0))
            numbers["largest_difference"] = worst
            words = f"their probabilities of parents differ by {worst:.2f} at most ({1 - SURE:.1f} is let be)"
            sure = ", ".join(fit.guaranteed() or ["none"])
            return worst <= 1 - SURE, f"{words}; invariance alone guarantees {sure} (level .05)"
        shared = [_overlap(values[a], values[b]) for a, b in pairs]
        least = min(shared, default=1.0)
        numbers["overlap_least"] = least
        entries = {"graph": "edges", "mask": "entries", "targets": "targets"}[claim.what]
        return least >= OVERLAP, f"share {least:.0%} of their probable {entries} at least ({OVERLAP:.0%} is asked)"
    matrix = pairwise_agreement(fit)[np.ix_(compared, compared)]
    off = matrix[~np.eye(len(compared), dtype=bool)]
    mean, least = (float(off.mean()), float(off.min())) if off.size else (1.0, 1.0)
    numbers["agreement_mean"], numbers["agreement_least"] = mean, least
    words = f"their latents correlate {mean:.3f} on average ({least:.3f} for the least alike chains; {AGREE} is asked)"
    weak = {name: value for name, value in latents_agreement(fit, compared).items() if value < AGREE_EACH}
    if weak:
        words += f"; {', '.join(f'{name} only {value:.3f}' for name, value in weak.items())} ({AGREE_EACH} is asked)"
    return mean >= AGREE and not weak, words


def _share_apart(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    """Share of pairs of nodes on which two chains' edge probabilities tell apart what is claimed up to `kind`.

    Of a Markov equivalence class: which are joined, and directions of which both are sure. Directions that it leaves
    open have the probability of chance, so that edges above one half may make a cycle.
    """
    if kind != "markov equivalence":
        return graph_distance(a > 0.5, b > 0.5, kind)
    joined = (a + a.T > 0.5) != (b + b.T > 0.5)
    turned = ((a > SURE) & (b.T > SURE)) | ((a.T > SURE) & (b > SURE))
    pairs = np.triu_indices(len(a), 1)
    return float((joined | turned)[pairs].mean()) if len(pairs[0]) else 0.0


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that two chains have in common, over what either has, of entries that one of them does not surely
    lack; 1 where there are none."""
    there = np.maximum(a, b) > 1 - SURE
    return float(np.minimum(a, b)[there].sum() / np.maximum(a, b)[there].sum()) if there.any() else 1.0


def tied_chains(
    held_out: np.ndarray, log_evidence: np.ndarray | None = None, error: np.ndarray | float = 0.0
) -> np.ndarray:
    """(chain,) whether a chain is as good as the best one: of evidence within `EVIDENT` nats of the most, or `TIE` of
    its errors (chain,), where that is known, or of a held-out objective (chain, rows) that equals the best one within
    the noise of the rows compared.

    The difference of two chains on the same rows has a standard error; `TIE` of them, or `TIE_NATS` of the rows'
    spread where rows are many, count as equal.
    """
    if log_evidence is not None:
        return log_evidence.max() - log_evidence <= np.maximum(EVIDENT, TIE * error)
    best = int(np.argmax(held_out.mean(1)))
    gap = held_out[best][None] - held_out
    error = gap.std(1) / np.sqrt(held_out.shape[1])
    return gap.mean(1) <= np.maximum(TIE * error, TIE_NATS * held_out[best].std())


def pairwise_agreement(fit: Fit) -> np.ndarray:
    """(chain, chain) mean agreement of latents after alignment, over latents in use in either chain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two chains that use no latent agree
        return np.nan_to_num(np.nanmean(fit.agreement, -1), nan=1.0)


def latents_agreement(fit: Fit, chains: np.ndarray) -> dict[str, float]:
    """Mean agreement over pairs of these chains of every latent in use; none where latents mix or chains are few."""
    if len(chains) < 2 or fit.program.group.mixes:
        return {}
    first, second = (chains[side] for side in np.triu_indices(len(chains), 1))
    pairs = fit.agreement[first, second]  # (pair, latent)
    return {
        name: float(np.nanmean(values))
        for name, values in zip(fit.names["latent"], pairs.T, strict=True)
        if not np.isnan(values).all()
    }


def rhat_after_alignment(fit: Fit, data: Data, chains: np.ndarray, seed: int = 0) -> float:
    """Largest r-hat over latents, of aligned draws of z on the same rows (Gelman & Rubin 1992): the variance between
    chains' means, less what so few draws leave, against that within chains, both averaged over rows. 1 = the chains
    tell one posterior. `nan` for one chain, where latents mix, and for innovations, of which there are no draws.
    """
    if len(chains) < 2 or fit.program.group.mixes or fit.program.reads_innovations:
        return float("nan")
    rows = data.rows_at(data.spread(RHAT_ROWS))
    drawn = fit.posterior(RHAT_DRAWS, rows, predictive=False, density=False, thin=1, seed=seed)["posterior"][
        "z"
    ].to_numpy()[chains]
    used = fit.in_use(fit.reference)[fit.alignments[fit.reference].permutation]
    within = drawn.var(1, ddof=1).mean((0, 1))  # (latent,)
    between = drawn.mean(1).var(0, ddof=1).mean(0) - within / RHAT_DRAWS
    rhat = np.sqrt(1.0 + np.maximum(between, 0.0) / np.maximum(within, 1e-12))
    return float(rhat[used].max()) if used.any() else float("nan")


def psis_khat(fit: Fit, data: Data, seed: int = 0) -> dict[str, float]:
    """PSIS k-hat of the reference chain's guide (Yao 2018), for up to 100 rows' local latents or, for a model
    whose latents are integrated out, for its global sites: the median and the share above .7."""
    program = fit.chains.chain(fit.reference)
    few = data.rows_at(data.spread(KHAT_ROWS)) if program.uses_rows else data
    batch = fit.batch_of(few).annealed()
    with drawing(mix(seed, 37)), torch.no_grad():
        fixed = guide_trace(program, batch)
        for name in [n for n, s in fixed.nodes.items() if s["type"] == "sample" and is_local(s)]:
            fixed.remove_node(name)

        def ratio() -> Tensor:
            # of rows' latents: with the global sites held at one draw
            guide, model = traces(program, batch, fixed if program.uses_rows else None)
            return _log_ratio(guide, model, program.uses_rows, len(batch))

        ratios = Repeated(fit.chains.batched)(ratio, KHAT_DRAWS).mT.cpu().numpy()
    khat = np.array([pareto_khat(one) for one in ratios])
    khat = khat[np.isfinite(khat)]
    if not khat.size:
        return {"median": float("nan"), "bad": float("nan")}
    return {"median": float(np.median(khat)), "bad": float((khat > 0.7).mean())}


def pareto_khat(log_weights: np.ndarray) -> float:
    """Shape of the generalised Pareto law of the largest importance weights: log_weights (draw,), k-hat of them.

    The tail of Vehtari et al. (2024), fitted as Zhang & Stephens (2009) do, with their weak prior towards .5. inf for
    a tail of fewer than 5 weights and where one is not a number.
    """
    draws = len(log_weights)
    with np.errstate(all="ignore"):
        log_weights = log_weights - log_weights.max()
        start = np.sort(log_weights)[-math.ceil(min(draws / 5, 3 * math.sqrt(draws))) - 1]
        start = max(start, math.log(np.finfo(float).tiny))
        tail = np.sort(np.exp(log_weights[log_weights > start]) - math.exp(start))
        count = len(tail)
        if count < 5:
            return math.inf
        grid = 30 + int(math.sqrt(count))
        rate = 1 / tail[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * tail[int(count / 4 + 0.5) - 1])
        shape = np.log1p(-rate[:, None] * tail).mean(1)
        profile = count * (np.log(-rate / shape) - shape - 1)
        weight = np.exp(profile - profile.max())
        weight = np.where(weight / weight.sum() < 10 * np.finfo(float).eps, 0.0, weight)
        shape = np.log1p(-(weight @ rate / weight.sum()) * tail).mean()
    return float((count * shape + 5) / (count + 10))


def _log_ratio(guide: Any, model: Any, local: bool, rows: int) -> Tensor:
    """log p - log q of one draw: (rows,) for local latents, else (1,)."""
    out: Tensor | float = 0.0
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        for _, site in sample_sites(trace):
            if not local:
                out = out + sign * site["log_prob_sum"].double().reshape(1)
            elif is_local(site):
                out = out + sign * site["unscaled_log_prob"].expand(rows).double()
    return torch.as_tensor(out)


def rotation_freedom(fit: Fit, data: Data) -> str | None:
    """Why the latents of the reference chain may be rotated at no cost, or None where nothing shows that they may.

    They may if the prior of z is Gaussian, the same for every row, the mean of x (or its logarithm) is linear in z,
    and no mask keeps any latent from any feature: then W z = (W Q^-1)(Q z). A diagonal guide hides this freedom,
    for the ELBO prefers the axes of PCA (Lucas 2019), so that chains agree on latents the data do not know.
    """
    program = fit.chains.chain(fit.reference)
    few = data.rows_at(np.arange(min(data.rows, 200)))
    batch = fit.batch_of(few).annealed()
    with drawing(41), torch.no_grad():
        mask = program.mask()
        if mask is not None and not (mask > INCLUDED).all():
            return None
        loadings = program.loading_matrix()
        if loadings is not None and (loadings[1] == 0).any():  # some are 0 by the story
            return None
        model = traces(program, batch)[1]
        site = model.nodes.get("z")
        if site is None or site["value"].dim() != 2 or site["value"].shape[1] < 2:
            return None
        prior, z = site["fn"], site["value"]
        inner = getattr(prior, "base_dist", prior)
        if not isinstance(inner, torch.distributions.Normal | torch.distributions.MultivariateNormal):
            return None
        loc, spread = prior.mean.expand_as(z), getattr(inner, "covariance_matrix", None)
        if spread is None:
            spread = torch.diag_embed(inner.variance)
        spread = spread.expand(len(z), *spread.shape[-2:])
        if not (torch.allclose(loc, loc[:1]) and torch.allclose(spread, spread[:1])):
            return None
        values = stories.drawn(program, batch, local=False)
        a, b = torch.randn_like(z), torch.randn_like(z)
        parts = [stories.expected(program, batch, {**values, "z": v}) for v in (a, b, a + b, torch.zeros_like(a))]
        if data.counts:
            parts = [part.log() for part in parts]
        bent = (parts[0] + parts[1] - parts[2] - parts[3]).abs().max()
        if bent > 1e-3 * (parts[2] - parts[3]).abs().max():
            return None
    return "the prior is Gaussian, the mixing linear and dense: any rotation of the latents fits the data as well"
