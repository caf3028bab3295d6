"""Figures of how the search went: learning curves, the best so far, how trials ended, where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.reporting.figures.style import (
    ARM_COLORS,
    INK,
    MUTED,
    Drawn,
    counted,
    label_ends,
    metric_label,
    new_figure,
    number,
    styled,
    whole_numbers,
)

_STATE_COLORS = {
    TrialState.COMPLETED: "#2b7a4b",
    TrialState.STOPPED: "#a9b4bf",
    TrialState.RUNNING: "#56b4e9",
    TrialState.INTERRUPTED: "#8e7cc3",
    TrialState.DIVERGED: "#e0b000",
    TrialState.FAILED: "#7a1f1f",
}
_ENDS = {
    TrialState.STOPPED: ("o", "stopped at a rung"),
    TrialState.DIVERGED: ("x", "diverged"),
    TrialState.FAILED: ("x", "failed"),
}


@dataclass(frozen=True)
class Step:
    """The best value once so many epochs of an arm had been trained."""

    epochs: int
    at: float
    """When, in seconds since 1970."""
    value: float


def best_so_far(record: SearchRecord, arm: str | None = None) -> list[Step]:
    """The best value after every epoch of the arm (None: of both), in the order in which epochs ended.

    Diverged trials spend epochs and give no value, as in the result; there is no step before the first value.
    """
    sign = record.sign
    heard = sorted(
        (at, trial.number, epoch)
        for trial in record.trials
        if arm is None or trial.arm == arm
        for epoch, at in enumerate(trial.times)
    )
    trials = {trial.number: trial for trial in record.trials}
    steps: list[Step] = []
    for spent, (at, number_, epoch) in enumerate(heard, start=1):
        trial = trials[number_]
        value = None if trial.state is TrialState.DIVERGED else trial.epochs[epoch].get(record.metric)
        if steps and (value is None or sign * value < sign * steps[-1].value):
            value = steps[-1].value
        if value is not None:
            steps.append(Step(spent, at, value))
    return steps


@styled
def best_by_epochs(record: SearchRecord) -> Drawn:
    """The best value of each arm over the epochs that the arm has spent."""
    name, title = "best-so-far", "Best so far over epochs spent"
    lines = {arm: steps for arm in ARM_COLORS if (steps := best_so_far(record, arm))}
    if not lines:
        return Drawn(name, title, None, "No trial has finished an epoch.")
    figure, axes = new_figure()
    for arm, steps in lines.items():
        xs, ys = [step.epochs for step in steps], [step.value for step in steps]
        axes.plot(xs, ys, color=ARM_COLORS[arm], linewidth=2, drawstyle="steps-post")
        axes.plot(xs[-1:], ys[-1:], "o", color=ARM_COLORS[arm], markersize=5)
    ends = [
        (float(steps[-1].epochs), steps[-1].value, f"{arm} {number(steps[-1].value)}", ARM_COLORS[arm])
        for arm, steps in lines.items()
    ]
    label_ends(axes, ends)
    axes.set_xlabel("epochs trained by the arm's trials (epochs)")
    axes.set_ylabel(metric_label(record.metric))
    spent = {arm: sum(len(t.epochs) for t in record.trials if t.arm == arm) for arm in lines}
    told = ", ".join(f"{arm} {epochs}" for arm, epochs in spent.items())
    return Drawn(name, title, figure, f"n = {counted(sum(spent.values()), 'epoch')}: {told}.")


@styled
def learning_curves(record: SearchRecord, rungs: Sequence[int]) -> Drawn:
    """The metric of every trial over its epochs, with the rungs at which ASHA compares."""
    name, title = "learning-curves", "Learning curves of all trials"
    trials = [trial for trial in record.trials if _curve(record, trial)]
    if not trials:
        return Drawn(name, title, None, "No trial has finished an epoch.")
    figure, axes = new_figure(5.0, 3.9)
    leaders = [leader for arm in ARM_COLORS if (leader := _leader(record, arm)) is not None]
    alpha = max(0.25, min(0.7, 12 / len(trials)))
    for trial in trials:
        xs, ys = zip(*_curve(record, trial), strict=True)
        color = ARM_COLORS.get(trial.arm, MUTED)
        leads = trial in leaders
        marker = "." if len(xs) == 1 and trial.state not in _ENDS else ""
        weight = 2.2 if leads else 0.9
        axes.plot(xs, ys, color=color, linewidth=weight, alpha=1 if leads else alpha, marker=marker)
        if trial.state in _ENDS:
            mark = _ENDS[trial.state][0]
            axes.plot(xs[-1:], ys[-1:], mark, color=color, markerfacecolor="white", markersize=4.5, alpha=0.9)
    whole_numbers(axes.xaxis)
    longest = max(len(trial.epochs) for trial in trials)
    axes.set_xlim(0.7, longest + 0.3)
    if leaders:
        label_ends(axes, [_end(record, trial) for trial in leaders])
    for rung in (rung for rung in rungs if rung <= longest):
        axes.axvline(rung, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)
        across = axes.get_xaxis_transform()
        axes.text(rung, 1.01, f"rung {rung}", transform=across, ha="center", fontsize=8, color=MUTED)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric_label(record.metric))
    seen = {state for trial in trials if (state := trial.state) in _ENDS}
    handles = [
        Line2D(
            [],
            [],
            marker=_ENDS[s][0],
            color=INK,
            markerfacecolor="white",
            linestyle="none",
            label=_ENDS[s][1],
        )
        for s in _ENDS
        if s in seen
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.1)
    told = ", ".join(map(str, rungs))
    rule = f"ASHA compares after epoch {told}" if rungs else "no rungs"
    note = (
        f"n = {counted(len(trials), 'trial')} of {len(record.trials)}; {rule}. Blue: fusion arm, orange: "
        "control arm; thick: the best of each."
    )
    return Drawn(name, title, figure, note)


def _leader(record: SearchRecord, arm: str) -> TrialRecord | None:
    """The arm's best trial of those that this search ran itself."""
    return replace(record, inherited=[]).best(arm=arm)


