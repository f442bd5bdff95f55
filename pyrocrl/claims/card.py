"""What a model assumes, needs and claims, declared once beside its code.

Cards are read by the command line, the README, the documentation, the tests and `diagnose`; they hold no
code. A claim is a sentence that a machine can test: *what* is identified, *up to* which group (see
`pyrocrl.indeterminacy`), *given* assumptions that only a person can judge, and *needs*: conditions that
`diagnose` checks on the data or on the posterior.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from pyrocrl.claims.indeterminacy import GRAPH_GROUPS, LATENT_GROUPS, Group
from pyrocrl.errors import one_of, reject

What = Literal["latents", "mask", "graph", "loadings", "targets", "parents"]
Status = Literal["experimental", "stable"]

TARGETS: dict[str, str] = {
    "known": "the latents that each environment intervenes on are given",
    "relabelled": "environments that share a target are given, the latent it is called by is not",
    "unknown": "targets are inferred",
}

INTERVENTIONS: dict[str, str] = {
    "perfect": "replace the target's mechanism, so that it loses its parents",
    "soft": "give the target new weights on the parents it keeps",
    "variance": "rescale the target's noise",
    "shift": "add a constant to the target",
}

MECHANISMS: dict[str, str] = {
    "linear": "structural equations are linear",
    "nonlinear": "structural equations are any functions of the parents",
    "relu": "structural equations are linear in the parents' positive parts",
}

VALUES: dict[str, str] = {"continuous": "latents are numbers", "binary": "latents are on or off"}

# what no data tell: asked by `choose`, told to a fit by options of these names, in these words
ASSUMPTIONS = {"intervention": INTERVENTIONS, "targets": TARGETS, "mechanism": MECHANISMS, "values": VALUES}

# how sure a claim is, the surest first
OUTCOMES: dict[str, str] = {
    "identified": "conditions hold, independent fits agree, and so does all that the data can show",
    "identified if": "as identified, given assumptions that no data of this kind can show",
    "identified, undecided at this n": "there is one answer, and these rows do not settle it yet",
    "not converged": "too few fits reached the best objective to say anything",
    "contradicted": "the data contradict an assumption",
    "not identified": "other answers fit the data as well",
}

CONDITIONS: dict[str, str] = {
    "more_features_than_latents": "there are more features than latents",
    "two_anchors": "every latent in use has two features that load on it alone",
    "pure_features": "every latent in use has two features that load on it all but alone",
    "pure_children": "every latent in use has three features of its own, or two if it depends on another",
    "clusters_apart": "no two latents fit as well as one, nor one as two",
    "directions_shown": "v-structures or innovations that are not Gaussian tell all directions",
    "noise_told_apart": "without any one feature, the others hold two disjoint sets that fix all latents",
    "simple_structure": "for each latent, features that do not load on it fix all others, more than chance gives",
    "zeros_tell": "for each latent, features that do not load on it, or rows without it, fix all others",
    "observational_environment": "one environment is observational",
    "one_intervention_per_latent": "every latent is the target of an environment",
    "two_interventions_per_latent": "every latent is the target of two environments",
    "single_targets": "no environment has more than one target",
    "separated_targets": "any two latents are told apart by an environment that targets one of them only",
    "perfect_interventions": "interventions replace mechanisms, not only shift or rescale their noise",
    "nonlinear_or_replaced": "interventions replace mechanisms, or the structural equations are nonlinear",
    "two_components": "the latents' mixture has at least two components in use",
    "distinct_variance_ratios": "two components' variances have a different ratio for every latent",
    "non_gaussian": "at most one latent is Gaussian",
    "axes_told": "rows are enough for tails to tell each latent from mixtures of it with others",
    "number_told": "rows are enough to say how many latents there are",
    "enough_settings": "the auxiliary variable takes more values than there are latents",
    "interventions_show": "every intervention changes the law of the latents",
    "more_environments": "there are more environments than latents",
    "twice_the_environments": "there are more than twice as many environments as latents",
    "modulated_apart": "environments move the laws of all latents, and none along with others",
    "free_environment": "an environment holds no latent at a constant",
    "held_at_constants": "interventions hold their target at a constant",
    "not_collinear": "latents are not perfectly correlated",
    "turned_apart": "no two latents may be turned so that features they share are pure children in place of others",
    "number_apart": "no other number of latents fits nearly as well",
    "curves_bent": "at most one latent is normal and has lines alone",
    "alone_in_common": "for each latent, the features that depend on it have it alone in common",
    "slopes_span": "... as do those of them that are no lines, but bend in all their latents",
    "latents_told": "features tell each latent in most rows",
    "columns_orthogonal": "columns of the mixing's slopes are orthogonal, in some units of the features",
    "turns_told": "turns of latents' normal scores would make them oblique",
    "values_told": "features tell values of a latent that are far from each other",
    "own_features": "no latent's features are all among another's",
    "all_states": "all combinations of states occur",
    "states_told": "features tell which state each latent is in",
    "states_apart": "no other numbers of states fit as well, nor components of another law",
    "changed_in_pairs": "every latent is the one that changed in some pairs",
    "one_changes": "between the rows of pairs that were not fitted, noise of no more than one latent changes",
    "set_anew": "what a latent is set to does not depend on the row before",
    "dynamics_apart": "no two latents have the same dynamics",
    "conditioned_apart": "there are more environments than concepts, of full rank, and of any two concepts some "
    "environment conditions on the one and not on the other",
    "levels_apart": "environments condition on each concept at levels that tell it from its mirror image",
    "concepts_told": "rows are enough for networks to tell concepts' values",
    "offsets_span": "offsets of the perturbations span all latents",
    "axes_apart": "no other axes are moved by as few perturbations",
    "offsets_steady": "what a perturbation moves latents by is the same in pairs that were not fitted",
    "content_shared": "the latents are the same in both rows of pairs that were not trained on",
    "nothing_else_shared": "pairs share nothing beside the latents",
    "blocks_kept": "blocks that pairs are said to keep are the same in both rows of pairs that were not trained on",
    "nothing_else_kept": "pairs of no kind keep anything beside them",
    "little_left": "latents leave little of any feature",
    "mechanisms_tell": "no maps commute with the mechanisms but those that scale or shift each latent",
    "mechanisms_apart": "no other maps nearly commute with them, as far as pairs and networks tell",
    "mechanisms_steady": "actions leave little of latents to chance, in pairs that were not fitted",
    "steps_overlap": "some action moves each latent by less than half of its range",
    "offsets_overlap": "some perturbation of each latent moves it by less than half of its range",
    "views_tied": "rows with several views, or labels of the shared latents, tie the views",
    "shared_in_views": "every view shows every shared latent",
    "private_apart": "no private latent has the loadings of a shared one",
    "latents_shared": "two views or more see a latent together",
    "sees_told": "no other answer of which views see which latents fits nearly as well",
    "views_counted": "no other number of latents of the views fits nearly as well",
    "views_paired": "every two views were measured in the same rows",
    "views_tell": "no view shows fewer combinations of the latents than it sees",
    "shared_as_one": "rows tell a latent that two views see from two that correlate .9",
    "few_fire": "few latents fire in a row: at most half as many as features, and as the search allows",
    "firing_told": "rows tell which latents fire in them",
    "directions_apart": "no two directions are near parallel",
    "fire_apart": "no latent fires only along with another",
    "map_told": "environments tell latents from mixtures of them",
    "corners_filled": "rows are in all four corners of each two latents",
    "within_the_box": "few rows are beyond the box",
    "any_bulk": "other laws of the rows that do not fill the box leave its axes as they are",
    "box_told": "rows are enough to tell the axes of the box",
    "readings_apart": "no other latents that were tried explain the environments as well",
    "environments_differ": "there are two environments or more, which change the equation of some column",
    "parents_directed": "environments or v-structures tell parents of the response from its children",
    "parents_apart": "for each latent, its parents and children are not all those of another",
    "closely_moved": "parents leave little of each latent to chance",
    "targets_in_steps": "each latent is a target in some steps and not in others, and no two always together or always "
    "in turn",
    "targets_act": "being a target changes the law of each latent",
    "actions_act": "actions differ in whether they act on each latent, and then change its law",
    "patterns_apart": "no two latents are acted on by the same actions, or one by those by which the other is not",
    "no_turn_fits": "latents that are turned among each other fit worse",
    "nonlinear_equations": "equations are nonlinear, or shifts tell the directions that they leave open",
}
# of data in which values are missing, beside what a claim is given; and what is left where it is wrong
AT_RANDOM = (
    "what is missing does not depend on what its values are",
    "a feature that is left out where it is high or low is bent there, and latents and loadings with it",
)
# models that take rows in which single values are missing, by the law of x
READ_MISSING = {
    "gaussian": ("ebmf", "gmm_vae", "sparse_vae", "vae"),
    "negative_binomial": ("sparse_vae", "vae"),
}
# conditions that others imply: an intervention that changes nothing is none
IMPLIED = {"one_intervention_per_latent": "interventions_show", "two_interventions_per_latent": "interventions_show"}

# conditions that a person's word decides, and what is left where it is wrong
ON_WORD: dict[str, tuple[str, str]] = {
    "perfect_interventions": (
        "interventions replace their targets' mechanisms",
        "soft ones mix latents with their ancestors and tell the graph up to its transitive closure; shifts and "
        "changes of variance, in linear equations, leave the graph open",
    ),
    "nonlinear_or_replaced": (
        "interventions change their targets' mechanisms, not only their noise",
        "shifts and changes of variance in linear equations leave the graph open",
    ),
}

# The groups that make sense for each thing that can be claimed. A graph's or a mask's labels are those of
# the latents, so "permutation" may be said of all of them.
UP_TO: dict[str, frozenset[str]] = {
    "latents": frozenset(LATENT_GROUPS),
    "loadings": frozenset(LATENT_GROUPS) - {"shift", "elementwise"},
    "mask": frozenset({"exact", "permutation"}),
    "graph": frozenset({*GRAPH_GROUPS, "permutation"}),
    "targets": frozenset({"exact", "permutation"}),
    "parents": frozenset({"exact"}),
}


@dataclass(frozen=True)
class Reference:
    """A publication: who, when, what, where; `url` is http(s), a DOI link by preference."""

    authors: str
    year: int
    title: str
    venue: str
    url: str

    def __post_init__(self) -> None:
        _check_fields(self)
        if not 1800 <= self.year <= 2100:
            reject("Reference.year", self.year, "1800 to 2100")
        if not re.match(r"https?://\S+$", self.url):
            reject("Reference.url", repr(self.url), "an http:// or https:// address")

    def markdown(self) -> str:
        """One line, the title linked."""
        return f"{self.authors} ({self.year}). [{self.title}]({self.url}). {self.venue}."


# maps that a claim leaves open, where their name in `up_to` does not say what they are
MAPS = {
    "linear": "a linear map",
    "affine": "an affine map",
    "block": "an invertible map of all latents together",
    "nested": "a linear map within every intersection of views",
    "kept": "an invertible map of each block, and of those that all pairs which keep it keep too",
}


def maps_in_words(up_to: Iterable[str]) -> list[str]:
    """What `up_to` leaves open, but for "exact"."""
    return [MAPS.get(name, name) for name in up_to if name != "exact"]


@dataclass(frozen=True)
class Claim:
    """*What* is identified *up to* a group, *given* sentences a person judges and *needs* that are checked.

    An empty `up_to` says "exactly". Names are those of `indeterminacy.LATENT_GROUPS` and, for a graph,
    `GRAPH_GROUPS`; `needs` are keys of `CONDITIONS`. `when` names options of the model and the value, or tuple of
    values, that they have where this is claimed: {"intervention": "soft"}; empty = whatever the options.
    "permutation" is said of targets that are known up to relabelling: where they are known by name it is left out.
    """

    what: What
    up_to: tuple[str, ...]
    given: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        one_of("Claim.what", self.what, get_args(What))
        _check_fields(self)
        for name in self.up_to:
            one_of(f"Claim.up_to of {self.what}", name, UP_TO[self.what])
        for name in self.needs:
            one_of("Claim.needs", name, CONDITIONS)
        if len(set(self.up_to) & set(GRAPH_GROUPS)) > 1:
            reject("Claim.up_to of graph", self.up_to, f"one of {', '.join(GRAPH_GROUPS)}")
        Group.of([name for name in self.up_to if name in LATENT_GROUPS])  # refuses what cannot be combined
        for option in self.when:
            values = self._values(option)
            if not values or not all(isinstance(value, str | bool | int | float) for value in values):
                reject("Claim.when", f"{self.when[option]!r} for {option!r}", "a value of that option, or several")

    def _values(self, option: str) -> tuple[Any, ...]:
        value = self.when[option]
        return value if isinstance(value, tuple) else (value,)

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether options of these values (those of `when` that are missing may have any) make the claim."""
        return all(config[option] in self._values(option) for option in self.when if option in config)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is checked: `needs`, and what they imply."""
        return tuple(dict.fromkeys([*self.needs, *(IMPLIED[need] for need in self.needs if need in IMPLIED)]))

    def where(self) -> str:
        """The options for which it is made, in words: "`intervention` is soft or shift", or nothing."""
        each = ((option, _enumerate([*map(str, self._values(option))], "or")) for option in self.when)
        return _enumerate([f"`{option}` is {values}" for option, values in each])

    def head(self) -> str:
        """What is claimed, without its conditions: "latents up to permutation, sign and scale"."""
        names = maps_in_words(self.up_to)
        return f"{self.what} up to {_enumerate(names)}" if names else f"{self.what} exactly"

    def brief(self) -> str:
        """The same in short: "latents (permutation, sign, scale)"."""
        names = [name for name in self.up_to if name != "exact"]
        return f"{self.what} ({', '.join(names)})" if names else f"{self.what} exactly"

    def sentence(self) -> str:
        """The claim in words: "latents up to permutation, sign and scale, where `decoder` is linear, if ...; ..."."""
        conditions = "; ".join([*self.given, *(CONDITIONS[need] for need in self.needs)])
        where = f", where {self.where()}" if self.when else ""
        return self.head() + where + (f", if {conditions}" if conditions else "")


@dataclass(frozen=True)
class ModelCard:
    """A model's card. Every tuple may be empty: a model without claims says that it claims nothing.

    `likelihoods` are the words that the model's `likelihood` argument takes, `targets` the accepted ways (keys of
    `TARGETS`) of telling which latents the environments intervene on, `values` (a key of `VALUES`) what latents are.
    `settings` names published simulation settings
    with known truth; `Program` adds those of the model's studies. A claim has to be backed by a reference.
    reads_gaps: rows may lack whole views; reads_missing: the likelihoods under which single values may be missing.
    Models that do not say so refuse such rows.
    `approximate` says in a sentence what of the story is plugged in or approximate in what is fitted, and why.
    """

    name: str
    title: str
    family: str
    summary: str
    assumes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    references: tuple[Reference, ...] = ()
    differs: tuple[str, ...] = ()
    likelihoods: tuple[str, ...] = ("gaussian",)
    settings: tuple[str, ...] = ()
    status: Status = "experimental"
    needs_env: bool = False
    needs_pairs: bool = False
    needs_views: bool = False
    needs_series: bool = False
    reads_gaps: bool = False
    reads_missing: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    when: tuple[str, ...] = ()  # ends of two sentences: "use it when ..." and "do not use it when ..."
    approximate: str = ""
    values: str = "continuous"

    def __post_init__(self) -> None:
        _check_fields(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            reject("ModelCard.name", repr(self.name), "lower-case letters, digits and _, a letter first")
        one_of("ModelCard.status", self.status, get_args(Status))
        one_of("ModelCard.values", self.values, VALUES)
        for mode in self.targets:
            one_of("ModelCard.targets", mode, TARGETS)
        for law in self.reads_missing:
            one_of("ModelCard.reads_missing", law, self.likelihoods)
        if self.claims and not self.references:
            reject("ModelCard.references", "none", f"the source of what {self.name} claims")
        if len(self.when) not in (0, 2):
            reject("ModelCard.when", f"{len(self.when)} texts", "two, (use it when, do not use it when), or none")
        twice = {claim.what for claim in self.claims if sum(claim == other for other in self.claims) > 1}
        if twice:
            reject("ModelCard.claims", f"the same claim of {', '.join(sorted(twice))} twice", "each claim once")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON; each claim carries its sentence."""
        card: dict[str, Any] = _plain(asdict(self))
        for claim, plain in zip(self.claims, card["claims"], strict=True):
            plain["sentence"] = claim.sentence()
        return card

    def markdown(self, short: bool = False) -> str:
        """The card as a page: what it is, assumes, identifies, and how it differs from its paper; short: when to use
        it and what it identifies alone."""
        facts = [f"`{self.name}`", self.family, self.status, f"likelihoods: {', '.join(self.likelihoods)}"]
        facts.append(f"{self.values} latents")
        if self.needs_env:
            facts.append("needs environments")
        if self.needs_pairs:
            facts.append("needs pairs of rows")
        if self.needs_views:
            facts.append("needs views")
        if self.needs_series:
            facts.append("needs series")
        if self.reads_gaps:
            facts.append("rows may lack views")
        if self.reads_missing:
            some = set(self.likelihoods) - set(self.reads_missing)
            facts.append("single values may be missing" + f" ({', '.join(self.reads_missing)})" * bool(some))
        if self.targets:
            facts.append(f"targets: {', '.join(self.targets)}")
        claims = [claim.sentence() for claim in self.claims] or ["Nothing: this model makes no claim."]
        sections = {
            "Assumes": self.assumes,
            "Identifies": claims,
            "When": [f"{head} {end}." for head, end in zip(("Use it when", "Do not use it when"), self.when)],
            "Differs from the paper in": self.differs,
            "Plugged in or approximate": (self.approximate,) if self.approximate else (),
            "Settings with known truth": [f"`{setting}`" for setting in self.settings],
            "References": [reference.markdown() for reference in self.references],
        }
        if short:
            sections = {heading: sections[heading] for heading in ("Identifies", "When")}
        blocks = [f"# {self.title}", " · ".join(facts), self.summary]
        for heading, items in sections.items():
            if items:
                blocks += [f"## {heading}", "\n".join(f"- {item}" for item in items)]
        return "\n\n".join(blocks) + "\n"


