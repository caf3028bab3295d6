"""What a person watches while a search runs: one live table on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune_fusion.commands import say
from tune_fusion.records import SearchRecord, TrialRecord, TrialState

# Lines of the terminal that the table may not use: its frame and header, and what stands below it.
_RESERVED_LINES = 12
# The table's columns with the characters each needs at least, and the widths of terminal from which the
# rates, and then some air, fit in.
_COLUMNS = {
    "trial": 3,
    "switch layer": 8,
    "low": 8,
    "low rates": 10,
    "high": 8,
    "high rates": 10,
    "epoch": 5,
    "best": 6,
    "state": 11,
}
_WITH_RATES = 110
_ROOMY = 128
_STATE_STYLE = {
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETED: "green",
    TrialState.STOPPED: "dim",
    TrialState.DIVERGED: "yellow",
    TrialState.FAILED: "red",
    TrialState.INTERRUPTED: "magenta",
}


class Waiting:
    """Says on a terminal that work is under way before there is a table; silent elsewhere."""

    def __init__(self, text: str) -> None:
        console = Console(file=sys.stdout)
        self._status = console.status(text) if console.is_terminal else None

    def __enter__(self) -> Waiting:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the line away; may be called any number of times."""
        if self._status is not None:
            self._status.stop()


class PlainProgress:
    """One plain line for each trial that ends, on standard output or in a file."""

    def __init__(self, record: SearchRecord, out: TextIO | None = None) -> None:
        self._record = record
        self._out = out

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def trial_started(self, trial: TrialRecord) -> None:
        """Says nothing yet."""

    def epoch_ended(self, trial: TrialRecord) -> None:
        """Says nothing yet."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """Print the trial's line."""
        cells = trial_cells(self._record, trial)
        line = (
            f"[{len(self._record.ended)}/{self._record.planned_trials}] trial {cells['trial']} "
            f"{cells['state']}: {self._record.metric} {cells['best']} epoch {cells['epoch']} | "
            f"{trial_text(self._record, trial)}"
            + (f" | {trial.reason}" if trial.state is TrialState.FAILED else "")
        )
        say(line, self._out)


class LiveTable:
    """A table of the trials that redraws itself in place while the search runs, and stays at its end."""

    def __init__(self, record: SearchRecord, console: Console) -> None:
        self._record = record
        self._console = console
        # Drawing it takes some 25 ms of a processor, whose time trials need.
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=1)

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def trial_started(self, trial: TrialRecord) -> None:
        """The next redraw shows it."""

    def epoch_ended(self, trial: TrialRecord) -> None:
        """The next redraw shows it."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """The next redraw shows it."""

    def _render(self) -> Group:
        room = max(4, self._console.size.height - _RESERVED_LINES)
        table = trial_table(self._record, room, self._console.size.width)
        return Group(table, *status_lines(self._record, time.time()))


def progress(record: SearchRecord) -> LiveTable | PlainProgress:
    """The view that fits standard output: a live table on a terminal, plain lines elsewhere."""
    console = Console(file=sys.stdout)
    return LiveTable(record, console) if console.is_terminal else PlainProgress(record)


def trial_table(record: SearchRecord, rows: int, width: int) -> Table:
    """At most `rows` trials, those that run and then the best that have ended, in `width` characters.

    On a narrow terminal the rates are left out, so that the other columns stay readable.
    """
    tight = width < _ROOMY
    table = Table(
        title=f"{record.name}: {record.metric}, {record.planned_trials} trials",
        title_justify="left",
        padding=(0, 1, 0, 0) if tight else (0, 1),
        collapse_padding=tight,
    )
    columns = [name for name in _COLUMNS if width >= _WITH_RATES or "rates" not in name]
    for name in columns:
        table.add_column(
            name,
            no_wrap=True,
            justify="right" if name in ("trial", "epoch", "best") else "left",
            min_width=_COLUMNS[name],
        )
    for trial in _shown(list(record.trials), record, rows):
        cells = trial_cells(record, trial)
        table.add_row(*(cells[name] for name in columns), style=_STATE_STYLE[trial.state])
    return table


def _shown(trials: list[TrialRecord], record: SearchRecord, rows: int) -> list[TrialRecord]:
    sign = -record.sign

    def rank(trial: TrialRecord) -> tuple[bool, float, int]:
        value = None if trial.state is TrialState.DIVERGED else record.value(trial)
        last = float("inf")
        return trial.state is not TrialState.RUNNING, last if value is None else sign * value, trial.number

    return sorted(trials, key=rank)[:rows]


def trial_cells(record: SearchRecord, trial: TrialRecord) -> dict[str, str]:
    """One trial as text, keyed by the table's columns."""
    value = record.value(trial)
    parameters = trial.parameters
    switch = parameters["switch_layer"]
    return {
        "trial": str(trial.number),
        "switch layer": str(switch) if switch == "all" else f"{switch} {trial.switch_layer_name}",
        "low": str(parameters["low.optimizer"]),
        "low rates": _rates(parameters, "low"),
        "high": str(parameters.get("high.optimizer", "")),
        "high rates": _rates(parameters, "high"),
        "epoch": f"{len(trial.epochs)}/{trial.max_epochs}",
        "best": "-" if value is None else f"{value:.4f}",
        "state": trial.state.value,
    }


