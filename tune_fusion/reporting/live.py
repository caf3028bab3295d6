"""What a person watches while a search runs: one live table on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune_fusion.records import SearchRecord, TrialRecord, TrialState

# Lines of the terminal that the table may not use: its frame and header, the three lines below it.
_RESERVED_LINES = 9
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
    """One plain line for each trial that ends; for logs and pipes."""

    def __init__(self, record: SearchRecord) -> None:
        self._record = record

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
        ended = sum(1 for t in self._record.trials if t.state is not TrialState.RUNNING)
        print(
            f"[{ended}/{self._record.planned_trials}] trial {cells['trial']} {cells['state']}: "
            f"{self._record.metric} {cells['best']} epoch {cells['epoch']} | switch {cells['switch layer']}"
            f" | low {cells['low']} {cells['low rates']}"
            + (f" | high {cells['high']} {cells['high rates']}" if cells["high"] else "")
            + (f" | {trial.reason}" if trial.state is TrialState.FAILED else ""),
            flush=True,
        )


class LiveTable:
    """A table of the trials that redraws itself in place while the search runs, and stays at its end."""

    def __init__(self, record: SearchRecord, console: Console) -> None:
        self._record = record
        self._console = console
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

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
        return Group(trial_table(self._record, room), *status_lines(self._record, time.time()))


def progress(record: SearchRecord) -> LiveTable | PlainProgress:
    """The view that fits standard output: a live table on a terminal, plain lines elsewhere."""
    console = Console(file=sys.stdout)
    return LiveTable(record, console) if console.is_terminal else PlainProgress(record)


def trial_table(record: SearchRecord, rows: int) -> Table:
    """At most `rows` trials: those that run, then the best of those that have ended."""
    table = Table(
        title=f"{record.name}: {record.metric}, {record.planned_trials} trials", title_justify="left"
    )
    for column in (
        "trial",
        "switch layer",
        "low",
        "low rates",
        "high",
        "high rates",
        "epoch",
        "best",
        "state",
    ):
        table.add_column(
            column, no_wrap=True, justify="right" if column in ("trial", "epoch", "best") else "left"
        )
    for trial in _shown(list(record.trials), record, rows):
        cells = trial_cells(record, trial)
        table.add_row(*cells.values(), style=_STATE_STYLE[trial.state])
    return table


def _shown(trials: list[TrialRecord], record: SearchRecord, rows: int) -> list[TrialRecord]:
    sign = -1.0 if record.direction == "max" else 1.0

    def rank(trial: TrialRecord) -> tuple[bool, float, int]:
        value = record.value(trial)
        return (
            trial.state is not TrialState.RUNNING,
            float("inf") if value is None else sign * value,
            trial.number,
        )

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


def _rates(parameters: dict[str, Any], half: str) -> str:
    cells = []
    if (rate := parameters.get(f"{half}.lr")) is not None:
        cells.append(f"lr {rate:.1e}")
    if (norm := parameters.get(f"{half}.lambda0")) is not None:
        cells.append(f"Λ0 {norm:.2f}")
    return " ".join(cells)


def status_lines(record: SearchRecord, now: float) -> list[Text]:
    """Counts by state, the best so far, time elapsed and the estimated end."""
    counts = ", ".join(f"{count} {state}" for state, count in record.counts().items()) or "starting"
    best = record.best()
    lines = [Text(f"{counts} of {record.planned_trials}")]
    if best is not None:
        cells = trial_cells(record, best)
        high = f", high {cells['high']} {cells['high rates']}" if cells["high"] else ""
        lines.append(
            Text(
                f"best so far: trial {best.number}, {record.metric} {cells['best']}: switch "
                f"{cells['switch layer']}, low {cells['low']} {cells['low rates']}{high}",
                style="bold",
            )
        )
    elapsed = now - record.started
    remaining = estimated_seconds_left(record, now)
    end = (
        ""
        if remaining is None
        else f", about {_duration(remaining)} left, ends near {_clock(now + remaining)}"
    )
    lines.append(Text(f"elapsed {_duration(elapsed)}{end}", style="dim"))
    return lines


def estimated_seconds_left(record: SearchRecord, now: float) -> float | None:
    """Seconds until the planned trials have ended, at the pace so far; None before two have."""
    ended = sum(1 for trial in record.trials if trial.ended is not None)
    if ended < 2:
        return None
    first = min(trial.started for trial in record.trials)
    return max(0.0, (now - first) / ended * (record.planned_trials - ended))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
