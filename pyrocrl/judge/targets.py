"""Genes that a disease acts through: drugs that turn its signature back, a tree of a network, a causal graph on it.

Three steps, each with what it does not know. `reversing_drugs` sets the disease's signature beside draws of drugs'
signatures from a fit of `causal_imputation`, measured or not. `discover_targets` looks for the module, a connected part
of a network whose genes the disease shifts: a prize-collecting Steiner tree (`pyrocrl.exact.steiner`), on all rows and
on many halves of them. On the genes that are often in it a fit of `observed_dag`, the disease an intervention of
unknown target, gives the probability of every edge, and of every gene that the disease acts on it directly.

These are no model of the zoo with a story of its own. A tree is a point, the best of a sum of prizes, and its law over
all trees of a network is neither summed nor sampled here; a program around it would be a point method with a label.
What is random has its program already: the drugs' profiles and the graph. Between them stand evidence in closed form
and how often a gene comes out, which its calibration on planted trees holds to account (`pyrocrl.lab.targets`).

Tuncbag, McCallum, Huang & Fraenkel (2012), "SteinerNet"; Belyaeva, Cammarata, Radhakrishnan et al. (2021), "Causal
network models of SARS-CoV-2 expression and aging to identify candidates for drug repurposing", whose steps these are;
Meinshausen & Buehlmann (2010), "Stability selection". Prizes here are evidence, and no threshold cuts genes off.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.optimize import minimize
from tqdm import tqdm

from pyrocrl import zoo
from pyrocrl.data import Data
from pyrocrl.errors import one_of, reject, shown
from pyrocrl.exact.steiner import steiner_tree
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fit import fit as fit_program
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.diagnose import diagnose
from pyrocrl.options import Bounds, Deviation, Fraction, Natural, Positive, Seed, Share, Size, checked, conform
from pyrocrl.predict import per_size, rows_of_pairs
from pyrocrl.turns import drawing, reseed

SHARE, SLAB = (-2.2, 1.5), (2.0, 1.5)  # priors: log odds of a shifted gene, log variance of its shift in squared errors
COSTS = 0.375  # half the range of costs that subsamples try, over their mean
ROWS = 4  # of either state, of which half are a subsample
QUICK: dict[str, Any] = {"orders": "sampled", "candidates": 8, "particles": 64}  # graphs of subsamples
EPOCHS = 5  # of theirs
BLOCK = 20  # draws of profiles at a time
RELIABLE = 0.05  # least share of a signature's variance that is no error
COMMON = 3  # genes that a correlation needs
GRAPH = "observed_dag"
TREE = (
    "tree: NOT IDENTIFIED: genes are in it by association and by the network; a frequency is how often, in other rows"
)
Array = np.ndarray


# -- the disease's signature -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiseaseSignature:
    """What a disease does to genes: effect and its standard error (gene,); and, where it is of rows, these: x (row,
    gene) and whether a row is ill."""

    genes: list[str]
    effect: Array
    error: Array
    x: Array | None = None
    ill: Array | None = None

    @classmethod
    def of(cls, disease: Any, state: str | None = None, errors: bool = True) -> DiseaseSignature:
        """See `discover_targets`; errors: whether each effect needs its standard error."""
        if isinstance(disease, Data):
            return cls._of_rows(disease, state)
        if state is not None:
            reject("state", f"{state!r} beside a signature", "None: it names an environment of data")
        if not isinstance(disease, Mapping) or not disease:
            reject("disease", shown(disease), "a pyrocrl.Data, or a mapping gene -> (effect, standard error)")
        told = np.zeros((len(disease), 2))
        for row, (gene, value) in zip(told, disease.items(), strict=True):
            where = f"disease[{gene!r}]"
            if np.ndim(value) == 0 and not errors:
                value = (value, 0.0)
            if np.shape(value) != (2,):
                reject(where, shown(value), "(effect, standard error)")
            row[:] = conform(where, value[0], float), conform(where, value[1], Deviation if not errors else Positive)
        return cls([str(gene) for gene in disease], told[:, 0], told[:, 1])

    @classmethod
    def _of_rows(cls, data: Data, state: str | None) -> DiseaseSignature:
        if data.counts:
            reject("disease", "counts", "continuous numbers, such as log1p of counts per size")
        if data.control is None:
            reject("disease", "no control", "data whose healthy environment is the control (control=)")
        others = [name for name in data.env_names if name != data.control]
        if not others:
            reject("disease", f"no rows but of {data.control!r}", "rows of two environments, ill and healthy")
        if state is None and len(others) != 1:
            reject("state", f"None for {len(others)} environments beside the control", f"one of {', '.join(others)}")
        state = others[0] if state is None else one_of("state", state, others)
        labels = data.env_labels()
        rows = data.control_rows | (labels == state)
        x, ill = per_size(data)[rows], labels[rows] == state
        for name, count in {str(data.control): int((~ill).sum()), state: int(ill.sum())}.items():
            if count < ROWS:
                reject("disease", f"{count} row(s) of {name!r}", f"{ROWS} or more, of which halves are taken")
        effect = x[ill].mean(0) - x[~ill].mean(0)
        error = np.sqrt(x[ill].var(0, ddof=1) / ill.sum() + x[~ill].var(0, ddof=1) / (~ill).sum())
        if not error.all():
            reject("disease", f"{data.feature_names[int(error.argmin())]!r}, which is constant", "genes that vary")
        return cls(data.feature_names, effect, error, x, ill)

    def half(self, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Effects (gene,) in half of the rows of either state, and whether each row is among them; without rows,
        effects moved as much as halves would."""
        if self.x is None or self.ill is None:
            return self.effect + self.error * rng.standard_normal(len(self.effect)), None
        inside = np.zeros(len(self.x), dtype=bool)
        for state in (True, False):
            own = np.flatnonzero(self.ill == state)
            inside[rng.permutation(own)[: (len(own) + 1) // 2]] = True
        return self.x[inside & self.ill].mean(0) - self.x[inside & ~self.ill].mean(0), inside


@dataclass(frozen=True)
class ShiftedGenes:
    """Two kinds of genes: effects over their errors are N(0, 1 + slab) of a share of them, N(0, 1) of the others; share
    and slab at the mode of their posterior (empirical Bayes)."""

    share: float
    slab: float

    @classmethod
    def of(cls, t: Array) -> ShiftedGenes:
        def loss(at: Array) -> float:
            known = cls(float(1 / (1 + np.exp(-at[0]))), float(np.exp(np.clip(at[1], -20, 20))))
            likely = np.logaddexp(np.log1p(-known.share), np.log(known.share) + known.log_ratio(t))
            return float(-likely.sum() + sum(((a - m) / s) ** 2 / 2 for a, (m, s) in zip(at, (SHARE, SLAB))))

        at = minimize(loss, [SHARE[0], SLAB[0]], bounds=[(-8, 8), (-8, 16)]).x
        return cls(float(1 / (1 + np.exp(-at[0]))), float(np.exp(at[1])))

    def log_ratio(self, t: Array) -> Array:
        """Log evidence that a gene is shifted, over that it is not."""
        return t**2 / 2 * self.slab / (1 + self.slab) - np.log1p(self.slab) / 2

    def probability(self, t: Array) -> Array:
        """(gene,) that it is shifted."""
        return 1 / (1 + np.exp(-np.clip(np.log(self.share / (1 - self.share)) + self.log_ratio(t), -700, 700)))

    def draw(self, signature: DiseaseSignature, rng: np.random.Generator) -> Array:
        """True effects (gene,) given the measured ones; those without an error as they are."""
        exact = signature.error == 0
        t = signature.effect / np.where(exact, 1.0, signature.error)
        keep = self.slab / (1 + self.slab)
        moved = rng.random(len(t)) < self.probability(t)
        drawn = moved * (keep * t + np.sqrt(keep) * rng.standard_normal(len(t))) * signature.error
        return np.where(exact, signature.effect, drawn)

    def floor(self, carried: float) -> float:
        """What a gene costs a module that has it although nothing shifts it: genes of the module are shifted with
        probability `carried`, others with `share`."""
        return max(float(np.log((1 - self.share) / (1 - carried))), 0.0)

    def prize(self, t: Array, carried: float) -> Array:
        """(gene,) log evidence that it is in the module, over that it is not, plus `floor`: never below 0."""
        ratio = self.log_ratio(t)

        def of(share: float) -> Array:
            return np.logaddexp(np.log1p(-share), np.log(share) + ratio)

        return np.maximum(of(carried) - of(self.share) + self.floor(carried), 0.0)


# -- drugs -----------------------------------------------------------------------------------------------------------


@checked
def reversing_drugs(
    fit: Fit,
    disease: Any,
    data: Data | None = None,
    *,
    state: str | None = None,
    drugs: Sequence[str] | None = None,
    contexts: Sequence[str] | None = None,
    threshold: Fraction = 0.3,
    level: Share = 0.9,
    draws: Annotated[int, Bounds(2)] = 200,
    partial: bool = False,
    seed: Seed = 0,
) -> xr.Dataset:
    """Drugs whose signature runs against the disease's, the likeliest first, with what is not known of either.

    fit: of `causal_imputation`, whose perturbations are drugs; its profiles are drawn jointly for all pairs of context
    and drug, measured or not. disease: `Data` of ill and healthy rows, or gene -> effect, or gene -> (effect, standard
    error). Correlations are those of true effects: drawn within their errors, over the deviation that is left when
    errors are taken off. data: the rows of a fit that was read from a file. state: the environment that is ill; None =
    the only one beside the control. drugs, contexts: names, None = all; correlations are averaged over contexts.
    threshold: a correlation below its negative reverses. draws: in all. partial: whether genes of one side may be
    missing on the other.

    Returns over (drug,) `correlation`, `low`, `high`: over genes of drug and disease, mean and interval of `level`;
    `reverses`: probability that it is below -threshold; `best`: that it is the lowest of these drugs; `measured`: rows
    in these contexts; and `turned` (drug, gene): probability that the drug moves a gene against the disease, given that
    the disease shifts it.

    Nothing is identified: an effect never measured is predicted from drugs and contexts alike, and a correlation of
    signatures is no effect on the disease. A disease is taken to be unlike any drug a priori, so that correlations of
    drugs never measured are drawn towards 0.

    Raises InputError for fits of models that impute nothing, names that are not known, drugs without a row in any
    context, effects that are not finite, and genes that the two sides do not share.
    """
    if not fit.program.imputes:
        reject("fit", f"a fit of {fit.program.card.name}", "a model that imputes, such as causal_imputation")
    signature, data = DiseaseSignature.of(disease, state, errors=False), fit._data(data)
    known, first = (fit.names["batch"], fit.names["env"]), int(fit.meta["control"] is not None)
    count, picked = rows_of_pairs(data), []
    for argument, names, allowed in (("contexts", contexts, known[0]), ("drugs", drugs, known[1][first:])):
        for name in names or ():
            one_of(argument, name, allowed)
        picked.append(list(dict.fromkeys(names or allowed)))
    c, d = (np.array([own.index(name) for name in names]) for own, names in zip(known, picked, strict=True))
    if (nowhere := np.flatnonzero(count[:, d].sum(0) == 0)).size:
        reject("drugs", f"no row of {picked[1][nowhere[0]]!r} in any context", "drugs measured in one or more")
    genes = shared_genes(fit.names["feature"], signature.genes, partial)
    own, theirs = ([names.index(g) for g in genes] for names in (fit.names["feature"], signature.genes))
    ill = DiseaseSignature(genes, signature.effect[theirs], signature.error[theirs])
    told = ill.error > 0
    shifts = ShiftedGenes.of(ill.effect[told] / ill.error[told])
    rng, share = np.random.default_rng([seed, 131]), fit.weights
    each = np.bincount(rng.choice(len(share), draws, p=share), minlength=len(share))
    measured = ill.effect.var()
    length = float(np.sqrt(max(measured - np.square(ill.error).mean(), RELIABLE * measured)))  # of true effects
    batch, found, moved, hit = fit.batch_of(data), [], np.zeros((len(d), len(genes))), np.zeros(len(genes))
    drawn_at = np.concatenate([np.zeros(first, dtype=int), d])  # the control, and the drugs
    places = torch.as_tensor((c[:, None] * count.shape[1] + drawn_at).ravel(), device=batch.device)
    with drawing(), torch.no_grad():
        for chain, program in enumerate(fit.programs()):
            reseed(mix(seed, chain, 131))
            for start in range(0, each[chain], BLOCK):
                size = min(BLOCK, each[chain] - start)
                profile = program.draw_profiles(batch, places, int(size)).cpu().numpy()[:, own]
                for one in profile.reshape(size, len(genes), len(c), len(drawn_at)):
                    drug, true = one[..., first:] - first * one[..., :1], shifts.draw(ill, rng)  # (gene, context, drug)
                    seen = ill.effect + ill.error * rng.standard_normal(len(genes))
                    found.append(_correlations(drug, seen, length).mean(0))
                    moved += (np.sign(drug.mean(1)) == -np.sign(true)[:, None]).T * (true != 0)
                    hit += true != 0
    drawn = np.stack(found)  # (draw, drug)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    best = np.bincount(drawn.argmin(1), minlength=len(d)) / draws
    values = {"correlation": drawn.mean(0), "low": low, "high": high, "reverses": (drawn < -threshold).mean(0)}
    values |= {"best": best, "measured": count[np.ix_(c, d)].sum(0)}
    variables: dict[str, Any] = {name: (("drug",), value) for name, value in values.items()}
    variables["turned"] = (("drug", "gene"), np.where(hit > 0, moved / np.maximum(hit, 1), np.nan))
    attrs = {"level": float(level), "threshold": float(threshold), "draws": draws, "fit": fit.digest}
    out = xr.Dataset(variables, coords={"drug": picked[1], "gene": genes}, attrs=attrs)
    return out.isel(drug=np.lexsort((values["correlation"], -values["reverses"])))


def _correlations(drug: Array, disease: Array, length: float) -> Array:
    """(context, drug) correlations over genes of signatures (gene, context, drug) with one (gene,), `length` its
    deviation."""
    covariance = np.einsum("gcd,g->cd", drug - drug.mean(0), disease - disease.mean()) / len(disease)
    return np.clip(covariance / np.maximum(drug.std(0) * length, 1e-300), -1.0, 1.0)


def shared_genes(drugs: Sequence[str], disease: Sequence[str], partial: bool) -> list[str]:
    """Genes of both, as the drugs' columns have them. Raises InputError for fewer than three, and for genes of one side
    alone unless `partial`."""
    for side, names, others in (("disease", drugs, disease), ("drugs", disease, drugs)):
        lacks = sorted(set(names) - set(others))
        if lacks and not partial:
            found = f"{len(lacks)} gene(s) missing, such as {lacks[0]!r}"
            reject(side, found, "the genes of the other side, or partial=True (in the shell --partial)")
    both = set(disease)
    genes = [name for name in drugs if name in both]
    if len(genes) < COMMON:
        reject("disease", f"{len(genes)} gene(s) of the drugs' columns", f"{COMMON} or more")
    return genes


# -- the module ------------------------------------------------------------------------------------------------------


@checked
def discover_targets(
    disease: Any,
    network: Any,
    *,
    state: str | None = None,
    prizes: Mapping[str, Any] | None = None,
    cost: Positive = 0.8,
    hubs: Deviation = 0.5,
    carried: Share = 0.7,
    subsamples: Size = 100,
    least: Fraction = 0.2,
    graphs: Natural = 20,
    partial: bool = False,
    seed: Seed = 0,
    device: str = "auto",
    progress: bool = False,
) -> xr.Dataset:
    """The module of a network that a disease shifts, how often each gene is in it, and a causal graph on its genes.

    disease: `Data` of ill and healthy rows, the latter the control; or gene -> (effect, standard error), without a
    graph. network: edges of genes, (gene, gene) or (gene, gene, cost), such as a table or a networkx graph's `edges`;
    they have no direction, cycles are allowed. state: the environment that is ill; None = the only one beside the
    control.

    The module minimises, in nats, the sum of the costs of its edges and of the prizes outside. A prize is the log
    evidence that a gene is in the module, over that it is not: `carried`, the share of its genes that the disease
    shifts in the rows, against the share of all genes, which is estimated. prizes: gene -> what is added to it, what is
    known besides. A gene's edge costs the evidence that a gene gives which is not shifted, and besides `cost` times
    that of the file, or without one `cost` and `hubs` times the log of the geometric mean of its ends' degrees over
    that of all genes: a neighbour of many is less telling. subsamples: each of half of the rows of either state, under
    a cost of its own, .625 to 1.375 times as large.

    least: the frequency from which a gene is part of the graph. graphs: subsamples of it, 0 = no graph. partial:
    whether genes of the network may have no column, which give no evidence but may join others and are not in the
    graph, and columns no gene.

    Returns over (gene,) of the network `effect`, `error`, `shifted`: probability that the disease shifts it, `prize`,
    `tree`: whether it is in the tree of all rows, `frequency`: share of subsamples in whose tree it is; over (link,),
    the network's edges `one` - `other`, `link_frequency`; and with a graph, over the module's genes, `edge` (parent,
    child): probability, and `edge_frequency`: share of subsamples that give it one half or more; `acts` (child,):
    probability that the disease acts on the gene itself, not only through the others. The attribute `verdict`: a line
    of what is identified for the tree, and by `diagnose` for the graph and for where the disease acts.

    What is identified: of the tree nothing. A frequency is how often it comes out in other rows, which on planted trees
    agrees with how often it is right (`docs/what_a_disease_acts_through.md`), where genes that the disease shifts are
    connected in the network that is given; which of several ways round is theirs the data do not tell. The graph up to
    interventional Markov equivalence, if nothing outside the module acts on two of its genes, equations are linear and
    Gaussian, and the disease shifts means: a disease that changes other things as well, or another mixture of cells,
    breaks this.

    Warns where no gene's evidence pays for an edge: connections tell little of a disease that shifts most genes. Raises
    InputError for a network without edges, with an edge of a gene to itself or twice at different costs, costs
    and prizes below 0 or not finite, genes without a column or columns without a gene unless `partial`, data without a
    control or with fewer than four rows of either state, constant genes, counts, and effects that are not finite.
    """
    signature = DiseaseSignature.of(disease, state)
    net = GeneNetwork.of(network, signature.genes, cost, hubs, partial)
    place = np.array([signature.genes.index(g) if g in set(signature.genes) else -1 for g in net.genes])
    there = place >= 0
    more = _prizes(prizes, net.genes)
    every = signature.effect / signature.error
    shifts, rng = ShiftedGenes.of(every), np.random.default_rng([seed, 137])
    floor = shifts.floor(carried)

    def tree(t: Array, scale: float) -> tuple[Array, Array, Array]:
        prize = np.full(len(net.genes), floor)
        prize[there] = shifts.prize(t[place[there]], carried)
        prize = prize + more
        return prize, *steiner_tree(net.ends, scale * net.cost + floor, prize)

    prize, chosen, _ = tree(every, 1.0)
    if (most := float(prize.max() - floor)) < np.median(net.cost):
        warnings.warn(
            f"no gene's evidence, {most:.2f} nats at most, pays for an edge, mostly {np.median(net.cost):.2f}: the "
            f"disease shifts about {shifts.share:.0%} of all genes; a lower cost or a higher `carried` finds more",
            stacklevel=2,
        )
    often, links = np.zeros(len(net.genes)), np.zeros(len(net.ends))
    for _ in tqdm(range(subsamples), "subsamples", disable=not progress):
        effect, _ = signature.half(rng)
        _, nodes, edges = tree(effect / signature.error, rng.uniform(1 - COSTS, 1 + COSTS))
        often += nodes / subsamples
        links[edges] += 1 / subsamples
    shown_t = {"effect": signature.effect, "error": signature.error, "shifted": shifts.probability(every)}
    variables: dict[str, Any] = {
        name: (("gene",), np.where(there, value[place], np.nan)) for name, value in shown_t.items()
    }
    variables |= {name: (("gene",), v) for name, v in {"prize": prize, "tree": chosen.astype(int)}.items()}
    verdict = [TREE]
    variables |= {"frequency": (("gene",), often.clip(0, 1)), "link_frequency": (("link",), links.clip(0, 1))}
    one, other = (np.array(net.genes)[net.ends[:, k]] for k in (0, 1))
    coords: dict[str, Any] = {"gene": net.genes, "one": (("link",), one), "other": (("link",), other)}
    module = [g for g, f, own in zip(net.genes, often, there, strict=True) if own and f >= least]
    if graphs and signature.x is not None and len(module) > 1:
        values, said = _graph(signature, module, graphs, seed, device, progress)
        variables, verdict = variables | values, verdict + said
        coords |= {"parent": module, "child": module}
    attrs = {
        "verdict": "\n".join(verdict),
        "subsamples": subsamples,
        "least": float(least),
        "share": shifts.share,
        "slab": shifts.slab,
    }
    return xr.Dataset(variables, coords=coords, attrs=attrs | {"cost": float(cost), "carried": float(carried)})


@dataclass(frozen=True)
class GeneNetwork:
    """Genes that are joined: ends (edge, 2), places in `genes`, and what each edge costs (edge,)."""

    genes: list[str]
    ends: Array
    cost: Array

    @classmethod
    def of(cls, network: Any, columns: Sequence[str], cost: float, hubs: float, partial: bool) -> GeneNetwork:
        given: dict[tuple[str, str], float | None] = {}
        for edge in _edges(network):
            if len(edge) not in (2, 3):
                reject("network", shown(tuple(edge)), "edges (gene, gene) or (gene, gene, cost)")
            a, b = sorted(str(gene) for gene in edge[:2])
            own = conform(f"network[{a!r}, {b!r}]", edge[2], Deviation) if len(edge) == 3 else None
            if a == b:
                reject("network", f"a cycle of one edge, from {a!r} to itself", "edges of two genes")
            if given.setdefault((a, b), own) != own:
                reject("network", f"{a!r} - {b!r} twice at different costs", "each edge once")
        if not given:
            reject("network", "no edges", "one or more")
        genes = sorted({gene for pair in given for gene in pair})
        unknown, alone = sorted(set(genes) - set(columns)), sorted(set(columns) - set(genes))
        if len(unknown) == len(genes):
            reject("network", f"no gene of the data's columns, but such as {genes[0]!r}", f"such as {columns[0]!r}")
        for names, what in ((unknown, "without a column of the data"), (alone, "with a column but not in the network")):
            if names and not partial:
                found = f"{len(names)} gene(s) {what}, such as {names[0]!r}"
                reject("network", found, "the columns' genes, or partial=True (in the shell --partial)")
        if len({value is None for value in given.values()}) > 1:
            reject("network", "a cost of some edges only", "one of each edge, or of none")
        at = {gene: k for k, gene in enumerate(genes)}
        ends = np.array([[at[gene] for gene in pair] for pair in given])
        if None not in given.values():
            return cls(genes, ends, cost * np.array([float(v or 0.0) for v in given.values()]))
        degree = np.log(np.bincount(ends.ravel()))
        return cls(genes, ends, np.maximum(cost + hubs * (degree[ends].mean(1) - degree.mean()), 0.0))


def _edges(network: Any) -> Iterator[Any]:
    if isinstance(network, pd.DataFrame):
        yield from network.itertuples(index=False, name=None)
        return
    try:
        rows = iter(network)
    except TypeError:
        reject("network", shown(network), "a table or a list of edges (gene, gene) or (gene, gene, cost)")
    for edge in rows:
        if isinstance(edge, str) or not isinstance(edge, Sequence | np.ndarray):
            reject("network", shown(edge), "edges (gene, gene) or (gene, gene, cost)")
        yield edge


def _prizes(prizes: Mapping[str, Any] | None, genes: list[str]) -> Array:
    """(gene,) what is known besides."""
    out = np.zeros(len(genes))
    for gene, value in (prizes or {}).items():
        one_of("prizes", gene, genes)
        out[genes.index(gene)] = conform(f"prizes[{gene!r}]", value, Deviation)
    return out


# -- the graph -------------------------------------------------------------------------------------------------------


def _graph(
    signature: DiseaseSignature, module: list[str], graphs: int, seed: int, device: str, progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """`edge`, `edge_frequency` and `acts` of the module's genes; and the verdicts on graph and targets, in words."""
    assert signature.x is not None and signature.ill is not None
    columns = [signature.genes.index(gene) for gene in module]
    x, state = signature.x[:, columns], np.where(signature.ill, "ill", "healthy")

    def fitted(rows: Array, seed: int, **effort: Any) -> tuple[Fit, Array]:
        data = Data(x[rows], state[rows], control="healthy", counts=False, feature_names=module)
        build = effort.pop("build", {})
        program = zoo.build(GRAPH, data, targets="unknown", intervention="shift", **build)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of columns: told once, of all rows
            found = fit_program(program, data, seed=seed, device=device, progress=False, **effort)
        graph = found.graph()
        assert graph is not None
        return found, graph

    found, edge = fitted(np.full(len(x), True), seed)
    targets = found.targets()
    assert targets is not None
    acts = targets[found.names["env"].index("ill")]
    said = [re.sub(r"latent_(\d+)", lambda k: module[int(k[1])], str(one)) for one in diagnose(found, seed=seed).claims]
    rng, often = np.random.default_rng([seed, 139]), np.zeros_like(edge)
    for turn in tqdm(range(graphs), "graphs", disable=not progress):
        rows = signature.half(rng)[1]
        assert rows is not None
        often += (fitted(rows, mix(seed, turn, 139), chains=1, epochs=EPOCHS, build=QUICK)[1] >= 0.5) / graphs
    dims = ("parent", "child")
    return {"edge": (dims, edge), "edge_frequency": (dims, often.clip(0, 1)), "acts": (("child",), acts)}, said


# -- tables ----------------------------------------------------------------------------------------------------------


def genes_frame(found: xr.Dataset) -> pd.DataFrame:
    """What `discover_targets` gave of each gene of the network, the most frequent first; `acts` where it is in the
    graph."""
    names = ["frequency", "tree", "shifted", "effect", "error", "prize"]
    table = found[names].to_dataframe()[names]
    if "acts" in found:
        table.insert(2, "acts", found["acts"].to_series().reindex(table.index))
    return table.sort_values(["frequency", "shifted"], ascending=False, kind="stable").rename_axis("gene").reset_index()


def edges_frame(found: xr.Dataset) -> pd.DataFrame:
    """The graph's edges, the surest first, of probability or frequency .01 or more; empty without a graph."""
    if "edge" not in found:
        return pd.DataFrame(columns=["parent", "child", "probability", "frequency"])
    table = found[["edge", "edge_frequency"]].to_dataframe().reset_index()
    table = table.rename(columns={"edge": "probability", "edge_frequency": "frequency"})
    table = table[["parent", "child", "probability", "frequency"]]
    table = table[(table["probability"] >= 0.01) | (table["frequency"] >= 0.01)]
    return table.sort_values("probability", ascending=False, kind="stable").reset_index(drop=True)


def links_frame(found: xr.Dataset) -> pd.DataFrame:
    """The network's edges that were in some subsample's tree, the most frequent first."""
    columns = {"gene": found["one"], "other": found["other"], "frequency": found["link_frequency"]}
    table = pd.DataFrame({name: value.to_numpy() for name, value in columns.items()})
    table = table[table["frequency"] > 0]
    return table.sort_values("frequency", ascending=False, kind="stable").reset_index(drop=True)


def drugs_frame(drugs: xr.Dataset, found: xr.Dataset | None = None) -> pd.DataFrame:
    """What `reversing_drugs` gave as a table; beside a module `turned`: the share of its genes, by their frequency,
    that the drug is expected to move against the disease."""
    table = drugs.drop_vars("turned").drop_dims("gene").to_dataframe().reset_index()
    if found is not None:
        weight = found["frequency"].to_series().reindex(drugs["gene"].to_numpy()).fillna(0.0).to_numpy()
        turned = drugs["turned"].fillna(0.5).to_numpy()
        table["turned"] = turned @ weight / weight.sum() if weight.sum() > 0 else np.nan
    return table
