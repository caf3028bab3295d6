"""The store: the few calls of MLflow that bring a run's news to it; the first of them imports MLflow."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tune_fusion.tracking.changes import Pending
from tune_fusion.tracking.imports import load_mlflow
from tune_fusion.tracking.uri import absolute, database_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_POINTS_A_CALL, _WORDS_A_CALL = 800, 100
"""MLflow takes at most 100 parameters, 100 tags and 1,000 things in all at once."""
_KEY_TAG = "tune_fusion.key"
_PASSING = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "ABORTED",
}
"""MLflow's error codes after which the same call may succeed later."""

# MLflow's own retries block for minutes without a word, so `Delivery` makes the pauses between attempts.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class MlflowStore:
    """The experiment named `experiment` in the store behind `uri`; used by one thread, as a context manager.

    While it is entered, MLflow's log lines of that thread are kept off the terminal, and those of its
    settings that the user has not set are set for short waits.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = absolute(uri)
        self.experiment = experiment
        self.experiment_id: str | None = None
        self.doing = "importing MLflow"
        """What a call that is under way is at, in words."""
        self._client: MlflowClient | None = None
        self._children: dict[str, tuple[str, str]] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_environment(_SETTINGS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def deliver(self, run: Pending, parent: Pending | None) -> None:
        """Bring everything pending about `run` to the store, and make the run where it is missing.

        `parent` is the run it is nested in. What the store took is removed from `run` at once, so that after
        an error the same call goes on where it stopped. No value is ever stored twice: MLflow takes the same
        point at the same time once, and of a run that earlier processes knew no stored step is sent again.
        """
        from mlflow.entities import Metric, Param, RunTag

        client = self._connect()
        run_id = self._find_or_create(client, run, parent)
        if run.reopen and not run.ended:
            client.update_run(run_id, status="RUNNING")
            run.status = None
        run.reopen = False
        if run.earlier:
            _leave_stored(client, run_id, run)
        while run.points or run.params or run.tags:
            points = run.points[:_POINTS_A_CALL]
            params, tags = list(run.params)[:_WORDS_A_CALL], list(run.tags)[:_WORDS_A_CALL]
            client.log_batch(
                run_id,
                metrics=[Metric(point.key, point.value, point.at, point.step) for point in points],
                params=[Param(key, run.params[key]) for key in params],
                tags=[RunTag(key, run.tags[key]) for key in tags],
            )
            del run.points[: len(points)]
            for key in params:
                del run.params[key]
            for key in tags:
                del run.tags[key]
        while run.artifacts:
            artifact = run.artifacts[0]
            client.log_artifact(run_id, str(artifact.file), artifact.folder or None)
            del run.artifacts[0]
        if run.ended:
            status, at = run.ended
            client.set_terminated(run_id, status, at)
            run.status, run.ended = status, None

    def _connect(self) -> MlflowClient:
        if self._client is None:
            load_mlflow()
            from mlflow.tracking import MlflowClient

            self._stack.enter_context(_quiet())
            database = database_path(self.uri)
            self.doing = "opening the store"
            with _alone(database):
                if database is not None and not database.exists():
                    _create_database(database)
                client = MlflowClient(self.uri, registry_uri=self.uri)
                self.experiment_id = self._find_experiment(client)
            self._client = client
            file = "writing to its file (slow, or locked by another process)"
            self.doing = "its answer" if database is None else file
        return self._client

    def _find_experiment(self, client: MlflowClient) -> str:
        """The experiment's id; it is made where it is missing, and restored where it was deleted."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(client.create_experiment(self.experiment, self._artifact_location()))
            except MlflowException as error:
                found = client.get_experiment_by_name(self.experiment)
                if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise  # not merely another search that was faster
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _artifact_location(self) -> str | None:
        """Beside a SQLite file, not wherever the search was started; a server knows its own place."""
        path = database_path(self.uri)
        if path is None:
            return None
        return (path.parent / "mlartifacts" / self.experiment.replace("/", "_")).as_uri()

    def _find_or_create(self, client: MlflowClient, run: Pending, parent: Pending | None) -> str:
        if run.run_id is None:
            tags = {**run.tags, _KEY_TAG: run.key}
            if parent is not None:
                tags["mlflow.parentRunId"] = self._find_or_create(client, parent, None)
            found = self._find(client, run, parent)
            run.attempted = True
            if found is None:
                made = client.create_run(str(self.experiment_id), run.started, tags, run.name)
                run.run_id, run.tags = str(made.info.run_id), {}
            else:
                run.run_id, status = found
                run.earlier = True
                run.reopen |= status != "RUNNING"
        return run.run_id

    def _find(self, client: MlflowClient, run: Pending, parent: Pending | None) -> tuple[str, str] | None:
        """The id and status of a run that was made before, by another process or without an answer."""
        if parent is None or run.attempted:
            return self._search(client, f"tags.`{_KEY_TAG}` = '{run.key}'").get(run.key)
        if not parent.earlier:
            return None
        if self._children is None:
            self._children = self._search(client, f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
        return self._children.get(run.key)

    def _search(self, client: MlflowClient, where: str) -> dict[str, tuple[str, str]]:
        """Ids and states of runs by their keys."""
        found: dict[str, tuple[str, str]] = {}
        token = None
        while True:
            page = client.search_runs([str(self.experiment_id)], where, page_token=token)
            for run in page:
                if _KEY_TAG in run.data.tags:
                    found[run.data.tags[_KEY_TAG]] = (str(run.info.run_id), str(run.info.status))
            token = page.token
            if not token:
                return found


@contextmanager
def reading(uri: str) -> Iterator[MlflowClient | None]:
    """A client of the store behind `uri` that makes nothing there; None where its SQLite file is not there.

    MLflow's log lines and settings are those of `MlflowStore`.
    """
    uri = absolute(uri)
    database = database_path(uri)
    if database is not None and not database.exists():
        yield None
        return
    with _environment(_SETTINGS):
        load_mlflow()
        from mlflow.tracking import MlflowClient

        with _quiet():
            yield MlflowClient(uri, registry_uri=uri)


def passes(error: Exception) -> bool:
    """Whether the same call of a store may succeed later: the store is away, busy or full, not displeased."""
    code = getattr(error, "error_code", None)  # only MlflowException has one
    if code is not None:
        return code in _PASSING
    if isinstance(error, OSError):  # requests' errors among them
        return not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    # SQLAlchemy's errors of the connection; an import that met another thread's, half done.
    return type(error).__name__ in ("OperationalError", "InterfaceError") or isinstance(error, ImportError)


def _leave_stored(client: MlflowClient, run_id: str, run: Pending) -> None:
    """Forget the pending points of steps that earlier processes have stored.

    They are the same values, but where a journal lost its end the time may be another, and so the point.
    """
    for key in {point.key for point in run.points} - run.steps.keys():
        run.steps[key] = {stored.step for stored in client.get_metric_history(run_id, key)}
    run.points = [point for point in run.points if point.step not in run.steps[point.key]]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, and take them back."""
    missing = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            os.environ.pop(key, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow and its libraries log on this thread off the terminal: the delivery reports errors.

    MLflow must be imported: that is when it sets up the handlers.
    """
    own = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != own

    names = ("mlflow", "alembic", "sqlalchemy.engine")
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(elsewhere)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(elsewhere)


def _create_database(path: Path) -> None:
    """Make a SQLite store with all of its tables, whole or not at all: a half-made one would be no store.

    To be called by one process at a time (`_alone`).
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # left by a process that was killed here
    artifacts = (path.parent / "mlartifacts").as_uri()
    store = SqlAlchemyStore(f"sqlite:///{part}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    part.rename(path)


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Keep other searches of this machine away while a SQLite file gets its tables.

    Raises:
        BlockingIOError: another one is at it.
    """
    if database is None:
        yield
        return
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            # Else the file system locks no folders: two first searches at once may collide there.
        yield
    finally:
        os.close(folder)
