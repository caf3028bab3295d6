"""Figures of the answer: every seed's paired difference, and what fresh seeds made of the search's values."""

from __future__ import annotations

from matplotlib.axes import Axes

from tune_fusion.reporting.answer import Answer, Comparison, Finalist, matching_test_metric
from tune_fusion.reporting.figures.style import (
    ARM_COLORS,
    INK,
    MUTED,
    Drawn,
    counted,
    metric_label,
    new_figure,
    styled,
)
from tune_fusion.reporting.wording import UNCONFIRMED, in_units, kind, unit


@styled
def differences(answer: Answer | None) -> Drawn:
    """Best fusion minus best control, seed by seed, with the mean and its 95 % interval."""
    name, title = "differences", "Fusion minus control, seed by seed"
    if answer is None or not answer.comparisons:
        note = UNCONFIRMED if answer is None else "No seed was measured for both a fusion and a control."
        return Drawn(name, title, None, note)
    comparison = answer.comparisons[0]
    seeds = sorted(comparison.differences)
    figure, axes = new_figure(height=max(2.6, 1.5 + 0.3 * len(seeds)))
    values = [in_units(comparison.metric, comparison.differences[seed]) for seed in seeds]
    rows = list(range(len(seeds), 0, -1))
    axes.axvline(0, color=INK, linewidth=1)
    for value, row in zip(values, rows, strict=True):
        better = (value > 0) != ("loss" in comparison.metric)
        color = MUTED if value == 0 else ARM_COLORS["fusion" if better else "control"]
        axes.plot([0, value], [row, row], color=color, linewidth=1.2, alpha=0.6)
        axes.plot([value], [row], "o", color=color, markersize=7)
    _draw_mean(axes, comparison)
    axes.set_yticks([*rows, 0], [*(f"seed {seed}" for seed in seeds), "mean"])
    axes.set_ylim(-0.6, len(seeds) + 0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel(f"difference in {kind(comparison.metric)} ({unit(comparison.metric)})")
    return Drawn(name, title, figure, _pair_note(answer, comparison))


def _draw_mean(axes: Axes, comparison: Comparison) -> None:
    mean = in_units(comparison.metric, comparison.mean)
    if comparison.low is not None and comparison.high is not None:
        ends = [in_units(comparison.metric, end) for end in (comparison.low, comparison.high)]
        axes.plot(ends, [0, 0], color=INK, linewidth=3, solid_capstyle="butt")
    axes.plot([mean], [0], "D", color=INK, markersize=7)


def _pair_note(answer: Answer, comparison: Comparison) -> str:
    fusion, control = answer.finalist(comparison.fusion), answer.finalist(comparison.control)
    sides = f"{fusion.label if fusion else '?'} minus {control.label if control else '?'}"
    interval = "the bar is the mean's 95 % interval" if comparison.low is not None else "no interval from one"
    colors = "Blue favours the fusion, orange the control."
    return f"{sides}: n = {counted(len(comparison.differences), 'paired seed')}; {interval}. {colors}"


@styled
def promises(answer: Answer | None) -> Drawn:
    """Each finalist's value in the search beside its test values with fresh seeds."""
    name, title = "promises", "What the search promised, and what fresh seeds gave"
    if answer is None:
        return Drawn(name, title, None, UNCONFIRMED)
    metric = matching_test_metric(answer.metric)
    shown = sorted(
        (finalist for finalist in answer.finalists if finalist.n(metric)),
        key=lambda finalist: _mean(finalist, metric),
        reverse=answer.direction == "min",
    )
    if not shown:
        return Drawn(name, title, None, f"No finalist has a measured {kind(metric)}.")
    figure, axes = new_figure(height=max(2.6, 1.3 + 0.38 * len(shown)))
    for row, finalist in enumerate(shown):
        color = ARM_COLORS.get(finalist.arm, MUTED)
        values = list(finalist.by_seed(metric).values())
        mean = _mean(finalist, metric)
        axes.plot([mean, finalist.search_value], [row, row], color=color, linewidth=1, alpha=0.4)
        axes.plot(values, [row] * len(values), "o", color=color, markersize=4.5, alpha=0.5, markeredgewidth=0)
        axes.plot([mean], [row], "|", color=color, markersize=16, markeredgewidth=2.5)
        axes.plot([finalist.search_value], [row], "o", color=color, markerfacecolor="white", markersize=7)
    axes.set_yticks(range(len(shown)), [f"{f.label} (#{f.trial})" for f in shown])
    for tick, finalist in zip(axes.get_yticklabels(), shown, strict=True):
        tick.set_color(ARM_COLORS.get(finalist.arm, INK))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(metric_label(metric).replace("test ", "", 1))
    most = max(finalist.n(metric) for finalist in shown)
    note = (
        f"n = {counted(len(shown), 'finalist')}, up to {counted(most, 'seed')} each. Hollow: the best "
        "validation value in the search. Dots: test data, one a fresh seed; the bar is their mean."
    )
    return Drawn(name, title, figure, note)


def _mean(finalist: Finalist, metric: str) -> float:
    mean = finalist.mean(metric)
    if mean is None:
        raise ValueError(f"trial {finalist.trial} has no {metric}")
    return mean
