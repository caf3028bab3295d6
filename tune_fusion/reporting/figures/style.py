"""How figures look, and how they become SVG inside a page and PNG files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which colour-blind readers can tell apart. The arms' two colours mean nothing else.
ARM_COLORS = {"fusion": "#0072B2", "control": "#D55E00"}
INK, MUTED, RULE = "#1f2933", "#6b7785", "#d7dce1"
_OTHER_COLORS = ("#009E73", "#CC79A7", "#56B4E9", "#8A6D00", "#4B4B4B", "#7B5EA7", "#00827F", "#A8A800")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
SEQUENTIAL = "cividis"
_WIDTH, _HEIGHT = 5.0, 3.6
_PNG_DPI = 200
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Drawn:
    """A figure of the report, or why there is none."""

    name: str
    """Names its PNG file and its place in the page: letters, digits and hyphens."""
    title: str
    figure: Figure | None
    note: str
    """What is shown and how many trials stand behind it; without a figure: why there is nothing to draw."""
    wide: bool = False
    """True where it needs more than a column of the page."""


styled = mpl.rc_context(_SETTINGS)
"""Decorates what draws: within it, everything is made in the report's style."""


def new_figure(width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure of this size, in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.grid(visible=True)
    return figure, axes


def svg(drawn: Drawn) -> str:
    """The figure as an ``<svg>`` element for an HTML page.

    Its ids begin with the figure's name, so that those of several figures in one page never collide.
    """
    if drawn.figure is None:
        raise ValueError(f"{drawn.name} has no figure")
    text = io.StringIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": drawn.name}):
        drawn.figure.savefig(text, format="svg", metadata={"Date": None})
        drawn.figure.set_layout_engine("none")  # the layout is found once, which takes as long as drawing
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", element)
    element = _own_ids(element, drawn.name)
    width = round(drawn.figure.get_figwidth() * 96)
    opening = f'<svg role="img" aria-labelledby="{drawn.name}-title" style="--natural: {width}px"'
    return re.sub(r'<svg\s(?:(?:width|height)="[^"]*"\s)*', opening + " ", _unsized(element), count=1).strip()


def png(drawn: Drawn) -> bytes:
    """The figure as a PNG picture."""
    if drawn.figure is None:
        raise ValueError(f"{drawn.name} has no figure")
    picture = io.BytesIO()
    with mpl.rc_context(_SETTINGS):
        drawn.figure.savefig(picture, format="png", dpi=_PNG_DPI)
        drawn.figure.set_layout_engine("none")
    return picture.getvalue()


def _unsized(element: str) -> str:
    """The root without the size that matplotlib gave it: the page's style sets it."""
    opening, rest = element.split(">", 1)
    return re.sub(r'\s(?:width|height)="[^"]*"', "", opening) + ">" + rest


def _own_ids(element: str, prefix: str) -> str:
    """Ids that something refers to get the prefix; the others, which nobody needs, go."""
    used = set(re.findall(r'url\(#([^)]+)\)|(?:xlink:)?href="#([^"]+)"', element))
    wanted = {name for pair in used for name in pair if name}
    element = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in wanted else "", element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", element)
    return re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\1"', element)


def optimizer_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each optimizer, the same for the same set of names."""
    return {
        name: (_OTHER_COLORS[place % len(_OTHER_COLORS)], _MARKERS[place % len(_MARKERS)])
        for place, name in enumerate(sorted(set(names)))
    }


def search_colors(count: int) -> list[str]:
    """One colour for each of so many searches that stand beside each other."""
    return [_OTHER_COLORS[place % len(_OTHER_COLORS)] for place in range(count)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels as near as may be to the `wanted` ones, at least `gap` apart, within low..high.

    Where not all fit, they stand evenly from `low` to `high`.
    """
    count = len(wanted)
    if count > 1 and (count - 1) * gap > high - low:
        gap = (high - low) / (count - 1)
    order = sorted(range(count), key=lambda index: wanted[index])
    # Labels that would overlap form a block, which stands where its members' wishes lie on average.
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        block = (wanted[index] - rank * gap, 1)
        while blocks and blocks[-1][0] > block[0]:
            middle, size = blocks.pop()
            whole = size + block[1]
            block = ((middle * size + block[0] * block[1]) / whole, whole)
        blocks.append(block)
    offsets = [middle for middle, size in blocks for _ in range(size)]
    placed = [0.0] * count
    for rank, (index, offset) in enumerate(zip(order, offsets, strict=True)):
        placed[index] = min(max(offset, low), high - (count - 1) * gap) + rank * gap
    return placed


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its end: (x, y, text, colour), moved apart where they would overlap."""
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    gap = (top - bottom) * 0.075
    places = spread([y for _, y, _, _ in ends], gap, bottom + gap / 2, top - gap / 2)
    longest = max(len(text) for _, _, text, _ in ends)
    end = max(x for x, _, _, _ in ends)
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    axes.set_xlim(left, max(right, end + (end - left) * (0.04 + 0.026 * longest)))
    axes.set_xticks(ticks)
    for (x, _, text, color), y in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            fontweight="bold",
        )


def metric_label(metric: str) -> str:
    """What an axis with this metric is called, with its unit."""
    return {
        "val_accuracy": "validation accuracy (share)",
        "val_macro_f1": "validation macro-F1 (share)",
        "val_loss": "validation loss (nats)",
        "test_accuracy": "test accuracy (share)",
        "test_macro_f1": "test macro-F1 (share)",
        "test_loss": "test loss (nats)",
    }.get(metric, metric)


def number(value: float | None) -> str:
    """A metric's value as the whole report writes it."""
    return "-" if value is None else f"{value:.4f}"


def whole_numbers(axis: Axis) -> None:
    """Ticks of this axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True))


def plain_powers(value: float, place: float) -> str:
    """A tick of a logarithmic axis as plain text: ``1e-3``."""
    return f"1e{round(math.log10(value))}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
