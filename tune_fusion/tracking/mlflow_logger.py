"""The MLflow log of a search: one parent run, one nested child run a trial.

`MlflowLogger` is told what happens on the driver's thread and only makes copies there; `Delivery` brings them
to the store from a thread of its own.
"""

from __future__ import annotations

import getpass
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tune_fusion.records import SearchRecord, TrialRecord, TrialState, jsonable
from tune_fusion.tracking.changes import PARENT, Artifact, Change, Point, Status
from tune_fusion.tracking.delivery import Delivery
from tune_fusion.tracking.store import MlflowStore
from tune_fusion.tracking.uri import check_tracking, redact, run_url, ui_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BestModel", "MlflowLogger", "check_tracking", "redact", "ui_command"]

_STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETED: "FINISHED",
    TrialState.STOPPED: "KILLED",
    TrialState.INTERRUPTED: "KILLED",
    TrialState.DIVERGED: "FAILED",
    TrialState.FAILED: "FAILED",
}
_SEARCH_STATUS: dict[str, Status] = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST_PARAM, _LONGEST_TAG, _LONGEST_NAME = 6000, 8000, 250
"""Characters that MLflow stores."""


@dataclass(frozen=True)
class BestModel:
    """The weights of the best trial, and what goes in and comes out of the model."""

    trial: int
    """Its number."""
    weights: Path
    """A safetensors file; it must stay until `MlflowLogger.close` has returned."""
    input_example: NDArray[np.floating[Any]]
    """Images as the model is given them: float, (batch, channels, height, width)."""
    output_example: NDArray[np.floating[Any]]
    """What the model answers to them: float, (batch, classes)."""


