"""Figures of the searched space: where the good configurations lie."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.figures.style import (
    ARM_COLORS,
    MUTED,
    SEQUENTIAL,
    Drawn,
    counted,
    metric_label,
    new_figure,
    number,
    optimizer_styles,
    plain_powers,
    styled,
)


@dataclass(frozen=True)
class Cell:
    """The trials of one switch layer and one pair of optimizers."""

    best: float
    median: float
    count: int


@dataclass(frozen=True)
class Point:
    """One trial in a landscape."""

    x: float
    value: float
    optimizer: str
    arm: str
    completed: bool


def is_pair(trial: TrialRecord) -> bool:
    """True where two optimizers share the layers, be they the same one."""
    return "high.optimizer" in trial.parameters


def cells(record: SearchRecord) -> dict[tuple[int, str], Cell]:
    """By switch layer and ``low|high``: the trials that have a value; diverged ones do not count."""
    values: dict[tuple[int, str], list[float]] = defaultdict(list)
    for trial in record.known:
        value = record.value(trial)
        if is_pair(trial) and value is not None and trial.state is not TrialState.DIVERGED:
            pair = f"{trial.parameters['low.optimizer']}|{trial.parameters['high.optimizer']}"
            values[int(trial.parameters["switch_layer"]), pair].append(value)
    best = max if record.direction == "max" else min
    return {key: Cell(best(found), statistics.median(found), len(found)) for key, found in values.items()}


@styled
def heat_map(record: SearchRecord, layers: Sequence[str]) -> Drawn:
    """Switch layer by pair of optimizers; `layers` are the model's layer names, where they are known."""
    name, title = "heat-map", "Switch layer and optimizer pair"
    found = cells(record)
    if not found:
        reason = (
            "No trial of two optimizers has finished an epoch."
            if record.fusions
            else "This search has no switch layer: it compares single optimizers."
        )
        return Drawn(name, title, None, reason)
    switches = range(min(row for row, _ in found), max(row for row, _ in found) + 1)
    pairs = sorted({pair for _, pair in found})
    longest = max(len(name) for pair in pairs for name in pair.split("|"))
    width = max(5.0, 1.9 + max(0.82, 0.09 * longest) * len(pairs))
    figure, axes = new_figure(width, max(3.0, 1.7 + 0.6 * len(switches)))
    grid = [
        [found[row, pair].best if (row, pair) in found else math.nan for pair in pairs] for row in switches
    ]
    # The best values are dark, whichever the direction.
    colors = mpl.colormaps[SEQUENTIAL + ("_r" if record.direction == "max" else "")].with_extremes(
        bad="#f2f4f6"
    )
    image = axes.imshow(grid, cmap=colors, aspect="auto")
    _write_cells(axes, found, list(switches), pairs, image)
    names = {
        int(trial.parameters["switch_layer"]): trial.switch_layer_name
        for trial in record.known
        if is_pair(trial)
    } | dict(enumerate(layers))
    axes.set_yticks(range(len(switches)), [f"{row} {names.get(row, '')}".strip() for row in switches])
    axes.set_xticks(range(len(pairs)), [pair.replace("|", "|\n") for pair in pairs])
    if len(pairs) > 4:
        axes.tick_params(axis="x", labelsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_ylabel("switch layer: the last of the low half")
    axes.set_xlabel("optimizer of the low | high half")
    figure.colorbar(image, ax=axes, label=f"best {metric_label(record.metric)}", shrink=0.9)
    trials = sum(cell.count for cell in found.values())
    note = (
        f"n = {counted(trials, 'trial')} in {counted(len(found), 'cell')}. In each cell: the best, the "
        "median, the number of trials; grey: not tried. Trials stopped early count with what they reached."
    )
    return Drawn(name, title, figure, note, wide=width > 5.0)


def _write_cells(
    axes: Axes, found: dict[tuple[int, str], Cell], switches: list[int], pairs: list[str], image: Any
) -> None:
    for (row, pair), cell in found.items():
        red, green, blue, _ = image.cmap(image.norm(cell.best))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        spot = (pairs.index(pair), switches.index(row))
        ink = "white" if dark else "black"
        best, rest = f"{cell.best:.3f}", f"{cell.median:.3f} · {cell.count}"
        axes.text(spot[0], spot[1] - 0.14, best, ha="center", va="center", color=ink, fontweight="bold")
        axes.text(spot[0], spot[1] + 0.24, rest, ha="center", va="center", color=ink, fontsize=8)


def points(
    record: SearchRecord, half: str, parameter: str, keep: Callable[[TrialRecord], bool]
) -> list[Point]:
    """The trials that `keep` and that have ``half.parameter`` and a value; diverged ones do not count."""
    key = f"{half}.{parameter}"
    return [
        Point(
            float(trial.parameters[key]),
            value,
            str(trial.parameters[f"{half}.optimizer"]),
            trial.arm,
            trial.state is TrialState.COMPLETED,
        )
        for trial in record.known
        if keep(trial)
        and key in trial.parameters
        and trial.state is not TrialState.DIVERGED
        and (value := record.value(trial)) is not None
    ]


def _diverged(record: SearchRecord, key: str, keep: Callable[[TrialRecord], bool]) -> list[float]:
    return [
        float(trial.parameters[key])
        for trial in record.known
        if keep(trial) and trial.state is TrialState.DIVERGED and key in trial.parameters
    ]


@styled
def initial_norms(record: SearchRecord) -> Drawn:
    """The metric over HN_Adam's initial norm, in either half."""
    name, title = "initial-norms", "HN_Adam's initial norm Λ0"
    found = [point for half in ("low", "high") for point in points(record, half, "lambda0", lambda _: True)]
    if not found:
        return Drawn(name, title, None, "No trial with HN_Adam and its own Λ0 has finished an epoch.")
    figure, axes = new_figure()
    for half, marker in (("low", "o"), ("high", "^")):
        here = points(record, half, "lambda0", lambda _: True)
        for arm, color in ARM_COLORS.items():
            _scatter(axes, [point for point in here if point.arm == arm], color, marker)
    for place, label in enumerate(("○ low half or all layers", "△ high half")):
        axes.annotate(label, (0, 1), (4 + 165 * place, 6), "axes fraction", "offset points", fontsize=9)
    axes.axvspan(2, 3, color="#eef3f8", zorder=0)
    axes.set_xlim(1.9, 4.1)
    axes.set_xlabel("Λ0")
    axes.set_ylabel(metric_label(record.metric))
    note = (
        f"n = {counted(len(found), 'half', 'halves')} trained by HN_Adam. Blue: fusion arm, orange: control "
        "arm; hollow: not trained to the end. Between 2 and 3 (shaded) steps of AMSGrad and of Adam mix."
    )
    return Drawn(name, title, figure, note)


def _scatter(axes: Axes, shown: Sequence[Point], color: str, marker: str, label: str | None = None) -> None:
    """Points of one kind; those of trials that did not train to the end are hollow."""
    for completed in (True, False):
        some = [point for point in shown if point.completed == completed]
        axes.plot(
            [point.x for point in some],
            [point.value for point in some],
            marker,
            color=color,
            markerfacecolor=color if completed else "white",
            markersize=6,
            alpha=0.85,
            linestyle="none",
            label=label if completed else None,
        )


_LANDSCAPES = {
    "low": ("rates-low", "Learning rate of the low half", is_pair, "low half of a pair"),
    "high": ("rates-high", "Learning rate of the high half", is_pair, "high half of a pair"),
    "all": (
        "rates-single",
        "Learning rate of single optimizers",
        lambda t: not is_pair(t),
        "single optimizer",
    ),
}


@styled
def rates(record: SearchRecord, half: str) -> Drawn:
    """The metric over the learning rate of `half`: ``low``, ``high``, or ``all`` for single optimizers."""
    name, title, keep, what = _LANDSCAPES[half]
    key = "high" if half == "high" else "low"
    found = points(record, key, "lr", keep)
    if not found:
        return Drawn(name, title, None, f"No trial with the learning rate of a {what} has finished an epoch.")
    figure, axes = new_figure()
    styles = optimizer_styles(
        str(trial.parameters[place])
        for trial in record.known
        for place in ("low.optimizer", "high.optimizer")
        if place in trial.parameters
    )
    here = sorted({point.optimizer for point in found})
    for optimizer in here:
        color, marker = styles[optimizer]
        axes.plot([], [], marker, color=color, linestyle="none", label=optimizer)
        _scatter(axes, [point for point in found if point.optimizer == optimizer], color, marker)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(plain_powers)
    axes.xaxis.set_minor_formatter(lambda value, place: "")
    lost = _diverged(record, f"{key}.lr", keep)
    if lost:
        across = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "x", color=MUTED, transform=across, clip_on=False)
    axes.set_xlabel("learning rate (log scale)")
    axes.set_ylabel(metric_label(record.metric))
    figure.legend(loc="outside upper left", ncols=min(4, len(here)), handletextpad=0.1, columnspacing=1.0)
    crosses = f"; crosses: {counted(len(lost), 'trial')} that diverged" if lost else ""
    note = f"n = {counted(len(found), 'trial')}; hollow: not trained to the end{crosses}."
    return Drawn(name, title, figure, note)


def best_label(record: SearchRecord, trial: TrialRecord) -> str:
    """``adam|sgd @3 0.9512``: what a trial is, and its value."""
    return f"{trial.label} {number(record.value(trial))}"
