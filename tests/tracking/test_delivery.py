"""The delivery thread against a store that fails in every way."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from sqlalchemy.exc import OperationalError

from tune_fusion.tracking import delivery as delivery_module
from tune_fusion.tracking.changes import PARENT, Change, Delivered, Pending, Point
from tune_fusion.tracking.delivery import Delivery
from tune_fusion.tracking.store import MlflowStore, passes

KEPT = "; it is kept, deliver it later with: sync first"


class FakeStore(MlflowStore):
    """Keeps what it takes, calls `fault` before it does, and notes every attempt."""

    def __init__(self, fault: Callable[[Pending], None] = lambda run: None) -> None:
        super().__init__("http://me:secret@store", "experiment")
        self.fault = fault
        self.attempts: list[int] = []
        self.taken: list[Pending] = []

    def __enter__(self) -> Self:
        return self

    def deliver(self, run: Pending, parent: Pending | None) -> None:
        self.attempts.append(run.number)
        self.fault(run)
        self.taken.append(deepcopy(run))
        run.run_id = run.run_id or f"id {run.number}"
        run.status = run.ended[0] if run.ended else None if run.reopen else run.status
        run.params, run.tags, run.points, run.artifacts, run.reopen, run.ended = {}, {}, [], [], False, None

    def points(self, number: int) -> list[Point]:
        return [point for run in self.taken if run.number == number for point in run.points]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(delivery_module, "LAST_RETRY", 0.02)
    monkeypatch.setattr(delivery_module, "CLOSING_RETRY", 0.02)
    monkeypatch.setattr(delivery_module, "PATIENCE", 0.3)
    monkeypatch.setattr(delivery_module, "LONGEST_CALL", 0.3)


def point(step: int) -> Point:
    return Point("val_loss", step / 10, 1000 + step, step)


def make(store: MlflowStore, delivered: Mapping[int, Delivered] | None = None, **options: Any) -> Delivery:
    quiet: dict[str, Any] = {"acknowledge": lambda delivered: None, "later": "sync first"}
    return Delivery(store, "abc", delivered or {}, **{**quiet, **options})


def started(store: FakeStore, **options: Any) -> Delivery:
    delivery = make(store, **options)
    delivery.start()
    delivery.put(Change(PARENT, name="search", started=1))
    return delivery


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the thread did not get there")


class Fault:
    """Raises `error` for the runs in `of` as long as it is on."""

    def __init__(self, error: Exception, of: set[int] | None = None) -> None:
        self.error, self.of, self.on = error, of, True

    def __call__(self, run: Pending) -> None:
        if self.on and (self.of is None or run.number in self.of):
            raise self.error


def test_changes_of_a_trial_are_merged_until_it_ends() -> None:
    gate = threading.Event()
    store = FakeStore(lambda run: gate.wait(10) and None)
    delivery = started(store)
    delivery.put(Change(0, name="0000", started=5, params={"lr": "1"}, tags={"state": "running"}))
    for step in (1, 2, 3):
        delivery.put(Change(0, points=(point(step),)))
    delivery.put(Change(0, tags={"state": "completed"}, ended=("FINISHED", 9)))
    gate.set()
    assert delivery.close() == []
    assert store.attempts == [PARENT, 0]
    (run,) = (run for run in store.taken if run.number == 0)
    assert (run.name, run.started, run.params, run.tags) == ("0000", 5, {"lr": "1"}, {"state": "completed"})
    assert (run.points, run.ended) == ([point(1), point(2), point(3)], ("FINISHED", 9))
    assert delivery.run_id(0) == "id 0"
    assert delivery.run_id(7) is None


def test_a_failing_store_is_tried_until_it_takes_everything() -> None:
    fault = Fault(ConnectionRefusedError("away"))
    store = FakeStore(fault)
    delivery = started(store)
    for number in range(5):
        delivery.put(Change(number, name=str(number), points=(point(1),), ended=("FINISHED", 9)))
    wait_for(lambda: len(store.attempts) > 10)
    assert store.taken == []
    fault.on = False
    assert delivery.close() == []
    assert sorted(run.number for run in store.taken) == [PARENT, 0, 1, 2, 3, 4]


def test_one_bad_run_holds_up_no_other() -> None:
    store = FakeStore(Fault(ConnectionError("always here"), of={1}))
    delivery = started(store)
    for number in range(4):
        delivery.put(Change(number, name=f"run {number}", points=(point(1),), ended=("FINISHED", 9)))
    (problem,) = delivery.close()
    assert problem == (
        "http://me:***@store did not take everything about 'run 1': ConnectionError: always here" + KEPT
    )
    assert sorted(run.number for run in store.taken) == [PARENT, 0, 2, 3]


def test_a_refused_part_is_dropped_and_the_status_still_arrives() -> None:
    def fault(run: Pending) -> None:
        if run.number == 0 and run.points:
            raise MlflowException("no such key, see http://me:secret@store\nmore", INVALID_PARAMETER_VALUE)

    store = FakeStore(fault)
    delivery = started(store)
    delivery.put(Change(0, name="0000", points=(point(1),), ended=("FINISHED", 9)))
    assert delivery.close() == [
        "http://me:***@store refused a part of run '0000': "
        "MlflowException: no such key, see http://me:***@store"
    ]
    assert store.taken[-1].ended == ("FINISHED", 9)


def test_a_store_that_refuses_the_search_itself_is_left_alone() -> None:
    store = FakeStore(Fault(MlflowException("schema is too old", INVALID_PARAMETER_VALUE)))
    delivery = started(store)
    wait_for(lambda: store.attempts == [PARENT])
    wait_for(lambda: bool(delivery._problems))
    for step in range(1, 50):
        delivery.put(Change(0, name="0000", points=(point(step),)))
    (problem,) = delivery.close()
    assert problem == "nothing was logged to http://me:***@store: MlflowException: schema is too old" + KEPT
    assert store.attempts == [PARENT]


@pytest.mark.parametrize("hurried", [False, True])
def test_close_gives_up_on_a_store_that_stays_away(hurried: bool) -> None:
    store = FakeStore(Fault(TimeoutError("no answer")))
    delivery = started(store)
    for number in range(7):
        delivery.put(Change(number, name=f"{number:04d}", points=(point(1),)))
    (problem,) = delivery.close(lambda: hurried)
    assert "did not take everything about" in problem
    assert f"and 3 more: TimeoutError: no answer{KEPT}" in problem
    assert not delivery._thread.is_alive()


@pytest.mark.parametrize("hurried", [False, True])
def test_close_does_not_wait_for_a_call_that_never_returns(
    hurried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "HURRY", 0.1)
    gate = threading.Event()
    store = FakeStore(lambda run: gate.wait(60) and None)
    store.doing = "its answer"
    delivery = started(store)
    delivery.put(Change(0, name="0000", points=(point(1),)))
    wait_for(lambda: store.attempts == [PARENT])
    (problem,) = delivery.close(lambda: hurried)
    assert re.fullmatch(
        rf"not everything has reached http://me:\*\*\*@store: its answer has taken 1 s so far{KEPT}", problem
    )
    gate.set()
    delivery._thread.join(10)


def test_what_was_not_waited_for_is_told_with_the_time_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is quick enough, but there are too many for somebody who waits."""
    monkeypatch.setattr(delivery_module, "HURRY", 0.2)
    delivery = started(FakeStore(lambda run: time.sleep(0.15)))
    for number in range(10):
        delivery.put(Change(number, name=f"{number:04d}", points=(point(1),), ended=("FINISHED", 9)))
    (problem,) = delivery.close(lambda: True)
    assert re.fullmatch(
        rf"http://me:\*\*\*@store did not take everything about '.*' and \d more within \d s{KEPT}", problem
    )


