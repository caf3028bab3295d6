"""Can ASHA be trusted here? How early values rank trials, and what stopping everything early would choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.figures.style import (
    ARM_COLORS,
    INK,
    Drawn,
    counted,
    new_figure,
    styled,
    whole_numbers,
)

_FEWEST = 3


@dataclass(frozen=True)
class RungCorrelation:
    """How a rung ranks the trials of an arm that finished, beside their best values in the end."""

    arm: str
    epoch: int
    count: int
    rho: float | None
    """Spearman's rank correlation; None of fewer than three trials, or where one side is constant."""


@dataclass(frozen=True)
class EarlyChoice:
    """What "stop everything after `epoch` epochs, take the best" chooses."""

    epoch: int
    count: int
    """Trials that have trained so far."""
    trial: int
    reached: float
    """Its best value in these epochs."""
    final: float | None
    """Its best value in the end; None where it did not train to the end."""
    regret: float | None
    """How much worse that is than the best trial of all that finished; at least 0."""


def finished(record: SearchRecord) -> list[TrialRecord]:
    """The trials that trained to their last epoch."""
    return [
        trial
        for trial in record.trials
        if trial.state is TrialState.COMPLETED and record.value(trial) is not None
    ]


def rung_correlations(record: SearchRecord, rungs: Sequence[int]) -> list[RungCorrelation]:
    """The rank correlation of each rung's values with the final bests, by arm."""
    found = []
    for arm in ARM_COLORS:
        trials = [trial for trial in finished(record) if trial.arm == arm]
        for rung in rungs:
            pairs = [
                (trial.epochs[rung - 1][record.metric], record.value(trial))
                for trial in trials
                if len(trial.epochs) >= rung and record.metric in trial.epochs[rung - 1]
            ]
            if trials:
                found.append(RungCorrelation(arm, rung, len(pairs), _spearman(pairs)))
    return found


def _spearman(pairs: Sequence[tuple[float, float | None]]) -> float | None:
    early, final = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(pairs) < _FEWEST or len(set(early)) == 1 or len(set(final)) == 1:
        return None
    return float(spearmanr(early, final).statistic)


def early_choices(record: SearchRecord) -> list[EarlyChoice]:
    """For every number of epochs: the trial that was best by then, and what became of it.

    Trials that ended before so many epochs, or diverged by then, are not among those to choose from.
    """
    sign = record.sign
    done = {trial.number: sign * (record.value(trial) or 0.0) for trial in finished(record)}
    choices = []
    for epoch in range(1, max((len(trial.epochs) for trial in record.trials), default=0) + 1):
        reached = {
            trial.number: max(sign * m[record.metric] for m in trial.epochs[:epoch] if record.metric in m)
            for trial in record.trials
            if len(trial.epochs) >= epoch and record.metric in trial.epochs[epoch - 1]
        }
        if not reached:
            continue
        chosen = max(reached, key=lambda number: (reached[number], -number))
        final = done.get(chosen)
        choices.append(
            EarlyChoice(
                epoch=epoch,
                count=len(reached),
                trial=chosen,
                reached=sign * reached[chosen],
                final=None if final is None else sign * final,
                regret=None if final is None else max(done.values()) - final,
            )
        )
    return choices


@styled
def correlations(record: SearchRecord, rungs: Sequence[int]) -> Drawn:
    """Each rung's rank correlation with the end, by arm."""
    name, title = "rung-correlations", "Does a rung rank trials as the end does?"
    found = rung_correlations(record, rungs)
    known = [rung for rung in found if rung.rho is not None]
    if not known:
        count = len(finished(record))
        reason = (
            "There are no rungs: nothing is stopped early."
            if not rungs
            else f"It takes {_FEWEST} finished trials of an arm with different values: n = {count} finished."
        )
        return Drawn(name, title, None, reason)
    figure, axes = new_figure()
    for arm, color in ARM_COLORS.items():
        line = [rung for rung in known if rung.arm == arm]
        shift = -0.08 if arm == "fusion" else 0.08
        places = [rungs.index(rung.epoch) + shift for rung in line]
        heights = [rung.rho or 0.0 for rung in line]
        axes.vlines(places, 0, heights, color=color, linewidth=2, alpha=0.5)
        axes.plot(places, heights, "o", color=color, markersize=8, label=arm)
        for place, height, rung in zip(places, heights, line, strict=True):
            side = -1 if arm == "fusion" else 1
            axes.annotate(
                f"{height:.2f}\nn = {rung.count}",
                (place, height),
                (side * 8, 0),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="center",
                fontsize=9,
                color=color,
            )
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_ylim(min(-0.1, *(rung.rho or 0.0 for rung in known)) - 0.1, 1.1)
    axes.set_xticks(range(len(rungs)), [str(rung) for rung in rungs])
    axes.set_xlim(-0.6, len(rungs) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("rung (epoch)")
    axes.set_ylabel("Spearman's rank correlation")
    note = (
        f"n = {counted(len(finished(record)), 'finished trial')}, blue: fusion arm, orange: control arm. 1: "
        "the rung ranks as the end does. The rungs chose which trials finished, so this says nothing of "
        "those that were stopped."
    )
    return Drawn(name, title, figure, note)


@styled
def early_regret(record: SearchRecord) -> Drawn:
    """How much worse the choice after n epochs was in the end."""
    name, title = "early-choice", "Stop everything after n epochs, take the best"
    choices = early_choices(record)
    known = [choice for choice in choices if choice.regret is not None]
    if not known:
        reason = (
            "No trial has finished an epoch."
            if not choices
            else "None of the trials that an early stop would have chosen has finished: n = 0."
        )
        return Drawn(name, title, None, reason)
    points = "loss" not in record.metric
    scale = 100.0 if points else 1.0
    figure, axes = new_figure()
    heights = [scale * (choice.regret or 0.0) for choice in known]
    axes.plot([choice.epoch for choice in known], heights, "o", color=INK, markersize=7)
    axes.vlines([choice.epoch for choice in known], 0, heights, color=INK, linewidth=1.5, alpha=0.5)
    top = max(*heights, 0.1 if points else 0.001) * 1.25
    for choice, height in zip(known, heights, strict=True):
        axes.annotate(
            f"#{choice.trial}",
            (choice.epoch, height),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    unknown = [choice.epoch for choice in choices if choice.regret is None]
    for epoch in unknown:
        axes.text(epoch, top * 0.03, "?", ha="center", fontsize=11)
    axes.set_ylim(-0.04 * top, top)
    axes.set_xlim(0.4, choices[-1].epoch + 0.6)
    whole_numbers(axes.xaxis)
    axes.set_xlabel("n (epochs)")
    axes.set_ylabel(f"worse at the end by ({'points' if points else 'nats'})")
    note = (
        f"n = {counted(known[0].count, 'trial')} to choose from after {counted(known[0].epoch, 'epoch')}; "
        "labels: the trial chosen. Compared with the best trial that finished; ?: the chosen trial was "
        "stopped, so how it would have ended is unknown."
    )
    return Drawn(name, title, figure, note)