class MlflowLogger:
    """Logs a search to MLflow; a `tune_fusion.records.SearchListener`.

    The experiment is named after the space, the parent run after the search. A child run carries the trial's
    parameters, every metric once an epoch (``step`` is the epoch, from 1), ``best_<metric>`` to sort the run
    table by, and the status: FINISHED for completed trials, KILLED for stopped and interrupted ones, FAILED
    for failed and diverged ones. Values that are not finite are left out. The parent's ``best_value`` has the
    number of ended trials as its step.

    No method blocks or raises because of the store. `close` delivers what is left and says what it could not.

    Args:
        uri: the tracking URI, checked by `check_tracking`.
        record: the search; read on the caller's thread only.
        tags: tags of every run, such as the git commit; values beyond MLflow's limits are cut.
        files: files of the parent run that exist from the start, such as the space file and the layer map.
    """

    def __init__(
        self, uri: str, record: SearchRecord, *, tags: Mapping[str, str], files: Sequence[Path] = ()
    ) -> None:
        self.uri = uri
        self._record = record
        self._tags = {**_origin(), **tags, "space": record.space}
        self._files = tuple(files)
        self._store = MlflowStore(uri, record.space)
        self._delivery = Delivery(self._store)
        self._epochs_told: dict[int, int] = {}
        self._ended_trials = 0

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None as long as the store has not answered."""
        return self._store.experiment_id

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the parent run; None as long as the store has not answered."""
        return self._delivery.run_id(PARENT)

    @property
    def url(self) -> str | None:
        """Where the parent run is seen, once `ui_command` runs for a store without a server."""
        if self.experiment_id is None or self.run_id is None:
            return None
        return run_url(self.uri, self.experiment_id, self.run_id)

    def start(self) -> None:
        """Start the thread and log the parent run with its files."""
        record = self._record
        self._delivery.start()
        self._delivery.put(
            Change(
                PARENT,
                name=_cut(record.name, _LONGEST_NAME),
                started=_milliseconds(record.started),
                params=_params(
                    {"metric": record.metric, "direction": record.direction, "trials": record.planned_trials}
                ),
                tags=_cut_tags({**self._tags, "state": "running"}),
                artifacts=tuple(Artifact(path.name, path) for path in self._files),
            )
        )

    def trial_started(self, trial: TrialRecord) -> None:
        """Log a child run with the trial's parameters."""
        own = {
            "trial": str(trial.number),
            "arm": trial.arm,
            "origin": trial.origin,
            "single": _text(trial.single),
            "state": trial.state.value,
        }
        self._delivery.put(
            Change(
                trial.number,
                name=run_name(trial),
                started=_milliseconds(trial.started),
                params=_params(
                    {**trial.parameters, "switch_layer_name": trial.switch_layer_name, "arm": trial.arm}
                ),
                tags=_cut_tags({**self._tags, **own}),
            )
        )

    def epoch_ended(self, trial: TrialRecord) -> None:
        """Log the epochs of `trial` that were not logged yet."""
        points = self._new_points(trial)
        if points:
            self._delivery.put(Change(trial.number, points=points))

    def trial_ended(self, trial: TrialRecord) -> None:
        """Log how the trial ended, and how far the search has come."""
        record = self._record
        at = _milliseconds(time.time() if trial.ended is None else trial.ended)
        points = list(self._new_points(trial))
        best = trial.best_epoch(record.metric, record.direction)
        if best is not None:
            points += _points({f"best_{record.metric}": best[record.metric]}, at, int(best["epoch"]))
        tags = {"state": trial.state.value}
        tags |= {key: value for key, value in (("reason", trial.reason), ("node", trial.node)) if value}
        self._delivery.put(
            Change(
                trial.number,
                points=tuple(points),
                tags=_cut_tags(tags),
                ended=(_STATUS.get(trial.state, "KILLED"), at),
            )
        )
        self._ended_trials += 1
        value = _value(record, record.best())
        if value is not None:
            self._delivery.put(
                Change(PARENT, points=tuple(_points({"best_value": value}, at, self._ended_trials)))
            )

    def search_ended(
        self,
        status: Literal["completed", "interrupted", "failed"],
        *,
        artifacts: Sequence[Path],
        best: BestModel | None,
    ) -> None:
        """Log the search's result and end the parent run.

        `artifacts` are files of the parent run, such as the result table; `best` goes to its trial's run.
        The files must stay until `close` has returned.
        """
        if best is not None:
            self._put_best(best)
        record = self._record
        winner, single = record.best(), record.best_control()
        tags = {"state": str(status)}
        if winner is not None:
            tags["best_trial"] = str(winner.number)
        values: dict[str, float | None] = {
            "best_single_value": _value(record, single),
            "ended_trials": float(self._ended_trials),
            "duplicates": float(record.duplicates),
            "epochs": float(sum(len(trial.epochs) for trial in record.trials)),
            **{
                key: math.fsum(t.total(key) for t in record.trials)
                for key in ("train_seconds", "eval_seconds")
            },
            **{f"{name}_trials": float(count) for name, count in record.counts().items()},
        }
        at = _milliseconds(time.time())
        self._delivery.put(
            Change(
                PARENT,
                points=tuple(_points({k: v for k, v in values.items() if v is not None}, at, 0)),
                tags=_cut_tags(tags),
                artifacts=tuple(Artifact(path.name, path) for path in artifacts),
                ended=(_SEARCH_STATUS[status], at),
            )
        )

    def close(self, timeout: float | None = None) -> list[str]:
        """Deliver everything that is left and stop the thread; call it once, at the end.

        Waits at most about `timeout` seconds; None: as long as the store takes something every 30 seconds.
        Returns what could not be delivered, one sentence a problem; an empty list: everything arrived.
        """
        return self._delivery.close(timeout)

    def _new_points(self, trial: TrialRecord) -> tuple[Point, ...]:
        told = self._epochs_told.get(trial.number, 0)
        self._epochs_told[trial.number] = max(told, len(trial.epochs))
        at = _milliseconds(time.time())
        return tuple(
            point
            for epoch in range(told, len(trial.epochs))
            for point in _points(trial.epochs[epoch], at, epoch + 1)
        )

    def _put_best(self, best: BestModel) -> None:
        trial = next(trial for trial in self._record.trials if trial.number == best.trial)
        configuration = json.dumps(jsonable(trial.configuration), indent=2) + "\n"
        self._delivery.put(
            Change(
                best.trial,
                tags={"best": "true"},
                artifacts=(
                    Artifact("model/weights.safetensors", best.weights),
                    Artifact("model/config.json", lambda: configuration),
                    Artifact("model/signature.json", partial(_signature, best)),
                ),
            )
        )


def run_name(trial: TrialRecord) -> str:
    """The child run's name: ``0007 adam|sgd @3`` (low|high @switch layer), or ``0007 adam``."""
    low, high = trial.parameters.get("low.optimizer"), trial.parameters.get("high.optimizer")
    if trial.single or high is None:
        return f"{trial.number:04d} {low}"
    return f"{trial.number:04d} {low}|{high} @{trial.parameters.get('switch_layer')}"


def _signature(best: BestModel) -> str:
    from mlflow.models import infer_signature

    signature = infer_signature(best.input_example, best.output_example)
    return json.dumps(signature.to_dict(), indent=2) + "\n"


def _origin() -> dict[str, str]:
    """What the MLflow UI shows as user and source."""
    tags = {"mlflow.source.name": "tune_fusion", "mlflow.source.type": "LOCAL"}
    try:
        return {**tags, "mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user without a name
        return tags


def _value(record: SearchRecord, trial: TrialRecord | None) -> float | None:
    return None if trial is None else record.value(trial)


def _points(values: Mapping[str, float], at: int, step: int) -> list[Point]:
    return [Point(key, float(value), at, step) for key, value in values.items() if math.isfinite(value)]


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: _cut(_text(value), _LONGEST_PARAM) for key, value in values.items()}


def _cut_tags(values: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(value, _LONGEST_TAG) for key, value in values.items()}


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
