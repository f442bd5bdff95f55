"""`reference`: the posterior of a program's story, exact but for Monte Carlo; `agreement`: what a fit says beside it.

A fit is variational inference: Laplace's method, mean-field guides, sums in closed form. The story is the program that
all of these stand for, so Hamiltonian Monte Carlo on it tells how far a fit is off, for rows few enough to wait for.
Where `model` keeps few numbers and sums the rest out exactly, so does its own posterior, by quadrature.

Hoffman & Gelman (2014), The No-U-Turn sampler, JMLR 15; discrete sites are summed out of the density and drawn from
their exact conditional afterwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.dists import categorical
from pyrocrl.errors import one_of, reject
from pyrocrl.exact import orders
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.elbo import is_local, sample_sites
from pyrocrl.infer.fitted import Fit
from pyrocrl.infer.stories import Sites
from pyrocrl.program import Program, check_whole
from pyrocrl.recorded import WORTH, Recorded
from pyrocrl.turns import drawing

MOST_VALUES = 256  # joint values of discrete sites that are summed over, at the cost of a story each
TARGET_ACCEPT = 0.8
PILOT = 200  # draws of the fit that give NUTS its units
LEAST_SCALE = 1e-6
SELDOM = 0.05  # probability below which an edge's weight has too few draws for a deviation


def reference(
    fit: Fit,
    data: Data | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    sum_over: Sequence[str] = (),
    draws: int = 500,
    warmup: int = 500,
    chains: int = 1,
    seed: int = 0,
    by: str = "nuts",
) -> xr.DataTree:
    """Draws of the story's posterior by NUTS (Hoffman & Gelman 2014), laid out as `fit.posterior` lays out the fit's.

    What is no site of the story, such as a decoder's weights or the moments that a prior reads, is as in the fit's
    reference chain, and so are order and units of latents: those of the fit. Every chain starts at a draw of the fit.
    data: the Data of the fit, where it was read from a file; the rows that the fit kept out are left out here, too.

    given: values of sites, arrays of the sites' shapes, such as {"order": (latent,), "graph": (parent, child)} or
    {"gate": (feature, latent)}. sum_over: discrete sites whose joint values (256 at most) are summed over in the
    density; each draw of the others gets one from their exact conditional. Latents of single rows are sampled with all
    else. Entries of a site that nothing gives a density, as of equations that no environment uses, stay where the fit
    has them. The cost is the density and its gradient (a millisecond) for every step of some ten to hundred a draw.

    by: "nuts", or "marginal": independent draws of what `model` keeps, by the program's `exact_draws` (quadrature for
    two latents of `linear_sem_lin`, a walk from the prior for more), and everything else by `recover`: all graphs are
    summed over, so there is nothing to give.

    Groups: posterior, with variables, dimensions and coordinates of `fit.posterior`, its chains those of NUTS;
    sample_stats: lp (chain, draw), the log-density in nats, and diverging (chain, draw); constant_data: the sites that
    were given. Attributes: given, sum_over, and, over the numbers sampled outside the rows, rhat_max and ess_min, the
    largest split r-hat and the least effective sample size.

    Raises InputError for other data than the fit's, names that are not latent sites of the story, values of other
    shapes, discrete sites that are neither given nor summed over, those that have too many values for it, and
    by="marginal" for programs without exact draws.
    """
    one_of("by", by, ("nuts", "marginal"))
    for name, value, least in (("draws", draws, 4), ("warmup", warmup, 1), ("chains", chains, 1)):
        check_whole(name, value, least)
    rows = fit.fitted_rows(data)
    with drawing(mix(seed, fit.meta["seed"], 53)):
        program, batch = _program(fit, data, rows)
        if by == "marginal":
            if given or sum_over:
                reject("given" if given else "sum_over", "some", 'none with by="marginal", which sums over everything')
            runs, known_sites = [_exact_run(program, batch, draws, mix(seed, chain)) for chain in range(chains)], {}
        else:
            target = _Target(program, batch, given or {}, sum_over, fit)
            runs, known_sites = [target.run(draws, warmup) for _ in range(chains)], target.given
    values = {name: fit.in_data_units(name, np.stack([run.values[name] for run in runs])) for name in runs[0].values}
    coords = fit.coords(fit._data(data).row_labels()[rows], draws) | {"chain": np.arange(chains)}
    known = {name: values[name][:1, :1] for name in known_sites}
    volume = fit.volume(fit._data(data).rows_at(rows))
    tree = xr.DataTree.from_dict(
        {
            "posterior": fit.dataset(values, coords),
            "sample_stats": xr.Dataset(
                {
                    "lp": (("chain", "draw"), np.stack([run.lp for run in runs]) - volume),
                    "diverging": (("chain", "draw"), np.stack([run.diverging for run in runs])),
                },
                coords={key: coords[key] for key in ("chain", "draw")},
            ),
            "constant_data": fit.dataset(known, coords | {"chain": [0], "draw": [0]}).squeeze(drop=True),
        }
    )
    sampled = torch.stack([run.shared for run in runs])  # (chain, draw, number)
    tree.attrs |= {
        "model": fit.program.card.name,
        "fit": fit.digest,
        "given": ", ".join(known_sites),
        "sum_over": ", ".join(sum_over),
        "rhat_max": float(split_gelman_rubin(sampled).max()) if sampled.shape[-1] else math.nan,
        "ess_min": float(effective_sample_size(sampled).min()) if sampled.shape[-1] else math.nan,
        "created_by": "pyrocrl",
    }
    return tree


def agreement(
    fit: Fit,
    tree: xr.DataTree,
    names: Iterable[str] | None = None,
    data: Data | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for every number of the sites `names`: the fit's reference chain beside a tree of `reference`.

    Columns: mean and sd of both (`reference_mean`, `reference_sd`, `fit_mean`, `fit_sd`), `difference` = (fit_mean -
    reference_mean) / reference_sd, `ratio` = fit_sd / reference_sd, and `error`, the Monte Carlo standard error of
    `difference`. Index: site and entry ("latent_0, latent_2"). Numbers that do not vary in the reference are left out.

    names: by default all sites without a row's index. data: as for `reference`. The fit's draws are under
    the same `given` values: sites that the guide draws jointly with a given one keep their marginal, what `recover`
    draws follows it. Raises InputError for names that are not in the tree, and for a tree of another fit.
    """
    check_whole("draws", draws, 2)
    fit.check_own("tree", tree.attrs.get("fit"))
    found = tree["posterior"].to_dataset()
    known = tree["constant_data"].to_dataset()
    if names is None:
        names = [str(n) for n, v in found.data_vars.items() if "data" not in v.dims and n not in known]
    names = [one_of("names", name, [str(n) for n in found.data_vars]) for name in names]
    with drawing(mix(seed, fit.meta["seed"], 59)), torch.no_grad():
        program, batch = _program(fit, data, fit.fitted_rows(data))
        own = {str(n): fit.in_data_units(str(n), v.values, -1) for n, v in known.data_vars.items()}
        given = {n: torch.as_tensor(v).to(batch.device) for n, v in own.items()}
        given = {n: v.to(batch.dtype) if n != "order" and v.dtype != torch.long else v for n, v in given.items()}
        told = [stories.values(stories.told(program, batch, _drawn(program, batch, given))) for _ in range(draws)]
    drawn = {n: fit.in_data_units(n, np.stack([one[n].double().cpu().numpy() for one in told])) for n in names}
    parts = [_compared(name, found[name], drawn[name]) for name in names]
    return pd.concat(parts).set_index(["site", "entry"])