def test_a_file_that_another_process_locks_is_not_said_to_be_away(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "HURRY", 0.1)
    store = MlflowStore(f"sqlite:///{database}", "digits")
    delivery = make(store)
    delivery.start()
    delivery.put(Change(PARENT, name="search", started=1))
    delivery.put(Change(0, name="0000", points=(point(1),), ended=("FINISHED", 9)))
    wait_for(lambda: delivery.run_id(0) is not None)
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        delivery.put(Change(1, name="0001", points=(point(1),), ended=("FINISHED", 9)))
        wait_for(lambda: delivery._called_at is not None)
        (problem,) = delivery.close(lambda: True)
        other.execute("ROLLBACK")
    assert re.fullmatch(
        rf"not everything has reached sqlite:///{database}: writing to its file \(slow, or locked by another "
        rf"process\) has taken 1 s so far{KEPT}",
        problem,
    )
    delivery._thread.join(30)


def test_what_a_first_call_is_at_is_told() -> None:
    store = MlflowStore("sqlite:////nowhere/mlflow.db", "digits")
    assert store.doing == "importing MLflow"
    with store, pytest.raises(FileNotFoundError):
        store.deliver(Pending(PARENT, "key", name="search", started=1), None)
    assert store.doing == "opening the store"


def test_a_slow_store_has_all_the_time_it_needs_to_take_the_rest() -> None:
    store = FakeStore(lambda run: time.sleep(0.1))
    delivery = started(store)
    for number in range(10):
        delivery.put(Change(number, name=str(number), points=(point(1),)))
    assert delivery.close() == []
    assert len(store.taken) == 11


