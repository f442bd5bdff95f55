"""The story of a program as a plate diagram: its sites, what depends on what, and what is repeated.

`relations` reads them off one run of the story; `figure` draws them in layers, from causes at the top to rows at the
bottom, with every plate as a box. Nothing but matplotlib is needed; `pyro.render_model(program.story, ...)` draws the
same through Graphviz where that is installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import networkx as nx
import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from pyro.infer.inspect import get_model_relations
from pyro.poutine.messenger import Messenger
from sklearn.isotonic import isotonic_regression

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.program import Program
from pyrocrl.show.plots.style import GREY, INK, STYLE
from pyrocrl.turns import drawing, turn

ROWS = 32  # of the data, through which the story is run to see its relations
NAME, LAW = 8.5, 6.5  # points
HEIGHT, GAP, ROW_GAP, PAD, CORNER = 0.42, 0.2, 0.36, 0.14, 0.2  # inches
WIDEST = 8.0  # inches of sites side by side, beyond which a layer is split
SWEEPS = 12
STRAIGHT = (1.0, 2.0, 8.0)  # pull of an edge from item to item, of one to a lane, of one from lane to lane
OBSERVED, PLATE = "#d3d9df", "#2b6ca30d"


class _Plates(Messenger):
    """Full size of every plate that a site stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            self.sizes[frame.name] = int(frame.full_size or frame.size)


def relations(program: Program, batch: Batch) -> dict[str, Any]:
    """What `pyro.infer.inspect.get_model_relations` says of `program.story` simulating `batch`, and the plates' sizes.

    Latents that the rows determine depend on nothing in a run that is told the rows: it simulates, and x is observed.

    sample_sample: site -> the sites that it depends on; sample_dist: site -> the name of its law, "Deterministic" for
    deterministic ones; plate_sample: plate -> its sites; observed: sites with data; plate_size: plate -> size. Plates'
    own subsample sites are left out, and so are factors, which stand for no quantity.
    """
    plates = _Plates()

    def story(batch: Batch) -> None:
        with plates:
            program.story(batch)

    with drawing():
        found = get_model_relations(story, (batch.blank(),), include_deterministic=True)
    found["observed"] = [*found["observed"], *(name for name in found["sample_dist"] if name == "x")]
    sites = [name for name, law in found["sample_dist"].items() if law not in ("Unit", "_Subsample")]

    def kept(names: Iterable[str]) -> list[str]:
        return [name for name in names if name in sites]

    return {
        "sample_sample": {name: kept(found["sample_sample"][name]) for name in sites},
        "sample_dist": {name: found["sample_dist"][name] for name in sites},
        "plate_sample": {p: kept(names) for p, names in found["plate_sample"].items() if kept(names)},
        "observed": [name for name in kept(found["observed"]) if found["sample_dist"][name] != "Deterministic"],
        "plate_size": plates.sizes,
    }


def figure(program: Program, data: Data) -> Figure:
    """The plate diagram of the story of `program` about `data`.

    Ellipses are random quantities with the name of their law below, grey ones observed; dashed boxes follow from what
    points at them. Rounded boxes are plates: what stands inside is repeated as often as the number in the corner says.
    Raises InputError for data that the program does not take.
    """
    return draw(relations(program, _batch(program, data)))


def summed_out(program: Program, data: Data) -> list[str]:
    """Random quantities of the story that `program.model` does not draw, as they are summed or integrated out."""
    batch = _batch(program, data)
    with drawing(), torch.no_grad():
        kept = pyro.poutine.trace(program.model).get_trace(batch).nodes
    found = relations(program, batch)
    told = found["observed"] + [name for name, law in found["sample_dist"].items() if law == "Deterministic"]
    return [name for name in found["sample_sample"] if name not in kept and name not in told]


