"""A search that dies, is interrupted, resumed and extended is in the store as if nothing had happened."""

from __future__ import annotations

import itertools
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from searches import (
    Acknowledged,
    content,
    doubled,
    end_epoch,
    end_trial,
    make_logger,
    metrics,
    resume,
    rows,
    runs,
)

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.changes import PARENT
from tune_fusion.tracking.mlflow_logger import BestModel, MlflowLogger
from tune_fusion.tracking.store import MlflowStore

Add = Callable[..., TrialRecord]


def two_at_a_time(record: SearchRecord, add: Add) -> Iterator[tuple[str, TrialRecord]]:
    """A search of four trials, event by event: what a listener is told, after it is in the record."""
    states = [TrialState.COMPLETED, TrialState.STOPPED, TrialState.DIVERGED, TrialState.COMPLETED]
    values = iter([0.3, 0.6, 0.5, 0.7, 0.1, 0.3, 0.6, 0.9, 0.8, 0.1])  # 0.9 is of the trial that diverges
    for pair in (0, 2):
        trials = [add(), add()]
        for trial in trials:
            yield "trial_started", trial
        for epoch, trial in itertools.product((1, 2, 3), trials):
            if trial.ended is None:
                end_epoch(trial, metrics(next(values)))
                yield "epoch_ended", trial
                if epoch == 3 - trial.number % 2:
                    end_trial(record, trial, states[trial.number], "why" if pair else "")
                    yield "trial_ended", trial


def log_in_pieces(
    uri: str, record: SearchRecord, add: Add, length: int, acknowledged: Acknowledged | None
) -> None:
    """Log the search by processes that tell of `length` events each and then are gone without a word."""
    events = two_at_a_time(record, add)
    while True:
        logger = make_logger(
            uri,
            record,
            tags={"code": "1"},
            delivered=dict(acknowledged or {}),
            acknowledge=(lambda known: None) if acknowledged is None else acknowledged,
        )
        logger.start()
        piece = list(itertools.islice(events_told(logger, events), length))
        if not piece:
            logger.search_ended("completed", artifacts=[], best=None)
        assert logger.close() == []
        if not piece:
            return


def events_told(logger: MlflowLogger, events: Iterator[tuple[str, TrialRecord]]) -> Iterator[str]:
    for name, trial in events:
        getattr(logger, name)(trial)
        yield name