def test_unfinished_runs_are_delivered_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "CHILD_PAUSE", 0.05)
    store = FakeStore()
    delivery = started(store)
    delivery.put(Change(0, name="0000", points=(point(1),)))
    wait_for(lambda: store.points(0) == [point(1)])
    delivery.put(Change(0, points=(point(2),)))
    wait_for(lambda: store.points(0) == [point(1), point(2)])
    delivery.put(Change(0, points=(point(3),)))
    assert delivery.close() == []
    assert store.points(0) == [point(1), point(2), point(3)]


def test_what_the_store_took_is_acknowledged_once_and_not_before() -> None:
    fault = Fault(ConnectionRefusedError("away"))
    store = FakeStore(fault)
    told: list[Delivered] = []
    delivery = started(store, acknowledge=told.append)
    delivery.put(Change(0, name="0000", points=(point(1), point(2)), epochs=2))
    wait_for(lambda: len(store.attempts) > 3)
    assert told == []
    fault.on = False
    delivery.put(Change(0, points=(point(3),), epochs=3, ended=("KILLED", 9)))
    wait_for(lambda: len(told) > 1)
    delivery.put(Change(0, tags={"best": "true"}))  # nothing that a later process needs to know
    assert delivery.close() == []
    assert sorted(told, key=lambda known: known.run) == [
        Delivered(PARENT, "id -1", 0, None),
        Delivered(0, "id 0", 3, "KILLED"),
    ]
    assert store.taken[-1].tags == {"best": "true"}


def test_what_cannot_be_noted_is_delivered_and_noted_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "CHILD_PAUSE", 0.01)
    full = [OSError(28, "No space left on device")] * 2
    told: list[Delivered] = []

    def note(delivered: Delivered) -> None:
        if full:
            raise full.pop()
        told.append(delivered)

    store = FakeStore()
    delivery = started(store, acknowledge=note)
    delivery.put(Change(0, name="0000", points=(point(1),), epochs=1))
    wait_for(lambda: not full)
    delivery.put(Change(0, tags={"best": "true"}))
    assert delivery.close() == []
    assert store.points(0) == [point(1)]
    assert told == [Delivered(0, "id 0", 1, None)]


def test_a_run_of_an_earlier_process_goes_on() -> None:
    known = {PARENT: Delivered(PARENT, "p", 4, "KILLED"), 7: Delivered(7, "seven", 2, "KILLED")}
    told: list[Delivered] = []
    store = FakeStore(lambda run: seen.append((run.number, run.key, run.run_id, run.earlier)))
    seen: list[tuple[int, str, str | None, bool]] = []
    delivery = make(store, known, acknowledge=told.append)
    assert delivery.run_id(PARENT) == "p"
    delivery.start()
    delivery.put(Change(7, tags={"state": "running"}, reopen=True))
    wait_for(lambda: len(told) == 1)
    delivery.put(Change(7, points=(point(3),), epochs=3))
    delivery.put(Change(8, name="0008"))
    assert delivery.close() == []
    assert seen == [
        (7, "abc-0007", "seven", True),
        (7, "abc-0007", "seven", True),
        (8, "abc-0008", None, False),
    ]
    assert told == [
        Delivered(7, "seven", 2, None),
        Delivered(7, "seven", 3, None),
        Delivered(8, "id 8", 0, None),
    ]


def test_refused_points_are_never_taken_for_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(run: Pending) -> None:
        if point(2) in run.points:
            raise MlflowException("no such key", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(delivery_module, "CHILD_PAUSE", 0.01)
    told: list[Delivered] = []
    store = FakeStore(fault)
    delivery = started(store, acknowledge=told.append)
    delivery.put(Change(0, name="0000", points=(point(1),), epochs=1))
    wait_for(lambda: len(told) == 2)
    delivery.put(Change(0, points=(point(2),), epochs=2))
    wait_for(lambda: bool(delivery._problems))
    delivery.put(Change(0, points=(point(3),), epochs=3, ended=("FINISHED", 9)))
    (problem,) = delivery.close()
    assert "refused a part of run '0000'" in problem
    assert told[1:] == [Delivered(0, "id 0", 1, None), Delivered(0, "id 0", 1, "FINISHED")]


def test_the_search_ends_in_the_store_after_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "CHILD_PAUSE", 3600.0)
    store = FakeStore()
    delivery = started(store)
    delivery.put(Change(0, name="0000", points=(point(1),)))
    delivery.put(Change(PARENT, ended=("FINISHED", 9)))
    delivery.put(Change(1, name="0001", points=(point(1),)))
    wait_for(lambda: len(store.taken) == 3)  # without waiting for the pauses of unfinished runs
    assert delivery.close() == []
    assert store.attempts[-1] == PARENT
    assert store.taken[-1].ended == ("FINISHED", 9)


