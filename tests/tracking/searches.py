"""Searches for the tests of this folder: how their records grow, how they are logged, what a store holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.mlflow_logger import Delivered, MlflowLogger

METRICS = ("train_loss", "val_loss", "val_accuracy", "low.lr", "high.lr")
LATER = "python -m tune_fusion.sync first"


def metrics(value: float) -> dict[str, float]:
    return {key: value + i for i, key in enumerate(METRICS)}


def end_epoch(trial: TrialRecord, values: dict[str, float]) -> None:
    trial.epochs.append(values)
    trial.times.append(trial.started + 10.0 * len(trial.epochs))


def end_trial(record: SearchRecord, trial: TrialRecord, state: TrialState, reason: str = "") -> None:
    """As a search does it: what was interrupted has not ended for good."""
    trial.state, trial.reason, trial.ended = state, reason, trial.started + 50.0
    if state is not TrialState.INTERRUPTED:
        record.ended.append(trial.number)


def resume(record: SearchRecord) -> None:
    """As a search does it: what was interrupted runs again."""
    for trial in record.trials:
        if trial.state is TrialState.INTERRUPTED:
            trial.state, trial.ended, trial.reason = TrialState.RUNNING, None, ""


def make_logger(uri: str, record: SearchRecord, **options: Any) -> MlflowLogger:
    return MlflowLogger(uri, record, **{"tags": {}, "later": LATER, **options})


class Acknowledged(dict[int, Delivered]):
    """What a store is known to hold, kept as a search keeps it."""

    def __call__(self, delivered: Delivered) -> None:
        self[delivered.run] = delivered


def runs(uri: str, experiment: str = "digits") -> tuple[Run, list[Run]]:
    """The parent run of the only search in the store, and its children in the order of their trials."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parents[0].info.run_id}
    return parents[0], sorted(children, key=lambda run: int(run.data.tags["trial"]))


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def content(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything of the runs in a store, without the ids that are new in each."""
    run = "(SELECT value FROM tags AS t WHERE t.run_uuid = r.run_uuid AND t.key = 'tune_fusion.key')"
    return {
        "runs": rows(database, f"SELECT {run}, name, status, start_time, end_time FROM runs AS r ORDER BY 1"),
        "metrics": rows(
            database, f"SELECT {run}, key, step, value, timestamp FROM metrics AS r ORDER BY 1, 2, 3, 4, 5"
        ),
        "params": rows(database, f"SELECT {run}, key, value FROM params AS r ORDER BY 1, 2"),
        "tags": rows(
            database,
            f"SELECT {run}, key, value FROM tags AS r WHERE key != 'mlflow.parentRunId' ORDER BY 1, 2",
        ),
    }


def doubled(database: Path) -> list[tuple[Any, ...]]:
    """What a store holds more than once: steps of a metric, and runs."""
    return rows(
        database, "SELECT run_uuid, key, step FROM metrics GROUP BY 1, 2, 3 HAVING count(*) > 1"
    ) + rows(database, "SELECT value FROM tags WHERE key = 'tune_fusion.key' GROUP BY 1 HAVING count(*) > 1")
