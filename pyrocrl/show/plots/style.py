"""Colours, the style of figures, and what several of them draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from numpy.typing import NDArray

from pyrocrl.turns import turn

Floats = NDArray[np.float64]
P = ParamSpec("P")
SHOWN = 0.1  # probabilities below are not drawn
PRESENT = 0.5  # probability from which an entry or edge counts as present
LABELLED = 45  # rows of a heat map up to which each is named
# blue and vermilion differ for every kind of colour vision, and in grey
BLUE, RED, INK, GREY, FAINT = "#2b6ca3", "#c4502b", "#2a2f36", "#8b939c", "#e3e6ea"
DIVERGING = LinearSegmentedColormap.from_list("pyrocrl", [RED, "#e9b49f", "#ffffff", "#a3c2de", BLUE])
SEQUENTIAL = LinearSegmentedColormap.from_list("pyrocrl_one", ["#ffffff", "#a3c2de", BLUE, "#17395a"])
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names are users': "$" is a dollar
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.unicode_minus": True,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with turn(), mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def shortened(name: object, most: int = 22) -> str:
    text = "".join(c if c.isprintable() else "�" for c in " ".join(str(name).split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def probability_text(p: float) -> str:
    return "1" if p >= 0.995 else f"{p:.2f}".lstrip("0")


def draw_grid(axes: Any, rows: int, columns: int) -> None:
    """Thin white lines between the cells of a heat map, while there is room for them."""
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(rows + 1) - 0.5 if rows <= LABELLED else [], minor=True)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, lw=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def write_words(axes: Any, place: tuple[float, float], words: list[tuple[str, str]]) -> None:
    """Words of several colours on one line, starting at `place`."""
    parts: list[Any] = [TextArea(text, textprops={"color": colour, "size": 8}) for text, colour in words]
    box = HPacker(children=parts, align="baseline", pad=0, sep=5)
    axes.add_artist(AnnotationBbox(box, place, frameon=False, box_alignment=(0, 0.5), pad=0, annotation_clip=False))


def draw_whiskers(axes: Any, levels: Floats, names: Sequence[str], hollow: int | None = None) -> None:
    """A median with its 90 % interval per row (row, 3), blue above 0, red below, grey around it; `hollow`: the row
    that was set and did not respond."""
    axes.axvline(0.0, color=FAINT, lw=1, zorder=1)
    for y, (low, middle, high) in enumerate(levels):
        colour = GREY if low * high <= 0 else RED if middle < 0 else BLUE
        colour = INK if y == hollow else colour
        axes.plot([low, high], [y, y], color=colour, lw=1.6, solid_capstyle="butt", zorder=2)
        axes.plot([middle], [y], "o", color=colour, mfc="white" if y == hollow else colour, ms=4, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def draw_violins(axes: Any, groups: list[Floats], names: list[str], colours: list[str]) -> None:
    """Horizontal violins with median and quartiles; groups of fewer than five distinct values as points."""
    for y, (values, colour) in enumerate(zip(groups, colours, strict=True)):
        if len(np.unique(values)) < 5:
            axes.scatter(values, np.full(len(values), y), s=12, color=colour, alpha=0.7, linewidth=0)
            continue
        body = axes.violinplot([values], [y], orientation="horizontal", widths=0.85, showextrema=False)["bodies"][0]
        body.set(facecolor=colour, alpha=0.45, edgecolor="none")
        quarter, median, three = np.quantile(values, (0.25, 0.5, 0.75))
        axes.plot([quarter, three], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot(median, y, "o", color="white", mec=colour, ms=3.6, mew=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
