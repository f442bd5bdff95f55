"""`Program`, the base class of every model: a generative `model`, a `guide`, and how to start, run and read them.

To write a variant, copy a file of `models/`, change it, and name the copy where a model's name would stand:
`pyrocrl fit ./my_model.py ...`, `pyrocrl.build("./my_model.py", data)`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrocrl import options
from pyrocrl.batch import Batch
from pyrocrl.claims.card import READ_MISSING, TARGETS, Claim, ModelCard
from pyrocrl.claims.indeterminacy import Group, How
from pyrocrl.data import Data
from pyrocrl.errors import InputError, listed, one_of, reject
from pyrocrl.labels import customary_controls
from pyrocrl.options import REQUIRED, Bounds, Fraction, Natural, Option, Positive, Size, words
from pyrocrl.readouts import ReadOuts
from pyrocrl.turns import turn

# options that several models have, and what they mean
Features = Annotated[int, Bounds(2), "columns of x; read off the data"]
Latents = Annotated[int, Bounds(1), "how many latents there are"]
Environments = Annotated[int, Bounds(1), "how many environments there are; read off the data"]
Batches = Annotated[int, Bounds(1), "technical batches, each with its own offsets of log rates; read off the data"]
TargetMatrix = Annotated[
    list[list[Any]], "(env, latent) in {0, 1}: which latents each environment intervenes on; read off the data"
]
Targets = Annotated[
    Literal["known", "relabelled", "unknown"],
    "what is known of targets: their latents' names, which environments share one, or nothing",
]
ToldTargets = Annotated[
    Literal["known", "relabelled"], "what is known of targets: their latents' names, or which environments share one"
]
Intervention = Annotated[Literal["perfect", "soft", "variance", "shift"], "what interventions do to their targets"]
Likelihood = Annotated[
    Literal["gaussian", "negative_binomial"],
    "the law of x given its mean; read off the data, negative_binomial of counts",
]
Missing = Annotated[
    bool, "whether single values may be missing, which encoders are then told of each row; read off the data"
]
EdgeProbability = Annotated[float, Bounds(0, 1), "a priori, that there is an edge between two latents"]

Beta = Annotated[float, Bounds(0, 1, "[)")]

SMALL = 10_000  # largest number of a program whose tensors are surely no burden

PLATES = ("data", "env", "feature", "latent", "mechanism", "parent", "child", "basis", "monomial")


@dataclass(frozen=True)
class Recipe:
    """How a program is fitted unless the user says otherwise.

    epochs: passes over the training rows, raised so that small data get `least_steps` steps and cut so that large ones
    get about `most_steps` at most (None = as many as there are); an epoch that alone has more ends with these. A number
    of epochs that `fit` is asked for is kept to. batch_size: rows a step, None = all. lr: Adam's step, decaying by a
    cosine to lr * lr_end after the first `lr_hold` of the steps; lr_scale multiplies it for parameters whose names
    start with a key. kl_warmup: fraction of the epochs over which the KL weight rises from 0 to 1. temperature: of
    relaxed gates, from first to second, geometrically over `temperature_span` of the epochs. clip: largest gradient
    norm of a chain. held_out: fraction of the rows kept for the held-out objective, looked at every `check_every`
    epochs; 0, for models that store rows: none, and all rows are looked at. A fit ends when no chain has improved for
    `patience` epochs (None = never early). keep: a chain's "best" state by the held-out objective once annealing is
    over, or its "last", for priors that are still at work when prediction no longer gains. chains: how many.
    stop_behind: whether chains that fall hopelessly behind, by their own noise and progress, are stopped and left out.
    A program whose options ask for another recipe sets `self.recipe` in `__init__`.
    """

    epochs: Size = 200
    least_steps: Natural = 0
    most_steps: Size | None = None
    batch_size: Size | None = 256
    lr: Positive = 3e-3
    lr_end: Fraction = 0.05
    lr_hold: Fraction = 0.0
    lr_scale: Mapping[str, Positive] = field(default_factory=dict)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    kl_warmup: Fraction = 0.3
    temperature: tuple[Positive, Positive] = (1.0, 0.1)
    temperature_span: Fraction = 0.6
    clip: Positive = 100.0
    held_out: Annotated[float, Bounds(0, 1, "[)")] = 0.1
    check_every: Size = 5
    patience: Size | None = 60
    keep: Literal["best", "last"] = "best"
    chains: Size = 8
    stop_behind: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        hints = options.hints_of(Recipe)
        for own in fields(self):
            object.__setattr__(self, own.name, options.conform(own.name, getattr(self, own.name), hints[own.name]))
        if self.dtype not in (torch.float32, torch.float64):
            reject("dtype", self.dtype, "torch.float32 or torch.float64")
        if self.most_steps is not None and self.most_steps < self.least_steps:
            reject("most_steps", self.most_steps, f"None or a number from least_steps ({self.least_steps}) on")

    def length(self, steps: int) -> tuple[int, int]:
        """(epochs, steps an epoch) of a fit in which a pass over the training rows takes `steps`."""
        if self.most_steps is not None:
            steps = min(steps, self.most_steps)
        epochs = max(self.epochs, -(-self.least_steps // steps))
        return epochs if self.most_steps is None else min(epochs, -(-self.most_steps // steps)), steps

    @classmethod
    def unannealed(cls, **options: Any) -> Recipe:
        """Without anything to anneal: no relaxed gates, and the KL term at full weight from the first step."""
        return cls(**{"kl_warmup": 0.0, "temperature_span": 0.0} | options)

    def kl_weight_at(self, progress: float) -> float:
        return 1.0 if self.kl_warmup <= 0 else min(1.0, progress / self.kl_warmup)

    def temperature_at(self, progress: float) -> float:
        start, end = self.temperature
        part = 1.0 if self.temperature_span <= 0 else min(1.0, progress / self.temperature_span)
        return float(start * (end / start) ** part)

    def lr_at(self, progress: float) -> float:
        part = max(0.0, progress - self.lr_hold) / max(1e-9, 1.0 - self.lr_hold)
        return self.lr * (self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * part)))

    def annealed_after(self) -> float:
        """Progress from which the objective is the final one; only later states may be kept as the best."""
        return min(max(self.kl_warmup, self.temperature_span), 0.9)


@dataclass(frozen=True)
class Site:
    """How a posterior site is laid out and how it moves when latents are permuted and rescaled.

    dims: its dimensions after (chain, draw), of data, feature, latent, parent, child, env or a name of its own.
    scales: how its latent, parent and child dimensions change with the latents' units, in the words of
    `Alignment.act`: loadings {"latent": -1}, edge weights {"parent": -1, "child": 1}, values {"latent": "point"};
    left out = 0, only reordered. unit: the power of the features' units in which a site of features is, 1 for loadings;
    a program sees x standardised, and posteriors are told in the data's units. discrete: 0/1 valued, or whole numbers.
    """

    dims: tuple[str, ...]
    scales: Mapping[str, How] = field(default_factory=dict)
    discrete: bool = False
    unit: int = 0


# what models may refuse to read, see `Program.check_structure`
UNREAD = {"pair": "pairs of rows", "series": "an order of rows in time", "aux": "auxiliary columns"}
LATENT_DIMS = ("latent", "parent", "child")


class _InTurn(type):
    """Programs are made in a turn: their parameters are drawn from torch's default generator."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with turn():
            return super().__call__(*args, **kwargs)


