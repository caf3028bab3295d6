from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tune_fusion.tracking.changes import PARENT, Artifact, Pending, Point
from tune_fusion.tracking.store import MlflowStore


def parent_run() -> Pending:
    return Pending(PARENT, "abc", name="search", started=1, tags={"space": "digits"})


def child_run(points: int = 3, file: Path | None = None) -> Pending:
    return Pending(
        0,
        "abc-0000",
        name="0000 adam",
        started=2,
        params={"low.optimizer": "adam"},
        tags={"arm": "control"},
        points=[Point("val_loss", 1 / step, 10 + step, step) for step in range(1, points + 1)],
        artifacts=[Artifact(file, "model")] if file else [],
        ended=("FINISHED", 99),
    )


def stored(database: Path) -> tuple[list[Any], list[Any]]:
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute(
            "SELECT name, status FROM runs WHERE experiment_id > 1 ORDER BY name"
        ).fetchall()
        points = connection.execute("SELECT step, value FROM metrics ORDER BY step").fetchall()
    return runs, points


@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_artifact", "set_terminated"])
@pytest.mark.parametrize("done", [True, False], ids=["answer lost", "never arrived"])
def test_every_call_may_fail_once_and_nothing_is_stored_twice(
    database: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, done: bool
) -> None:
    real = getattr(MlflowClient, method)
    failures = [ConnectionResetError("gone")]

    def failing(*values: Any, **named: Any) -> Any:
        answer = real(*values, **named) if done or not failures else None
        if failures:
            raise failures.pop()
        return answer

    (tmp_path / "config.json").write_text("{}")
    parent, child = parent_run(), child_run(file=tmp_path / "config.json")
    with MlflowStore(uri, "digits") as store:
        store.deliver(parent, None)
        monkeypatch.setattr(MlflowClient, method, failing)
        with pytest.raises(ConnectionResetError):
            store.deliver(child, parent)
        store.deliver(child, parent)
    assert stored(database) == (
        [("0000 adam", "FINISHED"), ("search", "RUNNING")],
        [(1, 1.0), (2, 1 / 2), (3, 1 / 3)],
    )
    run = MlflowClient(uri).get_run(str(child.run_id))
    assert run.data.params == {"low.optimizer": "adam"}
    assert run.data.tags.items() >= {"arm": "control", "mlflow.parentRunId": parent.run_id}.items()
    assert [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, "model")] == [
        "model/config.json"
    ]
    assert (child.points, child.params, child.tags, child.artifacts, child.ended) == ([], {}, {}, [], None)


def test_a_run_that_another_process_made_is_found_and_goes_on(database: Path, uri: str) -> None:
    """That process died before it could note anything."""
    first_parent, first_child = parent_run(), child_run()
    first_parent.ended = ("KILLED", 50)
    with MlflowStore(uri, "digits") as store:
        store.deliver(first_child, first_parent)
        store.deliver(first_parent, None)
    parent, child, fresh = parent_run(), child_run(), child_run()
    child.points = [Point("val_loss", 1 / step, 70 + step, step) for step in range(2, 6)]  # times differ
    child.points.append(Point("val_accuracy", 0.5, 72, 2))
    child.ended = None
    fresh.number, fresh.key, fresh.name = 1, "abc-0001", "0001 adam"
    with MlflowStore(uri, "digits") as store:
        for run in (child, fresh):
            store.deliver(run, parent)
        store.deliver(parent, None)
    assert (parent.run_id, child.run_id) == (first_parent.run_id, first_child.run_id)
    assert (parent.status, child.status, fresh.status) == (None, None, "FINISHED")
    client = MlflowClient(uri)
    assert [client.get_run(str(run.run_id)).info.status for run in (parent, child, fresh)] == [
        *("RUNNING", "RUNNING", "FINISHED")
    ]
    history = client.get_metric_history(str(child.run_id), "val_loss")
    assert [(point.step, point.timestamp) for point in history] == [
        (1, 11),
        (2, 12),
        (3, 13),
        (4, 74),
        (5, 75),
    ]
    assert [point.step for point in client.get_metric_history(str(child.run_id), "val_accuracy")] == [2]
    assert len(stored(database)[0]) == 3


