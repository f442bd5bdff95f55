"""`Fit`, what a fit leaves: the chains, their alignment and weights, and draws as an `xarray.DataTree`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from scipy.special import logsumexp
from torch import Tensor

from pyrocrl.adjust import Adjustment
from pyrocrl.batch import Batch, Units
from pyrocrl.claims.card import maps_in_words
from pyrocrl.claims.indeterminacy import Alignment, Group
from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.exact.invariance import guaranteed
from pyrocrl.infer import checkpoint, stories
from pyrocrl.infer.chains import AT_ONCE, Chains, Repeated, mix
from pyrocrl.infer.completion import Completion
from pyrocrl.infer.held_out import held_out_rows, row_objectives
from pyrocrl.infer.number import Number
from pyrocrl.infer.weights import chain_weights, error_of_sum
from pyrocrl.options import Bounds, Seed, Share, Size, check_memory, checked
from pyrocrl.program import LATENT_DIMS, Program, Site
from pyrocrl.turns import drawing, reseed

MOST_NUMBERS = 100_000_000  # of z; beyond it rows are thinned
MOST_READ = 1_000_000_000  # entries of x whose densities are taken in all draws; beyond it rows are thinned
DRAWN_CELLS = 2_000_000  # entries of x, or of z, that draws made at once may hold
MOST_PREDICTED = 20_000_000  # of x in posterior_predictive; beyond it its rows are thinned
MOST_STEPS = 250  # rows of series in posterior_predictive
READ_CELLS = 8_000_000  # entries of x read at once
COUNTED = 100  # draws of each chain by which latents in use are counted
ANCHOR_ROWS = 2_000  # rows on which chains are aligned
INCLUDED = 0.5  # PIP from which a feature counts as one of a latent's
BEHIND = 3.0  # nats a row by which a chain that is stuck lies below draws of a bootstrap, which differ by less
Z = Site(("data", "latent"), {"latent": "point"})


class Fit:
    """Fitted chains of one program, aligned by what the model's claim leaves free.

    `chains` stacked parameters; `kept` the chains that stayed finite; `held_out` (chain, row) the held-out
    objective; `history` (check, 1 + chain) epoch and held-out objective; `names` coordinates of the axes;
    `meta` seed, recipe, seconds, origin; `units` of x as the programs see it: what a fit tells of x is in the units of
    the data. The reference chain is the one with the highest held-out objective.
    """

    def __init__(
        self,
        program: Program,
        chains: Chains,
        kept: list[int],
        held_out: Tensor,
        history: np.ndarray,
        names: dict[str, list[str]],
        meta: dict[str, Any],
        data: Data | None = None,
        anchor: np.ndarray | None = None,
        units: Units | None = None,
    ) -> None:
        self.program, self.chains, self.kept = program, chains, kept
        self.held_out, self.history, self.names, self.meta = held_out, history, names, meta
        self.data, self.units = data, units
        if anchor is None:
            assert data is not None
            rows = data.spread(ANCHOR_ROWS)
            anchor = self.chain_latents(data.rows_at(rows))
        self.anchor = anchor

    def __repr__(self) -> str:
        seconds = self.meta.get("seconds", 0.0)
        return (
            f"Fit({self.program.card.name}: {self.chains.count} chains, {self.meta['epochs']} epochs, "
            f"{seconds:.0f} s, best held-out objective {self.scores.max():.4g} a row)"
        )

    @staticmethod
    def names_of(data: Data, program: Program) -> dict[str, list[str]]:
        latents = [f"latent_{k}" for k in range(program.latents_count)]
        return {
            "feature": list(data.feature_names),
            "env": list(data.env_names),
            "batch": list(data.batch_names),
            "aux": list(data.aux_names),
            "latent": latents,
            "parent": latents,
            "child": latents,
        }

    # -- chains: order, weight, alignment ----------------------------------------------------------------------

    @property
    def scores(self) -> np.ndarray:
        """(chain,) held-out objective, nats a row."""
        return self.held_out.mean(1).numpy()

    @cached_property
    def evidence_parts(self) -> np.ndarray | None:
        """(chain, part) evidence as each chain knows it (`Program.log_evidence`), nats, in one part where it is exact;
        None where the model does not."""
        with torch.no_grad():
            own = [value for p in self.programs() if (value := p.log_evidence()) is not None]
        return np.stack([value.double().cpu().numpy().reshape(-1) for value in own]) if own else None

    @property
    def log_evidence(self) -> np.ndarray | None:
        """(chain,) evidence, nats; None where the model does not know it."""
        return None if self.evidence_parts is None else self.evidence_parts.sum(1)

    @property
    def evidence_error(self) -> np.ndarray:
        """(chain,) standard error of what each has less than the best one; 0 where evidence is exact, or unknown."""
        parts = self.evidence_parts
        if parts is None:
            return np.zeros(self.chains.count)
        return np.hypot(error_of_sum(parts[self.reference] - parts), self.program.evidence_spread())

    @property
    def reference(self) -> int:
        """The chain of most evidence, or with the highest held-out objective where there is none."""
        return int(np.argmax(self.scores if self.log_evidence is None else self.log_evidence))

    @property
    def there(self) -> np.ndarray:
        """(chain,) whether its held-out objective is within BEHIND of the best: a chain further below is stuck."""
        return self.scores >= self.scores.max() - BEHIND

    @cached_property
    def weights(self) -> np.ndarray:
        """(chain,) shares of the evidence, where the model knows it: a chain that missed most of the posterior counts
        for as little. Else stacking weights: the mixture of chains that predicts the held-out rows best (Yao 2018), of
        those whose evidence is the best one's within its error where it has one. But chains that are draws of a
        bootstrap weigh alike, for the one that predicts best is no likelier than the others (see `there`)."""
        if self.program.drawn_by_chains:
            return self.there / self.there.sum()
        return chain_weights(self.held_out.numpy(), self.log_evidence, self.evidence_error)

    @cached_property
    def alignments(self) -> list[Alignment]:
        """For each chain the element of the claim's group that brings it nearest to the reference chain."""
        return [self.group.align(z, self.anchor[self.reference]) for z in self.anchor]

    @cached_property
    def group(self) -> Group:
        """What the claim on latents leaves free, as the reference chain has it."""
        return self.chains.chain(self.reference).group

    def in_use(self, chain: int) -> np.ndarray:
        """(latent,) whether a chain uses a latent: a feature includes it (where there is a mask), or its means vary.

        In the chain's own order.
        """
        with torch.no_grad():
            mask = self.chains.chain(chain).mask()
        if mask is not None:
            return (mask > INCLUDED).any(0).cpu().numpy()
        spread = self.anchor[chain].std(0)
        return spread > 0.05 * max(spread.max(), 1e-12)

    @cached_property
    def agreement(self) -> np.ndarray:
        """(chain, chain, latent) how well two chains agree on each of the reference's latents, by the claim's group.

        From 0 to 1; NaN where neither chain uses the latent. Where latents mix, the pair's mean squared canonical
        correlation stands for each of them.
        """
        count, group = self.chains.count, self.group
        out = np.full((count, count, self.program.latents_count), np.nan)
        used = [self.in_use(c) for c in range(count)]
        if group.mixes:
            for a, b in np.ndindex(count, count):
                za, zb = self.anchor[a][:, used[a]], self.anchor[b][:, used[b]]
                out[a, b] = 1.0 - group.distance(za, zb) if used[a].any() and used[b].any() else float(a == b)
            return out
        live = [u[a.permutation] for u, a in zip(used, self.alignments, strict=True)]
        aligned = [a.apply(z) * u for a, z, u in zip(self.alignments, self.anchor, live, strict=True)]
        for a, b in zip(*np.triu_indices(count), strict=True):
            pair = group.align(aligned[a], aligned[b])
            either = live[a][pair.permutation] | live[b][pair.places]
            out[a, b, pair.places] = out[b, a, pair.places] = np.where(either, pair.agreement, np.nan)
        return out

    def programs(self) -> list[Program]:
        """One program per chain, each with its own parameters."""
        return [self.chains.chain(c) for c in range(self.chains.count)]

    # -- read-outs ---------------------------------------------------------------------------------------------

    @checked
    def chain_latents(self, data: Data) -> np.ndarray:
        """(chain, data, latent) posterior means, each chain in its own order and units."""
        data = self.coded(data)
        self.program.check(data)
        step = max(1, READ_CELLS // data.features)
        parts = []
        for start in range(0, data.rows, step):
            rows = data.rows_at(np.arange(start, min(start + step, data.rows)))
            batch = self.batch_of(rows)
            with drawing(), torch.no_grad():
                parts.append(np.stack([p.latents(batch).double().cpu().numpy() for p in self.programs()]))
        return np.concatenate(parts, 1)

    def latents(self, data: Data | None = None) -> np.ndarray:
        """(data, latent) posterior mean, stacked over the aligned chains; of any `Data` with the fit's features."""
        own = self.chain_latents(self._data(data))
        aligned = np.stack([a.apply(z) for a, z in zip(self.alignments, own, strict=True)])
        return np.einsum("c,cdl->dl", self.weights, aligned)

    @checked
    def latents_sd(
        self, data: Data | None = None, *, draws: Annotated[int, Bounds(2)] = 20, seed: Seed = 0
    ) -> np.ndarray | None:
        """(data, latent) posterior standard deviation over the aligned chains by their weights, from `draws` of each.

        None where `latents` are innovations, of which there are no draws.
        """
        data = self._data(data)
        if self.program.reads_innovations:
            return None
        step = max(1, READ_CELLS // data.features)
        parts = []
        with drawing(), torch.no_grad():
            for start in range(0, data.rows, step):
                rows = data.rows_at(np.arange(start, min(start + step, data.rows)))
                batch, centre = self.batch_of(rows).annealed(), self.latents(rows)
                first, second = np.zeros_like(centre), np.zeros_like(centre)
                for chain, (weight, program) in enumerate(zip(self.weights, self.programs(), strict=True)):
                    reseed(mix(seed, chain, start, 47))
                    for _ in range(draws):
                        with program.reading_errors():
                            sites = stories.drawn(program, batch)
                        z = stories.values(stories.told(program, batch, sites))["z"]
                        apart = self._align_site(z.double().cpu().numpy()[None], "z", chain)[0] - centre
                        first += weight / draws * apart
                        second += weight / draws * apart**2
                parts.append(np.sqrt(np.maximum(second - first**2, 0.0)))
        return np.concatenate(parts)

    def number(self) -> Number | None:
        """How many latents there are, its posterior probabilities and what they rest on: of models that learn which of
        those offered are in use, and where it was left to the data (`latents="auto"`); None elsewhere."""
        return self._number

    @cached_property
    def _number(self) -> Number | None:
        """Where latents are offered, by draws of the mask, a latent of two features or more being in use."""
        known, latents = self.meta.get("number"), self.program.latents_count
        given = None if known is None else Number.from_dict(known)
        if self.program.counted != "offered":
            return given
        about, thin = f"{latents} offered; draws of the fit", max(1, self._data(None).rows)
        drawn = self.posterior(COUNTED, self.data, thin=thin, predictive=False, density=False)["posterior"]
        if "mask" in drawn:
            mask = drawn["mask"].transpose("chain", "draw", "feature", "latent").to_numpy() > 0.5
            about += ", a latent of two features or more being in use"
            return Number.drawn((mask.sum(2) > 1).sum(-1), self.weights, latents, about)
        told = [one.cpu().numpy() for program in self.programs() if (one := program.number_told()) is not None]
        return Number.drawn(np.stack(told), self.weights, latents, about) if len(told) == len(self.weights) else given

    def mask(self) -> np.ndarray | None:
        """(feature, latent) inclusion probabilities, averaged over the aligned chains by their weights."""
        return self._average(Program.mask)

    def graph(self) -> np.ndarray | None:
        """(parent, child) edge probabilities, averaged over the aligned chains by their weights."""
        return self._average(Program.graph)

    def targets(self) -> np.ndarray | None:
        """(env, latent) probabilities that an environment intervenes on a latent, where the model infers them."""
        return self._average(Program.targets_matrix)

    def parents(self) -> np.ndarray | None:
        """(latent, 1) probabilities that a latent is a parent of the response, averaged over the chains by their
        weights; None where the model has no response."""
        return self._average(Program.parents)

    @checked
    def guaranteed(self, level: Share = 0.05) -> list[str] | None:
        """Names of columns that are parents of the response, all of them, with a probability of 1 - `level` or more,
        if its equation is linear with Gaussian noise and the same in all environments: the intersection of all sets
        that tests of invariance accept (Peters, Buehlmann & Meinshausen 2016). None where the model has no response."""
        with drawing(), torch.no_grad():
            found = self.chains.chain(self.reference).invariance()
        if found is None:
            return None
        response = self.program.config["response"]
        others = [name for j, name in enumerate(self.names["feature"]) if j != response]
        inside = guaranteed(found[0].cpu().numpy(), level)
        return [name for name, there in zip(others, inside, strict=True) if there]

    def row_targets(self, data: Data | None = None) -> np.ndarray | None:
        """(data, latent + 1) probabilities that a latent, or in the last column none, was changed between the row
        before and this one, averaged over the aligned chains by their weights; None where the model infers none."""
        batch = self.batch_of(self._data(data))
        with drawing(), torch.no_grad():
            own = [v.double().cpu().numpy() for p in self.programs() if (v := p.row_targets(batch)) is not None]
        if len(own) < self.chains.count:
            return None
        aligned = [a.act(v[:, :-1], {-1: 0}) for a, v in zip(self.alignments, own, strict=True)]
        latents = np.einsum("c,cdl->dl", self.weights, np.stack(aligned))
        return np.concatenate([latents, 1.0 - latents.sum(1, keepdims=True)], 1).clip(0.0, 1.0)

    def state_shares(self, data: Data | None = None) -> np.ndarray | None:
        """(data, latent, state) probabilities of the states of latents, or of their dynamics, averaged over the aligned
        chains by their weights; None where the model has no states."""
        batch = self.batch_of(self._data(data))
        with drawing(), torch.no_grad():
            own = [v.double().cpu().numpy() for p in self.programs() if (v := p.state_shares(batch)) is not None]
        if len(own) < self.chains.count:
            return None
        aligned = [a.act(v, {1: 0}) for a, v in zip(self.alignments, own, strict=True)]
        return np.einsum("c,cdks->dks", self.weights, np.stack(aligned))

    def chain_values(self, name: str) -> np.ndarray | None:
        """(chain, ...) `mask`, `graph`, `targets_matrix` or `parents` of each chain, aligned; None = it has none."""
        axes: dict[int, Any] = {"graph": {-1: 0, -2: 0}, "parents": {-2: 0}}.get(name, {-1: 0})
        with drawing(), torch.no_grad():
            own = [v for p in self.programs() if (v := _read(p, name)) is not None]
        if len(own) == self.chains.count and name == "mask" and self.group.keeps_masks:
            return torch.stack(own).double().cpu().numpy()
        if len(own) < self.chains.count or self.group.mixes:
            return None
        return np.stack([a.act(v.double().cpu().numpy(), axes) for a, v in zip(self.alignments, own, strict=True)])

    def _average(self, method: Callable) -> np.ndarray | None:
        values = self.chain_values(method.__name__)
        return None if values is None else np.clip(np.einsum("c,cab->ab", self.weights, values), 0.0, 1.0)

    @checked
    def held_out_objective(self, data: Data, *, seed: Seed = 0) -> np.ndarray:
        """(row,) log-density of new rows under the chains by their weights, or its lower bound where latents are not
        integrated out; nats."""
        data = self.coded(data)
        self.program.check(data)
        with np.errstate(divide="ignore"):
            each = row_objectives(self.chains, self.batch_of(data).annealed(), mix(seed, 43)).cpu().numpy()
            return logsumexp(each + np.log(self.weights)[:, None], axis=0) - self.volumes(data)

    # -- draws -------------------------------------------------------------------------------------------------

    @checked
    def posterior(
        self,
        draws: Size = 200,
        data: Data | None = None,
        *,
        thin: Size | None = None,
        predictive: bool = True,
        density: bool = True,
        seed: Seed = 0,
    ) -> xr.DataTree:
        """Draws from every chain, aligned, as groups posterior, posterior_predictive, log_likelihood,
        sample_stats, observed_data and constant_data.

        z (chain, draw, data, latent), mask (chain, draw, feature, latent) and graph (chain, draw, parent, child) in {0,
        1}, weight, and the model's own sites, in the precision of the fit. log_likelihood holds log p(x_i | z_i, .) of
        each draw, or with the latents integrated out where the model can. thin: keep every thin-th row in what has a
        data dimension; None = all rows unless z exceeds 1e8 numbers, or x 1e9 over all draws; constant_data then has
        the posterior means of all rows (`latent_mean`, `row_env`). posterior_predictive is thinned to 2e7 numbers, and
        to 250 rows of series, in any case, and only what is kept is drawn: its coordinate tells which rows it holds, by
        the names of `data` or by position. predictive=False leaves out posterior_predictive and log_likelihood,
        density=False `lp`.
        sample_stats has `lp`, log p - log q of each draw, and of chains `held_out`, `chain_weight` and
        `agreement` (chain, other_chain, latent). Sites that `Program.sites` does not declare, such as an order, stand
        in each chain's own numbering and units of the latents; the attribute `aligned` of such a variable is 0.
        """
        data = self._data(data)
        total = draws * self.chains.count
        if thin is None:
            thin = max(1, -(-data.rows * max(1, len(self.names["latent"])) * total // MOST_NUMBERS))
            thin = max(thin, -(-data.rows * data.features * total // MOST_READ))
        alone = data.pair is None and data.series is None
        rows = np.arange(0, data.rows, thin) if alone else data.spread(-(-data.rows // thin))
        check_memory("draws", draws, 4.0 * total * len(rows) * self.program.latents_count)
        kept = data.rows_at(rows)
        shown = _predicted(kept, total)
        batch = self.batch_of(kept).annealed()
        groups: dict[str, dict[str, np.ndarray]] = {
            g: {} for g in ("posterior", "posterior_predictive", "log_likelihood")
        }
        stats, volumes, volume = np.empty((self.chains.count, draws)), self.volumes(kept), self.volume(kept)
        step = max(1, min(AT_ONCE, DRAWN_CELLS // (len(rows) * max(data.features, self.program.latents_count))))
        repeated = Repeated(self.chains.batched)
        with drawing(), torch.no_grad():
            for chain, program in enumerate(self.programs()):
                reseed(mix(seed, self.meta["seed"], chain, 23))
                own: dict[str, dict[str, np.ndarray]] = {g: {} for g in groups}
                once = partial(_draw, program, batch, shown if predictive else None, density)
                for first in range(0, draws, step):
                    count = min(step, draws - first)
                    one = repeated(once, count)
                    stats[chain, first : first + count] = one.pop("lp").double().cpu().numpy() - volume
                    for group, values in one.items():
                        for name, value in values.items():
                            _fill(own[group], name, first, draws, self._compact(name, value.cpu().numpy()))
                for group, values in own.items():
                    for name in list(values):
                        stack = values.pop(name)
                        if group == "log_likelihood":
                            stack = stack - volumes
                        else:
                            stack = self._align_site(self.in_data_units(name, stack), name, chain)
                        _fill(groups[group], name, chain, self.chains.count, self._compact(name, stack)[None])
        labels = data.row_labels()
        coords = self.coords(labels[rows], draws)
        tree = {
            g: self.dataset(values, coords | ({"data": labels[rows][shown]} if g == "posterior_predictive" else {}))
            for g, values in groups.items()
        }
        if not predictive:
            del tree["posterior_predictive"], tree["log_likelihood"]
        lp = {"lp": (("chain", "draw"), stats)} if density else {}
        tree["sample_stats"] = xr.Dataset(
            {
                **lp,
                "held_out": (("chain",), self.scores),
                "chain_weight": (("chain",), self.weights),
                "agreement": (("chain", "other_chain", "latent"), self.agreement),
            },
            coords={k: coords[k] for k in ("chain", "draw")} | {"latent": self.names["latent"]},
        )
        observed = self.in_data_units("x", batch.x.cpu().numpy())
        if data.view is not None and data.gaps:
            observed = np.where(data.present[rows][:, data.view], observed, np.nan)
        if batch.known is not None:
            observed = np.where(batch.known.cpu().numpy(), observed, np.nan)
        tree["observed_data"] = xr.Dataset(
            {"x": (("data", "feature"), observed, {"counts": int(data.counts)})},
            coords={k: coords[k] for k in ("data", "feature")},
        )
        constant: dict[str, Any] = {"env": ("data", data.env_labels()[rows])}
        if thin > 1:  # draws of some rows, yet the means of all
            constant["latent_mean"] = (("row", "latent"), self.latents(data))
            constant["row_env"] = (("row",), data.env_labels())
        if data.size_factor is not None:
            constant["size_factor"] = ("data", data.size_factor[rows])
        if data.pair is not None:
            constant |= {"pair": ("data", data.pair_labels()[rows]), "after": ("data", data.after[rows].astype(int))}
        if data.series is not None:
            constant |= {"series": ("data", data.series_labels()[rows]), "step": ("data", data.step[rows])}
        known = {k: coords[k] for k in ("data", "latent")} | ({"row": labels} if thin > 1 else {})
        tree["constant_data"] = xr.Dataset(constant, coords=known)
        out = xr.DataTree.from_dict(tree)
        out.attrs |= {
            "model": self.program.card.name,
            "fit": self.digest,
            "thin": int(thin),
            "up_to": ", ".join(self.program.latents_up_to) or "exact",
            "created_by": "pyrocrl",
        }
        if (control := data.control or self.meta.get("control")) in data.env_labels():
            out.attrs["control"] = control
        return out

    @checked
    def prior(self, draws: Size = 200, data: Data | None = None, *, seed: Seed = 0) -> xr.DataTree:
        """Draws of every site of the story (groups prior, prior_predictive) for the covariates of the rows of `data`.

        Trained constants, such as a decoder's weights, are those of the reference chain; what an improper prior leaves
        open is fixed by a convention that the model's docstring tells.
        """
        data = self._data(data)
        check_memory("draws", draws, 8.0 * draws * data.rows * data.features)
        batch = self.batch_of(data).annealed()
        program = self.programs()[self.reference]
        sites: dict[str, list] = {}
        with drawing(), torch.no_grad():
            reseed(mix(seed, 29))
            for _ in range(draws):
                trace = stories.told(program, batch.blank(), {})
                for name, value in (stories.values(trace) | {"x": trace.nodes["x"]["value"]}).items():
                    sites.setdefault(name, []).append(value.double().cpu().numpy())
        coords = self.coords(data.row_labels(), draws) | {"chain": [0]}
        one = {n: self.in_data_units(n, np.stack(v)[None]) for n, v in sites.items()}
        out = xr.DataTree.from_dict(
            {
                "prior": self.dataset({n: v for n, v in one.items() if n != "x"}, coords),
                "prior_predictive": self.dataset({"x": one["x"]}, coords),
            }
        )
        out.attrs["fit"] = self.digest
        return out

    @checked
    def do(
        self,
        data: Data | None,
        values: Mapping[str, float] | None = None,
        *,
        environments: Sequence[str] = (),
        draws: Size = 200,
        seed: Seed = 0,
    ) -> xr.Dataset:
        """Draws under interventions: z (chain, draw, latent) and the mean of x (chain, draw, feature).

        `values` sets latents: it maps names such as "latent_2" to values in the units of `fit.latents`, by ChiRho's
        `do` on the named sites of the model, so what is not downstream keeps its distribution. `environments` names
        environments whose interventions are applied together to the observational equations, be they a combination
        never seen; a latent set by `values` stays set. Rows' covariates (size factor, batch) are drawn from `data`.
        Raises InputError for unknown names, and for environments where the model does not say what they change.
        """
        from chirho.interventional.handlers import do

        data = self._data(data)
        values = {} if values is None else values
        if not (values or environments):
            reject("values", repr(values), "a mapping of latent names to values, such as {'latent_0': 1.5}")
        for name in values:
            one_of("values", name, self.names["latent"])
        if len(set(environments)) < len(environments):
            reject("environments", repr(environments), "a list of names, each once")
        for name in environments:
            one_of("environments", name, self.names["env"])
        places = [self.names["env"].index(name) for name in environments]
        if environments and not self.program.knows_interventions:
            name = self.program.card.name
            reject("environments", f"{len(environments)}", f"none: {name} does not model what an intervention does")
        check_memory("draws", draws, 8.0 * draws * self.chains.count * data.features)
        if values and self.program.group.mixes:
            free = ", ".join(maps_in_words(self.program.latents_up_to))
            reject("values", f"a model that identifies latents only up to {free}", "latents identified one by one")
        rows = np.random.default_rng(seed).integers(0, data.rows, draws)
        batch = self.batch_of(data.rows_at(rows)).annealed()
        z_out, x_out = [], []
        with drawing(), torch.no_grad():
            for chain, (program, a) in enumerate(zip(self.programs(), self.alignments, strict=True)):
                actions = {}
                for name, value in values.items():
                    k = self.names["latent"].index(name)
                    actions[int(a.permutation[k])] = float((float(value) - a.shift[k]) / a.scale[k])
                # one posterior draw of the global sites for each interventional draw
                z_draws, x_draws = [], []
                for draw in range(draws):
                    # anew for each: how many random numbers a count takes depends on its rate, and so on the values set
                    reseed(mix(seed, chain, draw, 31))
                    row = batch.take(torch.tensor([draw], device=batch.device)).whole()
                    sites = stories.drawn(program, row, local=False)
                    row = dataclasses.replace(row.blank(), together=tuple(places))
                    with do(actions=stories.acting(actions)):
                        trace = stories.told(program, row, sites)
                    z_draws.append(stories.values(trace)["z"][0])
                    x_draws.append(trace.nodes["x"]["fn"].mean[0])
                z_out.append(a.apply(torch.stack(z_draws).double().cpu().numpy()))
                x_out.append(self.in_data_units("x", torch.stack(x_draws).double().cpu().numpy()))
        return xr.Dataset(
            {
                "z": (("chain", "draw", "latent"), np.stack(z_out)),
                "x": (("chain", "draw", "feature"), np.stack(x_out)),
            },
            coords={
                "chain": np.arange(self.chains.count),
                "draw": np.arange(draws),
                "latent": self.names["latent"],
                "feature": self.names["feature"],
            },
            attrs={"fit": self.digest, "do": ", ".join([*environments, *(f"{k}={v:g}" for k, v in values.items())])},
        )

    # -- files -------------------------------------------------------------------------------------------------

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the fit (a folder gets checkpoint.safetensors) without pickle; `pyrocrl.load` reads it back."""
        path = Path(path)
        if path.is_dir() or not path.suffix:
            path = path / "checkpoint.safetensors"
        return checkpoint.write(path, *self._content())

    @cached_property
    def adjustment(self) -> Adjustment | None:
        """What was taken out of the rows that were fitted; new rows with their batches and covariates get the same."""
        told = self.meta.get("adjustment")
        return None if told is None else Adjustment.from_dict(told)

    @cached_property
    def digest(self) -> str:
        """What names this fit: a digest of all that `save` writes. Draws, verdicts, runs and reports carry it."""
        return checkpoint.digest(*self._content())

    def check_own(self, argument: str, named: object) -> None:
        """Raise InputError, about `argument`, unless `named`, the digest that something carries, is this fit's."""
        if named != self.digest:
            found = "what does not say of which fit it is" if named is None else f"what is of fit {str(named)[:12]}"
            reject(argument, found, f"what was made from this fit, {self.digest[:12]}")

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and header of the fit's file."""
        state = {**self.chains.params, **self.chains.buffers}
        tensors = {f"state.{k}": v.detach().cpu() for k, v in state.items()}
        tensors |= {
            "held_out": self.held_out,
            "history": torch.as_tensor(self.history),
            "anchor": torch.as_tensor(np.ascontiguousarray(self.anchor)),
        }
        if self.units is not None:
            tensors |= {f"units.{k}": torch.as_tensor(v) for k, v in dataclasses.asdict(self.units).items()}
        header = {
            "finished": True,
            "model": self.program.card.name,
            "config": self.program.arguments,
            "completion": None if self.program.completion is None else self.program.completion.spec,
            "params": sorted(self.chains.params),
            "kept": self.kept,
            "names": self.names,
            "meta": self.meta,
            "batched": self.chains.batched,
        }
        return tensors, header

    @classmethod
    def restore(cls, path: str | Path, find: Callable[[dict], type[Program]], data: Data | None = None) -> Fit:
        """Read what `save` wrote; `find` gives the program's class for the file's header."""
        tensors, header = checkpoint.read(path)
        if not header.get("finished"):
            reject("path", f"an interrupted fit ({path})", "a finished fit; go on with resume=True")
        kind = find(header)
        try:
            program = kind(**header["config"])
        except (TypeError, InputError) as error:  # options that a changed class no longer takes
            reject("path", f"{path}, which does not fit {kind.card.name} ({error})", "its own checkpoint")
        if header.get("completion") is not None:
            program.complete_with(Completion(header["completion"]))
        state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
        expected = {k: tuple(v.shape) for k, v in program.state_dict().items()}
        found = {k: tuple(v.shape[1:]) for k, v in state.items()}
        if expected != found:
            odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            reject("path", f"{path}, which does not fit {program.card.name} ({odd[0]} differs)", "its own checkpoint")
        names = set(header["params"])
        chains = Chains(
            program,
            {k: v for k, v in state.items() if k in names},
            {k: v for k, v in state.items() if k not in names},
        )
        chains.batched = header["batched"]
        units = {k: tensors[f"units.{k}"].numpy() for k in ("centre", "scale") if f"units.{k}" in tensors}
        fit = cls(
            program,
            chains,
            header["kept"],
            tensors["held_out"],
            tensors["history"].numpy(),
            header["names"],
            header["meta"],
            None,
            tensors["anchor"].numpy(),
            Units(**units) if units else None,
        )
        fit.data = None if data is None else fit.coded(data)
        fit.digest = checkpoint.digest(tensors, header)
        return fit

    # -- helpers -----------------------------------------------------------------------------------------------

    def _data(self, data: Data | None) -> Data:
        if data is None and self.data is None:
            reject("data", "None for a fit read from a file", "the Data it was fitted to, or new rows")
        data = data or self.data
        assert data is not None
        if not isinstance(data, Data):
            reject("data", f"a {type(data).__name__}", "a pyrocrl.Data")
        return self.coded(data)

    def fitted_rows(self, data: Data | None = None) -> np.ndarray:
        """(row,) places of the rows that the chains were fitted to: those that were not held out of `data`.

        Raises InputError for other data than those of the fit.
        """
        data = self._data(data)
        if checkpoint.fingerprint(data) != self.meta["fingerprint"]:
            reject("data", f"{data.rows} rows that were not fitted", "the Data of the fit")
        out = held_out_rows(self.program, data, self.meta["recipe"]["held_out"], self.meta["seed"])
        return np.flatnonzero(~out)

    def coded(self, data: Data, *, environments: bool = True) -> Data:
        """With features and auxiliary columns in the order of the fit, by name, less what it adjusted for, with size
        factors by its rule, with environments and batches as they were coded in it, where the program reads them, and
        in its units. environments: False = any may be there, as they are coded.

        Raises InputError for features or auxiliary columns that are missing or unknown, for batches where the fit had
        none and the reverse, for environments or batches that were not fitted, and as `Data.sized_as` does.
        """
        data = data.coded_as(feature_names=self.names["feature"], aux_names=self.names.get("aux"))
        if self.adjustment is not None:
            data = self.adjustment(data)
        elif data.adjustment is not None or data.covariates:
            found = "rows that were adjusted" if data.adjustment is not None else "covariates"
            reject("data", found, "rows without covariates, as in the fit, which adjusted for nothing")
        if self.program.config.get("likelihood") != "gaussian":
            data = data.sized_as(self.meta.get("size_factor"))
        reads = self.program.card.needs_env or "environments" in self.program.config
        envs = self.names["env"] if reads and environments else None
        batches = self.names.get("batch") if "batches" in self.program.config else None
        if batches is not None and batches != data.batch_names and ["all"] in (batches, data.batch_names):
            words = {False: "none", True: "labels"}
            reject("batch", words[batches == ["all"]], f"{words[batches != ['all']]}, as in the fit")
        return data.coded_as(envs, batches).in_units(self.units)

    def batch_of(self, data: Data) -> Batch:
        """All rows of `data` as the tensors this fit's programs take, on their device; see `coded`."""
        data = self.coded(data)
        first = next(v for v in {**self.chains.params, **self.chains.buffers}.values() if v.is_floating_point())
        moments = not self.program.uses_rows
        return data.tensors(first.device, first.dtype, moments=moments).whole()

    def volumes(self, data: Data) -> float | np.ndarray:
        """What rows' log-densities under a program lose when x is told in the units of the data, whose features are in
        the fit's order: one number, or (data,) where values are missing."""
        return 0.0 if self.units is None else self.units.volumes(data.known if data.incomplete else None)

    def volume(self, data: Data) -> float:
        """The same of all rows together."""
        each = self.volumes(data)
        return float(np.sum(each)) if np.ndim(each) else data.rows * float(each)

    def in_data_units(self, name: str, value: np.ndarray, power: int = 1) -> np.ndarray:
        """A program's values (..., dims of the site) in the units of the data; power=-1: the other way, but for x."""
        if self.units is None:
            return value
        if name == "x":
            return self.units.restore(value)
        site = self._site(name)
        if not site.unit:
            return value
        scale = self.units.scale ** (power * site.unit)
        return value * np.expand_dims(scale, tuple(range(1, len(site.dims) - site.dims.index("feature"))))

    def _align_site(self, value: np.ndarray, name: str, chain: int) -> np.ndarray:
        """(draw, ...) values of a site brought to the reference chain's order and units."""
        site = self._site(name)
        axes = {axis + 1: site.scales.get(dim, 0) for axis, dim in enumerate(site.dims) if dim in LATENT_DIMS}
        known = (1, -1, "point")
        if not axes or (self.program.group.mixes and any(how not in known for how in axes.values())):
            return value
        return self.alignments[chain].act(value, axes)

    def _compact(self, name: str, value: np.ndarray) -> np.ndarray:
        """Values of a site, those of a discrete one in a byte each."""
        return value.astype(np.int8, copy=False) if self._site(name).discrete else value

    def _site(self, name: str) -> Site:
        return self.program.sites.get(name, Z if name == "z" else Site(()))

    def coords(self, rows: np.ndarray, draws: int) -> dict[str, Any]:
        """Coordinates of a posterior's dimensions, `data` being the labels of these rows."""
        return {
            "chain": np.arange(self.chains.count),
            "draw": np.arange(draws),
            "data": rows,
            **self.names,
        }

    def dataset(self, values: dict[str, np.ndarray], coords: dict[str, Any]) -> xr.Dataset:
        """Values (chain, draw, ...) of sites by name, with the dimensions that `Program.sites` gives them."""
        variables = {}
        for name, value in values.items():
            dims = {"x": ("data", "feature"), "row": ("data",)}.get(name, self._site(name).dims)
            if name == "x" and value.ndim == 3:
                dims = ("data",)
            if len(dims) != value.ndim - 2:
                dims = tuple(f"{name}_dim_{i}" for i in range(value.ndim - 2))
            own = {} if name in {"x", "row", "z"} | self.program.sites.keys() else {"aligned": 0}
            variables[name] = (("chain", "draw", *dims), self._compact(name, value), own)
        used = {d for dims, *_ in variables.values() for d in dims}
        return xr.Dataset(variables, coords={k: v for k, v in coords.items() if k in used})


def _read(program: Program, name: str) -> Tensor | None:
    """`mask`, `graph` or `targets_matrix` of a program; of a site that its completion covers, that block's."""
    if program.completion is not None and (own := program.completion.probabilities(name)) is not None:
        return own
    value: Tensor | None = getattr(program, name)()
    return value


def _predicted(data: Data, draws: int) -> np.ndarray:
    """Positions of the rows that are predicted in so many draws: with their partners, and of series a stretch without
    gaps, for these are drawn one step after another."""
    stride = max(1, -(-data.rows * data.features * draws // MOST_PREDICTED))
    most = -(-data.rows // stride)
    if data.series is not None:
        return data.spread(min(most, MOST_STEPS))
    return np.arange(0, data.rows, stride) if data.pair is None else data.spread(most)


def _draw(program: Program, batch: Batch, shown: np.ndarray | None, density: bool) -> dict[str, Any]:
    """One posterior draw of one chain: sites, log p - log q (NaN without `density`) and, unless `shown` is None, the
    rows' log-likelihood and a predictive draw of x in the rows `shown`."""
    with program.reading_errors() as apart:
        sites, trace, lp = stories.drawn_and_told(program, batch, density or shown is not None)
    out: dict[str, Any] = {"posterior": stories.values(trace), "lp": torch.as_tensor(lp)}
    if shown is not None:
        if apart:
            sites, trace, _ = stories.drawn_and_told(program, batch)
        rows = torch.as_tensor(shown, device=batch.device)
        kept = stories.outside_rows(sites, trace) if program.new_rows else stories.at_rows(sites, trace, rows)
        new = stories.told(program, batch.take(rows).blank(), kept).nodes["x"]["value"]
        known = program.row_log_likelihood(batch, sites)
        out["posterior_predictive"] = {"x": new}
        out["log_likelihood"] = {"x": stories.log_likelihood(trace, sites) if known is None else known}
    return out


def _fill(arrays: dict[str, np.ndarray], name: str, place: int, places: int, values: np.ndarray) -> None:
    """Put `values` where they stay, so that nothing is held twice: array `name` of as many `places` alike."""
    if place == 0:
        arrays[name] = np.empty((places, *values.shape[1:]), values.dtype)
    arrays[name][place : place + len(values)] = values