class Program(ReadOuts, nn.Module, metaclass=_InTurn):
    """A model: one Pyro program with its guide.

    A subclass sets `card` and writes

    * `story(batch)`, the generative program: a `pyro.sample` statement for every random quantity, in plates named from
      `PLATES`; the data plate is `self.rows(batch)`, and without x (`Batch.blank`) it simulates;
    * `guide(batch)`, the variational posterior of what is fitted;
    * where something is summed or integrated out, `model(batch)`, the story without it, and `recover(batch, **kept)`,
      its exact conditional given the sites that were kept.

    For every value of what is lost, log story(x, kept, lost) - log recover(lost | x, kept) = log model(x, kept)
    (Besag's candidate identity, 1989); where `model` holds only with something plugged in, `plugged` says with what.

    It may add `initialise`, `finish` and the read-outs. Parameters are plain `nn.Parameter`s: all chains run as one
    vmapped program, so in `model` and `guide` draw with the distributions of `pyrocrl.dists`, and neither call
    `.item()` nor branch on values. Arguments of `__init__` must be JSON values (numbers, strings, lists): a checkpoint
    keeps them. They are checked by their annotations (`pyrocrl.options`), and stand in `config` by name.
    """

    made_by: ClassVar = "pyrocrl.build(NAME, data, ...)"  # said where something else is given
    card: ClassVar[ModelCard]
    recipe: Recipe = Recipe()
    sites: ClassVar[Mapping[str, Site]] = {}
    # buffers, constants of its story, that a start takes from the rows: units, inducing points
    constants: ClassVar[tuple[str, ...]] = ()
    has_constants: bool = False  # True: a start leaves them as they are (`with_constants_of`)
    # sites (data, latent) whose values are names and no more, such as states, and the dims of other sites that list
    # these of each latent: truths and draws are renamed before they are compared (`claims.labels`)
    labels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    uses_rows: ClassVar[bool] = True  # False: `model` reads the data through `batch.moments` alone
    # tests of the fit that apply to it (`pyrocrl.judge.fit_tests.TESTS`), and the assumptions, in the words of its
    # claims, that each puts to the test
    checks: Mapping[str, tuple[str, ...]] = {}
    studies: ClassVar[tuple[Any, ...]] = ()  # rows of its table of results, each a `pyrocrl.lab.studies.Study`
    vmappable: ClassVar[bool] = True  # False: chains run one after another
    new_rows: ClassVar[bool] = False  # True: draws of x are of new rows, with latents from their environment's law
    knows_interventions: ClassVar[bool] = False  # whether the story says what environments' interventions do to z
    # whether every chain is one draw of the posterior, of a bootstrap: those that got there then weigh alike
    drawn_by_chains: ClassVar[bool] = False
    imputes: ClassVar[bool] = False  # whether it has `impute`: effects of environments in contexts, told as batches
    auto_encodes: ClassVar[bool] = False  # whether it has `auto_encode`: a map of rows to rows
    # how the number of its latents is found, where the user leaves it to the data (`infer.number`); None = it is not
    counted: ClassVar[Literal["evidence", "targets", "offered"] | None] = None
    infers_targets: ClassVar[bool] = False  # True: targets that the data do not list are taken as unknown
    written_in: ClassVar[dict[str, str] | None] = None  # its `file` and the `sha256` of its text, as of the import
    arguments: dict[str, Any]  # what it was made with: another of its kind is made with the same
    number: dict[str, Any] | None = None  # how many latents there are, as it was found from the data
    config: dict[str, Any]  # all options by name: its own and, as its `__init__` set them, its parents'

    def __new__(cls, *args: Any, **kwargs: Any) -> Program:
        self = super().__new__(cls)
        for name in ("arguments", "config"):
            object.__setattr__(self, name, {})
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(getattr(cls, "card", None), ModelCard):
            raise TypeError(f"{cls.__name__}: a Program needs a `card`, a pyrocrl.ModelCard")
        for method in ("story", "guide"):
            if getattr(cls, method) is getattr(Program, method):
                raise TypeError(f"{cls.__name__}: a Program needs `{method}(self, batch)`")
        if "__init__" in vars(cls):
            cls.__init__ = _checking(cls, vars(cls)["__init__"])  # type: ignore[method-assign]
        known = cls.options()
        for option in (option for claim in cls.card.claims for option in claim.when if option not in known):
            raise TypeError(f"{cls.__name__}: its card makes a claim when {option!r}, which is no option of it")
        if cls.model is Program.model:  # a story is of rows
            cls.uses_rows = True
        simulated = [study.setting for study in cls.studies if study.simulated]
        cls.card = replace(cls.card, settings=tuple(dict.fromkeys([*cls.card.settings, *simulated])))
        cls.written_in = _file_of(cls.__module__)

    # -- what a subclass writes --------------------------------------------------------------------------------

    def story(self, batch: Batch) -> Any:
        """The generative program, nothing summed out; observed sites inside `self.rows(batch)`. Simulates where
        `batch.x` is None."""
        raise TypeError(f"{type(self).__name__} has no story")

    def model(self, batch: Batch) -> Any:
        """What is fitted: the story, unless something of it is summed out."""
        return self.story(batch)

    def recover(self, batch: Batch, **kept: Tensor) -> Any:
        """The exact conditional, given x and the sites that `model` kept, of those that it summed out."""

    def recovered(self, batch: Batch, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One draw of `recover`'s sites, by name; none where the story itself is fitted."""
        if self.fits_story:
            return {}
        with turn():
            nodes = pyro.poutine.trace(self.recover).get_trace(batch, **kept).nodes
        return {
            name: node["value"]
            for name, node in nodes.items()
            if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample"
        }

    def reading_errors(self) -> contextlib.AbstractContextManager[bool]:
        """Until it ends `guide` and `recover` draw with the error of the map that reads latents, where that is known
        beside the story: the decoder takes latents without it, so predictions go without. Tells whether draws differ.
        """
        return contextlib.nullcontext(False)

    def plugged(self, batch: Batch) -> dict[str, Tensor]:
        """Values of the story's sites that `model` plugs in where it neither keeps nor sums them out: then the identity
        holds for rows given these, and `recover` draws them from what the fit knows of them."""
        return {}

    def guide(self, batch: Batch) -> Any:
        """The variational posterior of every latent site of `model`."""
        raise TypeError(f"{type(self).__name__} has no guide")

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Start this chain's parameters from the data; the theorem's construction where there is one."""
        self.construct(data, generator)

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """The theorem's construction alone, where `initialise` goes on from it: studies show its score."""

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """Begin this fitted chain again at latents z @ turn (latent, latent) of its own, with all else as they leave
        it; returns whether it could. Then `pyrocrl.perturbed_chains` shows whether a fit drives it back."""
        return False

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Called once a chain after the last step: a second-order finish, or nothing."""

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        """A small program and simulated data with truth, the same for tests, docs and the shell."""
        raise TypeError(f"{cls.__name__} has no example")

    # -- what every program has --------------------------------------------------------------------------------

    @staticmethod
    def rows(batch: Batch) -> Any:
        """The data plate: this batch's rows, scaled up to all of them. Always dim -1."""
        return pyro.plate("data", batch.total, subsample=batch.index, dim=-1)

    @staticmethod
    def measured(law: Any, batch: Batch) -> Any:
        """The law (rows, feature) of x where it was measured: a value that is missing counts for nothing. A story says
        so in place of `law`, before `to_event`."""
        return law if batch.known is None or batch.x is None else law.mask(batch.known)

    @staticmethod
    def along(
        order: Sequence[int], law: Callable[[int, Tensor], Any], start: Tensor, told: Tensor | None = None
    ) -> Tensor:
        """(rows, latent) latents sampled one by one, parents first, each a site `z_<k>`: inside the data plate.

        law(k, z): of latent k given z (rows, latent), in which the earlier ones stand; the others are as in `start`
        (rows, latent). told: (rows, latent) latents that the rows determine. ChiRho's `do` acts on the sites' names.
        """
        z = start
        for k in order:
            one = pyro.sample(f"z_{k}", law(k, z), obs=None if told is None else told[:, k])
            z = torch.cat([z[:, :k], one.expand(len(z))[:, None], z[:, k + 1 :]], -1)
        return z

    def register_buffers(self, **values: Tensor) -> None:
        """Make each of these values a buffer of that name."""
        for name, value in values.items():
            self.register_buffer(name, value)

    @torch.no_grad()
    def put(self, **values: Tensor) -> None:
        """Copy each of these values into the parameter or buffer of that name, but not into constants that it has."""
        for name, value in values.items():
            if not (self.has_constants and name in self.constants):
                getattr(self, name).copy_(value)

    def with_constants_of(self, other: Program) -> Program:
        """Itself, the story's constants being those of another of its kind, whatever rows it starts from: then both
        tell the same story, and what they say of it is in the same units."""
        self.put(**{name: getattr(other, name) for name in self.constants})
        self.has_constants = True
        return self

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options of `__init__` by name; those of a parent too, where `**options` passes them on."""
        found: dict[str, Option] = {}
        for kind in cls.__mro__:
            init = vars(kind).get("__init__")
            if init is None or not issubclass(kind, Program):
                continue
            found = options.options_of(init) | found
            if not options.open_ended(init):
                break
        return found

    def fresh(self) -> Program:
        """A new program of the same options with newly drawn parameters, on the CPU."""
        one = type(self)(**self.arguments)
        if self.completion is not None:
            one.complete_with(self.completion.fresh())
        return one.with_constants_of(self) if self.has_constants else one

    @property
    def completion(self) -> Any:
        """The guide's blocks for sites that `guide` lacks (`infer.completion`), or None."""
        return self._modules.get("completion")

    @property
    def fits_story(self) -> bool:
        """Whether the story itself is fitted: nothing of it is summed out, and there is nothing to recover."""
        return type(self).model is Program.model

    def complete_with(self, completion: nn.Module) -> None:
        """Let these blocks go with the guide."""
        self._modules["completion"] = completion

    @property
    def latents_count(self) -> int:
        """How many latents it has."""
        return int(self.config.get("latents", 0))

    @property
    def own_units(self) -> bool:
        """Whether x reaches it as it is, as counts do; else every column comes about its mean, in its deviation."""
        return self.config.get("likelihood") == "negative_binomial"

    @property
    def batches_count(self) -> int:
        """How many batches its rows may come from; 1 where it does not read them."""
        return int(self.config.get("batches", 1))

    @property
    def reads_batches(self) -> bool:
        """Whether it looks at technical batches; data that have some are otherwise refused."""
        return "batches" in self.config

    @property
    def reads_series(self) -> bool:
        """Whether it looks at the order of rows in time; data that tell one are otherwise refused."""
        return self.card.needs_series

    @property
    def target_mode(self) -> str | None:
        """How it was told the targets of environments, a key of `card.TARGETS`; None for models without targets."""
        return self.config.get("targets")

    @property
    def intervention_kind(self) -> str:
        """What its interventions do, a key of `card.INTERVENTIONS`; "perfect" unless an option says otherwise."""
        return str(self.config.get("intervention", "perfect"))

    @property
    def mechanism_kind(self) -> str:
        """The form of its equations, a key of `card.MECHANISMS`; "linear" unless an option says otherwise."""
        return str(self.config.get("mechanism", "linear"))

    @property
    def latents_up_to(self) -> tuple[str, ...]:
        """What the claim on the latents leaves free; permutation and scale where nothing is claimed."""
        for claim in self.claims():
            if claim.what == "latents":
                return claim.up_to
        return self._named(("permutation", "scale"))

    def _named(self, up_to: tuple[str, ...]) -> tuple[str, ...]:
        """What stays free: targets that are known by name tell which latent is which."""
        return tuple(name for name in up_to if name != "permutation" or self.target_mode != "known")

    @property
    def group(self) -> Group:
        return Group.of(self.latents_up_to)

    def claims(self) -> tuple[Claim, ...]:
        """The card's claims that hold for this config, in the names that its targets give."""
        held = [claim for claim in self.card.claims if claim.holds(self.config)]
        return tuple(replace(claim, up_to=self._named(claim.up_to), when={}) for claim in held)

    def check(self, data: Data) -> None:
        """Raise InputError where these data cannot be given to this program: other features, environments or targets,
        or floats in place of counts. Targets that the program was not to believe may be any."""
        features = self.config.get("features")
        if features is not None and features != data.features:
            reject("data", f"{data.features} features", f"the program's {features}")
        if self.config.get("likelihood") == "negative_binomial" and not data.counts:
            reject("data", "floats (counts=False)", "counts, for likelihood='negative_binomial'")
        self.check_views(data)
        self.check_missing(data)
        if data.incomplete and self.config.get("missing") is False:
            allowed = "finite numbers, or a program with missing=True, fitted to rows that lack some"
            reject("x", f"{data.missing_told()}, which this {self.card.name} has not learned to read", allowed)
        views = self.config.get("views")
        if views is not None and data.view_labels().tolist() != views:
            reject(
                "view", "other views than the program's", f"{listed(list(dict.fromkeys(views)))}, of the same features"
            )
        latents, told = self.config.get("latents"), self.target_mode != "unknown"
        matrix = self.config.get("target_matrix") if told else None
        envs = self.config.get("environments") if matrix is None else len(matrix)
        if envs is not None and envs != len(data.env_names):
            reject("data", f"{len(data.env_names)} environments", f"the program's {envs}")
        if told and data.targets is not None and latents is not None:
            found = data.target_matrix(latents)
            if matrix is not None and not np.array_equal(found, matrix):
                reject("targets", "other targets than the program's", matrix)

    @property
    def compares_with_control(self) -> bool:
        """Whether environment 0 is what it compares the others with: where targets do not tell which environments are
        observational, and a claim needs one. Then it has to be the control."""
        told = self.target_mode not in (None, "unknown")
        return not told and any("observational_environment" in claim.needs for claim in self.claims())

    def check_batches(self, data: Data) -> None:
        """Raise InputError for technical batches and covariates that the program would not look at."""
        taken = "" if data.counts else "pyrocrl.Adjustment.of(data)(data), in the shell --adjust COLUMN"
        if len(data.batch_names) > 1 and not self.reads_batches:
            found = f"{len(data.batch_names)} batches, which {self.card.name} does not read"
            found += " of counts" if data.counts else " of continuous features"
            readers = "models whose options have `batches`" + (f", or {taken}" if taken else "")
            reject("batch", found, f"none, where batches do not differ; else {readers}")
        if data.covariates:
            found = f"{listed(list(data.covariates))}, which {self.card.name} does not read"
            reject("covariates", found, f"none{', or ' + taken if taken else ''}")

    def check_structure(self, data: Data) -> None:
        """Raise InputError for rows without partners, order in time or auxiliary columns where it needs these, and for
        rows that are told to have them where it does not look: it would take rows that depend on each other for
        independent ones, or leave out what moves them."""
        name, read = self.card.name, {"pair": self.card.needs_pairs, "series": self.reads_series}
        if self.card.needs_pairs and data.pair is None:
            reject("pair", "None", f"labels of pairs of rows, which {name} needs (in the shell --pair COLUMN)")
        if self.card.needs_series and data.series is None:
            reject("series", "None", f"labels of series, which {name} needs (in the shell --series COLUMN)")
        for kind, reads in (read | {"aux": bool(self.config.get("aux"))}).items():
            if getattr(data, kind) is not None and not reads:
                leave = f"none: data.without({kind!r}), in the shell --without {kind}"
                reject(kind, f"{UNREAD[kind]}, which {name} does not read", f"{leave}; or a model that reads it")

    @classmethod
    def check_views(cls, data: Data) -> None:
        """Raise InputError for data without views, where it needs them, and for rows that lack one, unless it can read
        those."""
        name = cls.card.name
        if cls.card.needs_views and data.view is None:
            reject("view", "None", f"views of the features, which {name} needs (in the shell --view)")
        if data.gaps and not cls.card.reads_gaps:
            few = data.rows - int(data.present.all(1).sum())
            reject("view", f"{few} rows that lack a view, which {name} does not read", "rows that have every view")

    @classmethod
    def check_missing(cls, data: Data) -> None:
        """Raise InputError for single values that are missing, unless it leaves them out of the likelihood."""
        law = "negative_binomial" if data.counts else "gaussian"
        if data.incomplete and law not in cls.card.reads_missing:
            counts, models = " of counts" * data.counts, ", ".join(READ_MISSING[law])
            allowed = f"finite numbers, or a model that leaves out what is missing{counts}: {models}"
            reject("x", f"{data.missing_told()}, which {cls.card.name} does not read{counts}", allowed)

    def check_control(self, data: Data) -> None:
        """Raise InputError where environment 0 has to be the control, and the data know none."""
        if not self.compares_with_control or data.control is not None:
            return
        free = [name for name in data.env_names if not (data.targets or {}).get(name)]
        called = customary_controls(free)
        found = (
            f"{listed(called)}, which are all called as controls are" if called else "none told, nor known by its name"
        )
        reject("control", found, f"the control's name (in the shell --control), one of {listed(free)}")

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        """A program for these data: `features`, `environments`, `likelihood` and the like are read off them.

        Raises InputError for options that it does not have or that are missing, for ways of telling targets that its
        card does not accept, for data that list no targets where it needs them, for a single environment where it needs
        several, for counts where it knows none, and as `check_control` does.
        """
        law = "negative_binomial" if data.counts else "gaussian"
        if law not in cls.card.likelihoods:
            floats = "features that are no counts, such as log(1 + x / size factor), or counts=False (--no-counts)"
            found = f"{'counts' if data.counts else 'floats'}, of which {cls.card.name} has no law"
            reject("x", found, floats if data.counts else "counts")
        known = cls.options()
        check_options(cls, options)
        filled: dict[str, Any] = {}
        if "features" in known:
            filled["features"] = data.features
        if "views" in known and data.view is not None:
            filled["views"] = data.view_labels().tolist()
        if "environments" in known:
            filled["environments"] = len(data.env_names)
        if "kinds" in known:
            filled["kinds"] = list(data.env_names)
        if "batches" in known:
            filled["batches"] = len(data.batch_names)
        if "missing" in known:
            filled["missing"] = data.incomplete
        if "aux" in known and data.aux is not None:
            filled["aux"] = data.aux.shape[1]
        if "likelihood" in known:
            filled["likelihood"] = "negative_binomial" if data.counts else "gaussian"
        if "latents" in known and "latents" not in options and "z" in data.truth:
            filled["latents"] = int(data.truth["z"].shape[1])
        if "targets" in known and cls.card.targets and cls._targets_of(data, options) == "unknown":
            filled["targets"] = "unknown"  # labels are not believed
        elif "target_matrix" in known and data.targets is not None:
            latents = options.get("latents", filled.get("latents"))
            filled["target_matrix"] = data.target_matrix(latents).tolist() if latents else None
        cls.check_views(data)
        cls.check_missing(data)
        if "latents" in known and known["latents"].default is REQUIRED and "latents" not in filled | options:
            told = cls.counted is not None and (cls.counted != "targets" or data.targets is not None)
            number = f"{words(known['latents'].hint)} (in the shell --latents K)"
            auto = ", or 'auto' or a range such as '2-8', which leave it to the data" if told else ""
            raise InputError(f"latents: missing; {cls.card.name} needs their number; allowed: {number}{auto}")
        if "aux" in known and known["aux"].default is REQUIRED and "aux" not in filled | options:
            reject("aux", "None", f"auxiliary columns, which {cls.card.name} needs, as in Data(x, aux=...)")
        program = cls(**(filled | options))
        if cls.card.needs_env and len(np.unique(data.env)) < 2:
            reject("env", "one environment", "two or more")
        program.check_control(data)
        program.check_batches(data)
        program.check_structure(data)
        return program

    @classmethod
    def _targets_of(cls, data: Data, options: Mapping[str, Any]) -> str:
        """How the targets are told, a mode that its card accepts."""
        accepted, listed = cls.card.targets, data.targets is not None or options.get("target_matrix") is not None
        default = cls.options()["targets"].default
        default = "unknown" if cls.infers_targets and not listed else default
        mode: str = one_of("targets", options.get("targets", default), TARGETS)
        if mode not in accepted:
            reject("targets", repr(mode), ", ".join(accepted))
        if mode != "unknown" and not listed:
            other = "or targets='unknown'" if "unknown" in accepted else "known or up to relabelling"
            reject("targets", "None in the data", f"a mapping environment -> latents, {other}")
        return mode


def check_options(kind: type[Program], given: Mapping[str, Any]) -> None:
    """Raise InputError for options that a model does not have, and for values that they may not take."""
    known = kind.options()
    options.known_names(kind.card.name, given, known)
    for name, value in given.items():
        options.conform(name, value, known[name].hint)


def _checking(cls: type[Program], write: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that checks its arguments, keeps them in `config`, and refuses sizes beyond memory."""

    @functools.wraps(write)
    def __init__(self: Program, *args: Any, **kwargs: Any) -> None:
        given = options.bound(cls.card.name, write, args, kwargs)
        object.__setattr__(self, "config", {**self.config, **given})
        if type(self).__init__ is not __init__:  # a parent's: within its child's
            return write(self, **given)
        object.__setattr__(self, "arguments", given)
        sizes = _Sizes(given)
        try:
            if sizes.value > SMALL:
                with sizes.rehearsal(), contextlib.suppress(RuntimeError, NotImplementedError, TypeError):
                    write(cls.__new__(type(self)), **given)
            with sizes:
                write(self, **given)
        except MemoryError:  # of numpy's
            options.check_memory(sizes.name, sizes.value, math.inf)

    return __init__


class _Sizes(TorchFunctionMode):
    """Refuses a program beyond memory: counts the bytes of the tensors that are made, each before it is.

    rehearsal: nothing is allocated, every tensor is a shape alone, so that the whole is counted before the first part
    is made; it ends where a value is looked at."""

    MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.rand, torch.randn, torch.arange)

    def __init__(self, given: Mapping[str, Any], rehearse: bool = False) -> None:
        super().__init__()
        self.given, self.rehearse, self.total = given, rehearse, 0.0
        whole = {name: value for name, value in given.items() if type(value) is int}
        self.name, self.value = max(whole.items(), key=lambda item: item[1], default=("options", 0))

    def rehearsal(self) -> _Sizes:
        return _Sizes(self.given, rehearse=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.MAKERS:
            bare = {k: v for k, v in kwargs.items() if k not in ("generator", "out")}
            make, shape = func, args
            if func is torch.eye:  # whose shape alone takes the import of torch's compiler
                make, shape = torch.empty, (args[0], args[1] if len(args) > 1 else args[0])
            like = self._counted(lambda: make(*shape, **bare | {"device": "meta"}))
        elif func is Tensor.repeat:
            like = self._counted(lambda: args[0].to("meta").repeat(*args[1:], **kwargs))
        else:
            return func(*args, **kwargs)
        return like if self.rehearse else func(*args, **kwargs)

    def _counted(self, make: Callable[[], Tensor]) -> Tensor | None:
        like = None
        try:
            like = make()
            self.total += like.numel() * like.element_size()
        except (RuntimeError, TypeError, OverflowError):  # more entries than a tensor can count
            self.total = math.inf
        options.check_memory(self.name, self.value, self.total)
        return like


def _file_of(module: str) -> dict[str, str] | None:
    """The file of a module and the sha256 of its text, before anybody edits it; None where there is no file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return file and {
            "file": str(Path(file).resolve()),
            "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(),
        }
    except OSError:
        return None


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise InputError unless `value` is a whole number from `least` to `most` (None = no limit)."""
    options.conform(name, value, Annotated[int, Bounds(least, math.inf if most is None else most)])


def check_between(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise InputError unless `value` is a number strictly between `low` and `high`."""
    options.conform(name, value, Annotated[float, Bounds(low, high)])


def check_sizes(features: int, latents: int, least: int = 1, *, square: bool = False) -> None:
    """Raise InputError unless least <= latents < features (both whole numbers), or latents = features if `square`."""
    check_whole("features", features, 2)
    check_whole("latents", latents, least)
    if latents >= features + square:
        reject(
            "latents",
            str(latents),
            f"at most the {features} features" if square else f"fewer than the {features} features",
        )


def check_rows(data: Data, least: int, why: str = "") -> None:
    """Raise InputError for an environment of fewer than `least` rows; why: where that number comes from."""
    for position, name in enumerate(data.env_names):
        rows = int((data.env == position).sum())
        if rows < least:
            reject("env", f"{rows} row(s) to fit in environment {name!r}", f"{least} or more{why}")


def checked_targets(
    matrix: Any,
    latents: int,
    environments: int | None = None,
    *,
    least: int = 1,
    most: int | None = None,
    observational: bool = True,
) -> np.ndarray:
    """The target matrix (env, latent) in {0, 1}, as integers.

    Raises InputError unless it is one of `environments` rows (None = any number), at least `least` of which target
    each latent, with at most `most` targets a row (None = any number) and, with `observational`, a row without any.
    """
    allowed = f"0 and 1 in the shape ({'env' if environments is None else environments}, {latents})"
    try:
        target = np.asarray([[]] if matrix is None else matrix)
    except ValueError:
        reject("target_matrix", "rows of different lengths", allowed)
    if target.ndim != 2 or target.shape[1] != latents or environments not in (None, len(target)):
        reject("target_matrix", f"shape {target.shape}", allowed)
    if not (binary := np.isin(target, (0, 1))).all():
        reject("target_matrix", f"{target[~binary].item(0)!r}", allowed)
    per_env, per_latent = target.sum(1), target.sum(0)
    if most is not None and (over := np.flatnonzero(per_env > most)).size:
        reject("targets", f"{per_env[over[0]]:.0f} targets in environment {over[0]}", f"at most {most}")
    if observational and per_env.all():
        reject("targets", "no observational environment", "one environment or more without targets")
    if (few := np.flatnonzero(per_latent < least)).size:
        n = int(per_latent[few[0]])
        found = f"{n or 'no'} environment that intervenes on latent {few[0]}"  # n < least, which is 1 or 2
        reject("targets", found, f"{'one' if least == 1 else least} or more for each latent")
    return target.astype(np.int64)
