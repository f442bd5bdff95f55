"""What an identifiability theorem leaves free, as groups that act on latents, parameters and graphs.

A claim names the group, e.g. `("permutation", "scale")`; fits, chains and truths may only be compared after
the freedom has been taken out. With z of shape (data, latent):

    group = Group.of(("permutation", "scale"))
    alignment = group.align(z, reference)      # the group's element that brings z nearest to the reference
    alignment.apply(z)                         # z in the order and units of the reference
    alignment.act(loadings, {-1: -1})          # parameters follow, so that loadings @ z stays what it was
    group.distance(z, reference)               # 0 = the same up to the group, 1 = nothing in common

How two latents agree: Lin's concordance 2 cov / (var + var' + (mean - mean')^2) after the group's own freedom
in sign, scale and shift has been used. With scale and shift free this is |Pearson's r|, without them it asks
for equal values; for `elementwise` it is |Spearman's rho|. A latent that never varies agrees with nothing.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm, rankdata

from pyrocrl.arrays import dense, floats
from pyrocrl.errors import one_of, reject

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
How = int | Literal["point", "spread"]

LATENT_GROUPS: dict[str, str] = {
    "exact": "nothing is free",
    "permutation": "the order of the latents",
    "sign": "each latent times 1 or -1",
    "scale": "each latent times a number other than 0; includes sign",
    "shift": "a constant added to each latent",
    "elementwise": "a strictly monotone map of each latent; includes sign, scale and shift",
    "linear": "an invertible linear map of all latents; includes permutation and scale",
    "affine": "linear and shift",
    "block": "an invertible map within each block of latents, judged by its affine part",
    "nested": "a linear map of each latent and of others that all of its views see; includes permutation, scale",
    "kept": "an invertible map of each block of latents and of those that all pairs which keep it keep too, judged by "
    "its affine part",
}
INCLUDES: dict[str, frozenset[str]] = {
    "exact": frozenset(),
    "scale": frozenset({"sign"}),
    "elementwise": frozenset({"sign", "scale", "shift"}),
    "linear": frozenset({"permutation", "sign", "scale"}),
    "affine": frozenset({"linear", "permutation", "sign", "scale", "shift"}),
    "block": frozenset({"shift"}),
    "nested": frozenset({"linear", "permutation", "sign", "scale"}),
    "kept": frozenset({"shift"}),
}
GRAPH_GROUPS: dict[str, str] = {
    "exact": "every edge is identified",
    "transitive closure": "which node is an ancestor of which is identified, direct edges are not",
    "markov equivalence": "skeleton and v-structures are identified (the completed partially directed graph)",
    "interventional equivalence": "so are edges into and out of targets of interventions, and what follows from them",
}


@dataclass(frozen=True)
class Alignment:
    """A group's element: z'[:, k] = scale[k] * z[:, permutation[k]] + shift[k], or z' = z @ matrix + shift.

    `permutation` lists the latents of z in the order of the reference, latents without a partner last;
    `places[k]` is the reference's latent at which k now stands, -1 without a partner; `agreement[k]` in
    [0, 1] is how well the two agree. All have one entry per aligned latent. `matrix` (latent, latent of the
    reference) is there for linear, affine and block only, and takes the place of permutation and scale.
    """

    permutation: NDArray[np.int64]
    scale: Floats
    shift: Floats
    places: NDArray[np.int64]
    agreement: Floats
    matrix: Floats | None = None

    @property
    def signs(self) -> Floats:
        """1 or -1 per aligned latent."""
        return np.sign(self.scale)

    def apply(self, z: ArrayLike) -> NDArray:
        """z of shape (..., latent) in the order and units of the reference."""
        return self.act(z, {-1: "point"})

    def act(self, value: ArrayLike, axes: Mapping[int, How]) -> NDArray:
        """A parameter in the order and units of the reference; any shape, floating dtype kept.

        `axes` says of each latent axis how it changes when z does. 0: only reordered (mask, graph);
        1: scales like z; -1: scales inversely; any other power alike (2 for a variance); "spread": a positive
        width, times |scale|; "point": a value of z itself, shifted as well. So loadings (feature, latent)
        take {1: -1} and edge weights A[parent, child] of z_child = sum_parent A z_parent take {0: -1, 1: 1}.
        When shift is free, a decoder's intercept absorbs it: subtract `act(loadings) @ shift`. A matrix
        knows 1, -1 and "point" only: nothing sparse, positive or ordered keeps its meaning under one.
        """
        result = np.asarray(value)
        dtype = result.dtype if result.dtype.kind == "f" else None
        ndim, latents = result.ndim, len(self.permutation)
        if len({axis % ndim for axis in axes if -ndim <= axis < ndim}) < len(axes):
            reject("axes", tuple(axes), f"different axes of an array of shape {result.shape}")
        for axis, how in axes.items():
            if result.shape[axis] != latents:
                reject(f"axis {axis}", f"length {result.shape[axis]}", f"{latents}, the number of latents")
            result = np.moveaxis(self._act_last(np.moveaxis(result, axis, -1), how), -1, axis)
        return result.astype(dtype, copy=False) if dtype else result

    def _act_last(self, value: NDArray, how: How) -> NDArray:
        if self.matrix is not None:
            if how in (1, "point"):
                return value @ self.matrix + (self.shift if how == "point" else 0.0)
            if how == -1:
                return value @ np.linalg.pinv(self.matrix).T
            reject("axes", repr(how), "1, -1 or 'point' under a linear, affine or block alignment")
        value = value[..., self.permutation]
        if how == "point":
            return value * self.scale + self.shift
        if how == "spread":
            return value * np.abs(self.scale)
        if not isinstance(how, int):
            reject("axes", repr(how), "a whole number, 'point' or 'spread'")
        return value if how == 0 else value * self.scale ** float(how)


@dataclass(frozen=True)
class Group:
    """A group of maps of latents: the names it was made of, and all elementary freedoms they include."""

    names: tuple[str, ...]
    free: frozenset[str]
    blocks: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, names: str | Iterable[str], blocks: Iterable[Iterable[int]] = ()) -> "Group":
        """The group generated by names of `LATENT_GROUPS`; none, or "exact", leaves nothing free.

        `blocks` partitions the latents for "block"; without it all latents are one block. `InputError` for
        an unknown name, for "elementwise" with "linear" or "affine" (together they leave nothing
        identified), and for "block" or "kept" with any other.
        """
        words = tuple(dict.fromkeys((names,) if isinstance(names, str) else names))
        for word in words:
            one_of("indeterminacy", word, LATENT_GROUPS)
        free = frozenset(words).union(*(INCLUDES.get(word, frozenset()) for word in words)) - {"exact"}
        if {"elementwise", "linear"} <= free or (free & {"block", "kept"} and len(words) > 1):
            reject("indeterminacy", " and ".join(words), "names that can be combined")
        parts = tuple(tuple(int(k) for k in block) for block in blocks)
        if parts and "block" not in free:
            reject("blocks", parts, "none unless the group is 'block'")
        return cls(words, free, parts)

    @property
    def mixes(self) -> bool:
        """True where one latent may become a combination of several."""
        return bool(self.free & {"linear", "block", "kept"})

    @property
    def keeps_masks(self) -> bool:
        """True where latents mix, and which features they have stays as it is."""
        return "nested" in self.free

    def align(self, z: ArrayLike, reference: ArrayLike) -> Alignment:
        """The element that brings z (data, latent) nearest to the reference (data, latent of the reference).

        Latents are matched by the assignment with the greatest total agreement, or kept in order where
        permutation is not free; the numbers of latents may differ. Scale and shift match standard deviation
        and mean: a regression slope would shrink a badly matched latent towards 0. For `elementwise` they are
        a display of the monotone map, not the map. `InputError` for shapes or values that cannot be aligned.
        """
        z, reference = _pair(z, reference)
        if self.mixes:
            return self._regress(z, reference)
        agreement, scale, shift = self._compare(z, reference)
        count = min(agreement.shape)
        rows = columns = np.arange(count)
        if "permutation" in self.free:
            # A latent that never varies gives way to one that does, even if that agrees with nothing.
            rows, columns = linear_sum_assignment(agreement - 1e-9 * ~live(z)[:, None], maximize=True)
        order = np.argsort(columns)
        rows, columns = rows[order], columns[order]
        alone = np.setdiff1d(np.arange(z.shape[1]), rows)
        return Alignment(
            permutation=np.concatenate([rows, alone]),
            scale=np.concatenate([scale[rows, columns], np.ones(len(alone))]),
            shift=np.concatenate([shift[rows, columns], np.zeros(len(alone))]),
            places=np.concatenate([columns, np.full(len(alone), -1)]),
            agreement=np.concatenate([agreement[rows, columns], np.zeros(len(alone))]),
        )

    def distance(self, z: ArrayLike, reference: ArrayLike) -> float:
        """1 - mean agreement after alignment: symmetric, in [0, 1], 0 exactly on the orbit of the reference.

        The mean is over as many latents as vary in the one that has more of them, so a lost or a surplus
        latent counts as disagreement. Where latents mix: 1 - mean squared canonical correlation, which is
        the R^2 of linear regression in either direction once both are whitened, and so the same for all
        members of the two orbits.
        """
        z, reference = _pair(z, reference)
        if self.mixes:
            shared = span = 0.0
            for block, goal in self._blocks(z, reference):
                u, v = (_basis(self._centred(a)) for a in (z[:, block], reference[:, goal]))
                shared, span = shared + ((u.T @ v) ** 2).sum(), span + max(u.shape[1], v.shape[1])
            return float(max(0.0, 1.0 - shared / span)) if span else 0.0
        varying = max(live(z).sum(), live(reference).sum())
        return float(max(0.0, 1.0 - self.align(z, reference).agreement.sum() / varying)) if varying else 0.0

    def canonical(self, z: ArrayLike) -> Floats:
        """The same form for every member of z's orbit, on the same rows; shape (data, latent).

        Means 0, standard deviations 1, the first largest deviation of a latent positive, latents in
        descending lexicographic order, each as far as it is free; normal scores of ranks for `elementwise`.
        Where latents mix: an orthonormal basis whose rows of greatest leverage are lower triangular.
        """
        z = as_latents("z", z)
        if self.mixes:
            result = np.zeros_like(z)
            for block, _ in self._blocks(z, z):
                basis = _basis(self._centred(z[:, block]))
                result[:, block[: basis.shape[1]]] = basis
            return result
        alive = live(z)
        mean, peak = z.mean(0), np.abs(z).max(0)
        spread = np.where(alive, z.std(0), np.where(peak > 0, peak, 1.0))
        if "elementwise" in self.free:
            z = normal_scores(z)
            mean, spread = np.zeros_like(mean), np.ones_like(spread)
        deviation = z - mean
        z = deviation if "shift" in self.free else z
        if "scale" in self.free:
            z = z / spread
        if "sign" in self.free:
            row = _first_peak(deviation * alive if "shift" in self.free else z)
            z = np.where(np.take_along_axis(z, row[None], 0) < 0, -z, z)
        if "permutation" in self.free:
            z = z[:, np.lexsort(-np.round(z[::-1], 6))]
        return z

    def _compare(self, z: Floats, reference: Floats) -> tuple[Floats, Floats, Floats]:
        """Agreement, scale and shift of every pair (latent, latent of the reference)."""
        ranked = "elementwise" in self.free
        r = correlation(z, reference, "spearman" if ranked else "pearson")
        varies = live(z)[:, None] & live(reference)
        mean, target_mean = z.mean(0)[:, None], reference.mean(0)
        spread = np.where(live(z), z.std(0), 1.0)[:, None]
        target = np.where(live(reference), reference.std(0), 1.0)
        scale = np.where(r < 0, -1.0, 1.0) if "sign" in self.free else np.ones_like(r)
        agreement = r * scale
        if "scale" in self.free:
            scale = scale * target / spread
        gap = target_mean - scale * mean
        shift, gap = (gap, np.zeros_like(gap)) if "shift" in self.free else (np.zeros_like(gap), gap)
        if not ranked:
            width = np.abs(scale) * spread
            agreement = agreement * 2.0 * width * target / (width**2 + target**2 + gap**2)
        return (
            np.where(varies, np.clip(agreement, 0.0, 1.0), 0.0),
            np.where(varies, scale, 1.0),
            np.where(varies, shift, 0.0),
        )

    def bent(self, z: ArrayLike, reference: ArrayLike) -> Floats:
        """z (data, latent) brought to the reference by a smooth map of each block, where maps of blocks are free: the
        reference's regression on monomials of the block, up to cubes or as many as a tenth of the rows tell."""
        if not self.free & {"block", "kept"}:
            reject("indeterminacy", " and ".join(self.names) or "exact", "'block' or 'kept'")
        z, reference = _pair(z, reference)
        out = np.zeros_like(reference)
        for own, goal in self._bent_by(z, reference):
            part = z[:, own]
            unit = np.where(live(part), part.std(0), 1.0)
            columns = monomials((part - part.mean(0)) / unit, len(z) // 10)
            out[:, goal] = columns @ np.linalg.lstsq(columns, reference[:, goal], rcond=None)[0]
        return out

    def _bent_by(self, z: Floats, reference: Floats) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Latents of z, and those of the reference that are functions of them."""
        return self._blocks(z, reference)

    def _regress(self, z: Floats, reference: Floats) -> Alignment:
        """Least squares from z to the reference, block by block; agreement is R^2 (about 0 without shift)."""
        inputs, outputs = self._centred(z), self._centred(reference)
        units = np.linalg.norm(inputs, axis=0)  # divided out, so that no small unit is cut off as noise
        units = np.where(units > 0, units, 1.0)[:, None]
        matrix = np.zeros((z.shape[1], reference.shape[1]))
        for block, goal in self._blocks(z, reference):
            fit = np.linalg.lstsq(inputs[:, block] / units[block, 0], outputs[:, goal], rcond=None)[0]
            matrix[np.ix_(block, goal)] = fit / units[block]
        total, left = (outputs**2).sum(0), ((outputs - inputs @ matrix) ** 2).sum(0)
        count = reference.shape[1]
        return Alignment(
            permutation=np.arange(z.shape[1]),
            scale=np.ones(count),
            shift=(reference - outputs)[0] - (z - inputs)[0] @ matrix,
            places=np.arange(count),
            agreement=np.clip(1.0 - left / np.where(total > 0, total, 1.0), 0.0, 1.0) * (total > 0),
            matrix=matrix,
        )

    def _centred(self, z: Floats) -> Floats:
        """z less its mean where shift is free; exactly 0 where it does not vary."""
        return np.where(live(z), z - z.mean(0), 0.0) if "shift" in self.free else z

    def _blocks(self, z: Floats, reference: Floats) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs of latents of z and of the reference that map to each other."""
        count, goals = z.shape[1], reference.shape[1]
        if len(z) <= max(count, goals) + 1:
            reject("z", f"{len(z)} rows", f"more than {max(count, goals) + 1}, to tell a linear map")
        if not self.blocks:
            return [(np.arange(count), np.arange(goals))]
        if count != goals or sorted(k for block in self.blocks for k in block) != list(range(count)):
            reject("blocks", f"{self.blocks} for {count} and {goals} latents", "each latent in one block")
        return [(np.array(block), np.array(block)) for block in self.blocks]


def as_latents(argument: str, value: ArrayLike) -> Floats:
    """`value` as a float array (data, latent), finite, with two rows or more; otherwise an `InputError`."""
    array = floats(value, argument)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        reject(argument, f"shape {array.shape}", "shape (data, latent) with two rows and one column or more")
    if not np.isfinite(array).all():
        reject(argument, "NaN or infinity", "finite numbers")
    return array


def normal_scores(z: Floats, axis: int = 0) -> Floats:
    """Normal quantiles of the ranks of z (..., latent) among its rows, on `axis`; 0 of a latent that does not vary."""
    ranks = rankdata(z, axis=axis) / (z.shape[axis] + 1)
    varies = np.ptp(z, axis=axis, keepdims=True) > 1e-10 * np.abs(z).max(axis, keepdims=True)
    return np.where(varies, norm.ppf(ranks), 0.0)


def monomials(z: Floats, most: int, degree: int = 3) -> Floats:
    """(data, term) 1, z, and products of up to `degree` of its columns, of the highest degree with `most` or fewer, or
    else 1 and z alone."""
    columns = [np.ones(len(z)), *z.T]
    for size in range(2, degree + 1):
        more = [z[:, own].prod(1) for own in combinations_with_replacement(range(z.shape[1]), size)]
        if len(columns) + len(more) > most:
            break
        columns += more
    return np.stack(columns, 1)


def live(z: Floats) -> Bools:
    """(latent,): does it vary by more than round-off?"""
    return np.ptp(z, axis=0) > 1e-10 * np.abs(z).max(0)


def correlation(a: ArrayLike, b: ArrayLike, method: str = "pearson") -> Floats:
    """Pearson or Spearman correlations of columns, shape (column of a, column of b); 0 for a constant one."""
    one_of("method", method, ("pearson", "spearman"))
    a, b = _pair(a, b)
    units = []
    for z in (a, b):
        alive = live(z)
        ranks = rankdata(z, axis=0) if method == "spearman" else z
        centred = np.where(alive, ranks - ranks.mean(0), 0.0)
        largest = np.abs(centred).max(0)  # first, so that the squares below neither over- nor underflow
        centred = centred / np.where(alive, largest, 1.0)
        units.append(centred / np.where(alive, np.linalg.norm(centred, axis=0), 1.0))
    return np.clip(units[0].T @ units[1], -1.0, 1.0)


def _pair(z: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    a, b = as_latents("z", z), as_latents("reference", reference)
    if len(a) != len(b):
        reject("z", f"{len(a)} rows", f"{len(b)} rows, as in the reference")
    return a, b


def _first_peak(deviation: Floats) -> NDArray[np.int64]:
    """(latent,): the first row within round-off of the largest |deviation|."""
    size = np.abs(deviation)
    return np.argmax(size >= size.max(0) * (1.0 - 1e-9), axis=0)


def _basis(z: Floats) -> Floats:
    """An orthonormal basis (data, rank) of z's columns that depends on nothing but the space they span."""
    size = np.linalg.norm(z, axis=0)
    u, s, _ = np.linalg.svd(z / np.where(size > 0, size, 1.0), full_matrices=False)
    u = u[:, s > 1e-10 * s.max()]
    # The rows' leverages are the same in every basis, hence the pivots, hence the rotation.
    rotation, triangle, _ = qr(u.T, mode="economic", pivoting=True)
    return u @ (rotation * np.where(np.diag(triangle) < 0, -1.0, 1.0))


# Graphs: boolean arrays graph[parent, child].


def as_graph(argument: str, graph: ArrayLike, loops: bool = False) -> Bools:
    """`graph` as a boolean array (..., node, node), without self-loops unless `loops`; or an `InputError`."""
    array = dense(graph, argument)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        reject(argument, f"shape {array.shape}", "a square array (parent, child)")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        reject(argument, "values other than 0 and 1", "0 and 1")
    if not loops and array.diagonal(axis1=-2, axis2=-1).any():
        reject(argument, "an edge from a node to itself", "a diagonal of 0")
    return array.astype(bool)


def transitive_closure(graph: ArrayLike) -> Bools:
    """Which node reaches which, (..., ancestor, descendant); the diagonal tells the nodes on a cycle."""
    closure = as_graph("graph", graph, loops=True)
    for _ in range(closure.shape[-1].bit_length()):  # each round doubles the length of the paths
        closure = closure | joined(closure, closure)
    return closure


def joined(first: Bools, second: Bools) -> Bools:
    """Which nodes a step of the first relation and then one of the second join (..., node, node): their product as
    numbers, which is much the faster one."""
    return (first.astype(np.float32) @ second.astype(np.float32)) > 0


def is_acyclic(graph: ArrayLike) -> bool:
    """True if no node of a graph (parent, child), or of any in a stack of graphs, reaches itself."""
    return not transitive_closure(graph).diagonal(axis1=-2, axis2=-1).any()


def topological_order(graph: ArrayLike) -> list[int]:
    """Nodes, parents before children, the smallest first where there is a choice; `InputError` on a cycle."""
    left = as_graph("graph", graph, loops=True)
    waiting = left.sum(0)  # parents that are still to come
    ready, order = [int(k) for k in np.flatnonzero(waiting == 0)], []
    heapq.heapify(ready)
    while ready:
        order.append(heapq.heappop(ready))
        for child in np.flatnonzero(left[order[-1]]):
            waiting[child] -= 1
            if not waiting[child]:
                heapq.heappush(ready, int(child))
    if len(order) < len(left):
        reject("graph", "a cycle", "an acyclic graph")
    return order


def cpdag(graph: ArrayLike) -> Bools:
    """The completed partially directed graph of a DAG's Markov equivalence class; undirected = both ways.

    V-structures stay, and Meek's (1995) rules 1-3 direct what they force; rule 4 needs background knowledge.
    """
    dag = as_graph("graph", graph)
    topological_order(dag)  # refuses a cycle
    apart = ~(dag | dag.T | np.eye(len(dag), dtype=bool))
    collider = dag & joined(apart, dag)  # k -> j with another parent of j that is not adjacent to k
    directed, loose = collider, (dag | dag.T) & ~(collider | collider.T)
    while True:
        rule = joined(directed.T, apart)  # 1: k -> i - j with k and j apart
        rule |= joined(directed, directed)  # 2: i -> k -> j
        i, j = np.nonzero(loose & ((loose.astype(np.float32) @ directed.astype(np.float32)) > 1))
        fork = loose[i] & directed[:, j].T  # (edge, k): i - k -> j
        rule[i, j] |= (fork & joined(fork, apart)).any(1)  # 3: i - k -> j and i - l -> j with k and l apart
        new = loose & rule
        if not new.any():
            return directed | loose
        directed, loose = directed | new, loose & ~(new | new.T)


def interventional_cpdag(graph: ArrayLike, targets: ArrayLike) -> Bools:
    """The partially directed graph of a DAG's interventional Markov equivalence class; undirected = both ways.

    targets: (env, node) in {0, 1}, what each environment intervenes on, one of them observational. Two nodes stand for
    each environment, parents of its targets and of nothing else: the CPDAG is then that of the class (Yang, Katcoff &
    Uhler 2018, theorem 3.9; Hauser & Buehlmann 2012 of perfect interventions), the two of them apart from each other
    so that their edges are directed.
    """
    dag = as_graph("graph", graph)
    hit = np.unique(np.asarray(targets, dtype=bool).reshape(-1, len(dag)), axis=0)
    hit = np.repeat(hit[hit.any(1)], 2, axis=0)
    whole = np.zeros((len(dag) + len(hit),) * 2, dtype=bool)
    whole[: len(dag), : len(dag)], whole[len(dag) :, : len(dag)] = dag, hit
    return cpdag(whole)[: len(dag), : len(dag)]


def graph_canonical(graph: ArrayLike, group: str = "exact", targets: ArrayLike = ()) -> Bools:
    """What a graph group identifies of a graph (parent, child): itself, its closure or its CPDAG, which for
    interventional equivalence depends on the targets (env, node)."""
    one_of("graph group", group, GRAPH_GROUPS)
    if group == "transitive closure":
        return transitive_closure(graph)
    if group == "interventional equivalence":
        return interventional_cpdag(graph, targets)
    return cpdag(graph) if group == "markov equivalence" else as_graph("graph", graph)


def differing_pairs(a: Bools, b: Bools) -> int:
    """Pairs of nodes that are not joined alike: missing, surplus and reversed edges count once each."""
    if a.shape != b.shape or a.ndim != 2:
        reject("graph", f"shapes {a.shape} and {b.shape}", "two graphs of the same nodes")
    different = a != b
    return int(np.triu(different | different.T, 1).sum())


def graph_distance(graph: ArrayLike, reference: ArrayLike, group: str = "exact") -> float:
    """Share of node pairs on which the canonical forms differ, in [0, 1]; 0 for a single node."""
    nodes = as_graph("reference", reference).shape[-1]
    different = differing_pairs(graph_canonical(graph, group), graph_canonical(reference, group))
    return different / max(nodes * (nodes - 1) / 2, 1)
