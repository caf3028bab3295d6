"""The delivery thread against a store that fails in every way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Self

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
from tune_fusion.tracking.changes import PARENT, Change, Pending, Point
from tune_fusion.tracking.delivery import Delivery
from tune_fusion.tracking.store import MlflowStore, passes


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
        run.run_id = f"id {run.number}"
        run.drop()
        run.ended = None

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


def started(store: FakeStore) -> Delivery:
    delivery = Delivery(store)
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
        "http://me:***@store did not take everything about 'run 1': ConnectionError: always here"
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
    assert problem == "nothing was logged to http://me:***@store: MlflowException: schema is too old"
    assert store.attempts == [PARENT]


@pytest.mark.parametrize("timeout", [None, 0.1])
def test_close_gives_up_on_a_store_that_stays_away(timeout: float | None) -> None:
    store = FakeStore(Fault(TimeoutError("no answer")))
    delivery = started(store)
    for number in range(7):
        delivery.put(Change(number, name=f"{number:04d}", points=(point(1),)))
    (problem,) = delivery.close(timeout)
    assert "did not take everything about" in problem
    assert "and 3 more: TimeoutError: no answer" in problem
    assert not delivery._thread.is_alive()


@pytest.mark.parametrize("timeout", [None, 0.01])
def test_close_does_not_wait_for_a_call_that_never_returns(timeout: float | None) -> None:
    gate = threading.Event()
    delivery = started(FakeStore(lambda run: gate.wait(60) and None))
    assert delivery.close(timeout) == ["http://me:***@store did not answer while the last changes were sent"]
    gate.set()
    delivery._thread.join(10)


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


def test_closed_before_it_started_or_twice() -> None:
    assert Delivery(FakeStore()).close() == []
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
        self.seen = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_HTTP")}


def test_mlflow_settings_are_those_of_the_user_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = dict(os.environ)
    store = Entered("http://store", "experiment")
    delivery = Delivery(store)
    delivery.start()
    delivery.put(Change(PARENT, name="search"))
    assert delivery.close() == []
    assert store.seen == {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}
    assert dict(os.environ) == before
