from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from searches import LATER, Acknowledged, doubled, end_epoch, end_trial, make_logger, metrics, resume, runs

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking import delivery as delivery_module
from tune_fusion.tracking.changes import PARENT
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.tracking.sync import Synced, sync

Tell = Callable[..., TrialRecord]


@pytest.fixture
def away() -> str:
    """Where no store is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def synced(uri: str, record: SearchRecord, status: Any, acknowledged: Acknowledged, **options: Any) -> Synced:
    return sync(
        uri, record, status, tags={}, later=LATER, delivered=acknowledged, acknowledge=acknowledged, **options
    )


def test_a_search_whose_store_was_away_is_brought_to_it_once(
    uri: str, database: Path, away: str, record: SearchRecord, tell: Tell, tmp_path: Path
) -> None:
    acknowledged = Acknowledged()
    logger = make_logger(away, record, acknowledge=acknowledged, offline=True)
    logger.start()
    tell(logger)
    best = tell(logger, epochs=2)
    files = [tmp_path / name for name in ("space.yaml", "trials.csv", "weights.safetensors")]
    for file in files:
        file.write_text(file.name)
    space, table, weights = files
    model = BestModel(best.number, [weights])
    logger.search_ended("completed", artifacts=[table], best=model)
    (problem,) = logger.close()
    assert problem.startswith(f"{away} did not take everything about '")
    assert problem.endswith(f"; it is kept, deliver it later with: {LATER}")
    assert acknowledged == {}

    first = synced(uri, record, "completed", acknowledged, files=[space], artifacts=[table], best=model)
    assert first == Synced(runs=3, epochs=5, problems=[])
    again = synced(uri, record, "completed", acknowledged, files=[space], artifacts=[table], best=model)
    assert again == Synced(runs=0, epochs=0, problems=[])
    parent, children = runs(uri)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert {file.name for file in (database.parent / "mlartifacts").rglob("*.*") if file.is_file()} == {
        *("space.yaml", "trials.csv", "weights.safetensors")
    }
    assert doubled(database) == []


def test_only_what_is_missing_is_brought(
    uri: str, database: Path, record: SearchRecord, tell: Tell, add_trial: Tell
) -> None:
    acknowledged = Acknowledged()
    logger = make_logger(uri, record, acknowledge=acknowledged)
    logger.start()
    tell(logger)
    trial = add_trial()
    end_epoch(trial, metrics(0.1))
    logger.epoch_ended(trial)
    assert logger.close() == []
    end_epoch(trial, metrics(0.2))
    end_trial(record, trial, TrialState.STOPPED)
    assert synced(uri, record, None, acknowledged) == Synced(runs=2, epochs=1, problems=[])
    parent, children = runs(uri)
    assert [run.info.status for run in (parent, *children)] == ["RUNNING", "FINISHED", "KILLED"]
    assert acknowledged[PARENT].epochs == 2
    assert synced(uri, record, "interrupted", acknowledged) == Synced(runs=1, epochs=0, problems=[])
    assert runs(uri)[0].info.status == "KILLED"
    assert doubled(database) == []


def test_a_search_that_was_interrupted_twice_has_its_second_result(
    uri: str, database: Path, record: SearchRecord, tell: Tell, add_trial: Tell
) -> None:
    acknowledged = Acknowledged()
    trial = add_trial()
    end_epoch(trial, metrics(0.1))
    end_trial(record, trial, TrialState.INTERRUPTED, "search interrupted")
    assert synced(uri, record, "interrupted", acknowledged) == Synced(runs=2, epochs=1, problems=[])
    resume(record)
    end_epoch(trial, metrics(0.2))
    end_trial(record, trial, TrialState.INTERRUPTED, "search interrupted")
    assert synced(uri, record, "interrupted", acknowledged) == Synced(runs=1, epochs=1, problems=[])
    parent, (child,) = runs(uri)
    assert parent.data.metrics["epochs"] == 2
    assert (child.info.status, child.data.tags["state"]) == ("KILLED", "interrupted")
    resume(record)
    end_epoch(trial, metrics(0.3))
    end_trial(record, trial, TrialState.STOPPED)
    assert synced(uri, record, "completed", acknowledged) == Synced(runs=2, epochs=1, problems=[])
    _, (child,) = runs(uri)
    assert (child.info.status, child.data.tags["state"]) == ("KILLED", "stopped")
    assert doubled(database) == []


def test_a_store_that_is_still_away_is_a_problem(
    away: str, record: SearchRecord, add_trial: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "PATIENCE", 0.2)
    acknowledged = Acknowledged()
    trial = add_trial()
    end_epoch(trial, metrics(0.1))
    end_trial(record, trial, TrialState.COMPLETED)
    done = synced(away, record, "completed", acknowledged)
    assert (done.runs, done.epochs) == (0, 0)
    (problem,) = done.problems
    assert problem.endswith(LATER)
    assert acknowledged == {}
