from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from searches import doubled, end_epoch, end_trial, make_logger, rows, runs

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.mlflow_logger import BestModel
from tune_fusion.tracking.store import MlflowStore

MODEL_FILES = ("weights.safetensors", "config.json", "signature.json")
TAGS = {"git_commit": "abc123", "version.torch": "2.13.0"}


def artifacts(uri: str, run: Run, folder: str | None = None) -> set[str]:
    return {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, folder)}


def best_model(trial: TrialRecord, folder: Path) -> BestModel:
    (folder / "model").mkdir()
    files = [folder / "model" / name for name in MODEL_FILES]
    for file in files:
        file.write_text(f"content of {file.name}")
    return BestModel(trial.number, files)


def test_a_whole_search(
    uri: str, database: Path, tmp_path: Path, record: SearchRecord, tell: Callable[..., TrialRecord]
) -> None:
    space, layers, table = (tmp_path / name for name in ("space.yaml", "layers.json", "trials.csv"))
    for file in (space, layers, table):
        file.write_text(f"content of {file.name}")
    logger = make_logger(uri, record, tags=TAGS, files=[space, layers])
    logger.start()
    tell(logger, TrialState.COMPLETED, single=True)
    tell(logger, TrialState.STOPPED, epochs=1)
    tell(logger, TrialState.DIVERGED, epochs=2, reason="loss not finite in epoch 3")
    tell(logger, TrialState.FAILED, epochs=0, reason="x" * 9000)
    tell(logger, TrialState.INTERRUPTED, epochs=1)
    best = tell(logger, TrialState.COMPLETED)
    logger.search_ended("completed", artifacts=[table], best=best_model(best, tmp_path))
    assert logger.close() == []

    parent, children = runs(uri)
    assert (parent.info.run_id, parent.info.experiment_id) == (logger.run_id, logger.experiment_id)
    assert logger.url == f"http://127.0.0.1:5000/#/experiments/{logger.experiment_id}/runs/{logger.run_id}"
    assert (parent.info.run_name, parent.info.status) == ("first", "FINISHED")
    assert parent.info.start_time == 1_700_000_000_000
    assert parent.data.params == {"metric": "val_accuracy", "direction": "max"}
    assert (
        parent.data.tags.items()
        >= {**TAGS, "space": "digits", "state": "completed", "planned_trials": "4"}.items()
    )
    assert parent.data.tags["best_trial"] == str(best.number)
    assert parent.data.metrics["best_value"] == record.value(best)
    assert parent.data.metrics["best_single_value"] == record.value(record.trials[0])
    assert parent.data.metrics["completed_trials"] == 2
    assert parent.data.metrics["epochs"] == 10
    assert artifacts(uri, parent) == {"space.yaml", "layers.json", "trials.csv"}

    assert [run.info.status for run in children] == [
        *("FINISHED", "KILLED", "FAILED", "FAILED", "KILLED", "FINISHED")
    ]
    assert [run.info.run_name for run in children[:2]] == ["0000 adam", "0001 adam|sgd @3"]
    for run, trial in zip(children, record.trials, strict=True):
        tags = {"state": trial.state.value, "arm": trial.arm, "origin": "sampled", "space": "digits", **TAGS}
        assert run.data.tags.items() >= tags.items()
        assert run.data.tags["single"] == str(trial.single).lower()
        assert run.data.tags.get("reason", "") == (
            trial.reason if len(trial.reason) < 9000 else "x" * 7999 + "…"
        )
        assert (run.info.start_time, run.info.end_time) == (
            round(trial.started * 1000),
            round(trial.ended * 1000),
        )
        final = {**trial.epochs[-1], "best_val_accuracy": record.value(trial)} if trial.epochs else {}
        assert run.data.metrics == final
    assert children[1].data.params == {
        "switch_layer": "3",
        "switch_layer_name": "blocks.3",
        "arm": "fusion",
        "low.optimizer": "adam",
        "low.lr": "0.001",
        "low.betas": "[0.9, 0.999]",
        "high.optimizer": "sgd",
        "high.lr": "0.1",
        "high.nesterov": "true",
        "training.clip_norm": "none",
    }

    winner = children[-1]
    assert [run.data.tags.get("best") for run in children] == [None] * 5 + ["true"]
    assert [bool(artifacts(uri, run)) for run in children] == [False] * 5 + [True]
    assert artifacts(uri, winner, "model") == {f"model/{name}" for name in MODEL_FILES}
    stored = database.parent / "mlartifacts" / "digits" / winner.info.run_id / "artifacts" / "model"
    assert {file.name: file.read_text() for file in stored.iterdir()} == {
        name: f"content of {name}" for name in MODEL_FILES
    }

    expected = {
        (run.info.run_id, key, epoch + 1, value)
        for run, trial in zip(children, record.trials, strict=True)
        for epoch, values in enumerate(trial.epochs)
        for key, value in values.items()
    }
    stored_rows = rows(database, "SELECT run_uuid, key, step, value FROM metrics WHERE key NOT LIKE 'best_%'")
    assert expected <= set(stored_rows)
    assert len([row for row in stored_rows if row[0] != parent.info.run_id]) == len(expected)
    assert doubled(database) == []


