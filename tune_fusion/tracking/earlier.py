"""Reading an earlier search back from a tracking store, for one that is to start with its results."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tune_fusion.records import TrialRecord, TrialState
from tune_fusion.space.configuration import Configuration
from tune_fusion.tracking.contents import CONFIGURATION_TAG
from tune_fusion.tracking.store import reading

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_PARENT_TAG = "mlflow.parentRunId"


class UnreadableError(Exception):
    """The store does not answer, or a run there is not what a search logs; the message says what."""


@dataclass(frozen=True)
class LoggedSearch:
    """What a store holds of a search."""

    name: str
    space: str
    """The space file as run."""
    metric: str
    data: str
    """The data's fingerprint."""
    trials: list[TrialRecord]
    """In order of their numbers; metrics of single layers are left out."""


def read_search(uri: str, experiment: str, name: str) -> LoggedSearch | None:
    """The search whose parent run has the id or, in the experiment named `experiment`, the name `name`.

    None where the store at `uri` has no such run. Imports MLflow. Raises UnreadableError.
    """
    with reading(uri) as client:
        if client is None:
            return None
        try:
            run = _find(client, experiment, name)
            return None if run is None else _search(client, run)
        except Exception as error:
            if isinstance(error, UnreadableError):
                raise
            line = (str(error).strip().splitlines() or [""])[0][:300]
            raise UnreadableError(f"{type(error).__name__}: {line}") from error


def _find(client: MlflowClient, experiment: str, name: str) -> Run | None:
    """The parent run."""
    found = client.get_experiment_by_name(experiment)
    named = [] if found is None else _runs(client, found.experiment_id, f"attributes.run_name = '{name}'")
    parents = [run for run in named if _PARENT_TAG not in run.data.tags]
    if len(parents) > 1:
        ids = ", ".join(run.info.run_id for run in parents)
        raise UnreadableError(
            f"{len(parents)} runs of experiment {experiment!r} have this name; give one's id: {ids}"
        )
    return parents[0] if parents else _by_id(client, name)


def _by_id(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    if _PARENT_TAG in run.data.tags:
        raise UnreadableError(f"this is the run of one trial; its search's is {run.data.tags[_PARENT_TAG]}")
    return run


def _search(client: MlflowClient, run: Run) -> LoggedSearch:
    tags, params = run.data.tags, run.data.params
    if "metric" not in params or "data_fingerprint" not in tags:
        raise UnreadableError("this run was not logged by a search")
    children = _runs(client, run.info.experiment_id, f"tags.`{_PARENT_TAG}` = '{run.info.run_id}'")
    # A confirmation is nested in its search's run, too, but is no trial of it.
    trials = [_trial(client, child, params["metric"]) for child in children if "trial" in child.data.tags]
    with tempfile.TemporaryDirectory() as folder:
        space = Path(client.download_artifacts(run.info.run_id, "space.yaml", folder)).read_text(
            encoding="utf-8"
        )
    return LoggedSearch(
        name=str(run.info.run_name),
        space=space,
        metric=params["metric"],
        data=tags["data_fingerprint"],
        trials=sorted(trials, key=lambda trial: trial.number),
    )


def _trial(client: MlflowClient, run: Run, metric: str) -> TrialRecord:
    tags = run.data.tags
    try:
        configuration = Configuration.from_dict(json.loads(tags[CONFIGURATION_TAG]))
    except (KeyError, ValueError) as error:
        raise UnreadableError(f"run {run.info.run_name!r} has no whole tag {CONFIGURATION_TAG!r}") from error
    return TrialRecord(
        number=int(tags["trial"]),
        arm=tags["arm"],
        origin="default" if tags["origin"] == "default" else "sampled",
        configuration=configuration.to_dict(),
        parameters=dict(configuration.flat()),
        switch_layer_name=run.data.params["switch_layer_name"],
        single=tags["single"] == "true",
        max_epochs=configuration.training.epochs,
        started=run.info.start_time / 1000,
        state=TrialState(tags["state"]),
        epochs=_epochs(client, run, metric),
        infeasible=tags.get("infeasible") == "true",
        ended=None if run.info.end_time is None else run.info.end_time / 1000,
        reason=tags.get("reason", ""),
    )


def _epochs(client: MlflowClient, run: Run, metric: str) -> list[dict[str, float]]:
    """The metrics of each epoch, one call of the store a metric."""
    epochs: list[dict[str, float]] = []
    for key in run.data.metrics:
        if key == f"best_{metric}" or key.startswith("layer_"):
            continue
        for point in client.get_metric_history(run.info.run_id, key):
            epochs += [{} for _ in range(point.step - len(epochs))]
            epochs[point.step - 1][key] = point.value
    return epochs


def _runs(client: MlflowClient, experiment_id: str, where: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment_id], where, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