def trial_text(record: SearchRecord, trial: TrialRecord) -> str:
    """The configuration in one line, with everything that may differ between the search's trials."""
    parameters = trial.parameters
    switch = trial_cells(record, trial)["switch layer"]
    parts = [f"switch {switch}"]
    for half in ("low", "high"):
        if f"{half}.optimizer" in parameters:
            names = [key for key in parameters if key.startswith(f"{half}.") and key != f"{half}.optimizer"]
            settings = [_setting(key.removeprefix(f"{half}."), parameters[key]) for key in names]
            parts.append(" ".join([half, str(parameters[f"{half}.optimizer"]), *settings]))
    if record.searched_training:
        names = [f"training.{key}" for key in record.searched_training]
        parts.append(
            " ".join(_setting(name.removeprefix("training."), parameters.get(name)) for name in names)
        )
    return " | ".join(parts)


def _rates(parameters: Mapping[str, Any], half: str) -> str:
    names = [name for name in ("lr", "lambda0") if f"{half}.{name}" in parameters]
    return " ".join(_setting(name, parameters[f"{half}.{name}"]) for name in names)


def _setting(name: str, value: Any) -> str:
    if name == "lambda0":
        return f"Λ0 {value:.2f}"
    if isinstance(value, float):
        return (
            f"{name} {value:.1e}" if name.endswith("lr") or 0 < abs(value) < 0.01 else f"{name} {value:.4g}"
        )
    return f"{name} {list(value) if isinstance(value, tuple) else value}"


def status_lines(record: SearchRecord, now: float) -> list[Text]:
    """Counts by state, the arms, the best so far, time elapsed and the estimated end."""
    counts = ", ".join(f"{count} {state}" for state, count in record.counts().items()) or "starting"
    best = record.best()
    lines = [Text(f"{counts} of {record.planned_trials}")]
    if record.trials:
        lines.append(Text(arms_text(record)))
    if best is not None:
        value = trial_cells(record, best)["best"]
        text = f"best so far: {best.title}, {record.metric} {value}: {trial_text(record, best)}"
        lines.append(Text(text, style="bold"))
    elapsed = record.elapsed(now)
    remaining = estimated_seconds_left(record, now)
    end = (
        ""
        if remaining is None
        else f", about {_duration(remaining)} left, ends near {_clock(now + remaining)}"
    )
    lines.append(Text(f"elapsed {_duration(elapsed)}{end}", style="dim"))
    return lines


def arms_text(record: SearchRecord) -> str:
    """What each arm has spent and reached: ``fusion: 12 trials, 40 epochs, best 0.9814; control: ...``."""
    parts = []
    for arm, (trials, epochs) in record.arms().items():
        best = record.best(arm=arm)
        reached = "" if best is None else f", best {record.value(best):.4f}"
        parts.append(
            f"{arm}: {trials} trial{'s' * (trials != 1)}, {epochs} epoch{'s' * (epochs != 1)}{reached}"
        )
    return "; ".join(parts)


def estimated_seconds_left(record: SearchRecord, now: float) -> float | None:
    """Seconds until the planned trials have ended, at the pace so far; None before two have."""
    ended = len(record.ended)
    if ended < 2:
        return None
    first = min(trial.started for trial in record.trials)
    return max(0.0, (now - first - record.paused_seconds) / ended * (record.planned_trials - ended))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