def test_a_best_trial_that_another_search_ran_is_told_by_the_parent_run(
    uri: str,
    record: SearchRecord,
    add_trial: Callable[..., TrialRecord],
    tell: Callable[..., TrialRecord],
    tmp_path: Path,
) -> None:
    inherited = add_trial(
        TrialState.COMPLETED, source="earlier", source_trial=12, epochs=[{"val_accuracy": 9.0}]
    )
    record.trials.remove(inherited)
    inherited.number = -1
    record.inherited.append(inherited)
    model = tmp_path / "weights.safetensors"
    model.touch()
    logger = make_logger(uri, record)
    logger.start()
    tell(logger)
    logger.search_ended("completed", artifacts=[], best=BestModel(-1, [model]))
    assert logger.close() == []
    parent, (child,) = runs(uri)
    assert child.data.tags["trial"] == "0"
    assert "best" not in child.data.tags
    assert (parent.data.tags["best_trial"], parent.data.metrics["best_value"]) == ("trial 12 of earlier", 9.0)
    assert artifacts(uri, parent, "model") == {"model/weights.safetensors"}


@pytest.mark.parametrize(("outcome", "status"), [("interrupted", "KILLED"), ("failed", "FAILED")])
def test_a_search_that_did_not_complete(
    uri: str, record: SearchRecord, tell: Callable[..., TrialRecord], outcome: str, status: str
) -> None:
    logger = make_logger(uri, record)
    logger.start()
    tell(logger, TrialState.INTERRUPTED, epochs=0)
    logger.search_ended(outcome, artifacts=[], best=None)
    assert logger.close() == []
    parent, (child,) = runs(uri)
    assert (parent.info.status, parent.data.tags["state"]) == (status, outcome)
    assert "best_trial" not in parent.data.tags
    assert "best_value" not in parent.data.metrics
    assert (child.info.status, child.data.metrics) == ("KILLED", {})


def test_nothing_is_lost_when_closed_right_after_many_events(
    uri: str, database: Path, record: SearchRecord, tell: Callable[..., TrialRecord]
) -> None:
    logger = make_logger(uri, record, tags=TAGS)
    logger.start()
    for _ in range(5):
        tell(logger, epochs=100)
    logger.search_ended("completed", artifacts=[], best=None)
    assert logger.close() == []
    parent, children = runs(uri)
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    counted = rows(
        database,
        "SELECT count(*), count(DISTINCT run_uuid || key || step), min(step), max(step) FROM metrics "
        "WHERE key = 'val_loss'",
    )
    assert counted == [(500, 500, 1, 100)]


def test_an_epoch_told_twice_or_late_is_logged_once(
    uri: str, database: Path, record: SearchRecord, add_trial: Callable[..., TrialRecord]
) -> None:
    logger = make_logger(uri, record)
    logger.start()
    trial = add_trial()
    logger.trial_started(trial)
    end_epoch(trial, {"val_accuracy": 0.5})
    end_epoch(trial, {"val_accuracy": 0.6})
    logger.epoch_ended(trial)
    logger.epoch_ended(trial)
    end_epoch(trial, {"val_accuracy": 0.4, "val_loss": float("nan"), "train_loss": float("inf")})
    end_trial(record, trial, TrialState.DIVERGED)
    logger.epoch_ended(trial)
    logger.trial_ended(trial)
    assert logger.close() == []
    logged = rows(database, "SELECT key, step, value FROM metrics WHERE key != 'best_value' ORDER BY 1, 2")
    assert logged == [
        ("best_val_accuracy", 2, 0.6),
        ("val_accuracy", 1, 0.5),
        ("val_accuracy", 2, 0.6),
        ("val_accuracy", 3, 0.4),
    ]