def test_the_search_does_not_end_in_the_store_while_something_is_missing() -> None:
    store = FakeStore(Fault(ConnectionError("always here"), of={1}))
    told: list[Delivered] = []
    delivery = started(store, acknowledge=told.append)
    for number in range(3):
        delivery.put(Change(number, name=f"run {number}", ended=("FINISHED", 9)))
    delivery.put(Change(PARENT, ended=("FINISHED", 9)))
    (problem,) = delivery.close()
    assert "everything about 'search', 'run 1'" in problem or "everything about 'run 1', 'search'" in problem
    assert {known.run: known.status for known in told}.get(PARENT) is None
    assert {known.run for known in told if known.status == "FINISHED"} == {0, 2}


@pytest.mark.parametrize("offline", [True, False])
def test_offline_a_store_that_never_answered_gets_one_more_chance(
    offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "FIRST_RETRY", 60.0)
    monkeypatch.setattr(delivery_module, "LAST_RETRY", 60.0)
    store = FakeStore(Fault(ConnectionRefusedError("away")))
    delivery = started(store, offline=offline)
    wait_for(lambda: len(store.attempts) == 1)
    (problem,) = delivery.close()
    assert "did not take everything about 'search'" in problem
    assert len(store.attempts) == 2 if offline else len(store.attempts) > 2


def test_offline_a_store_that_has_answered_is_waited_for() -> None:
    fault = Fault(ConnectionRefusedError("away"))
    fault.on = False
    store = FakeStore(fault)
    delivery = started(store, offline=True)
    wait_for(lambda: bool(store.taken))
    fault.on = True
    delivery.put(Change(0, name="0000", ended=("FINISHED", 9)))
    wait_for(lambda: len(store.attempts) > 2)
    closing = threading.Timer(0.1, lambda: setattr(fault, "on", False))
    closing.start()
    assert delivery.close() == []
    closing.join()


def test_no_problem_shows_the_password() -> None:
    store = FakeStore(
        Fault(ConnectionError("login of ('me', 'secret') refused by http://me:secret@store/api"))
    )
    (problem,) = started(store).close()
    assert "secret" not in problem
    assert "login of ('me', '***') refused by http://me:***@store/api" in problem


def test_closed_before_it_started_or_twice() -> None:
    assert make(FakeStore()).close() == []
    delivery = started(FakeStore())
    assert delivery.close() == []
    assert delivery.close() == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("busy", TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("broken", INTERNAL_ERROR), True),
        (MlflowException("bad", INVALID_PARAMETER_VALUE), False),
        (MlflowException("gone", RESOURCE_DOES_NOT_EXIST), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (BlockingIOError(), True),
        (OSError(28, "no space left on device"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (OperationalError("select", {}, Exception("locked")), True),
        (ImportError("half done"), True),
        (TypeError("a mistake of ours"), False),
    ],
)
def test_passes(error: Exception, expected: bool) -> None:
    assert passes(error) is expected


class Entered(MlflowStore):
    """Shows what is set while a store is in use."""

    def deliver(self, run: Pending, parent: Pending | None) -> None:
        run.run_id = "1"
        self.seen = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_HTTP")}


def test_mlflow_settings_are_those_of_the_user_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = dict(os.environ)
    store = Entered("http://store", "experiment")
    delivery = make(store)
    delivery.start()
    delivery.put(Change(PARENT, name="search"))
    assert delivery.close() == []
    assert store.seen == {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}
    assert dict(os.environ) == before


def test_close_hurries_once_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_fusion.tracking.delivery.PATIENCE", 600.0)
    monkeypatch.setattr("tune_fusion.tracking.delivery.HURRY", 0.1)
    store = FakeStore(Fault(TimeoutError("no answer")))
    delivery = started(store)
    delivery.put(Change(0, name="0000", points=(point(1),)))
    asked = []

    def hurried() -> bool:
        asked.append(len(store.attempts))
        return len(asked) > 3

    (problem,) = delivery.close(hurried)
    assert "did not take everything about" in problem
    assert "'0000'" in problem  # after the parent, where that had been tried before the end was asked for
    assert len(asked) == 4
