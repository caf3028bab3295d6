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
    return Pending(PARENT, name="search", started=1, tags={"space": "digits"})


def child_run(points: int = 3) -> Pending:
    return Pending(
        0,
        name="0000 adam",
        started=2,
        params={"low.optimizer": "adam"},
        tags={"arm": "control"},
        points=[Point("val_loss", 1 / step, 10 + step, step) for step in range(1, points + 1)],
        artifacts=[Artifact("model/config.json", lambda: "{}")],
        ended=("FINISHED", 99),
    )


def stored(database: Path) -> tuple[list[Any], list[Any]]:
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute(
            "SELECT name, status FROM runs WHERE experiment_id > 1 ORDER BY name"
        ).fetchall()
        points = connection.execute("SELECT step, value FROM metrics ORDER BY step").fetchall()
    return runs, points


@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_text", "set_terminated"])
@pytest.mark.parametrize("done", [True, False], ids=["answer lost", "never arrived"])
def test_every_call_may_fail_once_and_nothing_is_stored_twice(
    database: Path, uri: str, monkeypatch: pytest.MonkeyPatch, method: str, done: bool
) -> None:
    real = getattr(MlflowClient, method)
    failures = [ConnectionResetError("gone")]

    def failing(*values: Any, **named: Any) -> Any:
        answer = real(*values, **named) if done or not failures else None
        if failures:
            raise failures.pop()
        return answer

    parent, child = parent_run(), child_run()
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
        "    store.deliver(Pending(PARENT, name='search', started=1), None)\n"
    )
    uri = f"sqlite:///{database}"
    assert subprocess.run([sys.executable, "-c", script, uri], check=False).returncode == 9
    assert not database.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.part"]
    with MlflowStore(uri, "digits") as store:
        store.deliver(parent_run(), None)
    assert stored(database)[0] or database.exists()
    assert not (tmp_path / ".mlflow.db.part").exists()