def _check_fields(card: Reference | Claim | ModelCard) -> None:
    """Texts that are not blank, and tuples where tuples are due: ("one") is a text, ("one",) a tuple."""
    members = {"claims": Claim, "references": Reference}
    for own in fields(card):
        argument, value = f"{type(card).__name__}.{own.name}", getattr(card, own.name)
        if own.name == "when" and isinstance(card, Claim):
            if not isinstance(value, Mapping):
                reject(argument, repr(value), "a mapping, as in {'intervention': 'soft'}")
        elif isinstance(value, tuple):
            kind = members.get(own.name, str)
            for item in value:
                if not isinstance(item, kind) or (isinstance(item, str) and not item.strip()):
                    reject(argument, repr(item), f"a tuple of {kind.__name__}, none blank")
            if kind is str and len(set(value)) < len(value):
                reject(argument, value, "each name once")
        elif str(own.type).startswith("tuple"):
            reject(argument, f"{value!r} of type {type(value).__name__}", "a tuple, as in ('one',)")
        elif own.type in (bool, int):
            if type(value) is not own.type:
                reject(argument, repr(value), f"{own.type.__name__}")
        elif not isinstance(value, str) or not (value.strip() or (own.name == "approximate" and not value)):
            reject(argument, repr(value), "text that is not blank")


def _enumerate(words: list[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
