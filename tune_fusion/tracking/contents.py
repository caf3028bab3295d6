"""What a search looks like in MLflow: the changes that its record amounts to.

Everything follows from the record alone, times and steps too, so that every process that tells of the same
trial tells the same.
"""

from __future__ import annotations

import getpass
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune_fusion.passwords import redact
from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.changes import PARENT, Artifact, Change, Point, Status

TRIAL_STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETED: "FINISHED",
    TrialState.STOPPED: "KILLED",
    TrialState.INTERRUPTED: "KILLED",
    TrialState.DIVERGED: "FAILED",
    TrialState.FAILED: "FAILED",
}
"""MLflow's status of an ended trial."""
CONFIGURATION_TAG = "configuration"
"""The tag of a trial's run that holds its configuration as JSON: parameters are text and not exact."""
SEARCH_STATUS: dict[str, Status] = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST_PARAM, _LONGEST_TAG, _LONGEST_NAME = 6000, 8000, 250
"""Characters that MLflow stores."""


def common_tags(record: SearchRecord, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of every run, fit to be stored: `tags`, and what the MLflow UI shows as user and source."""
    own = {"mlflow.source.name": "tune_fusion", "mlflow.source.type": "LOCAL", "space": record.space}
    with suppress(KeyError, OSError):  # a container's user without a name
        own["mlflow.user"] = getpass.getuser()
    return _tags({**tags, **own})


def search_started(
    record: SearchRecord, tags: Mapping[str, str], files: Sequence[Path], parent_run: str | None = None
) -> Change:
    """The parent run with its `files` and the `common_tags`, nested in `parent_run` where that is known."""
    nested = {} if parent_run is None else {"mlflow.parentRunId": parent_run}
    return Change(
        PARENT,
        name=_cut(record.name, _LONGEST_NAME),
        started=_milliseconds(record.started),
        params=_params({"metric": record.metric, "direction": record.direction}),
        tags=_search_tags(record, tags) | nested,
        artifacts=tuple(Artifact(file) for file in files),
    )


def search_resumed(record: SearchRecord, tags: Mapping[str, str]) -> Change:
    """The parent run goes on; its tags are those of the code that it goes on with."""
    return Change(PARENT, tags=_search_tags(record, tags), reopen=True)


def search_ended(
    record: SearchRecord,
    status: str,
    files: Sequence[Path],
    figures: Sequence[Path],
    winner: TrialRecord | None,
) -> Change:
    """The search's result, and the end of the parent run.

    A search that was interrupted or extended ends more than once. The step of the result therefore counts all
    that has happened (trials, their ends, epochs, duplicates): at the same step all values are the same.
    """
    epochs = sum(len(trial.epochs) for trial in record.trials)
    single = record.best_control()
    best_single = None if single is None else record.value(single)
    values = {
        **({} if best_single is None else {"best_single_value": best_single}),
        "ended_trials": float(len(record.ended)),
        "duplicates": float(record.duplicates),
        "epochs": float(epochs),
        **{key: math.fsum(t.total(key) for t in record.trials) for key in ("train_seconds", "eval_seconds")},
        **{f"{name}_trials": float(count) for name, count in record.counts().items()},
    }
    step = len(record.trials) + len(record.ended) + epochs + record.duplicates
    # A number alone is a trial of this search.
    name = None if winner is None else winner.title if winner.source else str(winner.number)
    tags = {"state": status} | ({} if name is None else {"best_trial": name})
    at = _milliseconds(_newest_moment(record))
    return Change(
        PARENT,
        points=_points(values, at, step),
        tags=_tags(tags),
        artifacts=(*map(Artifact, files), *(Artifact(figure, "figures") for figure in figures)),
        ended=(SEARCH_STATUS[status], at),
    )


def best_value(value: float, trial: TrialRecord, ended: int) -> Change:
    """The best value among the first `ended` trials that ended, the last of which is `trial`."""
    return Change(PARENT, points=_points({"best_value": value}, _end(trial), ended), epochs=ended)


def trial_started(trial: TrialRecord, tags: Mapping[str, str]) -> Change:
    """A child run with the trial's parameters and the `common_tags`."""
    own = {
        "trial": str(trial.number),
        "arm": trial.arm,
        "origin": trial.origin,
        "single": _text(trial.single),
        "state": TrialState.RUNNING.value,
    } | _tags({CONFIGURATION_TAG: json.dumps(trial.configuration)})
    seed = {} if trial.seed is None else {"seed": trial.seed}
    return Change(
        trial.number,
        name=run_name(trial),
        started=_milliseconds(trial.started),
        params=_params(
            {**trial.parameters, **seed, "switch_layer_name": trial.switch_layer_name, "arm": trial.arm}
        ),
        tags={**tags, **own},
    )


def trial_resumed(trial: TrialRecord) -> Change:
    """The trial goes on after an interruption."""
    return Change(trial.number, tags={"state": TrialState.RUNNING.value, "reason": ""}, reopen=True)


def trial_epochs(trial: TrialRecord, told: int) -> Change:
    """The epochs of `trial` after the first `told`."""
    points = [
        point
        for epoch in range(told, len(trial.epochs))
        for point in _points(trial.epochs[epoch], _milliseconds(trial.times[epoch]), epoch + 1)
    ]
    return Change(trial.number, points=tuple(points), epochs=len(trial.epochs))


def trial_ended(trial: TrialRecord, metric: str, direction: str) -> Change:
    """How the trial ended, and its best epoch."""
    best = trial.best_epoch(metric, direction)
    points: tuple[Point, ...] = ()
    if best is not None:
        epoch = int(best["epoch"])
        # At the time of that epoch: a trial that was interrupted ends twice, but this is one point.
        points = _points({f"best_{metric}": best[metric]}, _milliseconds(trial.times[epoch - 1]), epoch)
    tags = {"state": trial.state.value}
    told = {"reason": trial.reason, "node": trial.node, "infeasible": "true" if trial.infeasible else ""}
    tags |= {key: value for key, value in told.items() if value}
    return Change(
        trial.number, points=points, tags=_tags(tags), ended=(TRIAL_STATUS[trial.state], _end(trial))
    )


def run_name(trial: TrialRecord) -> str:
    """The child run's name: ``0007 adam|sgd @3``, and its seed where it has one of its own."""
    seed = "" if trial.seed is None else f" seed {trial.seed}"
    return f"{trial.number:04d} {trial.label}{seed}"


def _search_tags(record: SearchRecord, tags: Mapping[str, str]) -> dict[str, str]:
    """The planned trials are no parameter, as MLflow never changes one: a search may be extended."""
    return {**tags, "planned_trials": str(record.planned_trials), "state": "running"}


def _newest_moment(record: SearchRecord) -> float:
    moments = (t for trial in record.trials for t in (trial.started, trial.ended or 0.0, *trial.times[-1:]))
    return max(moments, default=record.started)


def _end(trial: TrialRecord) -> int:
    return _milliseconds(trial.started if trial.ended is None else trial.ended)


def _points(values: Mapping[str, float], at: int, step: int) -> tuple[Point, ...]:
    return tuple(Point(key, float(value), at, step) for key, value in values.items() if math.isfinite(value))


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: _cut(redact(_text(value)), _LONGEST_PARAM) for key, value in values.items()}


def _tags(values: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(redact(value), _LONGEST_TAG) for key, value in values.items()}


def _text(value: object) -> str:
    """A parameter as MLflow shows it: None as ``none``, booleans in lower case, floats with every digit."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return str(value)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
