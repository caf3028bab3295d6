from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import Server
from searches import end_epoch, end_trial, metrics

from tune_fusion.records import SearchRecord, TrialRecord, TrialState
from tune_fusion.tracking.changes import PARENT, Pending
from tune_fusion.tracking.store import MlflowStore


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store that has its tables: making them takes seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with MlflowStore(f"sqlite:///{path}", "template") as store:
        store.deliver(Pending(PARENT, "template", name="template", started=1), None)
    return path


@pytest.fixture
def database(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template, tmp_path / "mlflow.db"))


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def record() -> SearchRecord:
    return SearchRecord("first", "digits", "val_accuracy", "max", planned_trials=4, started=1_700_000_000.0)


@pytest.fixture
def add_trial(record: SearchRecord) -> Callable[..., TrialRecord]:
    def add(state: TrialState = TrialState.RUNNING, *, single: bool = False, **values: object) -> TrialRecord:
        number = len(record.trials)
        parameters: dict[str, object] = {"switch_layer": "all" if single else 3, "low.optimizer": "adam"}
        if not single:
            parameters |= {"high.optimizer": "sgd", "high.lr": 0.1, "high.nesterov": True}
        trial = TrialRecord(
            number=number,
            arm="control" if single else "fusion",
            origin="sampled",
            configuration={"switch_layer": parameters["switch_layer"], "low": {"optimizer": "adam"}},
            parameters={**parameters, "low.lr": 1e-3, "low.betas": (0.9, 0.999), "training.clip_norm": None},
            switch_layer_name="blocks.3",
            single=single,
            max_epochs=3,
            started=1_700_000_100.0 + number,
            state=state,
        )
        for key, value in values.items():
            setattr(trial, key, value)
        record.trials.append(trial)
        return trial

    return add


@pytest.fixture
def tell(record: SearchRecord, add_trial: Callable[..., TrialRecord]) -> Callable[..., TrialRecord]:
    """Let a listener see a whole trial go by."""
    count = itertools.count(1)

    def whole(
        listener: object,
        state: TrialState = TrialState.COMPLETED,
        epochs: int = 3,
        *,
        single: bool = False,
        reason: str = "",
    ) -> TrialRecord:
        trial = add_trial(single=single)
        listener.trial_started(trial)
        for _ in range(epochs):
            end_epoch(trial, metrics(next(count) / 1000))
            listener.epoch_ended(trial)
        end_trial(record, trial, state, reason)
        listener.trial_ended(trial)
        return trial

    return whole


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(folder, database)
    made.start()
    yield made
    made.stop()