def _batch(program: Program, data: Data) -> Batch:
    """A few rows of `data` that stand for all of them, on the device of `program`."""
    program.check(data)
    own = next((v for v in [*program.parameters(), *program.buffers()] if v.is_floating_point()), torch.zeros(()))
    some = data.rows_at(np.unique(np.linspace(0, data.rows - 1, min(data.rows, ROWS)).astype(int)))
    moments = None if program.uses_rows else data.moments.to(own.device)
    return dataclasses.replace(some.tensors(own.device, own.dtype), total=data.rows, moments=moments).annealed()


def draw(found: Mapping[str, Any]) -> Figure:
    """The plate diagram of `relations`."""
    with turn(), mpl.rc_context(STYLE):
        return _drawn(found)


# -- layout ----------------------------------------------------------------------------------------------------
# A plate is laid out inside and then takes part in the layout around it as one wide item. An edge that passes a layer
# gets a place of its own there, its lane, which all edges of the same parent share.


class _Item:
    """A site, a lane or a plate with what stands in it; x its centre and y its top, in inches from the parent's."""

    def __init__(self, name: str, width: float, height: float) -> None:
        self.name, self.width, self.height = name, width, height
        self.x = self.y = 0.0

    def at(self, site: str, lower: bool) -> float:
        """Where edges of `site` meet this item, as an offset from its centre."""
        return 0.0


