"""`Program`, the base class of every model: a generative `model`, a `guide`, and how to start, run and read them.

To write a variant, copy a file of `models/`, change it, and name the copy where a model's name would stand:
`pyrocrl fit ./my_model.py ...`, `pyrocrl.build("./my_model.py", data)`.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyrocrl.claims.card import TARGETS, Claim, ModelCard
from pyrocrl.claims.indeterminacy import Group, How
from pyrocrl.data import Batch, Data
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.turns import turn

PLATES = ("data", "env", "feature", "latent", "mechanism", "parent", "child", "basis", "monomial")


@dataclass(frozen=True)
class Recipe:
    """How a program is fitted unless the user says otherwise.

    epochs: passes over the training rows, raised so that small data get `least_steps` steps. batch_size: rows a step,
    None = all. lr: Adam's step, decaying by a cosine to lr * lr_end after the first `lr_hold` of the steps; lr_scale
    multiplies it for parameters whose names start with a key. kl_warmup: fraction of the epochs over which the KL
    weight rises from 0 to 1. temperature: of relaxed gates, from first to second, geometrically over
    `temperature_span` of the epochs. clip: largest gradient norm of a chain. held_out: fraction of the rows kept for
    the held-out objective, looked at every `check_every` epochs; a fit ends when no chain has improved for `patience`
    epochs (None = never early). keep: a chain's "best" state by the held-out objective once annealing is over, or its
    "last", for priors that are still at work when prediction no longer gains. chains: how many. A program whose
    options ask for another recipe sets `self.recipe` in `__init__`.
    """

    epochs: int = 200
    least_steps: int = 0
    batch_size: int | None = 256
    lr: float = 3e-3
    lr_end: float = 0.05
    lr_hold: float = 0.0
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    kl_warmup: float = 0.3
    temperature: tuple[float, float] = (1.0, 0.1)
    temperature_span: float = 0.6
    clip: float = 100.0
    held_out: float = 0.1
    check_every: int = 5
    patience: int | None = 60
    keep: Literal["best", "last"] = "best"
    chains: int = 8
    dtype: torch.dtype = torch.float32

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
    left out = 0, only reordered. discrete: 0/1 valued.
    """

    dims: tuple[str, ...]
    scales: Mapping[str, How] = field(default_factory=dict)
    discrete: bool = False


LATENT_DIMS = ("latent", "parent", "child")


