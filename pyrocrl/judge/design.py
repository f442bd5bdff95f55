"""Which intervention next: candidates ranked by what their rows would tell of how a goal is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyrocrl.claims.indeterminacy import as_graph, is_acyclic
from pyrocrl.data import Data
from pyrocrl.errors import one_of, reject, shown
from pyrocrl.exact import design
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.equivalence import class_draws, splits
from pyrocrl.options import Bounds, Positive, Seed, Share, Size, checked, conform
from pyrocrl.predict import per_size
from pyrocrl.turns import drawing, reseed

Acquisition = Literal["civ", "lookahead", "cv", "maxv", "mi", "splits", "greedy", "passive", "random"]
WITHOUT_GOAL = ("mi", "splits", "passive", "random")
STARTS, STEPS = 8, 30  # of the search over shifts
SEARCHED = 32  # draws that it takes means over
KNOWN_UNITS = (3.0, 1.0)  # of a given graph: prior deviations of constants and weights, in that of the noise
PRIOR = (0.5, 0.01)  # Gamma prior of its precisions, of standardised columns
REACHES = 1e-12  # an effect, above it
NOTHING = "nothing"  # the candidate that changes no equation
DRAWS, GIVEN_DRAWS = 50, 400


@checked
def next_interventions(
    fit: Any,
    goal: Any = None,
    *,
    pool: Mapping[str, Any] | None = None,
    batch: Size = 1,
    acquisition: Acquisition = "civ",
    kind: Literal["shift", "set"] = "shift",
    norm: Positive = 1.0,
    on: list[str] | None = None,
    rows: Size = 100,
    graph: Any = None,
    tried: Mapping[str, Any] | None = None,
    data: Data | None = None,
    level: Share = 0.9,
    draws: Annotated[int, Bounds(2)] | None = None,
    seed: Seed = 0,
) -> xr.Dataset:
    """Interventions to try next, so that a mean of the variables, the goal, is reached: ranked, the best first.

    fit: of a model of linear equations over a graph, such as `observed_dag` or `linear_sem_lin`; or `Data` beside a
    known `graph`, whose equations have their posterior in closed form. goal: the mean to reach, variable -> number, of
    some or of all; variables are the data's columns, or the fit's latents where they are not observed. pool:
    candidates, label -> {variable: amount}; None = any shift of the variables `on` (None = of all) whose amounts have a
    Euclidean norm of at most `norm`. batch: how many to choose, to be tried together, each for what it tells beside
    those before. kind: whether amounts are added to the variables' equations, or what variables are set to. rows: that
    the experiment will have of each.

    acquisition: what the choice minimises or maximises. "civ", causal integrated variance (Zhang et al. 2023): of the
    squared distance of shifts from the one that reaches the goal, integrated over all shifts; "cv": of that shift
    itself; in both an equation counts as much as it probably acts on the goal. "lookahead": what of the squared
    distance to the goal unknown equations are expected to cost still, once the rows are known and the best of all
    shifts is done. "maxv": variance of the goal's variables under the candidate. "greedy": the squared distance to the
    goal. These need no goal: "mi", information on the equations; "splits", edges that an intervention where a candidate
    acts would direct (see `equivalence_class`); "passive", no intervention; "random", any.

    graph: (parent, child) in {0, 1}, over the data's columns. tried: environment -> {variable: amount}, the shifts of
    known size among the data's environments; of those with targets and without a size the targets' equations learn
    nothing. data: the rows of a fit that was read from a file. draws: of each chain, or of a
    known graph; None = 50 or 400.

    Returns over (candidate,) `distance`, `low`, `high`: squared distance of the mean under it to the goal, in the
    squared units of the data, its mean and interval of `level` over draws; `left`: what "lookahead" minimises; `score`:
    the acquisition's own; all as if tried alone. `chosen`: 1, 2, ... in the order of the choice, 0 for others; `action`
    (candidate, variable): amounts, NaN where it does nothing. "nothing" and, without a pool, "best", the shift of the
    least expected distance, stand last.

    Raises InputError for a fit without linear equations over a graph, a graph with a cycle or of another shape, a pool
    without candidates or of fewer than `batch`, variables that are not there, and amounts or means that are not finite.
    """
    if isinstance(fit, Data):
        (known, names), worth = _of_data(fit, graph, tried, draws or GIVEN_DRAWS, seed), 1.0
    else:
        if not isinstance(fit, Fit):
            reject("fit", f"a {type(fit).__name__}", "a pyrocrl.Fit, or a pyrocrl.Data beside a graph")
        for argument, value in {"graph": graph, "tried": tried}.items():
            if value is not None:
                reject(argument, "one beside a fit", "None: a fit has its own; or data in its place")
        (known, names), worth = _of_fit(fit, data, draws or DRAWS, seed), fit.program.row_worth()
    if goal is None and acquisition not in WITHOUT_GOAL:
        reject("goal", "None", f"a mapping of variables to means, or an acquisition of {', '.join(WITHOUT_GOAL)}")
    aim = None if goal is None else _amounts("goal", goal, names)
    acting = np.ones(len(names), dtype=bool)
    if on is not None:
        if pool is not None or not on:
            reject("on", "no variable" if not on else f"{len(on)} beside a pool", "one or more, without a pool")
        acting = np.isin(names, [one_of("on", name, names) for name in on])
    if kind == "set" and pool is None:
        reject("kind", "'set' without a pool", "'shift', or a pool that says what variables are set to")
    actions = None if pool is None else _actions(pool, names, batch, kind)
    directs = None
    if acquisition == "splits":
        if actions is None or isinstance(fit, Data):
            reject("acquisition", "'splits' without a pool or a fit", "another, or a pool of candidates for a fit")
        directs = partial(splits, fit, class_draws(fit, data, seed=seed))
    with drawing(seed), torch.no_grad():
        choice = Choice(known, aim, torch.as_tensor(acting), norm, rows * worth, acquisition, seed, directs)
        found = choice.of_shifts(batch) if actions is None else choice.of_pool(actions, batch)
        beside = {NOTHING: torch.zeros_like(choice.best)}
        if actions is None and aim is not None:
            beside["best"] = choice.best
        others = [choice.candidate(name, choice.shift(value)) for name, value in beside.items()]
        found += [replace(one, score=0.0) for one in others] if directs is not None else others
        return _table(found, choice, names, level).assign_attrs(rows=rows)


class Choice:
    """Ranks actions on linear equations; see `next_interventions`.

    known: what is believed of the equations; goal: (node,), NaN where none is asked for, or None for none; acting:
    (node,) what may be shifted; rows: of each experiment, in what normal ones tell; directs: how many edges an
    intervention on some nodes would direct beside others, for "splits". best: (node,) the shift of the least expected
    distance.
    """

    def __init__(
        self,
        known: design.Equations,
        goal: np.ndarray | None,
        acting: Tensor,
        norm: float,
        rows: float,
        acquisition: str,
        seed: int = 0,
        directs: Callable[..., float] | None = None,
    ) -> None:
        self.known, self.acting, self.norm, self.rows = known, acting, norm, rows
        self.directs = directs
        self.acquisition, self.rng = acquisition, np.random.default_rng([seed, 83])
        self.best = known.weight.new_zeros(known.weight.shape[-1])
        self.goal = self.best
        self.there = torch.zeros(len(self.best), dtype=torch.bool)
        if goal is not None:
            self.there, self.goal = torch.as_tensor(np.isfinite(goal)), torch.as_tensor(np.nan_to_num(goal))
            self.best = design.best_shift(known, self.goal, self.there, acting, norm)
        reached = torch.where(self.there, self.goal, known.shifted(self.best).mean(0))
        self.u = torch.cat([torch.ones(1).to(reached), reached])
        self.reach = known.total[:, self.there].square().sum(1).mean(0)  # (node,) of a node on those of the goal
        reaches = (known.total[:, self.there].abs() > REACHES).any(1)
        self.counts = reaches.double().mean(0)  # (node,) how probably it acts on the goal
        self.needed = reached - known.mean @ self.u  # (node,) the shift that reaches the goal

    def shift(self, value: Tensor) -> design.Action:
        return design.Action(value, torch.zeros(len(value), dtype=torch.bool))

    def distance(self, mean: Tensor) -> Tensor:
        """(...) squared distance of means (..., node) from the goal; NaN without one."""
        apart = (mean - self.goal)[..., self.there].square().sum(-1)
        return apart if self.there.any() else apart * torch.nan

    def left(self, found: design.Outcome) -> Tensor:
        """(...) squared distance that is expected to be left once the equations are known as well as that."""
        out = (self.reach * found.variance).sum(-1)
        return out if self.there.any() else out * torch.nan

    def score(self, found: design.Outcome, now: Tensor) -> Tensor:
        """(...) what the choice makes small, its sign turned where it is to be large; now: (node,) variance of u' beta
        before the rows."""
        d = found.variance
        if self.acquisition == "lookahead":
            return self.left(found)
        if self.acquisition == "cv":
            return (self.counts * d).sum(-1)
        if self.acquisition == "civ":  # the variance of (a_k - needed_k)^2, integrated over the sphere of shifts
            centre = self.needed.square() + now - d + self.norm**2 / len(d)
            return (self.counts * 2 * d * (d + 2 * centre)).sum(-1)
        if self.acquisition == "mi":
            return -found.information.sum(-1)
        if self.acquisition == "maxv":
            return -found.mean[..., self.there].var(-2).sum(-1)
        return self.distance(found.mean).mean(-1)

    def candidate(self, name: str, action: design.Action, known: design.Equations | None = None) -> Candidate:
        known = self.known if known is None else known
        found = design.outcome(known, action, self.rows, self.u)
        return Candidate(name, action, found, float(self.score(found, (known.root.mT @ self.u).square().sum(-1))))

    def edges(self, action: design.Action, beside: list[Candidate]) -> float:
        """How many edges an intervention on the nodes that an action changes would direct, its sign turned."""
        assert self.directs is not None
        on = [np.flatnonzero(a.held | (a.value != 0)).tolist() for a in (action, *(one.action for one in beside))]
        return -self.directs(on[0], on[1:])

    def of_pool(self, pool: Mapping[str, design.Action], batch: int) -> list[Candidate]:
        """All candidates, the chosen first, each chosen for what it tells beside those before; then the others."""
        known, rest = self.known, {name: self.candidate(name, action) for name, action in pool.items()}
        out: list[Candidate] = []
        if self.directs is not None:
            rest = {name: replace(one, score=self.edges(one.action, [])) for name, one in rest.items()}
        while rest:
            ranked = list(rest)
            if self.acquisition == "random":
                ranked = [ranked[place] for place in self.rng.permutation(len(ranked))]
            elif self.acquisition != "passive":
                beside = {
                    name: self.candidate(name, one.action, known).score
                    if self.directs is None
                    else self.edges(one.action, out)
                    for name, one in rest.items()
                }
                ranked.sort(key=lambda name: beside[name])
            if len(out) == batch or self.acquisition == "passive":
                return out + [rest[name] for name in ranked]
            out.append(replace(rest.pop(ranked[0]), place=len(out) + 1))
            known = known.told(out[-1].action, self.rows)
        return out

    def of_shifts(self, batch: int) -> list[Candidate]:
        """As many shifts of bounded norm as are to be tried together, each the best beside those before."""
        known, out = self.known, []
        for place in range(1, batch + 1):
            action = self.shift(self.best if self.acquisition == "greedy" else self._searched(known))
            out.append(replace(self.candidate(f"shift_{place}", action), place=place))
            known = known.told(action, self.rows)
        return out

    def _searched(self, known: design.Equations) -> Tensor:
        """(node,) the shift of norm `norm` at most of the least score: L-BFGS from many starts at once."""
        free = self.acting.to(self.best)
        if self.acquisition == "passive":
            return torch.zeros_like(self.best)
        starts = torch.as_tensor(self.rng.standard_normal((STARTS, len(free)))) * free
        if self.acquisition == "random":
            return self.norm * starts[0] / starts[0].norm()
        starts[:2] = torch.stack([self.best, -self.best]) + 1e-3 * starts[:2]
        few = torch.as_tensor(self.rng.permutation(len(known.weight))[:SEARCHED])
        less = replace(known, weight=known.weight[few], constant=known.constant[few], noise=known.noise[few])
        spread = known.less(torch.nn.functional.pad(known.spread, (1, 0, 1, 0)), self.rows)
        now = (known.root.mT @ self.u).square().sum(-1)
        raw = (starts / starts.norm(dim=-1, keepdim=True)).requires_grad_()

        def scored() -> tuple[Tensor, Tensor]:
            value = self.norm * raw * free / (raw * free).norm(dim=-1, keepdim=True).clamp_min(1.0)
            return value, self.score(design.of_mean(less, spread, less.shifted(value), self.rows, self.u), now)

        optimiser = torch.optim.LBFGS([raw], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-9)

        def loss() -> Tensor:
            optimiser.zero_grad()
            total = scored()[1].sum()
            total.backward()
            return total

        with torch.enable_grad():
            optimiser.step(loss)
        value, score = scored()
        return value[score.nan_to_num(torch.inf).argmin()].detach()


@dataclass(frozen=True)
class Candidate:
    """An action, its outcome and its score when it was ranked; place: in the order of the choice, 0 if not chosen."""

    name: str
    action: design.Action
    outcome: design.Outcome
    score: float
    place: int = 0


# -- what is given, and what is told -------------------------------------------------------------------------------


def _table(found: list[Candidate], choice: Choice, names: list[str], level: float) -> xr.Dataset:
    """Of the candidates and of those that stand beside them."""
    quantile, turned = [0.5 - level / 2, 0.5 + level / 2], choice.acquisition in ("mi", "maxv", "splits")
    rows: dict[str, list[Any]] = {n: [] for n in ("distance", "low", "high", "left", "score", "chosen", "action")}
    for one in found:
        distance = choice.distance(one.outcome.mean).numpy()
        low, high = np.quantile(distance, quantile)
        acts = one.action.held | (one.action.value != 0)
        score = np.nan if choice.acquisition in ("passive", "random") else -one.score if turned else one.score
        told: list[Any] = [distance.mean(), low, high, float(choice.left(one.outcome)), score, one.place]
        told.append(np.where(acts.numpy(), one.action.value.numpy(), np.nan))
        for name, value in zip(rows, told, strict=True):
            rows[name].append(value)
    dims = {name: ("candidate", "variable") if name == "action" else ("candidate",) for name in rows}
    return xr.Dataset(
        {name: (dims[name], np.array(value)) for name, value in rows.items()},
        coords={"candidate": [one.name for one in found], "variable": names},
        attrs={"level": float(level), "acquisition": choice.acquisition},
    )


def design_frame(found: xr.Dataset) -> pd.DataFrame:
    """What `next_interventions` gave as a table of a row for each candidate; amounts as text, without those below a
    thousandth of the largest."""
    table = found.drop_vars(["action", "variable"]).to_dataframe().reset_index()
    amounts, names = found["action"].to_numpy(), found["variable"].to_numpy()
    least = 1e-3 * np.nan_to_num(np.abs(amounts)).max(1, keepdims=True)
    kept = (np.abs(amounts) >= least) | (amounts == 0)
    told = [[f"{n}={v:.3g}" for n, v in zip(names[own], row[own], strict=True)] for own, row in zip(kept, amounts)]
    return table.assign(action=[", ".join(words) for words in told])


def _amounts(argument: str, given: Any, names: list[str]) -> np.ndarray:
    """(variable,) amounts of a mapping variable -> number, NaN for those that it does not name."""
    if not isinstance(given, Mapping) or not given:
        reject(argument, shown(given), "a mapping of one variable or more to numbers")
    out = np.full(len(names), np.nan)
    for name, value in given.items():
        one_of(argument, name, names)
        out[names.index(name)] = conform(f"{argument}[{name!r}]", value, float)
    return out


def _actions(pool: Mapping[str, Any], names: list[str], batch: int, kind: str) -> dict[str, design.Action]:
    if not pool:
        reject("pool", "no candidates", "one or more, label -> {variable: amount}")
    if batch > len(pool):
        reject("batch", batch, f"{len(pool)} at most, the candidates in the pool")
    out = {}
    for label, amounts in pool.items():
        if label == NOTHING:
            reject("pool", f"a candidate {NOTHING!r}", "another label: it stands for no intervention")
        value = _amounts(f"pool[{label!r}]", amounts, names)
        acts = torch.as_tensor(np.isfinite(value))
        held = acts if kind == "set" else torch.zeros_like(acts)
        out[str(label)] = design.Action(torch.as_tensor(np.nan_to_num(value)), held)
    return out


def _of_fit(fit: Fit, data: Data | None, draws: int, seed: int) -> tuple[design.Equations, list[str]]:
    """Draws of a fit's equations where no environment intervenes, chains by their weights, and the variables' names."""
    program, data = fit.program, fit._data(data)
    linear = program.mechanism_kind == "linear"
    if fit.graph() is None or not linear or not {"weight", "noise"} <= program.sites.keys():
        found = f"a fit of {program.card.name}" + ("" if linear else f" with {program.mechanism_kind} equations")
        reject("fit", found, "one of linear equations over a graph, such as observed_dag or linear_sem_lin")
    if program.reads_innovations:
        found = f"a fit of {program.card.name} under {program.intervention_kind} interventions"
        reject("fit", found, "one whose data hold the graph")
    rng, chains = np.random.default_rng([seed, 97]), fit.chains.count
    count = np.bincount(rng.choice(chains, draws * chains, p=fit.weights), minlength=chains)
    row = fit.batch_of(data.rows_at(np.arange(1))).annealed().whole()
    sites = ("weight", "offset" if "offset" in program.sites else "intercept", "noise", "targets")
    drawn: list[list[np.ndarray]] = []
    with drawing(), torch.no_grad():
        for chain, own in enumerate(fit.programs()):
            reseed(mix(seed, chain, 97))
            told = own.targets_matrix()
            for _ in range(count[chain]):
                with own.reading_errors():
                    sampled = stories.drawn(own, row, local=False)
                values = stories.values(stories.told(own, row.blank(), sampled))
                values.setdefault("targets", torch.zeros_like(values["noise"]) if told is None else told)
                weight, constant, noise, hit = (
                    fit._align_site(values[name].double().cpu().numpy()[None], name, chain)[0] for name in sites
                )
                free = (hit > 0.5).argmin(0), np.arange(len(weight))  # an environment that leaves the variable alone
                drawn.append([weight, constant[free], noise[free]])
    observed = program.latents_up_to == ("exact",) and program.latents_count == len(fit.names["feature"])
    parts = [torch.as_tensor(np.stack(part)) for part in zip(*drawn, strict=True)]
    return design.Equations.of_draws(*parts), fit.names["feature" if observed else "latent"]


def _of_data(
    data: Data, graph: Any, tried: Mapping[str, Any] | None, draws: int, seed: int
) -> tuple[design.Equations, list[str]]:
    """The posterior of a known graph's equations, in the units of the data, and the variables' names."""
    names, d = data.feature_names, data.features
    if graph is None:
        reject("graph", "None beside data", "a matrix (parent, child), or a fit in place of data")
    given = as_graph("graph", graph)
    if given.shape != (d, d):
        reject("graph", f"shape {given.shape}", f"({d}, {d}), a line and a column for each column of the data")
    if not is_acyclic(given):
        reject("graph", "a cycle", "a graph without cycles")
    known = np.zeros((len(data.env_names), d))
    hit = np.zeros_like(known, dtype=bool) if data.targets is None else data.target_matrix(d).astype(bool)
    if data.targets is None:  # whatever they changed
        others = [env for env in data.env_names if env != data.control and env not in (tried or {})]
        if data.control is None and len(others) > 1:
            reject("data", f"{len(others)} environments, none of them the control", "control= or targets= of the data")
        hit[[data.env_names.index(env) for env in others if data.control is not None]] = True
    for env, amounts in (tried or {}).items():
        place = data.env_names.index(one_of("tried", env, data.env_names))
        known[place], hit[place] = np.nan_to_num(_amounts(f"tried[{env!r}]", amounts, names)), False
    x = per_size(data)
    centre, spread = x.mean(0), x.std(0)
    if not spread.all():
        reject("data", f"{names[int(spread.argmin())]!r}, which is constant", "columns that vary")
    told = [torch.as_tensor(v) for v in (given, (x - centre) / spread, (known / spread)[data.env], ~hit[data.env])]
    unit = torch.tensor([KNOWN_UNITS[0], *[KNOWN_UNITS[1]] * d], dtype=torch.float64)
    with drawing(mix(seed, 89)):
        out = design.given_graph(told[0].double(), told[1], told[2], told[3], unit, draws, prior=PRIOR)
    return out.rescaled(torch.as_tensor(centre), torch.as_tensor(spread)), names