class _Box(_Item):
    """A plate (or the whole picture) with its sites and plates in layers."""

    def __init__(
        self, name: str, label: str, items: Sequence[_Item], edges: Sequence[tuple[str, str]], rank: list[str]
    ):
        super().__init__(name, 0.0, 0.0)
        self.label, self.items, self.rank = label, list(items), rank
        self.owner = {site: item for item in items for site in _sites(item)}
        self.edges = [(a, b) for a, b in edges if a in self.owner or b in self.owner]
        self._layers()
        self._lanes()
        self._order()
        self._place()

    def at(self, site: str, lower: bool) -> float:
        if lower:
            meets = [c[-1] for (a, _), c in self.chains.items() if a == site and a in self.owner]
        else:
            meets = [c[0] for (a, b), c in self.chains.items() if a == site and a not in self.owner]
        return float(np.mean([m.x + m.at(site, lower) for m in meets])) if meets else 0.0

    def crowded(self) -> bool:
        """Whether more edges leave through the lower right corner, where the label stands, than through the left."""
        leaving = np.array([c[-1].x for (a, b), c in self.chains.items() if b not in self.owner])
        inside = self.width / 2 - _width(self.label, LAW + 0.5) - 0.2
        return bool((leaving > inside).sum() > (leaving < -inside).sum())

    def _layers(self) -> None:
        """The row of every item: below all that it depends on, and what depends on nothing as low as may be."""
        first = {item: min(self.rank.index(s) for s in _sites(item)) for item in self.items}
        above = nx.DiGraph()
        above.add_nodes_from(sorted(self.items, key=first.__getitem__))
        inner = [(self.owner[a], self.owner[b]) for a, b in self.edges if a in self.owner and b in self.owner]
        above.add_edges_from((u, v) for u, v in inner if u is not v)
        if not nx.is_directed_acyclic_graph(above):  # two plates that depend on each other: as the story tells them
            above.remove_edges_from([(u, v) for u, v in list(above.edges) if first[u] > first[v]])
        depth: dict[_Item, int] = {}
        for r, layer in enumerate(nx.topological_generations(above)):
            depth |= dict.fromkeys(layer, r)
        for item in self.items:
            if not above.in_degree(item) and above.out_degree(item):
                depth[item] = min(depth[v] for v in above.successors(item)) - 1
        self.layers: list[list[_Item]] = []
        for r in sorted(set(depth.values())):
            wide = np.inf
            for item in sorted((i for i in self.items if depth[i] == r), key=first.__getitem__):
                if wide + item.width > WIDEST:
                    self.layers.append([])
                    wide = 0.0
                self.layers[-1].append(item)
                wide += item.width + GAP
        self.row = {item: r for r, layer in enumerate(self.layers) for item in layer}

    def _lanes(self) -> None:
        """For each edge its chain of items and lanes through this box, from top to bottom."""
        lanes: dict[tuple[int, str], _Item] = {}
        self.chains: dict[tuple[str, str], list[_Item]] = {}
        for a, b in self.edges:
            u, v = self.owner.get(a), self.owner.get(b)
            start = 0 if u is None else self.row[u] + 1
            end = len(self.layers) if v is None else self.row[v]
            if u is v or start > end:  # inside an item; or upwards, between plates that depend on each other
                continue
            for r in range(start, end):
                if (r, a) not in lanes:
                    lanes[r, a] = _Item(a, 0.0, 0.0)
            between = [lanes[r, a] for r in range(start, end)]
            self.chains[a, b] = [*([u] if u else []), *between, *([v] if v else [])]
        for (r, _), lane in lanes.items():
            self.layers[r].append(lane)
        self.lanes = set(lanes.values())

    def _order(self) -> None:
        """Items of a row by the mean place of their neighbours (barycentres), as long as fewer edges cross."""
        links = dict.fromkeys(link for chain in self.chains.values() for link in pairwise(chain))
        up: dict[_Item, list[_Item]] = {}
        down: dict[_Item, list[_Item]] = {}
        for u, v in links:
            up.setdefault(v, []).append(u)
            down.setdefault(u, []).append(v)

        def places() -> dict[_Item, float]:
            return {item: at - (len(layer) - 1) / 2 for layer in self.layers for at, item in enumerate(layer)}

        def crossings() -> int:
            at, count = places(), 0
            for layer in self.layers:
                here = [(at[u], at[v]) for u in layer for v in down.get(u, [])]
                count += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(here) for c, d in here[:i])
            return count

        best, fewest = [list(layer) for layer in self.layers], crossings()
        for sweep in range(SWEEPS):
            near = up if sweep % 2 == 0 else down
            for r in range(len(self.layers)) if near is up else reversed(range(len(self.layers))):
                at = places()
                where = {i: float(np.mean([at[n] for n in near[i]])) if i in near else at[i] for i in self.layers[r]}
                self.layers[r].sort(key=where.__getitem__)
            if (now := crossings()) < fewest:
                best, fewest = [list(layer) for layer in self.layers], now
        self.layers = best

    def _place(self) -> None:
        """Places in inches: each item as near to its neighbours as the order of its row allows."""
        pulls: dict[_Item, list[tuple[_Item, str]]] = {}
        for (a, _), chain in self.chains.items():
            for u, v in pairwise(chain):
                pulls.setdefault(u, []).append((v, a))
                pulls.setdefault(v, []).append((u, a))
        below = {(u, v) for chain in self.chains.values() for u, v in pairwise(chain)}
        offsets = []
        for layer in self.layers:
            half = np.array([item.width / 2 for item in layer])
            gaps = half[:-1] + half[1:] + [GAP if not {u, v} & self.lanes else 0.12 for u, v in pairwise(layer)]
            at = np.concatenate([[0.0], np.cumsum(gaps)])
            offsets.append(at)
            for item, x in zip(layer, at - at[-1] / 2):
                item.x = float(x)
        for sweep in range(4 * SWEEPS):
            for r in range(len(self.layers)) if sweep % 2 == 0 else reversed(range(len(self.layers))):
                layer, wish, weight = self.layers[r], [], []
                for item in layer:
                    near = [
                        other.x + other.at(a, (other, item) in below) - item.at(a, (item, other) in below)
                        for other, a in pulls.get(item, [])
                    ]
                    # lanes should run straight, above all from row to row
                    pull = [STRAIGHT[(item in self.lanes) + (other in self.lanes)] for other, _ in pulls.get(item, [])]
                    wish.append(float(np.average(near, weights=pull)) if near else item.x)
                    weight.append(max(pull, default=1.0))
                new = isotonic_regression(np.array(wish) - offsets[r], sample_weight=weight) + offsets[r]
                for item, x in zip(layer, new):
                    item.x = float(x)
        top = PAD
        for layer in self.layers:
            tall = max(item.height for item in layer)
            for item in layer:
                item.height = tall if item in self.lanes else item.height
                item.y = top + (tall - item.height) / 2
            top += tall + ROW_GAP
        low = min(i.x - i.width / 2 for layer in self.layers for i in layer)
        high = max(i.x + i.width / 2 for layer in self.layers for i in layer)
        for layer in self.layers:
            for item in layer:
                item.x -= (low + high) / 2
        label = _width(self.label, LAW + 0.5)
        self.width = max(high - low, label) + 2 * PAD
        self.height = top - ROW_GAP + PAD + (CORNER if self.label else 0.0)