class _InTurn(type):
    """Programs are made in a turn: their parameters are drawn from torch's default generator."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with turn():
            return super().__call__(*args, **kwargs)


class Program(nn.Module, metaclass=_InTurn):
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
    `.item()` nor branch on values. Arguments of `__init__` must be JSON values (numbers, strings, lists): they are the
    config that a checkpoint keeps.
    """

    card: ClassVar[ModelCard]
    recipe: Recipe = Recipe()
    sites: ClassVar[Mapping[str, Site]] = {}
    uses_rows: ClassVar[bool] = True  # False: `model` reads the data through `batch.moments` alone
    studies: ClassVar[tuple[Any, ...]] = ()  # rows of its table of results, each a `pyrocrl.lab.studies.Study`
    vmappable: ClassVar[bool] = True  # False: chains run one after another
    new_rows: ClassVar[bool] = False  # True: draws of x are of new rows, with latents from their environment's law
    knows_interventions: ClassVar[bool] = False  # whether the story says what environments' interventions do to z
    infers_targets: ClassVar[bool] = False  # True: targets that the data do not list are taken as unknown
    written_in: ClassVar[dict[str, str] | None] = None  # its `file` and the `sha256` of its text, as of the import
    config: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Program:
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        config = {k: v for k, v in bound.arguments.items() if k != "self"}
        object.__setattr__(self, "config", config)
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(getattr(cls, "card", None), ModelCard):
            raise TypeError(f"{cls.__name__}: a Program needs a `card`, a pyrocrl.ModelCard")
        for method in ("story", "guide"):
            if getattr(cls, method) is getattr(Program, method):
                raise TypeError(f"{cls.__name__}: a Program needs `{method}(self, batch)`")
        options = inspect.signature(cls.__init__).parameters
        for option in (option for claim in cls.card.claims for option in claim.when if option not in options):
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

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Called once a chain after the last step: a second-order finish, or nothing."""

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        """A small program and simulated data with truth, the same for tests, docs and the shell."""
        raise TypeError(f"{cls.__name__} has no example")

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) posterior mean of the latents."""
        raise TypeError(f"{type(self).__name__} has no latents read-out")

    @property
    def reads_innovations(self) -> bool:
        """Whether `latents` are innovations, latents less what parents give: where equations are not identified."""
        return False

    def mask(self) -> Tensor | None:
        """(feature, latent) posterior inclusion probabilities, or None."""
        return None

    def graph(self) -> Tensor | None:
        """(parent, child) posterior edge probabilities, or None."""
        return None

    def targets_matrix(self) -> Tensor | None:
        """(env, latent) posterior probabilities that an environment intervenes on a latent, or None."""
        return None

    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Weights (component,), means and standard deviations (component, latent) of the latents' law where that is a
        mixture of independent Gaussians, or None. Models whose claims need components must have it."""
        return None

    def escaped(self, batch: Batch) -> Tensor | None:
        """(rows,) probability that a row's intervention did nothing to it, or None for models without escapees."""
        return None

    @property
    def actions_count(self) -> int:
        """How many numbers an action of `predict_action` has; 0 where the model knows no actions."""
        return 0

    def predict_action(self, action: Tensor, noise: Tensor) -> Tensor:
        """(rows, feature) mean of x under each row of `action` (rows, actions_count), averaged over `noise`
        (draws, latent), standard normal draws of what the action leaves open of the latents."""
        raise TypeError(f"{type(self).__name__} has no actions")

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor | None:
        """(rows,) log p(x_i | global sites), rows' own latents summed out, where that is closed; the story says what it
        is in every other case."""
        return None

    # -- what every program has --------------------------------------------------------------------------------

    @staticmethod
    def rows(batch: Batch) -> Any:
        """The data plate: this batch's rows, scaled up to all of them. Always dim -1."""
        return pyro.plate("data", batch.total, subsample=batch.index, dim=-1)

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
        """Copy each of these values into the parameter or buffer of that name."""
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def fresh(self) -> Program:
        """A new program of the same config with newly drawn parameters, on the CPU."""
        one = type(self)(**self.config)
        if self.completion is not None:
            one.complete_with(self.completion.fresh())
        return one

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
    def batches_count(self) -> int:
        """How many batches its rows may come from; 1 where it does not read them."""
        return int(self.config.get("batches", 1))

    @property
    def target_mode(self) -> str | None:
        """How it was told the targets of environments, a key of `card.TARGETS`; None for models without targets."""
        return self.config.get("targets")

    @property
    def intervention_kind(self) -> str:
        """What its interventions do, a key of `conditions.INTERVENTIONS`; "perfect" unless an option says otherwise."""
        return str(self.config.get("intervention", "perfect"))

    @property
    def mechanism_kind(self) -> str:
        """The form of its structural equations; "linear" unless an option says otherwise."""
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
        latents, told = self.config.get("latents"), self.target_mode != "unknown"
        matrix = self.config.get("target_matrix") if told else None
        envs = self.config.get("environments") if matrix is None else len(matrix)
        if envs is not None and envs != len(data.env_names):
            reject("data", f"{len(data.env_names)} environments", f"the program's {envs}")
        if told and data.targets is not None and latents is not None:
            found = data.target_matrix(latents)
            if matrix is not None and not np.array_equal(found, matrix):
                reject("targets", "other targets than the program's", matrix)

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        """A program for these data: `features`, `environments`, `likelihood` and the like are read off them.

        Raises InputError for options that it does not have or that are missing, for ways of telling targets that its
        card does not accept, and for data that list no targets, or no control, where it needs them.
        """
        known = inspect.signature(cls.__init__).parameters
        unknown = [k for k in options if k not in known or k == "self"]
        if unknown:
            allowed = ", ".join(k for k in known if k != "self")
            raise InputError(f"{unknown[0]}: not an option of {cls.card.name}; allowed: {allowed}")
        filled: dict[str, Any] = {}
        if "features" in known:
            filled["features"] = data.features
        if "environments" in known:
            filled["environments"] = len(data.env_names)
        if "batches" in known:
            filled["batches"] = len(data.batch_names)
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
        filled |= options
        missing = [
            k
            for k, v in known.items()
            if k not in filled and v.default is v.empty and v.kind is v.POSITIONAL_OR_KEYWORD and k != "self"
        ]
        if missing:
            raise InputError(f"{missing[0]}: missing; {cls.card.name} needs a value for it")
        return cls(**filled)

    @classmethod
    def _targets_of(cls, data: Data, options: Mapping[str, Any]) -> str:
        """How the targets are told, a mode that its card accepts."""
        accepted, listed = cls.card.targets, data.targets is not None or options.get("target_matrix") is not None
        default = inspect.signature(cls.__init__).parameters["targets"].default
        default = "unknown" if cls.infers_targets and not listed else default
        mode: str = one_of("targets", options.get("targets", default), TARGETS)
        if mode not in accepted:
            reject("targets", repr(mode), ", ".join(accepted))
        if mode != "unknown" and not listed:
            other = "or targets='unknown'" if "unknown" in accepted else "known or up to relabelling"
            reject("targets", "None in the data", f"a mapping environment -> latents, {other}")
        needs = {need for claim in cls.card.claims for need in claim.needs}
        if mode == "unknown" and "observational_environment" in needs and not data.has_control:
            reject("control", "None in the data", "the observational environment's name")
        return mode


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
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        reject(name, repr(value), f"a whole number from {least} " + ("on" if most is None else f"to {most}"))


def check_between(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise InputError unless `value` is a number strictly between `low` and `high`."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not low < value < high:
        above = f"a number above {low:g}"
        reject(name, repr(value), above if high == math.inf else f"a number strictly between {low:g} and {high:g}")


def check_sizes(features: int, latents: int, least: int = 1) -> None:
    """Raise InputError unless least <= latents < features (both whole numbers)."""
    check_whole("features", features, 2)
    check_whole("latents", latents, least)
    if latents >= features:
        reject("latents", str(latents), f"fewer than the {features} features")


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