def test_a_known_run_is_reopened_and_ended_again(database: Path, uri: str) -> None:
    parent, child = parent_run(), child_run()
    with MlflowStore(uri, "digits") as store:
        store.deliver(child, parent)
    known = Pending(0, "abc-0000", run_id=child.run_id, earlier=True, status="FINISHED", reopen=True)
    known.tags = {"reason": ""}
    with MlflowStore(uri, "digits") as store:
        store.deliver(known, parent)
        assert stored(database)[0][0] == ("0000 adam", "RUNNING")
        assert known.status is None
        known.points, known.ended = [Point("val_loss", 0.5, 14, 4)], ("KILLED", 200)
        store.deliver(known, parent)
    assert stored(database) == (
        [("0000 adam", "KILLED"), ("search", "RUNNING")],
        [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 0.5)],
    )
    assert MlflowClient(uri).get_run(str(child.run_id)).info.end_time == 200


def test_all_runs_of_a_large_search_are_found_in_pages(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = MlflowClient.search_runs
    pages = []

    def small_pages(client: MlflowClient, *values: Any, **named: Any) -> Any:
        pages.append(named["page_token"])
        return real(client, *values, max_results=2, **named)

    def children() -> list[Pending]:
        return [Pending(number, f"abc-{number:04d}", name=str(number), started=2) for number in range(5)]

    made = []
    for _ in range(2):
        parent, runs = parent_run(), children()
        with MlflowStore(uri, "digits") as store:
            for run in runs:
                store.deliver(run, parent)
        made.append([run.run_id for run in runs])
        monkeypatch.setattr(MlflowClient, "search_runs", small_pages)
    assert made[0] == made[1]
    assert len(set(made[0])) == 5
    assert len(pages) == 1 + 3  # the parent's, and three for its children


def test_more_than_mlflow_takes_in_one_call(database: Path, uri: str) -> None:
    parent, child = parent_run(), child_run(points=2500)
    child.params = {f"p{i}": "x" for i in range(250)}
    with MlflowStore(uri, "digits") as store:
        store.deliver(parent, None)
        child.tags = {}
        store.deliver(child, parent)
        child.tags = {f"t{i}": "x" for i in range(250)}
        store.deliver(child, parent)
    assert [step for step, _ in stored(database)[1]] == list(range(1, 2501))
    run = MlflowClient(uri).get_run(str(child.run_id))
    assert len(run.data.params) == 250
    assert len([key for key in run.data.tags if key.startswith("t") and key[1:].isdigit()]) == 250


def test_a_sqlite_file_in_use_by_a_first_search_is_left_alone(database: Path, uri: str) -> None:
    folder = os.open(database.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with MlflowStore(uri, "digits") as store, pytest.raises(BlockingIOError):
            store.deliver(parent_run(), None)
    finally:
        os.close(folder)
    assert stored(database) == ([], [])


def test_log_lines_of_this_thread_only_are_kept_off_the_terminal(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("mlflow.store")
    with MlflowStore(uri, "digits") as store:
        store.deliver(parent_run(), None)
        logger.warning("from the store's thread")
        other = threading.Thread(target=logger.warning, args=("from another thread",))
        other.start()
        other.join()
    logger.warning("after the search")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.rpartition(": ")[2] for line in captured.err.splitlines()] == [
        "from another thread",
        "after the search",
    ]


def test_a_process_killed_while_it_makes_the_tables_leaves_no_half_made_store(tmp_path: Path) -> None:
    """A search killed in its first seconds must not spoil the store for the next one."""
    database = tmp_path / "mlflow.db"
    script = (
        "import os, sys\n"
        "from mlflow.store.tracking import sqlalchemy_store\n"
        "from tune_fusion.tracking.store import MlflowStore\n"
        "from tune_fusion.tracking.changes import PARENT, Pending\n"
        "class Killed(sqlalchemy_store.SqlAlchemyStore):\n"
        "    def __init__(self, *arguments):\n"
        "        open(arguments[0].removeprefix('sqlite:///'), 'w').write('half')\n"
        "        os._exit(9)\n"
        "sqlalchemy_store.SqlAlchemyStore = Killed\n"
        "with MlflowStore(sys.argv[1], 'digits') as store:\n"
        "    store.deliver(Pending(PARENT, 'abc', name='search', started=1), None)\n"
    )
    uri = f"sqlite:///{database}"
    assert subprocess.run([sys.executable, "-c", script, uri], check=False).returncode == 9
    assert not database.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.part"]
    with MlflowStore(uri, "digits") as store:
        store.deliver(parent_run(), None)
    assert stored(database)[0] or database.exists()
    assert not (tmp_path / ".mlflow.db.part").exists()