def _sites(item: _Item) -> list[str]:
    return list(item.owner) if isinstance(item, _Box) else [item.name]


def _width(text: str, size: float) -> float:
    """Inches that a text takes."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0


def _arranged(found: Mapping[str, Any]) -> _Box:
    """The picture's boxes: every site in the smallest plate that holds it, every plate in the next larger one."""
    rank = list(found["sample_sample"])
    edges = [(a, b) for b, parents in found["sample_sample"].items() for a in parents]
    plates = {name: set(sites) for name, sites in found["plate_sample"].items()}
    order = sorted(plates, key=lambda p: -len(plates[p]))  # larger first; equal ones as the story nests them
    parent = {
        plate: next((q for q in reversed(order[:at]) if plates[plate] <= plates[q]), None)
        for at, plate in enumerate(order)
    }
    home = {site: next((p for p in reversed(order) if site in plates[p]), None) for site in rank}

    def box(plate: str | None) -> _Box:
        items: list[_Item] = [_node(found, site) for site in rank if home[site] == plate]
        items += [box(p) for p in order if parent[p] == plate]
        name = "" if plate is None else plate.replace("__CLONE", "")  # Pyro's name of a plate's second box
        size = found["plate_size"].get(name)
        return _Box(name, name if size is None else f"{name}  {size:,}", items, edges, rank)

    return box(None)


def _node(found: Mapping[str, Any], site: str) -> _Item:
    given = found["sample_dist"][site] == "Deterministic"
    wide = max(_width(site, NAME), 0.0 if given else _width(found["sample_dist"][site], LAW))
    return _Item(site, max(wide + 0.18, 0.5) if given else max(1.16 * wide + 0.24, 0.62), 0.3 if given else HEIGHT)


# -- drawing ---------------------------------------------------------------------------------------------------