def _compared(name: str, exact: xr.DataArray, own: np.ndarray) -> pd.DataFrame:
    """The table's rows of one site: `exact` of the reference, `own` (draw, ...) of the fit."""
    exact = exact.transpose("chain", "draw", ...)
    axes = [exact[dim].values if dim in exact.coords else range(exact.sizes[dim]) for dim in exact.dims[2:]]
    entries = [", ".join(map(str, label)) for label in itertools.product(*axes)]
    drawn, own = torch.as_tensor(exact.values.astype(float)).flatten(2), own.reshape(len(own), -1)
    if drawn.ndim == 2:
        drawn = drawn[..., None]
    pooled = drawn.flatten(0, 1)
    moves = (pooled.std(0) > 1e-9 * pooled.abs().amax(0)).numpy()
    mean, sd = pooled.mean(0).numpy()[moves], pooled.std(0).numpy()[moves]
    fit_mean, fit_sd = own.mean(0)[moves], own.std(0, ddof=1)[moves]
    ess = effective_sample_size(drawn[..., torch.as_tensor(moves)]).numpy() if moves.any() else np.zeros(0)
    return pd.DataFrame(
        {
            "site": name,
            "entry": np.array(entries, dtype=object)[moves],
            "reference_mean": mean,
            "reference_sd": sd,
            "fit_mean": fit_mean,
            "fit_sd": fit_sd,
            "difference": (fit_mean - mean) / sd,
            "ratio": fit_sd / sd,
            "error": np.sqrt(1 / ess + (fit_sd / sd) ** 2 / len(own)),
        }
    )


