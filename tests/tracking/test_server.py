"""Against a real MLflow server."""

from __future__ import annotations

import socket
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from tune_fusion.errors import InputError
from tune_fusion.records import SearchRecord, TrialRecord
from tune_fusion.tracking.mlflow_logger import BestModel, MlflowLogger, check_tracking


def test_a_search_outlives_its_server_and_another_is_seen_on_it(
    server: Any,
    database: Path,
    uri: str,
    tmp_path: Path,
    record: SearchRecord,
    tell: Callable[..., TrialRecord],
) -> None:
    record.space = "served"
    space, weights = tmp_path / "space.yaml", tmp_path / "best.safetensors"
    space.write_text("model: {}")
    weights.write_bytes(b"weights")
    check_tracking(server.url)
    logger = MlflowLogger(server.url, record, tags={"git_commit": "abc"}, files=[space])
    logger.start()
    for _ in range(3):
        tell(logger)
    while logger.run_id is None:
        time.sleep(0.05)

    server.stop()
    with pytest.raises(InputError, match="cannot be reached"):
        check_tracking(server.url)
    best = [tell(logger) for _ in range(3)][-1]
    model = BestModel(best.number, weights, np.zeros((1, 1, 8, 8)), np.zeros((1, 10)))
    logger.search_ended("completed", artifacts=[], best=model)

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
        names = {"weights.safetensors", "config.json", "signature.json"} if trial is best else set()
        assert files == {f"model/{name}" for name in names}
    assert [file.path for file in client.list_artifacts(logger.run_id)] == ["space.yaml"]
    assert not (database.parent / "mlartifacts").exists()
    with closing(sqlite3.connect(database)) as connection:
        doubled = connection.execute(
            "SELECT 1 FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
        ).fetchall()
    assert doubled == []

    direct = MlflowLogger(uri, SearchRecord("d", "direct", "val_loss", "min", 1, 1.0), tags={}, files=[space])
    direct.start()
    assert direct.close() == []
    shown = f"{server.url}/get-artifact?path=space.yaml&run_uuid={direct.run_id}"
    with urllib.request.urlopen(shown, timeout=30) as answer:
        assert answer.read() == b"model: {}"


def test_a_server_that_stays_away_is_given_up(record: SearchRecord, tell: Callable[..., TrialRecord]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    logger = MlflowLogger(url, record, tags={})
    logger.start()
    tell(logger)
    logger.search_ended("completed", artifacts=[], best=None)
    (problem,) = logger.close(timeout=2.0)
    assert problem.startswith(f"{url} did not take everything about '")
    assert "refused" in problem
    assert logger.url is None
