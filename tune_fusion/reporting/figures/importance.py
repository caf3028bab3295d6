"""Which parameters mattered: PED-ANOVA importances, and parallel coordinates."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.figures.space import is_pair
from tune_fusion.reporting.figures.style import (
    ARM_COLORS,
    INK,
    RULE,
    SEQUENTIAL,
    Drawn,
    counted,
    new_figure,
    styled,
)

# Fewer trials than this have no top group in which a density could be seen.
_FEWEST = 10
_TOP = 5
_MOST_SHOWN = 10


def measured(record: SearchRecord, arm: str) -> list[TrialRecord]:
    """The arm's trials that have a value and did not diverge."""
    return [
        trial
        for trial in record.known
        if trial.arm == arm and trial.state is not TrialState.DIVERGED and record.value(trial) is not None
    ]


def importances(record: SearchRecord, arm: str) -> dict[str, float]:
    """PED-ANOVA's share of each parameter that varied in the arm, descending, summing to 1; {} of too few.

    The study is rebuilt from the trials. An optimizer's setting is a parameter only of trials that drew this
    optimizer, and ranges differ between optimizers: each such range is a regime of its own, which
    conditional PED-ANOVA (arXiv 2601.20800) weighs by how many of the best and of all trials lie in it.
    """
    trials = measured(record, arm)
    if len(trials) < _FEWEST:
        return {}
    study = _study(record, trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=top_share(len(trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the class is experimental is no news for a reader
        found = evaluator.evaluate(study, _varied(trials))
    total = math.fsum(found.values())
    if not total:
        return {}
    return dict(sorted(((k, v / total) for k, v in found.items()), key=lambda item: (-item[1], item[0])))


def _varied(trials: Sequence[TrialRecord]) -> list[str]:
    """The parameters in which trials that have them differ."""
    seen: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        for key, value in trial.parameters.items():
            seen[key].add(repr(value))
    return sorted(key for key, values in seen.items() if len(values) > 1)


def top_share(count: int) -> float:
    """The best share of so many trials that PED-ANOVA looks at: a tenth, and at least five trials."""
    return max(0.1, min(0.5, _TOP / count))


def _study(record: SearchRecord, trials: Sequence[TrialRecord]) -> optuna.Study:
    """An Optuna study of these trials, whose ranges are those that were seen."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize" if record.direction == "max" else "minimize")
        rows = [_drawn(trial) for trial in trials]
        seen: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for row in rows:
            for key, value in row.items():
                seen[key, _owner(row, key)].append(value)
        for trial, row in zip(trials, rows, strict=True):
            distributions = {key: _distribution(seen[key, _owner(row, key)]) for key in row}
            study.add_trial(
                optuna.trial.create_trial(params=row, distributions=distributions, value=record.value(trial))
            )
        return study
    finally:
        optuna.logging.set_verbosity(verbosity)


def _drawn(trial: TrialRecord) -> dict[str, Any]:
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in trial.parameters.items()
    }


def _owner(row: Mapping[str, Any], key: str) -> str:
    """The optimizer whose setting `key` is; empty for what every trial has."""
    half = key.split(".", 1)[0]
    if half not in ("low", "high") or key.endswith(".optimizer"):
        return ""
    return str(row[f"{half}.optimizer"])


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    if all(isinstance(value, float) for value in values) and min(values) < max(values):
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high / low > 10)
    return CategoricalDistribution(sorted(set(values), key=str))


@styled
def importance(record: SearchRecord, arm: str) -> Drawn:
    """The arm's most important parameters."""
    name, title = f"importance-{arm}", f"What mattered in the {arm} arm"
    count = len(measured(record, arm))
    found = importances(record, arm)
    if not found:
        reason = (
            f"Too few trials: n = {count}, and PED-ANOVA needs {_FEWEST}."
            if count < _FEWEST
            else f"No parameter differed between the n = {count} trials."
        )
        return Drawn(name, title, None, reason)
    shown = list(found.items())[:_MOST_SHOWN][::-1]
    figure, axes = new_figure()
    axes.barh([key for key, _ in shown], [share for _, share in shown], color=ARM_COLORS[arm], height=0.65)
    for row, (_, share) in enumerate(shown):
        axes.annotate(
            f"{share:.0%}", (share, row), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_xlim(0, max(share for _, share in shown) * 1.15)
    axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of the importance")
    top = math.ceil(top_share(count) * count)
    note = (
        f"n = {counted(count, 'trial')}; PED-ANOVA: how far the best {top} differ from all in a parameter. "
        "An optimizer's own settings count where it was drawn (conditional PED-ANOVA). It finds what the "
        "trials differ in, not causes."
    )
    return Drawn(name, title, figure, note)


@dataclass(frozen=True)
class Axis:
    """One axis of the parallel coordinates: where each trial crosses it, in [0, 1], and its marks."""

    label: str
    places: list[float]
    ticks: list[tuple[float, str]]


def coordinates(record: SearchRecord, trials: Sequence[TrialRecord]) -> list[Axis]:
    """Switch layer, both optimizers, their learning rates and the metric. Every trial has them all."""
    axes = [
        _whole("switch layer", [int(trial.parameters["switch_layer"]) for trial in trials]),
        _words("low", [str(trial.parameters["low.optimizer"]) for trial in trials]),
        _rates("low lr", [float(trial.parameters["low.lr"]) for trial in trials]),
        _words("high", [str(trial.parameters["high.optimizer"]) for trial in trials]),
        _rates("high lr", [float(trial.parameters["high.lr"]) for trial in trials]),
    ]
    values = [record.value(trial) or 0.0 for trial in trials]
    low, high = min(values), max(values)
    ends = [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if low < high else [(0.5, f"{low:.3f}")]
    return [*axes, Axis(record.metric, _scaled(values), ends)]


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if low < high else 0.5 for value in values]


def _whole(label: str, values: list[int]) -> Axis:
    places = _scaled(values)
    return Axis(label, places, sorted({(place, str(v)) for place, v in zip(places, values, strict=True)}))


def _words(label: str, values: list[str]) -> Axis:
    order = sorted(set(values))
    places = _scaled([order.index(value) for value in values])
    return Axis(label, places, sorted({(place, v) for place, v in zip(places, values, strict=True)}))


def _rates(label: str, values: list[float]) -> Axis:
    places = _scaled([math.log10(value) for value in values])
    ends = {(0.0, min(values)), (1.0, max(values))} if min(values) < max(values) else {(0.5, values[0])}
    return Axis(label, places, sorted((place, f"{value:.0e}") for place, value in ends))


@styled
def parallel_coordinates(record: SearchRecord) -> Drawn:
    """Every pair's way through the parameters that all pairs have, coloured by its value."""
    name, title = "parallel-coordinates", "Parallel coordinates of the fusions"
    needed = ("low.lr", "high.lr")
    trials = [
        trial
        for trial in measured(record, "fusion")
        if is_pair(trial) and all(trial.parameters.get(key, 0) > 0 for key in needed)
    ]
    if len(trials) < 2:
        return Drawn(
            name, title, None, f"It takes two pairs of optimizers that were measured: n = {len(trials)}."
        )
    lines = coordinates(record, trials)
    figure, axes = new_figure(8.0, 3.8)
    colors = mpl.colormaps[SEQUENTIAL + ("_r" if record.direction == "max" else "")]
    ranks = lines[-1].places
    sign = record.sign
    order = sorted(range(len(trials)), key=lambda index: sign * ranks[index])
    for index in order:
        best = index == order[-1]
        axes.plot(
            range(len(lines)),
            [axis.places[index] for axis in lines],
            color=colors(ranks[index]),
            linewidth=2.6 if best else 1.1,
            alpha=1.0 if best else 0.6,
        )
    for place, axis in enumerate(lines):
        axes.axvline(place, color=RULE, linewidth=1, zorder=0)
        for height, text in axis.ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(place + 0.03, height, text, va="center", fontsize=9, color=INK, bbox=box)
    axes.set_xticks(range(len(lines)), [axis.label for axis in lines])
    axes.set_xlim(-0.1, len(lines) - 0.45)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    note = (
        f"n = {counted(len(trials), 'trial')} of the fusion arm, dark: good, thick: the best. "
        "Only parameters that every pair has; learning rates on log scales."
    )
    return Drawn(name, title, figure, note, wide=True)