def test_what_is_told_is_copied(
    uri: str, record: SearchRecord, add_trial: Callable[..., TrialRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = threading.Event()
    connect = MlflowStore._connect
    monkeypatch.setattr(MlflowStore, "_connect", lambda store: (changed.wait(60), connect(store))[1])
    logger = make_logger(uri, record)
    logger.start()
    trial = add_trial()
    logger.trial_started(trial)
    end_epoch(trial, {"val_accuracy": 0.5})
    logger.epoch_ended(trial)
    trial.parameters["low.lr"] = 99.0
    trial.epochs[0]["val_accuracy"] = 99.0
    changed.set()
    assert logger.close() == []
    _, (child,) = runs(uri)
    assert child.data.params["low.lr"] == "0.001"
    assert child.data.metrics["val_accuracy"] == 0.5


def test_a_running_trial_can_be_watched(
    uri: str, record: SearchRecord, add_trial: Callable[..., TrialRecord]
) -> None:
    logger = make_logger(uri, record)
    logger.start()
    trial = add_trial()
    logger.trial_started(trial)
    end_epoch(trial, {"val_accuracy": 0.5})
    logger.epoch_ended(trial)
    client = MlflowClient(uri)
    for _ in range(300):
        experiment = client.get_experiment_by_name("digits")
        found = client.search_runs([experiment.experiment_id], "tags.trial = '0'") if experiment else []
        if found and found[0].data.metrics:
            break
        time.sleep(0.1)
    assert found[0].info.status == "RUNNING"
    assert found[0].data.metrics == {"val_accuracy": 0.5}
    end_epoch(trial, {"val_accuracy": 0.7})
    logger.epoch_ended(trial)
    end_trial(record, trial, TrialState.COMPLETED)
    logger.trial_ended(trial)
    assert logger.close() == []
    history = client.get_metric_history(found[0].info.run_id, "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.7)]


def test_two_searches_share_an_experiment_and_a_deleted_one_comes_back(
    uri: str, record: SearchRecord, tell: Callable[..., TrialRecord]
) -> None:
    for name in ("one", "two"):
        record.name = record.key = name
        logger = make_logger(uri, record)
        logger.start()
        logger.search_ended("completed", artifacts=[], best=None)
        assert logger.close() == []
        MlflowClient(uri).delete_experiment(logger.experiment_id)
    MlflowClient(uri).restore_experiment(logger.experiment_id)
    found = MlflowClient(uri).search_runs([logger.experiment_id])
    assert {run.info.run_name for run in found} == {"one", "two"}


def test_artifacts_lie_beside_a_database_with_an_odd_path(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: SearchRecord
) -> None:
    odd = tmp_path / "my runs #1"
    odd.mkdir()
    (odd / "mlflow.db").write_bytes(template.read_bytes())
    (tmp_path / "space.yaml").write_text("model: {}")
    monkeypatch.chdir(odd)
    logger = make_logger("sqlite:///mlflow.db", record, tags={}, files=[tmp_path / "space.yaml"])
    monkeypatch.chdir(tmp_path)
    logger.start()
    assert logger.close() == []
    (stored,) = odd.rglob("space.yaml")
    assert stored.relative_to(odd).parts[:2] == ("mlartifacts", "digits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my runs #1", "space.yaml"]


def test_a_missing_file_is_a_problem_and_costs_only_itself(
    uri: str, tmp_path: Path, record: SearchRecord, tell: Callable[..., TrialRecord]
) -> None:
    logger = make_logger(uri, record)
    logger.start()
    tell(logger)
    logger.search_ended("completed", artifacts=[tmp_path / "missing.csv"], best=None)
    (problem,) = logger.close()
    assert "run 'first'" in problem
    assert "missing.csv" in problem
    parent, (child,) = runs(uri)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


SEARCH = """
import sys, time
from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.mlflow_logger import MlflowLogger
record = SearchRecord(sys.argv[2], "digits", "val_accuracy", "max", 1, time.time())
logger = MlflowLogger(sys.argv[1], record, tags={}, later="")
logger.start()
trial = TrialRecord(0, "fusion", "sampled", {}, {"low.optimizer": "adam"}, "", True, 1, time.time())
record.trials.append(trial)
logger.trial_started(trial)
trial.epochs.append({"val_accuracy": 0.5})
trial.times.append(time.time())
trial.state, trial.ended = TrialState.COMPLETED, time.time()
record.ended.append(0)
logger.trial_ended(trial)
logger.search_ended("completed", artifacts=[], best=None)
problems = logger.close()
assert not problems, problems
"""


def test_two_first_searches_at_once_on_a_fresh_file_without_a_word(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/fresh.db"
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "default::UserWarning", "-c", SEARCH, uri, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        for name in ("one", "two")
    ]
    assert [process.communicate()[0] for process in started] == ["", ""]
    assert [process.returncode for process in started] == [0, 0]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in found) == ["0000 adam", "0000 adam", "one", "two"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert [path.name for path in tmp_path.iterdir()] == ["fresh.db"]