def _drawn(found: Mapping[str, Any]) -> Figure:
    whole = _arranged(found)
    out = Figure(figsize=(max(whole.width, 2.0), whole.height))
    axes = out.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    half = max(whole.width, 2.0) / 2
    axes.set_xlim(-half, half)
    axes.set_ylim(whole.height, 0)
    sites: dict[str, tuple[float, float, _Item]] = {}
    routes: dict[tuple[str, str], list[tuple[float, float, float]]] = {}

    def visit(box: _Box, x: float, y: float, depth: int) -> None:
        for item in box.items:
            if isinstance(item, _Box):
                corner = (x + item.x - item.width / 2, y + item.y)
                style = "round,pad=0,rounding_size=0.1"
                axes.add_patch(
                    FancyBboxPatch(
                        corner, item.width, item.height, boxstyle=style, fc=PLATE, ec=GREY, lw=0.8, zorder=depth
                    )
                )
                left = item.crowded()
                place = (corner[0] + (0.09 if left else item.width - 0.09), corner[1] + item.height - 0.09)
                side = "left" if left else "right"
                text = axes.text(*place, item.label, size=LAW + 0.5, ha=side, va="baseline", zorder=20)
                text.set_path_effects([withStroke(linewidth=2, foreground="#f5f8fb")])  # over edges that leave here
                visit(item, x + item.x, y + item.y, depth + 1)
            else:
                sites[item.name] = (x + item.x, y + item.y, item)
        for edge, chain in box.chains.items():
            places = [(x + i.x, y + i.y, y + i.y + i.height) for i in chain if i in box.lanes]
            routes.setdefault(edge, []).extend(places)

    visit(whole, 0.0, 0.0, 1)
    ends = _ends(found, sites, routes)
    for edge, (x, y) in ends.items():
        _arrow(axes, sites[edge[0]], routes.get(edge, []), (x, y))
    for name, (x, y, item) in sites.items():
        law = found["sample_dist"][name]
        if law == "Deterministic":
            style = "round,pad=0,rounding_size=0.05"
            corner = (x - item.width / 2, y)
            axes.add_patch(
                FancyBboxPatch(
                    corner,
                    item.width,
                    item.height,
                    boxstyle=style,
                    fc="white",
                    ec=INK,
                    lw=0.8,
                    ls=(0, (3, 2)),
                    zorder=15,
                )
            )
            axes.text(x, y + item.height / 2, name, size=NAME, ha="center", va="center_baseline", zorder=20)
            continue
        fill = OBSERVED if name in found["observed"] else "white"
        axes.add_patch(Ellipse((x, y + HEIGHT / 2), item.width, HEIGHT, fc=fill, ec=INK, lw=0.9, zorder=15))
        axes.text(x, y + 0.175, name, size=NAME, ha="center", va="center_baseline", zorder=20)
        axes.text(x, y + 0.295, law, size=LAW, color="#5b636c", ha="center", va="center_baseline", zorder=20)
    return out


def _ends(
    found: Mapping[str, Any],
    sites: Mapping[str, tuple[float, float, _Item]],
    routes: Mapping[tuple[str, str], list[tuple[float, float, float]]],
) -> dict[tuple[str, str], tuple[float, float]]:
    """Where each arrow meets its site: side by side along the upper edge, in the order in which they come."""
    out = {}
    for child, parents in found["sample_sample"].items():
        x, y, item = sites[child]

        def comes_from(parent: str, child: str = child) -> float:
            route = routes.get((parent, child))
            return max(route, key=lambda r: r[2])[0] if route else sites[parent][0]

        span = 0.0 if len(parents) < 2 else min(0.3 * item.width, 0.06 * (len(parents) - 1))
        for parent, part in zip(sorted(parents, key=comes_from), np.linspace(-span, span, len(parents))):
            shift = float(part) if len(parents) > 1 else 0.0
            flat = found["sample_dist"][child] == "Deterministic"
            drop = 0.0 if flat else HEIGHT / 2 * (1 - np.sqrt(1 - (2 * shift / item.width) ** 2))
            out[parent, child] = (x + shift, y + float(drop))
    return out


def _arrow(
    axes: Any, start: tuple[float, float, _Item], lanes: list[tuple[float, float, float]], end: tuple[float, float]
) -> None:
    """An arrow down its lanes, leaving and entering every row upright."""
    x, y, item = start
    y += item.height
    points, codes = [(x, y)], [Path.MOVETO]
    if end[1] < y:  # upwards: around the side
        side = 0.8 if end[0] >= x else -0.8
        points += [(x + side, y + 0.3), (end[0] + side, end[1] - 0.4), end]
        codes += [Path.CURVE4] * 3
    else:
        for at, upper, lower in [*sorted(lanes, key=lambda lane: lane[1]), (*end, end[1])]:
            middle = (y + upper) / 2
            points += [(x, middle), (at, middle), (at, upper)]
            codes += [Path.CURVE4] * 3
            if lower > upper:
                points.append((at, lower))
                codes.append(Path.LINETO)
            x, y = at, lower
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points, codes),
            arrowstyle="-|>,head_width=0.16,head_length=0.34",
            mutation_scale=10,
            color="#5b636c",
            lw=0.8,
            shrinkA=0,
            shrinkB=0,
            joinstyle="miter",
            zorder=12,
        )
    )