def _curve(record: SearchRecord, trial: TrialRecord) -> list[tuple[int, float]]:
    return [(n, m[record.metric]) for n, m in enumerate(trial.epochs, start=1) if record.metric in m]


def _end(record: SearchRecord, trial: TrialRecord) -> tuple[float, float, str, str]:
    epoch, value = _curve(record, trial)[-1]
    return float(epoch), value, trial.label, ARM_COLORS.get(trial.arm, MUTED)


def state_counts(record: SearchRecord) -> dict[str, dict[TrialState, int]]:
    """How many trials of each arm are in each state; only arms and states that occur."""
    return {
        arm: {
            state: count
            for state in TrialState
            if (count := sum(t.arm == arm and t.state is state for t in record.trials))
        }
        for arm in ARM_COLORS
        if any(trial.arm == arm for trial in record.trials)
    }


@styled
def states(record: SearchRecord) -> Drawn:
    """How the trials of each arm ended."""
    name, title = "states", "How the trials ended"
    counts = state_counts(record)
    if not counts:
        return Drawn(name, title, None, "No trial has been started.")
    figure, axes = new_figure(height=2.6)
    arms = list(counts)[::-1]
    shown = [state for state in _STATE_COLORS if any(state in of_arm for of_arm in counts.values())]
    ends = dict.fromkeys(arms, 0)
    for state in shown:
        widths = [counts[arm].get(state, 0) for arm in arms]
        starts = [ends[arm] for arm in arms]
        axes.barh(arms, widths, left=starts, color=_STATE_COLORS[state], height=0.55, label=state.value)
        for row, (width, start) in enumerate(zip(widths, starts, strict=True)):
            if width:
                ink = (
                    INK if state in (TrialState.STOPPED, TrialState.DIVERGED, TrialState.RUNNING) else "white"
                )
                axes.text(start + width / 2, row, str(width), ha="center", va="center", color=ink)
        ends = {arm: ends[arm] + width for arm, width in zip(arms, widths, strict=True)}
    _color_arms(axes)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("trials")
    whole_numbers(axes.xaxis)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2)
    return Drawn(
        name, title, figure, f"n = {len(record.trials)} of {counted(record.planned_trials, 'planned trial')}."
    )


def _color_arms(axes: Axes) -> None:
    for tick in axes.get_yticklabels():
        tick.set_color(ARM_COLORS.get(tick.get_text(), INK))


@dataclass(frozen=True)
class TimeSpent:
    """Where the seconds of all slots went."""

    slots: int
    """The most trials that trained at the same time."""
    wall: float
    """Seconds that the search took, without its pauses."""
    training: dict[str, float]
    """Seconds by arm."""
    evaluation: dict[str, float]
    """Seconds by arm."""
    rest: float
    """Seconds of the slots that were neither: start-up, loading, checkpoints, waiting."""


def time_spent(record: SearchRecord, now: float) -> TimeSpent | None:
    """Where the time went until `now` (seconds since 1970); None where no trial has finished an epoch."""
    if not any(trial.epochs for trial in record.trials):
        return None
    arms = [arm for arm in ARM_COLORS if any(trial.arm == arm for trial in record.trials)]
    training, evaluation = (
        {arm: sum(t.total(key) for t in record.trials if t.arm == arm) for arm in arms}
        for key in ("train_seconds", "eval_seconds")
    )
    slots, wall = _most_at_once(record, now), record.elapsed(now)
    rest = max(0.0, wall * slots - sum(training.values()) - sum(evaluation.values()))
    return TimeSpent(slots, wall, training, evaluation, rest)


def _most_at_once(record: SearchRecord, now: float) -> int:
    # At equal times ends come before starts: one trial hands its slot to the next.
    changes = sorted(
        change
        for trial in record.trials
        if trial.epochs
        for change in ((trial.started, 1), (now if trial.ended is None else trial.ended, -1))
    )
    most = running = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


@styled
def time(record: SearchRecord, now: float) -> Drawn:
    """Training, evaluation and the rest of the slots' time."""
    name, title = "time", "Where the time went"
    spent = time_spent(record, now)
    if spent is None:
        return Drawn(name, title, None, "No trial has finished an epoch.")
    whole = sum(spent.training.values()) + sum(spent.evaluation.values()) + spent.rest
    bars = [
        *((f"{arm}: training", seconds, ARM_COLORS[arm], 1.0) for arm, seconds in spent.training.items()),
        *((f"{arm}: evaluation", seconds, ARM_COLORS[arm], 0.5) for arm, seconds in spent.evaluation.items()),
        ("start-up, waiting", spent.rest, MUTED, 0.6),
    ][::-1]
    figure, axes = new_figure(height=1.2 + 0.4 * len(bars))
    for row, (_, seconds, color, alpha) in enumerate(bars):
        axes.barh([row], [seconds], color=color, alpha=alpha, height=0.6)
        share = f"{seconds / whole:.0%}" if whole else "-"
        axes.annotate(share, (seconds, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.set_xlim(0, max(seconds for _, seconds, *_ in bars) * 1.15 or 1.0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds of all slots (s)")
    slots = counted(spent.slots, "slot")
    whole = spent.wall * spent.slots
    trials = counted(len(record.trials), "trial")
    note = f"{spent.wall:.0f} s of wall time x {slots} = {whole:.0f} s; n = {trials}."
    return Drawn(name, title, figure, note)