def departures(fit: Fit, tree: xr.DataTree, draws: int = 1000, seed: int = 0) -> dict[str, float]:
    """How far a fit, all chains by their weights, is from a tree of `reference` over all graphs.

    edge_tv: for each pair of latents the total variation distance between the two probabilities of "no edge", "one way"
    and "the other"; the largest. weight_sd_ratio: the median over possible edges of the ratio of weights' deviations,
    fit to reference, an absent edge's weight being 0; of edges that have a probability above .05 in the reference.

    Raises InputError for a fit without graphs.
    """
    graph = fit.graph()
    if graph is None:
        reject("fit", f"{fit.program.card.name}, whose latents have no graph", "a model of graphs")
    fit.check_own("tree", tree.attrs.get("fit"))
    exact = tree["posterior"].to_dataset().stack(all=("chain", "draw")).transpose("all", ...)
    edges = exact["graph"].values.mean(0)
    three = [np.stack([p, p.T, 1 - p - p.T]) for p in (graph, edges)]
    apart = 0.5 * np.abs(three[0] - three[1]).sum(0)
    own = fit.posterior(max(2, draws // fit.chains.count), thin=10**9, predictive=False, density=False, seed=seed)[
        "posterior"
    ]
    share = np.repeat(fit.weights, own.sizes["draw"]) / own.sizes["draw"]
    weight = own["weight"].to_numpy().reshape(len(share), *graph.shape)
    mean = np.tensordot(share, weight, 1)
    sd = np.sqrt(np.tensordot(share, (weight - mean) ** 2, 1))
    use = edges > SELDOM
    ratio = sd[use] / exact["weight"].values.std(0)[use]
    return {
        "edge_tv": float(apart[np.triu_indices(len(graph), 1)].max()),
        "weight_sd_ratio": float(np.median(ratio)) if use.any() else math.nan,
    }


# -- the density ---------------------------------------------------------------------------------------------------


class _Run(NamedTuple):
    """values: (draw, ...) of sites and read-outs; shared: (draw, number) of numbers outside rows, in NUTS's units."""

    values: dict[str, np.ndarray]
    shared: Tensor
    lp: np.ndarray
    diverging: np.ndarray


def _exact_run(program: Program, batch: Batch, draws: int, seed: int) -> _Run:
    """A chain of `exact_draws`, what `model` summed out recovered with each."""
    kept = program.exact_draws(draws, torch.Generator().manual_seed(seed))
    if kept is None:
        reject("by", f"'marginal' for {program.card.name}, of which there are no exact draws", "'nuts'")
    collected: dict[str, list[np.ndarray]] = {}
    lp = []
    with torch.no_grad():
        for draw in range(draws):
            own = {name: value[draw] for name, value in kept.items()}
            trace = stories.told(program, batch, own | program.recovered(batch, own))
            lp.append(float(trace.log_prob_sum()))
            for name, value in stories.values(trace).items():
                collected.setdefault(name, []).append(value.cpu().numpy())
    shared = torch.cat([value.flatten(1) for value in kept.values()], 1)
    return _Run({n: np.stack(v) for n, v in collected.items()}, shared, np.array(lp), np.zeros(draws, bool))


class _Target:
    """The density that NUTS samples, of unconstrained values of the story's continuous latent sites."""

    def __init__(
        self, program: Program, batch: Batch, given: Mapping[str, Any], sum_over: Sequence[str], fit: Fit
    ) -> None:
        self.program, self.batch = program, batch
        with torch.no_grad():
            latent = _latent_sites(pyro.poutine.trace(program.story).get_trace(batch))
        self.given = {name: _checked(name, value, latent, fit) for name, value in given.items()}
        columns = stories.spread(self.given).keys()
        latent = {name: site for name, site in latent.items() if name not in columns}
        discrete = {name: site for name, site in latent.items() if site["fn"].support.is_discrete}
        for name in sum_over:
            one_of("sum_over", name, discrete)
        if left := sorted(discrete.keys() - set(sum_over)):
            reject("given", f"nothing for {', '.join(left)}", "values of every discrete site, or its name in sum_over")
        if not latent.keys() - discrete.keys():
            reject("given", "values of all continuous sites", "some left to sample")
        self.shared = tuple(name for name, site in latent.items() if name not in discrete and not is_local(site))
        self.transforms = {name: biject_to(site["fn"].support) for name, site in latent.items() if name not in discrete}
        self.fixed: Sites = {}  # unconstrained values of entries that have no density
        self.moving: Sites = {}  # which entries of such a site have one
        self.joint: list[Sites] = [{}]
        starts = [self._start() for _ in range(PILOT)]
        self._measure(starts)
        start = starts[0]
        values = self._constrained(start)[0]
        if sum_over:
            every = _joint_values({name: discrete[name] for name in sum_over}, batch.device)
            self.joint = [one for one in every if self._log_density(values, one) > -math.inf]
        self._fix_what_has_no_density(start)

    def _start(self) -> Sites:
        """Unconstrained values at a draw of the fit."""
        with torch.no_grad():
            drawn = _drawn(self.program, self.batch, self.given)
            nodes = stories.told(self.program, self.batch, drawn).nodes
            return {name: transform.inv(nodes[name]["value"]) for name, transform in self.transforms.items()}

    def _measure(self, starts: list[Sites]) -> None:
        """Units in which the fit's draws have unit covariance, or unit variance within rows: NUTS starts well there."""
        self.loc = {name: torch.stack([one[name] for one in starts]).mean(0) for name in self.transforms}
        self.scale = {}
        for name in self.transforms.keys() - set(self.shared):
            self.scale[name] = torch.stack([one[name] for one in starts]).std(0).clamp_min(LEAST_SCALE)
        if self.shared:
            flat = torch.stack([torch.cat([one[name].flatten() for name in self.shared]) for one in starts])
            cov = flat.mT.cov().reshape(flat.shape[1], -1)
            self.root = torch.linalg.cholesky(cov + torch.diag(1e-6 * cov.diagonal() + LEAST_SCALE**2))

    def _white(self, raw: Sites) -> Sites:
        """Unconstrained values in those units: `shared` (number,), and what is of single rows by name."""
        out = {name: (raw[name] - self.loc[name]) / scale for name, scale in self.scale.items()}
        if self.shared:
            apart = torch.cat([(raw[name] - self.loc[name]).flatten() for name in self.shared])
            out["shared"] = torch.linalg.solve_triangular(self.root, apart[:, None], upper=False)[:, 0]
        return out

    def _raw(self, white: Sites) -> Sites:
        """The inverse of `_white`."""
        out = {name: self.loc[name] + scale * white[name] for name, scale in self.scale.items()}
        if self.shared:
            sizes = [self.loc[name].numel() for name in self.shared]
            parts = (self.root @ white["shared"]).split(sizes)
            out |= {
                name: self.loc[name] + part.view_as(self.loc[name])
                for name, part in zip(self.shared, parts, strict=True)
            }
        return out

    def _fix_what_has_no_density(self, start: Sites) -> None:
        """Find them by gradients that are exactly 0 away from the start, where densities have none."""
        near = self._constrained({name: raw + 0.01 * torch.randn_like(raw) for name, raw in start.items()})[0]
        near = {name: value.requires_grad_() for name, value in near.items()}
        moving = []
        for one in self.joint:
            slopes = torch.autograd.grad(self._log_density(near, one), list(near.values()), materialize_grads=True)
            moving.append({name: slope != 0 for name, slope in zip(near, slopes, strict=True)})
        for name, own in moving[0].items():
            if not all(torch.equal(own, other[name]) for other in moving):
                reject("sum_over", f"values under which parts of {name!r} have no density", "values in `given`")
            if not bool(own.all()):
                self.fixed[name], self.moving[name] = start[name], own

    def _constrained(self, raw: Sites) -> tuple[Sites, Tensor]:
        """Values of the sites and the log-determinant of the map to them; what is fixed is replaced."""
        values, volume = {}, torch.zeros((), dtype=self.batch.dtype, device=self.batch.device)
        for name, transform in self.transforms.items():
            own = raw[name]
            if name in self.fixed:
                own = torch.where(self.moving[name], own, self.fixed[name])
            values[name] = transform(own)
            volume = volume + transform.log_abs_det_jacobian(own, values[name]).sum()
        return values, volume

    def _log_density(self, values: Sites, one: Sites) -> Tensor:
        """log p(x, sites) with the discrete sites at one of their joint values."""
        trace = stories.told(self.program, self.batch, {**self.given, **values, **one})
        total: Tensor = trace.log_prob_sum()
        return total

    def _each(self, values: Sites) -> Tensor:
        """(joint value,) log-densities."""
        return torch.stack([self._log_density(values, one) for one in self.joint])

    def potential(self, white: Sites) -> Tensor:
        """Negative log-density in nats; what is fixed is normal about where it is, apart from all."""
        raw = self._raw(white)
        values, volume = self._constrained(raw)
        out = -self._each(values).logsumexp(0) - volume
        for name, own in self.moving.items():
            out = out + 0.5 * (raw[name] - self.fixed[name])[~own].square().sum()
        return out

    def run(self, draws: int, warmup: int) -> _Run:
        """One chain."""
        start = self._white(self._start())
        kernel = NUTS(potential_fn=_recorded(self.potential, tuple(start)), target_accept_prob=TARGET_ACCEPT)
        mcmc = MCMC(kernel, draws, warmup, initial_params=start, disable_progbar=True)
        mcmc.run()
        white = mcmc.get_samples()
        collected: dict[str, list[np.ndarray]] = {}
        lp = []
        with torch.no_grad():
            for draw in range(draws):
                values = self._constrained(self._raw({name: value[draw] for name, value in white.items()}))[0]
                each = self._each(values)
                lp.append(float(each.logsumexp(0)))
                one = self.joint[int(categorical(each))]
                trace = stories.told(self.program, self.batch, {**self.given, **values, **one})
                for name, value in stories.values(trace).items():
                    collected.setdefault(name, []).append(value.cpu().numpy())
        diverging = np.zeros(draws, dtype=bool)
        diverging[[place for place in mcmc.diagnostics()["divergences"]["chain 0"] if 0 <= place < draws]] = True
        shared = white.get("shared", torch.zeros(draws, 0))
        return _Run({name: np.stack(value) for name, value in collected.items()}, shared, np.array(lp), diverging)


def _recorded(potential: Callable[[Sites], Tensor], names: Sequence[str]) -> Callable[[Sites], Tensor]:
    """The potential, computed with its gradient and, after the first calls, without Python."""

    def both(*values: Tensor) -> tuple[Tensor, ...]:
        values = tuple(value.detach().requires_grad_() for value in values)
        with torch.enable_grad():
            out = potential(dict(zip(names, values, strict=True)))
            return out.detach(), *torch.autograd.grad(out, values)

    replayed = Recorded(both, WORTH)

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> Tensor:
            value, *gradient = replayed(*values)
            ctx.save_for_backward(*gradient)
            return value

        @staticmethod
        def backward(ctx: Any, *slope: Tensor) -> tuple[Tensor, ...]:
            return tuple(slope[0] * own for own in ctx.saved_tensors)

    return lambda white: Replay.apply(*(white[name] for name in names))


def _program(fit: Fit, data: Data | None, rows: np.ndarray) -> tuple[Program, Batch]:
    """The reference chain's program and rows, in double precision and without gradients of parameters."""
    program = fit.chains.chain(fit.reference).double().requires_grad_(False)
    device = next(v.device for v in program.state_dict().values())
    fitted = fit._data(data).rows_at(rows)
    return program, fitted.tensors(device, torch.float64, moments=not program.uses_rows).whole().annealed()


def _drawn(program: Program, batch: Batch, given: Mapping[str, Tensor]) -> Sites:
    """A draw of the fit, with these sites at these values wherever guide or `recover` have them."""
    with pyro.poutine.condition(data=stories.spread(given)):
        return {**stories.drawn(program, batch), **given}


def _latent_sites(trace: Any) -> dict[str, dict]:
    return {n: s for n, s in sample_sites(trace) if not s["is_observed"] and not s["infer"].get("is_auxiliary")}


def _checked(name: str, value: Any, latent: Mapping[str, dict], fit: Fit) -> Tensor:
    """A given value as a tensor of its site's shape, precision and units."""
    one_of("given", name, latent)
    like = latent[name]["value"]
    out = torch.as_tensor(np.array(value)).to(like)
    if out.shape != like.shape:
        reject(f"given[{name!r}]", f"shape {tuple(out.shape)}", f"shape {tuple(like.shape)}")
    return torch.as_tensor(fit.in_data_units(name, out.cpu().numpy(), -1)).to(like)


def _joint_values(sites: Mapping[str, dict], device: torch.device) -> list[Sites]:
    """All joint values of discrete sites, also such as do not fit each other."""
    counts = {name: _count(site) for name, site in sites.items()}
    if math.prod(counts.values()) > MOST_VALUES:
        words = ", ".join(f"{name} of {count}" for name, count in counts.items())
        reject("sum_over", f"{words} values", f"{MOST_VALUES} joint values at most; name the others in `given`")
    lists = [[value.to(site["value"]) for value in _values(site)] for site in sites.values()]
    return [dict(zip(sites, values, strict=True)) for values in itertools.product(*lists)]


def _choices(site: dict) -> range:
    """Values of one entry of a discrete site."""
    support = site["fn"].support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.boolean:
        return range(2)
    if isinstance(support, constraints.integer_interval):
        return range(int(support.lower_bound), int(support.upper_bound) + 1)
    reject("sum_over", f"{site['name']!r} of support {support}", "sites of finitely many values")


def _count(site: dict) -> int:
    law, size = site["fn"], len(site["value"]) if site["value"].ndim else 1
    if isinstance(law, orders.Order):
        return math.factorial(size)
    if isinstance(law, orders.Graph):
        return (1, 3, 25, 543, 29281)[size - 1] if size <= 5 else 2 ** (size * (size - 1) // 2)
    return int(len(_choices(site)) ** site["value"].numel())


def _values(site: dict) -> list[Tensor]:
    law, shape = site["fn"], site["value"].shape
    if isinstance(law, orders.Order):
        return [torch.tensor(order) for order in itertools.permutations(range(len(site["value"])))]
    if isinstance(law, orders.Graph):
        return [torch.as_tensor(graph) for graph in orders.all_dags(len(site["value"]))]
    return [torch.tensor(one).reshape(shape) for one in itertools.product(_choices(site), repeat=shape.numel())]