@pytest.mark.parametrize(("length", "noted"), [(1, False), (1, True), (4, True)])
def test_a_search_in_pieces_is_logged_like_a_search_of_one_piece(
    database: Path, uri: str, record: SearchRecord, add_trial: Add, length: int, noted: bool, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(database.read_bytes())
    log_in_pieces(uri, record, add_trial, length, Acknowledged() if noted else None)
    record.trials.clear()
    record.ended.clear()
    log_in_pieces(f"sqlite:///{other}", record, add_trial, 1000, Acknowledged())
    assert doubled(database) == []
    assert content(database) == content(other)


def test_an_interrupted_search_goes_on(
    database: Path, uri: str, record: SearchRecord, add_trial: Add, tmp_path: Path
) -> None:
    table = tmp_path / "trials.csv"
    acknowledged = Acknowledged()
    events = two_at_a_time(record, add_trial)
    logger = make_logger(uri, record, acknowledge=acknowledged)
    logger.start()
    list(itertools.islice(events_told(logger, events), 14))
    running = [trial for trial in record.trials if trial.state is TrialState.RUNNING]
    assert [len(trial.epochs) for trial in running] == [2, 1]
    for trial in running:
        end_trial(record, trial, TrialState.INTERRUPTED, "search interrupted")
        logger.trial_ended(trial)
    table.write_text("half")
    logger.search_ended("interrupted", artifacts=[table], best=None)
    assert logger.close() == []
    parent, children = runs(uri)
    assert [run.info.status for run in (parent, *children)] == [
        *("KILLED", "FINISHED", "KILLED", "KILLED", "KILLED")
    ]
    assert {known.status for known in acknowledged.values()} == {"KILLED", "FINISHED"}
    assert children[2].data.tags["reason"] == "search interrupted"

    resume(record)
    record.planned_trials = 5
    logger = make_logger(
        uri, record, tags={"git_commit": "new"}, delivered=acknowledged, acknowledge=acknowledged
    )
    logger.start()
    assert logger.close() == []
    parent, children = runs(uri)
    assert [run.info.status for run in (parent, *children)] == [
        *("RUNNING", "FINISHED", "KILLED", "RUNNING", "RUNNING")
    ]
    assert (
        parent.data.tags.items() >= {"planned_trials": "5", "git_commit": "new", "state": "running"}.items()
    )
    assert (children[2].data.tags["state"], children[2].data.tags["reason"]) == ("running", "")

    logger = make_logger(uri, record, delivered=dict(acknowledged), acknowledge=acknowledged)
    logger.start()
    assert len(list(events_told(logger, events))) > 3
    table.write_text("whole")
    logger.search_ended("completed", artifacts=[table], best=None)
    assert logger.close() == []
    parent, children = runs(uri)
    assert [run.info.status for run in (parent, *children)] == [
        *("FINISHED", "FINISHED", "KILLED", "FAILED", "FINISHED")
    ]
    assert [run.data.tags["state"] for run in children] == ["completed", "stopped", "diverged", "completed"]
    assert [run.data.tags.get("reason") for run in children] == [None, None, "why", "why"]
    assert doubled(database) == []
    stored = {(key, trial, step): value for trial, key, step, value in rows(database, EPOCHS)}
    assert stored == {
        (key, str(trial.number), epoch): value
        for trial in record.trials
        for epoch, values in enumerate(trial.epochs, 1)
        for key, value in values.items()
    }
    curve = rows(database, "SELECT step, value FROM metrics WHERE key = 'best_value' ORDER BY step")
    assert record.ended == [1, 0, 3, 2]
    first, second, last = (record.value(record.trials[number]) for number in (1, 0, 3))
    assert None not in (first, second, last)
    assert curve == [
        (1, first),
        (2, max(first, second)),
        (3, max(first, second, last)),
        (4, max(first, second, last)),  # the last to end had diverged
    ]
    (kept,) = (database.parent / "mlartifacts").rglob("trials.csv")
    assert kept.read_text() == "whole"


EPOCHS = (
    "SELECT t.value, m.key, m.step, m.value FROM metrics AS m JOIN tags AS t ON t.run_uuid = m.run_uuid "
    "WHERE t.key = 'trial' AND m.key NOT LIKE 'best_%'"
)


def test_a_search_that_the_store_holds_costs_it_no_call(
    uri: str, record: SearchRecord, add_trial: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = Acknowledged()
    log_in_pieces(uri, record, add_trial, 1000, acknowledged)
    before = dict(acknowledged)
    assert {run: known.epochs for run, known in before.items()} == {PARENT: 4, 0: 3, 1: 2, 2: 3, 3: 2}
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(MlflowStore, "deliver", lambda *call: calls.append(call))
    logger = make_logger(uri, record, delivered=before, acknowledge=acknowledged)
    logger.start(running=False)
    logger.search_ended("completed", artifacts=[], best=None)
    assert logger.close() == []
    assert (calls, acknowledged) == ([], before)


def test_a_journal_that_lost_its_end_doubles_nothing(
    database: Path, uri: str, record: SearchRecord, add_trial: Add
) -> None:
    """The epochs come back from the trial's checkpoint, at another time."""
    acknowledged = Acknowledged()
    logger = make_logger(uri, record, acknowledge=acknowledged)
    logger.start()
    trial = add_trial()
    logger.trial_started(trial)
    end_epoch(trial, {"val_accuracy": 0.5})
    logger.epoch_ended(trial)
    assert logger.close() == []
    early = deepcopy(dict(acknowledged))
    logger = make_logger(uri, record, delivered=early)
    logger.start()
    for value in (0.6, 0.7):
        end_epoch(trial, {"val_accuracy": value})
        logger.epoch_ended(trial)
    assert logger.close() == []

    del trial.epochs[1:], trial.times[1:]
    logger = make_logger(uri, record, delivered=early)
    logger.start()
    for value in (0.6, 0.7, 0.8):
        end_epoch(trial, {"val_accuracy": value})
        trial.times[-1] += 500.0
        logger.epoch_ended(trial)
    assert logger.close() == []
    assert doubled(database) == []
    assert rows(database, "SELECT step, value FROM metrics ORDER BY step") == [
        (1, 0.5),
        (2, 0.6),
        (3, 0.7),
        (4, 0.8),
    ]


def test_an_extended_search_names_one_best_trial(
    uri: str, record: SearchRecord, add_trial: Add, tell: Callable[..., TrialRecord]
) -> None:
    acknowledged = Acknowledged()
    for _ in range(2):
        logger = make_logger(uri, record, delivered=dict(acknowledged), acknowledge=acknowledged)
        logger.start()
        best = [tell(logger) for _ in range(2)][-1]
        logger.search_ended("completed", artifacts=[], best=BestModel(best.number, []))
        assert logger.close() == []
    parent, children = runs(uri)
    assert [run.data.tags.get("best") for run in children] == [None, "false", None, "true"]
    assert (parent.info.status, parent.data.tags["best_trial"]) == ("FINISHED", "3")
    assert parent.data.metrics["ended_trials"] == 4


KILLED = """
import os, pickle, signal, sys
from mlflow.tracking import MlflowClient
from tune_fusion.tracking.mlflow_logger import MlflowLogger

uri, record, method, calls = sys.argv[1], pickle.load(sys.stdin.buffer), sys.argv[2], int(sys.argv[3])
real = getattr(MlflowClient, method)

def fatal(*values, **named):
    global calls
    answer = real(*values, **named)
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

setattr(MlflowClient, method, fatal)
logger = MlflowLogger(
    uri, record, tags={"code": "1"}, later="", acknowledge=lambda known: print(known.run, flush=True)
)
logger.start()
logger.search_ended("completed", artifacts=[], best=None)
logger.close()
"""


@pytest.mark.parametrize(
    ("method", "calls", "noted"),
    [("create_run", 2, 0), ("log_batch", 2, 1), ("set_terminated", 2, 1)],
)
def test_a_process_killed_before_it_could_note_what_the_store_took(
    database: Path,
    uri: str,
    tmp_path: Path,
    record: SearchRecord,
    add_trial: Add,
    method: str,
    calls: int,
    noted: int,
) -> None:
    list(two_at_a_time(record, add_trial))
    other = tmp_path / "other.db"
    other.write_bytes(database.read_bytes())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, uri, method, str(calls)],
        input=pickle.dumps(record),
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(killed.stdout.split()) == noted
    assert rows(database, "SELECT count(*) FROM runs WHERE name != 'template'") != [(0,)]
    for store in (uri, f"sqlite:///{other}"):
        logger = make_logger(store, record, tags={"code": "1"})
        logger.start()
        logger.search_ended("completed", artifacts=[], best=None)
        assert logger.close() == []
    assert doubled(database) == []
    assert content(database) == content(other)


def test_a_real_server_holds_once_what_is_sent_again(
    server: Any, database: Path, record: SearchRecord, add_trial: Add
) -> None:
    log_in_pieces(server.url, record, add_trial, 4, Acknowledged())
    before = content(database)
    for trial in record.trials[2:]:
        trial.times = [at + 1.0 for at in trial.times]
    logger = make_logger(server.url, record, tags={"code": "1"})
    logger.start()
    logger.search_ended("completed", artifacts=[], best=None)
    assert logger.close() == []
    assert doubled(database) == []
    assert content(database) == before
