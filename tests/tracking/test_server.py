"""Against a real MLflow server."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from searches import LATER, doubled, make_logger, rows

from tune_fusion.errors import InputError
from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.tracking.changes import PARENT, Pending, Point
from tune_fusion.tracking.mlflow_logger import BestModel, check_tracking
from tune_fusion.tracking.store import MlflowStore


def test_a_search_outlives_its_server_and_another_is_seen_on_it(
    server: Any,
    database: Path,
    uri: str,
    tmp_path: Path,
    record: SearchRecord,
    tell: Callable[..., TrialRecord],
) -> None:
    record.space = "served"
    space, weights = tmp_path / "space.yaml", tmp_path / "weights.safetensors"
    space.write_text("model: {}")
    weights.write_bytes(b"weights")
    check_tracking(server.url)
    logger = make_logger(server.url, record, tags={"git_commit": "abc"}, files=[space])
    logger.start()
    for _ in range(3):
        tell(logger)
    while logger.run_id is None:
        time.sleep(0.05)

    server.stop()
    with pytest.raises(InputError, match="cannot be reached"):
        check_tracking(server.url)
    best = [tell(logger) for _ in range(3)][-1]
    logger.search_ended("completed", artifacts=[], best=BestModel(best.number, [weights]))

    server.start()
    assert logger.close() == []
    assert logger.url == f"{server.url}/#/experiments/{logger.experiment_id}/runs/{logger.run_id}"
    client = MlflowClient(server.url)
    found = client.search_runs([logger.experiment_id])
    assert len(found) == 7
    assert {run.info.status for run in found} == {"FINISHED"}
    for trial in record.trials:
        (run,) = (run for run in found if run.data.tags.get("trial") == str(trial.number))
        assert run.data.tags["mlflow.parentRunId"] == logger.run_id
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert [(metric.step, metric.value) for metric in history] == [
            (epoch, values["val_loss"]) for epoch, values in enumerate(trial.epochs, 1)
        ]
        files = {file.path for file in client.list_artifacts(run.info.run_id, "model")}
        assert files == ({"model/weights.safetensors"} if trial is best else set())
    assert [file.path for file in client.list_artifacts(logger.run_id)] == ["space.yaml"]
    assert not (database.parent / "mlartifacts").exists()
    assert doubled(database) == []

    direct = make_logger(uri, SearchRecord("d", "direct", "val_loss", "min", 1, 1.0), files=[space])
    direct.start()
    assert direct.close() == []
    shown = f"{server.url}/get-artifact?path=space.yaml&run_uuid={direct.run_id}"
    with urllib.request.urlopen(shown, timeout=30) as answer:
        assert answer.read() == b"model: {}"


def test_the_same_point_at_the_same_time_is_stored_once(server: Any, database: Path) -> None:
    """As after an answer that was lost; values that are hard to write in decimals among them."""
    points = [Point(key, 1 / (3 + step), 10 + step, step) for key in ("a", "b") for step in range(1, 50)]
    parent = Pending(PARENT, "abc", name="search", started=1)
    with MlflowStore(server.url, "digits") as store:
        for sent in (points[:60], points[40:], points):
            store.deliver(parent, None)
            store.deliver(Pending(0, "abc", run_id=parent.run_id, points=list(sent)), parent)
    stored = rows(database, "SELECT key, value, timestamp, step FROM metrics")
    assert sorted(stored) == sorted((point.key, point.value, point.at, point.step) for point in points)


def test_a_server_that_stays_away_is_given_up(record: SearchRecord, tell: Callable[..., TrialRecord]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    logger = make_logger(url, record)
    logger.start()
    tell(logger)
    logger.search_ended("completed", artifacts=[], best=None)
    (problem,) = logger.close(hurried=lambda: True)
    assert problem.startswith(f"{url} did not take everything about '")
    assert "refused" in problem
    assert problem.endswith(f"; it is kept, deliver it later with: {LATER}")
    assert logger.url is None
